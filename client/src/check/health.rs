//! How one chunk is: who holds which of its shards, and what that survives.
//!
//! Owns the values and what follows from them. Asks nobody. The one idea: an index counts once,
//! however many nodes hold it, and only as long as nobody was caught claiming it falsely.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use copse_core::{
    directory::Directory,
    ids::{NodeId, ShardIndex},
    manifest::ChunkRef,
};

use crate::{claims::Claimant, losses};

/// How strong a chunk is. The later, the weaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Strength {
    /// All its shards were found.
    Whole,
    /// Enough to read it.
    Thin,
    /// Too few to read it, but nodes that may hold more did not answer.
    Waiting,
    /// Too few to read it, and everybody was asked.
    Lost,
}

impl Strength {
    /// The word for people and programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Thin => "thin",
            Self::Waiting => "waiting",
            Self::Lost => "lost",
        }
    }
}

/// What may be lost before a chunk cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survives {
    /// Any so many nodes.
    pub nodes: usize,
    /// Any so many zones; a node without a zone counts as one.
    pub zones: usize,
}

impl Survives {
    /// The worse of two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self { nodes: self.nodes.min(other.nodes), zones: self.zones.min(other.zones) }
    }
}

/// Which nodes fail together.
#[derive(Debug, Clone, Default)]
pub(super) struct Zones(HashMap<NodeId, String>);

impl Zones {
    pub(super) fn of(directory: &Directory) -> Self {
        let records = directory.iter().map(|signed| signed.record());
        let named = records.filter(|record| !record.zone.is_empty());
        Self(named.map(|record| (record.node, record.zone.clone())).collect())
    }

    /// A node without a zone is one of its own.
    fn zone(&self, node: NodeId) -> Zone<'_> {
        self.0.get(&node).map_or(Zone::Own(node), |zone| Zone::Named(zone))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Zone<'a> {
    Own(NodeId),
    Named(&'a str),
}

/// One chunk, as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkHealth {
    /// The chunk.
    pub chunk: ChunkRef,
    /// Who holds which shard; none without a holder.
    holders: BTreeMap<ShardIndex, BTreeSet<NodeId>>,
    /// Nodes that may hold more but did not say so.
    silent: BTreeSet<NodeId>,
}

impl ChunkHealth {
    pub(super) fn new(chunk: ChunkRef) -> Self {
        Self { chunk, holders: BTreeMap::new(), silent: BTreeSet::new() }
    }

    /// A node holds a shard that the chunk has.
    pub(super) fn add(&mut self, index: ShardIndex, node: NodeId) {
        debug_assert!(index.as_usize() < self.chunk.geometry.total());
        self.holders.entry(index).or_default().insert(node);
    }

    /// What of a node's claims can count.
    pub(super) fn credible(
        &self,
        preferred: &[NodeId],
        node: NodeId,
        claims: Vec<ShardIndex>,
    ) -> Vec<ShardIndex> {
        let claimant = Claimant { geometry: self.chunk.geometry, preferred, node };
        claimant.credible(claims, |index| self.holders.contains_key(&index))
    }

    /// A node does not hold a shard after all.
    pub(super) fn remove(&mut self, index: ShardIndex, node: NodeId) {
        if let Some(nodes) = self.holders.get_mut(&index) {
            nodes.remove(&node);
            if nodes.is_empty() {
                self.holders.remove(&index);
            }
        }
    }

    /// A node that may hold more did not answer.
    pub(super) fn add_silent(&mut self, node: NodeId) {
        self.silent.insert(node);
    }

    /// Who holds which shard.
    pub fn holders(&self) -> &BTreeMap<ShardIndex, BTreeSet<NodeId>> {
        &self.holders
    }

    /// Nodes that may hold more but did not answer.
    pub fn silent(&self) -> usize {
        self.silent.len()
    }

    /// Different shards found.
    pub fn have(&self) -> usize {
        self.holders.len()
    }

    /// Shards that nobody holds, as far as known.
    pub fn missing(&self) -> Vec<ShardIndex> {
        let all = self.chunk.geometry.indices();
        all.filter(|index| !self.holders.contains_key(index)).collect()
    }

    /// How strong it is.
    pub fn strength(&self) -> Strength {
        let geometry = self.chunk.geometry;
        if self.have() >= geometry.total() {
            Strength::Whole
        } else if self.have() >= geometry.data() {
            Strength::Thin
        } else if self.silent.is_empty() {
            Strength::Lost
        } else {
            Strength::Waiting
        }
    }

    /// What may be lost; none when it cannot be read now.
    pub(super) fn survives(&self, zones: &Zones) -> Option<Survives> {
        let need = self.chunk.geometry.data();
        Some(Survives {
            nodes: losses::borne(self.owners(|node| node), need)?,
            zones: losses::borne(self.owners(|node| zones.zone(node)), need)?,
        })
    }

    /// The owners of each shard.
    fn owners<O>(&self, owner: impl Fn(NodeId) -> O) -> impl Iterator<Item = Vec<O>> {
        self.holders.values().map(move |nodes| nodes.iter().map(|node| owner(*node)).collect())
    }
}

#[cfg(test)]
mod tests {
    use copse_core::{geometry::Geometry, ids::ChunkId};
    use proptest::prelude::*;

    use super::*;

    fn chunk(geometry: &str) -> ChunkRef {
        let geometry = geometry.parse().expect("a geometry");
        ChunkRef { id: ChunkId::new([1; 32]), geometry, shard_bytes: 1000 }
    }

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    /// A chunk whose shard i is on these nodes.
    fn held(geometry: &str, holders: &[&[u8]]) -> ChunkHealth {
        let mut health = ChunkHealth::new(chunk(geometry));
        for (index, nodes) in (0..).map(ShardIndex).zip(holders) {
            for number in *nodes {
                health.add(index, node(*number));
            }
        }
        health
    }

    #[test]
    fn a_chunk_is_as_strong_as_its_different_shards() {
        let mut health = held("2+2", &[&[1], &[2], &[3], &[4]]);
        assert_eq!((health.strength(), health.have()), (Strength::Whole, 4));
        health.add(ShardIndex(3), node(5));
        health.remove(ShardIndex(3), node(4));
        assert_eq!(health.strength(), Strength::Whole, "another holds it too");
        health.remove(ShardIndex(3), node(5));
        health.remove(ShardIndex(0), node(1));
        assert_eq!(health.strength(), Strength::Thin);
        assert_eq!(health.missing(), [ShardIndex(0), ShardIndex(3)]);
        health.remove(ShardIndex(1), node(2));
        assert_eq!(health.strength(), Strength::Lost);
        health.add_silent(node(2));
        assert_eq!(health.strength(), Strength::Waiting);
        assert_eq!(health.survives(&Zones::default()), None);
    }

    #[test]
    fn what_survives_is_counted_by_the_worst_losses() {
        let none = Zones::default();
        let survives = |health: &ChunkHealth, zones| {
            health.survives(zones).map(|survives| (survives.nodes, survives.zones))
        };
        let spread = held("2+2", &[&[1], &[2], &[3], &[4]]);
        assert_eq!(survives(&spread, &none), Some((2, 2)));
        let crowded = held("2+2", &[&[1], &[1], &[2], &[3]]);
        assert_eq!(survives(&crowded, &none), Some((1, 1)));
        // A second copy elsewhere takes the load off the crowded node.
        let twice = held("2+2", &[&[1, 4], &[1], &[2], &[3]]);
        assert_eq!(survives(&twice, &none), Some((2, 2)));
        let zones = Zones((1..=3).map(|number| (node(number), "attic".to_owned())).collect());
        assert_eq!(survives(&spread, &zones), Some((2, 0)));
        assert_eq!(survives(&held("2+2", &[&[1], &[2]]), &none), Some((0, 0)));
    }

    proptest! {
        /// Whatever is claimed to be survived is survived.
        #[test]
        fn no_more_is_promised_than_any_loss_leaves(
            data in 1usize..4,
            parity in 0usize..4,
            holders in prop::collection::vec(prop::collection::btree_set(1u8..7, 0..3), 7),
        ) {
            let geometry = Geometry::new(data, parity).expect("a geometry");
            let mut health = ChunkHealth::new(ChunkRef { geometry, ..chunk("1+0") });
            for (index, nodes) in geometry.indices().zip(&holders) {
                for number in nodes {
                    health.add(index, node(*number));
                }
            }
            let Some(survives) = health.survives(&Zones::default()) else {
                prop_assert!(health.have() < data);
                return Ok(());
            };
            for lost in 0u8..64 {
                if lost.count_ones() as usize > survives.nodes {
                    continue;
                }
                let mut left = health.clone();
                for number in (1..7).filter(|number| lost >> (number - 1) & 1 == 1) {
                    for index in geometry.indices() {
                        left.remove(index, node(number));
                    }
                }
                prop_assert!(left.have() >= data, "{lost:b} of {health:?}");
            }
        }
    }
}
