//! What others published or computed, and what we get: the simulator is believed only when all of
//! these hold. Each test is named after its source.

#![allow(clippy::excessive_precision)] // figures as they were printed

use copse_sim::{
    closed::{
        chain::{self, Pace, Scheme},
        published::{Azure, Windows, available, copyset_loss},
        storj,
        trust::{Reputation, STORJ_DISQUALIFIED_BELOW, STORJ_SUSPENDED_BELOW, audits_needed},
    },
    event::{self, Outcome, Scenario, Unit},
    law::RepairLaw,
    logmath,
    placement::{self, Study},
    random::{Lifetime, Xoshiro},
    stats::spread,
};

const MONTH_H: f64 = 730.5;

fn near(what: &str, got: f64, expected: f64, relative: f64) {
    assert!(
        (got / expected - 1.0).abs() <= relative,
        "{what}: {got:e}, expected {expected:e} ± {relative:e}"
    );
}

/// Storj white paper v3, section 3.4: durability in percent under a monthly churn of 10 %.
#[test]
fn s1_storj_poisson_table() {
    for (data, total, percent) in [
        (2, 4, 99.207_366_813_274_616),
        (4, 8, 99.858_868_985_411_326),
        (8, 16, 99.995_462_406_878_260),
        (16, 32, 99.999_994_620_652_776),
        (20, 40, 99.999_999_807_694_154),
        (32, 64, 99.999_999_999_990_544),
        (1, 1, 90.483_741_803_595_962),
        (1, 2, 98.247_690_369_357_827),
        (1, 3, 99.640_050_681_691_051),
        (1, 10, 99.999_988_857_452_166),
        (1, 16, 99.999_999_998_036_174),
        (4, 6, 97.688_471_224_736_705),
        (4, 12, 99.999_514_117_129_605),
        (20, 30, 99.970_766_304_935_266),
        (20, 50, 99.999_999_999_999_548),
        (100, 150, 99.999_999_999_973_570),
    ] {
        let got = 100.0 * storj::durability_poisson(data, total, 0.1);
        near(&format!("{data} of {total}"), got, percent, 1e-12);
    }
}

/// (mean life in months, k, n, m, repair ratio, nines), as printed: the table in the appendix of the same
/// paper.
const STORJ_TABLE: [(f64, u64, u64, u64, f64, f64); 9] = [
    (1.0, 20, 40, 35, 9.36, 8.0),
    (6.0, 20, 40, 30, 0.87, 17.0),
    (12.0, 20, 40, 25, 0.31, 13.0),
    (1.0, 30, 60, 35, 3.40, 4.0),
    (6.0, 30, 70, 40, 0.60, 15.0),
    (12.0, 30, 80, 45, 0.31, 25.0),
    (1.0, 40, 80, 60, 5.21, 4.0),
    (6.0, 40, 120, 50, 0.52, 14.0),
    (12.0, 40, 120, 45, 0.24, 11.0),
];

#[test]
fn s2_storj_repair_bandwidth() {
    for (months, data, total, threshold, expected, _) in STORJ_TABLE {
        let got = storj::repair_ratio(data, total, threshold, months);
        assert!((got - expected).abs() <= 0.006, "{months} {data}/{total}: {got} for {expected}");
    }
}

/// The row of that table whose nines do not follow from its formula.
const STORJ_ODD_ROW: usize = 1;

/// Nines of a row when repairs take so many hours on average.
fn storj_nines(row: usize, repair_hours: f64) -> f64 {
    let (months, data, total, threshold, ..) = STORJ_TABLE[row];
    let life = months * MONTH_H;
    logmath::nines(storj::ln_loss_ratio(data, total, threshold, life, repair_hours))
}

/// With a mean repair time of 11.95 hours, which the paper does not state. Eight rows as printed,
/// rounded down; the ninth is 16.385.
#[test]
fn s3_storj_nines_per_repair_interval() {
    for (row, (.., printed)) in STORJ_TABLE.into_iter().enumerate() {
        let nines = storj_nines(row, 11.95);
        if row == STORJ_ODD_ROW {
            near("20/40 at 6 months", nines, 16.385, 1e-4);
        } else {
            assert_eq!(nines.floor(), printed, "{:?}", STORJ_TABLE[row]);
        }
    }
}

/// The ninth row, printed as 17, is not from the printed formula with the repair time of the others,
/// whatever that is and however nines were rounded. Nines fall by m−k+2 for each tenfold repair time,
/// so each row as printed allows one range of it:
///
/// | rounded | the eight rows allow | the ninth allows |
/// |---|---|---|
/// | down | 11.864 to 11.956 h | 8.765 to 10.619 h |
/// | to the nearest | nothing | 9.647 to 11.688 h |
/// | up | nothing | 10.619 to 12.865 h |
///
/// Rounded down it would take a repair time 11 % shorter. That its m and mean life are misprinted is
/// ruled out by its repair ratio, which fits (S2) and with m = 31 would be 0.95.
#[test]
fn s3_no_repair_time_gives_the_row_that_differs() {
    let allowed = |row: usize, above: f64| {
        let (_, data, _, threshold, _, printed) = STORJ_TABLE[row];
        let slope = (threshold - data + 2) as f64;
        let hours = |nines: f64| 10f64.powf((storj_nines(row, 1.0) - nines) / slope);
        (hours(printed + above + 1.0), hours(printed + above))
    };
    let eight = |above| {
        let rows = (0..STORJ_TABLE.len()).filter(|row| *row != STORJ_ODD_ROW);
        rows.map(|row| allowed(row, above))
            .fold((0.0f64, f64::INFINITY), |all, one| (all.0.max(one.0), all.1.min(one.1)))
    };
    let (shortest, longest) = eight(0.0);
    near("eight rows, from", shortest, 11.864, 1e-4);
    near("eight rows, to", longest, 11.956, 1e-4);
    near("the ninth, to", allowed(STORJ_ODD_ROW, 0.0).1, 10.619, 1e-4);
    for to_nearest_or_up in [-0.5, -1.0] {
        let (shortest, longest) = eight(to_nearest_or_up);
        assert!(shortest > longest, "{to_nearest_or_up}: {shortest} to {longest}");
    }
    near("the ratio with m = 31", storj::repair_ratio(20, 40, 31, 6.0), 0.948, 1e-3);
}

/// The erasure-coding-durability repository of Backblaze: 17 of 20, 0.405 % a year, 6.5 days.
#[test]
fn s4_backblaze_eleven_nines() {
    let vault = Windows { total: 20, parity: 3, annual_failure_rate: 0.00405, rebuild_days: 6.5 };
    near("a window", vault.ln_loss_per_window().exp(), 1.310e-13, 1e-3);
    near("a year", vault.loss_per_year(), 7.354e-12, 1e-3);
}

/// Weatherspoon and Kubiatowicz (2002): a million machines, a tenth of them down.
#[test]
fn s5_weatherspoon_kubiatowicz_availability() {
    let check = |total, needed, expected: f64, digit: f64| {
        let got = available(1_000_000, 100_000, total, needed);
        assert!((got - expected).abs() <= digit, "{total} shards: {got}, expected {expected}");
    };
    check(2, 1, 0.990_000_09, 1e-8);
    check(16, 8, 0.999_994_077_277_31, 1e-14);
    check(32, 16, 0.999_999_998_719_14, 1e-14);
}

/// Cidon et al. (2013): 1 % of 5,000 nodes lost at once, three copies.
#[test]
fn s6_copysets_power_outage() {
    let percent = |sets: f64| 100.0 * copyset_loss(5000, 50, 3, sets);
    near("Facebook, 55 sets a node", percent(55.0 * 5000.0), 22.81, 1e-3);
    near("Facebook, copysets", percent(8333.0), 0.781, 1e-3);
    near("RAMCloud, copysets", percent(1667.0), 0.157, 3e-3);
    assert!(percent(4e7) > 99.99, "RAMCloud, random");
}

/// Huang et al. (2012), with a mean life of 5 years, which fits their three figures to 2.6 %.
#[test]
fn s7_azure_markov_chains() {
    let check = |what, total, safe, decodable, expected| {
        let chain = Azure { total, safe, decodable, node_years: 5.0 };
        near(what, chain.mttdl_years(), expected, 5e-3);
    };
    check("3 copies", 3, 1, 0.0, 3.59e9);
    check("RS(6,3)", 9, 6, 0.0, 6.25e11);
    check("LRC(6,2,2)", 10, 7, 0.86, 2.68e12);
}

/// A network with deaths and repairs only, of single chunks.
fn simulate(
    (nodes, chunks, years): (usize, usize, f64),
    scheme: Scheme,
    (months, hours): (f64, f64),
    law: RepairLaw,
) -> Outcome {
    let life = Lifetime::new(months * MONTH_H, 1.0).expect("a lifetime");
    let scenario = Scenario {
        chunks,
        years,
        unit: Unit::Chunk,
        ..Scenario::plain(nodes, scheme, life, hours, law)
    };
    event::run(&scenario).expect("a possible scenario")
}

/// Model A: 4 of 6, eager, mean life a month, mean repair a day: 1.012 years.
#[test]
fn s8_simulated_years_agree_with_the_exponential_chain() {
    let scheme = Scheme::eager(4, 6).expect("a scheme");
    let law = RepairLaw::Exponential;
    let out = simulate((1000, 1000, 4.2), scheme, (1.0, 24.0), law);
    assert!(out.losses >= 4000, "{} losses", out.losses);
    near("mean years to loss", out.mttdl_years().expect("losses"), 1.012, 0.05);
    let pace = Pace { life: MONTH_H, repair: 24.0 };
    let closed = chain::ln_mttdl(scheme, pace, law).exp() / event::HOURS_PER_YEAR;
    near("the closed form", closed, 1.012, 1e-3);
}

/// Model C: 10 of 16, threshold 13, mean life a month, repair in a day: 31.5 years.
#[test]
fn s9_simulated_years_agree_with_the_fixed_window() {
    let scheme = Scheme::new(10, 16, 13).expect("a scheme");
    let out = simulate((2000, 2000, 4.2), scheme, (1.0, 24.0), RepairLaw::Fixed);
    assert!(out.losses >= 250, "{} losses", out.losses);
    near("mean years to loss", out.mttdl_years().expect("losses"), 31.5, 0.1);
}

/// The same with ten times as many losses. Three seeds gave 2492, 2743 and 2691 for 2,667
/// expected: neighbouring arcs share nodes, so losses come in company and spread more than Poisson's
/// 2 %. Takes half a minute: `cargo test --release -p copse-sim -- --ignored`.
#[test]
#[ignore = "S9 once more with ten times the work: half a minute"]
fn s9_with_ten_times_as_many_losses() {
    let scheme = Scheme::new(10, 16, 13).expect("a scheme");
    let out = simulate((5000, 20_000, 4.2), scheme, (1.0, 24.0), RepairLaw::Fixed);
    assert!(out.losses >= 2400, "{} losses", out.losses);
    near("mean years to loss", out.mttdl_years().expect("losses"), 31.5, 0.08);
}

/// Model D: bytes moved by repair per byte of the user's and year.
#[test]
fn s12_repair_traffic_agrees_with_its_formula() {
    for (data, total, threshold) in [(10, 16, 13), (4, 6, 5), (20, 40, 30)] {
        let scheme = Scheme::new(data, total, threshold).expect("a scheme");
        let years = 60.0;
        let out = simulate((2000, 4000, years), scheme, (60.0, 1.0), RepairLaw::Fixed);
        let expected = chain::repair_traffic(scheme, 5.0);
        near(&format!("{data}/{total} {threshold}"), out.repair_ratio(years), expected, 0.02);
    }
}

/// The larger step from the exponential to the fixed law: at most (r−k+1)! = 24.
#[test]
fn s10_the_two_repair_time_laws_differ_ninefold() {
    let scheme = Scheme::new(10, 16, 13).expect("a scheme");
    let pace = Pace { life: MONTH_H, repair: 24.0 };
    let [exponential, fixed] = RepairLaw::BOTH.map(|law| chain::ln_mttdl(scheme, pace, law));
    near("fixed over exponential", (fixed - exponential).exp(), 9.0, 0.005);
    assert!((fixed - exponential).exp() < 24.0);
}

/// `satellite/repair/priority_test.go` of Storj: days for (healthy, k, nodes, failure rate).
#[test]
fn s11_storj_segment_health() {
    let days = |healthy| storj::segment_health(healthy, 29, 24_000, 5.435e-5);
    assert_eq!((days(34).round(), days(40).round()), (3154.0, 5385.0));
}

/// Exact integration of a ring of 1,000 equal nodes, computed elsewhere: (shards, tokens, relative
/// deviation of the load).
///
/// The source's load of a node is a length of the ring, ours a number of arcs that the node holds a shard
/// of: the product's ring is cut into 65,536 arcs, and all chunks of an arc have the same nodes. A node holds
/// 65.5·n of them on average, and how many of their beginnings fall on its part of the ring is chance, as
/// long as one token's part is not much wider than an arc: of a relative deviation d this makes up to √(d² +
/// nodes/(arcs · n)). With 256 tokens of each node a token's part is a quarter of an arc, so for one and
/// three shards the arcs outweigh the tokens and ours is 0.110 and 0.048 where the source has 0.063 and 0.036.
/// Both are right, of two quantities: [`s13_what_the_arcs_add`] integrates one ring both ways.
#[test]
fn s13_the_load_of_the_ring_spreads_as_computed() {
    for (shards, tokens, expected) in [
        (1, 1, 1.04),
        (1, 16, 0.24),
        (1, 64, 0.125),
        (3, 1, 0.61),
        (3, 16, 0.144),
        (3, 64, 0.073),
        (16, 1, 0.27),
        (16, 4, 0.137),
        (16, 16, 0.061),
        (16, 64, 0.032),
        (16, 256, 0.016),
        (40, 1, 0.151),
        (40, 4, 0.096),
        (40, 16, 0.046),
        (40, 64, 0.023),
    ] {
        let load = placement::load(Study { nodes: 1000, shards, tokens, seed: 1 });
        near(&format!("{shards} shards, {tokens} tokens"), load.deviation, expected, 0.15);
    }
    // Here the arcs are the larger part.
    for (shards, tokens, expected) in [(1, 256, 0.063f64), (3, 256, 0.036)] {
        let load = placement::load(Study { nodes: 1000, shards, tokens, seed: 1 });
        let of_arcs = (1000.0 / (65_536.0 * shards as f64)).sqrt();
        let range = expected..expected.hypot(of_arcs);
        assert!(range.contains(&load.deviation), "{shards} {tokens}: {} {range:?}", load.deviation);
    }
}

/// One ring with tokens drawn at random, its load as a length, as the source has it, and as a number of
/// arcs, as the product has it: the first is the source's figure, the second ours.
#[test]
fn s13_what_the_arcs_add() {
    const NODES: usize = 1000;
    const ARCS: u64 = 1 << 16;
    for (shards, tokens, source) in [(1, 256, 0.063), (3, 256, 0.036), (16, 64, 0.032)] {
        let mut random = Xoshiro::new(13, "tokens");
        let mut ring: Vec<(u64, usize)> =
            (0..NODES * tokens).map(|token| (random.next_u64(), token % NODES)).collect();
        ring.sort_unstable();
        let holders = |from: usize| {
            let mut met: Vec<usize> = Vec::new();
            let owners = ring[from..].iter().chain(&ring[..from]).map(|(_, owner)| *owner);
            for owner in owners {
                if !met.contains(&owner) {
                    met.push(owner);
                }
                if met.len() == shards {
                    break;
                }
            }
            met
        };
        let (mut lengths, mut arcs) = (vec![0.0; NODES], vec![0.0; NODES]);
        for (at, (token, _)) in ring.iter().enumerate() {
            // Before the first token lies what is behind the last one.
            let before = ring[(at + ring.len() - 1) % ring.len()].0;
            for owner in holders(at) {
                lengths[owner] += token.wrapping_sub(before) as f64;
            }
        }
        for arc in 0..ARCS {
            let at = ring.partition_point(|(token, _)| *token < arc << 48) % ring.len();
            for owner in holders(at) {
                arcs[owner] += 1.0;
            }
        }
        let what = format!("{shards} shards, {tokens} tokens");
        near(&format!("{what}, lengths"), spread(&lengths).0, source, 0.15);
        let ours = placement::load(Study { nodes: NODES, shards, tokens, seed: 1 }).deviation;
        near(&format!("{what}, arcs"), spread(&arcs).0, ours, 0.15);
    }
}

/// A set loses the one who left and gains one other; all other shards stay where they are.
#[test]
fn s14_a_leave_moves_one_shard_of_each_affected_stripe() {
    let geometry = "10+6".parse().expect("a geometry");
    let moves = placement::leave(1000, 0, geometry, 1);
    assert_eq!((moves.moved, moves.arcs_with_more), (moves.held, 0));
    near("arcs held", moves.held as f64, 65_536.0 * 16.0 / 1000.0, 0.15);
}

/// Storj's reputation: 41 straight failures disqualify, 10 unknown errors suspend; with 5 % of
/// failures it takes about 1,550 audits on average.
#[test]
fn s15_storj_reputation() {
    let failures_until = |mut reputation: Reputation, below| {
        (1..).find(|_| {
            reputation.count(false);
            reputation.score() < below
        })
    };
    let disqualified = failures_until(Reputation::storj_audit(), STORJ_DISQUALIFIED_BELOW);
    assert_eq!(disqualified, Some(41));
    // Ten unknown errors leave 0.5987 of the score.
    assert_eq!(failures_until(Reputation::storj_unknown(), STORJ_SUSPENDED_BELOW), Some(10));

    let mut random = Xoshiro::new(15, "reputation");
    let runs = 2000;
    let audits: u64 = (0..runs)
        .map(|_| {
            let mut reputation = Reputation::storj_audit();
            let mut audits = 0;
            while reputation.score() >= STORJ_DISQUALIFIED_BELOW {
                reputation.count(!random.chance(0.05));
                audits += 1;
            }
            audits
        })
        .sum();
    near("audits until out", audits as f64 / f64::from(runs), 1550.0, 0.1);
}

/// Ateniese et al. (2007): 459 audits find 1 % of damage with 99 %.
#[test]
fn s16_audits_find_one_percent_of_damage() {
    assert_eq!(audits_needed(0.01, 0.99), 459.0);
    let mut random = Xoshiro::new(16, "audit");
    let runs = 100_000;
    let found = (0..runs).filter(|_| (0..459).any(|_| random.chance(0.01))).count();
    let share = found as f64 / f64::from(runs);
    assert!((share - 0.99).abs() <= 0.003, "{share}");
}
