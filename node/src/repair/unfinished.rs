//! Chunks that seem to lack shards: lost, thin, of a put that goes on or was broken off, or just not told yet?
//!
//! Owns the question, to all who hold something of such a chunk, and what they said. It refuses to guess:
//! only when every holder says that its shards came by a put that is not settled, and one at least holds
//! some, the chunk is unfinished; no answer and no mark is a loss. So is a chunk of which enough shards were
//! ever claimed, whatever is said of the rest. But lost, and thin, are words that are said last: before, all
//! are asked who may hold a shard, for nodes tell one after the other what they hold, and what is put meanwhile
//! is known of some and not of others. What was said is asked again and again: holders may hear that a chunk is
//! safe without any change of what they hold. Decides nothing about what is repaired, but that what is
//! unfinished is not made by others while its client may still bring it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Bound, RangeInclusive},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, NodeId},
    repair::{ChunkFacts, ChunkPlan, Nodes as _, Standing},
    ring::{CANDIDATES_PER_SHARD, Ring},
};
use copse_proto::convert::Holding;
use tokio::time::Instant;

use super::{
    around::{Answers, Questions, ROUND_TIME_MAX, are_enough},
    claims::TOLD_WITHIN,
    facts::Facts,
    report::has_too_few,
    shared::Shared,
};

/// Chunks asked about in a round, at most, of which half are those that were asked about before; what is
/// beyond counts as what it seems until its turn comes.
const ASKED_MAX: usize = 1024;

/// Chunks that are remembered, at most: some 10 MB. What is beyond counts as what it seems.
const REMEMBERED_MAX: usize = 1 << 16;

/// How long nodes are believed that say when asked that enough is there, and do not list it; and that a put goes
/// on which stored enough for a chunk to be read: who forwarded it may have crashed.
const EXCUSED_FOR: Duration = TOLD_WITHIN;

/// A chunk that seems to lack shards.
#[derive(Debug, Clone)]
pub(super) struct Doubtful {
    pub(super) chunk: ChunkId,
    geometry: Geometry,
    /// With so many different shards it would be as it should: k if it seems lost, n if it seems thin.
    needed: usize,
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
    /// It is as it seems, and somebody may have been told that it is stored.
    Lacking,
}

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
    /// Who did not answer in this round, and is not asked again in it.
    silent: BTreeSet<NodeId>,
}

struct Said {
    it: Doubtful,
    /// Its turn to be asked about has come.
    is_asked: bool,
    found: Found,
    /// Since when enough is said to be there that nobody lists, or what can be read is said to be on its way.
    excused_since: Option<Instant>,
}

/// A chunk that seems to lack shards by its plan, with those of its holders whose word counts and who were not
/// given up; none if they were ever claimed, by whomever, also by nodes that are gone: then it had them, and
/// somebody may have been told that it is stored.
pub(super) fn doubtful(chunk: &ChunkFacts, plan: &ChunkPlan, nodes: &Facts) -> Option<Doubtful> {
    let (geometry, sure) = (chunk.geometry, plan.strength.sure);
    let needed = match has_too_few(plan) {
        true => geometry.data(),
        false if sure >= geometry.data() && sure < geometry.total() => geometry.total(),
        false => return None,
    };
    if are_enough(chunk.claims.iter().map(|claim| claim.index), geometry, needed) {
        return None;
    }
    let counts = |node: &NodeId| {
        let facts = nodes.facts(node);
        let is_gone = matches!(facts.standing, Standing::Dead | Standing::Left | Standing::Unknown);
        facts.trusted && !is_gone
    };
    let holders: BTreeSet<NodeId> = chunk.claims.iter().map(|claim| claim.node).collect();
    let holders = holders.into_iter().filter(counts).collect();
    Some(Doubtful { chunk: chunk.chunk, geometry, needed, holders })
}

impl Doubtful {
    /// Whether it can be read as far as is known, and seems thin: not lost.
    fn is_readable(&self) -> bool {
        self.needed > self.geometry.data()
    }

    /// Whether all that is held is of a put that is not settled, as far as anybody answered.
    fn verdict(&self, answers: &Answers) -> Option<bool> {
        let listed = |node: &NodeId| self.holders.contains(node);
        let said = answers.of_chunk(self.chunk);
        let said = said.map(|(node, holding)| Some((holding, listed(&node))));
        let is_silent = |node: &&NodeId| !answers.said.contains_key(&(self.chunk, **node));
        verdict(said.chain(self.holders.iter().filter(is_silent).map(|_| None)))
    }

    /// Whether enough of its shards are said to be there.
    fn is_enough(&self, answers: &Answers) -> bool {
        are_enough(answers.indices(self.chunk), self.geometry, self.needed)
    }
}

impl Said {
    fn nothing(it: Doubtful) -> Self {
        Self { it, is_asked: false, found: Found::Lacking, excused_since: None }
    }

    /// Takes in what was answered now.
    fn hear(&mut self, answers: &Answers) -> Found {
        self.is_asked = true;
        let (verdict, is_enough) = (self.it.verdict(answers), self.it.is_enough(answers));
        let is_coming = verdict == Some(true) && self.it.is_readable();
        if is_enough || is_coming {
            // Not anew when it was silent in between.
            self.excused_since.get_or_insert_with(Instant::now);
        }
        let is_in_time = self.excused_since.is_some_and(|since| since.elapsed() < EXCUSED_FOR);
        self.found = match verdict {
            Some(true) if !is_coming || is_in_time => Found::Unfinished,
            // Silence takes back nothing that the same holders said before; but what can be read, and was
            // perhaps called safe since, is repaired.
            None if self.found == Found::Unfinished && !self.it.is_readable() => Found::Unfinished,
            _ if is_enough && is_in_time => Found::Enough,
            _ => Found::Lacking,
        };
        self.found
    }

    /// Whether something was found out that may change without a change of what is held. Nothing changes a
    /// chunk that is thin back to one that nobody was told of.
    fn is_to_be_remembered(&self) -> bool {
        !self.it.is_readable() || self.found != Found::Lacking || self.excused_since.is_some()
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
        state.silent.clear();
    }

    /// Whether some counts as lost only since its turn has not come.
    pub(super) fn is_behind(&self) -> bool {
        let state = self.lock();
        state.left == 0 || state.chunks.values().any(|said| !said.is_asked)
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
            let next: Vec<(Doubtful, Found)> =
                turn.map(|(_, said)| (said.it.clone(), said.found)).collect();
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

    /// What is found out about these chunks, all that are doubtful in these arcs; the others are as they seem.
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
                let before = before.remove(&it.chunk).filter(|said| said.it.needed == it.needed);
                let said = match before {
                    // Not of what can be read: who plans it now may be about to repair it.
                    Some(said)
                        if said.found == Found::Unfinished
                            && said.it.holders == it.holders
                            && !it.is_readable() =>
                    {
                        known.insert(it.chunk, Found::Unfinished);
                        said
                    }
                    said => {
                        let excused_since = said.and_then(|said| said.excused_since);
                        Said { excused_since, ..Said::nothing(it.clone()) }
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
        let (mut thin, lost): (Vec<Doubtful>, _) = new.into_iter().partition(Doubtful::is_readable);
        let time = self.lock().time;
        known.extend(self.ask(shared, nodes, lost, time).await);
        // Whatever seems thin leaves something for what may seem lost in other arcs.
        let (left, time) = {
            let state = self.lock();
            (state.left / 2, state.time / 2)
        };
        let unasked = thin.split_off(left.min(thin.len()));
        let asked: Vec<ChunkId> = thin.iter().map(|it| it.chunk).collect();
        known.extend(self.ask(shared, nodes, thin, time).await);
        let mut state = self.lock();
        for chunk in unasked.into_iter().map(|it| it.chunk).chain(asked) {
            if state.chunks.get(&chunk).is_some_and(|said| !said.is_to_be_remembered()) {
                state.chunks.remove(&chunk);
            }
        }
        known
    }

    /// Asks about chunks, and notes what is said: their holders first, and of what would lack shards all who
    /// may hold some; as far as they can be reached. What was found out about those for which there was time.
    async fn ask(
        &self,
        shared: &Shared,
        nodes: &Facts,
        mut doubtful: Vec<Doubtful>,
        time: Duration,
    ) -> BTreeMap<ChunkId, Found> {
        let (began, mut answers) = (Instant::now(), Answers::default());
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
            answers.silent.clone_from(&state.silent);
        }
        let until = began + time;
        let can_tell = |node: &NodeId, answers: &Answers| {
            let facts = nodes.facts(node);
            facts.trusted && facts.standing.is_reachable() && !answers.silent.contains(node)
        };
        let mut asked = Questions::new();
        for it in &doubtful {
            for node in it.holders.iter().filter(|node| can_tell(node, &answers)) {
                asked.entry(*node).or_default().push(it.chunk);
            }
        }
        answers.ask(shared, asked, until).await;
        let (view, mut others) = (shared.views.now(), Questions::new());
        for it in doubtful.iter().filter(|it| it.verdict(&answers) != Some(true)) {
            let around = view.ring.around(Ring::arc(&it.chunk), it.geometry, CANDIDATES_PER_SHARD);
            for node in around.filter(|it| can_tell(it, &answers)) {
                if !it.holders.contains(&node) {
                    others.entry(node).or_default().push(it.chunk);
                }
            }
        }
        answers.ask(shared, others, until).await;
        let mut state = self.lock();
        state.time = state.time.saturating_sub(began.elapsed());
        let hear = |it: Doubtful| {
            let said = state.chunks.get_mut(&it.chunk)?;
            Some((it.chunk, said.hear(&answers)))
        };
        let found = doubtful.into_iter().filter_map(hear).collect();
        state.silent = answers.silent;
        found
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
    use copse_core::ids::ShardIndex;

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
        let holders = vec![node];
        let mut said = Said::nothing(Doubtful { chunk, geometry, needed: 2, holders });
        let answer = |shards: &[u8]| {
            let indices = shards.iter().map(|index| ShardIndex(*index)).collect();
            let said = [((chunk, node), Holding { indices, unsettled: false })].into();
            Answers { said, ..Answers::default() }
        };
        // The last is no shard of such a chunk.
        assert_eq!(said.hear(&answer(&[0, 3])), Found::Lacking);
        assert_eq!(said.hear(&answer(&[0, 2])), Found::Enough);
        tokio::time::advance(EXCUSED_FOR).await;
        assert_eq!(said.hear(&answer(&[0, 2])), Found::Lacking);
        // Who says less for once has no more time for that.
        assert_eq!(said.hear(&answer(&[0])), Found::Lacking);
        assert_eq!(said.hear(&answer(&[0, 1])), Found::Lacking);
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_be_read_is_on_its_way_only_while_all_say_so_now_and_for_a_while() {
        let (chunk, nodes) = (ChunkId::new([1; 32]), [2, 3].map(|byte| NodeId::new([byte; 32])));
        let geometry = Geometry::new(2, 1).expect("a geometry");
        let seems =
            |needed| Said::nothing(Doubtful { chunk, geometry, needed, holders: nodes.to_vec() });
        let answer = |said: [Option<bool>; 2]| {
            let holding = |(node, unsettled): (NodeId, Option<bool>)| {
                let indices = vec![ShardIndex(node.as_bytes()[0] - 2)];
                Some(((chunk, node), Holding { indices, unsettled: unsettled? }))
            };
            let said = nodes.into_iter().zip(said).filter_map(holding).collect();
            Answers { said, ..Answers::default() }
        };
        let [all, one, settled] =
            [Some(true), None, Some(false)].map(|it| answer([Some(true), it]));
        let (mut thin, mut lost) = (seems(3), seems(3 - 1));
        for (answers, of_thin, of_lost) in [
            (&all, Found::Unfinished, Found::Unfinished),
            (&one, Found::Lacking, Found::Unfinished),
            (&all, Found::Unfinished, Found::Unfinished),
            // Both of them are enough to read it.
            (&settled, Found::Lacking, Found::Enough),
            (&all, Found::Unfinished, Found::Unfinished),
        ] {
            assert_eq!((thin.hear(answers), lost.hear(answers)), (of_thin, of_lost));
        }
        tokio::time::advance(EXCUSED_FOR).await;
        assert_eq!((thin.hear(&all), lost.hear(&all)), (Found::Lacking, Found::Unfinished));
        assert!(thin.is_to_be_remembered(), "else it would be believed anew");
        assert!(!seems(3).is_to_be_remembered());
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
