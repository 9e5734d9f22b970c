//! Trees as files of a real disk, which the product's own put reads.
//!
//! Owns a folder of the system's temporary files for one put, and what a file system makes of a tree: links
//! have one mode, and who puts may read what is his. The one idea: where the folder lies is told nobody, so
//! that two processes that run a world have equal traces. Holes begin and end as a file system with blocks of
//! 4 KiB or less shows them; on another one such a world has another trace, and is no worse.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, FileExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use copse_client::local::{FileReader, Segment};
use copse_core::tree::{Meta, Name};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::{
    made::{CHUNK_BYTES, Stretch},
    tree::{Item, Part, Tree, What},
};

/// Bits that whoever puts a file or directory needs, and the bits of every link.
const FILE_BITS: u32 = 0o600;
const DIRECTORY_BITS: u32 = 0o700;
const LINK_MODE: u32 = 0o777;

/// Of the directory around several paths.
const AROUND_MODE: u32 = 0o755;

/// Names of folders that are tried: others may be left of processes that were killed.
const NAMES_TRIED: u64 = 1000;

/// Folders that this process has made.
static FOLDERS: AtomicU64 = AtomicU64::new(0);

/// A folder, removed when dropped.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// One of this process alone. Takes no randomness: that is the world's.
    pub(super) fn new() -> io::Result<Self> {
        let process = std::process::id();
        for _ in 0..NAMES_TRIED {
            let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("copse-sim-{process}-{number}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| Self(path)),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Writes a tree that is as a disk [keeps](kept) it; gives the paths to be put.
    pub(super) fn write(&self, tree: &Tree) -> io::Result<Vec<PathBuf>> {
        let of_root = usize::from(!tree.name.is_unnamed());
        let written = || tree.items.iter().filter(|item| item.path.len() + of_root > 0);
        for item in written() {
            let path = self.path(tree, item);
            match &item.what {
                What::Directory => fs::create_dir(path)?,
                What::Link(target) => symlink(OsStr::from_bytes(target), path)?,
                What::File(parts) => write_file(&path, parts)?,
            }
        }
        // What is in a directory before it: its time would change.
        for item in written().collect::<Vec<_>>().into_iter().rev() {
            let path = self.path(tree, item);
            if !matches!(item.what, What::Link(_)) {
                fs::set_permissions(&path, Permissions::from_mode(item.meta.mode))?;
            }
            set_time(&path, &item.meta)?;
        }
        let named = written().filter(|item| item.path.len() + of_root == 1);
        Ok(named.map(|item| self.path(tree, item)).collect())
    }

    /// Where something of a tree is.
    fn path(&self, tree: &Tree, item: &Item) -> PathBuf {
        let root = (!tree.name.is_unnamed()).then_some(&tree.name);
        let names =
            root.into_iter().chain(&item.path).map(|name| OsStr::from_bytes(name.as_bytes()));
        names.fold(self.0.clone(), |path, name| path.join(name))
    }

    /// A file of a tree as the product reads it.
    pub(super) fn read(&self, tree: &Tree, item: &Item) -> Result<Vec<Stretch>, String> {
        let mut reader =
            FileReader::open(&self.path(tree, item)).map_err(|error| error.to_string())?;
        let mut read = || {
            let mut stretches = Vec::new();
            loop {
                stretches.push(match reader.next(CHUNK_BYTES)? {
                    Segment::End => return Ok::<_, copse_client::local::ReadFileError>(stretches),
                    Segment::Hole(bytes) => {
                        reader.skip(bytes)?;
                        Stretch::Hole(bytes)
                    }
                    Segment::Data(bytes) => {
                        let mut data = Vec::with_capacity(bytes);
                        reader.read(bytes, &mut data)?;
                        Stretch::Data(data)
                    }
                });
            }
        };
        read().map_err(|error| error.to_string())
    }

    /// An error's words without the place of the folder.
    pub(super) fn hidden(&self, words: &str) -> String {
        words.replace(&*self.0.to_string_lossy(), "")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The system's own to clean up if this fails.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A tree as a disk keeps it, and as the product puts it from there: one without a name is several paths.
pub(super) fn kept(mut tree: Tree) -> Tree {
    for item in &mut tree.items {
        item.meta.mode = match item.what {
            What::Directory => item.meta.mode | DIRECTORY_BITS,
            What::File(_) => item.meta.mode | FILE_BITS,
            What::Link(_) => LINK_MODE,
        };
    }
    if tree.name.is_unnamed() {
        let named = tree.items.iter().filter(|item| item.path.len() == 1);
        let times: Vec<_> = named.map(|item| item.meta.modified).collect();
        match times.iter().max() {
            Some(newest) if times.len() > 1 => tree.items[0].meta = Meta::new(AROUND_MODE, *newest),
            _ => tree.name = Name::new(b"alone").unwrap_or(Name::UNNAMED),
        }
    }
    tree
}

fn write_file(path: &Path, parts: &[Part]) -> io::Result<()> {
    let file = File::create_new(path)?;
    let mut at = parts.iter().map(|part| part.len() as u64).sum();
    // As long as it will be: nothing is set aside behind the end of what is written.
    file.set_len(at)?;
    for part in parts.iter().rev() {
        at -= part.len() as u64;
        if !matches!(part, Part::Hole { .. }) {
            file.write_all_at(&part.bytes(), at)?;
        }
    }
    Ok(())
}

fn set_time(path: &Path, meta: &Meta) -> io::Result<()> {
    let (tv_sec, tv_nsec) = (meta.modified.seconds(), meta.modified.nanoseconds().into());
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_on_the_disk_is_the_tree_and_is_gone_with_its_folder() {
        let (mut several, mut holes, mut files) = (0, 0, 0);
        for number in 0..100 {
            let tree = kept(Tree::of(number));
            let folder = Folder::new().expect("a folder");
            let paths = folder.write(&tree).expect("written");
            several += u32::from(paths.len() > 1);
            assert_eq!(paths.len() == 1, !tree.name.is_unnamed(), "tree {number}");
            for item in &tree.items {
                let What::File(parts) = &item.what else { continue };
                let mut read = Vec::new();
                for stretch in folder.read(&tree, item).expect("readable") {
                    match stretch {
                        Stretch::Data(bytes) => read.extend_from_slice(&bytes),
                        Stretch::Hole(bytes) => {
                            holes += 1;
                            read.resize(read.len() + usize::try_from(bytes).expect("few"), 0);
                        }
                    }
                }
                let all: Vec<u8> = parts.iter().flat_map(|part| part.bytes()).collect();
                assert!(read == all, "{:?} of tree {number}", item.path);
                let told = fs::symlink_metadata(folder.path(&tree, item)).expect("is there");
                assert_eq!(told.permissions().mode() & 0o7777, item.meta.mode);
                files += 1;
            }
            let words = folder.hidden(&format!("{}/a: no", folder.0.display()));
            assert_eq!(words, "/a: no");
            let path = folder.0.clone();
            drop(folder);
            assert!(!path.exists());
        }
        assert!(several > 10 && holes > 2 && files > 100, "{several} {holes} {files}");
    }
}
