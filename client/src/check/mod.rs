//! Whether a tree's chunks have all their shards, and making those that are missing.
//!
//! Owns the way through one tree and the sums over it. Only the walk needs keys, those of the tree or
//! that of its manifest: it names chunks, and [`Checker`] finds and repairs their shards knowing no
//! more of them than a node does. The one idea: chunks go by in batches, so memory does not grow with the tree but for the ids of those
//! that were met.
//!
//! ```text
//! manifest ─ listed ─▶ chunk ┐
//! tree ─ walk ─▶ chunk, path ┴ 1024 at once ─▶ Has to all that may hold ─ proofs ─▶ strength
//!                                                                                     │
//!                      report ◀─ proof read back ◀─ put ◀─ rebuilt from any k ◀─ missing
//! ```

mod census;
mod health;
mod listed;
mod place;
mod repair;
mod report;
mod verifier;
mod walk;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicU64},
};

use copse_core::{
    capability::{Capability, VerifyCapability},
    tree::{Kind, Name},
};
use copse_proto::convert::HAS_CHUNKS_MAX;
use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;

pub use self::{
    census::{Checker, NodeReport},
    health::{ChunkHealth, Strength, Survives},
    repair::{RepairError, Repaired},
    report::{CheckReport, Mended, Weak},
    verifier::{Verifier, VerifierError, make_verifier},
};
use crate::{
    check::walk::Found, error::ReadError, get::Downloader, task::Task, transfer::Counters,
    tree_read::TreeReader,
};
pub use copse_core::manifest::ChunkRef;

/// Chunks checked together: as many as one Has may ask for.
const BATCH_CHUNKS: usize = HAS_CHUNKS_MAX;

/// Chunks repaired at once. Each takes up to twice its size, 16 MiB, and more hardly helps: their
/// shards go to many nodes.
const REPAIRS_AT_ONCE: usize = 3;

/// Chunks remembered, so that each is counted once however many files share it: 8 TB in full ones,
/// for 80 MB of memory. What is met beyond that may be checked and counted twice.
const CHUNKS_REMEMBERED_MAX: usize = 1 << 20;

/// What is done with a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Have one random group of each shard proved, instead of taking the nodes' word.
    pub deep: bool,
    /// Make the shards that are missing. Without it nothing is written.
    pub repair: bool,
}

/// How far a check is, for those who watch.
#[derive(Debug, Default)]
pub struct CheckProgress {
    /// Bytes and files of the tree that the walk has passed.
    pub counters: Arc<Counters>,
    /// Chunks checked.
    pub chunks: AtomicU64,
    /// Of these, with less than all their shards.
    pub weak: AtomicU64,
}

/// Checks the tree of a capability, or what lies at a path in it.
///
/// # Errors
/// When there is nothing at the path. What cannot be read for want of shards is in the report.
pub async fn check_tree(
    tree: &TreeReader,
    capability: &Capability,
    path: Vec<Name>,
    checker: &Checker,
    options: CheckOptions,
    progress: Arc<CheckProgress>,
) -> Result<CheckReport, ReadError> {
    let counters = Arc::clone(&progress.counters);
    let root = capability.root().clone();
    let walk = walk::start(tree.clone(), root, path, counters);
    Run::new(checker, options, progress).all(walk).await
}

/// Checks the chunks that the manifest of a verify capability lists, and those that it is made of.
/// They have no paths, but for the manifest's own, whose path is empty.
///
/// # Errors
/// When the capability is of another network, or what it names is no manifest. One that cannot be
/// read for want of shards is in the report.
pub async fn check_manifest(
    downloader: &Downloader,
    capability: &VerifyCapability,
    checker: &Checker,
    options: CheckOptions,
    progress: Arc<CheckProgress>,
) -> Result<CheckReport, ReadError> {
    let tree = TreeReader::of_manifest(downloader.clone(), capability)?;
    let counters = Arc::clone(&progress.counters);
    let walk = listed::start(tree, capability.manifest().clone(), counters);
    let mut run = Run::new(checker, options, progress);
    run.report.listed = Some(0);
    run.all(walk).await
}

/// A file, directory or link, as the report counts it.
#[derive(Debug, Clone, Copy)]
struct Counted {
    kind: CountedKind,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
enum CountedKind {
    File,
    Directory,
    Symlink,
}

impl From<&Kind> for Counted {
    fn from(kind: &Kind) -> Self {
        match kind {
            Kind::File { size, .. } => Self { kind: CountedKind::File, bytes: *size },
            Kind::Directory { .. } => Self { kind: CountedKind::Directory, bytes: 0 },
            Kind::Symlink { .. } => Self { kind: CountedKind::Symlink, bytes: 0 },
        }
    }
}

/// A check under way.
struct Run<'a> {
    checker: &'a Checker,
    options: CheckOptions,
    progress: Arc<CheckProgress>,
    report: CheckReport,
    batch: Vec<(ChunkRef, Paths)>,
    /// Where in the batch a chunk is.
    places: HashMap<ChunkRef, usize>,
    met: HashSet<ChunkRef>,
}

/// Where a chunk is needed: the first paths, the rest counted. An empty path is the way to the tree
/// itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// The first, as they lie in the tree.
    pub first: Vec<Arc<[u8]>>,
    /// How many more.
    pub more: u64,
    last: Option<Arc<[u8]>>,
}

/// Paths named for a chunk; the rest is counted. A pack may serve thousands of files.
const PATHS_NAMED: usize = 8;

impl Paths {
    /// Many pieces of one file may lie in one chunk, one after the other: that is one path.
    fn add(&mut self, path: Arc<[u8]>) {
        if self.last.as_ref() == Some(&path) || self.first.contains(&path) {
            return;
        }
        self.last = Some(Arc::clone(&path));
        if self.first.len() < PATHS_NAMED {
            self.first.push(path);
        } else {
            self.more += 1;
        }
    }
}

impl<'a> Run<'a> {
    fn new(checker: &'a Checker, options: CheckOptions, progress: Arc<CheckProgress>) -> Self {
        Self {
            checker,
            options,
            progress,
            report: CheckReport::default(),
            batch: Vec::new(),
            places: HashMap::new(),
            met: HashSet::new(),
        }
    }

    /// Takes all that a walk finds.
    async fn all(
        mut self,
        (walking, mut found): (Task<()>, mpsc::Receiver<Found>),
    ) -> Result<CheckReport, ReadError> {
        while let Some(found) = found.recv().await {
            match found {
                Found::Chunk(chunk, path) => self.chunk(chunk, path).await,
                Found::Listed(chunk) => self.listed(chunk).await,
                Found::Entry(entry) => self.report.entry(&entry),
                Found::Unreadable(path, error) => self.report.unreadable(&path, &error),
                Found::Nothing(error) => return Err(error),
            }
        }
        // A walk that broke off has not named everything.
        walking.await.map_err(|_| ReadError::Stopped)?;
        self.flush().await;
        Ok(self.report.finish(self.checker.nodes()))
    }

    /// A manifest lists each chunk once, so none is remembered.
    async fn listed(&mut self, chunk: ChunkRef) {
        if let Some(listed) = &mut self.report.listed {
            *listed += 1;
        }
        if !self.met.contains(&chunk) {
            self.batch(chunk, Paths::default()).await;
        }
    }

    async fn chunk(&mut self, chunk: ChunkRef, path: Arc<[u8]>) {
        if let Some(at) = self.places.get(&chunk) {
            self.batch[*at].1.add(path);
            return;
        }
        if self.met.contains(&chunk) {
            self.report.needed_by(&chunk, path);
            return;
        }
        if self.met.len() < CHUNKS_REMEMBERED_MAX {
            self.met.insert(chunk);
        }
        let mut paths = Paths::default();
        paths.add(path);
        self.batch(chunk, paths).await;
    }

    async fn batch(&mut self, chunk: ChunkRef, paths: Paths) {
        self.places.insert(chunk, self.batch.len());
        self.batch.push((chunk, paths));
        if self.batch.len() >= BATCH_CHUNKS {
            self.flush().await;
        }
    }

    /// Checks the batch, repairs what is weak if that is wanted, and counts it.
    async fn flush(&mut self) {
        self.places.clear();
        let (chunks, paths): (Vec<ChunkRef>, Vec<Paths>) = self.batch.drain(..).unzip();
        let found = self.checker.check(&chunks, self.options.deep).await;
        let (checker, repair) = (self.checker, self.options.repair);
        // In order, so that the same tree gives the same report.
        let mut ended = stream::iter(found.into_iter().zip(paths))
            .map(|(mut health, paths)| async move {
                let before = health.have();
                let weak = health.strength() != Strength::Whole;
                let repaired = match repair && weak {
                    true => Some(checker.repair(&mut health).await),
                    false => None,
                };
                (health, paths, before, repaired)
            })
            .buffered(REPAIRS_AT_ONCE);
        while let Some((health, paths, before, repaired)) = ended.next().await {
            Counters::add(&self.progress.chunks, 1);
            if before < health.chunk.geometry.total() {
                Counters::add(&self.progress.weak, 1);
            }
            let survives = health.survives(self.checker.zones());
            self.report.chunk(&health, survives, paths, before, repaired);
        }
    }
}
