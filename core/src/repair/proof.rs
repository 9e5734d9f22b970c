//! What is read back before a job counts as done.
//!
//! Owns the choice of the range. The one idea: whoever cannot foresee which group is asked for has
//! to keep them all.

use core::ops::Range;

use crate::{limits::GROUP_BYTES, random::Random};

/// One whole group of the shard's hash tree, all equally likely, in bytes of the shard; the last
/// one may be short. Empty only for a shard of no bytes.
pub fn proof_range(shard_bytes: u64, random: &mut Random) -> Range<u64> {
    let group_bytes = GROUP_BYTES as u64;
    let groups = usize::try_from(shard_bytes.div_ceil(group_bytes)).unwrap_or(usize::MAX);
    let start = random.below(groups) as u64 * group_bytes;
    start..shard_bytes.min(start.saturating_add(group_bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::shard_tree;

    #[test]
    fn every_group_of_a_shard_is_asked_for_some_time_and_nothing_else() {
        let mut random = Random::new(&[1; 32], "proof");
        for shard_bytes in [1, 1040, 16_384, 16_385, 100_000] {
            let groups = shard_tree::group_count(shard_bytes);
            let mut asked = BTreeSet::new();
            for _ in 0..200 {
                let range = proof_range(shard_bytes as u64, &mut random);
                let small = |at: u64| usize::try_from(at).expect("within a shard");
                let range = small(range.start)..small(range.end);
                assert_eq!(shard_tree::covered(shard_bytes, range.clone()), range);
                asked.insert(range.start / GROUP_BYTES);
            }
            assert_eq!(asked.len(), groups, "{shard_bytes} bytes");
        }
        assert_eq!(proof_range(0, &mut random), 0..0);
        assert!(proof_range(u64::MAX, &mut random).start < u64::MAX);
    }
}
