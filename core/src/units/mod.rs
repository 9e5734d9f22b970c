//! Times, rates, shares, sizes and nines as people write them, and how they and counts are told to people.
//!
//! Owns their spelling: `18months`, `24h`, `95%`, `5Mbit`, `2TB`, `11-nines`, `1 h 2 min`. Guesses nothing:
//! a number without a unit is refused where it needs one. The one idea: an [`Amount`] is read in one way,
//! whatever it is of.

mod count;
mod size;
mod time;

pub use count::{Count, counted, one_or};
pub use size::{ByteSize, bytes};
pub use time::{Brief, HOURS_PER_MONTH, HOURS_PER_YEAR, Span, date, hours};

/// Digits behind the point, at most: what is computed of them is exact in 128 bits.
const FRACTION_DIGITS_MAX: usize = 18;

/// What was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: write {example}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

impl UnitError {
    fn new(text: &str, what: &'static str, example: &'static str) -> Self {
        Self { text: text.to_owned(), what, example }
    }
}

/// A number that is not negative, with or without a fraction, and what is written behind it.
struct Amount<'a> {
    whole: u64,
    /// Its digits, as a number, and ten to the power of how many they are.
    fraction: (u64, u64),
    value: f64,
    unit: &'a str,
}

impl<'a> Amount<'a> {
    /// Spaces around it and before the unit do not matter. A point has digits on both sides.
    fn read(text: &'a str) -> Option<Self> {
        let text = text.trim();
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (whole, fraction) = match number.split_once('.') {
            Some((_, fraction)) if fraction.is_empty() || fraction.len() > FRACTION_DIGITS_MAX => {
                return None;
            }
            Some((whole, fraction)) => {
                let scale = 10u64.pow(u32::try_from(fraction.len()).ok()?);
                (whole, (fraction.parse().ok()?, scale))
            }
            None => (number, (0, 1)),
        };
        let (whole, value) = (whole.parse().ok()?, number.parse().ok()?);
        Some(Self { whole, fraction, value, unit: unit.trim_start() })
    }

    /// So many of something that is not divided: what is left of the fraction is dropped.
    fn times(&self, factor: u64) -> u128 {
        let ((digits, scale), factor) = (self.fraction, u128::from(factor));
        u128::from(self.whole) * factor + u128::from(digits) * factor / u128::from(scale)
    }
}

/// A share: `5%` or `0.05`.
///
/// # Errors
/// When it is neither, or not within 0 and 1.
pub fn share(text: &str) -> Result<f64, UnitError> {
    let value = Amount::read(text).and_then(|amount| match amount.unit {
        "%" => Some(amount.value / 100.0),
        "" => Some(amount.value),
        _ => None,
    });
    let share = value.filter(|value| (0.0..=1.0).contains(value));
    share.ok_or_else(|| UnitError::new(text, "share", "5% or 0.05"))
}

/// A data rate, in bytes an hour. The case of its unit matters: a B is a byte, a b a bit.
///
/// # Errors
/// When it has no unit of bits or bytes a second.
pub fn rate(text: &str) -> Result<f64, UnitError> {
    let unit = |unit: &str| {
        Some(match unit {
            "kbit" | "kbit/s" => 1e3 / 8.0,
            "Mbit" | "Mbit/s" => 1e6 / 8.0,
            "Gbit" | "Gbit/s" => 1e9 / 8.0,
            "kB/s" => 1e3,
            "MB/s" => 1e6,
            _ => return None,
        })
    };
    let rate = |amount: Amount<'_>| Some(amount.value * unit(amount.unit)? * 3600.0);
    let example = "a number and a unit, for example 500kbit, 5Mbit or 2MB/s";
    Amount::read(text).and_then(rate).ok_or_else(|| UnitError::new(text, "rate", example))
}

/// Nines of durability, −log10 of the probability of loss: `11-nines`, `11 nines`, the probability
/// of loss itself as `1e-11`, or that of keeping as `99.999999999%`.
///
/// # Errors
/// When it is none of these, or not within 0.1 to 30 nines.
pub fn nines(text: &str) -> Result<f64, UnitError> {
    let trimmed = text.trim();
    let counted = ["-nines", "nines", "-nine", "nine"]
        .iter()
        .find_map(|end| trimmed.strip_suffix(end)?.trim().parse::<f64>().ok());
    let kept = || {
        let percent: f64 = trimmed.strip_suffix('%')?.trim().parse().ok()?;
        Some(-(1.0 - percent / 100.0).log10())
    };
    let lost = || {
        let looks_like_one = trimmed.contains(['e', 'E']) || trimmed.starts_with("0.");
        Some(-trimmed.parse::<f64>().ok().filter(|_| looks_like_one)?.log10())
    };
    let nines = counted.or_else(kept).or_else(lost).filter(|nines| (0.1..=30.0).contains(nines));
    let example = "11-nines, the probability of loss 1e-11, or 99.999999999%; at most 30 nines";
    nines.ok_or_else(|| UnitError::new(text, "durability", example))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_read_in_one_way_whatever_it_is_of() {
        let reads = |number: &str| {
            let of = |unit: &str| format!("{number}{unit}");
            let all = [
                of("h").parse::<Span>().is_ok(),
                hours(&of("h")).is_ok(),
                of("B").parse::<ByteSize>().is_ok(),
                bytes(&of("B")).is_ok(),
                rate(&of("kbit")).is_ok(),
                share(&of("%")).is_ok(),
            ];
            assert!(all.iter().all(|ok| *ok == all[0]), "{number:?}: {all:?}");
            all[0]
        };
        for number in ["5", "1.5", "1.5 ", " 1", "007", "3.000000000000000001"] {
            assert!(reads(number), "{number:?} was not taken for a number");
        }
        for wrong in ["", "-1", "+1", "1.", ".5", "1.2.3", "1e3", "1,5", "1_000", "inf", "1.-2"] {
            assert!(!reads(wrong), "{wrong:?} was taken for a number");
        }
        assert!(!reads("1.0000000000000000001"), "more digits than are computed with");
    }

    #[test]
    fn shares_and_rates_as_people_write_them() {
        assert_eq!((share("5%"), share("0.05")), (Ok(0.05), Ok(0.05)));
        assert_eq!(rate("8Mbit"), Ok(3.6e9));
        assert!(share("101%").is_err() && rate("5").is_err());
    }

    #[test]
    fn nines_as_people_write_them() {
        for (text, expected) in [
            ("11-nines", 11.0),
            ("11 nines", 11.0),
            ("11nines", 11.0),
            ("9.5-nines", 9.5),
            ("1e-11", 11.0),
            ("0.001", 3.0),
            ("99.9%", 3.0),
            ("99.999999999%", 11.0),
        ] {
            let got = nines(text).expect("a durability");
            assert!((got - expected).abs() < 1e-6, "{text}: {got}");
        }
        for wrong in ["", "11", "nines", "-nines", "100%", "0%", "1e3", "99-nines", "1.5", "inf"] {
            assert!(nines(wrong).is_err(), "{wrong:?} was taken for a durability");
        }
    }
}
