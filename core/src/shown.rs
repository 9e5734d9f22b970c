//! Text that strangers chose, made fit for a terminal.
//!
//! Owns the escapes. The one idea: names in a tree, and what nodes say of themselves, are whatever somebody
//! wished; shown as they are, they could write to the screen or pass for something else.

use std::fmt::Write as _;

/// A sentence in which control characters are escaped: it may hold names that others chose.
pub fn sentence(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() || is_bidi_control(letter) {
            safe.extend(letter.escape_default());
        } else {
            safe.push(letter);
        }
    }
    safe
}

/// A name in which control characters and bytes that are not UTF-8 are escaped, as `$'...'` of a shell reads
/// them: a name cannot write to the terminal, and two different names never look the same.
pub fn name(bytes: &[u8]) -> String {
    let mut text = String::new();
    let escape = |bytes: &[u8], text: &mut String| {
        for byte in bytes {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    };
    for part in bytes.utf8_chunks() {
        for letter in part.valid().chars() {
            if letter == '\\' {
                text.push_str("\\\\");
            } else if letter.is_control() || is_bidi_control(letter) {
                escape(letter.encode_utf8(&mut [0; 4]).as_bytes(), &mut text);
            } else {
                text.push(letter);
            }
        }
        escape(part.invalid(), &mut text);
    }
    text
}

/// Characters that turn the direction of text around, to make a name look like another.
fn is_bidi_control(letter: char) -> bool {
    matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sentence_reaches_the_terminal_raw() {
        assert_eq!(
            sentence("cannot write a\x1b[31mb\nc: \\x1b"),
            "cannot write a\\u{1b}[31mb\\nc: \\x1b"
        );
    }

    #[test]
    fn no_name_reaches_the_terminal_raw() {
        assert_eq!(name(b"a\x1b[31mb\nc\xff\\"), "a\\x1b[31mb\\x0ac\\xff\\\\");
        assert_eq!(name("grün ✓".as_bytes()), "grün ✓");
        assert_eq!(name("x\u{202e}gpj".as_bytes()), "x\\xe2\\x80\\xaegpj");
    }
}
