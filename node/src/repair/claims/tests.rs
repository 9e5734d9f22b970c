//! The mirror without a network: what is kept of what a node says.

use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, ShardId, ShardIndex},
    repair::{NodeFacts, Room, Standing},
};

use futures::FutureExt as _;

use super::*;
use crate::{
    repair::{
        facts::Looks as _,
        proofs::Proofs,
        testing::{Failing, Seen, member, replica},
        trust::Trust,
    },
    store::{MemoryStore, memory::Faults},
};

const OWN: NodeId = NodeId::new([1; 32]);
const OTHER: NodeId = NodeId::new([2; 32]);

fn ring(capacity_bytes: u64) -> Ring {
    let member = |id| RingMember { id, capacity_bytes, zone: String::new() };
    Ring::build(vec![member(OWN), member(OTHER)])
}

fn all(standing: Standing) -> BTreeMap<NodeId, NodeFacts> {
    [OWN, OTHER].map(|node| (node, NodeFacts::standing(standing))).into()
}

/// A mirror that keeps all arcs. Needs a runtime for the way to other nodes, which nobody goes.
fn claims(ledger: Arc<Failing>, capacity_bytes: u64) -> Claims {
    let opinions = Opinions::new(Trust::default(), Proofs::default());
    let claims = Claims::over(OWN, Arc::new(MemoryStore::new(1 << 20)), ledger, opinions);
    claims.want(&ring(capacity_bytes), &all(Standing::Alive)).expect("a ledger");
    claims
}

fn shards(arc: u8, count: u8) -> Vec<ListedShard> {
    let mut chunk = [0; 32];
    chunk[1] = arc;
    let id = |index| ShardId { chunk: ChunkId::new(chunk), index: ShardIndex(index) };
    let geometry = Geometry::new(10, 6).expect("10+6");
    let shard = |index| ListedShard { id: id(index), geometry, shard_bytes: 1000 };
    (0..count).map(shard).collect()
}

fn rows(ledger: &Failing) -> usize {
    let mut rows = 0;
    let mut visit = |_: &[u8], _: &[u8]| {
        rows += 1;
        true
    };
    ledger.scan(b"rd", &mut visit).expect("a ledger");
    ledger.scan(b"rc", &mut visit).expect("a ledger");
    rows
}

#[tokio::test]
async fn what_is_no_longer_kept_goes_even_when_the_ledger_fails_at_first() {
    let ways: [fn(&Claims) -> io::Result<()>; 2] = [
        |claims| claims.forget(&[OTHER]),
        |claims| claims.want(&ring(1 << 30), &all(Standing::Dead)),
    ];
    for drop in ways {
        let ledger = Failing::new();
        let claims = claims(Arc::clone(&ledger), 1 << 30);
        assert_eq!(claims.note(OTHER, true, &BTreeMap::from([(5, (2, [1; 16]))])), [5]);
        claims.mirror(OTHER, 5, shards(5, 2)).await.expect("a ledger");
        assert_eq!((claims.nodes(), rows(&ledger)), (vec![OTHER], 2));

        ledger.fails.store(true, Relaxed);
        drop(&claims).expect_err("the disk fails");
        assert_eq!((claims.nodes(), rows(&ledger)), (vec![], 2));
        ledger.fails.store(false, Relaxed);
        drop(&claims).expect("the disk is well");
        assert_eq!(rows(&ledger), 0);
        assert_eq!(claims.of_arc(5).expect("a ledger"), []);
    }
}

#[tokio::test]
async fn a_node_that_lists_more_than_its_disk_can_hold_is_mirrored_no_further() {
    let ledger = Failing::new();
    let claims = claims(Arc::clone(&ledger), 10 * STORED_BYTES_MIN);
    let said = BTreeMap::from([(5, (6, [1; 16])), (6, (6, [1; 16])), (7, (4, [1; 16]))]);
    assert_eq!(claims.note(OTHER, true, &said), [5, 7], "as many arcs as it has room for");
    // It lists more than it said.
    claims.mirror(OTHER, 5, shards(5, 11)).await.expect("a ledger");
    assert_eq!(rows(&ledger), 0);
    claims.mirror(OTHER, 5, shards(5, 6)).await.expect("a ledger");
    claims.mirror(OTHER, 7, shards(7, 4)).await.expect("a ledger");
    claims.mirror(OTHER, 6, shards(6, 6)).await.expect("a ledger");
    assert_eq!(claims.holders(5).len() + claims.holders(7).len(), 2);
    assert_eq!(claims.holders(6), []);
    // What it gives up makes room.
    claims.mirror(OTHER, 5, shards(5, 0)).await.expect("a ledger");
    claims.mirror(OTHER, 6, shards(6, 6)).await.expect("a ledger");
    assert_eq!(claims.holders(6).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rows_and_digest_change_together_though_nobody_waits_for_it() {
    let ledger = Failing::new();
    let claims = claims(Arc::clone(&ledger), 1 << 30);
    claims.note(OTHER, true, &BTreeMap::from([(5, (2, [1; 16]))]));
    claims.mirror(OTHER, 5, shards(5, 2)).await.expect("a ledger");
    let [(_, before)] = claims.holders(5)[..] else { panic!("one holder") };

    // The next list is being written when its asker gives up.
    let slow = claims.writing.lock().expect("nobody writes");
    assert!(claims.mirror(OTHER, 5, shards(5, 3)).now_or_never().is_none());
    drop(slow);
    while claims.of_arc(5).expect("a ledger")[0].1.len() != 3 {
        tokio::task::yield_now().await;
    }
    drop(claims.writing.lock());
    let [(_, after)] = claims.holders(5)[..] else { panic!("one holder") };
    assert_eq!((before.0, after.0), (2, 3));
    // So a node that has again what it had before is listed again.
    assert_eq!(claims.note(OTHER, true, &BTreeMap::from([(5, before)])), [5]);
}

#[tokio::test]
async fn an_arc_that_cannot_be_written_keeps_no_other_from_being_mirrored() {
    let ledger = Failing::new();
    let claims = claims(Arc::clone(&ledger), 1 << 30);
    let mut arcs = Vec::new();
    for seed in 0..4 {
        let shard = replica(seed, 0);
        arcs.push(Ring::arc(&shard.id().chunk));
        claims.store.put(shard).await.expect("a put");
    }
    arcs.sort_unstable();
    ledger.spoil(Some([CLAIMS_PREFIX, &arcs[0].to_be_bytes()].concat()));
    claims.refresh(OWN).await.expect_err("a bad block");
    assert!(!claims.are_written() && claims.are_written(), "it is said once");
    let mirrored: Vec<bool> = arcs.iter().map(|&arc| !claims.holders(arc).is_empty()).collect();
    assert_eq!(mirrored, [false, true, true, true]);
    // The same when they are of no use any more.
    ledger.spoil(Some([CLAIMS_PREFIX, &arcs[1].to_be_bytes()].concat()));
    let before = rows(&ledger);
    claims.forget(&[OWN]).expect_err("a bad block");
    assert_eq!((before, rows(&ledger)), (6, 2));
    ledger.spoil(None);
    claims.forget(&[]).expect("a ledger");
    assert_eq!(rows(&ledger), 0);
}

#[tokio::test]
async fn a_node_that_is_full_knows_it_and_plans_nothing_for_itself() {
    let store = Arc::new(MemoryStore::new(1 << 20));
    let opinions = Opinions::new(Trust::default(), Proofs::default());
    let claims = Claims::over(OWN, Arc::clone(&store) as _, Failing::new(), opinions.clone());
    let view = Seen::new(vec![member(OWN, "barn"), member(OTHER, "barn")]).now();
    for (full, room) in [(true, Room::Full), (false, Room::Free)] {
        store.set_faults(Faults { no_space: full, ..Faults::default() });
        assert_eq!(store.put(replica(7, 0)).await.is_err(), full);
        claims.refresh(OWN).await.expect("its own shards");
        assert_eq!(opinions.with(&view).facts(&OWN).room, room);
    }
}

#[tokio::test(start_paused = true)]
async fn who_never_tells_is_waited_for_no_longer_when_the_ring_changes() {
    let claims = claims(Failing::new(), 1 << 30);
    let node = |number| NodeId::new([number; 32]);
    let ring = |others: std::ops::Range<u8>| {
        Ring::build([1, 2].into_iter().chain(others).map(|it| member(node(it), "")).collect())
    };
    let rings = [ring(3..10), ring(10..17)];
    let nodes: BTreeMap<NodeId, NodeFacts> =
        (1..17).map(|it| (node(it), NodeFacts::standing(Standing::Alive))).collect();
    for minute in 0..10 {
        assert!(claims.is_to_tell(&OTHER), "{minute}");
        claims.hear(node(3), Vec::new()).await;
        // Each time there are arcs that it was not asked about.
        claims.want(&rings[minute % 2], &nodes).expect("a ledger");
        claims.refresh(OTHER).await.expect_err("nobody goes there");
        tokio::time::advance(TOLD_WITHIN / 10).await;
    }
    assert!(!claims.is_to_tell(&OTHER));
    // Who told what it was asked has its time for what is asked now.
    assert!(claims.is_to_tell(&node(3)));
}
