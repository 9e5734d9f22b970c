//! One record read from a segment's file, and proved.
//!
//! Owns the check of a whole record. Opens no file and sets nothing apart. What is not proved is not
//! given.

use std::io;

use bytes::Bytes;
use copse_core::{geometry::Geometry, ids::ShardId};

use super::{
    device::DeviceFile,
    index::Entry,
    segment::{HEAD_BYTES, RecordHeader, RecordKey, prefix_bytes},
    shard,
};

/// A whole record of a shard, proved by the chunk's id.
pub(super) struct Record {
    /// Header, descriptor, group hashes, shard.
    pub(super) bytes: Bytes,
    pub(super) geometry: Geometry,
}

/// Reads the whole record of a row and checks all of it. Nothing when it is damaged.
pub(super) fn read_whole(
    file: &dyn DeviceFile,
    key: &RecordKey,
    id: ShardId,
    entry: &Entry,
) -> io::Result<Option<Record>> {
    let prefix = index_of(prefix_bytes(entry.descriptor_bytes, entry.shard_bytes));
    let bytes = index_of(entry.record_bytes());
    let Some(bytes) = file.read_exact(entry.place.offset, bytes)? else { return Ok(None) };
    let groups_at = HEAD_BYTES + entry.descriptor_bytes as usize;
    let proved = || {
        if !is_header_of(id, entry, key, &bytes) {
            return None;
        }
        let (descriptor, groups) = (&bytes[HEAD_BYTES..groups_at], &bytes[groups_at..prefix]);
        shard::sound(id, descriptor, groups, &bytes[prefix..])
    };
    Ok(proved().map(|geometry| Record { bytes, geometry }))
}

/// Whether these bytes begin with the header of the row's record.
pub(super) fn is_header_of(id: ShardId, entry: &Entry, key: &RecordKey, bytes: &[u8]) -> bool {
    bytes
        .first_chunk::<HEAD_BYTES>()
        .and_then(|head| RecordHeader::decode(head, key, entry.place).ok())
        .is_some_and(|header| {
            header.id == id
                && header.has_shard()
                && header.descriptor_bytes == entry.descriptor_bytes
                && header.shard_bytes == entry.shard_bytes
        })
}

/// A length of at most a record: it fits.
pub(super) fn index_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
