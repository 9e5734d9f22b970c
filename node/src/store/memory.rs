//! A store in memory that can be told to fail: for tests and the simulator.
//!
//! Owns no thread and no file, reads no clock but tokio's, iterates in order: the same calls give
//! the same answers. Verifies what it serves exactly as the store on a disk does.
//!
//! A put is written, then synced, then acknowledged; with [`Faults::sync_delay`] there is time
//! between the steps, in which its process can [end](MemoryStore::end). What was begun before does
//! nothing behind such an end. Nothing is ever dead here: the room
//! of what leaves the trash is free at once, and trash leaves when the next call looks at the clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, ShardId, ShardIndex},
};
use tokio::sync::Notify;

mod faults;
mod steps;

use self::faults::eio;
pub use self::{
    faults::{Effects, Faults, Unsynced},
    steps::{Step, Watch},
};
use super::{
    ArcChanges, FullReason, HeldShard, Ledger, PutError, ReadError, RemovalReason, RemoveError,
    Removed, ShardRead, ShardStore, StoreRevision, StoreStats, Stored, TrashOptions, VerifiedShard,
    Want, Writes,
    arcs::{Arcs, arc_of},
    doubts::{Doubts, Ended},
    index::Due,
    ledger::MemoryLedger,
    reader::arc_from,
    request::record_bytes,
    segment::Removal,
    shard,
};

/// Shards in memory.
#[derive(Debug)]
pub struct MemoryStore {
    state: Mutex<State>,
    crashed: Notify,
    ledger: Arc<MemoryLedger>,
    doubts: Arc<Doubts>,
    capacity_bytes: u64,
    trash: TrashOptions,
    watch: Mutex<Option<Arc<dyn Watch>>>,
}

#[derive(Debug)]
struct State {
    shards: BTreeMap<ShardId, Held>,
    arcs: Arcs,
    /// What lies in the trash, the oldest first.
    due: BTreeSet<Due>,
    faults: Faults,
    /// What was written and not synced, the oldest first: a put, or a removal with its reason.
    unsynced: Vec<(ShardId, Option<RemovalReason>)>,
    /// How often its process ended: what was under way then is not acknowledged, and does nothing.
    crashes: u64,
    closed: bool,
    used_bytes: u64,
    counters: Counters,
    /// Writes and reads that could have gone to a wrong place.
    aimed: [u64; 2],
    effects: Effects,
    /// Why the last write was refused, and how much it wanted.
    full: Option<(FullReason, u64)>,
}

#[derive(Debug, Default)]
struct Counters {
    puts: u64,
    duplicates: u64,
    commits: u64,
    reads: u64,
    io_errors: u64,
    corrupt: u64,
}

#[derive(Debug)]
struct Held {
    geometry: Geometry,
    descriptor: Bytes,
    groups: Bytes,
    data: Bytes,
    record_bytes: u64,
    /// By the index, which knows it whatever lies in the shard's place.
    shard_bytes: u32,
    condition: Condition,
    /// Its bytes were changed behind the store's back, which it does not know.
    damaged: bool,
    /// It lies on bad sectors: reading it fails with EIO.
    bad_sectors: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// Not acknowledged, and not found: gone after a crash.
    Written,
    /// May be found; if the disk lied, gone after a crash.
    Live {
        lied: bool,
    },
    Quarantined,
    /// If the disk lied, live again after a crash.
    Trashed {
        removal: Removal,
        lied: bool,
    },
}

impl Held {
    fn is_live(&self) -> bool {
        matches!(self.condition, Condition::Live { .. })
    }

    /// Live, synced, and as it was put.
    fn is_sound(&self) -> bool {
        self.condition == Condition::Live { lied: false } && !self.damaged && !self.bad_sectors
    }

    fn trashed(&self) -> Option<Removal> {
        match self.condition {
            Condition::Trashed { removal, .. } => Some(removal),
            _ => None,
        }
    }
}

impl State {
    fn new(epoch: u64) -> Self {
        Self {
            shards: BTreeMap::new(),
            arcs: Arcs::new(StoreRevision { epoch, revision: 0 }, BTreeMap::new()),
            due: BTreeSet::new(),
            faults: Faults::default(),
            unsynced: Vec::new(),
            crashes: 0,
            closed: false,
            used_bytes: 0,
            counters: Counters::default(),
            aimed: [0; 2],
            effects: Effects::default(),
            full: None,
        }
    }

    /// Changes what a shard is, or takes it out, and keeps the arcs in step.
    fn set(&mut self, id: ShardId, condition: Option<Condition>) {
        let Some(held) = self.shards.get_mut(&id) else { return };
        let was = held.is_live();
        if let Some(removal) = held.trashed() {
            self.due.remove(&Due::of(id, removal));
        }
        if let Some(Condition::Trashed { removal, .. }) = condition {
            self.due.insert(Due::of(id, removal));
        }
        match condition {
            Some(condition) => held.condition = condition,
            None => {
                self.used_bytes -= held.record_bytes;
                self.shards.remove(&id);
            }
        }
        let is = matches!(condition, Some(Condition::Live { .. }));
        if was != is {
            self.arcs.count(id, is);
        }
    }

    /// Whether a call may look at shards; if not, why.
    fn readable(&mut self) -> Result<(), ReadError> {
        if self.closed {
            return Err(ReadError::Closed);
        }
        if self.faults.fail_reads {
            self.counters.io_errors += 1;
            return Err(ReadError::Io { source: eio() });
        }
        Ok(())
    }

    /// The same for a call that was begun after so many ends.
    fn readable_since(&mut self, begun_in: u64) -> Result<(), ReadError> {
        if self.crashes != begun_in { Err(ReadError::Closed) } else { self.readable() }
    }

    /// A record was written and is not synced; an older one of the same shard does not count any more.
    fn note_unsynced(&mut self, id: ShardId, removal: Option<RemovalReason>) {
        self.unsynced.retain(|(other, _)| *other != id);
        self.unsynced.push((id, removal));
    }

    /// The shard, if it may be served.
    fn live(&self, id: ShardId) -> Result<&Held, ReadError> {
        match self.shards.get(&id) {
            Some(held) if held.is_live() => Ok(held),
            Some(held) if held.condition == Condition::Quarantined => {
                Err(ReadError::Corrupt { id })
            }
            _ => Err(ReadError::NotHeld { id }),
        }
    }

    /// Sets a shard apart whose bytes are wrong.
    fn quarantine<T>(&mut self, id: ShardId) -> Result<T, ReadError> {
        self.set(id, Some(Condition::Quarantined));
        self.counters.corrupt += 1;
        Err(ReadError::Corrupt { id })
    }
}

impl MemoryStore {
    /// An empty store with room for so many bytes of records. Its clock stands still: nothing leaves
    /// the trash.
    pub fn new(capacity_bytes: u64) -> Self {
        Self::with(capacity_bytes, TrashOptions::new(Arc::new(|| 0)), 0)
    }

    /// The same with these rules for its trash, and with an epoch of its own: stores that take turns
    /// in the place of one must differ in it. Each crash adds 1.
    pub fn with(capacity_bytes: u64, trash: TrashOptions, epoch: u64) -> Self {
        Self {
            state: Mutex::new(State::new(epoch)),
            crashed: Notify::new(),
            ledger: Arc::default(),
            doubts: Arc::default(),
            capacity_bytes,
            trash,
            watch: Mutex::default(),
        }
    }

    /// The state, without what was due to leave the trash.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let short = state.full.is_some() || state.used_bytes > self.capacity_bytes / 16 * 15;
        for proved_elsewhere in [false, true] {
            let Some(until) = self.trash.due_until(proved_elsewhere, short) else { continue };
            let first = Due::first(proved_elsewhere);
            while let Some(due) = state.due.range(first..).next().copied()
                && due.proved_elsewhere == proved_elsewhere
                && due.since <= until
            {
                state.set(due.id, None);
            }
        }
        state
    }

    /// The shards that are here as they should be: what a reader of this disk can have, by the view
    /// of who knows more than the store.
    pub fn sound(&self) -> Vec<ShardId> {
        let state = self.state();
        let sound = state.shards.iter().filter(|(_, held)| held.is_sound());
        sound.map(|(&id, _)| id).collect()
    }

    /// The same of one chunk.
    pub fn sound_of(&self, chunk: ChunkId) -> Vec<ShardIndex> {
        let state = self.state();
        let first = ShardId { chunk, index: ShardIndex(0) };
        let of_chunk = state.shards.range(first..).take_while(|(id, _)| id.chunk == chunk);
        of_chunk.filter(|(_, held)| held.is_sound()).map(|(id, _)| id.index).collect()
    }

    /// The shards that may be read, as the store has it.
    pub fn live(&self) -> Vec<(ShardId, Geometry)> {
        let state = self.state();
        let live = state.shards.iter().filter(|(_, held)| held.is_live());
        live.map(|(&id, held)| (id, held.geometry)).collect()
    }

    /// The shards that are damaged, which nobody has found out: a part of each may be proved.
    pub fn damaged_unnoticed(&self) -> Vec<ShardId> {
        let state = self.state();
        let of = |held: &&Held| held.is_live() && (held.damaged || held.bad_sectors);
        let damaged = state.shards.iter().filter(|(_, held)| of(held));
        damaged.map(|(&id, _)| id).collect()
    }

    /// Whether a shard is here that was damaged, be it found out or not.
    pub fn is_damaged(&self, id: ShardId) -> bool {
        let state = self.state();
        let held = state.shards.get(&id);
        held.is_some_and(|held| {
            held.damaged || held.bad_sectors || held.condition == Condition::Quarantined
        })
    }

    /// Bytes of all shards that may be read, and of what lies in the trash.
    pub fn used(&self) -> (u64, u64) {
        let state = self.state();
        let bytes = |is: fn(&Held) -> bool| {
            let some = state.shards.values().filter(|held| is(held));
            some.map(|held| u64::from(held.shard_bytes)).sum()
        };
        (bytes(Held::is_live), bytes(|held| held.trashed().is_some()))
    }

    /// Reads a shard; one that cannot be read for long while others can is set apart.
    async fn look<T>(
        &self,
        id: ShardId,
        begun_in: u64,
        read: impl FnOnce(&mut State) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let look = self.doubts.look(id);
        self.delay(|faults| faults.read_delay).await;
        let result = self.step(Step::Read, begun_in, || {
            let mut state = self.state();
            let on_bad_sectors = state.live(id).map(|held| held.bad_sectors);
            let told = state.faults.fail_reads_of == Some(id);
            let fails = on_bad_sectors.is_ok_and(|bad| bad || told);
            if fails { Err(ReadError::Io { source: eio() }) } else { read(&mut state) }
        });
        let lost = look.end(match &result {
            Ok(_) => Ended::Read,
            Err(ReadError::Io { .. }) => Ended::Failed,
            Err(_) => Ended::Neither,
        });
        if lost {
            let _ = self.state().quarantine::<()>(id);
            self.doubts.set_apart(id, true);
        }
        result
    }

    /// How often its process ended so far.
    fn crashes(&self) -> u64 {
        self.state().crashes
    }

    /// Writes a shard, or finds it held. Says whether it was written.
    fn write(&self, shard: &VerifiedShard, begun_in: u64) -> Result<bool, PutError> {
        let (id, record_bytes) = (shard.id(), record_bytes(shard));
        let mut state = self.state();
        if state.closed || state.crashes != begun_in {
            return Err(PutError::Closed);
        }
        let held = state.shards.get(&id).map(|held| held.condition);
        if matches!(held, Some(Condition::Live { .. })) {
            state.counters.duplicates += 1;
            return Ok(false);
        }
        let reason = if state.used_bytes + record_bytes > self.capacity_bytes {
            Some(FullReason::Capacity)
        } else {
            state.faults.no_space.then_some(FullReason::NoSpace)
        };
        state.full = reason.map(|reason| (reason, record_bytes));
        if let Some(reason) = reason {
            return Err(PutError::Full {
                reason,
                used_bytes: state.used_bytes,
                capacity_bytes: self.capacity_bytes,
                free_bytes: self.capacity_bytes.saturating_sub(state.used_bytes),
            });
        }
        if state.faults.fail_writes {
            state.counters.io_errors += 1;
            return Err(PutError::Io { id, source: eio() });
        }
        if matches!(held, Some(Condition::Trashed { .. })) {
            // What lies in the trash stays there until the new record is synced.
            return Ok(true);
        }
        let mut held = Held {
            geometry: shard.geometry(),
            descriptor: shard.descriptor().clone(),
            groups: shard.groups().clone(),
            data: shard.data().clone(),
            record_bytes,
            // A shard is shorter than 4 GiB: its descriptor says so.
            shard_bytes: u32::try_from(shard.data().len()).unwrap_or(u32::MAX),
            condition: Condition::Written,
            damaged: false,
            bad_sectors: false,
        };
        if let Some(onto) = state.wrong_place(id, 0) {
            state.misdirect(id, &mut held, onto);
        }
        state.used_bytes += record_bytes;
        if let Some(old) = state.shards.insert(id, held) {
            state.used_bytes -= old.record_bytes;
        }
        state.note_unsynced(id, None);
        Ok(true)
    }

    /// Makes a written shard durable and visible.
    fn sync(&self, shard: &VerifiedShard, begun_in: u64) -> Result<Stored, PutError> {
        let id = shard.id();
        let mut state = self.state();
        if state.crashes != begun_in {
            return Err(PutError::Closed);
        }
        state.unsynced.retain(|(other, _)| *other != id);
        state.counters.commits += 1;
        let condition = state.shards.get(&id).map(|held| held.condition);
        if state.faults.fail_syncs {
            state.counters.io_errors += 1;
            // Another put of the same shard may have been acknowledged meanwhile.
            if condition == Some(Condition::Written) {
                state.set(id, None);
            }
            return Err(PutError::Io { id, source: eio() });
        }
        match condition {
            Some(Condition::Written | Condition::Trashed { .. }) => {}
            Some(Condition::Live { .. }) => {
                state.counters.duplicates += 1;
                return Ok(Stored::AlreadyHeld);
            }
            // Its time in the trash was over meanwhile, or another sync failed: as if not written.
            Some(Condition::Quarantined) | None => {
                return Err(PutError::Io { id, source: eio() });
            }
        }
        if let Some(held) = state.shards.get_mut(&id)
            && matches!(held.condition, Condition::Trashed { .. })
        {
            held.descriptor = shard.descriptor().clone();
            held.groups = shard.groups().clone();
            held.data = shard.data().clone();
            (held.damaged, held.bad_sectors) = (false, false);
        }
        let lied = state.faults.lie_about_syncs;
        state.set(id, Some(Condition::Live { lied }));
        state.counters.puts += 1;
        Ok(Stored::New)
    }

    /// Makes a removal durable.
    fn sync_removal(
        &self,
        id: ShardId,
        reason: RemovalReason,
        begun_in: u64,
    ) -> Result<Removed, RemoveError> {
        let mut state = self.state();
        if state.closed || state.crashes != begun_in {
            return Err(RemoveError::Closed);
        }
        state.unsynced.retain(|(other, _)| *other != id);
        let condition = match state.shards.get(&id).map(|held| held.condition) {
            // There are no sound bytes to be kept.
            Some(Condition::Quarantined) => None,
            Some(Condition::Live { .. }) => Some(Condition::Trashed {
                removal: Removal { since: self.trash.now(), reason },
                lied: state.faults.lie_about_syncs,
            }),
            Some(Condition::Written | Condition::Trashed { .. }) | None => {
                return Ok(Removed::NotHeld);
            }
        };
        if state.faults.fail_writes || state.faults.fail_syncs {
            state.counters.io_errors += 1;
            return Err(RemoveError::Io { id, source: eio() });
        }
        state.counters.commits += 1;
        state.set(id, condition);
        Ok(Removed::Removed)
    }

    /// Shows the readable shards from `from` on, in order.
    fn readable<T>(
        &self,
        from: Bound<ShardId>,
        collect: impl FnOnce(&mut dyn Iterator<Item = (ShardId, &Held)>) -> T,
    ) -> Result<T, ReadError> {
        let mut state = self.state();
        state.readable()?;
        let shards = state.shards.range((from, Bound::Unbounded));
        Ok(collect(&mut shards.filter(|(_, held)| held.is_live()).map(|(&id, held)| (id, held))))
    }
}

#[async_trait]
impl ShardStore for MemoryStore {
    async fn put(&self, shard: VerifiedShard) -> Result<Stored, PutError> {
        let begun_in = self.crashes();
        self.delay(|faults| faults.write_delay).await;
        if !self.step(Step::Write, begun_in, || self.write(&shard, begun_in))? {
            return Ok(Stored::AlreadyHeld);
        }
        self.delay(|faults| faults.sync_delay).await;
        self.step(Step::Sync, begun_in, || self.sync(&shard, begun_in))
    }

    async fn read(&self, id: ShardId, want: Want) -> Result<ShardRead, ReadError> {
        let begun_in = self.crashes();
        self.look(id, begun_in, |state| {
            state.readable_since(begun_in)?;
            state.live(id)?;
            let place = state.wrong_place(id, 1).unwrap_or(id);
            state.effects.misdirected_reads += u64::from(place != id);
            let held = state.live(place)?;
            let shard_bytes = held.data.len();
            let descriptor = held.descriptor.clone();
            let hash = shard::expected_hash(id, &descriptor, shard_bytes);
            if hash.is_none() {
                // The record of another shard.
                return state.quarantine(id);
            }
            let covered = shard::covered(id, &want, shard_bytes)?;
            let data = held.data.slice(covered.clone());
            let prove = |hash| shard::prove(&hash, shard_bytes, &covered, &held.groups, &data);
            let Some(proof) = hash.and_then(prove) else { return state.quarantine(id) };
            state.counters.reads += 1;
            Ok(ShardRead {
                descriptor,
                shard_bytes: shard_bytes as u64,
                covered: covered.start as u64..covered.end as u64,
                proof,
                data,
            })
        })
        .await
    }

    async fn check(&self, id: ShardId) -> Result<u64, ReadError> {
        let begun_in = self.crashes();
        self.look(id, begun_in, |state| {
            state.readable_since(begun_in)?;
            let held = state.live(id)?;
            let record_bytes = held.record_bytes;
            match shard::sound(id, &held.descriptor, &held.groups, &held.data) {
                Some(_) => Ok(record_bytes),
                None => state.quarantine(id),
            }
        })
        .await
    }

    async fn remove(&self, id: ShardId, reason: RemovalReason) -> Result<Removed, RemoveError> {
        let begun_in = self.crashes();
        self.delay(|faults| faults.write_delay).await;
        self.step(Step::Remove, begun_in, || {
            let mut state = self.state();
            let is_live = state.shards.get(&id).is_some_and(Held::is_live);
            if is_live && state.crashes == begun_in && !state.faults.fail_writes {
                state.note_unsynced(id, Some(reason));
            }
        });
        self.delay(|faults| faults.sync_delay).await;
        self.step(Step::Sync, begun_in, || self.sync_removal(id, reason, begun_in))
    }

    async fn held(&self, chunk: ChunkId) -> Result<Vec<ShardIndex>, ReadError> {
        let first = ShardId { chunk, index: ShardIndex(0) };
        self.readable(Bound::Included(first), |shards| {
            shards.take_while(|(id, _)| id.chunk == chunk).map(|(id, _)| id.index).collect()
        })
    }

    async fn list(&self, after: Option<ShardId>, limit: usize) -> Result<Vec<ShardId>, ReadError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.readable(from, |shards| shards.take(limit).map(|(id, _)| id).collect())
    }

    async fn arc_changes(&self, since: Option<StoreRevision>) -> Result<ArcChanges, ReadError> {
        let state = self.state();
        if state.closed { Err(ReadError::Closed) } else { Ok(state.arcs.changes(since)) }
    }

    async fn list_arc(
        &self,
        arc: u16,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Vec<HeldShard>, ReadError> {
        self.readable(arc_from(arc, after), |shards| {
            let shards = shards.take_while(|(id, _)| arc_of(*id) == arc).take(limit);
            let listed = shards.map(|(id, held)| {
                let Held { geometry, shard_bytes, .. } = *held;
                HeldShard { id, geometry, shard_bytes }
            });
            listed.collect()
        })
    }

    fn doubts(&self) -> &Arc<Doubts> {
        &self.doubts
    }

    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::clone(&self.ledger) as Arc<dyn Ledger>
    }

    async fn stats(&self) -> StoreStats {
        let state = self.state();
        let mut stats = StoreStats {
            shards: 0,
            shard_bytes: 0,
            quarantined: 0,
            trashed: 0,
            trashed_bytes: 0,
            dead_bytes: 0,
            used_bytes: state.used_bytes,
            capacity_bytes: self.capacity_bytes,
            free_bytes: self.capacity_bytes.saturating_sub(state.used_bytes),
            writes: match state.full {
                Some((FullReason::NoSpace, _)) if state.faults.no_space => {
                    Writes::Full(FullReason::NoSpace)
                }
                // As the store on a disk: who is full is given nothing, so no write would show that
                // there is room again.
                Some((FullReason::Capacity, wanted))
                    if state.used_bytes + wanted > self.capacity_bytes =>
                {
                    Writes::Full(FullReason::Capacity)
                }
                _ => Writes::Accepted,
            },
            puts: state.counters.puts,
            duplicates: state.counters.duplicates,
            commits: state.counters.commits,
            reads: state.counters.reads,
            io_errors: state.counters.io_errors,
            corrupt: state.counters.corrupt,
            compactions: 0,
        };
        for held in state.shards.values() {
            let bytes = held.data.len() as u64;
            match held.condition {
                Condition::Written => {}
                Condition::Live { .. } => {
                    stats.shards += 1;
                    stats.shard_bytes += bytes;
                }
                Condition::Quarantined => stats.quarantined += 1,
                Condition::Trashed { .. } => {
                    stats.trashed += 1;
                    stats.trashed_bytes += bytes;
                }
            }
        }
        stats
    }

    async fn close(&self) {
        self.state().closed = true;
    }
}
