//! Writing a tree back to the file system, all of it or resumably some of it.
//!
//! Everything is written beside the destination, in `DEST.copse-partial`, and renamed to DEST when
//! complete: a destination that exists is complete. An interrupted restore goes on where it was. For a
//! name too long to be made longer it is a hash of the name, `HASH.copse-partial`.
//!
//! ```text
//! DEST.copse-partial/
//!   lock            locked while somebody fills this
//!   source          which capability this is part of
//!   boot            in which boot of the system its files were completed
//!   content         becomes DEST
//!   parts/ID        a file that is being written; ID = hash of its path
//!   parts/ID.mark   how many of its bytes are safely on disk
//! ```
//!
//! It must be the caller's alone, or nothing is written there. After a power cut only what is marked is
//! believed to be on disk.
//!
//! Whoever made the tree chose its names and where its links lead. Nothing is written through a link,
//! and where the file system takes two names for one (`A` and `a`), the second is refused: it would be
//! written over the first, or through it to wherever it leads.
//!
//! Set-user-id and set-group-id bits are not restored: whoever handed out the capability would
//! choose a program that runs with the rights of whoever restores it.

mod boot;
mod file;
mod made;
mod own;
mod place;

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::OsStringExt as _,
            fs::{DirBuilderExt as _, PermissionsExt as _},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, RawMode, Timespec, Timestamps},
    io::Errno,
};

pub use self::file::RestoredFile;
use self::place::Place;
use super::Metadata;

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
    /// Others can get at what is restored here.
    #[error(
        "{} is not yours alone: others could read or change what is restored; remove it, or take their \
         access away (chmod 700) if you made it, or name another destination",
        .0.display()
    )]
    NotOwn(PathBuf),
    /// Another restore is under way here.
    #[error("another get is filling {}; wait for it or stop it", .0.display())]
    Busy(PathBuf),
    /// Another entry of the tree is there already, under a name that is the same here.
    #[error(
        "{}: the file system takes two names for one, and what has the other name is there already; \
         restore it to a file system that tells upper from lower case",
        .0.display()
    )]
    TwoNames(PathBuf),
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

impl RestoreError {
    /// Whether the destination cannot hold this one entry, so that others may well be restored: a name
    /// too long or not allowed, no links, no files so large. Not so when nothing can be written.
    pub fn is_of_one_entry(&self) -> bool {
        match self {
            Self::TwoNames(_) => true,
            Self::Io { source, .. } => match source.raw_os_error() {
                Some(code) => !OF_ALL_ENTRIES.contains(&Errno::from_raw_os_error(code)),
                // What the library does not even ask the system for: a length over 2^63.
                None => source.kind() == io::ErrorKind::InvalidInput,
            },
            Self::Exists(_)
            | Self::OtherPartial(_)
            | Self::NotOwn(_)
            | Self::Busy(_)
            | Self::Stopped(_) => false,
        }
    }
}

/// Errors that the next entry would meet, too: a full, broken or vanished disk, a process without
/// memory or descriptors.
const OF_ALL_ENTRIES: [Errno; 11] = [
    Errno::NOSPC,
    Errno::DQUOT,
    Errno::ROFS,
    Errno::IO,
    Errno::NODEV,
    Errno::NXIO,
    Errno::STALE,
    Errno::NOTCONN,
    Errno::NOMEM,
    Errno::MFILE,
    Errno::NFILE,
];

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

/// A destination that is being filled, by nobody else: as long as this or a file of it lives, another
/// [`Restore::begin`] at the same place is refused, in whatever process.
#[derive(Debug)]
pub struct Restore {
    destination: PathBuf,
    place: Arc<Place>,
}

impl Restore {
    /// Starts, or goes on with, writing to `destination`. `source` names what is restored: only
    /// the same source goes on.
    ///
    /// # Errors
    /// When the destination exists, or a part of another source is in its place, or another restore
    /// is filling it.
    pub fn begin(destination: &Path, source: &str) -> Result<Self, RestoreError> {
        let place = Place::open(destination, source)?;
        Ok(Self { destination: destination.to_owned(), place: Arc::new(place) })
    }

    /// Whether parts of it were there already.
    pub fn resumed(&self) -> bool {
        self.place.resumed()
    }

    /// Where an entry with this path relative to the root is written; the root's is empty.
    fn path(&self, relative: &Path) -> PathBuf {
        let content = self.place.content();
        if relative.as_os_str().is_empty() { content } else { content.join(relative) }
    }

    /// Makes a directory. Its mode and time are set by [`Restore::set_directories`], after its contents.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn directory(&self, relative: &Path) -> Result<(), RestoreError> {
        let path = self.path(relative);
        let mut made = self.place.made();
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                made.claim(&path, fs::Metadata::is_dir)?;
                // A try that had come to the end left the mode that it shall have. It is no link, and
                // nothing else is put in its place.
                make_own(&path)
            }
            result => {
                result.map_err(at(&path))?;
                made.add(&path)
            }
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
        let mut made = self.place.made();
        match std::os::unix::fs::symlink(&target, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                made.claim(&path, |_| fs::read_link(&path).is_ok_and(|found| found == target))?;
            }
            result => {
                result.map_err(at(&path))?;
                made.add(&path)?;
            }
        }
        drop(made);
        self.place.kept(set_link_time(&path, metadata)).map_err(at(&path))
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
        if self.resumed() && is_complete(&path, metadata) {
            self.place.made().claim(&path, fs::Metadata::is_file)?;
            return Ok(None);
        }
        RestoredFile::open(self.place.clone(), relative, path, *metadata).map(Some)
    }

    /// Where what was restored lies until it is complete; `None` when that is nothing, or a directory
    /// with nothing in it.
    pub fn content(&self) -> Option<PathBuf> {
        let content = self.place.content();
        let found = content.symlink_metadata().ok()?;
        let empty = || fs::read_dir(&content).is_ok_and(|mut entries| entries.next().is_none());
        if found.is_dir() && empty() { None } else { Some(content) }
    }

    /// Sets the modes and times of directories (given with paths relative to the root, each before
    /// its contents) when all is in them. The root's are left to [`Restore::finish`]. Returns those of
    /// which they cannot be set.
    ///
    /// # Errors
    /// When nothing can be written any more.
    pub fn set_directories(
        &self,
        directories: &[(PathBuf, Metadata)],
    ) -> Result<Vec<(PathBuf, RestoreError)>, RestoreError> {
        let mut failed = Vec::new();
        for (relative, metadata) in directories.iter().rev() {
            if relative.as_os_str().is_empty() {
                continue;
            }
            let path = self.path(relative);
            let set = open_directory(&path).and_then(|directory| {
                self.place.kept(set_mode_and_time(&directory, metadata)).map_err(at(&path))
            });
            match set {
                Err(error) if error.is_of_one_entry() => failed.push((relative.clone(), error)),
                result => result?,
            }
        }
        Ok(failed)
    }

    /// Puts everything in its place. `root` is what a root that is a directory shall look like. Returns how
    /// many entries are without their mode or time, since the file system takes none.
    ///
    /// # Errors
    /// When the system refuses; then all is still beside the destination.
    pub fn finish(self, root: Option<&Metadata>) -> Result<u64, RestoreError> {
        // A directory that cannot be written to cannot be moved, for its ".." changes: its mode is set
        // behind the move, through what was opened before.
        let directory = match root {
            Some(metadata) => Some((open_directory(&self.place.content())?, metadata)),
            None => None,
        };
        let flushed = self.place.flush()?;
        self.place.put_content(&self.destination, flushed)?;
        if let Some((directory, metadata)) = directory {
            let set = set_mode_and_time(&directory, metadata);
            self.place.kept(set).map_err(at(&self.destination))?;
        }
        self.place.remove()?;
        Ok(self.place.unkept())
    }
}

/// Gives a directory the mode that it has while it is filled.
fn make_own(path: &Path) -> Result<(), RestoreError> {
    match fs::set_permissions(path, fs::Permissions::from_mode(0o700)) {
        // Counted when its own mode is set.
        Err(error) if place::takes_none(&error) => Ok(()),
        set => set.map_err(at(path)),
    }
}

/// A complete file has its time: it is set last, before the file is moved to its place.
fn is_complete(path: &Path, metadata: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    path.symlink_metadata().is_ok_and(|found| {
        found.is_file()
            && metadata.mtime_seconds != boot::UNSURE_SECONDS
            && found.size() == metadata.size
            && found.mtime() == metadata.mtime_seconds
            && found.mtime_nsec() == i64::from(metadata.mtime_nanos)
    })
}

/// Opens a directory to change it, never through a link.
fn open_directory(path: &Path) -> Result<OwnedFd, RestoreError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| at(path)(error.into()))
}

fn set_mode(file: impl AsFd, mode: u32) -> io::Result<()> {
    // The type of the bits differs by system, their values do not.
    let mode = Mode::from_bits_truncate((mode & MODE_BITS) as RawMode);
    Ok(rustix::fs::fchmod(file, mode)?)
}

fn set_mode_and_time(file: impl AsFd, metadata: &Metadata) -> io::Result<()> {
    // One may be taken and the other not.
    let mode = set_mode(&file, metadata.mode);
    rustix::fs::futimens(file, &times(metadata))?;
    mode
}

fn set_link_time(path: &Path, metadata: &Metadata) -> io::Result<()> {
    Ok(rustix::fs::utimensat(CWD, path, &times(metadata), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(metadata: &Metadata) -> Timestamps {
    let time = Timespec { tv_sec: metadata.mtime_seconds, tv_nsec: metadata.mtime_nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests;
