//! Numbers of things, as they are told: `1 file`, `1,234 chunks`, `2 entries`.
//!
//! Owns the commas and the plural. The one idea: every message that counts goes through here, so that none
//! says "1 nodes".

use std::fmt;

/// A number with commas: `1,234`.
#[derive(Debug, Clone, Copy)]
pub struct Count(pub u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3);
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

/// So many of something, which is named as one of it: `1 file`, `2 files`, `0 entries`.
pub fn counted(count: u64, what: &str) -> String {
    format!("{} {}", Count(count), plural(count, what))
}

/// The word alone, for so many: `file`, `files`.
fn plural(count: u64, what: &str) -> String {
    let is_consonant = |letter: char| !matches!(letter, 'a' | 'e' | 'i' | 'o' | 'u');
    match what.strip_suffix('y').filter(|stem| stem.ends_with(is_consonant)) {
        _ if count == 1 => what.to_owned(),
        Some(stem) => format!("{stem}ies"),
        None => format!("{what}s"),
    }
}

/// One of two words: what goes with one of something, and what with any other number.
pub const fn one_or<'a>(count: u64, one: &'a str, more: &'a str) -> &'a str {
    if count == 1 { one } else { more }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_said_as_people_say_them() {
        for (number, said) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(Count(number).to_string(), said);
        }
    }

    #[test]
    fn one_of_something_is_no_plural() {
        for (number, what, said) in [
            (1, "file", "1 file"),
            (0, "file", "0 files"),
            (1234, "more node", "1,234 more nodes"),
            (1, "entry", "1 entry"),
            (2, "entry", "2 entries"),
            (2, "day", "2 days"),
        ] {
            assert_eq!(counted(number, what), said);
        }
    }
}
