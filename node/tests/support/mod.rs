//! Real nodes in this process, on real sockets of the loopback interface, for the tests.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test program uses a part")]

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use copse_core::{
    chunk::{EncodedChunk, encode_bulk},
    geometry::Geometry,
    ids::{NetworkId, NodeId, ShardIndex},
    seal::ConvergenceSecret,
    token::JoinToken,
    units::ByteSize,
};
use copse_node::{
    config::Config,
    dial,
    identity::Seed,
    init,
    leaving::Departure,
    node::{Edges, Node},
    peer::endpoint::PeerSocket,
    repair::Phases,
    store::{MemoryStore, ShardStore},
};
use copse_proto::door::{
    GetHeader, GetRequest, PutHeader, PutReply, PutRequest, Settled, get_reply, put_reply,
    put_request, shards_client::ShardsClient,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, Streaming, transport::Channel};

/// How long anything is waited for.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const NETWORK: NetworkId = NetworkId::new([0x5e; 32]);

static NEXT_SEED: AtomicU8 = AtomicU8::new(1);

/// The time of day: it goes on, so that what waits for its time is tried again.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    1_800_000_000 + START.elapsed().as_secs()
}

/// A node, and the way to its door.
pub struct TestNode {
    pub node: Node,
    pub id: NodeId,
    pub address: SocketAddr,
    pub door: Channel,
}

impl TestNode {
    /// With a store in memory.
    pub async fn start(join: Option<&Self>) -> Self {
        Self::with_store(Arc::new(MemoryStore::new(1 << 30)), join).await
    }

    pub async fn with_store(store: Arc<dyn ShardStore>, join: Option<&Self>) -> Self {
        Self::with_config(store, join, |_| ()).await
    }

    pub async fn with_config(
        store: Arc<dyn ShardStore>,
        join: Option<&Self>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a UDP port");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a TCP port");
        let address = listener.local_addr().expect("bound");
        let mut config = Config::new(NETWORK, ByteSize(1 << 30));
        config.quic.listen = socket.local_addr().expect("bound");
        config.grpc.listen = address;
        config.join = join.into_iter().map(Self::token).collect();
        config.stop_grace = Duration::from_secs(5);
        change(&mut config);
        let secret = NEXT_SEED.fetch_add(1, Ordering::Relaxed);
        let edges = Edges {
            socket: PeerSocket::Udp(socket),
            listener: Box::new(listener),
            store,
            memory: None,
            seed: Seed::new([secret; 32]),
            random: [secret; 32],
            clock: Arc::new(now),
            control: None,
            metrics: None,
            departure: Departure::default(),
            phases: Phases::default(),
        };
        let node = Node::start(edges, config).await.expect("a node");
        let id = node.id();
        let door = dial::dial_within(PATIENCE, address, id).await.expect("its door");
        Self { node, id, address, door }
    }

    pub fn token(&self) -> JoinToken {
        init::token(self.node.config(), self.id)
    }

    pub fn shards(&self) -> ShardsClient<Channel> {
        shards(self.door.clone())
    }
}

pub fn shards(door: Channel) -> ShardsClient<Channel> {
    ShardsClient::new(door).max_decoding_message_size(2 << 20)
}

/// A chunk of `bytes` bytes that depend on `seed`.
pub fn chunk(geometry: &str, seed: u8, bytes: usize) -> EncodedChunk {
    let geometry: Geometry = geometry.parse().expect("a geometry");
    let mut plaintext = vec![0; bytes];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut plaintext);
    let secret = ConvergenceSecret::new([9; 32]);
    encode_bulk(geometry, &secret, &plaintext, Vec::new()).expect("fits a chunk").0
}

/// A Put stream that is open.
pub struct Put {
    pub requests: mpsc::Sender<PutRequest>,
    pub replies: Streaming<PutReply>,
}

impl Put {
    pub async fn open(mut client: ShardsClient<Channel>) -> Self {
        let (requests, out) = mpsc::channel(4);
        let replies = client.put(ReceiverStream::new(out)).await.expect("a stream").into_inner();
        Self { requests, replies }
    }

    pub async fn header(&self, tag: u64, target: Option<NodeId>, descriptor: Vec<u8>, index: u32) {
        let target = target.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        self.part(put_request::Part::Header(PutHeader {
            tag,
            target,
            descriptor,
            index,
            settles: true,
        }))
        .await;
    }

    pub async fn data(&self, data: &[u8]) {
        self.part(put_request::Part::Data(data.to_vec().into())).await;
    }

    pub async fn part(&self, part: put_request::Part) {
        // Fails when the node has ended the stream, which the replies tell.
        let _ = self.requests.send(PutRequest { part: Some(part) }).await;
    }

    /// Sends one shard as a good client does.
    pub async fn shard(&self, tag: u64, target: Option<NodeId>, chunk: &EncodedChunk, index: u8) {
        self.header(tag, target, chunk.descriptor().encode(), index.into()).await;
        for piece in chunk.shard(ShardIndex(index)).chunks(1 << 20) {
            self.data(piece).await;
        }
    }

    /// Says that a chunk is safe, as a good client does.
    pub async fn settle(&mut self, tag: u64, target: Option<NodeId>, chunk: &EncodedChunk) {
        let target = target.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        let chunk_id = chunk.id().as_bytes().to_vec();
        self.part(put_request::Part::Settled(Settled { tag, target, chunk_id })).await;
        assert_eq!(self.outcome().await, (tag, None));
    }

    pub async fn reply(&mut self) -> Result<Option<PutReply>, Status> {
        tokio::time::timeout(PATIENCE, self.replies.message()).await.expect("an answer in time")
    }

    /// The next answer: its tag, and the word of a refusal if it is one.
    pub async fn outcome(&mut self) -> (u64, Option<String>) {
        let reply = self.reply().await.expect("the stream goes on").expect("an answer");
        match reply.outcome.expect("an outcome") {
            put_reply::Outcome::Receipt(_) | put_reply::Outcome::Settled(_) => (reply.tag, None),
            put_reply::Outcome::Error(error) => (reply.tag, Some(error.reason)),
        }
    }
}

/// Reads a range of a shard.
pub async fn get(
    mut client: ShardsClient<Channel>,
    target: Option<NodeId>,
    chunk: &EncodedChunk,
    index: u8,
    offset: u64,
    length: u64,
) -> Result<(GetHeader, Vec<u8>), Status> {
    let request = GetRequest {
        target: target.map_or_else(Vec::new, |id| id.as_bytes().to_vec()),
        chunk_id: chunk.id().as_bytes().to_vec(),
        index: index.into(),
        offset,
        length,
        counted_on: false,
    };
    let mut stream = client.get(request).await?.into_inner();
    let (mut header, mut data) = (None, Vec::new());
    while let Some(reply) = stream.next().await {
        match reply?.part.expect("a part") {
            get_reply::Part::Header(it) => header = Some(it),
            get_reply::Part::Data(piece) => data.extend_from_slice(&piece),
        }
    }
    Ok((header.expect("a header"), data))
}

/// Waits until `done` holds.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}
