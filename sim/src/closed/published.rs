//! Formulas behind other published durability figures.
//!
//! Owns one function per publication. Refuses to correct them: they are test vectors, and the tests
//! name what was printed.

use crate::logmath::{ln_binomial_from, ln_choose, ln_sum};

/// Backblaze's durability calculation (their `erasure-coding-durability` repository): the year is
/// cut into windows of one rebuild time; a stripe is lost when more than `parity` of `total`
/// drives fail in one window.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Windows {
    /// Shards of a stripe.
    pub total: u64,
    /// How many may be lost.
    pub parity: u64,
    /// Failures per drive and year.
    pub annual_failure_rate: f64,
    /// Days to replace and rebuild a drive.
    pub rebuild_days: f64,
}

impl Windows {
    /// ln of the probability of loss in one window.
    pub fn ln_loss_per_window(self) -> f64 {
        let fails = self.annual_failure_rate * self.rebuild_days / 365.0;
        ln_binomial_from(self.total, self.parity + 1, fails)
    }

    /// Probability of loss in a year. Fixed windows: the repair time is not random.
    pub fn loss_per_year(self) -> f64 {
        let windows = 365.0 / self.rebuild_days;
        -(windows * (-self.ln_loss_per_window().exp()).ln_1p()).exp_m1()
    }
}

/// Weatherspoon and Kubiatowicz, "Erasure coding vs. replication" (IPTPS 2002): the probability
/// that a stripe is available when `down` of `machines` machines are down, its n shards on
/// different ones: P_o = Σ i=0..n−m C(M,i) C(N−M,n−i) / C(N,n).
pub fn available(machines: u64, down: u64, total: u64, needed: u64) -> f64 {
    // The unavailable side is summed; it is small and keeps its digits.
    let ln_missing = ln_sum((total - needed + 1..=total.min(down)).map(|missing| {
        ln_choose(down, missing) + ln_choose(machines - down, total - missing)
            - ln_choose(machines, total)
    }));
    1.0 - ln_missing.exp()
}

/// Cidon et al., "Copysets" (ATC 2013): probability that some data is lost when `failed` of
/// `nodes` nodes fail at once and data lie on `copysets` different sets of `copies` nodes:
/// 1 − (1 − C(F,R)/C(N,R))^sets.
pub fn copyset_loss(nodes: u64, failed: u64, copies: u64, copysets: f64) -> f64 {
    let one = (ln_choose(failed, copies) - ln_choose(nodes, copies)).exp();
    -(copysets * (-one).ln_1p()).exp_m1()
}

/// The Markov chain of Huang et al., "Erasure coding in Windows Azure Storage" (ATC 2012): a
/// stripe heals one shard at a time, from the first loss at the speed of the network, from later
/// ones within the detection time. All times in years.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Azure {
    /// Shards of a stripe.
    pub total: usize,
    /// Shards with which every stripe can still be read.
    pub safe: usize,
    /// Part of the stripes with safe−1 shards that can be read (0 for Reed–Solomon).
    pub decodable: f64,
    /// Mean life of a node.
    pub node_years: f64,
}

impl Azure {
    /// Network bandwidth of each of 400 nodes: 1 Gbit/s, of which a tenth is for repair; 16 TB a
    /// node; 30 minutes to detect. All from the paper, save for the nodes' mean life, which it does
    /// not give.
    const REPAIRS_PER_YEAR: (f64, f64) = {
        let seconds = 365.25 * 86_400.0;
        (0.1 * 399.0 * 125e6 / 16e12 * seconds, seconds / 1800.0)
    };

    /// Mean time to data loss, in years; exponential repair times.
    ///
    /// With h_i the mean time from i live shards to i−1, going back up as often as it takes: h_n =
    /// 1/(nλ), h_i = (1 + ρ_i h_{i+1})/(iλ). Below `safe` comes loss; or, after a decodable
    /// failure, a state of one shard less that heals or is lost with the next failure.
    pub fn mttdl_years(self) -> f64 {
        let death = |live: usize| live as f64 / self.node_years;
        let (first, later) = Self::REPAIRS_PER_YEAR;
        let heal = |live: usize| if live + 1 == self.total { first } else { later };
        let mut passage = 1.0 / death(self.total);
        let mut to_safe = 0.0;
        for live in (self.safe..self.total).rev() {
            to_safe += passage;
            passage = (1.0 + heal(live) * passage) / death(live);
        }
        // `passage` now leads from `safe` to the next failure there; a part of those is survived:
        // T_safe = passage + decodable · T_below, T_below = (1 + ρ · T_safe)/(ρ + deaths).
        if self.decodable == 0.0 {
            return to_safe + passage;
        }
        let (out, back) = (death(self.safe - 1), heal(self.safe - 1));
        let from_safe = (passage + self.decodable / (out + back))
            / (1.0 - self.decodable * back / (out + back));
        to_safe + from_safe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_azure_chain_without_decodable_losses_is_a_plain_one() {
        let one = Azure { total: 1, safe: 1, decodable: 0.0, node_years: 5.0 };
        assert!((one.mttdl_years() - 5.0).abs() < 1e-12, "a single copy lives as long as its node");
        // Two copies: to one in 5/2 years, then 5 years, started again by each repair of the first.
        let two = Azure { total: 2, ..one };
        let repairs = 5.0 * Azure::REPAIRS_PER_YEAR.0;
        assert!((two.mttdl_years() / (2.5 + 5.0 + repairs * 2.5) - 1.0).abs() < 1e-12);
    }

    /// The same question for codes: a ring with one token each is a thousand sets of nodes.
    #[test]
    fn stripes_on_a_ring_with_one_token_are_few_sets() {
        let loss = 1.0 - available(1000, 50, 16, 10);
        assert!((loss / 4.2e-6 - 1.0).abs() < 0.02, "{loss}");
        let any = |sets: f64| -(sets * (-loss).ln_1p()).exp_m1();
        assert!((any(1e3) - 0.004).abs() < 5e-4 && (any(1.6e4) - 0.064).abs() < 2e-3);
        assert!((any(1e6) - 0.98).abs() < 0.01);
    }
}
