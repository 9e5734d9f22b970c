//! Looking into a tree: an entry by its path, a directory's entries, everything below.
//!
//! Owns the fetching that the machines of `copse_core::tree` ask for. Decodes nothing itself. The one idea: a node is fetched before it is needed, but never more
//! than a few.

use std::collections::VecDeque;

use bytes::Bytes;
use copse_core::{
    capability::{Capability, VerifyCapability},
    extent::Extent,
    tree::{Entry, Kind, Listing, Name, PathLookup, Reading},
};
use futures::{Stream, stream};

use crate::{
    content::FileReader,
    error::{GetError, ReadError},
    get::Downloader,
    task::Task,
};

/// Nodes of a directory fetched ahead while it is listed.
const NODES_AHEAD: usize = 4;

/// Directories open at once in a walk; PATH_MAX of Linux allows no deeper tree of one-letter names.
pub const DEPTH_MAX: usize = 2048;

/// A tree in the network. Cheap to clone; all clones share what was read.
#[derive(Clone)]
pub struct TreeReader {
    downloader: Downloader,
    root: Extent,
}

/// An entry and its path, as met on a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// The names from where the walk began, which is not among them; empty for the start itself.
    pub path: Vec<Name>,
    /// What is there.
    pub entry: Entry,
}

impl TreeReader {
    /// The tree that a capability names.
    ///
    /// # Errors
    /// When it is in another network.
    pub fn new(downloader: Downloader, capability: &Capability) -> Result<Self, ReadError> {
        capability.check_network(downloader.network().id())?;
        Ok(Self { downloader, root: capability.root().clone() })
    }

    /// The manifest that a verify capability names: a tree of one file.
    pub(crate) fn of_manifest(
        downloader: Downloader,
        capability: &VerifyCapability,
    ) -> Result<Self, ReadError> {
        capability.check_network(downloader.network().id())?;
        Ok(Self { downloader, root: capability.manifest().clone() })
    }

    /// The listing of a directory, step by step.
    pub(crate) fn open(&self, directory: &Entry) -> Result<OpenDirectory, ReadError> {
        Ok(OpenDirectory::new(self, Listing::of(directory)?))
    }

    /// What reads its data.
    pub fn downloader(&self) -> &Downloader {
        &self.downloader
    }

    /// The entry of the root: a directory, or the file or link that the capability is for.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn root(&self) -> Result<Entry, ReadError> {
        self.lookup(Vec::new()).await
    }

    /// The entry at a path; the root for an empty one. Links are not followed.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub async fn lookup(&self, path: Vec<Name>) -> Result<Entry, ReadError> {
        let mut lookup = PathLookup::new(self.root.clone(), path);
        loop {
            match lookup.step()? {
                Reading::Fetch(extent) => {
                    lookup.feed(&self.downloader.read_node(&extent).await?)?
                }
                Reading::Ready(entry) => return Ok(entry),
                // A path lookup says NotFound instead.
                Reading::End => return Err(ReadError::Stopped),
            }
        }
    }

    /// The entries of a directory, in the order of their names, as they are read.
    ///
    /// # Errors
    /// When the entry is no directory.
    pub fn list(
        &self,
        directory: &Entry,
    ) -> Result<impl Stream<Item = Result<Entry, ReadError>> + Send + use<>, ReadError> {
        Ok(self.stream(Listing::of(directory)?))
    }

    /// The entries of a directory from this name on; those before it are not read.
    ///
    /// # Errors
    /// When the entry is no directory.
    pub fn list_from(
        &self,
        directory: &Entry,
        from: Name,
    ) -> Result<impl Stream<Item = Result<Entry, ReadError>> + Send + use<>, ReadError> {
        Ok(self.stream(Listing::of(directory)?.starting_at(from)))
    }

    fn stream(
        &self,
        listing: Listing,
    ) -> impl Stream<Item = Result<Entry, ReadError>> + Send + use<> {
        stream::try_unfold(OpenDirectory::new(self, listing), |mut open| async move {
            Ok(open.next().await?.map(|entry| (entry, open)))
        })
    }

    /// An entry and everything below it: a directory before what is in it, names in order.
    pub fn walk(&self, start: Entry) -> impl Stream<Item = Result<Met, ReadError>> + Send + use<> {
        let walk =
            Walk { tree: self.clone(), start: Some(start), path: Vec::new(), open: Vec::new() };
        stream::try_unfold(
            walk,
            |mut walk| async move { Ok(walk.next().await?.map(|met| (met, walk))) },
        )
    }

    /// All of a file.
    ///
    /// # Errors
    /// When the entry is no file.
    pub fn read(&self, file: &Entry) -> Result<FileReader, ReadError> {
        FileReader::whole(self.downloader.clone(), file)
    }
}

/// A directory being listed.
pub(crate) struct OpenDirectory {
    downloader: Downloader,
    listing: Listing,
    ahead: VecDeque<(Extent, Task<Result<Bytes, GetError>>)>,
    wanted: Option<Extent>,
}

impl OpenDirectory {
    fn new(tree: &TreeReader, listing: Listing) -> Self {
        let downloader = tree.downloader.clone();
        Self { downloader, listing, ahead: VecDeque::new(), wanted: None }
    }

    async fn next(&mut self) -> Result<Option<Entry>, ReadError> {
        loop {
            match self.step().await? {
                Reading::Ready(entry) => return Ok(Some(entry)),
                Reading::End => return Ok(None),
                Reading::Fetch(_) => {}
            }
        }
    }

    /// The next entry, the end, or a node that will be fetched by the next step.
    pub(crate) async fn step(&mut self) -> Result<Reading<Entry>, ReadError> {
        if let Some(extent) = self.wanted.take() {
            let node = self.fetch(&extent).await?;
            self.listing.feed(&node)?;
        }
        let step = self.listing.step()?;
        if let Reading::Fetch(extent) = &step {
            self.wanted = Some(extent.clone());
        }
        Ok(step)
    }

    /// Fetches a node, and begins to fetch those after it.
    async fn fetch(&mut self, extent: &Extent) -> Result<Bytes, ReadError> {
        // The nodes come in the order in which they were begun.
        let begun = self.ahead.pop_front().filter(|(next, _)| next == extent);
        let next: Vec<Extent> = self.listing.ahead().skip(1).take(NODES_AHEAD).cloned().collect();
        self.ahead.retain(|(begun, _)| next.contains(begun));
        for extent in next {
            if !self.ahead.iter().any(|(begun, _)| *begun == extent) {
                let (downloader, wanted) = (self.downloader.clone(), extent.clone());
                let task = Task::spawn(async move { downloader.read_node(&wanted).await });
                self.ahead.push_back((extent, task));
            }
        }
        match begun {
            Some((_, task)) => Ok(task.await.map_err(|_| ReadError::Stopped)??),
            None => Ok(self.downloader.read_node(extent).await?),
        }
    }
}

/// A walk through a tree, depth first.
struct Walk {
    tree: TreeReader,
    start: Option<Entry>,
    path: Vec<Name>,
    open: Vec<OpenDirectory>,
}

impl Walk {
    async fn next(&mut self) -> Result<Option<Met>, ReadError> {
        if let Some(start) = self.start.take() {
            self.enter(&start)?;
            return Ok(Some(Met { path: Vec::new(), entry: start }));
        }
        loop {
            let Some(directory) = self.open.last_mut() else { return Ok(None) };
            match directory.next().await? {
                Some(entry) => {
                    self.path.truncate(self.open.len() - 1);
                    self.path.push(entry.name.clone());
                    let path = self.path.clone();
                    self.enter(&entry)?;
                    return Ok(Some(Met { path, entry }));
                }
                None => {
                    self.open.pop();
                }
            }
        }
    }

    fn enter(&mut self, entry: &Entry) -> Result<(), ReadError> {
        if matches!(entry.kind, Kind::Directory { .. }) {
            if self.open.len() >= DEPTH_MAX {
                return Err(ReadError::TooDeep { depth: DEPTH_MAX });
            }
            self.open.push(OpenDirectory::new(&self.tree, Listing::of(entry)?));
        }
        Ok(())
    }
}
