//! Marks of broken-off puts, held against what others hold: one that is not true goes.
//!
//! Owns when a mark is looked at, and whom to ask. The one idea: a mark says that too few shards of a chunk
//! exist and that nobody was told otherwise. As soon as enough are seen, it could one day hide a loss: a
//! client that could not reach this node any more completed the chunk all the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use copse_core::{
    ids::{ChunkId, NodeId, ShardIndex},
    repair::{Nodes as _, Standing},
    ring::{HELD_WITHIN_PER_SHARD, Ring},
};
use futures::{StreamExt as _, stream};

use super::{facts::View, shared::Shared};
use crate::unsettled::Look;

/// New marks looked at in a round, at most, and others: with one question each of all nodes they may be a few
/// hundred questions.
const NEW_MAX: usize = 64;
const OTHERS_MAX: usize = 4;

/// How far along the walk the shards of new marks are looked for, in nodes for each shard: as far as clients
/// put them when few nodes are full. Those of the others as far as they may be held.
const ASKED_PER_SHARD: usize = 2;

/// Nodes asked at one time, and how long each is waited for.
const ASKED_AT_ONCE: usize = 8;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Looks at the marks of this node.
pub(super) struct Marks(pub(super) Arc<Shared>);

impl Marks {
    /// Looks at some of them; how many went.
    pub(super) async fn round(&self, view: &View) -> usize {
        let Self(shared) = self;
        shared.unsettled.forget_old();
        let (mut gone, mut found) = (Vec::new(), BTreeMap::new());
        for look in shared.unsettled.to_look_at(NEW_MAX, OTHERS_MAX) {
            match shared.store.held(look.chunk).await {
                Ok(held) if held.is_empty() => gone.push(look.chunk),
                Ok(held) => {
                    let indices = held.into_iter().collect();
                    found.insert(look.chunk, Found { look, indices, is_silent: false });
                }
                // It is looked at another time.
                Err(_) => {}
            }
        }
        let asked = stream::iter(self.whom_to_ask(view, &found)).map(async |(node, chunks)| {
            let answer = shared.exchange.holdings(node, &chunks);
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
            (chunks, answer.ok().and_then(Result::ok))
        });
        let mut asked = asked.buffer_unordered(ASKED_AT_ONCE);
        while let Some((chunks, answer)) = asked.next().await {
            for (at, chunk) in chunks.iter().enumerate() {
                let Some(found) = found.get_mut(chunk) else { continue };
                match answer.as_ref().and_then(|answer| answer.get(at)) {
                    Some(holding) => found.indices.extend(&holding.indices),
                    None => found.is_silent = true,
                }
            }
        }
        let answered = found.iter().filter(|(_, found)| !found.is_silent);
        shared.unsettled.looked_at(answered.map(|(chunk, _)| *chunk));
        gone.extend(found.iter().filter(|(_, found)| found.is_enough()).map(|(chunk, _)| *chunk));
        let count = gone.len();
        if let Err(error) = shared.unsettled.unmark(gone).await {
            tracing::warn!(%error, "marks of broken-off puts cannot be taken away");
            return 0;
        }
        count
    }

    fn whom_to_ask(
        &self,
        view: &View,
        found: &BTreeMap<ChunkId, Found>,
    ) -> BTreeMap<NodeId, Vec<ChunkId>> {
        let nodes = self.0.opinions.with(view);
        let answers = |node: &NodeId| {
            let facts = nodes.facts(node);
            facts.trusted && matches!(facts.standing, Standing::Alive | Standing::Leaving)
        };
        let mut asked = BTreeMap::<NodeId, Vec<ChunkId>>::new();
        for (chunk, found) in found.iter().filter(|(_, found)| !found.is_enough()) {
            let Look { geometry, is_new, .. } = found.look;
            let per_shard = if is_new { ASKED_PER_SHARD } else { HELD_WITHIN_PER_SHARD };
            let around = view.ring.around(Ring::arc(chunk), geometry, per_shard);
            for node in around.filter(|node| *node != self.0.own && answers(node)) {
                asked.entry(node).or_default().push(*chunk);
            }
        }
        asked
    }
}

/// What was seen of a chunk.
struct Found {
    look: Look,
    indices: BTreeSet<ShardIndex>,
    /// Somebody did not answer.
    is_silent: bool,
}

impl Found {
    /// Whether it can be read: then whoever put it may have been told that it is stored.
    fn is_enough(&self) -> bool {
        let (total, needed) = (self.look.geometry.total(), self.look.geometry.data());
        self.indices.iter().filter(|index| index.as_usize() < total).count() >= needed
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            facts::{Looks as _, Views},
            testing::{Seen, member, of_three, replica, shared},
        },
        *,
    };
    use crate::{
        store::{MemoryStore, RemovalReason, ShardStore, VerifiedShard},
        unsettled::Coming,
    };

    #[tokio::test]
    async fn a_mark_goes_with_its_shards_and_when_enough_of_them_exist() {
        let own = NodeId::new([1; 32]);
        let seen = Seen::new(vec![member(own, "")]);
        let store: Arc<dyn ShardStore> = Arc::new(MemoryStore::new(1 << 20));
        let ledger = store.ledger();
        let shared = Arc::new(shared(own, store, ledger, Arc::clone(&seen) as Views));
        let marks = Marks(Arc::clone(&shared));
        let mark = async |shard: VerifiedShard, held: bool| {
            let (id, geometry) = (shard.id(), shard.geometry());
            let stored = shared.store.put(shard).await.expect("a put");
            let moved = shared.unsettled.moved(id, geometry, Coming::Abandoned, stored);
            moved.await.expect("a ledger");
            if !held {
                let removed = shared.store.remove(id, RemovalReason::HandedOver).await;
                removed.expect("a store");
            }
            id.chunk
        };
        let enough = mark(replica(1, 0), true).await;
        let thin = mark(of_three(2, 0), true).await;
        let gone = mark(of_three(3, 0), false).await;
        assert_eq!(marks.round(&seen.now()).await, 2);
        let is_marked = [enough, thin, gone].map(|chunk| shared.unsettled.waits(&chunk));
        assert_eq!(is_marked, [false, true, false]);
        shared.store.put(of_three(2, 2)).await.expect("a put");
        assert_eq!(marks.round(&seen.now()).await, 1);
        assert!(!shared.unsettled.waits(&thin));
    }

    #[tokio::test]
    async fn a_mark_stays_new_until_all_who_are_asked_have_answered() {
        let (own, other) = (NodeId::new([1; 32]), NodeId::new([2; 32]));
        let store: Arc<dyn ShardStore> = Arc::new(MemoryStore::new(1 << 20));
        let (ledger, alone) = (store.ledger(), Seen::new(vec![member(own, "")]));
        let shared = Arc::new(shared(own, store, ledger, Arc::clone(&alone) as Views));
        let shard = of_three(1, 0);
        let (id, geometry) = (shard.id(), shard.geometry());
        let stored = shared.store.put(shard).await.expect("a put");
        let moved = shared.unsettled.moved(id, geometry, Coming::Abandoned, stored);
        moved.await.expect("a ledger");
        let is_new = || shared.unsettled.to_look_at(1, 1).pop().is_some_and(|look| look.is_new);
        let marks = Marks(Arc::clone(&shared));
        // Nobody goes the way to the other one.
        let two = Seen::new(vec![member(own, ""), member(other, "")]);
        marks.round(&two.now()).await;
        shared.unsettled.to_look_at(1, 1);
        assert!(is_new());
        shared.unsettled.to_look_at(1, 1);
        marks.round(&alone.now()).await;
        assert!(!is_new());
    }
}
