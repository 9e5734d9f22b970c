//! The shards that one read of one chunk needs, from whoever gives them first.
//!
//! Owns whom to ask, when to ask others too, and when to give up. Verified bytes come from `fetch`.
//! The one idea: data shards are asked first, for just the wanted ranges; as soon as one of them is
//! late, wrong or missing, the same columns are asked of enough others to rebuild it. Shards move
//! while they are looked for, so before too few are too few, all are looked for again, each time
//! twice as far along the ring.

use std::{collections::BTreeSet, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use copse_core::{
    erasure::Codec,
    ids::{NodeId, ShardIndex},
    ring::{CANDIDATES_PER_SHARD, HELD_WITHIN_PER_SHARD},
    units::Brief,
};
use copse_proto::status::{Reason, Refusal};
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    Reader, SMALL_BYTES,
    facts::ChunkFacts,
    fetch::{Piece, fetch},
    search::Searching,
};
use crate::{
    error::{GetError, Refusals},
    task::beside,
};

/// More columns are asked than needed when they are small, or when someone is late already: one
/// slow answer among k then costs nothing. Of large ones each would be a tenth more of everything.
const EXTRA_COLUMNS: usize = 1;

/// A node that does not say within this time what it holds is counted as unreachable.
const SURVEY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pauses before too few shards are looked for again. A shard that moves is at its new place before
/// it is gone from the old, so a second look at once finds it; news of a new node and a connection
/// that broke take seconds.
const LOOK_AGAIN_AFTER: [Duration; 3] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];

// The last look reaches all nodes that a shard may be given to.
const _: () = assert!(CANDIDATES_PER_SHARD << LOOK_AGAIN_AFTER.len() == HELD_WITHIN_PER_SHARD);

/// A directory younger than this is not fetched again before looking again.
const DIRECTORY_YOUNG: Duration = Duration::from_millis(500);

/// A wanted range of a data shard.
pub(super) type Want = (ShardIndex, Range<usize>);

/// Fetches the wanted ranges; the answer has them in order.
pub(super) async fn gather(
    reader: &Reader,
    facts: &Arc<ChunkFacts>,
    wants: &[Want],
) -> Result<Vec<Bytes>, GetError> {
    let view = reader.network.view();
    let guesses = view.placement(&facts.id, facts.geometry);
    if guesses.is_empty() {
        return Err(GetError::NoNodes);
    }
    let longest = wants.iter().map(|(_, range)| range.len()).max().unwrap_or(0);
    let gather = Gather {
        reader,
        facts,
        wants,
        guesses,
        candidates: view.candidates(&facts.id, facts.geometry),
        pieces: Vec::new(),
        asks: Vec::new(),
        running: FuturesUnordered::new(),
        survey: Survey::NotYet,
        silent: Vec::new(),
        patience: reader.patience(longest),
        hedged: false,
        looks: 0,
        searching: None,
    };
    gather.run().await
}

/// A request to a node.
struct Ask {
    index: ShardIndex,
    node: NodeId,
    range: Range<usize>,
    at: Instant,
    state: AskState,
}

enum AskState {
    Running,
    /// It takes longer than the reader is used to.
    Late,
    Done,
    Failed(Refusal),
    /// It failed before all was looked for again.
    Forgotten,
}

/// What a node says it holds of the chunk.
type Answer = (NodeId, Result<Vec<ShardIndex>, Refusal>);

/// Whom to take for a shard.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// Who answered last time, and did not say lately that it has the shard not.
    Well,
    /// Who did not answer last time.
    Unwell,
    /// Whoever may have it.
    Any,
}

enum Survey<'a> {
    NotYet,
    Running(FuturesUnordered<BoxFuture<'a, Answer>>),
    Done,
}

struct Gather<'a> {
    reader: &'a Reader,
    facts: &'a Arc<ChunkFacts>,
    wants: &'a [Want],
    guesses: Vec<NodeId>,
    candidates: Vec<NodeId>,
    pieces: Vec<Piece>,
    asks: Vec<Ask>,
    running: FuturesUnordered<BoxFuture<'a, (usize, Result<Piece, Refusal>)>>,
    survey: Survey<'a>,
    // Nodes that did not say what they hold.
    silent: Vec<(NodeId, Refusal)>,
    patience: Duration,
    hedged: bool,
    // How often all was looked for again.
    looks: usize,
    // From the first survey on.
    searching: Option<Searching>,
}

impl<'a> Gather<'a> {
    async fn run(mut self) -> Result<Vec<Bytes>, GetError> {
        let started = Instant::now();
        self.ask_directly();
        loop {
            if let Some(what) = self.facts.contradiction() {
                return Err(GetError::Reference { chunk: self.facts.id, what });
            }
            if let Some(found) = self.finish().await? {
                self.judge_the_late();
                self.reader.earn_hedge();
                self.reader.looked(self.looks, true);
                return Ok(found);
            }
            if let Err(lost) = self.ask_others() {
                if self.look_again().await {
                    continue;
                }
                self.reader.looked(self.looks, false);
                self.tell_what_was_asked();
                return Err(lost);
            }
            let late_at = self.next_late_at();
            let Self { running, survey, .. } = &mut self;
            let surveying = async {
                match survey {
                    Survey::Running(asking) => asking.next().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some((ask, result)) = running.next() => self.heard(ask, result),
                answer = surveying => self.surveyed(answer),
                () = sleep_until(late_at.unwrap_or(started)), if late_at.is_some() => {
                    self.note_the_late();
                }
                // Cannot be: something is on its way, or there was an error before.
                else => return Err(self.lost(0)),
            }
        }
    }

    /// The first round: each wanted range from the holder of its shard. Replicas are all alike, so
    /// of those the first holder that is well is asked.
    fn ask_directly(&mut self) {
        for (index, range) in self.wants {
            let all_alike = self.facts.geometry.data() == 1;
            let indices: Vec<ShardIndex> =
                if all_alike { self.indices().collect() } else { vec![*index] };
            let source = indices.into_iter().find_map(|index| {
                self.source(index, range, Choice::Well).map(|node| (index, node))
            });
            if let Some((index, node)) = source {
                self.ask(index, node, range.clone());
            }
        }
    }

    /// Asks others for the columns of what is wanted and neither here nor on its way in time.
    fn ask_others(&mut self) -> Result<(), GetError> {
        let stuck: Vec<&Want> =
            self.wants.iter().filter(|want| !self.is_here(want) && !self.is_coming(want)).collect();
        let Some(column) = hull(stuck.iter().map(|(_, range)| range)) else { return Ok(()) };
        let need = self.facts.geometry.data();
        let mut have = 0;
        let mut coming = 0;
        let mut others = Vec::new();
        for index in self.indices() {
            if self.pieces.iter().any(|piece| piece.index == index && piece.covers(&column)) {
                have += 1;
            } else if self.has_ask(index, &column, |state| matches!(state, AskState::Running)) {
                coming += 1;
            } else {
                others.push(index);
            }
        }
        let late = self.asks.iter().any(|ask| matches!(ask.state, AskState::Late));
        let extra = if late || column.len() <= SMALL_BYTES { EXTRA_COLUMNS } else { 0 };
        let mut wanted = (need + extra).saturating_sub(have + coming);
        // The well and quick ones first.
        let mut sources: Vec<_> = others
            .iter()
            .filter_map(|index| {
                self.source(*index, &column, Choice::Well).map(|node| (*index, node))
            })
            .collect();
        sources.sort_by_key(|(_, node)| {
            self.reader.network.holder(*node).latency.p50().unwrap_or_default()
        });
        for (index, node) in sources {
            if wanted == 0 {
                return Ok(());
            }
            self.ask(index, node, column.clone());
            coming += 1;
            wanted -= 1;
        }
        if have + coming >= need {
            return Ok(());
        }
        // Not enough: find out where else shards are, and try the unwell nodes at the same time, since
        // both may take as long as a dead node is waited for. Then try all that is left.
        if matches!(self.survey, Survey::NotYet) {
            self.start_survey();
            self.searching = Some(self.reader.searches.begin(self.facts.id, need));
        }
        if let Some(searching) = &self.searching {
            searching.goes_on(have, self.unanswered());
        }
        let is_surveyed = matches!(self.survey, Survey::Done);
        let choice = if is_surveyed { Choice::Any } else { Choice::Unwell };
        for index in others {
            if let Some(node) = self.source(index, &column, choice) {
                self.ask(index, node, column.clone());
                coming += 1;
            }
        }
        if !is_surveyed {
            return Ok(());
        }
        if coming == 0 && !late { Err(self.lost(have)) } else { Ok(()) }
    }

    /// Forgets who failed, fetches the directory and begins anew with what is here already; false
    /// when that was tried often enough.
    async fn look_again(&mut self) -> bool {
        let Some(pause) = LOOK_AGAIN_AFTER.get(self.looks).copied() else { return false };
        if !pause.is_zero() && !self.reader.may_wait_to_look() {
            return false;
        }
        self.looks += 1;
        if pause.is_zero() {
            tracing::debug!(chunk = %self.facts.id.short(), "too few shards, looking again");
        } else {
            let pause = Brief(pause);
            tracing::warn!(
                chunk = %self.facts.id.short(), look = self.looks,
                "too few nodes that hold shards answer; looking again in {pause}"
            );
        }
        tokio::time::sleep(pause).await;
        let network = &self.reader.network;
        if let Err(error) = network.refresh_if_older(DIRECTORY_YOUNG).await {
            tracing::debug!(%error, "the directory stays as it is");
        }
        let view = network.view();
        self.guesses = view.placement(&self.facts.id, self.facts.geometry);
        // 2n, 4n, 8n and at last 16n nodes: many newcomers at once lie before those that hold.
        let per_shard = CANDIDATES_PER_SHARD << self.looks;
        self.candidates = view.candidates_within(&self.facts.id, self.facts.geometry, per_shard);
        // At once, only those that answered can know more. Who was silent is left for the looks after
        // a pause: it would be waited for as long as the last time.
        let again = |refusal: &Refusal| !pause.is_zero() || !refusal.reason().is_silence();
        self.silent.retain(|(_, refusal)| !again(refusal));
        for ask in &mut self.asks {
            if matches!(&ask.state, AskState::Failed(refusal) if again(refusal)) {
                ask.state = AskState::Forgotten;
            }
        }
        // Where shards are is asked at the same time as for shards: too few were where they should be.
        self.start_survey();
        true
    }

    /// Everything wanted, if it is here or can be rebuilt.
    async fn finish(&mut self) -> Result<Option<Vec<Bytes>>, GetError> {
        let missing: Vec<&Want> = self.wants.iter().filter(|want| !self.is_here(want)).collect();
        let mut rebuilt = Vec::new();
        if let Some(column) = hull(missing.iter().map(|(_, range)| range)) {
            let columns: Vec<(ShardIndex, Bytes)> = self
                .indices()
                .filter_map(|index| {
                    let covers = |piece: &&Piece| piece.index == index && piece.covers(&column);
                    self.pieces.iter().find(covers).map(|piece| (index, piece.slice(&column)))
                })
                .take(self.facts.geometry.data())
                .collect();
            if columns.len() < self.facts.geometry.data() {
                return Ok(None);
            }
            let indices = missing.iter().map(|(index, _)| *index).collect();
            let shards = rebuild(self.reader, self.facts, columns, indices).await?;
            for ((index, range), shard) in missing.iter().zip(shards) {
                let range_in = range.start - column.start..range.end - column.start;
                rebuilt.push((*index, range.clone(), shard.slice(range_in)));
            }
        }
        let found = self.wants.iter().map(|want| {
            let built = |(index, range, _): &&(ShardIndex, Range<usize>, Bytes)| {
                *index == want.0 && *range == want.1
            };
            match rebuilt.iter().find(built) {
                Some((_, _, bytes)) => Some(bytes.clone()),
                None => self.piece_for(want).map(|piece| piece.slice(&want.1)),
            }
        });
        Ok(found.collect())
    }

    fn heard(&mut self, ask: usize, result: Result<Piece, Refusal>) {
        let ask = &mut self.asks[ask];
        match result {
            Ok(piece) => {
                self.reader.record(piece.data.len(), ask.at.elapsed());
                ask.state = AskState::Done;
                self.pieces.push(piece);
            }
            Err(refusal) => {
                if refusal.reason() == Reason::NotHeld {
                    self.facts.remove_place(ask.index, ask.node);
                }
                ask.state = AskState::Failed(refusal);
            }
        }
    }

    /// Nodes that something was asked of, and that have not answered. Two questions of one node are one.
    fn unanswered(&self) -> usize {
        let waits = |ask: &&Ask| matches!(ask.state, AskState::Running | AskState::Late);
        let asked: BTreeSet<NodeId> = self.asks.iter().filter(waits).map(|ask| ask.node).collect();
        match &self.survey {
            // Nearly always the same nodes, and more.
            Survey::Running(asking) => asking.len().max(asked.len()),
            Survey::NotYet | Survey::Done => asked.len(),
        }
    }

    fn start_survey(&mut self) {
        let (network, chunk) = (&self.reader.network, self.facts.id);
        let is_silent = |node: &NodeId| self.silent.iter().any(|(silent, _)| silent == node);
        let (gone, candidates): (Vec<NodeId>, Vec<NodeId>) = self
            .candidates
            .iter()
            .filter(|node| !is_silent(node))
            .partition(|node| self.reader.passes_over(**node));
        let candidates = candidates.into_iter();
        let asking = candidates.map(|node| {
            let asking = async move {
                let answer = timeout(SURVEY_TIMEOUT, network.has(node, &[chunk])).await;
                let answer = answer.unwrap_or_else(|_| {
                    Err(Refusal::new(Reason::TimedOut, "it does not say what it holds"))
                });
                (node, answer.map(|held| held.into_iter().flatten().collect()))
            };
            Box::pin(asking) as BoxFuture<'a, _>
        });
        self.survey = Survey::Running(asking.collect());
        let why = || Refusal::new(Reason::NodeUnreachable, "it could not be reached a moment ago");
        self.silent.extend(gone.into_iter().map(|node| (node, why())));
    }

    fn surveyed(&mut self, answer: Option<Answer>) {
        match answer {
            Some((node, Ok(held))) => {
                for index in held {
                    self.facts.add_place(index, node);
                }
            }
            Some((node, Err(refusal))) => {
                self.silent.push((node, refusal));
            }
            None => self.survey = Survey::Done,
        }
    }

    /// A node to ask for a range of a shard: one that said it has it, else the one the ring names, if
    /// that did not say lately that it has it not. Not one that failed to give the shard before, or was
    /// asked for as much of it; one that was asked for less, such as the short end of a file, is asked
    /// again for the column.
    fn source(&self, index: ShardIndex, range: &Range<usize>, choice: Choice) -> Option<NodeId> {
        let guess = self.guesses.get(index.as_usize()).copied();
        let is_any = choice == Choice::Any;
        let guess = guess.filter(|node| is_any || !self.facts.is_not_held(index, *node));
        let asked = |node: NodeId| {
            self.asks.iter().any(|ask| {
                let as_much = ask.range.start <= range.start && range.end <= ask.range.end;
                let asked = match ask.state {
                    AskState::Failed(_) => true,
                    AskState::Forgotten => false,
                    AskState::Running | AskState::Late | AskState::Done => as_much,
                };
                ask.index == index && ask.node == node && asked
            })
        };
        let is_well = |node: NodeId| self.reader.network.holder(node).can_read();
        let suits = |node: NodeId| match choice {
            Choice::Well => is_well(node),
            Choice::Unwell => !is_well(node) && !self.reader.passes_over(node),
            Choice::Any => !self.reader.passes_over(node),
        };
        let mut places = self.facts.places(index).into_iter().chain(guess);
        places.find(|node| !asked(*node) && suits(*node))
    }

    fn ask(&mut self, index: ShardIndex, node: NodeId, range: Range<usize>) {
        let number = self.asks.len();
        let state = AskState::Running;
        self.asks.push(Ask { index, node, range: range.clone(), at: Instant::now(), state });
        self.reader.counters.count_request();
        self.reader.network.holder(node).begin();
        let (network, buffers) = (self.reader.network.clone(), Arc::clone(&self.reader.shards));
        let fetching = fetch(network, Arc::clone(self.facts), node, index, range, buffers);
        self.running.push(Box::pin(async move { (number, fetching.await) }));
    }

    fn next_late_at(&self) -> Option<Instant> {
        let running = self.asks.iter().filter(|ask| matches!(ask.state, AskState::Running));
        running.map(|ask| ask.at + self.patience).min()
    }

    /// Marks what takes too long, if the reader may hedge now; else waits on.
    fn note_the_late(&mut self) {
        let now = Instant::now();
        if !self.hedged && !self.reader.may_hedge() {
            // Others are slow as well, it seems: asking more would make it worse.
            self.patience *= 4;
            return;
        }
        self.hedged = true;
        for ask in &mut self.asks {
            if matches!(ask.state, AskState::Running) && ask.at + self.patience <= now {
                ask.state = AskState::Late;
                self.reader.counters.count_hedged();
            }
        }
    }

    /// At the end: whoever is still late was overtaken.
    fn judge_the_late(&self) {
        for ask in self.asks.iter().filter(|ask| matches!(ask.state, AskState::Late)) {
            self.reader.network.holder(ask.node).overtaken();
        }
    }

    fn indices(&self) -> impl Iterator<Item = ShardIndex> + use<> {
        (0..u8::MAX).map(ShardIndex).take(self.facts.geometry.total())
    }

    fn piece_for(&self, (index, range): &Want) -> Option<&Piece> {
        let all_alike = self.facts.geometry.data() == 1;
        self.pieces.iter().find(|piece| (piece.index == *index || all_alike) && piece.covers(range))
    }

    fn is_here(&self, want: &Want) -> bool {
        self.piece_for(want).is_some()
    }

    /// Whether a request that is not late will bring it.
    fn is_coming(&self, (index, range): &Want) -> bool {
        let all_alike = self.facts.geometry.data() == 1;
        self.asks.iter().any(|ask| {
            matches!(ask.state, AskState::Running)
                && (ask.index == *index || all_alike)
                && ask.range.start <= range.start
                && range.end <= ask.range.end
        })
    }

    fn has_ask(
        &self,
        index: ShardIndex,
        column: &Range<usize>,
        is: impl Fn(&AskState) -> bool,
    ) -> bool {
        self.asks.iter().any(|ask| {
            ask.index == index
                && ask.range.start <= column.start
                && column.end <= ask.range.end
                && is(&ask.state)
        })
    }

    /// For whoever asks why shards were not found.
    fn tell_what_was_asked(&self) {
        for ask in &self.asks {
            let state = match &ask.state {
                AskState::Running => "on its way",
                AskState::Late => "late",
                AskState::Done => "here",
                AskState::Failed(refusal) => refusal.reason().as_str(),
                AskState::Forgotten => "failed before",
            };
            let (index, node, at) = (ask.index, ask.node.short(), ask.at.elapsed());
            tracing::debug!(%index, %node, range = ?ask.range, ago = ?at, state, "asked");
        }
        for node in &self.candidates {
            let held: Vec<ShardIndex> =
                self.indices().filter(|index| self.facts.places(*index).contains(node)).collect();
            tracing::debug!(node = %node.short(), ?held, "said that it holds");
        }
    }

    fn lost(&self, have: usize) -> GetError {
        let mut refusals: Vec<(NodeId, Refusal)> = Vec::new();
        let mut unreachable: Vec<NodeId> = Vec::new();
        let failed = self.asks.iter().filter_map(|ask| match &ask.state {
            AskState::Failed(refusal) => Some((ask.node, refusal)),
            _ => None,
        });
        let silent = self.silent.iter().map(|(node, refusal)| (*node, refusal));
        for (node, refusal) in failed.chain(silent) {
            let honest = matches!(
                refusal.reason(),
                Reason::NotHeld | Reason::ShardDamaged | Reason::BadReply | Reason::OutOfRange
            );
            if !honest && !unreachable.contains(&node) {
                unreachable.push(node);
            }
            if refusal.reason() != Reason::NotHeld && !refusals.iter().any(|(of, _)| *of == node) {
                refusals.push((node, refusal.clone()));
            }
        }
        refusals.sort_by_key(|(node, _)| *node);
        GetError::DataLoss {
            chunk: self.facts.id,
            have,
            need: self.facts.geometry.data(),
            unreachable: unreachable.len(),
            refusals: Refusals(refusals),
        }
    }
}

/// Rebuilds ranges of shards from the same range of any k.
async fn rebuild(
    reader: &Reader,
    facts: &ChunkFacts,
    columns: Vec<(ShardIndex, Bytes)>,
    indices: Vec<ShardIndex>,
) -> Result<Vec<Bytes>, GetError> {
    tracing::debug!(chunk = %facts.id.short(), ?indices, "rebuilding shards");
    reader.counters.count_rebuilt(indices.len());
    let (geometry, buffers) = (facts.geometry, Arc::clone(&reader.shards));
    let work = move || {
        let have: Vec<(ShardIndex, &[u8])> =
            columns.iter().map(|(index, bytes)| (*index, &bytes[..])).collect();
        let bytes = have.first().map_or(0, |(_, column)| column.len());
        let mut rebuilt: Vec<Vec<u8>> = indices.iter().map(|_| buffers.sized(bytes)).collect();
        let mut places: Vec<(ShardIndex, &mut [u8])> =
            indices.iter().copied().zip(rebuilt.iter_mut().map(Vec::as_mut_slice)).collect();
        // Lengths and indices are ours: this cannot fail.
        Codec::new(geometry).reconstruct_into(&have, &mut places).map_err(|_| GetError::Thread)?;
        Ok(rebuilt.into_iter().map(|shard| buffers.share(shard)).collect())
    };
    beside(work).await.map_err(|_| GetError::Thread)?
}

/// The smallest range that holds all of them; none of none.
fn hull<'r>(mut ranges: impl Iterator<Item = &'r Range<usize>>) -> Option<Range<usize>> {
    let first = ranges.next()?.clone();
    Some(ranges.fold(first, |hull, range| hull.start.min(range.start)..hull.end.max(range.end)))
}
