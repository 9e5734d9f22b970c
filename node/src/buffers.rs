//! A bound on the memory for shards on their way.
//!
//! Owns the counting: bytes are taken before memory is, and given back when the shard is done. Who
//! finds none waits, for a bounded time, and is then refused as by an overloaded node.

use std::{sync::Arc, time::Duration};

use copse_core::{limits::SHARD_BYTES_MAX, units::ByteSize};
use copse_proto::status::{Reason, Refusal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::refusals;

/// How long a request waits for memory. A disk that stalls for longer than this is better told of
/// than waited for: the client has other nodes.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Memory that may be in use at one time.
#[derive(Debug, Clone)]
pub struct Buffers {
    what: &'static str,
    bytes: Arc<Semaphore>,
}

/// Memory in use; given back when dropped.
#[derive(Debug)]
pub struct Taken(OwnedSemaphorePermit);

impl Buffers {
    /// `total` bytes for `what`, which names them in refusals.
    pub fn new(what: &'static str, total: ByteSize) -> Self {
        let total = usize::try_from(total.0).unwrap_or(usize::MAX);
        // One shard of any size always fits, or it would wait for ever.
        let total = total.clamp(SHARD_BYTES_MAX, Semaphore::MAX_PERMITS);
        Self { what, bytes: Arc::new(Semaphore::new(total)) }
    }

    /// Takes `bytes`, at most [`SHARD_BYTES_MAX`], first come, first served.
    ///
    /// # Errors
    /// When there are none for too long.
    pub async fn take(&self, bytes: usize) -> Result<Taken, Refusal> {
        self.take_within(bytes, WAIT_MAX).await
    }

    async fn take_within(&self, bytes: usize, wait_max: Duration) -> Result<Taken, Refusal> {
        let bytes = u32::try_from(bytes.min(SHARD_BYTES_MAX)).unwrap_or(u32::MAX);
        let taken = Arc::clone(&self.bytes).acquire_many_owned(bytes);
        match tokio::time::timeout(wait_max, taken).await {
            Ok(Ok(permit)) => Ok(Taken(permit)),
            // Never closed; but if it were, the node would be stopping.
            Ok(Err(_)) => Err(refusals::stopping()),
            Err(_) => Err(Refusal::new(
                Reason::Overloaded,
                format!("no memory for {} within {wait_max:?}", self.what),
            )
            .retry_after(refusals::BUSY_RETRY)),
        }
    }
}

impl Taken {
    /// Gives back what is over `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        if let Some(excess) = self.0.num_permits().checked_sub(bytes) {
            drop(self.0.split(excess));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_is_bounded_and_comes_back() {
        let buffers = Buffers::new("tests", ByteSize(0));
        let mut first = buffers.take(SHARD_BYTES_MAX).await.expect("all of it");
        let refusal = buffers.take_within(1, Duration::ZERO).await.expect_err("nothing left");
        assert_eq!(refusal.reason(), Reason::Overloaded);
        assert!(refusal.retry_delay().is_some());
        first.shrink_to(SHARD_BYTES_MAX - 10);
        let second = buffers.take(10).await.expect("ten bytes came back");
        drop((first, second));
        buffers.take(usize::MAX).await.expect("no shard is longer than the longest");
    }
}
