//! An index in memory, of a build without RocksDB: built from the segments at each opening.
//!
//! Owns the rows of the shards and when trash is due; what follows from the rows is kept by whoever
//! opened it, and never asked for again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Bound,
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use copse_core::ids::ShardId;

use super::{
    arcs::ArcRow,
    index::{Changes, Due, Entry, Index, Meta, SegmentUse},
};

/// The rows.
#[derive(Default)]
#[cfg_attr(feature = "rocksdb", allow(dead_code))]
pub(super) struct MemoryIndex(RwLock<Rows>);

#[derive(Default)]
struct Rows {
    shards: BTreeMap<ShardId, Entry>,
    due: BTreeSet<Due>,
    meta: Option<Meta>,
}

impl MemoryIndex {
    fn rows(&self) -> RwLockReadGuard<'_, Rows> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index for MemoryIndex {
    fn meta(&self) -> io::Result<Option<Meta>> {
        Ok(self.rows().meta)
    }

    fn get(&self, id: ShardId) -> io::Result<Option<Entry>> {
        Ok(self.rows().shards.get(&id).copied())
    }

    fn scan(
        &self,
        from: Bound<ShardId>,
        visit: &mut dyn FnMut(ShardId, Entry) -> bool,
    ) -> io::Result<()> {
        for (&id, &entry) in self.rows().shards.range((from, Bound::Unbounded)) {
            if !visit(id, entry) {
                break;
            }
        }
        Ok(())
    }

    fn arcs(&self) -> io::Result<BTreeMap<u16, ArcRow>> {
        Ok(BTreeMap::new())
    }

    fn segments(&self) -> io::Result<BTreeMap<u32, SegmentUse>> {
        Ok(BTreeMap::new())
    }

    fn due(&self, proved_elsewhere: bool, until: u32, limit: usize) -> io::Result<Vec<ShardId>> {
        let rows = self.rows();
        let due = rows.due.range(Due::first(proved_elsewhere)..);
        let due =
            due.take_while(|due| due.proved_elsewhere == proved_elsewhere && due.since <= until);
        Ok(due.take(limit).map(|due| due.id).collect())
    }

    fn apply(&self, changes: &Changes) -> io::Result<()> {
        let mut rows = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (&id, entry) in &changes.rows {
            match entry {
                Some(entry) => rows.shards.insert(id, *entry),
                None => rows.shards.remove(&id),
            };
        }
        for (due, there) in &changes.due {
            if *there {
                rows.due.insert(*due);
            } else {
                rows.due.remove(due);
            }
        }
        rows.meta = Some(changes.meta);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
