//! Looking after arcs: finds those that changed, plans their chunks, and queues what is to be done.
//!
//! Owns the question whether an arc must be looked at. The one idea: an arc's fingerprint is all
//! that its plan depends on (who is said to hold what, how these nodes stand, the ring); as long as
//! it is the same as when the arc was last planned, nothing is done. It is written down in the same
//! step as the jobs, so that neither a crash nor a restart loses or repeats anything (see `arcs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use copse_core::{
    ids::{ChunkId, NodeId},
    repair::{self, Action, ChunkPlan, Job, Kind, NodeFacts, Nodes, Priority, Skip},
};
use copse_proto::status::Refusal;

use super::{
    arcs::{Arcwise, Fingerprint, ROW_PREFIX, read_row, row_key, row_value},
    asking::Asking,
    claims::blocking,
    facts::{Facts, View},
    gone::Gone,
    jobs::Wish,
    report::{Tally, count, has_too_few},
    shapes::chunks_of,
    shared::Shared,
    unfinished::{Doubtful, Found, Unfinished, doubtful},
};
use crate::store::{LEDGER_CHANGES_MAX, LedgerChange};

/// Arcs planned in one go, without letting others have the thread.
const ARCS_AT_ONCE: usize = 64;

/// An arc with something that nobody can take is looked at again after so many seconds, though
/// nothing changed: a node may have found room.
const AGAIN_SECONDS: u64 = 600;

/// The steward of all arcs that have this node first.
pub(super) struct Steward {
    shared: Arc<Shared>,
    asking: Asking,
    gone: Gone,
    unfinished: Unfinished,
    arcs: Mutex<BTreeMap<u16, Arcwise>>,
    /// The ring, and who of it may be no steward, for which the mirror was told what to hold.
    mirrored_for: Mutex<Option<([u8; 16], Vec<NodeId>)>>,
    /// What the last round saw that planned all there was, and had time for all that it had to ask.
    planned: Mutex<Weak<View>>,
    /// An arc that could not be planned in the last round that planned any.
    unplanned: Mutex<Option<u16>>,
}

/// An arc that must be planned.
#[derive(Clone, Copy)]
struct Due {
    arc: u16,
    fingerprint: Fingerprint,
    /// Since when a chunk of it has a shard missing.
    since: Option<u64>,
}

/// An arc, planned.
struct Planned {
    arc: u16,
    after: Arcwise,
    jobs: Vec<Wish>,
    /// Chunks that seem to lack shards: not counted yet.
    doubtful: Vec<InDoubt>,
}

/// A chunk that lacks shards, or only seems to.
struct InDoubt {
    it: Doubtful,
    plan: ChunkPlan,
    /// To make those shards.
    rebuild: Option<Wish>,
}

impl Steward {
    /// Loads what was planned before. Blocks on the ledger.
    pub(super) fn load(shared: Arc<Shared>) -> io::Result<Self> {
        let mut arcs = BTreeMap::new();
        shared.ledger.scan(ROW_PREFIX, &mut |key, value| {
            if let Some((arc, mut known)) = read_row(key, value) {
                if known.tally.lost + known.tally.unfinished > 0 {
                    // Who says what of these is not in the row.
                    known.fingerprint = Fingerprint::default();
                }
                arcs.insert(arc, known);
            }
            true
        })?;
        Ok(Self {
            asking: Asking::default(),
            gone: Gone::load(Arc::clone(&shared.ledger))?,
            unfinished: Unfinished::default(),
            shared,
            arcs: Mutex::new(arcs),
            mirrored_for: Mutex::default(),
            planned: Mutex::default(),
            unplanned: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, Arcwise>> {
        self.arcs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the arcs of this node hold, added up.
    pub(super) fn tally(&self) -> Tally {
        let arcs = self.lock();
        arcs.values().map(|arc| &arc.tally).fold(Tally::default(), Tally::plus)
    }

    /// Whether all arcs are planned for the network as it is in this view.
    pub(super) fn has_planned(&self, view: &Arc<View>) -> bool {
        let planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        std::ptr::eq(planned.as_ptr(), Arc::as_ptr(view))
    }

    /// Asks everybody what changed, and plans what has to be planned, after half a minute with what is
    /// known by then; how many arcs were planned.
    pub(super) async fn round(self: &Arc<Self>) -> usize {
        self.shared.jobs.begin_round();
        let view = self.shared.views.now();
        let mut well = self.shared.health.begin_round(view.cut_off).await.is_ok();
        if !view.cut_off {
            // Who is cut off keeps what it knows of its arcs, though others may plan them.
            self.shared.opinions.unable(self.shared.own, self.shared.health.told().await);
        }
        if let Err(refusal) = self.follow_ring(&view).await {
            tracing::error!(%refusal, "the mirror of claims cannot be written; it is tried again");
            well = false;
        }
        if let Err(refusal) = self.forget_the_gone(&view).await {
            tracing::error!(%refusal, "what gone nodes held cannot be forgotten; it is tried again");
            well = false;
        }
        let nodes: Vec<NodeId> = view
            .standings
            .iter()
            .filter(|(_, standing)| standing.is_reachable())
            .map(|(&node, _)| node)
            .collect();
        let refresh = async |node: NodeId| {
            if let Err(refusal) = self.shared.claims.refresh(node).await {
                tracing::debug!(node = %node.short(), %refusal, "not told what changed");
            }
        };
        self.asking.ask(self.shared.own, nodes, refresh).await;
        well &= self.shared.claims.are_written() && self.look_at_the_unplanned().await.is_ok();
        let (planned, all) = match view.cut_off {
            true => (0, true),
            false => {
                self.unfinished.begin_round();
                let nodes = self.shared.opinions.with(&view);
                let changed = self.unfinished.again(&self.shared, &nodes).await;
                for (_, known) in self.lock().iter_mut().filter(|(arc, _)| changed.contains(arc)) {
                    known.fingerprint = Fingerprint::default();
                }
                self.plan_all(&view).await
            }
        };
        self.shared.health.end_round(well && all);
        planned
    }

    /// Reads again of an arc that could not be planned: it may be another node's by now, since this one
    /// said that it cannot plan, and is this one's again only when it can.
    async fn look_at_the_unplanned(self: &Arc<Self>) -> Result<(), Refusal> {
        let Some(arc) = *self.unplanned() else { return Ok(()) };
        let (this, _step) = (Arc::clone(self), self.shared.health.ledger_step());
        blocking(move || this.shared.claims.of_arc(arc)).await?;
        *self.unplanned() = None;
        Ok(())
    }

    fn unplanned(&self) -> MutexGuard<'_, Option<u16>> {
        self.unplanned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the mirror about a new ring, and about nodes that take no part for now: whoever is a
    /// steward in their place must know what is held.
    async fn follow_ring(self: &Arc<Self>, view: &Arc<View>) -> Result<(), Refusal> {
        let nodes = self.shared.opinions.with(view);
        let members = view.ring.members().iter().map(|member| member.id);
        let unable = members.filter(|node| !repair::may_be_steward(&nodes, node)).collect();
        let now = Some((view.ring_id, unable));
        if *self.mirrored_for.lock().unwrap_or_else(PoisonError::into_inner) == now {
            return Ok(());
        }
        let (this, view, _step) =
            (Arc::clone(self), Arc::clone(view), self.shared.health.ledger_step());
        blocking(move || {
            this.shared.claims.want(&view.ring, &nodes)?;
            *this.mirrored_for.lock().unwrap_or_else(PoisonError::into_inner) = now;
            Ok(())
        })
        .await
    }

    /// Forgets what nodes held that are gone for good.
    async fn forget_the_gone(self: &Arc<Self>, view: &Arc<View>) -> Result<(), Refusal> {
        let (this, nodes) = (Arc::clone(self), self.shared.opinions.with(view));
        let _step = self.shared.health.ledger_step();
        blocking(move || {
            let gone = this.gone.note(&this.shared.claims.nodes(), &nodes, this.shared.now())?;
            this.shared.claims.forget(&gone)
        })
        .await
    }

    /// Plans the arcs of this node whose fingerprint changed: how many, and whether these are all. One
    /// that cannot be planned keeps none of the others waiting.
    async fn plan_all(self: &Arc<Self>, view: &Arc<View>) -> (usize, bool) {
        let (due, gone) = self.due(view);
        // Others may have heard since then that a chunk of them is safe.
        self.unfinished.forget(&gone);
        let mut problem = None;
        if !gone.is_empty() {
            let rows: Vec<_> = gone.iter().map(|&arc| (row_key(arc), None)).collect();
            let ledger = Arc::clone(&self.shared.ledger);
            let write = move || {
                rows.chunks(LEDGER_CHANGES_MAX).try_for_each(|part| ledger.apply(part.to_vec()))
            };
            let _step = self.shared.health.ledger_step();
            match blocking(write).await {
                Ok(()) => self.lock().retain(|arc, _| !gone.contains(arc)),
                Err(refusal) => problem = Some(refusal),
            }
        }
        let mut planned = 0;
        for part in due.chunks(ARCS_AT_ONCE) {
            if self.plan_part(view, part).await.is_ok() {
                planned += part.len();
                continue;
            }
            for arc in part.chunks(1) {
                match self.plan_part(view, arc).await {
                    Ok(()) => planned += 1,
                    Err(refusal) => {
                        problem = Some(refusal);
                        *self.unplanned() = arc.first().map(|due| due.arc);
                    }
                }
            }
        }
        if let Some(refusal) = problem {
            let failed = due.len() - planned;
            tracing::error!(%refusal, failed, "arcs could not be planned; they are tried again");
            return (planned, false);
        }
        if !self.unfinished.is_behind() {
            *self.planned.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(view);
        }
        (planned, true)
    }

    async fn plan_part(self: &Arc<Self>, view: &Arc<View>, part: &[Due]) -> Result<(), Refusal> {
        let arcs: Vec<u16> = part.iter().map(|due| due.arc).collect();
        let nodes = self.shared.opinions.with(view);
        let (this, view, part) = (Arc::clone(self), Arc::clone(view), part.to_vec());
        let planned = {
            let _step = self.shared.health.ledger_step();
            blocking(move || this.plan_arcs(&view, &part)).await?
        };
        let asked = planned.iter().flat_map(|arc| &arc.doubtful);
        let asked: Vec<Doubtful> = asked.map(|doubt| doubt.it.clone()).collect();
        let planned = match asked.is_empty() {
            true => planned,
            false => self.offer_first(planned).await?,
        };
        let found = self.unfinished.of(&self.shared, &nodes, &arcs, asked).await;
        let (this, _step) = (Arc::clone(self), self.shared.health.ledger_step());
        blocking(move || this.write_down(planned, &found)).await
    }

    /// What is in no doubt is not kept waiting by questions about the rest.
    async fn offer_first(
        self: &Arc<Self>,
        mut planned: Vec<Planned>,
    ) -> Result<Vec<Planned>, Refusal> {
        let (this, _step) = (Arc::clone(self), self.shared.health.ledger_step());
        blocking(move || {
            for arc in planned.iter_mut().filter(|arc| !arc.jobs.is_empty()) {
                let jobs = std::mem::take(&mut arc.jobs);
                let rows = this.offer(arc, &jobs);
                this.shared.jobs.write_down(arc.arc, &rows)?;
            }
            this.shared.jobs.wake();
            Ok(planned)
        })
        .await
    }

    /// Puts jobs of an arc into the queue; the rows to write for that.
    fn offer(&self, planned: &mut Planned, jobs: &[Wish]) -> Vec<LedgerChange> {
        let (rows, deferred) = self.shared.jobs.offer(planned.arc, jobs, self.shared.now_ms());
        if deferred {
            // It is looked at again at the next round; its jobs find a place then.
            planned.after.fingerprint = Fingerprint::default();
        }
        rows
    }

    /// The arcs to plan, with their fingerprints, and those that are no longer ours.
    fn due(&self, view: &View) -> (Vec<Due>, BTreeSet<u16>) {
        let (now, nodes) = (self.shared.now(), self.shared.opinions.with(view));
        let again = self.shared.jobs.take_again();
        let known = {
            let mut arcs = self.lock();
            for (_, known) in arcs.iter_mut().filter(|(arc, _)| again.contains(arc)) {
                known.fingerprint = Fingerprint::default();
            }
            arcs.clone()
        };
        let mut gone: BTreeSet<u16> = known.keys().copied().collect();
        let mut due = Vec::new();
        for arc in self.shared.claims.arcs() {
            if repair::steward(&view.ring, arc, &nodes) != Some(self.shared.own) {
                continue;
            }
            gone.remove(&arc);
            let before = known.get(&arc);
            let noted = before.and_then(|before| before.incomplete_since);
            // Noted by a clock that was ahead: then it counts from now.
            let since = noted.map(|since| since.min(now));
            let overdue = since.is_some_and(|since| {
                Duration::from_secs(now.saturating_sub(since))
                    >= self.shared.settings.policy.patience
            });
            let fingerprint = self.fingerprint(view, &nodes, arc, overdue);
            let same = before.is_some_and(|before| {
                let waits = |at| now < at && at <= now + AGAIN_SECONDS;
                before.fingerprint == fingerprint
                    && before.again_at.is_none_or(waits)
                    && noted == since
            });
            if !same {
                due.push(Due { arc, fingerprint, since });
            }
        }
        (due, gone)
    }

    /// All that the plan of an arc depends on.
    fn fingerprint(&self, view: &View, nodes: &impl Nodes, arc: u16, overdue: bool) -> Fingerprint {
        let mut hasher = blake3::Hasher::new_derive_key("copse arc fingerprint v1");
        hasher.update(&view.ring_id).update(&[u8::from(overdue), u8::from(view.frozen)]);
        // How the nodes stand on which shards belong, too.
        let around = view.ring.walk(arc).take(AROUND);
        let holders = self.shared.claims.holders(arc);
        let digests: BTreeMap<NodeId, (u32, [u8; 16])> = holders.into_iter().collect();
        let all: BTreeSet<NodeId> = around.chain(digests.keys().copied()).collect();
        for node in all {
            let NodeFacts { standing, room, trusted } = nodes.facts(&node);
            // Being late by seconds changes no plan that matters.
            let standing = match standing {
                repair::Standing::Suspect => repair::Standing::Alive,
                other => other,
            };
            let (shards, sum) = digests.get(&node).copied().unwrap_or_default();
            hasher.update(node.as_bytes()).update(&shards.to_le_bytes()).update(&sum);
            hasher.update(&[standing as u8, room as u8, u8::from(trusted)]);
        }
        let mut fingerprint = [0; 16];
        hasher.finalize_xof().fill(&mut fingerprint);
        fingerprint
    }

    /// Plans arcs. Blocks on the ledger.
    fn plan_arcs(&self, view: &View, arcs: &[Due]) -> io::Result<Vec<Planned>> {
        let nodes = self.shared.opinions.with(view).with_returning(self.shared.views.returning());
        // The same, but who answers and has not told what it holds may hold all that it should.
        let mut hopeful = nodes.clone();
        let answers = view.standings.iter().filter(|(_, standing)| standing.is_reachable());
        for (node, _) in answers.filter(|(node, _)| self.shared.claims.is_to_tell(node)) {
            hopeful.silent(*node);
        }
        arcs.iter().map(|due| self.plan_arc(view, [&nodes, &hopeful], *due)).collect()
    }

    /// Writes the jobs and the fingerprint of each arc in one step, with what was found out about the
    /// doubtful chunks. Blocks.
    fn write_down(&self, all: Vec<Planned>, found: &BTreeMap<ChunkId, Found>) -> io::Result<()> {
        for mut planned in all {
            let arc = planned.arc;
            let mut jobs = std::mem::take(&mut planned.jobs);
            for InDoubt { it, plan, rebuild } in std::mem::take(&mut planned.doubtful) {
                let found = found.get(&it.chunk).copied().unwrap_or(Found::Lacking);
                planned.after.tally.add(&plan, found != Found::Lacking);
                match found {
                    // Its client may still bring the rest.
                    Found::Unfinished => {}
                    // The rest is told in the next round.
                    Found::Enough => planned.after.fingerprint = Fingerprint::default(),
                    Found::Lacking => {
                        self.tell(&it.chunk, &plan);
                        jobs.extend(rebuild);
                    }
                }
            }
            let mut rows = self.offer(&mut planned, &jobs);
            // The fingerprint last: it says that all jobs are written down.
            rows.push((row_key(arc), Some(row_value(&planned.after))));
            self.shared.jobs.write_down(arc, &rows)?;
            self.lock().insert(planned.arc, planned.after);
        }
        self.shared.jobs.wake();
        Ok(())
    }

    fn plan_arc(
        &self,
        view: &View,
        [nodes, hopeful]: [&Facts; 2],
        Due { arc, fingerprint, since }: Due,
    ) -> io::Result<Planned> {
        let now = self.shared.now();
        let missing_for = since.map(|since| Duration::from_secs(now.saturating_sub(since)));
        let after = Arcwise { fingerprint, ..Arcwise::default() };
        let mut planned = Planned { arc, after, jobs: Vec::new(), doubtful: Vec::new() };
        for said in chunks_of(self.shared.claims.of_arc(arc)?, nodes, missing_for) {
            let (disputed, chunk) = (said.is_disputed(), &said.facts);
            let policy = &self.shared.settings.policy;
            let plan = repair::plan_chunk(&view.ring, nodes, chunk, policy);
            count(&self.shared.counters.chunks_planned, 1);
            if plan.strength.hoped < chunk.geometry.total() {
                planned.after.incomplete_since = since.or(Some(now));
            }
            let again = plan.skips.iter().filter_map(again_seconds).map(|after| now + after);
            planned.after.again_at = again.chain(planned.after.again_at).min();
            let priority = Priority::of(&plan.strength, now * 1000);
            let sole_holder = said.sole_holder.filter(|node| *node != self.shared.own);
            let mut kinds = kinds(&plan);
            if disputed {
                // Whatever the vote says: a worker finds out what is true before it plans.
                kinds.insert(Kind::Rebuild);
            }
            let wish = |kind| Wish { job: Job { chunk: chunk.chunk, kind }, priority, sole_holder };
            let doubtful = doubtful(chunk, &plan, nodes);
            let in_doubt = |kind: &Kind| doubtful.is_some() && !disputed && *kind == Kind::Rebuild;
            let (rebuild, certain): (Vec<Kind>, Vec<Kind>) = kinds.into_iter().partition(in_doubt);
            planned.jobs.extend(certain.into_iter().map(wish));
            if has_too_few(&plan) {
                let hoped = repair::plan_chunk(&view.ring, hopeful, chunk, policy);
                if !has_too_few(&hoped) {
                    // The rest is waited for. Planned again, whatever is told: "nothing" changes no digest.
                    planned.after.tally.add(&hoped, false);
                    planned.after.fingerprint = Fingerprint::default();
                    continue;
                }
            }
            match doubtful {
                Some(it) => {
                    let rebuild = rebuild.first().copied().map(wish);
                    planned.doubtful.push(InDoubt { it, plan, rebuild });
                }
                None => {
                    planned.after.tally.add(&plan, false);
                    self.tell(&chunk.chunk, &plan);
                }
            }
        }
        Ok(planned)
    }

    /// Names what a person should know.
    fn tell(&self, chunk: &ChunkId, plan: &ChunkPlan) {
        for skip in &plan.skips {
            match skip {
                Skip::NotEnough { .. } | Skip::WaitingForDown { .. } | Skip::NoTarget { .. } => {
                    self.shared
                        .events
                        .note(self.shared.now(), format!("chunk {}: {skip}", chunk.short()));
                }
                _ => tracing::debug!(chunk = %chunk.short(), "{skip}"),
            }
        }
    }
}

/// Nodes of the walk whose standing an arc's plan may depend on: three times the widest geometry in
/// use. Those beyond take a shard only when all of these cannot.
const AROUND: usize = 64;

/// After how many seconds it is looked whether the reason is gone, if it may go without any change that
/// the fingerprint shows.
fn again_seconds(skip: &Skip) -> Option<u64> {
    match skip {
        Skip::NoTarget { .. } | Skip::StaysDisplaced { .. } | Skip::SurplusKept { .. } => {
            Some(AGAIN_SECONDS)
        }
        Skip::SurplusWaits { settle, .. } => Some(settle.as_secs().clamp(1, AGAIN_SECONDS)),
        _ => None,
    }
}

/// What kinds of work a plan has.
fn kinds(plan: &ChunkPlan) -> BTreeSet<Kind> {
    let kind = |action: &Action| match action {
        Action::Rebuild { .. } => Kind::Rebuild,
        Action::Copy { .. } => Kind::Copy,
        Action::Drop { .. } => Kind::Drop,
    };
    plan.actions.iter().map(kind).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use copse_core::{identity::NodeKey, repair::Standing, ring::Ring};
    use copse_proto::holdings::CANNOT_PLAN;

    use super::{
        super::{
            claims::TOLD_WITHIN,
            facts::{Looks as _, Views},
            testing::{Failing, Keeper, Seen, listed, member, of_three, replica, shard_of, shared},
        },
        *,
    };
    use crate::{
        store::{Ledger, MemoryStore, ShardStore, Stored, VerifiedShard},
        unsettled::{Coming, Origin},
    };

    const OWN: NodeId = NodeId::new([1; 32]);

    /// A steward that is alone and holds a shard in each of some arcs, with these arcs.
    async fn steward(ledger: &Arc<Failing>, seen: &Arc<Seen>) -> (Arc<Steward>, Vec<u16>) {
        let store: Arc<dyn ShardStore> = Arc::new(MemoryStore::new(1 << 22));
        let mut arcs = Vec::new();
        for seed in 0..4 {
            arcs.push(Ring::arc(&replica(seed, 0).id().chunk));
            store.put(replica(seed, 0)).await.expect("a put");
        }
        arcs.sort_unstable();
        let ledger = Arc::clone(ledger) as Arc<dyn Ledger>;
        let views = Arc::clone(seen) as Views;
        let steward = Steward::load(Arc::new(shared(OWN, store, ledger, views)));
        (Arc::new(steward.expect("a ledger")), arcs)
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_never_completed_is_told_from_what_is_lost() {
        let (ledger, seen) = (Failing::new(), Seen::new(vec![member(OWN, "")]));
        let (steward, _) = steward(&ledger, &seen).await;
        let (shared, mut chunks) = (Arc::clone(&steward.shared), Vec::new());
        for seed in 1..4 {
            let shard = of_three(seed, 0);
            chunks.push((shard.id(), shard.geometry()));
            shared.store.put(shard).await.expect("a put");
        }
        let counts = || {
            let tally = steward.tally();
            (tally.unfinished, tally.lost, tally.survives)
        };
        let [left, going_on, lost] = [0, 1, 2].map(|at| chunks[at]);
        let stream = Origin::Stream(1);
        let moved = shared.unsettled.moved(left.0, left.1, Coming::Abandoned, Stored::New);
        moved.await.expect("a ledger");
        assert_eq!(shared.unsettled.came(stream, None, going_on.0, going_on.1), None);
        steward.round().await;
        assert_eq!(counts(), (2, 1, Some((0, 0))));
        // What is lost stays lost; nothing of it changes when it is looked at again.
        assert_eq!((steward.round().await, counts().1), (0, 1));
        // Its client was there all the time, and went away just now: no node holds anything else.
        assert_eq!(shared.unsettled.came(stream, None, lost.0, lost.1), None);
        shared.unsettled.abandon(stream, &[lost.0.chunk]).await;
        assert_eq!(steward.round().await, 1);
        assert_eq!(counts(), (3, 0, Some((0, 0))), "one node survives no loss");
        // A row says how many there are, not which: the next run asks anew.
        let again = Steward::load(Arc::clone(&shared)).expect("a ledger");
        assert_eq!(again.tally().unfinished, 3);
        let again = Arc::new(again);
        again.round().await;
        assert_eq!((again.tally().unfinished, again.tally().lost), (3, 0));
        // Then a put completes one: the mark goes, its shards are enough.
        shared.unsettled.settle((None, left.0.chunk)).await.expect("a ledger");
        shared.store.put(of_three(1, 1)).await.expect("a put");
        steward.round().await;
        assert_eq!((counts().0, counts().1), (2, 0));
        // Another is safe, and what others held of it is lost; here nothing of it changed.
        shared.unsettled.settle((None, going_on.0.chunk)).await.expect("no mark");
        steward.round().await;
        assert_eq!((counts().0, counts().1), (1, 1));
    }

    #[tokio::test]
    async fn before_a_chunk_is_lost_all_who_may_hold_shards_are_asked() {
        let (own, keeper) = (NodeKey::from_seed([1; 32]).id(), Keeper::start(2));
        let store: Arc<dyn ShardStore> = Arc::new(MemoryStore::new(1 << 20));
        let seen = Seen::new([own, keeper.id].map(|id| member(id, "")).to_vec());
        let ledger = Failing::new() as Arc<dyn Ledger>;
        let mut shared = shared(own, store, ledger, Arc::clone(&seen) as Views);
        shared.exchange = keeper.exchange(1);
        let steward = Arc::new(Steward::load(Arc::new(shared)).expect("a ledger"));
        let (shared, view) = (&steward.shared, seen.now());
        steward.round().await;
        // What the other one tells is of before the put; what each of them holds is safe.
        shared.claims.hear(keeper.id, Vec::new()).await;
        let is_own = |seed: &u8| {
            let arc = Ring::arc(&of_three(*seed, 0).id().chunk);
            view.ring.walk(arc).next() == Some(own)
        };
        let mut seeds = (10..).filter(is_own);
        let [there, lost] = [(); 2].map(|()| seeds.next().expect("half of them"));
        shared.store.put(of_three(there, 0)).await.expect("a put");
        shared.store.put(of_three(lost, 0)).await.expect("a put");
        keeper.take(&of_three(there, 1), Coming::Otherwise).await;
        for _ in 0..2 {
            steward.round().await;
            assert_eq!((steward.tally().unfinished, steward.tally().lost), (1, 1));
        }
        // Then it is listed, too.
        let shard = listed(&of_three(there, 1));
        shared.claims.hear(keeper.id, vec![shard]).await;
        steward.round().await;
        assert_eq!((steward.tally().unfinished, steward.tally().lost), (0, 1));
    }

    #[tokio::test]
    async fn what_only_seems_to_lack_shards_is_not_thin_and_not_repaired() {
        let (own, keeper) = (NodeKey::from_seed([1; 32]).id(), Keeper::start(2));
        let store: Arc<dyn ShardStore> = Arc::new(MemoryStore::new(1 << 20));
        let seen = Seen::new([own, keeper.id].map(|id| member(id, "")).to_vec());
        let ledger = Failing::new() as Arc<dyn Ledger>;
        let mut shared = shared(own, store, ledger, Arc::clone(&seen) as Views);
        shared.exchange = keeper.exchange(1);
        let steward = Arc::new(Steward::load(Arc::new(shared)).expect("a ledger"));
        let (shared, view) = (&steward.shared, seen.now());
        steward.round().await;
        // What the other one tells is of before the puts.
        shared.claims.hear(keeper.id, Vec::new()).await;
        let is_own = |seed: &u8| {
            let arc = Ring::arc(&of_three(*seed, 0).id().chunk);
            view.ring.walk(arc).next() == Some(own)
        };
        let mut seeds = (10..).filter(is_own);
        let [there, thin, going_on] = [(); 3].map(|()| seeds.next().expect("half of them"));
        for shard in [there, thin, going_on].map(|seed| [0, 1].map(|index| of_three(seed, index))) {
            for shard in shard {
                shared.store.put(shard).await.expect("a put");
            }
        }
        keeper.take(&of_three(there, 2), Coming::Otherwise).await;
        let stream = Origin::Stream(1);
        for index in [0, 1] {
            let shard = of_three(going_on, index);
            assert_eq!(shared.unsettled.came(stream, None, shard.id(), shard.geometry()), None);
        }
        // Thin, unfinished, jobs: of thin ones only.
        let counts = || {
            let tally = steward.tally();
            let counted: u64 = tally.by_margin.values().sum();
            assert_eq!((tally.lost, tally.waiting), (0, 0));
            (counted - tally.whole - tally.unfinished, tally.unfinished, shared.jobs.len())
        };
        for _ in 0..2 {
            steward.round().await;
            assert_eq!(counts(), (1, 2, 1));
        }
        // Then it is listed, too.
        shared.claims.hear(keeper.id, vec![listed(&of_three(there, 2))]).await;
        steward.round().await;
        assert_eq!((counts(), steward.tally().whole), ((1, 1, 1), 1));
        // The other put ends and leaves it so: no list changes by that.
        let chunk = of_three(going_on, 0).id().chunk;
        shared.unsettled.settle((None, chunk)).await.expect("no mark");
        steward.round().await;
        assert_eq!(counts(), (2, 0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn who_had_not_the_time_for_all_questions_has_not_planned() {
        let (ledger, seen) = (Failing::new(), Seen::new(vec![member(OWN, "")]));
        let (steward, _) = steward(&ledger, &seen).await;
        let (shared, stream) = (&steward.shared, Origin::Stream(1));
        // More than are asked about in a round. Nothing is lost: their puts go on.
        for (needed, seed) in (2..7).flat_map(|needed| (0..=u8::MAX).map(move |it| (needed, it))) {
            let shard = shard_of(needed, seed, 0);
            let (id, geometry) = (shard.id(), shard.geometry());
            shared.store.put(shard).await.expect("a put");
            let _ = shared.unsettled.came(stream, None, id, geometry);
        }
        steward.round().await;
        assert!(steward.tally().lost > 0);
        assert!(!steward.has_planned(&seen.now()));
        let mut rounds = 0;
        while !steward.has_planned(&seen.now()) {
            steward.round().await;
            rounds += 1;
            assert!(rounds < 10);
        }
        assert_eq!((steward.tally().unfinished, steward.tally().lost), (5 * 256, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_stored_once_is_lost_whatever_is_put_of_it_later() {
        let (ledger, seen) = (Failing::new(), Seen::new(vec![member(OWN, "")]));
        let (steward, _) = steward(&ledger, &seen).await;
        let shared = &steward.shared;
        let (old, again) = (shard_of(3, 1, 0), shard_of(3, 1, 1));
        let (stream, id, geometry) = (Origin::Stream(1), again.id(), again.geometry());
        shared.store.put(old).await.expect("a put");
        shared.store.put(again).await.expect("a put");
        assert_eq!(shared.unsettled.came(stream, None, id, geometry), None);
        steward.round().await;
        assert_eq!((steward.tally().unfinished, steward.tally().lost), (0, 1));
        shared.unsettled.abandon(stream, &[id.chunk]).await;
        steward.round().await;
        assert_eq!((steward.tally().unfinished, steward.tally().lost), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_gone_or_down_may_have_known_better() {
        let (ledger, seen) = (Failing::new(), Seen::new(vec![member(OWN, "")]));
        let (steward, _) = steward(&ledger, &seen).await;
        let shared = &steward.shared;
        for seed in 1..4 {
            let shard = of_three(seed, 0);
            let (id, geometry) = (shard.id(), shard.geometry());
            let stored = shared.store.put(shard).await.expect("a put");
            let moved = shared.unsettled.moved(id, geometry, Coming::Abandoned, stored);
            moved.await.expect("a ledger");
        }
        let counts = || (steward.tally().unfinished, steward.tally().lost);
        steward.round().await;
        assert_eq!(counts(), (3, 0));
        // With another shard that a node had which is gone there were enough once; with the same, not.
        let [dead, gone, down] = [7, 8, 9].map(|number| NodeId::new([number; 32]));
        seen.stands(dead, Standing::Dead);
        shared.claims.hear(dead, vec![listed(&of_three(1, 1))]).await;
        shared.claims.hear(gone, vec![listed(&of_three(2, 0))]).await;
        steward.round().await;
        assert_eq!(counts(), (2, 1));
        // Who cannot be asked may know that it was stored, until it is given up.
        seen.stands(down, Standing::Down);
        shared.claims.hear(down, vec![listed(&of_three(3, 0))]).await;
        steward.round().await;
        assert_eq!(counts(), (1, 2));
        seen.stands(down, Standing::Dead);
        steward.round().await;
        assert_eq!(counts(), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_and_has_not_told_what_it_holds_may_hold_the_rest_for_a_while() {
        let members = [OWN, NodeId::new([2; 32]), NodeId::new([3; 32])].map(|id| member(id, ""));
        let (ledger, seen) = (Failing::new(), Seen::new(members.to_vec()));
        let (steward, _) = steward(&ledger, &seen).await;
        let (shared, view) = (&steward.shared, seen.now());
        let is_own = |shard: &VerifiedShard| {
            view.ring.walk(Ring::arc(&shard.id().chunk)).next() == Some(OWN)
        };
        let shard = (10..).map(|seed| of_three(seed, 0)).find(is_own).expect("one of three");
        shared.store.put(shard).await.expect("a put");
        for _ in 0..2 {
            steward.round().await;
            assert_eq!((steward.tally().waiting, steward.tally().lost), (1, 0));
        }
        tokio::time::advance(TOLD_WITHIN).await;
        steward.round().await;
        assert_eq!((steward.tally().waiting, steward.tally().lost), (0, 1));
    }

    fn bad_block(arc: u16) -> Option<Vec<u8>> {
        Some([b"rc", &arc.to_be_bytes()[..]].concat())
    }

    #[tokio::test(start_paused = true)]
    async fn an_arc_that_cannot_be_read_keeps_no_other_from_being_planned() {
        let (ledger, members) = (Failing::new(), vec![member(OWN, "")]);
        let seen = Seen::new(members.clone());
        let (steward, arcs) = steward(&ledger, &seen).await;
        assert_eq!(steward.round().await, 4);
        assert!(steward.has_planned(&seen.now()));

        seen.change(members, 1);
        ledger.spoil(bad_block(arcs[0]));
        assert_eq!(steward.round().await, 3);
        assert!(!steward.has_planned(&seen.now()));
        // Whoever follows on the walk takes over, though a write succeeds at each round.
        assert_eq!(steward.shared.health.told().await, 0);
        tokio::time::advance(Duration::from_secs(150)).await;
        assert_eq!(steward.round().await, 0);
        tokio::time::advance(Duration::from_secs(150)).await;
        assert_eq!(steward.round().await, 0);
        assert_eq!(steward.shared.health.told().await, CANNOT_PLAN);
        // Alone, it goes on all the same.
        ledger.spoil(None);
        assert_eq!(steward.round().await, 1);
        assert!(steward.has_planned(&seen.now()));
        assert_eq!(steward.shared.health.told().await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_plan_an_arc_stays_unable_when_it_is_another_nodes_by_then() {
        let (ledger, alone) = (Failing::new(), vec![member(OWN, "")]);
        let seen = Seen::new(alone.clone());
        let (steward, arcs) = steward(&ledger, &seen).await;
        steward.round().await;
        ledger.spoil(bad_block(arcs[0]));
        seen.change(alone.clone(), 1);
        steward.round().await;
        // Others join, and all arcs are theirs.
        let others = (2..6).map(|number| member(NodeId::new([number; 32]), ""));
        seen.change(others.collect(), 2);
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(150)).await;
            steward.round().await;
        }
        assert_eq!(steward.shared.health.told().await, CANNOT_PLAN);
        ledger.spoil(None);
        steward.round().await;
        assert_eq!(steward.shared.health.told().await, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn while_the_ledger_hangs_it_is_known_since_when() {
        let (ledger, seen) = (Failing::new(), Seen::new(vec![member(OWN, "")]));
        let (steward, _) = steward(&ledger, &seen).await;
        assert_eq!(steward.round().await, 4);
        seen.change(vec![member(OWN, "")], 1);
        ledger.hangs.store(true, Relaxed);
        let waiting = tokio::spawn({
            let steward = Arc::clone(&steward);
            async move { steward.round().await }
        });
        while !steward.shared.health.waits_for_the_ledger() {
            tokio::task::yield_now().await;
        }
        ledger.hangs.store(false, Relaxed);
        assert_eq!(waiting.await.expect("a round"), 4);
        assert!(!steward.shared.health.waits_for_the_ledger());
    }
}
