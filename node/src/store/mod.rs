//! Where a node keeps shards: the trait, and the values that go in and come out.
//!
//! Refuses bytes that were not checked against their descriptor: only [`VerifiedShard::check`]
//! makes what [`ShardStore::put`] takes, and what [`ShardStore::read`] gives was checked again.

use std::{io, ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, ShardId, ShardIndex},
    units::ByteSize,
};

mod arcs;
mod ballast;
mod books;
mod compaction;
mod device;
mod directory;
mod disk;
mod doubts;
mod driver;
mod file;
mod health;
// The bytes of its rows are of use to RocksDB only.
#[cfg_attr(not(feature = "rocksdb"), allow(dead_code))]
mod index;
mod index_memory;
mod ledger;
mod marker;
pub mod memory;
mod missed;
mod reader;
mod record;
mod recover;
mod request;
#[cfg(feature = "rocksdb")]
mod rocks;
mod scan;
mod segment;
mod shard;
pub mod simulated;
#[cfg(test)]
mod tests;
mod tolerant;
mod trash;
mod upkeep;
mod writer;

pub use arcs::{ArcChanges, ArcDigest, StoreRevision, digest_of as digest_of_arc};
pub use disk::{
    COMPACTION_BYTES_PER_SECOND, DiskOptions, DiskStore, FREE_RESERVE_BYTES, InitError, OpenError,
};
pub use doubts::Doubts;
pub(crate) use doubts::PATIENCE;
pub use ledger::{
    LEDGER_CHANGES_MAX, LEDGER_KEY_BYTES_MAX, LEDGER_VALUE_BYTES_MAX, Ledger, LedgerChange,
};
pub use marker::{MARKER_FILE, MarkerError};
pub use memory::MemoryStore;
pub use recover::{RecoverError, Recovery};
pub use segment::StoreId;
pub use shard::{CheckError, VerifiedShard};
pub use simulated::SimulatedStore;
pub use trash::{HANDED_OVER_FOR, RemovalReason, RemoveError, Removed, TRASH_FOR, TrashOptions};

/// Keeps shards, and gives back only what is proved to be them.
///
/// All methods may be called at once from many tasks. None blocks the runtime. Dropping the
/// future of a `put` does not undo it: the shard may be stored or not.
#[async_trait]
pub trait ShardStore: Send + Sync + 'static {
    /// Stores a shard. When this returns, the shard is on the disk (fsync): it survives a power cut.
    ///
    /// # Errors
    /// See [`PutError`]; after any error the shard counts as not stored.
    async fn put(&self, shard: VerifiedShard) -> Result<Stored, PutError>;

    /// Reads a shard or a range of it, verified against the descriptor stored with it.
    ///
    /// # Errors
    /// See [`ReadError`]. Never gives wrong bytes.
    async fn read(&self, id: ShardId, want: Want) -> Result<ShardRead, ReadError>;

    /// Reads all that is stored of a shard and verifies it: its bytes, the descriptor, and the group
    /// hashes that reads of parts depend on. Gives the bytes read, and keeps none. Damage is set
    /// apart, as by a read.
    ///
    /// # Errors
    /// See [`ReadError`].
    async fn check(&self, id: ShardId) -> Result<u64, ReadError>;

    /// Takes a shard out: when this returns, it is not served, not listed and not counted as held,
    /// and a power cut does not bring it back. It lies in the trash for a while (see
    /// [`TrashOptions`]); a new put brings it back.
    ///
    /// Dropping the future does not undo it: the shard may be removed or not.
    ///
    /// # Errors
    /// See [`RemoveError`]; after any error the shard is held as before. But when the disk fails both
    /// to write a removal and to undo it, the next start may find the shard removed.
    async fn remove(&self, id: ShardId, reason: RemovalReason) -> Result<Removed, RemoveError>;

    /// Which shards of a chunk can be read here, in ascending order. Quarantined ones are not among
    /// them.
    ///
    /// # Errors
    /// When the index cannot be read.
    async fn held(&self, chunk: ChunkId) -> Result<Vec<ShardIndex>, ReadError>;

    /// Up to `limit` readable shards in ascending order of id, behind `after`. Fewer than `limit`
    /// means that there are no more.
    ///
    /// # Errors
    /// When the index cannot be read.
    async fn list(&self, after: Option<ShardId>, limit: usize) -> Result<Vec<ShardId>, ReadError>;

    /// In which arcs the readable shards changed since a moment that an earlier answer named; with
    /// none, or one that is not known here, all that is held. Costs next to nothing when nothing
    /// changed.
    ///
    /// A listing made afterwards may be newer than this answer; then the next answer says so.
    ///
    /// # Errors
    /// When the store is closed.
    async fn arc_changes(&self, since: Option<StoreRevision>) -> Result<ArcChanges, ReadError>;

    /// Up to `limit` readable shards of an arc in ascending order of id, behind `after`. Fewer than
    /// `limit` means that there are no more.
    ///
    /// # Errors
    /// When the index cannot be read.
    async fn list_arc(
        &self,
        arc: u16,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Vec<HeldShard>, ReadError>;

    /// What is known of reads that the disk failed.
    fn doubts(&self) -> &Arc<Doubts>;

    /// A durable space of keys and values beside the index.
    fn ledger(&self) -> Arc<dyn Ledger>;

    /// How full and how well the store is.
    async fn stats(&self) -> StoreStats;

    /// Finishes what was accepted and stops. Later calls answer `Closed`; closing twice is harmless.
    async fn close(&self);
}

/// What a successful put found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// The shard was written now.
    New,
    /// The shard was on the disk already.
    AlreadyHeld,
}

/// A readable shard, as it is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldShard {
    /// Which shard.
    pub id: ShardId,
    /// k and n of its chunk.
    pub geometry: Geometry,
    /// Its length, in bytes.
    pub shard_bytes: u32,
}

/// What to read of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// All of it.
    Whole,
    /// These bytes, counted from the shard's start; not empty.
    Range(Range<u64>),
}

/// A verified answer: `data` is bytes `covered` of the shard, and `proof` shows it to anyone who
/// has the descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRead {
    /// The chunk's descriptor, as it was hashed.
    pub descriptor: Bytes,
    /// Length of the whole shard, in bytes.
    pub shard_bytes: u64,
    /// The bytes given: the wanted range widened to whole groups of the hash tree.
    pub covered: Range<u64>,
    /// Range proof (see `copse_core::shard_tree`); empty for a whole shard.
    pub proof: Vec<u8>,
    /// The bytes.
    pub data: Bytes,
}

/// Why the disk takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FullReason {
    /// The configured capacity is used up.
    Capacity,
    /// The file system's free space fell under the reserve.
    Reserve,
    /// The file system said so (ENOSPC).
    NoSpace,
}

impl FullReason {
    /// A stable word for messages and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Reserve => "reserve",
            Self::NoSpace => "no-space",
        }
    }

    /// What it means, without the node.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Capacity => "its capacity is used up",
            Self::Reserve => "its disk has hardly more free than it shall keep (store.reserve)",
            Self::NoSpace => "its disk is full",
        }
    }

    /// What its owner can do about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Capacity => "its owner can raise `capacity` in its configuration",
            Self::Reserve | Self::NoSpace => "its owner can make room on its disk",
        }
    }
}

/// Why a shard was not stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PutError {
    /// No room. The store goes on serving; put the shard elsewhere.
    #[error(
        "it is full: {} (its shards take {} of {}, and {} are free on its disk); {}, or start another node",
        reason.meaning(),
        ByteSize(*used_bytes).rounded(),
        ByteSize(*capacity_bytes).rounded(),
        ByteSize(*free_bytes).rounded(),
        reason.remedy()
    )]
    Full {
        /// Which bound was met.
        reason: FullReason,
        /// Bytes of segment files.
        used_bytes: u64,
        /// Configured capacity.
        capacity_bytes: u64,
        /// Free bytes of the file system.
        free_bytes: u64,
    },
    /// The disk failed under this write. It is not stored; trying again may succeed.
    #[error("shard {id} could not be written: {source}; it may succeed later, or on another node")]
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

/// Why a shard was not read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// There is no such shard here.
    #[error("shard {id} is not held here")]
    NotHeld {
        /// The shard.
        id: ShardId,
    },
    /// The range is empty or does not lie within the shard.
    #[error(
        "bytes {}..{} do not lie within shard {id} of {shard_bytes} bytes",
        want.start, want.end
    )]
    OutOfRange {
        /// The shard.
        id: ShardId,
        /// Its length.
        shard_bytes: u64,
        /// What was asked.
        want: Range<u64>,
    },
    /// What the disk holds is not this shard any more, or it could not be read for an hour while
    /// others could. It was set apart; a new put is accepted.
    #[error("shard {id} is damaged on this disk; read another shard and put this one again")]
    Corrupt {
        /// The shard.
        id: ShardId,
    },
    /// The disk failed under this read.
    #[error("the store could not be read: {source}; read from another node")]
    Io {
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The store was closed.
    #[error("the store is closed; the node is stopping")]
    Closed,
}

/// Whether new shards are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Yes.
    Accepted,
    /// No, for want of room. Taken again as soon as there is some.
    Full(FullReason),
    /// No, since the disk failed.
    Refused,
}

/// How full and how well a store is. Sizes in bytes; counters since opening unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStats {
    /// Shards that can be read.
    pub shards: u64,
    /// Their bytes, without descriptors and headers.
    pub shard_bytes: u64,
    /// Shards known to be damaged and not yet put again.
    pub quarantined: u64,
    /// Removed shards that are kept for a while.
    pub trashed: u64,
    /// Their bytes, without descriptors and headers.
    pub trashed_bytes: u64,
    /// Bytes of segment files that nobody needs, the active one's too. A compaction gives them back
    /// once they are more than half of a segment.
    pub dead_bytes: u64,
    /// Size of all segment files: what counts against the capacity.
    pub used_bytes: u64,
    /// The configured capacity.
    pub capacity_bytes: u64,
    /// What the file system has free for us.
    pub free_bytes: u64,
    /// Whether new shards are taken.
    pub writes: Writes,
    /// Shards written.
    pub puts: u64,
    /// Puts of a shard that was held.
    pub duplicates: u64,
    /// Group commits: how often the disk was asked to make writes durable.
    pub commits: u64,
    /// Successful reads.
    pub reads: u64,
    /// Reads and writes that the disk failed.
    pub io_errors: u64,
    /// Damage found while reading.
    pub corrupt: u64,
    /// Segments whose living records were copied and whose room was given back.
    pub compactions: u64,
}
