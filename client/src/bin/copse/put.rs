//! `copse put`.

use std::{
    fmt::Display,
    io::Write as _,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
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
    put::{PutOptions as SessionOptions, Redundancy, Uploader},
    transfer::{
        Counters, Failures, Kinds, PutOptions, PutOutcome, PutTarget, put_paths, put_stream,
    },
};
use copse_core::{
    capability::Capability,
    geometry::Geometry,
    tree::{Meta, Timestamp},
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
    let mut stop = Stop::new().map_err(|error| CliError::other(format!("no signals: {error}")))?;
    let (profile, network) = tokio::select! {
        biased;
        () = stop.asked() => return Err(CliError::interrupted(!from_input)),
        connected = session.connect() => connected?,
    };
    let (geometry, on_one_node) = choose_geometry(session, &network, &arguments)?;

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
    // What was there before was not moved.
    let moved = get(&moved.bytes_done).saturating_sub(get(&moved.bytes_known));
    let moved = moved.min(outcome.progress.sent_bytes);
    report(session, &outcome, &Done { geometry, on_one_node, moved, took })
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
    /// Shards of a chunk that were to lie on one node, at most.
    on_one_node: usize,
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

/// The code asked for or the network's default, if it survives the loss of any one node; and how many shards
/// of a chunk are to lie on one node, at most.
fn choose_geometry(
    session: &Session,
    network: &Network,
    arguments: &Put,
) -> Result<(Geometry, usize), CliError> {
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
    } else if chosen && geometry.total() > nodes {
        session.say(format!(
            "note: {geometry} on {} puts up to {} of a chunk on one node",
            output::count(nodes as u64, "node"),
            output::count(per_node as u64, "shard"),
        ));
    }
    Ok((geometry, per_node))
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
    let (worst, target) = redundancy.worst.unwrap_or_default();
    if session.global.json {
        print_safely(
            &outcome.capability,
            json!({
                "capability": outcome.capability.to_string(),
                "files": kinds.files,
                "directories": kinds.directories,
                "symlinks": kinds.symlinks,
                "bytes": bytes,
                "sent_bytes": sent,
                "chunks": outcome.progress.chunks + outcome.confirmed_chunks,
                "chunks_confirmed": outcome.confirmed_chunks,
                "shards_held": outcome.progress.shards_held,
                "geometry": geometry.to_string(),
                "redundancy_min": worst,
                "redundancy_target": target,
                "chunks_incomplete": redundancy.thin_chunks,
                "shards_on_one_node_max": redundancy.on_one_node,
                "shards_left_after_one_loss_min": redundancy.closest.map(|(left, _)| left),
                "seconds": took.as_secs_f64(),
                "failures": failures_json(&outcome.failures),
                "failures_count": outcome.failures.count,
            }),
        )?;
    } else {
        print_safely(&outcome.capability, &outcome.capability)?;
    }
    let safety = match redundancy.thin_chunks {
        0 => "every chunk has all its shards".to_owned(),
        _ => format!("the thinnest chunk has {worst} of {}", output::count(target as u64, "shard")),
    };
    session.say(format!(
        "put {}, {} in {:.1} s{}; sent {}; {safety}",
        contents(kinds),
        output::bytes(bytes),
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
    if let Some(crowded) = crowded(redundancy, done.on_one_node) {
        output::tell(format_args!("copse: {crowded}"));
    }
    if outcome.failures.count > 0 {
        show_failures(&outcome.failures, "not stored");
        return Err(CliError::new(
            PARTIAL,
            format!(
                "{} of what was named could not be stored; the capability is of all the rest",
                output::Count(outcome.failures.count)
            ),
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// What it means that more shards of a chunk are on one node than by plan, since too few nodes took any; nothing
/// when there are not.
fn crowded(redundancy: &Redundancy, planned: usize) -> Option<String> {
    let (left, geometry) = redundancy.closest?;
    if redundancy.on_one_node <= planned.max(1) {
        return None;
    }
    let most = output::count(redundancy.on_one_node as u64, "shard");
    let total = geometry.total();
    let loss = match left.checked_sub(geometry.data()) {
        None => "the loss of that node would lose data".to_owned(),
        Some(spare) => format!(
            "the loss of one node can leave {left} of {total}, of which {}",
            match spare {
                0 => "none may be lost".to_owned(),
                spare => format!("{spare} may be lost"),
            }
        ),
    };
    Some(format!(
        "since not all nodes take shards, up to {most} of a chunk are on one node: {loss}; the nodes spread them \
         by themselves when the others are back or new ones join"
    ))
}

/// What is in the tree: `3 files, 1 folder`.
fn contents(kinds: &Kinds) -> String {
    let all = [(kinds.files, "file"), (kinds.directories, "folder"), (kinds.symlinks, "link")];
    let some: Vec<_> = all
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| output::count(count, what))
        .collect();
    if some.is_empty() { "an empty folder".to_owned() } else { some.join(", ") }
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
    for failure in failures.listed.iter().take(FAILURES_SHOWN) {
        let path = output::name(&failure.path.clone().into_os_string().into_vec());
        output::tell(format_args!("copse: {what}: {path}: {}", output::sentence(&failure.error)));
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

pub(crate) fn failures_json(failures: &Failures) -> Vec<serde_json::Value> {
    failures
        .listed
        .iter()
        .map(|failure| {
            let mut value = json!({ "error": failure.error });
            output::set_path(&mut value, "path", failure.path.as_os_str().as_bytes());
            value
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_what_one_loss_means_when_too_few_nodes_took_shards() {
        let said = |code: &str, on_one_node: usize, left: usize, planned: usize| {
            let geometry: Geometry = code.parse().expect("a geometry");
            let closest = Some((left, geometry));
            crowded(&Redundancy { on_one_node, closest, ..Redundancy::default() }, planned)
        };
        assert_eq!(said("10+6", 1, 15, 1), None);
        assert_eq!(said("10+2", 4, 8, 4), None, "as it was told before");
        assert_eq!(crowded(&Redundancy::default(), 1), None, "nothing was stored");
        for (left, words) in [
            (
                13,
                "up to 3 shards of a chunk are on one node: the loss of one node can leave 13 of 16, of which 3 may be lost",
            ),
            (10, "can leave 10 of 16, of which none may be lost"),
            (9, "the loss of that node would lose data"),
        ] {
            let said = said("10+6", 3, left, 1).expect("crowded");
            assert!(said.contains(words), "{said}");
        }
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
