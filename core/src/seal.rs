//! Sealing of items: plaintext to ciphertext in frames, each readable by itself.
//!
//! Owns content keys, nonces and the arithmetic of frames. Refuses a frame whose tag is wrong before
//! a byte of it is handed out. The idea: the key is a keyed hash of the plaintext, so a nonce can be
//! a counter, and equal content of one volume seals to equal bytes.
//!
//! ```text
//! item     frame 0 ‖ frame 1 ‖ … ‖ last frame (may be shorter; empty if the plaintext is)
//! frame    ChaCha20-Poly1305 of ≤ frame_bytes of plaintext ‖ 16-byte tag            (RFC 8439)
//! nonce    frame number u64 LE ‖ 1 if last else 0 ‖ log2(frame_bytes) ‖ 0 ‖ 0
//! key      BLAKE3 keyed_hash(convergence secret, plaintext)
//! ```
//!
//! The frame size is part of the nonce: the same content sealed with another frame size (a chunk of
//! another geometry) has the same key, and must not meet the same key stream at another place.

use core::{fmt, ops::Range};

use chacha20poly1305::{
    AeadInOut, ChaCha20Poly1305, Key, KeyInit, Nonce, Tag, aead::inout::InOutBuf,
};
use zeroize::Zeroize;

use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, TAG_BYTES};

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps the 32 secret bytes.
            pub const fn new(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 secret bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                self.0.zeroize();
            }
        }
    };
}

secret!(
    /// The secret under which a volume's content keys are made. Equal content meets within a
    /// volume, and nothing can be learned by guessing content from outside.
    ConvergenceSecret
);
secret!(
    /// The key of one sealed item: whoever has it can read the item, and nothing else.
    ContentKey
);

/// A frame that was not sealed under this key, at this place, in this form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The tag does not fit the bytes.
    #[error("frame {frame} is not what was sealed: wrong bytes, wrong key or wrong place")]
    Forged {
        /// Number of the frame within its item.
        frame: u64,
    },
    /// The bytes are not as many as the frames need.
    #[error("the sealed frames are {expected} bytes, got {got}")]
    Length {
        /// Bytes of the frames.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
}

/// The key of an item: a keyed hash of its plaintext.
pub fn content_key(secret: &ConvergenceSecret, plaintext: &[u8]) -> ContentKey {
    ContentKey(*blake3::keyed_hash(&secret.0, plaintext).as_bytes())
}

/// How many frames an item has: at least one.
pub const fn frame_count(plaintext_bytes: usize, frame_bytes: usize) -> usize {
    if plaintext_bytes == 0 { 1 } else { plaintext_bytes.div_ceil(frame_bytes) }
}

/// How long an item is when it is sealed.
pub const fn sealed_bytes(plaintext_bytes: usize, frame_bytes: usize) -> usize {
    plaintext_bytes + frame_count(plaintext_bytes, frame_bytes) * TAG_BYTES
}

/// Whether `frame_bytes` is a power of two between the smallest and the largest frame.
pub const fn is_frame_size(frame_bytes: usize) -> bool {
    frame_bytes.is_power_of_two()
        && FRAME_BYTES_MIN <= frame_bytes
        && frame_bytes <= FRAME_BYTES_MAX
}

/// The logarithm of a frame's size: 10 to 16.
#[expect(clippy::cast_possible_truncation, reason = "a usize has at most 64 trailing zeros")]
pub(crate) const fn log2(frame_bytes: usize) -> u8 {
    frame_bytes.trailing_zeros() as u8
}

fn nonce(frame_bytes: usize, frame: u64, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&frame.to_le_bytes());
    nonce[8] = u8::from(last);
    nonce[9] = log2(frame_bytes);
    nonce.into()
}

/// Seals frames of one item, in any order.
pub(crate) struct Sealer<'a> {
    cipher: ChaCha20Poly1305,
    frame_bytes: usize,
    plaintext: &'a [u8],
}

impl<'a> Sealer<'a> {
    pub(crate) fn new(key: &ContentKey, frame_bytes: usize, plaintext: &'a [u8]) -> Self {
        assert!(is_frame_size(frame_bytes), "{frame_bytes} bytes are no frame");
        Self { cipher: ChaCha20Poly1305::new(&Key::from(key.0)), frame_bytes, plaintext }
    }

    /// Seals frame number `frame` to the front of `out`; tells how many bytes that were.
    /// The plaintext is read once and the ciphertext written once: nothing is copied first.
    pub(crate) fn seal(&self, frame: usize, out: &mut [u8]) -> usize {
        let start = frame * self.frame_bytes;
        let end = self.plaintext.len().min(start + self.frame_bytes);
        let last = end == self.plaintext.len();
        let plaintext = &self.plaintext[start..end];
        let (text, rest) = out.split_at_mut(plaintext.len());
        let nonce = nonce(self.frame_bytes, frame as u64, last);
        let sealed = InOutBuf::new(plaintext, text)
            .ok()
            .and_then(|buffer| self.cipher.encrypt_inout_detached(&nonce, b"", buffer).ok());
        let tag = sealed.expect("a frame is far shorter than the cipher's limit of 256 GiB");
        rest[..TAG_BYTES].copy_from_slice(&tag);
        plaintext.len() + TAG_BYTES
    }
}

/// Seals an item.
///
/// # Panics
/// When `out` is not [`sealed_bytes`] long or `frame_bytes` is not a frame's size: the caller's
/// mistakes.
pub fn seal_into(key: &ContentKey, frame_bytes: usize, plaintext: &[u8], out: &mut [u8]) {
    assert_eq!(out.len(), sealed_bytes(plaintext.len(), frame_bytes), "room for the sealed item");
    let sealer = Sealer::new(key, frame_bytes, plaintext);
    let mut at = 0;
    for frame in 0..frame_count(plaintext.len(), frame_bytes) {
        at += sealer.seal(frame, &mut out[at..]);
    }
}

/// Opens one frame in place; the plaintext is the front of `sealed`.
///
/// # Errors
/// When the bytes are not those which were sealed as frame number `frame` under `key`. What
/// `sealed` holds then is of no use.
pub fn open_frame<'a>(
    key: &ContentKey,
    frame_bytes: usize,
    frame: u64,
    last: bool,
    sealed: &'a mut [u8],
) -> Result<&'a [u8], OpenError> {
    let cipher = ChaCha20Poly1305::new(&Key::from(key.0));
    let forged = OpenError::Forged { frame };
    let text_bytes = sealed.len().checked_sub(TAG_BYTES).ok_or(forged)?;
    let (text, tag) = sealed.split_at_mut(text_bytes);
    let tag = Tag::try_from(&*tag).map_err(|_| forged)?;
    cipher
        .decrypt_inout_detached(&nonce(frame_bytes, frame, last), b"", (&mut *text).into(), &tag)
        .map_err(|_| forged)?;
    Ok(text)
}

/// Whole frames of an item that cover a wanted range of its plaintext.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameSpan {
    /// Number of the first frame.
    pub first_frame: u64,
    /// Where the frames lie within the sealed item.
    pub sealed: Range<usize>,
    /// The plaintext they hold, as a range of the item's plaintext.
    pub plaintext: Range<usize>,
}

/// The frames to fetch for a range of the plaintext. The range is cut at the plaintext's end; an
/// empty range needs no frame.
pub fn frame_span(plaintext_bytes: usize, frame_bytes: usize, want: Range<usize>) -> FrameSpan {
    let end = want.end.min(plaintext_bytes);
    if want.start >= end {
        let at = want.start.min(plaintext_bytes);
        return FrameSpan { first_frame: 0, sealed: 0..0, plaintext: at..at };
    }
    let (first, after) = (want.start / frame_bytes, end.div_ceil(frame_bytes));
    let plaintext = first * frame_bytes..plaintext_bytes.min(after * frame_bytes);
    FrameSpan {
        first_frame: first as u64,
        sealed: plaintext.start + first * TAG_BYTES..plaintext.end + after * TAG_BYTES,
        plaintext,
    }
}

/// Opens the frames of a span in place and closes the gaps between them. The plaintext of the
/// whole frames is returned; it lies at the front of `sealed`.
///
/// # Errors
/// When there are too few or too many bytes, or a frame is not what was sealed.
pub fn open_span<'a>(
    key: &ContentKey,
    frame_bytes: usize,
    plaintext_bytes: usize,
    span: &FrameSpan,
    sealed: &'a mut [u8],
) -> Result<&'a mut [u8], OpenError> {
    check_length(span, sealed.len())?;
    let (mut from, mut to) = (0, 0);
    for frame in frames(frame_bytes, plaintext_bytes, span) {
        let place = &mut sealed[from..from + frame.bytes + TAG_BYTES];
        open_frame(key, frame_bytes, frame.number, frame.last, place)?;
        sealed.copy_within(from..from + frame.bytes, to);
        from += frame.bytes + TAG_BYTES;
        to += frame.bytes;
    }
    Ok(&mut sealed[..to])
}

/// Opens the frames of a span to another place, with no copy in between.
///
/// # Errors
/// As [`open_span`]. What `out` holds then is of no use, but it is never unverified plaintext.
///
/// # Panics
/// When `out` is not as long as `span.plaintext`: the caller's mistake.
pub fn open_span_into(
    key: &ContentKey,
    frame_bytes: usize,
    plaintext_bytes: usize,
    span: &FrameSpan,
    sealed: &[u8],
    out: &mut [u8],
) -> Result<(), OpenError> {
    assert_eq!(out.len(), span.plaintext.len(), "room for the plaintext of the span");
    check_length(span, sealed.len())?;
    let cipher = ChaCha20Poly1305::new(&Key::from(key.0));
    let (mut from, mut to) = (0, 0);
    for frame in frames(frame_bytes, plaintext_bytes, span) {
        let forged = OpenError::Forged { frame: frame.number };
        let (text, tag) = sealed[from..from + frame.bytes + TAG_BYTES].split_at(frame.bytes);
        let tag = Tag::try_from(tag).map_err(|_| forged)?;
        let buffer = InOutBuf::new(text, &mut out[to..to + frame.bytes]).map_err(|_| forged)?;
        let nonce = nonce(frame_bytes, frame.number, frame.last);
        cipher.decrypt_inout_detached(&nonce, b"", buffer, &tag).map_err(|_| forged)?;
        from += frame.bytes + TAG_BYTES;
        to += frame.bytes;
    }
    Ok(())
}

fn check_length(span: &FrameSpan, got: usize) -> Result<(), OpenError> {
    let expected = span.sealed.len();
    if got == expected { Ok(()) } else { Err(OpenError::Length { expected, got }) }
}

struct Frame {
    number: u64,
    bytes: usize,
    last: bool,
}

/// The frames of a span, in order.
fn frames(
    frame_bytes: usize,
    plaintext_bytes: usize,
    span: &FrameSpan,
) -> impl Iterator<Item = Frame> {
    let (first, plaintext) = (span.first_frame, span.plaintext.clone());
    (first..).zip(plaintext.clone().step_by(frame_bytes)).map(move |(number, start)| {
        let end = plaintext.end.min(start + frame_bytes);
        Frame { number, bytes: end - start, last: end == plaintext_bytes }
    })
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::noise;

    fn key() -> ContentKey {
        ContentKey::new([3; 32])
    }

    fn seal(frame_bytes: usize, plaintext: &[u8]) -> Vec<u8> {
        let mut out = vec![0; sealed_bytes(plaintext.len(), frame_bytes)];
        seal_into(&key(), frame_bytes, plaintext, &mut out);
        out
    }

    /// Opens a range of a sealed item, both ways, and cuts it from the frames.
    fn open(
        frame_bytes: usize,
        plaintext_bytes: usize,
        sealed: &[u8],
        want: Range<usize>,
    ) -> Result<Vec<u8>, OpenError> {
        let span = frame_span(plaintext_bytes, frame_bytes, want.clone());
        let mut frames = sealed.get(span.sealed.clone()).unwrap_or_default().to_vec();
        let mut copy = vec![0; span.plaintext.len()];
        let copied =
            open_span_into(&key(), frame_bytes, plaintext_bytes, &span, &frames, &mut copy);
        let opened = open_span(&key(), frame_bytes, plaintext_bytes, &span, &mut frames);
        assert_eq!(copied, opened.as_ref().map(|_| ()).map_err(|error| *error));
        let opened = opened?;
        assert_eq!(opened, copy);
        let start = span.plaintext.start;
        Ok(opened[want.start - start..want.end - start].to_vec())
    }

    #[test]
    fn an_item_of_any_size_around_frame_borders_comes_back() {
        for frame_bytes in [1 << 10, 4 << 10, 64 << 10] {
            for frames in 0..4usize {
                for bytes in (frames * frame_bytes).saturating_sub(17)..=frames * frame_bytes + 17 {
                    let plaintext = noise(bytes, 1);
                    let sealed = seal(frame_bytes, &plaintext);
                    assert_eq!(open(frame_bytes, bytes, &sealed, 0..bytes), Ok(plaintext));
                }
            }
        }
    }

    #[test]
    fn every_flipped_byte_is_caught() {
        let plaintext = noise(2500, 2);
        let mut sealed = seal(1024, &plaintext);
        for at in 0..sealed.len() {
            sealed[at] ^= 1 << (at % 8);
            let frame = (at / 1040) as u64;
            assert_eq!(open(1024, 2500, &sealed, 0..2500), Err(OpenError::Forged { frame }));
            sealed[at] ^= 1 << (at % 8);
        }
    }

    #[test]
    fn frames_elsewhere_and_items_cut_short_are_caught() {
        let plaintext = noise(4096, 3);
        let sealed = seal(1024, &plaintext);
        let swapped = [&sealed[1040..2080], &sealed[..1040], &sealed[2080..]].concat();
        assert!(open(1024, 4096, &swapped, 0..4096).is_err());
        // An item that is said to be shorter: its last frame is not marked as such.
        assert!(open(1024, 3072, &sealed[..3120], 0..3072).is_err());
        assert!(open(2048, 4096, &sealed[..4128], 0..4096).is_err(), "another frame size");
        assert_eq!(
            open(1024, 4096, &sealed[..4000], 0..4096),
            Err(OpenError::Length { expected: 4160, got: 0 })
        );
        let mut frame = sealed[..1040].to_vec();
        let other = ContentKey::new([4; 32]);
        assert!(open_frame(&other, 1024, 0, false, &mut frame).is_err());
    }

    #[test]
    fn another_frame_size_uses_another_key_stream() {
        let plaintext = noise(4096, 4);
        let (small, large) = (seal(1024, &plaintext), seal(2048, &plaintext));
        let equal = small.iter().zip(&large).take(1024).filter(|(a, b)| a == b).count();
        assert!(equal < 100, "{equal} of 1024 bytes are the same");
    }

    #[test]
    fn the_key_depends_on_content_and_secret() {
        let (one, two) = (ConvergenceSecret::new([1; 32]), ConvergenceSecret::new([2; 32]));
        assert_eq!(content_key(&one, b"tree"), content_key(&one, b"tree"));
        assert_ne!(content_key(&one, b"tree"), content_key(&one, b"Tree"));
        assert_ne!(content_key(&one, b"tree"), content_key(&two, b"tree"));
        assert_eq!(format!("{one:?}"), "ConvergenceSecret(..)");
    }

    #[test]
    fn golden_bytes_of_a_sealed_item() {
        let plaintext = b"a copse is many small trees";
        let key = content_key(&ConvergenceSecret::new([9; 32]), plaintext);
        let mut sealed = [0; 43];
        seal_into(&key, 1024, plaintext, &mut sealed);
        assert_eq!(
            HEXLOWER.encode(key.as_bytes()),
            "0565fb90758ab99499faccc1225134375761ee3e654ddc2653150e5dd225f9ad"
        );
        assert_eq!(
            HEXLOWER.encode(&sealed),
            "989d4158cd64ff9ea5e7483e70dd8e9bb3457371d58045a01df654a5cc9e55102ff9efecc4a9\
             df5b62cf51"
        );
        // Frame 1, which is not the last, of 64 KiB frames.
        let long = noise(3 << 16, 5);
        let long = seal(1 << 16, &long);
        assert_eq!(HEXLOWER.encode(&long[65_552..65_568]), "4da31121ea44d31ebe389e64efd77534");
    }

    proptest! {
        #[test]
        fn any_range_opens(
            log in 10..=12u32,
            bytes in 0..20_000usize,
            a in 0..20_000usize,
            b in 0..20_000usize,
        ) {
            let want = a.min(b).min(bytes)..a.max(b).min(bytes);
            let plaintext = noise(bytes, 6);
            let sealed = seal(1 << log, &plaintext);
            let span = frame_span(bytes, 1 << log, want.clone());
            prop_assert!(span.plaintext.start <= want.start && want.end <= span.plaintext.end);
            prop_assert!(span.plaintext.len() < want.len() + (2 << log));
            prop_assert_eq!(open(1 << log, bytes, &sealed, want.clone()), Ok(plaintext[want].to_vec()));
        }

        #[test]
        fn any_bytes_are_opened_or_refused(
            mut bytes in prop::collection::vec(any::<u8>(), 0..100),
            frame: u64,
            last: bool,
        ) {
            prop_assert!(open_frame(&key(), 1024, frame, last, &mut bytes).is_err());
        }
    }
}
