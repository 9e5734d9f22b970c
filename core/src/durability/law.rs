//! How long a repair takes, as a distribution: the choice that decides half of all nines.
//!
//! Owns the two laws and their names. The one idea: with the same mean, an exponential repair time
//! loses up to (r−k+1)! times as much as a fixed one, so that no figure is worth anything without
//! the name of its law.

use core::{fmt, str::FromStr};

/// The distribution of the time from the decision to repair to the repaired stripe.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RepairLaw {
    /// Memoryless with the given mean: pessimistic, a tenth of all repairs take more than 2.3 means.
    Exponential,
    /// Always exactly as long: optimistic.
    Fixed,
}

impl RepairLaw {
    /// Both laws, the pessimistic one first.
    pub const BOTH: [Self; 2] = [Self::Exponential, Self::Fixed];

    /// The name as it is printed with every figure.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exponential => "exponential",
            Self::Fixed => "fixed",
        }
    }
}

impl fmt::Display for RepairLaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no law's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no repair-time law: write exponential or fixed")]
pub struct ParseLawError(String);

impl FromStr for RepairLaw {
    type Err = ParseLawError;

    fn from_str(text: &str) -> Result<Self, ParseLawError> {
        Self::BOTH
            .into_iter()
            .find(|law| law.name() == text)
            .ok_or_else(|| ParseLawError(text.to_owned()))
    }
}
