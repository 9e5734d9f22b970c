//! What this client has stored before: which chunk holds which part of which state of a file.
//!
//! Owns one append-only file in the client's state directory. It saves reading and encoding a file
//! again after an interruption or when it did not change; whoever uses an entry still has the network
//! prove that the chunk is held. Losing the journal costs time, never data, so it is not
//! flushed to disk. Whoever gets hold of the journal alone cannot use it: an extent opens its chunk, so
//! it is stored under a mask that only somebody knows who has the file, in the state in which it was put.
//!
//! ```text
//! "CPSJ" | version 2 |  entry*
//! entry = key 16 | length u16 LE | value ⊕ mask | BLAKE3(key ‖ value ⊕ mask) first 4
//! key, mask = BLAKE3 keyed by the context, of the file's identity and the piece: the first 16 bytes of
//!             its output, and the rest of it
//! ```

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use copse_core::geometry::Geometry;

use crate::local::FileIdentity;

const HEADER: &[u8; 5] = b"CPSJ\x02";
const KEY_BYTES: usize = 16;
const CHECK_BYTES: usize = 4;

/// A value, in bytes: an extent is under 100.
const VALUE_BYTES_MAX: usize = 1024;

/// Entries kept: 2 TiB of chunks, 16 MiB of memory. The oldest go first.
const ENTRIES_MAX: usize = 1 << 18;

/// Which part of which state of a file, stored how: under which key its entry is, and what hides the value.
#[derive(Clone)]
pub struct JournalKey {
    key: Key,
    mask: blake3::OutputReader,
}

/// The key of an entry, as it stands in the file.
type Key = [u8; KEY_BYTES];

impl fmt::Debug for JournalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalKey").finish_non_exhaustive()
    }
}

impl JournalKey {
    /// `context` tells apart what must not be mixed: the network and the convergence secret.
    pub fn new(
        context: &[u8; 32],
        file: &FileIdentity,
        geometry: Geometry,
        offset: u64,
        bytes: u64,
    ) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(context);
        let numbers = [
            file.inode.0,
            file.inode.1,
            file.size,
            file.mtime.0.cast_unsigned(),
            file.mtime.1.cast_unsigned(),
            file.ctime.0.cast_unsigned(),
            file.ctime.1.cast_unsigned(),
            geometry.data() as u64,
            geometry.total() as u64,
            offset,
            bytes,
        ];
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
        let (mut key, mut mask) = ([0; KEY_BYTES], hasher.finalize_xof());
        mask.fill(&mut key);
        Self { key, mask }
    }

    /// Hides a value, or shows a hidden one.
    fn apply(&self, value: &mut [u8]) {
        let mut mask = vec![0; value.len()];
        self.mask.clone().fill(&mut mask);
        value.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
}

/// The journal of one profile.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Where each value is: offset in the file and length.
    index: HashMap<Key, (u64, u16)>,
    /// Keys from the oldest to the newest; a key entered again stands twice.
    order: VecDeque<Key>,
    end: u64,
}

impl Journal {
    /// Opens or creates the journal. Damage at its end (an interrupted write) is cut off; a file of
    /// another format is begun anew.
    ///
    /// # Errors
    /// `WouldBlock` when another process of this user has it; go on without. Otherwise when the
    /// system refuses.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut journal = Self {
            path: path.to_owned(),
            file,
            index: HashMap::new(),
            order: VecDeque::new(),
            end: HEADER.len() as u64,
        };
        if bytes.starts_with(HEADER) {
            let mut at = HEADER.len();
            while let Some((key, value, next)) = entry(&bytes, at) {
                let start = at + KEY_BYTES + 2;
                journal.enter(key, start as u64, value.len());
                at = next;
            }
            journal.end = at as u64;
        } else {
            journal.file.write_all_at(HEADER, 0)?;
        }
        journal.file.set_len(journal.end)?;
        if journal.order.len() > ENTRIES_MAX {
            journal.compact()?;
        }
        Ok(journal)
    }

    fn enter(&mut self, key: Key, start: u64, length: usize) {
        // Bounded by VALUE_BYTES_MAX.
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        self.index.insert(key, (start, length));
        self.order.push_back(key);
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn get(&self, key: &JournalKey) -> io::Result<Option<Vec<u8>>> {
        let value = self.hidden(&key.key)?;
        Ok(value.map(|mut value| {
            key.apply(&mut value);
            value
        }))
    }

    /// The value of a key as it stands in the file.
    fn hidden(&self, key: &Key) -> io::Result<Option<Vec<u8>>> {
        let Some(&(start, length)) = self.index.get(key) else { return Ok(None) };
        let mut value = vec![0; usize::from(length)];
        self.file.read_exact_at(&mut value, start)?;
        Ok(Some(value))
    }

    /// Notes a value under a key; the newest counts.
    ///
    /// # Errors
    /// When the system refuses, or the value is over 1 KiB.
    pub fn put(&mut self, key: &JournalKey, value: &[u8]) -> io::Result<()> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "journal value over 1 KiB"));
        }
        let mut hidden = value.to_vec();
        key.apply(&mut hidden);
        let bytes = encode(key.key, &hidden);
        self.file.write_all_at(&bytes, self.end)?;
        self.enter(key.key, self.end + KEY_BYTES as u64 + 2, value.len());
        self.end += bytes.len() as u64;
        if self.order.len() > 2 * ENTRIES_MAX {
            self.compact()?;
        }
        Ok(())
    }

    /// Writes the newest entries to a new file and takes that.
    fn compact(&mut self) -> io::Result<()> {
        let mut newest = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for key in self.order.iter().rev() {
            if newest.len() == ENTRIES_MAX {
                break;
            }
            if seen.insert(*key) {
                newest.push(*key);
            }
        }
        let fresh_path = self.path.with_extension("new");
        let mut fresh = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh_path)?;
        rustix::fs::flock(&fresh, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        let mut out = io::BufWriter::new(&mut fresh);
        out.write_all(HEADER)?;
        let mut at = HEADER.len() as u64;
        let (mut index, mut order) = (HashMap::new(), VecDeque::new());
        for key in newest.into_iter().rev() {
            let Some(value) = self.hidden(&key)? else { continue };
            let bytes = encode(key, &value);
            out.write_all(&bytes)?;
            let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
            index.insert(key, (at + KEY_BYTES as u64 + 2, length));
            order.push_back(key);
            at += bytes.len() as u64;
        }
        out.flush()?;
        drop(out);
        fresh.seek(SeekFrom::Start(0))?;
        fs::rename(&fresh_path, &self.path)?;
        (self.file, self.index, self.order, self.end) = (fresh, index, order, at);
        Ok(())
    }
}

fn encode(key: Key, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(KEY_BYTES + 2 + value.len() + CHECK_BYTES);
    bytes.extend_from_slice(&key);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(value);
    bytes.extend_from_slice(&check(&key, value));
    bytes
}

fn check(key: &Key, value: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key).update(value);
    let mut out = [0; CHECK_BYTES];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK_BYTES]);
    out
}

/// The entry at an offset and where the next begins; `None` at the end or at damage.
fn entry(bytes: &[u8], at: usize) -> Option<(Key, &[u8], usize)> {
    let key: Key = bytes.get(at..at + KEY_BYTES)?.try_into().ok()?;
    let start = at + KEY_BYTES + 2;
    let length = bytes.get(at + KEY_BYTES..start)?.try_into().map(u16::from_le_bytes).ok()?;
    let end = start + usize::from(length);
    let value = bytes.get(start..end)?;
    let found = bytes.get(end..end + CHECK_BYTES)?;
    (usize::from(length) <= VALUE_BYTES_MAX && found == check(&key, value)).then_some((
        key,
        value,
        end + CHECK_BYTES,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> JournalKey {
        let identity = FileIdentity { inode: (1, number), size: 3, mtime: (4, 5), ctime: (6, 7) };
        let geometry = Geometry::new(10, 6).expect("a geometry");
        JournalKey::new(&[7; 32], &identity, geometry, 0, 3)
    }

    #[test]
    fn entries_survive_reopening_and_a_torn_end_is_cut() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("journal");
        let mut journal = Journal::open(&path).expect("created");
        for number in 0..10 {
            journal.put(&key(number), &number.to_le_bytes()).expect("written");
        }
        journal.put(&key(3), b"newer").expect("written");
        drop(journal);
        let whole = fs::read(&path).expect("readable");
        for cut in [0, 1, 20, 34, 35] {
            fs::write(&path, &whole[..whole.len() - cut]).expect("writable");
            let mut journal = Journal::open(&path).expect("opened");
            let third = journal.get(&key(3)).expect("readable").expect("there");
            let expected = if cut == 0 { b"newer".to_vec() } else { 3u64.to_le_bytes().to_vec() };
            assert_eq!(third, expected, "{cut} bytes cut");
            journal.put(&key(99), b"x").expect("written");
            drop(journal);
            let journal = Journal::open(&path).expect("opened");
            assert_eq!(journal.get(&key(99)).expect("readable").as_deref(), Some(&b"x"[..]));
            assert_eq!(journal.get(&key(1000)).expect("readable"), None);
        }
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("journal");
        let _first = Journal::open(&path).expect("created");
        let error = Journal::open(&path).expect_err("locked");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_foreign_file_is_begun_anew() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("journal");
        fs::write(&path, "something else").expect("writable");
        let mut journal = Journal::open(&path).expect("opened");
        journal.put(&key(1), b"x").expect("written");
        assert_eq!(&fs::read(&path).expect("readable")[..5], HEADER);
    }

    #[test]
    fn who_has_the_journal_alone_reads_no_value_in_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("journal");
        let mut journal = Journal::open(&path).expect("created");
        let secret = [0x5e; 32];
        journal.put(&key(1), &secret).expect("written");
        let bytes = fs::read(&path).expect("readable");
        assert!(bytes.windows(8).all(|part| part != &secret[..8]));
        assert_eq!(journal.get(&key(1)).expect("readable").as_deref(), Some(&secret[..]));
    }

    #[test]
    fn the_first_bytes_are_pinned() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("journal");
        Journal::open(&path).expect("created").put(&key(1), b"ab").expect("written");
        let hex = data_encoding::HEXLOWER.encode(&fs::read(&path).expect("readable"));
        assert_eq!(hex, "4350534a02c91d359bcfdcd6af271a875a1dbdabed020065b776e0ad8b");
    }
}
