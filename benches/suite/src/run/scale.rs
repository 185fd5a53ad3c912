//! More SAs, more workers: what they cost in throughput and memory. Each SA is for a logical network of its own.

use std::time::{Duration, Instant};

use anyhow::Result;
use culvert_tests::record::{Place, Point};

use super::iperf::secrets;
use super::stage::{OVERHEAD, Stage};
use super::{Event, Stop};
use crate::agent::load::Load;
use crate::agent::packets::Flood;
use crate::agent::{Request, Setup};
use crate::way::Way;

/// Numbers of SAs.
pub const SAS: [u32; 5] = [1, 10, 100, 1_000, 10_000];
/// Bytes of the packets' UDP payload.
const BYTES: usize = 64;
/// How long nothing is done, to see what that costs.
const IDLE: Duration = Duration::from_secs(2);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cipher.
    pub cipher: String,
    /// Numbers of SAs.
    pub sas: Vec<u32>,
    /// Numbers of workers.
    pub workers: Vec<u32>,
    /// How often.
    pub rounds: u32,
    /// Seconds of each.
    pub seconds: u32,
}

/// Measures, and tells what it does and sees.
///
/// # Errors
/// It cannot begin, or is interrupted.
pub fn measure(options: &Options, stop: &Stop, tell: &mut dyn FnMut(Event)) -> Result<()> {
    let hello = Stage::new(None, 1, false)?.hello()?;
    let mut kinds: Vec<(u32, u32)> = options.sas.iter().map(|&sas| (sas, 1)).collect();
    kinds.extend(
        options
            .workers
            .iter()
            .filter(|&&workers| workers > 1)
            .map(|&workers| (1, workers)),
    );
    tell(Event::Begin {
        place: Place::Namespaces,
        hosts: vec![hello[0].host.clone()],
        wire: hello[0].wire.clone(),
        steps: kinds.len(),
        left_out: Vec::new(),
    });
    for (sas, workers) in kinds {
        tell(Event::Step(format!("SAs: {sas}, workers: {workers}")));
        match point(options, stop, sas, workers) {
            Ok(point) => tell(Event::Point(Box::new(point))),
            Err(error) => {
                stop.check()?;
                tell(Event::Failed(format!("{error:#}")));
            }
        }
    }
    Ok(())
}

fn point(options: &Options, stop: &Stop, sas: u32, workers: u32) -> Result<Point> {
    let mut point = Point {
        sas,
        workers,
        ..Point::default()
    };
    for _ in 0..options.rounds {
        stop.check()?;
        packets(options, &mut point)?;
        stop.check()?;
        stream(options, &mut point)?;
    }
    Ok(point)
}

fn setup(options: &Options, stage: &mut Stage, point: &Point, bare: bool) -> Result<Setup> {
    let hello = stage.hello()?;
    Ok(Setup {
        number: 0,
        wire: String::new(),
        outer: Stage::outer(&hello)?,
        inner_mtu: hello[0].wire.mtu - OVERHEAD,
        way: Way::Culvert,
        cipher: Some(options.cipher.clone()),
        secrets: secrets(Way::Culvert, Some(&options.cipher), point.sas)?,
        sas: point.sas,
        cores: (0..point.workers as usize).collect(),
        bare,
    })
}

/// Packets over all SAs in turn.
fn packets(options: &Options, point: &mut Point) -> Result<()> {
    let mut stage = Stage::new(None, point.workers, false)?;
    let setup = setup(options, &mut stage, point, true)?;
    stage.set_up(&setup)?;
    stage.done(1, &Request::Sink)?;
    let before = stage.usage(0)?;
    let start = Instant::now();
    std::thread::sleep(IDLE);
    let idle = stage.usage(0)?;
    let of =
        |usage: &crate::agent::Usage| usage.seconds.get("datapath").copied().unwrap_or_default();
    point.idle_percent = (of(&idle) - of(&before)) * 100.0 / start.elapsed().as_secs_f64();
    point.datapath_mib = idle.datapath_mib;
    point.keymgr_mib = idle.keymgr_mib;
    point.filled_in_s = idle.filled_in.unwrap_or_default();
    let arrived =
        |stage: &mut Stage| Ok::<_, anyhow::Error>(stage.usage(1)?.arrived.unwrap_or_default());
    let first = arrived(&mut stage)?;
    let start = Instant::now();
    stage.flood(Flood {
        from: setup.outer[0],
        to: setup.outer[1],
        vnis: point.sas,
        bytes: BYTES,
        seconds: options.seconds,
    })?;
    let count = u32::try_from(arrived(&mut stage)? - first)?;
    point
        .mpps
        .push(f64::from(count) / start.elapsed().as_secs_f64() / 1e6);
    Ok(())
}

/// TCP over the first SA, while the others are there.
fn stream(options: &Options, point: &mut Point) -> Result<()> {
    let mut stage = Stage::new(None, point.workers, false)?;
    let setup = setup(options, &mut stage, point, false)?;
    stage.set_up(&setup)?;
    let address = Setup::inner(1);
    stage.done(1, &Request::Serve { address })?;
    let load = Load::Tcp {
        streams: point.workers,
        talk_window: false,
        rate: None,
    };
    let (done, _) = stage.load(load, options.seconds, 0)?;
    point.gbit_per_s.push(done.gbit_per_s);
    Ok(())
}

/// The median; 0 of nothing.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    f64::midpoint(at(values.len().saturating_sub(1) / 2), at(values.len() / 2))
}
