//! The pieces of files under way: encoded and stored by tasks, recalled when stored before.
//!
//! Owns those tasks, the bound on them, and what the journal is asked and told. Knows no tree and no
//! order: each piece tells its extent to whoever waits for it. The one idea: what the journal knows
//! is believed only when the network proves that it still holds it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use copse_core::{chunk::EncodedChunk, extent::Extent, geometry::Geometry};
use tokio::{sync::oneshot, task::JoinSet};

use super::{Counters, PutTarget, PutTreeError};
use crate::{
    cut::Cut,
    encode::{PlaintextBuffer, PreparedChunk},
    journal::{Journal, JournalKey},
    local::{FileIdentity, FileReader, ReadFileError},
    lock::lock,
    task::beside,
};

/// Pieces of files under way at once, at most: read, asked for, encoded or sent. Memory is bounded
/// by the encoder's budget; this bounds the tasks that wait for it.
pub(super) const PIECES_MAX: usize = 64;

/// Context of the key that journal entries are looked up by.
const JOURNAL_CONTEXT: &str = "copse client journal v1";

/// The tasks of one transfer.
pub(super) struct Pieces {
    target: PutTarget,
    geometry: Geometry,
    cut: Cut,
    journal: Option<Arc<Mutex<Journal>>>,
    journal_context: [u8; 32],
    counters: Arc<Counters>,
    /// Chunks that the journal knew and the network holds.
    confirmed: Arc<AtomicU64>,
    /// Tasks that encode and store.
    jobs: JoinSet<Result<(), PutTreeError>>,
}

/// Where a piece is, or why the file that it belongs to cannot be put.
pub(super) type Told = Result<Extent, ReadFileError>;

/// A piece whose extent is noted in the journal when it is stored.
#[derive(Clone)]
pub(super) struct Known {
    path: PathBuf,
    key: JournalKey,
    identity: FileIdentity,
    offset: u64,
    bytes: usize,
}

impl Pieces {
    pub(super) fn new(
        target: &PutTarget,
        geometry: Geometry,
        cut: Cut,
        journal: Option<Journal>,
        counters: Arc<Counters>,
    ) -> Self {
        let mut context = blake3::Hasher::new_derive_key(JOURNAL_CONTEXT);
        context.update(target.encoder.secret().as_bytes()).update(target.network.id().as_bytes());
        Self {
            target: target.clone(),
            geometry,
            cut,
            journal: journal.map(|journal| Arc::new(Mutex::new(journal))),
            journal_context: *context.finalize().as_bytes(),
            counters,
            confirmed: Arc::default(),
            jobs: JoinSet::new(),
        }
    }

    /// Chunks that the journal knew and the network holds, so far.
    pub(super) fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// What the journal would call this piece; nothing for pieces that are packed, and of files that were
    /// changed just now: another content could have the same name.
    pub(super) fn known(&self, path: &Path, reader: &FileReader, bytes: usize) -> Option<Known> {
        if bytes <= self.cut.packed_bytes_max || self.journal.is_none() || !reader.is_settled() {
            return None;
        }
        let offset = reader.offset();
        let identity = reader.identity();
        let key =
            JournalKey::new(&self.journal_context, &identity, self.geometry, offset, bytes as u64);
        Some(Known { path: path.to_owned(), key, identity, offset, bytes })
    }

    /// Where the journal says that this piece is.
    pub(super) fn recall(&self, known: &Known) -> Option<Extent> {
        let journal = lock(self.journal.as_ref()?);
        let value = journal.get(&known.key).ok()??;
        let extent = Extent::decode(&value).ok()?;
        (extent.plaintext_bytes as usize == known.bytes).then_some(extent)
    }

    /// An empty buffer for a piece; waits while too much is under way.
    pub(super) async fn buffer(&self) -> PlaintextBuffer {
        self.target.encoder.plaintext_of(self.cut.chunk_bytes).await
    }

    /// Stores a piece as a chunk of its own. Its extent comes before the chunk is safe. `of` is what an error
    /// names it by.
    pub(super) fn store(
        &mut self,
        of: String,
        buffer: PlaintextBuffer,
        known: Option<Known>,
    ) -> oneshot::Receiver<Told> {
        let (tell, extent) = oneshot::channel();
        let job = Job::new(self, of, known);
        self.jobs.spawn(async move { job.store(buffer, tell).await });
        extent
    }

    /// Stores a chunk that is made already. Waits while memory is short: nothing else makes these.
    pub(super) async fn store_chunk(&mut self, of: String, chunk: EncodedChunk) {
        let prepared = self.target.encoder.budget().admit(chunk).await;
        let job = Job::new(self, of, None);
        self.jobs.spawn(async move { job.upload(prepared).await });
    }

    /// A piece that was stored before; if it is not held any more, it is read and stored again. When
    /// that fails, the file does, and the transfer goes on.
    pub(super) fn confirm(&mut self, known: Known, extent: Extent) -> oneshot::Receiver<Told> {
        let (tell, receiver) = oneshot::channel();
        let job = Job::new(self, known.path.display().to_string(), Some(known.clone()));
        let (confirmed, chunk_bytes) = (self.confirmed.clone(), self.cut.chunk_bytes);
        let confirming = async move {
            if job.target.uploader.is_whole(&extent).await {
                confirmed.fetch_add(1, Ordering::Relaxed);
                job.counters.add_known(known.bytes as u64);
                // Nobody listens when the file was abandoned.
                let _ = tell.send(Ok(extent));
                return Ok(());
            }
            let mut buffer = job.target.encoder.plaintext_of(chunk_bytes).await;
            let read = beside(move || {
                let mut reader = FileReader::open(&known.path)?;
                if reader.identity() != known.identity {
                    return Err(ReadFileError::Changed { path: known.path });
                }
                reader.skip(known.offset)?;
                reader.read(known.bytes, &mut buffer)?;
                reader.check()?;
                Ok::<_, ReadFileError>(buffer)
            });
            match read.await? {
                Ok(buffer) => job.store(buffer, tell).await,
                Err(error) => {
                    let _ = tell.send(Err(error));
                    Ok(())
                }
            }
        };
        self.jobs.spawn(confirming);
        receiver
    }

    /// Takes in the results of tasks until at most `left` are under way.
    pub(super) async fn reap(&mut self, left: usize) -> Result<(), PutTreeError> {
        while let Some(done) = self.jobs.try_join_next() {
            done??;
        }
        while self.jobs.len() > left {
            if let Some(done) = self.jobs.join_next().await {
                done??;
            }
        }
        Ok(())
    }
}

/// What a task needs to store one chunk.
struct Job {
    of: String,
    target: PutTarget,
    geometry: Geometry,
    counters: Arc<Counters>,
    journal: Option<(Arc<Mutex<Journal>>, JournalKey)>,
}

impl Job {
    fn new(pieces: &Pieces, of: String, known: Option<Known>) -> Self {
        Self {
            of,
            target: pieces.target.clone(),
            geometry: pieces.geometry,
            counters: pieces.counters.clone(),
            journal: pieces.journal.clone().zip(known.map(|known| known.key)),
        }
    }

    async fn store(
        self,
        plaintext: PlaintextBuffer,
        tell: oneshot::Sender<Told>,
    ) -> Result<(), PutTreeError> {
        let bytes = plaintext.len() as u64;
        let (prepared, extent) = self.target.encoder.bulk(self.geometry, plaintext).await?;
        let value = extent.encode();
        // Nobody listens when the file was abandoned.
        let _ = tell.send(Ok(extent));
        let (counters, journal) = (self.counters.clone(), self.journal.clone());
        self.upload(prepared).await?;
        Counters::add(&counters.bytes_done, bytes);
        if let Some((journal, key)) = journal {
            // A journal that cannot be written costs time later, nothing now. The write is short
            // and goes to the page cache.
            let mut journal = lock(&journal);
            if let Err(error) = journal.put(&key, &value) {
                tracing::debug!(%error, "the journal was not written");
            }
        }
        Ok(())
    }

    async fn upload(self, prepared: PreparedChunk) -> Result<(), PutTreeError> {
        let Self { of, target, .. } = self;
        let stored = target.uploader.submit(prepared).await.await;
        stored.map(|_| ()).map_err(|source| PutTreeError::Put { of, source })
    }
}
