//! Spread of loads and the like.
//!
//! Owns small sums over samples; knows nothing of what they are.

/// Relative standard deviation, and the largest over the mean. (0, 0) when there is nothing.
pub fn spread(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    if values.is_empty() || mean == 0.0 {
        return (0.0, 0.0);
    }
    let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (square.sqrt() / mean, values.iter().copied().fold(0.0, f64::max) / mean)
}
