//! `copse plan`: which geometry makes data last as long as wished, at what cost, and what would
//! still lose them.
//!
//! Owns the question: what was said, what the product does by itself, and what is assumed when
//! nothing was said. The answer is the core's, its words are in `text`. Asks the network only how
//! many nodes it has, and only when nobody said.

mod text;

use std::process::ExitCode;

use clap::Args;
use copse_client::network::Network;
use copse_core::{
    durability::advice::{Advice, Figures, Lack, Question, Speed},
    geometry::Geometry,
    limits::CHUNK_BYTES_MAX,
    liveness::Timeouts,
    repair::Policy,
    units::{self, HOURS_PER_MONTH},
};
use serde_json::{Value, json};

use crate::{
    exit::{CliError, UNMET, USAGE},
    output,
    session::Session,
};

/// The part of a line that repair may take: the default of `copse-node`.
const REPAIR_SHARE: f64 = 0.2;

/// Nodes in a question, at most: as many as the ring is made for.
const NODES_MAX: usize = 100_000;

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Nodes of the network [default: those of the network that was joined]
    #[arg(long, value_name = "COUNT", value_parser = whole)]
    nodes: Option<usize>,
    /// Equal zones (houses, lines, data centres) that fail as one [default: those of the network
    /// that was joined; with --nodes, none are known]
    #[arg(long, value_name = "COUNT", value_parser = whole)]
    zones: Option<usize>,
    /// Mean time until a node is gone for good, as 18months or 3years. The default is that of
    /// machines that people lend: short
    #[arg(long, value_name = "TIME", value_parser = units::hours, default_value = "1year")]
    node_life: f64,
    /// Part of the time that a node answers
    #[arg(long, value_name = "SHARE", value_parser = units::share, default_value = "95%")]
    online: f64,
    /// How sure a chunk is to be there after a year: 11-nines, or the probability of loss, 1e-11. The
    /// default: of a million chunks, 8 TB, one is lost in a thousand years
    #[arg(long, value_name = "NINES", value_parser = units::nines, default_value = "9-nines")]
    want: f64,
    /// Look at this geometry alone
    #[arg(long, value_name = "DATA+PARITY")]
    geometry: Option<Geometry>,
    /// How much is stored in the whole network, before coding
    #[arg(long, value_name = "SIZE", value_parser = units::bytes, default_value = "1TB")]
    stored: f64,
    /// What each node's line can send; repair may take a fifth of it
    #[arg(long, value_name = "RATE", value_parser = units::rate, default_value = "20Mbit")]
    uplink: f64,
    /// Time to make a lost node's shards again, if it is known [default: from --uplink and --stored]
    #[arg(long, value_name = "TIME", value_parser = units::hours)]
    repair_time: Option<f64>,
    /// How long a missing shard waits for others: repair.patience of the nodes [default: 1d, theirs]
    #[arg(long, value_name = "TIME", value_parser = units::hours)]
    patience: Option<f64>,
    /// Most bytes of disk for each byte stored
    #[arg(long, value_name = "FACTOR", default_value_t = 4.0)]
    disk: f64,
}

/// A count as it is given on the command line.
fn whole(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "it is no count; write a whole number, for example 16".to_owned())
}

pub(crate) async fn plan(session: &Session, arguments: &Plan) -> Result<ExitCode, CliError> {
    let question = question(session, arguments).await?;
    let general = question.advise();
    let asked = arguments.geometry.map(|geometry| judge(&question, geometry, &general));
    let advice = asked.as_ref().unwrap_or(&general);
    if session.global.json {
        output::print(as_json(&question, advice))?;
    } else {
        let instead = asked.as_ref().filter(|asked| !asked.lacks.is_empty()).map(|_| &general);
        let text = text::answer(&question, advice, asked.is_some(), instead);
        output::print(text.trim_end())?;
    }
    let is_met = advice.best.is_some() && advice.lacks.is_empty();
    Ok(if is_met { ExitCode::SUCCESS } else { ExitCode::from(UNMET) })
}

/// The geometry that was asked about.
fn judge(question: &Question, geometry: Geometry, general: &Advice) -> Advice {
    let figures = question.figures(geometry);
    let lacks = figures.as_ref().map(|figures| question.lacks(figures)).unwrap_or_default();
    Advice { best: figures, lacks, ..general.clone() }
}

/// What the default geometry of a network gives, in a line, for whoever joins it; none when its nodes are too
/// few for any.
pub(crate) fn of_default(network: &Network) -> Option<String> {
    #[derive(clap::Parser)]
    struct Nothing {
        #[command(flatten)]
        plan: Plan,
    }
    let nothing_said: Nothing = clap::Parser::try_parse_from(["plan"]).ok()?;
    let (nodes, zones) = size(network);
    let question = put(&nothing_said.plan, nodes, zones).ok()?;
    let figures = question.figures(Geometry::default_for(nodes)?)?;
    Some(text::in_short(&question, &figures))
}

/// Nodes that hold something, and zones that are named.
fn size(network: &Network) -> (usize, usize) {
    let view = network.view();
    let known = view.directory.iter().map(|signed| signed.record().zone.as_str());
    let named: std::collections::BTreeSet<&str> = known.filter(|zone| !zone.is_empty()).collect();
    (view.ring.len(), named.len())
}

async fn question(session: &Session, arguments: &Plan) -> Result<Question, CliError> {
    let (nodes, zones) = match arguments.nodes {
        Some(nodes) => (nodes, 0),
        None => {
            let (_, network) = session.connect().await.map_err(|error| {
                let hint = "say how many nodes with --nodes, or ask about the network you joined";
                CliError::new(error.code, format!("{}; {hint}", error.message))
            })?;
            size(&network)
        }
    };
    put(arguments, nodes, arguments.zones.unwrap_or(zones))
}

/// The question, put about so many nodes in so many zones.
fn put(arguments: &Plan, nodes: usize, zones: usize) -> Result<Question, CliError> {
    let check = |is_good: bool, what: &str| {
        if is_good { Ok(()) } else { Err(CliError::new(USAGE, what)) }
    };
    check((1..=NODES_MAX).contains(&nodes), "--nodes must be 1 to 100,000")?;
    check(zones <= nodes, "--zones must not be more than the nodes")?;
    check(arguments.node_life >= 24.0, "--node-life must be at least a day")?;
    check(arguments.online > 0.0, "--online must be more than 0%")?;
    check(arguments.disk >= 1.0 && arguments.disk <= 60.0, "--disk must be 1 to 60")?;
    check(arguments.uplink > 0.0, "--uplink must be more than 0")?;
    check(
        arguments.repair_time.is_none_or(|hours| hours > 0.0),
        "--repair-time must be more than 0",
    )?;
    let (timeouts, policy) = (Timeouts::default(), Policy::default());
    let hours = |time: std::time::Duration| time.as_secs_f64() / 3600.0;
    Ok(Question {
        nodes,
        zones,
        life: arguments.node_life,
        online: arguments.online,
        wish: arguments.want,
        stored: arguments.stored,
        detection: hours(timeouts.dead_after),
        patience: arguments.patience.unwrap_or(hours(policy.patience)),
        threshold: policy.threshold,
        speed: match arguments.repair_time {
            Some(hours) => Speed::Hours(hours),
            None => Speed::BytesPerHour(arguments.uplink * REPAIR_SHARE),
        },
        expansion_max: arguments.disk,
    })
}

/// Chunks that what is stored is cut into.
fn chunks(question: &Question) -> f64 {
    (question.stored / CHUNK_BYTES_MAX as f64).max(1.0)
}

fn as_json(question: &Question, advice: &Advice) -> Value {
    let default = advice.default.as_ref();
    let remedies = &advice.remedies;
    let is_met = advice.best.is_some() && advice.lacks.is_empty();
    json!({
        "nodes": question.nodes,
        "zones": question.zones,
        "node_life_hours": question.life,
        "online": question.online,
        "wished_nines": question.wish,
        "stored_bytes": question.stored,
        "detection_hours": question.detection,
        "patience_hours": question.patience,
        "met": is_met,
        "lacks": lacks_json(&advice.lacks),
        "best": advice.best.as_ref().map(|figures| figures_json(question, figures)),
        "default": default.map(|(figures, _)| figures_json(question, figures)),
        "default_lacks": default.map(|(_, lacks)| lacks_json(lacks)),
        "would_do": {
            "nodes": remedies.nodes,
            "node_life_hours": remedies.life,
            "rebuild_hours": remedies.rebuild,
            "expansion": remedies.expansion,
        },
        "assumes": "independent failures with exponential lives; see docs/durability.md",
    })
}

fn figures_json(question: &Question, figures: &Figures) -> Value {
    let law = |nines: f64| {
        json!({
            "nines": nines,
            "years_until_a_chunk_is_lost": 10f64.powf(nines) / chunks(question),
        })
    };
    json!({
        "geometry": figures.geometry.to_string(),
        "expansion": figures.expansion(),
        "write_quorum": figures.geometry.write_quorum(),
        "threshold": figures.threshold,
        "nodes_borne": figures.nodes_borne,
        "zones_borne": figures.zones_borne,
        "shards_on_one_node_max": figures.on_one_node,
        "shards_in_one_zone_max": figures.in_one_zone,
        "exponential_repair_times": law(figures.exponential),
        "fixed_repair_times": law(figures.fixed),
        "rebuild_hours": figures.rebuild,
        "repair_bytes_per_stored_byte_month": figures.traffic,
        "repair_bytes_sent_per_node_month": figures.node_traffic,
        "repair_bits_per_second_node": figures.node_traffic * 8.0 / (HOURS_PER_MONTH * 3600.0),
        "repair_share_of_line_used": figures.line_load,
        "unreadable": figures.unreadable,
    })
}

fn lacks_json(lacks: &[Lack]) -> Vec<&'static str> {
    lacks
        .iter()
        .map(|lack| match lack {
            Lack::OneNode => "one_node",
            Lack::OneZone => "one_zone",
            Lack::Disk => "disk",
            Lack::Unreadable => "unreadable",
            Lack::Line => "line",
            Lack::Nines => "nines",
        })
        .collect()
}
