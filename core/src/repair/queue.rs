//! What is still to be done, in order of urgency: the memory's half of a durable queue.
//!
//! Owns the entries, their order and their backoff. Refuses entries over its bound, and counts
//! them: whoever offered one must not mark its arc as looked at. The one idea: every change gives
//! back the [`Row`] to write, and the caller writes it before it acts on the change.
//!
//! ```text
//! offer ─▶ waiting for its time ─▶ ready, by priority ─ next ─▶ in work ─ succeeded ─▶ gone
//!               ▲                                                  │
//!               ├──────────────── failed: 1 s .. 1 h ──────────────┤
//!               └────── succeeded, but offered again meanwhile ────┘
//! ```
//!
//! What fails again and again gives way to what is as urgent, and after hours to anything: a full queue
//! takes something new in its place. What is less urgent and was never tried gives way, too. And of the
//! chunks of which one node alone says to hold anything, each node has a bounded part of the queue:
//! nobody fills it with chunks that do not exist.
//!
//! Work is not written down: after a restart everything that was in work is done again, which is
//! harmless, since an executor plans the chunk again before it acts.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    row::{self, Row, RowError},
    strength::Priority,
};
use crate::{
    ids::{ChunkId, NodeId},
    limits::SHARDS_MAX,
};

/// Entries, at most: about 400 bytes each with their places in the order, 26 MB. A full queue is
/// hours of work; what it refuses is found again when its arc is looked at again.
pub const QUEUE_ENTRIES_MAX: usize = 1 << 16;

/// The last places, kept for chunks with at most [`EMERGENCY_MARGIN`] shards to spare: a join must
/// not fill the queue with copies so that a thin chunk finds no place.
pub const EMERGENCY_RESERVE: usize = QUEUE_ENTRIES_MAX / 8;

/// Shards to spare with which an entry may take a reserved place.
pub const EMERGENCY_MARGIN: i16 = 2;

/// How often an entry has failed, at least, when a full queue gives its place to something as urgent: the
/// first failures may be a node that restarts.
pub const DISPLACED_ATTEMPTS_MIN: u32 = 3;

/// How often an entry has failed, at least, when a full queue gives its place to anything: it is tried once
/// an hour only, and would else keep what can be done waiting for ever.
pub const HOPELESS_ATTEMPTS_MIN: u32 = 12;

/// Entries of chunks of which one and the same node alone says to hold anything, at most: four such
/// nodes fill the queue.
pub const SOLE_HOLDER_ENTRIES_MAX: usize = QUEUE_ENTRIES_MAX / 4;

/// The shortest time to the next attempt, in milliseconds.
pub const BACKOFF_MS_MIN: u64 = 1_000;

/// The longest time to the next attempt, in milliseconds.
pub const BACKOFF_MS_MAX: u64 = 3_600_000;

const _: () = {
    assert!(EMERGENCY_RESERVE < QUEUE_ENTRIES_MAX);
    assert!(BACKOFF_MS_MIN < BACKOFF_MS_MAX);
    assert!(BACKOFF_MS_MIN << HOPELESS_ATTEMPTS_MIN >= BACKOFF_MS_MAX);
    assert!(SOLE_HOLDER_ENTRIES_MAX < QUEUE_ENTRIES_MAX - EMERGENCY_RESERVE);
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
    /// The queue was full, and `displaced` made room, which fails or is less urgent: write both rows, and
    /// have the arc of `displaced` looked at again.
    Instead {
        /// The row of what was offered.
        added: Row,
        /// What is no longer in the queue.
        displaced: Job,
        /// Its row.
        removed: Row,
    },
    /// The queue, or its part for one holder, is full: do not mark the arc as looked at.
    Deferred,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Not before its time.
    Waiting,
    Ready,
    /// Since something was to be done again while it was in work, if it was, in unix milliseconds:
    /// what is being done may be from before that.
    InWork {
        offered_unix_ms: Option<u64>,
    },
}

/// The entries, by urgency.
#[derive(Debug, Default)]
pub struct Queue {
    entries: BTreeMap<Job, (Entry, Stage)>,
    waiting: BTreeSet<(u64, Job)>,
    ready: BTreeSet<(Priority, Job)>,
    /// Those that may be displaced for they fail, by how urgent they are (the hopeless are not) and how
    /// often they failed.
    failing: BTreeSet<(i16, u32, Job)>,
    /// Of which chunks one node alone says to hold anything. Not written down: after a restart it is
    /// known again with the next offer.
    sole_holders: BTreeMap<Job, NodeId>,
    sole_counts: BTreeMap<NodeId, usize>,
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

    /// Asks for work to be done, on a chunk of which `sole_holder` alone says to hold anything, if it is
    /// given. What is there keeps its age, and is tried at once: something must have changed since it
    /// failed. When that fails, too, the next wait is longer than the last. The priority's age is
    /// ignored: it is this queue's matter. What is in work is done once more.
    pub fn offer(
        &mut self,
        job: Job,
        priority: Priority,
        sole_holder: Option<NodeId>,
        now_unix_ms: u64,
    ) -> Offered {
        let offered = match self.entries.contains_key(&job) {
            true => self.offer_known(job, priority, now_unix_ms),
            false => self.offer_new(job, priority, sole_holder, now_unix_ms),
        };
        if offered != Offered::Deferred {
            self.set_sole_holder(job, sole_holder);
        }
        offered
    }

    fn offer_new(
        &mut self,
        job: Job,
        priority: Priority,
        sole_holder: Option<NodeId>,
        now_unix_ms: u64,
    ) -> Offered {
        let priority = Priority { since_unix_ms: now_unix_ms, ..bounded(priority) };
        let limit = match priority.margin <= EMERGENCY_MARGIN {
            true => QUEUE_ENTRIES_MAX,
            false => QUEUE_ENTRIES_MAX - EMERGENCY_RESERVE,
        };
        let of_holder = sole_holder.and_then(|node| self.sole_counts.get(&node));
        let may_come = of_holder.is_none_or(|count| *count < SOLE_HOLDER_ENTRIES_MAX);
        let displaced = match may_come && self.entries.len() >= limit {
            true => self.least(priority.margin, now_unix_ms),
            false => None,
        };
        if !may_come || (self.entries.len() >= limit && displaced.is_none()) {
            self.deferred += 1;
            return Offered::Deferred;
        }
        let removed = displaced.and_then(|displaced| Some((displaced, self.remove(displaced)?)));
        let entry = Entry::new(priority);
        let added = row::put(job, &entry);
        self.put_in(job, entry);
        match removed {
            Some((displaced, removed)) => Offered::Instead { added, displaced, removed },
            None => Offered::Added(added),
        }
    }

    /// What gives way to something with this margin in a full queue.
    fn least(&mut self, margin: i16, now_unix_ms: u64) -> Option<Job> {
        let failing = self.failing.last().filter(|(of_failing, ..)| *of_failing >= margin);
        if let Some(&(_, _, job)) = failing {
            return Some(job);
        }
        self.see_what_is_ready(now_unix_ms);
        let ready = self.ready.last().filter(|(priority, _)| priority.margin > margin);
        ready.map(|(_, job)| *job)
    }

    fn offer_known(&mut self, job: Job, priority: Priority, now_unix_ms: u64) -> Offered {
        let (entry, stage) = self.entries.get_mut(&job).expect("it is known");
        if let Stage::InWork { offered_unix_ms } = stage {
            *offered_unix_ms = Some(now_unix_ms);
        }
        let (before, stage) = (entry.priority, *stage);
        let priority = Priority { since_unix_ms: before.since_unix_ms, ..bounded(priority) };
        if priority == before && entry.not_before_unix_ms <= now_unix_ms {
            return Offered::Known;
        }
        let mut entry = self.take_out(job).expect("it is there");
        entry.priority = priority;
        entry.not_before_unix_ms = entry.not_before_unix_ms.min(now_unix_ms);
        let row = row::put(job, &entry);
        match stage {
            Stage::InWork { .. } => drop(self.entries.insert(job, (entry, stage))),
            _ => self.put_in(job, entry),
        }
        Offered::Changed(row)
    }

    /// The most urgent work whose time has come. It is in work until it
    /// [succeeded](Self::succeeded) or [failed](Self::failed).
    pub fn next(&mut self, now_unix_ms: u64) -> Option<(Job, Entry)> {
        // Nothing is put off for longer: the clock was set back.
        while let Some(&(time, job)) = self.waiting.last()
            && time > now_unix_ms.saturating_add(BACKOFF_MS_MAX)
        {
            let mut entry = self.take_out(job).expect("what waits is an entry");
            entry.not_before_unix_ms = now_unix_ms;
            self.put_in(job, entry);
        }
        self.see_what_is_ready(now_unix_ms);
        let (_, job) = self.ready.pop_first()?;
        let (entry, stage) = self.entries.get_mut(&job).expect("what is ready is an entry");
        *stage = Stage::InWork { offered_unix_ms: None };
        self.failing.remove(&as_failing(job, entry));
        Some((job, entry.clone()))
    }

    fn see_what_is_ready(&mut self, now_unix_ms: u64) {
        while let Some(&(time, job)) = self.waiting.first()
            && time <= now_unix_ms
        {
            self.waiting.remove(&(time, job));
            let (entry, stage) = self.entries.get_mut(&job).expect("what waits is an entry");
            *stage = Stage::Ready;
            self.ready.insert((entry.priority, job));
        }
    }

    /// When [`next`](Self::next) has something, in unix milliseconds: now or before if something
    /// is ready, never if nothing is waiting.
    pub fn next_at_unix_ms(&self) -> Option<u64> {
        if self.ready.is_empty() { self.waiting.first().map(|(time, _)| *time) } else { Some(0) }
    }

    /// The work is done and proved: write this row. `None` if it is here no more. If it was
    /// offered again while it was in work, it waits to be done once more.
    #[must_use]
    pub fn succeeded(&mut self, job: Job) -> Option<Row> {
        let Stage::InWork { offered_unix_ms: Some(since_unix_ms) } = self.entries.get(&job)?.1
        else {
            return self.remove(job);
        };
        let done = self.take_out(job).expect("it is there");
        let entry = Entry::new(Priority { since_unix_ms, ..done.priority });
        let row = row::put(job, &entry);
        self.put_in(job, entry);
        Some(row)
    }

    /// The work failed and is tried again later: write this row. `None` if it is here no
    /// more. If it was offered again while it was in work, it is tried again at once.
    #[must_use]
    pub fn failed(&mut self, job: Job, now_unix_ms: u64, why: &str) -> Option<Row> {
        self.put_off(job, now_unix_ms, why, BACKOFF_MS_MAX)
    }

    /// The same, when who refused it said for how many milliseconds: it waits no longer than that, however
    /// often it failed before, for nothing was wrong but the moment; and never less than
    /// [`BACKOFF_MS_MIN`].
    #[must_use]
    pub fn refused(&mut self, job: Job, now_unix_ms: u64, why: &str, told_ms: u64) -> Option<Row> {
        self.put_off(job, now_unix_ms, why, told_ms.max(BACKOFF_MS_MIN))
    }

    fn put_off(&mut self, job: Job, now_unix_ms: u64, why: &str, most_ms: u64) -> Option<Row> {
        let offered =
            matches!(self.entries.get(&job)?.1, Stage::InWork { offered_unix_ms: Some(_) });
        let mut entry = self.take_out(job)?;
        entry.attempts = entry.attempts.saturating_add(1);
        let wait = if offered { 0 } else { backoff_ms(job.chunk, entry.attempts).min(most_ms) };
        entry.not_before_unix_ms = now_unix_ms.saturating_add(wait);
        entry.last_error = row::error_text(why);
        let row = row::put(job, &entry);
        self.put_in(job, entry);
        Some(row)
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
        if entry.attempts >= DISPLACED_ATTEMPTS_MIN {
            self.failing.insert(as_failing(job, &entry));
        }
        self.entries.insert(job, (entry, Stage::Waiting));
    }

    fn take_out(&mut self, job: Job) -> Option<Entry> {
        let (entry, stage) = self.entries.remove(&job)?;
        let was_there = match stage {
            Stage::Waiting => self.waiting.remove(&(entry.not_before_unix_ms, job)),
            Stage::Ready => self.ready.remove(&(entry.priority, job)),
            Stage::InWork { .. } => true,
        };
        assert!(was_there, "an entry is where its stage says");
        self.failing.remove(&as_failing(job, &entry));
        Some(entry)
    }

    /// Takes it out for good.
    fn remove(&mut self, job: Job) -> Option<Row> {
        self.take_out(job)?;
        self.set_sole_holder(job, None);
        Some(row::delete(job))
    }

    fn set_sole_holder(&mut self, job: Job, node: Option<NodeId>) {
        let before = match node {
            Some(node) => self.sole_holders.insert(job, node),
            None => self.sole_holders.remove(&job),
        };
        if let Some(node) = node {
            *self.sole_counts.entry(node).or_default() += 1;
        }
        if let Some(before) = before {
            let count = self.sole_counts.get_mut(&before).expect("it was counted");
            *count -= 1;
            if *count == 0 {
                self.sole_counts.remove(&before);
            }
        }
    }
}

impl Entry {
    /// Of something that is to be done at once.
    fn new(priority: Priority) -> Self {
        let not_before_unix_ms = priority.since_unix_ms;
        Self { priority, attempts: 0, not_before_unix_ms, last_error: String::new() }
    }
}

/// Its place among those that fail: the last gives way first.
fn as_failing(job: Job, entry: &Entry) -> (i16, u32, Job) {
    let is_hopeless = entry.attempts >= HOPELESS_ATTEMPTS_MIN;
    (if is_hopeless { i16::MAX } else { entry.priority.margin }, entry.attempts, job)
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
