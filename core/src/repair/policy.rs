//! When missing shards are rebuilt: the threshold, the patience and the thin line.
//!
//! Owns these three numbers for every geometry. Refuses thresholds that make no sense for a narrow
//! code. The one idea: waiting until several shards are missing makes each of them cheaper, and the
//! emergency lane bounds what the waiting can cost.
//!
//! A rebuild reads k shards whatever it makes, so with a threshold of r it moves (k + n−r)/(n−r)
//! shards for each one made: 11 for 10+6 when every loss is repaired at once, 4.33 with r = 13.
//! docs/durability.md has what that costs in nines, docs/decisions what was weighed.

use core::time::Duration;

use crate::geometry::Geometry;

/// With how many shards left a chunk is repaired, if nothing else presses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Threshold {
    /// r = k + ⌈(n−k)/2⌉, at most n−1: half of the parity may go first. 13 for 10+6, 30 for 20+20;
    /// the first loss for codes with one or two parity shards.
    #[default]
    HalfParity,
    /// r = n−1: every loss at once, for few nodes that live long.
    Eager,
}

impl Threshold {
    /// r: a chunk with this many shards or fewer is repaired.
    pub const fn shards(self, geometry: Geometry) -> usize {
        let all_but_one = geometry.total() - 1;
        let half = geometry.data() + geometry.parity().div_ceil(2);
        match self {
            Self::HalfParity if half < all_but_one => half,
            _ => all_but_one,
        }
    }
}

/// What decides between acting and waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// When a chunk is repaired for the number of its shards.
    pub threshold: Threshold,
    /// A shard that has been missing for this long is rebuilt in any case: an unlucky chunk does
    /// not stay one above its threshold for years.
    pub patience: Duration,
    /// A chunk with at most this many shards more than k within reach is thin: it is repaired at
    /// once, even around nodes that are only down. At most a third of the parity, so that in a
    /// narrow code one node's restart is no emergency.
    pub thin_margin: usize,
}

/// The policy for one geometry, in shards: the decision when to rebuild, without who and where.
///
/// The planner asks it, and so does the simulator of `copse-sim`, which has no nodes to plan for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lines {
    /// k.
    pub needed: usize,
    /// r: see [`Threshold`].
    pub threshold: usize,
    /// The most shards within reach with which a chunk is thin: see [`Policy::thin_line`].
    pub thin: usize,
    /// See [`Policy::patience`].
    pub patience: Duration,
}

impl Lines {
    /// Whether all that is missing is to be rebuilt: of the shards that exist or may come back (`hoped`)
    /// few are left, or one has been missing for long.
    pub fn is_due(&self, hoped: usize, missing_for: Option<Duration>) -> bool {
        hoped <= self.threshold || missing_for.is_some_and(|time| time >= self.patience)
    }

    /// The thin line as it is now. While many are silent together (`is_frozen`), only what has no
    /// shard to spare is rebuilt around them, unless too much is gone for good.
    pub const fn thin_now(&self, hoped: usize, is_frozen: bool) -> usize {
        if is_frozen && hoped > self.threshold { self.needed } else { self.thin }
    }
}

impl Policy {
    /// What it means for a geometry.
    pub fn lines(&self, geometry: Geometry) -> Lines {
        Lines {
            needed: geometry.data(),
            threshold: self.threshold.shards(geometry),
            thin: self.thin_line(geometry),
            patience: self.patience,
        }
    }

    /// The most shards within reach with which a chunk counts as thin: 12 for 10+6.
    pub fn thin_line(&self, geometry: Geometry) -> usize {
        geometry.data() + self.thin_margin.min(geometry.parity() / 3)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            threshold: Threshold::default(),
            patience: Duration::from_secs(24 * 3600),
            thin_margin: 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::geometry;

    #[test]
    fn thresholds_and_thin_lines_of_the_geometries_in_use() {
        let check = |code: &str, threshold: usize, thin_line: usize| {
            let code = geometry(code);
            assert_eq!(Threshold::HalfParity.shards(code), threshold, "{code}");
            assert_eq!(Threshold::Eager.shards(code), code.total() - 1, "{code}");
            assert_eq!(Policy::default().thin_line(code), thin_line, "{code}");
        };
        check("10+6", 13, 12);
        check("10+10", 15, 12);
        check("20+20", 30, 22);
        check("8+4", 10, 9);
        check("7+5", 10, 8);
        check("4+4", 6, 5);
        check("3+3", 5, 4);
        check("5+3", 7, 6);
        check("4+2", 5, 4);
        check("2+2", 3, 2);
        check("2+1", 2, 2);
        check("1+1", 1, 1);
        check("1+6", 4, 3);
        check("3+0", 2, 3);
    }

    #[test]
    fn one_node_down_is_no_emergency_with_two_parity_shards() {
        for parity in 2..40 {
            let code = Geometry::new(10, parity).expect("a geometry");
            assert!(Policy::default().thin_line(code) < code.total() - 1, "{code}");
        }
    }
}
