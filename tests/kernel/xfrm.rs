//! The kernel's IPsec in a namespace, by `ip xfrm`.

use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use culvert_keymgr::spi::kernel_has;
use culvert_proto::sa::Spi;
use culvert_tests::keys::{Generation, write_private};
use culvert_tests::lab::Lab;
use culvert_tests::netns::{Home, Namespace};
use nix::sys::socket::setsockopt;
use nix::{libc, setsockopt_impl, sockopt_impl};

/// What the kernel calls a cipher.
#[derive(Clone, Copy)]
pub(crate) struct Algorithm {
    /// Name of the AEAD.
    pub(crate) name: &'static str,
    /// Length of the ICV in bits.
    pub(crate) icv_bits: u32,
}

/// The kernel's IPsec of side b, which protects what Culvert does: UDP to port 6081.
pub(crate) struct Xfrm {
    namespace: Namespace,
    outer: [IpAddr; 2],
    batch: PathBuf,
    /// The kernel takes ESP in UDP only from a socket that asks for it, as IKE daemons do.
    _encapsulation: UdpSocket,
}

/// `UDP_ENCAP_ESPINUDP` of linux/udp.h.
const ESP_IN_UDP: i32 = 2;

sockopt_impl!(
    /// Gives the kernel the ESP in what a UDP socket receives (udp(7), RFC 3948).
    UdpEncap,
    SetOnly,
    libc::SOL_UDP,
    libc::UDP_ENCAP,
    i32
);

impl Xfrm {
    /// Policies without SAs: until there are some, nothing goes.
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        let (side, outer) = (&lab.sides[1], lab.outer());
        let encapsulation = side.namespace.within(|| {
            let socket = UdpSocket::bind((side.outer, 4500))?;
            setsockopt(&socket, UdpEncap, &ESP_IN_UDP)?;
            Ok(socket)
        })?;
        let this = Self {
            namespace: side.namespace.clone(),
            outer,
            batch: side.folder.join("xfrm"),
            _encapsulation: encapsulation,
        };
        let policy = |direction, from, to| {
            format!(
                "xfrm policy add src {from} dst {to} proto udp dport 6081 dir {direction} \
                 tmpl src {from} dst {to} proto esp reqid 1 mode transport\n"
            )
        };
        let [a, b] = outer;
        this.ip(&(policy("out", b, a) + &policy("in", a, b)))?;
        Ok(this)
    }

    /// Replaces the SAs. The outbound one's next number is the one behind `sequence`, which may only grow under a key.
    pub(crate) fn install(
        &self,
        keys: &Generation,
        algorithm: Algorithm,
        sequence: u32,
    ) -> Result<()> {
        let mut lines = "xfrm state flush\n".to_owned();
        for way in 0..2 {
            lines += &self.state(keys, algorithm, sequence, way);
        }
        self.ip(&lines)
    }

    /// Goes over to accepting under all `generations` and sending under the one at `out`. `installed` is what there is by
    /// now: SPI and way of each SA, which go on as they are. Of two outbound ones the kernel takes the new one.
    pub(crate) fn change(
        &self,
        installed: &mut Vec<(u32, usize)>,
        generations: &[&Generation],
        out: usize,
        algorithm: Algorithm,
    ) -> Result<()> {
        let mut lines = String::new();
        let mut wanted = Vec::new();
        for (number, keys) in generations.iter().enumerate() {
            for way in 0..2 {
                let sa = (keys.spis[way], way);
                if way == 1 && number != out {
                    continue;
                }
                if !installed.contains(&sa) {
                    lines += &self.state(keys, algorithm, 0, way);
                }
                wanted.push(sa);
            }
        }
        for &(spi, way) in installed.iter().filter(|sa| !wanted.contains(sa)) {
            let (from, to) = (self.outer[way], self.outer[1 - way]);
            lines += &format!("xfrm state delete src {from} dst {to} proto esp spi {spi:#x}\n");
        }
        *installed = wanted;
        if lines.is_empty() {
            return Ok(());
        }
        self.ip(&lines)
    }

    /// The line that adds an SA of a direction.
    fn state(&self, keys: &Generation, algorithm: Algorithm, sequence: u32, way: usize) -> String {
        let Algorithm { name, icv_bits } = algorithm;
        let (from, to) = (self.outer[way], self.outer[1 - way]);
        let (spi, key) = (keys.spis[way], &keys.keys[way]);
        // Two CPUs overtake each other in the kernel by more than the usual 32.
        let mut line = format!(
            "xfrm state add src {from} dst {to} proto esp spi {spi:#x} reqid 1 mode transport \
             replay-window 1024"
        );
        if keys.esn {
            line += " flag esn";
        }
        if way == 1 {
            line += &format!(" replay-oseq {sequence}");
        }
        line += &format!(" aead {name} 0x{key} {icv_bits}");
        if keys.encapsulated {
            let any = if from.is_ipv6() { "::" } else { "0.0.0.0" };
            line += &format!(" encap espinudp 4500 4500 {any}");
        }
        line + "\n"
    }

    /// `ip` with each of `lines`, which may have keys in them.
    fn ip(&self, lines: &str) -> Result<()> {
        write_private(&self.batch, lines)?;
        let batch = self.batch.display();
        self.namespace.ip(&format!("-batch {batch}")).map(drop)
    }

    /// What the kernel has counted as errors: name and number.
    pub(crate) fn errors(&self) -> Result<Vec<(String, u64)>> {
        let text = self
            .namespace
            .within(|| Ok(std::fs::read_to_string("/proc/thread-self/net/xfrm_stat")?))?;
        let counters = text
            .lines()
            .map(|line| {
                let (name, count) = line.split_once(char::is_whitespace).context("a counter")?;
                Ok((name.to_owned(), count.trim().parse()?))
            })
            .collect::<Result<Vec<(String, u64)>>>()
            .context("xfrm_stat")?;
        ensure!(counters.len() > 20, "xfrm_stat has only {counters:?}");
        Ok(counters
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect())
    }

    /// Packets that each of two SAs has sealed or opened.
    pub(crate) fn packets(&self, spis: [u32; 2]) -> Result<[u64; 2]> {
        let text = self.namespace.ip("-s xfrm state")?;
        let of = |spi: u32| -> Option<u64> {
            let (_, state) = text.split_once(&format!("spi {spi:#010x}"))?;
            let (_, current) = state.split_once("lifetime current:")?;
            let (_, packets) = current.split_once("(bytes), ")?;
            packets.split('(').next()?.parse().ok()
        };
        match spis.map(of) {
            [Some(first), Some(second)] => Ok([first, second]),
            _ => bail!("no counters of the SAs {spis:#x?} in {text}"),
        }
    }
}

/// SPIs that the kernel has are not given out.
pub(crate) fn an_spi_of_the_kernel_is_seen() -> Result<()> {
    let home = Home::new(false)?;
    let namespace = Namespace::new(home.name("-k"))?;
    for (destination, source) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
        namespace.ip(&format!(
            "xfrm state add src {source} dst {destination} proto esp spi 0xc0001001 mode transport aead \
             rfc4106(gcm(aes)) 0x{} 128",
            "11".repeat(20)
        ))?;
        let destination: IpAddr = destination.parse()?;
        let has = |spi: u32| namespace.within(|| Ok(kernel_has(destination, Spi::new(spi)?)));
        ensure!(
            has(0xc000_1001)?,
            "{destination}: the kernel's SA is not seen"
        );
        ensure!(!has(0xc000_1002)?, "{destination}: there is no such SA");
    }
    Ok(())
}
