//! Work that computes or blocks for long, beside the runtime.
//!
//! Owns where such work runs. The one idea: a runtime with a single thread is a simulator's or a
//! test's, and there the order of things must be the same every time, so the work is done in place.

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::{JoinError, spawn_blocking},
};

/// Runs `work` on a thread for such work.
///
/// # Errors
/// When it panicked.
pub(crate) async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Ok(work()),
        _ => spawn_blocking(work).await,
    }
}
