//! How the mirror of claims is written down (drawn in [`super`]).
//!
//! Owns the bytes of its rows. Refuses rows of other versions. The one idea: a list without its digest
//! is not believed, so that it does not matter where a crash cuts a write.

use std::io;

use copse_core::ids::{ID_BYTES, NodeId};
use copse_proto::holdings::{self, ListedShard, SHARD_ENTRY_BYTES};

use super::{Digest, EMPTY, LISTED_MAX};
use crate::store::{LEDGER_CHANGES_MAX, LEDGER_VALUE_BYTES_MAX, Ledger, LedgerChange};

/// Shards in one row: 40 KiB, under what a row of the ledger may have.
const PART_SHARDS: usize = 1 << 10;

/// Rows changed at once: with lists, 5 MiB.
const CHANGES_AT_ONCE: usize = 128;

const _: () = assert!(LISTED_MAX / PART_SHARDS <= u16::MAX as usize);
const _: () = assert!(PART_SHARDS * SHARD_ENTRY_BYTES < LEDGER_VALUE_BYTES_MAX);
const _: () = assert!(CHANGES_AT_ONCE <= LEDGER_CHANGES_MAX);

const ROW_VERSION: u8 = 1;
pub(super) const DIGEST_PREFIX: &[u8] = b"rd";
pub(super) const CLAIMS_PREFIX: &[u8] = b"rc";

/// Replaces the rows of one node's arc. While it goes on there is no digest, so that a crash in the
/// middle has the arc listed again.
pub(super) fn write(
    ledger: &dyn Ledger,
    arc: u16,
    node: NodeId,
    digest: Digest,
    shards: &[ListedShard],
) -> io::Result<()> {
    let mut rows: Vec<LedgerChange> = vec![(row(DIGEST_PREFIX, arc, &node), None)];
    ledger.scan(&row(CLAIMS_PREFIX, arc, &node), &mut |key, _| {
        rows.push((key.to_vec(), None));
        true
    })?;
    for (part, shards) in (0u16..).zip(shards.chunks(PART_SHARDS)) {
        let mut list = vec![ROW_VERSION];
        shards.iter().for_each(|shard| holdings::encode_shard(&mut list, shard));
        let key = [&row(CLAIMS_PREFIX, arc, &node)[..], &part.to_be_bytes()].concat();
        rows.push((key, Some(list)));
    }
    if digest != EMPTY {
        rows.push((row(DIGEST_PREFIX, arc, &node), Some(digest_row(digest))));
    }
    rows.chunks(CHANGES_AT_ONCE).try_for_each(|part| ledger.apply(part.to_vec()))
}

pub(super) fn row(prefix: &[u8], arc: u16, node: &NodeId) -> Vec<u8> {
    [prefix, &arc.to_be_bytes(), node.as_bytes()].concat()
}

pub(super) fn arc_and_node(key: &[u8]) -> Option<(u16, NodeId)> {
    let (arc, node) = key.get(2..)?.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*arc), NodeId::from_slice(node.get(..ID_BYTES)?).ok()?))
}

pub(super) fn digest_row((shards, sum): Digest) -> Vec<u8> {
    [&[ROW_VERSION][..], &shards.to_le_bytes(), &sum].concat()
}

pub(super) fn digest_of(value: &[u8]) -> Option<Digest> {
    let [ROW_VERSION, rest @ ..] = value else { return None };
    let (shards, sum) = rest.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*shards), sum.try_into().ok()?))
}

pub(super) fn list_of(value: &[u8]) -> Option<Vec<ListedShard>> {
    let [ROW_VERSION, list @ ..] = value else { return None };
    holdings::decode_shards(list).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_these_bytes_and_read_back() {
        let node = NodeId::new([7; 32]);
        let key = row(DIGEST_PREFIX, 0x0102, &node);
        assert_eq!(key[..4], *b"rd\x01\x02");
        assert_eq!(arc_and_node(&key), Some((0x0102, node)));
        let value = digest_row((3, [9; 16]));
        assert_eq!(value[..5], [1, 3, 0, 0, 0]);
        assert_eq!(digest_of(&value), Some((3, [9; 16])));
        assert_eq!(digest_of(&value[1..]), None);
        assert_eq!(arc_and_node(&key[..20]), None);
        assert_eq!(list_of(&[1]), Some(Vec::new()));
        assert_eq!(list_of(&[2]), None);
    }
}
