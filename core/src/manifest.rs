//! The list of all chunks of a tree: what one must know to check and repair it, and nothing to read it.
//!
//! Owns the reference to a chunk and the bytes of the list. Refuses lists with gaps, repetitions or
//! another order. The one idea: a reference says no more of a chunk than the nodes that hold it know,
//! and the order is that of the ids, so the list tells nothing of the tree's shape.
//!
//! ```text
//!  0      4         5            13              51
//!  ┌──────┬─────────┬────────────┬───────────────┬───────────────┬──
//!  │ CPSV │ version │ references │ reference,    │ reference,    │ …
//!  │      │ u8 = 1  │ u64 LE     │ 38 bytes      │ 38 bytes      │
//!  └──────┴─────────┴────────────┴───────────────┴───────────────┴──
//!  reference  chunk id 32 B ‖ k u8 ‖ n u8 ‖ shard_bytes u32 LE
//! ```
//! References ascend by these fields, in this order; none comes twice. A manifest is stored as the
//! content of a file, which a verify capability opens (see [`crate::capability`]).

use std::collections::{BTreeSet, btree_set};

use crate::{
    descriptor::read_geometry,
    extent::Extent,
    geometry::Geometry,
    ids::ChunkId,
    layout::Layout,
    limits::MANIFEST_CHUNKS_MAX,
    wire::{Reader, WireError, Writer},
};

const MAGIC: &[u8; 4] = b"CPSV";
const VERSION: u8 = 1;

/// Magic, version and number of references, in bytes.
const HEADER_BYTES: usize = 13;

/// One reference, in bytes.
const REFERENCE_BYTES: usize = 38;

/// The longest manifest, in bytes: 76 MiB.
pub const MANIFEST_BYTES_MAX: u64 =
    HEADER_BYTES as u64 + MANIFEST_CHUNKS_MAX as u64 * REFERENCE_BYTES as u64;

/// References written at once: 38 KiB.
const REFERENCES_PER_PIECE: usize = 1024;

/// A chunk, as far as one must know it to check and repair its shards. No key is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkRef {
    /// The chunk.
    pub id: ChunkId,
    /// (k, n).
    pub geometry: Geometry,
    /// Bytes of each of its shards.
    pub shard_bytes: u32,
}

impl From<&Extent> for ChunkRef {
    fn from(extent: &Extent) -> Self {
        Self { id: extent.chunk, geometry: extent.geometry, shard_bytes: extent.shard_bytes }
    }
}

impl ChunkRef {
    /// Bytes of its data shards together.
    pub const fn body_bytes(&self) -> u64 {
        self.geometry.data() as u64 * self.shard_bytes as u64
    }

    fn write(&self, out: &mut Writer) {
        out.bytes(self.id.as_bytes()).bytes(&self.geometry.to_bytes()).u32(self.shard_bytes);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let id = ChunkId::new(reader.array()?);
        let geometry = read_geometry(reader)?;
        let shard_bytes = reader.u32()?;
        if !Layout::is_shard_size(geometry, shard_bytes as usize) {
            return Err(WireError::Invalid("the shard size of a manifest"));
        }
        Ok(Self { id, geometry, shard_bytes })
    }
}

/// A tree of more chunks than one manifest lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tree has more than {MANIFEST_CHUNKS_MAX} chunks: name its folders one by one")]
pub struct TooManyChunksError;

/// The chunks of a tree, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    chunks: BTreeSet<ChunkRef>,
}

impl Manifest {
    /// Adds a chunk. One that is there already changes nothing.
    ///
    /// # Errors
    /// When there are [`MANIFEST_CHUNKS_MAX`] others.
    pub fn add(&mut self, chunk: ChunkRef) -> Result<(), TooManyChunksError> {
        if self.chunks.len() >= MANIFEST_CHUNKS_MAX && !self.chunks.contains(&chunk) {
            return Err(TooManyChunksError);
        }
        self.chunks.insert(chunk);
        Ok(())
    }

    /// How many chunks it lists.
    pub fn chunks(&self) -> u64 {
        self.chunks.len() as u64
    }

    /// How long it is when it is written, in bytes.
    pub fn encoded_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + self.chunks() * REFERENCE_BYTES as u64
    }

    /// The code that a manifest is stored with: the strongest of its chunks, of equally strong ones
    /// the widest. So it lives as long as what it lists, and the tree alone decides. None when no
    /// chunk is listed.
    pub fn geometry(&self) -> Option<Geometry> {
        let all = self.chunks.iter().map(|chunk| chunk.geometry);
        all.max_by_key(|geometry| (geometry.parity(), geometry.data()))
    }

    /// Its bytes, in pieces of up to 38 KiB.
    pub fn into_pieces(self) -> Pieces {
        Pieces { count: Some(self.chunks()), chunks: self.chunks.into_iter() }
    }
}

/// The bytes of a manifest, piece by piece.
#[derive(Debug)]
pub struct Pieces {
    /// For the header, until it is written.
    count: Option<u64>,
    chunks: btree_set::IntoIter<ChunkRef>,
}

impl Iterator for Pieces {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut out = Writer::new();
        if let Some(count) = self.count.take() {
            out.bytes(MAGIC).u8(VERSION).u64(count);
        }
        for chunk in self.chunks.by_ref().take(REFERENCES_PER_PIECE) {
            chunk.write(&mut out);
        }
        if out.is_empty() { None } else { Some(out.finish()) }
    }
}

/// Reads a manifest as its bytes come, keeping no more of it than a torn reference.
#[derive(Debug, Default)]
pub struct ManifestReader {
    /// What came and is not read yet.
    rest: Vec<u8>,
    /// References that are still to come; none before the header is read.
    left: Option<u64>,
    last: Option<ChunkRef>,
}

impl ManifestReader {
    /// Takes the next bytes; gives the chunks that are whole now, in order.
    ///
    /// # Errors
    /// When these bytes cannot follow those before them.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<ChunkRef>, WireError> {
        self.rest.extend_from_slice(bytes);
        let mut reader = Reader::new(&self.rest);
        let mut left = match self.left {
            Some(left) => left,
            None if reader.remaining() < HEADER_BYTES => return Ok(Vec::new()),
            None => read_header(&mut reader)?,
        };
        let mut found = Vec::new();
        while left > 0 && reader.remaining() >= REFERENCE_BYTES {
            let chunk = ChunkRef::read(&mut reader)?;
            if self.last.is_some_and(|last| last >= chunk) {
                return Err(WireError::Invalid("the order of a manifest"));
            }
            self.last = Some(chunk);
            left -= 1;
            found.push(chunk);
        }
        self.left = Some(left);
        let rest = reader.remaining();
        if left == 0 {
            reader.end()?;
        }
        self.rest.drain(..self.rest.len() - rest);
        Ok(found)
    }

    /// Checks that all of it has come.
    ///
    /// # Errors
    /// When not.
    pub fn finish(self) -> Result<(), WireError> {
        let needed = match self.left {
            Some(left) => left.saturating_mul(REFERENCE_BYTES as u64),
            None => HEADER_BYTES as u64,
        };
        let needed = usize::try_from(needed).unwrap_or(usize::MAX).saturating_sub(self.rest.len());
        if needed == 0 {
            return Ok(());
        }
        Err(WireError::Truncated { offset: self.rest.len(), needed })
    }
}

/// A tree has at least the chunk that its root is in.
fn read_header(reader: &mut Reader<'_>) -> Result<u64, WireError> {
    reader.magic("a manifest", MAGIC, VERSION)?;
    let (got, limit) = (reader.u64()?, MANIFEST_CHUNKS_MAX as u64);
    match got {
        0 => Err(WireError::Invalid("the number of chunks of a manifest")),
        _ if got > limit => {
            Err(WireError::OverLimit { what: "the number of chunks of a manifest", got, limit })
        }
        _ => Ok(got),
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;
    use crate::{limits::CHUNK_BYTES_MAX, testing::geometries};

    fn chunk(byte: u8, code: &str, shard_bytes: u32) -> ChunkRef {
        let geometry = code.parse().expect("a geometry");
        ChunkRef { id: ChunkId::new([byte; 32]), geometry, shard_bytes }
    }

    fn manifest(chunks: &[ChunkRef]) -> Manifest {
        let mut manifest = Manifest::default();
        chunks.iter().for_each(|chunk| manifest.add(*chunk).expect("few"));
        manifest
    }

    fn bytes(manifest: Manifest) -> Vec<u8> {
        manifest.into_pieces().flatten().collect()
    }

    fn read(bytes: &[u8], step: usize) -> Result<Vec<ChunkRef>, WireError> {
        let mut reader = ManifestReader::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(step) {
            found.extend(reader.push(piece)?);
        }
        reader.finish()?;
        Ok(found)
    }

    #[test]
    fn the_bytes_of_a_manifest() {
        let listed = [chunk(2, "10+6", 786_624), chunk(1, "1+6", 77), chunk(2, "10+6", 786_624)];
        let manifest = manifest(&listed);
        assert_eq!((manifest.chunks(), manifest.encoded_bytes()), (2, 89));
        let bytes = bytes(manifest);
        assert_eq!(
            HEXLOWER.encode(&bytes),
            [
                "43505356010200000000000000",
                &"01".repeat(32),
                "01074d000000",
                &"02".repeat(32),
                "0a10c0000c00",
            ]
            .concat()
        );
        assert_eq!(read(&bytes, 1), Ok(vec![listed[1], listed[0]]));
    }

    #[test]
    fn it_is_as_strong_as_the_strongest_and_then_the_widest_of_its_chunks() {
        let of = |codes: &[&str]| {
            let chunks = (1..).zip(codes).map(|(byte, code)| chunk(byte, code, 9));
            manifest(&chunks.collect::<Vec<_>>()).geometry()
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["1+6", "10+6", "20+5"]), Some("10+6".parse().expect("a geometry")));
    }

    #[test]
    fn what_no_writer_writes_is_refused() {
        let (one, two) = (chunk(1, "4+2", 10), chunk(2, "4+2", 10));
        let good = bytes(manifest(&[one, two]));
        let twice = [&good[..51], &good[13..51]].concat();
        let turned = [&good[..13], &good[51..], &good[13..51]].concat();
        for wrong in [twice, turned] {
            assert_eq!(read(&wrong, 7), Err(WireError::Invalid("the order of a manifest")));
        }
        assert!(matches!(read(&good[..88], 7), Err(WireError::Truncated { needed: 1, .. })));
        assert!(matches!(read(&good[..12], 7), Err(WireError::Truncated { .. })));
        assert_eq!(read(&[&good[..], b"x"].concat(), 90), Err(WireError::Trailing(1)));
        assert!(read(&bytes(Manifest::default()), 13).is_err(), "no chunk at all");
        let many = [&good[..5], &[0xff; 8], &good[13..]].concat();
        assert!(matches!(read(&many, 99), Err(WireError::OverLimit { .. })));
        for size in [0u32, u32::MAX] {
            let wrong = [&good[..47], &size.to_le_bytes(), &good[51..]].concat();
            assert!(matches!(read(&wrong, 99), Err(WireError::Invalid(_))));
        }
    }

    proptest! {
        #[test]
        fn any_chunks_come_back_in_order_however_they_are_cut(
            chunks in prop::collection::vec(
                (any::<u8>(), geometries(12, 4), 1..=(CHUNK_BYTES_MAX / 14)),
                1..3000,
            ),
            step in 1usize..100_000,
        ) {
            let mut listed: Vec<ChunkRef> = chunks
                .into_iter()
                .map(|(byte, geometry, shard_bytes)| {
                    let shard_bytes = u32::try_from(shard_bytes).expect("small");
                    ChunkRef { id: ChunkId::new([byte; 32]), geometry, shard_bytes }
                })
                .collect();
            let manifest = manifest(&listed);
            listed.sort_unstable();
            listed.dedup();
            prop_assert_eq!(manifest.chunks(), listed.len() as u64);
            let length = manifest.encoded_bytes();
            let bytes = bytes(manifest);
            prop_assert_eq!(bytes.len() as u64, length);
            prop_assert_eq!(read(&bytes, step), Ok(listed));
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            noise in prop::collection::vec(any::<u8>(), 0..120),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            step in 1usize..120,
        ) {
            let _ = read(&noise, step);
            let mut changed = bytes(manifest(&[chunk(1, "4+2", 10), chunk(7, "1+2", 500)]));
            for (at, value) in changes {
                let at = at.index(changed.len());
                changed[at] = value;
            }
            // Whatever is read is written the same: each set of chunks has one manifest.
            if let Ok(found) = read(&changed, step) {
                prop_assert_eq!(bytes(manifest(&found)), changed);
            }
        }
    }
}
