//! The file with a node's key: an Ed25519 seed, readable by its owner alone.
//!
//! Owns `D/node.key`. Refuses a file that others may read, that is missing or that is no key, and
//! never overwrites one. One idea: who has this file is the node; without it the shards are orphans.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use copse_core::identity::NodeKey;
use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

/// Name of the file in the node's directory.
pub const FILE_NAME: &str = "node.key";

/// What the file's one line starts with: what it is, and its version.
const MAGIC: &str = "copse-node-key-1 ";

/// Bytes of the file, at most; a real one has 82.
const FILE_BYTES_MAX: u64 = 1024;

/// Bits of the mode that nobody but the owner may have.
const OTHERS: u32 = 0o077;

/// The secret a node's key is made of. Wiped from memory when dropped.
pub struct Seed(Zeroizing<[u8; 32]>);

impl Seed {
    /// Wraps 32 secret bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key, for signing.
    pub fn key(&self) -> NodeKey {
        NodeKey::from_seed(*self.0)
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// Why there is no key to be had from a directory.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no such file.
    #[error("{0} is missing: without it this is not the node it was; restore it from a backup")]
    Missing(PathBuf),
    /// Others could have read it.
    #[error("{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`")]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content is not a key.
    #[error("{0} is not a node key of a version known here; restore it from a backup")]
    Malformed(PathBuf),
    /// A key is there already.
    #[error("{0} exists: a node's key is never overwritten")]
    Exists(PathBuf),
    /// The operating system refused.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Reads the key of the node in `dir`.
///
/// # Errors
/// When the file is missing, open to others, or no key.
pub fn load(dir: &Path) -> Result<Seed, IdentityError> {
    let path = dir.join(FILE_NAME);
    let io = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => IdentityError::Missing(path.clone()),
        _ => IdentityError::Io { path: path.clone(), source },
    };
    let file = File::open(&path).map_err(io)?;
    // Of the open file, so that what is checked is what is read.
    let mode = file.metadata().map_err(io)?.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(IdentityError::TooOpen { path, mode });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|_| IdentityError::Malformed(path.clone()))?;
    let seed = text
        .trim_end()
        .strip_prefix(MAGIC)
        .and_then(|hex| HEXLOWER.decode(hex.as_bytes()).ok())
        .map(Zeroizing::new)
        .and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok())
        .map(Seed::new)
        .ok_or(IdentityError::Malformed(path))?;
    Ok(seed)
}

/// Writes a new key into `dir`, on disk before this returns.
///
/// # Errors
/// When there is one already, or it cannot be written.
pub fn create(dir: &Path, seed: &Seed) -> Result<(), IdentityError> {
    let path = dir.join(FILE_NAME);
    let io = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => IdentityError::Exists(path.clone()),
        _ => IdentityError::Io { path: path.clone(), source },
    };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(io)?;
    let text = Zeroizing::new(format!("{MAGIC}{}\n", HEXLOWER.encode(seed.as_bytes())));
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_key_is_written_once_and_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(matches!(load(dir.path()), Err(IdentityError::Missing(_))));
        create(dir.path(), &Seed::new([7; 32])).expect("written");
        assert_eq!(load(dir.path()).expect("read").as_bytes(), &[7; 32]);
        let again = create(dir.path(), &Seed::new([8; 32]));
        assert!(matches!(again, Err(IdentityError::Exists(_))));
        assert_eq!(load(dir.path()).expect("read").as_bytes(), &[7; 32]);
        let mode = fs::metadata(dir.path().join(FILE_NAME)).expect("there").mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().expect("a directory");
        create(dir.path(), &Seed::new([7; 32])).expect("written");
        let path = dir.path().join(FILE_NAME);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changed");
        let error = load(dir.path()).expect_err("too open");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_key_is_refused() {
        for content in ["", "copse-node-key-1 ", "copse-node-key-1 00ff\n", "hello\n"] {
            let dir = tempfile::tempdir().expect("a directory");
            create(dir.path(), &Seed::new([7; 32])).expect("written");
            fs::write(dir.path().join(FILE_NAME), content).expect("overwritten");
            let loaded = load(dir.path());
            assert!(matches!(loaded, Err(IdentityError::Malformed(_))), "{content:?}: {loaded:?}");
        }
    }
}
