//! What the parts of an open store tell each other and the operator: counters, room, state.
//!
//! Owns numbers only, and decides nothing.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{StoreStats, Writes, index::Tally};

/// Shared by the writer thread and the readers.
#[derive(Debug)]
pub(super) struct Health {
    pub(super) puts: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) reads: AtomicU64,
    pub(super) io_errors: AtomicU64,
    pub(super) corrupt: AtomicU64,
    pub(super) compactions: AtomicU64,
    pub(super) used_bytes: AtomicU64,
    pub(super) dead_bytes: AtomicU64,
    /// What the last shard that was refused for want of room would have taken.
    pub(super) refused_bytes: AtomicU64,
    state: Mutex<(Tally, Writes)>,
}

impl Health {
    pub(super) fn new(tally: Tally, used_bytes: u64) -> Self {
        Self {
            puts: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            io_errors: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            compactions: AtomicU64::new(0),
            used_bytes: AtomicU64::new(used_bytes),
            dead_bytes: AtomicU64::new(0),
            refused_bytes: AtomicU64::new(0),
            state: Mutex::new((tally, Writes::Accepted)),
        }
    }

    fn state(&self) -> MutexGuard<'_, (Tally, Writes)> {
        // Two plain values: a panic between them leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_tally(&self, tally: Tally) {
        self.state().0 = tally;
    }

    #[cfg(test)]
    pub(super) fn tally(&self) -> Tally {
        self.state().0
    }

    pub(super) fn writes(&self) -> Writes {
        self.state().1
    }

    /// Sets whether writes are taken, and says whether that is news.
    pub(super) fn set_writes(&self, writes: Writes) -> bool {
        std::mem::replace(&mut self.state().1, writes) != writes
    }

    pub(super) fn stats(&self, capacity_bytes: u64, free_bytes: u64) -> StoreStats {
        let (tally, writes) = *self.state();
        StoreStats {
            shards: tally.shards,
            shard_bytes: tally.shard_bytes,
            quarantined: tally.quarantined,
            trashed: tally.trashed,
            trashed_bytes: tally.trashed_bytes,
            dead_bytes: self.dead_bytes.load(Relaxed),
            used_bytes: self.used_bytes.load(Relaxed),
            capacity_bytes,
            free_bytes,
            writes,
            puts: self.puts.load(Relaxed),
            duplicates: self.duplicates.load(Relaxed),
            commits: self.commits.load(Relaxed),
            reads: self.reads.load(Relaxed),
            io_errors: self.io_errors.load(Relaxed),
            corrupt: self.corrupt.load(Relaxed),
            compactions: self.compactions.load(Relaxed),
        }
    }
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
