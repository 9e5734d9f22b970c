//! How fast the core's gossip tells everybody, and what it costs.
//!
//! Owns a network of gossip engines in rounds: [`copse_core::gossip`] as it is, real records, real
//! signatures, messages delivered within the round or lost. Simulates no latency. What is counted is
//! rounds; [`seconds`] makes time of them by the core's own period.

use copse_core::{
    directory::{Directory, NodeRecord, NodeState, SignedRecord},
    gossip::{Gossip, RECONCILE_INTERVAL, ROUND_INTERVAL},
    identity::NodeKey,
    ids::{NetworkId, NodeId},
};

use crate::random::Xoshiro;

const NETWORK: NetworkId = NetworkId::new([0x51; 32]);

/// Digests of a comparison, in bytes: 256 of 8.
const DIGEST_BYTES: usize = 2048;

/// Rounds that are waited for everybody to know.
pub const ROUNDS_MAX: usize = 1000;

/// How long so many rounds take, in seconds: the core's period for each.
pub fn seconds(rounds: usize) -> f64 {
    rounds as f64 * ROUND_INTERVAL.as_secs_f64()
}

/// A number of rounds with the seconds that they take: `3 rounds = 3 s`.
pub fn said(rounds: Option<usize>) -> String {
    match rounds {
        Some(rounds) => format!("{rounds} rounds = {} s", seconds(rounds)),
        None => format!("not within {ROUNDS_MAX} rounds = {} s", seconds(ROUNDS_MAX)),
    }
}

/// A network to spread news in. Every node knows all others and one changes its record.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rumour {
    /// Nodes; memory grows with their square (60 bytes for each pair).
    pub nodes: usize,
    /// Messages that are lost.
    pub loss: f64,
    /// One seed, one run.
    pub seed: u64,
}

/// How it went.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// Rounds until nobody had anything to push for the first time.
    pub push_rounds: usize,
    /// Rounds until half knew; none: not within [`ROUNDS_MAX`].
    pub half_rounds: Option<usize>,
    /// Part of the nodes that knew when the pushes ended.
    pub pushed: f64,
    /// Rounds until all knew, comparisons of digests included; none: not within [`ROUNDS_MAX`].
    pub all_rounds: Option<usize>,
    /// Messages of pushes.
    pub messages: u64,
    /// Bytes of pushes, per node.
    pub push_bytes_per_node: f64,
    /// Bytes a second of each node for comparisons that find nothing.
    pub idle_bytes_per_second: f64,
}

struct Node {
    id: NodeId,
    directory: Directory,
    gossip: Gossip,
}

fn key(seed: u64, number: usize) -> NodeKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&(number as u64).to_le_bytes());
    NodeKey::from_seed(bytes)
}

fn record(key: &NodeKey, seq: u64) -> SignedRecord {
    let record = NodeRecord {
        network: NETWORK,
        node: key.id(),
        seq,
        addresses: vec![([192, 0, 2, 1], 7400).into()],
        grpc: vec![([192, 0, 2, 1], 7401).into()],
        relays: vec![],
        zone: String::new(),
        capacity_bytes: 1 << 40,
        state: NodeState::Active,
        version: "0.1.0".into(),
    };
    match SignedRecord::sign(record, key) {
        Ok(signed) => signed,
        Err(error) => unreachable!("the record is the key's own and within all limits: {error}"),
    }
}

fn bytes(records: &[SignedRecord]) -> u64 {
    records.iter().map(|record| record.record_bytes().len() as u64 + 80).sum()
}

fn raw(records: &[SignedRecord]) -> impl Iterator<Item = (&[u8], &[u8])> {
    records.iter().map(|record| (record.record_bytes(), &record.signature()[..]))
}

/// Runs it until everybody knows; at most [`ROUNDS_MAX`].
pub fn spread(rumour: Rumour) -> Spread {
    let mut random = Xoshiro::new(rumour.seed, "gossip losses");
    let keys: Vec<NodeKey> = (0..rumour.nodes).map(|number| key(rumour.seed, number)).collect();
    let mut known = Directory::new(NETWORK);
    for key in &keys {
        known.insert(record(key, 1));
    }
    let mut nodes: Vec<Node> = keys
        .iter()
        .map(|key| Node {
            id: key.id(),
            directory: known.clone(),
            gossip: Gossip::new(key.id(), key.id().as_bytes()),
        })
        .collect();
    let mut by_id: Vec<(NodeId, usize)> =
        keys.iter().enumerate().map(|(at, key)| (key.id(), at)).collect();
    by_id.sort_unstable();
    let find = |id: NodeId| by_id.binary_search_by_key(&id, |(id, _)| *id).map(|at| by_id[at].1);

    let about = keys[0].id();
    let first = &mut nodes[0];
    first.directory.insert(record(&keys[0], 2));
    first.gossip.spread(about, &first.directory);

    let mut out = Spread {
        push_rounds: 0,
        half_rounds: None,
        pushed: 0.0,
        all_rounds: None,
        messages: 0,
        push_bytes_per_node: 0.0,
        // Asked once and asking once in each interval, by digests alone.
        idle_bytes_per_second: 2.0 * DIGEST_BYTES as f64 / RECONCILE_INTERVAL.as_secs_f64(),
    };
    let mut pushed_bytes = 0;
    let mut informed = 1;
    let every = RECONCILE_INTERVAL.as_secs().max(1) / ROUND_INTERVAL.as_secs().max(1);
    for round in 1..=ROUNDS_MAX {
        let pushes: Vec<_> = nodes
            .iter_mut()
            .flat_map(|node| {
                let pushes = node.gossip.round(&node.directory);
                pushes.into_iter().map(|push| (node.id, push.to, push.news.records))
            })
            .collect();
        // What a comparison finds is pushed again, and is no part of this.
        if !pushes.is_empty() && out.pushed == 0.0 {
            out.push_rounds = round;
        }
        for (from, to, records) in &pushes {
            out.messages += 1;
            pushed_bytes += bytes(records);
            if random.chance(rumour.loss) {
                continue;
            }
            let Ok(at) = find(*to) else { continue };
            let Node { directory, gossip, .. } = &mut nodes[at];
            informed += gossip.receive(directory, *from, raw(records), []).news;
        }
        if out.half_rounds.is_none() && 2 * informed >= rumour.nodes {
            out.half_rounds = Some(round);
        }
        if pushes.is_empty() && out.pushed == 0.0 {
            out.pushed = informed as f64 / rumour.nodes as f64;
        }
        if informed < rumour.nodes && out.pushed > 0.0 {
            informed += compare(&mut nodes, round as u64, every, &find);
        }
        if informed >= rumour.nodes {
            out.all_rounds = out.all_rounds.or(Some(round));
            if pushes.is_empty() || out.pushed > 0.0 {
                out.pushed = if out.pushed == 0.0 { 1.0 } else { out.pushed };
                break;
            }
        }
    }
    out.push_bytes_per_node = pushed_bytes as f64 / rumour.nodes as f64;
    out
}

/// One round's share of the nodes compare digests with a random peer. How many learned the news.
fn compare(
    nodes: &mut [Node],
    round: u64,
    every: u64,
    find: &impl Fn(NodeId) -> Result<usize, usize>,
) -> usize {
    let mut informed = 0;
    for asking in 0..nodes.len() {
        // Spread over the interval.
        if asking as u64 % every != round % every {
            continue;
        }
        let Node { directory, gossip, id } = &mut nodes[asking];
        let (digests, from) = (*directory.digests(), *id);
        let Some(Ok(asked)) = gossip.reconcile(directory).map(find) else { continue };
        if *nodes[asked].directory.digests() == digests {
            continue;
        }
        let Node { directory, gossip, id } = &mut nodes[asked];
        let (answer, peer) = (gossip.difference(directory, &digests), *id);
        let Node { directory, gossip, .. } = &mut nodes[asking];
        let records = raw(&answer.news.records);
        let done = gossip.reconciled(directory, peer, &answer.buckets, records, []);
        informed += done.received.news;
        let Node { directory, gossip, .. } = &mut nodes[asked];
        informed += gossip.receive(directory, from, raw(&done.push.records), []).news;
    }
    informed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_reach_everybody_in_rounds_that_grow_with_the_logarithm() {
        let spread_in = |nodes| spread(Rumour { nodes, loss: 0.0, seed: 1 });
        let (small, large) = (spread_in(30), spread_in(240));
        assert!(small.all_rounds.is_some() && large.all_rounds >= large.half_rounds);
        let half = |spread: Spread| spread.half_rounds.expect("half of them know");
        assert!(half(large) <= half(small) + 4, "{small:?} {large:?}");
        assert!(large.pushed > 0.99, "{large:?}");
        // Everyone pushes 4 + log2 N times.
        let bound = 240 * (4 + 240u64.ilog2() as u64);
        assert!(large.messages <= bound, "{large:?}");
    }

    #[test]
    fn what_lost_pushes_miss_is_found_by_comparing() {
        let lossy = spread(Rumour { nodes: 100, loss: 0.6, seed: 1 });
        assert!(lossy.all_rounds > Some(lossy.push_rounds), "{lossy:?}");
        assert_eq!(lossy, spread(Rumour { nodes: 100, loss: 0.6, seed: 1 }), "one seed, one run");
    }
}
