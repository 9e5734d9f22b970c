//! Who answers: each node's own opinion of those that it watches, and when it signs that one is
//! silent.
//!
//! Owns who watches whom, when to ping, and the way from alive to down. Reads no clock and sends
//! nothing: a driver calls [`Watch::tick`] every second, pings whom [`Watch::due`] names and says
//! whom it heard. The one idea: what a node has not heard itself never counts as its opinion, and
//! its opinion alone removes nobody (see [`crate::eviction`]).
//!
//! ```text
//!            10 s                5 min              4 h, if no guard is up
//! ALIVE ───────────▶ SUSPECT ───────────▶ DOWN ───────────▶ sign an observation
//!   ▲                   │                  │                 (facts of the directory from there)
//!   └────── answers ────┴──────────────────┘
//! ```

use core::{fmt, time::Duration};
use std::collections::{BTreeMap, BTreeSet};

use crate::{
    directory::{Directory, NodeRecord, NodeState, Standing},
    eviction::{AHEAD_SECONDS_MAX, OF_ZONE_MAX, Observation, TOGETHER_SECONDS},
    guard::{Guard, Settling, Sight, View},
    ids::{ID_BYTES, NodeId},
    units::Brief,
};

/// Nodes that watch one node, at most. With three needed to evict it, all but three may be down,
/// lying or asleep. Each node watches as many on average.
pub const WATCHERS: usize = 32;

/// Pings that a node sends in a second, at most. Beyond 250 watched nodes each is pinged less
/// often than [`Timeouts::ping_every`].
const PINGS_PER_SECOND: u32 = 50;

/// Nodes in one answer of [`Watch::due`], at most: after a pause not all are pinged at once.
const PINGS_MAX: usize = 64;

/// A node that is down is pinged so many times less often: it is likely to stay down.
const DOWN_PING_FACTOR: u32 = 12;

/// An observation is signed anew after so many seconds if the eviction does not hold yet: half of
/// the time within which observations count together.
const RENEW_SECONDS: u64 = TOGETHER_SECONDS / 2;

// What is dated ahead still counts together with what is said now, and renewed in time.
const _: () = assert!(AHEAD_SECONDS_MAX + RENEW_SECONDS < TOGETHER_SECONDS);

/// Observations that a node signs in one tick, at most: as many as it watches nodes on average. Whoever
/// makes up thousands of nodes does not make all others sign thousands of words at once.
const OBSERVE_MAX: usize = WATCHERS;

/// Between two answers of a node to observations of itself. Two liars can make it sign a record
/// and everybody pass it on; not more often than this.
const ANSWER_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Observers of this node that make it answer. One alone is harmless and need not cost a record.
const ANSWER_OBSERVERS: usize = 2;

/// The place of an observer among the watchers of a subject: the largest go first. Fixed by the two
/// ids alone, and it changes for few subjects when a node comes or goes.
pub(crate) fn rank(subject: &NodeId, observer: &NodeId) -> ([u8; ID_BYTES], NodeId) {
    let hash = blake3::keyed_hash(subject.as_bytes(), observer.as_bytes());
    (*hash.as_bytes(), *observer)
}

/// The nodes of the ring that watch a node, the first first.
pub fn watchers(members: impl IntoIterator<Item = NodeId>, subject: &NodeId) -> Vec<NodeId> {
    let others = members.into_iter().filter(|member| member != subject);
    let mut ranked: Vec<_> = others.map(|member| rank(subject, &member)).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.truncate(WATCHERS);
    ranked.into_iter().map(|(_, member)| member).collect()
}

/// The subjects that `own` watches among these members of the ring, or would if it were one.
/// About 190 hashes per subject in a large network, 0.2 s for 10,000.
pub fn watched_by(
    own: &NodeId,
    members: &[NodeId],
    subjects: impl IntoIterator<Item = NodeId>,
) -> Vec<NodeId> {
    let watches = |subject: &NodeId| {
        let ours = rank(subject, own);
        let before = members
            .iter()
            .filter(|member| *member != own && *member != subject)
            .filter(|member| rank(subject, member) > ours);
        before.take(WATCHERS).count() < WATCHERS
    };
    subjects.into_iter().filter(|subject| subject != own && watches(subject)).collect()
}

/// After how long a silence what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Between two pings of a node: 5 s. A hundred bytes each way; with 32 watched nodes some
    /// 13 messages a second.
    pub ping_every: Duration,
    /// Silent for so long, a node is suspect: 10 s, two pings. Others are asked first.
    pub suspect_after: Duration,
    /// Silent for so long, a node is down: 5 min, the time in which most machines restart. Chunks
    /// that are thin without it are repaired.
    pub down_after: Duration,
    /// Silent for so long, its watchers sign an observation: 4 h, longer than most outages of power
    /// and lines. Evicting it moves all it holds, so that half a day more of waiting is cheap.
    pub dead_after: Duration,
    /// Nodes that went silent within this time went together: 1 h. See [`crate::guard`].
    pub together: Duration,
    /// A freeze lasts no longer than this: 24 h, so that a real loss is repaired in the end.
    pub freeze_max: Duration,
}

impl Timeouts {
    /// How long it takes until all nodes that come back together are heard: [`Self::down_after`],
    /// and two pings of those that were down, which are pinged less often.
    pub fn settle_for(&self) -> Duration {
        self.down_after.max(2 * DOWN_PING_FACTOR * self.ping_every)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            ping_every: Duration::from_secs(5),
            suspect_after: Duration::from_secs(10),
            down_after: Duration::from_secs(5 * 60),
            dead_after: Duration::from_secs(4 * 60 * 60),
            together: Duration::from_secs(60 * 60),
            freeze_max: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// Whether a node answers, as far as this node knows. That it is gone for good is not a matter of
/// opinion: see [`Directory::standing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    /// It answers, or there was no time yet to know otherwise.
    Alive,
    /// It has missed a few pings.
    Suspect,
    /// It has been silent for minutes.
    Down,
}

/// Why an opinion changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No answer for so long.
    Silent(Duration),
    /// An answer after so long.
    Answered(Duration),
}

/// A change of opinion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Of which node.
    pub node: NodeId,
    /// From.
    pub from: Liveness,
    /// To.
    pub to: Liveness,
    /// Why.
    pub reason: Reason,
}

/// What follows from a look at the clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ticked {
    /// Opinions that changed.
    pub changes: Vec<Change>,
    /// To be signed, taken into the directory and spread.
    pub observe: Vec<Observation>,
    /// Others say that this node is silent: sign a record with a higher `seq` and spread it.
    pub answer: bool,
}

/// One node's opinion of those that it watches.
#[derive(Debug)]
pub struct Watch {
    own: NodeId,
    timeouts: Timeouts,
    watched: BTreeMap<NodeId, Watched>,
    /// Of those in the directory: whom it has heard while it watched them, in this run or an earlier one.
    heard: BTreeSet<NodeId>,
    /// The ring for which it was found out who is watched.
    ring_revision: Option<u64>,
    last_tick: Option<Duration>,
    last_answer: Option<Duration>,
    guard: Guard,
    settling: Settling,
}

#[derive(Debug)]
struct Watched {
    state: Liveness,
    /// Whether it has answered since we watch it.
    heard: bool,
    /// Whether it counts for the guard without that: it was there when this node started, and answered an
    /// earlier run, if there was one.
    expected: bool,
    /// When it answered last, or when we began to watch.
    answered: Duration,
    /// The same, or when a newer record of it came: it lives, whether or not we reach it.
    lived: Duration,
    /// Of the newest record seen.
    seq: u64,
    next_ping: Duration,
    /// When we last signed an observation of this record, and the date that we wrote into it.
    signed: Option<(Duration, u64)>,
}

impl Watch {
    /// The opinion of node `own`, which has just started: everybody's clock begins now.
    pub fn new(own: NodeId, timeouts: Timeouts) -> Self {
        Self {
            own,
            timeouts,
            watched: BTreeMap::new(),
            heard: BTreeSet::new(),
            ring_revision: None,
            last_tick: None,
            last_answer: None,
            guard: Guard::Free,
            settling: Settling::default(),
        }
    }

    /// The same of a node that has heard these in an earlier run: whether it is cut off is measured by them.
    /// Of none: by all that are known at the first tick.
    #[must_use]
    pub fn having_heard(mut self, heard: BTreeSet<NodeId>) -> Self {
        self.heard = heard;
        self.heard.remove(&self.own);
        self
    }

    /// Whom it has heard, for [`Self::having_heard`].
    pub const fn heard_ever(&self) -> &BTreeSet<NodeId> {
        &self.heard
    }

    /// What the guards said at the last tick.
    pub const fn guard(&self) -> &Guard {
        &self.guard
    }

    /// The watched nodes, by id: the opinion, and since when there was no answer.
    pub fn watched(&self) -> impl Iterator<Item = (NodeId, Liveness, Duration)> {
        self.watched.iter().map(|(node, watched)| (*node, watched.state, watched.answered))
    }

    /// Whether a node answers. Of nodes that we do not watch we know what others sign, see
    /// [`Directory::is_doubted`].
    pub fn state(&self, node: &NodeId, directory: &Directory) -> Liveness {
        if *node == self.own {
            return Liveness::Alive;
        }
        if let Some(watched) = self.watched.get(node) {
            return watched.state;
        }
        if directory.is_doubted(node) { Liveness::Down } else { Liveness::Alive }
    }

    /// A node answered a ping or anything else, or connected. It need not be pinged for a while.
    pub fn heard(&mut self, node: &NodeId, now: Duration) -> Option<Change> {
        let interval = self.interval();
        let watched = self.watched.get_mut(node)?;
        let silent = now.saturating_sub(watched.answered);
        let from = core::mem::replace(&mut watched.state, Liveness::Alive);
        watched.heard = true;
        self.heard.insert(*node);
        watched.next_ping = now + interval;
        watched.answered = watched.answered.max(now);
        watched.lived = watched.lived.max(now);
        (from != Liveness::Alive).then_some(Change {
            node: *node,
            from,
            to: Liveness::Alive,
            reason: Reason::Answered(silent),
        })
    }

    /// The nodes to ping now, so many at most. Calling it counts as having pinged them.
    pub fn due(&mut self, now: Duration, most: usize) -> Vec<NodeId> {
        let interval = self.interval();
        let mut due: Vec<(Duration, NodeId)> = self
            .watched
            .iter()
            .filter(|(_, watched)| watched.next_ping <= now)
            .map(|(node, watched)| (watched.next_ping, *node))
            .collect();
        due.sort_unstable();
        due.truncate(most.min(PINGS_MAX));
        for (_, node) in &due {
            if let Some(watched) = self.watched.get_mut(node) {
                let down = watched.state == Liveness::Down;
                watched.next_ping = now + if down { interval * DOWN_PING_FACTOR } else { interval };
            }
        }
        due.into_iter().map(|(_, node)| node).collect()
    }

    /// Between two pings of one node.
    fn interval(&self) -> Duration {
        let watched = u32::try_from(self.watched.len()).unwrap_or(u32::MAX);
        self.timeouts.ping_every.max(Duration::from_secs(1) * watched / PINGS_PER_SECOND)
    }

    /// Looks at the clocks. `now` is the time since start; `unix_seconds` is written into
    /// observations. To be called at least twice in [`Timeouts::suspect_after`]: of a longer pause
    /// nobody's silence counts, since we were not listening.
    pub fn tick(&mut self, now: Duration, unix_seconds: u64, directory: &Directory) -> Ticked {
        self.skip_pause(now);
        self.choose(now, directory);
        let changes = self.age(now, directory);
        let judged = Guard::judge(&self.views(directory), now, &self.timeouts);
        self.guard = self.settling.settle(judged, now, &self.timeouts);
        let may_sign = self.guard.may_sign()
            && matches!(directory.standing(&self.own), Some(Standing::Active | Standing::Leaving));
        let observe =
            if may_sign { self.observe(now, unix_seconds, directory) } else { Vec::new() };
        Ticked { changes, observe, answer: self.answer(now, directory) }
    }

    /// Nobody is silent for longer than we were listening: after a suspended machine or a stalled
    /// program all clocks go on where they stood.
    fn skip_pause(&mut self, now: Duration) {
        let pause = now.saturating_sub(self.last_tick.replace(now).unwrap_or(now));
        if pause <= self.timeouts.suspect_after {
            return;
        }
        for watched in self.watched.values_mut() {
            watched.answered = now.min(watched.answered + pause);
            watched.lived = now.min(watched.lived + pause);
        }
    }

    /// Finds out whom we watch, when the ring has changed. Also those who are evicted: when it takes
    /// more witnesses than before, because newcomers joined, they are still there. Of those who leave whom
    /// we have heard: others may never have been there, and being off the ring they watch nobody in return.
    fn choose(&mut self, now: Duration, directory: &Directory) {
        let revision = Some(directory.ring_revision());
        let before = core::mem::replace(&mut self.ring_revision, revision);
        if before == revision {
            return;
        }
        self.heard.retain(|node| directory.get(node).is_some());
        let first = before.is_none();
        let members: Vec<NodeId> = directory.members().map(|record| record.node).collect();
        let subjects = directory
            .iter()
            .map(|signed| signed.record())
            .filter(|record| match record.state {
                NodeState::Active => true,
                NodeState::Leaving => self.heard.contains(&record.node),
                NodeState::Left => false,
            })
            .filter(|record| record.capacity_bytes > 0);
        let seqs: BTreeMap<NodeId, u64> =
            subjects.map(|record| (record.node, record.seq)).collect();
        let mut before = core::mem::take(&mut self.watched);
        for node in watched_by(&self.own, &members, seqs.keys().copied()) {
            let watched = before.remove(&node).unwrap_or_else(|| Watched {
                state: Liveness::Alive,
                heard: false,
                expected: (first && self.heard.is_empty()) || self.heard.contains(&node),
                answered: now,
                lived: now,
                seq: seqs.get(&node).copied().unwrap_or(0),
                next_ping: now + self.timeouts.ping_every.mul_f64(fraction(&node)),
                signed: None,
            });
            self.watched.insert(node, watched);
        }
    }

    /// Lets silence take its course.
    fn age(&mut self, now: Duration, directory: &Directory) -> Vec<Change> {
        let interval = self.interval();
        let suspect_after = self.timeouts.suspect_after.max(2 * interval);
        let down_after = self.timeouts.down_after.max(suspect_after);
        let mut changes = Vec::new();
        self.watched.retain(|node, watched| {
            let Some(record) = directory.get(node).map(|signed| signed.record()) else {
                return false;
            };
            if record.seq > watched.seq {
                watched.seq = record.seq;
                watched.lived = now;
                watched.signed = None;
            }
            let silent = now.saturating_sub(watched.answered);
            let to = match silent {
                silent if silent >= down_after => Liveness::Down,
                silent if silent >= suspect_after => Liveness::Suspect,
                _ => Liveness::Alive,
            };
            if to > watched.state {
                let from = core::mem::replace(&mut watched.state, to);
                changes.push(Change { node: *node, from, to, reason: Reason::Silent(silent) });
            }
            record.state != NodeState::Left
        });
        changes
    }

    /// What we see of the ring. Keys cost nothing: records of nodes that came while this node ran, and that
    /// it never heard, may be made up, and a few of them, with a capacity to match, would outweigh the
    /// network. They are watched and signed like others, but who was never there cannot be missing.
    fn views<'a>(&self, directory: &'a Directory) -> Vec<View<'a>> {
        let member = |node: &NodeId| -> Option<&'a NodeRecord> {
            let on_ring = directory.standing(node) == Some(Standing::Active);
            directory.get(node).filter(|_| on_ring).map(|signed| signed.record())
        };
        let counts = |(_, watched): &(&NodeId, &Watched)| watched.heard || watched.expected;
        let seen = self.watched.iter().filter(counts).map(|(node, watched)| {
            let sight = match watched.state {
                Liveness::Down => Sight::Silent { since: watched.answered },
                _ if watched.heard => Sight::Present,
                _ => Sight::Unheard,
            };
            (node, sight)
        });
        let own = (&self.own, Sight::Present);
        seen.chain([own])
            .filter_map(|(node, sight)| member(node).map(|record| (record, sight)))
            .map(|(record, sight)| View {
                node: record.node,
                zone: &record.zone,
                capacity_bytes: record.capacity_bytes,
                sight,
            })
            .collect()
    }

    /// Observations to sign. Each watcher signs once, whether or not there are enough already;
    /// again only while there are not.
    fn observe(
        &mut self,
        now: Duration,
        unix_seconds: u64,
        directory: &Directory,
    ) -> Vec<Observation> {
        let renew = Duration::from_secs(RENEW_SECONDS);
        let mut observe = Vec::new();
        for (node, watched) in &mut self.watched {
            if observe.len() == OBSERVE_MAX {
                break;
            }
            let silent = now.saturating_sub(watched.lived);
            if silent < self.timeouts.dead_after || watched.state != Liveness::Down {
                continue;
            }
            let accusation = directory.accusation(node);
            let said = accusation.and_then(|accusation| accusation.by(&self.own));
            // It was forgotten, and not for want of a place: the clock that dated it has been set back since.
            let lost = said.is_none()
                && accusation.is_none_or(|accusation| accusation.observers() < OF_ZONE_MAX);
            let waits = watched.signed.is_some_and(|(at, date)| {
                let ahead = date > unix_seconds.saturating_add(AHEAD_SECONDS_MAX);
                now.saturating_sub(at) < renew && !ahead && !lost
            });
            if waits {
                continue;
            }
            let renewed = |at: u64| at.saturating_add(RENEW_SECONDS) <= unix_seconds;
            if said.is_some_and(|said| {
                directory.evicted(node).is_some() || !renewed(said.observation().observed_at)
            }) {
                continue;
            }
            watched.signed = Some((now, unix_seconds));
            observe.push(Observation {
                network: directory.network(),
                observer: self.own,
                subject: *node,
                subject_seq: watched.seq,
                silent_seconds: silent.as_secs(),
                observed_at: unix_seconds,
            });
        }
        observe
    }

    /// Whether this node signed this very observation since it started.
    pub fn has_signed(&self, observation: &Observation) -> bool {
        let watched = self.watched.get(&observation.subject);
        let dated = watched.and_then(|watched| watched.signed).map(|(_, date)| date);
        observation.observer == self.own && dated == Some(observation.observed_at)
    }

    /// Whether to answer observations of ourselves now.
    fn answer(&mut self, now: Duration, directory: &Directory) -> bool {
        let accused = directory
            .accusation(&self.own)
            .is_some_and(|accusation| accusation.observers() >= ANSWER_OBSERVERS);
        let waits = self.last_answer.is_some_and(|last| now.saturating_sub(last) < ANSWER_INTERVAL);
        if !accused || waits {
            return false;
        }
        self.last_answer = Some(now);
        true
    }
}

/// A number from 0 to 1 that depends on the node: the pings of a node that watches many are spread
/// over the interval, and so are those that reach one node.
fn fraction(node: &NodeId) -> f64 {
    f64::from(node.as_bytes()[0]) / 256.0
}

impl fmt::Display for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(silent) => write!(f, "no answer for {}", Brief(*silent)),
            Self::Answered(silent) => write!(f, "it answers again after {}", Brief(*silent)),
        }
    }
}

#[cfg(test)]
mod tests;
