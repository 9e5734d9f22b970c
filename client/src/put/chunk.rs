//! One chunk on its way into the network.
//!
//! Owns the task of one chunk: who gets which shard that nobody has yet, when it is safe, who is too
//! slow. The decisions are [`Placement`]'s. The one idea: the shards of a chunk are its own
//! yardstick: those that take three times as long as the first k are sent elsewhere too.

use std::{sync::Arc, time::Duration};

use copse_core::ids::{NodeId, ShardIndex};
use copse_proto::status::{Reason, Refusal};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    Session, Stored, held,
    placement::{Placement, SENDS_MAX, Spread},
    stream::{Done, Fate, Job, Outcome},
};
use crate::{
    encode::PreparedChunk,
    error::{PutError, Refusals},
};

/// Patience with stragglers: this, and twice the time that the first k shards took.
const STRAGGLER_GRACE: Duration = Duration::from_secs(2);

/// How a chunk ended.
pub(super) struct Ended {
    /// Distinct shards on disk.
    pub(super) have: usize,
    /// How these lie.
    pub(super) spread: Option<Spread>,
    pub(super) error: Option<PutError>,
    /// Who waits to hear that it is safe; nobody unless it is.
    pub(super) to_settle: Vec<NodeId>,
}

impl Ended {
    fn refused(error: PutError) -> Self {
        Self { have: 0, spread: None, error: Some(error), to_settle: Vec::new() }
    }
}

/// Brings a chunk to its holders. Says so to `ticket` when the write quorum is on disk, and returns
/// when every shard is placed or given up.
pub(super) async fn place(
    session: &Session,
    chunk: PreparedChunk,
    ticket: oneshot::Sender<Result<Stored, PutError>>,
) -> Ended {
    let view = session.network.view();
    let geometry = chunk.geometry();
    let preferred = view.placement(&chunk.id(), geometry);
    if preferred.is_empty() {
        let error = PutError::NoNodes;
        // The caller may have gone: then nobody wants to know.
        let _ = ticket.send(Err(error.clone()));
        return Ended::refused(error);
    }
    let candidates = view.candidates(&chunk.id(), geometry);
    let mut placement = Placement::new(geometry, preferred, candidates);
    if !session.options.allow_fragile && !placement.survives_a_loss() {
        let error = PutError::Fragile { chunk: chunk.id(), geometry, nodes: view.ring.len() };
        let _ = ticket.send(Err(error.clone()));
        return Ended::refused(error);
    }
    if session.options.ask_first {
        held::find(session, &chunk.reference(), &mut placement).await;
    }
    let (reply, replies) = mpsc::channel(geometry.total() * SENDS_MAX);
    let sending = Sending {
        session,
        placement,
        chunk: Arc::new(chunk),
        done: Done::default(),
        reply,
        ticket: Some(ticket),
        outstanding: 0,
    };
    sending.run(replies).await
}

struct Sending<'a> {
    session: &'a Session,
    placement: Placement,
    chunk: Arc<PreparedChunk>,
    done: Done,
    reply: mpsc::Sender<Outcome>,
    ticket: Option<oneshot::Sender<Result<Stored, PutError>>>,
    outstanding: usize,
}

impl Sending<'_> {
    async fn run(mut self, mut replies: mpsc::Receiver<Outcome>) -> Ended {
        let geometry = self.chunk.geometry();
        let counters = &self.session.counters;
        let held = self.placement.durable();
        counters.shards_held.fetch_add(held as u64, std::sync::atomic::Ordering::Relaxed);
        counters.shards_placed.fetch_add(held as u64, std::sync::atomic::Ordering::Relaxed);
        let started = Instant::now();
        for index in self.placement.missing() {
            self.send(index);
        }
        let mut patience: Option<Duration> = None;
        let mut deadline = started;
        loop {
            let have = self.placement.durable();
            if self.placement.counting() >= geometry.write_quorum() {
                self.session.fills(self.chunk.id(), have, geometry.total());
                self.say(Ok(Stored { chunk: self.chunk.id(), sent: held < have }));
            }
            if have == geometry.total() || self.outstanding == 0 {
                return self.end();
            }
            if patience.is_none() && have >= geometry.data().max(held + 1) {
                let grace = started.elapsed() * 2 + STRAGGLER_GRACE;
                patience = Some(grace);
                deadline = Instant::now() + grace;
            }
            tokio::select! {
                biased;
                outcome = replies.recv() => match outcome {
                    Some(outcome) => self.heard(outcome),
                    None => return self.end(),
                },
                () = sleep_until(deadline), if patience.is_some() => {
                    self.send_stragglers_elsewhere();
                    deadline = Instant::now() + patience.unwrap_or(STRAGGLER_GRACE);
                }
            }
        }
    }

    /// Sends a shard to its next node. Nothing happens when nobody is left.
    fn send(&mut self, index: ShardIndex) {
        let network = &self.session.network;
        let usable = |node| network.holder(node).can_store();
        let further = || network.view().further(&self.chunk.id(), self.chunk.geometry());
        while let Some(node) = self.placement.next_or_further(index, usable, further) {
            network.holder(node).begin();
            let job = Job {
                chunk: Arc::clone(&self.chunk),
                index,
                done: self.done.clone(),
                reply: self.reply.clone(),
            };
            match self.session.stream(node).send(job) {
                Ok(()) => {
                    self.outstanding += 1;
                    return;
                }
                Err(_) => {
                    let why = Refusal::new(Reason::Overloaded, "too much is waiting for it");
                    self.placement.refused(index, node, why);
                }
            }
        }
    }

    fn heard(&mut self, outcome: Outcome) {
        let Outcome { node, index, fate } = outcome;
        self.outstanding -= 1;
        let was_durable = self.placement.is_durable(index);
        match fate {
            Fate::Stored { unsettled } => {
                self.placement.held(index, node);
                if unsettled {
                    self.placement.waits(node);
                }
                if !was_durable {
                    let placed = &self.session.counters.shards_placed;
                    placed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            }
            Fate::NotNeeded => self.placement.not_sent(index, node),
            Fate::Refused(why) => {
                tracing::debug!(
                    chunk = %self.chunk.id().short(), %index, node = %node.short(), %why,
                    "a shard was refused"
                );
                self.placement.refused(index, node, why);
                if !was_durable && !self.placement.is_on_its_way(index) {
                    self.send(index);
                }
            }
        }
    }

    fn send_stragglers_elsewhere(&mut self) {
        for index in self.placement.missing() {
            for node in self.placement.waiting_for(index) {
                self.session.network.holder(node).failed("it is much slower than the others");
            }
            self.send(index);
        }
    }

    fn say(&mut self, result: Result<Stored, PutError>) {
        if let Some(ticket) = self.ticket.take() {
            self.session
                .counters
                .chunks_safe
                .fetch_add(u64::from(result.is_ok()), std::sync::atomic::Ordering::Relaxed);
            // The caller may not be interested in this chunk alone; flush tells all.
            let _ = ticket.send(result);
        }
    }

    fn end(mut self) -> Ended {
        let geometry = self.chunk.geometry();
        let have = self.placement.durable();
        let mut error = None;
        let counting = self.placement.counting();
        if counting < geometry.write_quorum() {
            let failed = PutError::Quorum {
                chunk: self.chunk.id(),
                have: counting,
                need: geometry.write_quorum(),
                total: geometry.total(),
                refusals: Refusals(self.placement.refusals()),
            };
            self.say(Err(failed.clone()));
            error = Some(failed);
        }
        let is_safe = error.is_none();
        if is_safe {
            self.done.safe();
        }
        let to_settle = if is_safe { self.placement.to_settle() } else { Vec::new() };
        Ended { have, spread: self.placement.spread(), error, to_settle }
    }
}
