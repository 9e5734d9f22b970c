//! Reading files: which items, holes and inline bytes make up a range of one, without I/O.
//!
//! Owns the way from offsets in a file to ranges of items. Refuses nodes whose lengths do not add up.
//! One idea: every part knows its length before it is fetched, so only what overlaps the range is.

use core::ops::Range;

use super::{
    entry::{Content, Entry, Kind, Piece},
    node::{ContentNode, NodeError, decode_content, piece_bytes},
    reader::{ReadError, Reading},
};
use crate::extent::Extent;

/// A stretch of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Where it starts in the file.
    pub offset: u64,
    /// Its length, more than zero.
    pub bytes: u64,
    /// Where its bytes are.
    pub source: Source,
}

/// Where the bytes of a stretch are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// These are they.
    Inline(Vec<u8>),
    /// Part of an item.
    Item {
        /// The item.
        extent: Extent,
        /// Which bytes of its plaintext.
        within: Range<usize>,
    },
    /// All zero.
    Hole,
}

/// Finds the stretches of a range of a file, in order and without gaps.
#[derive(Debug, Clone)]
pub struct FileRange {
    range: Range<u64>,
    /// What comes next is last.
    todo: Vec<Part>,
}

#[derive(Debug, Clone)]
struct Part {
    offset: u64,
    bytes: u64,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Inline(Vec<u8>),
    Piece(Piece),
    Node { extent: Extent, height: Option<u8> },
}

impl FileRange {
    /// A range of the file that an entry is.
    ///
    /// # Errors
    /// When it is none, or the range is not within it.
    pub fn new(file: &Entry, range: Range<u64>) -> Result<Self, ReadError> {
        let Kind::File { size, content } = &file.kind else {
            return Err(ReadError::NotAFile { name: file.name.to_string() });
        };
        let size = *size;
        if range.start > range.end || range.end > size {
            return Err(ReadError::OutOfRange { start: range.start, end: range.end, size });
        }
        let mut out = Self { range, todo: Vec::new() };
        let whole = |what| Part { offset: 0, bytes: size, what };
        match content {
            Content::Inline(bytes) => out.add(vec![whole(What::Inline(bytes.clone()))]),
            Content::Pieces(pieces) => out.add(parts_of(0, pieces.clone())),
            Content::Tree(extent) => {
                out.add(vec![whole(What::Node { extent: extent.clone(), height: None })]);
            }
        }
        Ok(out)
    }

    /// All of the file that an entry is.
    ///
    /// # Errors
    /// When it is none.
    pub fn whole(file: &Entry) -> Result<Self, ReadError> {
        let size = match &file.kind {
            Kind::File { size, .. } => *size,
            _ => 0,
        };
        Self::new(file, 0..size)
    }

    /// What to fetch, the next stretch, or the end.
    pub fn step(&mut self) -> Reading<Stretch> {
        let Some(Part { offset, bytes, what }) = self.todo.pop() else { return Reading::End };
        let start = self.range.start.max(offset);
        let end = self.range.end.min(offset.saturating_add(bytes));
        // At most the length of an item, which fits in memory.
        let within = || {
            let place = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
            place(start)..place(end)
        };
        let source = match what {
            What::Node { extent, height } => {
                let what = What::Node { extent: extent.clone(), height };
                self.todo.push(Part { offset, bytes, what });
                return Reading::Fetch(extent);
            }
            What::Inline(bytes) => Source::Inline(bytes.get(within()).unwrap_or_default().to_vec()),
            What::Piece(Piece::Data(extent)) => Source::Item { extent, within: within() },
            What::Piece(Piece::Hole(_)) => Source::Hole,
        };
        Reading::Ready(Stretch { offset: start, bytes: end - start, source })
    }

    /// Takes the plaintext asked for.
    ///
    /// # Errors
    /// When it is not what it should be, or was not asked for.
    pub fn feed(&mut self, plaintext: &[u8]) -> Result<(), ReadError> {
        let Some(Part { offset, bytes, what: What::Node { extent, height: wanted } }) =
            self.todo.pop()
        else {
            return Err(ReadError::OutOfTurn);
        };
        let (height, parts) = match decode_content(plaintext, &extent)? {
            ContentNode::Leaf(pieces) => (0, parts_of(offset, pieces)),
            ContentNode::Inner { height, spans } => {
                let spans = spans.into_iter().map(|span| {
                    let height = height.checked_sub(1);
                    (span.bytes, What::Node { extent: span.node, height })
                });
                (height, parts(offset, spans))
            }
        };
        if wanted.is_some_and(|wanted| wanted != height) {
            let what = "a node at another height than its parent says";
            return Err(NodeError::Contradiction(what).into());
        }
        let sum = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.bytes));
        if sum != Some(bytes) {
            return Err(NodeError::Contradiction("a file's pieces are not its size").into());
        }
        self.add(parts);
        Ok(())
    }

    /// Nodes that will be asked for next, in order, as far as they are known: for fetching ahead.
    pub fn ahead(&self) -> impl Iterator<Item = &Extent> {
        self.todo.iter().rev().filter_map(|part| match &part.what {
            What::Node { extent, .. } => Some(extent),
            _ => None,
        })
    }

    fn add(&mut self, parts: Vec<Part>) {
        let range = &self.range;
        self.todo.extend(parts.into_iter().rev().filter(|part| {
            part.offset < range.end && part.offset.saturating_add(part.bytes) > range.start
        }));
    }
}

fn parts_of(offset: u64, pieces: Vec<Piece>) -> Vec<Part> {
    parts(offset, pieces.into_iter().map(|piece| (piece_bytes(&piece), What::Piece(piece))))
}

/// Where each part starts. Sums that overflow are found by the caller.
fn parts(offset: u64, lengths: impl Iterator<Item = (u64, What)>) -> Vec<Part> {
    lengths
        .scan(offset, |at, (bytes, what)| {
            let offset = *at;
            *at = at.saturating_add(bytes);
            Some(Part { offset, bytes, what })
        })
        .collect()
}
