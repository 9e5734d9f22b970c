//! Storing files and folders: the walk, the cutting, and the tree that is made of it.
//!
//! One thread of its own walks and reads; chunks are encoded and stored by tasks beside it, which are
//! [`Pieces`]'. Owns the order in which a file's pieces come together. What cannot be read is noted
//! and left out; what cannot be stored ends the transfer.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io::{self, Read},
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use copse_core::{
    capability::Capability,
    geometry::Geometry,
    tree::{Meta, Timestamp, TreeError, TreeWriter},
};
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::{
    Counters, Failures,
    pieces::{Known, PIECES_MAX, Pieces, Told},
};
use crate::{
    cut::Cut,
    encode::{Encoder, PlaintextBuffer},
    error::{EncodeError, PutError},
    journal::Journal,
    local::{self, FileReader, LocalEntry, LocalKind, Metadata, ReadFileError, ScanError, Segment},
    network::Network,
    put::{PutProgress, Redundancy, Uploader},
    task::{apart, aside},
};

/// How to put.
#[derive(Debug)]
pub struct PutOptions {
    /// The code of full chunks.
    pub geometry: Geometry,
    /// What was stored before; none when another process has it open.
    pub journal: Option<Journal>,
    /// Plaintext of a chunk of a file, at most, in bytes; none: what a chunk of the code holds, some 8 MiB.
    /// What is left at the end of a file is packed with others up to 1 MiB, or up to an eighth of this if it
    /// is told and that is less. Smaller chunks are for those who have little memory or small files only: each
    /// costs a call to every holder. Content that was put with other sizes is stored anew.
    pub chunk_bytes_max: Option<usize>,
}

impl PutOptions {
    /// As usual, without a journal.
    pub const fn new(geometry: Geometry) -> Self {
        Self { geometry, journal: None, chunk_bytes_max: None }
    }
}

/// Entries of a tree by what they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds {
    /// Files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
}

/// What was put.
#[derive(Debug)]
pub struct PutOutcome {
    /// Reads it.
    pub capability: Capability,
    /// How many of each kind are in the tree.
    pub kinds: Kinds,
    /// Bytes of content in the tree.
    pub bytes: u64,
    /// What was left out, and why.
    pub failures: Failures,
    /// How safe it is.
    pub redundancy: Redundancy,
    /// What was sent and what was there already.
    pub progress: PutProgress,
    /// Chunks that the journal knew and all of whose shards were found.
    pub confirmed_chunks: u64,
}

/// Where to put: a network, a session that stores chunks in it, and who makes them.
#[derive(Clone)]
pub struct PutTarget {
    /// The network.
    pub network: Network,
    /// Stores chunks.
    pub uploader: Uploader,
    /// Makes chunks.
    pub encoder: Encoder,
}

/// Why nothing was put.
#[derive(Debug, thiserror::Error)]
pub enum PutTreeError {
    /// None of the paths named can be read; this is the first.
    #[error("{} {}", .0.path().display(), .0)]
    Scan(#[from] ScanError),
    /// A file, the only thing named, cannot be read.
    #[error("{} {}", .0.path().display(), .0)]
    Read(#[from] ReadFileError),
    /// Standard input cannot be read.
    #[error("cannot read the input: {0}")]
    Input(#[source] io::Error),
    /// Two of the paths named have the same last name.
    #[error("two of the paths are named {0:?}; put them one by one or from a folder of their own")]
    SameName(OsString),
    /// The path named has no last name, like "..".
    #[error("{} has no name to store it under; name what is in it", .0.display())]
    NoName(PathBuf),
    /// A chunk could not be stored.
    #[error("{of}{}{source}", if of.is_empty() { "" } else { ": " })]
    Put {
        /// The file that it is of, or what is packed in it; empty when that has no name.
        of: String,
        /// Why.
        source: PutError,
    },
    /// A chunk could not be made.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The tree could not be made.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A task stopped: the program is shutting down.
    #[error("the transfer was stopped before it was complete")]
    Stopped,
}

/// Why a file was not put.
enum Broken {
    /// It cannot be read as one state: the transfer goes on without it.
    File(ReadFileError),
    /// The transfer ends.
    Transfer(PutTreeError),
}

impl From<ReadFileError> for Broken {
    fn from(error: ReadFileError) -> Self {
        Self::File(error)
    }
}

impl From<PutTreeError> for Broken {
    fn from(error: PutTreeError) -> Self {
        Self::Transfer(error)
    }
}

impl From<TreeError> for Broken {
    fn from(error: TreeError) -> Self {
        Self::Transfer(error.into())
    }
}

impl From<Broken> for PutTreeError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::File(error) => Self::Read(error),
            Broken::Transfer(error) => error,
        }
    }
}

impl From<tokio::task::JoinError> for PutTreeError {
    fn from(_: tokio::task::JoinError) -> Self {
        Self::Stopped
    }
}

/// Stores the paths: one as itself, several in a folder without a name.
///
/// # Errors
/// When none of the paths named can be read, or a chunk cannot be stored safely. A path that cannot be
/// read while another can, and what is below one, is listed in the outcome.
pub async fn put_paths(
    target: &PutTarget,
    paths: Vec<PathBuf>,
    options: PutOptions,
    counters: Arc<Counters>,
) -> Result<PutOutcome, PutTreeError> {
    aside(TreePut::new(target, options, counters).paths(paths)).await?
}

/// Stores what a stream gives as one file of that name.
///
/// # Errors
/// When the stream cannot be read or a chunk cannot be stored safely.
pub async fn put_stream(
    target: &PutTarget,
    name: Vec<u8>,
    meta: Meta,
    stream: Box<dyn Read + Send>,
    options: PutOptions,
    counters: Arc<Counters>,
) -> Result<PutOutcome, PutTreeError> {
    aside(TreePut::new(target, options, counters).stream(name, meta, stream)).await?
}

/// What the paths name. Those that cannot be read are noted, as long as there is one that can.
fn named(paths: &[PathBuf], failures: &mut Failures) -> Result<Vec<LocalEntry>, PutTreeError> {
    let mut entries = Vec::new();
    let mut first = None;
    for path in paths {
        // Such as "." or "/": the folder's own name, if it has one.
        let own = || path.canonicalize().ok()?.file_name().map(OsString::from);
        let name = path.file_name().map(OsString::from).or_else(own);
        match local::entry_at(path, name.clone().unwrap_or_default()) {
            Ok(_) if name.is_none() => return Err(PutTreeError::NoName(path.clone())),
            Ok(entry) => entries.push(entry),
            Err(error) => {
                failures.add(path, &error);
                first.get_or_insert(error);
            }
        }
    }
    match first {
        Some(error) if entries.is_empty() => Err(error.into()),
        _ => Ok(entries),
    }
}

/// A transfer under way; lives on a thread of its own.
struct TreePut {
    target: PutTarget,
    pieces: Pieces,
    cut: Cut,
    writer: TreeWriter,
    counters: Arc<Counters>,
    failures: Failures,
    kinds: Kinds,
    /// The open file's pieces in order.
    pending: VecDeque<Pending>,
    /// What is being read, to be named when it cannot be stored.
    current: PathBuf,
}

/// A directory under way.
struct OpenDirectory {
    path: PathBuf,
    /// What is still to be put of it, in order.
    names: std::vec::IntoIter<OsString>,
}

/// The next piece of the open file.
enum Pending {
    /// A chunk whose extent will be known when it is encoded.
    Extent(oneshot::Receiver<Told>),
    /// The tail of the file.
    Bytes(PlaintextBuffer),
    /// Zeros.
    Hole(u64),
}

impl TreePut {
    fn new(target: &PutTarget, options: PutOptions, counters: Arc<Counters>) -> Self {
        let PutOptions { geometry, journal, chunk_bytes_max } = options;
        let cut = Cut::new(geometry, chunk_bytes_max);
        Self {
            target: target.clone(),
            pieces: Pieces::new(target, geometry, cut, journal, counters.clone()),
            cut,
            writer: TreeWriter::new(geometry, target.encoder.secret().clone()),
            counters,
            failures: Failures::default(),
            kinds: Kinds::default(),
            pending: VecDeque::new(),
            current: PathBuf::new(),
        }
    }

    async fn paths(mut self, paths: Vec<PathBuf>) -> Result<PutOutcome, PutTreeError> {
        let entries = named(&paths, &mut self.failures)?;
        // The tree has the same shape whether or not all of several can be read.
        let is_one = paths.len() == 1;
        self.count_ahead(paths);
        match <[LocalEntry; 1]>::try_from(entries) {
            Ok([entry]) if is_one => self.only(&entry).await?,
            Ok(entries) => self.several(entries.into()).await?,
            Err(entries) => self.several(entries).await?,
        }
        self.finish().await
    }

    async fn stream(
        mut self,
        name: Vec<u8>,
        meta: Meta,
        mut stream: Box<dyn Read + Send>,
    ) -> Result<PutOutcome, PutTreeError> {
        self.writer.begin_file(&name, meta)?;
        self.current = PathBuf::from(OsString::from_vec(name));
        loop {
            let mut buffer = self.pieces.buffer().await;
            let mut part = stream.by_ref().take(self.cut.chunk_bytes as u64);
            let count = part.read_to_end(&mut buffer).map_err(PutTreeError::Input)?;
            if count == 0 {
                break;
            }
            self.piece(buffer, None).await?;
        }
        self.end_file().await?;
        self.finish().await
    }

    /// Adds up the bytes of everything on the side, so that the time left can be told.
    fn count_ahead(&self, paths: Vec<PathBuf>) {
        let counters = self.counters.clone();
        apart(move || {
            let mut open = paths;
            // Written once, when complete: a total that grows would mislead.
            let (mut total, mut holes) = (0, 0);
            while let Some(path) = open.pop() {
                let Ok(entry) = local::entry_at(&path, OsString::new()) else { continue };
                match entry.kind {
                    LocalKind::File => {
                        total += entry.metadata.size;
                        holes += local::hole_bytes(&path);
                    }
                    LocalKind::Directory => {
                        let names = local::children(&path).unwrap_or_default();
                        open.extend(names.into_iter().map(|name| path.join(name)));
                    }
                    LocalKind::Symlink(_) => {}
                }
            }
            counters.hole_bytes_total.store(holes, Ordering::Relaxed);
            counters.bytes_total.store(total, Ordering::Relaxed);
        });
    }

    /// One path: the root. A file that cannot be read leaves nothing to put.
    async fn only(&mut self, entry: &LocalEntry) -> Result<(), PutTreeError> {
        match &entry.kind {
            LocalKind::File => self.file(entry).await?.map_err(PutTreeError::Read),
            _ => self.entry(entry).await,
        }
    }

    /// Several paths, in a directory of no name made now.
    async fn several(&mut self, mut entries: Vec<LocalEntry>) -> Result<(), PutTreeError> {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            let name = pair[0].path.file_name().unwrap_or_default().to_owned();
            return Err(PutTreeError::SameName(name));
        }
        // The time of the newest, so that putting the same again makes the same tree.
        let newest = entries
            .iter()
            .map(|entry| (entry.metadata.mtime_seconds, entry.metadata.mtime_nanos))
            .max()
            .unwrap_or_default();
        let meta =
            Metadata { mode: 0o755, mtime_seconds: newest.0, mtime_nanos: newest.1, size: 0 };
        self.writer.begin_directory(b"", meta_of(&meta))?;
        for entry in &entries {
            self.entry(entry).await?;
        }
        self.writer.end_directory()?;
        self.store_packs().await
    }

    /// An entry and all below it, depth first, names in order.
    async fn entry(&mut self, entry: &LocalEntry) -> Result<(), PutTreeError> {
        // The innermost last.
        let mut open: Vec<OpenDirectory> = Vec::new();
        open.extend(self.begin(entry).await?);
        while let Some(directory) = open.last_mut() {
            let Some(name) = directory.names.next() else {
                open.pop();
                self.writer.end_directory()?;
                self.kinds.directories += 1;
                self.store_packs().await?;
                continue;
            };
            let path = directory.path.join(&name);
            match local::entry_at(&path, name) {
                Ok(child) => open.extend(self.begin(&child).await?),
                Err(error) => self.failures.add(&path, &error),
            }
        }
        Ok(())
    }

    /// Puts an entry; of a directory what is in it is next.
    async fn begin(&mut self, entry: &LocalEntry) -> Result<Option<OpenDirectory>, PutTreeError> {
        let meta = meta_of(&entry.metadata);
        self.current.clone_from(&entry.path);
        match &entry.kind {
            LocalKind::Directory => {
                let names = match local::children(&entry.path) {
                    Ok(names) => names,
                    Err(error) => {
                        let kept = format!(
                            "its contents are not stored, only the folder itself: it {error}"
                        );
                        self.failures.add_folder(&entry.path, &kept);
                        Vec::new()
                    }
                };
                match self.writer.begin_directory(&entry.name, meta) {
                    Err(error @ (TreeError::Name(_) | TreeError::TooDeep)) => {
                        self.failures.add_folder(&entry.path, &error);
                        return Ok(None);
                    }
                    result => result?,
                }
                let (path, names) = (entry.path.clone(), names.into_iter());
                return Ok(Some(OpenDirectory { path, names }));
            }
            LocalKind::Symlink(target) => {
                match self.writer.add_symlink(&entry.name, meta, target) {
                    Err(error @ (TreeError::Name(_) | TreeError::Target(_))) => {
                        self.failures.add(&entry.path, &error);
                    }
                    result => {
                        result?;
                        self.kinds.symlinks += 1;
                    }
                }
                self.store_packs().await?;
            }
            LocalKind::File => {
                if let Err(error) = self.file(entry).await? {
                    self.failures.add(&entry.path, &error);
                }
            }
        }
        Ok(None)
    }

    /// Reads a file into the tree. The inner error is the file's, the outer ends the transfer.
    async fn file(
        &mut self,
        entry: &LocalEntry,
    ) -> Result<Result<(), ReadFileError>, PutTreeError> {
        self.current.clone_from(&entry.path);
        let mut reader = match FileReader::open(&entry.path) {
            Ok(reader) => reader,
            Err(error) => return Ok(Err(error)),
        };
        // Of the file that was opened: it may be another than the one that was listed.
        match self.writer.begin_file(&entry.name, meta_of(&reader.metadata())) {
            Err(TreeError::Name(error)) => {
                self.failures.add(&entry.path, &error);
                return Ok(Ok(()));
            }
            result => result?,
        }
        match self.content(&entry.path, &mut reader).await {
            Ok(()) => Ok(Ok(())),
            Err(Broken::File(error)) => {
                self.pending.clear();
                self.writer.abandon_file()?;
                Ok(Err(error))
            }
            Err(Broken::Transfer(error)) => Err(error),
        }
    }

    async fn content(&mut self, path: &Path, reader: &mut FileReader) -> Result<(), Broken> {
        loop {
            match reader.next(self.cut.chunk_bytes)? {
                Segment::End => return self.end_file().await,
                Segment::Hole(bytes) => {
                    reader.skip(bytes)?;
                    self.pending.push_back(Pending::Hole(bytes));
                    self.counters.add_hole(bytes);
                }
                Segment::Data(bytes) => {
                    let known = self.pieces.known(path, reader, bytes);
                    if let Some((known, extent)) = known
                        .as_ref()
                        .and_then(|known| Some((known.clone(), self.pieces.recall(known)?)))
                    {
                        reader.skip(bytes as u64)?;
                        let extent = self.pieces.confirm(known, extent);
                        self.wait_for_extent(extent).await?;
                        continue;
                    }
                    let mut buffer = self.pieces.buffer().await;
                    reader.read(bytes, &mut buffer)?;
                    self.piece(buffer, known).await?;
                }
            }
        }
    }

    /// The next bytes of the open file: a chunk of their own, or packed if they are few.
    async fn piece(&mut self, buffer: PlaintextBuffer, known: Option<Known>) -> Result<(), Broken> {
        if buffer.len() <= self.cut.packed_bytes_max {
            self.pending.push_back(Pending::Bytes(buffer));
            // It holds one of few buffers: nothing may wait behind it.
            return self.settle(0).await;
        }
        let extent = self.pieces.store(self.current.display().to_string(), buffer, known);
        self.wait_for_extent(extent).await
    }

    /// The next piece's extent will come; not too many may be missing.
    async fn wait_for_extent(&mut self, extent: oneshot::Receiver<Told>) -> Result<(), Broken> {
        self.pending.push_back(Pending::Extent(extent));
        self.pieces.reap(PIECES_MAX).await?;
        self.settle(PIECES_MAX).await
    }

    /// Gives pieces to the tree, in order, until at most `left` wait for their extent.
    async fn settle(&mut self, left: usize) -> Result<(), Broken> {
        while let Some(pending) = self.pending.pop_front() {
            match pending {
                Pending::Extent(mut receiver) => {
                    let told = match receiver.try_recv() {
                        Err(TryRecvError::Empty) if self.pending.len() < left => {
                            self.pending.push_front(Pending::Extent(receiver));
                            return Ok(());
                        }
                        Err(TryRecvError::Empty) => receiver.await.ok(),
                        told => told.ok(),
                    };
                    let Some(extent) = told else { return Err(self.failed().await) };
                    self.writer.push_extent(extent?)?;
                }
                Pending::Bytes(buffer) => {
                    self.writer.push_bytes(&buffer)?;
                    Counters::add(&self.counters.bytes_done, buffer.len() as u64);
                }
                Pending::Hole(bytes) => self.writer.push_hole(bytes)?,
            }
            self.store_packs().await?;
        }
        Ok(())
    }

    /// A task ended without its extent: its error says why.
    async fn failed(&mut self) -> Broken {
        Broken::Transfer(self.pieces.reap(0).await.err().unwrap_or(PutTreeError::Stopped))
    }

    async fn end_file(&mut self) -> Result<(), Broken> {
        self.settle(0).await?;
        self.writer.end_file()?;
        self.kinds.files += 1;
        Counters::add(&self.counters.files_done, 1);
        Ok(self.store_packs().await?)
    }

    /// Sends the packs that are closed on their way.
    async fn store_packs(&mut self) -> Result<(), PutTreeError> {
        for chunk in self.writer.take_chunks() {
            let of = format!("small files up to {}", self.current.display());
            self.pieces.store_chunk(of, chunk).await;
        }
        self.pieces.reap(PIECES_MAX).await
    }

    async fn finish(mut self) -> Result<PutOutcome, PutTreeError> {
        let finished = self.writer.finish()?;
        for chunk in finished.chunks {
            self.pieces.store_chunk("small files and names".to_owned(), chunk).await;
        }
        self.pieces.reap(0).await?;
        let redundancy = self.target.uploader.flush().await;
        let redundancy =
            redundancy.map_err(|source| PutTreeError::Put { of: String::new(), source })?;
        Ok(PutOutcome {
            capability: Capability::read(self.target.network.id(), finished.root),
            kinds: self.kinds,
            bytes: finished.counts.bytes,
            failures: self.failures,
            redundancy,
            progress: self.target.uploader.progress(),
            confirmed_chunks: self.pieces.confirmed(),
        })
    }
}

fn meta_of(metadata: &Metadata) -> Meta {
    // The file system gives less than 10^9 nanoseconds.
    let modified = Timestamp::new(metadata.mtime_seconds, metadata.mtime_nanos).unwrap_or_default();
    Meta::new(metadata.mode, modified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_are_not_there_are_left_out_as_long_as_one_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("good"), "good").expect("written");
        let check = |names: &[&str], expected: Result<&[&str], &str>, left_out: u64| {
            let paths: Vec<_> = names.iter().map(|name| dir.path().join(name)).collect();
            let mut failures = Failures::default();
            let found = named(&paths, &mut failures);
            let found = found.map(|entries| entries.into_iter().map(|entry| entry.name).collect());
            let found: Result<Vec<Vec<u8>>, _> = found.map_err(|error| error.to_string());
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(
                    found,
                    expected.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>()
                ),
                (Err(error), Err(words)) => assert!(error.contains(words), "{error}"),
                (found, _) => panic!("{names:?}: {found:?}"),
            }
            assert_eq!(failures.count, left_out, "{names:?}");
        };
        check(&["good"], Ok(&["good"]), 0);
        check(&["nosuch", "good", "neither"], Ok(&["good"]), 2);
        check(&["nosuch"], Err("nosuch cannot be read"), 1);
        check(&["nosuch", "neither"], Err("nosuch cannot be read"), 2);
        check(&["nosuch/..", "good"], Ok(&["good"]), 1);
    }

    #[test]
    fn what_cannot_be_stored_is_named() {
        let put = |of: &str| PutTreeError::Put { of: of.to_owned(), source: PutError::NoNodes };
        assert!(put("a/b").to_string().starts_with("a/b: the network has no active nodes"));
        assert!(put("").to_string().starts_with("the network has no active nodes"));
    }
}
