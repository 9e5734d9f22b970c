//! How able this node is, as it tells others: whether its disk can be read.
//!
//! Owns the bits that travel in `ArcChangesReply`; decides nothing about other nodes.

use std::sync::Arc;

use copse_proto::holdings::CANNOT_READ;

use crate::store::ShardStore;

/// The health of this node. Clones are the same.
#[derive(Clone)]
pub(super) struct Health(Arc<Inner>);

struct Inner {
    store: Arc<dyn ShardStore>,
}

impl Health {
    pub(super) fn new(store: Arc<dyn ShardStore>) -> Self {
        Self(Arc::new(Inner { store }))
    }

    /// What it cannot do, as it travels.
    pub(super) fn told(&self) -> u32 {
        let mut unable = 0;
        if self.0.store.doubts().is_unreadable() {
            unable |= CANNOT_READ;
        }
        unable
    }
}
