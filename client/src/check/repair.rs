//! The missing shards of one chunk, made anew and stored.
//!
//! Owns the order: any k shards are read and verified, the missing ones rebuilt and checked against
//! the descriptor, each is put where the ring wants it, or further along the walk, and proved there.
//! Needs no key. The one idea: nothing is given up before the new shard is proved, so a repair can
//! break off anywhere and be done again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use copse_core::{
    descriptor::ShardError,
    geometry::Geometry,
    ids::{ChunkId, NodeId, ShardIndex},
    manifest::ChunkRef,
    rebuild::{RebuildError, rebuild},
};
use copse_proto::status::{Reason, Refusal};
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};

use super::{census::Checker, health::ChunkHealth};
use crate::{error::Refusals, get::facts::ChunkFacts, put::placement::Placement, task::beside};

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Shards made and proved on their new nodes.
    pub placed: Vec<(ShardIndex, NodeId)>,
    /// Their bytes.
    pub bytes: u64,
    /// Which nodes did not take a shard, and why.
    pub refused: Refusals,
}

/// Why a chunk was not repaired.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RepairError {
    /// Too few shards can be read.
    #[error(
        "chunk {}: have {have} of the {need} shards needed to rebuild the others ({refusals}); try \
         again when more nodes answer", .chunk.short()
    )]
    TooFew {
        /// The chunk.
        chunk: ChunkId,
        /// Different shards that were read and are right.
        have: usize,
        /// How many are needed.
        need: usize,
        /// Who did not give what it said it holds.
        refusals: Refusals,
    },
    /// The shards read are right, and those made of them are not what the descriptor names.
    #[error(
        "chunk {} was made wrongly by whoever stored it: its shards do not fit each other, so no \
         more of them can be made", .chunk.short()
    )]
    Inconsistent {
        /// The chunk.
        chunk: ChunkId,
        /// Which does not fit.
        #[source]
        source: Box<ShardError>,
    },
    /// No node took one.
    #[error("chunk {}: no node took a rebuilt shard ({refusals}); add nodes or room", .chunk.short())]
    NoRoom {
        /// The chunk.
        chunk: ChunkId,
        /// Which nodes refused, and why.
        refusals: Refusals,
    },
    /// A thread died.
    #[error("a chunk could not be rebuilt: its thread stopped; this is a fault of this program")]
    Thread,
}

impl Checker {
    /// Makes the missing shards of a chunk and notes in `health` where they are now.
    ///
    /// # Errors
    /// When fewer than k shards can be read, they contradict each other, or nobody takes a new one.
    /// Shards that were placed before stay.
    pub async fn repair(&self, health: &mut ChunkHealth) -> Result<Repaired, RepairError> {
        let facts = Arc::new(ChunkFacts::of_chunk(&health.chunk));
        let shards = self.read_any(health, &facts).await?;
        // Every shard read has proved the descriptor.
        let Some((bytes, descriptor)) = facts.known() else { return Err(RepairError::Thread) };
        let missing = health.missing();
        let chunk = health.chunk.id;
        let rebuild = move || {
            rebuild(&descriptor, &shards, &missing)
                .map(|made| missing.into_iter().zip(made).collect::<BTreeMap<_, _>>())
        };
        let rebuilt = beside(rebuild).await.map_err(|_| RepairError::Thread)?;
        let rebuilt = rebuilt.map_err(|error| match error {
            RebuildError::Inconsistent(source) => RepairError::Inconsistent { chunk, source },
            // There are k of them, all of one length.
            RebuildError::Given(_) => RepairError::Thread,
        })?;
        self.place_all(health, &facts, &bytes, rebuilt).await
    }

    /// Any k shards, whole and verified, those of data first. Claims that prove false are taken
    /// back.
    async fn read_any(
        &self,
        health: &mut ChunkHealth,
        facts: &Arc<ChunkFacts>,
    ) -> Result<Vec<(ShardIndex, Bytes)>, RepairError> {
        let need = health.chunk.geometry.data();
        // One holder of each shard, then the second ones.
        let mut sources: VecDeque<(ShardIndex, NodeId)> = VecDeque::new();
        let most = health.holders().values().map(BTreeSet::len).max().unwrap_or(0);
        for turn in 0..most {
            let holders = health.holders().iter();
            sources.extend(
                holders.filter_map(|(index, nodes)| Some((*index, *nodes.iter().nth(turn)?))),
            );
        }
        // The well ones first; the order stays otherwise.
        let well = |node: &NodeId| self.network.holder(*node).can_read();
        sources.make_contiguous().sort_by_key(|(_, node)| !well(node));
        let mut have: BTreeMap<ShardIndex, Bytes> = BTreeMap::new();
        let mut refusals = Vec::new();
        let mut running: FuturesUnordered<BoxFuture<'_, _>> = FuturesUnordered::new();
        let mut coming: BTreeSet<ShardIndex> = BTreeSet::new();
        loop {
            let mut put_off = VecDeque::new();
            while have.len() + coming.len() < need
                && let Some((index, node)) = sources.pop_front()
            {
                if have.contains_key(&index) {
                    continue;
                }
                // Its other holder is being asked.
                if !coming.insert(index) {
                    put_off.push_back((index, node));
                    continue;
                }
                let whole = 0..facts.shard_bytes;
                running.push(Box::pin(async move {
                    (index, node, self.read(facts, index, node, whole).await)
                }));
            }
            put_off.append(&mut sources);
            sources = put_off;
            let Some((index, node, read)) = running.next().await else { break };
            coming.remove(&index);
            match read {
                Ok(shard) => {
                    have.insert(index, shard);
                }
                Err(refusal) => {
                    health.remove(index, node);
                    self.note_failure(health, node, &refusal);
                    refusals.push((node, refusal));
                }
            }
        }
        if have.len() < need {
            let (chunk, have) = (health.chunk.id, have.len());
            return Err(RepairError::TooFew { chunk, have, need, refusals: Refusals(refusals) });
        }
        Ok(have.into_iter().collect())
    }

    /// Puts each rebuilt shard on a node, all at once, each on the next node when one refuses.
    async fn place_all(
        &self,
        health: &mut ChunkHealth,
        facts: &Arc<ChunkFacts>,
        descriptor: &[u8],
        rebuilt: BTreeMap<ShardIndex, Bytes>,
    ) -> Result<Repaired, RepairError> {
        let ChunkRef { id, geometry, .. } = health.chunk;
        let view = self.network.view();
        let wanted = destinations(&view.placement(&id, geometry), health.holders(), geometry);
        let mut placement = Placement::new(geometry, wanted, view.candidates(&id, geometry));
        for (index, nodes) in health.holders() {
            nodes.iter().for_each(|node| placement.held(*index, *node));
        }
        // Whoever was caught in this run gets nothing to lie about again.
        let caught: Vec<NodeId> = view
            .ring
            .members()
            .iter()
            .map(|member| member.id)
            .filter(|node| self.was_caught(*node))
            .collect();
        for (node, index) in caught.iter().zip(rebuilt.keys().cycle()) {
            let why = Refusal::new(Reason::BadReply, "it claimed a shard falsely");
            placement.refused(*index, *node, why);
        }
        let mut done = Repaired::default();
        let mut running: FuturesUnordered<BoxFuture<'_, _>> = FuturesUnordered::new();
        let mut next: Vec<ShardIndex> = rebuilt.keys().copied().collect();
        loop {
            for index in next.drain(..) {
                let usable = |node| self.network.holder(node).can_store();
                let further = || view.further(&id, geometry);
                let node = placement.next_or_further(index, usable, further);
                let (Some(node), Some(shard)) = (node, rebuilt.get(&index).cloned()) else {
                    continue;
                };
                running.push(Box::pin(async move {
                    (index, node, self.place(facts, descriptor, index, node, shard).await)
                }));
            }
            let Some((index, node, placed)) = running.next().await else { break };
            match placed {
                Ok(()) => {
                    placement.held(index, node);
                    health.add(index, node);
                    self.note(node, |report| report.claims += 1);
                    done.placed.push((index, node));
                    done.bytes += facts.shard_bytes as u64;
                }
                Err(why) => {
                    tracing::debug!(chunk = %id.short(), %index, node = %node.short(), %why, "not placed");
                    placement.refused(index, node, why);
                    next.push(index);
                }
            }
        }
        done.placed.sort_unstable();
        done.refused = Refusals(placement.refusals());
        if done.placed.is_empty() && !rebuilt.is_empty() {
            return Err(RepairError::NoRoom { chunk: id, refusals: done.refused });
        }
        Ok(done)
    }
}

/// The node for each shard: for those that are held a holder, for the others the slots of the
/// ring's list that no holder fills, in order.
fn destinations(
    slots: &[NodeId],
    holders: &BTreeMap<ShardIndex, BTreeSet<NodeId>>,
    geometry: Geometry,
) -> Vec<NodeId> {
    let mut free: Vec<NodeId> = slots.to_vec();
    let mut held: BTreeMap<ShardIndex, NodeId> = BTreeMap::new();
    for (index, nodes) in holders {
        match free.iter().position(|slot| nodes.contains(slot)) {
            Some(at) => held.insert(*index, free.remove(at)),
            // It lies where the ring would not put it now; its slot waits for it.
            None => nodes.first().and_then(|node| held.insert(*index, *node)),
        };
    }
    let mut free = free.into_iter();
    // As many slots as shards, and each shard that is held took one at most.
    geometry
        .indices()
        .filter_map(|index| held.get(&index).copied().or_else(|| free.next()))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    #[test]
    fn missing_shards_get_the_slots_that_nobody_fills() {
        let geometry: Geometry = "2+2".parse().expect("a geometry");
        let slots = [node(1), node(2), node(3), node(4)];
        // Shard 0 on node 4, shard 1 on a node that is not on the list any more.
        let holders = [(0, 4), (1, 9)]
            .map(|(index, number)| (ShardIndex(index), BTreeSet::from([node(number)])));
        let wanted = destinations(&slots, &BTreeMap::from(holders), geometry);
        assert_eq!(wanted, [node(4), node(9), node(1), node(2)]);
    }

    proptest! {
        #[test]
        fn every_shard_has_a_destination_and_no_slot_is_given_twice(
            nodes in 1usize..10,
            data in 1usize..5,
            parity in 0usize..5,
            held in prop::collection::btree_map(0u8..10, prop::collection::btree_set(1u8..14, 1..3), 0..8),
        ) {
            let geometry = Geometry::new(data, parity).expect("a geometry");
            let slots: Vec<NodeId> =
                (1u8..10).take(nodes).cycle().take(geometry.total()).map(node).collect();
            let holders: BTreeMap<ShardIndex, BTreeSet<NodeId>> = held
                .into_iter()
                .filter(|(index, _)| usize::from(*index) < geometry.total())
                .map(|(index, nodes)| (ShardIndex(index), nodes.into_iter().map(node).collect()))
                .collect();
            let wanted = destinations(&slots, &holders, geometry);
            prop_assert_eq!(wanted.len(), geometry.total());
            for number in 1..14 {
                let count = |list: &[NodeId]| list.iter().filter(|at| **at == node(number)).count();
                let misplaced = holders.values().filter(|nodes| {
                    nodes.contains(&node(number))
                }).count();
                prop_assert!(count(&wanted) <= count(&slots) + misplaced);
            }
        }
    }
}
