//! Who takes a shard that its own node cannot take now: the next nodes of the walk.
//!
//! Owns the choice of substitutes. Refuses to fill a node or a zone beyond what the code bears
//! while there is another way. The one idea: near on the walk, where clients look, and as safe as
//! possible among those.

use super::{
    facts::{NodeFacts, Nodes},
    held::Holdings,
    skip::unfit_for_others,
    strength::Zone,
};
use crate::{
    geometry::Geometry,
    ids::{NodeId, ShardIndex},
    ring::{CANDIDATES_PER_SHARD, HELD_WITHIN_PER_SHARD, Ring},
};

/// How far a substitute is worth having.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Need {
    /// The shard would exist nowhere, or on a node that goes: anywhere.
    Otherwise,
    /// The shard exists, on a node that is down or with too many others of its chunk: only where a
    /// further shard helps against the loss of any one node.
    Apart,
}

/// Where the shards of a chunk are and will be, as far as planned.
pub(super) struct Targets<'a, N> {
    ring: &'a Ring,
    nodes: &'a N,
    arc: u16,
    geometry: Geometry,
    is_emergency: bool,
    placed: Vec<(NodeId, Zone, ShardIndex)>,
}

impl<'a, N: Nodes> Targets<'a, N> {
    pub(super) fn new(
        ring: &'a Ring,
        nodes: &'a N,
        arc: u16,
        geometry: Geometry,
        holdings: &Holdings,
        is_emergency: bool,
    ) -> Self {
        let placed = holdings
            .iter()
            .filter(|held| held.is_sure())
            .map(|held| (held.node, Zone::of(ring, &held.node), held.index))
            .collect();
        Self { ring, nodes, arc, geometry, is_emergency, placed }
    }

    /// Notes that the node will hold a further shard.
    pub(super) fn place(&mut self, index: ShardIndex, node: NodeId) {
        self.placed.push((node, Zone::of(self.ring, &node), index));
    }

    /// Finds a substitute and places the shard there: the first of the safest among the first nodes
    /// of the walk (clients look there first), else the first behind them, as far as anybody looks.
    pub(super) fn substitute(&mut self, index: ShardIndex, need: Need) -> Option<NodeId> {
        let caps = self.ring.caps(self.geometry);
        let zone_cap = caps.zone.unwrap_or(usize::MAX);
        let (parity, apart) = (self.geometry.parity(), self.geometry.apart());
        let mut best: Option<(u8, NodeId)> = None;
        let around = self.ring.around(self.arc, self.geometry, HELD_WITHIN_PER_SHARD);
        for (position, node) in around.enumerate() {
            if position >= CANDIDATES_PER_SHARD * self.geometry.total() && best.is_some() {
                break;
            }
            let Some((on_node, in_zone)) = self.room(&node, self.nodes.facts(&node), index) else {
                continue;
            };
            // A node of its own before a zone of its own: there are zones that are full.
            let tier = match (on_node < apart, on_node < caps.node, in_zone) {
                (true, true, in_zone) if in_zone < zone_cap => 0,
                (true, true, in_zone) if in_zone < parity => 1,
                (true, false, in_zone) if in_zone < parity => 2,
                (true, ..) => 3,
                (false, ..) if need == Need::Otherwise => 4,
                (false, ..) => continue,
            };
            if best.is_none_or(|(least, _)| tier < least) {
                best = Some((tier, node));
            }
            if tier == 0 {
                break;
            }
        }
        let (_, node) = best?;
        self.place(index, node);
        Some(node)
    }

    /// How many shards are on the node and in its zone; `None` if it cannot take this one.
    fn room(&self, node: &NodeId, facts: NodeFacts, index: ShardIndex) -> Option<(usize, usize)> {
        if unfit_for_others(facts, self.is_emergency).is_some()
            || self.placed.iter().any(|placed| placed.0 == *node && placed.2 == index)
        {
            return None;
        }
        let zone = Zone::of(self.ring, node);
        let on_node = self.placed.iter().filter(|placed| placed.0 == *node).count();
        let in_zone = self.placed.iter().filter(|placed| placed.1 == zone).count();
        Some((on_node, in_zone))
    }
}
