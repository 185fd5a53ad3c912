//! TCP in both directions at once, whose every byte is compared with the one that was to come.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::scope;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::lab::Lab;
use crate::netns::wait_for;
use crate::random::Random;

/// Bytes that are written and compared at once.
const CHUNK: usize = 64 << 10;
/// How long a thread waits before it looks whether time is up.
const LOOK: Duration = Duration::from_millis(200);
/// Port of the receiver.
const PORT: u16 = 5500;

/// Sends `bytes` each way over one connection between the "VMs" of a and b. What they are follows from `seed`.
///
/// # Errors
/// A byte is wrong, one too many or missing, or it takes longer than `limit`.
pub fn both_ways(lab: &Lab, bytes: u64, seed: u64, limit: Duration) -> Result<Duration> {
    let [a, b] = &lab.sides;
    let begun = Instant::now();
    let end = begun + limit;
    let address = SocketAddr::new(b.inner, PORT);
    let listener = b.namespace.within(|| Ok(TcpListener::bind(address)?))?;
    listener.set_nonblocking(true)?;
    let connect = || Ok(TcpStream::connect_timeout(&address, limit)?);
    let at_a = a.namespace.within(connect).context("connecting")?;
    let mut accepted = None;
    wait_for("the connection", limit, || {
        accepted = listener.accept().ok();
        accepted.is_some()
    })?;
    let (at_b, _) = accepted.context("no connection")?;
    at_b.set_nonblocking(false)?;
    for stream in [&at_a, &at_b] {
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_write_timeout(Some(LOOK))?;
    }
    let mut seeds = Random::new(seed);
    let [there, back] = [(); 2].map(|()| Random::new(seeds.number()));
    scope(|scope| {
        let threads = [
            (&at_a, &at_b, there, "from a to b"),
            (&at_b, &at_a, back, "from b to a"),
        ]
        .map(|(from, to, contents, name)| {
            let same = contents.clone();
            let sending = scope.spawn(move || write(from, bytes, contents, end));
            let receiving = scope.spawn(move || compare(to, bytes, same, end));
            [(name, "sending", sending), (name, "receiving", receiving)]
        });
        // What was received says more than what was sent.
        for (name, what, thread) in threads.into_iter().flatten().rev() {
            let result = thread.join().map_err(|_| anyhow!("it panicked"));
            result.flatten().with_context(|| format!("{what} {name}"))?;
        }
        Ok(begun.elapsed())
    })
}

/// Sends all of it, and that it is all.
fn write(mut stream: &TcpStream, bytes: u64, mut contents: Random, end: Instant) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut sent = 0;
    while sent < bytes {
        let length = CHUNK.min(usize::try_from(bytes - sent)?);
        contents.fill(&mut chunk);
        let mut rest = &chunk[..length];
        while !rest.is_empty() {
            let count = until(end, sent, || stream.write(rest))?;
            sent += count as u64;
            rest = &rest[count..];
        }
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(())
}

/// Receives all of it, and that it is all.
fn compare(mut stream: &TcpStream, bytes: u64, mut contents: Random, end: Instant) -> Result<()> {
    let mut wanted = vec![0; CHUNK];
    let mut chunk = vec![0; CHUNK];
    let mut received = 0;
    loop {
        let mut length = 0;
        while length < CHUNK {
            let count = until(end, received, || stream.read(&mut chunk[length..]))?;
            length += count;
            received += count as u64;
            if count == 0 {
                break;
            }
        }
        contents.fill(&mut wanted);
        if chunk[..length] != wanted[..length] {
            let wrong = chunk
                .iter()
                .zip(&wanted)
                .position(|(is, wanted)| is != wanted);
            let start = received - length as u64;
            bail!("byte {} is wrong", start + wrong.unwrap_or_default() as u64);
        }
        if length < CHUNK {
            ensure!(received == bytes, "{received} of {bytes} bytes came");
            return Ok(());
        }
    }
}

/// Tries again until it is done, or time is up.
fn until(
    end: Instant,
    done: u64,
    mut work: impl FnMut() -> std::io::Result<usize>,
) -> Result<usize> {
    loop {
        match work() {
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).with_context(|| format!("after {done} bytes")),
        }
        ensure!(Instant::now() < end, "time is up after {done} bytes");
    }
}
