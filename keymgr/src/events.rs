//! What the datapath tells: lifetimes that are reached, peers that have moved, packets for which there is no SA. That is
//! for charon, if it is about what charon has installed. Static keys have nobody who would replace them, so it is said
//! in the log and in the status.

use std::path::Path;
use std::time::Duration;

use culvert_proto::channel::{Channel, ChannelError};
use culvert_proto::event::Event;
use culvert_proto::message::{DatapathReply, DatapathRequest};
use log::{info, warn};

use crate::daemon::PROGRAM;
use crate::manager::Manager;

/// Pause before the datapath is asked again that was not there. It tells then what happened meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens for ever. That the datapath is away, the pushing thread says.
pub(crate) fn run(manager: &Manager, socket: &Path) {
    let mut heard = None;
    loop {
        let _ = listen(manager, socket, &mut heard);
        std::thread::sleep(PAUSE);
    }
}

/// One connection, for as long as it lasts. `heard` is the number of the last event, and whose.
fn listen(
    manager: &Manager,
    socket: &Path,
    heard: &mut Option<(String, u64)>,
) -> Result<std::convert::Infallible, ChannelError> {
    let mut channel = Channel::connect(socket, "culvert-datapath")?;
    let process = channel.peer_process()?;
    channel.greet::<DatapathRequest, DatapathReply>(PROGRAM)?;
    channel.send(&DatapathRequest::Status)?;
    let DatapathReply::Status(status) = channel.answer()? else {
        return Err(ChannelError::Unexpected);
    };
    // A datapath that was started anew counts anew.
    let whose = format!("{}-{}", status.pid, status.program);
    let mut last = match heard {
        Some((known, last)) if *known == whose => *last,
        _ => 0,
    };
    loop {
        channel.send(&DatapathRequest::Events(last))?;
        let DatapathReply::Events(events) = channel.answer()? else {
            return Err(ChannelError::Unexpected);
        };
        if events.lost > 0 {
            warn!("{} events of the datapath were lost", events.lost);
        }
        for event in events.list {
            if event == Event::Leaving {
                manager.shared.leaves(process);
            } else {
                manager.hear(event);
            }
        }
        last = events.last;
        *heard = Some((whose.clone(), last));
    }
}

/// Tells of what nobody else is told of.
pub(crate) fn tell(event: &Event) {
    match event {
        Event::Expired { sa, hard, limit } => warn!(
            "{sa} has reached its {} lifetime ({}): {} give it a new key on both hosts",
            if *hard { "hard" } else { "soft" },
            limit.name(),
            if *hard {
                "it is stopped;"
            } else {
                "it will stop;"
            },
        ),
        Event::Moved { sa, address, port } => info!(
            "{sa}: the peer behind NAT sends from {} now",
            std::net::SocketAddr::new(*address, *port)
        ),
        // The status has it, with what is missing.
        Event::Wanted { .. } | Event::Leaving => {}
    }
}
