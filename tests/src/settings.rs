//! Files of settings, as strongSwan reads them.

use std::fmt::Display;

/// A file that is being written: `strongswan.conf` and `swanctl.conf` have blocks, `ipsec.conf` has sections.
#[derive(Debug, Default)]
pub struct Text {
    text: String,
    depth: usize,
}

impl Text {
    fn line(&mut self, line: &str) {
        self.text.push_str(&"    ".repeat(self.depth));
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Begins a block.
    pub fn open(&mut self, name: &str) {
        self.line(&format!("{name} {{"));
        self.depth += 1;
    }

    /// Ends a block.
    pub fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.line("}");
    }

    /// Begins a section, which ends where the next begins.
    pub fn section(&mut self, heading: &str) {
        self.depth = 0;
        self.line(heading);
        self.depth = 1;
    }

    /// A setting.
    pub fn set(&mut self, name: &str, value: impl Display) {
        self.line(&format!("{name} = {value}"));
    }

    /// A setting that is a time, if it is set at all.
    pub fn seconds(&mut self, name: &str, seconds: Option<u32>) {
        if let Some(seconds) = seconds {
            self.set(name, format_args!("{seconds}s"));
        }
    }

    /// The file.
    #[must_use]
    pub fn done(self) -> String {
        self.text
    }
}
