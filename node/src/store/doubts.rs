//! Reads that the disk fails: when one shard counts as damaged, and when the whole disk as unreadable.
//!
//! Owns both judgements, and patience: a cable that is loose for minutes condemns nothing. The one
//! idea: a shard that fails while others are read is the shard; when nothing is read, it is the disk.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_core::ids::ShardId;
use tokio::time::Instant;

/// How long something must fail before it counts as lost, unless told otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3600);

/// How often at least.
const FAILURES: u32 = 3;

/// How often within that patience a shard that failed is to be read again: each quarter of an hour.
const AGAIN_TIMES: u32 = 4;

/// Shards that failed and are remembered, at most: of a disk that loses more they come later.
const UNREAD_MAX: usize = 1024;

/// A read that is given up after so long has failed: whoever asked did not wait for nothing.
const HUNG_AFTER: Duration = Duration::from_secs(30);

/// What became of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The disk gave bytes.
    Read,
    /// The disk failed.
    Failed,
    /// The disk was not needed.
    Neither,
}

/// What is known of reads that failed. Shared by all readers of a store.
#[derive(Debug, Default)]
pub struct Doubts(Mutex<State>);

#[derive(Debug)]
struct State {
    /// How long something must fail before it counts as lost.
    patience: Duration,
    /// Processes that looked at this disk before: see [`Doubts::forget`].
    lives: u64,
    unread: BTreeMap<ShardId, Unread>,
    /// Reads that gave bytes.
    reads: u64,
    /// Since when no read gave bytes though some were begun.
    since: Option<Instant>,
    /// Reads that failed since then.
    failed: u32,
    /// Reads that are under way.
    waiting: u32,
    /// A shard could not even be set apart: the disk takes no change of the index.
    stuck: bool,
}

#[derive(Debug)]
struct Unread {
    since: Instant,
    tried: Instant,
    /// Failures with reads of others between them.
    times: u32,
    /// [`State::reads`] at the last of them.
    reads: u64,
}

/// A read under way.
#[derive(Debug)]
pub(super) struct Look {
    doubts: Arc<Doubts>,
    id: ShardId,
    begun: Instant,
    ended: bool,
    /// [`State::lives`] when it began.
    life: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            patience: PATIENCE,
            lives: 0,
            unread: BTreeMap::new(),
            reads: 0,
            since: None,
            failed: 0,
            waiting: 0,
            stuck: false,
        }
    }
}

impl Doubts {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes how long something must fail before it counts as lost.
    pub(crate) fn set_patience(&self, patience: Duration) {
        self.lock().patience = patience;
    }

    /// The process ends, and what it knew with it: for a store that outlives it. Reads that are under
    /// way tell the next one nothing.
    pub fn forget(&self) {
        let mut state = self.lock();
        let (patience, lives) = (state.patience, state.lives + 1);
        *state = State { patience, lives, ..State::default() };
    }

    /// A read begins.
    pub(super) fn look(self: &Arc<Self>, id: ShardId) -> Look {
        let begun = Instant::now();
        let mut state = self.lock();
        state.waiting += 1;
        state.since.get_or_insert(begun);
        let life = state.lives;
        Look { doubts: Arc::clone(self), id, begun, ended: false, life }
    }

    /// Whether a shard failed so often and for so long, while others were read, that it is lost.
    fn is_lost(&self, id: ShardId) -> bool {
        let state = self.lock();
        state.unread.get(&id).is_some_and(|unread| {
            unread.times >= FAILURES && unread.tried.duration_since(unread.since) >= state.patience
        })
    }

    /// What is held could not even be listed.
    pub(crate) fn not_listed(&self) {
        let mut state = self.lock();
        state.failed = state.failed.saturating_add(1);
        state.since.get_or_insert_with(Instant::now);
    }

    /// A lost shard was set apart, or could not be.
    pub(super) fn set_apart(&self, id: ShardId, done: bool) {
        let mut state = self.lock();
        state.stuck = !done;
        if done {
            state.unread.remove(&id);
        }
    }

    /// Shards that failed and are to be read again now.
    pub(crate) fn due(&self) -> Vec<ShardId> {
        let state = self.lock();
        let again_after = state.patience / AGAIN_TIMES;
        let due = |(&id, unread): (&ShardId, &Unread)| {
            (unread.tried.elapsed() >= again_after).then_some(id)
        };
        state.unread.iter().filter_map(due).collect()
    }

    /// Whether the last reads failed, or do not end: another one would tell.
    pub(crate) fn is_troubled(&self) -> bool {
        self.lock().since.is_some()
    }

    /// Whether nothing can be read for so long that what is held counts as lost.
    pub fn is_unreadable(&self) -> bool {
        let state = self.lock();
        let nothing = state.failed >= FAILURES || state.waiting > 0;
        state.stuck || nothing && state.since.is_some_and(|since| since.elapsed() >= state.patience)
    }
}

impl Look {
    /// The read ended. True: it failed, and its shard counts as lost from now on.
    pub(super) fn end(mut self, how: Ended) -> bool {
        self.note(how);
        how == Ended::Failed && self.doubts.is_lost(self.id)
    }

    fn note(&mut self, how: Ended) {
        self.ended = true;
        let (now, mut state) = (Instant::now(), self.doubts.lock());
        if state.lives != self.life {
            return;
        }
        state.waiting -= 1;
        match how {
            Ended::Read => {
                state.reads += 1;
                state.failed = 0;
                state.since = (state.waiting > 0).then_some(now);
                state.unread.remove(&self.id);
            }
            Ended::Neither if state.waiting == 0 && state.failed == 0 => state.since = None,
            Ended::Neither => {}
            Ended::Failed => {
                state.failed = state.failed.saturating_add(1);
                state.fails(self.id, now);
            }
        }
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        if !self.ended {
            let hung = self.begun.elapsed() >= HUNG_AFTER;
            self.note(if hung { Ended::Failed } else { Ended::Neither });
        }
    }
}

impl State {
    fn fails(&mut self, id: ShardId, now: Instant) {
        let reads = self.reads;
        if let Some(unread) = self.unread.get_mut(&id) {
            unread.tried = now;
            // While nothing at all is read, it says nothing about this shard.
            if unread.reads != reads {
                (unread.times, unread.reads) = (unread.times + 1, reads);
            }
        } else if self.unread.len() < UNREAD_MAX {
            self.unread.insert(id, Unread { since: now, tried: now, times: 1, reads });
        }
    }
}

#[cfg(test)]
mod tests {
    use copse_core::ids::{ChunkId, ShardIndex};
    use tokio::time::advance;

    use super::*;

    fn shard(number: u8) -> ShardId {
        ShardId { chunk: ChunkId::new([number; 32]), index: ShardIndex(0) }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_shard_that_fails_for_an_hour_while_others_are_read_is_lost() {
        let doubts = Arc::new(Doubts::default());
        for minute in 0..60 {
            assert!(!doubts.look(shard(1)).end(Ended::Failed), "minute {minute}");
            doubts.look(shard(2)).end(Ended::Read);
            assert!(!doubts.is_troubled() && !doubts.is_unreadable());
            advance(MINUTE).await;
        }
        assert!(doubts.look(shard(1)).end(Ended::Failed));
        doubts.set_apart(shard(1), true);
        assert!(!doubts.look(shard(1)).end(Ended::Failed), "it begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_that_is_read_once_more_is_forgiven() {
        let doubts = Arc::new(Doubts::default());
        doubts.look(shard(1)).end(Ended::Failed);
        assert_eq!(doubts.due(), []);
        advance(PATIENCE / AGAIN_TIMES).await;
        assert_eq!(doubts.due(), [shard(1)]);
        doubts.look(shard(1)).end(Ended::Read);
        assert_eq!(doubts.due(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_gives_nothing_for_an_hour_is_unreadable_until_it_gives_something() {
        let doubts = Arc::new(Doubts::default());
        for _ in 0..60 {
            assert!(!doubts.look(shard(1)).end(Ended::Failed), "the disk fails, not the shard");
            assert!(doubts.is_troubled() && !doubts.is_unreadable());
            advance(MINUTE).await;
        }
        assert!(doubts.is_unreadable());
        doubts.look(shard(2)).end(Ended::Neither);
        assert!(doubts.is_unreadable(), "what needs no disk proves nothing");
        doubts.look(shard(2)).end(Ended::Read);
        assert!(!doubts.is_unreadable() && !doubts.is_troubled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_patience_of_a_minute_is_over_after_a_minute() {
        let doubts = Arc::new(Doubts::default());
        doubts.set_patience(MINUTE);
        for _ in 0..4 {
            assert!(!doubts.look(shard(1)).end(Ended::Failed));
            doubts.look(shard(2)).end(Ended::Read);
            assert_eq!(doubts.due(), []);
            advance(MINUTE / AGAIN_TIMES).await;
            assert_eq!(doubts.due(), [shard(1)]);
        }
        assert!(doubts.look(shard(1)).end(Ended::Failed));
    }

    #[tokio::test(start_paused = true)]
    async fn another_process_knows_nothing_of_what_failed_before() {
        let doubts = Arc::new(Doubts::default());
        let under_way = doubts.look(shard(1));
        doubts.look(shard(2)).end(Ended::Failed);
        doubts.forget();
        assert!(!doubts.is_troubled());
        assert!(!under_way.end(Ended::Failed));
        advance(PATIENCE).await;
        assert_eq!((doubts.due(), doubts.is_unreadable()), (vec![], false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_for_an_hour_is_unreadable_and_one_that_idles_is_not() {
        let doubts = Arc::new(Doubts::default());
        doubts.look(shard(1)).end(Ended::Neither);
        drop(doubts.look(shard(1)));
        advance(2 * PATIENCE).await;
        assert!(!doubts.is_unreadable() && !doubts.is_troubled());
        let hung = doubts.look(shard(1));
        advance(PATIENCE).await;
        assert!(doubts.is_unreadable());
        hung.end(Ended::Read);
        assert!(!doubts.is_unreadable());
        // Given up by whoever asked: as good as failed.
        for _ in 0..FAILURES {
            let given_up = doubts.look(shard(2));
            advance(HUNG_AFTER).await;
            drop(given_up);
        }
        advance(PATIENCE).await;
        assert!(doubts.is_unreadable());
    }
}
