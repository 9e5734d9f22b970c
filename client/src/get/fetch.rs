//! One range of one shard from one node, verified.
//!
//! Owns the request, its time limit, the check of what comes back, and what the answer says about
//! the node. Decides nothing about whom to ask. The one idea: bytes that leave here are right, and
//! whoever sent wrong ones is remembered.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use copse_core::{
    descriptor::Descriptor,
    ids::{NodeId, ShardIndex},
    shard_tree,
};
use copse_proto::{
    bulk::{Arrived, Incoming},
    door::{self, get_reply::Part},
    status::{Reason, Refusal},
};
use tokio::time::timeout;

use super::facts::ChunkFacts;
use crate::{
    buffers::Pool,
    network::{Link, Network, timed_out},
    task::beside,
};

/// A node that sends nothing for this long is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(15);

/// More than this is hashed on a thread of its own: below, it takes less than a fifth of a
/// millisecond.
const HASH_INLINE_BYTES: usize = 1 << 20;

/// A verified range of a shard.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(super) index: ShardIndex,
    /// The asked range, widened to whole groups of the hash tree.
    pub(super) range: Range<usize>,
    pub(super) data: Bytes,
}

impl Piece {
    pub(super) fn covers(&self, range: &Range<usize>) -> bool {
        self.range.start <= range.start && range.end <= self.range.end
    }

    /// The bytes of a range that it covers.
    pub(crate) fn slice(&self, range: &Range<usize>) -> Bytes {
        self.data.slice(range.start - self.range.start..range.end - self.range.start)
    }
}

/// Fetches a range of a shard from a node and verifies it.
pub(crate) async fn fetch(
    network: Network,
    facts: Arc<ChunkFacts>,
    node: NodeId,
    index: ShardIndex,
    want: Range<usize>,
    buffers: Arc<Pool>,
) -> Result<Piece, Refusal> {
    let holder = network.holder(node);
    let started = tokio::time::Instant::now();
    let link = match timeout(STALL_TIMEOUT, network.link(node)).await {
        Ok(Ok(link)) => link,
        Ok(Err(refusal)) => {
            holder.failed(refusal.to_string());
            return Err(refusal);
        }
        Err(_) => {
            holder.failed("it cannot be reached");
            return Err(timed_out(STALL_TIMEOUT));
        }
    };
    let result = receive(&link, &facts, index, &want, &buffers).await;
    match &result {
        Ok(_) => holder.answered(started.elapsed()),
        Err(refusal) => match refusal.reason() {
            // Honest answers; a false reference is not the node's fault.
            Reason::NotHeld | Reason::ShardDamaged | Reason::OutOfRange | Reason::Malformed => {
                holder.is_alive()
            }
            Reason::BadReply => {
                let (chunk, node) = (facts.id.short(), node.short());
                tracing::warn!(%chunk, %index, %node, %refusal, "a node served something false");
                holder.lied(refusal.to_string());
            }
            _ => {
                holder.failed(refusal.to_string());
                network.forget(&link);
            }
        },
    }
    result
}

async fn receive(
    link: &Link,
    facts: &ChunkFacts,
    index: ShardIndex,
    want: &Range<usize>,
    buffers: &Arc<Pool>,
) -> Result<Piece, Refusal> {
    let request = door::GetRequest {
        target: link.target(),
        chunk_id: facts.id.as_bytes().to_vec(),
        index: index.0.into(),
        offset: want.start as u64,
        length: want.len() as u64,
        counted_on: false,
    };
    let mut stream = in_time(link.get(request)).await?;
    let Some(Arrived::Message(door::GetReply { part: Some(Part::Header(header)) })) =
        in_time(stream.next()).await?
    else {
        return Err(lie("the answer has no header"));
    };
    let descriptor = facts.descriptor(&header.descriptor).map_err(lie)?;
    if let Some(what) = facts.contradiction() {
        return Err(Refusal::new(Reason::Malformed, what));
    }
    let covered = shard_tree::covered(facts.shard_bytes, want.clone());
    let said = (header.covered_offset, header.covered_length);
    if said != (covered.start as u64, covered.len() as u64) {
        return Err(lie("the answer covers another range"));
    }
    let data = body(&mut stream, covered.len(), buffers).await?;
    verify(&descriptor, index, &covered, &data, header.proof).await?;
    Ok(Piece { index, range: covered, data })
}

/// The bytes behind the header, in a buffer of their own: a part of what the connection read would keep
/// the rest of it alive.
async fn body(
    stream: &mut Incoming<door::GetReply>,
    expected: usize,
    buffers: &Arc<Pool>,
) -> Result<Bytes, Refusal> {
    let mut body = buffers.sized(expected);
    let mut received = 0;
    while let Some(arrived) = in_time(stream.next()).await? {
        let Arrived::Data { bytes, .. } = arrived else {
            return Err(lie("something else than data follows the header"));
        };
        let Some(room) = body.get_mut(received..received + bytes.len()) else {
            return Err(lie("more bytes than announced"));
        };
        room.copy_from_slice(&bytes);
        received += bytes.len();
    }
    if received < expected {
        return Err(lie("fewer bytes than announced"));
    }
    Ok(buffers.share(body))
}

async fn verify(
    descriptor: &Arc<Descriptor>,
    index: ShardIndex,
    covered: &Range<usize>,
    data: &Bytes,
    proof: Vec<u8>,
) -> Result<(), Refusal> {
    let (descriptor, covered, data) = (Arc::clone(descriptor), covered.clone(), data.clone());
    let large = data.len() > HASH_INLINE_BYTES;
    let check = move || {
        let root =
            descriptor.shard_hash(index).ok_or_else(|| lie("the chunk has no such shard"))?;
        shard_tree::verify(root, descriptor.shard_bytes(), &covered, &data, &proof)
            .map_err(|error| lie(&error.to_string()))
    };
    if !large {
        return check();
    }
    let thread = |_| Refusal::new(Reason::Internal, "the thread that hashed it stopped");
    beside(check).await.map_err(thread)?
}

async fn in_time<T>(answer: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, Refusal> {
    match timeout(STALL_TIMEOUT, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(timed_out(STALL_TIMEOUT)),
    }
}

fn lie(what: &str) -> Refusal {
    Refusal::new(Reason::BadReply, what)
}
