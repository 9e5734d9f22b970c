//! Asking all nodes what changed, in bounded time: one that is slow, or lies, keeps nobody from planning.
//!
//! Owns the order and the deadlines; what is asked, the caller says. The one idea: who was slow the last
//! time is asked last, and of the others who waited longest first, so that everybody has a turn.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_core::ids::NodeId;
use futures::{StreamExt as _, stream};

/// Nodes asked at one time.
const AT_ONCE: usize = 8;

/// How long one node is asked in a round. It is enough for the longest answer over the slowest link that
/// is still of use (1 MiB at 64 KiB/s); what was listed by then is kept.
const NODE_TIME_MAX: Duration = Duration::from_secs(25);

/// How long all are asked in a round.
const ROUND_TIME_MAX: Duration = Duration::from_secs(30);

/// Who was asked when.
#[derive(Default)]
pub(super) struct Asking(Mutex<State>);

#[derive(Default)]
struct State {
    round: u64,
    nodes: BTreeMap<NodeId, Last>,
}

#[derive(Clone, Copy, Default)]
struct Last {
    /// It was asked and did not finish in time.
    slow: bool,
    /// The round in which it was last asked.
    round: u64,
}

impl Asking {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks all of these, `own` first, and gives up on those that take too long.
    pub(super) async fn ask<F: Future<Output = ()>>(
        &self,
        own: NodeId,
        nodes: Vec<NodeId>,
        ask: impl Fn(NodeId) -> F,
    ) {
        let asked = stream::iter(self.in_order(own, nodes)).map(|node| {
            let asked = ask(node);
            async move {
                self.lock().begin(node);
                let slow = tokio::time::timeout(NODE_TIME_MAX, asked).await.is_err();
                self.lock().nodes.entry(node).or_default().slow = slow;
                if slow {
                    tracing::debug!(node = %node.short(), "slow to say what changed");
                }
            }
        });
        let all = asked.buffer_unordered(AT_ONCE).for_each(|()| std::future::ready(()));
        if tokio::time::timeout(ROUND_TIME_MAX, all).await.is_err() {
            tracing::debug!("not all nodes were asked what changed: they are next");
        }
    }

    fn in_order(&self, own: NodeId, mut nodes: Vec<NodeId>) -> Vec<NodeId> {
        let mut state = self.lock();
        state.round += 1;
        let known: BTreeSet<NodeId> = nodes.iter().copied().collect();
        state.nodes.retain(|node, _| known.contains(node));
        nodes.sort_by_key(|node| {
            let last = state.nodes.get(node).copied().unwrap_or_default();
            (*node != own, last.slow, last.round, *node)
        });
        nodes
    }
}

impl State {
    /// Who is cut off by the end of the round is no slower than before.
    fn begin(&mut self, node: NodeId) {
        self.nodes.entry(node).or_default().round = self.round;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::Instant;

    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    /// A round with so many nodes, of which the first `hang`; the others that were asked, in their order.
    async fn round(asking: &Asking, nodes: u8, hang: u8, takes: Duration) -> Vec<NodeId> {
        let (done, begin) = (RefCell::new(Vec::new()), Instant::now());
        asking
            .ask(node(200), (0..nodes).map(node).collect(), async |it| {
                if it < node(hang) {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(takes).await;
                done.borrow_mut().push(it);
            })
            .await;
        assert!(begin.elapsed() <= ROUND_TIME_MAX);
        done.into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_that_hang_cost_one_round_and_then_keep_nobody_waiting() {
        let asking = Asking::default();
        let short = Duration::from_millis(10);
        assert_eq!(round(&asking, 40, 8, short).await.len(), 32, "after those that hang");
        let begin = Instant::now();
        assert_eq!(round(&asking, 40, 8, short).await.len(), 32);
        assert!(begin.elapsed() < NODE_TIME_MAX + Duration::from_secs(1));
        // More than are asked in a round: all others have their turn at once all the same.
        let asking = Asking::default();
        let mut others = Vec::new();
        for _ in 0..3 {
            others = round(&asking, 40, 30, short).await;
        }
        assert_eq!(others.len(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_are_slow_everybody_has_a_turn() {
        let asking = Asking::default();
        let slow = Duration::from_secs(20);
        let mut asked: Vec<NodeId> = Vec::new();
        for _ in 0..5 {
            asked.extend(round(&asking, 40, 0, slow).await);
        }
        asked.sort_unstable();
        asked.dedup();
        assert_eq!(asked.len(), 40);
    }

    #[test]
    fn the_own_node_is_asked_first() {
        let asking = Asking::default();
        let order = asking.in_order(node(7), (0..9).map(node).collect());
        assert_eq!(order.first(), Some(&node(7)));
    }
}
