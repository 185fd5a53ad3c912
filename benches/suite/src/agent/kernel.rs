//! The kernel's IPsec, by `ip xfrm`. Secrets: the keys from side 0 to side 1 and back.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use culvert_tests::keys::write_private;
use culvert_tests::netns::ip;

use super::Setup;

/// SPIs from side 0 to side 1, and back.
const SPIS: [u32; 2] = [0x0300_0001, 0x0400_0001];

/// SAs and policies, which go with this.
pub(super) struct Xfrm {
    remove: Vec<String>,
    outbound: u32,
}

impl Xfrm {
    /// Installs them, as [`crate::agent::Setup`] says.
    pub(super) fn new(setup: &Setup, folder: &Path) -> Result<Self> {
        let aead = match setup.cipher()? {
            "aes128gcm16" | "aes256gcm16" => "rfc4106(gcm(aes))",
            "chacha20poly1305" => "rfc7539esp(chacha20,poly1305)",
            other => bail!("no name of the kernel's for {other}"),
        };
        let mut lines = String::new();
        let mut remove = Vec::new();
        for (way, key) in setup.secrets.iter().enumerate() {
            let (from, to) = (setup.outer[way], setup.outer[1 - way]);
            let ends = format!("src {from} dst {to}");
            let spi = SPIS[way];
            let out = way == setup.number;
            writeln!(
                lines,
                "xfrm state add {ends} proto esp spi {spi:#x} reqid 1 mode transport replay-window 1024 \
                 flag esn aead {aead} 0x{key} 128"
            )?;
            remove.push(format!("xfrm state delete {ends} proto esp spi {spi:#x}"));
            // Geneve's source port is a hash of the flow: there is a policy by destination port for each way.
            let direction = if out { "out" } else { "in" };
            writeln!(
                lines,
                "xfrm policy add {ends} proto udp dport 6081 dir {direction} \
                 tmpl {ends} proto esp reqid 1 mode transport"
            )?;
            remove.push(format!(
                "xfrm policy delete {ends} proto udp dport 6081 dir {direction}"
            ));
        }
        let this = Self {
            remove,
            outbound: SPIS[setup.number],
        };
        // What an agent that was killed has left.
        this.remove();
        let batch = folder.join("xfrm");
        write_private(&batch, &lines)?;
        ip(&format!("-batch {}", batch.display()))?;
        Ok(this)
    }

    /// Packets that it has sealed.
    pub(super) fn sealed(&self) -> Result<u64> {
        let text = ip("-s xfrm state")?;
        let counted = || {
            let (_, state) = text.split_once(&format!("spi {:#010x}", self.outbound))?;
            let (_, current) = state.split_once("lifetime current:")?;
            let (_, packets) = current.split_once("(bytes), ")?;
            packets.split('(').next()?.parse().ok()
        };
        counted().context("no counters of the kernel's SA")
    }

    fn remove(&self) {
        for line in &self.remove {
            let _ = ip(line);
        }
    }
}

impl Drop for Xfrm {
    fn drop(&mut self) {
        self.remove();
    }
}
