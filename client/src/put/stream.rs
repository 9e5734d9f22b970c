//! The one Put stream that a session has with each holder.
//!
//! Owns the stream's window and the matching of answers to shards. Decides nothing about where a
//! shard goes when it fails. The one idea: shards follow each other on one
//! stream, so a node can write many with one fsync, and a node's silence is noticed once. On the same stream
//! follows that a chunk is safe: of one whose stream ends before, the node says that its put was broken off.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use copse_core::ids::{ChunkId, NodeId, ShardId, ShardIndex};
use copse_proto::{
    door::{self, put_reply},
    status::{Reason, Refusal},
};
use futures::{Stream, StreamExt as _, stream};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Active, Counters,
    message::{Messages, shard_bytes, stored},
};
use crate::{
    encode::PreparedChunk,
    holders::Holder,
    network::{Link, Network, timed_out},
};

/// Bytes of shards sent to one holder and not yet answered, at most: as much as a node writes with
/// one fsync. What waits behind it can still go elsewhere.
const WINDOW_BYTES: usize = 8 << 20;

/// Shards sent to one holder and not yet answered, at most: bounds what small shards queue up.
const WINDOW_SHARDS: usize = 256;

/// Shards waiting for one holder's window, at most. A holder whose queue is full is passed over.
const QUEUE_SHARDS: usize = 1024;

/// A holder that neither takes a byte nor answers within this time is taken to be dead. Longer
/// than a disk's worst pause.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// The same, when all that it was sent is safe elsewhere by now.
const STALL_TIMEOUT_UNNEEDED: Duration = Duration::from_secs(2);

/// The same, when it was only told that chunks are safe.
const STALL_TIMEOUT_SETTLING: Duration = Duration::from_secs(5);

/// How often a holder is told that a chunk is safe, at most: once more when a stream breaks, since it was
/// marked then.
const SETTLES_MAX: usize = 2;

/// How often a stream is looked after.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A shard for a holder.
pub(super) struct Job {
    pub(super) chunk: Arc<PreparedChunk>,
    pub(super) index: ShardIndex,
    pub(super) done: Done,
    pub(super) reply: mpsc::Sender<Outcome>,
}

/// A chunk is safe, for a holder that waits to hear it.
pub(super) struct Settling {
    pub(super) chunk: ChunkId,
    pub(super) tries: usize,
    /// The session waits as long as it is there; nobody waits for one that came too late.
    pub(super) _active: Option<Active>,
}

/// What a holder is sent.
enum Task {
    Shard(Job),
    Settle(Settling),
}

/// Which shards of a chunk are on disk already, shared by all copies of its jobs: a job that is
/// not needed any more is not sent. And whether the chunk has ended, and is safe.
#[derive(Clone, Default)]
pub(super) struct Done(Arc<([AtomicU64; 4], AtomicBool)>);

impl Done {
    pub(super) fn set(&self, index: ShardIndex) {
        self.0.0[index.as_usize() / 64].fetch_or(1 << (index.0 % 64), Ordering::Relaxed);
    }

    fn is_set(&self, index: ShardIndex) -> bool {
        self.0.0[index.as_usize() / 64].load(Ordering::Relaxed) & (1 << (index.0 % 64)) != 0
    }

    pub(super) fn safe(&self) {
        self.0.1.store(true, Ordering::Relaxed);
    }

    fn is_safe(&self) -> bool {
        self.0.1.load(Ordering::Relaxed)
    }
}

/// What became of a job.
pub(super) struct Outcome {
    pub(super) node: NodeId,
    pub(super) index: ShardIndex,
    pub(super) fate: Fate,
}

/// What a holder did with a shard.
#[derive(Debug, Clone)]
pub(super) enum Fate {
    /// It is on its disk, and there is a receipt; whether the holder waits to hear that the chunk is safe.
    Stored { unsettled: bool },
    /// It is not.
    Refused(Refusal),
    /// It was not sent, since another holder had it first.
    NotNeeded,
}

/// How a conversation with a holder ended.
enum End {
    /// The session is over.
    Session,
    /// The other side hung up while nothing was on its way.
    Idle,
    /// With shards on their way.
    Failed(Refusal),
}

/// The way to hand shards to a holder.
pub(super) struct HolderStream {
    jobs: mpsc::Sender<Task>,
}

impl HolderStream {
    pub(super) fn open(network: Network, node: NodeId, counters: Arc<Counters>) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE_SHARDS);
        let holder = network.holder(node);
        let again = VecDeque::new();
        tokio::spawn(Driver { network, node, holder, counters, tag: 0, again }.run(queue));
        Self { jobs }
    }

    /// Queues a shard. Gives it back when the holder is that far behind.
    pub(super) fn send(&self, job: Job) -> Result<(), Job> {
        self.jobs.try_send(Task::Shard(job)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(Task::Shard(job))
            | mpsc::error::TrySendError::Closed(Task::Shard(job)) => job,
            _ => unreachable!("what is given back is what was sent"),
        })
    }

    /// Queues that a chunk is safe. A holder that is that far behind is not told.
    pub(super) fn settle(&self, settling: Settling) {
        if self.jobs.try_send(Task::Settle(settling)).is_err() {
            tracing::debug!(
                "too much is waiting for a holder: it is not told that a chunk is safe"
            );
        }
    }
}

struct Driver {
    network: Network,
    node: NodeId,
    holder: Arc<Holder>,
    counters: Arc<Counters>,
    tag: u64,
    /// Chunks that are safe, of which it was told in vain, or stored something late.
    again: VecDeque<Settling>,
}

/// What is on its way. It does not hold the chunk: its memory is free as soon as the connection has
/// taken the bytes.
enum Sent {
    Shard(SentShard),
    Settle(Settling),
}

struct SentShard {
    shard: ShardId,
    shard_bytes: usize,
    done: Done,
    reply: mpsc::Sender<Outcome>,
    at: Instant,
}

impl SentShard {
    fn new(job: Job) -> Self {
        Self {
            shard: ShardId { chunk: job.chunk.id(), index: job.index },
            shard_bytes: job.chunk.shard_bytes(),
            done: job.done,
            reply: job.reply,
            at: Instant::now(),
        }
    }

    fn is_needed(&self) -> bool {
        !self.done.is_set(self.shard.index)
    }
}

impl Sent {
    fn new(task: Task) -> Self {
        match task {
            Task::Shard(job) => Self::Shard(SentShard::new(job)),
            Task::Settle(settling) => Self::Settle(settling),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Shard(sent) => sent.shard_bytes,
            Self::Settle(_) => 0,
        }
    }
}

/// How long a holder may be silent with this on its way.
fn patience<'a>(mut sent: impl Iterator<Item = &'a Sent> + Clone) -> Duration {
    if sent.clone().any(|sent| matches!(sent, Sent::Shard(sent) if sent.is_needed())) {
        STALL_TIMEOUT
    } else if sent.any(|sent| matches!(sent, Sent::Settle(_))) {
        STALL_TIMEOUT_SETTLING
    } else {
        // A silent node that nobody waits for any more must not hold memory.
        STALL_TIMEOUT_UNNEEDED
    }
}

/// When the other side last did something.
struct Progress {
    taken: u64,
    at: Instant,
}

impl Driver {
    async fn run(mut self, mut queue: mpsc::Receiver<Task>) {
        loop {
            let again = self.again.pop_front().map(Task::Settle);
            let Some(first) = (match again {
                Some(task) => Some(task),
                None => queue.recv().await,
            }) else {
                return;
            };
            let mut sent = HashMap::new();
            let refusal = match self.network.link(self.node).await {
                Ok(link) => match self.converse(&link, first, &mut queue, &mut sent).await {
                    End::Session => return,
                    End::Idle => {
                        self.network.forget(&link);
                        continue;
                    }
                    End::Failed(refusal) => {
                        self.network.forget(&link);
                        refusal
                    }
                },
                Err(refusal) => {
                    sent.insert(0, Sent::new(first));
                    refusal
                }
            };
            let node = self.node.short();
            tracing::debug!(%node, %refusal, shards = sent.len(), "a put stream failed");
            self.holder.refused(&refusal);
            // Everything that went into the stream, and what waits behind it, is for others now.
            let waiting = std::iter::from_fn(|| queue.try_recv().ok());
            for sent in sent.into_values().chain(waiting.map(Sent::new)) {
                match sent {
                    Sent::Shard(sent) => self.tell(&sent, Fate::Refused(refusal.clone())),
                    Sent::Settle(mut settling) => {
                        settling.tries += 1;
                        if settling.tries < SETTLES_MAX {
                            self.again.push_back(settling);
                        }
                    }
                }
            }
        }
    }

    /// Talks to the holder until the session ends or the stream does.
    async fn converse(
        &mut self,
        link: &Link,
        first: Task,
        queue: &mut mpsc::Receiver<Task>,
        sent: &mut HashMap<u64, Sent>,
    ) -> End {
        let (outgoing, feed) = mpsc::channel(WINDOW_SHARDS);
        let taken = Arc::new(AtomicU64::new(0));
        let requests = counted(feed, Arc::clone(&taken), Arc::clone(&self.counters));
        // The answers may only begin when the first shard has arrived: opening the stream and
        // feeding it go on together.
        let mut replies =
            Box::pin(stream::once(link.put(requests)).flat_map(|opened| match opened {
                Ok(replies) => replies.messages().left_stream(),
                Err(status) => stream::once(async { Err(status) }).right_stream(),
            }));
        let failed = |message| End::Failed(Refusal::new(Reason::NodeUnreachable, message));
        let opened_at = self.tag;
        let mut in_flight = 0;
        let mut open = true;
        let mut next = Some(first);
        let mut progress = Progress { taken: 0, at: Instant::now() };
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            match next.take() {
                Some(Task::Shard(job)) if job.done.is_set(job.index) => {
                    self.tell(&SentShard::new(job), Fate::NotNeeded);
                }
                Some(task) => {
                    if sent.is_empty() {
                        progress.at = Instant::now();
                    }
                    let feed = self.feed(&task, link);
                    let task = Sent::new(task);
                    in_flight += task.bytes();
                    self.tag += 1;
                    sent.insert(self.tag, task);
                    // There is room: the window is not larger than the channel.
                    if outgoing.try_send(feed).is_err() {
                        return failed("the stream closed");
                    }
                }
                None => {}
            }
            if sent.len() < WINDOW_SHARDS
                && let Some(settling) = self.again.pop_front()
            {
                next = Some(Task::Settle(settling));
                continue;
            }
            if !open && sent.is_empty() {
                return End::Session;
            }
            let room = open && in_flight < WINDOW_BYTES && sent.len() < WINDOW_SHARDS;
            tokio::select! {
                biased;
                // Not before the first shard is in the stream: the node may wait for it.
                reply = replies.next(), if self.tag > opened_at => match reply {
                    Some(Ok(reply)) => {
                        // Answers to nothing are no progress: they could go on for ever.
                        let Some(done) = sent.remove(&reply.tag) else {
                            let message = "an answer to a shard that it was not sent";
                            return End::Failed(Refusal::new(Reason::BadReply, message));
                        };
                        progress.at = Instant::now();
                        in_flight -= done.bytes();
                        match done {
                            Sent::Shard(done) => self.answered(&done, reply),
                            Sent::Settle(settling) => settled(&settling, reply),
                        }
                    }
                    _ if sent.is_empty() => return End::Idle,
                    Some(Err(status)) => return End::Failed(Refusal::from(status)),
                    None => return failed("the node closed the stream before it answered"),
                },
                job = queue.recv(), if room => match job {
                    Some(job) => next = Some(job),
                    None => open = false,
                },
                _ = look.tick(), if !sent.is_empty() => {
                    let now_taken = taken.load(Ordering::Relaxed);
                    if now_taken != progress.taken {
                        progress = Progress { taken: now_taken, at: Instant::now() };
                    }
                    let patience = patience(sent.values());
                    if progress.at.elapsed() >= patience {
                        return End::Failed(timed_out(patience));
                    }
                }
            }
        }
    }

    fn feed(&self, task: &Task, link: &Link) -> Messages {
        let (tag, target) = (self.tag + 1, link.target());
        match task {
            Task::Shard(job) => {
                let descriptor = job.chunk.descriptor().to_vec();
                let index = job.index.0.into();
                let header = door::PutHeader { tag, target, descriptor, index, settles: true };
                Messages::new(header, job.chunk.shard(job.index))
            }
            Task::Settle(settling) => {
                let chunk_id = settling.chunk.as_bytes().to_vec();
                Messages::settled(door::Settled { tag, target, chunk_id })
            }
        }
    }

    fn answered(&mut self, sent: &SentShard, reply: door::PutReply) {
        let network = self.network.id();
        let fate = match stored(reply.outcome, network, self.node, sent.shard, sent.shard_bytes) {
            Ok(unsettled) => {
                self.holder.answered(sent.at.elapsed());
                if unsettled && sent.done.is_safe() {
                    // The chunk ended without it.
                    let chunk = sent.shard.chunk;
                    self.again.push_back(Settling { chunk, tries: 0, _active: None });
                }
                Fate::Stored { unsettled }
            }
            Err(refusal) => {
                self.holder.refused(&refusal);
                Fate::Refused(refusal)
            }
        };
        self.tell(sent, fate);
    }

    fn tell(&self, sent: &SentShard, fate: Fate) {
        let index = sent.shard.index;
        if matches!(fate, Fate::Stored { .. }) {
            sent.done.set(index);
        }
        // There is room for one answer to each send; a chunk that is gone does not want it.
        if sent.reply.try_send(Outcome { node: self.node, index, fate }).is_err() {
            tracing::trace!("a chunk did not wait for an answer");
        }
    }
}

/// A holder was told that a chunk is safe.
fn settled(settling: &Settling, reply: door::PutReply) {
    if !matches!(reply.outcome, Some(put_reply::Outcome::Settled(_))) {
        let chunk = settling.chunk.short();
        tracing::debug!(%chunk, outcome = ?reply.outcome, "a holder does not note that a chunk is safe");
    }
}

/// The messages of these shards, made as the connection asks for them, and their bytes counted then.
fn counted(
    shards: mpsc::Receiver<Messages>,
    taken: Arc<AtomicU64>,
    counters: Arc<Counters>,
) -> impl Stream<Item = door::PutRequest> + Send + Unpin + 'static {
    ReceiverStream::new(shards).flat_map(stream::iter).inspect(move |message| {
        let bytes = shard_bytes(message);
        taken.fetch_add(bytes, Ordering::Relaxed);
        counters.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    })
}
