//! `copse-sim placement` and `copse-sim gossip`.
//!
//! Owns their arguments and printing. No repair is in them, and their output says so.

use clap::Args;
use copse_core::geometry::Geometry;
use copse_sim::{
    gossip::{self as rumours, Rumour},
    placement::{self as load, Study},
    report::{Table, short},
    units,
};
use serde_json::json;

use super::{Failure, print, print_json};

const NO_LAW: &str = "none: nothing is repaired here";

#[derive(Args)]
pub(super) struct Placement {
    /// Nodes of equal capacity.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=200_000))]
    nodes: u32,
    /// DATA+PARITY.
    #[arg(long, default_value = "10+6")]
    geometry: Geometry,
    /// Equal zones; 0 for none.
    #[arg(long, default_value_t = 0)]
    zones: usize,
    /// Tokens of a node: a power of two up to 4096. Without it the ring's own, with zone caps.
    #[arg(long)]
    tokens: Option<usize>,
    /// Another seed, other tokens.
    #[arg(long, default_value_t = 1)]
    seed: u32,
}

pub(super) fn placement(arguments: &Placement, as_json: bool) -> Result<(), Failure> {
    let nodes = arguments.nodes as usize;
    let shards = arguments.geometry.total();
    if arguments.zones > nodes {
        return Err("more zones than nodes: take fewer zones".into());
    }
    let own = copse_core::ring::TOKENS_PER_UNIT;
    let (tokens, spread, moves) = match arguments.tokens {
        Some(tokens) => {
            if !tokens.is_power_of_two() || tokens > 4096 || arguments.zones > 0 {
                return Err("--tokens takes a power of two up to 4096, without --zones".into());
            }
            if shards > nodes {
                return Err("--tokens needs a node for every shard: take more nodes".into());
            }
            (tokens, load::load(Study { nodes, shards, tokens, seed: arguments.seed }), None)
        }
        None => {
            let (zones, geometry) = (arguments.zones, arguments.geometry);
            let moves = load::leave(nodes, zones, geometry, arguments.seed);
            (own, load::placed(nodes, zones, geometry, arguments.seed), Some(moves))
        }
    };
    let expected = load::expected_deviation(shards, tokens);
    if as_json {
        return print_json(&json!({
            "nodes": nodes,
            "geometry": arguments.geometry.to_string(),
            "zones": arguments.zones,
            "tokens": tokens,
            "seed": arguments.seed,
            "repair_time_law": NO_LAW,
            "load_deviation": spread.deviation,
            "load_deviation_expected": expected,
            "load_max_over_mean": spread.max,
            "zone_load_max_over_mean": spread.zone_max,
            "leave": moves.map(|moves| json!({
                "arcs_held": moves.held,
                "shards_moved": moves.moved,
                "arcs_with_more_than_one_move": moves.arcs_with_more,
            })),
        }));
    }
    let mut table = Table::new(&["what", "value"]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    row("deviation of the load", short(spread.deviation));
    row("1/sqrt(n tokens)", short(expected));
    row("most loaded over mean", short(spread.max));
    if arguments.zones > 0 {
        row("the same for zones", short(spread.zone_max));
    }
    if let Some(moves) = moves {
        row("arcs that one node holds", moves.held.to_string());
        row("shards moved when it leaves", moves.moved.to_string());
        row("arcs in which more than one moves", moves.arcs_with_more.to_string());
    }
    print(&format!(
        "{nodes} nodes with {tokens} tokens, {} zones, {}, seed {}; repair-time law: {NO_LAW}\n\n{}",
        arguments.zones,
        arguments.geometry,
        arguments.seed,
        table.plain()
    ))
}

#[derive(Args)]
pub(super) struct Gossip {
    /// Nodes; memory grows with their square.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(2..=5000))]
    nodes: u32,
    /// Share of the messages that are lost.
    #[arg(long, value_parser = units::share, default_value = "0%")]
    loss: f64,
    /// One seed, one run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(super) fn gossip(arguments: &Gossip, as_json: bool) -> Result<(), Failure> {
    let rumour =
        Rumour { nodes: arguments.nodes as usize, loss: arguments.loss, seed: arguments.seed };
    let spread = rumours::spread(rumour);
    if as_json {
        return print_json(&json!({
            "nodes": rumour.nodes,
            "loss": rumour.loss,
            "seed": rumour.seed,
            "repair_time_law": NO_LAW,
            "half_know_after_rounds": spread.half_rounds,
            "pushes_end_after_rounds": spread.push_rounds,
            "know_when_pushes_end": spread.pushed,
            "all_know_after_seconds": spread.all_seconds,
            "messages": spread.messages,
            "push_bytes_per_node": spread.push_bytes_per_node,
            "idle_bytes_per_second_node": spread.idle_bytes_per_second,
        }));
    }
    let mut table = Table::new(&["what", "value"]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    row("half know after, rounds", spread.half_rounds.to_string());
    row("pushes end after, rounds", spread.push_rounds.to_string());
    row("know by then", format!("{:.2} %", 100.0 * spread.pushed));
    row("all know after, s", short(spread.all_seconds));
    row("messages", spread.messages.to_string());
    row("bytes of pushes a node", short(spread.push_bytes_per_node));
    row("idle comparisons, B/s a node", short(spread.idle_bytes_per_second));
    print(&format!(
        "{} nodes, {} of the messages lost, seed {}; repair-time law: {NO_LAW}\n\n{}",
        rumour.nodes,
        rumour.loss,
        rumour.seed,
        table.plain()
    ))
}
