//! Building the content of one file: pieces in order in, something for its entry out.
//!
//! Owns what lies inline, in the entry, or in a tree of piece nodes of its own. One idea: each level
//! holds only its open node, so a file of any length takes O(log n) memory. Nodes are cut by count:
//! pieces are cut at fixed places too, so there is nothing to find again after an insertion.

use super::{
    entry::{Content, Piece},
    node::{PIECES_IN_ENTRY_MAX, Span, encode_pieces, encode_spans, piece_bytes},
    pack::{OpenPiece, PackError, PackWriter, Place},
};
use crate::{extent::Extent, limits::INLINE_BYTES_MAX};

/// Pieces or children of a node, at most: 46 KiB of references, within a node's 64 KiB.
const ITEMS_PER_NODE: usize = 512;

const _: () = assert!(
    ITEMS_PER_NODE * (10 + super::node::REFERENCE_BYTES_MAX) + super::node::NODE_HEADER_BYTES_MAX
        <= super::node::NODE_BYTES_MAX
);

/// The open nodes of a file.
#[derive(Default)]
pub(crate) struct ContentBuilder {
    size: u64,
    /// The whole content so far, while it may end up inline.
    inline: Option<Vec<u8>>,
    pieces: Vec<OpenPiece>,
    levels: Vec<Vec<Span<Place>>>,
}

impl ContentBuilder {
    /// The next bytes are a chunk's, or part of one.
    pub(crate) fn extent(
        &mut self,
        extent: Extent,
        pack: &mut PackWriter,
    ) -> Result<(), PackError> {
        self.flush_inline(pack)?;
        if extent.plaintext_bytes == 0 {
            return Ok(());
        }
        self.make_room(pack)?;
        self.add(Piece::Data(Place::Extent(extent)));
        Ok(())
    }

    /// The next bytes are these, to be packed or to lie inline.
    pub(crate) fn bytes(&mut self, bytes: &[u8], pack: &mut PackWriter) -> Result<(), PackError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.size == 0 && bytes.len() <= INLINE_BYTES_MAX {
            self.size = bytes.len() as u64;
            self.inline = Some(bytes.to_vec());
            return Ok(());
        }
        self.flush_inline(pack)?;
        // Before the item is packed, for the same reason as in directories.
        self.make_room(pack)?;
        let item = pack.item(bytes)?;
        self.add(Piece::Data(item));
        Ok(())
    }

    /// The next bytes are so many zeros.
    pub(crate) fn hole(&mut self, bytes: u64, pack: &mut PackWriter) -> Result<(), PackError> {
        self.flush_inline(pack)?;
        match self.pieces.last_mut() {
            _ if bytes == 0 => Ok(()),
            Some(Piece::Hole(last)) => {
                *last = last.saturating_add(bytes);
                self.size = self.size.saturating_add(bytes);
                Ok(())
            }
            _ => {
                self.make_room(pack)?;
                self.add(Piece::Hole(bytes));
                Ok(())
            }
        }
    }

    /// The size, and what the entry says of the content.
    pub(crate) fn finish(
        mut self,
        pack: &mut PackWriter,
    ) -> Result<(u64, Content<Place>), PackError> {
        if let Some(bytes) = self.inline {
            return Ok((self.size, Content::Inline(bytes)));
        }
        if self.size == 0 {
            return Ok((0, Content::Inline(Vec::new())));
        }
        if self.levels.is_empty() && self.pieces.len() <= PIECES_IN_ENTRY_MAX {
            return Ok((self.size, Content::Pieces(self.pieces)));
        }
        // Room is made only when another piece comes, so there is one here.
        let mut last = self.seal_pieces(pack)?;
        for level in 0..self.levels.len() {
            self.levels[level].push(last);
            last = self.seal_level(level, pack)?;
        }
        Ok((self.size, Content::Tree(last.node)))
    }

    fn flush_inline(&mut self, pack: &mut PackWriter) -> Result<(), PackError> {
        if let Some(bytes) = self.inline.take() {
            self.size = 0;
            let item = pack.item(&bytes)?;
            self.add(Piece::Data(item));
        }
        Ok(())
    }

    fn add(&mut self, piece: OpenPiece) {
        self.size = self.size.saturating_add(piece_bytes(&piece));
        self.pieces.push(piece);
    }

    /// Seals the nodes that are full.
    fn make_room(&mut self, pack: &mut PackWriter) -> Result<(), PackError> {
        if self.pieces.len() < ITEMS_PER_NODE {
            return Ok(());
        }
        let mut span = self.seal_pieces(pack)?;
        let mut level = 0;
        loop {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            self.levels[level].push(span);
            if self.levels[level].len() < ITEMS_PER_NODE {
                return Ok(());
            }
            span = self.seal_level(level, pack)?;
            level += 1;
        }
    }

    fn seal_pieces(&mut self, pack: &mut PackWriter) -> Result<Span<Place>, PackError> {
        let pieces = core::mem::take(&mut self.pieces);
        let children = pieces.iter().filter_map(|piece| match piece {
            Piece::Data(place) => Some(place),
            Piece::Hole(_) => None,
        });
        let node = pack.node(children, |at| encode_pieces(&pieces, at))?;
        Ok(Span { bytes: pieces.iter().map(piece_bytes).fold(0, u64::saturating_add), node })
    }

    fn seal_level(
        &mut self,
        level: usize,
        pack: &mut PackWriter,
    ) -> Result<Span<Place>, PackError> {
        let spans = core::mem::take(&mut self.levels[level]);
        // 512^12 pieces are more than a file can have.
        let height = u8::try_from(level + 1).unwrap_or(u8::MAX);
        let children = spans.iter().map(|span| &span.node);
        let node = pack.node(children, |at| encode_spans(height, &spans, at))?;
        Ok(Span { bytes: spans.iter().map(|span| span.bytes).fold(0, u64::saturating_add), node })
    }
}
