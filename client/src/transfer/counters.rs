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
    /// Bytes of holes among all these, as far as known: nothing is ever moved for them. Of a get they are met on
    /// the way.
    pub hole_bytes_total: AtomicU64,
    /// Bytes of holes that are done. They count as known, too.
    pub hole_bytes_done: AtomicU64,
    /// Files done.
    pub files_done: AtomicU64,
}

impl Counters {
    /// Adds to one of the counts.
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// Bytes still to be moved: of content that is not done, without the holes that are known.
    pub fn bytes_left(&self) -> u64 {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let holes = get(&self.hole_bytes_total).saturating_sub(get(&self.hole_bytes_done));
        get(&self.bytes_total).saturating_sub(get(&self.bytes_done)).saturating_sub(holes)
    }

    /// Notes a hole that is done.
    pub(crate) fn add_hole(&self, bytes: u64) {
        Self::add(&self.hole_bytes_done, bytes);
        self.add_known(bytes);
    }

    /// Notes bytes that are done because they were there before.
    pub(crate) fn add_known(&self, bytes: u64) {
        Self::add(&self.bytes_known, bytes);
        Self::add(&self.bytes_done, bytes);
    }
}
