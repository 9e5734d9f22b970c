//! How many machines a world has for its code, and how many of them may lose what they hold.
//!
//! Owns the draw of worlds as people have them: with the code that the product advises for so many nodes,
//! where there is none to spare, and with fewer nodes than shards. The one idea: the tighter a network, the
//! fewer machines may lose shards for good, for one may come to hold several of a chunk.

use copse_core::geometry::Geometry;

use super::atlas::Number;
use crate::random::Xoshiro;

/// Part of the worlds with the product's own code for so many nodes; and of those with fewer nodes than
/// shards.
const DEFAULTS: f64 = 0.5;
const FEWER: f64 = 0.1;

/// Sizes of networks with the product's code: mostly small, since a large one takes as long as ten small
/// ones; the large ones are those from which the code is 10+6.
const SMALLEST: Number = 3;
const LARGE_FROM: Number = 16;
const LARGEST: Number = 18;
const LARGE: f64 = 0.08;

/// Codes for networks with fewer nodes than shards, and how small these are.
const CODES: [&str; 6] = ["2+2", "3+3", "4+2", "4+4", "5+3", "6+4"];
const FEWER_MAX: Number = 8;

/// Another size and code for a part of the worlds, or those that were drawn before.
pub(super) fn draw(hosts: Number, geometry: Geometry, rng: &mut Xoshiro) -> (Number, Geometry) {
    let number = |from: Number, until: Number, rng: &mut Xoshiro| {
        from + Number::try_from(rng.below(usize::from(until - from))).unwrap_or(0)
    };
    let point = rng.unit();
    if point < DEFAULTS {
        let hosts = if rng.chance(LARGE) {
            number(LARGE_FROM, LARGEST + 1, rng)
        } else {
            number(SMALLEST, LARGE_FROM, rng)
        };
        (hosts, Geometry::default_for(hosts.into()).unwrap_or(geometry))
    } else if point < DEFAULTS + FEWER {
        let hosts = number(SMALLEST, FEWER_MAX + 1, rng);
        let fits = |code: &Geometry| {
            let nodes = usize::from(hosts);
            code.total() > nodes && code.total().div_ceil(nodes) <= code.parity()
        };
        let fitting: Vec<Geometry> =
            CODES.iter().filter_map(|code| code.parse().ok()).filter(fits).collect();
        (hosts, fitting[rng.below(fitting.len())])
    } else {
        (hosts, geometry)
    }
}

/// Machines that may lose shards for good: as many as a chunk may lose when it is acknowledged, w − k, when
/// two nodes were given up and the others hold as many shards of it each as they then must.
pub(super) fn losses_max(hosts: Number, geometry: Geometry) -> usize {
    let left = usize::from(hosts).saturating_sub(2).max(1);
    (geometry.write_quorum() - geometry.data()) / geometry.total().div_ceil(left)
}

/// Whether the loss of one of so many nodes would lose a chunk, so that a put of it is refused.
pub(super) fn is_fragile(nodes: usize, geometry: Geometry) -> bool {
    geometry.total().div_ceil(nodes.max(1)) > geometry.parity()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_one_machine_of_a_drawn_world_can_be_spared() {
        let usual: Geometry = "3+2".parse().expect("a geometry");
        let (mut defaults, mut fewer, mut large, mut sizes) = (0, 0, 0, 0u32);
        for seed in 0..2000 {
            let (hosts, code) = draw(7, usual, &mut Xoshiro::new(seed, "test"));
            assert!((SMALLEST..=LARGEST).contains(&hosts));
            assert!(!is_fragile(hosts.into(), code), "{hosts} nodes, {code}");
            let losses = losses_max(hosts, code);
            let most = code.total().div_ceil(usize::from(hosts) - 1);
            assert!(losses * most <= code.write_quorum() - code.data(), "{hosts} nodes, {code}");
            defaults += u32::from(Geometry::default_for(hosts.into()) == Some(code));
            fewer += u32::from(code.total() > usize::from(hosts));
            large += u32::from(hosts >= LARGE_FROM);
            sizes |= 1 << hosts;
        }
        assert!(defaults > 800 && fewer > 150 && (50..120).contains(&large));
        assert_eq!(sizes.count_ones(), u32::from(LARGEST - SMALLEST) + 1, "every size");
    }

    #[test]
    fn as_many_as_before_may_be_lost_where_two_nodes_can_be_spared() {
        for (hosts, code, losses) in [
            (8, "3+3", 2),
            (12, "6+4", 3),
            (3, "2+1", 0),
            (4, "2+2", 1),
            (8, "4+4", 1),
            (16, "10+6", 2),
        ] {
            let code: Geometry = code.parse().expect("a geometry");
            assert_eq!(losses_max(hosts, code), losses, "{hosts} nodes, {code}");
        }
    }
}
