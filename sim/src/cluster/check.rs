//! The promises, as questions to a world.
//!
//! Owns what counts as broken. While faults last only two things can be: a read that gives wrong
//! bytes, and an operation that never ends. When all is calm again, everything must have grown back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use copse_client::network::Network;
use copse_core::{
    ids::{ChunkId, NodeId, ShardId, ShardIndex},
    manifest::ChunkRef,
    repair::Standing,
    ring::Ring,
};
use copse_proto::door::InfoReply;

use super::{
    host::{Host, Stay},
    room,
};

/// Which promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// What was acknowledged can be read; of trees, all is listed.
    Durability,
    /// Nobody is given other bytes, names, sizes or times than were put.
    Integrity,
    /// All nodes know each other and hold each other for alive.
    Directory,
    /// Every chunk has all its shards, each once, where the ring has them.
    Strength,
    /// Nothing is deleted on doubt: nobody drops the last copy of a shard.
    Deletion,
    /// Disks hold no more than they must.
    Space,
    /// Queues, tasks and streams are bounded.
    Bounds,
    /// Nothing is left to do, and the stewards know it.
    Repair,
    /// An outage moves no more than what was left too thin by it.
    Storm,
    /// In a calm world puts and reads succeed; and whenever enough shards are within reach all the
    /// time, reads do.
    Service,
    /// A node starts on what another left.
    Start,
    /// Nothing panics, whatever comes.
    NoPanic,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A promise that was broken, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub promise: Promise,
    /// How.
    pub how: String,
}

impl Broken {
    pub(super) fn new(promise: Promise, how: impl Into<String>) -> Self {
        Self { promise, how: how.into() }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.how)
    }
}

/// Whether all nodes say that all is well; if not, what one says. So many chunks may be displaced for
/// want of room; none is a number when there were liars, and each node trusts whom it will.
pub(super) async fn nodes_are_content(
    network: &Network,
    hosts: &[&Host],
    promised: &[ChunkRef],
    crowded_out: Option<u64>,
) -> Result<(), Broken> {
    for host in hosts.iter().filter(|host| !host.is_gone()) {
        let info = network.info(host.id).await.map_err(|error| {
            Broken::new(Promise::Service, format!("node {} gives no answer: {error}", host.machine))
        })?;
        let mut hopeless = 0;
        for job in info.repair.iter().flat_map(|repair| &repair.failing) {
            let Ok(chunk) = <[u8; 32]>::try_from(job.chunk_id.as_slice()).map(ChunkId::new) else {
                continue;
            };
            let is_promised = promised.iter().any(|one| one.id == chunk);
            hopeless += u64::from(!is_promised && is_lost(hosts, chunk).await);
        }
        is_content(&info, hopeless, crowded_out, host, hosts)?;
    }
    Ok(())
}

/// Whether too few shards of a chunk are on any disk: what a client that died left of a put may lose
/// some, and nobody can do what was planned when there were enough; and what a liar made up never was.
async fn is_lost(hosts: &[&Host], chunk: ChunkId) -> bool {
    let (mut left, mut needed) = (BTreeSet::new(), 0);
    for host in hosts {
        let held = host.disk().list_arc(Ring::arc(&chunk), None, usize::MAX).await;
        for shard in held.unwrap_or_default().into_iter().filter(|shard| shard.id.chunk == chunk) {
            needed = shard.geometry.data();
            if !host.disk().is_damaged(shard.id) {
                left.insert(shard.id.index);
            }
        }
    }
    left.is_empty() || left.len() < needed
}

fn is_content(
    info: &InfoReply,
    hopeless: u64,
    crowded_out: Option<u64>,
    host: &Host,
    hosts: &[&Host],
) -> Result<(), Broken> {
    let number = host.machine;
    let (alive, left) = (Standing::Alive.to_string(), Standing::Left.to_string());
    let broken = |promise, how: String| Err(Broken::new(promise, format!("node {number} {how}")));
    if info.peers.len() + 1 != hosts.len() {
        return broken(Promise::Directory, format!("knows {} others", info.peers.len()));
    }
    for peer in &info.peers {
        let other = hosts.iter().find(|host| peer.node_id == host.id.as_bytes());
        let name = other.map_or("a stranger".to_owned(), |host| host.machine.to_string());
        let expected = if other.is_some_and(|host| host.is_gone()) { &left } else { &alive };
        if peer.standing != *expected {
            return broken(Promise::Directory, format!("holds {name} for {}", peer.standing));
        }
        if !peer.untrusted.is_empty() && crowded_out.is_some() {
            return broken(
                Promise::Directory,
                format!("does not trust {name}: {}", peer.untrusted),
            );
        }
    }
    let Some(repair) = &info.repair else {
        return broken(Promise::Repair, "says nothing of repair".to_owned());
    };
    let queued: u64 = repair.queue.iter().map(|queued| queued.count).sum::<u64>() + repair.running;
    if !repair.guard.is_empty() {
        broken(Promise::Repair, format!("is on its guard: {}", repair.guard))
    } else if !repair.planned {
        broken(Promise::Repair, "has not planned for what it sees".to_owned())
    } else if queued > hopeless
        || crowded_out.is_some_and(|crowded_out| repair.chunks_displaced > crowded_out)
    {
        let failing = repair.failing.first().map(|job| job.last_error.clone()).unwrap_or_default();
        let displaced = repair.chunks_displaced;
        broken(Promise::Repair, format!("has {queued} jobs, {displaced} displaced; {failing}"))
    } else {
        Ok(())
    }
}

/// Whether all nodes that run know the same records of the same nodes, byte for byte.
pub(super) fn directories_agree(hosts: &[&Host]) -> Result<(), Broken> {
    let mut first: Option<(u16, BTreeSet<Vec<u8>>)> = None;
    for host in hosts.iter().filter(|host| host.is_running()) {
        let records = host.records().into_iter().map(|signed| signed.record).collect();
        match &first {
            None => first = Some((host.machine, records)),
            Some((machine, known)) if *known != records => {
                let differ = known.symmetric_difference(&records).count();
                let how = format!(
                    "nodes {machine} and {} know {differ} different records of others",
                    host.machine
                );
                return Err(Broken::new(Promise::Directory, how));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Whether every promised chunk has all its shards, each once, where it belongs; or elsewhere, when
/// nothing but the want of room keeps it from there, as the planner has it (`StaysDisplaced`): gives these
/// chunks.
pub(super) async fn is_at_full_strength(
    ring: &Ring,
    hosts: &[&Host],
    promised: &[ChunkRef],
) -> Result<BTreeSet<ChunkId>, Broken> {
    let mut elsewhere = BTreeSet::new();
    let mut holders: BTreeMap<_, Vec<NodeId>> = BTreeMap::new();
    for host in hosts {
        let held = host.disk().list(None, usize::MAX).await.map_err(|error| {
            Broken::new(Promise::Strength, format!("the disk of {}: {error}", host.machine))
        })?;
        // What is rotten is not there, whatever the store believes.
        for shard in held.into_iter().filter(|shard| !host.disk().is_damaged(*shard)) {
            holders.entry(shard).or_default().push(host.id);
        }
    }
    let full = room::full(hosts).await;
    for one in promised {
        let (chunk, geometry) = (one.id, one.geometry);
        let mut away = None;
        let mut places = ring.placement(Ring::arc(&chunk), geometry);
        let broken = |index: ShardIndex, how: &str| {
            let text = format!("shard {} of chunk {} {how}", index.0, chunk.short());
            Err(Broken::new(Promise::Strength, text))
        };
        for index in geometry.indices() {
            let shard = ShardId { chunk, index };
            let held = holders.get(&shard).map(Vec::as_slice).unwrap_or_default();
            match held {
                [] => return broken(index, "is nowhere"),
                [node] => match places.iter().position(|place| place == node) {
                    // Each place takes one shard.
                    Some(place) => drop(places.swap_remove(place)),
                    None => away = Some(index),
                },
                _ => {
                    let name = |id: &NodeId| hosts.iter().find(|host| host.id == *id);
                    let at: Vec<_> =
                        held.iter().filter_map(name).map(|host| host.machine).collect();
                    return broken(index, &format!("is held more than once, by {at:?}"));
                }
            }
        }
        // As many places are empty as shards are away: whose could it be but a full one's?
        if let Some(index) = away.filter(|_| !places.iter().all(|place| full.contains(place))) {
            return broken(index, "is where it does not belong");
        }
        elsewhere.extend(away.map(|_| chunk));
    }
    Ok(elsewhere)
}

/// Whether all shards of every promised chunk are on some disk, whoever's: where there are liars, nobody
/// can say where they belong.
pub(super) fn nothing_is_missing(hosts: &[&Host], promised: &[ChunkRef]) -> Result<(), Broken> {
    let there: BTreeSet<ShardId> = hosts.iter().flat_map(|host| host.disk().sound()).collect();
    for one in promised {
        let (chunk, geometry) = (one.id, one.geometry);
        let missing = |index: &_| !there.contains(&ShardId { chunk, index: *index });
        let missing = geometry.indices().filter(missing).count();
        if missing > 0 {
            let how = format!("of chunk {} {missing} shards are nowhere", chunk.short());
            return Err(Broken::new(Promise::Strength, how));
        }
    }
    Ok(())
}

/// Whether all who were told to leave have left, and hold nothing any more.
pub(super) fn all_have_left(hosts: &[&Host]) -> Result<(), Broken> {
    match hosts.iter().find(|host| host.stays() == Stay::Leaving) {
        Some(host) => {
            let left = host.disk().sound().len();
            let how = format!("node {} has not left: {left} shards are still there", host.machine);
            Err(Broken::new(Promise::Repair, how))
        }
        None => Ok(()),
    }
}

/// Whether no shard is on two disks, be it of a chunk that was acknowledged or not.
pub(super) fn nothing_is_held_twice(hosts: &[&Host]) -> Result<(), Broken> {
    let mut seen = BTreeMap::new();
    for host in hosts {
        for shard in host.disk().sound() {
            if let Some(other) = seen.insert(shard, host.machine) {
                let (index, chunk) = (shard.index.0, shard.chunk.short());
                let how = format!(
                    "shard {index} of chunk {chunk} is held twice, by {other} and {}",
                    host.machine
                );
                return Err(Broken::new(Promise::Space, how));
            }
        }
    }
    Ok(())
}

/// The shards of a chunk that are on some disk, undamaged: how many indices.
pub(super) async fn shards_left(hosts: &[Host], one: &ChunkRef) -> usize {
    let chunk = one.id;
    let mut left = BTreeSet::new();
    for host in hosts {
        let held = host.disk().held(chunk).await.unwrap_or_default();
        left.extend(
            held.into_iter().filter(|&index| !host.disk().is_damaged(ShardId { chunk, index })),
        );
    }
    left.len()
}
