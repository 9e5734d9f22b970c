//! From plaintext or a body to the n shards of a chunk.
//!
//! Owns the order of the steps and the buffer they share. Refuses more than one chunk holds. The
//! idea: the body is sealed straight into the front of the buffer that the shards are sent from,
//! each frame is coded and hashed while it is in the cache, and the buffer is given back for the next chunk.

use crate::{
    descriptor::Descriptor,
    erasure::Codec,
    extent::Extent,
    geometry::Geometry,
    ids::{ChunkId, ShardHash, ShardIndex},
    layout::{Layout, LayoutError},
    limits::TAG_BYTES,
    seal::{ConvergenceSecret, Sealer, content_key, frame_count, sealed_bytes},
};

/// How much of a pack's end its padding depends on, in bytes. Enough for it to be the content's own
/// (each frame ends with a tag), little enough to cost nothing.
const PADDING_SEED_BYTES: usize = 1 << 10;

/// Shards are hashed in pieces of this many bytes, each a subtree of its own: BLAKE3 works on many
/// leaves at once only if they start where a subtree starts.
const HASHED_BYTES: usize = 64 << 10;

/// A chunk, ready to be sent: its descriptor and its shards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EncodedChunk {
    id: ChunkId,
    descriptor: Descriptor,
    /// The data shards, and behind them the parity shards. Replicas (k = 1) are here only once.
    bytes: Vec<u8>,
}

impl EncodedChunk {
    /// The chunk's id.
    pub const fn id(&self) -> ChunkId {
        self.id
    }

    /// The chunk's descriptor.
    pub const fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The bytes of one shard.
    ///
    /// # Panics
    /// When the chunk has no such shard: the caller's mistake.
    pub fn shard(&self, index: ShardIndex) -> &[u8] {
        let geometry = self.descriptor.geometry();
        assert!(index.as_usize() < geometry.total(), "a chunk of {geometry} has no shard {index}");
        let slot = if geometry.data() == 1 { 0 } else { index.as_usize() };
        let shard_bytes = self.descriptor.shard_bytes();
        &self.bytes[slot * shard_bytes..(slot + 1) * shard_bytes]
    }

    /// The buffer, for the next chunk.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

/// Makes a bulk chunk of one item: its frames are aligned to its shards. Plaintext that is too
/// short to be cut in k pieces is replicated; the extent tells the chunk's true geometry.
///
/// `buffer` is any old one: its memory is used again, its bytes do not matter.
///
/// # Errors
/// When the plaintext is more than [`Layout::largest`] holds.
pub fn encode_bulk(
    geometry: Geometry,
    secret: &ConvergenceSecret,
    plaintext: &[u8],
    buffer: Vec<u8>,
) -> Result<(EncodedChunk, Extent), LayoutError> {
    let layout = Layout::for_plaintext(geometry.for_plaintext(plaintext.len()), plaintext.len())?;
    let frame_bytes = layout.frame_bytes();
    let key = content_key(secret, plaintext);
    let sealer = Sealer::new(&key, frame_bytes, plaintext);
    let frames = frame_count(plaintext.len(), frame_bytes);
    let body_bytes = sealed_bytes(plaintext.len(), frame_bytes);

    let mut bytes = sized(buffer, buffer_bytes(layout));
    pad(secret, key.as_bytes(), &mut bytes[body_bytes..layout.body_bytes()]);
    let chunk = code(layout, bytes, |frame, out| {
        if frame < frames {
            sealer.seal(frame, out);
        }
    });
    let extent = Extent {
        chunk: chunk.id,
        geometry: layout.geometry(),
        shard_bytes: small(layout.shard_bytes()),
        offset: 0,
        plaintext_bytes: small(plaintext.len()),
        frame_bytes: small(frame_bytes),
        key,
    };
    Ok((chunk, extent))
}

/// Makes a chunk of a body of sealed items (a pack): copies it, pads it, codes it. A body that is
/// too short to be cut in k pieces is replicated; the descriptor tells the chunk's true geometry.
///
/// # Errors
/// When the body is longer than that of [`Layout::largest`].
pub fn encode_body(
    geometry: Geometry,
    body: &[u8],
    secret: &ConvergenceSecret,
    buffer: Vec<u8>,
) -> Result<EncodedChunk, LayoutError> {
    let layout = Layout::for_body(geometry.for_plaintext(body.len()), body.len())?;
    let mut bytes = sized(buffer, buffer_bytes(layout));
    bytes[..body.len()].copy_from_slice(body);
    let end = &body[body.len().saturating_sub(PADDING_SEED_BYTES)..];
    pad(secret, end, &mut bytes[body.len()..layout.body_bytes()]);
    Ok(code(layout, bytes, |_, _| {}))
}

/// A size within a chunk: below 2^24, since a body is at most 8 MiB and its tags.
fn small(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a size within a chunk is below 16 MiB")
}

/// What the buffer holds: all shards, or one copy for all replicas.
const fn buffer_bytes(layout: Layout) -> usize {
    let geometry = layout.geometry();
    let copies = if geometry.data() == 1 { 1 } else { geometry.total() };
    copies * layout.shard_bytes()
}

/// The buffer, as long as needed, with any content. New memory comes zeroed from the system; old
/// memory is not zeroed again, because every byte will be written.
fn sized(mut buffer: Vec<u8>, bytes: usize) -> Vec<u8> {
    if buffer.capacity() < bytes {
        return vec![0; bytes];
    }
    buffer.resize(bytes, 0);
    buffer
}

/// Fills the body behind its content with a key stream, so that a node cannot tell where the
/// content ends. It depends on the secret and the content only: equal bodies stay equal.
fn pad(secret: &ConvergenceSecret, content: &[u8], padding: &mut [u8]) {
    let mut hasher = blake3::Hasher::new_derive_key("copse body padding v1");
    hasher.update(secret.as_bytes()).update(&(padding.len() as u64).to_le_bytes()).update(content);
    hasher.finalize_xof().fill(padding);
}

/// Makes the frames (those that `fill` makes; others are there already), the parity shards, the
/// hashes of all shards and the descriptor.
///
/// One block of each shard at a time, sealed, hashed and coded while these blocks are in the cache.
/// Done one after the other over the whole chunk, the same steps wait for memory for a tenth of the
/// time.
fn code(layout: Layout, mut bytes: Vec<u8>, fill: impl Fn(usize, &mut [u8])) -> EncodedChunk {
    let (geometry, shard_bytes) = (layout.geometry(), layout.shard_bytes());
    let codec = Codec::new(geometry);
    let (data, parity) = bytes.split_at_mut(layout.body_bytes());
    let mut data: Vec<&mut [u8]> = data.chunks_mut(shard_bytes).collect();
    let mut parity: Vec<&mut [u8]> = parity.chunks_mut(shard_bytes).collect();
    let mut hashers = vec![blake3::Hasher::new(); data.len() + parity.len()];
    let (mut columns, mut hashed) = (0..0, 0..0);
    let sealed_frame = layout.frame_bytes() + TAG_BYTES;
    let (blocks, frames) = (layout.blocks_per_shard(), layout.frames_per_block());
    for turn in 0..blocks {
        columns = columns.end..columns.end + shard_bytes / blocks;
        // What is behind the last whole subtree waits for the next turn.
        let whole = columns.end / HASHED_BYTES * HASHED_BYTES;
        hashed = hashed.end..if columns.end == shard_bytes { shard_bytes } else { whole };
        let (data_hashers, parity_hashers) = hashers.split_at_mut(data.len());
        for (i, (shard, hasher)) in data.iter_mut().zip(data_hashers).enumerate() {
            let first = (i * blocks + turn) * frames;
            for (frame, out) in shard[columns.clone()].chunks_mut(sealed_frame).enumerate() {
                fill(first + frame, out);
            }
            hasher.update(&shard[hashed.clone()]);
        }
        let inputs: Vec<&[u8]> = data.iter().map(|shard| &shard[columns.clone()]).collect();
        let mut outputs: Vec<&mut [u8]> =
            parity.iter_mut().map(|shard| &mut shard[columns.clone()]).collect();
        codec.encode_columns(&inputs, &mut outputs);
        for (shard, hasher) in parity.iter().zip(parity_hashers) {
            hasher.update(&shard[hashed.clone()]);
        }
    }
    let mut hashes: Vec<ShardHash> =
        hashers.iter().map(|hasher| ShardHash::new(*hasher.finalize().as_bytes())).collect();
    // Replicas are hashed once.
    hashes.resize(geometry.total(), hashes[0]);
    let descriptor = Descriptor::new(geometry, shard_bytes, hashes)
        .expect("a layout's sizes are a descriptor's");
    EncodedChunk { id: descriptor.id(), descriptor, bytes }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        limits::{CHUNK_BYTES_MAX, REPLICATE_BYTES_BELOW},
        seal::{open_span, open_span_into, seal_into},
        shard_tree,
        testing::{geometries, geometry, noise},
    };

    fn secret() -> ConvergenceSecret {
        ConvergenceSecret::new([7; 32])
    }

    fn bulk(code: Geometry, plaintext: &[u8]) -> (EncodedChunk, Extent) {
        encode_bulk(code, &secret(), plaintext, Vec::new()).expect("fits")
    }

    /// The data shards, rebuilt from the last k shards.
    fn body_from_parity(chunk: &EncodedChunk) -> Vec<u8> {
        let code = chunk.descriptor().geometry();
        let have: Vec<(ShardIndex, &[u8])> =
            code.indices().rev().take(code.data()).map(|i| (i, chunk.shard(i))).collect();
        let data: Vec<ShardIndex> = code.indices().take(code.data()).collect();
        Codec::new(code).reconstruct(&have, &data).expect("k shards").concat()
    }

    fn open(extent: &Extent, body: &[u8]) -> Vec<u8> {
        let (frame_bytes, bytes) = (extent.frame_bytes as usize, extent.plaintext_bytes as usize);
        let (span, _) = extent.shard_ranges(0..bytes);
        let start = extent.offset as usize;
        let sealed = &mut body.to_vec()[start + span.sealed.start..start + span.sealed.end];
        open_span(&extent.key, frame_bytes, bytes, &span, sealed).expect("opens").to_vec()
    }

    #[test]
    fn a_chunk_of_any_size_comes_back_from_its_last_shards() {
        let code = geometry("10+6");
        let full = Layout::largest(code).plaintext_bytes_max();
        for bytes in [0, 1, 1023, 1024, 1025, 40_959, 40_960, 1 << 20, full - 1, full] {
            let plaintext = noise(bytes, 1);
            let (chunk, extent) = bulk(code, &plaintext);
            extent.check().expect("an extent within its chunk");
            assert_eq!(extent.geometry == code, bytes >= REPLICATE_BYTES_BELOW, "{bytes}");
            assert!(open(&extent, &body_from_parity(&chunk)) == plaintext, "{bytes} bytes");
        }
    }

    #[test]
    fn the_steps_frame_by_frame_are_the_steps_one_after_the_other() {
        for (code, bytes) in
            [("10+6", 5 << 20), ("10+6", 77_777), ("4+2", 8 << 20), ("29+51", 1 << 20)]
        {
            let code = geometry(code);
            let (chunk, _) = bulk(code, &noise(bytes, 2));
            let shard_bytes = chunk.descriptor().shard_bytes();
            let data: Vec<u8> =
                code.indices().take(code.data()).flat_map(|i| chunk.shard(i).to_vec()).collect();
            let mut parity = vec![0; code.parity() * shard_bytes];
            Codec::new(code).encode(&data, &mut parity, shard_bytes);
            for (i, parity) in code.indices().skip(code.data()).zip(parity.chunks(shard_bytes)) {
                assert!(chunk.shard(i) == parity, "parity {i} of {code}");
            }
            for i in code.indices() {
                let hash = shard_tree::hash(chunk.shard(i));
                assert_eq!(chunk.descriptor().shard_hash(i), Some(&hash));
                chunk.descriptor().check_shard(i, chunk.shard(i)).expect("its own shard");
            }
            assert_eq!(chunk.descriptor().id(), chunk.id());
        }
    }

    #[test]
    fn equal_content_meets_within_a_volume_only() {
        let (code, plaintext) = (geometry("4+2"), noise(100_000, 3));
        let (chunk, extent) = bulk(code, &plaintext);
        // Old bytes in the buffer do not matter, be there more or fewer than needed.
        for old in [0, 100, 10_000_000] {
            let again = encode_bulk(code, &secret(), &plaintext, vec![0xee; old]).expect("fits");
            assert!(again == (chunk.clone(), extent.clone()), "an old buffer of {old}");
        }
        let other = ConvergenceSecret::new([8; 32]);
        let (elsewhere, _) = encode_bulk(code, &other, &plaintext, Vec::new()).expect("fits");
        assert_ne!(elsewhere.id(), chunk.id());
    }

    #[test]
    fn padding_does_not_stand_out() {
        // One byte more than seven eighths: nearly an eighth is padding.
        let (chunk, extent) = bulk(geometry("1+1"), &vec![0; (7 << 16) + 1]);
        let padding = &chunk.shard(ShardIndex(0))[extent.sealed_bytes()..];
        assert!(padding.len() > 60_000);
        let mut counts = [0usize; 256];
        padding.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        let expected = padding.len() / 256;
        assert!(counts.iter().all(|count| (expected / 2..expected * 2).contains(count)));
    }

    #[test]
    fn a_pack_gives_back_each_of_its_items() {
        let code = geometry("5+3");
        let items: Vec<Vec<u8>> = (0..40).map(|i| noise(i * 997, i as u64)).collect();
        let (mut body, mut extents) = (Vec::new(), Vec::new());
        for item in &items {
            let key = content_key(&secret(), item);
            let offset = body.len();
            body.resize(offset + sealed_bytes(item.len(), 1 << 16), 0);
            seal_into(&key, 1 << 16, item, &mut body[offset..]);
            extents.push((small(offset), small(item.len()), key));
        }
        let chunk = encode_body(code, &body, &secret(), vec![1; 50]).expect("fits");
        let shard_bytes = small(chunk.descriptor().shard_bytes());
        let rebuilt = body_from_parity(&chunk);
        assert!(rebuilt.starts_with(&body));
        for (item, (offset, plaintext_bytes, key)) in items.iter().zip(extents) {
            let (chunk, geometry, frame_bytes) = (chunk.id(), code, 1 << 16);
            let extent =
                Extent { chunk, geometry, shard_bytes, offset, plaintext_bytes, frame_bytes, key };
            extent.check().expect("an extent within its chunk");
            assert!(open(&extent, &rebuilt) == *item);
        }
        let again = encode_body(code, &body, &secret(), Vec::new()).expect("fits");
        assert_eq!(again.id(), chunk.id());
    }

    #[test]
    fn small_chunks_are_replicated_and_kept_once() {
        let (chunk, extent) = bulk(geometry("10+6"), b"a small thing");
        assert_eq!(extent.geometry, geometry("1+6"));
        let first = chunk.shard(ShardIndex(0));
        assert!(extent.geometry.indices().all(|i| chunk.shard(i) == first));
        assert_eq!(first.len(), 1040);
        let body = encode_body(geometry("10+6"), b"a body", &secret(), Vec::new()).expect("fits");
        assert_eq!(body.descriptor().geometry(), geometry("1+6"));
        assert_eq!(body.into_buffer().len(), 1040);
    }

    #[test]
    fn too_much_is_refused_with_the_limit() {
        let error = encode_bulk(geometry("10+6"), &secret(), &vec![0; CHUNK_BYTES_MAX], Vec::new())
            .expect_err("8 MiB are more than 120 frames");
        assert_eq!(
            error.to_string(),
            "8388608 bytes of plaintext do not fit a chunk of 10+6: at most 7864320; cut them in \
             several chunks"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_range_is_read_from_the_same_columns_of_any_k_shards(
            code in geometries(10, 6),
            bytes in 1..300_000usize,
            a: u32,
            b: u32,
            order in any::<[u8; 16]>(),
        ) {
            let plaintext = noise(bytes, 4);
            let (chunk, extent) = bulk(code, &plaintext);
            let code = extent.geometry;
            let want = {
                let (a, b) = (a as usize % bytes, b as usize % bytes);
                a.min(b)..a.max(b) + 1
            };
            let mut alive: Vec<ShardIndex> = code.indices().collect();
            alive.sort_by_key(|index| order[index.as_usize()]);
            alive.truncate(code.data());

            let (span, ranges) = extent.shard_ranges(want.clone());
            let mut sealed = Vec::new();
            for (index, columns) in ranges {
                let have: Vec<(ShardIndex, &[u8])> =
                    alive.iter().map(|i| (*i, &chunk.shard(*i)[columns.clone()])).collect();
                let rebuilt = Codec::new(code).reconstruct(&have, &[index]).expect("k shards");
                sealed.extend_from_slice(&rebuilt[0]);
            }
            let mut opened = vec![0; span.plaintext.len()];
            let frame_bytes = extent.frame_bytes as usize;
            open_span_into(&extent.key, frame_bytes, bytes, &span, &sealed, &mut opened)
                .expect("opens");
            let start = span.plaintext.start;
            prop_assert_eq!(&opened[want.start - start..want.end - start], &plaintext[want]);
        }
    }
}
