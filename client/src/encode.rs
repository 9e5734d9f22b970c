//! Plaintext to chunks, on as many threads as there are cores, in bounded memory.
//!
//! Owns the buffers: plaintext on its way in, encoded chunks on their way out. Sends nothing. The one
//! idea: a buffer is waited for before it is filled, and comes back by itself when its last user
//! drops it, so memory is bounded by the budget however large the file is.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use bytes::Bytes;
use copse_core::{
    chunk::{self, EncodedChunk},
    extent::Extent,
    geometry::Geometry,
    ids::{ChunkId, ShardIndex},
    layout::Layout,
    limits::CHUNK_BYTES_MAX,
    manifest::ChunkRef,
    seal::ConvergenceSecret,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    buffers::Pool,
    error::EncodeError,
    task::{beside, cores},
};

/// Encoded chunks in memory, in bytes, unless told otherwise: eight full chunks of 10+6. With the
/// plaintext buffers and the connections' own buffers it keeps a client under 256 MiB.
pub const ENCODED_BYTES_MAX: usize = 96 << 20;

/// Plaintext buffers, at most, of 8 MiB each: one being read and one for each encoding thread.
const PLAINTEXT_BUFFERS_MAX: usize = 6;

/// Buffers kept for use again, in bytes, at most: three full chunks of 10+6. They come on top of
/// what is in use.
const KEPT_BYTES_MAX: usize = 36 << 20;

/// What the chunks on their way out may take. Cheap to clone; all clones share the budget.
#[derive(Clone)]
pub struct Budget {
    bytes_max: usize,
    bytes: Arc<Semaphore>,
    kept: Arc<Pool>,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(ENCODED_BYTES_MAX)
    }
}

impl Budget {
    /// A budget of this many bytes. One chunk is always let through, however large.
    pub fn new(bytes_max: usize) -> Self {
        let bytes_max = bytes_max.clamp(1 << 20, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self {
            bytes_max,
            bytes: Arc::new(Semaphore::new(bytes_max)),
            kept: Pool::new(KEPT_BYTES_MAX),
        }
    }

    /// How many bytes are in use now.
    pub fn in_use(&self) -> usize {
        self.bytes_max - self.bytes.available_permits()
    }

    async fn reserve(&self, bytes: usize) -> OwnedSemaphorePermit {
        // Cannot be over u32: the maximum is not.
        let permits = u32::try_from(bytes.min(self.bytes_max)).unwrap_or(u32::MAX);
        // Never closed, so this always succeeds.
        match Arc::clone(&self.bytes).acquire_many_owned(permits).await {
            Ok(permit) => permit,
            Err(_) => unreachable!("the budget is never closed"),
        }
    }

    /// Takes a chunk that was encoded elsewhere into the budget.
    pub async fn admit(&self, chunk: EncodedChunk) -> PreparedChunk {
        let permit = self.reserve(encoded_bytes(chunk.descriptor())).await;
        PreparedChunk::new(chunk, permit, Arc::clone(&self.kept))
    }
}

/// Bytes of the buffer behind an encoded chunk: replicas are in it only once.
fn encoded_bytes(descriptor: &copse_core::descriptor::Descriptor) -> usize {
    let geometry = descriptor.geometry();
    let slots = if geometry.data() == 1 { 1 } else { geometry.total() };
    slots * descriptor.shard_bytes()
}

fn layout_bytes(layout: Layout) -> usize {
    let geometry = layout.geometry();
    let slots = if geometry.data() == 1 { 1 } else { geometry.total() };
    slots * layout.shard_bytes()
}

/// An encoded chunk whose memory counts against a [`Budget`]. Its shards are slices of one buffer,
/// which goes back to the budget when the last of them is dropped.
#[derive(Clone)]
pub struct PreparedChunk {
    id: ChunkId,
    geometry: Geometry,
    shard_bytes: usize,
    descriptor: Vec<u8>,
    bytes: Bytes,
}

impl fmt::Debug for PreparedChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PreparedChunk({}, {})", self.id.short(), self.geometry)
    }
}

impl PreparedChunk {
    fn new(chunk: EncodedChunk, permit: OwnedSemaphorePermit, kept: Arc<Pool>) -> Self {
        let descriptor = chunk.descriptor();
        Self {
            id: chunk.id(),
            geometry: descriptor.geometry(),
            shard_bytes: descriptor.shard_bytes(),
            descriptor: descriptor.encode(),
            bytes: Bytes::from_owner(Owner { buffer: chunk.into_buffer(), kept, _permit: permit }),
        }
    }

    /// The chunk's id.
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// (k, n) of the chunk.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Bytes of each shard.
    pub fn shard_bytes(&self) -> usize {
        self.shard_bytes
    }

    /// What one must know of it to ask for its shards.
    pub(crate) fn reference(&self) -> ChunkRef {
        // At most SHARD_BYTES_MAX, which fits.
        let shard_bytes = u32::try_from(self.shard_bytes).unwrap_or(u32::MAX);
        ChunkRef { id: self.id, geometry: self.geometry, shard_bytes }
    }

    /// The bytes of the descriptor.
    pub fn descriptor(&self) -> &[u8] {
        &self.descriptor
    }

    /// The bytes of one shard; shared, not copied.
    pub fn shard(&self, index: ShardIndex) -> Bytes {
        let slot = if self.geometry.data() == 1 { 0 } else { index.as_usize() };
        self.bytes.slice(slot * self.shard_bytes..(slot + 1) * self.shard_bytes)
    }
}

/// Keeps a buffer and its share of the budget together until the last slice of it is gone.
struct Owner {
    buffer: Vec<u8>,
    kept: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.kept.give_back(std::mem::take(&mut self.buffer));
    }
}

/// Makes chunks on blocking threads. Cheap to clone; all clones share threads and buffers.
#[derive(Clone)]
pub struct Encoder {
    inner: Arc<EncoderInner>,
}

struct EncoderInner {
    secret: ConvergenceSecret,
    budget: Budget,
    threads: Arc<Semaphore>,
    plaintexts: Arc<Semaphore>,
    plaintext_kept: Arc<Pool>,
}

/// A buffer for plaintext, from [`Encoder::plaintext`]. Read into it what a chunk shall hold.
pub struct PlaintextBuffer {
    buffer: Vec<u8>,
    kept: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Deref for PlaintextBuffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.buffer
    }
}

impl DerefMut for PlaintextBuffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }
}

impl Drop for PlaintextBuffer {
    fn drop(&mut self) {
        self.kept.give_back(std::mem::take(&mut self.buffer));
    }
}

impl Encoder {
    /// An encoder for one convergence secret, on as many threads as there are cores.
    pub fn new(secret: ConvergenceSecret, budget: Budget) -> Self {
        let cores = cores();
        Self {
            inner: Arc::new(EncoderInner {
                secret,
                budget,
                threads: Arc::new(Semaphore::new(cores)),
                plaintexts: Arc::new(Semaphore::new((cores + 1).min(PLAINTEXT_BUFFERS_MAX))),
                plaintext_kept: Pool::new(PLAINTEXT_BUFFERS_MAX * CHUNK_BYTES_MAX),
            }),
        }
    }

    /// The secret that makes equal content meet.
    pub fn secret(&self) -> &ConvergenceSecret {
        &self.inner.secret
    }

    /// The budget of the chunks made.
    pub fn budget(&self) -> &Budget {
        &self.inner.budget
    }

    /// An empty buffer for the plaintext of a chunk, with room for the largest. Waits while all
    /// are in use, so that reading goes no faster than encoding.
    pub async fn plaintext(&self) -> PlaintextBuffer {
        self.plaintext_of(CHUNK_BYTES_MAX).await
    }

    /// The same, with room for so many bytes.
    pub(crate) async fn plaintext_of(&self, bytes: usize) -> PlaintextBuffer {
        let permit = match Arc::clone(&self.inner.plaintexts).acquire_owned().await {
            Ok(permit) => permit,
            Err(_) => unreachable!("the buffers are never closed"),
        };
        let kept = Arc::clone(&self.inner.plaintext_kept);
        let mut buffer = kept.take(bytes);
        buffer.clear();
        buffer.reserve_exact(bytes);
        PlaintextBuffer { buffer, kept, _permit: permit }
    }

    /// A chunk with one item: the piece of a large file. At most
    /// `Layout::largest(geometry).plaintext_bytes_max()` bytes.
    ///
    /// # Errors
    /// When it is more than that.
    pub async fn bulk(
        &self,
        geometry: Geometry,
        plaintext: PlaintextBuffer,
    ) -> Result<(PreparedChunk, Extent), EncodeError> {
        let length = plaintext.len();
        let layout = Layout::for_plaintext(geometry.for_plaintext(length), length)?;
        self.run(layout_bytes(layout), move |secret, buffer| {
            chunk::encode_bulk(geometry, secret, &plaintext, buffer)
        })
        .await
    }

    /// A chunk of a body that is already sealed: a pack.
    ///
    /// # Errors
    /// When it is more than a chunk holds.
    pub async fn body(
        &self,
        geometry: Geometry,
        body: Vec<u8>,
    ) -> Result<PreparedChunk, EncodeError> {
        let layout = Layout::for_body(geometry.for_plaintext(body.len()), body.len())?;
        let encode = move |secret: &_, buffer| {
            chunk::encode_body(geometry, &body, secret, buffer).map(|chunk| (chunk, ()))
        };
        Ok(self.run(layout_bytes(layout), encode).await?.0)
    }

    /// Waits for memory, then for a thread, and encodes there.
    async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        encode: impl FnOnce(
            &ConvergenceSecret,
            Vec<u8>,
        ) -> Result<(EncodedChunk, T), copse_core::layout::LayoutError>
        + Send
        + 'static,
    ) -> Result<(PreparedChunk, T), EncodeError> {
        let permit = self.inner.budget.reserve(bytes).await;
        let Ok(thread) = Arc::clone(&self.inner.threads).acquire_owned().await else {
            unreachable!("the threads are never closed");
        };
        let inner = Arc::clone(&self.inner);
        let work = move || {
            let kept = Arc::clone(&inner.budget.kept);
            let (chunk, rest) = encode(&inner.secret, kept.take(bytes))?;
            drop(thread);
            Ok((PreparedChunk::new(chunk, permit, kept), rest))
        };
        beside(work).await.map_err(|_| EncodeError::Thread)?
    }
}
