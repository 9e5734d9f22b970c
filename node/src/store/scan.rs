//! Reads a segment from a place to its end: sound records, and the damage between them.
//!
//! Owns the search for the next record behind damage. Decides nothing about what it finds.
//!
//! A record counts as sound when its header's check holds and its content is proved by the chunk's
//! id; a walk over the headers alone asks for the first only. Behind damage the next header is looked
//! for byte by byte: its check is bound to the place, so no shard's content can pass for one. Damage
//! that the disk did not give says so: nobody knows what lies there.

use std::{io, ops::Range};

use copse_core::geometry::Geometry;

use super::{
    file::SegmentFile,
    segment::{HEAD_BYTES, NoHeader, Position, RECORD_MAGIC, RecordHeader, RecordKey},
    shard, tolerant,
};

/// What the search for a header reads at a time, in bytes.
const WINDOW_BYTES: usize = 1 << 20;

/// A stretch of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A sound record; with the geometry of its chunk if its content was looked at.
    Record { begin: u64, header: RecordHeader, geometry: Option<Geometry> },
    /// Bytes that are no sound record; with the header if that is sound. *Unread*: the disk failed on
    /// some of them, so they may be sound all the same.
    Damage { begin: u64, end: u64, header: Option<RecordHeader>, unread: bool },
    /// A record that only a newer program understands.
    Newer { begin: u64 },
}

/// A segment being read.
pub(super) struct Scan<'a> {
    file: &'a SegmentFile,
    key: &'a RecordKey,
    at: u64,
    end: u64,
    headers_only: bool,
    /// The disk failed on bytes that were looked at since the last stretch.
    unread: bool,
    buffer: Vec<u8>,
}

impl<'a> Scan<'a> {
    /// Starts at a place where a record begins.
    pub(super) fn new(file: &'a SegmentFile, key: &'a RecordKey, range: Range<u64>) -> Self {
        let (at, end) = (range.start, range.end);
        Self { file, key, at, end, headers_only: false, unread: false, buffer: Vec::new() }
    }

    /// The same, but looks at headers alone.
    pub(super) fn headers(file: &'a SegmentFile, key: &'a RecordKey, range: Range<u64>) -> Self {
        Self { headers_only: true, ..Self::new(file, key, range) }
    }

    /// Where the next stretch begins.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next stretch; nothing at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        let begin = self.at;
        if begin >= self.end {
            return Ok(None);
        }
        self.unread = false;
        let found = match self.header(begin)? {
            Err(NoHeader::Newer) => Found::Newer { begin },
            Err(NoHeader::Damaged) => {
                let end = self.next_header(begin + 1)?;
                Found::Damage { begin, end, header: None, unread: self.unread }
            }
            Ok(header) => {
                let end = begin + header.record_bytes();
                if end <= self.end
                    && let Some(geometry) = self.sound(begin, &header)?
                {
                    self.at = end;
                    return Ok(Some(Found::Record { begin, header, geometry }));
                }
                // Its length is sound, but the file may have been cut and gone on since.
                let end = self.next_header(begin + HEAD_BYTES as u64)?;
                Found::Damage { begin, end, header: Some(header), unread: self.unread }
            }
        };
        self.at = match found {
            Found::Damage { end, .. } => end,
            Found::Record { .. } | Found::Newer { .. } => self.end,
        };
        Ok(Some(found))
    }

    fn header(&mut self, at: u64) -> io::Result<Result<RecordHeader, NoHeader>> {
        if at + HEAD_BYTES as u64 > self.end {
            return Ok(Err(NoHeader::Damaged));
        }
        let mut head = [0; HEAD_BYTES];
        self.unread |= !tolerant::read(self.file, &mut head, at)?;
        let place = Position { segment: self.file.number, offset: at };
        Ok(RecordHeader::decode(&head, self.key, place))
    }

    /// Whether the content of a record is what its header says; then the geometry, if it was
    /// looked at.
    fn sound(&mut self, begin: u64, header: &RecordHeader) -> io::Result<Option<Option<Geometry>>> {
        if self.headers_only || !header.has_shard() {
            return Ok(Some(None));
        }
        let body = header.record_bytes() - HEAD_BYTES as u64;
        self.buffer.resize(usize::try_from(body).unwrap_or(usize::MAX), 0);
        self.unread |= !tolerant::read(self.file, &mut self.buffer, begin + HEAD_BYTES as u64)?;
        let (descriptor, rest) = self.buffer.split_at(header.descriptor_bytes as usize);
        let (groups, data) = rest.split_at(rest.len() - header.shard_bytes as usize);
        Ok(shard::sound(header.id, descriptor, groups, data).map(Some))
    }

    /// Where the next sound header is, from `from` on; the end when there is none.
    fn next_header(&mut self, from: u64) -> io::Result<u64> {
        let mut window = vec![0; WINDOW_BYTES];
        let mut start = from;
        while start + HEAD_BYTES as u64 <= self.end {
            let left = usize::try_from(self.end - start).unwrap_or(usize::MAX);
            let window = &mut window[..left.min(WINDOW_BYTES)];
            self.unread |= !tolerant::read(self.file, window, start)?;
            let mut at = 0;
            while let Some(step) = window[at..].windows(4).position(|four| four == RECORD_MAGIC) {
                at += step;
                let Some(Ok(head)) = window.get(at..at + HEAD_BYTES).map(TryInto::try_into) else {
                    break;
                };
                let place = Position { segment: self.file.number, offset: start + at as u64 };
                if RecordHeader::decode(head, self.key, place) != Err(NoHeader::Damaged) {
                    return Ok(place.offset);
                }
                at += 1;
            }
            // A header that begins in the last bytes of this window is whole in the next.
            start += (window.len() - (HEAD_BYTES - 1)) as u64;
        }
        Ok(self.end)
    }
}
