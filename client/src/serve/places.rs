//! The places for connections: who has one, and whose goes to the next caller.
//!
//! Owns the number of connections and of the calls that run on each. Knows no socket. One idea: whoever has
//! shown what calls need and has one running keeps its place; of the others the one that has been without a
//! call the longest makes room. So nobody is locked out by connections on which nothing happens.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::lock::lock;

/// So many places.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    state: Mutex<State>,
    /// A place was freed, or a call ended.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    taken: BTreeMap<u64, Taken>,
}

#[derive(Debug)]
struct Taken {
    calls: usize,
    /// Since no call runs.
    idle_since: Instant,
    cut: CancellationToken,
}

impl Places {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, state: Mutex::default(), changed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Takes a place; waits while calls run on all connections.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        loop {
            if let Some(place) = self.try_take() {
                return place;
            }
            self.changed.notified().await;
        }
    }

    /// Takes a place if one is free; else has the idlest connection end, unless one is ending already.
    fn try_take(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.state();
        if state.taken.len() < self.max {
            let (number, cut) = (state.next, CancellationToken::new());
            state.next += 1;
            let taken = Taken { calls: 0, idle_since: Instant::now(), cut: cut.clone() };
            state.taken.insert(number, taken);
            return Some(Place { caller: Caller { places: Arc::clone(self), number }, cut });
        }
        if !state.taken.values().any(|taken| taken.cut.is_cancelled()) {
            let idle = state.taken.values().filter(|taken| taken.calls == 0);
            if let Some(idlest) = idle.min_by_key(|taken| taken.idle_since) {
                tracing::debug!("a connection without a call makes room for another");
                idlest.cut.cancel();
            }
        }
        None
    }
}

/// The place of one connection; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    caller: Caller,
    cut: CancellationToken,
}

impl Place {
    /// Who calls on this connection.
    pub(super) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Cancelled when the connection shall end.
    pub(super) fn cut(&self) -> &CancellationToken {
        &self.cut
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.caller.places.state().taken.remove(&self.caller.number);
        self.caller.places.changed.notify_one();
    }
}

/// Whose connection a call came on.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    places: Arc<Places>,
    number: u64,
}

impl Caller {
    /// A call begins to run.
    pub(super) fn begin(&self) -> Call {
        if let Some(taken) = self.places.state().taken.get_mut(&self.number) {
            taken.calls += 1;
        }
        Call(self.clone())
    }
}

/// A running call; it has ended when this is dropped.
#[derive(Debug)]
pub(super) struct Call(Caller);

impl Drop for Call {
    fn drop(&mut self) {
        let Caller { places, number } = &self.0;
        // None when the connection ended first.
        if let Some(taken) = places.state().taken.get_mut(number) {
            taken.calls -= 1;
            taken.idle_since = Instant::now();
        }
        places.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_connection_without_a_call_for_the_longest_makes_room() {
        let places = Places::new(3);
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(places.take().await);
            advance(Duration::from_secs(1)).await;
        }
        let is_cut = |taken: &[Place]| -> Vec<bool> {
            taken.iter().map(|place| place.cut().is_cancelled()).collect()
        };
        // The first is the oldest and has a call; the second had one until now.
        let call = taken[0].caller().begin();
        drop(taken[1].caller().begin());
        assert!(places.take().now_or_never().is_none());
        assert_eq!(is_cut(&taken), [false, false, true]);
        // One is enough, however often it is asked for.
        assert!(places.take().now_or_never().is_none());
        assert_eq!(is_cut(&taken), [false, false, true]);
        taken.truncate(2);
        places.take().now_or_never().expect("a free place");
        drop(call);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_with_a_running_call_is_cut_off() {
        let places = Places::new(1);
        let first = places.take().await;
        let call = first.caller().begin();
        let waiting = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.take().await }
        });
        tokio::task::yield_now().await;
        assert!(!first.cut().is_cancelled());
        drop(call);
        first.cut().cancelled().await;
        drop(first);
        waiting.await.expect("no panic");
    }
}
