//! What a directory holds: names, times, kinds, and where their content lies.
//!
//! Owns the values and what makes them valid. Refuses names that no directory may hold. The bytes
//! of an entry are in [`super::node`]; how content is fetched is in [`super::reader`].

use core::fmt;

use crate::{
    extent::Extent,
    limits::{NAME_BYTES_MAX, SYMLINK_BYTES_MAX},
};

/// Permission bits that are kept: rwx three times, set-uid, set-gid, sticky.
pub const MODE_MAX: u32 = 0o7777;

/// Attributes of one entry, in bytes: an entry must stay small beside a node.
pub const ATTRIBUTES_BYTES_MAX: usize = 4 << 10;

/// Why bytes cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes.
    #[error("a name must not be empty")]
    Empty,
    /// Too many bytes.
    #[error(
        "the name {name} has {got} bytes: at most {NAME_BYTES_MAX} are allowed; use a shorter one"
    )]
    TooLong {
        /// The name, printable and cut.
        name: String,
        /// Its length in bytes.
        got: usize,
    },
    /// `.` or `..`.
    #[error("the name {0:?} means a directory by its place and cannot be used here")]
    Dots(String),
    /// A slash or NUL byte.
    #[error("the name {0} has a '/' or a NUL byte in it; no file system could hold it")]
    Byte(String),
}

/// A checked name in a directory: 1 to 255 bytes of any kind but `/` and NUL, not `.` or `..`.
///
/// The root of a tree alone may be [unnamed](Name::UNNAMED).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Vec<u8>);

impl Name {
    /// The name of a root that has none: a collection, or standard input.
    pub const UNNAMED: Self = Self(Vec::new());

    /// Checks a name.
    ///
    /// # Errors
    /// When it is empty, too long, `.`, `..`, or has a slash or NUL in it.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.len() > NAME_BYTES_MAX {
            let name = format!("{}...", printable(&bytes[..32]));
            return Err(NameError::TooLong { name, got: bytes.len() });
        }
        if bytes == b"." || bytes == b".." {
            return Err(NameError::Dots(printable(bytes)));
        }
        if bytes.iter().any(|&byte| byte == b'/' || byte == 0) {
            return Err(NameError::Byte(printable(bytes)));
        }
        Ok(Self(bytes.to_vec()))
    }

    /// Like [`Name::new`], but no bytes are [`Name::UNNAMED`].
    ///
    /// # Errors
    /// As [`Name::new`], except for the empty name.
    pub fn of_root(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.is_empty() { Ok(Self::UNNAMED) } else { Self::new(bytes) }
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is a root without a name.
    pub fn is_unnamed(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Name {
    /// Safe for a terminal: control characters and bytes that are no UTF-8 are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Bytes as text that a terminal can show: valid UTF-8 stays, controls and other bytes are escaped.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for character in part.valid().chars() {
            if character.is_control() || character == '\\' {
                out.extend(character.escape_default());
            } else {
                out.push(character);
            }
        }
        for byte in part.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// A moment: seconds since 1970-01-01 00:00 UTC (negative before), and nanoseconds after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    seconds: i64,
    nanoseconds: u32,
}

impl Timestamp {
    /// Nothing when there are 10^9 nanoseconds or more.
    pub const fn new(seconds: i64, nanoseconds: u32) -> Option<Self> {
        if nanoseconds < 1_000_000_000 { Some(Self { seconds, nanoseconds }) } else { None }
    }

    /// Whole seconds since 1970.
    pub const fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds of the second, below 10^9.
    pub const fn nanoseconds(self) -> u32 {
        self.nanoseconds
    }
}

/// What a file, directory or link has beside its name and content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits, at most [`MODE_MAX`].
    pub mode: u32,
    /// When its content last changed.
    pub modified: Timestamp,
    /// Named values for later formats.
    pub attributes: Attributes,
}

impl Meta {
    /// Permission bits and a time, no attributes.
    pub fn new(mode: u32, modified: Timestamp) -> Self {
        Self { mode, modified, attributes: Attributes::default() }
    }
}

/// Numbered values that this version keeps and does not interpret: the place of extended
/// attributes. Sorted by number; each number once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes(Vec<(u64, Vec<u8>)>);

impl Attributes {
    /// The value of a number.
    pub fn get(&self, number: u64) -> Option<&[u8]> {
        let at = self.0.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        self.0.get(at).map(|(_, value)| &value[..])
    }

    /// Sets the value of a number. Attributes over [`ATTRIBUTES_BYTES_MAX`] in all are refused when
    /// the entry is added to a tree.
    pub fn set(&mut self, number: u64, value: Vec<u8>) {
        match self.0.binary_search_by_key(&number, |(number, _)| *number) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (number, value)),
        }
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.0.iter().map(|(number, value)| (*number, &value[..]))
    }
}

/// One thing in a directory. `R` says where content lies: [`Extent`] when read; while a tree is
/// being written, also places in a pack that is not closed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<R = Extent> {
    /// Its name, unique in the directory.
    pub name: Name,
    /// Mode, time, attributes.
    pub meta: Meta,
    /// What it is.
    pub kind: Kind<R>,
}

impl<R> Entry<R> {
    /// What it adds to the directory it lies in.
    pub fn counts(&self) -> Counts {
        match &self.kind {
            Kind::File { size, .. } => Counts { entries: 1, all: 1, bytes: *size },
            Kind::Symlink { .. } => Counts { entries: 1, all: 1, bytes: 0 },
            Kind::Directory { counts, .. } => {
                Counts { entries: 1, all: counts.all.saturating_add(1), bytes: counts.bytes }
            }
        }
    }
}

/// File, directory or symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<R = Extent> {
    /// Bytes.
    File {
        /// How many.
        size: u64,
        /// Where they are.
        content: Content<R>,
    },
    /// Names.
    Directory {
        /// The root node; none when it is empty.
        root: Option<R>,
        /// How much is in it.
        counts: Counts,
    },
    /// A path to somewhere else, not followed here.
    Symlink {
        /// 1 to 4096 bytes without NUL.
        target: Vec<u8>,
    },
}

/// How much lies in and under a directory. A reader checks them against what it finds, which is
/// also what ends the walk through a tree that contains itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Counts {
    /// Entries of the directory itself.
    pub entries: u64,
    /// Entries of it and of all directories below.
    pub all: u64,
    /// Bytes of all files in and below it.
    pub bytes: u64,
}

impl Counts {
    /// Both together; nothing when a sum is over 64 bits.
    pub fn plus(self, other: Self) -> Option<Self> {
        Some(Self {
            entries: self.entries.checked_add(other.entries)?,
            all: self.all.checked_add(other.all)?,
            bytes: self.bytes.checked_add(other.bytes)?,
        })
    }

    /// Whether no count is larger than the other's.
    pub fn within(&self, other: &Self) -> bool {
        self.entries <= other.entries && self.all <= other.all && self.bytes <= other.bytes
    }
}

/// Where the bytes of a file are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content<R = Extent> {
    /// Here: at most [`crate::limits::INLINE_BYTES_MAX`].
    Inline(Vec<u8>),
    /// In a few pieces, in order, at most [`super::node::PIECES_IN_ENTRY_MAX`].
    Pieces(Vec<Piece<R>>),
    /// In many pieces: the root of a tree of them.
    Tree(R),
}

/// A stretch of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<R = Extent> {
    /// Sealed bytes.
    Data(R),
    /// So many zero bytes that are stored nowhere.
    Hole(u64),
}

/// Checks the target of a symbolic link.
pub(crate) fn is_target(target: &[u8]) -> bool {
    !target.is_empty() && target.len() <= SYMLINK_BYTES_MAX && !target.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_any_bytes_that_a_file_system_can_hold() {
        for good in [&b"a"[..], b"...", b"a b\n", b"\xff\xfe", &[b'x'; NAME_BYTES_MAX]] {
            assert_eq!(Name::new(good).expect("a name").as_bytes(), good);
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; NAME_BYTES_MAX + 1]] {
            assert!(Name::new(bad).is_err(), "{bad:?} was taken for a name");
        }
        assert!(Name::of_root(b"").expect("a root").is_unnamed());
    }

    #[test]
    fn a_name_is_shown_without_harm_to_the_terminal() {
        let name = Name::new(b"caf\xc3\xa9 \x1b[31m\xff\\").expect("a name");
        assert_eq!(name.to_string(), "caf\u{e9} \\u{1b}[31m\\xff\\\\");
    }

    #[test]
    fn attributes_are_kept_by_number() {
        let mut attributes = Attributes::default();
        attributes.set(7, b"b".to_vec());
        attributes.set(3, b"a".to_vec());
        attributes.set(7, b"c".to_vec());
        assert_eq!(attributes.get(7), Some(&b"c"[..]));
        assert_eq!(attributes.iter().map(|(number, _)| number).collect::<Vec<_>>(), [3, 7]);
        assert_eq!(Timestamp::new(0, 1_000_000_000), None);
    }
}
