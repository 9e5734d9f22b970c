//! `copse-sim durability`: one experiment, under one repair-time law or both.
//!
//! Owns its arguments and how its results are shown. The closed form, the simulation and the
//! splitting stand side by side, each with its law. The one idea: what is not said is as in the product,
//! and the output says which settings it was found with.

use core::time::Duration;

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use copse_core::geometry::Geometry;
use copse_sim::{
    closed::{
        chain::{self, Pace, Scheme, SchemeError},
        patient,
    },
    event::{
        self, Calamity, HOURS_PER_YEAR, NODES_MAX, Outages, Outcome, Scenario, Storm, Unit, Victims,
    },
    law::RepairLaw,
    logmath,
    random::Lifetime,
    report::{Table, short},
    splitting::{self, Estimate, Splitting},
    units::{self, Brief, UnitError},
};
use serde_json::{Value, json};

use super::{
    Failure,
    numbers::{OrNever, or_never, parts, positive_or_zero, whole},
    print, print_json, wrong, wrong_input,
};

/// Repetitions of the splitting, for its error.
const SPLITTING_RUNS: usize = 8;

/// From a death to full strength, on average, unless told otherwise: as in docs/durability.md. Not the
/// product's: how fast nodes repair follows from their lines and from what they hold.
const TAU_HOURS: f64 = 24.0;

/// Takes the product's settings, read from the product, for all that is not said.
#[derive(Args)]
pub(super) struct Arguments {
    /// Instead of the product's settings, nothing but deaths and repairs, as the closed forms have it: all is
    /// repaired at the first loss, noticed at once, by the dead alone, without patience and without a freeze.
    #[arg(long)]
    plain: bool,
    /// Nodes of the network, at any time.
    #[arg(long, default_value_t = 1000, value_parser = whole::<usize, 2, { NODES_MAX as u64 }>)]
    nodes: usize,
    /// DATA+PARITY [default: what `copse put` uses in a network of so many nodes, 10+6 from 16 on]
    #[arg(long)]
    geometry: Option<Geometry>,
    /// Repair begins when so many shards or fewer are left [default: the product's, 13 for 10+6; with --plain
    /// all but one]
    #[arg(long, value_parser = whole::<usize, 1, 254>)]
    threshold: Option<usize>,
    /// Mean life of a node.
    #[arg(long, value_parser = units::hours, default_value = "1year")]
    life: f64,
    /// Weibull's shape of lives: 1 is exponential, 0.5 to 0.8 is many early deaths; 0.2 to 10.
    #[arg(long, default_value_t = 1.0, value_parser = positive_or_zero)]
    shape: f64,
    /// Mean time of a repair, once begun [default: 20h; with --plain 24h: in both, 24h from a death on]
    #[arg(long, value_parser = units::hours)]
    repair: Option<f64>,
    /// The law of that time.
    #[arg(long, value_parser = laws(), default_value = BOTH)]
    law: Laws,
    /// A node that is away for so long is declared dead [default: the product's, 4h; with --plain 0h]
    #[arg(long, value_parser = units::hours)]
    dead_after: Option<f64>,
    /// A shard that was missing for so long is rebuilt although more than the threshold are left; never: the
    /// threshold alone decides [default: the product's, 1d; with --plain never]
    #[arg(long, value_name = "TIME|never", value_parser = hours_or_never)]
    patience: Option<OrNever<f64>>,
    /// A node that is away for so long is down: stripes that are thin without it are repaired around it;
    /// never: only the dead are missed [default: the product's, 5min; with --plain never]
    #[arg(long, value_name = "TIME|never", value_parser = hours_or_never)]
    down_after: Option<OrNever<f64>>,
    /// A dead node is replaced after so long.
    #[arg(long, value_parser = units::hours, default_value = "0h")]
    replace: f64,
    /// Chunks stored.
    #[arg(long, default_value_t = 100_000, value_parser = whole::<usize, 1, 4_000_000_000>)]
    chunks: usize,
    /// Time to simulate; 0h for the closed form alone.
    #[arg(long, value_parser = units::hours, default_value = "5years")]
    time: f64,
    /// Give every chunk its own repairs, instead of every arc of the ring.
    #[arg(long)]
    single_chunks: bool,
    /// How often each node is away, per year.
    #[arg(long, default_value_t = 0.0, value_parser = positive_or_zero)]
    absences: f64,
    /// Half of the absences are shorter.
    #[arg(long, value_parser = units::hours, default_value = "20min")]
    absence_median: f64,
    /// Standard deviation of the logarithm of their length.
    #[arg(long, default_value_t = 2.0, value_parser = positive_or_zero)]
    absence_sigma: f64,
    /// Equal zones; 0 for none.
    #[arg(long, default_value_t = 0, value_parser = whole::<usize, 0, 65_535>)]
    zones: usize,
    /// RATE,TIME,SHARE: a whole zone is away so often a year, for so long, and this share of it is
    /// lost: 2,24h,1%.
    #[arg(long, value_name = "RATE,TIME,SHARE", value_parser = zone_outage)]
    zone_outage: Option<Calamity>,
    /// RATE,NODES,TIME,SHARE: so many random nodes are away together: 12,50,48h,100%.
    #[arg(long, value_name = "RATE,NODES,TIME,SHARE", value_parser = burst)]
    burst: Vec<Calamity>,
    /// Share of the nodes that throw everything away.
    #[arg(long, value_parser = units::share, default_value = "0%")]
    malicious: f64,
    /// Mean time until an audit finds one of those.
    #[arg(long, value_parser = units::hours, default_value = "30days")]
    audit: f64,
    /// TIME,NODES: so many join at once: 6months,500.
    #[arg(long, value_name = "TIME,NODES", value_parser = storm)]
    storm: Option<Storm>,
    /// What each node's line can send: repair takes the product's share of it, each way [default: as the
    /// product's, not told; repair then has no bound]
    #[arg(long, value_name = "RATE", value_parser = units::rate)]
    uplink: Option<f64>,
    /// What each node spends on repair, sending and receiving: 1Mbit.
    #[arg(long, value_name = "RATE", value_parser = units::rate, conflicts_with = "uplink")]
    budget: Option<f64>,
    /// Nobody is declared dead while more than this share, or a whole zone, is down together; never: deaths
    /// are not put off [default: the product's, 15%; with --plain never]
    #[arg(long, value_name = "SHARE|never", value_parser = share_or_never)]
    freeze: Option<OrNever<f64>>,
    /// For so long at most [default: the product's, 1d]
    #[arg(long, value_parser = units::hours)]
    freeze_time: Option<f64>,
    /// Also estimate rare losses by splitting, with so many trajectories on each level. It knows thresholds
    /// and no patience: say --patience never, or --plain.
    #[arg(long, default_value_t = 0, value_parser = whole::<usize, 0, 10_000_000>)]
    splitting: usize,
    /// One seed, one world.
    #[arg(long, default_value_t = 1, value_parser = whole::<u64, 0, { u64::MAX }>)]
    seed: u64,
}

/// What `--law` takes for both laws.
const BOTH: &str = "both";

#[derive(Clone)]
struct Laws(Vec<RepairLaw>);

/// A law by its name, or both; what is neither is told all that may be written.
fn laws() -> impl TypedValueParser<Value = Laws> {
    let names = RepairLaw::BOTH.map(RepairLaw::name);
    PossibleValuesParser::new(names.into_iter().chain([BOTH])).map(|name| {
        let named = RepairLaw::BOTH.into_iter().filter(|law| name == BOTH || law.name() == name);
        Laws(named.collect())
    })
}

fn hours_or_never(text: &str) -> Result<OrNever<f64>, String> {
    or_never(text, units::hours)
}

fn share_or_never(text: &str) -> Result<OrNever<f64>, String> {
    or_never(text, units::share)
}

fn spelled(error: UnitError) -> String {
    error.to_string()
}

fn zone_outage(text: &str) -> Result<Calamity, String> {
    let [rate, time, share] = parts(text, "2,24h,1%")?;
    Ok(Calamity {
        per_year: positive_or_zero(rate)?,
        victims: Victims::Zone,
        hours: units::hours(time).map_err(spelled)?,
        permanent: units::share(share).map_err(spelled)?,
    })
}

fn burst(text: &str) -> Result<Calamity, String> {
    let [rate, nodes, time, share] = parts(text, "12,50,48h,100%")?;
    Ok(Calamity {
        per_year: positive_or_zero(rate)?,
        victims: Victims::Nodes(whole::<usize, 1, { NODES_MAX as u64 }>(nodes)?),
        hours: units::hours(time).map_err(spelled)?,
        permanent: units::share(share).map_err(spelled)?,
    })
}

fn storm(text: &str) -> Result<Storm, String> {
    let [time, nodes] = parts(text, "6months,500")?;
    let nodes = whole::<usize, 1, { NODES_MAX as u64 }>(nodes)?;
    Ok(Storm { at_hours: units::hours(time).map_err(spelled)?, nodes })
}

/// What one law led to.
struct Answer {
    law: RepairLaw,
    closed_ln_mttdl_hours: f64,
    simulated: Option<Outcome>,
    split: Option<Option<Estimate>>,
}

pub(super) fn run(arguments: &Arguments, as_json: bool) -> Result<(), Failure> {
    let experiment = Experiment::of(arguments)?;
    let answers = std::thread::scope(|scope| {
        let running: Vec<_> = arguments
            .law
            .0
            .iter()
            .map(|&law| (law, &experiment))
            .map(|(law, experiment)| scope.spawn(move || answer(arguments, experiment, law)))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a simulation panicked".to_owned())?)
            .collect::<Result<Vec<Answer>, String>>()
    })?;
    if as_json {
        print_json(&as_value(&experiment, &answers))
    } else {
        print(&as_text(&experiment, &answers))
    }
}

/// What was asked for, with all that was not said.
struct Experiment {
    geometry: Geometry,
    /// Of any law: each answer has its own.
    scenario: Scenario,
    /// What would be simulated if nothing was said.
    base: Scenario,
    is_plain: bool,
}

impl Experiment {
    fn of(arguments: &Arguments) -> Result<Self, Failure> {
        let nodes = arguments.nodes;
        let geometry = arguments.geometry.or_else(|| Geometry::default_for(nodes));
        let geometry =
            geometry.ok_or_else(|| wrong("one node is no network: take --nodes 2 or more"))?;
        if geometry.parity() == 0 {
            return Err(wrong(format!(
                "--geometry {geometry} has no parity, and any death loses data: take DATA+1 or more"
            )));
        }
        let life = Lifetime::new(arguments.life, arguments.shape).map_err(wrong_input)?;
        let law = RepairLaw::BOTH[0];
        let base = if arguments.plain {
            let eager = Scheme::eager(geometry.data(), geometry.total()).map_err(wrong_input)?;
            Scenario::plain(nodes, eager, life, TAU_HOURS, law)
        } else {
            Scenario::product(nodes, geometry, life, TAU_HOURS, law).map_err(wrong_input)?
        };
        // The times of the product are hours and minutes: what is left is more than nothing.
        let base = Scenario { repair_hours: TAU_HOURS - base.dead_after_hours, ..base };
        let scenario =
            arguments.scenario(&base).map_err(|SchemeError { data, total, threshold }| {
                let most = total - 1;
                wrong(format!(
                    "--threshold {threshold} is none for {geometry}: take {data} to {most}"
                ))
            })?;
        if arguments.splitting > 0 && scenario.patience_hours.is_some() {
            return Err(wrong(
                "--splitting knows thresholds and no patience: say --patience never, or --plain",
            ));
        }
        if arguments.time > 0.0 {
            scenario.check().map_err(wrong_input)?;
        } else {
            // The closed forms know no network, but times must be times.
            Scenario { years: 1.0, ..scenario.clone() }.check().map_err(wrong_input)?;
        }
        Ok(Self { geometry, scenario, base, is_plain: arguments.plain })
    }

    /// From a death to full strength, on average.
    fn tau_hours(&self) -> f64 {
        self.scenario.dead_after_hours + self.scenario.repair_hours
    }

    fn pace(&self) -> Pace {
        Pace { life: self.scenario.life.mean(), repair: self.tau_hours() }
    }

    /// Bytes moved per byte and year.
    fn closed_traffic(&self) -> f64 {
        let Scenario { scheme, patience_hours, .. } = self.scenario;
        let moved = match patience_hours {
            None => chain::repair_traffic(scheme, self.pace().life),
            Some(patience) => patient::repair_traffic(scheme, self.pace(), patience),
        };
        moved * HOURS_PER_YEAR
    }

    /// The settings that are not those of the base, by their arguments.
    fn changed(&self) -> Vec<&'static str> {
        let (is, base) = (&self.scenario, &self.base);
        [
            ("threshold", is.scheme != base.scheme),
            ("dead-after", is.dead_after_hours != base.dead_after_hours),
            ("patience", is.patience_hours != base.patience_hours),
            ("down-after", is.down_after_hours != base.down_after_hours),
            ("freeze", is.freeze_share != base.freeze_share),
            ("freeze-time", is.freeze_share.is_some() && is.freeze_hours != base.freeze_hours),
            ("budget", is.budget != base.budget),
        ]
        .into_iter()
        .filter_map(|(name, is_other)| is_other.then_some(name))
        .collect()
    }

    fn settings_json(&self) -> Value {
        let is = &self.scenario;
        json!({
            "base": if self.is_plain { "plain" } else { "product" },
            "changed": self.changed(),
            "threshold_shards": is.scheme.threshold(),
            "patience_hours": is.patience_hours,
            "dead_after_hours": is.dead_after_hours,
            "down_after_hours": is.down_after_hours,
            "thin_shards": is.down_after_hours.map(|_| is.lines().thin),
            "freeze_share": is.freeze_share,
            "freeze_hours_max": is.freeze_share.map(|_| is.freeze_hours),
            "repair_budget_bytes_per_second_node": is.budget.map(|budget| budget / 3600.0),
        })
    }

    /// With which settings, in sentences.
    fn settings_text(&self) -> String {
        let is = &self.scenario;
        let base = if self.is_plain { "plain: deaths and repairs alone" } else { "the product's" };
        let but = match self.changed().as_slice() {
            [] => String::new(),
            some => format!(", but for {}", some.join(", ")),
        };
        let time = |hours: f64| {
            Brief(Duration::try_from_secs_f64(hours * 3600.0).unwrap_or(Duration::MAX))
        };
        let mut when = format!("repair at {} live shards", is.scheme.threshold());
        if let Some(hours) = is.patience_hours {
            when += &format!(", when one has been missing for {}", time(hours));
        }
        if let Some(hours) = is.down_after_hours {
            when += &format!(", or with {} in reach for {}", is.lines().thin, time(hours));
        }
        let freeze = is.freeze_share.map_or("deaths are never put off".to_owned(), |share| {
            format!(
                "nobody while more than {} % or a whole zone are down, for at most {}",
                short(100.0 * share),
                time(is.freeze_hours)
            )
        });
        let budget = is.budget.map_or("no bound on repair traffic".to_owned(), |budget| {
            format!("{} kB/s of each node for repair", short(budget / 3.6e6))
        });
        format!(
            "settings: {base}{but}\n  {when}\n  dead after {}; {freeze}; {budget}\n",
            time(is.dead_after_hours)
        )
    }
}

impl Arguments {
    fn scenario(&self, base: &Scenario) -> Result<Scenario, SchemeError> {
        let outages = Outages {
            per_year: self.absences,
            median_hours: self.absence_median,
            sigma: self.absence_sigma,
        };
        let (data, total) = (base.scheme.data(), base.scheme.total());
        let threshold = self.threshold.unwrap_or(base.scheme.threshold());
        let dead_after_hours = self.dead_after.unwrap_or(base.dead_after_hours);
        let or = |said: Option<OrNever<f64>>, base| said.map_or(base, |OrNever(said)| said);
        Ok(Scenario {
            scheme: Scheme::new(data, total, threshold)?,
            chunks: self.chunks,
            unit: if self.single_chunks { Unit::Chunk } else { Unit::Arc },
            years: self.time / HOURS_PER_YEAR,
            dead_after_hours,
            patience_hours: or(self.patience, base.patience_hours),
            down_after_hours: or(self.down_after, base.down_after_hours),
            repair_hours: self.repair.unwrap_or(base.repair_hours),
            replace_hours: self.replace,
            outages: (self.absences > 0.0).then_some(outages),
            zones: self.zones,
            calamities: self.zone_outage.iter().chain(&self.burst).copied().collect(),
            malicious: self.malicious,
            audit_hours: self.audit,
            storm: self.storm,
            budget: self.budget.or(self.uplink.map(event::budget_of_line)).or(base.budget),
            freeze_share: or(self.freeze, base.freeze_share),
            freeze_hours: self.freeze_time.unwrap_or(base.freeze_hours),
            seed: self.seed,
            ..base.clone()
        })
    }
}

fn answer(
    arguments: &Arguments,
    experiment: &Experiment,
    law: RepairLaw,
) -> Result<Answer, String> {
    let scenario = Scenario { law, ..experiment.scenario.clone() };
    let simulated = if arguments.time > 0.0 {
        Some(event::run(&scenario).map_err(|error| error.to_string())?)
    } else {
        None
    };
    let split = (arguments.splitting > 0).then(|| {
        splitting::estimate(Splitting {
            scheme: scenario.scheme,
            life: scenario.life,
            repair_hours: experiment.tau_hours(),
            law,
            effort: arguments.splitting,
            runs: SPLITTING_RUNS,
            seed: scenario.seed,
        })
    });
    let closed_ln_mttdl_hours = match scenario.patience_hours {
        None => chain::ln_mttdl(scenario.scheme, experiment.pace(), law),
        Some(patience) => patient::ln_mttdl(scenario.scheme, experiment.pace(), patience, law),
    };
    Ok(Answer { law, closed_ln_mttdl_hours, simulated, split })
}

fn year_nines(ln_mttdl_hours: f64) -> f64 {
    logmath::nines(chain::ln_loss_within(ln_mttdl_hours, HOURS_PER_YEAR, 1.0))
}

fn as_value(experiment: &Experiment, answers: &[Answer]) -> Value {
    let is = &experiment.scenario;
    let laws: Vec<Value> = answers.iter().map(|answer| law_value(experiment, answer)).collect();
    json!({
        "settings": experiment.settings_json(),
        "nodes": is.nodes,
        "geometry": experiment.geometry.to_string(),
        "life_hours_mean": is.life.mean(),
        "weibull_shape": is.life.shape(),
        "tau_hours_mean": experiment.tau_hours(),
        "repair_hours_mean": is.repair_hours,
        "chunks": is.chunks,
        "years": is.years,
        "seed": is.seed,
        "laws": laws,
    })
}

fn law_value(experiment: &Experiment, answer: &Answer) -> Value {
    let is = &experiment.scenario;
    let simulated = answer.simulated.as_ref().map(|out| {
        let (loss, is_bound) = out.loss_per_chunk_year();
        json!({
            "loss_per_chunk_year": loss,
            "is_upper_bound": is_bound,
            "nines": -loss.log10(),
            "lost_chunks": out.lost_chunks,
            "losses": out.losses,
            "deaths": out.deaths,
            "false_deaths": out.false_deaths,
            "deaths_put_off": out.frozen,
            "shards_made_in_emergencies": out.emergencies,
            "repairs": out.repairs,
            "repairs_stalled": out.stalled,
            "shards_rebuilt": out.shards_rebuilt,
            "shards_rebuilt_in_vain": out.false_rebuilt,
            "repair_bytes_per_byte_year": out.repair_ratio(is.years),
            "repair_bytes_per_second_node": out.node_bytes_per_second(is.nodes, is.years),
            "busiest_day_bytes_per_node": out.peak_day_node_bytes,
            "join_bytes": out.join_bytes,
            "thin_share_of_time": out.thin_chunk_hours / (out.chunk_years * HOURS_PER_YEAR),
            "load_max_over_mean": out.load_max,
            "load_deviation": out.load_deviation,
            "events": out.events,
            "shards_looked_at": out.touches,
            "queue_max": out.queue_max,
        })
    });
    let split = answer.split.map(|estimate| match estimate {
        Some(estimate) => json!({
            "nines": year_nines(estimate.ln_mttdl_hours),
            "standard_error_nines": estimate.error / core::f64::consts::LN_10,
        }),
        None => json!({ "nines": null, "advice": "no trajectory got through: more effort" }),
    });
    json!({
        "repair_time_law": answer.law.name(),
        "closed_form": {
            "nines": year_nines(answer.closed_ln_mttdl_hours),
            "ln_mttdl_years": answer.closed_ln_mttdl_hours - HOURS_PER_YEAR.ln(),
            "repair_bytes_per_byte_year":
                experiment.closed_traffic(),
            "assumes": "independent exponential lives, detection part of the repair time, nothing \
                        repaired around nodes that are only down, no freeze, no bound on traffic",
        },
        "simulated": simulated,
        "splitting": split,
    })
}

fn as_text(experiment: &Experiment, answers: &[Answer]) -> String {
    let is = &experiment.scenario;
    let mut head = vec![String::new()];
    head.extend(answers.iter().map(|answer| format!("{} repair times", answer.law)));
    let mut table = Table::new(&head.iter().map(String::as_str).collect::<Vec<_>>());
    let mut row = |what: &str, of: &dyn Fn(&Answer) -> String| {
        table.row(core::iter::once(what.to_owned()).chain(answers.iter().map(of)));
    };
    row("nines a chunk-year, closed form", &|answer| {
        format!("{:.2}", year_nines(answer.closed_ln_mttdl_hours))
    });
    row("repair bytes per byte and year, closed form", &|_| short(experiment.closed_traffic()));
    if answers.iter().any(|answer| answer.split.is_some()) {
        row("nines a chunk-year, splitting", &|answer| match answer.split.flatten() {
            Some(estimate) => format!(
                "{:.2} ± {:.2}",
                year_nines(estimate.ln_mttdl_hours),
                estimate.error / core::f64::consts::LN_10
            ),
            None => "none got through".to_owned(),
        });
    }
    let mut simulated = |what: &str, of: &dyn Fn(&Outcome) -> String| {
        if is.years > 0.0 {
            row(what, &|answer| answer.simulated.as_ref().map_or(String::new(), of));
        }
    };
    simulated("nines a chunk-year, simulated", &|out| {
        let (loss, is_bound) = out.loss_per_chunk_year();
        format!("{}{:.2}", if is_bound { "> " } else { "" }, -loss.log10())
    });
    simulated("losses of stripes (and of chunks)", &|out| {
        format!("{} ({} chunks)", out.losses, out.lost_chunks)
    });
    simulated("repair bytes per byte and year", &|out| short(out.repair_ratio(is.years)));
    simulated("repair traffic of a node, kB/s", &|out| {
        short(out.node_bytes_per_second(is.nodes, is.years) / 1e3)
    });
    simulated("the same on the busiest day, kB/s", &|out| {
        short(out.peak_day_node_bytes / 86_400.0 / 1e3)
    });
    simulated("nodes dead", &|out| out.deaths.to_string());
    simulated("declared dead, but came back", &|out| out.false_deaths.to_string());
    simulated("declarations put off", &|out| out.frozen.to_string());
    simulated("shards rebuilt", &|out| out.shards_rebuilt.to_string());
    simulated("of them in vain", &|out| out.false_rebuilt.to_string());
    simulated("copied to newcomers, GB", &|out| short(out.join_bytes / 1e9));
    simulated("share of time with a margin of two shards or less", &|out| {
        short(out.thin_chunk_hours / (out.chunk_years * HOURS_PER_YEAR))
    });
    simulated("load of a node, most over mean", &|out| format!("{:.2}", out.load_max));
    simulated("events", &|out| out.events.to_string());
    let years = if is.years > 0.0 {
        format!("{:.2} years simulated", is.years)
    } else {
        "nothing simulated".to_owned()
    };
    format!(
        "{} nodes, {}, {} chunks, {}, mean life {} h (Weibull shape {}), seed {}\n\
         {}\
         τ = {} h on average, of which {} h until a node is declared dead; the law is that of the rest\n\n{}\n\
         The closed form knows independent, exponential deaths only, and neither thin stripes nor a\n\
         freeze. Nines above about 11 rank schemes; what is lost then is lost to what many nodes have\n\
         in common.\n",
        is.nodes,
        experiment.geometry,
        is.chunks,
        years,
        short(is.life.mean()),
        is.life.shape(),
        is.seed,
        experiment.settings_text(),
        short(experiment.tau_hours()),
        short(is.dead_after_hours),
        table.plain(),
    )
}
