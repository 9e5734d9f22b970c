//! How much is moved when nodes come, go, die and return: figures against the least possible.

use core::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{random::Random, testing::geometry};

const CHUNKS: u64 = 400;

/// (shards copied, shards dropped); nothing may be rebuilt.
fn copied_and_dropped(
    ring: &Ring,
    nodes: &BTreeMap<NodeId, NodeFacts>,
    chunk: &mut ChunkFacts,
) -> (usize, usize) {
    let (mut copied, mut dropped) = (0, 0);
    settle(ring, nodes, chunk, |action| match action {
        Action::Copy { .. } => copied += 1,
        Action::Drop { .. } => dropped += 1,
        Action::Rebuild { .. } => panic!("{action:?}: nothing is missing"),
    });
    (copied, dropped)
}

#[test]
fn a_join_moves_no_more_than_the_ring_changed() {
    for code in ["10+6", "5+3", "1+6"].map(geometry) {
        for count in [2, 5, 8, 16, 17, 23, 32, 48, 64] {
            let (before, after) = (ring_of(0..count), ring_of(0..count + 1));
            let nodes = all_alive(&after);
            let (mut moved, mut least) = (0, 0);
            for number in 0..CHUNKS {
                let mut chunk = placed(&before, code, number);
                let arc = Ring::arc(&chunk.chunk);
                least += slots_changed(&before.placement(arc, code), &after.placement(arc, code));
                let (copied, dropped) = copied_and_dropped(&after, &nodes, &mut chunk);
                assert_eq!(copied, dropped);
                assert_as_placed(&after, &chunk);
                moved += copied;
            }
            assert!(least > 0);
            assert_eq!(moved, least, "{code} joining {count}: 1.000 times the least possible");
        }
    }
}

#[test]
fn a_join_after_years_of_joins_and_leaves_moves_no_more_than_the_ring_changed() {
    // Indices are anywhere by now. The network is a different half of 60 nodes each time.
    let code = geometry("10+6");
    let networks: Vec<Vec<u64>> = (0..8u64)
        .map(|turn| (0..60).filter(|number| (number * 7 + turn * 13) % 5 < 3).collect())
        .collect();
    let (mut moved, mut least) = (0, 0);
    for number in 0..100 {
        let mut ring = ring_of(networks[0].iter().copied());
        let mut chunk = placed(&ring, code, number);
        let arc = Ring::arc(&chunk.chunk);
        for network in &networks[1..] {
            let before = ring.placement(arc, code);
            ring = ring_of(network.iter().copied());
            least += slots_changed(&before, &ring.placement(arc, code));
            let mut nodes = all_alive(&ring);
            // Who left still serves until its shards are elsewhere.
            for claim in &chunk.claims {
                nodes.entry(claim.node).or_insert(NodeFacts::standing(Standing::Leaving));
            }
            moved += copied_and_dropped(&ring, &nodes, &mut chunk).0;
            assert_as_placed(&ring, &chunk);
        }
    }
    assert_eq!(moved, least);
    assert!(moved > 2_500, "{moved}");
}

#[test]
fn a_leave_copies_exactly_the_shards_of_the_one_who_leaves() {
    for code in ["10+6", "5+3"].map(geometry) {
        for count in [9, 17, 24, 40, 64] {
            let gone = node(3);
            let before = ring_of(0..count);
            let after = ring_of((0..count).filter(|number| *number != 3));
            let mut nodes = all_alive(&after);
            set(&mut nodes, gone, Standing::Leaving);
            let (mut own, mut copied) = (0, 0);
            for number in 0..CHUNKS {
                let mut chunk = placed(&before, code, number);
                own += chunk.claims.iter().filter(|claim| claim.node == gone).count();
                settle(&after, &nodes, &mut chunk, |action| match action {
                    Action::Copy { from, .. } => {
                        assert_eq!(*from, gone);
                        copied += 1;
                    }
                    Action::Drop { node, .. } => assert_eq!(*node, gone),
                    Action::Rebuild { .. } => panic!("{action:?}: nothing is missing"),
                });
                assert_as_placed(&after, &chunk);
            }
            assert!(own > 0);
            assert_eq!(copied, own, "{code}, one of {count} leaves");
        }
    }
}

#[test]
fn a_home_behind_a_large_zone_is_reached_when_a_node_joins_and_when_one_leaves() {
    // Thirty nodes in one zone, the 31st to 33rd in another, which every chunk needs one of.
    let code = geometry("1+1");
    let ring = |numbers: &[u64]| {
        let zone = |number: u64| if number < 30 { "barn" } else { "attic" };
        Ring::build(numbers.iter().map(|&number| member(number, zone(number))).collect())
    };
    let all: Vec<u64> = (0..33).collect();
    let but_one: Vec<u64> = (0..33).filter(|number| *number != 31).collect();
    let (less, full) = (ring(&but_one), ring(&all));
    let mut far = 0;
    for (before, after) in [(&less, &full), (&full, &less)] {
        let mut nodes = all_alive(&full);
        if after.len() < before.len() {
            set(&mut nodes, node(31), Standing::Leaving);
        }
        for number in 0..CHUNKS {
            let mut chunk = placed(before, code, number);
            let near: Vec<NodeId> =
                after.walk(Ring::arc(&chunk.chunk)).take(3 * code.total()).collect();
            settle(after, &nodes, &mut chunk, |action| {
                let Action::Copy { to, .. } = action else { return };
                far += usize::from(!near.contains(to));
            });
            assert_as_placed(after, &chunk);
        }
    }
    assert!(far > 100, "{far} copies went further than three nodes for each shard");
}

#[test]
fn of_dead_nodes_exactly_their_shards_are_rebuilt_together_reading_k() {
    let code = geometry("10+6");
    let before = ring_of(0..40);
    let dead = [node(3), node(17), node(21), node(34), node(38)];
    let after = ring_of((0..40).filter(|number| !dead.contains(&node(*number))));
    let mut nodes = all_alive(&after);
    dead.iter().for_each(|dead| set(&mut nodes, *dead, Standing::Dead));
    let (mut jobs, mut read, mut made_in_all) = (0, 0, 0usize);
    for number in 0..CHUNKS {
        let mut chunk = placed(&before, code, number);
        let of_the_dead = |chunk: &ChunkFacts| -> Vec<ShardIndex> {
            let lost = chunk.claims.iter().filter(|claim| dead.contains(&claim.node));
            lost.map(|claim| claim.index).collect()
        };
        let lost = of_the_dead(&chunk);
        // What is missing for short waits until three are; what is missing for long does not.
        let waits = plan(&after, &nodes, &chunk);
        assert_eq!(waits.actions.is_empty(), lost.len() < 3, "{waits:?}");
        chunk.missing_for = (!lost.is_empty()).then_some(Duration::from_secs(24 * 3600));
        let acts = plan(&after, &nodes, &chunk);
        let made: Vec<ShardIndex> = makes(&acts).iter().map(|made| made.0).collect();
        assert_eq!(made, lost, "all at once, and nothing else");
        assert_eq!(acts.actions.len(), usize::from(!lost.is_empty()));
        read += acts.traffic(&chunk).read_bytes / SHARD_BYTES;
        jobs += acts.actions.len();
        made_in_all += made.len();
        chunk.claims.retain(|claim| !dead.contains(&claim.node));
        assert!(settle(&after, &nodes, &mut chunk, |_| ()) <= 1);
        assert_as_placed(&after, &chunk);
    }
    assert_eq!(read, 10 * jobs as u64);
    assert!(jobs > 300 && made_in_all > jobs * 9 / 5, "{jobs} {made_in_all}");
}

#[test]
fn a_node_that_is_down_and_comes_back_moves_nothing() {
    let code = geometry("10+6");
    let ring = ring_of(0..24);
    for number in 0..CHUNKS {
        let chunk = placed(&ring, code, number);
        let mut nodes = all_alive(&ring);
        for standing in [Standing::Suspect, Standing::Down, Standing::Alive] {
            set(&mut nodes, node(3), standing);
            let plan = plan(&ring, &nodes, &chunk);
            assert!(plan.actions.is_empty(), "{plan:?}");
        }
    }
}

#[test]
fn with_half_of_the_nodes_down_only_thin_chunks_are_touched_and_only_as_far_as_needed() {
    let code = geometry("10+6");
    // By chance, and a whole one of two zones.
    for zones in [false, true] {
        let zone = |number: u64| match zones {
            true => format!("z{}", number % 2),
            false => String::new(),
        };
        let ring = Ring::build((0..100).map(|at| member(at, &zone(at))).collect());
        let mut nodes = all_alive(&ring);
        (0..100).step_by(2).for_each(|at| set(&mut nodes, node(at), Standing::Down));
        let (mut unreadable, mut emergencies, mut made) = (0, 0, 0);
        for number in 0..2000 {
            let mut chunk = placed(&ring, code, number);
            let plan = plan(&ring, &nodes, &chunk);
            let sure = plan.strength.sure;
            assert_eq!(plan.strength.hoped, 16);
            match sure {
                0..10 => {
                    assert!(plan.actions.is_empty(), "{plan:?}");
                    assert!(matches!(plan.skips[..], [Skip::WaitingForDown { .. }]));
                    unreadable += 1;
                }
                10..=12 => {
                    assert_eq!(lane(&plan), Some(Lane::Emergency));
                    assert_eq!(makes(&plan).len(), 13 - sure);
                    assert_eq!(plan.actions.len(), 1);
                    emergencies += 1;
                    made += makes(&plan).len();
                    carry_out(&ring, &nodes, &mut chunk, &plan.actions[0]);
                    assert!(super::plan(&ring, &nodes, &chunk).actions.is_empty(), "once");
                }
                _ => assert!(plan.actions.is_empty(), "{plan:?}"),
            }
        }
        if zones {
            assert_eq!((unreadable, emergencies), (2000, 0), "eight of sixteen are left");
        } else {
            // 77 % have fewer than 10 of 16 left, 21 % have 10 to 12.
            assert!((1440..1660).contains(&unreadable), "{unreadable}");
            assert!((330..540).contains(&emergencies), "{emergencies}");
            // Of 32,000 shards; repairing all that is down would make 16,000.
            assert!(made < 1300, "{made}");
        }
    }
}

#[test]
fn a_returning_node_keeps_its_shard_and_its_substitute_drops_it() {
    let code = geometry("10+6");
    let ring = ring_of(0..40);
    let mut dropped = 0;
    for number in 0..CHUNKS {
        let mut chunk = placed(&ring, code, number);
        let original = chunk.claims.clone();
        let mut nodes = all_alive(&ring);
        for claim in &original[..5] {
            set(&mut nodes, claim.node, Standing::Down);
        }
        let emergency = plan(&ring, &nodes, &chunk);
        assert_eq!(makes(&emergency).len(), 2);
        carry_out(&ring, &nodes, &mut chunk, &emergency.actions[0]);
        for back in 0..5 {
            set(&mut nodes, original[back].node, Standing::Alive);
            settle(&ring, &nodes, &mut chunk, |action| {
                let Action::Drop { node, kept_by, .. } = action else { panic!("{action:?}") };
                assert!(original.iter().all(|claim| claim.node != *node));
                assert_eq!(*kept_by, original[back].node);
                dropped += 1;
            });
        }
        chunk.claims.sort_unstable();
        let mut expected = original;
        expected.sort_unstable();
        assert_eq!(chunk.claims, expected);
    }
    assert_eq!(dropped, 2 * CHUNKS);
}

/// The network as one node sees it.
struct Seen {
    nodes: BTreeMap<NodeId, NodeFacts>,
    returning: Option<Duration>,
}

impl Nodes for Seen {
    fn facts(&self, node: &NodeId) -> NodeFacts {
        self.nodes.facts(node)
    }
    fn returning(&self) -> Option<Duration> {
        self.returning
    }
}

#[test]
fn a_substitute_is_kept_while_nodes_are_coming_back() {
    let code = geometry("1+1");
    let ring = ring_of(0..10);
    let mut chunk = placed(&ring, code, 7);
    let original = chunk.claims[1].node;
    let mut nodes = all_alive(&ring);
    set(&mut nodes, original, Standing::Down);
    let emergency = plan(&ring, &nodes, &chunk);
    carry_out(&ring, &nodes, &mut chunk, &emergency.actions[0]);
    set(&mut nodes, original, Standing::Alive);
    let settle = Duration::from_secs(300);
    let seen = Seen { nodes: nodes.clone(), returning: Some(settle) };
    let waits = plan_chunk(&ring, &seen, &chunk, &Policy::default());
    let (index, holder) = makes(&emergency)[0];
    let expected = Skip::SurplusWaits { index, holder, home: original, settle };
    assert_eq!((waits.actions, waits.skips), (vec![], vec![expected]));
    let drop = Action::Drop { index, node: holder, kept_by: original };
    assert_eq!(plan(&ring, &nodes, &chunk).actions, [drop]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Those who were away are heard by each of the others at a moment of its own. Whoever holds
    /// itself for the steward meanwhile, nothing is made that was there.
    #[test]
    fn what_one_steward_drops_the_next_does_not_make_again(
        code in prop_oneof![Just("1+1"), Just("2+1"), Just("3+3"), Just("10+6")],
        number in 0u64..1000,
        seed in any::<u8>(),
    ) {
        /// Moments until all are heard by all.
        const SETTLE: usize = 8;
        let code = geometry(code);
        let ring = ring_of(0..30);
        let mut random = Random::new(&[seed; 32], "returning");
        let mut chunk = placed(&ring, code, number);
        let all = all_alive(&ring);
        let mut holders: Vec<NodeId> = chunk.claims.iter().map(|claim| claim.node).collect();
        holders = random.choose(&holders, code.total() - Policy::default().thin_line(code))
            .into_iter().copied().collect();
        let mut down = all.clone();
        holders.iter().for_each(|away| set(&mut down, *away, Standing::Down));
        let made = settle(&ring, &down, &mut chunk, |_| ());
        prop_assert_eq!(made, 1);

        // When each hears whom, and from when on those who were away hear all.
        let back: BTreeMap<NodeId, usize> =
            holders.iter().map(|away| (*away, random.below(SETTLE))).collect();
        let mut heard: BTreeMap<(NodeId, NodeId), usize> = BTreeMap::new();
        for member in ring.members() {
            for away in &holders {
                heard.insert((member.id, *away), random.below(SETTLE));
            }
        }
        let mut dropped = 0;
        for now in 0..3 * SETTLE {
            for member in ring.members() {
                let of_own = |away: &&NodeId| !holders.contains(&member.id) && **away != member.id;
                let mut seen = Seen { nodes: all.clone(), returning: None };
                for away in holders.iter().filter(of_own) {
                    let at = heard[&(member.id, *away)];
                    if now < at {
                        set(&mut seen.nodes, *away, Standing::Down);
                    } else if now < at + SETTLE {
                        seen.returning = Some(Duration::from_secs(300));
                    }
                }
                let is_cut_off = back.get(&member.id).is_some_and(|at| now < *at);
                if back.get(&member.id).is_some_and(|at| now < at + SETTLE) {
                    seen.returning = Some(Duration::from_secs(300));
                }
                let arc = Ring::arc(&chunk.chunk);
                if is_cut_off || steward(&ring, arc, &seen) != Some(member.id) {
                    continue;
                }
                let plan = plan_chunk(&ring, &seen, &chunk, &Policy::default());
                for action in &plan.actions {
                    let is_drop = matches!(action, Action::Drop { .. });
                    prop_assert!(is_drop, "{:?} at {}", action, now);
                    carry_out(&ring, &all, &mut chunk, action);
                    dropped += 1;
                }
            }
        }
        prop_assert!(dropped > 0);
        assert_as_placed(&ring, &chunk);
    }
}

#[test]
fn a_node_that_was_given_up_and_returns_is_used_again() {
    // Dead, its shards rebuilt elsewhere; then it is back with all it had.
    let code = geometry("10+6");
    let with = ring_of(0..30);
    let without = ring_of((0..30).filter(|number| *number != 3));
    let mut dead = all_alive(&without);
    set(&mut dead, node(3), Standing::Dead);
    let back = all_alive(&with);
    for number in 0..CHUNKS {
        let mut chunk = placed(&with, code, number);
        let had = chunk.claims.iter().filter(|claim| claim.node == node(3)).count();
        chunk.missing_for = Some(Duration::from_secs(24 * 3600));
        let rebuild = plan(&without, &dead, &chunk);
        assert_eq!(makes(&rebuild).len(), had);
        rebuild.actions.iter().for_each(|action| carry_out(&without, &dead, &mut chunk, action));
        chunk.missing_for = None;
        let (copied, dropped) = copied_and_dropped(&with, &back, &mut chunk);
        assert_eq!((copied, dropped), (0, had));
        assert_as_placed(&with, &chunk);
    }
}
