//! `copse ls`.

use std::process::ExitCode;

use copse_client::{
    error::ReadError,
    get::Downloader,
    tree_read::{DEPTH_MAX, TreeReader},
};
use copse_core::tree::{Entry, Kind};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::{exit::CliError, output, session::Session};

pub(crate) async fn ls(
    session: &Session,
    capability: &str,
    long: bool,
    recursive: bool,
) -> Result<ExitCode, CliError> {
    let (capability, path) = session.capability(capability)?;
    let (_, network) = session.connect().await?;
    let tree = TreeReader::new(Downloader::new(network), &capability)?;
    let entry = tree.lookup(path).await?;
    if !matches!(entry.kind, Kind::Directory { .. }) {
        show(session, long, entry.name.as_bytes(), &entry)?;
        return Ok(ExitCode::SUCCESS);
    }
    // The directories being listed, the innermost last, each with its path.
    let mut open = vec![(Vec::new(), tree.list(&entry)?.boxed())];
    while let Some((path, entries)) = open.last_mut() {
        let Some(child) = entries.next().await.transpose()? else {
            open.pop();
            continue;
        };
        let mut path = path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(child.name.as_bytes());
        show(session, long, &path, &child)?;
        if recursive && matches!(child.kind, Kind::Directory { .. }) {
            // Whoever made the tree can put a folder into itself.
            if open.len() >= DEPTH_MAX {
                return Err(ReadError::TooDeep { depth: DEPTH_MAX }.into());
            }
            let below = tree.list(&child)?.boxed();
            open.push((path, below));
        }
    }
    Ok(ExitCode::SUCCESS)
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
