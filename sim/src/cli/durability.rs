//! `copse-sim durability`: one experiment, under one repair-time law or both.
//!
//! Owns its arguments and how its results are shown. The closed form, the simulation and the
//! splitting stand side by side, each with its law.

use clap::Args;
use copse_core::geometry::Geometry;
use copse_sim::{
    closed::{
        chain::{self, Pace, Scheme},
        patient,
    },
    event::{self, Calamity, HOURS_PER_YEAR, Outages, Outcome, Scenario, Storm, Unit, Victims},
    law::{ParseLawError, RepairLaw},
    logmath,
    random::Lifetime,
    report::{Table, short},
    splitting::{self, Estimate, Splitting},
    units::{self, UnitError},
};
use serde_json::{Value, json};

use super::{Failure, print, print_json};

#[derive(Args)]
pub(super) struct Arguments {
    /// Nodes of the network, at any time.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// DATA+PARITY.
    #[arg(long, default_value = "10+6")]
    geometry: Geometry,
    /// Repair begins when so many shards or fewer are left; without it, with the first loss.
    #[arg(long)]
    threshold: Option<usize>,
    /// Mean life of a node.
    #[arg(long, value_parser = units::hours, default_value = "1year")]
    life: f64,
    /// Weibull's shape of lives: 1 is exponential, 0.5 to 0.8 is many early deaths.
    #[arg(long, default_value_t = 1.0)]
    shape: f64,
    /// Mean time of a repair, once begun.
    #[arg(long, value_parser = units::hours, default_value = "24h")]
    repair: f64,
    /// The law of that time: exponential, fixed or both.
    #[arg(long, value_parser = laws, default_value = "both")]
    law: Laws,
    /// A node that is away for so long is declared dead.
    #[arg(long, value_parser = units::hours, default_value = "0h")]
    dead_after: f64,
    /// A shard that was missing for so long is rebuilt although more than the threshold are left;
    /// without it, the threshold alone decides.
    #[arg(long, value_parser = units::hours)]
    patience: Option<f64>,
    /// A node that is away for so long is down: stripes that are thin without it are repaired around
    /// it. Without it, only the dead are missed.
    #[arg(long, value_parser = units::hours)]
    down_after: Option<f64>,
    /// A dead node is replaced after so long.
    #[arg(long, value_parser = units::hours, default_value = "0h")]
    replace: f64,
    /// Chunks stored.
    #[arg(long, default_value_t = 100_000)]
    chunks: usize,
    /// Time to simulate; 0h for the closed form alone.
    #[arg(long, value_parser = units::hours, default_value = "5years")]
    time: f64,
    /// Give every chunk its own repairs, instead of every arc of the ring.
    #[arg(long)]
    single_chunks: bool,
    /// How often each node is away, per year.
    #[arg(long, default_value_t = 0.0)]
    absences: f64,
    /// Half of the absences are shorter.
    #[arg(long, value_parser = units::hours, default_value = "20min")]
    absence_median: f64,
    /// Standard deviation of the logarithm of their length.
    #[arg(long, default_value_t = 2.0)]
    absence_sigma: f64,
    /// Equal zones; 0 for none.
    #[arg(long, default_value_t = 0)]
    zones: usize,
    /// RATE,TIME,SHARE: a whole zone is away so often a year, for so long, and this share of it is
    /// lost: 2,24h,1%.
    #[arg(long, value_parser = zone_outage)]
    zone_outage: Option<Calamity>,
    /// RATE,NODES,TIME,SHARE: so many random nodes are away together: 12,50,48h,100%.
    #[arg(long, value_parser = burst)]
    burst: Vec<Calamity>,
    /// Share of the nodes that throw everything away.
    #[arg(long, value_parser = units::share, default_value = "0%")]
    malicious: f64,
    /// Mean time until an audit finds one of those.
    #[arg(long, value_parser = units::hours, default_value = "30days")]
    audit: f64,
    /// TIME,NODES: so many join at once: 6months,500.
    #[arg(long, value_parser = storm)]
    storm: Option<Storm>,
    /// What each node spends on repair: 1Mbit. Without it there is no bound.
    #[arg(long, value_parser = units::rate)]
    budget: Option<f64>,
    /// Nobody is declared dead while more than this share is down together.
    #[arg(long, value_parser = units::share)]
    freeze: Option<f64>,
    /// For so long at most.
    #[arg(long, value_parser = units::hours, default_value = "72h")]
    freeze_time: f64,
    /// Also estimate rare losses by splitting, with so many trajectories on each level. It knows thresholds
    /// and no patience, so the two do not go together.
    #[arg(long, default_value_t = 0, conflicts_with = "patience")]
    splitting: usize,
    /// One seed, one world.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone)]
struct Laws(Vec<RepairLaw>);

fn laws(text: &str) -> Result<Laws, ParseLawError> {
    Ok(Laws(if text == "both" { RepairLaw::BOTH.to_vec() } else { vec![text.parse()?] }))
}

fn parts<const N: usize>(text: &str) -> Result<[&str; N], String> {
    let parts: Vec<&str> = text.split(',').collect();
    parts.try_into().map_err(|_| format!("{text:?}: write {N} values with commas between them"))
}

fn number<T: core::str::FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is no number"))
}

fn spelled(error: UnitError) -> String {
    error.to_string()
}

fn zone_outage(text: &str) -> Result<Calamity, String> {
    let [rate, time, share] = parts(text)?;
    Ok(Calamity {
        per_year: number(rate)?,
        victims: Victims::Zone,
        hours: units::hours(time).map_err(spelled)?,
        permanent: units::share(share).map_err(spelled)?,
    })
}

fn burst(text: &str) -> Result<Calamity, String> {
    let [rate, nodes, time, share] = parts(text)?;
    Ok(Calamity {
        per_year: number(rate)?,
        victims: Victims::Nodes(number(nodes)?),
        hours: units::hours(time).map_err(spelled)?,
        permanent: units::share(share).map_err(spelled)?,
    })
}

fn storm(text: &str) -> Result<Storm, String> {
    let [time, nodes] = parts(text)?;
    Ok(Storm { at_hours: units::hours(time).map_err(spelled)?, nodes: number(nodes)? })
}

/// What one law led to.
struct Answer {
    law: RepairLaw,
    closed_ln_mttdl_hours: f64,
    simulated: Option<Outcome>,
    split: Option<Option<Estimate>>,
}

pub(super) fn run(arguments: &Arguments, as_json: bool) -> Result<(), Failure> {
    let (data, total) = (arguments.geometry.data(), arguments.geometry.total());
    let scheme = Scheme::new(data, total, arguments.threshold.unwrap_or(total.saturating_sub(1)))?;
    let life = Lifetime::new(arguments.life, arguments.shape)?;
    let answers = std::thread::scope(|scope| {
        let running: Vec<_> = arguments
            .law
            .0
            .iter()
            .map(|&law| scope.spawn(move || answer(arguments, scheme, life, law)))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a simulation panicked".to_owned())?)
            .collect::<Result<Vec<Answer>, String>>()
    })?;
    if as_json {
        let laws: Vec<Value> =
            answers.iter().map(|answer| as_value(arguments, scheme, answer)).collect();
        return print_json(&json!({
            "nodes": arguments.nodes,
            "geometry": arguments.geometry.to_string(),
            "threshold": scheme.threshold(),
            "life_hours": arguments.life,
            "weibull_shape": arguments.shape,
            "tau_hours": arguments.dead_after + arguments.repair,
            "chunks": arguments.chunks,
            "years": arguments.time / HOURS_PER_YEAR,
            "seed": arguments.seed,
            "laws": laws,
        }));
    }
    print(&as_text(arguments, scheme, &answers))
}

fn scenario(arguments: &Arguments, scheme: Scheme, life: Lifetime, law: RepairLaw) -> Scenario {
    let outages = Outages {
        per_year: arguments.absences,
        median_hours: arguments.absence_median,
        sigma: arguments.absence_sigma,
    };
    Scenario {
        chunks: arguments.chunks,
        unit: if arguments.single_chunks { Unit::Chunk } else { Unit::Arc },
        years: arguments.time / HOURS_PER_YEAR,
        dead_after_hours: arguments.dead_after,
        patience_hours: arguments.patience,
        down_after_hours: arguments.down_after,
        replace_hours: arguments.replace,
        outages: (arguments.absences > 0.0).then_some(outages),
        zones: arguments.zones,
        calamities: arguments.zone_outage.iter().chain(&arguments.burst).copied().collect(),
        malicious: arguments.malicious,
        audit_hours: arguments.audit,
        storm: arguments.storm,
        budget: arguments.budget,
        freeze_share: arguments.freeze,
        freeze_hours: arguments.freeze_time,
        seed: arguments.seed,
        ..Scenario::plain(arguments.nodes, scheme, life, arguments.repair, law)
    }
}

fn answer(
    arguments: &Arguments,
    scheme: Scheme,
    life: Lifetime,
    law: RepairLaw,
) -> Result<Answer, String> {
    let tau = arguments.dead_after + arguments.repair;
    let pace = Pace { life: arguments.life, repair: tau };
    let simulated = if arguments.time > 0.0 {
        let out = event::run(&scenario(arguments, scheme, life, law));
        Some(out.map_err(|error| error.to_string())?)
    } else {
        None
    };
    let split = (arguments.splitting > 0).then(|| {
        splitting::estimate(Splitting {
            scheme,
            life,
            repair_hours: tau,
            law,
            effort: arguments.splitting,
            runs: 8,
            seed: arguments.seed,
        })
    });
    let closed_ln_mttdl_hours = match arguments.patience {
        None => chain::ln_mttdl(scheme, pace, law),
        Some(patience) => patient::ln_mttdl(scheme, pace, patience, law),
    };
    Ok(Answer { law, closed_ln_mttdl_hours, simulated, split })
}

/// Bytes moved per byte and year.
fn closed_traffic(arguments: &Arguments, scheme: Scheme) -> f64 {
    let moved = match arguments.patience {
        None => chain::repair_traffic(scheme, arguments.life),
        Some(patience) => {
            let repair = arguments.dead_after + arguments.repair;
            patient::repair_traffic(scheme, Pace { life: arguments.life, repair }, patience)
        }
    };
    moved * HOURS_PER_YEAR
}

fn year_nines(ln_mttdl_hours: f64) -> f64 {
    logmath::nines(chain::ln_loss_within(ln_mttdl_hours, HOURS_PER_YEAR, 1.0))
}

fn as_value(arguments: &Arguments, scheme: Scheme, answer: &Answer) -> Value {
    let simulated = answer.simulated.as_ref().map(|out| {
        let (loss, is_bound) = out.loss_per_chunk_year();
        let years = arguments.time / HOURS_PER_YEAR;
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
            "repair_bytes_per_byte_year": out.repair_ratio(years),
            "repair_bytes_per_second_node": out.node_bytes_per_second(arguments.nodes, years),
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
                closed_traffic(arguments, scheme),
            "assumes": "independent exponential lives, detection part of the repair time",
        },
        "simulated": simulated,
        "splitting": split,
    })
}

fn as_text(arguments: &Arguments, scheme: Scheme, answers: &[Answer]) -> String {
    let years = arguments.time / HOURS_PER_YEAR;
    let mut head = vec![String::new()];
    head.extend(answers.iter().map(|answer| format!("{} repair times", answer.law)));
    let mut table = Table::new(&head.iter().map(String::as_str).collect::<Vec<_>>());
    let mut row = |what: &str, of: &dyn Fn(&Answer) -> String| {
        table.row(core::iter::once(what.to_owned()).chain(answers.iter().map(of)));
    };
    row("nines a chunk-year, closed form", &|answer| {
        format!("{:.2}", year_nines(answer.closed_ln_mttdl_hours))
    });
    row("repair bytes per byte and year, closed form", &|_| {
        short(closed_traffic(arguments, scheme))
    });
    if arguments.splitting > 0 {
        row("nines, splitting", &|answer| match answer.split.flatten() {
            Some(estimate) => format!(
                "{:.2} ± {:.2}",
                year_nines(estimate.ln_mttdl_hours),
                estimate.error / core::f64::consts::LN_10
            ),
            None => "none got through".to_owned(),
        });
    }
    let mut simulated = |what: &str, of: &dyn Fn(&Outcome) -> String| {
        if years > 0.0 {
            row(what, &|answer| answer.simulated.as_ref().map_or(String::new(), of));
        }
    };
    simulated("nines, simulated", &|out| {
        let (loss, is_bound) = out.loss_per_chunk_year();
        format!("{}{:.2}", if is_bound { "> " } else { "" }, -loss.log10())
    });
    simulated("losses", &|out| format!("{} ({} chunks)", out.losses, out.lost_chunks));
    simulated("repair bytes per byte and year", &|out| short(out.repair_ratio(years)));
    simulated("repair traffic of a node, kB/s", &|out| {
        short(out.node_bytes_per_second(arguments.nodes, years) / 1e3)
    });
    simulated("the same on the busiest day", &|out| {
        short(out.peak_day_node_bytes / 86_400.0 / 1e3)
    });
    simulated("nodes dead", &|out| out.deaths.to_string());
    simulated("declared dead, but came back", &|out| out.false_deaths.to_string());
    simulated("declarations put off", &|out| out.frozen.to_string());
    simulated("shards rebuilt", &|out| out.shards_rebuilt.to_string());
    simulated("of them in vain", &|out| out.false_rebuilt.to_string());
    simulated("copied to newcomers, GB", &|out| short(out.join_bytes / 1e9));
    simulated("time with a margin of two or less", &|out| {
        short(out.thin_chunk_hours / (out.chunk_years * HOURS_PER_YEAR))
    });
    simulated("load, most over mean", &|out| format!("{:.2}", out.load_max));
    simulated("events", &|out| out.events.to_string());
    format!(
        "{} nodes, {}, repair at {} live shards, {} chunks, {:.2} years, seed {}\n\
         τ = {} h, of which {} h until a node is declared dead\n\n{}\n\
         The closed form knows independent, exponential deaths only. Nines above about 11 rank\n\
         schemes; what is lost then is lost to what many nodes have in common.\n",
        arguments.nodes,
        arguments.geometry,
        scheme.threshold(),
        arguments.chunks,
        years,
        arguments.seed,
        short(arguments.dead_after + arguments.repair),
        short(arguments.dead_after),
        table.plain(),
    )
}
