//! The trash and the compaction of a store on a disk: what goes, what must not, and crashes between.

use std::{
    fs,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use super::{
    super::{
        FullReason, PutError, Stored, Writes,
        file::{Faults, Planned},
        index::State,
        request::record_bytes,
        segment::Kind,
    },
    full::Mount,
    *,
};

pub(super) const ORDERED: RemovalReason = RemovalReason::Ordered;

pub(super) struct Subject {
    pub(super) dir: tempfile::TempDir,
    pub(super) time: Time,
    pub(super) options: DiskOptions,
    pub(super) runtime: tokio::runtime::Runtime,
}

impl Subject {
    pub(super) fn new() -> Self {
        let dir = directory();
        init(dir.path());
        let time = Time::new();
        let options = DiskOptions { trash: time.trash(), faults: Faults::none(), ..options() };
        Self { dir, time, options, runtime: runtime() }
    }

    pub(super) fn open(&self) -> DiskStore {
        DiskStore::open(self.dir.path(), NODE, &self.options).expect("an open store")
    }

    /// Opens, does something, checks the books and closes.
    pub(super) fn with<T>(&self, work: impl AsyncFnOnce(&DiskStore) -> T) -> T {
        let store = self.open();
        self.runtime.block_on(async {
            let result = work(&store).await;
            store.audit().await;
            assert_copies(&store, self.dir.path()).await;
            store.close().await;
            result
        })
    }

    /// The same behind the loss of the index.
    pub(super) fn with_new_index<T>(&self, work: impl AsyncFnOnce(&DiskStore) -> T) -> T {
        delete_index(self.dir.path());
        self.with(work)
    }
}

/// Some shards that fill a segment of 1 MiB and begin the next: ten of 100 KB.
pub(super) fn shards(from: u64) -> Vec<VerifiedShard> {
    (from..from + 10).map(|seed| shard(seed, 100_000)).collect()
}

pub(super) async fn put_all(store: &DiskStore, shards: &[VerifiedShard]) {
    for shard in shards {
        assert_eq!(store.put(shard.clone()).await.expect("a put"), Stored::New);
    }
}

pub(super) async fn remove_all(store: &DiskStore, shards: &[VerifiedShard]) {
    for shard in shards {
        remove(store, shard, ORDERED).await;
    }
}

pub(super) async fn assert_all(store: &DiskStore, held: &[VerifiedShard], gone: &[VerifiedShard]) {
    for shard in held {
        assert_held(store, shard).await;
    }
    for shard in gone {
        assert_not_held(store, shard).await;
    }
    assert_eq!(store.stats().await.shards, held.len() as u64);
}

#[test]
fn a_segment_under_half_living_is_compacted_and_its_room_given_back() {
    let subject = Subject::new();
    let all: Vec<_> = [shards(0), shards(10), shards(20)].concat();
    let (gone, held) = all.split_at(16);
    subject.with(async |store| {
        put_all(store, &all).await;
        remove_all(store, gone).await;
        let before = store.stats().await;
        store.compact().await;
        assert_eq!(store.stats().await.used_bytes, before.used_bytes, "the trash is kept");
        subject.time.pass_hours(WEEK_HOURS);
        store.compact().await;
        let after = store.stats().await;
        assert_eq!((before.trashed, after.trashed), (16, 0));
        assert_eq!(after.compactions, 2, "the first two segments: one dead, one 4 of 10");
        assert!(after.used_bytes + 1_500_000 < before.used_bytes, "{before:?} {after:?}");
        assert!(after.dead_bytes < 10_000, "{after:?}");
        assert_all(store, held, gone).await;
        let size = |number| fs::metadata(segment(subject.dir.path(), number)).expect("it").len();
        let sizes: u64 = segments(subject.dir.path()).into_iter().map(size).sum();
        assert_eq!(sizes, after.used_bytes);
    });
    let rows = subject.with(async |store| {
        assert_all(store, held, gone).await;
        store.rows().await
    });
    subject.with_new_index(async |store| {
        assert_all(store, held, gone).await;
        assert_eq!(store.rows().await, rows, "the same, however it is made");
    });
}

#[test]
fn trash_that_is_moved_stays_trash_and_can_be_put_again() {
    let subject = Subject::new();
    let (all, more) = (shards(0), shards(10));
    subject.with(async |store| {
        put_all(store, &all).await;
        remove_all(store, &all[..7]).await;
        // Five hours old when the others are over: still trash.
        subject.time.pass_hours(WEEK_HOURS);
        remove_all(store, &all[7..8]).await;
        put_all(store, &more).await;
        store.compact().await;
        let stats = store.stats().await;
        assert_eq!((stats.compactions, stats.trashed), (1, 1));
        assert_all(store, &[&all[8..], &more].concat(), &all[..8]).await;
    });
    let trashed =
        records(subject.dir.path()).into_iter().filter(|(kind, _)| matches!(kind, Kind::Trash(_)));
    assert_eq!(trashed.map(|(_, id)| id).collect::<Vec<_>>(), [all[7].id()]);
    subject.with_new_index(async |store| {
        assert_all(store, &[&all[8..], &more].concat(), &all[..8]).await;
        assert_eq!(store.stats().await.trashed, 1);
        assert_eq!(store.put(all[7].clone()).await.expect("a put"), Stored::New);
        assert_all(store, &[&all[7..], &more].concat(), &all[..7]).await;
    });
    subject.with_new_index(async |store| {
        assert_all(store, &[&all[7..], &more].concat(), &all[..7]).await;
    });
}

#[test]
fn a_removal_is_kept_as_long_as_a_copy_is_and_not_longer() {
    let subject = Subject::new();
    let (first, second, third) = (shards(0), shards(10), shards(20));
    subject.with(async |store| {
        put_all(store, &first).await;
        put_all(store, &second).await;
        // Of the first segment only one goes: it is not compacted, and keeps its copy.
        remove_all(store, &first[..1]).await;
        put_all(store, &third).await;
        subject.time.pass_hours(WEEK_HOURS);
        // The removal lies in a segment that is compacted.
        remove_all(store, &second).await;
        remove_all(store, &third[..9]).await;
        subject.time.pass_hours(WEEK_HOURS);
        put_all(store, &shards(30)).await;
        store.compact().await;
        assert!(store.stats().await.compactions >= 2);
        assert_not_held(store, &first[0]).await;
    });
    subject.with_new_index(async |store| assert_not_held(store, &first[0]).await);
    subject.with(async |store| {
        remove_all(store, &first[1..]).await;
        remove_all(store, &third[9..]).await;
        remove_all(store, &shards(30)).await;
        subject.time.pass_hours(WEEK_HOURS);
        for seed in [40, 50, 60] {
            put_all(store, &shards(seed)).await;
            store.compact().await;
        }
        let held = [shards(40), shards(50), shards(60)].concat();
        assert_all(store, &held, &first).await;
        // Their copies are gone, and so nothing keeps their removals.
        let rows = store.rows().await;
        assert!(first.iter().all(|shard| !rows.contains_key(&shard.id())), "{rows:?}");
    });
    let held = [shards(40), shards(50), shards(60)].concat();
    subject.with_new_index(async |store| assert_all(store, &held, &first).await);
}

#[test]
fn a_removal_is_kept_for_the_older_of_two_copies() {
    let subject = Subject::new();
    let (first, second) = (shards(0), shards(10));
    subject.with(async |store| {
        put_all(store, &first).await;
        remove_all(store, &first[..1]).await;
        // The second copy, in a segment of which nothing stays.
        put_all(store, &second[..5]).await;
        put_all(store, &first[..1]).await;
        put_all(store, &second[5..]).await;
        remove_all(store, &first[..1]).await;
        remove_all(store, &second).await;
        subject.time.pass_hours(WEEK_HOURS);
        put_all(store, &shards(20)).await;
        store.compact().await;
        assert_eq!(store.stats().await.compactions, 1);
        let row = store.rows().await[&first[0].id()];
        assert!(matches!(row.state, State::Gone(_)) && row.copies == 1, "{row:?}");
    });
    let held = [&first[1..], &shards(20)].concat();
    subject.with_new_index(async |store| assert_all(store, &held, &first[..1]).await);
}

#[test]
fn a_compaction_can_be_cut_off_behind_any_step() {
    for (steps, lose_index) in (0..).flat_map(|steps| [(steps, false), (steps, true)]) {
        let subject = Subject::new();
        let (all, more) = (shards(0), shards(10));
        let store = subject.open();
        let compactions = subject.runtime.block_on(async {
            put_all(&store, &all).await;
            remove_all(&store, &all[..2]).await;
            // Two copies of one in this segment.
            put_all(&store, &all[..1]).await;
            remove_all(&store, &all[3..7]).await;
            subject.time.pass_hours(WEEK_HOURS);
            remove_all(&store, &all[7..8]).await;
            put_all(&store, &more).await;
            store.compact_steps(steps).await;
            store.audit().await;
            let compactions = store.stats().await.compactions;
            store.close().await;
            compactions
        });
        drop(store);
        if lose_index {
            delete_index(subject.dir.path());
        }
        let held = [&all[..1], &all[2..3], &all[8..], &more].concat();
        let gone = [&all[1..2], &all[3..8]].concat();
        subject.with(async |store| {
            store.compact().await;
            assert_all(store, &held, &gone).await;
        });
        subject.with_new_index(async |store| assert_all(store, &held, &gone).await);
        if compactions > 0 {
            assert!(steps > 6, "there was something to cut off: {steps}");
            break;
        }
    }
}

#[test]
fn rot_that_is_met_while_moving_is_set_apart_and_not_copied() {
    // In turn: a byte of the shard, of the group hashes, of the header.
    for back in [50_000, 100_050, 100_303] {
        let subject = Subject::new();
        let all = shards(0);
        let store = subject.open();
        subject.runtime.block_on(async {
            put_all(&store, &all).await;
            put_all(&store, &shards(10)[..2]).await;
            remove_all(&store, &all[..8]).await;
            let (file, at) = find(subject.dir.path(), &all[8]).expect("the shard");
            flip(&file, at + 100_000 - back);
            subject.time.pass_hours(WEEK_HOURS);
            store.compact().await;
            let stats = store.stats().await;
            assert_eq!((stats.compactions, stats.corrupt, stats.shards), (1, 1, 3), "{back}");
            assert_held(&store, &all[9]).await;
            assert!(store.read(all[8].id(), Want::Whole).await.is_err());
            assert_eq!(store.put(all[8].clone()).await.expect("a put"), Stored::New);
            assert_held(&store, &all[8]).await;
            store.audit().await;
            store.close().await;
        });
    }
}

#[test]
fn what_was_set_apart_and_is_sound_after_all_is_served_again() {
    let subject = Subject::new();
    let all = shards(0);
    subject.with(async |store| {
        put_all(store, &all).await;
        put_all(store, &shards(10)[..1]).await;
        let (file, at) = find(subject.dir.path(), &all[8]).expect("the shard");
        flip(&file, at);
        assert!(store.read(all[8].id(), Want::Whole).await.is_err());
        // The cable is mended.
        flip(&file, at);
        remove_all(store, &all[..8]).await;
        subject.time.pass_hours(WEEK_HOURS);
        store.compact().await;
        assert_eq!(store.stats().await.quarantined, 0);
        assert_all(store, &[&all[8..], &shards(10)[..1]].concat(), &all[..8]).await;
    });
}

#[test]
fn damaged_group_hashes_are_found_by_a_check() {
    let subject = Subject::new();
    let all = shards(0);
    let store = subject.open();
    subject.runtime.block_on(async {
        put_all(&store, &all).await;
        let (file, at) = find(subject.dir.path(), &all[3]).expect("the shard");
        flip(&file, at - 10);
        assert_held(&store, &all[3]).await;
        let error = store.check(all[3].id()).await;
        assert!(matches!(error, Err(ReadError::Corrupt { .. })), "{error:?}");
        assert_eq!(store.stats().await.quarantined, 1);
        store.close().await;
    });
}

#[test]
fn readers_do_not_notice_that_records_are_moved() {
    let subject = Subject::new();
    let store = Arc::new(subject.open());
    let all: Vec<_> = (0..8).flat_map(|turn| shards(10 * turn)).collect();
    let (done, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        put_all(&store, &all).await;
        let held: Vec<_> = all.iter().skip(4).step_by(5).cloned().collect();
        for shard in all.iter().filter(|shard| held.iter().all(|held| held.id() != shard.id())) {
            remove(&*store, shard, ORDERED).await;
        }
        subject.time.pass_hours(WEEK_HOURS);
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (store, held) = (Arc::clone(&store), held.clone());
                let (done, reads) = (Arc::clone(&done), Arc::clone(&reads));
                tokio::spawn(async move {
                    while !done.load(Relaxed) {
                        for shard in &held {
                            assert_held(&*store, shard).await;
                            reads.fetch_add(1, Relaxed);
                        }
                    }
                })
            })
            .collect();
        while reads.load(Relaxed) < 100 {
            tokio::task::yield_now().await;
        }
        store.compact().await;
        done.store(true, Relaxed);
        for reader in readers {
            reader.await.expect("no reader saw damage");
        }
        let stats = store.stats().await;
        assert!(stats.compactions >= 7, "{stats:?}");
        assert_eq!((stats.corrupt, stats.io_errors), (0, 0));
        store.close().await;
    });
}

#[test]
fn a_segment_that_was_not_deleted_is_deleted_at_the_next_start() {
    let subject = Subject::new();
    let (all, more) = (shards(0), shards(10));
    let store = subject.open();
    subject.runtime.block_on(async {
        put_all(&store, &all).await;
        put_all(&store, &more).await;
        remove_all(&store, &all).await;
        subject.time.pass_hours(WEEK_HOURS);
        subject.options.faults.plan(Planned { removes: 1, ..Planned::default() });
        store.compact().await;
        assert_eq!(store.stats().await.compactions, 0);
        store.close().await;
    });
    drop(store);
    assert!(segments(subject.dir.path()).contains(&1));
    subject.with(async |store| {
        // Without RocksDB nobody remembers, and the compaction is done again.
        if cfg!(feature = "rocksdb") {
            assert!(!segments(subject.dir.path()).contains(&1));
        }
        store.compact().await;
        assert_all(store, &more, &all).await;
    });
    assert!(!segments(subject.dir.path()).contains(&1));
    subject.with_new_index(async |store| assert_all(store, &more, &all).await);
}

#[test]
fn a_deletion_that_may_be_undone_by_a_power_cut_is_not_forgotten() {
    let subject = Subject::new();
    let (all, more) = (shards(0), shards(10));
    let fails = || Planned { directory_syncs: 1, ..Planned::default() };
    let store = subject.open();
    subject.runtime.block_on(async {
        put_all(&store, &all).await;
        put_all(&store, &more).await;
        remove_all(&store, &all).await;
        subject.time.pass_hours(WEEK_HOURS);
        // The file is gone both times, and its directory was not synced.
        for _ in 0..2 {
            subject.options.faults.plan(fails());
            store.compact().await;
            assert!(!segments(subject.dir.path()).contains(&1));
            assert_eq!(store.stats().await.compactions, 0);
        }
        store.close().await;
    });
    drop(store);
    if cfg!(feature = "rocksdb") {
        subject.options.faults.plan(fails());
        let opened = DiskStore::open(subject.dir.path(), NODE, &subject.options);
        assert!(opened.is_err(), "it is still to be deleted");
    }
    subject.with(async |store| assert_all(store, &more, &all).await);
    subject.with_new_index(async |store| assert_all(store, &more, &all).await);
}

#[test]
fn a_segment_that_could_not_be_opened_once_is_compacted_later() {
    // The compaction is cut off after so many steps: some leave the segment half forgotten.
    for steps in 0..12 {
        let subject = Subject::new();
        let (all, more) = (shards(0), shards(10));
        let store = subject.open();
        subject.runtime.block_on(async {
            put_all(&store, &all).await;
            put_all(&store, &more).await;
            remove_all(&store, &all[1..]).await;
            subject.time.pass_hours(WEEK_HOURS);
            store.compact_steps(steps).await;
            store.audit().await;
            store.close().await;
        });
        drop(store);
        let held = [&all[..1], &more[..]].concat();
        subject.with(async |store| {
            let is_there = || segments(subject.dir.path()).contains(&1);
            if !is_there() {
                return;
            }
            subject.options.faults.plan(Planned { opens: 1, ..Planned::default() });
            for _ in 0..2 {
                store.compact().await;
                assert!(is_there(), "{steps}: it is left alone for a while");
            }
            subject.time.pass_hours(1);
            store.compact().await;
            assert!(!is_there(), "{steps}: it is tried again");
            assert_all(store, &held, &all[1..]).await;
        });
        subject.with_new_index(async |store| assert_all(store, &held, &all[1..]).await);
    }
}

#[test]
fn a_disk_that_fails_while_records_are_moved_loses_none() {
    for planned in [
        Planned { syncs: 1, ..Planned::default() },
        Planned { writes: 1, ..Planned::default() },
        Planned { creates: 1, writes: 1, ..Planned::default() },
        Planned { writes: 2, ..Planned::default() },
    ] {
        let case = format!("{planned:?}");
        let subject = Subject::new();
        let (all, more) = (shards(0), shards(10));
        let store = subject.open();
        subject.runtime.block_on(async {
            put_all(&store, &all).await;
            put_all(&store, &more[..2]).await;
            remove_all(&store, &all[..7]).await;
            subject.time.pass_hours(WEEK_HOURS);
            subject.options.faults.plan(planned);
            store.compact().await;
            assert_eq!(store.stats().await.compactions, 0, "{case}");
            let held = [&all[7..], &more[..2]].concat();
            assert_all(&store, &held, &all[..7]).await;
            store.audit().await;
            store.close().await;
        });
        drop(store);
        subject.options.faults.plan(Planned::default());
        let held = [&all[7..], &more[..2]].concat();
        subject.with_new_index(async |store| {
            assert_all(store, &held, &all[..7]).await;
            store.compact().await;
            assert_eq!(store.stats().await.compactions, 1, "{case}");
            assert_all(store, &held, &all[..7]).await;
        });
    }
}

#[test]
fn a_full_store_takes_shards_again_when_trash_was_compacted_away() {
    let mut subject = Subject::new();
    subject.options.capacity_bytes = 2_200_000;
    let (all, more) = (shards(0), shards(10));
    subject.with(async |store| {
        put_all(store, &all).await;
        put_all(store, &more).await;
        let full = store.put(shard(99, 300_000)).await;
        assert!(matches!(full, Err(PutError::Full { reason: FullReason::Capacity, .. })));
        // Room for a removal there always is. Most are said to be elsewhere.
        for shard in &all[..6] {
            remove(store, shard, RemovalReason::HandedOver).await;
        }
        remove_all(store, &all[6..7]).await;
        subject.time.pass_hours(2);
        store.compact().await;
        let stats = store.stats().await;
        assert_eq!((stats.compactions, stats.trashed), (1, 1), "{stats:?}");
        assert_eq!(store.put(shard(99, 300_000)).await.expect("room"), Stored::New);
        assert_eq!(store.stats().await.writes, Writes::Accepted);
        let held = [&all[7..], &more, &[shard(99, 300_000)]].concat();
        assert_all(store, &held, &all[..7]).await;
    });
}

#[test]
#[allow(clippy::print_stderr)] // says that it was skipped
fn without_room_to_copy_what_is_all_dead_still_goes() {
    let subject = Subject::new();
    let segments = subject.dir.path().join("segments");
    let _mount = match Mount::new(&segments, "size=3m") {
        Ok(mount) => mount,
        Err(reason) => {
            eprintln!("skipped: no small file system to fill ({reason})");
            return;
        }
    };
    let store = subject.open();
    subject.runtime.block_on(async {
        let (all, more) = (shards(0), shards(10));
        put_all(&store, &all).await;
        put_all(&store, &more).await;
        // One byte to a page: nothing is left but what a removal needs.
        remove_all(&store, &all).await;
        remove_all(&store, &more[..6]).await;
        let mut filled = 0;
        while store.put(shard(100 + filled, 60_000)).await.is_ok() {
            filled += 1;
        }
        subject.time.pass_hours(WEEK_HOURS);
        store.compact().await;
        let stats = store.stats().await;
        assert!(stats.compactions >= 1, "{stats:?}");
        assert!(!segment(subject.dir.path(), 1).exists());
        for shard in &more[6..] {
            assert_held(&store, shard).await;
        }
        assert_eq!(store.put(shard(99, 60_000)).await.expect("room"), Stored::New);
        store.audit().await;
        store.close().await;
    });
}

#[test]
fn the_background_compacts_without_being_asked() {
    let mut subject = Subject::new();
    subject.options.compaction_bytes_per_second = 1 << 30;
    subject.options.trash.trash_for = Duration::ZERO;
    let (all, more) = (shards(0), shards(10));
    subject.with(async |store| {
        put_all(store, &all).await;
        put_all(store, &more).await;
        remove_all(store, &all).await;
        let deadline = Instant::now() + Duration::from_secs(30);
        while store.stats().await.compactions == 0 {
            assert!(Instant::now() < deadline, "{:?}", store.stats().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_all(store, &more, &all).await;
    });
}

#[cfg(feature = "rocksdb")]
#[test]
fn moments_and_entries_outlive_a_closing_and_not_the_index() {
    let subject = Subject::new();
    let all = shards(0);
    let moment = subject.with(async |store| {
        put_all(store, &all).await;
        remove_all(store, &all[..1]).await;
        let change = (b"key".to_vec(), Some(b"value".to_vec()));
        store.ledger().apply(vec![change]).expect("an entry");
        store.arc_changes(None).await.expect("an answer").now
    });
    subject.with(async |store| {
        let changes = store.arc_changes(Some(moment)).await.expect("an answer");
        assert_eq!((changes.now, changes.all, changes.changed.len()), (moment, false, 0));
        assert_eq!(store.arc_changes(None).await.expect("an answer").changed.len(), 9);
        assert_eq!(store.ledger().get(b"key").expect("a value"), Some(b"value".to_vec()));
    });
    subject.with_new_index(async |store| {
        let changes = store.arc_changes(Some(moment)).await.expect("an answer");
        assert_ne!(changes.now.epoch, moment.epoch);
        assert_eq!((changes.all, changes.changed.len()), (true, 9));
        assert_eq!(store.ledger().get(b"key").expect("no value"), None);
    });
}

#[test]
fn a_removal_that_failed_leaves_the_shard_held() {
    let subject = Subject::new();
    let all = shards(0);
    subject.with(async |store| {
        put_all(store, &all).await;
        for planned in [
            Planned { syncs: 1, ..Planned::default() },
            Planned { writes: 1, ..Planned::default() },
        ] {
            subject.options.faults.plan(planned);
            assert!(store.remove(all[0].id(), ORDERED).await.is_err());
            assert_held(store, &all[0]).await;
            // A success between the failures: it is not the disk.
            remove(store, &all[1], ORDERED).await;
            assert_eq!(store.put(all[1].clone()).await.expect("a put"), Stored::New);
        }
    });
    subject.with_new_index(async |store| assert_all(store, &all, &[]).await);
}

#[test]
fn a_removed_shard_has_these_bytes_on_the_disk() {
    let subject = Subject::new();
    subject.with(async |store| {
        put_all(store, &[shard(1, 20_000)]).await;
        remove(store, &shard(1, 20_000), RemovalReason::HandedOver).await;
        let rows = store.rows().await;
        assert!(matches!(rows[&shard(1, 20_000).id()].state, State::Trashed(_)));
    });
    let bytes = fs::read(segment(subject.dir.path(), 1)).expect("the first segment");
    let shard = 64 + usize::try_from(record_bytes(&shard(1, 20_000))).expect("small");
    assert_eq!(bytes.len(), shard + 64);
    assert_eq!(
        blake3::hash(&bytes).to_hex().as_str(),
        "179252f5e504043f7977cd9a7516c6ce60f5afa2bf6f566e858be29511719e3e"
    );
}
