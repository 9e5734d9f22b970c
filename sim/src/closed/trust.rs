//! Audits and reputation: how soon a node that fails is noticed.
//!
//! Owns the formulas and the arithmetic of one node's reputation. Draws no random numbers: the
//! caller brings outcomes.

/// Probability that `audits` samples, drawn with replacement, meet a damaged part of the given
/// share: 1−(1−p)^c. Ateniese et al., "Provable data possession" (CCS 2007).
pub fn detected(damaged: f64, audits: u32) -> f64 {
    -(f64::from(audits) * (-damaged).ln_1p()).exp_m1()
}

/// Audits that find damage of this share with at least this confidence.
pub fn audits_needed(damaged: f64, confidence: f64) -> f64 {
    ((-confidence).ln_1p() / (-damaged).ln_1p()).ceil()
}

/// A beta reputation with forgetting: after each audit α' = Lα + w(1+v)/2, β' = Lβ + w(1−v)/2 with
/// v = ±1; the score is α/(α+β). Jøsang and Ismail (2002), in the form of Storj's
/// `satellite/reputation/calculations.go`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Reputation {
    alpha: f64,
    beta: f64,
    memory: f64,
    weight: f64,
}

/// Storj's score below which a node is disqualified (`satellite/reputation/config.go`).
pub const STORJ_DISQUALIFIED_BELOW: f64 = 0.96;

/// Storj's score below which a node with unknown errors is suspended (the same file).
pub const STORJ_SUSPENDED_BELOW: f64 = 0.6;

impl Reputation {
    /// Storj's for audits: L = 0.999, w = 1, begun at α = 1000.
    pub const fn storj_audit() -> Self {
        Self { alpha: 1000.0, beta: 0.0, memory: 0.999, weight: 1.0 }
    }

    /// Storj's for unknown errors: L = 0.95, w = 1, begun at the stationary α = 1/(1−L) = 20.
    pub const fn storj_unknown() -> Self {
        Self { alpha: 20.0, beta: 0.0, memory: 0.95, weight: 1.0 }
    }

    /// Counts one audit.
    pub fn count(&mut self, passed: bool) {
        let (good, bad) = if passed { (self.weight, 0.0) } else { (0.0, self.weight) };
        self.alpha = self.memory * self.alpha + good;
        self.beta = self.memory * self.beta + bad;
    }

    /// Between 0 and 1.
    pub fn score(self) -> f64 {
        self.alpha / (self.alpha + self.beta)
    }

    /// Where the score settles with failures of this share, and its standard deviation there:
    /// 1−f and √(f(1−f)(1−L)/(1+L)).
    pub fn stationary(self, failures: f64) -> (f64, f64) {
        let variance = failures * (1.0 - failures) * (1.0 - self.memory) / (1.0 + self.memory);
        (1.0 - failures, variance.sqrt())
    }
}

/// Expected success rate after n successes and nothing else, from a Beta(a, a) prior:
/// (n+a)/(n+2a). a = 1 is uniform, a = ½ is Jeffreys's.
pub fn estimate_after_successes(successes: u32, prior: f64) -> f64 {
    (f64::from(successes) + prior) / (f64::from(successes) + 2.0 * prior)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audits_for_95_99_and_999_permille() {
        for (damaged, expected) in [
            (0.1, [29.0, 44.0, 66.0]),
            (0.05, [59.0, 90.0, 135.0]),
            (0.01, [299.0, 459.0, 688.0]),
            (0.001, [2995.0, 4603.0, 6905.0]),
        ] {
            assert_eq!([0.95, 0.99, 0.999].map(|c| audits_needed(damaged, c)), expected);
        }
        assert!((detected(0.01, 300) - 0.9510).abs() < 5e-5);
        assert!((detected(0.01, 460) - 0.9902).abs() < 5e-5);
    }

    #[test]
    fn priors_as_in_the_storj_paper() {
        for (successes, uniform, jeffreys) in
            [(20, 0.9545, 0.9762), (40, 0.9762, 0.9878), (80, 0.9878, 0.9938)]
        {
            assert!((estimate_after_successes(successes, 1.0) - uniform).abs() < 6e-5);
            assert!((estimate_after_successes(successes, 0.5) - jeffreys).abs() < 6e-5);
        }
    }

    #[test]
    fn the_score_settles_at_the_success_rate() {
        let (mean, deviation) = Reputation::storj_audit().stationary(0.02);
        assert!((mean - 0.98).abs() < 1e-12 && (deviation - 0.0031).abs() < 5e-5);
    }
}
