//! Which shard belongs on which node: the ring's slots, filled so that the most stays in place.
//!
//! Owns the matching of indices to slots. Refuses nothing: n slots and n indices always meet. The
//! one idea: the ring names a set with repetitions, so every largest matching of what is held to
//! the slots leaves exactly as many shards to move as the two sets differ by.

use super::{
    facts::Nodes,
    held::{Held, Holdings},
    skip::{Unfit, unfit_for_own},
};
use crate::ids::{NodeId, ShardIndex};

/// Where the shards of a chunk belong. With an empty ring there is none of these.
#[derive(Debug)]
pub(super) struct Homes<'a> {
    placement: &'a [NodeId],
    /// For each index, its slot in the placement.
    slot_of: Vec<usize>,
    /// For each index, whether the node of its slot holds it (be it down).
    is_home: Vec<bool>,
}

impl<'a> Homes<'a> {
    /// Matches what is held to the slots: what can be read now before what is on nodes that are
    /// down, and what is on nodes that can take nothing else before all. So of two that hold a shard the
    /// full one keeps it, and the slot of the other is free for what the full one has no room for. What
    /// is left over goes where it can be stored now, first what is missing everywhere.
    pub(super) fn assign(placement: &'a [NodeId], holdings: &Holdings, nodes: &impl Nodes) -> Self {
        let mut matching = Matching::new(placement);
        let takes_nothing_else =
            |held: &Held| held.is_sure() && unfit_for_own(nodes.facts(&held.node)).is_some();
        // A slot that is filled stays filled, so the first come best.
        matching.improve(holdings, &takes_nothing_else);
        matching.improve(holdings, &Held::is_sure);
        matching.improve(holdings, &|_| true);
        let is_home: Vec<bool> = matching.slot_of.iter().map(Option::is_some).collect();
        if !is_home.iter().all(|is_home| *is_home) {
            matching.fill(holdings, nodes);
        }
        let slot_of = matching.slot_of.into_iter().map(|slot| slot.expect("filled")).collect();
        Self { placement, slot_of, is_home }
    }

    /// The node that a shard belongs on.
    pub(super) fn of(&self, index: ShardIndex) -> &'a NodeId {
        &self.placement[self.slot_of[index.as_usize()]]
    }

    /// Whether the shard is on the node that it belongs on, even if that is down.
    pub(super) fn is_home(&self, index: ShardIndex) -> bool {
        self.is_home[index.as_usize()]
    }

    /// How many shards the ring gives a node.
    pub(super) fn slots(&self, node: &NodeId) -> usize {
        self.placement.iter().filter(|slot| *slot == node).count()
    }
}

/// A matching of indices to slots while it grows (Kuhn's algorithm).
struct Matching<'a> {
    placement: &'a [NodeId],
    /// Slots by node, to find those of a holder.
    by_node: Vec<(NodeId, usize)>,
    index_in: Vec<Option<usize>>,
    slot_of: Vec<Option<usize>>,
}

impl<'a> Matching<'a> {
    fn new(placement: &'a [NodeId]) -> Self {
        let mut by_node: Vec<_> =
            placement.iter().copied().enumerate().map(|(slot, node)| (node, slot)).collect();
        by_node.sort_unstable();
        let none = vec![None; placement.len()];
        Self { placement, by_node, index_in: none.clone(), slot_of: none }
    }

    fn put(&mut self, index: usize, slot: usize) {
        self.index_in[slot] = Some(index);
        self.slot_of[index] = Some(slot);
    }

    /// Gives each index a slot of one of its holders that count, if that can be done without taking a
    /// slot from another index for good.
    fn improve(&mut self, holdings: &Holdings, counts: &impl Fn(&Held) -> bool) {
        for index in 0..self.slot_of.len() {
            if self.slot_of[index].is_none() {
                self.augment(index, holdings, counts, &mut Vec::new());
            }
        }
    }

    fn augment(
        &mut self,
        index: usize,
        holdings: &Holdings,
        counts: &impl Fn(&Held) -> bool,
        seen: &mut Vec<bool>,
    ) -> bool {
        let slots = self.slots_of_holders(index, holdings, counts);
        // The slot in which it was stored first, if that is free, else any free one.
        let free = |slot: &&usize| self.index_in[**slot].is_none();
        let own = slots.iter().filter(free).find(|slot| **slot == index);
        if let Some(&slot) = own.or_else(|| slots.iter().find(free)) {
            self.put(index, slot);
            return true;
        }
        seen.resize(self.placement.len(), false);
        for slot in slots {
            if core::mem::replace(&mut seen[slot], true) {
                continue;
            }
            let other = self.index_in[slot].expect("a free slot would have been taken");
            if self.augment(other, holdings, counts, seen) {
                self.put(index, slot);
                return true;
            }
        }
        false
    }

    fn slots_of_holders(
        &self,
        index: usize,
        holdings: &Holdings,
        counts: &impl Fn(&Held) -> bool,
    ) -> Vec<usize> {
        let counted = holdings.holders(shard(index)).iter().filter(|held| counts(held));
        let slots_of = |held: &Held| {
            let start = self.by_node.partition_point(|(node, _)| *node < held.node);
            let node = held.node;
            self.by_node[start..].iter().take_while(move |slot| slot.0 == node).map(|slot| slot.1)
        };
        counted.flat_map(slots_of).collect()
    }

    /// Gives the rest of the indices the rest of the slots. What is missing everywhere takes the
    /// slots that can be filled now; then what is held elsewhere; what is on nodes that are down
    /// can wait.
    fn fill(&mut self, holdings: &Holdings, nodes: &impl Nodes) {
        let usable: Vec<bool> = self
            .placement
            .iter()
            .zip(&self.index_in)
            .map(|(node, index)| index.is_none() && unfit_for_own(nodes.facts(node)).is_none())
            .collect();
        let mut left: Vec<usize> =
            (0..self.slot_of.len()).filter(|index| self.slot_of[*index].is_none()).collect();
        left.sort_by_key(|&index| match holdings.holders(shard(index)).first() {
            None => 0,
            Some(held) if held.is_sure() => 1,
            Some(_) => 2,
        });
        // Clients guess that shard i is in slot i.
        for &index in &left {
            if usable[index] {
                self.put(index, index);
            }
        }
        let is_free = |matching: &Self, slot: &usize| matching.index_in[*slot].is_none();
        let slots = 0..self.placement.len();
        let mut free: Vec<usize> = slots.filter(|slot| is_free(self, slot)).collect();
        free.sort_by_key(|slot| !usable[*slot]);
        left.retain(|index| self.slot_of[*index].is_none());
        for (index, slot) in left.into_iter().zip(free) {
            self.put(index, slot);
        }
    }
}

/// Positions in a placement are shard indices, at most 255 of them.
fn shard(index: usize) -> ShardIndex {
    ShardIndex(u8::try_from(index).expect("a placement is at most 255 long"))
}

/// Why a shard is not where it belongs: what keeps its own node from taking it.
pub(super) fn home_is_unfit(
    homes: &Homes<'_>,
    index: ShardIndex,
    nodes: &impl Nodes,
) -> Option<Unfit> {
    unfit_for_own(nodes.facts(homes.of(index)))
}
