//! Open vSwitch on a hypervisor: Debian's daemons with the userspace datapath, which needs no kernel module.
//!
//! ```text
//!   br-int   vm0 (the "VM")   tunnel to the other hypervisor
//!                                │ Geneve, made and taken apart in ovs-vswitchd
//!   br-phy   br-phy (the host's address)   wire0   cvhost0
//! ```
//! That datapath does not give Geneve to the host's stack: it asks the kernel's routes which bridge leads to the peer,
//! and hands the packet to that bridge, `br-phy`, as if the host had sent it. So the NIC is a port of `br-phy`, and the
//! host has its address there. What OVS sends on a port goes through a packet socket and passes the NIC's egress hook,
//! where Culvert takes it as it takes the stack's. What Culvert has opened comes in at the outer end of its host port,
//! so that is a port of `br-phy`, too: OVS takes apart what is Geneve to the host's address wherever it comes from. It reads its ports
//! by packet sockets into buffers of an MTU, and so no superpackets: the host port is a veth pair. OVS in the kernel takes them.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::certificates::{Certificates, NAMES};
use crate::hypervisor::World;
use crate::ike::Auth;
use crate::lab::{HOST_PORT, Lab, WIRE, tail};
use crate::netns::{Home, run, wait_for};

/// The bridge of the "VM".
pub const BRIDGE: &str = "br-int";
/// The bridge of the underlay.
pub const UNDERLAY: &str = "br-phy";
/// The "VM".
pub const PORT: &str = "vm0";
/// The tunnel.
pub const GENEVE: &str = "gnv0";

/// What strongSwan's connections are called by ovs-monitor-ipsec, but for their version: what this hypervisor gets at
/// its port 6081, and what it sends to the other's.
pub const CONNECTIONS: [&str; 2] = ["gnv0-in", "gnv0-out"];

/// Its log, and the name that ovs-appctl knows.
const MONITOR: &str = "ovs-monitor-ipsec";

/// Longest time until a daemon is up.
const LIMIT: Duration = Duration::from_secs(30);

/// Where ovsdb-server listens.
const DATABASE: &str = "/run/openvswitch/db.sock";

/// Open vSwitch on one hypervisor.
#[derive(Debug)]
pub struct Ovs {
    world: World,
    number: usize,
    processes: Vec<Child>,
}

impl Ovs {
    /// Starts ovsdb-server, with an empty database, and ovs-vswitchd on side `number`, which has the files of `world`.
    ///
    /// # Errors
    /// They do not come up; the text has their logs.
    pub fn start(home: &Home, world: &World, number: usize) -> Result<Self> {
        let mut this = Self {
            world: world.clone(),
            number,
            processes: Vec::new(),
        };
        world.within(|| {
            for folder in [
                "/run/openvswitch",
                "/var/lib/openvswitch",
                "/etc/openvswitch",
            ] {
                fs::create_dir_all(folder)?;
            }
            Ok(())
        })?;
        let database = "/etc/openvswitch/conf.db";
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        run(world
            .command("ovsdb-tool")
            .args(["create", database, schema]))?;
        let remote = format!("--remote=punix:{DATABASE}");
        this.spawn(
            home,
            "ovsdb-server",
            "ovsdb-server",
            &[database, &remote, "--pidfile"],
        )?;
        let listens = || world.within(|| Ok(UnixStream::connect(DATABASE)?));
        wait_for("ovsdb-server", LIMIT, || listens().is_ok())
            .with_context(|| tail(&this.log("ovsdb-server")))?;
        this.vsctl("--no-wait init")?;
        // Where it is before Debian's alternatives make it a program of /usr/sbin.
        let alternative = "/usr/lib/openvswitch-switch/ovs-vswitchd";
        let there = world.within(|| Ok(fs::exists(alternative)?))?;
        let vswitchd = if there { alternative } else { "ovs-vswitchd" };
        this.spawn(
            home,
            "ovs-vswitchd",
            vswitchd,
            &[&format!("unix:{DATABASE}"), "--pidfile"],
        )?;
        Ok(this)
    }

    fn spawn(&mut self, home: &Home, name: &str, program: &str, arguments: &[&str]) -> Result<()> {
        let mut command = self.world.command(program);
        command.args(arguments);
        self.processes.push(home.spawn(command, &self.log(name))?);
        Ok(())
    }

    /// The log of a daemon.
    #[must_use]
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.world.folder().join(format!("{daemon}.log"))
    }

    /// What `ovs-vsctl` prints, with the words of `arguments`.
    ///
    /// # Errors
    /// It fails.
    pub fn vsctl(&self, arguments: &str) -> Result<String> {
        self.tool("ovs-vsctl", arguments)
    }

    /// What `ovs-appctl` prints, with the words of `arguments`.
    ///
    /// # Errors
    /// It fails.
    pub fn appctl(&self, arguments: &str) -> Result<String> {
        self.tool("ovs-appctl", arguments)
    }

    /// What `ovs-ofctl` prints, with the words of `arguments`.
    ///
    /// # Errors
    /// It fails.
    pub fn ofctl(&self, arguments: &str) -> Result<String> {
        self.tool("ovs-ofctl", arguments)
    }

    fn tool(&self, program: &str, arguments: &str) -> Result<String> {
        // For a daemon that is not up, or does not answer, it would wait for ever.
        run(self
            .world
            .command(program)
            .arg("--timeout=20")
            .args(arguments.split_whitespace()))
    }

    /// Makes the bridges, moves the hypervisor's underlay addresses to `br-phy`, and gives the "VM" its address.
    ///
    /// # Errors
    /// Open vSwitch or the kernel refuses something.
    pub fn connect(&self, lab: &Lab) -> Result<()> {
        let side = &lab.sides[self.number];
        let mac = lab.outer_mac(self.number);
        // Flows of its own: learning, the bridge would look for the peer behind the host port, where what Culvert has
        // opened comes from. What the host or OVS sends leaves by the NIC, and what comes in is for them.
        self.vsctl(&format!(
            "add-br {UNDERLAY} -- set bridge {UNDERLAY} datapath_type=netdev fail_mode=secure \
             other_config:hwaddr={mac} \
             -- add-port {UNDERLAY} {WIRE} -- set interface {WIRE} ofport_request=1 \
             -- add-port {UNDERLAY} {HOST_PORT} -- set interface {HOST_PORT} ofport_request=2"
        ))?;
        for flow in [
            "in_port=LOCAL,actions=output:1",
            "in_port=1,actions=LOCAL",
            "in_port=2,actions=LOCAL",
        ] {
            self.ofctl(&format!("add-flow {UNDERLAY} {flow}"))?;
        }
        let other = 2 - self.number;
        let host = self.number + 1;
        let peer = lab.outer_mac(1 - self.number);
        for command in [
            format!("address flush dev {WIRE}"),
            format!("link set {UNDERLAY} up"),
            format!("address add 192.0.2.{host}/24 dev {UNDERLAY}"),
            format!("address add 2001:db8::{host}/64 dev {UNDERLAY} nodad"),
            format!("neigh add 192.0.2.{other} lladdr {peer} dev {UNDERLAY}"),
            format!("neigh add 2001:db8::{other} lladdr {peer} dev {UNDERLAY}"),
        ] {
            side.namespace.ip(&command)?;
        }
        // The stack sees what comes in at OVS's ports, too, and would answer Geneve with ICMP.
        let rules = format!(
            "table inet ovs {{ chain input {{ type filter hook input priority 0; \
             iifname {{ {WIRE}, {HOST_PORT} }} drop; }}; }}"
        );
        run(side.namespace.command("nft").arg(rules))?;
        let mtu = lab.plan().inner_mtu;
        self.vsctl(&format!(
            "add-br {BRIDGE} -- set bridge {BRIDGE} datapath_type=netdev \
             -- add-port {BRIDGE} {PORT} -- set interface {PORT} type=internal mtu_request={mtu}"
        ))?;
        side.namespace
            .ip(&format!("link set {PORT} mtu {mtu} up"))?;
        side.namespace
            .ip(&format!("address add {}/24 dev {PORT}", side.inner))
            .map(drop)
    }

    /// Adds the tunnel to the other hypervisor. `options` are more of the interface's, such as `options:psk=secret`.
    ///
    /// # Errors
    /// Open vSwitch refuses it.
    pub fn add_tunnel(&self, lab: &Lab, options: &str) -> Result<()> {
        let [local, remote] = [self.number, 1 - self.number].map(|number| lab.sides[number].outer);
        self.vsctl(&format!(
            "add-port {BRIDGE} {GENEVE} -- set interface {GENEVE} type=geneve options:key=77 \
             options:local_ip={local} options:remote_ip={remote} {options}"
        ))
        .map(drop)
    }

    /// Tells ovs-monitor-ipsec, by the database, how the tunnel's ends know each other.
    ///
    /// # Errors
    /// Open vSwitch refuses it, or there are no certificates where there must be.
    pub fn authenticate(&self, auth: Auth, certificates: Option<&Certificates>) -> Result<()> {
        const FOLDER: &str = "/etc/keys";
        let [own, other] = [NAMES[self.number], NAMES[1 - self.number]];
        let put = |from: PathBuf| -> Result<String> {
            let name = from.file_name().unwrap_or_default().to_string_lossy();
            let path = format!("{FOLDER}/{name}");
            self.world.write(&path, &fs::read_to_string(&from)?)?;
            Ok(path)
        };
        // At once, as a tunnel that has lost the one and not got the other is not protected.
        let mut change =
            format!("-- remove interface {GENEVE} options psk remote_cert remote_name");
        change += " -- remove open_vswitch . other_config certificate private_key ca_cert";
        if auth == Auth::Psk {
            change += &format!(" -- set interface {GENEVE} options:psk=swordfish");
        } else {
            let files = certificates.context("no certificates")?;
            let [certificate, key] = [put(files.certificate(own))?, put(files.key(own))?];
            change += &format!(
                " -- set open_vswitch . other_config:certificate={certificate} other_config:private_key={key}"
            );
            change += &if auth == Auth::Ca {
                let ca = put(files.certificate("ca"))?;
                // ovs-monitor-ipsec does not say `auto=add` in what it writes of the authority, without which starter
                // leaves that out. Who uses it with strongSwan must do this himself.
                self.world
                    .write("/etc/ipsec.d/cacerts/ca.pem", &self.world.read(&ca)?)?;
                let _ = run(self.world.command("ipsec").arg("rereadcacerts"));
                format!(
                    " other_config:ca_cert={ca} -- set interface {GENEVE} options:remote_name={other}"
                )
            } else {
                let peer = put(files.certificate(other))?;
                format!(" -- set interface {GENEVE} options:remote_cert={peer}")
            };
        }
        self.vsctl(&change).map(drop)
    }

    /// Starts ovs-monitor-ipsec, which starts strongSwan's starter and writes its files, which takes it some seconds:
    /// see [`Ovs::wait_for_ipsec`].
    ///
    /// # Errors
    /// It does not start.
    pub fn start_ipsec(&mut self, home: &Home) -> Result<()> {
        const SCRIPT: &str = "/usr/share/openvswitch/scripts/ovs-monitor-ipsec";
        let remote = format!("unix:{DATABASE}");
        let pid = "--pidfile=/run/openvswitch/ovs-monitor-ipsec.pid";
        self.spawn(
            home,
            MONITOR,
            SCRIPT,
            &["--ike-daemon=strongswan", pid, &remote],
        )
    }

    /// Ends ovs-monitor-ipsec, as its service does. strongSwan runs on.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn stop_ipsec(&mut self) -> Result<()> {
        let mut monitor = self.processes.pop().context("it does not run")?;
        self.appctl(&format!("-t {MONITOR} exit"))?;
        wait_for("ovs-monitor-ipsec to end", LIMIT, || {
            !matches!(monitor.try_wait(), Ok(None))
        })
    }

    /// What it knows of routes and neighbours, for error texts.
    #[must_use]
    pub fn story(&self) -> String {
        ["ovs/route/show", "tnl/neigh/show", "dpctl/dump-flows -m"]
            .map(|command| self.appctl(command).unwrap_or_default())
            .join("\n")
    }

    /// Waits until strongSwan has the tunnel's connections, in the version that counts how often they have changed.
    ///
    /// # Errors
    /// It does not get them; the text has the log of ovs-monitor-ipsec.
    pub fn wait_for_ipsec(&self, version: u32) -> Result<()> {
        // Not by asking ovs-monitor-ipsec meanwhile: with every question it writes ipsec.conf anew, which is empty for a
        // moment, and starter may be reading it just then.
        let there = || {
            let status = run(self.world.command("ipsec").arg("statusall")).unwrap_or_default();
            CONNECTIONS
                .iter()
                .all(|name| status.contains(&format!("{name}-{version}{{")))
        };
        wait_for("strongSwan to be told", LIMIT, there).with_context(|| tail(&self.log(MONITOR)))
    }
}
