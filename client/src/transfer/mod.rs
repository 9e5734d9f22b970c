//! Whole trees between the file system and the network.
//!
//! Owns the order of things: what is read, encoded, stored, fetched and written when, in bounded
//! memory. Bytes on disk are [`crate::local`]'s, chunks on the way [`crate::put`]'s and
//! [`crate::get`]'s, the shape of a tree [`copse_core::tree`]'s.

mod counters;
mod get_tree;
mod pieces;
mod put_tree;

pub use counters::Counters;
pub use get_tree::{GetOptions, GetOutcome, GetTreeError, get_tree};
pub use put_tree::{Kinds, PutOptions, PutOutcome, PutTarget, PutTreeError, put_paths, put_stream};

/// One file or directory that could not be put or got; the rest went on.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which.
    pub path: std::path::PathBuf,
    /// Why, and what to do.
    pub error: String,
}

/// Failures kept with their reasons; beyond this they are only counted.
pub const FAILURES_KEPT: usize = 1000;

/// The failures of one transfer.
#[derive(Debug, Clone, Default)]
pub struct Failures {
    /// The first thousand.
    pub listed: Vec<Failure>,
    /// All of them.
    pub count: u64,
}

impl Failures {
    /// Notes one.
    pub fn add(&mut self, path: &std::path::Path, error: &dyn std::fmt::Display) {
        self.count += 1;
        if self.listed.len() < FAILURES_KEPT {
            self.listed.push(Failure { path: path.to_owned(), error: error.to_string() });
        }
    }
}
