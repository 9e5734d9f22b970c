//! The tables of the Storj white paper (version 3, 2018) and the health that orders its repairs.
//!
//! Owns these formulas as they were printed, wrong or not: they are test vectors. The Poisson law
//! overstates loss 3 to 180 times against the binomial one; the loss ratio is per repair interval
//! (about 12 hours), not per year.

use crate::logmath::{ln_factorial, ln_sum};

/// Section 3.4: the probability that at most n−k of n shards are lost when their number is Poisson
/// with mean `churn`·n: e^−l Σ i=0..n−k l^i/i!.
pub fn durability_poisson(data: u64, total: u64, churn: f64) -> f64 {
    let mean = churn * total as f64;
    let term = |i: u64| i as f64 * mean.ln() - ln_factorial(i) - mean;
    // The smaller side is summed, so that nothing is lost to rounding near one.
    let (kept, lost) = (0..=total - data, total - data + 1..=total - data + 400);
    if mean < (total - data) as f64 {
        1.0 - ln_sum(lost.map(term)).exp()
    } else {
        ln_sum(kept.map(term)).exp()
    }
}

/// ln of the loss ratio of Giroire et al. (GLOBECOM 2010) as printed in the appendix: LR =
/// 1/((m+1) ln(n/m)) · m!/(k−1)! · (α/γ)^(m−k+2), m the repair threshold, 1/α the mean life of a
/// node, 1/γ the mean repair time.
pub fn ln_loss_ratio(data: u64, total: u64, threshold: u64, life: f64, repair: f64) -> f64 {
    let (n, m) = (total as f64, threshold as f64);
    -(m + 1.0).ln() - (n / m).ln().ln() + ln_factorial(threshold) - ln_factorial(data - 1)
        + (threshold - data + 2) as f64 * (repair / life).ln()
}

/// Bytes moved by repair per byte of the user's and per unit of time, as printed: B_R =
/// α(n−m+k)/(k ln(n/m)).
pub fn repair_ratio(data: u64, total: u64, threshold: u64, life: f64) -> f64 {
    let (n, m) = (total as f64, threshold as f64);
    (total - threshold + data) as f64 / (data as f64 * (n / m).ln() * life)
}

/// How many time units (of `failure_rate`) a segment has left, from
/// `satellite/repair/priority.go`: (r·K/(N−K+1) + r)/(N·f), r = healthy−k+1, K = N−healthy. The
/// mean number of node failures until r of the healthy ones are hit, over the failures per time.
pub fn segment_health(healthy: u64, data: u64, nodes: u64, failure_rate: f64) -> f64 {
    let margin = (healthy + 1 - data) as f64;
    let others = (nodes - healthy) as f64;
    (margin * others / (healthy + 1) as f64 + margin) / (nodes as f64 * failure_rate)
}
