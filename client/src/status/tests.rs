//! Sums of made-up answers, and the line that they lead to.

use std::net::SocketAddr;

use copse_core::{
    directory::{NodeRecord, SignedRecord},
    identity::NodeKey,
    ids::NetworkId,
};
use copse_proto::door::{Event, RepairJob, StoreInfo};

use super::*;
use crate::status::Verdict;

const NETWORK: NetworkId = NetworkId::new([9; 32]);

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed([seed; 32])
}

fn directory(count: u8, state: impl Fn(u8) -> NodeState) -> Directory {
    let mut directory = Directory::new(NETWORK);
    for seed in 1..=count {
        let record = NodeRecord {
            network: NETWORK,
            node: key(seed).id(),
            seq: 1,
            addresses: Vec::new(),
            grpc: vec![SocketAddr::from(([127, 0, 0, 1], 7401))],
            relays: Vec::new(),
            zone: String::new(),
            capacity_bytes: 1 << 30,
            state: state(seed),
            version: "test".to_owned(),
        };
        directory.insert(SignedRecord::sign(record, &key(seed)).expect("its own record"));
    }
    directory
}

fn active(count: u8) -> Directory {
    directory(count, |_| NodeState::Active)
}

fn peer(seed: u8, standing: &str) -> PeerInfo {
    PeerInfo {
        node_id: key(seed).id().as_bytes().to_vec(),
        standing: standing.to_owned(),
        reason: if standing == "alive" { String::new() } else { format!("{standing} it is") },
        ..PeerInfo::default()
    }
}

/// A steward of whole chunks of which six may be lost.
fn well(chunks: u64, peers: Vec<PeerInfo>) -> InfoReply {
    InfoReply {
        store: Some(StoreInfo {
            shards: chunks.saturating_mul(16),
            shard_bytes: 100,
            disk_bytes: 200,
            capacity_bytes: 1000,
            accepting: true,
            ..StoreInfo::default()
        }),
        peers,
        repair: Some(RepairInfo {
            chunks: vec![MarginCount { margin: 6, count: chunks }],
            chunks_whole: chunks,
            survives_nodes: Some(6),
            survives_zones: Some(3),
            planned: true,
            ..RepairInfo::default()
        }),
        ..InfoReply::default()
    }
}

fn repair_mut(info: &mut InfoReply) -> &mut RepairInfo {
    info.repair.as_mut().expect("it says how its chunks are")
}

#[test]
fn a_healthy_network_is_well_at_first_sight() {
    let mut sum = Sum::new(&active(3));
    for seed in 1..=3 {
        let peers = (1..=3).filter(|of| *of != seed).map(|of| peer(of, "alive")).collect();
        sum.heard(key(seed).id(), &well(500, peers));
    }
    let status = sum.finish();
    assert_eq!(status.verdict(), Verdict::Whole);
    assert_eq!(status.headline(), "all 1,500 chunks have all their shards");
    assert_eq!((status.survives_nodes, status.survives_zones), (Some(6), Some(3)));
    assert_eq!((status.capacity_bytes, status.disk_bytes, status.shards), (3000, 600, 24_000));
    assert!(status.nodes.iter().all(|node| node.standing == Standing::Alive));
}

#[test]
fn the_worst_steward_decides_what_survives_and_what_is_said_first() {
    let mut thin = well(10, Vec::new());
    let repair = repair_mut(&mut thin);
    repair.chunks.push(MarginCount { margin: 2, count: 12 });
    repair.survives_nodes = Some(2);
    repair.queue = vec![MarginCount { margin: 2, count: 12 }];
    repair.eta_seconds = Some(150);
    repair.oldest_seconds = 40;
    let said = |change: &dyn Fn(&mut RepairInfo)| {
        let mut sum = Sum::new(&active(2));
        sum.heard(key(1).id(), &well(10, Vec::new()));
        let mut other = thin.clone();
        change(repair_mut(&mut other));
        sum.heard(key(2).id(), &other);
        sum.finish()
    };
    let status = said(&|_| {});
    assert_eq!(status.headline(), "repairing: 12 chunks, ETA 2 min 30 s");
    assert_eq!((status.chunks.whole, status.chunks.thin, status.survives_nodes), (20, 12, Some(2)));
    assert_eq!(status.queue.oldest_seconds, 40);

    let status = said(&|repair| repair.eta_seconds = None);
    assert_eq!(status.headline(), "repairing: 12 chunks, ETA unknown");
    let status = said(&|repair| repair.queue.clear());
    assert!(status.headline().starts_with("12 of 32 chunks lack shards"), "{}", status.headline());
    let status = said(&|repair| repair.guard = "a zone went down".to_owned());
    assert_eq!(
        status.headline(),
        "not repairing: 12 of 32 chunks lack shards, but a zone went down"
    );
    let status = said(&|repair| repair.cut_off = true);
    assert_eq!((status.verdict(), status.cut_off.len()), (Verdict::Held, 1));
    let status = said(&|repair| repair.survives_nodes = Some(0));
    assert_eq!(status.verdict(), Verdict::Fragile);
    assert!(status.headline().starts_with("DANGER: the loss of one more node"));
    let status = said(&|repair| {
        repair.chunks.push(MarginCount { margin: -1, count: 2 });
        repair.chunks_waiting = 2;
    });
    assert_eq!((status.verdict(), status.chunks.thin), (Verdict::Unreadable, 12));
    let status = said(&|repair| {
        repair.chunks.push(MarginCount { margin: -1, count: 3 });
        repair.chunks_waiting = 2;
        repair.chunks_lost = 1;
    });
    assert_eq!(status.headline(), "DANGER: 1 of 35 chunks is lost: too few of its shards exist");
    // What was never completed is no danger, and hides none.
    let unfinished = |repair: &mut RepairInfo, count| {
        repair.chunks.push(MarginCount { margin: -1, count });
        repair.chunks_unfinished = count;
    };
    let status = said(&|repair| unfinished(repair, 3));
    assert_eq!((status.verdict(), status.chunks.thin), (Verdict::Thin, 12));
    assert_eq!((status.chunks.total, status.chunks.stored(), status.chunks.lost), (35, 32, 0));
    let status = said(&|repair| {
        unfinished(repair, 3);
        repair.chunks.push(MarginCount { margin: -2, count: 1 });
        repair.chunks_lost = 1;
    });
    assert_eq!(status.headline(), "DANGER: 1 of 33 chunks is lost: too few of its shards exist");
    let mut sum = Sum::new(&active(1));
    let mut info = well(0, Vec::new());
    *repair_mut(&mut info) = RepairInfo::default();
    unfinished(repair_mut(&mut info), 2);
    sum.heard(key(0).id(), &info);
    let status = sum.finish();
    assert_eq!(
        (status.verdict(), status.headline().as_str()),
        (Verdict::Empty, "there are no chunks yet")
    );
}

#[test]
fn who_did_not_answer_is_part_of_the_truth_unless_others_took_over() {
    let mut sum = Sum::new(&active(4));
    sum.heard(key(1).id(), &well(5, vec![peer(3, "down"), peer(4, "suspect"), peer(2, "alive")]));
    sum.heard(key(2).id(), &well(5, vec![peer(3, "down"), peer(4, "alive")]));
    sum.silent(key(3).id(), "connection refused");
    sum.silent(key(4).id(), "no answer");
    let status = sum.finish();
    assert_eq!((status.asked, status.answered, status.uncounted), (4, 2, 1));
    assert_eq!(status.verdict(), Verdict::Uncounted);
    assert_eq!(
        status.headline(),
        "all 10 chunks counted have all their shards; 1 of 4 nodes did not say how its chunks \
         are: those are not counted"
    );
    let node = |seed: u8| status.nodes.iter().find(|node| node.node == key(seed).id());
    assert_eq!(node(3).map(|node| node.standing), Some(Standing::Down));
    assert_eq!(node(3).and_then(|node| node.reason.clone()).as_deref(), Some("down it is"));
    // One says alive, one suspect: the worse.
    assert_eq!(
        node(4).map(|node| (node.standing, node.is_disputed())),
        Some((Standing::Suspect, false))
    );

    // A node that answers but says nothing of chunks is not counted either.
    let mut sum = Sum::new(&active(1));
    sum.heard(key(1).id(), &InfoReply::default());
    let status = sum.finish();
    assert_eq!((status.verdict(), status.uncounted), (Verdict::Uncounted, 1));
}

#[test]
fn what_some_have_still_to_count_is_not_called_whole() {
    let mut sum = Sum::new(&active(3));
    let mut behind = well(1, Vec::new());
    repair_mut(&mut behind).planned = false;
    sum.heard(key(1).id(), &well(7, Vec::new()));
    sum.heard(key(2).id(), &behind);
    sum.heard(key(3).id(), &behind);
    let mut status = sum.finish();
    assert_eq!((status.verdict(), status.counting), (Verdict::Uncounted, 2));
    assert_eq!(
        status.headline(),
        "all 9 chunks counted have all their shards; 2 of 3 nodes have still to count: nodes do when they \
         plan, a while after they start"
    );
    // What is wrong already is said first, and a network without a shard has nothing to count.
    status.chunks.thin = 1;
    assert_eq!(status.verdict(), Verdict::Thin);
    let mut sum = Sum::new(&active(1));
    let mut empty = well(0, Vec::new());
    repair_mut(&mut empty).planned = false;
    sum.heard(key(1).id(), &empty);
    assert_eq!(sum.finish().verdict(), Verdict::Empty);
}

#[test]
fn shards_of_which_no_node_has_counted_the_chunks_yet_are_not_taken_for_an_empty_network() {
    let check = |shards: u64, verdict: Verdict, headline: &str| {
        let mut sum = Sum::new(&active(1));
        let mut info = well(0, Vec::new());
        repair_mut(&mut info).chunks.clear();
        info.store.get_or_insert_default().shards = shards;
        sum.heard(key(1).id(), &info);
        let status = sum.finish();
        assert_eq!(status.verdict(), verdict);
        assert!(status.headline().starts_with(headline), "{}", status.headline());
    };
    check(0, Verdict::Empty, "there are no chunks yet");
    check(8, Verdict::Uncounted, "the chunks are not counted yet");
}

#[test]
fn a_dispute_matters_only_between_there_and_gone() {
    let mut sum = Sum::new(&active(4));
    sum.heard(key(1).id(), &well(1, vec![peer(4, "alive"), peer(3, "alive")]));
    sum.heard(key(2).id(), &well(1, vec![peer(4, "down"), peer(3, "suspect")]));
    sum.heard(key(3).id(), &well(1, vec![peer(4, "down")]));
    sum.heard(key(4).id(), &well(1, Vec::new()));
    let status = sum.finish();
    let disputed: Vec<NodeId> =
        status.nodes.iter().filter(|node| node.is_disputed()).map(|node| node.node).collect();
    assert_eq!(disputed, [key(4).id()]);
}

#[test]
fn nodes_that_leave_say_so_themselves() {
    let state = |seed| match seed {
        1 => NodeState::Left,
        2 => NodeState::Leaving,
        _ => NodeState::Active,
    };
    let mut sum = Sum::new(&directory(3, state));
    assert_eq!(sum.to_ask().count(), 2);
    sum.heard(key(3).id(), &well(1, vec![peer(1, "alive"), peer(2, "alive")]));
    let mut leaving = well(1, Vec::new());
    repair_mut(&mut leaving).leaving_shards = 70;
    sum.heard(key(2).id(), &leaving);
    let status = sum.finish();
    let standing = |seed: u8| {
        status.nodes.iter().find(|node| node.node == key(seed).id()).map(|node| node.standing)
    };
    assert_eq!(standing(1), Some(Standing::Left));
    assert_eq!(standing(2), Some(Standing::Leaving));
    assert_eq!((status.uncounted, status.queue.leaving_shards), (0, 70));
}

#[test]
fn the_order_of_the_answers_does_not_matter_and_what_is_kept_is_bounded() {
    let mut answers = Vec::new();
    for seed in 1..=5u8 {
        let mut caught = peer(6, "alive");
        caught.untrusted = format!("{seed} caught it");
        let mut info = well(u64::from(seed), vec![caught, peer(7, "nonsense")]);
        let repair = repair_mut(&mut info);
        repair.guard = "x".repeat(1000 + usize::from(seed));
        for i in 0..20u8 {
            let text = format!("decision {seed} {i}");
            repair.events.push(Event { unix_seconds: u64::from(i), text });
            repair.failing.push(RepairJob {
                chunk_id: vec![i; 32],
                kind: "rebuild".to_owned(),
                attempts: u32::from(i) * u32::from(seed),
                age_seconds: 1,
                last_error: "é".repeat(400),
            });
        }
        answers.push((key(seed).id(), info));
    }
    let sum = |answers: &[(NodeId, InfoReply)]| {
        let mut sum = Sum::new(&active(7));
        for (node, info) in answers {
            sum.heard(*node, info);
        }
        sum.silent(key(6).id(), "gone");
        sum.finish()
    };
    let status = sum(&answers);
    answers.reverse();
    assert_eq!(sum(&answers), status);
    assert_eq!((status.failing.len(), status.decisions.len()), (16, 16));
    assert_eq!(status.failing[0].attempts, 95);
    assert_eq!(status.decisions[15].unix_seconds, 19);
    assert!(status.failing[0].last_error.len() <= 300);
    assert_eq!(
        status.guards.iter().map(|(text, by)| (text.len(), *by)).collect::<Vec<_>>(),
        [(300, 5)]
    );
    let lowest = (1..=5u8).min_by_key(|seed| key(*seed).id()).expect("five");
    let caught = status.nodes.iter().find(|node| node.node == key(6).id()).expect("known");
    assert_eq!(caught.untrusted, Some(format!("{lowest} caught it")));
    assert_eq!(caught.untrusted_by, 5);
}

#[test]
fn guards_that_differ_in_how_long_they_last_are_one() {
    let sum = |guards: &[&str]| {
        let mut sum = Sum::new(&active(5));
        for (seed, guard) in (1u8..).zip(guards) {
            let mut info = well(1, Vec::new());
            repair_mut(&mut info).guard = (*guard).to_owned();
            sum.heard(key(seed).id(), &info);
        }
        sum.finish().guards.into_iter().collect::<Vec<_>>()
    };
    let mut guards =
        ["it looks for another 4 min who is there", "it looks for another 4 min 9 s who is there"];
    for _ in 0..2 {
        assert_eq!(sum(&guards), [("it looks for another 4 min 9 s who is there".to_owned(), 2)]);
        guards.reverse();
    }
    assert_eq!(sum(&["only 1 of 4 nodes", "only 2 of 4 nodes"]).len(), 2);
}

#[test]
fn sums_of_lies_do_not_overflow() {
    let mut info = well(u64::MAX, Vec::new());
    repair_mut(&mut info).chunks.push(MarginCount { margin: i32::MIN, count: u64::MAX });
    repair_mut(&mut info).chunks_lost = u64::MAX;
    info.store = Some(StoreInfo { capacity_bytes: u64::MAX, ..StoreInfo::default() });
    let mut sum = Sum::new(&active(2));
    sum.heard(key(1).id(), &info);
    sum.heard(key(2).id(), &info);
    let status = sum.finish();
    assert_eq!((status.chunks.total, status.capacity_bytes), (u64::MAX, u64::MAX));
    assert!(status.headline().starts_with("DANGER"));
}

#[test]
fn what_nodes_say_of_each_other_is_understood() {
    for said in copse_core::repair::Standing::ALL {
        assert_eq!(Standing::of_word(said.as_str()).as_str(), said.as_str());
    }
}
