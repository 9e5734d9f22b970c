//! What the guards promise: a common cause is not taken for many deaths, and not for ever.

use super::*;
use crate::testing::node_id;

const HOUR: u64 = 3600;

/// Nodes of equal size: their zones and what is seen of them.
fn views<'a>(seen: &[(&'a str, Sight)]) -> Vec<View<'a>> {
    (0..)
        .zip(seen)
        .map(|(number, &(zone, sight))| View {
            node: node_id(number),
            zone,
            capacity_bytes: 1 << 40,
            sight,
        })
        .collect()
}

fn judge(views: &[View<'_>], now_seconds: u64) -> Guard {
    Guard::judge(views, Duration::from_secs(now_seconds), &Timeouts::default())
}

const HERE: Sight = Sight::Present;

const fn silent(since_seconds: u64) -> Sight {
    Sight::Silent { since: Duration::from_secs(since_seconds) }
}

#[track_caller]
fn check(seen: &[(&str, Sight)], now_seconds: u64, expected: &str) {
    assert_eq!(judge(&views(seen), now_seconds).to_string(), expected);
}

/// `count` nodes without a zone, of which the last ones are seen so.
fn last(count: usize, sights: &[Sight]) -> Vec<(&'static str, Sight)> {
    let mut seen = vec![("", HERE); count - sights.len()];
    seen.extend(sights.iter().map(|sight| ("", *sight)));
    seen
}

#[test]
fn a_few_deaths_are_believed() {
    check(&last(16, &[silent(0), silent(600)]), 5 * HOUR, "free");
    // In a small network one node is more than 15 %, but one alone has no common cause.
    check(&last(3, &[silent(0)]), 5 * HOUR, "free");
    // One after the other.
    let spaced = [silent(0), silent(2 * HOUR), silent(4 * HOUR), silent(6 * HOUR)];
    check(&last(16, &spaced), 10 * HOUR, "free");
    check(&[], 0, "free");
    check(&[("", HERE)], 0, "free");
}

#[test]
fn many_that_go_together_are_waited_for_but_not_for_ever() {
    let seen = last(16, &[silent(0), silent(600), silent(720)]);
    check(
        &seen,
        5 * HOUR,
        "evictions are frozen: 3 of 16 nodes (18.7 % of the weight) went silent within 12 min, the \
         limit is 15 %; until they answer, or for 19 h",
    );
    check(&seen, 24 * HOUR - 1, &judge(&views(&seen), 24 * HOUR - 1).to_string());
    assert!(!judge(&views(&seen), 24 * HOUR - 1).may_sign());
    assert!(judge(&views(&seen), 24 * HOUR - 1).may_plan());
    check(&seen, 24 * HOUR, "free");
    // One answers again.
    check(&last(16, &[silent(0), silent(600)]), 5 * HOUR, "free");
}

#[test]
fn a_zone_that_goes_as_a_whole_is_waited_for() {
    let mut seen = vec![("b", HERE); 16];
    seen.extend([("a", silent(0)), ("a", silent(60))]);
    check(
        &seen,
        5 * HOUR,
        "evictions are frozen: all 2 watched nodes of zone a are silent; until one answers, or for \
         19 h",
    );
    check(&seen, 24 * HOUR, "free");
    seen.push(("a", HERE));
    check(&seen, 5 * HOUR, "free");
    seen.pop();
    // One node is no outage of a zone, nor are two on different days.
    seen.pop();
    check(&seen, 5 * HOUR, "free");
    seen.push(("a", silent(3 * HOUR)));
    check(&seen, 5 * HOUR, "free");
}

#[test]
fn who_sees_less_than_half_is_cut_off_itself() {
    let cut = judge(&views(&last(16, &[silent(0); 9])), 5 * HOUR);
    assert!(!cut.may_sign() && !cut.may_plan());
    assert_eq!(
        cut.to_string(),
        "cut off: only 7 of 16 nodes (43.7 % of the weight) answer, less than half; nothing is \
         signed or repaired until more answer: look at this node's network"
    );
    // No end to it: a day later the same.
    assert!(!judge(&views(&last(16, &[silent(0); 9])), 99 * HOUR).may_sign());
    // Just started.
    let mut start = vec![("", Sight::Unheard); 15];
    start.push(("", HERE));
    check(
        &start,
        0,
        "cut off: only 1 of 16 nodes (6.2 % of the weight) answers, less than half; 15 have not been \
         heard since the start; nothing is signed or repaired until more answer: look at this \
         node's network",
    );
}

#[test]
fn exactly_half_never_evicts_the_other_half() {
    let seen = last(16, &[silent(0); 8]);
    check(
        &seen,
        99 * HOUR,
        "evictions are frozen: only 8 of 16 nodes (50.0 % of the weight) answer, more than half are \
         needed to evict the others; until more answer",
    );
    assert!(judge(&views(&seen), 99 * HOUR).may_plan());
}

#[test]
fn one_that_claims_to_be_huge_does_not_decide_who_is_cut_off() {
    let seen = last(16, &[silent(0)]);
    let mut views = views(&seen);
    views[15].capacity_bytes = u64::MAX;
    assert_eq!(judge(&views, 5 * HOUR), Guard::Free);
    // Neither do many that offer nothing.
    let seen = last(16, &[silent(0); 9]);
    let mut views = self::views(&seen);
    for view in &mut views[..7] {
        view.capacity_bytes = 0;
    }
    assert!(!judge(&views, 5 * HOUR).may_sign());
}

#[test]
fn a_guard_lets_go_only_when_all_had_the_time_to_be_heard() {
    let timeouts = Timeouts::default();
    let mut settling = Settling::default();
    let mut at = |seen: &[(&str, Sight)], now: u64| {
        let judged = judge(&views(seen), now);
        settling.settle(judged, Duration::from_secs(now), &timeouts).to_string()
    };
    let all = last(16, &[]);
    assert_eq!(at(&all, 0), "free");
    assert!(at(&last(16, &[silent(0); 9]), 1000).starts_with("cut off: only 7"));
    assert_eq!(
        at(&last(16, &[silent(0); 4]), 1030),
        "cut off: enough answer again; for another 4 min 30 s it looks who is there, and repairs nothing until then"
    );
    assert!(at(&last(16, &[silent(0); 3]), 1300).starts_with("evictions are frozen: 3 of 16"));
    assert_eq!(
        at(&all, 1301),
        "evictions are frozen: that many were silent a moment ago; for 4 min 59 s"
    );
    assert_eq!(at(&all, 1600), "free");
}

#[test]
fn who_has_just_started_says_that_it_waits_as_it_should_and_for_how_long() {
    let timeouts = Timeouts::default();
    let mut settling = Settling::default();
    let mut at = |seen: &[(&str, Sight)], now: u64| {
        let judged = judge(&views(seen), now);
        settling.settle(judged, Duration::from_secs(now), &timeouts).to_string()
    };
    assert!(at(&last(4, &[Sight::Unheard; 3]), 0).starts_with("cut off: only 1 of 4 nodes"));
    let said = "just started, as every node of a new network: it looks for another 4 min 58 s who is there";
    assert!(at(&last(4, &[]), 2).starts_with(said), "{}", at(&last(4, &[]), 2));
    assert_eq!(at(&last(4, &[]), 300), "free");
    assert!(at(&last(4, &[silent(0); 3]), 1000).starts_with("cut off: only 1"));
    assert!(at(&last(4, &[]), 1010).starts_with("cut off: enough answer again"));

    // The second node of a network hears half of it at first.
    let mut settling = Settling::default();
    let mut at = |seen: &[(&str, Sight)], now: u64| {
        let judged = judge(&views(seen), now);
        settling.settle(judged, Duration::from_secs(now), &timeouts).to_string()
    };
    assert!(at(&last(2, &[Sight::Unheard]), 0).starts_with("evictions are frozen: only 1 of 2"));
    assert!(at(&last(2, &[]), 2).starts_with(said));
    assert_eq!(at(&last(2, &[]), 300), "free");
    at(&last(2, &[silent(0)]), 1000);
    assert!(at(&last(2, &[]), 1002).starts_with("evictions are frozen: that many were silent"));
}
