//! Byte strings as text that people copy and paste: join tokens and capabilities.
//!
//! Owns the prefix, the base32 and the checksum. Does not know what the bytes mean. The one idea:
//! a double click selects all of it, and a typo is found here, before anything is done with it.
//!
//! ```text
//! copse1t  mfrggzdfmztwq2lk…
//! prefix   base32 (RFC 4648, lower case, no padding) of  payload ‖ checksum
//!          checksum = first 4 bytes of BLAKE3(derive_key "copse text v1", prefix ‖ 0 ‖ payload)
//! ```

use data_encoding::{BASE32_NOPAD, DecodeKind};

/// In front of a join token.
pub const JOIN_TOKEN: &str = "copse1t";

/// In front of a read capability.
pub const READ_CAPABILITY: &str = "copse1r";

/// In front of a verify capability.
pub const VERIFY_CAPABILITY: &str = "copse1v";

/// Length of the checksum, in bytes: one typo in 4 billion goes unseen.
const CHECKSUM_BYTES: usize = 4;

/// Longest text that is looked at, in characters: tokens and capabilities have a few hundred, and
/// what a user pastes may be anything.
const TEXT_CHARS_MAX: usize = 16 << 10;

/// What the prefixes stand for, in error messages.
const KINDS: [(&str, &str); 3] = [
    (JOIN_TOKEN, "a join token"),
    (READ_CAPABILITY, "a read capability"),
    (VERIFY_CAPABILITY, "a verify capability"),
];

/// A text that was not copied as it was printed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Nothing there.
    #[error("there is no text: expected {}", describe(.0))]
    Empty(&'static str),
    /// It is one of ours, but another kind.
    #[error("{}; expected {}", this_is(.found, .expected), describe(.expected))]
    OtherKind {
        /// The prefix expected.
        expected: &'static str,
        /// The prefix found.
        found: &'static str,
    },
    /// It is none of ours.
    #[error("{start:?} is not the start of {}", describe(.expected))]
    Prefix {
        /// The prefix expected.
        expected: &'static str,
        /// The first characters.
        start: String,
    },
    /// Longer than any such text.
    #[error("{got} characters are too long for {}: copy only the text itself", describe(.expected))]
    TooLong {
        /// The prefix expected.
        expected: &'static str,
        /// Characters, without white space.
        got: usize,
    },
    /// A character that never occurs.
    #[error(
        "character {position} is {found:?}, but after the prefix there are only the letters a-z \
         and the digits 2-7{}: copy the text again",
        hint(*.found)
    )]
    Character {
        /// Counted from 1, without white space.
        position: usize,
        /// What is there.
        found: char,
    },
    /// All characters are possible, but they are not the ones that were printed.
    #[error(
        "{} with a typo or a part missing (its checksum does not fit): copy all of it again, from \
         {expected:?} to the end",
        kind(.expected)
    )]
    Checksum {
        /// The prefix expected.
        expected: &'static str,
    },
}

fn kind(prefix: &str) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == prefix).map_or("another text", |(_, name)| name)
}

/// What whoever has a capability may well try is answered, not only refused.
fn this_is(found: &str, expected: &str) -> String {
    if (found, expected) == (VERIFY_CAPABILITY, READ_CAPABILITY) {
        return "this capability can check and repair, not read".to_owned();
    }
    format!("this is {}", kind(found))
}

/// Whether a text claims to be of the kind that a prefix stands for, typos behind it or not.
pub fn is_kind(prefix: &str, text: &str) -> bool {
    let start = text.chars().filter(|c| !c.is_whitespace()).take(prefix.len());
    start.map(|c| c.to_ascii_lowercase()).eq(prefix.chars())
}

fn describe(prefix: &str) -> String {
    format!("{}, which starts with {prefix:?}", kind(prefix))
}

fn hint(found: char) -> &'static str {
    match found {
        '0' => " (is it the letter o?)",
        '1' => " (is it the letter l or i?)",
        '8' => " (is it the letter b?)",
        '9' => " (is it the letter g?)",
        _ => "",
    }
}

fn checksum(prefix: &str, payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key("copse text v1");
    hasher.update(prefix.as_bytes()).update(&[0]).update(payload);
    let mut sum = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

/// Writes a payload as text behind a prefix.
pub fn encode(prefix: &str, payload: &[u8]) -> String {
    let bytes = [payload, &checksum(prefix, payload)].concat();
    let mut text = BASE32_NOPAD.encode(&bytes);
    text.make_ascii_lowercase();
    text.insert_str(0, prefix);
    text
}

/// Reads the payload of a text that [`encode`] wrote behind the same prefix. White space (also the
/// line breaks of a mail program) and the case of letters do not matter.
///
/// # Errors
/// When the text is anything else; the message says what to do.
pub fn decode(prefix: &'static str, text: &str) -> Result<Vec<u8>, TextError> {
    let text: String = text.split_whitespace().collect::<String>().to_ascii_lowercase();
    if text.is_empty() {
        return Err(TextError::Empty(prefix));
    }
    let Some(body) = text.strip_prefix(prefix) else {
        return Err(match KINDS.iter().find(|(known, _)| text.starts_with(known)) {
            Some((found, _)) => TextError::OtherKind { expected: prefix, found },
            None => TextError::Prefix { expected: prefix, start: text.chars().take(12).collect() },
        });
    };
    if text.len() > TEXT_CHARS_MAX {
        return Err(TextError::TooLong { expected: prefix, got: text.chars().count() });
    }
    if let Some((at, found)) =
        body.chars().enumerate().find(|(_, c)| !matches!(c, 'a'..='z' | '2'..='7'))
    {
        return Err(TextError::Character { position: prefix.len() + at + 1, found });
    }
    let mut bytes = BASE32_NOPAD.decode(body.to_ascii_uppercase().as_bytes()).map_err(|error| {
        // A wrong length or stray last bits; symbols were checked above.
        debug_assert!(matches!(error.kind, DecodeKind::Length | DecodeKind::Trailing));
        TextError::Checksum { expected: prefix }
    })?;
    let payload_bytes =
        bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(TextError::Checksum { expected: prefix })?;
    if bytes[payload_bytes..] != checksum(prefix, &bytes[..payload_bytes]) {
        return Err(TextError::Checksum { expected: prefix });
    }
    bytes.truncate(payload_bytes);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> String {
        decode(JOIN_TOKEN, text).expect_err("the text should be refused").to_string()
    }

    #[test]
    fn the_text_of_three_bytes() {
        assert_eq!(encode(JOIN_TOKEN, &[1, 2, 3]), "copse1taebagcccnpba");
    }

    #[test]
    fn white_space_and_case_do_not_matter() {
        let text = encode(JOIN_TOKEN, b"payload").to_ascii_uppercase();
        let (head, tail) = text.split_at(11);
        assert_eq!(decode(JOIN_TOKEN, &format!(" {head}\r\n  {tail}\n")), Ok(b"payload".to_vec()));
    }

    #[test]
    fn an_error_says_what_is_wrong_and_what_to_do() {
        assert_eq!(
            refused(" \n"),
            "there is no text: expected a join token, which starts with \"copse1t\""
        );
        assert_eq!(
            refused(&encode(READ_CAPABILITY, b"x")),
            "this is a read capability; expected a join token, which starts with \"copse1t\""
        );
        let error = decode(READ_CAPABILITY, &encode(VERIFY_CAPABILITY, b"x")).expect_err("no key");
        assert_eq!(
            error.to_string(),
            "this capability can check and repair, not read; expected a read capability, which \
             starts with \"copse1r\""
        );
        assert!(is_kind(VERIFY_CAPABILITY, " COPSE 1Vxyz") && !is_kind(JOIN_TOKEN, "copse1v"));
        assert_eq!(
            refused("https://example.org"),
            "\"https://exam\" is not the start of a join token, which starts with \"copse1t\""
        );
        assert_eq!(
            refused("copse1tab0d"),
            "character 10 is '0', but after the prefix there are only the letters a-z and the \
             digits 2-7 (is it the letter o?): copy the text again"
        );
        let whole = encode(JOIN_TOKEN, b"payload");
        assert_eq!(
            refused(&whole[..whole.len() - 1]),
            "a join token with a typo or a part missing (its checksum does not fit): copy all of \
             it again, from \"copse1t\" to the end"
        );
        assert!(refused(&"copse1t".repeat(10_000)).contains("70000 characters are too long"));
    }

    proptest! {
        #[test]
        fn any_payload_comes_back(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(decode(JOIN_TOKEN, &encode(JOIN_TOKEN, &payload)), Ok(payload));
        }

        #[test]
        fn a_changed_or_lost_character_is_noticed(
            payload in prop::collection::vec(any::<u8>(), 0..100),
            at: prop::sample::Index,
            replacement in prop::option::of("[a-z2-7]"),
        ) {
            let text = encode(JOIN_TOKEN, &payload);
            let at = at.index(text.len());
            let typo =
                format!("{}{}{}", &text[..at], replacement.unwrap_or_default(), &text[at + 1..]);
            prop_assume!(typo != text);
            prop_assert!(decode(JOIN_TOKEN, &typo).is_err());
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(copse1t)?\\PC{0,40}") {
            let _ = decode(JOIN_TOKEN, &text).map_err(|error| error.to_string());
        }
    }
}
