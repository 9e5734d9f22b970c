//! The store on a disk: ties marker, segments, index, reader and writer together.
//!
//! Owns opening, closing, and the bounds on what is under way. Serves no byte that was not verified
//! against the chunk's id, also on its own disk: what fails is set apart and counted, and can be put
//! again.
//!
//! ```text
//! DIR/COPSE-STORE            marker: whose store this is; locked while open
//! DIR/segments/00000001.seg  records, append only
//! DIR/index/                 where each shard lies; can be built again
//! DIR/ballast                room for the index, to be given up on a full disk
//! ```

use std::{
    fs::{self, File},
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use copse_core::{
    ids::{ChunkId, NodeId, ShardId, ShardIndex},
    units::ByteSize,
};
use rustix::{fs::FlockOperation, io::Errno};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    ArcChanges, FullReason, HeldShard, Ledger, PutError, ReadError, RemovalReason, RemoveError,
    Removed, ShardRead, ShardStore, StoreRevision, StoreStats, Stored, TrashOptions, VerifiedShard,
    Want, Writes, ballast,
    books::Books,
    device::Device,
    directory::{Directory, sync_directory},
    doubts::{Doubts, Ended},
    driver::{Driver, Waits},
    file::{Faults, Segments, is_full},
    health::{Health, count},
    index::{Entry, Index},
    marker::{MARKER_FILE, Marker, MarkerError},
    reader::{Files, Outcome, Shared},
    recover::{self, RecoverError, Recovered, Recovery},
    request::{Answer, Asked, Request, Work, record_bytes},
    segment::{HEAD_BYTES, RECORD_BYTES_MAX, RecordKey, SEGMENT_BYTES_MAX, StoreId},
    upkeep::Upkeep,
    writer::{Room, Writer},
};

/// Free space of the file system that is left alone, in bytes: on a full disk the index must still
/// be able to compact itself, and the node to write its settings and logs.
pub const FREE_RESERVE_BYTES: u64 = 512 << 20;

/// Puts waiting to be written, at most: more callers wait before they enter the queue.
const QUEUE_PUTS_MAX: usize = 1024;
/// Their bytes, at most, in KiB: four commits, so that the disk never waits for the network.
const QUEUE_KIB_MAX: u32 = 32 << 10;
/// Reads under way, at most. Each holds a thread and at most one shard of 8 MiB.
const READS_MAX: usize = 16;
/// What the upkeep reads and writes in a second, in bytes, unless set otherwise: a tenth of what a
/// slow disk does, so that a store of 1 TB of which half was removed is compact again in a day.
pub const COMPACTION_BYTES_PER_SECOND: u64 = 16 << 20;

/// A store with less capacity says that it takes shards again when there is room for the one that it
/// refused; a larger one, when there is room for any: so it does not say so in vain.
const SMALL_BYTES: u64 = 8 << 30;

/// How long opening waits for another process to let go of the store.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// How long the file system may take to say how much is free.
const FREE_TIME_MAX: Duration = Duration::from_secs(5);

const SEGMENTS_DIR: &str = "segments";
const INDEX_DIR: &str = "index";

/// How much of the disk the store may use.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// Bytes of segment files, at most. The index is not counted: about 75 bytes a shard.
    pub capacity_bytes: u64,
    /// Free bytes to leave on the file system; [`FREE_RESERVE_BYTES`] unless there is a reason. With
    /// 0 only the file system says when it is full.
    pub reserve_bytes: u64,
    /// How long removed shards are kept, and what time it is.
    pub trash: TrashOptions,
    /// What the upkeep may read and write in a second, in bytes; with 0 nothing is compacted, and
    /// nothing leaves the trash, but by [`DiskStore::compact`].
    pub compaction_bytes_per_second: u64,
    /// Bytes of one segment file, at most; smaller in tests.
    pub(super) segment_bytes_max: u64,
    pub(super) faults: Faults,
}

impl DiskOptions {
    /// This capacity, and the usual reserve.
    pub fn new(capacity_bytes: u64) -> Self {
        Self {
            capacity_bytes,
            reserve_bytes: FREE_RESERVE_BYTES,
            trash: TrashOptions::system(),
            compaction_bytes_per_second: COMPACTION_BYTES_PER_SECOND,
            segment_bytes_max: SEGMENT_BYTES_MAX,
            faults: Faults::none(),
        }
    }
}

/// Why a store was not made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already, or something else.
    #[error("{dir} is not empty; a store is made in an empty or new directory")]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// The disk failed.
    #[error("a store could not be made in {dir}: {source}")]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no sound marker.
    #[error("{dir} is not a store: {source}")]
    NotAStore {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with the marker.
        #[source]
        source: MarkerError,
    },
    /// It belongs to another node.
    #[error("{dir} is the store of node {owner}, not of {node}; check which disk is mounted there")]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        owner: NodeId,
        /// Who asked.
        node: NodeId,
    },
    /// Another process has it.
    #[error("{dir} is in use by another process; is the node running already?")]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The segments could not be read.
    #[error("{dir} could not be opened: {source}")]
    Recover {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: RecoverError,
    },
    /// There is no room for what opening writes.
    #[error(
        "{dir} could not be opened: its disk is full ({source}); make room, then start the node again"
    )]
    NoSpace {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The disk failed.
    #[error("{dir} could not be opened: {what}: {source}")]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What was done.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Shards in segment files on a disk, found by an index.
pub struct DiskStore {
    shared: Arc<Shared>,
    ledger: Arc<dyn Ledger>,
    device: Arc<dyn Device>,
    capacity_bytes: u64,
    reserve_bytes: u64,
    recovery: Recovery,
    /// Locked until the store is dropped.
    _marker: Option<File>,
    driver: Driver,
    puts: Arc<Semaphore>,
    put_kib: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

/// What a store is made of when its segments were read.
pub(super) struct Parts {
    pub(super) segments: Segments,
    pub(super) recovered: Recovered,
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) doubts: Arc<Doubts>,
    /// The locked marker, if there is one.
    pub(super) marker: Option<File>,
}

impl DiskStore {
    /// Makes an empty store for a node. `store` must be random.
    ///
    /// # Errors
    /// When the directory has something in it, or the disk fails.
    pub fn init(dir: &Path, node: NodeId, store: StoreId) -> Result<(), InitError> {
        let failed = |source| InitError::Io { dir: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        if fs::read_dir(dir).map_err(failed)?.next().is_some() {
            return Err(InitError::NotEmpty { dir: dir.to_owned() });
        }
        fs::create_dir(dir.join(SEGMENTS_DIR)).map_err(failed)?;
        Marker { store, node }.create(dir).map_err(failed)?;
        dir.parent().map_or(Ok(()), sync_directory).map_err(failed)
    }

    /// Opens the store of a node: reads what the index does not know yet, cuts an unfinished write,
    /// starts the writer. Blocks, and for long when the index must be built again: not to be called
    /// on the runtime.
    ///
    /// # Errors
    /// When the directory is not this node's store, is in use, or the disk fails.
    pub fn open(dir: &Path, node: NodeId, options: &DiskOptions) -> Result<Self, OpenError> {
        let io = |what| move |source| OpenError::Io { dir: dir.to_owned(), what, source };
        let (marker, lock) = Marker::open(dir)
            .map_err(|source| OpenError::NotAStore { dir: dir.to_owned(), source })?;
        if marker.node != node {
            return Err(OpenError::OtherNode { dir: dir.to_owned(), owner: marker.node, node });
        }
        lock_marker(&lock, dir)?;
        let segments = Segments {
            device: Arc::new(Directory::new(dir.join(SEGMENTS_DIR))),
            store: marker.store,
            faults: options.faults.clone(),
        };
        let mut epoch = [0; 8];
        getrandom::fill(&mut epoch).map_err(io::Error::from).map_err(io("a random number"))?;
        let open = || open_books(&segments, dir, u64::from_le_bytes(epoch), options);
        let open = || match open() {
            Err(error) if error.is_damage() => {
                move_index_aside(dir, &error).map_err(io("the damaged index"))?;
                open()
            }
            opened => opened,
        };
        let (recovered, ledger) = match open() {
            Err(error @ OpenError::NoSpace { .. }) if ballast::give_up(dir) => {
                tracing::warn!(%error, "room that was kept for this is used now: make more");
                open()?
            }
            opened => {
                let opened = opened?;
                ballast::keep(dir, options.capacity_bytes);
                opened
            }
        };
        if let Ok(free) = segments.device.free_bytes()
            && free < options.reserve_bytes
        {
            let (free, reserve) = (ByteSize(free), ByteSize(options.reserve_bytes));
            tracing::warn!(
                %free, %reserve,
                "less is free on the disk than it shall keep (store.reserve): no shard is taken until there is more"
            );
        }
        let tally = recovered.books.tally();
        tracing::info!(?dir, recovery = ?recovered.report, ?tally, "store open");
        let (doubts, marker) = (Arc::default(), Some(lock));
        let parts = Parts { segments, recovered, ledger, doubts, marker };
        Self::begin(parts, options, Driver::thread).map_err(io("the writing thread"))
    }

    /// Serves from now on. `drive` has the writer work, with a queue of so many requests.
    pub(super) fn begin(
        parts: Parts,
        options: &DiskOptions,
        drive: impl FnOnce(Writer, usize) -> io::Result<Driver>,
    ) -> io::Result<Self> {
        let Parts { segments, recovered, ledger, doubts, marker } = parts;
        let key = RecordKey::new(segments.store);
        let shared = Arc::new(Shared {
            files: Arc::new(Files::new(Arc::clone(&segments.device))),
            key: key.clone(),
            index: Arc::clone(recovered.books.index()),
            arcs: Arc::clone(recovered.books.arcs()),
            health: Arc::new(Health::new(recovered.books.tally(), recovered.used_bytes)),
            doubts,
        });
        let device = Arc::clone(&segments.device);
        let writer = Writer {
            segments,
            key,
            books: recovered.books,
            files: Arc::clone(&shared.files),
            sizes: recovered.sizes,
            active: recovered.active,
            next_number: recovered.next_number,
            room: Room {
                capacity_bytes: options.capacity_bytes,
                reserve_bytes: options.reserve_bytes,
                segment_bytes_max: options.segment_bytes_max,
            },
            health: Arc::clone(&shared.health),
            trash: options.trash.clone(),
            upkeep: Upkeep::new(options.compaction_bytes_per_second),
            refused: None,
            doubtful: false,
        };
        writer.publish();
        Ok(Self {
            shared,
            ledger,
            device,
            capacity_bytes: options.capacity_bytes,
            reserve_bytes: options.reserve_bytes,
            recovery: recovered.report,
            _marker: marker,
            // One slot more than permits: a sender never waits on the queue itself.
            driver: drive(writer, QUEUE_PUTS_MAX + 1)?,
            puts: Arc::new(Semaphore::new(QUEUE_PUTS_MAX)),
            put_kib: Arc::new(Semaphore::new(QUEUE_KIB_MAX as usize)),
            reads: Arc::new(Semaphore::new(READS_MAX)),
        })
    }

    /// What opening found.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Whether new shards were taken the last time that it mattered.
    pub(super) fn writes(&self) -> Writes {
        self.shared.health.writes()
    }

    /// Hands a request to the writer. The caller holds a permit of `puts`, so there is a slot.
    fn send(&self, request: Request) -> Option<()> {
        self.driver.send(request)
    }

    /// Why the writer does not answer: it has ended with the store, or before it.
    fn unwritten(&self) -> PutError {
        match self.shared.health.writes() {
            Writes::Refused => {
                let source =
                    Arc::new(io::Error::other("the writing thread ended by a fault of its own"));
                PutError::Refused { source }
            }
            _ => PutError::Closed,
        }
    }

    /// Does now all upkeep that is due: trash whose time is over, segments that are worth it. Puts
    /// wait until it is done. Not needed for anything to go well: it is done in the background.
    pub async fn compact(&self) {
        self.compact_steps(usize::MAX).await;
    }

    /// The same, but not more than so many steps.
    pub(super) async fn compact_steps(&self, steps_max: usize) {
        let Ok(_slot) = self.puts.acquire().await else { return };
        let (done, wait) = oneshot::channel();
        if self.send(Request::Upkeep { steps_max, done }).is_some() {
            let _ = wait.await;
        }
    }

    /// Checks that all books agree with the rows.
    #[cfg(test)]
    pub(super) async fn audit(&self) {
        let tally = self.shared.health.tally();
        self.blocking(move |shared| Books::audit(&*shared.index, &shared.arcs(), tally))
            .await
            .expect("an open store");
    }

    /// The rows as they are.
    #[cfg(test)]
    pub(super) async fn rows(&self) -> std::collections::BTreeMap<ShardId, Entry> {
        let rows = self.blocking(|shared| {
            let mut rows = std::collections::BTreeMap::new();
            let scanned = shared.index.scan(Bound::Unbounded, &mut |id, entry| {
                rows.insert(id, entry);
                true
            });
            scanned.map(|()| rows)
        });
        rows.await.expect("an open store").expect("the rows")
    }

    /// A place in the queue of the writer.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.puts).acquire_owned().await.ok()
    }

    /// Looks at a shard on the disk; damage is set apart.
    async fn look<T: Send + 'static>(
        &self,
        id: ShardId,
        work: impl FnOnce(&Shared) -> Result<Outcome<T>, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        // Before its turn: behind reads that hang it hangs as well.
        let look = self.shared.doubts.look(id);
        self.driver.wait(Waits::Read).await;
        let (outcome, lost) = self
            .blocking(move |shared| {
                let outcome = work(shared);
                let lost = look.end(match &outcome {
                    Ok(_) => Ended::Read,
                    Err(ReadError::Io { .. }) => Ended::Failed,
                    Err(_) => Ended::Neither,
                });
                (outcome, lost)
            })
            .await?;
        match outcome {
            Ok(Outcome::Sound(found)) => Ok(found),
            Ok(Outcome::Damaged(entry)) => {
                self.quarantine(id, entry).await;
                Err(ReadError::Corrupt { id })
            }
            Err(error) if lost => {
                self.set_lost_apart(id, &error).await;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Sets a shard apart that could not be read for long.
    async fn set_lost_apart(&self, id: ShardId, error: &ReadError) {
        tracing::error!(%id, %error, "shard not readable for an hour while others are: set apart");
        if let Ok(Ok(entry)) = self.blocking(move |shared| shared.live(id)).await {
            self.quarantine(id, entry).await;
        }
        let now = self.blocking(move |shared| shared.live(id)).await;
        let done = matches!(now, Ok(Err(ReadError::Corrupt { .. } | ReadError::NotHeld { .. })));
        self.shared.doubts.set_apart(id, done);
    }

    async fn quarantine(&self, id: ShardId, entry: Entry) {
        count(&self.shared.health.corrupt);
        let Ok(_slot) = self.puts.acquire().await else { return };
        let (done, wait) = oneshot::channel();
        if self.send(Request::Quarantine { id, entry, done }).is_some() {
            let _ = wait.await;
        }
    }

    /// Runs a look into index or segments on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let permit = Arc::clone(&self.reads).acquire_owned().await;
        let permit = permit.map_err(|_| ReadError::Closed)?;
        let shared = Arc::clone(&self.shared);
        let done = self.driver.look(move || {
            let result = work(&shared);
            drop(permit);
            result
        });
        // The task is never cancelled; a panic in it is a bug that the caller need not share.
        done.await.map_err(|error| self.shared.failed(io::Error::other(error)))
    }
}

/// Keeps other processes out. Waits a little: one that is just ending, or is being started by
/// this one and has not shed its files yet, still holds the lock.
fn lock_marker(marker: &File, dir: &Path) -> Result<(), OpenError> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(marker, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_WAIT / 50);
            }
            Err(Errno::WOULDBLOCK) => return Err(OpenError::InUse { dir: dir.to_owned() }),
            Err(error) => {
                let (what, source) = (MARKER_FILE, error.into());
                return Err(OpenError::Io { dir: dir.to_owned(), what, source });
            }
        }
    }
}

/// The index, and what it lacks of the segments.
fn open_books(
    segments: &Segments,
    dir: &Path,
    epoch: u64,
    options: &DiskOptions,
) -> Result<(Recovered, Arc<dyn Ledger>), OpenError> {
    let io = |source| OpenError::of_index(dir, source);
    let (index, ledger) = open_index(&dir.join(INDEX_DIR), segments.store).map_err(io)?;
    let books = Books::open(index, epoch).map_err(io)?;
    let recovered = recover::recover(segments, books, options.segment_bytes_max).map_err(
        |source| match source {
            RecoverError::Io { source, .. } if is_full(&source) => OpenError::of_index(dir, source),
            source => OpenError::Recover { dir: dir.to_owned(), source },
        },
    )?;
    Ok((recovered, ledger))
}

impl OpenError {
    fn of_index(dir: &Path, source: io::Error) -> Self {
        let dir = dir.to_owned();
        if is_full(&source) {
            return Self::NoSpace { dir, source };
        }
        Self::Io { dir, what: "the index", source }
    }

    /// Whether the index is damaged: it can be built again from the segments.
    fn is_damage(&self) -> bool {
        match self {
            Self::Io { source, .. }
            | Self::Recover { source: RecoverError::Io { source, .. }, .. } => {
                source.kind() == io::ErrorKind::InvalidData
            }
            _ => false,
        }
    }
}

/// Keeps an index of no use for whoever wants to know why; only one, so that it cannot fill the disk.
fn move_index_aside(dir: &Path, reason: &OpenError) -> io::Result<()> {
    let path = dir.join(INDEX_DIR);
    let aside = path.with_extension("damaged");
    tracing::error!(%reason, ?aside, "index unusable: moved aside and built again");
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::rename(path, &aside)?,
    }
    Ok(())
}

#[cfg(feature = "rocksdb")]
fn open_index(path: &Path, store: StoreId) -> io::Result<(Arc<dyn Index>, Arc<dyn Ledger>)> {
    let index = Arc::new(super::rocks::RocksIndex::open(path, store)?);
    Ok((Arc::clone(&index) as Arc<dyn Index>, index as Arc<dyn Ledger>))
}

#[cfg(not(feature = "rocksdb"))]
#[allow(clippy::unnecessary_wraps)]
fn open_index(_path: &Path, _store: StoreId) -> io::Result<(Arc<dyn Index>, Arc<dyn Ledger>)> {
    let ledger = super::ledger::MemoryLedger::default();
    Ok((Arc::new(super::index_memory::MemoryIndex::default()), Arc::new(ledger)))
}

#[async_trait]
impl ShardStore for DiskStore {
    async fn put(&self, shard: VerifiedShard) -> Result<Stored, PutError> {
        // Whole KiB, and never more than there are: one shard is far smaller than the queue.
        let kib = u32::try_from(record_bytes(&shard).div_ceil(1024)).unwrap_or(QUEUE_KIB_MAX);
        let slot = self.slot().await.ok_or(PutError::Closed)?;
        let room = Arc::clone(&self.put_kib).acquire_many_owned(kib.min(QUEUE_KIB_MAX)).await;
        let share = vec![slot, room.map_err(|_| PutError::Closed)?];
        let (answer, wait) = oneshot::channel();
        let asked = Asked { work: Work::Put(shard), answer: Answer::Put(answer), share };
        self.send(Request::Write(asked)).ok_or_else(|| self.unwritten())?;
        let stored = wait.await.unwrap_or_else(|_| Err(self.unwritten()));
        if matches!(stored, Ok(Stored::New)) {
            self.driver.wait(Waits::Sync).await;
        }
        stored
    }

    async fn read(&self, id: ShardId, want: Want) -> Result<ShardRead, ReadError> {
        self.look(id, move |shared| shared.read(id, &want)).await
    }

    async fn check(&self, id: ShardId) -> Result<u64, ReadError> {
        self.look(id, move |shared| shared.check(id)).await
    }

    async fn remove(&self, id: ShardId, reason: RemovalReason) -> Result<Removed, RemoveError> {
        let slot = self.slot().await.ok_or(RemoveError::Closed)?;
        let (answer, wait) = oneshot::channel();
        let asked = Asked {
            work: Work::Remove(id, reason),
            answer: Answer::Remove(answer),
            share: vec![slot],
        };
        let ended = || RemoveError::of(id, &self.unwritten());
        self.send(Request::Write(asked)).ok_or_else(ended)?;
        let removed = wait.await.unwrap_or_else(|_| Err(ended()));
        if matches!(removed, Ok(Removed::Removed)) {
            self.driver.wait(Waits::Sync).await;
        }
        removed
    }

    async fn held(&self, chunk: ChunkId) -> Result<Vec<ShardIndex>, ReadError> {
        let first = Bound::Included(ShardId { chunk, index: ShardIndex(0) });
        self.blocking(move |shared| {
            shared.list(first, usize::MAX, |id| id.chunk == chunk, |id, _| Some(id.index))
        })
        .await?
    }

    async fn list(&self, after: Option<ShardId>, limit: usize) -> Result<Vec<ShardId>, ReadError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.blocking(move |shared| shared.list(from, limit, |_| true, |id, _| Some(id))).await?
    }

    async fn arc_changes(&self, since: Option<StoreRevision>) -> Result<ArcChanges, ReadError> {
        // In memory: a comparison when nothing changed, else a look at 64 Ki numbers.
        if self.reads.is_closed() {
            return Err(ReadError::Closed);
        }
        Ok(self.shared.arcs().changes(since))
    }

    async fn list_arc(
        &self,
        arc: u16,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Vec<HeldShard>, ReadError> {
        self.blocking(move |shared| shared.list_arc(arc, after, limit)).await?
    }

    fn doubts(&self) -> &Arc<Doubts> {
        &self.shared.doubts
    }

    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::clone(&self.ledger)
    }

    async fn stats(&self) -> StoreStats {
        let device = Arc::clone(&self.device);
        // Of a disk that hangs the numbers in memory are told all the same: it takes nothing now.
        let free = self.blocking(move |_| device.free_bytes());
        let free = tokio::time::timeout(FREE_TIME_MAX, free).await;
        let free = free.ok().and_then(Result::ok).and_then(Result::ok).unwrap_or(0);
        let mut stats = self.shared.health.stats(self.capacity_bytes, free);
        // Who is full is given nothing, so no write would show that there is room again.
        let left = self.capacity_bytes.saturating_sub(stats.used_bytes);
        // A small store cannot spare as much as any record may take.
        let wanted = match self.capacity_bytes {
            ..SMALL_BYTES => self.shared.health.refused_bytes.load(Relaxed).max(HEAD_BYTES as u64),
            _ => RECORD_BYTES_MAX,
        };
        let has_room = left >= wanted && free >= self.reserve_bytes.saturating_add(wanted);
        stats.writes = match stats.writes {
            Writes::Accepted if free < self.reserve_bytes => Writes::Full(FullReason::Reserve),
            Writes::Full(_) if has_room => Writes::Accepted,
            writes => writes,
        };
        stats
    }

    async fn close(&self) {
        self.puts.close();
        self.put_kib.close();
        self.driver.close().await;
        self.reads.close();
    }
}
