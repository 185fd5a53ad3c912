use super::*;
use crate::records::*;
use std::net::SocketAddr;

fn hello(version: u16) -> Hello {
    Hello {
        version,
        program: "test".to_owned(),
        instance: 7,
    }
}

fn pair() -> [Connection; 2] {
    let (a, b) = UnixStream::pair().unwrap();
    [a, b].map(|stream| Connection::new(stream).unwrap())
}

fn sa() -> Sa {
    let end: SocketAddr = "192.0.2.1:4500".parse().unwrap();
    Sa {
        name: SaName {
            spi: 0xc000_0001,
            destination: "2001:db8::2".parse().unwrap(),
        },
        protocol: 50,
        inbound: true,
        source: end,
        destination_port: 4500,
        reqid: 3,
        mode: 1,
        encryption: 20,
        key: Secret::new(vec![0x5a; 36]),
        integrity: 0,
        integrity_key: Secret::new(vec![0xa5; 32]),
        esn: true,
        replay_window: 32,
        tfc: 0,
        encapsulated: false,
        ipcomp: 0,
        lifetimes: Lifetimes {
            soft_seconds: 1,
            ..Lifetimes::default()
        },
        restriction: Some("mark 0x1/0x1".to_owned()),
    }
}

fn policy() -> Policy {
    let end = |port| TrafficSelector {
        protocol: 17,
        network: "192.0.2.1".parse().unwrap(),
        prefix: 32,
        first_port: port,
        last_port: if port == 0 { u16::MAX } else { port },
    };
    Policy {
        name: PolicyName {
            direction: Direction::Out,
            source: end(0),
            destination: end(6081),
        },
        kind: Kind::Protect,
        priority: Priority::Routed,
        manual_priority: 0,
        source: "192.0.2.1".parse().unwrap(),
        destination: "192.0.2.2".parse().unwrap(),
        mode: 1,
        reqid: 3,
        spi: 0,
        restriction: None,
    }
}

fn requests() -> Vec<Request> {
    let name = sa().name;
    let end: SocketAddr = "[2001:db8::1]:4500".parse().unwrap();
    vec![
        Request::Session(vec![policy(), policy()]),
        Request::AllocateSpi(end.ip()),
        Request::AddSa(Box::new(sa())),
        Request::UpdateSa(SaUpdate {
            name: name.clone(),
            source: end,
            destination: end,
            encapsulated: true,
            reqid: 0,
        }),
        Request::QuerySa(name.clone()),
        Request::DeleteSa(name),
        Request::FlushSas,
        Request::AddPolicy(Box::new(policy())),
        Request::DeletePolicy(Box::new(policy())),
        Request::QueryPolicy(policy().name),
        Request::FlushPolicies,
        Request::Unserved("why".to_owned()),
        Request::Ending,
    ]
}

#[test]
fn what_is_sent_arrives() {
    let [mut a, mut b] = pair();
    for request in requests() {
        a.send(&request).unwrap();
        assert_eq!(b.receive::<Request>().unwrap(), request);
    }
}

#[test]
fn what_is_cut_or_bent_is_garbage_and_no_panic() {
    for request in requests() {
        let mut bytes = Vec::new();
        request.write(&mut bytes);
        assert_eq!(decode::<Request>(&bytes), Some(request));
        for length in 0..bytes.len() {
            assert_eq!(decode::<Request>(&bytes[..length]), None);
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bent = bytes.clone();
                bent[at] ^= 1 << bit;
                let _ = decode::<Request>(&bent);
            }
        }
        bytes.push(0);
        assert_eq!(decode::<Request>(&bytes), None);
    }
}

#[test]
fn a_message_that_is_too_long_is_refused_at_its_length() {
    let (mut a, b) = UnixStream::pair().unwrap();
    a.write_all(&(MAX_MESSAGE + 1).to_le_bytes()).unwrap();
    let error = Connection::new(b)
        .unwrap()
        .receive::<Request>()
        .unwrap_err();
    assert!(matches!(error, Error::TooLong(_)), "{error}");
}

#[test]
fn versions_must_be_the_same() {
    let [mut a, mut b] = pair();
    let asked = std::thread::spawn(move || a.greet(&hello(VERSION)).map(drop));
    let error = b.greeted(&hello(VERSION + 1)).map(drop);
    assert!(error.is_ok());
    let error = asked.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("same release"), "{error}");
}

#[test]
fn keys_are_not_shown() {
    let text = format!("{:?}", Request::AddSa(Box::new(sa())));
    assert!(text.contains("Secret(…)") && !text.contains("90"), "{text}");
}

#[test]
fn names_read_as_strongswan_writes_them() {
    assert_eq!(
        policy().name.to_string(),
        "policy 192.0.2.1/32[udp] === 192.0.2.1/32[udp/6081] out"
    );
    assert_eq!(sa().name.to_string(), "SA 0xc0000001 to 2001:db8::2");
}
