//! How sides, loads and ciphers are called, in which order they come, and which colour each has.

/// Sides as records have them, their names, their colours.
const SIDES: [(&str, &str, usize); 10] = [
    ("plain", "plain Geneve", 2),
    ("null", "Culvert without ESP", 3),
    ("null-tap", "Culvert without ESP, TAP", 3),
    ("culvert", "Culvert", 0),
    ("culvert-tap", "Culvert, TAP", 0),
    ("culvert-busy", "Culvert, TAP, busy polling", 0),
    ("kernel-xfrm", "kernel xfrm", 1),
    ("strongswan-libipsec", "strongSwan libipsec", 4),
    ("wireguard-go", "wireguard-go", 5),
    ("boringtun", "boringtun", 6),
];

/// Ciphers that come first; the others follow by name.
const CIPHERS: [&str; 3] = ["aes256gcm16", "aes128gcm16", "chacha20poly1305"];

/// TCP that does not fill anything, so that its rate says nothing.
pub(super) const PACED: &str = "tcp-tenth";

/// Place and colour of a side, and its name.
pub(super) fn side(side: &str) -> (usize, usize, String) {
    let place = SIDES.iter().position(|(key, ..)| *key == side);
    match place.and_then(|place| Some((place, SIDES.get(place)?))) {
        Some((place, (_, name, colour))) => (place, *colour, (*name).to_owned()),
        None => (SIDES.len(), 3, side.to_owned()),
    }
}

/// Place of a load, and its name.
pub(super) fn load(load: &str) -> (u32, String) {
    match load {
        "tcp-85k" => (0, "TCP, one stream, window of 85 KB".to_owned()),
        "tcp" => (1, "TCP, one stream".to_owned()),
        "tcp-4" => (2, "TCP, four streams".to_owned()),
        PACED => (3, "TCP, paced to 150 Mbit/s".to_owned()),
        other => match bytes(other) {
            Some(bytes) => (bytes, format!("UDP, {bytes} bytes")),
            None => (u32::MAX, other.to_owned()),
        },
    }
}

/// Bytes of UDP's payload.
pub(super) fn bytes(load: &str) -> Option<u32> {
    load.strip_prefix("udp-")?.parse().ok()
}

/// Place of a cipher.
pub(super) fn cipher_place(cipher: &str) -> (usize, &str) {
    let place = CIPHERS.iter().position(|known| *known == cipher);
    (place.unwrap_or(CIPHERS.len()), cipher)
}

/// A cipher for readers.
pub(super) fn cipher(cipher: &str) -> String {
    match cipher {
        "aes256gcm16" => "AES-256-GCM".to_owned(),
        "aes128gcm16" => "AES-128-GCM".to_owned(),
        "chacha20poly1305" => "ChaCha20-Poly1305".to_owned(),
        other => other.to_owned(),
    }
}
