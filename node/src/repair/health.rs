//! How able this node is, as it tells others: whether it can plan, and whether its disk can be read.
//!
//! Owns the bits that travel in `ArcChangesReply`; decides nothing about other nodes. The one idea: a
//! node that cannot plan, for its ledger fails or hangs or it is cut off itself, does not keep its arcs:
//! the next one of the walk plans them, until it can again.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_proto::{
    holdings::{CANNOT_PLAN, CANNOT_READ},
    status::Refusal,
};
use tokio::time::Instant;

use super::claims::blocking;
use crate::store::{Ledger, ShardStore, Writes};

/// How long a node must be unable to plan before another one does: who plans next knows nothing of how
/// long shards have been missing, so one write that fails is no reason.
const PLAN_PATIENCE: Duration = Duration::from_secs(300);

/// Written only to see whether the ledger takes anything.
const PROBE_KEY: &[u8] = b"rh";

/// The health of this node. Clones are the same.
#[derive(Clone)]
pub(super) struct Health(Arc<Inner>);

struct Inner {
    store: Arc<dyn ShardStore>,
    ledger: Arc<dyn Ledger>,
    since: Mutex<Since>,
}

/// Since when it is as it should not be.
#[derive(Default)]
struct Since {
    /// Each round met an error of the ledger.
    rounds_fail: Option<Instant>,
    /// The steward waits for one step of the ledger.
    step: Option<Instant>,
    /// It is cut off from most of the network.
    cut_off: Option<Instant>,
}

/// The steward waits for the ledger, until this is dropped.
pub(super) struct LedgerStep<'a>(&'a Health);

impl Drop for LedgerStep<'_> {
    fn drop(&mut self) {
        self.0.since().step = None;
    }
}

impl Health {
    pub(super) fn new(store: Arc<dyn ShardStore>) -> Self {
        let ledger = store.ledger();
        Self(Arc::new(Inner { store, ledger, since: Mutex::default() }))
    }

    fn since(&self) -> MutexGuard<'_, Since> {
        self.0.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A round begins, in which this node is cut off or not. When the last one failed, it is looked
    /// whether the ledger takes anything.
    ///
    /// # Errors
    /// When it does not.
    pub(super) async fn begin_round(&self, cut_off: bool) -> Result<(), Refusal> {
        let failed = {
            let mut since = self.since();
            since.cut_off = cut_off.then(|| since.cut_off.unwrap_or_else(Instant::now));
            since.rounds_fail.is_some()
        };
        if !failed {
            return Ok(());
        }
        let ledger = Arc::clone(&self.0.ledger);
        let _step = self.ledger_step();
        blocking(move || ledger.apply(vec![(PROBE_KEY.to_vec(), Some(vec![1]))])).await
    }

    /// A round has ended, with or without an error of the ledger.
    pub(super) fn end_round(&self, well: bool) {
        let mut since = self.since();
        since.rounds_fail = (!well).then(|| since.rounds_fail.unwrap_or_else(Instant::now));
    }

    /// To be held while the steward waits for one step of the ledger, which may hang.
    pub(super) fn ledger_step(&self) -> LedgerStep<'_> {
        self.since().step = Some(Instant::now());
        LedgerStep(self)
    }

    #[cfg(test)]
    pub(super) fn waits_for_the_ledger(&self) -> bool {
        self.since().step.is_some()
    }

    /// What it cannot do, as it travels.
    pub(super) async fn told(&self) -> u32 {
        let refuses = self.0.store.stats().await.writes == Writes::Refused;
        let mut unable = 0;
        if refuses || self.since().is_too_long() {
            unable |= CANNOT_PLAN;
        }
        if self.0.store.doubts().is_unreadable() {
            unable |= CANNOT_READ;
        }
        unable
    }
}

impl Since {
    fn is_too_long(&self) -> bool {
        let all = [self.rounds_fail, self.step, self.cut_off];
        all.into_iter().flatten().any(|since| since.elapsed() >= PLAN_PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn health() -> Health {
        Health::new(Arc::new(MemoryStore::new(1 << 20)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_whose_rounds_fail_for_minutes_says_so_until_one_does_not() {
        let health = health();
        health.begin_round(false).await.expect("it is well");
        health.end_round(false);
        assert_eq!(health.told().await, 0, "once is no reason");
        tokio::time::advance(PLAN_PATIENCE / 2).await;
        health.begin_round(false).await.expect("the ledger takes something");
        assert_eq!(health.told().await, 0);
        health.end_round(false);
        tokio::time::advance(PLAN_PATIENCE / 2).await;
        assert_eq!(health.told().await, CANNOT_PLAN, "that a write succeeds is not enough");
        health.begin_round(false).await.expect("the ledger takes something");
        health.end_round(true);
        assert_eq!(health.told().await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_whose_ledger_hangs_for_minutes_says_so_until_it_goes_on() {
        let health = health();
        let step = health.ledger_step();
        assert_eq!(health.told().await, 0);
        tokio::time::advance(PLAN_PATIENCE).await;
        assert_eq!(health.told().await, CANNOT_PLAN);
        drop(step);
        assert_eq!(health.told().await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_cut_off_for_minutes_says_so_until_it_is_not() {
        let health = health();
        for _ in 0..3 {
            assert_eq!(health.told().await, 0);
            health.begin_round(true).await.expect("it is well");
            tokio::time::advance(PLAN_PATIENCE / 3).await;
        }
        assert_eq!(health.told().await, CANNOT_PLAN);
        health.begin_round(false).await.expect("it is well");
        assert_eq!(health.told().await, 0);
    }
}
