//! `copse put`.

use std::{
    fmt::Display,
    io::Write as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use copse_client::{
    encode::{Budget, Encoder},
    journal::Journal,
    network::Network,
    put::{Crowded, PutOptions as SessionOptions, Redundancy, Uploader},
    transfer::{
        Counters, Failure, Failures, PutOptions, PutOutcome, PutTarget, put_paths, put_stream,
    },
};
use copse_core::{
    capability::Capability,
    geometry::Geometry,
    tree::{Meta, Name, Timestamp},
};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    args::Put,
    exit::{CliError, PARTIAL, REFUSED, USAGE},
    output,
    progress::Progress,
    session::Session,
    stop::Stop,
    waiting::Waiting,
};

/// A put that is asked to stop stores for this long what is under way, at most the 96 MiB of
/// `encode::ENCODED_BYTES_MAX`: time for it at 50 Mbit/s, and less than the 90 s after which service managers
/// kill.
const FINISH_TIME_MAX: Duration = Duration::from_secs(20);

/// Failures shown; the rest is counted.
const FAILURES_SHOWN: usize = 20;

pub(crate) async fn put(session: &Session, arguments: Put) -> Result<ExitCode, CliError> {
    let from_input = arguments.paths.iter().any(|path| path == Path::new("-"));
    if from_input && arguments.paths.len() > 1 {
        return Err(CliError::new(USAGE, "`-` stands alone: put the other paths separately"));
    }
    if !from_input {
        some_is_there(&arguments.paths)?;
    }
    if from_input && let Err(error) = Name::new(arguments.name.as_bytes()) {
        return Err(CliError::new(USAGE, format!("--name: {error}")));
    }
    let mut stop = Stop::new()?;
    let (profile, network) = tokio::select! {
        biased;
        () = stop.asked() => return Err(CliError::interrupted(!from_input)),
        connected = session.connect() => connected?,
    };
    let (geometry, nodes) = choose_geometry(session, &network, &arguments)?;

    let budget = Budget::default();
    let session_options =
        SessionOptions { allow_fragile: arguments.allow_fragile, ..SessionOptions::default() };
    let target = PutTarget {
        uploader: Uploader::new(network.clone(), budget.clone(), session_options),
        encoder: Encoder::new(profile.secret().clone(), budget),
        network,
    };
    let options = PutOptions { journal: open_journal(session), ..PutOptions::new(geometry) };
    let counters = Arc::new(Counters::default());
    let uploader = target.uploader.clone();
    let progress = Progress::start("put", &counters, session.global.quiet, move || match uploader
        .progress()
        .thinnest
    {
        None => String::new(),
        Some((have, total)) if have == total => format!("  {have}/{total}"),
        Some((have, total)) => format!("  {have}/{total} → {total}/{total}"),
    });
    let _waiting = Waiting::for_puts(session, &target.uploader);
    let started = Instant::now();
    let moved = counters.clone();
    let putting = async {
        if !from_input {
            return put_paths(&target, arguments.paths, options, counters).await;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let meta =
            Meta::new(0o644, Timestamp::new(seconds, now.subsec_nanos()).unwrap_or_default());
        let input = Box::new(std::io::stdin());
        put_stream(&target, arguments.name.into_bytes(), meta, input, options, counters).await
    };
    let outcome = tokio::select! {
        biased;
        outcome = putting => outcome,
        () = stop.asked() => {
            drop(progress);
            finish_chunks(session, &target.uploader, &mut stop).await;
            return Err(CliError::interrupted(!from_input));
        }
    };
    drop(progress);
    let (took, outcome) = (started.elapsed(), outcome?);
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let holes = get(&moved.hole_bytes_done);
    // What was there before was not moved.
    let moved = get(&moved.bytes_done).saturating_sub(get(&moved.bytes_known));
    let moved = moved.min(outcome.progress.sent_bytes);
    report(session, &outcome, &Done { geometry, nodes, holes, moved, took })
}

/// Stores what is under way, and nothing more. What is left in part takes room on nodes, and counts as
/// unfinished until somebody puts it again.
async fn finish_chunks(session: &Session, uploader: &Uploader, stop: &mut Stop) {
    uploader.close();
    if uploader.is_idle() {
        return;
    }
    session.say("stopping as soon as the chunks under way are stored; Ctrl-C again stops at once");
    tokio::select! {
        biased;
        () = stop.asked() => {}
        // Whatever it says, the put is not done.
        _ = timeout(FINISH_TIME_MAX, uploader.flush()) => {}
    }
}

/// What is told of a put beside its outcome.
struct Done {
    geometry: Geometry,
    /// Nodes of the network, if the geometry was asked for and is of more shards than these.
    nodes: Option<usize>,
    /// Bytes of content that are holes.
    holes: u64,
    /// Bytes of content that were sent.
    moved: u64,
    took: Duration,
}

/// Refuses paths of which none is there, before the network is asked for anything.
fn some_is_there(paths: &[PathBuf]) -> Result<(), CliError> {
    let errors: Vec<_> =
        paths.iter().filter_map(|path| Some((path, path.symlink_metadata().err()?))).collect();
    match &errors[..] {
        some if some.len() < paths.len() => Ok(()),
        [] => Ok(()),
        [(path, error)] => Err(CliError::other(format!("cannot read {}: {error}", path.display()))),
        [(path, error), ..] => Err(CliError::other(format!(
            "none of the {} paths named is there: nothing was stored; of the first, {}, the system says: \
             {error}",
            paths.len(),
            path.display()
        ))),
    }
}

/// The code asked for or the network's default, if it survives the loss of any one node; and how many nodes
/// there are, when that is to be told of a code that was asked for.
fn choose_geometry(
    session: &Session,
    network: &Network,
    arguments: &Put,
) -> Result<(Geometry, Option<usize>), CliError> {
    let view = network.view();
    let nodes = view.ring.len();
    let fragile = |why: String| {
        CliError::new(REFUSED, format!("{why}; to store it all the same add --allow-fragile"))
    };
    let (geometry, chosen) = match (arguments.geometry, Geometry::default_for(nodes)) {
        (Some(geometry), _) => (geometry, true),
        (None, Some(geometry)) => (geometry, false),
        (None, None) if arguments.allow_fragile => {
            (Geometry::new(1, 0).map_err(CliError::other)?, false)
        }
        (None, None) => {
            return Err(fragile(format!(
                "refused: the network has {}, and whatever is on one node is \
                 lost with it; start another (copse-node init --join TOKEN)",
                output::count(nodes as u64, "node")
            )));
        }
    };
    let per_node = geometry.total().div_ceil(nodes.max(1));
    if per_node > geometry.parity() {
        let why = format!(
            "refused: with {geometry} on {} one node holds {} of a chunk, and only {} may be lost",
            output::count(nodes as u64, "node"),
            output::count(per_node as u64, "shard"),
            geometry.parity()
        );
        if !arguments.allow_fragile {
            let advice = Geometry::default_for(nodes)
                .map(|geometry| format!("; --geometry {geometry} would do"))
                .unwrap_or_default();
            return Err(fragile(why + &advice));
        }
        session.say("warning: the loss of one node will lose data");
        return Ok((geometry, None));
    }
    Ok((geometry, (chosen && geometry.total() > nodes).then_some(nodes)))
}

/// The journal is a help, not a need.
fn open_journal(session: &Session) -> Option<Journal> {
    match Journal::open(&session.home.join("journal")) {
        Ok(journal) => Some(journal),
        Err(error) => {
            tracing::info!(%error, "going on without the journal");
            None
        }
    }
}

fn report(session: &Session, outcome: &PutOutcome, done: &Done) -> Result<ExitCode, CliError> {
    let Done { geometry, took, .. } = done;
    let redundancy = &outcome.redundancy;
    let (kinds, bytes) = (&outcome.kinds, outcome.bytes);
    let sent = outcome.progress.sent_bytes;
    let worst = redundancy.worst;
    if session.global.json {
        print_safely(
            &outcome.capability,
            json!({
                "capability": outcome.capability.to_string(),
                "files": kinds.files,
                "directories": kinds.directories,
                "symlinks": kinds.symlinks,
                "bytes": bytes,
                "hole_bytes": done.holes,
                "sent_bytes": sent,
                "chunks": outcome.progress.chunks + outcome.confirmed_chunks,
                "chunks_confirmed": outcome.confirmed_chunks,
                "shards_held": outcome.progress.shards_held,
                "geometry": geometry.to_string(),
                "redundancy_min": worst.map(|(have, _)| have),
                "redundancy_target": worst.map(|(_, total)| total),
                "chunks_incomplete": redundancy.thin_chunks,
                "shards_on_one_node_max": redundancy.on_one_node,
                "shards_left_after_one_loss_min": redundancy.closest.map(|(left, _)| left),
                "chunks_crowded": redundancy.crowded_chunks,
                "seconds": took.as_secs_f64(),
                "failures": failures_json(&outcome.failures),
                "failures_count": outcome.failures.count,
            }),
        )?;
    } else {
        print_safely(&outcome.capability, &outcome.capability)?;
    }
    let (worst, target) = worst.unwrap_or_default();
    let safety = match redundancy.thin_chunks {
        0 => "every chunk has all its shards".to_owned(),
        _ => format!("the thinnest chunk has {worst} of {}", output::count(target as u64, "shard")),
    };
    session.say(format!(
        "put {}, {} in {:.1} s{}; sent {}; {safety}",
        output::contents(kinds),
        output::bytes_and_holes(bytes, done.holes),
        took.as_secs_f64(),
        output::rate(done.moved, *took),
        output::bytes(sent),
    ));
    // These also when quiet: whoever puts every night must learn of it.
    if redundancy.thin_chunks > 0 {
        output::tell(format_args!(
            "copse: {} {} safe but incomplete; run the same command again when all nodes answer",
            output::count(redundancy.thin_chunks, "chunk"),
            output::one_or(redundancy.thin_chunks, "is", "are"),
        ));
    }
    if let Some(crowded) = crowded(redundancy) {
        output::tell(format_args!("copse: {crowded}"));
    } else if let Some(nodes) = done.nodes
        && redundancy.on_one_node > 1
    {
        session.say(format!(
            "note: up to {} of a chunk are on one node, since there are {}",
            output::count(redundancy.on_one_node as u64, "shard"),
            output::count(nodes as u64, "node"),
        ));
    }
    if outcome.failures.count > 0 {
        show_failures(&outcome.failures, "not stored");
        return Err(CliError::new(
            PARTIAL,
            format!(
                "{} could not be stored, or not whole; the capability is of all the rest",
                output::count(outcome.failures.count, "entry")
            ),
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// What it means that nodes have more shards of a chunk than by plan; nothing when they have not. Whoever put
/// them there could not do otherwise; whether the others are back by now is not known here.
fn crowded(redundancy: &Redundancy) -> Option<String> {
    let Crowded { on_one_node, survives, planned } = redundancy.crowded?;
    let chunks = output::count(redundancy.crowded_chunks, "chunk");
    let nodes = |number: usize| output::count(number as u64, "node");
    let survive = output::one_or(redundancy.crowded_chunks, "it survives", "they survive");
    let loss = match survives {
        0 => "the loss of one node would lose data".to_owned(),
        some => format!("{survive} the loss of any {}, and of {planned} when spread", nodes(some)),
    };
    Some(format!(
        "of {chunks} up to {} are on one node, where they were put while other nodes were away or full: {loss}; \
         the nodes spread them by themselves when the others are back or new ones join",
        output::count(on_one_node as u64, "shard")
    ))
}

/// Prints a result with a capability in it. What is stored cannot be found again without it: when
/// standard output does not take it, it goes to standard error.
fn print_safely(capability: &Capability, result: impl Display) -> Result<(), CliError> {
    writeln!(std::io::stdout().lock(), "{result}").map_err(|error| {
        let CliError { code, message } = output::unwritten(&error);
        CliError { code, message: format!("{message}; stored, the capability is {capability}") }
    })
}

/// Failures are errors: they are shown even when quiet.
pub(crate) fn show_failures(failures: &Failures, what: &str) {
    for line in failure_lines(failures, what) {
        output::tell(line);
    }
    let shown = failures.listed.len().min(FAILURES_SHOWN) as u64;
    if failures.count > shown {
        let listed = match failures.listed.len() as u64 {
            all if all == failures.count => "them".to_owned(),
            some => format!("the first {some}"),
        };
        let more = failures.count - shown;
        output::tell(format_args!("copse: {what}: {more} more; --json lists {listed}"));
    }
}

/// The first failures. What the same nodes said of several is told once.
fn failure_lines(failures: &Failures, what: &str) -> Vec<String> {
    let (mut lines, mut told) = (Vec::new(), Vec::new());
    for failure in failures.listed.iter().take(FAILURES_SHOWN) {
        let Failure { error, nodes, is_folder, .. } = failure;
        let mut path = output::name(failure.path.as_os_str().as_bytes());
        if *is_folder && !path.ends_with('/') {
            path.push('/');
        }
        let again = nodes.as_ref().filter(|nodes| told.contains(nodes));
        let brief = again.and_then(|nodes| error.strip_suffix(&format!(" ({nodes})")));
        let error = output::sentence(brief.unwrap_or(error));
        lines.push(format!("copse: {what}: {path}: {error}"));
        told.extend(nodes);
    }
    lines
}

pub(crate) fn failures_json(failures: &Failures) -> Vec<serde_json::Value> {
    failures
        .listed
        .iter()
        .map(|failure| {
            let mut value = json!({ "error": failure.error, "is_folder": failure.is_folder });
            output::set_path(&mut value, "path", failure.path.as_os_str().as_bytes());
            value
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use copse_client::error::{GetError, Refusals};
    use copse_core::ids::{ChunkId, NodeId};
    use copse_proto::status::{Reason, Refusal};

    use super::*;

    #[test]
    fn it_is_told_what_is_survived_when_too_few_nodes_took_shards() {
        let said = |crowded_chunks, on_one_node, survives| {
            let worst = Some(Crowded { on_one_node, survives, planned: 6 });
            crowded(&Redundancy { crowded_chunks, crowded: worst, ..Redundancy::default() })
        };
        assert_eq!(
            crowded(&Redundancy { on_one_node: 4, ..Redundancy::default() }),
            None,
            "by plan"
        );
        for (chunks, survives, words) in [
            (
                3,
                4,
                "of 3 chunks up to 3 shards are on one node, where they were put while other nodes",
            ),
            (3, 4, "they survive the loss of any 4 nodes, and of 6 when spread;"),
            (1, 1, "of 1 chunk up to 3 shards are on one node,"),
            (1, 1, "it survives the loss of any 1 node, and of 6"),
            (1, 0, "the loss of one node would lose data"),
        ] {
            let said = said(chunks, 3, survives).expect("crowded");
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn what_nodes_said_of_many_entries_is_told_once() {
        let mut failures = Failures::default();
        let mut add = |path: &str, have: usize, why: &str, is_folder: bool| {
            let refusal = Refusal::new(Reason::NodeUnreachable, why.to_owned());
            let error = GetError::DataLoss {
                chunk: ChunkId::new([1; 32]),
                have,
                need: 4,
                unreachable: 1,
                refusals: Refusals(vec![(NodeId::new([2; 32]), refusal)]),
            };
            failures.add_unread(Path::new(path), &error.into(), is_folder);
        };
        add("a", 3, "it is gone", true);
        add("b/", 2, "it is gone", true);
        add("c", 1, "it is late", false);
        failures.add(Path::new("d"), &"torn");
        let lines = failure_lines(&failures, "not restored");
        let back = "1 node that may hold more did not answer: try again when it is back";
        let gone = "(node 02020202: it is gone (NODE_UNREACHABLE))";
        let late = "(node 02020202: it is late (NODE_UNREACHABLE))";
        let of = "of the 4 shards needed of chunk 01010101";
        assert_eq!(
            lines,
            [
                format!("copse: not restored: a/: have 3 {of}; {back} {gone}"),
                format!("copse: not restored: b/: have 2 {of}; {back}"),
                format!("copse: not restored: c: have 1 {of}; {back} {late}"),
                "copse: not restored: d: torn".to_owned(),
            ]
        );
        assert_eq!((failures.count, failures.folders), (4, 2));
    }

    #[test]
    fn a_put_of_nothing_is_refused_and_of_something_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("good"), "good").expect("written");
        std::os::unix::fs::symlink("nowhere", path("link")).expect("linked");
        for good in [&["good"][..], &["nosuch", "good"], &["link"], &["nosuch", "link", "neither"]]
        {
            let paths: Vec<_> = good.iter().map(|name| path(name)).collect();
            assert!(some_is_there(&paths).is_ok(), "{good:?}");
        }
        for (bad, words) in [
            (&["nosuch"][..], "cannot read "),
            (&["nosuch", "neither"], "none of the 2 paths named is there: nothing was stored"),
        ] {
            let paths: Vec<_> = bad.iter().map(|name| path(name)).collect();
            let error = some_is_there(&paths).expect_err("nothing is there");
            assert_eq!(error.code, crate::exit::OTHER);
            assert!(error.message.contains(words) && error.message.contains("nosuch"), "{error:?}");
        }
    }
}
