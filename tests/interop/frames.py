"""Geneve frames as stacks of hypervisors make them, with all that IP allows around, and damage to sealed ones.

They are made of bytes: scapy has its own opinion on many a header, and takes its time.
"""

import struct
from ipaddress import ip_address

from common import (
    DESTINATION_OPTIONS,
    HOP_BY_HOP,
    ROUTING,
    UDP_HEADER,
    UDP_PROTOCOL,
    at_ip,
    chain,
    in_frame,
    made_of,
    packet_of,
)

ADDRESSES = {
    4: ("192.0.2.1", "192.0.2.2"),
    6: ("2001:db8::1", "2001:db8::2"),
}
RAW_ADDRESSES = {
    version: b"".join(ip_address(address).packed for address in pair) for version, pair in ADDRESSES.items()
}
GENEVE_PORT = 6081
# Most that sealing adds without TFC padding: UDP, ESP, IV, padding, its length, the next header, ICV.
OVERHEAD = 8 + 8 + 8 + 3 + 2 + 16
# Longest IPv4 packet; over IPv6 that is without the IP header.
LONGEST = 65_535
# Extension headers, in orders that hosts may send them in (RFC 8200 section 4.1).
CHAINS = [
    [HOP_BY_HOP],
    [ROUTING],
    [DESTINATION_OPTIONS],
    [HOP_BY_HOP, ROUTING],
    [HOP_BY_HOP, DESTINATION_OPTIONS],
    [ROUTING, DESTINATION_OPTIONS],
    [DESTINATION_OPTIONS, ROUTING],
    [HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, DESTINATION_OPTIONS],
]


def ethernet(version, rng):
    """With no VLAN tag, one, or two."""
    tags = rng.choice([[], [], [], [0x8100], [0x88A8], [0x88A8, 0x8100], [0x8100, 0x8100]])
    written = b"".join(struct.pack("!HH", tag, rng.randrange(1 << 16)) for tag in tags)
    return bytes.fromhex("020000000101 020000000100") + written + {4: b"\x08\x00", 6: b"\x86\xdd"}[version]


def ip_options(rng):
    """IPv4 options of 4 to 40 bytes: none that does, router alert, record route, end of list."""
    options = b""
    room = 4 * rng.randrange(1, 11)
    while len(options) < room:
        left = room - len(options)
        entries = min(9, (left - 3) // 4)
        kinds = ["none"] + ["alert"] * (left >= 4) + ["route"] * (entries >= 1)
        match rng.choice(kinds):
            case "none":
                options += b"\x01"
            case "alert":
                options += b"\x94\x04\0\0"
            case "route":
                options += bytes([7, 3 + 4 * entries, 4]) + rng.randbytes(4 * entries)
        if rng.random() < 0.1:
            break
    return options.ljust(room, b"\0")


def ip_v4(rng):
    options = ip_options(rng) if rng.random() < 0.3 else b""
    header = struct.pack(
        "!BBHHHBBH", 0x45 + len(options) // 4, rng.randrange(256), 0, rng.randrange(1 << 16),
        rng.choice([0, 0x4000]), rng.randrange(1, 256), UDP_PROTOCOL, 0,
    )
    return header + RAW_ADDRESSES[4] + options


def extension(kind, rng):
    """An extension header; what it names as the next is to be filled in."""
    if kind == ROUTING:
        # Type 0 (RFC 5095 has done away with it, which is no matter here), all segments behind.
        addresses = rng.randrange(3)
        return bytes([0, 2 * addresses, 0, 0]) + bytes(4) + rng.randbytes(16 * addresses)
    words = rng.randrange(4)
    length = 4 + 8 * words
    # One PadN, or an option that is skipped by who does not know it.
    option, data = rng.choice([(1, bytes(length)), (0x1E, rng.randbytes(length))])
    return bytes([0, words, option, length]) + data


def ip_v6(rng):
    """The IP header, and extension headers."""
    kinds = rng.choice(CHAINS) if rng.random() < 0.5 else []
    head = struct.pack(
        "!LHBB", 6 << 28 | rng.randrange(1 << 28), 0, [*kinds, UDP_PROTOCOL][0], rng.randrange(1, 256)
    )
    head += RAW_ADDRESSES[6]
    for kind, following in zip(kinds, [*kinds[1:], UDP_PROTOCOL]):
        head += bytes([following]) + extension(kind, rng)[1:]
    return head


def geneve(version, size, rng):
    """A frame with Geneve in it, and in that `size` bytes, or as many as there is room for once it is sealed. Its UDP
    checksum is anything: none has a look at it."""
    head = ip_v4(rng) if version == 4 else ip_v6(rng)
    # RFC 8926: version 0, options, Ethernet within, VNI.
    options = rng.choice([0, 0, 1, rng.randrange(64)])
    tunnel = bytes([options, rng.choice([0, 0x40, 0x80])]) + b"\x65\x58" + rng.randbytes(3) + b"\0"
    tunnel += rng.randbytes(4 * options)
    room = LONGEST - len(head) + (40 if version == 6 else 0) - UDP_HEADER - len(tunnel) - OVERHEAD
    tunnel += rng.randbytes(min(size, room))
    # The other port is none that scapy knows more of.
    ports = [rng.randrange(49152, 65536), GENEVE_PORT]
    if rng.random() < 0.1:
        ports.reverse()
    check = rng.choice([0, rng.randrange(1, 1 << 16)])
    datagram = struct.pack("!HHHH", *ports, UDP_HEADER + len(tunnel), check) + tunnel
    _, named, _ = chain(head)[-1]
    return ethernet(version, rng) + made_of(head, named, UDP_PROTOCOL, datagram)


def with_padding(frame, padding):
    """The frame with more in its packet than its UDP header tells: TFC padding (RFC 4303 section 2.7)."""
    packet = packet_of(frame)
    protocol, named, at = chain(packet)[-1]
    return in_frame(frame, made_of(packet[:at], named, protocol, packet[at:] + padding))


def without_padding(frame):
    """The frame, its packet cut off where its UDP header tells."""
    packet = packet_of(frame)
    protocol, named, at = chain(packet)[-1]
    assert protocol == UDP_PROTOCOL, frame.hex()
    length = int.from_bytes(packet[at + 4 : at + 6], "big")
    return in_frame(frame, made_of(packet[:at], named, protocol, packet[at : at + length]))


def without_checksum(frame):
    """The frame with no UDP checksum."""
    at = at_ip(frame) + chain(packet_of(frame))[-1][2]
    return frame[: at + 6] + bytes(2) + frame[at + 8 :]


def behind_ethernet(frame, rng):
    """The frame with bytes behind the packet now and then, as Ethernet pads short ones."""
    return frame + rng.randbytes(rng.randrange(1, 47)) if rng.random() < 0.2 else frame


def damaged(frame, start, rng):
    """The frame with one bit other than it was, at offset `start` or behind, or cut off there."""
    if rng.random() < 0.7:
        changed = bytearray(frame)
        changed[rng.randrange(start, len(frame))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    end = rng.randrange(start, len(frame))
    if rng.random() < 0.5:
        # The IP header still tells of the whole.
        return frame[:end]
    packet = frame[at_ip(frame) : end]
    protocol, named, at = chain(packet)[-1]
    return in_frame(frame, made_of(packet[:at], named, protocol, packet[at:]))
