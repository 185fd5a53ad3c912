//! What the IKE daemons are told: one connection between the two hypervisors, as `swanctl.conf` and as `ipsec.conf`
//! have it.
//!
//! Geneve's source port is a hash of the flow that is inside, so that one child with port 6081 at both ends would be for
//! nothing. There are two, one for what this side sends to the other's port and one for what it gets at its own.

use std::fmt::Write;
use std::net::IpAddr;

use anyhow::Result;

use crate::certificates::NAMES;

/// The names of the connection and of its children.
pub const CONNECTION: &str = "peer";
/// What this side sends to the other's port 6081, and what it gets at its own.
pub const CHILDREN: [&str; 2] = ["to-peer", "from-peer"];

/// How the two know each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// By a secret that both have.
    #[default]
    Psk,
    /// By certificates that nobody but themselves have signed.
    SelfSigned,
    /// By certificates of an authority that both know.
    Ca,
}

/// When a child is negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// When the daemon is told to.
    #[default]
    None,
    /// At once.
    Start,
    /// When there is something to send.
    Trap,
}

/// The connection. Times are in seconds.
#[derive(Clone, Debug)]
pub struct Connection {
    /// How the two know each other.
    pub auth: Auth,
    /// Proposal for IKE.
    pub ike: &'static str,
    /// Proposal for ESP.
    pub esp: &'static str,
    /// When the children are negotiated, by a and by b. If both do so, they may do it at once, and twice.
    pub start: [Start; 2],
    /// Whether there are children at all. Without, the IKE SA is made by `swanctl --initiate --ike`.
    pub children: bool,
    /// UDP encapsulation of ESP even without NAT.
    pub encapsulated: bool,
    /// When children get new keys.
    pub rekey: Option<u32>,
    /// When children end, if they have not got new keys.
    pub life: Option<u32>,
    /// How long a peer may be silent until it is asked whether it lives.
    pub dead_peer: Option<u32>,
    /// When the IKE SA is made again, with its children.
    pub reauthentication: Option<u32>,
    /// More lines of each child.
    pub more: String,
}

impl Default for Connection {
    fn default() -> Self {
        Self {
            auth: Auth::Psk,
            ike: "aes256gcm16-prfsha256-x25519",
            esp: "aes256gcm16-x25519-esn",
            start: [Start::None; 2],
            children: true,
            encapsulated: false,
            rekey: None,
            life: None,
            dead_peer: None,
            reauthentication: None,
            more: String::new(),
        }
    }
}

/// The secret of the lab, for [`Auth::Psk`].
const SECRET: &str = "the lab's secret, which protects nothing";

impl Connection {
    /// As `swanctl.conf` for side `number`; `outer` are the addresses of a and b.
    ///
    /// # Errors
    /// None that happen.
    pub fn swanctl(&self, number: usize, outer: [IpAddr; 2]) -> Result<String> {
        let [local, remote] = [outer[number], outer[1 - number]];
        let [own, other] = [NAMES[number], NAMES[1 - number]];
        let mut text = format!(
            "connections {{\n  {CONNECTION} {{\n    version = 2\n    local_addrs = {local}\n    remote_addrs = {remote}\n    \
             proposals = {}\n    encap = {}\n",
            self.ike,
            if self.encapsulated { "yes" } else { "no" },
        );
        for (name, value) in [
            ("dpd_delay", self.dead_peer),
            ("reauth_time", self.reauthentication),
        ] {
            setting(&mut text, 4, name, value)?;
        }
        if !self.children {
            writeln!(text, "    childless = force")?;
        }
        let (local_auth, remote_auth) = match self.auth {
            Auth::Psk => (
                format!("auth = psk\n id = {local}"),
                format!("auth = psk\n id = {remote}"),
            ),
            Auth::SelfSigned => (
                format!("auth = pubkey\n certs = {own}.pem\n id = {own}"),
                format!("auth = pubkey\n certs = {other}.pem\n id = {other}"),
            ),
            Auth::Ca => (
                format!("auth = pubkey\n certs = {own}.pem\n id = {own}"),
                format!("auth = pubkey\n cacerts = ca.pem\n id = {other}"),
            ),
        };
        writeln!(
            text,
            "    local {{\n {local_auth}\n }}\n    remote {{\n {remote_auth}\n }}"
        )?;
        if self.children {
            self.swanctl_children(number, &mut text)?;
        }
        writeln!(text, "  }}\n}}")?;
        if self.auth == Auth::Psk {
            writeln!(
                text,
                "secrets {{\n  ike-lab {{\n    id-a = {local}\n    id-b = {remote}\n    secret = \"{SECRET}\"\n  }}\n}}"
            )?;
        }
        Ok(text)
    }

    fn swanctl_children(&self, number: usize, text: &mut String) -> Result<()> {
        writeln!(text, "    children {{")?;
        for (name, [local, remote]) in CHILDREN.iter().zip(SELECTORS) {
            let start = match self.start[number] {
                Start::None => "none",
                Start::Start => "start",
                Start::Trap => "trap",
            };
            writeln!(
                text,
                "      {name} {{\n        mode = transport\n        esp_proposals = {}\n        local_ts = dynamic[{local}]\n        \
                 remote_ts = dynamic[{remote}]\n        start_action = {start}",
                self.esp,
            )?;
            setting(text, 8, "rekey_time", self.rekey)?;
            setting(text, 8, "life_time", self.life)?;
            writeln!(text, "{}      }}", self.more)?;
        }
        Ok(writeln!(text, "    }}")?)
    }

    /// As `ipsec.conf` and `ipsec.secrets` for side `number`; `outer` are the addresses of a and b.
    ///
    /// # Errors
    /// None that happen.
    pub fn ipsec(&self, number: usize, outer: [IpAddr; 2]) -> Result<[String; 2]> {
        let [local, remote] = [outer[number], outer[1 - number]];
        let [own, other] = [NAMES[number], NAMES[1 - number]];
        let mut text = String::new();
        if self.auth == Auth::Ca {
            // starter reads those in its folder by itself; this one says that it is meant.
            writeln!(text, "ca lab\n    cacert=ca.pem\n    auto=add\n")?;
        }
        let auth = match self.auth {
            Auth::Psk => "authby=psk".to_owned(),
            Auth::SelfSigned => format!(
                "leftid={own}\n    rightid={other}\n    leftcert={own}.pem\n    rightcert={other}.pem"
            ),
            Auth::Ca => format!("leftid={own}\n    rightid={other}\n    leftcert={own}.pem"),
        };
        let start = match self.start[number] {
            Start::None => "add",
            Start::Start => "start",
            Start::Trap => "route",
        };
        writeln!(
            text,
            "conn %default\n    keyexchange=ikev2\n    type=transport\n    left={local}\n    right={remote}\n    ike={}!\n    \
             esp={}!\n    {auth}\n    auto={start}\n    forceencaps={}",
            self.ike,
            self.esp,
            if self.encapsulated { "yes" } else { "no" },
        )?;
        if let Some(seconds) = self.dead_peer {
            writeln!(text, "    dpdaction=clear\n    dpddelay={seconds}s")?;
        }
        if let Some(seconds) = self.life {
            writeln!(text, "    lifetime={seconds}s")?;
            if let Some(rekey) = self.rekey {
                let margin = seconds.saturating_sub(rekey);
                writeln!(text, "    margintime={margin}s\n    rekeyfuzz=0%")?;
            }
        }
        if let Some(seconds) = self.reauthentication {
            writeln!(text, "    ikelifetime={seconds}s")?;
        } else {
            writeln!(text, "    reauth=no")?;
        }
        for (name, [local, remote]) in CHILDREN.iter().zip(SELECTORS) {
            writeln!(
                text,
                "\nconn {name}\n    leftprotoport={local}\n    rightprotoport={remote}\n{}",
                self.more
            )?;
        }
        let secrets = match self.auth {
            Auth::Psk => format!("{local} {remote} : PSK \"{SECRET}\"\n"),
            _ => format!(": RSA {own}.pem\n"),
        };
        Ok([text, secrets])
    }
}

/// Of [`CHILDREN`], local and remote.
const SELECTORS: [[&str; 2]; 2] = [["udp", "udp/6081"], ["udp/6081", "udp"]];

fn setting(text: &mut String, indent: usize, name: &str, seconds: Option<u32>) -> Result<()> {
    if let Some(seconds) = seconds {
        writeln!(text, "{:indent$}{name} = {seconds}s", "")?;
    }
    Ok(())
}
