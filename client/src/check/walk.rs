//! The chunks that a tree needs, with the paths that need them.
//!
//! Owns the way through the tree: its nodes, its files' pieces, and what to do when a part cannot be
//! read. Decides nothing about shards. The one idea: a chunk is named before it is read, so that one
//! that cannot be read is named too.

use std::{path::PathBuf, sync::Arc};

use copse_core::{
    extent::Extent,
    manifest::ChunkRef,
    tree::{self, Entry, FileRange, Kind, Name, PathLookup, Reading, Source},
};
use tokio::sync::mpsc;

use super::Counted;
use crate::{
    error::ReadError,
    task::Task,
    transfer::Counters,
    tree_read::{DEPTH_MAX, OpenDirectory, TreeReader},
};

/// What was found and not yet taken, at most: a few hundred bytes each.
const FOUND_MAX: usize = 1024;

/// Something on the way through a tree.
pub(super) enum Found {
    /// A chunk, and a path that needs it.
    Chunk(ChunkRef, Arc<[u8]>),
    /// A chunk that a manifest lists: which path needs it is not known.
    Listed(ChunkRef),
    /// A file, directory or link.
    Entry(Counted),
    /// A directory or file whose inside cannot be read on; the rest goes on.
    Unreadable(PathBuf, ReadError),
    /// There is nothing at the path.
    Nothing(ReadError),
}

/// Walks a tree from a path on, as a task that stops when it is dropped.
pub(super) fn start(
    tree: TreeReader,
    root: Extent,
    path: Vec<Name>,
    counters: Arc<Counters>,
) -> (Task<()>, mpsc::Receiver<Found>) {
    let (out, found) = channel();
    let task = Task::spawn(async move {
        let walk = Walk { tree, out, counters };
        // An error here means that nobody listens any more.
        if walk.run(root, path).await.is_err() {
            tracing::debug!("the walk through a tree was given up");
        }
    });
    (task, found)
}

/// What was found, on its way to whoever checks it.
pub(super) fn channel() -> (mpsc::Sender<Found>, mpsc::Receiver<Found>) {
    mpsc::channel(FOUND_MAX)
}

/// Nobody listens any more.
pub(super) struct Gone;

pub(super) struct Walk {
    pub(super) tree: TreeReader,
    pub(super) out: mpsc::Sender<Found>,
    pub(super) counters: Arc<Counters>,
}

impl Walk {
    async fn run(self, root: Extent, path: Vec<Name>) -> Result<(), Gone> {
        let below = path.iter().map(Name::as_bytes).collect::<Vec<_>>().join(&b'/');
        let start = match self.find(root, path).await? {
            Ok(entry) => entry,
            Err(error) => {
                let found = match error {
                    // What is missing or wrong is the question, not the tree.
                    ReadError::Tree(
                        tree::ReadError::NotFound { .. } | tree::ReadError::NotADirectory { .. },
                    ) => Found::Nothing(error),
                    _ => Found::Unreadable(as_path(&below), error),
                };
                return self.say(found).await;
            }
        };
        Counters::add(&self.counters.bytes_total, start.counts().bytes);
        // Paths are as one writes them behind the capability; a lone file has its name.
        let lone = below.is_empty() && !matches!(start.kind, Kind::Directory { .. });
        let name = if lone { start.name.as_bytes().to_vec() } else { below };
        // The directories being listed, the innermost last.
        let mut open: Vec<(Vec<u8>, OpenDirectory)> = Vec::new();
        if let Some(inside) = self.entry(name, &start, 0).await? {
            open.push(inside);
        }
        while let Some((path, directory)) = open.last_mut() {
            match directory.step().await {
                Ok(Reading::Fetch(extent)) => self.chunk(&extent, path).await?,
                Ok(Reading::Ready(child)) => {
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(child.name.as_bytes());
                    let depth = open.len();
                    if let Some(inside) = self.entry(below, &child, depth).await? {
                        open.push(inside);
                    }
                }
                Ok(Reading::End) => drop(open.pop()),
                Err(error) => {
                    self.say(Found::Unreadable(as_path(path), error)).await?;
                    open.pop();
                }
            }
        }
        Ok(())
    }

    /// The entry at the path; the nodes on the way to it are needed as well.
    pub(super) async fn find(
        &self,
        root: Extent,
        path: Vec<Name>,
    ) -> Result<Result<Entry, ReadError>, Gone> {
        let mut lookup = PathLookup::new(root, path);
        loop {
            match lookup.step() {
                Ok(Reading::Ready(entry)) => return Ok(Ok(entry)),
                Ok(Reading::Fetch(extent)) => {
                    self.chunk(&extent, b"").await?;
                    let fed = match self.tree.downloader().read_node(&extent).await {
                        Ok(node) => lookup.feed(&node).map_err(ReadError::from),
                        Err(error) => Err(error.into()),
                    };
                    if let Err(error) = fed {
                        return Ok(Err(error));
                    }
                }
                // A path lookup says NotFound instead.
                Ok(Reading::End) => return Ok(Err(ReadError::Stopped)),
                Err(error) => return Ok(Err(error.into())),
            }
        }
    }

    /// Counts an entry and names what a file needs; a directory is to be listed.
    async fn entry(
        &self,
        path: Vec<u8>,
        entry: &Entry,
        depth: usize,
    ) -> Result<Option<(Vec<u8>, OpenDirectory)>, Gone> {
        self.say(Found::Entry(Counted::from(&entry.kind))).await?;
        let inside = match &entry.kind {
            Kind::Directory { .. } if depth >= DEPTH_MAX => {
                Err(ReadError::TooDeep { depth: DEPTH_MAX })
            }
            Kind::Directory { .. } => self.tree.open(entry).map(Some),
            Kind::File { .. } => {
                let read = self.file(&path, entry).await?;
                Counters::add(&self.counters.files_done, 1);
                read.map(|()| None)
            }
            Kind::Symlink { .. } => Ok(None),
        };
        match inside {
            Ok(inside) => Ok(inside.map(|directory| (path, directory))),
            Err(error) => {
                self.say(Found::Unreadable(as_path(&path), error)).await?;
                Ok(None)
            }
        }
    }

    /// Names what a file needs.
    pub(super) async fn file(
        &self,
        path: &[u8],
        entry: &Entry,
    ) -> Result<Result<(), ReadError>, Gone> {
        let mut file = match FileRange::whole(entry) {
            Ok(file) => file,
            Err(error) => return Ok(Err(error.into())),
        };
        let needed_by: Arc<[u8]> = path.into();
        loop {
            match file.step() {
                Reading::End => return Ok(Ok(())),
                Reading::Ready(stretch) => {
                    Counters::add(&self.counters.bytes_done, stretch.bytes);
                    if let Source::Item { extent, .. } = stretch.source {
                        let chunk = ChunkRef::from(&extent);
                        self.say(Found::Chunk(chunk, Arc::clone(&needed_by))).await?;
                    }
                }
                Reading::Fetch(extent) => {
                    self.chunk(&extent, path).await?;
                    let fed = match self.tree.downloader().read_node(&extent).await {
                        Ok(node) => file.feed(&node).map_err(ReadError::from),
                        Err(error) => Err(error.into()),
                    };
                    if let Err(error) = fed {
                        return Ok(Err(error));
                    }
                }
            }
        }
    }

    async fn chunk(&self, extent: &Extent, path: &[u8]) -> Result<(), Gone> {
        self.say(Found::Chunk(ChunkRef::from(extent), path.into())).await
    }

    pub(super) async fn say(&self, found: Found) -> Result<(), Gone> {
        self.out.send(found).await.map_err(|_| Gone)
    }
}

fn as_path(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    std::ffi::OsString::from_vec(bytes.to_vec()).into()
}
