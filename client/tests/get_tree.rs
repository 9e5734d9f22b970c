//! Trees of which a part cannot be restored: what becomes of the rest.

mod support;

use std::{path::PathBuf, sync::Arc};

use copse_client::{
    encode::{Budget, Encoder},
    get::Downloader,
    put::{PutOptions, Uploader},
    transfer::{Counters, GetOptions, GetOutcome, get_tree},
    tree_read::TreeReader,
};
use copse_core::{
    capability::Capability,
    geometry::Geometry,
    seal::ConvergenceSecret,
    tree::{Meta, Timestamp, TreeWriter},
};

use support::{FakeNetwork, StillTime};

/// Directories of the longest name within each other: together longer than any path may be (4096 on
/// Linux, 1024 on others), so that every system refuses the innermost.
const DEEP: usize = 17;

/// `deep/` with [`DEEP`] directories in it, and `z`, a file of three bytes.
async fn stored() -> (FakeNetwork, TreeReader) {
    let _still = StillTime::begin();
    let fake = FakeNetwork::start(6).await;
    let network = fake.connect().await;
    let geometry: Geometry = "4+2".parse().expect("a geometry");
    let secret = ConvergenceSecret::new([5; 32]);
    let encoder = Encoder::new(secret.clone(), Budget::default());
    let uploader = Uploader::new(network.clone(), encoder.budget().clone(), PutOptions::default());
    let meta = || Meta::new(0o755, Timestamp::new(1, 2).expect("a time"));
    let mut writer = TreeWriter::new(geometry, secret);
    writer.begin_directory(b"", meta()).expect("a root");
    writer.begin_directory(b"deep", meta()).expect("a directory");
    for _ in 0..DEEP {
        writer.begin_directory(&[b'd'; 255], meta()).expect("a directory");
    }
    writer.add_file(b"f", meta(), b"too deep").expect("a file");
    for _ in 0..DEEP + 1 {
        writer.end_directory().expect("ends");
    }
    writer.add_file(b"z", meta(), b"abc").expect("a file");
    writer.end_directory().expect("ends");
    let finished = writer.finish().expect("a tree");
    for chunk in finished.chunks {
        uploader.put(chunk).await.expect("stored");
    }
    uploader.flush().await.expect("flushed");
    let capability = Capability::read(fake.id, finished.root);
    let tree = TreeReader::new(Downloader::new(network), &capability).expect("this network");
    (fake, tree)
}

async fn get(tree: &TreeReader, destination: PathBuf, partial: bool) -> GetOutcome {
    let root = tree.root().await.expect("the root");
    let options = GetOptions { destination, source: "tree".to_owned(), partial };
    get_tree(tree, root, options, Arc::new(Counters::default())).await.expect("goes on")
}

#[tokio::test]
async fn one_entry_that_the_destination_cannot_hold_does_not_stop_the_rest() {
    // The nodes live as long as this.
    let (_fake, tree) = stored().await;
    let dir = tempfile::tempdir().expect("a directory");
    let destination = dir.path().join("out");

    let outcome = get(&tree, destination.clone(), false).await;
    assert_eq!((outcome.failures.count, outcome.unwritable, outcome.data_loss), (1, 1, false));
    let failure = &outcome.failures.listed[0];
    assert!(failure.path.starts_with("deep"), "{failure:?}");
    assert!(failure.error.contains("name too long"), "{failure:?}");
    assert!(!outcome.made && !destination.exists());
    let waiting = outcome.waiting.expect("what was restored waits");
    assert_eq!(std::fs::read(waiting.join("z")).expect("there"), b"abc");

    let outcome = get(&tree, destination.clone(), true).await;
    assert!(outcome.resumed && outcome.made && outcome.waiting.is_none());
    assert_eq!((outcome.failures.count, outcome.failures.folders, outcome.kinds.files), (1, 1, 1));
    assert_eq!(std::fs::read(destination.join("z")).expect("there"), b"abc");
    assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1, "nothing is left beside");
}
