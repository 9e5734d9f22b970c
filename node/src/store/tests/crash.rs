//! kill -9 at any moment, also of a compaction: what was acknowledged is there, what was removed is
//! not.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use futures::{StreamExt, stream};

use super::{super::Want, *};

const CHILD_DIR: &str = "COPSE_TEST_STORE_DIR";
const CHILD_FIRST: &str = "COPSE_TEST_STORE_FIRST";
const CHILD_REMOVES: &str = "COPSE_TEST_STORE_REMOVES";
/// Puts in flight in the child.
const AT_ONCE: usize = 6;
/// A child that is never killed ends after so many.
const PUTS_MAX: u64 = 5000;

fn nth(seed: u64) -> VerifiedShard {
    // From one byte to half a segment.
    shard(seed, 1 + usize::try_from(seed * 7919 % 300_000).expect("small"))
}

/// Of four shards three are removed again, so that there is much to compact.
fn is_kept(seed: u64) -> bool {
    seed.is_multiple_of(4)
}

/// How many shards later the time of a removed one is over: meanwhile it may be moved as trash.
const TRASH_FOR_PUTS: u64 = 25;
/// How many shards there are between two compactions.
const COMPACT_EVERY: u64 = 9;

/// Not a test: the process that is killed. Prints the number of each shard once it is acknowledged,
/// before it is removed, and once that is acknowledged.
#[test]
#[ignore = "started by the tests below"]
fn child() {
    let (Ok(dir), Ok(first)) = (std::env::var(CHILD_DIR), std::env::var(CHILD_FIRST)) else {
        return;
    };
    let first: u64 = first.parse().expect("a number");
    let removes = std::env::var(CHILD_REMOVES).is_ok();
    // The time of day is the number of the shard.
    let now = Arc::new(AtomicU64::new(first));
    let clock = Arc::clone(&now);
    let mut options = options();
    options.trash = TrashOptions::new(Arc::new(move || clock.load(Relaxed)));
    options.trash.trash_for = std::time::Duration::from_secs(TRASH_FOR_PUTS);
    let say = |what: &str, seed: u64| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{what} {seed}").and_then(|()| out.flush()).expect("a parent");
    };
    runtime().block_on(async {
        let store = DiskStore::open(Path::new(&dir), NODE, &options).expect("an open store");
        let (store, now) = (&store, &now);
        stream::iter(first..first + PUTS_MAX)
            .for_each_concurrent(AT_ONCE, |seed| async move {
                now.store(seed, Relaxed);
                store.put(nth(seed)).await.expect("a put");
                say("stored", seed);
                if removes && !is_kept(seed) {
                    say("removing", seed);
                    remove(store, &nth(seed), RemovalReason::Ordered).await;
                    say("removed", seed);
                }
                if removes && seed.is_multiple_of(COMPACT_EVERY) {
                    store.compact().await;
                }
            })
            .await;
    });
}

/// What the children said.
#[derive(Default)]
struct Said {
    stored: BTreeSet<u64>,
    removing: BTreeSet<u64>,
    removed: BTreeSet<u64>,
}

impl Said {
    /// Takes note of a line. Says whether it is news.
    fn note(&mut self, line: &str) -> bool {
        // The test harness prints without a line end before it.
        let about = |word: &str| {
            line.split_once(word).and_then(|(_, seed)| seed.trim().parse::<u64>().ok())
        };
        if let Some(seed) = about("stored ") {
            self.stored.insert(seed)
        } else if let Some(seed) = about("removing ") {
            self.removing.insert(seed)
        } else if let Some(seed) = about("removed ") {
            self.removed.insert(seed)
        } else {
            false
        }
    }

    /// Reads what a child says, kills it after so many lines, and reads the rest.
    fn kill_after(&mut self, mut child: Child, lines_max: usize) {
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut seen = 0;
        while seen < lines_max {
            let line = lines.next().expect("more to come").expect("a line");
            seen += usize::from(self.note(&line));
        }
        child.kill().expect("kill -9");
        // What was printed before the kill counts too.
        for line in lines.map_while(Result::ok) {
            self.note(&line);
        }
        child.wait().expect("its end");
    }

    async fn check(&self, store: &DiskStore) {
        for &seed in self.stored.difference(&self.removing) {
            assert_held(store, &nth(seed)).await;
        }
        for &seed in &self.removed {
            assert_not_held(store, &nth(seed)).await;
        }
        // What was not acknowledged may be there, but only whole.
        for id in store.list(None, usize::MAX).await.expect("a list") {
            store.read(id, Want::Whole).await.expect("a sound shard");
        }
        store.audit().await;
    }
}

fn start(dir: &Path, first: u64, removes: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["store::tests::crash::child", "--exact", "--ignored", "--nocapture"])
        .env(CHILD_DIR, dir)
        .env(CHILD_FIRST, first.to_string())
        .stdout(Stdio::piped());
    if removes {
        command.env(CHILD_REMOVES, "yes");
    }
    command.spawn().expect("a child")
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let dir = tempfile::tempdir().expect("a directory");
    init(dir.path());
    let mut said = Said::default();
    let mut first = 0;
    for round in 0..12_usize {
        said.kill_after(start(dir.path(), first, false), round * round % 41);
        first += PUTS_MAX;
        if round % 3 == 2 {
            delete_index(dir.path());
        }
        runtime().block_on(async {
            let store = open(dir.path());
            let recovery = store.recovery();
            assert_eq!(recovery.damaged, 0, "round {round}: {recovery:?}");
            said.check(&store).await;
            store.close().await;
        });
    }
    assert!(said.stored.len() > 100, "only {} were stored", said.stored.len());
}

#[test]
fn nothing_removed_comes_back_by_kill_9_in_a_compaction() {
    let dir = directory();
    init(dir.path());
    let mut said = Said::default();
    let (mut first, mut compactions) = (0, 0);
    for round in 0..16_usize {
        said.kill_after(start(dir.path(), first, true), 40 + round * 37 % 101);
        first += PUTS_MAX;
        if round % 3 == 2 {
            delete_index(dir.path());
        }
        runtime().block_on(async {
            let store = open(dir.path());
            let recovery = store.recovery();
            assert_eq!(recovery.damaged, 0, "round {round}: {recovery:?}");
            said.check(&store).await;
            // The parent's clock is decades ahead: all trash is over.
            if round % 4 == 3 {
                store.compact().await;
                compactions += store.stats().await.compactions;
                said.check(&store).await;
            }
            store.close().await;
        });
    }
    assert!(said.removed.len() > 200, "only {} were removed", said.removed.len());
    assert!(compactions > 0);
    delete_index(dir.path());
    runtime().block_on(async {
        let store = open(dir.path());
        said.check(&store).await;
        store.close().await;
    });
}
