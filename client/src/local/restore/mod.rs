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
//!   content         becomes DEST
//!   parts/ID        a file that is being written; ID = hash of its path
//!   parts/ID.mark   how many of its bytes are safely on disk
//! ```
//!
//! Whoever made the tree chose its names and where its links lead. Nothing is written through a link,
//! and where the file system takes two names for one (`A` and `a`), the second is refused: it would be
//! written over the first, or through it to wherever it leads.
//!
//! Set-user-id and set-group-id bits are not restored: whoever handed out the capability would
//! choose a program that runs with the rights of whoever restores it.

mod file;
mod made;
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
            Self::Io { source, .. } => source
                .raw_os_error()
                .is_some_and(|code| !OF_ALL_ENTRIES.contains(&Errno::from_raw_os_error(code))),
            Self::Exists(_) | Self::OtherPartial(_) | Self::Busy(_) | Self::Stopped(_) => false,
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
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(at(&path))
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
        set_link_time(&path, metadata)
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
            let set = open_directory(&path)
                .and_then(|directory| set_mode_and_time(&directory, metadata).map_err(at(&path)));
            match set {
                Err(error) if error.is_of_one_entry() => failed.push((relative.clone(), error)),
                result => result?,
            }
        }
        Ok(failed)
    }

    /// Puts everything in its place. `root` is what a root that is a directory shall look like.
    ///
    /// # Errors
    /// When the system refuses; then all is still beside the destination.
    pub fn finish(self, root: Option<&Metadata>) -> Result<(), RestoreError> {
        // A directory that cannot be written to cannot be moved, for its ".." changes: its mode is set
        // behind the move, through what was opened before.
        let directory = match root {
            Some(metadata) => Some((open_directory(&self.place.content())?, metadata)),
            None => None,
        };
        self.place.put_content(&self.destination)?;
        if let Some((directory, metadata)) = directory {
            set_mode_and_time(&directory, metadata).map_err(at(&self.destination))?;
        }
        self.place.remove()
    }
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
    set_mode(&file, metadata.mode)?;
    Ok(rustix::fs::futimens(file, &times(metadata))?)
}

fn set_link_time(path: &Path, metadata: &Metadata) -> Result<(), RestoreError> {
    rustix::fs::utimensat(CWD, path, &times(metadata), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| at(path)(error.into()))
}

fn times(metadata: &Metadata) -> Timestamps {
    let time = Timespec { tv_sec: metadata.mtime_seconds, tv_nsec: metadata.mtime_nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::MetadataExt as _};

    use super::*;

    fn metadata(mode: u32, size: u64) -> Metadata {
        Metadata { mode, mtime_seconds: 1_000_000_007, mtime_nanos: 123_456_789, size }
    }

    fn finish(restore: Restore, directories: &[(PathBuf, Metadata)]) -> Result<(), RestoreError> {
        assert!(restore.set_directories(directories)?.is_empty());
        restore.finish(directories.first().map(|(_, root)| root))
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
        finish(restore, &directories).expect("finished");

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
        finish(restore, &[(PathBuf::new(), metadata(0o700, 0))]).expect("finished");
        assert_eq!(fs::read(destination.join("half")).expect("there"), b"abc");
        assert_eq!(fs::read(destination.join("done")).expect("there"), b"abc");
    }

    #[test]
    fn a_second_restore_into_the_same_place_is_refused_until_the_first_ends() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let destination = dir.path().join("out");
        let first = Restore::begin(&destination, "cap").expect("a free place");
        let file = first.file("".as_ref(), &metadata(0o644, 3)).expect("opened").expect("new");
        for source in ["cap", "another"] {
            let refused = Restore::begin(&destination, source);
            assert!(matches!(refused, Err(RestoreError::Busy(_))), "{refused:?}");
        }
        drop(first);
        let refused = Restore::begin(&destination, "cap");
        assert!(matches!(refused, Err(RestoreError::Busy(_))), "a file is being written");
        drop(file);
        assert!(Restore::begin(&destination, "cap").expect("free again").resumed());
    }

    #[test]
    fn of_many_restores_at_once_one_fills_the_destination_and_nothing_is_left_beside() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for round in 0..100 {
            let destination = dir.path().join(format!("{round}"));
            let restore = || -> Result<(), RestoreError> {
                loop {
                    match Restore::begin(&destination, "cap") {
                        Ok(restore) => {
                            let metadata = metadata(0o644, 3);
                            let file = restore.file("".as_ref(), &metadata)?;
                            let mut file = file.expect("nobody else restores it");
                            file.write(b"abc")?;
                            file.finish()?;
                            return restore.finish(None);
                        }
                        Err(RestoreError::Busy(_)) => std::thread::yield_now(),
                        Err(error) => return Err(error),
                    }
                }
            };
            let results: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(restore)).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            let won = results.iter().filter(|result| result.is_ok()).count();
            let late = results.iter().filter(|r| matches!(r, Err(RestoreError::Exists(_)))).count();
            assert_eq!((won, late), (1, 3), "{results:?}");
            assert_eq!(fs::read(&destination).expect("there"), b"abc");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 100, "no partial is left");
    }

    // The others have no /dev/full.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_disk_full_at_the_start_does_not_spoil_the_next_try() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let destination = dir.path().join("out");
        let partial = dir.path().join("out.copse-partial");
        fs::create_dir(&partial).expect("made");
        // Nothing can be written there: "no space left on device".
        std::os::unix::fs::symlink("/dev/full", partial.join("source.new")).expect("made");
        match Restore::begin(&destination, "cap") {
            Err(RestoreError::Io { source, .. }) => {
                assert_eq!(source.kind(), io::ErrorKind::StorageFull);
            }
            other => panic!("{other:?}"),
        }
        assert!(!partial.join("source").exists(), "a source that is not whole");
        fs::remove_file(partial.join("source.new")).expect("removed");
        // What the first try may have left of it.
        fs::write(partial.join("source.new"), "c").expect("written");
        assert!(!Restore::begin(&destination, "cap").expect("there is room").resumed());
        assert!(Restore::begin(&destination, "cap").expect("the same source").resumed());
    }

    #[test]
    fn content_of_an_unknown_source_is_left_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let content = dir.path().join("out.copse-partial/content");
        fs::create_dir_all(&content).expect("made");
        let refused = Restore::begin(&dir.path().join("out"), "cap");
        assert!(matches!(refused, Err(RestoreError::OtherPartial(_))), "{refused:?}");
        assert!(content.exists());
    }

    #[test]
    fn parts_of_an_unknown_source_are_not_gone_on_with() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let parts = dir.path().join("out.copse-partial/parts");
        fs::create_dir_all(&parts).expect("made");
        fs::write(parts.join("x.mark"), "3").expect("written");
        let restore = Restore::begin(&dir.path().join("out"), "cap").expect("a free place");
        assert!(!restore.resumed());
        assert_eq!(fs::read_dir(&parts).expect("lists").count(), 0);
    }

    #[test]
    fn a_name_as_long_as_names_may_be_is_restored_and_gone_on_with() {
        for length in [1, 129, 130, 241, 242, 255] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let destination = dir.path().join("x".repeat(length));
            let whole = metadata(0o644, 3);
            for resumed in [false, true] {
                let restore = Restore::begin(&destination, "cap").expect("a free place");
                assert_eq!(restore.resumed(), resumed);
                restore.directory(Path::new("")).expect("made");
                let name = "y".repeat(255);
                if let Some(mut file) = restore.file(name.as_ref(), &whole).expect("opened") {
                    assert!(!resumed);
                    file.write(b"abc").expect("written");
                    file.finish().expect("finished");
                }
                if resumed {
                    finish(restore, &[(PathBuf::new(), metadata(0o700, 0))]).expect("finished");
                }
            }
            let file = destination.join("y".repeat(255));
            assert_eq!(fs::read(file).expect("there"), b"abc", "{length}");
            assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1, "{length}");
        }
    }

    /// What a file system does that does not tell `A` from `a` is done here with one name twice.
    fn refused(result: Result<impl std::fmt::Debug, RestoreError>) {
        assert!(matches!(result, Err(RestoreError::TwoNames(_))), "{result:?}");
    }

    fn write(restore: &Restore, name: &str, content: &[u8]) -> Result<(), RestoreError> {
        let metadata = metadata(0o644, content.len() as u64);
        let Some(mut file) = restore.file(name.as_ref(), &metadata)? else { return Ok(()) };
        file.write(content)?;
        file.finish()
    }

    #[test]
    fn nothing_is_written_through_a_link_whose_name_is_the_same_here() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).expect("made");
        let target = outside.as_os_str().as_encoded_bytes();
        let link = metadata(0o777, 0);
        for resumed in [false, true] {
            let restore = Restore::begin(&dir.path().join("out"), "cap").expect("a free place");
            assert_eq!(restore.resumed(), resumed);
            restore.directory(Path::new("")).expect("made");
            restore.symlink("a".as_ref(), target, &link).expect("made");
            refused(restore.directory("a".as_ref()));
            refused(restore.symlink("a".as_ref(), b"elsewhere", &link));
            refused(restore.symlink("a".as_ref(), target, &link));
            refused(write(&restore, "a", b"content"));
        }
        assert_eq!(fs::read_dir(&outside).expect("lists").count(), 0);
    }

    #[test]
    fn of_two_names_that_are_the_same_here_the_second_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let link = metadata(0o777, 0);
        for resumed in [false, true] {
            let restore = Restore::begin(&dir.path().join("out"), "cap").expect("a free place");
            assert_eq!(restore.resumed(), resumed);
            restore.directory(Path::new("")).expect("made");
            restore.directory("a".as_ref()).expect("made");
            refused(restore.directory("a".as_ref()));
            refused(restore.symlink("a".as_ref(), b"x", &link));
            refused(write(&restore, "a", b"x"));
            write(&restore, "b", b"one").expect("written");
            refused(write(&restore, "b", b"one"));
            refused(write(&restore, "b", b"another"));
            refused(restore.directory("b".as_ref()));
            refused(restore.symlink("b".as_ref(), b"x", &link));
            assert_eq!(fs::read(restore.path("b".as_ref())).expect("there"), b"one");
        }
    }

    #[test]
    fn a_file_of_an_earlier_try_whose_time_was_not_kept_is_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for _ in 0..2 {
            let restore = Restore::begin(&dir.path().join("out"), "cap").expect("a free place");
            restore.directory(Path::new("")).expect("made");
            write(&restore, "b", b"one").expect("written");
            let file = File::options().write(true).open(restore.path("b".as_ref()));
            // As on a file system that keeps full seconds only.
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_007);
            file.expect("opened").set_modified(time).expect("set");
        }
    }

    #[test]
    fn a_try_that_ended_while_modes_were_set_is_gone_on_with() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let destination = dir.path().join("out");
        let directories =
            [(PathBuf::new(), metadata(0o500, 0)), (PathBuf::from("d"), metadata(0o000, 0))];
        for resumed in [false, true] {
            let restore = Restore::begin(&destination, "cap").expect("a free place");
            for (path, _) in &directories {
                restore.directory(path).expect("made");
            }
            write(&restore, "d/b", b"one").expect("written");
            if resumed {
                finish(restore, &directories).expect("finished");
            } else {
                let path = restore.path("d".as_ref());
                fs::set_permissions(path, fs::Permissions::from_mode(0o000)).expect("set");
            }
        }
        assert_eq!(fs::metadata(&destination).expect("there").mode() & 0o7777, 0o500);
        assert_eq!(fs::metadata(destination.join("d")).expect("there").mode() & 0o7777, 0);
    }

    #[test]
    fn errors_of_one_entry_are_told_from_those_of_all() {
        for (error, one) in [
            (Errno::NAMETOOLONG, true),
            (Errno::INVAL, true),
            (Errno::ILSEQ, true),
            (Errno::PERM, true),
            (Errno::FBIG, true),
            (Errno::NOSPC, false),
            (Errno::DQUOT, false),
            (Errno::ROFS, false),
            (Errno::IO, false),
        ] {
            let error = at(Path::new("x"))(error.into());
            assert_eq!(error.is_of_one_entry(), one, "{error}");
        }
        assert!(RestoreError::TwoNames("x".into()).is_of_one_entry());
        assert!(!RestoreError::Stopped(String::new()).is_of_one_entry());
    }
}
