//! What failures in common do: scenarios side by side, one of them over time, and what they cost to
//! simulate.
//!
//! Owns the studies of the event simulation. The parameters are an experiment's: short lives, so that
//! losses happen while we look.

use super::{Effort, Section, Table, in_parallel, table::short};
use crate::{
    closed::{
        chain::{self, Pace, Scheme},
        patient,
    },
    event::{self, Calamity, HOURS_PER_YEAR, Margin, Outages, Outcome, Scenario, Storm, Victims},
    law::RepairLaw,
    logmath,
    random::Lifetime,
    svg::{Axis, Chart, Series, Style},
};

const MONTH_H: f64 = 730.5;

/// 97 absences for each death, half of them shorter than 20 minutes, on average 29 hours: the
/// PlanetLab trace of Chun et al. (NSDI 2006), as far as two parameters can follow it.
pub(super) const PLANETLAB: Outages =
    Outages { per_year: 34.0, median_hours: 1208.0 / 3600.0, sigma: 2.99 };

/// Mean time of a repair, once begun.
const REPAIR_HOURS: f64 = 12.0;

pub(super) fn base(effort: Effort, law: RepairLaw) -> Option<Scenario> {
    let life = Lifetime::new(2.0 * MONTH_H, 1.0).ok()?;
    let full = effort == Effort::Full;
    let nodes = if full { 1000 } else { 100 };
    let product = Scenario::product(nodes, "10+6".parse().ok()?, life, REPAIR_HOURS, law).ok()?;
    Some(Scenario {
        chunks: if full { 4000 } else { 300 },
        years: if full { 4.0 } else { 0.5 },
        ..product
    })
}

/// What is changed, and how.
type Change = (&'static str, fn(&mut Scenario));

const CHANGES: [Change; 12] = [
    ("nothing but single deaths", |_| {}),
    ("Weibull lives, shape 0.6", |s| {
        if let Ok(life) = Lifetime::new(s.life.mean(), 0.6) {
            s.life = life;
        }
    }),
    ("absences like PlanetLab's", |s| s.outages = Some(PLANETLAB)),
    ("the same, without the freeze", |s| {
        s.outages = Some(PLANETLAB);
        s.freeze_share = None;
    }),
    ("every month 5 % of the nodes lose all at once", |s| s.calamities = vec![burst(s, 0.05, 1.0)]),
    ("every month 20 % are cut off for 48 h", |s| {
        s.calamities = vec![burst(s, 0.2, 0.0)];
    }),
    ("the same, without the freeze", |s| {
        s.calamities = vec![burst(s, 0.2, 0.0)];
        s.freeze_share = None;
    }),
    ("20 zones, one down for 24 h a week, 1 % of it lost", |s| {
        s.zones = 20;
        let week = HOURS_PER_YEAR / 168.0;
        s.calamities =
            vec![Calamity { per_year: week, victims: Victims::Zone, hours: 24.0, permanent: 0.01 }];
    }),
    ("5 % of the nodes throw all away, found in 30 days", |s| {
        s.malicious = 0.05;
        s.audit_hours = 720.0;
    }),
    ("bandwidth for repair is 1.1 times the mean need", |s| s.budget = Some(1.1 * need(s))),
    ("the same, and 5 % lose all at once every month", |s| {
        s.budget = Some(1.1 * need(s));
        s.calamities = vec![burst(s, 0.05, 1.0)];
    }),
    ("half as many again join at once", |s| {
        s.storm = Some(Storm { at_hours: 1000.0, nodes: s.nodes / 2 });
    }),
];

/// Bytes an hour that each node sends and receives for repair, on average, by the closed form.
fn need(scenario: &Scenario) -> f64 {
    let user_bytes = scenario.chunks as f64 * scenario.chunk_bytes;
    let patience = scenario.patience_hours.unwrap_or(f64::INFINITY);
    let moved = patient::repair_traffic(scenario.scheme, pace(scenario), patience) * user_bytes;
    2.0 * moved / scenario.nodes as f64
}

/// Detection is part of the repair time.
fn pace(scenario: &Scenario) -> Pace {
    Pace { life: scenario.life.mean(), repair: scenario.dead_after_hours + scenario.repair_hours }
}

fn burst(scenario: &Scenario, share: f64, permanent: f64) -> Calamity {
    // A share of nodes is far below 2^52.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let nodes = (scenario.nodes as f64 * share).round() as usize;
    Calamity { per_year: 12.0, victims: Victims::Nodes(nodes), hours: 48.0, permanent }
}

/// Nines as simulated, or what the absence of losses says.
pub(crate) fn nines(out: &Outcome) -> String {
    let (loss, is_bound) = out.loss_per_chunk_year();
    let nines = -loss.log10();
    if is_bound { format!("> {nines:.2}") } else { format!("{nines:.2}") }
}

pub(super) fn compared(effort: Effort) -> Section {
    let mut runs: Vec<(Change, RepairLaw)> = Vec::new();
    for change in CHANGES {
        runs.extend(RepairLaw::BOTH.map(|law| (change, law)));
    }
    let outcomes = in_parallel(&runs, |((_, change), law)| {
        let mut scenario = base(effort, *law)?;
        change(&mut scenario);
        event::run(&scenario).ok().map(|out| (scenario, out))
    });
    let mut table = Table::new(&[
        "what happens",
        "repair-time law",
        "nines of a chunk-year",
        "losses of arcs",
        "bytes moved per stored byte and year",
        "repair bytes, busiest day over the mean",
        "rebuilt although the old holder lives",
        "deaths put off, times",
        "shards made around nodes that were down",
        "margin ≤ 2 shards, share of time",
    ]);
    for (((what, _), law), run) in runs.iter().zip(outcomes) {
        let Some((scenario, out)) = run else { continue };
        let mean_day =
            out.repair_bytes / (scenario.years * HOURS_PER_YEAR / 24.0) / scenario.nodes as f64;
        table.row([
            (*what).to_owned(),
            law.to_string(),
            nines(&out),
            out.losses.to_string(),
            format!("{:.2}", out.repair_ratio(scenario.years)),
            format!("{:.2}", out.peak_day_node_bytes / mean_day),
            format!("{:.1} %", 100.0 * out.false_rebuilt as f64 / out.shards_rebuilt.max(1) as f64),
            out.frozen.to_string(),
            out.emergencies.to_string(),
            short(out.thin_chunk_hours / (out.chunk_years * HOURS_PER_YEAR)),
        ]);
    }
    let text =
        base(effort, RepairLaw::Fixed).map_or(String::new(), |s| head(&s)) + &table.markdown();
    Section { title: "What failures in common do", text, tables: vec![table], charts: Vec::new() }
}

/// What the table of scenarios is about.
fn head(s: &Scenario) -> String {
    let patience = s.patience_hours.unwrap_or(f64::INFINITY);
    let [a, c] = RepairLaw::BOTH.map(|law| {
        let ln_mttdl = patient::ln_mttdl(s.scheme, pace(s), patience, law);
        logmath::nines(chain::ln_loss_within(ln_mttdl, HOURS_PER_YEAR, 1.0))
    });
    format!(
        "{} nodes, {} chunks of 10+6 on the arcs of the core's ring, {} years, seed {}. Repair is asked \
         for by the core's policy with its defaults: at {} live shards, after {} h of patience, or when \
         k+{} or fewer are in reach for {:.0} min. Mean life of a node: 2 months. Declared dead after \
         {} h, then repaired in {} h on average. Nobody is declared dead while more than {} % or a \
         whole zone are down, for at most {} h. Each node has as many bytes a second for repair as it takes, \
         unless it says otherwise. The closed forms with τ = {} h and the same patience, for \
         independent deaths: {a:.2} exponential, {c:.2} fixed. Detection and patience are always the \
         same, so the exponential law governs a part of the wait only. All chunks of an arc are lost \
         together: the number of losses, not of chunks, says how exact a figure is. \"Rebuilt although \
         the old holder lives\" counts shards whose holder was only away. A figure with > is a bound \
         from no loss at all.\n\n",
        s.nodes,
        s.chunks,
        s.years,
        s.seed,
        s.scheme.threshold(),
        patience,
        s.lines().thin - s.lines().needed,
        60.0 * s.down_after_hours.unwrap_or(0.0),
        s.dead_after_hours,
        s.repair_hours,
        100.0 * s.freeze_share.unwrap_or(1.0),
        s.freeze_hours,
        s.dead_after_hours + s.repair_hours,
    )
}

pub(super) fn margin(effort: Effort) -> Section {
    let law = RepairLaw::Exponential;
    let run = base(effort, law).and_then(|base| {
        let scenario = Scenario {
            years: 1.0,
            samples: if effort == Effort::Full { 365 } else { 20 },
            life: Lifetime::new(6.0 * MONTH_H, 1.0).ok()?,
            outages: Some(PLANETLAB),
            zones: 20,
            calamities: vec![
                Calamity { per_year: 6.0, victims: Victims::Zone, hours: 24.0, permanent: 0.01 },
                burst(&base, 0.1, 0.5),
            ],
            ..base
        };
        event::run(&scenario).ok().map(|out| (scenario, out))
    });
    let Some((scenario, out)) = run else {
        return Section {
            title: "Margin over time",
            text: String::new(),
            tables: Vec::new(),
            charts: Vec::new(),
        };
    };
    let series = |name: &str, colour, style, of: &dyn Fn(&Margin) -> f64| Series {
        name: name.to_owned(),
        points: out.margins.iter().map(|margin| (margin.hours / 24.0, of(margin))).collect(),
        colour,
        style,
    };
    let chart = Chart {
        title: format!("Live shards of 10+6 in a rough year, {law} repair times"),
        x: Axis::linear("days"),
        y: Axis::linear("shards"),
        series: vec![
            series("existing, mean", 0, Style::Line, &|margin| margin.live_mean),
            series("existing, worst arc", 1, Style::Line, &|margin| margin.live_min as f64),
            series("in reach, worst arc", 2, Style::Line, &|margin| margin.online_min as f64),
            series("k", 6, Style::Dashed, &|_| scenario.scheme.data() as f64),
        ],
    };
    let unreadable: u64 = out.margins.iter().map(|margin| margin.unavailable).sum();
    let looks = (out.margins.len() * scenario.chunks).max(1);
    let text = format!(
        "The network above with mean lives of 6 months, absences like PlanetLab's, 20 zones of \
         which one is down for 24 h six times a year (1 % of its nodes lost), and bursts that strike \
         10 % of all nodes twelve times a year (half of them lost). {law} repair-time law, seed {}. \
         {} chunks lost in {} losses of arcs; {} of all looks found a chunk out of reach; {} nodes \
         were declared dead and came back; {} declarations were put off.\n",
        scenario.seed,
        out.lost_chunks,
        out.losses,
        short(unreadable as f64 / looks as f64),
        out.false_deaths,
        out.frozen,
    );
    Section { title: "Margin over time", text, tables: Vec::new(), charts: vec![("margin", chart)] }
}

/// How the work grows with the network.
pub(super) fn cost(effort: Effort) -> Section {
    let sizes: &[usize] = if effort == Effort::Full { &[100, 1000, 10_000] } else { &[100, 300] };
    let mut table = Table::new(&[
        "nodes",
        "events",
        "shards looked at per event",
        "longest queue",
        "steps in the queue per event, log2",
    ]);
    let outs = in_parallel(sizes, |&nodes| {
        let scheme = Scheme::new(10, 16, 13).ok()?;
        let life = Lifetime::new(HOURS_PER_YEAR, 1.0).ok()?;
        let scenario = Scenario {
            chunks: nodes * 4,
            ..Scenario::plain(nodes, scheme, life, 24.0, RepairLaw::Exponential)
        };
        event::run(&scenario).ok()
    });
    for (nodes, out) in sizes.iter().zip(outs) {
        let Some(out) = out else { continue };
        table.row([
            nodes.to_string(),
            out.events.to_string(),
            format!("{:.1}", out.touches as f64 / out.events.max(1) as f64),
            out.queue_max.to_string(),
            format!("{:.1}", (out.queue_max.max(1) as f64).log2()),
        ]);
    }
    let text = format!(
        "A year of 10+6 with deaths and repairs alone, repair at 13 live shards, four chunks a node, mean life \
         1 year, exponential repair-time law with a mean of 24 h, seed 1. An event costs one step through a binary heap and \
         the shards of one node or one stripe; the latter do not grow with the network. \
         What that took on a machine, and how the cost of an event grew, is in \
         [benchmarks.md](benchmarks.md#simulated-years).\n\n{}",
        table.markdown()
    );
    Section { title: "What a simulation costs", text, tables: vec![table], charts: Vec::new() }
}
