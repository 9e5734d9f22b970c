//! Who should hold the shards of a chunk: the preference list with its two caps.
//!
//! Owns the caps per node and per zone, and what they mean for losses. The one idea: both caps are
//! properties of the whole ring, the smallest that can be met, so that the greedy choice along an
//! arc's walk always fills n slots, and the loss of one node exchanges one slot.

use std::collections::BTreeSet;

use super::Ring;
use crate::{geometry::Geometry, ids::NodeId, limits::ARCS};

/// How far along the walk a shard may be held, in nodes for each shard of its chunk: nobody gives one
/// to a node behind that, and nobody looks for one there, unless the placement names it.
pub const HELD_WITHIN_PER_SHARD: usize = 16;

/// How far along the walk writers replace a holder, in nodes for each shard of the chunk, unless all of
/// them refuse: who looks for shards that were just put looks there first.
pub const CANDIDATES_PER_SHARD: usize = 2;

/// How many losses every chunk of a geometry survives, whichever they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Survival {
    /// Any so many nodes at once.
    pub nodes: usize,
    /// Any so many zones at once (nodes without a zone count as one each).
    pub zones: usize,
}

/// Most shards of a chunk on one node and in one zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Caps {
    pub(crate) node: usize,
    /// `None`: no zone is large enough to reach it.
    pub(crate) zone: Option<usize>,
}

impl Ring {
    /// The node that should hold each shard: `[i]` belongs to shard i when the chunk is stored
    /// first. Empty when the ring is; otherwise n long.
    ///
    /// Nodes repeat when there are fewer than n. Never more than ⌈n/nodes⌉ shards are on one node,
    /// and no more in one zone than its cap: seven eighths of the largest zone's share of n, rounded
    /// up, at most n−k so that the zone's loss can be borne, and as much above that as it takes to
    /// find n slots.
    pub fn placement(&self, arc: u16, geometry: Geometry) -> Vec<NodeId> {
        self.place(arc, geometry).into_iter().map(|member| self.ids[member as usize]).collect()
    }

    /// The first nodes of the walk, `per_shard` for each shard, and then those that should hold one and
    /// lie behind: a zone cap passes over a whole zone to find them.
    pub fn around(
        &self,
        arc: u16,
        geometry: Geometry,
        per_shard: usize,
    ) -> impl Iterator<Item = NodeId> {
        let near = move || self.walk(arc).take(per_shard * geometry.total());
        let behind = move || {
            let near: BTreeSet<NodeId> = near().collect();
            self.placement(arc, geometry).into_iter().filter(move |node| !near.contains(node))
        };
        near().chain(core::iter::once_with(behind).flatten())
    }

    /// Whether shards of such a chunk may be given to a node, for they are looked for there.
    pub fn may_hold(&self, arc: u16, geometry: Geometry, node: &NodeId) -> bool {
        self.around(arc, geometry, HELD_WITHIN_PER_SHARD).any(|near| near == *node)
    }

    fn place(&self, arc: u16, geometry: Geometry) -> Vec<u32> {
        if self.is_empty() {
            return Vec::new();
        }
        let n = geometry.total();
        let caps = self.caps(geometry);
        let mut slots = Slots::new(self, caps.zone, n);
        if caps.node == 1 {
            // A node that is met again is either in the list, which is short enough to look
            // through, or its zone is full: no need to mark whom we met.
            for member in self.owners_from(arc) {
                if slots.is_full() {
                    break;
                }
                if !slots.members.contains(&member) {
                    slots.offer(member);
                }
            }
        } else {
            // Fewer nodes than shards: everyone gets one before anyone gets two.
            let walk: Vec<u32> = self.walk_members(arc).collect();
            for &member in walk.iter().cycle().take(walk.len() * caps.node) {
                if slots.is_full() {
                    break;
                }
                slots.offer(member);
            }
        }
        assert!(slots.is_full(), "the caps were chosen so that n slots can be found");
        slots.members
    }

    /// The smallest caps under which n slots can be found on every arc.
    ///
    /// A zone cap that changes by one moves much of what is stored. ⌈n · share⌉ does so at the very
    /// point where people put their networks: in 8 equal zones of 10 nodes each, one leave moved
    /// 15 times its own shards. With 7/8 of the share, equal zones are an eighth away from the edge,
    /// and a zone is at most an eighth below its share.
    pub(crate) fn caps(&self, geometry: Geometry) -> Caps {
        let n = geometry.total();
        let node = n.div_ceil(self.len());
        let fair = (7 * n * self.zone_tokens_max).div_ceil(8 * self.owners.len());
        let fair = fair.clamp(1, geometry.parity().max(1));
        // Slots under a zone cap. Without one there are nodes · ⌈n/nodes⌉, which is enough.
        let room = |cap: usize| -> usize {
            self.zone_sizes
                .iter()
                .map(|&(members, zones)| cap.min(members as usize * node) * zones as usize)
                .sum()
        };
        let zone = match (fair..n).find(|&cap| room(cap) >= n) {
            // No zone has more slots than the cap.
            Some(cap) if self.zone_members_max * node <= cap => None,
            cap => cap,
        };
        Caps { node, zone }
    }

    /// How many losses every chunk of this geometry survives. Looks at every arc: some tens of
    /// milliseconds on a large ring, so not for every chunk.
    pub fn survives(&self, geometry: Geometry) -> Survival {
        let mut worst = Survival { nodes: self.len(), zones: self.len() };
        let mut last = None;
        for arc in (0..ARCS).filter_map(|arc| u16::try_from(arc).ok()) {
            let start = self.starts[usize::from(arc)];
            if last.replace(start) == Some(start) {
                continue;
            }
            let slots = self.place(arc, geometry);
            let zones = slots.iter().map(|&member| self.zone_of[member as usize]).collect();
            worst.nodes = worst.nodes.min(losses_borne(slots, geometry.parity()));
            worst.zones = worst.zones.min(losses_borne(zones, geometry.parity()));
        }
        worst
    }
}

/// Most shards of a chunk in one of `zones` equal zones of equal nodes: what the caps of a ring
/// come to when its nodes are spread over zones as evenly as can be. n with no zones or no nodes.
pub fn equal_zone_cap(geometry: Geometry, nodes: usize, zones: usize) -> usize {
    let n = geometry.total();
    if zones == 0 || nodes == 0 {
        return n;
    }
    let on_node = n.div_ceil(nodes);
    let fair = (7 * n * nodes.div_ceil(zones)).div_ceil(8 * nodes);
    let fair = fair.clamp(1, geometry.parity().max(1));
    let (full, small) = (nodes % zones, nodes / zones);
    let room = |cap: usize| {
        let of = |members: usize| cap.min(members * on_node);
        full * of(small + 1) + zones.saturating_sub(full) * of(small)
    };
    (fair..n).find(|&cap| room(cap) >= n).unwrap_or(n)
}

/// How many different holders can be lost, the worst ones first, before more than `parity` shards
/// are.
pub(crate) fn losses_borne(holders: Vec<u32>, parity: usize) -> usize {
    let mut counts: Vec<u32> =
        super::run_lengths(holders).into_iter().map(|(_, count)| count).collect();
    counts.sort_unstable();
    let mut left = parity;
    counts
        .into_iter()
        .rev()
        .take_while(|&count| match left.checked_sub(count as usize) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        })
        .count()
}

/// The list while it grows.
struct Slots<'a> {
    ring: &'a Ring,
    zone_cap: usize,
    slots: usize,
    members: Vec<u32>,
    /// The zones of the members; stays empty when no zone can reach its cap.
    zones: Vec<u32>,
}

impl<'a> Slots<'a> {
    fn new(ring: &'a Ring, zone_cap: Option<usize>, slots: usize) -> Self {
        let zones = Vec::with_capacity(if zone_cap.is_some() { slots } else { 0 });
        let members = Vec::with_capacity(slots);
        Self { ring, zone_cap: zone_cap.unwrap_or(slots), slots, members, zones }
    }

    fn is_full(&self) -> bool {
        self.members.len() == self.slots
    }

    /// Gives the member a slot unless its zone is at its cap.
    fn offer(&mut self, member: u32) {
        if self.zone_cap < self.slots {
            let zone = self.ring.zone_of[member as usize];
            if self.zones.iter().filter(|&&held| held == zone).count() >= self.zone_cap {
                return;
            }
            self.zones.push(zone);
        }
        self.members.push(member);
    }
}
