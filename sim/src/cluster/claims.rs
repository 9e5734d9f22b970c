//! What a node says that it holds, when it lies about that.
//!
//! Owns the list and the digests of a liar, which agree with one another, as those of anybody would
//! who takes the trouble. Keeps nothing: what is listed follows from what is held.

use std::collections::BTreeMap;

use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, NodeId, ShardId, ShardIndex},
    ring::Ring,
};
use copse_node::store::{ArcChanges, ArcDigest, HeldShard, ReadError, digest_of_arc};

use super::{atlas::Lie, store::Store};

/// Chunks that nobody has ever put, which a liar says it has a shard of.
pub(super) const PHANTOMS: u32 = 200;

/// The list of a node that lies.
#[derive(Debug, Clone)]
pub(super) struct Claims {
    /// By arc.
    phantoms: BTreeMap<u16, Vec<HeldShard>>,
}

impl Claims {
    pub(super) fn of(node: NodeId) -> Self {
        let mut phantoms: BTreeMap<u16, Vec<HeldShard>> = BTreeMap::new();
        for number in 0..PHANTOMS {
            let mut hasher = blake3::Hasher::new();
            hasher.update(node.as_bytes()).update(&number.to_le_bytes());
            let chunk = ChunkId::new(*hasher.finalize().as_bytes());
            let id = ShardId { chunk, index: ShardIndex(0) };
            let shard = HeldShard { id, geometry: mirror(), shard_bytes: 4096 };
            phantoms.entry(Ring::arc(&chunk)).or_default().push(shard);
        }
        phantoms.values_mut().for_each(|shards| shards.sort_by_key(|shard| shard.id));
        Self { phantoms }
    }

    /// The shards of an arc, all of them, as the liar has it.
    pub(super) async fn of_arc(
        &self,
        lie: Lie,
        disk: &Store,
        arc: u16,
    ) -> Result<Vec<HeldShard>, ReadError> {
        let mut held = disk.list_arc(arc, None, usize::MAX).await?;
        if lie == Lie::Shapes {
            held.dedup_by_key(|shard| shard.id.chunk);
            let shape = many();
            let all_indices = |shard: HeldShard| {
                shape.indices().map(move |index| {
                    let id = ShardId { chunk: shard.id.chunk, index };
                    HeldShard { id, geometry: shape, ..shard }
                })
            };
            held = held.into_iter().flat_map(all_indices).collect();
        } else {
            held.extend(self.phantoms.get(&arc).into_iter().flatten());
            held.sort_by_key(|shard| shard.id);
        }
        Ok(held)
    }

    /// What changed since any moment: all of it, each time.
    pub(super) async fn changes(&self, lie: Lie, disk: &Store) -> Result<ArcChanges, ReadError> {
        let true_changes = disk.arc_changes(None).await?;
        let mut arcs: Vec<u16> = true_changes.changed.iter().map(|digest| digest.arc).collect();
        if lie == Lie::Phantoms {
            arcs.extend(self.phantoms.keys());
            arcs.sort_unstable();
            arcs.dedup();
        }
        let mut changed = Vec::new();
        for arc in arcs {
            let held = self.of_arc(lie, disk, arc).await?;
            let (shards, sum) = digest_of_arc(held.iter().map(|shard| shard.id));
            changed.push(ArcDigest { arc, shards, sum });
        }
        Ok(ArcChanges { now: true_changes.now, all: true, changed })
    }
}

/// The geometry of a chunk that nobody has: one more shard would be lost with the next.
fn mirror() -> Geometry {
    "1+1".parse().expect("a geometry")
}

/// A geometry of more shards than any chunk of a world has.
fn many() -> Geometry {
    "1+16".parse().expect("a geometry")
}
