mod fallback;

use super::*;
use culvert_proto::message::Changes;
use culvert_proto::sa::{
    Action, Cipher, Direction, Geneve, Lifetime, Mode, Place, SaId, Selector, Spi, UdpEncapsulation,
};
use culvert_proto::status::{
    CharonStatus, Handovers, PolicyStatus, PortStatus, SaStatus, TunnelStatus, WorkerStatus,
};

fn sa(spi: u32, direction: Direction, sequence: u64, esn: bool) -> SaStatus {
    SaStatus {
        direction,
        spi: Spi::new(spi).unwrap(),
        source: "192.0.2.1".parse().unwrap(),
        destination: "192.0.2.2".parse().unwrap(),
        cipher: Cipher::Aes256Gcm16,
        esn,
        encapsulation: None,
        packets: 5,
        bytes: 7_000,
        sequence,
        replay_window: 1024,
        replayed: 0,
        late: 0,
        failed: 0,
        lost: 0,
        lifetime: Lifetime::default(),
        age_seconds: 70,
        use_seconds: Some(60),
        state: "alive".to_owned(),
    }
}

fn policy(host: u8, outbound: Option<u32>) -> PolicyStatus {
    let (local, remote) = ([192, 0, 2, 1].into(), [192, 0, 2, host].into());
    let sa = |direction, spi, destination| SaId {
        direction,
        spi: Spi::new(spi).unwrap(),
        destination,
    };
    PolicyStatus {
        selector: Selector::hosts(local, remote),
        order: 0,
        action: Action::Protect {
            outbound: outbound.map(|spi| sa(Direction::Out, spi, remote)),
            inbound: vec![sa(Direction::In, 0x2001, local)],
        },
        blocked: 0,
        protected_by: if outbound.is_some() {
            "culvert"
        } else {
            "none (dropping)"
        }
        .to_owned(),
    }
}

pub(crate) fn datapath() -> DatapathStatus {
    DatapathStatus {
        program: "culvert-datapath 0.1.0".to_owned(),
        pid: 12,
        uptime_seconds: 75.0,
        aead: [
            ("AES-128-GCM", "ipsec-mb"),
            ("AES-192-GCM", "ipsec-mb"),
            ("AES-256-GCM", "ipsec-mb"),
            ("ChaCha20-Poly1305", "aws-lc-rs"),
        ]
        .map(|(cipher, backend)| (cipher.to_owned(), backend.to_owned()))
        .into(),
        cpu_features: vec!["aes".to_owned(), "vaes".to_owned()],
        ports: vec![PortStatus {
            role: "wire".to_owned(),
            interface: "eth1".to_owned(),
            kind: "NIC".to_owned(),
            xdp: "native".to_owned(),
            af_xdp: "zero-copy".to_owned(),
            queues: 4,
            mtu: 1500,
        }],
        workers: vec![WorkerStatus {
            id: 0,
            core: Some(3),
            cpu_seconds: 1.25,
            from_host: 10,
            from_wire: 20,
            sealed: 9,
            opened: 18,
            bypassed: 0,
            sleeps: 4,
        }],
        sas: vec![
            sa(0x1001, Direction::Out, 99, true),
            sa(0x2001, Direction::In, 98, false),
        ],
        policies: vec![policy(2, Some(0x1001))],
        drops: [("malformed".to_owned(), 3), ("replayed".to_owned(), 0)].into(),
    }
}

pub(crate) fn keymgr() -> KeymgrStatus {
    KeymgrStatus {
        program: "culvert-keymgr 0.1.0".to_owned(),
        pid: 11,
        uptime_seconds: 80.0,
        source: "/etc/culvert/keymgr.toml".to_owned(),
        sas: 2,
        policies: 1,
        datapath_in_sync: true,
        datapath_problem: None,
        last_load: Changes::default(),
        refused: None,
        events: Vec::new(),
        charon: None,
        tunnels: Vec::new(),
        held: Vec::new(),
        charon_refused: std::collections::BTreeMap::new(),
        drained: false,
        kernel_problem: None,
        kernel_sas: Vec::new(),
        kernel_policies: Vec::new(),
        handovers: Handovers::default(),
    }
}

fn down(program: &'static str) -> Trouble {
    Trouble::Down {
        program,
        socket: "x.sock".into(),
        start: "x".to_owned(),
    }
}

#[test]
fn a_good_state_fits_on_a_screen() {
    let report = Report::new(Ok(datapath()), Ok(keymgr()));
    assert_eq!(report.problems, [""; 0]);
    let text = view::text(&report, false);
    for wanted in [
        "culvert-datapath 0.1.0",
        "1 min 15 s",
        "in sync",
        "eth1",
        "zero-copy",
        "culvert",
        "0x00001001",
        "aes256gcm16 esn",
        "CPU has aes vaes",
        "7.0 kB",
        "1024",
        "malformed",
        "contradicting",
    ] {
        assert!(text.contains(wanted), "{wanted}:\n{text}");
    }
    assert!(
        !text.contains("replayed") && !text.contains("Problems"),
        "{text}"
    );
    assert!(text.is_ascii() && text.lines().count() < 24, "{text}");
}

#[test]
fn one_daemon_is_enough() {
    let report = Report::new(Err(down("culvert-datapath")), Ok(keymgr()));
    let text = view::text(&report, false);
    assert!(
        text.contains("down") && text.contains("culvert-datapath is not running"),
        "{text}"
    );
    assert!(text.contains("/etc/culvert/keymgr.toml"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert!(json["datapath"].is_null() && json["keymgr"]["pid"] == 11);
    assert_eq!(json["problems"].as_array().unwrap().len(), 1);

    let report = Report::new(Ok(datapath()), Err(down("culvert-keymgr")));
    let text = view::text(&report, false);
    assert!(
        text.contains("eth1") && text.contains("culvert-keymgr is not running"),
        "{text}"
    );
    assert_eq!(
        serde_json::to_value(&report).unwrap()["datapath"]["sas"][0]["spi"],
        0x1001
    );
}

#[test]
fn what_is_not_well_is_said() {
    let mut datapath = datapath();
    datapath.policies = (2..40).map(|host| policy(host, Some(0x1001))).collect();
    datapath.policies.push(policy(77, None));
    datapath.sas = vec![
        // RFC 4303 §3.3.3 [3.3.3-in-anticipation]
        sa(0x1002, Direction::Out, u64::from(u32::MAX) - 9, false),
        sa(0x1003, Direction::Out, u64::from(u32::MAX), true),
        sa(0x1004, Direction::In, u64::from(u32::MAX), false),
    ];
    datapath.sas[0].state = "expiring".to_owned();
    datapath.sas[2].replayed = 3;
    let mut keymgr = keymgr();
    keymgr.datapath_in_sync = false;
    keymgr.datapath_problem = Some("the datapath refused: no room".to_owned());
    keymgr.refused = Some("x.toml:1: a\nx.toml:2: b".to_owned());
    let report = Report::new(Ok(datapath), Ok(keymgr));
    assert_eq!(report.problems.len(), 4, "{:?}", report.problems);
    let text = view::text(&report, false);
    for wanted in [
        "no room",
        "x.toml:2: b",
        "192.0.2.77 is blocked",
        "SA 0x00001002 out has reached its soft lifetime",
        "alive, 3 replayed",
        "and 27 more policies",
        "NOT in sync",
    ] {
        assert!(text.contains(wanted), "{wanted}:\n{text}");
    }
    // What is blocked is on the screen although it came last.
    assert!(text.contains("none (dropping)"), "{text}");
    assert!(!view::text(&report, true).contains("more policies"));
}

#[test]
fn encapsulation_shows_its_ports() {
    let mut datapath = datapath();
    datapath.sas[0].encapsulation = Some(UdpEncapsulation {
        source_port: 4500,
        destination_port: 4501,
        keepalive: 0,
    });
    let text = view::text(&Report::new(Ok(datapath), Ok(keymgr())), false);
    assert!(
        text.contains("192.0.2.1:4500") && text.contains("192.0.2.2:4501"),
        "{text}"
    );
}

/// A policy of strongSwan's.
pub(crate) fn negotiated(
    host: u8,
    geneve: Geneve,
    outbound: Option<u32>,
) -> (PolicyStatus, TunnelStatus) {
    let mut policy = policy(host, outbound);
    policy.selector.geneve = geneve;
    let tunnel = TunnelStatus {
        selector: policy.selector.clone(),
        source: "strongSwan".to_owned(),
        ike_peer: Some([192, 0, 2, host].into()),
        reqid: Some(7),
        trap: true,
        mode: Mode::default(),
        place: Place::Culvert,
        why: None,
    };
    (policy, tunnel)
}

#[test]
fn a_negotiated_tunnel_shows_peer_age_and_rekeying() {
    let (mut datapath, mut keymgr) = (datapath(), keymgr());
    let pairs = [Geneve::Local, Geneve::Remote].map(|geneve| negotiated(2, geneve, Some(0x1001)));
    (datapath.policies, keymgr.tunnels) = pairs.into_iter().unzip();
    datapath.sas[0].lifetime.soft.seconds = Some(3670);
    datapath.sas[0].lifetime.soft.bytes = Some(1_007_000);
    // It is being replaced, with nothing left.
    datapath.sas[1].state = "expiring".to_owned();
    datapath.sas[1].lifetime.soft.seconds = Some(1);
    keymgr.charon = Some(CharonStatus {
        program: "strongSwan 5.9.8".to_owned(),
        connected: true,
        sas: 2,
        policies: 2,
    });
    let report = Report::new(Ok(datapath), Ok(keymgr));
    assert_eq!(report.problems, [""; 0]);
    let text = view::text(&report, false);
    for wanted in [
        "strongSwan  192.0.2.2",
        "1 min 10 s",
        "1 h 0 min or 1.0 MB",
        "from us",
        "5.9.8",
    ] {
        assert!(text.contains(wanted), "{wanted}:\n{text}");
    }
}

#[test]
fn what_strongswan_has_not_negotiated_is_named() {
    let (mut datapath, mut keymgr) = (datapath(), keymgr());
    let pairs = [
        negotiated(2, Geneve::Either, None),
        negotiated(3, Geneve::Either, None),
        // One child of two, and one that is too narrow.
        negotiated(4, Geneve::Remote, Some(0x1001)),
        negotiated(5, Geneve::Both, Some(0x1001)),
    ];
    (datapath.policies, keymgr.tunnels) = pairs.into_iter().unzip();
    datapath.policies[1].blocked = 9;
    keymgr.held = vec!["192.0.2.9/32".parse().unwrap()];
    keymgr.charon_refused = [("192.0.2.8".to_owned(), "AES_CBC is not served".to_owned())].into();
    keymgr.charon = Some(CharonStatus {
        program: "strongSwan 5.9.8".to_owned(),
        connected: false,
        sas: 2,
        policies: 2,
    });
    let report = Report::new(Ok(datapath), Ok(keymgr));
    let text = report.problems.join("\n");
    for wanted in [
        "192.0.2.1 to 192.0.2.3 is blocked: strongSwan has negotiated no outbound SA for it (9 packets dropped)",
        "Geneve from 192.0.2.4 to 192.0.2.1 is blocked: no policy is for it",
        "Geneve from 192.0.2.5 to 192.0.2.1 is blocked",
        "Geneve from 192.0.2.1 to 192.0.2.5 is blocked",
        "culvert release 192.0.2.9",
        "AES_CBC is not served",
        "is not connected",
    ] {
        assert!(text.contains(wanted), "{wanted}:\n{text}");
    }
    assert_eq!(report.problems.len(), 7, "{text}");
    assert!(view::text(&report, false).contains("waits for a packet"));
}
