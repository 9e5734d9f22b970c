//! What several tests of repair use.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use copse_core::{
    descriptor::Descriptor,
    directory::NodeState,
    geometry::Geometry,
    identity::NodeKey,
    ids::{ChunkId, NetworkId, NodeId, ShardIndex},
    repair::{Policy, Standing},
    ring::{Ring, RingMember},
    shard_tree,
    units::ByteSize,
};
use copse_proto::{
    convert, door,
    holdings::ListedShard,
    peer,
    status::{Reason, Refusal},
};
use tokio_util::sync::CancellationToken;

use super::{
    Events, Phases, Settings,
    claims::Claims,
    exchange::Exchange,
    facts::{Looks, Opinions, View, Views},
    health::Health,
    jobs::Jobs,
    pace::{Pace, Rates},
    proofs::Proofs,
    report::Counters,
    shared::Shared,
    trust::Trust,
};
use crate::{
    buffers::Buffers,
    intake::Intake,
    peer::{
        Answer, Op, Outcome, PeerHandler,
        endpoint::{Congestion, PeerSocket, bind, open},
        pool::PeerPool,
        server,
    },
    shards::{self, ShardService},
    store::{Ledger, LedgerChange, MemoryStore, ShardStore, VerifiedShard},
    tls::NodeTls,
    unsettled::{Coming, Unsettled},
};

pub(super) const NETWORK: NetworkId = NetworkId::new([3; 32]);

/// A ledger that can be told to fail.
pub(super) struct Failing {
    ledger: Arc<dyn Ledger>,
    pub(super) fails: AtomicBool,
    /// No write ends as long as this is set.
    pub(super) hangs: AtomicBool,
    /// What begins so cannot be read, as if it lay on a bad block.
    bad: Mutex<Option<Vec<u8>>>,
}

impl Failing {
    /// An empty one.
    pub(super) fn new() -> Arc<Self> {
        let ledger = MemoryStore::new(0).ledger();
        let (fails, hangs) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { ledger, fails, hangs, bad: Mutex::default() })
    }

    /// From now on this cannot be read, and only this.
    pub(super) fn spoil(&self, prefix: Option<Vec<u8>>) {
        *self.bad.lock().expect("no test panics inside") = prefix;
    }
}

impl Ledger for Failing {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.ledger.get(key)
    }

    fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        let bad = self.bad.lock().expect("no test panics inside").clone();
        if bad.is_some_and(|bad| prefix.starts_with(&bad)) {
            return Err(io::Error::other("a bad block"));
        }
        self.ledger.scan(prefix, visit)
    }

    fn apply(&self, changes: Vec<LedgerChange>) -> io::Result<()> {
        while self.hangs.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        match self.fails.load(Ordering::Relaxed) {
            true => Err(io::Error::other("no")),
            false => self.ledger.apply(changes),
        }
    }
}

/// The network as it is set, with everybody alive.
pub(super) struct Seen(Mutex<Arc<View>>);

impl Seen {
    pub(super) fn new(members: Vec<RingMember>) -> Arc<Self> {
        let seen = Self(Mutex::new(Arc::new(view(members, 0))));
        Arc::new(seen)
    }

    /// The same network under another ring, so that everything is planned again.
    pub(super) fn change(&self, members: Vec<RingMember>, ring_id: u8) {
        *self.0.lock().expect("no test panics inside") = Arc::new(view(members, ring_id));
    }

    /// From now on a node stands so, on the ring or not.
    pub(super) fn stands(&self, node: NodeId, standing: Standing) {
        let mut seen = self.0.lock().expect("no test panics inside");
        let View { ring, ring_id, own_state, standings, cut_off, frozen } = &**seen;
        let (ring, mut standings) = (Arc::clone(ring), standings.clone());
        standings.insert(node, standing);
        let (ring_id, own_state, cut_off, frozen) = (*ring_id, *own_state, *cut_off, *frozen);
        *seen = Arc::new(View { ring, ring_id, own_state, standings, cut_off, frozen });
    }
}

fn view(members: Vec<RingMember>, ring_id: u8) -> View {
    let standings = members.iter().map(|member| (member.id, Standing::Alive)).collect();
    View {
        ring: Arc::new(Ring::build(members)),
        ring_id: [ring_id; 16],
        own_state: NodeState::Active,
        standings,
        cut_off: false,
        frozen: false,
    }
}

impl Looks for Seen {
    fn now(&self) -> Arc<View> {
        Arc::clone(&self.0.lock().expect("no test panics inside"))
    }

    fn guard(&self) -> String {
        String::new()
    }

    fn returning(&self) -> Option<Duration> {
        None
    }
}

pub(super) fn member(id: NodeId, zone: &str) -> RingMember {
    RingMember { id, capacity_bytes: 1 << 40, zone: zone.to_owned() }
}

/// A way to other nodes that nobody goes. Needs a runtime.
pub(super) fn peers(own: NodeId) -> PeerPool {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address"));
    let nowhere = Arc::new(|_: &NodeId| Vec::<SocketAddr>::new());
    PeerPool::new(endpoint.expect("a socket"), own, nowhere, 0)
}

pub(super) fn exchange(own: NodeId) -> Exchange {
    let believed = (Trust::default(), Proofs::default());
    Exchange::new(NETWORK, peers(own), Pace::new(Rates::FREE), believed, &[0; 32])
}

/// Another node that keeps shards, really reached. Needs a runtime.
pub(super) struct Keeper {
    pub(super) id: NodeId,
    /// For its marks.
    pub(super) ledger: Arc<Failing>,
    shards: ShardService,
    address: SocketAddr,
}

/// What it answers.
struct Keeping(ShardService);

#[async_trait::async_trait]
impl PeerHandler for Keeping {
    async fn handle(
        &self,
        _from: NodeId,
        op: Op,
        body: Bytes,
        _background: bool,
    ) -> Result<Answer, Refusal> {
        match op {
            Op::PutShard(peer::PutShard { descriptor, index, abandoned, .. }) => {
                let (id, _) = convert::shard_of_descriptor(&descriptor, index)?;
                let coming = if abandoned { Coming::Abandoned } else { Coming::Otherwise };
                let receipt = self.0.put_here(descriptor.into(), id, body, coming).await?;
                Ok(Outcome::PutShard(receipt).into())
            }
            Op::GetShard(request) => {
                let found = self.0.get_here(&request).await?;
                Ok(Answer { outcome: Outcome::GetShard(found.header), body: found.data })
            }
            Op::HasShards(request) => {
                Ok(Outcome::HasShards(self.0.has_here(&request).await?).into())
            }
            Op::MarkChunks(told) => {
                self.0.marked_by(NodeId::new([0; 32]), &told).await?;
                Ok(Outcome::MarkChunks(peer::MarkChunksReply {}).into())
            }
            _ => Err(Refusal::new(Reason::UnknownOperation, "it only keeps shards")),
        }
    }
}

impl Keeper {
    pub(super) fn start(seed: u8) -> Self {
        let (key, endpoint) = (NodeKey::from_seed([seed; 32]), endpoint(seed));
        let store: Arc<dyn ShardStore> = Arc::new(MemoryStore::new(1 << 20));
        let (id, ledger) = (key.id(), Failing::new());
        let marks = Arc::clone(&ledger) as Arc<dyn Ledger>;
        let shards = ShardService::new(shards::Parts {
            network: NETWORK,
            key,
            clock: Arc::new(|| 1_700_000_000),
            unsettled: Unsettled::with(Arc::clone(&store), marks).expect("a ledger"),
            store,
            peers: peers(id),
            put_buffers: Buffers::new("tests", ByteSize(0)),
            get_buffers: Buffers::new("tests", ByteSize(0)),
            pace: Pace::new(Rates::FREE),
            intake: Intake::default(),
        });
        let (address, handler) = (endpoint.local_addr(), Arc::new(Keeping(shards.clone())));
        let (limits, never) = (server::Limits::default(), CancellationToken::new());
        tokio::spawn(server::serve(endpoint, handler, limits, never));
        Self { id, ledger, shards, address: address.expect("an address") }
    }

    /// The way to it of the node with that key.
    pub(super) fn exchange(&self, own: u8) -> Exchange {
        let (id, address) = (self.id, self.address);
        let book = move |node: &NodeId| if *node == id { vec![address] } else { Vec::new() };
        let own_id = NodeKey::from_seed([own; 32]).id();
        let peers = PeerPool::new(endpoint(own), own_id, Arc::new(book), 0);
        let believed = (Trust::default(), Proofs::default());
        Exchange::new(NETWORK, peers, Pace::new(Rates::FREE), believed, &[0; 32])
    }

    /// Gives it a shard.
    pub(super) async fn take(&self, shard: &VerifiedShard, coming: Coming) {
        let descriptor = Bytes::copy_from_slice(shard.descriptor());
        let put = self.shards.put_here(descriptor, shard.id(), shard.data().clone(), coming);
        put.await.expect("a put");
    }

    /// What it says that it holds of a chunk, and whether nobody called that safe.
    pub(super) async fn holds(&self, chunk: ChunkId) -> (Vec<u8>, bool) {
        let chunk_ids = vec![chunk.as_bytes().to_vec()];
        let asked = door::HasRequest { target: Vec::new(), chunk_ids };
        let mut said = self.shards.has_here(&asked).await.expect("a store").held;
        let said = said.pop().expect("one chunk");
        (said.indices, said.unsettled)
    }
}

fn endpoint(seed: u8) -> quinn::Endpoint {
    let tls = NodeTls::from_seed(&[seed; 32]).expect("a key");
    let socket = PeerSocket::Udp(bind(([127, 0, 0, 1], 0).into()).expect("a port"));
    open(&tls, socket, Congestion::Cubic, [seed; 32]).expect("an endpoint")
}

/// How a node behaves that is in no hurry.
pub(super) fn settings() -> Settings {
    Settings {
        policy: Policy::default(),
        round_every: Duration::from_secs(10),
        parallel: 1,
        rates: Rates::FREE,
        scrub_period: Duration::from_secs(30 * 24 * 3600),
        lost_after: Duration::from_secs(3600),
    }
}

/// What the parts of a node share that keeps its shards and its rows there. Needs a runtime.
pub(super) fn shared(
    own: NodeId,
    store: Arc<dyn ShardStore>,
    ledger: Arc<dyn Ledger>,
    views: Views,
) -> Shared {
    let (trust, proofs) = (Trust::default(), Proofs::default());
    let opinions = Opinions::new(trust.clone(), proofs.clone());
    Shared {
        own,
        clock: Arc::new(|| 1_700_000_000),
        settings: settings(),
        phases: Phases::default(),
        views,
        unsettled: Unsettled::with(Arc::clone(&store), Arc::clone(&ledger)).expect("a ledger"),
        exchange: exchange(own),
        claims: Claims::over(own, Arc::clone(&store), Arc::clone(&ledger), opinions.clone()),
        jobs: Jobs::load(Arc::clone(&ledger), 0).expect("a ledger"),
        trust,
        proofs,
        opinions,
        health: Health::new(Arc::clone(&store)),
        events: Events::default(),
        counters: Counters::default(),
        store,
        ledger,
    }
}

/// A shard of a chunk that needs two of three.
pub(super) fn of_three(seed: u8, index: u8) -> VerifiedShard {
    shard_of(2, seed, index)
}

/// A shard of a chunk of two replicas.
pub(super) fn replica(seed: u8, index: u8) -> VerifiedShard {
    shard_of(1, seed, index)
}

/// A shard of a chunk that needs so many, all but one.
pub(super) fn shard_of(needed: usize, seed: u8, index: u8) -> VerifiedShard {
    let data = Bytes::from(vec![seed; 1000]);
    let geometry = Geometry::new(needed, 1).expect("a geometry");
    let hashes = vec![shard_tree::hash(&data); geometry.total()];
    let descriptor = Descriptor::new(geometry, data.len(), hashes);
    let descriptor = descriptor.expect("a descriptor").encode().into();
    VerifiedShard::check(descriptor, ShardIndex(index), data).expect("a sound shard")
}

/// The same as it is listed.
pub(super) fn listed(shard: &VerifiedShard) -> ListedShard {
    let shard_bytes = u32::try_from(shard.data().len()).expect("a short one");
    ListedShard { id: shard.id(), geometry: shard.geometry(), shard_bytes }
}
