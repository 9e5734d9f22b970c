//! How long data lasts in a network like this: formulas, simulated years, and the same ring as
//! the node's.
//!
//! Owns the durability simulator and what it is checked against. It reproduces published figures
//! before it is believed: see `tests/acceptance.rs`. Every figure names its repair-time law.
//!
//! | module | what |
//! |---|---|
//! | [`closed`] | closed forms, each with its source |
//! | [`event`], [`policy`] | simulated years; when a stripe is repaired |
//! | [`splitting`] | rare losses, level by level |
//! | [`placement`], [`gossip`] | load and movement on the core's ring; how fast its gossip spreads |
//! | [`law`], [`logmath`], [`random`], [`stats`] | repair-time laws; probabilities as logarithms; random numbers; spreads |
//! | [`report`], [`svg`], [`units`] | the document with tables and charts; how people write times |
//!
//! Beside this, [`cluster`] runs whole networks of real nodes and clients under one seed.

pub mod closed;
pub mod cluster;
pub mod event;
pub mod gossip;
pub mod law;
pub mod logmath;
pub mod placement;
pub mod policy;
pub mod random;
pub mod report;
pub mod splitting;
pub mod stats;
pub mod svg;
pub mod units;
