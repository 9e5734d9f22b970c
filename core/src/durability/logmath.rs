//! Probabilities as natural logarithms, so that 10^-90 and products of 150 factors stay exact.
//!
//! Owns factorials, binomials, sums and tails in log space. Refuses to decide what they mean.

/// ln(n!), by summation: exact to about 1e-15 · n, which is enough up to some thousands, and by
/// Stirling's series (error below 1e-17 there) above.
pub fn ln_factorial(n: u64) -> f64 {
    if n < 256 {
        (2..=n).map(|i| (i as f64).ln()).sum()
    } else {
        let x = n as f64 + 1.0;
        (x - 0.5) * x.ln() - x + 0.5 * core::f64::consts::TAU.ln() + 1.0 / (12.0 * x)
            - 1.0 / (360.0 * x.powi(3))
            + 1.0 / (1260.0 * x.powi(5))
    }
}

/// ln C(n, k); −∞ when k > n.
pub fn ln_choose(n: u64, k: u64) -> f64 {
    if k > n {
        return f64::NEG_INFINITY;
    }
    // Up to this many factors the product is more exact than a difference of large logarithms.
    let few = k.min(n - k);
    if few <= 4096 {
        (0..few).map(|i| ((n - i) as f64 / (few - i) as f64).ln()).sum()
    } else {
        ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
    }
}

/// ln Σ exp(x). −∞ for nothing.
pub fn ln_sum(terms: impl IntoIterator<Item = f64>) -> f64 {
    let terms: Vec<f64> = terms.into_iter().collect();
    let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + terms.iter().map(|term| (term - largest).exp()).sum::<f64>().ln()
}

/// ln P(X = j), X binomial with n draws of probability p.
pub fn ln_binomial(n: u64, j: u64, p: f64) -> f64 {
    let power = |ln_base: f64, exponent: u64| match exponent {
        0 => 0.0,
        _ => exponent as f64 * ln_base,
    };
    ln_choose(n, j) + power(p.ln(), j) + power((-p).ln_1p(), n - j)
}

/// ln P(X ≥ from), X binomial.
pub fn ln_binomial_from(n: u64, from: u64, p: f64) -> f64 {
    ln_sum((from..=n).map(|j| ln_binomial(n, j, p)))
}

/// ln P(X < below), X binomial.
pub fn ln_binomial_below(n: u64, below: u64, p: f64) -> f64 {
    ln_sum((0..below.min(n + 1)).map(|j| ln_binomial(n, j, p)))
}

/// Nines of a probability of loss given as logarithm: −log10 p.
pub fn nines(ln_loss: f64) -> f64 {
    -ln_loss / core::f64::consts::LN_10
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, expected: f64, relative: f64) {
        assert!((got - expected).abs() <= relative * expected.abs(), "{got}, expected {expected}");
    }

    #[test]
    fn factorials_and_binomials_agree_with_integers() {
        close(ln_factorial(20).exp(), 2_432_902_008_176_640_000.0, 1e-13);
        close(ln_factorial(256), ln_factorial(255) + 256f64.ln(), 1e-14);
        close(ln_factorial(1000), ln_factorial(999) + 1000f64.ln(), 1e-14);
        close(ln_choose(50, 25).exp(), 126_410_606_437_752.0, 1e-12);
        close(ln_choose(20_000, 10_000), ln_choose(19_999, 9_999) + 2f64.ln(), 1e-13);
        assert_eq!(ln_choose(3, 4), f64::NEG_INFINITY);
    }

    #[test]
    fn a_distribution_sums_to_one() {
        close(ln_sum((0..=40).map(|j| ln_binomial(40, j, 0.3))).exp(), 1.0, 1e-13);
        let (low, high) = (ln_binomial_below(40, 12, 0.3), ln_binomial_from(40, 12, 0.3));
        close(low.exp() + high.exp(), 1.0, 1e-13);
        assert_eq!(ln_sum([]), f64::NEG_INFINITY);
        assert_eq!(ln_binomial(5, 5, 1.0), 0.0);
    }
}
