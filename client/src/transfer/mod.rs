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

use std::{fmt, path::Path};

use crate::error::ReadError;

/// One file or directory that could not be put or got; the rest went on.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which.
    pub path: std::path::PathBuf,
    /// Why, and what to do.
    pub error: String,
    /// Whether it is a folder, with all below it.
    pub is_folder: bool,
    /// What nodes said, which is at the end of `error` in brackets: often the same of many.
    pub nodes: Option<String>,
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
    /// Folders among them, with all below.
    pub folders: u64,
}

impl Failures {
    /// Notes one.
    pub fn add(&mut self, path: &Path, error: &dyn fmt::Display) {
        self.note(path, error, false, None);
    }

    /// Notes a folder, and with it all below.
    pub fn add_folder(&mut self, path: &Path, error: &dyn fmt::Display) {
        self.note(path, error, true, None);
    }

    /// Notes what could not be read in the network.
    pub fn add_unread(&mut self, path: &Path, error: &ReadError, is_folder: bool) {
        self.note(path, error, is_folder, error.nodes());
    }

    fn note(
        &mut self,
        path: &Path,
        error: &dyn fmt::Display,
        is_folder: bool,
        nodes: Option<String>,
    ) {
        self.count += 1;
        self.folders += u64::from(is_folder);
        if self.listed.len() < FAILURES_KEPT {
            let (path, error) = (path.to_owned(), error.to_string());
            self.listed.push(Failure { path, error, is_folder, nodes });
        }
    }
}
