//! The bytes of a segment file: its head and the records behind one another.
//!
//! Owns the format; opens no file and decides nothing. A record proves itself: its header has a
//! checksum bound to store and place, its content is proved by the chunk's id.
//!
//! ```text
//! NNNNNNNN.seg            at most 256 MiB; all numbers little-endian
//! ┌──────────────┬──────────┬──────────┬─ ─ ─
//! │ segment head │ record   │ record   │          append only, no gaps
//! └──────────────┴──────────┴──────────┴─ ─ ─
//!
//! segment head, 64 bytes               record header, 64 bytes
//!  0  4  magic "CPSG"                   0  4  magic "CPSR"
//!  4  1  version 1                      4  1  version 1
//!  5  3  zero                           5  1  kind: 1 shard, 2 removal, 3 shard in the trash
//!  8 32  store id                       6  1  shard index
//! 40  4  segment number                 7  1  kind 1: zero; else why: 1 handed over, 2 surplus,
//! 44 12  zero                                 3 ordered
//! 56  8  check                          8 32  chunk id
//!                                      40  4  descriptor_bytes; kind 2: zero
//!                                      44  4  shard_bytes; kind 2: zero
//!                                      48  4  commit: where the first record of this commit begins
//!                                      52  4  kind 1: zero; else removed when, unix seconds
//!                                      56  8  check
//!                                             and, but for kind 2:
//!                                      64  …  descriptor       BLAKE3 = chunk id
//!                                       …  …  group hashes     32 per 16 KiB of shard; root = the
//!                                       …  …  shard            hash that the descriptor gives
//! ```
//!
//! Of several records of one shard the last one says whether it is held. A *removal* is a header
//! alone. *Shard in the trash* is what a compaction makes of a removed shard: a shard and its removal
//! in one, since a plain copy behind the removal would bring it back.
//!
//! *check* = first 8 bytes of BLAKE3 keyed with derive_key("copse store record v1", store id) over
//! the 56 bytes before it ‖ segment number u32 ‖ offset u64. Bound to the place, so that a record
//! found where none was written (a shard whose bytes imitate records, a stray block) is no record;
//! keyed by the store, so that nobody outside can compute it.
//!
//! *commit* says what was on the disk before: all bytes of the segment below it were synced when
//! this record was written. It tells rot from a torn tail.
//!
//! The group hashes lie before the shard so that a small read is two short preads: everything up to
//! the shard, then the wanted groups.

use std::path::{Path, PathBuf};

use copse_core::{
    descriptor::DESCRIPTOR_BYTES_MAX,
    ids::{ChunkId, ID_BYTES, ShardId, ShardIndex},
    limits::{GROUP_BYTES, SHARD_BYTES_MAX},
    wire::Reader,
};

use super::trash::RemovalReason;

/// Size of a segment file, at most. Few files for a large disk (4,000 per TiB), and little to read
/// again after a crash or to copy when a segment is compacted.
pub(super) const SEGMENT_BYTES_MAX: u64 = 256 << 20;

/// Bytes of a segment's head, and of a record's header.
pub(super) const HEAD_BYTES: usize = 64;

const CHECK_BYTES: usize = 8;
const CHECKED_BYTES: usize = HEAD_BYTES - CHECK_BYTES;
const VERSION: u8 = 1;
const SEGMENT_MAGIC: &[u8; 4] = b"CPSG";
/// What a record begins with; looked for behind damage.
pub(super) const RECORD_MAGIC: &[u8; 4] = b"CPSR";

/// A record, at most.
pub(super) const RECORD_BYTES_MAX: u64 = HEAD_BYTES as u64
    + DESCRIPTOR_BYTES_MAX as u64
    + groups_bytes(SHARD_BYTES_MAX as u64)
    + SHARD_BYTES_MAX as u64;

const _: () = assert!(RECORD_BYTES_MAX + (HEAD_BYTES as u64) < SEGMENT_BYTES_MAX);
const _: () = assert!(SEGMENT_BYTES_MAX < u32::MAX as u64);

/// Bytes of the group hashes of a shard.
pub(super) const fn groups_bytes(shard_bytes: u64) -> u64 {
    shard_bytes.div_ceil(GROUP_BYTES as u64) * ID_BYTES as u64
}

/// Which store this is: 32 random bytes, made at init and never sent anywhere.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct StoreId(pub [u8; 32]);

impl std::fmt::Debug for StoreId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreId")
    }
}

/// A byte of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// The segment's number.
    pub(super) segment: u32,
    /// Bytes from the start of the file.
    pub(super) offset: u64,
}

/// Computes the checks of one store.
#[derive(Clone)]
pub(super) struct RecordKey([u8; 32]);

impl RecordKey {
    /// The key of a store.
    pub(super) fn new(store: StoreId) -> Self {
        Self(blake3::derive_key("copse store record v1", &store.0))
    }

    fn check(&self, bytes: &[u8], at: Position) -> [u8; CHECK_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(bytes);
        hasher.update(&at.segment.to_le_bytes());
        hasher.update(&at.offset.to_le_bytes());
        let mut check = [0; CHECK_BYTES];
        check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK_BYTES]);
        check
    }

    fn seal(&self, head: &mut [u8; HEAD_BYTES], at: Position) {
        let check = self.check(&head[..CHECKED_BYTES], at);
        head[CHECKED_BYTES..].copy_from_slice(&check);
    }

    fn holds(&self, head: &[u8; HEAD_BYTES], at: Position) -> bool {
        self.check(&head[..CHECKED_BYTES], at) == head[CHECKED_BYTES..]
    }
}

/// The name of a segment's file.
pub(super) fn file_name(number: u32) -> String {
    format!("{number:08}.seg")
}

/// The file of a segment.
pub(super) fn path(segments: &Path, number: u32) -> PathBuf {
    segments.join(file_name(number))
}

/// The number of the segment with this file name.
pub(super) fn number_of(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".seg")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

/// The head of a segment.
pub(super) fn segment_head(store: StoreId, number: u32) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(SEGMENT_MAGIC);
    head[4] = VERSION;
    head[8..40].copy_from_slice(&store.0);
    head[40..44].copy_from_slice(&number.to_le_bytes());
    RecordKey::new(store).seal(&mut head, Position { segment: number, offset: 0 });
    head
}

/// What a segment's head turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SegmentHead {
    /// The head of this segment of this store.
    Ours,
    /// A sound head of another store, or of another segment: a file that was copied here.
    Foreign,
    /// Of a newer version.
    Newer(u8),
    /// No sound head.
    Damaged,
}

/// Judges a segment's head.
pub(super) fn judge_head(head: &[u8; HEAD_BYTES], store: StoreId, number: u32) -> SegmentHead {
    let mut reader = Reader::new(head);
    let mut read = || {
        let magic: [u8; 4] = reader.array()?;
        let version = reader.u8()?;
        reader.bytes(3)?;
        Ok::<_, copse_core::wire::WireError>((
            magic,
            version,
            StoreId(reader.array()?),
            reader.u32()?,
        ))
    };
    let Ok((magic, version, its_store, its_number)) = read() else { return SegmentHead::Damaged };
    let at = Position { segment: its_number, offset: 0 };
    if magic != *SEGMENT_MAGIC || !RecordKey::new(its_store).holds(head, at) {
        return SegmentHead::Damaged;
    }
    match (version, its_store == store && its_number == number) {
        (VERSION, true) => SegmentHead::Ours,
        (VERSION, false) => SegmentHead::Foreign,
        _ => SegmentHead::Newer(version),
    }
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A shard.
    Shard,
    /// The removal of a shard: a header alone.
    Removal(Removal),
    /// A shard that was removed before it was copied here.
    Trash(Removal),
}

/// When and why a shard was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Removal {
    /// Unix seconds.
    pub(super) since: u32,
    pub(super) reason: RemovalReason,
}

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    /// What the record is.
    pub(super) kind: Kind,
    /// The shard.
    pub(super) id: ShardId,
    /// Length of the descriptor.
    pub(super) descriptor_bytes: u32,
    /// Length of the shard.
    pub(super) shard_bytes: u32,
    /// Offset in this segment of the first record of the commit that this record belongs to.
    pub(super) commit: u32,
}

/// Why 64 bytes are not the header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoHeader {
    /// The check is wrong: no header, or a damaged one.
    Damaged,
    /// A sound header that this version does not understand.
    Newer,
}

impl RecordHeader {
    /// Whether a shard's bytes follow.
    pub(super) fn has_shard(&self) -> bool {
        !matches!(self.kind, Kind::Removal(_))
    }

    /// The removal that it tells of.
    pub(super) fn removal(&self) -> Option<Removal> {
        match self.kind {
            Kind::Shard => None,
            Kind::Removal(removal) | Kind::Trash(removal) => Some(removal),
        }
    }

    /// The header's bytes at this place.
    pub(super) fn encode(&self, key: &RecordKey, at: Position) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..4].copy_from_slice(RECORD_MAGIC);
        head[4] = VERSION;
        let (kind, removal) = match self.kind {
            Kind::Shard => (1, None),
            Kind::Removal(removal) => (2, Some(removal)),
            Kind::Trash(removal) => (3, Some(removal)),
        };
        head[5] = kind;
        if let Some(Removal { since, reason }) = removal {
            head[7] = reason.to_byte();
            head[52..56].copy_from_slice(&since.to_le_bytes());
        }
        head[6] = self.id.index.0;
        head[8..40].copy_from_slice(self.id.chunk.as_bytes());
        head[40..44].copy_from_slice(&self.descriptor_bytes.to_le_bytes());
        head[44..48].copy_from_slice(&self.shard_bytes.to_le_bytes());
        head[48..52].copy_from_slice(&self.commit.to_le_bytes());
        key.seal(&mut head, at);
        head
    }

    /// Reads the header at this place.
    pub(super) fn decode(
        head: &[u8; HEAD_BYTES],
        key: &RecordKey,
        at: Position,
    ) -> Result<Self, NoHeader> {
        if head[..4] != *RECORD_MAGIC || !key.holds(head, at) {
            return Err(NoHeader::Damaged);
        }
        // From here on the bytes are what a program with this store's key wrote.
        let u32_at =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let removal =
            RemovalReason::from_byte(head[7]).map(|reason| Removal { since: u32_at(52), reason });
        let kind = match (head[4], head[5], removal) {
            (VERSION, 1, _) => Kind::Shard,
            (VERSION, 2, Some(removal)) => Kind::Removal(removal),
            (VERSION, 3, Some(removal)) => Kind::Trash(removal),
            _ => return Err(NoHeader::Newer),
        };
        let chunk = ChunkId::from_slice(&head[8..40]).map_err(|_| NoHeader::Damaged)?;
        let header = Self {
            kind,
            id: ShardId { chunk, index: ShardIndex(head[6]) },
            descriptor_bytes: u32_at(40),
            shard_bytes: u32_at(44),
            commit: u32_at(48),
        };
        let possible = match kind {
            Kind::Removal(_) => header.descriptor_bytes == 0 && header.shard_bytes == 0,
            Kind::Shard | Kind::Trash(_) => {
                header.descriptor_bytes as usize <= DESCRIPTOR_BYTES_MAX
                    && header.shard_bytes as usize <= SHARD_BYTES_MAX
            }
        };
        if possible { Ok(header) } else { Err(NoHeader::Newer) }
    }

    /// Bytes of the header, the descriptor and the group hashes: what lies before the shard.
    pub(super) fn prefix_bytes(&self) -> u64 {
        prefix_bytes(self.descriptor_bytes, self.shard_bytes)
    }

    /// Bytes of the whole record.
    pub(super) fn record_bytes(&self) -> u64 {
        self.prefix_bytes() + u64::from(self.shard_bytes)
    }
}

/// Bytes of a record before the shard.
pub(super) const fn prefix_bytes(descriptor_bytes: u32, shard_bytes: u32) -> u64 {
    HEAD_BYTES as u64 + descriptor_bytes as u64 + groups_bytes(shard_bytes as u64)
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    const STORE: StoreId = StoreId([7; 32]);

    fn header() -> RecordHeader {
        let chunk = ChunkId::new(std::array::from_fn(|i| u8::try_from(i).expect("small")));
        RecordHeader {
            kind: Kind::Shard,
            id: ShardId { chunk, index: ShardIndex(13) },
            descriptor_bytes: 523,
            shard_bytes: 786_624,
            commit: 64,
        }
    }

    #[test]
    fn the_head_of_a_segment_has_these_bytes() {
        let head = segment_head(STORE, 3);
        assert_eq!(
            HEXLOWER.encode(&head),
            [
                "43505347",
                "01",
                "000000",
                &"07".repeat(32),
                "03000000",
                &"00".repeat(12),
                "16acaef20248ca4c"
            ]
            .concat()
        );
        assert_eq!(judge_head(&head, STORE, 3), SegmentHead::Ours);
        assert_eq!(judge_head(&head, STORE, 4), SegmentHead::Foreign);
        assert_eq!(judge_head(&head, StoreId([8; 32]), 3), SegmentHead::Foreign);
        for at in 0..HEAD_BYTES {
            let mut wrong = head;
            wrong[at] ^= 1;
            assert_eq!(judge_head(&wrong, STORE, 3), SegmentHead::Damaged, "byte {at}");
        }
    }

    #[test]
    fn the_header_of_a_record_has_these_bytes() {
        let key = RecordKey::new(STORE);
        let at = Position { segment: 3, offset: 64 };
        let head = header().encode(&key, at);
        assert_eq!(
            HEXLOWER.encode(&head),
            [
                "43505352",
                "01",
                "01",
                "0d",
                "00",
                "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
                "0b020000",
                "c0000c00",
                "40000000",
                "00000000",
                "4bfc6de013c26a04"
            ]
            .concat()
        );
        assert_eq!(RecordHeader::decode(&head, &key, at), Ok(header()));
        assert_eq!(header().record_bytes(), 64 + 523 + 49 * 32 + 786_624);
    }

    #[test]
    fn the_headers_of_removed_shards_have_these_bytes() {
        let key = RecordKey::new(STORE);
        let at = Position { segment: 3, offset: 64 };
        let removal = Removal { since: 0x6543_2100, reason: RemovalReason::Surplus };
        let cases = [
            (Kind::Removal(removal), (0, 0), "02", ["00000000", "00000000"], "2094e27ad9c03c22"),
            (
                Kind::Trash(removal),
                (523, 786_624),
                "03",
                ["0b020000", "c0000c00"],
                "f9795d261cd4807e",
            ),
        ];
        for (kind, (descriptor_bytes, shard_bytes), byte, lengths, check) in cases {
            let header = RecordHeader { kind, descriptor_bytes, shard_bytes, ..header() };
            let head = header.encode(&key, at);
            let chunk = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
            let expected = ["43505352", "01", byte, "0d", "02", chunk].concat()
                + &lengths.concat()
                + "40000000"
                + "00214365"
                + check;
            assert_eq!(HEXLOWER.encode(&head), expected);
            assert_eq!(RecordHeader::decode(&head, &key, at), Ok(header));
        }
        let bare = RecordHeader {
            kind: Kind::Removal(removal),
            descriptor_bytes: 0,
            shard_bytes: 0,
            ..header()
        };
        assert_eq!(bare.record_bytes(), 64);
    }

    #[test]
    fn a_removal_with_a_shard_or_without_a_reason_is_of_a_newer_version() {
        let key = RecordKey::new(STORE);
        let at = Position { segment: 3, offset: 64 };
        let removal = Removal { since: 1, reason: RemovalReason::Ordered };
        let kind = Kind::Removal(removal);
        let with_shard = RecordHeader { kind, ..header() }.encode(&key, at);
        assert_eq!(RecordHeader::decode(&with_shard, &key, at), Err(NoHeader::Newer));
        let mut head =
            RecordHeader { kind, descriptor_bytes: 0, shard_bytes: 0, ..header() }.encode(&key, at);
        head[7] = 4;
        key.seal(&mut head, at);
        assert_eq!(RecordHeader::decode(&head, &key, at), Err(NoHeader::Newer));
    }

    #[test]
    fn a_header_is_one_only_in_its_place_and_its_store() {
        let key = RecordKey::new(STORE);
        let at = Position { segment: 3, offset: 64 };
        let head = header().encode(&key, at);
        for elsewhere in [Position { segment: 4, offset: 64 }, Position { segment: 3, offset: 65 }]
        {
            let got = RecordHeader::decode(&head, &key, elsewhere);
            assert_eq!(got, Err(NoHeader::Damaged));
        }
        let other = RecordKey::new(StoreId([8; 32]));
        assert_eq!(RecordHeader::decode(&head, &other, at), Err(NoHeader::Damaged));
        for byte in 0..HEAD_BYTES {
            let mut wrong = head;
            wrong[byte] ^= 0x10;
            assert_eq!(RecordHeader::decode(&wrong, &key, at), Err(NoHeader::Damaged));
        }
    }

    #[test]
    fn a_sound_header_of_a_newer_version_is_told_from_damage() {
        let key = RecordKey::new(STORE);
        let at = Position { segment: 3, offset: 64 };
        let mut head = header().encode(&key, at);
        head[4] = VERSION + 1;
        key.seal(&mut head, at);
        assert_eq!(RecordHeader::decode(&head, &key, at), Err(NoHeader::Newer));
    }

    #[test]
    fn a_file_name_is_a_number_of_eight_digits() {
        assert_eq!(file_name(42), "00000042.seg");
        assert_eq!(number_of("00000042.seg"), Some(42));
        for other in ["42.seg", "00000042", "0000004x.seg", "+0000042.seg", "00000042.seg~"] {
            assert_eq!(number_of(other), None, "{other}");
        }
    }
}
