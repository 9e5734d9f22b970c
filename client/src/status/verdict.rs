//! Whether all is well, in one line.
//!
//! Owns the order of what matters most and the words for it. Refuses to call well what was not
//! counted.

use std::fmt;

use copse_core::units::{Brief, Count, counted, one_or};

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
        } else if self.uncounted > 0
            || (self.shards > 0 && (self.counting > 0 || chunks.total == 0))
        {
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
            line.push_str(&format!(
                "; {} of {} did not say how {} chunks are: those are not counted",
                Count(self.uncounted),
                counted(self.asked, "node"),
                one_or(self.uncounted, "its", "their"),
            ));
        }
        if self.verdict() == Verdict::Uncounted && self.counting > 0 && self.chunks.stored() > 0 {
            line.push_str(&format!(
                "; {} of {} {} still to count: nodes do when they plan, a while after they start",
                Count(self.counting),
                counted(self.asked, "node"),
                one_or(self.counting, "has", "have"),
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
        let total = counted(chunks.stored(), "chunk");
        match status.verdict() {
            Verdict::Lost => write!(
                f,
                "DANGER: {} of {total} {} lost: too few of {} shards exist",
                Count(chunks.lost),
                one_or(chunks.lost, "is", "are"),
                one_or(chunks.lost, "its", "their"),
            ),
            Verdict::Unreadable => write!(
                f,
                "DANGER: {} of {total} cannot be read until nodes that are down come back",
                Count(chunks.waiting)
            ),
            Verdict::Fragile => {
                f.write_str("DANGER: the loss of one more node would lose data")?;
                self.repairing(f, "; ")
            }
            Verdict::Held => {
                write!(f, "not repairing: {}", self.thin())?;
                match status.guards.keys().next() {
                    Some(reason) => write!(f, ", but {reason}"),
                    None => f.write_str(", but nodes see less than half of the network"),
                }
            }
            Verdict::Thin if status.queue.open() == 0 => {
                write!(f, "{}, none so many that they must be made now", self.thin())
            }
            Verdict::Thin => self.repairing(f, ""),
            Verdict::Uncounted if chunks.stored() == 0 && status.uncounted == 0 => f.write_str(
                "the chunks are not counted yet: nodes count when they plan, a while after they start",
            ),
            Verdict::Uncounted if chunks.stored() == 0 => f.write_str("no chunk was counted"),
            Verdict::Uncounted if chunks.stored() == 1 => {
                f.write_str("the only chunk counted has all its shards")
            }
            Verdict::Uncounted => write!(f, "all {total} counted have all their shards"),
            Verdict::Empty => f.write_str("there are no chunks yet"),
            Verdict::Whole => {
                f.write_str(&all_whole(chunks.stored()))?;
                match status.queue.open() {
                    0 => Ok(()),
                    moving => write!(
                        f,
                        "; {} {} shards to where they belong",
                        counted(moving, "job"),
                        one_or(moving, "moves", "move")
                    ),
                }
            }
        }
    }
}

/// `all 12 chunks have all their shards`
pub fn all_whole(chunks: u64) -> String {
    match chunks {
        1 => "the only chunk has all its shards".to_owned(),
        _ => format!("all {} have all their shards", counted(chunks, "chunk")),
    }
}

impl Headline<'_> {
    /// `2 of 5 chunks lack shards`
    fn thin(&self) -> String {
        let Self(NetworkStatus { chunks, .. }) = self;
        let lack = one_or(chunks.thin, "lacks", "lack");
        format!("{} of {} {lack} shards", Count(chunks.thin), counted(chunks.stored(), "chunk"))
    }

    fn repairing(&self, f: &mut fmt::Formatter<'_>, before: &str) -> fmt::Result {
        let Self(status) = self;
        if status.queue.open() == 0 {
            return Ok(());
        }
        write!(f, "{before}repairing: {}", counted(status.chunks.thin, "chunk"))?;
        match status.queue.eta_seconds {
            Some(eta) => write!(f, ", ETA {}", Brief::seconds(eta)),
            None => f.write_str(", ETA unknown"),
        }
    }
}
