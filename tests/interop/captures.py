#!/usr/bin/env python3
"""captures.py CULVERT SEED: `culvert pcap` and scapy must agree, byte for byte, both ways.

Ciphers × ESN × IPv4/IPv6 × in UDP or not × sizes, and with ESN across the edge of 2^32: what Culvert seals,
scapy opens to the same bytes, and seals to the same bytes; what scapy seals, Culvert opens to the same bytes.
"""

import itertools
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import CIPHERS, Sa
from scapy.layers.inet import IP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop, PadN
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils import rdpcap, wrpcap

SPI = 0x1001
ADDRESSES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
# Bytes of inner frame: every padding length, round sizes, about the largest that IPv4 can carry sealed.
SIZES = [0, 1, 2, 3, 4, 46, 60, 61, 62, 63, 64, 128, 512, 1400, 1401, 1402, 8900, 65_400]


@dataclass
class Way:
    """One combination of what an SA can be."""

    cipher: str
    esn: bool
    version: int
    encapsulated: bool


def all_ways():
    for values in itertools.product(CIPHERS, (False, True), (4, 6), (False, True)):
        yield Way(*values)


def geneve(way, size, rng):
    """A Geneve frame as a hypervisor's stack makes it: now and then with a VLAN tag, options, no checksum."""
    source, destination = ADDRESSES[way.version]
    frame = Ether(src="02:00:00:00:01:00", dst="02:00:00:00:01:01")
    if rng.random() < 0.2:
        frame /= Dot1Q(vlan=rng.randrange(1, 4095))
    if way.version == 4:
        options = [IPOption_NOP()] * 4 if rng.random() < 0.2 else []
        frame /= IP(
            src=source, dst=destination, id=rng.randrange(1 << 16), tos=rng.randrange(256),
            ttl=rng.randrange(1, 256), flags=rng.choice(["DF", 0]), options=options,
        )
    else:
        frame /= IPv6(
            src=source, dst=destination, tc=rng.randrange(256), fl=rng.randrange(1 << 20),
            hlim=rng.randrange(1, 256),
        )
        # (In UDP, scapy gets the extension header's next header wrong.)
        if rng.random() < 0.2 and not way.encapsulated:
            frame /= IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])
    frame /= UDP(sport=rng.randrange(49152, 65536), dport=6081)
    if rng.random() < 0.5:
        frame[UDP].chksum = 0
    # Geneve (RFC 8926): version 0, now and then an option of 4 bytes, Ethernet within, VNI.
    option = rng.random() < 0.3
    header = bytes([int(option), 0, 0x65, 0x58]) + rng.randbytes(3) + b"\0"
    if option:
        header += bytes([0x01, 0x02, 0x80, 0x00])
    frame /= Raw(header + rng.randbytes(size))
    return Ether(bytes(frame))


def configuration(direction, way, key):
    """The SA and its policy as culvert-keymgr takes them, of the sender or of the receiver."""
    source, destination = ADDRESSES[way.version]
    local, remote = (source, destination) if direction == "out" else (destination, source)
    name = f"out = {SPI:#x}" if direction == "out" else f"in = [{SPI:#x}]"
    encapsulation = ""
    if way.encapsulated:
        encapsulation = "encapsulation = { source_port = 4500, destination_port = 4500 }"
    return f"""
[[sa]]
direction = "{direction}"
spi = {SPI:#x}
source = "{source}"
destination = "{destination}"
cipher = "{way.cipher}"
key = "{key.hex()}"
esn = {str(way.esn).lower()}
{encapsulation}

[[policy]]
local = "{local}"
remote = "{remote}"
{name}
"""


class Culvert:
    """`culvert pcap` in a folder."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder

    def run(self, task, config, frames, first):
        config_file = self.folder / "keymgr.toml"
        config_file.unlink(missing_ok=True)
        config_file.touch(mode=0o600)
        config_file.write_text(config)
        source, sink = self.folder / "in.pcap", self.folder / "out.pcap"
        wrpcap(str(source), frames)
        command = [self.program, "pcap", task, "--config", config_file, "--in", source, "--out", sink]
        result = subprocess.run(
            [*command, "--first-sequence", str(first)], capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, f"{task}: {result.stdout}{result.stderr}"
        return [bytes(packet) for packet in rdpcap(str(sink))]


def same(what, way, got, wanted):
    """Ends the test unless the frames are the same."""
    assert len(got) == len(wanted), f"{way}: {what}: {len(got)} frames came out of {len(wanted)}"
    for number, (one, other) in enumerate(zip(got, wanted)):
        assert one == other, f"{way}: {what}: frame {number}\n got    {one.hex()}\n wanted {other.hex()}"


def agree(way, culvert, rng):
    """Number of packets on which both agree, in both ways."""
    key = rng.randbytes(CIPHERS[way.cipher][1] + 4)
    # With ESN, over the point where the lower half begins anew.
    first = (1 << 32) - len(SIZES) // 2 if way.esn else rng.randrange(1, 1 << 31)
    plain = [geneve(way, size, rng) for size in SIZES]
    wanted = [bytes(frame) for frame in plain]
    sa = Sa(way.cipher, way.esn, SPI, key, way.encapsulated)

    sealed = culvert.run("seal", configuration("out", way, key), plain, first)
    opened = [sa.open(Ether(frame), number) for number, frame in enumerate(sealed, first)]
    same("scapy opens what Culvert sealed", way, opened, wanted)
    # With the IV that Culvert chose there is one right answer, and scapy must give the same.
    again = [
        sa.seal(frame, number, iv=sa.iv_of(Ether(mine)))
        for number, (frame, mine) in enumerate(zip(plain, sealed), first)
    ]
    same("both seal alike", way, sealed, again)

    sealed = [Ether(sa.seal(frame, number, iv=rng.randbytes(8))) for number, frame in enumerate(plain, first)]
    opened = culvert.run("open", configuration("in", way, key), sealed, first)
    same("Culvert opens what scapy sealed", way, opened, wanted)
    return 2 * len(wanted)


def main():
    program, seed = sys.argv[1:]
    rng = random.Random(int(seed))
    with tempfile.TemporaryDirectory() as folder:
        culvert = Culvert(program, Path(folder))
        count = sum(agree(way, culvert, rng) for way in all_ways())
    print(f"scapy and Culvert agree on {count} packets (seed {seed})")


main()
