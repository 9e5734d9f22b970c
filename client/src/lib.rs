//! The client of a Copse network: it holds the keys, makes the chunks, stores and reads them.
//!
//! Everything that a program needs to use a network is here; the `copse` command is a thin shell
//! around it. Only clients see plaintext. Never links RocksDB, never needs a C++ compiler.
//!
//! ```text
//! profile ─▶ network (directory, ring, channels; holders: who is well)
//! put:  plaintext ─ encode ─▶ put (all holders at once, safe at the write quorum)
//! get:  tree_read ─▶ content ─▶ get (data shards first, hedged, rebuilt) ─▶ plaintext
//! look: status (every node is asked), check (every chunk of a tree, repaired if wanted)
//! ```

mod buffers;
pub mod check;
mod claims;
pub mod connect;
pub mod content;
mod cut;
pub mod encode;
pub mod error;
pub mod get;
pub mod holders;
pub mod journal;
pub mod latency;
pub mod local;
mod lock;
mod losses;
pub mod network;
pub mod profile;
mod proof;
pub mod put;
pub mod serve;
pub mod status;
mod task;
pub mod transfer;
pub mod tree_read;
