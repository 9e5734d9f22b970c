//! Opening a store: brings the index up to what the segments hold.
//!
//! Owns every decision about damage. Reads what lies behind the index's checkpoint (everything,
//! when there is no index), and
//! - enters each sound record;
//! - cuts a torn tail: damage at the end of the last written segment that can stem from one
//!   unfinished commit, with no sound record behind it. Never where the disk failed: bytes that were
//!   not read are no evidence, so they stay, and a new segment is begun;
//! - sets all other damage apart where it lies: the bytes stay, the shard is quarantined if its
//!   header tells which it was, and the records behind it are found. A segment that may hide records
//!   is looked at again by later openings (see `missed`).

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use super::{
    books::{Books, Entered},
    file::{SegmentFile, Segments},
    index::State,
    missed,
    scan::{Found, Scan},
    segment::{self, HEAD_BYTES, Position, RECORD_BYTES_MAX, RecordHeader, RecordKey, SegmentHead},
    tolerant,
    writer::{Active, COMMIT_BYTES_MAX},
};

/// What one unfinished commit can leave, at most, in bytes: the record that reaches
/// [`COMMIT_BYTES_MAX`] closes it.
const TORN_BYTES_MAX: u64 = COMMIT_BYTES_MAX + RECORD_BYTES_MAX;

/// Rows entered at a time: bounds memory, and what an interrupted opening does again.
pub(super) const ROWS_PER_WRITE: usize = 4096;

/// When more bytes cannot be read than can, and more than these, the store is not opened: a loose
/// cable or a dead disk, and no few bad sectors. A node that opened so would say that it holds next to
/// nothing, and all of it would be made again elsewhere.
const UNREAD_BYTES_MAX: u64 = if cfg!(test) { 1 << 20 } else { 64 << 20 };

/// How often a long opening says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// What opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The index was missing or unusable and was built from the segments.
    pub rebuilt: bool,
    /// Segment files.
    pub segments: usize,
    /// Records entered into the index.
    pub records: u64,
    /// Bytes cut from the end: an unfinished, unacknowledged write.
    pub cut_bytes: u64,
    /// Damaged stretches that were left where they lie.
    pub damaged: u64,
    /// Shards known to be in them.
    pub quarantined: u64,
    /// Bytes of the stretches in which the disk failed.
    pub unread_bytes: u64,
    /// Records that an earlier opening could not read and this one could.
    pub found_again: u64,
}

/// Why the segments cannot be read into the index.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Written by a newer version.
    #[error("segment {segment} was written by a newer version at byte {offset}; use that version")]
    Newer {
        /// The segment.
        segment: u32,
        /// Where.
        offset: u64,
    },
    /// The disk gives less than half.
    #[error(
        "the disk fails: {unread_bytes} bytes of its segments could not be read, and only \
         {read_bytes} could; nothing was cut or deleted. Look at the cable and the disk (dmesg, \
         smartctl), then start the node again"
    )]
    Unreadable {
        /// Bytes of the stretches in which the disk failed.
        unread_bytes: u64,
        /// Bytes that were read.
        read_bytes: u64,
    },
    /// The disk failed.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl RecoverError {
    /// What the system said, if it was that.
    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Io { source, .. } => source,
            other => io::Error::other(other),
        }
    }
}

/// What the writer starts from.
pub(super) struct Recovered {
    pub(super) books: Books,
    /// Our segments and their length.
    pub(super) sizes: BTreeMap<u32, u64>,
    pub(super) active: Option<Active>,
    pub(super) next_number: u32,
    pub(super) used_bytes: u64,
    pub(super) report: Recovery,
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> RecoverError {
    let what = what.into();
    move |source| RecoverError::Io { what, source }
}

/// Brings the index up to date and finds the place to go on writing.
pub(super) fn recover(
    segments: &Segments,
    mut books: Books,
    segment_bytes_max: u64,
) -> Result<Recovered, RecoverError> {
    let is_new = books.is_new();
    finish_deleting(segments, &mut books)?;
    let found = segments.list().map_err(failed("segments could not be listed"))?;
    // What a killed process made may have no durable name yet: what is added to it would go with the name.
    segments.sync_names().map_err(failed("the directory of segments could not be synced"))?;
    let key = RecordKey::new(segments.store);
    let again = missed::look_again(segments, &mut books, &key, &found)
        .map_err(failed("segments could not be looked at again"))?;
    let origin = Position { segment: 0, offset: 0 };
    let first = books.place();
    let mut replay = Replay {
        key,
        books,
        read_bytes: 0,
        report: Recovery {
            rebuilt: is_new && !found.is_empty(),
            segments: found.len(),
            found_again: again.found,
            ..Recovery::default()
        },
    };
    if first != origin && found.iter().all(|&(number, _)| number != first.segment) {
        tracing::error!(
            segment = first.segment,
            "the segment written last is gone: its shards \
            will be found damaged"
        );
    }
    let last = found.last().map(|&(number, _)| number);
    let behind = found.iter().filter(|&&(number, _)| number >= first.segment);
    let total: u64 = behind.clone().map(|&(_, bytes)| bytes).sum();
    let (mut done, mut said) = (0, Instant::now());
    let mut active = None;
    for &(number, bytes) in behind {
        let from = if number == first.segment { first.offset } else { 0 };
        active = replay.segment(segments, number, from, last == Some(number))?;
        done += bytes;
        if said.elapsed() > PROGRESS_EVERY {
            said = Instant::now();
            tracing::info!(
                segment = number,
                done_bytes = done,
                total_bytes = total,
                records = replay.report.records,
                "reading segments into the index"
            );
        }
    }
    replay.write()?;
    replay.books.index().flush().map_err(failed("the index could not be written"))?;
    let left = segments.list().map_err(failed("segments could not be listed"))?;
    Ok(Recovered {
        sizes: ours(segments, &replay.books, &left),
        books: replay.books,
        active: active.filter(|active| active.end < segment_bytes_max),
        next_number: last.unwrap_or(0).max(first.segment) + 1,
        used_bytes: left.iter().map(|&(_, bytes)| bytes).sum(),
        report: replay.report,
    })
}

/// Deletes the segments whose deletion was begun: the books do not count on them any more, so
/// nothing else may be done before.
fn finish_deleting(segments: &Segments, books: &mut Books) -> Result<(), RecoverError> {
    let doomed = books.segments().iter().filter(|(_, row)| row.doomed);
    for number in doomed.map(|(&number, _)| number).collect::<Vec<_>>() {
        let removed = segments.remove(number);
        removed.map_err(failed(format!("segment {number} could not be deleted")))?;
        books.drop_segment(number);
    }
    books.commit().map_err(failed("the index could not be written"))
}

/// Those of the segment files that are this store's: rows point there, or the head says so.
fn ours(segments: &Segments, books: &Books, found: &[(u32, u64)]) -> BTreeMap<u32, u64> {
    let known = |number| books.segments().get(&number).is_some_and(|row| !row.hides);
    let says_so = |number, bytes| {
        let head = segments.open(number).and_then(|file| file_head(&file, segments, bytes));
        matches!(head, Ok(Some(SegmentHead::Ours)))
    };
    let ours = found.iter().filter(|&&(number, bytes)| known(number) || says_so(number, bytes));
    ours.copied().collect()
}

/// The head of a segment; nothing when the disk fails.
fn file_head(
    file: &SegmentFile,
    segments: &Segments,
    bytes: u64,
) -> io::Result<Option<SegmentHead>> {
    let mut head = [0; HEAD_BYTES];
    if bytes < HEAD_BYTES as u64 {
        return Ok(Some(SegmentHead::Damaged));
    }
    let was_read = tolerant::read(file, &mut head, 0)?;
    Ok(was_read.then(|| segment::judge_head(&head, segments.store, file.number)))
}

struct Replay {
    key: RecordKey,
    books: Books,
    read_bytes: u64,
    report: Recovery,
}

/// Damage with nothing sound behind it so far.
struct Pending {
    begin: u64,
    end: u64,
    header: Option<RecordHeader>,
    /// The disk failed on some of it.
    unread: bool,
}

impl Pending {
    /// Whether there may be records in it that no header told of.
    fn hides(&self) -> bool {
        let known = self.header.map_or(0, |header| header.record_bytes());
        self.unread || self.end > self.begin + known
    }
}

impl Replay {
    /// Reads one segment from `from` on. Gives the segment to go on writing to, if it can be.
    fn segment(
        &mut self,
        segments: &Segments,
        number: u32,
        from: u64,
        is_last: bool,
    ) -> Result<Option<Active>, RecoverError> {
        let error = |what: &str| failed(format!("segment {number} could not be {what}"));
        let file = segments.open(number).map_err(error("opened"))?;
        let bytes = file.bytes().map_err(error("read"))?;
        if bytes < from {
            // Synced bytes are gone. What the index has there will be found damaged; writing goes
            // on in a new segment, so that no place is used twice.
            tracing::error!(
                segment = number,
                bytes,
                indexed_bytes = from,
                "segment cut from \
                outside"
            );
            self.report.damaged += 1;
            return Ok(None);
        }
        // What a killed process left may be in memory only: entered means durable.
        file.sync().map_err(error("synced"))?;
        let head = file_head(&file, segments, bytes).map_err(error("read"))?;
        match head {
            Some(SegmentHead::Newer(_)) => {
                return Err(RecoverError::Newer { segment: number, offset: 0 });
            }
            Some(SegmentHead::Foreign) => {
                tracing::error!(segment = number, "segment of another store: left alone");
                return Ok(None);
            }
            Some(SegmentHead::Ours | SegmentHead::Damaged) => {}
            None => self.books.set_hides(number, true),
        }
        let begin = from.max(HEAD_BYTES as u64);
        let (tail, proven) = self.records(&file, begin..bytes.max(begin))?;
        let unread = head.is_none() || tail.iter().any(|stretch| stretch.unread);
        let cut = if is_last && !unread { torn(&tail, from.max(proven), bytes) } else { None };
        let whole = tail.iter().take_while(|stretch| cut.is_none_or(|cut| stretch.begin < cut));
        for stretch in whole {
            self.damage(number, stretch)?;
        }
        self.read_bytes += bytes - from;
        self.write()?;
        self.check_disk()?;
        if head != Some(SegmentHead::Ours) {
            // An unfinished creation: no record is written before the head is on the disk. Else it
            // is damage, then the records stand but nothing is added.
            let is_unfinished = head.is_some() && bytes <= HEAD_BYTES as u64 && from == 0;
            if is_last && is_unfinished {
                tracing::warn!(segment = number, "unfinished segment removed");
                self.report.cut_bytes += bytes;
                segments.remove(number).map_err(error("removed"))?;
            } else {
                tracing::error!(segment = number, "head of segment damaged");
                self.report.damaged += 1;
            }
            return Ok(None);
        }
        if is_last && unread {
            tracing::error!(
                segment = number,
                "the disk fails at the end of the last segment: what lies there is left for the next \
                 start, writing goes on in a new segment"
            );
            return Ok(None);
        }
        if let Some(cut) = cut {
            tracing::warn!(
                segment = number,
                offset = cut,
                bytes = bytes - cut,
                "torn tail cut: a write that was not acknowledged"
            );
            self.report.cut_bytes += bytes - cut;
            file.cut(cut).and_then(|()| file.file().sync_all()).map_err(error("cut"))?;
        }
        let end = cut.unwrap_or(bytes);
        if !is_last {
            return Ok(None);
        }
        self.books.set_place(Position { segment: number, offset: end });
        Ok(Some(Active { file, end, durable: end }))
    }

    /// Refuses a disk that gives next to nothing.
    fn check_disk(&self) -> Result<(), RecoverError> {
        let unread_bytes = self.report.unread_bytes;
        let read_bytes = self.read_bytes.saturating_sub(unread_bytes);
        if unread_bytes > UNREAD_BYTES_MAX && unread_bytes > read_bytes {
            return Err(RecoverError::Unreadable { unread_bytes, read_bytes });
        }
        Ok(())
    }

    /// Enters the sound records. Gives the damage behind the last of them, and up to where the
    /// segment is proved to have been synced.
    fn records(
        &mut self,
        file: &SegmentFile,
        range: std::ops::Range<u64>,
    ) -> Result<(Vec<Pending>, u64), RecoverError> {
        let number = file.number;
        let key = self.key.clone();
        let mut scan = Scan::new(file, &key, range);
        let (mut pending, mut proven) = (Vec::new(), 0);
        let error = || failed(format!("segment {number} could not be read"));
        while let Some(found) = scan.next().map_err(error())? {
            match found {
                Found::Newer { begin } => {
                    return Err(RecoverError::Newer { segment: number, offset: begin });
                }
                Found::Record { begin, header, geometry } => {
                    proven = proven.max(header.commit.into());
                    for stretch in std::mem::take(&mut pending) {
                        self.damage(number, &stretch)?;
                    }
                    self.report.records += 1;
                    let end = begin + header.record_bytes();
                    self.books.set_place(Position { segment: number, offset: end });
                    let place = Position { segment: number, offset: begin };
                    self.enter(&Entered { header, place, geometry, sound: true })?;
                }
                Found::Damage { begin, end, header, unread } => {
                    proven = proven.max(header.map_or(0, |header| header.commit.into()));
                    pending.push(Pending { begin, end, header, unread });
                }
            }
        }
        Ok((pending, proven))
    }

    /// Sets a damaged stretch apart.
    fn damage(&mut self, segment: u32, stretch: &Pending) -> Result<(), RecoverError> {
        self.report.damaged += 1;
        let id = stretch.header.map(|header| header.id.to_string());
        tracing::error!(
            segment,
            offset = stretch.begin,
            bytes = stretch.end - stretch.begin,
            shard = id.as_deref().unwrap_or("unknown"),
            unread = stretch.unread,
            "damage in a segment: left where it lies"
        );
        if stretch.unread {
            self.report.unread_bytes += stretch.end - stretch.begin;
        }
        if stretch.hides() {
            self.books.set_hides(segment, true);
        }
        let Some(header) = stretch.header else { return Ok(()) };
        // Never entered twice: its copies are counted.
        self.books.set_place(Position { segment, offset: stretch.end });
        let place = Position { segment, offset: stretch.begin };
        let state = self.enter(&Entered { header, place, geometry: None, sound: false })?;
        if state == Some(State::Quarantined) {
            self.report.quarantined += 1;
        }
        Ok(())
    }

    /// Enters a record. Gives what became of its shard.
    fn enter(&mut self, record: &Entered) -> Result<Option<State>, RecoverError> {
        let (_, new) = self.books.enter(record).map_err(failed("the index could not be read"))?;
        if self.books.pending_rows() >= ROWS_PER_WRITE {
            self.write()?;
        }
        Ok(new.map(|entry| entry.state))
    }

    fn write(&mut self) -> Result<(), RecoverError> {
        self.books.commit().map_err(failed("the index could not be written"))
    }
}

/// Where to cut: from there on nothing is sound, and nothing can have been acknowledged. Bytes
/// below `synced` were on the disk before the last commit began: damage there is rot.
fn torn(tail: &[Pending], synced: u64, bytes: u64) -> Option<u64> {
    let cut = tail.iter().map(|stretch| stretch.begin).find(|&begin| begin >= synced)?;
    (bytes - cut <= TORN_BYTES_MAX).then_some(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(begin: u64, end: u64) -> Pending {
        Pending { begin, end, header: None, unread: false }
    }

    #[test]
    fn only_what_one_unfinished_commit_can_leave_is_cut() {
        assert_eq!(torn(&[], 0, 1000), None);
        assert_eq!(torn(&[stretch(900, 1000)], 0, 1000), Some(900));
        assert_eq!(torn(&[stretch(900, 950), stretch(950, 1000)], 920, 1000), Some(950));
        assert_eq!(torn(&[stretch(900, 1000)], 901, 1000), None, "synced before: rot");
        let long = 900 + TORN_BYTES_MAX + 1;
        assert_eq!(torn(&[stretch(900, long)], 0, long), None, "longer than any commit");
    }
}
