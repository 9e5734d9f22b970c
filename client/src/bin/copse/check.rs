//! `copse check`: whether a tree has all its shards, and making those that are missing; with a read
//! capability or a verify capability.
//!
//! Owns the two forms of what `copse_client::check` found, and the exit code that goes with it.

use std::{
    fmt::Write as _,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
};

use copse_client::{
    check::{
        CheckOptions, CheckProgress, CheckReport, Checker, NodeReport, Paths, Strength, Weak,
        check_manifest, check_tree,
    },
    get::Downloader,
    status::all_whole,
    tree_read::TreeReader,
};
use copse_core::{
    capability::{Capability, VerifyCapability},
    text::{self, VERIFY_CAPABILITY},
    tree::Name,
};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use crate::{
    exit::{CliError, DATA_LOSS, DEGRADED, PARTIAL},
    given::Given,
    output::{self, Count, count, one_or},
    progress::Progress,
    put::{failures_json, show_failures},
    session::Session,
    waiting::Waiting,
};

/// Weak and mended chunks shown to people, each; --json lists up to a thousand.
const CHUNKS_SHOWN: usize = 20;

/// Paths shown for a chunk.
const PATHS_SHOWN: usize = 3;

pub(crate) async fn check(
    session: &Session,
    given: &Given,
    options: CheckOptions,
) -> Result<ExitCode, CliError> {
    let what = match text::is_kind(VERIFY_CAPABILITY, &given.text) {
        true => Subject::Manifest(session.verify_capability(given)?),
        false => {
            let (capability, path) = session.capability(given)?;
            Subject::Tree(capability, path)
        }
    };
    let (_, network) = session.connect().await?;
    let downloader = Downloader::new(network.clone());
    let _waiting = Waiting::for_reads(session, &downloader);
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| CliError::other(format!("no random bytes: {error}")))?;
    let checker = Checker::new(network, &seed);

    let progress = Arc::new(CheckProgress::default());
    let watched = Arc::clone(&progress);
    let drawing = Progress::start("check", &progress.counters, session.global.quiet, move || {
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            ", {}, {} of them weak",
            count(get(&watched.chunks), "chunk"),
            Count(get(&watched.weak))
        )
    });
    let report = match &what {
        Subject::Tree(capability, path) => {
            let tree = TreeReader::new(downloader, capability)?;
            let report =
                check_tree(&tree, capability, path.clone(), &checker, options, progress).await;
            report.map_err(CliError::reading(path))
        }
        Subject::Manifest(capability) => {
            let report = check_manifest(&downloader, capability, &checker, options, progress).await;
            report.map_err(CliError::from)
        }
    };
    drop(drawing);
    let mut report = report?;
    if session.global.json {
        output::print(as_json(&report, options))?;
    } else {
        output::print(as_text(&report, options).trim_end_matches('\n'))?;
        for failure in &mut report.unreadable.listed {
            if failure.path.as_os_str().is_empty() {
                failure.path = if report.listed.is_some() { "the list" } else { "/" }.into();
            }
        }
        show_failures(&report.unreadable, "not looked into");
    }
    Ok(ExitCode::from(code(&report)))
}

/// What a capability gives to check.
enum Subject {
    Tree(Capability, Vec<Name>),
    Manifest(VerifyCapability),
}

fn code(report: &CheckReport) -> u8 {
    let unread = report.count(Strength::Lost) + report.count(Strength::Waiting);
    if unread > 0 || report.unreadable_for_loss {
        DATA_LOSS
    } else if report.count(Strength::Thin) > 0 || report.frail > 0 {
        DEGRADED
    } else if report.unreadable.count > 0 {
        PARTIAL
    } else {
        0
    }
}

fn headline(report: &CheckReport, options: CheckOptions) -> String {
    let total = count(report.chunks, "chunk");
    let advice = if options.repair { "" } else { "; --repair makes them" };
    let [lost, waiting, thin] =
        [Strength::Lost, Strength::Waiting, Strength::Thin].map(|strength| report.count(strength));
    let mut line = if lost > 0 {
        format!("DANGER: {} of {total} {} lost", Count(lost), one_or(lost, "is", "are"))
    } else if waiting > 0 {
        format!(
            "DANGER: {} of {total} cannot be read until nodes that did not answer come back",
            Count(waiting)
        )
    } else if thin > 0 {
        let lack = one_or(thin, "lacks", "lack");
        format!("{} of {total} {lack} shards; all can be read{advice}", Count(thin))
    } else if report.frail > 0 {
        let frail = match (report.chunks, report.frail) {
            (1, _) => "does not survive".to_owned(),
            (all, frail) if all == frail => "none of them survives".to_owned(),
            (_, 1) => "1 of them does not survive".to_owned(),
            (_, frail) => format!("{} of them do not survive", Count(frail)),
        };
        format!("{}, but {frail} the loss of one node", all_whole(report.chunks))
    } else {
        all_whole(report.chunks)
    };
    if report.unreadable.count > 0 {
        line.push_str(match report.listed {
            None => "; parts of the tree could not be looked into and are not counted",
            Some(_) => {
                "; the list of the tree's chunks could not be read to its end, and the rest is not \
                 counted: whoever can read the tree stores it again with `copse verifier`"
            }
        });
    }
    line
}

fn as_text(report: &CheckReport, options: CheckOptions) -> String {
    let mut out = headline(report, options) + "\n";
    // Writing to a string does not fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<10}{value}");
    };
    if let Some(survives) = report.survives {
        let any = |number: usize, what: &str| output::any_more(number as u64, what);
        line(
            "survives",
            format!("{}; {}", any(survives.nodes, "node"), any(survives.zones, "zone")),
        );
    }
    match report.listed {
        None => line(
            "tree",
            format!(
                "{}, {}, {}",
                count(report.files, "file"),
                count(report.directories, "folder"),
                output::bytes(report.bytes)
            ),
        ),
        Some(listed) => line(
            "list",
            format!(
                "{} of the tree, and {} that {} this list",
                count(listed, "chunk"),
                Count(report.chunks.saturating_sub(listed)),
                one_or(report.chunks.saturating_sub(listed), "holds", "hold")
            ),
        ),
    }
    for ((geometry, have), chunks) in report.by_shards.iter().rev() {
        let total = geometry.total();
        line("chunks", format!("{have}/{total} ({geometry}): {}", Count(*chunks)));
    }
    for weak in report.weakest.iter().take(CHUNKS_SHOWN) {
        line(weak.strength.as_str(), weak_line(weak, report.listed.is_some()));
    }
    more(&mut line, report.chunks - report.count(Strength::Whole), "weak chunk");
    for mended in report.mended.iter().take(CHUNKS_SHOWN) {
        let total = mended.geometry.total();
        let (before, after) = (mended.before, mended.after);
        line("mended", format!("{} {before}/{total} -> {after}/{total}", mended.chunk.short()));
    }
    more(&mut line, report.mended_count, "mended chunk");
    if options.repair && report.mended_count == 0 && report.unmended == 0 {
        line("repair", "there was nothing to mend".to_owned());
    } else if options.repair {
        line(
            "repair",
            format!(
                "{} mended with {}, {}; {} could not be made whole",
                count(report.mended_count, "chunk"),
                count(report.rebuilt_shards, "shard"),
                output::bytes(report.rebuilt_bytes),
                Count(report.unmended)
            ),
        );
    }
    for node in &report.nodes {
        for (name, value) in node_lines(node) {
            line(name, value);
        }
    }
    out
}

fn more(line: &mut impl FnMut(&str, String), all: u64, what: &str) {
    let rest = all.saturating_sub(CHUNKS_SHOWN as u64);
    if rest > 0 {
        let (rest, them) = (count(rest, &format!("more {what}")), one_or(rest, "it", "them"));
        line("", format!("{rest}; --json lists {them}"));
    }
}

fn weak_line(weak: &Weak, of_manifest: bool) -> String {
    let total = weak.geometry.total();
    let mut text = format!("{} {}/{total}", weak.chunk.short(), weak.have);
    if weak.have < weak.geometry.data() {
        let _ = write!(text, " of {} needed", weak.geometry.data());
    }
    if !of_manifest {
        let _ = write!(text, "  {}", paths(&weak.paths));
    } else if !weak.paths.first.is_empty() {
        text += "  this list";
    }
    if weak.silent > 0 {
        let silent = count(weak.silent as u64, "node");
        let _ = write!(text, " ({silent} that may hold more did not answer)");
    }
    if let Some(problem) = &weak.problem {
        let _ = write!(text, ": {}", output::name(problem.as_bytes()));
    }
    text
}

fn paths(paths: &Paths) -> String {
    let shown: Vec<String> = paths.first.iter().take(PATHS_SHOWN).map(|path| shown(path)).collect();
    let rest = paths.first.len().saturating_sub(PATHS_SHOWN) as u64 + paths.more;
    match rest {
        0 => shown.join(", "),
        rest => format!("{} and {} more", shown.join(", "), Count(rest)),
    }
}

/// The tree itself has no name of its own.
fn shown(path: &[u8]) -> String {
    if path.is_empty() { "/".to_owned() } else { output::name(path) }
}

fn node_lines(node: &NodeReport) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let name = node.node.short();
    let problem = output::name(node.problem.as_deref().unwrap_or_default().as_bytes());
    if node.false_claims > 0 {
        let shards = count(node.false_claims, "shard");
        lines.push(("liar", format!("node {name} claims {shards} falsely: {problem}")));
    }
    if node.damaged > 0 {
        let shards = count(node.damaged, "damaged shard");
        lines.push(("damaged", format!("node {name} found {shards}: {problem}")));
    }
    if let Some(why) = &node.silent {
        lines.push(("silent", format!("node {name}: {}", output::name(why.as_bytes()))));
    }
    lines
}

/// One JSON object. Fields are added, never renamed.
fn as_json(report: &CheckReport, options: CheckOptions) -> Value {
    let asked = report.nodes.len();
    // Nobody knows them who has only the list.
    let known = |count: u64| report.listed.is_none().then_some(count);
    json!({
        "headline": headline(report, options),
        "deep": options.deep,
        "repair": options.repair,
        "capability": if report.listed.is_some() { "verify" } else { "read" },
        "files": known(report.files),
        "directories": known(report.directories),
        "symlinks": known(report.symlinks),
        "bytes": known(report.bytes),
        "listed_chunks": report.listed,
        "chunks": report.chunks,
        "whole": report.count(Strength::Whole),
        "thin": report.count(Strength::Thin),
        "waiting": report.count(Strength::Waiting),
        "lost": report.count(Strength::Lost),
        "frail": report.frail,
        "survives_nodes": report.survives.map(|survives| survives.nodes),
        "survives_zones": report.survives.map(|survives| survives.zones),
        "by_shards": report.by_shards.iter().map(|((geometry, have), chunks)| json!({
            "geometry": geometry.to_string(),
            "have": have,
            "need": geometry.data(),
            "total": geometry.total(),
            "chunks": chunks,
        })).collect::<Vec<_>>(),
        "weakest": report.weakest.iter().map(|weak| json!({
            "chunk": weak.chunk.to_string(),
            "strength": weak.strength.as_str(),
            "have": weak.have,
            "need": weak.geometry.data(),
            "total": weak.geometry.total(),
            "silent": weak.silent,
            "paths": weak.paths.first.iter().map(|path| path_json(path)).collect::<Vec<_>>(),
            "more_paths": weak.paths.more,
            "problem": weak.problem,
        })).collect::<Vec<_>>(),
        "mended": report.mended.iter().map(|mended| json!({
            "chunk": mended.chunk.to_string(),
            "before": mended.before,
            "after": mended.after,
            "total": mended.geometry.total(),
        })).collect::<Vec<_>>(),
        "mended_chunks": report.mended_count,
        "rebuilt_shards": report.rebuilt_shards,
        "rebuilt_bytes": report.rebuilt_bytes,
        "unmended_chunks": report.unmended,
        "unreadable": failures_json(&report.unreadable),
        "unreadable_count": report.unreadable.count,
        "nodes_asked": asked,
        "nodes_silent": report.nodes.iter().filter(|node| node.silent.is_some()).count(),
        "nodes": report.nodes.iter().map(|node| json!({
            "id": node.node.to_string(),
            "silent": node.silent,
            "claims": node.claims,
            "proved": node.proved,
            "false_claims": node.false_claims,
            "damaged": node.damaged,
            "problem": node.problem,
        })).collect::<Vec<_>>(),
    })
}

/// A path; one that is not UTF-8 is exact in `hex`.
fn path_json(path: &[u8]) -> Value {
    match std::str::from_utf8(path) {
        Ok(path) => json!(path),
        Err(_) => json!({ "hex": HEXLOWER.encode(path) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(strengths: &[(Strength, u64)]) -> CheckReport {
        let mut report = CheckReport::default();
        for (strength, chunks) in strengths {
            report.by_strength.insert(*strength, *chunks);
            report.chunks += chunks;
        }
        report
    }

    #[test]
    fn the_code_and_the_first_line_tell_the_worst() {
        use Strength::{Lost, Thin, Waiting, Whole};
        for (strengths, expected, line) in [
            (&[(Whole, 3)][..], 0, "all 3 chunks have all their shards"),
            (
                &[(Whole, 3), (Thin, 2)],
                DEGRADED,
                "2 of 5 chunks lack shards; all can be read; --repair makes them",
            ),
            (&[(Whole, 1)], 0, "the only chunk has all its shards"),
            (&[(Whole, 1), (Thin, 1)], DEGRADED, "1 of 2 chunks lacks shards; all can be read"),
            (&[(Thin, 2), (Waiting, 1)], DATA_LOSS, "DANGER: 1 of 3 chunks cannot be read"),
            (&[(Waiting, 1), (Lost, 1)], DATA_LOSS, "DANGER: 1 of 2 chunks is lost"),
        ] {
            let report = report(strengths);
            assert_eq!(code(&report), expected);
            let shown = as_text(&report, CheckOptions::default());
            assert!(shown.starts_with(line), "{shown}");
        }
        let mut frail = report(&[(Whole, 3)]);
        frail.frail = 2;
        assert_eq!(code(&frail), DEGRADED);
        let shown = as_text(&frail, CheckOptions::default());
        assert!(shown.contains("but 2 of them do not survive the loss of one node"), "{shown}");
        frail.frail = 3;
        let shown = as_text(&frail, CheckOptions::default());
        assert!(shown.contains("but none of them survives the loss of one node"), "{shown}");
        let mut unread = report(&[(Whole, 1)]);
        unread.unreadable.add(std::path::Path::new("a"), &"torn");
        assert_eq!(code(&unread), PARTIAL);
        unread.unreadable_for_loss = true;
        assert_eq!(code(&unread), DATA_LOSS);
    }

    #[test]
    fn with_a_list_alone_nothing_is_said_of_files() {
        let mut report = report(&[(Strength::Whole, 4)]);
        report.listed = Some(3);
        let shown = as_text(&report, CheckOptions::default());
        assert!(shown.contains("3 chunks of the tree, and 1 that holds this list"), "{shown}");
        assert!(!shown.contains("files"), "{shown}");
        let json = as_json(&report, CheckOptions::default());
        assert_eq!((&json["capability"], &json["files"]), (&json!("verify"), &Value::Null));
        assert_eq!((&json["listed_chunks"], &json["chunks"]), (&json!(3), &json!(4)));
    }
}
