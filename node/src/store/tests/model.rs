//! Lists of actions against a model: nothing acknowledged is lost, nothing wrong is returned.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    super::{
        Stored,
        file::Planned,
        index::{Entry, State},
        request::record_bytes,
    },
    *,
};

#[derive(Debug, Clone)]
enum Action {
    /// Put some shards at once.
    Put(Vec<u64>),
    /// Remove some shards at once.
    Remove(Vec<u64>),
    /// Let so many hours pass.
    Pass(u64),
    /// Empty the trash of what is due, compact what is worth it.
    Compact,
    /// Close and open.
    Reopen,
    /// Put a shard, and crash with so much of the write on the disk (in 1/256) and nothing of it
    /// in the index.
    Tear(u64, u8),
    /// Flip a bit in a shard's record, at so much of its length (in 1/65536).
    Flip(u64, u16),
    /// Close, delete the index, open.
    DeleteIndex,
    /// The same on a disk that does not give some bytes of a segment (which, and where in 1/256), and
    /// gives them again before or after a compaction (or without one), and at the next start.
    Fail(u8, u8, u8, Mended),
    /// Remember the index as it is now.
    CopyIndex,
    /// Close, put the remembered index back, open.
    OldIndex,
}

/// When a disk that failed gives its bytes again, as to a compaction; never: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mended {
    Before,
    After,
    Never,
}

/// What must be true of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    /// Acknowledged and whole: it must be read.
    Held,
    /// Acknowledged as removed: it must not be found.
    Removed,
    /// Damaged by us or never acknowledged: right bytes or an error.
    Unsure,
}

fn action() -> impl Strategy<Value = Action> {
    let seed = 0..12_u64;
    prop_oneof![
        6 => prop::collection::vec(seed.clone(), 1..6).prop_map(Action::Put),
        4 => prop::collection::vec(seed.clone(), 1..6).prop_map(Action::Remove),
        2 => (1..400_u64).prop_map(Action::Pass),
        4 => Just(Action::Compact),
        2 => Just(Action::Reopen),
        3 => (seed.clone(), any::<u8>()).prop_map(|(seed, part)| Action::Tear(seed, part)),
        3 => (seed, any::<u16>()).prop_map(|(seed, at)| Action::Flip(seed, at)),
        2 => Just(Action::DeleteIndex),
        2 => (any::<u8>(), any::<u8>(), any::<u8>(), prop_oneof![
            Just(Mended::Before),
            Just(Mended::After),
            Just(Mended::Never),
        ])
        .prop_map(|(segment, begin, length, mended)| Action::Fail(segment, begin, length, mended)),
        1 => Just(Action::CopyIndex),
        2 => Just(Action::OldIndex),
    ]
}

fn nth(seed: u64) -> VerifiedShard {
    let sizes = [20, 300, 16_384, 20_000, 150_000, 400_000];
    shard(seed, sizes[usize::try_from(seed).expect("small") % sizes.len()])
}

struct World {
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
    copy: tempfile::TempDir,
    /// The segments there were when the index was copied; none if it cannot come back.
    copied: Option<BTreeSet<PathBuf>>,
    time: Time,
    store: Option<DiskStore>,
    truth: BTreeMap<u64, Truth>,
    /// Shards of which a bit was flipped: their rows need not be what the files give any more.
    flipped: BTreeSet<u64>,
    faults: Faults,
    /// The disk failed once: copies may be counted that are not there.
    failed: bool,
}

impl World {
    fn new() -> Self {
        let dir = directory();
        init(dir.path());
        let mut world = Self {
            runtime: runtime(),
            dir,
            copy: directory(),
            copied: None,
            time: Time::new(),
            store: None,
            truth: BTreeMap::new(),
            flipped: BTreeSet::new(),
            faults: Faults::none(),
            failed: false,
        };
        world.store = Some(world.open());
        world
    }

    fn open(&self) -> DiskStore {
        // A few shards a segment: compactions are frequent.
        let (trash, faults) = (self.time.trash(), self.faults.clone());
        let options = DiskOptions { trash, faults, segment_bytes_max: 500_000, ..options() };
        DiskStore::open(self.dir.path(), NODE, &options).expect("an open store")
    }

    fn store(&self) -> &DiskStore {
        self.store.as_ref().expect("an open store")
    }

    fn close(&mut self) {
        let store = self.store.take().expect("an open store");
        self.runtime.block_on(store.close());
    }

    /// The index is gone, and a new one is made. That is flushed before the store is open, so no power
    /// cut brings the old one back: it might know a record that is cut now, since it rotted at the end.
    fn lose_index(&mut self) {
        self.copied = None;
        self.between(|world| delete_index(world.dir.path()));
    }

    /// Closes, does something to the files, opens.
    fn between(&mut self, change: impl FnOnce(&mut Self)) {
        self.close();
        change(self);
        self.store = Some(self.open());
    }

    fn put(&mut self, seeds: &[u64]) {
        let store = self.store();
        let puts = seeds.iter().map(|&seed| store.put(nth(seed)));
        let stored = self.runtime.block_on(futures::future::join_all(puts));
        for (&seed, stored) in seeds.iter().zip(stored) {
            match (stored.expect("the disk is well"), self.truth.get(&seed)) {
                (Stored::New, truth) => {
                    assert_ne!(truth, Some(&Truth::Held), "{seed} was forgotten");
                    self.truth.insert(seed, Truth::Held);
                }
                (Stored::AlreadyHeld, truth) => {
                    assert!(
                        truth.is_some_and(|truth| *truth != Truth::Removed),
                        "{seed} came back"
                    );
                }
            }
        }
    }

    fn remove(&mut self, seeds: &[u64]) {
        let store = self.store();
        let removals =
            seeds.iter().map(|&seed| store.remove(nth(seed).id(), RemovalReason::Ordered));
        let removed = self.runtime.block_on(futures::future::join_all(removals));
        for (&seed, removed) in seeds.iter().zip(removed) {
            match (removed.expect("the disk is well"), self.truth.get(&seed)) {
                (Removed::Removed, truth) => {
                    let held = matches!(truth, Some(Truth::Held | Truth::Unsure));
                    assert!(held, "{seed} was not there");
                }
                (Removed::NotHeld, truth) => {
                    assert_ne!(truth, Some(&Truth::Held), "{seed} was forgotten");
                }
            }
            // A copy whose header was damaged is not known, and may be sound again after a second
            // flip: then a lost index brings it back.
            if self.truth.get(&seed) == Some(&Truth::Held) {
                let known = !self.flipped.contains(&seed);
                self.truth.insert(seed, if known { Truth::Removed } else { Truth::Unsure });
            }
        }
    }

    fn segments(&self) -> BTreeSet<PathBuf> {
        let dir = std::fs::read_dir(self.dir.path().join("segments")).expect("segments");
        dir.map(|file| file.expect("a file").path()).collect()
    }

    /// The rows, with those in the trash as if their time was over: an index that is built again
    /// has not looked at the clock yet.
    fn rows(&self) -> BTreeMap<ShardId, Entry> {
        let mut rows = self.runtime.block_on(self.store().rows());
        for row in rows.values_mut() {
            if let State::Trashed(mark) = row.state {
                row.state = State::Gone(mark);
            }
        }
        rows
    }

    fn delete_index(&mut self) {
        let before = self.rows();
        self.lose_index();
        if self.is_exact() {
            assert_eq!(self.rows(), before, "the same, however it is made");
        }
    }

    fn last_segment(&self) -> (PathBuf, u64) {
        let last = self.segments().into_iter().max();
        last.map_or_else(Default::default, |path| {
            let bytes = std::fs::metadata(&path).expect("a segment").len();
            (path, bytes)
        })
    }

    fn tear(&mut self, seed: u64, part: u8) {
        if self.truth.contains_key(&seed) {
            return;
        }
        self.close();
        let before = directory();
        copy_index(self.dir.path(), before.path());
        let (old, old_bytes) = self.last_segment();
        self.store = Some(self.open());
        self.put(&[seed]);
        self.truth.insert(seed, Truth::Unsure);
        self.between(|world| {
            let (new, new_bytes) = world.last_segment();
            let written = if new == old { new_bytes - old_bytes } else { new_bytes };
            cut(&new, written * u64::from(part) / 256);
            copy_index(before.path(), world.dir.path());
        });
    }

    fn flip(&mut self, seed: u64, at: u16) {
        let shard = nth(seed);
        // What was removed may still lie there: then it is no damage that anybody sees.
        if self.truth.get(&seed) == Some(&Truth::Removed) {
            return;
        }
        let Some((path, data_at)) = find(self.dir.path(), &shard) else { return };
        self.flipped.insert(seed);
        let record = record_bytes(&shard);
        let begin = data_at + shard.data().len() as u64 - record;
        flip(&path, begin + record * u64::from(at) / 65_536);
        self.truth.insert(seed, Truth::Unsure);
    }

    /// Whether the rows are what the files give, to the last count.
    fn is_exact(&self) -> bool {
        self.flipped.is_empty() && !self.failed
    }

    fn fail(&mut self, [segment, begin, length]: [u8; 3], mended: Mended) {
        let segments: Vec<_> = self.segments().into_iter().collect();
        let Some(path) = segments.get(usize::from(segment) % segments.len().max(1)) else { return };
        let bytes = std::fs::metadata(path).expect("a segment").len();
        let begin = bytes * u64::from(begin) / 256;
        let end = begin + 1 + bytes * u64::from(length) / 512;
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let number = segment::number_of(name).expect("a segment");
        self.failed = true;
        let unreadable = Some((number, begin..end));
        self.faults.plan(Planned { unreadable, ..Planned::default() });
        self.lose_index();
        if mended == Mended::Before {
            self.faults.plan(Planned::default());
        }
        if mended != Mended::Never {
            self.runtime.block_on(self.store().compact());
        }
        self.faults.plan(Planned::default());
        self.between(|_| {});
        // A removal that could not be read does not count: what comes back is no loss.
        for truth in self.truth.values_mut().filter(|truth| **truth == Truth::Removed) {
            *truth = Truth::Unsure;
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Put(seeds) => self.put(seeds),
            Action::Remove(seeds) => self.remove(seeds),
            Action::Pass(hours) => self.time.pass_hours(*hours),
            Action::Compact => self.runtime.block_on(self.store().compact()),
            Action::Reopen => self.between(|_| {}),
            Action::Tear(seed, part) => self.tear(*seed, *part),
            Action::Flip(seed, at) => self.flip(*seed, *at),
            Action::DeleteIndex => self.delete_index(),
            Action::Fail(segment, begin, length, mended) => {
                self.fail([*segment, *begin, *length], *mended);
            }
            Action::CopyIndex => {
                self.between(|world| copy_index(world.dir.path(), world.copy.path()));
                self.copied = Some(self.segments());
            }
            Action::OldIndex => {
                // Nor one from before a segment was deleted: it is flushed first.
                let now = self.segments();
                if self.copied.as_ref().is_some_and(|copied| copied.is_subset(&now)) {
                    self.between(|world| copy_index(world.copy.path(), world.dir.path()));
                }
            }
        }
    }

    fn check(&self) {
        let store = self.store();
        self.runtime.block_on(async {
            for seed in 0..12 {
                let shard = nth(seed);
                let read = store.read(shard.id(), Want::Whole).await;
                match (self.truth.get(&seed), read) {
                    (Some(Truth::Held | Truth::Unsure), Ok(read)) => assert_read(&read, &shard),
                    (Some(Truth::Unsure), Err(ReadError::NotHeld { .. }))
                    | (Some(Truth::Unsure), Err(ReadError::Corrupt { .. }))
                    | (None | Some(Truth::Removed), Err(ReadError::NotHeld { .. })) => {}
                    (truth, read) => panic!("{seed} is {truth:?}, read {read:?}"),
                }
            }
            let listed = store.list(None, usize::MAX).await.expect("a list");
            assert_eq!(store.stats().await.shards, listed.len() as u64);
            store.audit().await;
            if self.is_exact() {
                assert_copies(store, self.dir.path()).await;
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn nothing_acknowledged_is_lost_and_nothing_wrong_is_returned(
        actions in prop::collection::vec(action(), 1..30)
    ) {
        let mut world = World::new();
        for action in &actions {
            world.act(action);
            world.check();
        }
        world.close();
    }
}
