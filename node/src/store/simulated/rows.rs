//! The index of a simulated disk, and the ledger in the same log.
//!
//! Owns what survives of the log: a kill leaves all of it, a power cut any prefix that has all that was
//! flushed, and an index can be lost altogether.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    ops::Bound,
    sync::Arc,
};

use copse_core::ids::ShardId;

use super::{
    super::{
        arcs::ArcRow,
        index::{Changes, Due, Entry, Index, Meta, SegmentUse},
        ledger::{self, Ledger, LedgerChange},
        memory::Step,
    },
    medium::{Medium, State, eio},
};

/// Batches that may be lost, at most: behind so many more the log's pages were written.
const BATCHES_MAX: usize = 64;

/// All rows.
#[derive(Clone, Default)]
pub(super) struct Rows {
    pub(super) shards: BTreeMap<ShardId, Entry>,
    due: BTreeSet<Due>,
    arcs: BTreeMap<u16, ArcRow>,
    segments: BTreeMap<u32, SegmentUse>,
    meta: Option<Meta>,
    ledger: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What was written at once.
#[derive(Clone)]
enum Batch {
    Rows(Changes),
    Ledger(Vec<LedgerChange>),
}

/// Rows, and the way to them.
#[derive(Clone, Default)]
pub(super) struct Log {
    /// What no power cut takes.
    durable: Rows,
    batches: VecDeque<Batch>,
    pub(super) rows: Rows,
}

fn change<K: Ord + Clone, V: Clone>(rows: &mut BTreeMap<K, V>, changes: &BTreeMap<K, Option<V>>) {
    for (key, value) in changes {
        match value {
            Some(value) => rows.insert(key.clone(), value.clone()),
            None => rows.remove(key),
        };
    }
}

impl Rows {
    fn apply(&mut self, batch: &Batch) {
        match batch {
            Batch::Rows(changes) => {
                change(&mut self.shards, &changes.rows);
                change(&mut self.segments, &changes.segments);
                self.arcs.extend(&changes.arcs);
                for (due, is_there) in &changes.due {
                    if *is_there {
                        self.due.insert(*due);
                    } else {
                        self.due.remove(due);
                    }
                }
                self.meta = Some(changes.meta);
            }
            Batch::Ledger(changes) => {
                for (key, value) in changes {
                    match value {
                        Some(value) => self.ledger.insert(key.clone(), value.clone()),
                        None => self.ledger.remove(key),
                    };
                }
            }
        }
    }
}

impl Log {
    fn push(&mut self, batch: Batch) {
        self.rows.apply(&batch);
        self.batches.push_back(batch);
        if self.batches.len() > BATCHES_MAX
            && let Some(oldest) = self.batches.pop_front()
        {
            self.durable.apply(&oldest);
        }
    }

    fn flush(&mut self) {
        while let Some(batch) = self.batches.pop_front() {
            self.durable.apply(&batch);
        }
    }

    /// So many of the newest batches are gone, if they were not flushed; how many these were.
    pub(super) fn loses_power(&mut self, newest: usize) -> u64 {
        let lost = newest.min(self.batches.len());
        self.batches.truncate(self.batches.len() - lost);
        self.flush();
        self.rows = self.durable.clone();
        lost as u64
    }

    /// All of it is gone.
    pub(super) fn is_lost(&mut self) {
        *self = Self::default();
    }
}

/// The index as one process has it, and its ledger.
pub(super) struct MountedRows {
    pub(super) medium: Arc<Medium>,
    pub(super) life: u64,
}

impl MountedRows {
    fn write(&self, batch: Batch) -> io::Result<()> {
        let mut state = self.medium.of_life(self.life)?;
        if state.faults.fail_writes {
            return Err(eio());
        }
        state.log.push(batch);
        Ok(())
    }

    fn read<T>(&self, of: impl FnOnce(&State) -> T) -> io::Result<T> {
        Ok(of(&*self.medium.of_life(self.life)?))
    }
}

impl Index for MountedRows {
    /// Asked for when a store is opened: then nothing is in memory yet.
    fn meta(&self) -> io::Result<Option<Meta>> {
        let state = self.medium.of_life(self.life)?;
        if state.faults.fail_reads { Err(eio()) } else { Ok(state.log.rows.meta) }
    }

    fn get(&self, id: ShardId) -> io::Result<Option<Entry>> {
        self.read(|state| state.log.rows.shards.get(&id).copied())
    }

    fn scan(
        &self,
        mut from: Bound<ShardId>,
        visit: &mut dyn FnMut(ShardId, Entry) -> bool,
    ) -> io::Result<()> {
        // One at a time, so that `visit` may use the index.
        loop {
            let next = self.read(|state| {
                let mut rows = state.log.rows.shards.range((from, Bound::Unbounded));
                rows.next().map(|(&id, &entry)| (id, entry))
            })?;
            match next {
                Some((id, entry)) if visit(id, entry) => from = Bound::Excluded(id),
                _ => return Ok(()),
            }
        }
    }

    fn arcs(&self) -> io::Result<BTreeMap<u16, ArcRow>> {
        self.read(|state| state.log.rows.arcs.clone())
    }

    fn segments(&self) -> io::Result<BTreeMap<u32, SegmentUse>> {
        self.read(|state| state.log.rows.segments.clone())
    }

    fn due(&self, proved_elsewhere: bool, until: u32, limit: usize) -> io::Result<Vec<ShardId>> {
        self.read(|state| {
            let due = state.log.rows.due.range(Due::first(proved_elsewhere)..);
            let due = due
                .take_while(|due| due.proved_elsewhere == proved_elsewhere && due.since <= until);
            due.take(limit).map(|due| due.id).collect()
        })
    }

    fn apply(&self, changes: &Changes) -> io::Result<()> {
        self.write(Batch::Rows(changes.clone()))
    }

    fn flush(&self) -> io::Result<()> {
        self.medium.step(Step::Sync, self.life, |state| {
            if state.faults.fail_syncs {
                return Err(eio());
            }
            if !state.faults.lie_about_syncs {
                state.log.flush();
            }
            Ok(())
        })
    }
}

impl Ledger for MountedRows {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.read(|state| state.log.rows.ledger.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        let mut from = Bound::Included(prefix.to_vec());
        loop {
            let next = self.read(|state| {
                let mut rows = state.log.rows.ledger.range((from.clone(), Bound::Unbounded));
                rows.next().map(|(key, value)| (key.clone(), value.clone()))
            })?;
            match next {
                Some((key, value)) if key.starts_with(prefix) && visit(&key, &value) => {
                    from = Bound::Excluded(key);
                }
                _ => return Ok(()),
            }
        }
    }

    fn apply(&self, changes: Vec<LedgerChange>) -> io::Result<()> {
        ledger::check(&changes)?;
        self.write(Batch::Ledger(changes))
    }
}
