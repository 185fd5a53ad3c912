#!/usr/bin/env python3
"""scapy on the wire of the lab.

wire.py decrypt CIPHER ESN SPI KEY SEALED CLEAR     the frames of one capture decrypt to those of the other, which are
                                                    Geneve with a ping in it
wire.py inject CIPHER ESN SPI KEY FROM TO INTERFACE
                                                    sends one sealed Geneve packet, the same again, and a forged one
wire.py forge CIPHER ESN SPI KEY FROM TO INTERFACE  sends one good packet, number 3000, and one or two of everything that
                                                    must be dropped; 3002 is the highest number that authenticates
"""

import sys

from common import Sa, in_frame
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
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


def geneve_frame(source, destination, port=6081):
    inner = (
        Ether(src="02:00:00:00:02:00", dst="02:00:00:00:02:01")
        / IP(src="10.99.0.1", dst="10.99.0.2")
        / UDP(sport=9998, dport=9999)
        / Raw(b"sealed by scapy")
    )
    geneve = bytes.fromhex("00006558") + (VNI << 8).to_bytes(4, "big") + raw(inner)
    outer = IPv6(src=source, dst=destination) if ":" in source else IP(src=source, dst=destination)
    ethernet = Ether(src="02:00:00:00:01:00", dst="02:00:00:00:01:01")
    return Ether(raw(ethernet / outer / UDP(sport=50000, dport=port, chksum=0) / Raw(geneve)))


def flipped(frame, at):
    changed = bytearray(frame)
    changed[at] ^= 1
    return bytes(changed)


def inject(cipher, esn, spi, key, source, destination, interface):
    packet = geneve_frame(source, destination)
    sa = Sa(cipher, esn, spi, key)
    frame = sa.seal(packet, 1000)
    for one in (frame, frame, flipped(sa.seal(packet, 1001), -1)):
        sendp(Ether(one), iface=interface, verbose=False)


def forge(cipher, esn, spi, key, source, destination, interface):
    assert cipher.startswith("aes") and not esn
    packet = geneve_frame(source, destination)
    sa = Sa(cipher, esn, spi, key)

    def bad_pad(number):
        """The padding is 7, 7 where it has to be 1, 2."""
        header, iv = spi.to_bytes(4, "big") + number.to_bytes(4, "big"), number.to_bytes(8, "big")
        text = raw(packet[UDP]) + bytes([7, 7, 2, 17])
        sealed = AESGCM(key[:-4]).encrypt(key[-4:] + iv, text, header)
        return in_frame(packet, IP(raw(IP(src=source, dst=destination, proto=50) / Raw(header + iv + sealed))))

    def other_spi(number):
        ip = IP(src=source, dst=destination, proto=50)
        return in_frame(packet, IP(raw(ip / Raw(number.to_bytes(4, "big") + bytes(60)))))

    def cut_off(number):
        """An ESP packet with no room for an ICV."""
        whole = Ether(sa.seal(packet, number))[IP]
        return in_frame(packet, IP(raw(IP(src=source, dst=destination, proto=50) / Raw(raw(whole.payload)[:30]))))

    good = sa.seal(packet, 3000)
    high = sa.seal(packet, 9000)
    frames = [
        good,
        good,
        flipped(high, -1),
        flipped(high, 60),
        sa.seal(packet, 3),
        cut_off(9000),
        other_spi(0),
        other_spi(255),
        bad_pad(3001),
        sa.seal(geneve_frame(source, destination, port=7000), 3002),
    ]
    for frame in frames:
        sendp(Ether(frame), iface=interface, verbose=False)


def main():
    what, cipher, esn, spi, key, *rest = sys.argv[1:]
    command = {"decrypt": decrypt, "inject": inject, "forge": forge}[what]
    command(cipher, esn == "1", int(spi), bytes.fromhex(key), *rest)


main()
