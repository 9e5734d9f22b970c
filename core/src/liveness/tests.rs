//! What watching promises: the way down, the way back, and who signs what.

use std::collections::BTreeSet;

use super::*;
use crate::{
    directory::SignedRecord,
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

    /// Lets so many seconds pass, in which all others answer but these.
    fn pass(&mut self, count: u64, silent: &[u32]) -> Ticked {
        let mut all = Ticked::default();
        let silent: BTreeSet<NodeId> = silent.iter().map(|&number| node_id(number)).collect();
        for _ in 0..count {
            let ticked = self.watch.tick(seconds(self.now), self.now, &self.directory);
            all.changes.extend(ticked.changes);
            all.observe.extend(ticked.observe);
            all.answer |= ticked.answer;
            for node in self.watch.due(seconds(self.now)) {
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
        let due = node.watch.due(seconds(node.now));
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
        for id in node.watch.due(seconds(node.now)) {
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
        let due = node.watch.due(seconds(node.now));
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
        pinged = node.watch.due(seconds(node.now)).contains(&node_id(7)).then_some(node.now);
    }
    assert_eq!(pinged, Some(heard + 5), "and not only after a minute, when it is suspect again");
}

#[test]
fn of_nodes_that_others_watch_two_words_count_and_one_does_not() {
    let node = Driven::new(3);
    let mut directory = node.directory;
    let watch = Watch::new(node_id(9), Timeouts::default());
    let unknown = watch.state(&node_id(1), &directory);
    directory.insert_observation(observed(2, 1, 1, 0));
    let one = watch.state(&node_id(1), &directory);
    directory.insert_observation(observed(0, 1, 1, 0));
    let two = watch.state(&node_id(1), &directory);
    assert_eq!([unknown, one, two], [Liveness::Alive, Liveness::Alive, Liveness::Down]);
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
    let sign = |node: &mut Driven, observation: Observation| {
        let signed = crate::eviction::SignedObservation::sign(observation, &node_key(0));
        node.directory.insert_observation(signed.expect("its own"));
    };
    let first = node.pass(5 * 3600, &[3]).observe;
    assert_eq!(first.len(), 1);
    sign(&mut node, first[0]);
    assert_eq!(node.pass(10 * 3600, &[3]).observe, [], "the same again says nothing new");
    let second = node.pass(2 * 3600, &[3]).observe;
    assert_eq!(second.len(), 1, "half a day later it does, for those who come to it only now");
    sign(&mut node, second[0]);
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
    let [first] = node.pass(5 * 3600, &[2]).observe[..] else { panic!("one is due") };
    let signed = crate::eviction::SignedObservation::sign(first, &node_key(0));
    node.directory.insert_observation(signed.expect("its own"));
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

#[test]
fn spans_of_time_are_said_briefly() {
    let texts =
        [0, 59, 60, 61, 3600, 3725, 90_000, 86_400].map(|time| Span(seconds(time)).to_string());
    assert_eq!(texts, ["0 s", "59 s", "1 min", "1 min 1 s", "1 h", "1 h 2 min", "1 d 1 h", "1 d"]);
}
