//! What the product's defaults lead to: geometry by network size, patience, and when a node counts as
//! dead.
//!
//! Owns the figures that the decision records stand on. Every default is read from the core, so that
//! a changed one changes the table.

use core::time::Duration;

use copse_core::{
    durability::advice::{Question, Speed},
    geometry::Geometry,
    liveness::Timeouts,
    repair::Policy,
};

use super::{
    Effort, Section, Table, in_parallel,
    scenarios::{self, PLANETLAB},
    table::short,
};
use crate::{
    closed::{
        chain::{self, Pace, Scheme},
        patient,
    },
    event::{self, HOURS_PER_YEAR, Scenario, Unit},
    law::RepairLaw,
    logmath,
    random::Lifetime,
    svg::{Axis, Chart, Series, Style},
};

/// Sizes at which the default geometry changes, and some between.
const SIZES: [usize; 10] = [2, 3, 4, 5, 6, 8, 12, 16, 40, 1000];

const DAY_H: f64 = 24.0;

/// Time to make a lost node's shards again. Not the product's: that follows from lines and disks.
const REBUILD_H: f64 = 20.0;

fn hours(time: Duration) -> f64 {
    time.as_secs_f64() / 3600.0
}

fn question(nodes: usize, life: f64, online: f64) -> Question {
    let (policy, timeouts) = (Policy::default(), Timeouts::default());
    Question {
        nodes,
        zones: 0,
        life,
        online,
        wish: 0.0,
        stored: 1e12,
        detection: hours(timeouts.dead_after),
        patience: hours(policy.patience),
        threshold: policy.threshold,
        speed: Speed::Hours(REBUILD_H),
        expansion_max: f64::INFINITY,
    }
}

fn nines(ln_mttdl: f64) -> f64 {
    logmath::nines(chain::ln_loss_within(ln_mttdl, HOURS_PER_YEAR, 1.0))
}

pub(super) fn defaults(effort: Effort) -> Section {
    let by_size = by_size();
    let (by_patience, chart) = by_patience();
    let simulated = simulated_patience(effort);
    let (about, by_dead_after) = by_dead_after(effort);
    let (timeouts, patience) = (Timeouts::default(), hours(Policy::default().patience));
    let text = format!(
        "The figures behind the decision records on the \
         [default geometry](decisions/2026-11-28-default-geometry.md) and on \
         [patience and timeouts](decisions/2026-11-28-patience-and-timeouts.md). All defaults are read \
         from the core.\n\n\
         ### Geometry by network size\n\n\
         What `copse put` uses if nothing is said. τ = {} h ({} h until a node counts as dead, {} h to \
         make its shards again), the core's threshold and patience ({} h), independent deaths. Nines of a \
         chunk-year **exponential / fixed** repair-time law; traffic hardly depends on the law, as many bytes \
         are received as sent; not readable: the share of time in which fewer than k nodes answer (no \
         repair-time law).\n\n{}\n\
         ### Patience\n\n\
         How long a missing shard waits for others before it is rebuilt alone; the product's patience is \
         {} h. τ = {DAY_H} h, mean life of a node 1 year. Each cell: nines of a chunk-year **exponential / \
         fixed** repair-time law, then bytes moved per stored byte and year. The threshold is the core's. \
         Simulated below it: 10+6 with lives of 2 months, fixed law, seed 1.\n\n{}\n{}\n\
         ### When a node counts as dead\n\n\
         {about}{}",
        hours(timeouts.dead_after) + REBUILD_H,
        hours(timeouts.dead_after),
        REBUILD_H,
        patience,
        by_size.markdown(),
        patience,
        by_patience.markdown(),
        simulated.markdown(),
        by_dead_after.markdown()
    );
    Section {
        title: "The product's defaults",
        text,
        tables: vec![by_size, by_patience, simulated, by_dead_after],
        charts: vec![("nines-patience", chart)],
    }
}

fn by_size() -> Table {
    let mut table = Table::new(&[
        "nodes",
        "geometry",
        "n/k",
        "any nodes lost at once",
        "nines, life 6 months",
        "nines, life 1 year",
        "nines, life 3 years",
        "bytes sent a month per stored byte, life 1 year",
        "not readable, 95 % online",
        "not readable, 99 % online",
    ]);
    for nodes in SIZES {
        let Some(geometry) = Geometry::default_for(nodes) else { continue };
        let figures = |years: f64, online: f64| {
            question(nodes, years * HOURS_PER_YEAR, online).figures(geometry)
        };
        let cell = |years: f64| {
            figures(years, 0.95)
                .map_or(String::new(), |f| format!("{:.1} / {:.1}", f.exponential, f.fixed))
        };
        let Some(year) = figures(1.0, 0.95) else { continue };
        table.row([
            nodes.to_string(),
            geometry.to_string(),
            format!("{:.2}", year.expansion()),
            year.nodes_borne.to_string(),
            cell(0.5),
            cell(1.0),
            cell(3.0),
            format!("{:.2}", year.traffic),
            short(year.unreadable),
            figures(1.0, 0.99).map_or(String::new(), |f| short(f.unreadable)),
        ]);
    }
    table
}

/// Days of patience; none is for ever.
const PATIENCE_DAYS: [Option<f64>; 6] =
    [Some(0.0), Some(1.0), Some(7.0), Some(14.0), Some(30.0), None];

fn patience_name(days: Option<f64>) -> String {
    days.map_or("for ever".to_owned(), |days| {
        if days == 1.0 { "1 day".to_owned() } else { format!("{days} days") }
    })
}

fn by_patience() -> (Table, Chart) {
    let codes = ["8+4", "10+6", "16+16", "20+20"];
    let mut table = Table::new(&["patience", codes[0], codes[1], codes[2], codes[3]]);
    for days in PATIENCE_DAYS {
        let mut cells = vec![patience_name(days)];
        for code in codes {
            let cell = patient_figures(code, days.map_or(1e12, |days| days * DAY_H));
            let cell = cell.map(|([a, c], moved)| format!("{a:.1} / {c:.1}, {moved:.1}"));
            cells.push(cell.unwrap_or_default());
        }
        table.row(cells);
    }
    let mut series = Vec::new();
    for (colour, code) in codes.into_iter().enumerate() {
        for (law, style) in RepairLaw::BOTH.into_iter().zip([Style::Line, Style::Dashed]) {
            let points = (0..=30_u32).filter_map(|days| {
                let (nines, _) = patient_figures(code, f64::from(days) * DAY_H)?;
                let at = usize::from(law != RepairLaw::BOTH[0]);
                Some((f64::from(days), nines[at]))
            });
            series.push(Series {
                name: format!("{code}, {law}"),
                points: points.collect(),
                colour,
                style,
            });
        }
    }
    let chart = Chart {
        title: format!("Nines a year over patience, τ = {DAY_H} h, mean life of a node 1 year"),
        x: Axis::linear("patience, days"),
        y: Axis::linear("nines of a chunk-year"),
        series,
    };
    (table, chart)
}

/// Nines by both repair-time laws, and bytes moved per stored byte and year, with the core's threshold
/// and so many hours of patience.
fn patient_figures(code: &str, patience: f64) -> Option<([f64; 2], f64)> {
    let geometry: Geometry = code.parse().ok()?;
    let threshold = Policy::default().threshold.shards(geometry);
    let scheme = Scheme::new(geometry.data(), geometry.total(), threshold).ok()?;
    let pace = Pace { life: HOURS_PER_YEAR, repair: DAY_H };
    let both = RepairLaw::BOTH.map(|law| nines(patient::ln_mttdl(scheme, pace, patience, law)));
    Some((both, patient::repair_traffic(scheme, pace, patience) * HOURS_PER_YEAR))
}

/// The closed form of patience beside simulated years.
fn simulated_patience(effort: Effort) -> Table {
    let mut table = Table::new(&[
        "patience",
        "repair-time law",
        "nines of a chunk-year, closed form",
        "nines of a chunk-year, simulated",
        "losses of stripes",
        "bytes moved per stored byte and year, closed form",
        "the same, simulated",
    ]);
    let law = RepairLaw::Fixed;
    let full = effort == Effort::Full;
    let outs = in_parallel(&PATIENCE_DAYS, |days| {
        let scheme = Scheme::new(10, 16, 13).ok()?;
        let life = Lifetime::new(HOURS_PER_YEAR / 6.0, 1.0).ok()?;
        let scenario = Scenario {
            chunks: if full { 4000 } else { 200 },
            years: if full { 5.0 } else { 0.5 },
            unit: Unit::Chunk,
            patience_hours: days.map(|days| days * DAY_H),
            ..Scenario::plain(if full { 1000 } else { 100 }, scheme, life, DAY_H, law)
        };
        event::run(&scenario).ok().map(|out| (scenario, out))
    });
    for (days, out) in PATIENCE_DAYS.into_iter().zip(outs) {
        let Some((scenario, out)) = out else { continue };
        let patience = days.map_or(1e12, |days| days * DAY_H);
        let pace = Pace { life: scenario.life.mean(), repair: DAY_H };
        let closed = nines(patient::ln_mttdl(scenario.scheme, pace, patience, law));
        let moved = patient::repair_traffic(scenario.scheme, pace, patience) * HOURS_PER_YEAR;
        table.row([
            patience_name(days),
            law.to_string(),
            format!("{closed:.2}"),
            scenarios::nines(&out),
            out.losses.to_string(),
            format!("{moved:.2}"),
            format!("{:.2}", out.repair_ratio(scenario.years)),
        ]);
    }
    table
}

fn by_dead_after(effort: Effort) -> (String, Table) {
    let mut table = Table::new(&[
        "dead after",
        "repair-time law",
        "nines of a chunk-year",
        "losses of arcs",
        "bytes moved per stored byte and year",
        "rebuilt although the old holder lives",
        "declared dead and came back, per node and year",
    ]);
    let law = RepairLaw::Exponential;
    let all = [1.0, 4.0, 12.0, 24.0, 72.0];
    let outs = in_parallel(&all, |&dead_after_hours| {
        let scenario = Scenario {
            outages: Some(PLANETLAB),
            dead_after_hours,
            ..scenarios::base(effort, law)?
        };
        event::run(&scenario).ok().map(|out| (scenario, out))
    });
    let mut about = String::new();
    for (dead_after, out) in all.into_iter().zip(outs) {
        let Some((scenario, out)) = out else { continue };
        let node_years = scenario.nodes as f64 * scenario.years;
        about = format!(
            "{} nodes with lives of 2 months and absences like PlanetLab's (34 a year, half of them \
             shorter than 20 min, on average 29 h), 10+6, repaired in {} h on average by the {law} law, the \
             product's settings but for this one (it has {} h), {} years, seed {}.\n\n",
            scenario.nodes,
            scenario.repair_hours,
            hours(Timeouts::default().dead_after),
            scenario.years,
            scenario.seed
        );
        table.row([
            format!("{dead_after} h"),
            law.to_string(),
            scenarios::nines(&out),
            out.losses.to_string(),
            format!("{:.1}", out.repair_ratio(scenario.years)),
            format!("{:.1} %", 100.0 * out.false_rebuilt as f64 / out.shards_rebuilt.max(1) as f64),
            format!("{:.1}", out.false_deaths as f64 / node_years),
        ]);
    }
    (about, table)
}
