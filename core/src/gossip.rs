//! How records and observations spread: push what is news, compare digests for the rest.
//!
//! Owns which of them go to whom and how often. Does no I/O and reads no clock: a driver calls
//! [`Gossip::round`] every [`ROUND_INTERVAL`] and [`Gossip::reconcile`] every
//! [`RECONCILE_INTERVAL`], sends what it is given, and hands in what arrives. The one idea: news
//! are pushed a bounded number of times, and what that misses is found by comparing digests.
//!
//! ```text
//! push       news ─▶ FANOUT random peers; the reply is what the peer knows better
//! reconcile  my 256 digests ─▶ a random peer ─▶ what it has in the buckets that differ
//!            what of mine it did not have ─▶ back as a push
//! ```
//!
//! Only what a node signed about itself (records) or saw (observations) is spread. An observation
//! goes where the record of its subject goes; nobody spreads a verdict.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

pub use self::sift::{Sifted, Verified};

use crate::{
    directory::{BUCKETS, Directory, Inserted, NodeState, SignedRecord},
    eviction::{Noted, OBSERVATION_BYTES, Observation, SignedObservation},
    identity::SIGNATURE_BYTES,
    ids::NodeId,
    random::Random,
};

mod sift;

/// Time between two rounds of pushes.
pub const ROUND_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two comparisons with a random peer. Each costs 2 KiB when nothing differs.
pub const RECONCILE_INTERVAL: Duration = Duration::from_secs(30);

/// Peers that a round pushes to.
pub const FANOUT: usize = 3;

/// Records and observations in one message, at most, in bytes as sent; the rest waits for the next one. With the
/// digests, or the framing, it fits into the 64 KiB header of a peer message.
pub const MESSAGE_BYTES_MAX: usize = 60 << 10;

/// What a record or an observation costs in a message besides its bytes: the signature and
/// protobuf's tags and lengths.
const ITEM_OVERHEAD_BYTES: usize = SIGNATURE_BYTES + 16;

/// Times a piece of news is pushed beyond log2 of the number of nodes. Each node misses a piece of news
/// with probability e^-pushes: of 10,000 nodes one misses one in 2,400. Digests find those.
const PUSHES_BASE: u32 = 4;

/// One node's part in the spreading of news.
#[derive(Debug)]
pub struct Gossip {
    own: NodeId,
    random: Random,
    /// What is still being pushed. At most one entry per record and observation of the directory.
    news: BTreeMap<Topic, News>,
}

/// What a piece of news is about. Records go first: an observation is of use to those only who have
/// the record that it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Topic {
    Record(NodeId),
    Observation { subject: NodeId, observer: NodeId },
}

impl Topic {
    /// What there is to say about it now; `None` when an observation is void since.
    fn find(self, directory: &Directory) -> Option<Item<'_>> {
        match self {
            Self::Record(node) => directory.get(&node).map(Item::Record),
            Self::Observation { subject, observer } => {
                directory.accusation(&subject)?.by(&observer).map(Item::Observation)
            }
        }
    }

    /// Whether this peer needs not be told, since it said so itself. The subject of an observation
    /// must be told, so that it can answer.
    fn is_of(self, peer: NodeId) -> bool {
        match self {
            Self::Record(node) => node == peer,
            Self::Observation { observer, .. } => observer == peer,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct News {
    pushes_left: u32,
    /// Who told us and needs not be told.
    from: Option<NodeId>,
}

impl News {
    /// Whether it is to be pushed again after this time.
    fn count_push(&mut self) -> bool {
        self.pushes_left = self.pushes_left.saturating_sub(1);
        self.pushes_left > 0
    }
}

/// What is sent in one message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// Signed records.
    pub records: Vec<SignedRecord>,
    /// Signed observations.
    pub observations: Vec<SignedObservation>,
}

impl Bundle {
    /// Whether there is nothing to send.
    pub const fn is_empty(&self) -> bool {
        self.records.is_empty() && self.observations.is_empty()
    }
}

/// News for one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// The peer.
    pub to: NodeId,
    /// At most [`MESSAGE_BYTES_MAX`] of them.
    pub news: Bundle,
}

/// What became of records and observations that arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Received {
    /// How many changed the directory.
    pub news: usize,
    /// How many were not genuine, of another network, or had no place.
    pub refused: usize,
    /// How many were dated too far ahead of our clock.
    pub early: usize,
    /// What we know better: newer records of the same nodes or of those that were observed, newer
    /// observations of the same observers. The reply.
    pub newer: Bundle,
    /// A record of our own node arrived that we did not have: this node, restored from an old
    /// copy, must sign a new record with a higher `seq`.
    pub own_replaced: bool,
}

/// The answer to a peer's digests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// The buckets that differ.
    pub buckets: Vec<u8>,
    /// What we have in them, as much as fits in a message.
    pub news: Bundle,
}

/// What follows from a peer's [`Difference`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// What became of what it sent.
    pub received: Received,
    /// Ours of the same buckets that it did not show: to be pushed to it, in one message.
    pub push: Bundle,
    /// There may be more to learn from this peer: compare with it again at once.
    pub again: bool,
}

impl Gossip {
    /// The part of node `own`; `seed` decides its random choices.
    pub fn new(own: NodeId, seed: &[u8; 32]) -> Self {
        Self { own, random: Random::new(seed, "gossip"), news: BTreeMap::new() }
    }

    /// Starts to push a node's record: called for our own when it was signed anew. What
    /// [`Gossip::receive`] takes in is pushed on without this.
    pub fn spread(&mut self, node: NodeId, directory: &Directory) {
        self.note(Topic::Record(node), None, directory);
    }

    /// Starts to push an observation that this node signed.
    pub fn spread_observation(&mut self, observation: &Observation, directory: &Directory) {
        let Observation { observer, subject, .. } = *observation;
        self.note(Topic::Observation { subject, observer }, None, directory);
    }

    fn note(&mut self, topic: Topic, from: Option<NodeId>, directory: &Directory) {
        let pushes_left = PUSHES_BASE + directory.len().max(1).ilog2();
        self.news.insert(topic, News { pushes_left, from });
    }

    /// Whether there is anything to push.
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// The messages of one round: the news to a few random peers. What was pushed least often goes
    /// first.
    pub fn round(&mut self, directory: &Directory) -> Vec<Push> {
        if self.news.is_empty() {
            return Vec::new();
        }
        let evicted = |node: &NodeId| directory.evicted(node).is_some();
        let peers = self.peers(directory).filter(|node| !evicted(node));
        let peers = self.random.choose(peers, FANOUT);
        peers
            .into_iter()
            .map(|to| Push { to, news: self.take_news(to, directory) })
            .filter(|push| !push.news.is_empty())
            .collect()
    }

    fn take_news(&mut self, to: NodeId, directory: &Directory) -> Bundle {
        // Who said it and who told us know it: that counts as a push, or the only two nodes of a
        // network would keep their news for ever.
        let mut due: Vec<(Topic, News)> = Vec::new();
        self.news.retain(|topic, news| {
            if topic.find(directory).is_none() {
                return false;
            }
            if topic.is_of(to) || news.from == Some(to) {
                return news.count_push();
            }
            due.push((*topic, *news));
            true
        });
        due.sort_by_key(|(_, news)| core::cmp::Reverse(news.pushes_left));
        let (bundle, pushed) = fitting(due.iter().filter_map(|(topic, _)| topic.find(directory)));
        for (topic, _) in due.into_iter().take(pushed) {
            if self.news.get_mut(&topic).is_some_and(|news| !news.count_push()) {
                self.news.remove(&topic);
            }
        }
        bundle
    }

    /// A random peer to compare digests with; `None` when nobody can be reached. It may be an
    /// evicted one: two halves that have evicted each other must find together again.
    pub fn reconcile(&mut self, directory: &Directory) -> Option<NodeId> {
        self.random.choose(self.peers(directory), 1).pop()
    }

    /// Nodes that may answer: not us, not gone, and with an address or a relay.
    fn peers<'a>(&self, directory: &'a Directory) -> impl Iterator<Item = NodeId> + use<'a> {
        let own = self.own;
        directory
            .iter()
            .map(SignedRecord::record)
            .filter(move |record| {
                record.node != own
                    && record.state != NodeState::Left
                    && !(record.addresses.is_empty() && record.relays.is_empty())
            })
            .map(|record| record.node)
    }

    /// Takes in what a peer sent: (bytes, signature) of each record and observation. What changed
    /// the directory is pushed on. Knows no time, and takes in early observations, too.
    pub fn receive<'a>(
        &mut self,
        directory: &mut Directory,
        from: NodeId,
        records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        observations: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Received {
        let verified = Sifted::new(directory, None, records, observations).verify();
        self.take_in(directory, from, verified)
    }

    /// The last step of [`Self::receive`], for who lets go of the directory while signatures are checked:
    /// it may have changed since.
    pub fn take_in(
        &mut self,
        directory: &mut Directory,
        from: NodeId,
        verified: Verified,
    ) -> Received {
        let Verified { newer, records, observations, refused, early } = verified;
        let mut received = Received { refused, early, ..Received::default() };
        let mut newer: BTreeSet<Topic> = newer.into_iter().collect();
        // Records first: observations are taken in only beside the record that they are of.
        for signed in records {
            let node = signed.node();
            match directory.take(signed) {
                Inserted::New | Inserted::Newer => {
                    received.news += 1;
                    received.own_replaced |= node == self.own;
                    self.note(Topic::Record(node), Some(from), directory);
                }
                Inserted::Known => {}
                Inserted::Older => {
                    newer.insert(Topic::Record(node));
                }
                Inserted::Full => received.refused += 1,
            }
        }
        for signed in observations {
            let Observation { observer, subject, .. } = *signed.observation();
            let topic = Topic::Observation { subject, observer };
            match directory.take_observation(signed) {
                Noted::New | Noted::Newer => {
                    received.news += 1;
                    self.note(topic, Some(from), directory);
                }
                Noted::Answered => {
                    newer.insert(Topic::Record(subject));
                }
                Noted::Older => {
                    newer.insert(topic);
                }
                Noted::Known | Noted::Waiting | Noted::Crowded => {}
            }
        }
        directory.settle();
        received.newer = fitting(newer.iter().filter_map(|topic| topic.find(directory))).0;
        received
    }

    /// Answers a peer's digests.
    pub fn difference(&mut self, directory: &Directory, theirs: &[u64; BUCKETS]) -> Difference {
        let buckets: Vec<u8> = (0..=u8::MAX)
            .zip(directory.digests().iter().zip(theirs))
            .filter(|(_, (ours, theirs))| ours != theirs)
            .map(|(bucket, _)| bucket)
            .collect();
        let news = self.some_of(directory, &buckets, |_| true);
        Difference { buckets, news }
    }

    /// Takes in the answer to our digests.
    pub fn reconciled<'a>(
        &mut self,
        directory: &mut Directory,
        from: NodeId,
        buckets: &[u8],
        records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        observations: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Reconciled {
        let records: Vec<(&[u8], &[u8])> = records.into_iter().collect();
        let observations: Vec<(&[u8], &[u8])> = observations.into_iter().collect();
        let received =
            self.receive(directory, from, records.iter().copied(), observations.iter().copied());
        let shown = records.iter().chain(&observations).map(|(bytes, _)| *bytes);
        self.compared(directory, buckets, shown, received)
    }

    /// The last step of [`Self::reconciled`], when what the peer has `shown` was taken in.
    pub fn compared<'a>(
        &mut self,
        directory: &Directory,
        buckets: &[u8],
        shown: impl IntoIterator<Item = &'a [u8]>,
        received: Received,
    ) -> Reconciled {
        // Each bucket once, however often the peer names it.
        let mut buckets = buckets.to_vec();
        buckets.sort_unstable();
        buckets.dedup();
        // The magic in front keeps the two kinds apart.
        let shown: BTreeSet<&[u8]> = shown.into_iter().collect();
        let push = self.some_of(directory, &buckets, |item| match item {
            Item::Record(record) => !shown.contains(record.record_bytes()),
            Item::Observation(signed) => !shown.contains(&signed.observation_bytes()[..]),
        });
        Reconciled { again: received.news > 0, push, received }
    }

    /// What is in these buckets, as much as fits. When not all does, it begins somewhere else each
    /// time, at the start of a bucket if a whole one fits, so that repeating it reaches all.
    fn some_of(
        &mut self,
        directory: &Directory,
        buckets: &[u8],
        wanted: impl Fn(&Item<'_>) -> bool,
    ) -> Bundle {
        let mut parts: Vec<Vec<Item<'_>>> = buckets
            .iter()
            .map(|&bucket| items(directory, bucket).filter(&wanted).collect())
            .filter(|part: &Vec<_>| !part.is_empty())
            .collect();
        let bytes = |part: &Vec<Item<'_>>| part.iter().map(Item::sent_bytes).sum::<usize>();
        if parts.iter().map(bytes).sum::<usize>() > MESSAGE_BYTES_MAX {
            let first = self.random.below(parts.len());
            parts.rotate_left(first);
            if bytes(&parts[0]) > MESSAGE_BYTES_MAX {
                let first = self.random.below(parts[0].len());
                parts[0].rotate_left(first);
            }
        }
        fitting(parts.into_iter().flatten()).0
    }
}

/// One thing to send.
#[derive(Clone, Copy)]
enum Item<'a> {
    Record(&'a SignedRecord),
    Observation(&'a SignedObservation),
}

impl Item<'_> {
    fn sent_bytes(&self) -> usize {
        let bytes = match self {
            Self::Record(record) => record.record_bytes().len(),
            Self::Observation(_) => OBSERVATION_BYTES,
        };
        bytes + ITEM_OVERHEAD_BYTES
    }
}

/// What a directory has in a bucket.
fn items(directory: &Directory, bucket: u8) -> impl Iterator<Item = Item<'_>> {
    let records = directory.bucket(bucket).map(Item::Record);
    records.chain(directory.bucket_observations(bucket).map(Item::Observation))
}

/// The first of these, as many as fit in one message, and how many those are.
fn fitting<'a>(items: impl IntoIterator<Item = Item<'a>>) -> (Bundle, usize) {
    let mut left = MESSAGE_BYTES_MAX;
    let mut bundle = Bundle::default();
    let mut count = 0;
    for item in items {
        let Some(rest) = left.checked_sub(item.sent_bytes()) else { break };
        left = rest;
        count += 1;
        match item {
            Item::Record(record) => bundle.records.push(record.clone()),
            Item::Observation(observation) => bundle.observations.push(observation.clone()),
        }
    }
    (bundle, count)
}

#[cfg(test)]
mod tests;
