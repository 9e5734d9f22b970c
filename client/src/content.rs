//! The bytes of a file, in order, fetched ahead.
//!
//! Owns the read-ahead of one file: how much is fetched before it is asked for, in bytes. Where the
//! bytes are is `copse_core::tree`'s business, how they are got is `get`'s. The one idea: each
//! stretch is a task of its own, and the tasks' bytes are bounded, not their number.

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;
use copse_core::tree::{Entry, FileRange, Reading, Source, Stretch};

use crate::{error::ReadError, get::Downloader, task::Task};

/// Plaintext fetched ahead of the reader, in bytes: five full chunks of 10+6. Their shards, as they
/// arrive, take as much again and the connections' buffers too; together they stay under 256 MiB.
pub const READ_AHEAD_BYTES: usize = 32 << 20;

/// Stretches fetched at once, at most: bounds the small ones.
const READ_AHEAD_STRETCHES: usize = 32;

/// Part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// These bytes.
    Data(Bytes),
    /// So many zero bytes, stored nowhere. A writer may leave a hole.
    Hole(u64),
}

impl Block {
    /// How many bytes of the file it is.
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Hole(bytes) => *bytes,
        }
    }

    /// Whether it is no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads a range of a file. Fetches ahead from the first call of [`next`](Self::next) on, and stops
/// when dropped.
pub struct FileReader {
    downloader: Downloader,
    file: FileRange,
    ahead_bytes_max: usize,
    ahead_bytes: usize,
    waiting: VecDeque<Waiting>,
    ended: bool,
}

enum Waiting {
    Here(Block),
    Coming { bytes: usize, task: Task<Result<Bytes, ReadError>> },
    Failed(ReadError),
}

impl FileReader {
    /// Reads a range of the file that an entry is.
    ///
    /// # Errors
    /// When the entry is no file, or the range is not within it.
    pub fn new(downloader: Downloader, file: &Entry, range: Range<u64>) -> Result<Self, ReadError> {
        Ok(Self::of(downloader, FileRange::new(file, range)?))
    }

    /// Reads all of the file that an entry is.
    ///
    /// # Errors
    /// When the entry is no file.
    pub fn whole(downloader: Downloader, file: &Entry) -> Result<Self, ReadError> {
        Ok(Self::of(downloader, FileRange::whole(file)?))
    }

    fn of(downloader: Downloader, file: FileRange) -> Self {
        Self {
            downloader,
            file,
            ahead_bytes_max: READ_AHEAD_BYTES,
            ahead_bytes: 0,
            waiting: VecDeque::new(),
            ended: false,
        }
    }

    /// Fetches this much ahead instead of [`READ_AHEAD_BYTES`]. One chunk is fetched in any case.
    #[must_use]
    pub fn read_ahead(mut self, bytes: usize) -> Self {
        self.ahead_bytes_max = bytes;
        self
    }

    /// The next part of the file; none at the end of the range.
    ///
    /// # Errors
    /// When it cannot be read. What came before is right; there is nothing after.
    pub async fn next(&mut self) -> Result<Option<Block>, ReadError> {
        self.fetch_ahead().await;
        match self.waiting.pop_front() {
            None => Ok(None),
            Some(Waiting::Here(block)) => Ok(Some(block)),
            Some(Waiting::Coming { bytes, task }) => {
                let result = task.await;
                self.ahead_bytes -= bytes;
                match result {
                    Ok(Ok(data)) => Ok(Some(Block::Data(data))),
                    Ok(Err(error)) => self.fail(error),
                    // The runtime is shutting down.
                    Err(_) => self.fail(ReadError::Stopped),
                }
            }
            Some(Waiting::Failed(error)) => self.fail(error),
        }
    }

    fn fail(&mut self, error: ReadError) -> Result<Option<Block>, ReadError> {
        self.ended = true;
        self.waiting.clear();
        Err(error)
    }

    async fn fetch_ahead(&mut self) {
        while !self.ended && self.has_room() {
            match self.file.step() {
                Reading::End => self.ended = true,
                Reading::Ready(stretch) => self.begin(stretch),
                Reading::Fetch(extent) => {
                    // What is on its way goes on meanwhile.
                    let node = self.downloader.read_node(&extent).await;
                    let fed = node.map_err(ReadError::from).and_then(|node| {
                        self.file.feed(&node)?;
                        Ok(())
                    });
                    if let Err(error) = fed {
                        // What lies before it is good and comes first.
                        self.waiting.push_back(Waiting::Failed(error));
                        self.ended = true;
                    }
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.waiting.is_empty()
            || self.waiting.len() < READ_AHEAD_STRETCHES && self.ahead_bytes < self.ahead_bytes_max
    }

    fn begin(&mut self, stretch: Stretch) {
        match stretch.source {
            Source::Hole => self.waiting.push_back(Waiting::Here(Block::Hole(stretch.bytes))),
            Source::Inline(bytes) => {
                self.waiting.push_back(Waiting::Here(Block::Data(bytes.into())));
            }
            Source::Item { extent, within } => {
                let (downloader, bytes) = (self.downloader.clone(), within.len());
                let task =
                    Task::spawn(
                        async move { Ok(downloader.read_extent_range(&extent, within).await?) },
                    );
                self.ahead_bytes += bytes;
                self.waiting.push_back(Waiting::Coming { bytes, task });
            }
        }
    }
}
