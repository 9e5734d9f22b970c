//! The compaction of one segment, step by step.
//!
//! Owns the order of the steps, on which it hangs that no crash loses or brings back a shard. Never
//! holds more than one record in memory. The one idea: the books say what a segment is needed for;
//! when it is for nothing, its file goes.
//!
//! ```text
//! sealed, under half living ─▶ move ─▶ (seek) ─▶ forget ─▶ doom, flush ─▶ delete the file
//!
//! move     each header of the segment: if the row of its shard points here, the record is read,
//!          proved, appended to the active segment, synced, and the row points there. A removal
//!          that still matters is written again. What is not sound is quarantined, not copied;
//!          what was quarantined and is sound after all is copied and served again. Where the disk
//!          fails, the segment is left alone. Before it, what the books missed is entered (see
//!          `missed`).
//! seek     only if the books say that there is more than was found (a header rotted): all rows that
//!          point here are looked at.
//! forget   each header once more: the shard has one copy less. A shard that is gone leaves the
//!          books with its last copy; from then on nobody keeps its removal.
//! doom     the row of the segment says that the file must go; this is made durable before it goes,
//!          and is done first of all at the next start.
//! ```
//!
//! A crash at any point loses nothing, since a record is in the active segment before its row leaves
//! the old one, and brings nothing back: a removed shard is copied as *shard in the trash*, and a
//! removal is dropped only when no copy of the shard is left in any file. That is why *forget* keeps
//! how far it came, runs to its end before any other segment is touched, and needs no room.
//!
//! What is moved goes behind everything else, and of several records the last decides. So a removal
//! stays where it is as long as this segment or a later one may hide a newer record of its shard.

use std::{
    io::{self, IoSlice},
    ops::Bound,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use copse_core::{geometry::Geometry, ids::ShardId};

use super::{
    Writes,
    books::Entered,
    file::{SegmentFile, is_full},
    health::count,
    index::{Entry, State},
    missed, record,
    scan::{Found, Scan},
    segment::{HEAD_BYTES, Kind, Position, RECORD_BYTES_MAX, RecordHeader},
    upkeep::Trouble,
    writer::{Active, NotFinished, Writer},
};

/// What one step copies, at most, in bytes, but always one record: a put waits so long, some 10 ms.
/// Tests take short steps, so that there are many.
const STEP_BYTES: u64 = if cfg!(test) { 200_000 } else { 2 << 20 };
/// Headers that one step looks at.
const STEP_HEADERS: usize = if cfg!(test) { 3 } else { 1024 };
/// Rows that one step of seeking looks at.
const STEP_ROWS: usize = if cfg!(test) { 4 } else { 16 << 10 };
/// What looking at a header is reckoned to cost, in bytes: a page.
pub(super) const HEADER_COST_BYTES: u64 = 4096;

/// A segment on its way out.
pub(super) struct Compaction {
    number: u32,
    file: SegmentFile,
    bytes: u64,
    /// Where the walk over its headers is.
    at: u64,
    phase: Phase,
    /// A segment that may hide newer records: until it is read, no removal is moved past them.
    hidden_behind: Option<u32>,
}

#[derive(Clone, Copy)]
enum Phase {
    Move,
    /// Behind this row.
    Seek(Option<ShardId>),
    Forget,
}

/// Copies that were appended and are not synced yet.
#[derive(Default)]
struct Batch {
    /// The active segment, while there are any.
    active: Option<Active>,
    entered: Vec<Entered>,
    /// Their bytes.
    bytes: u64,
    /// Bytes of reading and writing.
    cost: u64,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.bytes >= STEP_BYTES
    }
}

impl Writer {
    /// Begins the compaction of a segment, or goes on forgetting it.
    pub(super) fn begin(&mut self, number: u32) -> Result<Compaction, Trouble> {
        let row = self.books.segment(number);
        let file = self.segments.open(number).and_then(|file| Ok((file.bytes()?, file)));
        let (bytes, file) = file.map_err(|error| Trouble::Skip(number, error))?;
        let living_bytes = row.living_bytes;
        tracing::info!(segment = number, bytes, living_bytes, "compacting a segment");
        let (phase, at) = match row.forgotten {
            0 => (Phase::Move, HEAD_BYTES as u64),
            forgotten => (Phase::Forget, forgotten.into()),
        };
        let hidden_behind = match phase {
            Phase::Forget => None,
            _ => self.look_behind(number)?,
        };
        Ok(Compaction { number, file, bytes, at, phase, hidden_behind })
    }

    /// Looks once more at the segments from here on that may hide records, and enters what is found.
    /// Gives one that may hide some still.
    fn look_behind(&mut self, number: u32) -> Result<Option<u32>, Trouble> {
        let hiding = self.books.hiding().range(number..).copied();
        let hiding: Vec<u32> = hiding.filter(|it| !self.upkeep.looked.contains(it)).collect();
        let (left_alone, others): (Vec<u32>, Vec<u32>) =
            hiding.into_iter().partition(|&hiding| self.is_left_alone(hiding));
        let length = |number| self.segments.open(number).and_then(|file| file.bytes());
        let files = others.into_iter().map(|it| match length(it) {
            Ok(bytes) => Ok((it, bytes)),
            Err(error) => Err(Trouble::Skip(it, error)),
        });
        let files: Vec<(u32, u64)> = files.collect::<Result<_, _>>()?;
        let again = missed::look_again(&self.segments, &mut self.books, &self.key, &files);
        let again = again.map_err(|error| Trouble::Skip(number, error))?;
        if let Some(&unread) = again.unread.first() {
            return Err(Trouble::Skip(unread, io::Error::other("the disk fails under it still")));
        }
        self.upkeep.looked.extend(files.iter().map(|(number, _)| *number));
        // What it has not given for two days is as good as damaged: else nothing could be moved again.
        Ok(left_alone.into_iter().find(|&hiding| !self.is_given_up(hiding)))
    }

    /// One step. Gives the cost, in bytes of reading and writing.
    pub(super) fn step_of(&mut self, compaction: &mut Compaction) -> Result<u64, Trouble> {
        match compaction.phase {
            Phase::Move => self.move_some(compaction),
            Phase::Seek(after) => self.seek_some(compaction, after),
            Phase::Forget => self.forget_some(compaction),
        }
    }

    /// Copies some of the records that are needed. Gives the cost.
    fn move_some(&mut self, compaction: &mut Compaction) -> Result<u64, Trouble> {
        let mut batch = Batch::default();
        let moved = self.walk(
            compaction,
            |writer, compaction, found, batch| match found {
                Found::Record { begin, header, .. } => {
                    writer.move_record(compaction, header.id, begin, batch)
                }
                // There may be records that the books know nothing of.
                Found::Damage { unread: true, begin, .. } => {
                    let error = format!("the disk fails at byte {begin}");
                    Err(Trouble::Skip(compaction.number, io::Error::other(error)))
                }
                _ => Ok(()),
            },
            &mut batch,
        );
        let at = self.end_batch(moved, &mut batch)?;
        compaction.at = at;
        if at >= compaction.bytes {
            self.leave(compaction, Phase::Seek(None))?;
        }
        Ok(batch.cost)
    }

    /// Shows some of the headers from where the walk is. Gives where it ends.
    fn walk(
        &mut self,
        compaction: &Compaction,
        mut visit: impl FnMut(&mut Self, &Compaction, Found, &mut Batch) -> Result<(), Trouble>,
        batch: &mut Batch,
    ) -> Result<u64, Trouble> {
        let number = compaction.number;
        let key = self.key.clone();
        let range = compaction.at..compaction.bytes;
        let mut scan = Scan::headers(&compaction.file, &key, range);
        for _ in 0..STEP_HEADERS {
            if batch.is_full() {
                break;
            }
            let found = scan.next().map_err(|error| Trouble::Skip(number, error))?;
            let Some(found) = found else { break };
            batch.cost += HEADER_COST_BYTES;
            if matches!(found, Found::Newer { .. }) {
                let error = io::Error::other("a record of a newer version");
                return Err(Trouble::Skip(number, error));
            }
            visit(self, compaction, found, batch)?;
        }
        Ok(scan.at())
    }

    /// When all that is needed was moved: forget. Else go on with `other`.
    fn leave(&self, compaction: &mut Compaction, other: Phase) -> Result<(), Trouble> {
        let number = compaction.number;
        let living_bytes = self.books.segment(number).living_bytes;
        compaction.phase = match (living_bytes, compaction.phase) {
            (0, _) => Phase::Forget,
            (_, Phase::Move) => other,
            _ => {
                let error = format!("the index counts on {living_bytes} bytes that no row needs");
                return Err(Trouble::Skip(number, io::Error::other(error)));
            }
        };
        compaction.at = HEAD_BYTES as u64;
        Ok(())
    }

    /// Looks for rows that point into the segment, some at a time. Gives the cost.
    fn seek_some(
        &mut self,
        compaction: &mut Compaction,
        after: Option<ShardId>,
    ) -> Result<u64, Trouble> {
        let number = compaction.number;
        let mut found = Vec::new();
        let (mut seen, mut last) = (0, after);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let scanned = self.books.index().scan(from, &mut |id, row| {
            (seen, last) = (seen + 1, Some(id));
            if row.living().into_iter().flatten().any(|(segment, _)| segment == number) {
                found.push((id, row));
            }
            seen < STEP_ROWS && found.len() < STEP_HEADERS
        });
        scanned.map_err(Trouble::of_index)?;
        let at_end = seen < STEP_ROWS && found.len() < STEP_HEADERS;
        let mut batch = Batch { cost: HEADER_COST_BYTES * (seen as u64 / 64), ..Batch::default() };
        let mut reached = last;
        let mut moved = Ok(compaction.at);
        for (id, row) in found {
            if batch.is_full() {
                break;
            }
            let places = [Some(row.place), row.mark().map(|mark| mark.place)];
            for place in places.into_iter().flatten().filter(|place| place.segment == number) {
                moved = moved.and_then(|at| {
                    self.move_record(compaction, id, place.offset, &mut batch).map(|()| at)
                });
            }
            reached = Some(id);
        }
        let full = batch.is_full();
        self.end_batch(moved, &mut batch)?;
        if at_end && !full {
            self.leave(compaction, Phase::Forget)?;
        } else {
            compaction.phase = Phase::Seek(if full { reached } else { last });
        }
        Ok(batch.cost)
    }

    /// Copies what lies at a place of the segment, if the row of its shard points there.
    fn move_record(
        &mut self,
        compaction: &Compaction,
        id: ShardId,
        offset: u64,
        batch: &mut Batch,
    ) -> Result<(), Trouble> {
        let place = Position { segment: compaction.number, offset };
        let Some(mut row) = self.books.get(id).map_err(Trouble::of_index)? else { return Ok(()) };
        if row.mark().is_some()
            && let Some(hiding) = compaction.hidden_behind
            && row.living().into_iter().flatten().any(|(segment, _)| segment == place.segment)
        {
            let error = format!("segment {hiding} may hide newer records than its removals");
            return Err(Trouble::Skip(compaction.number, io::Error::other(error)));
        }
        if row.place == place && !matches!(row.state, State::Gone(_)) {
            let record = record::read_whole(compaction.file.file(), &self.key, id, &row);
            let record = record.map_err(|error| Trouble::Skip(compaction.number, error))?;
            batch.cost += row.record_bytes();
            if let Some(record) = record {
                let kind = row.trashed().map_or(Kind::Shard, Kind::Trash);
                let body = &record.bytes[HEAD_BYTES..];
                let header = RecordHeader {
                    kind,
                    id,
                    descriptor_bytes: row.descriptor_bytes,
                    shard_bytes: row.shard_bytes,
                    commit: 0,
                };
                return self.append_copy(header, Some(record.geometry), body, batch);
            }
            row = self.set_apart(id, row).map_err(Trouble::of_index)?;
        }
        match row.mark() {
            Some(mark) if mark.place == place && row.needs_removal() => {
                let kind = Kind::Removal(mark.removal);
                let header =
                    RecordHeader { kind, id, descriptor_bytes: 0, shard_bytes: 0, commit: 0 };
                self.append_copy(header, None, &[], batch)
            }
            _ => Ok(()),
        }
    }

    /// Takes note that the bytes of a shard are damaged. Gives its new row.
    fn set_apart(&mut self, id: ShardId, row: Entry) -> io::Result<Entry> {
        let state = match row.state {
            State::Live => {
                count(&self.health.corrupt);
                tracing::error!(%id, segment = row.place.segment, offset = row.place.offset,
                    "shard found damaged while it was moved: set apart");
                State::Quarantined
            }
            State::Trashed(mark) => State::Gone(mark),
            other => other,
        };
        let row = Entry { state, ..row };
        self.books.set(id, Some(row))?;
        Ok(row)
    }

    /// Appends a record to the active segment, without syncing it.
    fn append_copy(
        &mut self,
        mut header: RecordHeader,
        geometry: Option<Geometry>,
        body: &[u8],
        batch: &mut Batch,
    ) -> Result<(), Trouble> {
        let bytes = header.record_bytes();
        let segment_bytes_max = self.room.segment_bytes_max;
        let fits = |active: &Active| active.end + bytes <= segment_bytes_max;
        if !batch.active.as_ref().is_none_or(fits) {
            self.finish_batch(batch)?;
        }
        if !self.active.as_ref().is_none_or(fits) {
            self.active = None;
        }
        let mut active = match batch.active.take() {
            Some(active) => active,
            None => self.take_active().map_err(|_| Trouble::Later)?,
        };
        header.commit = u32::try_from(active.durable).unwrap_or(u32::MAX);
        let place = Position { segment: active.file.number, offset: active.end };
        let head = header.encode(&self.key, place);
        let mut slices = [IoSlice::new(&head), IoSlice::new(body)];
        let appended = active.file.append(active.end, &mut slices);
        active.end += bytes;
        batch.active = Some(active);
        if let Err((_, error)) = appended {
            count(&self.health.io_errors);
            self.drop_batch(batch, Some(error));
            return Err(Trouble::Later);
        }
        batch.entered.push(Entered { header, place, geometry, sound: true });
        batch.bytes += bytes;
        batch.cost += bytes;
        Ok(())
    }

    /// Ends a step that came to this: what was appended counts, or is cut off.
    fn end_batch(
        &mut self,
        came_to: Result<u64, Trouble>,
        batch: &mut Batch,
    ) -> Result<u64, Trouble> {
        match came_to {
            Ok(_) => self.finish_batch(batch)?,
            Err(_) => self.drop_batch(batch, None),
        }
        came_to
    }

    /// Syncs and enters what was appended, and what was found damaged.
    fn finish_batch(&mut self, batch: &mut Batch) -> Result<(), Trouble> {
        let entered = std::mem::take(&mut batch.entered);
        match batch.active.take() {
            // A failed index is noted by `finish`.
            Some(active) => self.finish(active, &entered).map_err(|_: NotFinished| Trouble::Later),
            None => self.books.commit().map_err(Trouble::of_index),
        }
    }

    /// Cuts off what was appended. The segment is as good as before, unless another error than a
    /// want of room was met in it: then it is given up.
    fn drop_batch(&mut self, batch: &mut Batch, error: Option<io::Error>) {
        batch.entered.clear();
        let Some(mut active) = batch.active.take() else { return };
        let harmless = error.as_ref().is_none_or(is_full);
        if harmless && active.file.cut(active.durable).is_ok() {
            active.end = active.durable;
            self.active = Some(active);
        } else {
            let error = error.unwrap_or_else(|| io::Error::other("it could not be cut"));
            self.give_up(active, &Arc::new(error));
        }
    }

    /// Takes some of the copies out of the books; with the last the segment is doomed. Gives the
    /// cost.
    fn forget_some(&mut self, compaction: &mut Compaction) -> Result<u64, Trouble> {
        let mut batch = Batch::default();
        let at = self.walk(
            compaction,
            |writer, _, found, _| match found {
                Found::Record { header, .. } | Found::Damage { header: Some(header), .. }
                    if header.has_shard() =>
                {
                    writer.books.forget(header.id).map_err(Trouble::of_index)
                }
                _ => Ok(()),
            },
            &mut batch,
        )?;
        if at >= compaction.bytes {
            self.books.doom(compaction.number);
        } else {
            self.books.set_forgotten(compaction.number, at);
        }
        self.books.commit().map_err(Trouble::of_index)?;
        compaction.at = at;
        Ok(batch.cost)
    }

    /// Deletes the file of a doomed segment.
    pub(super) fn delete(&mut self, number: u32) -> Result<(), Trouble> {
        // From here on no index that survives a power cut counts on the file.
        self.books.index().flush().map_err(Trouble::of_index)?;
        if let Err(error) = self.segments.remove(number) {
            count(&self.health.io_errors);
            tracing::error!(segment = number, %error, "compacted segment not deleted");
            return Err(Trouble::Later);
        }
        self.files.forget(number);
        let bytes = self.sizes.remove(&number).unwrap_or(0);
        self.health.used_bytes.fetch_sub(bytes, Relaxed);
        count(&self.health.compactions);
        tracing::info!(segment = number, bytes, "segment compacted and deleted");
        self.upkeep.forget(number);
        self.books.drop_segment(number);
        self.books.commit().map_err(Trouble::of_index)?;
        let free = self.segments.free_bytes();
        let room = self.lacks_room(RECORD_BYTES_MAX, &free).is_none()
            && free.is_ok_and(|free| free > RECORD_BYTES_MAX);
        if room && matches!(self.health.writes(), Writes::Full(_)) {
            self.health.set_writes(Writes::Accepted);
        }
        Ok(())
    }
}
