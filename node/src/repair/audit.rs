//! Checking what others claim: now and then, a random group of a random shard must be proved.
//!
//! Owns whom to check and how often. The one idea: a node that holds nothing of what it claims is
//! found by its first few audits, one that lost a hundredth of it within some hundred; those under
//! suspicion are checked more. Whose disk fails or who says nothing is told to [`super::proofs`].

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use copse_core::{ids::NodeId, random::Random};
use copse_proto::status::{Reason, Refusal};

use super::{claims::blocking, facts::View, report::count, shared::Shared};

/// Nodes that are checked in a round.
const NODES_A_ROUND: usize = 4;

/// Shards that a node under suspicion has to prove in a round.
const PROOFS_OF_SUSPECT: usize = 8;

/// Suspects that are checked in a round, at most.
const SUSPECTS_A_ROUND: usize = 16;

/// How long a proof may take. A group of 16 KiB is read and sent in far less.
const PROOF_TIME_MAX: Duration = Duration::from_secs(20);

/// The auditor.
pub(super) struct Audit {
    shared: Arc<Shared>,
    random: Mutex<Random>,
}

impl Audit {
    /// The seed decides who is checked.
    pub(super) fn new(shared: Arc<Shared>, seed: &[u8; 32]) -> Self {
        Self { shared, random: Mutex::new(Random::new(seed, "audits")) }
    }

    /// Checks some nodes.
    pub(super) async fn round(&self, view: &View) {
        let others: Vec<NodeId> = view
            .standings
            .iter()
            .filter(|(node, standing)| **node != self.shared.own && standing.is_reachable())
            .map(|(&node, _)| node)
            .collect();
        let suspects: Vec<NodeId> =
            self.shared.trust.suspects().into_iter().filter(|node| others.contains(node)).collect();
        let dumb: Vec<NodeId> = self
            .shared
            .proofs
            .suspects()
            .into_iter()
            .filter(|node| others.contains(node))
            .collect();
        let some = self.lock(|random| {
            let mut some = random.choose(others, NODES_A_ROUND);
            some.extend(random.choose(dumb, SUSPECTS_A_ROUND));
            some
        });
        let suspects = self.lock(|random| random.choose(suspects, SUSPECTS_A_ROUND));
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
        let shared = Arc::clone(&self.shared);
        let (arc, shard) = self.lock(|random| (random.next_u64(), random.next_u64()));
        // Any large number will do.
        let number = |number: u64| usize::try_from(number >> 33).unwrap_or(0);
        let picked = blocking(move || shared.claims.pick(node, number(arc), number(shard))).await;
        let Ok(Some(shard)) = picked else { return };
        count(&self.shared.counters.audits, 1);
        let audit = tokio::time::timeout(PROOF_TIME_MAX, self.shared.exchange.audit(node, &shard));
        let audited = audit.await.unwrap_or_else(|_| {
            Err(Refusal::new(Reason::TimedOut, format!("no proof within {PROOF_TIME_MAX:?}")))
        });
        if let Err(refusal) = audited {
            if matches!(refusal.reason(), Reason::StoreFailed | Reason::TimedOut) {
                self.shared.proofs.failed(node);
            }
            if refusal.reason() == Reason::BadReply {
                count(&self.shared.counters.audits_failed, 1);
            }
            tracing::debug!(node = %node.short(), shard = %shard.id, %refusal, "audit not passed");
        }
    }
}
