//! Storing chunks: all holders at once, durable at the write quorum, the rest in the background.
//!
//! Owns a session: its streams, its window of memory, its account of what is safe. Makes no chunks.
//!
//! ```text
//! submit ─▶ chunk task ─ has? ─▶ proof ─▶ placement ─▶ holder streams (one each) ─▶ receipts
//!                                           ▲                                        │
//!                                           └──── dead, full, slow: next of the walk ┘
//! ```

mod chunk;
mod held;
pub(crate) mod message;
pub(crate) mod placement;
mod stream;

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use copse_core::{
    chunk::EncodedChunk,
    extent::Extent,
    geometry::Geometry,
    ids::{ChunkId, NodeId},
    manifest::ChunkRef,
};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio::sync::{Semaphore, oneshot, watch};

use self::{
    placement::Spread,
    stream::{HolderStream, Settling},
};
use crate::{
    encode::{Budget, PreparedChunk},
    error::PutError,
    lock::lock,
    network::Network,
    proof::Prover,
};

/// Chunks on their way at once, at most. Large ones are bounded by memory before; this bounds the
/// small ones, so that no holder's queue runs over.
const CHUNKS_MAX: usize = 64;

/// Chunks of this session that are remembered, so that equal content is not sent twice.
const REMEMBERED_MAX: usize = 16_384;

/// Chunks with less than all shards that are named in the account, at most; the rest is counted.
const THIN_MAX: usize = 100;

/// How a session stores chunks.
#[derive(Debug, Clone)]
pub struct PutOptions {
    /// Ask holders whether they have a chunk before it is sent, and have them prove it. Without it
    /// everything is sent.
    pub ask_first: bool,
    /// Store chunks also where the loss of one node would lose them, because the network has so few. Without
    /// it such a chunk is [refused](PutError::Fragile): also one in the middle of a session, for a client may
    /// be cut off from most of a network and see it as a small one.
    pub allow_fragile: bool,
}

impl Default for PutOptions {
    fn default() -> Self {
        Self { ask_first: true, allow_fragile: false }
    }
}

/// A chunk of which at least the write quorum is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// The chunk.
    pub chunk: ChunkId,
    /// Whether any shard had to be sent. False when the holders had them all.
    pub sent: bool,
}

/// A session that stores chunks. Cheap to clone; all clones are the same session.
#[derive(Clone)]
pub struct Uploader {
    session: Arc<Session>,
}

struct Session {
    network: Network,
    prover: Prover,
    options: PutOptions,
    budget: Budget,
    counters: Arc<Counters>,
    streams: Mutex<HashMap<NodeId, Arc<HolderStream>>>,
    chunks: Arc<Semaphore>,
    known: Mutex<Known>,
    account: Mutex<Account>,
    // Chunks that are safe, and how many of their shards are on disk so far.
    filling: Mutex<HashMap<ChunkId, (usize, usize)>>,
    active: watch::Sender<usize>,
}

#[derive(Default)]
struct Counters {
    chunks: AtomicU64,
    chunks_safe: AtomicU64,
    shards: AtomicU64,
    shards_placed: AtomicU64,
    shards_held: AtomicU64,
    sent_bytes: AtomicU64,
}

#[derive(Default)]
struct Known {
    tickets: HashMap<ChunkId, Ticket>,
    order: VecDeque<ChunkId>,
}

#[derive(Default)]
struct Account {
    redundancy: Redundancy,
    error: Option<PutError>,
}

/// How a session is doing, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutProgress {
    /// Chunks submitted.
    pub chunks: u64,
    /// Chunks of which at least the write quorum is on disk.
    pub chunks_safe: u64,
    /// Shards of all chunks submitted, and of those that were found whole without.
    pub shards: u64,
    /// Shards on disk.
    pub shards_placed: u64,
    /// Shards among these that the holders had before, also of chunks that were not made again.
    pub shards_held: u64,
    /// Bytes of shards handed to connections.
    pub sent_bytes: u64,
    /// Shards on disk of the safe chunk that lacks most of them, of how many; none before one is
    /// safe.
    pub thinnest: Option<(usize, usize)>,
}

/// A chunk with less than all of its shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thin {
    /// The chunk.
    pub chunk: ChunkId,
    /// Distinct shards on disk.
    pub have: usize,
    /// Shards it should have.
    pub total: usize,
}

/// A chunk of which a node has more shards than by plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowded {
    /// Shards that this node alone has.
    pub on_one_node: usize,
    /// Nodes that may be lost, any.
    pub survives: usize,
    /// The same were every shard in its place.
    pub planned: usize,
}

/// What a session has stored, after its last shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redundancy {
    /// Chunks stored, or found whole.
    pub chunks: u64,
    /// Shards on disk.
    pub shards: u64,
    /// Shards there should be.
    pub shards_total: u64,
    /// Chunks that could not be stored safely.
    pub failed: u64,
    /// Chunks with less than all shards.
    pub thin_chunks: u64,
    /// The first of them, at most 100.
    pub thin: Vec<Thin>,
    /// Shards of the worst chunk, of how many: of the one that lacks the most; of several the one with the
    /// fewest.
    pub worst: Option<(usize, usize)>,
    /// Shards of one chunk that one node has and no other, at most.
    pub on_one_node: usize,
    /// Chunks that survive less than they should, since nodes have more shards of them than by plan.
    pub crowded_chunks: u64,
    /// The one of these that survives the loss of the fewest nodes.
    pub crowded: Option<Crowded>,
    /// Of the chunk that the loss of one node would leave closest to its end: how many shards that loss would
    /// leave, and of which geometry it is.
    pub closest: Option<(usize, Geometry)>,
}

impl fmt::Display for Redundancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.worst {
            None => f.write_str("nothing to store"),
            Some((have, total)) => {
                write!(f, "{have}/{total}")?;
                if self.thin_chunks > 0 {
                    write!(f, " ({} of {} chunks incomplete)", self.thin_chunks, self.chunks)?;
                }
                Ok(())
            }
        }
    }
}

/// A chunk on its way: resolves when it is safe, or cannot be made so. It goes on by itself; a
/// ticket may be dropped.
#[derive(Clone)]
pub struct Ticket(Shared<BoxFuture<'static, Result<Stored, PutError>>>);

impl Future for Ticket {
    type Output = Result<Stored, PutError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_unpin(context)
    }
}

impl Uploader {
    /// A session with this network. `budget` is the one of the encoder that makes the chunks.
    pub fn new(network: Network, budget: Budget, options: PutOptions) -> Self {
        Self {
            session: Arc::new(Session {
                prover: Prover::new(network.clone()),
                network,
                options,
                budget,
                counters: Arc::default(),
                streams: Mutex::default(),
                chunks: Arc::new(Semaphore::new(CHUNKS_MAX)),
                known: Mutex::default(),
                account: Mutex::default(),
                filling: Mutex::default(),
                active: watch::Sender::new(0),
            }),
        }
    }

    /// Stores a chunk and waits until it is safe: its write quorum is on disk. The other shards
    /// follow in the background; [`flush`](Self::flush) waits for them.
    ///
    /// # Errors
    /// When fewer shards than the write quorum could be stored.
    pub async fn put(&self, chunk: EncodedChunk) -> Result<Stored, PutError> {
        let chunk = self.session.budget.admit(chunk).await;
        self.submit(chunk).await.await
    }

    /// Starts to store a chunk. Returns as soon as the session has room for it; the ticket tells
    /// when it is safe. This is how several chunks are on their way at once. Of a session that is
    /// [closed](Self::close) all tickets but those of chunks submitted before say [`PutError::Stopped`].
    pub async fn submit(&self, chunk: PreparedChunk) -> Ticket {
        let id = chunk.id();
        if let Some(ticket) = lock(&self.session.known).tickets.get(&id) {
            return ticket.clone();
        }
        let Ok(permit) = Arc::clone(&self.session.chunks).acquire_owned().await else {
            return Ticket(std::future::ready(Err(PutError::Stopped(id))).boxed().shared());
        };
        let (tell, told) = oneshot::channel();
        let told = async move { told.await.unwrap_or(Err(PutError::Stopped(id))) };
        let ticket = Ticket(told.boxed().shared());
        {
            let mut known = lock(&self.session.known);
            // Another task may have brought the same content meanwhile.
            if let Some(ticket) = known.tickets.get(&id) {
                return ticket.clone();
            }
            known.tickets.insert(id, ticket.clone());
            known.order.push_back(id);
            if known.order.len() > REMEMBERED_MAX
                && let Some(oldest) = known.order.pop_front()
            {
                known.tickets.remove(&oldest);
            }
        }
        let session = Arc::clone(&self.session);
        session.active.send_modify(|active| *active += 1);
        let counters = &session.counters;
        counters.chunks.fetch_add(1, Ordering::Relaxed);
        counters.shards.fetch_add(chunk.geometry().total() as u64, Ordering::Relaxed);
        tokio::spawn(async move {
            // Counted down whatever happens to the task.
            let session = Active(session);
            let geometry = chunk.geometry();
            let ended = chunk::place(&session.0, chunk, tell).await;
            session.0.settle(id, &ended.to_settle);
            session.0.record(id, ended, geometry);
            drop(permit);
        });
        ticket
    }

    /// Takes no more chunks. Those submitted before go on; [`flush`](Self::flush) waits for them.
    pub fn close(&self) {
        self.session.chunks.close();
    }

    /// Whether no chunk is on its way.
    pub fn is_idle(&self) -> bool {
        *self.session.active.borrow() == 0
    }

    /// Waits until every shard of every chunk submitted is on disk or given up and their holders know that
    /// it is safe, and accounts for them.
    ///
    /// # Errors
    /// The first chunk that could not be stored safely, also when its ticket said so before.
    pub async fn flush(&self) -> Result<Redundancy, PutError> {
        let mut active = self.session.active.subscribe();
        // The sender lives in the session, which is alive here.
        let _ = active.wait_for(|active| *active == 0).await;
        let account = lock(&self.session.account);
        match &account.error {
            Some(error) => Err(error.clone()),
            None => Ok(account.redundancy.clone()),
        }
    }

    /// What is stored so far, of chunks that have ended.
    pub fn redundancy(&self) -> Redundancy {
        lock(&self.session.account).redundancy.clone()
    }

    /// How far the session is.
    pub fn progress(&self) -> PutProgress {
        let counters = &self.session.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PutProgress {
            chunks: get(&counters.chunks),
            chunks_safe: get(&counters.chunks_safe),
            shards: get(&counters.shards),
            shards_placed: get(&counters.shards_placed),
            shards_held: get(&counters.shards_held),
            sent_bytes: get(&counters.sent_bytes),
            thinnest: self.session.thinnest(),
        }
    }

    /// Whether the holders of a chunk have all its shards, so that it need not be made again. If so, it is in
    /// the account like those that are stored.
    pub(crate) async fn is_whole(&self, extent: &Extent) -> bool {
        let chunk = ChunkRef::from(extent);
        let Some(spread) = held::whole(&self.session, &chunk).await else { return false };
        let (total, counters) = (chunk.geometry.total() as u64, &self.session.counters);
        for counter in [&counters.shards, &counters.shards_placed, &counters.shards_held] {
            counter.fetch_add(total, Ordering::Relaxed);
        }
        let have = chunk.geometry.total();
        lock(&self.session.account).redundancy.add(chunk.id, chunk.geometry, have, Some(spread));
        true
    }

    /// The budget that its chunks count against.
    pub fn budget(&self) -> &Budget {
        &self.session.budget
    }
}

struct Active(Arc<Session>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.send_modify(|active| *active -= 1);
    }
}

impl Session {
    fn stream(&self, node: NodeId) -> Arc<HolderStream> {
        let mut streams = lock(&self.streams);
        Arc::clone(streams.entry(node).or_insert_with(|| {
            let counters = Arc::clone(&self.counters);
            Arc::new(HolderStream::open(self.network.clone(), node, counters))
        }))
    }

    /// Tells those who wait for it that a chunk is safe. [`flush`](Uploader::flush) waits until they know; one
    /// that cannot be told within seconds is given up: it finds out by itself when it sees enough shards.
    fn settle(self: &Arc<Self>, chunk: ChunkId, nodes: &[NodeId]) {
        for node in nodes {
            self.active.send_modify(|active| *active += 1);
            let task = Settling { chunk, tries: 0, _active: Some(Active(Arc::clone(self))) };
            self.stream(*node).settle(task);
        }
    }

    /// A safe chunk has so many of its shards on disk.
    fn fills(&self, chunk: ChunkId, have: usize, total: usize) {
        lock(&self.filling).insert(chunk, (have, total));
    }

    fn thinnest(&self) -> Option<(usize, usize)> {
        let ended = lock(&self.account).redundancy.worst;
        let filling = lock(&self.filling);
        filling.values().copied().chain(ended).max_by_key(missing)
    }

    fn record(&self, chunk: ChunkId, ended: chunk::Ended, geometry: Geometry) {
        lock(&self.filling).remove(&chunk);
        let mut account = lock(&self.account);
        account.redundancy.add(chunk, geometry, ended.have, ended.spread);
        if let Some(error) = ended.error {
            account.redundancy.failed += 1;
            account.error.get_or_insert(error);
            // Submitting it again is a new try.
            drop(account);
            lock(&self.known).tickets.remove(&chunk);
        }
    }
}

impl Redundancy {
    /// One more chunk, with so many distinct shards on disk that lie like this.
    fn add(&mut self, chunk: ChunkId, geometry: Geometry, have: usize, spread: Option<Spread>) {
        let total = geometry.total();
        self.chunks += 1;
        self.shards += have as u64;
        self.shards_total += total as u64;
        if have < total {
            self.thin_chunks += 1;
            if self.thin.len() < THIN_MAX {
                self.thin.push(Thin { chunk, have, total });
            }
        }
        let weakness = |one: &(usize, usize)| (missing(one), Reverse(one.0));
        self.worst = self.worst.into_iter().chain([(have, total)]).max_by_key(weakness);
        let Some(spread) = spread else { return };
        self.on_one_node = self.on_one_node.max(spread.on_one_node);
        // Whatever chunk comes first, equal ones are told alike.
        let nearness = |one: &(usize, Geometry)| (spare(one), one.0);
        self.closest =
            self.closest.into_iter().chain([(spread.left, geometry)]).min_by_key(nearness);
        if let Some(planned) = spread.crowded {
            self.crowded_chunks += 1;
            let Spread { on_one_node, survives, .. } = spread;
            let crowded = Crowded { on_one_node, survives, planned };
            self.crowded = self
                .crowded
                .into_iter()
                .chain([crowded])
                .min_by_key(|crowded| (crowded.survives, Reverse(crowded.on_one_node)));
        }
    }
}

/// Shards beyond those needed, of (left, geometry); fewer than none when it cannot be read.
fn spare((left, geometry): &(usize, Geometry)) -> i64 {
    i64::try_from(*left).unwrap_or(i64::MAX) - geometry.data() as i64
}

/// Shards that a chunk lacks, of (on disk, all).
fn missing((have, total): &(usize, usize)) -> usize {
    total - have
}
