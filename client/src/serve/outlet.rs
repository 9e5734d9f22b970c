//! Answers on their way to one caller, as fast as it takes them.
//!
//! Owns the few that wait, and the call's place among those of its kind. One idea: the place is held until
//! the caller has taken the last answer, and nothing waits longer than a minute for one who takes none:
//! what waits is dropped from here, for the connection does not ask for more until it has room.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    time::timeout,
};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::failure::{Failure, RequestId};

use crate::lock::lock;

/// A caller that takes nothing for this long is given up: others wait for its place.
pub(super) const TAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// Answers made and not taken yet.
const READY_MAX: usize = 2;

/// Why a stream of answers ended early.
pub(super) enum Ended {
    /// The caller is told.
    Failed(Failure),
    /// The caller takes nothing.
    NotTaken,
    /// The caller went away.
    Gone,
}

impl<E: Into<Failure>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// Something was taken.
    taken: Notify,
    /// The caller went away.
    gone: CancellationToken,
}

struct State<T> {
    ready: VecDeque<T>,
    /// Set when no more answers come; what comes behind the last.
    end: Option<Result<(), Status>>,
    /// Whether the caller has taken the end.
    ended: bool,
    taker: Option<Waker>,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.state)
    }

    /// Changes the state, and has the caller look at it.
    fn change(&self, change: impl FnOnce(&mut State<T>)) {
        let taker = {
            let mut state = self.state();
            change(&mut state);
            state.taker.take()
        };
        if let Some(taker) = taker {
            taker.wake();
        }
    }

    /// Waits until the caller has come so far.
    async fn until(&self, is_so: impl Fn(&State<T>) -> bool) -> Result<(), Ended> {
        loop {
            if self.gone.is_cancelled() {
                return Err(Ended::Gone);
            }
            if is_so(&self.state()) {
                return Ok(());
            }
            if timeout(TAKE_TIMEOUT, self.taken.notified()).await.is_err() {
                return Err(Ended::NotTaken);
            }
        }
    }

    /// Gives the rest up. An end that is all that is left costs nothing to keep.
    fn close(&self, status: Status) {
        self.change(|state| {
            if !state.ready.is_empty() || state.end.is_none() {
                state.ready.clear();
                state.end = Some(Err(status));
            }
        });
    }
}

/// Where answers go.
pub(super) struct Outlet<T>(Arc<Shared<T>>);

impl<T> Outlet<T> {
    pub(super) async fn give(&self, answer: T) -> Result<(), Ended> {
        // Nobody else gives: there is room still.
        self.0.until(|state| state.ready.len() < READY_MAX).await?;
        self.0.change(|state| state.ready.push_back(answer));
        Ok(())
    }
}

/// What the caller takes.
pub(super) struct Answers<T>(Arc<Shared<T>>);

impl<T> Stream for Answers<T> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.0.state();
        let next = match (state.ready.pop_front(), &mut state.end) {
            (Some(answer), _) => Some(Ok(answer)),
            (None, Some(end)) => std::mem::replace(end, Ok(())).err().map(Err),
            (None, None) => {
                state.taker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        state.ended = !matches!(next, Some(Ok(_)));
        drop(state);
        self.0.taken.notify_one();
        Poll::Ready(next)
    }
}

impl<T> Drop for Answers<T> {
    fn drop(&mut self) {
        self.0.gone.cancel();
        self.0.state().ready.clear();
        self.0.taken.notify_one();
    }
}

/// Runs what gives answers as a task of its own, which holds its place until all are taken.
pub(super) fn run<T, F>(
    id: RequestId,
    place: OwnedSemaphorePermit,
    work: impl FnOnce(Outlet<T>) -> F,
) -> Answers<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Ended>> + Send + 'static,
{
    let state = State { ready: VecDeque::new(), end: None, ended: false, taker: None };
    let (state, taken) = (Mutex::new(state), Notify::new());
    let shared = Arc::new(Shared { state, taken, gone: CancellationToken::new() });
    let answers = Answers(Arc::clone(&shared));
    let work = work(Outlet(Arc::clone(&shared)));
    tokio::spawn(async move {
        let _place = place;
        let ended = tokio::select! {
            ended = work => ended,
            () = shared.gone.cancelled() => return,
        };
        let end = match ended {
            Ok(()) => Ok(Ok(())),
            Err(Ended::Failed(failure)) => Ok(Err(failure.into_status(&id))),
            Err(ended) => Err(ended),
        };
        let ended = match end {
            Ok(end) => {
                shared.change(|state| state.end = Some(end));
                shared.until(|state| state.ended).await
            }
            Err(ended) => Err(ended),
        };
        if let Err(Ended::NotTaken) = ended {
            shared.close(Failure::idle("was taken", TAKE_TIMEOUT).into_status(&id));
        }
    });
    answers
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use futures::{FutureExt as _, StreamExt as _};
    use tokio::{
        sync::Semaphore,
        time::{Instant, sleep},
    };
    use tonic::{Code, metadata::MetadataMap};

    use super::*;

    /// The answers that were made, as long as somebody has them.
    type Made = Arc<Mutex<Vec<Weak<usize>>>>;

    /// A call that gives so many answers, the only one of its kind.
    fn call(count: usize) -> (Answers<Arc<usize>>, Arc<Semaphore>, Made) {
        let places = Arc::new(Semaphore::new(1));
        let place = Arc::clone(&places).try_acquire_owned().expect("free");
        let made = Made::default();
        let id = RequestId::of(&MetadataMap::new());
        let noted = Arc::clone(&made);
        let answers = run(id, place, move |outlet| async move {
            for number in 0..count {
                let answer = Arc::new(number);
                noted.lock().expect("no panic").push(Arc::downgrade(&answer));
                outlet.give(answer).await?;
            }
            Ok(())
        });
        (answers, places, made)
    }

    #[tokio::test(start_paused = true)]
    async fn for_a_caller_that_takes_nothing_nothing_is_held() {
        // All are made before any is taken; or more are to come.
        for count in [1, READY_MAX, 100] {
            let (mut answers, places, made) = call(count);
            let started = Instant::now();
            let place = places.acquire().await.expect("never closed");
            assert!(started.elapsed() <= TAKE_TIMEOUT + Duration::from_secs(1));
            assert!(started.elapsed() >= TAKE_TIMEOUT);
            drop(place);
            let alive = |made: &[Weak<usize>]| made.iter().filter_map(Weak::upgrade).count();
            assert_eq!(alive(&made.lock().expect("no panic")), 0, "of {count}");
            let error = answers.next().await.expect("an end").expect_err("given up");
            assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
            assert!(answers.next().await.is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_caller_gets_all_and_holds_its_place_until_then() {
        let (mut answers, places, _) = call(10);
        for number in 0..10 {
            sleep(TAKE_TIMEOUT - Duration::from_secs(1)).await;
            assert_eq!(*answers.next().await.expect("more").expect("good"), number);
            assert_eq!(places.available_permits(), 0);
        }
        assert!(answers.next().await.is_none());
        drop(places.acquire().await.expect("never closed"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_has_all_is_not_told_otherwise_when_it_comes_for_the_end() {
        let (mut answers, places, _) = call(1);
        answers.next().await.expect("one").expect("good");
        drop(places.acquire().await.expect("never closed"));
        assert!(answers.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_frees_its_place_at_once() {
        let started = Instant::now();
        for count in [1, 100] {
            let (mut answers, places, made) = call(count);
            answers.next().await.expect("one").expect("good");
            drop(answers);
            drop(places.acquire().await.expect("never closed"));
            assert!(made.lock().expect("no panic").iter().all(|answer| answer.upgrade().is_none()));
        }
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_failure_comes_behind_what_was_given() {
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("free");
        let id = RequestId::of(&MetadataMap::new());
        let mut answers = run(id, place, |outlet: Outlet<u8>| async move {
            outlet.give(7).await?;
            Err(Failure::busy("as an example").into())
        });
        assert_eq!(answers.next().await.expect("one").expect("good"), 7);
        answers.next().await.expect("an end").expect_err("failed");
        assert!(answers.next().now_or_never().expect("at once").is_none());
    }
}
