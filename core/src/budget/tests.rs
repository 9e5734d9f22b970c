//! What the buckets promise: a bound over any stretch of time, yielding, and who comes first.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn rate(bytes_per_second: u64) -> BytesPerSecond {
    NonZeroU64::new(bytes_per_second)
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Checks that no stretch of the granted (time, bytes) has more than rate · time + allowance.
fn assert_bounded(granted: &[(Duration, u64)], bytes_per_second: u64, allowance: u64) {
    for (at, first) in granted.iter().enumerate() {
        let mut bytes = 0;
        for (time, item) in &granted[at..] {
            bytes += item;
            let nanos = (*time - first.0).as_nanos();
            let refilled = nanos * u128::from(bytes_per_second) / 1_000_000_000;
            assert!(
                u128::from(bytes) <= refilled + u128::from(allowance),
                "{bytes} bytes in {:?} at {bytes_per_second} bytes/s",
                *time - first.0
            );
        }
    }
}

#[test]
fn a_full_bucket_gives_its_burst_at_once_and_then_its_rate() {
    let mut bucket = TokenBucket::new(rate(1000), 500, ms(0));
    assert_eq!(bucket.take(500, ms(0)), Duration::ZERO);
    assert_eq!(bucket.take(100, ms(0)), ms(100));
    assert_eq!(bucket.take(100, ms(99)), ms(1));
    assert_eq!(bucket.take(100, ms(100)), Duration::ZERO);
    // Saved up to the burst and no further.
    assert_eq!(bucket.take(500, ms(99_999)), Duration::ZERO);
    assert_eq!(bucket.take(1, ms(99_999)), ms(1));
    // A clock that goes back gives nothing and takes nothing.
    assert_eq!(bucket.take(1, ms(50)), ms(1));
    assert_eq!(bucket.take(1, ms(100_000)), Duration::ZERO);
}

#[test]
fn a_large_item_passes_a_full_bucket_and_is_paid_back() {
    let mut bucket = TokenBucket::new(rate(1000), 500, ms(0));
    assert_eq!(bucket.take(2000, ms(0)), Duration::ZERO);
    assert_eq!(bucket.take(2000, ms(0)), ms(2000));
    assert_eq!(bucket.take(2000, ms(2000)), Duration::ZERO);
}

#[test]
fn a_new_rate_holds_from_now_on() {
    let mut bucket = TokenBucket::new(rate(1000), 1000, ms(0));
    assert_eq!(bucket.take(1000, ms(0)), Duration::ZERO);
    assert_eq!(bucket.take(1000, ms(500)), ms(500));
    bucket.set_rate(ms(500), rate(100));
    assert_eq!(bucket.take(1000, ms(500)), ms(5000), "500 are there, the rest comes slowly");
    bucket.set_rate(ms(500), None);
    assert_eq!(bucket.take(u64::MAX, ms(500)), Duration::ZERO);
    assert_eq!(bucket.take(u64::MAX, ms(500)), Duration::ZERO, "as fast as it goes");
    bucket.set_rate(ms(500), rate(1000));
    assert_eq!(bucket.take(1000, ms(500)), Duration::ZERO, "and nothing of that is owed");
    assert_eq!(bucket.take(1000, ms(500)), ms(1000));
}

#[test]
fn the_background_yields_to_clients_and_never_stops() {
    let mut budget = Budget::new(rate(80 * MIB), rate(16 * MIB), MIB, ms(0));
    let (mut alone, mut busy) = (0, 0);
    for now in (0..20_000).map(ms) {
        // Ten quiet seconds; then ten with traffic every 100 ms.
        let is_busy = now >= ms(10_000);
        if is_busy && now.as_millis().is_multiple_of(100) {
            budget.foreground(now);
        }
        while budget.take_background(MIB / 16, now).is_zero() {
            *(if is_busy { &mut busy } else { &mut alone }) += MIB / 16;
        }
    }
    assert!((160..=161).contains(&(alone / MIB)), "{} MiB in 10 s", alone / MIB);
    assert!((20..=21).contains(&(busy / MIB)), "{} MiB in 10 s: an eighth", busy / MIB);
    // Soon after the last client it is fast again, as it said.
    let wait = budget.take_background(MIB, ms(20_000));
    assert!(wait > Duration::ZERO && wait < ms(300), "{wait:?}");
    assert_eq!(budget.take_background(MIB, ms(20_000) + wait), Duration::ZERO);
}

#[test]
fn without_limits_the_background_still_yields() {
    let mut budget = Budget::new(None, None, MIB, ms(0));
    for _ in 0..100 {
        assert_eq!(budget.take_background(MIB, ms(1)), Duration::ZERO);
    }
    budget.foreground(ms(1));
    let _ = budget.take_background(MIB, ms(1));
    assert_eq!(budget.take_background(MIB, ms(1)), FOREGROUND_QUIET);
    assert_eq!(budget.take_emergency(MIB, ms(1)), Duration::ZERO);
    assert_eq!(budget.take_background(MIB, ms(252)), Duration::ZERO);
}

#[test]
fn an_emergency_uses_the_whole_uplink_whatever_else_goes_on() {
    let mut budget = Budget::new(rate(10 * MIB), rate(2 * MIB), MIB, ms(0));
    let (mut emergency, mut background) = (0, 0);
    for now in (0..10_000).map(ms) {
        budget.foreground(now);
        // The background asks first, and more often.
        for _ in 0..4 {
            background += if budget.take_background(4096, now).is_zero() { 4096 } else { 0 };
        }
        while budget.take_emergency(MIB / 4, now).is_zero() {
            emergency += MIB / 4;
        }
    }
    assert!(emergency > 98 * MIB, "{} MiB of 100", emergency / MIB);
    assert!(background <= MIB, "only until the first emergency had to wait: {background}");
    // When it is over, the background goes on.
    let wait = budget.take_background(4096, ms(10_000));
    assert!(wait < ms(500), "{wait:?}");
}

#[test]
fn new_rates_keep_the_pause_and_the_debt() {
    let mut budget = Budget::new(rate(1000), rate(1000), 1000, ms(0));
    assert_eq!(budget.take_background(1000, ms(0)), Duration::ZERO);
    budget.set_rates(ms(0), rate(1000), rate(100));
    assert_eq!(budget.take_background(100, ms(0)), ms(1000));
    budget.set_rates(ms(500), None, None);
    assert_eq!(budget.take_background(100, ms(500)), Duration::ZERO);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_stretch_of_time_has_more_than_rate_times_time_and_burst(
        bytes_per_second in 1u64..1_000_000,
        burst in 0u64..100_000,
        asks in prop::collection::vec((0u64..200_000_000, 1u64..200_000), 0..80),
    ) {
        let mut bucket = TokenBucket::new(rate(bytes_per_second), burst, ms(0));
        let mut now = ms(0);
        let mut granted = Vec::new();
        for (nanos, bytes) in asks {
            now += Duration::from_nanos(nanos);
            let wait = bucket.take(bytes, now);
            if wait.is_zero() {
                granted.push((now, bytes));
            } else if nanos % 2 == 0 {
                // Asked again in time, it is granted; a nanosecond before, it was not.
                prop_assert!(!bucket.take(bytes, now + wait - Duration::from_nanos(1)).is_zero());
                now += wait;
                prop_assert_eq!(bucket.take(bytes, now), Duration::ZERO);
                granted.push((now, bytes));
            }
        }
        let largest = granted.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        // One byte for the fraction of a byte with which a stretch may start.
        assert_bounded(&granted, bytes_per_second, burst.max(largest) + 1);
    }

    #[test]
    fn emergencies_come_first_and_both_stay_within_their_bounds(
        uplink in 10_000u64..1_000_000,
        share in 1u64..6,
        asks in prop::collection::vec((0u64..60_000_000, 0u8..8, 1u64..20_000), 0..120),
    ) {
        let burst = 20_000;
        let background_rate = uplink / share;
        let mut budget = Budget::new(rate(uplink), rate(background_rate), burst, ms(0));
        let mut now = ms(0);
        let (mut all, mut background) = (Vec::new(), Vec::new());
        let mut emergency_waits_until = None;
        for (nanos, who, bytes) in asks {
            now += Duration::from_nanos(nanos);
            match who {
                0 => budget.foreground(now),
                1..=3 => {
                    let wait = budget.take_emergency(bytes, now);
                    if wait.is_zero() {
                        all.push((now, bytes));
                    } else {
                        emergency_waits_until = emergency_waits_until.max(Some(now + wait));
                    }
                }
                _ => {
                    if budget.take_background(bytes, now).is_zero() {
                        prop_assert!(emergency_waits_until.is_none_or(|until| now >= until));
                        all.push((now, bytes));
                        background.push((now, bytes));
                    }
                }
            }
        }
        assert_bounded(&all, uplink, burst + 1);
        assert_bounded(&background, background_rate, burst + 1);
    }
}
