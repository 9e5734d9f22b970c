//! What nodes have of a chunk already: shown by them, not only said.
//!
//! Owns whom to ask before anything is sent, and what an answer is worth. Sends nothing and keeps no
//! state but the placement's. The one idea: a claim says what to ask for next; it counts when the
//! node has proved a random group of that shard, and then only as far as a shard sent there would.

use std::{sync::Arc, time::Duration};

use copse_core::{
    ids::{ChunkId, NodeId, ShardIndex},
    manifest::ChunkRef,
};
use copse_proto::convert::Holding;
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::timeout;

use super::{
    Session,
    placement::{Placement, Spread},
};
use crate::get::facts::ChunkFacts;

/// Holders asked whether they have the chunk before it is sent. Two, since one may be new or dead.
const PROBES: usize = 2;

/// A probe that takes longer counts as no. Sending too much is better than waiting.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The same for a proof, which is 16 KiB long and may share a slow line with 63 others.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks a few holders whether they have the chunk, and all of them if one does.
pub(super) async fn find(session: &Session, chunk: &ChunkRef, placement: &mut Placement) {
    let facts = Arc::new(ChunkFacts::of_chunk(chunk));
    let mut preferred: Vec<NodeId> = Vec::new();
    for node in placement.preferred() {
        if !preferred.contains(node) && session.network.holder(*node).can_read() {
            preferred.push(*node);
        }
    }
    let rest = preferred.split_off(preferred.len().min(PROBES));
    if !ask(session, &facts, placement, preferred.clone()).await {
        return;
    }
    ask(session, &facts, placement, rest.clone()).await;
    if !placement.missing().is_empty() {
        let asked = |node: &NodeId| preferred.contains(node) || rest.contains(node);
        let more = placement.candidates().iter().filter(|node| !asked(node)).copied();
        let more = more.filter(|node| session.network.holder(*node).can_read()).collect();
        ask(session, &facts, placement, more).await;
    }
}

/// How all shards of a chunk lie on its holders, which have them between them and prove it. None at once when one of
/// them is left alone for now, does not answer or does not prove what it claims: what is missing is then
/// found by [`find`], which asks further.
///
/// Every shard is proved, not a sample: it costs a 32nd of what the file's bytes would on the line, at
/// most, and a sample would let a liar through for all the chunks before it is caught.
pub(super) async fn whole(session: &Arc<Session>, chunk: &ChunkRef) -> Option<Spread> {
    let network = &session.network;
    let preferred = network.view().placement(&chunk.id, chunk.geometry);
    let mut nodes = preferred.clone();
    nodes.sort_unstable();
    nodes.dedup();
    if nodes.iter().any(|node| !network.holder(*node).can_read()) {
        return None;
    }
    let mut placement = Placement::new(chunk.geometry, preferred, Vec::new());
    let asking = nodes.into_iter().map(|node| async move {
        says(session, node, chunk.id).await.map(|claims| (node, claims))
    });
    let mut asking: FuturesUnordered<_> = asking.collect();
    let mut claims = Vec::with_capacity(chunk.geometry.total());
    while let Some(answer) = asking.next().await {
        let (node, claimed) = answer?;
        if claimed.unsettled {
            placement.waits(node);
        }
        let credible = placement.credible(node, claimed.indices);
        claims.extend(credible.into_iter().map(|index| (index, node)));
    }
    // One for each shard, of its own holder if that claims it: otherwise whoever claims too much would
    // have everything read again.
    claims.sort_unstable_by_key(|(index, node)| (!placement.is_place(*index, *node), *index));
    claims.retain(|(index, node)| {
        let is_first = !placement.is_durable(*index);
        if is_first {
            placement.held(*index, *node);
        }
        is_first
    });
    if !placement.missing().is_empty() {
        return None;
    }
    let facts = Arc::new(ChunkFacts::of_chunk(chunk));
    let proofs = claims.into_iter().map(|(index, node)| prove(session, &facts, index, node));
    let mut proofs: FuturesUnordered<_> = proofs.collect();
    while let Some(is_proved) = proofs.next().await {
        if !is_proved {
            return None;
        }
    }
    // Of a put that was broken off, and is safe now.
    session.settle(chunk.id, &placement.to_settle());
    placement.spread()
}

/// Asks nodes at once and has each prove what it claims. Whether any of them has a shard.
async fn ask(
    session: &Session,
    facts: &Arc<ChunkFacts>,
    placement: &mut Placement,
    nodes: Vec<NodeId>,
) -> bool {
    let credible = &*placement;
    let asking = nodes.into_iter().map(|node| async move {
        let said = says(session, node, facts.id).await.unwrap_or_default();
        let claims = credible.credible(node, said.indices);
        let proofs = claims
            .into_iter()
            .map(|index| async move { prove(session, facts, index, node).await.then_some(index) });
        let proved = proofs.collect::<FuturesUnordered<_>>().collect::<Vec<_>>().await;
        (node, said.unsettled, proved)
    });
    let asking: FuturesUnordered<_> = asking.collect();
    let answers: Vec<_> = asking.collect().await;
    let mut found = false;
    for (node, unsettled, proved) in answers {
        // Also where nothing was proved: safe is safe.
        if unsettled {
            placement.waits(node);
        }
        for index in proved.into_iter().flatten() {
            placement.held(index, node);
            found = true;
        }
    }
    found
}

/// What a node says it has of a chunk; nothing when it does not say so in time.
async fn says(session: &Session, node: NodeId, chunk: ChunkId) -> Option<Holding> {
    let holder = session.network.holder(node);
    holder.begin();
    match timeout(PROBE_TIMEOUT, session.network.holdings(node, &[chunk])).await {
        Ok(Ok(mut held)) => Some(held.pop().unwrap_or_default()),
        // The network has noted it.
        Ok(Err(_)) => None,
        Err(_) => {
            holder.failed("it did not say what it holds in time");
            None
        }
    }
}

/// Whether a node proves a random group of a shard.
async fn prove(
    session: &Session,
    facts: &Arc<ChunkFacts>,
    index: ShardIndex,
    node: NodeId,
) -> bool {
    match session.prover.prove_within(PROOF_TIMEOUT, facts, index, node).await {
        Ok(()) => true,
        Err(why) => {
            let (chunk, node) = (facts.id.short(), node.short());
            tracing::debug!(%chunk, %index, %node, %why, "a claim was not proved");
            false
        }
    }
}
