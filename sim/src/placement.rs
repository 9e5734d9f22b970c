//! How evenly the core's ring loads its nodes, and how little moves when one leaves.
//!
//! Owns the studies of placement: load over tokens, zones, leaves. Owns no ring: every look-up is
//! the core's. Tokens other than the core's 64 a node are made of it: several members are one node
//! (more tokens), or members that do not count are mixed in, so that the others get fewer.

use copse_core::{
    geometry::Geometry,
    ids::NodeId,
    ring::{Ring, RingMember, TOKENS_PER_UNIT},
};

use crate::stats::spread;

const CAPACITY_BYTES: u64 = 1 << 40;

/// A network to place on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Study {
    /// Nodes of equal capacity.
    pub nodes: usize,
    /// Shards of a chunk.
    pub shards: usize,
    /// Tokens of a node: a power of two, 1 to 4096.
    pub tokens: usize,
    /// Another seed, other tokens.
    pub seed: u32,
}

/// How the load spreads.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Load {
    /// Relative standard deviation from node to node.
    pub deviation: f64,
    /// The most loaded over the mean.
    pub max: f64,
    /// The same for zones, per node of the zone; none without zones.
    pub zone_max: Option<f64>,
}

/// What a leave moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moves {
    /// Arcs of which the leaver held a shard.
    pub held: usize,
    /// Shards that changed their holder, over all arcs.
    pub moved: usize,
    /// Arcs in which more than one shard moved.
    pub arcs_with_more: usize,
}

fn id(seed: u32, number: usize) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
    bytes[8..12].copy_from_slice(&seed.to_be_bytes());
    NodeId::new(bytes)
}

fn number(id: NodeId) -> usize {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&id.as_bytes()[..8]);
    usize::try_from(u64::from_be_bytes(bytes)).unwrap_or(usize::MAX)
}

fn members(seed: u32, count: usize, zones: usize) -> Vec<RingMember> {
    let zone = |at| if zones == 0 { String::new() } else { format!("zone {}", at % zones) };
    (0..count)
        .map(|at| RingMember { id: id(seed, at), capacity_bytes: CAPACITY_BYTES, zone: zone(at) })
        .collect()
}

fn arcs() -> impl Iterator<Item = u16> {
    0..=u16::MAX
}

/// The load of a ring whose nodes have so many tokens, without zones.
pub fn load(study: Study) -> Load {
    let parts = (study.tokens / TOKENS_PER_UNIT).max(1);
    let mut members = members(study.seed, study.nodes * parts, 0);
    let ghosts_from = members.len();
    if study.tokens < TOKENS_PER_UNIT {
        for member in &mut members {
            member.capacity_bytes = CAPACITY_BYTES / TOKENS_PER_UNIT as u64 * study.tokens as u64;
        }
        // Three quarters of the ring are ghosts of full capacity: they decide what a unit is.
        members.extend((ghosts_from..4 * ghosts_from).map(|at| RingMember {
            id: id(study.seed, at),
            capacity_bytes: CAPACITY_BYTES,
            zone: String::new(),
        }));
    }
    let ring = Ring::build(members);
    let mut load = vec![0.0; study.nodes];
    let mut set = Vec::with_capacity(study.shards);
    for arc in arcs() {
        set.clear();
        for at in ring.walk(arc).map(number).filter(|&at| at < ghosts_from) {
            let node = at / parts;
            if !set.contains(&node) {
                set.push(node);
                load[node] += 1.0;
            }
            if set.len() == study.shards {
                break;
            }
        }
    }
    let (deviation, max) = spread(&load);
    Load { deviation, max, zone_max: None }
}

/// The load of the core's own placement, with its tokens and its zone caps.
pub fn placed(nodes: usize, zones: usize, geometry: Geometry, seed: u32) -> Load {
    let ring = Ring::build(members(seed, nodes, zones));
    let mut load = vec![0.0; nodes];
    for node in arcs().flat_map(|arc| ring.placement(arc, geometry)) {
        load[number(node)] += 1.0;
    }
    let (deviation, max) = spread(&load);
    let mut per_zone = vec![(0.0, 0.0); zones];
    for (at, held) in load.iter().enumerate() {
        if zones > 0 {
            per_zone[at % zones].0 += held;
            per_zone[at % zones].1 += 1.0;
        }
    }
    let per_node: Vec<f64> = per_zone.iter().map(|(held, count)| held / count).collect();
    Load { deviation, max, zone_max: (zones > 0).then(|| spread(&per_node).1) }
}

/// What moves when a node leaves the core's placement.
pub fn leave(nodes: usize, zones: usize, geometry: Geometry, seed: u32) -> Moves {
    let members = members(seed, nodes, zones);
    let before = Ring::build(members.clone());
    let gone = members[nodes / 2].id;
    let after = Ring::build(members.into_iter().filter(|member| member.id != gone).collect());
    let mut moves = Moves::default();
    for arc in arcs() {
        let old = before.placement(arc, geometry);
        let new = after.placement(arc, geometry);
        let moved = old.iter().filter(|node| !new.contains(node)).count();
        moves.held += usize::from(old.contains(&gone));
        moves.moved += moved;
        moves.arcs_with_more += usize::from(moved > 1);
    }
    moves
}

/// 1/√(n·V): what the relative deviation of the load should be. Each of n slots takes the place of
/// so many tokens more.
pub fn expected_deviation(shards: usize, tokens: usize) -> f64 {
    1.0 / ((shards * tokens) as f64).sqrt()
}
