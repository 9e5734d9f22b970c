//! How large a chunk's body, its shards and its frames are.
//!
//! Owns the one rule that decides padding, framing and alignment together. Refuses bodies over
//! the limit. The idea: a shard is m whole blocks, with m kept between 8 and 14, so that sizes are
//! few and padding is at most an eighth of the body; a block is whole frames, so that no frame of a bulk
//! chunk straddles two shards.
//!
//! ```text
//! body     ├─ shard 0 ─┼─ shard 1 ─┼─ … ─┼─ shard k−1 ─┤        k · shard_bytes
//! shard    ├─ block 0 ─┼─ block 1 ─┼─ … ─┼─ block m−1 ─┤        of 1 to 64 KiB of plaintext
//! block    ├─ frame 0 ─┼─ … ─┤                                  1 frame, or 2 or 4 of 16 KiB
//! ```

use crate::{
    geometry::Geometry,
    limits::{BULK_FRAME_BYTES_MAX, CHUNK_BYTES_MAX, FRAME_BYTES_MIN, TAG_BYTES},
};

/// Plaintext of a block, at least, in bytes: one frame of the smallest size.
const BLOCK_BYTES_MIN: usize = FRAME_BYTES_MIN;

/// Plaintext of a block, at most, in bytes: the step in which the sizes of large shards tell how much
/// is in them. With 10+6 a full shard has twelve.
const BLOCK_BYTES_MAX: usize = 64 << 10;

/// Blocks per shard, at least, unless blocks are of the smallest size already. One block more or
/// less is then at most an eighth of the body: the bound on padding.
const BLOCKS_PER_SHARD_MIN: usize = 8;

/// Blocks per shard, at most, unless blocks are of the geometry's largest size: from 15 on, blocks
/// twice as large are 8 per shard.
const BLOCKS_PER_SHARD_MAX: usize = 2 * (BLOCKS_PER_SHARD_MIN - 1);

const _: () = assert!(
    BLOCK_BYTES_MAX.is_multiple_of(BULK_FRAME_BYTES_MAX)
        && CHUNK_BYTES_MAX.is_multiple_of(BLOCK_BYTES_MAX)
);

/// The sizes of one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Layout {
    geometry: Geometry,
    block_bytes: usize,
    blocks_per_shard: usize,
}

/// More bytes than one chunk can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{got} bytes of {what} do not fit a chunk of {geometry}: at most {limit}; cut them in several chunks"
)]
pub struct LayoutError {
    /// Plaintext or body.
    pub what: &'static str,
    /// The chunk's geometry.
    pub geometry: Geometry,
    /// How many bytes there are.
    pub got: usize,
    /// How many there may be.
    pub limit: usize,
}

impl Layout {
    /// The sizes of a bulk chunk: one item of `plaintext_bytes` whose frames fill the shards.
    ///
    /// # Errors
    /// When it is more than the [largest](Self::largest) chunk of the geometry holds.
    pub fn for_plaintext(geometry: Geometry, plaintext_bytes: usize) -> Result<Self, LayoutError> {
        Self::smallest(geometry, plaintext_bytes, 0).ok_or(LayoutError {
            what: "plaintext",
            geometry,
            got: plaintext_bytes,
            limit: Self::largest(geometry).plaintext_bytes_max(),
        })
    }

    /// The smallest sizes whose body holds `body_bytes` of sealed items.
    ///
    /// # Errors
    /// When it is more than the [largest](Self::largest) body of the geometry.
    pub fn for_body(geometry: Geometry, body_bytes: usize) -> Result<Self, LayoutError> {
        Self::smallest(geometry, body_bytes, TAG_BYTES).ok_or(LayoutError {
            what: "body",
            geometry,
            got: body_bytes,
            limit: Self::largest(geometry).body_bytes(),
        })
    }

    /// The sizes of a full chunk: the largest blocks of which each shard has 8 at least, and as many
    /// as fit in [`CHUNK_BYTES_MAX`].
    pub const fn largest(geometry: Geometry) -> Self {
        let mut block_bytes = BLOCK_BYTES_MAX;
        while block_bytes > BLOCK_BYTES_MIN
            && CHUNK_BYTES_MAX / (geometry.data() * block_bytes) < BLOCKS_PER_SHARD_MIN
        {
            block_bytes /= 2;
        }
        let blocks_per_shard = CHUNK_BYTES_MAX / (geometry.data() * block_bytes);
        Self { geometry, block_bytes, blocks_per_shard }
    }

    /// Whether a chunk of this geometry may have shards of so many bytes: one at least, and no more than
    /// those of a [full](Self::largest) chunk. Everything that names a chunk is held to it, so that whoever
    /// rebuilds one needs no more memory than a full chunk takes, be the geometry ever so wide.
    pub const fn is_shard_size(geometry: Geometry, shard_bytes: usize) -> bool {
        shard_bytes > 0 && shard_bytes <= Self::largest(geometry).shard_bytes()
    }

    /// The smallest layout that holds `bytes`, counting `overhead` bytes per frame as room.
    fn smallest(geometry: Geometry, bytes: usize, overhead: usize) -> Option<Self> {
        let largest = Self::largest(geometry);
        let mut layout = Self { geometry, block_bytes: BLOCK_BYTES_MIN, blocks_per_shard: 1 };
        while layout.block_bytes <= largest.block_bytes {
            let (min, max) = (
                if layout.block_bytes == BLOCK_BYTES_MIN { 1 } else { BLOCKS_PER_SHARD_MIN },
                if layout.block_bytes == largest.block_bytes {
                    largest.blocks_per_shard
                } else {
                    BLOCKS_PER_SHARD_MAX
                },
            );
            let row_bytes =
                geometry.data() * (layout.block_bytes + layout.frames_per_block() * overhead);
            layout.blocks_per_shard = bytes.div_ceil(row_bytes).max(min);
            if layout.blocks_per_shard <= max {
                return Some(layout);
            }
            layout.block_bytes *= 2;
        }
        None
    }

    /// (k, n) of the chunk.
    pub const fn geometry(self) -> Geometry {
        self.geometry
    }

    /// Plaintext of a frame: a power of two, 1 to 16 KiB.
    pub const fn frame_bytes(self) -> usize {
        if self.block_bytes < BULK_FRAME_BYTES_MAX {
            self.block_bytes
        } else {
            BULK_FRAME_BYTES_MAX
        }
    }

    /// m: blocks of a shard.
    pub const fn blocks_per_shard(self) -> usize {
        self.blocks_per_shard
    }

    /// Frames of a block: 1, 2 or 4.
    pub const fn frames_per_block(self) -> usize {
        self.block_bytes / self.frame_bytes()
    }

    /// Frames of a shard.
    pub const fn frames_per_shard(self) -> usize {
        self.blocks_per_shard * self.frames_per_block()
    }

    /// Bytes of each of the n shards.
    pub const fn shard_bytes(self) -> usize {
        self.frames_per_shard() * (self.frame_bytes() + TAG_BYTES)
    }

    /// Bytes of the k data shards together.
    pub const fn body_bytes(self) -> usize {
        self.geometry.data() * self.shard_bytes()
    }

    /// Plaintext that a bulk chunk of these sizes holds, at most.
    pub const fn plaintext_bytes_max(self) -> usize {
        self.geometry.data() * self.blocks_per_shard * self.block_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::{geometries, geometry};

    #[test]
    fn a_full_chunk_of_10_6_is_480_frames() {
        let layout = Layout::largest(geometry("10+6"));
        assert_eq!((layout.frame_bytes(), layout.frames_per_shard()), (16 << 10, 48));
        assert_eq!(layout.plaintext_bytes_max(), 480 * (16 << 10));
        assert_eq!(layout.shard_bytes(), 48 * ((16 << 10) + 16));
        assert_eq!(Layout::largest(geometry("1+6")).frames_per_shard(), 512);
    }

    #[test]
    fn sizes_are_few() {
        let code = geometry("10+6");
        let full = Layout::largest(code).plaintext_bytes_max();
        let sizes: BTreeSet<usize> = (0..=full)
            .step_by(1000)
            .map(|bytes| Layout::for_plaintext(code, bytes).expect("fits").shard_bytes())
            .collect();
        assert_eq!(sizes.len(), 54, "14 of 1 KiB blocks, 7 of each doubling, 5 of 64 KiB");
    }

    #[test]
    fn more_than_the_largest_chunk_is_refused_with_the_limit() {
        for code in ["1+0", "1+6", "2+1", "10+6", "17+3", "29+51", "128+10", "255+0"] {
            let code = geometry(code);
            let largest = Layout::largest(code);
            let (plaintext, body) = (largest.plaintext_bytes_max(), largest.body_bytes());
            assert_eq!(Layout::for_plaintext(code, plaintext), Ok(largest));
            assert_eq!(Layout::for_body(code, body), Ok(largest));
            let error = Layout::for_plaintext(code, plaintext + 1).expect_err("too much");
            assert_eq!(error.limit, plaintext);
            assert!(Layout::for_body(code, body + 1).is_err());
            assert!(Layout::for_body(code, usize::MAX).is_err());
        }
    }

    proptest! {
        #[test]
        fn a_layout_holds_what_it_was_made_for_and_wastes_at_most_an_eighth(
            code in geometries(200, 55),
            part in 0.0..=1.0f64,
            scale in 0..12u32,
        ) {
            let full = Layout::largest(code).plaintext_bytes_max();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let bytes = (full as f64 * part) as usize >> scale;
            let layout = Layout::for_plaintext(code, bytes).expect("fits");
            let room = layout.plaintext_bytes_max();
            prop_assert!(bytes <= room && room <= CHUNK_BYTES_MAX);
            // From 7 of the smallest blocks per shard on, padding is under an eighth.
            if bytes > 7 * code.data() * FRAME_BYTES_MIN {
                prop_assert!((room - bytes) * 8 <= room, "{bytes} in {layout:?}");
            } else {
                prop_assert!(room - bytes <= code.data() * FRAME_BYTES_MIN);
            }
        }

        #[test]
        fn a_body_has_the_smallest_layout_that_holds_it(
            code in geometries(40, 20),
            bytes in 0..=CHUNK_BYTES_MAX,
        ) {
            let bytes = bytes.min(Layout::largest(code).body_bytes());
            let layout = Layout::for_body(code, bytes).expect("fits");
            prop_assert!(bytes <= layout.body_bytes());
            prop_assert_eq!(Layout::for_body(code, layout.body_bytes()), Ok(layout));
            // And bodies of bulk chunks have the layout they were made with.
            let bulk = Layout::for_plaintext(code, bytes.min(layout.plaintext_bytes_max()));
            let bulk = bulk.expect("fits");
            prop_assert_eq!(Layout::for_body(code, bulk.body_bytes()), Ok(bulk));
        }
    }
}
