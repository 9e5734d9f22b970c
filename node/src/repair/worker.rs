//! Doing what was planned: takes jobs from the queue, plans each chunk again, and does that.
//!
//! Owns the doing; decides nothing. The one idea: a job names a chunk,
//! not a deed. What is done follows from what the holders say at that moment, so a job that became
//! pointless does nothing, and doing one twice is harmless.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use copse_core::{
    descriptor::Descriptor,
    ids::{NodeId, ShardId, ShardIndex},
    rebuild::{RebuildError, rebuild},
    repair::{self, Action, ChunkFacts, ChunkPlan, Claim, Entry, Job, Kind, Lane, Nodes as _},
    ring::Ring,
};
use copse_proto::{
    peer,
    status::{Reason, Refusal},
};
use futures::{FutureExt as _, StreamExt as _, future::join_all, stream::FuturesUnordered};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    answers::Answers,
    claims::blocking,
    exchange::Use,
    facts::{Facts, View},
    jobs::kind_name,
    phases::Phase,
    report::count,
    shapes::{Judge, chunks_of},
    shared::Shared,
};
use crate::{
    beside::beside,
    intake::Intake,
    peer::{Op, Outcome, PeerError},
    store::{VerifiedShard, Want},
    unsettled::Coming,
};

/// Memory for shards of chunks that are being rebuilt, in KiB: five chunks of 10+6.
const BUFFER_KIB: u32 = 64 << 10;

/// How long a worker sleeps at most: the clock may be set.
const SLEEP_MAX: Duration = Duration::from_secs(10);

/// Does the jobs, as often at one time as it is [run](Self::run).
pub(super) struct Worker {
    shared: Arc<Shared>,
    judge: Judge,
    answers: Arc<Answers>,
    /// Closed when the node leaves: then it stores nothing new.
    intake: Intake,
    memory: Arc<Semaphore>,
    running: AtomicU64,
}

/// What became of a job.
enum Done {
    /// It was done.
    Yes,
    /// There was nothing to do any more.
    Needless(&'static str),
}

/// One more job is in work, until this is dropped.
struct Running<'a>(&'a AtomicU64);

impl<'a> Running<'a> {
    fn one(running: &'a AtomicU64) -> Self {
        count(running, 1);
        Self(running)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, answers: Arc<Answers>, intake: Intake) -> Self {
        let judge = Judge(Arc::clone(&shared));
        let memory = Arc::new(Semaphore::new(BUFFER_KIB as usize));
        Self { shared, judge, answers, intake, memory, running: AtomicU64::new(0) }
    }

    /// Jobs in work.
    pub(super) fn running(&self) -> u64 {
        self.running.load(Relaxed)
    }

    /// Works until `stop` is cancelled.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let woken = self.shared.jobs.woken();
            // A node that is cut off has nobody to repair with: its jobs wait, and none has failed.
            let next = match self.shared.views.now().cut_off {
                true => None,
                false => self.shared.jobs.next(self.shared.now_ms()),
            };
            let Some((job, entry)) = next else {
                let wait = self.shared.jobs.next_at_unix_ms().map_or(SLEEP_MAX, |at| {
                    Duration::from_millis(at.saturating_sub(self.shared.now_ms()))
                        .clamp(Duration::from_millis(50), SLEEP_MAX)
                });
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = woken => {}
                    () = tokio::time::sleep(wait) => {}
                }
                continue;
            };
            let running = Running::one(&self.running);
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                result = self.work_or_fail(job, &entry) => result,
            };
            drop(running);
            let chunk = job.chunk.short();
            match result {
                Ok(Done::Yes) => {
                    count(&self.shared.counters.jobs_done, 1);
                    tracing::debug!(%chunk, kind = kind_name(job.kind), "repair done");
                    self.shared.jobs.strike_off(job).await;
                }
                Ok(Done::Needless(why)) => {
                    count(&self.shared.counters.jobs_cancelled, 1);
                    tracing::debug!(%chunk, kind = kind_name(job.kind), why, "repair needless");
                    self.shared.jobs.strike_off(job).await;
                }
                Err(refusal) => {
                    count(&self.shared.counters.jobs_failed, 1);
                    tracing::info!(%chunk, kind = kind_name(job.kind), %refusal, "repair put off");
                    // Others say when their load may be less; this one, when its reason ends.
                    let is_pinned = refusal.reason() == Reason::KeepsShard;
                    let told = refusal.retry_delay().filter(|_| is_pinned);
                    self.shared
                        .jobs
                        .put_off(job, self.shared.now_ms(), refusal.message(), told)
                        .await;
                }
            }
        }
    }

    /// Works, and takes a panic for a failure: the job is tried again, and the worker goes on.
    async fn work_or_fail(&self, job: Job, entry: &Entry) -> Result<Done, Refusal> {
        AssertUnwindSafe(self.work(job, entry)).catch_unwind().await.unwrap_or_else(|panic| {
            tracing::error!(chunk = %job.chunk, kind = kind_name(job.kind), "a repair panicked");
            Err(crate::refusals::internal(&format!("it panicked: {}", said(&*panic))))
        })
    }

    async fn work(&self, job: Job, entry: &Entry) -> Result<Done, Refusal> {
        let view = self.shared.views.now();
        let nodes = self.shared.opinions.with(&view);
        if view.cut_off {
            return Err(Refusal::new(Reason::NodeUnreachable, self.shared.views.guard()));
        }
        let arc = Ring::arc(&job.chunk);
        if repair::steward(&view.ring, arc, &nodes) != Some(self.shared.own) {
            return Ok(Done::Needless("another node is its steward now"));
        }
        let shared = Arc::clone(&self.shared);
        let mut said = blocking(move || shared.claims.of_arc(arc)).await?;
        said.iter_mut().for_each(|(_, shards)| shards.retain(|shard| shard.id.chunk == job.chunk));
        let Some(said) = chunks_of(said, &nodes, None).pop() else {
            return Ok(Done::Needless("nobody holds any of it"));
        };
        let said = self.judge.settle(said, &nodes).await;
        // Who was caught by that counts no more.
        let mut nodes =
            self.shared.opinions.with(&view).with_returning(self.shared.views.returning());
        let (facts, silent) = self.ask_all(&view, &mut nodes, said, job.kind).await;
        let plan = repair::plan_chunk(&view.ring, &nodes, &facts, &self.shared.settings.policy);
        self.shared.phases.reach(Phase::Planned, job.chunk).await;
        self.wait_for_the_returning(&plan, entry)?;
        match (self.carry_out(job, &facts, &plan).await?, silent) {
            (Done::Needless(_), Some(refusal)) => Err(refusal),
            (done, _) => Ok(done),
        }
    }

    /// While nodes come back after an outage, chunks are thin one moment and whole the next: those
    /// that are thin only for nodes that are down wait for the rest of them, though not for long.
    fn wait_for_the_returning(&self, plan: &ChunkPlan, entry: &Entry) -> Result<(), Refusal> {
        let Some(settle) = self.shared.views.returning() else { return Ok(()) };
        let strength = &plan.strength;
        let enough =
            strength.hoped > self.shared.settings.policy.threshold.shards(strength.geometry);
        let age = self.shared.now_ms().saturating_sub(entry.priority.since_unix_ms);
        let young = u128::from(age) < 2 * settle.as_millis();
        let rebuilds = plan.actions.iter().any(|action| matches!(action, Action::Rebuild { .. }));
        if enough && young && rebuilds {
            let text = "nodes are coming back: the rest of them is waited for";
            return Err(Refusal::new(Reason::NodeUnreachable, text));
        }
        Ok(())
    }

    /// Asks all who may hold shards of a chunk what they have of it now; and why one of them did
    /// not say, if one did not.
    async fn ask_all(
        &self,
        view: &View,
        nodes: &mut Facts,
        said: ChunkFacts,
        kind: Kind,
    ) -> (ChunkFacts, Option<Refusal>) {
        let placed = view.ring.placement(Ring::arc(&said.chunk), said.geometry);
        let asked: BTreeSet<NodeId> = said
            .claims
            .iter()
            .map(|claim| claim.node)
            .chain(placed)
            .filter(|node| nodes.facts(node).standing.is_reachable())
            .collect();
        let chunk = said.chunk;
        let answers = join_all(asked.iter().map(async |&node| {
            let held = if node == self.shared.own {
                self.shared
                    .store
                    .held(chunk)
                    .await
                    .map_err(|error| crate::refusals::of_read(&error))
            } else {
                self.shared.exchange.has(node, chunk).await
            };
            (node, held)
        }))
        .await;
        // Of those that cannot be asked, what they said last.
        let mut claims: Vec<Claim> =
            said.claims.iter().filter(|claim| !asked.contains(&claim.node)).copied().collect();
        let mut silent = None;
        for (node, held) in answers {
            match held {
                Ok(held) => claims.extend(held.into_iter().map(|index| Claim { node, index })),
                Err(refusal) => {
                    tracing::debug!(node = %node.short(), %refusal, "not told what it holds");
                    claims.extend(said.claims.iter().filter(|claim| claim.node == node));
                    nodes.silent(node);
                    silent = Some(refusal);
                }
            }
        }
        // That it was queued says that it has been missing for long enough; whether it still is,
        // the claims say.
        let missing_for = (kind == Kind::Rebuild).then_some(self.shared.settings.policy.patience);
        (ChunkFacts { claims, missing_for, ..said }, silent)
    }

    async fn carry_out(
        &self,
        job: Job,
        facts: &ChunkFacts,
        plan: &ChunkPlan,
    ) -> Result<Done, Refusal> {
        let mut done = 0;
        let mut problem = None;
        for action in &plan.actions {
            let result = match (job.kind, action) {
                (Kind::Rebuild, Action::Rebuild { lane, sources, make }) => {
                    self.rebuild(facts, *lane, sources, make).await
                }
                (Kind::Copy, Action::Copy { index, from, to }) => {
                    self.copy(ShardId { chunk: job.chunk, index: *index }, *from, *to).await
                }
                (Kind::Drop, Action::Drop { index, node, kept_by }) => {
                    self.drop(ShardId { chunk: job.chunk, index: *index }, *node, *kept_by).await
                }
                _ => continue,
            };
            match result {
                Ok(()) => done += 1,
                Err(refusal) => problem = Some(refusal),
            }
        }
        match problem {
            Some(refusal) => Err(refusal),
            None if done > 0 => Ok(Done::Yes),
            None => match plan.skips.first() {
                // Its arc is planned again when any holder's list or standing changes. It must not
                // take a place until then: what never existed would take it for ever.
                Some(repair::Skip::NotEnough { .. }) => {
                    Ok(Done::Needless("too few of its shards exist anywhere"))
                }
                // Too few just now or nowhere to go: it stays in the queue, and the status says why.
                Some(
                    skip @ (repair::Skip::WaitingForDown { .. } | repair::Skip::NoTarget { .. }),
                ) if job.kind == Kind::Rebuild => {
                    Err(Refusal::new(Reason::TooFewShards, skip.to_string()))
                }
                _ => Ok(Done::Needless("the shards are there again")),
            },
        }
    }

    /// Reads any k shards, makes the wanted ones, stores them, and has them proved.
    async fn rebuild(
        &self,
        facts: &ChunkFacts,
        lane: Lane,
        sources: &[(ShardIndex, NodeId)],
        make: &[(ShardIndex, NodeId)],
    ) -> Result<(), Refusal> {
        let shards = (facts.geometry.data() + make.len()) as u64;
        let kib = (shards * facts.shard_bytes).div_ceil(1 << 10).min(BUFFER_KIB.into());
        let _memory = Arc::clone(&self.memory)
            .acquire_many_owned(u32::try_from(kib).unwrap_or(BUFFER_KIB))
            .await
            .map_err(|error| crate::refusals::internal(&error))?;
        let fetched = self.fetch(facts, lane, sources).await?;
        self.shared.phases.reach(Phase::Fetched, facts.chunk).await;
        let wanted: Vec<ShardIndex> = make.iter().map(|(index, _)| *index).collect();
        let made = beside(move || reconstruct(&fetched, &wanted));
        let (descriptor, made) =
            made.await.map_err(|error| crate::refusals::internal(&error))??;
        self.shared.phases.reach(Phase::Rebuilt, facts.chunk).await;
        let stored = make.iter().zip(made).map(async |(&(index, to), data)| {
            let id = ShardId { chunk: facts.chunk, index };
            let bytes = data.len() as u64;
            self.store_at(to, &descriptor, id, data, lane).await?;
            self.shared.phases.reach(Phase::Stored, facts.chunk).await;
            self.prove_at(to, &descriptor, id).await?;
            count(&self.shared.counters.rebuilt_shards, 1);
            count(&self.shared.counters.rebuilt_bytes, bytes);
            Ok::<(), Refusal>(())
        });
        let results = join_all(stored).await;
        let problem = results.into_iter().find_map(Result::err);
        self.shared.phases.reach(Phase::Proved, facts.chunk).await;
        problem.map_or(Ok(()), Err)
    }

    /// k shards of different indices, from the best sources that give them.
    async fn fetch(
        &self,
        facts: &ChunkFacts,
        lane: Lane,
        sources: &[(ShardIndex, NodeId)],
    ) -> Result<Vec<VerifiedShard>, Refusal> {
        let needed = facts.geometry.data();
        let mut left = sources.iter();
        let mut running = FuturesUnordered::new();
        let mut have: BTreeMap<ShardIndex, VerifiedShard> = BTreeMap::new();
        let mut problem = None;
        loop {
            while have.len() + running.len() < needed {
                let Some(&(index, node)) = left.next() else { break };
                if have.contains_key(&index) {
                    continue;
                }
                let id = ShardId { chunk: facts.chunk, index };
                running.push(async move { (index, self.shard_from(node, id, lane).await) });
            }
            match running.next().await {
                Some((index, Ok(shard))) => {
                    count(&self.shared.counters.rebuild_read_bytes, shard.data().len() as u64);
                    have.insert(index, shard);
                }
                Some((_, Err(refusal))) => problem = Some(refusal),
                None => break,
            }
            if have.len() == needed {
                break;
            }
        }
        if have.len() == needed {
            return Ok(have.into_values().collect());
        }
        let why = problem.map_or_else(String::new, |refusal| format!("; {}", refusal.message()));
        Err(Refusal::new(
            Reason::TooFewShards,
            format!("have {} of the {needed} shards of chunk {}{why}", have.len(), facts.chunk),
        ))
    }

    async fn shard_from(
        &self,
        node: NodeId,
        id: ShardId,
        lane: Lane,
    ) -> Result<VerifiedShard, Refusal> {
        if node != self.shared.own {
            return self.shared.exchange.get(node, id, lane).await;
        }
        let read = self.shared.store.read(id, Want::Whole).await;
        let read = read.map_err(|error| crate::refusals::of_read(&error))?;
        // What the store gives was verified: this only makes it of the same type.
        let check = move || VerifiedShard::check(read.descriptor, id.index, read.data);
        beside(check)
            .await
            .map_err(|error| crate::refusals::internal(&error))?
            .map_err(|error| crate::refusals::of_check(&error))
    }

    async fn store_at(
        &self,
        to: NodeId,
        descriptor: &Descriptor,
        id: ShardId,
        data: Bytes,
        lane: Lane,
    ) -> Result<(), Refusal> {
        if to != self.shared.own {
            let sent = self.shared.exchange.put(to, descriptor, id, data, lane, false).await;
            return sent.map(|_| ()).inspect_err(|refusal| self.note_full(to, refusal));
        }
        let _inside = self.intake.enter(self.shared.own).await?;
        let encoded = Bytes::from(descriptor.encode());
        let check = move || VerifiedShard::check(encoded, id.index, data);
        let verified = beside(check)
            .await
            .map_err(|error| crate::refusals::internal(&error))?
            .map_err(|error| crate::refusals::of_check(&error))?;
        let geometry = verified.geometry();
        let stored = self.shared.store.put(verified).await;
        let stored = stored
            .map_err(|error| crate::refusals::of_put(&error, self.shared.own))
            .inspect_err(|refusal| self.note_full(to, refusal))?;
        // Enough shards exist to make one of them: a mark at the chunk is not true.
        let moved = self.shared.unsettled.moved(id, geometry, Coming::Otherwise, stored).await;
        moved.map_err(|error| Refusal::new(Reason::StoreFailed, error.to_string()))
    }

    fn note_full(&self, node: NodeId, refusal: &Refusal) {
        if matches!(refusal.reason(), Reason::StoreFull | Reason::StoreFailed) {
            self.shared.opinions.full(node);
        }
    }

    async fn prove_at(
        &self,
        to: NodeId,
        descriptor: &Descriptor,
        id: ShardId,
    ) -> Result<(), Refusal> {
        if to != self.shared.own {
            return self.shared.exchange.prove(to, descriptor, id, Use::Knowing).await;
        }
        let read = self.shared.store.read(id, Want::Whole).await;
        read.map(|_| ()).map_err(|error| crate::refusals::of_read(&error))
    }

    /// Asks a holder to bring a shard where it belongs.
    async fn copy(&self, id: ShardId, from: NodeId, to: NodeId) -> Result<(), Refusal> {
        let op = peer::HandOver {
            chunk_id: id.chunk.as_bytes().to_vec(),
            index: id.index.0.into(),
            to: to.as_bytes().to_vec(),
        };
        if from == self.shared.own {
            return self.answers.hand_over(&op).await.map(|_| ());
        }
        match self.shared.exchange.ask(from, Op::HandOver(op), Lane::Normal).await {
            Ok((Outcome::HandOver(_), _)) => Ok(()),
            Ok(_) => Err(PeerError::BadReply { node: from }.into()),
            Err(error) => {
                let refusal = Refusal::from(error);
                self.note_full(to, &refusal);
                Err(refusal)
            }
        }
    }

    /// Asks a holder to drop a shard that another one keeps.
    async fn drop(&self, id: ShardId, node: NodeId, kept_by: NodeId) -> Result<(), Refusal> {
        let op = peer::Release {
            chunk_id: id.chunk.as_bytes().to_vec(),
            index: id.index.0.into(),
            kept_by: kept_by.as_bytes().to_vec(),
        };
        if node == self.shared.own {
            return self.answers.release(&op).await;
        }
        match self.shared.exchange.ask(node, Op::Release(op), Lane::Normal).await? {
            (Outcome::Release(_), _) => Ok(()),
            _ => Err(PeerError::BadReply { node }.into()),
        }
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let owned = || panic.downcast_ref::<String>().map(String::as_str);
    panic.downcast_ref::<&str>().copied().or_else(owned).unwrap_or("nothing")
}

/// Makes shards from k others, each checked against the descriptor.
fn reconstruct(
    have: &[VerifiedShard],
    wanted: &[ShardIndex],
) -> Result<(Descriptor, Vec<Bytes>), Refusal> {
    let wrong = |error: &dyn std::fmt::Display| Refusal::new(Reason::Internal, error.to_string());
    let first = have.first().ok_or_else(|| wrong(&"there is nothing to rebuild from"))?;
    let descriptor = Descriptor::decode(first.descriptor()).map_err(|error| wrong(&error))?;
    let shards: Vec<(ShardIndex, Bytes)> =
        have.iter().map(|shard| (shard.id().index, shard.data().clone())).collect();
    match rebuild(&descriptor, &shards, wanted) {
        Ok(made) => Ok((descriptor, made)),
        Err(RebuildError::Inconsistent(of)) => {
            let text = format!("the chunk was stored wrong, it cannot be repaired: {of}");
            Err(Refusal::new(Reason::ShardDamaged, text))
        }
        Err(error) => Err(wrong(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            facts::Views,
            testing::{Seen, member, replica, shared},
        },
        *,
    };
    use crate::store::{MemoryStore, ShardStore};

    #[tokio::test]
    async fn a_shard_that_is_made_again_here_takes_the_mark_away() {
        let own = NodeId::new([1; 32]);
        let store: Arc<dyn ShardStore> = Arc::new(MemoryStore::new(1 << 20));
        let (ledger, seen) = (store.ledger(), Seen::new(vec![member(own, "")]));
        let shared = Arc::new(shared(own, Arc::clone(&store), ledger, seen as Views));
        let answers = Arc::new(Answers::new(Arc::clone(&shared)));
        let worker = Worker::new(Arc::clone(&shared), answers, Intake::default());
        let (left, made) = (replica(1, 0), replica(1, 1));
        let (id, geometry) = (left.id(), left.geometry());
        let stored = store.put(left).await.expect("a put");
        let moved = shared.unsettled.moved(id, geometry, Coming::Abandoned, stored);
        moved.await.expect("a ledger");
        assert!(shared.unsettled.waits(&id.chunk));
        let descriptor = Descriptor::decode(made.descriptor()).expect("a descriptor");
        let data = made.data().clone();
        let stored = worker.store_at(own, &descriptor, made.id(), data, Lane::Normal);
        stored.await.expect("a put");
        assert!(!shared.unsettled.waits(&id.chunk));
    }
}
