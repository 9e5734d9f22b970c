//! Marked moments of a repair, at which a test can stop this process.
//!
//! Owns their names. In ordinary life a mark is a line for debugging; when the environment names one
//! in `COPSE_NODE_PAUSE_AT`, whoever reaches it says so and goes no further, so that the process can
//! be killed exactly there.

#[cfg(test)]
use std::sync::atomic::Ordering::Relaxed;

use copse_core::ids::ChunkId;

/// The variable that names the mark to stop at.
pub const PAUSE_VARIABLE: &str = "COPSE_NODE_PAUSE_AT";

/// A moment of a repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The steward knows what to do.
    Planned,
    /// The steward has k shards.
    Fetched,
    /// The steward has made what is missing.
    Rebuilt,
    /// The first new holder has its shard on the disk.
    Stored,
    /// All new holders proved theirs; the job is not struck off yet.
    Proved,
    /// A holder that hands a shard over has sent it.
    Sent,
    /// And had it proved; its own is not dropped yet.
    Moved,
    /// A node was told to store a shard of a repair, and has not begun.
    Asked,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Planned,
        Self::Fetched,
        Self::Rebuilt,
        Self::Stored,
        Self::Proved,
        Self::Sent,
        Self::Moved,
        Self::Asked,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Fetched => "fetched",
            Self::Rebuilt => "rebuilt",
            Self::Stored => "stored",
            Self::Proved => "proved",
            Self::Sent => "sent",
            Self::Moved => "moved",
            Self::Asked => "asked",
        }
    }

    /// The phase with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.name() == name)
    }
}

/// Where to stop, if anywhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Phases {
    pub(super) pause_at: Option<Phase>,
    /// Where to panic, as often as it says.
    #[cfg(test)]
    pub(super) panics: Option<(Phase, &'static std::sync::atomic::AtomicU32)>,
    /// Which bug to have.
    #[cfg(feature = "canary")]
    pub(super) canary: Option<super::Canary>,
    /// Whether others' claims go unchecked.
    #[cfg(feature = "canary")]
    pub(super) unaudited: bool,
}

impl Phases {
    /// Stops at this one.
    pub const fn pausing_at(phase: Option<Phase>) -> Self {
        Self {
            pause_at: phase,
            #[cfg(test)]
            panics: None,
            #[cfg(feature = "canary")]
            canary: None,
            #[cfg(feature = "canary")]
            unaudited: false,
        }
    }

    /// Passes a mark, or stops there for good.
    pub(crate) async fn reach(self, phase: Phase, chunk: ChunkId) {
        tracing::debug!(phase = phase.name(), chunk = %chunk.short(), "repair");
        #[cfg(test)]
        if let Some((at, times)) = self.panics
            && at == phase
        {
            let one_less = |left: u32| left.checked_sub(1);
            assert!(times.fetch_update(Relaxed, Relaxed, one_less).is_err(), "on purpose");
        }
        if self.pause_at == Some(phase) {
            tracing::warn!(phase = phase.name(), %chunk, "repair paused, as told by {PAUSE_VARIABLE}");
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_found_by_its_name() {
        for phase in Phase::ALL {
            assert_eq!(Phase::named(phase.name()), Some(phase));
        }
        assert_eq!(Phase::named("later"), None);
    }
}
