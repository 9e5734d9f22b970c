//! What is to be done: the queue of core with its rows in the ledger, and who is woken by it.
//!
//! Owns the rows, and which of them a failing disk did not take. Decides nothing: what is urgent and when
//! it is tried again is the queue's matter.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_core::{
    ids::NodeId,
    repair::{Entry, Job, Kind, Offered, Priority, Queue, Row},
    ring::Ring,
};
use copse_proto::door;
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

use super::{
    again::Again,
    arcs::{self, row_key},
    claims::blocking,
};
use crate::store::{LEDGER_CHANGES_MAX, Ledger, LedgerChange};

/// Where the queue's rows are in the ledger.
const QUEUE_PREFIX: &[u8] = b"rq";

/// Jobs named in a status.
const FAILING_MAX: usize = 16;

/// The queue and those who work on it. Clones are the same one.
#[derive(Clone)]
pub(super) struct Jobs(Arc<Inner>);

struct Inner {
    queue: Mutex<Queue>,
    ledger: Arc<dyn Ledger>,
    wake: Notify,
    /// Arcs of jobs that ended or lost their place: what they were planned for may be the case still
    /// or again, and no fingerprint would show it.
    again: Mutex<Again>,
    /// Arcs with jobs that are in the queue and perhaps not in the ledger, for it failed.
    unwritten: Mutex<BTreeSet<u16>>,
}

/// A job that a plan asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) job: Job,
    pub(super) priority: Priority,
    /// Who alone says to hold anything of the chunk, if it is one node and another than this.
    pub(super) sole_holder: Option<NodeId>,
}

impl Jobs {
    /// Loads the queue. Blocks on the ledger.
    pub(super) fn load(ledger: Arc<dyn Ledger>, now_unix_ms: u64) -> io::Result<Self> {
        let (mut queue, mut bad) = (Queue::new(), Vec::new());
        ledger.scan(QUEUE_PREFIX, &mut |key, value| {
            let loaded =
                queue.load(key.get(QUEUE_PREFIX.len()..).unwrap_or_default(), value, now_unix_ms);
            if let Err(error) = loaded {
                tracing::error!(%error, "a row of the repair queue is of no use");
                bad.push((key.to_vec(), None));
            }
            true
        })?;
        // Their chunks are found again by their arcs' fingerprints only if something changes there;
        // so all arcs are looked at again.
        if !bad.is_empty() {
            ledger.scan(arcs::ROW_PREFIX, &mut |key, _| {
                bad.push((key.to_vec(), None));
                true
            })?;
            bad.chunks(LEDGER_CHANGES_MAX).try_for_each(|part| ledger.apply(part.to_vec()))?;
        }
        Ok(Self(Arc::new(Inner {
            queue: Mutex::new(queue),
            ledger,
            wake: Notify::new(),
            again: Mutex::default(),
            unwritten: Mutex::default(),
        })))
    }

    /// Ready when [`wake`](Self::wake) was called after this.
    pub(super) fn woken(&self) -> Notified<'_> {
        self.0.wake.notified()
    }

    /// When the next job may be tried, in unix milliseconds; none: there is none.
    pub(super) fn next_at_unix_ms(&self) -> Option<u64> {
        self.lock().next_at_unix_ms()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in the jobs of an arc: the rows to [write](Self::write_down), and whether one found no place.
    pub(super) fn offer(
        &self,
        arc: u16,
        jobs: &[Wish],
        now_unix_ms: u64,
    ) -> (Vec<LedgerChange>, bool) {
        let unwritten = self.unwritten().contains(&arc);
        let mut queue = self.lock();
        let (mut rows, mut deferred) = (Vec::new(), false);
        let mut write = |row| rows.push(change(row));
        let mut displaced_arcs = BTreeSet::new();
        for &Wish { job, priority, sole_holder } in jobs {
            match queue.offer(job, priority, sole_holder, now_unix_ms) {
                Offered::Added(row) | Offered::Changed(row) => write(row),
                Offered::Known if unwritten => queue.row(job).into_iter().for_each(&mut write),
                Offered::Known => {}
                Offered::Instead { added, displaced, removed } => {
                    write(added);
                    write(removed);
                    displaced_arcs.insert(Ring::arc(&displaced.chunk));
                }
                Offered::Deferred => deferred = true,
            }
        }
        // What lost its place is found again by its arc. This arc's own row is written after these.
        deferred |= displaced_arcs.remove(&arc);
        let mut again = self.again();
        for arc in displaced_arcs {
            again.ask(arc);
            rows.push((row_key(arc), None));
        }
        (rows, deferred)
    }

    /// Writes the rows of an arc, in order. Blocks on the ledger. When that fails, the jobs stay in the
    /// queue, and the next offer of the arc gives all of their rows again: a later row must not say that
    /// they are written down when they are not.
    pub(super) fn write_down(&self, arc: u16, rows: &[LedgerChange]) -> io::Result<()> {
        let mut parts = rows.chunks(LEDGER_CHANGES_MAX);
        let written = parts.try_for_each(|part| self.0.ledger.apply(part.to_vec()));
        match written {
            Ok(()) => self.unwritten().remove(&arc),
            Err(_) => self.unwritten().insert(arc),
        };
        written
    }

    fn unwritten(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.0.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the workers that there may be something to do.
    pub(super) fn wake(&self) {
        self.0.wake.notify_waiters();
    }

    pub(super) fn next(&self, now_unix_ms: u64) -> Option<(Job, Entry)> {
        self.lock().next(now_unix_ms)
    }

    /// Strikes off a job that was done or had nothing to do, and has its arc planned once more: a node may
    /// prove a shard and then neither keep nor list it, or undo in a power cut what it did; and what had
    /// nothing to do was planned for a reason, which a moment's silence of a node may have hidden. The arc's
    /// row goes in the same step, so that a restart keeps to it.
    pub(super) async fn strike_off(&self, job: Job) {
        let arc = Ring::arc(&job.chunk);
        let row = self.lock().succeeded(job);
        let changes = row.map(change).into_iter();
        self.apply(changes.chain([(row_key(arc), None)]).collect()).await;
        self.again().ask(arc);
    }

    fn again(&self) -> MutexGuard<'_, Again> {
        self.0.again.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on everybody is asked what changed.
    pub(super) fn begin_round(&self) {
        self.again().begin_round();
    }

    /// The arcs to plan again, once.
    pub(super) fn take_again(&self) -> BTreeSet<u16> {
        self.again().take(Instant::now())
    }

    /// It failed, and is tried again: after the time that was `told` by who refused it, if that is sooner.
    pub(super) async fn put_off(
        &self,
        job: Job,
        now_unix_ms: u64,
        why: &str,
        told: Option<Duration>,
    ) {
        let told_ms = told.map(|told| u64::try_from(told.as_millis()).unwrap_or(u64::MAX));
        let row = match told_ms {
            Some(told_ms) => self.lock().refused(job, now_unix_ms, why, told_ms),
            None => self.lock().failed(job, now_unix_ms, why),
        };
        self.write(row).await;
    }

    async fn write(&self, row: Option<Row>) {
        if let Some(row) = row {
            self.apply(vec![change(row)]).await;
        }
    }

    async fn apply(&self, changes: Vec<LedgerChange>) {
        let ledger = Arc::clone(&self.0.ledger);
        if let Err(refusal) = blocking(move || ledger.apply(changes)).await {
            // It is done or tried again after a restart, which is harmless.
            tracing::error!(%refusal, "the repair queue cannot be written");
        }
    }

    /// What the queue says of itself.
    pub(super) fn tell(&self, info: &mut door::RepairInfo, now_unix_ms: u64) {
        let queue = self.lock();
        info.queue = queue
            .counts_by_margin()
            .into_iter()
            .map(|(margin, count)| door::MarginCount { margin: margin.into(), count: count as u64 })
            .collect();
        info.oldest_seconds = queue.oldest_age_ms(now_unix_ms).unwrap_or(0) / 1000;
        info.deferred = queue.deferred();
        let mut failing: Vec<_> = queue.iter().filter(|(_, entry)| entry.attempts > 0).collect();
        failing.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.attempts));
        failing.truncate(FAILING_MAX);
        let job = |(job, entry): (Job, &Entry)| door::RepairJob {
            chunk_id: job.chunk.as_bytes().to_vec(),
            kind: kind_name(job.kind).to_owned(),
            attempts: entry.attempts,
            age_seconds: now_unix_ms.saturating_sub(entry.priority.since_unix_ms) / 1000,
            last_error: entry.last_error.clone(),
        };
        info.failing = failing.into_iter().map(job).collect();
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
}

/// A row of the queue as a change of the ledger.
fn change(row: Row) -> LedgerChange {
    let at = |key: Vec<u8>| [QUEUE_PREFIX, &key].concat();
    match row {
        Row::Put { key, value } => (at(key), Some(value)),
        Row::Delete { key } => (at(key), None),
    }
}

pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Rebuild => "rebuild",
        Kind::Copy => "copy",
        Kind::Drop => "drop",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use copse_core::{
        ids::ChunkId,
        repair::{DISPLACED_ATTEMPTS_MIN, QUEUE_ENTRIES_MAX},
    };

    use super::*;
    use crate::{
        repair::testing::Failing,
        store::{MemoryStore, ShardStore as _},
    };

    #[test]
    fn jobs_that_the_disk_did_not_take_are_written_with_the_next_plan() {
        let ledger = Failing::new();
        let jobs = Jobs::load(Arc::clone(&ledger) as Arc<dyn Ledger>, 0).expect("empty");
        let job = Job { chunk: ChunkId::new([7; 32]), kind: Kind::Rebuild };
        let priority = Priority { margin: 1, zone_spare: 0, since_unix_ms: 0 };
        let wish = Wish { job, priority, sole_holder: None };
        let arc = Ring::arc(&job.chunk);
        ledger.fails.store(true, Ordering::Relaxed);
        let (rows, _) = jobs.offer(arc, &[wish], 1);
        assert_eq!(rows.len(), 1);
        jobs.write_down(arc, &rows).expect_err("the disk fails");

        ledger.fails.store(false, Ordering::Relaxed);
        let (rows, _) = jobs.offer(arc, &[wish], 2);
        jobs.write_down(arc, &rows).expect("the disk is well");
        let after_restart =
            Jobs::load(Arc::clone(&ledger) as Arc<dyn Ledger>, 3).expect("readable");
        assert_eq!(after_restart.len(), 1, "the job is there after a restart");
        let (rows, _) = jobs.offer(arc, &[wish], 4);
        assert!(rows.is_empty(), "and is not written at each round");
    }

    #[tokio::test]
    async fn an_arc_is_looked_at_once_more_when_its_job_is_done() {
        let ledger = MemoryStore::new(0).ledger();
        let jobs = Jobs::load(Arc::clone(&ledger), 0).expect("empty");
        let job = Job { chunk: ChunkId::new([7; 32]), kind: Kind::Rebuild };
        let priority = Priority { margin: 1, zone_spare: 0, since_unix_ms: 0 };
        let arc = Ring::arc(&job.chunk);
        let (rows, _) = jobs.offer(arc, &[Wish { job, priority, sole_holder: None }], 1);
        jobs.write_down(arc, &rows).expect("a ledger");
        assert!(jobs.next(2).is_some());
        ledger.apply(vec![(row_key(arc), Some(vec![1]))]).expect("a ledger");
        jobs.strike_off(job).await;
        assert_eq!(jobs.len(), 0);
        assert_eq!(ledger.get(&row_key(arc)).expect("a ledger"), None, "after a restart, too");
        jobs.begin_round();
        assert_eq!(jobs.take_again(), BTreeSet::from([arc]));
        jobs.begin_round();
        assert!(jobs.take_again().is_empty());
    }

    #[test]
    fn an_arc_whose_job_lost_its_place_is_looked_at_again() {
        let ledger = MemoryStore::new(0).ledger();
        let jobs = Jobs::load(Arc::clone(&ledger), 0).expect("empty");
        let priority = Priority { margin: 0, zone_spare: 0, since_unix_ms: 0 };
        let wish = |number: u32| {
            let chunk = ChunkId::new(*blake3::hash(&number.to_le_bytes()).as_bytes());
            Wish { job: Job { chunk, kind: Kind::Rebuild }, priority, sole_holder: None }
        };
        let full = u32::try_from(QUEUE_ENTRIES_MAX).expect("small");
        let all: Vec<Wish> = (0..full).map(wish).collect();
        let (_, deferred) = jobs.offer(0, &all, 1);
        assert!(!deferred && jobs.len() == QUEUE_ENTRIES_MAX);
        for _ in 0..DISPLACED_ATTEMPTS_MIN {
            assert!(jobs.lock().failed(all[3].job, 1, "not held").is_some());
        }
        let (gone, new) = (Ring::arc(&all[3].job.chunk), wish(full));
        ledger.apply(vec![(row_key(gone), Some(vec![1]))]).expect("a ledger");
        let arc = Ring::arc(&new.job.chunk);
        let (rows, deferred) = jobs.offer(arc, &[new], 2);
        jobs.write_down(arc, &rows).expect("a ledger");
        assert!(!deferred && jobs.len() == QUEUE_ENTRIES_MAX);
        assert_eq!(ledger.get(&row_key(gone)).expect("a ledger"), None, "after a restart, too");
        jobs.begin_round();
        assert_eq!(jobs.take_again(), BTreeSet::from([gone]));
    }
}
