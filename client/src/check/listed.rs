//! The chunks that a manifest lists, and those that it is itself made of.
//!
//! Owns the way through a manifest. Knows no tree but the one file that the manifest is. The one
//! idea: the manifest's own chunks are found as those of any file are, and named before it is read.

use std::{path::PathBuf, sync::Arc};

use copse_core::{
    extent::Extent,
    manifest::{MANIFEST_BYTES_MAX, ManifestReader},
    tree::{Entry, Kind},
    wire::WireError,
};
use tokio::sync::mpsc;

use super::walk::{Found, Gone, Walk, channel};
use crate::{
    content::Block, error::ReadError, task::Task, transfer::Counters, tree_read::TreeReader,
};

/// Bytes of a manifest read ahead: the references of 200,000 chunks.
const READ_AHEAD_BYTES: usize = 8 << 20;

/// Walks a manifest, as a task that stops when it is dropped.
pub(super) fn start(
    tree: TreeReader,
    root: Extent,
    counters: Arc<Counters>,
) -> (Task<()>, mpsc::Receiver<Found>) {
    let (out, found) = channel();
    let task = Task::spawn(async move {
        // The manifest's own bytes are not what is counted.
        let own = Walk { tree, out, counters: Arc::default() };
        if run(&own, root, &counters).await.is_err() {
            tracing::debug!("the walk through a manifest was given up");
        }
    });
    (task, found)
}

async fn run(own: &Walk, root: Extent, counters: &Counters) -> Result<(), Gone> {
    let entry = match own.find(root, Vec::new()).await? {
        Ok(entry) => entry,
        Err(error) => return own.say(unreadable(error)).await,
    };
    if let Err(error) = check(&entry) {
        return own.say(Found::Nothing(error.into())).await;
    }
    if let Err(error) = own.file(b"", &entry).await? {
        return own.say(unreadable(error)).await;
    }
    match references(own, &entry, counters).await? {
        Ok(()) => Ok(()),
        Err(error @ ReadError::Manifest(_)) => own.say(Found::Nothing(error)).await,
        Err(error) => own.say(unreadable(error)).await,
    }
}

/// It has no path but that of the whole.
fn unreadable(error: ReadError) -> Found {
    Found::Unreadable(PathBuf::new(), error)
}

/// Told before anything of it is fetched.
fn check(entry: &Entry) -> Result<(), WireError> {
    let (what, limit) = ("the length of a manifest", MANIFEST_BYTES_MAX);
    match entry.kind {
        Kind::File { size, .. } if size > limit => {
            Err(WireError::OverLimit { what, got: size, limit })
        }
        Kind::File { .. } => Ok(()),
        _ => Err(WireError::WrongMagic("a manifest")),
    }
}

/// Names what the manifest lists.
async fn references(
    own: &Walk,
    entry: &Entry,
    counters: &Counters,
) -> Result<Result<(), ReadError>, Gone> {
    let mut bytes = match own.tree.read(entry) {
        Ok(reader) => reader.read_ahead(READ_AHEAD_BYTES),
        Err(error) => return Ok(Err(error)),
    };
    let mut manifest = ManifestReader::default();
    loop {
        let found = match bytes.next().await {
            Ok(Some(Block::Data(bytes))) => manifest.push(&bytes),
            Ok(Some(Block::Hole(_))) => Err(WireError::Invalid("a hole in a manifest")),
            Ok(None) => return Ok(manifest.finish().map_err(ReadError::from)),
            Err(error) => return Ok(Err(error)),
        };
        match found {
            Ok(found) => {
                for chunk in found {
                    Counters::add(&counters.bytes_done, chunk.body_bytes());
                    own.say(Found::Listed(chunk)).await?;
                }
            }
            Err(error) => return Ok(Err(error.into())),
        }
    }
}
