//! How far apart the shards of a chunk must lie, counted from the world's own zones.
//!
//! Owns the rule of how many shards one machine and one zone may hold, as it is written down for people, and
//! the worlds in which a whole zone can be lost. Asks neither the ring nor a node, whose rule this checks.

use std::collections::BTreeMap;

use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, ShardId},
    manifest::ChunkRef,
};

use super::{
    atlas::Number,
    check::{Broken, Promise},
    host::Host,
};
use crate::random::Xoshiro;

/// The zone of a machine in a world with so many: each is one of its own when there are none.
pub(super) const fn zone_of(machine: Number, zones: Number) -> Number {
    if zones == 0 { machine } else { machine % zones }
}

/// Machines of each zone.
fn sizes(machines: impl Iterator<Item = Number>, zones: Number) -> Vec<usize> {
    let mut sizes: BTreeMap<Number, usize> = BTreeMap::new();
    machines.for_each(|machine| *sizes.entry(zone_of(machine, zones)).or_default() += 1);
    sizes.into_values().collect()
}

/// Most shards of a chunk in one of these zones: seven eighths of the largest zone's share, rounded up, at
/// most n − k; more only as far as n shards find no place otherwise. Where machines are unequal the share is
/// not looked at.
fn zone_cap(sizes: &[usize], geometry: Geometry, equal: bool) -> usize {
    let (n, parity) = (geometry.total(), geometry.parity().max(1));
    let machines: usize = sizes.iter().sum();
    let largest = sizes.iter().max().copied().unwrap_or(0);
    let on_machine = n.div_ceil(machines.max(1));
    let share = (7 * n * largest).div_ceil(8 * machines.max(1));
    let least = if equal { share.clamp(1, parity) } else { parity };
    let takes = |cap: usize| sizes.iter().map(|size| cap.min(size * on_machine)).sum::<usize>();
    (least..n).find(|cap| takes(*cap) >= n).unwrap_or(n)
}

/// Whether a chunk is still there when any one zone has lost all its disks: one of k + m, and one that is
/// too small to be cut in pieces.
fn survives_a_zone(hosts: Number, zones: Number, geometry: Geometry) -> bool {
    let sizes = sizes(0..hosts, zones);
    [geometry, geometry.replicated()]
        .into_iter()
        .all(|code| zone_cap(&sizes, code, true) <= code.parity())
}

/// Some number of zones of which any one can be lost; each machine by itself always can.
pub(super) fn some_zones(hosts: Number, geometry: Geometry, rng: &mut Xoshiro) -> Number {
    let fits = |zones: &Number| survives_a_zone(hosts, *zones, geometry);
    let fitting: Vec<Number> = (2..=hosts.min(5)).filter(fits).collect();
    match fitting.len() {
        0 => hosts,
        count => fitting[rng.below(count)],
    }
}

/// Whether no machine and no zone holds more shards of a chunk than it may, when all are in their places.
/// Chunks of which a shard is elsewhere for want of room are not asked for: `but` these.
pub(super) fn is_far_apart(
    hosts: &[&Host],
    zones: Number,
    promised: &[ChunkRef],
    but: impl Fn(&ChunkId) -> bool,
) -> Result<(), Broken> {
    let staying: Vec<&&Host> = hosts.iter().filter(|host| !host.is_gone()).collect();
    let sizes = sizes(staying.iter().map(|host| host.machine), zones);
    let equal = staying.windows(2).all(|pair| pair[0].offers() == pair[1].offers());
    let mut holders: BTreeMap<ShardId, Number> = BTreeMap::new();
    for host in &staying {
        holders.extend(host.disk().sound().into_iter().map(|shard| (shard, host.machine)));
    }
    for one in promised.iter().filter(|one| !but(&one.id)) {
        let (chunk, geometry) = (one.id, one.geometry);
        let (mut machines, mut in_zones) = (BTreeMap::new(), BTreeMap::new());
        for index in geometry.indices() {
            let Some(machine) = holders.get(&ShardId { chunk, index }) else { continue };
            *machines.entry(*machine).or_insert(0) += 1;
            *in_zones.entry(zone_of(*machine, zones)).or_insert(0) += 1;
        }
        let on_machine = geometry.total().div_ceil(staying.len().max(1));
        let in_zone = zone_cap(&sizes, geometry, equal);
        let over = |what: &str, counts: &BTreeMap<Number, usize>, most: usize| {
            let worst = counts.iter().find(|(_, count)| **count > most)?;
            let (number, count) = worst;
            let how = format!(
                "{what} {number} holds {count} shards of chunk {} ({geometry}), {most} at most belong there",
                chunk.short()
            );
            Some(Broken::new(Promise::Strength, how))
        };
        let broken = over("machine", &machines, on_machine);
        if let Some(broken) = broken.or_else(|| over("zone", &in_zones, in_zone)) {
            return Err(broken);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cap(hosts: Number, zones: Number, code: &str) -> usize {
        zone_cap(&sizes(0..hosts, zones), code.parse().expect("a geometry"), true)
    }

    #[test]
    fn a_zone_may_hold_seven_eighths_of_its_share_and_more_only_where_there_is_no_other_place() {
        // 16 · ⅞ / 4 = 3.5; two zones must take eight each, whatever may be lost.
        assert_eq!(cap(16, 4, "10+6"), 4);
        assert_eq!(cap(16, 2, "10+6"), 8);
        // Each machine a zone of its own: one of each.
        assert_eq!(cap(8, 0, "4+4"), 1);
        // Two of three machines in one zone: 3 · ⅞ · ⅔ = 1.75, at most 1, and then there are two places.
        assert_eq!(cap(3, 2, "2+1"), 2);
    }

    #[test]
    fn zones_are_drawn_of_which_any_one_may_be_lost() {
        for hosts in 3..=18 {
            let code = Geometry::default_for(hosts.into()).expect("a geometry");
            for seed in 0..20 {
                let zones = some_zones(hosts, code, &mut Xoshiro::new(seed, "test"));
                assert!(zones >= 2 && survives_a_zone(hosts, zones, code), "{hosts} in {zones}");
            }
        }
    }
}
