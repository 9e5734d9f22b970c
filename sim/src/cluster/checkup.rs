//! Checks of a client: what `copse check` finds, and `copse check --repair` makes anew.
//!
//! Owns when they are made and what they must say when all is calm: what a look at all disks says.
//! While things go wrong any answer may be out of date, so none is held to anything; but what a
//! repair does must break none of the promises.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use copse_client::{
    check::{CheckOptions, CheckReport, Checker, Strength, check_tree},
    get::Downloader,
    network::Network,
    tree_read::TreeReader,
};
use copse_core::{capability::Capability, manifest::ChunkRef};
use copse_proto::convert::HAS_CHUNKS_MAX;

use super::{
    check::{Broken, Promise},
    client::Client,
    ledger::PromisedTree,
};

/// Single chunks that are checked at once while things go wrong.
const CHUNKS_CHECKED: usize = 8;

/// A check may take longer than other calls: it reads the nodes of a tree one after the other, asks
/// twice who has what, and repairs a few chunks at a time.
pub(super) const CHECK_MAX: Duration = Duration::from_secs(600);

/// Part of the checks that have everything proved.
pub(super) const DEEP: f64 = 0.5;

/// Part of the checks that are by a list of a tree's chunks, where there are such.
const LISTS: f64 = 0.4;

impl Client {
    /// Checks some tree or some chunks, and makes the shards that are missing.
    pub(super) async fn check_some(&mut self, network: &Network) {
        if self.settings.ways && self.rng.chance(LISTS) {
            return self.list_some(network).await;
        }
        let checker = self.checker(network);
        let options = CheckOptions { deep: self.rng.chance(DEEP), repair: self.settings.repairs };
        let (trees, promised) = (self.ledger.trees(), self.ledger.promised());
        let what = format!("a check of client {}", self.name);
        let checked = if !trees.is_empty() && self.rng.chance(0.5) {
            let one = Arc::clone(&trees[self.rng.below(trees.len())]);
            let checking = tree_checked(network, &one, &checker, options);
            let report = self.ledger.within(CHECK_MAX, &what, checking).await;
            report.map(|report| (report.chunks, report.rebuilt_shards))
        } else if !promised.is_empty() {
            let some = (0..CHUNKS_CHECKED)
                .map(|_| ChunkRef::from(&promised[self.rng.below(promised.len())].extent));
            // Each once, or it would be repaired as often.
            let chunks: Vec<ChunkRef> = some.collect::<BTreeSet<_>>().into_iter().collect();
            let checking = async { Ok::<_, String>(mended(&checker, &chunks, options).await) };
            let made = self.ledger.within(CHECK_MAX, &what, checking).await;
            made.map(|made| (chunks.len() as u64, made))
        } else {
            return;
        };
        let name = self.name;
        match checked {
            Ok((chunks, made)) => {
                let work = &mut self.ledger.lock().work;
                work.checks += 1;
                work.mended += made;
                self.trace.note(format_args!(
                    "client {name}: checked {chunks} chunks, made {made} shards"
                ));
            }
            Err(error) => self.trace.note(format_args!("client {name}: cannot check: {error}")),
        }
    }

    /// Whether a check says of everything that was promised that it is whole.
    pub(super) async fn all_is_whole(&mut self, network: &Network) -> Result<(), Broken> {
        let checker = self.checker(network);
        let what = format!("the last check of client {}", self.name);
        let hung = |error| Broken::new(Promise::Service, error);
        let options = CheckOptions { deep: true, repair: false };
        for one in self.ledger.trees() {
            let checking = tree_checked(network, &one, &checker, options);
            let report = self.ledger.within(CHECK_MAX, &what, checking).await.map_err(hung)?;
            is_whole(&report, &one)?;
        }
        for one in self.ledger.lists() {
            self.list_is_whole(network, &one, &checker).await?;
        }
        for chunks in self.ledger.chunks().chunks(HAS_CHUNKS_MAX) {
            let checking = async { Ok::<_, String>(checker.check(chunks, true).await) };
            let found = self.ledger.within(CHECK_MAX, &what, checking).await.map_err(hung)?;
            for health in found {
                if health.strength() != Strength::Whole {
                    let (chunk, have) = (health.chunk.id.short(), health.have());
                    let (total, silent) = (health.chunk.geometry.total(), health.silent());
                    let how = format!(
                        "a check finds {have} of {total} shards of chunk {chunk}, {silent} nodes \
                         are silent; all are there"
                    );
                    return Err(Broken::new(Promise::Strength, how));
                }
            }
        }
        Ok(())
    }

    pub(super) fn checker(&mut self, network: &Network) -> Checker {
        let mut seed = [0; 32];
        seed.as_chunks_mut::<8>()
            .0
            .iter_mut()
            .for_each(|part| *part = self.rng.next_u64().to_le_bytes());
        Checker::new(network.clone(), &seed)
    }
}

async fn tree_checked(
    network: &Network,
    one: &PromisedTree,
    checker: &Checker,
    options: CheckOptions,
) -> Result<CheckReport, String> {
    let capability: Capability = one.capability.parse().map_err(|error| format!("{error}"))?;
    let reader = TreeReader::new(Downloader::new(network.clone()), &capability)
        .map_err(|error| error.to_string())?;
    let checked = check_tree(&reader, &capability, Vec::new(), checker, options, Arc::default());
    checked.await.map_err(|error| error.to_string())
}

/// Checks chunks, and repairs those that lack shards if that is wanted: how many were made.
async fn mended(checker: &Checker, chunks: &[ChunkRef], options: CheckOptions) -> u64 {
    let mut made = 0;
    for mut health in checker.check(chunks, options.deep).await {
        if options.repair
            && health.strength() != Strength::Whole
            && let Ok(repaired) = checker.repair(&mut health).await
        {
            made += repaired.placed.len() as u64;
        }
    }
    made
}

/// Whether a report says that all of a tree is there, and that it is this tree.
fn is_whole(report: &CheckReport, one: &PromisedTree) -> Result<(), Broken> {
    let (files, directories, bytes) = one.tree.counts();
    if let Some(failure) = report.unreadable.listed.first() {
        let (path, why) = (failure.path.display(), &failure.error);
        let how = format!("a check cannot read {path} of a tree: {why}");
        return Err(Broken::new(Promise::Durability, how));
    }
    let met = (report.files, report.directories, report.bytes);
    if met != (files, directories, bytes) || report.chunks != one.chunks.len() as u64 {
        let how = format!(
            "a check of a tree meets {met:?} files, directories and bytes in {} chunks; it has {:?} in {}",
            report.chunks,
            (files, directories, bytes),
            one.chunks.len()
        );
        return Err(Broken::new(Promise::Durability, how));
    }
    if report.count(Strength::Whole) < report.chunks {
        let how =
            format!("a check finds chunks of a tree that are not whole: {:?}", report.weakest);
        return Err(Broken::new(Promise::Strength, how));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use copse_core::ids::ChunkId;

    use super::{super::tree::Tree, *};

    #[test]
    fn a_report_of_another_tree_or_of_weak_chunks_is_a_broken_promise() {
        let chunk = |number: u8| ChunkRef {
            id: ChunkId::new([number; 32]),
            geometry: "2+1".parse().expect("a geometry"),
            shard_bytes: 1,
        };
        let chunks = BTreeSet::from([chunk(1), chunk(2)]);
        let one = PromisedTree { capability: String::new(), tree: Tree::of(7), chunks };
        let (files, directories, bytes) = one.tree.counts();
        let mut right = CheckReport::default();
        (right.files, right.directories, right.bytes) = (files, directories, bytes);
        (right.chunks, right.by_strength) = (2, [(Strength::Whole, 2)].into());
        assert_eq!(is_whole(&right, &one), Ok(()));

        let broken = |change: &dyn Fn(&mut CheckReport)| {
            let mut report = right.clone();
            change(&mut report);
            is_whole(&report, &one).expect_err("something is wrong").promise
        };
        assert_eq!(broken(&|report| report.files += 1), Promise::Durability);
        assert_eq!(broken(&|report| report.bytes += 1), Promise::Durability);
        assert_eq!(broken(&|report| report.chunks = 1), Promise::Durability);
        let unreadable = |report: &mut CheckReport| report.unreadable.add(Path::new("a"), &"why");
        assert_eq!(broken(&unreadable), Promise::Durability);
        let thin = [(Strength::Whole, 1), (Strength::Thin, 1)];
        assert_eq!(broken(&|report| report.by_strength = thin.into()), Promise::Strength);
    }
}
