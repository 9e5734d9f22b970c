//! Chunks that are looked for: too few of those who should have a shard of them gave one.
//!
//! Owns the list of such reads while they go on, so that whoever waits can be told what for.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use copse_core::ids::ChunkId;
use tokio::time::Instant;

use crate::lock::lock;

/// A chunk that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    /// Which.
    pub chunk: ChunkId,
    /// Different shards of it, or the wanted ranges of them, that are here.
    pub have: usize,
    /// Of so many that are needed.
    pub need: usize,
    /// Nodes that were asked, for a shard or what they hold, and have not answered yet.
    pub unanswered: usize,
    /// Since when those who are known to have shards do not suffice.
    pub since: Instant,
}

/// The reads of one reader that look for a chunk, by the order in which they began to.
#[derive(Default)]
pub(super) struct Searches(Mutex<BTreeMap<u64, Search>>);

impl Searches {
    /// The one that has gone on for the longest time.
    pub(super) fn oldest(&self) -> Option<Search> {
        lock(&self.0).values().next().copied()
    }

    /// A read begins to look.
    pub(super) fn begin(self: &Arc<Self>, chunk: ChunkId, need: usize) -> Searching {
        let mut searches = lock(&self.0);
        let number = searches.last_key_value().map_or(0, |(last, _)| last + 1);
        searches
            .insert(number, Search { chunk, have: 0, need, unanswered: 0, since: Instant::now() });
        Searching { all: Arc::clone(self), number }
    }
}

/// A read that looks for a chunk; it does no more when this is dropped.
pub(super) struct Searching {
    all: Arc<Searches>,
    number: u64,
}

impl Searching {
    /// So much is here, and so many have not answered.
    pub(super) fn goes_on(&self, have: usize, unanswered: usize) {
        if let Some(search) = lock(&self.all.0).get_mut(&self.number) {
            (search.have, search.unanswered) = (have, unanswered);
        }
    }
}

impl Drop for Searching {
    fn drop(&mut self) {
        lock(&self.all.0).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_goes_on_for_longest_is_told_until_it_ends() {
        let searches = Arc::new(Searches::default());
        let told = || searches.oldest().map(|search| (search.chunk, search.have, search.need));
        assert_eq!(told(), None);
        let [first, second] = [1, 2].map(|byte| ChunkId::new([byte; 32]));
        let older = searches.begin(first, 10);
        let younger = searches.begin(second, 4);
        older.goes_on(9, 2);
        assert_eq!(told(), Some((first, 9, 10)));
        drop(older);
        younger.goes_on(1, 0);
        let third = searches.begin(first, 10);
        assert_eq!(told(), Some((second, 1, 4)));
        drop((younger, third));
        assert_eq!(told(), None);
    }
}
