//! Links of unlike quality: that of each pair of machines, in each direction, around that of the world.
//!
//! Owns what each link is by itself. The one idea: it follows from the seed and the two ends, whenever it is
//! first asked for; and what is worse for all for a while is as bad on the best link.

use std::collections::BTreeMap;

use super::net::{Machine, Quality};
use crate::random::Xoshiro;

/// The best and the worst link have so much less or more delay, jitter and rate than is usual, and up to twice
/// the losses.
const FACTOR_MAX: f64 = 3.0;

/// The links of a world.
pub(super) struct Uneven {
    seed: u64,
    usual: Quality,
    links: BTreeMap<(Machine, Machine), Quality>,
}

impl Uneven {
    pub(super) const fn new(seed: u64, usual: Quality) -> Self {
        Self { seed, usual, links: BTreeMap::new() }
    }

    /// How a link is when this is what is usual now.
    pub(super) fn quality(&mut self, from: Machine, to: Machine, now: Quality) -> Quality {
        let (seed, usual) = (self.seed, self.usual);
        let own = self.links.entry((from, to)).or_insert_with(|| own(seed, usual, from, to));
        Quality {
            delay: worse(own.delay, usual.delay, now.delay),
            jitter: worse(own.jitter, usual.jitter, now.jitter),
            loss: worse(own.loss, usual.loss, now.loss),
            reorders: now.reorders,
            rate: own.rate,
        }
    }
}

/// What a link has, or what all have now if that is more than usual and more than its own.
fn worse<T: PartialOrd>(own: T, usual: T, now: T) -> T {
    if now > usual && now > own { now } else { own }
}

fn own(seed: u64, usual: Quality, from: Machine, to: Machine) -> Quality {
    let mut rng = Xoshiro::new(seed, &format!("cluster link {from} {to}"));
    let mut factor = || FACTOR_MAX.powf(2.0 * rng.unit() - 1.0);
    let (delay, jitter, rate) = (factor(), factor(), factor());
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // bounded by three times a u64 that is small
    let rate = (usual.rate as f64 * rate) as u64;
    Quality {
        delay: usual.delay.mul_f64(delay),
        jitter: usual.jitter.mul_f64(jitter),
        loss: usual.loss * 2.0 * rng.unit(),
        reorders: usual.reorders,
        rate,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn links_differ_by_pair_and_direction_and_follow_from_the_seed() {
        let usual = Quality {
            delay: Duration::from_millis(9),
            jitter: Duration::from_millis(3),
            loss: 0.01,
            reorders: false,
            rate: 9_000_000,
        };
        let (mut links, mut again) = (Uneven::new(1, usual), Uneven::new(1, usual));
        let mut delays = std::collections::BTreeSet::new();
        for from in 0..9 {
            for to in 0..9 {
                let quality = links.quality(from, to, usual);
                assert!((3..=27).contains(&quality.delay.as_millis()), "{quality:?}");
                assert!((3_000_000..=27_000_000).contains(&quality.rate), "{quality:?}");
                assert!((0.0..=0.02).contains(&quality.loss), "{quality:?}");
                delays.insert(quality.delay);
                // In another order it is the same.
                assert_eq!(
                    again.quality(8 - from, 8 - to, usual),
                    links.quality(8 - from, 8 - to, usual)
                );
            }
        }
        assert_eq!(delays.len(), 81);
        let slow = Quality { delay: Duration::from_millis(300), loss: 0.15, ..usual };
        let own = links.quality(1, 2, usual);
        let now = Quality { delay: slow.delay, loss: slow.loss, ..own };
        assert_eq!(links.quality(1, 2, slow), now);
        assert_eq!(links.quality(1, 2, usual), own);
    }
}
