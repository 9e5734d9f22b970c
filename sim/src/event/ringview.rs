//! The core's ring, seen by a simulation in which nodes come and go by the hundred thousand.
//!
//! Owns the beginnings of all walks and who joins which. Places nothing by itself. The one idea: the
//! ring of the living is the ring of everybody without the dead and the unborn (a node's tokens
//! depend on its id alone), so one ring serves for as many joins as there are nodes, and a join or
//! a death costs a flag.

use core::ops::ControlFlow;

use copse_core::{
    ids::NodeId,
    ring::{Ring, RingMember},
};

/// Any power of two: all nodes are equal and have 64 tokens.
const CAPACITY_BYTES: u64 = 1 << 40;

pub(super) struct RingView {
    ring: Ring,
    arcs: Vec<u16>,
    depth: usize,
    /// For each arc the first `depth` nodes of its walk.
    begins: Vec<u32>,
    first_unborn: u32,
    /// For each of the unborn, where its arcs are in `reach`.
    reach_starts: Vec<u32>,
    /// Positions in `arcs` of those whose walk's beginning meets the node.
    reach: Vec<u32>,
}

/// The id of a node of the simulation: its number, then zeros. Tokens are hashes of ids, so these
/// are as good as keys.
pub(super) fn id_of(number: u32) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    NodeId::new(bytes)
}

fn number_of(id: NodeId) -> u32 {
    let bytes = id.as_bytes();
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

impl RingView {
    /// The ring of the living and of the next `unborn` numbers, seen from these arcs.
    pub(super) fn build(
        arcs: Vec<u16>,
        living: impl Iterator<Item = u32>,
        first_unborn: u32,
        unborn: u32,
        wanted: usize,
    ) -> Self {
        let members: Vec<RingMember> = living
            .chain(first_unborn..first_unborn + unborn)
            .map(|number| RingMember {
                id: id_of(number),
                capacity_bytes: CAPACITY_BYTES,
                zone: String::new(),
            })
            .collect();
        // Half of them live: four times as many as are wanted nearly always suffice.
        let depth = (4 * wanted).min(members.len());
        let ring = Ring::build(members);
        let mut begins = Vec::with_capacity(arcs.len() * depth);
        for &arc in &arcs {
            begins.extend(ring.walk(arc).take(depth).map(number_of));
        }
        let mut counts = vec![0u32; unborn as usize + 1];
        let unborn_index =
            |number: u32| number.checked_sub(first_unborn).map(|index| index as usize);
        for index in begins.iter().filter_map(|&number| unborn_index(number)) {
            counts[index + 1] += 1;
        }
        for index in 1..counts.len() {
            counts[index] += counts[index - 1];
        }
        let reach_starts = counts.clone();
        let mut reach = vec![0; reach_starts[unborn as usize] as usize];
        for (at, begin) in (0u32..).zip(begins.chunks_exact(depth.max(1))) {
            for index in begin.iter().filter_map(|&number| unborn_index(number)) {
                reach[counts[index] as usize] = at;
                counts[index] += 1;
            }
        }
        Self { ring, arcs, depth, begins, first_unborn, reach_starts, reach }
    }

    /// Takes the arcs back, to build the next view.
    pub(super) fn take_arcs(&mut self) -> Vec<u16> {
        core::mem::take(&mut self.arcs)
    }

    /// Shows all nodes of an arc's walk, the living and the others, until `look` breaks; `arc` is a
    /// position in the list of arcs.
    pub(super) fn walk(&self, arc: usize, mut look: impl FnMut(u32) -> ControlFlow<()>) {
        let begin = &self.begins[arc * self.depth..(arc + 1) * self.depth];
        if begin.iter().try_for_each(|&number| look(number)).is_continue() {
            // Rare: a plain loop over the table's row is most of the time that joins take.
            let rest = self.ring.walk(self.arcs[arc]).skip(self.depth);
            let _ = rest.map(number_of).try_for_each(look);
        }
    }

    /// The arcs whose walk meets a newborn node early.
    pub(super) fn reach(&self, node: u32) -> core::ops::Range<usize> {
        let index = (node - self.first_unborn) as usize;
        self.reach_starts[index] as usize..self.reach_starts[index + 1] as usize
    }

    pub(super) fn reached(&self, at: usize) -> usize {
        self.reach[at] as usize
    }
}

#[cfg(test)]
mod tests {
    use copse_core::{geometry::Geometry, ring::equal_zone_cap};

    use super::*;

    /// With the dead and the unborn skipped and the cap applied, it is the core's own placement.
    #[test]
    fn skipping_the_absent_gives_the_placement_of_the_core() {
        for (nodes, zones, code) in
            [(50u32, 0u32, "10+6"), (60, 4, "10+6"), (61, 5, "4+2"), (90, 30, "20+20")]
        {
            let geometry: Geometry = code.parse().expect("a geometry");
            let total = geometry.total();
            let arcs: Vec<u16> = (0..=u16::MAX).step_by(997).collect();
            // The first ten died; as many will come later.
            let living = 10..10 + nodes;
            let view = RingView::build(arcs.clone(), 0..10 + nodes, 10 + nodes, nodes, total);
            let zone = |number: u32| if zones == 0 { 0 } else { number % zones };
            let ring = Ring::build(
                living
                    .clone()
                    .map(|number| RingMember {
                        id: id_of(number),
                        capacity_bytes: CAPACITY_BYTES,
                        zone: if zones == 0 { String::new() } else { zone(number).to_string() },
                    })
                    .collect(),
            );
            let cap = equal_zone_cap(geometry, nodes as usize, zones as usize);
            for (at, &arc) in arcs.iter().enumerate() {
                let mut mine: Vec<u32> = Vec::new();
                view.walk(at, |number| {
                    let in_zone = mine.iter().filter(|&&held| zone(held) == zone(number)).count();
                    if living.contains(&number)
                        && mine.len() < total
                        && (zones == 0 || in_zone < cap)
                    {
                        mine.push(number);
                    }
                    ControlFlow::Continue(())
                });
                let core: Vec<u32> =
                    ring.placement(arc, geometry).into_iter().map(number_of).collect();
                assert_eq!(mine, core, "{nodes} nodes, {zones} zones, {code}, arc {arc}");
            }
        }
    }

    #[test]
    fn a_newborn_knows_the_arcs_that_meet_it() {
        let arcs: Vec<u16> = (0..=u16::MAX).step_by(97).collect();
        let view = RingView::build(arcs, 0..100, 100, 50, 16);
        for node in [100, 117, 149] {
            let reached: Vec<usize> = view.reach(node).map(|at| view.reached(at)).collect();
            assert!(!reached.is_empty());
            for arc in 0..view.arcs.len() {
                let begin = &view.begins[arc * view.depth..(arc + 1) * view.depth];
                assert_eq!(begin.contains(&node), reached.contains(&arc));
            }
        }
    }
}
