#!/usr/bin/env python3
"""captures.py CULVERT SEED: `culvert pcap` and scapy must agree, both ways.

Ciphers × ESN × IPv4/IPv6 × sizes, and with ESN also across the edge of 2^32: what Culvert seals, scapy
opens to the same bytes; what scapy seals, Culvert opens to the same bytes.
"""

import json
import os
import random
import subprocess
import sys
import tempfile

from common import CIPHERS, association
from scapy.all import IP, UDP, Ether, IPv6, Raw, raw, rdpcap, wrpcap
from scapy.layers.ipsec import ESP

SPI = 0x1001
SIZES = [0, 1, 2, 3, 4, 63, 64, 500, 1300, 1400, 8900]
ETHERNET = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}


def configuration(folder, direction, cipher, key, esn, source, destination):
    local, remote = (source, destination) if direction == "out" else (destination, source)
    spis = f"out = {SPI}" if direction == "out" else f"in = [{SPI}]"
    path = os.path.join(folder, f"{direction}.toml")
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        file.write(f"""
[[sa]]
direction = "{direction}"
spi = {SPI}
source = "{source}"
destination = "{destination}"
cipher = "{cipher}"
key = "{key.hex()}"
esn = {"true" if esn else "false"}
[[policy]]
local = "{local}"
remote = "{remote}"
{spis}
""")
    return path


def culvert(program, task, config, frames, first, folder):
    """The frames that `culvert pcap` makes of `frames`."""
    before, after = os.path.join(folder, "in.pcap"), os.path.join(folder, "out.pcap")
    wrpcap(before, frames)
    command = [program, "pcap", task, "--config", config, "--in", before, "--out", after]
    result = subprocess.run(
        [*command, "--first-sequence", str(first), "--json"], capture_output=True, text=True
    )
    assert result.returncode == 0, (task, result.stdout, result.stderr)
    assert json.loads(result.stdout)["written"] == len(frames), result.stdout
    return rdpcap(after)


def clear_frames(rng, source, destination):
    frames = []
    for size in SIZES:
        if ":" in source:
            ip = IPv6(src=source, dst=destination, tc=rng.randrange(256), fl=rng.randrange(1 << 20))
        else:
            ip = IP(src=source, dst=destination, tos=rng.randrange(256), id=rng.randrange(65536), flags="DF")
        ip.payload = UDP(sport=rng.randrange(49152, 65536), dport=6081, chksum=0) / Raw(rng.randbytes(size))
        frames.append(Ether(raw(Ether(**ETHERNET) / ip)))
    return frames


def network(frame):
    return frame[IPv6] if IPv6 in frame else frame[IP]


def agree(program, rng, cipher, esn, v6, first, folder):
    """Number of packets on which both agree, in both ways."""
    key = rng.randbytes(CIPHERS[cipher][1] + 4)
    source, destination = ("2001:db8::1", "2001:db8::2") if v6 else ("192.0.2.1", "192.0.2.2")
    frames = clear_frames(rng, source, destination)

    config = configuration(folder, "out", cipher, key, esn, source, destination)
    for number, (sealed, clear) in enumerate(zip(culvert(program, "seal", config, frames, first, folder), frames), first):
        high = number >> 32
        assert (sealed[ESP].spi, sealed[ESP].seq) == (SPI, number & 0xFFFFFFFF)
        opened = association(cipher, esn, SPI, key, high).decrypt(network(sealed).copy(), esn_en=esn, esn=high)
        assert raw(opened) == raw(network(clear)), (raw(opened).hex(), raw(network(clear)).hex())

    sealed = []
    for number, clear in enumerate(frames, first):
        high = number >> 32
        sa = association(cipher, esn, SPI, key, high)
        sa.seq_num = number & 0xFFFFFFFF
        sealed.append(Ether(**ETHERNET) / sa.encrypt(network(clear).copy(), iv=rng.randbytes(8), esn_en=esn, esn=high))
    config = configuration(folder, "in", cipher, key, esn, source, destination)
    for opened, clear in zip(culvert(program, "open", config, sealed, first, folder), frames):
        assert raw(opened) == raw(clear), (raw(opened).hex(), raw(clear).hex())
    return 2 * len(frames)


def main():
    program, seed = sys.argv[1:]
    rng = random.Random(int(seed))
    count = 0
    for cipher in CIPHERS:
        for esn in (False, True):
            for v6 in (False, True):
                for first in (1, 0xFFFFFFFD) if esn else (1,):
                    with tempfile.TemporaryDirectory() as folder:
                        count += agree(program, rng, cipher, esn, v6, first, folder)
    print(f"scapy and Culvert agree on {count} packets (seed {seed})")


main()
