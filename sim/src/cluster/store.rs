//! What a machine keeps shards in: the model in memory, or the product's store on a simulated disk.
//!
//! Owns that both look alike to who breaks and checks them, and how large the product's one is: small
//! segments, short trash, so that a world of minutes sees what takes a product months.

use std::{io, ops::Deref, sync::Arc, time::Duration};

use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, ShardId, ShardIndex},
    units::ByteSize,
};
use copse_node::{
    clock::Clock,
    store::{
        MemoryStore, ShardStore, SimulatedStore, TrashOptions,
        memory::{Effects, Faults, Unsynced, Watch},
        simulated::SimulatedOptions,
    },
};

use crate::random::Xoshiro;

/// Bytes of one segment, at least and at most, and which part of the room at most.
const SEGMENT_BYTES: (usize, usize) = (24 << 10, 160 << 10);
const SEGMENT_PART: u64 = 8;

/// What the upkeep reads and writes in a second.
const COMPACTION_BYTES_PER_SECOND: u64 = 1 << 20;

/// How long removed shards are kept by the model and by the product's store, and how long when room is short.
const MODEL_TRASH: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(60));
const TRASH: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(10));

/// One power cut in so many takes the index of a machine.
const INDEX_LOST_ONE_IN: u64 = 12;

/// A store and its disk. It is a store to whoever asks it for shards.
#[derive(Debug)]
pub(super) enum Store {
    /// The model.
    Memory(Box<MemoryStore>),
    /// The product's.
    Segments(SimulatedStore),
}

impl Deref for Store {
    type Target = dyn ShardStore;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Memory(store) => &**store,
            Self::Segments(store) => store,
        }
    }
}

impl Store {
    /// The model, empty.
    pub(super) fn memory(capacity: ByteSize, clock: Clock, epoch: u64) -> Arc<Self> {
        let (trash_for, handed_over_for) = MODEL_TRASH;
        let trash = TrashOptions { trash_for, handed_over_for, clock };
        Arc::new(Self::Memory(Box::new(MemoryStore::with(capacity.0, trash, epoch))))
    }

    /// The product's store, on an empty disk.
    pub(super) fn segments(
        capacity: ByteSize,
        clock: Clock,
        epoch: u64,
        rng: &mut Xoshiro,
    ) -> Arc<Self> {
        let (trash_for, handed_over_for) = TRASH;
        let (least, most) = SEGMENT_BYTES;
        let segment_bytes = (least + rng.below(most - least)) as u64;
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
        let options = SimulatedOptions {
            capacity_bytes: capacity.0,
            segment_bytes_max: segment_bytes.min(capacity.0 / SEGMENT_PART),
            compaction_bytes_per_second: COMPACTION_BYTES_PER_SECOND,
            trash: TrashOptions { trash_for, handed_over_for, clock },
            epoch,
            index_lost_one_in: INDEX_LOST_ONE_IN,
            seed,
        };
        Arc::new(Self::Segments(SimulatedStore::new(options)))
    }

    /// A process opens it.
    pub(super) fn open(&self) -> io::Result<()> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Segments(store) => store.open(),
        }
    }

    /// The process ends; see [`MemoryStore::end`].
    pub(super) fn end(&self, power: bool, fate: impl FnMut() -> Unsynced) -> Vec<(ShardId, u32)> {
        match self {
            Self::Memory(store) => store.end(power, fate),
            Self::Segments(store) => store.end(power, fate),
        }
    }

    /// Whether it takes no more writes until it is opened again.
    pub(super) fn is_refusing(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Segments(store) => store.is_refusing(),
        }
    }

    /// Shards that a reader of this disk can have.
    pub(super) fn sound(&self) -> Vec<ShardId> {
        match self {
            Self::Memory(store) => store.sound(),
            Self::Segments(store) => store.sound(),
        }
    }

    /// The same of one chunk.
    pub(super) fn sound_of(&self, chunk: ChunkId) -> Vec<ShardIndex> {
        match self {
            Self::Memory(store) => store.sound_of(chunk),
            Self::Segments(store) => store.sound_of(chunk),
        }
    }

    /// Shards that may be read, as the store has it.
    pub(super) fn live(&self) -> Vec<(ShardId, Geometry)> {
        match self {
            Self::Memory(store) => store.live(),
            Self::Segments(store) => store.live(),
        }
    }

    /// Shards that are damaged, which nobody has found out.
    pub(super) fn damaged_unnoticed(&self) -> Vec<ShardId> {
        match self {
            Self::Memory(store) => store.damaged_unnoticed(),
            Self::Segments(store) => store.damaged_unnoticed(),
        }
    }

    /// Whether a shard is here that was damaged, be it found out or not.
    pub(super) fn is_damaged(&self, id: ShardId) -> bool {
        match self {
            Self::Memory(store) => store.is_damaged(id),
            Self::Segments(store) => store.is_damaged(id),
        }
    }

    /// Bytes of all shards that may be read, and of what lies in the trash.
    pub(super) fn used(&self) -> (u64, u64) {
        match self {
            Self::Memory(store) => store.used(),
            Self::Segments(store) => store.used(),
        }
    }

    /// Changes what goes wrong from now on.
    pub(super) fn set_faults(&self, faults: Faults) {
        match self {
            Self::Memory(store) => store.set_faults(faults),
            Self::Segments(store) => store.set_faults(faults),
        }
    }

    /// What goes wrong now.
    pub(super) fn faults(&self) -> Faults {
        match self {
            Self::Memory(store) => store.faults(),
            Self::Segments(store) => store.faults(),
        }
    }

    /// How often what goes wrong had an effect so far.
    pub(super) fn effects(&self) -> Effects {
        match self {
            Self::Memory(store) => store.effects(),
            Self::Segments(store) => store.effects(),
        }
    }

    /// Tells of each step of the process from now on.
    pub(super) fn watch(&self, watch: Option<Arc<dyn Watch>>) {
        match self {
            Self::Memory(store) => store.watch(watch),
            Self::Segments(store) => store.watch(watch),
        }
    }

    /// Flips bits of one byte of a stored shard.
    pub(super) fn rot(&self, id: ShardId, byte: usize, mask: u8) -> bool {
        match self {
            Self::Memory(store) => store.rot(id, byte, mask),
            Self::Segments(store) => store.rot(id, byte, mask),
        }
    }

    /// A stored shard cannot be read any more, until it is written anew.
    pub(super) fn break_sectors(&self, id: ShardId) -> bool {
        match self {
            Self::Memory(store) => store.break_sectors(id, true),
            Self::Segments(store) => store.break_sectors(id),
        }
    }

    /// All that is stored can be read again.
    pub(super) async fn get_well(&self) {
        match self {
            Self::Memory(store) => {
                for shard in store.list(None, usize::MAX).await.unwrap_or_default() {
                    store.break_sectors(shard, false);
                }
            }
            Self::Segments(store) => store.get_well(),
        }
    }
}
