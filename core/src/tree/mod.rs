//! A tree of files as sealed items in chunks: names, sizes and shape are for key holders only.
//!
//! Owns how directories and file contents become nodes and packs, and how they are read back.
//! Refuses trees that no builder could have written. One idea: a directory is itself a search tree of
//! small sealed nodes, so one of a million entries is looked up, listed or changed by a few of them.
//!
//! ```text
//! root item ─▶ directory node ─▶ leaf: entry "a" inline bytes
//!                             │        entry "b" ─▶ item in a pack, or a whole chunk, or holes
//!                             │        entry "c" ─▶ directory node ...
//!                             └▶ leaf ...
//! ```
//!
//! Writing: [`writer::TreeWriter`] takes names in order and gives chunks. Reading: the machines of
//! [`reader`] say which extent they need next and are given its plaintext; they do no I/O.

mod content;
mod dir;
pub mod entry;
pub mod node;
mod pack;
pub mod path;
pub mod range;
pub mod reader;
pub mod writer;

#[cfg(test)]
mod tests;

pub use dir::OrderError;
pub use entry::{
    Attributes, Content, Counts, Entry, Kind, Meta, Name, NameError, Piece, Timestamp,
};
pub use node::NodeError;
pub use pack::PackError;
pub use range::{FileRange, Source, Stretch};
pub use reader::{Listing, Lookup, PathLookup, ReadError, Reading};
pub use writer::{Finished, TreeError, TreeWriter};
