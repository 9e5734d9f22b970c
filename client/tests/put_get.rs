//! Chunks into a network and back, over real sockets, while nodes die, stall, fill up and lie.

mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use copse_client::{
    encode::{Budget, Encoder, PreparedChunk},
    error::{GetError, PutError},
    get::Downloader,
    network::Network,
    profile::Door,
    put::{PutOptions, Uploader},
};
use copse_core::{
    directory::Directory,
    extent::Extent,
    geometry::Geometry,
    ids::{NodeId, ShardId, ShardIndex},
    layout::Layout,
    ring::Ring,
    seal::ConvergenceSecret,
};
use copse_proto::status::Reason;

use support::{FakeNetwork, PlainConnector, StillTime, bytes, until};

fn geometry(text: &str) -> Geometry {
    text.parse().expect("a geometry")
}

fn encoder() -> Encoder {
    Encoder::new(ConvergenceSecret::new([5; 32]), Budget::default())
}

fn uploader(network: &Network, encoder: &Encoder) -> Uploader {
    Uploader::new(network.clone(), encoder.budget().clone(), PutOptions::default())
}

async fn encode(encoder: &Encoder, code: &str, plaintext: &[u8]) -> (PreparedChunk, Extent) {
    let mut buffer = encoder.plaintext().await;
    buffer.extend_from_slice(plaintext);
    encoder.bulk(geometry(code), buffer).await.expect("encodes")
}

/// Stores one chunk with all its shards.
async fn store(network: &Network, code: &str, plaintext: &[u8]) -> Extent {
    let _still = StillTime::begin();
    let encoder = encoder();
    let uploader = uploader(network, &encoder);
    let (chunk, extent) = encode(&encoder, code, plaintext).await;
    uploader.submit(chunk).await.await.expect("stored");
    let redundancy = uploader.flush().await.expect("flushed");
    assert_eq!(redundancy.thin_chunks, 0, "{redundancy}");
    extent
}

#[tokio::test]
async fn what_was_put_is_got_whole_and_by_range() {
    let fake = FakeNetwork::start(16).await;
    let network = fake.connect().await;
    let largest = Layout::largest(geometry("10+6")).plaintext_bytes_max();
    let reader = Downloader::new(network.clone());
    for size in [0, 1, 4096, 39_999, 41_000, 1 << 20, largest] {
        let plaintext = bytes(1, size);
        let extent = store(&network, "10+6", &plaintext).await;
        assert_eq!(fake.holders(extent.chunk).len(), extent.geometry.total());
        let got = reader.read_extent(&extent).await.expect("reads");
        assert!(got == plaintext, "{size} bytes came back as others");
        for (start, end) in [(0, 1), (size / 3, size / 2), (size.saturating_sub(1), size)] {
            let range = start..end.min(size);
            let got = reader.read_extent_range(&extent, range.clone()).await.expect("reads");
            assert!(got == plaintext[range.clone()], "{range:?} of {size}");
        }
    }
    let extent = store(&network, "10+6", b"short").await;
    let error = reader.read_extent_range(&extent, 3..6).await.expect_err("outside");
    assert!(matches!(error, GetError::OutOfRange { length: 5, .. }), "{error}");
}

#[tokio::test]
async fn a_small_range_of_a_healthy_chunk_costs_one_request() {
    let _still = StillTime::begin();
    let fake = FakeNetwork::start(16).await;
    let network = fake.connect().await;
    let plaintext = bytes(2, 5 << 20);
    let extent = store(&network, "10+6", &plaintext).await;
    // A pause of the machine can make a read hedge, which asks more: then the next reader tells.
    for _ in 0..20 {
        let reader = Downloader::new(network.clone());
        let got = reader.read_extent_range(&extent, 3_000_000..3_004_096).await.expect("reads");
        assert!(got == plaintext[3_000_000..3_004_096]);
        let counts = reader.counts();
        if counts.hedged == 0 {
            assert_eq!((counts.requests, counts.rebuilt), (1, 0));
            return;
        }
    }
    panic!("twenty reads in a row were hedged");
}

#[tokio::test]
async fn what_one_node_would_take_with_it_is_not_acknowledged_unless_that_is_allowed() {
    let fake = FakeNetwork::start(2).await;
    let network = fake.connect().await;
    let encoder = encoder();
    let plaintext = bytes(7, 1 << 20);
    for (code, allow_fragile, is_stored) in
        [("4+2", false, false), ("4+2", true, true), ("2+2", false, true)]
    {
        let options = PutOptions { allow_fragile, ..PutOptions::default() };
        let uploader = Uploader::new(network.clone(), encoder.budget().clone(), options);
        let (chunk, _) = encode(&encoder, code, &plaintext).await;
        match uploader.submit(chunk).await.await {
            Ok(_) => assert!(is_stored, "{code} on two nodes"),
            Err(error) => {
                assert!(!is_stored, "{error}");
                assert!(matches!(error, PutError::Fragile { nodes: 2, .. }), "{error}");
                assert_eq!(fake.total(|seen| &seen.puts), 0, "nothing was sent");
                let told = uploader.flush().await.expect_err("it counts as failed");
                assert!(matches!(told, PutError::Fragile { .. }), "{told}");
            }
        }
    }
}

#[tokio::test]
async fn a_second_put_of_the_same_data_sends_nothing() {
    let _still = StillTime::begin();
    let fake = FakeNetwork::start(16).await;
    let network = fake.connect().await;
    let plaintext = bytes(3, 2 << 20);
    store(&network, "10+6", &plaintext).await;
    let sent = fake.total(|seen| &seen.puts);
    assert_eq!(sent, 16);
    let encoder = encoder();
    // Another session, which knows nothing of the first.
    let uploader = uploader(&fake.connect().await, &encoder);
    let (chunk, extent) = encode(&encoder, "10+6", &plaintext).await;
    let stored = uploader.submit(chunk).await.await.expect("stored");
    assert!(!stored.sent);
    assert_eq!(uploader.flush().await.expect("flushed").worst, Some((16, 16)));
    assert_eq!((fake.total(|seen| &seen.puts), uploader.progress().sent_bytes), (sent, 0));

    // Of an interrupted one, only what is missing.
    let holders = fake.holders(extent.chunk);
    for index in [3, 7] {
        fake.node(holders[&ShardIndex(index)][0]).lose(extent.chunk);
    }
    store(&fake.connect().await, "10+6", &plaintext).await;
    assert_eq!(fake.total(|seen| &seen.puts), sent + 2);
}

/// Every shard of a chunk is on a node that was asked for it, and not on these.
fn assert_all_stored(fake: &FakeNetwork, extent: &Extent, liars: &[NodeId]) {
    let holders = fake.holders(extent.chunk);
    assert_eq!(holders.len(), extent.geometry.total(), "{holders:?}");
    for (index, nodes) in &holders {
        assert!(nodes.iter().any(|node| !liars.contains(node)), "{index} is on liars only");
    }
}

#[tokio::test]
async fn a_node_that_claims_everything_is_believed_nothing() {
    let fake = FakeNetwork::start(16).await;
    let claims = |at: usize| &fake.nodes[at].faults.claims_everything;
    // Three of sixteen: some chunks meet one among the first two that are asked, and some do not.
    for liar in [2, 7, 11] {
        claims(liar).store(true, Ordering::SeqCst);
    }
    let network = fake.connect().await;
    for seed in 0..8 {
        let extent = store(&network, "10+6", &bytes(60 + seed, 300_000)).await;
        assert_all_stored(&fake, &extent, &[]);
    }
    // Those that keep nothing and say they have all: their shards go elsewhere.
    let liars: Vec<NodeId> = [2, 7, 11].iter().map(|&at| fake.nodes[at].id).collect();
    for liar in [2, 7, 11] {
        fake.nodes[liar].faults.full.store(true, Ordering::SeqCst);
    }
    let plaintext = bytes(70, 300_000);
    for _ in 0..2 {
        // The second time, from a client that knows nobody, among claims that are true.
        let extent = store(&fake.connect().await, "10+6", &plaintext).await;
        assert_all_stored(&fake, &extent, &liars);
    }
    // And when nobody else is left, it is said.
    for node in &fake.nodes {
        node.faults.claims_everything.store(true, Ordering::SeqCst);
        node.faults.full.store(true, Ordering::SeqCst);
    }
    let encoder = encoder();
    let uploader = uploader(&fake.connect().await, &encoder);
    let (chunk, _) = encode(&encoder, "10+6", &bytes(71, 300_000)).await;
    let error = uploader.submit(chunk).await.await.expect_err("nobody keeps anything");
    assert!(matches!(error, PutError::Quorum { have: 0, .. }), "{error}");
}

#[tokio::test]
async fn claims_through_a_lying_door_are_believed_as_little() {
    let _still = StillTime::begin();
    let fake = FakeNetwork::start(6).await;
    let connector = Arc::new(PlainConnector::default());
    let others = fake.nodes[1..].iter().map(|node| node.id);
    connector.unreachable.lock().expect("no panic").extend(others);
    fake.nodes[0].faults.claims_everything.store(true, Ordering::SeqCst);
    let network = fake.connect_over(connector).await;
    let plaintext = bytes(72, 300_000);
    for sent in [6, 6] {
        let extent = store(&network, "4+2", &plaintext).await;
        assert_all_stored(&fake, &extent, &[]);
        // What is true is believed through the same door.
        assert_eq!(fake.total(|seen| &seen.puts), sent);
    }
}

#[tokio::test]
async fn one_replica_is_not_all_of_them() {
    let _still = StillTime::begin();
    let fake = FakeNetwork::start(4).await;
    let network = fake.connect().await;
    // Less than is worth coding: 1+2 of the same bytes.
    let extent = store(&network, "4+2", &bytes(73, 20_000)).await;
    assert_eq!(extent.geometry, geometry("1+2"));
    let holders = fake.holders(extent.chunk);
    for index in [1, 2] {
        fake.node(holders[&ShardIndex(index)][0]).lose(extent.chunk);
    }
    // The one that is left serves its bytes for any index.
    let left = fake.node(holders[&ShardIndex(0)][0]);
    let held = left.shards.lock().expect("no panic").values().next().cloned().expect("a replica");
    for index in [1, 2] {
        let id = ShardId { chunk: extent.chunk, index: ShardIndex(index) };
        left.shards.lock().expect("no panic").insert(id, held.clone());
    }
    store(&fake.connect().await, "4+2", &bytes(73, 20_000)).await;
    let holders = fake.holders(extent.chunk);
    for index in [1, 2] {
        assert_eq!(holders[&ShardIndex(index)].len(), 2, "{holders:?}");
    }
}

#[tokio::test]
async fn equal_chunks_of_one_session_are_sent_once() {
    let _still = StillTime::begin();
    let fake = FakeNetwork::start(4).await;
    let encoder = encoder();
    let uploader = uploader(&fake.connect().await, &encoder);
    for _ in 0..3 {
        let (chunk, _) = encode(&encoder, "2+2", &[0; 100_000]).await;
        uploader.submit(chunk).await.await.expect("stored");
    }
    let redundancy = uploader.flush().await.expect("flushed");
    assert_eq!((redundancy.chunks, fake.total(|seen| &seen.puts)), (1, 4));
}

#[tokio::test]
async fn dead_and_full_holders_are_replaced_by_the_next_of_the_walk() {
    let fake = FakeNetwork::start(10).await;
    let network = fake.connect().await;
    fake.nodes[3].kill();
    fake.nodes[4].faults.full.store(true, Ordering::SeqCst);
    fake.nodes[5].faults.wrong_receipt.store(true, Ordering::SeqCst);
    let plaintext = bytes(4, 1 << 20);
    let extent = store(&network, "4+3", &plaintext).await;
    let holders = fake.holders(extent.chunk);
    for wrong in [3, 4] {
        let id = fake.nodes[wrong].id;
        assert!(holders.values().flatten().all(|holder| *holder != id), "node {wrong}");
    }
    let got = Downloader::new(network).read_extent(&extent).await.expect("reads");
    assert!(got == plaintext);
}

#[tokio::test]
async fn a_holder_that_dies_under_the_put_is_replaced() {
    let fake = FakeNetwork::start(8).await;
    let network = fake.connect().await;
    let encoder = encoder();
    let uploader = uploader(&network, &encoder);
    let mut extents = Vec::new();
    for seed in 0..30 {
        let plaintext = bytes(100 + seed, 1 << 20);
        let (chunk, extent) = encode(&encoder, "3+3", &plaintext).await;
        uploader.submit(chunk).await;
        extents.push((extent, plaintext));
        if seed == 10 {
            fake.nodes[2].kill();
        }
    }
    let redundancy = uploader.flush().await.expect("flushed");
    assert_eq!((redundancy.chunks, redundancy.failed), (30, 0));
    let reader = Downloader::new(network);
    for (extent, plaintext) in extents {
        assert!(reader.read_extent(&extent).await.expect("reads") == plaintext);
    }
}

#[tokio::test]
async fn a_hung_holder_does_not_keep_a_chunk_from_being_whole() {
    let fake = FakeNetwork::start(7).await;
    let network = fake.connect().await;
    fake.nodes[1].faults.hung.store(true, Ordering::SeqCst);
    let encoder = encoder();
    let uploader = uploader(&network, &encoder);
    for seed in 0..4 {
        let (chunk, _) = encode(&encoder, "3+3", &bytes(seed, 300_000)).await;
        uploader.submit(chunk).await.await.expect("stored");
    }
    let redundancy = uploader.flush().await.expect("flushed");
    assert_eq!((redundancy.worst, redundancy.thin_chunks), (Some((6, 6)), 0));
    until("memory is free again", || encoder.budget().in_use() == 0).await;
}

#[tokio::test]
async fn a_holder_that_answers_what_it_was_not_sent_does_not_hold_up_a_put() {
    let fake = FakeNetwork::start(7).await;
    let network = fake.connect().await;
    let liar = &fake.nodes[1];
    liar.faults.wrong_tags.store(true, Ordering::SeqCst);
    let encoder = encoder();
    let uploader = uploader(&network, &encoder);
    for seed in 0..4 {
        let (chunk, _) = encode(&encoder, "3+3", &bytes(seed, 300_000)).await;
        uploader.submit(chunk).await.await.expect("stored");
    }
    let flushed = tokio::time::timeout(Duration::from_secs(30), uploader.flush());
    let redundancy = flushed.await.expect("it ends").expect("flushed");
    assert_eq!((redundancy.worst, redundancy.thin_chunks), (Some((6, 6)), 0));
    assert!(network.holder(liar.id).is_distrusted());
    until("memory is free again", || encoder.budget().in_use() == 0).await;
}

#[tokio::test]
async fn less_than_the_write_quorum_is_an_error_that_names_who_refused() {
    let _still = StillTime::begin();
    let fake = FakeNetwork::start(6).await;
    let network = fake.connect().await;
    for node in &fake.nodes[1..] {
        node.faults.full.store(true, Ordering::SeqCst);
    }
    let encoder = encoder();
    let uploader = uploader(&network, &encoder);
    let (chunk, _) = encode(&encoder, "4+2", &bytes(1, 100_000)).await;
    let error = uploader.submit(chunk.clone()).await.await.expect_err("five of six are full");
    let PutError::Quorum { have, need, total, refusals, .. } = &error else { panic!("{error}") };
    assert_eq!((*have, *need, *total, refusals.0.len()), (2, 6, 6, 5));
    assert!(error.to_string().contains("full"), "{error}");
    uploader.flush().await.expect_err("flush says it too");
    // Room again: the same chunk can be submitted again.
    for node in &fake.nodes {
        node.faults.full.store(false, Ordering::SeqCst);
    }
    let again = Uploader::new(fake.connect().await, Budget::default(), PutOptions::default());
    again.submit(chunk).await.await.expect("stored now");
}

#[tokio::test]
async fn a_closed_session_takes_no_more_and_leaves_no_chunk_in_part() {
    let _still = StillTime::begin();
    let fake = FakeNetwork::start(6).await;
    let network = fake.connect().await;
    let encoder = encoder();
    let uploader = uploader(&network, &encoder);
    let mut before = Vec::new();
    for seed in 0..4 {
        let (chunk, extent) = encode(&encoder, "4+2", &bytes(seed, 100_000)).await;
        // Nobody waits for the ticket: as when a command is stopped.
        drop(uploader.submit(chunk).await);
        before.push(extent.chunk);
    }
    uploader.close();
    let (late, extent) = encode(&encoder, "4+2", &bytes(9, 100_000)).await;
    let refused = uploader.submit(late).await.await;
    assert!(matches!(refused, Err(PutError::Stopped(of)) if of == extent.chunk), "{refused:?}");
    let redundancy = uploader.flush().await.expect("those before are stored");
    assert_eq!((redundancy.chunks, redundancy.thin_chunks), (4, 0), "{redundancy}");
    assert!(uploader.is_idle());
    for chunk in before {
        assert_eq!(fake.holders(chunk).len(), 6);
    }
    assert!(fake.holders(extent.chunk).is_empty());
    until("memory is free again", || encoder.budget().in_use() == 0).await;
}

#[tokio::test]
async fn any_k_shards_are_enough_and_one_less_is_said_so() {
    let fake = FakeNetwork::start(6).await;
    let network = fake.connect().await;
    let plaintext = bytes(5, 3 << 20);
    let extent = store(&network, "4+2", &plaintext).await;
    let holders = fake.holders(extent.chunk);
    fake.node(holders[&ShardIndex(0)][0]).kill();
    fake.node(holders[&ShardIndex(2)][0]).lose(extent.chunk);
    let reader = Downloader::new(network);
    assert!(reader.read_extent(&extent).await.expect("4 of 6 are left") == plaintext);
    let range = 2_000_000..2_100_000;
    let got = reader.read_extent_range(&extent, range.clone()).await.expect("reads");
    assert!(got == plaintext[range]);
    assert!(reader.counts().rebuilt > 0);

    fake.node(holders[&ShardIndex(5)][0]).lose(extent.chunk);
    let mut error = reader.read_extent(&extent).await.expect_err("3 of 6 are left");
    for _ in 0..20 {
        // For whoever waits, a pause of the machine is a node that does not answer: then once more.
        let is_late = matches!(&error, GetError::DataLoss { refusals, .. }
            if refusals.0.iter().any(|(_, why)| why.reason() == Reason::TimedOut));
        if !is_late {
            break;
        }
        error = reader.read_extent(&extent).await.expect_err("3 of 6 are left");
    }
    let GetError::DataLoss { chunk, have, need, unreachable, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((*chunk, *have, *need, *unreachable), (extent.chunk, 3, 4, 1));
    assert!(error.to_string().contains("have 3 of the 4 shards"), "{error}");
}

#[tokio::test]
async fn who_is_silent_is_asked_again_after_a_pause_and_not_at_once() {
    let fake = FakeNetwork::start(6).await;
    let network = fake.connect().await;
    let extent = store(&network, "4+2", &bytes(5, 3 << 20)).await;
    let holders = fake.holders(extent.chunk);
    let silent = [0, 1, 2].map(|index| fake.node(holders[&ShardIndex(index)][0]));
    for node in &silent {
        node.faults.hung.store(true, Ordering::SeqCst);
        // The put has asked, too.
        node.seen.has.store(0, Ordering::SeqCst);
    }
    let reader = Downloader::new(network);
    let still = StillTime::begin();
    let reading = still.stepping_by(Duration::from_millis(200), reader.read_extent(&extent));
    let error = reading.await.expect_err("3 of 6 are left");
    assert!(matches!(error, GetError::DataLoss { .. }), "{error}");
    // With the others, and at the looks after one and after three seconds: each costs as long as a node
    // that is gone is waited for.
    for node in silent {
        assert_eq!(node.seen.has.load(Ordering::SeqCst), 3);
    }
}

#[tokio::test]
async fn a_reader_that_waited_in_vain_does_not_wait_for_each_of_many_chunks() {
    let fake = FakeNetwork::start(6).await;
    let network = fake.connect().await;
    let mut extents = Vec::new();
    for number in 0..12 {
        extents.push(store(&network, "4+2", &bytes(number, 200_000)).await);
    }
    for node in &fake.nodes[..3] {
        node.faults.hung.store(true, Ordering::SeqCst);
    }
    let reader = Downloader::new(network.clone());
    let still = StillTime::begin();
    let mut took = Vec::new();
    for extent in &extents {
        let started = tokio::time::Instant::now();
        let reading = still.stepping_by(Duration::from_millis(200), reader.read_extent(extent));
        let error = reading.await.expect_err("3 of 6 are left");
        assert!(error.may_pass(), "{error}");
        assert!(error.to_string().contains("3 nodes that may hold more did not answer"), "{error}");
        took.push(started.elapsed());
    }
    // The first two wait; then it is looked now and then whether they are back, and most end at once.
    let long = took[2..].iter().filter(|took| **took > Duration::from_secs(5)).count();
    assert!(long <= 4, "{took:?}");
    // Who comes back is asked again soon.
    for node in &fake.nodes[..3] {
        node.faults.hung.store(false, Ordering::SeqCst);
    }
    still
        .stepping_by(Duration::from_millis(200), tokio::time::sleep(Duration::from_secs(61)))
        .await;
    still.stepping(reader.read_extent(&extents[0])).await.expect("all are there");
}

#[tokio::test]
async fn a_lying_node_is_routed_around_and_remembered() {
    let _still = StillTime::begin();
    for lie in 0..4 {
        let fake = FakeNetwork::start(6).await;
        let network = fake.connect().await;
        let plaintext = bytes(6, 2 << 20);
        let extent = store(&network, "4+2", &plaintext).await;
        store(&network, "4+2", &bytes(7, 2 << 20)).await;
        let liar = fake.node(fake.holders(extent.chunk)[&ShardIndex(1)][0]);
        let faults = &liar.faults;
        let fault = match lie {
            0 => &faults.wrong_bytes,
            1 => &faults.wrong_proof,
            2 => &faults.other_shard,
            _ => &faults.other_descriptor,
        };
        fault.store(true, Ordering::SeqCst);
        let reader = Downloader::new(network.clone());
        // Once, unless a pause of the machine makes others answer in the liar's place.
        for _ in 0..20 {
            assert!(reader.read_extent(&extent).await.expect("reads") == plaintext, "lie {lie}");
            if network.holder(liar.id).is_distrusted() {
                break;
            }
        }
        assert!(network.holder(liar.id).is_distrusted(), "lie {lie}");
        let asked = liar.seen.gets.load(Ordering::SeqCst);
        assert!(reader.read_extent(&extent).await.expect("reads") == plaintext);
        assert_eq!(liar.seen.gets.load(Ordering::SeqCst), asked, "the liar was asked again");
    }
}

#[tokio::test]
async fn a_slow_node_is_hedged() {
    let fake = FakeNetwork::start(6).await;
    let network = fake.connect().await;
    let plaintext = bytes(8, 400_000);
    let extent = store(&network, "4+2", &plaintext).await;
    let reader = Downloader::new(network.clone());
    {
        // Nobody is slow yet.
        let _still = StillTime::begin();
        for _ in 0..20 {
            reader.read_extent_range(&extent, 0..4096).await.expect("reads");
        }
    }
    let slow = fake.node(fake.holders(extent.chunk)[&ShardIndex(0)][0]);
    slow.faults.hung.store(true, Ordering::SeqCst);
    // Hedged, and not given up: that would leave the counter as it was.
    let hedged = reader.counts().hedged;
    let got = reader.read_extent_range(&extent, 0..4096).await.expect("reads");
    assert!(got == plaintext[..4096]);
    assert!(reader.counts().hedged > hedged);
    // After a few times it is left alone.
    for _ in 0..5 {
        reader.read_extent_range(&extent, 0..4096).await.expect("reads");
    }
    let problem = network.holder(slow.id).report().last_problem.expect("it was noticed");
    assert!(problem.contains("slower"), "{problem}");
}

#[tokio::test]
async fn a_door_that_says_nothing_holds_up_nobody() {
    let fake = FakeNetwork::start(4).await;
    let connector = Arc::new(PlainConnector::default());
    let silent = fake.nodes[0].id;
    connector.silent.lock().expect("no panic").push(silent);
    let doors = fake.nodes[..2].iter();
    let doors = doors.map(|node| Door { node: node.id, addresses: vec![node.address] }).collect();
    let connecting = Network::connect(fake.id, doors, Directory::new(fake.id), connector);
    let still = StillTime::begin();
    let network = still.stepping(connecting).await.expect("one of two doors answers");
    assert_eq!(network.view().directory.len(), 4);
    // It was left behind, not waited for until it could be given up.
    assert_eq!(network.holder(silent).report().last_problem, None);
}

#[tokio::test]
async fn shards_that_moved_are_found_by_asking_along_the_walk() {
    // Once all nodes say what they hold, and once only those that hold no data shard.
    for data_holders_hang in [false, true] {
        let fake = FakeNetwork::start(12).await;
        let network = fake.connect().await;
        let plaintext = bytes(9, 1 << 20);
        let extent = store(&network, "3+3", &plaintext).await;
        // All shards go to the nodes that held none: within the 12 nodes that are searched.
        let holders = fake.holders(extent.chunk);
        let from: Vec<_> = holders.iter().map(|(index, nodes)| (index, nodes[0])).collect();
        let mut to = fake.nodes.iter().filter(|node| from.iter().all(|(_, old)| *old != node.id));
        for (index, node) in &from {
            let moved = std::mem::take(&mut *fake.node(*node).shards.lock().expect("no panic"));
            let to = to.next().expect("a free node");
            *to.shards.lock().expect("no panic") = moved;
            to.faults.hung.store(data_holders_hang && index.0 < 3, Ordering::SeqCst);
        }
        let asked_in_vain = || -> usize {
            from.iter().map(|(_, old)| fake.node(*old).seen.gets.load(Ordering::SeqCst)).sum()
        };
        let reader = Downloader::new(network);
        assert!(reader.read_extent(&extent).await.expect("reads") == plaintext);
        // And where they are not is remembered. A pause of the machine can make a node answer too late to
        // be heard; then the next read asks it once more.
        let mut reads = 0..20;
        let settled = loop {
            if reads.next().is_none() {
                break false;
            }
            let before = asked_in_vain();
            assert!(reader.read_extent(&extent).await.expect("reads") == plaintext);
            if asked_in_vain() == before {
                break true;
            }
        };
        assert!(settled, "their old holders are asked at each read");
    }
}

/// As after many joined at once: the newcomers lie before those that hold the shards.
#[tokio::test]
async fn shards_behind_many_newcomers_are_found() {
    let fake = FakeNetwork::start(20).await;
    let network = fake.connect().await;
    let plaintext = bytes(13, 500_000);
    let extent = store(&network, "1+1", &plaintext).await;
    let view = network.view();
    let walk: Vec<_> = view.ring.walk(Ring::arc(&extent.chunk)).collect();
    // Behind the four nodes of the first look, and behind the eight of the next.
    for (index, place) in [(0, 15), (1, 9)] {
        fake.node(fake.holders(extent.chunk)[&ShardIndex(index)][0])
            .move_all(fake.node(walk[place]));
    }
    assert!(
        Downloader::new(network.clone()).read_extent(&extent).await.expect("reads") == plaintext
    );
    fake.node(walk[9]).lose(extent.chunk);
    assert!(Downloader::new(network).read_extent(&extent).await.expect("reads") == plaintext);
}

#[tokio::test]
async fn a_shard_that_moves_while_it_is_looked_for_is_found() {
    let fake = FakeNetwork::start(8).await;
    let network = fake.connect().await;
    let plaintext = bytes(11, 1 << 20);
    let extent = store(&network, "3+1", &plaintext).await;
    let holders = fake.holders(extent.chunk);
    let holder = |index| fake.node(holders[&ShardIndex(index)][0]);
    let mut free =
        fake.nodes.iter().filter(|node| node.shards.lock().expect("no panic").is_empty());
    let (first, second) = (free.next().expect("a free node"), free.next().expect("another"));
    // One shard is gone, one is not where the ring says, and moves on after its place was found.
    holder(3).lose(extent.chunk);
    holder(1).move_all(first);
    *first.faults.moves_to.lock().expect("no panic") = Some(Arc::clone(second));
    let reader = Downloader::new(network);
    assert!(reader.read_extent(&extent).await.expect("3 of 4 are there") == plaintext);
    assert!(first.shards.lock().expect("no panic").is_empty(), "it did not move while read");
}

#[tokio::test]
async fn shards_on_a_node_that_the_client_has_not_heard_of_are_found() {
    let mut fake = FakeNetwork::start(4).await;
    let network = fake.connect().await;
    let plaintext = bytes(12, 1 << 20);
    let extent = store(&network, "3+1", &plaintext).await;
    let newcomer = fake.add(200);
    for index in [0, 1] {
        fake.node(fake.holders(extent.chunk)[&ShardIndex(index)][0]).move_all(&newcomer);
    }
    assert_eq!(network.view().directory.len(), 4);
    let reader = Downloader::new(network);
    assert!(reader.read_extent(&extent).await.expect("all are there") == plaintext);
}

#[tokio::test]
async fn a_node_without_a_reachable_door_is_used_through_another() {
    let _still = StillTime::begin();
    let fake = FakeNetwork::start(4).await;
    let connector = Arc::new(PlainConnector::default());
    connector
        .unreachable
        .lock()
        .expect("no panic")
        .extend(fake.nodes[1..].iter().map(|node| node.id));
    let network = fake.connect_over(connector).await;
    let plaintext = bytes(10, 500_000);
    let extent = store(&network, "2+2", &plaintext).await;
    assert_eq!(fake.holders(extent.chunk).values().flatten().count(), 4);
    assert!(fake.nodes.iter().all(|node| !node.shards.lock().expect("no panic").is_empty()));
    let got = Downloader::new(network).read_extent(&extent).await.expect("reads");
    assert!(got == plaintext);
}

#[tokio::test]
async fn memory_in_flight_stays_within_the_budget() {
    let fake = FakeNetwork::start(6).await;
    for node in &fake.nodes {
        node.faults.delay_ms.store(200, Ordering::SeqCst);
    }
    let budget = Budget::new(8 << 20);
    let encoder = Encoder::new(ConvergenceSecret::new([5; 32]), budget.clone());
    let uploader = uploader(&fake.connect().await, &encoder);
    let mut most = 0;
    for seed in 0..40 {
        let (chunk, _) = encode(&encoder, "4+2", &bytes(seed, 1 << 20)).await;
        most = most.max(budget.in_use());
        uploader.submit(chunk).await;
    }
    uploader.flush().await.expect("flushed");
    assert!(most > 4 << 20 && most <= 8 << 20, "{most}");
    until("memory is free again", || budget.in_use() == 0).await;
}

/// The nodes that wait to hear that a chunk is safe, and those that heard it.
fn settling(fake: &FakeNetwork, extent: &Extent) -> (Vec<NodeId>, Vec<NodeId>) {
    let (mut wait, mut heard) = (Vec::new(), Vec::new());
    for node in &fake.nodes {
        if node.unsettled.lock().expect("no panic").contains(&extent.chunk) {
            wait.push(node.id);
        }
        if node.settled.lock().expect("no panic").contains(&extent.chunk) {
            heard.push(node.id);
        }
    }
    (wait, heard)
}

#[tokio::test]
async fn every_holder_hears_that_a_chunk_is_safe_also_through_another() {
    let fake = FakeNetwork::start(16).await;
    // One is reached through another only.
    let connector = Arc::new(PlainConnector::default());
    connector.unreachable.lock().expect("no panic").push(fake.nodes[5].id);
    let network = fake.connect_over(connector).await;
    let extent = store(&network, "10+6", &bytes(31, 1 << 20)).await;
    let (wait, heard) = settling(&fake, &extent);
    assert_eq!((wait.len(), heard.len()), (0, 16), "{wait:?}");
    // Who has it all does not ask again, and is told nothing.
    store(&network, "10+6", &bytes(31, 1 << 20)).await;
    assert!(fake.nodes.iter().all(|node| node.settled.lock().expect("no panic").len() == 1));
}

#[tokio::test]
async fn a_chunk_that_is_not_safe_is_settled_by_nobody_until_a_put_completes_it() {
    let fake = FakeNetwork::start(6).await;
    let network = fake.connect().await;
    let encoder = encoder();
    let plaintext = bytes(32, 1 << 20);
    for node in &fake.nodes[1..] {
        node.faults.full.store(true, Ordering::SeqCst);
    }
    let first = uploader(&network, &encoder);
    let (chunk, extent) = encode(&encoder, "3+3", &plaintext).await;
    first.submit(chunk).await.await.expect_err("one node is no quorum");
    first.flush().await.expect_err("told before");
    let (wait, heard) = settling(&fake, &extent);
    assert_eq!((wait.len(), heard.len()), (1, 0));
    for node in &fake.nodes[1..] {
        node.faults.full.store(false, Ordering::SeqCst);
    }
    // Another client, which finds some shards there and sends the others.
    let network = fake.connect().await;
    store(&network, "3+3", &plaintext).await;
    let (still, heard) = settling(&fake, &extent);
    assert_eq!(still, []);
    assert!(heard.contains(&wait[0]), "{wait:?}, {heard:?}");
}

#[tokio::test]
async fn a_holder_that_does_not_answer_to_it_holds_a_flush_up_for_seconds_only() {
    let fake = FakeNetwork::start(6).await;
    let network = fake.connect().await;
    let encoder = encoder();
    let uploader = uploader(&network, &encoder);
    let (chunk, extent) = encode(&encoder, "3+3", &bytes(33, 1 << 20)).await;
    // It hangs as soon as it has stored its shard.
    let (hung, node) = (Arc::clone(&fake.nodes[4]), &fake.nodes[4]);
    node.faults.after_put.set(move || hung.faults.hung.store(true, Ordering::SeqCst));
    let begin = std::time::Instant::now();
    uploader.submit(chunk).await.await.expect("stored");
    let redundancy = uploader.flush().await.expect("flushed");
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    assert_eq!(redundancy.thin_chunks, 0, "{redundancy}");
    let (wait, heard) = settling(&fake, &extent);
    assert_eq!((wait, heard.len()), (vec![node.id], 5));
}
