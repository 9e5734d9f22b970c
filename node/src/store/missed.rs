//! Records that the books should know and do not.
//!
//! Owns the judgement, and the second look at opening and before a compaction. A header that could not be read when a segment
//! was read into the index hides its record; later the disk reads well again. The one idea: each record
//! that the books know has a row that points at it or behind it, for the last record of a shard decides.
//! One that lies behind all that its shard's row knows of was missed, and so was one without a row.
//!
//! So nothing that is not held may be moved past a segment that hides records (see `compaction`).
//!
//! Refuses to let a missed removal count against a shard that was held meanwhile: others were told of
//! it and may have let go of theirs. What comes back is dropped again by those who plan; what is gone
//! is gone.

use std::{collections::BTreeSet, io};

use copse_core::ids::ShardId;

use super::{
    books::{Books, Entered},
    file::Segments,
    index::{Entry, State},
    recover::ROWS_PER_WRITE,
    scan::{Found, Scan},
    segment::{HEAD_BYTES, Kind, Position, RecordHeader, RecordKey},
};

/// Shards that are remembered as found, at most: some 100 MiB. Of those behind that a removal that was
/// missed as well does not count.
const FOUND_MAX: usize = 1 << 20;

/// What was missed, in the order it is found.
#[derive(Default)]
struct Missed {
    /// Shards of which nothing newer than what was found is in the books.
    found: BTreeSet<ShardId>,
}

impl Missed {
    /// Whether the books lack this record. If its bytes are sound, it is to be entered.
    fn is_one(&self, row: Option<&Entry>, header: &RecordHeader, at: Position) -> bool {
        // Whatever follows the missed record was missed too, or the books knew the shard.
        if self.found.contains(&header.id) {
            return row.is_none_or(|row| row.place != at);
        }
        header.has_shard()
            && row.is_none_or(|row| {
                // Any sound copy is as good as the one that rotted.
                let spare = row.state == State::Quarantined && header.kind == Kind::Shard;
                !row.is_live() && (spare || is_behind(row, at))
            })
    }

    /// Takes note of a missed record that was sound, before it is entered.
    fn note(&mut self, id: ShardId, row: Option<&Entry>, at: Position) {
        if self.found.len() < FOUND_MAX && row.is_none_or(|row| is_behind(row, at)) {
            self.found.insert(id);
        }
    }
}

/// Whether a place lies behind all that a row knows of.
fn is_behind(row: &Entry, at: Position) -> bool {
    at > row.place && row.mark().is_none_or(|mark| at > mark.place)
}

/// What a second look came to.
#[derive(Default)]
pub(super) struct Again {
    /// Records that are sound after all.
    pub(super) found: u64,
    /// Segments under which the disk still fails.
    pub(super) unread: Vec<u32>,
}

/// Looks again, before the checkpoint, at those of the segments that may hide records, and enters what is
/// sound after all, where it lies. One that hides none any more is marked so.
pub(super) fn look_again(
    segments: &Segments,
    books: &mut Books,
    key: &RecordKey,
    files: &[(u32, u64)],
) -> io::Result<Again> {
    let (until, mut missed, mut again) = (books.place(), Missed::default(), Again::default());
    for &(number, bytes) in files {
        if !books.hiding().contains(&number) || number > until.segment {
            continue;
        }
        let end = if number == until.segment { bytes.min(until.offset) } else { bytes };
        let file = segments.open(number)?;
        let mut scan = Scan::headers(&file, key, HEAD_BYTES as u64..end.max(HEAD_BYTES as u64));
        let (mut hides, mut is_unread) = (false, false);
        while let Some(found) = scan.next()? {
            let Found::Record { begin, header, .. } = found else {
                hides = true;
                is_unread |= matches!(found, Found::Damage { unread: true, .. });
                continue;
            };
            let (id, place) = (header.id, Position { segment: number, offset: begin });
            let row = books.get(id)?;
            if !missed.is_one(row.as_ref(), &header, place) {
                continue;
            }
            match Scan::new(&file, key, begin..begin + header.record_bytes()).next()? {
                Some(Found::Record { header, geometry, .. }) => {
                    tracing::warn!(%id, segment = number, offset = begin,
                        "a record that could not be read at an earlier start is sound: it counts again");
                    missed.note(id, row.as_ref(), place);
                    let entered = Entered { header, place, geometry, sound: true };
                    books.enter_again(&entered)?;
                    again.found += 1;
                }
                Some(Found::Damage { unread, .. }) => {
                    hides |= unread;
                    is_unread |= unread;
                }
                Some(Found::Newer { .. }) | None => hides = true,
            }
            if books.pending_rows() >= ROWS_PER_WRITE {
                books.commit()?;
            }
        }
        if !hides {
            books.set_hides(number, false);
        }
        if is_unread {
            again.unread.push(number);
        }
        books.commit()?;
    }
    Ok(again)
}
