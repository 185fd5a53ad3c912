//! Two hypervisors, the wire between them, and Culvert on each.

mod daemons;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culvert_proto::channel::Channel;
use culvert_proto::message::{DatapathReply, DatapathRequest, KeymgrReply, KeymgrRequest};
use culvert_proto::sa::Cipher;
use culvert_proto::status::{DatapathStatus, KeymgrStatus};
use culvert_proto::{DATAPATH_SOCKET, KEYMGR_SOCKET};

use crate::geneve::{Fixture, VNI};
use crate::keys::{Generation, keymgr_config, write_private};
use crate::netns::{Home, Namespace, run};
use crate::wire;

/// The underlay NIC of a hypervisor.
pub const WIRE: &str = "wire0";
/// Outer end of Culvert's host port.
pub const HOST_PORT: &str = "cvhost0";
/// The tunnel device, where the "VM" is.
pub const TUNNEL: &str = "gnv0";
/// Socket of strongSwan's plugin, in a side's folder.
pub const BRIDGE: &str = "charon.culvert";
/// MTU of the "VM": room for Geneve (70 bytes over IPv6) and ESP (up to 37).
const INNER_MTU: u32 = 1380;

/// Longest time until a daemon is up: half a minute on emulated CPUs that are busy.
const START_LIMIT: Duration = Duration::from_mins(1);

/// How to build a lab.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Tunnels over IPv6.
    pub ipv6: bool,
    /// Cipher of the SAs.
    pub cipher: Cipher,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Queues of the underlay NICs, and workers.
    pub queues: u32,
    /// XDP mode, as the settings have it.
    pub xdp: &'static str,
    /// Kind of host port, as the settings have it.
    pub host_port: &'static str,
    /// MTU of the underlay.
    pub mtu: u32,
    /// MTU of the tunnel devices.
    pub inner_mtu: u32,
    /// Tunnels over IPv4 forbid fragmentation.
    pub dont_fragment: bool,
    /// More lines of each SA in the key managers' files, outbound and inbound.
    pub sa: [&'static str; 2],
    /// Milliseconds without a heartbeat after which the datapath counts as hung.
    pub hung_after: u32,
    /// The wire has a bridge in its middle, where what crosses it is seen. Without, it is a pair of veths, and costs less.
    pub watched: bool,
    /// Whether there are tunnel devices at all. Without, something else makes Geneve.
    pub tunnel: bool,
    /// The daemons have the capabilities that their systemd units give them, and no others.
    pub confined: bool,
    /// Leave it standing when the process ends.
    pub keep: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            ipv6: false,
            cipher: Cipher::Aes256Gcm16,
            esn: true,
            queues: 1,
            xdp: "auto",
            host_port: host_port(),
            mtu: 1500,
            inner_mtu: INNER_MTU,
            dont_fragment: true,
            sa: [""; 2],
            hung_after: 100,
            watched: true,
            tunnel: true,
            confined: false,
            keep: false,
        }
    }
}

/// What [`set_host_port`] has set.
static HOST_PORT_KIND: Mutex<Option<&str>> = Mutex::new(None);

/// Sets the kind of host port that all labs of this process have from now on which want no other.
pub fn set_host_port(kind: Option<&'static str>) {
    *HOST_PORT_KIND
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = kind;
}

/// The kind of host port that all labs have which want no other: that, or `CULVERT_HOST_PORT`, or what Culvert chooses.
fn host_port() -> &'static str {
    let set = *HOST_PORT_KIND
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    set.unwrap_or_else(|| match std::env::var("CULVERT_HOST_PORT").as_deref() {
        Ok("veth") => "veth",
        Ok("tap") => "tap",
        _ => "auto",
    })
}

/// One hypervisor.
#[derive(Debug)]
pub struct Side {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its folder: configurations, logs, sockets.
    pub folder: PathBuf,
    /// Its underlay address.
    pub outer: IpAddr,
    /// Its "VM"'s address.
    pub inner: IpAddr,
    datapath: Option<Child>,
    keymgr: Option<Child>,
    geneve: Option<Fixture>,
    /// XDP mode, as the settings of the next start have it.
    xdp: &'static str,
}

/// The lab. Either side can do without Culvert, and have something else that speaks ESP.
#[derive(Debug)]
pub struct Lab {
    /// Hypervisors a and b.
    pub sides: [Side; 2],
    /// The underlay between them.
    pub underlay: Namespace,
    /// Which Geneve endpoint is used: `kernel` or `fixture`.
    pub endpoint: &'static str,
    plan: Plan,
    log_level: Option<&'static str>,
    /// Folder and names. Last, so that it is removed last.
    pub home: Home,
}

/// What makes the underlay NIC of a side, whose other end is `peer`.
fn link(plan: Plan, number: usize, peer: &str) -> String {
    let (queues, mtu) = (plan.queues, plan.mtu);
    let queues = format!("numtxqueues {queues} numrxqueues {queues}");
    let mac = outer_mac(number);
    format!("link add {WIRE} mtu {mtu} address {mac} {queues} type veth peer name {peer} {queues}")
}

/// SPIs from a to b and from b to a.
pub const SPIS: [u32; 2] = [0x1001, 0x2001];

impl Lab {
    /// Builds it, without Culvert: Geneve goes in clear.
    ///
    /// # Errors
    /// The machine lacks something.
    pub fn new(plan: Plan) -> Result<Self> {
        let home = Home::new(plan.keep)?;
        let underlay = Namespace::new(home.name("-u"))?;
        underlay.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        // The bridge's own hooks suffice. A kernel without br_netfilter has no others.
        for setting in ["iptables", "ip6tables", "arptables"] {
            let _ = underlay.sysctl(&format!("net.bridge.bridge-nf-call-{setting}"), "0");
        }
        underlay.ip("link add br0 type bridge mcast_snooping 0")?;
        underlay.ip("link set br0 up")?;
        let a = Side::new(&home, &underlay, plan, 0)?;
        let b = Side::new(&home, &underlay, plan, 1)?;
        a.plug_in(0)?;
        b.plug_in(1)?;
        let mut sides = [a, b];
        let mut endpoint = "kernel";
        for number in (0..2).filter(|_| plan.tunnel) {
            let (remote, other) = (sides[1 - number].outer, 1 - number);
            if !sides[number].add_tunnel(plan, number, other, remote)? {
                endpoint = "fixture";
            }
        }
        wire::count_from_now(&underlay, &home.path())?;
        Ok(Self {
            sides,
            underlay,
            endpoint,
            plan,
            log_level: None,
            home,
        })
    }

    /// Starts Culvert on both sides with freshly made keys, and waits until Geneve is protected.
    ///
    /// # Errors
    /// A daemon does not come up; the text has its log.
    pub fn start_culvert(&mut self) -> Result<()> {
        let keys = Generation {
            esn: self.plan.esn,
            more: self.plan.sa,
            ..Generation::new(self.plan.cipher, SPIS)?
        };
        for number in 0..2 {
            self.start_side(number, &keys)?;
        }
        for number in 0..2 {
            self.wait_for_protection(number)?;
        }
        Ok(())
    }

    /// Starts Culvert on one side.
    ///
    /// # Errors
    /// The datapath does not come up; the text has its log.
    pub fn start_side(&mut self, number: usize, keys: &Generation) -> Result<()> {
        self.write_keys(number, &[keys], 0)?;
        self.start_datapath(number)?;
        self.start_keymgr(number)
    }

    /// Writes the file of a side's key manager: see [`keymgr_config`].
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_keys(&self, number: usize, generations: &[&Generation], out: usize) -> Result<()> {
        let mut text = keymgr_config(number, self.outer(), generations, out)?;
        text += &format!("[fallback]\nhung_after = {}\n", self.plan.hung_after);
        write_private(&self.sides[number].folder.join("keymgr.toml"), &text)
    }

    /// Gives the key manager of a side new keys: see [`keymgr_config`].
    ///
    /// # Errors
    /// It refuses them.
    pub fn rekey(&self, number: usize, generations: &[&Generation], out: usize) -> Result<()> {
        self.write_keys(number, generations, out)?;
        run(&mut culvert(&self.sides[number], &["reload"])?).map(drop)
    }

    /// How it is built.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The underlay NIC's MAC address of a side.
    #[must_use]
    pub fn outer_mac(&self, number: usize) -> String {
        outer_mac(number)
    }

    /// The underlay addresses of a and b.
    #[must_use]
    pub fn outer(&self) -> [IpAddr; 2] {
        [self.sides[0].outer, self.sides[1].outer]
    }
}

impl Side {
    fn new(home: &Home, underlay: &Namespace, plan: Plan, number: usize) -> Result<Self> {
        let letter = ["a", "b"][number];
        let host = number + 1;
        let namespace = Namespace::new(home.name(&format!("-{letter}")))?;
        let folder = home.path().join(letter);
        std::fs::create_dir_all(folder.join("lab-bpf"))?;
        for setting in ["accept_ra", "router_solicitations", "dad_transmits"] {
            namespace.sysctl(&format!("net.ipv6.conf.default.{setting}"), "0")?;
        }
        wire::silence(&namespace)?;
        if plan.watched {
            namespace.ip(&link(
                plan,
                number,
                &format!("{letter}0 netns {}", underlay.name()),
            ))?;
            underlay.ip(&format!(
                "link set {letter}0 mtu {} master br0 up",
                plan.mtu
            ))?;
        } else if number == 1 {
            let peer = format!(
                "{WIRE} mtu {} address {} netns {}",
                plan.mtu,
                outer_mac(0),
                home.name("-a")
            );
            namespace.ip(&link(plan, number, &peer))?;
        }
        let outer = if plan.ipv6 {
            format!("2001:db8::{host}").parse()?
        } else {
            format!("192.0.2.{host}").parse()?
        };
        Ok(Self {
            namespace,
            folder,
            outer,
            inner: format!("10.99.0.{host}").parse()?,
            datapath: None,
            keymgr: None,
            geneve: None,
            xdp: plan.xdp,
        })
    }

    /// Gives the NIC its addresses.
    fn plug_in(&self, number: usize) -> Result<()> {
        let host = number + 1;
        self.namespace.ip(&format!("link set {WIRE} up"))?;
        self.namespace
            .ip(&format!("address add 192.0.2.{host}/24 dev {WIRE}"))?;
        self.namespace
            .ip(&format!("address add 2001:db8::{host}/64 dev {WIRE} nodad"))?;
        let (other, mac) = (2 - number, outer_mac(1 - number));
        self.namespace.ip(&format!(
            "neigh add 192.0.2.{other} lladdr {mac} dev {WIRE}"
        ))?;
        self.namespace.ip(&format!(
            "neigh add 2001:db8::{other} lladdr {mac} dev {WIRE}"
        ))?;
        Ok(())
    }

    /// Makes the tunnel device: the kernel's if it has one (then true), else the fixture.
    fn add_tunnel(
        &mut self,
        plan: Plan,
        number: usize,
        other: usize,
        remote: IpAddr,
    ) -> Result<bool> {
        let mac = inner_mac(number);
        let kernel = self.namespace.ip(&format!(
            "link add {TUNNEL} address {mac} type geneve id {VNI} remote {remote} dstport 6081 df {}",
            if plan.dont_fragment { "set" } else { "unset" }
        ));
        if kernel.is_err() {
            self.namespace.ip(&format!(
                "link add {TUNNEL} address {mac} type veth peer name {TUNNEL}p"
            ))?;
            // The outer headers must fit the IP length field, too.
            self.namespace
                .ip(&format!("link set {TUNNEL} gso_max_size 60000"))?;
            run(self
                .namespace
                .command("ethtool")
                .args(["-K", TUNNEL, "gro", "on"]))?;
            // As large as any packet that is to be wrapped.
            self.namespace
                .ip(&format!("link set {TUNNEL}p mtu 9216 up"))?;
            let pins = self.folder.join("lab-bpf");
            nix::mount::mount(
                Some("bpffs"),
                &pins,
                Some("bpf"),
                nix::mount::MsFlags::empty(),
                None::<&str>,
            )?;
            let local = self.outer;
            self.geneve = Some(self.namespace.within(|| {
                Fixture::new(
                    &format!("{TUNNEL}p"),
                    WIRE,
                    local,
                    remote,
                    plan.dont_fragment,
                    &pins,
                )
            })?);
        }
        self.namespace
            .ip(&format!("link set {TUNNEL} mtu {} up", plan.inner_mtu))?;
        self.namespace
            .ip(&format!("address add {}/24 dev {TUNNEL}", self.inner))?;
        self.namespace.ip(&format!(
            "neigh add 10.99.0.{} lladdr {} dev {TUNNEL}",
            other + 1,
            inner_mac(other)
        ))?;
        Ok(kernel.is_ok())
    }

    /// Asks the datapath.
    ///
    /// # Errors
    /// It does not answer.
    pub fn datapath_status(&self) -> Result<DatapathStatus> {
        datapath_status(&self.folder)
    }

    /// Asks the key manager.
    ///
    /// # Errors
    /// It does not answer.
    pub fn keymgr_status(&self) -> Result<KeymgrStatus> {
        keymgr_status(&self.folder)
    }

    /// Asks the key manager for anything, without a process.
    ///
    /// # Errors
    /// It does not answer.
    pub fn ask_keymgr(&self, request: &KeymgrRequest) -> Result<KeymgrReply> {
        let mut channel = Channel::connect(&self.folder.join(KEYMGR_SOCKET), "culvert-keymgr")?;
        channel.greet::<KeymgrRequest, KeymgrReply>("culvert-tests")?;
        channel.send(request)?;
        Ok(channel.answer()?)
    }

    /// Process id of the datapath.
    #[must_use]
    pub fn datapath_pid(&self) -> Option<u32> {
        self.datapath.as_ref().map(Child::id)
    }
}

/// Asks the datapath whose run directory that is.
///
/// # Errors
/// It does not answer.
pub fn datapath_status(run: &Path) -> Result<DatapathStatus> {
    let mut channel = Channel::connect(&run.join(DATAPATH_SOCKET), "culvert-datapath")?;
    channel.greet::<DatapathRequest, DatapathReply>("culvert-tests")?;
    channel.send(&DatapathRequest::Status)?;
    match channel.answer()? {
        DatapathReply::Status(status) => Ok(*status),
        other => bail!("unexpected answer {other:?}"),
    }
}

/// Asks the key manager whose run directory that is.
///
/// # Errors
/// It does not answer.
pub fn keymgr_status(run: &Path) -> Result<KeymgrStatus> {
    let mut channel = Channel::connect(&run.join(KEYMGR_SOCKET), "culvert-keymgr")?;
    channel.greet::<KeymgrRequest, KeymgrReply>("culvert-tests")?;
    channel.send(&KeymgrRequest::Status)?;
    match channel.answer()? {
        KeymgrReply::Status(status) => Ok(*status),
        other => bail!("unexpected answer {other:?}"),
    }
}

/// A program of this workspace, beside this one or a folder above it.
///
/// # Errors
/// It is not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    here.ancestors()
        .skip(1)
        .take(3)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built; run `./dev build`"))
}

/// Why there can be no lab here, if so.
#[must_use]
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root, for namespaces and eBPF".to_owned());
    }
    [
        "ip", "nft", "ethtool", "iperf3", "ping", "tcpdump", "sysctl",
    ]
    .into_iter()
    // What it makes of the argument does not matter.
    .find(|program| Command::new(program).arg("--version").output().is_err())
    .map(|program| format!("there is no {program}"))
}

/// A command of `culvert` for one side.
///
/// # Errors
/// It is not built.
pub fn culvert(side: &Side, arguments: &[&str]) -> Result<Command> {
    let mut command = side.namespace.command(program("culvert")?);
    command.arg("--run-dir").arg(&side.folder).args(arguments);
    Ok(command)
}

fn outer_mac(number: usize) -> String {
    format!("02:00:00:00:01:{number:02x}")
}

fn inner_mac(number: usize) -> String {
    format!("02:00:00:00:02:{number:02x}")
}

/// The end of a log, for error texts.
#[must_use]
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(20)..].join("\n");
    format!("{}:\n{last}", log.display())
}
