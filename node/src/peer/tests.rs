//! Real endpoints on the loopback address: who may connect, what is refused, what goes on.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use copse_core::ids::NodeId;
use copse_proto::{
    door::{GetHeader, GetRequest, HasReply, HasRequest, Receipt},
    peer::{Ping, Pong, PutShard, Reply, Request},
    status::{Reason, Refusal},
};
use tokio_util::sync::CancellationToken;

use super::{
    endpoint::{Congestion, PeerSocket, bind, open},
    frame::{self, BODY_BYTES_MAX, FrameError, HEADER_BYTES_MAX},
    pool::PeerPool,
    server::{Limits, serve},
    *,
};
use crate::tls::NodeTls;

/// A handler that knows three operations: a put answers with the length and the sender, a get with
/// as many bytes as asked, a has waits for ever, or for as long as a slow disk. What nobody waits for
/// never has its turn.
struct Echo;

/// How long a slow disk takes: longer than a quiet connection waits for its keep-alive.
const SLOW_DISK: Duration = Duration::from_millis(11_500);

#[async_trait::async_trait]
impl PeerHandler for Echo {
    async fn handle(
        &self,
        from: NodeId,
        op: Op,
        body: Bytes,
        _background: bool,
    ) -> Result<Answer, Refusal> {
        match op {
            Op::PutShard(put) => Ok(Outcome::PutShard(Receipt {
                receipt: [from.as_bytes(), &put.descriptor[..]].concat(),
                signature: body.len().to_le_bytes().to_vec(),
                unsettled: false,
            })
            .into()),
            Op::GetShard(get) => Ok(Answer {
                outcome: Outcome::GetShard(GetHeader {
                    covered_length: get.length,
                    ..Default::default()
                }),
                body: Bytes::from(vec![7; usize::try_from(get.length).expect("a small length")]),
            }),
            Op::HasShards(has) if has.chunk_ids.is_empty() && has.target.is_empty() => {
                std::future::pending().await
            }
            Op::HasShards(has) if has.chunk_ids.is_empty() => {
                tokio::time::sleep(SLOW_DISK).await;
                Ok(Outcome::HasShards(HasReply::default()).into())
            }
            // A liar: nobody asked for bytes.
            Op::HasShards(has) if has.target == b"body" => Ok(Answer {
                outcome: Outcome::HasShards(HasReply::default()),
                body: Bytes::from(vec![7; 1 << 20]),
            }),
            Op::HasShards(has) => Ok(Outcome::HasShards(HasReply {
                // More than a header may have.
                held: vec![Default::default(); has.chunk_ids.len() * HEADER_BYTES_MAX],
            })
            .into()),
            Op::Ping(_) => Ok(Outcome::Ping(Pong {}).into()),
            // A comparison that takes for ever.
            Op::Reconcile(_) => std::future::pending().await,
            _ => Err(Refusal::new(Reason::NotHeld, "not here")),
        }
    }

    fn knows(&self, peer: &NodeId) -> bool {
        !STRANGERS.iter().any(|number| peer_of(*number).id() == *peer)
    }

    async fn wait_for_turn(&self, _bytes: usize) -> Result<(), Refusal> {
        std::future::pending().await
    }
}

struct Peer {
    tls: NodeTls,
    address: SocketAddr,
    endpoint: quinn::Endpoint,
    pool: PeerPool,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    book: Arc<Mutex<Vec<(NodeId, SocketAddr)>>>,
}

/// The numbers of those who are no nodes of the network.
const STRANGERS: [u8; 5] = [66, 67, 68, 69, 70];
const STRANGER: u8 = STRANGERS[0];

fn seed(number: u8) -> [u8; 32] {
    [number; 32]
}

fn peer_of(number: u8) -> NodeTls {
    NodeTls::from_seed(&seed(number)).expect("a key")
}

fn local() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

impl Peer {
    fn start(number: u8) -> Self {
        Self::start_at(number, local(), number)
    }

    fn start_at(number: u8, address: SocketAddr, run: u8) -> Self {
        Self::start_with(number, address, run, Limits::default())
    }

    fn start_with(number: u8, address: SocketAddr, run: u8, limits: Limits) -> Self {
        let tls = NodeTls::from_seed(&seed(number)).expect("a key");
        let socket = PeerSocket::Udp(bind(address).expect("a port"));
        let endpoint = open(&tls, socket, Congestion::Cubic, seed(run)).expect("an endpoint");
        let book: Arc<Mutex<Vec<(NodeId, SocketAddr)>>> = Arc::default();
        let known = Arc::clone(&book);
        let pool = PeerPool::new(
            endpoint.clone(),
            tls.id(),
            Arc::new(move |node: &NodeId| {
                let known = known.lock().expect("not poisoned");
                known.iter().filter(|(id, _)| id == node).map(|(_, at)| *at).collect()
            }),
            number.into(),
        );
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(endpoint.clone(), Arc::new(Echo), limits, stop.clone()));
        let address = endpoint.local_addr().expect("an address");
        Self { tls, address, endpoint, pool, stop, serving, book }
    }

    fn knows(&self, other: &Self) {
        self.knows_at(other.tls.id(), other.address);
    }

    fn knows_at(&self, node: NodeId, address: SocketAddr) {
        self.book.lock().expect("not poisoned").push((node, address));
    }

    async fn put(&self, to: NodeId, bytes: usize) -> Result<Answer, PeerError> {
        let op = Op::PutShard(PutShard { descriptor: vec![1, 2, 3], ..PutShard::default() });
        self.pool.request(to, op, Bytes::from(vec![5; bytes])).await
    }

    async fn get(&self, to: NodeId, length: u64) -> Result<Answer, PeerError> {
        let op = Op::GetShard(GetRequest { length, ..Default::default() });
        self.pool.request(to, op, Bytes::new()).await
    }

    async fn connect(&self, to: &Self) -> quinn::Connection {
        let name = copse_proto::tls::server_name(&to.tls.id());
        self.endpoint.connect(to.address, &name).expect("a valid dial").await.expect("connected")
    }

    /// Stops as a whole: the address is free when it returns.
    async fn end(self) {
        self.stop.cancel();
        self.serving.await.expect("the server does not panic");
        let Self { endpoint, pool, .. } = self;
        drop(pool);
        endpoint.wait_idle().await;
    }
}

/// Sends raw bytes as a request and reads what the server says.
async fn raw(connection: &quinn::Connection, bytes: &[u8], finish: bool) -> Refusal {
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    // The server may stop the stream while we are writing.
    let _ = send.write_all(bytes).await;
    if finish {
        let _ = send.finish();
    }
    let reply: Reply =
        frame::read_header(&mut receive, pool::ANSWER_TIME_MAX).await.expect("a reply");
    match reply.outcome {
        Some(Outcome::Error(error)) => error.into(),
        other => panic!("answered {other:?} to nonsense"),
    }
}

#[tokio::test]
async fn both_sides_know_each_other_by_id() {
    let (a, b) = (Peer::start(1), Peer::start(2));
    a.knows(&b);
    // The second connection resumes the first one's session; the ids must still be there.
    for _ in 0..2 {
        let answer = a.put(b.tls.id(), 100_000).await.expect("an answer");
        let Outcome::PutShard(receipt) = answer.outcome else { panic!("not a receipt") };
        assert_eq!(&receipt.receipt[..32], a.tls.id().as_bytes());
        assert_eq!(receipt.signature, 100_000usize.to_le_bytes());
        assert!(a.pool.status(&b.tls.id()).is_some_and(|status| status.connected));
        let connection = a.pool.connection(&b.tls.id()).expect("pooled");
        connection.close(0u32.into(), b"test");
    }
    let answer = a.get(b.tls.id(), 3 << 20).await.expect("an answer");
    assert_eq!(answer.body.len(), 3 << 20);
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn another_nodes_answer_is_told_as_such() {
    let (a, b) = (Peer::start(1), Peer::start(2));
    let expected = NodeTls::from_seed(&seed(9)).expect("a key").id();
    a.knows_at(expected, b.address);
    let error = a.put(expected, 10).await.expect_err("another node");
    let PeerError::WrongNode(wrong) = &error else { panic!("{error}") };
    assert_eq!((wrong.expected, wrong.answered), (expected, b.tls.id()));
    assert_eq!(Refusal::from(error).reason(), Reason::WrongNode);
    // And it is not dialled again at once.
    let again = a.put(expected, 10).await.expect_err("too early");
    assert!(matches!(again, PeerError::Backoff { .. }), "{again}");
}

#[tokio::test]
async fn an_unknown_protocol_is_refused_in_the_handshake() {
    let (a, b) = (Peer::start(1), Peer::start(2));
    let crypto = a.tls.quic_client_for(b"copse/999").expect("a client");
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let name = copse_proto::tls::server_name(&b.tls.id());
    let dial = a.endpoint.connect_with(config, b.address, &name).expect("a valid dial");
    let error = dial.await.expect_err("an unknown protocol");
    // TLS alert 120, no_application_protocol (RFC 7301).
    assert!(error.to_string().contains("error 120"), "{error}");
    a.knows(&b);
    a.put(b.tls.id(), 10).await.expect("it goes on serving");
}

#[tokio::test]
async fn malformed_messages_are_refused_and_the_rest_is_served() {
    let (a, b) = (Peer::start(1), Peer::start(2));
    a.knows(&b);
    let connection = a.connect(&b).await;
    let put = |body_length| {
        let op = Op::PutShard(PutShard { descriptor: vec![0; 40], ..PutShard::default() });
        frame::encode_header(&Request { body_length, op: Some(op), background: false })
            .expect("a header")
            .to_vec()
    };
    let unknown = frame::encode_header(&Request { body_length: 0, op: None, background: false })
        .expect("a header");
    let get_with_body = frame::encode_header(&Request {
        body_length: 1,
        op: Some(Op::GetShard(GetRequest::default())),
        background: false,
    })
    .expect("a header");
    let check = async |what: &str, bytes: &[u8], finish, expected| {
        let refusal = raw(&connection, bytes, finish).await;
        assert_eq!(refusal.reason(), expected, "{what}: {refusal}");
        a.put(b.tls.id(), 1000).await.expect("it goes on serving");
    };
    let too_long = u32::try_from(HEADER_BYTES_MAX + 1).expect("small").to_be_bytes();
    check("oversized header", &too_long, false, Reason::Oversized).await;
    check("no length", &[0, 0], true, Reason::Torn).await;
    check("nothing", &[], true, Reason::Torn).await;
    check("torn header", &[0, 0, 0, 9, 1, 2], true, Reason::Torn).await;
    check("torn body", &[&put(1000)[..], &[1; 999]].concat(), true, Reason::Torn).await;
    check("trailing", &[&put(10)[..], &[1; 11]].concat(), true, Reason::Malformed).await;
    check("oversized body", &put(BODY_BYTES_MAX as u64 + 1), false, Reason::Oversized).await;
    check("huge body", &put(u64::MAX), false, Reason::Oversized).await;
    check("body to a get", &get_with_body, false, Reason::Oversized).await;
    check("no protobuf", &[0, 0, 0, 2, 0xff, 0xff], true, Reason::Malformed).await;
    check("unknown operation", &unknown, true, Reason::UnknownOperation).await;
    // The connection itself was never given up.
    assert!(connection.close_reason().is_none());
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_refused() {
    let (a, b) = (Peer::start(1), Peer::start(2));
    a.knows(&b);
    let op = Op::HasShards(HasRequest { target: Vec::new(), chunk_ids: vec![vec![0; 32]] });
    let error = a.pool.request(b.tls.id(), op, Bytes::new()).await.expect_err("too long");
    assert_eq!(error.refusal().map(Refusal::reason), Some(Reason::Oversized), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_requests_at_once_are_answered() {
    let (a, b) = (Peer::start(1), Peer::start(2));
    a.knows(&b);
    let all = (0..100u64).map(|number| {
        let (a, to) = (&a, b.tls.id());
        async move {
            if number % 2 == 0 {
                a.put(to, 10_000).await.map(|_| 0)
            } else {
                a.get(to, number * 1000).await.map(|answer| answer.body.len() as u64)
            }
        }
    });
    for (number, answer) in (0u64..).zip(futures::future::join_all(all).await) {
        let expected = if number % 2 == 0 { 0 } else { number * 1000 };
        assert_eq!(answer.expect("an answer"), expected);
    }
    assert_eq!(b.endpoint.open_connections(), 1, "one connection serves all");
}

#[tokio::test]
async fn bodies_over_the_limit_wait_for_their_turn() {
    let a = Peer::start(1);
    let limits = Limits {
        put_bytes_max: 0,
        get_bytes_max: 0,
        requests_max: 3,
        // A pause of the machine is no reason to refuse.
        queue_time_max: Duration::from_secs(300),
        ..Limits::default()
    };
    let b = Peer::start_with(2, local(), 2, limits);
    a.knows(&b);
    // Only one body of 5 MiB fits at a time, and three answers.
    let puts = (0..4).map(|_| a.put(b.tls.id(), 5 << 20));
    for answer in futures::future::join_all(puts).await {
        answer.expect("each has its turn");
    }
    let gets = (0..8).map(|_| a.get(b.tls.id(), 5 << 20));
    for answer in futures::future::join_all(gets).await {
        answer.expect("each has its turn");
    }
}

#[tokio::test]
async fn shards_that_nobody_waits_for_do_not_hold_up_those_that_are_waited_for() {
    let a = Peer::start(1);
    let limits = Limits { get_bytes_max: 2 * BODY_BYTES_MAX, ..Limits::default() };
    let b = Peer::start_with(2, local(), 2, limits);
    a.knows(&b);
    let background = |length| {
        let op = Op::GetShard(GetRequest { length, ..Default::default() });
        a.pool.request_as(b.tls.id(), op, Bytes::new(), true)
    };
    // They are read, then wait for their turn, which never comes.
    let waiting = futures::future::join_all((0..8).map(|_| background(3 << 20)));
    let asked = async {
        for _ in 0..3 {
            a.get(b.tls.id(), 5 << 20).await.expect("half of the memory is left for it");
        }
    };
    tokio::select! {
        _ = waiting => panic!("nobody gave them their turn"),
        () = asked => {}
    }
}

#[tokio::test]
async fn a_peer_whose_disk_is_slow_keeps_its_connection() {
    let (a, b) = (Peer::start(1), Peer::start(2));
    a.knows(&b);
    let op = Op::HasShards(HasRequest { target: vec![1], ..Default::default() });
    let answer = a.pool.request(b.tls.id(), op, Bytes::new()).await.expect("it answers in the end");
    assert!(matches!(answer.outcome, Outcome::HasShards(_)));
}

#[tokio::test]
async fn an_answer_longer_than_was_asked_for_is_refused() {
    let (a, b) = (Peer::start(1), Peer::start(2));
    a.knows(&b);
    let request = HasRequest { chunk_ids: vec![vec![0; 32]], target: b"body".to_vec() };
    let error = a.pool.request(b.tls.id(), Op::HasShards(request), Bytes::new()).await;
    assert!(
        matches!(
            error,
            Err(PeerError::Frame { source: FrameError::BodyOversized { limit: 0, .. }, .. })
        ),
        "{error:?}"
    );
}

/// Less than an answer may take. What has no turn is refused long before, and a refusal is no answer here.
const AT_ONCE: Duration = Duration::from_secs(50);

/// A ping and its answer, at once.
async fn is_there(from: &Peer, to: &Peer) -> bool {
    let ping = from.pool.request(to.tls.id(), Op::Ping(Ping {}), Bytes::new());
    let answer = tokio::time::timeout(AT_ONCE, ping).await;
    matches!(answer, Ok(Ok(Answer { outcome: Outcome::Ping(_), .. })))
}

/// Waits until a node has no turn left.
async fn until_busy(from: &Peer, to: &Peer) {
    while tokio::time::timeout(Duration::from_millis(200), from.put(to.tls.id(), 1)).await.is_ok() {
    }
}

#[tokio::test]
async fn a_node_that_is_only_busy_answers_a_ping() {
    let (a, c) = (Peer::start(1), Peer::start(3));
    let limits = Limits { requests_max: 1, requests_per_connection_max: 2, ..Limits::default() };
    let b = Peer::start_with(2, local(), 2, limits);
    a.knows(&b);
    c.knows(&b);
    let forever = |op: Op| a.pool.request(b.tls.id(), op, Bytes::new());
    let busy = futures::future::join_all(
        (0..100)
            .map(|_| forever(Op::HasShards(HasRequest::default())))
            .chain((0..100).map(|_| forever(Op::Reconcile(Default::default())))),
    );
    let asked = async {
        until_busy(&c, &b).await;
        assert!(is_there(&c, &b).await, "asked by another");
        assert!(is_there(&a, &b).await, "asked by the one who keeps it busy");
    };
    tokio::select! {
        _ = busy => panic!("they are never answered"),
        () = asked => {}
    }
}

#[tokio::test]
async fn a_node_whose_requests_wait_for_its_disk_exchanges_records() {
    let (a, c) = (Peer::start(1), Peer::start(3));
    let limits = Limits { requests_max: 1, ..Limits::default() };
    let b = Peer::start_with(2, local(), 2, limits);
    a.knows(&b);
    c.knows(&b);
    let disk = a.pool.request(b.tls.id(), Op::HasShards(HasRequest::default()), Bytes::new());
    let news = async {
        until_busy(&c, &b).await;
        let news = c.pool.request(b.tls.id(), Op::Gossip(Default::default()), Bytes::new());
        let told = tokio::time::timeout(AT_ONCE, news).await.expect("at once");
        let error = told.expect_err("this handler knows none");
        assert_eq!(error.refusal().map(Refusal::reason), Some(Reason::NotHeld));
    };
    tokio::select! {
        _ = disk => panic!("it is never answered"),
        () = news => {}
    }
}

#[tokio::test]
async fn a_stranger_does_not_keep_nodes_of_the_network_out() {
    let (a, stranger) = (Peer::start(1), Peer::start(STRANGER));
    let limits = Limits { connections_max: 4, connections_unproved_max: 2, ..Limits::default() };
    let b = Peer::start_with(2, local(), 2, limits);
    a.knows(&b);
    let mut taken = Vec::new();
    for _ in 0..limits.connections_max {
        taken.push(stranger.connect(&b).await);
    }
    a.put(b.tls.id(), 10).await.expect("a place is made for it");
    // However often the stranger comes back.
    for _ in 0..2 * limits.connections_max {
        taken.push(stranger.connect(&b).await);
    }
    let connection = a.pool.connection(&b.tls.id()).expect("still open");
    a.put(b.tls.id(), 10).await.expect("it is served");
    assert!(connection.close_reason().is_none());
    taken[0].closed().await;
}

#[tokio::test]
async fn requests_without_an_end_keep_nobody_from_a_turn() {
    let (a, stranger) = (Peer::start(1), Peer::start(STRANGER));
    let limits = Limits { requests_max: 1, ..Limits::default() };
    let b = Peer::start_with(2, local(), 2, limits);
    a.knows(&b);
    let connection = stranger.connect(&b).await;
    let op = Some(Op::HasShards(HasRequest { target: vec![1; 32], ..Default::default() }));
    let header = Request { body_length: 0, op, background: false };
    let header = frame::encode_header(&header).expect("a header");
    let mut held = Vec::new();
    for _ in 0..5 {
        let (mut send, receive) = connection.open_bi().await.expect("a stream");
        send.write_all(&header).await.expect("sent");
        held.push((send, receive));
    }
    // The last of them has arrived when this is answered.
    let ping = Request { body_length: 0, op: None, background: false };
    raw(&connection, &frame::encode_header(&ping).expect("a header"), true).await;
    let put = tokio::time::timeout(AT_ONCE, a.put(b.tls.id(), 10)).await;
    put.expect("at once").expect("an answer");
}

#[tokio::test]
async fn neither_one_peer_nor_all_strangers_take_all_turns() {
    let limits = Limits { requests_max: 16, ..Limits::default() };
    let b = Peer::start_with(2, local(), 2, limits);
    let [a, c] = [Peer::start(1), Peer::start(3)];
    let strangers = STRANGERS.map(Peer::start);
    for peer in strangers.iter().chain([&a, &c]) {
        peer.knows(&b);
    }
    let forever = |peer: &Peer| {
        let (pool, to) = (peer.pool.clone(), b.tls.id());
        let op = || Op::HasShards(HasRequest::default());
        (0..8).map(move |_| {
            let pool = pool.clone();
            async move { pool.request(to, op(), Bytes::new()).await }
        })
    };
    let busy: Vec<_> = strangers.iter().chain([&c]).flat_map(forever).collect();
    let served = async {
        until_busy(&c, &b).await;
        until_busy(&strangers[4], &b).await;
        let put = tokio::time::timeout(AT_ONCE, a.put(b.tls.id(), 10)).await;
        put.expect("at once").expect("an answer");
    };
    tokio::select! {
        // Refused after a while, those that have no turn.
        _ = futures::future::join_all(busy) => panic!("not all are answered"),
        () = served => {}
    }
}

#[tokio::test]
async fn nodes_of_the_network_share_its_places() {
    let limits = Limits { connections_max: 4, connections_unproved_max: 2, ..Limits::default() };
    let b = Peer::start_with(2, local(), 2, limits);
    let (a, crowd) = (Peer::start(1), Peer::start(3));
    a.knows(&b);
    let mut taken = Vec::new();
    for _ in 0..limits.connections_max {
        taken.push(crowd.connect(&b).await);
    }
    a.put(b.tls.id(), 10).await.expect("a place is made for it");
    taken[0].closed().await;
    assert!(taken[1..].iter().all(|connection| connection.close_reason().is_none()));
}

#[tokio::test]
async fn a_dropped_request_frees_its_place() {
    let a = Peer::start(1);
    let limits = Limits { requests_max: 1, ..Limits::default() };
    let b = Peer::start_with(2, local(), 2, limits);
    a.knows(&b);
    let forever = a.pool.request(b.tls.id(), Op::HasShards(HasRequest::default()), Bytes::new());
    tokio::time::timeout(Duration::from_millis(100), forever).await.expect_err("never answered");
    a.put(b.tls.id(), 10).await.expect("the place is free again");
}

#[tokio::test]
async fn a_restarted_peer_is_reached_again() {
    let (a, b) = (Peer::start(1), Peer::start(2));
    a.knows(&b);
    a.put(b.tls.id(), 10).await.expect("an answer");
    let (id, address) = (b.tls.id(), b.address);
    b.end().await;
    let error = a.put(id, 10).await.expect_err("nobody is there");
    assert_eq!(Refusal::from(error).reason(), Reason::NodeUnreachable);

    let b = Peer::start_at(2, address, 3);
    // It calls first, so it is dialled again without waiting for the backoff.
    b.knows(&a);
    b.put(a.tls.id(), 10).await.expect("an answer");
    a.pool.heard(id);
    a.put(id, 10).await.expect("it is back");
    let status = a.pool.status(&id).expect("known");
    assert!(status.connected && status.last_error.is_none() && status.last_heard.is_some());
}

#[tokio::test]
async fn a_killed_and_restarted_peer_says_at_once_that_old_connections_are_gone() {
    let a = Peer::start(1);
    let life = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let b = life.spawn(async { Peer::start(2) }).await.expect("started");
    a.knows(&b);
    a.put(b.tls.id(), 10).await.expect("an answer");
    let old = a.pool.connection(&b.tls.id()).expect("pooled");

    // Killed: its socket is closed and its tasks are gone, it says nothing more.
    let (id, address) = (b.tls.id(), b.address);
    drop(b);
    tokio::task::spawn_blocking(move || life.shutdown_timeout(Duration::from_secs(5)))
        .await
        .expect("the runtime ends");
    let restarted = bind(address).expect("the address is free");
    let tls = NodeTls::from_seed(&seed(2)).expect("a key");
    let endpoint =
        open(&tls, PeerSocket::Udp(restarted), Congestion::Cubic, seed(8)).expect("an endpoint");
    tokio::spawn(serve(endpoint, Arc::new(Echo), Limits::default(), CancellationToken::new()));

    // By the reset and nothing else, such as the idle timeout.
    let answered = tokio::time::timeout(Duration::from_secs(120), a.put(id, 10)).await;
    answered.expect("it ends by itself").expect("an answer of the restarted peer");
    assert_eq!(old.close_reason(), Some(quinn::ConnectionError::Reset));
}

#[tokio::test]
async fn who_goes_away_while_he_dials_does_not_make_others_wait_for_a_second_dial() {
    let a = Peer::start(1);
    let dead = std::net::UdpSocket::bind(local()).expect("a port");
    dead.set_nonblocking(true).expect("set");
    let id = NodeTls::from_seed(&seed(2)).expect("a key").id();
    a.knows_at(id, dead.local_addr().expect("an address"));
    let impatient = tokio::time::timeout(Duration::from_millis(500), a.put(id, 10));
    let (impatient, patient) = tokio::join!(impatient, a.put(id, 10));
    impatient.expect_err("it waited for less than a dial takes");
    let error = patient.expect_err("nobody answers there");
    assert!(matches!(error, PeerError::Backoff { .. }), "{error}");
    // A long header names the connection: version 4 bytes, then the length of its id (RFC 9000 §17.2).
    let mut dials = std::collections::BTreeSet::new();
    let mut packet = [0; 2048];
    while let Ok(length) = dead.recv(&mut packet) {
        assert!(length > 6 && packet[0] & 0x80 != 0, "a packet of {length} bytes");
        dials.insert(packet[6..6 + usize::from(packet[5])].to_vec());
    }
    assert_eq!(dials.len(), 1);
}

#[tokio::test]
async fn a_dead_address_fails_with_its_reason_and_the_living_one_wins() {
    let (a, b) = (Peer::start(1), Peer::start(2));
    let dead = std::net::UdpSocket::bind(local()).expect("a port");
    a.knows_at(b.tls.id(), dead.local_addr().expect("an address"));
    a.knows(&b);
    a.put(b.tls.id(), 10).await.expect("reached by its second address");

    let error = a.put(NodeId::new([9; 32]), 10).await.expect_err("unknown");
    assert!(matches!(error, PeerError::Unknown(_)), "{error}");
    let error = a.put(a.tls.id(), 10).await.expect_err("itself");
    assert!(matches!(error, PeerError::Itself(_)), "{error}");
}
