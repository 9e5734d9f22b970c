//! Marks of broken-off puts, held against what others hold: one that is not true goes.
//!
//! Owns when a mark is looked at, and whom to ask. The one idea: a mark says that too few shards of a chunk
//! exist and that nobody was told otherwise. As soon as enough are seen, it could one day hide a loss: a
//! client that could not reach this node any more completed the chunk all the same.

use std::{collections::BTreeSet, sync::Arc};

use copse_core::{
    ids::{NodeId, ShardIndex},
    repair::{Nodes as _, Standing},
    ring::{CANDIDATES_PER_SHARD, HELD_WITHIN_PER_SHARD, Ring},
};
use tokio::time::Instant;

use super::{
    around::{Answers, Questions, ROUND_TIME_MAX, are_enough},
    facts::{Facts, View},
    shared::Shared,
};
use crate::unsettled::Look;

/// New marks looked at in a round, at most, and others: with one question each of all nodes they may be a few
/// hundred questions.
const NEW_MAX: usize = 64;
const OTHERS_MAX: usize = 4;

/// Looks at the marks of this node.
pub(super) struct Marks(pub(super) Arc<Shared>);

impl Marks {
    /// Looks at some of them; how many went.
    pub(super) async fn round(&self, view: &View) -> usize {
        let Self(shared) = self;
        shared.unsettled.forget_old();
        let nodes = shared.opinions.with(view);
        let (mut gone, mut found) = (Vec::new(), Vec::new());
        for look in shared.unsettled.to_look_at(NEW_MAX, OTHERS_MAX) {
            match shared.store.held(look.chunk).await {
                Ok(held) if held.is_empty() => gone.push(look.chunk),
                Ok(held) => {
                    found.push(Found { look, asked: self.whom_to_ask(view, &nodes, &look), held });
                }
                // It is looked at another time.
                Err(_) => {}
            }
        }
        let (mut questions, mut answers) = (Questions::new(), Answers::default());
        for found in found.iter().filter(|found| !found.is_enough(&answers)) {
            for node in &found.asked {
                questions.entry(*node).or_default().push(found.look.chunk);
            }
        }
        answers.ask(shared, questions, Instant::now() + ROUND_TIME_MAX).await;
        let (enough, too_few): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|found| found.is_enough(&answers));
        let answered = too_few.iter().filter(|found| found.have_all_answered(&answers));
        shared.unsettled.looked_at(answered.map(|found| found.look.chunk));
        gone.extend(enough.iter().map(|found| found.look.chunk));
        let count = gone.len();
        if let Err(error) = shared.unsettled.unmark(gone).await {
            tracing::warn!(%error, "marks of broken-off puts cannot be taken away");
            return 0;
        }
        count
    }

    /// Those who may hold others of its shards and answer. Of a new mark those with whom clients put them
    /// when few nodes are full; of the others all.
    fn whom_to_ask(&self, view: &View, nodes: &Facts, look: &Look) -> BTreeSet<NodeId> {
        let answers = |node: &NodeId| {
            let facts = nodes.facts(node);
            facts.trusted && matches!(facts.standing, Standing::Alive | Standing::Leaving)
        };
        let per_shard = if look.is_new { CANDIDATES_PER_SHARD } else { HELD_WITHIN_PER_SHARD };
        let around = view.ring.around(Ring::arc(&look.chunk), look.geometry, per_shard);
        around.filter(|node| *node != self.0.own && answers(node)).collect()
    }
}

/// A mark that is looked at.
struct Found {
    look: Look,
    /// What is held here.
    held: Vec<ShardIndex>,
    /// Who is asked what they hold.
    asked: BTreeSet<NodeId>,
}

impl Found {
    /// Whether it can be read: then whoever put it may have been told that it is stored.
    fn is_enough(&self, answers: &Answers) -> bool {
        let Look { chunk, geometry, .. } = self.look;
        let indices = self.held.iter().copied().chain(answers.indices(chunk));
        are_enough(indices, geometry, geometry.data())
    }

    fn have_all_answered(&self, answers: &Answers) -> bool {
        self.asked.iter().all(|node| answers.said.contains_key(&(self.look.chunk, *node)))
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
