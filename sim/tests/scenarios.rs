//! What the event simulation must do with absences, cuts, liars, storms and scarce bandwidth.

use copse_sim::{
    closed::{
        chain::{Pace, Scheme},
        patient,
    },
    event::{self, Calamity, HOURS_PER_YEAR, Outages, Outcome, Scenario, Storm, Unit, Victims},
    law::RepairLaw,
    random::Lifetime,
};

fn base(months: f64) -> Scenario {
    let scheme = Scheme::new(10, 16, 13).expect("a scheme");
    let life = Lifetime::new(months * HOURS_PER_YEAR / 12.0, 1.0).expect("a lifetime");
    let plain = Scenario::plain(200, scheme, life, 12.0, RepairLaw::Exponential);
    Scenario { chunks: 500, dead_after_hours: 12.0, freeze_hours: 72.0, ..plain }
}

fn run(scenario: &Scenario) -> Outcome {
    event::run(scenario).expect("a possible scenario")
}

/// Nobody dies; once a month a fifth of the nodes is cut off for two days.
fn cuts(freeze_share: Option<f64>) -> Scenario {
    let scheme = Scheme::new(10, 40, 30).expect("a scheme");
    let cut = Calamity { per_year: 12.0, victims: Victims::Nodes(50), hours: 48.0, permanent: 0.0 };
    Scenario { scheme, calamities: vec![cut], freeze_share, ..base(1e6) }
}

#[test]
fn a_cut_network_repairs_nothing_and_loses_nothing() {
    let out = run(&cuts(Some(0.15)));
    assert!(out.frozen > 0);
    assert_eq!((out.repairs, out.lost_chunks, out.emergencies), (0, 0, 0));
    // The guard does it: without it there is a storm.
    assert!(run(&cuts(None)).repairs > 300);
}

/// The core's closed form for what its planner does: the threshold, or patience.
#[test]
fn simulated_patience_agrees_with_its_closed_form() {
    for days in [0.0, 2.0, 7.0] {
        let plain = Scenario { dead_after_hours: 0.0, repair_hours: 24.0, ..base(1.0) };
        let scenario = Scenario {
            law: RepairLaw::Fixed,
            unit: Unit::Chunk,
            nodes: 1000,
            chunks: 4000,
            years: 3.0,
            patience_hours: Some(24.0 * days),
            ..plain
        };
        let out = run(&scenario);
        let pace = Pace { life: scenario.life.mean(), repair: 24.0 };
        let scheme = scenario.scheme;
        let ln_mttdl = patient::ln_mttdl(scheme, pace, 24.0 * days, RepairLaw::Fixed);
        let expected = ln_mttdl.exp() / HOURS_PER_YEAR;
        let years = out.mttdl_years().expect("losses");
        // Losses come in company: twice the error of independent ones, and three of these.
        let error = 6.0 * out.relative_error() + 0.05;
        assert!((years / expected - 1.0).abs() < error, "{days} days: {years} for {expected}");
        let moved = out.repair_ratio(scenario.years);
        let formula = patient::repair_traffic(scheme, pace, 24.0 * days) * HOURS_PER_YEAR;
        assert!((moved / formula - 1.0).abs() < 0.05, "{days} days: {moved} for {formula}");
    }
}

/// Five of sixteen shards out of reach for an hour: just enough is made at once, although nobody is
/// declared dead; without a thin lane nothing is.
#[test]
fn thin_stripes_are_repaired_around_nodes_that_are_down() {
    let cut = Calamity { per_year: 12.0, victims: Victims::Nodes(60), hours: 3.0, permanent: 0.0 };
    let scenario = Scenario { calamities: vec![cut], ..base(1e6) };
    let blind = run(&scenario);
    assert_eq!((blind.repairs, blind.emergencies), (0, 0));
    let sees = Scenario { down_after_hours: Some(0.1), repair_hours: 0.1, ..scenario };
    let out = run(&sees);
    assert!(out.emergencies > 0 && out.repairs > 0, "{out:?}");
    assert_eq!((out.lost_chunks, out.false_deaths), (0, 0));
    // While many are silent only stripes without a shard to spare are touched.
    let frozen = run(&Scenario { freeze_share: Some(0.15), ..sees });
    assert!(frozen.emergencies < out.emergencies / 5, "{} {}", frozen.emergencies, out.emergencies);
}

#[test]
fn short_absences_move_nothing() {
    // Half an hour against twelve: none is ever declared dead.
    let outages = Some(Outages { per_year: 100.0, median_hours: 0.5, sigma: 0.0 });
    let out = run(&Scenario { outages, ..base(1e6) });
    assert_eq!((out.false_deaths, out.repairs, out.repair_bytes), (0, 0, 0.0));
}

#[test]
fn shards_of_returning_nodes_count_again() {
    // Away for a day, long enough to be declared dead, so rarely that no stripe misses three.
    let outages = Some(Outages { per_year: 0.5, median_hours: 24.0, sigma: 0.0 });
    let out = run(&Scenario { outages, ..base(1e6) });
    assert!(out.false_deaths > 50, "{}", out.false_deaths);
    assert_eq!((out.repairs, out.lost_chunks), (0, 0));
}

#[test]
fn liars_and_bursts_cost_nines() {
    let burst =
        Calamity { per_year: 12.0, victims: Victims::Nodes(20), hours: 1.0, permanent: 1.0 };
    let years = |scenario| Scenario { years: 4.0, ..scenario };
    let honest = run(&years(base(3.0))).lost_chunks;
    let liars = run(&years(Scenario { malicious: 0.1, audit_hours: 720.0, ..base(3.0) }));
    let bursts = run(&years(Scenario { calamities: vec![burst], ..base(3.0) }));
    assert!(liars.lost_chunks > 3 * honest, "{honest} honest, {} lying", liars.lost_chunks);
    assert!(bursts.lost_chunks > 3 * honest, "{honest} alone, {} in bursts", bursts.lost_chunks);
}

#[test]
fn repairs_keep_to_their_bandwidth_and_the_queue_costs_nines() {
    let scenario = base(2.0);
    let free = run(&scenario);
    // Half of what is needed.
    let need = 2.0 * free.repair_bytes / scenario.nodes as f64 / HOURS_PER_YEAR;
    let scarce = run(&Scenario { budget: Some(0.5 * need), ..scenario });
    assert!(scarce.repair_bytes < 0.55 * free.repair_bytes);
    // A day's bytes are at most a day's budget, but for one repair that ends early in it.
    assert!(scarce.peak_day_node_bytes < 1.5 * 0.25 * need * 24.0);
    assert!(scarce.lost_chunks > free.lost_chunks);
}

#[test]
fn a_join_storm_moves_shards_and_loses_none() {
    let storm = Some(Storm { at_hours: 100.0, nodes: 100 });
    let calm = run(&base(1e6));
    let out = run(&Scenario { storm, ..base(1e6) });
    assert_eq!((calm.join_bytes, out.lost_chunks, out.repairs), (0.0, 0, 0));
    // A third of the network is new: a third of the shards moves to it.
    let scenario = base(1e6);
    let share = out.join_bytes / (out.user_bytes * scenario.scheme.expansion());
    assert!((0.25..0.42).contains(&share), "{share}");
    assert!(out.load_max < 2.0, "{}", out.load_max);
}

#[test]
fn a_zone_that_goes_down_takes_no_chunk_with_it() {
    let outage = Calamity { per_year: 50.0, victims: Victims::Zone, hours: 10.0, permanent: 0.0 };
    let scenario = Scenario { zones: 10, calamities: vec![outage], samples: 200, ..base(1e6) };
    let out = run(&scenario);
    assert_eq!(out.margins.len(), 200);
    let worst = out.margins.iter().map(|margin| margin.online_min).min();
    // At most two of 16 shards in each of ten zones.
    assert!(worst >= Some(12), "{worst:?}");
    assert!(out.margins.iter().all(|margin| margin.unavailable == 0));
}

#[test]
fn one_seed_makes_one_world() {
    let scenario = Scenario {
        outages: Some(Outages { per_year: 30.0, median_hours: 0.3, sigma: 3.0 }),
        malicious: 0.02,
        audit_hours: 100.0,
        zones: 8,
        ..base(3.0)
    };
    assert_eq!(run(&scenario), run(&scenario));
    assert_ne!(run(&scenario), run(&Scenario { seed: 2, ..scenario }));
}

/// Counted, not timed: levels of the queue, shards, holders, nodes met on walks, bits, sorted tokens. From
/// 100 nodes to 10,000 log2 doubles; whatever looks at all nodes, arcs or stripes for an event grows a
/// hundredfold. The bench shows 100,000 nodes and the time.
#[test]
fn an_event_costs_no_more_than_the_logarithm_of_the_network() {
    for unit in [Unit::Arc, Unit::Chunk] {
        let mut first = None;
        for nodes in [100, 1000, 10_000] {
            let scenario = Scenario { nodes, chunks: 4 * nodes, unit, ..base(12.0) };
            let out = run(&scenario);
            let steps = out.steps as f64 / out.events as f64;
            let log = (nodes as f64).log2();
            let (steps_first, log_first) = *first.get_or_insert((steps, log));
            let (grown, allowed) = (steps / steps_first, log / log_first);
            assert!(grown <= allowed, "{unit:?}, {nodes} nodes: x {grown:.2}, log2 x {allowed:.2}");
        }
    }
}

#[test]
fn an_impossible_scenario_is_refused_with_what_is_wrong() {
    let refused = |scenario| event::run(&scenario).expect_err("it is impossible").to_string();
    let few = refused(Scenario { nodes: 12, ..base(1.0) });
    assert_eq!(few, "12 nodes cannot hold 16 shards on a node each: take at least 16");
    assert!(refused(Scenario { chunks: 0, ..base(1.0) }).contains("chunks x n is 0"));
    assert!(refused(Scenario { malicious: 1.5, ..base(1.0) }).contains("malicious"));
    let calamity = |victims| {
        let calamity = Calamity { per_year: 1.0, victims, hours: 1.0, permanent: 0.0 };
        refused(Scenario { calamities: vec![calamity], ..base(1.0) })
    };
    assert!(
        calamity(Victims::Zone).contains("zones is 0; it must be 1 or more for a zone to fail")
    );
    assert!(calamity(Victims::Nodes(usize::MAX)).contains("1 to the number of nodes"));
    let lives = refused(Scenario { nodes: 1_000_000, years: 1000.0, ..base(1.0) });
    assert!(lives.contains("take fewer nodes, longer lives or less time"), "{lives}");
    let each = Scenario { chunks: 100_000_000, unit: Unit::Chunk, ..base(1.0) };
    assert!(refused(each).contains("take fewer chunks, or whole arcs"));
}

/// Times of any length end in no overflow: what comes after the end of time does not come.
#[test]
fn what_takes_longer_than_time_goes_never_happens() {
    let for_ever = 1e300;
    let outages = Some(Outages { per_year: 50.0, median_hours: for_ever, sigma: 20.0 });
    let out = run(&Scenario {
        dead_after_hours: for_ever,
        patience_hours: Some(for_ever),
        down_after_hours: Some(for_ever),
        replace_hours: for_ever,
        repair_hours: for_ever,
        budget: Some(1e-300),
        outages,
        ..base(12.0)
    });
    assert_eq!((out.repairs, out.false_deaths), (0, 0));
    assert!(out.lost_chunks > 0, "{out:?}");
}
