//! One rebuilt shard to one node: put, the receipt, the proof read back.
//!
//! Owns the request and what its outcome says of the node. Decides nothing about whom to ask. The
//! one idea: a shard counts as stored when the node has proved that it can serve it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use copse_core::{
    ids::{NodeId, ShardId, ShardIndex},
    receipt::SignedReceipt,
};
use copse_proto::{
    bulk::Arrived,
    door::{self, put_reply::Outcome, put_request::Part},
    status::{Reason, Refusal},
};
use futures::stream;
use tokio::time::timeout;

use super::census::Checker;
use crate::{
    get::facts::ChunkFacts,
    network::{Link, timed_out},
};

/// A piece of a shard in one message, in bytes.
const PIECE_BYTES: usize = 512 << 10;

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
            Err(refusal) => match refusal.reason() {
                Reason::StoreFull => holder.full(refusal.to_string()),
                Reason::BadReply => holder.lied(refusal.to_string()),
                _ => holder.failed(refusal.to_string()),
            },
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
        };
        let shard_bytes = u32::try_from(shard.len()).unwrap_or(u32::MAX);
        let pieces = (0..shard.len().div_ceil(PIECE_BYTES)).map(move |piece| {
            let start = piece * PIECE_BYTES;
            Part::Data(shard.slice(start..(start + PIECE_BYTES).min(shard.len())))
        });
        let parts = std::iter::once(Part::Header(header)).chain(pieces);
        let requests = parts.map(|part| door::PutRequest { part: Some(part) });
        let mut replies = link.put(stream::iter(requests)).await?;
        let reply = match replies.next().await? {
            Some(Arrived::Message(reply)) if reply.tag == TAG => Some(reply),
            _ => None,
        };
        match reply.and_then(|reply| reply.outcome) {
            Some(Outcome::Receipt(receipt)) => {
                let shard = ShardId { chunk: facts.id, index };
                SignedReceipt::verify(&receipt.receipt, &receipt.signature)
                    .and_then(|signed| signed.covers(self.network.id(), node, shard, shard_bytes))
                    .map_err(|error| lie(&format!("a bad receipt: {error}")))
            }
            Some(Outcome::Error(error)) => Err(Refusal::from(error)),
            None => Err(lie("an answer that says nothing")),
        }
    }
}

/// Whether the node itself said no, over a connection that is well.
fn is_answer(refusal: &Refusal) -> bool {
    matches!(refusal.reason(), Reason::StoreFull | Reason::StoreFailed | Reason::BadReply)
}

fn lie(what: &str) -> Refusal {
    Refusal::new(Reason::BadReply, what)
}
