//! The one thread that writes: group commit.
//!
//! Owns the active segment and all writes to the index. Acknowledges a put or a removal only after
//! its record was synced and indexed. Never writes again to a segment whose sync failed: what the
//! kernel did with the pages is unknown, and asking again would be told a lie.
//!
//! ```text
//! puts, removals ─▶ queue ─▶ [ up to 8 MiB, or 2 ms ] ─▶ pwritev ─▶ fdatasync ─▶ index ─▶ answers
//! ```
//!
//! Between commits, when nobody waits, it does a step of the `upkeep`.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use copse_core::ids::ShardId;

use super::{
    FullReason, PutError, TrashOptions, Writes,
    books::{Books, Entered},
    file::{SegmentFile, Segments, is_full},
    health::{Health, count},
    index::{Entry, State},
    reader::Files,
    request::{Asked, Request, Run, Wanted, Work},
    segment::{HEAD_BYTES, Position, RecordHeader, RecordKey},
    upkeep::Upkeep,
};

/// Bytes of a commit, from which on no more puts are added to it. On the disks we measured the
/// price of one fdatasync is then a tenth of the writing.
pub(super) const COMMIT_BYTES_MAX: u64 = 8 << 20;

/// How long a commit waits for more puts, at most, when puts come many at a time. A lone put never
/// waits.
const COMMIT_WAIT: Duration = Duration::from_millis(2);

/// How long puts can keep the upkeep waiting: without it a full store would stay full.
const UPKEEP_STARVED: Duration = Duration::from_secs(1);

/// The segment that is appended to.
pub(super) struct Active {
    pub(super) file: SegmentFile,
    /// Where the next record goes.
    pub(super) end: u64,
    /// Up to where it is known to be on the disk.
    pub(super) durable: u64,
}

/// Bounds that the operator sets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) capacity_bytes: u64,
    pub(super) reserve_bytes: u64,
    pub(super) segment_bytes_max: u64,
}

/// The state of the writing thread.
pub(super) struct Writer {
    pub(super) segments: Segments,
    pub(super) key: RecordKey,
    pub(super) books: Books,
    /// What readers have open.
    pub(super) files: Arc<Files>,
    /// Our segments and their length.
    pub(super) sizes: BTreeMap<u32, u64>,
    pub(super) active: Option<Active>,
    pub(super) next_number: u32,
    pub(super) room: Room,
    pub(super) health: Arc<Health>,
    pub(super) trash: TrashOptions,
    pub(super) upkeep: Upkeep,
    /// Set when nothing is written any more.
    pub(super) refused: Option<Arc<io::Error>>,
    /// The last segment was given up and none was synced since.
    pub(super) doubtful: bool,
}

impl Writer {
    /// Serves the queue until all its senders are gone.
    pub(super) fn run(mut self, queue: &Receiver<Request>) {
        // Whether the last commit had company: then waiting for more pays.
        let mut crowded = false;
        loop {
            match queue.recv_timeout(self.upkeep.wait()) {
                Ok(first) => {
                    let deadline = Instant::now() + COMMIT_WAIT;
                    crowded = self.serve(first, || match queue.try_recv() {
                        Ok(request) => Some(request),
                        Err(TryRecvError::Empty) if crowded => {
                            let left = deadline.saturating_duration_since(Instant::now());
                            queue.recv_timeout(left).ok()
                        }
                        Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
                    });
                    self.do_late_upkeep();
                }
                Err(RecvTimeoutError::Timeout) => self.do_upkeep(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.close();
    }

    /// A step of the upkeep, if puts kept it waiting for too long.
    pub(super) fn do_late_upkeep(&mut self) {
        if self.upkeep.is_late(UPKEEP_STARVED) {
            self.do_upkeep();
        }
    }

    /// All that was asked is done.
    pub(super) fn close(mut self) {
        // With a failed disk the index may lack what was given out: the next start must know.
        let closed = if self.refused.is_none() { self.books.close() } else { Ok(()) };
        if let Err(error) = closed {
            // Harmless: the segments have it all.
            tracing::warn!(%error, "index not flushed on closing");
        }
    }

    /// Serves a request and those that come with it, as `more` has them. Says whether there were several
    /// writes.
    pub(super) fn serve(
        &mut self,
        first: Request,
        mut more: impl FnMut() -> Option<Request>,
    ) -> bool {
        let (mut writes, mut bytes) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(request) = next.take() {
            match request {
                Request::Write(asked) => {
                    bytes += asked.work.record_bytes();
                    writes.push(asked);
                }
                Request::Quarantine { id, entry, done } => {
                    self.quarantine(id, entry);
                    let _ = done.send(());
                }
                Request::Upkeep { steps_max, done } => {
                    self.commit(std::mem::take(&mut writes));
                    self.do_upkeep_now(steps_max);
                    let _ = done.send(());
                }
            }
            if bytes >= COMMIT_BYTES_MAX {
                break;
            }
            next = more();
        }
        let company = writes.len() > 1;
        self.commit(writes);
        company
    }

    /// Writes what is new of this, in the order it was asked, and answers all of it.
    fn commit(&mut self, writes: Vec<Asked>) {
        if writes.is_empty() {
            return;
        }
        let free_bytes = self.segments.free_bytes();
        let mut run = Run::default();
        for asked in writes {
            let id = asked.work.id();
            if let Some(wanted) = run.about(id) {
                if matches!(wanted.work, Work::Put(_)) == matches!(asked.work, Work::Put(_)) {
                    wanted.answers.push((asked.answer, asked.share));
                    continue;
                }
                // A put behind a removal, or the other way round: one after the other.
                self.write_run(std::mem::take(&mut run));
            }
            match self.admit(&asked.work, run.bytes, &free_bytes) {
                Ok(true) => {}
                Ok(false) => {
                    if matches!(asked.work, Work::Put(_)) {
                        count(&self.health.duplicates);
                    }
                    asked.answer.give(id, Ok(false));
                    continue;
                }
                Err(error) => {
                    asked.answer.give(id, Err(&error));
                    continue;
                }
            }
            let end = self.active.as_ref().map_or(HEAD_BYTES as u64, |active| active.end);
            if end + run.bytes + asked.work.record_bytes() > self.room.segment_bytes_max {
                self.write_run(std::mem::take(&mut run));
                // All of it is synced: a full segment is never touched again.
                self.active = None;
            }
            run.push(asked);
        }
        self.write_run(run);
    }

    /// Whether there is something to write, and room for it behind `planned` bytes.
    fn admit(&self, work: &Work, planned: u64, free: &io::Result<u64>) -> Result<bool, PutError> {
        let id = work.id();
        match self.books.get(id) {
            Ok(row) if work.is_done(row.as_ref()) => return Ok(false),
            Ok(_) => {}
            Err(error) => {
                count(&self.health.io_errors);
                tracing::error!(%id, %error, "index not readable");
                return Err(PutError::Io { id, source: Arc::new(error) });
            }
        }
        if let Some(source) = &self.refused {
            return Err(PutError::Refused { source: Arc::clone(source) });
        }
        // A removal is what makes room: only the file system can say no to it.
        if matches!(work, Work::Remove(..)) {
            return Ok(true);
        }
        let bytes = work.record_bytes() + HEAD_BYTES as u64;
        match self.lacks_room(planned + bytes, free) {
            Some(reason) => {
                self.health.refused_bytes.store(bytes, Relaxed);
                Err(self.full(reason))
            }
            None => Ok(true),
        }
    }

    /// Which bound so many more bytes would pass.
    pub(super) fn lacks_room(&self, bytes: u64, free: &io::Result<u64>) -> Option<FullReason> {
        // A file system that does not tell is not taken for a full one: writing will show.
        let free = free.as_ref().copied().unwrap_or(u64::MAX);
        let reserve = self.room.reserve_bytes;
        if self.health.used_bytes.load(Relaxed).saturating_add(bytes) > self.room.capacity_bytes {
            Some(FullReason::Capacity)
        } else if reserve > 0 && free < reserve.saturating_add(bytes) {
            Some(FullReason::Reserve)
        } else {
            None
        }
    }

    fn full(&self, reason: FullReason) -> PutError {
        let error = PutError::Full {
            reason,
            used_bytes: self.health.used_bytes.load(Relaxed),
            capacity_bytes: self.room.capacity_bytes,
            free_bytes: self.segments.free_bytes().unwrap_or(0),
        };
        if self.health.set_writes(Writes::Full(reason)) {
            tracing::warn!(%error, "new shards are refused; what is held is served");
        }
        error
    }

    /// Appends, syncs and indexes records that fit the active segment, then answers.
    fn write_run(&mut self, run: Run) {
        let mut run = run.wanted;
        if run.is_empty() {
            return;
        }
        let mut active = match self.take_active() {
            Ok(active) => active,
            Err(error) => return fail(run, |_| error.clone()),
        };
        let headers = self.headers(&active, &run);
        let appended = self.append(&active, &headers, &run);
        let ends: Vec<u64> =
            headers.iter().map(|(header, place)| place.offset + header.record_bytes()).collect();
        active.end = ends.last().copied().unwrap_or(active.end);
        if let Err((written, error)) = appended {
            count(&self.health.io_errors);
            let reached = active.durable + written;
            let kept = ends.iter().take_while(|&&end| end <= reached).count();
            let end = kept.checked_sub(1).map_or(active.durable, |last| ends[last]);
            let error = Arc::new(error);
            if !is_full(&error) || active.file.cut(end).is_err() {
                self.give_up(active, &error);
                return fail(run, |id| PutError::Io { id, source: Arc::clone(&error) });
            }
            active.end = end;
            let refused = run.split_off(kept);
            let first = refused.first().map_or(0, |wanted| wanted.work.record_bytes());
            self.health.refused_bytes.store(first, Relaxed);
            let full = self.full(FullReason::NoSpace);
            fail(refused, |_| full.clone());
            if run.is_empty() {
                self.active = Some(active);
                return;
            }
        } else if run.iter().any(|wanted| matches!(wanted.work, Work::Put(_))) {
            self.health.set_writes(Writes::Accepted);
        }
        let entered: Vec<_> = run
            .iter()
            .zip(headers)
            .map(|(wanted, (header, place))| Entered {
                header,
                place,
                geometry: wanted.work.geometry(),
                sound: true,
            })
            .collect();
        match self.finish(active, &entered) {
            Ok(()) => {
                let puts = run.iter().filter(|wanted| matches!(wanted.work, Work::Put(_))).count();
                self.health.puts.fetch_add(puts as u64, Relaxed);
                run.into_iter().for_each(|wanted| wanted.answer(Ok(())));
            }
            Err(NotFinished::Sync(error)) => {
                fail(run, |id| PutError::Io { id, source: Arc::clone(&error) });
            }
            // The records are safe and will be found at the next start; now they could not be
            // read, so they are not acknowledged.
            Err(NotFinished::Index(source)) => {
                fail(run, |_| PutError::Refused { source: Arc::clone(&source) });
            }
        }
    }

    /// Syncs what was appended to the active segment and enters it into the index.
    pub(super) fn finish(
        &mut self,
        mut active: Active,
        entered: &[Entered],
    ) -> Result<(), NotFinished> {
        count(&self.health.commits);
        if let Err(error) = active.file.sync() {
            count(&self.health.io_errors);
            self.books.abandon();
            let error = Arc::new(error);
            self.give_up(active, &error);
            return Err(NotFinished::Sync(error));
        }
        self.health.used_bytes.fetch_add(active.end - active.durable, Relaxed);
        active.durable = active.end;
        self.doubtful = false;
        let place = Position { segment: active.file.number, offset: active.end };
        self.sizes.insert(place.segment, place.offset);
        self.active = Some(active);
        let entered = entered.iter().try_for_each(|record| self.books.enter(record).map(drop));
        let indexed = entered.and_then(|()| {
            self.books.set_place(place);
            self.books.commit()
        });
        self.publish();
        indexed.map_err(|error| {
            self.books.abandon();
            NotFinished::Index(self.refuse(error))
        })
    }

    /// The headers of the run's records and where each record begins.
    fn headers(&self, active: &Active, run: &[Wanted]) -> Vec<(RecordHeader, Position)> {
        let now = self.trash.now();
        let mut offset = active.end;
        run.iter()
            .map(|wanted| {
                let place = Position { segment: active.file.number, offset };
                offset += wanted.work.record_bytes();
                (wanted.work.header(now, active.durable), place)
            })
            .collect()
    }

    /// Appends the records of a run, without copying them.
    fn append(
        &self,
        active: &Active,
        headers: &[(RecordHeader, Position)],
        run: &[Wanted],
    ) -> Result<(), (u64, io::Error)> {
        let encoded: Vec<_> =
            headers.iter().map(|(header, place)| header.encode(&self.key, *place)).collect();
        let mut slices = Vec::with_capacity(4 * run.len());
        for (header, wanted) in encoded.iter().zip(run) {
            slices.push(IoSlice::new(header));
            slices.extend(wanted.work.body().map(IoSlice::new));
        }
        active.file.append(active.end, &mut slices)
    }

    /// Tells the readers of the numbers how things are.
    pub(super) fn publish(&self) {
        self.health.set_tally(self.books.tally());
        let heads = (self.sizes.len() * HEAD_BYTES) as u64;
        let living: u64 = self.books.segments().values().map(|row| row.living_bytes).sum();
        let used = self.health.used_bytes.load(Relaxed);
        self.health.dead_bytes.store(used.saturating_sub(living + heads), Relaxed);
    }

    /// The segment to append to: the active one, or a new one.
    pub(super) fn take_active(&mut self) -> Result<Active, PutError> {
        if let Some(active) = self.active.take() {
            return Ok(active);
        }
        if let Some(source) = &self.refused {
            return Err(PutError::Refused { source: Arc::clone(source) });
        }
        match self.segments.create(self.next_number) {
            Ok(file) => {
                let end = HEAD_BYTES as u64;
                self.sizes.insert(self.next_number, end);
                self.next_number += 1;
                self.health.used_bytes.fetch_add(end, Relaxed);
                Ok(Active { file, end, durable: end })
            }
            Err(error) if is_full(&error) => Err(self.full(FullReason::NoSpace)),
            Err(error) => Err(PutError::Refused { source: self.refuse(error) }),
        }
    }

    /// Never writes to this segment again, and starts another. Twice without a success between
    /// them is the disk, not the segment.
    pub(super) fn give_up(&mut self, active: Active, error: &Arc<io::Error>) {
        let segment = active.file.number;
        tracing::error!(segment, %error, "segment given up: the disk failed under it");
        // So that nobody finds there what was not acknowledged. When that fails too, this is no
        // disk to write to: a removal that was answered with an error might count some day.
        let cut = active.file.cut(active.durable);
        if cut.is_err() {
            self.health.used_bytes.fetch_add(active.end - active.durable, Relaxed);
        }
        if self.doubtful || cut.is_err() {
            self.refuse(io::Error::new(error.kind(), Arc::clone(error)));
            return;
        }
        self.doubtful = true;
        // A full disk is no reason to refuse for good; `take_active` tries again.
        self.active = self.take_active().ok();
    }

    pub(super) fn refuse(&mut self, error: io::Error) -> Arc<io::Error> {
        tracing::error!(%error, "the store takes no more writes; what is held is served");
        self.health.set_writes(Writes::Refused);
        Arc::clone(self.refused.insert(Arc::new(error)))
    }

    /// Sets a shard apart, if it was not put again meanwhile.
    fn quarantine(&mut self, id: ShardId, found: Entry) {
        let result = self.books.get(id).and_then(|now| {
            let Some(now) = now.filter(|now| now.is_live() && now.place == found.place) else {
                return Ok(());
            };
            tracing::error!(%id, segment = found.place.segment, offset = found.place.offset,
                "shard damaged on disk: set apart");
            self.books.set(id, Some(Entry { state: State::Quarantined, ..now }))?;
            self.books.commit()
        });
        self.publish();
        if let Err(error) = result {
            self.books.abandon();
            count(&self.health.io_errors);
            tracing::error!(%id, %error, "damaged shard not set apart: the index failed");
        }
    }
}

/// Why appended records are not in the index.
pub(super) enum NotFinished {
    /// They could not be synced; the segment was given up.
    Sync(Arc<io::Error>),
    /// The index failed; nothing is written any more.
    Index(Arc<io::Error>),
}

fn fail(run: Vec<Wanted>, error: impl Fn(ShardId) -> PutError) {
    for wanted in run {
        let error = error(wanted.work.id());
        wanted.answer(Err(&error));
    }
}
