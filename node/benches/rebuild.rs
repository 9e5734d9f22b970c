//! How fast lost nodes are rebuilt, beside what bare QUIC carries in the same run.
//!
//! Sixteen node processes on this machine, 10+6, no limits, fsync on. Three are killed; from the
//! first shard that is made anew to the last, what the others read and write is counted. All nodes
//! share the machine's processors, its disk and its loopback, and so does bare QUIC.

#![allow(clippy::print_stdout)] // Its output is its purpose.

#[path = "support/bare_quic.rs"]
mod bare_quic;
#[path = "../../client/tests/support/cluster.rs"]
mod cluster;

use std::{
    fs,
    time::{Duration, Instant},
};

use bare_quic::{bare, drain, endpoint};
use bytes::Bytes;
use cluster::{Cluster, noise};
use copse_proto::tls::server_name;
use futures::{StreamExt as _, stream};
use serde_json::Value;

/// What is stored, in MiB.
const STORED_MIB: usize = 2048;
/// Streams at once, and bytes of each: shards of a full chunk of 10+6.
const AT_ONCE: usize = 8;
const STREAM_BYTES: usize = 787_200;
const STREAMS: usize = 1024;

/// No part of this takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// Minutes become seconds.
const QUICK: [(&str, &str); 7] = [
    ("ping_every = \"5s\"", "ping_every = \"500ms\""),
    ("suspect_after = \"10s\"", "suspect_after = \"3s\""),
    ("down_after = \"5min\"", "down_after = \"12s\""),
    ("dead_after = \"4h\"", "dead_after = \"20s\""),
    ("together = \"1h\"", "together = \"10ms\""),
    ("freeze_max = \"1d\"", "freeze_max = \"30s\""),
    ("round_every = \"1min\"", "round_every = \"1s\""),
];

#[derive(Default, Clone, Copy)]
struct Done {
    /// Nodes that have not planned for what they see.
    behind: u64,
    chunks: u64,
    whole: u64,
    displaced: u64,
    queued: u64,
    rebuilt_bytes: u64,
    read_bytes: u64,
}

fn done(cluster: &Cluster) -> Done {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let statuses = cluster.running().into_iter().filter_map(|node| cluster.status(node));
    statuses.fold(Done::default(), |sum, status| {
        let repair = &status["repair"];
        let margins = |name: &str| {
            let map = repair[name].as_object();
            map.map_or(0, |map| map.values().map(number).sum::<u64>())
        };
        Done {
            behind: sum.behind + u64::from(repair["planned"] != true),
            queued: sum.queued + number(&repair["running"]) + margins("queue_by_margin"),
            displaced: sum.displaced + number(&repair["chunks_displaced"]),
            chunks: sum.chunks + margins("chunks_by_margin"),
            whole: sum.whole + number(&repair["chunks_whole"]),
            rebuilt_bytes: sum.rebuilt_bytes + number(&repair["counters"]["rebuilt_bytes"]),
            read_bytes: sum.read_bytes + number(&repair["counters"]["rebuild_read_bytes"]),
        }
    })
}

/// Asks until it is so; not for longer than [`PATIENCE`].
fn until(cluster: &Cluster, what: impl Fn(&Done) -> bool) -> (Instant, Done) {
    let start = Instant::now();
    loop {
        let now = done(cluster);
        if what(&now) {
            return (Instant::now(), now);
        }
        assert!(start.elapsed() < PATIENCE, "the nodes do not get there");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Bytes per second over bare streams between two endpoints.
async fn bare_rate() -> f64 {
    let (_, near, _) = endpoint(1);
    let (tls, far, address) = endpoint(2);
    tokio::spawn(async move {
        let connection = far.accept().await.expect("a dial").await.expect("a handshake");
        while let Ok((send, receive)) = connection.accept_bi().await {
            tokio::spawn(drain(send, receive));
        }
    });
    let connection =
        near.connect(address, &server_name(&tls.id())).expect("a valid dial").await.expect("up");
    let bytes = Bytes::from(vec![5; STREAM_BYTES]);
    let started = Instant::now();
    stream::iter(0..STREAMS)
        .for_each_concurrent(AT_ONCE, |_| bare(&connection, bytes.clone()))
        .await;
    (STREAMS * STREAM_BYTES) as f64 / started.elapsed().as_secs_f64()
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let before = runtime.block_on(bare_rate());
    let mut cluster = Cluster::start_as(16, &QUICK, |_| Vec::new());
    let source = cluster.dir.path().join("source");
    fs::write(&source, noise(7, STORED_MIB << 20)).expect("written");
    cluster.put(&source, &["--geometry", "10+6"]);
    // Chunks of 8 MiB, and the tree's.
    let settled = |now: &Done| {
        let whole = now.chunks > STORED_MIB as u64 / 8 && now.whole == now.chunks;
        whole && now.behind == 0 && now.displaced == 0
    };
    let (_, stored) = until(&cluster, settled);
    println!("{STORED_MIB} MiB in {} chunks on 16 nodes; three are killed", stored.chunks);
    for node in [1, 5, 9] {
        cluster.kill(node);
        std::thread::sleep(Duration::from_millis(100));
    }
    let (start, first) = until(&cluster, |now| now.rebuilt_bytes > 0);
    // The tree's own chunks are copies, of which some may stay missing for longer.
    let (end, last) = until(&cluster, |now| now.behind == 0 && now.queued == 0);
    let after = runtime.block_on(bare_rate());
    let seconds = (end - start).as_secs_f64();
    let made = (last.rebuilt_bytes - first.rebuilt_bytes) as f64;
    let read = (last.read_bytes - first.read_bytes) as f64;
    let (quic, rate) = (f64::midpoint(before, after), (made + read) / seconds);
    println!("bare QUIC: {:.0} MB/s before, {:.0} MB/s after", before / 1e6, after / 1e6);
    println!(
        "rebuilt {:.0} MB in {seconds:.1} s, {:.0} MB/s; {:.2} bytes read for each",
        made / 1e6,
        made / seconds / 1e6,
        read / made
    );
    println!("read and written {:.0} MB/s: {:.2} of bare QUIC", rate / 1e6, rate / quic);
}
