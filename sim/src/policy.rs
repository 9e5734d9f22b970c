//! When a stripe is repaired, and when nobody is declared dead: the core's rules, by counts alone.
//!
//! Owns the way from the counts of a simulated stripe to the core's policy. Decides nothing that the
//! core decides: lines, threshold, patience and the share of a freeze are its own, and a test holds
//! the verdicts to what the core's planner does with a ring, nodes and claims. Moves no shard.

use core::time::Duration;

use copse_core::repair::Lines;

/// What is known of a stripe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// n.
    pub total: usize,
    /// Shards on nodes that answer.
    pub online: usize,
    /// These, and those on nodes that are down but not declared dead.
    pub counted: usize,
    /// For how long a shard has been missing for good, if one is.
    pub missing_for: Option<Duration>,
    /// Many are silent together.
    pub is_frozen: bool,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing, or nothing yet.
    Enough,
    /// Too few shards are within reach to rebuild any.
    Unreadable,
    /// Rebuild.
    Rebuild {
        /// All that is missing for good.
        all: bool,
        /// So many more, for the stripe is thin.
        more: usize,
    },
}

/// Whether to repair a stripe.
pub fn judge(lines: &Lines, facts: Facts) -> Verdict {
    let Facts { total, online, counted, missing_for, is_frozen } = facts;
    if online == total {
        return Verdict::Enough;
    }
    if online < lines.needed {
        return Verdict::Unreadable;
    }
    let thin_line = lines.thin_now(counted, is_frozen);
    let is_thin = online <= thin_line;
    let missing = total - counted;
    let all = missing > 0 && lines.is_due(counted, missing_for);
    if !all && !is_thin {
        return Verdict::Enough;
    }
    let made = if all { missing } else { 0 };
    let more = if is_thin { (thin_line + 1).saturating_sub(online + made) } else { 0 };
    Verdict::Rebuild { all, more }
}

/// Who is down and not yet declared dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Down {
    /// In the whole network.
    pub nodes: usize,
    /// Of how many.
    pub of_nodes: usize,
    /// In the node's zone.
    pub in_zone: usize,
    /// Of how many; 0 when it has no zone.
    pub of_zone: usize,
}

/// Whether nobody is to be declared dead now: too many went down together, or all of a zone. One
/// node alone is never a reason.
pub fn is_frozen(down: Down, share: f64) -> bool {
    let crowd = down.nodes > 1 && down.nodes as f64 > share * down.of_nodes as f64;
    let zone = down.of_zone > 1 && down.in_zone >= down.of_zone;
    crowd || zone
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use copse_core::{
        geometry::Geometry,
        ids::{ChunkId, NodeId},
        repair::{Action, ChunkFacts, Claim, Lane, NodeFacts, Nodes, Policy, Standing, plan_chunk},
        ring::{Ring, RingMember},
    };

    use super::*;
    use crate::random::Xoshiro;

    #[test]
    fn deaths_are_frozen_when_many_go_down_or_a_whole_zone() {
        let down = |nodes, of_nodes, in_zone, of_zone| {
            is_frozen(Down { nodes, of_nodes, in_zone, of_zone }, 0.15)
        };
        assert!(!down(15, 100, 0, 0) && down(16, 100, 0, 0));
        assert!(!down(1, 4, 1, 1) && down(2, 4, 0, 0));
        assert!(down(5, 100, 5, 5) && !down(5, 100, 4, 5));
    }

    struct World {
        nodes: BTreeMap<NodeId, NodeFacts>,
        is_frozen: bool,
    }

    impl Nodes for World {
        fn facts(&self, node: &NodeId) -> NodeFacts {
            self.nodes.facts(node)
        }
        fn frozen(&self) -> bool {
            self.is_frozen
        }
    }

    fn node(number: u64) -> NodeId {
        NodeId::new(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    /// Holders of a chunk die, go down or stay; the planner of the node makes as many shards as the
    /// counts alone say, in the same lane.
    #[test]
    fn the_verdicts_are_those_of_the_planner() {
        let everybody: Vec<u64> = (0..60).collect();
        let ring = |dead: &[NodeId]| {
            let members = everybody.iter().map(|&number| node(number));
            let member = |id| RingMember { id, capacity_bytes: 1 << 40, zone: String::new() };
            Ring::build(members.filter(|id| !dead.contains(id)).map(member).collect())
        };
        let whole = ring(&[]);
        let mut random = Xoshiro::new(1, "planner");
        let mut rebuilt = 0;
        for case in 0..3000u64 {
            let code = ["10+6", "4+2", "8+4", "20+20", "2+2"][random.below(5)];
            let geometry: Geometry = code.parse().expect("a geometry");
            let chunk = ChunkId::new(*blake3::hash(&case.to_le_bytes()).as_bytes());
            let arc = Ring::arc(&chunk);
            let holders = whole.placement(arc, geometry);
            let (dying, downing) = (random.unit() * 0.5, random.unit() * 0.5);
            let alive = NodeFacts::standing(Standing::Alive);
            let mut nodes: BTreeMap<NodeId, NodeFacts> =
                everybody.iter().map(|&number| (node(number), alive)).collect();
            let mut dead = Vec::new();
            let mut down = 0;
            for holder in &holders {
                let standing = if random.chance(dying) {
                    dead.push(*holder);
                    Standing::Dead
                } else if random.chance(downing) {
                    down += 1;
                    Standing::Down
                } else {
                    Standing::Alive
                };
                nodes.insert(*holder, NodeFacts::standing(standing));
            }
            let counted = geometry.total() - dead.len();
            let missing_for = (!dead.is_empty())
                .then(|| Duration::from_secs(3600 * [1, 23, 24, 100][random.below(4)]));
            let facts = Facts {
                total: geometry.total(),
                online: counted - down,
                counted,
                missing_for,
                is_frozen: random.chance(0.3),
            };
            let claims = holders
                .into_iter()
                .zip(geometry.indices())
                .filter(|(node, _)| !dead.contains(node))
                .map(|(node, index)| Claim { node, index })
                .collect();
            let known = ChunkFacts { chunk, geometry, shard_bytes: 1, claims, missing_for };
            let world = World { nodes, is_frozen: facts.is_frozen };
            let policy = Policy::default();
            let plan = plan_chunk(&ring(&dead), &world, &known, &policy);
            let planned = plan.actions.iter().find_map(|action| match action {
                Action::Rebuild { lane, make, .. } => Some((*lane, make.len())),
                _ => None,
            });
            let lines = policy.lines(geometry);
            let expected = match judge(&lines, facts) {
                Verdict::Enough | Verdict::Unreadable => None,
                Verdict::Rebuild { all, more } => {
                    let is_thin = facts.online <= lines.thin_now(facts.counted, facts.is_frozen);
                    let lane = if is_thin { Lane::Emergency } else { Lane::Normal };
                    Some((lane, more + if all { dead.len() } else { 0 }))
                }
            };
            rebuilt += usize::from(planned.is_some());
            assert_eq!(planned, expected, "case {case}: {code} {facts:?}\n{plan:?}");
        }
        assert!((500..2500).contains(&rebuilt), "{rebuilt} rebuilt");
    }
}
