//! The directory: the signed records of all known nodes, and what they observe of silent ones.
//!
//! Owns which of two records of a node wins, who is on the ring, and the digests by which two
//! directories find their difference. Stores nothing that its node did not sign, and no time of
//! its own. The one idea: whatever the order in which the same things arrive, the directory is the
//! same, and the ring is a pure function of it: the active nodes without the evicted.
//!
//! What a record says is in `record.rs`. What nodes observe about each other is not in a record,
//! since nobody signs for another; it stands beside the records, see [`crate::eviction`].

use core::fmt;
use std::{collections::BTreeMap, ops::Bound};

pub use self::record::{NodeRecord, NodeState, RecordError, SignedRecord, VERSION_BYTES_MAX};

use self::evictions::Evictions;
use crate::{
    eviction::{
        Electorate, Eviction, EvictionError, Noted, Observation, ObservationError,
        SignedObservation,
    },
    identity,
    ids::{ID_BYTES, NetworkId, NodeId},
    ring::{Ring, RingMember},
};

mod evictions;
mod record;

/// Records in a directory, at most. Anyone can make keys, and each record costs about 1 KiB of
/// memory; beyond this, unknown nodes are turned away. More than six times the largest network
/// that was designed for.
pub const DIRECTORY_NODES_MAX: usize = 1 << 16;

/// Buckets of a directory: one per first byte of the node id.
pub const BUCKETS: usize = 256;

/// How a node stands, by what it says itself and what others observe.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Standing {
    /// Takes part.
    Active,
    /// Is handing its shards over.
    Leaving,
    /// Has left.
    Left,
    /// Did not say so, but enough others observe that it is gone: off the ring until it signs a
    /// newer record.
    Evicted,
}

/// What became of a record that was offered to a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inserted {
    /// The node was not known.
    New,
    /// It replaced an older record of the node.
    Newer,
    /// It was there already.
    Known,
    /// A newer record of the node is there.
    Older,
    /// The node is not known and the directory is full: [`DIRECTORY_NODES_MAX`].
    Full,
}

impl Inserted {
    /// Whether the directory changed.
    pub const fn is_news(self) -> bool {
        matches!(self, Self::New | Self::Newer)
    }
}

/// All known nodes of a network, by id.
#[derive(Clone, Debug)]
pub struct Directory {
    network: NetworkId,
    records: BTreeMap<NodeId, SignedRecord>,
    evictions: Evictions,
    digests: Box<[u64; BUCKETS]>,
    ring_revision: u64,
}

impl Directory {
    /// A directory that knows nobody.
    pub fn new(network: NetworkId) -> Self {
        Self {
            network,
            records: BTreeMap::new(),
            evictions: Evictions::default(),
            digests: Box::new([0; BUCKETS]),
            ring_revision: 0,
        }
    }

    /// The network whose nodes are here.
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// Takes a record in if it is newer than what is there.
    ///
    /// # Panics
    /// When the record is of another network; [`SignedRecord::verify`] lets none through.
    pub fn insert(&mut self, signed: SignedRecord) -> Inserted {
        let inserted = self.take(signed);
        self.settle();
        inserted
    }

    /// [`Self::insert`] for many in a row; to be followed by [`Self::settle`].
    pub(crate) fn take(&mut self, signed: SignedRecord) -> Inserted {
        let node = signed.node();
        assert_eq!(signed.record().network, self.network, "a record of another network");
        let outcome = match self.records.get(&node) {
            None if self.records.len() >= DIRECTORY_NODES_MAX => return Inserted::Full,
            None => Inserted::New,
            Some(held) => match signed.rank().cmp(&held.rank()) {
                core::cmp::Ordering::Less => return Inserted::Older,
                core::cmp::Ordering::Equal => return Inserted::Known,
                core::cmp::Ordering::Greater => Inserted::Newer,
            },
        };
        let before = self.records.insert(node, signed.clone());
        if before.as_ref().and_then(ring_member) != ring_member(&signed) {
            self.ring_revision += 1;
        }
        self.evictions.record_changed(before.as_ref(), &signed);
        self.update_digest(node);
        outcome
    }

    /// [`Self::insert`] and [`Self::insert_observation`] for many at once: who is evicted is found out once,
    /// and not for each of them.
    pub fn insert_all(
        &mut self,
        records: impl IntoIterator<Item = SignedRecord>,
        observations: impl IntoIterator<Item = SignedObservation>,
    ) {
        for signed in records {
            self.take(signed);
        }
        for signed in observations {
            self.take_observation(signed);
        }
        self.settle();
    }

    /// [`Self::admit`] and [`Self::admit_observation`] for many at once: (bytes, signature) of each. Whether
    /// there was any news. What is not genuine is told to `refused` and left out.
    pub fn admit_all<'a>(
        &mut self,
        records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        observations: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        mut refused: impl FnMut(&dyn fmt::Display),
    ) -> bool {
        let mut news = false;
        for (bytes, signature) in records {
            match self.take_unverified(bytes, signature) {
                Ok((_, inserted)) => news |= inserted.is_news(),
                Err(error) => refused(&error),
            }
        }
        for (bytes, signature) in observations {
            match self.take_unverified_observation(bytes, signature) {
                Ok((_, noted)) => news |= noted.is_news(),
                Err(error) => refused(&error),
            }
        }
        self.settle();
        news
    }

    /// Finds out who is evicted, after changes.
    pub(crate) fn settle(&mut self) {
        for changed in self.evictions.absorb(&self.records) {
            self.update_digest(changed);
        }
        if self.evictions.settle(&self.records) {
            self.ring_revision += 1;
        }
    }

    /// Reads, verifies and takes in what a stranger sent. A record that is here already, in this
    /// or a newer version, costs no signature check.
    ///
    /// # Errors
    /// When it is no genuine record of this network.
    pub fn admit(
        &mut self,
        bytes: &[u8],
        signature: &[u8],
    ) -> Result<(NodeId, Inserted), RecordError> {
        let admitted = self.take_unverified(bytes, signature);
        self.settle();
        admitted
    }

    /// [`Self::admit`] for many in a row; to be followed by [`Self::settle`].
    fn take_unverified(
        &mut self,
        bytes: &[u8],
        signature: &[u8],
    ) -> Result<(NodeId, Inserted), RecordError> {
        let signature = identity::signature_from_slice(signature)?;
        if let (record, Some(known)) = self.foresee_record(bytes)? {
            return Ok((record.node, known));
        }
        let signed = SignedRecord::verify(bytes, &signature, self.network)?;
        Ok((signed.node(), self.take(signed)))
    }

    /// Reads a record, and says what would become of it where no signature need be checked to know it.
    pub(crate) fn foresee_record(
        &self,
        bytes: &[u8],
    ) -> Result<(NodeRecord, Option<Inserted>), RecordError> {
        let record = NodeRecord::decode(bytes)?;
        let known = self.records.get(&record.node).and_then(|held| {
            // Held records are of this network; another network's cannot be equal to one.
            if held.record_bytes() == bytes {
                return Some(Inserted::Known);
            }
            let older = record.network == self.network && held.record().seq > record.seq;
            older.then_some(Inserted::Older)
        });
        Ok((record, known))
    }

    /// Takes an observation in. It counts for as long as its subject signs no newer record.
    ///
    /// # Panics
    /// When it is of another network; [`SignedObservation::verify`] lets none through.
    pub fn insert_observation(&mut self, signed: SignedObservation) -> Noted {
        let noted = self.take_observation(signed);
        self.settle();
        noted
    }

    /// [`Self::insert_observation`] for many in a row; to be followed by [`Self::settle`].
    pub(crate) fn take_observation(&mut self, signed: SignedObservation) -> Noted {
        let Observation { network, subject, .. } = *signed.observation();
        assert_eq!(network, self.network, "an observation of another network");
        let noted = self.evictions.note(signed, &self.records);
        // Taking it in may also have put others out.
        if noted.is_news() || noted == Noted::Crowded {
            self.update_digest(subject);
        }
        noted
    }

    /// Reads, verifies and takes in an observation that a stranger sent. One that is here already
    /// or is void costs no signature check.
    ///
    /// # Errors
    /// When it is no genuine observation of this network.
    pub fn admit_observation(
        &mut self,
        bytes: &[u8],
        signature: &[u8],
    ) -> Result<(Observation, Noted), ObservationError> {
        let admitted = self.take_unverified_observation(bytes, signature);
        self.settle();
        admitted
    }

    /// [`Self::admit_observation`] for many in a row; to be followed by [`Self::settle`].
    fn take_unverified_observation(
        &mut self,
        bytes: &[u8],
        signature: &[u8],
    ) -> Result<(Observation, Noted), ObservationError> {
        let observation = Observation::decode(bytes)?;
        let known = self.foresee_observation(&observation);
        let waits = || self.is_waiting(&observation).then_some(Noted::Waiting);
        if let Some(noted) = known.or_else(waits) {
            return Ok((observation, noted));
        }
        let signed = SignedObservation::verify(bytes, signature, self.network)?;
        Ok((observation, self.take_observation(signed)))
    }

    /// What would become of an observation where no signature need be checked to know it, but for those
    /// that wait.
    pub(crate) fn foresee_observation(&self, observation: &Observation) -> Option<Noted> {
        let ours = observation.network == self.network;
        ours.then(|| self.evictions.foresee(observation, &self.records)).flatten()
    }

    /// Whether this very observation waits for a record.
    pub(crate) fn is_waiting(&self, observation: &Observation) -> bool {
        self.evictions.is_waiting(observation)
    }

    /// All that is said about the silence of a node since its current record, whether or not it is
    /// enough to evict it.
    pub fn accusation(&self, node: &NodeId) -> Option<&Eviction> {
        self.evictions.get(node)
    }

    /// The same of all nodes, by id.
    pub fn accusations(&self) -> impl DoubleEndedIterator<Item = &Eviction> {
        self.evictions.iter()
    }

    /// All observations, by subject and observer: to be stored beside the records.
    pub fn observations(&self) -> impl Iterator<Item = &SignedObservation> {
        self.accusations().flat_map(Eviction::observations)
    }

    /// The observations behind this (subject, observer), in the order of these; of none: all.
    pub fn observations_after(
        &self,
        after: Option<(NodeId, NodeId)>,
    ) -> impl Iterator<Item = &SignedObservation> {
        self.evictions.after(after)
    }

    /// Forgets observations, as if they had never come; how many nodes they were of. Others may still have
    /// them and offer them again. For those that are dated in a future which this node believed in while its
    /// clock was wrong: nobody else ever takes them in.
    pub fn forget_observations(&mut self, which: impl Fn(&Observation) -> bool) -> usize {
        let changed = self.evictions.forget(which, &self.records);
        for subject in &changed {
            self.update_digest(*subject);
        }
        self.settle();
        changed.len()
    }

    /// Whether enough is said about the silence of a node that who does not watch it should believe it for
    /// the time being: less than for an eviction.
    pub fn is_doubted(&self, node: &NodeId) -> bool {
        self.evictions.is_doubted(node, &self.records)
    }

    /// The eviction of a node, if it holds.
    pub fn evicted(&self, node: &NodeId) -> Option<&Eviction> {
        self.accusation(node).filter(|_| self.evictions.is_evicted(node))
    }

    /// Why a node is evicted, or why not: a pure function of what is in this directory.
    ///
    /// # Errors
    /// When it is not evicted; says what is missing.
    pub fn verdict(&self, node: &NodeId) -> Result<&Eviction, EvictionError> {
        if !self.records.contains_key(node) {
            return Err(EvictionError::Unknown(*node));
        }
        let eviction = self.accusation(node).ok_or(EvictionError::Unobserved(*node))?;
        self.evictions.verdict(eviction, &self.records).map(|()| eviction)
    }

    /// How a node stands; `None` when it is not known.
    pub fn standing(&self, node: &NodeId) -> Option<Standing> {
        Some(match self.get(node)?.record().state {
            NodeState::Left => Standing::Left,
            _ if self.evictions.is_evicted(node) => Standing::Evicted,
            NodeState::Active => Standing::Active,
            NodeState::Leaving => Standing::Leaving,
        })
    }

    /// The records of the nodes on the ring, by id: active, with capacity, not evicted.
    pub fn members(&self) -> impl DoubleEndedIterator<Item = &NodeRecord> {
        self.iter()
            .map(SignedRecord::record)
            .filter(|record| Electorate::counts(record) && !self.evictions.is_evicted(&record.node))
    }

    /// The record of a node.
    pub fn get(&self, node: &NodeId) -> Option<&SignedRecord> {
        self.records.get(node)
    }

    /// All records, by node id.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &SignedRecord> {
        self.records.values()
    }

    /// The records of the nodes behind this one, by node id; of none: of all.
    pub fn after(&self, node: Option<&NodeId>) -> impl DoubleEndedIterator<Item = &SignedRecord> {
        let from = node.map_or(Bound::Unbounded, |node| Bound::Excluded(*node));
        self.records.range((from, Bound::Unbounded)).map(|(_, record)| record)
    }

    /// How many nodes are known, of any state.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The records whose node id starts with this byte.
    pub fn bucket(&self, bucket: u8) -> impl DoubleEndedIterator<Item = &SignedRecord> {
        let mut first = [0; ID_BYTES];
        let mut last = [0xff; ID_BYTES];
        (first[0], last[0]) = (bucket, bucket);
        self.records.range(NodeId::new(first)..=NodeId::new(last)).map(|(_, signed)| signed)
    }

    /// The observations of nodes whose id starts with this byte.
    pub fn bucket_observations(&self, bucket: u8) -> impl Iterator<Item = &SignedObservation> {
        self.bucket(bucket)
            .filter_map(|signed| self.evictions.get(&signed.node()))
            .flat_map(Eviction::observations)
    }

    /// A digest of each bucket: 0 when it is empty. Equal digests mean equal records and equal
    /// observations of their nodes.
    pub const fn digests(&self) -> &[u64; BUCKETS] {
        &self.digests
    }

    fn update_digest(&mut self, node: NodeId) {
        let bucket = node.as_bytes()[0];
        self.digests[usize::from(bucket)] = self.digest(bucket);
    }

    fn digest(&self, bucket: u8) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key("copse directory bucket v1");
        for signed in self.bucket(bucket) {
            hasher.update(signed.hash().as_bytes());
            if let Some(observed) = self.evictions.digest(&signed.node()) {
                hasher.update(b"observed").update(observed.as_bytes());
            }
        }
        let mut digest = [0; 8];
        hasher.finalize_xof().fill(&mut digest);
        u64::from_le_bytes(digest)
    }

    /// The ring of the active nodes that are not evicted.
    pub fn ring(&self) -> Ring {
        let active = self.iter().filter(|signed| !self.evictions.is_evicted(&signed.node()));
        Ring::build(active.filter_map(ring_member).collect())
    }

    /// Grows whenever the ring may have changed, so that it is built again only then.
    pub const fn ring_revision(&self) -> u64 {
        self.ring_revision
    }
}

/// What the ring knows of a node that is not evicted; `None` when it is not on it.
fn ring_member(signed: &SignedRecord) -> Option<RingMember> {
    let record = signed.record();
    (record.state == NodeState::Active).then(|| RingMember {
        id: record.node,
        capacity_bytes: record.capacity_bytes,
        zone: record.zone.clone(),
    })
}

#[cfg(test)]
mod tests;
