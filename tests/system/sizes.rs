//! Packets that the wire does not take once they are sealed.

use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_tests::lab::{Lab, Plan};
use culvert_tests::load;
use culvert_tests::netns::{run, wait_for};
use culvert_tests::wire::{Capture, take_counts};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    (
        "the_stack_learns_the_mtu_that_is_left",
        the_stack_learns_the_mtu_that_is_left,
    ),
    (
        "tcp_goes_on_where_sealed_packets_do_not_fit",
        tcp_goes_on_where_sealed_packets_do_not_fit,
    ),
];

/// MTUs of the wire.
const MTUS: [u32; 4] = [1400, 1500, 3000, 9000];

/// A datagram that fits the wire in clear, but not sealed, and may not be fragmented: whoever sent it is told what
/// would fit, by the kernel, which had it from Culvert.
fn the_stack_learns_the_mtu_that_is_left() -> Result<()> {
    const SEND: &str = "import errno, socket, sys, time\n\
        address, size = sys.argv[1], int(sys.argv[2])\n\
        v6 = ':' in address\n\
        s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)\n\
        s.connect((address, 6081))\n\
        level, discover, mtu = (41, 23, 24) if v6 else (0, 10, 14)\n\
        s.setsockopt(level, discover, 2)\n\
        s.send(bytes(size))\n\
        until = time.time() + 3\n\
        while s.getsockopt(level, mtu) > size and time.time() < until:\n    \
            time.sleep(0.01)\n\
        left = s.getsockopt(level, mtu)\n\
        print(left)\n\
        s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)\n\
        try:\n    \
            s.send(bytes(size))\n    \
            print('taken')\n\
        except OSError as error:\n    \
            print(errno.errorcode[error.errno])\n\
        s.send(bytes(left - (48 if v6 else 28)))\n";
    // RFC 4303 §3.3.4 [3.3.4-pmtu]
    for mtu in MTUS {
        for ipv6 in [false, true] {
            let plan = Plan {
                mtu,
                ipv6,
                inner_mtu: 1280,
                ..Plan::default()
            };
            let mut lab = Lab::new(plan)?;
            lab.start_culvert()?;
            let [a, b] = &lab.sides;
            take_counts(&lab.underlay)?;
            let header = if ipv6 { 40 } else { 20 };
            let said = run(a
                .namespace
                .command("python3")
                .args(["-c", SEND, &b.outer.to_string()])
                .arg((mtu - header - 8).to_string()))?;
            // ESP header, IV and ICV; what is encrypted fills words, and ends with two bytes.
            let left = header + (mtu - header - 8 - 8 - 16) / 4 * 4 - 2;
            ensure!(
                said == format!("{left}\nEMSGSIZE\n"),
                "MTU {mtu}, IPv6 {ipv6}: {left} is left, the kernel says {said}"
            );
            // The last one may be on its way still.
            wait_for("a sealed packet", Duration::from_secs(2), || {
                b.datapath_status()
                    .is_ok_and(|status| status.workers[0].opened > 0)
            })?;
            let counts = take_counts(&lab.underlay)?;
            ensure!(
                counts.esp.packets == 1 && counts.plaintext_geneve.packets == 0,
                "only the last one fits: {counts:?}"
            );
            let drops = a.datapath_status()?.drops;
            ensure!(drops["too_large"] == 1, "{drops:?}");
        }
    }
    Ok(())
}

/// Where fragments are allowed, Geneve that just fits the wire goes in two fragments of ESP.
fn tcp_goes_on_where_sealed_packets_do_not_fit() -> Result<()> {
    // RFC 4303 §3.3.4 [3.3.4-fragment-after, 3.3.4-reassembled-before]
    for mtu in MTUS {
        let plan = Plan {
            mtu,
            // IPv4, UDP, Geneve and the inner Ethernet header.
            inner_mtu: mtu - 20 - 8 - 8 - 14,
            dont_fragment: false,
            ..Plan::default()
        };
        let mut lab = Lab::new(plan)?;
        lab.start_culvert()?;
        take_counts(&lab.underlay)?;
        let throughput = load::iperf(&lab, 1)?;
        ensure!(throughput.gbit_per_s > 0.01, "MTU {mtu}: {throughput:?}");
        let counts = take_counts(&lab.underlay)?;
        ensure!(
            counts.plaintext_geneve.packets == 0 && counts.esp.packets > 100,
            "MTU {mtu}: {counts:?}"
        );
        let capture = Capture::start(&lab.home, &lab.underlay, "a0", 64)?;
        let ping = load::ping_of(&lab, 3, mtu - 50 - 28)?;
        ensure!(ping.received == 3, "MTU {mtu}: {ping:?}");
        let frames = capture.finish()?;
        let fragments = frames.iter().filter(|frame| frame[20] & 0x20 != 0).count();
        ensure!(
            (fragments, frames.len()) == (3, 6),
            "MTU {mtu}: {fragments} first fragments among {}",
            frames.len()
        );
        for side in &lab.sides {
            let drops = side.datapath_status()?.drops;
            let lost: Vec<_> = drops
                .iter()
                .filter(|(name, count)| name.starts_with("fragment") && **count > 0)
                .collect();
            // A ring that is full loses one fragment of two.
            let full = drops["rx_overflow"] + drops["tx_ring_full"] > 0;
            ensure!(lost.is_empty() || full, "MTU {mtu}: {drops:?}");
        }
    }
    Ok(())
}
