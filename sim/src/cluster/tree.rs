//! Trees that clients put: what is in each, and whether what came back is that.
//!
//! Owns the drawing of a tree and the comparing of names, kinds, sizes, times and bytes. Puts and
//! reads nothing. The one idea: a tree follows from its number, so nobody need keep its bytes, and
//! whoever begins to put it again makes the same chunks.

use std::{collections::BTreeMap, ops::Range};

use copse_client::tree_read::Met;
use copse_core::{
    limits::FRAME_BYTES_MIN,
    tree::{Entry, Kind, Meta, Name, Timestamp, path},
};

use crate::random::Xoshiro;

/// Directories beside the root, and files, at most.
const DIRECTORIES_MAX: usize = 3;
const FILES_MAX: usize = 8;

/// Part of the trees that are a lone file, and of the entries that are links.
const LONE: f64 = 0.1;
const LINKS: f64 = 0.1;

/// Part of the files that lie in the entry, and that are packed; the rest has chunks of its own.
const INLINE: f64 = 0.5;
const PACKED: f64 = 0.35;

/// Bytes of a file of each of these kinds, and of one of the chunks, at most: some are below what is
/// cut in k pieces, some above.
const INLINE_BYTES: usize = 4 << 10;
const PACKED_BYTES: usize = 24 << 10;
const PIECE_BYTES: usize = 64 << 10;

/// Chunks of a file that has chunks of its own, and zeros in the middle of it, at most.
const PIECES_MAX: usize = 3;
const HOLE_BYTES: usize = 100_000;

/// The bytes with a number.
pub(super) fn content(number: u64, bytes: usize) -> Vec<u8> {
    let mut stream = Xoshiro::new(number, "content of a client");
    let words = (0..bytes.div_ceil(8)).flat_map(|_| stream.next_u64().to_le_bytes());
    words.take(bytes).collect()
}

/// Some range of so many bytes, one at least: a few of them, many, or those around a border. Frames are
/// whole powers of two, so a border of many is that of one.
pub(super) fn some_range(rng: &mut Xoshiro, bytes: usize, borders: &[usize]) -> Range<usize> {
    let few = 4.min(bytes);
    let around = |border: usize, rng: &mut Xoshiro| {
        let (before, after) = (1 + rng.below(few), 1 + rng.below(few));
        border.saturating_sub(before)..(border + after).min(bytes)
    };
    match rng.below(4) {
        0 if bytes > FRAME_BYTES_MIN => {
            let frames = (bytes - 1) / FRAME_BYTES_MIN;
            around(FRAME_BYTES_MIN * (1 + rng.below(frames)), rng)
        }
        1 if !borders.is_empty() => around(borders[rng.below(borders.len())], rng),
        2 => {
            let from = rng.below(bytes);
            from..from + 1 + rng.below(bytes - from)
        }
        _ => {
            let from = rng.below(bytes - few + 1);
            from..from + few
        }
    }
}

/// A tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    /// Of the root.
    pub(super) name: Name,
    /// All that is in it, each directory before what is in it, names in order. The first is the root
    /// and has no path.
    pub(super) items: Vec<Item>,
}

/// A directory, link or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) path: Vec<Name>,
    pub(super) meta: Meta,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Directory,
    Link(Vec<u8>),
    File(Vec<Part>),
}

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// A chunk of its own.
    Chunk { content: u64, bytes: usize },
    /// Bytes that are few: packed, or in the entry.
    Packed { content: u64, bytes: usize },
    /// Zeros, which are stored nowhere.
    Hole { bytes: usize },
}

impl Part {
    pub(super) const fn len(self) -> usize {
        match self {
            Self::Chunk { bytes, .. } | Self::Packed { bytes, .. } | Self::Hole { bytes } => bytes,
        }
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        match self {
            Self::Chunk { content: number, bytes } | Self::Packed { content: number, bytes } => {
                content(number, bytes)
            }
            Self::Hole { bytes } => vec![0; bytes],
        }
    }
}

impl Tree {
    /// The tree with a number.
    pub(super) fn of(number: u64) -> Self {
        let mut rng = Xoshiro::new(number, "tree of a client");
        let mut all: BTreeMap<Vec<Name>, (Meta, What)> = BTreeMap::new();
        if rng.chance(LONE) {
            all.insert(Vec::new(), (meta(&mut rng), file(&mut rng)));
            return Self::new(some_name(&mut rng), all);
        }
        let mut directories = vec![Vec::new()];
        all.insert(Vec::new(), (meta(&mut rng), What::Directory));
        for _ in 0..rng.below(DIRECTORIES_MAX + 1) {
            let path = some_path(&directories, &mut rng);
            if all.insert(path.clone(), (meta(&mut rng), What::Directory)).is_none() {
                directories.push(path);
            }
        }
        for _ in 0..rng.below(FILES_MAX + 1) {
            let path = some_path(&directories, &mut rng);
            let what = if rng.chance(LINKS) {
                let bytes = 1 + rng.below(100);
                let target = content(rng.next_u64(), bytes).into_iter().map(|byte| byte | 1);
                What::Link(target.collect())
            } else {
                file(&mut rng)
            };
            // A directory of that name stays.
            all.entry(path).or_insert((meta(&mut rng), what));
        }
        let name = if rng.chance(0.5) { Name::UNNAMED } else { some_name(&mut rng) };
        Self::new(name, all)
    }

    /// The file with a number, alone.
    pub(super) fn lone(number: u64) -> Self {
        let mut rng = Xoshiro::new(number, "file of a client");
        let all = BTreeMap::from([(Vec::new(), (meta(&mut rng), file(&mut rng)))]);
        Self::new(some_name(&mut rng), all)
    }

    fn new(name: Name, all: BTreeMap<Vec<Name>, (Meta, What)>) -> Self {
        let item = |(path, (meta, what))| Item { path, meta, what };
        Self { name, items: all.into_iter().map(item).collect() }
    }

    /// How many files and directories there are, and bytes in all files.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        let count = |is: fn(&What) -> bool| self.items.iter().filter(|item| is(&item.what)).count();
        let files = count(|what| matches!(what, What::File(_)));
        let directories = count(|what| matches!(what, What::Directory));
        let bytes: usize = self.items.iter().map(Item::bytes).sum();
        (files as u64, directories as u64, bytes as u64)
    }

    /// Files with something in them.
    pub(super) fn files(&self) -> Vec<&Item> {
        self.items.iter().filter(|item| item.bytes() > 0).collect()
    }

    /// What a walk through it must meet.
    pub(super) const fn listing(&self) -> Listing<'_> {
        Listing { tree: self, met: 0 }
    }

    /// Whether an entry is what was put as this item.
    pub(super) fn is(&self, item: &Item, entry: &Entry) -> Result<(), String> {
        let shown = path::display(&item.path);
        let name = item.path.last().unwrap_or(&self.name);
        if entry.name != *name {
            return Err(format!("{shown:?} has the name {}, it was put as {name}", entry.name));
        }
        if entry.meta != item.meta {
            return Err(format!("{shown:?} has {:?}, it was put with {:?}", entry.meta, item.meta));
        }
        let is = match (&entry.kind, &item.what) {
            (Kind::Directory { counts, .. }, What::Directory) => {
                let below = |other: &&Item| {
                    other.path.len() > item.path.len() && other.path.starts_with(&item.path)
                };
                let bytes: usize = self.items.iter().filter(below).map(Item::bytes).sum();
                counts.all == self.items.iter().filter(below).count() as u64
                    && counts.bytes == bytes as u64
            }
            (Kind::Symlink { target }, What::Link(put)) => target == put,
            (Kind::File { size, .. }, What::File(_)) => *size == item.bytes() as u64,
            _ => false,
        };
        if is { Ok(()) } else { Err(format!("{shown:?} is {:?}, not what was put", entry.kind)) }
    }
}

/// A walk through a tree, as it must go.
pub(super) struct Listing<'a> {
    tree: &'a Tree,
    met: usize,
}

impl<'a> Listing<'a> {
    /// Something was met: the item that it is.
    pub(super) fn met(&mut self, met: &Met) -> Result<&'a Item, String> {
        let shown = path::display(&met.path);
        let Some(item) = self.tree.items.get(self.met) else {
            return Err(format!("{shown:?} is listed, and was never put"));
        };
        if item.path != met.path {
            return Err(format!(
                "{shown:?} is listed where {:?} was put",
                path::display(&item.path)
            ));
        }
        self.met += 1;
        self.tree.is(item, &met.entry)?;
        Ok(item)
    }

    /// Nothing more was met.
    pub(super) fn end(self) -> Result<(), String> {
        match self.tree.items.get(self.met) {
            Some(item) => Err(format!("{:?} is not listed", path::display(&item.path))),
            None => Ok(()),
        }
    }
}

impl Item {
    fn parts(&self) -> &[Part] {
        match &self.what {
            What::File(parts) => parts,
            _ => &[],
        }
    }

    /// All of it, of a file.
    pub(super) fn content(&self) -> Vec<u8> {
        self.parts().iter().flat_map(|part| part.bytes()).collect()
    }

    /// Its length, of a file.
    pub(super) fn bytes(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }

    /// Where its parts meet.
    pub(super) fn borders(&self) -> Vec<usize> {
        let parts = self.parts();
        let ends = parts.iter().scan(0, |end, part| {
            *end += part.len();
            Some(*end)
        });
        ends.take(parts.len().saturating_sub(1)).collect()
    }

    /// Whether bytes are those of a range of it, or the first of them.
    pub(super) fn begins(&self, range: &Range<usize>, bytes: &[u8]) -> Result<(), String> {
        let all = self.content();
        if all[range.clone()].starts_with(bytes) {
            return Ok(());
        }
        let shown = path::display(&self.path);
        Err(format!("{range:?} of {shown:?} are other bytes than were put"))
    }

    /// Whether bytes are those of a range of it, all of them.
    pub(super) fn is(&self, range: &Range<usize>, bytes: &[u8]) -> Result<(), String> {
        self.begins(range, bytes)?;
        if bytes.len() == range.len() {
            return Ok(());
        }
        let (shown, got) = (path::display(&self.path), bytes.len());
        Err(format!("{range:?} of {shown:?} are {got} bytes only"))
    }
}

fn file(rng: &mut Xoshiro) -> What {
    let packed = |most: usize, rng: &mut Xoshiro| Part::Packed {
        content: rng.next_u64(),
        bytes: some_bytes(most, rng),
    };
    let point = rng.unit();
    if point < INLINE {
        // Some are empty.
        return What::File(if rng.chance(0.1) {
            Vec::new()
        } else {
            vec![packed(INLINE_BYTES, rng)]
        });
    }
    if point < INLINE + PACKED {
        return What::File(vec![packed(PACKED_BYTES, rng)]);
    }
    let mut parts = Vec::new();
    for _ in 0..1 + rng.below(PIECES_MAX) {
        let bytes = some_bytes(PIECE_BYTES, rng);
        parts.push(Part::Chunk { content: rng.next_u64(), bytes });
        if rng.chance(0.2) {
            parts.push(Part::Hole { bytes: 1 + rng.below(HOLE_BYTES) });
        }
    }
    if rng.chance(0.5) {
        parts.push(packed(PACKED_BYTES, rng));
    }
    What::File(parts)
}

/// Sizes of all magnitudes.
fn some_bytes(most: usize, rng: &mut Xoshiro) -> usize {
    let magnitude = (most as f64).ln() * rng.unit();
    #[allow(clippy::cast_possible_truncation)] // bounded in the same breath
    let bytes = magnitude.exp() as usize;
    bytes.clamp(1, most)
}

fn meta(rng: &mut Xoshiro) -> Meta {
    let mode = u32::try_from(rng.below(0o1000)).unwrap_or(0);
    let seconds = i64::try_from(rng.below(2_000_000_000)).unwrap_or(0);
    let nanoseconds = u32::try_from(rng.below(1_000_000_000)).unwrap_or(0);
    Meta::new(mode, Timestamp::new(seconds, nanoseconds).unwrap_or_default())
}

fn some_path(directories: &[Vec<Name>], rng: &mut Xoshiro) -> Vec<Name> {
    let mut path = directories[rng.below(directories.len())].clone();
    path.push(some_name(rng));
    path
}

/// Letters, or any bytes that a name may have.
fn some_name(rng: &mut Xoshiro) -> Name {
    loop {
        let length = if rng.chance(0.05) { 255 } else { 1 + rng.below(20) };
        let mut bytes = content(rng.next_u64(), length);
        if rng.chance(0.7) {
            bytes.iter_mut().for_each(|byte| *byte = b'a' + *byte % 26);
        }
        if let Ok(name) = Name::new(&bytes) {
            return name;
        }
    }
}

#[cfg(test)]
mod tests {
    use copse_core::{
        geometry::Geometry,
        seal::ConvergenceSecret,
        tree::{Content, Counts, TreeWriter},
    };

    use super::*;

    /// What a walk meets in a tree that nobody changed.
    fn walked(tree: &Tree) -> Vec<Met> {
        let met = |item: &Item| {
            let name = item.path.last().unwrap_or(&tree.name).clone();
            let below: Vec<&Item> = tree
                .items
                .iter()
                .filter(|other| {
                    other.path.len() > item.path.len() && other.path.starts_with(&item.path)
                })
                .collect();
            let kind = match &item.what {
                What::Directory => {
                    let entries = below
                        .iter()
                        .filter(|other| other.path.len() == item.path.len() + 1)
                        .count();
                    let bytes: usize = below.iter().map(|other| other.bytes()).sum();
                    let (entries, all, bytes) = (entries as u64, below.len() as u64, bytes as u64);
                    Kind::Directory { root: None, counts: Counts { entries, all, bytes } }
                }
                What::Link(target) => Kind::Symlink { target: target.clone() },
                What::File(_) => {
                    let content = Content::Inline(Vec::new());
                    Kind::File { size: item.bytes() as u64, content }
                }
            };
            let entry = Entry { name, meta: item.meta.clone(), kind };
            Met { path: item.path.clone(), entry }
        };
        tree.items.iter().map(met).collect()
    }

    fn compared(tree: &Tree, walked: &[Met]) -> Result<(), String> {
        let mut listing = tree.listing();
        walked.iter().try_for_each(|met| listing.met(met).map(drop))?;
        listing.end()
    }

    #[test]
    fn a_tree_follows_from_its_number_and_all_kinds_of_things_are_in_some() {
        let (mut packed, mut chunks, mut holes, mut links, mut lone, mut nested) =
            (0, 0, 0, 0, 0, 0);
        for number in 0..300 {
            let tree = Tree::of(number);
            assert_eq!(tree, Tree::of(number));
            assert!(tree.items.is_sorted_by_key(|item| item.path.clone()));
            let (_, _, bytes) = tree.counts();
            assert!(bytes < 4 << 20, "{bytes} bytes");
            for item in &tree.items {
                lone += u32::from(item.path.is_empty() && item.what != What::Directory);
                nested += u32::from(item.path.len() > 2);
                links += u32::from(matches!(item.what, What::Link(_)));
                for part in item.parts() {
                    match part {
                        Part::Packed { bytes, .. } => packed += u32::from(*bytes > INLINE_BYTES),
                        Part::Chunk { .. } => chunks += 1,
                        Part::Hole { .. } => holes += 1,
                    }
                }
            }
        }
        let seen = [packed, chunks, holes, links, lone, nested];
        assert!(seen.iter().all(|count| *count > 10), "{seen:?}");
    }

    #[test]
    fn whatever_is_not_as_it_was_put_is_noticed() {
        let mut tampered = 0;
        for number in 0..100 {
            let tree = Tree::of(number);
            let walked = walked(&tree);
            assert_eq!(compared(&tree, &walked), Ok(()));
            for at in 0..walked.len() {
                let mut changed = |change: &dyn Fn(&mut Vec<Met>)| {
                    let mut walked = walked.clone();
                    change(&mut walked);
                    compared(&tree, &walked).expect_err("something is wrong");
                    tampered += 1;
                };
                changed(&|all| drop(all.remove(at)));
                changed(&|all| all.insert(at, all[at].clone()));
                changed(&|all| all.truncate(at));
                changed(&|all| all[at].entry.meta.mode ^= 1);
                changed(&|all| all[at].entry.name = Name::new(b"another").expect("a name"));
                changed(&|all| all[at].path.push(Name::new(b"below").expect("a name")));
                changed(&|all| match &mut all[at].entry.kind {
                    Kind::File { size, .. } => *size += 1,
                    Kind::Directory { counts, .. } => counts.all += 1,
                    Kind::Symlink { target } => target.push(b'x'),
                });
            }
        }
        assert!(tampered > 1000, "{tampered}");
    }

    #[test]
    fn every_wrong_byte_of_a_range_is_noticed_and_one_too_few_or_too_many() {
        let mut rng = Xoshiro::new(1, "test");
        for number in 0..40 {
            let tree = Tree::of(number);
            for item in tree.files() {
                let all: Vec<u8> = item.parts().iter().flat_map(|part| part.bytes()).collect();
                let range = some_range(&mut rng, item.bytes(), &item.borders());
                let mut bytes = all[range.clone()].to_vec();
                assert_eq!(item.is(&range, &bytes), Ok(()));
                item.is(&range, &bytes[1..]).expect_err("one too few");
                assert_eq!(item.begins(&range, &bytes[..bytes.len() - 1]), Ok(()));
                item.is(&range, &bytes[..bytes.len() - 1]).expect_err("one too few");
                item.is(&range, &[&bytes[..], &[0]].concat()).expect_err("one too many");
                let at = rng.below(bytes.len());
                bytes[at] ^= 1;
                item.is(&range, &bytes).expect_err("a wrong byte");
                item.begins(&range, &bytes).expect_err("a wrong byte");
            }
        }
    }

    #[test]
    fn ranges_are_within_and_meet_borders() {
        let mut rng = Xoshiro::new(2, "test");
        let mut met = 0;
        for _ in 0..2000 {
            let bytes = 1 + rng.below(10_000);
            let border = rng.below(bytes);
            let range = some_range(&mut rng, bytes, &[border]);
            assert!(range.start < range.end && range.end <= bytes, "{range:?} of {bytes}");
            let inside = range.start + 1..range.end;
            met += u32::from(inside.into_iter().any(|at| at % FRAME_BYTES_MIN == 0));
        }
        assert!(met > 300, "{met}");
    }

    #[test]
    fn the_writer_takes_every_tree_in_the_order_of_its_items() {
        for number in 0..50 {
            let tree = Tree::of(number);
            let geometry: Geometry = "2+1".parse().expect("a geometry");
            let mut writer = TreeWriter::new(geometry, ConvergenceSecret::new([5; 32]));
            let mut open = 0;
            for item in &tree.items {
                while open > item.path.len() {
                    writer.end_directory().expect("one is open");
                    open -= 1;
                }
                let name = item.path.last().unwrap_or(&tree.name).as_bytes();
                match &item.what {
                    What::Directory => {
                        writer.begin_directory(name, item.meta.clone()).expect("its turn");
                        open += 1;
                    }
                    What::Link(target) => {
                        writer.add_symlink(name, item.meta.clone(), target).expect("its turn");
                    }
                    What::File(_) => {
                        writer.add_file(name, item.meta.clone(), b"x").expect("its turn");
                    }
                }
            }
            for _ in 0..open {
                writer.end_directory().expect("one is open");
            }
            let counts = writer.finish().expect("whole").counts;
            assert_eq!(counts.all, tree.items.len() as u64);
        }
    }
}
