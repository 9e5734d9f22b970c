//! Reading from a disk's segments by way of the index, on threads that may block.
//!
//! Owns the open files and the check of what is served. Changes no row: damage is told to whoever
//! asked, and set apart by the writer.
//!
//! A compaction moves records and deletes files under the readers. So a record that is not where its
//! row said is damaged only if its row still says so.

use std::{
    collections::VecDeque,
    io,
    ops::{Bound, Range},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use copse_core::ids::ShardId;

use super::{
    HeldShard, ReadError, ShardRead, Want,
    arcs::{self, Arcs},
    device::{Device, DeviceFile},
    doubts::Doubts,
    health::{Health, count},
    index::{Entry, Index, State},
    record,
    segment::{HEAD_BYTES, RecordKey, prefix_bytes},
    shard,
};

/// Segment files held open for reading, at most.
const FILES_MAX: usize = 64;
/// How often a read follows a record that is moved under it.
const MOVES_MAX: usize = 16;

/// Segment files that are open for reading.
pub(super) struct Files {
    device: Arc<dyn Device>,
    open: Mutex<VecDeque<(u32, OpenFile)>>,
}

type OpenFile = Arc<dyn DeviceFile>;

impl Files {
    pub(super) fn new(device: Arc<dyn Device>) -> Self {
        Self { device, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, VecDeque<(u32, OpenFile)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of a segment, kept open for the next reader. Nothing when it is gone.
    pub(super) fn get(&self, number: u32) -> io::Result<Option<OpenFile>> {
        if let Some((_, file)) = self.open().iter().find(|(open, _)| *open == number) {
            return Ok(Some(Arc::clone(file)));
        }
        let file: OpenFile = match self.device.open_to_read(number) {
            Ok(file) => file.into(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut files = self.open();
        // A file that was deleted meanwhile would take room as long as it is open.
        if !file.is_removed()? {
            if files.len() >= FILES_MAX {
                files.pop_front();
            }
            files.push_back((number, Arc::clone(&file)));
        }
        Ok(Some(file))
    }

    /// Lets go of a file that was deleted: readers that have it finish, then its room is free.
    pub(super) fn forget(&self, number: u32) {
        self.open().retain(|(open, _)| *open != number);
    }
}

/// What reading threads use.
pub(super) struct Shared {
    pub(super) files: Arc<Files>,
    pub(super) key: RecordKey,
    pub(super) index: Arc<dyn Index>,
    pub(super) arcs: Arc<Mutex<Arcs>>,
    pub(super) health: Arc<Health>,
    pub(super) doubts: Arc<Doubts>,
}

/// What a look at the disk came to.
pub(super) enum Outcome<T> {
    Sound(T),
    /// The record is damaged and not yet set apart.
    Damaged(Entry),
}

impl Shared {
    pub(super) fn failed(&self, error: io::Error) -> ReadError {
        count(&self.health.io_errors);
        ReadError::Io { source: Arc::new(error) }
    }

    pub(super) fn arcs(&self) -> MutexGuard<'_, Arcs> {
        self.arcs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads and verifies a shard or a part of it.
    pub(super) fn read(&self, id: ShardId, want: &Want) -> Result<Outcome<ShardRead>, ReadError> {
        let outcome = self.follow(id, |entry| {
            let covered = shard::covered(id, want, entry.shard_bytes as usize)?;
            let read = self.part(id, entry, covered.clone());
            let read = read.map_err(|error| self.failed(error))?;
            Ok(read.map(|(descriptor, proof, data)| ShardRead {
                descriptor,
                shard_bytes: entry.shard_bytes.into(),
                covered: covered.start as u64..covered.end as u64,
                proof,
                data,
            }))
        })?;
        if matches!(outcome, Outcome::Sound(_)) {
            count(&self.health.reads);
        }
        Ok(outcome)
    }

    /// Reads and verifies all that is stored of a shard. Gives the bytes read.
    pub(super) fn check(&self, id: ShardId) -> Result<Outcome<u64>, ReadError> {
        self.follow(id, |entry| {
            let look = || {
                let Some(file) = self.files.get(entry.place.segment)? else { return Ok(None) };
                let whole = record::read_whole(&*file, &self.key, id, entry)?;
                let bytes = entry.record_bytes();
                // A scrub reads each shard once: its pages only push out others.
                file.not_needed(entry.place.offset..entry.place.offset + bytes);
                Ok(whole.map(|_| bytes))
            };
            look().map_err(|error| self.failed(error))
        })
    }

    /// Looks at the record of a live shard; again, as long as the record is moved meanwhile.
    fn follow<T>(
        &self,
        id: ShardId,
        look: impl Fn(&Entry) -> Result<Option<T>, ReadError>,
    ) -> Result<Outcome<T>, ReadError> {
        let mut entry = self.live(id)?;
        for _ in 0..MOVES_MAX {
            if let Some(found) = look(&entry)? {
                return Ok(Outcome::Sound(found));
            }
            let now = self.live(id)?;
            if now.place == entry.place {
                return Ok(Outcome::Damaged(now));
            }
            entry = now;
        }
        Err(self.failed(io::Error::other("the shard is moved faster than it can be read")))
    }

    /// The row of a shard that may be served.
    pub(super) fn live(&self, id: ShardId) -> Result<Entry, ReadError> {
        let entry = self.index.get(id).map_err(|error| self.failed(error))?;
        let entry = entry.ok_or(ReadError::NotHeld { id })?;
        match entry.state {
            State::Live => Ok(entry),
            State::Quarantined => Err(ReadError::Corrupt { id }),
            State::Trashed(_) | State::Gone(_) => Err(ReadError::NotHeld { id }),
        }
    }

    /// Reads and verifies a part of a record: descriptor, proof, data. Nothing when it is damaged.
    fn part(
        &self,
        id: ShardId,
        entry: &Entry,
        covered: Range<usize>,
    ) -> io::Result<Option<(Bytes, Vec<u8>, Bytes)>> {
        let Some(file) = self.files.get(entry.place.segment)? else { return Ok(None) };
        let shard_bytes = entry.shard_bytes as usize;
        let prefix = prefix_bytes(entry.descriptor_bytes, entry.shard_bytes);
        let prefix_bytes = record::index_of(prefix);
        let at = entry.place.offset;
        // A whole shard is one pread; of a part, what lies before the shard is read for itself.
        let whole = covered.len() == shard_bytes;
        let first = if whole { prefix_bytes + shard_bytes } else { prefix_bytes };
        let Some(bytes) = file.read_exact(at, first)? else { return Ok(None) };
        let data = if whole {
            bytes.slice(prefix_bytes..)
        } else {
            let from = at + prefix + covered.start as u64;
            match file.read_exact(from, covered.len())? {
                Some(data) => data,
                None => return Ok(None),
            }
        };
        let verified = || {
            if !record::is_header_of(id, entry, &self.key, &bytes) {
                return None;
            }
            let groups_at = HEAD_BYTES + entry.descriptor_bytes as usize;
            let descriptor = bytes.slice(HEAD_BYTES..groups_at);
            let groups = &bytes[groups_at..prefix_bytes];
            let hash = shard::expected_hash(id, &descriptor, shard_bytes)?;
            let proof = shard::prove(&hash, shard_bytes, &covered, groups, &data)?;
            Some((descriptor, proof))
        };
        Ok(verified().map(|(descriptor, proof)| (descriptor, proof, data)))
    }

    /// Up to `limit` live shards from `from` on, as long as `wanted` says so.
    pub(super) fn list<T>(
        &self,
        from: Bound<ShardId>,
        limit: usize,
        wanted: impl Fn(ShardId) -> bool,
        give: impl Fn(ShardId, &Entry) -> Option<T>,
    ) -> Result<Vec<T>, ReadError> {
        let mut list = Vec::new();
        if limit == 0 {
            return Ok(list);
        }
        let result = self.index.scan(from, &mut |id, entry| {
            let wanted = wanted(id);
            if wanted && entry.is_live() {
                list.extend(give(id, &entry));
            }
            wanted && list.len() < limit
        });
        result.map_err(|error| self.failed(error))?;
        Ok(list)
    }

    /// Up to `limit` live shards of an arc behind `after`.
    pub(super) fn list_arc(
        &self,
        arc: u16,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Vec<HeldShard>, ReadError> {
        self.list(
            arc_from(arc, after),
            limit,
            |id| arcs::arc_of(id) == arc,
            |id, entry| {
                let geometry = entry.geometry?;
                Some(HeldShard { id, geometry, shard_bytes: entry.shard_bytes })
            },
        )
    }
}

/// Where the listing of an arc begins.
pub(super) fn arc_from(arc: u16, after: Option<ShardId>) -> Bound<ShardId> {
    let first = arcs::first_of(arc);
    match after {
        Some(after) if after >= first => Bound::Excluded(after),
        _ => Bound::Included(first),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, path::PathBuf};

    use copse_core::ids::{ChunkId, ShardIndex};

    use super::{
        super::{
            books::{Books, Entered},
            directory::Directory,
            index::Tally,
            index_memory::MemoryIndex,
            segment::{Kind, Position, RecordHeader, StoreId},
        },
        *,
    };

    #[test]
    fn a_record_that_is_moved_under_a_reader_is_found_again() {
        let id = ShardId { chunk: ChunkId::new([5; 32]), index: ShardIndex(0) };
        let index: Arc<dyn Index> = Arc::new(MemoryIndex::default());
        let books = RefCell::new(Books::open(Arc::clone(&index), 7).expect("new books"));
        let place = |offset| Position { segment: 1, offset };
        let move_to = |offset| {
            let header = RecordHeader {
                kind: Kind::Shard,
                id,
                descriptor_bytes: 100,
                shard_bytes: 100,
                commit: 0,
            };
            let record = Entered { header, place: place(offset), geometry: None, sound: true };
            let mut books = books.borrow_mut();
            books.enter(&record).and_then(|_| books.commit()).expect("a row");
        };
        let shared = Shared {
            files: Arc::new(Files::new(Arc::new(Directory::new(PathBuf::new())))),
            key: RecordKey::new(StoreId([7; 32])),
            arcs: Arc::clone(books.borrow().arcs()),
            index,
            health: Arc::new(Health::new(Tally::default(), 0)),
            doubts: Arc::default(),
        };
        move_to(64);
        let found = shared.follow(id, |entry| {
            if entry.place == place(64) {
                move_to(500);
                return Ok(None);
            }
            Ok(Some(entry.place))
        });
        assert!(matches!(found, Ok(Outcome::Sound(at)) if at == place(500)));
        let damaged = shared.follow(id, |_| Ok(None::<()>));
        assert!(matches!(damaged, Ok(Outcome::Damaged(row)) if row.place == place(500)));
        let endless = shared.follow(id, |entry| {
            move_to(entry.place.offset + 1);
            Ok(None::<()>)
        });
        assert!(matches!(endless, Err(ReadError::Io { .. })));
    }
}
