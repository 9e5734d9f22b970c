//! What a peer sent, on its way into the directory: sifted, then verified.
//!
//! Owns which signatures are checked, and how many of one message at most. The one idea: a check costs
//! fifty times what all the rest does and needs no directory, so that a driver need not hold its
//! directory meanwhile. Refuses to take anything in: that is [`super::Gossip::take_in`].
//!
//! ```text
//! message ─▶ sift (the directory at hand) ─▶ verify (without it) ─▶ take in (the directory at hand)
//! ```

use std::collections::BTreeMap;

use super::Topic;
use crate::{
    directory::{Directory, Inserted, NodeRecord, SignedRecord},
    eviction::{Noted, Observation, SignedObservation},
    identity::{self, SIGNATURE_BYTES},
    ids::{NetworkId, NodeId},
};

/// Signatures of one message that do not hold, at most: what is behind them is not looked at. Nobody
/// passes on what they did not check, so one would do; a few more cost nothing.
const FORGED_MAX: usize = 4;

/// Observations of one message, at most, that can only be put aside until a record comes. Anyone can make
/// them up; genuine ones are offered again when digests are compared.
pub(super) const WAITING_MAX: usize = 32;

/// Bytes and signature.
type Raw = (Vec<u8>, [u8; SIGNATURE_BYTES]);

/// A message without what is known already.
#[derive(Debug)]
pub struct Sifted {
    network: NetworkId,
    newer: Vec<Topic>,
    records: Vec<Raw>,
    observations: Vec<Raw>,
    refused: usize,
    early: usize,
}

/// What is genuine of a message.
#[derive(Debug)]
pub struct Verified {
    /// What the directory knows better.
    pub(super) newer: Vec<Topic>,
    pub(super) records: Vec<SignedRecord>,
    pub(super) observations: Vec<SignedObservation>,
    pub(super) refused: usize,
    pub(super) early: usize,
}

impl Sifted {
    /// Sorts out of a message, (bytes, signature) of each record and observation, what must be verified.
    /// Observations that are early at this time, in seconds since 1970, are left out: they are offered again
    /// when they are due. Who does not know the time leaves out none.
    pub fn new<'a>(
        directory: &Directory,
        unix_seconds: Option<u64>,
        records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        observations: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Self {
        let network = directory.network();
        let mut sifted = Self {
            network,
            newer: Vec::new(),
            records: Vec::new(),
            observations: Vec::new(),
            refused: 0,
            early: 0,
        };
        // The numbers of the records in this message, true or not: an observation beside them may not have
        // to wait.
        let mut told = BTreeMap::new();
        for (bytes, signature) in records {
            sifted.record(directory, bytes, signature, &mut told);
        }
        let mut waiting = 0;
        for (bytes, signature) in observations {
            match Observation::decode(bytes) {
                Ok(observation) if unix_seconds.is_some_and(|now| observation.is_early(now)) => {
                    sifted.early += 1;
                }
                Ok(observation) => {
                    let raw = (bytes, signature);
                    sifted.observation(directory, observation, raw, &told, &mut waiting);
                }
                Err(_) => sifted.refused += 1,
            }
        }
        sifted
    }

    fn record(
        &mut self,
        directory: &Directory,
        bytes: &[u8],
        signature: &[u8],
        told: &mut BTreeMap<NodeId, u64>,
    ) {
        let Ok(signature) = identity::signature_from_slice(signature) else {
            self.refused += 1;
            return;
        };
        match directory.foresee_record(bytes) {
            Ok((_, Some(Inserted::Known))) => {}
            Ok((record, Some(_))) => self.newer.push(Topic::Record(record.node)),
            Ok((NodeRecord { node, seq, .. }, None)) => {
                told.insert(node, seq);
                self.records.push((bytes.to_vec(), signature));
            }
            Err(_) => self.refused += 1,
        }
    }

    fn observation(
        &mut self,
        directory: &Directory,
        observation: Observation,
        (bytes, signature): (&[u8], &[u8]),
        told: &BTreeMap<NodeId, u64>,
        waiting: &mut usize,
    ) {
        let Ok(signature) = identity::signature_from_slice(signature) else {
            self.refused += 1;
            return;
        };
        let Observation { observer, subject, subject_seq, .. } = observation;
        match directory.foresee_observation(&observation) {
            Some(Noted::Answered) => return self.newer.push(Topic::Record(subject)),
            Some(Noted::Older) => {
                return self.newer.push(Topic::Observation { subject, observer });
            }
            Some(_) => return,
            None => {}
        }
        let seq = |node: &NodeId| {
            told.get(node).copied().or_else(|| Some(directory.get(node)?.record().seq))
        };
        if seq(&subject) != Some(subject_seq) || seq(&observer).is_none() {
            if *waiting == WAITING_MAX {
                self.refused += 1;
                return;
            }
            *waiting += 1;
            if directory.is_waiting(&observation) {
                return;
            }
        }
        self.observations.push((bytes.to_vec(), signature));
    }

    /// Whether nothing is left to verify.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.observations.is_empty()
    }

    /// Checks the signatures: some 50 µs each.
    pub fn verify(self) -> Verified {
        let Self { network, newer, records, observations, mut refused, early } = self;
        let mut forged = 0;
        let records = genuine(records, &mut forged, &mut refused, |(bytes, signature)| {
            SignedRecord::verify(bytes, signature, network).ok()
        });
        let observations =
            genuine(observations, &mut forged, &mut refused, |(bytes, signature)| {
                SignedObservation::verify(bytes, signature, network).ok()
            });
        Verified { newer, records, observations, refused, early }
    }
}

fn genuine<T>(
    all: Vec<Raw>,
    forged: &mut usize,
    refused: &mut usize,
    verify: impl Fn(&Raw) -> Option<T>,
) -> Vec<T> {
    let mut genuine = Vec::new();
    for raw in &all {
        let found = if *forged < FORGED_MAX { verify(raw) } else { None };
        match found {
            Some(found) => genuine.push(found),
            None => {
                *forged += 1;
                *refused += 1;
            }
        }
    }
    genuine
}
