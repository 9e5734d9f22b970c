//! The observations that a directory holds, and which nodes they evict.
//!
//! Owns one set of observations per node, those that wait for a record, and the set of evicted
//! nodes. Refuses to know the time: what is old is void by the rules, not by anybody's clock, so
//! that equal directories always agree. The one idea: the evicted are the smallest set that is
//! consistent with itself, found by going over all sets until nothing changes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
};

use super::{NodeRecord, SignedRecord};
use crate::{
    eviction::{
        Electorate, Eviction, EvictionError, Noted, Observation, Quorum, SignedObservation,
        Strength, Zone,
    },
    ids::NodeId,
};

/// Observations kept that speak of, or come from, a node or record that is not known yet; beyond
/// this the oldest go. Anyone can make them up, and what is dropped here is offered again when
/// digests are compared. 200 bytes each.
const WAITING_MAX: usize = 1024;

pub(super) type Records = BTreeMap<NodeId, SignedRecord>;

#[derive(Clone, Debug, Default)]
pub(super) struct Evictions {
    /// By subject; each of the subject's current record and of known observers.
    cases: BTreeMap<NodeId, Case>,
    waiting: VecDeque<SignedObservation>,
    /// All that would be on the ring if nobody were evicted.
    electorate: Electorate,
    evicted: BTreeSet<NodeId>,
    /// The electorate without the evicted; `None` when nobody is.
    remaining: Option<Electorate>,
    /// Whose records changed since this was settled, and of these, whose zone did.
    renewed: BTreeSet<NodeId>,
    moved: BTreeSet<NodeId>,
    /// Who is evicted may have changed.
    unsettled: bool,
}

#[derive(Clone, Debug)]
struct Case {
    eviction: Eviction,
    strength: Strength,
    digest: blake3::Hash,
}

impl Case {
    /// After a change; whose words went for it.
    fn update(&mut self, records: &Records) -> Vec<NodeId> {
        let gone = self.eviction.trim(|observer| zone_of(records, observer));
        self.strength = strength(&self.eviction, records);
        self.digest = self.eviction.digest();
        gone
    }
}

fn zone_of<'a>(records: &'a Records, observer: &NodeId) -> Option<Zone<'a>> {
    // What an observer said counts also when it has left or is evicted itself since: it was true
    // when it was said, and the silent node must not come back because its witnesses go.
    records.get(observer).map(|signed| Zone::of(signed.record()))
}

fn strength(eviction: &Eviction, records: &Records) -> Strength {
    eviction.strength(|observer| zone_of(records, observer))
}

impl Evictions {
    /// What is said about a node.
    pub(super) fn get(&self, subject: &NodeId) -> Option<&Eviction> {
        self.cases.get(subject).map(|case| &case.eviction)
    }

    /// All sets, by subject.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Eviction> {
        self.cases.values().map(|case| &case.eviction)
    }

    pub(super) fn is_evicted(&self, node: &NodeId) -> bool {
        self.evicted.contains(node)
    }

    pub(super) fn digest(&self, subject: &NodeId) -> Option<&blake3::Hash> {
        self.cases.get(subject).map(|case| &case.digest)
    }

    /// A record was taken in, in the place of another or none. [`Self::absorb`] must follow, of many at once
    /// behind the last.
    pub(super) fn record_changed(&mut self, before: Option<&SignedRecord>, after: &SignedRecord) {
        let (node, after) = (after.node(), after.record());
        let before = before.map(SignedRecord::record);
        let counted = before.filter(|record| Electorate::counts(record));
        if let Some(record) = counted {
            self.electorate.remove(record);
        }
        if Electorate::counts(after) {
            self.electorate.add(after);
        }
        let zone = before.map(|record| &record.zone);
        self.unsettled |=
            counted.is_some() != Electorate::counts(after) || zone != Some(&after.zone);
        self.renewed.insert(node);
        if zone.is_some_and(|zone| *zone != after.zone) {
            self.moved.insert(node);
        }
        if self.get(&node).is_some_and(|held| held.subject_seq() != after.seq) {
            self.cases.remove(&node);
            self.unsettled = true;
        }
    }

    /// Does what changed records ask for. Which nodes' observations changed by it: those that waited for
    /// such a record, and those that have no place any more since they are of another zone.
    ///
    /// Of records that came together none is done alone: what has no place in the zones that were half
    /// moved would be gone, and others would have kept it.
    pub(super) fn absorb(&mut self, records: &Records) -> Vec<NodeId> {
        let (renewed, moved) =
            (core::mem::take(&mut self.renewed), core::mem::take(&mut self.moved));
        let mut changed = Vec::new();
        if !moved.is_empty() {
            let is_moved =
                |signed: &SignedObservation| moved.contains(&signed.observation().observer);
            for (subject, case) in &mut self.cases {
                if case.eviction.observations().any(is_moved) && !case.update(records).is_empty() {
                    changed.push(*subject);
                }
            }
        }
        let concerns = |signed: &SignedObservation| {
            let Observation { observer, subject, .. } = signed.observation();
            renewed.contains(observer) || renewed.contains(subject)
        };
        if !self.waiting.iter().any(concerns) {
            return changed;
        }
        let (ready, waiting): (VecDeque<_>, VecDeque<_>) =
            self.waiting.drain(..).partition(concerns);
        self.waiting = waiting;
        for signed in ready {
            let subject = signed.observation().subject;
            if self.note(signed, records).is_news() {
                changed.push(subject);
            }
        }
        changed
    }

    /// What would become of an observation, where no signature need be checked to know it; of those that
    /// wait, see [`Self::is_waiting`].
    pub(super) fn foresee(&self, observation: &Observation, records: &Records) -> Option<Noted> {
        let Observation { observer, subject, subject_seq, .. } = observation;
        if records.get(subject).is_some_and(|held| held.record().seq > *subject_seq) {
            return Some(Noted::Answered);
        }
        let held = self.get(subject).filter(|held| held.subject_seq() == *subject_seq)?;
        let held = held.by(observer)?;
        match held.observation().rank().cmp(&observation.rank()) {
            core::cmp::Ordering::Less => None,
            core::cmp::Ordering::Equal => Some(Noted::Known),
            core::cmp::Ordering::Greater => Some(Noted::Older),
        }
    }

    /// Whether this very observation waits.
    pub(super) fn is_waiting(&self, observation: &Observation) -> bool {
        self.waiting.iter().any(|held| held.observation() == observation)
    }

    /// Takes an observation in.
    pub(super) fn note(&mut self, signed: SignedObservation, records: &Records) -> Noted {
        let Observation { observer, subject, subject_seq, .. } = *signed.observation();
        let seq = records.get(&subject).map(|held| held.record().seq);
        if seq.is_some_and(|seq| seq > subject_seq) {
            return Noted::Answered;
        }
        if seq != Some(subject_seq) || !records.contains_key(&observer) {
            self.wait(signed);
            return Noted::Waiting;
        }
        let noted = match self.cases.get_mut(&subject) {
            Some(case) => case.eviction.note(signed),
            None => {
                let eviction = Eviction::new(signed);
                let (strength, digest) = (strength(&eviction, records), eviction.digest());
                self.cases.insert(subject, Case { eviction, strength, digest });
                Noted::New
            }
        };
        if !noted.is_news() {
            return noted;
        }
        self.unsettled = true;
        let gone = self.cases.get_mut(&subject).map(|case| case.update(records));
        if gone.is_some_and(|gone| gone.contains(&observer)) { Noted::Crowded } else { noted }
    }

    /// Forgets some. Of whom they were.
    pub(super) fn forget(
        &mut self,
        which: impl Fn(&Observation) -> bool,
        records: &Records,
    ) -> Vec<NodeId> {
        self.waiting.retain(|signed| !which(signed.observation()));
        let mut changed = Vec::new();
        self.cases.retain(|subject, case| {
            if case.eviction.forget(&which) {
                changed.push(*subject);
                case.update(records);
            }
            !case.eviction.is_empty()
        });
        self.unsettled |= !changed.is_empty();
        changed
    }

    /// The sets behind this subject and observer, and of this subject: what is behind it.
    pub(super) fn after(
        &self,
        after: Option<(NodeId, NodeId)>,
    ) -> impl Iterator<Item = &SignedObservation> {
        let from = after.map_or(Bound::Unbounded, |(subject, _)| Bound::Included(subject));
        self.cases
            .range((from, Bound::Unbounded))
            .flat_map(|(_, case)| case.eviction.observations())
            .skip_while(move |signed| {
                let Observation { observer, subject, .. } = *signed.observation();
                after.is_some_and(|after| (subject, observer) <= after)
            })
    }

    /// Whether a node is to be taken for silent by those who do not watch it.
    pub(super) fn is_doubted(&self, subject: &NodeId, records: &Records) -> bool {
        let (Some(case), Some(record)) = (self.cases.get(subject), records.get(subject)) else {
            return false;
        };
        self.quorum(record.record()).is_doubted(case.strength)
    }

    /// What it takes to evict a node, as things are.
    fn quorum(&self, record: &NodeRecord) -> Quorum {
        let counted = Electorate::counts(record) && !self.is_evicted(&record.node);
        let electorate = self.remaining.as_ref().unwrap_or(&self.electorate);
        electorate.quorum(record, counted)
    }

    fn wait(&mut self, signed: SignedObservation) {
        let of = |signed: &SignedObservation| {
            let Observation { observer, subject, subject_seq, .. } = *signed.observation();
            (observer, subject, subject_seq)
        };
        let place = of(&signed);
        if let Some(held) = self.waiting.iter_mut().find(|held| of(held) == place) {
            if held.observation().rank() < signed.observation().rank() {
                *held = signed;
            }
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(signed);
    }

    /// Finds out who is evicted. Whether that changed.
    ///
    /// With each that goes, the others need the same or fewer witnesses (see
    /// [`Electorate::quorum`]), so going over them until nobody is added finds the smallest set that
    /// all agree on. What is needed can shrink only a few times; hence a few passes.
    pub(super) fn settle(&mut self, records: &Records) -> bool {
        if !core::mem::take(&mut self.unsettled) {
            return false;
        }
        let before = core::mem::take(&mut self.evicted);
        self.remaining = None;
        if self.cases.is_empty() {
            return !before.is_empty();
        }
        let mut remaining = self.electorate.clone();
        loop {
            let found = self.evicted.len();
            for (subject, case) in &self.cases {
                let Some(record) = records.get(subject).map(SignedRecord::record) else { continue };
                let counted = Electorate::counts(record);
                if self.evicted.contains(subject)
                    || !remaining.quorum(record, counted).is_met(case.strength)
                {
                    continue;
                }
                self.evicted.insert(*subject);
                if counted {
                    remaining.remove(record);
                }
            }
            if self.evicted.len() == found {
                break;
            }
        }
        self.remaining = (!self.evicted.is_empty()).then_some(remaining);
        self.evicted != before
    }

    /// Whether a set of observations evicts its subject, and if not, what is missing.
    pub(super) fn verdict(
        &self,
        eviction: &Eviction,
        records: &Records,
    ) -> Result<(), EvictionError> {
        let subject = eviction.subject();
        let record = records.get(&subject).ok_or(EvictionError::Unknown(subject))?.record();
        if record.seq != eviction.subject_seq() {
            return Err(EvictionError::OtherRecord {
                subject,
                got: eviction.subject_seq(),
                current: record.seq,
            });
        }
        self.quorum(record).check(eviction, strength(eviction, records))
    }
}
