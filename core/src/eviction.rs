//! Who is off the ring without having said so: what nodes observe of a silent one, and how many of
//! them it takes.
//!
//! Owns the signed observation and the set of observations of one node; the rule that says how many
//! suffice is in `quorum.rs`. Refuses to decide who watches whom or when to sign (see [`crate::liveness`]). The one idea: there is no
//! certificate that somebody must make. An eviction is nothing but the set of observations of a
//! node's current record; it only grows, it merges in any order, and whether it *holds* is a pure
//! function of the directory.
//!
//! ```text
//! observation = "CPSO" | version 1 u8 | network id 32 | observer id 32 | subject id 32
//!             | subject's seq u64 LE | silent seconds u64 LE | observed at u64 LE (since 1970)
//! signature   = Ed25519("copse observation v1\0" ‖ observation)
//! ```
//!
//! There is no message that takes an observation back. The node itself answers: it signs a newer
//! record, which voids all observations of the older one, and which anybody may pass on who hears
//! from it. Nobody can do that for a dead node.

use std::collections::BTreeMap;

pub(crate) use self::quorum::{Electorate, Strength, Zone};
pub use self::quorum::{EvictionError, Quorum, TOGETHER_SECONDS};
use crate::{
    identity::{self, NodeKey, SIGNATURE_BYTES, SignatureError},
    ids::{NetworkId, NodeId},
    liveness,
    wire::{Reader, WireError, Writer},
};

mod quorum;

const MAGIC: &[u8; 4] = b"CPSO";
const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"copse observation v1\0";

/// Bytes of an encoded observation.
pub const OBSERVATION_BYTES: usize = 125;

/// Observations kept of one node, at most: as many as it has watchers. About 6 KiB of memory for
/// each node that is accused by as many as may be.
pub const OBSERVERS_MAX: usize = liveness::WATCHERS;

/// Of these, of observers of one zone, at most: an eviction needs three zones at most, so that whoever
/// has one zone alone cannot take the places of all others.
pub const OF_ZONE_MAX: usize = OBSERVERS_MAX / 4;

/// How far ahead of a node's clock an observation of another may be dated: an hour, more than clocks differ
/// that anybody looks after, and far less than the time within which observations count together.
pub const AHEAD_SECONDS_MAX: u64 = 60 * 60;

/// What one node says about the silence of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// The network.
    pub network: NetworkId,
    /// Who says so.
    pub observer: NodeId,
    /// Who is silent.
    pub subject: NodeId,
    /// The `seq` of the subject's record that the observer knows. A newer record voids it.
    pub subject_seq: u64,
    /// For how long the observer has heard nothing, in seconds. For people: nothing is decided by
    /// it.
    pub silent_seconds: u64,
    /// When it says so, in seconds since 1970 by its clock.
    pub observed_at: u64,
}

/// An observation that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObservationError {
    /// The bytes are not an observation's.
    #[error("the observation cannot be read: {0}")]
    Format(#[from] WireError),
    /// Not signed by the observer.
    #[error("the observation is not genuine: {0}")]
    Signature(#[from] SignatureError),
    /// Made in another network.
    #[error("the observation is of network {got}, not of {expected}: do not pass it on")]
    OtherNetwork {
        /// Our network.
        expected: NetworkId,
        /// Its network.
        got: NetworkId,
    },
    /// It names another observer than the key that should sign it.
    #[error("an observation by node {observer} cannot be signed with the key of node {key}")]
    OtherKey {
        /// Whom the observation names.
        observer: NodeId,
        /// Whose key it is.
        key: NodeId,
    },
}

impl Observation {
    /// The bytes that are signed.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer
            .bytes(MAGIC)
            .u8(VERSION)
            .bytes(self.network.as_bytes())
            .bytes(self.observer.as_bytes())
            .bytes(self.subject.as_bytes())
            .u64(self.subject_seq)
            .u64(self.silent_seconds)
            .u64(self.observed_at);
        writer.finish()
    }

    /// Reads the bytes of an observation. Proves nothing: see [`SignedObservation::verify`].
    ///
    /// # Errors
    /// When the bytes are not an observation's, or a node observes itself.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.magic("an observation", MAGIC, VERSION)?;
        let observation = Self {
            network: NetworkId::new(reader.array()?),
            observer: NodeId::new(reader.array()?),
            subject: NodeId::new(reader.array()?),
            subject_seq: reader.u64()?,
            silent_seconds: reader.u64()?,
            observed_at: reader.u64()?,
        };
        reader.end()?;
        if observation.observer == observation.subject {
            return Err(WireError::Invalid("the observer, who is the subject itself,"));
        }
        Ok(observation)
    }

    /// Whether it is dated so far ahead of this time that one of the two clocks must be wrong. An observer
    /// could silence itself so, since its newest word counts, or keep the words of others out.
    pub const fn is_early(&self, unix_seconds: u64) -> bool {
        self.observed_at > unix_seconds.saturating_add(AHEAD_SECONDS_MAX)
    }

    /// Which of two of one observer counts: the newer one. Two of one second differ by a mistake,
    /// but all must choose the same.
    pub(crate) const fn rank(&self) -> (u64, u64) {
        (self.observed_at, self.silent_seconds)
    }
}

/// An observation and its observer's signature, which was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedObservation {
    observation: Observation,
    signature: [u8; SIGNATURE_BYTES],
}

impl SignedObservation {
    /// Signs an observation.
    ///
    /// # Errors
    /// When it names another observer than the key's, or the observer as its own subject.
    pub fn sign(observation: Observation, key: &NodeKey) -> Result<Self, ObservationError> {
        if observation.observer != key.id() {
            return Err(ObservationError::OtherKey {
                observer: observation.observer,
                key: key.id(),
            });
        }
        let bytes = observation.encode();
        // What others will refuse is not signed.
        let observation = Observation::decode(&bytes)?;
        Ok(Self { observation, signature: key.sign(&[DOMAIN, &bytes].concat()) })
    }

    /// Reads an observation and checks that its observer signed it, for this network.
    ///
    /// # Errors
    /// When any of that does not hold.
    pub fn verify(
        bytes: &[u8],
        signature: &[u8],
        network: NetworkId,
    ) -> Result<Self, ObservationError> {
        let signature = identity::signature_from_slice(signature)?;
        let observation = Observation::decode(bytes)?;
        if observation.network != network {
            return Err(ObservationError::OtherNetwork {
                expected: network,
                got: observation.network,
            });
        }
        identity::verify(observation.observer, &[DOMAIN, bytes].concat(), &signature)?;
        Ok(Self { observation, signature })
    }

    /// What the observer says.
    pub const fn observation(&self) -> &Observation {
        &self.observation
    }

    /// The signed bytes.
    pub fn observation_bytes(&self) -> Vec<u8> {
        self.observation.encode()
    }

    /// The signature over them.
    pub const fn signature(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.signature
    }
}

/// What became of an observation that was offered to a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Noted {
    /// The observer had not said anything about this record.
    New,
    /// It replaced an older one of the observer.
    Newer,
    /// It was there already.
    Known,
    /// A newer one of the observer is there.
    Older,
    /// The subject has signed a newer record since: it answered.
    Answered,
    /// Kept aside until the record comes that it speaks of, or its observer's.
    Waiting,
    /// Others have spoken later: [`OBSERVERS_MAX`], or [`OF_ZONE_MAX`] of the observer's zone.
    Crowded,
}

impl Noted {
    /// Whether the directory changed.
    pub const fn is_news(self) -> bool {
        matches!(self, Self::New | Self::Newer)
    }
}

/// All that is said about the silence of one node since its last record: an eviction, if it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    subject: NodeId,
    subject_seq: u64,
    /// By observer. Never empty, at most [`OBSERVERS_MAX`].
    observations: BTreeMap<NodeId, SignedObservation>,
}

impl Eviction {
    /// The set with this one observation.
    pub(crate) fn new(first: SignedObservation) -> Self {
        let Observation { observer, subject, subject_seq, .. } = first.observation;
        Self { subject, subject_seq, observations: BTreeMap::from([(observer, first)]) }
    }

    /// Who is silent.
    pub const fn subject(&self) -> NodeId {
        self.subject
    }

    /// The `seq` of its record that the observations speak of.
    pub const fn subject_seq(&self) -> u64 {
        self.subject_seq
    }

    /// The observations, by observer.
    pub fn observations(&self) -> impl DoubleEndedIterator<Item = &SignedObservation> {
        self.observations.values()
    }

    /// What this observer said.
    pub fn by(&self, observer: &NodeId) -> Option<&SignedObservation> {
        self.observations.get(observer)
    }

    /// How many observers there are: 1 to [`OBSERVERS_MAX`].
    pub fn observers(&self) -> usize {
        self.observations.len()
    }

    /// Takes one in; [`Self::trim`] must follow.
    ///
    /// # Panics
    /// When it is of another subject or record.
    pub(crate) fn note(&mut self, signed: SignedObservation) -> Noted {
        let Observation { observer, subject, subject_seq, .. } = signed.observation;
        assert_eq!((subject, subject_seq), (self.subject, self.subject_seq), "another eviction's");
        if let Some(held) = self.observations.get_mut(&observer) {
            return match signed.observation.rank().cmp(&held.observation.rank()) {
                core::cmp::Ordering::Less => Noted::Older,
                core::cmp::Ordering::Equal => Noted::Known,
                core::cmp::Ordering::Greater => {
                    *held = signed;
                    Noted::Newer
                }
            };
        }
        self.observations.insert(observer, signed);
        Noted::New
    }

    /// Keeps what is most likely to add up, and says whose words went: the latest, of each zone
    /// [`OF_ZONE_MAX`] at most, [`OBSERVERS_MAX`] in all. Whoever fills all places with words that are
    /// later than honest ones has spoken within a day, of four zones at least: that is an eviction, and not
    /// a way to prevent one.
    ///
    /// What remains does not depend on the order in which words came, nor on how often it was trimmed in
    /// between, as long as zones stay the same.
    pub(crate) fn trim<'a>(
        &mut self,
        zone_of: impl Fn(&NodeId) -> Option<Zone<'a>>,
    ) -> Vec<NodeId> {
        if self.observations.len() <= OF_ZONE_MAX {
            return Vec::new();
        }
        let mut latest: Vec<_> = self
            .observations
            .values()
            .map(|signed| {
                let observer = signed.observation.observer;
                // The last is for those of one second: any order that cannot be chosen, the same for all.
                (signed.observation.rank(), liveness::rank(&self.subject, &observer))
            })
            .collect();
        latest.sort_unstable_by(|a, b| b.cmp(a));
        let mut of_zone: BTreeMap<Option<Zone<'a>>, usize> = BTreeMap::new();
        let mut kept = 0;
        let mut gone = Vec::new();
        for (_, (_, observer)) in latest {
            let zone = of_zone.entry(zone_of(&observer)).or_default();
            if kept < OBSERVERS_MAX && *zone < OF_ZONE_MAX {
                *zone += 1;
                kept += 1;
            } else {
                self.observations.remove(&observer);
                gone.push(observer);
            }
        }
        gone
    }

    /// Forgets some. Whether there were any.
    pub(crate) fn forget(&mut self, which: impl Fn(&Observation) -> bool) -> bool {
        let before = self.observations.len();
        self.observations.retain(|_, signed| !which(&signed.observation));
        self.observations.len() < before
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.observations.is_empty()
    }

    /// A digest of the observations, for that of the directory.
    pub(crate) fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_derive_key("copse eviction digest v1");
        for signed in self.observations() {
            hasher.update(&signed.observation_bytes());
        }
        hasher.finalize()
    }

    /// How strong it is, given the zones of its observers; see [`Strength`].
    pub(crate) fn strength<'a>(&self, zone_of: impl Fn(&NodeId) -> Option<Zone<'a>>) -> Strength {
        let known: Vec<(u64, Zone<'a>)> = self
            .observations
            .values()
            .filter_map(|signed| {
                let Observation { observer, observed_at, .. } = signed.observation;
                Some((observed_at, zone_of(&observer)?))
            })
            .collect();
        Strength::of(known)
    }
}

#[cfg(test)]
mod tests;
