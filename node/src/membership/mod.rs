//! Whom this node knows and who answers: drives [`copse_core::gossip`] and
//! [`copse_core::liveness`] over QUIC.
//!
//! Owns the directory, this node's own record and observations, and when what is sent. Refuses
//! messages of other networks with a reason. All decisions are the core's: here are timers, requests
//! and the file of remembered peers. The lock on the directory is never held while waiting for
//! anything.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use copse_core::{
    directory::{Directory, NodeRecord, NodeState, RecordError, SignedRecord},
    eviction::SignedObservation,
    gossip::{Bundle, Gossip, RECONCILE_INTERVAL, ROUND_INTERVAL, Received},
    identity::NodeKey,
    ids::{NetworkId, NodeId},
    liveness::{Change, Liveness, Ticked, Timeouts, Watch},
    random::Random,
};
use copse_proto::{
    convert, door,
    peer::{Gossip as GossipMessage, GossipReply, Ping, Reconcile, ReconcileReply},
    status::{Reason, Refusal},
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    task::JoinSet,
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::{
    memory::{Memory, Remembered},
    view::Viewer,
};
use crate::{
    beside::beside,
    peer::{
        Op, Outcome, PeerError,
        pool::{AddressBook, PeerPool},
    },
    repair::{Events, Looks, View},
    shards::Clock,
};

pub mod memory;
#[cfg(test)]
mod tests;
mod view;

/// Between two attempts to find anyone, when nobody answers.
const JOIN_INTERVAL: Duration = Duration::from_secs(1);

/// Known nodes that are asked at once when joining, besides those of the tokens.
const JOIN_FANOUT: usize = 4;

/// How often the peers are remembered, if there is anything new.
const REMEMBER_INTERVAL: Duration = Duration::from_secs(5);

/// Others who are told at once when something must be known before this node goes.
const ANNOUNCE_FANOUT: usize = 8;

/// Comparisons with one peer in a row, at most. A message holds some 150 records, so that 20,000
/// nodes are learned in one go; a peer that always has more is left after that.
const COMPARISONS_MAX: usize = 128;

/// Gossip requests under way at once; what does not fit is left for the next round.
const REQUESTS_MAX: usize = 16;

/// Pings under way at once; who does not fit is pinged at the next tick.
const PINGS_MAX: usize = 256;

/// How long an answer to a ping is waited for. Longer than a dial with its retries takes.
const PING_TIME_MAX: Duration = Duration::from_secs(8);

/// A node by which to join, from a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// Its id; its key is checked.
    pub node: NodeId,
    /// Where it speaks QUIC.
    pub addresses: Vec<SocketAddr>,
}

/// What a membership starts with.
pub struct Options {
    /// Signs this node's record.
    pub key: NodeKey,
    /// This node's record. Its `seq` grows if a newer record of this node turns up.
    pub record: NodeRecord,
    /// Nodes by which to join; none for the network's first node.
    pub contacts: Vec<Contact>,
    /// Where peers are remembered; none: nowhere.
    pub memory: Option<Arc<dyn Memory>>,
    /// Decides the random choices.
    pub seed: [u8; 32],
    /// After how long a silence what follows.
    pub timeouts: Timeouts,
    /// The time of day, written into observations.
    pub clock: Clock,
    /// Decisions are told there.
    pub(crate) events: Events,
}

/// The directory and its upkeep. Cheap to clone.
#[derive(Clone)]
pub struct Membership(Arc<Inner>);

struct Inner {
    network: NetworkId,
    own: NodeId,
    key: NodeKey,
    contacts: Vec<Contact>,
    memory: Option<Arc<dyn Memory>>,
    timeouts: Timeouts,
    clock: Clock,
    events: Events,
    started: Instant,
    state: Mutex<State>,
}

struct State {
    directory: Directory,
    gossip: Gossip,
    watch: Watch,
    viewer: Viewer,
    /// When a node that was down was heard again the last time.
    returned: Option<Instant>,
    random: Random,
    /// This node's own record, as it should be.
    record: NodeRecord,
    /// Grows whenever the directory changes.
    revision: u64,
}

impl Membership {
    /// Reads the remembered peers and signs this node's record. Blocks on the memory. A memory
    /// that cannot be read is logged and counts as empty.
    ///
    /// # Errors
    /// When the record cannot be signed: it names another node, or is over a limit.
    pub fn new(options: Options) -> Result<Self, RecordError> {
        let Options { key, mut record, contacts, memory, seed, timeouts, clock, events } = options;
        let network = record.network;
        let mut directory = Directory::new(network);
        let Remembered { records, observations } = recall(memory.as_deref(), network);
        for remembered in records {
            if remembered.node() == key.id() {
                // Ours of an earlier run: the clock may have gone back since.
                record.seq = record.seq.max(remembered.record().seq.saturating_add(1));
            } else {
                directory.insert(remembered);
            }
        }
        let own = key.id();
        directory.insert(SignedRecord::sign(record.clone(), &key)?);
        for observation in observations {
            directory.insert_observation(observation);
        }
        let mut gossip = Gossip::new(own, &seed);
        gossip.spread(own, &directory);
        let random = Random::new(&seed, "membership");
        let state = Mutex::new(State {
            directory,
            gossip,
            watch: Watch::new(own, timeouts),
            viewer: Viewer::default(),
            returned: None,
            random,
            record,
            revision: 1,
        });
        Ok(Self(Arc::new(Inner {
            network,
            own,
            key,
            contacts,
            memory,
            timeouts,
            clock,
            events,
            started: Instant::now(),
            state,
        })))
    }

    /// Notes that a node answered or asked something.
    pub fn heard(&self, node: NodeId) {
        let now = self.0.started.elapsed();
        let change = {
            let mut state = self.lock();
            let change = state.watch.heard(&node, now);
            if let Some(change) = &change {
                state.viewer.outdated();
                if change.from == Liveness::Down {
                    state.returned = Some(Instant::now());
                }
            }
            change
        };
        if let Some(change) = change {
            self.tell(&change);
        }
    }

    fn tell(&self, change: &Change) {
        let Change { node, from, to, reason } = change;
        let text = format!("node {} is {to}, was {from}: {reason}", node.short());
        self.0.events.note((self.0.clock)(), text);
    }

    /// Says something else about this node from now on, with a higher number.
    ///
    /// # Errors
    /// When the record cannot be signed.
    pub fn set_state(&self, new: NodeState) -> Result<(), RecordError> {
        let mut state = self.lock();
        if state.record.state != new {
            state.record.state = new;
            state.sign_anew(self.0.own, &self.0.key)?;
        }
        Ok(())
    }

    /// Why a node is not as it should be, for people; empty when it is.
    pub fn reason(&self, node: &NodeId) -> String {
        let now = self.0.started.elapsed();
        let state = self.lock();
        if let Some(evicted) = state.directory.evicted(node) {
            let said = evicted.observations().map(|signed| signed.observation().silent_seconds);
            let longest = said.max().unwrap_or(0);
            return format!(
                "evicted: {} nodes signed that it was silent for up to {longest} s",
                evicted.observers()
            );
        }
        let watched = state.watch.watched().find(|(watched, ..)| watched == node);
        match watched {
            Some((_, Liveness::Suspect | Liveness::Down, since)) => {
                format!("silent for {} s", now.saturating_sub(since).as_secs())
            }
            Some(_) => String::new(),
            None => match state.directory.accusation(node) {
                Some(accused) => {
                    format!("{} nodes signed that it is silent", accused.observers())
                }
                None => String::new(),
            },
        }
    }

    /// The observations of all silent nodes.
    pub fn observations(&self) -> Vec<SignedObservation> {
        self.lock().directory.observations().cloned().collect()
    }

    /// This node's own record.
    pub fn own(&self) -> Option<SignedRecord> {
        self.lock().directory.get(&self.0.own).cloned()
    }

    /// The records of all known nodes, by id.
    pub fn records(&self) -> Vec<SignedRecord> {
        self.lock().directory.iter().cloned().collect()
    }

    /// The record of one node.
    pub fn get(&self, node: &NodeId) -> Option<SignedRecord> {
        self.lock().directory.get(node).cloned()
    }

    /// Looks something up in the directory, which is locked meanwhile.
    pub fn with<T>(&self, look: impl FnOnce(&Directory) -> T) -> T {
        look(&self.lock().directory)
    }

    /// Where nodes can be reached, for a [`PeerPool`].
    pub fn book(&self) -> AddressBook {
        let this = self.clone();
        Arc::new(move |node| this.addresses(node))
    }

    fn addresses(&self, node: &NodeId) -> Vec<SocketAddr> {
        let known = self.lock().directory.get(node).map(|found| found.record().addresses.clone());
        known.unwrap_or_default()
    }

    /// Answers a peer's push.
    ///
    /// # Errors
    /// When it is of another network.
    pub fn gossip(&self, from: NodeId, message: &GossipMessage) -> Result<GossipReply, Refusal> {
        self.check_network(&message.network_id)?;
        let received = self.lock().receive(from, &message.records, &message.observations);
        self.after(from, &received);
        let (records, observations) = told(&received.newer);
        Ok(GossipReply { records, observations })
    }

    /// Answers a peer's digests.
    ///
    /// # Errors
    /// When they are of another network or not 256.
    pub fn reconcile(&self, _from: NodeId, message: &Reconcile) -> Result<ReconcileReply, Refusal> {
        self.check_network(&message.network_id)?;
        let theirs = convert::digests_of(&message.digests)?;
        let mut state = self.lock();
        let State { gossip, directory, .. } = &mut *state;
        let difference = gossip.difference(directory, &theirs);
        drop(state);
        let (records, observations) = told(&difference.news);
        Ok(ReconcileReply { records, observations, buckets: difference.buckets })
    }

    /// Joins, then spreads and compares until `stop` is cancelled.
    pub async fn run(&self, pool: PeerPool, stop: CancellationToken) {
        let mut remembered = 0;
        tokio::select! {
            biased;
            () = stop.cancelled() => return self.remember(&pool, &mut remembered).await,
            () = self.join(&pool) => {}
        }
        let mut rounds = every(ROUND_INTERVAL);
        let mut comparisons = every(RECONCILE_INTERVAL);
        let mut remember = every(REMEMBER_INTERVAL);
        let mut ticks = every(self.tick_interval());
        let mut requests = JoinSet::new();
        let mut pings = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = rounds.tick() => self.push_round(&pool, &mut requests),
                _ = comparisons.tick() => {
                    if requests.len() < REQUESTS_MAX {
                        let (this, pool) = (self.clone(), pool.clone());
                        requests.spawn(async move { this.compare_with_someone(&pool).await });
                    }
                }
                _ = remember.tick() => self.remember(&pool, &mut remembered).await,
                _ = ticks.tick() => self.tick(&pool, &mut pings),
                Some(_) = requests.join_next() => {}
                Some(_) = pings.join_next() => {}
            }
        }
        // Those under way are dropped.
        requests.abort_all();
        pings.abort_all();
        self.remember(&pool, &mut remembered).await;
    }

    /// Often enough that no silence is missed: four times in the shortest one.
    fn tick_interval(&self) -> Duration {
        let shortest = self.0.timeouts.suspect_after.min(self.0.timeouts.ping_every);
        (shortest / 4).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }

    /// Looks at the clocks, does what follows, and pings who is due.
    fn tick(&self, pool: &PeerPool, pings: &mut JoinSet<()>) {
        let now = self.0.started.elapsed();
        let (changes, due) = {
            let mut state = self.lock();
            let State { directory, watch, viewer, .. } = &mut *state;
            let before = watch.guard().clone();
            let Ticked { changes, observe, answer } = watch.tick(now, (self.0.clock)(), directory);
            let guard = watch.guard().clone();
            if !changes.is_empty() || !guard.is_like(&before) {
                viewer.outdated();
            }
            if std::mem::discriminant(&guard) != std::mem::discriminant(&before) {
                self.0.events.note((self.0.clock)(), format!("guard: {guard}"));
            }
            for observation in observe {
                let subject = observation.subject;
                match SignedObservation::sign(observation, &self.0.key) {
                    Ok(signed) => {
                        let text = format!(
                            "node {} has been silent for {} s: signed",
                            subject.short(),
                            signed.observation().silent_seconds
                        );
                        self.0.events.note((self.0.clock)(), text);
                        state.observe(signed);
                    }
                    Err(error) => warn!(%error, "an observation could not be signed"),
                }
            }
            if answer {
                info!("others say that this node is silent: it says that it is here");
                if let Err(error) = state.sign_anew(self.0.own, &self.0.key) {
                    warn!(%error, "this node's record could not be signed anew");
                }
            }
            (changes, state.watch.due(now))
        };
        changes.iter().for_each(|change| self.tell(change));
        for node in due {
            if pings.len() >= PINGS_MAX {
                break;
            }
            let (this, pool) = (self.clone(), pool.clone());
            pings.spawn(async move {
                let ping = pool.request(node, Op::Ping(Ping {}), Bytes::new());
                // A refusal is an answer, too.
                match tokio::time::timeout(PING_TIME_MAX, ping).await {
                    Ok(Ok(_) | Err(PeerError::Refused { .. })) => this.heard(node),
                    Ok(Err(error)) => debug!(peer = %node.short(), %error, "not answered a ping"),
                    Err(_) => debug!(peer = %node.short(), "no answer to a ping"),
                }
            });
        }
    }

    /// Tries contacts and remembered nodes until one has told us what it knows. The network's
    /// first node has none of either and is done at once.
    async fn join(&self, pool: &PeerPool) {
        let mut told = false;
        loop {
            let peers = self.known_peers();
            if peers.is_empty() {
                return info!("no node to join by: this is the network's first");
            }
            let mut attempts: FuturesUnordered<_> = peers
                .iter()
                .map(async |peer| self.compare(pool, peer).await.map(|()| peer.node))
                .collect();
            let mut problem = None;
            while let Some(attempt) = attempts.next().await {
                match attempt {
                    Ok(node) => {
                        let nodes = self.lock().directory.len();
                        return info!(peer = %node.short(), nodes, "joined the network");
                    }
                    Err(error) => problem = Some(error),
                }
            }
            if let Some(error) = problem.filter(|_| !std::mem::replace(&mut told, true)) {
                warn!(%error, asked = peers.len(), "no known node lets us in; trying on");
            }
            tokio::time::sleep(JOIN_INTERVAL).await;
        }
    }

    /// All contacts, and a few random nodes of the directory.
    fn known_peers(&self) -> Vec<Contact> {
        let mut state = self.lock();
        let State { directory, random, .. } = &mut *state;
        let reachable = directory
            .iter()
            .map(SignedRecord::record)
            .filter(|record| record.node != self.0.own && !record.addresses.is_empty());
        let some = random
            .choose(reachable, JOIN_FANOUT)
            .into_iter()
            .map(|record| Contact { node: record.node, addresses: record.addresses.clone() });
        let tokens = self.0.contacts.iter().filter(|contact| contact.node != self.0.own);
        // What a token says may have changed since.
        let tokens = tokens.map(|contact| {
            let mut contact = contact.clone();
            if let Some(signed) = directory.get(&contact.node) {
                contact.addresses.splice(0..0, signed.record().addresses.iter().copied());
            }
            contact
        });
        tokens.chain(some).collect()
    }

    fn push_round(&self, pool: &PeerPool, requests: &mut JoinSet<()>) {
        let pushes = {
            let mut state = self.lock();
            let State { gossip, directory, .. } = &mut *state;
            if requests.len() < REQUESTS_MAX { gossip.round(directory) } else { Vec::new() }
        };
        for push in pushes {
            let (this, pool) = (self.clone(), pool.clone());
            requests.spawn(async move {
                let to = Contact { node: push.to, addresses: this.addresses(&push.to) };
                if let Err(error) = this.push(&pool, &to, &push.news).await {
                    debug!(peer = %push.to.short(), %error, "a push failed");
                }
            });
        }
    }

    /// Compares with a random peer; when that fails, with those by which we would join, since the
    /// whole network may have moved.
    async fn compare_with_someone(&self, pool: &PeerPool) {
        let peer = {
            let mut state = self.lock();
            let State { gossip, directory, .. } = &mut *state;
            gossip.reconcile(directory)
        };
        if let Some(node) = peer {
            let peer = Contact { node, addresses: self.addresses(&node) };
            match self.compare(pool, &peer).await {
                Ok(()) => return,
                Err(error) => debug!(peer = %node.short(), %error, "a comparison failed"),
            }
        }
        for peer in self.known_peers() {
            if self.compare(pool, &peer).await.is_ok() {
                return;
            }
        }
    }

    /// Exchanges with one peer what either does not know, until nothing new comes from it.
    async fn compare(&self, pool: &PeerPool, peer: &Contact) -> Result<(), PeerError> {
        for _ in 0..COMPARISONS_MAX {
            let digests = convert::digests(self.lock().directory.digests());
            let network_id = self.0.network.as_bytes().to_vec();
            let op = Op::Reconcile(Reconcile { network_id, digests });
            let answer = pool.request_at(peer.node, &peer.addresses, op, Bytes::new()).await?;
            let Outcome::Reconcile(reply) = answer.outcome else {
                return Err(PeerError::BadReply { node: peer.node });
            };
            let done = {
                let mut state = self.lock();
                let State { gossip, directory, .. } = &mut *state;
                let records = convert::unverified(&reply.records);
                let observations = convert::unverified_observations(&reply.observations);
                let done =
                    gossip.reconciled(directory, peer.node, &reply.buckets, records, observations);
                state.changed(&done.received);
                done
            };
            self.after(peer.node, &done.received);
            if !done.push.is_empty() {
                self.push(pool, peer, &done.push).await?;
            }
            if !done.again {
                break;
            }
        }
        Ok(())
    }

    /// Tells some others, chosen at random, what this node says of itself now: how many took it, and
    /// how many were asked.
    pub async fn announce(&self, pool: &PeerPool) -> (usize, usize) {
        let (own, some) = {
            let mut state = self.lock();
            let State { directory, random, .. } = &mut *state;
            let others = directory.iter().map(SignedRecord::record).filter(|record| {
                record.node != self.0.own
                    && !record.addresses.is_empty()
                    && record.state != NodeState::Left
            });
            let some: Vec<Contact> = random
                .choose(others, ANNOUNCE_FANOUT)
                .into_iter()
                .map(|record| Contact { node: record.node, addresses: record.addresses.clone() })
                .collect();
            (directory.get(&self.0.own).cloned(), some)
        };
        let news = Bundle { records: own.into_iter().collect(), observations: Vec::new() };
        let pushes = some.iter().map(async |peer| {
            let pushed = tokio::time::timeout(PING_TIME_MAX, self.push(pool, peer, &news)).await;
            usize::from(matches!(pushed, Ok(Ok(()))))
        });
        let taken: Vec<usize> = futures::future::join_all(pushes).await;
        (taken.iter().sum(), some.len())
    }

    async fn push(&self, pool: &PeerPool, peer: &Contact, news: &Bundle) -> Result<(), PeerError> {
        let network_id = self.0.network.as_bytes().to_vec();
        let (records, observations) = told(news);
        let op = Op::Gossip(GossipMessage { network_id, records, observations });
        let answer = pool.request_at(peer.node, &peer.addresses, op, Bytes::new()).await?;
        let Outcome::Gossip(reply) = answer.outcome else {
            return Err(PeerError::BadReply { node: peer.node });
        };
        let received = self.lock().receive(peer.node, &reply.records, &reply.observations);
        self.after(peer.node, &received);
        Ok(())
    }

    fn check_network(&self, theirs: &[u8]) -> Result<(), Refusal> {
        let theirs = convert::network_id(theirs)?;
        if theirs == self.0.network {
            return Ok(());
        }
        let text = format!("this node belongs to network {}, not to {theirs}", self.0.network);
        Err(Refusal::new(Reason::WrongNetwork, text).about("network", self.0.network))
    }

    /// What follows from records that came in.
    fn after(&self, from: NodeId, received: &Received) {
        if received.refused > 0 {
            debug!(peer = %from.short(), refused = received.refused, "records were not genuine");
        }
        if !received.own_replaced {
            return;
        }
        // This node was set back to an older state, and the network knows a newer record of it.
        let mut state = self.lock();
        match state.sign_anew(self.0.own, &self.0.key) {
            Ok(()) => {
                let seq = state.record.seq;
                info!(seq, "the network knew a newer record of this node: signed anew");
            }
            // It was signed before, and only the number changed.
            Err(error) => warn!(%error, "this node's record could not be signed anew"),
        }
    }

    /// Stores what is known, if it changed since it was last stored.
    async fn remember(&self, pool: &PeerPool, stored: &mut u64) {
        let Some(memory) = self.0.memory.clone() else { return };
        let (revision, records, observations) = {
            let state = self.lock();
            if state.revision == *stored {
                return;
            }
            (
                state.revision,
                state.directory.iter().cloned().collect::<Vec<_>>(),
                state.directory.observations().cloned().collect::<Vec<_>>(),
            )
        };
        let network = self.0.network;
        // Ourselves and those that answered first: they are likely to answer again.
        let heard: std::collections::BTreeSet<NodeId> = pool
            .statuses()
            .into_iter()
            .filter(|status| status.last_heard.is_some())
            .map(|status| status.node)
            .chain([self.0.own])
            .collect();
        let write = move || {
            let (first, rest): (Vec<_>, Vec<_>) =
                records.iter().partition(|record| heard.contains(&record.node()));
            memory.store(&memory::encode(network, first.into_iter().chain(rest), &observations))
        };
        match beside(write).await {
            Ok(Ok(())) => *stored = revision,
            Ok(Err(error)) => warn!(%error, "the known peers could not be stored"),
            Err(error) => warn!(%error, "the task that stores the known peers failed"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Looks for Membership {
    fn returning(&self) -> Option<Duration> {
        let settle = self.0.timeouts.settle_for();
        let returned = self.lock().returned?;
        (returned.elapsed() < settle).then_some(settle)
    }

    fn guard(&self) -> String {
        view::text_of(self.lock().watch.guard())
    }

    fn now(&self) -> Arc<View> {
        let mut state = self.lock();
        let State { directory, watch, viewer, record, .. } = &mut *state;
        viewer.view(directory, watch, record)
    }
}

impl State {
    fn receive(
        &mut self,
        from: NodeId,
        records: &[door::SignedRecord],
        observations: &[door::SignedObservation],
    ) -> Received {
        let records = convert::unverified(records);
        let observations = convert::unverified_observations(observations);
        let received = self.gossip.receive(&mut self.directory, from, records, observations);
        self.changed(&received);
        received
    }

    fn changed(&mut self, received: &Received) {
        if received.news > 0 {
            self.revision += 1;
            self.viewer.outdated();
        }
    }

    /// Signs this node's record with a number above all that are known of it, and spreads it.
    fn sign_anew(&mut self, own: NodeId, key: &NodeKey) -> Result<(), RecordError> {
        let found = self.directory.get(&own).map_or(0, |signed| signed.record().seq);
        self.record.seq = found.max(self.record.seq).saturating_add(1);
        let signed = SignedRecord::sign(self.record.clone(), key)?;
        self.directory.insert(signed);
        self.gossip.spread(own, &self.directory);
        self.revision += 1;
        self.viewer.outdated();
        Ok(())
    }

    /// Takes in and spreads what this node saw.
    fn observe(&mut self, signed: SignedObservation) {
        let observation = *signed.observation();
        self.directory.insert_observation(signed);
        self.gossip.spread_observation(&observation, &self.directory);
        self.revision += 1;
        self.viewer.outdated();
    }
}

/// News as they travel.
fn told(news: &Bundle) -> (Vec<door::SignedRecord>, Vec<door::SignedObservation>) {
    let records = news.records.iter().map(convert::signed_record).collect();
    (records, news.observations.iter().map(convert::signed_observation).collect())
}

fn recall(memory: Option<&dyn Memory>, network: NetworkId) -> Remembered {
    let Some(memory) = memory else { return Remembered::default() };
    match memory.load() {
        Ok(None) => Remembered::default(),
        Ok(Some(bytes)) => memory::decode(&bytes, network).unwrap_or_else(|error| {
            warn!(%error, "starting without remembered peers");
            Remembered::default()
        }),
        Err(error) => {
            warn!(%error, "the remembered peers cannot be read, starting without");
            Remembered::default()
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    // After a pause, one tick and not all that were missed.
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
