//! Room kept for the index: without it, a node whose process died while others filled its disk could not
//! start any more, and what it holds would be away though nothing is damaged.
//!
//! Owns one file without content beside the index, and when it is there. When opening finds no room it is
//! given up, which makes as much, and made again at a later start. Its absence is no fault.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::fs::FallocateFlags;

const BALLAST_FILE: &str = "ballast";

/// What opening may write, in bytes: the index's log has no more than this in it when a process dies, and
/// becomes tables.
const BALLAST_BYTES: u64 = 32 << 20;

/// A small store has a small index: of its capacity no more than this part.
const CAPACITY_PART: u64 = 64;

/// Less is not worth a file, in bytes.
const BALLAST_BYTES_MIN: u64 = 64 << 10;

/// It is made where the disk has so many times as much free: it is no reason to refuse shards.
const FREE_TIMES: u64 = 8;

/// Makes it, if it is not there and there is room enough. That it cannot be made is no fault.
pub(super) fn keep(dir: &Path, capacity_bytes: u64) {
    let bytes = BALLAST_BYTES.min(capacity_bytes / CAPACITY_PART);
    if bytes < BALLAST_BYTES_MIN {
        return;
    }
    let path = dir.join(BALLAST_FILE);
    if path.metadata().is_ok_and(|found| found.len() >= bytes) {
        return;
    }
    if let Err(error) = make(&path, bytes) {
        tracing::info!(?path, %error, "no room is kept for the index");
        let _ = fs::remove_file(&path);
    }
}

fn make(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let disk = rustix::fs::fstatvfs(&file)?;
    if disk.f_bavail.saturating_mul(disk.f_frsize) < FREE_TIMES * bytes {
        return Err(io::ErrorKind::StorageFull.into());
    }
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
    file.sync_all()
}

/// Gives the room away. Whether there was some.
pub(super) fn give_up(dir: &Path) -> bool {
    fs::remove_file(dir.join(BALLAST_FILE)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn it_takes_room_of_the_disk_once_and_a_small_store_has_less_or_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(BALLAST_FILE);
        let allocated = |capacity: u64| {
            keep(dir.path(), capacity);
            path.metadata().map_or(0, |found| found.blocks() * 512)
        };
        assert_eq!(allocated(1 << 20), 0);
        assert!(!give_up(dir.path()));
        let small = allocated(64 << 20);
        assert!((1 << 20..2 << 20).contains(&small), "{small}");
        // A capacity that grew.
        let large = allocated(1 << 40);
        assert!((BALLAST_BYTES..2 * BALLAST_BYTES).contains(&large), "{large}");
        assert!(give_up(dir.path()));
        assert!(!path.exists());
    }
}
