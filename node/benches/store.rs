//! How fast the store puts and gets, beside what the same disk does for a plain program.
//!
//! Plain and store take turns in one run, so that a busy disk slows both. Shards are those of a full
//! chunk of 10+6. Refuses to compare across runs; the middle turn counts.
//!
//! `cargo bench -p copse-node --bench store [-- DIR]`: DIR lies on the disk to be measured.
#![allow(clippy::print_stdout, reason = "a benchmark's result is what it prints")]

use std::{
    fs::File,
    future::Future,
    hint::black_box,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Instant,
};

use bytes::Bytes;
use copse_core::{
    descriptor::Descriptor,
    geometry::Geometry,
    ids::{NodeId, ShardIndex},
    shard_tree,
};
use copse_node::store::{DiskOptions, DiskStore, ShardStore, StoreId, VerifiedShard, Want};
use futures::{StreamExt, stream};

/// Bytes of a shard of a full chunk of 10+6.
const SHARD_BYTES: usize = 12 * (64 * 1024 + 16);
/// Shards of one turn: 192 MiB.
const SHARDS: usize = 256;
/// Puts and gets at once: a few clients.
const AT_ONCE: usize = 32;
const TURNS: usize = 7;
const NODE: NodeId = NodeId::new([9; 32]);

/// Shards that no turn before had.
fn shards(turn: usize, count: usize) -> Vec<VerifiedShard> {
    (0..count as u64)
        .map(|number| {
            let mut bytes = vec![0; SHARD_BYTES];
            let mut hasher = blake3::Hasher::new();
            hasher.update(&(turn as u64).to_le_bytes()).update(&number.to_le_bytes());
            hasher.finalize_xof().fill(&mut bytes);
            let hashes = vec![shard_tree::hash(&bytes); 16];
            let geometry = Geometry::new(10, 6).expect("a geometry");
            let descriptor = Descriptor::new(geometry, SHARD_BYTES, hashes).expect("a descriptor");
            VerifiedShard::check(descriptor.encode().into(), ShardIndex(0), bytes.into())
                .expect("a sound shard")
        })
        .collect()
}

/// Appends the shards to one file, syncing after each `per_sync` of them.
fn plain_put(path: &Path, shards: &[VerifiedShard], per_sync: usize) {
    let file = File::create(path).expect("a file");
    for (batch, some) in shards.chunks(per_sync).enumerate() {
        for (number, shard) in some.iter().enumerate() {
            let at = (batch * per_sync + number) * SHARD_BYTES;
            file.write_all_at(shard.data(), at as u64).expect("a write");
        }
        file.sync_data().expect("a sync");
    }
}

/// Reads and hashes the shards of a plain file.
fn plain_get(path: &Path, shards: usize) {
    let file = File::open(path).expect("a file");
    for number in 0..shards {
        let mut bytes = vec![0; SHARD_BYTES];
        file.read_exact_at(&mut bytes, (number * SHARD_BYTES) as u64).expect("a read");
        black_box(blake3::hash(&bytes));
    }
}

async fn put_all(store: &DiskStore, shards: &[VerifiedShard], at_once: usize) {
    let puts = stream::iter(shards.iter().cloned()).map(|shard| store.put(shard));
    let mut puts = puts.buffer_unordered(at_once);
    while let Some(stored) = puts.next().await {
        stored.expect("a put");
    }
}

async fn get_all(store: &DiskStore, shards: &[VerifiedShard], at_once: usize) {
    let gets = stream::iter(shards).map(|shard| store.read(shard.id(), Want::Whole));
    let mut gets = gets.buffer_unordered(at_once);
    while let Some(read) = gets.next().await {
        black_box::<Bytes>(read.expect("a get").data);
    }
}

/// MB/s or µs of one turn after another; the middle one counts.
#[derive(Default)]
struct Turns(Vec<f64>);

impl Turns {
    fn rate(&mut self, bytes: usize, seconds: f64) {
        self.0.push(bytes as f64 / 1e6 / seconds);
    }

    fn middle(&mut self) -> f64 {
        self.0.sort_by(f64::total_cmp);
        self.0[self.0.len() / 2]
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

async fn seconds_of(work: impl Future<Output = ()>) -> f64 {
    let start = Instant::now();
    work.await;
    start.elapsed().as_secs_f64()
}

fn main() {
    let parent = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let parent = parent.map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent).expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let store_dir = dir.path().join("store");
    DiskStore::init(&store_dir, NODE, StoreId([7; 32])).expect("a store");
    let store = DiskStore::open(&store_dir, NODE, &DiskOptions::new(1 << 40)).expect("a store");
    let plain = dir.path().join("plain");
    let bytes = SHARDS * SHARD_BYTES;
    let mut rows: [(&str, Turns, Turns); 4] = [
        ("put, 32 at once | append, sync per 8 MiB", Turns::default(), Turns::default()),
        ("put, one by one | append, sync each", Turns::default(), Turns::default()),
        ("get, 32 at once | pread + hash, one thread", Turns::default(), Turns::default()),
        ("get, one by one | pread + hash, one thread", Turns::default(), Turns::default()),
    ];
    let (mut small, mut check) = (Turns::default(), Turns::default());
    for turn in 0..TURNS {
        let many = shards(2 * turn, SHARDS);
        let few = shards(2 * turn + 1, SHARDS / 4);
        let start = Instant::now();
        for shard in &few {
            let (descriptor, data) = (shard.descriptor().clone(), shard.data().clone());
            black_box(VerifiedShard::check(descriptor, ShardIndex(0), data).expect("sound"));
        }
        check.rate(bytes / 4, start.elapsed().as_secs_f64());

        rows[0].2.rate(bytes, seconds(|| plain_put(&plain, &many, 11)));
        rows[0].1.rate(bytes, runtime.block_on(seconds_of(put_all(&store, &many, AT_ONCE))));
        rows[2].2.rate(bytes, seconds(|| plain_get(&plain, SHARDS)));
        rows[2].1.rate(bytes, runtime.block_on(seconds_of(get_all(&store, &many, AT_ONCE))));
        rows[3].2.rate(bytes, seconds(|| plain_get(&plain, SHARDS)));
        rows[3].1.rate(bytes, runtime.block_on(seconds_of(get_all(&store, &many, 1))));
        std::fs::remove_file(&plain).expect("a file");
        rows[1].2.rate(bytes / 4, seconds(|| plain_put(&plain, &few, 1)));
        rows[1].1.rate(bytes / 4, runtime.block_on(seconds_of(put_all(&store, &few, 1))));
        std::fs::remove_file(&plain).expect("a file");

        let reads = runtime.block_on(seconds_of(async {
            for shard in &many {
                let read = store.read(shard.id(), Want::Range(300_000..304_096)).await;
                black_box::<Bytes>(read.expect("a read").data);
            }
        }));
        small.0.push(reads / SHARDS as f64 * 1e6);
    }
    println!("shards of {SHARD_BYTES} bytes, {TURNS} turns, the middle one; MB/s");
    println!("{:44} {:>8} {:>8} {:>6}", "store | plain", "store", "plain", "ratio");
    for (name, store, plain) in &mut rows {
        let (store, plain) = (store.middle(), plain.middle());
        println!("{name:44} {store:8.0} {plain:8.0} {:6.2}", store / plain);
    }
    println!("{:44} {:8.0}", "check of a shard before a put, one thread", check.middle());
    println!("{:44} {:8.1} µs", "get of 4 KiB with its proof", small.middle());
    runtime.block_on(store.close());
}
