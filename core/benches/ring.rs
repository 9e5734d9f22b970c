//! How long it takes to build a ring and to look a chunk's holders up.
//!
//! 10,000 nodes with 64 tokens each. `cargo bench -p copse-core --bench ring` prints both figures
//! next to what they are allowed to be; the best of several runs, since the machine is shared.

#![allow(clippy::print_stdout)] // its only purpose

use std::{hint::black_box, time::Instant};

use copse_core::{
    geometry::Geometry,
    ids::NodeId,
    ring::{Ring, RingMember},
};

const NODES: u32 = 10_000;
const RUNS: usize = 9;

fn members(zones: u32) -> Vec<RingMember> {
    (0..NODES)
        .map(|number| RingMember {
            id: NodeId::new(*blake3::hash(&number.to_le_bytes()).as_bytes()),
            capacity_bytes: 1 << 40,
            zone: if zones == 0 { String::new() } else { format!("zone {}", number % zones) },
        })
        .collect()
}

/// The shortest of several runs, in seconds, and the last result.
fn best<T>(mut run: impl FnMut() -> T) -> (f64, T) {
    let mut time = || {
        let start = Instant::now();
        let result = run();
        (start.elapsed().as_secs_f64(), result)
    };
    let first = time();
    (1..RUNS).fold(first, |(best, _), _| {
        let (seconds, result) = time();
        (best.min(seconds), result)
    })
}

fn main() {
    let geometry = Geometry::new(10, 6).expect("10+6 is a geometry");
    println!("ring of {NODES} nodes with 64 tokens each");
    for zones in [0, 40] {
        let members = members(zones);
        let (seconds, ring) = best(|| Ring::build(black_box(members.clone())));
        println!("  {zones:>2} zones: build {:7.1} ms   (allowed 100 ms)", seconds * 1e3);

        // Arcs in an order that the caches cannot foresee.
        let arcs: Vec<u16> = (0..=u16::MAX).map(|number| number.wrapping_mul(40_503)).collect();
        let (seconds, _) = best(|| {
            for &arc in &arcs {
                black_box(ring.placement(arc, geometry));
            }
        });
        let each = seconds / arcs.len() as f64;
        println!("  {zones:>2} zones: place 10+6 {:5.0} ns   (allowed 1000 ns)", each * 1e9);

        let mut load = vec![0u32; members.len()];
        for &arc in &arcs {
            for id in ring.placement(arc, geometry) {
                let at = ring.members().binary_search_by_key(&id, |member| member.id);
                load[at.expect("a member")] += 1;
            }
        }
        let mean = f64::from(load.iter().sum::<u32>()) / f64::from(NODES);
        let square = load.iter().map(|&held| (f64::from(held) - mean).powi(2)).sum::<f64>();
        let deviation = (square / f64::from(NODES)).sqrt() / mean;
        println!(
            "  {zones:>2} zones: load deviates by {:.1} % from node to node",
            deviation * 100.0
        );

        let (seconds, survival) = best(|| ring.survives(geometry));
        println!(
            "  {zones:>2} zones: survives any {} nodes, any {} zones; {:.1} ms to find out",
            survival.nodes,
            survival.zones,
            seconds * 1e3
        );
    }
}
