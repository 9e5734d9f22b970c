//! Nodes that lie about shards, among honest ones: found, named, routed around, and what they should
//! hold is made again elsewhere. Real nodes in this process; the lie is in the liar's store.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, ShardId, ShardIndex},
    ring::Ring,
};
use copse_node::store::{
    ArcChanges, ArcDigest, Doubts, HeldShard, Ledger, MemoryStore, PutError, ReadError,
    RemovalReason, RemoveError, Removed, ShardRead, ShardStore, StoreRevision, StoreStats, Stored,
    VerifiedShard, Want,
};
use copse_proto::door::InfoReply;
use support::{PATIENCE, Put, TestNode, chunk};

#[derive(Clone, Copy, PartialEq)]
enum Lie {
    /// Gives other bytes than it was given.
    WrongBytes,
    /// Says that it has shards, and gives none.
    HoldsNothing,
    /// Lists all shards of each chunk, of twice the length that they have.
    WrongShape,
    /// Lists chunks of 1+1 that never were, and says that it has a shard of them.
    Phantoms,
}

/// Chunks that never were.
const PHANTOMS: u8 = 40;

fn phantoms() -> impl Iterator<Item = ShardId> {
    let chunk = |number: u8| ChunkId::new(*blake3::hash(&[number]).as_bytes());
    (0..PHANTOMS).map(move |number| ShardId { chunk: chunk(number), index: ShardIndex(0) })
}

/// A store that lies when it is read.
struct Liar(MemoryStore, Lie);

#[async_trait]
impl ShardStore for Liar {
    async fn put(&self, shard: VerifiedShard) -> Result<Stored, PutError> {
        self.0.put(shard).await
    }

    async fn read(&self, id: ShardId, want: Want) -> Result<ShardRead, ReadError> {
        let mut read = self.0.read(id, want).await?;
        match self.1 {
            Lie::HoldsNothing => Err(ReadError::NotHeld { id }),
            Lie::WrongShape | Lie::Phantoms => Ok(read),
            Lie::WrongBytes => {
                let mut bytes = read.data.to_vec();
                bytes[0] ^= 1;
                read.data = Bytes::from(bytes);
                Ok(read)
            }
        }
    }

    async fn check(&self, id: ShardId) -> Result<u64, ReadError> {
        self.0.check(id).await
    }

    async fn remove(&self, id: ShardId, reason: RemovalReason) -> Result<Removed, RemoveError> {
        self.0.remove(id, reason).await
    }

    async fn held(&self, chunk: ChunkId) -> Result<Vec<ShardIndex>, ReadError> {
        let mut held = self.0.held(chunk).await?;
        if self.1 == Lie::Phantoms {
            held.extend(phantoms().filter(|id| id.chunk == chunk).map(|id| id.index));
        }
        Ok(held)
    }

    async fn list(&self, after: Option<ShardId>, limit: usize) -> Result<Vec<ShardId>, ReadError> {
        self.0.list(after, limit).await
    }

    async fn arc_changes(&self, since: Option<StoreRevision>) -> Result<ArcChanges, ReadError> {
        let mut changes = self.0.arc_changes(since).await?;
        if self.1 == Lie::Phantoms {
            let arcs: BTreeMap<u16, ArcDigest> = phantoms()
                .map(|id| Ring::arc(&id.chunk))
                .map(|arc| (arc, ArcDigest { arc, shards: 1, sum: [1; 16] }))
                .collect();
            changes.changed = arcs.into_values().collect();
        }
        Ok(changes)
    }

    async fn list_arc(
        &self,
        arc: u16,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Vec<HeldShard>, ReadError> {
        let listed = self.0.list_arc(arc, after, limit).await?;
        match self.1 {
            Lie::WrongShape => {}
            Lie::Phantoms => {
                let geometry = Geometry::new(1, 1).expect("1+1");
                let mut phantoms: Vec<_> = phantoms()
                    .filter(|id| Ring::arc(&id.chunk) == arc && after < Some(*id))
                    .map(|id| HeldShard { id, geometry, shard_bytes: 100_000 })
                    .collect();
                phantoms.sort_by_key(|held| held.id);
                return Ok(phantoms);
            }
            _ => return Ok(listed),
        }
        let all = |held: HeldShard| {
            held.geometry.indices().map(move |index| HeldShard {
                id: ShardId { chunk: held.id.chunk, index },
                shard_bytes: 2 * held.shard_bytes,
                ..held
            })
        };
        Ok(listed.into_iter().flat_map(all).collect())
    }

    fn doubts(&self) -> &Arc<Doubts> {
        self.0.doubts()
    }

    fn ledger(&self) -> Arc<dyn Ledger> {
        self.0.ledger()
    }

    async fn stats(&self) -> StoreStats {
        self.0.stats().await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

async fn info(node: &TestNode) -> InfoReply {
    node.node.info().await
}

/// What a node says about another one's honesty.
async fn suspicion(node: &TestNode, of: &TestNode) -> String {
    let info = info(node).await;
    let named = info.peers.into_iter().find(|peer| peer.node_id == of.id.as_bytes());
    named.map_or_else(String::new, |peer| peer.untrusted)
}

#[tokio::test(flavor = "multi_thread")]
async fn liars_are_found_and_named_and_what_they_should_hold_is_made_again() {
    let (wrong, empty, misshapen) = (2, 5, 7);
    let (mut nodes, mut stores) = (Vec::<TestNode>::new(), Vec::<Arc<dyn ShardStore>>::new());
    for number in 0..8 {
        let memory = MemoryStore::new(1 << 30);
        let store: Arc<dyn ShardStore> = match number {
            2 => Arc::new(Liar(memory, Lie::WrongBytes)),
            5 => Arc::new(Liar(memory, Lie::HoldsNothing)),
            7 => Arc::new(Liar(memory, Lie::WrongShape)),
            _ => Arc::new(memory),
        };
        let node = TestNode::with_config(Arc::clone(&store), nodes.first(), |config| {
            // A node does not plan before it has looked around for so long.
            config.membership.down_after = Duration::from_secs(11);
            config.membership.ping_every = Duration::from_millis(300);
            config.repair.round_every = Duration::from_millis(200);
            config.repair.policy.patience = Duration::from_secs(1);
        });
        nodes.push(node.await);
        stores.push(store);
    }
    // Eight nodes, eight shards: each has one of each chunk.
    let chunks: Vec<_> = (0..6).map(|seed| chunk("4+4", seed, 300_000)).collect();
    let mut puts = Vec::new();
    for (index, node) in (0..).zip(&nodes) {
        let mut put = Put::open(node.shards()).await;
        for (tag, chunk) in (0..).zip(&chunks) {
            put.shard(tag, None, chunk, index).await;
            put.reply().await.expect("no error").expect("an answer");
        }
        puts.push(put);
    }
    // Until then the rest could be on its way.
    for put in &mut puts {
        for (tag, chunk) in (0..).zip(&chunks) {
            put.settle(tag, None, chunk).await;
        }
    }
    let started = tokio::time::Instant::now();
    loop {
        let mut rebuilt = true;
        for chunk in &chunks {
            let mut honest = BTreeSet::new();
            for (number, store) in stores.iter().enumerate() {
                if ![wrong, empty, misshapen].contains(&number) {
                    honest.extend(store.held(chunk.id()).await.expect("an index"));
                }
            }
            rebuilt &= honest.len() == 8;
        }
        let mut named = [false; 3];
        for node in nodes.iter().filter(|node| node.id != nodes[wrong].id) {
            named[0] |= suspicion(node, &nodes[wrong]).await.contains("wrong bytes");
            named[1] |= suspicion(node, &nodes[empty]).await.contains("does not hold");
            named[2] |= suspicion(node, &nodes[misshapen]).await.contains("shape");
        }
        if rebuilt && named == [true; 3] {
            break;
        }
        assert!(started.elapsed() < 4 * PATIENCE, "rebuilt: {rebuilt}, named: {named:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // What was made again is right: the stores verify whatever they give.
    let honest = |number: &usize| ![wrong, empty, misshapen].contains(number);
    for (number, store) in stores.iter().enumerate().filter(|(number, _)| honest(number)) {
        for chunk in &chunks {
            for index in store.held(chunk.id()).await.expect("an index") {
                let id = ShardId { chunk: chunk.id(), index };
                let read = store.read(id, Want::Whole).await.expect("a sound shard");
                assert!(read.data == chunk.shard(index), "node {number}, shard {id}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_never_were_do_not_stay_in_the_queue() {
    let mut nodes = Vec::<TestNode>::new();
    for number in 0..4 {
        let memory = MemoryStore::new(1 << 30);
        let store: Arc<dyn ShardStore> = match number {
            3 => Arc::new(Liar(memory, Lie::Phantoms)),
            _ => Arc::new(memory),
        };
        let node = TestNode::with_config(store, nodes.first(), |config| {
            config.membership.down_after = Duration::from_secs(11);
            config.membership.ping_every = Duration::from_millis(300);
            config.repair.round_every = Duration::from_millis(200);
        });
        nodes.push(node.await);
    }
    let (liar, honest) = nodes.split_last().expect("nodes");
    let started = tokio::time::Instant::now();
    loop {
        let (mut failed, mut queued, mut lost, mut named) = (0, 0, 0, 0);
        for node in honest {
            let repair = info(node).await.repair.expect("a steward");
            failed += repair.counters.expect("counters").jobs_failed;
            queued += repair.queue.iter().map(|of| of.count).sum::<u64>();
            lost += repair.chunks_lost;
            named += usize::from(suspicion(node, liar).await.contains("does not hold"));
        }
        // Those that believed it know better now, and have nothing left to do for it.
        if failed > 0 && named > 0 && lost > 0 && queued == 0 {
            break;
        }
        assert!(
            started.elapsed() < 4 * PATIENCE,
            "failed: {failed}, queued: {queued}, lost: {lost}, named by {named}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
