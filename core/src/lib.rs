//! The decisions and formats of Copse, as plain functions and values.
//!
//! Nothing here touches a socket, a file, a clock or the operating system's randomness: time and
//! seeds are arguments, bytes come in and go out. The node, the client and the simulator run this
//! same code behind their own edges.
//!
//! The way of the data, and where each step lives:
//!
//! ```text
//! plaintext ─ seal ─▶ body ─ erasure ─▶ n shards ─ shard_tree ─▶ descriptor ─▶ ChunkId
//!     ▲                                                              │
//!    tree (files, directories, packs)                    ring (who holds which shard)
//! ```

mod addresses;
pub mod budget;
pub mod capability;
pub mod chunk;
pub mod descriptor;
pub mod directory;
pub mod durability;
pub mod erasure;
pub mod eviction;
pub mod extent;
pub mod geometry;
pub mod gossip;
pub mod guard;
pub mod identity;
pub mod ids;
pub mod layout;
pub mod limits;
pub mod liveness;
pub mod manifest;
pub mod random;
pub mod rebuild;
pub mod receipt;
pub mod repair;
pub mod ring;
pub mod seal;
pub mod shard_tree;
pub mod shown;
pub mod text;
pub mod token;
pub mod tree;
pub mod units;
pub mod wire;

#[cfg(test)]
mod testing;
