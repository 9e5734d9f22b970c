//! Reading and writing the byte formats that are hashed, signed or sealed.
//!
//! Little-endian, no alignment, no self-description beyond a magic and a version in front. Protobuf
//! is for messages; these bytes must be the same on every machine for all time, so each has exactly
//! one encoding: integers of variable length must be in their shortest form, and a reader must
//! arrive at the end.

/// Why bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end in the middle of a field.
    #[error("the bytes end early: {needed} more needed at offset {offset}")]
    Truncated {
        /// Where the field starts.
        offset: usize,
        /// How many bytes are missing.
        needed: usize,
    },
    /// There are bytes behind the end.
    #[error("{0} bytes behind the end")]
    Trailing(usize),
    /// A length or count is over its limit.
    #[error("{what} is {got}, over the limit of {limit}")]
    OverLimit {
        /// The field.
        what: &'static str,
        /// What the bytes say.
        got: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A field has a value with no meaning, or a number is not in its shortest form.
    #[error("{0} has no valid value")]
    Invalid(&'static str),
    /// The magic in front is another one.
    #[error("not {0}: the first bytes are another format's")]
    WrongMagic(&'static str),
    /// The version is not known here.
    #[error("{what} of version {got}: this program knows up to {known}; use a newer one")]
    UnknownVersion {
        /// The format.
        what: &'static str,
        /// The version found.
        got: u8,
        /// The newest version known.
        known: u8,
    },
}

/// Appends fields to a byte string.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty byte string.
    pub fn new() -> Self {
        Self::default()
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// LEB128, 1 to 10 bytes.
    pub fn varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push((value & 0x7f) as u8);
        self
    }

    /// A signed number: zigzag, then LEB128.
    pub fn signed(&mut self, value: i64) -> &mut Self {
        self.varint(((value << 1) ^ (value >> 63)) as u64)
    }

    /// Bytes of a length that the reader knows.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A length and then as many bytes.
    pub fn prefixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.varint(bytes.len() as u64).bytes(bytes)
    }

    /// How many bytes were written.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The byte string.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes fields off a byte string.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { all: bytes, at: 0 }
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let left = self.all.len() - self.at;
        if count > left {
            return Err(WireError::Truncated { offset: self.at, needed: count - left });
        }
        let taken = &self.all[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// LEB128 in its shortest form.
    pub fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(WireError::Invalid("a number over 64 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(WireError::Invalid("a number longer than needed"));
                }
                return Ok(value);
            }
        }
        Err(WireError::Invalid("a number over 64 bits"))
    }

    /// LEB128 that must not exceed `limit`.
    pub fn bounded(&mut self, what: &'static str, limit: u64) -> Result<u64, WireError> {
        let got = self.varint()?;
        if got > limit {
            return Err(WireError::OverLimit { what, got, limit });
        }
        Ok(got)
    }

    /// A signed number.
    pub fn signed(&mut self) -> Result<i64, WireError> {
        let raw = self.varint()?;
        Ok(((raw >> 1) as i64) ^ -((raw & 1) as i64))
    }

    /// A length, at most `limit`, and then as many bytes.
    pub fn prefixed(&mut self, what: &'static str, limit: usize) -> Result<&'a [u8], WireError> {
        let count = self.bounded(what, limit as u64)?;
        // Bounded by `limit`, which is a usize.
        self.bytes(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// A magic and a version of at most `known`, and at least 1.
    pub fn magic(&mut self, what: &'static str, magic: &[u8], known: u8) -> Result<u8, WireError> {
        if self.bytes(magic.len())? != magic {
            return Err(WireError::WrongMagic(what));
        }
        let got = self.u8()?;
        if got == 0 || got > known {
            return Err(WireError::UnknownVersion { what, got, known });
        }
        Ok(got)
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.all.len() - self.at
    }

    /// Checks that nothing is left.
    pub fn end(self) -> Result<(), WireError> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(WireError::Trailing(left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(a: u64, b: i64, c in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut writer = Writer::new();
            writer.varint(a).signed(b).prefixed(&c);
            let bytes = writer.finish();
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint(), Ok(a));
            prop_assert_eq!(reader.signed(), Ok(b));
            prop_assert_eq!(reader.prefixed("bytes", 300), Ok(&c[..]));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut reader = Reader::new(&bytes);
            while reader.varint().is_ok() && reader.prefixed("bytes", 10).is_ok() {}
        }
    }

    #[test]
    fn a_number_has_one_form() {
        assert_eq!(
            Reader::new(&[0x80, 0x00]).varint(),
            Err(WireError::Invalid("a number longer than needed"))
        );
        assert!(Reader::new(&[0xff; 10]).varint().is_err());
        let mut writer = Writer::new();
        writer.varint(u64::MAX);
        assert_eq!(Reader::new(&writer.finish()).varint(), Ok(u64::MAX));
    }

    #[test]
    fn magic_and_version_are_checked() {
        assert_eq!(Reader::new(b"ABC\x02").magic("a test", b"ABC", 3), Ok(2));
        assert!(matches!(
            Reader::new(b"ABC\x04").magic("a test", b"ABC", 3),
            Err(WireError::UnknownVersion { got: 4, known: 3, .. })
        ));
        assert_eq!(
            Reader::new(b"XBC\x01").magic("a test", b"ABC", 3),
            Err(WireError::WrongMagic("a test"))
        );
    }
}
