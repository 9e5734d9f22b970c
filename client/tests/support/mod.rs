//! Nodes made of a map: doors that speak the real protocol over real sockets, with faults to order.
//!
//! Owns the fake nodes and the network made of them. Verifies nothing that it stores: that is the
//! node's business and tested there.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use copse_client::{
    connect::{Connector, Io},
    network::Network,
    profile::Door,
};
use copse_core::{
    descriptor::Descriptor,
    directory::{Directory, NodeRecord, NodeState, SignedRecord},
    identity::NodeKey,
    ids::{ChunkId, NetworkId, NodeId, ShardId, ShardIndex},
    receipt::{Receipt, SignedReceipt},
    shard_tree::{self, GroupHashes},
};
use copse_proto::{
    convert,
    door::{
        self,
        directory_server::{Directory as DirectoryService, DirectoryServer},
        get_reply::Part as GetPart,
        node_server::{Node as NodeService, NodeServer},
        put_reply::Outcome,
        put_request::Part as PutPart,
        shards_server::{Shards, ShardsServer},
    },
    routes::Routes,
    status::{Reason, Refusal},
};
use futures::{Stream, StreamExt as _, future::BoxFuture};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// PKCS#8 of an Ed25519 key, up to its seed (RFC 8410).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// What a fake node does wrong. All off at first.
#[derive(Default)]
pub(crate) struct Faults {
    /// Every answer about shards comes this much later, in milliseconds.
    pub(crate) delay_ms: AtomicU64,
    /// Never answers, and never hangs up.
    pub(crate) hung: AtomicBool,
    /// Refuses new shards for lack of space.
    pub(crate) full: AtomicBool,
    /// Serves flipped bytes.
    pub(crate) wrong_bytes: AtomicBool,
    /// Serves a flipped proof.
    pub(crate) wrong_proof: AtomicBool,
    /// Serves another shard of the same chunk, with that one's proof.
    pub(crate) other_shard: AtomicBool,
    /// Serves another chunk's descriptor.
    pub(crate) other_descriptor: AtomicBool,
    /// Answers puts that nobody made, and no other.
    pub(crate) wrong_tags: AtomicBool,
    /// Signs receipts for another shard.
    pub(crate) wrong_receipt: AtomicBool,
    /// Says that it holds every shard of every chunk. So does whoever it is a way to.
    pub(crate) claims_everything: AtomicBool,
    /// Does this before it next says what it holds: what happens under somebody's eyes.
    pub(crate) before_has: Hook,
    /// Does this before it next stores a shard.
    pub(crate) before_put: Hook,
    /// Does this when it has stored a shard.
    pub(crate) after_put: Hook,
    /// Says that it holds these shards.
    pub(crate) phantoms: Mutex<Vec<ShardId>>,
    /// Hands all its shards to this node when one is next asked for, and says that it has none.
    pub(crate) moves_to: Mutex<Option<Arc<FakeNode>>>,
}

/// Something to be done once.
#[derive(Default)]
pub(crate) struct Hook(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Hook {
    pub(crate) fn set(&self, what: impl FnOnce() + Send + 'static) {
        *self.0.lock().expect("no panic") = Some(Box::new(what));
    }

    /// Whether it has been done, or was never set.
    pub(crate) fn is_done(&self) -> bool {
        self.0.lock().expect("no panic").is_none()
    }

    fn run(&self) {
        // Locked until it is done, so that done is done.
        let mut hook = self.0.lock().expect("no panic");
        if let Some(what) = hook.take() {
            what();
        }
    }
}

/// What a fake node has seen.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) puts: AtomicUsize,
    pub(crate) put_bytes: AtomicUsize,
    pub(crate) gets: AtomicUsize,
    pub(crate) has: AtomicUsize,
}

/// A shard in a map.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) descriptor: Vec<u8>,
    pub(crate) bytes: Bytes,
}

/// A fake node.
pub(crate) struct FakeNode {
    pub(crate) id: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) faults: Faults,
    pub(crate) seen: Seen,
    pub(crate) shards: Mutex<BTreeMap<ShardId, Held>>,
    /// Chunks of which it waits to hear that they are safe, and those of which it heard it.
    pub(crate) unsettled: Mutex<BTreeSet<ChunkId>>,
    pub(crate) settled: Mutex<Vec<ChunkId>>,
    /// What it says about itself.
    pub(crate) info: Mutex<door::InfoReply>,
    /// The zone in its record.
    pub(crate) zone: Mutex<String>,
    seed: [u8; 32],
    key: NodeKey,
    network: NetworkId,
    others: Arc<Mutex<HashMap<NodeId, Arc<FakeNode>>>>,
    stop: watch::Sender<bool>,
    /// Closed when it answers nobody any more.
    ended: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

/// A network of fake nodes.
pub(crate) struct FakeNetwork {
    pub(crate) id: NetworkId,
    pub(crate) nodes: Vec<Arc<FakeNode>>,
}

/// TCP without TLS, which can be told not to reach some nodes.
#[derive(Default)]
pub(crate) struct PlainConnector {
    pub(crate) unreachable: Mutex<Vec<NodeId>>,
    /// As hosts that are gone: no answer, not even a refusal.
    pub(crate) silent: Mutex<Vec<NodeId>>,
    pub(crate) dials: AtomicUsize,
}

impl Connector for PlainConnector {
    fn connect(
        &self,
        node: NodeId,
        address: SocketAddr,
    ) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        let cut = self.unreachable.lock().expect("no panic").contains(&node);
        let silent = self.silent.lock().expect("no panic").contains(&node);
        Box::pin(async move {
            if silent {
                std::future::pending::<()>().await;
            }
            if cut {
                return Err(io::ErrorKind::NetworkUnreachable.into());
            }
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            Ok(Box::new(tcp) as Box<dyn Io>)
        })
    }
}

impl FakeNetwork {
    /// Starts this many nodes.
    pub(crate) async fn start(count: u8) -> Self {
        let id = NetworkId::new([77; 32]);
        let others = Arc::new(Mutex::new(HashMap::new()));
        let mut nodes = Vec::new();
        for seed in 0..count {
            nodes.push(FakeNode::start(seed, id, Arc::clone(&others)));
        }
        Self { id, nodes }
    }

    /// Starts one more node; others know it at once, clients when they next ask.
    pub(crate) fn add(&mut self, seed: u8) -> Arc<FakeNode> {
        let node = FakeNode::start(seed, self.id, Arc::clone(&self.nodes[0].others));
        self.nodes.push(Arc::clone(&node));
        node
    }

    /// A client of this network.
    pub(crate) async fn connect(&self) -> Network {
        self.connect_over(Arc::new(PlainConnector::default())).await
    }

    /// A client of this network over these connections.
    pub(crate) async fn connect_over(&self, connector: Arc<PlainConnector>) -> Network {
        let first = &self.nodes[0];
        let doors = vec![Door { node: first.id, addresses: vec![first.address] }];
        Network::connect(self.id, doors, Directory::new(self.id), connector)
            .await
            .expect("connects")
    }

    pub(crate) fn node(&self, id: NodeId) -> &Arc<FakeNode> {
        self.nodes.iter().find(|node| node.id == id).expect("a node of this network")
    }

    /// All chunks of which any node holds a shard.
    pub(crate) fn chunks(&self) -> BTreeSet<ChunkId> {
        let held = |node: &Arc<FakeNode>| -> Vec<ChunkId> {
            node.shards.lock().expect("no panic").keys().map(|id| id.chunk).collect()
        };
        self.nodes.iter().flat_map(held).collect()
    }

    /// The nodes that hold a chunk's shards, by index.
    pub(crate) fn holders(&self, chunk: ChunkId) -> BTreeMap<ShardIndex, Vec<NodeId>> {
        let mut holders: BTreeMap<ShardIndex, Vec<NodeId>> = BTreeMap::new();
        for node in &self.nodes {
            for id in node.shards.lock().expect("no panic").keys() {
                if id.chunk == chunk {
                    holders.entry(id.index).or_default().push(node.id);
                }
            }
        }
        holders
    }

    pub(crate) fn total(&self, count: impl Fn(&Seen) -> &AtomicUsize) -> usize {
        self.nodes.iter().map(|node| count(&node.seen).load(Ordering::SeqCst)).sum()
    }
}

impl FakeNode {
    fn start(
        seed: u8,
        network: NetworkId,
        others: Arc<Mutex<HashMap<NodeId, Arc<FakeNode>>>>,
    ) -> Arc<Self> {
        let seed = [seed + 1; 32];
        let key = NodeKey::from_seed(seed);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let node = Arc::new(Self {
            id: key.id(),
            address,
            faults: Faults::default(),
            seen: Seen::default(),
            shards: Mutex::default(),
            unsettled: Mutex::default(),
            settled: Mutex::default(),
            info: Mutex::default(),
            zone: Mutex::default(),
            seed,
            key,
            network,
            others: Arc::clone(&others),
            stop: watch::Sender::new(false),
            ended: Mutex::default(),
        });
        others.lock().expect("no panic").insert(node.id, Arc::clone(&node));
        node.serve(listener);
        node
    }

    fn serve(self: &Arc<Self>, listener: std::net::TcpListener) {
        let mut stop = self.stop.subscribe();
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(16 << 20)
            .initial_connection_window_size(32 << 20)
            .max_frame_size(256 << 10);
        let routes = Routes::new()
            .with(ShardsServer::new(FakeDoor(Arc::clone(self))))
            .with(DirectoryServer::new(FakeDoor(Arc::clone(self))))
            .with(NodeServer::new(FakeDoor(Arc::clone(self))));
        // A runtime of its own: dropping it is the nearest thing to kill -9 within a process.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        // The listener belongs to this runtime and is closed before it goes: tonic tries a failed
        // accept again at once, for ever.
        let served = runtime.spawn(async move {
            listener.set_nonblocking(true).expect("a socket");
            let listener = TcpListener::from_std(listener).expect("a listener");
            tokio::select! {
                _ = server.serve_with_incoming(routes, TcpListenerStream::new(listener)) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        });
        let (end, ended) = std::sync::mpsc::sync_channel(1);
        *self.ended.lock().expect("no panic") = Some(ended);
        std::thread::spawn(move || {
            let _ = runtime.block_on(served);
            runtime.shutdown_timeout(Duration::from_secs(5));
            drop(end);
        });
    }

    /// Closes its door and all connections, and waits until it answers nobody any more.
    pub(crate) fn kill(&self) {
        let _ = self.stop.send(true);
        let ended = self.ended.lock().expect("no panic").take();
        // An error says that it ended: nothing is ever sent.
        let _ = ended.map(|ended| ended.recv());
    }

    /// A door with TLS before its own, as the command line wants one.
    pub(crate) async fn tls_door(self: &Arc<Self>) -> SocketAddr {
        let pkcs8 = [&PKCS8_PREFIX[..], &self.seed].concat();
        let der = PrivatePkcs8KeyDer::from(pkcs8);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519).expect("its key");
        let params = CertificateParams::new(vec!["node.invalid".to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate").der().clone();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], der.into())
            .expect("a configuration");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let plain = self.address;
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    let Ok(mut door) = TcpStream::connect(plain).await else { return };
                    // Whoever hangs up ends it.
                    drop(tokio::io::copy_bidirectional(&mut tls, &mut door).await);
                });
            }
        });
        address
    }

    /// Hands all its shards to another.
    pub(crate) fn move_all(&self, to: &FakeNode) {
        let moved = std::mem::take(&mut *self.shards.lock().expect("no panic"));
        to.shards.lock().expect("no panic").extend(moved);
    }

    /// Forgets all shards of a chunk.
    pub(crate) fn lose(&self, chunk: ChunkId) {
        self.shards.lock().expect("no panic").retain(|id, _| id.chunk != chunk);
    }

    fn record(&self) -> door::SignedRecord {
        let record = NodeRecord {
            network: self.network,
            node: self.id,
            seq: 1,
            addresses: Vec::new(),
            grpc: vec![self.address],
            relays: Vec::new(),
            zone: self.zone.lock().expect("no panic").clone(),
            capacity_bytes: 1 << 40,
            state: NodeState::Active,
            version: "fake".to_owned(),
        };
        let signed = SignedRecord::sign(record, &self.key).expect("its own record");
        door::SignedRecord {
            record: signed.record_bytes().to_vec(),
            signature: signed.signature().to_vec(),
        }
    }

    async fn wait(&self) {
        if self.faults.hung.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let delay = self.faults.delay_ms.load(Ordering::SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
    }

    fn target(self: &Arc<Self>, target: &[u8]) -> Result<Arc<Self>, Refusal> {
        match convert::target(target)? {
            None => Ok(Arc::clone(self)),
            Some(id) => {
                let others = self.others.lock().expect("no panic");
                let target = others.get(&id).filter(|node| !*node.stop.borrow());
                target.cloned().ok_or_else(|| Refusal::new(Reason::NodeUnreachable, "gone"))
            }
        }
    }

    fn store(&self, header: &door::PutHeader, bytes: Bytes) -> Result<door::Receipt, Refusal> {
        self.faults.before_put.run();
        self.seen.puts.fetch_add(1, Ordering::SeqCst);
        self.seen.put_bytes.fetch_add(bytes.len(), Ordering::SeqCst);
        if self.faults.full.load(Ordering::SeqCst) {
            return Err(Refusal::new(Reason::StoreFull, "the disk is full"));
        }
        let descriptor = Descriptor::decode(&header.descriptor)
            .map_err(|error| Refusal::new(Reason::Malformed, error.to_string()))?;
        let mut index = convert::shard_index(header.index)?;
        descriptor
            .check_shard(index, &bytes)
            .map_err(|error| Refusal::new(Reason::ShardMismatch, error.to_string()))?;
        let shard = ShardId { chunk: descriptor.id(), index };
        let shard_bytes = u32::try_from(bytes.len()).expect("a shard");
        let held = Held { descriptor: header.descriptor.clone(), bytes };
        let is_new = self.shards.lock().expect("no panic").insert(shard, held).is_none();
        let mut waits = self.unsettled.lock().expect("no panic");
        if header.settles && is_new {
            waits.insert(shard.chunk);
        }
        let unsettled = header.settles && waits.contains(&shard.chunk);
        drop(waits);
        self.faults.after_put.run();
        if self.faults.wrong_receipt.load(Ordering::SeqCst) {
            index.0 ^= 1;
        }
        let shard = ShardId { chunk: shard.chunk, index };
        let (network, node) = (self.network, self.id);
        let receipt = Receipt { network, node, shard, shard_bytes, stored_at: 1 };
        let signed = SignedReceipt::sign(receipt, &self.key);
        Ok(door::Receipt {
            receipt: signed.receipt().encode(),
            signature: signed.signature().to_vec(),
            unsettled,
        })
    }

    /// Hears that a chunk is safe.
    fn settle(&self, settled: &door::Settled) -> Result<(), Refusal> {
        let chunk = convert::chunk_id(&settled.chunk_id)?;
        self.unsettled.lock().expect("no panic").remove(&chunk);
        self.settled.lock().expect("no panic").push(chunk);
        Ok(())
    }

    fn answer(&self, request: &door::GetRequest) -> Result<Vec<door::GetReply>, Refusal> {
        self.seen.gets.fetch_add(1, Ordering::SeqCst);
        let mut id = convert::shard_id(&request.chunk_id, request.index)?;
        if let Some(to) = self.faults.moves_to.lock().expect("no panic").take() {
            self.move_all(&to);
        }
        let shards = self.shards.lock().expect("no panic");
        if self.faults.other_shard.load(Ordering::SeqCst) {
            let other = shards.keys().find(|other| **other != id).copied();
            id = other.unwrap_or(id);
        }
        let held = shards.get(&id).ok_or_else(|| Refusal::new(Reason::NotHeld, "not here"))?;
        let start = usize::try_from(request.offset).expect("small");
        let length = usize::try_from(request.length).expect("small");
        let end = if length == 0 { held.bytes.len() } else { start + length };
        if end > held.bytes.len() {
            return Err(Refusal::new(Reason::OutOfRange, "behind the end"));
        }
        let covered = shard_tree::covered(held.bytes.len(), start..end);
        let mut proof = GroupHashes::of(&held.bytes).prove(held.bytes.len(), &covered);
        let mut data = held.bytes.slice(covered.clone());
        if self.faults.wrong_proof.load(Ordering::SeqCst) {
            proof.push(0);
        }
        if self.faults.wrong_bytes.load(Ordering::SeqCst) {
            let mut wrong = BytesMut::from(&data[..]);
            wrong[0] ^= 1;
            data = wrong.freeze();
        }
        let mut descriptor = held.descriptor.clone();
        if self.faults.other_descriptor.load(Ordering::SeqCst) {
            let last = descriptor.len() - 1;
            descriptor[last] ^= 1;
        }
        let header = door::GetHeader {
            descriptor,
            covered_offset: covered.start as u64,
            covered_length: covered.len() as u64,
            proof,
        };
        let mut replies = vec![door::GetReply { part: Some(GetPart::Header(header)) }];
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(512 << 10));
            replies.push(door::GetReply { part: Some(GetPart::Data(piece)) });
        }
        Ok(replies)
    }
}

struct FakeDoor(Arc<FakeNode>);

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Shards for FakeDoor {
    type PutStream = ReceiverStream<Result<door::PutReply, Status>>;
    type GetStream = Replies<door::GetReply>;

    async fn put(
        &self,
        request: Request<Streaming<door::PutRequest>>,
    ) -> Result<Response<Self::PutStream>, Status> {
        let node = Arc::clone(&self.0);
        let mut requests = request.into_inner();
        let (replies, answers) = mpsc::channel(64);
        tokio::spawn(async move {
            let mut current: Option<(door::PutHeader, BytesMut)> = None;
            while let Ok(Some(message)) = requests.message().await {
                match message.part {
                    Some(PutPart::Header(header)) => current = Some((header, BytesMut::new())),
                    Some(PutPart::Data(data)) => {
                        let Some((_, bytes)) = &mut current else { return };
                        bytes.extend_from_slice(&data);
                    }
                    Some(PutPart::Settled(settled)) => {
                        let noted = match node.target(&settled.target) {
                            Ok(target) => {
                                target.wait().await;
                                target.settle(&settled)
                            }
                            Err(refusal) => Err(refusal),
                        };
                        let outcome = match noted {
                            Ok(()) => Outcome::Settled(door::SettledReply {}),
                            Err(refusal) => Outcome::Error(refusal.into()),
                        };
                        let reply = door::PutReply { tag: settled.tag, outcome: Some(outcome) };
                        if replies.send(Ok(reply)).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    None => return,
                }
                let complete = current.as_ref().is_some_and(|(header, bytes)| {
                    let descriptor = Descriptor::decode(&header.descriptor).expect("a descriptor");
                    descriptor.shard_bytes() == bytes.len()
                });
                if complete && let Some((header, bytes)) = current.take() {
                    if node.faults.wrong_tags.load(Ordering::SeqCst) {
                        for tag in (0..=u64::MAX).rev() {
                            let reply = door::PutReply { tag, outcome: None };
                            if replies.send(Ok(reply)).await.is_err() {
                                return;
                            }
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                    let stored = match node.target(&header.target) {
                        Ok(target) => {
                            target.wait().await;
                            target.store(&header, bytes.freeze())
                        }
                        Err(refusal) => Err(refusal),
                    };
                    let outcome = match stored {
                        Ok(receipt) => Outcome::Receipt(receipt),
                        Err(refusal) => Outcome::Error(refusal.into()),
                    };
                    let reply = door::PutReply { tag: header.tag, outcome: Some(outcome) };
                    if replies.send(Ok(reply)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn get(
        &self,
        request: Request<door::GetRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let request = request.into_inner();
        let target = self.0.target(&request.target)?;
        target.wait().await;
        let replies = target.answer(&request)?;
        Ok(Response::new(futures::stream::iter(replies).map(Ok).boxed()))
    }

    async fn has(
        &self,
        request: Request<door::HasRequest>,
    ) -> Result<Response<door::HasReply>, Status> {
        let request = request.into_inner();
        let target = self.0.target(&request.target)?;
        target.seen.has.fetch_add(1, Ordering::SeqCst);
        target.wait().await;
        target.faults.before_has.run();
        let chunks = convert::has_chunks(&request).map_err(Refusal::from)?;
        let shards = target.shards.lock().expect("no panic");
        let phantoms = target.faults.phantoms.lock().expect("no panic");
        let everything = [&self.0, &target]
            .iter()
            .any(|node| node.faults.claims_everything.load(Ordering::SeqCst));
        let waits = target.unsettled.lock().expect("no panic");
        let held = |chunk: &ChunkId| {
            let unsettled = waits.contains(chunk);
            if everything {
                return convert::held(&(0..u8::MAX).map(ShardIndex).collect::<Vec<_>>(), unsettled);
            }
            let all = shards.keys().chain(phantoms.iter());
            let indices: Vec<ShardIndex> =
                all.filter(|id| id.chunk == *chunk).map(|id| id.index).collect();
            convert::held(&indices, unsettled)
        };
        Ok(Response::new(door::HasReply { held: chunks.iter().map(held).collect() }))
    }
}

#[tonic::async_trait]
impl DirectoryService for FakeDoor {
    type ListStream = Replies<door::ListReply>;

    async fn list(
        &self,
        _: Request<door::ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let records =
            self.0.others.lock().expect("no panic").values().map(|node| node.record()).collect();
        let reply = door::ListReply { records, ..door::ListReply::default() };
        Ok(Response::new(futures::stream::iter([Ok(reply)]).boxed()))
    }
}

#[tonic::async_trait]
impl NodeService for FakeDoor {
    async fn info(
        &self,
        _: Request<door::InfoRequest>,
    ) -> Result<Response<door::InfoReply>, Status> {
        self.0.wait().await;
        Ok(Response::new(self.0.info.lock().expect("no panic").clone()))
    }
}

/// Waits until a condition holds, for at most a minute by the real clock.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        really_wait().await;
    }
}

thread_local! {
    /// How many want the clock of this test's runtime to stand still.
    static STILL: Cell<usize> = const { Cell::new(0) };
}

/// While it lives, the clock of this test's runtime stands still: for the client nothing is late, however
/// busy the machine is. For runtimes of one thread, and for what waits for answers and for no time.
pub(crate) struct StillTime {
    _held: std::sync::mpsc::Sender<()>,
}

impl StillTime {
    pub(crate) fn begin() -> Self {
        // A clock that is paused goes on by itself when all wait, but not while a thread is blocked.
        let (held, released) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || released.recv());
        STILL.with(|still| {
            if still.get() == 0 {
                tokio::time::pause();
            }
            still.set(still.get() + 1);
        });
        Self { _held: held }
    }

    /// Waits for something with a clock that goes as far as this task comes: a pause of the machine is one
    /// step of it.
    pub(crate) async fn stepping<T>(&self, what: impl Future<Output = T>) -> T {
        self.stepping_by(Duration::from_millis(10), what).await
    }

    /// As [`Self::stepping`] with steps of this length, each of which takes 10 ms.
    pub(crate) async fn stepping_by<T>(&self, step: Duration, what: impl Future<Output = T>) -> T {
        let mut what = std::pin::pin!(what);
        loop {
            tokio::select! {
                biased;
                done = &mut what => return done,
                () = really_wait() => tokio::time::advance(step).await,
            }
        }
    }
}

impl Drop for StillTime {
    fn drop(&mut self) {
        STILL.with(|still| {
            still.set(still.get() - 1);
            if still.get() == 0 && !std::thread::panicking() {
                tokio::time::resume();
            }
        });
    }
}

/// Waits 10 ms by the real clock.
async fn really_wait() {
    let slept = tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(10)));
    slept.await.expect("a sleep");
}

/// Bytes that look random and are the same each time.
pub(crate) fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut out = vec![0; count];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}
