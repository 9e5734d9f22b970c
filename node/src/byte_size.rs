//! Amounts of bytes as people write them: `10GiB`, `512MiB`, `1.5TB`.
//!
//! Owns parsing and printing. Refuses amounts without a unit, since `10` is almost never ten bytes.
//! One idea: what is printed by [`ByteSize`]'s `Display` is exact and parses back to the same.

use std::{fmt, str::FromStr};

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ByteSize(pub u64);

/// A text that is no amount of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no size: write a number and a unit, for example 10GiB, 512MiB or 1.5TB")]
pub struct ParseByteSizeError(String);

const UNITS: [(&str, u64); 10] = [
    ("EiB", 1 << 60),
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseByteSizeError(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (number, unit) = (trimmed[..split].trim_end(), &trimmed[split..]);
        let factor = UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .map(|(_, factor)| *factor)
            .or_else(|| unit.eq_ignore_ascii_case("B").then_some(1))
            .ok_or_else(wrong)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || (number.contains('.') && !digits(fraction)) || fraction.len() > 9 {
            return Err(wrong());
        }
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let mut bytes = u128::from(whole) * u128::from(factor);
        if !fraction.is_empty() {
            // At most nine digits, so neither the power nor the product overflows.
            let value: u64 = fraction.parse().map_err(|_| wrong())?;
            let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
            bytes += u128::from(value) * u128::from(factor) / scale;
        }
        u64::try_from(bytes).map(Self).map_err(|_| wrong())
    }
}

impl fmt::Display for ByteSize {
    /// The largest binary unit that divides the amount, so that nothing is rounded.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact =
            UNITS[..6].iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        match exact {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl ByteSize {
    /// Rounded to three digits, for tables.
    pub fn rounded(self) -> String {
        match UNITS[..6].iter().find(|(_, unit)| self.0 >= *unit) {
            Some((name, unit)) => {
                let tenths = u128::from(self.0) * 10 / u128::from(*unit);
                if tenths >= 1000 {
                    format!("{} {name}", tenths / 10)
                } else {
                    format!("{}.{} {name}", tenths / 10, tenths % 10)
                }
            }
            None => format!("{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_written_with_a_unit() {
        for (text, bytes) in [
            ("10GiB", 10 << 30),
            ("10 gib", 10 << 30),
            ("1.5KiB", 1536),
            ("2TB", 2_000_000_000_000),
            ("7B", 7),
            (" 1MB ", 1_000_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for wrong in ["", "10", "GiB", "-1GiB", "1e3GiB", "1.GiB", ".5GiB", "10XiB", "17EiB"] {
            let parsed = wrong.parse::<ByteSize>();
            assert!(parsed.is_err(), "{wrong:?} was taken for {parsed:?}");
        }
    }

    #[test]
    fn tables_show_three_digits() {
        assert_eq!(ByteSize(0).rounded(), "0 B");
        assert_eq!(ByteSize(1536).rounded(), "1.5 KiB");
        assert_eq!(ByteSize(10 << 30).rounded(), "10.0 GiB");
        assert_eq!(ByteSize(300 << 20).rounded(), "300 MiB");
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
    }
}
