//! A storage node: what it keeps, whom it knows, what it answers.
//!
//! A library so that the daemon, the tests and the simulator run the same node; sockets, disk,
//! clock and randomness come in from outside.

pub mod addresses;
mod beside;
pub mod buffers;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod control;
pub mod dial;
pub mod door;
pub mod identity;
pub mod init;
pub mod intake;
pub mod leaving;
pub mod lock;
pub mod membership;
pub mod metrics;
pub mod node;
pub mod peer;
mod refusals;
pub mod repair;
pub mod shards;
pub mod spares;
pub mod status;
pub mod store;
pub mod tls;
pub mod unsettled;
