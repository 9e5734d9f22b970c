//! What a check found, as numbers and names.
//!
//! Owns the sums over one tree, and the weakest chunks with the files that need them, bounded. Asks
//! nobody. The one idea: what is counted is how things are at the end, after repair; how they were
//! stands beside it.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use copse_core::{geometry::Geometry, ids::ChunkId, manifest::ChunkRef};

use super::{
    Counted, CountedKind, Paths,
    census::NodeReport,
    health::{ChunkHealth, Strength, Survives},
    repair::{RepairError, Repaired},
};
use crate::{
    error::{GetError, ReadError},
    transfer::Failures,
};

/// Weak chunks that are named, and mended ones, at most, each; the rest is counted.
const NAMED_MAX: usize = 1000;

/// A chunk with less than all its shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weak {
    /// The chunk.
    pub chunk: ChunkId,
    /// (k, n).
    pub geometry: Geometry,
    /// Different shards found.
    pub have: usize,
    /// How strong it is.
    pub strength: Strength,
    /// Nodes that may hold more but did not answer.
    pub silent: usize,
    /// The paths that need it.
    pub paths: Paths,
    /// Why it could not be made whole, when that was tried.
    pub problem: Option<String>,
}

/// A chunk that has more shards than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// The chunk.
    pub chunk: ChunkId,
    /// (k, n).
    pub geometry: Geometry,
    /// Shards before.
    pub before: usize,
    /// Shards now.
    pub after: usize,
}

/// What was found in one tree.
#[derive(Debug, Clone, Default)]
pub struct CheckReport {
    /// Files met.
    pub files: u64,
    /// Directories met.
    pub directories: u64,
    /// Links met.
    pub symlinks: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Chunks, each counted once.
    pub chunks: u64,
    /// Chunks among these that a manifest lists, when that was checked and not a tree; the others
    /// are the manifest's own. None of a tree.
    pub listed: Option<u64>,
    /// Chunks by geometry and how many different shards they have.
    pub by_shards: BTreeMap<(Geometry, usize), u64>,
    /// Chunks by strength.
    pub by_strength: BTreeMap<Strength, u64>,
    /// Chunks that can be read and do not survive the loss of one node: shards of theirs are missing or on one
    /// node, or they have none to spare.
    pub frail: u64,
    /// What every chunk survives; none when one cannot be read, or there is none.
    pub survives: Option<Survives>,
    /// The weakest chunks, the weakest first.
    pub weakest: Vec<Weak>,
    /// Chunks that have more shards than before.
    pub mended: Vec<Mended>,
    /// How many they are.
    pub mended_count: u64,
    /// Shards made, and their bytes.
    pub rebuilt_shards: u64,
    /// Bytes of shards made.
    pub rebuilt_bytes: u64,
    /// Chunks that could not be made whole, though it was tried.
    pub unmended: u64,
    /// Directories and files whose inside cannot be read on: what is in them was not checked.
    pub unreadable: Failures,
    /// Whether any of these was for want of shards.
    pub unreadable_for_loss: bool,
    /// What was seen of each node asked.
    pub nodes: Vec<NodeReport>,
    weak: WeakChunks,
}

/// The weakest chunks met so far.
#[derive(Debug, Clone, Default)]
struct WeakChunks {
    ordered: BTreeMap<(isize, ChunkRef), Weak>,
    margins: HashMap<ChunkRef, isize>,
}

impl CheckReport {
    /// Chunks of this strength.
    pub fn count(&self, strength: Strength) -> u64 {
        self.by_strength.get(&strength).copied().unwrap_or(0)
    }

    pub(super) fn entry(&mut self, entry: &Counted) {
        match entry.kind {
            CountedKind::File => self.files += 1,
            CountedKind::Directory => self.directories += 1,
            CountedKind::Symlink => self.symlinks += 1,
        }
        self.bytes = self.bytes.saturating_add(entry.bytes);
    }

    pub(super) fn unreadable(&mut self, path: &Path, error: &ReadError) {
        self.unreadable.add_unread(path, error, false);
        self.unreadable_for_loss |= matches!(error, ReadError::Get(GetError::DataLoss { .. }));
    }

    /// Counts a chunk as it is at the end.
    pub(super) fn chunk(
        &mut self,
        health: &ChunkHealth,
        survives: Option<Survives>,
        paths: Paths,
        before: usize,
        repaired: Option<Result<Repaired, RepairError>>,
    ) {
        let ChunkRef { id, geometry, .. } = health.chunk;
        let (have, strength) = (health.have(), health.strength());
        self.survives = match (self.chunks, self.survives, survives) {
            (0, _, survives) => survives,
            (_, Some(least), Some(survives)) => Some(least.min(survives)),
            _ => None,
        };
        if survives.is_some_and(|survives| survives.nodes == 0) {
            self.frail += 1;
        }
        self.chunks += 1;
        *self.by_shards.entry((geometry, have)).or_default() += 1;
        *self.by_strength.entry(strength).or_default() += 1;
        let tried = repaired.is_some();
        let mut problem = None;
        match repaired {
            Some(Ok(repaired)) => {
                self.rebuilt_shards += repaired.placed.len() as u64;
                self.rebuilt_bytes += repaired.bytes;
                if strength != Strength::Whole {
                    problem = Some(format!("no node took the rest: {}", repaired.refused));
                }
            }
            Some(Err(error)) => problem = Some(error.to_string()),
            None => {}
        }
        if have > before {
            self.mended_count += 1;
            if self.mended.len() < NAMED_MAX {
                self.mended.push(Mended { chunk: id, geometry, before, after: have });
            }
        }
        if strength == Strength::Whole {
            return;
        }
        self.unmended += u64::from(tried);
        let silent = health.silent();
        let weak = Weak { chunk: id, geometry, have, strength, silent, paths, problem };
        self.weak.insert(health.chunk, weak);
    }

    /// One more path needs a chunk that was counted before.
    pub(super) fn needed_by(&mut self, chunk: &ChunkRef, path: Arc<[u8]>) {
        let margin = self.weak.margins.get(chunk);
        let weak = margin.and_then(|margin| self.weak.ordered.get_mut(&(*margin, *chunk)));
        if let Some(weak) = weak {
            weak.paths.add(path);
        }
    }

    pub(super) fn finish(mut self, nodes: Vec<NodeReport>) -> Self {
        self.nodes = nodes;
        self.weakest = std::mem::take(&mut self.weak.ordered).into_values().collect();
        self
    }
}

impl WeakChunks {
    /// Keeps the weakest: those with the fewest shards beyond what is needed.
    fn insert(&mut self, chunk: ChunkRef, weak: Weak) {
        let spare = weak.have.cast_signed() - weak.geometry.data().cast_signed();
        self.ordered.insert((spare, chunk), weak);
        self.margins.insert(chunk, spare);
        if self.ordered.len() > NAMED_MAX
            && let Some(((_, strongest), _)) = self.ordered.pop_last()
        {
            self.margins.remove(&strongest);
        }
    }
}

#[cfg(test)]
mod tests {
    use copse_core::ids::{NodeId, ShardIndex};

    use super::*;

    fn chunk(number: u16, have: u8) -> ChunkHealth {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&number.to_be_bytes());
        let geometry = "4+2".parse().expect("a geometry");
        let chunk = ChunkRef { id: ChunkId::new(id), geometry, shard_bytes: 10 };
        let mut health = ChunkHealth::new(chunk);
        for index in 0..have {
            health.add(ShardIndex(index), NodeId::new([index; 32]));
        }
        health
    }

    fn paths(text: &str) -> Paths {
        let mut paths = Paths::default();
        paths.add(text.as_bytes().into());
        paths
    }

    #[test]
    fn the_weakest_are_kept_and_all_are_counted() {
        let mut report = CheckReport::default();
        let survives = Some(Survives { nodes: 1, zones: 1 });
        for number in 0..1500 {
            report.chunk(&chunk(number, 5), survives, paths("thin"), 5, None);
        }
        report.chunk(
            &chunk(1500, 6),
            Some(Survives { nodes: 2, zones: 2 }),
            paths("whole"),
            6,
            None,
        );
        assert_eq!(report.survives, survives);
        report.chunk(&chunk(1501, 3), None, paths("lost"), 3, None);
        report.needed_by(&chunk(1501, 3).chunk, b"lost too"[..].into());
        report.needed_by(&chunk(1499, 3).chunk, b"not kept"[..].into());
        let report = report.finish(Vec::new());
        assert_eq!((report.chunks, report.weakest.len()), (1502, NAMED_MAX));
        assert_eq!(report.count(Strength::Thin), 1500);
        assert_eq!(report.weakest[0].paths.first, [b"lost"[..].into(), b"lost too"[..].into()]);
        assert_eq!(report.weakest[0].strength, Strength::Lost);
        assert_eq!(report.survives, None);
    }

    #[test]
    fn what_does_not_survive_a_node_is_counted_whatever_its_code_promises() {
        let mut report = CheckReport::default();
        for (code, nodes) in [("1+0", 0), ("4+0", 0), ("4+4", 0), ("4+2", 1)] {
            let geometry = code.parse().expect("a geometry");
            let chunk = ChunkRef { geometry, ..chunk(0, 0).chunk };
            let survives = Some(Survives { nodes, zones: nodes });
            report.chunk(&ChunkHealth::new(chunk), survives, paths("a"), 0, None);
        }
        assert_eq!((report.chunks, report.frail), (4, 3));
    }

    #[test]
    fn many_paths_of_a_chunk_are_counted_after_the_first() {
        let mut needed = Paths::default();
        for number in 0..20u8 {
            needed.add(vec![number].into());
            needed.add(vec![number].into());
        }
        assert_eq!((needed.first.len(), needed.more), (8, 12));
    }
}
