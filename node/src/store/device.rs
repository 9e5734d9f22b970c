//! What the segments lie on: the seam at which a simulated disk takes the place of a file system.
//!
//! Owns the two traits. Knows segments by their numbers and nothing of records. The one idea: each
//! call is one that a disk can fail, so that whoever stands here decides what goes wrong.

use std::{
    io::{self, IoSlice},
    ops::Range,
    time::Duration,
};

use bytes::Bytes;

/// Where the files of segments are.
pub(super) trait Device: Send + Sync {
    /// Makes a file, empty, to read and to write. Its name is not durable yet. Fails when there is one.
    fn create(&self, number: u32) -> io::Result<Box<dyn DeviceFile>>;
    /// Opens a file to read and to write.
    fn open(&self, number: u32) -> io::Result<Box<dyn DeviceFile>>;
    /// Opens a file to read; `NotFound` when there is none.
    fn open_to_read(&self, number: u32) -> io::Result<Box<dyn DeviceFile>>;
    /// Removes a file. That is not durable yet. `NotFound` when there is none.
    fn remove(&self, number: u32) -> io::Result<()>;
    /// Makes durable which files there are.
    fn sync_names(&self) -> io::Result<()>;
    /// The files in order of number, with their lengths.
    fn list(&self) -> io::Result<Vec<(u32, u64)>>;
    /// Bytes that are free for us.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// A file that is open. One that is removed can be read to the end.
pub(super) trait DeviceFile: Send + Sync {
    /// Its length.
    fn bytes(&self) -> io::Result<u64>;
    /// Reads all of `buffer`; `UnexpectedEof` when the file ends before.
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
    /// Reads exactly so many bytes, into memory that was not written before. Nothing when the file
    /// ends early.
    fn read_exact(&self, at: u64, bytes: usize) -> io::Result<Option<Bytes>>;
    /// Writes some of the slices, from the first on; says how many bytes.
    fn write(&self, at: u64, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// The same, with all that is kept of the file.
    fn sync_all(&self) -> io::Result<()>;
    /// Cuts the file off.
    fn cut(&self, bytes: u64) -> io::Result<()>;
    /// Whether the file was removed since it was opened.
    fn is_removed(&self) -> io::Result<bool>;
    /// These bytes will not be read again soon. Only advice.
    fn not_needed(&self, range: Range<u64>);
    /// Waits before a read is tried again.
    fn rest(&self, how_long: Duration);
}
