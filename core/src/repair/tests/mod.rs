//! A network in miniature for the planner's tests: nodes, chunks, and plans carried out.
//!
//! Owns the rules of the game: what an executor could do at all, and what no action may ever do.
//! The one idea: what the planner promises is checked at every single action.

mod convergence;
mod movement;
mod queue;
mod rules;

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{
    geometry::Geometry,
    ids::{ChunkId, NodeId, ShardIndex},
    ring::{Ring, RingMember},
};

const SHARD_BYTES: u64 = 786_432;

fn node(number: u64) -> NodeId {
    NodeId::new(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn member(number: u64, zone: &str) -> RingMember {
    RingMember { id: node(number), capacity_bytes: 1 << 40, zone: zone.to_owned() }
}

fn ring_of(numbers: impl IntoIterator<Item = u64>) -> Ring {
    Ring::build(numbers.into_iter().map(|number| member(number, "")).collect())
}

fn chunk_id(number: u64) -> ChunkId {
    ChunkId::new(*blake3::hash(&(number << 32).to_le_bytes()).as_bytes())
}

/// A chunk as it is after a put: every shard where the ring says.
fn placed(ring: &Ring, geometry: Geometry, number: u64) -> ChunkFacts {
    let chunk = chunk_id(number);
    let holders = ring.placement(Ring::arc(&chunk), geometry);
    let claims =
        holders.into_iter().zip(geometry.indices()).map(|(node, index)| Claim { node, index });
    let claims = claims.collect();
    ChunkFacts { chunk, geometry, shard_bytes: SHARD_BYTES, claims, missing_for: None }
}

/// All members alive and with room.
fn all_alive(ring: &Ring) -> BTreeMap<NodeId, NodeFacts> {
    let alive = NodeFacts::standing(Standing::Alive);
    ring.members().iter().map(|member| (member.id, alive)).collect()
}

fn plan(ring: &Ring, nodes: &BTreeMap<NodeId, NodeFacts>, chunk: &ChunkFacts) -> ChunkPlan {
    plan_chunk(ring, nodes, chunk, &Policy::default())
}

fn set(nodes: &mut BTreeMap<NodeId, NodeFacts>, node: NodeId, standing: Standing) {
    nodes.entry(node).or_insert(NodeFacts::standing(standing)).standing = standing;
}

/// How many times each node is in the list.
fn counts(nodes: impl IntoIterator<Item = NodeId>) -> BTreeMap<NodeId, usize> {
    let mut counts = BTreeMap::new();
    for node in nodes {
        *counts.entry(node).or_default() += 1;
    }
    counts
}

/// How many slots the second placement has that the first has not.
fn slots_changed(before: &[NodeId], after: &[NodeId]) -> usize {
    let had = counts(before.iter().copied());
    counts(after.iter().copied())
        .into_iter()
        .map(|(node, count)| count.saturating_sub(had.get(&node).copied().unwrap_or(0)))
        .sum()
}

fn makes(plan: &ChunkPlan) -> &[(ShardIndex, NodeId)] {
    match plan.actions.first() {
        Some(Action::Rebuild { make, .. }) => make,
        _ => &[],
    }
}

fn lane(plan: &ChunkPlan) -> Option<Lane> {
    plan.actions.iter().find_map(|action| match action {
        Action::Rebuild { lane, .. } => Some(*lane),
        _ => None,
    })
}

/// Carries one action out, as an executor would, and checks that it could and may be done.
fn carry_out(
    ring: &Ring,
    nodes: &BTreeMap<NodeId, NodeFacts>,
    chunk: &mut ChunkFacts,
    action: &Action,
) {
    let sure_before = strength(ring, nodes, chunk).sure;
    let holds = |chunk: &ChunkFacts, index, node| chunk.claims.contains(&Claim { node, index });
    let readable = |chunk: &ChunkFacts, index, node| {
        let facts = nodes.facts(&node);
        assert!(facts.trusted && facts.standing.is_reachable(), "{node:?}: {facts:?}");
        assert!(holds(chunk, index, node), "{node:?} does not hold {index}");
    };
    let arc = Ring::arc(&chunk.chunk);
    let takes = |chunk: &mut ChunkFacts, index, node| {
        assert!(ring.may_hold(arc, chunk.geometry, &node), "{node:?} is not looked at for {index}");
        let facts = nodes.facts(&node);
        assert!(facts.trusted && facts.room != Room::Full, "{node:?}: {facts:?}");
        assert!(matches!(facts.standing, Standing::Alive | Standing::Suspect));
        assert!(!holds(chunk, index, node), "{node:?} holds {index} already");
        chunk.claims.push(Claim { node, index });
    };
    match action {
        Action::Rebuild { sources, make, .. } => {
            let needed = chunk.geometry.data();
            let mut first: Vec<_> = sources.iter().take(needed).map(|source| source.0).collect();
            first.sort_unstable();
            first.dedup();
            assert_eq!(first.len(), needed, "the first k sources are of different indices");
            assert!(!make.is_empty());
            sources.iter().for_each(|&(index, node)| readable(chunk, index, node));
            make.iter().for_each(|&(index, node)| takes(chunk, index, node));
        }
        Action::Copy { index, from, to } => {
            readable(chunk, *index, *from);
            takes(chunk, *index, *to);
        }
        Action::Drop { index, node, kept_by } => {
            readable(chunk, *index, *node);
            assert_eq!(nodes.facts(kept_by).standing, Standing::Alive);
            assert!(holds(chunk, *index, *kept_by) && node != kept_by);
            // What the holder checks by its own ring.
            assert!(
                ring.may_hold(arc, chunk.geometry, kept_by),
                "{kept_by:?} may not keep {index}"
            );
            let slots = ring.placement(arc, chunk.geometry);
            let given = slots.iter().filter(|slot| *slot == node).count();
            let held = chunk.claims.iter().filter(|claim| claim.node == *node).count();
            assert!(held > given, "{node:?} is entitled to {index}");
            chunk.claims.retain(|claim| (claim.node, claim.index) != (*node, *index));
        }
    }
    let sure = strength(ring, nodes, chunk).sure;
    assert!(sure >= sure_before, "{action:?} left {sure} of {sure_before} shards within reach");
}

/// Plans and carries out until there is nothing to do. Returns the rounds it took.
fn settle(
    ring: &Ring,
    nodes: &BTreeMap<NodeId, NodeFacts>,
    chunk: &mut ChunkFacts,
    mut see: impl FnMut(&Action),
) -> usize {
    for round in 0..10 {
        let plan = plan(ring, nodes, chunk);
        if plan.actions.is_empty() {
            return round;
        }
        for action in &plan.actions {
            see(action);
            carry_out(ring, nodes, chunk, action);
        }
    }
    panic!("there is still something to do: {:?}", plan(ring, nodes, chunk));
}

/// Checks that every index is held once, by as many nodes as often as the ring says.
fn assert_as_placed(ring: &Ring, chunk: &ChunkFacts) {
    let mut indices: Vec<_> = chunk.claims.iter().map(|claim| claim.index).collect();
    indices.sort_unstable();
    assert!(indices.into_iter().eq(chunk.geometry.indices()), "{:?}", chunk.claims);
    let slots = ring.placement(Ring::arc(&chunk.chunk), chunk.geometry);
    assert_eq!(counts(chunk.claims.iter().map(|claim| claim.node)), counts(slots));
}
