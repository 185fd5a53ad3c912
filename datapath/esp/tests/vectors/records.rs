//! Vectors as text: records of `name = value` lines with blank lines between them, as NIST writes them. A value in
//! brackets holds for the records that follow; `#` begins a comment.

use std::collections::BTreeMap;

/// One vector.
pub(crate) struct Record(BTreeMap<&'static str, &'static str>);

impl Record {
    /// Whether it has a line of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The value of that name. Panics if there is none: the vectors are ours.
    pub(crate) fn text(&self, name: &str) -> &'static str {
        self.0.get(name).copied().unwrap()
    }

    /// The value of that name, in hexadecimal.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let digits = self.text(name).as_bytes();
        assert!(digits.len().is_multiple_of(2), "{name}: half a byte");
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// The value of that name, a decimal number.
    pub(crate) fn number(&self, name: &str) -> usize {
        self.text(name).parse().unwrap()
    }
}

/// The records of `text`.
pub(crate) fn parse(text: &'static str) -> Vec<Record> {
    let mut section = BTreeMap::new();
    let mut lines = BTreeMap::new();
    let mut records = Vec::new();
    // The blank line at the end closes the last record.
    for line in text.lines().chain([""]) {
        let line = line.split_once('#').map_or(line, |(line, _)| line).trim();
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        let (name, value) = (name.trim(), value.trim());
        if let Some(name) = name.strip_prefix('[') {
            section.insert(name, value.strip_suffix(']').unwrap());
        } else if !name.is_empty() {
            lines.insert(name, value);
        } else if !lines.is_empty() {
            let mut record = section.clone();
            record.append(&mut lines);
            records.push(Record(record));
        }
    }
    records
}
