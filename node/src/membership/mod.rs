//! Whom this node knows and who answers: drives [`copse_core::gossip`] and
//! [`copse_core::liveness`] over QUIC.
//!
//! Owns the directory, this node's own record and observations; `upkeep` owns when what is sent.
//! Refuses messages of other networks with a reason. All decisions are the core's. The lock on the
//! directory is never held while waiting for anything.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_core::{
    directory::{Directory, NodeRecord, NodeState, RecordError, SignedRecord},
    eviction::SignedObservation,
    gossip::{Bundle, Gossip, Received, Sifted},
    identity::NodeKey,
    ids::{NetworkId, NodeId},
    liveness::{Change, Liveness, Timeouts, Watch},
    random::Random,
    units::{Brief, counted},
};
use copse_proto::{
    convert, door,
    peer::{Gossip as GossipMessage, GossipReply, Reconcile, ReconcileReply},
    status::{Reason, Refusal},
};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::{
    memory::{Memory, Remembered},
    view::Viewer,
};
use crate::{
    beside::beside,
    clock::Clock,
    peer::pool::AddressBook,
    repair::{Events, Looks, View},
};

pub mod memory;
#[cfg(test)]
mod tests;
mod upkeep;
mod view;

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
    /// Whether its addresses could be found out. If not, those that this node told others before are more
    /// likely right.
    pub addresses_found: bool,
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
    /// Whether it was said that clocks differ.
    told_of_clocks: bool,
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
        let Options { key, mut record, contacts, memory, addresses_found, seed, .. } = options;
        let Options { timeouts, clock, events, .. } = options;
        let network = record.network;
        let mut directory = Directory::new(network);
        let Remembered { mut records, heard, observations } = recall(memory.as_deref(), network);
        let own = key.id();
        if let Some(before) = records.iter().find(|remembered| remembered.node() == own) {
            // Ours of an earlier run: the clock may have gone back since.
            let before = before.record();
            record.seq = record.seq.max(before.seq.saturating_add(1));
            if !addresses_found {
                record.addresses.clone_from(&before.addresses);
                record.grpc.clone_from(&before.grpc);
            }
        }
        records.retain(|remembered| remembered.node() != own);
        records.push(SignedRecord::sign(record.clone(), &key)?);
        directory.insert_all(records, observations);
        let mut gossip = Gossip::new(own, &seed);
        gossip.spread(own, &directory);
        let random = Random::new(&seed, "membership");
        let state = Mutex::new(State {
            directory,
            gossip,
            watch: Watch::new(own, timeouts).having_heard(heard),
            viewer: Viewer::default(),
            returned: None,
            told_of_clocks: false,
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

    /// Tells others other addresses of this node from now on, if they are others.
    ///
    /// # Errors
    /// When the record cannot be signed.
    pub fn set_addresses(
        &self,
        quic: Vec<SocketAddr>,
        grpc: Vec<SocketAddr>,
    ) -> Result<(), RecordError> {
        let mut state = self.lock();
        if state.record.addresses != quic || state.record.grpc != grpc {
            info!(?quic, ?grpc, "this node has other addresses");
            (state.record.addresses, state.record.grpc) = (quic, grpc);
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
                "evicted: {} signed that it was silent for up to {}",
                counted(evicted.observers() as u64, "node"),
                Brief::seconds(longest)
            );
        }
        let watched = state.watch.watched().find(|(watched, ..)| watched == node);
        match watched {
            Some((_, Liveness::Suspect | Liveness::Down, since)) => {
                format!("silent for {}", Brief(now.saturating_sub(since)))
            }
            Some(_) => String::new(),
            None => match state.directory.accusation(node) {
                Some(accused) => {
                    counted(accused.observers() as u64, "node") + " signed that it is silent"
                }
                None => String::new(),
            },
        }
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

    /// Answers a peer's push.
    ///
    /// # Errors
    /// When it is of another network.
    pub async fn gossip(
        &self,
        from: NodeId,
        message: &GossipMessage,
    ) -> Result<GossipReply, Refusal> {
        self.check_network(&message.network_id)?;
        let received = self.receive(from, &message.records, &message.observations).await;
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

    fn check_network(&self, theirs: &[u8]) -> Result<(), Refusal> {
        let theirs = convert::network_id(theirs)?;
        if theirs == self.0.network {
            return Ok(());
        }
        let text = format!("this node belongs to network {}, not to {theirs}", self.0.network);
        Err(Refusal::new(Reason::WrongNetwork, text).about("network", self.0.network))
    }

    /// Takes in what a peer sent, and does what follows. Signatures are checked beside the runtime and
    /// without the directory: a message of a stranger may be full of them.
    async fn receive(
        &self,
        from: NodeId,
        records: &[door::SignedRecord],
        observations: &[door::SignedObservation],
    ) -> Received {
        let sifted = {
            let state = self.lock();
            Sifted::new(
                &state.directory,
                self.trusted_now(&state),
                convert::unverified(records),
                convert::unverified_observations(observations),
            )
        };
        let verified = if sifted.is_empty() {
            sifted.verify()
        } else {
            match beside(move || sifted.verify()).await {
                Ok(verified) => verified,
                Err(error) => {
                    warn!(%error, "the task that checks signatures failed");
                    return Received::default();
                }
            }
        };
        let received = {
            let mut state = self.lock();
            let State { gossip, directory, .. } = &mut *state;
            let received = gossip.take_in(directory, from, verified);
            state.changed(&received);
            if received.early > 0 && !std::mem::replace(&mut state.told_of_clocks, true) {
                warn!(
                    peer = %from.short(),
                    "what nodes sign is dated more than an hour from now and not taken in: their clocks are \
                     wrong, or this node's"
                );
            }
            received
        };
        self.after(from, &received);
        received
    }

    /// The time, unless this node's own record is of a later one: then the clock was set back, or the machine
    /// has started in 1970, and what others signed is not measured by it.
    fn trusted_now(&self, state: &State) -> Option<u64> {
        let now = (self.0.clock)();
        (now >= state.record.seq).then_some(now)
    }

    /// Forgets observations of a time that this node believed in while its clock was ahead. Nobody else takes
    /// them in, so that its directory would differ from all others, and its own would keep it from signing
    /// anew. By a clock that is not trusted those only that it signed in this run: that clock was set back
    /// since, whichever of the two times is right.
    fn forget_early(&self) {
        let now = (self.0.clock)();
        let mut state = self.lock();
        let trusted = self.trusted_now(&state).is_some();
        let State { directory, watch, .. } = &mut *state;
        let forgotten = directory.forget_observations(|observation| {
            observation.is_early(now) && (trusted || watch.has_signed(observation))
        });
        if forgotten > 0 {
            info!(
                nodes = forgotten,
                "the clock was set back: what was signed by it before is void"
            );
            state.revision += 1;
            state.viewer.outdated();
        }
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AddressBook for Membership {
    fn addresses(&self, node: &NodeId) -> Vec<SocketAddr> {
        let known = self.lock().directory.get(node).map(|found| found.record().addresses.clone());
        known.unwrap_or_default()
    }

    /// An answer to anything is as good as one to a ping.
    fn answered(&self, node: NodeId) {
        self.heard(node);
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
