//! Segments as files in a directory: the system calls, each in one place.
//!
//! Owns no decision: what the system says is given back. Its simulated twin is `simulated`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use bytes::Bytes;
use rustix::{fs::Advice, io::Errno};

use super::{
    device::{Device, DeviceFile},
    segment,
};

/// A directory with segments in it.
pub(super) struct Directory {
    dir: PathBuf,
}

impl Directory {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }
}

/// Makes names in a directory durable.
pub(super) fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Device for Directory {
    fn create(&self, number: u32) -> io::Result<Box<dyn DeviceFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(segment::path(&self.dir, number))?;
        Ok(Box::new(file))
    }

    fn open(&self, number: u32) -> io::Result<Box<dyn DeviceFile>> {
        let path = segment::path(&self.dir, number);
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn open_to_read(&self, number: u32) -> io::Result<Box<dyn DeviceFile>> {
        Ok(Box::new(File::open(segment::path(&self.dir, number))?))
    }

    fn remove(&self, number: u32) -> io::Result<()> {
        fs::remove_file(segment::path(&self.dir, number))
    }

    fn sync_names(&self) -> io::Result<()> {
        sync_directory(&self.dir)
    }

    fn list(&self) -> io::Result<Vec<(u32, u64)>> {
        let mut found = Vec::new();
        for file in fs::read_dir(&self.dir)? {
            let file = file?;
            match file.file_name().to_str().and_then(segment::number_of) {
                Some(number) => found.push((number, file.metadata()?.len())),
                None => tracing::warn!(file = ?file.path(), "not a segment: left alone"),
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl DeviceFile for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(buffer, at)
    }

    fn read_exact(&self, at: u64, bytes: usize) -> io::Result<Option<Bytes>> {
        let mut buffer = Vec::with_capacity(bytes);
        while buffer.len() < bytes {
            let offset = at + buffer.len() as u64;
            // The capacity may be larger than asked.
            let spare = rustix::buffer::spare_capacity(&mut buffer);
            match rustix::io::pread(self, spare, offset) {
                Ok(0) => return Ok(None),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        buffer.truncate(bytes);
        Ok(Some(buffer.into()))
    }

    fn write(&self, at: u64, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(match slices {
            [slice] => rustix::io::pwrite(self, slice, at)?,
            slices => rustix::io::pwritev(self, slices, at)?,
        })
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(self)?)
    }

    fn sync_all(&self) -> io::Result<()> {
        Self::sync_all(self)
    }

    fn cut(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn is_removed(&self) -> io::Result<bool> {
        Ok(self.metadata()?.nlink() == 0)
    }

    fn not_needed(&self, range: Range<u64>) {
        let length = std::num::NonZero::new(range.end - range.start);
        let _ = rustix::fs::fadvise(self, range.start, length, Advice::DontNeed);
    }

    fn rest(&self, how_long: Duration) {
        thread::sleep(how_long);
    }
}
