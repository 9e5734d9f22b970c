//! Building one directory: sorted entries in, a search tree of nodes out.
//!
//! Owns where nodes are cut and how levels grow. Refuses names that are not ascending. One idea:
//! cuts fall at names chosen by a keyed hash, so a change moves no cut but its own, and each level
//! holds only its open node, so memory is O(log n).
//!
//! A name that starts a new node seals the one before as soon as it is claimed, before anything of
//! its own is packed: so a pack rarely holds both a node and what the next node will name.

use super::{
    entry::{ATTRIBUTES_BYTES_MAX, Content, Counts, Entry, Kind, Name, Piece},
    node::{
        Branch, NODE_BYTES_MAX, NODE_HEADER_BYTES_MAX, PIECES_IN_ENTRY_MAX, REFERENCE_BYTES_MAX,
        attributes_bytes, encode_inner, encode_leaf,
    },
    pack::{PackError, PackWriter, Place, chance},
};
use crate::{
    limits::{INLINE_BYTES_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX},
    seal::ConvergenceSecret,
};

/// A node is cut by a name only from this size on, in bytes.
const NODE_BYTES_MIN: usize = 16 << 10;

/// From then on, a name starts a new node with a chance of an entry's size over this: 32 KiB on
/// average, and one node in ten reaches the maximum.
const NODE_BYTES_MORE: usize = 16 << 10;

/// Fields of an entry that are not its name, content or attributes, at most, in bytes: lengths,
/// kind, mode, time, and the numbers of a directory.
const ENTRY_FIXED_BYTES: usize = 2 + 1 + 2 + 10 + 5 + 3 * 10 + 2;

/// An entry, at most, in bytes: the longest name, inline content or target, and attributes.
const ENTRY_BYTES_MAX: usize =
    ENTRY_FIXED_BYTES + NAME_BYTES_MAX + 2 + INLINE_BYTES_MAX + ATTRIBUTES_BYTES_MAX;

/// A branch, at most, in bytes.
const BRANCH_BYTES_MAX: usize = 2 + NAME_BYTES_MAX + REFERENCE_BYTES_MAX;

const _: () = {
    assert!(SYMLINK_BYTES_MAX <= INLINE_BYTES_MAX);
    assert!(2 + PIECES_IN_ENTRY_MAX * REFERENCE_BYTES_MAX <= INLINE_BYTES_MAX);
    assert!(NODE_BYTES_MIN + NODE_BYTES_MORE + ENTRY_BYTES_MAX < NODE_BYTES_MAX);
};

const CUT_CONTEXT: &str = "copse tree cut v1";

/// What decides the cuts: a key from the convergence secret.
#[derive(Clone)]
pub(crate) struct Cutter([u8; 32]);

impl Cutter {
    /// The cutter of one secret.
    pub(crate) fn new(secret: &ConvergenceSecret) -> Self {
        Self(blake3::derive_key(CUT_CONTEXT, secret.as_bytes()))
    }

    fn cuts(&self, level: usize, name: &Name, bytes: usize) -> bool {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&(level as u64).to_le_bytes()).update(name.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        chance(u64::from_le_bytes(first), bytes, NODE_BYTES_MORE)
    }
}

/// The open nodes of a directory: its leaf, and one inner node per level above.
pub(crate) struct DirectoryBuilder {
    cutter: Cutter,
    last: Option<Name>,
    counts: Counts,
    leaf: Open<Entry<Place>>,
    levels: Vec<Open<Branch<Place>>>,
}

/// A node that still grows. Its size counts every reference as an extent, so that the cuts do not
/// depend on which pack is open.
struct Open<T> {
    items: Vec<T>,
    bytes: usize,
}

impl<T> Open<T> {
    const fn new() -> Self {
        Self { items: Vec::new(), bytes: NODE_HEADER_BYTES_MAX }
    }

    /// Whether the node ends before a name. The size of its next item is not known yet, so the
    /// chance goes by those it has, rounded so that it hardly depends on any one.
    fn ends(&self, cutter: &Cutter, level: usize, name: &Name, next_bytes_max: usize) -> bool {
        if self.items.is_empty() {
            return false;
        }
        let item_bytes = (self.bytes / self.items.len()).next_power_of_two();
        self.bytes + next_bytes_max > NODE_BYTES_MAX
            || (self.bytes >= NODE_BYTES_MIN && cutter.cuts(level, name, item_bytes))
    }

    fn push(&mut self, item: T, bytes: usize) {
        self.items.push(item);
        self.bytes += bytes;
    }

    fn take(&mut self) -> Vec<T> {
        self.bytes = NODE_HEADER_BYTES_MAX;
        core::mem::take(&mut self.items)
    }
}

/// A name that comes after a larger or equal one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name} was added after {last}: add the names of a directory in ascending order of their bytes, each once"
)]
pub struct OrderError {
    /// The name that was refused.
    pub name: Name,
    /// The largest name so far.
    pub last: Name,
}

impl DirectoryBuilder {
    /// An empty directory.
    pub(crate) const fn new(cutter: Cutter) -> Self {
        Self {
            cutter,
            last: None,
            counts: Counts { entries: 0, all: 0, bytes: 0 },
            leaf: Open::new(),
            levels: Vec::new(),
        }
    }

    /// Whether a name may be the next.
    pub(crate) fn check(&self, name: &Name) -> Result<(), OrderError> {
        match &self.last {
            Some(last) if last >= name => {
                Err(OrderError { name: name.clone(), last: last.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Takes the next name, whose entry may follow later, or never. Seals the nodes that end before
    /// it.
    pub(crate) fn claim(&mut self, name: &Name, pack: &mut PackWriter) -> Result<(), PackError> {
        self.last = Some(name.clone());
        if !self.leaf.ends(&self.cutter, 0, name, ENTRY_BYTES_MAX) {
            return Ok(());
        }
        let mut branch = self.seal_leaf(pack)?;
        let mut level = 0;
        loop {
            self.push_branch(level, branch);
            if !self.levels[level].ends(&self.cutter, level + 1, name, BRANCH_BYTES_MAX) {
                return Ok(());
            }
            branch = self.seal_level(level, pack)?;
            level += 1;
        }
    }

    /// Adds the entry of the name claimed last.
    pub(crate) fn push(&mut self, entry: Entry<Place>) {
        // 2^64 bytes cannot have been read.
        self.counts = self.counts.plus(entry.counts()).unwrap_or(self.counts);
        let bytes = entry_bytes_max(&entry);
        self.leaf.push(entry, bytes);
    }

    /// The root node, none for an empty directory, and how much is in it.
    pub(crate) fn finish(
        mut self,
        pack: &mut PackWriter,
    ) -> Result<(Option<Place>, Counts), PackError> {
        // Open nodes are empty when a name was claimed whose entry never came.
        let mut last = match self.leaf.items.len() {
            0 => None,
            _ => Some(self.seal_leaf(pack)?),
        };
        for level in 0..self.levels.len() {
            if let Some(branch) = last.take() {
                self.push_branch(level, branch);
            }
            let top = level + 1 == self.levels.len();
            last = match self.levels[level].items.len() {
                0 => None,
                1 if top => self.levels[level].items.pop(),
                _ => Some(self.seal_level(level, pack)?),
            };
        }
        Ok((last.map(|branch| branch.node), self.counts))
    }

    fn push_branch(&mut self, level: usize, branch: Branch<Place>) {
        if level == self.levels.len() {
            self.levels.push(Open::new());
        }
        let bytes = 2 + branch.first.as_bytes().len() + REFERENCE_BYTES_MAX;
        self.levels[level].push(branch, bytes);
    }

    fn seal_leaf(&mut self, pack: &mut PackWriter) -> Result<Branch<Place>, PackError> {
        let entries = self.leaf.take();
        let node = pack.node(entries.iter().flat_map(places), |at| encode_leaf(&entries, at))?;
        Ok(Branch { first: first_name(&entries, |entry| &entry.name), node })
    }

    fn seal_level(
        &mut self,
        level: usize,
        pack: &mut PackWriter,
    ) -> Result<Branch<Place>, PackError> {
        let branches = self.levels[level].take();
        // Not above HEIGHT_MAX: that takes more entries than there are numbers.
        let height = u8::try_from(level + 1).unwrap_or(u8::MAX);
        let children = branches.iter().map(|branch| &branch.node);
        let node = pack.node(children, |at| encode_inner(height, &branches, at))?;
        Ok(Branch { first: first_name(&branches, |branch| &branch.first), node })
    }
}

fn first_name<T>(items: &[T], name: impl Fn(&T) -> &Name) -> Name {
    items.first().map_or(Name::UNNAMED, |item| name(item).clone())
}

/// The places that an entry names.
pub(crate) fn places(entry: &Entry<Place>) -> impl Iterator<Item = &Place> + Clone {
    let (one, pieces) = match &entry.kind {
        Kind::File { content: Content::Pieces(pieces), .. } => (None, &pieces[..]),
        Kind::File { content: Content::Tree(node), .. } => (Some(node), &[][..]),
        Kind::Directory { root, .. } => (root.as_ref(), &[][..]),
        Kind::File { content: Content::Inline(_), .. } | Kind::Symlink { .. } => (None, &[][..]),
    };
    one.into_iter().chain(pieces.iter().filter_map(|piece| match piece {
        Piece::Data(place) => Some(place),
        Piece::Hole(_) => None,
    }))
}

/// The most bytes that an entry takes in a leaf.
fn entry_bytes_max(entry: &Entry<Place>) -> usize {
    let body = match &entry.kind {
        Kind::File { content: Content::Inline(bytes), .. } => 1 + bytes.len(),
        Kind::File { content: Content::Pieces(pieces), .. } => {
            2 + pieces
                .iter()
                .map(|piece| match piece {
                    Piece::Data(_) => REFERENCE_BYTES_MAX,
                    Piece::Hole(_) => 1 + 10,
                })
                .sum::<usize>()
        }
        Kind::File { content: Content::Tree(_), .. } => 1 + REFERENCE_BYTES_MAX,
        Kind::Directory { .. } => REFERENCE_BYTES_MAX,
        Kind::Symlink { target } => 2 + target.len(),
    };
    ENTRY_FIXED_BYTES
        + entry.name.as_bytes().len()
        + body
        + attributes_bytes(&entry.meta.attributes).len()
}
