//! Restores that are interrupted, go on, meet others, and are laid traps.

use std::{fs::File, os::unix::fs::MetadataExt as _};

use super::*;

fn metadata(mode: u32, size: u64) -> Metadata {
    Metadata { mode, mtime_seconds: 1_000_000_007, mtime_nanos: 123_456_789, size }
}

fn finish(restore: Restore, directories: &[(PathBuf, Metadata)]) -> Result<(), RestoreError> {
    assert!(restore.set_directories(directories)?.is_empty());
    let unkept = restore.finish(directories.first().map(|(_, root)| root))?;
    assert_eq!(unkept, 0, "this file system takes modes and times");
    Ok(())
}

#[test]
fn a_tree_appears_whole_with_modes_and_times() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let destination = dir.path().join("out");
    let restore = Restore::begin(&destination, "cap").expect("a free place");
    let directories =
        vec![(PathBuf::new(), metadata(0o755, 0)), (PathBuf::from("locked"), metadata(0o500, 0))];
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
fn what_goes_past_the_page_cache_and_what_goes_through_it_lies_in_order() {
    const MIB: usize = 1 << 20;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let destination = dir.path().join("out");
    let pool = crate::buffers::Pool::new(0);
    let mut expected = Vec::new();
    // Many bytes at the begin of a block go past it; of those with a rest, the rest does not; what begins
    // elsewhere goes through it. Holes lead from one to the other.
    let sizes = [3 * MIB, 2 * MIB + 123, MIB, 7, 4096 - 130, 2 * MIB, 0, 5 * MIB];
    let total: usize = sizes.iter().sum::<usize>() + 2 * 8192;
    let restore = Restore::begin(&destination, "cap").expect("a free place");
    let size = u64::try_from(total).expect("small");
    let mut file =
        restore.file(Path::new(""), &metadata(0o600, size)).expect("opened").expect("new");
    for (number, bytes) in sizes.into_iter().enumerate() {
        let (mut buffer, begin) = pool.placed(bytes);
        let begun = &mut buffer[begin..begin + bytes];
        for (at, byte) in begun.iter_mut().enumerate() {
            *byte = u8::try_from((at / 4096 + at + number) % 251).expect("a byte");
        }
        file.write(begun).expect("written");
        expected.extend_from_slice(begun);
        if number % 4 == 1 {
            file.hole(8192).expect("written");
            expected.resize(expected.len() + 8192, 0);
        }
    }
    file.finish().expect("finished");
    finish(restore, &[]).expect("finished");
    assert_eq!(expected.len(), total);
    assert!(fs::read(&destination).expect("there") == expected, "other bytes");
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
    assert!(matches!(Restore::begin(&destination, "another"), Err(RestoreError::OtherPartial(_))));
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
fn what_a_file_system_does_not_keep_is_counted_and_all_else_fails() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let place = Place::open(&dir.path().join("out"), "cap").expect("a free place");
    let failed = |errno: Errno| place.kept(Err(io::Error::from(errno)));
    for takes_none in [Errno::PERM, Errno::NOSYS, Errno::OPNOTSUPP] {
        failed(takes_none).expect("counted");
    }
    place.kept(Ok(())).expect("kept");
    assert_eq!(place.unkept(), 3);
    for fails in [Errno::IO, Errno::ROFS, Errno::ACCESS] {
        failed(fails).expect_err("another matter");
    }
    assert_eq!(place.unkept(), 3);
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
                        return restore.finish(None).map(drop);
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

/// A directory as a restore makes it.
fn make_partial(path: &Path) {
    fs::DirBuilder::new().mode(0o700).create(path).expect("made");
}

#[test]
fn a_start_that_fails_does_not_spoil_the_next_try() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let destination = dir.path().join("out");
    let partial = dir.path().join("out.copse-partial");
    make_partial(&partial);
    // Nothing can be written there.
    fs::create_dir(partial.join("source.new")).expect("made");
    let refused = Restore::begin(&destination, "cap");
    assert!(matches!(refused, Err(RestoreError::Io { .. })), "{refused:?}");
    assert!(!partial.join("source").exists(), "a source that is not whole");
    fs::remove_dir(partial.join("source.new")).expect("removed");
    // What the first try may have left of it.
    fs::write(partial.join("source.new"), "c").expect("written");
    assert!(!Restore::begin(&destination, "cap").expect("there is room").resumed());
    assert!(Restore::begin(&destination, "cap").expect("the same source").resumed());
}

#[test]
fn content_of_an_unknown_source_is_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    make_partial(&dir.path().join("out.copse-partial"));
    let content = dir.path().join("out.copse-partial/content");
    fs::create_dir(&content).expect("made");
    let refused = Restore::begin(&dir.path().join("out"), "cap");
    assert!(matches!(refused, Err(RestoreError::OtherPartial(_))), "{refused:?}");
    assert!(content.exists());
}

#[test]
fn parts_of_an_unknown_source_are_not_gone_on_with() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    make_partial(&dir.path().join("out.copse-partial"));
    let parts = dir.path().join("out.copse-partial/parts");
    fs::create_dir(&parts).expect("made");
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
fn a_directory_that_somebody_else_laid_out_is_refused_and_no_link_is_followed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let destination = dir.path().join("out");
    let partial = dir.path().join("out.copse-partial");
    let precious = dir.path().join("precious");
    fs::write(&precious, "precious").expect("written");
    make_partial(&partial);
    for name in ["lock", "source.new"] {
        std::os::unix::fs::symlink(&precious, partial.join(name)).expect("made");
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o777)).expect("set");
        let refused = Restore::begin(&destination, "cap");
        assert!(matches!(refused, Err(RestoreError::NotOwn(_))), "{refused:?}");
        // Of the caller's own making: then it is an odd file, no more.
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o700)).expect("set");
        let refused = Restore::begin(&destination, "cap");
        assert!(matches!(refused, Err(RestoreError::Io { .. })), "{name}: {refused:?}");
        fs::remove_file(partial.join(name)).expect("removed");
    }
    assert_eq!(fs::read(&precious).expect("there"), b"precious");
    Restore::begin(&destination, "cap").expect("nothing is in the way");
}

// Elsewhere every file is flushed.
#[cfg(target_os = "linux")]
#[test]
fn files_that_were_complete_before_a_power_cut_are_fetched_again_and_kept_until_then() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let destination = dir.path().join("out");
    let boot = dir.path().join("out.copse-partial/boot");
    let begin = || {
        let restore = Restore::begin(&destination, "cap").expect("a free place");
        restore.directory(Path::new("")).expect("made");
        restore.directory(Path::new("d")).expect("made");
        restore
    };
    let is_known = |restore: &Restore, name: &str| {
        let opened = restore.file(name.as_ref(), &metadata(0o400, 3));
        opened.expect("opened").is_none()
    };
    let restore = begin();
    for name in ["a", "d/b"] {
        write(&restore, name, b"old").expect("written");
    }
    fs::set_permissions(restore.path("d".as_ref()), fs::Permissions::from_mode(0o000))
        .expect("set");
    drop(restore);
    assert!(is_known(&begin(), "a"), "nothing happened to the system");

    fs::write(&boot, "another").expect("written");
    let restore = begin();
    for name in ["a", "d/b"] {
        assert!(!is_known(&restore, name), "{name} may not be whole");
        assert_eq!(fs::read(restore.path(name.as_ref())).expect("kept"), b"old");
    }
    write(&restore, "a", b"new").expect("written");
    drop(restore);
    // In the same boot: what was fetched again is known, and the rest still is not.
    let restore = begin();
    assert!(is_known(&restore, "a"));
    assert!(!is_known(&restore, "d/b"));
    drop(restore);
    // As older versions left it.
    fs::remove_file(&boot).expect("removed");
    assert!(!is_known(&begin(), "a"));
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
    let file = tempfile::tempfile().expect("a file");
    let error = file.set_len(1 << 63).expect_err("longer than files are");
    assert!(at(Path::new("x"))(error).is_of_one_entry());
    assert!(RestoreError::TwoNames("x".into()).is_of_one_entry());
    assert!(!RestoreError::Stopped(String::new()).is_of_one_entry());
}
