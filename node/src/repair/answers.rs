//! What other nodes may ask about holdings, and to move: the answering side.
//!
//! Owns the rule by which this node gives a shard away. It refuses on doubt: a shard is dropped only
//! when this node's own ring says that it should not have it (or the node is leaving), and another
//! node has just proved that it holds it, and keeps it for a while (see `pins`). Who asks does not
//! matter, so nothing is gained by lying; and what is asked at once is bounded in memory.

use std::sync::Arc;

use bytes::Bytes;
use copse_core::{
    descriptor::Descriptor,
    directory::NodeState,
    geometry::Geometry,
    ids::{ChunkId, NodeId, ShardId},
    repair::Lane,
    ring::Ring,
    units::ByteSize,
};
use copse_proto::{
    convert,
    holdings::{self, LIST_ARCS_MAX, LIST_BYTES_MAX, ListedShard, SHARD_ENTRY_BYTES},
    peer,
    status::{Reason, Refusal},
};

use super::{
    exchange::Use,
    facts::fullness_of,
    phases::Phase,
    pins::{Giving, PROOF_HOLDS, Pins},
    report::count,
    shared::Shared,
};
use crate::{
    buffers::Buffers,
    refusals,
    store::{HeldShard, RemovalReason, StoreRevision, Want},
};

/// Memory for shards that are handed over at the same time: four of the largest, 40 of a full chunk
/// of 10+6.
const HAND_OVER_BYTES: ByteSize = ByteSize(32 << 20);

/// Answers about this node's own shards.
pub(super) struct Answers {
    shared: Arc<Shared>,
    pub(super) pins: Pins,
    /// For shards on their way to others.
    memory: Buffers,
}

impl Answers {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let memory = Buffers::new("shards that are handed over", HAND_OVER_BYTES);
        Self { shared, pins: Pins::default(), memory }
    }

    /// Which arcs changed since a revision, and the body that lists them.
    pub(super) async fn arc_changes(
        &self,
        asked: &peer::ArcChanges,
    ) -> Result<(peer::ArcChangesReply, Bytes), Refusal> {
        let since = StoreRevision { epoch: asked.epoch, revision: asked.revision };
        let since = (since.epoch != 0).then_some(since);
        let changes = self
            .shared
            .store
            .arc_changes(since)
            .await
            .map_err(|error| refusals::of_read(&error))?;
        let arcs: Vec<holdings::ArcDigest> = changes
            .changed
            .iter()
            .map(|digest| holdings::ArcDigest {
                arc: digest.arc,
                shards: digest.shards,
                sum: digest.sum,
            })
            .collect();
        let stats = self.shared.store.stats().await;
        let reply = peer::ArcChangesReply {
            fullness: fullness_of(&stats),
            unable: self.shared.health.told().await,
            epoch: changes.now.epoch,
            revision: changes.now.revision,
            all: changes.all,
        };
        Ok((reply, holdings::encode_arcs(&arcs).into()))
    }

    /// The shards of some arcs, as many as fit.
    pub(super) async fn list_arcs(
        &self,
        asked: &peer::ListArcs,
    ) -> Result<(peer::ListArcsReply, Bytes), Refusal> {
        if asked.arcs.len() > LIST_ARCS_MAX {
            let text = format!("{} arcs are over the limit of {LIST_ARCS_MAX}", asked.arcs.len());
            return Err(Refusal::new(Reason::Oversized, text));
        }
        let mut after = holdings::shard_of_key(&asked.after)?;
        let (mut body, mut complete) = (Vec::new(), 0);
        for &arc in &asked.arcs {
            let arc = u16::try_from(arc).map_err(|_| {
                Refusal::new(Reason::Malformed, format!("there is no arc {arc}; the last is 65535"))
            })?;
            let room = (LIST_BYTES_MAX - body.len()) / SHARD_ENTRY_BYTES;
            let listed = self.shared.store.list_arc(arc, after.take(), room);
            let listed = listed.await.map_err(|error| refusals::of_read(&error))?;
            for HeldShard { id, geometry, shard_bytes } in &listed {
                let shard = ListedShard { id: *id, geometry: *geometry, shard_bytes: *shard_bytes };
                holdings::encode_shard(&mut body, &shard);
            }
            if listed.len() >= room {
                break;
            }
            complete += 1;
        }
        Ok((peer::ListArcsReply { complete }, body.into()))
    }

    /// Sends a shard to a node that should have it, has it proved, and drops it here.
    pub(super) async fn hand_over(&self, asked: &peer::HandOver) -> Result<u64, Refusal> {
        let id = convert::shard_id(&asked.chunk_id, asked.index)?;
        let to = convert::node_id(&asked.to)?;
        let descriptor = self.descriptor(id).await?;
        #[cfg(feature = "canary")]
        if self.shared.phases.hands_nothing_over() {
            return Err(Refusal::new(Reason::KeepsShard, "a bug on purpose"));
        }
        let giving = self.pins.give(id)?;
        self.may_give_away(id, descriptor.geometry(), to).await?;
        // Only now: who asks for what it does not get costs one group.
        let _memory = self.memory.take(descriptor.shard_bytes()).await?;
        let read = self.shared.store.read(id, Want::Whole).await;
        let read = read.map_err(|error| refusals::of_read(&error))?;
        let bytes = read.data.len() as u64;
        // What nobody has called safe here is not called so there either.
        let abandoned = self.is_unsettled(id.chunk).await?;
        let sent = self.send(id, to, &descriptor, read.data, abandoned).await;
        #[cfg(feature = "canary")]
        let sent = if self.shared.phases.moves_blindly() { Ok(bytes) } else { sent };
        let sent = sent?;
        self.shared.phases.reach(Phase::Moved, id.chunk).await;
        // The ring may have changed since the shard began to be sent.
        self.may_give_away(id, descriptor.geometry(), to).await?;
        self.is_as_it_was_said(id.chunk, abandoned).await?;
        self.remove(giving, RemovalReason::HandedOver).await?;
        count(&self.shared.counters.moved_shards, 1);
        count(&self.shared.counters.moved_bytes, bytes);
        tracing::debug!(shard = %id, to = %to.short(), "handed over");
        Ok(sent)
    }

    /// Sends a shard and has it proved.
    async fn send(
        &self,
        id: ShardId,
        to: NodeId,
        descriptor: &Descriptor,
        data: Bytes,
        abandoned: bool,
    ) -> Result<u64, Refusal> {
        let sent = self.shared.exchange.put(to, descriptor, id, data, Lane::Normal, abandoned);
        let sent = sent.await?;
        self.shared.phases.reach(Phase::Sent, id.chunk).await;
        self.prove(to, descriptor, id).await?;
        Ok(sent)
    }

    /// Refuses to drop a shard whose chunk was called safe since another was told that nobody had: the next
    /// time it is told better.
    async fn is_as_it_was_said(&self, chunk: ChunkId, unsettled: bool) -> Result<(), Refusal> {
        if unsettled && !self.is_unsettled(chunk).await? {
            let text = "its chunk was called safe while it was given away; ask again";
            return Err(Refusal::new(Reason::KeepsShard, text));
        }
        Ok(())
    }

    /// Whether all that is held of a chunk came by puts that nobody has called safe.
    async fn is_unsettled(&self, chunk: ChunkId) -> Result<bool, Refusal> {
        let held = self.shared.store.held(chunk).await;
        let held = held.map_err(|error| refusals::of_read(&error))?;
        Ok(self.shared.unsettled.is_unsettled(&chunk, &held))
    }

    /// Has another node prove a shard so that it may be dropped here, and keep it for a while.
    async fn prove(&self, by: NodeId, descriptor: &Descriptor, id: ShardId) -> Result<(), Refusal> {
        let proof = self.shared.exchange.prove(by, descriptor, id, Use::DroppingOnes);
        match tokio::time::timeout(PROOF_HOLDS, proof).await {
            Ok(proved) => proved,
            Err(_) => {
                let text = format!("node {by} did not prove shard {id} within {PROOF_HOLDS:?}");
                Err(Refusal::new(Reason::TimedOut, text))
            }
        }
    }

    /// The descriptor of a shard's chunk, from its first group.
    async fn descriptor(&self, id: ShardId) -> Result<Descriptor, Refusal> {
        let first = self.shared.store.read(id, Want::Range(0..1)).await;
        let first = first.map_err(|error| refusals::of_read(&error))?;
        Ok(convert::descriptor(&first.descriptor)?)
    }

    /// Drops a shard that another node proves to hold.
    pub(super) async fn release(&self, asked: &peer::Release) -> Result<(), Refusal> {
        let id = convert::shard_id(&asked.chunk_id, asked.index)?;
        let kept_by = convert::node_id(&asked.kept_by)?;
        let descriptor = self.descriptor(id).await?;
        let giving = self.pins.give(id)?;
        self.may_give_away(id, descriptor.geometry(), kept_by).await?;
        let is_unsettled = self.is_unsettled(id.chunk).await?;
        if !is_unsettled {
            // That the chunk was stored once goes with the shard: who keeps it may know it by a broken-off
            // put only, and would say that there was nothing to lose. Before the proof, which holds for a minute.
            self.shared.exchange.settle(kept_by, id.chunk).await?;
        }
        self.prove(kept_by, &descriptor, id).await?;
        self.is_as_it_was_said(id.chunk, is_unsettled).await?;
        self.remove(giving, RemovalReason::Surplus).await?;
        count(&self.shared.counters.released_shards, 1);
        tracing::debug!(shard = %id, kept_by = %kept_by.short(), "released");
        Ok(())
    }

    /// Drops a shard, in a task of its own: when the asker goes away the removal still happens, and
    /// until it has, the shard is marked as being given away.
    async fn remove(&self, giving: Giving, reason: RemovalReason) -> Result<(), Refusal> {
        let (id, store) = (giving.id(), Arc::clone(&self.shared.store));
        let removed = tokio::spawn(async move {
            let removed = store.remove(id, reason).await;
            drop(giving);
            removed
        });
        let removed = removed.await.map_err(|error| refusals::internal(&error))?;
        removed.map(|_| ()).map_err(|error| {
            Refusal::new(Reason::StoreFailed, format!("shard {id} was not dropped: {error}"))
        })
    }

    /// Whether this node should give a shard away, and that node take it. Others of the chunk that are
    /// being given away do not count as held.
    async fn may_give_away(
        &self,
        id: ShardId,
        geometry: Geometry,
        to: NodeId,
    ) -> Result<(), Refusal> {
        let keeps = |why: String| {
            Err(Refusal::new(Reason::KeepsShard, format!("shard {id} is kept here: {why}")))
        };
        if to == self.shared.own {
            return keeps("it would be given to this node itself".to_owned());
        }
        let view = self.shared.views.now();
        let held =
            self.shared.store.held(id.chunk).await.map_err(|error| refusals::of_read(&error))?;
        let entitled = slots(&view.ring, id, geometry, self.shared.own);
        let held = held.len().saturating_sub(self.pins.others_given(id));
        if view.own_state == NodeState::Active && held <= entitled {
            return keeps(format!(
                "by this node's ring it should hold {entitled} shards of the chunk, and it holds {held}",
            ));
        }
        if !view.ring.may_hold(Ring::arc(&id.chunk), geometry, &to) {
            return keeps(format!("node {to} is not among those where it is looked for"));
        }
        Ok(())
    }
}

/// How many shards of the chunk a node should hold.
fn slots(ring: &Ring, id: ShardId, geometry: Geometry, node: NodeId) -> usize {
    ring.placement(Ring::arc(&id.chunk), geometry)
        .into_iter()
        .filter(|&member| member == node)
        .count()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use copse_core::identity::NodeKey;

    use super::{
        super::{
            facts::{Looks as _, Views},
            testing::{Keeper, Seen, member, of_three, replica, shared},
        },
        *,
    };
    use crate::{
        store::{MemoryStore, ShardStore},
        unsettled::{Coming, Origin},
    };

    /// A node that holds two shards of each of some chunks, one too many, and one that takes them. Of those
    /// that are unsettled the puts go on.
    async fn two(chunks: u8, unsettled: &[u8]) -> (Answers, Keeper) {
        let (own, keeper) = (NodeKey::from_seed([1; 32]).id(), Keeper::start(2));
        let members = [own, keeper.id, NodeId::new([8; 32])].map(|id| member(id, ""));
        let store: Arc<dyn ShardStore> = Arc::new(MemoryStore::new(1 << 20));
        let (ledger, seen) = (store.ledger(), Seen::new(members.to_vec()));
        let mut shared = shared(own, store, ledger, seen as Views);
        shared.exchange = keeper.exchange(1);
        for (seed, index) in (0..chunks).flat_map(|seed| [(seed, 0), (seed, 1)]) {
            let shard = of_three(seed, index);
            let (id, geometry) = (shard.id(), shard.geometry());
            shared.store.put(shard).await.expect("a put");
            if unsettled.contains(&seed) {
                assert_eq!(shared.unsettled.came(Origin::Stream(1), None, id, geometry), None);
            }
        }
        (Answers::new(Arc::new(shared)), keeper)
    }

    #[tokio::test]
    async fn that_a_chunk_was_stored_is_known_where_its_shard_is_kept() {
        let (answers, keeper) = two(2, &[1]).await;
        for (seed, unsettled) in [(0, false), (1, true)] {
            // It has the same shard by a put that was broken off.
            let shard = of_three(seed, 0);
            keeper.take(&shard, Coming::Abandoned).await;
            let chunk = shard.id().chunk;
            assert_eq!(keeper.holds(chunk).await, (vec![0], true));
            let chunk_id = chunk.as_bytes().to_vec();
            let asked =
                peer::Release { chunk_id, index: 0, kept_by: keeper.id.as_bytes().to_vec() };
            answers.release(&asked).await.expect("it is kept there");
            assert_eq!(answers.shared.store.held(chunk).await.expect("a store").len(), 1);
            assert_eq!(keeper.holds(chunk).await, (vec![0], unsettled));
        }
    }

    #[tokio::test]
    async fn what_is_handed_over_says_the_same_of_its_chunk_there_as_here() {
        let (answers, keeper) = two(3, &[1]).await;
        let hand_over = async |seed| {
            let chunk = of_three(seed, 0).id().chunk;
            let (chunk_id, to) = (chunk.as_bytes().to_vec(), keeper.id.as_bytes().to_vec());
            let asked = peer::HandOver { chunk_id, index: 0, to };
            let handed = answers.hand_over(&asked).await.map_err(|refusal| refusal.reason());
            let left = answers.shared.store.held(chunk).await.expect("a store").len();
            (handed.map(|_| left), keeper.holds(chunk).await)
        };
        assert_eq!(hand_over(0).await, (Ok(1), (vec![0], false)));
        assert_eq!(hand_over(1).await, (Ok(1), (vec![0], true)));
        // A mark that cannot be taken away would speak for both: this one keeps its own.
        keeper.take(&of_three(2, 0), Coming::Abandoned).await;
        keeper.ledger.fails.store(true, Relaxed);
        assert_eq!(hand_over(2).await.0, Err(Reason::StoreFailed));
        keeper.ledger.fails.store(false, Relaxed);
        assert_eq!(hand_over(2).await, (Ok(1), (vec![0], false)));
    }

    #[tokio::test]
    async fn a_shard_goes_as_far_along_the_walk_as_it_is_looked_for_and_no_further() {
        // A zone of 300 nodes and one of three: of 1+1 each has one shard.
        let node = |number: u16| NodeId::new(*blake3::hash(&number.to_le_bytes()).as_bytes());
        let zone = |number| if number < 300 { "barn" } else { "attic" };
        let members = (0..303).map(|number| member(node(number), zone(number)));
        let (seen, own) = (Seen::new(members.collect()), NodeId::new([1; 32]));
        let store: Arc<dyn ShardStore> = Arc::new(MemoryStore::new(1 << 20));
        let id = replica(7, 0).id();
        store.put(replica(7, 0)).await.expect("a put");
        let (ledger, views) = (store.ledger(), Arc::clone(&seen) as Views);
        let answers = Answers::new(Arc::new(shared(own, store, ledger, views)));
        let (view, arc) = (seen.now(), Ring::arc(&id.chunk));
        let code = replica(7, 0).geometry();
        let homes = view.ring.placement(arc, code);
        let mut far = 0;
        for (at, to) in view.ring.walk(arc).enumerate() {
            let may = answers.may_give_away(id, code, to).await;
            assert_eq!(may.is_ok(), at < 32 || homes.contains(&to), "{at}: {may:?}");
            far += usize::from(at >= 3 * code.total() && homes.contains(&to));
        }
        assert_eq!(far, 1, "a home that three nodes for each shard do not reach");
    }
}
