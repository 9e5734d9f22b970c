//! The timers of a membership: what is sent to whom, and when.
//!
//! Owns joining, gossip rounds, comparisons, pings and the file of remembered peers. Decides nothing:
//! whom to ping and what to tell whom is the core's. Neither a request nor the disk is ever waited for by
//! the loop, so that one slow peer delays nobody, and a node whose disk hangs still sees who answers.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use copse_core::{
    directory::{NodeState, SignedRecord},
    eviction::SignedObservation,
    gossip::{Bundle, RECONCILE_INTERVAL, ROUND_INTERVAL},
    ids::NodeId,
    liveness::Ticked,
    units::Brief,
};
use copse_proto::{
    convert,
    peer::{Gossip as GossipMessage, Ping, Reconcile},
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    task::JoinSet,
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Contact, Membership, State, memory, told};
use crate::{
    beside::beside,
    peer::{
        Op, Outcome, PeerError,
        pool::{AddressBook as _, PeerPool},
        server::QUEUE_TIME_MAX,
    },
};

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

/// Pushes under way at once; what does not fit is left for the next round.
const REQUESTS_MAX: usize = 16;

/// Comparisons under way at once, beside the pushes: one that goes on for long must not stand in the way of
/// news.
const COMPARING_MAX: usize = 2;

/// How long one exchange with a peer may take, dialling included: half a megabit a second brings the longest
/// message in one second.
const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a comparison with one peer goes on, if it always has more: 20,000 nodes are learned in that time
/// over a slow line, and from another peer the next time.
const COMPARE_TIME_MAX: Duration = Duration::from_secs(60);

/// Pings under way at once; who does not fit is pinged at the next tick.
const PINGS_MAX: usize = 256;

/// How long an answer to a ping is waited for. Longer than a dial with its retries takes.
const PING_TIME_MAX: Duration = Duration::from_secs(8);

// A refusal is an answer, too, and must come in time to be one.
const _: () = assert!(QUEUE_TIME_MAX.as_millis() < PING_TIME_MAX.as_millis());

impl Membership {
    /// Joins, then spreads and compares until `stop` is cancelled.
    pub async fn run(&self, pool: PeerPool, stop: CancellationToken) {
        let mut remembered = Stored::default();
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                self.remember(&pool, remembered).await;
                return;
            }
            () = self.join(&pool) => {}
        }
        let mut rounds = every(ROUND_INTERVAL);
        let mut comparisons = every(RECONCILE_INTERVAL);
        let mut remember = every(REMEMBER_INTERVAL);
        let mut ticks = every(self.tick_interval());
        let mut requests = JoinSet::new();
        let mut comparing = JoinSet::new();
        let mut pings = JoinSet::new();
        // One at most: two would write into one file.
        let mut remembering = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = rounds.tick() => self.push_round(&pool, &mut requests),
                _ = comparisons.tick() => {
                    self.forget_early();
                    if comparing.len() < COMPARING_MAX {
                        let (this, pool) = (self.clone(), pool.clone());
                        comparing.spawn(async move { this.compare_with_someone(&pool).await });
                    }
                }
                _ = remember.tick() => {
                    if remembering.is_empty() {
                        let (this, pool) = (self.clone(), pool.clone());
                        remembering.spawn(async move { this.remember(&pool, remembered).await });
                    }
                }
                _ = ticks.tick() => self.tick(&pool, &mut pings),
                Some(_) = requests.join_next() => {}
                Some(_) = comparing.join_next() => {}
                Some(_) = pings.join_next() => {}
                Some(stored) = remembering.join_next() => remembered = stored.unwrap_or(remembered),
            }
        }
        // Those under way are dropped.
        requests.abort_all();
        comparing.abort_all();
        pings.abort_all();
        if let Some(stored) = remembering.join_next().await {
            remembered = stored.unwrap_or(remembered);
        }
        self.remember(&pool, remembered).await;
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
                            "node {} has been silent for {}: signed",
                            subject.short(),
                            Brief::seconds(signed.observation().silent_seconds)
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
            (changes, state.watch.due(now, PINGS_MAX.saturating_sub(pings.len())))
        };
        changes.iter().for_each(|change| self.tell(change));
        for node in due {
            let pool = pool.clone();
            pings.spawn(async move {
                let ping = pool.request(node, Op::Ping(Ping {}), Bytes::new());
                // Whoever answers is heard by the pool's book.
                match tokio::time::timeout(PING_TIME_MAX, ping).await {
                    Ok(Ok(_) | Err(PeerError::Refused { .. })) => {}
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

    /// Exchanges with one peer what either does not know, until nothing new comes from it, or it takes too
    /// long.
    pub(super) async fn compare(&self, pool: &PeerPool, peer: &Contact) -> Result<(), PeerError> {
        let started = Instant::now();
        for _ in 0..COMPARISONS_MAX {
            let digests = convert::digests(self.lock().directory.digests());
            let network_id = self.0.network.as_bytes().to_vec();
            let op = Op::Reconcile(Reconcile { network_id, digests });
            let Outcome::Reconcile(reply) = exchange(pool, peer, op).await? else {
                return Err(PeerError::BadReply { node: peer.node });
            };
            let received = self.receive(peer.node, &reply.records, &reply.observations).await;
            let done = {
                let mut state = self.lock();
                let State { gossip, directory, .. } = &mut *state;
                let records = convert::unverified(&reply.records);
                let observations = convert::unverified_observations(&reply.observations);
                let shown = records.chain(observations).map(|(bytes, _)| bytes);
                gossip.compared(directory, &reply.buckets, shown, received)
            };
            if !done.push.is_empty() {
                self.push(pool, peer, &done.push).await?;
            }
            if !done.again || started.elapsed() >= COMPARE_TIME_MAX {
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
        let Outcome::Gossip(reply) = exchange(pool, peer, op).await? else {
            return Err(PeerError::BadReply { node: peer.node });
        };
        self.receive(peer.node, &reply.records, &reply.observations).await;
        Ok(())
    }

    /// Stores what is known, if it changed since it was last stored; how far that is now.
    async fn remember(&self, pool: &PeerPool, stored: Stored) -> Stored {
        let Some(memory) = self.0.memory.clone() else { return stored };
        let (now, records, heard, observations) = {
            let state = self.lock();
            let heard = state.watch.heard_ever();
            let now = Stored { revision: state.revision, heard: heard.len() };
            if now == stored {
                return stored;
            }
            (
                now,
                state.directory.iter().cloned().collect::<Vec<_>>(),
                heard.clone(),
                state.directory.observations().cloned().collect::<Vec<_>>(),
            )
        };
        let network = self.0.network;
        // Ourselves, then those that answered: they are likely to answer again. Of too many, those that this
        // node watched.
        let own = self.0.own;
        let met: BTreeSet<NodeId> = pool
            .statuses()
            .into_iter()
            .filter(|status| status.last_heard.is_some())
            .map(|status| status.node)
            .collect();
        let write = move || {
            let of = |wanted: &dyn Fn(&NodeId) -> bool| -> Vec<&SignedRecord> {
                records.iter().filter(|record| wanted(&record.node())).collect()
            };
            let mut first = of(&|node| *node == own);
            first.extend(of(&|node| heard.contains(node)));
            first.extend(of(&|node| met.contains(node) && !heard.contains(node)));
            let rest = of(&|node| *node != own && !met.contains(node) && !heard.contains(node));
            memory.store(&memory::encode(network, &first, &rest, &observations))
        };
        match beside(write).await {
            Ok(Ok(())) => return now,
            Ok(Err(error)) => warn!(%error, "the known peers could not be stored"),
            Err(error) => warn!(%error, "the task that stores the known peers failed"),
        }
        stored
    }
}

/// What was stored: as of which revision of the directory, and how many of those that were heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Stored {
    revision: u64,
    heard: usize,
}

/// One request about records, and its answer.
async fn exchange(pool: &PeerPool, peer: &Contact, op: Op) -> Result<Outcome, PeerError> {
    let answer = pool.request_at(peer.node, &peer.addresses, op, Bytes::new());
    match tokio::time::timeout(EXCHANGE_TIME_MAX, answer).await {
        Ok(answer) => Ok(answer?.outcome),
        Err(_) => Err(PeerError::TimedOut { node: peer.node, waited: EXCHANGE_TIME_MAX }),
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    // After a pause, one tick and not all that were missed.
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
