//! What is still to be done, in order of urgency: the memory's half of a durable queue.
//!
//! Owns the entries, their order and their backoff. Refuses entries over its bound, and counts
//! them: whoever offered one must not mark its arc as looked at. The one idea: every change gives
//! back the [`Row`] to write, and the caller writes it before it acts on the change.
//!
//! ```text
//! offer ─▶ waiting for its time ─▶ ready, by priority ─ next ─▶ in work ─ succeeded ─▶ gone
//!               ▲                                                  │
//!               └──────────────── failed: 1 s .. 1 h ──────────────┘     cancel ─▶ gone
//! ```
//!
//! Work is not written down: after a restart everything that was in work is done again, which is
//! harmless, since an executor plans the chunk again before it acts.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    row::{self, Row, RowError},
    strength::Priority,
};
use crate::{ids::ChunkId, limits::SHARDS_MAX};

/// Entries, at most: about 300 bytes each with their places in the order, 20 MB. A full queue is
/// hours of work; what it refuses is found again when its arc is looked at again.
pub const QUEUE_ENTRIES_MAX: usize = 1 << 16;

/// The last places, kept for chunks with at most [`EMERGENCY_MARGIN`] shards to spare: a join must
/// not fill the queue with copies so that a thin chunk finds no place.
pub const EMERGENCY_RESERVE: usize = QUEUE_ENTRIES_MAX / 8;

/// Shards to spare with which an entry may take a reserved place.
pub const EMERGENCY_MARGIN: i16 = 2;

/// The shortest time to the next attempt, in milliseconds.
pub const BACKOFF_MS_MIN: u64 = 1_000;

/// The longest time to the next attempt, in milliseconds.
pub const BACKOFF_MS_MAX: u64 = 3_600_000;

const _: () = {
    assert!(EMERGENCY_RESERVE < QUEUE_ENTRIES_MAX);
    assert!(BACKOFF_MS_MIN < BACKOFF_MS_MAX);
};

/// What kind of work an entry is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// Shards are to be made.
    Rebuild,
    /// Shards are to be brought where they belong.
    Copy,
    /// Shards that are held twice are to be deleted.
    Drop,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Rebuild, Self::Copy, Self::Drop];

    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Rebuild => 1,
            Self::Copy => 2,
            Self::Drop => 3,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// The name of an entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Job {
    /// The chunk.
    pub chunk: ChunkId,
    /// What kind of work.
    pub kind: Kind,
}

/// Work that is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// How urgent it is, and since when it has been here.
    pub priority: Priority,
    /// How often it failed.
    pub attempts: u32,
    /// When it may be tried again, in unix milliseconds.
    pub not_before_unix_ms: u64,
    /// Why it failed last; empty if it did not. At most [`ERROR_BYTES_MAX`](super::ERROR_BYTES_MAX)
    /// bytes.
    pub last_error: String,
}

/// What became of an offer.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Offered {
    /// Write this row; then the work is in the queue.
    Added(Row),
    /// It was there, and is more or less urgent now: write this row.
    Changed(Row),
    /// It was there.
    Known,
    /// The queue is full: do not mark the arc as looked at.
    Deferred,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Not before its time.
    Waiting,
    Ready,
    InWork,
}

/// The entries, by urgency.
#[derive(Debug, Default)]
pub struct Queue {
    entries: BTreeMap<Job, (Entry, Stage)>,
    waiting: BTreeSet<(u64, Job)>,
    ready: BTreeSet<(Priority, Job)>,
    deferred: u64,
}

impl Queue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a row that was written before a restart. The clock may have been set since: nothing
    /// waits longer than after its last failure, and nothing is from the future.
    ///
    /// # Errors
    /// When no queue wrote the row, or there are too many.
    pub fn load(&mut self, key: &[u8], value: &[u8], now_unix_ms: u64) -> Result<Job, RowError> {
        let job = row::read_key(key)?;
        let mut entry = row::read_value(value)?;
        if self.entries.len() >= QUEUE_ENTRIES_MAX && !self.entries.contains_key(&job) {
            return Err(RowError::Full { limit: QUEUE_ENTRIES_MAX });
        }
        let wait = if entry.attempts == 0 { 0 } else { backoff_ms(job.chunk, entry.attempts) };
        entry.not_before_unix_ms = entry.not_before_unix_ms.min(now_unix_ms.saturating_add(wait));
        entry.priority.since_unix_ms = entry.priority.since_unix_ms.min(now_unix_ms);
        self.take_out(job);
        self.put_in(job, entry);
        Ok(job)
    }

    /// Asks for work to be done. What is there keeps its age, and is tried at once: something must
    /// have changed since it failed. When that fails, too, the next wait is longer than the last. The
    /// priority's age is ignored: it is this queue's matter.
    pub fn offer(&mut self, job: Job, priority: Priority, now_unix_ms: u64) -> Offered {
        let Some((entry, stage)) = self.entries.get(&job) else {
            let limit = if priority.margin <= EMERGENCY_MARGIN {
                QUEUE_ENTRIES_MAX
            } else {
                QUEUE_ENTRIES_MAX - EMERGENCY_RESERVE
            };
            if self.entries.len() >= limit {
                self.deferred += 1;
                return Offered::Deferred;
            }
            let priority = Priority { since_unix_ms: now_unix_ms, ..bounded(priority) };
            let entry = Entry {
                priority,
                attempts: 0,
                not_before_unix_ms: now_unix_ms,
                last_error: String::new(),
            };
            let row = row::put(job, &entry);
            self.put_in(job, entry);
            return Offered::Added(row);
        };
        let (before, stage) = (entry.priority, *stage);
        let priority = Priority { since_unix_ms: before.since_unix_ms, ..bounded(priority) };
        if priority == before && entry.not_before_unix_ms <= now_unix_ms {
            return Offered::Known;
        }
        let mut entry = self.take_out(job).expect("it is there");
        entry.priority = priority;
        entry.not_before_unix_ms = entry.not_before_unix_ms.min(now_unix_ms);
        let row = row::put(job, &entry);
        if stage == Stage::InWork {
            self.entries.insert(job, (entry, stage));
        } else {
            self.put_in(job, entry);
        }
        Offered::Changed(row)
    }

    /// The most urgent work whose time has come. It is in work until it
    /// [succeeded](Self::succeeded), [failed](Self::failed) or was [cancelled](Self::cancel).
    pub fn next(&mut self, now_unix_ms: u64) -> Option<(Job, Entry)> {
        // Nothing is put off for longer: the clock was set back.
        while let Some(&(time, job)) = self.waiting.last()
            && time > now_unix_ms.saturating_add(BACKOFF_MS_MAX)
        {
            let mut entry = self.take_out(job).expect("what waits is an entry");
            entry.not_before_unix_ms = now_unix_ms;
            self.put_in(job, entry);
        }
        while let Some(&(time, job)) = self.waiting.first()
            && time <= now_unix_ms
        {
            self.waiting.remove(&(time, job));
            let (entry, stage) = self.entries.get_mut(&job).expect("what waits is an entry");
            *stage = Stage::Ready;
            self.ready.insert((entry.priority, job));
        }
        let (_, job) = self.ready.pop_first()?;
        let (entry, stage) = self.entries.get_mut(&job).expect("what is ready is an entry");
        *stage = Stage::InWork;
        Some((job, entry.clone()))
    }

    /// When [`next`](Self::next) has something, in unix milliseconds: now or before if something
    /// is ready, never if nothing is waiting.
    pub fn next_at_unix_ms(&self) -> Option<u64> {
        if self.ready.is_empty() { self.waiting.first().map(|(time, _)| *time) } else { Some(0) }
    }

    /// The work is done and proved: write this row. `None` if it was cancelled meanwhile.
    #[must_use]
    pub fn succeeded(&mut self, job: Job) -> Option<Row> {
        self.take_out(job).map(|_| row::delete(job))
    }

    /// The work failed and is tried again later: write this row. `None` if it was cancelled
    /// meanwhile.
    #[must_use]
    pub fn failed(&mut self, job: Job, now_unix_ms: u64, why: &str) -> Option<Row> {
        let mut entry = self.take_out(job)?;
        entry.attempts = entry.attempts.saturating_add(1);
        entry.not_before_unix_ms =
            now_unix_ms.saturating_add(backoff_ms(job.chunk, entry.attempts));
        entry.last_error = row::error_text(why);
        let row = row::put(job, &entry);
        self.put_in(job, entry);
        Some(row)
    }

    /// Nothing is to be done with the chunk any more, for its shards returned: write these rows.
    /// Whoever is at work finds out by [`is_wanted`](Self::is_wanted).
    #[must_use]
    pub fn cancel(&mut self, chunk: ChunkId) -> Vec<Row> {
        let jobs = Kind::ALL.map(|kind| Job { chunk, kind });
        jobs.into_iter().filter_map(|job| self.succeeded(job)).collect()
    }

    /// Whether the work is still to be done.
    pub fn is_wanted(&self, job: Job) -> bool {
        self.entries.contains_key(&job)
    }

    /// The row of a job as it is now, for whoever could not write the one it was given.
    pub fn row(&self, job: Job) -> Option<Row> {
        self.get(job).map(|entry| row::put(job, entry))
    }

    /// The entry of a job.
    pub fn get(&self, job: Job) -> Option<&Entry> {
        self.entries.get(&job).map(|(entry, _)| entry)
    }

    /// All entries, by chunk.
    pub fn iter(&self) -> impl Iterator<Item = (Job, &Entry)> {
        self.entries.iter().map(|(job, (entry, _))| (*job, entry))
    }

    /// How many entries there are, those in work included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// For how long the oldest entry has been here, in milliseconds.
    pub fn oldest_age_ms(&self, now_unix_ms: u64) -> Option<u64> {
        let since = self.iter().map(|(_, entry)| entry.priority.since_unix_ms).min()?;
        Some(now_unix_ms.saturating_sub(since))
    }

    /// How many entries there are of each margin.
    pub fn counts_by_margin(&self) -> BTreeMap<i16, usize> {
        let mut counts = BTreeMap::new();
        for (_, entry) in self.iter() {
            *counts.entry(entry.priority.margin).or_default() += 1;
        }
        counts
    }

    /// How many offers were refused since the start because the queue was full.
    pub const fn deferred(&self) -> u64 {
        self.deferred
    }

    fn put_in(&mut self, job: Job, entry: Entry) {
        self.waiting.insert((entry.not_before_unix_ms, job));
        self.entries.insert(job, (entry, Stage::Waiting));
    }

    fn take_out(&mut self, job: Job) -> Option<Entry> {
        let (entry, stage) = self.entries.remove(&job)?;
        let was_there = match stage {
            Stage::Waiting => self.waiting.remove(&(entry.not_before_unix_ms, job)),
            Stage::Ready => self.ready.remove(&(entry.priority, job)),
            Stage::InWork => true,
        };
        assert!(was_there, "an entry is where its stage says");
        Some(entry)
    }
}

/// What a row can hold: differences of shard counts.
fn bounded(priority: Priority) -> Priority {
    let most = i16::try_from(SHARDS_MAX).unwrap_or(i16::MAX);
    let clamp = |count: i16| count.clamp(-most, most);
    Priority { margin: clamp(priority.margin), zone_spare: clamp(priority.zone_spare), ..priority }
}

/// The time to the next attempt, in milliseconds: doubles from 2 s to 1 h; of that, between half
/// and all, as the chunk's id decides. Chunks that failed together do not come back together.
fn backoff_ms(chunk: ChunkId, attempts: u32) -> u64 {
    let doublings = attempts.clamp(1, 12);
    let longest = (BACKOFF_MS_MIN << doublings).min(BACKOFF_MS_MAX);
    let mut hasher = blake3::Hasher::new_derive_key("copse repair backoff v1");
    hasher.update(chunk.as_bytes()).update(&attempts.to_le_bytes());
    let mut share = [0; 2];
    hasher.finalize_xof().fill(&mut share);
    let jitter = (longest / 2) * u64::from(u16::from_le_bytes(share)) / u64::from(u16::MAX);
    longest / 2 + jitter
}
