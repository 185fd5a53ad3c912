//! Who protects the tunnel: Culvert and what it is compared with.

use std::path::Path;
use std::process::Command;

use culvert_datapath::tap::Tap;
use serde::{Deserialize, Serialize};

/// One way of protecting, or not.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Nobody: Geneve in clear
    Plain,
    /// Culvert's steering and forwarding, without ESP: its policy says bypass
    Null,
    /// The same with a TAP as the host port
    NullTap,
    /// Culvert
    Culvert,
    /// Culvert with a TAP as the host port
    CulvertTap,
    /// The same, whose workers poll the NIC's queues
    CulvertBusy,
    /// The kernel's IPsec
    KernelXfrm,
    /// strongSwan's own ESP in userspace: its plugin kernel-libipsec, in tunnel mode over a TUN device
    StrongswanLibipsec,
    /// WireGuard in userspace, in Go
    WireguardGo,
    /// WireGuard in userspace, in Rust
    Boringtun,
}

impl Way {
    /// All, in the order of reports.
    pub const ALL: [Self; 10] = [
        Self::Plain,
        Self::Null,
        Self::NullTap,
        Self::Culvert,
        Self::CulvertTap,
        Self::CulvertBusy,
        Self::KernelXfrm,
        Self::StrongswanLibipsec,
        Self::WireguardGo,
        Self::Boringtun,
    ];

    /// Its name in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Null => "null",
            Self::NullTap => "null-tap",
            Self::Culvert => "culvert",
            Self::CulvertTap => "culvert-tap",
            Self::CulvertBusy => "culvert-busy",
            Self::KernelXfrm => "kernel-xfrm",
            Self::StrongswanLibipsec => "strongswan-libipsec",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun",
        }
    }

    /// Those of `ciphers` that it has; one entry of none if it has no choice.
    #[must_use]
    pub fn ciphers(self, ciphers: &[String]) -> Vec<Option<&str>> {
        let of = |wanted: fn(&str) -> bool| {
            let names = ciphers.iter().map(String::as_str);
            names.filter(|name| wanted(name)).map(Some).collect()
        };
        match self {
            Self::Plain | Self::Null | Self::NullTap => vec![None],
            Self::Culvert
            | Self::CulvertTap
            | Self::CulvertBusy
            | Self::KernelXfrm
            | Self::StrongswanLibipsec => of(|_| true),
            Self::WireguardGo | Self::Boringtun => of(|name| name == "chacha20poly1305"),
        }
    }

    /// Whether nothing of the tunnel may be on the wire in clear.
    #[must_use]
    pub const fn protects(self) -> bool {
        !matches!(self, Self::Plain | Self::Null | Self::NullTap)
    }

    /// Whether what it puts on the wire is ESP.
    #[must_use]
    pub const fn is_esp(self) -> bool {
        matches!(
            self,
            Self::Culvert
                | Self::CulvertTap
                | Self::CulvertBusy
                | Self::KernelXfrm
                | Self::StrongswanLibipsec
        )
    }

    /// Whether Culvert's daemons run.
    #[must_use]
    pub const fn is_culvert(self) -> bool {
        self.is_null() || matches!(self, Self::Culvert | Self::CulvertTap | Self::CulvertBusy)
    }

    /// Whether that is without ESP.
    #[must_use]
    pub const fn is_null(self) -> bool {
        matches!(self, Self::Null | Self::NullTap)
    }

    /// Culvert's kind of host port, as its settings have it.
    #[must_use]
    pub const fn host_port(self) -> &'static str {
        match self {
            Self::NullTap | Self::CulvertTap | Self::CulvertBusy => "tap",
            _ => "veth",
        }
    }

    /// Whether the packets are Geneve. The others are layer 3 tunnels of their own, which favours them: their packets
    /// have one header less.
    #[must_use]
    pub const fn is_geneve(self) -> bool {
        self.is_culvert() || matches!(self, Self::Plain | Self::KernelXfrm)
    }

    /// What this machine lacks for it.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let programs: &[&str] = match self {
            Self::Plain | Self::Null | Self::Culvert => &[],
            Self::NullTap | Self::CulvertTap | Self::CulvertBusy => {
                // Without superpackets, too: to see what the best is that a kernel has.
                let error = Tap::has_superpackets().err()?;
                return Some(format!("there can be no TAP: {error:#}"));
            }
            Self::KernelXfrm => {
                return (!kernel_has_esp()).then(|| "this kernel has no ESP".into());
            }
            Self::StrongswanLibipsec => {
                let plugin = "/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so";
                if !Path::new(plugin).exists() {
                    return Some(format!("there is no {plugin}"));
                }
                &["charon-systemd", "swanctl"]
            }
            Self::WireguardGo => &["wireguard-go", "wg"],
            Self::Boringtun => &["boringtun-cli", "wg"],
        };
        let missing = programs.iter().find(|name| !is_there(name));
        missing.map(|name| format!("there is no {name}"))
    }
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|folder| folder.join(program).is_file())
}

/// Tries it in a namespace of its own, where it hurts nobody.
fn kernel_has_esp() -> bool {
    let add = "ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1001 mode transport \
               aead 'rfc4106(gcm(aes))' 0x0000000000000000000000000000000000000001 128";
    Command::new("unshare")
        .args(["--net", "sh", "-c", add])
        .output()
        .is_ok_and(|output| output.status.success())
}
