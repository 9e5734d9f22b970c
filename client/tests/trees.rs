//! Trees into a network and back: paths, listings, walks, ranges of files, holes.

mod support;

use copse_client::{
    content::{Block, FileReader},
    encode::{Budget, Encoder},
    error::ReadError,
    get::Downloader,
    put::{PutOptions, Uploader},
    tree_read::TreeReader,
};
use copse_core::{
    capability::Capability,
    geometry::Geometry,
    layout::Layout,
    seal::ConvergenceSecret,
    tree::{self, Entry, Kind, Meta, Name, Timestamp, TreeWriter},
};
use futures::TryStreamExt as _;

use support::{FakeNetwork, StillTime, bytes};

/// A tree in a network of fake nodes, and what its files hold.
struct Stored {
    fake: FakeNetwork,
    tree: TreeReader,
    large: Vec<u8>,
}

fn meta() -> Meta {
    Meta::new(0o644, Timestamp::new(1, 2).expect("a time"))
}

fn path(text: &str) -> Vec<Name> {
    tree::path::split(text.as_bytes()).expect("a path")
}

/// `many/0000..1999` of a few bytes, `large` of three chunks and a hole, `link`.
async fn stored() -> Stored {
    let _still = StillTime::begin();
    let fake = FakeNetwork::start(6).await;
    let network = fake.connect().await;
    let geometry: Geometry = "4+2".parse().expect("a geometry");
    let secret = ConvergenceSecret::new([5; 32]);
    let encoder = Encoder::new(secret.clone(), Budget::default());
    let uploader = Uploader::new(network.clone(), encoder.budget().clone(), PutOptions::default());

    let chunk_bytes = Layout::largest(geometry).plaintext_bytes_max();
    let large = bytes(1, 2 * chunk_bytes + 1_000_000);
    let mut writer = TreeWriter::new(geometry, secret);
    writer.begin_directory(b"", meta()).expect("a root");
    writer.begin_file(b"large", meta()).expect("a file");
    for part in large.chunks(chunk_bytes) {
        let mut buffer = encoder.plaintext().await;
        buffer.extend_from_slice(part);
        let (chunk, extent) = encoder.bulk(geometry, buffer).await.expect("encodes");
        uploader.submit(chunk).await;
        writer.push_extent(extent).expect("a piece");
    }
    writer.push_hole(5000).expect("a hole");
    writer.push_bytes(b"the end").expect("bytes");
    writer.end_file().expect("a whole file");
    writer.add_symlink(b"link", meta(), b"large").expect("a link");
    writer.begin_directory(b"many", meta()).expect("a directory");
    for i in 0..2000u64 {
        let name = format!("{i:04}");
        let content =
            if i.is_multiple_of(10) { bytes(i, 20_000) } else { name.clone().into_bytes() };
        writer.add_file(name.as_bytes(), meta(), &content).expect("a file");
    }
    writer.end_directory().expect("ends");
    writer.end_directory().expect("ends");
    let finished = writer.finish().expect("a tree");
    for chunk in finished.chunks {
        uploader.put(chunk).await.expect("stored");
    }
    uploader.flush().await.expect("flushed");
    let capability = Capability::read(fake.id, finished.root);
    let tree = TreeReader::new(Downloader::new(network), &capability).expect("this network");
    Stored { fake, tree, large }
}

async fn content(mut reader: FileReader) -> Result<(Vec<u8>, u64), ReadError> {
    let (mut all, mut holes) = (Vec::new(), 0);
    while let Some(block) = reader.next().await? {
        match block {
            Block::Data(data) => all.extend_from_slice(&data),
            Block::Hole(bytes) => {
                holes += bytes;
                all.resize(all.len() + usize::try_from(bytes).expect("small"), 0);
            }
        }
    }
    Ok((all, holes))
}

#[tokio::test]
async fn a_tree_is_looked_up_listed_walked_and_read() {
    let Stored { tree, large, .. } = stored().await;
    let root = tree.root().await.expect("the root");
    let names: Vec<Entry> =
        tree.list(&root).expect("a directory").try_collect().await.expect("lists");
    let names: Vec<String> = names.iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(names, ["large", "link", "many"]);

    let many = tree.lookup(path("many")).await.expect("is there");
    let all: Vec<Entry> =
        tree.list(&many).expect("a directory").try_collect().await.expect("lists");
    assert_eq!(all.len(), 2000);
    assert!(all.is_sorted_by_key(|entry| entry.name.clone()));
    let from = Name::new(b"1990").expect("a name");
    let some: Vec<Entry> =
        tree.list_from(&many, from).expect("a directory").try_collect().await.expect("lists");
    assert_eq!(some.len(), 10);

    let walked: Vec<_> = tree.walk(root.clone()).try_collect().await.expect("walks");
    assert_eq!(walked.len(), 1 + 3 + 2000);
    assert_eq!(tree::path::display(&walked[2003].path), "/many/1999");
    for met in walked.iter().filter(|met| met.path.len() == 2).step_by(97) {
        let i: u64 = met.entry.name.to_string().parse().expect("a number");
        let expected =
            if i.is_multiple_of(10) { bytes(i, 20_000) } else { format!("{i:04}").into_bytes() };
        let reader = tree.read(&met.entry).expect("a file");
        assert!(content(reader).await.expect("reads").0 == expected, "{i}");
    }

    let file = tree.lookup(path("/large")).await.expect("is there");
    let Kind::File { size, .. } = file.kind else { panic!("no file") };
    assert_eq!(size, large.len() as u64 + 5000 + 7);
    let (all, holes) = content(tree.read(&file).expect("a file")).await.expect("reads");
    assert!(all[..large.len()] == large[..] && all.ends_with(b"\0the end"));
    assert_eq!((all.len() as u64, holes), (size, 5000));
    let whole = all;
    for (start, end) in [(0, 1), (8_000_000, 8_500_000), (size - 5100, size - 3), (7, 7)] {
        let reader = FileReader::new(tree.downloader().clone(), &file, start..end)
            .expect("within the file")
            .read_ahead(0);
        let (part, _) = content(reader).await.expect("reads");
        let range = usize::try_from(start).expect("small")..usize::try_from(end).expect("small");
        assert!(part == whole[range], "{start}-{end}");
    }
}

#[tokio::test]
async fn what_is_not_there_or_not_a_file_is_told() {
    let Stored { tree, .. } = stored().await;
    let error = tree.lookup(path("many/none")).await.expect_err("is not there");
    assert!(error.to_string().contains("/many/none"), "{error}");
    let error = tree.lookup(path("link/x")).await.expect_err("a link");
    assert!(matches!(error, ReadError::Tree(tree::ReadError::NotADirectory { .. })), "{error}");
    let many = tree.lookup(path("many")).await.expect("is there");
    assert!(matches!(tree.read(&many), Err(ReadError::Tree(tree::ReadError::NotAFile { .. }))));
    let elsewhere = Capability::read(
        copse_core::ids::NetworkId::new([1; 32]),
        match &many.kind {
            Kind::Directory { root: Some(root), .. } => root.clone(),
            _ => panic!("a directory with entries"),
        },
    );
    let other = TreeReader::new(tree.downloader().clone(), &elsewhere);
    assert!(matches!(other.err(), Some(ReadError::Network(_))));
}

#[tokio::test]
async fn a_file_is_given_up_to_what_is_lost_and_no_further() {
    let Stored { fake, tree, large } = stored().await;
    let file = tree.lookup(path("large")).await.expect("is there");
    let Kind::File { content: tree::Content::Pieces(pieces), .. } = &file.kind else {
        panic!("few pieces")
    };
    let tree::Piece::Data(second) = &pieces[1] else { panic!("a chunk") };
    for node in &fake.nodes[..3] {
        node.lose(second.chunk);
    }
    let mut reader = tree.read(&file).expect("a file");
    let first = reader.next().await.expect("the first chunk is whole").expect("not the end");
    let Block::Data(first) = first else { panic!("no hole") };
    assert!(first == large[..first.len()]);
    let error = reader.next().await.expect_err("the second chunk is lost");
    assert!(error.to_string().contains("have 3 of the 4 shards"), "{error}");
    assert!(reader.next().await.expect("no panic").is_none(), "nothing comes after an error");
}

#[tokio::test]
async fn listing_reads_each_node_once() {
    // The nodes live as long as this.
    let Stored { fake: _nodes, tree, .. } = stored().await;
    // No answer is late, so nobody is asked in another's place.
    let _still = StillTime::begin();
    let many = tree.lookup(path("many")).await.expect("is there");
    let listed = || async {
        tree.list(&many).expect("a directory").try_fold(0, |n, _| async move { Ok(n + 1) }).await
    };
    assert_eq!(listed().await.expect("lists"), 2000);
    let requests = tree.downloader().counts().requests;
    assert_eq!(listed().await.expect("lists"), 2000);
    let again = tree.downloader().counts().requests;
    assert_eq!(again, requests, "the second time it is in the cache");
}

#[tokio::test]
async fn small_files_side_by_side_cost_far_fewer_requests_than_files() {
    // The nodes live as long as this.
    let Stored { fake: _nodes, tree, .. } = stored().await;
    let many = tree.lookup(path("many")).await.expect("is there");
    let all: Vec<Entry> =
        tree.list(&many).expect("a directory").try_collect().await.expect("lists");
    let before = tree.downloader().counts();
    for (i, entry) in (0..2000u64).zip(&all).step_by(10) {
        let (got, _) = content(tree.read(entry).expect("a file")).await.expect("reads");
        assert!(got == bytes(i, 20_000), "{i}");
    }
    let after = tree.downloader().counts();
    let requests = after.requests - before.requests;
    assert!(requests < 40, "{requests} requests for 200 files");
}
