//! One directory at a time, in the order in which a tree stores it.
//!
//! Owns what counts as an entry: files, directories and symbolic links; sockets, pipes and devices
//! have no content to store and are reported. Links are never followed, so loops cannot happen.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{
        ffi::OsStringExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

/// Mode bits kept: permissions, set-user-id, set-group-id, sticky.
const MODE_BITS: u32 = 0o7777;

/// What cannot be put, and why, told without its path. The rest of the folder goes on.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The system refused.
    #[error("cannot be read: {source}")]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Not a file, directory or symbolic link.
    #[error("is a {what}, which has no content to store")]
    Special {
        /// Which one.
        path: PathBuf,
        /// socket, pipe, device.
        what: &'static str,
    },
}

impl ScanError {
    /// Which file or directory.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. } | Self::Special { path, .. } => path,
        }
    }
}

/// Permission bits and time of last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// As in chmod.
    pub mode: u32,
    /// Seconds since 1970-01-01 UTC.
    pub mtime_seconds: i64,
    /// Nanoseconds within the second.
    pub mtime_nanos: u32,
    /// Bytes.
    pub size: u64,
}

impl Metadata {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        Self {
            mode: metadata.mode() & MODE_BITS,
            mtime_seconds: metadata.mtime(),
            // The kernel keeps it below 10^9.
            mtime_nanos: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
            size: metadata.size(),
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and where it points.
    Symlink(Vec<u8>),
}

/// One entry of the local file system.
#[derive(Debug, Clone)]
pub struct LocalEntry {
    /// Where it is.
    pub path: PathBuf,
    /// Its last name.
    pub name: Vec<u8>,
    /// Mode, time, size.
    pub metadata: Metadata,
    /// What it is.
    pub kind: LocalKind,
}

/// The entry at `path`, links not followed. `name` is what it will be called in the tree.
///
/// # Errors
/// When the system refuses or it is a special file.
pub fn entry_at(path: &Path, name: OsString) -> Result<LocalEntry, ScanError> {
    let io = |source| ScanError::Io { path: path.to_owned(), source };
    let metadata = fs::symlink_metadata(path).map_err(io)?;
    let file_type = metadata.file_type();
    let kind = if file_type.is_file() {
        LocalKind::File
    } else if file_type.is_dir() {
        LocalKind::Directory
    } else if file_type.is_symlink() {
        LocalKind::Symlink(fs::read_link(path).map_err(io)?.into_os_string().into_vec())
    } else {
        let what = if file_type.is_socket() {
            "socket"
        } else if file_type.is_fifo() {
            "pipe"
        } else {
            "device"
        };
        return Err(ScanError::Special { path: path.to_owned(), what });
    };
    Ok(LocalEntry {
        path: path.to_owned(),
        name: name.into_vec(),
        metadata: Metadata::of(&metadata),
        kind,
    })
}

/// The names in a directory, sorted bytewise: the order of a stored tree.
///
/// Memory grows with the names of one directory, about 60 bytes each.
///
/// # Errors
/// When the directory cannot be read.
pub fn children(directory: &Path) -> Result<Vec<OsString>, ScanError> {
    let io = |source| ScanError::Io { path: directory.to_owned(), source };
    let names = fs::read_dir(directory)
        .map_err(io)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(io)?;
    Ok(in_order(names))
}

/// Names in bytewise order, each once: a file that is replaced while its directory is read may be listed
/// twice.
fn in_order(mut names: Vec<OsString>) -> Vec<OsString> {
    // OsString compares bytewise on unix.
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, net::UnixListener};

    use super::*;

    #[test]
    fn a_directory_is_listed_in_byte_order_with_links_as_links() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let weird = std::ffi::OsStr::from_bytes(b"\xff\xfe\n name");
        for name in ["b".as_ref(), "a".as_ref(), "B".as_ref(), weird] {
            fs::write(dir.path().join(name), "x").expect("writable");
        }
        std::os::unix::fs::symlink(".", dir.path().join("loop")).expect("a link");
        let names = children(dir.path()).expect("readable");
        let bytes: Vec<_> = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        assert_eq!(bytes, [&b"B"[..], b"a", b"b", b"loop", b"\xff\xfe\n name"]);
        let link = entry_at(&dir.path().join("loop"), "loop".into()).expect("a link");
        assert_eq!(link.kind, LocalKind::Symlink(b".".to_vec()));
    }

    #[test]
    fn a_name_that_is_listed_twice_is_one_entry() {
        let names = ["b", "a", "b"].map(OsString::from).to_vec();
        assert_eq!(in_order(names), ["a", "b"]);
    }

    #[test]
    fn mode_and_time_are_kept() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("f");
        fs::write(&path, "12345").expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).expect("chmod");
        let entry = entry_at(&path, "f".into()).expect("a file");
        assert_eq!((entry.metadata.mode, entry.metadata.size), (0o4751, 5));
        assert_eq!(entry.kind, LocalKind::File);
    }

    #[test]
    fn a_socket_is_reported_not_stored() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("s");
        let _listener = UnixListener::bind(&path).expect("a socket");
        let error = entry_at(&path, "s".into()).expect_err("a socket has no content");
        assert!(matches!(error, ScanError::Special { what: "socket", .. }), "{error}");
    }
}
