//! `copse ls`.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::PathBuf, process::ExitCode};

use copse_client::{
    error::{GetError, ReadError},
    get::Downloader,
    transfer::Failures,
    tree_read::{DEPTH_MAX, TreeReader},
};
use copse_core::tree::{Entry, Kind, Name, path};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::{
    exit::{CliError, DATA_LOSS, PARTIAL},
    given::Given,
    output,
    put::show_failures,
    session::Session,
    waiting::Waiting,
};

pub(crate) async fn ls(
    session: &Session,
    given: &Given,
    long: bool,
    recursive: bool,
) -> Result<ExitCode, CliError> {
    let (capability, path) = session.capability(given)?;
    let (_, network) = session.connect().await?;
    let tree = TreeReader::new(Downloader::new(network), &capability)?;
    let _waiting = Waiting::for_reads(session, tree.downloader());
    let entry = tree.lookup(path.clone()).await.map_err(CliError::reading(&path))?;
    if !matches!(entry.kind, Kind::Directory { .. }) {
        show(session, long, entry.name.as_bytes(), &entry)?;
        return Ok(ExitCode::SUCCESS);
    }
    // The directories being listed, the innermost last, each with its path.
    let mut open = vec![(Vec::new(), tree.list(&entry)?.boxed())];
    let mut unlisted = Unlisted { of: path, folders: Failures::default(), data_loss: false };
    while !output::had_enough()
        && let Some((path, entries)) = open.last_mut()
    {
        let child = match entries.next().await {
            Some(Ok(child)) => child,
            Some(Err(error)) => {
                unlisted.note(session, path, &error)?;
                open.pop();
                continue;
            }
            None => {
                open.pop();
                continue;
            }
        };
        let mut path = path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(child.name.as_bytes());
        show(session, long, &path, &child)?;
        if recursive && matches!(child.kind, Kind::Directory { .. }) {
            // Whoever made the tree can put a folder into itself.
            let below = match open.len() < DEPTH_MAX {
                true => tree.list(&child),
                false => Err(ReadError::TooDeep { depth: DEPTH_MAX }),
            };
            match below {
                Ok(below) => open.push((path, below.boxed())),
                Err(error) => unlisted.note(session, &path, &error)?,
            }
        }
    }
    unlisted.end()
}

/// The folders that could not be listed, or not to their end.
struct Unlisted {
    /// Where in the tree the listing began.
    of: Vec<Name>,
    folders: Failures,
    data_loss: bool,
}

impl Unlisted {
    /// Notes one. Programs read it among the entries.
    fn note(&mut self, session: &Session, path: &[u8], error: &ReadError) -> Result<(), CliError> {
        self.data_loss |= matches!(error, ReadError::Get(GetError::DataLoss { .. }));
        if session.global.json {
            let mut value = json!({ "error": error.to_string() });
            output::set_path(&mut value, "path", path);
            output::print(value)?;
        }
        let shown = match path.is_empty() {
            true => PathBuf::from(path::display(&self.of)),
            false => PathBuf::from(OsStr::from_bytes(path)),
        };
        self.folders.add_unread(&shown, error, true);
        Ok(())
    }

    fn end(self) -> Result<ExitCode, CliError> {
        if self.folders.count == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        show_failures(&self.folders, "not listed");
        let code = if self.data_loss { DATA_LOSS } else { PARTIAL };
        let folders = output::count(self.folders.count, "folder");
        Err(CliError::new(code, format!("{folders} could not be listed to the end")))
    }
}

fn show(session: &Session, long: bool, path: &[u8], entry: &Entry) -> Result<(), CliError> {
    let line =
        if session.global.json { json(path, entry).to_string() } else { text(long, path, entry) };
    output::print(line)
}

fn json(path: &[u8], entry: &Entry) -> Value {
    let (kind, size) = match &entry.kind {
        Kind::File { size, .. } => ("file", *size),
        Kind::Directory { counts, .. } => ("directory", counts.bytes),
        Kind::Symlink { .. } => ("symlink", 0),
    };
    let mut value = json!({
        "kind": kind,
        "size": size,
        "mode": entry.meta.mode,
        "mtime": entry.meta.modified.seconds(),
        "mtime_nanos": entry.meta.modified.nanoseconds(),
    });
    output::set_path(&mut value, "path", path);
    if let Kind::Symlink { target } = &entry.kind {
        output::set_path(&mut value, "symlink_target", target);
    }
    value
}

fn text(long: bool, path: &[u8], entry: &Entry) -> String {
    let slash = if matches!(entry.kind, Kind::Directory { .. }) { "/" } else { "" };
    let name = output::name(path) + slash;
    if !long {
        return name;
    }
    let (kind, size, target) = match &entry.kind {
        Kind::File { size, .. } => ('-', *size, String::new()),
        Kind::Directory { counts, .. } => ('d', counts.bytes, String::new()),
        Kind::Symlink { target } => {
            ('l', target.len() as u64, format!(" -> {}", output::name(target)))
        }
    };
    format!(
        "{} {size:>14} {} {name}{target}",
        output::mode(kind, entry.meta.mode),
        output::time(entry.meta.modified.seconds()),
    )
}
