//! One process for one directory.
//!
//! Owns `D/lock`, which a running node holds with flock(2): the kernel lets go of it however the
//! process ends. Refuses a second process, and tells which one has it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// Name of the file in the node's directory.
const FILE_NAME: &str = "lock";

/// Held as long as this lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why the directory is not this process's.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "another copse-node{} runs on {dir}: stop it first, or use another directory",
        process(*holder)
    )]
    Held {
        /// The directory.
        dir: PathBuf,
        /// The other process, if it could be read.
        holder: Option<u32>,
    },
    /// The operating system refused.
    #[error("cannot lock {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn process(id: Option<u32>) -> String {
    id.map(|id| format!(" (process {id})")).unwrap_or_default()
}

impl Lock {
    /// Takes the directory for this process.
    ///
    /// # Errors
    /// When another process has it.
    pub fn take(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join(FILE_NAME);
        let io = |source| LockError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LockError::Held { dir: dir.to_owned(), holder: read(&mut file) });
            }
            Err(error) => return Err(io(error.into())),
        }
        file.set_len(0).map_err(io)?;
        file.rewind().map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { _file: file })
    }

    /// The process that has the directory now; none when it is free.
    ///
    /// # Errors
    /// When the file cannot be looked at.
    pub fn holder(dir: &Path) -> io::Result<Option<u32>> {
        let mut file = match File::open(dir.join(FILE_NAME)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Some(read(&mut file).unwrap_or_default())),
            Err(error) => Err(error.into()),
        }
    }
}

fn read(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    // The longest process number has ten digits.
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_processs_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(Lock::holder(dir.path()).expect("looked"), None);
        let lock = Lock::take(dir.path()).expect("free");
        let error = Lock::take(dir.path()).expect_err("taken");
        let me = std::process::id();
        assert!(error.to_string().contains(&format!("(process {me})")), "{error}");
        assert_eq!(Lock::holder(dir.path()).expect("looked"), Some(me));
        drop(lock);
        assert_eq!(Lock::holder(dir.path()).expect("looked"), None);
        Lock::take(dir.path()).expect("free again");
    }
}
