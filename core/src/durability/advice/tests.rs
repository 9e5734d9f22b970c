//! What an advice must be in networks of all kinds, and some that were worked out by hand.

use proptest::prelude::*;

use super::*;

fn question(nodes: usize) -> Question {
    Question {
        nodes,
        zones: 0,
        life: 18.0 * HOURS_PER_MONTH,
        online: 0.95,
        wish: 9.0,
        stored: 1e12,
        detection: 4.0,
        patience: 24.0,
        threshold: Threshold::HalfParity,
        speed: Speed::Hours(24.0),
        expansion_max: 3.0,
    }
}

fn geometry(text: &str) -> Geometry {
    text.parse().expect("a geometry")
}

#[test]
fn the_default_is_advised_where_it_is_enough() {
    let long = Question { life: 10.0 * HOURS_PER_YEAR, online: 0.999, ..question(16) };
    let advice = long.advise();
    assert_eq!(advice.best.expect("an advice").geometry, geometry("10+6"));
    assert!(advice.lacks.is_empty() && advice.default.expect("one").1.is_empty());
}

#[test]
fn one_node_is_no_network_and_says_what_would_be() {
    let advice = question(1).advise();
    assert_eq!((advice.best, advice.default), (None, None));
    assert!(advice.remedies.nodes > Some(2), "{:?}", advice.remedies);
    assert_eq!(question(0).advise().best, None);
}

/// Without patience and with a repair time these are the plain chains.
#[test]
fn the_figures_are_those_of_the_closed_forms() {
    let asked = Question { patience: 1e12, ..question(100) };
    let figures = asked.figures(geometry("10+6")).expect("nodes");
    let scheme = Scheme::new(10, 16, 13).expect("a scheme");
    let pace = Pace { life: asked.life, repair: 28.0 };
    for (law, got) in RepairLaw::BOTH.into_iter().zip([figures.exponential, figures.fixed]) {
        let expected = chain::nines(scheme, pace, law, HOURS_PER_YEAR);
        assert!((got - expected).abs() < 1e-9, "{law}: {got} {expected}");
    }
    let expected = chain::repair_traffic_with_time(scheme, pace) * HOURS_PER_MONTH;
    assert!((figures.traffic / expected - 1.0).abs() < 1e-9);
    assert!((figures.node_traffic / (expected * 1e12 / 100.0) - 1.0).abs() < 1e-9);
    assert_eq!((figures.nodes_borne, figures.on_one_node, figures.threshold), (6, 1, 13));
}

/// 8+4 on 12 nodes: 125 GB a node, nine shards sent for each made, eleven lines of 0.5 MB/s.
#[test]
fn lines_decide_how_long_a_repair_takes_and_whether_it_keeps_up() {
    let rate = 0.5e6 * 3600.0;
    let asked = Question { speed: Speed::BytesPerHour(rate), ..question(12) };
    let figures = asked.figures(geometry("8+4")).expect("nodes");
    assert!((figures.rebuild - 125e9 * 9.0 / (11.0 * rate)).abs() < 1e-6, "{}", figures.rebuild);
    let load = figures.line_load.expect("lines");
    assert!((load - figures.node_traffic / (rate * HOURS_PER_MONTH)).abs() < 1e-12);
    let slow = Question { speed: Speed::BytesPerHour(rate / 100.0), ..asked };
    assert!(slow.lacks(&slow.figures(geometry("8+4")).expect("nodes")).contains(&Lack::Line));
}

/// From five nodes on a larger network's default is as safe as a smaller one's, under either law.
/// Below, twice the disk does not reach so far.
#[test]
fn the_defaults_get_safer_with_the_network() {
    for life in [1.0, 3.0, 5.0] {
        let mut last = [0.0f64; 2];
        for nodes in 5..100 {
            let asked = Question { life: life * HOURS_PER_YEAR, ..question(nodes) };
            let default = Geometry::default_for(nodes).expect("two nodes are enough");
            let figures = asked.figures(default).expect("nodes");
            let now = [figures.exponential, figures.fixed];
            assert!(now[0] >= last[0] && now[1] >= last[1], "{nodes}: {default} {now:?} {last:?}");
            last = now;
        }
    }
}

/// With fewer nodes than shards, shards are lost by twos.
#[test]
fn several_shards_on_a_node_are_lost_together() {
    let asked = Question { threshold: Threshold::Eager, ..question(8) };
    let doubled = asked.figures(geometry("10+6")).expect("nodes");
    assert_eq!((doubled.on_one_node, doubled.nodes_borne), (2, 3));
    let single = asked.figures(geometry("5+3")).expect("nodes");
    assert!((doubled.exponential - single.exponential).abs() < 1e-9, "{doubled:?}");
    let fragile = question(3).figures(geometry("4+1")).expect("nodes");
    assert_eq!(fragile.nodes_borne, 0);
    assert!(fragile.exponential < 0.5);
}

#[test]
fn a_zone_is_borne_or_the_lack_is_named() {
    let two = Question { zones: 2, ..question(12) };
    let default = two.figures(geometry("8+4")).expect("nodes");
    assert_eq!((default.in_one_zone, default.zones_borne), (Some(6), Some(0)));
    assert!(two.lacks(&default).contains(&Lack::OneZone));
    let half = two.figures(geometry("5+5")).expect("nodes");
    assert_eq!(half.zones_borne, Some(1));
    let six = Question { zones: 6, ..question(12) };
    let spread = six.figures(geometry("8+4")).expect("nodes");
    assert_eq!((spread.in_one_zone, spread.zones_borne), (Some(2), Some(2)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What is advised as enough is enough; what is not says why, and its remedies are remedies.
    #[test]
    fn an_advice_keeps_its_word(
        nodes in 2usize..40, zones in 0usize..8, months in 1f64..120.0, online in 0.5f64..1.0,
        wish in 1f64..16.0, hours in 1f64..500.0,
    ) {
        let asked = Question {
            zones,
            life: months * HOURS_PER_MONTH,
            online,
            wish,
            speed: Speed::Hours(hours),
            ..question(nodes)
        };
        let advice = asked.advise();
        let best = advice.best.expect("at least two nodes");
        prop_assert_eq!(&asked.lacks(&best), &advice.lacks);
        prop_assert!(best.geometry.total() <= nodes);
        // With one loss to bear, the laws differ in terms of second order only.
        prop_assert!(best.exponential <= best.fixed + 0.2);
        prop_assert!(best.geometry.write_quorum() > best.geometry.data());
        if advice.lacks.is_empty() {
            prop_assert!(best.exponential >= wish && best.nodes_borne >= 1);
            prop_assert!(best.expansion() <= 3.0 + 1e-9);
            prop_assert_eq!(advice.remedies, Remedies::default());
        } else {
            let remedies = advice.remedies;
            let good = |question: Question| question.advise().lacks.is_empty();
            if let Some(nodes) = remedies.nodes {
                let changed = Question { nodes, ..asked };
                prop_assert!(good(changed));
            }
            if let Some(life) = remedies.life {
                let changed = Question { life, ..asked };
                prop_assert!(good(changed));
            }
            if let Some(hours) = remedies.rebuild {
                let changed = Question { speed: Speed::Hours(hours), ..asked };
                prop_assert!(good(changed));
            }
            if let Some(expansion_max) = remedies.expansion {
                let changed = Question { expansion_max, ..asked };
                prop_assert!(good(changed));
            }
        }
    }

    /// The cap of equal zones is the ring's own.
    #[test]
    fn equal_zones_have_the_caps_of_the_ring(nodes in 2usize..60, zones in 1usize..12, at in 0usize..4) {
        let geometry = geometry(["10+6", "4+2", "8+4", "2+2"][at]);
        prop_assume!(zones <= nodes);
        let ring = crate::ring::Ring::build(
            (0..nodes)
                .map(|number| crate::ring::RingMember {
                    id: crate::ids::NodeId::new(*blake3::hash(&number.to_le_bytes()).as_bytes()),
                    capacity_bytes: 1 << 40,
                    zone: format!("z{}", number % zones),
                })
                .collect(),
        );
        let expected = ring.caps(geometry).zone.unwrap_or(geometry.total());
        let got = equal_zone_cap(geometry, nodes, zones);
        // Where no zone has so many nodes, the ring has no cap.
        let possible = nodes.div_ceil(zones) * geometry.total().div_ceil(nodes);
        prop_assert_eq!(got.min(possible), expected.min(possible));
    }
}
