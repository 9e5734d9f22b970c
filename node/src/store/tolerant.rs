//! Reads of a segment that go on where the disk fails.
//!
//! Owns how often a read is tried again, and what it gives then. The one idea: bytes that were not read
//! are zero, which no check takes for sound, *and* whoever reads is told: they are no evidence of
//! damage, so nothing may be cut, removed or forgotten for them.

use std::{io, time::Duration};

use rustix::io::Errno;

use super::file::SegmentFile;

/// How often a read is tried before its pages are read one by one: a cable that is loose for a moment
/// or a drive that was reset answers again.
const TRIES: u32 = 3;
/// How long is waited between.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 100 });
/// What is left out where the disk fails, in bytes: a page.
const PAGE_BYTES: u64 = 4096;
/// Pages that fail in one read before the rest of it is not tried any more: each may take a bad disk
/// seconds. As many as the window that is searched for a header has, so that none behind a bad stretch
/// is missed.
const PAGES_FAILED_MAX: usize = 256;

/// Reads all of `buffer`, and says whether that was possible. What the disk cannot read, or lies behind
/// the end, is zero. Other errors are given back.
pub(super) fn read(file: &SegmentFile, buffer: &mut [u8], at: u64) -> io::Result<bool> {
    for turn in 0..TRIES {
        if turn > 0 {
            file.file().rest(PAUSE);
        }
        match file.read(buffer, at) {
            Ok(()) => return Ok(true),
            // It is not longer a moment later.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) if is_unreadable(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let (mut failed, mut from) = (0, 0);
    while from < buffer.len() {
        let begin = at + from as u64;
        let page_end = (begin / PAGE_BYTES + 1) * PAGE_BYTES;
        let end = buffer.len().min(from + usize::try_from(page_end - begin).unwrap_or(usize::MAX));
        let page = &mut buffer[from..end];
        if failed == PAGES_FAILED_MAX {
            page.fill(0);
        } else {
            match file.read(page, begin) {
                Err(error) if is_unreadable(&error) => {
                    page.fill(0);
                    failed += 1;
                }
                result => result?,
            }
        }
        from = end;
    }
    if failed > 0 {
        let (segment, bytes) = (file.number, buffer.len());
        tracing::error!(segment, offset = at, bytes, pages = failed, "the disk fails under a read");
    }
    Ok(failed == 0)
}

fn is_unreadable(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
        || error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::{io::IoSlice, sync::Arc};

    use super::{
        super::{
            directory::Directory,
            file::{Faults, Planned, Segments},
            segment::{HEAD_BYTES, StoreId},
        },
        *,
    };

    #[test]
    fn what_fails_for_a_moment_is_read_and_what_goes_on_failing_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, faults) = (StoreId([7; 32]), Faults::none());
        let device = Arc::new(Directory::new(dir.path().to_owned()));
        let segments = Segments { device, store, faults: faults.clone() };
        let file = segments.create(1).expect("a segment");
        file.append(HEAD_BYTES as u64, &mut [IoSlice::new(&[7; 20_000])]).expect("a write");
        let plan = |reads, unreadable| {
            faults.plan(Planned { reads, unreadable, ..Planned::default() });
        };
        let whole = [7; 10_000];
        let mut buffer = [1; 10_000];
        plan(2, None);
        assert!(read(&file, &mut buffer, 100).expect("a read") && buffer == whole);
        // Only the page that fails is missing.
        plan(0, Some((1, 5000..5001)));
        assert!(!read(&file, &mut buffer, 100).expect("a read"));
        let mut expected = whole;
        expected[4096 - 100..8192 - 100].fill(0);
        assert!(buffer == expected);
        plan(usize::MAX, None);
        assert!(!read(&file, &mut buffer, 100).expect("a read"));
        assert!(buffer == [0; 10_000]);
        plan(0, None);
        assert!(!read(&file, &mut buffer, 15_000).expect("a read"), "behind the end");
        assert!(read(&file, &mut buffer, 100).expect("a read") && buffer == whole);
    }
}
