//! Put, get and has of shards: here, or on another node on behalf of the asker.
//!
//! Owns verification before storing, receipts, and forwarding from the door to a node over QUIC.
//! Refuses to pass on what a peer asks: a request is forwarded once, so none goes in circles. The
//! door and the peer server are two ways in to this one service.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use copse_core::{
    identity::NodeKey,
    ids::{ChunkId, NetworkId, NodeId, ShardId},
    limits::{GROUP_BYTES, SHARD_BYTES_MAX},
    receipt::{Receipt, SignedReceipt},
};
use copse_proto::{
    convert::{self, MARK_CHUNKS_MAX},
    door, peer,
    status::{Reason, Refusal},
};
use futures::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    beside::beside,
    buffers::{Buffers, Taken},
    clock::Clock,
    intake::Intake,
    peer::{Op, Outcome, PeerError, pool::PeerPool},
    refusals,
    repair::Pace,
    store::{ShardStore, Stored, VerifiedShard, Want},
    unsettled::{Coming, Origin, Place, Unsettled},
};

/// Look-ups in the index at one time for one Has.
const HAS_AT_ONCE: usize = 8;

/// How long a node is waited for that must be told how a put ended: who does not hear it counts its shards
/// as those of any other chunk.
const MARK_TIMEOUT: Duration = Duration::from_secs(10);

/// Pauses before it is told once more, within that time: it may have been busy, or the connection lost.
const MARK_AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

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
    /// Chunks of which nobody has said yet that they are safe.
    unsettled: Unsettled,
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
    /// Chunks of which nobody has said yet that they are safe.
    pub unsettled: Unsettled,
}

impl ShardService {
    /// A service of these parts.
    pub fn new(parts: Parts) -> Self {
        let Parts { network, key, clock, store, peers, put_buffers, get_buffers, .. } = parts;
        let (pace, intake, unsettled) = (parts.pace, parts.intake, parts.unsettled);
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
            unsettled,
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

    /// Chunks of which nobody has said yet that they are safe.
    pub fn unsettled(&self) -> &Unsettled {
        &self.0.unsettled
    }

    /// Stores a shard on `target`, here if there is none; the receipt of the node that stored it. `stream`
    /// is the client's, if it says when the chunk is safe.
    ///
    /// # Errors
    /// When it is not stored, with the reason.
    pub async fn put(
        &self,
        target: Option<NodeId>,
        descriptor: Bytes,
        id: ShardId,
        data: Bytes,
        stream: Option<Origin>,
    ) -> Result<door::Receipt, Refusal> {
        self.foreground();
        let Some(to) = self.elsewhere(target) else {
            let coming = stream.map_or(Coming::Otherwise, Coming::Settling);
            return self.put_here(descriptor, id, data, coming).await;
        };
        let geometry = convert::descriptor(&descriptor)?.geometry();
        let request = peer::PutShard {
            descriptor: descriptor.to_vec(),
            index: id.index.0.into(),
            settles: stream.is_some(),
            abandoned: false,
        };
        let answer = self.0.peers.request(to, Op::PutShard(request), data).await?;
        let Outcome::PutShard(receipt) = answer.outcome else {
            return Err(PeerError::BadReply { node: to }.into());
        };
        if let Some(stream) = stream.filter(|_| receipt.unsettled) {
            let left = self.0.unsettled.came(stream, Some(to), id, geometry);
            self.abandon(stream, left.into_iter().collect()).await;
        }
        Ok(receipt)
    }

    /// A chunk is safe, as the client says that put it.
    ///
    /// # Errors
    /// When the node that holds shards of it cannot be told, or cannot write it down.
    pub async fn settle(&self, settled: &door::Settled) -> Result<(), Refusal> {
        let chunk = convert::chunk_id(&settled.chunk_id)?;
        let to = self.elsewhere(convert::target(&settled.target)?);
        self.settle_at((to, chunk)).await?;
        let Some(to) = to else { return Ok(()) };
        // Whatever is known here: another client's put of the chunk may have been broken off.
        let settled = vec![chunk.as_bytes().to_vec()];
        let told = peer::MarkChunks { settled, ..peer::MarkChunks::default() };
        self.mark(to, told, MARK_TIMEOUT).await
    }

    async fn settle_at(&self, place: Place) -> Result<(), Refusal> {
        let settled = self.0.unsettled.settle(place).await;
        settled.map_err(|error| Refusal::new(Reason::StoreFailed, error.to_string()))
    }

    /// A stream ended: whatever of it is not settled was broken off.
    pub async fn broken_off(&self, stream: Origin) {
        let left = self.0.unsettled.of(stream);
        self.abandon(stream, left).await;
    }

    /// Marks chunks where their shards lie.
    async fn abandon(&self, origin: Origin, left: Vec<Place>) {
        let (mut here, mut elsewhere) = (Vec::new(), BTreeMap::<NodeId, Vec<ChunkId>>::new());
        for (target, chunk) in left {
            match target {
                None => here.push(chunk),
                Some(node) => elsewhere.entry(node).or_default().push(chunk),
            }
        }
        if !here.is_empty() {
            self.0.unsettled.abandon(origin, &here).await;
        }
        // All at once: whoever stops waits for this.
        join_all(elsewhere.into_iter().map(async |(node, chunks)| {
            for part in chunks.chunks(MARK_CHUNKS_MAX) {
                let abandoned = part.iter().map(|chunk| chunk.as_bytes().to_vec()).collect();
                let told = peer::MarkChunks { abandoned, ..peer::MarkChunks::default() };
                if let Err(refusal) = self.mark_again(node, told).await {
                    tracing::debug!(node = %node.short(), %refusal, "not told of a broken-off put");
                    break;
                }
            }
            chunks.iter().for_each(|&chunk| self.0.unsettled.forget(origin, &(Some(node), chunk)));
        }))
        .await;
    }

    /// Tells a node how puts ended, waiting so long for it at most.
    async fn mark(
        &self,
        node: NodeId,
        told: peer::MarkChunks,
        waited: Duration,
    ) -> Result<(), Refusal> {
        let asked = self.0.peers.request(node, Op::MarkChunks(told), Bytes::new());
        match tokio::time::timeout(waited, asked).await {
            Ok(answer) => match answer?.outcome {
                Outcome::MarkChunks(_) => Ok(()),
                _ => Err(PeerError::BadReply { node }.into()),
            },
            Err(_) => Err(PeerError::TimedOut { node, waited }.into()),
        }
    }

    /// The same, once or twice more if it does not succeed, all within [`MARK_TIMEOUT`]: of a put that was
    /// broken off nobody speaks again.
    async fn mark_again(&self, node: NodeId, told: peer::MarkChunks) -> Result<(), Refusal> {
        let until = Instant::now() + MARK_TIMEOUT;
        for pause in MARK_AGAIN_AFTER {
            match self.mark(node, told.clone(), until - Instant::now()).await {
                Err(refusal)
                    if refusal.reason() != Reason::UnknownOperation
                        && Instant::now() + pause < until =>
                {
                    tracing::debug!(node = %node.short(), %refusal, "it is told again");
                    tokio::time::sleep(pause).await;
                }
                told => return told,
            }
        }
        self.mark(node, told, until - Instant::now()).await
    }

    /// What another node says of the puts that it forwarded.
    ///
    /// # Errors
    /// When it names too many or no chunks, or the ledger fails.
    pub async fn marked_by(&self, from: NodeId, told: &peer::MarkChunks) -> Result<(), Refusal> {
        let (abandoned, settled) = convert::mark_chunks(told)?;
        for chunk in settled {
            self.settle_at((None, chunk)).await?;
        }
        self.0.unsettled.abandon(Origin::Peer(from), &abandoned).await;
        Ok(())
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
        coming: Coming,
    ) -> Result<door::Receipt, Refusal> {
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
        let geometry = verified.geometry();
        let stored = inner.store.put(verified).await.map_err(|error| {
            tracing::debug!(shard = %id, %error, "a shard was not stored");
            refusals::of_put(&error, inner.node)
        })?;
        match (coming, stored) {
            (Coming::Settling(origin), Stored::New) => {
                let left = inner.unsettled.came(origin, None, id, geometry);
                self.abandon(origin, left.into_iter().collect()).await;
            }
            (coming, _) => {
                if let Err(error) = inner.unsettled.moved(id, geometry, coming, stored).await {
                    if coming == Coming::Otherwise {
                        // The giver would drop its own, and the mark here would speak for both.
                        return Err(Refusal::new(Reason::StoreFailed, error.to_string()));
                    }
                    tracing::warn!(%error, shard = %id, "its chunk cannot be marked");
                }
            }
        }
        let receipt = Receipt {
            network: inner.network,
            node: inner.node,
            shard: id,
            shard_bytes,
            stored_at: (inner.clock)(),
        };
        let waits = matches!(coming, Coming::Settling(_)) && inner.unsettled.waits(&id.chunk);
        Ok(convert::receipt(&SignedReceipt::sign(receipt, &inner.key), waits))
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
        Ok(convert::held(&indices, self.0.unsettled.is_unsettled(&chunk, &indices)))
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use copse_core::{geometry::Geometry, ids::ShardIndex, units::ByteSize};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        peer::{
            Answer, PeerHandler,
            endpoint::{Congestion, PeerSocket, bind, open},
            server,
        },
        repair::Rates,
        store::MemoryStore,
        tls::NodeTls,
    };

    /// Refuses so many times, and counts how often it was told of chunks.
    #[derive(Default)]
    struct Busy {
        refusals: usize,
        told: AtomicUsize,
    }

    #[async_trait::async_trait]
    impl PeerHandler for Busy {
        async fn handle(
            &self,
            _from: NodeId,
            op: Op,
            _body: Bytes,
            _background: bool,
        ) -> Result<Answer, Refusal> {
            assert!(matches!(op, Op::MarkChunks(_)));
            match self.told.fetch_add(1, Relaxed) < self.refusals {
                true => Err(Refusal::new(Reason::Overloaded, "busy")),
                false => Ok(Outcome::MarkChunks(peer::MarkChunksReply {}).into()),
            }
        }
    }

    fn endpoint(seed: u8) -> quinn::Endpoint {
        let tls = NodeTls::from_seed(&[seed; 32]).expect("a key");
        let socket = PeerSocket::Udp(bind(([127, 0, 0, 1], 0).into()).expect("a port"));
        open(&tls, socket, Congestion::Cubic, [seed; 32]).expect("an endpoint")
    }

    #[tokio::test]
    async fn who_is_busy_is_told_of_a_broken_off_put_again_and_not_for_ever() {
        for (refusals, expected) in [(0, 1), (1, 2), (9, 3)] {
            let (key, far) = (NodeKey::from_seed([1; 32]), NodeKey::from_seed([2; 32]).id());
            let (busy, there) = (Arc::new(Busy { refusals, ..Busy::default() }), endpoint(2));
            let address = there.local_addr().expect("an address");
            let (limits, stop) = (server::Limits::default(), CancellationToken::new());
            tokio::spawn(server::serve(there, Arc::clone(&busy) as _, limits, stop));
            let store: Arc<dyn ShardStore> = Arc::new(MemoryStore::new(1 << 20));
            let unsettled = Unsettled::load(Arc::clone(&store)).expect("a ledger");
            let shards = ShardService::new(Parts {
                network: NetworkId::new([3; 32]),
                peers: PeerPool::new(
                    endpoint(1),
                    key.id(),
                    Arc::new(move |_: &_| vec![address]),
                    0,
                ),
                key,
                clock: Arc::new(|| 1_700_000_000),
                store,
                put_buffers: Buffers::new("tests", ByteSize(0)),
                get_buffers: Buffers::new("tests", ByteSize(0)),
                pace: Pace::new(Rates::FREE),
                intake: Intake::default(),
                unsettled: unsettled.clone(),
            });
            let stream = unsettled.stream();
            let id = ShardId { chunk: ChunkId::new([7; 32]), index: ShardIndex(0) };
            let geometry = Geometry::new(2, 1).expect("a geometry");
            assert_eq!(unsettled.came(stream, Some(far), id, geometry), None);
            shards.broken_off(stream).await;
            assert_eq!(busy.told.load(Relaxed), expected);
            assert_eq!(unsettled.of(stream), []);
        }
    }
}
