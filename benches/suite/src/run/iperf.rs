//! The matrix: who protects × cipher × load. The sides alternate: each round has all of them, one after the other, so that
//! what the machine does meanwhile hits them alike.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use culvert_proto::sa::Cipher;
use culvert_tests::keys::random_hex;
use culvert_tests::netns::run;
use culvert_tests::record::{OnWire, Place, Round};

use super::stage::{OVERHEAD, Remote, Stage};
use super::{Event, Served, Stop};
use crate::agent::load::Load;
use crate::agent::{Hello, Request, Setup, Usage};
use crate::way::Way;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where.
    pub place: Place,
    /// The other machine.
    pub remote: Option<Remote>,
    /// Who protects.
    pub ways: Vec<Way>,
    /// Ciphers.
    pub ciphers: Vec<String>,
    /// Loads, by name.
    pub loads: Vec<String>,
    /// How often.
    pub rounds: u32,
    /// Seconds of each TCP run.
    pub seconds: u32,
}

/// The loads, by name.
pub const LOADS: [&str; 7] = [
    "tcp-85k",
    "tcp",
    "tcp-4",
    "tcp-tenth",
    "udp-64",
    "udp-512",
    "udp-1400",
];

/// Rate of `tcp-tenth`, in bits a second: a tenth of what one stream makes through an `AF_XDP` socket of a veth.
const TENTH: u64 = 150_000_000;
/// Microseconds between probes.
const PROBE: u32 = 1_000;

pub(super) fn load(name: &str) -> Result<Load> {
    let tcp = |streams, talk_window, rate| Load::Tcp {
        streams,
        talk_window,
        rate,
    };
    Ok(match name {
        "tcp-85k" => tcp(1, true, None),
        "tcp" => tcp(1, false, None),
        "tcp-4" => tcp(4, false, None),
        "tcp-tenth" => tcp(1, false, Some(TENTH)),
        udp => Load::Udp {
            bytes: udp
                .strip_prefix("udp-")
                .and_then(|bytes| bytes.parse().ok())
                .with_context(|| format!("there is no load {udp}"))?,
        },
    })
}

/// Measures, and tells what it does and sees.
///
/// # Errors
/// It cannot begin, or is interrupted. What fails later is told, and the next thing done.
pub fn measure(options: &Options, stop: &Stop, tell: &mut dyn FnMut(Event)) -> Result<()> {
    let hello = Stage::new(options.remote.as_ref(), 1, false)?.hello()?;
    let outer = Stage::outer(&hello)?;
    let mtu = hello[0].wire.mtu.min(hello[1].wire.mtu);
    let mut left_out: Vec<String> = Vec::new();
    let mut cells = Vec::new();
    for &way in &options.ways {
        match lacking(&hello, way) {
            Some(why) => left_out.push(format!("{}: {why}", way.name())),
            None => cells.extend(
                way.ciphers(&options.ciphers)
                    .into_iter()
                    .map(|cipher| (way, cipher)),
            ),
        }
    }
    let mut wire = hello[0].wire.clone();
    wire.inner_mtu = mtu - OVERHEAD;
    wire.bridge = false;
    tell(Event::Begin {
        place: options.place,
        hosts: hello.into_iter().map(|hello| hello.host).collect(),
        wire,
        steps: cells.len() * options.loads.len() * options.rounds as usize,
        left_out,
    });
    let mut proven = BTreeSet::new();
    for round in 1..=options.rounds {
        for &(way, cipher) in &cells {
            let setup = Setup {
                number: 0,
                wire: String::new(),
                outer,
                inner_mtu: mtu - OVERHEAD,
                way,
                cipher: cipher.map(str::to_owned),
                secrets: secrets(way, cipher, 1)?,
                sas: 0,
                cores: vec![0],
                bare: false,
            };
            let mut stage = None;
            for name in &options.loads {
                stop.check()?;
                let what = format!("round {round}: {}{}, {name}", way.name(), of(cipher));
                tell(Event::Step(what));
                let mut step = || -> Result<_> {
                    if options.remote.is_none() && !proven.contains(&(way, cipher)) {
                        prove(options, &setup)?;
                        proven.insert((way, cipher));
                    }
                    // What one load has broken must not hurt the next.
                    let stage = match &mut stage {
                        Some(stage) => stage,
                        none => none.insert(start(options, &setup, false)?),
                    };
                    one(stage, way, load(name)?, options)
                };
                match step() {
                    Ok((round, served)) => tell(Event::Round {
                        side: way.name().to_owned(),
                        cipher: cipher.map(str::to_owned),
                        load: name.clone(),
                        round: Box::new(round),
                        served,
                    }),
                    Err(error) => {
                        stop.check()?;
                        tell(Event::Failed(format!("{error:#}")));
                        stage = None;
                    }
                }
            }
        }
    }
    Ok(())
}

pub(super) fn of(cipher: Option<&str>) -> String {
    cipher.map_or_else(String::new, |cipher| format!(" {cipher}"))
}

/// What one of the machines lacks for a way.
fn lacking(hello: &[Hello; 2], way: Way) -> Option<String> {
    let mut lacks = hello.iter().flat_map(|hello| &hello.lacks);
    lacks
        .find(|(lacking, _)| *lacking == way)
        .map(|(_, why)| why.clone())
}

fn start(options: &Options, setup: &Setup, watched: bool) -> Result<Stage> {
    let mut stage = Stage::new(options.remote.as_ref(), 1, watched)?;
    stage.set_up(setup)?;
    let address = Setup::inner(1);
    stage.done(1, &Request::Serve { address })?;
    // The first packets may have to start something; they are not what is measured.
    stage.load(
        Load::Tcp {
            streams: 1,
            talk_window: false,
            rate: Some(1_000_000),
        },
        1,
        0,
    )?;
    Ok(stage)
}

/// Shows what is on the wire, by a judge of its own: on the wire that is measured there is none, as a bridge that counts takes
/// longer for a packet than that wire does.
fn prove(options: &Options, setup: &Setup) -> Result<()> {
    let way = setup.way;
    let mut stage = start(options, setup, true)?;
    stage.counted()?;
    let load = Load::Tcp {
        streams: 1,
        talk_window: false,
        rate: None,
    };
    stage.load(load, 1, 0)?;
    let wire = stage.counted()?.context("nobody has counted")?;
    let clear = wire.geneve;
    ensure!(
        !way.protects() || clear == 0,
        "{clear} packets of Geneve were in clear"
    );
    ensure!(!way.is_esp() || wire.esp > 0, "no ESP was on the wire");
    Ok(())
}

/// One load, once.
fn one(
    stage: &mut Stage,
    way: Way,
    load: Load,
    options: &Options,
) -> Result<(Round, Option<Served>)> {
    let before = [stage.usage(0)?, stage.usage(1)?];
    let start = Instant::now();
    let probe = if matches!(load, Load::Tcp { .. }) {
        PROBE
    } else {
        0
    };
    let (done, latency) = stage.load(load, options.seconds, probe)?;
    let elapsed = start.elapsed().as_secs_f64();
    let after = [stage.usage(0)?, stage.usage(1)?];
    let wire = from_counters(way, &before, &after)?;
    let mut cores = cores(&before, &after, elapsed, stage.one_machine());
    cores.insert("iperf3 a".to_owned(), done.client);
    cores.insert("iperf3 b".to_owned(), done.server);
    let bytes = done.gbit_per_s * 1e9 / 8.0 * done.seconds;
    let round = Round {
        gbit_per_s: done.gbit_per_s,
        mpps: done.mpps,
        retransmits: done.retransmits,
        lost_percent: done.lost_percent,
        latency,
        wire,
        superpackets: None,
        // In the guest, a nanosecond is an instruction. UDP is tried at several rates, so there is no such number.
        instructions_per_byte: (options.place == Place::Guest && probe > 0)
            .then(|| (after[0].busy - before[0].busy) * 1e9 / bytes),
        cores,
    };
    let served = way.is_culvert().then(|| Served {
        xdp: after[0].xdp.clone(),
        af_xdp: after[0].af_xdp.clone(),
        aead: after[0].aead.clone(),
    });
    Ok((round, served))
}

/// What the sides themselves say they have sealed, if they count that.
fn from_counters(way: Way, before: &[Usage; 2], after: &[Usage; 2]) -> Result<OnWire> {
    let sealed = |usage: &[Usage; 2]| usage.iter().map(|one| one.sealed).sum::<Option<u64>>();
    let Some((after, before)) = sealed(after).zip(sealed(before)).filter(|_| way.is_esp()) else {
        return Ok(OnWire::default());
    };
    ensure!(after > before, "nothing was sealed");
    Ok(OnWire {
        esp: after - before,
        ..OnWire::default()
    })
}

/// Cores that each party kept busy.
fn cores(
    before: &[Usage; 2],
    after: &[Usage; 2],
    elapsed: f64,
    one_machine: bool,
) -> BTreeMap<String, f64> {
    let mut cores = BTreeMap::new();
    for (side, (before, after)) in ["a", "b"].into_iter().zip(before.iter().zip(after)) {
        for (party, seconds) in &after.seconds {
            let earlier = before.seconds.get(party).copied().unwrap_or_default();
            cores.insert(format!("{party} {side}"), (seconds - earlier) / elapsed);
        }
        let busy = (after.busy - before.busy) / elapsed;
        if one_machine {
            cores.insert("machine".to_owned(), busy);
        } else {
            *cores.entry("machine".to_owned()).or_default() += busy;
            cores.insert(format!("machine {side}"), busy);
        }
    }
    cores
}

/// Fresh secrets for `sas` SAs.
pub(super) fn secrets(way: Way, cipher: Option<&str>, sas: u32) -> Result<Vec<String>> {
    match way {
        Way::Plain | Way::Null | Way::NullTap => Ok(Vec::new()),
        Way::Culvert | Way::CulvertTap | Way::CulvertBusy | Way::KernelXfrm => {
            let cipher = Cipher::from_name(cipher.context("no cipher")?)?;
            (0..2 * sas)
                .map(|_| random_hex(cipher.keymat_length()))
                .collect()
        }
        Way::StrongswanLibipsec => Ok(vec![random_hex(16)?]),
        Way::WireguardGo | Way::Boringtun => {
            let private = [
                run(Command::new("wg").arg("genkey"))?,
                run(Command::new("wg").arg("genkey"))?,
            ];
            let public = [public_key(&private[0])?, public_key(&private[1])?];
            Ok([private, public]
                .concat()
                .iter()
                .map(|key| key.trim().to_owned())
                .collect())
        }
    }
}

/// WireGuard's public key to a private one.
fn public_key(private: &str) -> Result<String> {
    let mut wg = Command::new("wg")
        .arg("pubkey")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // Not an argument, which everybody sees.
    wg.stdin
        .take()
        .context("no input")?
        .write_all(private.as_bytes())?;
    let output = wg.wait_with_output()?;
    ensure!(output.status.success(), "wg pubkey: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}
