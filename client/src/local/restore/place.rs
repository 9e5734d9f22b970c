//! The directory beside a destination in which a restore is made: whose it is, and who fills it.
//!
//! Owns its names, the lock that keeps a second restore out, and its removal. Writes no content. The
//! one idea: whoever holds the lock of the file that is at its path has all of this for itself.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rustix::{
    fs::{CWD, FlockOperation, OFlags, RenameFlags},
    io::Errno,
};

use super::{RestoreError, at, boot, made::Made, own};

/// How often the lock is tried for when another restore ends at that moment and takes it away.
const LOCK_TRIES: usize = 16;

/// What a file system answers that keeps no modes or times.
const TAKES_NO_MODES: [Errno; 3] = [Errno::PERM, Errno::NOSYS, Errno::OPNOTSUPP];

/// `DEST.copse-partial`, locked as long as this lives.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    resumed: bool,
    boot: Option<String>,
    made: Mutex<Made>,
    /// Entries that are without their mode or time.
    unkept: AtomicU64,
    // Held, not used: the system takes the lock back when it is closed, however the program ends.
    _lock: Option<File>,
}

impl Place {
    /// Makes it, or goes on with what is there of the same source.
    pub(super) fn open(destination: &Path, source: &str) -> Result<Self, RestoreError> {
        free(destination)?;
        let directory = beside(destination);
        let lock = lock(&directory)?;
        let mut place = Self {
            directory,
            resumed: false,
            boot: boot::current(),
            made: Mutex::new(Made::Fresh),
            unkept: AtomicU64::new(0),
            _lock: lock,
        };
        let source_path = place.directory.join("source");
        let boot_path = place.directory.join(BOOT);
        let found = match fs::read_to_string(&source_path) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(at(&source_path)(error)),
        };
        // The restore that had the lock before may just have ended.
        if let Err(exists) = free(destination) {
            if found.is_none() && place.content().symlink_metadata().is_err() {
                place.remove()?;
            }
            return Err(exists);
        }
        match found {
            Some(found) if found == source => {
                boot::go_on(&boot_path, place.boot.as_deref(), &place.content())?;
                place.resumed = true;
                place.made = Mutex::new(Made::Resumed(HashSet::new()));
            }
            Some(_) => return Err(RestoreError::OtherPartial(place.directory)),
            None => {
                // Content that nobody says what it is of is not gone on with.
                if place.content().symlink_metadata().is_ok() {
                    return Err(RestoreError::OtherPartial(place.directory));
                }
                // Parts without it are of a restore that ended while it tidied up.
                match fs::remove_dir_all(place.parts()) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    result => result.map_err(at(&place.parts()))?,
                }
                boot::note(&boot_path, place.boot.as_deref())?;
                write_whole(&source_path, source).map_err(at(&source_path))?;
            }
        }
        let parts = place.parts();
        make_directory(&parts).map_err(at(&parts))?;
        Ok(place)
    }

    /// Whether parts of it were there already.
    pub(super) const fn resumed(&self) -> bool {
        self.resumed
    }

    /// Whether a file must be flushed before it gets its name: nobody will know whether the system went down.
    pub(super) const fn flushes(&self) -> bool {
        self.boot.is_none()
    }

    /// What was made in it; locked for one entry at a time.
    pub(super) fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the setting of a mode or a time went. A file system that takes none, as some of cameras, phones and
    /// programs, holds the content all the same: the entry is counted.
    pub(super) fn kept(&self, set: io::Result<()>) -> io::Result<()> {
        match set {
            Err(error) if takes_none(&error) => {
                self.unkept.fetch_add(1, Relaxed);
                Ok(())
            }
            set => set,
        }
    }

    /// How many entries are without their mode or time.
    pub(super) fn unkept(&self) -> u64 {
        self.unkept.load(Relaxed)
    }

    /// Moves a complete file from its part to its place. Only a file of an earlier try may be there.
    pub(super) fn put(&self, part: &Path, number: u64, path: &Path) -> Result<(), RestoreError> {
        // Noted first: another of the same name that finds it there must find it noted.
        self.made().add_number(number);
        match rustix::fs::renameat_with(CWD, part, CWD, path, RenameFlags::NOREPLACE) {
            Err(error) if error == Errno::EXIST || is_unsupported(error) => {}
            result => return result.map_err(|error| at(path)(error.into())),
        }
        // One at a time, for nothing else refuses to replace.
        let made = self.made();
        if path.symlink_metadata().is_ok_and(|found| made.has(&found) || !found.is_file()) {
            return Err(RestoreError::TwoNames(path.to_owned()));
        }
        fs::rename(part, path).map_err(at(path))
    }

    /// Brings all content to the disk: from now on a power cut takes nothing of it. When that fails, nobody
    /// knows what is there, and whoever goes on with it doubts all of it.
    pub(super) fn flush(&self) -> Result<Flushed, RestoreError> {
        // Where the boot is not known, each file was flushed before it got its name.
        #[cfg(target_os = "linux")]
        if !self.flushes() {
            let flushed = File::open(&self.directory)
                .and_then(|directory| rustix::fs::syncfs(directory).map_err(Into::into));
            if let Err(error) = flushed {
                boot::note(&self.directory.join(BOOT), None)?;
                return Err(at(&self.directory)(error));
            }
        }
        Ok(Flushed(()))
    }

    /// Moves the complete content to where nothing is yet, for good.
    pub(super) fn put_content(
        &self,
        destination: &Path,
        flushed: Flushed,
    ) -> Result<(), RestoreError> {
        self.move_content(destination)?;
        let Flushed(()) = flushed;
        // The name as well. Some file systems have no flush of a directory, and one that may be written and
        // not read cannot be opened for it: what is there is whole all the same.
        let parent = match destination.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let opened = match File::open(parent) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            opened => opened.map_err(at(parent))?,
        };
        match rustix::fs::fsync(&opened) {
            Err(error) if error == Errno::INVAL || is_unsupported(error) => Ok(()),
            result => result.map_err(|error| at(parent)(error.into())),
        }
    }

    fn move_content(&self, destination: &Path) -> Result<(), RestoreError> {
        let content = self.content();
        match rustix::fs::renameat_with(CWD, &content, CWD, destination, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => Err(RestoreError::Exists(destination.to_owned())),
            Err(error) if is_unsupported(error) => {
                free(destination)?;
                fs::rename(content, destination).map_err(at(destination))
            }
            result => result.map_err(|error| at(destination)(error.into())),
        }
    }

    /// What becomes the destination.
    pub(super) fn content(&self) -> PathBuf {
        self.directory.join("content")
    }

    /// The directory of files that are being written.
    pub(super) fn parts(&self) -> PathBuf {
        self.directory.join("parts")
    }

    /// Takes it away, the lock last: until then nobody else starts here. From then on another may, and
    /// then the directory is left to that one.
    pub(super) fn remove(&self) -> Result<(), RestoreError> {
        self.clear().map_err(at(&self.directory))
    }

    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name() == LOCK {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_file(self.directory.join(LOCK))?;
        match fs::remove_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// Says that all content is on the disk.
pub(super) struct Flushed(());

/// The file that says in which boot files were completed.
const BOOT: &str = "boot";

/// The file that is locked. It is made and removed, never replaced.
const LOCK: &str = "lock";

/// What the name of the directory ends in.
const ENDING: &str = ".copse-partial";

/// A name of more bytes is shortened. Names have 255 at most, 143 with eCryptfs.
const NAME_BYTES_MAX: usize = 143;

/// The directory for a destination: its name with an ending, or a hash of its name when that would be
/// longer than a name may be.
fn beside(destination: &Path) -> PathBuf {
    let mut name = destination.file_name().unwrap_or_default().to_owned();
    if name.len() + ENDING.len() > NAME_BYTES_MAX {
        name = blake3::hash(name.as_bytes()).to_hex()[..32].into();
    }
    name.push(ENDING);
    destination.with_file_name(name)
}

/// Makes sure that a destination is not there.
fn free(destination: &Path) -> Result<(), RestoreError> {
    match destination.symlink_metadata() {
        Ok(_) => Err(RestoreError::Exists(destination.to_owned())),
        Err(_) => Ok(()),
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes the directory and takes its lock; none where the file system has no locks, as some network
/// and FUSE file systems: there two restores at once are not noticed.
fn lock(directory: &Path) -> Result<Option<File>, RestoreError> {
    let path = directory.join(LOCK);
    let mut refused = RestoreError::Busy(directory.to_owned());
    for _ in 0..LOCK_TRIES {
        let opened = make_directory(directory)
            .map_err(at(directory))
            .and_then(|()| own::check(directory))
            .and_then(|()| open(&path).map_err(at(&path)));
        let file = match opened {
            Ok(file) => file,
            Err(error @ RestoreError::NotOwn(_)) => return Err(error),
            // It may be that another restore takes the directory away at this moment.
            Err(error) => {
                refused = error;
                continue;
            }
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(RestoreError::Busy(directory.to_owned())),
            Err(error) if error == Errno::NOLCK || is_unsupported(error) => return Ok(None),
            Err(error) => return Err(at(&path)(error.into())),
        }
        // Was it removed between being opened and being locked, the lock keeps nobody out.
        let ours = file.metadata().map_err(at(&path))?;
        if path.symlink_metadata().is_ok_and(|found| is_same(&found, &ours)) {
            return Ok(Some(file));
        }
    }
    Err(refused)
}

/// Opens the lock, never what a link leads to.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    File::options().create(true).truncate(false).write(true).custom_flags(flags).open(path)
}

/// Whether a file system or a system cannot do what was asked at all.
fn is_unsupported(error: Errno) -> bool {
    [Errno::INVAL, Errno::NOSYS, Errno::NOTSUP, Errno::OPNOTSUPP].contains(&error)
}

/// Whether the file system keeps no modes or times.
pub(super) fn takes_none(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    code.is_some_and(|code| TAKES_NO_MODES.contains(&code))
}

/// Writes a file that is there with all of its bytes or not at all, also when the disk is full: half of a
/// source would be taken for another one for ever. What a link leads to is left alone.
pub(super) fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let mut file =
        File::options().create(true).truncate(true).write(true).custom_flags(flags).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(fresh, path)
}

fn is_same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}
