//! What gossip promises: everyone hears, in a bounded number of bounded messages.

use super::*;
use crate::{
    directory::NodeRecord,
    eviction::{AHEAD_SECONDS_MAX, OF_ZONE_MAX},
    limits::ZONE_BYTES_MAX,
    testing::{NETWORK, node_key, observed, signed_record},
};

fn key(number: u32) -> crate::identity::NodeKey {
    node_key(number)
}

/// With a zone as long as may be.
fn record(number: u32, seq: u64) -> SignedRecord {
    signed_record(number, seq, &"z".repeat(ZONE_BYTES_MAX))
}

fn raw(records: &[SignedRecord]) -> impl Iterator<Item = (&[u8], &[u8])> {
    records.iter().map(|record| (record.record_bytes(), &record.signature()[..]))
}

/// (bytes, signature) of each.
type Raw = Vec<(Vec<u8>, [u8; SIGNATURE_BYTES])>;

fn raw_observations(observations: &[SignedObservation]) -> Raw {
    observations.iter().map(|signed| (signed.observation_bytes(), *signed.signature())).collect()
}

fn parts(raw: &Raw) -> impl Iterator<Item = (&[u8], &[u8])> {
    raw.iter().map(|(bytes, signature)| (&bytes[..], &signature[..]))
}

fn records(records: Vec<SignedRecord>) -> Bundle {
    Bundle { records, observations: vec![] }
}

fn message_bytes(bundle: &Bundle) -> usize {
    let records = bundle.records.iter().map(Item::Record);
    let observations = bundle.observations.iter().map(Item::Observation);
    records.chain(observations).map(|item| item.sent_bytes()).sum()
}

struct Node {
    id: NodeId,
    directory: Directory,
    gossip: Gossip,
}

impl Node {
    fn new(number: u32, known: &[SignedRecord]) -> Self {
        let mut directory = Directory::new(NETWORK);
        directory.insert(record(number, 1));
        for record in known {
            directory.insert(record.clone());
        }
        let id = key(number).id();
        Self { id, directory, gossip: Gossip::new(id, id.as_bytes()) }
    }

    fn receive(&mut self, from: NodeId, news: &Bundle) -> Received {
        let observations = raw_observations(&news.observations);
        let Self { directory, gossip, .. } = self;
        gossip.receive(directory, from, raw(&news.records), parts(&observations))
    }

    /// Takes in one that this node signed, and spreads it.
    fn observe(&mut self, signed: SignedObservation) {
        let observation = *signed.observation();
        assert_eq!(self.directory.insert_observation(signed), Noted::New);
        self.gossip.spread_observation(&observation, &self.directory);
    }
}

/// One comparison of digests, with the push that follows. Whether either learned something.
fn reconcile(nodes: &mut [Node], asking: usize, asked: usize) -> bool {
    let digests = *nodes[asking].directory.digests();
    let Node { directory, gossip, id } = &mut nodes[asked];
    let (answer, from) = (gossip.difference(directory, &digests), *id);
    assert!(message_bytes(&answer.news) <= MESSAGE_BYTES_MAX);
    let observations = raw_observations(&answer.news.observations);
    let Node { directory, gossip, id } = &mut nodes[asking];
    let Difference { buckets, news } = &answer;
    let done =
        gossip.reconciled(directory, from, buckets, raw(&news.records), parts(&observations));
    assert!(message_bytes(&done.push) <= MESSAGE_BYTES_MAX);
    let asking_id = *id;
    let received = nodes[asked].receive(asking_id, &done.push);
    assert_eq!(received.refused + done.received.refused, 0);
    done.again || received.news > 0
}

fn network(count: u32) -> Vec<Node> {
    let records: Vec<SignedRecord> = (0..count).map(|number| record(number, 1)).collect();
    (0..count).map(|number| Node::new(number, &records)).collect()
}

/// Runs rounds until nobody has news. Messages sent.
fn spread(nodes: &mut [Node]) -> usize {
    let mut messages = 0;
    for round in 0.. {
        assert!(round < 100, "gossip goes on and on");
        let pushes: Vec<(NodeId, Push)> = nodes
            .iter_mut()
            .flat_map(|node| {
                node.gossip.round(&node.directory).into_iter().map(|push| (node.id, push))
            })
            .collect();
        if pushes.is_empty() {
            break;
        }
        for (from, push) in pushes {
            assert_ne!(from, push.to, "a node pushes to itself");
            assert!(message_bytes(&push.news) <= MESSAGE_BYTES_MAX);
            messages += 1;
            let to = nodes.iter_mut().find(|node| node.id == push.to).expect("a known peer");
            let received = to.receive(from, &push.news);
            assert_eq!(received.refused, 0);
        }
    }
    messages
}

#[test]
fn a_new_record_reaches_everyone_in_a_bounded_number_of_messages() {
    let mut nodes = network(200);
    let news = record(7, 2);
    nodes[7].directory.insert(news.clone());
    let Node { directory, gossip, id } = &mut nodes[7];
    gossip.spread(*id, directory);
    let messages = spread(&mut nodes);
    let heard = nodes.iter().filter(|node| node.directory.get(&news.node()) == Some(&news)).count();
    assert_eq!(heard, 200);
    let bound = 200 * (PUSHES_BASE + 200u32.ilog2()) as usize;
    assert!(messages <= bound, "{messages} messages, expected at most {bound}");
}

#[test]
fn two_nodes_alone_come_to_rest() {
    let mut nodes = network(2);
    nodes[0].directory.insert(record(0, 2));
    let Node { directory, gossip, id } = &mut nodes[0];
    gossip.spread(*id, directory);
    spread(&mut nodes);
    assert!(nodes[0].directory.iter().eq(nodes[1].directory.iter()));
    assert!(nodes.iter_mut().all(|node| {
        for _ in 0..20 {
            node.gossip.round(&node.directory);
        }
        !node.gossip.has_news()
    }));
}

#[test]
fn a_newcomer_and_an_old_network_learn_all_of_each_other() {
    // The records of 1,000 nodes are several messages long.
    let known: Vec<SignedRecord> = (0..1000).map(|number| record(number, 1)).collect();
    assert!(message_bytes(&records(known.clone())) > 3 * MESSAGE_BYTES_MAX);
    let mut nodes = vec![Node::new(5000, &[]), Node::new(0, &known)];
    let mut rounds = 0;
    while reconcile(&mut nodes, 0, 1) {
        rounds += 1;
        assert!(rounds <= 20, "too many comparisons");
    }
    assert_eq!(nodes[0].directory.len(), 1001);
    assert_eq!(nodes[0].directory.digests(), nodes[1].directory.digests());
    assert!(nodes[0].directory.iter().eq(nodes[1].directory.iter()));
}

#[test]
fn a_lost_push_is_found_by_comparing_digests() {
    let mut nodes = network(10);
    nodes[3].directory.insert(record(3, 2));
    assert!(reconcile(&mut nodes, 3, 4), "the asked node learns from the one that asks");
    assert!(reconcile(&mut nodes, 5, 4), "and others from it");
    assert!(!reconcile(&mut nodes, 5, 4), "and then there is nothing left");
    for node in [4, 5] {
        assert_eq!(nodes[node].directory.get(&key(3).id()), Some(&record(3, 2)));
    }
}

#[test]
fn whoever_sends_old_news_is_told_the_newer() {
    let mut nodes = network(3);
    nodes[0].directory.insert(record(2, 5));
    let received = nodes[0].receive(key(1).id(), &records(vec![record(2, 1), record(1, 1)]));
    let newer = records(vec![record(2, 5)]);
    assert_eq!(received, Received { newer, ..Received::default() });
}

#[test]
fn what_is_not_genuine_is_counted_and_not_passed_on() {
    let mut nodes = network(3);
    let forged = record(1, 9);
    let wrong: [(&[u8], &[u8]); 3] =
        [(forged.record_bytes(), &[0; 64]), (forged.record_bytes(), &[]), (b"CPSN", &[0; 64])];
    let Node { directory, gossip, .. } = &mut nodes[0];
    let received = gossip.receive(directory, key(2).id(), wrong, wrong);
    assert_eq!(received, Received { refused: 6, ..Received::default() });
    assert!(!gossip.has_news());
    assert_eq!(gossip.round(directory), []);
}

/// A node that knows three, and what comes of this message to it, sent twice.
fn told_twice(records: &[SignedRecord], observations: &Raw) -> (Node, Received) {
    let mut node = network(3).swap_remove(0);
    let Node { directory, gossip, .. } = &mut node;
    let received = gossip.receive(directory, key(2).id(), raw(records), parts(observations));
    gossip.receive(directory, key(2).id(), raw(records), parts(observations));
    (node, received)
}

#[test]
fn behind_a_few_forged_signatures_nothing_is_looked_at() {
    let genuine = observed(1, 2, 1, 1000);
    let forged = |number| (observed(1, 2, 1, number).observation_bytes(), [7; SIGNATURE_BYTES]);
    let raw = |genuine: &SignedObservation| (genuine.observation_bytes(), *genuine.signature());
    for (before, expected) in [(3, 1), (4, 0), (290, 0)] {
        let message: Raw = (0..before).map(forged).chain([raw(&genuine)]).collect();
        let (node, received) = told_twice(&[], &message);
        let refused = message.len() - expected;
        assert_eq!((received.news, received.refused), (expected, refused), "behind {before}");
        assert_eq!(node.directory.observations().count(), expected);
    }
}

#[test]
fn of_what_must_wait_a_message_brings_a_bounded_part_and_of_the_rest_all() {
    let waiting: Vec<_> = (100..390).map(|stranger| observed(stranger, 2, 1, 1000)).collect();
    let observations: Vec<_> = waiting.iter().cloned().chain([observed(1, 2, 1, 1000)]).collect();
    let (mut node, received) = told_twice(&[], &raw_observations(&observations));
    assert_eq!((received.news, received.refused), (1, waiting.len() - sift::WAITING_MAX));
    // Those that were not put aside are gone.
    let strangers: Vec<_> = (100..390).map(|number| record(number, 1)).collect();
    node.receive(key(2).id(), &records(strangers.clone()));
    let kept = node.directory.observations().count();
    assert_eq!(kept, OF_ZONE_MAX.min(1 + sift::WAITING_MAX));
    // Beside the records that they are of they need not wait.
    let one_each: Vec<_> = (100..390).map(|number| observed(1, number, 1, 1000)).collect();
    let (node, received) = told_twice(&strangers, &raw_observations(&one_each));
    assert_eq!((received.news, received.refused), (2 * one_each.len(), 0));
    assert_eq!(node.directory.observations().count(), one_each.len());
}

#[test]
fn an_observation_of_the_future_is_left_until_it_is_due() {
    let mut node = network(3).swap_remove(0);
    let (now, from) = (1_800_000_000, key(2).id());
    let raw = |at| -> Raw { raw_observations(&[observed(1, 2, 1, at)]) };
    let mut told = |raw: &Raw, now| {
        let sifted = Sifted::new(&node.directory, now, [], parts(raw));
        let looked_at = !sifted.is_empty();
        let received = node.gossip.take_in(&mut node.directory, from, sifted.verify());
        (looked_at, received.early, received.news)
    };
    let early = raw(now + AHEAD_SECONDS_MAX + 1);
    assert_eq!(told(&early, Some(now)), (false, 1, 0), "no signature is checked for it");
    assert_eq!(told(&raw(now), Some(now)), (true, 0, 1), "nor is its observer silenced");
    assert_eq!(told(&early, Some(now + 1)), (true, 0, 1), "a moment later it is one like others");
    let far = raw(u64::MAX);
    assert_eq!(told(&far, Some(now)), (false, 1, 0));
    assert_eq!(told(&far, None), (true, 0, 1), "who does not know the time knows no future");
    // Who believed in it forgets it when it knows better.
    let digests = *node.directory.digests();
    assert_eq!(node.directory.forget_observations(|observation| observation.is_early(now)), 1);
    assert_eq!(node.directory.observations().count(), 0);
    assert_ne!(*node.directory.digests(), digests);
    assert_eq!(*node.directory.digests(), *network(3)[0].directory.digests());
}

#[test]
fn a_node_restored_from_an_old_copy_is_told_of_its_later_record() {
    let mut nodes = network(3);
    let received = nodes[0].receive(key(1).id(), &records(vec![record(0, 9)]));
    assert!(received.own_replaced);
    assert!(!nodes[0].receive(key(1).id(), &records(vec![record(2, 9)])).own_replaced);
}

#[test]
fn an_observation_reaches_everyone_and_the_subject_too() {
    let mut nodes = network(60);
    nodes[7].observe(observed(7, 3, 1, 1000));
    spread(&mut nodes);
    for node in &nodes {
        let accusation = node.directory.accusation(&key(3).id()).expect("everybody has heard");
        assert_eq!(accusation.observers(), 1);
        assert_eq!(node.directory.digests(), nodes[0].directory.digests());
    }
}

#[test]
fn a_lost_observation_is_found_by_comparing_digests() {
    let mut nodes = network(10);
    nodes[3].directory.insert_observation(observed(3, 5, 1, 1000));
    assert!(reconcile(&mut nodes, 3, 4), "the asked node learns from the one that asks");
    assert!(reconcile(&mut nodes, 6, 4), "and others from it");
    assert!(!reconcile(&mut nodes, 6, 4), "and then there is nothing left");
    assert!(nodes[6].directory.accusation(&key(5).id()).is_some());
}

#[test]
fn whoever_sends_a_void_observation_is_told_the_answer() {
    let mut nodes = network(4);
    nodes[0].directory.insert(record(2, 5));
    nodes[0].directory.insert_observation(observed(1, 3, 1, 2000));
    let old = vec![observed(3, 2, 1, 1000), observed(1, 3, 1, 1000)];
    let received = nodes[0].receive(key(3).id(), &Bundle { records: vec![], observations: old });
    let newer = Bundle { records: vec![record(2, 5)], observations: vec![observed(1, 3, 1, 2000)] };
    assert_eq!(received, Received { newer, ..Received::default() });
}

#[test]
fn a_void_observation_is_pushed_no_more() {
    let mut nodes = network(4);
    nodes[0].observe(observed(0, 2, 1, 1000));
    nodes[0].directory.insert(record(2, 2));
    let Node { directory, gossip, .. } = &mut nodes[0];
    assert_eq!(gossip.round(directory), []);
    assert!(!gossip.has_news());
}

#[test]
fn the_evicted_are_not_pushed_to_and_not_cut_off_for_ever() {
    let mut nodes = network(2);
    let gone = key(1).id();
    for witness in [2, 3, 4] {
        nodes[0].directory.insert(record(witness, 1));
        nodes[0].directory.insert_observation(observed(witness, 1, 1, 1000));
    }
    assert!(nodes[0].directory.evicted(&gone).is_some());
    let Node { directory, gossip, id } = &mut nodes[0];
    let mut compared = false;
    for _ in 0..100 {
        gossip.spread(*id, directory);
        assert!(gossip.round(directory).iter().all(|push| push.to != gone));
        compared |= gossip.reconcile(directory) == Some(gone);
    }
    assert!(compared);
}

#[test]
fn nobody_is_asked_who_left_or_cannot_be_reached() {
    let mut node = Node::new(0, &[]);
    assert_eq!(node.gossip.reconcile(&node.directory), None);
    let left = NodeRecord { state: NodeState::Left, ..record(1, 1).record().clone() };
    let mute = NodeRecord { addresses: vec![], ..record(2, 1).record().clone() };
    node.directory.insert(SignedRecord::sign(left, &key(1)).expect("a record"));
    node.directory.insert(SignedRecord::sign(mute, &key(2)).expect("a record"));
    assert_eq!(node.gossip.reconcile(&node.directory), None);
    node.directory.insert(record(3, 1));
    assert_eq!(node.gossip.reconcile(&node.directory), Some(key(3).id()));
}

#[test]
fn one_seed_makes_one_choice() {
    let run = || {
        let mut nodes = network(50);
        nodes[7].directory.insert(record(7, 2));
        let Node { directory, gossip, id } = &mut nodes[7];
        gossip.spread(*id, directory);
        gossip.round(directory)
    };
    assert_eq!(run(), run());
    assert_eq!(run().len(), FANOUT);
}
