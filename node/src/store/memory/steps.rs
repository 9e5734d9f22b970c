//! The steps of a store in memory, one by one, for who wants to end its process between two of them.
//!
//! Owns their names and the moments right before and after each. Who watches may end the process there;
//! then the step does nothing, or has done what it does and nobody is told.

use std::{
    fmt,
    sync::{Arc, PoisonError},
};

use super::MemoryStore;

/// Something that a process does with its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The record of a shard is written.
    Write,
    /// The record of a removal is written.
    Remove,
    /// What was written is synced: from now on it counts.
    Sync,
    /// A shard is read.
    Read,
}

/// Is told of each step of the process that has the store open.
pub trait Watch: fmt::Debug + Send + Sync {
    /// A step is about to be done, or was done just now.
    fn step(&self, step: Step, is_done: bool);
}

impl MemoryStore {
    /// Tells of each step from now on, or to nobody.
    pub fn watch(&self, watch: Option<Arc<dyn Watch>>) {
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = watch;
    }

    /// Does a step of a process that began it after so many ends.
    pub(super) fn step<T>(&self, step: Step, begun_in: u64, work: impl FnOnce() -> T) -> T {
        self.tell(step, begun_in, false);
        let result = work();
        self.tell(step, begun_in, true);
        result
    }

    fn tell(&self, step: Step, begun_in: u64, is_done: bool) {
        let watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // What is left of a process that ended does nothing any more.
        if let Some(watch) = watch.filter(|_| self.crashes() == begun_in) {
            watch.step(step, is_done);
        }
    }
}
