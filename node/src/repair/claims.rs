//! What nodes say they hold: a mirror of the claims of the arcs that this node may have to look after.
//!
//! Owns the comparison with each node and the rows of the mirror. The one idea: a node tells which
//! arcs changed since we last asked, so that asking costs one small message when nothing did; only
//! arcs whose digest differs from the mirrored one are listed again. The rows are in the ledger, so
//! that a restart lists nothing anew, and what a node held is known while it is away.
//!
//! Mirrored are the arcs on whose walk this node is among the first [`KEEPERS`]: whoever becomes an
//! arc's steward knows its claims already.
//!
//! ```text
//! row                               value
//! "rd" ‖ arc u16 BE ‖ node 32       1 u8 ‖ digest of the mirrored list: shards u32 LE ‖ sum 16
//! "rc" ‖ arc u16 BE ‖ node 32 ‖ part u16 BE
//!                                   1 u8 ‖ the list as it came, 39 bytes a shard, 1024 to a part
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use copse_core::{
    ids::NodeId,
    limits::ARCS,
    repair::{self, Lane, Nodes},
    ring::{Ring, RingMember},
};
use copse_proto::{
    holdings::{self, ArcDigest, LIST_ARCS_MAX, ListedShard},
    peer,
    status::Refusal,
};
use tokio::time::Instant;

mod rows;

use self::rows::{CLAIMS_PREFIX, DIGEST_PREFIX, arc_and_node, digest_of, list_of, write};
use super::{
    exchange::Exchange,
    facts::{Opinions, fullness_of},
};
use crate::{
    beside::beside,
    peer::{Op, Outcome, PeerError},
    store::{HeldShard, Ledger, ShardStore, StoreRevision, digest_of_arc},
};

/// The first of those who may be an arc's steward now, that mirror its claims: the steward and two who
/// may follow.
pub(super) const KEEPERS: usize = 3;

/// Shards of one arc and node that are listed, at most: 5 MiB of rows, and as much memory while they
/// are listed. A node of 1 PiB with shards of 128 KiB has that many in each arc.
const LISTED_MAX: usize = 1 << 17;

/// Shards of one node that are mirrored, at most: 650 MB of rows. With the shards of full chunks that
/// is 13 TB in the arcs that this node keeps.
const MIRRORED_MAX: u64 = 1 << 24;

/// What a shard takes on its node's disk, at least, with its descriptor: a node cannot have more of
/// them than its capacity holds.
const STORED_BYTES_MIN: u64 = 100;

/// How long a node that answers, and does not tell what it holds, is believed to hold what it should.
pub(super) const TOLD_WITHIN: Duration = Duration::from_secs(600);

/// A digest without its arc.
type Digest = (u32, [u8; 16]);

const EMPTY: Digest = (0, [0; 16]);

/// The mirror.
pub(super) struct Claims {
    own: NodeId,
    store: Arc<dyn ShardStore>,
    ledger: Arc<dyn Ledger>,
    exchange: Exchange,
    opinions: Opinions,
    state: Arc<Mutex<State>>,
    /// Held while rows are written: who is no longer waited for may be at it still.
    writing: Arc<Mutex<()>>,
    /// A list could not be written down.
    unwritten: AtomicBool,
}

struct State {
    /// Which arcs are mirrored: a bit each.
    wanted: Vec<u64>,
    nodes: BTreeMap<NodeId, Known>,
    /// What the nodes of the ring may hold, in bytes.
    capacities: BTreeMap<NodeId, u64>,
    /// Whose rows are of no use any more and perhaps still there, for the ledger failed.
    undeleted: BTreeSet<(u16, NodeId)>,
}

#[derive(Default)]
struct Known {
    /// Up to where its changes are known; none: ask for all.
    since: Option<StoreRevision>,
    /// Since when it is asked and does not tell; none: it told all when it was asked last, or never was.
    asked_since: Option<Instant>,
    /// Of the wanted arcs.
    arcs: BTreeMap<u16, Digests>,
    /// How many shards are mirrored of it.
    shards: u64,
}

impl State {
    /// With this known from before.
    fn new(nodes: BTreeMap<NodeId, Known>) -> Self {
        Self {
            // Which arcs are wanted is not known yet: until the first `want`, none are.
            wanted: vec![0; ARCS / 64],
            nodes,
            capacities: BTreeMap::new(),
            undeleted: BTreeSet::new(),
        }
    }

    /// The rows of an arc of a node were written.
    fn mirrored(&mut self, node: NodeId, arc: u16, digest: Digest) {
        let known = self.nodes.get_mut(&node);
        let Some((known, digests)) = known.and_then(|known| {
            let digests = *known.arcs.get(&arc)?;
            Some((known, digests))
        }) else {
            // It was forgotten meanwhile, or the arc is no longer kept.
            if digest != EMPTY {
                self.undeleted.insert((arc, node));
            }
            return;
        };
        known.shards = known.shards - u64::from(digests.mirrored.0) + u64::from(digest.0);
        let digests = Digests { mirrored: digest, ..digests };
        if digests == (Digests { said: EMPTY, mirrored: EMPTY }) {
            known.arcs.remove(&arc);
        } else {
            known.arcs.insert(arc, digests);
        }
    }

    /// How many shards of a node are mirrored, at most.
    fn shards_max(&self, node: &NodeId) -> u64 {
        // Of a node that is not on the ring any more, for it leaves, the capacity is not known.
        let capacity = self.capacities.get(node).copied().unwrap_or(u64::MAX);
        (capacity / STORED_BYTES_MIN).min(MIRRORED_MAX)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Digests {
    /// What the node last said.
    said: Digest,
    /// Of the mirrored list.
    mirrored: Digest,
}

impl Claims {
    /// Loads the mirror's digests. Blocks on the ledger.
    pub(super) fn load(
        own: NodeId,
        store: Arc<dyn ShardStore>,
        exchange: Exchange,
        opinions: Opinions,
    ) -> io::Result<Self> {
        let ledger = store.ledger();
        let mut nodes: BTreeMap<NodeId, Known> = BTreeMap::new();
        ledger.scan(DIGEST_PREFIX, &mut |key, value| {
            if let (Some((arc, node)), Some(digest)) = (arc_and_node(key), digest_of(value)) {
                let digests = Digests { said: digest, mirrored: digest };
                let known = nodes.entry(node).or_default();
                known.arcs.insert(arc, digests);
                known.shards += u64::from(digest.0);
            }
            true
        })?;
        let (state, writing) = (Arc::new(Mutex::new(State::new(nodes))), Arc::default());
        let unwritten = AtomicBool::new(false);
        Ok(Self { own, store, ledger, exchange, opinions, state, writing, unwritten })
    }

    /// A mirror without a network. Needs a runtime.
    #[cfg(test)]
    pub(super) fn over(
        own: NodeId,
        store: Arc<dyn ShardStore>,
        ledger: Arc<dyn Ledger>,
        opinions: Opinions,
    ) -> Self {
        let state = Arc::new(Mutex::new(State::new(BTreeMap::new())));
        let unwritten = AtomicBool::new(false);
        let exchange = super::testing::exchange(own);
        Self { own, store, ledger, exchange, opinions, state, writing: Arc::default(), unwritten }
    }

    /// As if a node had told that these are all the shards that it holds, in one arc.
    #[cfg(test)]
    pub(super) async fn hear(&self, node: NodeId, shards: Vec<ListedShard>) {
        let arc = shards.first().map_or(0, |shard| Ring::arc(&shard.id.chunk));
        let digest = digest_of_arc(shards.iter().map(|shard| shard.id));
        self.note(node, true, &BTreeMap::from([(arc, digest)]));
        self.mirror(node, arc, shards).await.expect("a ledger");
        if let Some(known) = self.lock().nodes.get_mut(&node) {
            known.since = Some(StoreRevision { epoch: 1, revision: 1 });
            known.asked_since = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Takes in a new ring, or other nodes that answer: what is mirrored changes, and nodes are asked for all arcs again if
    /// there are new ones. Rows of arcs that are no longer wanted are removed; those that a failing
    /// ledger keeps, with the next call. Blocks on the ledger.
    pub(super) fn want(&self, ring: &Ring, nodes: &impl Nodes) -> io::Result<()> {
        let wanted = arcs_of(self.own, ring, nodes);
        {
            let mut state = self.lock();
            let state = &mut *state;
            let capacity = |member: &RingMember| (member.id, member.capacity_bytes);
            state.capacities = ring.members().iter().map(capacity).collect();
            let more = wanted.iter().zip(&state.wanted).any(|(new, old)| new & !old != 0);
            for (node, known) in &mut state.nodes {
                if more {
                    known.since = None;
                }
                let Known { arcs, shards, .. } = known;
                arcs.retain(|&arc, digests| {
                    let kept = bit(&wanted, arc);
                    if !kept {
                        state.undeleted.insert((arc, *node));
                        *shards -= u64::from(digests.mirrored.0);
                    }
                    kept
                });
            }
            state.wanted = wanted;
        }
        self.delete()
    }

    /// Deletes the rows that are of no use any more; those that cannot be deleted stay for the next time.
    fn delete(&self) -> io::Result<()> {
        let undeleted = self.lock().undeleted.clone();
        let mut result = Ok(());
        for (arc, node) in undeleted {
            let _writing = lock(&self.writing);
            // Meanwhile it may have been listed anew.
            if !self.lock().undeleted.contains(&(arc, node)) {
                continue;
            }
            match write(&*self.ledger, arc, node, EMPTY, &[]) {
                Ok(()) => drop(self.lock().undeleted.remove(&(arc, node))),
                failed => result = failed,
            }
        }
        result
    }

    /// Asks a node what changed, and lists the arcs that did; how many were listed.
    pub(super) async fn refresh(&self, node: NodeId) -> Result<usize, Refusal> {
        let since = {
            let mut state = self.lock();
            let known = state.nodes.entry(node).or_default();
            known.asked_since.get_or_insert_with(Instant::now);
            known.since
        };
        let (now, all, changed) = if node == self.own {
            self.opinions.fullness(node, fullness_of(&self.store.stats().await));
            let changes = self.store.arc_changes(since).await;
            let changes = changes.map_err(|error| crate::refusals::of_read(&error))?;
            let digests = changes
                .changed
                .iter()
                .map(|digest| (digest.arc, (digest.shards, digest.sum)))
                .collect();
            (changes.now, changes.all, digests)
        } else {
            self.ask_changes(node, since).await?
        };
        let stale = self.note(node, all, &changed);
        let listed = stale.len();
        self.list(node, stale).await?;
        // Only now: what was not listed is asked for again.
        if let Some(known) = self.lock().nodes.get_mut(&node) {
            (known.since, known.asked_since) = (Some(now), None);
        }
        Ok(listed)
    }

    async fn ask_changes(
        &self,
        node: NodeId,
        since: Option<StoreRevision>,
    ) -> Result<(StoreRevision, bool, BTreeMap<u16, Digest>), Refusal> {
        let (epoch, revision) = since.map_or((0, 0), |since| (since.epoch, since.revision));
        let op = Op::ArcChanges(peer::ArcChanges { epoch, revision });
        let (Outcome::ArcChanges(reply), body) = self.exchange.ask(node, op, Lane::Normal).await?
        else {
            return Err(PeerError::BadReply { node }.into());
        };
        let digests = holdings::decode_arcs(&body)?
            .into_iter()
            .map(|ArcDigest { arc, shards, sum }| (arc, (shards, sum)))
            .collect();
        self.opinions.fullness(node, reply.fullness);
        self.opinions.unable(node, reply.unable);
        let now = StoreRevision { epoch: reply.epoch, revision: reply.revision };
        Ok((now, reply.all, digests))
    }

    /// Takes in what a node says; the wanted arcs of which the mirror differs.
    fn note(&self, node: NodeId, all: bool, changed: &BTreeMap<u16, Digest>) -> Vec<u16> {
        let mut state = self.lock();
        let most = state.shards_max(&node);
        let State { wanted, nodes, .. } = &mut *state;
        let known = nodes.entry(node).or_default();
        if all {
            for (arc, digests) in &mut known.arcs {
                if !changed.contains_key(arc) {
                    digests.said = EMPTY;
                }
            }
        }
        for (&arc, &said) in changed.iter().filter(|(arc, _)| bit(wanted, **arc)) {
            known.arcs.entry(arc).or_insert(Digests { said, mirrored: EMPTY }).said = said;
        }
        let mut room = most.saturating_sub(known.shards);
        let mut stale = Vec::new();
        let differ = known.arcs.iter().filter(|(_, digests)| digests.said != digests.mirrored);
        for (&arc, digests) in differ {
            let more = u64::from(digests.said.0.saturating_sub(digests.mirrored.0));
            if more <= room {
                room -= more;
                stale.push(arc);
            }
        }
        stale
    }

    /// Lists arcs of a node and mirrors them, all that can be.
    async fn list(&self, node: NodeId, mut arcs: Vec<u16>) -> Result<(), Refusal> {
        let (empty, held): (Vec<u16>, Vec<u16>) = {
            let state = self.lock();
            let said = |arc: &u16| {
                let digests = state.nodes.get(&node).and_then(|known| known.arcs.get(arc));
                digests.is_none_or(|digests| digests.said == EMPTY)
            };
            arcs.drain(..).partition(said)
        };
        let mut result = Ok(());
        for arc in empty {
            result = self.mirror(node, arc, Vec::new()).await.and(result);
        }
        let mut left = held.as_slice();
        while let Some((&first, _)) = left.split_first() {
            let (complete, shards) = if node == self.own {
                (1, self.own_arc(first).await?)
            } else {
                self.ask_arcs(node, left).await?
            };
            let (done, rest) = left.split_at(complete.min(left.len()));
            let mut of_arc: BTreeMap<u16, Vec<ListedShard>> = BTreeMap::new();
            for shard in shards {
                of_arc.entry(Ring::arc(&shard.id.chunk)).or_default().push(shard);
            }
            for arc in done {
                let shards = of_arc.remove(arc).unwrap_or_default();
                result = self.mirror(node, *arc, shards).await.and(result);
            }
            left = rest;
        }
        result
    }

    async fn own_arc(&self, arc: u16) -> Result<Vec<ListedShard>, Refusal> {
        let held = self.store.list_arc(arc, None, LISTED_MAX).await;
        let held = held.map_err(|error| crate::refusals::of_read(&error))?;
        let listed = |HeldShard { id, geometry, shard_bytes }: HeldShard| ListedShard {
            id,
            geometry,
            shard_bytes,
        };
        Ok(held.into_iter().map(listed).collect())
    }

    /// As many whole arcs as one answer holds, one at least: how many, and their shards.
    async fn ask_arcs(
        &self,
        node: NodeId,
        arcs: &[u16],
    ) -> Result<(usize, Vec<ListedShard>), Refusal> {
        let mut asked: Vec<u32> = arcs.iter().take(LIST_ARCS_MAX).map(|&arc| arc.into()).collect();
        let (mut after, mut shards) = (Vec::new(), Vec::<ListedShard>::new());
        loop {
            let op = Op::ListArcs(peer::ListArcs { arcs: asked.clone(), after });
            let (Outcome::ListArcs(reply), body) =
                self.exchange.ask(node, op, Lane::Normal).await?
            else {
                return Err(PeerError::BadReply { node }.into());
            };
            let part = holdings::decode_shards(&body)?;
            let follows = match (shards.last(), part.first()) {
                (Some(last), Some(first)) => holdings::follows(last, first).is_ok(),
                _ => true,
            };
            let complete = reply.complete as usize;
            if !follows || complete > asked.len() || shards.len() + part.len() > LISTED_MAX {
                return Err(PeerError::BadReply { node }.into());
            }
            let ended = part.last().map(|shard| shard.id);
            shards.extend(part);
            if complete > 0 {
                // What belongs to an arc that was cut off is listed again with it.
                let done: BTreeSet<u16> = arcs.iter().take(complete).copied().collect();
                shards.retain(|shard| done.contains(&Ring::arc(&shard.id.chunk)));
                return Ok((complete, shards));
            }
            // Not even the first arc was finished: the rest of it alone.
            let Some(ended) = ended else { return Err(PeerError::BadReply { node }.into()) };
            after = holdings::shard_key(ended).to_vec();
            asked.truncate(1);
        }
    }

    /// Replaces the mirrored list of one node's arc. Its digest is that of what was listed, not of
    /// what was said before: the arc may have changed in between, and may change back.
    async fn mirror(
        &self,
        node: NodeId,
        arc: u16,
        shards: Vec<ListedShard>,
    ) -> Result<(), Refusal> {
        let digest = digest_of_arc(shards.iter().map(|shard| shard.id));
        if !self.make_room(node, arc, digest.0) {
            tracing::warn!(node = %node.short(), arc, "lists more shards than it can hold: not mirrored");
            return Ok(());
        }
        let (ledger, state) = (Arc::clone(&self.ledger), Arc::clone(&self.state));
        let writing = Arc::clone(&self.writing);
        // Rows and digest change together, also when nobody waits for it any more: rows that are newer than
        // the digest would be taken for those of the digest once the node says that again.
        let written = blocking(move || {
            let _writing = lock(&writing);
            write(&*ledger, arc, node, digest, &shards)?;
            lock(&state).mirrored(node, arc, digest);
            Ok(())
        });
        written.await.inspect_err(|_| self.unwritten.store(true, Relaxed))
    }

    /// Whether all lists could be written down since this was asked last.
    pub(super) fn are_written(&self) -> bool {
        !self.unwritten.swap(false, Relaxed)
    }

    /// Whether so many shards of a node's arc can be mirrored. Then its rows are no longer to be deleted.
    fn make_room(&self, node: NodeId, arc: u16, shards: u32) -> bool {
        let mut state = self.lock();
        let most = state.shards_max(&node);
        let known = state.nodes.get(&node);
        let mirrored = known.and_then(|known| known.arcs.get(&arc)).map_or(0, |arc| arc.mirrored.0);
        let others = known.map_or(0, |known| known.shards) - u64::from(mirrored);
        let fits = others + u64::from(shards) <= most || shards <= mirrored;
        if fits {
            state.undeleted.remove(&(arc, node));
        }
        fits
    }

    /// The nodes of which anything is mirrored.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        let state = self.lock();
        let some = state.nodes.iter().filter(|(_, known)| !known.arcs.is_empty());
        some.map(|(&node, _)| node).collect()
    }

    /// Whether a node has not told yet of all arcs that are mirrored now, and may still do so.
    pub(super) fn is_to_tell(&self, node: &NodeId) -> bool {
        let state = self.lock();
        let known = state.nodes.get(node);
        let has_told = known.is_some_and(|known| known.since.is_some());
        // Its own time: neither another node nor a new ring gives it more.
        let since = known.and_then(|known| known.asked_since);
        !has_told && since.is_none_or(|since| since.elapsed() < TOLD_WITHIN)
    }

    /// Who is said to hold anything in an arc, with the digest of the mirrored list.
    pub(super) fn holders(&self, arc: u16) -> Vec<(NodeId, Digest)> {
        let state = self.lock();
        let held = |(&node, known): (&NodeId, &Known)| {
            known.arcs.get(&arc).map(|digests| (node, digests.mirrored))
        };
        state.nodes.iter().filter_map(held).filter(|(_, digest)| *digest != EMPTY).collect()
    }

    /// A claim of a node, picked by two numbers from all that are mirrored. Blocks on the ledger.
    pub(super) fn pick(
        &self,
        node: NodeId,
        arc: usize,
        shard: usize,
    ) -> io::Result<Option<ListedShard>> {
        let arc = {
            let state = self.lock();
            let Some(known) = state.nodes.get(&node).filter(|known| !known.arcs.is_empty()) else {
                return Ok(None);
            };
            known.arcs.keys().nth(arc % known.arcs.len()).copied().unwrap_or(0)
        };
        let claims = self.of_arc(arc)?;
        let shards = claims.into_iter().find(|(claimer, _)| *claimer == node);
        let (_, shards) = shards.unwrap_or((node, Vec::new()));
        Ok(shards.get(shard % shards.len().max(1)).copied())
    }

    /// All mirrored arcs that hold anything, ascending.
    pub(super) fn arcs(&self) -> Vec<u16> {
        let state = self.lock();
        let arcs: BTreeSet<u16> =
            state.nodes.values().flat_map(|known| known.arcs.keys().copied()).collect();
        arcs.into_iter().collect()
    }

    /// The mirrored claims of an arc: for each node its shards. Blocks on the ledger.
    pub(super) fn of_arc(&self, arc: u16) -> io::Result<Vec<(NodeId, Vec<ListedShard>)>> {
        let prefix = [CLAIMS_PREFIX, &arc.to_be_bytes()].concat();
        let mut claims: BTreeMap<NodeId, Vec<ListedShard>> = BTreeMap::new();
        self.ledger.scan(&prefix, &mut |key, value| {
            if let (Some((_, node)), Some(shards)) = (arc_and_node(key), list_of(value)) {
                claims.entry(node).or_default().extend(shards);
            }
            true
        })?;
        Ok(claims.into_iter().collect())
    }

    /// Forgets nodes that are gone for good. Blocks on the ledger.
    pub(super) fn forget(&self, nodes: &[NodeId]) -> io::Result<()> {
        {
            let mut state = self.lock();
            for node in nodes {
                let known = state.nodes.remove(node).unwrap_or_default();
                state.undeleted.extend(known.arcs.into_keys().map(|arc| (arc, *node)));
            }
        }
        self.delete()
    }
}

/// The arcs whose claims a node mirrors, a bit each.
fn arcs_of(own: NodeId, ring: &Ring, nodes: &impl Nodes) -> Vec<u64> {
    let mut wanted = vec![0u64; ARCS / 64];
    // In a small network most arcs have the walk of the one before.
    let mut before: Option<(u16, bool)> = None;
    for arc in 0..=u16::MAX {
        let is_kept = match before {
            Some((last, is_kept)) if ring.have_same_walk(last, arc) => is_kept,
            _ => repair::stewards(ring, arc, nodes).take(KEEPERS).any(|node| node == own),
        };
        if is_kept {
            wanted[usize::from(arc) / 64] |= 1 << (arc % 64);
        }
        before = Some((arc, is_kept));
    }
    wanted
}

/// Runs what blocks beside the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    match beside(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(crate::refusals::internal(&error)),
        Err(error) => Err(crate::refusals::internal(&error)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bit(bits: &[u64], arc: u16) -> bool {
    bits.get(usize::from(arc) / 64).is_some_and(|word| word & (1 << (arc % 64)) != 0)
}

#[cfg(test)]
mod tests;
