//! How values are written for people: sizes, times, modes.
//!
//! Owns the way to standard output, too: a reader that has had enough is no error, a full disk is.

use std::{
    fmt::Display,
    io::{self, Write as _},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use copse_client::transfer::Kinds;
pub(crate) use copse_core::shown::{name, sentence};
use copse_core::units::ByteSize;
pub(crate) use copse_core::units::{Count, counted as count, date as time, one_or};
use data_encoding::HEXLOWER;
use serde_json::Value;

use crate::exit::{self, CliError};

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
    let code = exit::of_writing(error);
    CliError::new(code, format!("cannot write to standard output: {error}"))
}

/// How many more of something may be lost: `any 2 more nodes`, `not one more node`.
pub(crate) fn any_more(number: u64, what: &str) -> String {
    match number {
        0 => format!("not one more {what}"),
        some => format!("any {}", count(some, &format!("more {what}"))),
    }
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

/// The same, and how much of it is holes: `3.1 GiB, 3.0 GiB of them holes,`.
pub(crate) fn bytes_and_holes(count: u64, holes: u64) -> String {
    match holes {
        0 => bytes(count),
        holes => format!("{}, {} of them holes,", bytes(count), bytes(holes)),
    }
}

/// What is in a tree: `3 files, 1 folder`.
pub(crate) fn contents(kinds: &Kinds) -> String {
    let all = [(kinds.files, "file"), (kinds.directories, "folder"), (kinds.symlinks, "link")];
    let some: Vec<_> = all
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| count(number, what))
        .collect();
    if some.is_empty() { "an empty folder".to_owned() } else { some.join(", ") }
}

/// What was moved in less time, or less of it, says nothing of how fast the line is.
const RATED_MIN: (Duration, u64) = (Duration::from_millis(500), 1 << 20);

/// ` (64.2 MiB/s)`: so many bytes over a time; nothing when these are too few to speak of a rate.
pub(crate) fn rate(count: u64, took: Duration) -> String {
    if took < RATED_MIN.0 || count < RATED_MIN.1 {
        return String::new();
    }
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = u128::from(count) * 1000 / u128::from(millis);
    format!(" ({}/s)", bytes(u64::try_from(rate).unwrap_or(u64::MAX)))
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
    fn what_does_not_survive_anything_survives_not_one_more() {
        assert_eq!(any_more(0, "zone"), "not one more zone");
        assert_eq!(any_more(1, "node"), "any 1 more node");
        assert_eq!(any_more(2, "node"), "any 2 more nodes");
    }

    #[test]
    fn a_rate_is_told_only_of_what_is_enough_to_have_one() {
        let rate = |count, millis| rate(count, Duration::from_millis(millis));
        assert_eq!(rate(1 << 40, 0), "");
        assert_eq!(rate(1 << 40, 499), "");
        assert_eq!(rate((1 << 20) - 1, 60_000), "");
        assert_eq!(rate(90 << 20, 1500), " (60.0 MiB/s)");
        assert_eq!(rate(u64::MAX, 1000), " (15.9 EiB/s)");
    }

    #[test]
    fn modes_look_like_those_of_ls() {
        assert_eq!(mode('-', 0o644), "-rw-r--r--");
        assert_eq!(mode('d', 0o1777), "drwxrwxrwt");
        assert_eq!(mode('-', 0o4754), "-rwsr-xr--");
        assert_eq!(mode('-', 0o2644), "-rw-r-Sr--");
    }
}
