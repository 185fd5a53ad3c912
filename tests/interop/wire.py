#!/usr/bin/env python3
"""scapy on the wire of the lab.

wire.py decrypt CIPHER ESN SPI KEY PCAP             every ESP packet of the capture decrypts to Geneve with a ping in it
wire.py inject CIPHER ESN SPI KEY FROM TO INTERFACE  sends one sealed Geneve packet, the same again, and a forged one
"""

import sys

from common import association, from_hex
from scapy.all import ICMP, IP, UDP, Ether, IPv6, Raw, raw, rdpcap, sendp
from scapy.layers.ipsec import ESP

VNI = 77


def decrypt(cipher, esn, spi, key, capture):
    count = 0
    for frame in rdpcap(capture):
        if ESP not in frame:
            continue
        outer = frame[IPv6] if IPv6 in frame else frame[IP]
        sa = association(cipher, esn, spi, key)
        clear = sa.decrypt(outer.copy(), esn_en=esn, esn=0)
        assert clear[UDP].dport == 6081, clear.summary()
        tunnel = raw(clear[UDP].payload)
        assert tunnel[:4] == bytes.fromhex("00006558"), tunnel[:4].hex()
        assert int.from_bytes(tunnel[4:7], "big") == VNI
        inner = Ether(tunnel[8:])
        assert inner[IP].src == "10.99.0.1" and inner[ICMP].type == 8, inner.summary()
        assert len(raw(inner[ICMP].payload)) == 56
        count += 1
    assert count >= 5, f"only {count} ESP packets"
    print(f"{count} packets decrypted")


def inject(cipher, esn, spi, key, source, destination, interface):
    inner = (
        Ether(src="02:00:00:00:02:00", dst="02:00:00:00:02:01")
        / IP(src="10.99.0.1", dst="10.99.0.2")
        / UDP(sport=9998, dport=9999)
        / Raw(b"sealed by scapy")
    )
    geneve = bytes.fromhex("00006558") + (VNI << 8).to_bytes(4, "big") + raw(inner)
    outer = IPv6(src=source, dst=destination) if ":" in source else IP(src=source, dst=destination)
    packet = outer / UDP(sport=50000, dport=6081, chksum=0) / Raw(geneve)
    sa = association(cipher, esn, spi, key)
    sa.seq_num = 1000
    sealed = sa.encrypt(outer.__class__(raw(packet)), esn_en=esn, esn=0)
    frame = raw(Ether(src="02:00:00:00:01:00", dst="02:00:00:00:01:01") / sealed)
    sa.seq_num = 1001
    forged = bytearray(raw(Ether(frame[:14]) / sa.encrypt(outer.__class__(raw(packet)), esn_en=esn, esn=0)))
    forged[-1] ^= 1
    for one in (frame, frame, bytes(forged)):
        sendp(Ether(one), iface=interface, verbose=False)


def main():
    what, cipher, esn, spi, key, *rest = sys.argv[1:]
    {"decrypt": decrypt, "inject": inject}[what](cipher, esn == "1", int(spi), from_hex(key), *rest)


main()
