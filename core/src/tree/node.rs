//! The bytes of a tree's nodes, and of its root.
//!
//! Owns encoding and checked decoding; every decoded extent is absolute. Refuses whatever the
//! builders could not have written: unsorted names, sums that do not add up, oversized nodes. One
//! idea: a node may name items of its own pack without the pack's id, which does not exist yet.
//!
//! ```text
//! root    "CPSR" 1 │ entry (its name may be empty)
//! node    "CPST" 1 │ family u8 (1 directory, 2 content) │ height u8 │ count varint, ≥ 1 │ items
//!   directory, height 0   entry ...              names strictly ascending
//!   directory, height h   name │ reference ...   first name below each; children of height h-1
//!   content, height 0     piece ...
//!   content, height h     bytes varint │ reference ...
//! entry   name │ kind u8 │ mode varint │ seconds signed │ nanoseconds varint │ body │ attributes
//!   1 file      size varint │ 0 inline bytes, or 1 count varint pieces ..., or 2 reference
//!   2 directory entries varint │ all varint │ bytes varint │ reference, unless entries = 0
//!   3 symlink   target
//! attributes   bytes in all varint │ (number varint │ value) ...   numbers strictly ascending
//! piece        0 length varint (hole) │ reference
//! reference    1 distance varint │ plaintext bytes varint │ log2 of frame bytes u8 │ key 32
//!              2 extent
//! ```
//! Name, target and value are a varint of the length and then the bytes. The distance is from the start
//! of the item back to the start of the node that names it: so a node's bytes stay the same when both
//! move, and no node can contain itself.

use super::entry::{
    ATTRIBUTES_BYTES_MAX, Attributes, Content, Counts, Entry, Kind, MODE_MAX, Meta, Name,
    NameError, Piece, Timestamp, is_target,
};
use crate::{
    extent::Extent,
    limits::{INLINE_BYTES_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX},
    seal::ContentKey,
    wire::{Reader, WireError, Writer},
};

/// A node, at most, in bytes: one frame, so that reading a node is reading one range of one shard.
pub const NODE_BYTES_MAX: usize = 64 << 10;

/// The root item, at most, in bytes: one entry with the most that it can hold.
pub const ROOT_BYTES_MAX: usize = 16 << 10;

/// Levels above the leaves, at most. An inner node of 16 KiB has 46 children or more, so 12 levels
/// are enough for 2^64 entries; a tree that claims more was made to keep readers busy.
pub const HEIGHT_MAX: u8 = 12;

/// Pieces that lie in the entry itself: 120 MB of a file in full chunks, about 1.3 KiB of entry.
pub const PIECES_IN_ENTRY_MAX: usize = 16;

/// A reference, at most, in bytes: the tag and an extent with the longest numbers.
pub(crate) const REFERENCE_BYTES_MAX: usize = 1 + 32 + 2 + 4 + 5 + 4 + 1 + 32;

const ROOT_MAGIC: &[u8] = b"CPSR";
const NODE_MAGIC: &[u8] = b"CPST";
const VERSION: u8 = 1;
/// Magic, version, family, height, count.
pub(crate) const NODE_HEADER_BYTES_MAX: usize = 4 + 1 + 1 + 1 + 3;

const FAMILY_DIRECTORY: u8 = 1;
const FAMILY_CONTENT: u8 = 2;

const KIND_FILE: u8 = 1;
const KIND_DIRECTORY: u8 = 2;
const KIND_SYMLINK: u8 = 3;

const CONTENT_INLINE: u8 = 0;
const CONTENT_PIECES: u8 = 1;
const CONTENT_TREE: u8 = 2;

const PIECE_HOLE: u8 = 0;
const REFERENCE_SAME_PACK: u8 = 1;
const REFERENCE_EXTENT: u8 = 2;

/// Why the plaintext of a tree's node cannot be used. It was sealed like this: a faulty or hostile
/// program wrote it, and no other copy will be better.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Not the format.
    #[error("the tree was written wrongly: {0}")]
    Wire(#[from] WireError),
    /// A name that none may have.
    #[error("the tree was written wrongly: {0}")]
    Name(#[from] NameError),
    /// Larger than a node may be.
    #[error("the tree was written wrongly: a node of {got} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Its size in bytes.
        got: usize,
        /// The most allowed.
        limit: usize,
    },
    /// Names out of order, or twice the same.
    #[error("the tree was written wrongly: the name {0} is out of order")]
    Unsorted(Name),
    /// Parts that contradict each other.
    #[error("the tree was written wrongly: {0}")]
    Contradiction(&'static str),
}

/// What an entry or node says about where an item lies.
pub(crate) trait Reference {
    /// Length of the item.
    fn plaintext_bytes(&self) -> u32;
    /// Writes it, relative to the node at this offset of its pack where it must be.
    fn write(&self, out: &mut Writer, at: u32);
}

/// Writes a reference to an item of the pack that the node itself is in, so far before it.
pub(crate) fn write_same_pack(
    out: &mut Writer,
    distance: u32,
    plaintext_bytes: u32,
    frame_bytes: u32,
    key: &ContentKey,
) {
    out.u8(REFERENCE_SAME_PACK)
        .varint(distance.into())
        .varint(plaintext_bytes.into())
        // At most 32.
        .u8(u8::try_from(frame_bytes.trailing_zeros()).unwrap_or(u8::MAX))
        .bytes(key.as_bytes());
}

impl Reference for Extent {
    fn plaintext_bytes(&self) -> u32 {
        self.plaintext_bytes
    }

    fn write(&self, out: &mut Writer, _: u32) {
        out.u8(REFERENCE_EXTENT);
        self.encode_to(out);
    }
}

/// A node of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectoryNode {
    /// Entries, sorted by name, at least one.
    Leaf(Vec<Entry>),
    /// Children, sorted by the first name below each, at least one.
    Inner {
        /// 1 above the leaves.
        height: u8,
        /// The children.
        branches: Vec<Branch>,
    },
}

/// A child of an inner directory node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch<R = Extent> {
    /// The smallest name in the leaves below.
    pub first: Name,
    /// The node.
    pub node: R,
}

/// A node of a long file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentNode {
    /// Pieces in order, at least one.
    Leaf(Vec<Piece>),
    /// Children in order, at least one.
    Inner {
        /// 1 above the leaves.
        height: u8,
        /// The children.
        spans: Vec<Span>,
    },
}

/// A child of an inner content node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span<R = Extent> {
    /// Bytes of the file that lie below, more than zero.
    pub bytes: u64,
    /// The node.
    pub node: R,
}

fn header(family: u8, height: u8, count: usize) -> Writer {
    let mut out = Writer::new();
    out.bytes(NODE_MAGIC).u8(VERSION).u8(family).u8(height).varint(count as u64);
    out
}

/// The bytes of a leaf of a directory, to be at this offset of its pack.
pub(crate) fn encode_leaf<R: Reference>(entries: &[Entry<R>], at: u32) -> Vec<u8> {
    let mut out = header(FAMILY_DIRECTORY, 0, entries.len());
    for entry in entries {
        write_entry(&mut out, entry, at);
    }
    out.finish()
}

/// The bytes of an inner node of a directory.
pub(crate) fn encode_inner<R: Reference>(height: u8, branches: &[Branch<R>], at: u32) -> Vec<u8> {
    let mut out = header(FAMILY_DIRECTORY, height, branches.len());
    for branch in branches {
        out.prefixed(branch.first.as_bytes());
        branch.node.write(&mut out, at);
    }
    out.finish()
}

/// The bytes of a leaf of a file's content.
pub(crate) fn encode_pieces<R: Reference>(pieces: &[Piece<R>], at: u32) -> Vec<u8> {
    let mut out = header(FAMILY_CONTENT, 0, pieces.len());
    for piece in pieces {
        write_piece(&mut out, piece, at);
    }
    out.finish()
}

/// The bytes of an inner node of a file's content.
pub(crate) fn encode_spans<R: Reference>(height: u8, spans: &[Span<R>], at: u32) -> Vec<u8> {
    let mut out = header(FAMILY_CONTENT, height, spans.len());
    for span in spans {
        out.varint(span.bytes);
        span.node.write(&mut out, at);
    }
    out.finish()
}

/// The bytes of a root item.
pub(crate) fn encode_root<R: Reference>(entry: &Entry<R>, at: u32) -> Vec<u8> {
    let mut out = Writer::new();
    out.bytes(ROOT_MAGIC).u8(VERSION);
    write_entry(&mut out, entry, at);
    out.finish()
}

fn write_entry<R: Reference>(out: &mut Writer, entry: &Entry<R>, at: u32) {
    let kind = match entry.kind {
        Kind::File { .. } => KIND_FILE,
        Kind::Directory { .. } => KIND_DIRECTORY,
        Kind::Symlink { .. } => KIND_SYMLINK,
    };
    let meta = &entry.meta;
    out.prefixed(entry.name.as_bytes())
        .u8(kind)
        .varint(meta.mode.into())
        .signed(meta.modified.seconds())
        .varint(meta.modified.nanoseconds().into());
    match &entry.kind {
        Kind::File { size, content } => {
            out.varint(*size);
            match content {
                Content::Inline(bytes) => {
                    out.u8(CONTENT_INLINE).bytes(bytes);
                }
                Content::Pieces(pieces) => {
                    out.u8(CONTENT_PIECES).varint(pieces.len() as u64);
                    for piece in pieces {
                        write_piece(out, piece, at);
                    }
                }
                Content::Tree(node) => {
                    out.u8(CONTENT_TREE);
                    node.write(out, at);
                }
            }
        }
        Kind::Directory { root, counts } => {
            out.varint(counts.entries).varint(counts.all).varint(counts.bytes);
            if let Some(root) = root {
                root.write(out, at);
            }
        }
        Kind::Symlink { target } => {
            out.prefixed(target);
        }
    }
    out.prefixed(&attributes_bytes(&meta.attributes));
}

/// The attributes of an entry as they stand in it, without the length in front.
pub(crate) fn attributes_bytes(attributes: &Attributes) -> Vec<u8> {
    let mut out = Writer::new();
    for (number, value) in attributes.iter() {
        out.varint(number).prefixed(value);
    }
    out.finish()
}

fn write_piece<R: Reference>(out: &mut Writer, piece: &Piece<R>, at: u32) {
    match piece {
        Piece::Hole(bytes) => {
            out.u8(PIECE_HOLE).varint(*bytes);
        }
        Piece::Data(item) => item.write(out, at),
    }
}

/// Reads a node of a directory that was fetched from `from`.
///
/// # Errors
/// When the bytes are not what a builder could have written.
pub fn decode_directory(plaintext: &[u8], from: &Extent) -> Result<DirectoryNode, NodeError> {
    let (mut reader, height, count) = open(plaintext, FAMILY_DIRECTORY)?;
    // A count is no reason to allocate: bytes that are really there are.
    let node = if height == 0 {
        let mut entries: Vec<Entry> = Vec::new();
        for _ in 0..count {
            let entry = read_entry(&mut reader, from, Name::new)?;
            if entries.last().is_some_and(|last| last.name >= entry.name) {
                return Err(NodeError::Unsorted(entry.name));
            }
            entries.push(entry);
        }
        DirectoryNode::Leaf(entries)
    } else {
        let mut branches: Vec<Branch> = Vec::new();
        for _ in 0..count {
            let first = Name::new(reader.prefixed("a name's length", NAME_BYTES_MAX)?)?;
            let node = node_reference(&mut reader, from)?;
            if branches.last().is_some_and(|last| last.first >= first) {
                return Err(NodeError::Unsorted(first));
            }
            branches.push(Branch { first, node });
        }
        DirectoryNode::Inner { height, branches }
    };
    reader.end()?;
    Ok(node)
}

/// Reads a node of a file's content that was fetched from `from`.
///
/// # Errors
/// When the bytes are not what a builder could have written.
pub fn decode_content(plaintext: &[u8], from: &Extent) -> Result<ContentNode, NodeError> {
    let (mut reader, height, count) = open(plaintext, FAMILY_CONTENT)?;
    let node = if height == 0 {
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push(read_piece(&mut reader, from)?);
        }
        ContentNode::Leaf(pieces)
    } else {
        let mut spans = Vec::new();
        for _ in 0..count {
            let bytes = positive(&mut reader, "the length below a node")?;
            spans.push(Span { bytes, node: node_reference(&mut reader, from)? });
        }
        ContentNode::Inner { height, spans }
    };
    reader.end()?;
    Ok(node)
}

/// Reads a root item that was fetched from `from`.
///
/// # Errors
/// When the bytes are not what a builder could have written.
pub fn decode_root(plaintext: &[u8], from: &Extent) -> Result<Entry, NodeError> {
    if plaintext.len() > ROOT_BYTES_MAX {
        return Err(NodeError::TooLarge { got: plaintext.len(), limit: ROOT_BYTES_MAX });
    }
    let mut reader = Reader::new(plaintext);
    reader.magic("a tree's root", ROOT_MAGIC, VERSION)?;
    let entry = read_entry(&mut reader, from, Name::of_root)?;
    reader.end()?;
    Ok(entry)
}

fn open(plaintext: &[u8], family: u8) -> Result<(Reader<'_>, u8, u64), NodeError> {
    if plaintext.len() > NODE_BYTES_MAX {
        return Err(NodeError::TooLarge { got: plaintext.len(), limit: NODE_BYTES_MAX });
    }
    let mut reader = Reader::new(plaintext);
    reader.magic("a tree's node", NODE_MAGIC, VERSION)?;
    if reader.u8()? != family {
        return Err(NodeError::Contradiction("a directory's node in a file, or the reverse"));
    }
    let height = reader.u8()?;
    if height > HEIGHT_MAX {
        return Err(NodeError::Contradiction("a node higher than any tree grows"));
    }
    let count = reader.bounded("the count of a node", plaintext.len() as u64)?;
    if count == 0 {
        return Err(NodeError::Contradiction("a node with nothing in it"));
    }
    Ok((reader, height, count))
}

fn read_entry(
    reader: &mut Reader<'_>,
    from: &Extent,
    check: fn(&[u8]) -> Result<Name, NameError>,
) -> Result<Entry, NodeError> {
    let name = check(reader.prefixed("a name's length", NAME_BYTES_MAX)?)?;
    let kind = reader.u8()?;
    let mode = u32::try_from(reader.bounded("a mode", MODE_MAX.into())?)
        .map_err(|_| WireError::Invalid("a mode"))?;
    let seconds = reader.signed()?;
    let modified = u32::try_from(reader.varint()?)
        .ok()
        .and_then(|nanoseconds| Timestamp::new(seconds, nanoseconds))
        .ok_or(WireError::Invalid("a time's nanoseconds"))?;
    let kind = match kind {
        KIND_FILE => {
            let size = reader.varint()?;
            Kind::File { size, content: read_content(reader, from, size)? }
        }
        KIND_DIRECTORY => {
            let counts = Counts {
                entries: reader.varint()?,
                all: reader.varint()?,
                bytes: reader.varint()?,
            };
            if counts.all < counts.entries || (counts.entries == 0 && counts != Counts::default()) {
                return Err(NodeError::Contradiction("a directory's counts cannot be"));
            }
            let root = if counts.entries == 0 { None } else { Some(node_reference(reader, from)?) };
            Kind::Directory { root, counts }
        }
        KIND_SYMLINK => {
            let target = reader.prefixed("a link's length", SYMLINK_BYTES_MAX)?;
            if !is_target(target) {
                return Err(WireError::Invalid("a link's target").into());
            }
            Kind::Symlink { target: target.to_vec() }
        }
        _ => return Err(WireError::Invalid("the kind of an entry").into()),
    };
    let attributes = read_attributes(reader)?;
    Ok(Entry { name, meta: Meta { mode, modified, attributes }, kind })
}

fn read_content(reader: &mut Reader<'_>, from: &Extent, size: u64) -> Result<Content, NodeError> {
    match reader.u8()? {
        CONTENT_INLINE => match usize::try_from(size) {
            Ok(count) if count <= INLINE_BYTES_MAX => {
                Ok(Content::Inline(reader.bytes(count)?.to_vec()))
            }
            _ => Err(WireError::OverLimit {
                what: "the content in an entry",
                got: size,
                limit: INLINE_BYTES_MAX as u64,
            }
            .into()),
        },
        CONTENT_PIECES => {
            let count = reader.bounded("the pieces in an entry", PIECES_IN_ENTRY_MAX as u64)?;
            let mut pieces = Vec::new();
            let mut sum = Some(0u64);
            for _ in 0..count {
                let piece = read_piece(reader, from)?;
                sum = sum.and_then(|sum| sum.checked_add(piece_bytes(&piece)));
                pieces.push(piece);
            }
            if pieces.is_empty() || sum != Some(size) {
                return Err(NodeError::Contradiction("a file's pieces are not its size"));
            }
            Ok(Content::Pieces(pieces))
        }
        CONTENT_TREE if size > 0 => Ok(Content::Tree(node_reference(reader, from)?)),
        _ => Err(WireError::Invalid("the kind of a file's content").into()),
    }
}

fn read_attributes(reader: &mut Reader<'_>) -> Result<Attributes, NodeError> {
    let mut inner =
        Reader::new(reader.prefixed("the attributes of an entry", ATTRIBUTES_BYTES_MAX)?);
    let mut attributes = Attributes::default();
    let mut last = None;
    while inner.remaining() > 0 {
        let number = inner.varint()?;
        if last.is_some_and(|last| last >= number) {
            return Err(WireError::Invalid("the order of attributes").into());
        }
        last = Some(number);
        let value = inner.prefixed("an attribute", ATTRIBUTES_BYTES_MAX)?;
        attributes.set(number, value.to_vec());
    }
    Ok(attributes)
}

fn read_piece(reader: &mut Reader<'_>, from: &Extent) -> Result<Piece, NodeError> {
    match reader.u8()? {
        PIECE_HOLE => Ok(Piece::Hole(positive(reader, "the length of a hole")?)),
        tag => {
            let item = read_reference(tag, reader, from)?;
            if item.plaintext_bytes == 0 {
                return Err(WireError::Invalid("the length of a piece").into());
            }
            Ok(Piece::Data(item))
        }
    }
}

fn node_reference(reader: &mut Reader<'_>, from: &Extent) -> Result<Extent, NodeError> {
    let tag = reader.u8()?;
    let node = read_reference(tag, reader, from)?;
    // Checked here, so that nobody fetches megabytes to find that they are no node.
    let got = node.plaintext_bytes as usize;
    if got > NODE_BYTES_MAX {
        return Err(NodeError::TooLarge { got, limit: NODE_BYTES_MAX });
    }
    Ok(node)
}

fn read_reference(tag: u8, reader: &mut Reader<'_>, from: &Extent) -> Result<Extent, NodeError> {
    match tag {
        REFERENCE_SAME_PACK => {
            let word = |value: u64| {
                u32::try_from(value).map_err(|_| WireError::Invalid("a place in a pack"))
            };
            let distance = word(reader.varint()?)?;
            let outside = WireError::Invalid("a place in a pack");
            let offset = from.offset.checked_sub(distance).ok_or(outside)?;
            let plaintext_bytes = word(reader.varint()?)?;
            let frame_bytes = 1u32
                .checked_shl(reader.u8()?.into())
                .ok_or(WireError::Invalid("the size of a frame"))?;
            let key = ContentKey::new(reader.array()?);
            let item = Extent { offset, plaintext_bytes, frame_bytes, key, ..from.clone() };
            item.check()?;
            if item.sealed_bytes() as u64 > distance.into() {
                return Err(outside.into());
            }
            Ok(item)
        }
        REFERENCE_EXTENT => Ok(Extent::decode_from(reader)?),
        _ => Err(WireError::Invalid("the kind of a reference").into()),
    }
}

fn positive(reader: &mut Reader<'_>, what: &'static str) -> Result<u64, WireError> {
    match reader.varint()? {
        0 => Err(WireError::Invalid(what)),
        value => Ok(value),
    }
}

/// How many bytes of a file a piece is.
pub(crate) fn piece_bytes<R: Reference>(piece: &Piece<R>) -> u64 {
    match piece {
        Piece::Data(item) => item.plaintext_bytes().into(),
        Piece::Hole(bytes) => *bytes,
    }
}
