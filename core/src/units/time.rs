//! Lengths of time: `250ms`, `10s`, `5min`, `4h`, `30d`, `18months`; and moments, as dates.
//!
//! Owns parsing and printing. The one idea: there are two ways to print: [`Span`] exactly, as it is
//! written in a configuration and parses back to the same, and [`Brief`] as people say it.

use std::{fmt, str::FromStr, time::Duration};

use super::{Amount, UnitError};

/// Hours in a year of 365.25 days: all rates are per such year.
pub const HOURS_PER_YEAR: f64 = 8766.0;

/// Hours in a month: a twelfth of a year.
pub const HOURS_PER_MONTH: f64 = HOURS_PER_YEAR / 12.0;

const HOUR_MILLIS: u64 = 3_600_000;

/// Units that divide each other, in milliseconds.
const EXACT: [(&str, u64); 5] =
    [("d", 24 * HOUR_MILLIS), ("h", HOUR_MILLIS), ("min", 60_000), ("s", 1000), ("ms", 1)];

/// In milliseconds.
fn factor(unit: &str) -> Option<u64> {
    Some(match unit {
        "ms" => 1,
        "s" | "second" | "seconds" => 1000,
        "min" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => HOUR_MILLIS,
        "d" | "day" | "days" => 24 * HOUR_MILLIS,
        "w" | "week" | "weeks" => 7 * 24 * HOUR_MILLIS,
        // 730.5 hours.
        "mo" | "month" | "months" => 8766 * HOUR_MILLIS / 12,
        "y" | "year" | "years" => 8766 * HOUR_MILLIS,
        _ => return None,
    })
}

fn wrong(text: &str) -> UnitError {
    let example = "a number and a unit, for example 250ms, 10s, 30min, 24h, 7d, 18months or 5years";
    UnitError::new(text, "length of time", example)
}

/// A length of time, in hours.
///
/// # Errors
/// When it is not a number with a unit from milliseconds to years.
pub fn hours(text: &str) -> Result<f64, UnitError> {
    let hours =
        |amount: Amount<'_>| Some(amount.value * factor(amount.unit)? as f64 / HOUR_MILLIS as f64);
    Amount::read(text).and_then(hours).ok_or_else(|| wrong(text))
}

/// A length of time, written with a unit; whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let millis = |amount: Amount<'_>| u64::try_from(amount.times(factor(amount.unit)?)).ok();
        let millis = Amount::read(text).and_then(millis).ok_or_else(|| wrong(text))?;
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl fmt::Display for Span {
    /// In the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let fits = |(_, unit): &(&str, u64)| millis.is_multiple_of(*unit) && millis > 0;
        let (name, unit) = EXACT.into_iter().find(fits).unwrap_or(("s", 1000));
        write!(f, "{}{name}", millis / unit)
    }
}

/// A length of time as people say it: the two largest of days, hours, minutes, seconds.
#[derive(Debug, Clone, Copy)]
pub struct Brief(pub Duration);

impl Brief {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl fmt::Display for Brief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (large, unit, small, rest) = match seconds {
            0..60 => return f.pad(&format!("{seconds} s")),
            60..3600 => (seconds / 60, "min", seconds % 60, "s"),
            3600..86_400 => (seconds / 3600, "h", seconds % 3600 / 60, "min"),
            _ => (seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
        };
        match small {
            0 => f.pad(&format!("{large} {unit}")),
            small => f.pad(&format!("{large} {unit} {small} {rest}")),
        }
    }
}

/// Seconds since 1970 as `2026-11-22 14:55:01`, in UTC. Source: civil-from-days, H. Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms".
pub fn date(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400);
    let of_day = seconds.rem_euclid(86_400);
    let shifted = days.saturating_add(719_468);
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_795_359_301, "2026-11-22 14:55:01"),
            (-1, "1969-12-31 23:59:59"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn hours_as_people_write_them() {
        assert_eq!((hours("24h"), hours("20min")), (Ok(24.0), Ok(1.0 / 3.0)));
        assert_eq!(hours("18 months"), Ok(18.0 * HOURS_PER_MONTH));
        assert_eq!((hours("0.5y"), hours("1year")), (Ok(4383.0), Ok(HOURS_PER_YEAR)));
        for wrong in ["", "24", "h", "-1h", "1 fortnight"] {
            assert!(hours(wrong).is_err(), "{wrong:?} was taken for a time");
        }
    }

    #[test]
    fn spans_read_and_write_the_same() {
        for text in ["250ms", "10s", "5min", "4h", "30d", "0s", "90s", "1500ms"] {
            let span: Span = text.parse().expect(text);
            assert_eq!(span.to_string(), text);
        }
        for (text, exact) in
            [("60s", "1min"), ("5 min", "5min"), ("1.5h", "90min"), ("2 weeks", "14d")]
        {
            assert_eq!(text.parse::<Span>().expect(text).to_string(), exact);
        }
        for wrong in
            ["", "10", "s", "-1s", "10 parsecs", "99999999999999999999s", "99999999999999999d"]
        {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_said_briefly() {
        for (seconds, said) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (3600, "1 h"),
            (3725, "1 h 2 min"),
            (90_000, "1 d 1 h"),
            (86_400, "1 d"),
        ] {
            assert_eq!(Brief::seconds(seconds).to_string(), said);
        }
        assert_eq!(format!("{:>6}|", Brief::seconds(5)), "   5 s|");
    }
}
