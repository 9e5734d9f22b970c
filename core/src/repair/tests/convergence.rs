//! From any state, repeated plans end where the ring says, and no step makes anything worse.

use core::time::Duration;

use proptest::prelude::*;

use super::{
    super::{assign::Homes, held::Holdings},
    *,
};
use crate::{random::Random, ring::HELD_WITHIN_PER_SHARD, testing::geometry};

/// A network in some state: who is on the ring, how everybody stands, who holds what.
#[derive(Clone, Debug)]
struct State {
    code: &'static str,
    on_ring: u64,
    zones: u64,
    /// Of nodes 0..30: standing, room, trusted.
    facts: Vec<(u8, u8, u8)>,
    /// Node, index.
    claims: Vec<(u64, u8)>,
    seed: u8,
}

fn states() -> impl Strategy<Value = State> {
    let code = prop_oneof![4 => Just("10+6"), 1 => Just("4+2"), 1 => Just("1+6"), 1 => Just("2+1"),
            1 => Just("1+1"), 1 => Just("1+2"), 1 => Just("20+20")];
    (
        code,
        1u64..28,
        0u64..6,
        prop::collection::vec((0u8..12, 0u8..6, 0u8..12), 30),
        prop::collection::vec((0u64..30, any::<u8>()), 0..90),
        any::<u8>(),
    )
        .prop_map(|(code, on_ring, zones, facts, claims, seed)| State {
            code,
            on_ring,
            zones,
            facts,
            claims,
            seed,
        })
}

impl State {
    fn ring(&self) -> Ring {
        let zone = |at: u64| match self.zones {
            0 => String::new(),
            zones => format!("z{}", at % zones),
        };
        Ring::build((0..self.on_ring).map(|at| member(at, &zone(at))).collect())
    }

    /// Most are well.
    fn troubled(&self) -> BTreeMap<NodeId, NodeFacts> {
        let node_facts = |facts: &(u8, u8, u8)| NodeFacts {
            standing: match facts.0 {
                0 | 1 => Standing::Down,
                2 => Standing::Suspect,
                3 => Standing::Leaving,
                4 => Standing::Dead,
                _ => Standing::Alive,
            },
            room: match facts.1 {
                0 => Room::Full,
                1 => Room::Tight,
                _ => Room::Free,
            },
            trusted: facts.2 > 0,
        };
        (0..).zip(&self.facts).map(|(at, facts)| (node(at), node_facts(facts))).collect()
    }

    fn chunk(&self, ring: &Ring) -> ChunkFacts {
        let code = geometry(self.code);
        let mut chunk = placed(ring, code, self.seed.into());
        // Half of the shards where they belong, the rest anywhere, several times or not at all.
        let mut random = Random::new(&[self.seed; 32], "state");
        chunk.claims.retain(|_| random.below(2) == 0);
        let total = code.total();
        chunk.claims.extend(self.claims.iter().map(|(number, index)| {
            let index = u8::try_from(usize::from(*index) % total).expect("below 255");
            Claim { node: node(*number), index: ShardIndex(index) }
        }));
        chunk.claims.sort_unstable();
        chunk.claims.dedup();
        chunk.missing_for = Some(Duration::from_secs(48 * 3600));
        chunk
    }
}

/// Checks that of no shard which its own node cannot take all holders have too many, while a node with
/// room has not.
fn assert_nobody_is_crowded_in_vain(
    ring: &Ring,
    nodes: &BTreeMap<NodeId, NodeFacts>,
    chunk: &ChunkFacts,
) {
    let (arc, code) = (Ring::arc(&chunk.chunk), chunk.geometry);
    let placement = ring.placement(arc, code);
    let holdings = Holdings::of(chunk, nodes);
    let homes = Homes::assign(&placement, &holdings, nodes);
    let is_crowded = |node: &NodeId| {
        let slots = placement.iter().filter(|slot| *slot == node).count();
        holdings.count_on(node) > slots.max(code.apart())
    };
    for index in code.indices().filter(|index| !homes.is_home(*index)) {
        let holders = holdings.holders(index);
        let mut stay = holders
            .iter()
            .filter(|held| held.is_sure() && held.standing != Standing::Leaving)
            .peekable();
        if stay.peek().is_none() || !stay.all(|held| is_crowded(&held.node)) {
            continue;
        }
        let fit = ring.around(arc, code, HELD_WITHIN_PER_SHARD).find(|node| {
            nodes.facts(node) == NodeFacts::standing(Standing::Alive)
                && holdings.count_on(node) < code.apart()
                && !holders.iter().any(|held| held.node == *node)
        });
        assert_eq!(fit, None, "shard {index} stays crowded: {:?}", chunk.claims);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn any_state_comes_to_rest_where_the_ring_says(state in states()) {
        let ring = state.ring();
        let mut chunk = state.chunk(&ring);

        // While there is trouble: a few rounds to a rest, some actions failing or being late.
        let nodes = state.troubled();
        let mut random = Random::new(&[state.seed; 32], "trouble");
        for _ in 0..3 {
            let plan = plan(&ring, &nodes, &chunk);
            let count = random.below(plan.actions.len() + 1);
            for action in random.choose(&plan.actions, count) {
                carry_out(&ring, &nodes, &mut chunk, action);
            }
        }
        let rounds = settle(&ring, &nodes, &mut chunk, |_| ());
        prop_assert!(rounds <= 4, "{} rounds in trouble", rounds);
        assert_nobody_is_crowded_in_vain(&ring, &nodes, &chunk);

        // Then everybody on the ring is well; some others have gone, some still hold something.
        let mut nodes = all_alive(&ring);
        for number in state.on_ring..30 {
            let standings = [Standing::Leaving, Standing::Alive, Standing::Dead];
            set(&mut nodes, node(number), standings[random.below(3)]);
        }
        chunk.claims.retain(|claim| nodes.facts(&claim.node).standing != Standing::Dead);
        if strength(&ring, &nodes, &chunk).sure < chunk.geometry.data() {
            let skips = plan(&ring, &nodes, &chunk).skips;
            let is_lost = skips.iter().any(|skip| matches!(skip, Skip::NotEnough { .. }));
            prop_assert!(is_lost, "{:?}", skips);
            return Ok(());
        }
        // A rebuild and the copies, then the drops.
        let rounds = settle(&ring, &nodes, &mut chunk, |_| ());
        prop_assert!(rounds <= 2, "{} rounds", rounds);
        assert_as_placed(&ring, &chunk);
        prop_assert_eq!(plan(&ring, &nodes, &chunk).skips, vec![]);
    }
}
