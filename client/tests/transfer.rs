//! Files of the local disk into a network of fake nodes, again and again, while both change.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, UNIX_EPOCH},
};

use copse_client::{
    check::{CheckOptions, Checker, check_tree},
    content::Block,
    encode::{Budget, Encoder},
    get::Downloader,
    journal::Journal,
    local::FileReader,
    network::Network,
    put::{PutOptions as SessionOptions, Uploader},
    transfer::{Failure, PutOptions, PutOutcome, PutTarget, PutTreeError, put_paths, put_stream},
    tree_read::TreeReader,
};
use copse_core::{
    ids::{NodeId, ShardId, ShardIndex},
    seal::ConvergenceSecret,
    tree::{Entry, Kind, Timestamp, path},
};
use futures::TryStreamExt as _;

use support::{FakeNetwork, FakeNode, PlainConnector, StillTime, bytes, until};

/// A folder to put, and the journal of whoever puts it.
struct Local {
    dir: tempfile::TempDir,
}

impl Local {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("folder")).expect("made");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("folder").join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("in the folder")).expect("made");
        fs::write(&path, content).expect("written");
        path
    }

    /// Waits until a file has been as it is for so long that it is known by its times.
    async fn settle(&self, path: &Path) {
        until("the file is known by its times", || {
            FileReader::open(path).expect("readable").is_settled()
        })
        .await;
    }

    /// Puts paths as a new process would.
    async fn put(&self, network: &Network, paths: &[&Path]) -> Result<PutOutcome, PutTreeError> {
        self.put_within(network, paths, Budget::default()).await
    }

    async fn put_within(
        &self,
        network: &Network,
        paths: &[&Path],
        budget: Budget,
    ) -> Result<PutOutcome, PutTreeError> {
        let target = PutTarget {
            network: network.clone(),
            uploader: Uploader::new(network.clone(), budget.clone(), SessionOptions::default()),
            encoder: Encoder::new(ConvergenceSecret::new([5; 32]), budget),
        };
        let journal = Journal::open(&self.dir.path().join("journal")).expect("nobody has it");
        let geometry = "4+2".parse().expect("a geometry");
        let options = PutOptions { journal: Some(journal), ..PutOptions::new(geometry) };
        let paths = paths.iter().map(|path| path.to_path_buf()).collect();
        put_paths(&target, paths, options, Arc::default()).await
    }
}

/// The entries of what was put, by path.
async fn entries(network: &Network, outcome: &PutOutcome) -> BTreeMap<String, Entry> {
    let reader = Downloader::new(network.clone());
    let tree = TreeReader::new(reader, &outcome.capability).expect("this network");
    let root = tree.root().await.expect("a root");
    let all: Vec<_> = tree.walk(root).try_collect().await.expect("walks");
    all.into_iter().map(|met| (path::display(&met.path), met.entry)).collect()
}

/// The one thing that was left out: its path and why.
fn left_out(outcome: &PutOutcome) -> (PathBuf, String) {
    assert_eq!(outcome.failures.count, 1, "{:?}", outcome.failures);
    let Failure { path, error, .. } = outcome.failures.listed[0].clone();
    (path, error)
}

/// Times that each node was asked what it has, since the last time.
fn asked(fake: &FakeNetwork, but: NodeId) -> Vec<usize> {
    let others = fake.nodes.iter().filter(|node| node.id != but);
    others.map(|node: &Arc<FakeNode>| node.seen.has.swap(0, Ordering::SeqCst)).collect()
}

#[tokio::test]
async fn files_are_cut_as_told_from_a_disk_and_from_a_stream_alike() {
    const CHUNK_BYTES: usize = 50_000;
    let fake = FakeNetwork::start(6).await;
    let network = fake.connect().await;
    let local = Local::new();
    let content = bytes(7, 4 * CHUNK_BYTES + 20_000);
    let path = local.write("file", &content);
    let budget = Budget::default();
    let target = PutTarget {
        network: network.clone(),
        uploader: Uploader::new(network.clone(), budget.clone(), SessionOptions::default()),
        encoder: Encoder::new(ConvergenceSecret::new([5; 32]), budget),
    };
    let options = || PutOptions {
        chunk_bytes_max: Some(CHUNK_BYTES),
        ..PutOptions::new("4+2".parse().expect("a geometry"))
    };
    let paths = vec![path.clone()];
    let from_disk = put_paths(&target, paths, options(), Arc::default()).await.expect("stored");
    // Five of the content, and one for the name.
    assert_eq!(fake.chunks().len(), 6);

    let entry = entries(&network, &from_disk).await.remove("/").expect("the file");
    let stream = Box::new(std::io::Cursor::new(content.clone()));
    let (name, meta) = (b"file".to_vec(), entry.meta.clone());
    let put = put_stream(&target, name, meta, stream, options(), Arc::default());
    assert_eq!(put.await.expect("stored").capability, from_disk.capability);

    let tree = TreeReader::new(Downloader::new(network), &from_disk.capability);
    let mut reader = tree.expect("this network").read(&entry).expect("a file");
    let mut read = Vec::new();
    while let Some(block) = reader.next().await.expect("reads") {
        match block {
            Block::Data(data) => read.extend_from_slice(&data),
            Block::Hole(_) => panic!("there is none"),
        }
    }
    assert!(read == content, "other bytes came back");
}

#[tokio::test]
async fn a_holder_that_does_not_answer_holds_up_no_known_piece() {
    let fake = FakeNetwork::start(6).await;
    let local = Local::new();
    let file = local.write("file", &bytes(1, 10 << 20));
    local.settle(&file).await;
    let first = local.put(&fake.connect().await, &[&file]).await.expect("stored");
    asked(&fake, fake.nodes[3].id);

    // One that is left alone is not asked, and neither is anybody else about a known piece: each of the
    // others is asked once for each of two chunks and for the root's, when these are to be sent.
    let network = fake.connect().await;
    let gone = fake.nodes[3].id;
    network.holder(gone).lied("it is left alone for ten minutes");
    let second = local.put(&network, &[&file]).await.expect("stored");
    assert_eq!((&second.capability, second.confirmed_chunks), (&first.capability, 0));
    let most = asked(&fake, gone).into_iter().max().expect("five");
    assert!(most <= 3, "one was asked {most} times about three chunks");

    // One that is silent is given up after two seconds, not ten.
    let connector = Arc::new(PlainConnector::default());
    connector.silent.lock().expect("no panic").push(gone);
    let network = fake.connect_over(connector).await;
    let still = StillTime::begin();
    let third = still.stepping(local.put(&network, &[&file])).await.expect("stored");
    assert_eq!((&third.capability, third.confirmed_chunks), (&second.capability, 0));
    let problem = network.holder(gone).report().last_problem.expect("it was noticed");
    assert!(!problem.contains("10 s"), "{problem}");
}

#[tokio::test]
async fn a_known_piece_is_believed_stored_only_when_it_is_shown() {
    let fake = FakeNetwork::start(6).await;
    let local = Local::new();
    let file = local.write("file", &bytes(2, 10 << 20));
    local.settle(&file).await;
    let _still = StillTime::begin();
    let first = local.put(&fake.connect().await, &[&file]).await.expect("stored");
    let again = local.put(&fake.connect().await, &[&file]).await.expect("stored");
    assert_eq!((again.confirmed_chunks, again.progress.sent_bytes), (2, 0));
    assert_eq!(again.capability, first.capability);
    // Its account is of all three chunks, whoever knew of them.
    assert_eq!((first.redundancy.chunks, &again.redundancy), (3, &first.redundancy));
    assert_eq!(again.progress.shards_held, first.progress.shards_placed);

    // One holder has lost all and goes on saying that it has it.
    let liar = &fake.nodes[3];
    let had = std::mem::take(&mut *liar.shards.lock().expect("no panic"));
    liar.faults.claims_everything.store(true, Ordering::SeqCst);
    let again = local.put(&fake.connect().await, &[&file]).await.expect("stored");
    assert_eq!((again.confirmed_chunks, &again.capability), (0, &first.capability));
    let has = liar.shards.lock().expect("no panic").keys().copied().collect::<Vec<_>>();
    assert_eq!(has, had.keys().copied().collect::<Vec<_>>(), "it got them again");
    // Now it has them, whatever else it claims.
    let again = local.put(&fake.connect().await, &[&file]).await.expect("stored");
    assert_eq!((again.confirmed_chunks, again.progress.sent_bytes), (2, 0));
}

#[tokio::test]
async fn a_put_says_of_shards_that_lie_together_what_a_check_says() {
    let fake = FakeNetwork::start(6).await;
    let local = Local::new();
    let file = local.write("file", &bytes(9, 10 << 20));
    local.settle(&file).await;
    let _still = StillTime::begin();
    let first = local.put(&fake.connect().await, &[&file]).await.expect("stored");
    assert_eq!(first.redundancy.crowded, None);
    // As if a node had been away when the first of them was put.
    let chunk = fake.chunks().into_iter().next().expect("three");
    let holders = fake.holders(chunk);
    let [from, to] = [0, 1].map(|index| fake.node(holders[&ShardIndex(index)][0]));
    let id = ShardId { chunk, index: ShardIndex(0) };
    let shard = from.shards.lock().expect("no panic").remove(&id).expect("held");
    to.shards.lock().expect("no panic").insert(id, shard);

    let network = fake.connect().await;
    let again = local.put(&network, &[&file]).await.expect("stored");
    assert_eq!((again.progress.sent_bytes, again.redundancy.thin_chunks), (0, 0));
    let crowded = again.redundancy.crowded.expect("two are on one node");
    assert_eq!((crowded.on_one_node, crowded.survives, crowded.planned), (2, 1, 2));
    assert_eq!(again.redundancy.crowded_chunks, 1);
    let left = again.redundancy.closest.map(|(left, geometry)| (left, geometry.total()));
    assert_eq!(left, Some((4, 6)));
    let tree = TreeReader::new(Downloader::new(network.clone()), &again.capability);
    let tree = tree.expect("this network");
    let checker = Checker::new(network, &[1; 32]);
    let checked = check_tree(
        &tree,
        &again.capability,
        Vec::new(),
        &checker,
        CheckOptions { deep: false, repair: false },
        Arc::default(),
    );
    let survives = checked.await.expect("checked").survives.expect("all can be read");
    assert_eq!(survives.nodes, crowded.survives);
}

#[tokio::test]
async fn a_file_that_was_written_just_now_is_not_known() {
    let fake = FakeNetwork::start(6).await;
    let local = Local::new();
    // On a machine that pauses it is no longer new when it is put: then once more.
    for seed in 100..120 {
        let file = local.write("file", &bytes(seed, 3 << 20));
        local.put(&fake.connect().await, &[&file]).await.expect("stored");
        let again = local.put(&fake.connect().await, &[&file]).await.expect("stored");
        let is_new = !FileReader::open(&file).expect("readable").is_settled();
        if is_new {
            assert_eq!(again.confirmed_chunks, 0, "another content could look the same");
            return;
        }
    }
    panic!("each of twenty puts took longer than two seconds");
}

#[tokio::test]
async fn a_known_file_that_changes_before_it_is_read_again_fails_alone() {
    let fake = FakeNetwork::start(6).await;
    let local = Local::new();
    local.write("a/changes", &bytes(3, 10 << 20));
    local.settle(&local.write("b/stays", &bytes(4, 3 << 20))).await;
    let _still = StillTime::begin();
    let folder = local.path("");
    local.put(&fake.connect().await, &[&folder]).await.expect("stored");

    // Its chunks are not whole any more, so it is read again; while that is found out, another file
    // comes in its place. (Its folder is moved: the file that is open stays as it is, to the last bit.)
    let holder = &fake.nodes[3];
    holder.shards.lock().expect("no panic").clear();
    let (from, to) = (local.path("a"), local.path("away"));
    let changed = local.path("a/changes");
    let new = local.dir.path().join("new");
    fs::create_dir(&new).expect("made");
    fs::write(new.join("changes"), bytes(5, 10 << 20)).expect("written");
    holder.faults.before_has.set(move || {
        fs::rename(&from, &to).expect("moved");
        fs::rename(&new, &from).expect("moved");
    });
    let network = fake.connect().await;
    let outcome = local.put(&network, &[&folder]).await.expect("the rest is stored");
    assert!(holder.faults.before_has.is_done());
    let (path, why) = left_out(&outcome);
    assert_eq!((path, outcome.kinds.files), (changed, 1));
    assert!(why.contains("changed while it was read"), "{why}");
    let entries = entries(&network, &outcome).await;
    let paths: Vec<&str> = entries.keys().map(String::as_str).collect();
    assert!(paths.iter().any(|path| path.ends_with("b/stays")), "{paths:?}");
    assert!(!paths.iter().any(|path| path.ends_with("changes")), "{paths:?}");
}

#[tokio::test]
async fn a_file_is_stored_with_the_mode_and_time_of_what_was_read() {
    let fake = FakeNetwork::start(6).await;
    let local = Local::new();
    let before = local.write("before", &bytes(6, 3 << 20));
    local.settle(&before).await;
    let _still = StillTime::begin();
    let later = local.write("later", b"as it was listed");
    local.put(&fake.connect().await, &[&before, &later]).await.expect("stored");

    // All paths are looked at first. While the network is asked for the first file, the second becomes
    // another.
    let name = later.clone();
    let holder = &fake.nodes[3];
    holder.faults.before_has.set(move || {
        fs::write(&name, b"as it was read, longer").expect("written");
        fs::set_permissions(&name, fs::Permissions::from_mode(0o640)).expect("changed");
        let file = fs::File::options().write(true).open(&name).expect("writable");
        file.set_modified(UNIX_EPOCH + Duration::new(1000, 5)).expect("changed");
    });
    let network = fake.connect().await;
    let outcome = local.put(&network, &[&before, &later]).await.expect("stored");
    assert!(holder.faults.before_has.is_done());
    assert_eq!(outcome.failures.count, 0, "{:?}", outcome.failures);
    let entry = &entries(&network, &outcome).await["/later"];
    let Kind::File { size, .. } = entry.kind else { panic!("a file") };
    let modified = Timestamp::new(1000, 5).expect("a time");
    assert_eq!((size, entry.meta.mode, entry.meta.modified), (22, 0o640, modified));
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_put_is_left_out() {
    let fake = FakeNetwork::start(6).await;
    let local = Local::new();
    // Nine chunks, of which one at a time fits into the budget: while the first is being stored, no more
    // than six others are read, so the end of the file has not been seen.
    let large = local.write("large", &bytes(7, 72 << 20));
    local.write("small", b"at rest");
    let (folder, name) = (local.path(""), large.clone());
    let holder = &fake.nodes[3];
    holder.faults.before_put.set(move || {
        let mut file = fs::File::options().append(true).open(&name).expect("writable");
        file.write_all(b"more").expect("written");
    });
    let network = fake.connect().await;
    let budget = Budget::new(1 << 20);
    let outcome = local.put_within(&network, &[&folder], budget).await.expect("the rest is stored");
    assert!(holder.faults.before_put.is_done());
    let (path, why) = left_out(&outcome);
    assert_eq!((path, outcome.kinds.files), (large, 1));
    assert!(why.contains("changed while it was read"), "{why}");
    let stored = entries(&network, &outcome).await;
    assert!(stored.keys().all(|path| !path.ends_with("large")), "{stored:?}");
    // At rest it is put, and what was stored of it is not sent again.
    let again = local.put(&network, &[&folder]).await.expect("stored");
    assert_eq!((again.failures.count, again.kinds.files), (0, 2));
    let sent = fake.total(|seen| &seen.put_bytes);
    assert!(sent < (2 * 72) << 20, "{sent} bytes were sent");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_left_out() {
    let fake = FakeNetwork::start(6).await;
    let local = Local::new();
    let before = local.write("before", &bytes(8, 3 << 20));
    local.settle(&before).await;
    let _still = StillTime::begin();
    let later = local.write("later", b"a file when it was listed");
    local.put(&fake.connect().await, &[&before, &later]).await.expect("stored");
    let name = later.clone();
    let holder = &fake.nodes[3];
    // For root no mode makes a file unreadable: a link in its place does for everybody.
    holder.faults.before_has.set(move || {
        fs::remove_file(&name).expect("removed");
        std::os::unix::fs::symlink("before", &name).expect("linked");
    });
    let network = fake.connect().await;
    let outcome = local.put(&network, &[&before, &later]).await.expect("the rest is stored");
    assert!(holder.faults.before_has.is_done());
    let (path, why) = left_out(&outcome);
    assert_eq!((path, outcome.kinds.files), (later, 1));
    assert!(why.contains("cannot be read"), "{why}");
    let stored = entries(&network, &outcome).await;
    assert!(stored.contains_key("/before") && !stored.contains_key("/later"), "{stored:?}");
}
