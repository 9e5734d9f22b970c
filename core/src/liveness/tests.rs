//! What watching promises: the way down, the way back, and who signs what.

use std::collections::BTreeSet;

use super::*;
use crate::{
    directory::SignedRecord,
    eviction::SignedObservation,
    guard::Freeze,
    testing::{node_id, node_key, node_record, observed, signed_record},
};

mod world;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Nodes 0.. without zones.
fn directory(nodes: u32) -> Directory {
    let mut directory = Directory::new(crate::testing::NETWORK);
    for number in 0..nodes {
        directory.insert(signed_record(number, 1, ""));
    }
    directory
}

/// Node 0's watch, driven second by second.
struct Driven {
    watch: Watch,
    directory: Directory,
    now: u64,
}

impl Driven {
    fn new(nodes: u32) -> Self {
        let watch = Watch::new(node_id(0), Timeouts::default());
        Self { watch, directory: directory(nodes), now: 0 }
    }

    /// Lets so many seconds pass, in which all others answer but these, and takes in what is signed.
    fn pass(&mut self, count: u64, silent: &[u32]) -> Ticked {
        let mut all = Ticked::default();
        let silent: BTreeSet<NodeId> = silent.iter().map(|&number| node_id(number)).collect();
        for _ in 0..count {
            let ticked = self.watch.tick(seconds(self.now), self.now, &self.directory);
            for observation in &ticked.observe {
                let signed = SignedObservation::sign(*observation, &node_key(0));
                self.directory.insert_observation(signed.expect("its own"));
            }
            all.changes.extend(ticked.changes);
            all.observe.extend(ticked.observe);
            all.answer |= ticked.answer;
            for node in self.watch.due(seconds(self.now), 64) {
                if !silent.contains(&node) {
                    all.changes.extend(self.watch.heard(&node, seconds(self.now)));
                }
            }
            self.now += 1;
        }
        all
    }

    fn state(&self, number: u32) -> Liveness {
        self.watch.state(&node_id(number), &self.directory)
    }
}

fn texts(changes: &[Change]) -> Vec<String> {
    changes
        .iter()
        .map(|Change { from, to, reason, .. }| format!("{from} to {to}: {reason}"))
        .collect()
}

#[test]
fn all_watch_all_in_a_small_network_and_32_each_in_a_large_one() {
    let ids: Vec<NodeId> = (0..33).map(node_id).collect();
    for subject in &ids {
        assert_eq!(watchers(ids.iter().copied(), subject).len(), 32);
        assert_eq!(watched_by(subject, &ids, ids.iter().copied()).len(), 32);
    }
    let ids: Vec<NodeId> = (0..200).map(node_id).collect();
    let watching: Vec<Vec<NodeId>> =
        ids.iter().map(|subject| watchers(ids.iter().copied(), subject)).collect();
    let mut watched = 0;
    for own in &ids {
        let of = watched_by(own, &ids, ids.iter().copied());
        for (subject, watchers) in ids.iter().zip(&watching) {
            assert_eq!(of.contains(subject), watchers.contains(own));
        }
        assert!((10..70).contains(&of.len()), "{} watched", of.len());
        watched += of.len();
    }
    assert_eq!(watched, 200 * WATCHERS);
}

#[test]
fn a_node_that_comes_or_goes_changes_few_watches() {
    let ids: Vec<NodeId> = (0..200).map(node_id).collect();
    let without: Vec<NodeId> = ids[1..].to_vec();
    for subject in &without {
        let before: BTreeSet<NodeId> = watchers(ids.iter().copied(), subject).into_iter().collect();
        let after = watchers(without.iter().copied(), subject).into_iter().collect();
        let new = before.symmetric_difference(&after).count();
        assert_eq!(new, if before.contains(&ids[0]) { 2 } else { 0 });
    }
}

#[test]
fn silence_takes_its_course_and_an_answer_ends_it() {
    let mut node = Driven::new(5);
    assert_eq!(node.pass(60, &[]), Ticked::default());
    let silenced = node.pass(4 * 3600 - 60, &[3]);
    assert_eq!(
        texts(&silenced.changes),
        ["alive to suspect: no answer for 10 s", "suspect to down: no answer for 5 min"]
    );
    assert_eq!(node.state(3), Liveness::Down);
    assert_eq!(silenced.observe, [], "not yet");
    let dead = node.pass(120, &[3]);
    let [observation] = dead.observe[..] else { panic!("{dead:?}") };
    assert_eq!((observation.observer, observation.subject), (node_id(0), node_id(3)));
    assert_eq!((observation.subject_seq, observation.silent_seconds), (1, 4 * 3600));
    let back = node.pass(60, &[]);
    assert_eq!(back.changes.len(), 1);
    assert!(texts(&back.changes)[0].starts_with("down to alive: it answers again after 4 h"));
    assert_eq!(node.state(3), Liveness::Alive);
}

#[test]
fn after_a_start_everybodys_clock_begins_anew() {
    let mut node = Driven::new(5);
    // Nobody answers: for five minutes nothing is known, and nothing is believed after that.
    let ticked = node.pass(299, &[1, 2, 3, 4]);
    assert!(ticked.changes.iter().all(|change| change.to == Liveness::Suspect));
    assert!(!node.watch.guard().may_plan(), "nobody was heard");
    let ticked = node.pass(8 * 3600, &[1, 2, 3, 4]);
    assert_eq!(ticked.changes.len(), 4);
    assert_eq!(ticked.observe, []);
    // Started again in the middle of it.
    node.watch = Watch::new(node_id(0), Timeouts::default());
    assert_eq!(node.state(1), Liveness::Alive);
    assert_eq!(node.pass(9, &[1]), Ticked::default());
    assert!(!node.watch.guard().may_plan(), "it has only just heard them");
    node.pass(300, &[1]);
    assert!(node.watch.guard().may_sign(), "{}", node.watch.guard());
    assert_eq!(node.pass(4 * 3600 - 310, &[1]).observe, []);
    assert_eq!(node.pass(60, &[1]).observe.len(), 1);
}

/// Records of so many nodes that nobody ever hears, each as large as may be.
fn make_up(directory: &mut Directory, numbers: impl IntoIterator<Item = u32>) {
    for number in numbers {
        let record = NodeRecord { capacity_bytes: u64::MAX, ..node_record(number, 1, "") };
        directory.insert(SignedRecord::sign(record, &node_key(number)).expect("a record"));
    }
}

#[test]
fn made_up_records_cut_nobody_off_and_are_signed_like_others() {
    let fakes = [16, 17, 18, 19, 20];
    let mut node = Driven::new(16);
    node.pass(400, &[]);
    make_up(&mut node.directory, fakes);
    for _ in 0..4 * 60 {
        assert_eq!(node.pass(60, &fakes).observe, []);
        assert_eq!(*node.watch.guard(), Guard::Free);
    }
    assert_eq!(node.pass(60, &fakes).observe.len(), fakes.len());
    // Restarted: it has heard the others, and they are not cut off either.
    let heard = node.watch.heard_ever().clone();
    assert_eq!(heard, (1..16).map(node_id).collect());
    node.watch = Watch::new(node_id(0), Timeouts::default()).having_heard(heard);
    node.pass(400, &fakes);
    assert_eq!(*node.watch.guard(), Guard::Free);
    // One of them that answers is a node like others.
    node.pass(400, &fakes[1..]);
    assert_eq!(node.state(16), Liveness::Alive);
    assert!(node.watch.heard_ever().contains(&node_id(16)));
}

#[test]
fn who_starts_again_among_few_is_cut_off_whatever_came_meanwhile() {
    let mut node = Driven::new(16);
    let others: Vec<u32> = (7..16).collect();
    for heard in [(1..16).map(node_id).collect(), BTreeSet::new()] {
        node.watch = Watch::new(node_id(0), Timeouts::default()).having_heard(heard);
        node.pass(60, &others);
        // Newcomers on this side of the cut do not outweigh those who are not heard: there are too few.
        node.directory.insert(signed_record(20, 1, ""));
        assert_eq!(node.pass(9 * 3600, &others).observe, []);
        assert!(!node.watch.guard().may_plan(), "{}", node.watch.guard());
    }
}

#[test]
fn a_pause_of_our_own_is_nobodys_silence() {
    let mut node = Driven::new(5);
    node.pass(60, &[]);
    node.pass(200, &[2]);
    node.now += 10 * 3600;
    let after = node.pass(5, &[2]);
    assert_eq!(after, Ticked::default(), "node 2 is still only suspect");
    let down = node.pass(120, &[2]);
    assert_eq!(texts(&down.changes), ["suspect to down: no answer for 5 min"]);
}

#[test]
fn pings_are_spread_and_the_down_are_pinged_less() {
    let mut node = Driven::new(33);
    node.pass(60, &[]);
    let mut pinged = BTreeMap::<NodeId, usize>::new();
    for _ in 0..100 {
        node.watch.tick(seconds(node.now), node.now, &node.directory);
        let due = node.watch.due(seconds(node.now), 64);
        assert!(due.len() <= 16, "half of all at once");
        for id in due {
            *pinged.entry(id).or_default() += 1;
            node.watch.heard(&id, seconds(node.now));
        }
        node.now += 1;
    }
    assert_eq!(pinged.len(), 32);
    assert!(pinged.values().all(|&count| count == 20), "every 5 s: {pinged:?}");

    node.pass(400, &[7]);
    let mut pings = 0;
    for _ in 0..600 {
        node.watch.tick(seconds(node.now), node.now, &node.directory);
        for id in node.watch.due(seconds(node.now), 64) {
            pings += usize::from(id == node_id(7));
            if id != node_id(7) {
                node.watch.heard(&id, seconds(node.now));
            }
        }
        node.now += 1;
    }
    assert_eq!(pings, 10, "once a minute");
}

#[test]
fn who_was_heard_is_not_pinged_for_a_while_and_who_returns_is_pinged_soon() {
    let mut node = Driven::new(9);
    node.pass(60, &[]);
    node.watch.heard(&node_id(7), seconds(node.now));
    for _ in 0..60 {
        node.watch.tick(seconds(node.now), node.now, &node.directory);
        let due = node.watch.due(seconds(node.now), 64);
        assert!(!due.contains(&node_id(7)), "it answers other requests all the time");
        for id in due.into_iter().chain([node_id(7)]) {
            node.watch.heard(&id, seconds(node.now));
        }
        node.now += 1;
    }
    node.pass(400, &[7]);
    assert_eq!(node.state(7), Liveness::Down);
    node.watch.heard(&node_id(7), seconds(node.now));
    let (mut pinged, heard) = (None, node.now);
    while pinged.is_none() && node.now < heard + 60 {
        node.now += 1;
        node.watch.tick(seconds(node.now), node.now, &node.directory);
        pinged = node.watch.due(seconds(node.now), 64).contains(&node_id(7)).then_some(node.now);
    }
    assert_eq!(pinged, Some(heard + 5), "and not only after a minute, when it is suspect again");
}

/// Whether nodes of these zones take node 0 for down, which they do not watch, by these words: who says it,
/// and when.
fn doubt(zones: &[&str], words: &[(u32, u64)]) -> bool {
    let mut directory = Directory::new(crate::testing::NETWORK);
    for (number, zone) in (0..).zip(zones) {
        directory.insert(signed_record(number, 1, zone));
    }
    for &(observer, at) in words {
        directory.insert_observation(observed(observer, 0, 1, at));
    }
    let watch = Watch::new(node_id(99), Timeouts::default());
    watch.state(&node_id(0), &directory) == Liveness::Down
}

#[test]
fn of_nodes_that_others_watch_two_words_count_and_one_does_not() {
    const DAY: u64 = 24 * 3600;
    let check = |zones: &[&str], words: &[(u32, u64)], expected| {
        assert_eq!(doubt(zones, words), expected, "{words:?} of {zones:?}");
    };
    check(&[""; 4], &[], false);
    check(&[""; 4], &[(1, 0)], false);
    check(&[""; 4], &[(1, 0), (2, DAY)], true);
    check(&[""; 4], &[(1, 0), (2, DAY + 1)], false);
    // Of two zones, where there are two.
    let three = ["a", "b", "b", "c"];
    check(&three, &[(1, 0), (2, 0)], false);
    check(&three, &[(1, 0), (3, 0)], true);
    check(&["a"; 4], &[(1, 0), (2, 0)], true);
}

#[test]
fn one_that_leaves_is_watched_by_those_who_have_heard_it() {
    let mut node = Driven::new(5);
    node.pass(60, &[]);
    let leaving = |number| {
        let record = NodeRecord { state: NodeState::Leaving, ..node_record(number, 2, "") };
        SignedRecord::sign(record, &node_key(number)).expect("a record")
    };
    for number in [4, 100, 101, 102] {
        node.directory.insert(leaving(number));
    }
    node.pass(60, &[]);
    let watched: BTreeSet<NodeId> = node.watch.watched().map(|(node, ..)| node).collect();
    assert_eq!(watched, [1, 2, 3, 4].map(node_id).into());
    let [observation] = node.pass(5 * 3600, &[4]).observe[..] else { panic!("one is due") };
    assert_eq!(observation.subject, node_id(4));
}

#[test]
fn not_all_made_up_nodes_are_signed_at_once() {
    let mut node = Driven::new(4);
    node.pass(60, &[]);
    let fakes: Vec<u32> = (100..128).chain(200..228).collect();
    make_up(&mut node.directory, fakes.iter().copied());
    // Off the ring, they watch nobody, and the four that are left watch all of them.
    for (fake, observer) in
        fakes.iter().flat_map(|fake| [1, 2, 3].map(|observer| (*fake, observer)))
    {
        node.directory.insert_observation(observed(observer, fake, 1, 0));
    }
    node.pass(4 * 3600 - 120, &fakes);
    let mut signed = Vec::new();
    for _ in 0..300 {
        signed.push(node.pass(1, &fakes).observe.len());
    }
    assert_eq!(signed.iter().max(), Some(&OBSERVE_MAX), "{signed:?}");
    assert_eq!(signed.iter().sum::<usize>(), fakes.len(), "and the others after that");
}

#[test]
fn who_cannot_be_pinged_now_is_pinged_next() {
    let mut node = Driven::new(9);
    node.pass(60, &[]);
    let mut due = Vec::new();
    for second in [100, 100, 100, 101] {
        due.push(node.watch.due(seconds(second), 3).len());
    }
    assert_eq!(due, [3, 3, 2, 0]);
}

#[test]
fn a_newer_record_is_a_sign_of_life_even_if_we_cannot_reach_the_node() {
    let mut node = Driven::new(5);
    node.pass(60, &[]);
    node.pass(3 * 3600, &[3]);
    node.directory.insert(signed_record(3, 2, ""));
    assert_eq!(node.pass(3 * 3600, &[3]).observe, []);
    assert_eq!(node.state(3), Liveness::Down, "that is what we see all the same");
    let [observation] = node.pass(3600 + 60, &[3]).observe[..] else { panic!("one is due") };
    assert_eq!(observation.subject_seq, 2);
}

#[test]
fn a_watcher_signs_once_and_again_only_while_it_is_not_enough() {
    let mut node = Driven::new(5);
    node.pass(60, &[]);
    let first = node.pass(5 * 3600, &[3]).observe;
    assert_eq!(first.len(), 1);
    assert_eq!(node.pass(10 * 3600, &[3]).observe, [], "the same again says nothing new");
    let second = node.pass(2 * 3600, &[3]).observe;
    assert_eq!(second.len(), 1, "half a day later it does, for those who come to it only now");
    for observer in [1, 2] {
        node.directory.insert_observation(observed(observer, 3, 1, node.now));
    }
    assert!(node.directory.evicted(&node_id(3)).is_some());
    assert_eq!(node.pass(20 * 3600, &[3]).observe, [], "it is enough");
    // Restarted: what it has said is in the directory.
    node.watch = Watch::new(node_id(0), Timeouts::default());
    assert_eq!(node.pass(20 * 3600, &[3]).observe, []);
}

#[test]
fn nothing_is_signed_while_a_guard_is_up() {
    let mut node = Driven::new(16);
    node.pass(60, &[]);
    assert_eq!(node.pass(23 * 3600, &[3, 4, 5]).observe, []);
    let frozen = matches!(node.watch.guard(), Guard::Frozen { reason: Freeze::Together { .. } });
    assert!(frozen, "{}", node.watch.guard());
    assert_eq!(
        node.pass(2 * 3600, &[3, 4, 5]).observe.len(),
        3,
        "a real loss is a loss in the end"
    );
}

#[test]
fn a_node_answers_what_two_others_say_of_it_but_not_all_the_time() {
    let mut node = Driven::new(5);
    node.pass(60, &[]);
    node.directory.insert_observation(observed(1, 0, 1, 0));
    assert!(!node.pass(10, &[]).answer, "one alone is harmless");
    node.directory.insert_observation(observed(2, 0, 1, 0));
    let ticked = node.watch.tick(seconds(node.now), node.now, &node.directory);
    assert!(ticked.answer);
    node.directory.insert(signed_record(0, 2, ""));
    assert!(!node.pass(10, &[]).answer, "they are void");
    for liar in [1, 2] {
        node.directory.insert_observation(observed(liar, 0, 2, 0));
    }
    assert!(!node.pass(9 * 60, &[]).answer);
    assert!(node.pass(60, &[]).answer);
}

#[test]
fn who_is_evicted_itself_signs_nothing_about_others() {
    let mut node = Driven::new(7);
    node.pass(60, &[]);
    for observer in [1, 2, 3] {
        node.directory.insert_observation(observed(observer, 0, 1, 0));
    }
    assert_eq!(node.pass(5 * 3600, &[5]).observe, []);
    node.directory.insert(signed_record(0, 2, ""));
    assert_eq!(node.pass(60, &[5]).observe.len(), 1);
}

#[test]
fn the_evicted_are_still_watched_and_signed_anew_when_it_takes_more_witnesses() {
    let mut node = Driven::new(3);
    node.pass(60, &[]);
    assert_eq!(node.pass(5 * 3600, &[2]).observe.len(), 1);
    node.directory.insert_observation(observed(1, 2, 1, node.now));
    assert_eq!(node.pass(20 * 3600, &[2]).observe, []);
    assert!(node.directory.evicted(&node_id(2)).is_some());
    // A newcomer: two witnesses are too few, and the newcomer's word would come a day after theirs.
    node.directory.insert(signed_record(3, 1, ""));
    assert_eq!(node.directory.evicted(&node_id(2)), None);
    // The newcomer must be heard first, or only half of the four answer; then the guard settles.
    assert_eq!(node.pass(400, &[2]).observe.len(), 1, "not after another four hours");
}

#[test]
fn who_left_is_watched_no_more() {
    let mut node = Driven::new(5);
    node.pass(60, &[]);
    let left = NodeRecord { state: NodeState::Left, ..node_record(3, 2, "") };
    node.directory.insert(SignedRecord::sign(left, &node_key(3)).expect("a record"));
    assert_eq!(node.pass(5 * 3600, &[3]), Ticked::default());
    assert_eq!(node.watch.watched().count(), 3);
}
