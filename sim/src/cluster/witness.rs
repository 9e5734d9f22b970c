//! A node that lies about others: from its own key and address, past its own code.
//!
//! Owns the false words and their sending. The one idea: whoever has a node's key can say anything
//! that can be signed with it, and replay what others signed, so the liar speaks the wire and not the
//! product's interfaces.

use std::sync::Arc;

use bytes::Bytes;
use copse_core::{
    directory::SignedRecord,
    eviction::{Observation, SignedObservation},
    ids::{NetworkId, NodeId},
};
use copse_node::{
    identity::Seed,
    node::StartError,
    peer::{
        Op,
        endpoint::{self, Congestion, PeerSocket},
        pool::PeerPool,
    },
    tls::NodeTls,
};
use copse_proto::{convert, door, peer};

use super::{
    atlas::Lie,
    net::{Machine, Net, address},
    udp::{PausedRuntime, Socket},
};
use crate::random::Xoshiro;

/// Where it speaks from.
const PORT: u16 = 4603;

/// How long it says that others were silent: longer than anybody's patience.
const SILENT_SECONDS: u64 = 7 * 24 * 3600;

/// A liar about others.
pub(super) struct Witness {
    how: Lie,
    seed: Seed,
    network: NetworkId,
    pool: PeerPool,
    /// What it remembers of everybody, from when it began.
    stale: Vec<door::SignedRecord>,
    rng: Xoshiro,
}

impl Witness {
    /// Who knows these records and has this secret.
    pub(super) fn new(
        how: Lie,
        seed: [u8; 32],
        network: NetworkId,
        net: &Net,
        machine: Machine,
        stale: Vec<door::SignedRecord>,
        mut rng: Xoshiro,
    ) -> Result<Self, StartError> {
        let tls = NodeTls::from_seed(&seed)?;
        let socket = PeerSocket::Injected {
            socket: Socket::bind(net, address(machine, PORT)),
            runtime: Arc::new(PausedRuntime),
        };
        let mut random = [0; 32];
        for part in random.chunks_mut(8) {
            part.copy_from_slice(&rng.next_u64().to_le_bytes());
        }
        let endpoint = endpoint::open(&tls, socket, Congestion::default(), random)?;
        let known: Vec<SignedRecord> = checked(&stale, network).collect();
        let book = move |node: &NodeId| {
            let found = known.iter().find(|record| record.node() == *node);
            found.map(|record| record.record().addresses.clone()).unwrap_or_default()
        };
        let seed = Seed::new(seed);
        let pool = PeerPool::new(endpoint, seed.key().id(), Arc::new(book), rng.next_u64());
        Ok(Self { how, seed, network, pool, stale, rng })
    }

    /// Tells everybody something false, now; how many messages that are.
    pub(super) fn mislead(&mut self, now: &[door::SignedRecord], unix_seconds: u64) -> u64 {
        let own = self.seed.key().id();
        let others: Vec<SignedRecord> =
            checked(now, self.network).filter(|record| record.node() != own).collect();
        if others.is_empty() {
            return 0;
        }
        let (mut records, mut observations) = (Vec::new(), Vec::new());
        if self.how == Lie::StaleRecords {
            records.clone_from(&self.stale);
        } else {
            let accused = &others[self.rng.below(others.len())];
            let observation = Observation {
                network: self.network,
                observer: own,
                subject: accused.node(),
                subject_seq: accused.record().seq,
                silent_seconds: SILENT_SECONDS,
                observed_at: unix_seconds,
            };
            let signed = SignedObservation::sign(observation, &self.seed.key());
            observations.extend(signed.iter().map(convert::signed_observation));
            // And in the name of another, who did not sign it.
            let other = others[self.rng.below(others.len())].node();
            if let (Some(mut forged), true) =
                (observations.first().cloned(), other != accused.node())
            {
                let forgery = Observation { observer: other, ..observation };
                forged.observation = forgery.encode();
                observations.push(forged);
            }
            let mut record = convert::signed_record(accused);
            if let Some(byte) = record.record.last_mut() {
                *byte ^= 1;
            }
            records.push(record);
        }
        let messages = others.len() as u64;
        for other in others {
            let message = peer::Gossip {
                network_id: self.network.as_bytes().to_vec(),
                records: records.clone(),
                observations: observations.clone(),
            };
            let pool = self.pool.clone();
            tokio::spawn(async move {
                // What they think of it does not matter to a liar.
                drop(pool.request(other.node(), Op::Gossip(message), Bytes::new()).await);
            });
        }
        messages
    }
}

fn checked(
    records: &[door::SignedRecord],
    network: NetworkId,
) -> impl Iterator<Item = SignedRecord> {
    records.iter().filter_map(move |signed| {
        let signature = signed.signature.as_slice().try_into().ok()?;
        SignedRecord::verify(&signed.record, signature, network).ok()
    })
}
