//! What the writing thread does when nobody waits: empties the trash, and compacts segments.
//!
//! Owns when something is done and to which segment; how a segment is compacted is the matter of
//! `compaction`. Never works while the store refuses writes, and is paced: puts go first, but not for
//! ever, since a full store would stay full.
//!
//! What is copied may pass the capacity for a moment, by half a segment at most, and takes up to half
//! of the reserve: else a full store could never make room.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Writes,
    compaction::{Compaction, HEADER_COST_BYTES},
    file::is_full,
    health::count,
    index::{Entry, State},
    segment::HEAD_BYTES,
    writer::Writer,
};

/// How often it is looked whether there is something to do.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// How long nothing is compacted after the disk failed or had no room for it.
const PAUSE: Duration = Duration::from_secs(60);
/// How long a segment is left alone that could not be read, in seconds: ten minutes, then each time twice as
/// long, up to a day. What failed may be one bad sector, or a want of file descriptors that is over soon.
const SKIP_SECONDS_MIN: u32 = 600;
const SKIP_SECONDS_MAX: u32 = 24 * 3600;
/// Trash that is emptied at a time, in shards.
const STEP_TRASH: usize = 1024;
/// Room is short when less than this part of the capacity is left,
const ROOM_SHORT_PART: u64 = 16;
/// but not while there is this much, in bytes.
const ROOM_SHORT_BYTES: u64 = 16 << 30;

/// Where the upkeep is.
pub(super) struct Upkeep {
    bytes_per_second: u64,
    /// When the next step is due.
    next: Instant,
    /// Not before that is anything copied.
    paused_until: Option<Instant>,
    compaction: Option<Compaction>,
    /// Segments that could not be compacted: left alone for a while.
    skipped: BTreeMap<u32, Skipped>,
    /// Segments that may hide records, of which all was read since the store was opened: what is damage
    /// in them is damage, and they are not looked at again.
    pub(super) looked: BTreeSet<u32>,
}

/// Since when a segment is left alone, in unix seconds, and for how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Skipped {
    since: u32,
    seconds: u32,
}

impl Skipped {
    /// After a failure, and those before it.
    fn again(before: Option<Self>, now: u32) -> Self {
        let seconds = before.map_or(SKIP_SECONDS_MIN, |before| before.seconds * 2);
        Self { since: now, seconds: seconds.min(SKIP_SECONDS_MAX) }
    }

    /// Whether it is left alone still; not if the clock was set back.
    fn waits(self, now: u32) -> bool {
        now.checked_sub(self.since).is_some_and(|passed| passed < self.seconds)
    }
}

/// What a step came to.
pub(super) enum Step {
    /// Nothing to do.
    Idle,
    /// Something was done; it cost so many bytes of reading and writing.
    Done(u64),
}

/// Why a segment is not compacted.
pub(super) enum Trouble {
    /// No room, or the disk failed under writing: later.
    Later,
    /// The segment cannot be read, or is not understood.
    Skip(u32, io::Error),
    /// The index failed: nothing is written any more.
    Index(io::Error),
}

impl Trouble {
    /// The index failed. One that has no room for a row has it again some time, and what was to be written
    /// is found again: that is no reason to write nothing any more.
    pub(super) fn of_index(error: io::Error) -> Self {
        if is_full(&error) { Self::Later } else { Self::Index(error) }
    }
}

impl Upkeep {
    /// A segment is gone.
    pub(super) fn forget(&mut self, segment: u32) {
        self.skipped.remove(&segment);
        self.looked.remove(&segment);
    }

    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            next: Instant::now(),
            paused_until: None,
            compaction: None,
            skipped: BTreeMap::new(),
            looked: BTreeSet::new(),
        }
    }

    /// How long until the next step.
    pub(super) fn wait(&self) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::MAX;
        }
        self.next.saturating_duration_since(Instant::now())
    }

    /// Whether a step is due since that long.
    pub(super) fn is_late(&self, by: Duration) -> bool {
        self.bytes_per_second > 0 && self.next.elapsed() >= by
    }

    /// When the next step is due, behind one that came to this.
    fn pace(&mut self, step: &Step) {
        let rest = match step {
            Step::Idle => UPKEEP_EVERY,
            Step::Done(bytes) => {
                let micros = bytes.saturating_mul(1_000_000) / self.bytes_per_second.max(1);
                Duration::from_micros(micros).min(UPKEEP_EVERY)
            }
        };
        self.next = Instant::now() + rest;
    }
}

impl Writer {
    /// One step.
    pub(super) fn do_upkeep(&mut self) {
        let step = self.step();
        self.upkeep.pace(&step);
    }

    /// Steps that are due, one after another.
    pub(super) fn do_upkeep_now(&mut self, steps_max: usize) {
        for _ in 0..steps_max {
            if let Step::Idle = self.step() {
                break;
            }
        }
        self.upkeep.pace(&Step::Idle);
    }

    fn step(&mut self) -> Step {
        if self.refused.is_some() {
            return Step::Idle;
        }
        let result = match self.doomed() {
            Some(number) => self.delete(number).map(|()| Step::Done(HEADER_COST_BYTES)),
            None => self.empty_trash().and_then(|step| match step {
                Step::Idle => self.compact(),
                done @ Step::Done(_) => Ok(done),
            }),
        };
        self.publish();
        result.unwrap_or_else(|trouble| {
            self.books.abandon();
            self.give_way(trouble);
            Step::Idle
        })
    }

    /// Sees to it that trouble does not come back at once.
    fn give_way(&mut self, trouble: Trouble) {
        self.upkeep.compaction = None;
        match trouble {
            Trouble::Later => {
                tracing::warn!(pause = ?PAUSE, "nothing is compacted for now");
                self.upkeep.paused_until = Some(Instant::now() + PAUSE);
            }
            Trouble::Skip(segment, error) => {
                count(&self.health.io_errors);
                let before = self.upkeep.skipped.get(&segment).copied();
                let skipped = Skipped::again(before, self.trash.now());
                let seconds = skipped.seconds;
                tracing::error!(segment, %error, seconds, "segment not compacted; it is tried again");
                self.upkeep.skipped.insert(segment, skipped);
            }
            Trouble::Index(error) => {
                self.refuse(error);
            }
        }
    }

    /// Lets go of the bytes of shards whose time in the trash is over.
    fn empty_trash(&mut self) -> Result<Step, Trouble> {
        let short = self.room_is_short();
        let mut due = Vec::new();
        for proved_elsewhere in [true, false] {
            if let Some(until) = self.trash.due_until(proved_elsewhere, short) {
                let some = self.books.index().due(proved_elsewhere, until, STEP_TRASH);
                due.extend(some.map_err(Trouble::of_index)?);
            }
        }
        for &id in &due {
            let row = self.books.get(id).map_err(Trouble::of_index)?;
            if let Some(row) = row
                && let State::Trashed(mark) = row.state
            {
                let gone = Entry { state: State::Gone(mark), ..row };
                self.books.set(id, Some(gone)).map_err(Trouble::of_index)?;
            }
        }
        // None of the shards is in the trash: only of an index that was damaged.
        let emptied = self.books.pending_rows();
        if emptied == 0 {
            return Ok(Step::Idle);
        }
        self.books.commit().map_err(Trouble::of_index)?;
        Ok(Step::Done(emptied as u64))
    }

    fn room_is_short(&self) -> bool {
        let used = self.health.used_bytes.load(Relaxed);
        let capacity = self.room.capacity_bytes;
        let free = self.segments.free_bytes().unwrap_or(u64::MAX);
        let left = capacity.saturating_sub(used).min(free.saturating_sub(self.room.reserve_bytes));
        left < (capacity / ROOM_SHORT_PART).min(ROOM_SHORT_BYTES)
            || matches!(self.health.writes(), Writes::Full(_))
    }

    /// One step of a compaction, if one is under way or worth it.
    fn compact(&mut self) -> Result<Step, Trouble> {
        let mut compaction = match self.upkeep.compaction.take() {
            Some(compaction) => compaction,
            None => match self.choose() {
                Some(number) => self.begin(number)?,
                None => return Ok(Step::Idle),
            },
        };
        let cost = self.step_of(&mut compaction)?;
        match self.doomed() {
            Some(number) => self.delete(number)?,
            None => self.upkeep.compaction = Some(compaction),
        }
        Ok(Step::Done(cost))
    }

    /// The segment whose file must go before anything else.
    fn doomed(&self) -> Option<u32> {
        let mut doomed = self.books.segments().iter().filter(|(_, row)| row.doomed);
        doomed.next().map(|(&number, _)| number)
    }

    /// Whether a segment that failed is not to be tried yet.
    pub(super) fn is_left_alone(&self, number: u32) -> bool {
        let skipped = self.upkeep.skipped.get(&number);
        skipped.is_some_and(|skipped| skipped.waits(self.trash.now()))
    }

    /// Whether a segment failed so often, over two days, that it is tried once a day.
    pub(super) fn is_given_up(&self, number: u32) -> bool {
        let skipped = self.upkeep.skipped.get(&number);
        skipped.is_some_and(|skipped| skipped.seconds >= SKIP_SECONDS_MAX)
    }

    /// The next segment to compact: one that is half forgotten, else the least living of those that
    /// are under half living. While there is no room to copy, only one with nothing to copy.
    fn choose(&self) -> Option<u32> {
        let waits = |number: &u32| self.is_left_alone(*number);
        let skipped = self.upkeep.skipped.keys();
        // One that is half forgotten and cannot be read: none other may be touched.
        if skipped.filter(|number| waits(number)).any(|&it| self.books.segment(it).forgotten > 0) {
            return None;
        }
        let free = self.segments.free_bytes().unwrap_or(u64::MAX);
        let room = free.saturating_sub(self.room.reserve_bytes / 2);
        let may_copy = self.upkeep.paused_until.is_none_or(|until| until <= Instant::now());
        // All before the place of the last record are sealed.
        let sealed = self.sizes.range(..self.books.place().segment);
        sealed
            .filter(|(number, _)| !waits(number))
            .map(|(&number, &bytes)| (number, bytes, self.books.segment(number)))
            .filter(|(_, bytes, row)| {
                let living = row.living_bytes;
                let possible = living == 0 || (may_copy && living + HEAD_BYTES as u64 <= room);
                row.forgotten > 0 || (living * 2 < *bytes && possible)
            })
            .min_by_key(|(_, _, row)| (row.forgotten == 0, row.living_bytes))
            .map(|(number, _, _)| number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_and_again_is_tried_after_ten_minutes_and_at_last_once_a_day() {
        let (mut skipped, mut now, mut waited) = (None, 1_700_000_000, Vec::new());
        for _ in 0..10 {
            let next = Skipped::again(skipped, now);
            assert!(next.waits(now) && next.waits(now + next.seconds - 1));
            assert!(!next.waits(now + next.seconds) && !next.waits(now - 1));
            waited.push(next.seconds);
            (skipped, now) = (Some(next), now + next.seconds);
        }
        assert_eq!(waited[..3], [600, 1200, 2400]);
        assert_eq!(waited[8..], [24 * 3600; 2]);
    }

    #[test]
    fn an_index_without_room_is_not_taken_for_a_broken_disk() {
        let full = Trouble::of_index(io::ErrorKind::StorageFull.into());
        assert!(matches!(full, Trouble::Later));
        let broken = Trouble::of_index(io::ErrorKind::Other.into());
        assert!(matches!(broken, Trouble::Index(_)));
    }
}
