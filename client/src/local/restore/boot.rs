//! What a restore can believe of files after a power cut.
//!
//! Owns the note of the boot in which files were completed, and what is done to files of another: they are
//! not flushed before they get their names, so what the disk has of them may have the size and time of the
//! whole and not its bytes. The one idea: nothing is deleted on doubt, for it may be all that is left; such a
//! file gets a time that no complete one has, and is replaced when it has been fetched again.

use std::{fs, io, path::Path};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::{RestoreError, at, place::write_whole};

/// The time of a file that may not be whole, in seconds: one at which few files were changed, which every
/// file system can keep. One that was changed then is fetched again each time.
pub(super) const UNSURE_SECONDS: i64 = 946_684_802;

/// The boot of the system, where it says so. Where it does not, files are flushed.
pub(super) fn current() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|boot| !boot.is_empty())
}

/// Notes in which boot the files of a restore are completed.
pub(super) fn note(note: &Path, boot: Option<&str>) -> Result<(), RestoreError> {
    write_whole(note, boot.unwrap_or_default()).map_err(at(note))
}

/// Makes files unsure that were completed in another boot than this, or nobody knows in which.
pub(super) fn go_on(path: &Path, boot: Option<&str>, content: &Path) -> Result<(), RestoreError> {
    if fs::read_to_string(path).is_ok_and(|noted| noted == boot.unwrap_or_default()) {
        return Ok(());
    }
    doubt(content)?;
    // Last: whoever is interrupted before begins anew.
    note(path, boot)
}

/// Makes every file at or below a path unsure.
fn doubt(path: &Path) -> Result<(), RestoreError> {
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(path)(error)),
    };
    if found.is_file() {
        return set_unsure(path);
    }
    let mut open = if found.is_dir() { vec![path.to_owned()] } else { Vec::new() };
    while let Some(directory) = open.pop() {
        // A try that had come to the end left the mode that it shall have. It is no link.
        super::make_own(&directory)?;
        for entry in fs::read_dir(&directory).map_err(at(&directory))? {
            let entry = entry.map_err(at(&directory))?;
            let kind = entry.file_type().map_err(at(&directory))?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                set_unsure(&entry.path())?;
            }
        }
    }
    Ok(())
}

fn set_unsure(path: &Path) -> Result<(), RestoreError> {
    let time = Timespec { tv_sec: UNSURE_SECONDS, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| at(path)(error.into()))
}
