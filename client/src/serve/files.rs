//! The service `copse.files.v1.Files`: stat, list, read, put.
//!
//! Owns the messages: what is checked in a request, how large an answer may be, how many calls run at
//! once. Reading and storing are others' business. One idea: nothing is held for a caller that does
//! not take it; after a minute its place goes to the next (`outlet`).

use std::{mem, sync::Arc, time::Duration};

use bytes::Bytes;
use copse_core::tree::{Entry, Kind, Name, path};
use copse_proto::files::{
    self, ListRequest, ListResponse, PutRequest, PutResponse, ReadRequest, ReadResponse,
    StatRequest, StatResponse, files_server,
};
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tonic::{Request, Response, Status, Streaming};

use super::{
    MESSAGE_BYTES_MAX,
    failure::{Failure, RequestId},
    outlet::{Answers, Ended, Outlet, TAKE_TIMEOUT, run},
    put::Puts,
    walk::Walk,
};
use crate::{
    content::{Block, FileReader},
    tree_read::TreeReader,
};

/// Data of one message of a read, in bytes.
pub(super) const PIECE_BYTES_MAX: usize = 1 << 20;

/// Entries of one message of a list.
const ENTRIES_MAX: usize = 1000;

/// A message of a list that would have more bytes is sent without the entry that is one too many. Only an
/// entry that is larger alone makes a larger one.
const ENTRIES_BYTES: usize = 512 << 10;

/// What an entry costs in its message beside its own bytes: a key, and the length of up to 2 MiB.
const ENTRY_COST_BYTES: usize = 1 + 4;

/// What is told in `path` of a path that is not UTF-8, in bytes, when the entry would be too large for a
/// message: U+FFFD is three bytes in the place of one. All of it is in `path_bytes`.
const LOSSY_BYTES_MAX: usize = 4 << 10;

/// Entries found are sent after this time though there are less than fit.
const LIST_FLUSH: Duration = Duration::from_millis(100);

/// A range of at most this many bytes is a small read: it holds that much, and no read-ahead.
const SMALL_READ_BYTES: u64 = 1 << 20;

/// Small reads at once.
const SMALL_READS_MAX: usize = 64;

/// Larger reads at once: each holds its read-ahead, a chunk above it, and as much again in shards
/// that arrive: 32 MiB.
const LARGE_READS_MAX: usize = 8;

/// Fetched ahead by a large read, in bytes: the next chunk while one is sent.
const READ_AHEAD_BYTES: usize = 8 << 20;

/// Listings at once: each holds a node of every level of its walk.
const LISTS_MAX: usize = 32;

static ZEROS: [u8; PIECE_BYTES_MAX] = [0; PIECE_BYTES_MAX];

/// The service. Cheap to clone.
#[derive(Clone)]
pub(super) struct Files {
    inner: Arc<Inner>,
}

struct Inner {
    tree: TreeReader,
    /// Where in the tree paths start.
    base: Vec<Name>,
    puts: Puts,
    small_reads: Arc<Semaphore>,
    large_reads: Arc<Semaphore>,
    lists: Arc<Semaphore>,
}

impl Files {
    pub(super) fn new(tree: TreeReader, base: Vec<Name>, puts: Puts) -> Self {
        Self {
            inner: Arc::new(Inner {
                tree,
                base,
                puts,
                small_reads: Arc::new(Semaphore::new(SMALL_READS_MAX)),
                large_reads: Arc::new(Semaphore::new(LARGE_READS_MAX)),
                lists: Arc::new(Semaphore::new(LISTS_MAX)),
            }),
        }
    }

    /// What stores.
    pub(super) fn puts(&self) -> &Puts {
        &self.inner.puts
    }

    /// What lies at a path of the served tree.
    async fn entry(&self, names: &[Name]) -> Result<Entry, Failure> {
        let full = self.inner.base.iter().chain(names).cloned().collect();
        let found = self.inner.tree.lookup(full).await;
        found.map_err(|error| Failure::from(error).at(&path::display(names)))
    }

    async fn stat_entry(&self, request: StatRequest) -> Result<StatResponse, Failure> {
        let names = names_of(&request.path, &request.path_bytes)?;
        let entry = self.entry(&names).await?;
        Ok(StatResponse { entry: Some(wire_entry(&joined(&names), &entry)) })
    }

    /// Everything about a list that can be refused before it starts.
    async fn begin_list(
        &self,
        request: ListRequest,
    ) -> Result<(OwnedSemaphorePermit, List), Failure> {
        let place = acquire(&self.inner.lists).await?;
        let names = names_of(&request.path, &request.path_bytes)?;
        let entry = self.entry(&names).await?;
        if !matches!(entry.kind, Kind::Directory { .. }) {
            return Err(Failure::not_a_directory(&path::display(&names)));
        }
        let mut base = joined(&names);
        if !base.is_empty() {
            base.push(b'/');
        }
        let tree = self.inner.tree.clone();
        let walk = Walk::new(tree, &entry, request.recursive, request.prefix.into_bytes())?;
        Ok((place, List { walk, base, path: path::display(&names) }))
    }

    /// Everything about a read that can be refused before it starts.
    async fn begin_read(
        &self,
        request: ReadRequest,
    ) -> Result<(OwnedSemaphorePermit, Read), Failure> {
        let names = names_of(&request.path, &request.path_bytes)?;
        let entry = self.entry(&names).await?;
        let path = path::display(&names);
        let Kind::File { size, .. } = entry.kind else { return Err(Failure::not_a_file(&path)) };
        let start = request.offset;
        if start > size {
            return Err(Failure::behind_the_end(&path, start, size));
        }
        let end = match request.length {
            0 => size,
            length => start.saturating_add(length).min(size),
        };
        let small = end - start <= SMALL_READ_BYTES;
        let places = if small { &self.inner.small_reads } else { &self.inner.large_reads };
        let place = acquire(places).await?;
        let downloader = self.inner.tree.downloader().clone();
        let reader = FileReader::new(downloader, &entry, start..end)?.read_ahead(READ_AHEAD_BYTES);
        Ok((place, Read { reader, offset: start, path }))
    }
}

#[tonic::async_trait]
impl files_server::Files for Files {
    type ListStream = Answers<ListResponse>;
    type ReadStream = Answers<ReadResponse>;

    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<StatResponse>, Status> {
        let id = RequestId::of(request.metadata());
        let found = self.stat_entry(request.into_inner()).await;
        found.map(Response::new).map_err(|failure| failure.into_status(&id))
    }

    async fn list(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let id = RequestId::of(request.metadata());
        let list = self.begin_list(request.into_inner()).await;
        let (place, list) = list.map_err(|failure| failure.into_status(&id))?;
        Ok(Response::new(run(id, place, |answers| list.run(answers))))
    }

    async fn read(
        &self,
        request: Request<ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let id = RequestId::of(request.metadata());
        let read = self.begin_read(request.into_inner()).await;
        let (place, read) = read.map_err(|failure| failure.into_status(&id))?;
        Ok(Response::new(run(id, place, |answers| read.run(answers))))
    }

    async fn put(
        &self,
        request: Request<Streaming<PutRequest>>,
    ) -> Result<Response<PutResponse>, Status> {
        let id = RequestId::of(request.metadata());
        let put = self.inner.puts.put(request.into_inner()).await;
        put.map(Response::new).map_err(|failure| failure.into_status(&id))
    }
}

/// A list that has begun.
struct List {
    walk: Walk,
    /// Path of the directory, with a slash behind it unless it is the root.
    base: Vec<u8>,
    path: String,
}

impl List {
    async fn run(mut self, answers: Outlet<ListResponse>) -> Result<(), Ended> {
        let mut batch = Batch::default();
        let mut since = Instant::now();
        loop {
            let next = self.walk.next().await;
            let next = next.map_err(|error| Failure::from(error).at(&self.path))?;
            let Some((path, entry)) = next else { break };
            let path = [&self.base[..], &path].concat();
            let full = batch.add(wire_entry(&path, &entry));
            let late = (since.elapsed() >= LIST_FLUSH).then(|| batch.take());
            for entries in [full, late].into_iter().flatten() {
                answers.give(ListResponse { entries }).await?;
                since = Instant::now();
            }
        }
        let entries = batch.take();
        if !entries.is_empty() {
            answers.give(ListResponse { entries }).await?;
        }
        Ok(())
    }
}

/// The entries of one message of a list.
#[derive(Default)]
struct Batch {
    entries: Vec<files::Entry>,
    bytes: usize,
}

impl Batch {
    /// Adds an entry. Gives those before it, when there is no room for it with them.
    fn add(&mut self, entry: files::Entry) -> Option<Vec<files::Entry>> {
        let bytes = entry.encoded_len() + ENTRY_COST_BYTES;
        let full = self.entries.len() == ENTRIES_MAX || self.bytes + bytes > ENTRIES_BYTES;
        let before = (full && !self.entries.is_empty()).then(|| self.take());
        self.bytes += bytes;
        self.entries.push(entry);
        before
    }

    fn take(&mut self) -> Vec<files::Entry> {
        self.bytes = 0;
        mem::take(&mut self.entries)
    }
}

/// A read that has begun.
struct Read {
    reader: FileReader,
    offset: u64,
    path: String,
}

impl Read {
    async fn run(mut self, answers: Outlet<ReadResponse>) -> Result<(), Ended> {
        loop {
            let next = self.reader.next().await;
            match next.map_err(|error| Failure::from(error).at(&self.path))? {
                None => return Ok(()),
                Some(Block::Data(mut data)) => {
                    while !data.is_empty() {
                        let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
                        self.give(&answers, piece).await?;
                    }
                }
                Some(Block::Hole(mut left)) => {
                    while left > 0 {
                        let count =
                            usize::try_from(left).map_or(ZEROS.len(), |l| l.min(ZEROS.len()));
                        self.give(&answers, Bytes::from_static(&ZEROS[..count])).await?;
                        left -= count as u64;
                    }
                }
            }
        }
    }

    async fn give(&mut self, answers: &Outlet<ReadResponse>, data: Bytes) -> Result<(), Ended> {
        let offset = self.offset;
        self.offset += data.len() as u64;
        answers.give(ReadResponse { offset, data }).await
    }
}

/// A place among the calls of one kind; waits for one, but not for ever.
pub(super) async fn acquire(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Failure> {
    match timeout(TAKE_TIMEOUT, Arc::clone(places).acquire_owned()).await {
        Ok(Ok(place)) => Ok(place),
        _ => Err(Failure::busy("too many calls of this kind run at once")),
    }
}

/// The names of a path, from whichever of the two fields is set.
pub(super) fn names_of(path: &str, path_bytes: &[u8]) -> Result<Vec<Name>, Failure> {
    if path_bytes.is_empty() {
        path::split(path.as_bytes()).map_err(|error| Failure::field("path", error))
    } else {
        path::split(path_bytes).map_err(|error| Failure::field("path_bytes", error))
    }
}

/// A path as bytes, slashes between the names.
fn joined(names: &[Name]) -> Vec<u8> {
    names.iter().map(Name::as_bytes).collect::<Vec<_>>().join(&b'/')
}

fn wire_entry(path: &[u8], entry: &Entry) -> files::Entry {
    let (kind, size, symlink_target) = match &entry.kind {
        Kind::File { size, .. } => (files::Kind::File, *size, Vec::new()),
        Kind::Directory { .. } => (files::Kind::Directory, 0, Vec::new()),
        Kind::Symlink { target } => (files::Kind::Symlink, target.len() as u64, target.clone()),
    };
    let (path, path_bytes) = match std::str::from_utf8(path) {
        Ok(path) => (path.to_owned(), Vec::new()),
        Err(_) => (String::from_utf8_lossy(path).into_owned(), path.to_vec()),
    };
    let mut entry = files::Entry {
        path,
        path_bytes,
        kind: kind.into(),
        size,
        mode: entry.meta.mode,
        mtime_seconds: entry.meta.modified.seconds(),
        mtime_nanos: entry.meta.modified.nanoseconds(),
        symlink_target,
    };
    if entry.encoded_len() + ENTRY_COST_BYTES > MESSAGE_BYTES_MAX && !entry.path_bytes.is_empty() {
        let end = (0..=LOSSY_BYTES_MAX).rev().find(|at| entry.path.is_char_boundary(*at));
        entry.path.truncate(end.unwrap_or(0));
    }
    entry
}

#[cfg(test)]
mod tests {
    use copse_core::tree::{Attributes, Meta, Timestamp};
    use proptest::prelude::*;

    use super::*;

    fn link(target: Vec<u8>) -> Entry {
        let modified = Timestamp::new(1_000_000_000, 7).expect("a time");
        let meta = Meta { mode: 0o777, modified, attributes: Attributes::default() };
        let name = Name::new(b"a").expect("a name");
        Entry { name, kind: Kind::Symlink { target }, meta }
    }

    proptest! {
        #[test]
        fn no_message_of_a_list_is_larger_than_a_message_may_be(
            sizes in prop::collection::vec((0..100_000usize, any::<bool>(), 0..4096usize), 1..60),
        ) {
            let mut batch = Batch::default();
            let mut messages = Vec::new();
            for (length, text, target) in &sizes {
                let path = vec![if *text { b'a' } else { 0xff }; *length];
                messages.extend(batch.add(wire_entry(&path, &link(vec![b'x'; *target]))));
            }
            messages.push(batch.take());
            let count: usize = messages.iter().map(Vec::len).sum();
            prop_assert_eq!(count, sizes.len());
            for entries in messages {
                prop_assert!(!entries.is_empty());
                let response = ListResponse { entries };
                let bytes = response.encoded_len();
                prop_assert!(bytes <= MESSAGE_BYTES_MAX, "{bytes}");
                prop_assert!(bytes <= ENTRIES_BYTES || response.entries.len() == 1);
            }
        }
    }

    #[test]
    fn the_longest_path_there_can_be_fits_a_message_and_is_whole_in_it() {
        // Names of 255 bytes, 2,048 of them, none of them text.
        let path = vec![0xff; 256 * path::PATH_NAMES_MAX];
        let entry = wire_entry(&path, &link(vec![b'x'; 4096]));
        assert_eq!(entry.path_bytes, path);
        assert!(entry.path.len() <= LOSSY_BYTES_MAX && !entry.path.is_empty());
        let response = ListResponse { entries: vec![entry] };
        assert!(response.encoded_len() <= MESSAGE_BYTES_MAX);
        // One that fits is told as ever.
        let entry = wire_entry(&path[..100_000], &link(Vec::new()));
        assert_eq!(entry.path.len(), 300_000);
    }
}
