//! How values are written for people: sizes, times, modes.
//!
//! Owns the way to standard output, too: a reader that has had enough is no error, a full disk is.

use std::{
    fmt::Display,
    io::{self, Write as _},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

pub(crate) use copse_core::shown::{name, sentence};
use copse_core::units::ByteSize;
use data_encoding::HEXLOWER;
use serde_json::Value;

use crate::exit::CliError;

/// Whether who reads the results has had enough, as `head` does.
static HAD_ENOUGH: AtomicBool = AtomicBool::new(false);

/// Prints a line of results. A reader that has had enough is no error, and changes no exit code.
pub(crate) fn print(line: impl Display) -> Result<(), CliError> {
    if had_enough() {
        return Ok(());
    }
    match io::stdout().lock().write_all(format!("{line}\n").as_bytes()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            HAD_ENOUGH.store(true, Relaxed);
            Ok(())
        }
        Err(error) => Err(unwritten(&error)),
    }
}

/// Whether nobody reads any more what is printed.
pub(crate) fn had_enough() -> bool {
    HAD_ENOUGH.load(Relaxed)
}

/// Says something on standard error; where nobody hears it, that changes nothing.
pub(crate) fn tell(line: impl Display) {
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// Standard output does not take what is written there.
pub(crate) fn unwritten(error: &io::Error) -> CliError {
    CliError::other(format!("cannot write to standard output: {error}"))
}

/// So many of something: `1 file`, `2 files`.
pub(crate) fn count(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Adds a path to an object as `KEY`, and as `KEY_hex` when that is not all of it, for it is not UTF-8.
pub(crate) fn set_path(object: &mut Value, key: &str, path: &[u8]) {
    object[key] = String::from_utf8_lossy(path).into();
    if std::str::from_utf8(path).is_err() {
        object[format!("{key}_hex")] = HEXLOWER.encode(path).into();
    }
}

/// A size with a binary unit: `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    ByteSize(count).rounded()
}

/// Bytes a second over a time.
pub(crate) fn rate(count: u64, took: std::time::Duration) -> String {
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
    format!("{}/s", bytes(count.saturating_mul(1000) / millis))
}

/// A mode as `ls -l` writes it.
pub(crate) fn mode(kind: char, mode: u32) -> String {
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 == 0 { '-' } else { 'r' });
        text.push(if bits & 2 == 0 { '-' } else { 'w' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (false, false) => '-',
            (true, false) => 'x',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        });
    }
    text
}

/// Seconds since 1970 as `2026-11-22 14:55:01`, in UTC. Source: civil-from-days, H. Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms".
pub(crate) fn time(seconds: i64) -> String {
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
    fn a_path_is_whole_in_json_also_when_it_is_not_utf8() {
        let mut object = serde_json::json!({});
        set_path(&mut object, "a", "grün".as_bytes());
        set_path(&mut object, "b", b"x\xff");
        let expected = serde_json::json!({ "a": "grün", "b": "x\u{fffd}", "b_hex": "78ff" });
        assert_eq!(object, expected);
    }

    #[test]
    fn times_are_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_795_359_301, "2026-11-22 14:55:01"),
            (-1, "1969-12-31 23:59:59"),
        ] {
            assert_eq!(time(seconds), expected);
        }
    }

    #[test]
    fn modes_look_like_those_of_ls() {
        assert_eq!(mode('-', 0o644), "-rw-r--r--");
        assert_eq!(mode('d', 0o1777), "drwxrwxrwt");
        assert_eq!(mode('-', 0o4754), "-rwsr-xr--");
        assert_eq!(mode('-', 0o2644), "-rw-r-Sr--");
    }

    #[test]
    fn one_of_something_has_no_s() {
        assert_eq!((count(1, "file"), count(0, "file")), ("1 file".into(), "0 files".into()));
    }
}
