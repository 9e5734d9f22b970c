//! Listing a directory, alone or with all below, whole or under a prefix.
//!
//! Owns the way through directories, depth first. Holds one directory of each level open, never a
//! whole tree. One idea: names are in order, so everything under a prefix lies together: what is
//! before it is skipped without being read, and behind it the walk ends.

use copse_core::tree::{Entry, Kind, Name, path::PATH_NAMES_MAX};
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};

use crate::{error::ReadError, tree_read::TreeReader};

/// A listing under way.
pub(super) struct Walk {
    tree: TreeReader,
    prefix: Vec<u8>,
    recursive: bool,
    levels: Vec<Level>,
}

struct Level {
    /// Of the directory, relative to the one listed; with a slash behind it unless empty.
    path: Vec<u8>,
    entries: BoxStream<'static, Result<Entry, ReadError>>,
}

impl Walk {
    /// Lists a directory: entries whose path relative to it starts with `prefix`.
    ///
    /// # Errors
    /// When the entry is no directory.
    pub(super) fn new(
        tree: TreeReader,
        directory: &Entry,
        recursive: bool,
        prefix: Vec<u8>,
    ) -> Result<Self, ReadError> {
        let mut walk = Self { tree, prefix, recursive, levels: Vec::new() };
        walk.enter(Vec::new(), directory)?;
        Ok(walk)
    }

    /// The next entry, with its path relative to the listed directory.
    pub(super) async fn next(&mut self) -> Result<Option<(Vec<u8>, Entry)>, ReadError> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            let Some(entry) = level.entries.try_next().await? else {
                self.levels.pop();
                continue;
            };
            let mut path = level.path.clone();
            path.extend_from_slice(entry.name.as_bytes());
            match judge(&path, &self.prefix) {
                Place::Before => {}
                Place::Above => self.enter_if_directory(path, &entry)?,
                Place::Within => {
                    self.enter_if_directory(path.clone(), &entry)?;
                    return Ok(Some((path, entry)));
                }
                Place::Behind => {
                    self.levels.pop();
                }
            }
        }
    }

    fn enter_if_directory(&mut self, mut path: Vec<u8>, entry: &Entry) -> Result<(), ReadError> {
        if self.recursive && matches!(entry.kind, Kind::Directory { .. }) {
            path.push(b'/');
            self.enter(path, entry)?;
        }
        Ok(())
    }

    fn enter(&mut self, path: Vec<u8>, directory: &Entry) -> Result<(), ReadError> {
        if self.levels.len() > PATH_NAMES_MAX {
            return Err(ReadError::TooDeep { depth: PATH_NAMES_MAX });
        }
        let rest = self.prefix.strip_prefix(&path[..]);
        let first = rest.and_then(|rest| rest.split(|byte| *byte == b'/').next());
        // What is no name is the start of none: all are looked at, and none fits.
        let entries = match first.and_then(|name| Name::new(name).ok()) {
            Some(name) => self.tree.list_from(directory, name)?.boxed(),
            None => self.tree.list(directory)?.boxed(),
        };
        self.levels.push(Level { path, entries });
        Ok(())
    }
}

/// Where a path lies, seen from a prefix.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// It and all below it come before.
    Before,
    /// Below it there may be paths with the prefix.
    Above,
    /// It has the prefix.
    Within,
    /// It and all names after it in its directory come after.
    Behind,
}

fn judge(path: &[u8], prefix: &[u8]) -> Place {
    if path.starts_with(prefix) {
        Place::Within
    } else if prefix.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/")) {
        Place::Above
    } else if path > prefix {
        Place::Behind
    } else {
        Place::Before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_sorted_around_a_prefix() {
        for (path, prefix, expected) in [
            ("a", "", Place::Within),
            ("deep", "deep/er", Place::Above),
            ("dee", "deep/er", Place::Before),
            ("deep-", "deep/er", Place::Before),
            ("deeper", "deep/er", Place::Behind),
            ("deep/er", "deep/er", Place::Within),
            ("deep/erx", "deep/er", Place::Within),
            ("deep/er/small", "deep/er", Place::Within),
            ("deep/eq", "deep/er", Place::Before),
            ("deep/es", "deep/er", Place::Behind),
            ("a", "a/", Place::Above),
            ("a/b", "a/", Place::Within),
            ("b", "a", Place::Behind),
        ] {
            assert_eq!(judge(path.as_bytes(), prefix.as_bytes()), expected, "{path} {prefix}");
        }
    }
}
