//! How long recent answers took, and what that says about the next one.
//!
//! Owns a window of the last answers and its percentiles. Keeps no history, draws no conclusions.
//! The one idea: "slow" is what this reader on this link has not seen lately, not a fixed number.

use std::{sync::Mutex, time::Duration};

/// Answers remembered: enough for a steady 90th percentile, few enough to follow a link that
/// changes within a second or two.
const WINDOW: usize = 128;

/// Answers seen before a percentile is worth anything.
const SAMPLES_MIN: usize = 8;

/// A window of recent durations. Shared between tasks; recording takes well under a microsecond.
#[derive(Debug, Default)]
pub struct Latency {
    recent: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    micros: Vec<u32>,
    next: usize,
    // Sorting at every question would cost more than the answer is worth: p50 and p90 are computed
    // again after this many new answers.
    stale: usize,
    p50: u32,
    p90: u32,
}

impl Latency {
    /// Remembers that an answer took this long.
    pub fn record(&self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let mut window = self.lock();
        if window.micros.len() < WINDOW {
            window.micros.push(micros);
        } else {
            let next = window.next;
            window.micros[next] = micros;
        }
        window.next = (window.next + 1) % WINDOW;
        window.stale += 1;
    }

    /// Half of the recent answers came within this time; none before there are enough answers.
    pub fn p50(&self) -> Option<Duration> {
        self.percentiles().map(|(p50, _)| p50)
    }

    /// Nine of ten recent answers came within this time; none before there are enough answers.
    pub fn p90(&self) -> Option<Duration> {
        self.percentiles().map(|(_, p90)| p90)
    }

    fn percentiles(&self) -> Option<(Duration, Duration)> {
        let mut window = self.lock();
        let count = window.micros.len();
        if count < SAMPLES_MIN {
            return None;
        }
        if window.stale * 8 >= count || window.p90 == 0 {
            let mut sorted = window.micros.clone();
            sorted.sort_unstable();
            window.p50 = sorted[count / 2];
            window.p90 = sorted[count * 9 / 10];
            window.stale = 0;
        }
        let (p50, p90) = (window.p50, window.p90);
        Some((Duration::from_micros(p50.into()), Duration::from_micros(p90.into())))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Window> {
        // A panic elsewhere cannot leave numbers half written.
        self.recent.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_need_a_few_answers_and_then_follow_the_latest() {
        let latency = Latency::default();
        latency.record(Duration::from_millis(1));
        assert_eq!(latency.p90(), None);
        for millis in 1..=100 {
            latency.record(Duration::from_millis(millis));
        }
        let p50 = latency.p50().expect("101 answers");
        let p90 = latency.p90().expect("101 answers");
        assert!((45..=55).contains(&p50.as_millis()), "{p50:?}");
        assert!((85..=95).contains(&p90.as_millis()), "{p90:?}");
        for _ in 0..WINDOW {
            latency.record(Duration::from_millis(500));
        }
        assert_eq!(latency.p50(), Some(Duration::from_millis(500)));
    }
}
