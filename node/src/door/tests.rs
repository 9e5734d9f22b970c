//! A whole door over streams in memory, on paused time: what a client may hold here, and for how long.

use std::{
    net::SocketAddr,
    task::{Context, Poll},
};

use async_trait::async_trait;
use copse_core::{
    directory::{NodeRecord, NodeState, SignedRecord},
    eviction::{Observation, SignedObservation},
    identity::NodeKey,
    ids::{NetworkId, NodeId},
    units::ByteSize,
};
use copse_proto::{
    door::{
        InfoReply, InfoRequest, ListRequest, PutHeader, PutReply, PutRequest,
        directory_client::DirectoryClient, node_client::NodeClient, put_request,
        shards_client::ShardsClient,
    },
    tls::{DoorVerifier, server_name},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::DuplexStream,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Streaming,
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

use super::*;
use crate::{
    buffers::Buffers,
    intake::Intake,
    peer::{
        endpoint::{Congestion, PeerSocket, bind, open},
        pool::PeerPool,
    },
    repair::{Pace, Rates},
    store::MemoryStore,
    tls::NodeTls,
};

const SEED: [u8; 32] = [1; 32];

/// How long anything is waited for, in a time that costs nothing.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where clients come from.
pub(super) const ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 9);

/// Accepts what is sent through a channel.
pub(super) struct Injected(pub(super) mpsc::Receiver<(DuplexStream, SocketAddr)>);

#[async_trait]
impl Listener for Injected {
    async fn accept(&mut self) -> std::io::Result<(Box<dyn Stream>, SocketAddr)> {
        match self.0.recv().await {
            Some((stream, from)) => Ok((Box::new(stream), from)),
            None => std::future::pending().await,
        }
    }
}

/// A client's side of the handshake with the node of this key.
pub(super) async fn handshake(
    tls: &NodeTls,
    near: DuplexStream,
) -> std::io::Result<TlsStream<DuplexStream>> {
    let mut config = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(DoorVerifier::new(tls.id()))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = server_name(&tls.id()).try_into().expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, near).await
}

/// A node of which nothing is asked.
struct Nobody;

impl Records for Nobody {
    fn records_after(&self, _after: Option<NodeId>, _most: usize) -> Vec<SignedRecord> {
        Vec::new()
    }

    fn observations_after(
        &self,
        _after: Option<(NodeId, NodeId)>,
        _most: usize,
    ) -> Vec<SignedObservation> {
        Vec::new()
    }
}

#[async_trait]
impl About for Nobody {
    async fn about(&self) -> InfoReply {
        InfoReply::default()
    }
}

/// A node that knows one other, and all that 300 more say of that.
struct Told {
    record: SignedRecord,
    observations: Vec<SignedObservation>,
}

impl Told {
    fn new() -> Self {
        let (network, key) = (NetworkId::new([2; 32]), NodeKey::from_seed(SEED));
        let record = NodeRecord {
            network,
            node: key.id(),
            seq: 1,
            addresses: Vec::new(),
            grpc: Vec::new(),
            relays: Vec::new(),
            zone: String::new(),
            capacity_bytes: 1,
            state: NodeState::Active,
            version: String::new(),
        };
        let mut observations: Vec<SignedObservation> = (0..300u64)
            .map(|number| {
                let observer = NodeKey::from_seed(*blake3::hash(&number.to_le_bytes()).as_bytes());
                let observation = Observation {
                    network,
                    observer: observer.id(),
                    subject: key.id(),
                    subject_seq: 1,
                    silent_seconds: 1,
                    observed_at: 1,
                };
                SignedObservation::sign(observation, &observer).expect("an observation")
            })
            .collect();
        observations.sort_unstable_by_key(|signed| signed.observation().observer);
        Self { record: SignedRecord::sign(record, &key).expect("a record"), observations }
    }
}

impl Records for Told {
    fn records_after(&self, after: Option<NodeId>, _most: usize) -> Vec<SignedRecord> {
        after.is_none().then(|| self.record.clone()).into_iter().collect()
    }

    fn observations_after(
        &self,
        after: Option<(NodeId, NodeId)>,
        most: usize,
    ) -> Vec<SignedObservation> {
        let behind = |signed: &&SignedObservation| {
            let Observation { subject, observer, .. } = *signed.observation();
            after.is_none_or(|after| (subject, observer) > after)
        };
        self.observations.iter().filter(behind).take(most).cloned().collect()
    }
}

/// A door, and the way to it.
struct Open {
    tls: NodeTls,
    dial: mpsc::Sender<(DuplexStream, SocketAddr)>,
    _door: Door,
}

impl Open {
    async fn with(connections_max: u32) -> Self {
        Self::of(connections_max, Arc::new(Nobody)).await
    }

    async fn of(connections_max: u32, records: Arc<dyn Records>) -> Self {
        let (tls, key) = (NodeTls::from_seed(&SEED).expect("a key"), NodeKey::from_seed(SEED));
        // Nobody is asked, but a service has the way to others.
        let socket = PeerSocket::Udp(bind(([127, 0, 0, 1], 0).into()).expect("a port"));
        let endpoint = open(&tls, socket, Congestion::Cubic, SEED).expect("an endpoint");
        let peers = PeerPool::new(endpoint, key.id(), Arc::new(|_: &NodeId| Vec::new()), 1);
        let buffers = || Buffers::new("tests", ByteSize(0));
        let store: Arc<dyn crate::store::ShardStore> = Arc::new(MemoryStore::new(1 << 20));
        let unsettled = crate::unsettled::Unsettled::load(Arc::clone(&store)).expect("a ledger");
        let shards = ShardService::new(crate::shards::Parts {
            network: NetworkId::new([2; 32]),
            key,
            clock: Arc::new(|| 1_700_000_000),
            store,
            peers,
            put_buffers: buffers(),
            get_buffers: buffers(),
            pace: Pace::new(Rates { uplink: None, share_percent: 20 }),
            intake: Intake::default(),
            unsettled,
        });
        let (dial, listener) = mpsc::channel(1);
        let door = Door::open(Parts {
            listener: Box::new(Injected(listener)),
            tls: tls.door_server().expect("a certificate"),
            connections_max,
            streams_max: 256,
            shards,
            records,
            about: Arc::new(Nobody),
            stop: CancellationToken::new(),
        });
        Self { tls, dial, _door: door.await.expect("a door") }
    }

    /// A client that bears this much of one answer unread.
    async fn client(&self, from: SocketAddr, window: u32) -> Channel {
        let (near, far) = tokio::io::duplex(64 << 10);
        self.dial.send((far, from)).await.expect("it accepts");
        let stream = timeout(PATIENCE, handshake(&self.tls, near)).await.expect("it has a place");
        let stream = stream.expect("a handshake");
        Endpoint::from_static("http://door.invalid")
            .initial_stream_window_size(window)
            .connect_with_connector(Once(Some(stream)))
            .await
            .expect("a connection")
    }
}

/// Connects once.
struct Once(Option<TlsStream<DuplexStream>>);

impl Service<Uri> for Once {
    type Response = TokioIo<TlsStream<DuplexStream>>;
    type Error = std::io::Error;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.take().ok_or_else(|| std::io::ErrorKind::NotConnected.into());
        std::future::ready(stream.map(TokioIo::new))
    }
}

/// A Put stream, and where its answers come out.
async fn put(client: Channel) -> (mpsc::Sender<PutRequest>, Streaming<PutReply>) {
    let (requests, out) = mpsc::channel(1);
    let replies = ShardsClient::new(client).put(ReceiverStream::new(out)).await;
    (requests, replies.expect("a stream").into_inner())
}

fn malformed(tag: u64) -> PutRequest {
    let header = PutHeader { tag, ..PutHeader::default() };
    PutRequest { part: Some(put_request::Part::Header(header)) }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_answer_to_a_put_is_cut_off() {
    let door = Open::with(128).await;
    let (requests, mut replies) = put(door.client(ADDRESS, 0).await).await;
    let started = Instant::now();
    let sending = async {
        for tag in 0..200 {
            if requests.send(malformed(tag)).await.is_err() {
                break;
            }
        }
        std::future::pending().await
    };
    let end = tokio::select! {
        end = timeout(PATIENCE, replies.message()) => end,
        () = sending => unreachable!("it waits"),
    };
    end.expect("not for ever").expect_err("the connection is gone");
    let took = started.elapsed();
    assert!(took >= shards::STALL_TIMEOUT && took < shards::STALL_TIMEOUT * 2, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_its_answers_slowly_is_served() {
    let door = Open::with(128).await;
    let (requests, mut replies) = put(door.client(ADDRESS, 1 << 20).await).await;
    for tag in 0..200 {
        requests.send(malformed(tag)).await.expect("it reads on");
        let reply = replies.message().await.expect("it goes on").expect("an answer");
        assert_eq!(reply.tag, tag);
        tokio::time::sleep(shards::STALL_TIMEOUT).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_that_has_all_places_makes_room_for_others() {
    let door = Open::with(3).await;
    let mut crowd = Vec::new();
    for _ in 0..3 {
        let client = door.client(ADDRESS, 1 << 20).await;
        // In the middle of a call, each of them.
        crowd.push(put(client).await);
    }
    let client = door.client(([192, 0, 2, 2], 9).into(), 1 << 20).await;
    NodeClient::new(client).info(InfoRequest {}).await.expect("it is served");
    let (_requests, replies) = &mut crowd[0];
    timeout(PATIENCE, replies.message()).await.expect("at once").expect_err("the first one went");
    let (requests, replies) = &mut crowd[1];
    requests.send(malformed(1)).await.expect("the second did not");
    let reply = timeout(PATIENCE, replies.message()).await.expect("at once");
    reply.expect("served").expect("an answer");
}

#[tokio::test(start_paused = true)]
async fn calls_that_stand_still_keep_nobody_out() {
    let door = Open::with(2).await;
    let mut held = Vec::new();
    for number in [1, 2] {
        let client = door.client(([192, 0, 2, number], 9).into(), 1 << 20).await;
        let mut health = HealthClient::new(client);
        let watched = health.watch(HealthCheckRequest { service: String::new() }).await;
        let mut changes = watched.expect("a stream").into_inner();
        changes.message().await.expect("told").expect("the first one");
        held.push(changes);
        // The first one is to be still for longest.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tokio::time::sleep(shards::STALL_TIMEOUT).await;
    let client = door.client(([192, 0, 2, 3], 9).into(), 1 << 20).await;
    NodeClient::new(client).info(InfoRequest {}).await.expect("it is served");
    let gone = timeout(PATIENCE, held[0].message()).await.expect("at once");
    gone.expect_err("the first one went");
}

#[tokio::test(start_paused = true)]
async fn a_list_comes_in_pages_and_who_does_not_read_it_is_cut_off() {
    let told = Arc::new(Told::new());
    let door = Open::of(128, told.clone()).await;
    let ask = async |window| {
        let client = DirectoryClient::new(door.client(ADDRESS, window).await);
        let mut client = client;
        client.list(ListRequest {}).await.expect("a stream").into_inner()
    };
    let mut list = ask(1 << 20).await;
    let (mut pages, mut observations) = (Vec::new(), Vec::new());
    while let Some(page) = list.message().await.expect("a page") {
        pages.push((page.records.len(), page.observations.len()));
        observations.extend(page.observations);
    }
    assert_eq!(pages, [(1, 0), (0, 128), (0, 128), (0, 44)]);
    let signed = told.observations.iter().map(copse_proto::convert::signed_observation);
    assert!(observations.into_iter().eq(signed));

    let mut unread = ask(0).await;
    tokio::time::sleep(shards::STALL_TIMEOUT * 2).await;
    let end = timeout(PATIENCE, unread.message()).await.expect("at once");
    end.expect_err("the connection is gone");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_answer_of_reflection_is_cut_off() {
    let door = Open::with(128).await;
    let (requests, out) = mpsc::channel(1);
    let mut client = ServerReflectionClient::new(door.client(ADDRESS, 0).await);
    let replies = client.server_reflection_info(ReceiverStream::new(out)).await;
    let mut replies = replies.expect("a stream").into_inner();
    let ask = || ServerReflectionRequest {
        host: "h".repeat(1000),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let sending = async {
        while requests.send(ask()).await.is_ok() {}
        std::future::pending().await
    };
    let end = tokio::select! {
        end = timeout(PATIENCE, replies.message()) => end,
        () = sending => unreachable!("it waits"),
    };
    end.expect("not for ever").expect_err("the connection is gone");
}

#[test]
fn what_all_clients_may_send_ahead_is_bounded_and_one_is_not_slowed_down() {
    for connections in 1..=1024 {
        let Windows { connection, stream } = Windows::of(connections);
        assert!(stream < connection);
        assert!(u64::from(connection) * u64::from(connections) <= u64::from(AHEAD_BYTES_MAX));
    }
    // By default: 64 MiB/s over a path of 100 ms.
    assert!(Windows::of(128).stream >= (64 << 20) / 10);
    assert_eq!(Windows::of(65_536).connection, 1 << 20);
}
