//! `copse-sim placement` and `copse-sim gossip`.
//!
//! Owns their arguments and printing. No repair is in them, and their output says so.

use clap::Args;
use copse_core::{geometry::Geometry, limits::ARCS};
use copse_sim::{
    gossip::{self as rumours, Rumour},
    placement::{self as load, Study},
    report::{Table, short},
    units,
};
use serde_json::json;

use super::{Failure, numbers::whole, print, print_json, wrong};

const NO_LAW: &str = "none: nothing is repaired here";

/// Tokens of a ring with other tokens than the core's, at most: 1.5 GB.
const TOKENS_MAX: usize = 51_200_000;

#[derive(Args)]
pub(super) struct Placement {
    /// Nodes of equal capacity.
    #[arg(long, default_value_t = 1000, value_parser = whole::<usize, 2, 200_000>)]
    nodes: usize,
    /// DATA+PARITY.
    #[arg(long, default_value = "10+6")]
    geometry: Geometry,
    /// Equal zones; 0 for none.
    #[arg(long, default_value_t = 0, value_parser = whole::<usize, 0, 200_000>)]
    zones: usize,
    /// Tokens of a node: a power of two up to 4096. Without it the ring's own, with zone caps.
    #[arg(long, value_parser = whole::<usize, 1, 4096>)]
    tokens: Option<usize>,
    /// Another seed, other tokens.
    #[arg(long, default_value_t = 1, value_parser = whole::<u32, 0, { u32::MAX as u64 }>)]
    seed: u32,
}

pub(super) fn placement(arguments: &Placement, as_json: bool) -> Result<(), Failure> {
    let nodes = arguments.nodes;
    let shards = arguments.geometry.total();
    if arguments.zones > nodes {
        return Err(wrong(format!(
            "--zones must not be more than the nodes: take {nodes} or fewer"
        )));
    }
    let own = copse_core::ring::TOKENS_PER_UNIT;
    let (tokens, spread, moves) = match arguments.tokens {
        Some(tokens) => {
            if !tokens.is_power_of_two() || arguments.zones > 0 {
                return Err(wrong("--tokens takes a power of two up to 4096, without --zones"));
            }
            if shards > nodes {
                return Err(wrong(format!(
                    "--tokens needs a node for every shard: take --nodes {shards} or more"
                )));
            }
            if nodes * tokens > TOKENS_MAX {
                let most = TOKENS_MAX / tokens;
                return Err(wrong(format!(
                    "a ring of {nodes} nodes with {tokens} tokens needs gigabytes: take --nodes {most} or fewer"
                )));
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
            "load_relative_deviation": spread.deviation,
            "load_relative_deviation_expected": expected,
            "load_max_over_mean": spread.max,
            "zone_load_max_over_mean": spread.zone_max,
            "arcs": ARCS,
            "leave": moves.map(|moves| json!({
                "arcs_held": moves.held,
                "shards_moved": moves.moved,
                "arcs_with_more_than_one_move": moves.arcs_with_more,
            })),
        }));
    }
    let mut table = Table::new(&["what", "value"]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    row("relative standard deviation of the load", short(spread.deviation));
    row("1/sqrt(n tokens), what it would be without arcs", short(expected));
    row("most loaded node over mean", short(spread.max));
    if let Some(most) = spread.zone_max {
        row("most loaded zone over mean", short(most));
    }
    if let Some(moves) = moves {
        row(&format!("arcs of {ARCS} that one node holds"), moves.held.to_string());
        row("shards moved when it leaves, one chunk an arc", moves.moved.to_string());
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
    /// Nodes; memory grows with their square: 1.5 GB for 5000.
    #[arg(long, default_value_t = 300, value_parser = whole::<usize, 2, 5000>)]
    nodes: usize,
    /// Share of the messages that are lost.
    #[arg(long, value_parser = units::share, default_value = "0%")]
    loss: f64,
    /// One seed, one run.
    #[arg(long, default_value_t = 1, value_parser = whole::<u64, 0, { u64::MAX }>)]
    seed: u64,
}

pub(super) fn gossip(arguments: &Gossip, as_json: bool) -> Result<(), Failure> {
    let rumour = Rumour { nodes: arguments.nodes, loss: arguments.loss, seed: arguments.seed };
    let spread = rumours::spread(rumour);
    if as_json {
        return print_json(&json!({
            "nodes": rumour.nodes,
            "loss": rumour.loss,
            "seed": rumour.seed,
            "repair_time_law": NO_LAW,
            "round_seconds": rumours::seconds(1),
            "half_know_after_rounds": spread.half_rounds,
            "half_know_after_seconds": spread.half_rounds.map(rumours::seconds),
            "pushes_end_after_rounds": spread.push_rounds,
            "pushes_end_after_seconds": rumours::seconds(spread.push_rounds),
            "know_when_pushes_end_share": spread.pushed,
            "all_know_after_rounds": spread.all_rounds,
            "all_know_after_seconds": spread.all_rounds.map(rumours::seconds),
            "push_messages": spread.messages,
            "push_bytes_per_node": spread.push_bytes_per_node,
            "idle_bytes_per_second_node": spread.idle_bytes_per_second,
        }));
    }
    let mut table = Table::new(&["what", "value"]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    row("half of the nodes know after", rumours::said(spread.half_rounds));
    row("pushes end after", rumours::said(Some(spread.push_rounds)));
    row("nodes that know by then", format!("{:.2} %", 100.0 * spread.pushed));
    row("all know after", rumours::said(spread.all_rounds));
    row("messages of pushes", spread.messages.to_string());
    row("bytes of pushes a node", short(spread.push_bytes_per_node));
    row("idle comparisons, bytes a second and node", short(spread.idle_bytes_per_second));
    print(&format!(
        "{} nodes, {} % of the messages lost, rounds of {} s, seed {}; repair-time law: {NO_LAW}\n\n{}",
        rumour.nodes,
        short(100.0 * rumour.loss),
        rumours::seconds(1),
        rumour.seed,
        table.plain()
    ))
}
