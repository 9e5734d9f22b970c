//! The planner's rules, one by one, on chunks made for them.

use core::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::testing::geometry;

const HOUR: Duration = Duration::from_secs(3600);

/// A chunk of 10+6 in a network of 40, everybody alive.
fn forty() -> (Ring, BTreeMap<NodeId, NodeFacts>, ChunkFacts) {
    let ring = ring_of(0..40);
    let chunk = placed(&ring, geometry("10+6"), 7);
    let nodes = all_alive(&ring);
    (ring, nodes, chunk)
}

fn lose(chunk: &mut ChunkFacts, count: usize) {
    let kept = chunk.claims.len() - count;
    chunk.claims.truncate(kept);
}

#[test]
fn a_chunk_as_it_should_be_has_no_plan_and_no_remarks() {
    let (ring, nodes, chunk) = forty();
    let plan = plan(&ring, &nodes, &chunk);
    assert_eq!((plan.actions, plan.skips), (vec![], vec![]));
    let Strength { sure, hoped, presumed, on_one_node, in_one_zone, survives, .. } = plan.strength;
    assert_eq!((sure, hoped, presumed, on_one_node, in_one_zone), (16, 16, 0, 1, 1));
    assert_eq!((survives.nodes, survives.zones), (6, 6));
    assert_eq!(plan.strength.sure_margin(), 6);
}

#[test]
fn nodes_that_are_down_count_as_present_until_the_chunk_is_thin() {
    for down in 0..=16usize {
        let (ring, mut nodes, chunk) = forty();
        let walk: Vec<NodeId> = ring.walk(Ring::arc(&chunk.chunk)).collect();
        for claim in &chunk.claims[..down] {
            set(&mut nodes, claim.node, Standing::Down);
        }
        let plan = plan(&ring, &nodes, &chunk);
        assert_eq!((plan.strength.sure, plan.strength.hoped), (16 - down, 16), "{down} down");
        match down {
            0 => assert!(plan.skips.is_empty()),
            1..=3 => {
                assert!(plan.actions.is_empty(), "{down} down: {plan:?}");
                let [Skip::DownCounts { nodes }] = &plan.skips[..] else { panic!("{plan:?}") };
                assert_eq!(nodes.len(), down);
            }
            4..=6 => {
                assert_eq!(lane(&plan), Some(Lane::Emergency));
                assert_eq!(makes(&plan).len(), 13 - (16 - down), "just above the thin line");
                // Onto the next of the walk behind the sixteen.
                for (_, target) in makes(&plan) {
                    let at = walk.iter().position(|node| node == target).expect("on the walk");
                    assert!((16..20).contains(&at), "{at}");
                }
            }
            _ => {
                assert!(plan.actions.is_empty(), "{down} down: {plan:?}");
                let [Skip::WaitingForDown { sure, needed: 10, nodes }] = &plan.skips[..] else {
                    panic!("{plan:?}")
                };
                assert_eq!((*sure, nodes.len()), (16 - down, down));
            }
        }
    }
}

#[test]
fn missing_shards_are_rebuilt_together_at_the_threshold() {
    for missing in 1..=7usize {
        let (ring, nodes, mut chunk) = forty();
        lose(&mut chunk, missing);
        let plan = plan(&ring, &nodes, &chunk);
        let placement = ring.placement(Ring::arc(&chunk.chunk), chunk.geometry);
        match missing {
            1 | 2 => {
                assert!(plan.actions.is_empty());
                let hoped = 16 - missing;
                let expected = Skip::AboveThreshold { missing, hoped, threshold: 13 };
                assert_eq!(plan.skips, [expected]);
            }
            3..=6 => {
                let expected = if missing == 3 { Lane::Normal } else { Lane::Emergency };
                assert_eq!(lane(&plan), Some(expected));
                let made: Vec<NodeId> = makes(&plan).iter().map(|made| made.1).collect();
                assert_eq!(made, &placement[16 - missing..], "each on its own node");
                let traffic = plan.traffic(&chunk);
                assert_eq!(traffic.read_bytes, 10 * SHARD_BYTES);
                assert_eq!(traffic.written_bytes, missing as u64 * SHARD_BYTES);
            }
            _ => {
                assert!(plan.actions.is_empty());
                assert_eq!(plan.skips, [Skip::NotEnough { exist: 9, needed: 10 }]);
            }
        }
    }
}

#[test]
fn a_shard_that_has_been_missing_for_long_is_rebuilt_above_the_threshold() {
    let (ring, nodes, mut chunk) = forty();
    lose(&mut chunk, 1);
    chunk.missing_for = Some(24 * HOUR - Duration::from_nanos(1));
    assert!(plan(&ring, &nodes, &chunk).actions.is_empty());
    chunk.missing_for = Some(24 * HOUR);
    let plan = plan(&ring, &nodes, &chunk);
    assert_eq!((lane(&plan), makes(&plan).len()), (Some(Lane::Normal), 1));
}

#[test]
fn an_eager_policy_repairs_the_first_loss() {
    let (ring, nodes, mut chunk) = forty();
    lose(&mut chunk, 1);
    let policy = Policy { threshold: Threshold::Eager, ..Policy::default() };
    assert_eq!(makes(&plan_chunk(&ring, &nodes, &chunk, &policy)).len(), 1);
}

#[test]
fn a_chunk_with_missing_shards_and_nodes_down_is_made_safe_first() {
    // Two missing, two down: 12 sure, 14 hoped. Above the threshold, but thin.
    let (ring, mut nodes, mut chunk) = forty();
    lose(&mut chunk, 2);
    set(&mut nodes, chunk.claims[0].node, Standing::Down);
    set(&mut nodes, chunk.claims[1].node, Standing::Down);
    let first = plan(&ring, &nodes, &chunk);
    assert_eq!(lane(&first), Some(Lane::Emergency));
    assert_eq!(makes(&first).iter().map(|made| made.0.0).collect::<Vec<_>>(), [14]);
    assert_eq!(first.skips.len(), 2, "{:?}", first.skips);
    // One more missing: 13 hoped. All that are missing, which is enough.
    lose(&mut chunk, 1);
    let second = plan(&ring, &nodes, &chunk);
    assert_eq!(makes(&second).iter().map(|made| made.0.0).collect::<Vec<_>>(), [13, 14, 15]);
}

#[test]
fn a_node_that_cannot_take_its_shard_is_passed_over() {
    let unfit = [
        NodeFacts { room: Room::Full, ..NodeFacts::standing(Standing::Alive) },
        NodeFacts { trusted: false, ..NodeFacts::standing(Standing::Alive) },
        NodeFacts::standing(Standing::Down),
    ];
    for facts in unfit {
        let (ring, mut nodes, mut chunk) = forty();
        let walk: Vec<NodeId> = ring.walk(Ring::arc(&chunk.chunk)).collect();
        lose(&mut chunk, 4);
        nodes.insert(walk[14], facts);
        // The next one is nearly full: it takes what is its own and, in an emergency, more.
        let tight = NodeFacts { room: Room::Tight, ..NodeFacts::standing(Standing::Alive) };
        nodes.insert(walk[16], tight);
        let hurried = plan(&ring, &nodes, &chunk);
        let made: Vec<NodeId> = makes(&hurried).iter().map(|made| made.1).collect();
        assert_eq!(made, [walk[12], walk[13], walk[16], walk[15]], "{facts:?}");
        assert_eq!(
            hurried.skips.iter().any(|skip| matches!(skip, Skip::Untrusted { .. })),
            !facts.trusted
        );
        // In no hurry, the nearly full one is passed over, too.
        chunk.claims.push(Claim { node: walk[12], index: ShardIndex(12) });
        let calm = plan(&ring, &nodes, &chunk);
        let made: Vec<NodeId> = makes(&calm).iter().map(|made| made.1).collect();
        if facts.standing == Standing::Down {
            // We never heard what it holds: it may be a shard that seems to be missing.
            assert_eq!((calm.strength.presumed, made.len()), (1, 0));
        } else {
            assert_eq!(made, [walk[13], walk[17], walk[15]]);
        }
    }
}

#[test]
fn nobody_to_take_a_shard_is_said_with_the_reason() {
    let (ring, mut nodes, mut chunk) = forty();
    lose(&mut chunk, 3);
    for facts in nodes.values_mut() {
        facts.room = Room::Full;
    }
    let plan = plan(&ring, &nodes, &chunk);
    assert!(plan.actions.is_empty());
    let [Skip::NoTarget { indices, because: Unfit::Full, .. }] = &plan.skips[..] else {
        panic!("{plan:?}")
    };
    assert_eq!(indices, &[ShardIndex(13), ShardIndex(14), ShardIndex(15)]);
}

#[test]
fn what_a_liar_claims_does_not_count() {
    let (ring, mut nodes, chunk) = forty();
    let liars: Vec<NodeId> = chunk.claims[..3].iter().map(|claim| claim.node).collect();
    for liar in &liars {
        nodes.get_mut(liar).expect("a member").trusted = false;
    }
    let plan = plan(&ring, &nodes, &chunk);
    assert_eq!((plan.strength.sure, plan.strength.hoped), (13, 13));
    let [Action::Rebuild { sources, make, .. }] = &plan.actions[..] else { panic!("{plan:?}") };
    assert_eq!((sources.len(), make.len()), (13, 3));
    for (_, node) in sources.iter().chain(make) {
        assert!(!liars.contains(node));
    }
    let named: Vec<&Skip> =
        plan.skips.iter().filter(|skip| matches!(skip, Skip::Untrusted { .. })).collect();
    let mut sorted = liars;
    sorted.sort_unstable();
    assert_eq!(named, [&Skip::Untrusted { nodes: sorted }]);
}

#[test]
fn the_best_sources_come_first() {
    let (ring, mut nodes, mut chunk) = forty();
    set(&mut nodes, chunk.claims[2].node, Standing::Suspect);
    set(&mut nodes, chunk.claims[3].node, Standing::Leaving);
    set(&mut nodes, chunk.claims[4].node, Standing::Down);
    let spare = chunk.claims[15].node;
    lose(&mut chunk, 3);
    chunk.claims.push(Claim { node: spare, index: ShardIndex(0) });
    let plan = plan(&ring, &nodes, &chunk);
    let Some(Action::Rebuild { sources, .. }) = plan.actions.first() else { panic!("{plan:?}") };
    let indices: Vec<u8> = sources.iter().map(|source| source.0.0).collect();
    // Alive: data, then parity; then leaving, suspect; then second holders. Not the one down.
    assert_eq!(indices, [0, 1, 5, 6, 7, 8, 9, 10, 11, 12, 3, 2, 0]);
}

#[test]
fn a_shard_in_the_wrong_place_is_copied_then_dropped() {
    let (ring, nodes, mut chunk) = forty();
    let walk: Vec<NodeId> = ring.walk(Ring::arc(&chunk.chunk)).collect();
    chunk.claims[5].node = walk[20];
    let copy = Action::Copy { index: ShardIndex(5), from: walk[20], to: walk[5] };
    assert_eq!(plan(&ring, &nodes, &chunk).actions, [copy]);
    chunk.claims.push(Claim { node: walk[5], index: ShardIndex(5) });
    let drop = Action::Drop { index: ShardIndex(5), node: walk[20], kept_by: walk[5] };
    assert_eq!(plan(&ring, &nodes, &chunk).actions, [drop]);
}

#[test]
fn nothing_is_dropped_while_its_keeper_does_not_answer() {
    for standing in [Standing::Suspect, Standing::Down, Standing::Dead, Standing::Left] {
        let (ring, mut nodes, mut chunk) = forty();
        let walk: Vec<NodeId> = ring.walk(Ring::arc(&chunk.chunk)).collect();
        chunk.claims.push(Claim { node: walk[20], index: ShardIndex(5) });
        set(&mut nodes, walk[5], standing);
        let plan = plan(&ring, &nodes, &chunk);
        assert!(plan.actions.is_empty(), "{standing}: {plan:?}");
        assert!(!plan.skips.is_empty(), "{standing}");
    }
}

#[test]
fn of_two_entitled_holders_of_one_shard_neither_drops_it() {
    let (ring, nodes, mut chunk) = forty();
    // The node of shard 9 has shard 5 instead; 9 is missing.
    chunk.claims[9].index = ShardIndex(5);
    assert!(plan(&ring, &nodes, &chunk).actions.is_empty());
    chunk.missing_for = Some(24 * HOUR);
    let rebuild = plan(&ring, &nodes, &chunk);
    let [(made, target)] = makes(&rebuild)[..] else { panic!("{rebuild:?}") };
    assert_eq!(made, ShardIndex(9));
    chunk.claims.push(Claim { node: target, index: made });
    // Now one of the two has two shards and one slot, and drops the one that the other has.
    let plan = plan(&ring, &nodes, &chunk);
    let [Action::Drop { index: ShardIndex(5), node, kept_by }] = plan.actions[..] else {
        panic!("{plan:?}")
    };
    assert_eq!(node, target);
    assert_ne!(kept_by, target);
}

#[test]
fn of_two_entitled_holders_of_one_shard_the_full_one_keeps_it_and_the_other_takes_the_next() {
    // Shard 2 is on its own node and on that of shard 1, which is full; so shard 1 is further on.
    let ring = ring_of(0..8);
    let (walk, mut nodes, mut chunk) =
        replicas("1+3", &ring, &[(0, 0), (1, 2), (2, 2), (3, 3), (4, 1)]);
    fill_up(&mut nodes, walk[1]);
    for step in [
        Action::Copy { index: ShardIndex(1), from: walk[4], to: walk[2] },
        Action::Drop { index: ShardIndex(1), node: walk[4], kept_by: walk[2] },
        Action::Drop { index: ShardIndex(2), node: walk[2], kept_by: walk[1] },
    ] {
        assert_eq!(plan(&ring, &nodes, &chunk).actions.first(), Some(&step));
        carry_out(&ring, &nodes, &mut chunk, &step);
    }
    let rest = plan(&ring, &nodes, &chunk);
    assert!(rest.actions.is_empty() && rest.skips.is_empty(), "{rest:?}");
}

#[test]
fn nothing_is_dropped_while_the_chunk_is_being_rebuilt() {
    let (ring, nodes, mut chunk) = forty();
    let walk: Vec<NodeId> = ring.walk(Ring::arc(&chunk.chunk)).collect();
    lose(&mut chunk, 3);
    chunk.claims.push(Claim { node: walk[20], index: ShardIndex(5) });
    let plan = plan(&ring, &nodes, &chunk);
    assert_eq!(plan.actions.len(), 1);
    assert_eq!(makes(&plan).len(), 3);
}

#[test]
fn a_leaving_node_hands_over_even_when_the_next_node_is_full() {
    let before = ring_of(0..40);
    let mut chunk = placed(&before, geometry("10+6"), 7);
    let mut nodes = all_alive(&before);
    let walk: Vec<NodeId> = before.walk(Ring::arc(&chunk.chunk)).collect();
    let gone = walk[3];
    set(&mut nodes, gone, Standing::Leaving);
    let after = ring_of((0..40).filter(|number| node(*number) != gone));
    // Its successor is the 17th of the old walk.
    nodes.get_mut(&walk[16]).expect("a member").room = Room::Full;
    let copy = Action::Copy { index: ShardIndex(3), from: gone, to: walk[17] };
    assert_eq!(plan(&after, &nodes, &chunk).actions, [copy]);
    chunk.claims.push(Claim { node: walk[17], index: ShardIndex(3) });
    // Killed between the proof and the removal, it still goes: its substitute keeps the shard.
    let drop = Action::Drop { index: ShardIndex(3), node: gone, kept_by: walk[17] };
    assert_eq!(plan(&after, &nodes, &chunk).actions, [drop]);
    chunk.claims.retain(|claim| claim.node != gone);
    let waits = plan(&after, &nodes, &chunk);
    assert!(waits.actions.is_empty(), "{waits:?}");
    // A node that stays does not hand over to just anybody.
    let [Skip::StaysDisplaced { index: ShardIndex(3), holder, home, because: Unfit::Full }] =
        waits.skips[..]
    else {
        panic!("{waits:?}")
    };
    assert_eq!((holder, home), (walk[17], walk[16]));
}

#[test]
fn of_two_substitutes_of_a_full_node_the_first_of_the_walk_keeps_the_shard() {
    let (ring, mut nodes, mut chunk) = forty();
    let walk: Vec<NodeId> = ring.walk(Ring::arc(&chunk.chunk)).collect();
    nodes.get_mut(&walk[5]).expect("a member").room = Room::Full;
    chunk.claims[5].node = walk[20];
    chunk.claims.push(Claim { node: walk[18], index: ShardIndex(5) });
    let drop = |node, kept_by| Action::Drop { index: ShardIndex(5), node, kept_by };
    assert_eq!(plan(&ring, &nodes, &chunk).actions, [drop(walk[20], walk[18])]);
    set(&mut nodes, walk[18], Standing::Suspect);
    assert_eq!(plan(&ring, &nodes, &chunk).actions, [drop(walk[18], walk[20])]);
    set(&mut nodes, walk[20], Standing::Down);
    assert_eq!(plan(&ring, &nodes, &chunk).actions, [], "nobody answers who would keep it");
    // There is room again: first it goes there, then both drop theirs.
    set(&mut nodes, walk[18], Standing::Alive);
    set(&mut nodes, walk[20], Standing::Alive);
    nodes.get_mut(&walk[5]).expect("a member").room = Room::Free;
    settle(&ring, &nodes, &mut chunk, |_| {});
    assert_as_placed(&ring, &chunk);
}

/// A chunk of replicas in a network of so many, the walk of its arc, and who holds what: positions of the
/// walk with indices.
fn replicas(
    code: &str,
    ring: &Ring,
    held: &[(usize, u8)],
) -> (Vec<NodeId>, BTreeMap<NodeId, NodeFacts>, ChunkFacts) {
    let mut chunk = placed(ring, geometry(code), 7);
    let walk: Vec<NodeId> = ring.walk(Ring::arc(&chunk.chunk)).collect();
    let claim = |&(at, index): &(usize, u8)| Claim { node: walk[at], index: ShardIndex(index) };
    chunk.claims = held.iter().map(claim).collect();
    (walk, all_alive(ring), chunk)
}

fn fill_up(nodes: &mut BTreeMap<NodeId, NodeFacts>, node: NodeId) {
    nodes.get_mut(&node).expect("a member").room = Room::Full;
}

#[test]
fn of_two_replicas_on_one_node_one_moves_on_when_its_own_node_is_full() {
    let ring = ring_of(0..4);
    let (walk, mut nodes, mut chunk) = replicas("1+1", &ring, &[(0, 0), (0, 1)]);
    fill_up(&mut nodes, walk[1]);
    let copy = Action::Copy { index: ShardIndex(1), from: walk[0], to: walk[2] };
    assert_eq!(plan(&ring, &nodes, &chunk).actions, core::slice::from_ref(&copy));
    carry_out(&ring, &nodes, &mut chunk, &copy);
    // Who has one too many drops it, though it comes first on the walk.
    let drop = Action::Drop { index: ShardIndex(1), node: walk[0], kept_by: walk[2] };
    assert_eq!(plan(&ring, &nodes, &chunk).actions, core::slice::from_ref(&drop));
    carry_out(&ring, &nodes, &mut chunk, &drop);
    let rest = plan(&ring, &nodes, &chunk);
    assert_eq!(rest.actions, []);
    assert!(
        matches!(rest.skips[..], [Skip::StaysDisplaced { because: Unfit::Full, .. }]),
        "{rest:?}"
    );
}

#[test]
fn two_replicas_stay_on_one_node_while_nobody_else_has_room_or_the_own_node_is_only_down() {
    let ring = ring_of(0..4);
    let (walk, mut nodes, chunk) = replicas("1+1", &ring, &[(0, 0), (0, 1)]);
    walk[1..].iter().for_each(|other| fill_up(&mut nodes, *other));
    let waits = plan(&ring, &nodes, &chunk);
    assert_eq!(waits.actions, []);
    let [Skip::StaysDisplaced { holder, home, because: Unfit::Full, .. }] = waits.skips[..] else {
        panic!("{waits:?}")
    };
    assert_eq!((holder, home), (walk[0], walk[1]));
    // The own node has it and is down: its substitute does not move.
    let (walk, mut nodes, chunk) = replicas("1+1", &ring, &[(0, 0), (0, 1), (1, 1)]);
    set(&mut nodes, walk[1], Standing::Down);
    assert_eq!(plan(&ring, &nodes, &chunk).actions, []);
}

#[test]
fn only_what_is_too_much_on_one_node_moves() {
    // Of 2+2 a node may hold two while others have no room for their own.
    let ring = ring_of(0..8);
    let held = [(0, 0), (0, 1), (0, 2), (0, 3)];
    let (walk, mut nodes, mut chunk) = replicas("2+2", &ring, &held);
    walk[1..4].iter().for_each(|home| fill_up(&mut nodes, *home));
    let moves = plan(&ring, &nodes, &chunk).actions;
    assert_eq!(moves.len(), 2, "{moves:?}");
    settle(&ring, &nodes, &mut chunk, |_| ());
    assert_eq!(chunk.claims.iter().filter(|claim| claim.node == walk[0]).count(), 2);
    assert_eq!(chunk.claims.len(), 4);
}

#[test]
fn a_node_of_its_own_goes_before_a_zone_of_its_own() {
    // Of three zones one is full: the third replica goes to a fresh node, not beside another one.
    let zone = |at: u64| format!("z{}", at % 3);
    let ring = Ring::build((0..9).map(|at| member(at, &zone(at))).collect());
    let zone_of = |node: &NodeId| ring.get(node).expect("a member").zone.clone();
    for number in 0..50 {
        let mut chunk = placed(&ring, geometry("1+2"), number);
        let mut nodes = all_alive(&ring);
        let full = zone_of(&chunk.claims[2].node);
        for member in ring.members().iter().filter(|member| member.zone == full) {
            fill_up(&mut nodes, member.id);
        }
        chunk.claims.pop();
        let plan = plan(&ring, &nodes, &chunk);
        let [(_, target)] = makes(&plan)[..] else { panic!("{plan:?}") };
        assert!(chunk.claims.iter().all(|claim| claim.node != target), "{plan:?}");
    }
}

#[test]
fn a_short_outage_in_a_network_of_any_size_moves_nothing() {
    for nodes_count in 2..20 {
        let code = Geometry::default_for(usize::try_from(nodes_count).expect("small"));
        let code = code.expect("there is one from two nodes on");
        let ring = ring_of(0..nodes_count);
        for number in 0..20 {
            let chunk = placed(&ring, code, number);
            for down in 0..nodes_count {
                let mut nodes = all_alive(&ring);
                set(&mut nodes, node(down), Standing::Down);
                let plan = plan(&ring, &nodes, &chunk);
                assert!(plan.actions.is_empty(), "{code}: {plan:?}");
            }
        }
    }
}

#[test]
fn substitutes_do_not_crowd_a_zone_or_a_node() {
    // Five zones of eight nodes; of each chunk four are down, all from different zones.
    let ring = Ring::build((0..40).map(|at| member(at, &format!("z{}", at % 5))).collect());
    let zone = |node: &NodeId| ring.get(node).expect("a member").zone.clone();
    for number in 0..200 {
        let chunk = placed(&ring, geometry("10+6"), number);
        let mut nodes = all_alive(&ring);
        let mut down_zones = Vec::new();
        for claim in &chunk.claims {
            if down_zones.len() < 4 && !down_zones.contains(&zone(&claim.node)) {
                down_zones.push(zone(&claim.node));
                set(&mut nodes, claim.node, Standing::Down);
            }
        }
        let plan = plan(&ring, &nodes, &chunk);
        assert_eq!(makes(&plan).len(), 1, "{plan:?}");
        let mut after = chunk.clone();
        carry_out(&ring, &nodes, &mut after, &plan.actions[0]);
        let strength = strength(&ring, &nodes, &after);
        assert_eq!(strength.on_one_node, 1);
        assert!(strength.in_one_zone <= 4, "{strength:?}");
    }
}

#[test]
fn a_new_steward_presumes_that_a_silent_node_holds_its_shard() {
    let (ring, mut nodes, mut chunk) = forty();
    for claim in chunk.claims.drain(13..) {
        set(&mut nodes, claim.node, Standing::Down);
    }
    let waits = plan(&ring, &nodes, &chunk);
    assert_eq!((waits.strength.sure, waits.strength.hoped, waits.strength.presumed), (13, 16, 3));
    assert!(waits.actions.is_empty());
    // Nor does it take them for lost after a while.
    let long = ChunkFacts { missing_for: Some(Policy::default().patience), ..chunk.clone() };
    assert!(plan(&ring, &nodes, &long).actions.is_empty());
    // One that is dead is not presumed to hold anything.
    let last = ring.placement(Ring::arc(&chunk.chunk), chunk.geometry)[15];
    for node in ring.placement(Ring::arc(&chunk.chunk), chunk.geometry).split_off(13) {
        set(&mut nodes, node, Standing::Dead);
    }
    assert_eq!(plan(&ring, &nodes, &chunk).strength.hoped, 13);
    assert!(!makes(&plan(&ring, &nodes, &chunk)).iter().any(|made| made.1 == last));
    assert_eq!(makes(&plan(&ring, &nodes, &chunk)).len(), 3);
}

#[test]
fn a_node_that_is_cut_off_plans_nothing() {
    struct CutOff(BTreeMap<NodeId, NodeFacts>);
    impl Nodes for CutOff {
        fn facts(&self, node: &NodeId) -> NodeFacts {
            self.0.facts(node)
        }
        fn cut_off(&self) -> bool {
            true
        }
    }
    let (ring, nodes, mut chunk) = forty();
    lose(&mut chunk, 5);
    let plan = plan_chunk(&ring, &CutOff(nodes), &chunk, &Policy::default());
    assert_eq!((plan.actions, plan.skips), (vec![], vec![Skip::CutOff]));
    let empty = Ring::build(Vec::new());
    let plan = plan_chunk(&empty, &BTreeMap::new(), &chunk, &Policy::default());
    assert_eq!((plan.actions, plan.skips), (vec![], vec![Skip::EmptyRing]));
}

#[test]
fn when_many_went_silent_together_only_what_has_no_shard_to_spare_is_rebuilt() {
    struct Frozen(BTreeMap<NodeId, NodeFacts>);
    impl Nodes for Frozen {
        fn facts(&self, node: &NodeId) -> NodeFacts {
            self.0.facts(node)
        }
        fn frozen(&self) -> bool {
            true
        }
    }
    let (ring, mut nodes, chunk) = forty();
    let made_with_down = |nodes: &mut BTreeMap<NodeId, NodeFacts>, down: usize| {
        for claim in &chunk.claims[..down] {
            set(nodes, claim.node, Standing::Down);
        }
        let free = plan(&ring, nodes, &chunk);
        let frozen = plan_chunk(&ring, &Frozen(nodes.clone()), &chunk, &Policy::default());
        (makes(&free).len(), makes(&frozen).len())
    };
    // Of 10+6, with 12, 11, 10 and 9 shards within reach.
    assert_eq!(made_with_down(&mut nodes, 4), (1, 0));
    assert_eq!(made_with_down(&mut nodes, 5), (2, 0));
    assert_eq!(made_with_down(&mut nodes, 6), (3, 1));
    assert_eq!(made_with_down(&mut nodes, 7), (0, 0));
    // What nobody holds any more is rebuilt as ever.
    let mut lost = chunk.clone();
    lose(&mut lost, 4);
    let all_up = Frozen(all_alive(&ring));
    assert_eq!(makes(&plan_chunk(&ring, &all_up, &lost, &Policy::default())).len(), 4);
}

#[test]
fn the_steward_is_the_first_of_the_walk_that_answers() {
    let ring = ring_of(0..40);
    let walk: Vec<NodeId> = ring.walk(99).collect();
    let mut nodes = all_alive(&ring);
    assert_eq!(steward(&ring, 99, &nodes), Some(walk[0]));
    set(&mut nodes, walk[0], Standing::Suspect);
    assert_eq!(steward(&ring, 99, &nodes), Some(walk[0]));
    set(&mut nodes, walk[0], Standing::Down);
    nodes.get_mut(&walk[1]).expect("a member").trusted = false;
    assert_eq!(steward(&ring, 99, &nodes), Some(walk[2]));
    assert_eq!(steward(&ring, 99, &BTreeMap::new()), None);
}

#[test]
fn the_thinner_chunk_comes_first_then_the_one_that_a_zone_can_take_then_the_older() {
    let (ring, nodes, chunk) = forty();
    let whole = strength(&ring, &nodes, &chunk);
    let thin = Strength { sure: 12, ..whole };
    let crowded = Strength { in_one_zone: 7, ..whole };
    let order = [
        Priority::of(&thin, 9),
        Priority::of(&crowded, 8),
        Priority::of(&whole, 3),
        Priority::of(&whole, 4),
    ];
    assert!(order.is_sorted_by(|one, other| one < other), "{order:?}");
    assert_eq!((order[0].margin, order[1].zone_spare), (2, -1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is claimed, and whatever the nodes are: one answer, in any order of the claims.
    #[test]
    fn a_plan_does_not_depend_on_the_order_of_claims(
        (claims, shuffled) in prop::collection::vec((0u64..30, any::<u8>()), 0..60)
            .prop_flat_map(|claims| (Just(claims.clone()), Just(claims).prop_shuffle())),
        facts in prop::collection::vec((0u8..7, 0u8..3, 0u8..8), 25),
        code in crate::testing::geometries(12, 8),
        on_ring in 0u64..26,
        hours in 0u32..30,
    ) {
        let ring = ring_of(0..on_ring);
        let standings = [
            Standing::Alive, Standing::Suspect, Standing::Down, Standing::Dead,
            Standing::Leaving, Standing::Left, Standing::Unknown,
        ];
        let rooms = [Room::Free, Room::Tight, Room::Full];
        let nodes: BTreeMap<NodeId, NodeFacts> = (0..).zip(facts).map(|(number, facts)| {
            let (standing, room) = (standings[usize::from(facts.0)], rooms[usize::from(facts.1)]);
            (node(number), NodeFacts { standing, room, trusted: facts.2 > 0 })
        }).collect();
        // Most indices are possible ones.
        let claim = |(number, index): (u64, u8)| {
            let index = if index < 240 { index % 20 } else { index };
            Claim { node: node(number), index: ShardIndex(index) }
        };
        let mut chunk = placed(&ring, code, 5);
        chunk.missing_for = Some(hours * HOUR);
        chunk.claims = claims.into_iter().map(claim).collect();
        let one = plan(&ring, &nodes, &chunk);
        chunk.claims = shuffled.into_iter().map(claim).collect();
        chunk.claims.extend(chunk.claims.first().copied());
        prop_assert_eq!(&one, &plan(&ring, &nodes, &chunk));
        prop_assert_eq!(&one, &plan(&ring, &nodes, &chunk));
        for skip in &one.skips {
            prop_assert!(skip.to_string().len() > 10);
        }
    }
}

#[test]
fn a_node_that_can_write_nothing_down_is_no_steward_and_keeps_what_it_holds() {
    struct But<'a>(&'a BTreeMap<NodeId, NodeFacts>, NodeId);
    impl Nodes for But<'_> {
        fn facts(&self, node: &NodeId) -> NodeFacts {
            self.0.facts(node)
        }
        fn plans(&self, node: &NodeId) -> bool {
            *node != self.1
        }
    }
    let ring = ring_of(0..40);
    let walk: Vec<NodeId> = ring.walk(99).collect();
    let nodes = all_alive(&ring);
    let but = But(&nodes, walk[0]);
    assert_eq!(steward(&ring, 99, &but), Some(walk[1]));
    assert!(but.facts(&walk[0]).trusted);
    // It follows when all others can, and does what it can when no other is there.
    assert_eq!(stewards(&ring, 99, &but).last(), Some(walk[0]));
    let mut alone = nodes.clone();
    walk[1..].iter().for_each(|other| set(&mut alone, *other, Standing::Down));
    assert_eq!(steward(&ring, 99, &But(&alone, walk[0])), Some(walk[0]));
}
