//! Making a verify capability of a read capability: the tree's chunks, listed and stored.
//!
//! Owns the order: all of the tree is walked, its chunks are collected, and their manifest is stored
//! as a file of its own. Refuses trees that cannot be looked into to the end: a list with a gap would
//! call damage well. The one idea: nothing in it depends on who makes it or when, so the same read
//! capability always gives the same verify capability.

use std::{
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
};

use copse_core::{
    capability::{Capability, VerifyCapability},
    manifest::{Manifest, Pieces, TooManyChunksError},
    tree::{Meta, Name, Timestamp},
};

use super::walk::{self, Found};
use crate::{
    encode::{Budget, Encoder},
    error::ReadError,
    network::Network,
    put::{PutOptions as SessionOptions, Redundancy, Uploader},
    transfer::{Counters, PutOptions, PutTarget, PutTreeError, put_stream},
    tree_read::TreeReader,
};

/// A manifest that is stored, and what opens it.
#[derive(Debug, Clone)]
pub struct Verifier {
    /// Checks and repairs the tree.
    pub capability: VerifyCapability,
    /// Chunks listed.
    pub chunks: u64,
    /// Length of the manifest in bytes.
    pub manifest_bytes: u64,
    /// Bytes of shards that had to be sent; none when it was stored before.
    pub sent_bytes: u64,
    /// How safe it is.
    pub redundancy: Redundancy,
}

/// Why there is no verify capability.
#[derive(Debug, thiserror::Error)]
pub enum VerifierError {
    /// There is nothing at the path, or it is in another network.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A part of the tree cannot be looked into.
    #[error("{} cannot be looked into, and a list without it would be false: {source}", shown(.path))]
    Unreadable {
        /// Which, from the root on.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// It has too many chunks.
    #[error(transparent)]
    TooMany(#[from] TooManyChunksError),
    /// The manifest could not be stored.
    #[error(transparent)]
    Put(#[from] PutTreeError),
}

fn shown(path: &std::path::Path) -> String {
    if path.as_os_str().is_empty() { "the tree".to_owned() } else { format!("{path:?}") }
}

/// Lists the chunks of a tree, or of what lies at a path in it with the way there, and stores the
/// list in the tree's network, with the tree's geometry; where the loss of one node would lose the list,
/// only if that is allowed. What was stored before is not sent again.
///
/// # Errors
/// When a part of the tree cannot be looked into, or the list cannot be stored safely.
pub async fn make_verifier(
    tree: &TreeReader,
    capability: &Capability,
    path: Vec<Name>,
    allow_fragile: bool,
    counters: Arc<Counters>,
) -> Result<Verifier, VerifierError> {
    let manifest = list(tree, capability, path, counters).await?;
    // A walk that ends well has met the root.
    let geometry = manifest.geometry().ok_or(ReadError::Stopped)?;
    let (chunks, manifest_bytes) = (manifest.chunks(), manifest.encoded_bytes());

    let network: Network = tree.downloader().network().clone();
    let budget = Budget::default();
    let session = SessionOptions { allow_fragile, ..SessionOptions::default() };
    let target = PutTarget {
        uploader: Uploader::new(network.clone(), budget.clone(), session),
        encoder: Encoder::new(capability.manifest_secret(), budget),
        network: network.clone(),
    };
    let bytes = Box::new(Bytes { pieces: manifest.into_pieces(), piece: Vec::new(), at: 0 });
    let meta = Meta::new(0o444, Timestamp::default());
    let options = PutOptions::new(geometry);
    let stored = put_stream(&target, Vec::new(), meta, bytes, options, Arc::default()).await?;
    Ok(Verifier {
        capability: VerifyCapability::new(network.id(), stored.capability.root().clone()),
        chunks,
        manifest_bytes,
        sent_bytes: stored.progress.sent_bytes,
        redundancy: stored.redundancy,
    })
}

async fn list(
    tree: &TreeReader,
    capability: &Capability,
    path: Vec<Name>,
    counters: Arc<Counters>,
) -> Result<Manifest, VerifierError> {
    let (walking, mut found) = walk::start(tree.clone(), capability.root().clone(), path, counters);
    let mut manifest = Manifest::default();
    while let Some(found) = found.recv().await {
        match found {
            Found::Chunk(chunk, _) | Found::Listed(chunk) => manifest.add(chunk)?,
            Found::Entry(_) => {}
            Found::Unreadable(path, source) => {
                return Err(VerifierError::Unreadable { path, source });
            }
            Found::Nothing(error) => return Err(error.into()),
        }
    }
    // A walk that broke off has not named everything.
    walking.await.map_err(|_| ReadError::Stopped)?;
    Ok(manifest)
}

/// The bytes of a manifest as a stream.
struct Bytes {
    pieces: Pieces,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Bytes {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            let Some(piece) = self.pieces.next() else { return Ok(0) };
            (self.piece, self.at) = (piece, 0);
        }
        let read = (&self.piece[self.at..]).read(out)?;
        self.at += read;
        Ok(read)
    }
}
