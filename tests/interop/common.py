"""What the scripts share: ESP as scapy does it, with Culvert's names."""

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation

# Name in scapy, and length of the key without the salt.
CIPHERS = {
    "aes128gcm16": ("AES-GCM", 16),
    "aes256gcm16": ("AES-GCM", 32),
    "chacha20poly1305": ("CHACHA20-POLY1305", 32),
}


def network(frame):
    """The IP packet in a frame."""
    return frame[IPv6] if IPv6 in frame else frame[IP]


def in_frame(frame, packet):
    """The bytes of a frame with another IP packet in it."""
    return bytes(frame)[: len(frame) - len(network(frame))] + bytes(packet)


class Sa:
    """One SA; `key` is key and salt. Sequence numbers have 64 bits with ESN, 32 without."""

    def __init__(self, cipher, esn, spi, key, encapsulated=False):
        name, length = CIPHERS[cipher]
        assert len(key) == length + 4
        udp = UDP(sport=4500, dport=4500) if encapsulated else None
        self.sa = SecurityAssociation(
            ESP, spi=spi, crypt_algo=name, crypt_key=key, esn_en=esn, nat_t_header=udp
        )

    def seal(self, frame, sequence, iv=None):
        """The frame with its packet sealed: bytes."""
        # Not as an argument: scapy takes a 0 there for none.
        self.sa.seq_num = sequence & 0xFFFF_FFFF
        packet = self.sa.encrypt(network(frame).copy(), esn=sequence >> 32, iv=iv)
        if self.sa.nat_t_header and packet.version == 6:
            # scapy leaves the checksum out, which IPv6 does not allow (RFC 8200 section 8.1).
            del packet[UDP].chksum
        return in_frame(frame, packet)

    def open(self, frame, sequence):
        """The frame with its packet opened: bytes."""
        assert frame[ESP].seq == sequence & 0xFFFF_FFFF, (frame[ESP].seq, sequence)
        return in_frame(frame, self.sa.decrypt(network(frame).copy(), esn=sequence >> 32))

    @staticmethod
    def iv_of(frame):
        return frame[ESP].data[:8]
