//! What an eviction promises: whom it takes, in which zones, within which time.

use std::collections::BTreeSet;

use data_encoding::HEXLOWER;
use proptest::prelude::*;

use super::*;
use crate::{
    directory::{Directory, NodeRecord, NodeState, SignedRecord, Standing},
    testing::{NETWORK, node_id, node_key, node_record, observed, signed_record},
};

const AT: u64 = 1_800_000_000;

/// One node per zone name, numbered from 0, with `seq` 1.
fn directory(zones: &[&str]) -> Directory {
    let mut directory = Directory::new(NETWORK);
    for (number, zone) in (0..).zip(zones) {
        directory.insert(signed_record(number, 1, zone));
    }
    directory
}

/// Node 0 is observed by these at once. Whether that evicts it.
fn evicted_by(zones: &[&str], observers: &[u32]) -> bool {
    let mut directory = directory(zones);
    for &observer in observers {
        directory.insert_observation(observed(observer, 0, 1, AT));
    }
    directory.evicted(&node_id(0)).is_some()
}

#[test]
fn the_bytes_of_an_observation() {
    let signed = observed(2, 1, 5, AT);
    let expected = [
        "4350534f",
        "01",
        &"11".repeat(32),
        &node_id(2).to_string(),
        &node_id(1).to_string(),
        "0500000000000000",
        "4038000000000000",
        "00d2496b00000000",
    ];
    assert_eq!(HEXLOWER.encode(&signed.observation_bytes()), expected.concat());
    assert_eq!(signed.observation_bytes().len(), OBSERVATION_BYTES);
    assert_eq!(
        HEXLOWER.encode(signed.signature()),
        "735c1d3ae7244126a78401e1b1d81fce32fdeaa6793c7ae7d736b576ca423c4de46e646de959abf1c07506872cbe747a08c55e9bef3492399b8126f7aae9a806"
    );
}

#[test]
fn a_signed_observation_comes_back() {
    let signed = observed(2, 1, 5, AT);
    let (bytes, signature) = (signed.observation_bytes(), signed.signature());
    let error = SignedObservation::verify(&bytes, signature, NetworkId::new([9; 32]))
        .expect_err("another network");
    assert!(error.to_string().ends_with("do not pass it on"), "{error}");
    assert!(SignedObservation::verify(&bytes, &signature[1..], NETWORK).is_err());
    assert_eq!(SignedObservation::verify(&bytes, signature, NETWORK), Ok(signed));
}

#[test]
fn nobody_observes_for_another_or_itself() {
    let Observation { subject, .. } = *observed(2, 1, 5, AT).observation();
    let foreign = SignedObservation::sign(*observed(2, 1, 5, AT).observation(), &node_key(3));
    assert!(matches!(foreign, Err(ObservationError::OtherKey { .. })));
    let own = Observation { observer: subject, ..*observed(2, 1, 5, AT).observation() };
    let refused = SignedObservation::sign(own, &node_key(1));
    assert!(matches!(refused, Err(ObservationError::Format(_))), "{refused:?}");
}

/// (zones of nodes 0.., who observes node 0, whether that is enough)
#[test]
fn who_is_enough() {
    let check = |zones: &[&str], observers: &[u32], enough: bool| {
        assert_eq!(evicted_by(zones, observers), enough, "{observers:?} of {zones:?}");
    };
    // Nodes without zones: three, or both of two, and never one.
    check(&["", ""], &[1], false);
    check(&["", "", ""], &[1], false);
    check(&["", "", ""], &[1, 2], true);
    check(&["", "", "", ""], &[1, 2], false);
    check(&["", "", "", ""], &[1, 2, 3], true);
    // All in one zone.
    check(&["a", "a", "a", "a", "a"], &[1, 2], false);
    check(&["a", "a", "a", "a", "a"], &[1, 2, 3], true);
    // Two zones: neither can evict a node of the other or of its own.
    let two = ["a", "a", "a", "a", "b", "b", "b", "b"];
    check(&two, &[1, 2, 3], false);
    check(&two, &[4, 5, 6, 7], false);
    check(&two, &[1, 4, 5], true);
    // Three: nobody of a zone that burnt down need speak for it, but both others must.
    let three = ["a", "a", "b", "b", "b", "c", "c", "c"];
    check(&three, &[2, 3, 4], false);
    check(&three, &[2, 5], false);
    check(&three, &[2, 3, 5], true);
    // Four and more: three zones.
    let four = ["a", "a", "b", "b", "c", "c", "d", "d"];
    check(&four, &[2, 3, 4, 5], false);
    check(&four, &[1, 2, 4], true);
    check(&four, &[2, 4, 6], true);
    // The only node of its zone.
    check(&["a", "b", "b", "b"], &[1, 2, 3], true);
}

#[test]
fn silences_of_different_days_are_not_put_together() {
    let mut directory = directory(&[""; 8]);
    for (day, observer) in (0..).zip(1..8) {
        let at = AT + day * (TOGETHER_SECONDS / 2 + 1);
        directory.insert_observation(observed(observer, 0, 1, at));
    }
    let error = directory.verdict(&node_id(0)).expect_err("two in any 24 hours");
    assert_eq!(
        error.to_string(),
        format!(
            "2 of the 7 observers of node {} agree within 24 h, 3 are needed: wait for more \
             watchers",
            node_id(0)
        )
    );
    // One that renews its word joins the later ones.
    directory.insert_observation(observed(1, 0, 1, AT + 6 * (TOGETHER_SECONDS / 2 + 1)));
    assert!(directory.verdict(&node_id(0)).is_ok());
}

#[test]
fn a_verdict_says_what_is_missing() {
    let mut directory = directory(&["a", "a", "b", "b", "b", "c"]);
    let error = |directory: &Directory| directory.verdict(&node_id(0)).expect_err("not evicted");
    assert_eq!(directory.verdict(&node_id(9)), Err(EvictionError::Unknown(node_id(9))));
    assert_eq!(error(&directory), EvictionError::Unobserved(node_id(0)));
    for observer in [2, 3, 4] {
        directory.insert_observation(observed(observer, 0, 1, AT));
    }
    assert_eq!(
        error(&directory).to_string(),
        format!(
            "the observers of node {} that agree within 24 h are of 1 zones, 2 are needed: nodes \
             that fail together do not count as witnesses of each other",
            node_id(0)
        )
    );
    directory.insert_observation(observed(5, 0, 1, AT));
    let eviction = directory.verdict(&node_id(0)).expect("evicted").clone();
    assert_eq!(eviction.observers(), 4);
    directory.insert(signed_record(0, 2, "a"));
    assert_eq!(error(&directory), EvictionError::Unobserved(node_id(0)));
    assert!(directory.accusation(&node_id(0)).is_none());
}

#[test]
fn a_newer_record_brings_a_node_back_and_voids_what_was_said() {
    let mut directory = directory(&[""; 5]);
    let revision = directory.ring_revision();
    for observer in [1, 2, 3] {
        assert_eq!(directory.insert_observation(observed(observer, 0, 1, AT)), Noted::New);
    }
    assert_eq!(directory.standing(&node_id(0)), Some(Standing::Evicted));
    assert_eq!(directory.ring().get(&node_id(0)), None);
    assert!(directory.members().all(|record| record.node != node_id(0)));
    assert!(directory.ring_revision() > revision);

    let revision = directory.ring_revision();
    directory.insert(signed_record(0, 2, ""));
    assert_eq!(directory.standing(&node_id(0)), Some(Standing::Active));
    assert!(directory.ring().get(&node_id(0)).is_some());
    assert!(directory.ring_revision() > revision);
    // What was said of the older record comes too late.
    assert_eq!(directory.insert_observation(observed(4, 0, 1, AT)), Noted::Answered);
    let void = observed(4, 0, 1, AT).observation_bytes();
    let admitted = directory.admit_observation(&void, &[0; 64]).map(|(_, noted)| noted);
    assert_eq!(admitted, Ok(Noted::Answered), "no signature is checked for it");
}

#[test]
fn witnesses_that_go_leave_their_word_behind() {
    let mut directory = directory(&[""; 8]);
    for observer in [1, 2, 3] {
        directory.insert_observation(observed(observer, 0, 1, AT));
    }
    // One leaves, one is evicted itself.
    let left = NodeRecord { state: NodeState::Left, ..node_record(1, 2, "") };
    directory.insert(SignedRecord::sign(left, &node_key(1)).expect("a record"));
    for observer in [3, 4, 5] {
        directory.insert_observation(observed(observer, 2, 1, AT));
    }
    assert_eq!(directory.standing(&node_id(1)), Some(Standing::Left));
    assert_eq!(directory.standing(&node_id(2)), Some(Standing::Evicted));
    assert_eq!(directory.standing(&node_id(0)), Some(Standing::Evicted));
    assert_eq!(directory.ring().len(), 5);
}

#[test]
fn a_network_that_shrinks_needs_fewer_witnesses() {
    // Five nodes die one by one until two are left.
    let mut directory = directory(&[""; 5]);
    for (gone, witnesses) in [(0, vec![1, 2, 3]), (1, vec![2, 3, 4]), (2, vec![3, 4])] {
        assert!(directory.ring().get(&node_id(gone)).is_some());
        for witness in witnesses {
            directory.insert_observation(observed(witness, gone, 1, AT));
        }
        assert_eq!(directory.ring().get(&node_id(gone)), None, "node {gone}");
    }
    // The last two never evict each other.
    directory.insert_observation(observed(3, 4, 1, AT));
    assert_eq!(directory.ring().len(), 2);
}

#[test]
fn an_observation_waits_for_the_records_that_it_is_about() {
    let mut directory = Directory::new(NETWORK);
    let early = observed(1, 0, 2, AT);
    assert_eq!(directory.insert_observation(early.clone()), Noted::Waiting);
    directory.insert(signed_record(1, 1, ""));
    directory.insert(signed_record(0, 1, ""));
    assert!(directory.accusation(&node_id(0)).is_none(), "that is not yet the record");
    let digests = *directory.digests();
    directory.insert(signed_record(0, 2, ""));
    assert_eq!(directory.accusation(&node_id(0)).map(Eviction::observers), Some(1));
    assert_ne!(directory.digests(), &digests);
    // A stranger's observations cannot crowd out memory: the oldest go.
    for number in 0..2000 {
        directory.insert_observation(observed(5, 4, number, AT));
    }
    assert_eq!(directory.observations().count(), 1);
    directory.insert(signed_record(5, 1, ""));
    directory.insert(signed_record(4, 0, ""));
    assert!(directory.accusation(&node_id(4)).is_none());
    directory.insert(signed_record(4, 1999, ""));
    assert!(directory.accusation(&node_id(4)).is_some());
}

/// Node 0 is observed in a network of these zones by these nodes, at these times.
fn observed_by(zones: &[&str], words: impl IntoIterator<Item = (u32, u64)>) -> Directory {
    let mut directory = directory(zones);
    for (observer, at) in words {
        directory.insert_observation(observed(observer, 0, 1, at));
    }
    directory
}

fn observers(directory: &Directory) -> BTreeSet<NodeId> {
    let accusation = directory.accusation(&node_id(0)).expect("an accusation");
    accusation.observations().map(|signed| signed.observation().observer).collect()
}

#[test]
fn of_too_many_words_the_latest_count_whoever_came_first() {
    let words = || (1..=40).map(|observer| (observer, AT + u64::from(observer)));
    let mut one = observed_by(&[""; 41], words());
    let other = observed_by(&[""; 41], words().rev());
    assert_eq!(observers(&one), (9..=40).map(node_id).collect());
    assert_eq!(observers(&one), observers(&other));
    assert_eq!(one.digests(), other.digests());
    let digests = *one.digests();
    assert_eq!(one.insert_observation(observed(8, 0, 1, AT + 8)), Noted::Crowded);
    assert_eq!(one.digests(), &digests);
    assert_eq!(one.insert_observation(observed(8, 0, 1, AT + 50)), Noted::New);
    assert_eq!(observers(&one), [8].into_iter().chain(10..=40).map(node_id).collect());
    // Of one zone as many as another could need.
    let one = observed_by(&["a"; 41], words());
    assert_eq!(observers(&one), (33..=40).map(node_id).collect());
}

#[test]
fn liars_who_fill_all_places_keep_no_eviction_from_holding() {
    const DAY_AND_MORE: u64 = TOGETHER_SECONDS + 3600;
    // Their keys were chosen so that they are the first watchers.
    let first = liveness::watchers((1..=43).map(node_id), &node_id(0));
    let (liars, others): (Vec<u32>, Vec<u32>) =
        (1..=43).partition(|number| first.contains(&node_id(*number)));
    let check = |lies: &dyn Fn(usize) -> (&'static str, u64)| {
        let mut zones = ["h0"; 44];
        let (mut lied, mut honest) = (Vec::new(), Vec::new());
        for (at, liar) in liars.iter().enumerate() {
            let (zone, time) = lies(at);
            zones[*liar as usize] = zone;
            lied.push((*liar, time));
        }
        for (zone, node) in ["h1", "h2", "h3"].into_iter().zip(&others) {
            zones[*node as usize] = zone;
            honest.push((*node, AT));
        }
        for words in [[&honest[..], &lied].concat(), [&lied[..], &honest].concat()] {
            let verdict = observed_by(&zones, words).verdict(&node_id(0)).cloned();
            assert!(verdict.is_ok(), "{verdict:?}");
        }
    };
    let ahead = AT + AHEAD_SECONDS_MAX;
    check(&|_| ("a", ahead));
    // Of four zones, but each at another time.
    check(&|at| (["a", "b", "c", "d"][at / 8], ahead - at as u64 / 8 * DAY_AND_MORE));
}

#[test]
fn the_newest_word_of_an_observer_counts() {
    let mut directory = directory(&[""; 3]);
    assert_eq!(directory.insert_observation(observed(1, 0, 1, AT)), Noted::New);
    let digests = *directory.digests();
    assert_eq!(directory.insert_observation(observed(1, 0, 1, AT)), Noted::Known);
    assert_eq!(directory.insert_observation(observed(1, 0, 1, AT - 1)), Noted::Older);
    assert_eq!(directory.digests(), &digests);
    assert_eq!(directory.insert_observation(observed(1, 0, 1, AT + 1)), Noted::Newer);
    assert_ne!(directory.digests(), &digests);
    let known = observed(1, 0, 1, AT + 1).observation_bytes();
    let admitted = directory.admit_observation(&known, &[0; 64]).map(|(_, noted)| noted);
    assert_eq!(admitted, Ok(Noted::Known), "no signature is checked for it");
    let forged = observed(1, 0, 1, AT + 2).observation_bytes();
    assert!(matches!(
        directory.admit_observation(&forged, &[0; 64]),
        Err(ObservationError::Signature(_))
    ));
}

#[test]
fn of_many_at_once_it_is_found_out_once_who_is_evicted() {
    let words: Vec<SignedObservation> = (0..5)
        .flat_map(|subject| [5, 6, 7].map(|observer| observed(observer, subject, 1, AT)))
        .collect();
    let raw: Vec<_> =
        words.iter().map(|word| (word.observation_bytes(), *word.signature())).collect();
    let mut one = directory(&[""; 8]);
    let mut other = one.clone();
    let revision = one.ring_revision();
    one.insert_all([], words);
    let raw = raw.iter().map(|(bytes, signature)| (&bytes[..], &signature[..]));
    let forged = (&b"CPSO"[..], &[0; 64][..]);
    let mut refused = 0;
    assert!(other.admit_all([], raw.chain([forged]), |_| refused += 1));
    assert_eq!(refused, 1);
    for directory in [&one, &other] {
        assert_eq!(directory.ring().len(), 3);
        assert_eq!(directory.ring_revision(), revision + 1);
    }
    assert_eq!(one.digests(), other.digests());
    // Page by page all come, once.
    let (mut after, mut paged) = (None, Vec::new());
    while let Some(word) = one.observations_after(after).next() {
        let Observation { observer, subject, .. } = *word.observation();
        after = Some((subject, observer));
        paged.push(word);
    }
    assert!(one.observations().eq(paged));
}

/// Something that may arrive.
#[derive(Clone, Debug)]
enum Arrival {
    Record { number: u32, seq: u64, zone: &'static str, state: NodeState },
    Observed { observer: u32, subject: u32, seq: u64, at: u64 },
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let zone = prop_oneof![Just(""), Just("a"), Just("b"), Just("c")];
    let state = prop_oneof![8 => Just(NodeState::Active), 1 => Just(NodeState::Leaving), 1 => Just(NodeState::Left)];
    let record = (0u32..8, 0u64..2, zone, state)
        .prop_map(|(number, seq, zone, state)| Arrival::Record { number, seq, zone, state });
    let observed = (0u32..8, 1u32..8, 0u64..2, 0u64..3).prop_map(|(subject, other, seq, time)| {
        let observer = (subject + other) % 8;
        Arrival::Observed { observer, subject, seq, at: AT + time * 50_000 }
    });
    prop::collection::vec(prop_oneof![1 => record, 3 => observed], 0..80)
}

fn gather(arrivals: &[Arrival]) -> Directory {
    let mut directory = Directory::new(NETWORK);
    for arrival in arrivals {
        match *arrival {
            Arrival::Record { number, seq, zone, state } => {
                let record = NodeRecord { state, ..node_record(number, seq, zone) };
                let signed = SignedRecord::sign(record, &node_key(number));
                directory.insert(signed.expect("a record"));
            }
            Arrival::Observed { observer, subject, seq, at } => {
                directory.insert_observation(observed(observer, subject, seq, at));
            }
        }
    }
    directory
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..Default::default() })]

    #[test]
    fn directories_that_heard_the_same_agree_in_any_order(
        (heard, shuffled) in arrivals()
            .prop_flat_map(|heard| (Just(heard.clone()), Just(heard).prop_shuffle())),
    ) {
        let (one, other) = (gather(&heard), gather(&shuffled));
        prop_assert_eq!(one.digests(), other.digests());
        prop_assert!(one.observations().eq(other.observations()));
        let (ring, others) = (one.ring(), other.ring());
        prop_assert_eq!(ring.members(), others.members());
        prop_assert!(one.members().map(|record| record.node)
            .eq(ring.members().iter().map(|member| member.id)));
        for number in 0..8 {
            let node = node_id(number);
            prop_assert_eq!(one.standing(&node), other.standing(&node));
            // What was found going over all of them is what each says for itself.
            prop_assert_eq!(one.verdict(&node).is_ok(), one.evicted(&node).is_some());
        }
    }

    #[test]
    fn what_is_kept_of_too_many_words_does_not_depend_on_their_way(
        // Who, when, and who heard it first: one, the other, both.
        words in prop::collection::vec((1u32..60, 0u64..6, 0u8..3), 0..120),
        zones in prop::collection::vec(0usize..4, 60),
        // Who moves, where to, and after how many words it is heard.
        moves in prop::collection::btree_map(1u32..60, (0usize..4, 0usize..120, 0usize..120), 0..10),
    ) {
        const ZONES: [&str; 4] = ["a", "b", "c", ""];
        let zones: Vec<&str> = zones.into_iter().map(|zone| ZONES[zone]).collect();
        let hear = |who: u8, moved: &dyn Fn(&(usize, usize, usize)) -> usize| {
            let mut directory = directory(&zones);
            let heard = words.iter().filter(|(.., by)| *by == who || *by == 2);
            for (at, (observer, time, _)) in heard.enumerate() {
                for (number, (zone, ..)) in moves.iter().filter(|(_, to)| moved(to) == at) {
                    directory.insert(signed_record(*number, 2, ZONES[*zone]));
                }
                directory.insert_observation(observed(*observer, 0, 1, AT + time * 20_000));
            }
            directory
        };
        let (mut one, mut other) = (hear(0, &|to| to.1), hear(1, &|to| to.2));
        let all = |directory: &Directory| -> (Vec<_>, Vec<_>) {
            (directory.iter().cloned().collect(), directory.observations().cloned().collect())
        };
        let (of_one, of_other) = (all(&one), all(&other));
        one.insert_all(of_other.0, of_other.1);
        other.insert_all(of_one.0, of_one.1);
        prop_assert_eq!(one.digests(), other.digests());
        prop_assert!(one.observations().eq(other.observations()));
        prop_assert_eq!(one.standing(&node_id(0)), other.standing(&node_id(0)));
        let (mut anew, held) = (Directory::new(NETWORK), all(&one));
        anew.insert_all(held.0, held.1);
        prop_assert_eq!(anew.digests(), one.digests(), "digests are those of what is held");
        // While nobody moves: as if all had come to one.
        if moves.is_empty() {
            let both = words.iter().map(|(observer, time, _)| (*observer, AT + time * 20_000));
            let all = observed_by(&zones, both);
            prop_assert_eq!(all.digests(), one.digests());
        }
    }

    #[test]
    fn a_single_liar_removes_nobody(
        zones in prop::collection::vec(prop_oneof![Just(""), Just("a"), Just("b")], 2..12),
        liar: prop::sample::Index,
    ) {
        let mut directory = directory(&zones);
        let liar = liar.index(zones.len());
        for (number, _) in (0u32..).zip(&zones).filter(|(number, _)| *number as usize != liar) {
            for at in [AT, AT + 5] {
                directory.insert_observation(observed(u32::try_from(liar).expect("small"), number, 1, at));
            }
        }
        prop_assert_eq!(directory.ring().len(), zones.len());
    }

    #[test]
    fn the_nodes_of_one_zone_of_several_remove_nobody(
        // The liars are zone a; two or more other zones, so that the others are of several.
        liars in 1usize..8,
        others in prop::collection::vec(prop_oneof![Just("b"), Just("c"), Just("")], 1..8),
        everyone_lies_twice: bool,
    ) {
        let mut zones = vec!["a"; liars];
        zones.extend(["b", "c"]);
        zones.extend(others);
        let mut directory = directory(&zones);
        let all = 0..u32::try_from(zones.len()).expect("few");
        let liars = 0..u32::try_from(liars).expect("few");
        for (liar, subject) in liars.flat_map(|liar| all.clone().map(move |of| (liar, of))) {
            if liar != subject {
                let again = u64::from(everyone_lies_twice && subject % 2 == 0);
                directory.insert_observation(observed(liar, subject, 1, AT + again));
            }
        }
        prop_assert_eq!(directory.ring().len(), zones.len());
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        kept in 0usize..=OBSERVATION_BYTES,
        tail in prop::collection::vec(any::<u8>(), 0..130),
    ) {
        let bytes = [&observed(2, 1, 5, AT).observation_bytes()[..kept], &tail].concat();
        if let Ok(observation) = Observation::decode(&bytes) {
            prop_assert_eq!(observation.encode(), &bytes[..]);
        }
        prop_assert!(directory(&["", ""]).admit_observation(&bytes, &[7; 64]).is_err());
    }

    #[test]
    fn an_altered_observation_is_refused(at: prop::sample::Index, flip in 1u8..) {
        let signed = observed(2, 1, 5, AT);
        let mut bytes = signed.observation_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(SignedObservation::verify(&bytes, signed.signature(), NETWORK).is_err());
    }
}
