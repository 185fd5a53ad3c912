//! Rounds become a median with its least and most; numbers become text.

/// The median of some rounds, and what they were between.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Spread {
    /// Of any rounds, unless there are none.
    pub(super) fn of(rounds: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut rounds: Vec<f64> = rounds.into_iter().collect();
        rounds.sort_by(f64::total_cmp);
        let (&least, &most) = (rounds.first()?, rounds.last()?);
        let middle = rounds.len() / 2;
        let below = *rounds.get((rounds.len() - 1) / 2)?;
        let median = f64::midpoint(below, *rounds.get(middle)?);
        Some(Self {
            median,
            least,
            most,
        })
    }

    /// `1.63 (1.60–1.65)`; only one number where there was one round.
    pub(super) fn text(&self) -> String {
        let [median, least, most] = [self.median, self.least, self.most].map(short);
        if least == most {
            return median;
        }
        format!("{median} ({least}–{most})")
    }
}

/// Three digits that count, and never an exponent: `0.0213`, `1.63`, `16.0`, `171`, `3,212,717`.
pub(super) fn short(number: f64) -> String {
    let digits = match number.abs() {
        0.0 => 0,
        size if size < 0.01 => 4,
        size if size < 0.1 => 3,
        size if size < 9.995 => 2,
        size if size < 99.95 => 1,
        _ => 0,
    };
    grouped(&format!("{number:.digits$}"))
}

/// A round number, without the zeros that [`short`] has behind the point.
pub(super) fn round(number: f64) -> String {
    let text = short(number);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// How many.
pub(super) fn count(number: u64) -> String {
    grouped(&number.to_string())
}

/// Commas between thousands, from five digits on.
fn grouped(text: &str) -> String {
    let whole = text.split('.').next().unwrap_or_default().len();
    if whole < 5 {
        return text.to_owned();
    }
    let mut grouped = String::new();
    for (index, character) in text.chars().enumerate() {
        if index > 0 && index < whole && (whole - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(character);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_numbers() {
        let numbers = [
            0.0,
            0.0213,
            0.5,
            1.6302,
            9.996,
            15.956,
            171.4,
            99.96,
            9999.0,
            13_995_356.6,
        ];
        let texts = [
            "0",
            "0.021",
            "0.50",
            "1.63",
            "10.0",
            "16.0",
            "171",
            "100",
            "9999",
            "13,995,357",
        ];
        assert_eq!(numbers.map(short), texts);
    }

    #[test]
    fn spreads() {
        assert_eq!(Spread::of([]), None);
        let spread = Spread::of([3.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!(spread.text(), "2.50 (1.00–10.0)");
        assert_eq!(Spread::of([3.0]).unwrap().text(), "3.00");
    }
}
