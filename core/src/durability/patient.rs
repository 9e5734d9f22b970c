//! One chunk as the planner repairs it: at its threshold, or when a shard was missing for long.
//!
//! Owns loss and traffic under both rules together; `chain` has the threshold alone. Knows nothing
//! of correlated failures. The one idea: an episode begins with the first loss and ends with the
//! repair, whichever of the two rules asked for it.
//!
//! ```text
//! λ = 1/mean life   τ = mean time from the call for repair to full strength   P = patience
//! live shards:  n ──first loss──▶ n−1 … r+1  waits, for P at most   r … k  under repair   k−1 lost
//! ```
//!
//! With P → ∞ these are models A, C and D of `chain`; with r = n−1 the patience never matters.

use super::{
    RepairLaw,
    chain::{Pace, Scheme, decay, ln_episode_loss},
    logmath::{ln_binomial, ln_binomial_below, ln_binomial_from, ln_sum},
};

/// ln of the mean time to data loss, in the unit of `pace` and `patience`.
///
/// Exponential: the chain of model A with one more way back to n. From i live shards, r < i < n, the
/// repair is done at rate ν_i = 1/(P+τ), from i ≤ r at ν_i = 1/τ. With p_j = jλ/(jλ+ν_j): Q = Π
/// j=k..n−1 p_j, a = Σ j=k..n−1 (Π l=j+1..n−1 p_l)/(jλ+ν_j), MTTDL = (1/(nλ)+a)/Q. To give the
/// waiting, which is always P, the same memoryless law overstates loss.
///
/// Fixed: the repair is done τ after the threshold is reached or τ after P, whichever is first. Of
/// the n−1 shards left by the first loss, i live after P with probability B(i) (binomial, each with
/// e^(−λP)). Q = Σ i≤r B(i) · C(r) + Σ i>r B(i) · C(i), C(i) the probability that fewer than k of i
/// live after a further τ; MTTDL = (1/(nλ) + W + τ)/Q with W the mean [waiting time](waiting).
pub fn ln_mttdl(scheme: Scheme, pace: Pace, patience: f64, law: RepairLaw) -> f64 {
    let first = pace.life / scheme.total() as f64;
    match law {
        RepairLaw::Exponential => {
            let (mut ln_loss, mut repairing) = (0.0f64, 0.0);
            for live in (scheme.data()..scheme.total()).rev() {
                let death = live as f64 / pace.life;
                let wait = if live > scheme.threshold() { patience } else { 0.0 };
                let heal = 1.0 / (wait + pace.repair);
                repairing += ln_loss.exp() / (death + heal);
                ln_loss += (death / (death + heal)).ln();
            }
            (first + repairing).ln() - ln_loss
        }
        RepairLaw::Fixed => {
            let left = (scheme.total() - 1) as u64;
            let alive = survival(pace.life, patience);
            let at_threshold = ln_binomial_below(left, scheme.threshold() as u64 + 1, alive)
                + ln_episode_loss(scheme, pace, RepairLaw::Fixed);
            let dies = -(-pace.repair / pace.life).exp_m1();
            let overdue = (scheme.threshold() as u64 + 1..=left).map(|live| {
                let too_many = live + 1 - scheme.data() as u64;
                ln_binomial(left, live, alive) + ln_binomial_from(live, too_many, dies)
            });
            let ln_loss = ln_sum(overdue.chain([at_threshold]));
            (first + waiting(scheme, pace.life, patience) + pace.repair).ln() - ln_loss
        }
    }
}

/// The mean time from the first loss to the call for repair: the threshold's, after P at the latest.
///
/// The sum over r < j < n of the time spent with j live shards before P. That is (1/jλ) · P(fewer
/// than j of n−1 live after P): the integral of a binomial's term is an incomplete beta function.
pub fn waiting(scheme: Scheme, life: f64, patience: f64) -> f64 {
    let left = (scheme.total() - 1) as u64;
    let alive = survival(life, patience);
    (scheme.threshold() as u64 + 1..=left)
        .map(|live| life / live as f64 * ln_binomial_below(left, live, alive).exp())
        .sum()
}

/// Bytes moved by repair per byte of the user's and per unit of time: in each cycle k shards are
/// read, and those made that are missing when the repair is done. With either law of repair times
/// nearly the same; computed for fixed ones. Losses are left out.
pub fn repair_traffic(scheme: Scheme, pace: Pace, patience: f64) -> f64 {
    let left = (scheme.total() - 1) as u64;
    let alive = survival(pace.life, patience);
    let threshold = scheme.threshold() as u64;
    let called_at: f64 = (threshold + 1..=left)
        .map(|live| live as f64 * ln_binomial(left, live, alive).exp())
        .sum::<f64>()
        + threshold as f64 * ln_binomial_below(left, threshold + 1, alive).exp();
    let made = scheme.total() as f64 - called_at * survival(pace.life, pace.repair);
    let cycle =
        decay_to_first(scheme, pace.life) + waiting(scheme, pace.life, patience) + pace.repair;
    (scheme.data() as f64 + made) / (scheme.data() as f64 * cycle)
}

/// 1/(nλ).
fn decay_to_first(scheme: Scheme, life: f64) -> f64 {
    Scheme::eager(scheme.data(), scheme.total()).map_or(0.0, |eager| decay(eager, life))
}

/// e^(−λt).
fn survival(life: f64, time: f64) -> f64 {
    (-time / life).exp()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::durability::chain;

    const DAY_H: f64 = 24.0;
    const YEAR_H: f64 = 8766.0;

    fn scheme(data: usize, total: usize, threshold: usize) -> Scheme {
        Scheme::new(data, total, threshold).expect("a scheme")
    }

    fn near(what: &str, got: f64, expected: f64, tolerance: f64) {
        assert!((got - expected).abs() <= tolerance, "{what}: {got}, expected {expected}");
    }

    proptest! {
        /// Endless patience is the threshold alone; a threshold of n−1 makes patience irrelevant.
        #[test]
        fn the_limits_are_the_models_without_patience(
            data in 1usize..20, parity in 1usize..20, at in 0usize..20,
            life in 500f64..1e5, repair in 0.5f64..400.0, patience in 0f64..1e4,
        ) {
            let total = data + parity;
            let lazy = scheme(data, total, (data + at).min(total - 1));
            let eager = scheme(data, total, total - 1);
            let pace = Pace { life, repair };
            for law in RepairLaw::BOTH {
                let endless = ln_mttdl(lazy, pace, 1e12, law);
                prop_assert!((endless - chain::ln_mttdl(lazy, pace, law)).abs() < 1e-6);
                let never = ln_mttdl(eager, pace, patience, law);
                prop_assert!((never - chain::ln_mttdl(eager, pace, law)).abs() < 1e-9);
                let some = ln_mttdl(lazy, pace, patience, law);
                let more = ln_mttdl(lazy, pace, patience + 10.0, law);
                prop_assert!(more <= some + 1e-9, "waiting longer lost less: {some} {more}");
            }
            prop_assert!(waiting(lazy, life, patience) <= patience + 1e-6);
            prop_assert!(waiting(lazy, life, patience) <= decay(lazy, life) + 1e-6);
            let traffic = repair_traffic(lazy, pace, 1e12);
            let expected = chain::repair_traffic_with_time(lazy, pace);
            prop_assert!((traffic / expected - 1.0).abs() < 1e-6, "{traffic} {expected}");
        }

        /// The memoryless law is the pessimistic one here, too.
        #[test]
        fn the_exponential_law_loses_more(
            data in 1usize..16, parity in 2usize..12, patience in 0f64..2000.0,
        ) {
            let total = data + parity;
            let scheme = scheme(data, total, data + parity.div_ceil(2));
            let pace = Pace { life: YEAR_H, repair: DAY_H };
            let [exponential, fixed] =
                RepairLaw::BOTH.map(|law| ln_mttdl(scheme, pace, patience, law));
            prop_assert!(exponential <= fixed + 1e-9, "{exponential} {fixed}");
        }
    }

    /// 10+6 with the product's threshold and lives of a year: with a day's patience nearly every
    /// loss is repaired alone; three are waited for with years of it. From 17.6 to 6.48 bytes.
    #[test]
    fn patience_decides_between_traffic_and_nines() {
        let lazy = scheme(10, 16, 13);
        let pace = Pace { life: YEAR_H, repair: 0.1 };
        let traffic = |days: f64| repair_traffic(lazy, pace, days * DAY_H) * YEAR_H;
        near("at once", traffic(0.0), 17.6, 0.01);
        near("a day", traffic(1.0), 16.9, 0.05);
        near("for ever", traffic(1e6), 6.48, 0.01);
    }
}
