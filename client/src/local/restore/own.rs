//! Whether the directory of a restore is the caller's alone.
//!
//! Owns that check. The one idea: what is there already was perhaps made by somebody who waits in a shared
//! directory for plaintext to come, or with a link for a file to be overwritten; so it must look like what
//! the caller would make. Where the file system has owners or modes of its own, a new file tells which.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use data_encoding::HEXLOWER;
use rustix::fs::OFlags;

use super::{RestoreError, at};

/// Permissions of others than the owner.
const OTHERS: u32 = 0o077;

/// Makes sure that a directory is the caller's, that nobody else may look into it or put something there,
/// and that no link leads to it.
pub(super) fn check(directory: &Path) -> Result<(), RestoreError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let opened =
        File::options().read(true).custom_flags(flags.bits().cast_signed()).open(directory);
    let refused = || RestoreError::NotOwn(directory.to_owned());
    let found = match opened {
        Ok(opened) => opened.metadata().map_err(at(directory))?,
        // It may be that another restore takes it away at this moment.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(at(directory)(error)),
        Err(_) => return Err(refused()),
    };
    let us = rustix::process::geteuid().as_raw();
    if found.uid() == us && found.mode() & OTHERS == 0 {
        return Ok(());
    }
    let new = new_file(directory).map_err(|_| refused())?;
    let keeps_modes = new.mode() & OTHERS == 0;
    if found.uid() == new.uid() && (found.mode() & OTHERS == 0 || !keeps_modes) {
        return Ok(());
    }
    Err(refused())
}

/// What the system says of a file that was just made there, which is gone again.
fn new_file(directory: &Path) -> io::Result<fs::Metadata> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let path = directory.join(format!("probe{}", HEXLOWER.encode(&random)));
    let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
    let found = file.metadata();
    fs::remove_file(&path)?;
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_directory_that_others_can_reach_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("d");
        fs::create_dir(&path).expect("made");
        for (mode, own) in [(0o700, true), (0o750, false), (0o701, false), (0o1777, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            let checked = check(&path);
            assert_eq!(checked.is_ok(), own, "{mode:o}: {checked:?}");
        }
        assert_eq!(fs::read_dir(&path).expect("lists").count(), 0, "something is left behind");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("set");
        std::os::unix::fs::symlink("d", dir.path().join("link")).expect("made");
        assert!(matches!(check(&dir.path().join("link")), Err(RestoreError::NotOwn(_))));
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("d");
        fs::create_dir(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("set");
        // Only root can give something away.
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_ok() {
            assert!(matches!(check(&path), Err(RestoreError::NotOwn(_))));
        }
    }
}
