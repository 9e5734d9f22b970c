//! Missing shards of a chunk, made of any k others without a key.
//!
//! Owns the check of what was made. The one idea: the given shards are proved, so one that was made of
//! them and is not the descriptor's says that whoever made the chunk made it wrong; it is never given out,
//! for storing it would help nobody.

use crate::{
    descriptor::{Descriptor, ShardError},
    erasure::{Codec, ReconstructError},
    ids::ShardIndex,
};

/// Why shards were not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError {
    /// What is given is not k shards of the chunk.
    #[error(transparent)]
    Given(#[from] ReconstructError),
    /// The shards do not fit each other.
    #[error(
        "the chunk was made wrongly by whoever stored it: its shards do not fit each other, so no more of \
         them can be made"
    )]
    Inconsistent(#[source] Box<ShardError>),
}

/// Makes the wanted shards, in the order asked for, each as the descriptor names it. Replicas are given out
/// without a copy. The given shards are whole, and were checked against the descriptor.
///
/// # Errors
/// When they are fewer than k, or whoever made the chunk made it wrong.
pub fn rebuild<S>(
    descriptor: &Descriptor,
    have: &[(ShardIndex, S)],
    want: &[ShardIndex],
) -> Result<Vec<S>, RebuildError>
where
    S: AsRef<[u8]> + Clone + From<Vec<u8>>,
{
    let geometry = descriptor.geometry();
    let made: Vec<S> = match have {
        [(_, replica), ..] if geometry.data() == 1 => vec![replica.clone(); want.len()],
        _ => {
            let have: Vec<(ShardIndex, &[u8])> =
                have.iter().map(|(index, shard)| (*index, shard.as_ref())).collect();
            let made = Codec::new(geometry).reconstruct(&have, want)?;
            made.into_iter().map(S::from).collect()
        }
    };
    for (index, shard) in want.iter().zip(&made) {
        let checked = descriptor.check_shard(*index, shard.as_ref());
        checked.map_err(|error| RebuildError::Inconsistent(Box::new(error)))?;
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        geometry::Geometry,
        shard_tree,
        testing::{geometry, noise},
    };

    fn descriptor(code: Geometry, shards: &[Vec<u8>]) -> Descriptor {
        let hashes = shards.iter().map(|shard| shard_tree::hash(shard)).collect();
        Descriptor::new(code, shards[0].len(), hashes).expect("a descriptor")
    }

    #[test]
    fn shards_that_do_not_fit_each_other_are_not_multiplied() {
        let code = geometry("2+1");
        let data = noise(200, 1);
        let mut parity = vec![0; 100];
        Codec::new(code).encode(&data, &mut parity, 100);
        let shards = [data[..100].to_vec(), data[100..].to_vec(), parity];
        let have = [0, 1].map(|at| (ShardIndex(at), shards[usize::from(at)].clone()));
        let third = [ShardIndex(2)];
        assert_eq!(rebuild(&descriptor(code, &shards), &have, &third), Ok(vec![shards[2].clone()]));

        let wrong = [shards[0].clone(), shards[1].clone(), vec![7; 100]];
        let error = rebuild(&descriptor(code, &wrong), &have, &third).expect_err("made wrongly");
        assert!(matches!(error, RebuildError::Inconsistent(_)), "{error}");
        let error =
            rebuild(&descriptor(code, &shards), &have[1..], &third).expect_err("one of two");
        assert!(matches!(error, RebuildError::Given(ReconstructError::TooFew { .. })), "{error}");
    }

    #[test]
    fn replicas_are_checked_too() {
        let code = geometry("1+2");
        let replica = noise(100, 2);
        let all = [replica.clone(), replica.clone(), replica.clone()];
        let (have, want) = ([(ShardIndex(1), replica.clone())], [ShardIndex(0), ShardIndex(2)]);
        assert_eq!(rebuild(&descriptor(code, &all), &have, &want), Ok(all[..2].to_vec()));
        let wrong = [replica.clone(), replica, vec![7; 100]];
        let error = rebuild(&descriptor(code, &wrong), &have, &want).expect_err("made wrongly");
        assert!(matches!(error, RebuildError::Inconsistent(_)), "{error}");
        let none: [(ShardIndex, Vec<u8>); 0] = [];
        assert!(rebuild(&descriptor(code, &all), &none, &want).is_err());
    }
}
