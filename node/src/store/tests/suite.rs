//! What every store must do: run against the disk and against memory.

use std::{future::Future, ops::Range, pin::Pin, sync::Arc};

use copse_core::ring::Ring;
use tempfile::TempDir;

use super::{
    super::{
        ArcDigest, LEDGER_KEY_BYTES_MAX, LEDGER_VALUE_BYTES_MAX, MemoryStore, PutError, ReadError,
        RemoveError, ShardStore, Stored, Want,
    },
    *,
};

type Rot = Box<dyn Fn(&VerifiedShard, u64)>;

/// A store under test, and how to damage what it holds.
struct Subject {
    store: Arc<dyn ShardStore>,
    rot: Rot,
    time: Time,
    upkeep: Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()>>>>,
    dir: Option<TempDir>,
}

fn on_disk(capacity_bytes: u64) -> Subject {
    let dir = directory();
    init(dir.path());
    let time = Time::new();
    let options = DiskOptions { trash: time.trash(), capacity_bytes, ..options() };
    let store = Arc::new(DiskStore::open(dir.path(), NODE, &options).expect("an open store"));
    let path = dir.path().to_owned();
    let rot = Box::new(move |shard: &VerifiedShard, byte: u64| {
        let (file, at) = find(&path, shard).expect("the shard");
        flip(&file, at + byte);
    });
    let same = Arc::clone(&store);
    let upkeep = Box::new(move || {
        let store = Arc::clone(&same);
        Box::pin(async move { store.compact().await }) as Pin<Box<dyn Future<Output = ()>>>
    });
    Subject { store, rot, time, upkeep, dir: Some(dir) }
}

fn in_memory(capacity_bytes: u64) -> Subject {
    let time = Time::new();
    let store = Arc::new(MemoryStore::with(capacity_bytes, time.trash(), 7));
    let same = Arc::clone(&store);
    let rot = Box::new(move |shard: &VerifiedShard, byte: u64| {
        let byte = usize::try_from(byte).expect("small");
        assert!(same.rot(shard.id(), byte, 1), "{} is held", shard.id());
    });
    let upkeep = Box::new(|| Box::pin(async {}) as Pin<Box<dyn Future<Output = ()>>>);
    Subject { store, rot, time, upkeep, dir: None }
}

fn check<F: Future<Output = ()>>(scenario: impl Fn(Subject) -> F) {
    check_with(1 << 30, scenario);
}

fn check_with<F: Future<Output = ()>>(capacity_bytes: u64, scenario: impl Fn(Subject) -> F) {
    for mut subject in [on_disk(capacity_bytes), in_memory(capacity_bytes)] {
        let _dir = subject.dir.take();
        let store = Arc::clone(&subject.store);
        let runtime = runtime();
        runtime.block_on(scenario(subject));
        runtime.block_on(store.close());
    }
}

/// What a store says of an arc when asked for everything.
async fn digest(store: &dyn ShardStore, arc: u16) -> Option<ArcDigest> {
    let changes = store.arc_changes(None).await.expect("an answer");
    assert!(changes.all);
    changes.changed.into_iter().find(|digest| digest.arc == arc)
}

#[test]
fn a_shard_comes_back_whole_and_in_part_with_a_proof() {
    check(|subject| async move {
        for (seed, bytes) in [(1, 1), (2, 16 << 10), (3, 16_385), (4, 100_000), (5, 700_000)] {
            let shard = shard(seed, bytes);
            assert_eq!(subject.store.put(shard.clone()).await.expect("a put"), Stored::New);
            assert_held(&*subject.store, &shard).await;
            let length = bytes as u64;
            let parts: [Range<u64>; 5] =
                [0..1, length - 1..length, length / 3..length / 2 + 1, 0..length, 0..length.min(9)];
            for want in parts {
                let read = subject.store.read(shard.id(), Want::Range(want.clone())).await;
                let read = read.expect("a read");
                assert!(read.covered.start <= want.start && want.end <= read.covered.end);
                assert_read(&read, &shard);
            }
        }
    });
}

#[test]
fn a_range_outside_the_shard_is_refused_with_its_length() {
    check(|subject| async move {
        let shard = shard(1, 1000);
        subject.store.put(shard.clone()).await.expect("a put");
        for want in [5..5, 0..1001, 1000..1001, 9..u64::MAX, Range { start: 7, end: 3 }] {
            let error = subject.store.read(shard.id(), Want::Range(want.clone())).await;
            assert!(
                matches!(error, Err(ReadError::OutOfRange { shard_bytes: 1000, .. })),
                "{want:?}: {error:?}"
            );
        }
    });
}

#[test]
fn what_was_never_put_is_not_held() {
    check(|subject| async move {
        let shard = shard(1, 1000);
        let error = subject.store.read(shard.id(), Want::Whole).await;
        assert!(matches!(error, Err(ReadError::NotHeld { id }) if id == shard.id()));
        assert_eq!(subject.store.held(shard.id().chunk).await.expect("an answer"), []);
    });
}

#[test]
fn a_second_put_finds_it_held_and_writes_nothing() {
    check(|subject| async move {
        let shard = shard(1, 50_000);
        assert_eq!(subject.store.put(shard.clone()).await.expect("a put"), Stored::New);
        let before = subject.store.stats().await;
        assert_eq!(subject.store.put(shard).await.expect("a put"), Stored::AlreadyHeld);
        let after = subject.store.stats().await;
        assert_eq!(after.used_bytes, before.used_bytes);
        assert_eq!((after.shards, after.puts, after.duplicates), (1, 1, 1));
    });
}

#[test]
fn puts_of_one_shard_at_once_store_it_once() {
    check(|subject| async move {
        let shard = shard(1, 50_000);
        let puts = (0..20).map(|_| subject.store.put(shard.clone()));
        let stored = futures::future::join_all(puts).await;
        let new = stored.iter().filter(|stored| matches!(stored, Ok(Stored::New))).count();
        assert_eq!(new, 1, "{stored:?}");
        assert!(stored.iter().all(Result::is_ok), "{stored:?}");
        assert_eq!(subject.store.stats().await.shards, 1);
    });
}

#[test]
fn held_and_list_name_each_shard_once_and_in_order() {
    check(|subject| async move {
        let mut all = Vec::new();
        for seed in 0..10 {
            all.extend(chunk(seed, 5, 2000));
        }
        let puts = all.iter().map(|shard| subject.store.put(shard.clone()));
        assert!(futures::future::join_all(puts).await.iter().all(Result::is_ok));
        let held = subject.store.held(all[7].id().chunk).await.expect("an answer");
        assert_eq!(held, (0..5).map(ShardIndex).collect::<Vec<_>>());
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = subject.store.list(after, 7).await.expect("a page");
            listed.extend_from_slice(&page);
            after = page.last().copied();
            if page.len() < 7 {
                break;
            }
        }
        assert_eq!(listed, ids(&all));
        assert_eq!(subject.store.list(None, 0).await.expect("a page"), []);
        let stats = subject.store.stats().await;
        assert_eq!((stats.shards, stats.shard_bytes), (50, 100_000));
    });
}

#[test]
fn a_rotten_shard_is_set_apart_and_can_be_put_again() {
    check(|subject| async move {
        let (shard, sound) = (shard(1, 100_000), shard(2, 100_000));
        for shard in [&shard, &sound] {
            subject.store.put(shard.clone()).await.expect("a put");
        }
        (subject.rot)(&shard, 70_000);
        // A part that has no rot in it is still proved and served.
        let part = subject.store.read(shard.id(), Want::Range(0..10)).await.expect("sound bytes");
        assert_read(&part, &shard);
        for _ in 0..2 {
            let error = subject.store.read(shard.id(), Want::Whole).await;
            assert!(matches!(error, Err(ReadError::Corrupt { .. })), "{error:?}");
        }
        assert_eq!(subject.store.held(shard.id().chunk).await.expect("an answer"), []);
        assert_eq!(subject.store.list(None, 9).await.expect("a page"), [sound.id()]);
        let stats = subject.store.stats().await;
        assert_eq!((stats.shards, stats.quarantined, stats.corrupt), (1, 1, 1));
        assert_eq!(subject.store.put(shard.clone()).await.expect("a put"), Stored::New);
        assert_held(&*subject.store, &shard).await;
        assert_held(&*subject.store, &sound).await;
        let stats = subject.store.stats().await;
        assert_eq!((stats.shards, stats.quarantined), (2, 0));
    });
}

#[test]
fn a_closed_store_says_so() {
    check(|subject| async move {
        let shard = shard(1, 1000);
        subject.store.put(shard.clone()).await.expect("a put");
        subject.store.close().await;
        subject.store.close().await;
        assert!(matches!(subject.store.put(shard.clone()).await, Err(PutError::Closed)));
        let read = subject.store.read(shard.id(), Want::Whole).await;
        assert!(matches!(read, Err(ReadError::Closed)), "{read:?}");
        let checked = subject.store.check(shard.id()).await;
        assert!(matches!(checked, Err(ReadError::Closed)), "{checked:?}");
        let removed = subject.store.remove(shard.id(), RemovalReason::Ordered).await;
        assert!(matches!(removed, Err(RemoveError::Closed)), "{removed:?}");
        let changes = subject.store.arc_changes(None).await;
        assert!(matches!(changes, Err(ReadError::Closed)), "{changes:?}");
    });
}

#[test]
fn a_removed_shard_is_not_held_until_it_is_put_again() {
    check(|subject| async move {
        let store = &*subject.store;
        let (shard, other) = (shard(1, 50_000), shard(2, 1000));
        for shard in [&shard, &other] {
            store.put(shard.clone()).await.expect("a put");
        }
        let arc = Ring::arc(&shard.id().chunk);
        let before = digest(store, arc).await;
        remove(store, &shard, RemovalReason::Ordered).await;
        assert_not_held(store, &shard).await;
        let checked = store.check(shard.id()).await;
        assert!(matches!(checked, Err(ReadError::NotHeld { .. })), "{checked:?}");
        assert_eq!(store.held(shard.id().chunk).await.expect("an answer"), []);
        assert_eq!(store.list(None, 9).await.expect("a page"), [other.id()]);
        assert_eq!(store.list_arc(arc, None, 9).await.expect("a page"), []);
        assert_eq!(digest(store, arc).await, None);
        let stats = store.stats().await;
        assert_eq!((stats.shards, stats.shard_bytes), (1, 1000));
        assert_eq!((stats.trashed, stats.trashed_bytes), (1, 50_000));
        let again = store.remove(shard.id(), RemovalReason::Ordered).await;
        assert_eq!(again.expect("an answer"), Removed::NotHeld);
        let never = store.remove(chunk(3, 2, 9)[1].id(), RemovalReason::Ordered).await;
        assert_eq!(never.expect("an answer"), Removed::NotHeld);
        assert_held(store, &other).await;

        assert_eq!(store.put(shard.clone()).await.expect("a put"), Stored::New);
        assert_held(store, &shard).await;
        assert_eq!(digest(store, arc).await, before);
        let stats = store.stats().await;
        assert_eq!((stats.shards, stats.trashed, stats.trashed_bytes), (2, 0, 0));
        assert_eq!(store.put(shard).await.expect("a put"), Stored::AlreadyHeld);
    });
}

#[test]
fn puts_and_removals_at_once_happen_in_their_order() {
    check(|subject| async move {
        let store = &*subject.store;
        let shard = shard(1, 5000);
        let (id, reason) = (shard.id(), RemovalReason::Surplus);
        let (first, gone, again, back) = tokio::join!(
            biased;
            store.put(shard.clone()),
            store.remove(id, reason),
            store.remove(id, reason),
            store.put(shard.clone()),
        );
        assert_eq!(first.expect("a put"), Stored::New);
        assert_eq!(gone.expect("a removal"), Removed::Removed);
        assert_eq!(again.expect("a removal"), Removed::NotHeld);
        assert_eq!(back.expect("a put"), Stored::New);
        assert_held(store, &shard).await;
    });
}

#[test]
fn trash_leaves_when_its_time_is_over() {
    check(|subject| async move {
        let store = &*subject.store;
        let reasons = [RemovalReason::Ordered, RemovalReason::Surplus, RemovalReason::HandedOver];
        for (seed, reason) in (0..).zip(reasons) {
            store.put(shard(seed, 1000)).await.expect("a put");
            remove(store, &shard(seed, 1000), reason).await;
            subject.time.pass_hours(1);
        }
        // There is room: what is held elsewhere stays as long.
        for (hours, left) in [(7 * 24 - 4, 3), (1, 2), (1, 1), (1, 0)] {
            subject.time.pass_hours(hours);
            (subject.upkeep)().await;
            assert_eq!(store.stats().await.trashed, left);
        }
        assert_eq!(store.stats().await.trashed_bytes, 0);
        assert_eq!(store.put(shard(1, 1000)).await.expect("a put"), Stored::New);
        assert_held(store, &shard(1, 1000)).await;
    });
}

#[test]
fn for_want_of_room_only_what_another_node_holds_leaves_early() {
    check_with(250_000, |subject| async move {
        let store = &*subject.store;
        let reasons = [RemovalReason::Ordered, RemovalReason::HandedOver];
        for (seed, reason) in (0..).zip(reasons) {
            store.put(shard(seed, 110_000)).await.expect("a put");
            remove(store, &shard(seed, 110_000), reason).await;
        }
        let full = store.put(shard(9, 110_000)).await;
        assert!(matches!(full, Err(PutError::Full { .. })), "{full:?}");
        for (minutes, left) in [(59, 2), (2, 1), (24 * 60, 1)] {
            subject.time.0.fetch_add(minutes * 60, Relaxed);
            (subject.upkeep)().await;
            assert_eq!(store.stats().await.trashed, left, "{minutes} minutes");
        }
    });
}

#[test]
fn a_check_reads_all_and_finds_what_a_part_does_not() {
    check(|subject| async move {
        let store = &*subject.store;
        let (shard, sound) = (shard(1, 100_000), shard(2, 100_000));
        for shard in [&shard, &sound] {
            store.put(shard.clone()).await.expect("a put");
            let bytes = store.check(shard.id()).await.expect("a sound shard");
            assert_eq!(bytes, super::super::request::record_bytes(shard));
        }
        (subject.rot)(&shard, 70_000);
        for _ in 0..2 {
            let error = store.check(shard.id()).await;
            assert!(matches!(error, Err(ReadError::Corrupt { .. })), "{error:?}");
        }
        let stats = store.stats().await;
        assert_eq!((stats.shards, stats.quarantined, stats.corrupt), (1, 1, 1));
        store.check(sound.id()).await.expect("a sound shard");
        // A damaged shard that nobody wants any more can be removed, too.
        remove(store, &shard, RemovalReason::Ordered).await;
        assert_not_held(store, &shard).await;
        let stats = store.stats().await;
        assert_eq!((stats.shards, stats.quarantined, stats.trashed), (1, 0, 0));
    });
}

#[test]
fn arcs_tell_what_changed_and_list_it() {
    check(|subject| async move {
        let store = &*subject.store;
        let all: Vec<_> = (0..6).flat_map(|seed| chunk(seed, 5, 2000)).collect();
        for shard in &all {
            store.put(shard.clone()).await.expect("a put");
        }
        let start = store.arc_changes(None).await.expect("an answer");
        assert!(start.all && start.changed.is_sorted_by_key(|digest| digest.arc));
        assert_eq!(start.changed.iter().map(|digest| digest.shards).sum::<u32>(), 30);
        let nothing = store.arc_changes(Some(start.now)).await.expect("an answer");
        assert_eq!((nothing.all, nothing.now, nothing.changed.len()), (false, start.now, 0));

        let chunk = &all[5..10];
        let arc = Ring::arc(&chunk[0].id().chunk);
        let mut after = None;
        for shard in chunk {
            let page = store.list_arc(arc, after, 1).await.expect("a page");
            assert_eq!((page[0].id, page[0].shard_bytes), (shard.id(), 2000));
            assert_eq!((page[0].geometry.data(), page[0].geometry.total()), (1, 5));
            after = Some(page[0].id);
        }
        assert_eq!(store.list_arc(arc, after, 1).await.expect("a page"), []);
        assert_eq!(store.list_arc(arc, None, 0).await.expect("a page"), []);
        // Behind a shard of an arc before it: all of this one.
        let before =
            all.iter().map(VerifiedShard::id).filter(|id| Ring::arc(&id.chunk) < arc).max();
        assert_eq!(store.list_arc(arc, before, 9).await.expect("a page").len(), 5);

        for shard in chunk {
            remove(store, shard, RemovalReason::Surplus).await;
        }
        let changes = store.arc_changes(Some(start.now)).await.expect("an answer");
        let empty = ArcDigest { arc, shards: 0, sum: [0; 16] };
        assert_eq!((changes.all, changes.changed), (false, vec![empty]));
        let mut ahead = changes.now;
        ahead.revision += 1;
        assert!(store.arc_changes(Some(ahead)).await.expect("an answer").all);
    });
}

#[test]
fn a_ledger_keeps_what_it_is_told_in_order() {
    check(|subject| async move {
        let ledger = subject.store.ledger();
        let text = |text: &str| text.as_bytes().to_vec();
        let set = |key: &str, value: &str| (text(key), Some(text(value)));
        ledger.apply(vec![set("q/2", "b"), set("q/1", "a"), set("r", "c")]).expect("a batch");
        ledger.apply(vec![(text("r"), None), set("q", "d"), set("q", "e")]).expect("a batch");
        assert_eq!(ledger.get(b"q").expect("a value"), Some(text("e")));
        assert_eq!(ledger.get(b"r").expect("no value"), None);
        let scan = |prefix: &[u8], limit: usize| {
            let mut found = Vec::new();
            let visit = &mut |key: &[u8], value: &[u8]| {
                found.push((key.to_vec(), value.to_vec()));
                found.len() < limit
            };
            ledger.scan(prefix, visit).expect("a scan");
            found
        };
        let [one, two] = [(text("q/1"), text("a")), (text("q/2"), text("b"))];
        assert_eq!(scan(b"q/", 9), [one.clone(), two.clone()]);
        assert_eq!(scan(b"", 9), [(text("q"), text("e")), one.clone(), two]);
        assert_eq!(scan(b"q/", 1), [one]);
        for refused in [
            (vec![0; LEDGER_KEY_BYTES_MAX + 1], None),
            (vec![0], Some(vec![0; LEDGER_VALUE_BYTES_MAX + 1])),
        ] {
            let error = ledger.apply(vec![set("q", "f"), refused]).expect_err("too much");
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        }
        assert_eq!(ledger.get(b"q").expect("a value"), Some(text("e")), "all or nothing");
        // Shards and entries do not see one another.
        subject.store.put(shard(1, 10)).await.expect("a put");
        assert_eq!(subject.store.list(None, 9).await.expect("a page").len(), 1);
        assert_eq!(scan(b"", 9).len(), 3);
    });
}
