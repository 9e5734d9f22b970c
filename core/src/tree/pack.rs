//! Packs: chunks filled with many small sealed items, back to back.
//!
//! Owns the open pack, when it is closed, and where its items are. Refuses items too large to share
//! a chunk. One idea: a pack's id exists only when it is closed, so an item's place points at a cell
//! that closing fills in; an empty cell means "in the pack that is open now".

use std::sync::{Arc, OnceLock};

use super::{
    entry::Piece,
    node::{Reference, write_same_pack},
};
use crate::{
    chunk::{EncodedChunk, encode_body},
    extent::Extent,
    geometry::Geometry,
    ids::ChunkId,
    layout::{Layout, LayoutError},
    limits::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, PACKED_BYTES_MAX},
    seal::{ContentKey, ConvergenceSecret, content_key, seal_into, sealed_bytes},
    wire::Writer,
};

/// A pack is closed by its content only from this size on, in bytes of body: smaller chunks make
/// small shards, which cost holders and readers a request each. And only behind a node, unless so
/// many bytes came since the last one: then whatever names them must name several packs anyway.
pub(crate) const PACK_BYTES_MIN: usize = 1 << 20;

/// From then on, bytes end the pack with a chance of their number over this. So packs have about
/// 4 MiB, and after a change the cuts fall where they fell before: without, one changed item would
/// shift everything behind it into other packs. Only one run in nine reaches the size of a chunk.
pub(crate) const PACK_BYTES_MORE: usize = 3 << 20;

/// A pack whose last node names items of other packs changes whenever they do, and so do all nodes
/// elsewhere that name anything in it. So such a node is the last item of its pack, but for the
/// nodes above it, which change with it anyway; what follows goes to the next pack. Otherwise a
/// change would run on from pack to pack to the end of the tree. Packs of fewer bytes than this go on
/// all the same: a tiny chunk costs as many requests as a full one.
pub(crate) const PACK_BYTES_SPLIT: usize = 64 << 10;

/// Encoding buffers kept for reuse, at most: one is being filled, one may come back.
const SPARE_BUFFERS_MAX: usize = 2;

/// What is known of a pack once it is closed.
#[derive(Debug)]
struct Closed {
    chunk: ChunkId,
    geometry: Geometry,
    shard_bytes: u32,
}

/// Where an item is: in a pack that may still be open.
#[derive(Clone, Debug)]
pub(crate) struct ItemRef {
    pack: Arc<OnceLock<Closed>>,
    offset: u32,
    plaintext_bytes: u32,
    frame_bytes: u32,
    key: ContentKey,
}

impl ItemRef {
    /// The item's extent; nothing while its pack is open.
    fn extent(&self) -> Option<Extent> {
        let closed = self.pack.get()?;
        Some(Extent {
            chunk: closed.chunk,
            geometry: closed.geometry,
            shard_bytes: closed.shard_bytes,
            offset: self.offset,
            plaintext_bytes: self.plaintext_bytes,
            frame_bytes: self.frame_bytes,
            key: self.key.clone(),
        })
    }
}

/// Where sealed bytes are, while a tree is being written.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In a chunk that has an id.
    Extent(Extent),
    /// In a pack.
    Item(ItemRef),
}

impl Place {
    /// The extent; nothing while the pack is open.
    pub(crate) fn extent(&self) -> Option<Extent> {
        match self {
            Self::Extent(extent) => Some(extent.clone()),
            Self::Item(item) => item.extent(),
        }
    }
}

impl Reference for Place {
    fn plaintext_bytes(&self) -> u32 {
        match self {
            Self::Extent(extent) => extent.plaintext_bytes,
            Self::Item(item) => item.plaintext_bytes,
        }
    }

    fn write(&self, out: &mut Writer, at: u32) {
        match self {
            Self::Extent(extent) => extent.write(out, at),
            Self::Item(item) => match item.extent() {
                Some(extent) => extent.write(out, at),
                None => write_same_pack(
                    out,
                    // A node is written behind all that it names.
                    at.saturating_sub(item.offset),
                    item.plaintext_bytes,
                    item.frame_bytes,
                    &item.key,
                ),
            },
        }
    }
}

impl Place {
    /// In a pack that is closed.
    fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Item(item) if item.pack.get().is_some())
    }

    /// At this offset of the pack that is open.
    fn is_at(&self, offset: usize) -> bool {
        matches!(self, Self::Item(item)
            if item.pack.get().is_none() && item.offset as usize == offset)
    }
}

/// A piece of a file that is being written.
pub(crate) type OpenPiece = Piece<Place>;

/// Why an item could not be packed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// More than shares a chunk.
    #[error(
        "{got} bytes are too many for a pack: give content over {PACKED_BYTES_MAX} bytes a chunk of its own"
    )]
    TooLarge {
        /// Its length in bytes.
        got: usize,
    },
    /// A full pack could not be encoded.
    #[error("a pack could not be encoded")]
    Encode(#[from] LayoutError),
}

/// Seals items into packs, one after the other.
#[derive(Debug)]
pub(crate) struct PackWriter {
    geometry: Geometry,
    secret: ConvergenceSecret,
    body_bytes_max: usize,
    body: Vec<u8>,
    open: Arc<OnceLock<Closed>>,
    /// Where the last node is that names items of other packs, or a node above it.
    tip: Option<usize>,
    /// Bytes in the open pack since its last node, and since content was last asked for a cut.
    since_node: usize,
    since_chance: usize,
    chunks: Vec<EncodedChunk>,
    spare: Vec<Vec<u8>>,
}

impl PackWriter {
    /// No pack yet.
    pub(crate) fn new(geometry: Geometry, secret: ConvergenceSecret) -> Self {
        Self {
            geometry,
            secret,
            body_bytes_max: Layout::largest(geometry).body_bytes(),
            body: Vec::new(),
            open: Arc::default(),
            tip: None,
            since_node: 0,
            since_chance: 0,
            chunks: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Seals one item, which may close the open pack before or behind it.
    pub(crate) fn item(&mut self, plaintext: &[u8]) -> Result<Place, PackError> {
        if self.tip.is_some() && self.body.len() >= PACK_BYTES_SPLIT {
            self.close()?;
        }
        let item = self.seal(plaintext)?;
        if self.since_node >= PACK_BYTES_MIN {
            self.cut(&item.key)?;
        }
        Ok(Place::Item(item))
    }

    /// Seals a node, which `encode` writes and which names `children`. When it does not fit into
    /// the open pack, that is closed first and the node encoded again: what was in the same pack now
    /// has an extent.
    pub(crate) fn node<'a>(
        &mut self,
        children: impl Iterator<Item = &'a Place> + Clone,
        encode: impl Fn(u32) -> Vec<u8>,
    ) -> Result<Place, PackError> {
        if let Some(tip) = self.tip
            && self.body.len() >= PACK_BYTES_SPLIT
            && !children.clone().any(|child| child.is_at(tip))
        {
            self.close()?;
        }
        let mut plaintext = encode(self.offset()?);
        let sealed = sealed_bytes(plaintext.len(), item_frame_bytes(plaintext.len()));
        if self.body.len() + sealed > self.body_bytes_max {
            self.close()?;
            plaintext = encode(self.offset()?);
        }
        let offset = self.body.len();
        if self.tip.is_some_and(|tip| children.clone().any(|child| child.is_at(tip)))
            || children.clone().any(Place::is_elsewhere)
        {
            self.tip = Some(offset);
        }
        let item = self.seal(&plaintext)?;
        self.cut(&item.key)?;
        self.since_node = 0;
        Ok(Place::Item(item))
    }

    /// Where the next item will be.
    fn offset(&self) -> Result<u32, PackError> {
        u32::try_from(self.body.len()).map_err(|_| PackError::TooLarge { got: self.body.len() })
    }

    fn seal(&mut self, plaintext: &[u8]) -> Result<ItemRef, PackError> {
        let too_large = || PackError::TooLarge { got: plaintext.len() };
        if plaintext.len() > PACKED_BYTES_MAX {
            return Err(too_large());
        }
        let frame_bytes = item_frame_bytes(plaintext.len());
        let sealed = sealed_bytes(plaintext.len(), frame_bytes);
        if self.body.len() + sealed > self.body_bytes_max {
            self.close()?;
        }
        let key = content_key(&self.secret, plaintext);
        let offset = self.body.len();
        self.body.resize(offset + sealed, 0);
        seal_into(&key, frame_bytes, plaintext, &mut self.body[offset..]);
        self.since_node += sealed;
        self.since_chance += sealed;
        let word = |value: usize| u32::try_from(value).map_err(|_| too_large());
        Ok(ItemRef {
            pack: Arc::clone(&self.open),
            offset: word(offset)?,
            plaintext_bytes: word(plaintext.len())?,
            frame_bytes: word(frame_bytes)?,
            key,
        })
    }

    /// Closes the pack when the key of its last item says so. A key is a keyed hash of the item's
    /// plaintext, so whoever lacks the secret can neither foresee nor provoke the cuts.
    fn cut(&mut self, key: &ContentKey) -> Result<(), PackError> {
        let over = self.body.len().saturating_sub(PACK_BYTES_MIN);
        let bytes = core::mem::take(&mut self.since_chance).min(over);
        let mut first = [0; 8];
        first.copy_from_slice(&key.as_bytes()[..8]);
        if chance(u64::from_le_bytes(first), bytes, PACK_BYTES_MORE) {
            self.close()?;
        }
        Ok(())
    }

    /// Closes the open pack, so that all places so far have extents.
    pub(crate) fn close(&mut self) -> Result<(), PackError> {
        if self.body.is_empty() {
            return Ok(());
        }
        let buffer = self.spare.pop().unwrap_or_default();
        let chunk = encode_body(self.geometry, &self.body, &self.secret, buffer)?;
        let descriptor = chunk.descriptor();
        let closed = Closed {
            chunk: chunk.id(),
            geometry: descriptor.geometry(),
            shard_bytes: u32::try_from(descriptor.shard_bytes())
                .map_err(|_| PackError::TooLarge { got: self.body.len() })?,
        };
        // A fresh cell per pack, filled here only.
        let _ = core::mem::take(&mut self.open).set(closed);
        self.chunks.push(chunk);
        self.body.clear();
        (self.tip, self.since_node, self.since_chance) = (None, 0, 0);
        Ok(())
    }

    /// The packs closed since the last call.
    pub(crate) fn take_chunks(&mut self) -> Vec<EncodedChunk> {
        core::mem::take(&mut self.chunks)
    }

    /// Gives a buffer of a chunk back for the next.
    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < SPARE_BUFFERS_MAX {
            self.spare.push(buffer);
        }
    }

    /// The secret under which items are sealed.
    pub(crate) fn secret(&self) -> &ConvergenceSecret {
        &self.secret
    }
}

/// One frame up to 64 KiB: a smaller frame would only cost tags, since a small item is read whole.
fn item_frame_bytes(plaintext_bytes: usize) -> usize {
    plaintext_bytes.next_power_of_two().clamp(FRAME_BYTES_MIN, FRAME_BYTES_MAX)
}

/// True for `bytes` in `of` of all hashes.
pub(crate) fn chance(hash: u64, bytes: usize, of: usize) -> bool {
    u128::from(hash) * (of as u128) < (bytes as u128) << 64
}
