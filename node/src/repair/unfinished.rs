//! Chunks of which too few shards are known: lost, of a put that was never completed, or just not told yet?
//!
//! Owns the question, to all who hold something of such a chunk, and what they said. It refuses to guess:
//! only when every holder says that its shards came by a put that is not settled, and one at least holds
//! some, the chunk is unfinished; no answer and no mark is a loss. So is a chunk of which enough shards were
//! ever claimed, whatever is said of the rest. But lost is a word that is said last: before, all are asked
//! who may hold a shard, for nodes tell one after the other what they hold, and what is put meanwhile is
//! known of some and not of others. What was said is asked again and again: holders may hear that a chunk is
//! safe without any change of what they hold. Decides nothing about what is repaired.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Bound, RangeInclusive},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, NodeId, ShardIndex},
    repair::{ChunkFacts, Nodes as _, Standing},
    ring::Ring,
};
use copse_proto::{convert::Holding, status::Refusal};
use futures::{StreamExt as _, stream};
use tokio::time::Instant;

use super::{claims::TOLD_WITHIN, facts::Facts, shared::Shared};

/// Chunks asked about in a round, at most, of which half are those that were asked about before; what is
/// beyond counts as lost until its turn comes.
const ASKED_MAX: usize = 1024;

/// How long all questions of a round may take.
const ROUND_TIME_MAX: Duration = Duration::from_secs(15);

/// Chunks of one question, at most: with the shards of the widest codes the answer still fits its message.
const CHUNKS_AT_ONCE: usize = 256;

/// Nodes asked at one time, and how long each is waited for.
const ASKED_AT_ONCE: usize = 8;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Chunks that are remembered, at most: some 10 MB. What is beyond counts as lost.
const REMEMBERED_MAX: usize = 1 << 16;

/// How far along the walk others than the known holders are asked, in nodes for each shard: as far as clients
/// put shards when few nodes are full.
const ASKED_PER_SHARD: usize = 2;

/// A chunk of which too few shards are known.
#[derive(Debug, Clone)]
pub(super) struct Doubtful {
    pub(super) chunk: ChunkId,
    geometry: Geometry,
    /// Who says to hold some of it, and may know better than others.
    holders: Vec<NodeId>,
}

/// What was found out about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Its put goes on or was never completed.
    Unfinished,
    /// Enough of its shards are said to be there, of which those who list them have not told yet.
    Enough,
    /// It cannot be read, and somebody may have been told that it is stored.
    Lost,
}

/// What nodes said of chunks.
type Answers = BTreeMap<(ChunkId, NodeId), Holding>;

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
    /// How long may still be asked in this round.
    time: Duration,
}

struct Said {
    geometry: Geometry,
    holders: Vec<NodeId>,
    found: Found,
    /// Since when enough is said to be there that nobody lists.
    enough_since: Option<Instant>,
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
    let holders = holders.into_iter().filter(counts).collect();
    Some(Doubtful { chunk: chunk.chunk, geometry: chunk.geometry, holders })
}

impl Doubtful {
    /// Whether all that is held is of a put that is not settled, as far as anybody answered.
    fn verdict(&self, answers: &Answers) -> Option<bool> {
        let listed = |node: &NodeId| self.holders.contains(node);
        let said = of_chunk(answers, self.chunk);
        let said = said.map(|(node, holding)| Some((holding, listed(&node))));
        let is_silent = |node: &&NodeId| !answers.contains_key(&(self.chunk, **node));
        verdict(said.chain(self.holders.iter().filter(is_silent).map(|_| None)))
    }

    /// Whether enough shards to read it are said to be there.
    fn is_enough(&self, answers: &Answers) -> bool {
        let (total, needed) = (self.geometry.total(), self.geometry.data());
        let held = of_chunk(answers, self.chunk).flat_map(|(_, holding)| &holding.indices);
        let held: BTreeSet<_> = held.filter(|index| index.as_usize() < total).collect();
        held.len() >= needed
    }
}

impl Said {
    /// Takes in what was answered now.
    fn hear(&mut self, it: &Doubtful, answers: &Answers) -> Found {
        let is_enough = it.is_enough(answers);
        if is_enough {
            // Not anew when it was silent in between.
            self.enough_since.get_or_insert_with(Instant::now);
        }
        let since = self.enough_since.filter(|_| is_enough);
        self.found = match it.verdict(answers) {
            Some(true) => Found::Unfinished,
            // Silence takes back nothing that the same holders said before.
            None if self.found == Found::Unfinished => Found::Unfinished,
            // Who says so when asked, and does not list it, is not believed for ever.
            _ if since.is_some_and(|since| since.elapsed() < TOLD_WITHIN) => Found::Enough,
            _ => Found::Lost,
        };
        self.found
    }
}

impl Unfinished {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new round: so many questions may be asked again.
    pub(super) fn begin_round(&self) {
        let mut state = self.lock();
        state.left = ASKED_MAX;
        state.time = ROUND_TIME_MAX;
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
        let (time, asked) = {
            let mut state = self.lock();
            // Behind those of the last round, and from the beginning then.
            let last = state.asked.unwrap_or(ChunkId::new([u8::MAX; 32]));
            let behind = state.chunks.range((Bound::Excluded(last), Bound::Unbounded));
            let turn = behind.chain(state.chunks.range(..=last)).take(state.left / 2);
            let said = |(&chunk, said): (&ChunkId, &Said)| {
                let (geometry, holders) = (said.geometry, said.holders.clone());
                (Doubtful { chunk, geometry, holders }, said.found)
            };
            let next: Vec<(Doubtful, Found)> = turn.map(said).collect();
            state.asked = next.last().map(|(it, _)| it.chunk);
            // The other half is for those that are new.
            (state.time / 2, next)
        };
        let before: Vec<(ChunkId, Found)> =
            asked.iter().map(|(it, found)| (it.chunk, *found)).collect();
        let asked = asked.into_iter().map(|(it, _)| it).collect();
        let now = self.ask(shared, nodes, asked, time).await;
        let is_new =
            |(chunk, before): &(ChunkId, Found)| now.get(chunk).is_some_and(|now| now != before);
        before.iter().filter(|it| is_new(it)).map(|(chunk, _)| Ring::arc(chunk)).collect()
    }

    /// What is found out about these chunks, all that are doubtful in these arcs; the others are lost.
    pub(super) async fn of(
        &self,
        shared: &Shared,
        nodes: &Facts,
        arcs: &[u16],
        doubtful: Vec<Doubtful>,
    ) -> BTreeMap<ChunkId, Found> {
        let (mut known, mut new) = (BTreeMap::new(), Vec::new());
        {
            let mut state = self.lock();
            let mut before = BTreeMap::new();
            for arc in arcs {
                let of_arc = state.chunks.range(chunks_of(*arc)).map(|(chunk, _)| *chunk);
                for chunk in of_arc.collect::<Vec<_>>() {
                    before.extend(state.chunks.remove_entry(&chunk));
                }
            }
            for it in doubtful {
                let (geometry, holders) = (it.geometry, it.holders.clone());
                let said = match before.remove(&it.chunk) {
                    Some(said) if said.found == Found::Unfinished && said.holders == holders => {
                        known.insert(it.chunk, Found::Unfinished);
                        said
                    }
                    said => {
                        let enough_since = said.and_then(|said| said.enough_since);
                        Said { geometry, holders, found: Found::Lost, enough_since }
                    }
                };
                if state.chunks.len() < REMEMBERED_MAX {
                    state.chunks.insert(it.chunk, said);
                }
                if !known.contains_key(&it.chunk) {
                    new.push(it);
                }
            }
        }
        let time = self.lock().time;
        known.extend(self.ask(shared, nodes, new, time).await);
        known
    }

    /// Asks about chunks, and notes what is said: their holders first, and of what would be lost all who may
    /// hold shards; as far as they can be reached. What was found out about those for which there was time.
    async fn ask(
        &self,
        shared: &Shared,
        nodes: &Facts,
        mut doubtful: Vec<Doubtful>,
        time: Duration,
    ) -> BTreeMap<ChunkId, Found> {
        let began = Instant::now();
        {
            let mut state = self.lock();
            doubtful.retain(|it| state.chunks.contains_key(&it.chunk));
            doubtful.truncate(state.left);
            state.left -= doubtful.len();
            if doubtful.is_empty() {
                return BTreeMap::new();
            }
            if time.is_zero() {
                // Nobody was asked.
                state.left = 0;
                return BTreeMap::new();
            }
        }
        let until = began + time;
        let can_tell = |node: &NodeId| {
            let facts = nodes.facts(node);
            facts.trusted && facts.standing.is_reachable()
        };
        let mut answers = Answers::new();
        let mut asked = BTreeMap::<NodeId, Vec<ChunkId>>::new();
        for it in &doubtful {
            for node in it.holders.iter().filter(|node| can_tell(node)) {
                asked.entry(*node).or_default().push(it.chunk);
            }
        }
        question(shared, asked, until, &mut answers).await;
        let (view, mut others) = (shared.views.now(), BTreeMap::<NodeId, Vec<ChunkId>>::new());
        for it in doubtful.iter().filter(|it| it.verdict(&answers) != Some(true)) {
            let around = view.ring.around(Ring::arc(&it.chunk), it.geometry, ASKED_PER_SHARD);
            for node in around.filter(|node| can_tell(node) && !it.holders.contains(node)) {
                others.entry(node).or_default().push(it.chunk);
            }
        }
        question(shared, others, until, &mut answers).await;
        let mut state = self.lock();
        state.time = state.time.saturating_sub(began.elapsed());
        let hear = |it: Doubtful| {
            let said = state.chunks.get_mut(&it.chunk)?;
            Some((it.chunk, said.hear(&it, &answers)))
        };
        doubtful.into_iter().filter_map(hear).collect()
    }
}

/// Asks nodes about chunks until then; who did not answer by then has not answered.
async fn question(
    shared: &Shared,
    asked: BTreeMap<NodeId, Vec<ChunkId>>,
    until: Instant,
    answers: &mut Answers,
) {
    let all = stream::iter(asked).map(async |(node, chunks)| {
        let mut said = Vec::new();
        for part in chunks.chunks(CHUNKS_AT_ONCE) {
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, holdings(shared, node, part)).await;
            // Who is silent once is not asked more.
            let Ok(Ok(answer)) = answer else { break };
            said.extend(part.iter().map(|chunk| (*chunk, node)).zip(answer));
        }
        said
    });
    let all = all.buffer_unordered(ASKED_AT_ONCE).for_each(|said| {
        answers.extend(said);
        std::future::ready(())
    });
    let _ = tokio::time::timeout_at(until, all).await;
}

/// What was said of a chunk, and by whom.
fn of_chunk(answers: &Answers, chunk: ChunkId) -> impl Iterator<Item = (NodeId, &Holding)> {
    let [first, last] = [0, u8::MAX].map(|byte| (chunk, NodeId::new([byte; 32])));
    answers.range(first..=last).map(|((_, node), holding)| (*node, holding))
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
/// better, and nobody says otherwise. Who does not list what it holds, so that nobody can check it, has no say
/// in favour.
fn verdict<'a>(said: impl Iterator<Item = Option<(&'a Holding, bool)>>) -> Option<bool> {
    let (mut holds, mut silent) = (false, false);
    for answer in said {
        match answer {
            None => silent = true,
            Some((holding, _)) if holding.indices.is_empty() => {}
            Some((holding, is_listed)) if holding.unsettled => holds |= is_listed,
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

    #[tokio::test(start_paused = true)]
    async fn enough_that_nobody_lists_is_believed_for_a_while() {
        let (chunk, node) = (ChunkId::new([1; 32]), NodeId::new([2; 32]));
        let geometry = Geometry::new(2, 1).expect("a geometry");
        let it = Doubtful { chunk, geometry, holders: vec![node] };
        let (holders, found) = (it.holders.clone(), Found::Lost);
        let mut said = Said { geometry, holders, found, enough_since: None };
        let answer = |shards: &[u8]| {
            let indices = shards.iter().map(|index| ShardIndex(*index)).collect();
            Answers::from([((chunk, node), Holding { indices, unsettled: false })])
        };
        // The last is no shard of such a chunk.
        assert_eq!(said.hear(&it, &answer(&[0, 3])), Found::Lost);
        assert_eq!(said.hear(&it, &answer(&[0, 2])), Found::Enough);
        tokio::time::advance(TOLD_WITHIN).await;
        assert_eq!(said.hear(&it, &answer(&[0, 2])), Found::Lost);
        // Who says less for once has no more time for that.
        assert_eq!(said.hear(&it, &answer(&[0])), Found::Lost);
        assert_eq!(said.hear(&it, &answer(&[0, 1])), Found::Lost);
    }

    #[test]
    fn only_when_all_say_so_a_chunk_is_unfinished() {
        let holding = |shards: u8, unsettled| {
            Some(Holding { indices: (0..shards).map(ShardIndex).collect(), unsettled })
        };
        let check = |said: &[Option<Holding>], expected: Option<bool>| {
            let listed = said.iter().map(|said| said.as_ref().map(|said| (said, true)));
            assert_eq!(verdict(listed), expected, "{said:?}");
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
        // Nor has who does not list it; against it, everybody has.
        let [for_it, against] = [true, false].map(|unsettled| holding(1, unsettled));
        let said = |one, other| [one, other].into_iter().map(|said: (&_, _)| Some(said));
        let (for_it, against) = (for_it.as_ref().expect("one"), against.as_ref().expect("one"));
        assert_eq!(verdict([Some((for_it, false))].into_iter()), Some(false));
        assert_eq!(verdict(said((for_it, true), (for_it, false))), Some(true));
        assert_eq!(verdict(said((for_it, true), (against, false))), Some(false));
    }
}
