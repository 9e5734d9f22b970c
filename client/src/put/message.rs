//! A shard on its way to a holder, as both ways to put one send it, and what the holder answers.
//!
//! Owns the messages of one shard and the check of its receipt. Decides nothing about what follows.

use bytes::Bytes;
use copse_core::ids::{NetworkId, NodeId, ShardId};
use copse_proto::{
    convert,
    door::{self, put_reply::Outcome, put_request::Part},
    status::{Reason, Refusal},
};

/// A piece of a shard in one message, in bytes.
const PIECE_BYTES: usize = 512 << 10;

/// The messages of one shard: its header, then its bytes in pieces. Or that a chunk is safe, which is one.
pub(crate) struct Messages {
    first: Option<Part>,
    shard: Bytes,
}

impl Messages {
    pub(crate) fn new(header: door::PutHeader, shard: Bytes) -> Self {
        Self { first: Some(Part::Header(header)), shard }
    }

    pub(crate) fn settled(settled: door::Settled) -> Self {
        Self { first: Some(Part::Settled(settled)), shard: Bytes::new() }
    }
}

impl Iterator for Messages {
    type Item = door::PutRequest;

    fn next(&mut self) -> Option<door::PutRequest> {
        if let Some(part) = self.first.take() {
            return Some(door::PutRequest { part: Some(part) });
        }
        if self.shard.is_empty() {
            return None;
        }
        let piece = self.shard.split_to(self.shard.len().min(PIECE_BYTES));
        Some(door::PutRequest { part: Some(Part::Data(piece)) })
    }
}

/// Bytes of a shard in a message.
pub(crate) fn shard_bytes(message: &door::PutRequest) -> u64 {
    match &message.part {
        Some(Part::Data(piece)) => piece.len() as u64,
        _ => 0,
    }
}

/// Whether a holder says that it has stored a shard, and then whether it waits to hear that the chunk is safe.
/// A receipt counts only if the holder itself signed it for this very shard.
pub(crate) fn stored(
    outcome: Option<Outcome>,
    network: NetworkId,
    node: NodeId,
    shard: ShardId,
    shard_bytes: usize,
) -> Result<bool, Refusal> {
    match outcome {
        Some(Outcome::Receipt(receipt)) => {
            convert::check_receipt(&receipt, network, node, shard, shard_bytes)
                .map(|()| receipt.unsettled)
                .map_err(|error| Refusal::new(Reason::BadReply, format!("a bad receipt: {error}")))
        }
        Some(Outcome::Error(error)) => Err(Refusal::from(error)),
        Some(Outcome::Settled(_)) | None => {
            Err(Refusal::new(Reason::BadReply, "an answer that says nothing"))
        }
    }
}
