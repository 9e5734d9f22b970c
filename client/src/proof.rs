//! Proof that a node holds what it says it holds.
//!
//! Owns the choice of what is to be proved, the bound on proofs under way, and the random numbers
//! behind the choice. Decides nothing about whom to ask. The one idea: one group of a shard, chosen
//! so that no node can guess it, with its way up the hash tree to the chunk's id.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use copse_core::{
    ids::{NodeId, ShardIndex},
    limits::GROUP_BYTES,
    random::Random,
    shard_tree::group_count,
};
use copse_proto::status::{Reason, Refusal};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    buffers::Pool,
    get::{facts::ChunkFacts, fetch::fetch},
    lock::lock,
    network::{Network, timed_out},
};

/// Proofs under way at once, whoever asked for them: 16 KiB each, 1 MiB together, which a line of
/// 2 Mbit/s brings in 4 s. The rest waits for its turn.
pub(crate) const PROOFS_AT_ONCE: usize = 64;

/// Has nodes prove shards.
pub(crate) struct Prover {
    network: Network,
    buffers: Arc<Pool>,
    turns: Semaphore,
    // Drawn from the system at the first proof, when nobody gave a seed.
    random: Mutex<Option<Random>>,
}

impl Prover {
    /// A prover that asks the system for a seed when it first needs one.
    pub(crate) fn new(network: Network) -> Self {
        Self {
            network,
            // Groups are too small to be kept.
            buffers: Pool::new(0),
            turns: Semaphore::new(PROOFS_AT_ONCE),
            random: Mutex::default(),
        }
    }

    /// A prover whose choices are those of a seed. Nodes must not be able to guess it.
    pub(crate) fn seeded(network: Network, seed: &[u8; 32]) -> Self {
        Self { random: Mutex::new(Some(Random::new(seed, "copse check"))), ..Self::new(network) }
    }

    /// Has a node prove one random group of a shard. A node that is silent or trickles has failed after a
    /// minute at the latest: that is what reaching it, its header and a group may take.
    pub(crate) async fn prove(
        &self,
        facts: &Arc<ChunkFacts>,
        index: ShardIndex,
        node: NodeId,
    ) -> Result<(), Refusal> {
        self.prove_within(Duration::MAX, facts, index, node).await
    }

    /// The same; a node that takes longer has failed. Waiting for a turn is not its fault.
    pub(crate) async fn prove_within(
        &self,
        patience: Duration,
        facts: &Arc<ChunkFacts>,
        index: ShardIndex,
        node: NodeId,
    ) -> Result<(), Refusal> {
        let Ok(_turn) = self.turns.acquire().await else {
            unreachable!("the turns are never closed");
        };
        let group = self.group(facts.shard_bytes)?;
        let (network, buffers) = (self.network.clone(), Arc::clone(&self.buffers));
        let proof = fetch(network, Arc::clone(facts), node, index, group, buffers);
        match timeout(patience, proof).await {
            Ok(proof) => proof.map(drop),
            Err(_) => {
                self.network.holder(node).failed("it did not prove what it holds in time");
                Err(timed_out(patience))
            }
        }
    }

    /// The bytes of a random group.
    fn group(&self, shard_bytes: usize) -> Result<Range<usize>, Refusal> {
        let mut random = lock(&self.random);
        let random = match &mut *random {
            Some(random) => random,
            none => {
                let mut seed = [0; 32];
                getrandom::fill(&mut seed).map_err(|error| {
                    Refusal::new(Reason::Internal, format!("no random bytes: {error}"))
                })?;
                none.insert(Random::new(&seed, "copse proofs"))
            }
        };
        let start = random.below(group_count(shard_bytes)) * GROUP_BYTES;
        Ok(start..(start + GROUP_BYTES).min(shard_bytes))
    }
}
