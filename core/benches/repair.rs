//! How long it takes to plan a chunk's repair.
//!
//! 10+6 on 1000 nodes, the common cases and bad ones. `cargo bench -p copse-core --bench repair`
//! prints each figure next to what it is allowed to be; the best of several runs, since the machine
//! is shared.

#![allow(clippy::print_stdout)] // its only purpose

use std::{collections::BTreeMap, hint::black_box, time::Duration, time::Instant};

use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, NodeId},
    repair::{ChunkFacts, Claim, NodeFacts, Policy, Room, Standing, plan_chunk},
    ring::{Ring, RingMember},
};

const NODES: u32 = 1000;
const CHUNKS: u32 = 20_000;
const RUNS: usize = 7;

fn node(number: u32) -> NodeId {
    NodeId::new(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn ring(nodes: u32, zones: u32) -> Ring {
    let zone = |at: u32| if zones == 0 { String::new() } else { format!("zone {}", at % zones) };
    let member = |at| RingMember { id: node(at), capacity_bytes: 1 << 40, zone: zone(at) };
    Ring::build((0..nodes).map(member).collect())
}

fn placed(ring: &Ring, geometry: Geometry) -> Vec<ChunkFacts> {
    let chunk = |number: u32| {
        let chunk = ChunkId::new(*blake3::hash(&(!number).to_le_bytes()).as_bytes());
        let holders = ring.placement(Ring::arc(&chunk), geometry);
        let claims = holders.into_iter().zip(geometry.indices());
        let claims = claims.map(|(node, index)| Claim { node, index }).collect();
        ChunkFacts { chunk, geometry, shard_bytes: 786_432, claims, missing_for: None }
    };
    (0..CHUNKS).map(chunk).collect()
}

/// Microseconds per chunk, the best of several runs, and actions per chunk.
fn measure(ring: &Ring, nodes: &BTreeMap<NodeId, NodeFacts>, chunks: &[ChunkFacts]) -> (f64, f64) {
    let policy = Policy::default();
    let mut best = f64::INFINITY;
    let mut actions = 0;
    for _ in 0..RUNS {
        actions = 0;
        let start = Instant::now();
        for chunk in chunks {
            actions += black_box(plan_chunk(ring, nodes, chunk, &policy)).actions.len();
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    let each = chunks.len() as f64;
    (best * 1e6 / each, actions as f64 / each)
}

fn main() {
    let geometry = Geometry::new(10, 6).expect("10+6 is a geometry");
    println!("plan of a chunk of 10+6 on {NODES} nodes (allowed 20 us)");
    for zones in [0, 40] {
        let before = ring(NODES, zones);
        let alive = |count: u32| -> BTreeMap<NodeId, NodeFacts> {
            (0..count).map(|at| (node(at), NodeFacts::standing(Standing::Alive))).collect()
        };
        let nodes = alive(NODES);
        let mut chunks = placed(&before, geometry);
        let say = |what: &str, (us, actions): (f64, f64)| {
            println!("  {zones:>2} zones: {what:<42} {us:6.1} us, {actions:.2} actions");
        };
        say("nothing to do", measure(&before, &nodes, &chunks));
        let after = ring(NODES + NODES / 10, zones);
        say("100 more nodes joined", measure(&after, &alive(NODES + NODES / 10), &chunks));
        let mut down = nodes.clone();
        (0..NODES).step_by(4).for_each(|at| {
            down.insert(node(at), NodeFacts::standing(Standing::Down));
        });
        say("a quarter of the nodes is down", measure(&before, &down, &chunks));
        for chunk in &mut chunks {
            chunk.claims.truncate(13);
            chunk.missing_for = Some(Duration::from_secs(60));
        }
        say("three shards are missing", measure(&before, &nodes, &chunks));
        let mut full = nodes.clone();
        full.values_mut().for_each(|facts| facts.room = Room::Full);
        say("three are missing and everybody is full", measure(&before, &full, &chunks[..500]));
    }
    let wide = Geometry::new(100, 155).expect("100+155 is a geometry");
    let few = ring(3, 0);
    let nodes = (0..3).map(|at| (node(at), NodeFacts::standing(Standing::Alive))).collect();
    let chunks = placed(&few, wide);
    let (us, _) = measure(&few, &nodes, &chunks[..50]);
    println!("  the widest code on three nodes: {us:.0} us");
}
