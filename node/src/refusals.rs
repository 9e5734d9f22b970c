//! The store's errors as another process sees them.
//!
//! Owns the mapping to stable reasons and gRPC codes, in one place. Refuses to hide which shard or
//! which bound an error is about: programs get it in the details, people in the message.

use std::time::Duration;

use copse_core::{descriptor::ShardError, ids::NodeId};
use copse_proto::status::{Reason, Refusal};

use crate::store::{CheckError, PutError, ReadError};

/// When a client may ask a full node again. Room comes from deletions and from the operator, so not
/// soon; the client uses other nodes meanwhile.
const FULL_RETRY: Duration = Duration::from_secs(300);

/// When a client may ask a busy or stopping node again.
pub(crate) const BUSY_RETRY: Duration = Duration::from_secs(1);

/// A shard that is not what its descriptor says.
pub(crate) fn of_check(error: &CheckError) -> Refusal {
    let reason = match error {
        CheckError::Descriptor(_) | CheckError::Shard(ShardError::Index { .. }) => {
            Reason::Malformed
        }
        CheckError::Shard(ShardError::Length { .. } | ShardError::Hash { .. }) => {
            Reason::ShardMismatch
        }
    };
    Refusal::new(reason, error.to_string())
}

/// A shard that was not stored on `node`.
pub(crate) fn of_put(error: &PutError, node: NodeId) -> Refusal {
    match error {
        PutError::Full { reason, used_bytes, capacity_bytes, free_bytes } => {
            Refusal::new(Reason::StoreFull, format!("node {}: {error}", node.short()))
                .quota(format!("node:{node}"), error.to_string())
                .with("limit", reason.as_str())
                .with("used_bytes", used_bytes)
                .with("capacity_bytes", capacity_bytes)
                .with("free_bytes", free_bytes)
                .retry_after(FULL_RETRY)
        }
        PutError::Io { .. } | PutError::Refused { .. } => {
            Refusal::new(Reason::StoreFailed, format!("node {}: {error}", node.short()))
                .about("node", node)
        }
        PutError::Closed => stopping(),
    }
}

/// A fault of this program or its disk, while it did something for itself.
pub(crate) fn internal(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Reason::Internal, error.to_string())
}

/// A shard that was not read.
pub(crate) fn of_read(error: &ReadError) -> Refusal {
    match error {
        ReadError::NotHeld { id } => {
            Refusal::new(Reason::NotHeld, error.to_string()).about("shard", id)
        }
        ReadError::OutOfRange { id, shard_bytes, .. } => {
            Refusal::new(Reason::OutOfRange, error.to_string())
                .about("shard", id)
                .with("shard_bytes", shard_bytes)
        }
        ReadError::Corrupt { id } => {
            Refusal::new(Reason::ShardDamaged, error.to_string()).about("shard", id)
        }
        ReadError::Io { .. } => Refusal::new(Reason::StoreFailed, error.to_string()),
        ReadError::Closed => stopping(),
    }
}

/// The node is about to stop.
pub(crate) fn stopping() -> Refusal {
    Refusal::new(Reason::ShuttingDown, "the node is stopping: use another one")
        .retry_after(BUSY_RETRY)
}
