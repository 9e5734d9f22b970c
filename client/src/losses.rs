//! How many owners of shards may be lost before a chunk cannot be read.
//!
//! Owns the sum, as plain values; an owner is a node or a zone. Asks nobody. The one idea: what `put` and
//! `check` say of the same shards is the same number.

use std::collections::BTreeMap;

/// How many owners may be lost, the largest first, before fewer than `need` shards are left; none when fewer
/// are there now. `shards` has the owners of each shard that is there.
///
/// Where several own the same shard, it counts for the one with the fewest: the truth is never worse.
pub(crate) fn borne<O: Ord + Copy>(
    shards: impl IntoIterator<Item = Vec<O>>,
    need: usize,
) -> Option<usize> {
    let owned = shards.into_iter().filter(|owners| !owners.is_empty());
    // Those with one owner have no choice and come first.
    let (single, shared): (Vec<_>, Vec<_>) = owned.partition(|owners| owners.len() == 1);
    let mut left = (single.len() + shared.len()).checked_sub(need)?;
    let mut shares: BTreeMap<O, usize> = BTreeMap::new();
    for owners in single.into_iter().chain(shared) {
        let count = |owner: O| shares.get(&owner).copied().unwrap_or(0);
        if let Some(least) = owners.into_iter().min_by_key(|owner| (count(*owner), *owner)) {
            *shares.entry(least).or_default() += 1;
        }
    }
    let mut shares: Vec<usize> = shares.into_values().collect();
    shares.sort_unstable_by(|a, b| b.cmp(a));
    let bearable = shares.into_iter().take_while(|share| match left.checked_sub(*share) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    });
    Some(bearable.count())
}
