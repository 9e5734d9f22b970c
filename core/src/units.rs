//! Times, rates, shares, sizes and nines as people write them.
//!
//! Owns their spelling: `18months`, `24h`, `95%`, `5Mbit`, `2TB`, `11-nines`. Guesses nothing: a
//! number without a unit is refused where it needs one.

/// Hours in a year of 365.25 days: all rates are per such year.
pub const HOURS_PER_YEAR: f64 = 8766.0;

/// Hours in a month: a twelfth of a year.
pub const HOURS_PER_MONTH: f64 = HOURS_PER_YEAR / 12.0;

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
            "mo" | "month" | "months" => HOURS_PER_MONTH,
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

/// A number of bytes; `TB` is 10^12, `TiB` is 2^40.
///
/// # Errors
/// When it has no unit of bytes, or is not positive.
pub fn bytes(text: &str) -> Result<f64, UnitError> {
    let unit = |unit| {
        Some(match unit {
            "kB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "TB" => 1e12,
            "PB" => 1e15,
            "KiB" => 1024.0,
            "MiB" => 1024f64.powi(2),
            "GiB" => 1024f64.powi(3),
            "TiB" => 1024f64.powi(4),
            "PiB" => 1024f64.powi(5),
            _ => return None,
        })
    };
    split(text)
        .and_then(|(number, name)| Some(number * unit(name)?))
        .filter(|bytes| *bytes > 0.0)
        .ok_or_else(|| UnitError {
            text: text.to_owned(),
            what: "size",
            example: "for example 500GB, 2TB, 1.5TiB",
        })
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
    counted.or_else(kept).or_else(lost).filter(|nines| (0.1..=30.0).contains(nines)).ok_or_else(
        || UnitError {
            text: text.to_owned(),
            what: "durability",
            example: "11-nines, the probability of loss 1e-11, or 99.999999999%; at most 30 nines",
        },
    )
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

    #[test]
    fn sizes_and_nines_as_people_write_them() {
        assert_eq!((bytes("2TB"), bytes("1.5 GiB")), (Ok(2e12), Ok(1.5 * 1073741824.0)));
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
        for wrong in ["", "5", "0TB", "-1TB", "1 tb"] {
            assert!(bytes(wrong).is_err(), "{wrong:?} was taken for a size");
        }
    }
}
