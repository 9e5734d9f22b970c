//! One file of a restore: written in order, with marks from which it can be gone on with.
//!
//! Owns the part beside the content and its marks. Knows no tree. The one idea: a file appears in its
//! place complete, with its mode and time, or not at all.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Metadata, RestoreError, at, place::Place, set_mode_and_time};
use crate::buffers::{BLOCK_BYTES, DIRECT_BYTES_MIN};

/// Bytes between two marks of a long file, at least. A mark costs a flush of the disk, which runs beside
/// the writing; an interrupted restore reads again at most this much of each open file, or what
/// [`MARK_EVERY`] brought.
const MARK_BYTES: u64 = 128 << 20;

/// Time between two marks, at least: over a fast network a flush for every 128 MiB slows down what it
/// would save a part of a second of.
const MARK_EVERY: Duration = Duration::from_secs(5);

/// Bytes of one write, at most: longer ones make the page cache of ext4 (Linux 6.18) take pages of 2 MiB and
/// more, several times slower.
const WRITE_BYTES: usize = 1 << 20;

/// One file that is being written in order.
#[derive(Debug)]
pub struct RestoredFile {
    /// The place is locked until nothing is written to it any more.
    place: Arc<Place>,
    file: File,
    part: PathBuf,
    mark: PathBuf,
    path: PathBuf,
    metadata: Metadata,
    offset: u64,
    next_mark: u64,
    /// When the last mark was set, or this began.
    marked_at: Instant,
    /// A flush that runs beside the writing.
    pub(super) marking: Option<JoinHandle<()>>,
    /// Whether the file system was not seen to refuse to write past the page cache.
    direct: bool,
}

impl RestoredFile {
    pub(super) fn open(
        place: Arc<Place>,
        relative: &Path,
        path: PathBuf,
        metadata: Metadata,
    ) -> Result<Self, RestoreError> {
        let id = blake3::hash(relative.as_os_str().as_bytes()).to_hex();
        let part = place.parts().join(&id.as_str()[..32]);
        let mark = part.with_extension("mark");
        let offset = if place.resumed() { marked(&mark, &part) } else { 0 };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&part)
            .map_err(at(&part))?;
        // What lies beyond the mark may not be what was written.
        file.set_len(offset).map_err(at(&part))?;
        io::Seek::seek(&mut &file, io::SeekFrom::Start(offset)).map_err(at(&part))?;
        Ok(Self {
            place,
            file,
            part,
            mark,
            path,
            metadata,
            offset,
            next_mark: offset + MARK_BYTES,
            marked_at: Instant::now(),
            marking: None,
            direct: true,
        })
    }

    /// How many bytes are there: where to go on.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let direct = self.write_directly(bytes).map_err(at(&self.part))?;
        for piece in bytes[direct..].chunks(WRITE_BYTES) {
            self.file.write_all(piece).map_err(at(&self.part))?;
        }
        self.offset += bytes.len() as u64;
        if self.offset >= self.next_mark && self.marked_at.elapsed() >= MARK_EVERY {
            self.set_mark();
        }
        Ok(())
    }

    /// Appends the whole blocks of many bytes past the page cache, and tells how many bytes that were: none
    /// where it cannot be done. Through the page cache a large restore costs a copy, and pushes out of
    /// memory what others use.
    fn write_directly(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let whole = bytes.len() / BLOCK_BYTES * BLOCK_BYTES;
        let aligned = bytes.as_ptr().align_offset(BLOCK_BYTES) == 0
            && self.offset.is_multiple_of(BLOCK_BYTES as u64);
        if !self.direct || whole < DIRECT_BYTES_MIN || !aligned {
            return Ok(0);
        }
        if past_the_cache(&self.file, true).is_err() {
            self.direct = false;
            return Ok(0);
        }
        let mut written = 0;
        let result = loop {
            match self.file.write(&bytes[written..whole]) {
                Ok(count) => {
                    written += count;
                    // What was cut short is no whole number of blocks: the rest goes the other way.
                    if written == whole || count == 0 || !count.is_multiple_of(BLOCK_BYTES) {
                        break Ok(written);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Its blocks are larger, say.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.direct = false;
                    break Ok(written);
                }
                Err(error) => break Err(error),
            }
        };
        past_the_cache(&self.file, false)?;
        result
    }

    /// Appends zeros that take no space.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn hole(&mut self, bytes: u64) -> Result<(), RestoreError> {
        self.offset += bytes;
        self.file.set_len(self.offset).map_err(at(&self.part))?;
        io::Seek::seek(&mut self.file, io::SeekFrom::Start(self.offset)).map_err(at(&self.part))?;
        Ok(())
    }

    /// Starts to flush what was written and to note how much that is, unless a flush is under way.
    /// A mark that cannot be written costs only time after an interruption.
    pub(super) fn set_mark(&mut self) {
        if self.marking.as_ref().is_some_and(|marking| !marking.is_finished()) {
            return;
        }
        let (Ok(file), mark, offset) = (self.file.try_clone(), self.mark.clone(), self.offset)
        else {
            return;
        };
        self.next_mark = offset + MARK_BYTES;
        self.marked_at = Instant::now();
        let place = self.place.clone();
        self.marking = Some(std::thread::spawn(move || {
            let _locked = place;
            if file.sync_data().is_ok() {
                let fresh = mark.with_extension("new");
                if fs::write(&fresh, offset.to_string()).is_ok() {
                    let _ = fs::rename(fresh, mark);
                }
            }
        }));
    }

    /// Puts the complete file in its place.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn finish(mut self) -> Result<(), RestoreError> {
        if let Some(marking) = self.marking.take() {
            let _ = marking.join();
        }
        let set = set_mode_and_time(&self.file, &self.metadata);
        self.place.kept(set).map_err(at(&self.part))?;
        if self.place.flushes() {
            self.file.sync_all().map_err(at(&self.part))?;
        }
        let number = self.file.metadata().map_err(at(&self.part))?.ino();
        self.place.put(&self.part, number, &self.path)?;
        if let Err(error) = fs::remove_file(&self.mark)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(at(&self.mark)(error));
        }
        Ok(())
    }
}

/// Has what is written to an open file go past the page cache, or through it again.
#[cfg(target_os = "linux")]
fn past_the_cache(file: &File, past: bool) -> io::Result<()> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, past);
    Ok(fcntl_setfl(file, flags)?)
}

/// Other systems have other ways, which nobody has tried here.
#[cfg(not(target_os = "linux"))]
fn past_the_cache(_: &File, past: bool) -> io::Result<()> {
    if past { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
}

/// The bytes of a part that are known to be on disk.
fn marked(mark: &Path, part: &Path) -> u64 {
    let length = fs::metadata(part).map_or(0, |metadata| metadata.len());
    fs::read_to_string(mark)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .filter(|&offset| offset <= length)
        .unwrap_or(0)
}
