//! What was on the wire, by judges that are not ours: nftables counts every packet on the bridge in the
//! middle, tcpdump captures there. (Neither end can be watched: what AF_XDP sends and native XDP takes,
//! packet sockets there do not see.)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pcap_file::pcap::PcapReader;
use serde::{Deserialize, Serialize};

use crate::netns::{Home, Namespace, run, wait_for};

/// Packets and bytes of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
}

/// What nftables counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// ESP, also in UDP.
    pub esp: Count,
    /// What of that was in UDP.
    pub esp_in_udp: Count,
    /// Geneve in clear.
    pub plaintext_geneve: Count,
    /// Everything else.
    pub other: Count,
}

/// The rules: the first that fits counts.
const RULES: &str = "
table bridge wire {
    counter sealed {}
    counter sealed_in_udp {}
    counter plaintext_geneve {}
    counter other {}
    chain forward {
        type filter hook forward priority 0;
        meta l4proto esp counter name sealed accept
        udp dport 4500 counter name sealed_in_udp counter name sealed accept
        udp sport 4500 counter name sealed_in_udp counter name sealed accept
        udp dport 6081 counter name plaintext_geneve accept
        udp sport 6081 counter name plaintext_geneve accept
        counter name other
    }
}
";

/// Lets nothing leave a namespace that nobody sent: IPv6 reports its multicast listeners when it likes, and tests
/// count packets.
///
/// # Errors
/// nftables refuses.
pub fn silence(namespace: &Namespace) -> Result<()> {
    const RULES: &str = "table ip6 silence { chain output { type filter hook output priority 0; \
        icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report, nd-router-solicit } drop; }; }";
    run(namespace.command("nft").arg(RULES)).map(drop)
}

/// Begins to count what crosses the bridge of `underlay`.
///
/// # Errors
/// nftables refuses.
pub fn count_from_now(underlay: &Namespace, folder: &Path) -> Result<()> {
    let rules = folder.join("wire.nft");
    std::fs::write(&rules, RULES)?;
    run(underlay.command("nft").arg("-f").arg(rules)).map(drop)
}

/// Reads the counters and sets them to zero.
///
/// # Errors
/// nftables refuses.
pub fn take_counts(underlay: &Namespace) -> Result<Counts> {
    #[derive(Deserialize)]
    struct Listing {
        nftables: Vec<BTreeMap<String, serde_json::Value>>,
    }
    let text = run(underlay
        .command("nft")
        .args(["-j", "reset", "counters", "table", "bridge", "wire"]))?;
    let listing: Listing = serde_json::from_str(&text).context("nft's JSON")?;
    let find = |name: &str| -> Result<Count> {
        let counter = listing
            .nftables
            .iter()
            .filter_map(|object| object.get("counter"))
            .find(|counter| counter["name"] == name)
            .with_context(|| format!("nft has no counter {name}"))?;
        Ok(Count {
            packets: counter["packets"].as_u64().context("packets")?,
            bytes: counter["bytes"].as_u64().context("bytes")?,
        })
    };
    Ok(Counts {
        esp: find("sealed")?,
        esp_in_udp: find("sealed_in_udp")?,
        plaintext_geneve: find("plaintext_geneve")?,
        other: find("other")?,
    })
}

/// Sends frames out of a port of the bridge, as if they came over the wire.
///
/// # Errors
/// They cannot be sent.
pub fn inject(underlay: &Namespace, port: &str, frames: &[Vec<u8>]) -> Result<()> {
    const SCRIPT: &str = "import socket, sys\n\
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
        s.bind((sys.argv[1], 0))\n\
        for frame in sys.argv[2:]: s.send(bytes.fromhex(frame))\n";
    let hex = |frame: &Vec<u8>| {
        frame
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let mut command = underlay.command("python3");
    command
        .args(["-c", SCRIPT, port])
        .args(frames.iter().map(hex));
    run(&mut command).map(drop)
}

/// A capture by tcpdump.
#[derive(Debug)]
pub struct Capture {
    process: Child,
    file: PathBuf,
    log: PathBuf,
}

impl Capture {
    /// Captures what comes in at a port of the bridge, which is all that one side sends: the first `length`
    /// bytes of each packet.
    ///
    /// # Errors
    /// tcpdump does not start.
    pub fn start(home: &Home, underlay: &Namespace, port: &str, length: u32) -> Result<Self> {
        Self::at(home, underlay, port, "in", length)
    }

    /// Captures what goes `in` or `out` at an interface of a namespace.
    ///
    /// # Errors
    /// tcpdump does not start.
    pub fn at(
        home: &Home,
        namespace: &Namespace,
        interface: &str,
        direction: &str,
        length: u32,
    ) -> Result<Self> {
        let name = format!("{}-{interface}-{direction}", namespace.name());
        let file = home.path().join(format!("{name}.pcap"));
        let log = home.path().join(format!("{name}.log"));
        // The log of an earlier one would say that this one listens.
        let _ = std::fs::remove_file(&log);
        let mut command = namespace.command("tcpdump");
        // A buffer of 256 MiB, as nothing may be missed; at once, as what waits in a block of the buffer is
        // forgotten at the end.
        command
            .args(["-i", interface, "-Q", direction, "-n", "-U", "-Z", "root"])
            .args(["-B", "262144", "--immediate-mode"])
            .args(["-s", &length.to_string(), "-w"])
            .arg(&file);
        let process = home.spawn(command, &log)?;
        let started =
            || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("listening on"));
        wait_for("tcpdump", Duration::from_secs(30), started)?;
        Ok(Self { process, file, log })
    }

    /// Ends the capture and returns its packets.
    ///
    /// # Errors
    /// tcpdump has missed packets, or its file cannot be read.
    pub fn finish(self) -> Result<Vec<Vec<u8>>> {
        let packets = self.finish_timed()?.into_iter();
        Ok(packets.map(|(_, packet)| packet).collect())
    }

    /// As [`Capture::finish`], with the time of each packet.
    ///
    /// # Errors
    /// As there.
    pub fn finish_timed(mut self) -> Result<Vec<(Duration, Vec<u8>)>> {
        // What the kernel holds must be read first.
        std::thread::sleep(Duration::from_millis(300));
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        self.process.wait()?;
        let log = std::fs::read_to_string(&self.log)?;
        ensure!(
            log.contains("\n0 packets dropped by kernel"),
            "the capture missed packets: {log}"
        );
        let mut reader =
            PcapReader::new(std::io::BufReader::new(std::fs::File::open(&self.file)?))?;
        let mut packets = Vec::new();
        // Raw, as the checked kind refuses packets of which only the beginning was captured.
        while let Some(packet) = reader.next_raw_packet() {
            let packet = packet?;
            let fraction = Duration::from_micros(packet.ts_frac.into());
            let time = Duration::from_secs(packet.ts_sec.into()) + fraction;
            packets.push((time, packet.data.into_owned()));
        }
        Ok(packets)
    }

    /// The capture's file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }
}
