"""What the scripts share: Culvert's ciphers in scapy's terms."""

from scapy.layers.ipsec import ESP, SecurityAssociation

# Name in scapy, and length of the key without the salt.
CIPHERS = {
    "aes128gcm16": ("AES-GCM", 16),
    "aes256gcm16": ("AES-GCM", 32),
    "chacha20poly1305": ("CHACHA20-POLY1305", 32),
}


def from_hex(text):
    return bytes.fromhex(text)


def association(cipher, esn, spi, key, high=0):
    """An SA; `key` is key and salt, `high` the upper half of the sequence number."""
    name, length = CIPHERS[cipher]
    assert len(key) == length + 4
    return SecurityAssociation(ESP, spi=spi, crypt_algo=name, crypt_key=key, esn_en=esn, esn=high)
