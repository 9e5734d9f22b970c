//! Outgoing connections: one for each peer, dialled when first needed, kept, dialled again.
//!
//! Owns dialling, backoff and what is remembered of each peer's reachability. Refuses to dial a
//! peer that just failed, so that a dead node costs its askers nothing. A request is a stream on
//! the pooled connection; dropping the request cancels it at the other end.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use copse_core::{ids::NodeId, limits::ADDRESSES_MAX};
use copse_proto::{
    peer::{Reply, Request},
    status::Refusal,
    tls::{WrongNode, server_name},
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use quinn::{Connection, SendStream, VarInt};
use tokio::time::Instant;
use tracing::debug;

use super::{
    Answer, Op, Outcome, PeerError,
    endpoint::KEEP_ALIVE,
    frame::{self, FrameError, StreamCode},
    server::answer_bytes_max,
};
use crate::spares::Spares;

/// Peers that are remembered, with their connections, at most. The one longest unused goes first.
pub const PEERS_MAX: usize = 512;

/// Time for a connection to be made: three lost first packets (1, 2 seconds) fit.
pub const DIAL_TIME_MAX: Duration = Duration::from_secs(5);

/// Between the first packets to a peer's different addresses, so that the first address wins
/// where it works (RFC 8305 §5).
const DIAL_STAGGER: Duration = Duration::from_millis(250);

/// From a request's last byte to the header of its answer, at most. The other node may let it wait
/// for its turn and for memory, and a put then waits for the disk. A node that died is noticed
/// sooner, see [`SILENCE_MAX`].
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// While an answer is awaited, a connection on which something was sent and not one packet came back
/// for this long is given up: a living peer acknowledges within a round trip, also while its disk
/// keeps the answer waiting. QUIC sends anew what is not acknowledged, and asks with a keep-alive
/// when all is, so a peer that died is noticed at the latest a keep-alive later than this.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How often packets are counted meanwhile. Acknowledgements go out well within it.
const SILENCE_TICK: Duration = Duration::from_secs(1);

const _: () = assert!(SILENCE_MAX.as_secs() + KEEP_ALIVE.as_secs() < ANSWER_TIME_MAX.as_secs());

/// Pause after the first failure to reach a peer; it doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(200);

/// The longest pause: how late a peer that came back is noticed, if it does not call first.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Connections are closed with this code when they make room for others.
const CLOSE_UNUSED: VarInt = VarInt::from_u32(1);

/// Who knows the peers.
pub trait AddressBook: Send + Sync {
    /// Where a node can be reached, by the directory.
    fn addresses(&self, node: &NodeId) -> Vec<SocketAddr>;

    /// A node has just answered a request of this one, whatever it was.
    fn answered(&self, node: NodeId) {
        let _ = node;
    }
}

impl<F: Fn(&NodeId) -> Vec<SocketAddr> + Send + Sync> AddressBook for F {
    fn addresses(&self, node: &NodeId) -> Vec<SocketAddr> {
        self(node)
    }
}

/// What is known of a peer's reachability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub node: NodeId,
    /// Whether a connection is open.
    pub connected: bool,
    /// How long ago it last answered or asked something.
    pub last_heard: Option<Duration>,
    /// Why it could not be reached the last time; none when it could.
    pub last_error: Option<String>,
}

/// The connections to all peers. Cheap to clone.
#[derive(Clone)]
pub struct PeerPool(Arc<Inner>);

struct Inner {
    endpoint: quinn::Endpoint,
    own: NodeId,
    book: Arc<dyn AddressBook>,
    // Ordered, so that the order of nothing depends on a hash.
    slots: Mutex<BTreeMap<NodeId, Arc<Slot>>>,
    clock: AtomicU64,
    seed: u64,
    spares: Spares,
}

#[derive(Default)]
struct Slot {
    /// Held while dialling: one dial for all who wait.
    dialling: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    failures: u32,
    retry_at: Option<Instant>,
    last_heard: Option<Instant>,
    last_error: Option<String>,
    /// The pool's clock at the last use.
    used: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    fn live(&self) -> Option<Connection> {
        let mut state = lock(&self.state);
        if state.connection.as_ref().is_some_and(|open| open.close_reason().is_some()) {
            state.connection = None;
        }
        state.connection.clone()
    }

    fn heard(&self) {
        let mut state = lock(&self.state);
        state.last_heard = Some(Instant::now());
        state.last_error = None;
        state.failures = 0;
        state.retry_at = None;
    }
}

impl PeerPool {
    /// A pool that dials with `endpoint` as node `own`. `seed` is for the jitter of backoff.
    pub fn new(
        endpoint: quinn::Endpoint,
        own: NodeId,
        book: Arc<dyn AddressBook>,
        seed: u64,
    ) -> Self {
        let slots = Mutex::default();
        Self(Arc::new(Inner {
            endpoint,
            own,
            book,
            slots,
            clock: AtomicU64::new(0),
            seed,
            spares: Spares::default(),
        }))
    }

    /// Asks a node of the directory.
    ///
    /// # Errors
    /// When it cannot be reached, refuses, or answers nonsense.
    pub async fn request(&self, to: NodeId, op: Op, body: Bytes) -> Result<Answer, PeerError> {
        self.request_at(to, &self.0.book.addresses(&to), op, body).await
    }

    /// As [`Self::request`]; in the background, it may be slowed down for those who wait.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub async fn request_as(
        &self,
        to: NodeId,
        op: Op,
        body: Bytes,
        background: bool,
    ) -> Result<Answer, PeerError> {
        let request = Request { body_length: body.len() as u64, op: Some(op), background };
        self.send(to, &self.0.book.addresses(&to), request, body).await
    }

    /// Asks a node at the given addresses, if no connection to it is open.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub async fn request_at(
        &self,
        to: NodeId,
        addresses: &[SocketAddr],
        op: Op,
        body: Bytes,
    ) -> Result<Answer, PeerError> {
        let request = Request { body_length: body.len() as u64, op: Some(op), background: false };
        self.send(to, addresses, request, body).await
    }

    async fn send(
        &self,
        to: NodeId,
        addresses: &[SocketAddr],
        request: Request,
        body: Bytes,
    ) -> Result<Answer, PeerError> {
        if to == self.0.own {
            return Err(PeerError::Itself(to));
        }
        let slot = self.slot(to);
        let pooled = slot.live();
        if let Some(connection) = pooled {
            match self.exchange(to, &slot, &connection, &request, body.clone()).await {
                // The peer restarted, or closed what it did not use. Every operation may be
                // repeated: a shard that is already held is simply held.
                Err(error) if connection.close_reason().is_some() => {
                    debug!(peer = %to.short(), %error, "the pooled connection is gone, dialling again");
                }
                other => return other,
            }
        }
        let connection = self.connect(to, &slot, addresses).await?;
        self.exchange(to, &slot, &connection, &request, body).await
    }

    /// Notes that a peer was heard of by another way, so that it is dialled again at once.
    pub fn heard(&self, from: NodeId) {
        let known = lock(&self.0.slots).get(&from).cloned();
        // Strangers take no place.
        let slot =
            known.or_else(|| (!self.0.book.addresses(&from).is_empty()).then(|| self.slot(from)));
        if let Some(slot) = slot {
            slot.heard();
        }
    }

    /// What is known of one peer.
    pub fn status(&self, node: &NodeId) -> Option<PeerStatus> {
        let slot = lock(&self.0.slots).get(node).cloned()?;
        let connected = slot.live().is_some();
        let state = lock(&slot.state);
        Some(PeerStatus {
            node: *node,
            connected,
            last_heard: state.last_heard.map(|at| at.elapsed()),
            last_error: state.last_error.clone(),
        })
    }

    /// What is known of all peers that were asked or heard of since the start, by id.
    pub fn statuses(&self) -> Vec<PeerStatus> {
        let nodes: Vec<NodeId> = lock(&self.0.slots).keys().copied().collect();
        nodes.iter().filter_map(|node| self.status(node)).collect()
    }

    /// The open connection to a peer.
    #[cfg(test)]
    pub(super) fn connection(&self, node: &NodeId) -> Option<Connection> {
        let slot = lock(&self.0.slots).get(node).cloned();
        slot.and_then(|slot| slot.live())
    }

    fn slot(&self, node: NodeId) -> Arc<Slot> {
        let used = self.0.clock.fetch_add(1, Ordering::Relaxed);
        let mut slots = lock(&self.0.slots);
        if !slots.contains_key(&node) && slots.len() >= PEERS_MAX {
            // Only slots that nobody is using: no one else has a handle on them.
            let unused = slots
                .iter()
                .filter(|(_, slot)| Arc::strong_count(slot) == 1)
                .min_by_key(|(_, slot)| lock(&slot.state).used)
                .map(|(node, _)| *node);
            if let Some(gone) = unused.and_then(|node| slots.remove(&node))
                && let Some(connection) = lock(&gone.state).connection.take()
            {
                connection.close(CLOSE_UNUSED, b"unused");
            }
        }
        let slot = Arc::clone(slots.entry(node).or_default());
        lock(&slot.state).used = used;
        slot
    }

    /// Dials, or waits for who dials already. It goes on when the asker goes away: others may wait for the
    /// same peer, and would have to begin anew.
    async fn connect(
        &self,
        to: NodeId,
        slot: &Arc<Slot>,
        addresses: &[SocketAddr],
    ) -> Result<Connection, PeerError> {
        let (pool, slot, addresses) = (self.clone(), Arc::clone(slot), addresses.to_vec());
        let connecting = async move { pool.connect_here(to, &slot, &addresses).await };
        tokio::spawn(connecting).await.unwrap_or_else(|_| {
            let problem = "this node is stopping".to_owned();
            Err(PeerError::Unreachable { node: to, problem })
        })
    }

    async fn connect_here(
        &self,
        to: NodeId,
        slot: &Slot,
        addresses: &[SocketAddr],
    ) -> Result<Connection, PeerError> {
        let _dialling = slot.dialling.lock().await;
        // Someone else may have dialled, or failed to, while we waited.
        if let Some(connection) = slot.live() {
            return Ok(connection);
        }
        if addresses.is_empty() {
            return Err(PeerError::Unknown(to));
        }
        {
            let state = lock(&slot.state);
            let left = state.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
            if let Some(retry_after) = left.filter(|left| !left.is_zero()) {
                let problem = state.last_error.clone().unwrap_or_default();
                return Err(PeerError::Backoff { node: to, problem, retry_after });
            }
        }
        match self.dial(to, addresses).await {
            Ok(connection) => {
                slot.heard();
                lock(&slot.state).connection = Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                let mut state = lock(&slot.state);
                let pause = backoff(state.failures, self.jitter(to, state.failures));
                state.failures = state.failures.saturating_add(1);
                state.retry_at = Some(Instant::now() + pause);
                state.last_error = Some(match &error {
                    PeerError::Unreachable { problem, .. } => problem.clone(),
                    other => other.to_string(),
                });
                Err(error)
            }
        }
    }

    /// Tries all addresses, each a little after the one before; the first connection wins.
    async fn dial(&self, to: NodeId, addresses: &[SocketAddr]) -> Result<Connection, PeerError> {
        let name = server_name(&to);
        let mut attempts: FuturesUnordered<_> = addresses
            .iter()
            .take(ADDRESSES_MAX)
            .zip(0u32..)
            .map(|(&address, position)| {
                let name = &name;
                async move {
                    tokio::time::sleep(DIAL_STAGGER * position).await;
                    let attempt = async {
                        let connecting = self
                            .0
                            .endpoint
                            .connect(address, name)
                            .map_err(|error| error.to_string())?;
                        connecting.await.map_err(|error| error.to_string())
                    };
                    match tokio::time::timeout(DIAL_TIME_MAX, attempt).await {
                        Ok(Ok(connection)) => Ok(connection),
                        Ok(Err(problem)) => Err((address, problem)),
                        Err(_) => Err((address, format!("no answer within {DIAL_TIME_MAX:?}"))),
                    }
                }
            })
            .collect();
        let mut problems = Vec::new();
        while let Some(attempt) = attempts.next().await {
            match attempt {
                Ok(connection) => return Ok(connection),
                Err(problem) => problems.push(problem),
            }
        }
        // That someone else sits there says more than that nobody does.
        if let Some(wrong) = problems.iter().find_map(|(_, text)| WrongNode::in_text(text)) {
            return Err(PeerError::WrongNode(wrong));
        }
        problems.sort();
        let problems: Vec<String> =
            problems.into_iter().map(|(address, text)| format!("{address}: {text}")).collect();
        Err(PeerError::Unreachable { node: to, problem: problems.join("; ") })
    }

    async fn exchange(
        &self,
        node: NodeId,
        slot: &Slot,
        connection: &Connection,
        request: &Request,
        body: Bytes,
    ) -> Result<Answer, PeerError> {
        let frame_error = |source| PeerError::Frame { node, source };
        let late = || PeerError::TimedOut { node, waited: ANSWER_TIME_MAX };
        let talk = async {
            // Waits while the peer bears no more requests of ours.
            let (send, mut receive) = tokio::time::timeout(ANSWER_TIME_MAX, connection.open_bi())
                .await
                .map_err(|_| late())?
                .map_err(|error| frame_error(FrameError::Read(error.into())))?;
            let mut send = CancelOnDrop(Some(send));
            let written = match &mut send.0 {
                Some(send) => frame::write(send, request, body).await,
                None => Ok(()),
            };
            match written {
                // A refused request is no longer read, but its reply says why.
                Ok(()) | Err(FrameError::Write(quinn::WriteError::Stopped(_))) => {}
                Err(error) => return Err(frame_error(error)),
            }
            let reply: Reply = frame::read_header(&mut receive, ANSWER_TIME_MAX).await.map_err(
                |error| match error {
                    FrameError::TooSlow(_) => late(),
                    other => frame_error(other),
                },
            )?;
            let limit = request.op.as_ref().map_or(0, answer_bytes_max);
            let length = frame::check_body_length(reply.body_length, limit).map_err(frame_error)?;
            let body = frame::read_body(&mut receive, length, &self.0.spares)
                .await
                .map_err(frame_error)?;
            send.0 = None;
            match reply.outcome {
                Some(Outcome::Error(error)) => {
                    Err(PeerError::Refused { node, refusal: Refusal::from(error) })
                }
                Some(outcome) => Ok(Answer { outcome, body }),
                None => Err(PeerError::BadReply { node }),
            }
        };
        let result = tokio::select! {
            biased;
            result = talk => result,
            () = silence(connection) => {
                connection.close(StreamCode::Cancelled.into(), b"silent");
                Err(PeerError::TimedOut { node, waited: SILENCE_MAX })
            }
        };
        match &result {
            // A refusal is an answer, too.
            Ok(_) | Err(PeerError::Refused { .. }) => {
                slot.heard();
                self.0.book.answered(node);
            }
            Err(error) => lock(&slot.state).last_error = Some(error.to_string()),
        }
        result
    }

    /// A number that differs between nodes, peers and attempts, and not between equal runs.
    fn jitter(&self, to: NodeId, failures: u32) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0.seed.to_le_bytes()).update(to.as_bytes());
        hasher.update(&failures.to_le_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

/// Doubling from [`BACKOFF_MIN`] to [`BACKOFF_MAX`], between half of it and all of it.
fn backoff(failures: u32, jitter: u64) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1u32 << failures.min(16)).min(BACKOFF_MAX);
    // 0..1024 thousandths, give or take.
    let part = u32::try_from(jitter % 1024).unwrap_or_default();
    full / 2 + full / 2 * part / 1024
}

/// Returns when the peer no longer acknowledges what it is sent.
async fn silence(connection: &Connection) {
    let started = Instant::now();
    let mut silence = Silence::new(Packets::of(connection));
    loop {
        tokio::time::sleep(SILENCE_TICK).await;
        if silence.tick(Packets::of(connection), started.elapsed()) >= SILENCE_MAX {
            return;
        }
    }
}

/// Datagrams of a connection since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packets {
    sent: u64,
    received: u64,
}

impl Packets {
    fn of(connection: &Connection) -> Self {
        let stats = connection.stats();
        Self { sent: stats.udp_tx.datagrams, received: stats.udp_rx.datagrams }
    }
}

/// How long a peer has not acknowledged what it was sent. A quiet connection is not silent: nothing
/// is sent on it, so nothing comes back.
#[derive(Debug)]
struct Silence {
    before: Packets,
    /// What is sent in the tick after a packet came may be its mere acknowledgement, which nobody
    /// acknowledges.
    heard_last: bool,
    unanswered_since: Option<Duration>,
}

impl Silence {
    /// From now on, when a request is on its way.
    const fn new(before: Packets) -> Self {
        Self { before, heard_last: false, unanswered_since: None }
    }

    /// Looks at the packets counted at `now`; for how long there has been no answer.
    fn tick(&mut self, packets: Packets, now: Duration) -> Duration {
        let heard = packets.received != self.before.received;
        if heard {
            self.unanswered_since = None;
        } else if !self.heard_last && packets.sent != self.before.sent {
            self.unanswered_since.get_or_insert(now);
        }
        self.heard_last = heard;
        self.before = packets;
        self.unanswered_since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }
}

/// Resets a request's stream when it is dropped half-way: otherwise quinn would end it, and the
/// other side would take it for torn.
struct CancelOnDrop(Option<SendStream>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(send) = &mut self.0 {
            // Fails on a stream that is closed already.
            let _ = send.reset(StreamCode::Cancelled.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_its_bound_and_is_never_under_half() {
        for failures in 0..100 {
            let full = BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
            for jitter in [0, 1, 1023, u64::MAX] {
                let pause = backoff(failures, jitter);
                assert!(pause >= full / 2 && pause <= full, "{failures} {jitter}: {pause:?}");
            }
        }
        assert!(backoff(20, 1023) > BACKOFF_MAX * 9 / 10);
    }

    /// Ticks a second apart with so many packets (sent, received) in each; how long it is silent after.
    fn silent_after(ticks: &[(u64, u64)]) -> Duration {
        let mut packets = Packets { sent: 10, received: 10 };
        let (mut silence, mut silent) = (Silence::new(packets), Duration::ZERO);
        for (at, (sent, received)) in (1..).zip(ticks) {
            packets.sent += sent;
            packets.received += received;
            silent = silence.tick(packets, Duration::from_secs(at));
        }
        silent
    }

    #[test]
    fn a_peer_that_waits_for_its_disk_is_not_silent() {
        // The request is acknowledged at once; then all is quiet until a keep-alive.
        let quiet = [(0, 0); 9];
        assert_eq!(silent_after(&[&[(3, 2)][..], &quiet].concat()), Duration::ZERO);
        // The last acknowledgement of ours goes out in the tick after.
        assert_eq!(silent_after(&[&[(3, 2), (1, 0)][..], &quiet].concat()), Duration::ZERO);
        // The keep-alive is answered, a moment after the count.
        let kept_alive = [&[(3, 2)][..], &quiet, &[(1, 0), (0, 1)], &quiet].concat();
        assert_eq!(silent_after(&kept_alive), Duration::ZERO);
    }

    #[test]
    fn a_dead_peer_is_silent_from_what_it_does_not_acknowledge() {
        // Dead before the request: it is sent anew after 1, 3 and 7 seconds.
        let dead = [(3, 0), (0, 0), (1, 0), (0, 0), (0, 0), (0, 0)];
        assert_eq!(silent_after(&dead), Duration::from_secs(5));
        // Dead while it worked: the keep-alive tells.
        let died = [&[(3, 2)][..], &[(0, 0); 9], &[(1, 0), (1, 0), (0, 0), (1, 0)]].concat();
        assert_eq!(silent_after(&died), Duration::from_secs(3));
    }
}
