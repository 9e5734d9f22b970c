//! How fast one core turns plaintext into shards and back, beside what its parts could do.
//!
//! Measures the primitives and the pipeline in one run, in turns and in time of the processor, so
//! that a busy or throttled machine slows both. Refuses to compare across runs. The roofline is the time of the parts alone,
//! in the cache and with nothing between them: 1 / (1/aead + 1/blake3 + 1/rs + 1.6/blake3) for 10+6,
//! since the plaintext is hashed for its key and 1.6 times as much for the shards.
//!
//! `cargo bench -p copse-core [-- --check]`: with `--check`, fails below [`RATIO_MIN`].
#![allow(clippy::print_stdout, reason = "a benchmark's result is what it prints")]

use std::{hint::black_box, process::ExitCode};

use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, Key, KeyInit, Nonce};
use copse_core::{
    chunk::encode_bulk,
    erasure::Codec,
    geometry::Geometry,
    ids::ShardIndex,
    layout::Layout,
    seal::{ConvergenceSecret, open_span_into},
    shard_tree::GroupHashes,
};
use rustix::time::{ClockId, clock_gettime};

/// The part of the roofline that the pipeline must reach.
const RATIO_MIN: f64 = 0.80;

/// Turns. In each, all parts run one after the other; the middle turn counts.
const TURNS: usize = 25;

/// What is hashed to know BLAKE3's speed in the cache: a quarter of a second-level cache of 1 MiB.
const CACHED_BYTES: usize = 256 << 10;

/// Columns that are coded to know Reed-Solomon's speed in the cache: 16 times as much in all.
const COLUMN_BYTES: usize = 16 << 10;

/// How long a part runs in one turn, in seconds.
const TURN_SECONDS: f64 = 0.04;

/// Seconds that this thread has been on a processor. Not the time of day: on a busy machine a short
/// part would get through between two interruptions, and a long one never.
fn busy_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// One thing to measure: its name, the bytes of data of one run, GB/s in each turn.
struct Part<'a> {
    name: &'static str,
    bytes: usize,
    run: Box<dyn FnMut() + 'a>,
    turns: Vec<f64>,
}

impl<'a> Part<'a> {
    fn new(name: &'static str, bytes: usize, run: impl FnMut() + 'a) -> Self {
        Self { name, bytes, run: Box::new(run), turns: Vec::new() }
    }

    fn turn(&mut self) {
        let start = busy_seconds();
        let (mut runs, mut taken) = (0, 0.0);
        while taken < TURN_SECONDS {
            (self.run)();
            runs += 1;
            taken = busy_seconds() - start;
        }
        self.turns.push((runs * self.bytes) as f64 / taken / 1e9);
    }
}

/// The middle one: other programs disturb some turns, and the clock itself errs in both directions.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn noise(count: usize, seed: &[u8]) -> Vec<u8> {
    let mut out = vec![0; count];
    blake3::Hasher::new().update(seed).finalize_xof().fill(&mut out);
    out
}

fn main() -> ExitCode {
    let geometry = Geometry::new(10, 6).expect("10+6 is a geometry");
    let layout = Layout::largest(geometry);
    let (chunk_bytes, shard_bytes) = (layout.plaintext_bytes_max(), layout.shard_bytes());
    let secret = ConvergenceSecret::new([1; 32]);
    // Several chunks in turn, so that plaintext comes from memory and not from the cache.
    let chunks: Vec<Vec<u8>> = (0..12u8).map(|i| noise(chunk_bytes, &[i])).collect();
    let (encoded, extent) =
        encode_bulk(geometry, &secret, &chunks[0], Vec::new()).expect("a full chunk fits");
    let (body_bytes, codec) = (layout.body_bytes(), Codec::new(geometry));

    let cipher = ChaCha20Poly1305::new(&Key::from([2; 32]));
    let mut frame = noise(layout.frame_bytes(), b"frame");
    let library = reed_solomon_erasure::galois_8::ReedSolomon::new(10, 6).expect("a known code");
    let data = noise(body_bytes, b"data");
    let (mut parity, mut library_parity) = (vec![0; 6 * shard_bytes], vec![0; 6 * shard_bytes]);
    let cached_data = noise(10 * COLUMN_BYTES, b"columns");
    let mut cached_parity = vec![0; 6 * COLUMN_BYTES];
    let mut copy = vec![0; chunk_bytes];
    let mut opened = vec![0; chunk_bytes];
    let mut rebuilt = vec![0; 6 * shard_bytes];
    let (mut buffer, mut next) = (Some(Vec::new()), 0);

    // Shards 6 to 15: six data shards are missing, all parity is used.
    let all: Vec<ShardIndex> = (0..16).map(ShardIndex).collect();
    let have: Vec<(ShardIndex, &[u8])> = all[6..].iter().map(|i| (*i, encoded.shard(*i))).collect();
    let body: Vec<u8> = all[..10].iter().flat_map(|i| encoded.shard(*i)).copied().collect();
    let (span, _) = extent.shard_ranges(0..chunk_bytes);

    let mut parts = vec![
        Part::new("memcpy of a chunk", chunk_bytes, || {
            copy.copy_from_slice(black_box(&chunks[1]));
            black_box(&copy);
        }),
        Part::new("ChaCha20-Poly1305, a 16 KiB frame in place", layout.frame_bytes(), || {
            let nonce = Nonce::default();
            let tag = cipher.encrypt_inout_detached(&nonce, b"", (&mut *frame).into());
            black_box(tag.is_ok());
        }),
        Part::new("BLAKE3 of a chunk", chunk_bytes, || {
            black_box(blake3::hash(&chunks[1]));
        }),
        Part::new("BLAKE3 of 256 KiB, in the cache", CACHED_BYTES, || {
            black_box(blake3::hash(black_box(&chunks[1][..CACHED_BYTES])));
        }),
        Part::new("Reed-Solomon 10+6, columns of 16 KiB, in the cache", 10 * COLUMN_BYTES, || {
            let data: Vec<&[u8]> = cached_data.chunks(COLUMN_BYTES).collect();
            let mut parity: Vec<&mut [u8]> = cached_parity.chunks_mut(COLUMN_BYTES).collect();
            black_box(library.encode_sep(&data, &mut parity).is_ok());
        }),
        Part::new("Reed-Solomon 10+6, the library as it is", body_bytes, || {
            let data: Vec<&[u8]> = data.chunks(shard_bytes).collect();
            let mut parity: Vec<&mut [u8]> = library_parity.chunks_mut(shard_bytes).collect();
            black_box(library.encode_sep(&data, &mut parity).is_ok());
        }),
        Part::new("Reed-Solomon 10+6, by blocks of columns", body_bytes, || {
            codec.encode(&data, &mut parity, shard_bytes);
            black_box(&parity);
        }),
        Part::new("pipeline: key, seal, encode 10+6, hash", chunk_bytes, || {
            let plaintext = &chunks[next % chunks.len()];
            next += 1;
            let encoded =
                encode_bulk(geometry, &secret, plaintext, buffer.take().unwrap_or_default());
            let (chunk, _) = encoded.expect("a full chunk fits");
            buffer = Some(black_box(chunk).into_buffer());
        }),
        Part::new("decode, 6 data shards missing", body_bytes, || {
            let mut want: Vec<(ShardIndex, &mut [u8])> =
                all[..6].iter().copied().zip(rebuilt.chunks_mut(shard_bytes)).collect();
            black_box(codec.reconstruct_into(&have, &mut want).is_ok());
        }),
        Part::new("open all frames", chunk_bytes, || {
            let sealed = &body[span.sealed.clone()];
            let frame_bytes = layout.frame_bytes();
            let open =
                open_span_into(&extent.key, frame_bytes, chunk_bytes, &span, sealed, &mut opened);
            black_box(open.is_ok());
        }),
        Part::new("hash a shard with its groups (node)", shard_bytes, || {
            black_box(GroupHashes::of(encoded.shard(ShardIndex(3))).root(shard_bytes));
        }),
    ];
    for _ in 0..TURNS {
        parts.iter_mut().for_each(Part::turn);
    }

    println!("one core, GB/s of data, the middle of {TURNS} turns");
    for part in &parts {
        println!("{:7.2}  {}", median(part.turns.iter().copied()), part.name);
    }
    let [_, aead, blake3, blake3_cached, rs_cached, library, blocks, pipeline, ..] = &parts[..]
    else {
        return ExitCode::FAILURE;
    };
    let roofs: Vec<f64> = (0..TURNS)
        .map(|turn| {
            // The fastest form of each is the primitive: one that waits for memory, as whole
            // chunks do on a busy machine, would flatter the ratio.
            let blake3 = blake3.turns[turn].max(blake3_cached.turns[turn]);
            let rs = rs_cached.turns[turn].max(library.turns[turn]).max(blocks.turns[turn]);
            (1.0 / aead.turns[turn] + 1.0 / blake3 + 1.0 / rs + 1.6 / blake3).recip()
        })
        .collect();
    let ratio = median(pipeline.turns.iter().zip(&roofs).map(|(is, could)| is / could));
    let roofline = median(roofs.into_iter());
    println!("{roofline:7.2}  roofline of 10+6");
    println!("{ratio:7.2}  pipeline / roofline (at least {RATIO_MIN:.2} is wanted)");
    if std::env::args().any(|argument| argument == "--check") && ratio < RATIO_MIN {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
