//! Verify capabilities: lists of the chunks of trees, made and used by clients.
//!
//! Owns what must be true of them: the capability follows from the tree's, the list names all that the tree
//! is made of, and a check by it finds that when all is calm. While things go wrong, what a check says of
//! shards is held to nothing, as with other checks.

use std::sync::Arc;

use copse_client::{
    check::{CheckOptions, CheckReport, Checker, Strength, check_manifest, make_verifier},
    error::ReadError,
    get::Downloader,
    network::Network,
    tree_read::TreeReader,
};
use copse_core::capability::{Capability, VerifyCapability};

use super::{
    check::{Broken, Promise},
    checkup::{CHECK_MAX, DEEP},
    client::Client,
    ledger::{PromisedList, PromisedTree},
    made,
};

impl Client {
    /// Makes a verify capability of some tree, and has its chunks checked by it.
    pub(super) async fn list_some(&mut self, network: &Network) {
        let trees = self.ledger.trees();
        if trees.is_empty() {
            return;
        }
        let one = Arc::clone(&trees[self.rng.below(trees.len())]);
        let options = CheckOptions { deep: self.rng.chance(DEEP), repair: self.settings.repairs };
        let checker = self.checker(network);
        let name = self.name;
        let listed = async {
            let (list, capability) = self.make_list(network, &one).await?;
            let chunks = list.listed;
            self.trace.note(format_args!("client {name}: listed the {chunks} chunks of a tree"));
            self.ledger.acknowledged_list(list, &self.settings.scene);
            let report = by_list(network, &capability, &checker, options).await;
            let report = report.map_err(|error| self.unlisted(&error))?;
            if report.unreadable.count == 0 {
                if report.listed != Some(chunks) {
                    let listed = report.listed;
                    return Err(self.wrong(format!("a list names {listed:?} chunks, not {chunks}")));
                }
                self.ledger.lock().ways.list_checks += 1;
            }
            self.ledger.lock().work.mended += report.rebuilt_shards;
            Ok::<_, String>(())
        };
        let what = format!("a list of a tree's chunks, and a check by it, of client {name}");
        if let Err(error) = self.ledger.within(2 * CHECK_MAX, &what, listed).await {
            self.trace.note(format_args!("client {name}: cannot list a tree's chunks: {error}"));
        }
    }

    /// Has the chunks of a tree listed.
    async fn make_list(
        &self,
        network: &Network,
        one: &PromisedTree,
    ) -> Result<(PromisedList, VerifyCapability), String> {
        let capability: Capability = one.capability.parse().map_err(|error| format!("{error}"))?;
        let made = made::of_list(&capability, &one.chunks)?;
        let reader = Downloader::new(network.clone());
        let tree = TreeReader::new(reader, &capability).map_err(|error| error.to_string())?;
        let listing = make_verifier(&tree, &capability, Vec::new(), false, Arc::default());
        let stored = listing.await.map_err(|error| error.to_string())?;
        let expected = made.verify_capability(self.settings.network);
        let (capability, listed) = (stored.capability.to_string(), one.chunks.len() as u64);
        if capability != expected || stored.chunks != listed {
            return Err(self.wrong(format!(
                "a list of {listed} chunks was stored as {capability} with {}, and is {expected}",
                stored.chunks
            )));
        }
        Ok((PromisedList { capability, listed, chunks: made.chunks }, stored.capability))
    }

    /// What an error of a check by a list says. That it is no list cannot be true.
    fn unlisted(&self, error: &ReadError) -> String {
        match error {
            ReadError::Get(_) | ReadError::Stopped => error.to_string(),
            _ => self.wrong(format!("a good list of chunks: {error}")),
        }
    }

    /// Whether a check by a list says that all it names is whole, and so is the list.
    pub(super) async fn list_is_whole(
        &self,
        network: &Network,
        one: &PromisedList,
        checker: &Checker,
    ) -> Result<(), Broken> {
        let lost = |how: String| Broken::new(Promise::Durability, how);
        let capability: Result<VerifyCapability, _> = one.capability.parse();
        let capability = capability.map_err(|error| lost(error.to_string()))?;
        let options = CheckOptions { deep: true, repair: false };
        let what = format!("the last check by a list of client {}", self.name);
        let checking =
            async { Ok::<_, String>(by_list(network, &capability, checker, options).await) };
        let report = self.ledger.within(CHECK_MAX, &what, checking).await;
        let report = report.map_err(|error| Broken::new(Promise::Service, error))?;
        is_whole(&report.map_err(|error| lost(error.to_string()))?, one)
    }
}

async fn by_list(
    network: &Network,
    capability: &VerifyCapability,
    checker: &Checker,
    options: CheckOptions,
) -> Result<CheckReport, ReadError> {
    let reader = Downloader::new(network.clone());
    check_manifest(&reader, capability, checker, options, Arc::default()).await
}

/// Whether a report says that all that a list names is there, and that it is this list.
fn is_whole(report: &CheckReport, one: &PromisedList) -> Result<(), Broken> {
    if let Some(failure) = report.unreadable.listed.first() {
        let how = format!("a check cannot read a list of chunks: {}", failure.error);
        return Err(Broken::new(Promise::Durability, how));
    }
    let (own, listed) = (one.chunks.len() as u64, one.listed);
    if report.listed != Some(listed) || report.chunks < own + listed {
        let how = format!(
            "a check by a list meets {} chunks, {:?} of them listed; the list has {own} and names {listed}",
            report.chunks, report.listed
        );
        return Err(Broken::new(Promise::Durability, how));
    }
    if report.count(Strength::Whole) < report.chunks {
        let how =
            format!("a check by a list finds chunks that are not whole: {:?}", report.weakest);
        return Err(Broken::new(Promise::Strength, how));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use copse_core::{ids::ChunkId, manifest::ChunkRef};

    use super::*;

    #[test]
    fn a_report_of_another_list_or_of_weak_chunks_is_a_broken_promise() {
        let geometry = "2+1".parse().expect("a geometry");
        let own = ChunkRef { id: ChunkId::new([1; 32]), geometry, shard_bytes: 1 };
        let chunks = BTreeSet::from([own]);
        let one = PromisedList { capability: String::new(), listed: 3, chunks };
        let mut right = CheckReport::default();
        (right.chunks, right.listed) = (4, Some(3));
        right.by_strength = [(Strength::Whole, 4)].into();
        assert_eq!(is_whole(&right, &one), Ok(()));
        let broken = |change: &dyn Fn(&mut CheckReport)| {
            let mut report = right.clone();
            change(&mut report);
            is_whole(&report, &one).expect_err("something is wrong").promise
        };
        assert_eq!(broken(&|report| report.listed = Some(2)), Promise::Durability);
        assert_eq!(broken(&|report| report.listed = None), Promise::Durability);
        assert_eq!(broken(&|report| report.chunks = 3), Promise::Durability);
        let unreadable = |report: &mut CheckReport| report.unreadable.add(Path::new(""), &"why");
        assert_eq!(broken(&unreadable), Promise::Durability);
        let thin = [(Strength::Whole, 3), (Strength::Thin, 1)];
        assert_eq!(broken(&|report| report.by_strength = thin.into()), Promise::Strength);
    }
}
