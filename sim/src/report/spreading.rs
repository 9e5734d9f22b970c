//! How the core's ring spreads load, and its gossip news.
//!
//! Owns the studies of placement and gossip. No repair is in them, so no repair-time law.

use copse_core::ring::TOKENS_PER_UNIT;

use super::{Effort, Section, Table, in_parallel, table::short};
use crate::{
    gossip::{self, Rumour},
    placement::{self, Study},
    svg::{Axis, Chart, Series, Style},
};

pub(super) fn placement(effort: Effort) -> Section {
    let nodes = if effort == Effort::Full { 1000 } else { 100 };
    let tokens: &[usize] =
        if effort == Effort::Full { &[1, 4, 16, 64, 256] } else { &[16, 64, 128] };
    let widths = [1, 3, 16, 40];
    let mut studies = Vec::new();
    for shards in widths {
        studies.extend(tokens.iter().map(|&tokens| Study { nodes, shards, tokens, seed: 1 }));
    }
    let loads = in_parallel(&studies, |&study| placement::load(study));
    let mut table = Table::new(&[
        "shards n",
        "tokens V of a node",
        "relative standard deviation of the load",
        "1/√(nV)",
        "most over mean",
    ]);
    for (study, load) in studies.iter().zip(&loads) {
        table.row([
            study.shards.to_string(),
            study.tokens.to_string(),
            format!("{:.3}", load.deviation),
            format!("{:.3}", placement::expected_deviation(study.shards, study.tokens)),
            format!("{:.2}", load.max),
        ]);
    }
    let mut series = Vec::new();
    for (colour, shards) in widths.into_iter().enumerate() {
        let of = |value: &dyn Fn(&Study, f64) -> f64| -> Vec<(f64, f64)> {
            studies
                .iter()
                .zip(&loads)
                .filter(|(study, _)| study.shards == shards)
                .map(|(study, load)| (study.tokens as f64, value(study, load.deviation)))
                .collect()
        };
        let measured = of(&|_, deviation| deviation);
        let expected = of(&|study, _| placement::expected_deviation(study.shards, study.tokens));
        let name = format!("n = {shards}");
        series.push(Series { name, points: measured, colour, style: Style::Dots });
        let name = format!("1/√({shards}·V)");
        series.push(Series { name, points: expected, colour, style: Style::Line });
    }
    let chart = Chart {
        title: format!("Load of {nodes} nodes over tokens"),
        x: Axis::logarithmic("tokens of each node, V"),
        y: Axis::logarithmic("relative standard deviation of the load"),
        series,
    };
    let zoned = zoned(nodes);
    let text = format!(
        "{nodes} equal nodes, all 65,536 arcs, seed 1, walks of the core's ring. The load of a node is the \
         number of arcs that it holds a shard of. That these are whole numbers and the ring has no more arcs \
         makes of a deviation d up to √(d² + nodes/(65,536 n)). No repair, so no repair-time law.\n\n{}\n\
         With zones and the core's own caps and {TOKENS_PER_UNIT} tokens, 10+6; a leave should move what the \
         leaver held and nothing else. Shards are those of one chunk for each arc:\n\n{}",
        table.markdown(),
        zoned.markdown()
    );
    Section {
        title: "Load over tokens, movement when one leaves",
        text,
        tables: vec![table, zoned],
        charts: vec![("load", chart)],
    }
}

fn zoned(nodes: usize) -> Table {
    let mut table = Table::new(&[
        "zones",
        "relative standard deviation of the load of nodes",
        "most over mean, nodes",
        "most over mean, zones",
        "shards moved by a leave",
        "of which the leaver held",
    ]);
    let Ok(geometry) = "10+6".parse() else { return table };
    for zones in [0, 5, 20, 50] {
        let load = placement::placed(nodes, zones, geometry, 1);
        let moves = placement::leave(nodes, zones, geometry, 1);
        table.row([
            if zones == 0 { "none".to_owned() } else { zones.to_string() },
            format!("{:.3}", load.deviation),
            format!("{:.2}", load.max),
            load.zone_max.map_or("—".to_owned(), |most| format!("{most:.2}")),
            moves.moved.to_string(),
            moves.held.to_string(),
        ]);
    }
    table
}

pub(super) fn gossip(effort: Effort) -> Section {
    let sizes: &[usize] = if effort == Effort::Full { &[30, 100, 300, 1000] } else { &[20, 60] };
    let mut rumours = Vec::new();
    for loss in [0.0, 0.3] {
        rumours.extend(sizes.iter().map(|&nodes| Rumour { nodes, loss, seed: 1 }));
    }
    let spreads = in_parallel(&rumours, |&rumour| gossip::spread(rumour));
    let mut table = Table::new(&[
        "nodes",
        "messages lost",
        "half know after",
        "pushes end after",
        "know by then",
        "all know after",
        "bytes of pushes a node",
        "idle comparisons, B/s a node",
    ]);
    for (rumour, spread) in rumours.iter().zip(&spreads) {
        table.row([
            rumour.nodes.to_string(),
            format!("{:.0} %", 100.0 * rumour.loss),
            gossip::said(spread.half_rounds),
            gossip::said(Some(spread.push_rounds)),
            format!("{:.2} %", 100.0 * spread.pushed),
            gossip::said(spread.all_rounds),
            short(spread.push_bytes_per_node),
            short(spread.idle_bytes_per_second),
        ]);
    }
    let line = |name: &str, loss: f64, colour, of: &dyn Fn(&gossip::Spread) -> f64| Series {
        name: name.to_owned(),
        points: rumours
            .iter()
            .zip(&spreads)
            .filter(|(rumour, _)| rumour.loss == loss)
            .map(|(rumour, spread)| (rumour.nodes as f64, of(spread)))
            .collect(),
        colour,
        style: Style::Line,
    };
    let chart = |title: &str, unit: &str, of: &dyn Fn(&gossip::Spread) -> f64| Chart {
        title: title.to_owned(),
        x: Axis::logarithmic("nodes"),
        y: Axis::linear(unit),
        series: vec![line("no loss", 0.0, 0, of), line("30 % lost", 0.3, 1, of)],
    };
    let text = format!(
        "The core's gossip engine with real records and signatures; one node changes its record. What is \
         counted is rounds, of {} s each; messages arrive within their round or are lost. Seed 1; no \
         repair, so no repair-time law. Memory grows with the square of the network, hence no more than \
         {} nodes.\n\n{}",
        gossip::seconds(1),
        sizes.last().copied().unwrap_or(0),
        table.markdown()
    );
    Section {
        title: "How news spread",
        text,
        tables: vec![table],
        charts: vec![
            (
                "gossip-time",
                chart("Time until everybody knows", "seconds", &|spread| {
                    spread.all_rounds.map_or(f64::NAN, gossip::seconds)
                }),
            ),
            (
                "gossip-bytes",
                chart("Bytes of one piece of news", "bytes a node", &|spread| {
                    spread.push_bytes_per_node
                }),
            ),
        ],
    }
}
