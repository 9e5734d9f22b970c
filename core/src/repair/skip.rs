//! Why something is not done, in values and in words.
//!
//! Owns the reasons of the planner and what makes a node unfit to take a shard. The one idea: who
//! asks why a chunk is not being repaired gets an answer, not silence.

use core::{fmt, time::Duration};

use super::facts::{NodeFacts, Room, Standing};
use crate::{
    ids::{NodeId, ShardIndex},
    units::Brief,
};

/// What keeps a node from taking a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// Does not answer, or goes.
    Standing(Standing),
    /// Was caught lying.
    Untrusted,
    /// Has no room.
    Full,
    /// Has room for its own shards only.
    Tight,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standing(standing) => standing.fmt(f),
            Self::Untrusted => f.write_str("not trusted"),
            Self::Full => f.write_str("full"),
            Self::Tight => f.write_str("nearly full"),
        }
    }
}

/// Whether a node can take a shard that the ring gives it.
pub(super) const fn unfit_for_own(facts: NodeFacts) -> Option<Unfit> {
    match facts {
        NodeFacts { trusted: false, .. } => Some(Unfit::Untrusted),
        NodeFacts { standing: Standing::Alive | Standing::Suspect, room, .. } => match room {
            Room::Full => Some(Unfit::Full),
            Room::Free | Room::Tight => None,
        },
        NodeFacts { standing, .. } => Some(Unfit::Standing(standing)),
    }
}

/// Whether a node can take a shard in the place of another node. A suspect one is not tried: when
/// it does not answer, its neighbour would have been as good.
pub(super) fn unfit_for_others(facts: NodeFacts, is_emergency: bool) -> Option<Unfit> {
    match facts {
        NodeFacts { standing: Standing::Suspect, .. } => Some(Unfit::Standing(Standing::Suspect)),
        NodeFacts { standing: Standing::Alive, room: Room::Tight, trusted: true }
            if !is_emergency =>
        {
            Some(Unfit::Tight)
        }
        _ => unfit_for_own(facts),
    }
}

/// What is not done with a chunk, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Skip {
    /// We see less than half of the network.
    CutOff,
    /// Nobody is on the ring.
    EmptyRing,
    /// Shards are missing, but more are left than the threshold.
    AboveThreshold {
        /// Indices that nobody holds.
        missing: usize,
        /// Indices that are there, or on nodes that are down.
        hoped: usize,
        /// r: repair starts with so many.
        threshold: usize,
    },
    /// Shards are on nodes that are down, and there are enough without them for now.
    DownCounts {
        /// The nodes.
        nodes: Vec<NodeId>,
    },
    /// Too few shards can be read, but with those on nodes that are down there would be enough.
    WaitingForDown {
        /// Indices that can be read.
        sure: usize,
        /// k.
        needed: usize,
        /// The nodes to wait for: some may hold a shard of which we do not know.
        nodes: Vec<NodeId>,
    },
    /// Too few shards exist anywhere, as far as we know.
    NotEnough {
        /// Indices that exist, those on nodes that are down included.
        exist: usize,
        /// k.
        needed: usize,
    },
    /// Nobody can take these shards in the place of their own nodes.
    NoTarget {
        /// The shards.
        indices: Vec<ShardIndex>,
        /// What is wrong with the node of the first of them.
        home: NodeId,
        /// Why it cannot take it.
        because: Unfit,
    },
    /// A shard stays with a node that it does not belong on.
    StaysDisplaced {
        /// The shard.
        index: ShardIndex,
        /// Where it is.
        holder: NodeId,
        /// Where it belongs.
        home: NodeId,
        /// Why it cannot go there.
        because: Unfit,
    },
    /// A shard that is held twice is not dropped: the node that should keep it does not answer.
    SurplusKept {
        /// The shard.
        index: ShardIndex,
        /// Who holds it beyond need.
        holder: NodeId,
        /// Who should keep it.
        home: NodeId,
    },
    /// A shard that is held twice is not dropped yet: a node came back a moment ago, and who does not
    /// hear the one that should keep it would make it again.
    SurplusWaits {
        /// The shard.
        index: ShardIndex,
        /// Who holds it beyond need.
        holder: NodeId,
        /// Who should keep it.
        home: NodeId,
        /// For how long.
        settle: Duration,
    },
    /// What these nodes claim to hold is not counted.
    Untrusted {
        /// The nodes.
        nodes: Vec<NodeId>,
    },
}

/// Short ids, with commas.
fn list(f: &mut fmt::Formatter<'_>, items: impl IntoIterator<Item = String>) -> fmt::Result {
    for (at, item) in items.into_iter().enumerate() {
        write!(f, "{}{item}", if at == 0 { "" } else { ", " })?;
    }
    Ok(())
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutOff => f.write_str(
                "this node sees less than half of the network: it plans nothing until it is back",
            ),
            Self::EmptyRing => f.write_str("nobody is on the ring"),
            Self::AboveThreshold { missing, hoped, threshold } => write!(
                f,
                "{missing} missing, but {hoped} are there: they are rebuilt together when \
                 {threshold} are left, or when they have been missing for long"
            ),
            Self::DownCounts { nodes } => {
                f.write_str("there are enough without the shards of nodes that are down: ")?;
                list(f, nodes.iter().map(NodeId::short))
            }
            Self::WaitingForDown { sure, needed, nodes } => {
                write!(f, "{sure} within reach of {needed} needed; with these nodes back: ")?;
                list(f, nodes.iter().map(NodeId::short))?;
                f.write_str(" it can be read again")
            }
            Self::NotEnough { exist, needed } => write!(
                f,
                "only {exist} of {needed} needed exist anywhere: lost unless a node that was \
                 given up comes back"
            ),
            Self::NoTarget { indices, home, because } => {
                f.write_str("nobody alive, trusted and with room can take shards ")?;
                list(f, indices.iter().map(ToString::to_string))?;
                write!(f, " in place of {} ({because})", home.short())
            }
            Self::StaysDisplaced { index, holder, home, because } => write!(
                f,
                "shard {index} stays on {}: {}, where it belongs, is {because}",
                holder.short(),
                home.short()
            ),
            Self::SurplusKept { index, holder, home } => write!(
                f,
                "shard {index} is kept on {} until {} answers, which has it, too",
                holder.short(),
                home.short()
            ),
            Self::SurplusWaits { index, holder, home, settle } => write!(
                f,
                "shard {index} is kept on {} for {}: nodes are coming back, and not all may hear {} \
                 yet, which has it, too",
                holder.short(),
                Brief(*settle),
                home.short()
            ),
            Self::Untrusted { nodes } => {
                f.write_str("not counted, caught lying: ")?;
                list(f, nodes.iter().map(NodeId::short))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_skip_says_why() {
        let a = NodeId::new([0xaa; 32]);
        let b = NodeId::new([0xbb; 32]);
        let index = ShardIndex(3);
        let check = |skip: Skip, text: &str| assert_eq!(skip.to_string(), text);
        check(
            Skip::WaitingForDown { sure: 9, needed: 10, nodes: vec![a, b] },
            "9 within reach of 10 needed; with these nodes back: aaaaaaaa, bbbbbbbb it can be read again",
        );
        check(
            Skip::NotEnough { exist: 7, needed: 10 },
            "only 7 of 10 needed exist anywhere: lost unless a node that was given up comes back",
        );
        check(
            Skip::AboveThreshold { missing: 2, hoped: 14, threshold: 13 },
            "2 missing, but 14 are there: they are rebuilt together when 13 are left, or when they \
             have been missing for long",
        );
        check(
            Skip::NoTarget {
                indices: vec![index, ShardIndex(4)],
                home: a,
                because: Unfit::Standing(Standing::Down),
            },
            "nobody alive, trusted and with room can take shards 3, 4 in place of aaaaaaaa (down)",
        );
        check(
            Skip::StaysDisplaced { index, holder: a, home: b, because: Unfit::Full },
            "shard 3 stays on aaaaaaaa: bbbbbbbb, where it belongs, is full",
        );
        check(
            Skip::SurplusKept { index, holder: a, home: b },
            "shard 3 is kept on aaaaaaaa until bbbbbbbb answers, which has it, too",
        );
        check(
            Skip::SurplusWaits { index, holder: a, home: b, settle: Duration::from_secs(300) },
            "shard 3 is kept on aaaaaaaa for 5 min: nodes are coming back, and not all may hear \
             bbbbbbbb yet, which has it, too",
        );
        check(Skip::Untrusted { nodes: vec![a] }, "not counted, caught lying: aaaaaaaa");
        check(
            Skip::DownCounts { nodes: vec![a] },
            "there are enough without the shards of nodes that are down: aaaaaaaa",
        );
    }
}
