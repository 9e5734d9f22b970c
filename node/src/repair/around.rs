//! What nodes hold of some chunks, asked just now: what they listed may be of before.
//!
//! Owns the asking, in bounded time, and which shards together are enough. Decides nothing by it, and takes
//! nobody's silence for a word. The one idea: a question is small, one for all chunks that a node may know of.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, NodeId, ShardIndex},
};
use copse_proto::{convert::Holding, status::Refusal};
use futures::{StreamExt as _, stream};
use tokio::time::Instant;

use super::shared::Shared;

/// Chunks of one question, at most: with the shards of the widest codes the answer still fits its message.
const CHUNKS_AT_ONCE: usize = 256;

/// Nodes asked at one time, and how long each is waited for: it looks into its index only. Who needs longer
/// is asked again in the next round.
const ASKED_AT_ONCE: usize = 8;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long all questions of a round may take, of one who asks.
pub(super) const ROUND_TIME_MAX: Duration = Duration::from_secs(15);

/// Whom to ask about which chunks.
pub(super) type Questions = BTreeMap<NodeId, Vec<ChunkId>>;

/// What nodes said.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) said: BTreeMap<(ChunkId, NodeId), Holding>,
    /// Who was asked, and refused or said nothing in time.
    pub(super) silent: BTreeSet<NodeId>,
}

impl Answers {
    /// Asks nodes about chunks until then; who was not asked by then has not said anything.
    pub(super) async fn ask(&mut self, shared: &Shared, asked: Questions, until: Instant) {
        let all = stream::iter(asked).map(async |(node, chunks)| {
            let mut said = Vec::new();
            for part in chunks.chunks(CHUNKS_AT_ONCE) {
                let answer = holdings(shared, node, part);
                match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
                    Ok(Ok(answer)) => said.extend(part.iter().copied().zip(answer)),
                    // Who is silent once is not asked more.
                    _ => return (node, said, true),
                }
            }
            (node, said, false)
        });
        let all = all.buffer_unordered(ASKED_AT_ONCE).for_each(|(node, said, is_silent)| {
            self.said.extend(said.into_iter().map(|(chunk, holding)| ((chunk, node), holding)));
            self.silent.extend(is_silent.then_some(node));
            std::future::ready(())
        });
        let _ = tokio::time::timeout_at(until, all).await;
    }

    /// What was said of a chunk, and by whom.
    pub(super) fn of_chunk(&self, chunk: ChunkId) -> impl Iterator<Item = (NodeId, &Holding)> {
        let [first, last] = [0, u8::MAX].map(|byte| (chunk, NodeId::new([byte; 32])));
        self.said.range(first..=last).map(|((_, node), holding)| (*node, holding))
    }

    /// The shards of a chunk that somebody says to hold.
    pub(super) fn indices(&self, chunk: ChunkId) -> impl Iterator<Item = ShardIndex> {
        self.of_chunk(chunk).flat_map(|(_, holding)| holding.indices.iter().copied())
    }
}

/// Whether so many different shards of a chunk are among these.
pub(super) fn are_enough(
    shards: impl Iterator<Item = ShardIndex>,
    geometry: Geometry,
    needed: usize,
) -> bool {
    let real = shards.filter(|index| index.as_usize() < geometry.total());
    real.collect::<BTreeSet<_>>().len() >= needed
}

/// What one node says, this one too.
async fn holdings(
    shared: &Shared,
    node: NodeId,
    chunks: &[ChunkId],
) -> Result<Vec<Holding>, Refusal> {
    if node != shared.own {
        return shared.exchange.holdings(node, chunks).await;
    }
    let mut all = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let held = shared.store.held(*chunk).await;
        let indices = held.map_err(|error| crate::refusals::of_read(&error))?;
        let unsettled = shared.unsettled.is_unsettled(chunk, &indices);
        all.push(Holding { indices, unsettled });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_different_shards_that_the_chunk_has_are_counted() {
        let geometry = Geometry::new(2, 1).expect("a geometry");
        let check = |shards: &[u8], needed: usize, expected: bool| {
            let indices = shards.iter().map(|index| ShardIndex(*index));
            assert_eq!(are_enough(indices, geometry, needed), expected, "{shards:?}");
        };
        check(&[0, 2], 2, true);
        check(&[0, 0], 2, false);
        check(&[0, 3], 2, false);
        check(&[2, 1, 0, 1], 3, true);
        check(&[2, 1, 1], 3, false);
        check(&[], 0, true);
    }
}
