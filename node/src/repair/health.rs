//! How able this node is, as it tells others: whether it can write down what it plans, and whether its
//! disk can be read.
//!
//! Owns the bits that travel in `ArcChangesReply`; decides nothing about other nodes. The one idea: a
//! node that can write nothing plans nothing, and the next one of the walk does, until it can again.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_proto::holdings::{CANNOT_PLAN, CANNOT_READ};
use tokio::time::Instant;

use super::claims::blocking;
use crate::store::{Ledger, ShardStore, Writes};

/// How long the ledger must take nothing before another node plans: who plans next knows nothing of how
/// long shards have been missing, so one write that fails is no reason.
const LEDGER_PATIENCE: Duration = Duration::from_secs(300);

/// Written only to see whether the ledger takes anything.
const PROBE_KEY: &[u8] = b"rh";

/// The health of this node. Clones are the same.
#[derive(Clone)]
pub(super) struct Health(Arc<Inner>);

struct Inner {
    store: Arc<dyn ShardStore>,
    ledger: Arc<dyn Ledger>,
    /// Since when the ledger took nothing, after a plan could not be written down.
    ledger_fails_since: Mutex<Option<Instant>>,
}

impl Health {
    pub(super) fn new(store: Arc<dyn ShardStore>) -> Self {
        let ledger = store.ledger();
        Self(Arc::new(Inner { store, ledger, ledger_fails_since: Mutex::default() }))
    }

    fn ledger_fails_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.ledger_fails_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a plan could not be made or written down.
    pub(super) fn ledger_failed(&self) {
        self.ledger_fails_since().get_or_insert_with(Instant::now);
    }

    /// Looks whether a ledger that failed takes something again.
    pub(super) async fn look_again(&self) {
        if self.ledger_fails_since().is_none() {
            return;
        }
        let ledger = Arc::clone(&self.0.ledger);
        let written = blocking(move || -> io::Result<()> {
            ledger.apply(vec![(PROBE_KEY.to_vec(), Some(vec![1]))])
        });
        if written.await.is_ok() {
            *self.ledger_fails_since() = None;
        }
    }

    /// What it cannot do, as it travels.
    pub(super) async fn told(&self) -> u32 {
        let refuses = self.0.store.stats().await.writes == Writes::Refused;
        let fails = |since: Instant| since.elapsed() >= LEDGER_PATIENCE;
        let mut unable = 0;
        if refuses || self.ledger_fails_since().is_some_and(fails) {
            unable |= CANNOT_PLAN;
        }
        if self.0.store.doubts().is_unreadable() {
            unable |= CANNOT_READ;
        }
        unable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn a_node_whose_ledger_takes_nothing_for_minutes_says_so_until_it_takes_something() {
        let health = Health::new(Arc::new(MemoryStore::new(1 << 20)));
        health.look_again().await;
        health.ledger_failed();
        assert_eq!(health.told().await, 0, "once is no reason");
        tokio::time::advance(LEDGER_PATIENCE).await;
        health.ledger_failed();
        assert_eq!(health.told().await, CANNOT_PLAN);
        health.look_again().await;
        assert_eq!(health.told().await, 0);
    }
}
