//! Disks of unequal size, of which some fill up while the world runs.
//!
//! Owns who has how much room, and what a full disk excuses when all is calm: a shard may be away from
//! its place, for want of room there and of nothing else, and is somewhere all the same. The one idea: as
//! many machines as a chunk has shards never fill up, so there is room for everything at full strength.

use std::collections::{BTreeMap, BTreeSet};

use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, NodeId},
    ring::Ring,
};
use copse_node::store::Writes;

use super::{
    atlas::{Bounds, Fault, Number, Planned},
    host::Host,
};
use crate::random::Xoshiro;

/// Part of the usual worlds with such disks.
const UNEQUAL: f64 = 0.35;

/// Room of a small disk, at least and at most, in KiB: from a fifth of what a node comes to hold in a
/// world to more than it ever does.
const ROOM_KIB: (f64, f64) = (40.0, 1000.0);

/// What machines offer, in percent of the largest.
const OFFERS: [u64; 4] = [25, 50, 100, 100];

/// Adds to a usual world: machines that offer less than others, and of those that stay some whose disks
/// fill up.
pub(super) fn draw(
    bounds: &Bounds,
    joiners: Number,
    geometry: Geometry,
    plan: &mut Vec<Planned>,
    rng: &mut Xoshiro,
) {
    if !rng.chance(UNEQUAL) {
        return;
    }
    let leaves: BTreeSet<Number> = plan
        .iter()
        .filter_map(|planned| match planned.fault {
            Fault::Leave { host } => Some(host),
            _ => None,
        })
        .collect();
    let small_max =
        usize::from(bounds.hosts).saturating_sub(geometry.total()).saturating_sub(leaves.len());
    let mut staying: Vec<Number> =
        (0..bounds.hosts).filter(|host| !leaves.contains(host)).collect();
    let mut small = BTreeSet::new();
    if small_max > 0 {
        for _ in 0..1 + rng.below(small_max) {
            small.insert(staying.swap_remove(rng.below(staying.len())));
        }
    }
    // Of those that come, everybody can do without.
    small.extend((bounds.hosts..bounds.hosts + joiners).filter(|_| rng.chance(0.3)));
    let (least, most) = ROOM_KIB;
    for host in 0..bounds.hosts + joiners {
        let offers_percent = OFFERS[rng.below(OFFERS.len())];
        #[allow(clippy::cast_possible_truncation)] // bounded by the constants
        let room = (least * (most / least).powf(rng.unit())) as u64;
        let room_kib = small.contains(&host).then_some(room);
        if offers_percent == 100 && room_kib.is_none() {
            continue;
        }
        let (at, lasts) = (bounds.from, bounds.until - bounds.from);
        plan.push(Planned {
            at,
            lasts,
            fault: Fault::SmallDisk { host, offers_percent, room_kib },
        });
    }
    plan.sort_by_key(|planned| planned.at);
}

/// The nodes whose disks take no more.
pub(super) async fn full(hosts: &[&Host]) -> BTreeSet<NodeId> {
    let mut full = BTreeSet::new();
    for host in hosts {
        if matches!(host.disk().stats().await.writes, Writes::Full(_)) {
            full.insert(host.id);
        }
    }
    full
}

/// Chunks of which a shard may be away from its place for want of room there: of their places, one that
/// is empty is full.
pub(super) async fn crowded_out(ring: &Ring, hosts: &[&Host]) -> u64 {
    let full = full(hosts).await;
    if full.is_empty() {
        return 0;
    }
    let mut chunks: BTreeMap<ChunkId, (Geometry, Vec<NodeId>)> = BTreeMap::new();
    for host in hosts {
        for (id, geometry) in host.disk().live() {
            chunks.entry(id.chunk).or_insert_with(|| (geometry, Vec::new())).1.push(host.id);
        }
    }
    let mut away = 0;
    for (chunk, (geometry, holders)) in chunks {
        let mut places = ring.placement(Ring::arc(&chunk), geometry);
        for holder in &holders {
            if let Some(place) = places.iter().position(|place| place == holder) {
                places.swap_remove(place);
            }
        }
        away += u64::from(places.iter().any(|place| full.contains(place)));
    }
    away
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{atlas, killat, sectors},
        *,
    };

    #[test]
    fn there_is_always_room_for_every_shard_of_a_chunk_and_nothing_more_is_lost() {
        let geometry: Geometry = "3+2".parse().expect("a geometry");
        let bounds = Bounds {
            hosts: 8,
            losses_max: 2,
            from: Duration::from_secs(20),
            until: Duration::from_secs(300),
            dead_after: Duration::from_secs(60),
        };
        let (mut small, mut deaths, mut bad) = (0, 0, 0);
        for seed in 0..500 {
            let rng = &mut Xoshiro::new(seed, "test");
            let mut plan = atlas::draw(&bounds, rng);
            plan.push(Planned {
                at: bounds.from,
                lasts: Duration::ZERO,
                fault: Fault::Leave { host: 7 },
            });
            plan.sort_by_key(|planned| planned.at);
            killat::draw(&bounds, &mut plan, rng);
            sectors::draw(&bounds, &mut plan, rng);
            draw(&bounds, 2, geometry, &mut plan, rng);
            assert!(plan.is_sorted_by_key(|planned| planned.at));
            assert!(atlas::losers_of(&plan).len() <= bounds.losses_max);
            let mut fill_up = BTreeSet::new();
            for Planned { at, lasts, fault } in &plan {
                assert!(*at >= bounds.from && *at + *lasts <= bounds.until, "{fault}");
                match fault {
                    Fault::SmallDisk { host, room_kib: Some(_), .. } if *host < bounds.hosts => {
                        assert!(fill_up.insert(*host));
                    }
                    Fault::KillAt { .. } => deaths += 1,
                    Fault::BadSectors { .. } => bad += 1,
                    _ => {}
                }
            }
            // One leaves.
            assert!(fill_up.len() + geometry.total() < 8 && !fill_up.contains(&7), "{fill_up:?}");
            small += fill_up.len();
        }
        assert!(small > 200 && deaths > 500 && bad > 100, "{small} {deaths} {bad}");
    }
}
