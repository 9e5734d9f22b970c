//! Every bound that more than one module must agree on: its unit, its reason, what happens there.
//!
//! A bound that only one module knows stands in that module. Relations are asserted at compile
//! time below.

/// Plaintext of a chunk, at most, in bytes. Large enough that a shard of a wide code is still a
/// long sequential read, small enough that a client can hold a dozen chunks in memory. A chunk holds
/// the largest whole number of blocks per shard that fits (see [`crate::layout`]).
pub const CHUNK_BYTES_MAX: usize = 8 << 20;

/// Largest frame of sealed plaintext, in bytes: a small item, which is read whole, up to this size is
/// one frame.
pub const FRAME_BYTES_MAX: usize = 64 << 10;

/// Largest frame of a bulk chunk, in bytes. The unit of random reads: reading one byte costs one frame,
/// and with it the two groups of a shard's hash tree in which it lies.
pub const BULK_FRAME_BYTES_MAX: usize = 16 << 10;

/// Smallest frame, in bytes: below this the 16-byte tag costs more than 1.6 %.
pub const FRAME_BYTES_MIN: usize = 1 << 10;

/// Poly1305 tag behind each frame, in bytes (RFC 8439).
pub const TAG_BYTES: usize = 16;

/// A group of a shard's hash tree, in bytes: what is read and sent to prove one byte of a range.
pub const GROUP_BYTES: usize = 16 << 10;

/// Shards of a chunk, at most. GF(2^8) has 256 elements; the index is one byte.
pub const SHARDS_MAX: usize = 255;

/// Bytes of one shard, at most: a chunk of one data shard (k = 1) with its tags.
pub const SHARD_BYTES_MAX: usize =
    CHUNK_BYTES_MAX + (CHUNK_BYTES_MAX / BULK_FRAME_BYTES_MAX) * TAG_BYTES;

/// Chunks with less plaintext than this are replicated instead of coded: a tenth of it, a shard of
/// 10+6, would be a disk block, and reading ten holders for it is slower than reading one.
pub const REPLICATE_BYTES_BELOW: usize = 40 << 10;

/// Files up to this size lie inline in their directory entry.
pub const INLINE_BYTES_MAX: usize = 4 << 10;

/// Content up to this size (a whole file, or the tail of one) is packed with its neighbours
/// instead of getting a chunk of its own.
pub const PACKED_BYTES_MAX: usize = 1 << 20;

/// A name in a directory, in bytes: what Linux, macOS and Windows allow.
pub const NAME_BYTES_MAX: usize = 255;

/// A symbolic link's target, in bytes: PATH_MAX of Linux.
pub const SYMLINK_BYTES_MAX: usize = 4096;

/// A zone's name, in bytes. It is copied into every record of the directory.
pub const ZONE_BYTES_MAX: usize = 64;

/// Addresses of one kind in a node's record.
pub const ADDRESSES_MAX: usize = 8;

/// Arcs of the ring. 2^16 preference lists are enough that no arc holds more than a small part of
/// a large network, and few enough to keep a table of them.
pub const ARCS: usize = 1 << 16;

/// Chunks of one manifest, at most: 16 TiB in full ones. Whoever makes it keeps all of them to sort
/// them, in some 100 MB; beyond that each folder gets its own.
pub const MANIFEST_CHUNKS_MAX: usize = 1 << 21;

const _: () = {
    assert!(CHUNK_BYTES_MAX.is_multiple_of(BULK_FRAME_BYTES_MAX));
    assert!(FRAME_BYTES_MAX.is_power_of_two() && FRAME_BYTES_MIN.is_power_of_two());
    assert!(BULK_FRAME_BYTES_MAX.is_power_of_two() && BULK_FRAME_BYTES_MAX <= FRAME_BYTES_MAX);
    assert!(PACKED_BYTES_MAX < CHUNK_BYTES_MAX);
    assert!(INLINE_BYTES_MAX < PACKED_BYTES_MAX);
    assert!(SHARDS_MAX <= u8::MAX as usize);
    assert!(SHARD_BYTES_MAX < u32::MAX as usize);
};
