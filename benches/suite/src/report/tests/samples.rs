//! Records of every kind, made up, with everything that can be in them.

use std::collections::BTreeMap;
use std::path::Path;

use culvert_tests::record::{
    Clocks, Fault, Faults, Host, Iperf, Latency, Loop, Micro, OnWire, Place, Point, Record,
    Results, Round, SCHEMA, Scale, Series, Superpackets, Time, Traffic, Wire,
};

/// Sides with how fast they are, in Gbit/s over TCP, and whether they have a cipher.
const SIDES: [(&str, f64, bool); 6] = [
    ("plain", 17.0, false),
    ("null", 2.4, false),
    ("culvert", 1.9, true),
    ("kernel-xfrm", 1.6, true),
    ("strongswan-libipsec", 0.4, true),
    ("wireguard-go", 0.7, true),
];
const LOADS: [(&str, f64, Option<f64>); 7] = [
    ("tcp-85k", 0.8, None),
    ("tcp", 1.0, None),
    ("tcp-4", 1.1, None),
    ("tcp-tenth", 0.1, None),
    ("udp-64", 0.04, Some(64.0)),
    ("udp-512", 0.3, Some(512.0)),
    ("udp-1400", 0.8, Some(1400.0)),
];
const CIPHERS: [(&str, f64); 3] = [
    ("aes256gcm16", 1.0),
    ("aes128gcm16", 1.03),
    ("chacha20poly1305", 0.8),
];

/// Writes all of them, as they are written for good.
pub(super) fn write(folder: &Path) {
    for record in [iperf(), guest(), micro(), looped(), scale(), faults()] {
        keep(folder, &record);
    }
    let mut older = iperf();
    older.date = "2026-11-20".to_owned();
    older.complete = false;
    keep(folder, &older);
    let mut faults = faults();
    faults.host = emulated();
    keep(folder, &faults);
    std::fs::write(folder.join("instructions.json"), INSTRUCTIONS).unwrap();
}

pub(super) fn keep(folder: &Path, record: &Record) {
    let text = serde_json::to_string_pretty(record).unwrap();
    std::fs::write(folder.join(record.file_name()), text + "\n").unwrap();
}

const INSTRUCTIONS: &str = r#"{
  "command": "cargo run --release -p culvert-benches --bin culvert-instructions -- --record",
  "rustc": "rustc 1.95.0", "valgrind": "valgrind-3.19.0", "libc": "glibc 2.36", "cipher": "aes256gcm16", "backend": "aws-lc-rs",
  "packets": [
    {"what": "seal", "payload": 64, "instructions": 512.5, "outside_the_cipher": 121.2},
    {"what": "seal", "payload": 1400, "instructions": 3012.5, "outside_the_cipher": 129.9},
    {"what": "open", "payload": 64, "instructions": 560.0, "outside_the_cipher": 161.0},
    {"what": "open", "payload": 1400, "instructions": 3112.5, "outside_the_cipher": 169.9},
    {"what": "pipeline out", "payload": 64, "instructions": 812.5, "outside_the_cipher": 421.2},
    {"what": "pipeline in", "payload": 64, "instructions": 912.5, "outside_the_cipher": 521.2}
  ]
}
"#;

fn record(host: Host, command: &str, results: Results) -> Record {
    Record {
        schema: SCHEMA,
        date: "2026-11-28".to_owned(),
        commit: "0123abc".to_owned(),
        complete: true,
        host,
        commands: vec![command.to_owned()],
        note: Some("Made up.".to_owned()),
        results,
    }
}

fn machine() -> Host {
    Host {
        class: "amd-epyc-2".to_owned(),
        cpu: "AMD EPYC".to_owned(),
        features: ["aes", "vaes", "avx2", "avx512f"].map(str::to_owned).into(),
        cores: 2,
        tsc_ghz: Some(2.596),
        kernel: "Linux 6.18.44".to_owned(),
        rustc: "rustc 1.95.0 (59807616e 2026-04-14)".to_owned(),
    }
}

fn emulated() -> Host {
    Host {
        class: "guest".to_owned(),
        cpu: "QEMU TCG CPU version 2.5+".to_owned(),
        kernel: "Linux 6.12.117+deb12-cloud-amd64".to_owned(),
        tsc_ghz: None,
        ..machine()
    }
}

pub(super) fn iperf() -> Record {
    let results = Results::Iperf(measured(Place::Namespaces));
    record(machine(), "culvert-bench run --part iperf", results)
}

pub(super) fn guest() -> Record {
    let results = Results::Iperf(measured(Place::Guest));
    record(
        emulated(),
        "tests/guest/run culvert-bench run --part iperf",
        results,
    )
}

fn measured(place: Place) -> Iperf {
    let mut series = Vec::new();
    for (side, rate, ciphered) in SIDES {
        let ciphers = if ciphered { &CIPHERS[..] } else { &[("", 1.0)] };
        for (cipher, by_cipher) in ciphers {
            for (load, by_load, bytes) in LOADS {
                series.push(Series {
                    side: side.to_owned(),
                    cipher: ciphered.then(|| (*cipher).to_owned()),
                    load: load.to_owned(),
                    rounds: (0..5)
                        .map(|number| round(side, rate * by_cipher * by_load, bytes, place, number))
                        .collect(),
                });
            }
        }
    }
    Iperf {
        place,
        peer: None,
        wire: Wire {
            driver: "veth".to_owned(),
            speed: Some(10_000),
            xdp: "native".to_owned(),
            af_xdp: "copy".to_owned(),
            mtu: 1500,
            inner_mtu: 1400,
            geneve: "kernel".to_owned(),
            bridge: true,
        },
        seconds: 10,
        aead: BTreeMap::new(),
        left_out: vec!["boringtun: there is no boringtun".to_owned()],
        series,
    }
}

fn round(side: &str, rate: f64, bytes: Option<f64>, place: Place, number: u8) -> Round {
    let wobble = 1.0 + 0.04 * f64::from(number * 3 % 5) - 0.08;
    let sealed = !["plain", "null"].contains(&side);
    let cores = [
        ("worker a", 0.7),
        ("worker b", 0.6),
        ("iperf3 a", 0.2),
        ("iperf3 b", 0.3),
        ("machine", 1.95),
    ];
    Round {
        gbit_per_s: rate * wobble,
        mpps: bytes.map(|bytes| rate * wobble * 1000.0 / (8.0 * bytes)),
        retransmits: bytes.is_none().then_some(12),
        lost_percent: bytes.map(|_| 0.05),
        cores: cores
            .map(|(party, busy)| (party.to_owned(), busy * wobble))
            .into(),
        latency: Some(Latency {
            sent: 1000,
            received: 999,
            p50: 180.0 / rate * wobble,
            p99: 900.0 / rate,
            p999: 4000.0 / rate * wobble,
        }),
        wire: OnWire {
            esp: if sealed { 100_000 } else { 0 },
            geneve: if sealed { 0 } else { 100_000 },
            other: 0,
        },
        superpackets: None,
        instructions_per_byte: (place == Place::Guest).then_some(60.0 / rate * wobble),
    }
}

pub(super) fn micro() -> Record {
    let mut clocks = Vec::new();
    for (backend, slower) in [("aws-lc-rs", 1.0), ("a-backend-of-long-name", 2.1)] {
        for (cipher, of_cipher) in [("aes256gcm16", 1.0), ("chacha20poly1305", 2.3)] {
            for (what, more) in [
                ("pipeline/out", 60.0),
                ("pipeline/in", 75.0),
                ("seal", 0.0),
                ("open", 0.0),
            ] {
                for bytes in [64, 512, 1400] {
                    let bare = (100.0 + 0.2 * f64::from(bytes)) * slower * of_cipher;
                    clocks.push(Clocks {
                        what: what.to_owned(),
                        cipher: cipher.to_owned(),
                        backend: backend.to_owned(),
                        bytes,
                        batch: 64,
                        best: bare + more,
                        median: (bare + more) * 1.06,
                        bare: Some(bare),
                    });
                }
            }
        }
    }
    let time = |(id, ns): (&str, f64)| Time {
        id: id.to_owned(),
        ns: vec![ns, ns * 1.01, ns * 0.99],
    };
    let times = [
        ("seal/aes256gcm16/aws-lc-rs/bare/1400", 185.0),
        ("seal/aes256gcm16/aws-lc-rs/esp/1400", 207.0),
        ("replay/check/1024", 3.46),
    ];
    let results = Micro {
        times: times.map(time).into(),
        clocks,
    };
    record(
        machine(),
        "culvert-bench run --part micro",
        Results::Micro(results),
    )
}

pub(super) fn looped() -> Record {
    let round = |gbit_per_s: f64| Round {
        gbit_per_s,
        cores: BTreeMap::from([("workers".to_owned(), 0.9), ("machine".to_owned(), 1.9)]),
        superpackets: Some(Superpackets {
            cut: 43.0,
            joined: 30.0,
        }),
        ..Round::default()
    };
    let series = |side: &str, cipher: Option<&str>, rate: f64| Series {
        side: side.to_owned(),
        cipher: cipher.map(str::to_owned),
        load: "tcp".to_owned(),
        rounds: vec![round(rate), round(rate * 1.1)],
    };
    let results = Loop {
        seconds: 3,
        threads: 1,
        mtu: 1600,
        inner_mtu: 1500,
        geneve: "fixture".to_owned(),
        aead: BTreeMap::new(),
        series: vec![
            series("null-tap", None, 6.0),
            series("culvert-tap", Some("aes256gcm16"), 4.8),
        ],
    };
    record(machine(), "culvert-bench loop", Results::Loop(results))
}

pub(super) fn scale() -> Record {
    let mut points = Vec::new();
    for workers in [1, 2, 4] {
        for sas in [1, 10, 100, 1000, 10_000] {
            let slower = 1.0 - 0.02 * f64::from(sas).log10();
            points.push(Point {
                sas,
                workers,
                mpps: [0.19, 0.2, 0.21]
                    .map(|mpps| mpps * slower * f64::from(workers).sqrt())
                    .into(),
                gbit_per_s: vec![1.6, 1.7],
                datapath_mib: 40.0 + 0.004 * f64::from(sas) + 16.0 * f64::from(workers),
                keymgr_mib: 9.0 + 0.003 * f64::from(sas),
                filled_in_s: 0.05 + 0.0001 * f64::from(sas),
                idle_percent: 0.7,
            });
        }
    }
    let results = Scale {
        cipher: "aes256gcm16".to_owned(),
        points,
    };
    record(
        machine(),
        "culvert-bench run --part scale",
        Results::Scale(results),
    )
}

pub(super) fn faults() -> Record {
    let event = |(kind, gap_ms): (&str, f64)| Fault {
        kind: kind.to_owned(),
        side: "a".to_owned(),
        length_ms: 300.0,
        gap_ms,
        udp_ms: Some(gap_ms),
        tcp_ms: None,
    };
    let events = [
        ("kill datapath", 553.0),
        ("kill datapath", 652.0),
        ("kill keymgr", 5.0),
    ];
    let results = Faults {
        seed: 7,
        esp_packets: 1_668_973,
        traffic: Some(Traffic {
            sas: 28,
            udp_sent: 1_413_500,
            udp_received: 1_130_871,
            tcp_bytes: 390_027_920,
            tcp_anew: 2,
        }),
        peer: BTreeMap::from([("XfrmInStateSeqError".to_owned(), 0)]),
        events: events.map(event).into(),
    };
    record(
        machine(),
        "cargo test -p culvert-tests --test system -- fault_campaign",
        Results::Faults(results),
    )
}
