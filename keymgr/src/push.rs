//! Keeping the datapath at what is wanted: everything after it has started, then what changes.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use culvert_proto::channel::{Channel, ChannelError};
use culvert_proto::message::{DatapathReply, DatapathRequest};
use culvert_state::Region;
use log::{Level, log, warn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::daemon::PROGRAM;
use crate::shared::Shared;
use crate::wanted::{Wanted, split};

/// Records a message: an SA is some 150 bytes, so this stays far below the limit.
const RECORDS: usize = 10_000;
/// First and longest pause between attempts to reach the datapath.
const PAUSE: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(100)];

/// What ends a connection to the datapath.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the datapath refused: {0}")]
    Refused(String),
}

/// Pushes for ever.
pub(crate) fn run(shared: &Shared, region: &Region, socket: &Path) {
    let mut pause = PAUSE[0];
    let mut last_problem = String::new();
    loop {
        let problem = match serve(shared, region, socket, &mut pause) {
            Ok(never) => match never {},
            Err(error) => error.to_string(),
        };
        // Said once, not at every attempt.
        if problem != last_problem {
            warn!("datapath: {problem}");
            last_problem.clone_from(&problem);
        }
        shared.out_of_sync(problem);
        shared.wait_for_change(pause);
        pause = (pause * 2).min(PAUSE[1]);
    }
}

/// One connection, for as long as it lasts.
fn serve(
    shared: &Shared,
    region: &Region,
    socket: &Path,
    pause: &mut Duration,
) -> Result<std::convert::Infallible, Ended> {
    let mut channel = Channel::connect(socket, "culvert-datapath")?;
    channel.greet::<DatapathRequest, DatapathReply>(PROGRAM)?;
    channel.send_with(&DatapathRequest::Region, region.as_fd())?;
    done(&mut channel)?;

    let mut pushed = Wanted::default();
    let mut reset = true;
    loop {
        let (generation, wanted) = shared.wanted();
        let (mut update, changes) = pushed.update_to(&wanted);
        if reset || wanted != pushed {
            update.reset = reset;
            for message in split(update, RECORDS) {
                channel.send(&DatapathRequest::Update(message))?;
                done(&mut channel)?;
            }
            // With negotiated keys there are some in every rekeying.
            let level = if reset { Level::Info } else { Level::Debug };
            log!(
                level,
                "datapath has {} SAs and {} policies ({} SAs added, {} changed, {} removed)",
                wanted.sas.len(),
                wanted.policies.len(),
                changes.sas_added,
                changes.sas_changed,
                changes.sas_removed
            );
            reset = false;
            pushed = wanted;
        }
        *pause = PAUSE[0];
        shared.in_sync(generation);
        wait(shared, &channel, generation)?;
    }
}

fn done(channel: &mut Channel) -> Result<(), Ended> {
    match channel.answer()? {
        DatapathReply::Done => Ok(()),
        DatapathReply::Refused(text) => Err(Ended::Refused(text)),
        _ => Err(ChannelError::Unexpected.into()),
    }
}

/// Waits until something else is wanted than in `generation`, or the datapath is gone.
fn wait(shared: &Shared, channel: &Channel, generation: u64) -> Result<(), Ended> {
    while shared.generation() == generation {
        let mut descriptors = [
            PollFd::new(channel.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.wake.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut descriptors, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(ChannelError::from(error).into()),
        }
        // It never speaks unasked: readable means gone.
        if descriptors[0].any() == Some(true) {
            return Err(ChannelError::Closed.into());
        }
        // Empty if somebody else read it; the generation is what counts.
        let _ = shared.wake.read();
    }
    Ok(())
}
