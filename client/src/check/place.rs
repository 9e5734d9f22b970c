//! One rebuilt shard to one node: put, the receipt, the proof read back.
//!
//! Owns the request and what its outcome says of the node. Decides nothing about whom to ask. The
//! one idea: a shard counts as stored when the node has proved that it can serve it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use copse_core::ids::{NodeId, ShardId, ShardIndex};
use copse_proto::{
    bulk::Arrived,
    door,
    status::{Reason, Refusal},
};
use futures::stream;
use tokio::time::timeout;

use super::census::Checker;
use crate::{
    get::facts::ChunkFacts,
    network::{Link, timed_out},
    put::message::{Messages, stored},
};

/// What a put may take, and a second more for each of these bytes: longer than a disk's worst
/// pause, and a slow home line.
const PUT_TIMEOUT: Duration = Duration::from_secs(20);
const BYTES_A_SECOND: usize = 64 << 10;

/// The only shard of its stream.
const TAG: u64 = 1;

impl Checker {
    /// Puts a shard on a node and has it proved there.
    pub(super) async fn place(
        &self,
        facts: &Arc<ChunkFacts>,
        descriptor: &[u8],
        index: ShardIndex,
        node: NodeId,
        shard: Bytes,
    ) -> Result<(), Refusal> {
        let holder = self.network.holder(node);
        holder.begin();
        let started = tokio::time::Instant::now();
        let limit = PUT_TIMEOUT + Duration::from_secs((shard.len() / BYTES_A_SECOND) as u64);
        let putting = async {
            let link = self.network.link(node).await?;
            let put = self.put(&link, facts, descriptor, index, node, shard).await;
            if let Err(refusal) = &put
                && !is_answer(refusal)
            {
                self.network.forget(&link);
            }
            put
        };
        let put = timeout(limit, putting).await.unwrap_or_else(|_| Err(timed_out(limit)));
        match &put {
            Ok(()) => holder.answered(started.elapsed()),
            Err(refusal) => holder.refused(refusal),
        }
        put?;
        self.prove_one(facts, index, node).await
    }

    async fn put(
        &self,
        link: &Link,
        facts: &ChunkFacts,
        descriptor: &[u8],
        index: ShardIndex,
        node: NodeId,
        shard: Bytes,
    ) -> Result<(), Refusal> {
        let header = door::PutHeader {
            tag: TAG,
            target: link.target(),
            descriptor: descriptor.to_vec(),
            index: index.0.into(),
            settles: false,
        };
        let shard_bytes = shard.len();
        let mut replies = link.put(stream::iter(Messages::new(header, shard))).await?;
        let reply = match replies.next().await? {
            Some(Arrived::Message(reply)) if reply.tag == TAG => Some(reply),
            _ => None,
        };
        let outcome = reply.and_then(|reply| reply.outcome);
        let shard = ShardId { chunk: facts.id, index };
        stored(outcome, self.network.id(), node, shard, shard_bytes).map(|_| ())
    }
}

/// Whether the node itself said no, over a connection that is well.
fn is_answer(refusal: &Refusal) -> bool {
    matches!(refusal.reason(), Reason::StoreFull | Reason::StoreFailed | Reason::BadReply)
}
