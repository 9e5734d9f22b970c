//! A client's view of a network: who is in it, where chunks lie, and a way to each node.
//!
//! Owns the directory, the ring made of it, and one channel for each node. Stores and reads nothing
//! itself. The one idea: any node that can be reached is a way to all the others.

mod refresh;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use copse_core::{
    directory::{Directory, NodeState, SignedRecord},
    geometry::Geometry,
    ids::{ChunkId, NetworkId, NodeId, ShardIndex},
    ring::{CANDIDATES_PER_SHARD, HELD_WITHIN_PER_SHARD, Ring},
};
use copse_proto::{
    bulk::{self, Incoming, MESSAGE_BYTES_MAX},
    convert::{self, Holding, target_field},
    door::{self, node_client::NodeClient, shards_client::ShardsClient},
    status::{Reason, Refusal},
};
use futures::{
    future::select_ok,
    stream::{self, Stream},
};
use tokio::time::Instant;
use tonic::{Request, Status, transport::Channel};

use crate::{
    connect::{Connector, open_channel},
    error::NetworkError,
    holders::{Holder, Holders},
    lock::lock,
    profile::Door,
};

/// A node reached through another is tried directly again after this time.
const RELAY_FOR: Duration = Duration::from_secs(60);

/// Other nodes tried as a way to one that cannot be reached directly.
const RELAYS_TRIED: usize = 3;

/// An answer to a small question (has, info) that takes longer counts as none.
pub const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// A network as one client sees it. Cheap to clone; all clones share channels and judgements.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    id: NetworkId,
    connector: Arc<dyn Connector>,
    bootstrap: Vec<Door>,
    view: RwLock<Arc<View>>,
    nodes: Mutex<HashMap<NodeId, Arc<Way>>>,
    holders: Holders,
    // When the directory was last fetched. Held while it is fetched on demand, so that a hundred
    // readers who miss something fetch it once.
    refreshed: tokio::sync::Mutex<Instant>,
}

/// The directory at one moment, and the ring made of it.
#[derive(Debug)]
pub struct View {
    /// Every node known.
    pub directory: Directory,
    /// Where chunks lie.
    pub ring: Ring,
}

impl View {
    fn of(directory: Directory) -> Arc<Self> {
        let ring = directory.ring();
        Arc::new(Self { directory, ring })
    }

    /// This view with what a directory lists, after each was verified; none when it brings no news.
    fn with(&self, list: &door::ListReply) -> Option<Arc<Self>> {
        let mut directory = self.directory.clone();
        let news = convert::admit(&mut directory, list, |error| {
            tracing::debug!(%error, "a record or observation was refused");
        });
        news.then(|| Self::of(directory))
    }

    /// The nodes that may hold shards of a chunk, the likeliest first: its preference list, then
    /// on along the ring, up to twice as many nodes as the chunk has shards, and those of the list that
    /// lie behind. Writers replace a holder within this list, so that readers need not look further as
    /// long as the ring stays as it is; only when all of it refuses they go on [further](Self::further). At its end are nodes that are leaving, as many at most: they
    /// are off the ring, and serve what they have not handed over yet. Writers are refused there.
    pub fn candidates(&self, chunk: &ChunkId, geometry: Geometry) -> Vec<NodeId> {
        self.candidates_within(chunk, geometry, CANDIDATES_PER_SHARD)
    }

    /// The same, with `per_shard` nodes of the ring for each shard: newcomers push those that hold
    /// shards further along the walk, until the shards have moved.
    pub fn candidates_within(
        &self,
        chunk: &ChunkId,
        geometry: Geometry,
        per_shard: usize,
    ) -> Vec<NodeId> {
        let records = self.directory.iter().map(SignedRecord::record);
        let leaving = records
            .filter(|record| record.state == NodeState::Leaving)
            .map(|record| record.node)
            .take(per_shard * geometry.total());
        self.ring.around(Ring::arc(chunk), geometry, per_shard).chain(leaving).collect()
    }

    /// All nodes of the ring that a shard of a chunk may lie on, those of [`Self::candidates`] too.
    pub fn further(&self, chunk: &ChunkId, geometry: Geometry) -> Vec<NodeId> {
        self.ring.around(Ring::arc(chunk), geometry, HELD_WITHIN_PER_SHARD).collect()
    }

    /// The first holder of each shard of a chunk; empty when there are no nodes.
    pub fn placement(&self, chunk: &ChunkId, geometry: Geometry) -> Vec<NodeId> {
        self.ring.placement(Ring::arc(chunk), geometry)
    }
}

/// The way to one node.
#[derive(Default)]
struct Way {
    link: Mutex<Option<(Link, Option<Instant>)>>,
    // Held while dialling, so that a hundred tasks that need a node dial it once.
    dialling: tokio::sync::Mutex<()>,
}

/// An open way to a node: straight, or through another.
#[derive(Clone)]
pub struct Link {
    channel: Channel,
    node: NodeId,
    via: Option<NodeId>,
}

impl Link {
    /// The node whose door is used.
    pub fn via(&self) -> NodeId {
        self.via.unwrap_or(self.node)
    }

    /// What to write into a request's `target`: nothing when the door is the node's own.
    pub fn target(&self) -> Vec<u8> {
        target_field(self.via.map(|_| self.node))
    }

    /// The shard service at the door, for what is small.
    pub fn shards(&self) -> ShardsClient<Channel> {
        ShardsClient::new(self.channel.clone())
    }

    /// Opens a Put stream.
    ///
    /// # Errors
    /// When the door refuses it or does not answer any more.
    pub async fn put(
        &self,
        requests: impl Stream<Item = door::PutRequest> + Send + Unpin + 'static,
    ) -> Result<Incoming<door::PutReply>, Status> {
        bulk::call(&mut self.channel.clone(), bulk::PUT, requests, MESSAGE_BYTES_MAX).await
    }

    /// Asks for a range of a shard.
    ///
    /// # Errors
    /// When the door refuses it or does not answer any more.
    pub async fn get(&self, request: door::GetRequest) -> Result<Incoming<door::GetReply>, Status> {
        let request = stream::iter([request]);
        bulk::call(&mut self.channel.clone(), bulk::GET, request, MESSAGE_BYTES_MAX).await
    }
}

impl Network {
    /// Connects: reaches at least one door and learns the directory from it.
    ///
    /// `known` are records from an earlier session; their doors are tried too.
    ///
    /// # Errors
    /// When no door could be reached, with each attempt; when those reached belong to another
    /// network.
    pub async fn connect(
        id: NetworkId,
        bootstrap: Vec<Door>,
        known: Directory,
        connector: Arc<dyn Connector>,
    ) -> Result<Self, NetworkError> {
        let network = Self {
            inner: Arc::new(Inner {
                id,
                connector,
                bootstrap,
                view: RwLock::new(View::of(known)),
                nodes: Mutex::default(),
                holders: Holders::default(),
                refreshed: tokio::sync::Mutex::new(Instant::now()),
            }),
        };
        network.refresh().await?;
        tokio::spawn(refresh::keep_fresh(Arc::downgrade(&network.inner)));
        Ok(network)
    }

    /// The network's id.
    pub fn id(&self) -> NetworkId {
        self.inner.id
    }

    /// The directory and ring of this moment.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.inner.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What this client has seen of one node.
    pub fn holder(&self, node: NodeId) -> Arc<Holder> {
        self.inner.holders.get(node)
    }

    /// A way to a node: its own door, or another's.
    ///
    /// # Errors
    /// When neither can be reached.
    pub async fn link(&self, node: NodeId) -> Result<Link, Refusal> {
        let way = self.way(node);
        if let Some(link) = way.open() {
            return Ok(link);
        }
        let dialling = way.dialling.lock().await;
        if let Some(link) = way.open() {
            return Ok(link);
        }
        let direct = match self.open(node).await {
            Ok(channel) => {
                let link = Link { channel, node, via: None };
                *lock(&way.link) = Some((link.clone(), None));
                return Ok(link);
            }
            Err(closed) => closed,
        };
        drop(dialling);
        // Where nobody listens the node is most likely down, and another node would take seconds to
        // find out: it is asked only if the node stays like that.
        if direct.refused && !self.holder(node).has_failed() {
            return Err(direct.into());
        }
        for via in self.doors().into_iter().filter(|via| *via != node).take(RELAYS_TRIED) {
            if let Ok(channel) = self.dial(via).await {
                let link = Link { channel, node, via: Some(via) };
                *lock(&way.link) = Some((link.clone(), Some(Instant::now() + RELAY_FOR)));
                tracing::debug!(node = %node.short(), via = %via.short(), "through another node");
                return Ok(link);
            }
        }
        Err(direct.into())
    }

    /// A channel to the node's own door, opened once.
    async fn dial(&self, node: NodeId) -> Result<Channel, Refusal> {
        let way = self.way(node);
        let own = |way: &Way| way.open().filter(|link| link.via.is_none());
        if let Some(link) = own(&way) {
            return Ok(link.channel);
        }
        let _dialling = way.dialling.lock().await;
        if let Some(link) = own(&way) {
            return Ok(link.channel);
        }
        let channel = self.open(node).await?;
        *lock(&way.link) = Some((Link { channel: channel.clone(), node, via: None }, None));
        Ok(channel)
    }

    async fn open(&self, node: NodeId) -> Result<Channel, Closed> {
        let addresses = self.addresses(node);
        if addresses.is_empty() {
            return Err(Closed { why: "it has no gRPC address".to_owned(), refused: false });
        }
        let attempts = addresses.iter().map(|address| {
            Box::pin(open_channel(Arc::clone(&self.inner.connector), node, *address))
        });
        match select_ok(attempts).await {
            Ok((channel, _)) => Ok(channel),
            Err(error) => Err(Closed { why: causes(&error), refused: was_refused(&error) }),
        }
    }

    fn addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        let mut all = Vec::new();
        if let Some(record) = self.view().directory.get(&node) {
            all.extend(&record.record().grpc);
        }
        for door in self.inner.bootstrap.iter().filter(|door| door.node == node) {
            all.extend(&door.addresses);
        }
        let mut seen = std::collections::HashSet::new();
        all.retain(|address| seen.insert(*address));
        all
    }

    fn way(&self, node: NodeId) -> Arc<Way> {
        Arc::clone(lock(&self.inner.nodes).entry(node).or_default())
    }

    /// Forgets a way that failed, so that the next request dials again.
    pub fn forget(&self, link: &Link) {
        let way = self.way(link.node);
        let mut current = lock(&way.link);
        if current.as_ref().is_some_and(|(open, _)| open.via == link.via) {
            *current = None;
        }
    }

    /// Which shards of each chunk a node says it holds. At most 1024 chunks.
    ///
    /// # Errors
    /// When the node could not be asked or gave no sensible answer.
    pub async fn has(
        &self,
        node: NodeId,
        chunks: &[ChunkId],
    ) -> Result<Vec<Vec<ShardIndex>>, Refusal> {
        let holdings = self.holdings(node, chunks).await?;
        Ok(holdings.into_iter().map(|holding| holding.indices).collect())
    }

    /// The same, and whether the node waits to hear that the chunk is safe.
    ///
    /// # Errors
    /// When the node could not be asked or gave no sensible answer.
    pub async fn holdings(
        &self,
        node: NodeId,
        chunks: &[ChunkId],
    ) -> Result<Vec<Holding>, Refusal> {
        let asking = async {
            let link = self.link(node).await?;
            let request = door::HasRequest {
                target: link.target(),
                chunk_ids: chunks.iter().map(|id| id.as_bytes().to_vec()).collect(),
            };
            match link.shards().has(request).await {
                Ok(reply) => Ok(convert::has_reply(reply.get_ref(), chunks.len())?),
                Err(status) => {
                    self.forget(&link);
                    Err(Refusal::from(status))
                }
            }
        };
        let started = Instant::now();
        let answer = match tokio::time::timeout(QUESTION_TIMEOUT, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(timed_out(QUESTION_TIMEOUT)),
        };
        let holder = self.holder(node);
        match &answer {
            Ok(_) => holder.answered(started.elapsed()),
            Err(refusal) => holder.failed(refusal.to_string()),
        }
        answer
    }

    /// What a node says about itself. Asked at its own door only.
    ///
    /// # Errors
    /// When it could not be asked.
    pub async fn info(&self, node: NodeId) -> Result<door::InfoReply, Refusal> {
        let asking = async {
            let channel = self.dial(node).await?;
            Ok(NodeClient::new(channel).info(Request::new(door::InfoRequest {})).await?)
        };
        match tokio::time::timeout(QUESTION_TIMEOUT, asking).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(timed_out(QUESTION_TIMEOUT)),
        }
    }
}

impl Way {
    fn open(&self) -> Option<Link> {
        let link = lock(&self.link);
        let (link, until) = link.as_ref()?;
        until.is_none_or(|until| until > Instant::now()).then(|| link.clone())
    }
}

/// Why a door could not be opened.
struct Closed {
    why: String,
    /// Whether the machine answered that nobody listens there.
    refused: bool,
}

impl From<Closed> for Refusal {
    fn from(closed: Closed) -> Self {
        Self::new(Reason::NodeUnreachable, closed.why)
    }
}

fn was_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::ConnectionRefused;
        }
        next = error.source();
    }
    false
}

/// The causes of an error: a transport's own message is only "transport error".
fn causes(error: &dyn std::error::Error) -> String {
    let mut next = Some(error);
    let mut text = String::new();
    while let Some(cause) = next {
        let line = cause.to_string();
        // The outermost says only what is asked about anyway.
        if line != "transport error" && !text.ends_with(&line) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&line);
        }
        next = cause.source();
    }
    text
}

pub(crate) fn timed_out(after: Duration) -> Refusal {
    let message = format!("no answer within {} s", after.as_secs());
    Refusal::new(Reason::TimedOut, message)
}

#[cfg(test)]
mod tests {
    use copse_core::{directory::NodeRecord, identity::NodeKey};

    use super::*;

    const NETWORK: NetworkId = NetworkId::new([7; 32]);

    fn record(number: u8, state: NodeState) -> SignedRecord {
        let key = NodeKey::from_seed([number; 32]);
        let record = NodeRecord {
            network: NETWORK,
            node: key.id(),
            seq: 1,
            addresses: vec![([127, 0, 0, 1], 7000).into()],
            grpc: Vec::new(),
            relays: Vec::new(),
            zone: String::new(),
            capacity_bytes: 1 << 30,
            state,
            version: "test".to_owned(),
        };
        SignedRecord::sign(record, &key).expect("a valid record")
    }

    #[test]
    fn who_is_leaving_is_asked_after_all_others_and_who_has_left_is_not() {
        let mut directory = Directory::new(NETWORK);
        let node = |number| NodeKey::from_seed([number; 32]).id();
        for number in 0..12 {
            let state = match number {
                0..8 => NodeState::Active,
                8..11 => NodeState::Leaving,
                _ => NodeState::Left,
            };
            directory.insert(record(number, state));
        }
        let view = View::of(directory);
        let chunk = ChunkId::new([3; 32]);
        let check = |code: &str, active: usize, leaving: usize| {
            let candidates = view.candidates(&chunk, code.parse().expect("a geometry"));
            let (on_ring, behind) = candidates.split_at(active);
            let walk: Vec<NodeId> = view.ring.walk(Ring::arc(&chunk)).take(active).collect();
            assert_eq!(on_ring, walk, "{code}");
            assert_eq!(behind.len(), leaving, "{code}: {behind:?}");
            assert!(behind.iter().all(|found| (8..11).any(|number| node(number) == *found)));
        };
        check("3+3", 8, 3);
        check("2+1", 6, 3);
        // No more than twice as many as the chunk has shards.
        check("1+0", 2, 2);
    }
}
