#!/usr/bin/env python3
"""scapy on the wire of the lab.

wire.py decrypt CIPHER ESN SPI KEY SEALED CLEAR     the frames of one capture decrypt to those of the other, which are
                                                    Geneve with a ping in it
wire.py inject CIPHER ESN SPI KEY FROM TO INTERFACE
                                                    sends one sealed Geneve packet, the same again, and a forged one
"""

import sys

from common import Sa
from scapy.all import ICMP, IP, UDP, Ether, IPv6, Raw, raw, rdpcap, sendp
from scapy.layers.ipsec import ESP

VNI = 77


def decrypt(cipher, esn, spi, key, sealed, clear):
    sa = Sa(cipher, esn, spi, key)
    frames = rdpcap(clear)
    opened = [sa.open(frame, frame[ESP].seq) for frame in rdpcap(sealed)]
    assert opened == [raw(frame) for frame in frames], "the frames differ from those that were sent"
    for frame in frames:
        assert frame[UDP].dport == 6081, frame.summary()
        tunnel = raw(frame[UDP].payload)
        assert tunnel[:4] == bytes.fromhex("00006558"), tunnel[:4].hex()
        assert int.from_bytes(tunnel[4:7], "big") == VNI
        inner = Ether(tunnel[8:])
        assert inner[IP].src == "10.99.0.1" and inner[ICMP].type == 8, inner.summary()
        assert len(raw(inner[ICMP].payload)) == 56
    print(f"{len(frames)} packets decrypted")


def inject(cipher, esn, spi, key, source, destination, interface):
    inner = (
        Ether(src="02:00:00:00:02:00", dst="02:00:00:00:02:01")
        / IP(src="10.99.0.1", dst="10.99.0.2")
        / UDP(sport=9998, dport=9999)
        / Raw(b"sealed by scapy")
    )
    geneve = bytes.fromhex("00006558") + (VNI << 8).to_bytes(4, "big") + raw(inner)
    outer = IPv6(src=source, dst=destination) if ":" in source else IP(src=source, dst=destination)
    ethernet = Ether(src="02:00:00:00:01:00", dst="02:00:00:00:01:01")
    packet = Ether(raw(ethernet / outer / UDP(sport=50000, dport=6081, chksum=0) / Raw(geneve)))
    sa = Sa(cipher, esn, spi, key)
    frame = sa.seal(packet, 1000)
    forged = bytearray(sa.seal(packet, 1001))
    forged[-1] ^= 1
    for one in (frame, frame, bytes(forged)):
        sendp(Ether(one), iface=interface, verbose=False)


def main():
    what, cipher, esn, spi, key, *rest = sys.argv[1:]
    {"decrypt": decrypt, "inject": inject}[what](cipher, esn == "1", int(spi), bytes.fromhex(key), *rest)


main()
