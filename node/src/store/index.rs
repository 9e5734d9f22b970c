//! The index: which shard lies where, what follows from that, and up to where the segments are in it.
//!
//! Owns the bytes of the rows and what an index must do; knows nothing of segments' bytes, and
//! computes nothing: that the rows agree with one another is the care of `books`. It can be lost: it
//! is written after the segments and built again from them. That is why its log is not synced.
//!
//! ```text
//! key                              value, little-endian
//! 's' ‖ chunk id 32 ‖ index 1      state u8 (1 live, 2 quarantined, 3 in the trash, 4 gone) ‖
//!                                  place: segment u32 ‖ offset u32 ‖ descriptor_bytes u32 ‖
//!                                  shard_bytes u32 ‖ k u8 ‖ n u8 (zero: not known) ‖ copies u32 ‖
//!                                  states 3 and 4: since u32 ‖ reason u8 ‖ removal's place:
//!                                  segment u32 ‖ offset u32
//! 'a' ‖ arc u16 big-endian         shards u32 ‖ sum 16 ‖ revision u64
//! 'g' ‖ segment u32 big-endian     state u8 (1 in use, 2 to be deleted, 3 in use and may hide records) ‖
//!                                  living bytes u64 ‖ forgotten: offset u32
//! 't' ‖ proved elsewhere u8 ‖ since u32 big-endian ‖ chunk id 32 ‖ index 1       nothing
//! 'm'                              "CPSI" ‖ version 2 ‖ store id 32 ‖
//!                                  checkpoint: segment u32 ‖ offset u64 ‖
//!                                  tally: shards u64 ‖ shard bytes u64 ‖ quarantined u64 ‖
//!                                  trashed u64 ‖ trashed bytes u64 ‖
//!                                  epoch u64 ‖ revision u64 ‖ closed u8
//! 'l' ‖ key                        an entry of the ledger
//! ```
//!
//! Rows of all kinds change in one atomic write: all records before the checkpoint are in the rows,
//! none behind it.
//!
//! *copies* counts the records in the segments that have the shard's bytes, dead ones too: as long
//! as there is one, the removal must stay, or a lost index would bring the shard back.

use std::{collections::BTreeMap, io, ops::Bound};

use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, ShardId, ShardIndex},
    wire::{Reader, WireError, Writer},
};

use super::{
    arcs::ArcRow,
    segment::{HEAD_BYTES, Position, Removal, StoreId, prefix_bytes},
    trash::RemovalReason,
};

pub(super) const ROW_PREFIX: u8 = b's';
pub(super) const ARC_PREFIX: u8 = b'a';
pub(super) const SEGMENT_PREFIX: u8 = b'g';
pub(super) const DUE_PREFIX: u8 = b't';
pub(super) const LEDGER_PREFIX: u8 = b'l';
pub(super) const META_KEY: &[u8] = b"m";
const META_MAGIC: &[u8] = b"CPSI";
const META_VERSION: u8 = 2;

/// What the last record of a shard makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It may be served.
    Live,
    /// Its bytes were found to be wrong.
    Quarantined,
    /// Removed, and kept for a while.
    Trashed(Mark),
    /// Removed, and its bytes need not be kept; the removal still must.
    Gone(Mark),
}

/// The removal of a shard and where it is written: at the shard's own place if a compaction wrote
/// both in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) removal: Removal,
    pub(super) place: Position,
}

/// The row of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) state: State,
    /// Where the record of the shard begins. Of a shard that is gone: where it once was.
    pub(super) place: Position,
    /// Length of the descriptor.
    pub(super) descriptor_bytes: u32,
    /// Length of the shard.
    pub(super) shard_bytes: u32,
    /// The chunk's, if it ever was read.
    pub(super) geometry: Option<Geometry>,
    /// Records with this shard's bytes in all segments.
    pub(super) copies: u32,
}

impl Entry {
    /// Whether the shard may be served.
    pub(super) fn is_live(&self) -> bool {
        self.state == State::Live
    }

    /// The removal that this shard lies in the trash for.
    pub(super) fn trashed(&self) -> Option<Removal> {
        match self.state {
            State::Trashed(mark) => Some(mark.removal),
            _ => None,
        }
    }

    /// Its removal and the place of it, if it was removed.
    pub(super) fn mark(&self) -> Option<Mark> {
        match self.state {
            State::Trashed(mark) | State::Gone(mark) => Some(mark),
            State::Live | State::Quarantined => None,
        }
    }

    /// Whether a removal's record must be kept, apart from the shard's own.
    pub(super) fn needs_removal(&self) -> bool {
        match self.state {
            State::Live | State::Quarantined => false,
            State::Trashed(mark) => mark.place != self.place,
            // The copy that says so itself cannot outlive itself.
            State::Gone(mark) => self.copies > u32::from(mark.place == self.place),
        }
    }

    /// Bytes of the shard's record.
    pub(super) fn record_bytes(&self) -> u64 {
        prefix_bytes(self.descriptor_bytes, self.shard_bytes) + u64::from(self.shard_bytes)
    }

    /// Which bytes of which segments must not be lost: those of the shard, those of the removal.
    pub(super) fn living(&self) -> [Option<(u32, u64)>; 2] {
        let kept = matches!(self.state, State::Live | State::Trashed(_));
        let removal = self.mark().filter(|_| self.needs_removal());
        [
            kept.then(|| (self.place.segment, self.record_bytes())),
            removal.map(|mark| (mark.place.segment, HEAD_BYTES as u64)),
        ]
    }
}

/// How much is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Live shards.
    pub(super) shards: u64,
    /// Their bytes.
    pub(super) shard_bytes: u64,
    /// Quarantined shards.
    pub(super) quarantined: u64,
    /// Shards in the trash.
    pub(super) trashed: u64,
    /// Their bytes.
    pub(super) trashed_bytes: u64,
}

/// Up to where the segments are in the index, and what is true of all rows together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    /// All records before this place are in the rows.
    pub(super) place: Position,
    /// The sum of the rows.
    pub(super) tally: Tally,
    /// See [`super::StoreRevision`].
    pub(super) epoch: u64,
    pub(super) revision: u64,
    /// Nothing was written since the store was closed: no revision was given out that is not here.
    pub(super) closed: bool,
}

/// What the books say of a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SegmentUse {
    /// Bytes of records that must not be lost.
    pub(super) living_bytes: u64,
    /// The copies before this offset are not counted any more: the segment is being deleted.
    pub(super) forgotten: u32,
    /// No row points into it: its file must go before anything else.
    pub(super) doomed: bool,
    /// When it was read into the index, some of it could not be read, or no header told what it was:
    /// records may lie there that no row knows.
    pub(super) hides: bool,
}

/// A key of the rows that say when trash is due, in order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    pub(super) proved_elsewhere: bool,
    pub(super) since: u32,
    pub(super) id: ShardId,
}

/// Rows to be changed at once, in order of key. Nothing as a row: it is taken out.
#[derive(Debug, Clone)]
pub(super) struct Changes {
    pub(super) rows: BTreeMap<ShardId, Option<Entry>>,
    pub(super) arcs: BTreeMap<u16, ArcRow>,
    pub(super) segments: BTreeMap<u32, Option<SegmentUse>>,
    /// Whether the row is to be there.
    pub(super) due: BTreeMap<Due, bool>,
    pub(super) meta: Meta,
}

/// What the store asks of an index. One thread writes; any thread reads.
pub(super) trait Index: Send + Sync {
    /// What is true of all rows; nothing in a new index.
    fn meta(&self) -> io::Result<Option<Meta>>;
    /// The row of a shard.
    fn get(&self, id: ShardId) -> io::Result<Option<Entry>>;
    /// Shows the rows from `from` on in ascending order until `visit` says false.
    fn scan(
        &self,
        from: Bound<ShardId>,
        visit: &mut dyn FnMut(ShardId, Entry) -> bool,
    ) -> io::Result<()>;
    /// All arcs that have a row.
    fn arcs(&self) -> io::Result<BTreeMap<u16, ArcRow>>;
    /// All segments that have a row.
    fn segments(&self) -> io::Result<BTreeMap<u32, SegmentUse>>;
    /// Up to `limit` shards of this kind that were removed not after `until`, the oldest first.
    fn due(&self, proved_elsewhere: bool, until: u32, limit: usize) -> io::Result<Vec<ShardId>>;
    /// Changes all rows at once. Need not be durable.
    fn apply(&self, changes: &Changes) -> io::Result<()>;
    /// Makes all that was applied durable.
    fn flush(&self) -> io::Result<()>;
}

/// A damaged row or an index that cannot be used.
pub(super) fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "the index is damaged ({what}); stop the node and delete the directory \"index\" in \
             its store: it is built again from the segments"
        ),
    )
}

pub(super) fn row_key(id: ShardId) -> [u8; 34] {
    let mut key = [ROW_PREFIX; 34];
    key[1..33].copy_from_slice(id.chunk.as_bytes());
    key[33] = id.index.0;
    key
}

/// The shard of a row's key; nothing when the key is no row's.
pub(super) fn row_id(key: &[u8]) -> Option<ShardId> {
    match key {
        [ROW_PREFIX, chunk @ .., index] => {
            Some(ShardId { chunk: ChunkId::from_slice(chunk).ok()?, index: ShardIndex(*index) })
        }
        _ => None,
    }
}

pub(super) fn arc_key(arc: u16) -> [u8; 3] {
    let [high, low] = arc.to_be_bytes();
    [ARC_PREFIX, high, low]
}

pub(super) fn segment_key(number: u32) -> [u8; 5] {
    let mut key = [SEGMENT_PREFIX; 5];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

impl Due {
    pub(super) fn of(id: ShardId, removal: Removal) -> Self {
        let proved_elsewhere = removal.reason.is_proved_elsewhere();
        Self { proved_elsewhere, since: removal.since, id }
    }

    /// The first key of a kind.
    pub(super) fn first(proved_elsewhere: bool) -> Self {
        let id = ShardId { chunk: ChunkId::new([0; 32]), index: ShardIndex(0) };
        Self { proved_elsewhere, since: 0, id }
    }

    pub(super) fn key(&self) -> [u8; 39] {
        let mut key = [DUE_PREFIX; 39];
        key[1] = self.proved_elsewhere.into();
        key[2..6].copy_from_slice(&self.since.to_be_bytes());
        key[6..38].copy_from_slice(self.id.chunk.as_bytes());
        key[38] = self.id.index.0;
        key
    }

    pub(super) fn from_key(key: &[u8]) -> Option<Self> {
        let key: &[u8; 39] = key.try_into().ok()?;
        Some(Self {
            proved_elsewhere: key[1] != 0,
            since: u32::from_be_bytes([key[2], key[3], key[4], key[5]]),
            id: ShardId {
                chunk: ChunkId::from_slice(&key[6..38]).ok()?,
                index: ShardIndex(key[38]),
            },
        })
    }
}

fn write_place(writer: &mut Writer, place: Position) {
    // A segment is shorter than 4 GiB: asserted beside its constant.
    writer.u32(place.segment).u32(u32::try_from(place.offset).unwrap_or(u32::MAX));
}

fn read_place(reader: &mut Reader<'_>) -> Result<Position, WireError> {
    Ok(Position { segment: reader.u32()?, offset: reader.u32()?.into() })
}

impl Entry {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(match self.state {
            State::Live => 1,
            State::Quarantined => 2,
            State::Trashed(_) => 3,
            State::Gone(_) => 4,
        });
        write_place(&mut writer, self.place);
        writer
            .u32(self.descriptor_bytes)
            .u32(self.shard_bytes)
            .bytes(&self.geometry.map_or([0; 2], Geometry::to_bytes))
            .u32(self.copies);
        if let Some(mark) = self.mark() {
            writer.u32(mark.removal.since).u8(mark.removal.reason.to_byte());
            write_place(&mut writer, mark.place);
        }
        writer.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let state = reader.u8()?;
        let mut entry = Self {
            state: State::Live,
            place: read_place(&mut reader)?,
            descriptor_bytes: reader.u32()?,
            shard_bytes: reader.u32()?,
            geometry: Geometry::from_bytes(reader.array()?).ok(),
            copies: reader.u32()?,
        };
        entry.state = match state {
            1 => State::Live,
            2 => State::Quarantined,
            3 => State::Trashed(Mark::read(&mut reader)?),
            4 => State::Gone(Mark::read(&mut reader)?),
            _ => return Err(WireError::Invalid("the state of a row")),
        };
        reader.end()?;
        Ok(entry)
    }
}

impl Mark {
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let since = reader.u32()?;
        let reason = RemovalReason::from_byte(reader.u8()?);
        let reason = reason.ok_or(WireError::Invalid("the reason of a removal"))?;
        Ok(Self { removal: Removal { since, reason }, place: read_place(reader)? })
    }
}

impl ArcRow {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u32(self.shards).bytes(&self.sum.to_le_bytes()).u64(self.revision);
        writer.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let shards = reader.u32()?;
        let row =
            Self { shards, sum: u128::from_le_bytes(reader.array()?), revision: reader.u64()? };
        reader.end()?;
        Ok(row)
    }
}

impl SegmentUse {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        let state = match (self.doomed, self.hides) {
            (true, _) => 2,
            (false, true) => 3,
            (false, false) => 1,
        };
        writer.u8(state).u64(self.living_bytes).u32(self.forgotten);
        writer.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let (doomed, hides) = match reader.u8()? {
            1 => (false, false),
            2 => (true, false),
            3 => (false, true),
            _ => return Err(WireError::Invalid("the state of a segment")),
        };
        let (living_bytes, forgotten) = (reader.u64()?, reader.u32()?);
        let row = Self { living_bytes, forgotten, doomed, hides };
        reader.end()?;
        Ok(row)
    }
}

impl Meta {
    pub(super) fn encode(&self, store: StoreId) -> Vec<u8> {
        let mut writer = Writer::new();
        writer
            .bytes(META_MAGIC)
            .u8(META_VERSION)
            .bytes(&store.0)
            .u32(self.place.segment)
            .u64(self.place.offset)
            .u64(self.tally.shards)
            .u64(self.tally.shard_bytes)
            .u64(self.tally.quarantined)
            .u64(self.tally.trashed)
            .u64(self.tally.trashed_bytes)
            .u64(self.epoch)
            .u64(self.revision)
            .u8(self.closed.into());
        writer.finish()
    }

    pub(super) fn decode(bytes: &[u8], store: StoreId) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        if reader.magic("an index", META_MAGIC, META_VERSION)? != META_VERSION {
            return Err(WireError::Invalid("the version: this is an older program's index"));
        }
        if reader.array()? != store.0 {
            return Err(WireError::Invalid("the store id: this is another store's index"));
        }
        let place = Position { segment: reader.u32()?, offset: reader.u64()? };
        let tally = Tally {
            shards: reader.u64()?,
            shard_bytes: reader.u64()?,
            quarantined: reader.u64()?,
            trashed: reader.u64()?,
            trashed_bytes: reader.u64()?,
        };
        let (epoch, revision) = (reader.u64()?, reader.u64()?);
        let closed = reader.u8()? == 1;
        reader.end()?;
        Ok(Self { place, tally, epoch, revision, closed })
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    fn id() -> ShardId {
        ShardId { chunk: ChunkId::new([5; 32]), index: ShardIndex(13) }
    }

    fn entry(state: State) -> Entry {
        Entry {
            state,
            place: Position { segment: 3, offset: 64 },
            descriptor_bytes: 523,
            shard_bytes: 786_624,
            geometry: Some(Geometry::new(10, 6).expect("a geometry")),
            copies: 2,
        }
    }

    fn mark(segment: u32, offset: u64) -> Mark {
        let removal = Removal { since: 0x6543_2100, reason: RemovalReason::Ordered };
        Mark { removal, place: Position { segment, offset } }
    }

    #[test]
    fn a_row_has_these_bytes() {
        let key = row_key(id());
        assert_eq!(HEXLOWER.encode(&key), format!("73{}0d", "05".repeat(32)));
        assert_eq!(row_id(&key), Some(id()));
        let body = "03000000400000000b020000c0000c000a1002000000";
        let removal = "00214365030400000080000000";
        for (state, expected) in [
            (State::Live, format!("01{body}")),
            (State::Quarantined, format!("02{body}")),
            (State::Trashed(mark(4, 128)), format!("03{body}{removal}")),
            (State::Gone(mark(4, 128)), format!("04{body}{removal}")),
        ] {
            let bytes = entry(state).encode();
            assert_eq!(HEXLOWER.encode(&bytes), expected);
            assert_eq!(Entry::decode(&bytes), Ok(entry(state)));
        }
        let unread = Entry { geometry: None, ..entry(State::Quarantined) };
        assert_eq!(Entry::decode(&unread.encode()), Ok(unread));
    }

    #[test]
    fn the_rows_of_arcs_segments_and_trash_have_these_bytes() {
        assert_eq!(HEXLOWER.encode(&arc_key(0x1234)), "611234");
        let row = ArcRow { shards: 2, sum: 0x0102, revision: 3 };
        let expected = format!("020000000201{}0300000000000000", "00".repeat(14));
        assert_eq!(HEXLOWER.encode(&row.encode()), expected);
        assert_eq!(ArcRow::decode(&row.encode()), Ok(row));

        assert_eq!(HEXLOWER.encode(&segment_key(0x0102)), "6700000102");
        for (doomed, hides, state) in
            [(false, false, "01"), (true, false, "02"), (false, true, "03")]
        {
            let row = SegmentUse { living_bytes: 5, forgotten: 64, doomed, hides };
            let expected = format!("{state}050000000000000040000000");
            assert_eq!(HEXLOWER.encode(&row.encode()), expected);
            assert_eq!(SegmentUse::decode(&row.encode()), Ok(row));
        }

        let due = Due { proved_elsewhere: true, since: 0x0102, id: id() };
        assert_eq!(HEXLOWER.encode(&due.key()), format!("740100000102{}0d", "05".repeat(32)));
        assert_eq!(Due::from_key(&due.key()), Some(due));
    }

    #[test]
    fn the_row_of_all_rows_has_these_bytes() {
        let store = StoreId([7; 32]);
        let meta = Meta {
            place: Position { segment: 3, offset: 64 },
            tally: Tally {
                shards: 1,
                shard_bytes: 2,
                quarantined: 3,
                trashed: 4,
                trashed_bytes: 5,
            },
            epoch: 6,
            revision: 7,
            closed: true,
        };
        let numbers: String = (1..8).map(|number| format!("{number:02x}00000000000000")).collect();
        let store_id = "07".repeat(32);
        let expected =
            ["43505349", "02", &store_id, "03000000", "4000000000000000", &numbers, "01"];
        assert_eq!(HEXLOWER.encode(&meta.encode(store)), expected.concat());
        assert_eq!(Meta::decode(&meta.encode(store), store), Ok(meta));
        assert!(Meta::decode(&meta.encode(store), StoreId([8; 32])).is_err());
        let mut old = meta.encode(store);
        old[4] = 1;
        assert!(Meta::decode(&old, store).is_err(), "built again, not read wrongly");
    }

    #[test]
    fn what_must_not_be_lost_follows_from_the_row() {
        let bytes = 64 + 523 + 49 * 32 + 786_624;
        let (shard, removal) = (Some((3, bytes)), Some((4, 64)));
        let apart = mark(4, 128);
        let in_one = mark(3, 64);
        let once = |state| Entry { copies: 1, ..entry(state) };
        for (entry, expected) in [
            (entry(State::Live), [shard, None]),
            (entry(State::Quarantined), [None, None]),
            (entry(State::Trashed(apart)), [shard, removal]),
            (entry(State::Trashed(in_one)), [shard, None]),
            (entry(State::Gone(apart)), [None, removal]),
            (once(State::Gone(apart)), [None, removal]),
            // Another copy than the one that says so: it must be kept out.
            (entry(State::Gone(in_one)), [None, Some((3, 64))]),
            (once(State::Gone(in_one)), [None, None]),
        ] {
            assert_eq!(entry.living(), expected, "{entry:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = (ArcRow::decode(&bytes), SegmentUse::decode(&bytes), Due::from_key(&bytes));
            let _ = Meta::decode(&bytes, StoreId([7; 32]));
            if let Ok(entry) = Entry::decode(&bytes) {
                prop_assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
            }
        }
    }
}
