//! Leaving the network: the node says so, hands everything over, and then is gone.
//!
//! Owns the word of the owner, kept in a file so that an interrupted departure goes on at the next
//! start. Moves nothing itself: a leaving node is off the ring, so the stewards have its shards
//! brought to where they belong, each dropped here only when its new holder has proved it.

use std::{fs::File, io, path::PathBuf, sync::Arc, time::Duration};

use copse_core::directory::NodeState;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    membership::Membership, peer::pool::PeerPool, shards::ShardService, store::ShardStore,
};

/// The file that says that the node is leaving.
const LEAVING_FILE: &str = "leaving";

/// The file that says that it has left.
const LEFT_FILE: &str = "left";

/// How often it is looked whether all is handed over.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long the news that it is gone may spread before the node ends: some rounds of gossip.
const FAREWELL: Duration = Duration::from_secs(4);

/// So many others, or all there are, must have taken the news: of each one alone it could die.
const FAREWELL_TOLD: usize = 3;

/// After an outage others are not dialled for a while; longer than this nobody is waited for. Who was
/// not told takes the node for dead, and evicts it as such.
const FAREWELL_MAX: Duration = Duration::from_secs(60);

/// The owner's word, in the node's directory.
#[derive(Debug, Clone, Default)]
pub struct Departure {
    dir: Option<PathBuf>,
    leaving: bool,
}

impl Departure {
    /// Reads it.
    pub fn load(dir: PathBuf) -> Self {
        let leaving = dir.join(LEAVING_FILE).exists();
        Self { dir: Some(dir), leaving }
    }

    /// The word of an owner who keeps it elsewhere than in a file.
    pub const fn told(leaving: bool) -> Self {
        Self { dir: None, leaving }
    }

    /// Whether the node of a directory has left for good.
    pub fn has_left(dir: &std::path::Path) -> bool {
        dir.join(LEFT_FILE).exists()
    }

    /// What the node says of itself at its start.
    pub const fn state(&self) -> NodeState {
        if self.leaving { NodeState::Leaving } else { NodeState::Active }
    }

    fn write(&self, name: &str) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let file = File::create(dir.join(name))?;
        file.sync_all()?;
        // The name, too, must be on the disk.
        File::open(dir)?.sync_all()
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The node stays.
    Staying,
    /// So many shards are still here, of so many at first.
    Leaving {
        /// Still here.
        left: u64,
        /// When it began, or at the last start.
        of: u64,
    },
    /// Everything is handed over, and everybody told.
    Gone,
}

/// The departure of one node. Clones are the same one.
#[derive(Clone)]
pub struct Leaving(Arc<Inner>);

struct Inner {
    departure: Departure,
    membership: Membership,
    peers: PeerPool,
    shards: ShardService,
    store: Arc<dyn ShardStore>,
    wanted: watch::Sender<bool>,
    progress: watch::Sender<Progress>,
}

/// What a [`Leaving`] is made of.
pub struct Parts {
    /// The owner's word.
    pub departure: Departure,
    /// Where the node says that it leaves.
    pub membership: Membership,
    /// The way to those who are told.
    pub peers: PeerPool,
    /// Takes nothing new then.
    pub shards: ShardService,
    /// What is to be handed over.
    pub store: Arc<dyn ShardStore>,
}

impl Leaving {
    /// A node that stays, unless it was told to leave before.
    pub fn new(parts: Parts) -> Self {
        let Parts { departure, membership, peers, shards, store } = parts;
        let wanted = watch::Sender::new(departure.leaving);
        let progress = watch::Sender::new(Progress::Staying);
        Self(Arc::new(Inner { departure, membership, peers, shards, store, wanted, progress }))
    }

    /// Leaves. When this returns, an interruption does not change that.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn leave(&self) -> io::Result<()> {
        self.0.departure.write(LEAVING_FILE)?;
        self.0.wanted.send_replace(true);
        Ok(())
    }

    /// How far it is, and what comes.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.0.progress.subscribe()
    }

    /// Returns when the node has left.
    pub async fn done(&self) {
        let mut progress = self.progress();
        if progress.wait_for(|progress| *progress == Progress::Gone).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits for the word, then until everything is handed over.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.depart() => {}
        }
    }

    async fn depart(&self) {
        let inner = &self.0;
        if inner.wanted.subscribe().wait_for(|wanted| *wanted).await.is_err() {
            return;
        }
        if let Err(error) = inner.membership.set_state(NodeState::Leaving) {
            tracing::error!(%error, "the node cannot say that it leaves");
        }
        // What is under way is acknowledged, and then handed over with the rest.
        inner.shards.take_nothing_new().await;
        let of = inner.store.stats().await.shards;
        tracing::info!(shards = of, "leaving: shards are handed over");
        let mut was_empty = false;
        loop {
            let left = inner.store.stats().await.shards;
            inner.progress.send_replace(Progress::Leaving { left, of: of.max(left) });
            // A put that its asker gave up may still be written: seen twice, nothing is on its way.
            if left == 0 && std::mem::replace(&mut was_empty, true) {
                break;
            }
            was_empty = left == 0;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        if let Err(error) = inner.membership.set_state(NodeState::Left) {
            tracing::error!(%error, "the node cannot say that it has left");
        }
        let announce = || {
            let (membership, peers) = (inner.membership.clone(), inner.peers.clone());
            async move { membership.announce(&peers).await }
        };
        if !bid_farewell(announce).await {
            tracing::warn!("hardly anybody could be told that the node has left");
        }
        let left = inner.store.stats().await.shards;
        if left > 0 {
            // Nobody was promised them. The next start hands them over, as that of a leaving node.
            tracing::warn!(shards = left, "not written down as left: shards are still here");
        } else if let Err(error) = inner.departure.write(LEFT_FILE) {
            tracing::warn!(%error, "it could not be written down that the node has left");
        }
        tracing::info!("left: nothing is held here any more");
        inner.progress.send_replace(Progress::Gone);
    }
}

/// Tells others that the node has left until enough know it, and lets it spread. `announce` tells some:
/// how many took it, and how many were asked. False: hardly anybody could be told.
async fn bid_farewell<F>(announce: impl Fn() -> F) -> bool
where
    F: Future<Output = (usize, usize)>,
{
    let begin = Instant::now();
    let mut known = false;
    while begin.elapsed() < FAREWELL || !known {
        if begin.elapsed() >= FAREWELL_MAX {
            return false;
        }
        if !known {
            let (taken, asked) = announce().await;
            known = taken >= asked.min(FAREWELL_TOLD);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// How a farewell goes when `asked` others are there, of whom `taken` take the news from `since`
    /// on: whether it was taken, and how long it lasted. The clock is simulated.
    async fn farewell(since: Duration, taken: usize, asked: usize) -> (bool, Duration, u32) {
        let (begin, calls) = (Instant::now(), Cell::new(0));
        let known = bid_farewell(|| {
            calls.set(calls.get() + 1);
            std::future::ready((if begin.elapsed() < since { 0 } else { taken }, asked))
        });
        (known.await, begin.elapsed(), calls.get())
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_stays_until_some_have_taken_it() {
        // Told once, then it spreads.
        assert_eq!(farewell(Duration::ZERO, 8, 8).await, (true, FAREWELL, 1));
        assert_eq!(farewell(Duration::ZERO, FAREWELL_TOLD, 8).await, (true, FAREWELL, 1));
        // The last one of a network has nobody to tell; one of two has one.
        assert_eq!(farewell(Duration::ZERO, 0, 0).await, (true, FAREWELL, 1));
        assert_eq!(farewell(Duration::ZERO, 1, 1).await, (true, FAREWELL, 1));
        // After an outage nobody is within reach for longer than news take to spread.
        let since = 3 * FAREWELL;
        let (known, lasted, _) = farewell(since, 8, 8).await;
        assert!(known && (since..since + 2 * LOOK_EVERY).contains(&lasted), "{lasted:?}");
        // Too few, or nobody: it does not wait for ever.
        for taken in 0..FAREWELL_TOLD {
            let (known, lasted, _) = farewell(Duration::ZERO, taken, 8).await;
            assert!(!known && (FAREWELL_MAX..FAREWELL_MAX + LOOK_EVERY).contains(&lasted));
        }
    }
}
