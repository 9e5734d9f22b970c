//! Where an item is, and how to read it.
//!
//! Owns the reference to a sealed item and the way from a plaintext range to ranges of shards.
//! Refuses references that lead outside their chunk. The idea: an extent says all that is needed,
//! so that a random read asks one node once and looks nothing else up.
//!
//! ```text
//! chunk id 32 B ‖ k u8 ‖ n u8 ‖ shard_bytes varint ‖ offset varint ‖ plaintext_bytes varint
//!   ‖ log2(frame_bytes) u8 ‖ content key 32 B
//! ```

use core::ops::Range;

use crate::{
    descriptor::read_geometry,
    geometry::Geometry,
    ids::{ChunkId, ShardIndex},
    layout::Layout,
    limits::CHUNK_BYTES_MAX,
    seal::{ContentKey, FrameSpan, frame_span, is_frame_size, log2, sealed_bytes},
    wire::{Reader, WireError, Writer},
};

/// A reference to one sealed item.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Extent {
    /// The chunk whose body holds the item.
    pub chunk: ChunkId,
    /// (k, n) of the chunk.
    pub geometry: Geometry,
    /// Bytes of each of its shards.
    pub shard_bytes: u32,
    /// Where the sealed item starts in the body.
    pub offset: u32,
    /// Plaintext of the item.
    pub plaintext_bytes: u32,
    /// Plaintext of its frames: a power of two, 1 to 64 KiB.
    pub frame_bytes: u32,
    /// Opens it.
    pub key: ContentKey,
}

impl Extent {
    /// How long the item is in the body.
    pub const fn sealed_bytes(&self) -> usize {
        sealed_bytes(self.plaintext_bytes as usize, self.frame_bytes as usize)
    }

    /// Checks that the item lies within its chunk and every size is possible.
    ///
    /// # Errors
    /// When not.
    pub fn check(&self) -> Result<(), WireError> {
        if !is_frame_size(self.frame_bytes as usize) {
            return Err(WireError::Invalid("the frame size of an extent"));
        }
        if !Layout::is_shard_size(self.geometry, self.shard_bytes as usize) {
            return Err(WireError::Invalid("the shard size of an extent"));
        }
        let plaintext_bytes = u64::from(self.plaintext_bytes);
        limit("the plaintext of an extent", plaintext_bytes, CHUNK_BYTES_MAX as u64)?;
        let body_bytes = self.geometry.data() as u64 * u64::from(self.shard_bytes);
        let end = u64::from(self.offset) + self.sealed_bytes() as u64;
        limit("the end of an extent", end, body_bytes)
    }

    /// Appends the extent.
    pub fn encode_to(&self, writer: &mut Writer) {
        writer.bytes(self.chunk.as_bytes()).bytes(&self.geometry.to_bytes());
        writer.varint(self.shard_bytes.into()).varint(self.offset.into());
        writer.varint(self.plaintext_bytes.into());
        writer.u8(log2(self.frame_bytes as usize)).bytes(self.key.as_bytes());
    }

    /// The bytes of the extent alone.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        self.encode_to(&mut writer);
        writer.finish()
    }

    /// Takes an extent off the reader.
    ///
    /// # Errors
    /// When the bytes are no extent or it leads outside its chunk.
    pub fn decode_from(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let chunk = ChunkId::new(reader.array()?);
        let geometry = read_geometry(reader)?;
        let [shard_bytes, offset, plaintext_bytes] =
            [u32_from(reader)?, u32_from(reader)?, u32_from(reader)?];
        let frame_bytes = 1u32
            .checked_shl(reader.u8()?.into())
            .ok_or(WireError::Invalid("the frame size of an extent"))?;
        let key = ContentKey::new(reader.array()?);
        let extent =
            Self { chunk, geometry, shard_bytes, offset, plaintext_bytes, frame_bytes, key };
        extent.check()?;
        Ok(extent)
    }

    /// Reads the bytes of an extent alone.
    ///
    /// # Errors
    /// As [`decode_from`](Self::decode_from), and when bytes are left.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let extent = Self::decode_from(&mut reader)?;
        reader.end()?;
        Ok(extent)
    }

    /// What to fetch for a range of the plaintext: the frames that hold it, and the ranges of data
    /// shards that hold these frames, in order. Ranges of shards are as they are read, not yet
    /// widened to groups of the hash tree.
    pub fn shard_ranges(&self, want: Range<usize>) -> (FrameSpan, Vec<(ShardIndex, Range<usize>)>) {
        let span = frame_span(self.plaintext_bytes as usize, self.frame_bytes as usize, want);
        let shard_bytes = self.shard_bytes as usize;
        let offset = self.offset as usize;
        let (mut at, end) = (offset + span.sealed.start, offset + span.sealed.end);
        let mut ranges = Vec::new();
        while at < end {
            let (index, start) = (at / shard_bytes, at % shard_bytes);
            let taken = (end - at).min(shard_bytes - start);
            // Fits, since the extent lies within the body and k is at most 255.
            let index = u8::try_from(index).unwrap_or(u8::MAX);
            ranges.push((ShardIndex(index), start..start + taken));
            at += taken;
        }
        (span, ranges)
    }
}

fn limit(what: &'static str, got: u64, limit: u64) -> Result<(), WireError> {
    if got > limit { Err(WireError::OverLimit { what, got, limit }) } else { Ok(()) }
}

fn u32_from(reader: &mut Reader<'_>) -> Result<u32, WireError> {
    let number = reader.bounded("a number of an extent", u32::MAX.into())?;
    u32::try_from(number).map_err(|_| WireError::Invalid("a number of an extent"))
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        layout::Layout,
        testing::{geometries, geometry, noise},
    };

    fn example() -> Extent {
        Extent {
            chunk: ChunkId::new([0xcc; 32]),
            geometry: geometry("10+6"),
            shard_bytes: 16_640,
            offset: 300,
            plaintext_bytes: 70_000,
            frame_bytes: 65_536,
            key: ContentKey::new([0x5e; 32]),
        }
    }

    #[test]
    fn golden_bytes_of_an_extent() {
        let extent = example();
        assert_eq!(
            HEXLOWER.encode(&extent.encode()),
            "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc0a10808201ac\
             02f0a204105e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e"
        );
        assert_eq!(Extent::decode(&extent.encode()), Ok(extent));
    }

    #[test]
    fn an_extent_stays_within_its_chunk() {
        type Change = fn(&mut Extent);
        let changes: [(&str, Change); 7] = [
            ("shards that are more than a chunk together", |extent| extent.shard_bytes = 900_000),
            ("an end past the body", |extent| extent.offset = 166_400 - 70_000),
            ("more than a chunk", |extent| extent.plaintext_bytes = u32::MAX),
            ("a shard that is too large", |extent| extent.shard_bytes = u32::MAX),
            ("no shard", |extent| extent.shard_bytes = 0),
            ("a frame that is too small", |extent| extent.frame_bytes = 512),
            ("a frame that is too large", |extent| extent.frame_bytes = 1 << 17),
        ];
        for (what, change) in changes {
            let mut extent = example();
            change(&mut extent);
            assert!(Extent::decode(&extent.encode()).is_err(), "{what} was taken");
        }
    }

    #[test]
    fn four_kib_of_a_bulk_chunk_are_one_frame_of_one_shard() {
        let layout = Layout::largest(geometry("10+6"));
        let bytes = layout.plaintext_bytes_max();
        let sized = |bytes: usize| u32::try_from(bytes).expect("small");
        let extent = Extent {
            shard_bytes: sized(layout.shard_bytes()),
            offset: 0,
            plaintext_bytes: sized(bytes),
            frame_bytes: sized(layout.frame_bytes()),
            ..example()
        };
        for start in (0..bytes).step_by(4096) {
            let (span, ranges) = extent.shard_ranges(start..start + 4096);
            assert_eq!(span.plaintext.len(), layout.frame_bytes());
            assert_eq!(ranges.len(), 1, "{start} is in {ranges:?}");
        }
        // Not aligned: the next frame too, at times; another shard only across a shard's end.
        for start in (0..bytes - 4096).step_by(1000) {
            let (span, ranges) = extent.shard_ranges(start..start + 4096);
            let shard = layout.frames_per_shard() * layout.frame_bytes();
            assert!(span.sealed.len() <= 2 * (layout.frame_bytes() + 16));
            assert_eq!(ranges.len(), 1 + usize::from(start / shard < (start + 4095) / shard));
        }
    }

    proptest! {
        #[test]
        fn the_ranges_of_shards_are_the_frames_of_the_body(
            code in geometries(12, 4),
            shard_bytes in 1..5000usize,
            offset: u32,
            plaintext_bytes: u32,
            log in 10..=16u32,
            a: u32,
            b: u32,
        ) {
            let body = noise(code.data() * shard_bytes, 1);
            let mut extent = Extent {
                geometry: code,
                shard_bytes: u32::try_from(shard_bytes).expect("small"),
                frame_bytes: 1 << log,
                ..example()
            };
            let length = u32::try_from(body.len()).expect("small");
            extent.offset = offset % length;
            extent.plaintext_bytes = plaintext_bytes % (length - extent.offset);
            prop_assume!(extent.check().is_ok());
            prop_assert_eq!(Extent::decode(&extent.encode()), Ok(extent.clone()));

            let bytes = extent.plaintext_bytes as usize;
            let (a, b) = (a as usize % (bytes + 1), b as usize % (bytes + 1));
            let (span, ranges) = extent.shard_ranges(a.min(b)..a.max(b));
            let fetched: Vec<u8> = ranges
                .iter()
                .flat_map(|(index, range)| {
                    let start = index.as_usize() * shard_bytes;
                    body[start + range.start..start + range.end].to_vec()
                })
                .collect();
            let offset = extent.offset as usize;
            prop_assert_eq!(&fetched, &body[offset + span.sealed.start..offset + span.sealed.end]);
            prop_assert!(ranges.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }

        #[test]
        fn any_bytes_are_an_extent_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..90),
            chunk: [u8; 32],
        ) {
            for bytes in [bytes.clone(), [&chunk[..], &[10, 16], &bytes].concat()] {
                if let Ok(extent) = Extent::decode(&bytes) {
                    prop_assert_eq!(extent.encode(), bytes);
                }
            }
        }
    }
}
