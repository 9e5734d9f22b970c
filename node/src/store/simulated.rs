//! The store on a disk, on a simulated one: for the simulator, and for tests that cut power anywhere.
//!
//! Owns a disk in memory, the process that has it open, and what one who knows more than the store can say
//! of what is on it. The store is the product's: segments, index, recovery, upkeep. The one idea: what a row
//! says of a shard is true when the bytes it points to are synced and are what was written there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    ops::{Bound, Range},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, ShardId, ShardIndex},
    random::Random,
};

mod medium;
mod pace;
mod rows;

use self::{
    medium::{Medium, Mount},
    pace::DiskPace,
    rows::MountedRows,
};
use super::{
    ArcChanges, DiskOptions, DiskStore, Doubts, HeldShard, Ledger, PutError, ReadError,
    RemovalReason, RemoveError, Removed, ShardRead, ShardStore, StoreId, StoreRevision, StoreStats,
    Stored, TrashOptions, VerifiedShard, Want, Writes,
    arcs::arc_of,
    books::Books,
    disk::Parts,
    driver::Driver,
    file::{Faults as Planned, Segments},
    index::{Entry, Index, State},
    memory::{Effects, Faults, Unsynced, Watch},
    reader::arc_from,
    recover::{self, RecoverError},
    segment::prefix_bytes,
};

/// How a simulated store is made.
#[derive(Debug, Clone)]
pub struct SimulatedOptions {
    /// Bytes of segment files that the store may use.
    pub capacity_bytes: u64,
    /// Bytes of one segment file, at most.
    pub segment_bytes_max: u64,
    /// What the upkeep may read and write in a second; with 0 there is none but when it is asked for.
    pub compaction_bytes_per_second: u64,
    /// The rules for the trash, and the time.
    pub trash: TrashOptions,
    /// Stores that take turns in the place of one must differ in it. Each opening adds 1.
    pub epoch: u64,
    /// One power cut in so many takes the index; 0: none.
    pub index_lost_one_in: u64,
    /// What is torn how, and what goes where.
    pub seed: [u8; 32],
}

/// A machine's disk, and the store of the process that has it open.
pub struct SimulatedStore {
    medium: Arc<Medium>,
    options: SimulatedOptions,
    doubts: Arc<Doubts>,
    running: Mutex<Running>,
}

/// Who has the disk open, or what will be found on it.
#[derive(Default)]
struct Running {
    store: Option<Arc<DiskStore>>,
    /// What an opening would find, while nobody has it open.
    left: BTreeMap<ShardId, Entry>,
    /// Shards that were on the disk, and which the opening did not find.
    hidden: BTreeSet<ShardId>,
    opened: u64,
}

impl fmt::Debug for SimulatedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedStore").finish_non_exhaustive()
    }
}

/// Where a record lies.
fn range_of(row: &Entry) -> (u32, Range<u64>) {
    (row.place.segment, row.place.offset..row.place.offset + row.record_bytes())
}

/// Whose store it is: nobody looks.
const STORE: StoreId = StoreId([7; 32]);

/// Segments that lie beside what the store may use: a compaction takes some room.
const SPARE_SEGMENTS: u64 = 4;

impl SimulatedStore {
    /// An empty disk, which nobody has open.
    pub fn new(options: SimulatedOptions) -> Self {
        let spare = SPARE_SEGMENTS * options.segment_bytes_max;
        let random = Random::new(&options.seed, "simulated disk");
        let medium = Medium::new(options.capacity_bytes.saturating_add(spare), random);
        Self { medium, options, doubts: Arc::default(), running: Mutex::default() }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> Option<Arc<DiskStore>> {
        self.running().store.clone()
    }

    fn disk_options(&self) -> DiskOptions {
        DiskOptions {
            reserve_bytes: 0,
            trash: self.options.trash.clone(),
            compaction_bytes_per_second: self.options.compaction_bytes_per_second,
            segment_bytes_max: self.options.segment_bytes_max,
            ..DiskOptions::new(self.options.capacity_bytes)
        }
    }

    /// A process opens the store, and has it until it [ends](Self::end). On a runtime with one thread.
    ///
    /// # Errors
    /// When the disk fails, or the process dies meanwhile.
    pub fn open(&self) -> io::Result<()> {
        let opened = {
            let mut running = self.running();
            running.opened += 1;
            running.opened
        };
        let life = self.medium.life();
        let device = Arc::new(Mount { medium: Arc::clone(&self.medium), life });
        let rows = Arc::new(MountedRows { medium: Arc::clone(&self.medium), life });
        let segments = Segments { device, store: STORE, faults: Planned::none() };
        let epoch = self.options.epoch.wrapping_add(opened);
        let books = Books::open(Arc::clone(&rows) as Arc<dyn Index>, epoch)?;
        let recovered = recover::recover(&segments, books, self.options.segment_bytes_max)
            .map_err(RecoverError::into_io)?;
        let (doubts, ledger) = (Arc::clone(&self.doubts), rows as Arc<dyn Ledger>);
        let parts = Parts { segments, recovered, ledger, doubts, marker: None };
        let pace = Arc::new(DiskPace { medium: Arc::clone(&self.medium), life });
        let store = DiskStore::begin(parts, &self.disk_options(), |writer, requests_max| {
            Ok(Driver::in_place(writer, requests_max, pace))
        })?;
        let mut running = self.running();
        // Who died at its last step has opened nothing.
        let state = self.medium.of_life(life)?;
        let is_there = |id: &ShardId| state.log.rows.shards.get(id).is_some_and(Entry::is_live);
        let left = std::mem::take(&mut running.left);
        let live = left.into_iter().filter(|(_, row)| row.is_live()).map(|(id, _)| id);
        let hidden = live.filter(|id| !is_there(id)).collect();
        drop(state);
        running.hidden = hidden;
        running.store = Some(Arc::new(store));
        Ok(())
    }

    /// The process ends, with a power cut or because it was killed. What becomes of each write that was not
    /// synced, `fate` says. Gives the shards that are there now and were not known to be.
    pub fn end(&self, power: bool, mut fate: impl FnMut() -> Unsynced) -> Vec<(ShardId, u32)> {
        let store = self.running().store.take();
        let before = self.known();
        self.medium.end(power, &mut fate);
        drop(store);
        if power && self.options.index_lost_one_in > 0 {
            let mut state = self.medium.state();
            if state.random.next_u64().is_multiple_of(self.options.index_lost_one_in) {
                state.log.is_lost();
                state.effects.indexes_lost += 1;
            }
        }
        let left = self.found();
        let is_new = |(id, row): &(&ShardId, &Entry)| row.is_live() && !before.contains(*id);
        let new = left.iter().filter(is_new).map(|(&id, row)| (id, row.shard_bytes)).collect();
        let mut running = self.running();
        running.left = left;
        running.hidden.clear();
        new
    }

    /// The shards that may be read, by the rows.
    fn known(&self) -> BTreeSet<ShardId> {
        let state = self.medium.state();
        let live = state.log.rows.shards.iter().filter(|(_, row)| row.is_live());
        live.map(|(&id, _)| id).collect()
    }

    /// What an opening would find now, on a disk that can be read.
    fn found(&self) -> BTreeMap<ShardId, Entry> {
        let medium = self.medium.copy();
        let life = medium.life();
        let device = Arc::new(Mount { medium: Arc::clone(&medium), life });
        let index = Arc::new(MountedRows { medium: Arc::clone(&medium), life });
        let segments = Segments { device, store: STORE, faults: Planned::none() };
        let found = Books::open(index, 0).map_err(|error| error.to_string()).and_then(|books| {
            let found = recover::recover(&segments, books, self.options.segment_bytes_max);
            found.map_err(|error| error.to_string())
        });
        if let Err(error) = found {
            tracing::error!(%error, "a copy of the disk could not be opened");
        }
        std::mem::take(&mut medium.state().log.rows.shards)
    }

    /// Something that follows from the rows: those of the process, or those that the next one will find.
    fn of_rows<T>(&self, of: impl FnOnce(&BTreeMap<ShardId, Entry>) -> T) -> T {
        let running = self.running();
        if running.store.is_none() {
            return of(&running.left);
        }
        drop(running);
        // The disk is asked about bytes while the rows are looked at.
        let rows = self.medium.state().log.rows.shards.clone();
        of(&rows)
    }

    fn is_sound(&self, row: &Entry) -> bool {
        let (segment, range) = range_of(row);
        row.is_live() && self.medium.is_sound(segment, &range)
    }

    /// The shards that are here as they should be: what a reader of this disk can have, by the view
    /// of who knows more than the store.
    pub fn sound(&self) -> Vec<ShardId> {
        self.of_rows(|rows| {
            let sound = rows.iter().filter(|(_, row)| self.is_sound(row));
            sound.map(|(&id, _)| id).collect()
        })
    }

    /// The same of one chunk.
    pub fn sound_of(&self, chunk: ChunkId) -> Vec<ShardIndex> {
        self.rows_of(chunk)
            .into_iter()
            .filter(|(_, row)| self.is_sound(row))
            .map(|it| it.0)
            .collect()
    }

    /// The rows of a chunk.
    fn rows_of(&self, chunk: ChunkId) -> Vec<(ShardIndex, Entry)> {
        let first = ShardId { chunk, index: ShardIndex(0) };
        let of = |rows: &BTreeMap<ShardId, Entry>| {
            let rows = rows.range(first..).take_while(|(id, _)| id.chunk == chunk);
            rows.map(|(id, &row)| (id.index, row)).collect()
        };
        let running = self.running();
        if running.store.is_some() {
            of(&self.medium.state().log.rows.shards)
        } else {
            of(&running.left)
        }
    }

    fn row(&self, id: ShardId) -> Option<Entry> {
        let running = self.running();
        if running.store.is_some() {
            self.medium.state().log.rows.shards.get(&id).copied()
        } else {
            running.left.get(&id).copied()
        }
    }

    /// The shards that may be read, as the store has it.
    pub fn live(&self) -> Vec<(ShardId, Geometry)> {
        self.of_rows(|rows| {
            let live = rows.iter().filter(|(_, row)| row.is_live());
            live.filter_map(|(&id, row)| Some((id, row.geometry?))).collect()
        })
    }

    /// The shards that are damaged, which nobody has found out: a part of each may be proved.
    pub fn damaged_unnoticed(&self) -> Vec<ShardId> {
        self.of_rows(|rows| {
            let damaged = rows.iter().filter(|(_, row)| {
                let (segment, range) = range_of(row);
                row.is_live() && self.medium.is_damaged(segment, &range)
            });
            damaged.map(|(&id, _)| id).collect()
        })
    }

    /// Whether a shard is here that was damaged, be it found out or not; also one whose record the store
    /// does not know, since the disk did not give it.
    pub fn is_damaged(&self, id: ShardId) -> bool {
        match self.row(id) {
            Some(row) if row.is_live() || row.trashed().is_some() => {
                let (segment, range) = range_of(&row);
                self.medium.is_damaged(segment, &range)
            }
            Some(row) if row.state == State::Quarantined => true,
            _ => self.running().hidden.contains(&id),
        }
    }

    /// Bytes of all shards that may be read, and of what lies in the trash.
    pub fn used(&self) -> (u64, u64) {
        self.of_rows(|rows| {
            let bytes = |is: fn(&Entry) -> bool| {
                let some = rows.values().filter(|row| is(row));
                some.map(|row| u64::from(row.shard_bytes)).sum()
            };
            (bytes(Entry::is_live), bytes(|row| row.trashed().is_some()))
        })
    }

    /// Changes what goes wrong from now on. Failures of single shards are told by [`Self::break_sectors`].
    pub fn set_faults(&self, faults: Faults) {
        self.medium.state().faults = faults;
    }

    /// What goes wrong now.
    pub fn faults(&self) -> Faults {
        self.medium.state().faults.clone()
    }

    /// How often what goes wrong had an effect so far.
    pub fn effects(&self) -> Effects {
        self.medium.state().effects
    }

    /// Tells of each operation on the disk from now on, or to nobody.
    pub fn watch(&self, watch: Option<Arc<dyn Watch>>) {
        self.medium.watch(watch);
    }

    /// Whether a process has it open.
    pub fn is_open(&self) -> bool {
        self.store().is_some()
    }

    /// Whether the store takes no more writes until it is opened again.
    pub fn is_refusing(&self) -> bool {
        self.store().is_some_and(|store| store.writes() == Writes::Refused)
    }

    /// Flips bits of one byte of a stored shard. Says whether it is held.
    pub fn rot(&self, id: ShardId, byte: usize, mask: u8) -> bool {
        let Some(row) = self.row(id) else { return false };
        let at = byte % (row.shard_bytes as usize).max(1);
        let data_at = row.place.offset + prefix_bytes(row.descriptor_bytes, row.shard_bytes);
        self.medium.flip(row.place.segment, data_at + at as u64, mask)
    }

    /// A stored shard lies on bad sectors from now on: reading it fails with EIO until it is written anew,
    /// or all is [well](Self::get_well). Says whether it is held.
    pub fn break_sectors(&self, id: ShardId) -> bool {
        let Some(row) = self.row(id).filter(Entry::is_live) else { return false };
        let (segment, range) = range_of(&row);
        self.medium.spoil(segment, range);
        true
    }

    /// All bytes can be read again.
    pub fn get_well(&self) {
        self.medium.heal();
    }

    /// Does all upkeep that is due, but not more than so many steps.
    #[cfg(test)]
    pub(super) async fn compact_steps(&self, steps_max: usize) {
        if let Some(store) = self.store() {
            store.compact_steps(steps_max).await;
        }
    }

    /// Checks that all books agree with the rows.
    #[cfg(test)]
    pub(super) async fn audit(&self) {
        if let Some(store) = self.store() {
            store.audit().await;
        }
    }

    /// Live rows from `from` on, of a disk that nobody has open.
    fn left<T>(&self, from: Bound<ShardId>, of: impl Fn(ShardId, &Entry) -> Option<T>) -> Vec<T> {
        let running = self.running();
        let rows = running.left.range((from, Bound::Unbounded)).filter(|(_, row)| row.is_live());
        rows.map_while(|(&id, row)| of(id, row)).collect()
    }
}

#[async_trait]
impl ShardStore for SimulatedStore {
    async fn put(&self, shard: VerifiedShard) -> Result<Stored, PutError> {
        match self.store() {
            Some(store) => store.put(shard).await,
            None => Err(PutError::Closed),
        }
    }

    async fn read(&self, id: ShardId, want: Want) -> Result<ShardRead, ReadError> {
        match self.store() {
            Some(store) => store.read(id, want).await,
            None => Err(ReadError::Closed),
        }
    }

    async fn check(&self, id: ShardId) -> Result<u64, ReadError> {
        match self.store() {
            Some(store) => store.check(id).await,
            None => Err(ReadError::Closed),
        }
    }

    async fn remove(&self, id: ShardId, reason: RemovalReason) -> Result<Removed, RemoveError> {
        match self.store() {
            Some(store) => store.remove(id, reason).await,
            None => Err(RemoveError::Closed),
        }
    }

    async fn held(&self, chunk: ChunkId) -> Result<Vec<ShardIndex>, ReadError> {
        match self.store() {
            Some(store) => store.held(chunk).await,
            None => {
                let first = Bound::Included(ShardId { chunk, index: ShardIndex(0) });
                Ok(self.left(first, |id, _| (id.chunk == chunk).then_some(id.index)))
            }
        }
    }

    async fn list(&self, after: Option<ShardId>, limit: usize) -> Result<Vec<ShardId>, ReadError> {
        match self.store() {
            Some(store) => store.list(after, limit).await,
            None => {
                let from = after.map_or(Bound::Unbounded, Bound::Excluded);
                let mut listed = self.left(from, |id, _| Some(id));
                listed.truncate(limit);
                Ok(listed)
            }
        }
    }

    async fn arc_changes(&self, since: Option<StoreRevision>) -> Result<ArcChanges, ReadError> {
        match self.store() {
            Some(store) => store.arc_changes(since).await,
            None => Err(ReadError::Closed),
        }
    }

    async fn list_arc(
        &self,
        arc: u16,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Vec<HeldShard>, ReadError> {
        match self.store() {
            Some(store) => store.list_arc(arc, after, limit).await,
            None => {
                let mut listed = self.left(arc_from(arc, after), |id, row| {
                    let shard_bytes = row.shard_bytes;
                    let held = row.geometry.map(|geometry| HeldShard { id, geometry, shard_bytes });
                    held.filter(|_| arc_of(id) == arc)
                });
                listed.truncate(limit);
                Ok(listed)
            }
        }
    }

    fn doubts(&self) -> &Arc<Doubts> {
        &self.doubts
    }

    fn ledger(&self) -> Arc<dyn Ledger> {
        match self.store() {
            Some(store) => store.ledger(),
            // Of a process that is dead already: all of it fails.
            None => {
                let (medium, life) = (Arc::clone(&self.medium), u64::MAX);
                Arc::new(MountedRows { medium, life })
            }
        }
    }

    async fn stats(&self) -> StoreStats {
        let used_bytes = self.medium.used_bytes();
        match self.store() {
            Some(store) => StoreStats { used_bytes, ..store.stats().await },
            None => {
                let capacity_bytes = self.options.capacity_bytes;
                let health = super::health::Health::new(Default::default(), used_bytes);
                health.stats(capacity_bytes, capacity_bytes.saturating_sub(used_bytes))
            }
        }
    }

    async fn close(&self) {
        if let Some(store) = self.store() {
            store.close().await;
        }
    }
}
