//! What the nodes say, added up.
//!
//! Owns the sums, the opinions that nodes have of each other, and what is kept of texts that others
//! wrote: bounded in number and length. Does no I/O. The one idea: the result depends on what was
//! said, not on the order in which the answers came.

use std::collections::{BTreeMap, BTreeSet};

use copse_core::{
    directory::{Directory, NodeState},
    ids::{ChunkId, NodeId},
};
use copse_proto::door::{InfoReply, MarginCount, PeerInfo, RepairInfo};

/// Jobs that fail, decisions, and different reasons to wait that are kept, each, at most.
const LISTED_MAX: usize = 16;

/// A text of a node's that is kept, in bytes.
const TEXT_BYTES_MAX: usize = 300;

/// How a node stands in the eyes of another. The later, the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Nobody said anything.
    Unknown,
    /// It answers.
    Alive,
    /// It missed a few answers.
    Suspect,
    /// It hands its shards over.
    Leaving,
    /// It has not answered for minutes.
    Down,
    /// It left in good order.
    Left,
    /// It is off the ring.
    Dead,
}

impl Standing {
    const ALL: [Self; 7] = [
        Self::Unknown,
        Self::Alive,
        Self::Suspect,
        Self::Leaving,
        Self::Down,
        Self::Left,
        Self::Dead,
    ];

    /// The word, as it travels and as it is printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Leaving => "leaving",
            Self::Down => "down",
            Self::Left => "left",
            Self::Dead => "dead",
        }
    }

    pub(super) fn of_word(word: &str) -> Self {
        Self::ALL.into_iter().find(|standing| standing.as_str() == word).unwrap_or(Self::Unknown)
    }

    /// Whether others have taken over what it was the steward of.
    pub const fn is_gone(self) -> bool {
        matches!(self, Self::Down | Self::Left | Self::Dead)
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// What most say; of equally many the worse. What its own record says when it leaves.
    pub standing: Standing,
    /// How many nodes said what of it.
    pub opinions: BTreeMap<Standing, u32>,
    /// Why it is not alive, in the words of one who says so.
    pub reason: Option<String>,
    /// Why it did not answer us; none when it did.
    pub silent: Option<String>,
    /// Why it takes no new shards.
    pub refusing: Option<String>,
    /// Shards that it found damaged and set aside.
    pub quarantined: u64,
    /// How it was caught, in the words of one of those who caught it.
    pub untrusted: Option<String>,
    /// How many nodes do not trust it.
    pub untrusted_by: u32,
}

impl NodeStatus {
    /// Whether some say that it is there and others that it is not, so that they count different
    /// nodes as the steward of the same chunks.
    pub fn is_disputed(&self) -> bool {
        let said = |gone: bool| {
            self.opinions.keys().any(|said| *said != Standing::Unknown && said.is_gone() == gone)
        };
        said(true) && (said(false) || self.silent.is_none())
    }

    /// Whether it is the steward of chunks that nobody counted: it is there, but did not answer.
    pub fn is_missed(&self) -> bool {
        self.silent.is_some() && !self.standing.is_gone()
    }
}

/// Chunks, by how they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chunks {
    /// All that were counted.
    pub total: u64,
    /// With all their shards.
    pub whole: u64,
    /// With a shard that is not where it belongs, or also somewhere else.
    pub displaced: u64,
    /// With enough to be read, but not all.
    pub thin: u64,
    /// That cannot be read until nodes come back.
    pub waiting: u64,
    /// Of which too few shards exist.
    pub lost: u64,
    /// Of which shards are missing since their put goes on or was broken off: nobody was told that they are
    /// stored.
    pub unfinished: u64,
    /// By how many shards within reach they have beyond those needed.
    pub by_margin: BTreeMap<i32, u64>,
}

impl Chunks {
    /// Those that somebody may have been told of.
    pub const fn stored(&self) -> u64 {
        self.total.saturating_sub(self.unfinished)
    }
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    /// Jobs.
    pub jobs: u64,
    /// By the margin of their chunk.
    pub by_margin: BTreeMap<i32, u64>,
    /// Being worked on now.
    pub running: u64,
    /// Age of the oldest.
    pub oldest_seconds: u64,
    /// Put off since the queue was full; they are found again.
    pub deferred: u64,
    /// Until the last steward is done, at the present rate; none when one does not know.
    pub eta_seconds: Option<u64>,
    /// Shards that leaving nodes have still to hand over.
    pub leaving_shards: u64,
}

impl Queue {
    /// Jobs that are not done, running or not.
    pub const fn open(&self) -> u64 {
        self.jobs.saturating_add(self.running)
    }
}

/// A job that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailingJob {
    /// Who tries.
    pub node: NodeId,
    /// The chunk, if the node named one.
    pub chunk: Option<ChunkId>,
    /// rebuild, copy or drop.
    pub kind: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Since when it is in the queue.
    pub age_seconds: u64,
    /// What went wrong last.
    pub last_error: String,
}

/// A decision of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decision {
    /// When, by its clock.
    pub unix_seconds: u64,
    /// Whose.
    pub node: NodeId,
    /// What was decided.
    pub text: String,
}

/// The network, as its nodes see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Every node of the directory, by id.
    pub nodes: Vec<NodeStatus>,
    /// Nodes that were asked.
    pub asked: u64,
    /// Nodes that answered.
    pub answered: u64,
    /// Nodes that are there but did not say how their chunks are.
    pub uncounted: u64,
    /// Nodes that said it, and have not counted since they last saw the network change.
    pub counting: u64,
    /// What the nodes that answered offer to hold.
    pub capacity_bytes: u64,
    /// What their segments take.
    pub disk_bytes: u64,
    /// Shards that they hold, and the bytes of these.
    pub shards: u64,
    /// Bytes of shards.
    pub shard_bytes: u64,
    /// The chunks.
    pub chunks: Chunks,
    /// Any so many more nodes may be lost.
    pub survives_nodes: Option<u32>,
    /// Any so many more zones may be lost.
    pub survives_zones: Option<u32>,
    /// What is to be done.
    pub queue: Queue,
    /// Why nothing is planned or nobody is evicted, and how many nodes say so.
    pub guards: BTreeMap<String, u32>,
    /// Nodes that see less than half of the network.
    pub cut_off: Vec<NodeId>,
    /// Those that failed most often.
    pub failing: Vec<FailingJob>,
    /// The last ones, the newest last.
    pub decisions: Vec<Decision>,
}

/// The sums while answers come in.
#[derive(Debug)]
pub struct Sum {
    status: NetworkStatus,
    nodes: BTreeMap<NodeId, NodeStatus>,
    left: BTreeSet<NodeId>,
    // Whose words are kept: of many, the node's with the lowest id.
    reasons_from: BTreeMap<NodeId, NodeId>,
    caught_by: BTreeMap<NodeId, NodeId>,
    uncounted: u64,
    eta_unknown: bool,
}

impl Sum {
    /// Nobody has answered yet.
    pub fn new(directory: &Directory) -> Self {
        let mut nodes = BTreeMap::new();
        let mut left = BTreeSet::new();
        for signed in directory.iter() {
            let record = signed.record();
            let standing = match record.state {
                NodeState::Active => Standing::Unknown,
                NodeState::Leaving => Standing::Leaving,
                NodeState::Left => Standing::Left,
            };
            if standing == Standing::Left {
                left.insert(record.node);
            }
            let status = NodeStatus {
                node: record.node,
                standing,
                opinions: BTreeMap::new(),
                reason: None,
                silent: None,
                refusing: None,
                quarantined: 0,
                untrusted: None,
                untrusted_by: 0,
            };
            nodes.insert(record.node, status);
        }
        Self {
            status: NetworkStatus::default(),
            nodes,
            left,
            reasons_from: BTreeMap::new(),
            caught_by: BTreeMap::new(),
            uncounted: 0,
            eta_unknown: false,
        }
    }

    /// The nodes to ask: all but those that left.
    pub fn to_ask(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.keys().filter(|node| !self.left.contains(node)).copied()
    }

    /// A node did not answer.
    pub fn silent(&mut self, node: NodeId, why: &str) {
        self.status.asked += 1;
        if let Some(status) = self.nodes.get_mut(&node) {
            status.silent = Some(kept(why));
        }
    }

    /// A node answered.
    pub fn heard(&mut self, node: NodeId, info: &InfoReply) {
        self.status.asked += 1;
        self.status.answered += 1;
        let store = info.store.clone().unwrap_or_default();
        let sums = &mut self.status;
        add(&mut sums.capacity_bytes, store.capacity_bytes);
        add(&mut sums.disk_bytes, store.disk_bytes);
        add(&mut sums.shards, store.shards);
        add(&mut sums.shard_bytes, store.shard_bytes);
        if let Some(status) = self.nodes.get_mut(&node) {
            status.quarantined = store.quarantined;
            status.refusing = (!store.accepting).then(|| kept(&store.refusing_reason));
        }
        for peer in &info.peers {
            self.opinion(node, peer);
        }
        match &info.repair {
            Some(repair) => {
                add(&mut self.status.counting, u64::from(!repair.planned));
                self.repair(node, repair);
            }
            None => self.uncounted += 1,
        }
    }

    /// What `from` says of another node.
    fn opinion(&mut self, from: NodeId, peer: &PeerInfo) {
        let Ok(id) = NodeId::from_slice(&peer.node_id) else { return };
        let Some(status) = self.nodes.get_mut(&id) else { return };
        let standing = Standing::of_word(&peer.standing);
        if standing != Standing::Unknown {
            *status.opinions.entry(standing).or_default() += 1;
        }
        let first = |of: &mut BTreeMap<NodeId, NodeId>| {
            let first = of.get(&id).is_none_or(|known| from < *known);
            if first {
                of.insert(id, from);
            }
            first
        };
        if !peer.reason.is_empty() && first(&mut self.reasons_from) {
            status.reason = Some(kept(&peer.reason));
        }
        if !peer.untrusted.is_empty() {
            status.untrusted_by += 1;
            if first(&mut self.caught_by) {
                status.untrusted = Some(kept(&peer.untrusted));
            }
        }
    }

    fn repair(&mut self, node: NodeId, repair: &RepairInfo) {
        let sums = &mut self.status;
        let chunks = &mut sums.chunks;
        let counted = add_margins(&mut chunks.by_margin, &repair.chunks);
        let named = repair
            .chunks_whole
            .saturating_add(repair.chunks_waiting)
            .saturating_add(repair.chunks_lost)
            .saturating_add(repair.chunks_unfinished);
        add(&mut chunks.total, counted.max(named));
        add(&mut chunks.whole, repair.chunks_whole);
        add(&mut chunks.displaced, repair.chunks_displaced);
        add(&mut chunks.waiting, repair.chunks_waiting);
        add(&mut chunks.lost, repair.chunks_lost);
        add(&mut chunks.unfinished, repair.chunks_unfinished);
        add(&mut chunks.thin, counted.saturating_sub(named));
        lower(&mut sums.survives_nodes, repair.survives_nodes);
        lower(&mut sums.survives_zones, repair.survives_zones);

        let queue = &mut sums.queue;
        let jobs = add_margins(&mut queue.by_margin, &repair.queue);
        add(&mut queue.jobs, jobs);
        add(&mut queue.running, repair.running);
        add(&mut queue.deferred, repair.deferred);
        add(&mut queue.leaving_shards, repair.leaving_shards);
        queue.oldest_seconds = queue.oldest_seconds.max(repair.oldest_seconds);
        match repair.eta_seconds {
            Some(eta) => queue.eta_seconds = queue.eta_seconds.max(Some(eta)),
            None => self.eta_unknown |= jobs.saturating_add(repair.running) > 0,
        }

        if repair.cut_off {
            sums.cut_off.push(node);
        }
        if !repair.guard.is_empty() {
            add_guard(&mut sums.guards, kept(&repair.guard));
        }
        for job in &repair.failing {
            sums.failing.push(FailingJob {
                node,
                chunk: ChunkId::from_slice(&job.chunk_id).ok(),
                kind: kept(&job.kind),
                attempts: job.attempts,
                age_seconds: job.age_seconds,
                last_error: kept(&job.last_error),
            });
        }
        sums.failing.sort_by_key(|job| (std::cmp::Reverse(job.attempts), job.node, job.chunk));
        sums.failing.truncate(LISTED_MAX);
        for event in &repair.events {
            let text = kept(&event.text);
            sums.decisions.push(Decision { unix_seconds: event.unix_seconds, node, text });
        }
        sums.decisions.sort();
        let older = sums.decisions.len().saturating_sub(LISTED_MAX);
        sums.decisions.drain(..older);
    }

    /// All have answered or will not.
    pub fn finish(mut self) -> NetworkStatus {
        for status in self.nodes.values_mut() {
            // What a node says of its own going counts more than what others have heard of it.
            if status.standing == Standing::Unknown {
                status.standing = most(&status.opinions).unwrap_or(match status.silent {
                    None => Standing::Alive,
                    Some(_) => Standing::Unknown,
                });
            } else if let Some(gone) = most(&status.opinions).filter(|most| most.is_gone()) {
                status.standing = status.standing.max(gone);
            }
            if status.standing == Standing::Alive {
                status.reason = None;
            }
        }
        let mut status = self.status;
        status.nodes = self.nodes.into_values().collect();
        let missed = status.nodes.iter().filter(|node| node.is_missed()).count() as u64;
        status.uncounted = missed + self.uncounted;
        status.cut_off.sort_unstable();
        if self.eta_unknown {
            status.queue.eta_seconds = None;
        }
        while status.guards.len() > LISTED_MAX {
            status.guards.pop_last();
        }
        status
    }
}

/// What most say; of equally many the worse.
fn most(opinions: &BTreeMap<Standing, u32>) -> Option<Standing> {
    opinions.iter().max_by_key(|(standing, count)| (**count, **standing)).map(|(said, _)| *said)
}

/// Adds the counts of a node; how many they are together.
fn add_margins(sums: &mut BTreeMap<i32, u64>, counts: &[MarginCount]) -> u64 {
    let mut all: u64 = 0;
    for MarginCount { margin, count } in counts {
        // No chunk has more than 255 shards: what is beyond was made up.
        add(sums.entry((*margin).clamp(-255, 255)).or_default(), *count);
        add(&mut all, *count);
    }
    all
}

/// Counts one more node with this guard. Those that differ in how long they last are one, and the one whose
/// time is written longest is kept.
fn add_guard(guards: &mut BTreeMap<String, u32>, text: String) {
    let same = guards.keys().find(|known| without_times(known) == without_times(&text)).cloned();
    let count = same.as_ref().and_then(|known| guards.remove(known)).unwrap_or(0);
    let longest = same.into_iter().chain([text]).max_by_key(|text| (text.len(), text.clone()));
    if let Some(text) = longest {
        guards.insert(text, count + 1);
    }
}

/// The words of a text but for lengths of time, as [`Brief`](copse_core::units::Brief) writes them.
fn without_times(text: &str) -> Vec<&str> {
    let unit =
        |word: &str| matches!(word.trim_end_matches([',', ';', '.']), "s" | "min" | "h" | "d");
    let words: Vec<&str> = text.split(' ').collect();
    let is_time = |at: usize| {
        let number = words[at].parse::<u64>().is_ok();
        (number && words.get(at + 1).is_some_and(|next| unit(next)))
            || (unit(words[at]) && at > 0 && words[at - 1].parse::<u64>().is_ok())
    };
    (0..words.len()).filter(|at| !is_time(*at)).map(|at| words[at]).collect()
}

/// Sums of what others say must not overflow.
fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

fn lower(least: &mut Option<u32>, said: Option<u32>) {
    *least = match (*least, said) {
        (Some(least), Some(said)) => Some(least.min(said)),
        (least, said) => least.or(said),
    };
}

/// A text of a node's, cut.
fn kept(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
