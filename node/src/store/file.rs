//! Segment files as the store uses them, on whatever device they lie.
//!
//! Owns creating, reading, appending, syncing and cutting a segment file, each in one place, so that tests
//! can make each one fail. Decides nothing about failures: it says how far a write came.

use std::{
    io::{self, IoSlice},
    ops::Range,
    sync::Arc,
};

use rustix::io::Errno;

use super::{
    device::{Device, DeviceFile},
    segment::{self, StoreId},
};

/// Bytes of one pwritev, at most. Larger writes make the page cache of ext4 (Linux 6.18) take pages
/// of 2 MiB and more, six times slower: 8 MiB in one call took 15 to 24 ms, in 1 MiB calls 2.5 ms.
const WRITE_BYTES_MAX: usize = 1 << 20;

/// Slices of one pwritev, at most (IOV_MAX of Linux).
const SLICES_MAX: usize = 1024;

/// A segment that is written to.
pub(super) struct SegmentFile {
    pub(super) number: u32,
    file: Box<dyn DeviceFile>,
    faults: Faults,
}

/// Where the segments are.
#[derive(Clone)]
pub(super) struct Segments {
    pub(super) device: Arc<dyn Device>,
    pub(super) store: StoreId,
    pub(super) faults: Faults,
}

/// The disk has no room: ENOSPC or EDQUOT.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Segments {
    /// Makes a segment with nothing but its head. When this returns, the file and its name are on
    /// the disk; when it fails, there is no file.
    pub(super) fn create(&self, number: u32) -> io::Result<SegmentFile> {
        let created = || {
            self.faults.create()?;
            let file = self.device.create(number)?;
            let made = SegmentFile { number, file, faults: self.faults.clone() };
            let head = segment::segment_head(self.store, number);
            made.append(0, &mut [IoSlice::new(&head)]).map_err(|(_, error)| error)?;
            made.file.sync_all()?;
            self.device.sync_names()?;
            Ok(made)
        };
        created().inspect_err(|error: &io::Error| {
            if error.kind() != io::ErrorKind::AlreadyExists {
                // Best effort: recovery removes a segment without a head.
                let _ = self.device.remove(number);
            }
        })
    }

    /// Opens a segment to append to it.
    pub(super) fn open(&self, number: u32) -> io::Result<SegmentFile> {
        self.faults.open()?;
        let file = self.device.open(number)?;
        Ok(SegmentFile { number, file, faults: self.faults.clone() })
    }

    /// Removes a segment's file. When this returns, a power cut does not bring it back; so also of one
    /// that is gone already, for it may be gone from memory only.
    pub(super) fn remove(&self, number: u32) -> io::Result<()> {
        self.faults.remove()?;
        match self.device.remove(number) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.faults.sync_directory()?;
        self.device.sync_names()
    }

    /// The segments in order of number, with their sizes.
    pub(super) fn list(&self) -> io::Result<Vec<(u32, u64)>> {
        self.device.list()
    }

    /// Makes durable which segments there are.
    pub(super) fn sync_names(&self) -> io::Result<()> {
        self.device.sync_names()
    }

    /// Bytes that the file system has free for us.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        self.device.free_bytes()
    }
}

impl SegmentFile {
    /// The file's length.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    /// The open file, to read from it.
    pub(super) fn file(&self) -> &dyn DeviceFile {
        &*self.file
    }

    /// Reads all of `buffer`.
    pub(super) fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.faults.read(self.number, at..at + buffer.len() as u64)?;
        self.file.read(buffer, at)
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
                match fitting(slices, most) {
                    // One slice alone is too long: a part of it.
                    0 => self.file.write(at, &[IoSlice::new(&slices[0][..most])]),
                    count => self.file.write(at, &slices[..count]),
                }
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
        self.file.sync()
    }

    /// Cuts the file off.
    pub(super) fn cut(&self, bytes: u64) -> io::Result<()> {
        self.file.cut(bytes)
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
pub(super) struct Faults(Arc<std::sync::Mutex<Planned>>);

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
