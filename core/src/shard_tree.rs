//! The hash tree of a shard: proof that a range of it is what it should be.
//!
//! Owns the chaining values of 16 KiB groups and range proofs. Refuses data or proofs that do not
//! add up to the shard's hash. The idea: BLAKE3 is a tree already, so the root is the plain BLAKE3
//! hash of the shard and the inner values come with it for nothing.
//!
//! ```text
//!             root = BLAKE3(shard)            a proof for group 2:
//!            /                    \             value of (0 1), value of 3
//!        (0 1)                    (2 3)       in pre-order: the subtrees that hold
//!       /     \                  /     \      nothing of the covered range
//!   group 0  group 1        group 2  group 3 (may be short)
//! ```

use core::ops::Range;

use blake3::{
    Hasher,
    hazmat::{self, HasherExt, Mode},
};

use crate::{
    ids::{ID_BYTES, ShardHash},
    limits::GROUP_BYTES,
    wire::WireError,
};

/// The chaining values of a shard's groups, in order. A shard of one group has no inner value: its
/// one hash is the root.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupHashes(Vec<[u8; ID_BYTES]>);

/// Data that is not the range of the shard it is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The range does not start and end at groups, is empty, or goes past the shard's end.
    #[error("{start}..{end} is no range of whole groups of a shard of {shard_bytes} bytes")]
    Range {
        /// First byte.
        start: usize,
        /// Byte after the last.
        end: usize,
        /// Bytes of the shard.
        shard_bytes: usize,
    },
    /// The data is not as long as its range.
    #[error("the range has {expected} bytes, got {got}")]
    DataLength {
        /// Bytes of the range.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// The proof is not as long as the range needs.
    #[error("the proof of this range has {expected} bytes, got {got}")]
    ProofLength {
        /// Bytes of a proof for this range.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// Data and proof do not lead to the hash of the shard.
    #[error("the data is not this range of the shard: its tree leads to {got}, not {expected}")]
    Root {
        /// The shard's hash.
        expected: ShardHash,
        /// Where data and proof lead.
        got: ShardHash,
    },
}

/// How many groups a shard has: at least one.
pub const fn group_count(shard_bytes: usize) -> usize {
    if shard_bytes == 0 { 1 } else { shard_bytes.div_ceil(GROUP_BYTES) }
}

/// The hash of a whole shard.
pub fn hash(shard: &[u8]) -> ShardHash {
    ShardHash::new(*blake3::hash(shard).as_bytes())
}

/// The range of whole groups that holds `want`, cut at the shard's end. An empty range is widened
/// to one group, so that each answer can be proved.
pub fn covered(shard_bytes: usize, want: Range<usize>) -> Range<usize> {
    let last = (group_count(shard_bytes) - 1) * GROUP_BYTES;
    let start = (want.start / GROUP_BYTES * GROUP_BYTES).min(last);
    let end = want.end.min(shard_bytes).div_ceil(GROUP_BYTES) * GROUP_BYTES;
    start..end.max(start + GROUP_BYTES).min(shard_bytes)
}

/// Whether `range` is what [`covered`] gives for some range.
fn is_covered(shard_bytes: usize, range: &Range<usize>) -> bool {
    range.start.is_multiple_of(GROUP_BYTES)
        && range.start <= range.end
        && range.end <= shard_bytes
        && (range.end.is_multiple_of(GROUP_BYTES) || range.end == shard_bytes)
        && (!range.is_empty() || shard_bytes == 0)
}

impl GroupHashes {
    /// Hashes a shard.
    pub fn of(shard: &[u8]) -> Self {
        if shard.len() <= GROUP_BYTES {
            return Self(vec![*hash(shard).as_bytes()]);
        }
        let groups = shard.chunks(GROUP_BYTES).enumerate();
        Self(groups.map(|(i, group)| subtree(i * GROUP_BYTES, group)).collect())
    }

    /// The hash of the shard, which has `shard_bytes`.
    ///
    /// # Panics
    /// When a shard of that size has another number of groups.
    pub fn root(&self, shard_bytes: usize) -> ShardHash {
        assert_eq!(self.0.len(), group_count(shard_bytes), "groups of {shard_bytes} bytes");
        match self.0.as_slice() {
            [root] => ShardHash::new(*root),
            groups => {
                let (left, right) = groups.split_at(left_groups(groups.len()));
                root_of(&value(left), &value(right))
            }
        }
    }

    /// The proof that the groups of `covered` belong to the shard: 32 bytes for each subtree that
    /// holds nothing of it. Empty for the whole shard.
    ///
    /// # Panics
    /// When the shard has another number of groups or `covered` is not what [`covered()`] gives.
    pub fn prove(&self, shard_bytes: usize, covered: &Range<usize>) -> Vec<u8> {
        assert_eq!(self.0.len(), group_count(shard_bytes), "groups of {shard_bytes} bytes");
        assert!(is_covered(shard_bytes, covered), "{covered:?} is no range of whole groups");
        let mut proof = Vec::new();
        let wanted = covered.start / GROUP_BYTES..covered.end.div_ceil(GROUP_BYTES);
        prove_subtree(&self.0, 0, &wanted, &mut proof);
        proof
    }

    /// How many groups there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: a shard has at least one group.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// 32 bytes for each group.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.concat()
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote for a shard of `shard_bytes`. That they are
    /// *this* shard's is known when [`root`](Self::root) was compared.
    ///
    /// # Errors
    /// When the length is another.
    pub fn from_bytes(shard_bytes: usize, bytes: &[u8]) -> Result<Self, WireError> {
        let (groups, rest) = bytes.as_chunks::<ID_BYTES>();
        if groups.len() != group_count(shard_bytes) || !rest.is_empty() {
            return Err(WireError::Invalid("the number of group hashes"));
        }
        Ok(Self(groups.to_vec()))
    }
}

/// Checks that `data` is the range `covered` of the shard with this root.
///
/// # Errors
/// When the range, a length or the hash is wrong.
pub fn verify(
    root: &ShardHash,
    shard_bytes: usize,
    covered: &Range<usize>,
    data: &[u8],
    proof: &[u8],
) -> Result<(), ProofError> {
    if !is_covered(shard_bytes, covered) {
        return Err(ProofError::Range { start: covered.start, end: covered.end, shard_bytes });
    }
    if data.len() != covered.len() {
        return Err(ProofError::DataLength { expected: covered.len(), got: data.len() });
    }
    let expected = proof_bytes(shard_bytes, covered);
    if proof.len() != expected {
        return Err(ProofError::ProofLength { expected, got: proof.len() });
    }
    let got = if data.len() == shard_bytes {
        hash(data)
    } else {
        let mut walk = Walk { covered, data, proof: proof.as_chunks().0.iter() };
        let left = GROUP_BYTES * left_groups(group_count(shard_bytes));
        // Order matters: the proof is in pre-order.
        let left_value = walk.value(0..left);
        let right_value = walk.value(left..shard_bytes);
        root_of(&left_value, &right_value)
    };
    if got == *root { Ok(()) } else { Err(ProofError::Root { expected: *root, got }) }
}

/// How long the proof of a range is.
pub fn proof_bytes(shard_bytes: usize, covered: &Range<usize>) -> usize {
    fn subtrees(groups: Range<usize>, wanted: &Range<usize>) -> usize {
        match relation(&groups, wanted) {
            Relation::Apart => 1,
            Relation::Inside => 0,
            Relation::Across => {
                let middle = groups.start + left_groups(groups.len());
                subtrees(groups.start..middle, wanted) + subtrees(middle..groups.end, wanted)
            }
        }
    }
    let wanted = covered.start / GROUP_BYTES..covered.end.div_ceil(GROUP_BYTES);
    if covered.len() == shard_bytes {
        return 0;
    }
    ID_BYTES * subtrees(0..group_count(shard_bytes), &wanted)
}

enum Relation {
    Apart,
    Inside,
    Across,
}

/// How a subtree of groups lies to the wanted groups.
fn relation(groups: &Range<usize>, wanted: &Range<usize>) -> Relation {
    if groups.end <= wanted.start || wanted.end <= groups.start {
        Relation::Apart
    } else if wanted.start <= groups.start && groups.end <= wanted.end {
        Relation::Inside
    } else {
        Relation::Across
    }
}

/// How many of a subtree's groups are its left child's: the largest power of two below.
fn left_groups(groups: usize) -> usize {
    groups.div_ceil(2).next_power_of_two()
}

fn subtree(offset: usize, bytes: &[u8]) -> [u8; ID_BYTES] {
    Hasher::new().set_input_offset(offset as u64).update(bytes).finalize_non_root()
}

fn root_of(left: &[u8; ID_BYTES], right: &[u8; ID_BYTES]) -> ShardHash {
    ShardHash::new(*hazmat::merge_subtrees_root(left, right, Mode::Hash).as_bytes())
}

/// The chaining value of a subtree that is not the root.
fn value(groups: &[[u8; ID_BYTES]]) -> [u8; ID_BYTES] {
    match groups {
        [one] => *one,
        _ => {
            let (left, right) = groups.split_at(left_groups(groups.len()));
            hazmat::merge_subtrees_non_root(&value(left), &value(right), Mode::Hash)
        }
    }
}

fn prove_subtree(
    groups: &[[u8; ID_BYTES]],
    first: usize,
    wanted: &Range<usize>,
    proof: &mut Vec<u8>,
) {
    match relation(&(first..first + groups.len()), wanted) {
        Relation::Apart => proof.extend_from_slice(&value(groups)),
        Relation::Inside => {}
        Relation::Across => {
            let (left, right) = groups.split_at(left_groups(groups.len()));
            prove_subtree(left, first, wanted, proof);
            prove_subtree(right, first + left.len(), wanted, proof);
        }
    }
}

/// Goes over the tree as the prover did, taking values from the proof and hashing the data.
struct Walk<'a> {
    covered: &'a Range<usize>,
    data: &'a [u8],
    proof: core::slice::Iter<'a, [u8; ID_BYTES]>,
}

impl Walk<'_> {
    fn value(&mut self, bytes: Range<usize>) -> [u8; ID_BYTES] {
        match relation(&bytes, self.covered) {
            // The length of the proof was checked, so there is a value for each such subtree.
            Relation::Apart => self.proof.next().copied().unwrap_or_default(),
            Relation::Inside => {
                let place = bytes.start - self.covered.start..bytes.end - self.covered.start;
                subtree(bytes.start, &self.data[place])
            }
            Relation::Across => {
                let left = GROUP_BYTES * left_groups(group_count(bytes.len()));
                let middle = bytes.start + left;
                let (left, right) =
                    (self.value(bytes.start..middle), self.value(middle..bytes.end));
                hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::noise;

    #[test]
    fn the_root_is_the_plain_hash() {
        for groups in 0..20 {
            for bytes in (groups * GROUP_BYTES).saturating_sub(1)..=groups * GROUP_BYTES + 1 {
                let shard = noise(bytes, 1);
                let hashes = GroupHashes::of(&shard);
                assert_eq!(hashes.len(), group_count(bytes));
                assert_eq!(hashes.root(bytes), hash(&shard), "{bytes} bytes");
                let read = GroupHashes::from_bytes(bytes, &hashes.to_bytes());
                assert_eq!(read, Ok(hashes));
            }
        }
    }

    #[test]
    fn every_range_of_groups_can_be_proved() {
        let bytes = 12 * ((64 << 10) + 16);
        let shard = noise(bytes, 2);
        let hashes = GroupHashes::of(&shard);
        let root = hashes.root(bytes);
        for start in (0..bytes).step_by(GROUP_BYTES) {
            for end in (start + 1..=bytes + GROUP_BYTES).step_by(GROUP_BYTES) {
                let range = covered(bytes, start..end);
                let proof = hashes.prove(bytes, &range);
                assert_eq!(proof.len(), proof_bytes(bytes, &range));
                verify(&root, bytes, &range, &shard[range.clone()], &proof).expect("true");
            }
        }
        assert!(hashes.prove(bytes, &(0..bytes)).is_empty());
    }

    #[test]
    fn every_flipped_byte_is_caught() {
        let bytes = 5 * GROUP_BYTES + 100;
        let shard = noise(bytes, 3);
        let hashes = GroupHashes::of(&shard);
        let root = hashes.root(bytes);
        let range = covered(bytes, 2 * GROUP_BYTES..2 * GROUP_BYTES + 1);
        let mut data = shard[range.clone()].to_vec();
        let mut proof = hashes.prove(bytes, &range);
        for at in 0..data.len() {
            data[at] ^= 0x40;
            let result = verify(&root, bytes, &range, &data, &proof);
            assert!(matches!(result, Err(ProofError::Root { .. })), "data byte {at}");
            data[at] ^= 0x40;
        }
        for at in 0..proof.len() {
            proof[at] ^= 0x40;
            let result = verify(&root, bytes, &range, &data, &proof);
            assert!(matches!(result, Err(ProofError::Root { .. })), "proof byte {at}");
            proof[at] ^= 0x40;
        }
        let short = verify(&root, bytes, &range, &data, &proof[32..]);
        assert!(matches!(short, Err(ProofError::ProofLength { .. })));
        let other = covered(bytes, 0..1);
        assert!(verify(&root, bytes, &other, &data, &proof).is_err(), "another range's proof");
        let odd = verify(&root, bytes, &(1..GROUP_BYTES), &data, &proof);
        assert!(matches!(odd, Err(ProofError::Range { .. })));
    }

    #[test]
    fn a_range_is_widened_to_groups() {
        let bytes = 3 * GROUP_BYTES + 5;
        let group = |from: usize, to: usize| from * GROUP_BYTES..(to * GROUP_BYTES).min(bytes);
        for (want, expected) in [
            (0..1, group(0, 1)),
            (GROUP_BYTES - 1..GROUP_BYTES + 1, group(0, 2)),
            (GROUP_BYTES..2 * GROUP_BYTES, group(1, 2)),
            (bytes - 1..usize::MAX, group(3, 4)),
            (7..7, group(0, 1)),
            (usize::MAX..usize::MAX, group(3, 4)),
            (0..bytes, 0..bytes),
        ] {
            assert_eq!(covered(bytes, want.clone()), expected, "{want:?}");
        }
        assert_eq!(covered(0, 0..0), 0..0);
        assert_eq!(covered(10, 3..4), 0..10);
    }

    #[test]
    fn golden_bytes_of_a_root_and_a_proof() {
        let shard: Vec<u8> = (0..=255).cycle().take(3 * GROUP_BYTES + 1).collect();
        let hashes = GroupHashes::of(&shard);
        assert_eq!(
            hashes.root(shard.len()).to_string(),
            "5e0f4f9cb2007a5ba96f9bb962b376c9bf84778660eb9defb4a25b59a74943f8"
        );
        let proof = hashes.prove(shard.len(), &covered(shard.len(), 40_000..40_001));
        assert_eq!(
            HEXLOWER.encode(&proof),
            "4c3126076fbd1fbb6b09885b36119a32cc5446b05ac37302a0bf171c4869ff43e69e8a5ab50f\
             9f8c23ba967227463ec0f7b1d907173463a9e2d562c698eef150"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_proof_or_refused(
            shard_bytes in 0..200_000usize,
            range: (u32, u32),
            data in prop::collection::vec(any::<u8>(), 0..300),
            proof in prop::collection::vec(any::<u8>(), 0..300),
            widen: bool,
        ) {
            let root = hash(b"another shard");
            let mut range = range.0 as usize % 250_000..range.1 as usize % 250_000;
            if widen {
                range = covered(shard_bytes, range);
            }
            prop_assert!(verify(&root, shard_bytes, &range, &data, &proof).is_err());
            let mut fitting = data;
            fitting.resize(range.len(), 1);
            prop_assert!(verify(&root, shard_bytes, &range, &fitting, &proof).is_err());
            let _ = GroupHashes::from_bytes(shard_bytes, &proof);
        }
    }
}
