//! How a network of fake nodes is, asked over real sockets.

mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use copse_client::status::{Standing, Verdict, ask, ask_within};
use copse_proto::door::{InfoReply, MarginCount, PeerInfo, RepairInfo, StoreInfo};
use support::{FakeNetwork, PlainConnector, StillTime};

/// Every node is the steward of ten whole chunks and thinks all others alive but the last.
async fn network() -> FakeNetwork {
    let fake = FakeNetwork::start(5).await;
    for node in &fake.nodes {
        let others = fake.nodes.iter().filter(|other| other.id != node.id);
        let peers = others.map(|other| PeerInfo {
            node_id: other.id.as_bytes().to_vec(),
            standing: if other.id == fake.nodes[4].id { "down" } else { "alive" }.to_owned(),
            ..PeerInfo::default()
        });
        *node.info.lock().expect("no panic") = InfoReply {
            store: Some(StoreInfo { accepting: true, ..StoreInfo::default() }),
            peers: peers.collect(),
            repair: Some(RepairInfo {
                chunks: vec![MarginCount { margin: 2, count: 10 }],
                chunks_whole: 10,
                survives_nodes: Some(2),
                ..RepairInfo::default()
            }),
            ..InfoReply::default()
        };
    }
    fake
}

#[tokio::test]
async fn stewards_are_summed_and_the_down_one_is_not_missed() {
    let fake = network().await;
    let _still = StillTime::begin();
    fake.nodes[4].kill();
    let status = ask(&fake.connect().await).await;
    assert_eq!((status.asked, status.answered, status.uncounted), (5, 4, 0));
    assert_eq!((status.verdict(), status.chunks.total), (Verdict::Whole, 40));
    let down = status.nodes.iter().find(|node| node.node == fake.nodes[4].id).expect("known");
    assert_eq!((down.standing, down.is_disputed()), (Standing::Down, false));
    assert!(down.silent.is_some());
}

#[tokio::test]
async fn a_node_that_does_not_answer_in_time_is_missed() {
    let fake = network().await;
    let connector = Arc::new(PlainConnector::default());
    let network = fake.connect_over(Arc::clone(&connector)).await;
    fake.nodes[4].kill();
    fake.nodes[2].faults.hung.store(true, Ordering::SeqCst);
    connector.unreachable.lock().expect("no panic").push(fake.nodes[3].id);
    let still = StillTime::begin();
    let started = tokio::time::Instant::now();
    let status = still.stepping(ask_within(&network, Duration::from_secs(2))).await;
    assert!(started.elapsed() < Duration::from_secs(20), "each node has its limit");
    assert_eq!((status.answered, status.uncounted), (2, 2));
    assert_eq!((status.verdict(), status.chunks.total), (Verdict::Uncounted, 20));
    let silent = |at: usize| {
        let node = status.nodes.iter().find(|node| node.node == fake.nodes[at].id);
        node.and_then(|node| node.silent.clone()).unwrap_or_default()
    };
    assert_eq!(silent(2), "no answer within 2 s");
    assert!(!silent(3).is_empty());
}
