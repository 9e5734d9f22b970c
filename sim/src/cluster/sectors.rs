//! Bad sectors: single shards that a living disk cannot read.
//!
//! Owns which, and for how long. The one idea: the rest of the disk works, so the node has to tell a
//! shard that is lost from a disk that is (`store::doubts`), and in time. A machine with them counts as one
//! that loses shards.

use super::{
    atlas::{self, Bounds, Fault, Number, Planned},
    store::Store,
};
use crate::random::Xoshiro;

/// Part of the usual worlds with bad sectors.
const SECTORS: f64 = 0.25;

/// Of them, those whose sectors stay bad until they are written anew.
const STAY: f64 = 0.6;

/// One shard in at least so many: on a disk that gives nothing, it is the disk.
const ONE_IN_MIN: usize = 3;

/// Adds bad sectors to a usual world.
pub(super) fn draw(bounds: &Bounds, plan: &mut Vec<Planned>, rng: &mut Xoshiro) {
    let mut losers = atlas::losers_of(plan);
    if !rng.chance(SECTORS) {
        return;
    }
    for _ in 0..1 + rng.below(3) {
        let host = Number::try_from(rng.below(bounds.hosts.into())).unwrap_or(0);
        let Some(host) = atlas::loser(bounds, &mut losers, host) else { continue };
        let at = bounds.from + (bounds.until - bounds.from).mul_f64(rng.unit());
        let lasts = (bounds.until - at).mul_f64(rng.unit());
        let (one_in, stays) = (ONE_IN_MIN + rng.below(5), rng.chance(STAY));
        plan.push(Planned { at, lasts, fault: Fault::BadSectors { host, one_in, stays } });
    }
    plan.sort_by_key(|planned| planned.at);
}

/// Some of what is stored cannot be read any more, never all of it; how many shards.
pub(super) async fn go_bad(disk: &Store, one_in: usize, rng: &mut Xoshiro) -> u64 {
    // A disk that cannot be read at all now has no single bad sectors now.
    let held = disk.list(None, usize::MAX).await.unwrap_or_default();
    let mut bad = 0;
    for shard in held.into_iter().skip(1) {
        if rng.below(one_in) == 0 {
            bad += u64::from(disk.break_sectors(shard));
        }
    }
    bad
}
