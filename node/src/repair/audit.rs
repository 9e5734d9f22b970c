//! Checking what others claim: now and then, a random group of a random shard must be proved.
//!
//! Owns whom to check and how often. The one idea: a node that holds nothing of what it claims is
//! found by its first few audits, one that lost a hundredth of it within some hundred; those under
//! suspicion are checked more.

use std::sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed};

use copse_core::{ids::NodeId, random::Random};
use copse_proto::status::Reason;

use super::{
    claims::{Claims, blocking},
    exchange::Exchange,
    facts::View,
    report::{Counters, count},
    trust::Trust,
};

/// Nodes that are checked in a round.
const NODES_A_ROUND: usize = 4;

/// Shards that a node under suspicion has to prove in a round.
const PROOFS_OF_SUSPECT: usize = 8;

/// The auditor.
pub(super) struct Audit {
    pub(super) own: NodeId,
    pub(super) claims: Arc<Claims>,
    pub(super) exchange: Exchange,
    pub(super) trust: Trust,
    pub(super) counters: Arc<Counters>,
    pub(super) random: Mutex<Random>,
}

impl Audit {
    /// Checks some nodes.
    pub(super) async fn round(&self, view: &View) {
        let others: Vec<NodeId> = view
            .standings
            .iter()
            .filter(|(node, standing)| **node != self.own && standing.is_reachable())
            .map(|(&node, _)| node)
            .collect();
        let suspects: Vec<NodeId> =
            self.trust.suspects().into_iter().filter(|node| others.contains(node)).collect();
        let some = self.lock(|random| random.choose(others, NODES_A_ROUND));
        for node in some {
            self.check(node).await;
        }
        for node in suspects {
            for _ in 0..PROOFS_OF_SUSPECT {
                self.check(node).await;
            }
        }
    }

    fn lock<T>(&self, choose: impl FnOnce(&mut Random) -> T) -> T {
        choose(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn check(&self, node: NodeId) {
        let claims = Arc::clone(&self.claims);
        let (arc, shard) = self.lock(|random| (random.next_u64(), random.next_u64()));
        // Any large number will do.
        let number = |number: u64| usize::try_from(number >> 33).unwrap_or(0);
        let picked = blocking(move || claims.pick(node, number(arc), number(shard))).await;
        let Ok(Some(shard)) = picked else { return };
        count(&self.counters.audits, 1);
        if let Err(refusal) = self.exchange.audit(node, &shard).await {
            if refusal.reason() == Reason::BadReply {
                self.counters.audits_failed.fetch_add(1, Relaxed);
            }
            tracing::debug!(node = %node.short(), shard = %shard.id, %refusal, "audit not passed");
        }
    }
}
