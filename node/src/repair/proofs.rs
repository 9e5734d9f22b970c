//! Proofs that do not come: a node that answers pings and gives no byte of what it holds.
//!
//! Owns whose holdings do not count for that, until it proves one again. No fault, and no lie: its disk
//! is dead or hangs, and it may not know. The one idea: it counts only while others do prove theirs, or
//! it is our own network that is slow; and never for more than a quarter of all, for the same reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_core::ids::NodeId;
use tokio::time::Instant;

use crate::store::PATIENCE;

/// Audits in a row that fail, at least.
const FAILURES: u32 = 6;

/// Nodes of which failures are remembered, at most.
const NODES_MAX: usize = 4096;

/// Of all nodes one in so many may count as dumb, and one in any case.
const SHARE: usize = 4;

/// Who proves nothing. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Proofs(Arc<Mutex<State>>);

struct State {
    /// How long a node must prove nothing.
    patience: Duration,
    failing: BTreeMap<NodeId, Failing>,
    /// What any node proved.
    given: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { patience: PATIENCE, failing: BTreeMap::new(), given: 0 }
    }
}

struct Failing {
    since: Instant,
    /// With proofs of others between them.
    times: u32,
    /// [`State::given`] at the last of them.
    given: u64,
}

impl Proofs {
    /// Who must prove nothing for so long.
    pub(super) fn with(patience: Duration) -> Self {
        Self(Arc::new(Mutex::new(State { patience, ..State::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node gave bytes of a shard.
    pub(super) fn given(&self, node: NodeId) {
        let mut state = self.lock();
        state.given += 1;
        state.failing.remove(&node);
    }

    /// A node was asked for a proof, and its disk failed or nothing came.
    pub(super) fn failed(&self, node: NodeId) {
        let mut state = self.lock();
        let given = state.given;
        if let Some(failing) = state.failing.get_mut(&node) {
            if failing.given != given {
                (failing.times, failing.given) = (failing.times.saturating_add(1), given);
            }
        } else if state.failing.len() < NODES_MAX {
            state.failing.insert(node, Failing { since: Instant::now(), times: 1, given });
        }
    }

    /// Who should be asked again soon.
    pub(super) fn suspects(&self) -> Vec<NodeId> {
        self.lock().failing.keys().copied().collect()
    }

    /// Whose holdings do not count, of so many nodes.
    pub(super) fn dumb(&self, nodes: usize) -> BTreeSet<NodeId> {
        let state = self.lock();
        let dumb: BTreeSet<NodeId> = state
            .failing
            .iter()
            .filter(|(_, it)| it.times >= FAILURES && it.since.elapsed() >= state.patience)
            .map(|(&node, _)| node)
            .collect();
        if dumb.len() <= (nodes / SHARE).max(1) { dumb } else { BTreeSet::new() }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    /// An hour in which these nodes prove nothing, and others do, or not.
    async fn an_hour(proofs: &Proofs, failing: &[u8], others: bool) {
        for _ in 0..=60 {
            failing.iter().for_each(|&number| proofs.failed(node(number)));
            if others {
                proofs.given(node(99));
            }
            advance(Duration::from_secs(60)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_proves_nothing_for_an_hour_does_not_count_until_it_does() {
        let proofs = Proofs::default();
        proofs.failed(node(1));
        advance(PATIENCE).await;
        assert_eq!(proofs.dumb(16), BTreeSet::new(), "once is nothing");
        an_hour(&proofs, &[1], true).await;
        assert_eq!(proofs.dumb(16), [node(1)].into());
        proofs.given(node(1));
        assert_eq!(proofs.dumb(16), BTreeSet::new());
        assert_eq!(proofs.suspects(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn when_nobody_or_only_half_of_all_proves_anything_it_is_not_the_nodes() {
        let proofs = Proofs::default();
        an_hour(&proofs, &[1, 2], false).await;
        assert_eq!(proofs.dumb(16), BTreeSet::new(), "nobody proves anything");
        let proofs = Proofs::default();
        an_hour(&proofs, &[1, 2, 3, 4, 5], true).await;
        assert_eq!(proofs.dumb(16), BTreeSet::new(), "more than a quarter");
        assert_eq!(proofs.dumb(20).len(), 5);
    }
}
