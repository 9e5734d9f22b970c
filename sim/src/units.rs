//! Times, rates and shares as people write them.
//!
//! Owns their spelling: `18months`, `24h`, `95%`, `5Mbit`. Guesses nothing: a number without a unit
//! is refused where it needs one.

use crate::event::HOURS_PER_YEAR;

/// What was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: write {example}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

/// A length of time, in hours.
///
/// # Errors
/// When it is not a number with a unit from seconds to years.
pub fn hours(text: &str) -> Result<f64, UnitError> {
    let unit = |unit| {
        Some(match unit {
            "s" | "second" | "seconds" => 1.0 / 3600.0,
            "min" | "minute" | "minutes" => 1.0 / 60.0,
            "h" | "hour" | "hours" => 1.0,
            "d" | "day" | "days" => 24.0,
            "w" | "week" | "weeks" => 168.0,
            "mo" | "month" | "months" => HOURS_PER_YEAR / 12.0,
            "y" | "year" | "years" => HOURS_PER_YEAR,
            _ => return None,
        })
    };
    split(text).and_then(|(number, name)| Some(number * unit(name)?)).ok_or_else(|| UnitError {
        text: text.to_owned(),
        what: "time",
        example: "for example 30min, 24h, 7days, 18months, 5years",
    })
}

/// A share: `5%` or `0.05`.
///
/// # Errors
/// When it is neither, or not within 0 and 1.
pub fn share(text: &str) -> Result<f64, UnitError> {
    let value = match split(text) {
        Some((number, "%")) => Some(number / 100.0),
        Some((number, "")) => Some(number),
        _ => None,
    };
    value.filter(|value| (0.0..=1.0).contains(value)).ok_or_else(|| UnitError {
        text: text.to_owned(),
        what: "share",
        example: "5% or 0.05",
    })
}

/// A data rate, in bytes an hour.
///
/// # Errors
/// When it has no unit of bits or bytes a second.
pub fn rate(text: &str) -> Result<f64, UnitError> {
    let unit = |unit| {
        Some(match unit {
            "kbit" | "kbit/s" => 1e3 / 8.0,
            "Mbit" | "Mbit/s" => 1e6 / 8.0,
            "Gbit" | "Gbit/s" => 1e9 / 8.0,
            "kB/s" => 1e3,
            "MB/s" => 1e6,
            _ => return None,
        })
    };
    split(text).and_then(|(number, name)| Some(number * unit(name)? * 3600.0)).ok_or_else(|| {
        UnitError {
            text: text.to_owned(),
            what: "rate",
            example: "for example 500kbit, 5Mbit, 2MB/s",
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_shares_and_rates_as_people_write_them() {
        assert_eq!(hours("24h"), Ok(24.0));
        assert_eq!(hours("18 months"), Ok(18.0 * 730.5));
        assert_eq!(hours("0.5y"), Ok(4383.0));
        assert_eq!((share("5%"), share("0.05")), (Ok(0.05), Ok(0.05)));
        assert_eq!(rate("8Mbit"), Ok(3.6e9));
        for wrong in ["", "24", "h", "-1h", "1 fortnight"] {
            assert!(hours(wrong).is_err(), "{wrong:?} was taken for a time");
        }
        assert!(share("101%").is_err() && rate("5").is_err());
    }
}
