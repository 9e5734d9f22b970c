//! A whole node, assembled from injected edges.
//!
//! Owns the order in which its parts start and stop. Decides nothing: sockets, disk, time and
//! randomness come in through [`Edges`], so that production and the simulator run this same code.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use copse_core::{
    directory::{NodeRecord, RecordError, SignedRecord},
    eviction::SignedObservation,
    ids::{NetworkId, NodeId},
    repair::Lane,
    units::ByteSize,
};
use copse_proto::{convert, door, peer, status::Refusal};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    addresses,
    beside::beside,
    buffers::Buffers,
    clock::Clock,
    config::{Config, Listen},
    control,
    door::{About, Door, DoorError, Listener, Parts, Records},
    identity::Seed,
    intake::Intake,
    leaving::{self, Departure, Leaving},
    membership::{self, Contact, Membership, memory::Memory},
    metrics,
    peer::{
        Answer, Op, Outcome, PeerHandler,
        endpoint::{self, EndpointError, PeerSocket},
        pool::PeerPool,
        server,
    },
    repair::{self, Events, Looks as _, Pace, Phase, Phases, Repair},
    shards::{self, ShardService},
    store::{ShardStore, Writes},
    tls::{NodeTls, TlsError},
    unsettled::{Coming, Origin, Unsettled},
};

/// The program's version, as nodes tell each other.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Peers in one answer to Info: with 8 addresses each they fit in a message. The rest of a larger
/// network is in the directory.
const PEERS_TOLD_MAX: usize = 1024;

/// How often this node looks whether its addresses are still its own: nobody can reach it until it does.
const ADDRESSES_EVERY: Duration = Duration::from_secs(30);

/// What a node touches the world through.
pub struct Edges {
    /// Where packets of other nodes come from and go to.
    pub socket: PeerSocket,
    /// Where clients' connections come from.
    pub listener: Box<dyn Listener>,
    /// Where shards are kept.
    pub store: Arc<dyn ShardStore>,
    /// Where known nodes are remembered; none: nowhere.
    pub memory: Option<Arc<dyn Memory>>,
    /// The node's secret.
    pub seed: Seed,
    /// Fresh randomness for this start.
    pub random: [u8; 32],
    /// The time of day.
    pub clock: Clock,
    /// Where the owner's commands come from; none: from nowhere.
    pub control: Option<control::Listener>,
    /// Where metrics are asked for; none: nowhere.
    pub metrics: Option<TcpListener>,
    /// Whether the node was told to leave before; remembers it.
    pub departure: Departure,
    /// Where repair stops, in tests.
    pub phases: Phases,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node's key is of no use for TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The UDP socket is of no use.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The door does not open.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// What the configuration says about the node fits into no record.
    #[error("the node cannot be described to others: {0}; check the configuration")]
    Record(#[from] RecordError),
    /// The ledger of repair cannot be read.
    #[error(
        "what repair remembers cannot be read: {0}; stop the node and delete the directory \"index\" \
         in its store: it is built again from the segments"
    )]
    Ledger(#[source] std::io::Error),
    /// A fault of this program.
    #[error("a task of the node failed at its start: {0}")]
    Task(#[source] tokio::task::JoinError),
}

/// A running node.
pub struct Node {
    id: NodeId,
    config: Config,
    store: Arc<dyn ShardStore>,
    door: Door,
    tasks: Vec<(&'static str, JoinHandle<()>)>,
    leaving: Leaving,
    repair: Repair,
    facts: Arc<Facts>,
    stop: CancellationToken,
    /// Cancelled when other nodes are served no more, and asked nothing.
    served: CancellationToken,
}

impl Node {
    /// Starts a node; when this returns, it serves.
    ///
    /// # Errors
    /// See [`StartError`]. The store stays open then: it is the caller's.
    pub async fn start(edges: Edges, config: Config) -> Result<Self, StartError> {
        let Edges { socket, listener, store, memory, seed, random, clock, .. } = edges;
        let Edges { control, metrics, departure, phases, .. } = edges;
        let (key, tls) = (seed.key(), NodeTls::from_seed(seed.as_bytes())?);
        let id = key.id();
        let (events, pace) = (Events::default(), Pace::new(config.repair.rates));
        let record = NodeRecord {
            network: config.network,
            node: id,
            // Of two records the one with the later start counts.
            seq: clock(),
            addresses: addresses::advertised(&config.quic),
            grpc: addresses::advertised(&config.grpc),
            relays: Vec::new(),
            zone: config.zone.clone(),
            capacity_bytes: config.capacity.0,
            state: departure.state(),
            version: VERSION.to_owned(),
        };
        let options = membership::Options {
            key: key.clone(),
            record,
            contacts: config
                .join
                .iter()
                .map(|token| Contact { node: token.node, addresses: token.addresses.clone() })
                .collect(),
            memory,
            addresses_found: addresses::found(&config.quic).is_some(),
            seed: blake3::derive_key("copse node start: gossip", &random),
            timeouts: config.membership,
            clock: Arc::clone(&clock),
            events: events.clone(),
        };
        // Reads the file of remembered peers.
        let membership =
            beside(move || Membership::new(options)).await.map_err(StartError::Task)??;
        let stop = CancellationToken::new();
        let quic_seed = blake3::derive_key("copse node start: quic", &random);
        let endpoint = endpoint::open(&tls, socket, config.congestion, quic_seed)?;
        let jitter = u64::from_le_bytes(std::array::from_fn(|i| random[i]));
        let pool = PeerPool::new(endpoint.clone(), id, Arc::new(membership.clone()), jitter);
        let half = |size: ByteSize| ByteSize(size.0 / 2);
        let intake = Intake::default();
        // Reads the marks from the ledger.
        let kept = Arc::clone(&store);
        let unsettled = beside(move || Unsettled::load(kept))
            .await
            .map_err(StartError::Task)?
            .map_err(StartError::Ledger)?;
        let shards = ShardService::new(shards::Parts {
            network: config.network,
            key: key.clone(),
            clock: Arc::clone(&clock),
            store: Arc::clone(&store),
            peers: pool.clone(),
            put_buffers: Buffers::new("shards on their way in", half(config.put_buffers)),
            get_buffers: Buffers::new("shards on their way out", half(config.get_buffers)),
            pace: pace.clone(),
            intake: intake.clone(),
            unsettled: unsettled.clone(),
        });
        let parts = repair::Parts {
            network: config.network,
            key,
            clock: Arc::clone(&clock),
            store: Arc::clone(&store),
            peers: pool.clone(),
            views: Arc::new(membership.clone()),
            events,
            pace,
            intake,
            unsettled,
            settings: config.repair.clone(),
            phases,
            seed: blake3::derive_key("copse node start: repair", &random),
        };
        // Reads what it remembers from the disk.
        let repair = beside(move || Repair::load(parts))
            .await
            .map_err(StartError::Task)?
            .map_err(StartError::Ledger)?;
        let limits = server::Limits {
            put_bytes_max: usize::try_from(config.put_buffers.0 / 2).unwrap_or(usize::MAX),
            get_bytes_max: usize::try_from(config.get_buffers.0 / 2).unwrap_or(usize::MAX),
            ..server::Limits::default()
        };
        let handler = Arc::new(Handler {
            shards: shards.clone(),
            membership: membership.clone(),
            pool: pool.clone(),
            repair: repair.clone(),
        });
        let leaving = Leaving::new(leaving::Parts {
            departure,
            membership: membership.clone(),
            peers: pool.clone(),
            shards: shards.clone(),
            store: Arc::clone(&store),
        });
        let door_tls = tls.door_server()?;
        // From here on tasks run that must be told when something fails.
        let served = CancellationToken::new();
        let mut tasks =
            vec![("peers", tokio::spawn(server::serve(endpoint, handler, limits, served.clone())))];
        tasks.push(("gossip", {
            let (membership, pool, stop) = (membership.clone(), pool.clone(), stop.clone());
            tokio::spawn(async move { membership.run(pool, stop).await })
        }));
        tasks.push(("addresses", {
            let (membership, stop) = (membership.clone(), stop.clone());
            tokio::spawn(follow_addresses(
                membership,
                config.quic.clone(),
                config.grpc.clone(),
                stop,
            ))
        }));
        tasks.push(("repair", {
            let (repair, stop) = (repair.clone(), stop.clone());
            tokio::spawn(async move { repair.run(stop).await })
        }));
        tasks.push(("leaving", tokio::spawn(leaving.clone().run(stop.clone()))));
        let facts = Arc::new(Facts {
            id,
            network: config.network,
            membership,
            pool,
            store: Arc::clone(&store),
            repair: repair.clone(),
            started: Instant::now(),
        });
        if let Some(listener) = control {
            let commands = control::Commands { leaving: leaving.clone(), repair: repair.clone() };
            tasks.push(("control", tokio::spawn(control::serve(listener, commands, stop.clone()))));
        }
        if let Some(listener) = metrics {
            let source = Arc::clone(&facts) as Arc<dyn metrics::Source>;
            tasks.push((
                "metrics",
                tokio::spawn(metrics::serve(listener, source, stop.clone().cancelled_owned())),
            ));
        }
        let opened = Door::open(Parts {
            listener,
            tls: door_tls,
            connections_max: config.grpc_connections_max,
            streams_max: config.grpc_streams_max,
            shards,
            records: Arc::clone(&facts) as Arc<dyn Records>,
            about: Arc::clone(&facts) as Arc<dyn About>,
            stop: stop.clone(),
        });
        let door = match opened.await {
            Ok(door) => door,
            Err(error) => {
                stop.cancel();
                served.cancel();
                return Err(error.into());
            }
        };
        tracing::info!(
            node = %id,
            network = %config.network,
            quic = %config.quic.listen,
            grpc = %config.grpc.listen,
            zone = config.zone,
            capacity = %config.capacity,
            "node serves"
        );
        Ok(Self { id, config, store, door, tasks, leaving, repair, facts, stop, served })
    }

    /// The node's id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Reads all of the disk once now.
    pub fn scrub_now(&self) {
        self.repair.scrub_now();
    }

    /// Leaves the network, as the owner's command does.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn leave(&self) -> std::io::Result<()> {
        self.leaving.leave()
    }

    /// How far it is with leaving.
    pub fn progress(&self) -> leaving::Progress {
        *self.leaving.progress().borrow()
    }

    /// What it says of itself to whoever asks.
    pub async fn info(&self) -> door::InfoReply {
        self.facts.about().await
    }

    /// The records of all nodes that it knows, its own too.
    pub fn records(&self) -> Vec<door::SignedRecord> {
        self.facts.membership.records().iter().map(convert::signed_record).collect()
    }

    /// Returns when the node has left its network: it has nothing more to do.
    pub async fn left(&self) {
        self.leaving.done().await;
    }

    /// What it was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Stops: takes no new requests of clients, lets running ones end for the configured time, then
    /// serves no nodes any more and closes the store. What was acknowledged is safe in any case.
    ///
    /// Takes the configured time, a second for clients and five for nodes at most, one after the other, and
    /// what closing the store takes.
    pub async fn shutdown(self) {
        self.door.announce_stop().await;
        self.stop.cancel();
        self.door.closed(self.config.stop_grace).await;
        // Only now: the door tells other nodes of the puts that end unfinished with it.
        self.served.cancel();
        for (what, task) in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, what, "a task failed");
            }
        }
        self.store.close().await;
        tracing::info!("stopped");
    }
}

/// Looks again and again where this machine can be reached: it may have started before its network did,
/// or been given another address since.
async fn follow_addresses(
    membership: Membership,
    quic: Listen,
    grpc: Listen,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(tokio::time::sleep(ADDRESSES_EVERY)).await.is_some() {
        // Asks the routing table; nothing that blocks.
        if let (Some(quic), Some(grpc)) = (addresses::found(&quic), addresses::found(&grpc))
            && let Err(error) = membership.set_addresses(quic, grpc)
        {
            tracing::warn!(%error, "this node's new addresses cannot be told to others");
        }
    }
}

/// What other nodes may ask.
struct Handler {
    shards: ShardService,
    membership: Membership,
    pool: PeerPool,
    repair: Repair,
}

#[async_trait]
impl PeerHandler for Handler {
    async fn handle(
        &self,
        from: NodeId,
        op: Op,
        body: Bytes,
        background: bool,
    ) -> Result<Answer, Refusal> {
        if !background && matches!(op, Op::PutShard(_) | Op::GetShard(_)) {
            self.shards.foreground();
        }
        match op {
            Op::Ping(_) => Ok(Outcome::Ping(peer::Pong {}).into()),
            Op::ArcChanges(asked) => {
                let (reply, body) = self.repair.arc_changes(&asked).await?;
                Ok(Answer { outcome: Outcome::ArcChanges(reply), body })
            }
            Op::ListArcs(asked) => {
                let (reply, body) = self.repair.list_arcs(&asked).await?;
                Ok(Answer { outcome: Outcome::ListArcs(reply), body })
            }
            Op::HandOver(asked) => {
                Ok(Outcome::HandOver(self.repair.hand_over(&asked).await?).into())
            }
            Op::Release(asked) => Ok(Outcome::Release(self.repair.release(&asked).await?).into()),
            Op::Gossip(message) => {
                Ok(Outcome::Gossip(self.membership.gossip(from, &message).await?).into())
            }
            Op::Reconcile(message) => {
                Ok(Outcome::Reconcile(self.membership.reconcile(from, &message)?).into())
            }
            Op::PutShard(request) => {
                let (id, _) = convert::shard_of_descriptor(&request.descriptor, request.index)?;
                if background {
                    self.repair.phases().reach(Phase::Asked, id.chunk).await;
                }
                let coming = match (request.settles, request.abandoned) {
                    (true, _) => Coming::Settling(Origin::Peer(from)),
                    (false, true) => Coming::Abandoned,
                    (false, false) => Coming::Otherwise,
                };
                let descriptor = request.descriptor.into();
                let receipt = self.shards.put_here(descriptor, id, body, coming).await?;
                Ok(Outcome::PutShard(receipt).into())
            }
            Op::GetShard(request) => {
                if request.counted_on {
                    self.repair.count_on(convert::shard_id(&request.chunk_id, request.index)?)?;
                }
                let found = self.shards.get_here(&request).await?;
                Ok(Answer { outcome: Outcome::GetShard(found.header), body: found.data })
            }
            Op::MarkChunks(told) => {
                self.shards.marked_by(from, &told).await?;
                Ok(Outcome::MarkChunks(peer::MarkChunksReply {}).into())
            }
            Op::HasShards(request) => {
                Ok(Outcome::HasShards(self.shards.has_here(&request).await?).into())
            }
        }
    }

    async fn wait_for_turn(&self, bytes: usize) -> Result<(), Refusal> {
        self.repair.pace().take(bytes as u64, Lane::Normal).await
    }

    fn knows(&self, peer: &NodeId) -> bool {
        self.membership.with(|directory| directory.get(peer).is_some())
    }

    fn heard(&self, from: NodeId) {
        self.pool.heard(from);
        self.membership.heard(from);
    }
}

/// What the node can say about itself and others.
struct Facts {
    id: NodeId,
    network: NetworkId,
    membership: Membership,
    pool: PeerPool,
    store: Arc<dyn ShardStore>,
    repair: Repair,
    started: Instant,
}

#[async_trait]
impl metrics::Source for Facts {
    async fn info(&self) -> door::InfoReply {
        self.about().await
    }
}

impl Records for Facts {
    fn records_after(&self, after: Option<NodeId>, most: usize) -> Vec<SignedRecord> {
        self.membership.with(|known| known.after(after.as_ref()).take(most).cloned().collect())
    }

    fn observations_after(
        &self,
        after: Option<(NodeId, NodeId)>,
        most: usize,
    ) -> Vec<SignedObservation> {
        self.membership.with(|known| known.observations_after(after).take(most).cloned().collect())
    }
}

#[async_trait]
impl About for Facts {
    async fn about(&self) -> door::InfoReply {
        let stats = self.store.stats().await;
        let (repair, scrub) = self.repair.told().await;
        let (accepting, refusing_reason) = match stats.writes {
            Writes::Accepted => (true, String::new()),
            Writes::Full(reason) => {
                (false, format!("full: {}; {}", reason.meaning(), reason.remedy()))
            }
            Writes::Refused => (false, "the disk failed: see the node's log".to_owned()),
        };
        door::InfoReply {
            network_id: self.network.as_bytes().to_vec(),
            node_id: self.id.as_bytes().to_vec(),
            version: VERSION.to_owned(),
            record: self.membership.own().as_ref().map(convert::signed_record),
            store: Some(door::StoreInfo {
                shards: stats.shards,
                shard_bytes: stats.shard_bytes,
                disk_bytes: stats.used_bytes,
                capacity_bytes: stats.capacity_bytes,
                accepting,
                refusing_reason,
                quarantined: stats.quarantined,
                trashed: stats.trashed,
                dead_bytes: stats.dead_bytes,
                unreadable: self.store.doubts().is_unreadable(),
            }),
            repair: Some(repair),
            scrub: Some(scrub),
            peers: self.peers(),
            uptime_seconds: self.started.elapsed().as_secs(),
        }
    }
}

impl Facts {
    /// All known nodes but this one, with what the pool knows of reaching them.
    fn peers(&self) -> Vec<door::PeerInfo> {
        let others = self.membership.records();
        let others = others.iter().map(SignedRecord::record).filter(|peer| peer.node != self.id);
        let (view, untrusted) = (self.membership.now(), self.repair.untrusted());
        others
            .take(PEERS_TOLD_MAX)
            .map(|record| {
                let status = self.pool.status(&record.node);
                let status = status.as_ref();
                door::PeerInfo {
                    node_id: record.node.as_bytes().to_vec(),
                    addresses: record.addresses.iter().map(ToString::to_string).collect(),
                    connected: status.is_some_and(|status| status.connected),
                    last_heard_seconds: status
                        .and_then(|status| status.last_heard)
                        .map(|since| since.as_secs()),
                    last_error: status
                        .and_then(|status| status.last_error.clone())
                        .unwrap_or_default(),
                    standing: view
                        .standings
                        .get(&record.node)
                        .map_or_else(String::new, ToString::to_string),
                    reason: self.membership.reason(&record.node),
                    untrusted: untrusted.get(&record.node).cloned().unwrap_or_default(),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::LINGER;

    #[test]
    fn who_stops_a_node_waits_for_it_longer_than_a_stop_takes() {
        let default = Config::new(NetworkId::new([1; 32]), ByteSize(1 << 30));
        let takes = default.stop_grace + LINGER + server::DRAIN_TIME_MAX;
        let check = |file: &str, setting: &str| {
            let value = file.lines().find_map(|line| line.trim().strip_prefix(setting));
            let seconds = value.and_then(|value| value.trim().strip_suffix('s'));
            let seconds = seconds.and_then(|seconds| seconds.parse().ok()).expect(setting);
            assert!(Duration::from_secs(seconds) > takes, "{setting} {seconds} s, {takes:?}");
        };
        let unit = include_str!("../../deploy/systemd/copse-node.service");
        check(unit, "TimeoutStopSec=");
        check(include_str!("../../deploy/compose.yaml"), "stop_grace_period:");
    }
}
