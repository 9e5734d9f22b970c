//! Getting a tree back: the walk, the files at once, and what is written where.
//!
//! Owns how many files are under way and the order that makes a restore resumable. What cannot be
//! read, or cannot be written where the rest can, is noted and left out; then the destination does not
//! appear, and what is there waits beside it for the next try, unless a part is wanted, too.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::Ordering},
};

use copse_core::{
    tree::{Entry, Kind, Meta},
    units::ByteSize,
};
use futures::{StreamExt as _, stream::BoxStream};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
};

use super::{Counters, Failures, Kinds};
use crate::{
    content::{Block, FileReader},
    error::{GetError, ReadError},
    local::{Metadata, Restore, RestoreError, RestoredFile},
    lock::lock,
    tree_read::TreeReader,
};

/// Files under way at once, at most. A file over [`LARGE_BYTES`] counts for all of them: it is read
/// ahead by itself.
const FILES_MAX: u32 = 16;

/// A file of more than this is restored alone, in bytes.
const LARGE_BYTES: u64 = 4 << 20;

/// The entries of a directory, as they are read.
type Entries = BoxStream<'static, Result<Entry, ReadError>>;

/// What came back.
#[derive(Debug)]
pub struct GetOutcome {
    /// Entries made, or there already from an interrupted try, by what they are.
    pub kinds: Kinds,
    /// Bytes of content in them.
    pub bytes: u64,
    /// Whether it went on from an interrupted try.
    pub resumed: bool,
    /// What could not be read or written.
    pub failures: Failures,
    /// Whether any of these was for want of shards.
    pub data_loss: bool,
    /// How many of these the destination cannot hold: trying again there does not help.
    pub unwritable: u64,
    /// How many of these may be read when more nodes answer.
    pub may_pass: u64,
    /// Entries that were restored without their mode or time: the file system takes none.
    pub unkept: u64,
    /// Whether the destination was made.
    pub made: bool,
    /// Where what could be restored waits for the next try; none when it is at the destination, or when
    /// that is nothing.
    pub waiting: Option<PathBuf>,
}

/// What of, and where to.
#[derive(Debug, Clone)]
pub struct GetOptions {
    /// What is made.
    pub destination: PathBuf,
    /// What the tree is: an interrupted try of the same source is gone on with.
    pub source: String,
    /// Make the destination even if a part of the tree could not be restored, when any could.
    pub partial: bool,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum GetTreeError {
    /// The tree cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The destination cannot be written.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// There is no room there.
    #[error(
        "there is too little room for {}: {source}, {} are free and up to {} are still to be written, less what \
         is holes; make room and run the same command again: it goes on where it was", .destination.display(),
        ByteSize(*.free_bytes).rounded(), ByteSize(*.left_bytes).rounded()
    )]
    NoRoom {
        /// What was to be made.
        destination: PathBuf,
        /// What is still to be written, with the holes that were not met yet.
        left_bytes: u64,
        /// What is free on its file system.
        free_bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// A task stopped: the program is shutting down.
    #[error("the transfer was stopped before it was complete")]
    Stopped,
}

/// Writes an entry of a tree, and all below it, to the destination.
///
/// # Errors
/// When the destination exists or nothing can be written there. What cannot be read, or not be written
/// where the rest can, is listed in the outcome.
pub async fn get_tree(
    tree: &TreeReader,
    entry: Entry,
    options: GetOptions,
    counters: Arc<Counters>,
) -> Result<GetOutcome, GetTreeError> {
    counters.bytes_total.store(entry.counts().bytes, Ordering::Relaxed);
    let (destination, told) = (options.destination.clone(), counters.clone());
    match fill(tree, entry, options, counters).await {
        Err(GetTreeError::Restore(RestoreError::Io { source, .. })) if is_no_room(&source) => {
            let left_bytes = told.bytes_left();
            let free_bytes = free_bytes(&destination);
            Err(GetTreeError::NoRoom { destination, left_bytes, free_bytes, source })
        }
        result => result,
    }
}

/// Whether a disk or a share of it is full.
fn is_no_room(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// What is free where the destination is to be; 0 when the system does not say.
fn free_bytes(destination: &Path) -> u64 {
    let beside = destination.parent().filter(|path| !path.as_os_str().is_empty());
    let told = rustix::fs::statvfs(beside.unwrap_or(Path::new(".")));
    told.map_or(0, |told| told.f_bavail.saturating_mul(told.f_frsize))
}

async fn fill(
    tree: &TreeReader,
    entry: Entry,
    options: GetOptions,
    counters: Arc<Counters>,
) -> Result<GetOutcome, GetTreeError> {
    let GetOptions { destination, source, partial } = options;
    let restore = blocking(move || Restore::begin(&destination, &source)).await?;
    let walk = Walk {
        tree: tree.clone(),
        partial,
        restore: Arc::new(restore),
        counters,
        lost: Arc::default(),
        room: Arc::new(Semaphore::new(FILES_MAX as usize)),
        jobs: JoinSet::new(),
        directories: Vec::new(),
        symlinks: 0,
    };
    walk.run(entry).await
}

/// A transfer under way.
struct Walk {
    tree: TreeReader,
    partial: bool,
    restore: Arc<Restore>,
    counters: Arc<Counters>,
    lost: Arc<Mutex<Lost>>,
    room: Arc<Semaphore>,
    jobs: JoinSet<Result<(), RestoreError>>,
    /// Every directory with what it shall look like in the end, each before its contents.
    directories: Vec<(PathBuf, Metadata)>,
    symlinks: u64,
}

#[derive(Default)]
struct Lost {
    failures: Failures,
    data_loss: bool,
    unwritable: u64,
    may_pass: u64,
}

impl Walk {
    async fn run(mut self, root: Entry) -> Result<GetOutcome, GetTreeError> {
        // The directories being listed, the innermost last.
        let mut open: Vec<(PathBuf, Entries)> = Vec::new();
        if let Some(inside) = self.entry(PathBuf::new(), root).await? {
            open.push(inside);
        }
        while let Some((path, entries)) = open.last_mut() {
            match entries.next().await {
                Some(Ok(child)) => {
                    let name = OsString::from_vec(child.name.as_bytes().to_vec());
                    let path = path.join(name);
                    if let Some(inside) = self.entry(path, child).await? {
                        open.push(inside);
                    }
                }
                None => drop(open.pop()),
                Some(Err(error)) => {
                    note_unread(&self.lost, path, &error, true);
                    open.pop();
                }
            }
        }
        while let Some(done) = self.jobs.join_next().await {
            done.map_err(|_| GetTreeError::Stopped)??;
        }
        self.end().await
    }

    /// Everything was tried: makes the destination of it, if it is complete or a part is wanted.
    async fn end(self) -> Result<GetOutcome, GetTreeError> {
        let Self { restore, directories, symlinks, lost, counters, partial, .. } = self;
        let files = counters.files_done.load(Ordering::Relaxed);
        let kinds = Kinds { files, directories: directories.len() as u64, symlinks };
        let restore = Arc::into_inner(restore).ok_or(GetTreeError::Stopped)?;
        let resumed = restore.resumed();
        let mut lost = std::mem::take(&mut *lock(&lost));
        let (lost, waiting, made, unkept) = blocking(move || {
            if lost.failures.count == 0 || partial {
                for (path, error) in restore.set_directories(&directories)? {
                    lost.unwritten(&path, &error, false);
                }
            }
            let content = restore.content();
            let made = lost.failures.count == 0 || (partial && content.is_some());
            let mut unkept = 0;
            if made {
                let root = directories.first().filter(|(path, _)| path.as_os_str().is_empty());
                unkept = restore.finish(root.map(|(_, metadata)| metadata))?;
            }
            Ok::<_, GetTreeError>((lost, content.filter(|_| !made), made, unkept))
        })
        .await?;
        Ok(GetOutcome {
            kinds,
            bytes: counters.bytes_done.load(Ordering::Relaxed),
            resumed,
            failures: lost.failures,
            data_loss: lost.data_loss,
            unwritable: lost.unwritable,
            may_pass: lost.may_pass,
            unkept,
            made,
            waiting,
        })
    }

    /// Makes an entry, or starts to; a directory is to be listed.
    async fn entry(
        &mut self,
        path: PathBuf,
        entry: Entry,
    ) -> Result<Option<(PathBuf, Entries)>, GetTreeError> {
        let metadata = metadata_of(&entry);
        match &entry.kind {
            Kind::Directory { .. } => {
                let (restore, at) = (self.restore.clone(), path.clone());
                let made: Result<(), _> = blocking(move || restore.directory(&at)).await;
                if !note_unwritten(&self.lost, &path, made, true)? {
                    // Nor can anything be below it.
                    return Ok(None);
                }
                self.directories.push((path.clone(), metadata));
                Ok(Some((path, self.tree.list(&entry)?.boxed())))
            }
            Kind::Symlink { target } => {
                let (restore, at, target) = (self.restore.clone(), path.clone(), target.clone());
                let made: Result<(), _> =
                    blocking(move || restore.symlink(&at, &target, &metadata)).await;
                let is_made = note_unwritten(&self.lost, &path, made, false)?;
                self.symlinks += u64::from(is_made);
                Ok(None)
            }
            Kind::File { .. } => {
                while let Some(done) = self.jobs.try_join_next() {
                    done.map_err(|_| GetTreeError::Stopped)??;
                }
                let weight = if metadata.size > LARGE_BYTES { FILES_MAX } else { 1 };
                let Ok(permit) = self.room.clone().acquire_many_owned(weight).await else {
                    return Err(GetTreeError::Stopped);
                };
                let job = File {
                    tree: self.tree.clone(),
                    restore: self.restore.clone(),
                    counters: self.counters.clone(),
                    lost: self.lost.clone(),
                };
                self.jobs.spawn(async move {
                    let lost = job.lost.clone();
                    let result = job.restore(&path, &entry, metadata).await;
                    drop(permit);
                    note_unwritten(&lost, &path, result, false).map(|_| ())
                });
                Ok(None)
            }
        }
    }
}

/// One file under way.
struct File {
    tree: TreeReader,
    restore: Arc<Restore>,
    counters: Arc<Counters>,
    lost: Arc<Mutex<Lost>>,
}

impl File {
    async fn restore(
        self,
        path: &Path,
        entry: &Entry,
        metadata: Metadata,
    ) -> Result<(), RestoreError> {
        let (restore, at) = (self.restore.clone(), path.to_owned());
        let Some(mut file) = blocking(move || restore.file(&at, &metadata)).await? else {
            self.counters.add_known(metadata.size);
            Counters::add(&self.counters.files_done, 1);
            return Ok(());
        };
        self.counters.add_known(file.offset());
        let mut stream = match FileReader::new(
            self.tree.downloader().clone(),
            entry,
            file.offset()..metadata.size,
        ) {
            Ok(stream) => stream,
            Err(error) => {
                note_unread(&self.lost, path, &error, false);
                return Ok(());
            }
        };
        loop {
            match stream.next().await {
                Ok(None) => break,
                Ok(Some(part)) => {
                    let (bytes, is_hole) = (part.len(), matches!(part, Block::Hole(_)));
                    file = blocking(move || write(file, &part)).await?;
                    match is_hole {
                        true => self.counters.add_hole(bytes),
                        false => Counters::add(&self.counters.bytes_done, bytes),
                    }
                }
                Err(error) => {
                    note_unread(&self.lost, path, &error, false);
                    return Ok(());
                }
            }
        }
        blocking(move || file.finish()).await?;
        Counters::add(&self.counters.files_done, 1);
        Ok(())
    }
}

fn write(mut file: RestoredFile, part: &Block) -> Result<RestoredFile, RestoreError> {
    match part {
        Block::Data(bytes) => file.write(bytes)?,
        Block::Hole(bytes) => file.hole(*bytes)?,
    }
    Ok(file)
}

/// Notes what cannot be read; of a folder all below it is missing, too.
fn note_unread(lost: &Mutex<Lost>, path: &Path, error: &ReadError, is_folder: bool) {
    let mut lost = lock(lost);
    lost.failures.add_unread(path, error, is_folder);
    lost.may_pass += u64::from(error.may_pass());
    lost.data_loss |= matches!(error, ReadError::Get(GetError::DataLoss { .. }));
}

/// Notes an error of one entry, and says whether it was written; any other ends the transfer.
fn note_unwritten(
    lost: &Mutex<Lost>,
    path: &Path,
    result: Result<(), RestoreError>,
    is_folder: bool,
) -> Result<bool, RestoreError> {
    match result {
        Err(error) if error.is_of_one_entry() => {
            lock(lost).unwritten(path, &error, is_folder);
            Ok(false)
        }
        result => result.map(|()| true),
    }
}

impl Lost {
    fn unwritten(&mut self, path: &Path, error: &RestoreError, is_folder: bool) {
        match is_folder {
            true => self.failures.add_folder(path, error),
            false => self.failures.add(path, error),
        }
        self.unwritable += 1;
    }
}

/// Runs file system work on a thread where it may block.
async fn blocking<T: Send + 'static, E: From<RestoreError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RestoreError::Stopped(error.to_string()).into()),
    }
}

fn metadata_of(entry: &Entry) -> Metadata {
    let Meta { mode, modified, .. } = &entry.meta;
    let size = match &entry.kind {
        Kind::File { size, .. } => *size,
        _ => 0,
    };
    Metadata {
        mode: *mode,
        mtime_seconds: modified.seconds(),
        mtime_nanos: modified.nanoseconds(),
        size,
    }
}
