//! Records that could not be read when the store was opened, and can be later: none is lost.

use std::{fs, ops::Range};

use super::{
    super::{
        Stored, Writes, disk::OpenError, file::Planned, recover::RecoverError,
        request::record_bytes,
    },
    upkeep::{ORDERED, Subject, assert_all, put_all, remove_all, shards},
    *,
};

/// Ten shards that fill the first segment, and two more.
fn fill(subject: &Subject) -> (Vec<VerifiedShard>, Vec<VerifiedShard>) {
    let (all, more) = (shards(0), shards(10)[..2].to_vec());
    subject.with(async |store| {
        put_all(store, &all).await;
        put_all(store, &more).await;
    });
    (all, more)
}

/// Where the record of a shard lies.
fn record_of(subject: &Subject, shard: &VerifiedShard) -> (PathBuf, Range<u64>) {
    let (path, at) = find(subject.dir.path(), shard).expect("the shard");
    let end = at + shard.data().len() as u64;
    (path, end - record_bytes(shard)..end)
}

/// Makes zeros of a file from here on: what a disk that fails gives.
fn zero(path: &Path, from: usize) {
    let mut bytes = fs::read(path).expect("a segment");
    bytes[from..].fill(0);
    fs::write(path, bytes).expect("a write");
}

fn close(subject: &Subject, store: DiskStore) {
    subject.runtime.block_on(store.close());
}

#[test]
fn what_a_damaged_header_hid_is_kept_when_its_segment_goes() {
    for reopened in [false, true] {
        let subject = Subject::new();
        let (all, more) = fill(&subject);
        let (path, record) = record_of(&subject, &all[8]);
        flip(&path, record.start + 20);
        delete_index(subject.dir.path());
        let mut store = subject.open();
        subject.runtime.block_on(assert_not_held(&store, &all[8]));
        // The cable is mended.
        flip(&path, record.start + 20);
        if reopened {
            close(&subject, store);
            store = subject.open();
            assert_eq!(store.recovery().found_again, u64::from(cfg!(feature = "rocksdb")));
        }
        subject.runtime.block_on(async {
            remove_all(&store, &all[..8]).await;
            subject.time.pass_hours(WEEK_HOURS);
            store.compact().await;
            assert_eq!(store.stats().await.compactions, 1);
            assert_all(&store, &[&all[8..], &more].concat(), &all[..8]).await;
            store.audit().await;
            store.close().await;
        });
        drop(store);
        subject.with_new_index(async |store| {
            assert_all(store, &[&all[8..], &more].concat(), &all[..8]).await;
        });
    }
}

#[test]
fn a_whole_segment_that_could_not_be_read_is_kept() {
    for reopened in [false, true] {
        let subject = Subject::new();
        let (all, more) = fill(&subject);
        let path = segment(subject.dir.path(), 1);
        let sound = fs::read(&path).expect("a segment");
        // Where the head is sound, the compaction meets it.
        zero(&path, if reopened { 0 } else { 64 });
        delete_index(subject.dir.path());
        let mut store = subject.open();
        subject.runtime.block_on(assert_not_held(&store, &all[0]));
        assert!(path.exists(), "nothing is deleted on doubt");
        fs::write(&path, &sound).expect("a write");
        if reopened {
            close(&subject, store);
            store = subject.open();
        }
        subject.runtime.block_on(store.compact());
        close(&subject, store);
        subject.with(async |store| {
            store.compact().await;
            assert_all(store, &[&all[..], &more].concat(), &[]).await;
        });
        subject.with_new_index(async |store| {
            assert_all(store, &[&all[..], &more].concat(), &[]).await;
        });
    }
}

#[test]
fn what_was_removed_before_it_was_hidden_does_not_come_back() {
    for zeroed in [false, true] {
        let subject = Subject::new();
        let (all, more) = fill(&subject);
        subject.with(async |store| {
            // Removed, put again and removed: the last record decides.
            remove_all(store, &all[..7]).await;
            put_all(store, &all[..1]).await;
            remove_all(store, &all[..1]).await;
            put_all(store, &all[1..2]).await;
        });
        let path = segment(subject.dir.path(), 1);
        let sound = fs::read(&path).expect("a segment");
        if zeroed {
            zero(&path, 0);
        } else {
            let record = record_bytes(&all[0]);
            (0..9).for_each(|number| flip(&path, 64 + number * record + 20));
        }
        delete_index(subject.dir.path());
        let (held, gone) =
            ([&all[1..2], &all[7..], &more].concat(), [&all[..1], &all[2..7]].concat());
        subject.runtime.block_on(async {
            let store = subject.open();
            subject.time.pass_hours(WEEK_HOURS);
            store.close().await;
        });
        fs::write(&path, &sound).expect("a write");
        for _ in 0..2 {
            let store = subject.open();
            subject.runtime.block_on(async {
                store.compact().await;
                assert_all(&store, &held, &gone).await;
                store.audit().await;
                store.close().await;
            });
        }
        assert!(!path.exists(), "it was under half living");
        subject.with_new_index(async |store| assert_all(store, &held, &gone).await);
    }
}

#[test]
fn a_removal_that_was_hidden_with_its_shard_counts_behind_it() {
    let subject = Subject::new();
    let (some, more) = (&shards(0)[..4], shards(10));
    subject.with(async |store| {
        put_all(store, some).await;
        remove_all(store, &some[..2]).await;
        put_all(store, &more).await;
    });
    let path = segment(subject.dir.path(), 1);
    let sound = fs::read(&path).expect("a segment");
    zero(&path, 64);
    delete_index(subject.dir.path());
    let store = subject.open();
    fs::write(&path, &sound).expect("a write");
    subject.runtime.block_on(async {
        store.compact().await;
        assert_all(&store, &[&some[2..], &more].concat(), &some[..2]).await;
        store.audit().await;
        store.close().await;
    });
}

/// A shard is put, removed, and put again; only the last record is hidden, in the same segment as the
/// removal or in the next. What a compaction writes meanwhile must not outlive it.
#[test]
fn no_removal_is_moved_past_a_record_that_is_hidden_and_newer() {
    for (in_the_next, mended) in [(false, true), (false, false), (true, true), (true, false)] {
        let subject = Subject::new();
        let (all, more) = (shards(0), shards(10));
        let count = if in_the_next { 10 } else { 9 };
        subject.with(async |store| {
            put_all(store, &all[..count]).await;
            remove_all(store, &all[1..8]).await;
            subject.time.pass_hours(WEEK_HOURS);
            remove_all(store, &all[..1]).await;
            put_all(store, &all[..1]).await;
            put_all(store, &more).await;
        });
        let held = [&all[..1], &all[8..count], &more].concat();
        let hidden = if in_the_next { 2 } else { 1 };
        // The last of the two records: both have the same length.
        let data = fs::read(segment(subject.dir.path(), hidden)).expect("a segment");
        let at = data.windows(64).rposition(|part| part == &all[0].data()[..64]).expect("a copy");
        let begin = (at + all[0].data().len()) as u64 - record_bytes(&all[0]);
        let unreadable = Some((hidden, begin..begin + 1));
        subject.options.faults.plan(Planned { unreadable, ..Planned::default() });
        delete_index(subject.dir.path());
        let store = subject.open();
        if mended {
            subject.options.faults.plan(Planned::default());
        }
        subject.runtime.block_on(async {
            assert_not_held(&store, &all[0]).await;
            store.compact().await;
            store.close().await;
        });
        drop(store);
        subject.options.faults.plan(Planned::default());
        subject.with(async |store| {
            assert_all(store, &held, &all[1..8]).await;
            store.compact().await;
            assert_all(store, &held, &all[1..8]).await;
            assert!(!segment(subject.dir.path(), 1).exists(), "it was under half living");
        });
        subject.with_new_index(async |store| assert_all(store, &held, &all[1..8]).await);
    }
}

#[test]
fn what_cannot_be_read_for_two_days_does_not_keep_removals_where_they_are() {
    let subject = Subject::new();
    let (all, more) = (shards(0), shards(10));
    subject.with(async |store| {
        put_all(store, &all).await;
        put_all(store, &more).await;
        put_all(store, &shards(20)[..1]).await;
        remove_all(store, &all[..8]).await;
        subject.time.pass_hours(WEEK_HOURS);
        remove_all(store, &all[8..9]).await;
    });
    let unreadable = Some((2, 64..65));
    subject.options.faults.plan(Planned { unreadable, ..Planned::default() });
    delete_index(subject.dir.path());
    let store = subject.open();
    subject.runtime.block_on(async {
        let mut hours = 0;
        while store.stats().await.compactions == 0 {
            assert!(hours < 100, "{:?}", store.stats().await);
            subject.time.pass_hours(1);
            hours += 1;
            store.compact().await;
            store.compact().await;
        }
        assert!(hours > 40, "after {hours} hours");
        assert_held(&store, &all[9]).await;
        store.audit().await;
        store.close().await;
    });
}

#[test]
fn a_compaction_leaves_a_segment_under_which_the_disk_fails() {
    let subject = Subject::new();
    let (all, more) = fill(&subject);
    let (_, record) = record_of(&subject, &all[4]);
    let unreadable =
        Planned { unreadable: Some((1, record.start..record.start + 1)), ..Planned::default() };
    delete_index(subject.dir.path());
    subject.options.faults.plan(unreadable);
    let store = subject.open();
    assert!(store.recovery().unread_bytes >= 64, "{:?}", store.recovery());
    subject.runtime.block_on(async {
        remove_all(&store, &[&all[..4], &all[5..9]].concat()).await;
        subject.time.pass_hours(WEEK_HOURS);
        store.compact().await;
        assert_eq!(store.stats().await.compactions, 0);
        store.close().await;
    });
    drop(store);
    subject.options.faults.plan(Planned::default());
    let store = subject.open();
    subject.runtime.block_on(async {
        assert_held(&store, &all[4]).await;
        store.compact().await;
        assert_eq!(store.stats().await.compactions, 1);
        assert_all(&store, &[&all[4..5], &all[9..], &more].concat(), &all[..4]).await;
        store.close().await;
    });
}

#[test]
fn what_the_disk_does_not_give_at_the_end_is_not_cut() {
    let two = [shard(1, 100_000), shard(2, 100_000)];
    let record = record_bytes(&two[0]);
    let last = 64 + record..64 + 2 * record;
    // In turn: the header of the last record, its content, all of it, the head of the segment.
    for bad in [last.start..last.start + 9, last.end - 9..last.end, last.clone(), 0..9, 0..last.end]
    {
        for put_meanwhile in [false, true] {
            let subject = Subject::new();
            subject.with(async |store| put_all(store, &two).await);
            let path = segment(subject.dir.path(), 1);
            let bytes = fs::metadata(&path).expect("a segment").len();
            delete_index(subject.dir.path());
            let unreadable = Some((1, bad.clone()));
            subject.options.faults.plan(Planned { unreadable, ..Planned::default() });
            let mut held = two.to_vec();
            let store = subject.open();
            assert_eq!(store.recovery().cut_bytes, 0);
            subject.runtime.block_on(async {
                if put_meanwhile {
                    held.push(shard(3, 100_000));
                    assert_eq!(store.put(held[2].clone()).await.expect("a put"), Stored::New);
                    assert_eq!(store.stats().await.writes, Writes::Accepted);
                }
                store.close().await;
            });
            drop(store);
            assert_eq!(fs::metadata(&path).expect("it is left").len(), bytes, "{bad:?}");
            subject.options.faults.plan(Planned::default());
            subject.with(async |store| assert_all(store, &held, &[]).await);
            subject.with_new_index(async |store| assert_all(store, &held, &[]).await);
        }
    }
}

#[test]
fn reads_that_fail_for_a_moment_do_no_harm() {
    let two = [shard(1, 100_000), shard(2, 100_000)];
    for reads in [0, 1, 2, 3, 4, 7, 20, 40, 60, 100] {
        let subject = Subject::new();
        subject.with(async |store| put_all(store, &two).await);
        let path = segment(subject.dir.path(), 1);
        let bytes = fs::metadata(&path).expect("a segment").len();
        delete_index(subject.dir.path());
        subject.options.faults.plan(Planned { reads, ..Planned::default() });
        let store = subject.open();
        if reads < 3 {
            assert_eq!((store.recovery().damaged, store.recovery().unread_bytes), (0, 0));
        }
        close(&subject, store);
        assert_eq!(fs::metadata(&path).expect("it is left").len(), bytes, "{reads}");
        subject.options.faults.plan(Planned::default());
        subject.with(async |store| assert_all(store, &two, &[]).await);
    }
}

#[test]
fn a_disk_that_gives_nothing_is_not_opened() {
    let subject = Subject::new();
    let (all, more) = fill(&subject);
    delete_index(subject.dir.path());
    subject.options.faults.plan(Planned { reads: usize::MAX, ..Planned::default() });
    let opened = DiskStore::open(subject.dir.path(), NODE, &subject.options);
    let error = opened.err().expect("not an empty store");
    let unreadable =
        matches!(error, OpenError::Recover { source: RecoverError::Unreadable { .. }, .. });
    assert!(unreadable && error.to_string().contains("cable"), "{error}");
    subject.options.faults.plan(Planned::default());
    subject.with(async |store| assert_all(store, &[&all[..], &more].concat(), &[]).await);
    // A removal of before is one after.
    subject.with(async |store| remove(store, &all[0], ORDERED).await);
    subject.with_new_index(async |store| assert_not_held(store, &all[0]).await);
}
