//! Nines, traffic and rare losses of schemes, over churn and thresholds.
//!
//! Owns the studies of single stripes. Correlated failures are in `scenarios`.

use super::{Effort, Section, Table, table::short};
use crate::{
    closed::chain::{self, Pace, Scheme, ln_false_trigger, ln_mttdl, ln_unavailable},
    event::{self, HOURS_PER_YEAR, Scenario, Unit},
    law::RepairLaw,
    logmath,
    random::Lifetime,
    splitting::{self, Splitting},
    svg::{Axis, Chart, Series, Style},
};

const MONTH_H: f64 = 730.5;

/// k, n, r of the schemes that are compared: some eager, some lazy, widths from 6 to 80.
const SCHEMES: [(usize, usize, usize); 9] = [
    (4, 6, 5),
    (5, 8, 7),
    (8, 12, 10),
    (10, 16, 15),
    (10, 16, 13),
    (16, 32, 23),
    (20, 40, 30),
    (20, 40, 25),
    (29, 80, 52),
];

fn schemes() -> impl Iterator<Item = Scheme> {
    SCHEMES.iter().filter_map(|&(data, total, threshold)| Scheme::new(data, total, threshold).ok())
}

fn name(scheme: Scheme) -> String {
    let (data, total) = (scheme.data(), scheme.total());
    format!("{data}+{} r={}", total - data, scheme.threshold())
}

const LIVES_MONTHS: [f64; 7] = [1.0, 2.0, 4.0, 6.0, 12.0, 24.0, 60.0];

pub(super) fn nines(_: Effort) -> Section {
    let tau = 24.0;
    let nines = |scheme, months: f64, law| {
        let pace = Pace { life: months * MONTH_H, repair: tau };
        chain::nines(scheme, pace, law, HOURS_PER_YEAR)
    };
    let mut table = Table::new(&[
        "scheme",
        "n/k",
        "nines, life 1 month",
        "nines, life 6 months",
        "nines, life 1 year",
        "nines, life 5 years",
        "unavailable, 95 % online",
        "false trigger, 95 % online",
    ]);
    for scheme in schemes() {
        let mut cells = vec![name(scheme), format!("{:.2}", scheme.expansion())];
        for months in [1.0, 6.0, 12.0, 60.0] {
            let [a, c] = RepairLaw::BOTH.map(|law| nines(scheme, months, law));
            cells.push(format!("{a:.2} / {c:.2}"));
        }
        cells.push(short(ln_unavailable(scheme, 0.95).exp()));
        cells.push(short(ln_false_trigger(scheme, 0.95).exp()));
        table.row(cells);
    }
    let chart = |law: RepairLaw| Chart {
        title: format!("Nines a year over the mean life of nodes, τ = 24 h, {law} repair times"),
        x: Axis::logarithmic("mean life of a node, months"),
        y: Axis::linear("nines of a chunk-year"),
        series: (0..)
            .zip(schemes().filter(|scheme| scheme.total() < 80))
            .map(|(colour, scheme)| Series {
                name: name(scheme),
                points: LIVES_MONTHS.map(|months| (months, nines(scheme, months, law))).to_vec(),
                colour,
                style: Style::Line,
            })
            .collect(),
    };
    let text = format!(
        "Closed forms for independent failures, τ = 24 h. Each cell: nines of a chunk-year with the \
         **exponential / fixed** repair-time law. The last columns: probability that fewer than k \
         nodes answer, and that a whole chunk seems to be at its threshold, when each node is there \
         95 % of the time (no repair-time law in these).\n\n{}",
        table.markdown()
    );
    Section {
        title: "Nines over geometry and churn",
        text,
        tables: vec![table],
        charts: vec![
            ("nines-exponential", chart(RepairLaw::Exponential)),
            ("nines-fixed", chart(RepairLaw::Fixed)),
        ],
    }
}

pub(super) fn traffic(effort: Effort) -> Section {
    let life_years = 1.0;
    let curve = |data, total| -> Vec<(f64, f64)> {
        (data..total)
            .filter_map(|threshold| Scheme::new(data, total, threshold).ok())
            .map(|scheme| (scheme.threshold() as f64, chain::repair_traffic(scheme, life_years)))
            .collect()
    };
    let mut dots = Vec::new();
    let mut table = Table::new(&[
        "10+6, threshold r, live shards",
        "bytes moved per stored byte and year, formula for τ → 0",
        "the same, τ = 12 h fixed",
        "simulated, τ = 12 h fixed",
        "nines of a chunk-year exponential / fixed, τ = 12 h",
    ]);
    let (nodes, chunks, years) =
        if effort == Effort::Full { (1000, 2000, 8.0) } else { (100, 200, 2.0) };
    for threshold in 10..16 {
        let (Ok(scheme), Ok(life)) =
            (Scheme::new(10, 16, threshold), Lifetime::new(HOURS_PER_YEAR, 1.0))
        else {
            continue;
        };
        let scenario = Scenario {
            chunks,
            years,
            unit: Unit::Chunk,
            ..Scenario::plain(nodes, scheme, life, 12.0, RepairLaw::Fixed)
        };
        let Ok(out) = event::run(&scenario) else { continue };
        let simulated = out.repair_ratio(years);
        dots.push((threshold as f64, simulated));
        let pace = Pace { life: HOURS_PER_YEAR, repair: 12.0 };
        let [a, c] = RepairLaw::BOTH.map(|law| chain::nines(scheme, pace, law, HOURS_PER_YEAR));
        table.row([
            threshold.to_string(),
            format!("{:.2}", chain::repair_traffic(scheme, life_years)),
            format!("{:.2}", chain::repair_traffic_with_time(scheme, pace) * HOURS_PER_YEAR),
            format!("{simulated:.2}"),
            format!("{a:.2} / {c:.2}"),
        ]);
    }
    let series =
        |name: &str, points, colour, style| Series { name: name.to_owned(), points, colour, style };
    let chart = Chart {
        title: "Repair traffic over the threshold, mean life of a node 1 year".into(),
        x: Axis::linear("threshold r: repair begins at so many live shards"),
        y: Axis::logarithmic("bytes moved per stored byte and year"),
        series: vec![
            series("10+6, formula, any law", curve(10, 16), 0, Style::Line),
            series("10+6, simulated (fixed)", dots, 0, Style::Dots),
            series("16+16, formula, any law", curve(16, 32), 1, Style::Line),
            series("20+20, formula, any law", curve(20, 40), 2, Style::Line),
            series("29+51, formula, any law", curve(29, 80), 3, Style::Line),
        ],
    };
    let text = format!(
        "Each repair reads k shards and writes n−r: (k+n−r)/(k·D) bytes per byte of the user's, D \
         the mean time from n to r live shards, which has no repair time in it and so no law. Deaths and \
         repairs alone, without the product's patience. Mean life of a node: 1 year; with another, divide \
         by it. Simulated with {nodes} nodes, {chunks} chunks, {years} years from full strength \
         (which lowers the figure a little), seed 1.\n\n{}",
        table.markdown()
    );
    Section {
        title: "Repair traffic over the threshold",
        text,
        tables: vec![table],
        charts: vec![("traffic", chart)],
    }
}

pub(super) fn rare(effort: Effort) -> Section {
    let mut table = Table::new(&[
        "scheme",
        "life of nodes (mean 6 months)",
        "repair-time law",
        "nines of a chunk-year, closed form",
        "nines of a chunk-year, splitting",
        "seed",
    ]);
    let (per_level, runs) = if effort == Effort::Full { (8000, 8) } else { (200, 2) };
    for (data, total, threshold) in [(10, 16, 13), (16, 32, 23), (20, 40, 30)] {
        for shape in [1.0, 0.6] {
            for law in RepairLaw::BOTH {
                let (Ok(scheme), Ok(life)) =
                    (Scheme::new(data, total, threshold), Lifetime::new(6.0 * MONTH_H, shape))
                else {
                    continue;
                };
                let what = Splitting {
                    scheme,
                    life,
                    repair_hours: 24.0,
                    law,
                    effort: per_level,
                    runs,
                    seed: 1,
                };
                let pace = Pace { life: life.mean(), repair: 24.0 };
                let nines =
                    |ln_mttdl| logmath::nines(chain::ln_loss_within(ln_mttdl, HOURS_PER_YEAR, 1.0));
                let split = splitting::estimate(what).map_or("none got through".to_owned(), |e| {
                    let error = e.error / core::f64::consts::LN_10;
                    format!("{:.2} ± {error:.2}", nines(e.ln_mttdl_hours))
                });
                let exponential = shape == 1.0;
                table.row([
                    name(scheme),
                    if exponential { "exponential".into() } else { format!("Weibull {shape}") },
                    law.to_string(),
                    if exponential {
                        format!("{:.2}", nines(ln_mttdl(scheme, pace, law)))
                    } else {
                        "—".into()
                    },
                    split,
                    "1".to_owned(),
                ]);
            }
        }
    }
    let text = format!(
        "τ = 24 h. Importance splitting on the number of live shards: {per_level} trajectories on \
         each level, {runs} repetitions; no trajectory got through where it says so. With Weibull \
         lives of shape 0.6 many nodes die young; the shards here are on nodes of all ages, as in \
         a network that has long replaced its dead. The time between repairs is taken as for \
         exponential lives.\n\n{}",
        table.markdown()
    );
    Section { title: "Losses too rare to wait for", text, tables: vec![table], charts: Vec::new() }
}
