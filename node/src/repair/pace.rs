//! How fast repair may send: the node's budget, and who waits for it.
//!
//! Owns the waiting; what there is to take is [`copse_core::budget`]'s decision. Refuses to let
//! anybody wait for longer than its asker would: then the work is tried again later.

use std::{
    num::NonZeroU64,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_core::{
    budget::{Budget, BytesPerSecond},
    limits::SHARD_BYTES_MAX,
    repair::Lane,
};
use copse_proto::status::{Reason, Refusal};
use tokio::time::Instant;

/// How long something waits for its turn: half of what its asker waits for an answer.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What may be sent at once after a pause: two of the largest shards.
const BURST_BYTES: u64 = 2 * SHARD_BYTES_MAX as u64;

/// What the operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// What the line can send, in bytes per second; none: not limited.
    pub uplink: BytesPerSecond,
    /// What part of it repair and moving may take, in percent.
    pub share_percent: u8,
}

impl Rates {
    /// No limits.
    pub const FREE: Self = Self { uplink: None, share_percent: 100 };

    fn background(self) -> BytesPerSecond {
        let part = |uplink: NonZeroU64| {
            let bytes = u128::from(uplink.get()) * u128::from(self.share_percent) / 100;
            NonZeroU64::new(u64::try_from(bytes).unwrap_or(u64::MAX)).unwrap_or(NonZeroU64::MIN)
        };
        self.uplink.map(part)
    }
}

/// The budget of this node. Clones are the same one.
#[derive(Clone)]
pub struct Pace(Arc<Inner>);

struct Inner {
    budget: Mutex<Budget>,
    rates: Mutex<Rates>,
    started: Instant,
}

impl Pace {
    /// A full budget.
    pub fn new(rates: Rates) -> Self {
        let budget = Budget::new(rates.uplink, rates.background(), BURST_BYTES, Duration::ZERO);
        let (budget, rates) = (Mutex::new(budget), Mutex::new(rates));
        Self(Arc::new(Inner { budget, rates, started: Instant::now() }))
    }

    fn lock(&self) -> MutexGuard<'_, Budget> {
        self.0.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Changes what is allowed, also for those who wait; a share of none stays as it is. What is allowed
    /// now.
    pub fn set(&self, uplink: BytesPerSecond, share_percent: Option<u8>) -> Rates {
        let mut rates = self.0.rates.lock().unwrap_or_else(PoisonError::into_inner);
        *rates = Rates { uplink, share_percent: share_percent.unwrap_or(rates.share_percent) };
        self.lock().set_rates(self.now(), rates.uplink, rates.background());
        *rates
    }

    /// Somebody is being served who waits for it.
    pub fn foreground(&self) {
        self.lock().foreground(self.now());
    }

    /// Waits until so many bytes may be sent.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn take(&self, bytes: u64, lane: Lane) -> Result<(), Refusal> {
        let asked = Instant::now();
        loop {
            let wait = {
                let now = self.now();
                let mut budget = self.lock();
                match lane {
                    Lane::Emergency => budget.take_emergency(bytes, now),
                    Lane::Normal => budget.take_background(bytes, now),
                }
            };
            if wait.is_zero() {
                return Ok(());
            }
            if asked.elapsed() + wait > WAIT_MAX {
                let text = "the budget for repair is used up: try again later, or raise it";
                return Err(Refusal::new(Reason::Overloaded, text).retry_after(wait));
            }
            // Not all of it at once: the limits may be raised meanwhile.
            tokio::time::sleep(wait.min(Duration::from_secs(1))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_uplink_keeps_the_share() {
        let pace = Pace::new(Rates { uplink: None, share_percent: 55 });
        let uplink = NonZeroU64::new(1 << 20);
        assert_eq!(pace.set(uplink, None), Rates { uplink, share_percent: 55 });
        assert_eq!(pace.set(None, Some(7)), Rates { uplink: None, share_percent: 7 });
    }
}
