//! A small durable space of keys and values beside the index: for queues and cursors of the node.
//!
//! Owns what a ledger must do, and one in memory. Knows nothing of what is written there.
//!
//! A ledger shares the log of the index. So a power cut may take its newest entries, but only
//! together with everything of ledger and index that was written after them: what survives is a
//! prefix. An index that is lost takes the ledger with it. Entries must be of a kind that can be
//! found again by looking at what is held.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A key, at most, in bytes.
pub const LEDGER_KEY_BYTES_MAX: usize = 256;
/// A value, at most, in bytes: what is longer is a shard, or no entry.
pub const LEDGER_VALUE_BYTES_MAX: usize = 64 << 10;
/// Changes at once, at most, and their bytes: a batch lies in memory twice while it is written.
pub const LEDGER_CHANGES_MAX: usize = 4096;
const LEDGER_BATCH_BYTES_MAX: usize = 8 << 20;

/// A key, and its new value; without one the key is taken out.
pub type LedgerChange = (Vec<u8>, Option<Vec<u8>>);

/// Keys and values in order of key. All calls block: not to be called on the runtime.
///
/// Nothing is synced. After the end of the process everything is there; after a power cut the
/// newest changes may be missing, in the reverse order of their making, never a part of one `apply`.
/// What was read from the store before an `apply` is as durable as the `apply`.
///
/// Let go of it before the store is opened again.
pub trait Ledger: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// When the disk fails.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// Shows keys that begin with `prefix`, in ascending order, until `visit` says false.
    ///
    /// # Errors
    /// When the disk fails.
    fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()>;

    /// Makes all changes or none; of several of one key the last counts.
    ///
    /// # Errors
    /// `InvalidInput` when a bound is passed ([`LEDGER_KEY_BYTES_MAX`] and its neighbours), or when
    /// the disk fails.
    fn apply(&self, changes: Vec<LedgerChange>) -> io::Result<()>;
}

/// Refuses changes that are too large.
pub(super) fn check(changes: &[LedgerChange]) -> io::Result<()> {
    let value_bytes = |change: &LedgerChange| change.1.as_ref().map_or(0, Vec::len);
    let too_much = if changes.len() > LEDGER_CHANGES_MAX {
        "more changes at once than 4096; make several batches"
    } else if changes.iter().any(|change| change.0.len() > LEDGER_KEY_BYTES_MAX) {
        "a key of more than 256 bytes"
    } else if changes.iter().any(|change| value_bytes(change) > LEDGER_VALUE_BYTES_MAX) {
        "a value of more than 64 KiB"
    } else if changes.iter().map(value_bytes).sum::<usize>() > LEDGER_BATCH_BYTES_MAX {
        "more than 8 MiB at once; make several batches"
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the ledger does not take {too_much}")))
}

/// Batches that a ledger in memory can be made to forget.
const UNDO_BATCHES_MAX: usize = 64;

/// A ledger in memory.
#[derive(Debug, Default)]
pub(super) struct MemoryLedger(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What the newest batches replaced, the newest last.
    undo: VecDeque<Vec<LedgerChange>>,
}

impl Entries {
    fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> LedgerChange {
        let old = match value {
            Some(value) => self.rows.insert(key.clone(), value),
            None => self.rows.remove(&key),
        };
        (key, old)
    }
}

impl MemoryLedger {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the newest batches back, as a power cut does; how many there were to take.
    pub(super) fn forget(&self, batches: usize) -> u64 {
        let mut entries = self.entries();
        for taken in 0..batches {
            let Some(batch) = entries.undo.pop_back() else { return taken as u64 };
            for (key, old) in batch.into_iter().rev() {
                entries.set(key, old);
            }
        }
        batches as u64
    }
}

impl Ledger for MemoryLedger {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.entries().rows.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        // One at a time, so that `visit` may use the ledger.
        let mut from = std::ops::Bound::Included(prefix.to_vec());
        loop {
            let next = {
                let entries = self.entries();
                let mut rows = entries.rows.range((from, std::ops::Bound::Unbounded));
                rows.next().map(|(key, value)| (key.clone(), value.clone()))
            };
            match next {
                Some((key, value)) if key.starts_with(prefix) && visit(&key, &value) => {
                    from = std::ops::Bound::Excluded(key);
                }
                _ => return Ok(()),
            }
        }
    }

    fn apply(&self, changes: Vec<LedgerChange>) -> io::Result<()> {
        check(&changes)?;
        let mut entries = self.entries();
        let batch = changes.into_iter().map(|(key, value)| entries.set(key, value)).collect();
        entries.undo.push_back(batch);
        if entries.undo.len() > UNDO_BATCHES_MAX {
            entries.undo.pop_front();
        }
        Ok(())
    }
}
