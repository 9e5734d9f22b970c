//! Amounts of bytes: `10GiB`, `512MiB`, `1.5TB`.
//!
//! Owns parsing and printing. The one idea: what [`ByteSize`]'s `Display` prints is exact and parses back
//! to the same; what tables show is [`rounded`](ByteSize::rounded).

use std::{fmt, str::FromStr};

use super::{Amount, UnitError};

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ByteSize(pub u64);

const BINARY: [(&str, u64); 7] = [
    ("EiB", 1 << 60),
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

const DECIMAL: [(&str, u64); 6] = [
    ("EB", 1_000_000_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];

/// The case of a unit does not matter: nobody means bits.
fn factor(unit: &str) -> Option<u64> {
    let mut units = BINARY.iter().chain(&DECIMAL);
    units.find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor)
}

fn wrong(text: &str) -> UnitError {
    UnitError::new(text, "size", "a number and a unit, for example 10GiB, 512MiB or 1.5TB")
}

/// A number of bytes; `TB` is 10^12, `TiB` is 2^40.
///
/// # Errors
/// When it has no unit of bytes, or is not positive.
pub fn bytes(text: &str) -> Result<f64, UnitError> {
    let amount = Amount::read(text).ok_or_else(|| wrong(text))?;
    let bytes = factor(amount.unit).map(|factor| amount.times(factor));
    bytes.filter(|bytes| *bytes > 0).map(|bytes| bytes as f64).ok_or_else(|| wrong(text))
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let amount = Amount::read(text).ok_or_else(|| wrong(text))?;
        let bytes = factor(amount.unit).map(|factor| amount.times(factor));
        bytes.and_then(|bytes| u64::try_from(bytes).ok()).map(Self).ok_or_else(|| wrong(text))
    }
}

impl fmt::Display for ByteSize {
    /// The largest binary unit that divides the amount, so that nothing is rounded.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divides = |(_, unit): &&(&str, u64)| self.0 >= *unit && self.0.is_multiple_of(*unit);
        let (name, unit) = BINARY.iter().find(divides).unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

impl ByteSize {
    /// Cut off after three digits, for tables: `1.5 KiB`.
    pub fn rounded(self) -> String {
        let (name, unit) = BINARY.iter().find(|(_, unit)| self.0 >= *unit).unwrap_or(&("B", 1));
        let tenths = u128::from(self.0) * 10 / u128::from(*unit);
        if *unit == 1 || tenths >= 1000 {
            format!("{} {name}", tenths / 10)
        } else {
            format!("{}.{} {name}", tenths / 10, tenths % 10)
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
            ("0B", 0),
            (" 1MB ", 1_000_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for wrong in ["", "10", "GiB", "-1GiB", "1e3GiB", "10XiB", "17EiB"] {
            let parsed = wrong.parse::<ByteSize>();
            assert!(parsed.is_err(), "{wrong:?} was taken for {parsed:?}");
        }
        assert_eq!((bytes("2TB"), bytes("1.5 GiB")), (Ok(2e12), Ok(1.5 * 1_073_741_824.0)));
        for wrong in ["", "5", "0TB", "-1TB"] {
            assert!(bytes(wrong).is_err(), "{wrong:?} was taken for a size");
        }
    }

    #[test]
    fn tables_show_three_digits() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 << 30, "10.0 GiB"),
            (300 << 20, "300 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(ByteSize(bytes).rounded(), expected);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
    }
}
