//! A task that panics begins anew.
//!
//! Owns the pause between, and nothing else.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long a task that failed rests.
const AFTER_A_FAULT: Duration = Duration::from_secs(10);

/// Does something until `stop` is cancelled or it ends. When it panics, that is logged, and it is
/// begun anew after a while: a node that only looks alive would be the steward of arcs that nobody
/// looks after.
pub(super) async fn again_after_a_fault<F>(
    what: &'static str,
    stop: CancellationToken,
    work: impl Fn() -> F + Send,
) where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        // Dropped with this, it ends.
        let mut task = JoinSet::new();
        task.spawn(work());
        let ended = stop.run_until_cancelled(task.join_next()).await;
        let Some(Some(Err(error))) = ended else { return };
        tracing::error!(%error, what, "a task of repair failed; it begins anew");
        if stop.run_until_cancelled(tokio::time::sleep(AFTER_A_FAULT)).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_begins_anew_and_ends_when_it_is_told_to() {
        let (begun, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let count = Arc::clone(&begun);
        let task = tokio::spawn(again_after_a_fault("a test", stop.clone(), move || {
            let nth = count.fetch_add(1, Relaxed);
            async move {
                assert!(nth > 1, "on purpose");
                std::future::pending::<()>().await;
            }
        }));
        tokio::time::sleep(5 * AFTER_A_FAULT).await;
        assert_eq!(begun.load(Relaxed), 3);
        stop.cancel();
        task.await.expect("it ends");
    }
}
