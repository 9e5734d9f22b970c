//! The whole, measured against what the machine can do, in one run: `make bench`.
//!
//! Sixteen real node processes on loopback with fsync on. Each figure of Copse stands beside the
//! figure of the bare thing it is made of, measured in the same round, and the ratio is what counts:
//! absolute figures drift with the machine. Never a test: nothing here fails for being slow.

// A report is its purpose.
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../tests/support/cluster.rs"]
mod cluster;

#[path = "bare/mod.rs"]
mod bare;

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cluster::{Cluster, text};
use copse_core::{chunk::encode_bulk, geometry::Geometry, layout::Layout, seal::ConvergenceSecret};

const NODES: usize = 16;
const GEOMETRY: &str = "10+6";

/// Bytes of a shard of a full chunk of 10+6: what a node appends at once.
const SHARD_BYTES: usize = 48 * (16_384 + 16);

/// Bytes a raw writer flushes at once, as a node does under load.
const FLUSH_BYTES: usize = 8 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--role") {
        return role(&arguments[at + 1..]);
    }
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let mib = number("BENCH_MIB", 1024);
    let rounds = number("BENCH_ROUNDS", 3);
    let large_mib = number("BENCH_LARGE_MIB", 4096);

    // Names of parts, if not all are wanted. Cargo adds an option of its own.
    let named: Vec<&String> = arguments[1..].iter().filter(|name| !name.starts_with('-')).collect();
    let wanted = |part: &str| named.is_empty() || named.iter().any(|name| *name == part);

    let cluster = Cluster::start(NODES);
    println!("{NODES} node processes, {GEOMETRY}, fsync on, {mib} MiB, {rounds} rounds");
    if wanted("throughput") {
        throughput(&cluster, mib << 20, rounds);
    }
    if wanted("small-files") {
        small_files(&cluster);
    }
    if wanted("latency") {
        latency(&cluster);
    }
    if wanted("memory") {
        memory(&cluster, large_mib << 20);
    }
}

/// Processes of this program that are the bare thing.
fn role(arguments: &[String]) {
    match arguments {
        [role, path, bytes] if role == "raw-writer" => {
            raw_writer(Path::new(path), bytes.parse().expect("a number"));
        }
        [role, rest @ ..] if role.starts_with("bare-") => bare::role(role, rest),
        other => panic!("unknown role {other:?}"),
    }
}

/// Appends and fsyncs, nothing else.
fn raw_writer(path: &Path, bytes: usize) {
    let mut file = fs::File::create(path).expect("writable");
    let block = cluster::noise(1, SHARD_BYTES);
    let (mut left, mut unflushed) = (bytes, 0);
    while left > 0 {
        let count = left.min(block.len());
        file.write_all(&block[..count]).expect("written");
        left -= count;
        unflushed += count;
        if unflushed >= FLUSH_BYTES || left == 0 {
            file.sync_data().expect("flushed");
            unflushed = 0;
        }
    }
}

fn myself(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.arg("--role").args(arguments);
    command
}

/// Sixteen processes append and fsync so many bytes together.
fn raw_disk(dir: &Path, bytes: usize) -> Duration {
    let each = (bytes / NODES).to_string();
    let started = Instant::now();
    let children: Vec<Child> = (0..NODES)
        .map(|number| {
            let path = dir.join(format!("raw{number}"));
            let path = path.to_str().expect("UTF-8").to_owned();
            myself(&["raw-writer", &path, &each]).spawn().expect("started")
        })
        .collect();
    for mut child in children {
        assert!(child.wait().expect("ended").success());
    }
    let took = started.elapsed();
    for number in 0..NODES {
        fs::remove_file(dir.join(format!("raw{number}"))).expect("removed");
    }
    took
}

/// So many pieces of work on as many threads as there are cores.
fn on_all_cores(pieces: usize, work: impl Fn() + Sync) -> Duration {
    let (started, next) = (Instant::now(), AtomicUsize::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < pieces {
                    work();
                }
            });
        }
    });
    started.elapsed()
}

/// What the client computes for so many bytes: keys, sealed frames, shards, hashes.
fn encoded(bytes: usize) -> Duration {
    let geometry: Geometry = GEOMETRY.parse().expect("a geometry");
    let plaintext = cluster::noise(1, Layout::largest(geometry).plaintext_bytes_max());
    let secret = ConvergenceSecret::new([1; 32]);
    let buffers = Mutex::new(Vec::new());
    on_all_cores(bytes.div_ceil(plaintext.len()), || {
        let buffer = buffers.lock().expect("not poisoned").pop().unwrap_or_default();
        let (chunk, _) = encode_bulk(geometry, &secret, &plaintext, buffer).expect("fits");
        buffers.lock().expect("not poisoned").push(chunk.into_buffer());
    })
}

/// What nodes compute for so many bytes of shards: their hashes.
fn verified(bytes: usize) -> Duration {
    let shard = cluster::noise(2, SHARD_BYTES);
    on_all_cores(bytes.div_ceil(SHARD_BYTES), || {
        std::hint::black_box(blake3::hash(&shard));
    })
}

fn speed(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e6
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn throughput(cluster: &Cluster, bytes: u64, rounds: u64) {
    let dir = cluster.dir.path();
    let size = usize::try_from(bytes).expect("fits");
    let source = dir.join("source");
    let mut ratios: [Vec<f64>; 4] = Default::default();
    for round in 0..rounds {
        fs::write(&source, cluster::noise(100 + round, size)).expect("written");
        let shards = size.div_ceil(10) * 16;
        settle(dir, 2 * shards);
        let raw = raw_disk(dir, shards);
        settle(dir, 2 * shards);
        let started = Instant::now();
        let capability = cluster.put(&source, &["--geometry", GEOMETRY]);
        let put = started.elapsed();
        settle(dir, 2 * shards);
        let bare = bare::stream("get", bytes);
        let carried = bare::stream("put", shards as u64);
        let alone = [encoded(size), carried, verified(shards), raw];
        let parts: Duration = alone.iter().sum();
        let back = dir.join("back");
        settle(dir, 2 * shards);
        let started = Instant::now();
        let output = cluster.copse(["get", &capability, back.to_str().expect("UTF-8")]);
        let get = started.elapsed();
        assert!(output.status.success(), "{}", text(&output.stderr));
        settle(dir, 2 * shards);
        let started = Instant::now();
        let status = cluster
            .command()
            .args(["cat", &capability])
            .stdout(Stdio::null())
            .status()
            .expect("copse runs");
        let cat = started.elapsed();
        assert!(status.success());
        assert!(same(&source, &back), "other bytes came back");
        fs::remove_file(&back).expect("removed");
        println!(
            "round {}: raw append+fsync {:.0} MB/s of shards; put {:.0} MB/s ({:.0} of shards, ratio \
             {:.2}); bare gRPC stream {:.0} MB/s; get to a file {:.0} MB/s (ratio {:.2}); cat {:.0} \
             MB/s (ratio {:.2})",
            round + 1,
            speed(shards as u64, raw),
            speed(bytes, put),
            speed(shards as u64, put),
            raw.as_secs_f64() / put.as_secs_f64(),
            speed(bytes, bare),
            speed(bytes, get),
            bare.as_secs_f64() / get.as_secs_f64(),
            speed(bytes, cat),
            bare.as_secs_f64() / cat.as_secs_f64(),
        );
        let [encode, carry, verify, write] = alone.map(|part| part.as_secs_f64());
        println!(
            "  the put took {:.2} s; its parts, one after the other, each with all cores to itself: encode \
             {encode:.2} s, carry over bare gRPC {carry:.2} s, verify {verify:.2} s, append and fsync \
             {write:.2} s, together {:.2} s (ratio {:.2})",
            put.as_secs_f64(),
            parts.as_secs_f64(),
            parts.as_secs_f64() / put.as_secs_f64(),
        );
        for (ratios, ratio) in ratios.iter_mut().zip([
            raw.as_secs_f64() / put.as_secs_f64(),
            bare.as_secs_f64() / get.as_secs_f64(),
            bare.as_secs_f64() / cat.as_secs_f64(),
            parts.as_secs_f64() / put.as_secs_f64(),
        ]) {
            ratios.push(ratio);
        }
    }
    let [mut put, mut get, mut cat, mut parts] = ratios;
    println!(
        "median ratios: put/raw disk {:.2} (target 0.5), put/its parts {:.2}, get/bare stream {:.2} (target \
         0.5), cat/bare stream {:.2}",
        median(&mut put),
        median(&mut parts),
        median(&mut get),
        median(&mut cat)
    );
    fs::remove_file(&source).expect("removed");
}

/// Lets what was written before reach the disk, so that nobody pays for another's writes, and
/// makes the machine's free memory its own. A virtual machine may give free memory back to its host
/// (free page reporting), and getting it again was measured at up to 7 s per GiB: whoever writes
/// first would pay for that, and the ratio would be about the host.
fn settle(dir: &Path, bytes: usize) {
    rustix::fs::sync();
    let path = dir.join("memory");
    let mut file = fs::File::create(&path).expect("writable");
    let block = vec![0; 1 << 20];
    for _ in 0..bytes.div_ceil(block.len()) {
        file.write_all(&block).expect("written");
    }
    drop(file);
    // Its pages are free now, and still the machine's.
    fs::remove_file(&path).expect("removed");
}

fn same(a: &Path, b: &Path) -> bool {
    let hash = |path: &Path| {
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut fs::File::open(path).expect("readable"), &mut hasher).expect("read");
        hasher.finalize()
    };
    hash(a) == hash(b)
}

fn small_files(cluster: &Cluster) {
    let folder = cluster.dir.path().join("small");
    for group in 0..100 {
        let sub = folder.join(format!("{group:02}"));
        fs::create_dir_all(&sub).expect("made");
        for number in 0..100 {
            let content = cluster::noise(group * 100 + number + 1_000_000, 4096);
            fs::write(sub.join(format!("file{number:02}")), content).expect("written");
        }
    }
    let started = Instant::now();
    let capability = cluster.put(&folder, &["--geometry", GEOMETRY]);
    let put = started.elapsed();
    let back = cluster.dir.path().join("small-back");
    let started = Instant::now();
    let output = cluster.copse(["get", &capability, back.to_str().expect("UTF-8")]);
    let get = started.elapsed();
    assert!(output.status.success(), "{}", text(&output.stderr));
    println!(
        "10,000 files of 4 KiB: put {:.2} s (target 10), get {:.2} s",
        put.as_secs_f64(),
        get.as_secs_f64()
    );
}

fn latency(cluster: &Cluster) {
    let source = cluster.dir.path().join("latency");
    fs::write(&source, cluster::noise(7, 256 << 20)).expect("written");
    let capability = cluster.put(&source, &["--geometry", GEOMETRY]);
    bare::latency(&cluster.dir.path().join("client"), &capability);
}

/// The most memory a process has had, while it lives.
fn peak_kib(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn watch(mut child: Child) -> u64 {
    let mut peak = 0;
    loop {
        peak = peak_kib(child.id()).unwrap_or(0).max(peak);
        if let Some(status) = child.try_wait().expect("a child") {
            assert!(status.success());
            return peak;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn memory(cluster: &Cluster, bytes: u64) {
    let source = cluster.dir.path().join("large");
    let mut file = fs::File::create(&source).expect("writable");
    for part in 0..bytes.div_ceil(64 << 20) {
        file.write_all(&cluster::noise(5000 + part, 64 << 20)).expect("written");
    }
    drop(file);
    let output = cluster.dir.path().join("capability");
    let child = cluster
        .command()
        .args(["put", "--geometry", GEOMETRY])
        .arg(&source)
        .stdout(fs::File::create(&output).expect("writable"))
        .stderr(Stdio::null())
        .spawn()
        .expect("copse runs");
    let put = watch(child);
    let capability = fs::read_to_string(&output).expect("readable");
    let back = cluster.dir.path().join("large-back");
    let child = cluster
        .command()
        .args(["get", capability.trim()])
        .arg(&back)
        .stderr(Stdio::null())
        .spawn()
        .expect("copse runs");
    let get = watch(child);
    assert!(same(&source, &back), "other bytes came back");
    let nodes: Vec<u64> =
        (0..NODES).filter_map(|node| peak_kib(cluster.process_id(node))).collect();
    println!(
        "peak memory for a file of {} MiB: put {} MiB, get {} MiB (target 256); nodes {} to {} MiB \
         (target 300)",
        bytes >> 20,
        put >> 10,
        get >> 10,
        nodes.iter().min().copied().unwrap_or(0) >> 10,
        nodes.iter().max().copied().unwrap_or(0) >> 10,
    );
}
