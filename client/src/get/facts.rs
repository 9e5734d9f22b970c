//! What a reader has learnt of a chunk, kept for the next read of it.
//!
//! Owns the descriptor, verified once, and the places of shards that were not where the ring says.
//! Bounded; all of it can be forgotten at any time.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use copse_core::{
    descriptor::Descriptor,
    extent::Extent,
    geometry::Geometry,
    ids::{ChunkId, NodeId, ShardIndex},
};

use copse_core::manifest::ChunkRef;
use tokio::time::Instant;

use crate::lock::lock;

/// Chunks remembered, at most: about 1 KiB each.
const CHUNKS_MAX: usize = 4096;

/// How long a node that does not have a shard is not the first to be asked for it again. A repair may
/// bring it there; until that is found out, a read is rebuilt from others.
const NOT_HELD_FOR: Duration = Duration::from_secs(60);

/// Two items of a pack that lie no further apart than this are neighbours, in bytes.
const NEAR_BYTES: usize = 64 << 10;

/// Neighbours read in a row before more is expected: two may be chance.
const STREAK_MIN: usize = 2;

/// One chunk, as far as known.
#[derive(Debug)]
pub(crate) struct ChunkFacts {
    pub(crate) id: ChunkId,
    pub(crate) geometry: Geometry,
    pub(crate) shard_bytes: usize,
    known: OnceLock<(Vec<u8>, Arc<Descriptor>)>,
    places: Mutex<HashMap<ShardIndex, Places>>,
    last: Mutex<LastRead>,
}

/// Where one shard is, and where it is not.
#[derive(Debug, Default)]
struct Places {
    /// Nodes that said they have it.
    held_by: Vec<NodeId>,
    /// The node that said last that it has it not, and until when that is believed.
    not_held_by: Option<(NodeId, Instant)>,
}

/// The small item read last, and how many before it lay side by side.
#[derive(Debug, Default)]
struct LastRead {
    end: usize,
    streak: usize,
}

impl ChunkFacts {
    fn new(extent: &Extent) -> Self {
        Self::of_chunk(&ChunkRef::from(extent))
    }

    /// Nothing is known yet but what a reference says.
    pub(crate) fn of_chunk(chunk: &ChunkRef) -> Self {
        Self {
            id: chunk.id,
            geometry: chunk.geometry,
            shard_bytes: chunk.shard_bytes as usize,
            known: OnceLock::new(),
            places: Mutex::default(),
            last: Mutex::default(),
        }
    }

    /// The descriptor, from the bytes that a node sent. What does not hash to the chunk's id is
    /// refused; what does is believed for good.
    pub(super) fn descriptor(&self, bytes: &[u8]) -> Result<Arc<Descriptor>, &'static str> {
        if let Some((known, descriptor)) = self.known.get()
            && known == bytes
        {
            return Ok(Arc::clone(descriptor));
        }
        if *blake3::hash(bytes).as_bytes() != *self.id.as_bytes() {
            return Err("the descriptor is another chunk's");
        }
        let descriptor = Arc::new(Descriptor::decode(bytes).map_err(|_| "no descriptor")?);
        let (_, descriptor) = self.known.get_or_init(|| (bytes.to_vec(), descriptor));
        Ok(Arc::clone(descriptor))
    }

    /// The descriptor and its bytes, once a node has sent it.
    pub(crate) fn known(&self) -> Option<(Vec<u8>, Arc<Descriptor>)> {
        self.known.get().cloned()
    }

    /// Whether the descriptor, once known, says something else than the reference to the chunk.
    pub(super) fn contradiction(&self) -> Option<&'static str> {
        let (_, descriptor) = self.known.get()?;
        if descriptor.geometry() != self.geometry {
            return Some("it names another geometry");
        }
        (descriptor.shard_bytes() != self.shard_bytes).then_some("it names another shard size")
    }

    /// Whether small items are being read one after the other; this one, at `body` in the chunk's
    /// body, is the next.
    pub(super) fn is_next_to_the_last(&self, body: &Range<usize>) -> bool {
        let mut last = lock(&self.last);
        // Several may be read at once, so they come a little out of order.
        let near = body.start.abs_diff(last.end) <= NEAR_BYTES && last.end > 0;
        last.streak = if near { last.streak + 1 } else { 0 };
        last.end = body.end;
        last.streak >= STREAK_MIN
    }

    /// Nodes that said they have this shard.
    pub(super) fn places(&self, index: ShardIndex) -> Vec<NodeId> {
        lock(&self.places).get(&index).map(|places| places.held_by.clone()).unwrap_or_default()
    }

    /// Whether a node said lately that it does not have this shard, and not that it has it since.
    pub(super) fn is_not_held(&self, index: ShardIndex, node: NodeId) -> bool {
        let places = lock(&self.places);
        let last = places.get(&index).and_then(|places| places.not_held_by);
        last.is_some_and(|(by, until)| by == node && Instant::now() < until)
    }

    /// A node says it has this shard.
    pub(super) fn add_place(&self, index: ShardIndex, node: NodeId) {
        let mut places = lock(&self.places);
        let places = places.entry(index).or_default();
        places.not_held_by.take_if(|(by, _)| *by == node);
        if !places.held_by.contains(&node) {
            places.held_by.push(node);
        }
    }

    /// A node does not have this shard after all.
    pub(super) fn remove_place(&self, index: ShardIndex, node: NodeId) {
        let mut places = lock(&self.places);
        let places = places.entry(index).or_default();
        places.held_by.retain(|known| *known != node);
        places.not_held_by = Some((node, Instant::now() + NOT_HELD_FOR));
    }
}

/// The chunks that a reader knows something about.
#[derive(Debug, Default)]
pub(super) struct FactBook {
    chunks: Mutex<Chunks>,
}

#[derive(Debug, Default)]
struct Chunks {
    facts: HashMap<ChunkId, Arc<ChunkFacts>>,
    order: VecDeque<ChunkId>,
}

impl FactBook {
    /// What is known of an extent's chunk. References to one chunk that contradict each other are
    /// kept apart: only one can be true, and it must not suffer from the other.
    pub(super) fn of(&self, extent: &Extent) -> Arc<ChunkFacts> {
        let mut chunks = lock(&self.chunks);
        if let Some(facts) = chunks.facts.get(&extent.chunk) {
            let same = facts.geometry == extent.geometry
                && facts.shard_bytes == extent.shard_bytes as usize;
            return if same { Arc::clone(facts) } else { Arc::new(ChunkFacts::new(extent)) };
        }
        let facts = Arc::new(ChunkFacts::new(extent));
        chunks.facts.insert(extent.chunk, Arc::clone(&facts));
        chunks.order.push_back(extent.chunk);
        if chunks.order.len() > CHUNKS_MAX
            && let Some(oldest) = chunks.order.pop_front()
        {
            chunks.facts.remove(&oldest);
        }
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn that_a_node_has_a_shard_not_is_believed_for_a_minute() {
        let geometry = Geometry::new(4, 2).expect("a code");
        let facts = ChunkFacts::of_chunk(&ChunkRef {
            id: ChunkId::new([1; 32]),
            geometry,
            shard_bytes: 4096,
        });
        let (index, node, other) = (ShardIndex(3), NodeId::new([2; 32]), NodeId::new([3; 32]));
        assert!(!facts.is_not_held(index, node), "nobody said so");
        facts.remove_place(index, node);
        assert!(facts.is_not_held(index, node));
        assert!(!facts.is_not_held(index, other) && !facts.is_not_held(ShardIndex(4), node));
        tokio::time::advance(NOT_HELD_FOR - Duration::from_millis(1)).await;
        assert!(facts.is_not_held(index, node));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!facts.is_not_held(index, node), "it is asked again");

        facts.remove_place(index, node);
        facts.add_place(index, node);
        assert!(!facts.is_not_held(index, node), "it says that it has it");
        assert_eq!(facts.places(index), [node]);
    }
}
