//! A task that stops when nobody waits for it any more, and work beside the runtime.
//!
//! Owns what is done on another thread, and that nothing is on a runtime that has a single one: that is a
//! simulator's or a test's, where everything runs in place, in the same order every time.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::{JoinError, JoinHandle, spawn_blocking},
};

/// A spawned task; dropping this stops it.
pub(crate) struct Task<T>(JoinHandle<T>);

impl<T: Send + 'static> Task<T> {
    /// Starts it.
    pub(crate) fn spawn(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether all work is done on the thread that asks for it.
fn is_single() -> bool {
    let runtime = Handle::try_current();
    runtime.is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::CurrentThread)
}

/// Threads that work for long may use at once.
pub(crate) fn cores() -> usize {
    if is_single() {
        return 1;
    }
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Runs work that computes or blocks for long on a thread for such work; on a runtime with a single thread
/// in place.
pub(crate) async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if is_single() { Ok(work()) } else { spawn_blocking(work).await }
}

/// Runs a future that computes or blocks for long between its awaits on a thread of its own; on a runtime
/// with a single thread in place. On its own thread it goes on when nobody waits for it any more.
pub(crate) async fn aside<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T, JoinError> {
    if is_single() {
        return Ok(future.await);
    }
    let runtime = Handle::current();
    spawn_blocking(move || runtime.block_on(future)).await
}

/// Runs work that nobody waits for, not even the end of the program, on a thread of its own; on a runtime
/// with a single thread in place, at once.
pub(crate) fn apart(work: impl FnOnce() + Send + 'static) {
    if is_single() {
        work();
    } else {
        drop(std::thread::spawn(work));
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    /// The threads that the three kinds of work run on.
    async fn threads() -> [thread::ThreadId; 3] {
        let (tell, told) = std::sync::mpsc::channel();
        apart(move || tell.send(thread::current().id()).expect("somebody waits"));
        let apart = told.recv().expect("it runs");
        let beside = beside(|| thread::current().id()).await.expect("it runs");
        // What wakes it is the runtime's, also where the thread is not.
        let aside = aside(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            thread::current().id()
        });
        [apart, beside, aside.await.expect("it runs")]
    }

    #[tokio::test]
    async fn with_a_single_thread_everything_runs_on_it() {
        assert_eq!(threads().await, [thread::current().id(); 3]);
        assert_eq!(cores(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn with_several_threads_long_work_has_one_of_its_own() {
        let own = thread::current().id();
        assert!(threads().await.iter().all(|other| *other != own));
    }
}
