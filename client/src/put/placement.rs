//! Which node each shard of one chunk goes to, and to which next when that fails.
//!
//! Owns the decision, as plain values: no clock, no network. Never gives up a node for another
//! chunk; that is the holders' health. The one idea: an index sticks to its shard, only its node
//! changes, and a chunk's shards stay as far apart as the nodes left allow.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    mem,
};

use copse_core::{
    geometry::Geometry,
    ids::{NodeId, ShardIndex},
};
use copse_proto::status::Refusal;

use crate::{claims::Claimant, losses};

/// Times that one shard is sent to yet another node, at most: each costs its whole length.
pub(crate) const SENDS_MAX: usize = 8;

/// The shards of one chunk on their way to nodes.
#[derive(Debug)]
pub(crate) struct Placement {
    geometry: Geometry,
    preferred: Vec<NodeId>,
    // The walk, in order: preferred nodes and those that may replace them.
    candidates: Vec<NodeId>,
    // As far along the walk as a shard may lie.
    is_widened: bool,
    slots: Vec<Slot>,
    refused: HashMap<NodeId, Refusal>,
    unsettled: BTreeSet<NodeId>,
}

/// How the shards of a chunk that are on disk lie on their nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spread {
    /// Distinct shards that are left when the node is lost whose loss leaves the fewest.
    pub(crate) left: usize,
    /// Shards that this node has and no other.
    pub(crate) on_one_node: usize,
    /// How many nodes may be lost before it cannot be read: those first that have the most.
    pub(crate) survives: usize,
    /// Whether a node has more than the preference list gives to any, so that it survives less than were
    /// every shard in its place; then how much that would be.
    pub(crate) crowded: Option<usize>,
}

#[derive(Debug, Default)]
struct Slot {
    held: HashSet<NodeId>,
    sent: HashSet<NodeId>,
    sends: usize,
}

impl Placement {
    pub(crate) fn new(
        geometry: Geometry,
        preferred: Vec<NodeId>,
        mut candidates: Vec<NodeId>,
    ) -> Self {
        // A zone cap can put a node on the preference list that lies further on along the ring.
        for node in &preferred {
            if !candidates.contains(node) {
                candidates.push(*node);
            }
        }
        let slots = (0..geometry.total()).map(|_| Slot::default()).collect();
        let (refused, unsettled) = Default::default();
        Self { geometry, preferred, candidates, is_widened: false, slots, refused, unsettled }
    }

    pub(crate) fn preferred(&self) -> &[NodeId] {
        &self.preferred
    }

    /// Whether the preference list names this node for this shard.
    pub(crate) fn is_place(&self, index: ShardIndex, node: NodeId) -> bool {
        self.preferred.get(index.as_usize()) == Some(&node)
    }

    pub(crate) fn candidates(&self) -> &[NodeId] {
        &self.candidates
    }

    /// Distinct shards known to be on disk.
    pub(crate) fn durable(&self) -> usize {
        self.slots.iter().filter(|slot| !slot.held.is_empty()).count()
    }

    /// Distinct shards on disk, as far as they count for the write quorum w: of those on one node no more
    /// than w−k, so that whichever node is lost next, k are left. Where not even the preference list
    /// [survives](Self::survives_a_loss) that, all count: whoever goes on then has agreed to it.
    pub(crate) fn counting(&self) -> usize {
        let (k, w) = (self.geometry.data(), self.geometry.write_quorum());
        if !self.survives_a_loss() {
            return self.durable();
        }
        let left = self.durable() - self.on_one_node();
        self.durable().min(left + w - k)
    }

    /// Shards that one node has and no other, at most.
    fn on_one_node(&self) -> usize {
        let mut alone: HashMap<NodeId, usize> = HashMap::new();
        for slot in self.slots.iter().filter(|slot| slot.held.len() == 1) {
            slot.held.iter().for_each(|node| *alone.entry(*node).or_default() += 1);
        }
        alone.into_values().max().unwrap_or(0)
    }

    /// How the shards on disk lie; nothing when there are none.
    pub(crate) fn spread(&self) -> Option<Spread> {
        let durable = self.durable();
        if durable == 0 {
            return None;
        }
        let need = self.geometry.data();
        let on_one_node = self.on_one_node();
        let held = self.slots.iter().map(|slot| slot.held.iter().copied().collect::<Vec<_>>());
        let survives = losses::borne(held, need).unwrap_or(0);
        let places = &self.preferred[..self.preferred.len().min(self.slots.len())];
        let places_of = |node: &NodeId| places.iter().filter(|place| *place == node).count();
        let planned_on_one_node = places.iter().map(places_of).max().unwrap_or(0);
        let planned = losses::borne(places.iter().map(|node| vec![*node]), need).unwrap_or(0);
        let is_crowded = on_one_node > planned_on_one_node && survives < planned;
        Some(Spread {
            left: durable - on_one_node,
            on_one_node,
            survives,
            crowded: is_crowded.then_some(planned),
        })
    }

    /// Whether k shards are left when every shard is in its place and then any one node is lost.
    pub(crate) fn survives_a_loss(&self) -> bool {
        let places = || self.preferred.iter().take(self.slots.len());
        let left_without = |node| places().filter(|place| *place != node).count();
        places().all(|node| left_without(node) >= self.geometry.data())
    }

    pub(crate) fn is_durable(&self, index: ShardIndex) -> bool {
        self.slots.get(index.as_usize()).is_some_and(|slot| !slot.held.is_empty())
    }

    /// Whether a send of this shard is not answered yet.
    pub(crate) fn is_on_its_way(&self, index: ShardIndex) -> bool {
        self.slots.get(index.as_usize()).is_some_and(|slot| !slot.sent.is_empty())
    }

    /// Nodes that have not answered a send of this shard.
    pub(crate) fn waiting_for(&self, index: ShardIndex) -> Vec<NodeId> {
        self.slots
            .get(index.as_usize())
            .map_or_else(Vec::new, |slot| slot.sent.iter().copied().collect())
    }

    /// A send to this node did not happen.
    pub(crate) fn not_sent(&mut self, index: ShardIndex, node: NodeId) {
        if let Some(slot) = self.slots.get_mut(index.as_usize()) {
            slot.sent.remove(&node);
        }
    }

    /// Indices not on disk, as far as known.
    pub(crate) fn missing(&self) -> Vec<ShardIndex> {
        let all = (0..u8::MAX).map(ShardIndex).take(self.geometry.total());
        all.filter(|index| !self.is_durable(*index)).collect()
    }

    /// A node holds this shard.
    pub(crate) fn held(&mut self, index: ShardIndex, node: NodeId) {
        if let Some(slot) = self.slots.get_mut(index.as_usize()) {
            slot.sent.remove(&node);
            slot.held.insert(node);
        }
    }

    /// A node waits to hear that the chunk is safe.
    pub(crate) fn waits(&mut self, node: NodeId) {
        self.unsettled.insert(node);
    }

    /// The nodes to be told when it is.
    pub(crate) fn to_settle(&self) -> Vec<NodeId> {
        self.unsettled.iter().copied().collect()
    }

    /// What of a node's claims can count once it is proved: no more than a node is ever sent of one chunk.
    pub(crate) fn credible(&self, node: NodeId, claims: Vec<ShardIndex>) -> Vec<ShardIndex> {
        let claimant = Claimant { geometry: self.geometry, preferred: &self.preferred, node };
        let mut claims = claimant.credible(claims, |_| false);
        claims.truncate(claimant.places().max(self.geometry.apart()));
        claims
    }

    /// A node did not take this shard. It gets no other of this chunk.
    pub(crate) fn refused(&mut self, index: ShardIndex, node: NodeId, why: Refusal) {
        if let Some(slot) = self.slots.get_mut(index.as_usize()) {
            slot.sent.remove(&node);
        }
        self.refused.insert(node, why);
    }

    /// Which nodes did not take a shard, and why.
    pub(crate) fn refusals(&self) -> Vec<(NodeId, Refusal)> {
        let mut all: Vec<_> = self.refused.iter().map(|(node, why)| (*node, why.clone())).collect();
        all.sort_by_key(|(node, _)| *node);
        all
    }

    /// The node to send this shard to next; the caller sends it. None when nobody is left.
    ///
    /// First the shard's own place on the preference list; then the node with the fewest shards
    /// of this chunk, the earlier one on the walk; never more than n−k of one chunk on one node,
    /// unless the preference list itself says so because there are so few nodes. Nodes that are
    /// not `usable` now are a last resort.
    pub(crate) fn next_for(
        &mut self,
        index: ShardIndex,
        usable: impl Fn(NodeId) -> bool,
    ) -> Option<NodeId> {
        let slot = self.slots.get(index.as_usize())?;
        if slot.sends >= SENDS_MAX {
            return None;
        }
        let free = |node: &NodeId| {
            !self.refused.contains_key(node)
                && !slot.sent.contains(node)
                && !slot.held.contains(node)
        };
        let own = self.preferred.get(index.as_usize()).copied();
        let own = own.filter(|node| slot.sends == 0 && free(node));
        let cap = self.geometry.parity().max(1);
        let replacement = || {
            let counted = self
                .candidates
                .iter()
                .filter(|node| free(node))
                .map(|node| (!usable(*node), self.count(*node), *node));
            // min_by_key takes the first of equals: the earlier on the walk.
            counted
                .filter(|(_, count, _)| *count < cap)
                .min_by_key(|(unusable, count, _)| (*unusable, *count))
                .map(|(_, _, node)| node)
        };
        let chosen = match own.filter(|node| usable(*node)) {
            Some(node) => Some(node),
            None => replacement().or(own),
        }?;
        let slot = &mut self.slots[index.as_usize()];
        slot.sends += 1;
        slot.sent.insert(chosen);
        Some(chosen)
    }

    /// The same, and when nobody is left, the next of those `further` along the walk: of a chunk with
    /// few shards the nearest are few, and may all be full.
    pub(crate) fn next_or_further(
        &mut self,
        index: ShardIndex,
        usable: impl Fn(NodeId) -> bool,
        further: impl FnOnce() -> Vec<NodeId>,
    ) -> Option<NodeId> {
        if let Some(node) = self.next_for(index, &usable) {
            return Some(node);
        }
        if mem::replace(&mut self.is_widened, true) {
            return None;
        }
        let known: HashSet<NodeId> = self.candidates.iter().copied().collect();
        self.candidates.extend(further().into_iter().filter(|node| !known.contains(node)));
        self.next_for(index, usable)
    }

    /// Shards of this chunk that are on a node or on their way to it or meant for it.
    fn count(&self, node: NodeId) -> usize {
        let on_it = |slot: &Slot| slot.held.contains(&node) || slot.sent.contains(&node);
        let meant = |at: usize, slot: &Slot| {
            slot.sends == 0 && slot.held.is_empty() && self.preferred.get(at) == Some(&node)
        };
        let slots = self.slots.iter().enumerate();
        slots.filter(|(at, slot)| on_it(slot) || meant(*at, slot)).count()
    }
}

#[cfg(test)]
mod tests {
    use copse_proto::status::Reason;
    use proptest::prelude::*;

    use super::*;

    fn nodes(count: u8) -> Vec<NodeId> {
        (1..=count).map(|i| NodeId::new([i; 32])).collect()
    }

    fn gone() -> Refusal {
        Refusal::new(Reason::NodeUnreachable, "gone")
    }

    #[test]
    fn a_dead_nodes_shard_goes_to_the_next_of_the_walk_that_holds_none() {
        let geometry: Geometry = "2+2".parse().expect("a geometry");
        let walk = nodes(6);
        let mut placement = Placement::new(geometry, walk[..4].to_vec(), walk.clone());
        for (index, node) in (0..4).map(ShardIndex).zip(&walk) {
            assert_eq!(placement.next_for(index, |_| true), Some(*node));
        }
        placement.refused(ShardIndex(1), walk[1], gone());
        assert_eq!(placement.next_for(ShardIndex(1), |_| true), Some(walk[4]));
        placement.refused(ShardIndex(2), walk[2], gone());
        assert_eq!(placement.next_for(ShardIndex(2), |node| node != walk[5]), Some(walk[0]));
        assert_eq!(placement.durable(), 0);
        placement.held(ShardIndex(2), walk[0]);
        assert_eq!((placement.durable(), placement.missing().len()), (1, 3));
    }

    #[test]
    fn when_all_near_nodes_are_full_those_further_along_the_walk_are_tried_once() {
        let walk = nodes(7);
        let geometry: Geometry = "1+1".parse().expect("a geometry");
        let mut placement = Placement::new(geometry, walk[..2].to_vec(), walk[..4].to_vec());
        let mut tried = Vec::new();
        while let Some(node) =
            placement.next_or_further(ShardIndex(0), |_| true, || walk[2..6].to_vec())
        {
            placement.refused(ShardIndex(0), node, gone());
            tried.push(node);
        }
        // Its own place, then who is to have none of the chunk; each once, and none that was not named.
        assert_eq!(tried, [0, 2, 3, 4, 5].map(|at| walk[at]));
        let never = || -> Vec<NodeId> { unreachable!("asked before") };
        assert_eq!(placement.next_or_further(ShardIndex(1), |_| true, never), Some(walk[1]));
        placement.refused(ShardIndex(1), walk[1], gone());
        assert_eq!(placement.next_or_further(ShardIndex(1), |_| true, never), None);
    }

    #[test]
    fn shards_on_one_node_do_not_make_a_quorum() {
        let counting = |code: &str, preferred: &[usize], held: &[usize]| {
            let walk = nodes(6);
            let preferred = preferred.iter().map(|at| walk[*at]).collect();
            let geometry: Geometry = code.parse().expect("a geometry");
            let mut placement = Placement::new(geometry, preferred, walk.clone());
            for (index, at) in (0..).map(ShardIndex).zip(held) {
                placement.held(index, walk[*at]);
            }
            placement.counting() >= geometry.write_quorum()
        };
        let all = [0, 1, 2, 3];
        assert!(counting("1+3", &all, &[0, 1, 2]));
        assert!(!counting("1+3", &all, &[1, 1, 1]), "all of it on one node");
        assert!(counting("1+3", &all, &[1, 1, 0]), "one is left");
        assert!(!counting("2+2", &all, &[0, 1]), "too few");
        assert!(!counting("2+3", &[0, 1, 2, 3, 4], &[0, 0, 0, 1]), "one would be left of two");
        assert!(counting("2+3", &[0, 1, 2, 3, 4], &[0, 0, 0, 1, 2]), "two are left");
        // One node holds the chunk by plan: whoever puts it there was told.
        assert!(counting("1+1", &[0, 0], &[0, 0]));
        assert!(!counting("1+1", &[0, 0], &[0]));
    }

    #[test]
    fn the_loss_that_leaves_the_fewest_shards_is_known() {
        let walk = nodes(5);
        let placed = |held: &[(u8, usize)]| {
            let geometry: Geometry = "2+2".parse().expect("a geometry");
            let mut placement = Placement::new(geometry, walk[..4].to_vec(), walk.clone());
            held.iter().for_each(|(index, at)| placement.held(ShardIndex(*index), walk[*at]));
            let Spread { left, on_one_node, survives, crowded } = placement.spread()?;
            Some((left, on_one_node, survives, crowded))
        };
        assert_eq!(placed(&[]), None);
        assert_eq!(placed(&[(0, 0), (1, 1), (2, 2), (3, 3)]), Some((3, 1, 2, None)));
        assert_eq!(placed(&[(0, 0), (1, 1), (2, 2), (3, 4)]), Some((3, 1, 2, None)), "elsewhere");
        assert_eq!(placed(&[(0, 0), (1, 1), (2, 2)]), Some((2, 1, 1, None)), "too few, well apart");
        assert_eq!(placed(&[(0, 0), (1, 1), (2, 1), (3, 3)]), Some((2, 2, 1, Some(2))));
        assert_eq!(placed(&[(0, 0), (1, 0), (2, 0), (3, 1)]), Some((1, 3, 0, Some(2))));
        // A shard that another has as well is not lost.
        assert_eq!(placed(&[(0, 0), (1, 0), (1, 1), (2, 2)]), Some((2, 1, 1, None)));
        assert_eq!(placed(&[(0, 0), (1, 1), (2, 2), (3, 3), (3, 0)]), Some((3, 1, 2, None)));
    }

    #[test]
    fn claims_count_as_far_as_a_node_would_be_sent_shards() {
        let check = |code: &str, preferred: &[usize], claims: &[u8], expected: &[u8]| {
            let geometry: Geometry = code.parse().expect("a geometry");
            let walk = nodes(6);
            let preferred = preferred.iter().map(|at| walk[*at]).collect();
            let placement = Placement::new(geometry, preferred, walk.clone());
            let claims = claims.iter().copied().map(ShardIndex).collect();
            let credible = placement.credible(walk[1], claims);
            let expected: Vec<_> = expected.iter().copied().map(ShardIndex).collect();
            assert_eq!(credible, expected, "{code}");
        };
        let everything: Vec<u8> = (0..=u8::MAX).collect();
        check("4+2", &[0, 1, 2, 3, 4, 5], &everything, &[1, 0]);
        check("4+2", &[0, 1, 2, 3, 4, 5], &[5, 5, 5], &[5]);
        check("4+2", &[0, 1, 1, 1, 4, 5], &everything, &[1, 2, 3]);
        check("2+0", &[0, 1], &everything, &[1]);
        // Whoever has one replica can prove all of them.
        check("1+2", &[0, 1, 2], &everything, &[1]);
        check("1+2", &[0, 1, 1], &everything, &[1, 2]);
        check("1+2", &[0, 2, 3], &everything, &[0]);
    }

    proptest! {
        #[test]
        fn no_node_gets_more_than_the_parity_and_every_end_is_reached(
            data in 1usize..6,
            parity in 0usize..5,
            count in 1u8..12,
            outcomes in prop::collection::vec(any::<(bool, bool)>(), 300),
        ) {
            let geometry = Geometry::new(data, parity).expect("a geometry");
            let walk = nodes(count);
            let preferred: Vec<_> =
                (0..geometry.total()).map(|i| walk[i % walk.len()]).collect();
            let planned = geometry.total().div_ceil(walk.len());
            let mut placement = Placement::new(geometry, preferred, walk.clone());
            let mut outcomes = outcomes.into_iter();
            let mut on: HashMap<NodeId, usize> = HashMap::new();
            for index in (0..u8::MAX).map(ShardIndex).take(geometry.total()) {
                for (good, usable) in outcomes.by_ref() {
                    let Some(node) = placement.next_for(index, |_| usable) else { break };
                    if good {
                        placement.held(index, node);
                        *on.entry(node).or_default() += 1;
                        break;
                    }
                    placement.refused(index, node, gone());
                }
            }
            let stored: usize = on.values().sum();
            prop_assert_eq!(placement.durable(), stored);
            for shards in on.values() {
                prop_assert!(*shards <= planned.max(geometry.parity()).max(1));
            }
        }
    }
}
