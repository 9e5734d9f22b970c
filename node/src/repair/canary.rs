//! Bugs on purpose: a simulator that does not find them is of no use.
//!
//! Owns which there are, and nothing else: each stands where the right code stands, behind the
//! feature `canary`. Refuses to be in a release: the feature is off unless somebody asks for it, the
//! simulator does, and a build of the whole workspace at once therefore contains it. There it does
//! nothing, because no command and no setting of the program leads to [`Phases::with_canary`], which
//! exists only with the feature; released programs are built by themselves, without it.
//!
//! The other way, a `--cfg` in the compiler's flags, would build everything a second time.

use super::Phases;

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canary {
    /// A holder that hands a shard over drops its own, whether it arrived or not.
    BlindMoves,
    /// The scrub takes every shard for sound without reading it.
    BlindScrub,
    /// A holder that is asked to hand a shard over keeps it.
    StubbornHolders,
    /// A holder that is asked to hand a shard over panics.
    PanickingHolders,
}

impl Phases {
    /// A node with a bug.
    #[must_use]
    pub const fn with_canary(self, canary: Option<Canary>) -> Self {
        Self { canary, ..self }
    }

    /// A node that does not audit others. In a small network audits read every shard within minutes:
    /// they would find all rot, whether the scrub does or not.
    #[must_use]
    pub const fn without_audits(self, unaudited: bool) -> Self {
        Self { unaudited, ..self }
    }

    /// Whether holders do not look whether a shard that they hand over arrived.
    pub(super) const fn moves_blindly(self) -> bool {
        matches!(self.canary, Some(Canary::BlindMoves))
    }

    /// Whether holders hand nothing over; one that is to panic does so here.
    pub(super) fn hands_nothing_over(self) -> bool {
        assert!(self.canary != Some(Canary::PanickingHolders), "a bug on purpose");
        self.canary == Some(Canary::StubbornHolders)
    }

    /// Whether the scrub does not look at what it should read.
    pub(super) const fn scrubs_blindly(self) -> bool {
        matches!(self.canary, Some(Canary::BlindScrub))
    }
}
