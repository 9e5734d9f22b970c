//! The time of day as a node knows it: passed in, so that a simulated world has its own.

use std::sync::Arc;

/// Seconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;
