"""What the scripts share: ESP as scapy does it, with Culvert's names, on frames that are bytes.

scapy seals and opens whole packets as far as it can. Over IPv6 it puts ESP behind destination options, where Linux
has it, and RFC 4303 section 3.1.1 before them ("normally"); with extension headers it goes wrong in UDP, and when it
opens. There, its ESP alone is used, and the headers around are made here.
"""

import struct

from cryptography.hazmat.primitives.ciphers import aead, algorithms, modes
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import CRYPT_ALGOS, ESP, CryptAlgo, SecurityAssociation, _ESPPlain
from scapy.utils import checksum

HOP_BY_HOP, UDP_PROTOCOL, ROUTING, ESP_PROTOCOL, DESTINATION_OPTIONS = 0, 17, 43, 50, 60
UDP_HEADER = ESP_HEADER = 8


def explicit(sa, iv, **_):
    """The nonce of RFC 4106 and RFC 7634."""
    return sa.crypt_salt + iv


def implicit(sa, iv, **_):
    """The nonce of RFC 8750: what would be the IV is the sequence number."""
    assert iv == b""
    return sa.crypt_salt + struct.pack("!LL", sa.esn, sa.seq_num)


# scapy has no AES-GCM with a shortened ICV of its own, and no implicit IVs; what it has for others makes them.
for icv in (8, 12):
    CRYPT_ALGOS[f"AES-GCM-{icv}"] = CryptAlgo(
        f"AES-GCM-{icv}", cipher=algorithms.AES, mode=modes.GCM, key_size=(16, 24, 32), salt_size=4,
        block_size=1, iv_size=8, icv_size=icv, format_mode_iv=explicit,
    )
for name, cipher, sizes in [
    ("AES-GCM-IIV", aead.AESGCM, (16, 24, 32)),
    ("CHACHA20-POLY1305-IIV", aead.ChaCha20Poly1305, (32,)),
]:
    CRYPT_ALGOS[name] = CryptAlgo(
        name, cipher=cipher, mode=None, key_size=sizes, salt_size=4, block_size=1, iv_size=0, icv_size=16,
        format_mode_iv=implicit,
    )

# Culvert's name: name in scapy, and length of the key without the salt.
CIPHERS = {
    f"aes{bits}{mode}": (name, bits // 8)
    for bits in (128, 192, 256)
    for mode, name in [
        ("gcm16", "AES-GCM"),
        ("gcm12", "AES-GCM-12"),
        ("gcm8", "AES-GCM-8"),
        ("gmac", "AES-NULL-GMAC"),
        ("gcm16iiv", "AES-GCM-IIV"),
    ]
} | {
    "chacha20poly1305": ("CHACHA20-POLY1305", 32),
    "chacha20poly1305iiv": ("CHACHA20-POLY1305-IIV", 32),
}


def at_ip(frame):
    """Where the IP header of a frame is, behind VLAN tags."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    return at + 2


def packet_of(frame):
    """The IP packet in a frame, without Ethernet's padding behind it."""
    at = at_ip(frame)
    if frame[at] >> 4 == 4:
        length = int.from_bytes(frame[at + 2 : at + 4], "big")
    else:
        length = 40 + int.from_bytes(frame[at + 4 : at + 6], "big")
    return frame[at : at + length]


def in_frame(frame, packet):
    """The bytes of a frame with another IP packet in it."""
    frame = bytes(frame)
    return frame[: at_ip(frame)] + bytes(packet)


def chain(packet):
    """Of each header behind the IP header, up to the first that is no extension header: its protocol, where that
    is named, and where it stands."""
    if packet[0] >> 4 == 4:
        return [(packet[9], 9, 4 * (packet[0] & 15))]
    found = [(packet[6], 6, 40)]
    while found[-1][0] in (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS):
        at = found[-1][2]
        found.append((packet[at], at, at + 8 + 8 * packet[at + 1]))
    return found


def place(headers):
    """Before which of these headers ESP goes: behind all that is read on the way, before destination options that
    are the receiver's (RFC 4303 section 3.1.1)."""
    behind = [number + 1 for number, (protocol, _, _) in enumerate(headers[:-1]) if protocol != DESTINATION_OPTIONS]
    return max(behind, default=0)


def place_in_scapy(headers):
    """Before which of these headers scapy puts ESP: before destination options only behind a routing header."""
    routed = False
    for number, (protocol, _, _) in enumerate(headers):
        if protocol == DESTINATION_OPTIONS and routed:
            return number
        routed |= protocol == ROUTING
    return len(headers) - 1


def made_of(head, named, protocol, payload):
    """An IP packet of headers, the place in them that names what follows, its protocol, and what follows."""
    head = bytearray(head)
    head[named] = protocol
    length = len(head) + len(payload)
    if head[0] >> 4 == 4:
        head[2:4] = length.to_bytes(2, "big")
        head[10:12] = bytes(2)
        head[10:12] = checksum(bytes(head[: 4 * (head[0] & 15)])).to_bytes(2, "big")
    else:
        head[4:6] = (length - 40).to_bytes(2, "big")
    return bytes(head) + payload


def datagram_v6(packet, ports, payload):
    """A UDP datagram with the checksum that IPv6 demands (RFC 8200 section 8.1)."""
    length = UDP_HEADER + len(payload)
    pseudo = packet[8:40] + struct.pack("!LL", length, UDP_PROTOCOL)
    header = struct.pack("!HHH", *ports, length)
    check = checksum(pseudo + header + bytes(2) + payload) or 0xFFFF
    return header + check.to_bytes(2, "big") + payload


class Sa:
    """One SA; `key` is key and salt, `ports` those of UDP encapsulation. Sequence numbers have 64 bits with ESN, 32
    without."""

    def __init__(self, cipher, esn, spi, key, ports=None):
        name, length = CIPHERS[cipher]
        assert len(key) == length + 4
        self.ports = ports
        udp = UDP(sport=ports[0], dport=ports[1]) if ports else None
        self.sa = SecurityAssociation(
            ESP, spi=spi, crypt_algo=name, crypt_key=key, esn_en=esn, nat_t_header=udp
        )
        self.algo = self.sa.crypt_algo

    def set_sequence(self, sequence):
        # Not as arguments: scapy takes a 0 there for none.
        self.sa.seq_num, self.sa.esn = sequence & 0xFFFF_FFFF, sequence >> 32

    def seal(self, frame, sequence, iv=None, scapys_place=False, more_padding=0):
        """The frame with its packet sealed: bytes. ESP goes where scapy has it if so asked. `more_padding`: bytes
        beyond those that align, a multiple of 4."""
        frame = bytes(frame)
        packet = packet_of(frame)
        self.set_sequence(sequence)
        headers = chain(packet)
        where = place(headers)
        as_scapy = scapys_place or where == place_in_scapy(headers)
        # In UDP over IPv6, scapy loses extension headers.
        whole = packet[0] >> 4 == 4 or not self.ports or len(headers) == 1
        if whole and as_scapy and not more_padding:
            return in_frame(frame, self.seal_whole(packet, iv))
        protocol, named, at = headers[place_in_scapy(headers) if scapys_place else where]
        plain = _ESPPlain(
            spi=self.sa.spi, seq=self.sa.seq_num, iv=self.algo.generate_iv() if iv is None else iv,
            data=packet[at:], nh=protocol,
        )
        self.algo.pad(plain)
        plain.padlen += more_padding
        plain.padding = bytes(range(1, plain.padlen + 1))
        esp = self.algo.encrypt(
            self.sa, plain, self.sa.crypt_key, esn_en=self.sa.esn_en, esn=self.sa.esn
        )
        sealed, protocol = bytes(esp), ESP_PROTOCOL
        if self.ports:
            protocol = UDP_PROTOCOL
            if packet[0] >> 4 == 6:
                sealed = datagram_v6(packet, self.ports, sealed)
            else:
                sealed = struct.pack("!HHHH", *self.ports, UDP_HEADER + len(sealed), 0) + sealed
        return in_frame(frame, made_of(packet[:at], named, protocol, sealed))

    def seal_whole(self, packet, iv):
        sealed = self.sa.encrypt((IP if packet[0] >> 4 == 4 else IPv6)(packet), iv=iv)
        if self.ports and sealed.version == 6:
            # scapy leaves the checksum out, which IPv6 does not allow.
            del sealed[UDP].chksum
        return sealed

    def open(self, frame, sequence):
        """The frame with its packet opened: bytes."""
        frame = bytes(frame)
        packet = packet_of(frame)
        self.set_sequence(sequence)
        esp = self.at_esp(packet)
        assert packet[esp + 4 : esp + 8] == self.sa.seq_num.to_bytes(4, "big"), (packet.hex(), sequence)
        # Behind extension headers, scapy takes what it opened for what the first of them is.
        if len(chain(packet)) == 1:
            opened = self.sa.decrypt((IP if packet[0] >> 4 == 4 else IPv6)(packet))
            return in_frame(frame, opened)
        _, named, at = chain(packet)[-1]
        plain = self.algo.decrypt(
            self.sa, ESP(packet[esp:]), self.sa.crypt_key, esn_en=self.sa.esn_en, esn=self.sa.esn
        )
        return in_frame(frame, made_of(packet[:at], named, plain.nh, bytes(plain.data)))

    def at_esp(self, packet):
        """Where in a sealed packet the ESP header is."""
        protocol, _, at = chain(packet)[-1]
        assert protocol == (UDP_PROTOCOL if self.ports else ESP_PROTOCOL), packet.hex()
        return at + (UDP_HEADER if self.ports else 0)

    def iv_of(self, frame):
        packet = packet_of(frame)
        at = self.at_esp(packet) + ESP_HEADER
        return packet[at : at + self.algo.iv_size]
