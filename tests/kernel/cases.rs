//! What is held against the kernel: every cipher that both know, with and without ESN, in UDP and not, over IPv4
//! and IPv6.

use std::fmt;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use culvert_proto::sa::Cipher;
use culvert_tests::keys::Generation;
use culvert_tests::lab::{Lab, Plan};
use culvert_tests::load::{connections_end, iperf_both_ways, ping_between};
use culvert_tests::wire::take_counts;

use crate::xfrm::{Algorithm, Xfrm};
use crate::{Plain, Test};

/// Culvert's name, the kernel's, and the bits of the ICV. What Culvert does not know has no cases.
pub(crate) const CIPHERS: &[(&str, &str, u32)] = &[
    ("aes128gcm8", "rfc4106(gcm(aes))", 64),
    ("aes192gcm8", "rfc4106(gcm(aes))", 64),
    ("aes256gcm8", "rfc4106(gcm(aes))", 64),
    ("aes128gcm12", "rfc4106(gcm(aes))", 96),
    ("aes192gcm12", "rfc4106(gcm(aes))", 96),
    ("aes256gcm12", "rfc4106(gcm(aes))", 96),
    ("aes128gcm16", "rfc4106(gcm(aes))", 128),
    ("aes192gcm16", "rfc4106(gcm(aes))", 128),
    ("aes256gcm16", "rfc4106(gcm(aes))", 128),
    ("aes128gmac", "rfc4543(gcm(aes))", 128),
    ("aes192gmac", "rfc4543(gcm(aes))", 128),
    ("aes256gmac", "rfc4543(gcm(aes))", 128),
    ("chacha20poly1305", "rfc7539esp(chacha20,poly1305)", 128),
];

#[derive(Clone, Copy)]
struct Case {
    cipher: Cipher,
    algorithm: Algorithm,
    esn: bool,
    encapsulated: bool,
    ipv6: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.ipv6 { "ipv6" } else { "ipv4" })?;
        write!(f, "_{}", self.cipher)?;
        f.write_str(if self.esn { "_esn" } else { "" })?;
        f.write_str(if self.encapsulated { "_in_udp" } else { "" })
    }
}

impl Case {
    /// Whether it is one that takes its time without telling much: of ciphers that are seldom met, two of the eight
    /// combinations are enough every time.
    fn is_rare(&self) -> bool {
        let alike = self.esn == self.encapsulated && self.encapsulated == self.ipv6;
        !Cipher::COMMON.contains(&self.cipher) && !alike
    }
}

/// Every test, and whether it is run only if all are wanted.
pub(crate) fn all() -> Vec<(String, bool, Test)> {
    let mut tests: Vec<(String, bool, Test)> = Vec::new();
    for ipv6 in [false, true] {
        for &(name, kernel, icv_bits) in CIPHERS {
            let Ok(cipher) = Cipher::from_name(name) else {
                continue;
            };
            for (esn, encapsulated) in [(false, false), (true, false), (false, true), (true, true)]
            {
                let case = Case {
                    cipher,
                    algorithm: Algorithm {
                        name: kernel,
                        icv_bits,
                    },
                    esn,
                    encapsulated,
                    ipv6,
                };
                let test = Box::new(move || agree(case));
                tests.push((case.to_string(), case.is_rare(), test));
            }
        }
    }
    let others: [(&str, Plain); 7] = [
        (
            "every_cipher_has_its_cases",
            crate::every_cipher_has_its_cases,
        ),
        (
            "with_other_keys_nothing_passes",
            with_other_keys_nothing_passes,
        ),
        (
            "an_spi_of_the_kernel_is_seen",
            crate::xfrm::an_spi_of_the_kernel_is_seen,
        ),
        (
            "the_kernel_takes_every_algorithm",
            crate::handover::the_kernel_takes_every_algorithm,
        ),
        (
            "an_outbound_sa_is_taken_exactly",
            crate::handover::an_outbound_sa_is_taken_exactly,
        ),
        (
            "a_window_survives_the_kernel",
            crate::handover::a_window_survives_the_kernel,
        ),
        ("the_kernel_is_heard", crate::handover::the_kernel_is_heard),
    ];
    for (name, test) in others {
        tests.push((name.to_owned(), false, Box::new(test)));
    }
    tests.extend(crate::fallback::all());
    tests.push((
        "fault_campaign_with_the_kernel_behind".to_owned(),
        false,
        Box::new(|| {
            end();
            crate::campaign::against_the_kernel()
        }),
    ));
    for mtu in [1400, 1500, 3000] {
        tests.push((
            format!("tcp_learns_the_path_mtu_of_{mtu}"),
            false,
            Box::new(move || tcp_learns_the_path_mtu(mtu)),
        ));
    }
    tests
}

/// Culvert on a and the kernel on b. Building it takes longer than a case, so cases hand it on.
struct Pair {
    ipv6: bool,
    lab: Lab,
    xfrm: Xfrm,
    /// Generations of keys so far.
    generations: u32,
    /// Packets that Culvert was too slow for, so far.
    overload: u64,
}

static PAIR: Mutex<Option<Pair>> = Mutex::new(None);

/// Takes away what the last case has left.
pub(crate) fn end() {
    drop(take());
}

fn take() -> Option<Pair> {
    match PAIR.lock() {
        Ok(mut pair) => pair.take(),
        Err(poisoned) => poisoned.into_inner().take(),
    }
}

impl Pair {
    fn new(plan: Plan) -> Result<Self> {
        let lab = Lab::new(plan)?;
        ensure!(lab.endpoint == "kernel", "the kernel has no Geneve");
        let xfrm = Xfrm::new(&lab)?;
        Ok(Self {
            ipv6: plan.ipv6,
            lab,
            xfrm,
            generations: 0,
            overload: 0,
        })
    }

    fn fresh_keys(&mut self, cipher: Cipher) -> Result<Generation> {
        let number = self.generations;
        self.generations += 1;
        Generation::new(cipher, [0x1100 + number, 0x2100 + number])
    }

    /// Gives Culvert its keys, the first ones by starting it.
    fn protect(&mut self, keys: &Generation) -> Result<()> {
        if self.generations > 1 {
            return self.lab.rekey(0, &[keys], 0);
        }
        self.lab.start_side(0, keys)?;
        self.lab.wait_for_protection(0)
    }
}

/// One case: traffic in both directions, and nobody has anything to complain about.
fn agree(case: Case) -> Result<()> {
    // One in which something went wrong is not used again.
    let mut pair = match take().filter(|pair| pair.ipv6 == case.ipv6) {
        Some(pair) => pair,
        None => Pair::new(Plan {
            ipv6: case.ipv6,
            ..Plan::default()
        })?,
    };
    let keys = Generation {
        esn: case.esn,
        encapsulated: case.encapsulated,
        ..pair.fresh_keys(case.cipher)?
    };
    pair.xfrm.install(&keys, case.algorithm, 0)?;
    pair.protect(&keys)?;
    take_counts(&pair.lab.underlay)?;
    (if case.esn {
        approach_the_end(&pair, &keys, case.algorithm)
    } else {
        Ok(())
    })
    .and_then(|()| traffic(&pair.lab))
    .and_then(|()| no_complaints(&mut pair, &keys))
    .with_context(|| pair.what_was_counted())?;
    match PAIR.lock() {
        Ok(mut place) => *place = Some(pair),
        Err(poisoned) => *poisoned.into_inner() = Some(pair),
    }
    Ok(())
}

/// Seconds in which the reply to a ping must come, where CPUs are emulated and others use the real ones.
const PATIENCE: u32 = 10;

/// Drops by Culvert that say that it was too slow, and not that anything is wrong.
const OVERLOAD: [&str; 2] = ["rx_overflow", "tx_ring_full"];

fn traffic(lab: &Lab) -> Result<()> {
    let [a, b] = &lab.sides;
    for (name, from, to) in [("a to b", a, b), ("b to a", b, a)] {
        let ping = ping_between(from, to, 1, PATIENCE)?;
        ensure!(ping.received == 1, "ping from {name}: {ping:?}");
    }
    for (name, throughput) in ["a to b", "b to a"].iter().zip(iperf_both_ways(lab, 1)?) {
        ensure!(
            throughput.gbit_per_s > 0.0,
            "iperf3 from {name}: {throughput:?}"
        );
    }
    // The last packets of a connection would come in the middle of what follows.
    connections_end(lab)
}

/// Lets the kernel's numbers go on shortly below 2^32, so that they cross it in the traffic that follows. In two
/// steps, as a receiver takes what is ahead by more for something old (RFC 4303 appendix A2.2).
fn approach_the_end(pair: &Pair, keys: &Generation, algorithm: Algorithm) -> Result<()> {
    pair.xfrm.install(keys, algorithm, 1 << 31)?;
    let [a, b] = &pair.lab.sides;
    let ping = ping_between(b, a, 1, PATIENCE)?;
    ensure!(ping.received == 1, "ping at 2^31: {ping:?}");
    pair.xfrm.install(keys, algorithm, u32::MAX - 7)
}

fn no_complaints(pair: &mut Pair, keys: &Generation) -> Result<()> {
    let counts = take_counts(&pair.lab.underlay)?;
    let in_udp = if keys.encapsulated {
        counts.esp.packets
    } else {
        0
    };
    ensure!(
        counts.esp.packets > 0
            && counts.esp_in_udp.packets == in_udp
            && counts.plaintext_geneve.packets == 0
            && counts.other.packets == 0,
        "on the wire: {counts:?}"
    );
    let status = pair.lab.sides[0].datapath_status()?;
    let drops: Vec<_> = status
        .drops
        .iter()
        .filter(|(reason, count)| **count > 0 && !OVERLOAD.contains(&reason.as_str()))
        .collect();
    ensure!(drops.is_empty(), "Culvert dropped: {drops:?}");
    let errors = pair.xfrm.errors()?;
    ensure!(errors.is_empty(), "xfrm_stat: {errors:?}");
    let mut packets = 0;
    let by_kernel = pair.xfrm.packets(keys.spis)?;
    for (spi, kernel) in keys.spis.into_iter().zip(by_kernel) {
        let sa = status.sas.iter().find(|sa| sa.spi.get() == spi);
        let sa = sa.with_context(|| format!("Culvert has no SA {spi:#x}"))?;
        packets += sa.packets;
        ensure!(
            sa.packets > 0 && kernel > 0,
            "SA {spi:#x}: {} packets by Culvert, {kernel} by the kernel",
            sa.packets
        );
        if keys.esn && spi == keys.spis[1] {
            ensure!(
                sa.sequence > u64::from(u32::MAX),
                "SA {spi:#x} got only to {:#x}",
                sa.sequence
            );
        }
    }
    let overload = OVERLOAD.map(|reason| status.drops[reason]).iter().sum();
    ensure!(
        packets.abs_diff(counts.esp.packets) <= overload - pair.overload,
        "{packets} sealed and opened, on the wire: {counts:?}"
    );
    pair.overload = overload;
    Ok(())
}

impl Pair {
    /// For what went wrong: everything that might say why.
    fn what_was_counted(&self) -> String {
        let drops = self.lab.sides[0].datapath_status().map(|status| {
            let drops = status.drops.into_iter();
            drops.filter(|(_, count)| *count > 0).collect::<Vec<_>>()
        });
        format!(
            "counted by Culvert: {drops:?}, by the kernel: {:?}, on the wire: {:?}",
            self.xfrm.errors(),
            take_counts(&self.lab.underlay)
        )
    }
}

/// The judges above can find something wrong: one key differs from the other side's, in each direction.
fn with_other_keys_nothing_passes() -> Result<()> {
    let mut pair = match take() {
        Some(pair) => pair,
        None => Pair::new(Plan::default())?,
    };
    let cipher = Cipher::Aes256Gcm16;
    let keys = pair.fresh_keys(cipher)?;
    let algorithm = Algorithm {
        name: "rfc4106(gcm(aes))",
        icv_bits: 128,
    };
    pair.protect(&keys)?;
    let others = Generation::new(cipher, keys.spis)?;
    pair.xfrm.install(&others, algorithm, 0)?;
    take_counts(&pair.lab.underlay)?;
    let [a, b] = &pair.lab.sides;
    for (from, to) in [(a, b), (b, a)] {
        let ping = ping_between(from, to, 5, 1)?;
        ensure!(ping.received == 0, "{ping:?}");
    }
    let counts = take_counts(&pair.lab.underlay)?;
    ensure!(
        counts.esp.packets == 10 && counts.plaintext_geneve.packets == 0,
        "{counts:?}"
    );
    let errors = pair.xfrm.errors()?;
    ensure!(
        errors == [("XfrmInStateProtoError".to_owned(), 5)],
        "{errors:?}"
    );
    let drops = pair.lab.sides[0].datapath_status()?.drops;
    ensure!(drops["authentication_failed"] == 5, "{drops:?}");
    Ok(())
}

/// Geneve that fits the wire only in clear, and may not be fragmented: a's Geneve device hears from Culvert, b's from
/// the kernel's IPsec, what is left, and TCP over it goes on with smaller segments.
fn tcp_learns_the_path_mtu(mtu: u32) -> Result<()> {
    end();
    let mut pair = Pair::new(Plan {
        mtu,
        // IPv4, UDP, Geneve and the inner Ethernet header.
        inner_mtu: mtu - 20 - 8 - 8 - 14,
        ..Plan::default()
    })?;
    let keys = pair.fresh_keys(Cipher::Aes256Gcm16)?;
    let algorithm = Algorithm {
        name: "rfc4106(gcm(aes))",
        icv_bits: 128,
    };
    pair.xfrm.install(&keys, algorithm, 0)?;
    pair.protect(&keys)?;
    take_counts(&pair.lab.underlay)?;
    let throughput = iperf_both_ways(&pair.lab, 5).with_context(|| pair.what_was_counted())?;
    for (name, throughput) in ["a to b", "b to a"].iter().zip(throughput) {
        ensure!(
            throughput.gbit_per_s > 0.0,
            "iperf3 from {name}: {throughput:?}"
        );
    }
    let counts = take_counts(&pair.lab.underlay)?;
    ensure!(
        counts.esp.packets > 100 && counts.plaintext_geneve.packets == 0,
        "{counts:?}"
    );
    let drops = pair.lab.sides[0].datapath_status()?.drops;
    ensure!(
        drops["too_large"] > 0 && drops["too_large"] < counts.esp.packets,
        "told once in a while: {drops:?}"
    );
    Ok(())
}
