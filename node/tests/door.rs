//! A real node on real sockets, asked by a gRPC client: put, get, has, and everything that is wrong
//! in ways a client may be wrong.

mod support;

use std::sync::Arc;

use copse_core::{chunk::EncodedChunk, ids::ShardIndex, receipt::SignedReceipt, shard_tree};
use copse_node::{
    dial,
    store::{MemoryStore, ShardStore},
};
use copse_proto::{
    door::{
        HasRequest, InfoRequest, ListRequest, directory_client::DirectoryClient,
        node_client::NodeClient, put_reply, put_request,
    },
    status::{Reason, Refusal},
};
use support::{NETWORK, Put, TestNode, chunk, get, until};
use tonic::Code;

#[tokio::test]
async fn a_shard_put_at_the_door_is_read_back_with_proof() {
    let node = TestNode::start(None).await;
    let chunk = chunk("4+2", 1, 3 << 20);
    let mut put = Put::open(node.shards()).await;
    for index in 0..6 {
        put.shard(index.into(), None, &chunk, index).await;
    }
    for _ in 0..6 {
        let reply = put.reply().await.expect("goes on").expect("an answer");
        let Some(put_reply::Outcome::Receipt(receipt)) = reply.outcome else {
            panic!("shard {} was refused: {:?}", reply.tag, reply.outcome);
        };
        let signed = SignedReceipt::verify(&receipt.receipt, &receipt.signature).expect("signed");
        let index = ShardIndex(u8::try_from(reply.tag).expect("an index"));
        let id = copse_core::ids::ShardId { chunk: chunk.id(), index };
        let shard_bytes = u32::try_from(chunk.descriptor().shard_bytes()).expect("small");
        signed.covers(NETWORK, node.id, id, shard_bytes).expect("for this shard");
    }
    drop(put.requests);
    assert!(put.replies.message().await.expect("a clean end").is_none());

    let whole = chunk.shard(ShardIndex(5));
    let (header, data) = get(node.shards(), None, &chunk, 5, 0, 0).await.expect("whole");
    assert_eq!(header.descriptor, chunk.descriptor().encode());
    assert!(data == whole);
    for (offset, length) in [(0, 1), (40_000, 4096), (whole.len() as u64 - 1, 1), (70_000, 0)] {
        let found = get(node.shards(), None, &chunk, 5, offset, length).await;
        let (header, data) = found.expect("a range");
        let start = usize::try_from(header.covered_offset).expect("small");
        let covered = start..start + usize::try_from(header.covered_length).expect("small");
        let end = if length == 0 { whole.len() as u64 } else { offset + length };
        assert!(covered.start as u64 <= offset && end <= covered.end as u64);
        assert!(data == whole[covered.clone()]);
        let root = chunk.descriptor().shard_hash(ShardIndex(5)).expect("six shards");
        shard_tree::verify(root, whole.len(), &covered, &data, &header.proof).expect("proved");
    }

    let absent = get(node.shards(), None, &support::chunk("1+1", 99, 10), 0, 0, 0).await;
    assert_eq!(absent.expect_err("not held").code(), Code::NotFound);
    let outside = get(node.shards(), None, &chunk, 5, 1 << 40, 1).await.expect_err("outside");
    assert_eq!(outside.code(), Code::OutOfRange);
    assert_eq!(Refusal::from(&outside).reason(), Reason::OutOfRange);

    let request = |ids| HasRequest { target: Vec::new(), chunk_ids: ids };
    let id = chunk.id().as_bytes().to_vec();
    let held = node.shards().has(request(vec![vec![7; 32], id.clone()])).await.expect("has");
    let held: Vec<_> = held.into_inner().held.into_iter().map(|held| held.indices).collect();
    assert_eq!(held, [vec![], vec![0, 1, 2, 3, 4, 5]]);
    let refused = node.shards().has(request(vec![id; 1025])).await.expect_err("too many");
    assert_eq!(refused.code(), Code::InvalidArgument);
    node.node.shutdown().await;
}

#[tokio::test]
async fn one_door_leads_to_all_nodes() {
    let near = TestNode::start(None).await;
    let far = TestNode::start(Some(&near)).await;
    let mut directory = DirectoryClient::new(near.door.clone());
    until("the near node knows the far one", async || {
        let mut list = directory.list(ListRequest {}).await.expect("a list").into_inner();
        let mut count = 0;
        while let Some(reply) = list.message().await.expect("records") {
            count += reply.records.len();
        }
        count == 2
    })
    .await;

    let chunk = chunk("2+1", 2, 1 << 20);
    let mut put = Put::open(near.shards()).await;
    put.shard(8, Some(far.id), &chunk, 1).await;
    let reply = put.reply().await.expect("goes on").expect("an answer");
    let Some(put_reply::Outcome::Receipt(receipt)) = reply.outcome else {
        panic!("refused: {:?}", reply.outcome);
    };
    let signed = SignedReceipt::verify(&receipt.receipt, &receipt.signature).expect("signed");
    assert_eq!(signed.receipt().node, far.id, "the far node has it, the near one does not");

    for node in [&near, &far] {
        let found = get(node.shards(), Some(far.id), &chunk, 1, 20_000, 10).await;
        let (header, data) = found.expect("from either door");
        let start = usize::try_from(header.covered_offset).expect("small");
        assert!(data == chunk.shard(ShardIndex(1))[start..start + data.len()]);
    }
    let here = get(near.shards(), None, &chunk, 1, 0, 0).await.expect_err("not on the near node");
    assert_eq!(here.code(), Code::NotFound);
    let request = HasRequest {
        target: far.id.as_bytes().to_vec(),
        chunk_ids: vec![chunk.id().as_bytes().to_vec()],
    };
    let held = near.shards().has(request).await.expect("forwarded").into_inner().held;
    assert_eq!(held[0].indices, [1]);

    // A lie to the far node is refused there, and the refusal comes back as it was.
    put.header(9, Some(far.id), chunk.descriptor().encode(), 0).await;
    put.data(&vec![0; chunk.descriptor().shard_bytes()]).await;
    assert_eq!(put.outcome().await, (9, Some("SHARD_MISMATCH".to_owned())));

    let stranger = copse_core::ids::NodeId::new([3; 32]);
    let nobody = get(near.shards(), Some(stranger), &chunk, 1, 0, 0).await.expect_err("unknown");
    assert_eq!(Refusal::from(&nobody).reason(), Reason::UnknownNode);

    let info = NodeClient::new(near.door.clone()).info(InfoRequest {}).await.expect("info");
    let info = info.into_inner();
    assert_eq!(info.node_id, near.id.as_bytes());
    assert_eq!(info.peers.len(), 1);
    assert!(info.peers[0].connected, "{:?}", info.peers);
    far.node.shutdown().await;
    let gone = get(near.shards(), Some(far.id), &chunk, 1, 0, 0).await.expect_err("stopped");
    assert_eq!(gone.code(), Code::Unavailable, "{gone}");
    near.node.shutdown().await;
}

#[tokio::test]
async fn a_refused_shard_does_not_end_the_stream() {
    let node = TestNode::start(None).await;
    let (good, other) = (chunk("4+2", 3, 1 << 20), chunk("4+2", 4, 1 << 20));
    let descriptor = || good.descriptor().encode();
    let shard = good.shard(ShardIndex(0));
    let mut put = Put::open(node.shards()).await;

    // Wrong bytes, another index, another chunk's bytes, too few, too many.
    let mut flipped = shard.to_vec();
    flipped[shard.len() / 2] ^= 1;
    let long = [shard, &[0]].concat();
    for (tag, data) in [
        (1, &flipped[..]),
        (2, good.shard(ShardIndex(1))),
        (3, other.shard(ShardIndex(0))),
        (4, &shard[1..]),
        (5, &long[..]),
    ] {
        put.header(tag, None, descriptor(), 0).await;
        put.data(data).await;
    }
    // No such index; no descriptor; an oversized one; a target that is no node; a piece too large.
    put.header(6, None, descriptor(), 6).await;
    put.data(shard).await;
    put.header(7, None, b"CPSD".to_vec(), 0).await;
    put.header(8, None, vec![0; 100_000], 0).await;
    put.part(put_request::Part::Header(copse_proto::door::PutHeader {
        tag: 9,
        target: vec![1, 2, 3],
        descriptor: descriptor(),
        index: 0,
        settles: false,
    }))
    .await;
    put.header(10, None, chunk("1+1", 5, 3 << 20).descriptor().encode(), 0).await;
    put.data(&vec![0; (1 << 20) + 1]).await;
    // And one that is right, and once more.
    put.shard(11, None, &good, 0).await;
    put.shard(12, None, &good, 0).await;

    let mut answers = Vec::new();
    for _ in 0..12 {
        answers.push(put.outcome().await);
    }
    answers.sort();
    let mismatch = || Some("SHARD_MISMATCH".to_owned());
    let malformed = || Some("MALFORMED".to_owned());
    let expected = [
        (1, mismatch()),
        (2, mismatch()),
        (3, mismatch()),
        (4, mismatch()),
        (5, mismatch()),
        (6, malformed()),
        (7, malformed()),
        (8, malformed()),
        (9, malformed()),
        (10, Some("OVERSIZED".to_owned())),
        (11, None),
        (12, None),
    ];
    assert_eq!(answers, expected);
    let (_, data) = get(node.shards(), None, &good, 0, 0, 0).await.expect("the good one is there");
    assert!(data == shard);
    node.node.shutdown().await;
}

#[tokio::test]
async fn data_of_no_shard_ends_the_stream_behind_the_answers_that_are_due() {
    let node = TestNode::start(None).await;
    let good = chunk("2+1", 6, 100_000);
    let mut put = Put::open(node.shards()).await;
    put.shard(1, None, &good, 0).await;
    put.data(b"more").await;
    assert_eq!(put.outcome().await, (1, None));
    let end = put.reply().await.expect_err("torn");
    assert_eq!(end.code(), Code::InvalidArgument);
    assert_eq!(Refusal::from(&end).reason(), Reason::Torn);

    let mut empty = Put::open(node.shards()).await;
    empty.requests.send(copse_proto::door::PutRequest { part: None }).await.expect("sent");
    assert_eq!(empty.reply().await.expect_err("nothing in it").code(), Code::InvalidArgument);

    // An end in the middle of a shard is told, and nothing of it is stored.
    let mut half = Put::open(node.shards()).await;
    half.header(2, None, good.descriptor().encode(), 1).await;
    half.data(&good.shard(ShardIndex(1))[..100]).await;
    drop(std::mem::replace(&mut half.requests, tokio::sync::mpsc::channel(1).0));
    assert_eq!(half.outcome().await, (2, Some("SHARD_MISMATCH".to_owned())));
    assert!(half.reply().await.expect("a clean end").is_none());
    let absent = get(node.shards(), None, &good, 1, 0, 0).await.expect_err("not stored");
    assert_eq!(absent.code(), Code::NotFound);
    node.node.shutdown().await;
}

#[tokio::test]
async fn a_full_node_says_so_and_goes_on_serving() {
    let node = TestNode::with_store(Arc::new(MemoryStore::new(1 << 20)), None).await;
    let mut put = Put::open(node.shards()).await;
    let mut stored = Vec::new();
    let refusal = loop {
        let seed = u8::try_from(stored.len()).expect("a megabyte is soon full");
        let next = chunk("1+1", seed, 200_000);
        put.shard(seed.into(), None, &next, 0).await;
        let reply = put.reply().await.expect("goes on").expect("an answer");
        match reply.outcome.expect("an outcome") {
            put_reply::Outcome::Receipt(_) => stored.push(next),
            put_reply::Outcome::Error(error) => break error,
            put_reply::Outcome::Settled(_) => panic!("nothing was settled"),
        }
    };
    assert!(stored.len() > 2, "{} fit", stored.len());
    assert_eq!(refusal.code, Code::ResourceExhausted as u32);
    assert_eq!(refusal.reason, "STORE_FULL");
    assert!(refusal.message.contains("another node"), "{}", refusal.message);
    for chunk in &stored {
        let (_, data) = get(node.shards(), None, chunk, 0, 0, 0).await.expect("still served");
        assert!(data == chunk.shard(ShardIndex(0)));
    }
    let info = NodeClient::new(node.door.clone()).info(InfoRequest {}).await.expect("info");
    let store = info.into_inner().store.expect("a store");
    assert!(!store.accepting && !store.refusing_reason.is_empty(), "{store:?}");
    node.node.shutdown().await;
}

#[tokio::test]
async fn only_the_node_itself_is_behind_its_door() {
    let (node, other) = (TestNode::start(None).await, TestNode::start(None).await);
    let error = dial::dial(node.address, other.id).await.expect_err("another node's id");
    assert!(matches!(error, dial::DialError::WrongNode { .. }), "{error}");
    assert!(error.to_string().contains(&node.id.to_string()), "{error}");
    other.node.shutdown().await;
    node.node.shutdown().await;
}

#[tokio::test]
async fn a_stopping_node_ends_its_streams_and_keeps_its_word() {
    let node = TestNode::start(None).await;
    let good = chunk("2+1", 7, 100_000);
    let mut put = Put::open(node.shards()).await;
    put.shard(1, None, &good, 0).await;
    assert_eq!(put.outcome().await, (1, None));
    let started = std::time::Instant::now();
    node.node.shutdown().await;
    assert!(started.elapsed() < support::PATIENCE);
    let end = put.reply().await.expect_err("the node is gone");
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    assert_eq!(Refusal::from(&end).reason(), Reason::ShuttingDown, "{end}");
}

/// Whether a node says that a chunk is not settled, and which shards it holds.
async fn said(node: &TestNode, target: &TestNode, chunk: &EncodedChunk) -> (Vec<u8>, bool) {
    let request = HasRequest {
        target: target.id.as_bytes().to_vec(),
        chunk_ids: vec![chunk.id().as_bytes().to_vec()],
    };
    let mut held = node.shards().has(request).await.expect("an answer").into_inner().held;
    let held = held.pop().expect("one chunk");
    (held.indices, held.unsettled)
}

/// Puts a shard; whether the node waits to hear that its chunk is safe.
async fn put_one(put: &mut Put, target: &TestNode, chunk: &EncodedChunk, index: u8) -> bool {
    put.shard(1, Some(target.id), chunk, index).await;
    let reply = put.reply().await.expect("goes on").expect("an answer");
    match reply.outcome {
        Some(put_reply::Outcome::Receipt(receipt)) => receipt.unsettled,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_put_that_is_broken_off_is_known_where_its_shards_lie_until_one_completes_it() {
    let store: Arc<MemoryStore> = Arc::new(MemoryStore::new(1 << 30));
    let near = TestNode::start(None).await;
    let far = TestNode::with_store(Arc::clone(&store) as Arc<dyn ShardStore>, Some(&near)).await;
    let (safe, left) = (chunk("4+2", 11, 1 << 20), chunk("4+2", 12, 1 << 20));
    until("the near node reaches the far one", async || {
        let request = HasRequest { target: far.id.as_bytes().to_vec(), chunk_ids: Vec::new() };
        near.shards().has(request).await.is_ok()
    })
    .await;
    for target in [&near, &far] {
        // Both at the near door: the far one's are forwarded.
        let mut put = Put::open(near.shards()).await;
        for chunk in [&safe, &left] {
            assert!(put_one(&mut put, target, chunk, 3).await, "it waits");
            assert_eq!(said(&near, target, chunk).await, (vec![3], true));
        }
        assert!(put_one(&mut put, target, &left, 3).await, "it still does");
        put.settle(2, Some(target.id), &safe).await;
        assert_eq!(said(&near, target, &safe).await, (vec![3], false));
        drop(put);
    }
    // What is written down is read back by the next run.
    let is_marked = |store: &Arc<MemoryStore>| {
        let mut marks = 0;
        let scanned = store.ledger().scan(b"ua", &mut |_, _| {
            marks += 1;
            true
        });
        scanned.expect("a ledger");
        marks == 1
    };
    until("the far node has written it down", async || is_marked(&store)).await;
    for target in [&near, &far] {
        assert_eq!(said(&far, target, &left).await, (vec![3], true));
        assert_eq!(said(&far, target, &safe).await, (vec![3], false));
    }
    // Another put, broken off too, changes nothing; then one that completes it.
    let put = Put::open(far.shards()).await;
    drop(put);
    let mut put = Put::open(far.shards()).await;
    assert!(put_one(&mut put, &far, &left, 4).await);
    for target in [&near, &far] {
        put.settle(2, Some(target.id), &left).await;
        assert!(!said(&near, target, &left).await.1);
    }
    assert!(!is_marked(&store));
    // What was settled once is not marked by a later put of more of it.
    assert!(put_one(&mut put, &far, &safe, 5).await);
    drop(put);
    until("that is over", async || !said(&near, &far, &safe).await.1).await;
    assert_eq!(said(&near, &far, &safe).await, (vec![3, 5], false));
    assert!(!is_marked(&store));
}

#[tokio::test]
async fn a_node_that_stops_tells_others_of_the_puts_that_end_with_it() {
    let near = TestNode::start(None).await;
    let store: Arc<dyn ShardStore> = Arc::new(MemoryStore::new(1 << 30));
    let far = TestNode::with_store(Arc::clone(&store), Some(&near)).await;
    let chunk = chunk("2+1", 7, 1 << 20);
    let mut put = Put::open(near.shards()).await;
    until("the near node reaches the far one", async || {
        put.shard(1, Some(far.id), &chunk, 1).await;
        put.outcome().await == (1, None)
    })
    .await;
    // The client has not said that the chunk is safe, and is there until the node has stopped.
    near.node.shutdown().await;
    let mut marks = 0;
    let mut visit = |_: &[u8], _: &[u8]| {
        marks += 1;
        true
    };
    store.ledger().scan(b"ua", &mut visit).expect("a ledger");
    assert_eq!(marks, 1);
    drop(put);
    far.node.shutdown().await;
}
