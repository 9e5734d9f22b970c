//! A shard that was checked: the only thing a store takes, and the only thing it gives.
//!
//! Owns the check of a shard when it comes and when it is read back; opens nothing. It hashes the
//! shard once, on the caller's thread; the group hashes found on the way are stored beside the
//! shard, so that writing hashes nothing and a small read hashes little.

use std::ops::Range;

use bytes::Bytes;
use copse_core::{
    descriptor::{Descriptor, ShardError},
    geometry::Geometry,
    ids::{ChunkId, ShardHash, ShardId, ShardIndex},
    shard_tree::{self, GroupHashes},
    wire::WireError,
};

use super::{ReadError, Want};

/// Bytes that are proved to be shard `index` of the chunk whose descriptor comes with them.
#[derive(Debug, Clone)]
pub struct VerifiedShard {
    id: ShardId,
    geometry: Geometry,
    descriptor: Bytes,
    groups: Bytes,
    data: Bytes,
}

/// Why bytes are not the shard they are said to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The descriptor is not one.
    #[error("the chunk's descriptor is wrong: {0}")]
    Descriptor(#[from] WireError),
    /// The bytes are not the shard.
    #[error(transparent)]
    Shard(#[from] ShardError),
}

impl VerifiedShard {
    /// Checks `data` against the descriptor. Costs one pass of BLAKE3 over the shard, on this
    /// thread.
    ///
    /// The chunk's id follows from the descriptor: who expects a certain chunk compares
    /// [`Self::id`].
    ///
    /// # Errors
    /// When the descriptor is malformed or the bytes are not the shard.
    pub fn check(descriptor: Bytes, index: ShardIndex, data: Bytes) -> Result<Self, CheckError> {
        let decoded = Descriptor::decode(&descriptor)?;
        let groups = decoded.check_shard(index, &data)?.to_bytes().into();
        let id = ShardId { chunk: chunk_id(&descriptor), index };
        Ok(Self { id, geometry: decoded.geometry(), descriptor, groups, data })
    }

    /// Which shard it is.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// The chunk's k and n.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The chunk's descriptor, encoded.
    pub fn descriptor(&self) -> &Bytes {
        &self.descriptor
    }

    /// The hashes of the shard's groups, 32 bytes each.
    pub fn groups(&self) -> &Bytes {
        &self.groups
    }

    /// The shard's bytes.
    pub fn data(&self) -> &Bytes {
        &self.data
    }
}

fn chunk_id(descriptor: &[u8]) -> ChunkId {
    ChunkId::new(*blake3::hash(descriptor).as_bytes())
}

/// The hash that a stored shard must have, if `descriptor` is its chunk's and agrees on its length.
pub(super) fn expected_hash(
    id: ShardId,
    descriptor: &[u8],
    shard_bytes: usize,
) -> Option<ShardHash> {
    if chunk_id(descriptor) != id.chunk {
        return None;
    }
    let descriptor = Descriptor::decode(descriptor).ok()?;
    (descriptor.shard_bytes() == shard_bytes).then(|| descriptor.shard_hash(id.index).copied())?
}

/// The chunk's geometry, if everything that is stored of a shard is proved by the chunk's id:
/// descriptor, group hashes and bytes. Hashes all of them.
pub(super) fn sound(
    id: ShardId,
    descriptor: &[u8],
    groups: &[u8],
    data: &[u8],
) -> Option<Geometry> {
    let hash = expected_hash(id, descriptor, data.len())?;
    let computed = GroupHashes::of(data);
    let sound = computed.root(data.len()) == hash && computed.to_bytes() == groups;
    sound.then(|| Descriptor::decode(descriptor).ok().map(|decoded| decoded.geometry()))?
}

/// What must be read of a shard to answer `want`: whole groups.
pub(super) fn covered(
    id: ShardId,
    want: &Want,
    shard_bytes: usize,
) -> Result<Range<usize>, ReadError> {
    let range = match want {
        Want::Whole => return Ok(0..shard_bytes),
        Want::Range(range) => range,
    };
    let within = || {
        let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
        (start < end && end <= shard_bytes).then_some(start..end)
    };
    let out_of_range =
        || ReadError::OutOfRange { id, shard_bytes: shard_bytes as u64, want: range.clone() };
    Ok(shard_tree::covered(shard_bytes, within().ok_or_else(out_of_range)?))
}

/// The proof that `data` is the range `covered` of the shard with this hash; nothing when it is
/// not, or when the group hashes are damaged. Hashes the covered bytes only.
pub(super) fn prove(
    hash: &ShardHash,
    shard_bytes: usize,
    covered: &Range<usize>,
    groups: &[u8],
    data: &[u8],
) -> Option<Vec<u8>> {
    let proof = if covered.len() == shard_bytes {
        Vec::new()
    } else {
        GroupHashes::from_bytes(shard_bytes, groups).ok()?.prove(shard_bytes, covered)
    };
    shard_tree::verify(hash, shard_bytes, covered, data, &proof).ok()?;
    Some(proof)
}
