//! Taking shards out: why, what comes of it, and how long the bytes are kept.
//!
//! Owns the values and the rule; the stores apply it. A removed shard is not served any more but
//! lies in the trash, so that a mistake can be found out: a new put brings it back. Nothing leaves
//! the trash early, except what another node has proved to hold, and that only for want of room.

use std::{
    fmt, io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use copse_core::{ids::ShardId, units::ByteSize};

use super::PutError;

/// How long the trash is kept, unless set otherwise: a week, so that whoever notices a mistake on
/// Monday that was made on Friday is in time.
pub const TRASH_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a shard that another node has proved to hold is kept, when room is short.
pub const HANDED_OVER_FOR: Duration = Duration::from_secs(3600);

/// Why a shard is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RemovalReason {
    /// The ring wants it on another node, which has proved that it holds it.
    HandedOver,
    /// Nobody wants it here, and another node has proved that it holds it.
    Surplus,
    /// Its owner said so. Kept to the last hour: owners make mistakes, too.
    Ordered,
}

impl RemovalReason {
    /// The byte in records and rows.
    pub(super) const fn to_byte(self) -> u8 {
        match self {
            Self::HandedOver => 1,
            Self::Surplus => 2,
            Self::Ordered => 3,
        }
    }

    pub(super) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::HandedOver),
            2 => Some(Self::Surplus),
            3 => Some(Self::Ordered),
            _ => None,
        }
    }

    /// Whether another node has proved to hold the shard.
    pub const fn is_proved_elsewhere(self) -> bool {
        matches!(self, Self::HandedOver | Self::Surplus)
    }
}

/// What a successful removal found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The shard was held, and is in the trash now.
    Removed,
    /// There was nothing to remove.
    NotHeld,
}

/// Why a shard was not removed. It is served as before.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RemoveError {
    /// Not even the few bytes of a removal fit the file system.
    #[error(
        "the disk has no room even to note the removal of shard {id}: {} are free on the file system; \
         make room there, then try again",
        ByteSize(*free_bytes).rounded()
    )]
    Full {
        /// The shard.
        id: ShardId,
        /// Free bytes of the file system.
        free_bytes: u64,
    },
    /// The disk failed under this write. Trying again may succeed.
    #[error("the removal of shard {id} could not be written: {source}; try again")]
    Io {
        /// The shard.
        id: ShardId,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The disk failed so badly that nothing more is written to it until the node is restarted.
    #[error(
        "the store takes no more writes since the disk failed ({source}); check the disk, then \
         restart the node"
    )]
    Refused {
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The store was closed.
    #[error("the store is closed; the node is stopping")]
    Closed,
}

impl RemoveError {
    /// What a failed write means for a removal.
    pub(super) fn of(id: ShardId, error: &PutError) -> Self {
        match error {
            PutError::Full { free_bytes, .. } => Self::Full { id, free_bytes: *free_bytes },
            PutError::Io { source, .. } => Self::Io { id, source: Arc::clone(source) },
            PutError::Refused { source } => Self::Refused { source: Arc::clone(source) },
            PutError::Closed => Self::Closed,
        }
    }
}

/// How long the trash is kept, and what time it is.
#[derive(Clone)]
pub struct TrashOptions {
    /// How long each removed shard is kept.
    pub trash_for: Duration,
    /// How long one is kept that another node has proved to hold, when room is short.
    pub handed_over_for: Duration,
    /// The time of day, in seconds since 1970.
    pub clock: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for TrashOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrashOptions")
            .field("trash_for", &self.trash_for)
            .field("handed_over_for", &self.handed_over_for)
            .finish_non_exhaustive()
    }
}

impl TrashOptions {
    /// The usual times, by this clock.
    pub fn new(clock: Arc<dyn Fn() -> u64 + Send + Sync>) -> Self {
        Self { trash_for: TRASH_FOR, handed_over_for: HANDED_OVER_FOR, clock }
    }

    /// The usual times, by the system's clock.
    pub fn system() -> Self {
        Self::new(Arc::new(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
        }))
    }

    /// The time of day, as records have it: good until 2106.
    pub(super) fn now(&self) -> u32 {
        u32::try_from((self.clock)()).unwrap_or(u32::MAX)
    }

    /// Shards removed until then, for a reason of this kind, need not be kept. Nothing when none
    /// can be so old.
    pub(super) fn due_until(&self, proved_elsewhere: bool, room_is_short: bool) -> Option<u32> {
        let keep = if proved_elsewhere && room_is_short {
            self.handed_over_for.min(self.trash_for)
        } else {
            self.trash_for
        };
        self.now().checked_sub(u32::try_from(keep.as_secs()).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_another_node_holds_leaves_early_and_only_for_want_of_room() {
        let options = TrashOptions::new(Arc::new(|| 1_000_000));
        assert_eq!(options.due_until(false, false), Some(1_000_000 - 604_800));
        assert_eq!(options.due_until(true, false), Some(1_000_000 - 604_800));
        assert_eq!(options.due_until(false, true), Some(1_000_000 - 604_800));
        assert_eq!(options.due_until(true, true), Some(1_000_000 - 3600));
        let options = TrashOptions::new(Arc::new(|| 10));
        assert_eq!(options.due_until(true, true), None, "a clock that begins at zero");
    }

    #[test]
    fn a_reason_is_its_byte_again() {
        for byte in 0..=255 {
            let reason = RemovalReason::from_byte(byte);
            assert_eq!(reason.is_some(), (1..=3).contains(&byte));
            assert!(reason.is_none_or(|reason| reason.to_byte() == byte));
        }
    }
}
