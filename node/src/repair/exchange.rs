//! Shards to and from other nodes in the background: paced, verified, proved.
//!
//! Owns what repair does with another node: ask what it has of a chunk, get a shard, put one, have
//! one proved. Believes nothing: every answer is checked against the chunk's
//! descriptor, and what a node did wrong is told to [`super::trust`].

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use copse_core::{
    descriptor::Descriptor,
    ids::{ChunkId, NetworkId, NodeId, ShardId, ShardIndex},
    random::Random,
    repair::{self, Lane},
    shard_tree,
};
use copse_proto::{
    convert::{self, Holding},
    door,
    holdings::ListedShard,
    peer,
    status::{Reason, Refusal},
};

use super::{
    pace::Pace,
    proofs::Proofs,
    trust::{Fault, Trust},
};
use crate::{
    beside::beside,
    peer::{Op, Outcome, PeerError, pool::PeerPool},
    store::VerifiedShard,
};

/// Shards to and from other nodes. Clones are the same one.
#[derive(Clone)]
pub(super) struct Exchange(Arc<Inner>);

struct Inner {
    network: NetworkId,
    peers: PeerPool,
    pace: Pace,
    trust: Trust,
    proofs: Proofs,
    random: Mutex<Random>,
}

impl Exchange {
    pub(super) fn new(
        network: NetworkId,
        peers: PeerPool,
        pace: Pace,
        (trust, proofs): (Trust, Proofs),
        seed: &[u8; 32],
    ) -> Self {
        let random = Mutex::new(Random::new(seed, "repair proofs"));
        Self(Arc::new(Inner { network, peers, pace, trust, proofs, random }))
    }

    /// Asks a node something.
    pub(super) async fn ask(
        &self,
        node: NodeId,
        op: Op,
        lane: Lane,
    ) -> Result<(Outcome, Bytes), PeerError> {
        let background = lane == Lane::Normal;
        let answer = self.0.peers.request_as(node, op, Bytes::new(), background).await?;
        Ok((answer.outcome, answer.body))
    }

    /// Which shards of a chunk a node says it has.
    pub(super) async fn has(
        &self,
        node: NodeId,
        chunk: ChunkId,
    ) -> Result<Vec<ShardIndex>, Refusal> {
        Ok(self.holdings(node, &[chunk]).await?.pop().unwrap_or_default().indices)
    }

    /// What a node says it has of some chunks, 1024 at most.
    pub(super) async fn holdings(
        &self,
        node: NodeId,
        chunks: &[ChunkId],
    ) -> Result<Vec<Holding>, Refusal> {
        let chunk_ids = chunks.iter().map(|chunk| chunk.as_bytes().to_vec()).collect();
        let request = door::HasRequest { target: Vec::new(), chunk_ids };
        match self.ask(node, Op::HasShards(request), Lane::Normal).await? {
            (Outcome::HasShards(reply), _) => Ok(convert::has_reply(&reply, chunks.len())?),
            _ => Err(PeerError::BadReply { node }.into()),
        }
    }

    /// A whole shard that a node said it has.
    pub(super) async fn get(
        &self,
        node: NodeId,
        id: ShardId,
        lane: Lane,
    ) -> Result<VerifiedShard, Refusal> {
        let (header, data) = self.read(node, id, Asked::WHOLE, lane).await?;
        let checked =
            beside(move || VerifiedShard::check(header.descriptor.into(), id.index, data));
        match checked.await {
            Ok(Ok(shard)) if shard.id() == id => Ok(shard),
            Ok(_) => Err(self.caught(node, id, Fault::WrongBytes)),
            Err(error) => Err(Refusal::new(Reason::Internal, error.to_string())),
        }
    }

    /// Stores a shard on a node; how many bytes were sent. The node's receipt is checked.
    pub(super) async fn put(
        &self,
        node: NodeId,
        descriptor: &Descriptor,
        id: ShardId,
        data: Bytes,
        lane: Lane,
        abandoned: bool,
    ) -> Result<u64, Refusal> {
        let (shard_bytes, sent) = (data.len(), data.len() as u64);
        self.0.pace.take(sent, lane).await?;
        let op = Op::PutShard(peer::PutShard {
            descriptor: descriptor.encode(),
            index: id.index.0.into(),
            settles: false,
            abandoned,
        });
        let answer = self.0.peers.request_as(node, op, data, lane == Lane::Normal).await?;
        let Outcome::PutShard(receipt) = answer.outcome else {
            return Err(PeerError::BadReply { node }.into());
        };
        let stored = convert::check_receipt(&receipt, self.0.network, node, id, shard_bytes);
        stored.map(|()| sent).map_err(|error| {
            let text = format!("node {node} gave no good receipt for shard {id}: {error}");
            Refusal::new(Reason::BadReply, text)
        })
    }

    /// Tells a node that a chunk was stored: a mark that it has at it goes.
    pub(super) async fn settle(&self, node: NodeId, chunk: ChunkId) -> Result<(), Refusal> {
        let settled = vec![chunk.as_bytes().to_vec()];
        let op = Op::MarkChunks(peer::MarkChunks { settled, ..peer::MarkChunks::default() });
        match self.ask(node, op, Lane::Normal).await.map_err(Refusal::from) {
            Ok((Outcome::MarkChunks(_), _)) => Ok(()),
            Ok(_) => Err(PeerError::BadReply { node }.into()),
            // One of an older version has no marks.
            Err(refusal) if refusal.reason() == Reason::UnknownOperation => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    /// Has a node prove that it holds a shard, by a random group of it.
    pub(super) async fn prove(
        &self,
        node: NodeId,
        descriptor: &Descriptor,
        id: ShardId,
        use_of_it: Use,
    ) -> Result<(), Refusal> {
        let wanted = self.random_range(descriptor.shard_bytes() as u64);
        let asked = Asked::group(&wanted, use_of_it);
        let (header, data) = self.read(node, id, asked, Lane::Emergency).await?;
        if proves(descriptor, id, &wanted, &header, &data) {
            self.0.trust.passed(node);
            Ok(())
        } else {
            Err(self.caught(node, id, Fault::WrongBytes))
        }
    }

    /// Checks a claim of a node by a random group, without knowing the chunk's descriptor.
    pub(super) async fn audit(&self, node: NodeId, shard: &ListedShard) -> Result<(), Refusal> {
        let id = shard.id;
        let wanted = self.random_range(shard.shard_bytes.into());
        let asked = Asked::group(&wanted, Use::Knowing);
        let (header, data) = self.read(node, id, asked, Lane::Emergency).await?;
        let descriptor = convert::descriptor(&header.descriptor);
        let Some(descriptor) = descriptor.ok().filter(|found| found.id() == id.chunk) else {
            return Err(self.caught(node, id, Fault::WrongBytes));
        };
        let shape = (descriptor.geometry(), descriptor.shard_bytes() as u64);
        if shape != (shard.geometry, shard.shard_bytes.into()) {
            return Err(self.caught(node, id, Fault::WrongShape));
        }
        if !proves(&descriptor, id, &wanted, &header, &data) {
            return Err(self.caught(node, id, Fault::WrongBytes));
        }
        self.0.trust.passed(node);
        Ok(())
    }

    /// The descriptor of a chunk, from a node that says that it has a shard of it.
    pub(super) async fn descriptor(
        &self,
        node: NodeId,
        id: ShardId,
    ) -> Result<Descriptor, Refusal> {
        let asked = Asked::group(&(0..1), Use::Knowing);
        let (header, _) = self.read(node, id, asked, Lane::Emergency).await?;
        match convert::descriptor(&header.descriptor) {
            Ok(descriptor) if descriptor.id() == id.chunk => Ok(descriptor),
            _ => Err(self.caught(node, id, Fault::WrongBytes)),
        }
    }

    /// Notes that a node lists a shard in a shape that its chunk does not have.
    pub(super) fn told_wrong_shape(&self, node: NodeId, id: ShardId) {
        let _ = self.caught(node, id, Fault::WrongShape);
    }

    fn random_range(&self, shard_bytes: u64) -> Range<u64> {
        let mut random = self.0.random.lock().unwrap_or_else(PoisonError::into_inner);
        repair::proof_range(shard_bytes, &mut random)
    }

    /// Reads from a node.
    async fn read(
        &self,
        node: NodeId,
        id: ShardId,
        asked: Asked,
        lane: Lane,
    ) -> Result<(door::GetHeader, Bytes), Refusal> {
        let op = Op::GetShard(door::GetRequest {
            target: Vec::new(),
            chunk_id: id.chunk.as_bytes().to_vec(),
            index: id.index.0.into(),
            offset: asked.offset,
            length: asked.length,
            counted_on: asked.counted_on,
        });
        match self.ask(node, op, lane).await {
            Ok((Outcome::GetShard(header), body)) => {
                self.0.proofs.given(node);
                Ok((header, body))
            }
            Ok(_) => Err(PeerError::BadReply { node }.into()),
            Err(error) => {
                let refusal = Refusal::from(error);
                // It may have dropped the shard since it said that it has it. Does it still say so?
                let lies = refusal.reason() == Reason::NotHeld
                    && self.has(node, id.chunk).await?.contains(&id.index);
                if lies { Err(self.caught(node, id, Fault::NotHeld)) } else { Err(refusal) }
            }
        }
    }

    /// Notes what a node did wrong.
    fn caught(&self, node: NodeId, id: ShardId, fault: Fault) -> Refusal {
        self.0.trust.caught(node, id, fault);
        let text = format!("node {node} {fault} (shard {id})");
        Refusal::new(Reason::BadReply, text).about("node", node)
    }
}

/// What a proof is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// To know that the shard is there.
    Knowing,
    /// To drop one's own: the other keeps its own for a while (see `pins`).
    DroppingOnes,
}

/// What is read of a shard; length 0 is all of it.
struct Asked {
    offset: u64,
    length: u64,
    counted_on: bool,
}

impl Asked {
    const WHOLE: Self = Self { offset: 0, length: 0, counted_on: false };

    fn group(wanted: &Range<u64>, use_of_it: Use) -> Self {
        let counted_on = use_of_it == Use::DroppingOnes;
        Self { offset: wanted.start, length: wanted.end - wanted.start, counted_on }
    }
}

/// Whether an answer proves the wanted bytes of a shard.
fn proves(
    descriptor: &Descriptor,
    id: ShardId,
    wanted: &Range<u64>,
    header: &door::GetHeader,
    data: &[u8],
) -> bool {
    let bytes = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let start = bytes(header.covered_offset);
    let covered = start..start.saturating_add(bytes(header.covered_length));
    let shard_bytes = descriptor.shard_bytes();
    covered.start <= bytes(wanted.start)
        && bytes(wanted.end) <= covered.end
        && descriptor.shard_hash(id.index).is_some_and(|hash| {
            shard_tree::verify(hash, shard_bytes, &covered, data, &header.proof).is_ok()
        })
}
