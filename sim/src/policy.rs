//! When a stripe is repaired, how urgent that is, and when nobody is declared dead.
//!
//! Owns the threshold logic of the simulation: facts in, verdict out. It stands here only until the
//! core has its repair planner, which the simulator will then call instead. Moves no shard.

use crate::closed::chain::Scheme;

/// What is believed of a stripe; the truth may be worse.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Shards on nodes that are not declared dead.
    pub counted: usize,
    /// A repair is waiting or under way.
    pub underway: bool,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// Above the threshold.
    Enough,
    /// Somebody is at it.
    Underway,
    /// Repair; stripes with less margin go first.
    Repair {
        /// Shards that may still be lost: counted − k.
        margin: usize,
    },
}

/// Whether to repair a stripe.
pub fn judge(scheme: Scheme, facts: Facts) -> Verdict {
    if facts.counted > scheme.threshold() {
        Verdict::Enough
    } else if facts.underway {
        Verdict::Underway
    } else {
        Verdict::Repair { margin: facts.counted.saturating_sub(scheme.data()) }
    }
}

/// Whether so few shards are within reach that a stripe is repaired even while declarations of
/// death are frozen: k+2.
pub fn is_emergency(scheme: Scheme, reachable: usize) -> bool {
    reachable <= scheme.data() + 2
}

/// Who is down and not yet declared dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Down {
    /// In the whole network.
    pub nodes: usize,
    /// Of how many.
    pub of_nodes: usize,
    /// In the node's zone.
    pub in_zone: usize,
    /// Of how many; 0 when it has no zone.
    pub of_zone: usize,
}

/// Whether nobody is to be declared dead now: too many went down together, or all of a zone. One
/// node alone is never a reason.
pub fn is_frozen(down: Down, share: f64) -> bool {
    let crowd = down.nodes > 1 && down.nodes as f64 > share * down.of_nodes as f64;
    let zone = down.of_zone > 1 && down.in_zone >= down.of_zone;
    crowd || zone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repair_begins_at_the_threshold_and_is_asked_for_once() {
        let scheme = Scheme::new(10, 16, 13).expect("a scheme");
        let verdict = |counted, underway| judge(scheme, Facts { counted, underway });
        assert_eq!(verdict(14, false), Verdict::Enough);
        assert_eq!(verdict(13, false), Verdict::Repair { margin: 3 });
        assert_eq!(verdict(9, false), Verdict::Repair { margin: 0 });
        assert_eq!(verdict(13, true), Verdict::Underway);
    }

    #[test]
    fn deaths_are_frozen_when_many_go_down_or_a_whole_zone() {
        let down = |nodes, of_nodes, in_zone, of_zone| {
            is_frozen(Down { nodes, of_nodes, in_zone, of_zone }, 0.15)
        };
        assert!(!down(15, 100, 0, 0) && down(16, 100, 0, 0));
        assert!(!down(1, 4, 1, 1) && down(2, 4, 0, 0));
        assert!(down(5, 100, 5, 5) && !down(5, 100, 4, 5));
    }
}
