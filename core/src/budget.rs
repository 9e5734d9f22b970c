//! How fast a node may repair: token buckets, with a background that yields and an emergency lane.
//!
//! Owns the accounts. Refuses to read a clock or to wait: time comes in, the time to wait goes out,
//! and the caller asks again then. The one idea: the background has a rate of its own that shrinks
//! while clients are being served, the emergency lane has the uplink's.
//!
//! ```text
//! emergency ──────────────────────────────▶ uplink bucket ──▶ sent
//! background ─▶ its own bucket ───────────▶      ▲
//!   refilled at its rate; at an eighth of it     └ the background takes nothing while an
//!   while there was foreground traffic just now    emergency waits
//! ```

use core::{num::NonZeroU64, time::Duration};

/// Bytes per second; `None`: as fast as it goes.
pub type BytesPerSecond = Option<NonZeroU64>;

/// For how long the background holds back after foreground traffic: longer than the pauses within
/// a transfer, shorter than those between two.
pub const FOREGROUND_QUIET: Duration = Duration::from_millis(250);

/// The part of its rate that the background keeps while there is foreground traffic: one in so
/// many. Repair that never gets a turn is data loss.
pub const BUSY_SHARE: u64 = 8;

/// What the background keeps while there is foreground traffic when its rate is unlimited, in bytes
/// per second: a shard in a second.
pub const BUSY_BYTES_PER_SECOND: u64 = 1 << 20;

/// For how long after the end of its wait an emergency still holds the background off: the time to
/// wake up and ask again.
const EMERGENCY_GRACE: Duration = Duration::from_millis(50);

const NANOS: i128 = 1_000_000_000;

/// One account: fills at a rate up to its burst, and is emptied by what is taken.
///
/// Over any stretch of time it grants at most rate · time + burst. One item larger than the burst
/// is granted when the bucket is full and leaves a debt; then the bound has that item in place of
/// the burst.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: BytesPerSecond,
    burst_bytes: u64,
    /// Bytes · 10^9, so that nothing is lost to rounding. Negative: a debt.
    level: i128,
    settled_at: Duration,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(rate: BytesPerSecond, burst_bytes: u64, now: Duration) -> Self {
        let level = i128::from(burst_bytes) * NANOS;
        Self { rate, burst_bytes, level, settled_at: now }
    }

    /// Takes so many bytes if they are there: zero. Otherwise takes nothing, and says after how
    /// long to ask again.
    #[must_use]
    pub fn take(&mut self, bytes: u64, now: Duration) -> Duration {
        let wait = self.wait(bytes, now);
        if wait.is_zero() {
            self.charge(bytes);
        }
        wait
    }

    /// Changes the rate. What was saved or owed until now stays.
    pub fn set_rate(&mut self, now: Duration, rate: BytesPerSecond) {
        self.settle(now, self.rate);
        self.rate = rate;
    }

    /// The rate.
    pub const fn rate(&self) -> BytesPerSecond {
        self.rate
    }

    /// How long until so many bytes can be taken. Takes nothing.
    fn wait(&mut self, bytes: u64, now: Duration) -> Duration {
        self.settle(now, self.rate);
        refill_time(self.lacking(bytes), self.rate)
    }

    /// Bytes · 10^9 that lack for taking so many.
    fn lacking(&self, bytes: u64) -> i128 {
        i128::from(bytes.min(self.burst_bytes)) * NANOS - self.level
    }

    fn charge(&mut self, bytes: u64) {
        self.level -= i128::from(bytes) * NANOS;
    }

    /// Adds what came in at this rate since the last time. A clock that went back adds nothing.
    fn settle(&mut self, now: Duration, rate: BytesPerSecond) {
        let full = i128::from(self.burst_bytes) * NANOS;
        let nanos = now.saturating_sub(self.settled_at).as_nanos();
        self.settled_at = self.settled_at.max(now);
        self.level = match rate {
            None => full,
            Some(rate) => {
                // Both factors fit in 64 bits unless the node has been up for 584 years.
                let nanos = i128::try_from(nanos).unwrap_or(i128::MAX).min(i64::MAX.into());
                (self.level + nanos * i128::from(rate.get())).min(full)
            }
        };
    }
}

/// How long it takes for so many bytes · 10^9 to come in.
fn refill_time(lacking: i128, rate: BytesPerSecond) -> Duration {
    match rate {
        Some(rate) if lacking > 0 => {
            let rate = i128::from(rate.get());
            let nanos = (lacking + rate - 1) / rate;
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        }
        _ => Duration::ZERO,
    }
}

/// What a node may send for the sake of repair.
#[derive(Clone, Debug)]
pub struct Budget {
    uplink: TokenBucket,
    background: TokenBucket,
    /// The background holds back until then.
    busy_until: Duration,
    /// An emergency was told to come back by then.
    emergency_until: Duration,
}

impl Budget {
    /// A budget with full buckets. `burst_bytes` is of each; give one shard or more.
    pub fn new(
        uplink: BytesPerSecond,
        background: BytesPerSecond,
        burst_bytes: u64,
        now: Duration,
    ) -> Self {
        Self {
            uplink: TokenBucket::new(uplink, burst_bytes, now),
            background: TokenBucket::new(background, burst_bytes, now),
            busy_until: Duration::ZERO,
            emergency_until: Duration::ZERO,
        }
    }

    /// Changes the rates.
    pub fn set_rates(&mut self, now: Duration, uplink: BytesPerSecond, background: BytesPerSecond) {
        self.settle_background(now);
        self.background.rate = background;
        self.uplink.set_rate(now, uplink);
    }

    /// Clients are being served: the background holds back for [`FOREGROUND_QUIET`] from now.
    pub fn foreground(&mut self, now: Duration) {
        self.settle_background(now);
        self.busy_until = self.busy_until.max(now.saturating_add(FOREGROUND_QUIET));
    }

    /// Takes so many bytes for a thin chunk: zero, or after how long to ask again. Only the
    /// uplink's rate counts.
    #[must_use]
    pub fn take_emergency(&mut self, bytes: u64, now: Duration) -> Duration {
        let wait = self.uplink.take(bytes, now);
        if !wait.is_zero() {
            let until = now.saturating_add(wait).saturating_add(EMERGENCY_GRACE);
            self.emergency_until = self.emergency_until.max(until);
        }
        wait
    }

    /// Takes so many bytes for anything else: zero, or after how long to ask again.
    #[must_use]
    pub fn take_background(&mut self, bytes: u64, now: Duration) -> Duration {
        self.settle_background(now);
        let wait = self
            .background_wait(bytes, now)
            .max(self.uplink.wait(bytes, now))
            .max(self.emergency_until.saturating_sub(now));
        if wait.is_zero() {
            self.background.charge(bytes);
            self.uplink.charge(bytes);
        }
        wait
    }

    /// What the background gets while there is foreground traffic.
    fn busy_rate(&self) -> BytesPerSecond {
        let rate = self
            .background
            .rate
            .map_or(BUSY_BYTES_PER_SECOND, |rate| (rate.get() / BUSY_SHARE).max(1));
        NonZeroU64::new(rate)
    }

    /// Fills the background's bucket: slowly up to the end of the foreground traffic, then fast.
    fn settle_background(&mut self, now: Duration) {
        self.background.settle(now.min(self.busy_until), self.busy_rate());
        if now > self.busy_until {
            self.background.settle(now, self.background.rate);
        }
    }

    /// How long until the background's own bucket has so many bytes, if no more foreground traffic
    /// comes.
    fn background_wait(&self, bytes: u64, now: Duration) -> Duration {
        let lacking = self.background.lacking(bytes);
        let busy = self.busy_until.saturating_sub(now);
        let slowly = refill_time(lacking, self.busy_rate());
        if slowly <= busy {
            return slowly;
        }
        let nanos = i128::try_from(busy.as_nanos()).unwrap_or(i128::MAX).min(i64::MAX.into());
        let meanwhile = nanos * self.busy_rate().map_or(0, |rate| i128::from(rate.get()));
        busy.saturating_add(refill_time(lacking - meanwhile, self.background.rate))
    }
}

#[cfg(test)]
mod tests;
