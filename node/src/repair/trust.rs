//! Who was caught: nodes that served wrong bytes, or claim shards that they do not have or that no
//! chunk has.
//!
//! Owns the faults seen by this node itself; hearsay does not count. A node that is not trusted is
//! routed around and its claims count for nothing, until it has passed enough audits in a row.
//! Bounded: few faults of each node are kept, and nodes that did nothing wrong take no place.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use copse_core::ids::{NodeId, ShardId};

/// How often a node may lack a shard and say in the same breath that it has it. Once or twice may be a
/// shard that arrived between the two questions.
const NOT_HELD_MAX: u64 = 3;

/// Audits in a row that restore trust.
const PASSES_TO_TRUST: u32 = 64;

/// Nodes of which faults are kept, at most; then the one with the fewest goes.
const NODES_MAX: usize = 4096;

/// What a node did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It gave bytes that are not the shard's, or a proof that does not hold.
    WrongBytes,
    /// It says that it has a shard, and does not give it.
    NotHeld,
    /// It lists a shard of another geometry or length than its chunk's descriptor says.
    WrongShape,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WrongBytes => "served wrong bytes",
            Self::NotHeld => "does not hold what it says it holds",
            Self::WrongShape => "lists shards in a shape that their chunk does not have",
        })
    }
}

/// What is known of a node's faults.
#[derive(Debug, Clone, Default)]
struct Seen {
    not_held: u64,
    /// Faults that no race explains.
    proved: u64,
    passes: u32,
    untrusted: Option<Fault>,
}

/// A node that is not trusted, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Untrusted {
    /// The node.
    pub(super) node: NodeId,
    /// Why.
    pub(super) fault: Fault,
}

/// The faults of all nodes. Clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Trust(Arc<Mutex<BTreeMap<NodeId, Seen>>>);

impl Trust {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a fault; whether the node has just lost our trust.
    pub(super) fn caught(&self, node: NodeId, shard: ShardId, fault: Fault) -> bool {
        let mut nodes = self.lock();
        if nodes.len() >= NODES_MAX && !nodes.contains_key(&node) {
            let least = nodes
                .iter()
                .filter(|(_, seen)| seen.untrusted.is_none())
                .min_by_key(|(_, seen)| seen.not_held)
                .map(|(&node, _)| node);
            match least {
                Some(least) => nodes.remove(&least),
                None => return false,
            };
        }
        let seen = nodes.entry(node).or_default();
        seen.passes = 0;
        match fault {
            Fault::WrongBytes | Fault::WrongShape => seen.proved += 1,
            Fault::NotHeld => seen.not_held += 1,
        }
        let guilty = seen.proved > 0 || seen.not_held >= NOT_HELD_MAX;
        let lost = guilty && seen.untrusted.is_none();
        if lost {
            seen.untrusted = Some(fault);
            tracing::warn!(node = %node, shard = %shard, "a node is no longer trusted: it {fault}");
        }
        lost
    }

    /// Notes that a node proved a shard.
    pub(super) fn passed(&self, node: NodeId) {
        let mut nodes = self.lock();
        let Some(seen) = nodes.get_mut(&node) else { return };
        seen.passes += 1;
        if seen.passes >= PASSES_TO_TRUST {
            nodes.remove(&node);
            tracing::info!(node = %node, "a node is trusted again: it proved {PASSES_TO_TRUST} shards in a row");
        }
    }

    /// Whether a node's word counts.
    pub(super) fn trusts(&self, node: &NodeId) -> bool {
        self.lock().get(node).is_none_or(|seen| seen.untrusted.is_none())
    }

    /// Whether a node is under suspicion: it should be audited more.
    pub(super) fn suspects(&self) -> Vec<NodeId> {
        self.lock().keys().copied().collect()
    }

    /// All that are not trusted.
    pub(super) fn untrusted(&self) -> Vec<Untrusted> {
        let nodes = self.lock();
        let named = nodes
            .iter()
            .filter_map(|(&node, seen)| seen.untrusted.map(|fault| Untrusted { node, fault }));
        named.collect()
    }
}

#[cfg(test)]
mod tests {
    use copse_core::ids::{ChunkId, ShardIndex};

    use super::*;

    fn shard(number: u8) -> ShardId {
        ShardId { chunk: ChunkId::new([number; 32]), index: ShardIndex(0) }
    }

    #[test]
    fn wrong_bytes_end_trust_at_once_and_many_proofs_restore_it() {
        let (trust, node) = (Trust::default(), NodeId::new([1; 32]));
        assert!(trust.trusts(&node));
        assert!(trust.caught(node, shard(1), Fault::WrongBytes));
        assert!(!trust.trusts(&node));
        assert_eq!(trust.untrusted(), [Untrusted { node, fault: Fault::WrongBytes }]);
        for _ in 1..PASSES_TO_TRUST {
            trust.passed(node);
        }
        assert!(!trust.trusts(&node));
        trust.passed(node);
        assert!(trust.trusts(&node));
    }

    #[test]
    fn one_missing_shard_may_be_a_race_three_are_a_lie() {
        let (trust, node) = (Trust::default(), NodeId::new([1; 32]));
        assert!(!trust.caught(node, shard(1), Fault::NotHeld));
        assert!(!trust.caught(node, shard(2), Fault::NotHeld));
        assert!(trust.trusts(&node));
        assert_eq!(trust.suspects(), [node]);
        assert!(trust.caught(node, shard(3), Fault::NotHeld));
        assert!(!trust.trusts(&node));
    }

    #[test]
    fn a_crowd_of_small_offenders_takes_bounded_room() {
        let trust = Trust::default();
        for number in 0..NODES_MAX + 100 {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&(number as u64).to_be_bytes());
            trust.caught(NodeId::new(id), shard(1), Fault::NotHeld);
        }
        assert_eq!(trust.suspects().len(), NODES_MAX);
    }
}
