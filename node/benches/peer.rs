//! How much of bare QUIC a request between nodes keeps.
//!
//! Owns three measurements, taken turn by turn in one run and in time of the processor, because the
//! figures of a shared machine drift: the same bytes over bare streams of the same endpoint
//! settings, as shards through the pool and the server, and the time of a small request. Both ends
//! are in this process. The bare reader throws the bytes away; a shard is put together for its
//! handler.

#![allow(clippy::print_stdout)] // Its output is its purpose.

#[path = "support/bare_quic.rs"]
mod bare_quic;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bare_quic::{bare, drain, endpoint};
use bytes::Bytes;
use copse_core::ids::NodeId;
use copse_node::peer::{
    Answer, Op, Outcome, PeerHandler,
    pool::PeerPool,
    server::{Limits, serve},
};
use copse_proto::{
    door::{GetHeader, GetRequest, HasReply, HasRequest, Receipt},
    peer::PutShard,
    status::{Reason, Refusal},
    tls::server_name,
};
use futures::{StreamExt as _, stream};
use rustix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;

/// A shard of a full chunk of 10+6.
const SHARD_BYTES: usize = 787_200;
/// Shards under way at once.
const AT_ONCE: usize = 8;
/// Shards in a turn: 400 MB.
const SHARDS: usize = 512;
const TURNS: usize = 5;
const SMALL_REQUESTS: usize = 2000;

/// Takes shards and gives one back, without a disk.
struct Nowhere(Bytes);

#[async_trait::async_trait]
impl PeerHandler for Nowhere {
    async fn handle(
        &self,
        _from: NodeId,
        op: Op,
        body: Bytes,
        _background: bool,
    ) -> Result<Answer, Refusal> {
        match op {
            Op::PutShard(_) => {
                assert_eq!(body.len(), SHARD_BYTES);
                Ok(Outcome::PutShard(Receipt::default()).into())
            }
            Op::GetShard(_) => Ok(Answer {
                outcome: Outcome::GetShard(GetHeader::default()),
                body: self.0.clone(),
            }),
            Op::HasShards(_) => Ok(Outcome::HasShards(HasReply::default()).into()),
            _ => Err(Refusal::new(Reason::UnknownOperation, "not here")),
        }
    }
}

/// Seconds that all threads of this process have been on a processor.
fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Bytes per second, and per second of a processor, of `one` done for all shards, some at once.
async fn rate<F: Future<Output = ()>>(one: impl Fn() -> F) -> (f64, f64) {
    let (started, processor) = (Instant::now(), processor_seconds());
    stream::iter(0..SHARDS).for_each_concurrent(AT_ONCE, |_| one()).await;
    let bytes = (SHARDS * SHARD_BYTES) as f64;
    (bytes / started.elapsed().as_secs_f64(), bytes / (processor_seconds() - processor))
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

#[tokio::main]
async fn main() {
    let shard = Bytes::from(vec![5; SHARD_BYTES]);

    let (near_tls, near, _) = endpoint(1);
    let (far_tls, far, far_address) = endpoint(2);
    let far_id = far_tls.id();
    let handler = Arc::new(Nowhere(shard.clone()));
    tokio::spawn(serve(far, handler, Limits::default(), CancellationToken::new()));
    let book = Arc::new(move |_: &NodeId| vec![far_address]);
    let pool = PeerPool::new(near.clone(), near_tls.id(), book, 1);

    let (bare_tls, bare_far, bare_address) = endpoint(3);
    let name = server_name(&bare_tls.id());
    let accept = async move {
        let incoming = bare_far.accept().await.expect("a dial");
        let connection = incoming.await.expect("a handshake");
        while let Ok((send, receive)) = connection.accept_bi().await {
            tokio::spawn(drain(send, receive));
        }
    };
    tokio::spawn(accept);
    let connection =
        near.connect(bare_address, &name).expect("a valid dial").await.expect("connected");

    let put = async || {
        let op = Op::PutShard(PutShard { descriptor: vec![1; 523], ..PutShard::default() });
        pool.request(far_id, op, shard.clone()).await.map(drop).expect("stored");
    };
    let get = async || {
        let op = Op::GetShard(GetRequest { length: SHARD_BYTES as u64, ..Default::default() });
        let answer = pool.request(far_id, op, Bytes::new()).await.expect("found");
        assert_eq!(answer.body.len(), SHARD_BYTES);
    };

    let (mut bares, mut puts, mut gets) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..=TURNS {
        let b = rate(|| bare(&connection, shard.clone())).await;
        let (p, g) = (rate(put).await, rate(get).await);
        println!(
            "turn {turn}: bare {:.0} MB/s, put {:.0}, get {:.0}; \
             per processor {:.0}, put {:.0} ({:.2}), get {:.0} ({:.2})",
            b.0 / 1e6,
            p.0 / 1e6,
            g.0 / 1e6,
            b.1 / 1e6,
            p.1 / 1e6,
            p.1 / b.1,
            g.1 / 1e6,
            g.1 / b.1
        );
        // The first turn warms up.
        if turn > 0 {
            bares.push(b.1);
            puts.push(p.1 / b.1);
            gets.push(g.1 / b.1);
        }
    }
    let mut times = Vec::with_capacity(SMALL_REQUESTS);
    for _ in 0..SMALL_REQUESTS {
        let started = Instant::now();
        let op = Op::HasShards(HasRequest::default());
        pool.request(far_id, op, Bytes::new()).await.map(drop).expect("an answer");
        times.push(started.elapsed());
    }
    times.sort();
    let at = |percent: usize| times[times.len() * percent / 100];
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!("bare QUIC, both ends, on one processor    {:>6.0} MB/s", median(bares) / 1e6);
    println!("put of a shard, of bare QUIC              {:>6.2}", median(puts));
    println!("get of a shard, of bare QUIC              {:>6.2}", median(gets));
    println!(
        "small request, p50 and p99            {:>6.0} {:.0} us",
        micros(at(50)),
        micros(at(99))
    );
}
