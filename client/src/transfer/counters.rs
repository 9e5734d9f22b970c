//! How far a transfer is, as numbers that anybody may watch.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one transfer, only ever growing. Relaxed: they are for people.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of content there are, as far as known; 0 while unknown.
    pub bytes_total: AtomicU64,
    /// Bytes of content that are safe in the network, or written to the disk.
    pub bytes_done: AtomicU64,
    /// Bytes among these that were there before: nothing had to be transferred for them.
    pub bytes_known: AtomicU64,
    /// Files done.
    pub files_done: AtomicU64,
}

impl Counters {
    /// Adds to one of the counts.
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// Notes bytes that are done because they were there before.
    pub(crate) fn add_known(&self, bytes: u64) {
        Self::add(&self.bytes_known, bytes);
        Self::add(&self.bytes_done, bytes);
    }
}
