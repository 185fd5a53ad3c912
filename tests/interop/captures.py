#!/usr/bin/env python3
"""captures.py CULVERT SEED: `culvert pcap` and scapy must agree, byte for byte, both ways.

Every cipher × ESN × IPv4/IPv6 × in UDP or not, and for each: edge sizes and random ones, the headers and
options of frames.py, sequence numbers from anywhere, across the edge of 2^32 too, TFC padding. What Culvert
seals, scapy opens to the same bytes, and seals to the same bytes; what scapy seals, Culvert opens to the same bytes,
in any order, and nothing of what was damaged in between.
"""

import itertools
import json
import random
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import CIPHERS, Sa, at_ip, chain, packet_of, place
from frames import (
    ADDRESSES,
    LONGEST,
    behind_ethernet,
    damaged,
    geneve,
    with_padding,
    without_checksum,
    without_padding,
)
from scapy.utils import RawPcapWriter

# Bytes of inner frame: every padding length, round sizes, jumbo frames.
EDGES = [0, 1, 2, 3, 46, 60, 61, 62, 63, 64, 128, 1400, 1401, 8900, 9000]
# Frames each way and combination.
FRAMES = 20
ETHERNET = 1


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


class Case:
    """A way with its SA, from the generator: names what fails."""

    def __init__(self, way, rng):
        self.way = way
        self.key = rng.randbytes(CIPHERS[way.cipher][1] + 4)
        self.spi = rng.randrange(256, 1 << 32)
        # Behind NAT, one of the ports is another.
        other = rng.choice([4500, rng.randrange(49152, 65536)])
        self.ports = rng.sample([4500, other], 2) if way.encapsulated else None
        self.first = first_sequence(way.esn, rng)
        self.tfc = rng.choice([0, rng.randrange(1, 200), rng.randrange(1, 9500)])

    def __str__(self):
        return f"{self.way}, first sequence number {self.first:#x}, ports {self.ports}, tfc {self.tfc}"

    def sa(self):
        return Sa(self.way.cipher, self.way.esn, self.spi, self.key, self.ports)

    def configuration(self, direction):
        """The SA and its policy as culvert-keymgr takes them, of the sender or of the receiver."""
        source, destination = ADDRESSES[self.way.version]
        if direction == "out":
            local, remote, name = source, destination, f"out = {self.spi:#x}"
            more = f"tfc = {self.tfc}\n"
        else:
            local, remote, name = destination, source, f"in = [{self.spi:#x}]"
            more = ""
        if self.ports:
            source_port, destination_port = self.ports
            more += f"encapsulation = {{ source_port = {source_port}, destination_port = {destination_port} }}\n"
        return f"""
[[sa]]
direction = "{direction}"
spi = {self.spi:#x}
source = "{source}"
destination = "{destination}"
cipher = "{self.way.cipher}"
key = "{self.key.hex()}"
esn = {str(self.way.esn).lower()}
{more}
[[policy]]
local = "{local}"
remote = "{remote}"
{name}
"""

    def same(self, what, got, wanted):
        """Ends the test unless the frames are the same."""
        assert len(got) == len(wanted), f"{self}: {what}: {len(got)} frames came out of {len(wanted)}"
        for number, (one, other) in enumerate(zip(got, wanted)):
            if one != other:
                pairs = enumerate(zip(one, other))
                at = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
                raise AssertionError(
                    f"{self}: {what}: frame {number} differs from byte {at}\n"
                    f" got    {one[:2000].hex()}\n wanted {other[:2000].hex()}"
                )


def first_sequence(esn, rng):
    """Where a case's numbers start; all of them are used up, both ways."""
    count = 2 * FRAMES
    if not esn:
        return rng.choice([1, rng.randrange(1, (1 << 32) - count), (1 << 32) - count])
    # Across the point where the lower half begins anew, the first time or another. (From 2^51 on, Culvert's
    # window takes nothing more.)
    edge = rng.choice([1, 1, rng.randrange(1, 1 << 19)]) << 32
    return rng.choice([1, rng.randrange(1, 1 << 50), *[edge - rng.randrange(1, count)] * 3])


def captured(path):
    """The frames of a capture as Culvert writes them. (scapy reads no more than 65,535 bytes of each.)"""
    text = path.read_bytes()
    order = {"a1": ">", "4d": "<"}[text[:1].hex()]
    frames, at = [], 24
    while at < len(text):
        (length,) = struct.unpack_from(f"{order}L", text, at + 8)
        frames.append(text[at + 16 : at + 16 + length])
        at += 16 + length
    return frames


class Culvert:
    """`culvert pcap` in a folder."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder

    def run(self, task, case, frames, drops=0):
        """What comes out of the frames, of which so many are to be dropped."""
        config_file = self.folder / "keymgr.toml"
        config_file.unlink(missing_ok=True)
        config_file.touch(mode=0o600)
        config_file.write_text(case.configuration({"seal": "out", "open": "in"}[task]))
        source, sink = self.folder / "in.pcap", self.folder / "out.pcap"
        with RawPcapWriter(str(source), linktype=ETHERNET) as writer:
            for frame in frames:
                writer.write(frame)
        command = [self.program, "pcap", task, "--json", "--config", config_file, "--in", source, "--out", sink]
        result = subprocess.run(
            [*command, "--first-sequence", str(case.first)], capture_output=True, text=True, timeout=60
        )
        assert result.stdout, f"{case}: {task}: {result.stderr}"
        report = json.loads(result.stdout)
        dropped = report["drops"]
        assert (report["read"], sum(dropped.values())) == (len(frames), drops), f"{case}: {task}: {report}"
        return captured(sink)


def sizes(rng):
    """Of a run's frames: edges, random ones, and one that is as large as can be now and then."""
    edges = rng.sample(EDGES, 10)
    largest = [LONGEST] if rng.random() < 0.2 else []
    mixed = edges + largest
    return mixed + [rng.randrange(9001) for _ in range(FRAMES - len(mixed))]


def padded(frame, tfc):
    """The frame with TFC padding as Culvert makes it: what ESP covers has `tfc` bytes or more."""
    packet = packet_of(frame)
    headers = chain(packet)
    _, _, at = headers[place(headers)]
    return with_padding(frame, bytes(max(0, tfc - (len(packet) - at))))


def agree(way, culvert, rng):
    """Number of packets on which both agree, both ways, and of damaged ones that were refused."""
    # RFC 4303 [1-both, 1-integrity-only, 1-integrity-only-offered, 2-protocol-50, 2.2.1-esn, 2.3-alignment]
    # RFC 4303 [2.4-pad-bytes, 2.4-icv-aligned, 2.4-not-for-tfc, 2.7-tfc, 2.7-tfc-length, 2.7-tfc-controls]
    # RFC 4303 [3.1.1-after-ip-header, 3.1.1-after-extensions, 3.1.1-destination-options, 3.2.1-synchronization]
    # RFC 4303 [3.3-header-retained, 3.3.2.2-covered, 3.3.3-esn-halves, 3.4.3-integrity-discarded, 3.4.4.2-tfc]
    case = Case(way, rng)
    sa = case.sa()

    plain = [geneve(way.version, size, rng) for size in sizes(rng)]
    sealed = culvert.run("seal", case, [behind_ethernet(frame, rng) for frame in plain])
    assert len(sealed) == len(plain), f"{case}: {len(sealed)} frames sealed of {len(plain)}"
    opened = [sa.open(frame, number) for number, frame in enumerate(sealed, case.first)]
    wanted = [padded(frame, case.tfc) for frame in plain]
    case.same("scapy opens what Culvert sealed", opened, wanted)
    case.same("UDP tells where TFC padding starts", [without_padding(frame) for frame in opened], plain)
    # With the IV that Culvert chose there is one right answer, and scapy must give the same.
    again = [
        sa.seal(frame, number, iv=sa.iv_of(mine))
        for number, (frame, mine) in enumerate(zip(wanted, sealed), case.first)
    ]
    case.same("both seal alike", sealed, again)

    # What arrives: the frames that Culvert sealed, and others from scapy; what they are to be, or None.
    arriving = list(zip(sealed, plain))
    for number, size in enumerate(sizes(rng), case.first + len(plain)):
        frame = geneve(way.version, size, rng)
        sent = seal_somehow(sa, frame, number, rng)
        arriving.append((behind_ethernet(sent, rng), frame))
        if rng.random() < 0.6:
            start = at_ip(sent) + sa.at_esp(packet_of(sent))
            # (UDP in front of ESP is not protected: a NAT writes to it.)
            arriving.append((damaged(sent, start, rng), None))
    if rng.random() < 0.5:
        rng.shuffle(arriving)
    good = [frame for _, frame in arriving if frame]
    bad = len(arriving) - len(good)
    if way.encapsulated and way.version == 4:
        # RFC 3948 section 3.1.2: behind NAT the sum was made over other addresses; none is right.
        good = [without_checksum(frame) for frame in good]
    opened = culvert.run("open", case, [frame for frame, _ in arriving], drops=bad)
    case.same("Culvert opens what was sealed", opened, good)
    return len(good), bad


def seal_somehow(sa, frame, number, rng):
    """The frame, sealed as a peer may do it: TFC padding of any content, padding beyond what aligns, ESP behind
    destination options as scapy (and Linux) have it."""
    more = 0
    if len(frame) < LONGEST - 1000:
        if rng.random() < 0.2:
            frame = with_padding(frame, rng.randbytes(rng.randrange(1, 300)))
        if rng.random() < 0.2:
            more = 4 * rng.randrange(64)
    iv = rng.randbytes(sa.algo.iv_size)
    return sa.seal(frame, number, iv=iv, scapys_place=rng.random() < 0.5, more_padding=more)


def main():
    program, seed = sys.argv[1:]
    rng = random.Random(int(seed))
    with tempfile.TemporaryDirectory() as folder:
        culvert = Culvert(program, Path(folder))
        counts = [agree(way, culvert, rng) for way in all_ways()]
    count, bad = (sum(column) for column in zip(*counts))
    print(f"scapy and Culvert agree on {count} packets, and Culvert refuses {bad} damaged ones (seed {seed})")


main()
