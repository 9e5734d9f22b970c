//! The index in RocksDB.
//!
//! Owns the settings and the translation of errors; holds no shard bytes. Small on purpose: some
//! 75 bytes a shard, so a terabyte of shards is an index of 100 MB.

use std::{collections::BTreeMap, io, ops::Bound, path::Path};

use copse_core::{ids::ShardId, wire::WireError};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, ErrorKind, IteratorMode, LogLevel,
    Options, WriteBatch, WriteOptions,
};

use super::{
    arcs::ArcRow,
    index::{
        ARC_PREFIX, Changes, DUE_PREFIX, Due, Entry, Index, LEDGER_PREFIX, META_KEY, Meta,
        ROW_PREFIX, SEGMENT_PREFIX, SegmentUse, arc_key, damaged, row_id, row_key, segment_key,
    },
    ledger::{self, Ledger, LedgerChange},
    segment::StoreId,
};

/// Cache of the index's blocks, in bytes. A node must run in 300 MiB; a look-up that misses costs
/// one short read beside the long one of the shard.
const BLOCK_CACHE_BYTES: usize = 16 << 20;
/// A memtable, in bytes: 100,000 puts. RocksDB holds at most two.
const MEMTABLE_BYTES: usize = 8 << 20;
/// Files held open. The index of 10 TB has a few dozen.
const OPEN_FILES_MAX: i32 = 128;
/// The log of what is not in a table yet, in bytes: bounds the work of opening.
const WAL_BYTES_MAX: u64 = 32 << 20;
/// Bits of Bloom filter per shard: 1 % of the look-ups of unknown shards touch the disk.
const BLOOM_BITS: f64 = 10.0;
/// RocksDB's own log files, in bytes and count.
const LOG_BYTES_MAX: usize = 1 << 20;
const LOG_FILES_MAX: usize = 2;

/// An open index.
pub(super) struct RocksIndex {
    db: DB,
    store: StoreId,
}

fn failed(error: rocksdb::Error) -> io::Error {
    match error.kind() {
        ErrorKind::Corruption => damaged(error),
        _ => {
            let text = error.to_string();
            // RocksDB tells this cause apart in its text only.
            let full = text.contains("No space left") || text.contains("Quota exceeded");
            let kind = if full { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
            io::Error::new(kind, format!("the index failed: {text}"))
        }
    }
}

impl RocksIndex {
    /// Opens the index in this directory, or makes one.
    ///
    /// # Errors
    /// `InvalidData` when it is damaged or another store's: build it again. Any other when it may be sound,
    /// but the system does not let us: repairing would harm.
    pub(super) fn open(path: &Path, store: StoreId) -> io::Result<Self> {
        let db = DB::open(&options(), path).map_err(|error| match error.kind() {
            ErrorKind::Corruption | ErrorKind::NotSupported | ErrorKind::InvalidArgument => {
                damaged(error)
            }
            // A file of the index is gone. Anything else (permission, lock, no space, a failing disk) is
            // for the operator.
            ErrorKind::IOError if error.as_ref().contains("No such file") => damaged(error),
            _ => failed(error),
        })?;
        let index = Self { db, store };
        index.meta()?;
        Ok(index)
    }
}

fn options() -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    table.set_bloom_filter(BLOOM_BITS, false);
    table.set_cache_index_and_filter_blocks(true);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_compression_type(DBCompressionType::None); // hashes do not compress
    options.set_stats_dump_period_sec(0);
    options.set_keep_log_file_num(LOG_FILES_MAX);
    options.set_max_log_file_size(LOG_BYTES_MAX);
    options.set_log_level(LogLevel::Warn);
    options
}

impl RocksIndex {
    /// Shows the pairs from `start` on whose key begins with `prefix`, until `visit` says false.
    fn pairs(
        &self,
        start: &[u8],
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> io::Result<bool>,
    ) -> io::Result<()> {
        for pair in self.db.iterator(IteratorMode::From(start, Direction::Forward)) {
            let (key, value) = pair.map_err(failed)?;
            if !key.starts_with(prefix) || !visit(&key, &value)? {
                break;
            }
        }
        Ok(())
    }

    /// All rows of a kind whose keys are a prefix and a big-endian number.
    fn numbered<const N: usize, T>(
        &self,
        prefix: u8,
        decode: impl Fn(&[u8]) -> Result<T, WireError>,
    ) -> io::Result<BTreeMap<[u8; N], T>> {
        let mut rows = BTreeMap::new();
        self.pairs(&[prefix], &[prefix], |key, value| {
            let number = key[1..].try_into().map_err(damaged)?;
            rows.insert(number, decode(value).map_err(damaged)?);
            Ok(true)
        })?;
        Ok(rows)
    }

    fn write(&self, batch: WriteBatch) -> io::Result<()> {
        // Not synced: what a power cut takes from the log is read from the segments again.
        self.db.write_opt(batch, &WriteOptions::default()).map_err(failed)
    }
}

impl Index for RocksIndex {
    fn meta(&self) -> io::Result<Option<Meta>> {
        let row = self.db.get_pinned(META_KEY).map_err(failed)?;
        row.map(|row| Meta::decode(&row, self.store).map_err(damaged)).transpose()
    }

    fn get(&self, id: ShardId) -> io::Result<Option<Entry>> {
        let row = self.db.get_pinned(row_key(id)).map_err(failed)?;
        row.map(|row| Entry::decode(&row).map_err(damaged)).transpose()
    }

    fn scan(
        &self,
        from: Bound<ShardId>,
        visit: &mut dyn FnMut(ShardId, Entry) -> bool,
    ) -> io::Result<()> {
        let (start, skip) = match from {
            Bound::Included(id) => (row_key(id).to_vec(), None),
            Bound::Excluded(id) => (row_key(id).to_vec(), Some(id)),
            Bound::Unbounded => (vec![ROW_PREFIX], None),
        };
        self.pairs(&start, &[ROW_PREFIX], |key, value| {
            let id = row_id(key).ok_or_else(|| damaged("the key of a row"))?;
            Ok(Some(id) == skip || visit(id, Entry::decode(value).map_err(damaged)?))
        })
    }

    fn arcs(&self) -> io::Result<BTreeMap<u16, ArcRow>> {
        let rows = self.numbered(ARC_PREFIX, ArcRow::decode)?;
        Ok(rows.into_iter().map(|(arc, row)| (u16::from_be_bytes(arc), row)).collect())
    }

    fn segments(&self) -> io::Result<BTreeMap<u32, SegmentUse>> {
        let rows = self.numbered(SEGMENT_PREFIX, SegmentUse::decode)?;
        Ok(rows.into_iter().map(|(number, row)| (u32::from_be_bytes(number), row)).collect())
    }

    fn due(&self, proved_elsewhere: bool, until: u32, limit: usize) -> io::Result<Vec<ShardId>> {
        let mut found = Vec::new();
        let first = Due::first(proved_elsewhere).key();
        self.pairs(&first, &[DUE_PREFIX], |key, _| {
            let due = Due::from_key(key).ok_or_else(|| damaged("a row of the trash"))?;
            let wanted = due.proved_elsewhere == proved_elsewhere
                && due.since <= until
                && found.len() < limit;
            if wanted {
                found.push(due.id);
            }
            Ok(wanted)
        })?;
        Ok(found)
    }

    fn apply(&self, changes: &Changes) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        for (&id, entry) in &changes.rows {
            match entry {
                Some(entry) => batch.put(row_key(id), entry.encode()),
                None => batch.delete(row_key(id)),
            }
        }
        for (&arc, row) in &changes.arcs {
            batch.put(arc_key(arc), row.encode());
        }
        for (&number, row) in &changes.segments {
            match row {
                Some(row) => batch.put(segment_key(number), row.encode()),
                None => batch.delete(segment_key(number)),
            }
        }
        for (due, there) in &changes.due {
            if *there {
                batch.put(due.key(), b"");
            } else {
                batch.delete(due.key());
            }
        }
        batch.put(META_KEY, changes.meta.encode(self.store));
        self.write(batch)
    }

    fn flush(&self) -> io::Result<()> {
        self.db.flush().map_err(failed)
    }
}

fn ledger_key(key: &[u8]) -> Vec<u8> {
    [&[LEDGER_PREFIX], key].concat()
}

impl Ledger for RocksIndex {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.db.get(ledger_key(key)).map_err(failed)
    }

    fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        let prefix = ledger_key(prefix);
        self.pairs(&prefix, &prefix, |key, value| Ok(visit(&key[1..], value)))
    }

    fn apply(&self, changes: Vec<LedgerChange>) -> io::Result<()> {
        ledger::check(&changes)?;
        let mut batch = WriteBatch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.put(ledger_key(&key), value),
                None => batch.delete(ledger_key(&key)),
            }
        }
        self.write(batch)
    }
}
