//! A disk that is full, and one that fails.

use std::{
    fs,
    process::{Command, Stdio},
};

use super::{
    super::{
        FullReason, OpenError, PutError, ReadError, RemoveError, Stored, Writes,
        file::{Faults, Planned},
        memory,
    },
    *,
};

struct Subject {
    dir: tempfile::TempDir,
    options: DiskOptions,
}

impl Subject {
    fn new() -> Self {
        let dir = directory();
        init(dir.path());
        Self { dir, options: DiskOptions { faults: Faults::none(), ..options() } }
    }

    fn open(&self) -> DiskStore {
        DiskStore::open(self.dir.path(), NODE, &self.options).expect("an open store")
    }
}

async fn refused(store: &dyn ShardStore, shard: VerifiedShard) -> FullReason {
    match store.put(shard).await {
        Err(PutError::Full { reason, .. }) => {
            assert_eq!(store.stats().await.writes, Writes::Full(reason));
            reason
        }
        other => panic!("taken on a full disk: {other:?}"),
    }
}

#[test]
fn a_store_at_its_capacity_refuses_and_serves() {
    let mut subject = Subject::new();
    subject.options.capacity_bytes = 250_000;
    runtime().block_on(async {
        let store = subject.open();
        let (a, b) = (shard(1, 100_000), shard(2, 100_000));
        for shard in [&a, &b] {
            store.put(shard.clone()).await.expect("there is room");
        }
        assert_eq!(refused(&store, shard(3, 100_000)).await, FullReason::Capacity);
        assert_eq!(store.put(a.clone()).await.expect("it is there"), Stored::AlreadyHeld);
        for shard in [&a, &b] {
            assert_held(&store, shard).await;
        }
        // What fits is taken.
        assert_eq!(store.put(shard(4, 10_000)).await.expect("there is room"), Stored::New);
        assert_eq!(store.stats().await.writes, Writes::Accepted);
        assert!(store.stats().await.used_bytes <= 250_000);
        store.close().await;
    });
}

/// There never is room for any record in a store of this size.
#[test]
fn a_small_store_takes_shards_again_when_there_is_room_for_what_it_refused() {
    let mut subject = Subject::new();
    let time = Time::new();
    subject.options.capacity_bytes = 400_000;
    subject.options.segment_bytes_max = 120_000;
    subject.options.trash = time.trash();
    runtime().block_on(async {
        let store = subject.open();
        for seed in 1..4 {
            store.put(shard(seed, 100_000)).await.expect("there is room");
        }
        assert_eq!(refused(&store, shard(4, 100_000)).await, FullReason::Capacity);
        for seed in 1..3 {
            remove(&store, &shard(seed, 100_000), RemovalReason::Ordered).await;
        }
        assert_eq!(store.stats().await.writes, Writes::Full(FullReason::Capacity));
        time.pass_hours(WEEK_HOURS);
        store.compact().await;
        assert_eq!(store.stats().await.writes, Writes::Accepted);
        assert_eq!(store.put(shard(4, 100_000)).await.expect("room"), Stored::New);
        store.close().await;
    });
}

#[test]
fn many_puts_at_once_do_not_pass_the_capacity() {
    let mut subject = Subject::new();
    subject.options.capacity_bytes = 1_000_000;
    runtime().block_on(async {
        let store = subject.open();
        let puts = (0..50).map(|seed| store.put(shard(seed, 50_000)));
        let stored = futures::future::join_all(puts).await;
        let new = stored.iter().filter(|stored| stored.is_ok()).count();
        assert_eq!(new, 19, "{stored:?}");
        assert!(store.stats().await.used_bytes <= 1_000_000);
        store.close().await;
    });
}

#[test]
fn the_reserve_of_the_file_system_is_left_alone() {
    let mut subject = Subject::new();
    runtime().block_on(async {
        let a = shard(1, 1000);
        let store = subject.open();
        store.put(a.clone()).await.expect("there is room");
        store.close().await;
        drop(store);
        subject.options.reserve_bytes = u64::MAX / 2;
        let store = subject.open();
        assert_eq!(refused(&store, shard(2, 1000)).await, FullReason::Reserve);
        assert_held(&store, &a).await;
        store.close().await;
    });
}

#[test]
fn a_failed_sync_acknowledges_nothing_and_the_next_segment_goes_on() {
    let subject = Subject::new();
    runtime().block_on(async {
        let store = subject.open();
        let (a, lost, b) = (shard(1, 50_000), shard(2, 50_000), shard(3, 50_000));
        store.put(a.clone()).await.expect("a put");
        subject.options.faults.plan(Planned { syncs: 1, ..Planned::default() });
        let error = store.put(lost.clone()).await;
        assert!(matches!(error, Err(PutError::Io { .. })), "{error:?}");
        let read = store.read(lost.id(), Want::Whole).await;
        assert!(matches!(read, Err(ReadError::NotHeld { .. })), "{read:?}");
        assert_eq!(store.put(b.clone()).await.expect("a put"), Stored::New);
        assert!(segment(subject.dir.path(), 2).exists(), "a new segment was begun");
        store.close().await;
        drop(store);
        delete_index(subject.dir.path());
        let store = subject.open();
        for shard in [&a, &b] {
            assert_held(&store, shard).await;
        }
        assert_eq!((store.recovery().records, store.recovery().damaged), (2, 0));
        assert_eq!(store.put(lost.clone()).await.expect("a put"), Stored::New);
        store.close().await;
    });
}

/// As below with a real file system, at every place where the room may end; for those who cannot mount.
#[test]
fn wherever_the_room_ends_the_unfinished_record_is_cut_and_those_before_it_are_kept() {
    let shards: Vec<_> = (0..6)
        .zip([3000, 4000, 5, 9000, 70_000, 1])
        .map(|(seed, bytes)| shard(seed, bytes))
        .collect();
    let all: u64 = shards.iter().map(crate::store::request::record_bytes).sum();
    let all = usize::try_from(all).expect("small");
    for room in (0..all).step_by(997).chain([1, all - 1, all]) {
        let subject = Subject::new();
        runtime().block_on(async {
            let store = subject.open();
            let first = shard(100, 10);
            store.put(first.clone()).await.expect("a put");
            subject.options.faults.plan(Planned { room: Some(room), ..Planned::default() });
            let puts = shards.iter().map(|shard| store.put(shard.clone()));
            let stored = futures::future::join_all(puts).await;
            for (shard, stored) in shards.iter().zip(&stored) {
                match stored {
                    Ok(_) => assert_held(&store, shard).await,
                    Err(PutError::Full { reason: FullReason::NoSpace, .. }) => {}
                    Err(error) => panic!("{room}: {error:?}"),
                }
            }
            let kept: usize = stored.iter().filter(|stored| stored.is_ok()).count();
            assert_eq!(kept == shards.len(), room == all, "{room}");
            subject.options.faults.plan(Planned::default());
            assert_eq!(store.put(shard(101, 10)).await.expect("there is room"), Stored::New);
            store.close().await;
            drop(store);
            delete_index(subject.dir.path());
            let store = subject.open();
            let recovery = store.recovery();
            assert_eq!((recovery.damaged, recovery.cut_bytes), (0, 0), "{room}: {recovery:?}");
            assert_eq!(recovery.records, kept as u64 + 2, "{room}");
            store.close().await;
        });
    }
}

#[test]
fn a_disk_that_fails_twice_is_not_written_again_and_still_serves() {
    for planned in [
        Planned { syncs: 2, ..Planned::default() },
        Planned { syncs: 1, creates: 1, ..Planned::default() },
        Planned { writes: 2, ..Planned::default() },
    ] {
        let case = format!("{planned:?}");
        let subject = Subject::new();
        runtime().block_on(async {
            let store = subject.open();
            let a = shard(1, 50_000);
            store.put(a.clone()).await.expect("a put");
            subject.options.faults.plan(planned);
            for seed in 2..5 {
                assert!(store.put(shard(seed, 50_000)).await.is_err(), "{case}");
            }
            let error = store.put(shard(9, 10)).await;
            assert!(matches!(error, Err(PutError::Refused { .. })), "{case}: {error:?}");
            assert_eq!(store.stats().await.writes, Writes::Refused, "{case}");
            assert_held(&store, &a).await;
            assert_eq!(store.put(a.clone()).await.expect("it is there"), Stored::AlreadyHeld);
            store.close().await;
        });
    }
}

#[test]
fn a_store_whose_writer_panicked_says_that_it_takes_nothing_and_still_serves() {
    let subject = Subject::new();
    runtime().block_on(async {
        let store = subject.open();
        let a = shard(1, 50_000);
        store.put(a.clone()).await.expect("a put");
        subject.options.faults.plan(Planned { panics: 1, ..Planned::default() });
        assert!(store.put(shard(2, 50_000)).await.is_err());
        while store.stats().await.writes != Writes::Refused {
            tokio::task::yield_now().await;
        }
        let error = store.put(shard(3, 50_000)).await;
        assert!(matches!(error, Err(PutError::Refused { .. })), "{error:?}");
        let error = store.remove(a.id(), RemovalReason::Surplus).await;
        assert!(matches!(error, Err(RemoveError::Refused { .. })), "{error:?}");
        assert_held(&store, &a).await;
        store.close().await;
    });
    let store = subject.open();
    runtime().block_on(async {
        assert_held(&store, &shard(1, 50_000)).await;
        assert_eq!(store.put(shard(3, 50_000)).await.expect("a put"), Stored::New);
        store.close().await;
    });
}

/// A small file system of its own, gone when dropped.
pub(super) struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    pub(super) fn new(at: &'a Path, size: &str) -> Result<Self, String> {
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", size, "copse-test"])
            .arg(at)
            .output()
            .map_err(|error| error.to_string())?;
        if mount.status.success() {
            Ok(Self(at))
        } else {
            Err(String::from_utf8_lossy(&mount.stderr).trim().to_owned())
        }
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
#[allow(clippy::print_stderr)] // says that it was skipped
fn a_full_disk_cuts_the_unfinished_record_and_goes_on_when_there_is_room() {
    let mut subject = Subject::new();
    subject.options.segment_bytes_max = 64 << 20;
    let segments = subject.dir.path().join("segments");
    let _mount = match Mount::new(&segments, "size=2m") {
        Ok(mount) => mount,
        Err(reason) => {
            eprintln!("skipped: no small file system to fill ({reason})");
            return;
        }
    };
    runtime().block_on(async {
        let store = subject.open();
        let puts = (0..30).map(|seed| store.put(shard(seed, 100_000)));
        let stored = futures::future::join_all(puts).await;
        let held: Vec<_> = (0..30_u64)
            .zip(&stored)
            .filter(|(_, stored)| stored.is_ok())
            .map(|(seed, _)| seed)
            .collect();
        assert!((10..21).contains(&held.len()), "{} of 2 MiB", held.len());
        for result in stored.iter().filter(|stored| stored.is_err()) {
            let full = matches!(result, Err(PutError::Full { reason: FullReason::NoSpace, .. }));
            assert!(full, "{result:?}");
        }
        for &seed in &held {
            assert_held(&store, &shard(seed, 100_000)).await;
        }
        assert_eq!(refused(&store, shard(90, 400_000)).await, FullReason::NoSpace);
        let larger = Command::new("mount").args(["-o", "remount,size=8m"]).arg(&segments).status();
        assert!(larger.expect("mount").success());
        assert_eq!(store.put(shard(90, 400_000)).await.expect("there is room"), Stored::New);
        store.close().await;
        drop(store);
        delete_index(subject.dir.path());
        let store = subject.open();
        let recovery = store.recovery();
        assert_eq!((recovery.damaged, recovery.cut_bytes), (0, 0), "{recovery:?}");
        assert_eq!(recovery.records, held.len() as u64 + 1);
        store.close().await;
    });
}

/// A process that died leaves a log of the index, which opening makes tables of.
#[test]
#[allow(clippy::print_stderr)] // says that it was skipped
fn a_store_whose_process_died_on_a_disk_that_is_full_now_opens_and_serves() {
    let mut subject = Subject::new();
    subject.options.capacity_bytes = 512 << 20;
    let full = directory();
    let _mount = match Mount::new(full.path(), "size=128m") {
        Ok(mount) => mount,
        Err(reason) => {
            eprintln!("skipped: no small file system to fill ({reason})");
            return;
        }
    };
    let shards: Vec<_> = (0..20).map(|seed| shard(seed, 10_000)).collect();
    runtime().block_on(async {
        let store = subject.open();
        for shard in &shards {
            store.put(shard.clone()).await.expect("a put");
        }
        // As it lies there while the process runs.
        let copy = |to: &Path| {
            let from = subject.dir.path().join(".");
            let copied =
                Command::new("cp").args(["-a", "--sparse=never"]).arg(from).arg(to).status();
            assert!(copied.expect("cp").success());
        };
        copy(full.path());
        store.close().await;
    });
    let filler = full.path().join("filler");
    let fill = || {
        let mut fill = Command::new("dd");
        fill.arg("if=/dev/zero").arg(format!("of={}", filler.display())).arg("bs=4k");
        assert!(!fill.stderr(Stdio::null()).status().expect("dd").success());
    };
    let open = || DiskStore::open(full.path(), NODE, &subject.options);
    let ballast = full.path().join("ballast");
    let kept = fs::read(&ballast).expect("it was made and copied");
    fs::remove_file(&ballast).expect("removed");
    fill();
    assert!(matches!(open(), Err(OpenError::NoSpace { .. })), "there is no room for the tables");
    fs::remove_file(&filler).expect("removed");
    fs::write(&ballast, kept).expect("written");
    fill();
    runtime().block_on(async {
        let store = open().expect("an open store");
        for shard in &shards {
            assert_held(&store, shard).await;
        }
        store.close().await;
    });
    assert!(!ballast.exists());
}

#[test]
fn the_store_in_memory_fails_as_it_is_told() {
    use memory::{Faults, MemoryStore};

    runtime().block_on(async {
        let store = MemoryStore::new(250_000);
        let a = shard(1, 100_000);
        store.put(a.clone()).await.expect("a put");
        let told = |faults| store.set_faults(faults);
        told(Faults { no_space: true, ..Faults::default() });
        assert_eq!(refused(&store, shard(2, 1000)).await, FullReason::NoSpace);
        for faults in [
            Faults { fail_writes: true, ..Faults::default() },
            Faults { fail_syncs: true, ..Faults::default() },
        ] {
            told(faults);
            let error = store.put(shard(2, 1000)).await;
            assert!(matches!(error, Err(PutError::Io { .. })), "{error:?}");
            assert_eq!(store.stats().await.shards, 1);
        }
        told(Faults { fail_reads: true, ..Faults::default() });
        let read = store.read(a.id(), Want::Whole).await;
        assert!(matches!(read, Err(ReadError::Io { .. })), "{read:?}");
        told(Faults::default());
        assert_eq!(refused(&store, shard(3, 200_000)).await, FullReason::Capacity);
        assert_held(&store, &a).await;
    });
}

#[test]
fn a_crash_takes_what_was_not_acknowledged_and_from_a_lying_disk_more() {
    use memory::{Faults, MemoryStore};

    runtime().block_on(async {
        let store = MemoryStore::new(1 << 20);
        let (a, b, c) = (shard(1, 1000), shard(2, 1000), shard(3, 1000));
        store.put(a.clone()).await.expect("a put");
        let hour = std::time::Duration::from_secs(3600);
        store.set_faults(Faults { sync_delay: hour, ..Faults::default() });
        let mut put = store.put(b.clone());
        // Polled once, it is written and waits for the sync.
        assert!(futures::poll!(&mut put).is_pending());
        store.crash();
        assert!(matches!(put.await, Err(PutError::Closed)));
        store.set_faults(Faults { lie_about_syncs: true, ..Faults::default() });
        assert_held(&store, &a).await;
        assert!(store.read(b.id(), Want::Whole).await.is_err());
        store.put(c.clone()).await.expect("a put");
        assert_held(&store, &c).await;
        store.crash();
        assert!(store.read(c.id(), Want::Whole).await.is_err(), "the planted bug shows");
        assert_held(&store, &a).await;
    });
}

#[test]
fn what_was_written_and_not_synced_may_outlive_its_process() {
    use memory::{Faults, MemoryStore, Unsynced};

    runtime().block_on(async {
        let store = MemoryStore::new(1 << 20);
        let all: Vec<_> = (1..=5).map(|number| shard(number, 1000)).collect();
        store.put(all[0].clone()).await.expect("a put");
        let hour = std::time::Duration::from_secs(3600);
        store.set_faults(Faults { sync_delay: hour, ..Faults::default() });
        let mut puts: Vec<_> = all[1..].iter().map(|one| store.put(one.clone())).collect();
        for put in &mut puts {
            assert!(futures::poll!(put).is_pending());
        }
        let mut removal = store.remove(all[0].id(), RemovalReason::Surplus);
        assert!(futures::poll!(&mut removal).is_pending());
        // In the order of writing: before the last whole record what is torn is damage; behind it
        // it is cut.
        let fates = [Unsynced::Gone, Unsynced::Torn, Unsynced::Whole, Unsynced::Torn];
        let mut fates = fates.into_iter().chain([Unsynced::Gone]);
        let kept = store.end(true, || fates.next().expect("five records"));
        assert_eq!(kept, [(all[3].id(), 1000)]);
        for put in puts {
            assert!(matches!(put.await, Err(PutError::Closed)));
        }
        assert!(removal.await.is_err());
        store.set_faults(Faults::default());
        assert_held(&store, &all[0]).await;
        assert_held(&store, &all[3]).await;
        let read = store.read(all[2].id(), Want::Whole).await;
        assert!(matches!(read, Err(ReadError::Corrupt { .. })), "{read:?}");
        for lost in [&all[1], &all[4]] {
            let read = store.read(lost.id(), Want::Whole).await;
            assert!(matches!(read, Err(ReadError::NotHeld { .. })), "{read:?}");
        }

        // A process that is killed leaves to the system what it has written, but writes no more.
        store.set_faults(Faults { sync_delay: hour, ..Faults::default() });
        let mut put = store.put(all[1].clone());
        let mut removal = store.remove(all[0].id(), RemovalReason::Surplus);
        assert!(futures::poll!(&mut put).is_pending() && futures::poll!(&mut removal).is_pending());
        store.set_faults(Faults { write_delay: hour, ..Faults::default() });
        let mut late = store.put(all[4].clone());
        assert!(futures::poll!(&mut late).is_pending());
        assert_eq!(store.end(false, || Unsynced::Whole), [(all[1].id(), 1000)]);
        assert!(put.await.is_err() && removal.await.is_err() && late.await.is_err());
        store.set_faults(Faults::default());
        assert_held(&store, &all[1]).await;
        for gone in [&all[0], &all[4]] {
            let read = store.read(gone.id(), Want::Whole).await;
            assert!(matches!(read, Err(ReadError::NotHeld { .. })), "{read:?}");
        }
    });
}

#[test]
fn a_shard_that_cannot_be_read_for_an_hour_while_others_can_is_set_apart() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let dir = directory();
        init(dir.path());
        let store = open(dir.path());
        // Too long for one segment.
        let (bad, good) = (shard(1, 700_000), shard(2, 700_000));
        for shard in [&bad, &good] {
            store.put(shard.clone()).await.expect("a put");
        }
        // What cannot be read: a directory.
        let path = segment(dir.path(), 1);
        fs::rename(&path, dir.path().join("aside")).expect("a file");
        fs::create_dir(&path).expect("a directory");
        for _ in 0..12 {
            let read = store.read(bad.id(), Want::Whole).await;
            assert!(matches!(read, Err(ReadError::Io { .. })), "{read:?}");
            assert_held(&store, &good).await;
            assert_eq!(store.stats().await.shards, 2);
            tokio::time::advance(std::time::Duration::from_secs(300)).await;
        }
        let read = store.read(bad.id(), Want::Whole).await;
        assert!(matches!(read, Err(ReadError::Io { .. })), "{read:?}");
        let stats = store.stats().await;
        assert_eq!((stats.shards, stats.quarantined), (1, 1));
        assert_eq!(store.list(None, 9).await.expect("a page"), [good.id()]);
        assert!(!store.doubts().is_unreadable());
        assert_eq!(store.put(bad.clone()).await.expect("a put"), Stored::New);
        assert_held(&store, &bad).await;
        store.close().await;
    });
}
