//! The copse grows back: this node's part in keeping every chunk at full strength.
//!
//! Owns the assembly of the parts below and their rounds. Decides nothing about shards: that is
//! [`copse_core::repair`]. The one idea: every arc has one steward, the first node of its walk that
//! answers; it knows who says to hold what, plans, and does what was planned. Who was steward before
//! does not matter, and two at once do no harm.
//!
//! ```text
//! nodes ─ what changed? ─▶ claims ─▶ steward ─ plan ─▶ jobs ─▶ rebuild · copy · drop ─▶ nodes
//!                            │                          │
//!                            └──────── ledger ──────────┘      scrub, audit: what is no longer so
//! ```
//!
//! | file | what |
//! |---|---|
//! | `shared` | what all of these have in common |
//! | `facts` | how nodes stand, at one moment |
//! | `claims`, `asking` | who says to hold what: the mirror; asking all in bounded time |
//! | `shapes` | what a chunk looks like when nodes say different things of it |
//! | `gone` | whose claims are forgotten |
//! | `around` | asking what nodes hold of some chunks now |
//! | `unfinished`, `marks` | which chunks only seem to lack shards, or were never completed; the own marks at such |
//! | `steward`, `arcs` | which arcs changed; planning them; their rows in the ledger |
//! | `jobs`, `worker` | the queue and its rows in the ledger; doing what is in it |
//! | `again` | which arcs are looked at once more though nothing changed |
//! | `exchange` | shards to and from others, verified and proved |
//! | `answers`, `pins` | what others may ask, and when a shard is given away |
//! | `audit`, `trust`, `proofs` | checking claims; who was caught, and who proves nothing |
//! | `health` | what this node cannot do, as it tells others |
//! | `scrub` | reading the own disk |
//! | `pace` | how fast |
//! | `restart` | a task that failed begins anew |
//! | `phases` | marks for tests |
//! | `canary` | bugs on purpose; not in a release |
//! | `report` | what is told of it |

use std::{
    io,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use copse_core::{
    identity::NodeKey,
    ids::{NetworkId, NodeId, ShardId},
    repair::Policy,
};
use copse_proto::{door, peer, status::Refusal};
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

mod again;
mod answers;
mod arcs;
mod around;
mod asking;
mod audit;
#[cfg(feature = "canary")]
mod canary;
mod claims;
mod exchange;
mod facts;
mod gone;
mod health;
mod jobs;
mod marks;
mod pace;
mod phases;
mod pins;
mod proofs;
mod report;
mod restart;
mod scrub;
mod shapes;
mod shared;
mod steward;
#[cfg(test)]
mod testing;
mod trust;
mod unfinished;
mod worker;

#[cfg(feature = "canary")]
pub use canary::Canary;
pub use facts::{Looks, View, Views};
pub use pace::{Pace, Rates};
pub use phases::{PAUSE_VARIABLE, Phase, Phases};
pub(crate) use report::Events;

use self::{
    answers::Answers, audit::Audit, claims::Claims, exchange::Exchange, facts::Opinions,
    health::Health, jobs::Jobs, marks::Marks, proofs::Proofs, report::Counters,
    restart::again_after_a_fault, scrub::Scrub, shared::Shared, steward::Steward, trust::Trust,
    worker::Worker,
};
use crate::{
    clock::Clock, intake::Intake, peer::pool::PeerPool, store::ShardStore, unsettled::Unsettled,
};

/// How repair behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// When missing shards are made again.
    pub policy: Policy,
    /// Between two rounds of asking what changed.
    pub round_every: Duration,
    /// Chunks worked on at one time.
    pub parallel: usize,
    /// How fast.
    pub rates: Rates,
    /// In what time the own disk is read once.
    pub scrub_period: Duration,
    /// How long a shard, the own disk or another node must give nothing of what it holds before that
    /// counts as lost.
    pub lost_after: Duration,
}

/// What a [`Repair`] is made of.
pub struct Parts {
    /// The network, named in receipts.
    pub network: NetworkId,
    /// The node's key.
    pub key: NodeKey,
    /// The time of day.
    pub clock: Clock,
    /// Where shards are kept.
    pub store: Arc<dyn ShardStore>,
    /// The way to other nodes.
    pub peers: PeerPool,
    /// How the network looks.
    pub views: Views,
    /// Decisions are told there.
    pub(crate) events: Events,
    /// How fast.
    pub pace: Pace,
    /// Closed when the node leaves.
    pub intake: Intake,
    /// Chunks of which nobody has said yet that they are safe.
    pub unsettled: Unsettled,
    /// How it behaves.
    pub settings: Settings,
    /// Where to stop, in tests.
    pub phases: Phases,
    /// Decides the random choices.
    pub seed: [u8; 32],
}

/// Repair on this node. Clones are the same one.
#[derive(Clone)]
pub struct Repair(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    steward: Arc<Steward>,
    marks: Marks,
    audit: Audit,
    answers: Arc<Answers>,
    worker: Arc<Worker>,
    scrub: Arc<Scrub>,
    pace: Pace,
    hurry: Notify,
    /// When how many jobs were done: for the rate.
    since: Mutex<Option<(Instant, u64)>>,
}

impl Repair {
    /// Loads what was known before this start. Blocks on the ledger.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn load(parts: Parts) -> io::Result<Self> {
        let Parts {
            network,
            key,
            clock,
            store,
            peers,
            views,
            events,
            pace,
            intake,
            unsettled,
            settings,
            phases,
            seed,
        } = parts;
        let own = key.id();
        store.doubts().set_patience(settings.lost_after);
        let (trust, proofs) = (Trust::default(), Proofs::with(settings.lost_after));
        let opinions = Opinions::new(trust.clone(), proofs.clone());
        let believed = (trust.clone(), proofs.clone());
        let exchange = Exchange::new(network, peers, pace.clone(), believed, &seed);
        let shared = Arc::new(Shared {
            own,
            claims: Claims::load(own, Arc::clone(&store), exchange.clone(), opinions.clone())?,
            jobs: Jobs::load(store.ledger(), clock() * 1000)?,
            clock,
            settings,
            phases,
            views,
            unsettled,
            exchange,
            trust,
            proofs,
            opinions,
            health: Health::new(Arc::clone(&store)),
            events,
            counters: Counters::default(),
            ledger: store.ledger(),
            store,
        });
        let answers = Arc::new(Answers::new(Arc::clone(&shared)));
        Ok(Self(Arc::new(Inner {
            steward: Arc::new(Steward::load(Arc::clone(&shared))?),
            marks: Marks(Arc::clone(&shared)),
            audit: Audit::new(Arc::clone(&shared), &seed),
            worker: Arc::new(Worker::new(Arc::clone(&shared), Arc::clone(&answers), intake)),
            scrub: Arc::new(Scrub::new(Arc::clone(&shared))),
            answers,
            shared,
            pace,
            hurry: Notify::new(),
            since: Mutex::default(),
        })))
    }

    /// Works until `stop` is cancelled.
    pub async fn run(&self, stop: CancellationToken) {
        let inner = &self.0;
        let mut tasks = JoinSet::new();
        for _ in 0..inner.shared.settings.parallel {
            let (worker, until) = (Arc::clone(&inner.worker), stop.clone());
            tasks.spawn(again_after_a_fault("a worker", stop.clone(), move || {
                Arc::clone(&worker).run(until.clone())
            }));
        }
        let (scrub, until) = (Arc::clone(&inner.scrub), stop.clone());
        tasks.spawn(again_after_a_fault("the scrub", stop.clone(), move || {
            Arc::clone(&scrub).run(until.clone())
        }));
        let (rounds, audits) = (self.clone(), self.clone());
        tasks.spawn(again_after_a_fault("the rounds", stop.clone(), move || {
            let this = rounds.clone();
            async move { this.rounds().await }
        }));
        tasks.spawn(again_after_a_fault("the audits", stop.clone(), move || {
            let this = audits.clone();
            async move { this.audits().await }
        }));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task of repair failed");
            }
        }
    }

    async fn rounds(&self) {
        let inner = &self.0;
        loop {
            inner.steward.round().await;
            inner.marks.round(&inner.shared.views.now()).await;
            let _ = tokio::time::timeout(inner.shared.settings.round_every, inner.hurry.notified())
                .await;
        }
    }

    /// Beside the rounds: who is slow to prove anything keeps nobody from planning.
    async fn audits(&self) {
        let inner = &self.0;
        #[cfg(feature = "canary")]
        if inner.shared.phases.unaudited {
            return;
        }
        loop {
            tokio::time::sleep(inner.shared.settings.round_every).await;
            inner.audit.round(&inner.shared.views.now()).await;
        }
    }

    /// Looks around now, not at the next round: something changed.
    pub fn hurry(&self) {
        self.0.hurry.notify_one();
    }

    /// Reads the own disk once, at once.
    pub fn scrub_now(&self) {
        self.0.scrub.ask();
    }

    /// How fast it may send.
    pub fn pace(&self) -> &Pace {
        &self.0.pace
    }

    /// Where it stops, in tests.
    pub fn phases(&self) -> Phases {
        self.0.shared.phases
    }

    /// Answers another node's question about arcs.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub async fn arc_changes(
        &self,
        asked: &peer::ArcChanges,
    ) -> Result<(peer::ArcChangesReply, Bytes), Refusal> {
        self.0.answers.arc_changes(asked).await
    }

    /// Lists shards for another node.
    ///
    /// # Errors
    /// When too much is asked, or the index cannot be read.
    pub async fn list_arcs(
        &self,
        asked: &peer::ListArcs,
    ) -> Result<(peer::ListArcsReply, Bytes), Refusal> {
        self.0.answers.list_arcs(asked).await
    }

    /// Gives a shard to another node, if it should be there and not here.
    ///
    /// # Errors
    /// When the shard stays here, with the reason.
    pub async fn hand_over(&self, asked: &peer::HandOver) -> Result<peer::HandOverReply, Refusal> {
        let sent_bytes = self.0.answers.hand_over(asked).await?;
        Ok(peer::HandOverReply { sent_bytes })
    }

    /// Drops a shard that another node proves to hold, if it should be there and not here.
    ///
    /// # Errors
    /// When the shard stays here, with the reason.
    pub async fn release(&self, asked: &peer::Release) -> Result<peer::ReleaseReply, Refusal> {
        self.0.answers.release(asked).await.map(|()| peer::ReleaseReply {})
    }

    /// Another node wants to drop its own shard, since this one has it: it stays for a while.
    ///
    /// # Errors
    /// When it is being given away itself: to be tried later.
    pub fn count_on(&self, id: ShardId) -> Result<(), Refusal> {
        self.0.answers.pins.pin(id)
    }

    /// Why a node is not trusted.
    pub fn untrusted(&self) -> std::collections::BTreeMap<NodeId, String> {
        let nodes = self.0.shared.views.now().standings.len();
        let silent = self.0.shared.opinions.unreadable(nodes).into_iter();
        let silent = silent.map(|(node, why)| (node, format!("it {why}")));
        let caught = self.0.shared.trust.untrusted().into_iter();
        // Who was caught was caught, whatever else it does.
        silent.chain(caught.map(|one| (one.node, format!("it {}", one.fault)))).collect()
    }

    /// What it says of itself.
    pub async fn told(&self) -> (door::RepairInfo, door::ScrubInfo) {
        let inner = &self.0;
        let (view, tally) = (inner.shared.views.now(), inner.steward.tally());
        let mut info = door::RepairInfo {
            guard: inner.shared.views.guard(),
            cut_off: view.cut_off,
            chunks: report::margins(&tally.by_margin),
            chunks_whole: tally.whole,
            chunks_displaced: tally.displaced,
            planned: inner.steward.has_planned(&view),
            chunks_waiting: tally.waiting,
            chunks_lost: tally.lost,
            chunks_unfinished: tally.unfinished,
            survives_nodes: tally.survives.map(|(nodes, _)| nodes),
            survives_zones: tally.survives.map(|(_, zones)| zones),
            running: inner.worker.running(),
            counters: Some(inner.shared.counters.told()),
            events: inner.shared.events.list(),
            leaving_shards: match view.own_state {
                copse_core::directory::NodeState::Active => 0,
                _ => inner.shared.store.stats().await.shards,
            },
            ..door::RepairInfo::default()
        };
        inner.shared.jobs.tell(&mut info, inner.shared.now_ms());
        info.eta_seconds = self.eta();
        (info, inner.scrub.told())
    }

    /// How long the queue takes at the rate since it began to be worked on.
    fn eta(&self) -> Option<u64> {
        let (left, done) =
            (self.0.shared.jobs.len() as u64, self.0.shared.counters.jobs_done.load(Relaxed));
        let mut since = self.0.since.lock().unwrap_or_else(PoisonError::into_inner);
        if left == 0 {
            *since = None;
            return None;
        }
        let (start, before) = *since.get_or_insert((Instant::now(), done));
        let made = done.saturating_sub(before);
        if made == 0 {
            return None;
        }
        let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Some(millis.saturating_mul(left) / made / 1000)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use copse_core::ids::ShardIndex;

    use super::{
        testing::{NETWORK, Seen, member, peers, replica, settings},
        *,
    };
    use crate::store::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn a_repair_that_panics_is_tried_again_and_the_worker_goes_on() {
        // Alone, a node holds both replicas of a chunk; one is missing.
        let store = Arc::new(MemoryStore::new(1 << 20));
        store.put(replica(7, 0)).await.expect("a put");
        let (key, begin) = (NodeKey::from_seed([5; 32]), Instant::now());
        let panics: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(2)));
        let parts = Parts {
            network: NETWORK,
            peers: peers(key.id()),
            clock: Arc::new(move || 1_700_000_000 + begin.elapsed().as_secs()),
            store: Arc::clone(&store) as Arc<dyn ShardStore>,
            views: Seen::new(vec![member(key.id(), "")]),
            key,
            events: Events::default(),
            pace: Pace::new(Rates::FREE),
            intake: Intake::default(),
            unsettled: Unsettled::load(Arc::clone(&store) as Arc<dyn ShardStore>)
                .expect("a ledger"),
            settings: settings(),
            phases: Phases { panics: Some((Phase::Planned, panics)), ..Phases::default() },
            seed: [0; 32],
        };
        let (repair, stop) = (Repair::load(parts).expect("a ledger"), CancellationToken::new());
        let running = tokio::spawn({
            let (repair, stop) = (repair.clone(), stop.clone());
            async move { repair.run(stop).await }
        });
        let chunk = replica(7, 0).id().chunk;
        while store.held(chunk).await.expect("a store").len() < 2 {
            assert!(begin.elapsed() < Duration::from_secs(600), "{:?}", repair.told().await.0);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let both = [ShardIndex(0), ShardIndex(1)];
        assert_eq!(store.held(chunk).await.expect("a store"), both);
        let told = repair.told().await.0;
        let failed = told.counters.expect("counters").jobs_failed;
        assert_eq!((panics.load(Relaxed), failed, told.running), (0, 2, 0));
        stop.cancel();
        running.await.expect("it ends");
    }
}
