//! What clients were promised, and what they saw.
//!
//! Owns the account of a world: what was acknowledged, what anybody began, and the first thing of
//! each kind that should not have been. Asks nobody but the disks, at the moment of an acknowledgement.
//! The one idea: something counts from that moment on, and then for ever.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_core::{extent::Extent, manifest::ChunkRef};
use tokio::{sync::Notify, time::timeout};

use super::{scene::Scene, tree::Tree};

/// Nothing a client does may take longer: its own time-outs are shorter.
pub(super) const OPERATION_MAX: Duration = Duration::from_secs(120);

/// A single chunk that was acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Promised {
    pub(super) extent: Extent,
    /// The number of its bytes, and how many they are.
    pub(super) content: u64,
    pub(super) bytes: usize,
}

/// A tree that was acknowledged.
#[derive(Debug)]
pub(super) struct PromisedTree {
    /// What opens it, as its owner keeps it.
    pub(super) capability: String,
    pub(super) tree: Tree,
    /// All that it is made of, each once.
    pub(super) chunks: BTreeSet<ChunkRef>,
}

/// A list of a tree's chunks that was stored.
#[derive(Debug)]
pub(super) struct PromisedList {
    /// What opens it: a verify capability.
    pub(super) capability: String,
    /// How many chunks it lists.
    pub(super) listed: u64,
    /// What it is itself made of.
    pub(super) chunks: BTreeSet<ChunkRef>,
}

/// The account. Clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<(Mutex<Inner>, Notify)>);

#[derive(Default)]
pub(super) struct Inner {
    promised: Vec<Promised>,
    trees: Vec<Arc<PromisedTree>>,
    lists: Vec<Arc<PromisedList>>,
    /// Every chunk, and every tree, that anybody began to put: its number, and of chunks how many
    /// bytes.
    pub(super) begun: Vec<(u64, usize)>,
    pub(super) begun_trees: Vec<u64>,
    pub(super) counts: Counts,
    pub(super) work: TreeCounts,
    pub(super) ways: WayCounts,
    wrong: Option<String>,
    refused: Option<String>,
    early: Option<String>,
    hung: Option<String>,
}

/// How it went so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Puts that were acknowledged.
    pub puts: u64,
    /// Puts that ended with an error.
    pub puts_failed: u64,
    /// Of these, those that were refused because so few nodes were known.
    pub puts_fragile: u64,
    /// Reads.
    pub reads: u64,
    /// Reads that ended with an error.
    pub reads_failed: u64,
}

/// How it went with trees, and with checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeCounts {
    /// Trees that were acknowledged.
    pub puts: u64,
    /// Puts of trees that ended with an error.
    pub puts_failed: u64,
    /// Listings, and files and parts of files that were read.
    pub reads: u64,
    /// Of these, those that ended with an error.
    pub reads_failed: u64,
    /// Checks that ended, with or without repair.
    pub checks: u64,
    /// Shards that clients made anew.
    pub mended: u64,
}

/// How often the product's own programs did something for a client, to its good end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WayCounts {
    /// Trees put from files of a real disk.
    pub paths: u64,
    /// Files put from a stream.
    pub streams: u64,
    /// Trees put through a gateway.
    pub gateway_puts: u64,
    /// Entries that a gateway described.
    pub gateway_stats: u64,
    /// Trees, and parts of trees, that a gateway listed.
    pub gateway_lists: u64,
    /// Ranges of files that were read through a gateway.
    pub gateway_reads: u64,
    /// Gateways that were stopped in good order; the others died.
    pub gateway_stops: u64,
    /// Calls of gateways that ended with an error.
    pub gateway_failed: u64,
    /// Lists of the chunks of trees that were stored: verify capabilities.
    pub lists: u64,
    /// Checks of all that such a list names.
    pub list_checks: u64,
}

impl Ledger {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Single chunks that were acknowledged.
    pub(super) fn promised(&self) -> Vec<Promised> {
        self.lock().promised.clone()
    }

    /// Trees that were acknowledged.
    pub(super) fn trees(&self) -> Vec<Arc<PromisedTree>> {
        self.lock().trees.clone()
    }

    /// Lists of trees' chunks that were acknowledged.
    pub(super) fn lists(&self) -> Vec<Arc<PromisedList>> {
        self.lock().lists.clone()
    }

    /// All chunks that must last: single ones, and those of trees and of their lists, each once.
    pub(super) fn chunks(&self) -> Vec<ChunkRef> {
        let inner = self.lock();
        let single = inner.promised.iter().map(|one| ChunkRef::from(&one.extent));
        let of_trees = inner.trees.iter().flat_map(|one| one.chunks.iter().copied());
        let of_lists = inner.lists.iter().flat_map(|one| one.chunks.iter().copied());
        let mut seen = BTreeSet::new();
        single.chain(of_trees).chain(of_lists).filter(|chunk| seen.insert(*chunk)).collect()
    }

    /// The put of a chunk was acknowledged, at this moment.
    pub(super) fn acknowledged(&self, one: Promised, scene: &Scene) {
        self.note_if_early(scene.is_safe(&ChunkRef::from(&one.extent)));
        let mut inner = self.lock();
        inner.counts.puts += 1;
        if inner.promised.iter().all(|other| other.extent.chunk != one.extent.chunk) {
            inner.promised.push(one);
        }
    }

    /// The put of a tree was acknowledged, at this moment.
    pub(super) fn acknowledged_tree(&self, one: PromisedTree, scene: &Scene) {
        one.chunks.iter().for_each(|chunk| self.note_if_early(scene.is_safe(chunk)));
        let mut inner = self.lock();
        inner.work.puts += 1;
        if inner.trees.iter().all(|other| other.capability != one.capability) {
            inner.trees.push(Arc::new(one));
        }
    }

    /// A list of a tree's chunks was acknowledged, at this moment.
    pub(super) fn acknowledged_list(&self, one: PromisedList, scene: &Scene) {
        one.chunks.iter().for_each(|chunk| self.note_if_early(scene.is_safe(chunk)));
        let mut inner = self.lock();
        inner.ways.lists += 1;
        if inner.lists.iter().all(|other| other.capability != one.capability) {
            inner.lists.push(Arc::new(one));
        }
    }

    fn note_if_early(&self, safe: Result<(), String>) {
        if let Err(how) = safe {
            self.lock().early.get_or_insert(how);
        }
        self.0.1.notify_waiters();
    }

    /// Waits until something is acknowledged, or so long.
    pub(super) async fn next_acknowledgement(&self, within: Duration) {
        drop(timeout(within, self.0.1.notified()).await);
    }

    /// The first acknowledgement that came before its time.
    pub(super) fn early(&self) -> Option<String> {
        self.lock().early.clone()
    }

    /// A read gave something else than was put.
    pub(super) fn note_wrong(&self, what: &str) {
        self.lock().wrong.get_or_insert_with(|| what.to_owned());
    }

    /// A read failed although enough shards were within reach all the time.
    pub(super) fn note_refused(&self, what: String) {
        self.lock().refused.get_or_insert(what);
    }

    /// The first read that gave something else than was put.
    pub(super) fn wrong(&self) -> Option<String> {
        self.lock().wrong.clone()
    }

    /// The first read that failed although enough shards were within reach all the time.
    pub(super) fn refused(&self) -> Option<String> {
        self.lock().refused.clone()
    }

    /// The first call that did not end.
    pub(super) fn hung(&self) -> Option<String> {
        self.lock().hung.clone()
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().counts
    }

    pub(super) fn work(&self) -> TreeCounts {
        self.lock().work
    }

    pub(super) fn ways(&self) -> WayCounts {
        self.lock().ways
    }

    /// What a call gave, which must end in time.
    pub(super) async fn in_time<T, E: ToString>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, String> {
        self.within(OPERATION_MAX, what, call).await
    }

    /// The same, with a time of its own for what is many calls one after the other.
    pub(super) async fn within<T, E: ToString>(
        &self,
        most: Duration,
        what: &str,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, String> {
        match timeout(most, call).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => {
                let hung = format!("{what} gave no answer and no error in {most:?}");
                self.lock().hung.get_or_insert_with(|| hung.clone());
                Err(hung)
            }
        }
    }
}
