//! The core's ring, seen by a simulation in which nodes come and go by the hundred thousand.
//!
//! Owns the beginnings of all walks, which of their nodes are on the ring, and who joins which. Places
//! nothing by itself. The one idea: the ring of the living is the ring of everybody without the dead and
//! the unborn (a node's tokens depend on its id alone), so one ring serves for as many joins as there
//! are nodes, and a join or a death flips a bit in each walk that meets the node early: who is among
//! the first n is a count of bits, not a walk.

use core::ops::ControlFlow;

use copse_core::{
    ids::NodeId,
    ring::{Ring, RingMember, TOKENS_PER_UNIT},
};

use super::stripes::NONE;

/// Any power of two: all nodes are equal and have 64 tokens.
const CAPACITY_BYTES: u64 = 1 << 40;

/// Nodes of a walk's beginning that share a word of bits.
const WORD: usize = u64::BITS as usize;

pub(super) struct RingView {
    ring: Ring,
    arcs: Vec<u16>,
    /// Nodes in a walk's beginning.
    depth: usize,
    /// Words for each.
    words: usize,
    /// For each arc the first `depth` nodes of its walk, filled up to whole words: place p is in the
    /// walk of arc p / (64 · words).
    begins: Vec<u32>,
    /// For each place whether its node is on the ring.
    on_ring: Vec<u64>,
    /// The numbers that were born before the view, ascending.
    born: Vec<u32>,
    first_unborn: u32,
    /// For each of the born and then of the unborn, where its places are in `places`.
    place_starts: Vec<u32>,
    /// All places of all nodes.
    places: Vec<u32>,
    /// See [`RingView::steps_of_build`].
    steps_of_build: u64,
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
    /// The ring of those who were born and of the next `unborn` numbers, seen from these arcs. Of the
    /// born, those are on the ring for whom `is_on_ring`; of the unborn none.
    pub(super) fn build(
        arcs: Vec<u16>,
        mut born: Vec<u32>,
        first_unborn: u32,
        unborn: u32,
        wanted: usize,
        is_on_ring: impl Fn(u32) -> bool,
    ) -> Self {
        born.sort_unstable();
        let numbers = born.iter().copied().chain(first_unborn..first_unborn + unborn);
        let members: Vec<RingMember> = numbers
            .clone()
            .map(|number| RingMember {
                id: id_of(number),
                capacity_bytes: CAPACITY_BYTES,
                zone: String::new(),
            })
            .collect();
        // Half of them live: four times as many as are wanted nearly always suffice.
        let count = members.len();
        let depth = (4 * wanted).min(count);
        let words = depth.div_ceil(WORD);
        let ring = Ring::build(members);
        let mut begins = vec![NONE; arcs.len() * words * WORD];
        for (begin, &arc) in begins.chunks_exact_mut((words * WORD).max(1)).zip(&arcs) {
            for (place, id) in begin.iter_mut().zip(ring.walk(arc).take(depth)) {
                *place = number_of(id);
            }
        }
        // Positions in `numbers`, for this loop only: a table by number is as long as all lives.
        let mut index_of = vec![0u32; (first_unborn + unborn) as usize];
        for (index, number) in (0u32..).zip(numbers) {
            index_of[number as usize] = index;
        }
        let met = || (0u32..).zip(&begins).filter(|(_, number)| **number != NONE);
        let mut counts = vec![0u32; count + 1];
        for (_, &number) in met() {
            counts[index_of[number as usize] as usize + 1] += 1;
        }
        for index in 1..counts.len() {
            counts[index] += counts[index - 1];
        }
        let place_starts = counts.clone();
        let mut places = vec![0; place_starts[count] as usize];
        let mut on_ring = vec![0u64; arcs.len() * words];
        for (place, &number) in met() {
            let at = &mut counts[index_of[number as usize] as usize];
            places[*at as usize] = place;
            *at += 1;
            if number < first_unborn && is_on_ring(number) {
                on_ring[place as usize / WORD] |= 1 << (place as usize % WORD);
            }
        }
        let tokens = (count * TOKENS_PER_UNIT) as u64;
        let steps_of_build = tokens * u64::from(tokens.max(1).ilog2()) + places.len() as u64;
        Self {
            ring,
            arcs,
            depth,
            words,
            begins,
            on_ring,
            born,
            first_unborn,
            place_starts,
            places,
            steps_of_build,
        }
    }

    /// Takes the arcs back, to build the next view.
    pub(super) fn take_arcs(&mut self) -> Vec<u16> {
        core::mem::take(&mut self.arcs)
    }

    /// What it took to build: for each token its logarithm, since they are sorted, and one for each
    /// place.
    pub(super) fn steps_of_build(&self) -> u64 {
        self.steps_of_build
    }

    /// A node of the view comes to the ring or leaves it. Returns how many places that concerns.
    pub(super) fn put_on_ring(&mut self, node: u32, on: bool) -> u64 {
        let places = self.places(node);
        for &place in &self.places[places.clone()] {
            let (word, bit) =
                (&mut self.on_ring[place as usize / WORD], 1 << (place as usize % WORD));
            *word = if on { *word | bit } else { *word & !bit };
        }
        places.len() as u64
    }

    /// Shows the nodes of an arc's walk until `look` breaks: those who are on the ring and, far out,
    /// the others as well; `arc` is a position in the list of arcs. Returns how many it has shown.
    pub(super) fn walk(&self, arc: usize, mut look: impl FnMut(u32) -> ControlFlow<()>) -> u64 {
        let mut shown = 0;
        let mut show = |number| {
            shown += 1;
            look(number)
        };
        let words = arc * self.words..(arc + 1) * self.words;
        for (word, &on_ring) in words.clone().zip(&self.on_ring[words]) {
            let mut left = on_ring;
            while left != 0 {
                let place = word * WORD + left.trailing_zeros() as usize;
                left &= left - 1;
                if show(self.begins[place]).is_break() {
                    return shown;
                }
            }
        }
        // Rare: the beginning of the walk is nearly always enough.
        let rest = self.ring.walk(self.arcs[arc]).skip(self.depth);
        let _ = rest.map(number_of).try_for_each(show);
        shown
    }

    /// The places of a node, as positions that [`place`](Self::place) takes: one in each arc whose walk
    /// meets it early. A node that is not in the view has none.
    pub(super) fn places(&self, node: u32) -> core::ops::Range<usize> {
        let index = match node.checked_sub(self.first_unborn) {
            Some(unborn) => self.born.len() + unborn as usize,
            None => match self.born.binary_search(&node) {
                Ok(index) => index,
                Err(_) => return 0..0,
            },
        };
        self.place_starts[index] as usize..self.place_starts[index + 1] as usize
    }

    /// (arc, how many are on the ring before the node on its walk).
    pub(super) fn place(&self, at: usize) -> (usize, usize) {
        let place = self.places[at] as usize;
        let (arc, last) = (place / WORD / self.words, place / WORD);
        let before = self.on_ring[last] & ((1 << (place % WORD)) - 1);
        let words = &self.on_ring[arc * self.words..last];
        let bits: u32 = words.iter().map(|word| word.count_ones()).sum();
        (arc, (bits + before.count_ones()) as usize)
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
            let born = (0..10 + nodes).collect();
            let on_ring = |number| living.contains(&number) && number != 10;
            let mut view = RingView::build(arcs.clone(), born, 10 + nodes, nodes, total, on_ring);
            // One comes to the ring later, one comes and goes.
            for (node, on) in [(10, true), (10 + nodes, true), (10 + nodes, false)] {
                assert!(view.put_on_ring(node, on) > 0);
            }
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
    fn a_node_knows_the_arcs_that_meet_it_and_who_is_before_it() {
        for wanted in [16, 40] {
            let arcs: Vec<u16> = (0..=u16::MAX).step_by(97).collect();
            let mut view =
                RingView::build(arcs, (0..200).collect(), 200, 50, wanted, |number| number % 3 > 0);
            view.put_on_ring(211, true);
            let is_on_ring =
                |number: u32| number == 211 || number < 200 && !number.is_multiple_of(3);
            for node in [0, 100, 199, 200, 211, 249] {
                let met: Vec<(usize, usize)> = view.places(node).map(|at| view.place(at)).collect();
                let mut expected = Vec::new();
                for (arc, &number) in view.arcs.iter().enumerate() {
                    let walk: Vec<u32> =
                        view.ring.walk(number).take(4 * wanted).map(number_of).collect();
                    if let Some(at) = walk.iter().position(|&other| other == node) {
                        let before = walk[..at].iter().filter(|&&other| is_on_ring(other));
                        expected.push((arc, before.count()));
                    }
                }
                assert!(!met.is_empty());
                assert_eq!(met, expected, "node {node} of {wanted} wanted");
            }
            assert_eq!(view.put_on_ring(7, false), view.places(7).len() as u64);
        }
    }
}
