use super::*;
use culvert_bridge::records::*;

pub(crate) fn name(spi: u32) -> SaName {
    SaName {
        spi,
        destination: "192.0.2.1".parse().unwrap(),
    }
}

pub(crate) fn policy(reqid: u32) -> Policy {
    let end = TrafficSelector {
        protocol: 17,
        network: "192.0.2.1".parse().unwrap(),
        prefix: 32,
        first_port: 0,
        last_port: u16::MAX,
    };
    Policy {
        name: PolicyName {
            direction: Direction::Out,
            source: end.clone(),
            destination: end,
        },
        kind: Kind::Protect,
        priority: Priority::Default,
        manual_priority: 0,
        source: "192.0.2.1".parse().unwrap(),
        destination: "192.0.2.2".parse().unwrap(),
        mode: 1,
        reqid,
        spi: 0,
        restriction: None,
    }
}
