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
//! Set-user-id and set-group-id bits are not restored: whoever handed out the capability would
//! choose a program that runs with the rights of whoever restores it.

mod file;
mod place;

use std::{
    fs, io,
    os::unix::{
        ffi::OsStringExt as _,
        fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

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
        if self.resumed() && is_complete(&path, metadata) {
            return Ok(None);
        }
        RestoredFile::open(self.place.clone(), relative, path, *metadata).map(Some)
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
        let content = self.place.content();
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
                            return restore.finish(&[]);
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
                    restore.finish(&[(PathBuf::new(), metadata(0o700, 0))]).expect("finished");
                }
            }
            let file = destination.join("y".repeat(255));
            assert_eq!(fs::read(file).expect("there"), b"abc", "{length}");
            assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1, "{length}");
        }
    }
}
