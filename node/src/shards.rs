//! Put, get and has of shards: here, or on another node on behalf of the asker.
//!
//! Owns verification before storing, receipts, and forwarding from the door to a node over QUIC.
//! Refuses to pass on what a peer asks: a request is forwarded once, so none goes in circles. The
//! door and the peer server are two ways in to this one service.

use std::sync::Arc;

use bytes::Bytes;
use copse_core::{
    identity::NodeKey,
    ids::{ChunkId, NetworkId, NodeId, ShardId},
    limits::{GROUP_BYTES, SHARD_BYTES_MAX},
    receipt::{Receipt, SignedReceipt},
};
use copse_proto::{
    convert, door, peer,
    status::{Reason, Refusal},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::Semaphore;

use crate::{
    beside::beside,
    buffers::{Buffers, Taken},
    clock::Clock,
    intake::Intake,
    peer::{Op, Outcome, PeerError, pool::PeerPool},
    refusals,
    repair::Pace,
    store::{ShardStore, VerifiedShard, Want},
};

/// Look-ups in the index at one time for one Has.
const HAS_AT_ONCE: usize = 8;

/// A range of a shard on its way to the asker.
#[derive(Debug)]
pub struct Found {
    /// What it is, and the proof.
    pub header: door::GetHeader,
    /// Its bytes.
    pub data: Bytes,
}

/// The service. Clones are the same one.
#[derive(Clone)]
pub struct ShardService(Arc<Inner>);

struct Inner {
    node: NodeId,
    network: NetworkId,
    key: NodeKey,
    clock: Clock,
    store: Arc<dyn ShardStore>,
    peers: PeerPool,
    put_buffers: Buffers,
    get_buffers: Buffers,
    /// Told of everyone who waits, so that repair holds back.
    pace: Pace,
    /// Closed when the node leaves: then it takes nothing new.
    intake: Intake,
    /// Hashing is pure computing: more at once than there are processors only takes turns.
    hashing: Semaphore,
}

/// What a [`ShardService`] is made of.
pub struct Parts {
    /// The network, named in receipts.
    pub network: NetworkId,
    /// The node's key, which signs them.
    pub key: NodeKey,
    /// The time in them.
    pub clock: Clock,
    /// Where shards are kept.
    pub store: Arc<dyn ShardStore>,
    /// The way to other nodes.
    pub peers: PeerPool,
    /// Memory for shards on their way in.
    pub put_buffers: Buffers,
    /// Memory for shards on their way out.
    pub get_buffers: Buffers,
    /// The budget of repair, which holds back while others are served.
    pub pace: Pace,
    /// Closed when the node leaves.
    pub intake: Intake,
}

impl ShardService {
    /// A service of these parts.
    pub fn new(parts: Parts) -> Self {
        let Parts { network, key, clock, store, peers, put_buffers, get_buffers, pace, intake } =
            parts;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Inner {
            node: key.id(),
            network,
            key,
            clock,
            store,
            peers,
            put_buffers,
            get_buffers,
            pace,
            intake,
            hashing: Semaphore::new(processors),
        }))
    }

    /// Memory for shards on their way in. Whoever reads a shard from a client takes it first.
    pub fn put_buffers(&self) -> &Buffers {
        &self.0.put_buffers
    }

    /// Takes nothing new from now on, and waits for what is under way: the node is leaving.
    pub async fn take_nothing_new(&self) {
        self.0.intake.close().await;
    }

    /// Notes that somebody is waiting for what this node does.
    pub fn foreground(&self) {
        self.0.pace.foreground();
    }

    /// Where shards are kept.
    pub fn store(&self) -> &Arc<dyn ShardStore> {
        &self.0.store
    }

    /// Stores a shard on `target`, here if there is none; the receipt of the node that stored it.
    ///
    /// # Errors
    /// When it is not stored, with the reason.
    pub async fn put(
        &self,
        target: Option<NodeId>,
        descriptor: Bytes,
        id: ShardId,
        data: Bytes,
    ) -> Result<door::Receipt, Refusal> {
        self.foreground();
        match self.elsewhere(target) {
            Some(to) => {
                let request =
                    peer::PutShard { descriptor: descriptor.to_vec(), index: id.index.0.into() };
                match self.0.peers.request(to, Op::PutShard(request), data).await?.outcome {
                    Outcome::PutShard(receipt) => Ok(receipt),
                    _ => Err(PeerError::BadReply { node: to }.into()),
                }
            }
            None => {
                let signed = self.put_here(descriptor, id, data).await?;
                Ok(convert::receipt(&signed))
            }
        }
    }

    /// Verifies a shard and stores it on this node. When this returns, it is on the disk.
    ///
    /// # Errors
    /// When it is not stored, with the reason.
    pub async fn put_here(
        &self,
        descriptor: Bytes,
        id: ShardId,
        data: Bytes,
    ) -> Result<SignedReceipt, Refusal> {
        let inner = &self.0;
        // Until there is an answer: who leaves waits for it.
        let _inside = inner.intake.enter(inner.node).await?;
        let shard_bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let verified = {
            let _turn = inner.hashing.acquire().await;
            beside(move || VerifiedShard::check(descriptor, id.index, data))
                .await
                .map_err(|error| Refusal::new(Reason::Internal, error.to_string()))?
                .map_err(|error| refusals::of_check(&error))?
        };
        if verified.id() != id {
            let message = format!("the descriptor is that of shard {}, not of {id}", verified.id());
            return Err(Refusal::new(Reason::ShardMismatch, message));
        }
        inner.store.put(verified).await.map_err(|error| {
            tracing::debug!(shard = %id, %error, "a shard was not stored");
            refusals::of_put(&error, inner.node)
        })?;
        let receipt = Receipt {
            network: inner.network,
            node: inner.node,
            shard: id,
            shard_bytes,
            stored_at: (inner.clock)(),
        };
        Ok(SignedReceipt::sign(receipt, &inner.key))
    }

    /// Reads a range of a shard from the request's target; the memory it takes until it is sent.
    ///
    /// # Errors
    /// When there is nothing to be read, with the reason.
    pub async fn get(&self, mut request: door::GetRequest) -> Result<(Found, Taken), Refusal> {
        self.foreground();
        let target = convert::target(&request.target)?;
        let mut memory = self.0.get_buffers.take(answer_bytes_max(&request)).await?;
        let found = match self.elsewhere(target) {
            None => self.get_here(&request).await?,
            Some(to) => {
                request.target.clear();
                // A node's word to another; no client has a shard to drop.
                request.counted_on = false;
                let answer = self.0.peers.request(to, Op::GetShard(request), Bytes::new()).await?;
                match answer.outcome {
                    Outcome::GetShard(header) => Found { header, data: answer.body },
                    _ => return Err(PeerError::BadReply { node: to }.into()),
                }
            }
        };
        memory.shrink_to(found.data.len());
        Ok((found, memory))
    }

    /// Reads a range of a shard of this node; the request's target does not matter.
    ///
    /// # Errors
    /// When there is nothing to be read, with the reason.
    pub async fn get_here(&self, request: &door::GetRequest) -> Result<Found, Refusal> {
        let id = convert::shard_id(&request.chunk_id, request.index)?;
        let want = self.want(id, request).await?;
        let read = self.0.store.read(id, want).await.map_err(|error| refusals::of_read(&error))?;
        let header = door::GetHeader {
            descriptor: read.descriptor.to_vec(),
            covered_offset: read.covered.start,
            covered_length: read.covered.end.saturating_sub(read.covered.start),
            proof: read.proof,
        };
        Ok(Found { header, data: read.data })
    }

    async fn want(&self, id: ShardId, request: &door::GetRequest) -> Result<Want, Refusal> {
        let start = request.offset;
        let end = match (start, request.length) {
            (0, 0) => return Ok(Want::Whole),
            // To the end, which only the store knows. Rare enough to read a group for it.
            (start, 0) => {
                let first = Want::Range(start..start.saturating_add(1));
                let read = self.0.store.read(id, first).await;
                read.map_err(|error| refusals::of_read(&error))?.shard_bytes
            }
            // Past the largest number is past the end, too.
            (start, length) => start.saturating_add(length),
        };
        Ok(Want::Range(start..end))
    }

    /// Which shards the request's target holds.
    ///
    /// # Errors
    /// When it cannot be asked or cannot tell.
    pub async fn has(&self, mut request: door::HasRequest) -> Result<door::HasReply, Refusal> {
        match self.elsewhere(convert::target(&request.target)?) {
            Some(to) => {
                // Checked before it is passed on: the limit is the same there.
                convert::has_chunks(&request)?;
                request.target.clear();
                let answer = self.0.peers.request(to, Op::HasShards(request), Bytes::new()).await?;
                match answer.outcome {
                    Outcome::HasShards(reply) => Ok(reply),
                    _ => Err(PeerError::BadReply { node: to }.into()),
                }
            }
            None => self.has_here(&request).await,
        }
    }

    /// Which shards this node holds; the request's target does not matter.
    ///
    /// # Errors
    /// When the store cannot tell.
    pub async fn has_here(&self, request: &door::HasRequest) -> Result<door::HasReply, Refusal> {
        let held = stream::iter(convert::has_chunks(request)?)
            .map(|chunk| self.held(chunk))
            .buffered(HAS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(door::HasReply { held })
    }

    async fn held(&self, chunk: ChunkId) -> Result<door::Held, Refusal> {
        let indices = self.0.store.held(chunk).await.map_err(|error| refusals::of_read(&error))?;
        Ok(convert::held(&indices))
    }

    /// The target, if it is another node.
    fn elsewhere(&self, target: Option<NodeId>) -> Option<NodeId> {
        target.filter(|target| *target != self.0.node)
    }
}

/// Bytes of the answer to a request, at most: a range is widened to whole groups at both ends.
fn answer_bytes_max(request: &door::GetRequest) -> usize {
    match usize::try_from(request.length) {
        Ok(0) | Err(_) => SHARD_BYTES_MAX,
        Ok(length) => length.saturating_add(2 * GROUP_BYTES).min(SHARD_BYTES_MAX),
    }
}
