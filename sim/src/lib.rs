//! How long data lasts in a network like this: formulas, simulated years, and the same ring as
//! the node's.
//!
//! Owns the durability simulator and what it is checked against. It reproduces published figures
//! before it is believed: see `tests/acceptance.rs`. Every figure names its repair-time law.
//!
//! | module | what |
//! |---|---|
//! | [`closed`] | closed forms, each with its source: the core's, and those of others |
//! | [`event`], [`policy`] | simulated years; when a stripe is repaired |
//! | [`splitting`] | rare losses, level by level |
//! | [`placement`], [`gossip`] | load and movement on the core's ring; how fast its gossip spreads |
//! | [`random`], [`stats`] | random numbers; spreads |
//! | [`report`], [`svg`] | the document with tables and charts |
//!
//! Repair-time laws, logarithms of probabilities and the way people write times are the core's:
//! [`law`], [`logmath`], [`units`].
//!
//! Beside this, [`cluster`] runs whole networks of real nodes and clients under one seed.

pub mod closed;
pub mod cluster;
pub mod event;
pub mod gossip;
pub mod placement;
pub mod policy;
pub mod random;
pub mod report;
pub mod splitting;
pub mod stats;
pub mod svg;

pub use copse_core::{
    durability::{law, logmath},
    units,
};
