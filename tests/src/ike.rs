//! What the IKE daemons are told: one connection between the two hypervisors, as `swanctl.conf` and as `ipsec.conf`
//! have it.
//!
//! Geneve's source port is a hash of the flow that is inside, so that one child with port 6081 at both ends would be
//! for nothing. There are two, one for what this side sends to the other's port and one for what it gets at its own.

use std::net::IpAddr;

use crate::certificates::NAMES;
use crate::settings::Text;

/// The name of the connection.
pub const CONNECTION: &str = "peer";
/// Its children: what this side sends to the other's port 6081, and what it gets at its own.
pub const CHILDREN: [&str; 2] = ["to-peer", "from-peer"];

/// Of the [`CHILDREN`], local and remote.
const SELECTORS: [[&str; 2]; 2] = [["udp", "udp/6081"], ["udp/6081", "udp"]];

/// The secret of the lab, for [`Auth::Psk`].
const SECRET: &str = "the lab's secret, which protects nothing";

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
    pub esp: String,
    /// When the children are negotiated, by a and by b. If both do so, they may do it at once, and twice.
    pub start: [Start; 2],
    /// Whether there are children at all. Without, the IKE SA is made for itself; `swanctl` only.
    pub children: bool,
    /// UDP encapsulation of ESP even without NAT.
    pub encapsulated: bool,
    /// When children get new keys, exactly.
    pub rekey: Option<u32>,
    /// When children end, if they have not got new keys.
    pub life: Option<u32>,
    /// How long a peer may be silent until it is asked whether it lives.
    pub dead_peer: Option<u32>,
    /// When the IKE SA is made again, with its children.
    pub reauthentication: Option<u32>,
    /// More settings of each child, of whichever file.
    pub more: Vec<(String, String)>,
}

impl Default for Connection {
    fn default() -> Self {
        Self {
            auth: Auth::Psk,
            ike: "aes256gcm16-prfsha256-x25519",
            esp: "aes256gcm16-x25519-esn".to_owned(),
            start: [Start::None; 2],
            children: true,
            encapsulated: false,
            rekey: None,
            life: None,
            dead_peer: None,
            reauthentication: None,
            more: Vec::new(),
        }
    }
}

impl Connection {
    /// As `swanctl.conf` for side `number`; `outer` are the addresses of a and b.
    #[must_use]
    pub fn swanctl(&self, number: usize, outer: [IpAddr; 2]) -> String {
        let mut text = Text::default();
        text.open("connections");
        text.open(CONNECTION);
        text.set("version", 2);
        text.set("local_addrs", outer[number]);
        text.set("remote_addrs", outer[1 - number]);
        text.set("proposals", self.ike);
        text.set("encap", yes(self.encapsulated));
        text.seconds("dpd_delay", self.dead_peer);
        text.seconds("reauth_time", self.reauthentication);
        for (end, side) in [("local", number), ("remote", 1 - number)] {
            text.open(end);
            let certificate = format!("{}.pem", NAMES[side]);
            match self.auth {
                Auth::Psk => {
                    text.set("auth", "psk");
                    text.set("id", outer[side]);
                }
                Auth::Ca if end == "remote" => {
                    text.set("auth", "pubkey");
                    text.set("cacerts", "ca.pem");
                    text.set("id", NAMES[side]);
                }
                Auth::SelfSigned | Auth::Ca => {
                    text.set("auth", "pubkey");
                    text.set("certs", certificate);
                    text.set("id", NAMES[side]);
                }
            }
            text.close();
        }
        if self.children {
            self.swanctl_children(self.start[number], &mut text);
        } else {
            text.set("childless", "force");
        }
        text.close();
        text.close();
        if self.auth == Auth::Psk {
            text.open("secrets");
            text.open("ike-lab");
            text.set("id-a", outer[0]);
            text.set("id-b", outer[1]);
            text.set("secret", format!("\"{SECRET}\""));
            text.close();
            text.close();
        }
        text.done()
    }

    fn swanctl_children(&self, start: Start, text: &mut Text) {
        text.open("children");
        for (name, [local, remote]) in CHILDREN.iter().zip(SELECTORS) {
            text.open(name);
            text.set("mode", "transport");
            text.set("esp_proposals", &self.esp);
            text.set("local_ts", format!("dynamic[{local}]"));
            text.set("remote_ts", format!("dynamic[{remote}]"));
            text.set(
                "start_action",
                match start {
                    Start::None => "none",
                    Start::Start => "start",
                    Start::Trap => "trap",
                },
            );
            text.seconds("rekey_time", self.rekey);
            text.seconds("life_time", self.life);
            // Else it is as long as there is between the two.
            text.seconds("rand_time", self.rekey.map(|_| 0));
            for (name, value) in &self.more {
                text.set(name, value);
            }
            text.close();
        }
        text.close();
    }

    /// As `ipsec.conf` and `ipsec.secrets` for side `number`; `outer` are the addresses of a and b.
    #[must_use]
    pub fn ipsec(&self, number: usize, outer: [IpAddr; 2]) -> [String; 2] {
        let [local, remote] = [outer[number], outer[1 - number]];
        let [own, other] = [NAMES[number], NAMES[1 - number]];
        let mut text = Text::default();
        text.section("conn %default");
        text.set("keyexchange", "ikev2");
        text.set("type", "transport");
        text.set("left", local);
        text.set("right", remote);
        text.set("ike", format!("{}!", self.ike));
        text.set("esp", format!("{}!", self.esp));
        text.set("forceencaps", yes(self.encapsulated));
        text.set(
            "auto",
            match self.start[number] {
                Start::None => "add",
                Start::Start => "start",
                Start::Trap => "route",
            },
        );
        if self.auth == Auth::Psk {
            text.set("authby", "psk");
        } else {
            text.set("leftid", own);
            text.set("rightid", other);
            text.set("leftcert", format!("{own}.pem"));
        }
        if self.auth == Auth::SelfSigned {
            text.set("rightcert", format!("{other}.pem"));
        }
        if self.dead_peer.is_some() {
            text.set("dpdaction", "clear");
            text.seconds("dpddelay", self.dead_peer);
        }
        text.seconds("lifetime", self.life);
        if let (Some(life), Some(rekey)) = (self.life, self.rekey) {
            text.seconds("margintime", Some(life.saturating_sub(rekey)));
            text.set("rekeyfuzz", "0%");
        }
        text.set("reauth", yes(self.reauthentication.is_some()));
        text.seconds("ikelifetime", self.reauthentication);
        for (name, value) in &self.more {
            text.set(name, value);
        }
        for (name, [local, remote]) in CHILDREN.iter().zip(SELECTORS) {
            text.section(&format!("conn {name}"));
            text.set("leftprotoport", local);
            text.set("rightprotoport", remote);
        }
        let secrets = match self.auth {
            Auth::Psk => format!("{local} {remote} : PSK \"{SECRET}\"\n"),
            Auth::SelfSigned | Auth::Ca => format!(": RSA {own}.pem\n"),
        };
        [text.done(), secrets]
    }
}

fn yes(whether: bool) -> &'static str {
    if whether { "yes" } else { "no" }
}
