//! `copse status`: how the network is, for people at one glance and for programs.
//!
//! Owns the two forms of what `copse_client::status` found. The first line is the verdict.

use std::{fmt::Write as _, process::ExitCode};

use copse_client::status::{NetworkStatus, NodeStatus, Standing, Verdict, ask};
use copse_core::units::Brief;
use serde_json::{Value, json};

use crate::{
    exit::{CliError, DATA_LOSS, DEGRADED, PARTIAL},
    output::{self, Count, count},
    session::Session,
};

/// Decisions shown to people; programs get all that are kept.
const DECISIONS_SHOWN: usize = 8;

pub(crate) async fn status(session: &Session) -> Result<ExitCode, CliError> {
    let (_, network) = session.connect().await?;
    let status = ask(&network).await;
    if session.global.json {
        output::print(as_json(&network.id().to_string(), &status))?;
    } else {
        // Each piece of text that came from a node was made safe for the terminal.
        output::print(text(&status).trim_end_matches('\n'))?;
    }
    Ok(ExitCode::from(code(&status)))
}

/// Danger counts more than what was not counted.
fn code(status: &NetworkStatus) -> u8 {
    match status.verdict() {
        Verdict::Lost | Verdict::Unreadable => DATA_LOSS,
        Verdict::Fragile => DEGRADED,
        _ if status.uncounted > 0 => PARTIAL,
        _ => 0,
    }
}

fn text(status: &NetworkStatus) -> String {
    let mut out = safe(&status.headline()) + "\n";
    // Writing to a string does not fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<12}{value}");
    };
    if let Some(survives) = survives(status) {
        line("survives", survives);
    }
    line("nodes", nodes(status));
    line(
        "room",
        format!(
            "{} of {} used, {}",
            output::bytes(status.disk_bytes),
            output::bytes(status.capacity_bytes),
            count(status.shards, "shard")
        ),
    );
    let chunks = &status.chunks;
    line("chunks", Count(chunks.total).to_string());
    if chunks.total > 0 {
        for (name, chunks, means) in [
            ("  whole", chunks.whole, "all their shards within reach"),
            ("  thin", chunks.thin, "readable, with shards missing"),
            ("  waiting", chunks.waiting, "readable when nodes come back"),
            ("  lost", chunks.lost, "too few shards exist"),
            ("  unfinished", chunks.unfinished, "their put goes on or was broken off"),
        ] {
            line(name, format!("{:>11}  {means}", Count(chunks)));
        }
        line("  spare", spare(status));
    }
    for (name, value) in repair(status) {
        line(name, value);
    }
    for (name, value) in remarks(status) {
        line(name, value);
    }
    for job in &status.failing {
        let chunk = job.chunk.map_or_else(|| "?".to_owned(), |chunk| chunk.short());
        line(
            "failing",
            format!(
                "{} of chunk {chunk} at node {}, {} in {}: {}",
                safe(&job.kind),
                job.node.short(),
                count(job.attempts.into(), "time"),
                Brief::seconds(job.age_seconds),
                safe(&job.last_error)
            ),
        );
    }
    let older = status.decisions.len().saturating_sub(DECISIONS_SHOWN);
    for decision in &status.decisions[older..] {
        let at = output::time(i64::try_from(decision.unix_seconds).unwrap_or(i64::MAX));
        line("decided", format!("{at} {}: {}", decision.node.short(), safe(&decision.text)));
    }
    out
}

fn survives(status: &NetworkStatus) -> Option<String> {
    let nodes = status.survives_nodes?;
    let zones =
        status.survives_zones.map(|zones| format!("; {}", output::any_more(zones.into(), "zone")));
    Some(output::any_more(nodes.into(), "node") + &zones.unwrap_or_default())
}

fn nodes(status: &NetworkStatus) -> String {
    let mut by_standing = std::collections::BTreeMap::<Standing, u64>::new();
    for node in &status.nodes {
        *by_standing.entry(node.standing).or_default() += 1;
    }
    let counts: Vec<String> = by_standing
        .iter()
        .map(|(standing, nodes)| format!("{nodes} {}", standing.as_str()))
        .collect();
    let counts = if counts.is_empty() { "none known".to_owned() } else { counts.join(", ") };
    format!("{counts}; {} of {} answered", status.answered, status.asked)
}

/// How many chunks can lose how many more shards; those that can be read.
fn spare(status: &NetworkStatus) -> String {
    let by_margin = status.chunks.by_margin.iter().rev();
    let readable = by_margin.filter(|(margin, count)| **margin >= 0 && **count > 0);
    let margins: Vec<String> = readable
        .map(|(margin, chunks)| {
            let more = u64::try_from(*margin).unwrap_or(0);
            format!("{} can lose {}", Count(*chunks), count(more, "more shard"))
        })
        .collect();
    margins.join(", ")
}

fn repair(status: &NetworkStatus) -> Vec<(&'static str, String)> {
    let queue = &status.queue;
    let mut lines = Vec::new();
    if queue.open() > 0 {
        let eta =
            queue.eta_seconds.map_or("unknown".to_owned(), |eta| Brief::seconds(eta).to_string());
        lines.push((
            "repair",
            format!(
                "{} queued, the oldest since {}; {} running; ETA {eta}",
                Count(queue.jobs),
                Brief::seconds(queue.oldest_seconds),
                Count(queue.running)
            ),
        ));
    }
    if status.chunks.unfinished > 0 {
        let (chunks, are) = match status.chunks.unfinished {
            1 => ("1 chunk".to_owned(), "is"),
            many => (format!("{} chunks", Count(many)), "are"),
        };
        lines.push((
            "unfinished",
            format!(
                "{chunks} {are} of puts that go on or were broken off, of which nobody was told that they are stored: \
                 putting the same files again completes them"
            ),
        ));
    }
    if status.chunks.displaced > 0 {
        let displaced = status.chunks.displaced;
        let (chunks, have) = (count(displaced, "chunk"), output::one_or(displaced, "has", "have"));
        lines.push(("moving", format!("{chunks} {have} shards to bring where they belong")));
    }
    if queue.leaving_shards > 0 {
        lines.push(("leaving", count(queue.leaving_shards, "shard") + " to hand over"));
    }
    for (reason, nodes) in &status.guards {
        lines.push(("guard", format!("{} ({})", safe(reason), say_so(*nodes))));
    }
    if !status.cut_off.is_empty() {
        let nodes: Vec<String> = status.cut_off.iter().map(|node| node.short()).collect();
        lines.push((
            "cut off",
            format!(
                "{} {} less than half of the network, or did a moment ago, as it should be after a start",
                nodes.join(", "),
                output::one_or(nodes.len() as u64, "sees", "see")
            ),
        ));
    }
    lines
}

/// `3 nodes say so`
fn say_so(nodes: u32) -> String {
    let nodes = u64::from(nodes);
    format!("{} {} so", count(nodes, "node"), output::one_or(nodes, "says", "say"))
}

/// What is wrong with single nodes.
fn remarks(status: &NetworkStatus) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    for node in &status.nodes {
        let name = node.node.short();
        if let Some(how) = &node.untrusted {
            let by = say_so(node.untrusted_by);
            lines.push(("untrusted", format!("{name}: {} ({by})", safe(how))));
        }
        if node.is_disputed() {
            lines.push(("disputed", format!("{name}: {}", opinions(node))));
        } else if !matches!(node.standing, Standing::Alive | Standing::Unknown) {
            let reason = node.reason.as_deref().map(|why| format!(": {}", safe(why)));
            lines.push((node.standing.as_str(), format!("{name}{}", reason.unwrap_or_default())));
        }
        if node.is_missed()
            && let Some(why) = &node.silent
        {
            lines.push(("silent", format!("{name}: {}", safe(why))));
        }
        if let Some(why) = &node.refusing {
            lines.push(("full", format!("{name} takes no new shards: {}", safe(why))));
        }
        if node.quarantined > 0 {
            let shards = count(node.quarantined, "damaged shard");
            lines.push(("damaged", format!("{name} set {shards} aside")));
        }
    }
    lines
}

fn opinions(node: &NodeStatus) -> String {
    let said: Vec<String> = node
        .opinions
        .iter()
        .map(|(standing, nodes)| {
            let says = output::one_or((*nodes).into(), "says", "say");
            format!("{nodes} {says} {}", standing.as_str())
        })
        .collect();
    let to_us = if node.silent.is_none() { "; it answers us" } else { "" };
    said.join(", ") + to_us
}

/// What a node wrote must not write to the terminal.
fn safe(text: &str) -> String {
    output::name(text.as_bytes())
}

/// One JSON object. Fields are added, never renamed.
fn as_json(network: &str, status: &NetworkStatus) -> Value {
    let margins = |by_margin: &std::collections::BTreeMap<i32, u64>| -> Vec<Value> {
        let rows = by_margin.iter();
        rows.map(|(margin, count)| json!({ "margin": margin, "count": count })).collect()
    };
    let (chunks, queue) = (&status.chunks, &status.queue);
    json!({
        "network": network,
        "verdict": status.verdict().as_str(),
        "danger": status.verdict().is_danger(),
        "headline": status.headline(),
        "asked": status.asked,
        "answered": status.answered,
        "uncounted": status.uncounted,
        "counting": status.counting,
        "capacity_bytes": status.capacity_bytes,
        "disk_bytes": status.disk_bytes,
        "shards": status.shards,
        "shard_bytes": status.shard_bytes,
        "survives_nodes": status.survives_nodes,
        "survives_zones": status.survives_zones,
        "chunks": {
            "total": chunks.total,
            "whole": chunks.whole,
            "thin": chunks.thin,
            "displaced": chunks.displaced,
            "waiting": chunks.waiting,
            "lost": chunks.lost,
            "unfinished": chunks.unfinished,
            "by_margin": margins(&chunks.by_margin),
        },
        "repair": {
            "queued": queue.jobs,
            "by_margin": margins(&queue.by_margin),
            "running": queue.running,
            "oldest_seconds": queue.oldest_seconds,
            "deferred": queue.deferred,
            "eta_seconds": queue.eta_seconds,
            "leaving_shards": queue.leaving_shards,
            "cut_off": status.cut_off.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "guards": status.guards.iter().map(|(reason, count)| json!({
                "reason": reason,
                "nodes": count,
            })).collect::<Vec<_>>(),
            "failing": status.failing.iter().map(|job| json!({
                "node": job.node.to_string(),
                "chunk": job.chunk.map(|chunk| chunk.to_string()),
                "kind": job.kind,
                "attempts": job.attempts,
                "age_seconds": job.age_seconds,
                "last_error": job.last_error,
            })).collect::<Vec<_>>(),
            "decisions": status.decisions.iter().map(|decision| json!({
                "node": decision.node.to_string(),
                "unix_seconds": decision.unix_seconds,
                "text": decision.text,
            })).collect::<Vec<_>>(),
        },
        "nodes": status.nodes.iter().map(|node| json!({
            "id": node.node.to_string(),
            "standing": node.standing.as_str(),
            "opinions": node.opinions.iter().map(|(standing, count)| {
                (standing.as_str().to_owned(), Value::from(*count))
            }).collect::<serde_json::Map<_, _>>(),
            "disputed": node.is_disputed(),
            "reason": node.reason,
            "answered": node.silent.is_none() && node.standing != Standing::Left,
            "error": node.silent,
            "refusing_reason": node.refusing,
            "quarantined": node.quarantined,
            "untrusted": node.untrusted,
            "untrusted_by": node.untrusted_by,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> NetworkStatus {
        let mut status = NetworkStatus { asked: 2, answered: 2, ..NetworkStatus::default() };
        status.survives_nodes = Some(4);
        status.survives_zones = Some(1);
        status.chunks.total = 1234;
        status.chunks.whole = 1234;
        status.chunks.by_margin.insert(6, 1234);
        status
    }

    #[test]
    fn the_first_line_is_the_verdict_and_the_code_goes_with_it() {
        let status = well();
        let shown = text(&status);
        let mut lines = shown.lines();
        assert_eq!(lines.next(), Some("all 1,234 chunks have all their shards"));
        assert_eq!(lines.next(), Some("survives    any 4 more nodes; any 1 more zone"));
        assert_eq!(code(&status), 0);

        let mut status = well();
        status.uncounted = 1;
        assert_eq!(code(&status), PARTIAL);
        status.survives_nodes = Some(0);
        assert_eq!(code(&status), DEGRADED);
        status.chunks.waiting = 1;
        assert_eq!(code(&status), DATA_LOSS);
        assert!(text(&status).starts_with("DANGER: 1 of 1,234 chunks cannot be read"));
        let json = as_json("n", &status);
        assert_eq!(
            (json["verdict"].as_str(), json["danger"].as_bool()),
            (Some("unreadable"), Some(true))
        );
    }

    #[test]
    fn nothing_that_a_node_says_reaches_the_terminal_raw() {
        let mut status = well();
        status.guards.insert("\x1b[2Jall is well".to_owned(), 1);
        status.chunks.thin = 1;
        let shown = text(&status);
        assert!(!shown.contains('\x1b') && shown.contains("\\x1b[2Jall is well"), "{shown}");
    }
}
