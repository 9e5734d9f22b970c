//! How much of a chunk is left, what that survives, and how urgent it is to do something.
//!
//! Owns the counts and the order of urgency. The one idea: shards within reach and shards that are
//! likely to come back are counted apart, for the first decide about danger and the second about
//! work.

use super::{
    facts::{ChunkFacts, Nodes, Standing},
    held::Holdings,
};
use crate::{
    geometry::Geometry,
    ids::NodeId,
    ring::{Ring, Survival, losses_borne},
};

/// What is left of a chunk. All counts are of distinct indices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Strength {
    /// (k, n).
    pub geometry: Geometry,
    /// On nodes that can be asked: alive, suspect or leaving.
    pub sure: usize,
    /// Sure, or on nodes that are down, or presumed there.
    pub hoped: usize,
    /// Part of `hoped`: missing indices that nodes which are down should hold, but of which we
    /// know no claim. We may have become steward after they went.
    pub presumed: usize,
    /// Most sure indices on one node.
    pub on_one_node: usize,
    /// Most sure indices in one zone (nodes without a zone count as one each).
    pub in_one_zone: usize,
    /// How many more losses are borne, whichever they are: a lower bound while shards are in two
    /// places.
    pub survives: Survival,
}

impl Strength {
    /// How many more sure shards than k there are; negative when the chunk cannot be read.
    pub fn sure_margin(&self) -> i16 {
        small(self.sure) - small(self.geometry.data())
    }
}

/// Counts of shards are at most 255.
fn small(count: usize) -> i16 {
    i16::try_from(count).unwrap_or(i16::MAX)
}

/// How urgent work on a chunk is: the smaller one comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Priority {
    /// Sure shards beyond k.
    pub margin: i16,
    /// n−k less the most shards in one zone: below 0, that zone's loss would be the chunk's.
    pub zone_spare: i16,
    /// Since when there has been something to do, in unix milliseconds.
    pub since_unix_ms: u64,
}

impl Priority {
    /// The urgency of a chunk: first what is left, then what one zone could take, then age.
    pub fn of(strength: &Strength, since_unix_ms: u64) -> Self {
        Self {
            margin: strength.sure_margin(),
            zone_spare: small(strength.geometry.parity()) - small(strength.in_one_zone),
            since_unix_ms,
        }
    }
}

/// Counts what is left of a chunk.
pub fn strength(ring: &Ring, nodes: &impl Nodes, chunk: &ChunkFacts) -> Strength {
    let placement = ring.placement(Ring::arc(&chunk.chunk), chunk.geometry);
    measure(ring, nodes, chunk.geometry, &placement, &Holdings::of(chunk, nodes))
}

/// A zone's number on the ring, or a node that is not on the ring and so a zone of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Zone {
    Numbered(u32),
    Alone(NodeId),
}

impl Zone {
    pub(super) fn of(ring: &Ring, node: &NodeId) -> Self {
        ring.zone_number(node).map_or(Self::Alone(*node), Self::Numbered)
    }
}

pub(super) fn measure(
    ring: &Ring,
    nodes: &impl Nodes,
    geometry: Geometry,
    placement: &[NodeId],
    holdings: &Holdings,
) -> Strength {
    let (mut sure, mut known) = (0, 0);
    for index in geometry.indices() {
        let holders = holdings.holders(index);
        known += usize::from(!holders.is_empty());
        sure += usize::from(holders.first().is_some_and(|held| held.is_sure()));
    }
    let presumed = match geometry.total() - known {
        0 => 0,
        missing => presumed(nodes, placement, holdings).min(missing),
    };

    // Each entry is a shard's holder or zone. A shard in two places counts in both.
    let within_reach = || holdings.iter().filter(|held| held.is_sure());
    let on_nodes = numbered(within_reach().map(|held| held.node).collect());
    let mut in_zones: Vec<_> =
        within_reach().map(|held| (Zone::of(ring, &held.node), held.index)).collect();
    in_zones.sort_unstable();
    in_zones.dedup();
    let in_zones = numbered(in_zones.into_iter().map(|(zone, _)| zone).collect());
    let on_one_node = most(&on_nodes);
    let in_one_zone = most(&in_zones);
    let survives = match sure.checked_sub(geometry.data()) {
        Some(spare) => {
            Survival { nodes: losses_borne(on_nodes, spare), zones: losses_borne(in_zones, spare) }
        }
        None => Survival { nodes: 0, zones: 0 },
    };
    let hoped = known + presumed;
    Strength { geometry, sure, hoped, presumed, on_one_node, in_one_zone, survives }
}

/// How many shards nodes that are down should hold beyond those that we know of.
fn presumed(nodes: &impl Nodes, placement: &[NodeId], holdings: &Holdings) -> usize {
    let mut silent: Vec<NodeId> =
        placement.iter().filter(|node| holdings.count_on(node) == 0).copied().collect();
    silent.sort_unstable();
    silent
        .chunk_by(|one, other| one == other)
        .filter(|slots| {
            let facts = nodes.facts(&slots[0]);
            facts.standing == Standing::Down && facts.trusted
        })
        .map(<[NodeId]>::len)
        .sum()
}

/// The items as numbers, equal ones alike, in ascending order.
fn numbered<T: Ord>(mut items: Vec<T>) -> Vec<u32> {
    items.sort_unstable();
    items
        .chunk_by(|one, other| one == other)
        .zip(0u32..)
        .flat_map(|(run, number)| core::iter::repeat_n(number, run.len()))
        .collect()
}

/// The length of the longest run.
fn most(sorted: &[u32]) -> usize {
    sorted.chunk_by(|one, other| one == other).map(<[u32]>::len).max().unwrap_or(0)
}
