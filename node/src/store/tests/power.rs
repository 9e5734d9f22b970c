//! Lists of actions on a simulated disk, with the end of the process at any operation of the disk: nothing
//! acknowledged is lost, nothing wrong is returned, nothing removed comes back.

use std::{
    collections::BTreeMap,
    sync::{Mutex, Weak},
};

use copse_core::random::Random;
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use super::{
    super::{
        Stored,
        memory::{Effects, Faults, Step, Unsynced, Watch},
        simulated::{SimulatedOptions, SimulatedStore},
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
    /// So many steps of the upkeep that is due.
    Compact(usize),
    /// The process ends, and another opens the store.
    Reopen,
}

/// The end of a process.
#[derive(Debug, Clone, Copy)]
struct End {
    /// At which moment right before or after an operation of the disk, counted from where it is armed.
    at: usize,
    /// Power goes; else the process is killed.
    power: bool,
    /// So many of the newest batches of the index are gone.
    batches: usize,
    /// What becomes of what was not synced.
    fates: u64,
}

/// What must be true of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    Held,
    Removed,
    /// The process ended over it: held or not, and from the next opening on what that found.
    Unsure,
}

fn action() -> impl Strategy<Value = Action> {
    let seed = 0..9_u64;
    prop_oneof![
        6 => prop::collection::vec(seed.clone(), 1..6).prop_map(Action::Put),
        4 => prop::collection::vec(seed, 1..6).prop_map(Action::Remove),
        1 => (1..400_u64).prop_map(Action::Pass),
        5 => (1..12_usize).prop_map(Action::Compact),
        1 => Just(Action::Reopen),
    ]
}

fn end() -> impl Strategy<Value = End> {
    // A put alone has two operations: the ends must come soon to fall between them.
    let at = prop_oneof![3 => 0..6_usize, 1 => 6..40_usize];
    (at, any::<bool>(), 0..12_usize, any::<u64>()).prop_map(|(at, power, batches, fates)| End {
        at,
        power,
        batches,
        fates,
    })
}

fn nth(seed: u64) -> VerifiedShard {
    let sizes = [20, 300, 16_384, 20_000, 90_000];
    shard(seed, sizes[usize::try_from(seed).expect("small") % sizes.len()])
}

/// Ends the process when its time has come.
#[derive(Debug)]
struct Fuse {
    store: Weak<SimulatedStore>,
    armed: Mutex<Option<End>>,
}

impl Fuse {
    fn arm(&self, end: Option<End>) {
        *self.armed.lock().expect("no panic") = end;
    }
}

impl Watch for Fuse {
    fn step(&self, _step: Step, _is_done: bool) {
        let mut armed = self.armed.lock().expect("no panic");
        match armed.as_mut() {
            Some(end) if end.at > 0 => end.at -= 1,
            Some(_) => {
                let end = armed.take().expect("an end");
                drop(armed);
                strike(&self.store.upgrade().expect("a store"), end);
            }
            None => {}
        }
    }
}

fn strike(store: &SimulatedStore, end: End) {
    let mut random = Random::new(&[7; 32], &end.fates.to_string());
    let before = store.faults();
    store.set_faults(Faults { forgotten_batches: end.batches, ..before.clone() });
    store.end(end.power, || match random.below(4) {
        0 | 1 => Unsynced::Whole,
        2 => Unsynced::Torn,
        _ => Unsynced::Gone,
    });
    store.set_faults(before);
}

struct World {
    runtime: tokio::runtime::Runtime,
    store: Arc<SimulatedStore>,
    fuse: Arc<Fuse>,
    time: Time,
    truth: BTreeMap<u64, Truth>,
}

impl World {
    fn new(seed: u8, index_lost_one_in: u64) -> Self {
        let time = Time::new();
        let store = Arc::new(SimulatedStore::new(SimulatedOptions {
            capacity_bytes: 1 << 30,
            // A few shards a segment: compactions are frequent.
            segment_bytes_max: 120_000,
            compaction_bytes_per_second: 0,
            trash: time.trash(),
            epoch: 1,
            index_lost_one_in,
            seed: [seed; 32],
        }));
        let fuse = Arc::new(Fuse { store: Arc::downgrade(&store), armed: Mutex::default() });
        store.watch(Some(Arc::clone(&fuse) as Arc<dyn Watch>));
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().expect("a runtime");
        let mut world = Self { runtime, store, fuse, time, truth: BTreeMap::new() };
        world.open(None);
        world
    }

    /// Opens the store; also again, when the process ends over it.
    fn open(&mut self, end: Option<End>) {
        self.fuse.arm(end);
        self.runtime.block_on(async {
            if self.store.open().is_err() {
                assert!(end.is_some(), "nothing failed");
                self.fuse.arm(None);
                self.store.open().expect("an open store");
            }
        });
        self.fuse.arm(None);
        // What was found is durable.
        let unsure: Vec<u64> =
            self.truth.iter().filter(|it| *it.1 == Truth::Unsure).map(|it| *it.0).collect();
        for seed in unsure {
            let read = self.runtime.block_on(self.store.read(nth(seed).id(), Want::Whole));
            let truth = match read {
                Ok(_) => Truth::Held,
                Err(ReadError::NotHeld { .. }) => Truth::Removed,
                // Torn, and something whole behind it.
                Err(ReadError::Corrupt { .. }) => Truth::Unsure,
                Err(error) => panic!("{seed}: {error}"),
            };
            self.truth.insert(seed, truth);
        }
    }

    fn put(&mut self, seeds: &[u64]) {
        let store = &self.store;
        let puts = seeds.iter().map(|&seed| store.put(nth(seed)));
        let stored = self.runtime.block_on(futures::future::join_all(puts));
        for (&seed, stored) in seeds.iter().zip(stored) {
            let truth = self.truth.get(&seed).copied();
            match stored {
                Ok(Stored::New) => {
                    assert_ne!(truth, Some(Truth::Held), "{seed} was forgotten");
                    self.truth.insert(seed, Truth::Held);
                }
                Ok(Stored::AlreadyHeld) => assert_eq!(truth, Some(Truth::Held), "{seed} came back"),
                Err(_) if truth == Some(Truth::Held) => {}
                Err(_) => drop(self.truth.insert(seed, Truth::Unsure)),
            }
        }
    }

    fn remove(&mut self, seeds: &[u64]) {
        let store = &self.store;
        let removals =
            seeds.iter().map(|&seed| store.remove(nth(seed).id(), RemovalReason::Ordered));
        let removed = self.runtime.block_on(futures::future::join_all(removals));
        for (&seed, removed) in seeds.iter().zip(removed) {
            let truth = self.truth.get(&seed).copied();
            match removed {
                Ok(Removed::Removed) => {
                    let was = matches!(truth, Some(Truth::Held | Truth::Unsure));
                    assert!(was, "{seed} was {truth:?}");
                    self.truth.insert(seed, Truth::Removed);
                }
                Ok(Removed::NotHeld) => assert_ne!(truth, Some(Truth::Held), "{seed} is gone"),
                Err(_) if matches!(truth, None | Some(Truth::Removed)) => {}
                Err(_) => drop(self.truth.insert(seed, Truth::Unsure)),
            }
        }
    }

    fn act(&mut self, action: &Action, end: Option<End>, opening: Option<End>) {
        self.fuse.arm(end);
        match action {
            Action::Put(seeds) => self.put(seeds),
            Action::Remove(seeds) => self.remove(seeds),
            Action::Pass(hours) => self.time.pass_hours(*hours),
            Action::Compact(steps) => self.runtime.block_on(self.store.compact_steps(*steps)),
            Action::Reopen => {
                self.fuse.arm(None);
                strike(
                    &self.store,
                    end.unwrap_or(End { at: 0, power: true, batches: 3, fates: 0 }),
                );
            }
        }
        self.fuse.arm(None);
        if self.store.is_open() {
            return;
        }
        self.open(opening);
    }

    fn check(&self, lies: bool) {
        let store = &*self.store;
        self.runtime.block_on(async {
            let mut held = Vec::new();
            for seed in 0..9 {
                let shard = nth(seed);
                let read = store.read(shard.id(), Want::Whole).await;
                match (self.truth.get(&seed), read) {
                    (Some(Truth::Held), Ok(read)) => {
                        assert_read(&read, &shard);
                        held.push(shard.id());
                    }
                    (Some(Truth::Unsure), Err(ReadError::Corrupt { .. }))
                    | (
                        Some(Truth::Unsure | Truth::Removed) | None,
                        Err(ReadError::NotHeld { .. }),
                    ) => {}
                    (truth, read) => panic!("{seed} is {truth:?}, read {read:?}"),
                }
            }
            held.sort_unstable();
            assert_eq!(store.list(None, usize::MAX).await.expect("a list"), held);
            if !lies {
                assert_eq!(store.sound(), held, "who knows more says the same");
            }
            assert_eq!(store.damaged_unnoticed(), []);
            store.audit().await;
        });
    }
}

type Acts = Vec<(Action, Option<End>, Option<End>)>;

fn acts() -> impl Strategy<Value = Acts> {
    let some = |of, end| prop_oneof![of => Just(None), 2 => Strategy::prop_map(end, Some)];
    prop::collection::vec((action(), some(3, end()), some(5, end())), 1..40)
}

/// All of it, on a disk that may lie about syncs.
fn run(acts: &Acts, seed: u8, loses_index: bool, lies: bool) -> Effects {
    let mut world = World::new(seed, if loses_index { 4 } else { 0 });
    world.store.set_faults(Faults { lie_about_syncs: lies, ..Faults::default() });
    for (action, end, opening) in acts {
        world.act(action, *end, *opening);
        world.check(lies);
    }
    world.store.effects()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn whenever_the_process_ends_nothing_acknowledged_is_lost_and_nothing_removed_comes_back(
        acts in acts(), seed in any::<u8>(), loses_index in any::<bool>(),
    ) {
        run(&acts, seed, loses_index, false);
    }
}

/// A test that cannot fail proves nothing: what goes wrong does have an effect, and a disk that lies about
/// syncs is found out.
#[test]
fn a_disk_that_lies_about_syncs_is_found_out_and_all_that_is_drawn_has_an_effect() {
    let mut runner = TestRunner::deterministic();
    let mut drawn = || acts().new_tree(&mut runner).expect("some actions").current();
    let mut effects = Effects::default();
    for seed in 0..40 {
        effects += run(&drawn(), seed, true, false);
    }
    let Effects { torn, unsynced_lost, forgotten_batches, segments_deleted, indexes_lost, .. } =
        effects;
    let all = [torn, unsynced_lost, forgotten_batches, segments_deleted, indexes_lost];
    assert!(all.iter().all(|&count| count > 0), "{effects:?}");
    let found_out = (0..40).any(|seed| {
        let acts = drawn();
        std::panic::catch_unwind(|| run(&acts, seed, false, true)).is_err()
    });
    assert!(found_out);
}
