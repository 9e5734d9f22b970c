//! Writing a tree back to the file system, all of it or resumably some of it.
//!
//! Everything is written beside the destination, in `DEST.copse-partial`, and renamed to DEST when
//! complete: a destination that exists is complete. An interrupted restore goes on where it was.
//!
//! ```text
//! DEST.copse-partial/
//!   source          which capability this is part of
//!   content         becomes DEST
//!   parts/ID        a file that is being written; ID = hash of its path
//!   parts/ID.mark   how many of its bytes are safely on disk
//! ```
//!
//! Set-user-id and set-group-id bits are not restored: whoever handed out the capability would
//! choose a program that runs with the rights of whoever restores it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::Metadata;

/// Bytes between two marks of a long file, at least. A mark costs a flush of the disk, which runs beside
/// the writing; an interrupted restore reads again at most this much of each open file, or what
/// [`MARK_EVERY`] brought.
const MARK_BYTES: u64 = 128 << 20;

/// Time between two marks, at least: over a fast network a flush for every 128 MiB slows down what it
/// would save a part of a second of.
const MARK_EVERY: Duration = Duration::from_secs(5);

/// Mode bits that are restored: permissions and sticky.
const MODE_BITS: u32 = 0o1777;

/// Why a tree could not be written back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// DEST is there.
    #[error("{} exists; name another destination or remove it first", .0.display())]
    Exists(PathBuf),
    /// Another restore was interrupted here.
    #[error(
        "{} holds a part of something else; finish that with its own capability or remove it",
        .0.display()
    )]
    OtherPartial(PathBuf),
    /// The system refused.
    #[error("cannot write {}: {source}{}", path.display(), advice(source))]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The thread that wrote is gone: the program is shutting down.
    #[error("writing was stopped ({0}); run the same command again to go on")]
    Stopped(String),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room and run the same command again: it goes on where it was"
        }
        _ => "",
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RestoreError + '_ {
    move |source| RestoreError::Io { path: path.to_owned(), source }
}

/// A destination that is being filled.
#[derive(Debug)]
pub struct Restore {
    destination: PathBuf,
    partial: PathBuf,
    resumed: bool,
}

impl Restore {
    /// Starts, or goes on with, writing to `destination`. `source` names what is restored: only
    /// the same source goes on.
    ///
    /// # Errors
    /// When the destination exists, or a part of another source is in its place.
    pub fn begin(destination: &Path, source: &str) -> Result<Self, RestoreError> {
        if destination.symlink_metadata().is_ok() {
            return Err(RestoreError::Exists(destination.to_owned()));
        }
        let mut name = destination.as_os_str().to_owned();
        name.push(".copse-partial");
        let partial = PathBuf::from(name);
        let source_path = partial.join("source");
        let resumed = match fs::read_to_string(&source_path) {
            Ok(found) if found == source => true,
            Ok(_) => return Err(RestoreError::OtherPartial(partial)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(at(&source_path)(error)),
        };
        let parts = partial.join("parts");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&parts).map_err(at(&parts))?;
        if !resumed {
            fs::write(&source_path, source).map_err(at(&source_path))?;
        }
        Ok(Self { destination: destination.to_owned(), partial, resumed })
    }

    /// Whether parts of it were there already.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Where an entry with this path relative to the root is written; the root's is empty.
    fn path(&self, relative: &Path) -> PathBuf {
        let content = self.partial.join("content");
        if relative.as_os_str().is_empty() { content } else { content.join(relative) }
    }

    /// Makes a directory. Its mode and time are set by [`Restore::finish`], after its contents.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn directory(&self, relative: &Path) -> Result<(), RestoreError> {
        let path = self.path(relative);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result.map_err(at(&path)),
        }
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn symlink(
        &self,
        relative: &Path,
        target: &[u8],
        metadata: &Metadata,
    ) -> Result<(), RestoreError> {
        let path = self.path(relative);
        let target = PathBuf::from(std::ffi::OsString::from_vec(target.to_vec()));
        match std::os::unix::fs::symlink(target, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.map_err(at(&path))?,
        }
        set_time(&path, metadata)
    }

    /// Starts a file, or goes on with it; `None` when it is complete already.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn file(
        &self,
        relative: &Path,
        metadata: &Metadata,
    ) -> Result<Option<RestoredFile>, RestoreError> {
        let path = self.path(relative);
        if self.resumed && is_complete(&path, metadata) {
            return Ok(None);
        }
        let id = blake3::hash(relative.as_os_str().as_bytes()).to_hex();
        let part = self.partial.join("parts").join(&id.as_str()[..32]);
        let mark = part.with_extension("mark");
        let offset = if self.resumed { marked(&mark, &part) } else { 0 };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&part)
            .map_err(at(&part))?;
        // What lies beyond the mark may not be what was written.
        file.set_len(offset).map_err(at(&part))?;
        io::Seek::seek(&mut &file, io::SeekFrom::Start(offset)).map_err(at(&part))?;
        Ok(Some(RestoredFile {
            file,
            part,
            mark,
            path,
            metadata: *metadata,
            offset,
            next_mark: offset + MARK_BYTES,
            marked_at: Instant::now(),
            marking: None,
        }))
    }

    /// Sets the modes and times of directories (given with paths relative to the root, each before
    /// its contents) and puts everything in its place.
    ///
    /// # Errors
    /// When the system refuses; then all is still beside the destination.
    pub fn finish(self, directories: &[(PathBuf, Metadata)]) -> Result<(), RestoreError> {
        for (relative, metadata) in directories.iter().rev() {
            let path = self.path(relative);
            set_mode_and_time(&path, metadata)?;
        }
        let content = self.partial.join("content");
        // A directory without write permission cannot be moved (its ".." changes), so the root's
        // mode is set once more behind the move.
        let root = directories.iter().find(|(relative, _)| relative.as_os_str().is_empty());
        if root.is_some() {
            fs::set_permissions(&content, fs::Permissions::from_mode(0o700))
                .map_err(at(&content))?;
        }
        rustix::fs::renameat_with(
            CWD,
            &content,
            CWD,
            &self.destination,
            rustix::fs::RenameFlags::NOREPLACE,
        )
        .or_else(|error| match error {
            // Some file systems cannot refuse to replace.
            rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS => {
                rustix::fs::rename(&content, &self.destination)
            }
            error => Err(error),
        })
        .map_err(|error| match error {
            rustix::io::Errno::EXIST => RestoreError::Exists(self.destination.clone()),
            error => at(&self.destination)(error.into()),
        })?;
        if let Some((_, metadata)) = root {
            set_mode_and_time(&self.destination, metadata)?;
        }
        fs::remove_dir_all(&self.partial).map_err(at(&self.partial))
    }
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

/// A complete file has its time: it is set last, before the file is moved to its place.
fn is_complete(path: &Path, metadata: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    path.symlink_metadata().is_ok_and(|found| {
        found.is_file()
            && found.size() == metadata.size
            && found.mtime() == metadata.mtime_seconds
            && found.mtime_nsec() == i64::from(metadata.mtime_nanos)
    })
}

fn set_mode_and_time(path: &Path, metadata: &Metadata) -> Result<(), RestoreError> {
    fs::set_permissions(path, fs::Permissions::from_mode(metadata.mode & MODE_BITS))
        .map_err(at(path))?;
    set_time(path, metadata)
}

fn set_time(path: &Path, metadata: &Metadata) -> Result<(), RestoreError> {
    let time = Timespec { tv_sec: metadata.mtime_seconds, tv_nsec: metadata.mtime_nanos.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| at(path)(error.into()))
}

/// One file that is being written in order.
#[derive(Debug)]
pub struct RestoredFile {
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
    marking: Option<JoinHandle<()>>,
}

impl RestoredFile {
    /// How many bytes are there: where to go on.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.file.write_all(bytes).map_err(at(&self.part))?;
        self.offset += bytes.len() as u64;
        if self.offset >= self.next_mark && self.marked_at.elapsed() >= MARK_EVERY {
            self.set_mark();
        }
        Ok(())
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
    fn set_mark(&mut self) {
        if self.marking.as_ref().is_some_and(|marking| !marking.is_finished()) {
            return;
        }
        let (Ok(file), mark, offset) = (self.file.try_clone(), self.mark.clone(), self.offset)
        else {
            return;
        };
        self.next_mark = offset + MARK_BYTES;
        self.marked_at = Instant::now();
        self.marking = Some(std::thread::spawn(move || {
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
        set_mode_and_time(&self.part, &self.metadata)?;
        fs::rename(&self.part, &self.path).map_err(at(&self.path))?;
        if let Err(error) = fs::remove_file(&self.mark)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(at(&self.mark)(error));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn metadata(mode: u32, size: u64) -> Metadata {
        Metadata { mode, mtime_seconds: 1_000_000_007, mtime_nanos: 123_456_789, size }
    }

    #[test]
    fn a_tree_appears_whole_with_modes_and_times() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let destination = dir.path().join("out");
        let restore = Restore::begin(&destination, "cap").expect("a free place");
        let directories = vec![
            (PathBuf::new(), metadata(0o755, 0)),
            (PathBuf::from("locked"), metadata(0o500, 0)),
        ];
        for (path, _) in &directories {
            restore.directory(path).expect("made");
        }
        restore.symlink("link".as_ref(), b"nowhere", &metadata(0o777, 0)).expect("made");
        let mut file = restore
            .file("locked/f".as_ref(), &metadata(0o6640, 100_003))
            .expect("opened")
            .expect("not complete");
        file.write(b"abc").expect("written");
        file.hole(100_000).expect("written");
        file.finish().expect("finished");
        assert!(!destination.exists(), "the destination is there before it is complete");
        restore.finish(&directories).expect("finished");

        let found = fs::symlink_metadata(destination.join("locked/f")).expect("there");
        assert_eq!((found.mode() & 0o7777, found.size()), (0o640, 100_003));
        assert_eq!((found.mtime(), found.mtime_nsec()), (1_000_000_007, 123_456_789));
        for (path, mode) in [("", 0o755), ("locked", 0o500)] {
            let found = fs::metadata(destination.join(path)).expect("there");
            assert_eq!((found.mode() & 0o7777, found.mtime()), (mode, 1_000_000_007), "{path:?}");
        }
        let link = fs::symlink_metadata(destination.join("link")).expect("there");
        assert_eq!(link.mtime(), 1_000_000_007);
        assert!(!dir.path().join("out.copse-partial").exists());
        assert!(matches!(Restore::begin(&destination, "cap"), Err(RestoreError::Exists(_))));
    }

    #[test]
    fn an_interrupted_restore_goes_on_from_its_mark() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let destination = dir.path().join("out");
        let whole = metadata(0o644, 3);
        {
            let restore = Restore::begin(&destination, "cap").expect("a free place");
            restore.directory(Path::new("")).expect("made");
            let mut done = restore.file("done".as_ref(), &whole).expect("opened").expect("new");
            done.write(b"abc").expect("written");
            done.finish().expect("finished");
            let mut half = restore.file("half".as_ref(), &whole).expect("opened").expect("new");
            half.write(b"ab").expect("written");
            half.set_mark();
            half.marking.take().expect("started").join().expect("flushed");
            half.write(b"X").expect("written");
        }
        assert!(matches!(
            Restore::begin(&destination, "another"),
            Err(RestoreError::OtherPartial(_))
        ));
        let restore = Restore::begin(&destination, "cap").expect("the same source");
        assert!(restore.resumed());
        assert!(restore.file("done".as_ref(), &whole).expect("seen").is_none());
        let mut half = restore.file("half".as_ref(), &whole).expect("opened").expect("part");
        assert_eq!(half.offset(), 2);
        half.write(b"c").expect("written");
        half.finish().expect("finished");
        restore.finish(&[(PathBuf::new(), metadata(0o700, 0))]).expect("finished");
        assert_eq!(fs::read(destination.join("half")).expect("there"), b"abc");
        assert_eq!(fs::read(destination.join("done")).expect("there"), b"abc");
    }
}
