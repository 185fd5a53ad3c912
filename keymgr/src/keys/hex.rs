//! Keys from hex digits.

use culvert_proto::sa::Keymat;
use zeroize::Zeroizing;

/// Keying material from hex digits, in which blanks, colons and a leading `0x` do not count.
pub(crate) fn from_hex(text: &str) -> Result<Keymat, String> {
    let text = text.trim();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    // Never longer than the text, so that no growing vector leaves a copy behind.
    let mut nibbles = Zeroizing::new(Vec::with_capacity(digits.len()));
    for (at, digit) in digits.chars().enumerate() {
        match digit.to_digit(16) {
            Some(value) => nibbles.push(value.to_le_bytes()[0]),
            None if digit == ':' || digit.is_ascii_whitespace() => {}
            // Not which character: it may be a part of the key.
            None => return Err(format!("key: character {} is no hex digit", at + 1)),
        }
    }
    let (pairs, rest) = nibbles.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("key: an odd number of hex digits".to_owned());
    }
    Ok(Keymat::new(
        pairs.iter().map(|[high, low]| high << 4 | low).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_read_as_people_write_it() {
        for text in ["00ff10", "0x00ff10", "00:ff:10", " 00 FF\n10\n"] {
            assert_eq!(from_hex(text).unwrap().bytes(), [0, 0xff, 0x10], "{text}");
        }
        assert!(from_hex("0f1").unwrap_err().contains("odd"));
        let error = from_hex("00zz").unwrap_err();
        assert!(
            error.contains("character 3") && !error.contains('z'),
            "{error}"
        );
    }
}
