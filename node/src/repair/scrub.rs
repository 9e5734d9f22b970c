//! Reading one's own disk again, slowly: rot is found while there is still enough to repair it.
//!
//! Owns the pace and the place. What is damaged the store sets apart; that changes the digest of its
//! arc, so the steward sees a shard missing and has it made again. The place is kept over a restart.
//! What could not be read is read again some times, and while nothing is read, anything: see
//! `store::doubts`.
//!
//! ```text
//! row    value
//! "rs"   1 u8 ‖ chunk id 32 ‖ shard index 1: the last shard that was read
//! ```

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use copse_core::ids::ShardId;
use copse_proto::{door, holdings};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{claims::blocking, shared::Shared};
use crate::store::ReadError;

const ROW_KEY: &[u8] = b"rs";
const ROW_VERSION: u8 = 1;

/// Shards looked up at one time; the place is written down as often.
const BATCH: usize = 64;

/// Shards read again at one time.
const AGAIN_AT_ONCE: usize = 16;

/// The longest sleep: the period may be changed, and a scrub be asked for.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Between two rounds of an empty store.
const IDLE: Duration = Duration::from_secs(60);

/// The scrubber of one store, and what it says of itself.
pub(super) struct Scrub {
    shared: Arc<Shared>,
    now: AtomicBool,
    asked: Notify,
    permille: AtomicU32,
    read_bytes: AtomicU64,
    damaged: AtomicU64,
    rounds: AtomicU64,
    /// The last shard that was read only to see whether the disk gives anything.
    probed: Mutex<Option<ShardId>>,
}

impl Scrub {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            now: AtomicBool::new(false),
            asked: Notify::new(),
            permille: AtomicU32::new(0),
            read_bytes: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            probed: Mutex::default(),
        }
    }

    /// Reads everything once more, from the beginning and without pauses.
    pub(super) fn ask(&self) {
        self.now.store(true, Relaxed);
        self.asked.notify_one();
    }

    /// As it travels.
    pub(super) fn told(&self) -> door::ScrubInfo {
        door::ScrubInfo {
            permille: self.permille.load(Relaxed),
            read_bytes: self.read_bytes.load(Relaxed),
            damaged: self.damaged.load(Relaxed),
            rounds: self.rounds.load(Relaxed),
        }
    }

    /// Reads until `stop` is cancelled.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.read_on() => {}
        }
    }

    async fn read_on(&self) {
        let ledger = self.shared.store.ledger();
        let found = blocking(move || ledger.get(ROW_KEY)).await.ok().flatten();
        let mut after = found.as_deref().and_then(read_row);
        let mut hurried = false;
        loop {
            if self.now.swap(false, Relaxed) {
                (after, hurried) = (None, true);
            }
            let batch = match self.shared.store.list(after, BATCH).await {
                Ok(batch) => batch,
                Err(ReadError::Closed) => return,
                Err(error) => {
                    tracing::error!(%error, "the scrub cannot list what is held");
                    self.shared.store.doubts().not_listed();
                    self.rest(IDLE).await;
                    continue;
                }
            };
            let Some(&last) = batch.last() else {
                if after.take().is_some() {
                    self.rounds.fetch_add(1, Relaxed);
                    if std::mem::take(&mut hurried) {
                        self.tell_round();
                    }
                } else {
                    self.rest(IDLE).await;
                }
                continue;
            };
            let started = Instant::now();
            let mut bytes = 0;
            for id in batch {
                bytes += self.check(id).await;
            }
            after = Some(last);
            self.keep(last).await;
            self.look_again().await;
            if !hurried {
                let pause = self.pause(bytes).await;
                self.rest(pause.saturating_sub(started.elapsed())).await;
            }
        }
    }

    async fn check(&self, id: ShardId) -> u64 {
        let arc = u32::from(copse_core::ring::Ring::arc(&id.chunk));
        self.permille.store((arc * 1000) >> 16, Relaxed);
        #[cfg(feature = "canary")]
        if self.shared.phases.scrubs_blindly() {
            return 1;
        }
        match self.shared.store.check(id).await {
            Ok(bytes) => {
                self.read_bytes.fetch_add(bytes, Relaxed);
                bytes
            }
            Err(ReadError::Corrupt { .. }) => {
                self.damaged.fetch_add(1, Relaxed);
                let text =
                    format!("shard {id} is damaged on this disk: set apart, to be made again");
                self.shared.events.note(self.shared.now(), text);
                0
            }
            // Dropped meanwhile.
            Err(ReadError::NotHeld { .. }) => 0,
            Err(error) => {
                tracing::warn!(shard = %id, %error, "the scrub cannot read a shard");
                0
            }
        }
    }

    /// Reads again what could not be read; and while the disk gives nothing, any shard, so that it is
    /// known when it gives something again.
    async fn look_again(&self) {
        let doubts = self.shared.store.doubts();
        for id in doubts.due().into_iter().take(AGAIN_AT_ONCE) {
            self.check(id).await;
        }
        if !doubts.is_troubled() {
            return;
        }
        let after = self.probed.lock().map_or(None, |probed| *probed);
        let next = match self.shared.store.list(after, 1).await {
            Ok(list) => list.first().copied(),
            Err(ReadError::Io { .. }) => return doubts.not_listed(),
            Err(_) => return,
        };
        if let Ok(mut probed) = self.probed.lock() {
            *probed = next;
        }
        if let Some(id) = next {
            self.check(id).await;
        }
    }

    /// How long so many bytes may take, so that all are read within the period.
    async fn pause(&self, bytes: u64) -> Duration {
        if bytes == 0 {
            // Nothing of it could be read: the disk is not asked again and again for what it has not.
            return IDLE.min(self.shared.settings.scrub_period);
        }
        let held = self.shared.store.stats().await.shard_bytes.max(1);
        let nanos =
            self.shared.settings.scrub_period.as_nanos() * u128::from(bytes) / u128::from(held);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            .min(self.shared.settings.scrub_period)
    }

    /// Waits, unless a scrub is asked for.
    async fn rest(&self, mut wait: Duration) {
        while !wait.is_zero() && !self.now.load(Relaxed) {
            let part = wait.min(SLEEP_MAX);
            let _ = tokio::time::timeout(part, self.asked.notified()).await;
            self.look_again().await;
            wait -= part;
        }
    }

    async fn keep(&self, last: ShardId) {
        let ledger = self.shared.store.ledger();
        let value = [&[ROW_VERSION][..], &holdings::shard_key(last)].concat();
        let write = move || ledger.apply(vec![(ROW_KEY.to_vec(), Some(value))]);
        if let Err(refusal) = blocking(write).await {
            tracing::warn!(%refusal, "the scrub's place was not written down");
        }
    }

    fn tell_round(&self) {
        let damaged = self.damaged.load(Relaxed);
        self.shared.events.note(
            self.shared.now(),
            format!("scrub done as asked: {damaged} damaged shards since the start"),
        );
    }
}

fn read_row(value: &[u8]) -> Option<ShardId> {
    let [ROW_VERSION, key @ ..] = value else { return None };
    holdings::shard_of_key(key).ok().flatten()
}

#[cfg(test)]
mod tests {
    use copse_core::ids::NodeId;

    use super::*;
    use crate::{
        repair::testing::{Seen, replica, shared},
        store::{MemoryStore, ShardStore, memory::Faults},
    };

    /// What a store holds after a scrub of so many minutes in which reads fail as told.
    async fn held_after(minutes: u64, faults: Faults) -> (Vec<ShardId>, bool) {
        let store = Arc::new(MemoryStore::new(1 << 20));
        for seed in 1..=3 {
            store.put(replica(seed, 0)).await.expect("a put");
        }
        store.set_faults(faults);
        let held: Arc<dyn ShardStore> = Arc::<MemoryStore>::clone(&store);
        let (own, ledger) = (NodeId::new([1; 32]), store.ledger());
        let scrub = Scrub::new(Arc::new(shared(own, held, ledger, Seen::new(Vec::new()))));
        let stop = CancellationToken::new();
        let running = tokio::spawn(Arc::new(scrub).run(stop.clone()));
        tokio::time::sleep(Duration::from_secs(60 * minutes)).await;
        let unreadable = store.doubts().is_unreadable();
        stop.cancel();
        running.await.expect("the scrub");
        store.set_faults(Faults::default());
        (store.list(None, 9).await.expect("a page"), unreadable)
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_on_a_bad_sector_is_set_apart_after_an_hour_and_the_rest_is_not() {
        let bad = replica(2, 0).id();
        let faults = || Faults { fail_reads_of: Some(bad), ..Faults::default() };
        let (held, unreadable) = held_after(50, faults()).await;
        assert!(held.contains(&bad) && held.len() == 3 && !unreadable);
        let (held, unreadable) = held_after(120, faults()).await;
        assert!(!held.contains(&bad) && held.len() == 2 && !unreadable);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_fails_or_hangs_is_known_after_an_hour_and_condemns_no_shard() {
        let fails = Faults { fail_reads: true, ..Faults::default() };
        let hangs = Faults { read_delay: Duration::from_secs(1 << 20), ..Faults::default() };
        for faults in [fails, hangs] {
            let (held, unreadable) = held_after(50, faults.clone()).await;
            assert_eq!((held.len(), unreadable), (3, false), "{faults:?}");
            let (held, unreadable) = held_after(65, faults.clone()).await;
            assert_eq!((held.len(), unreadable), (3, true), "{faults:?}");
        }
    }
}
