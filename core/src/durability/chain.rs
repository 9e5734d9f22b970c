//! One stripe of n shards under independent, memoryless node failures: models A to E.
//!
//! Owns mean time to data loss, nines, repair traffic and availability of a (k, n, r) scheme.
//! Knows nothing of correlated failures, which rule the real tail: nines above about eleven only
//! rank schemes, they promise nothing.
//!
//! ```text
//! λ = 1/mean life of a node     τ = 1/μ = mean time to repair     live shards: n … k, loss at k−1
//! D = Σ i=r+1..n 1/(iλ)         from full strength to the threshold
//! ```
//!
//! | model | repair | source |
//! |---|---|---|
//! | A | lazy batch back to n, exponential τ | derived by first-step analysis, see [`ln_mttdl`] |
//! | B | eager, every missing shard on its own, exponential τ: only in the tests, to hold C against | birth–death chain |
//! | C | lazy batch back to n, fixed τ | window of τ as in Weatherspoon and Kubiatowicz (2002) |
//! | D | traffic | Giroire et al. (GLOBECOM 2010) without their integral |
//! | E | instant availability | binomial |

use super::{RepairLaw, logmath};

/// A stripe's code and the threshold of its repair.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Scheme {
    data: usize,
    total: usize,
    threshold: usize,
}

/// Numbers that make no scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("k = {data}, n = {total}, r = {threshold} is no scheme: it must hold that 1 <= k <= r < n")]
pub struct SchemeError {
    /// k.
    pub data: usize,
    /// n.
    pub total: usize,
    /// r.
    pub threshold: usize,
}

impl Scheme {
    /// Any `data` of `total` shards rebuild the stripe; repair begins when `threshold` or fewer
    /// live.
    ///
    /// # Errors
    /// Unless 1 ≤ k ≤ r < n.
    pub const fn new(data: usize, total: usize, threshold: usize) -> Result<Self, SchemeError> {
        if 1 <= data && data <= threshold && threshold < total {
            Ok(Self { data, total, threshold })
        } else {
            Err(SchemeError { data, total, threshold })
        }
    }

    /// Repair begins with the first loss.
    ///
    /// # Errors
    /// Unless 1 ≤ k < n.
    pub const fn eager(data: usize, total: usize) -> Result<Self, SchemeError> {
        Self::new(data, total, total.saturating_sub(1))
    }

    /// k: shards that rebuild the stripe.
    pub const fn data(self) -> usize {
        self.data
    }

    /// n: all shards.
    pub const fn total(self) -> usize {
        self.total
    }

    /// r: repair begins when so many or fewer live.
    pub const fn threshold(self) -> usize {
        self.threshold
    }

    /// n/k: stored bytes per byte of the user's.
    pub fn expansion(self) -> f64 {
        self.total as f64 / self.data as f64
    }
}

/// How fast nodes die and stripes heal. Any unit of time, the same in both.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pace {
    /// Mean life of a node.
    pub life: f64,
    /// Mean time from the threshold to full strength: detection, queue and transfer.
    pub repair: f64,
}

/// D: the mean time from n live shards to r.
pub fn decay(scheme: Scheme, life: f64) -> f64 {
    (scheme.threshold + 1..=scheme.total).map(|live| life / live as f64).sum()
}

/// ln of the mean time to data loss, in the unit of `pace`: model A or C.
///
/// A (exponential). With T_i the mean time to loss from i live shards: for i > r, T_i = 1/(iλ) +
/// T_{i−1}; for k ≤ i ≤ r, T_i = (1 + iλ T_{i−1} + μ T_n)/(iλ+μ); T_{k−1} = 0. Unrolled, with p_j
/// = jλ/(jλ+μ): Q = Π j=k..r p_j, a = Σ j=k..r (Π l=j+1..r p_l)/(jλ+μ), MTTDL = (D+a)/Q.
///
/// C (fixed). Of the r shards at the threshold, r−k+1 or more die within τ with probability Q
/// (binomial, q = 1−e^(−λτ)); MTTDL = (D+τ)/Q.
pub fn ln_mttdl(scheme: Scheme, pace: Pace, law: RepairLaw) -> f64 {
    let decay = decay(scheme, pace.life);
    match law {
        RepairLaw::Exponential => {
            let (lambda, mu) = (1.0 / pace.life, 1.0 / pace.repair);
            let (mut ln_loss, mut repairing) = (0.0f64, 0.0);
            for live in (scheme.data..=scheme.threshold).rev() {
                let death = live as f64 * lambda;
                repairing += ln_loss.exp() / (death + mu);
                ln_loss += (death / (death + mu)).ln();
            }
            (decay + repairing).ln() - ln_loss
        }
        RepairLaw::Fixed => {
            (decay + pace.repair).ln() - ln_episode_loss(scheme, pace, RepairLaw::Fixed)
        }
    }
}

/// ln Q: the probability that one repair comes too late.
pub fn ln_episode_loss(scheme: Scheme, pace: Pace, law: RepairLaw) -> f64 {
    match law {
        RepairLaw::Exponential => (scheme.data..=scheme.threshold)
            .map(|live| {
                let death = live as f64 * pace.repair / pace.life;
                (death / (death + 1.0)).ln()
            })
            .sum(),
        RepairLaw::Fixed => logmath::ln_binomial_from(
            scheme.threshold as u64,
            (scheme.threshold - scheme.data + 1) as u64,
            -(-pace.repair / pace.life).exp_m1(),
        ),
    }
}

/// ln of the probability that at least one of `stripes` is lost within `time`.
pub fn ln_loss_within(ln_mttdl: f64, time: f64, stripes: f64) -> f64 {
    let ln_expected = stripes.ln() + time.ln() - ln_mttdl;
    if ln_expected < -30.0 { ln_expected } else { (-(-ln_expected.exp()).exp_m1()).ln() }
}

/// Nines of one stripe over `time`: −log10 of the probability to lose it.
pub fn nines(scheme: Scheme, pace: Pace, law: RepairLaw, time: f64) -> f64 {
    logmath::nines(ln_loss_within(ln_mttdl(scheme, pace, law), time, 1.0))
}

/// Model D: bytes moved by repair per byte of the user's and per unit of time, (k+n−r)/(k·D): each
/// time the threshold is reached, k shards are read and n−r written. Repair times short against
/// lives are left out.
pub fn repair_traffic(scheme: Scheme, life: f64) -> f64 {
    let moved = scheme.data + scheme.total - scheme.threshold;
    moved as f64 / (scheme.data as f64 * decay(scheme, life))
}

/// The same with repairs that take a fixed time: a cycle is D+τ long, and of the r shards at the
/// threshold r(1−e^(−λτ)) die meanwhile and are made again with the others. Losses are left out.
pub fn repair_traffic_with_time(scheme: Scheme, pace: Pace) -> f64 {
    let died = -(-pace.repair / pace.life).exp_m1() * scheme.threshold as f64;
    let moved = (scheme.data + scheme.total - scheme.threshold) as f64 + died;
    moved / (scheme.data as f64 * (decay(scheme, pace.life) + pace.repair))
}

/// Model E: ln of the probability that fewer than k of n nodes answer at an instant, each of them
/// with the given availability.
pub fn ln_unavailable(scheme: Scheme, availability: f64) -> f64 {
    logmath::ln_binomial_below(scheme.total as u64, scheme.data as u64, availability)
}

/// ln of the probability that a stripe without any loss seems to be at its threshold at an
/// instant.
pub fn ln_false_trigger(scheme: Scheme, availability: f64) -> f64 {
    logmath::ln_binomial_below(scheme.total as u64, scheme.threshold as u64 + 1, availability)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONTH_H: f64 = 730.5;
    const YEAR_H: f64 = 8766.0;

    fn scheme(data: usize, total: usize, threshold: usize) -> Scheme {
        Scheme::new(data, total, threshold).expect("a scheme")
    }

    /// A table of nines that was computed with 50-digit arithmetic, some of its rows.
    #[test]
    fn nines_of_a_stripe_year_as_computed_elsewhere() {
        let check = |scheme: Scheme, months: f64, hours: f64, a: f64, c: f64| {
            let pace = Pace { life: months * MONTH_H, repair: hours };
            for (law, expected) in [(RepairLaw::Exponential, a), (RepairLaw::Fixed, c)] {
                let got = nines(scheme, pace, law, YEAR_H);
                let digit = if expected < 10.0 { 0.0051 } else { 0.051 };
                assert!(
                    (got - expected).abs() < digit,
                    "{scheme:?} {months} mo {hours} h {law}: {got}, expected {expected}"
                );
            }
        };
        check(scheme(4, 6, 5), 1.0, 24.0, 0.20, 0.35);
        check(scheme(4, 6, 5), 60.0, 1.0, 7.90, 8.20);
        check(scheme(10, 16, 15), 6.0, 12.0, 7.42, 10.2);
        check(scheme(10, 16, 13), 1.0, 24.0, 0.60, 1.51);
        check(scheme(10, 16, 13), 12.0, 24.0, 5.38, 6.72);
        check(scheme(10, 16, 13), 60.0, 168.0, 5.52, 6.84);
        check(scheme(20, 40, 39), 1.0, 168.0, 0.03, 3.02);
        check(scheme(20, 40, 30), 6.0, 24.0, 9.31, 16.4);
        check(scheme(29, 80, 52), 6.0, 1.0, 48.4, 72.1);
        check(scheme(29, 80, 52), 60.0, 168.0, 21.4, 43.8);
        check(scheme(20, 40, 25), 12.0, 24.0, 7.09, 9.82);
        check(scheme(29, 80, 35), 6.0, 24.0, 5.41, 8.68);
    }

    /// ln of the mean time to data loss when every missing shard is rebuilt on its own from the first
    /// loss on, each after an exponential time: model B. The threshold does not matter.
    ///
    /// h_i is the mean first passage from i to i−1: h_n = 1/(nλ), h_i = (1+(n−i)μ h_{i+1})/(iλ).
    fn ln_mttdl_parallel(scheme: Scheme, pace: Pace) -> f64 {
        let mut passages = Vec::new();
        let mut above: Option<f64> = None;
        for live in (scheme.data..=scheme.total).rev() {
            let healing = (scheme.total - live) as f64 / pace.repair;
            let numerator = match above {
                Some(ln_passage) => logmath::ln_sum([0.0, healing.ln() + ln_passage]),
                None => 0.0,
            };
            let passage = numerator - (live as f64 / pace.life).ln();
            passages.push(passage);
            above = Some(passage);
        }
        logmath::ln_sum(passages)
    }

    /// The parallel model lies within 0.2 nines of the fixed window in every eager case.
    #[test]
    fn parallel_eager_repair_is_close_to_a_fixed_window() {
        for (data, total) in [(4, 6), (10, 16), (20, 40)] {
            let eager = Scheme::eager(data, total).expect("a scheme");
            for (months, hours) in [(6.0, 12.0), (12.0, 24.0), (60.0, 24.0)] {
                let pace = Pace { life: months * MONTH_H, repair: hours };
                let parallel =
                    logmath::nines(ln_loss_within(ln_mttdl_parallel(eager, pace), YEAR_H, 1.0));
                let fixed = nines(eager, pace, RepairLaw::Fixed, YEAR_H);
                assert!((parallel - fixed).abs() < 0.25, "{eager:?}: {parallel} and {fixed}");
            }
        }
    }

    #[test]
    fn traffic_availability_and_false_triggers_as_computed_elsewhere() {
        let near = |got: f64, expected: f64, relative: f64| {
            assert!((got / expected - 1.0).abs() < relative, "{got}, expected {expected}");
        };
        // In units of λ.
        for (s, expected) in [
            (scheme(4, 6, 5), 7.5),
            (scheme(10, 16, 13), 6.48),
            (scheme(20, 40, 30), 5.29),
            (scheme(29, 80, 52), 4.60),
            (scheme(10, 16, 15), 17.6),
            (scheme(20, 40, 39), 42.0),
        ] {
            near(repair_traffic(s, 1.0), expected, 0.003);
        }
        near(ln_unavailable(scheme(10, 16, 13), 0.9).exp(), 5e-4, 0.1);
        near(ln_unavailable(scheme(20, 40, 30), 0.95).exp(), 3e-17, 0.2);
        near(ln_false_trigger(scheme(10, 16, 13), 0.95).exp(), 0.043, 0.02);
        near(ln_false_trigger(scheme(20, 40, 30), 0.95).exp(), 2.1e-5, 0.03);
        near(ln_false_trigger(scheme(29, 80, 52), 0.95).exp(), 8e-17, 0.1);
    }

    /// 1e308 hours are no limit.
    #[test]
    fn very_wide_codes_do_not_overflow() {
        let wide = scheme(80, 240, 200);
        let pace = Pace { life: 60.0 * MONTH_H, repair: 0.1 };
        for law in RepairLaw::BOTH {
            let ln = ln_mttdl(wide, pace, law);
            assert!(ln.is_finite() && ln > 700.0, "{law}: {ln}");
        }
        assert!(ln_mttdl_parallel(wide, pace).is_finite());
        assert!(nines(wide, pace, RepairLaw::Fixed, YEAR_H) > 308.0);
    }
}
