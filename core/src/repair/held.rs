//! The claims that count: of known, trusted nodes that live, sorted.
//!
//! Owns what a claim is worth. The one idea: everything behind this sees the same order, whatever
//! order the claims came in.

use super::facts::{ChunkFacts, Nodes, Standing};
use crate::ids::{NodeId, ShardIndex};

/// A shard that somebody holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub(super) index: ShardIndex,
    pub(super) node: NodeId,
    pub(super) standing: Standing,
}

impl Held {
    /// Whether it can be read now.
    pub(super) const fn is_sure(&self) -> bool {
        self.standing.is_reachable()
    }

    /// The better holder comes first.
    pub(super) const fn rank(&self) -> u8 {
        match self.standing {
            Standing::Alive => 0,
            Standing::Leaving => 1,
            Standing::Suspect => 2,
            _ => 3,
        }
    }
}

/// All that is held of a chunk.
#[derive(Debug)]
pub(super) struct Holdings {
    /// By index, the best holder first.
    held: Vec<Held>,
    /// Nodes whose claims were not counted because they cannot be trusted, by id.
    pub(super) untrusted: Vec<NodeId>,
}

impl Holdings {
    pub(super) fn of(chunk: &ChunkFacts, nodes: &impl Nodes) -> Self {
        let total = chunk.geometry.total();
        let mut claims: Vec<_> =
            chunk.claims.iter().filter(|claim| claim.index.as_usize() < total).copied().collect();
        claims.sort_unstable();
        claims.dedup();
        let mut held = Vec::with_capacity(claims.len());
        let mut untrusted = Vec::new();
        let mut last = None;
        for claim in claims {
            let facts = match last {
                Some((node, facts)) if node == claim.node => facts,
                _ => nodes.facts(&claim.node),
            };
            last = Some((claim.node, facts));
            if !facts.trusted {
                if untrusted.last() != Some(&claim.node) {
                    untrusted.push(claim.node);
                }
            } else if facts.standing.is_reachable() || facts.standing == Standing::Down {
                let (index, node, standing) = (claim.index, claim.node, facts.standing);
                held.push(Held { index, node, standing });
            }
        }
        held.sort_unstable_by_key(|held| (held.index, held.rank(), held.node));
        Self { held, untrusted }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.held.iter()
    }

    /// The holders of a shard, the best first: those that can be asked before those that are down.
    pub(super) fn holders(&self, index: ShardIndex) -> &[Held] {
        let start = self.held.partition_point(|held| held.index < index);
        let count = self.held[start..].partition_point(|held| held.index == index);
        &self.held[start..start + count]
    }

    /// The best holder of a shard that can be asked.
    pub(super) fn source(&self, index: ShardIndex) -> Option<&Held> {
        self.holders(index).first().filter(|held| held.is_sure())
    }

    /// How many shards a node holds.
    pub(super) fn count_on(&self, node: &NodeId) -> usize {
        self.held.iter().filter(|held| held.node == *node).count()
    }
}
