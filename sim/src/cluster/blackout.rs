//! Blackouts: power goes for many machines at one instant, and comes back.
//!
//! Owns who goes dark, when, and for how long. The one idea: what was acknowledged is on disks and nowhere
//! else; nobody is left who could know better. Half of them wait for the moment at which a put is
//! acknowledged.

use std::time::Duration;

use super::{
    atlas::{Bounds, Fault, Number, Planned},
    spread,
};
use crate::random::Xoshiro;

/// Part of the usual worlds with a blackout.
const BLACKOUTS: f64 = 0.15;

/// Of them, those that come right after an acknowledgement, and those that outlast the patience with silent
/// nodes.
const AT_ACKNOWLEDGEMENT: f64 = 0.5;
const LONG: f64 = 0.1;

/// How long one is waited for at most.
pub(super) const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(3);

/// Batches of the ledger that are gone, below.
const FORGOTTEN: usize = 4;

/// Adds blackouts to a usual world: of all machines, of half of them, or of one zone. They take nothing that
/// was acknowledged, so nothing bounds them.
pub(super) fn draw(bounds: &Bounds, zones: Number, plan: &mut Vec<Planned>, rng: &mut Xoshiro) {
    if !rng.chance(BLACKOUTS) {
        return;
    }
    for _ in 0..1 + rng.below(2) {
        let mut side: Vec<Number> = (0..bounds.hosts).collect();
        match rng.below(3) {
            0 => {}
            1 if zones > 0 => {
                let zone = spread::zone_of(Number::try_from(rng.below(64)).unwrap_or(0), zones);
                side.retain(|host| spread::zone_of(*host, zones) == zone);
            }
            _ => {
                for _ in 0..bounds.hosts / 2 {
                    side.swap_remove(rng.below(side.len()));
                }
                side.sort_unstable();
            }
        }
        let usual = 0.02 + 0.7 * rng.unit() * rng.unit();
        let times = if rng.chance(LONG) { 1.2 + rng.unit() } else { usual };
        let at = bounds.from + (bounds.until - bounds.from).mul_f64(rng.unit());
        let lasts = bounds.dead_after.mul_f64(times).min(bounds.until - at);
        let forgotten_batches = rng.below(FORGOTTEN);
        let at_acknowledgement = rng.chance(AT_ACKNOWLEDGEMENT);
        let fault = Fault::Blackout { side, forgotten_batches, at_acknowledgement };
        plan.push(Planned { at, lasts, fault });
    }
    plan.sort_by_key(|planned| planned.at);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_half_of_them_or_a_zone_go_dark_and_come_back_in_time() {
        let bounds = Bounds::of_nine();
        let mut sizes = std::collections::BTreeSet::new();
        for seed in 0..500 {
            let mut plan = Vec::new();
            draw(&bounds, 3, &mut plan, &mut Xoshiro::new(seed, "test"));
            for Planned { at, lasts, fault } in plan {
                let Fault::Blackout { side, .. } = fault else { panic!("no blackout") };
                assert!(at >= bounds.from && at + lasts <= bounds.until);
                sizes.insert(side.len());
            }
        }
        assert_eq!(sizes, [3, 5, 9].into());
    }
}
