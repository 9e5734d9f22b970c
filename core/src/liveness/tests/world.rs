//! Whole networks of watches, directories and gossip, second by second.
//!
//! Owns who can talk to whom. The idea: the parts are driven as a node drives them, and what they
//! promise together is looked at from outside.

use super::*;
use crate::{
    eviction::SignedObservation,
    gossip::{Bundle, Gossip, Received, Sifted},
};

/// A tenth of a minute for what takes hours.
const QUICK: Timeouts = Timeouts {
    ping_every: Duration::from_secs(2),
    suspect_after: Duration::from_secs(4),
    down_after: Duration::from_secs(20),
    dead_after: Duration::from_secs(120),
    together: Duration::from_secs(30),
    freeze_max: Duration::from_secs(600),
};

const UNIX: u64 = 1_800_000_000;

struct Node {
    number: u32,
    id: NodeId,
    record: NodeRecord,
    directory: Directory,
    gossip: Gossip,
    watch: Watch,
    /// Nodes of different sides do not hear each other; `None`: off.
    side: Option<u8>,
    /// Observations that it signed.
    signed: usize,
    /// So far its clock is ahead.
    ahead: u64,
    /// What it showed the last time.
    unix: u64,
}

impl Node {
    fn receive(&mut self, from: NodeId, news: &Bundle) -> Received {
        let observations: Vec<_> = news
            .observations
            .iter()
            .map(|signed| (signed.observation_bytes(), *signed.signature()))
            .collect();
        let records =
            news.records.iter().map(|signed| (signed.record_bytes(), &signed.signature()[..]));
        let observations =
            observations.iter().map(|(bytes, signature)| (&bytes[..], &signature[..]));
        let sifted = Sifted::new(&self.directory, Some(self.unix), records, observations);
        let received = self.gossip.take_in(&mut self.directory, from, sifted.verify());
        assert_eq!(received.refused, 0);
        received
    }

    /// Signs its record anew, as at a start.
    fn renew(&mut self) {
        let known = self.directory.get(&self.id).map_or(0, |signed| signed.record().seq);
        self.record.seq = known.max(self.record.seq) + 1;
        let signed = SignedRecord::sign(self.record.clone(), &node_key(self.number));
        self.directory.insert(signed.expect("its own record"));
        self.gossip.spread(self.id, &self.directory);
    }
}

struct World {
    nodes: Vec<Node>,
    now: u64,
}

impl World {
    fn new(zones: &[&str]) -> Self {
        let mut known = Directory::new(crate::testing::NETWORK);
        for (number, zone) in (0..).zip(zones) {
            known.insert(signed_record(number, 1, zone));
        }
        let nodes = (0..).zip(zones).map(|(number, zone)| {
            let id = node_id(number);
            Node {
                number,
                id,
                record: node_record(number, 1, zone),
                directory: known.clone(),
                gossip: Gossip::new(id, id.as_bytes()),
                watch: Watch::new(id, QUICK),
                side: Some(0),
                signed: 0,
                ahead: 0,
                unix: UNIX,
            }
        });
        let mut world = Self { nodes: nodes.collect(), now: 0 };
        world.pass(30);
        world
    }

    fn at(&self, id: &NodeId) -> usize {
        self.nodes.iter().position(|node| node.id == *id).expect("a node of this world")
    }

    fn connected(&self, a: usize, b: usize) -> bool {
        self.nodes[a].side.is_some() && self.nodes[a].side == self.nodes[b].side
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += 1;
            for at in 0..self.nodes.len() {
                if self.nodes[at].side.is_some() {
                    self.act(at);
                }
            }
        }
    }

    fn act(&mut self, at: usize) {
        let now = Duration::from_secs(self.now);
        let node = &mut self.nodes[at];
        let unix = UNIX + self.now + node.ahead;
        node.unix = unix;
        let id = node.id;
        let ticked = node.watch.tick(now, unix, &node.directory);
        for observation in ticked.observe {
            let signed = SignedObservation::sign(observation, &node_key(node.number));
            node.directory.insert_observation(signed.expect("its own observation"));
            node.gossip.spread_observation(&observation, &node.directory);
            node.signed += 1;
        }
        if ticked.answer {
            node.renew();
        }
        for peer in self.nodes[at].watch.due(now, 64) {
            let to = self.at(&peer);
            if self.connected(at, to) {
                self.nodes[at].watch.heard(&peer, now);
                self.nodes[to].watch.heard(&id, now);
            }
        }
        let node = &mut self.nodes[at];
        for push in node.gossip.round(&node.directory) {
            let to = self.at(&push.to);
            if self.connected(at, to) {
                let reply = self.nodes[to].receive(id, &push.news).newer;
                self.nodes[at].receive(push.to, &reply);
            }
        }
        if (self.now + at as u64).is_multiple_of(30) {
            self.compare(at);
        }
    }

    fn compare(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let unix = node.unix;
        node.directory.forget_observations(|observation| observation.is_early(unix));
        let (id, digests) = (node.id, *node.directory.digests());
        let Some(peer) = node.gossip.reconcile(&node.directory) else { return };
        let to = self.at(&peer);
        if !self.connected(at, to) {
            return;
        }
        let Node { gossip, directory, .. } = &mut self.nodes[to];
        let answer = gossip.difference(directory, &digests);
        self.nodes[at].receive(peer, &answer.news);
        let digests = *self.nodes[to].directory.digests();
        let Node { gossip, directory, .. } = &mut self.nodes[at];
        let ours = gossip.difference(directory, &digests);
        self.nodes[to].receive(id, &ours.news);
    }

    fn signed(&self) -> usize {
        self.nodes.iter().map(|node| node.signed).sum()
    }

    /// How many nodes' rings, of those that are on, have this node.
    fn rings_with(&self, number: u32) -> usize {
        let id = node_id(number);
        let on = self.nodes.iter().filter(|node| node.side.is_some());
        on.filter(|node| node.directory.ring().get(&id).is_some()).count()
    }

    fn assert_converged(&self) {
        let on: Vec<&Node> = self.nodes.iter().filter(|node| node.side.is_some()).collect();
        for node in &on {
            assert_eq!(node.directory.digests(), on[0].directory.digests());
            assert_eq!(node.directory.ring().members(), on[0].directory.ring().members());
        }
    }
}

#[test]
fn one_dead_of_sixteen_is_evicted_everywhere_and_comes_back() {
    let mut world = World::new(&[""; 16]);
    world.nodes[5].side = None;
    world.pass(115);
    assert_eq!((world.signed(), world.rings_with(5)), (0, 15), "not before its time");
    world.pass(20);
    assert_eq!(world.rings_with(5), 0, "all agree within some rounds");
    assert!(world.signed() >= 3);
    world.pass(60);
    world.assert_converged();
    assert_eq!(world.nodes[0].directory.ring().len(), 15);
    let signed = world.signed();
    world.pass(600);
    assert_eq!(world.signed(), signed, "it is enough");

    // It starts again, with what it knew.
    world.nodes[5].side = Some(0);
    world.nodes[5].watch = Watch::new(node_id(5), QUICK);
    world.nodes[5].renew();
    world.pass(90);
    assert_eq!(world.rings_with(5), 16);
    world.assert_converged();
    let states = world.nodes.iter().map(|node| node.watch.state(&node_id(5), &node.directory));
    assert!(states.into_iter().all(|state| state == Liveness::Alive));
}

#[test]
fn made_up_nodes_are_evicted_in_their_time_and_stop_nothing_meanwhile() {
    let mut world = World::new(&[""; 16]);
    world.pass(60);
    for number in 16..21 {
        let record = NodeRecord { capacity_bytes: u64::MAX, ..node_record(number, 1, "") };
        let id = record.node;
        let mut directory = Directory::new(crate::testing::NETWORK);
        directory.insert(SignedRecord::sign(record.clone(), &node_key(number)).expect("a record"));
        let news = Bundle { records: directory.iter().cloned().collect(), observations: vec![] };
        let watch = Watch::new(id, QUICK);
        let gossip = Gossip::new(id, id.as_bytes());
        let (side, signed, ahead, unix) = (None, 0, 0, UNIX);
        let node = Node { number, id, record, directory, gossip, watch, side, signed, ahead, unix };
        world.nodes.push(node);
        world.nodes[0].receive(id, &news);
    }
    for _ in 0..100 {
        world.pass(1);
        assert!(world.nodes[..16].iter().all(|node| *node.watch.guard() == Guard::Free));
    }
    assert!((16..21).all(|number| world.rings_with(number) == 16));
    world.pass(60);
    assert!((16..21).all(|number| world.rings_with(number) == 0));
    world.assert_converged();
}

#[test]
fn a_clock_that_is_ahead_and_set_back_silences_nobody() {
    let mut world = World::new(&[""; 16]);
    world.nodes[0].ahead = 365 * 24 * 3600;
    world.nodes[5].side = None;
    world.pass(200);
    assert_eq!(world.rings_with(5), 0);
    let said = |world: &World| -> Vec<bool> {
        let of = |node: &Node| node.directory.accusation(&node_id(5))?.by(&node_id(0)).cloned();
        world.nodes.iter().filter(|node| node.number != 5).map(|node| of(node).is_some()).collect()
    };
    assert_eq!(said(&world).iter().filter(|said| **said).count(), 1, "only it believes itself");
    world.nodes[0].ahead = 0;
    world.pass(31);
    assert!(said(&world)[0]);
    world.pass(60);
    assert!(said(&world).iter().all(|said| *said));
    world.assert_converged();
}

#[test]
fn when_half_is_cut_off_neither_side_signs_anything_and_healing_loses_nothing() {
    let mut world = World::new(&[""; 16]);
    for node in &mut world.nodes[8..] {
        node.side = Some(1);
    }
    // Far beyond the end of every freeze.
    world.pass(2000);
    assert_eq!(world.signed(), 0);
    for node in &mut world.nodes {
        assert!(!node.watch.guard().may_sign(), "{}", node.watch.guard());
        node.side = Some(0);
    }
    world.pass(60);
    assert_eq!(world.signed(), 0);
    for node in &world.nodes {
        assert_eq!(node.directory.ring().len(), 16);
        assert!(node.watch.guard().may_sign(), "{}", node.watch.guard());
        assert!(node.watch.watched().all(|(_, state, _)| state == Liveness::Alive));
    }
}

#[test]
fn of_unequal_parts_only_the_larger_evicts_and_only_in_the_end() {
    let mut world = World::new(&[""; 16]);
    for node in &mut world.nodes[11..] {
        node.side = Some(1);
    }
    world.pass(590);
    assert_eq!(world.signed(), 0, "frozen");
    world.pass(60);
    assert!(world.nodes[..11].iter().all(|node| node.directory.ring().len() == 11));
    assert!(world.nodes[11..].iter().all(|node| node.signed == 0));
    assert!(world.nodes[11..].iter().all(|node| !node.watch.guard().may_plan()));
    // They hear what is said of them, and answer.
    for node in &mut world.nodes {
        node.side = Some(0);
    }
    world.pass(120);
    world.assert_converged();
    assert_eq!(world.nodes[0].directory.ring().len(), 16);
}

#[test]
fn a_zone_that_burns_down_is_evicted_after_the_freeze() {
    let zones: Vec<&str> = (0..15).map(|at| ["a", "b", "c"][at % 3]).collect();
    let mut world = World::new(&zones);
    for node in world.nodes.iter_mut().step_by(3) {
        node.side = None;
    }
    world.pass(590);
    assert_eq!(world.signed(), 0);
    let guard = world.nodes[1].watch.guard().to_string();
    assert!(guard.starts_with("evictions are frozen"), "{guard}");
    world.pass(100);
    world.assert_converged();
    assert_eq!(world.nodes[1].directory.ring().len(), 10);
}

#[test]
fn a_living_node_that_is_lied_about_stays_or_comes_back() {
    let mut world = World::new(&["a", "a", "b", "b", "c", "c", "", ""]);
    let lie = |world: &mut World, liars: &[usize]| {
        for &liar in liars {
            let node = &mut world.nodes[liar];
            let seq = node.directory.get(&node_id(7)).map_or(0, |signed| signed.record().seq);
            let signed = observed(node.number, 7, seq, UNIX + world.now);
            node.gossip.spread_observation(&signed.observation().clone(), &{
                node.directory.insert_observation(signed);
                node.directory.clone()
            });
        }
    };
    // A whole zone of liars: not even for a moment.
    lie(&mut world, &[0, 1]);
    for _ in 0..60 {
        world.pass(1);
        assert_eq!(world.rings_with(7), 8);
    }
    assert!(world.nodes[7].record.seq > 1, "it answered");
    // A conspiracy of three zones has the quorum, until the node answers again.
    lie(&mut world, &[0, 2, 4]);
    world.pass(10);
    assert!(world.rings_with(7) < 8);
    world.pass(700);
    assert_eq!(world.rings_with(7), 8);
    world.assert_converged();
}

#[test]
fn a_newcomer_that_raises_the_quorum_does_not_bring_the_dead_back_for_long() {
    // Three nodes; one dies and the two others evict it. A fourth comes: now it takes three.
    let mut world = World::new(&["", "", "", ""]);
    let newcomer = world.nodes.pop().expect("the fourth");
    for node in &mut world.nodes {
        let mut known = Directory::new(crate::testing::NETWORK);
        for number in 0..3 {
            known.insert(signed_record(number, 1, ""));
        }
        node.directory = known;
    }
    world.nodes[2].side = None;
    world.pass(140);
    assert_eq!(world.rings_with(2), 0);
    world.nodes.push(newcomer);
    world.nodes[3].watch = Watch::new(node_id(3), QUICK);
    world.nodes[3].renew();
    world.pass(30);
    assert_eq!(world.rings_with(2), 3, "two witnesses of three are not enough");
    world.pass(130);
    assert_eq!(world.rings_with(2), 0);
    world.assert_converged();
}
