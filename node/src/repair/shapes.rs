//! What a chunk looks like: k, n and the length of its shards, when nodes say different things of it.
//!
//! Owns the vote, and the proof that ends it. A vote counts nodes, not what they list: one that lists
//! many shards of a chunk has one voice, and one that is not trusted or is gone has none as long as
//! another has. The one idea: a chunk's descriptor hashes to its id, so the first holder that gives it
//! settles what is true, and who says otherwise is caught.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc, time::Duration};

use copse_core::{
    descriptor::Descriptor,
    geometry::Geometry,
    ids::{ChunkId, NodeId, ShardId},
    repair::{ChunkFacts, Claim, Nodes, Standing},
};
use copse_proto::{convert, holdings::ListedShard, status::Refusal};
use futures::{StreamExt as _, stream};

use super::{facts::Facts, shared::Shared};
use crate::store::Want;

/// Holders asked for a descriptor at one time.
const ASKED_AT_ONCE: usize = 4;

/// The geometry, and the bytes of each shard.
type Shape = (Geometry, u32);

/// What is said of a chunk.
#[derive(Debug)]
pub(super) struct Said {
    /// In the shape that has the most voices.
    pub(super) facts: ChunkFacts,
    /// The claims in other shapes of nodes that have a voice. Empty: there is no dispute.
    pub(super) others: Vec<(Shape, Vec<Claim>)>,
    /// Who alone says to hold anything, if it is one node.
    pub(super) sole_holder: Option<NodeId>,
}

/// The claims of a chunk in one shape.
#[derive(Default)]
struct Voices {
    claims: Vec<Claim>,
    /// Nodes that say so, and how many of them count.
    nodes: usize,
    counting: usize,
}

/// The chunks of an arc, from what all nodes say about it.
pub(super) fn chunks_of(
    claims: Vec<(NodeId, Vec<ListedShard>)>,
    nodes: &impl Nodes,
    missing_for: Option<Duration>,
) -> Vec<Said> {
    let mut chunks: BTreeMap<ChunkId, BTreeMap<Shape, Voices>> = BTreeMap::new();
    for (node, shards) in claims {
        let counts = has_voice(nodes, &node);
        for shard in shards {
            let shapes = chunks.entry(shard.id.chunk).or_default();
            let voices = shapes.entry((shard.geometry, shard.shard_bytes)).or_default();
            if voices.claims.last().is_none_or(|last| last.node != node) {
                voices.nodes += 1;
                voices.counting += usize::from(counts);
            }
            voices.claims.push(Claim { node, index: shard.id.index });
        }
    }
    chunks.into_iter().filter_map(|(chunk, shapes)| vote(chunk, shapes, missing_for)).collect()
}

fn vote(
    chunk: ChunkId,
    mut shapes: BTreeMap<Shape, Voices>,
    missing_for: Option<Duration>,
) -> Option<Said> {
    let most = |(shape, of): &(&Shape, &Voices)| (of.counting, of.nodes, Reverse(**shape));
    let shape = *shapes.iter().max_by_key(most)?.0;
    let mut holders = shapes.values().flat_map(|of| &of.claims).map(|claim| claim.node);
    let first = holders.next()?;
    let sole_holder = holders.all(|node| node == first).then_some(first);
    let Voices { claims, .. } = shapes.remove(&shape)?;
    let others = shapes.into_iter().filter(|(_, of)| of.counting > 0);
    let others = others.map(|(shape, of)| (shape, of.claims)).collect();
    let (geometry, shard_bytes) = (shape.0, shape.1.into());
    let facts = ChunkFacts { chunk, geometry, shard_bytes, claims, missing_for };
    Some(Said { facts, others, sole_holder })
}

/// Whether what a node says of a shape counts before what others say.
fn has_voice(nodes: &impl Nodes, node: &NodeId) -> bool {
    let facts = nodes.facts(node);
    facts.trusted && !matches!(facts.standing, Standing::Dead | Standing::Left | Standing::Unknown)
}

impl Said {
    /// Whether nodes that have a voice say different things.
    pub(super) fn is_disputed(&self) -> bool {
        !self.others.is_empty()
    }

    /// Whom to ask for the descriptor: those that can be asked, a node of each shape in turn, so that
    /// a crowd that lies together does not keep an honest one from being asked.
    fn to_ask(&self, nodes: &impl Nodes) -> Vec<(NodeId, ShardId)> {
        let all = [&self.facts.claims].into_iter().chain(self.others.iter().map(|(_, of)| of));
        let mut asked = Vec::new();
        for claims in all {
            let mut claims = claims.clone();
            claims.dedup_by_key(|claim| claim.node);
            claims.retain(|claim| nodes.facts(&claim.node).standing.is_reachable());
            asked.extend(claims.into_iter().enumerate());
        }
        asked.sort_by_key(|(turn, _)| *turn);
        let id = |claim: Claim| ShardId { chunk: self.facts.chunk, index: claim.index };
        asked.into_iter().map(|(_, claim)| (claim.node, id(claim))).collect()
    }

    /// The facts in the true shape, and who said otherwise.
    fn judged(self, truth: Shape) -> (ChunkFacts, Vec<(NodeId, ShardId)>) {
        let Self { facts, others, .. } = self;
        let chunk = facts.chunk;
        let told = u32::try_from(facts.shard_bytes).unwrap_or(u32::MAX);
        let mut all = vec![((facts.geometry, told), facts.claims)];
        all.extend(others);
        let (mut claims, mut liars) = (Vec::new(), Vec::new());
        for (shape, said) in all {
            if shape == truth {
                claims = said;
            } else {
                let mut said = said;
                said.dedup_by_key(|claim| claim.node);
                let id = |claim: Claim| ShardId { chunk, index: claim.index };
                liars.extend(said.into_iter().map(|claim| (claim.node, id(claim))));
            }
        }
        let (geometry, shard_bytes) = (truth.0, truth.1.into());
        (ChunkFacts { geometry, shard_bytes, claims, ..facts }, liars)
    }
}

/// Ends disputes.
pub(super) struct Judge(pub(super) Arc<Shared>);

impl Judge {
    /// The facts in the shape that a descriptor proves; who said otherwise is no longer trusted. If
    /// nobody gives one, nothing can be made of the chunk anyway, and the vote stands.
    pub(super) async fn settle(&self, said: Said, nodes: &Facts) -> ChunkFacts {
        if !said.is_disputed() {
            return said.facts;
        }
        let asked = stream::iter(said.to_ask(nodes))
            .map(async |(node, id)| self.descriptor(node, id).await);
        let mut answers = std::pin::pin!(asked.buffer_unordered(ASKED_AT_ONCE));
        while let Some(answer) = answers.next().await {
            let Ok(descriptor) = answer else { continue };
            let shard_bytes = u32::try_from(descriptor.shard_bytes()).unwrap_or(u32::MAX);
            let (facts, liars) = said.judged((descriptor.geometry(), shard_bytes));
            for (node, id) in liars.into_iter().filter(|(node, _)| *node != self.0.own) {
                self.0.exchange.told_wrong_shape(node, id);
            }
            return facts;
        }
        said.facts
    }

    async fn descriptor(&self, node: NodeId, id: ShardId) -> Result<Descriptor, Refusal> {
        if node != self.0.own {
            return self.0.exchange.descriptor(node, id).await;
        }
        let read = self.0.store.read(id, Want::Range(0..1)).await;
        let read = read.map_err(|error| crate::refusals::of_read(&error))?;
        Ok(convert::descriptor(&read.descriptor)?)
    }
}

#[cfg(test)]
mod tests {
    use copse_core::{
        ids::ShardIndex,
        repair::{NodeFacts, Room},
    };

    use super::*;

    const CHUNK: ChunkId = ChunkId::new([7; 32]);

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    fn geometry(data: usize, parity: usize) -> Geometry {
        Geometry::new(data, parity).expect("a geometry")
    }

    /// What a node lists.
    fn list(
        number: u8,
        geometry: Geometry,
        shard_bytes: u32,
        indices: core::ops::Range<u8>,
    ) -> (NodeId, Vec<ListedShard>) {
        let shard = |index| ListedShard {
            id: ShardId { chunk: CHUNK, index: ShardIndex(index) },
            geometry,
            shard_bytes,
        };
        (node(number), indices.map(shard).collect())
    }

    /// Sixteen nodes with a shard of 10+6 each, and what the liars say.
    fn said(liars: Vec<(NodeId, Vec<ListedShard>)>, nodes: &BTreeMap<NodeId, NodeFacts>) -> Said {
        let mut claims: Vec<_> =
            (0..16).map(|number| list(number, geometry(10, 6), 1000, number..number + 1)).collect();
        claims.extend(liars);
        claims.sort_by_key(|(node, _)| *node);
        chunks_of(claims, nodes, None).pop().expect("a chunk")
    }

    fn all_alive() -> BTreeMap<NodeId, NodeFacts> {
        (0..40).map(|number| (node(number), NodeFacts::standing(Standing::Alive))).collect()
    }

    #[test]
    fn a_node_that_lists_many_shards_has_one_voice() {
        for lie in
            [list(20, geometry(1, 254), 1000, 0..255), list(20, geometry(10, 6), 2000, 0..16)]
        {
            let said = said(vec![lie], &all_alive());
            assert_eq!((said.facts.geometry, said.facts.shard_bytes), (geometry(10, 6), 1000));
            assert_eq!(said.facts.claims.len(), 16);
            assert!(said.is_disputed());
        }
    }

    #[test]
    fn a_crowd_that_is_not_trusted_or_gone_has_no_voice() {
        let crowd = || (20..40).map(|number| list(number, geometry(1, 1), 9, 0..1)).collect();
        let untrusted = NodeFacts { standing: Standing::Alive, room: Room::Free, trusted: false };
        for facts in [
            untrusted,
            NodeFacts::standing(Standing::Dead),
            NodeFacts::standing(Standing::Left),
            NodeFacts::UNKNOWN,
        ] {
            let mut nodes = all_alive();
            nodes.extend((20..40).map(|number| (node(number), facts)));
            let said = said(crowd(), &nodes);
            assert_eq!(said.facts.geometry, geometry(10, 6));
            assert!(!said.is_disputed(), "{facts:?}");
        }
        // Where nobody else says anything, it is all that is known.
        let nobody = BTreeMap::<NodeId, NodeFacts>::new();
        let said = chunks_of(crowd(), &nobody, None).pop().expect("a chunk");
        assert_eq!((said.facts.claims.len(), said.is_disputed()), (20, false));
    }

    #[test]
    fn a_proof_ends_a_vote_that_a_crowd_won_and_names_the_crowd() {
        let crowd = (20..40).map(|number| list(number, geometry(1, 254), 1000, 0..9)).collect();
        let said = said(crowd, &all_alive());
        assert_eq!(said.facts.geometry, geometry(1, 254), "the crowd is larger");
        let asked = said.to_ask(&all_alive());
        assert!(asked[..2].iter().any(|(holder, _)| *holder < node(16)), "both are asked first");
        assert_eq!(asked.len(), 36);
        let (facts, liars) = said.judged((geometry(10, 6), 1000));
        assert_eq!((facts.geometry, facts.claims.len()), (geometry(10, 6), 16));
        let liars: Vec<NodeId> = liars.into_iter().map(|(node, _)| node).collect();
        assert_eq!(liars, (20..40).map(node).collect::<Vec<_>>());
    }

    #[test]
    fn who_alone_holds_anything_is_named() {
        let alone =
            |claims| chunks_of(claims, &all_alive(), None).pop().expect("a chunk").sole_holder;
        assert_eq!(alone(vec![list(1, geometry(1, 1), 9, 0..2)]), Some(node(1)));
        let two = vec![list(1, geometry(1, 1), 9, 0..1), list(2, geometry(2, 2), 9, 0..1)];
        assert_eq!(alone(two), None);
    }
}
