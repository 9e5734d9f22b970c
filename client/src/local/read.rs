//! Reading one file from its first byte to its last, holes told apart from data.
//!
//! Owns the promise that what was read is one state of the file: size, time and inode are compared
//! before and after, and a file that changed meanwhile is an error, not a mixture. Times have a grain: what
//! was changed a moment ago can be changed again without a trace, and is not known by its identity.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use copse_core::limits::PACKED_BYTES_MAX;
use rustix::fs::{OFlags, SeekFrom as HoleSeek};

use super::Metadata;

/// Why a file could not be read as one state, told without its path.
#[derive(Debug, thiserror::Error)]
pub enum ReadFileError {
    /// The system refused.
    #[error("cannot be read: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Somebody wrote to it.
    #[error("changed while it was read; put it again when it is at rest")]
    Changed {
        /// Which file.
        path: PathBuf,
    },
    /// Its size says less than there is to read, as in /proc.
    #[error("has more bytes than its size says; give it to `copse put -` on standard input")]
    Endless {
        /// Which file.
        path: PathBuf,
    },
}

impl ReadFileError {
    /// Which file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. } | Self::Changed { path } | Self::Endless { path } => path,
        }
    }
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Device and inode.
    pub inode: (u64, u64),
    /// Bytes.
    pub size: u64,
    /// Last change of the content: seconds, nanoseconds.
    pub mtime: (i64, i64),
    /// Last change of content or metadata, which nobody can set back.
    pub ctime: (i64, i64),
}

/// A change within this time of another may leave the file's times as they are: FAT counts in steps of two
/// seconds, others in milliseconds, and the clock of a server may be a little behind ours.
const GRAIN: Duration = Duration::from_secs(2);

/// File systems that keep the time of a file's last change themselves, by their numbers in `statfs` (Linux,
/// include/uapi/linux/magic.h; of ZFS, OpenZFS). Not tmpfs: there a program that writes through a mapping never
/// moves a file's times. Nor an image (squashfs, erofs), a server or a program (NFS, FUSE): what they say of
/// that time is what somebody wrote down.
#[cfg(target_os = "linux")]
const KEEP_CHANGE_TIMES: [i128; 7] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // Btrfs
    0x2fc1_2fc1, // ZFS
    0xf2f5_2010, // F2FS
    0xca45_1a4e, // bcachefs
    0x794c_7630, // overlayfs: that of the file below, or above
];

impl FileIdentity {
    /// Whether another content than what is there at a moment has another identity: the last change must be
    /// some time ago.
    fn is_settled(&self, at: SystemTime) -> bool {
        let Ok(since) = at.duration_since(UNIX_EPOCH) else { return false };
        let is_past = |(seconds, nanos): (i64, i64)| {
            let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else {
                // Before 1970.
                return true;
            };
            Duration::new(seconds, nanos).saturating_add(GRAIN) < since
        };
        // A full second was not taken from a clock but written down, as by whoever makes an image: overlayfs
        // and a loop device show those, too.
        let is_of_clock = self.ctime.1 != 0;
        is_of_clock && is_past(self.mtime) && is_past(self.ctime)
    }

    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Sees to it that the next write through a mapping moves the file's times. A mapping moves them with the
/// first write to a page, and then not before that page has gone to the disk: so it goes there now. Whether
/// that holds here.
fn flush_mappings(file: &File) -> bool {
    #[cfg(target_os = "linux")]
    if !rustix::fs::fstatfs(file)
        .is_ok_and(|system| KEEP_CHANGE_TIMES.contains(&i128::from(system.f_type)))
    {
        return false;
    }
    file.sync_data().is_ok()
}

/// What comes next in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// So many bytes of data. Fewer than asked for only before a hole or the end.
    Data(usize),
    /// So many bytes of zeros that take no space.
    Hole(u64),
    /// The end, reached without a change.
    End,
}

/// A hole shorter than this is read as zeros, in bytes: below it an extent of its own costs more
/// than it saves.
const HOLE_BYTES_MIN: u64 = 64 << 10;

/// Whether the kernel is worth asking about holes: a file with all its blocks has none.
fn is_sparse(metadata: &fs::Metadata) -> bool {
    metadata.blocks().saturating_mul(512) < metadata.size()
}

/// Bytes of the holes in a file, as they would be told by reading it; none of what cannot be read. Costs nothing
/// where there are none, and reads nothing.
pub fn hole_bytes(path: &Path) -> u64 {
    let is_worth_it = |metadata: &fs::Metadata| metadata.is_file() && is_sparse(metadata);
    if !path.symlink_metadata().is_ok_and(|metadata| is_worth_it(&metadata)) {
        return 0;
    }
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let metadata = |file: File| file.metadata().ok().map(|metadata| (file, metadata));
    match opened.ok().and_then(metadata) {
        Some((file, metadata)) if is_worth_it(&metadata) => {
            FileReader::of(path, file, &metadata).hole_bytes().unwrap_or(0)
        }
        _ => 0,
    }
}

/// Reads one file in order.
#[derive(Debug)]
pub struct FileReader {
    path: PathBuf,
    file: File,
    identity: FileIdentity,
    settled: bool,
    metadata: Metadata,
    /// Next byte to read.
    at: u64,
    /// End of the data that starts at or before `at`; beyond it lies a hole or the end.
    data_end: u64,
    sparse: bool,
}

impl FileReader {
    /// Opens the file; a symbolic link in its place is an error.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn open(path: &Path) -> Result<Self, ReadFileError> {
        let io = |source| ReadFileError::Io { path: path.to_owned(), source };
        let file = File::options()
            .read(true)
            // A pipe in its place by now would be waited for.
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(path)
            .map_err(io)?;
        let mut now = SystemTime::now();
        let mut metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(ReadFileError::Changed { path: path.to_owned() });
        }
        let has_name = metadata.size() > PACKED_BYTES_MAX as u64 && flush_mappings(&file);
        if has_name {
            now = SystemTime::now();
            metadata = file.metadata().map_err(io)?;
        }
        let reader = Self::of(path, file, &metadata);
        Ok(Self { settled: has_name && reader.identity.is_settled(now), ..reader })
    }

    /// A file that was opened in this state, which is not known to be settled.
    fn of(path: &Path, file: File, metadata: &fs::Metadata) -> Self {
        Self {
            path: path.to_owned(),
            identity: FileIdentity::of(metadata),
            settled: false,
            metadata: Metadata::of(metadata),
            file,
            at: 0,
            data_end: 0,
            sparse: is_sparse(metadata),
        }
    }

    /// Bytes of holes from here on.
    fn hole_bytes(&mut self) -> Result<u64, ReadFileError> {
        let mut holes = 0;
        loop {
            match self.next(usize::MAX)? {
                Segment::End => return Ok(holes),
                Segment::Hole(bytes) => {
                    holes += bytes;
                    self.skip(bytes)?;
                }
                Segment::Data(bytes) => self.skip(bytes as u64)?,
            }
        }
    }

    /// The state of the file that is being read.
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Whether that state had been there for a while when it was opened, of a file that is too large to be
    /// packed. If not, a later one may look the same.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// Mode, time and size of that state: what is read has these, whatever was at the path before.
    pub fn metadata(&self) -> Metadata {
        self.metadata
    }

    /// The offset of the next byte.
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// Tells what comes next, at most `bytes_max` of it if it is data. Then [`read`](Self::read) it
    /// or [`skip`](Self::skip) it.
    ///
    /// # Errors
    /// When the system refuses, or at the end, when the file is not what it was at the start.
    pub fn next(&mut self, bytes_max: usize) -> Result<Segment, ReadFileError> {
        if self.at >= self.identity.size {
            return self.end();
        }
        if self.at >= self.data_end {
            let (data, end) = self.data_from(self.at).map_err(|source| self.io(source))?;
            self.data_end = end;
            let hole = data - self.at;
            if hole >= HOLE_BYTES_MIN || (hole > 0 && data >= self.identity.size) {
                self.data_end = self.at;
                return Ok(Segment::Hole(hole));
            }
        }
        let left = self.data_end - self.at;
        Ok(Segment::Data(usize::try_from(left).unwrap_or(usize::MAX).min(bytes_max)))
    }

    /// Adds so many of the next bytes to the buffer.
    ///
    /// # Errors
    /// When the system refuses, or the file ends before.
    pub fn read(&mut self, bytes: usize, buffer: &mut Vec<u8>) -> Result<(), ReadFileError> {
        // Without zeroing what is overwritten.
        match (&self.file).take(bytes as u64).read_to_end(buffer) {
            Ok(read) if read == bytes => {
                self.at += bytes as u64;
                Ok(())
            }
            // Shorter than it was.
            Ok(_) => Err(self.changed()),
            Err(source) => Err(self.io(source)),
        }
    }

    /// Goes over the next bytes without reading them.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn skip(&mut self, bytes: u64) -> Result<(), ReadFileError> {
        self.at += bytes;
        self.file.seek(SeekFrom::Start(self.at)).map_err(|source| self.io(source))?;
        self.data_end = self.data_end.max(self.at);
        Ok(())
    }

    /// Where data starts at or after `at`, and where it ends.
    fn data_from(&self, at: u64) -> io::Result<(u64, u64)> {
        let size = self.identity.size;
        if !self.sparse {
            return Ok((at, size));
        }
        let data = match rustix::fs::seek(&self.file, HoleSeek::Data(at)) {
            Ok(data) => data.min(size),
            // No data up to the end.
            Err(rustix::io::Errno::NXIO) => return Ok((size, size)),
            Err(_) => return self.rewind((at, size)),
        };
        let mut end = match rustix::fs::seek(&self.file, HoleSeek::Hole(data)) {
            Ok(end) => end.min(size),
            Err(_) => size,
        };
        // Short holes are read through.
        while end < size {
            let Ok(next) = rustix::fs::seek(&self.file, HoleSeek::Data(end)) else { break };
            if next - end >= HOLE_BYTES_MIN {
                break;
            }
            end = rustix::fs::seek(&self.file, HoleSeek::Hole(next)).unwrap_or(size).min(size);
        }
        self.rewind((data, end))
    }

    /// Puts the file's position back after asking for holes.
    fn rewind<T>(&self, value: T) -> io::Result<T> {
        rustix::fs::seek(&self.file, HoleSeek::Start(self.at))?;
        Ok(value)
    }

    fn end(&mut self) -> Result<Segment, ReadFileError> {
        self.check()?;
        let read = self.file.read_at(&mut [0], self.identity.size);
        if read.map_err(|source| self.io(source))? == 0 {
            return Ok(Segment::End);
        }
        // By now, or all the time.
        self.check()?;
        Err(ReadFileError::Endless { path: self.path.clone() })
    }

    /// Makes sure that all that was read until now is of the state that was opened.
    ///
    /// # Errors
    /// When it changed, or the system refuses.
    pub fn check(&self) -> Result<(), ReadFileError> {
        let now = self.file.metadata().map_err(|source| self.io(source))?;
        if FileIdentity::of(&now) == self.identity { Ok(()) } else { Err(self.changed()) }
    }

    fn io(&self, source: io::Error) -> ReadFileError {
        ReadFileError::Io { path: self.path.clone(), source }
    }

    fn changed(&self) -> ReadFileError {
        ReadFileError::Changed { path: self.path.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(path: &Path) -> Result<(Vec<u8>, u64), ReadFileError> {
        let mut reader = FileReader::open(path)?;
        let (mut bytes, mut holes) = (Vec::new(), 0);
        loop {
            match reader.next(100_000)? {
                Segment::Data(count) => {
                    reader.read(count, &mut bytes)?;
                }
                Segment::Hole(count) => {
                    holes += count;
                    bytes.resize(bytes.len() + usize::try_from(count).expect("small"), 0);
                    reader.skip(count)?;
                }
                Segment::End => return Ok((bytes, holes)),
            }
        }
    }

    #[test]
    fn holes_are_told_apart_and_the_bytes_are_the_same() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("sparse");
        let file = File::create(&path).expect("writable");
        file.write_all_at(&[1; 10_000], 3 << 20).expect("written");
        file.write_all_at(&[2; 5], 9 << 20).expect("written");
        file.set_len(12 << 20).expect("longer");
        let (bytes, holes) = read_all(&path).expect("readable");
        assert_eq!(bytes, fs::read(&path).expect("readable"));
        assert!(holes > 11 << 20, "only {holes} bytes of holes were seen");
        assert_eq!(hole_bytes(&path), holes, "told before as when it is read");
        fs::write(&path, [1; 5000]).expect("written");
        assert_eq!((hole_bytes(&path), hole_bytes(&dir.path().join("none"))), (0, 0));
    }

    #[test]
    fn empty_dense_and_skipped_files_read_right() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("f");
        fs::write(&path, "").expect("writable");
        assert_eq!(read_all(&path).expect("readable").0, b"");
        let content: Vec<u8> = (0..250_000u32).map(|i| i.to_le_bytes()[0]).collect();
        fs::write(&path, &content).expect("writable");
        assert_eq!(read_all(&path).expect("readable").0, content);
        let mut reader = FileReader::open(&path).expect("readable");
        assert_eq!(reader.next(500_000).expect("readable"), Segment::Data(250_000));
        reader.skip(249_990).expect("seekable");
        assert_eq!(reader.next(100).expect("readable"), Segment::Data(10));
        let mut buffer = Vec::new();
        reader.read(10, &mut buffer).expect("readable");
        assert_eq!(buffer[..], content[249_990..]);
        assert_eq!(reader.next(100).expect("unchanged"), Segment::End);
    }

    #[test]
    fn a_file_that_changes_is_an_error() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("f");
        for change in ["longer", "shorter"] {
            fs::write(&path, vec![1; 200_000]).expect("writable");
            let mut reader = FileReader::open(&path).expect("readable");
            let mut buffer = Vec::new();
            reader.read(100_000, &mut buffer).expect("readable");
            let length = if change == "longer" { 300_000 } else { 150_000 };
            fs::write(&path, vec![2; length]).expect("writable");
            let error = loop {
                let step = reader.next(100_000).and_then(|segment| match segment {
                    Segment::Data(count) => reader.read(count, &mut buffer),
                    other => panic!("the change ({change}) was not seen: {other:?}"),
                });
                if let Err(error) = step {
                    break error;
                }
            };
            assert!(matches!(error, ReadFileError::Changed { .. }), "{error}");
        }
    }

    #[test]
    fn a_piece_that_was_read_while_the_file_changed_is_noticed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("f");
        fs::write(&path, vec![1; 200_000]).expect("writable");
        let mut reader = FileReader::open(&path).expect("readable");
        let mut buffer = Vec::new();
        reader.read(100_000, &mut buffer).expect("readable");
        reader.check().expect("nothing happened");
        fs::write(&path, vec![2; 200_001]).expect("writable");
        reader.read(100_000, &mut buffer).expect("readable");
        assert!(matches!(reader.check(), Err(ReadFileError::Changed { .. })));
    }

    #[test]
    fn what_was_changed_a_moment_ago_is_not_known_by_its_times() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let check = |mtime, ctime, expected| {
            let identity = FileIdentity { inode: (1, 2), size: 3, mtime, ctime };
            assert_eq!(identity.is_settled(now), expected, "{mtime:?} {ctime:?}");
        };
        let long_ago = (1_000_000, 1);
        check(long_ago, (999_999_997, 999_999_999), true);
        check(long_ago, (999_999_998, 1), false);
        check(long_ago, (1_000_000_000, 1), false);
        check((999_999_999, 0), long_ago, false);
        check((1_000_000, 0), long_ago, true);
        // Set by hand; and of a clock that is ahead.
        check((-1, 5), long_ago, true);
        check(long_ago, (2_000_000_000, 1), false);
        check(long_ago, (i64::MAX, 1), false);
        // Of an image.
        check(long_ago, (1_000_000, 0), false);

        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("f");
        fs::write(&path, vec![1; PACKED_BYTES_MAX + 1]).expect("writable");
        assert!(!FileReader::open(&path).expect("readable").is_settled(), "it is new");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_with_more_bytes_than_its_size_says_is_an_error() {
        let error = read_all(Path::new("/proc/self/status")).expect_err("its size is 0");
        assert!(matches!(error, ReadFileError::Endless { .. }), "{error}");
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("p");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("a pipe");
        let error = FileReader::open(&path).expect_err("no file");
        assert!(matches!(error, ReadFileError::Changed { .. }), "{error}");
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("f"), "x").expect("writable");
        std::os::unix::fs::symlink("f", dir.path().join("l")).expect("a link");
        assert!(FileReader::open(&dir.path().join("l")).is_err());
    }
}
