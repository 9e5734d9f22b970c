//! What all parts of repair on a node have in common.
//!
//! Owns nothing but the list: who this node is, what it knows, and the ways by which it does something.
//! What only one part needs is that part's.

use std::sync::Arc;

use copse_core::ids::NodeId;

use super::{
    Events, Phases, Settings, Views, claims::Claims, exchange::Exchange, facts::Opinions,
    health::Health, jobs::Jobs, proofs::Proofs, report::Counters, trust::Trust,
};
use crate::{
    clock::Clock,
    store::{Ledger, ShardStore},
    unsettled::Unsettled,
};

/// One for all parts.
pub(super) struct Shared {
    pub(super) own: NodeId,
    pub(super) clock: Clock,
    pub(super) settings: Settings,
    pub(super) phases: Phases,
    pub(super) views: Views,
    pub(super) store: Arc<dyn ShardStore>,
    /// The store's.
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) unsettled: Unsettled,
    pub(super) exchange: Exchange,
    pub(super) claims: Claims,
    pub(super) jobs: Jobs,
    pub(super) trust: Trust,
    pub(super) proofs: Proofs,
    pub(super) opinions: Opinions,
    pub(super) health: Health,
    pub(super) events: Events,
    pub(super) counters: Counters,
}

impl Shared {
    /// In seconds since 1970.
    pub(super) fn now(&self) -> u64 {
        (self.clock)()
    }

    /// In milliseconds since 1970.
    pub(super) fn now_ms(&self) -> u64 {
        self.now() * 1000
    }
}
