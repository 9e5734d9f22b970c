//! What the product must make of a tree: its root and its chunks, made here without a network.
//!
//! Owns the cutting of files, as the product tells it of `chunk_bytes_max`, and the tree that is written of
//! the pieces. Stores nothing. The one idea: the same content makes the same chunks, so a put must give
//! exactly this capability; and what was promised with it is known at that very moment.

use std::collections::BTreeSet;

use copse_core::{
    capability::{Capability, VerifyCapability},
    chunk::{self, EncodedChunk},
    extent::Extent,
    geometry::Geometry,
    ids::NetworkId,
    manifest::{ChunkRef, Manifest},
    seal::ConvergenceSecret,
    tree::{Meta, Timestamp, TreeWriter},
};

use super::tree::{Item, Tree, What};

/// Plaintext of a chunk of a file, at most, in bytes: of the larger files of a tree each has a few.
pub(super) const CHUNK_BYTES: usize = 96 << 10;

/// What is left at the end of a file is packed up to so many bytes: an eighth.
const PACKED_BYTES: usize = CHUNK_BYTES / 8;

/// Permission bits of a list of chunks.
const LIST_MODE: u32 = 0o444;

/// The next bytes of a file, as they are read.
pub(super) enum Stretch {
    /// At most [`CHUNK_BYTES`].
    Data(Vec<u8>),
    /// So many zeros.
    Hole(u64),
}

/// What comes of a tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Made {
    root: Extent,
    /// All that it is made of, each once.
    pub(super) chunks: BTreeSet<ChunkRef>,
}

impl Made {
    /// What opens it.
    pub(super) fn capability(&self, network: NetworkId) -> String {
        Capability::read(network, self.root.clone()).to_string()
    }

    /// What opens it, of a list of chunks.
    pub(super) fn verify_capability(&self, network: NetworkId) -> String {
        VerifyCapability::new(network, self.root.clone()).to_string()
    }
}

/// Bytes as they are read from a stream.
pub(super) fn cut(bytes: &[u8]) -> Vec<Stretch> {
    bytes.chunks(CHUNK_BYTES).map(|piece| Stretch::Data(piece.to_vec())).collect()
}

/// What must come of a tree whose files are read so.
pub(super) fn of_tree(
    tree: &Tree,
    code: Geometry,
    secret: &ConvergenceSecret,
    mut read: impl FnMut(&Item) -> Result<Vec<Stretch>, String>,
) -> Result<Made, String> {
    let mut maker = Maker::new(code, secret);
    let mut open = 0;
    for item in &tree.items {
        while open > item.path.len() {
            maker.writer.end_directory().map_err(text)?;
            open -= 1;
        }
        let name = item.path.last().unwrap_or(&tree.name).as_bytes();
        let meta = item.meta.clone();
        match &item.what {
            What::Directory => {
                maker.writer.begin_directory(name, meta).map_err(text)?;
                open += 1;
            }
            What::Link(target) => maker.writer.add_symlink(name, meta, target).map_err(text)?,
            What::File(_) => {
                maker.writer.begin_file(name, meta).map_err(text)?;
                read(item)?.into_iter().try_for_each(|stretch| maker.push(stretch))?;
                maker.writer.end_file().map_err(text)?;
            }
        }
    }
    for _ in 0..open {
        maker.writer.end_directory().map_err(text)?;
    }
    maker.finish()
}

/// What must come of the list of a tree's chunks.
pub(super) fn of_list(tree: &Capability, chunks: &BTreeSet<ChunkRef>) -> Result<Made, String> {
    let mut manifest = Manifest::default();
    chunks.iter().try_for_each(|chunk| manifest.add(*chunk)).map_err(text)?;
    let code = manifest.geometry().ok_or("a tree without a chunk")?;
    let bytes: Vec<u8> = manifest.into_pieces().flatten().collect();
    let mut maker = Maker::new(code, &tree.manifest_secret());
    let meta = Meta::new(LIST_MODE, Timestamp::default());
    maker.writer.add_file(b"", meta, &bytes).map_err(text)?;
    maker.finish()
}

struct Maker {
    code: Geometry,
    secret: ConvergenceSecret,
    writer: TreeWriter,
    chunks: BTreeSet<ChunkRef>,
}

impl Maker {
    fn new(code: Geometry, secret: &ConvergenceSecret) -> Self {
        let writer = TreeWriter::new(code, secret.clone());
        Self { code, secret: secret.clone(), writer, chunks: BTreeSet::new() }
    }

    fn push(&mut self, stretch: Stretch) -> Result<(), String> {
        match stretch {
            Stretch::Data(bytes) if bytes.len() <= PACKED_BYTES => {
                self.writer.push_bytes(&bytes).map_err(text)
            }
            Stretch::Data(bytes) => {
                let made = chunk::encode_bulk(self.code, &self.secret, &bytes, Vec::new());
                let (_, extent) = made.map_err(text)?;
                self.chunks.insert(ChunkRef::from(&extent));
                self.writer.push_extent(extent).map_err(text)
            }
            Stretch::Hole(bytes) => self.writer.push_hole(bytes).map_err(text),
        }
    }

    fn finish(mut self) -> Result<Made, String> {
        let packs = self.writer.take_chunks();
        let finished = self.writer.finish().map_err(text)?;
        self.chunks.extend(packs.iter().chain(&finished.chunks).map(reference));
        Ok(Made { root: finished.root, chunks: self.chunks })
    }
}

/// What one must know of a chunk to ask for it.
pub(super) fn reference(chunk: &EncodedChunk) -> ChunkRef {
    let descriptor = chunk.descriptor();
    let shard_bytes = u32::try_from(descriptor.shard_bytes()).unwrap_or(u32::MAX);
    ChunkRef { id: chunk.id(), geometry: descriptor.geometry(), shard_bytes }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}
