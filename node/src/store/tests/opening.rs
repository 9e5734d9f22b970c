//! Opening a store after everything that can have happened to its files.

use std::{fs, path::Path};

use super::{
    super::{
        ReadError, Recovery, Stored,
        disk::{InitError, OpenError},
        marker::{MARKER_FILE, MarkerError},
        recover::RecoverError,
        segment::{Kind, Position, RecordHeader, RecordKey},
    },
    *,
};

/// Puts the shards one after another (a commit each) into a new store, and closes it.
fn store_with(dir: &Path, shards: &[VerifiedShard]) {
    init(dir);
    add(dir, shards);
}

fn add(dir: &Path, shards: &[VerifiedShard]) {
    runtime().block_on(async {
        let store = open(dir);
        for shard in shards {
            assert_eq!(store.put(shard.clone()).await.expect("a put"), Stored::New);
        }
        store.close().await;
    });
}

/// Opens the store and checks what it holds and what it does not.
fn check(dir: &Path, held: &[&VerifiedShard], gone: &[&VerifiedShard]) -> Recovery {
    runtime().block_on(async {
        let store = open(dir);
        for shard in held {
            assert_held(&store, shard).await;
        }
        for shard in gone {
            let read = store.read(shard.id(), Want::Whole).await;
            assert!(matches!(read, Err(ReadError::NotHeld { .. })), "{read:?}");
        }
        assert_eq!(store.stats().await.shards, held.len() as u64);
        let recovery = store.recovery().clone();
        store.close().await;
        recovery
    })
}

fn record_bytes(shard: &VerifiedShard) -> u64 {
    super::super::request::record_bytes(shard)
}

#[test]
fn a_directory_without_a_marker_is_not_opened_and_stays_empty() {
    let dir = directory();
    let error = DiskStore::open(dir.path(), NODE, &options()).err().expect("an error");
    assert!(matches!(error, OpenError::NotAStore { source: MarkerError::Missing, .. }));
    assert!(error.to_string().contains("is the disk mounted?"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
}

#[test]
fn the_store_of_another_node_is_not_opened() {
    let dir = directory();
    init(dir.path());
    let other = NodeId::new([1; 32]);
    let error = DiskStore::open(dir.path(), other, &options()).err();
    assert!(matches!(error, Some(OpenError::OtherNode { owner: NODE, .. })), "{error:?}");
}

#[test]
fn a_store_is_made_once_and_opened_once_at_a_time() {
    let dir = directory();
    init(dir.path());
    let again = DiskStore::init(dir.path(), NODE, StoreId([1; 32]));
    assert!(matches!(again, Err(InitError::NotEmpty { .. })), "{again:?}");
    let store = open(dir.path());
    let error = DiskStore::open(dir.path(), NODE, &options()).err();
    assert!(matches!(error, Some(OpenError::InUse { .. })), "{error:?}");
    runtime().block_on(store.close());
    drop(store);
    runtime().block_on(open(dir.path()).close());
}

#[test]
fn a_segment_with_one_shard_has_these_bytes() {
    let dir = directory();
    store_with(dir.path(), &[shard(1, 20_000)]);
    let bytes = fs::read(segment(dir.path(), 1)).expect("the first segment");
    assert_eq!(bytes.len(), 64 + 64 + (11 + 2 * 32) + 2 * 32 + 20_000);
    assert_eq!(
        blake3::hash(&bytes).to_hex().as_str(),
        "02cff22fec44eb644af8c17f6ed3ada41295ff5a7dd0bcb3ff5d8a601cc17b8d"
    );
}

#[test]
fn a_missing_index_is_built_again() {
    let dir = directory();
    let shards: Vec<_> = (0..30).map(|seed| shard(seed, 100_000)).collect();
    store_with(dir.path(), &shards);
    let held: Vec<_> = shards.iter().collect();
    let sound = check(dir.path(), &held, &[]);
    assert!(sound.segments >= 3, "{sound:?}");
    delete_index(dir.path());
    let recovery = check(dir.path(), &held, &[]);
    assert_eq!((recovery.rebuilt, recovery.records), (true, 30));
    assert_eq!((recovery.cut_bytes, recovery.damaged), (0, 0));
}

#[cfg(feature = "rocksdb")]
#[test]
fn a_damaged_or_foreign_index_is_moved_aside_and_built_again() {
    let dir = directory();
    let shards: Vec<_> = (0..5).map(|seed| shard(seed, 10_000)).collect();
    store_with(dir.path(), &shards);
    let held: Vec<_> = shards.iter().collect();
    let index = dir.path().join("index");
    let named = |start: &str| {
        let mut files = fs::read_dir(&index).expect("the index");
        let found = files.find_map(|file| {
            let path = file.expect("a file").path();
            path.file_name()?.to_str()?.starts_with(start).then_some(path)
        });
        found.expect("a file of the index")
    };
    fs::write(named("CURRENT"), b"nonsense\n").expect("a write");
    assert!(check(dir.path(), &held, &[]).rebuilt);
    fs::write(named("MANIFEST"), b"nonsense").expect("a write");
    assert!(check(dir.path(), &held, &[]).rebuilt);
    fs::remove_file(named("MANIFEST")).expect("a removal");
    assert!(check(dir.path(), &held, &[]).rebuilt);
    // A table, which is first read when its rows are: what a restart reads of its log becomes one.
    assert!(!check(dir.path(), &held, &[]).rebuilt);
    let mut tables = 0;
    for file in fs::read_dir(&index).expect("the index") {
        let path = file.expect("a file").path();
        if path.extension().is_some_and(|kind| kind == "sst") {
            let mut bytes = fs::read(&path).expect("a table");
            bytes[20] ^= 1;
            fs::write(&path, bytes).expect("a write");
            tables += 1;
        }
    }
    assert!(tables > 0, "there are tables to damage");
    assert!(check(dir.path(), &held, &[]).rebuilt);
    let other = directory();
    DiskStore::init(other.path(), NODE, StoreId([8; 32])).expect("another store");
    add(other.path(), &shards[..1]);
    copy_index(other.path(), dir.path());
    assert!(check(dir.path(), &held, &[]).rebuilt);
    assert!(dir.path().join("index.damaged").exists());
}

#[test]
fn an_index_that_is_behind_catches_up() {
    let (dir, copy) = (directory(), directory());
    let shards: Vec<_> = (0..20).map(|seed| shard(seed, 100_000)).collect();
    store_with(dir.path(), &shards[..3]);
    copy_index(dir.path(), copy.path());
    add(dir.path(), &shards[3..]);
    copy_index(copy.path(), dir.path());
    let recovery = check(dir.path(), &shards.iter().collect::<Vec<_>>(), &[]);
    if cfg!(feature = "rocksdb") {
        assert_eq!((recovery.rebuilt, recovery.records), (false, 17));
    }
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_the_rest_is_held() {
    let (a, b, torn) = (shard(1, 3000), shard(2, 40_000), shard(3, 300));
    let (dir, before) = (directory(), directory());
    store_with(dir.path(), &[a.clone(), b.clone()]);
    copy_index(dir.path(), before.path());
    add(dir.path(), std::slice::from_ref(&torn));
    let whole = fs::read(segment(dir.path(), 1)).expect("a segment");
    let begin = whole.len() - usize::try_from(record_bytes(&torn)).expect("small");
    for end in (begin..whole.len()).step_by(7).chain([begin + 1, whole.len() - 1]) {
        fs::write(segment(dir.path(), 1), &whole[..end]).expect("a torn segment");
        copy_index(before.path(), dir.path());
        let recovery = check(dir.path(), &[&a, &b], &[&torn]);
        assert_eq!(recovery.cut_bytes, (end - begin) as u64);
        assert_eq!(recovery.damaged, 0);
    }
    // Zeros where the write was to go: the length was on the disk before the bytes.
    let mut zeros = whole.clone();
    zeros[begin..].fill(0);
    fs::write(segment(dir.path(), 1), &zeros).expect("a torn segment");
    copy_index(before.path(), dir.path());
    assert_eq!(check(dir.path(), &[&a, &b], &[&torn]).cut_bytes, record_bytes(&torn));
    add(dir.path(), std::slice::from_ref(&torn));
    delete_index(dir.path());
    check(dir.path(), &[&a, &b, &torn], &[]);
}

#[test]
fn damage_in_the_middle_is_set_apart_and_what_follows_is_found() {
    let shards: Vec<_> = (0..4).map(|seed| shard(seed, 50_000)).collect();
    let record = record_bytes(&shards[0]);
    // In turn: a byte of the shard, of the descriptor, of the group hashes, of the header.
    for (byte, known) in [(record - 9, true), (70, true), (150, true), (3, false), (60, false)] {
        let dir = directory();
        store_with(dir.path(), &shards);
        flip(&segment(dir.path(), 1), 64 + record + byte);
        delete_index(dir.path());
        runtime().block_on(async {
            let store = open(dir.path());
            for at in [0, 2, 3] {
                assert_held(&store, &shards[at]).await;
            }
            let read = store.read(shards[1].id(), Want::Whole).await;
            if known {
                assert!(matches!(read, Err(ReadError::Corrupt { .. })), "{byte}: {read:?}");
            } else {
                assert!(matches!(read, Err(ReadError::NotHeld { .. })), "{byte}: {read:?}");
            }
            let recovery = store.recovery();
            assert_eq!(recovery.quarantined, u64::from(known));
            assert_eq!((recovery.damaged, recovery.cut_bytes), (1, 0));
            assert_eq!(store.put(shards[1].clone()).await.expect("a put"), Stored::New);
            assert_held(&store, &shards[1]).await;
            assert_eq!(store.stats().await.quarantined, 0);
            store.close().await;
        });
        // The sound copy wins over the damaged one, whichever way the index is made.
        delete_index(dir.path());
        check(dir.path(), &shards.iter().collect::<Vec<_>>(), &[]);
    }
}

#[test]
fn rot_in_the_last_record_but_one_is_not_taken_for_a_torn_tail() {
    let (a, b, c) = (shard(1, 50_000), shard(2, 50_000), shard(3, 50_000));
    let dir = directory();
    store_with(dir.path(), &[a.clone(), b.clone(), c.clone()]);
    let record = record_bytes(&a);
    flip(&segment(dir.path(), 1), 64 + record + 5000);
    flip(&segment(dir.path(), 1), 64 + 2 * record + 5000);
    delete_index(dir.path());
    // The header of the third says that the second was on the disk before it.
    runtime().block_on(async {
        let store = open(dir.path());
        assert_held(&store, &a).await;
        let read = store.read(b.id(), Want::Whole).await;
        assert!(matches!(read, Err(ReadError::Corrupt { .. })), "{read:?}");
        let recovery = store.recovery();
        assert_eq!((recovery.damaged, recovery.cut_bytes), (1, record));
        store.close().await;
    });
}

#[test]
fn a_full_segment_is_never_cut() {
    let shards: Vec<_> = (0..30).map(|seed| shard(seed, 100_000)).collect();
    let dir = directory();
    store_with(dir.path(), &shards);
    let first = segment(dir.path(), 1);
    let length = fs::metadata(&first).expect("a segment").len();
    flip(&first, length - 100);
    delete_index(dir.path());
    runtime().block_on(async {
        let store = open(dir.path());
        assert_eq!(store.recovery().cut_bytes, 0);
        assert_eq!((store.recovery().damaged, store.recovery().quarantined), (1, 1));
        assert_eq!(store.stats().await.shards, 29);
        store.close().await;
    });
    assert_eq!(fs::metadata(&first).expect("a segment").len(), length);
}

#[test]
fn a_record_inside_a_shard_is_not_found_there() {
    // A hostile client stores a shard that holds, byte for byte, a record of this very store.
    let hidden = shard(1, 5000);
    let dir = directory();
    store_with(dir.path(), std::slice::from_ref(&hidden));
    let copied = fs::read(segment(dir.path(), 1)).expect("a segment").split_off(64);
    let dir = directory();
    let data = Bytes::from([vec![0; 1000], copied, vec![0; 1000]].concat());
    let hashes = vec![shard_tree::hash(&data); 2];
    let geometry = Geometry::new(1, 1).expect("a geometry");
    let descriptor = Descriptor::new(geometry, data.len(), hashes).expect("a descriptor");
    let hostile = VerifiedShard::check(descriptor.encode().into(), ShardIndex(0), data);
    let hostile = hostile.expect("a sound shard");
    let last = shard(2, 1000);
    store_with(dir.path(), &[hostile, last.clone()]);
    flip(&segment(dir.path(), 1), 64); // so that recovery looks for records inside it
    delete_index(dir.path());
    let recovery = check(dir.path(), &[&last], &[&hidden]);
    assert_eq!(recovery.damaged, 1);
}

#[test]
fn an_unfinished_segment_is_removed() {
    let a = shard(1, 1000);
    let dir = directory();
    store_with(dir.path(), std::slice::from_ref(&a));
    for unfinished in [&b""[..], &b"CPSG\x01"[..], &[0; 64][..]] {
        fs::write(segment(dir.path(), 2), unfinished).expect("a segment");
        check(dir.path(), &[&a], &[]);
        assert!(!segment(dir.path(), 2).exists());
    }
    add(dir.path(), &[shard(2, 1000)]);
}

// Without an index that outlives the process it cannot be told from a torn tail.
#[cfg(feature = "rocksdb")]
#[test]
fn synced_bytes_that_vanished_are_reported_and_their_place_is_not_used_again() {
    let (a, b, c) = (shard(1, 50_000), shard(2, 50_000), shard(3, 50_000));
    let dir = directory();
    store_with(dir.path(), &[a.clone(), b.clone()]);
    cut(&segment(dir.path(), 1), 10);
    runtime().block_on(async {
        let store = open(dir.path());
        assert_eq!(store.put(c.clone()).await.expect("a put"), Stored::New);
        for sound in [&a, &c] {
            assert_held(&store, sound).await;
        }
        let read = store.read(b.id(), Want::Whole).await;
        assert!(read.is_err(), "{read:?}");
        store.close().await;
    });
    fs::remove_file(segment(dir.path(), 1)).expect("a removal");
    runtime().block_on(async {
        let store = open(dir.path());
        assert_held(&store, &c).await;
        let read = store.read(a.id(), Want::Whole).await;
        assert!(read.is_err(), "{read:?}");
        store.close().await;
    });
}

#[test]
fn what_a_newer_program_wrote_is_not_touched() {
    let dir = directory();
    store_with(dir.path(), &[shard(1, 1000)]);
    let path = segment(dir.path(), 1);
    let mut bytes = fs::read(&path).expect("a segment");
    let header = RecordHeader {
        kind: Kind::Shard,
        id: shard(1, 1000).id(),
        descriptor_bytes: 0,
        // Longer than any shard of this version.
        shard_bytes: u32::MAX,
        commit: 64,
    };
    let at = Position { segment: 1, offset: bytes.len() as u64 };
    bytes.extend(header.encode(&RecordKey::new(StoreId([7; 32])), at));
    fs::write(&path, &bytes).expect("a write");
    let error = DiskStore::open(dir.path(), NODE, &options()).err();
    let newer = matches!(
        error,
        Some(OpenError::Recover { source: RecoverError::Newer { segment: 1, .. }, .. })
    );
    assert!(newer, "{error:?}");
    assert_eq!(fs::read(&path).expect("a segment"), bytes);
    assert!(dir.path().join(MARKER_FILE).exists());
}

#[cfg(feature = "rocksdb")]
#[test]
fn an_index_of_an_old_version_is_built_again() {
    let dir = directory();
    let shards: Vec<_> = (0..5).map(|seed| shard(seed, 10_000)).collect();
    store_with(dir.path(), &shards);
    let index = dir.path().join("index");
    let old = rocksdb::DB::open_default(&index).expect("the index");
    // What version 1 wrote: checkpoint and tally.
    let meta = [b"CPSI\x01".as_slice(), &[7; 32], &[1, 0, 0, 0], &[0; 32]].concat();
    old.put(b"m", meta).expect("a row");
    drop(old);
    let recovery = check(dir.path(), &shards.iter().collect::<Vec<_>>(), &[]);
    assert_eq!((recovery.rebuilt, recovery.records), (true, 5));
}
