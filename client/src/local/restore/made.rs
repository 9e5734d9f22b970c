//! What a restore has made, so that two names that are one to the file system are noticed.
//!
//! Owns the rules for a place that is taken. Decides by what the system says is the same file, not by
//! spelling: what it takes for one name (case, accents, short names) differs from one to the next.

use std::{collections::HashSet, fs, os::unix::fs::MetadataExt as _, path::Path};

use super::{RestoreError, at};

/// The entries of this run. In a fresh one whatever is there was made by it, so nothing need be kept;
/// in one that goes on with another, the numbers (inodes) of those made or found, 8 bytes for each.
#[derive(Debug)]
pub(super) enum Made {
    Fresh,
    Resumed(HashSet<u64>),
}

impl Made {
    /// An entry is about to be moved to its place, or has just been made there.
    pub(super) fn add_number(&mut self, number: u64) {
        if let Self::Resumed(numbers) = self {
            numbers.insert(number);
        }
    }

    /// An entry has just been made there.
    pub(super) fn add(&mut self, path: &Path) -> Result<(), RestoreError> {
        if let Self::Resumed(_) = self {
            self.add_number(path.symlink_metadata().map_err(at(path))?.ino());
        }
        Ok(())
    }

    /// Whether what is at a path was made in this run, so for another entry.
    pub(super) fn has(&self, found: &fs::Metadata) -> bool {
        match self {
            Self::Fresh => true,
            Self::Resumed(numbers) => numbers.contains(&found.ino()),
        }
    }

    /// Takes what is at a path for the entry that shall be there, made by an earlier try of the same
    /// source: when it is such a thing, and not another entry of this run.
    pub(super) fn claim(
        &mut self,
        path: &Path,
        is_it: impl FnOnce(&fs::Metadata) -> bool,
    ) -> Result<(), RestoreError> {
        let found = path.symlink_metadata().map_err(at(path))?;
        if self.has(&found) || !is_it(&found) {
            return Err(RestoreError::TwoNames(path.to_owned()));
        }
        self.add_number(found.ino());
        Ok(())
    }
}
