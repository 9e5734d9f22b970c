//! Trees whose chunks have lost shards: found, named, made whole again, while nodes die, fill up and
//! lie.

mod support;

use std::sync::{Arc, atomic::Ordering};

use copse_client::{
    check::{
        CheckOptions, CheckProgress, CheckReport, Checker, ChunkRef, RepairError, Strength,
        Verifier, check_manifest, check_tree, make_verifier,
    },
    encode::{Budget, Encoder},
    error::{GetError, ReadError},
    get::Downloader,
    network::Network,
    put::{PutOptions, Uploader},
    tree_read::TreeReader,
};
use copse_core::{
    capability::{Capability, VerifyCapability},
    extent::Extent,
    geometry::Geometry,
    ids::{ChunkId, NodeId, ShardId, ShardIndex},
    limits::PACKED_BYTES_MAX,
    seal::{ContentKey, ConvergenceSecret},
    tree::{self, Meta, Name, Timestamp, TreeWriter},
};

use support::{FakeNetwork, StillTime, bytes, until};

const LOOK: CheckOptions = CheckOptions { deep: false, repair: false };
const DEEP: CheckOptions = CheckOptions { deep: true, repair: false };
const REPAIR: CheckOptions = CheckOptions { deep: false, repair: true };
const DEEP_REPAIR: CheckOptions = CheckOptions { deep: true, repair: true };

/// A tree in a network of fake nodes: `large` and `sub/other` with a chunk each, `sub/small` in the
/// pack of the tree's nodes.
struct Stored {
    fake: FakeNetwork,
    network: Network,
    capability: Capability,
    large: Extent,
    other: Extent,
}

fn meta() -> Meta {
    Meta::new(0o644, Timestamp::new(1, 2).expect("a time"))
}

async fn stored(nodes: u8, code: &str) -> Stored {
    let _still = StillTime::begin();
    let fake = FakeNetwork::start(nodes).await;
    let network = fake.connect().await;
    let geometry: Geometry = code.parse().expect("a geometry");
    let secret = ConvergenceSecret::new([5; 32]);
    let encoder = Encoder::new(secret.clone(), Budget::default());
    let uploader = Uploader::new(network.clone(), encoder.budget().clone(), PutOptions::default());
    let mut writer = TreeWriter::new(geometry, secret);
    let mut extents = Vec::new();
    writer.begin_directory(b"", meta()).expect("a root");
    for (seed, name) in [(1, "large"), (2, "other")] {
        if name == "other" {
            writer.begin_directory(b"sub", meta()).expect("a directory");
        }
        let mut buffer = encoder.plaintext().await;
        buffer.extend_from_slice(&bytes(seed, 2_000_000));
        let (chunk, extent) = encoder.bulk(geometry, buffer).await.expect("encodes");
        uploader.submit(chunk).await;
        extents.push(extent.clone());
        writer.begin_file(name.as_bytes(), meta()).expect("a file");
        writer.push_extent(extent).expect("a piece");
        writer.end_file().expect("a whole file");
    }
    writer.add_file(b"small", meta(), &bytes(3, 100_000)).expect("a file");
    writer.end_directory().expect("ends");
    writer.end_directory().expect("ends");
    let finished = writer.finish().expect("a tree");
    for chunk in finished.chunks {
        uploader.put(chunk).await.expect("stored");
    }
    assert_eq!(uploader.flush().await.expect("flushed").thin_chunks, 0);
    let other = extents.pop().expect("two");
    let large = extents.pop().expect("two");
    let capability = Capability::read(fake.id, finished.root);
    Stored { fake, network, capability, large, other }
}

fn path(text: &str) -> Vec<Name> {
    tree::path::split(text.as_bytes()).expect("a path")
}

impl Stored {
    async fn check_at(&self, at: &str, options: CheckOptions) -> Result<CheckReport, ReadError> {
        // A client that knows nothing of what was found before.
        let network = self.fake.connect().await;
        let tree = TreeReader::new(Downloader::new(network.clone()), &self.capability)?;
        let checker = Checker::new(network, &[7; 32]);
        let progress = Arc::new(CheckProgress::default());
        check_tree(&tree, &self.capability, path(at), &checker, options, progress).await
    }

    async fn check(&self, options: CheckOptions) -> CheckReport {
        self.check_at("", options).await.expect("a tree")
    }

    /// Takes shards of a chunk from whoever holds them.
    fn lose(&self, chunk: ChunkId, indices: &[u8]) {
        for node in &self.fake.nodes {
            let mut shards = node.shards.lock().expect("no panic");
            shards.retain(|id, _| id.chunk != chunk || !indices.contains(&id.index.0));
        }
    }

    fn puts(&self) -> usize {
        self.fake.total(|seen| &seen.puts)
    }

    fn holder(&self, chunk: ChunkId, index: u8) -> NodeId {
        self.fake.holders(chunk)[&ShardIndex(index)][0]
    }
}

fn names(report: &CheckReport) -> Vec<String> {
    let weakest = report.weakest.iter().flat_map(|weak| &weak.paths.first);
    weakest.map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}

#[tokio::test]
async fn a_whole_tree_is_whole_and_a_check_writes_nothing() {
    let stored = stored(8, "4+2").await;
    let puts = stored.puts();
    for options in [LOOK, DEEP, DEEP_REPAIR] {
        let report = stored.check(options).await;
        assert_eq!((report.files, report.directories, report.bytes), (3, 2, 4_100_000));
        assert_eq!((report.chunks, report.count(Strength::Whole)), (3, 3));
        assert_eq!(report.survives.map(|survives| (survives.nodes, survives.zones)), Some((2, 2)));
        assert!(report.weakest.is_empty() && report.mended.is_empty());
        let (claims, proved): (u64, u64) = report
            .nodes
            .iter()
            .fold((0, 0), |sum, node| (sum.0 + node.claims, sum.1 + node.proved));
        assert_eq!((claims, proved), (18, if options.deep { 18 } else { 0 }));
    }
    assert_eq!(stored.puts(), puts);
    // One question to each node for the whole tree, and no more.
    assert_eq!(stored.check_at("sub/other", LOOK).await.expect("is there").chunks, 2);
    let error = stored.check_at("sub/nothing", LOOK).await.expect_err("is not there");
    assert!(error.to_string().contains("/sub/nothing"), "{error}");
}

#[tokio::test]
async fn missing_shards_are_found_named_and_made_again() {
    let stored = stored(8, "4+2").await;
    let chunk = stored.large.chunk;
    stored.lose(chunk, &[1, 5]);
    let puts = stored.puts();

    let report = stored.check(LOOK).await;
    assert_eq!((report.count(Strength::Thin), report.count(Strength::Whole)), (1, 2));
    assert_eq!((report.weakest[0].have, names(&report)), (4, vec!["large".to_owned()]));
    assert_eq!(report.survives.map(|survives| survives.nodes), Some(0));
    assert_eq!(stored.puts(), puts, "a look writes nothing");

    let report = stored.check(REPAIR).await;
    assert_eq!((report.count(Strength::Whole), report.rebuilt_shards), (3, 2));
    assert_eq!(report.rebuilt_bytes, 2 * u64::from(stored.large.shard_bytes));
    let mended: Vec<_> = report.mended.iter().map(|m| (m.chunk, m.before, m.after)).collect();
    assert_eq!(mended, [(chunk, 4, 6)]);
    assert_eq!(report.survives.map(|survives| survives.nodes), Some(2));
    assert_eq!(stored.puts(), puts + 2, "only what was missing");
    // Where the ring wants them: each on a node of its own.
    let placed = stored.network.view().placement(&chunk, stored.large.geometry);
    let holders = stored.fake.holders(chunk);
    for (index, node) in placed.iter().enumerate() {
        let index = ShardIndex(u8::try_from(index).expect("small"));
        assert_eq!(holders[&index], [*node]);
    }
    assert_eq!(stored.check(DEEP).await.count(Strength::Whole), 3);

    // The new shards carry the data.
    stored.lose(chunk, &[0, 2]);
    let reader = Downloader::new(stored.fake.connect().await);
    assert!(reader.read_extent(&stored.large).await.expect("reads") == bytes(1, 2_000_000));
}

#[tokio::test]
async fn a_lying_node_is_found_by_a_deep_check_and_trusted_with_nothing_again() {
    let stored = stored(8, "4+2").await;
    let liar = stored.holder(stored.large.chunk, 2);
    stored.fake.node(liar).faults.wrong_bytes.store(true, Ordering::SeqCst);

    assert_eq!(stored.check(LOOK).await.count(Strength::Thin), 0, "its word is taken");
    let report = stored.check(DEEP).await;
    assert!(names(&report).contains(&"large".to_owned()), "{:?}", report.weakest);
    let caught: Vec<_> = report.nodes.iter().filter(|node| node.false_claims > 0).collect();
    assert_eq!(caught.iter().map(|node| node.node).collect::<Vec<_>>(), [liar]);
    assert!(caught[0].problem.is_some());

    let puts = stored.fake.node(liar).seen.puts.load(Ordering::SeqCst);
    let report = stored.check(DEEP_REPAIR).await;
    assert_eq!(report.count(Strength::Whole), 3, "{:?}", report.weakest);
    assert_eq!(stored.fake.node(liar).seen.puts.load(Ordering::SeqCst), puts);
    // Without it the chunk is whole.
    stored.fake.node(liar).kill();
    assert_eq!(stored.check(DEEP).await.count(Strength::Whole), 3);
}

#[tokio::test]
async fn a_node_that_claims_what_it_does_not_hold_is_found_by_a_deep_check() {
    let stored = stored(8, "4+2").await;
    let shard = ShardId { chunk: stored.other.chunk, index: ShardIndex(3) };
    let liar = stored.holder(shard.chunk, 3);
    stored.lose(shard.chunk, &[3]);
    stored.fake.node(liar).faults.phantoms.lock().expect("no panic").push(shard);
    assert_eq!(stored.check(LOOK).await.count(Strength::Whole), 3);
    let report = stored.check(DEEP).await;
    assert_eq!((report.weakest.len(), names(&report)), (1, vec!["sub/other".to_owned()]));
    assert_eq!(report.nodes.iter().find(|node| node.node == liar).map(|n| n.false_claims), Some(1));
    // Repair reads what it needs and finds out as well, as far as it must.
    assert_eq!(stored.check(DEEP_REPAIR).await.count(Strength::Whole), 3);
}

#[tokio::test]
async fn a_lost_chunk_is_told_with_its_file_and_what_is_there() {
    let stored = stored(8, "4+2").await;
    stored.lose(stored.other.chunk, &[0, 3, 5]);
    let puts = stored.puts();
    for options in [LOOK, DEEP_REPAIR] {
        let report = stored.check(options).await;
        assert_eq!((report.count(Strength::Lost), report.count(Strength::Whole)), (1, 2));
        let weak = &report.weakest[0];
        assert_eq!((weak.have, weak.geometry.data(), weak.silent), (3, 4, 0));
        assert_eq!((names(&report), report.survives), (vec!["sub/other".to_owned()], None));
        let problem = weak.problem.clone().unwrap_or_default();
        assert_eq!(options.repair, problem.contains("have 3 of the 4"), "{problem}");
    }
    assert_eq!(stored.puts(), puts);
}

#[tokio::test]
async fn what_cannot_be_asked_is_waited_for_and_not_called_lost() {
    let stored = stored(6, "4+2").await;
    for index in [0, 1, 2] {
        stored.fake.node(stored.holder(stored.other.chunk, index)).kill();
    }
    // The tree's own pack can have been on these as well: look at one chunk alone.
    let network = stored.fake.connect_over(Arc::default()).await;
    let checker = Checker::new(network, &[7; 32]);
    let chunk = ChunkRef::from(&stored.other);
    let mut found = checker.check(&[chunk], true).await;
    assert_eq!((found[0].strength(), found[0].have()), (Strength::Waiting, 3));
    assert_eq!(found[0].silent(), 3);
    let error = checker.repair(&mut found[0]).await.expect_err("too few");
    assert!(matches!(error, RepairError::TooFew { have: 3, need: 4, .. }), "{error}");
    assert_eq!(checker.nodes().iter().filter(|node| node.silent.is_some()).count(), 3);
}

#[tokio::test]
async fn full_and_dead_nodes_are_passed_over() {
    let stored = stored(9, "4+2").await;
    let chunk = stored.large.chunk;
    let (full, dead) = (stored.holder(chunk, 1), stored.holder(chunk, 4));
    stored.lose(chunk, &[1, 4]);
    stored.fake.node(full).faults.full.store(true, Ordering::SeqCst);
    stored.fake.node(dead).kill();

    let checker = Checker::new(stored.network.clone(), &[7; 32]);
    let mut found = checker.check(&[ChunkRef::from(&stored.large)], false).await;
    let repaired = checker.repair(&mut found[0]).await.expect("repaired");
    assert_eq!((found[0].strength(), repaired.placed.len()), (Strength::Whole, 2));
    let refused: Vec<NodeId> = repaired.refused.0.iter().map(|(node, _)| *node).collect();
    assert!(refused.contains(&full), "{refused:?}");
    let holders = stored.fake.holders(chunk);
    let mut nodes: Vec<NodeId> = holders.values().flatten().copied().collect();
    nodes.sort_unstable();
    nodes.dedup();
    assert_eq!((holders.len(), nodes.len()), (6, 6), "each on a node of its own");
}

#[tokio::test]
async fn a_node_that_signs_a_wrong_receipt_is_passed_over() {
    let stored = stored(8, "4+2").await;
    let chunk = stored.large.chunk;
    let liar = stored.holder(chunk, 0);
    stored.lose(chunk, &[0]);
    stored.fake.node(liar).faults.wrong_receipt.store(true, Ordering::SeqCst);
    let report = stored.check(REPAIR).await;
    assert_eq!(report.count(Strength::Whole), 3);
    let honest = stored.fake.holders(chunk)[&ShardIndex(0)].iter().any(|node| *node != liar);
    assert!(honest);
}

#[tokio::test]
async fn an_interrupted_repair_can_be_repeated() {
    let stored = Arc::new(stored(8, "4+2").await);
    let chunk = stored.large.chunk;
    stored.lose(chunk, &[1, 5]);
    // The node that shard 5 goes to never answers.
    let placed = stored.network.view().placement(&chunk, stored.large.geometry);
    let slow = stored.fake.node(placed[5]);
    let repairing = {
        let stored = Arc::clone(&stored);
        tokio::spawn(async move {
            let checker = Checker::new(stored.network.clone(), &[7; 32]);
            let mut found = checker.check(&[ChunkRef::from(&stored.large)], false).await;
            stored.fake.node(placed[5]).faults.hung.store(true, Ordering::SeqCst);
            checker.repair(&mut found[0]).await
        })
    };
    until("one shard is back", || stored.fake.holders(chunk).len() == 5).await;
    repairing.abort();
    assert!(repairing.await.is_err_and(|error| error.is_cancelled()));
    slow.faults.hung.store(false, Ordering::SeqCst);

    // What was sent to the slow node before the interruption may still arrive there: then there is
    // nothing left to make.
    let report = stored.check(REPAIR).await;
    assert_eq!(report.count(Strength::Whole), 3);
    assert!(report.rebuilt_shards <= 1, "{}", report.rebuilt_shards);
    assert_eq!(stored.fake.holders(chunk).len(), 6);
}

#[tokio::test]
async fn a_folder_that_cannot_be_read_is_named_and_the_chunk_counted() {
    let stored = stored(8, "4+2").await;
    let pack = stored.capability.root().chunk;
    stored.fake.nodes.iter().for_each(|node| node.lose(pack));
    let report = stored.check(LOOK).await;
    assert_eq!((report.chunks, report.count(Strength::Lost)), (1, 1));
    assert_eq!((report.unreadable.count, report.unreadable_for_loss), (1, true));
    assert_eq!(names(&report), [""]);
}

#[tokio::test]
async fn a_replica_on_one_node_counts_once_whatever_the_node_claims() {
    let stored = stored(6, "1+2").await;
    let chunk = stored.large.chunk;
    stored.lose(chunk, &[1, 2]);
    let liar = stored.fake.node(stored.holder(chunk, 0));
    let all = (0..3).map(|index| ShardId { chunk, index: ShardIndex(index) });
    // It can prove each: they are the same bytes.
    {
        let mut shards = liar.shards.lock().expect("no panic");
        let first = shards.keys().find(|id| id.chunk == chunk).copied().expect("it holds one");
        let held = shards[&first].clone();
        shards.extend(all.map(|id| (id, held.clone())));
    }
    for options in [LOOK, DEEP] {
        let report = stored.check(options).await;
        assert_eq!((report.count(Strength::Whole), report.count(Strength::Thin)), (2, 1));
        assert_eq!((report.weakest[0].chunk, report.weakest[0].have), (chunk, 1));
        assert_eq!(report.frail, 1);
        assert_eq!(report.survives.map(|survives| survives.nodes), Some(0));
    }
    let report = stored.check(DEEP_REPAIR).await;
    assert_eq!((report.count(Strength::Whole), report.mended_count), (3, 1));
    assert_eq!(report.survives.map(|survives| survives.nodes), Some(2));
}

#[tokio::test]
async fn replicas_are_made_again_without_a_key() {
    let fake = FakeNetwork::start(8).await;
    let network = fake.connect().await;
    let encoder = Encoder::new(ConvergenceSecret::new([5; 32]), Budget::default());
    let uploader = Uploader::new(network.clone(), encoder.budget().clone(), PutOptions::default());
    let mut buffer = encoder.plaintext().await;
    buffer.extend_from_slice(b"a small thing");
    let geometry = "10+3".parse().expect("a geometry");
    let (chunk, _) = encoder.bulk(geometry, buffer).await.expect("encodes");
    let id = chunk.id();
    let geometry = chunk.geometry();
    let shard_bytes = u32::try_from(chunk.shard_bytes()).expect("small");
    uploader.submit(chunk).await.await.expect("stored");
    uploader.flush().await.expect("flushed");

    for node in fake.nodes.iter().filter(|node| node.id != fake.holders(id)[&ShardIndex(2)][0]) {
        node.lose(id);
    }
    let checker = Checker::new(network, &[1; 32]);
    let mut found = checker.check(&[ChunkRef { id, geometry, shard_bytes }], true).await;
    assert_eq!((found[0].have(), found[0].strength()), (1, Strength::Thin));
    let repaired = checker.repair(&mut found[0]).await.expect("repaired");
    assert_eq!((repaired.placed.len(), fake.holders(id).len()), (3, 4));
    assert_eq!(found[0].strength(), Strength::Whole);
}

impl Stored {
    /// By a client that has nothing but the read capability.
    async fn verifier(&self, capability: &Capability, at: &str) -> Verifier {
        let downloader = Downloader::new(self.fake.connect().await);
        let tree = TreeReader::new(downloader, capability).expect("a tree");
        let made = make_verifier(&tree, capability, path(at), false, Arc::default());
        made.await.expect("a verify capability")
    }

    /// By a client that has nothing but the verify capability.
    async fn verify(
        &self,
        capability: &VerifyCapability,
        options: CheckOptions,
    ) -> Result<CheckReport, ReadError> {
        let network = self.fake.connect().await;
        let checker = Checker::new(network.clone(), &[7; 32]);
        let downloader = Downloader::new(network);
        check_manifest(&downloader, capability, &checker, options, Arc::default()).await
    }
}

#[tokio::test]
async fn a_verify_capability_finds_and_mends_what_it_cannot_read() {
    let stored = stored(8, "4+2").await;
    let made = stored.verifier(&stored.capability, "").await;
    assert_eq!((made.chunks, made.manifest_bytes, made.redundancy.thin_chunks), (3, 127, 0));
    // Whoever makes it gets the same, and nothing is stored twice.
    let puts = stored.puts();
    let again = stored.verifier(&stored.capability, "").await;
    assert_eq!((&again.capability, again.sent_bytes), (&made.capability, 0));
    assert_eq!(stored.puts(), puts);
    // That of a folder is another, of what is in it and on the way to it.
    let folder = stored.verifier(&stored.capability, "sub").await;
    assert!(folder.chunks == 2 && folder.capability != made.capability);
    let capability = made.capability;
    assert_eq!(capability.to_string().parse(), Ok(capability.clone()));

    let puts = stored.puts();
    for options in [LOOK, DEEP_REPAIR] {
        let report = stored.verify(&capability, options).await.expect("a list");
        assert_eq!((report.listed, report.chunks), (Some(3), 4), "and the list's own chunk");
        assert_eq!(report.count(Strength::Whole), 4);
        assert_eq!((report.files, report.directories, report.bytes), (0, 0, 0));
    }
    assert_eq!(stored.puts(), puts, "a check writes nothing");

    let own = capability.manifest().chunk;
    stored.lose(stored.large.chunk, &[1, 5]);
    stored.lose(own, &[0, 2]);
    let report = stored.verify(&capability, LOOK).await.expect("a list");
    assert_eq!((report.count(Strength::Thin), report.count(Strength::Whole)), (2, 2));
    for weak in &report.weakest {
        let paths: Vec<&[u8]> = weak.paths.first.iter().map(AsRef::as_ref).collect();
        assert_eq!(paths, if weak.chunk == own { vec![&b""[..]] } else { Vec::new() });
    }
    let report = stored.verify(&capability, REPAIR).await.expect("a list");
    assert_eq!((report.count(Strength::Whole), report.rebuilt_shards), (4, 4));
    assert_eq!(stored.check(DEEP).await.count(Strength::Whole), 3);

    // The new shards carry the data, of the list as well.
    stored.lose(stored.large.chunk, &[0, 2]);
    stored.lose(own, &[1]);
    let reader = Downloader::new(stored.fake.connect().await);
    assert!(reader.read_extent(&stored.large).await.expect("reads") == bytes(1, 2_000_000));
    assert_eq!(stored.verify(&capability, LOOK).await.expect("a list").listed, Some(3));
}

#[tokio::test]
async fn a_verify_capability_opens_nothing_but_its_list() {
    let stored = stored(6, "4+2").await;
    let capability = stored.verifier(&stored.capability, "").await.capability;
    let error = capability.to_string().parse::<Capability>().expect_err("is not to read");
    assert!(error.to_string().contains("can check and repair, not read"), "{error}");

    // All that it opens, taken apart by force.
    let network = stored.fake.connect().await;
    let downloader = Downloader::new(network);
    let forced = Capability::read(stored.fake.id, capability.manifest().clone());
    let tree = TreeReader::new(downloader.clone(), &forced).expect("a tree");
    let entry = tree.root().await.expect("an entry");
    let mut file = tree.read(&entry).expect("a file");
    let mut opened = capability.manifest().encode();
    opened.extend(downloader.read_node(capability.manifest()).await.expect("its root"));
    while let Some(copse_client::content::Block::Data(bytes)) = file.next().await.expect("reads") {
        opened.extend(bytes);
    }
    assert!(opened.len() > 3 * 38);
    // None of it is a key of the tree, nor is what can be derived of it as of a read capability.
    let derived = *forced.manifest_secret().as_bytes();
    let mut keys: Vec<[u8; 32]> =
        opened.windows(32).map(|window| window.try_into().expect("32 bytes")).collect();
    keys.push(derived);
    let root = stored.capability.root();
    for (extent, name) in [(&stored.large, "large"), (&stored.other, "other"), (root, "the root")] {
        downloader.read_extent_range(extent, 0..1).await.expect("opens with its key");
        for key in &keys {
            let tried = Extent { key: ContentKey::new(*key), ..extent.clone() };
            let error = downloader.read_extent_range(&tried, 0..1).await.expect_err(name);
            assert!(matches!(error, GetError::Open { .. }), "{name}: {error}");
        }
    }
}

#[tokio::test]
async fn a_list_that_is_lost_is_told_and_made_again() {
    let stored = stored(6, "4+2").await;
    let capability = stored.verifier(&stored.capability, "").await.capability;
    stored.lose(capability.manifest().chunk, &[0, 1, 2]);
    let report = stored.verify(&capability, DEEP_REPAIR).await.expect("a report");
    assert_eq!((report.listed, report.chunks, report.count(Strength::Lost)), (Some(0), 1, 1));
    assert_eq!((report.unreadable.count, report.unreadable_for_loss), (1, true));
    assert_eq!(stored.verifier(&stored.capability, "").await.capability, capability);
    assert_eq!(stored.verify(&capability, LOOK).await.expect("a list").listed, Some(3));
}

#[tokio::test]
async fn what_names_no_list_is_refused() {
    let stored = stored(6, "4+2").await;
    let folder = stored.capability.root().clone();
    let folder = VerifyCapability::new(stored.fake.id, folder);
    let error = stored.verify(&folder, REPAIR).await.expect_err("a folder");
    assert!(matches!(error, ReadError::Manifest(_)), "{error}");
    let other =
        VerifyCapability::new(copse_core::ids::NetworkId::new([0; 32]), folder.manifest().clone());
    let error = stored.verify(&other, LOOK).await.expect_err("of another network");
    assert!(matches!(error, ReadError::Network(_)), "{error}");

    // A tree with a gap is not listed.
    stored.lose(stored.capability.root().chunk, &[0, 1, 2, 3, 4, 5]);
    let tree = TreeReader::new(Downloader::new(stored.fake.connect().await), &stored.capability);
    let made = make_verifier(
        &tree.expect("a tree"),
        &stored.capability,
        Vec::new(),
        false,
        Arc::default(),
    )
    .await;
    assert!(made.is_err_and(|error| error.to_string().contains("the tree cannot be looked into")));
}

#[tokio::test]
async fn a_list_of_many_chunks_is_stored_and_read_in_pieces() {
    let stored = stored(6, "4+2").await;
    // One file of chunks that nobody has: a list needs none of them.
    let many = 30_000_u32;
    let mut writer =
        TreeWriter::new("4+2".parse().expect("a code"), ConvergenceSecret::new([5; 32]));
    writer.begin_file(b"huge", meta()).expect("a file");
    for number in 0..many {
        let id = *blake3::hash(&number.to_le_bytes()).as_bytes();
        let extent = Extent { chunk: ChunkId::new(id), ..stored.large.clone() };
        writer.push_extent(extent).expect("a piece");
    }
    writer.end_file().expect("a whole file");
    let finished = writer.finish().expect("a tree");
    let uploader = Uploader::new(stored.network.clone(), Budget::default(), PutOptions::default());
    let tree_chunks = finished.chunks.len() as u64;
    for chunk in finished.chunks {
        uploader.put(chunk).await.expect("stored");
    }
    let capability = Capability::read(stored.fake.id, finished.root);
    let made = stored.verifier(&capability, "").await;
    assert_eq!(made.chunks, u64::from(many) + tree_chunks);
    assert!(made.manifest_bytes > PACKED_BYTES_MAX as u64, "more than is packed");
    assert_eq!(made.redundancy.chunks, 2, "the list, and the entry that names it");
    let report = stored.verify(&made.capability, LOOK).await.expect("a list");
    assert_eq!((report.listed, report.chunks), (Some(made.chunks), made.chunks + 2));
    assert_eq!(report.count(Strength::Lost), u64::from(many));
    assert_eq!(report.count(Strength::Whole), tree_chunks + 2);
}
