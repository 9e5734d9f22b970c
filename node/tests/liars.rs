//! Nodes that lie about shards, among honest ones: found, named, routed around, and what they should
//! hold is made again elsewhere. Real nodes in this process; the lie is in the liar's store.

mod support;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use copse_core::ids::{ChunkId, ShardId, ShardIndex};
use copse_node::store::{
    ArcChanges, HeldShard, Ledger, MemoryStore, PutError, ReadError, RemovalReason, RemoveError,
    Removed, ShardRead, ShardStore, StoreRevision, StoreStats, Stored, VerifiedShard, Want,
};
use copse_proto::door::{InfoRequest, node_client::NodeClient};
use support::{PATIENCE, Put, TestNode, chunk};

#[derive(Clone, Copy, PartialEq)]
enum Lie {
    /// Gives other bytes than it was given.
    WrongBytes,
    /// Says that it has shards, and gives none.
    HoldsNothing,
    /// Lists all shards of each chunk, of twice the length that they have.
    WrongShape,
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
            Lie::WrongShape => Ok(read),
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
        self.0.held(chunk).await
    }

    async fn list(&self, after: Option<ShardId>, limit: usize) -> Result<Vec<ShardId>, ReadError> {
        self.0.list(after, limit).await
    }

    async fn arc_changes(&self, since: Option<StoreRevision>) -> Result<ArcChanges, ReadError> {
        self.0.arc_changes(since).await
    }

    async fn list_arc(
        &self,
        arc: u16,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Vec<HeldShard>, ReadError> {
        let listed = self.0.list_arc(arc, after, limit).await?;
        if self.1 != Lie::WrongShape {
            return Ok(listed);
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

/// What a node says about another one's honesty.
async fn suspicion(node: &TestNode, of: &TestNode) -> String {
    let info = NodeClient::new(node.door.clone()).info(InfoRequest {}).await;
    let info = info.expect("it answers").into_inner();
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
