//! Who holds which shards of many chunks: the nodes' word, and proof of it.
//!
//! Owns whom to ask and in what order, and what each node was found to do. Needs no key of any
//! chunk and writes nothing. The one idea: those along the walk are asked first, since there the
//! shards should be; everybody else only for what is still missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use copse_core::{
    directory::NodeState,
    ids::{NodeId, ShardIndex},
    manifest::ChunkRef,
    ring::{CANDIDATES_PER_SHARD, Ring},
};
use copse_proto::status::{Reason, Refusal};
use futures::{StreamExt as _, stream};

use super::health::{ChunkHealth, Zones};
use crate::{
    buffers::Pool,
    error::without_node,
    get::{facts::ChunkFacts, fetch::fetch},
    lock::lock,
    network::Network,
    proof::{PROOFS_AT_ONCE, Prover},
};

/// How far along the walk nodes are asked first, in nodes for each shard of the chunk: a node or two
/// joined since somebody wrote there.
const WALK_PER_SHARD: usize = CANDIDATES_PER_SHARD + 1;

/// Nodes asked at once for what they hold.
const ASKED_AT_ONCE: usize = 32;

/// Idle buffers for shards that are read, in bytes.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// What a check has seen of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReport {
    /// The node.
    pub node: NodeId,
    /// Why it did not say what it holds, the last time; none when it always did.
    pub silent: Option<String>,
    /// Shards of this tree that it says it holds, less those below.
    pub claims: u64,
    /// Of these, proved.
    pub proved: u64,
    /// Shards that it says it holds and does not, or serves wrongly.
    pub false_claims: u64,
    /// Shards that it has itself found damaged.
    pub damaged: u64,
    /// What the last of the false or damaged ones was.
    pub problem: Option<String>,
}

/// Checks and repairs the shards of chunks. What it learns of nodes it keeps for the whole run.
pub struct Checker {
    pub(super) network: Network,
    pub(super) buffers: Arc<Pool>,
    zones: Zones,
    prover: Prover,
    nodes: Mutex<BTreeMap<NodeId, NodeReport>>,
}

/// A claim to be proved: which chunk of the batch, which of its shards, whose.
type Claim = (usize, ShardIndex, NodeId);

impl Checker {
    /// A checker for one run. `seed` chooses what is proved; nodes must not be able to guess it.
    pub fn new(network: Network, seed: &[u8; 32]) -> Self {
        Self {
            zones: Zones::of(&network.view().directory),
            prover: Prover::seeded(network.clone(), seed),
            nodes: Mutex::default(),
            buffers: Pool::new(KEPT_BYTES_MAX),
            network,
        }
    }

    pub(super) fn zones(&self) -> &Zones {
        &self.zones
    }

    /// What was seen of each node that was asked.
    pub fn nodes(&self) -> Vec<NodeReport> {
        lock(&self.nodes).values().cloned().collect()
    }

    /// Finds the shards of chunks, at most 1024. With `deep`, a claim counts only if the node has
    /// just proved a random group of the shard.
    pub async fn check(&self, chunks: &[ChunkRef], deep: bool) -> Vec<ChunkHealth> {
        let view = self.network.view();
        let mut found: Vec<ChunkHealth> =
            chunks.iter().map(|chunk| ChunkHealth::new(*chunk)).collect();
        let near: Vec<BTreeSet<NodeId>> = chunks
            .iter()
            .map(|chunk| {
                let arc = Ring::arc(&chunk.id);
                view.ring.around(arc, chunk.geometry, WALK_PER_SHARD).collect()
            })
            .collect();
        let mut questions: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for (at, nodes) in near.iter().enumerate() {
            for node in nodes {
                questions.entry(*node).or_default().push(at);
            }
        }
        self.ask(&mut found, questions, deep).await;

        let all: Vec<NodeId> = view
            .directory
            .iter()
            .map(|signed| signed.record())
            .filter(|record| record.state != NodeState::Left)
            .map(|record| record.node)
            .collect();
        let mut questions: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for (at, health) in found.iter().enumerate() {
            if health.have() < health.chunk.geometry.total() {
                for node in all.iter().filter(|node| !near[at].contains(node)) {
                    questions.entry(*node).or_default().push(at);
                }
            }
        }
        self.ask(&mut found, questions, deep).await;
        found
    }

    /// Asks each node for its chunks, and for proofs if they are wanted.
    async fn ask(
        &self,
        found: &mut [ChunkHealth],
        questions: BTreeMap<NodeId, Vec<usize>>,
        deep: bool,
    ) {
        let mut said: Vec<(usize, Vec<ShardIndex>, NodeId)> = Vec::new();
        {
            let chunks: Vec<ChunkRef> = found.iter().map(|health| health.chunk).collect();
            let chunks = &chunks;
            let mut answers = stream::iter(questions)
                .map(|(node, places)| async move {
                    let answer = self.has(node, chunks, &places).await;
                    (node, places, answer)
                })
                .buffer_unordered(ASKED_AT_ONCE);
            while let Some((node, places, answer)) = answers.next().await {
                match answer {
                    Ok(held) => {
                        said.extend(
                            places.into_iter().zip(held).map(|(at, held)| (at, held, node)),
                        );
                    }
                    Err(refusal) => {
                        self.note_silent(node, &refusal);
                        places.into_iter().for_each(|at| found[at].add_silent(node));
                    }
                }
            }
        }
        // Whoever claims little comes first, and the same claims count in whatever order they came.
        said.sort_unstable_by_key(|(at, held, node)| (*at, held.len(), *node));
        let view = self.network.view();
        let mut claims: Vec<Claim> = Vec::new();
        for (at, held, node) in said {
            let chunk = found[at].chunk;
            let (real, false_ones): (Vec<_>, Vec<_>) =
                held.into_iter().partition(|index| index.as_usize() < chunk.geometry.total());
            for _ in false_ones {
                self.note_false(node, "it claims a shard that cannot be");
            }
            let preferred = view.placement(&chunk.id, chunk.geometry);
            for index in found[at].credible(&preferred, node, real) {
                found[at].add(index, node);
                self.note(node, |report| report.claims += 1);
                claims.push((at, index, node));
            }
        }
        if deep {
            // By chunk and index, so that the proofs of one node do not come in a row.
            claims.sort_unstable();
            self.prove(found, claims).await;
        }
    }

    /// What a node says it holds of some chunks.
    async fn has(
        &self,
        node: NodeId,
        chunks: &[ChunkRef],
        places: &[usize],
    ) -> Result<Vec<Vec<ShardIndex>>, Refusal> {
        self.not_given_up(node)?;
        let ids: Vec<_> = places.iter().map(|at| chunks[*at].id).collect();
        match self.network.has(node, &ids).await {
            // Its own door may be closed to us: once more, through another node.
            Err(refusal) if refusal.reason() == Reason::NodeUnreachable => {
                self.network.has(node, &ids).await
            }
            answer => answer,
        }
    }

    /// One that did not answer before is not waited for again until its time is up.
    fn not_given_up(&self, node: NodeId) -> Result<(), Refusal> {
        let silent = || lock(&self.nodes).get(&node).and_then(|seen| seen.silent.clone());
        match self.network.holder(node).is_dead().then(silent).flatten() {
            Some(why) => Err(Refusal::new(Reason::NodeUnreachable, why)),
            None => Ok(()),
        }
    }

    async fn prove(&self, found: &mut [ChunkHealth], claims: Vec<Claim>) {
        let facts: Vec<Arc<ChunkFacts>> =
            found.iter().map(|health| Arc::new(ChunkFacts::of_chunk(&health.chunk))).collect();
        let facts = &facts;
        let mut proofs = stream::iter(claims)
            .map(|(at, index, node)| async move {
                let proof = self.prove_one(&facts[at], index, node).await;
                (at, index, node, proof)
            })
            .buffer_unordered(PROOFS_AT_ONCE);
        while let Some((at, index, node, proof)) = proofs.next().await {
            match proof {
                Ok(()) => self.note(node, |report| report.proved += 1),
                Err(refusal) => {
                    found[at].remove(index, node);
                    self.note_failure(&mut found[at], node, &refusal);
                }
            }
        }
    }

    /// Has a node prove one random group of a shard.
    pub(super) async fn prove_one(
        &self,
        facts: &Arc<ChunkFacts>,
        index: ShardIndex,
        node: NodeId,
    ) -> Result<(), Refusal> {
        self.not_given_up(node)?;
        self.prover.prove(facts, index, node).await
    }

    /// A range of a shard from a node, verified.
    pub(super) async fn read(
        &self,
        facts: &Arc<ChunkFacts>,
        index: ShardIndex,
        node: NodeId,
        range: Range<usize>,
    ) -> Result<Bytes, Refusal> {
        let (network, buffers) = (self.network.clone(), Arc::clone(&self.buffers));
        let piece = fetch(network, Arc::clone(facts), node, index, range.clone(), buffers).await?;
        Ok(piece.slice(&range))
    }

    /// A node did not give what it said it holds; its claim was taken back.
    pub(super) fn note_failure(&self, health: &mut ChunkHealth, node: NodeId, refusal: &Refusal) {
        self.note(node, |report| report.claims = report.claims.saturating_sub(1));
        match refusal.reason() {
            Reason::BadReply | Reason::NotHeld => self.note_false(node, refusal.message()),
            Reason::ShardDamaged => self.note(node, |report| {
                report.damaged += 1;
                report.problem = Some(refusal.message().to_owned());
            }),
            _ => {
                health.add_silent(node);
                self.note_silent(node, refusal);
            }
        }
    }

    fn note_false(&self, node: NodeId, problem: &str) {
        self.note(node, |report| {
            report.false_claims += 1;
            report.problem = Some(problem.to_owned());
        });
    }

    pub(super) fn note_silent(&self, node: NodeId, refusal: &Refusal) {
        let why = without_node(refusal.message(), &node);
        self.note(node, |report| report.silent = Some(why.to_owned()));
    }

    pub(super) fn note(&self, node: NodeId, change: impl FnOnce(&mut NodeReport)) {
        let mut nodes = lock(&self.nodes);
        change(nodes.entry(node).or_insert_with(|| NodeReport {
            node,
            silent: None,
            claims: 0,
            proved: 0,
            false_claims: 0,
            damaged: 0,
            problem: None,
        }));
    }

    /// Whether a node was caught with a false claim in this run.
    pub(super) fn was_caught(&self, node: NodeId) -> bool {
        lock(&self.nodes).get(&node).is_some_and(|report| report.false_claims > 0)
    }
}
