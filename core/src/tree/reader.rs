//! Reading directories: a name, a path, or all entries in order, as machines without I/O.
//!
//! Owns which node is needed next and whether it fits where it was found. Refuses nodes that break the
//! promises of their parents. One idea: heights only fall and counts only run out, so a hostile tree,
//! even one that contains itself, comes to an end.
//!
//! A machine is stepped until it says [`Reading::Fetch`], is given that extent's plaintext by `feed`,
//! and is stepped again.

use super::{
    entry::{Counts, Entry, Kind, Name},
    node::{DirectoryNode, NodeError, decode_directory, decode_root},
    path,
};
use crate::extent::Extent;

/// What a machine says when stepped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading<T> {
    /// Fetch this item and feed its plaintext. Stepping again says the same.
    Fetch(Extent),
    /// Here is what was asked for, or its next part.
    Ready(T),
    /// There is no more; when one thing was looked for, it is not there.
    End,
}

/// Why a tree cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A node is not what it should be.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The path leads nowhere.
    #[error("there is no {path} in this tree: look with `copse ls` what there is")]
    NotFound {
        /// The path up to the name that is missing.
        path: String,
    },
    /// The path goes on behind a file or link.
    #[error("{path} is no directory")]
    NotADirectory {
        /// The path up to what is no directory.
        path: String,
    },
    /// Not a file.
    #[error("{name} is no file, so it has no bytes to read")]
    NotAFile {
        /// What it is called.
        name: String,
    },
    /// More was asked for than there is.
    #[error("bytes {start} to {end} were asked for, but there are only {size}")]
    OutOfRange {
        /// First byte asked for.
        start: u64,
        /// Behind the last byte asked for.
        end: u64,
        /// Size of the file.
        size: u64,
    },
    /// Fed without having asked: the caller's mistake.
    #[error("plaintext came that was not asked for")]
    OutOfTurn,
}

/// A node to fetch, and what its parent promised of it.
#[derive(Debug, Clone)]
struct Wanted {
    extent: Extent,
    height: Option<u8>,
    first: Option<Name>,
    below: Option<Name>,
}

impl Wanted {
    const fn root(extent: Extent) -> Self {
        Self { extent, height: None, first: None, below: None }
    }

    fn open(&self, plaintext: &[u8]) -> Result<DirectoryNode, NodeError> {
        let node = decode_directory(plaintext, &self.extent)?;
        let (height, first, last) = match &node {
            DirectoryNode::Leaf(entries) => {
                (0, entries.first().map(|e| &e.name), entries.last().map(|e| &e.name))
            }
            DirectoryNode::Inner { height, branches } => {
                (*height, branches.first().map(|b| &b.first), branches.last().map(|b| &b.first))
            }
        };
        if self.height.is_some_and(|wanted| wanted != height) {
            return Err(NodeError::Contradiction("a node at another height than its parent says"));
        }
        if (self.first.is_some() && self.first.as_ref() != first)
            || (self.below.is_some() && self.below.as_ref() <= last)
        {
            return Err(NodeError::Contradiction("a node with other names than its parent says"));
        }
        Ok(node)
    }
}

/// The children of an inner node, as they are to be fetched.
fn children(
    from: Wanted,
    height: u8,
    branches: Vec<super::node::Branch>,
) -> impl DoubleEndedIterator<Item = Wanted> {
    let mut below: Vec<_> =
        branches.iter().skip(1).map(|branch| Some(branch.first.clone())).collect();
    below.push(from.below);
    branches.into_iter().zip(below).map(move |(branch, below)| Wanted {
        extent: branch.node,
        height: height.checked_sub(1),
        first: Some(branch.first),
        below,
    })
}

/// Looks one name up in one directory.
#[derive(Debug, Clone)]
pub struct Lookup {
    name: Name,
    state: LookupState,
}

#[derive(Debug, Clone)]
enum LookupState {
    Wants(Wanted),
    Found(Entry),
    Absent,
}

impl Lookup {
    /// Looks in the directory with this root node; none for an empty one.
    pub fn new(root: Option<Extent>, name: Name) -> Self {
        let state = root.map_or(LookupState::Absent, |root| LookupState::Wants(Wanted::root(root)));
        Self { name, state }
    }

    /// What to fetch, the entry, or the end when there is none.
    pub fn step(&self) -> Reading<Entry> {
        match &self.state {
            LookupState::Wants(wanted) => Reading::Fetch(wanted.extent.clone()),
            LookupState::Found(entry) => Reading::Ready(entry.clone()),
            LookupState::Absent => Reading::End,
        }
    }

    /// Takes the plaintext asked for.
    ///
    /// # Errors
    /// When it is not what it should be, or was not asked for.
    pub fn feed(&mut self, plaintext: &[u8]) -> Result<(), ReadError> {
        let LookupState::Wants(wanted) = &self.state else { return Err(ReadError::OutOfTurn) };
        self.state = match wanted.open(plaintext)? {
            DirectoryNode::Leaf(mut entries) => {
                match entries.binary_search_by(|entry| entry.name.cmp(&self.name)) {
                    Ok(at) => LookupState::Found(entries.swap_remove(at)),
                    Err(_) => LookupState::Absent,
                }
            }
            DirectoryNode::Inner { height, branches } => {
                let after = branches.partition_point(|branch| branch.first <= self.name);
                match after.checked_sub(1) {
                    Some(at) => children(wanted.clone(), height, branches)
                        .nth(at)
                        .map_or(LookupState::Absent, LookupState::Wants),
                    None => LookupState::Absent,
                }
            }
        };
        Ok(())
    }
}

/// Follows a path from the root item of a tree. Links are not followed: what they point to is for
/// the file system in which the tree is unpacked.
#[derive(Debug, Clone)]
pub struct PathLookup {
    path: Vec<Name>,
    /// How many names were found.
    found: usize,
    state: PathState,
}

#[derive(Debug, Clone)]
enum PathState {
    Root(Extent),
    Name(Lookup),
    Found(Entry),
}

impl PathLookup {
    /// Starts at a root item. An empty path finds the root's entry.
    pub const fn new(root: Extent, path: Vec<Name>) -> Self {
        Self { path, found: 0, state: PathState::Root(root) }
    }

    /// Starts at an entry that is known.
    ///
    /// # Errors
    /// When the path goes on and the entry is no directory.
    pub fn below(entry: Entry, path: Vec<Name>) -> Result<Self, ReadError> {
        let mut lookup = Self { path, found: 0, state: PathState::Found(entry.clone()) };
        lookup.enter(entry)?;
        Ok(lookup)
    }

    /// What to fetch, or the entry.
    ///
    /// # Errors
    /// [`ReadError::NotFound`] when a name is missing.
    pub fn step(&self) -> Result<Reading<Entry>, ReadError> {
        match &self.state {
            PathState::Root(root) => Ok(Reading::Fetch(root.clone())),
            PathState::Found(entry) => Ok(Reading::Ready(entry.clone())),
            PathState::Name(lookup) => match lookup.step() {
                Reading::End => {
                    let upto = (self.found + 1).min(self.path.len());
                    Err(ReadError::NotFound { path: path::display(&self.path[..upto]) })
                }
                step => Ok(step),
            },
        }
    }

    /// Takes the plaintext asked for.
    ///
    /// # Errors
    /// When it is not what it should be, was not asked for, or the path goes on behind something that
    /// is no directory.
    pub fn feed(&mut self, plaintext: &[u8]) -> Result<(), ReadError> {
        let entry = match &mut self.state {
            PathState::Root(root) => decode_root(plaintext, root)?,
            PathState::Found(_) => return Err(ReadError::OutOfTurn),
            PathState::Name(lookup) => {
                lookup.feed(plaintext)?;
                let Reading::Ready(entry) = lookup.step() else { return Ok(()) };
                self.found += 1;
                entry
            }
        };
        self.enter(entry)
    }

    fn enter(&mut self, entry: Entry) -> Result<(), ReadError> {
        self.state = match (self.path.get(self.found), entry.kind) {
            (None, kind) => PathState::Found(Entry { name: entry.name, meta: entry.meta, kind }),
            (Some(next), Kind::Directory { root, .. }) => {
                PathState::Name(Lookup::new(root, next.clone()))
            }
            (Some(_), _) => {
                let path = path::display(&self.path[..self.found]);
                return Err(ReadError::NotADirectory { path });
            }
        };
        Ok(())
    }
}

/// Lists one directory in order.
///
/// Checks the counts of the directory against its entries, so whoever walks all directories below
/// knows that the walk ends: `all` falls from each directory to those in it.
#[derive(Debug, Clone)]
pub struct Listing {
    /// What comes next is last.
    todo: Vec<Todo>,
    from: Option<Name>,
    /// What the directory's entry says, and what was found so far.
    claimed: Counts,
    found: Counts,
}

#[derive(Debug, Clone)]
enum Todo {
    Node(Wanted),
    Entry(Entry),
}

impl Listing {
    /// Lists the directory that an entry is.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(directory: &Entry) -> Result<Self, ReadError> {
        match &directory.kind {
            Kind::Directory { root, counts } => Ok(Self {
                todo: root.clone().map(|root| Todo::Node(Wanted::root(root))).into_iter().collect(),
                from: None,
                claimed: *counts,
                found: Counts::default(),
            }),
            _ => Err(ReadError::NotADirectory { path: directory.name.to_string() }),
        }
    }

    /// Starts at this name, or the next when it is not there, without reading what is before.
    #[must_use]
    pub fn starting_at(mut self, name: Name) -> Self {
        self.from = Some(name);
        self
    }

    /// What to fetch, the next entry, or the end.
    ///
    /// # Errors
    /// When the entries were not as many as the directory claims.
    pub fn step(&mut self) -> Result<Reading<Entry>, ReadError> {
        match self.todo.pop() {
            Some(Todo::Entry(entry)) => Ok(Reading::Ready(entry)),
            Some(Todo::Node(wanted)) => {
                let extent = wanted.extent.clone();
                self.todo.push(Todo::Node(wanted));
                Ok(Reading::Fetch(extent))
            }
            None if self.from.is_none() && self.found != self.claimed => Err(counts_differ()),
            None => Ok(Reading::End),
        }
    }

    /// Takes the plaintext asked for.
    ///
    /// # Errors
    /// When it is not what it should be, or was not asked for.
    pub fn feed(&mut self, plaintext: &[u8]) -> Result<(), ReadError> {
        let Some(Todo::Node(wanted)) = self.todo.pop() else { return Err(ReadError::OutOfTurn) };
        match wanted.open(plaintext)? {
            DirectoryNode::Leaf(entries) => {
                for entry in &entries {
                    self.found = self
                        .found
                        .plus(entry.counts())
                        .filter(|found| found.within(&self.claimed))
                        .ok_or_else(counts_differ)?;
                }
                let from = &self.from;
                let kept =
                    entries.into_iter().rev().filter(|entry| Some(&entry.name) >= from.as_ref());
                self.todo.extend(kept.map(Todo::Entry));
            }
            DirectoryNode::Inner { height, branches } => {
                let from = &self.from;
                let kept = children(wanted, height, branches)
                    .rev()
                    .filter(|child| from.is_none() || child.below.is_none() || child.below > *from);
                self.todo.extend(kept.map(Todo::Node));
            }
        }
        Ok(())
    }

    /// Nodes that will be asked for next, in order, as far as they are known: for fetching ahead.
    pub fn ahead(&self) -> impl Iterator<Item = &Extent> {
        self.todo.iter().rev().filter_map(|todo| match todo {
            Todo::Node(wanted) => Some(&wanted.extent),
            Todo::Entry(_) => None,
        })
    }
}

fn counts_differ() -> ReadError {
    NodeError::Contradiction("a directory holds more or less than its counts say").into()
}
