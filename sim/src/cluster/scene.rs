//! What all who act in a world share: which machines serve, what was written, and who reads.
//!
//! Owns the three measures that need the exact moment: with how few shards within reach a read had to
//! do, at its worst moment; how often shards of a chunk were written; and where they are when a put is
//! acknowledged. Judges nothing but the last.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use copse_core::{
    ids::{ChunkId, ShardId, ShardIndex},
    manifest::ChunkRef,
};
use copse_node::store::memory::Effects;

use super::{net::Machine, store::Store};

/// The scene. Clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Scene(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// The disks of machines that run, are reached by everybody and have nothing wrong with them.
    serving: BTreeMap<Machine, Arc<Store>>,
    /// All disks, whether their machines run or not.
    disks: BTreeMap<Machine, Arc<Store>>,
    /// Shards that a planned fault took from a disk: its machine may have said before that it has them.
    taken: BTreeMap<ChunkId, BTreeSet<(Machine, ShardIndex)>>,
    /// Machines with such faults: what is damaged there was acknowledged before.
    damaged: BTreeSet<Machine>,
    reads: BTreeMap<u64, Reading>,
    next: u64,
    written: BTreeMap<ChunkId, Written>,
    struck: Struck,
}

/// How often what strikes by itself did so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Struck {
    /// Processes that died at a deed.
    pub deaths: u64,
    /// Of them, those that had not yet opened what another left.
    pub deaths_opening: u64,
    /// Shards that could not be read any more.
    pub bad_sectors: u64,
    /// Shards that were refused for want of room.
    pub refused: u64,
    /// What went wrong on disks, those that were lost included.
    pub disks: Effects,
    /// Answers that were no answers: of nodes that lie about shards.
    pub lies: u64,
    /// Messages with false words about others.
    pub false_words: u64,
    /// Machines that lost power in a blackout.
    pub dark: u64,
    /// Packets that arrived before one that was sent earlier on the same link.
    pub overtaken: u64,
    /// Acknowledgements at whose moment all disks were looked at.
    pub acknowledged: u64,
}

struct Reading {
    chunk: ChunkId,
    fewest: usize,
}

/// What was written of a chunk, on all disks, by whomever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Shards, each as often as it was written.
    pub(super) shards: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// The bytes of each index once.
    pub(super) once_bytes: u64,
    /// Which indices, as bits.
    seen: [u64; 4],
}

impl Scene {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which machines serve from now on.
    pub(super) fn set_serving(&self, serving: BTreeMap<Machine, Arc<Store>>) {
        let mut inner = self.lock();
        inner.serving = serving;
        let chunks: BTreeSet<ChunkId> = inner.reads.values().map(|read| read.chunk).collect();
        chunks.into_iter().for_each(|chunk| inner.recount(chunk));
    }

    /// A machine has this disk from now on; what happened to the one before it is not forgotten.
    pub(super) fn set_disk(&self, machine: Machine, disk: &Arc<Store>) {
        self.takes_from(machine);
        let mut inner = self.lock();
        if let Some(lost) = inner.disks.insert(machine, Arc::clone(disk)) {
            inner.struck.disks += lost.effects();
        }
    }

    /// A fault is about to take what is on the disk of a machine, or some of it.
    pub(super) fn takes_from(&self, machine: Machine) {
        let mut inner = self.lock();
        let Some(disk) = inner.disks.get(&machine).cloned() else { return };
        inner.damaged.insert(machine);
        for shard in disk.sound() {
            inner.taken.entry(shard.chunk).or_default().insert((machine, shard.index));
        }
    }

    /// Whether a chunk is safe at this moment, at which a client is told so: distinct shards for the write
    /// quorum are on disks, synced and sound, and k of them when any one machine is lost. What a fault took
    /// from a disk counts as if it were there: who acknowledged it could not know.
    pub(super) fn is_safe(&self, one: &ChunkRef) -> Result<(), String> {
        let mut inner = self.lock();
        inner.struck.acknowledged += 1;
        let (k, w, code) = (one.geometry.data(), one.geometry.write_quorum(), one.geometry);
        let mut held = inner.taken.get(&one.id).cloned().unwrap_or_default();
        for (machine, disk) in &inner.disks {
            let is_struck = inner.damaged.contains(machine);
            let damaged = one
                .geometry
                .indices()
                .filter(|&index| is_struck && disk.is_damaged(ShardId { chunk: one.id, index }));
            let here = disk.sound_of(one.id).into_iter().chain(damaged);
            held.extend(here.map(|index| (*machine, index)));
        }
        let without = |lost: Option<Machine>| {
            let left = held.iter().filter(|(machine, _)| Some(*machine) != lost);
            left.map(|(_, index)| index).collect::<BTreeSet<_>>().len()
        };
        let (chunk, all) = (one.id.short(), without(None));
        if all < w {
            return Err(format!(
                "chunk {chunk} ({code}) was acknowledged with {all} shards on disks, {w} are needed"
            ));
        }
        match held.iter().map(|(machine, _)| (without(Some(*machine)), *machine)).min() {
            Some((left, machine)) if left < k => Err(format!(
                "chunk {chunk} ({code}) was acknowledged, and without machine {machine} there are {left} shards"
            )),
            _ => Ok(()),
        }
    }

    /// A shard of a chunk has just gone from some disk.
    pub(super) fn dropped(&self, chunk: ChunkId) {
        self.lock().recount(chunk);
    }

    /// A shard was written somewhere, and was not there before.
    pub(super) fn wrote(&self, id: ShardId, bytes: u64) {
        let mut inner = self.lock();
        let written = inner.written.entry(id.chunk).or_default();
        written.shards += 1;
        written.bytes += bytes;
        let (word, bit) = (usize::from(id.index.0 / 64), id.index.0 % 64);
        if written.seen[word] & (1 << bit) == 0 {
            written.seen[word] |= 1 << bit;
            written.once_bytes += bytes;
        }
    }

    /// Something struck.
    pub(super) fn struck(&self, count: impl FnOnce(&mut Struck)) {
        count(&mut self.lock().struck);
    }

    /// How often something did so far.
    pub(super) fn strikes(&self) -> Struck {
        let inner = self.lock();
        let mut struck = inner.struck;
        inner.disks.values().for_each(|disk| struck.disks += disk.effects());
        struck
    }

    /// What was written so far, by chunk.
    pub(super) fn written(&self) -> BTreeMap<ChunkId, Written> {
        self.lock().written.clone()
    }

    /// Bytes that were written so far, and of those what each shard's first copy is.
    pub(super) fn written_bytes(&self) -> (u64, u64) {
        let inner = self.lock();
        let sum = |of: fn(&Written) -> u64| inner.written.values().map(of).sum();
        (sum(|written| written.bytes), sum(|written| written.once_bytes))
    }

    /// Somebody begins to read a chunk.
    pub(super) fn begin(&self, chunk: ChunkId) -> u64 {
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        let fewest = inner.within_reach(chunk);
        inner.reads.insert(number, Reading { chunk, fewest });
        number
    }

    /// The read has ended: the shards of different index that were within reach at its worst moment.
    pub(super) fn end(&self, number: u64) -> usize {
        self.lock().reads.remove(&number).map_or(0, |read| read.fewest)
    }
}

impl Inner {
    fn within_reach(&self, chunk: ChunkId) -> usize {
        let all = self.serving.values().flat_map(|disk| disk.sound_of(chunk));
        all.collect::<BTreeSet<_>>().len()
    }

    fn recount(&mut self, chunk: ChunkId) {
        if self.reads.values().any(|read| read.chunk == chunk) {
            let now = self.within_reach(chunk);
            let same = self.reads.values_mut().filter(|read| read.chunk == chunk);
            same.for_each(|read| read.fewest = read.fewest.min(now));
        }
    }
}
