//! Random numbers for the simulation: fast, and the same for the same seed.
//!
//! Owns the generator and the distributions that failures are drawn from. Refuses the operating
//! system's randomness. xoshiro256++ of Blackman and Vigna ("Scrambled linear pseudorandom number
//! generators", 2019; public domain), because the core's BLAKE3 stream, from which it is seeded,
//! takes ten times as long for a number and there are billions.

use copse_core::random::Random;

/// xoshiro256++.
#[derive(Clone, Debug)]
pub struct Xoshiro([u64; 4]);

impl Xoshiro {
    /// The stream of a seed. `purpose` keeps streams of one seed apart.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut stream = Random::new(&bytes, purpose);
        Self(core::array::from_fn(|_| stream.next_u64()))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// A number below `bound`; 0 when that is 0. The bias is below bound · 2^-64.
    pub fn below(&mut self, bound: usize) -> usize {
        let wide = u128::from(self.next_u64()) * bound as u128;
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    /// Exponential with the given mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        // 1 − unit is never 0.
        -mean * (1.0 - self.unit()).ln()
    }

    /// Standard normal (Marsaglia's polar method, one of the pair).
    pub fn normal(&mut self) -> f64 {
        loop {
            let (x, y) = (2.0 * self.unit() - 1.0, 2.0 * self.unit() - 1.0);
            let square = x * x + y * y;
            if square < 1.0 && square > 0.0 {
                return x * (-2.0 * square.ln() / square).sqrt();
            }
        }
    }

    /// Lognormal with the given median; `sigma` is the standard deviation of the logarithm.
    pub fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }
}

/// How long nodes live.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Lifetime {
    mean: f64,
    /// 1: exponential. Below: many die young.
    shape: f64,
    /// Weibull's scale: mean/Γ(1+1/shape).
    scale: f64,
}

/// A shape of lifetimes that no one has seen.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error(
    "a mean life of {mean} with Weibull shape {shape}: the mean must be positive, the shape within 0.2 to 10"
)]
pub struct LifetimeError {
    mean: f64,
    shape: f64,
}

impl Lifetime {
    /// Weibull with this mean; shape 1 is exponential.
    ///
    /// # Errors
    /// When the mean is not positive or the shape not within 0.2 to 10.
    pub fn new(mean: f64, shape: f64) -> Result<Self, LifetimeError> {
        if mean > 0.0 && mean.is_finite() && (0.2..=10.0).contains(&shape) {
            Ok(Self { mean, shape, scale: mean / gamma(1.0 + 1.0 / shape) })
        } else {
            Err(LifetimeError { mean, shape })
        }
    }

    /// The mean.
    pub const fn mean(self) -> f64 {
        self.mean
    }

    /// Weibull's shape.
    pub const fn shape(self) -> f64 {
        self.shape
    }

    /// How much longer a node lives that has lived for `age`.
    pub fn rest(self, age: f64, random: &mut Xoshiro) -> f64 {
        let exponential = random.exponential(1.0);
        if self.shape == 1.0 {
            return self.mean * exponential;
        }
        let lived = (age / self.scale).powf(self.shape);
        (self.scale * (lived + exponential).powf(1.0 / self.shape) - age).max(0.0)
    }

    /// An age from the stationary state of a network whose dead are replaced at once: uniform
    /// within a life that was drawn with probability proportional to its length.
    pub fn stationary_age(self, random: &mut Xoshiro) -> f64 {
        if self.shape == 1.0 {
            return random.exponential(self.mean);
        }
        // Length-biased Weibull: (life/scale)^shape is Gamma(1 + 1/shape).
        let life =
            self.scale * gamma_variate(1.0 + 1.0 / self.shape, random).powf(1.0 / self.shape);
        life * random.unit()
    }
}

/// Γ(x) for x ≥ 1, by Lanczos's approximation (g = 7, n = 9; relative error 1e-15).
fn gamma(x: f64) -> f64 {
    const COEFFICIENTS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let series = COEFFICIENTS
        .iter()
        .zip(1u32..)
        .fold(0.999_999_999_999_809_9, |sum, (c, i)| sum + c / (x + f64::from(i)));
    let t = x + 7.5;
    core::f64::consts::TAU.sqrt() * t.powf(x + 0.5) * (-t).exp() * series
}

/// Gamma(shape, 1) for shape ≥ 1: Marsaglia and Tsang, "A simple method for generating gamma
/// variables" (2000).
fn gamma_variate(shape: f64, random: &mut Xoshiro) -> f64 {
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let normal = random.normal();
        let v = (1.0 + c * normal).powi(3);
        if v > 0.0 && (1.0 - random.unit()).ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs for the state 1, 2, 3, 4, as other implementations give them.
    #[test]
    fn the_generator_is_the_published_one() {
        let mut random = Xoshiro([1, 2, 3, 4]);
        let expected = [
            41_943_041,
            58_720_359,
            3_588_806_011_781_223,
            3_591_011_842_654_386,
            9_228_616_714_210_784_205,
        ];
        assert_eq!(core::array::from_fn(|_| random.next_u64()), expected);
        assert_ne!(Xoshiro::new(1, "a").next_u64(), Xoshiro::new(1, "b").next_u64());
    }

    fn mean(mut draw: impl FnMut(&mut Xoshiro) -> f64) -> f64 {
        let mut random = Xoshiro::new(1, "test");
        (0..200_000).map(|_| draw(&mut random)).sum::<f64>() / 200_000.0
    }

    #[test]
    fn lifetimes_have_the_mean_that_was_asked_for() {
        for shape in [0.5, 0.7, 1.0, 2.0] {
            let life = Lifetime::new(3.0, shape).expect("a lifetime");
            let lived = mean(|random| life.rest(0.0, random));
            assert!((lived / 3.0 - 1.0).abs() < 0.02, "shape {shape}: {lived}");
            // Renewal theory: the mean age is the mean of squares over twice the mean.
            let square = mean(|random| life.rest(0.0, random).powi(2));
            let age = mean(|random| life.stationary_age(random));
            assert!((age / (square / 6.0) - 1.0).abs() < 0.05, "shape {shape}: age {age}");
        }
        // Those that died young are gone: who has lived long, lives longer.
        let life = Lifetime::new(3.0, 0.6).expect("a lifetime");
        assert!(mean(|random| life.rest(3.0, random)) > 4.0);
        assert!(Lifetime::new(0.0, 1.0).is_err() && Lifetime::new(1.0, 0.1).is_err());
    }

    #[test]
    fn gamma_of_whole_and_half_numbers() {
        for (x, expected) in [(1.0, 1.0), (5.0, 24.0), (1.5, 0.886_226_925_452_758), (3.0, 2.0)] {
            assert!((gamma(x) / expected - 1.0).abs() < 1e-13, "Γ({x}) = {}", gamma(x));
        }
    }
}
