//! The system calls on segment files, each in one place, so that tests can make each one fail.
//!
//! Owns creating, reading, appending, syncing and cutting a segment file. Decides nothing about failures: it
//! says how far a write came.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice},
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use super::segment::{self, StoreId};

/// Bytes of one pwritev, at most. Larger writes make the page cache of ext4 (Linux 6.18) take pages
/// of 2 MiB and more, six times slower: 8 MiB in one call took 15 to 24 ms, in 1 MiB calls 2.5 ms.
const WRITE_BYTES_MAX: usize = 1 << 20;

/// Slices of one pwritev, at most (IOV_MAX of Linux).
const SLICES_MAX: usize = 1024;

/// A segment that is written to.
#[derive(Debug)]
pub(super) struct SegmentFile {
    pub(super) number: u32,
    file: File,
    faults: Faults,
}

/// Where the segments are.
#[derive(Debug, Clone)]
pub(super) struct Segments {
    pub(super) dir: PathBuf,
    pub(super) store: StoreId,
    pub(super) faults: Faults,
}

/// The disk has no room: ENOSPC or EDQUOT.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Bytes that the file system has free for us.
pub(super) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Makes names in a directory durable.
pub(super) fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Segments {
    /// Makes a segment with nothing but its head. When this returns, the file and its name are on
    /// the disk; when it fails, there is no file.
    pub(super) fn create(&self, number: u32) -> io::Result<SegmentFile> {
        let path = segment::path(&self.dir, number);
        let created = || {
            self.faults.create()?;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            let made = SegmentFile { number, file, faults: self.faults.clone() };
            let head = segment::segment_head(self.store, number);
            made.append(0, &mut [IoSlice::new(&head)]).map_err(|(_, error)| error)?;
            made.file.sync_all()?;
            sync_directory(&self.dir)?;
            Ok(made)
        };
        created().inspect_err(|error: &io::Error| {
            if error.kind() != io::ErrorKind::AlreadyExists {
                // Best effort: recovery removes a segment without a head.
                let _ = std::fs::remove_file(&path);
            }
        })
    }

    /// Opens a segment to append to it.
    pub(super) fn open(&self, number: u32) -> io::Result<SegmentFile> {
        self.faults.open()?;
        let path = segment::path(&self.dir, number);
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(SegmentFile { number, file, faults: self.faults.clone() })
    }

    /// Removes a segment's file. When this returns, a power cut does not bring it back; so also of one
    /// that is gone already, for it may be gone from memory only.
    pub(super) fn remove(&self, number: u32) -> io::Result<()> {
        self.faults.remove()?;
        match std::fs::remove_file(segment::path(&self.dir, number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.faults.sync_directory()?;
        sync_directory(&self.dir)
    }
}

impl SegmentFile {
    /// The file's length.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// The open file, to read from it.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Reads all of `buffer`.
    pub(super) fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.faults.read(self.number, at..at + buffer.len() as u64)?;
        self.file.read_exact_at(buffer, at)
    }

    /// Writes all slices at `offset`; on failure says how many bytes were written.
    pub(super) fn append(
        &self,
        offset: u64,
        mut slices: &mut [IoSlice<'_>],
    ) -> Result<(), (u64, io::Error)> {
        let mut written = 0;
        // Empty slices would end the loop with a write of nothing.
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let result = self.faults.write().and_then(|most| {
                let at = offset + written;
                Ok(match fitting(slices, most) {
                    // One slice alone is too long: a part of it.
                    0 => rustix::io::pwrite(&self.file, &slices[0][..most], at)?,
                    count => rustix::io::pwritev(&self.file, &slices[..count], at)?,
                })
            });
            match result {
                Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    written += count as u64;
                    self.faults.written(count);
                    IoSlice::advance_slices(&mut slices, count);
                }
                Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
                Err(error) => return Err((written, error)),
            }
        }
        Ok(())
    }

    /// Makes what was appended durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.faults.sync()?;
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    /// Cuts the file off.
    pub(super) fn cut(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
}

/// How many of the slices make one write of at most so many bytes.
fn fitting(slices: &[IoSlice<'_>], most: usize) -> usize {
    let mut bytes = 0;
    let fits = |slice: &&IoSlice<'_>| {
        bytes += slice.len();
        bytes <= most
    };
    slices.iter().take(SLICES_MAX).take_while(fits).count()
}

/// Failures that a test asks for. In a program that is not a test there are none.
#[cfg(not(test))]
#[derive(Debug, Clone)]
pub(super) struct Faults;

#[cfg(not(test))]
#[allow(clippy::unused_self)]
impl Faults {
    pub(super) fn none() -> Self {
        Self
    }
    fn create(&self) -> io::Result<()> {
        Ok(())
    }
    fn open(&self) -> io::Result<()> {
        Ok(())
    }
    fn read(&self, _segment: u32, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }
    fn write(&self) -> io::Result<usize> {
        Ok(WRITE_BYTES_MAX)
    }
    fn written(&self, _bytes: usize) {}
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self) -> io::Result<()> {
        Ok(())
    }
    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Failures that a test asks for: how many of the next calls fail, and with what.
#[cfg(test)]
#[derive(Debug, Clone, Default)]
pub(super) struct Faults(std::sync::Arc<std::sync::Mutex<Planned>>);

#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Planned {
    pub(super) creates: usize,
    pub(super) opens: usize,
    /// Of segments, when the store is opened or compacts.
    pub(super) reads: usize,
    /// Bytes of a segment that cannot be read as long as this is planned.
    pub(super) unreadable: Option<(u32, Range<u64>)>,
    pub(super) writes: usize,
    pub(super) syncs: usize,
    pub(super) removes: usize,
    /// Writes that do not fail, but panic.
    pub(super) panics: usize,
    /// Of the directory, after a removal.
    pub(super) directory_syncs: usize,
    /// Bytes that can be written before the disk is full; none: there is room.
    pub(super) room: Option<usize>,
}

#[cfg(test)]
impl Faults {
    pub(super) fn none() -> Self {
        Self::default()
    }

    pub(super) fn plan(&self, planned: Planned) {
        *self.0.lock().expect("no test panics inside") = planned;
    }

    fn next(&self, counter: fn(&mut Planned) -> &mut usize) -> io::Result<()> {
        let mut planned = self.0.lock().expect("no test panics inside");
        let left = counter(&mut planned);
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        Err(Errno::IO.into())
    }

    fn create(&self) -> io::Result<()> {
        self.next(|planned| &mut planned.creates)
    }

    fn open(&self) -> io::Result<()> {
        self.next(|planned| &mut planned.opens)
    }

    fn read(&self, segment: u32, range: Range<u64>) -> io::Result<()> {
        self.next(|planned| &mut planned.reads)?;
        let planned = self.0.lock().expect("no test panics inside");
        match &planned.unreadable {
            Some((number, bad))
                if *number == segment && range.start < bad.end && bad.start < range.end =>
            {
                Err(Errno::IO.into())
            }
            _ => Ok(()),
        }
    }

    /// How many bytes the next write may have.
    fn write(&self) -> io::Result<usize> {
        self.next(|planned| &mut planned.panics).expect("no panic is planned");
        self.next(|planned| &mut planned.writes)?;
        match self.0.lock().expect("no test panics inside").room {
            None => Ok(WRITE_BYTES_MAX),
            Some(0) => Err(Errno::NOSPC.into()),
            Some(room) => Ok(room.min(WRITE_BYTES_MAX)),
        }
    }

    fn written(&self, bytes: usize) {
        if let Some(room) = &mut self.0.lock().expect("no test panics inside").room {
            *room -= bytes;
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.next(|planned| &mut planned.syncs)
    }

    fn remove(&self) -> io::Result<()> {
        self.next(|planned| &mut planned.removes)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.next(|planned| &mut planned.directory_syncs)
    }
}
