//! What a store holds, in short: for each arc of the ring a count and a sum, and when it changed.
//!
//! Owns the digest of an arc and the answer to "what changed since?". Knows nothing of rows and
//! records: it is told which shards came and went. Two stores that hold the same shards of an arc
//! have the same digest of it, whatever the order they came in.

use std::{collections::BTreeMap, sync::OnceLock};

use copse_core::{
    ids::{ChunkId, ShardId, ShardIndex},
    ring::Ring,
};

/// Bytes of a digest's sum.
const SUM_BYTES: usize = 16;

/// A moment in the life of a store's index. Moments of different epochs cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoreRevision {
    /// Random; another one whenever revisions that were given out may be lost: after a crash, and
    /// when the index was built again.
    pub epoch: u64,
    /// Grows with every change of what is held.
    pub revision: u64,
}

/// What is held of an arc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArcDigest {
    /// Which arc: the first two bytes of the ids of its chunks.
    pub arc: u16,
    /// Readable shards.
    pub shards: u32,
    /// Sum modulo 2^128, little-endian, of the first 16 bytes of BLAKE3 derive_key("copse arc digest
    /// v1") over chunk id ‖ shard index, of each of them.
    pub sum: [u8; SUM_BYTES],
}

/// Which arcs changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArcChanges {
    /// The moment of this answer: ask with it next time.
    pub now: StoreRevision,
    /// The moment asked about is not known here: `changed` is every arc that is not empty, and arcs
    /// that are not in it are empty.
    pub all: bool,
    /// Arcs that changed since, in ascending order. One that became empty has no shards.
    pub changed: Vec<ArcDigest>,
}

/// The row of an arc.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ArcRow {
    pub(super) shards: u32,
    pub(super) sum: u128,
    /// When it changed last.
    pub(super) revision: u64,
}

impl ArcRow {
    /// Counts a shard that came.
    pub(super) fn add(&mut self, id: ShardId) {
        self.shards = self.shards.saturating_add(1);
        self.sum = self.sum.wrapping_add(digest(id));
    }

    /// Counts a shard that went.
    pub(super) fn subtract(&mut self, id: ShardId) {
        self.shards = self.shards.saturating_sub(1);
        self.sum = self.sum.wrapping_sub(digest(id));
    }
}

/// The arcs of a store, in memory: some 50 bytes for each that ever held a shard, 3 MiB at most.
#[derive(Debug)]
pub(super) struct Arcs {
    pub(super) now: StoreRevision,
    rows: BTreeMap<u16, ArcRow>,
}

impl Arcs {
    pub(super) fn new(now: StoreRevision, rows: BTreeMap<u16, ArcRow>) -> Self {
        Self { now, rows }
    }

    pub(super) fn get(&self, arc: u16) -> ArcRow {
        self.rows.get(&arc).copied().unwrap_or_default()
    }

    /// Takes over rows that changed at `revision`.
    pub(super) fn apply(&mut self, revision: u64, rows: &BTreeMap<u16, ArcRow>) {
        self.now.revision = revision;
        self.rows.extend(rows);
    }

    /// Counts one shard that came (`held`) or went: for a store that keeps no rows.
    pub(super) fn count(&mut self, id: ShardId, held: bool) {
        let row = self.rows.entry(arc_of(id)).or_default();
        if held {
            row.add(id);
        } else {
            row.subtract(id);
        }
        self.now.revision += 1;
        row.revision = self.now.revision;
    }

    /// What changed since. Costs nothing to speak of when nothing did.
    pub(super) fn changes(&self, since: Option<StoreRevision>) -> ArcChanges {
        let known = since
            .filter(|since| since.epoch == self.now.epoch && since.revision <= self.now.revision);
        let changed = match known {
            Some(since) if since == self.now => Vec::new(),
            Some(since) => self.digests(|row| row.revision > since.revision),
            None => self.digests(|row| row.shards > 0),
        };
        ArcChanges { now: self.now, all: known.is_none(), changed }
    }

    fn digests(&self, wanted: impl Fn(&ArcRow) -> bool) -> Vec<ArcDigest> {
        let wanted = self.rows.iter().filter(|(_, row)| wanted(row));
        wanted
            .map(|(&arc, row)| ArcDigest { arc, shards: row.shards, sum: row.sum.to_le_bytes() })
            .collect()
    }
}

/// The count and the sum of these shards, as [`ArcDigest`] has them.
pub fn digest_of(shards: impl Iterator<Item = ShardId>) -> (u32, [u8; SUM_BYTES]) {
    let mut row = ArcRow::default();
    shards.for_each(|shard| row.add(shard));
    (row.shards, row.sum.to_le_bytes())
}

/// The arc of a shard.
pub(super) fn arc_of(id: ShardId) -> u16 {
    Ring::arc(&id.chunk)
}

/// The first shard that an arc can have.
pub(super) fn first_of(arc: u16) -> ShardId {
    let mut chunk = [0; 32];
    chunk[..2].copy_from_slice(&arc.to_be_bytes());
    ShardId { chunk: ChunkId::new(chunk), index: ShardIndex(0) }
}

/// What a shard adds to the sum of its arc.
fn digest(id: ShardId) -> u128 {
    static KEYED: OnceLock<blake3::Hasher> = OnceLock::new();
    let mut hasher =
        KEYED.get_or_init(|| blake3::Hasher::new_derive_key("copse arc digest v1")).clone();
    hasher.update(id.chunk.as_bytes()).update(&[id.index.0]);
    let mut first = [0; SUM_BYTES];
    hasher.finalize_xof().fill(&mut first);
    u128::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    fn id(byte: u8, index: u8) -> ShardId {
        ShardId { chunk: ChunkId::new([byte; 32]), index: ShardIndex(index) }
    }

    fn arcs() -> Arcs {
        Arcs::new(StoreRevision { epoch: 7, revision: 0 }, BTreeMap::new())
    }

    #[test]
    fn a_digest_has_these_bytes() {
        let mut arcs = arcs();
        arcs.count(id(5, 13), true);
        let changes = arcs.changes(None);
        let sum = HEXLOWER.encode(&changes.changed[0].sum);
        assert_eq!((changes.changed[0].arc, changes.changed[0].shards), (0x0505, 1));
        assert_eq!(sum, "948f8794822cfee6fb9452f5b5dd9be9");
        let mut hasher = blake3::Hasher::new_derive_key("copse arc digest v1");
        hasher.update(&[5; 32]).update(&[13]);
        assert_eq!(sum, HEXLOWER.encode(&hasher.finalize().as_bytes()[..16]));
    }

    #[test]
    fn the_order_of_coming_and_going_does_not_matter() {
        let (mut one, mut other) = (arcs(), arcs());
        for index in 0..9 {
            one.count(id(5, index), true);
            other.count(id(5, 8 - index), true);
        }
        one.count(id(5, 20), true);
        one.count(id(5, 20), false);
        assert_eq!(one.changes(None).changed, other.changes(None).changed);
    }

    #[test]
    fn only_what_changed_since_is_told_and_an_arc_that_became_empty_too() {
        let mut arcs = arcs();
        arcs.count(id(1, 0), true);
        arcs.count(id(2, 0), true);
        let before = arcs.now;
        let nothing = arcs.changes(Some(before));
        assert_eq!(nothing, ArcChanges { now: before, all: false, changed: Vec::new() });
        arcs.count(id(2, 0), false);
        let changes = arcs.changes(Some(before));
        let gone = ArcDigest { arc: 0x0202, shards: 0, sum: [0; 16] };
        assert_eq!((changes.all, changes.changed), (false, vec![gone]));
        let all = arcs.changes(None);
        assert!(all.all);
        assert_eq!(all.changed.iter().map(|digest| digest.arc).collect::<Vec<_>>(), [0x0101]);
    }

    #[test]
    fn a_moment_of_another_epoch_or_of_the_future_is_not_known() {
        let mut arcs = arcs();
        arcs.count(id(1, 0), true);
        for unknown in [(8, 1), (7, 2)] {
            let since = StoreRevision { epoch: unknown.0, revision: unknown.1 };
            let changes = arcs.changes(Some(since));
            assert_eq!((changes.all, changes.changed.len()), (true, 1), "{since:?}");
        }
    }
}
