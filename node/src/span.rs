//! Lengths of time as people write them: 250ms, 10s, 5min, 4h, 30d.
//!
//! Owns the notation. Refuses a number without a unit: nobody knows whether 10 means seconds.

use std::{fmt, str::FromStr, time::Duration};

const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)];

/// A length of time, written with a unit; whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A text that is no length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no length of time: write a whole number with a unit, such as 250ms, 10s, 5min, 4h or 30d"
)]
pub struct ParseSpanError(String);

impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(text: &str) -> Result<Self, ParseSpanError> {
        let wrong = || ParseSpanError(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let (_, millis) =
            UNITS.into_iter().find(|(name, _)| *name == unit.trim_start()).ok_or_else(wrong)?;
        number
            .checked_mul(millis)
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Span {
    /// In the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let fits = |(_, unit): &(&str, u64)| millis.is_multiple_of(*unit) && millis > 0;
        let (name, unit) = UNITS.into_iter().find(fits).unwrap_or(("s", 1000));
        write!(f, "{}{name}", millis / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_and_write_the_same() {
        for text in ["250ms", "10s", "5min", "4h", "30d", "0s", "90s", "1500ms"] {
            let span: Span = text.parse().expect(text);
            assert_eq!(span.to_string(), text);
        }
        assert_eq!("60s".parse::<Span>().expect("a minute").to_string(), "1min");
        assert_eq!("5 min".parse::<Span>(), "5min".parse());
        for wrong in [
            "",
            "10",
            "s",
            "-1s",
            "1.5h",
            "10 parsecs",
            "99999999999999999999s",
            "99999999999999999d",
        ] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }
}
