//! `copse get` and `copse cat`.

use std::{
    io::Write as _,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use copse_client::{
    content::{Block, FileReader},
    get::Downloader,
    transfer::{Counters, GetOptions, GetOutcome, GetTreeError, get_tree},
    tree_read::TreeReader,
};
use copse_core::{
    capability::Capability,
    text::{self, READ_CAPABILITY},
    tree::{Entry, Kind, Name},
};
use serde_json::{Value, json};

use crate::{
    args::ByteRange,
    exit::{CliError, DATA_LOSS, EXISTS, NO_ROOM, PARTIAL, USAGE},
    given::Given,
    output,
    progress::Progress,
    put::{failures_json, show_failures},
    session::Session,
    waiting::{self, Waiting},
};

/// Zeros written at once for a hole that goes to standard output.
const ZEROS_BYTES: usize = 64 << 10;

impl From<GetTreeError> for CliError {
    fn from(error: GetTreeError) -> Self {
        match error {
            GetTreeError::Read(error) => error.into(),
            GetTreeError::Restore(error) => error.into(),
            GetTreeError::NoRoom { .. } => Self::new(NO_ROOM, error),
            GetTreeError::Stopped => Self::interrupted(true),
        }
    }
}

pub(crate) async fn get(
    session: &Session,
    given: &Given,
    destination: Option<PathBuf>,
    partial: bool,
) -> Result<ExitCode, CliError> {
    let turned = destination.as_ref().and_then(|path| path.to_str());
    if turned.is_some_and(|path| text::is_kind(READ_CAPABILITY, path)) {
        return Err(CliError::new(
            USAGE,
            "the capability comes first: copse get CAPABILITY DESTINATION",
        ));
    }
    let (capability, path) = session.capability(given)?;
    let source = source_of(&capability, &path);
    // `out/` names the same as `out`.
    let destination = destination.map(|path| path.components().collect::<PathBuf>());
    // Told before anything is fetched.
    if let Some(destination) = destination.as_ref().filter(|path| *path != Path::new("-"))
        && destination.symlink_metadata().is_ok()
    {
        return Err(exists(destination));
    }
    let (_, network) = session.connect().await?;
    let tree = TreeReader::new(Downloader::new(network), &capability)?;
    let _waiting = Waiting::for_reads(session, tree.downloader());
    let entry = tree.lookup(path.clone()).await.map_err(CliError::reading(&path))?;
    if destination.as_deref() == Some(Path::new("-")) {
        return copy_out(session, &tree, &entry, &path, None).await;
    }
    let destination = match destination {
        Some(destination) => destination,
        None if entry.name.is_unnamed() => {
            return Err(CliError::new(USAGE, "this tree has no name; name a destination"));
        }
        None => named(entry.name.as_bytes())?,
    };

    let counters = Arc::new(Counters::default());
    let waits = waits(tree.downloader());
    let progress = Progress::start("get", &counters, session.global.quiet, waits);
    let started = Instant::now();
    let options = GetOptions { destination: destination.clone(), source, partial };
    let outcome = get_tree(&tree, entry, options, counters.clone()).await;
    drop(progress);
    let mut outcome = outcome?;
    let took = started.elapsed();
    // What was there before was not moved.
    let moved = outcome.bytes.saturating_sub(counters.bytes_known.load(Ordering::Relaxed));
    let holes = counters.hole_bytes_done.load(Ordering::Relaxed);
    for failure in &mut outcome.failures.listed {
        if failure.path.as_os_str().is_empty() {
            // What was asked for has no path within itself.
            failure.path.clone_from(&destination);
        }
    }
    if session.global.json {
        output::print(json(&outcome, &destination, took))?;
    }
    if outcome.failures.count > 0 {
        show_failures(&outcome.failures, "not restored");
        let code = if outcome.data_loss { DATA_LOSS } else { PARTIAL };
        return Err(CliError::new(code, incomplete(&outcome, &destination)));
    }
    if outcome.unkept > 0 {
        let entries = output::count(outcome.unkept, "entry")
            + output::one_or(
                outcome.unkept,
                " is without its mode or time",
                " are without their modes or times",
            );
        let there = destination.display();
        let message = format!("all is in {there}, but {entries}: the file system there takes none");
        return Err(CliError::new(PARTIAL, message));
    }
    session.say(format!(
        "got {}, {} in {:.1} s{} to {}{}",
        output::contents(&outcome.kinds),
        output::bytes_and_holes(outcome.bytes, if outcome.resumed { 0 } else { holes }),
        took.as_secs_f64(),
        output::rate(moved, took),
        destination.display(),
        if outcome.resumed { ", going on from an interrupted try" } else { "" },
    ));
    Ok(ExitCode::SUCCESS)
}

fn json(outcome: &GetOutcome, destination: &Path, took: Duration) -> Value {
    let mut value = json!({
        "made": outcome.made,
        "waiting": null,
        "files": outcome.kinds.files,
        "directories": outcome.kinds.directories,
        "symlinks": outcome.kinds.symlinks,
        "bytes": outcome.bytes,
        "resumed": outcome.resumed,
        "seconds": took.as_secs_f64(),
        "failures": failures_json(&outcome.failures),
        "failures_count": outcome.failures.count,
        "failures_folders": outcome.failures.folders,
        "without_mode_or_time": outcome.unkept,
    });
    output::set_path(&mut value, "destination", destination.as_os_str().as_bytes());
    if let Some(waiting) = &outcome.waiting {
        output::set_path(&mut value, "waiting", waiting.as_os_str().as_bytes());
    }
    value
}

/// What became of a tree of which a part could not be restored, and what to do.
fn incomplete(outcome: &GetOutcome, destination: &Path) -> String {
    let failures = outcome.failures.count;
    let folders = match outcome.failures.folders {
        0 => None,
        1 => Some("1 folder with what is below it".to_owned()),
        some => Some(format!("{} with what is below them", output::count(some, "folder"))),
    };
    let others = failures.saturating_sub(outcome.failures.folders);
    let others = |what| (others > 0).then(|| output::count(others, what));
    let lost = match folders {
        None => output::count(failures, "entry"),
        Some(folders) => {
            folders + &others("other entry").map(|some| format!(" and {some}")).unwrap_or_default()
        }
    };
    let lost = format!("{lost} could not be restored");
    let rest = output::count(outcome.kinds.files, "file");
    if outcome.made {
        return format!("{lost}; the rest, {rest}, is in {}", destination.display());
    }
    let final_loss = failures.saturating_sub(outcome.unwritable + outcome.may_pass);
    let again = match (outcome.may_pass, final_loss) {
        (0, 0) => "name a destination on another file system".to_owned(),
        (_, 0) => "run the same command again when more nodes answer".to_owned(),
        (0, _) => {
            "every node that may hold what is missing has answered, so another try finds it only if one that is \
             gone comes back"
                .to_owned()
        }
        (waiting, some) => format!(
            "run the same command again when more nodes answer, which may bring {}; {} {} lost unless a node that \
             is gone comes back",
            output::Count(waiting),
            output::count(some, "entry"),
            output::one_or(some, "is", "are"),
        ),
    };
    let waiting = match &outcome.waiting {
        None => return format!("nothing was restored; {again}"),
        Some(waiting) => waiting.display(),
    };
    let destination = destination.display();
    let partial = match outcome.may_pass {
        0 => format!("add --partial to have the rest in {destination}"),
        _ => format!("add --partial to have it in {destination} as it is"),
    };
    format!("{lost}; the rest, {rest}, waits in {waiting}; {again}; {partial}")
}

fn exists(destination: &Path) -> CliError {
    CliError::new(
        EXISTS,
        format!("{} exists; name another destination or remove it first", destination.display()),
    )
}

/// Where a tree goes that says itself what it is called. Not to a hidden name: whoever made the tree would
/// choose which of the settings in this folder it becomes.
fn named(name: &[u8]) -> Result<PathBuf, CliError> {
    if name.starts_with(b".") {
        let name = output::name(name);
        let why =
            format!("this tree calls itself {name}, which is a hidden name; name a destination");
        return Err(CliError::new(USAGE, why));
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(name.to_vec())))
}

/// What a restore is a part of, without giving the capability to whoever reads the disk: the same however
/// it was written.
fn source_of(capability: &Capability, path: &[Name]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("copse restore source v2");
    hasher.update(capability.to_string().as_bytes());
    for name in path {
        // A name has no slash.
        hasher.update(b"/").update(name.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

pub(crate) async fn cat(
    session: &Session,
    given: &Given,
    range: Option<ByteRange>,
) -> Result<ExitCode, CliError> {
    let (capability, path) = session.capability(given)?;
    let (_, network) = session.connect().await?;
    let tree = TreeReader::new(Downloader::new(network), &capability)?;
    let _waiting = Waiting::for_reads(session, tree.downloader());
    let entry = tree.lookup(path.clone()).await.map_err(CliError::reading(&path))?;
    copy_out(session, &tree, &entry, &path, range).await
}

/// What a line of progress adds when the reader waits.
fn waits(reader: &Downloader) -> impl Fn() -> String + Send + use<> {
    let reader = reader.clone();
    move || waiting::briefly(&reader).map(|words| format!("  {words}")).unwrap_or_default()
}

fn no_stream(what: &str) -> CliError {
    let how = "`copse get CAPABILITY DEST` restores it, `copse ls` shows it";
    CliError::new(USAGE, format!("the capability names {what}, which is no stream of bytes: {how}"))
}

/// Writes a file, or a range of it, to standard output. `path` names it in errors.
async fn copy_out(
    session: &Session,
    tree: &TreeReader,
    entry: &Entry,
    path: &[Name],
    range: Option<ByteRange>,
) -> Result<ExitCode, CliError> {
    let size = match entry.kind {
        Kind::File { size, .. } => size,
        Kind::Directory { .. } => return Err(no_stream("a folder")),
        Kind::Symlink { .. } => return Err(no_stream("a symbolic link")),
    };
    let (first, count) = match range {
        None => (0, size),
        Some(range) => range.within(size).ok_or_else(|| {
            CliError::new(
                USAGE,
                format!(
                    "the range starts behind the end: the file has {}",
                    output::count(size, "byte")
                ),
            )
        })?,
    };
    let counters = Arc::new(Counters::default());
    counters.bytes_total.store(count, Ordering::Relaxed);
    let quiet = session.global.quiet || range.is_some();
    let progress = Progress::start("cat", &counters, quiet, waits(tree.downloader()));
    let unread = CliError::reading(path);
    let stream = FileReader::new(tree.downloader().clone(), entry, first..first + count);
    let mut stream = stream.map_err(&unread)?;
    while let Some(part) = stream.next().await.map_err(&unread)? {
        let bytes = part.len();
        let written = tokio::task::spawn_blocking(move || write_out(&part)).await;
        match written.map_err(CliError::other)? {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                // The reader has had enough, as `head` does.
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => {
                return Err(output::unwritten(&error));
            }
        }
        counters.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }
    drop(progress);
    Ok(ExitCode::SUCCESS)
}

fn write_out(part: &Block) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match part {
        Block::Data(bytes) => out.write_all(bytes)?,
        Block::Hole(bytes) => {
            let zeros = [0; ZEROS_BYTES];
            let mut left = *bytes;
            while left > 0 {
                let count = left.min(ZEROS_BYTES as u64);
                out.write_all(&zeros[..usize::try_from(count).unwrap_or(ZEROS_BYTES)])?;
                left -= count;
            }
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use copse_client::transfer::{Failures, Kinds};
    use copse_core::tree::path;

    use super::*;

    #[test]
    fn what_to_do_about_a_part_that_is_missing_is_what_helps() {
        let said = |folders: u64, (unwritable, may_pass, final_loss): (u64, u64, u64)| {
            let count = unwritable + may_pass + final_loss;
            let failures = Failures { count, folders, ..Failures::default() };
            let outcome = GetOutcome {
                kinds: Kinds { files: 1, ..Kinds::default() },
                bytes: 1,
                resumed: false,
                failures,
                data_loss: true,
                unwritable,
                may_pass,
                unkept: 0,
                made: false,
                waiting: Some("out.copse-partial/content".into()),
            };
            incomplete(&outcome, Path::new("out"))
        };
        let again = "run the same command again when more nodes answer";
        let check = |losses: (u64, u64, u64), words: &[&str], not: &[&str]| {
            let said = said(0, losses);
            words.iter().for_each(|words| assert!(said.contains(words), "{words}: {said}"));
            not.iter().for_each(|words| assert!(!said.contains(words), "{words}: {said}"));
        };
        let other = "name a destination on another file system";
        let gone = "every node that may hold what is missing has answered";
        check((1, 0, 0), &["1 entry could not", "the rest, 1 file,", other], &[again, gone]);
        check((1, 2, 0), &["3 entries could not", again], &[gone, " lost "]);
        check((0, 0, 2), &[gone, "add --partial to have the rest in out"], &[again, other]);
        check((0, 3, 1), &[again, "may bring 3; 1 entry is lost unless"], &[gone]);
        for (folders, words) in [
            (1, "1 folder with what is below it and 3 other entries could not be restored"),
            (3, "3 folders with what is below them and 1 other entry could not be restored"),
            (4, "4 folders with what is below them could not be restored"),
        ] {
            let said = said(folders, (0, 3, 1));
            assert!(said.starts_with(words), "{said}");
        }
    }

    #[test]
    fn a_tree_does_not_choose_a_hidden_name_for_itself() {
        for name in [".bash_profile", ".", "..."] {
            assert_eq!(named(name.as_bytes()).expect_err("hidden").code, USAGE);
        }
        assert_eq!(named(b"photos.d").expect("a name"), Path::new("photos.d"));
    }

    #[test]
    fn a_restore_is_the_same_however_its_capability_was_written() {
        let text = "copse1raeaqgaydambqgaydaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaquegaqeykyasnbibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibafrmotpaa";
        let source = |text: &str, below: &str| {
            let capability = text.parse().expect("a capability");
            source_of(&capability, &path::split(below.as_bytes()).expect("a path"))
        };
        let first = source(text, "a/b");
        assert_eq!(source(&format!(" {} ", text.to_ascii_uppercase()), "/a//b/"), first);
        for other in ["a", "ab", ""] {
            assert_ne!(source(text, other), first);
        }
    }
}
