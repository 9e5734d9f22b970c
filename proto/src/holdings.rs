//! The bodies in which a node tells what it holds: arcs that changed, and the shards of an arc.
//!
//! Owns their bytes, which lie behind a peer message's header. Refuses what is not whole entries in
//! ascending order, so that a peer cannot say anything twice, and shards that no chunk can have.
//!
//! ```text
//! changed arcs   22 bytes each: arc u16 BE ‖ shards u32 LE ‖ sum 16
//! shards         39 bytes each: chunk id 32 ‖ index u8 ‖ k u8 ‖ n u8 ‖ shard_bytes u32 LE
//! ```

use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, ID_BYTES, ShardId, ShardIndex},
    layout::Layout,
};

use crate::convert::ConvertError;

/// Bytes of a changed arc.
pub const ARC_BYTES: usize = 2 + 4 + 16;

/// Bytes of a listed shard.
pub const SHARD_ENTRY_BYTES: usize = ID_BYTES + 1 + 1 + 1 + 4;

/// Arcs asked for in one ListArcs, at most: their numbers fit a header with room to spare.
pub const LIST_ARCS_MAX: usize = 1024;

/// Bytes of the body of one answer to ListArcs, at most: some 27,000 shards, far more than an arc
/// of a disk of ordinary size, so that one answer tells of many arcs.
pub const LIST_BYTES_MAX: usize = 1 << 20;

/// Bit of `ArcChangesReply::unable`: the node's store or ledger fails or hangs, or it is cut off, so it plans
/// nothing or not all.
pub const CANNOT_PLAN: u32 = 1;

/// Bit of `ArcChangesReply::unable`: the node's disk cannot be read, so what it holds does not count.
pub const CANNOT_READ: u32 = 2;

/// What a node holds in one arc, in short: equal digests mean equal holdings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArcDigest {
    /// Which of the 2^16 arcs.
    pub arc: u16,
    /// How many shards.
    pub shards: u32,
    /// The sum of their hashes.
    pub sum: [u8; 16],
}

/// A shard that a node says it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedShard {
    /// The shard.
    pub id: ShardId,
    /// Its chunk's geometry.
    pub geometry: Geometry,
    /// Its length.
    pub shard_bytes: u32,
}

fn wrong(field: &'static str, problem: impl ToString) -> ConvertError {
    ConvertError::field(field, problem)
}

/// The body for changed arcs.
pub fn encode_arcs(arcs: &[ArcDigest]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(arcs.len() * ARC_BYTES);
    for digest in arcs {
        bytes.extend_from_slice(&digest.arc.to_be_bytes());
        bytes.extend_from_slice(&digest.shards.to_le_bytes());
        bytes.extend_from_slice(&digest.sum);
    }
    bytes
}

/// Reads changed arcs.
///
/// # Errors
/// When the bytes are not whole entries, ascending by arc.
pub fn decode_arcs(bytes: &[u8]) -> Result<Vec<ArcDigest>, ConvertError> {
    let (entries, rest) = bytes.as_chunks::<ARC_BYTES>();
    if !rest.is_empty() {
        return Err(wrong("body", format_args!("{} bytes behind the last arc", rest.len())));
    }
    let mut arcs = Vec::with_capacity(entries.len());
    for entry in entries {
        let digest = ArcDigest {
            arc: u16::from_be_bytes([entry[0], entry[1]]),
            shards: u32::from_le_bytes([entry[2], entry[3], entry[4], entry[5]]),
            sum: core::array::from_fn(|at| entry[6 + at]),
        };
        if arcs.last().is_some_and(|last: &ArcDigest| last.arc >= digest.arc) {
            return Err(wrong("body", "the arcs do not ascend"));
        }
        arcs.push(digest);
    }
    Ok(arcs)
}

/// The bytes of a shard's id.
pub fn shard_key(id: ShardId) -> [u8; ID_BYTES + 1] {
    let mut key = [id.index.0; ID_BYTES + 1];
    key[..ID_BYTES].copy_from_slice(id.chunk.as_bytes());
    key
}

/// Reads the bytes of a shard's id; none when empty.
///
/// # Errors
/// When there is another number of bytes.
pub fn shard_of_key(bytes: &[u8]) -> Result<Option<ShardId>, ConvertError> {
    let [chunk @ .., index] = bytes else { return Ok(None) };
    let chunk = ChunkId::from_slice(chunk).map_err(|error| wrong("after", error))?;
    Ok(Some(ShardId { chunk, index: ShardIndex(*index) }))
}

/// Appends one shard to a body.
pub fn encode_shard(bytes: &mut Vec<u8>, shard: &ListedShard) {
    bytes.extend_from_slice(&shard_key(shard.id));
    bytes.extend_from_slice(&shard.geometry.to_bytes());
    bytes.extend_from_slice(&shard.shard_bytes.to_le_bytes());
}

/// Whether a shard may be listed behind another.
///
/// # Errors
/// When it does not come behind it, or is of the same chunk in another shape.
pub fn follows(last: &ListedShard, next: &ListedShard) -> Result<(), ConvertError> {
    if last.id >= next.id {
        return Err(wrong("body", "the shards do not ascend"));
    }
    let shape = |shard: &ListedShard| (shard.geometry, shard.shard_bytes);
    if last.id.chunk == next.id.chunk && shape(last) != shape(next) {
        return Err(wrong("body", "a chunk is listed in two shapes"));
    }
    Ok(())
}

/// Reads listed shards.
///
/// # Errors
/// When the bytes are not whole entries, ascending by shard, one is no shard of its geometry or of a
/// length that no shard has, or two of one chunk are of different shapes.
pub fn decode_shards(bytes: &[u8]) -> Result<Vec<ListedShard>, ConvertError> {
    let (entries, rest) = bytes.as_chunks::<SHARD_ENTRY_BYTES>();
    if !rest.is_empty() {
        return Err(wrong("body", format_args!("{} bytes behind the last shard", rest.len())));
    }
    let mut shards = Vec::with_capacity(entries.len());
    for entry in entries {
        let chunk =
            ChunkId::from_slice(&entry[..ID_BYTES]).map_err(|error| wrong("body", error))?;
        let [index, k, n] = [entry[ID_BYTES], entry[ID_BYTES + 1], entry[ID_BYTES + 2]];
        let geometry = Geometry::from_bytes([k, n]).map_err(|error| wrong("body", error))?;
        if index >= n {
            return Err(wrong("body", format_args!("no shard {index} of {n}")));
        }
        let length: [u8; 4] = core::array::from_fn(|at| entry[ID_BYTES + 3 + at]);
        let shard = ListedShard {
            id: ShardId { chunk, index: ShardIndex(index) },
            geometry,
            shard_bytes: u32::from_le_bytes(length),
        };
        if !Layout::is_shard_size(geometry, shard.shard_bytes as usize) {
            let problem = format_args!("no shard of {geometry} has {} bytes", shard.shard_bytes);
            return Err(wrong("body", problem));
        }
        if let Some(last) = shards.last() {
            follows(last, &shard)?;
        }
        shards.push(shard);
    }
    Ok(shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(chunk: u8, index: u8) -> ListedShard {
        ListedShard {
            id: ShardId { chunk: ChunkId::new([chunk; 32]), index: ShardIndex(index) },
            geometry: Geometry::new(10, 6).expect("10+6"),
            shard_bytes: 786_624,
        }
    }

    #[test]
    fn arcs_have_these_bytes() {
        let arcs = [
            ArcDigest { arc: 1, shards: 2, sum: [3; 16] },
            ArcDigest { arc: 0xfffe, shards: 0, sum: [0; 16] },
        ];
        let bytes = encode_arcs(&arcs);
        let mut expected = vec![0, 1, 2, 0, 0, 0];
        expected.extend([3; 16]);
        expected.extend([0xff, 0xfe]);
        expected.extend([0; 20]);
        assert_eq!(bytes, expected);
        assert_eq!(decode_arcs(&bytes).expect("whole"), arcs);
        assert!(decode_arcs(&bytes[1..]).is_err());
        assert!(decode_arcs(&[&bytes[22..], &bytes[..22]].concat()).is_err());
    }

    #[test]
    fn shards_have_these_bytes() {
        let mut bytes = Vec::new();
        encode_shard(&mut bytes, &shard(7, 13));
        assert_eq!(bytes[..32], [7; 32]);
        assert_eq!(bytes[32..], [13, 10, 16, 0xc0, 0x00, 0x0c, 0x00]);
        encode_shard(&mut bytes, &shard(8, 0));
        assert_eq!(decode_shards(&bytes).expect("whole"), [shard(7, 13), shard(8, 0)]);
    }

    #[test]
    fn any_shard_list_is_read_or_refused() {
        let mut bytes = Vec::new();
        encode_shard(&mut bytes, &shard(7, 13));
        for (at, value) in [(32, 16), (33, 0), (33, 17), (34, 9), (34, 0)] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            assert!(decode_shards(&wrong).is_err(), "{at} = {value}");
        }
        for length in [0u32, 1 << 31] {
            let mut wrong = bytes.clone();
            wrong[35..39].copy_from_slice(&length.to_le_bytes());
            assert!(decode_shards(&wrong).is_err(), "{length} bytes");
        }
        let other = ListedShard { shard_bytes: 786_625, ..shard(7, 14) };
        let mut two_shapes = bytes.clone();
        encode_shard(&mut two_shapes, &other);
        assert!(decode_shards(&two_shapes).is_err(), "two shapes");
        assert!(decode_shards(&[bytes.clone(), bytes.clone()].concat()).is_err());
        assert!(decode_shards(&bytes[..38]).is_err());
        assert_eq!(decode_shards(&[]).expect("nothing"), []);
    }

    #[test]
    fn a_shard_key_reads_back() {
        let id = shard(9, 3).id;
        assert_eq!(shard_of_key(&shard_key(id)).expect("33 bytes"), Some(id));
        assert_eq!(shard_of_key(&[]).expect("none"), None);
        assert!(shard_of_key(&[1; 32]).is_err());
    }
}
