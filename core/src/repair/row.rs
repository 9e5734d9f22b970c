//! How an entry of the repair queue is written down.
//!
//! Owns the bytes of keys and values. Refuses rows that no queue could have written. The one idea:
//! the queue says what to write before anything is done, so that a crash forgets no work.
//!
//! ```text
//! key   = chunk id 32 | kind u8 (1 rebuild, 2 copy, 3 drop)
//! value = "CPRQ" | version 1 u8
//!       | since u64 LE | not before u64 LE (both unix milliseconds) | attempts u32 LE
//!       | margin, zone spare: zigzag varints, -255..=255
//!       | last error: length varint, UTF-8 without control characters, at most 200 bytes
//! ```

use super::{
    queue::{Entry, Job, Kind},
    strength::Priority,
};
use crate::{
    ids::{ChunkId, ID_BYTES},
    limits::SHARDS_MAX,
    wire::{Reader, WireError, Writer},
};

const MAGIC: &[u8; 4] = b"CPRQ";
const VERSION: u8 = 1;

/// The text of an entry's last error, in bytes: what fits in a line of a table. Longer ones are cut.
pub const ERROR_BYTES_MAX: usize = 200;

/// What to write to the table of the repair queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Row {
    /// Add or replace a row.
    Put {
        /// Its key.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// Remove a row.
    Delete {
        /// Its key.
        key: Vec<u8>,
    },
}

/// A row that does not become an entry.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RowError {
    /// No queue wrote this.
    #[error("the row of the repair queue cannot be read: {0}; delete it and look at its arc again")]
    Format(#[from] WireError),
    /// There are more rows than the queue may have.
    #[error(
        "the repair queue is full with {limit} entries; leave the row, and load it when there is room"
    )]
    Full {
        /// Entries of a full queue.
        limit: usize,
    },
}

pub(super) fn put(job: Job, entry: &Entry) -> Row {
    Row::Put { key: key(job), value: value(entry) }
}

pub(super) fn delete(job: Job) -> Row {
    Row::Delete { key: key(job) }
}

fn key(job: Job) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.bytes(job.chunk.as_bytes()).u8(job.kind.code());
    writer.finish()
}

pub(super) fn read_key(bytes: &[u8]) -> Result<Job, WireError> {
    let mut reader = Reader::new(bytes);
    let chunk = ChunkId::new(reader.array::<ID_BYTES>()?);
    let kind = Kind::from_code(reader.u8()?).ok_or(WireError::Invalid("the kind of a repair"))?;
    reader.end()?;
    Ok(Job { chunk, kind })
}

fn value(entry: &Entry) -> Vec<u8> {
    let Priority { margin, zone_spare, since_unix_ms } = entry.priority;
    let mut writer = Writer::new();
    writer
        .bytes(MAGIC)
        .u8(VERSION)
        .u64(since_unix_ms)
        .u64(entry.not_before_unix_ms)
        .u32(entry.attempts)
        .signed(margin.into())
        .signed(zone_spare.into())
        .prefixed(entry.last_error.as_bytes());
    writer.finish()
}

pub(super) fn read_value(bytes: &[u8]) -> Result<Entry, WireError> {
    let mut reader = Reader::new(bytes);
    reader.magic("a row of the repair queue", MAGIC, VERSION)?;
    let since_unix_ms = reader.u64()?;
    let not_before_unix_ms = reader.u64()?;
    let attempts = reader.u32()?;
    let mut shards = |what| match reader.signed()? {
        count if count.unsigned_abs() <= SHARDS_MAX as u64 => {
            i16::try_from(count).map_err(|_| WireError::Invalid(what))
        }
        _ => Err(WireError::Invalid(what)),
    };
    let margin = shards("the margin of a repair")?;
    let zone_spare = shards("the spare of a repair")?;
    let text = reader.prefixed("the error of a repair", ERROR_BYTES_MAX)?;
    let last_error = match core::str::from_utf8(text) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => return Err(WireError::Invalid("the error of a repair")),
    };
    reader.end()?;
    let priority = Priority { margin, zone_spare, since_unix_ms };
    Ok(Entry { priority, attempts, not_before_unix_ms, last_error })
}

/// What is kept of an error's text: one line, at most [`ERROR_BYTES_MAX`] bytes.
pub(super) fn error_text(why: &str) -> String {
    let mut text = String::new();
    for letter in why.chars().map(|letter| if letter.is_control() { ' ' } else { letter }) {
        if text.len() + letter.len_utf8() > ERROR_BYTES_MAX {
            break;
        }
        text.push(letter);
    }
    text
}
