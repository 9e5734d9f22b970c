//! Whole trees, through a store that loses n − k shards of every chunk.
//!
//! The bytes of nodes and what hostile ones can do are in `format`.

// Sizes of tests are small.
#![allow(clippy::cast_possible_truncation)]

mod format;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{
    entry::{Counts, Entry, Kind, Meta, Name, Timestamp},
    path,
    range::{FileRange, Source},
    reader::{Listing, PathLookup, ReadError, Reading},
    writer::{Finished, TreeError, TreeWriter},
};
use crate::{
    chunk::{EncodedChunk, encode_bulk},
    erasure::Codec,
    extent::Extent,
    geometry::Geometry,
    ids::{ChunkId, ShardIndex},
    limits::PACKED_BYTES_MAX,
    seal::{ConvergenceSecret, open_span},
};

fn geometry() -> Geometry {
    "4+2".parse().expect("a geometry")
}

fn secret() -> ConvergenceSecret {
    ConvergenceSecret::new([7; 32])
}

fn writer() -> TreeWriter {
    TreeWriter::new(geometry(), secret())
}

fn meta(seed: u64) -> Meta {
    let time = Timestamp::new(seed.cast_signed() - 50, (seed % 1_000_000_000) as u32);
    Meta::new((seed % 0o10000) as u32, time.expect("a time"))
}

/// Bytes that look random, the same for the same seed.
fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut out = vec![0; count];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A small generator: the tests need shapes, not statistics.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 += 1;
        let hash = blake3::hash(&self.0.to_le_bytes());
        hash.as_bytes()[..6].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)) % sides
    }
}

/// Chunks of which only some k shards are left, other ones for each chunk.
#[derive(Default)]
struct Store {
    chunks: HashMap<ChunkId, EncodedChunk>,
    bodies: HashMap<ChunkId, Vec<u8>>,
    fetches: usize,
}

impl Store {
    fn put(&mut self, chunks: Vec<EncodedChunk>) {
        self.chunks.extend(chunks.into_iter().map(|chunk| (chunk.id(), chunk)));
    }

    fn body(&mut self, id: ChunkId) -> &[u8] {
        self.bodies.entry(id).or_insert_with(|| {
            let chunk = self.chunks.get(&id).expect("a chunk that was put");
            let geometry = chunk.descriptor().geometry();
            let first = usize::from(id.as_bytes()[0]) % geometry.total();
            let have: Vec<_> = (first..first + geometry.data())
                .map(|i| ShardIndex((i % geometry.total()) as u8))
                .map(|index| (index, chunk.shard(index)))
                .collect();
            let want: Vec<_> = (0..geometry.data() as u8).map(ShardIndex).collect();
            Codec::new(geometry).reconstruct(&have, &want).expect("k shards").concat()
        })
    }

    fn fetch(&mut self, extent: &Extent, within: core::ops::Range<usize>) -> Vec<u8> {
        self.fetches += 1;
        let (span, ranges) = extent.shard_ranges(within.clone());
        let shard_bytes = extent.shard_bytes as usize;
        let body = self.body(extent.chunk);
        let mut sealed: Vec<u8> = ranges
            .into_iter()
            .flat_map(|(index, range)| {
                let start = index.as_usize() * shard_bytes;
                body[start + range.start..start + range.end].to_vec()
            })
            .collect();
        let (frame, all) = (extent.frame_bytes as usize, extent.plaintext_bytes as usize);
        let opened = open_span(&extent.key, frame, all, &span, &mut sealed).expect("opens");
        let start = within.start - span.plaintext.start;
        opened[start..start + within.len()].to_vec()
    }

    fn item(&mut self, extent: &Extent) -> Vec<u8> {
        self.fetch(extent, 0..extent.plaintext_bytes as usize)
    }

    fn root(&mut self, root: &Extent) -> Entry {
        self.resolve(root, b"/").expect("a root")
    }

    fn resolve(&mut self, root: &Extent, path: &[u8]) -> Result<Entry, ReadError> {
        let mut lookup = PathLookup::new(root.clone(), path::split(path).expect("a path"));
        loop {
            match lookup.step()? {
                Reading::Fetch(extent) => lookup.feed(&self.item(&extent))?,
                Reading::Ready(entry) => return Ok(entry),
                Reading::End => unreachable!("an absent name is an error"),
            }
        }
    }

    fn list(&mut self, mut listing: Listing) -> Result<Vec<Entry>, ReadError> {
        let mut entries = Vec::new();
        loop {
            match listing.step()? {
                Reading::Fetch(extent) => listing.feed(&self.item(&extent))?,
                Reading::Ready(entry) => entries.push(entry),
                Reading::End => return Ok(entries),
            }
        }
    }

    fn read(&mut self, file: &Entry, range: core::ops::Range<u64>) -> Result<Vec<u8>, ReadError> {
        let mut machine = FileRange::new(file, range.clone())?;
        let mut out = Vec::new();
        loop {
            match machine.step() {
                Reading::Fetch(extent) => machine.feed(&self.item(&extent))?,
                Reading::End => return Ok(out),
                Reading::Ready(stretch) => {
                    assert_eq!(stretch.offset, range.start + out.len() as u64, "a gap");
                    let before = out.len();
                    match stretch.source {
                        Source::Inline(bytes) => out.extend(bytes),
                        Source::Item { extent, within } => out.extend(self.fetch(&extent, within)),
                        Source::Hole => out.resize(before + stretch.bytes as usize, 0),
                    }
                    assert_eq!((out.len() - before) as u64, stretch.bytes);
                }
            }
        }
    }

    /// Everything below a directory, by path.
    fn walk(&mut self, entry: Entry, path: Vec<u8>, out: &mut BTreeMap<Vec<u8>, Thing>) {
        let what = match &entry.kind {
            Kind::File { size, .. } => What::File(self.read(&entry, 0..*size).expect("a file")),
            Kind::Symlink { target } => What::Symlink(target.clone()),
            Kind::Directory { counts, .. } => {
                let entries = self.list(Listing::of(&entry).expect("a directory")).expect("lists");
                for child in entries {
                    let below = [&path[..], b"/", child.name.as_bytes()].concat();
                    self.walk(child, below, out);
                }
                What::Directory(*counts)
            }
        };
        out.insert(path, Thing { meta: entry.meta, what });
    }
}

#[derive(Debug, PartialEq)]
struct Thing {
    meta: Meta,
    what: What,
}

#[derive(Debug, PartialEq)]
enum What {
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Directory(Counts),
}

/// Adds random things below an open directory; says what was added, and how much.
fn grow(
    dice: &mut Dice,
    depth: u64,
    path: &[u8],
    tree: &mut TreeWriter,
    store: &mut Store,
    out: &mut BTreeMap<Vec<u8>, Thing>,
) -> Counts {
    let mut names = BTreeSet::new();
    for _ in 0..dice.roll(30) {
        let longest = if dice.roll(4) == 0 { 255 } else { 12 };
        let count = 1 + dice.roll(longest) as usize;
        let mut name = bytes(dice.roll(u64::MAX >> 17), count);
        name.iter_mut().filter(|byte| matches!(**byte, b'/' | 0)).for_each(|byte| *byte = b'x');
        names.extend(Name::new(&name).ok());
    }
    let mut counts = Counts::default();
    for name in names {
        let below = [path, b"/", name.as_bytes()].concat();
        let meta = meta(dice.roll(1 << 40));
        let name = name.as_bytes();
        let (what, added) = match dice.roll(10) {
            0..3 if depth < 3 => {
                tree.begin_directory(name, meta.clone()).expect("begins");
                let inside = grow(dice, depth + 1, &below, tree, store, out);
                tree.end_directory().expect("ends");
                let added = Counts { entries: 1, all: inside.all + 1, bytes: inside.bytes };
                (What::Directory(inside), added)
            }
            3 => {
                let target = vec![b't'; 1 + dice.roll(300) as usize];
                tree.add_symlink(name, meta.clone(), &target).expect("adds");
                (What::Symlink(target), Counts { entries: 1, all: 1, bytes: 0 })
            }
            _ => {
                tree.begin_file(name, meta.clone()).expect("begins");
                let content = fill(dice, tree, store);
                assert_eq!(tree.end_file().expect("ends"), content.len() as u64);
                let added = Counts { entries: 1, all: 1, bytes: content.len() as u64 };
                (What::File(content), added)
            }
        };
        counts = counts.plus(added).expect("no overflow");
        out.insert(below, Thing { meta, what });
        store.put(tree.take_chunks());
    }
    counts
}

/// Content of the open file: none, little, packed, bulk chunks, holes.
fn fill(dice: &mut Dice, tree: &mut TreeWriter, store: &mut Store) -> Vec<u8> {
    let mut content = Vec::new();
    let parts = [0, 1, 1, 1, 1, 2, 3, 40][dice.roll(8) as usize];
    for _ in 0..parts {
        match dice.roll(12) {
            0 => {
                let count = dice.roll(100_000);
                tree.push_hole(count).expect("a hole");
                content.resize(content.len() + count as usize, 0);
            }
            1 => {
                let part = bytes(dice.roll(1 << 40), 41_000 + dice.roll(30_000) as usize);
                let (chunk, extent) =
                    encode_bulk(geometry(), tree.secret(), &part, Vec::new()).expect("fits");
                store.put(vec![chunk]);
                tree.push_extent(extent).expect("an extent");
                content.extend(part);
            }
            2 => {
                let most = if dice.roll(20) == 0 { PACKED_BYTES_MAX as u64 } else { 50_000 };
                let part = bytes(dice.roll(1 << 40), dice.roll(most) as usize);
                tree.push_bytes(&part).expect("bytes");
                content.extend(part);
            }
            _ => {
                let part = bytes(dice.roll(1 << 40), dice.roll(6000) as usize);
                tree.push_bytes(&part).expect("bytes");
                content.extend(part);
            }
        }
    }
    content
}

#[test]
fn any_tree_comes_back_from_any_k_shards() {
    let mut things = 0;
    for seed in 0..5 {
        let (mut store, mut expected) = (Store::default(), BTreeMap::new());
        let mut tree = writer();
        tree.begin_directory(b"top", meta(seed)).expect("begins");
        let mut dice = Dice(seed << 32);
        let counts = grow(&mut dice, 0, b"", &mut tree, &mut store, &mut expected);
        tree.end_directory().expect("ends");
        expected.insert(Vec::new(), Thing { meta: meta(seed), what: What::Directory(counts) });
        let finished = tree.finish().expect("finishes");
        store.put(finished.chunks);

        let root = store.root(&finished.root);
        assert_eq!(root.name.as_bytes(), b"top");
        assert_eq!(root.counts(), finished.counts);
        let mut found = BTreeMap::new();
        store.walk(root, Vec::new(), &mut found);
        assert!(found == expected, "seed {seed} came back differently");
        things += found.len();

        for (path, thing) in expected.iter().step_by(7) {
            let entry = store.resolve(&finished.root, path).expect("a path that was added");
            assert_eq!(entry.meta, thing.meta);
            if let What::File(content) = &thing.what {
                let size = content.len() as u64;
                let start = dice.roll(size + 1);
                let end = start + dice.roll(size - start + 1);
                let got = store.read(&entry, start..end).expect("a range");
                assert!(got == content[start as usize..end as usize], "{start}..{end} of {size}");
            }
        }
    }
    assert!(things > 400, "only {things} things were tried");
}

/// A directory of many files, named by number, or by `name`.
fn large(count: u64, content: impl Fn(u64) -> Vec<u8>) -> (Finished, Store) {
    let files = (0..count).map(|i| (format!("{i:09}"), content(i)));
    planted(files.collect())
}

/// Files by path, one `/` at most, in ascending order.
fn planted(files: BTreeMap<String, Vec<u8>>) -> (Finished, Store) {
    let (mut tree, mut store) = (writer(), Store::default());
    tree.begin_directory(b"", Meta::default()).expect("begins");
    let mut open = None;
    for (path, content) in &files {
        let (directory, name) = match path.split_once('/') {
            Some((directory, name)) => (Some(directory), name),
            None => (None, &path[..]),
        };
        if open != directory {
            if open.is_some() {
                tree.end_directory().expect("ends");
            }
            if let Some(directory) = directory {
                tree.begin_directory(directory.as_bytes(), Meta::default()).expect("begins");
            }
            open = directory;
        }
        tree.add_file(name.as_bytes(), meta(7), content).expect("adds");
        store.put(tree.take_chunks());
    }
    if open.is_some() {
        tree.end_directory().expect("ends");
    }
    tree.end_directory().expect("ends");
    let mut finished = tree.finish().expect("finishes");
    store.put(core::mem::take(&mut finished.chunks));
    (finished, store)
}

fn ids(store: &Store) -> HashSet<ChunkId> {
    store.chunks.keys().copied().collect()
}

#[test]
fn the_same_tree_makes_the_same_chunks() {
    let (one, first) = large(3000, |i| bytes(i, 100));
    let (two, second) = large(3000, |i| bytes(i, 100));
    assert_eq!(one.root, two.root);
    assert_eq!(ids(&first), ids(&second));
    let mut other = TreeWriter::new(geometry(), ConvergenceSecret::new([8; 32]));
    other.add_file(b"a", Meta::default(), b"b").expect("adds");
    let mut same = writer();
    same.add_file(b"a", Meta::default(), b"b").expect("adds");
    assert_ne!(
        other.finish().expect("finishes").root.chunk,
        same.finish().expect("finishes").root.chunk,
        "another secret made the same chunk"
    );
}

/// Changes one file and adds another, and counts the packs that are new.
#[track_caller]
fn check_changes(files: BTreeMap<String, Vec<u8>>, new_max: usize) {
    let bytes_in_all: usize = files.values().map(Vec::len).sum();
    let (_, before) = planted(files.clone());
    let (before, packs) = (ids(&before), before.chunks.len());
    assert!(packs >= 8, "too few packs to tell: {packs}");
    assert!(bytes_in_all / packs > 1 << 20, "{packs} packs for {bytes_in_all} bytes");
    for part in [0, 3, 9] {
        let at = files.keys().nth(files.len() * part / 10).expect("a path").clone();
        let mut changed = files.clone();
        changed.insert(at.clone(), bytes(1 << 40, files[&at].len()));
        let mut grown = files.clone();
        grown.insert(at + "+", Vec::new());
        for (what, after) in [("changed", changed), ("grown", grown)] {
            let (_, after) = planted(after);
            let new = ids(&after).difference(&before).count();
            assert!((1..=new_max).contains(&new), "{what} at {part}: {new} of {packs} are new");
        }
    }
}

#[test]
fn a_small_change_in_a_large_directory_rewrites_few_packs() {
    // 65 MB of leaves, three levels of nodes. Only the packs of the leaf and of the nodes above it
    // change.
    check_changes((0..60_000).map(|i| (format!("{i:09}"), bytes(i, 1000))).collect(), 4);
}

#[test]
fn a_small_change_among_packed_files_rewrites_few_packs() {
    check_changes((0..3000).map(|i| (format!("{i:09}"), bytes(i, 20_000))).collect(), 4);
}

#[test]
fn a_small_change_in_one_of_many_directories_rewrites_few_packs() {
    let path = |i| format!("{:04}/{:04}", i / 10, i % 10);
    check_changes((0..3000).map(|i| (path(i), bytes(i, 20_000))).collect(), 4);
}

#[test]
fn a_name_in_a_large_directory_is_found_by_few_nodes() {
    let (finished, mut store) = large(60_000, |_| Vec::new());
    for i in [0, 1, 31_415, 59_999] {
        store.fetches = 0;
        let entry = store.resolve(&finished.root, format!("/{i:09}").as_bytes()).expect("is there");
        assert_eq!(entry.name.as_bytes(), format!("{i:09}").as_bytes());
        assert!(store.fetches <= 4, "{} nodes were fetched", store.fetches);
    }
    for absent in ["a", "000000000x", "!", "000030000!"] {
        let error = store.resolve(&finished.root, absent.as_bytes()).expect_err("is not there");
        assert!(matches!(error, ReadError::NotFound { .. }), "{error}");
    }
    let root = store.root(&finished.root);
    store.fetches = 0;
    let from = Name::new(b"000059990").expect("a name");
    let listing = Listing::of(&root).expect("a directory").starting_at(from);
    let entries = store.list(listing).expect("lists");
    assert_eq!(entries.len(), 10);
    assert_eq!(entries[0].name.as_bytes(), b"000059990");
    assert!(store.fetches <= 4, "{} nodes were fetched", store.fetches);
}

#[test]
fn a_file_of_many_pieces_is_a_tree_and_any_range_takes_few_nodes() {
    let (chunk, extent) =
        encode_bulk(geometry(), &secret(), &bytes(1, 5000), Vec::new()).expect("fits");
    let mut store = Store::default();
    store.put(vec![chunk]);
    let mut tree = writer();
    tree.begin_file(b"long", Meta::default()).expect("begins");
    let pieces = 300_000;
    for i in 0..pieces {
        tree.push_extent(extent.clone()).expect("an extent");
        if i == 100_000 {
            tree.push_hole(1 << 40).expect("a hole");
            tree.push_hole(5).expect("a hole");
        }
        store.put(tree.take_chunks());
    }
    let size = tree.end_file().expect("ends");
    assert_eq!(size, pieces * 5000 + (1 << 40) + 5);
    let finished = tree.finish().expect("finishes");
    store.put(finished.chunks);
    let file = store.root(&finished.root);
    for start in [0, 4999, 100_001 * 5000 - 10, 100_001 * 5000 + (1 << 40) - 3, size - 20] {
        store.fetches = 0;
        let got = store.read(&file, start..start + 20).expect("a range");
        let expected: Vec<u8> = (start..start + 20)
            .map(|at| match at.checked_sub(100_001 * 5000) {
                None => bytes(1, 5000)[(at % 5000) as usize],
                Some(behind) => match behind.checked_sub((1 << 40) + 5) {
                    None => 0,
                    Some(behind) => bytes(1, 5000)[(behind % 5000) as usize],
                },
            })
            .collect();
        assert_eq!(got, expected, "at {start}");
        assert!(store.fetches <= 8, "{} items were fetched", store.fetches);
    }
    assert!(matches!(store.read(&file, 0..size + 1), Err(ReadError::OutOfRange { .. })));
}

#[test]
fn the_chunk_of_a_small_tree_is_always_the_same() {
    let mut tree = writer();
    tree.begin_directory(b"top", meta(1)).expect("begins");
    tree.add_file(b"a", meta(2), b"inline").expect("adds");
    tree.add_file(b"b", meta(3), &bytes(1, 5000)).expect("adds");
    tree.add_symlink(b"c", meta(4), b"a").expect("adds");
    tree.begin_directory(b"d", meta(5)).expect("begins");
    tree.end_directory().expect("ends");
    tree.end_directory().expect("ends");
    let finished = tree.finish().expect("finishes");
    assert_eq!(finished.chunks.len(), 1);
    assert_eq!(finished.counts, Counts { entries: 1, all: 5, bytes: 5006 });
    assert_eq!(
        finished.root.chunk.to_string(),
        "3ec37bede39c52cefe2489aa594f14c3e967deffd324b30e291eddc664da0d92"
    );
}

#[test]
fn calls_out_of_turn_are_refused_and_do_no_harm() {
    let mut tree = writer();
    assert!(matches!(tree.end_directory(), Err(TreeError::OutOfTurn(_))));
    assert!(matches!(tree.push_bytes(b"x"), Err(TreeError::OutOfTurn(_))));
    tree.begin_directory(b"", Meta::default()).expect("begins");
    tree.begin_file(b"b", Meta::default()).expect("begins");
    assert!(matches!(tree.add_file(b"c", Meta::default(), b""), Err(TreeError::OutOfTurn(_))));
    assert!(matches!(tree.end_directory(), Err(TreeError::OutOfTurn(_))));
    let large = vec![0; PACKED_BYTES_MAX + 1];
    assert!(matches!(tree.push_bytes(&large), Err(TreeError::Pack(_))));
    tree.end_file().expect("ends");
    for name in [&b"a"[..], b"b"] {
        let error = tree.add_file(name, Meta::default(), b"").expect_err("out of order");
        assert!(error.to_string().contains("ascending order"), "{error}");
    }
    assert!(matches!(tree.add_file(b"", Meta::default(), b""), Err(TreeError::Name(_))));
    let mode = Meta::new(0o100_644, Timestamp::default());
    assert!(matches!(tree.add_file(b"c", mode, b""), Err(TreeError::Mode(_))));
    assert!(matches!(tree.add_symlink(b"c", Meta::default(), b""), Err(TreeError::Target(0))));
    tree.end_directory().expect("ends");
    assert!(matches!(tree.add_file(b"z", Meta::default(), b""), Err(TreeError::OutOfTurn(_))));
    let finished = tree.finish().expect("finishes");
    assert_eq!(finished.counts.all, 2);
    assert!(matches!(writer().finish(), Err(TreeError::OutOfTurn(_))));
}

#[test]
fn files_that_are_abandoned_leave_no_trace_in_their_directory() {
    // Also where the name of an abandoned file ended a node, and at the end of the directory.
    let (mut tree, mut store) = (writer(), Store::default());
    tree.begin_directory(b"", Meta::default()).expect("begins");
    let mut expected = Vec::new();
    for i in 0..4000u32 {
        let name = format!("{i:09}");
        if i % 1000 > 300 {
            tree.begin_file(name.as_bytes(), Meta::default()).expect("begins");
            tree.push_bytes(&bytes(u64::from(i), 3)).expect("bytes");
            tree.abandon_file().expect("is open");
        } else {
            tree.add_file(name.as_bytes(), meta(1), &bytes(u64::from(i), 1000)).expect("adds");
            expected.push(name);
        }
    }
    tree.end_directory().expect("ends");
    let finished = tree.finish().expect("finishes");
    store.put(finished.chunks);
    let root = store.root(&finished.root);
    let listing = Listing::of(&root).expect("a directory");
    let found = store.list(listing).expect("lists");
    let names: Vec<_> = found.iter().map(|entry| entry.name.to_string()).collect();
    assert!(names == expected);
}
