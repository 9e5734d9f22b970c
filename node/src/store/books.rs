//! The books: what follows from the rows of the index, kept with each change of a row.
//!
//! Owns what a record makes of a row, and tally, digests of arcs, use of segments and due trash,
//! which always are those of the rows. Reads and writes no segment.
//!
//! Changes are collected, seen at once by [`Books::get`], and written in one atomic batch by
//! [`Books::commit`]; when that fails, none was made.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    sync::{Arc, Mutex, PoisonError},
};

use copse_core::{geometry::Geometry, ids::ShardId};

use super::{
    StoreRevision,
    arcs::{Arcs, arc_of},
    index::{Changes, Due, Entry, Index, Mark, Meta, SegmentUse, State, Tally},
    segment::{Kind, Position, RecordHeader},
};

/// A record of a segment, as far as rows are concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entered {
    pub(super) header: RecordHeader,
    pub(super) place: Position,
    /// Of a sound record with a shard.
    pub(super) geometry: Option<Geometry>,
    /// Whether the content is what the header says.
    pub(super) sound: bool,
}

/// The row of a shard behind a record of it. The one rule for writing and for building the index
/// again, so that both come to the same.
pub(super) fn after_record(old: Option<Entry>, record: &Entered) -> Option<Entry> {
    let &Entered { header, place, geometry, sound } = record;
    let copies = old.map_or(0, |old| old.copies);
    let here = |state| Entry {
        state,
        place,
        descriptor_bytes: header.descriptor_bytes,
        shard_bytes: header.shard_bytes,
        geometry,
        copies: copies + 1,
    };
    match (header.kind, sound) {
        (Kind::Shard, true) => Some(here(State::Live)),
        // A damaged copy never replaces a sound one.
        (Kind::Shard, false) => Some(match old {
            Some(old) if old.is_live() => Entry { copies: copies + 1, ..old },
            _ => here(State::Quarantined),
        }),
        (Kind::Trash(removal), true) => Some(here(State::Trashed(Mark { removal, place }))),
        // Its header is sound: the shard was removed.
        (Kind::Trash(removal), false) => {
            let mark = Mark { removal, place };
            let removed = old.map(|old| after_removal(old, mark));
            let removed = removed.unwrap_or_else(|| here(State::Gone(mark)));
            Some(Entry { copies: copies + 1, ..removed })
        }
        (Kind::Removal(removal), _) => old.map(|old| after_removal(old, Mark { removal, place })),
    }
}

fn after_removal(old: Entry, mark: Mark) -> Entry {
    let state = match old.state {
        State::Live | State::Trashed(_) => State::Trashed(mark),
        // There are no sound bytes to be kept.
        State::Quarantined | State::Gone(_) => State::Gone(mark),
    };
    Entry { state, ..old }
}

/// The row of a removed shard of which there may be one copy more than was seen. The removal must
/// outlive it: else it would be found some day, and nothing that says that it was removed.
fn with_hidden_copy(row: Option<Entry>, mark: Mark) -> Entry {
    let unseen = Entry {
        state: State::Gone(mark),
        // No segment has this number.
        place: Position { segment: 0, offset: 0 },
        descriptor_bytes: 0,
        shard_bytes: 0,
        geometry: None,
        copies: 0,
    };
    let row = row.unwrap_or(unseen);
    Entry { copies: row.copies + 1, ..row }
}

/// The row of a shard of which one copy less is in the segments.
fn after_forgetting(old: Entry) -> Option<Entry> {
    let copies = old.copies.saturating_sub(1);
    match old.state {
        // Its own copy lies elsewhere: what is needed was moved before. Of copies that could not be
        // read when the store was opened not all are counted.
        State::Live | State::Trashed(_) => Some(Entry { copies: copies.max(1), ..old }),
        State::Gone(_) | State::Quarantined => (copies > 0).then_some(Entry { copies, ..old }),
    }
}

/// The rows, and what follows from them.
pub(super) struct Books {
    index: Arc<dyn Index>,
    is_new: bool,
    meta: Meta,
    arcs: Arc<Mutex<Arcs>>,
    segments: BTreeMap<u32, SegmentUse>,
    /// Those of them that may hide records.
    hiding: BTreeSet<u32>,
    pending: Pending,
}

#[derive(Default)]
struct Pending {
    /// The row as it is in the index, and as it is to be.
    rows: BTreeMap<ShardId, (Option<Entry>, Option<Entry>)>,
    place: Option<Position>,
    segments: BTreeMap<u32, SegmentChange>,
}

/// What is to become of the books on a segment, beside its living bytes.
#[derive(Clone, Copy)]
enum SegmentChange {
    Forgotten(u32),
    Doomed,
    Dropped,
    Hides(bool),
}

impl Books {
    /// Opens the books of an index. `fresh_epoch` is taken when the index is new or was not closed.
    pub(super) fn open(index: Arc<dyn Index>, fresh_epoch: u64) -> io::Result<Self> {
        let found = index.meta()?;
        let mut meta = found.unwrap_or(Meta {
            place: Position { segment: 0, offset: 0 },
            tally: Tally::default(),
            epoch: fresh_epoch,
            revision: 0,
            closed: false,
        });
        if !mem::replace(&mut meta.closed, false) {
            // Of what was given out since the last sync of the index, some may be lost.
            meta.epoch = fresh_epoch;
        }
        let now = StoreRevision { epoch: meta.epoch, revision: meta.revision };
        let arcs = Arc::new(Mutex::new(Arcs::new(now, index.arcs()?)));
        let segments = index.segments()?;
        let hiding = segments.iter().filter(|(_, row)| row.hides).map(|(&number, _)| number);
        let (is_new, hiding) = (found.is_none(), hiding.collect());
        Ok(Self { index, is_new, meta, arcs, segments, hiding, pending: Pending::default() })
    }

    pub(super) fn arcs(&self) -> &Arc<Mutex<Arcs>> {
        &self.arcs
    }

    pub(super) fn index(&self) -> &Arc<dyn Index> {
        &self.index
    }

    /// Whether there was nothing in the index when it was opened.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// All records before this place are in the rows.
    pub(super) fn place(&self) -> Position {
        self.pending.place.unwrap_or(self.meta.place)
    }

    pub(super) fn tally(&self) -> Tally {
        self.meta.tally
    }

    pub(super) fn segments(&self) -> &BTreeMap<u32, SegmentUse> {
        &self.segments
    }

    pub(super) fn segment(&self, number: u32) -> SegmentUse {
        self.segments.get(&number).copied().unwrap_or_default()
    }

    /// How many rows wait for the commit.
    pub(super) fn pending_rows(&self) -> usize {
        self.pending.rows.len()
    }

    /// The row of a shard, with what waits for the commit.
    pub(super) fn get(&self, id: ShardId) -> io::Result<Option<Entry>> {
        match self.pending.rows.get(&id) {
            Some((_, new)) => Ok(*new),
            None => self.index.get(id),
        }
    }

    /// Changes a row.
    pub(super) fn set(&mut self, id: ShardId, new: Option<Entry>) -> io::Result<()> {
        match self.pending.rows.get_mut(&id) {
            Some((_, pending)) => *pending = new,
            None => {
                let old = self.index.get(id)?;
                self.pending.rows.insert(id, (old, new));
            }
        }
        Ok(())
    }

    /// Enters a record that is on the disk. Gives the rows before and behind it.
    pub(super) fn enter(&mut self, record: &Entered) -> io::Result<(Option<Entry>, Option<Entry>)> {
        let id = record.header.id;
        let old = self.get(id)?;
        let mut new = after_record(old, record);
        if !self.hiding.is_empty()
            && let Some(removal) = record.header.removal()
        {
            new = Some(with_hidden_copy(new, Mark { removal, place: record.place }));
        }
        if new != old {
            self.set(id, new)?;
        }
        Ok((old, new))
    }

    /// Enters a record that was missed when its segment was read. One that was counted as damaged is
    /// not counted twice.
    pub(super) fn enter_again(&mut self, record: &Entered) -> io::Result<()> {
        let (old, new) = self.enter(record)?;
        match (old, new) {
            (Some(old), Some(new)) if old.place == record.place => {
                let copies = new.copies.saturating_sub(1);
                self.set(record.header.id, Some(Entry { copies, ..new }))
            }
            _ => Ok(()),
        }
    }

    /// Takes note that one copy of a shard's bytes goes with its segment.
    pub(super) fn forget(&mut self, id: ShardId) -> io::Result<()> {
        match self.get(id)? {
            Some(old) => self.set(id, after_forgetting(old)),
            None => Ok(()),
        }
    }

    pub(super) fn set_place(&mut self, place: Position) {
        self.pending.place = Some(place);
    }

    /// The copies of this segment before `offset` are forgotten.
    pub(super) fn set_forgotten(&mut self, number: u32, offset: u64) {
        let offset = u32::try_from(offset).unwrap_or(u32::MAX);
        self.pending.segments.insert(number, SegmentChange::Forgotten(offset));
    }

    /// Segments that may hold records that the rows do not know.
    pub(super) fn hiding(&self) -> &BTreeSet<u32> {
        &self.hiding
    }

    /// This segment may hold records that the rows do not know, or does not any more.
    pub(super) fn set_hides(&mut self, number: u32, hides: bool) {
        if hides {
            self.hiding.insert(number);
        } else {
            self.hiding.remove(&number);
        }
        self.pending.segments.insert(number, SegmentChange::Hides(hides));
    }

    /// This segment's file is to be deleted before anything else is done.
    pub(super) fn doom(&mut self, number: u32) {
        self.pending.segments.insert(number, SegmentChange::Doomed);
    }

    /// This segment's file is deleted.
    pub(super) fn drop_segment(&mut self, number: u32) {
        self.pending.segments.insert(number, SegmentChange::Dropped);
    }

    /// Forgets what waits for the commit.
    pub(super) fn abandon(&mut self) {
        self.pending = Pending::default();
    }

    /// Writes what waits, and all that follows from it, in one batch.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        let pending = mem::take(&mut self.pending);
        let mut changes = Changes {
            rows: BTreeMap::new(),
            arcs: BTreeMap::new(),
            segments: BTreeMap::new(),
            due: BTreeMap::new(),
            meta: Meta { place: pending.place.unwrap_or(self.meta.place), ..self.meta },
        };
        for (id, (old, new)) in pending.rows {
            if old != new {
                self.follow(&mut changes, id, old.as_ref(), new.as_ref());
                changes.rows.insert(id, new);
            }
        }
        for (number, change) in pending.segments {
            let row = changes.segments.entry(number).or_insert(Some(self.segment(number)));
            match (change, row) {
                (SegmentChange::Dropped, row) => *row = None,
                (SegmentChange::Doomed, Some(row)) => row.doomed = true,
                (SegmentChange::Forgotten(offset), Some(row)) => row.forgotten = offset,
                (SegmentChange::Hides(hides), Some(row)) => row.hides = hides,
                (_, None) => {}
            }
        }
        if !changes.arcs.is_empty() {
            changes.meta.revision += 1;
            for row in changes.arcs.values_mut() {
                row.revision = changes.meta.revision;
            }
        }
        self.index.apply(&changes)?;
        self.install(changes);
        Ok(())
    }

    /// Adds what follows from the change of one row.
    fn follow(&self, changes: &mut Changes, id: ShardId, old: Option<&Entry>, new: Option<&Entry>) {
        let tally = &mut changes.meta.tally;
        for (entry, sign) in [(old, false), (new, true)] {
            let Some(entry) = entry else { continue };
            // What is taken out of a sum was put in before: all sums follow from the rows.
            let count = |sum: &mut u64, amount: u64| {
                *sum = if sign { *sum + amount } else { sum.saturating_sub(amount) };
            };
            match entry.state {
                State::Live => {
                    count(&mut tally.shards, 1);
                    count(&mut tally.shard_bytes, entry.shard_bytes.into());
                }
                State::Quarantined => count(&mut tally.quarantined, 1),
                State::Trashed(mark) => {
                    count(&mut tally.trashed, 1);
                    count(&mut tally.trashed_bytes, entry.shard_bytes.into());
                    changes.due.insert(Due::of(id, mark.removal), sign);
                }
                State::Gone(_) => {}
            }
            for (number, bytes) in entry.living().into_iter().flatten() {
                let row = changes.segments.entry(number).or_insert(Some(self.segment(number)));
                if let Some(row) = row {
                    count(&mut row.living_bytes, bytes);
                }
            }
        }
        let (was, is) = (old.is_some_and(Entry::is_live), new.is_some_and(Entry::is_live));
        if was != is {
            let arc = arc_of(id);
            let held = || self.arcs.lock().unwrap_or_else(PoisonError::into_inner).get(arc);
            let row = changes.arcs.entry(arc).or_insert_with(held);
            if is {
                row.add(id);
            } else {
                row.subtract(id);
            }
        }
    }

    fn install(&mut self, changes: Changes) {
        self.meta = changes.meta;
        for (number, row) in changes.segments {
            match row {
                Some(row) => self.segments.insert(number, row),
                None => {
                    self.hiding.remove(&number);
                    self.segments.remove(&number)
                }
            };
        }
        if !changes.arcs.is_empty() {
            let mut arcs = self.arcs.lock().unwrap_or_else(PoisonError::into_inner);
            arcs.apply(changes.meta.revision, &changes.arcs);
        }
    }

    /// Writes that everything given out is in the index, and makes that durable.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.meta.closed = true;
        self.commit()?;
        self.index.flush()
    }

    /// Checks that everything kept is what follows from the rows.
    #[cfg(test)]
    pub(super) fn audit(index: &dyn Index, arcs: &Arcs, tally: Tally) {
        use std::ops::Bound;

        let mut expected = Tally::default();
        let mut living = BTreeMap::<u32, u64>::new();
        let mut counted = Arcs::new(arcs.now, BTreeMap::new());
        let mut trash = 0;
        index
            .scan(Bound::Unbounded, &mut |id, entry| {
                match entry.state {
                    State::Live => {
                        expected.shards += 1;
                        expected.shard_bytes += u64::from(entry.shard_bytes);
                        counted.count(id, true);
                    }
                    State::Quarantined => expected.quarantined += 1,
                    State::Trashed(_) => {
                        expected.trashed += 1;
                        expected.trashed_bytes += u64::from(entry.shard_bytes);
                        trash += 1;
                    }
                    State::Gone(_) => assert!(entry.copies > 0, "{id}: {entry:?}"),
                }
                for (number, bytes) in entry.living().into_iter().flatten() {
                    *living.entry(number).or_default() += bytes;
                }
                true
            })
            .expect("the rows");
        assert_eq!(tally, expected);
        assert_eq!(arcs.changes(None).changed, counted.changes(None).changed);
        let due = |proved| index.due(proved, u32::MAX, usize::MAX).expect("the trash").len();
        assert_eq!(due(true) + due(false), trash);
        // A memory index keeps no rows of segments.
        let kept = index.segments().expect("the segments");
        if !kept.is_empty() {
            for (number, row) in kept {
                let expected = living.remove(&number).unwrap_or_default();
                assert_eq!(row.living_bytes, expected, "segment {number}");
            }
            assert_eq!(living, BTreeMap::new(), "rows point into segments without a row");
        }
    }
}

#[cfg(test)]
mod tests {
    use copse_core::ids::{ChunkId, ShardIndex};

    use super::{
        super::{index_memory::MemoryIndex, segment::Removal, trash::RemovalReason},
        *,
    };

    const SHARD: Kind = Kind::Shard;
    const REMOVED: Removal = Removal { since: 7, reason: RemovalReason::Ordered };

    fn id() -> ShardId {
        ShardId { chunk: ChunkId::new([5; 32]), index: ShardIndex(13) }
    }

    fn record(kind: Kind, offset: u64, sound: bool) -> Entered {
        let bytes = if matches!(kind, Kind::Removal(_)) { 0 } else { 100 };
        let header =
            RecordHeader { kind, id: id(), descriptor_bytes: bytes, shard_bytes: bytes, commit: 0 };
        Entered { header, place: at(offset), geometry: None, sound }
    }

    fn at(offset: u64) -> Position {
        Position { segment: 1, offset }
    }

    fn mark(offset: u64) -> Mark {
        Mark { removal: REMOVED, place: at(offset) }
    }

    /// State, place and copies behind these records, which lie at 1, 2, 3 and so on.
    fn behind(records: &[(Kind, bool)]) -> Option<(State, u64, u32)> {
        let row = records.iter().zip(1..).fold(None, |row, (&(kind, sound), offset)| {
            after_record(row, &record(kind, offset, sound))
        });
        row.map(|row| (row.state, row.place.offset, row.copies))
    }

    #[test]
    fn the_last_record_decides() {
        let (removal, trash) = (Kind::Removal(REMOVED), Kind::Trash(REMOVED));
        for (records, expected) in [
            (vec![(SHARD, true)], Some((State::Live, 1, 1))),
            (vec![(SHARD, true), (SHARD, true)], Some((State::Live, 2, 2))),
            (vec![(SHARD, true), (removal, true)], Some((State::Trashed(mark(2)), 1, 1))),
            (vec![(SHARD, true), (removal, true), (SHARD, true)], Some((State::Live, 3, 2))),
            (vec![(removal, true)], None),
            (vec![(trash, true)], Some((State::Trashed(mark(1)), 1, 1))),
            (vec![(SHARD, true), (trash, true)], Some((State::Trashed(mark(2)), 2, 2))),
            (vec![(trash, true), (SHARD, true)], Some((State::Live, 2, 2))),
            // A removal that was carried on.
            (
                vec![(SHARD, true), (removal, true), (removal, true)],
                Some((State::Trashed(mark(3)), 1, 1)),
            ),
            // Damage.
            (vec![(SHARD, true), (SHARD, false)], Some((State::Live, 1, 2))),
            (vec![(SHARD, false)], Some((State::Quarantined, 1, 1))),
            (vec![(SHARD, false), (SHARD, true)], Some((State::Live, 2, 2))),
            (vec![(SHARD, false), (removal, true)], Some((State::Gone(mark(2)), 1, 1))),
            (
                vec![(SHARD, true), (removal, true), (SHARD, false)],
                Some((State::Quarantined, 3, 2)),
            ),
            (vec![(SHARD, true), (trash, false)], Some((State::Trashed(mark(2)), 1, 2))),
            (vec![(trash, false)], Some((State::Gone(mark(1)), 1, 1))),
        ] {
            assert_eq!(behind(&records), expected, "{records:?}");
        }
    }

    #[test]
    fn a_commit_that_fails_or_is_abandoned_changes_nothing() {
        let mut books = Books::open(Arc::new(MemoryIndex::default()), 7).expect("new books");
        books.enter(&record(SHARD, 64, true)).expect("a row");
        assert!(books.get(id()).expect("a row").is_some(), "seen at once");
        books.abandon();
        books.commit().expect("a commit");
        assert_eq!(books.get(id()).expect("no row"), None);
        assert_eq!((books.tally(), books.segment(1)), (Tally::default(), SegmentUse::default()));
    }

    #[test]
    fn a_shard_that_is_gone_leaves_the_books_with_its_last_copy() {
        let mut books = Books::open(Arc::new(MemoryIndex::default()), 7).expect("new books");
        for (kind, offset) in [
            (SHARD, 64),
            (Kind::Removal(REMOVED), 400),
            (SHARD, 500),
            (Kind::Removal(REMOVED), 900),
        ] {
            books.enter(&record(kind, offset, true)).expect("a row");
        }
        let row = books.get(id()).expect("a row").expect("a row");
        assert_eq!((row.copies, row.needs_removal()), (2, true));
        books.set(id(), Some(Entry { state: State::Gone(mark(900)), ..row })).expect("a row");
        books.commit().expect("a commit");
        assert_eq!(books.segment(1).living_bytes, 64, "the removal");
        for left in [true, false] {
            books.forget(id()).expect("a row");
            books.commit().expect("a commit");
            assert_eq!(books.get(id()).expect("an answer").is_some(), left);
        }
        assert_eq!(books.segment(1).living_bytes, 0);
    }

    #[test]
    fn a_removal_outlives_copies_that_may_be_hidden() {
        let mut books = Books::open(Arc::new(MemoryIndex::default()), 7).expect("new books");
        let removal = Kind::Removal(REMOVED);
        books.enter(&record(removal, 64, true)).expect("no row");
        assert_eq!(books.get(id()).expect("an answer"), None, "nothing to be kept out");
        books.set_hides(2, true);
        books.enter(&record(removal, 128, true)).expect("a row");
        books.commit().expect("a commit");
        let row = books.get(id()).expect("an answer").expect("a row");
        assert_eq!((row.state, row.copies), (State::Gone(mark(128)), 1));
        assert_eq!((books.segment(1).living_bytes, books.segment(2).hides), (64, true));
        books.set_hides(2, false);
        books.commit().expect("a commit");
        assert!(books.hiding().is_empty() && !books.segment(2).hides);
    }

    #[test]
    fn the_epoch_is_kept_only_behind_a_closing() {
        let index: Arc<dyn Index> = Arc::new(MemoryIndex::default());
        let epoch = |fresh, close: bool| {
            let mut books = Books::open(Arc::clone(&index), fresh).expect("books");
            books.commit().expect("a commit");
            if close {
                books.close().expect("the end");
            }
            books.meta.epoch
        };
        assert_eq!(epoch(1, true), 1);
        assert_eq!(epoch(2, false), 1, "it was closed");
        assert_eq!(epoch(3, false), 3, "it was not");
        assert_eq!(epoch(4, true), 4);
    }
}
