//! How many observers it takes to evict a node, and of how many zones.
//!
//! Owns the quorum rule and what it says is missing. Refuses to look at signatures: only checked
//! observations come here. The one idea: the fewer others there are, the fewer are needed, and
//! never the other way round, so that the evictions of a directory have one answer.

use std::collections::{BTreeMap, BTreeSet};

use super::Eviction;
use crate::{
    directory::{NodeRecord, NodeState},
    ids::NodeId,
};

/// Observations count together when they were made within so many seconds. Without a limit,
/// silences of different years could be put together: each observer told the truth at its time, but
/// the node was never gone. A day is long enough for watchers whose own troubles kept them from
/// signing for hours ([`crate::liveness::Timeouts::freeze_max`] begins at the same time for all).
pub const TOGETHER_SECONDS: u64 = 24 * 60 * 60;

/// Distinct observers, and zones of them, that are always enough.
const ENOUGH: usize = 3;

/// What fails together, as far as is known: a named zone, or a node alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Zone<'a> {
    Named(&'a str),
    Alone(NodeId),
}

impl<'a> Zone<'a> {
    pub(crate) fn of(record: &'a NodeRecord) -> Self {
        match record.zone.as_str() {
            "" => Self::Alone(record.node),
            zone => Self::Named(zone),
        }
    }
}

/// `[z]`: the most observers within [`TOGETHER_SECONDS`] that are of more than z zones.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Strength([usize; ENOUGH]);

impl Strength {
    /// Of observations: when each was made, and where its observer is.
    pub(super) fn of(mut known: Vec<(u64, Zone<'_>)>) -> Self {
        known.sort_unstable();
        let mut strength = Self::default();
        for (at, (first, _)) in known.iter().enumerate() {
            let end = first.saturating_add(TOGETHER_SECONDS);
            let together: Vec<&Zone<'_>> = known[at..]
                .iter()
                .take_while(|(made, _)| *made <= end)
                .map(|(_, zone)| zone)
                .collect();
            let zones = together.iter().collect::<BTreeSet<_>>().len();
            for best in strength.0.iter_mut().take(zones.min(ENOUGH)) {
                *best = together.len().max(*best);
            }
        }
        strength
    }
}

/// How many observers, of how many zones, an eviction needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quorum {
    /// Distinct observers: 2 or 3.
    pub observers: usize,
    /// Distinct zones among them: 1 to 3.
    pub zones: usize,
}

/// Why a node is not evicted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvictionError {
    /// There is no record of the node.
    #[error("node {0} is not known: nothing can be said about it")]
    Unknown(NodeId),
    /// Nobody has signed an observation of its current record.
    #[error("nobody says that node {0} is silent since it signed its current record")]
    Unobserved(NodeId),
    /// The observations are not of the subject's current record.
    #[error(
        "the observations are of record {got} of node {subject}, which has signed record {current} \
         since: they are void"
    )]
    OtherRecord {
        /// The node.
        subject: NodeId,
        /// Which record they are of.
        got: u64,
        /// Its current one.
        current: u64,
    },
    /// More nodes must say so.
    #[error(
        "{got} of the {all} observers of node {subject} agree within 24 h, {needed} are needed: \
         wait for more watchers"
    )]
    TooFewObservers {
        /// The node.
        subject: NodeId,
        /// How many agree.
        got: usize,
        /// How many have said anything at any time.
        all: usize,
        /// How many it takes.
        needed: usize,
    },
    /// Nodes of more zones must say so.
    #[error(
        "the observers of node {subject} that agree within 24 h are of {got} zones, {needed} are \
         needed: nodes that fail together do not count as witnesses of each other"
    )]
    TooFewZones {
        /// The node.
        subject: NodeId,
        /// Of how many zones they are.
        got: usize,
        /// How many it takes.
        needed: usize,
    },
}

/// The nodes that are on the ring, counted by zone: who could be a witness.
#[derive(Clone, Debug, Default)]
pub(crate) struct Electorate {
    nodes: usize,
    /// Those without a zone, each a zone of its own.
    alone: usize,
    named: BTreeMap<String, usize>,
}

impl Electorate {
    /// Whether a record is a ring member's, evictions apart.
    pub(crate) fn counts(record: &NodeRecord) -> bool {
        record.state == NodeState::Active && record.capacity_bytes > 0
    }

    pub(crate) fn add(&mut self, record: &NodeRecord) {
        self.nodes += 1;
        match record.zone.as_str() {
            "" => self.alone += 1,
            zone => *self.named.entry(zone.to_owned()).or_default() += 1,
        }
    }

    pub(crate) fn remove(&mut self, record: &NodeRecord) {
        self.nodes -= 1;
        match record.zone.as_str() {
            "" => self.alone -= 1,
            zone => {
                if let Some(left) = self.named.get_mut(zone) {
                    *left -= 1;
                    if *left == 0 {
                        self.named.remove(zone);
                    }
                }
            }
        }
    }

    /// What it takes to evict a node; `counted`: it is one of the electorate.
    ///
    /// Nodes of one zone of several never suffice: that is what a provider's outage looks like from
    /// inside, and what one person with many nodes can sign. Of the subject's own zone nobody need
    /// speak where two others can, or a zone that burnt down would stay on a ring of three for
    /// ever. One node never suffices; two do where there are no more.
    ///
    /// Fewer other nodes or zones never need more witnesses. Hence a node that is evicted can only
    /// help the next eviction to hold, and there is one smallest set of evictions that all hold,
    /// in whatever order they are looked at.
    pub(crate) fn quorum(&self, subject: &NodeRecord, counted: bool) -> Quorum {
        let own = usize::from(counted);
        let others = self.nodes - own;
        let all = self.alone + self.named.len();
        let in_own_zone = match subject.zone.as_str() {
            "" => own,
            zone => self.named.get(zone).copied().unwrap_or(0),
        };
        let outside = all - usize::from(in_own_zone > 0);
        let zones = outside + usize::from(in_own_zone > own);
        Quorum {
            observers: others.clamp(2, ENOUGH),
            zones: if zones >= 2 { outside.clamp(2, ENOUGH) } else { 1 },
        }
    }
}

impl Quorum {
    /// Whether an eviction of this strength holds.
    pub(crate) const fn is_met(&self, strength: Strength) -> bool {
        strength.0[self.zones - 1] >= self.observers
    }

    /// Whether it is at least a reason for doubt: two who agree, of two zones where the quorum needs as
    /// many. One could be a liar, and of one zone all.
    pub(crate) fn is_doubted(&self, strength: Strength) -> bool {
        strength.0[self.zones.min(2) - 1] >= 2
    }

    /// What is missing, for people.
    pub(crate) fn check(
        &self,
        eviction: &Eviction,
        strength: Strength,
    ) -> Result<(), EvictionError> {
        if self.is_met(strength) {
            return Ok(());
        }
        let subject = eviction.subject;
        if strength.0[0] < self.observers {
            return Err(EvictionError::TooFewObservers {
                subject,
                got: strength.0[0],
                all: eviction.observers(),
                needed: self.observers,
            });
        }
        let got = strength.0.iter().take_while(|observers| **observers >= self.observers).count();
        Err(EvictionError::TooFewZones { subject, got, needed: self.zones })
    }
}
