//! When not to believe one's own eyes: the guards against storms of evictions and repairs.
//!
//! Owns the judgement of what this node sees of the ring as a whole. Refuses to know how it sees
//! (see [`crate::liveness`]). The one idea: many that go silent together have a common cause, and
//! the nearest cause is our own cable. Waiting then costs little: shards that are there come back
//! by themselves.
//!
//! ```text
//! share of the weight that answers     < 50 %  cut off: sign nothing, plan no repair
//!                                      = 50 %  frozen, for as long as it lasts
//! went silent together        > 15 % of weight  frozen, for at most `freeze_max`
//!                    a whole zone of several    frozen, for at most `freeze_max`
//! ```
//!
//! Only more than half may ever evict the rest: of two halves of a network, however it is cut, at
//! most one goes on. A guard lets go some minutes after its reason is gone ([`Settling`]): those who
//! return are heard one after the other, and the last must not be taken for dead because the first
//! are back.

use core::{fmt, time::Duration};
use std::collections::BTreeMap;

use crate::{
    ids::NodeId,
    liveness::Timeouts,
    units::{Brief, counted, one_or},
};

/// Evictions are frozen when more than this share of the weight went silent together, in percent:
/// what a 10+6 code loses of its 16 shards without getting thin.
pub const FREEZE_PERCENT: u128 = 15;

/// A node counts for no more than so many of median capacity. A larger one would decide alone who
/// is cut off, and the capacity is its own word.
const WEIGHT_MAX_MEDIANS: u64 = 4;

/// A node of the ring, as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View<'a> {
    /// The node.
    pub node: NodeId,
    /// Its zone; empty: one of its own.
    pub zone: &'a str,
    /// What it offers.
    pub capacity_bytes: u64,
    /// Whether it answers.
    pub sight: Sight,
}

/// Whether a node answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// It has not answered since this node started, which is not long ago.
    Unheard,
    /// It answers, or did a moment ago.
    Present,
    /// It is down.
    Silent {
        /// When it was heard for the last time.
        since: Duration,
    },
}

/// What this node may do about nodes that are silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// Sign observations and plan repairs.
    Free,
    /// Sign no observations. Of what is thin for nodes that are down, only chunks that have no
    /// shard to spare are rebuilt.
    Frozen {
        /// Why, and for how long.
        reason: Freeze,
    },
    /// Sign nothing and plan nothing: this node is more likely to be gone than the others.
    CutOff {
        /// What it sees.
        reason: CutOff,
    },
}

/// Some nodes and their share of the weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// How many nodes.
    pub nodes: usize,
    /// Out of how many that this node watches, itself included.
    pub of: usize,
    /// Their weight, in thousandths.
    pub permille: u16,
}

/// Why no observations are signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freeze {
    /// Many went silent together.
    Together {
        /// Who.
        share: Share,
        /// Between the first and the last of them.
        within: Duration,
        /// Until the guard lets go.
        left: Duration,
    },
    /// All nodes of a zone are silent.
    Zone {
        /// Its name.
        zone: String,
        /// How many nodes of it are watched.
        nodes: usize,
        /// Until the guard lets go.
        left: Duration,
    },
    /// Exactly half answers: the other half sees the same.
    Half {
        /// Who answers.
        present: Share,
    },
    /// The reason is gone since a moment ago.
    Settling {
        /// Until the guard lets go.
        left: Duration,
        /// As of [`CutOff::Settling`].
        is_first: bool,
    },
}

/// Why this node is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutOff {
    /// Too few answer.
    Few {
        /// Who answers, this node included.
        present: Share,
        /// How many have not answered since this node started, and may yet.
        unheard: usize,
    },
    /// Enough answer since a moment ago.
    Settling {
        /// Until the guard lets go.
        left: Duration,
        /// Whether there was no other reason than that the node had just started: then this is as it should be.
        is_first: bool,
    },
}

/// Lets guards go only after a while.
#[derive(Debug, Default)]
pub struct Settling {
    cut_off_until: Duration,
    frozen_until: Duration,
    /// Whether it has let go, or had a reason that a start does not explain.
    was_needed: bool,
}

impl Settling {
    /// What holds at time `now`, given what is judged now. It lasts for
    /// [`Timeouts::settle_for`], in which all who are back are heard.
    pub fn settle(&mut self, judged: Guard, now: Duration, timeouts: &Timeouts) -> Guard {
        let until = now + timeouts.settle_for();
        if !judged.may_plan() {
            self.cut_off_until = until;
        }
        if !judged.may_sign() {
            self.frozen_until = until;
        }
        self.was_needed |= !judged.is_of_a_start();
        let is_first = !self.was_needed;
        let settled = match judged {
            Guard::CutOff { .. } => judged,
            _ if now < self.cut_off_until => {
                let left = self.cut_off_until - now;
                Guard::CutOff { reason: CutOff::Settling { left, is_first } }
            }
            Guard::Free if now < self.frozen_until => {
                let left = self.frozen_until - now;
                Guard::Frozen { reason: Freeze::Settling { left, is_first } }
            }
            _ => judged,
        };
        self.was_needed |= settled == Guard::Free;
        settled
    }
}

impl Guard {
    /// Judges what this node sees of the ring: itself, if it is a member, and the members that it
    /// watches. In a large network these are a sample. `now` is the time since start.
    pub fn judge(views: &[View<'_>], now: Duration, timeouts: &Timeouts) -> Self {
        let scale = Scale::new(views);
        let present = |view: &&View<'_>| view.sight == Sight::Present;
        let weight = scale.weight(views.iter().filter(present));
        let present = scale.share(views.iter().filter(present));
        match (2 * weight).cmp(&scale.total) {
            core::cmp::Ordering::Less => {
                let unheard = views.iter().filter(|view| view.sight == Sight::Unheard).count();
                return Self::CutOff { reason: CutOff::Few { present, unheard } };
            }
            core::cmp::Ordering::Equal if scale.total > 0 => {
                return Self::Frozen { reason: Freeze::Half { present } };
            }
            _ => {}
        }
        let freeze = scale
            .together(views, now, timeouts)
            .or_else(|| whole_zone(views, now, timeouts))
            .map(|reason| Self::Frozen { reason });
        freeze.unwrap_or(Self::Free)
    }

    /// Whether it is nothing, or what a node sees that has just started, before it has heard the others.
    fn is_of_a_start(&self) -> bool {
        match self {
            Self::Free => true,
            Self::CutOff { reason } => matches!(reason, CutOff::Few { unheard: 1.., .. }),
            Self::Frozen { reason } => matches!(reason, Freeze::Half { .. }),
        }
    }

    /// Whether the two differ in numbers at most: what follows from them is the same.
    pub fn is_like(&self, other: &Self) -> bool {
        use core::mem::discriminant;
        match (self, other) {
            (Self::Frozen { reason: one }, Self::Frozen { reason: two }) => {
                discriminant(one) == discriminant(two)
            }
            (Self::CutOff { reason: one }, Self::CutOff { reason: two }) => {
                discriminant(one) == discriminant(two)
            }
            _ => discriminant(self) == discriminant(other),
        }
    }

    /// Whether observations may be signed.
    pub const fn may_sign(&self) -> bool {
        matches!(self, Self::Free)
    }

    /// Whether repairs may be planned.
    pub const fn may_plan(&self) -> bool {
        !matches!(self, Self::CutOff { .. })
    }
}

/// The weights of nodes: their capacity, bounded by what is usual.
struct Scale {
    max: u64,
    total: u128,
    nodes: usize,
}

impl Scale {
    fn new(views: &[View<'_>]) -> Self {
        let mut sizes: Vec<u64> = views.iter().map(|view| view.capacity_bytes).collect();
        sizes.sort_unstable();
        let median = sizes.get(sizes.len() / 2).copied().unwrap_or(0);
        let max = median.saturating_mul(WEIGHT_MAX_MEDIANS);
        let mut scale = Self { max, total: 0, nodes: views.len() };
        scale.total = scale.weight(views);
        scale
    }

    fn weight<'a>(&self, views: impl IntoIterator<Item = &'a View<'a>>) -> u128 {
        views.into_iter().map(|view| u128::from(view.capacity_bytes.min(self.max))).sum()
    }

    fn share<'a>(&self, views: impl IntoIterator<Item = &'a View<'a>>) -> Share {
        let views: Vec<&View<'_>> = views.into_iter().collect();
        let permille = self.weight(views.iter().copied()) * 1000 / self.total.max(1);
        Share {
            nodes: views.len(),
            of: self.nodes,
            permille: u16::try_from(permille).unwrap_or(1000),
        }
    }

    /// The heaviest group that went silent together, if it is too heavy. One node alone is no
    /// group: in a small network it may well be more than 15 %.
    fn together(&self, views: &[View<'_>], now: Duration, timeouts: &Timeouts) -> Option<Freeze> {
        let mut silent: Vec<(Duration, &View<'_>)> = views
            .iter()
            .filter_map(|view| match view.sight {
                Sight::Silent { since } => Some((since, view)),
                Sight::Unheard | Sight::Present => None,
            })
            .collect();
        silent.sort_unstable_by_key(|(since, _)| *since);
        let groups = silent.iter().enumerate().filter_map(|(at, &(first, _))| {
            let left =
                (first + timeouts.freeze_max).checked_sub(now).filter(|left| !left.is_zero());
            let end = first + timeouts.together;
            let group = &silent[at..];
            let group = &group[..group.partition_point(|(since, _)| *since <= end)];
            let weight = self.weight(group.iter().map(|(_, view)| *view));
            let heavy = weight * 100 > self.total * FREEZE_PERCENT && group.len() >= 2;
            let within = group.last()?.0 - first;
            let share = self.share(group.iter().map(|(_, view)| *view));
            left.filter(|_| heavy).map(|left| (weight, Freeze::Together { share, within, left }))
        });
        groups.max_by_key(|(weight, _)| *weight).map(|(_, freeze)| freeze)
    }
}

/// A zone of several of which nobody answers, and at least two of which went silent together.
fn whole_zone(views: &[View<'_>], now: Duration, timeouts: &Timeouts) -> Option<Freeze> {
    let mut zones: BTreeMap<&str, Vec<Sight>> = BTreeMap::new();
    for view in views.iter().filter(|view| !view.zone.is_empty()) {
        zones.entry(view.zone).or_default().push(view.sight);
    }
    let alone = views.iter().filter(|view| view.zone.is_empty()).count();
    if zones.len() + alone < 2 {
        return None;
    }
    zones.into_iter().find_map(|(zone, sights)| {
        let silent: Vec<Duration> = sights
            .iter()
            .map(|sight| match sight {
                Sight::Silent { since } => Some(*since),
                Sight::Unheard | Sight::Present => None,
            })
            .collect::<Option<_>>()?;
        let last = *silent.iter().max()?;
        let together = silent.iter().filter(|since| **since + timeouts.together >= last);
        let first = *together.clone().min()?;
        let left = (first + timeouts.freeze_max).checked_sub(now).filter(|left| !left.is_zero())?;
        (together.count() >= 2).then(|| Freeze::Zone {
            zone: zone.to_owned(),
            nodes: silent.len(),
            left,
        })
    })
}

impl Share {
    fn answer(&self) -> &'static str {
        one_or(self.nodes as u64, "answers", "answer")
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, of, permille } = self;
        let nodes_of = counted(*of as u64, "node");
        write!(f, "{nodes} of {nodes_of} ({}.{} % of the weight)", permille / 10, permille % 10)
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("free"),
            // Who has just started is not cut off from anything.
            Self::CutOff { reason: CutOff::Settling { is_first: true, left } }
            | Self::Frozen { reason: Freeze::Settling { is_first: true, left } } => write!(
                f,
                "just started, as every node of a new network: it looks for another {} who is there, and \
                 gives nobody up until then",
                Brief(*left)
            ),
            Self::Frozen { reason } => write!(f, "evictions are frozen: {reason}"),
            Self::CutOff { reason } => write!(f, "cut off: {reason}"),
        }
    }
}

impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Together { share, within, left } => write!(
                f,
                "{share} went silent within {}, the limit is {FREEZE_PERCENT} %; until they answer, \
                 or for {}",
                Brief(*within),
                Brief(*left)
            ),
            Self::Zone { zone, nodes, left } => write!(
                f,
                "all {nodes} watched nodes of zone {zone} are silent; until one answers, or for {}",
                Brief(*left)
            ),
            Self::Half { present } => write!(
                f,
                "only {present} {}, more than half are needed to evict the others; until more answer",
                present.answer()
            ),
            Self::Settling { left, .. } => {
                write!(f, "that many were silent a moment ago; for {}", Brief(*left))
            }
        }
    }
}

impl fmt::Display for CutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Few { present, unheard } => {
                write!(f, "only {present} {}, less than half", present.answer())?;
                if *unheard > 0 {
                    let have = one_or(*unheard as u64, "has", "have");
                    write!(f, "; {unheard} {have} not been heard since the start")?;
                }
                f.write_str(
                    "; nothing is signed or repaired until more answer: look at this node's network",
                )
            }
            Self::Settling { left, .. } => write!(
                f,
                "enough answer again; for another {} it looks who is there, and repairs nothing until then",
                Brief(*left)
            ),
        }
    }
}

#[cfg(test)]
mod tests;
