//! Tables and quantities for people, in plain ASCII.

use std::fmt::Write;

/// How a column stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A column.
struct Column {
    title: &'static str,
    align: Align,
    /// Whether it is there without anything in it.
    stays: bool,
}

/// A table with a header line; its columns are as wide as they must be.
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns whose title begins with `>` stand to the right: numbers. Those whose title begins with `?` are there only if
    /// a row has something in them.
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        let columns = titles
            .iter()
            .map(|title| {
                let (title, stays) = match title.strip_prefix('?') {
                    Some(title) => (title, false),
                    None => (*title, true),
                };
                let (title, align) = match title.strip_prefix('>') {
                    Some(title) => (title, Align::Right),
                    None => (title, Align::Left),
                };
                Column {
                    title,
                    align,
                    stays,
                }
            })
            .collect();
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The text: nothing if there are no rows.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        if self.rows.is_empty() {
            return text;
        }
        // The columns that are there, with their widths.
        let columns: Vec<(usize, usize)> = self
            .columns
            .iter()
            .enumerate()
            .filter_map(|(at, column)| {
                let cells = self.rows.iter().filter_map(|row| row.get(at));
                let widest = cells.map(String::len).max().unwrap_or(0);
                let there = column.stays || widest > 0;
                there.then_some((at, widest.max(column.title.len())))
            })
            .collect();
        let titles: Vec<&str> = self.columns.iter().map(|column| column.title).collect();
        let rows = self
            .rows
            .iter()
            .map(|row| row.iter().map(String::as_str).collect());
        for row in std::iter::once(titles).chain(rows) {
            let mut line = String::new();
            for (number, &(at, width)) in columns.iter().enumerate() {
                if number > 0 {
                    line.push_str("  ");
                }
                let cell = row.get(at).copied().unwrap_or_default();
                // Writing to a string does not fail.
                let _ = match self.columns[at].align {
                    Align::Left => write!(line, "{cell:<width$}"),
                    Align::Right => write!(line, "{cell:>width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A number of bytes, in three to four digits.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count} B");
    }
    // Whole thousandths of the unit: no rounding up to 1000.0 of it.
    let mut thousandths = count;
    let mut unit = 0;
    while thousandths >= 1_000_000 && unit + 1 < UNITS.len() {
        thousandths /= 1000;
        unit += 1;
    }
    let (whole, tenths) = (thousandths / 1000, thousandths % 1000 / 100);
    format!("{whole}.{tenths} {}", UNITS[unit])
}

/// A time in seconds, in its two largest units.
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = std::time::Duration::try_from_secs_f64(seconds)
        .unwrap_or_default()
        .as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", ">COUNT", "NOTE"]);
        assert_eq!(table.text(), "");
        table.row(["a".to_owned(), "12345678".to_owned(), "x".to_owned()]);
        table.row(["longer".to_owned(), "1".to_owned(), String::new()]);
        assert_eq!(
            table.text(),
            "NAME       COUNT  NOTE\na       12345678  x\nlonger         1\n"
        );
    }

    #[test]
    fn a_column_may_be_there_only_if_it_is_needed() {
        let mut table = Table::new(&["A", "?B", "?>C"]);
        table.row(["x", "", ""].map(str::to_owned));
        assert_eq!(table.text(), "A\nx\n");
        table.row(["y", "", "7"].map(str::to_owned));
        assert_eq!(table.text(), "A  C\nx\ny  7\n");
    }

    #[test]
    fn quantities_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_999, "999.9 kB"),
            (1_000_000, "1.0 MB"),
            (12_345_678_901, "12.3 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (seconds, text) in [
            (-1.0, "0 s"),
            (59.9, "59 s"),
            (61.0, "1 min 1 s"),
            (3660.0, "1 h 1 min"),
            (90_000.0, "1 d 1 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
