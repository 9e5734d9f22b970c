//! The marker file: says that this directory is a certain node's store.
//!
//! It is made once, by `init`. A store without it is not opened: an empty mount point of a disk
//! that is missing must not be taken for an empty store. Its lock keeps a second process out.
//!
//! ```text
//! COPSE-STORE     text, four lines of fact under three of explanation
//! # …
//! version 1
//! store <64 hexadecimal digits>     random; keys the checks of the records
//! node <64 hexadecimal digits>      whose store this is
//! check <16 hexadecimal digits>     first 8 bytes of BLAKE3 of everything above
//! ```

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use copse_core::ids::NodeId;
use data_encoding::HEXLOWER;

use super::segment::StoreId;

/// The marker's name in the store's directory.
pub const MARKER_FILE: &str = "COPSE-STORE";

const VERSION_LINE: &str = "version 1";
const EXPLANATION: &str = "\
# This directory is the shard store of a Copse node, and this file is the proof. Without it the
# node does not start, so that it never fills the empty mount point of a disk that is missing.
# Made by `copse-node init`. Do not edit, copy or delete it: the shards cannot be read without it.
";
/// A marker, at most, in bytes: what is read of a file with this name.
const MARKER_BYTES_MAX: u64 = 4096;

/// Whose store it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marker {
    /// Which store.
    pub(super) store: StoreId,
    /// Whose.
    pub(super) node: NodeId,
}

/// Why there is no marker to be read.
#[derive(Debug, thiserror::Error)]
pub enum MarkerError {
    /// There is none.
    #[error("there is no {MARKER_FILE} in it; is the disk mounted?")]
    Missing,
    /// It is not what it should be.
    #[error("its {MARKER_FILE} is damaged or of a newer version; restore it from a copy")]
    Damaged,
    /// It cannot be read.
    #[error("its {MARKER_FILE} cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl Marker {
    fn encode(&self) -> String {
        let facts = format!(
            "{EXPLANATION}{VERSION_LINE}\nstore {}\nnode {}\n",
            HEXLOWER.encode(&self.store.0),
            self.node
        );
        let check = check(&facts);
        format!("{facts}check {check}\n")
    }

    fn decode(text: &str) -> Option<Self> {
        let facts_end = text.rfind("check ")?;
        let (facts, last) = text.split_at(facts_end);
        if last.strip_prefix("check ")?.trim_end() != check(facts) {
            return None;
        }
        let mut lines = facts.lines().filter(|line| !line.starts_with('#'));
        if lines.next()? != VERSION_LINE {
            return None;
        }
        let store = HEXLOWER.decode(lines.next()?.strip_prefix("store ")?.as_bytes()).ok()?;
        let node = lines.next()?.strip_prefix("node ")?.parse().ok()?;
        Some(Self { store: StoreId(store.try_into().ok()?), node })
    }

    /// Writes the marker of a new store and makes it durable. Refuses to replace one.
    pub(super) fn create(&self, store: &Path) -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(store.join(MARKER_FILE))?;
        file.write_all(self.encode().as_bytes())?;
        file.sync_all()?;
        File::open(store)?.sync_all()
    }

    /// Reads the marker of a store, and locks it as long as the file is open.
    pub(super) fn open(store: &Path) -> Result<(Self, File), MarkerError> {
        use io::Read as _;

        let mut file = match File::open(store.join(MARKER_FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(MarkerError::Missing);
            }
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        (&mut file).take(MARKER_BYTES_MAX).read_to_end(&mut bytes)?;
        let text = String::from_utf8(bytes).map_err(|_| MarkerError::Damaged)?;
        Ok((Self::decode(&text).ok_or(MarkerError::Damaged)?, file))
    }
}

fn check(facts: &str) -> String {
    HEXLOWER.encode(&blake3::hash(facts.as_bytes()).as_bytes()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker() -> Marker {
        Marker { store: StoreId([7; 32]), node: NodeId::new([9; 32]) }
    }

    #[test]
    fn a_marker_has_these_bytes() {
        let text = marker().encode();
        let facts = text.strip_prefix(EXPLANATION).expect("the explanation comes first");
        let expected = format!(
            "version 1\nstore {}\nnode {}\ncheck 27429a70a4ce1ad8\n",
            "07".repeat(32),
            "09".repeat(32)
        );
        assert_eq!(facts, expected);
        assert_eq!(Marker::decode(&text), Some(marker()));
    }

    #[test]
    fn an_edited_or_cut_marker_is_none() {
        let text = marker().encode();
        assert_eq!(Marker::decode(&text.replace("node 0909", "node 0908")), None);
        for end in 0..text.len() - 1 {
            assert_eq!(Marker::decode(&text[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn a_marker_is_made_once() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(matches!(Marker::open(dir.path()), Err(MarkerError::Missing)));
        marker().create(dir.path()).expect("the first time");
        assert_eq!(Marker::open(dir.path()).expect("a marker").0, marker());
        let again = marker().create(dir.path()).expect_err("the second time");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }
}
