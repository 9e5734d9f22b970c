//! Incoming connections: accepts, reads requests within limits, hands them to the handler, answers.
//!
//! Owns the limits on what strangers can make this node hold: connections, requests at once, bytes
//! of bodies. Refuses what is over them with a reason and goes on serving. A peer that breaks the
//! protocol is logged once.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use copse_core::{
    ids::NodeId,
    limits::{ARCS, GROUP_BYTES},
};
use copse_proto::{
    holdings::{ARC_BYTES, LIST_BYTES_MAX},
    peer::{Reply, Request},
    status::{Reason, Refusal},
};
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    Op, Outcome, PeerHandler,
    endpoint::receive_window,
    frame::{self, BODY_BYTES_MAX, FrameError, StreamCode},
    places::{Place, Places},
};
use crate::spares::Spares;
use crate::tls::peer_id;

/// The limits of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at once. Each costs some 50 KiB while it is quiet. When there are so many, one makes
    /// room for a newcomer, see `places`.
    pub connections_max: usize,
    /// Connections from which on a newcomer must first show that its address is its own.
    pub connections_unproved_max: usize,
    /// Requests of one connection worked on at once; more wait in the peer's own memory.
    pub requests_per_connection_max: usize,
    /// Requests of all connections worked on at once.
    pub requests_max: usize,
    /// Bytes of request bodies held at once.
    pub put_bytes_max: usize,
    /// Bytes of answers' bodies held at once; half of it, at most, for shards that nobody waits for.
    pub get_bytes_max: usize,
    /// How long a request waits for its turn before it is refused.
    pub queue_time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            connections_unproved_max: 256,
            requests_per_connection_max: 64,
            requests_max: 512,
            put_bytes_max: 64 << 20,
            get_bytes_max: 64 << 20,
            queue_time_max: QUEUE_TIME_MAX,
        }
    }
}

/// Time for a handshake, from a peer's first packet on.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a request waits for its turn before it is refused: shorter than its asker waits, also one
/// that only wants to know whether this node lives (see `membership::upkeep`).
pub(crate) const QUEUE_TIME_MAX: Duration = Duration::from_secs(7);

/// One peer has one in so many of all turns at most, on all its connections together: what it asks for and
/// does not take, or sends and does not end, keeps its turn for as long as a transfer may take.
const PEER_TURNS_SHARE: usize = 8;

/// One peer has one in so many of the bytes at most: 8 MiB by default are all that is under way at 80 MB/s
/// over a path of 100 ms.
const PEER_BYTES_SHARE: usize = 4;

/// All who are no nodes of the network have together one in so many of everything.
const STRANGERS_SHARE: usize = 2;

/// Exchanges of records worked on at once, beside the other requests: behind the disk they would wait for
/// what has nothing to do with it. 10,000 nodes send each other three a second.
const GOSSIP_MAX: usize = 16;

/// A header so short may be a ping's, and is read without a turn. A ping's has two bytes.
const PING_BYTES_MAX: usize = 16;

/// When a refused request may come again.
const OVERLOADED_RETRY: Duration = Duration::from_secs(1);

/// How long requests may go on when the node stops.
pub(crate) const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// Misbehaving peers and addresses that are remembered as logged.
const LOGGED_MAX: usize = 1024;

/// The unit of the byte limits: a semaphore counts to 2^29 at least.
const PERMIT_BYTES: usize = 1 << 10;

/// Connections are closed with this code when the node stops.
const CLOSE_STOPPING: VarInt = VarInt::from_u32(2);

/// Connections are closed with this code when their peer shows no node's key.
const CLOSE_NO_ID: VarInt = VarInt::from_u32(3);

/// Connections are closed with this code when their place is needed.
const CLOSE_CROWDED: VarInt = VarInt::from_u32(4);

const _: () = assert!(BODY_BYTES_MAX / PERMIT_BYTES < u32::MAX as usize);
const _: () = assert!(ARCS * ARC_BYTES <= BODY_BYTES_MAX && LIST_BYTES_MAX <= BODY_BYTES_MAX);

/// What may be held at once: by all peers, by the strangers among them, or by one.
struct Bounds {
    requests: Arc<Semaphore>,
    gossip: Arc<Semaphore>,
    put_bytes: Arc<Semaphore>,
    get_bytes: Arc<Semaphore>,
    /// Taken before `get_bytes` for shards that nobody waits for: they wait for the budget of repair when
    /// they are read already, and clients' reads must not stand behind them.
    background_bytes: Arc<Semaphore>,
}

impl Bounds {
    /// One in so many of the turns and of the bytes.
    fn new(limits: &Limits, turns_share: usize, bytes_share: usize) -> Self {
        let turns = |all: usize| Arc::new(Semaphore::new((all / turns_share).max(1)));
        // A body larger than the whole limit could never be admitted.
        let bytes = |all: usize, share: usize, bodies: usize| {
            let bytes = (all / share).max(bodies * BODY_BYTES_MAX);
            Arc::new(Semaphore::new(bytes.div_ceil(PERMIT_BYTES)))
        };
        Self {
            requests: turns(limits.requests_max),
            gossip: turns(GOSSIP_MAX),
            put_bytes: bytes(limits.put_bytes_max, bytes_share, 1),
            get_bytes: bytes(limits.get_bytes_max, bytes_share, 2),
            background_bytes: bytes(limits.get_bytes_max, 2 * bytes_share, 1),
        }
    }
}

struct Shared {
    handler: Arc<dyn PeerHandler>,
    limits: Limits,
    all: Bounds,
    strangers: Bounds,
    /// Connections that others dialled and that are open: they share what may be unread.
    open: AtomicUsize,
    logged: Mutex<BTreeSet<String>>,
    spares: Spares,
    stop: CancellationToken,
}

/// Serves until `stop` is cancelled; then lets open requests finish for a few seconds and closes
/// the endpoint.
pub async fn serve(
    endpoint: quinn::Endpoint,
    handler: Arc<dyn PeerHandler>,
    limits: Limits,
    stop: CancellationToken,
) {
    let shared = Arc::new(Shared {
        handler,
        limits,
        all: Bounds::new(&limits, 1, 1),
        strangers: Bounds::new(&limits, STRANGERS_SHARE, STRANGERS_SHARE),
        open: AtomicUsize::new(0),
        logged: Mutex::default(),
        spares: Spares::default(),
        stop: stop.clone(),
    });
    let places = Places::new(limits.connections_max);
    let mut connections = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        while connections.try_join_next().is_some() {}
        if places.taken() >= limits.connections_unproved_max.min(limits.connections_max)
            && !incoming.remote_address_validated()
        {
            // Sends a token to the address; who faked it never sees that.
            let _ = incoming.retry();
            continue;
        }
        let place = places.take(|peer| shared.handler.knows(peer));
        connections.spawn(serve_incoming(Arc::clone(&shared), incoming, place));
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, drained).await;
    endpoint.close(CLOSE_STOPPING, b"stopping");
}

async fn serve_incoming(shared: Arc<Shared>, incoming: Incoming, place: Place<Bounds>) {
    let remote = incoming.remote_address();
    let handshake = async { incoming.accept()?.await };
    let handshake = tokio::select! {
        biased;
        () = place.wanted() => return debug!(%remote, "a handshake makes room for another"),
        handshake = tokio::time::timeout(HANDSHAKE_TIME_MAX, handshake) => handshake,
    };
    let connection = match handshake {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            return shared.log_once(&remote.ip(), &format!("a handshake failed: {error}"));
        }
        Err(_) => return debug!(%remote, "a handshake was never finished"),
    };
    let Some(peer) = peer_id(&connection) else {
        return connection.close(CLOSE_NO_ID, b"no node id");
    };
    let asker = Arc::new(Asker {
        peer,
        turns: Arc::new(Semaphore::new(shared.limits.requests_per_connection_max)),
        bounds: place.belongs_to(peer, || {
            let mut own = Bounds::new(&shared.limits, PEER_TURNS_SHARE, PEER_BYTES_SHARE);
            own.gossip = Arc::new(Semaphore::new(1));
            Arc::new(own)
        }),
    });
    shared.handler.heard(peer);
    tokio::select! {
        biased;
        // What it asked for is dropped.
        () = place.wanted() => {
            debug!(peer = %peer.short(), %remote, "a connection makes room for another");
            connection.close(CLOSE_CROWDED, b"crowded");
        }
        () = serve_connection(&shared, &connection, &place, asker) => {}
    }
}

/// Who asks on a connection, and what it may have here at once.
struct Asker {
    peer: NodeId,
    turns: Arc<Semaphore>,
    /// On all connections of the peer together; of exchanges of records one at a time.
    bounds: Arc<Bounds>,
}

async fn serve_connection(
    shared: &Arc<Shared>,
    connection: &Connection,
    place: &Place<Bounds>,
    asker: Arc<Asker>,
) {
    let _open = Open::one_more(&shared.open);
    let mut window = None;
    let mut requests = JoinSet::new();
    loop {
        let share = receive_window(shared.open.load(Ordering::Relaxed));
        if window != Some(share) {
            connection.set_receive_window(share);
            window = Some(share);
        }
        let accepted = tokio::select! {
            biased;
            () = shared.stop.cancelled() => break,
            accepted = connection.accept_bi() => accepted,
        };
        // The connection is gone, for whatever reason: nothing to answer.
        let Ok((send, receive)) = accepted else { break };
        place.asks();
        while requests.try_join_next().is_some() {}
        let (shared, asker) = (Arc::clone(shared), Arc::clone(&asker));
        // As many as the transport lets the peer open. Those without a turn wait at the beginning of it.
        requests.spawn(async move { serve_stream(&shared, &asker, send, receive).await });
    }
    while requests.join_next().await.is_some() {}
}

/// Counts a connection while it is open.
struct Open<'a>(&'a AtomicUsize);

impl<'a> Open<'a> {
    fn one_more(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve_stream(
    shared: &Shared,
    asker: &Asker,
    mut send: SendStream,
    mut receive: RecvStream,
) {
    let stopped = send.stopped();
    let answered = tokio::select! {
        biased;
        answered = answer(shared, asker, &mut receive) => answered,
        // The asker reset the stream or is gone: what it asked for is dropped.
        _ = stopped => return,
    };
    let (reply, body, _held) = match answered {
        Ok((outcome, body, held)) => {
            (Reply { body_length: body.len() as u64, outcome: Some(outcome) }, body, held)
        }
        Err(refusal) => {
            let _ = receive.stop(StreamCode::Refused.into());
            (refused(refusal), Bytes::new(), Held::default())
        }
    };
    let written = match frame::write(&mut send, &reply, body).await {
        Err(error @ FrameError::HeaderOversized { .. }) => {
            let reply = refused(Refusal::from(&error).with("help", "ask for less at once"));
            frame::write(&mut send, &reply, Bytes::new()).await
        }
        other => other,
    };
    if let Err(error) = written {
        debug!(peer = %asker.peer.short(), %error, "an answer could not be sent");
        let _ = send.reset(StreamCode::Cancelled.into());
    }
}

fn refused(refusal: Refusal) -> Reply {
    Reply { body_length: 0, outcome: Some(Outcome::Error(refusal.into())) }
}

/// What a request holds until its answer is written.
#[derive(Default)]
struct Held {
    _turns: Vec<OwnedSemaphorePermit>,
    _answer: Option<AnswerBytes>,
}

/// Room for an answer's body.
struct AnswerBytes(Vec<OwnedSemaphorePermit>);

impl AnswerBytes {
    async fn take(
        shared: &Shared,
        asker: &Asker,
        bytes: usize,
        paced: bool,
    ) -> Result<Self, Refusal> {
        let kinds: &[Kind] = match paced {
            true => &[|bounds| &bounds.background_bytes, |bounds| &bounds.get_bytes],
            false => &[|bounds| &bounds.get_bytes],
        };
        Ok(Self(shared.admit(asker, permits(bytes), kinds).await?))
    }

    /// Gives back what is over `bytes`.
    fn shrink_to(&mut self, bytes: usize) {
        let kept = usize::try_from(permits(bytes)).unwrap_or(usize::MAX);
        for permit in &mut self.0 {
            if let Some(excess) = permit.num_permits().checked_sub(kept) {
                drop(permit.split(excess));
            }
        }
    }
}

/// What is answered, with its body and what is held for it.
type Answered = Result<(Outcome, Bytes, Held), Refusal>;

async fn answer(shared: &Shared, asker: &Asker, receive: &mut RecvStream) -> Answered {
    let time = frame::transfer_time(0);
    let length =
        frame::read_length(receive, time).await.map_err(|error| shared.misread(asker, &error))?;
    let turn = async || Arc::clone(&asker.turns).acquire_owned().await.ok();
    // Requests over the limit are not read, but for what may be a ping: it asks whether this node is there,
    // not whether it is busy.
    let mut turns = Vec::new();
    if length > PING_BYTES_MAX {
        turns.extend(turn().await);
    }
    let request: Request = frame::read_header_of(receive, length, time)
        .await
        .map_err(|error| shared.misread(asker, &error))?;
    if turns.is_empty() && !matches!(request.op, Some(Op::Ping(_))) {
        turns.extend(turn().await);
    }
    // On the heap, since many may be waiting above.
    Box::pin(work(shared, asker, request, receive, turns)).await
}

async fn work(
    shared: &Shared,
    asker: &Asker,
    request: Request,
    receive: &mut RecvStream,
    mut turns: Vec<OwnedSemaphorePermit>,
) -> Answered {
    let peer = asker.peer;
    // An operation of a newer version decodes to none.
    let op = request.op.ok_or_else(|| {
        shared.log_once(&peer.short(), "asks for an operation that this version does not know");
        Refusal::new(Reason::UnknownOperation, "this node does not know the operation: update it")
    })?;
    let limit = if matches!(op, Op::PutShard(_)) { BODY_BYTES_MAX } else { 0 };
    let length = frame::check_body_length(request.body_length, limit)
        .map_err(|error| shared.misread(asker, &error))?;

    // What has no body is read to its end first: who does not end it must not keep a turn from others.
    let mut body = Bytes::new();
    if limit == 0 {
        body = shared.read_body(asker, receive, length).await?;
    }
    match &op {
        Op::Ping(_) => {}
        Op::Gossip(_) | Op::Reconcile(_) => {
            turns.extend(shared.admit(asker, 1, &[|bounds| &bounds.gossip]).await?);
        }
        _ => turns.extend(shared.admit(asker, 1, &[|bounds| &bounds.requests]).await?),
    }
    let mut put_bytes = Vec::new();
    if limit > 0 {
        put_bytes = shared.admit(asker, permits(length), &[|bounds| &bounds.put_bytes]).await?;
        body = shared.read_body(asker, receive, length).await?;
    }
    let paced = request.background && matches!(op, Op::GetShard(_));
    let mut room = match answer_bytes_max(&op) {
        0 => None,
        bytes => Some(AnswerBytes::take(shared, asker, bytes, paced).await?),
    };
    shared.handler.heard(peer);
    let answer = shared.handler.handle(peer, op, body, request.background).await?;
    drop(put_bytes);
    if let Some(room) = &mut room {
        room.shrink_to(answer.body.len());
    }
    if paced {
        shared.handler.wait_for_turn(answer.body.len()).await?;
    }
    Ok((answer.outcome, answer.body, Held { _turns: turns, _answer: room }))
}

/// Bytes of the answer's body, at most. A range is widened to whole groups at both ends; the
/// whole of a shard of unknown length counts as the longest.
pub(super) fn answer_bytes_max(op: &Op) -> usize {
    match op {
        Op::GetShard(get) if get.length == 0 => BODY_BYTES_MAX,
        Op::GetShard(get) => usize::try_from(get.length)
            .unwrap_or(usize::MAX)
            .saturating_add(2 * GROUP_BYTES)
            .min(BODY_BYTES_MAX),
        Op::ArcChanges(_) => ARCS * ARC_BYTES,
        Op::ListArcs(_) => LIST_BYTES_MAX,
        _ => 0,
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX)
}

/// One of the semaphores of a [`Bounds`].
type Kind = fn(&Bounds) -> &Arc<Semaphore>;

impl Shared {
    /// Waits for so many permits of each kind. Those of the peer itself come first and those of all last, so
    /// that whoever waits stands in the way of nobody else.
    async fn admit(
        &self,
        asker: &Asker,
        permits: u32,
        kinds: &[Kind],
    ) -> Result<Vec<OwnedSemaphorePermit>, Refusal> {
        let stranger = !self.handler.knows(&asker.peer);
        let bounds = [Some(&*asker.bounds), stranger.then_some(&self.strangers), Some(&self.all)];
        let admitted = async {
            let mut admitted = Vec::new();
            for kind in kinds {
                for bounds in bounds.into_iter().flatten() {
                    let semaphore = Arc::clone(kind(bounds));
                    // Fails only when it is closed, and none is.
                    admitted.push(semaphore.acquire_many_owned(permits).await.ok()?);
                }
            }
            Some(admitted)
        };
        let admitted = tokio::time::timeout(self.limits.queue_time_max, admitted).await;
        admitted.ok().flatten().ok_or_else(|| {
            Refusal::new(Reason::Overloaded, "too many requests at once: try again in a second")
                .retry_after(OVERLOADED_RETRY)
        })
    }

    /// The body of a request, read to the end of its stream.
    async fn read_body(
        &self,
        asker: &Asker,
        receive: &mut RecvStream,
        length: usize,
    ) -> Result<Bytes, Refusal> {
        let body = frame::read_body(receive, length, &self.spares).await;
        body.map_err(|error| self.misread(asker, &error))
    }

    /// What is said to a peer whose message could not be read.
    fn misread(&self, asker: &Asker, error: &FrameError) -> Refusal {
        if error.is_misbehaviour() {
            self.log_once(&asker.peer.short(), &error.to_string());
        }
        Refusal::from(error)
    }

    /// Logs what someone did wrong the first time; later only for debugging.
    fn log_once(&self, who: &impl ToString, what: &str) {
        let peer = who.to_string();
        let first = {
            let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
            if logged.len() >= LOGGED_MAX {
                logged.clear();
            }
            logged.insert(peer.clone())
        };
        if first {
            warn!(%peer, "refused: {what}; further ones of this peer are not logged");
        } else {
            debug!(%peer, "refused: {what}");
        }
    }
}
