//! Whether all is well, in one line.
//!
//! Owns the order of what matters most and the words for it. Refuses to call well what was not
//! counted.

use std::fmt;

use copse_core::units::Brief;

use super::NetworkStatus;

/// The one thing to know of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Chunks are lost.
    Lost,
    /// Chunks cannot be read until nodes come back.
    Unreadable,
    /// The loss of one more node would lose data.
    Fragile,
    /// Chunks lack shards and something holds their repair up.
    Held,
    /// Chunks lack shards and are being repaired, or have enough to wait.
    Thin,
    /// What was counted is well, but not all was counted.
    Uncounted,
    /// There are no chunks.
    Empty,
    /// Every chunk has all its shards.
    Whole,
}

impl Verdict {
    /// The word for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Unreadable => "unreadable",
            Self::Fragile => "fragile",
            Self::Held => "held",
            Self::Thin => "thin",
            Self::Uncounted => "uncounted",
            Self::Empty => "empty",
            Self::Whole => "whole",
        }
    }

    /// Whether somebody must act now.
    pub const fn is_danger(self) -> bool {
        matches!(self, Self::Lost | Self::Unreadable | Self::Fragile)
    }
}

impl NetworkStatus {
    /// What matters most.
    pub fn verdict(&self) -> Verdict {
        let chunks = &self.chunks;
        if chunks.lost > 0 {
            Verdict::Lost
        } else if chunks.waiting > 0 {
            Verdict::Unreadable
        } else if chunks.stored() > 0 && self.survives_nodes == Some(0) {
            Verdict::Fragile
        } else if chunks.thin > 0 && !(self.guards.is_empty() && self.cut_off.is_empty()) {
            Verdict::Held
        } else if chunks.thin > 0 {
            Verdict::Thin
        } else if self.uncounted > 0 || (chunks.total == 0 && self.shards > 0) {
            Verdict::Uncounted
        } else if chunks.stored() == 0 {
            Verdict::Empty
        } else {
            Verdict::Whole
        }
    }

    /// The verdict as people say it; with who did not answer, since that is part of the truth.
    pub fn headline(&self) -> String {
        let mut line = Headline(self).to_string();
        if self.uncounted > 0 {
            let their = if self.uncounted == 1 { "its" } else { "their" };
            let plural = if self.asked == 1 { "" } else { "s" };
            line.push_str(&format!(
                "; {} of {} node{plural} did not say how {their} chunks are: those are not counted",
                self.uncounted, self.asked
            ));
        }
        line
    }
}

struct Headline<'a>(&'a NetworkStatus);

impl fmt::Display for Headline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(status) = self;
        let chunks = &status.chunks;
        let total = Count(chunks.stored());
        match status.verdict() {
            Verdict::Lost => write!(
                f,
                "DANGER: {} of {total} chunks are lost: too few of their shards exist",
                Count(chunks.lost)
            ),
            Verdict::Unreadable => write!(
                f,
                "DANGER: {} of {total} chunks cannot be read until nodes that are down come back",
                Count(chunks.waiting)
            ),
            Verdict::Fragile => {
                f.write_str("DANGER: the loss of one more node would lose data")?;
                self.repairing(f, "; ")
            }
            Verdict::Held => {
                write!(f, "not repairing: {} of {total} chunks lack shards", Count(chunks.thin))?;
                match status.guards.keys().next() {
                    Some(reason) => write!(f, ", but {reason}"),
                    None => f.write_str(", but nodes see less than half of the network"),
                }
            }
            Verdict::Thin if status.queue.open() == 0 => write!(
                f,
                "{} of {total} chunks lack shards, none so many that they must be made now",
                Count(chunks.thin)
            ),
            Verdict::Thin => self.repairing(f, ""),
            Verdict::Uncounted if chunks.stored() == 0 && status.uncounted == 0 => f.write_str(
                "the chunks are not counted yet: nodes count when they plan, a while after they start",
            ),
            Verdict::Uncounted if chunks.stored() == 0 => f.write_str("no chunk was counted"),
            Verdict::Uncounted => write!(f, "all {total} chunks counted have all their shards"),
            Verdict::Empty => f.write_str("there are no chunks yet"),
            Verdict::Whole => {
                write!(f, "all {total} chunks have all their shards")?;
                match status.queue.open() {
                    0 => Ok(()),
                    moving => {
                        write!(f, "; {} jobs move shards to where they belong", Count(moving))
                    }
                }
            }
        }
    }
}

impl Headline<'_> {
    fn repairing(&self, f: &mut fmt::Formatter<'_>, before: &str) -> fmt::Result {
        let Self(status) = self;
        if status.queue.open() == 0 {
            return Ok(());
        }
        write!(f, "{before}repairing: {} chunks", Count(status.chunks.thin))?;
        match status.queue.eta_seconds {
            Some(eta) => write!(f, ", ETA {}", Brief::seconds(eta)),
            None => f.write_str(", ETA unknown"),
        }
    }
}

/// A number with commas: `1,234`.
#[derive(Debug, Clone, Copy)]
pub struct Count(pub u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3);
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}
