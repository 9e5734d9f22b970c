//! Chunks of which too few shards exist: lost, or of a put that was never completed?
//!
//! Owns the question, to all who hold something of such a chunk, and what they said. It refuses to guess:
//! only when every holder says that its shards came by a put that is not settled, and one at least holds
//! some, the chunk is not lost; no answer and no mark is a loss. So is a chunk of which enough shards were
//! ever claimed, whatever is said of the rest. What was said is asked again and again: holders may hear
//! that a chunk is safe without any change of what they hold. Decides nothing about what is repaired.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Bound, RangeInclusive},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_core::{
    ids::{ChunkId, NodeId, ShardIndex},
    repair::{ChunkFacts, Nodes as _, Standing},
    ring::Ring,
};
use copse_proto::{
    convert::{HAS_CHUNKS_MAX, Holding},
    status::Refusal,
};
use futures::{StreamExt as _, stream};
use tokio::time::Instant;

use super::{facts::Facts, shared::Shared};

/// Chunks asked about in a round, at most, of which half are those that were asked about before; what is
/// beyond counts as lost until its turn comes. One question carries so many.
const ASKED_MAX: usize = HAS_CHUNKS_MAX;

/// How long all questions of a round may take.
const ROUND_TIME_MAX: Duration = Duration::from_secs(15);

/// Nodes asked at one time, and how long each is waited for.
const ASKED_AT_ONCE: usize = 8;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Chunks that are remembered, at most: some 10 MB. What is beyond counts as lost.
const REMEMBERED_MAX: usize = 1 << 16;

/// A chunk, and who says to hold some of it and may know better than others.
pub(super) type Doubtful = (ChunkId, Vec<NodeId>);

/// What holders said.
#[derive(Default)]
pub(super) struct Unfinished(Mutex<State>);

#[derive(Default)]
struct State {
    chunks: BTreeMap<ChunkId, Said>,
    /// Behind this one it goes on.
    asked: Option<ChunkId>,
    /// What is left of this round.
    left: usize,
    until: Option<Instant>,
}

struct Said {
    holders: Vec<NodeId>,
    unfinished: bool,
}

/// Who holds some of a chunk, of those whose word counts and who were not given up; none if enough of its
/// shards were ever claimed, by whomever, also by nodes that are gone: then it could be read, and somebody
/// may have been told that it is stored.
pub(super) fn doubtful(chunk: &ChunkFacts, nodes: &Facts) -> Option<Doubtful> {
    let total = chunk.geometry.total();
    let ever = chunk.claims.iter().map(|claim| claim.index);
    let ever: BTreeSet<ShardIndex> = ever.filter(|index| index.as_usize() < total).collect();
    if ever.len() >= chunk.geometry.data() {
        return None;
    }
    let counts = |node: &NodeId| {
        let facts = nodes.facts(node);
        let is_gone = matches!(facts.standing, Standing::Dead | Standing::Left | Standing::Unknown);
        facts.trusted && !is_gone
    };
    let holders: BTreeSet<NodeId> = chunk.claims.iter().map(|claim| claim.node).collect();
    Some((chunk.chunk, holders.into_iter().filter(counts).collect()))
}

impl Unfinished {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new round: so many questions may be asked again.
    pub(super) fn begin_round(&self) {
        let mut state = self.lock();
        state.left = ASKED_MAX;
        state.until = Some(Instant::now() + ROUND_TIME_MAX);
    }

    /// Whether more might have been asked in this round: some counts as lost only since its turn has not come.
    pub(super) fn is_behind(&self) -> bool {
        self.lock().left == 0
    }

    /// Forgets what was said of arcs that others look after now.
    pub(super) fn forget(&self, arcs: &BTreeSet<u16>) {
        self.lock().chunks.retain(|chunk, _| !arcs.contains(&Ring::arc(chunk)));
    }

    /// Asks once more about some of those that were asked about before: a client may have gone away since, or
    /// a chunk be safe of which then too much was lost. The arcs of those of which something else is said now.
    pub(super) async fn again(&self, shared: &Shared, nodes: &Facts) -> BTreeSet<u16> {
        let (asked, before): (Vec<Doubtful>, Vec<bool>) = {
            let mut state = self.lock();
            // Behind those of the last round, and from the beginning then.
            let last = state.asked.unwrap_or(ChunkId::new([u8::MAX; 32]));
            let behind = state.chunks.range((Bound::Excluded(last), Bound::Unbounded));
            let turn = behind.chain(state.chunks.range(..=last)).take(state.left / 2);
            let said = |(chunk, said): (&ChunkId, &Said)| {
                ((*chunk, said.holders.clone()), said.unfinished)
            };
            let next: (Vec<Doubtful>, Vec<bool>) = turn.map(said).unzip();
            state.asked = next.0.last().map(|(chunk, _)| *chunk);
            next
        };
        let before: Vec<(ChunkId, bool)> =
            asked.iter().map(|(chunk, _)| *chunk).zip(before).collect();
        let now = self.ask(shared, nodes, asked).await;
        let changed = before.into_iter().filter(|(chunk, before)| now.contains(chunk) != *before);
        changed.map(|(chunk, _)| Ring::arc(&chunk)).collect()
    }

    /// Which of these chunks are unfinished; all that are doubtful in these arcs.
    pub(super) async fn of(
        &self,
        shared: &Shared,
        nodes: &Facts,
        arcs: &[u16],
        doubtful: Vec<Doubtful>,
    ) -> BTreeSet<ChunkId> {
        let (mut known, mut new) = (BTreeSet::new(), Vec::new());
        {
            let mut state = self.lock();
            let before = |(chunk, holders): &Doubtful| {
                let said = state.chunks.get(chunk).filter(|said| said.holders == *holders);
                said.is_some_and(|said| said.unfinished)
            };
            for chunk in doubtful {
                if before(&chunk) {
                    known.insert(chunk.0);
                } else {
                    new.push(chunk);
                }
            }
            for arc in arcs {
                let before = state.chunks.range(chunks_of(*arc)).map(|(chunk, _)| *chunk);
                let gone: Vec<ChunkId> = before.filter(|chunk| !known.contains(chunk)).collect();
                for chunk in gone {
                    state.chunks.remove(&chunk);
                }
            }
            for (chunk, holders) in &new {
                if state.chunks.len() < REMEMBERED_MAX {
                    let said = Said { holders: holders.clone(), unfinished: false };
                    state.chunks.insert(*chunk, said);
                }
            }
        }
        known.extend(self.ask(shared, nodes, new).await);
        known
    }

    /// Asks the holders of chunks, as far as they can be reached, and notes what they say; those that are
    /// unfinished.
    async fn ask(
        &self,
        shared: &Shared,
        nodes: &Facts,
        mut doubtful: Vec<Doubtful>,
    ) -> BTreeSet<ChunkId> {
        let until = {
            let mut state = self.lock();
            doubtful.retain(|(chunk, _)| state.chunks.contains_key(chunk));
            doubtful.truncate(state.left);
            state.left -= doubtful.len();
            state.until
        };
        let mut asked = BTreeMap::<NodeId, Vec<ChunkId>>::new();
        for (chunk, holders) in &doubtful {
            for node in holders.iter().filter(|node| nodes.facts(node).standing.is_reachable()) {
                asked.entry(*node).or_default().push(*chunk);
            }
        }
        let mut answers = BTreeMap::<(ChunkId, NodeId), Holding>::new();
        let all = stream::iter(asked).map(async |(node, chunks)| {
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, holdings(shared, node, &chunks));
            (node, answer.await.ok().and_then(Result::ok), chunks)
        });
        let all = all.buffer_unordered(ASKED_AT_ONCE).for_each(|(node, answer, chunks)| {
            for (chunk, holding) in chunks.iter().zip(answer.into_iter().flatten()) {
                answers.insert((*chunk, node), holding);
            }
            std::future::ready(())
        });
        // Who did not answer by then has not answered.
        let _ = tokio::time::timeout_at(until.unwrap_or_else(Instant::now), all).await;
        let mut state = self.lock();
        let mut unfinished = BTreeSet::new();
        for (chunk, holders) in doubtful {
            let now = verdict(holders.iter().map(|node| answers.get(&(chunk, *node))));
            let Some(said) = state.chunks.get_mut(&chunk) else { continue };
            // Silence takes back nothing that the same holders said before.
            said.unfinished = now.unwrap_or(said.unfinished);
            if said.unfinished {
                unfinished.insert(chunk);
            }
        }
        unfinished
    }
}

/// All chunks that an arc can have.
fn chunks_of(arc: u16) -> RangeInclusive<ChunkId> {
    let [high, low] = arc.to_be_bytes();
    let (mut first, mut last) = ([0; 32], [u8::MAX; 32]);
    for end in [&mut first, &mut last] {
        end[0] = high;
        end[1] = low;
    }
    ChunkId::new(first)..=ChunkId::new(last)
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

/// Whether all that is held is of a put that is not settled; none if one did not answer, and so might know
/// better, and nobody says otherwise.
fn verdict<'a>(said: impl Iterator<Item = Option<&'a Holding>>) -> Option<bool> {
    let (mut holds, mut silent) = (false, false);
    for answer in said {
        match answer {
            None => silent = true,
            Some(holding) if holding.indices.is_empty() => {}
            Some(holding) if holding.unsettled => holds = true,
            Some(_) => return Some(false),
        }
    }
    (!silent).then_some(holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chunks_of_an_arc_are_a_range() {
        for arc in [0, 1, 0x01ff, u16::MAX] {
            let range = chunks_of(arc);
            assert_eq!((Ring::arc(range.start()), Ring::arc(range.end())), (arc, arc));
        }
    }

    #[test]
    fn only_when_all_say_so_a_chunk_is_unfinished() {
        let holding = |shards: u8, unsettled| {
            Some(Holding { indices: (0..shards).map(ShardIndex).collect(), unsettled })
        };
        let check = |said: &[Option<Holding>], expected: Option<bool>| {
            assert_eq!(verdict(said.iter().map(Option::as_ref)), expected, "{said:?}");
        };
        check(&[], Some(false));
        check(&[holding(1, true)], Some(true));
        check(&[holding(1, true), holding(2, true)], Some(true));
        check(&[holding(1, true), holding(2, false)], Some(false));
        // Who is silent might know better.
        check(&[holding(1, true), None], None);
        check(&[None, holding(1, true), holding(1, false)], Some(false));
        check(&[None], None);
        // Who dropped it since has no word.
        check(&[holding(1, true), holding(0, false)], Some(true));
        check(&[holding(0, false)], Some(false));
        check(&[holding(0, true)], Some(false));
    }
}
