//! Tests of the stores: what they share.

mod crash;
mod full;
mod missed;
mod model;
mod opening;
mod power;
mod suite;
mod upkeep;

use std::{
    collections::BTreeMap,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use copse_core::{
    descriptor::Descriptor,
    geometry::Geometry,
    ids::{NodeId, ShardId, ShardIndex},
    shard_tree,
};

use super::{
    DiskOptions, DiskStore, ReadError, RemovalReason, Removed, ShardRead, ShardStore, StoreId,
    TrashOptions, VerifiedShard, Want,
    directory::Directory,
    file::{Faults, Segments},
    scan::{Found, Scan},
    segment::{self, Kind, RecordKey},
};

const NODE: NodeId = NodeId::new([9; 32]);

/// A directory for a store: in memory where there is such a place, since what a test proves of the
/// files it proves there too, and hundreds of openings on a busy disk take minutes.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a directory")
}

/// The shards of a made-up chunk: the same for the same seed.
fn chunk(seed: u64, shards: usize, shard_bytes: usize) -> Vec<VerifiedShard> {
    let geometry = Geometry::new(1, shards - 1).expect("a geometry");
    let data: Vec<Bytes> = (0..shards as u64)
        .map(|index| {
            let mut bytes = vec![0; shard_bytes];
            let mut hasher = blake3::Hasher::new();
            hasher.update(&seed.to_le_bytes()).update(&index.to_le_bytes());
            hasher.finalize_xof().fill(&mut bytes);
            bytes.into()
        })
        .collect();
    let hashes = data.iter().map(|shard| shard_tree::hash(shard)).collect();
    let descriptor = Descriptor::new(geometry, shard_bytes, hashes).expect("a descriptor");
    let descriptor = Bytes::from(descriptor.encode());
    let checked = |(index, data)| {
        let index = ShardIndex(u8::try_from(index).expect("few shards"));
        VerifiedShard::check(descriptor.clone(), index, data).expect("a sound shard")
    };
    data.into_iter().enumerate().map(checked).collect()
}

/// The first shard of a made-up chunk.
fn shard(seed: u64, shard_bytes: usize) -> VerifiedShard {
    chunk(seed, 2, shard_bytes).swap_remove(0)
}

/// Options for small tests: segments of 1 MiB, no reserve, upkeep only when asked.
fn options() -> DiskOptions {
    let mut options = DiskOptions::new(1 << 30);
    options.reserve_bytes = 0;
    options.compaction_bytes_per_second = 0;
    options.segment_bytes_max = 1 << 20;
    options
}

/// A time of day that only the test moves.
#[derive(Clone)]
struct Time(Arc<AtomicU64>);

impl Time {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_700_000_000)))
    }

    fn pass_hours(&self, hours: u64) {
        self.0.fetch_add(hours * 3600, Relaxed);
    }

    fn trash(&self) -> TrashOptions {
        let time = Arc::clone(&self.0);
        TrashOptions::new(Arc::new(move || time.load(Relaxed)))
    }
}

/// Longer than anything is kept in the trash.
const WEEK_HOURS: u64 = 7 * 24 + 1;

fn init(dir: &Path) {
    DiskStore::init(dir, NODE, StoreId([7; 32])).expect("a new store");
}

fn open(dir: &Path) -> DiskStore {
    DiskStore::open(dir, NODE, &options()).expect("an open store")
}

/// Where a shard's bytes lie in the segments: the file and the offset. The sound copy, if several.
fn find(dir: &Path, shard: &VerifiedShard) -> Option<(PathBuf, u64)> {
    for file in std::fs::read_dir(dir.join("segments")).expect("segments") {
        let path = file.expect("a file").path();
        let bytes = std::fs::read(&path).expect("a segment");
        let data = shard.data();
        // The first bytes are random: few windows are compared to the end.
        if let Some(at) = bytes.windows(data.len()).position(|window| window == data) {
            return Some((path, at as u64));
        }
    }
    None
}

/// The numbers of the segments.
fn segments(dir: &Path) -> Vec<u32> {
    let files = std::fs::read_dir(dir.join("segments")).expect("segments");
    let names = files.map(|file| file.expect("a file").file_name());
    let mut numbers: Vec<_> = names.filter_map(|name| segment::number_of(name.to_str()?)).collect();
    numbers.sort_unstable();
    numbers
}

/// The headers in all segments.
fn records(dir: &Path) -> Vec<(Kind, ShardId)> {
    let mut records = Vec::new();
    let store = StoreId([7; 32]);
    let device = Arc::new(Directory::new(dir.join("segments")));
    let files = Segments { device, store, faults: Faults::none() };
    for number in segments(dir) {
        let file = files.open(number).expect("a segment");
        let key = RecordKey::new(store);
        let mut scan = Scan::headers(&file, &key, 64..file.bytes().expect("its length"));
        while let Some(found) = scan.next().expect("a readable segment") {
            if let Found::Record { header, .. } = found {
                records.push((header.kind, header.id));
            }
        }
    }
    records
}

/// Checks that the books know how many records with its bytes each shard has in the files. True
/// while no header is damaged and nothing is being deleted.
async fn assert_copies(store: &DiskStore, dir: &Path) {
    let mut in_files = BTreeMap::new();
    for (kind, id) in records(dir) {
        *in_files.entry(id).or_default() += u32::from(!matches!(kind, Kind::Removal(_)));
    }
    let rows = store.rows().await;
    let in_books: BTreeMap<_, _> = rows.into_iter().map(|(id, row)| (id, row.copies)).collect();
    in_files.retain(|_, copies| *copies > 0);
    assert_eq!(in_books, in_files);
}

/// Flips a bit, in place: an open store sees it.
fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    byte[0] ^= 1;
    file.write_all_at(&byte, at).expect("a write");
}

/// Cuts bytes off the end of a file.
fn cut(path: &Path, bytes: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("a file");
    let length = file.metadata().expect("its length").len();
    file.set_len(length - bytes).expect("a cut");
}

fn segment(dir: &Path, number: u32) -> PathBuf {
    segment::path(&dir.join("segments"), number)
}

/// Copies the index of a closed store, or puts the copy back: what a power cut does that takes the
/// end of the index's log. Nothing to do without RocksDB: its index is built at each opening.
fn copy_index(from: &Path, to: &Path) {
    if to.join("index").exists() {
        std::fs::remove_dir_all(to.join("index")).expect("an index");
    }
    if from.join("index").exists() {
        std::fs::create_dir_all(to.join("index")).expect("a directory");
        for file in std::fs::read_dir(from.join("index")).expect("an index") {
            let file = file.expect("a file");
            std::fs::copy(file.path(), to.join("index").join(file.file_name())).expect("a copy");
        }
    }
}

fn delete_index(dir: &Path) {
    let _ = std::fs::remove_dir_all(dir.join("index"));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Reads a whole shard and checks that it is the one that was put.
async fn assert_held(store: &dyn ShardStore, shard: &VerifiedShard) {
    let id = shard.id();
    let read = store.read(id, Want::Whole).await.unwrap_or_else(|error| panic!("{id}: {error}"));
    assert_read(&read, shard);
}

async fn assert_not_held(store: &dyn ShardStore, shard: &VerifiedShard) {
    let read = store.read(shard.id(), Want::Whole).await;
    assert!(matches!(read, Err(ReadError::NotHeld { .. })), "{read:?}");
}

async fn remove(store: &dyn ShardStore, shard: &VerifiedShard, reason: RemovalReason) {
    let removed = store.remove(shard.id(), reason).await.expect("a removal");
    assert_eq!(removed, Removed::Removed);
}

fn assert_read(read: &ShardRead, shard: &VerifiedShard) {
    assert_eq!(&read.descriptor, shard.descriptor());
    assert_eq!(read.shard_bytes, shard.data().len() as u64);
    let covered = usize::try_from(read.covered.start).expect("small")
        ..usize::try_from(read.covered.end).expect("small");
    assert!(read.data == shard.data()[covered.clone()], "wrong bytes of {}", shard.id());
    let descriptor = Descriptor::decode(&read.descriptor).expect("a descriptor");
    let hash = descriptor.shard_hash(shard.id().index).expect("its hash");
    shard_tree::verify(hash, shard.data().len(), &covered, &read.data, &read.proof)
        .expect("a proof that anyone can check");
}

fn ids(shards: &[VerifiedShard]) -> Vec<ShardId> {
    let mut ids: Vec<_> = shards.iter().map(VerifiedShard::id).collect();
    ids.sort_unstable();
    ids
}
