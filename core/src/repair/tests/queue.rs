//! The queue: its order, its backoff, its rows, its bound.

use proptest::prelude::*;

use super::*;
use crate::{
    repair::{
        DISPLACED_ATTEMPTS_MIN, HOPELESS_ATTEMPTS_MIN, QUEUE_ENTRIES_MAX, Queue,
        SOLE_HOLDER_ENTRIES_MAX,
    },
    wire::WireError,
};

const T0: u64 = 1_800_000_000_000;

fn job(number: u64) -> Job {
    Job { chunk: chunk_id(number), kind: Kind::Rebuild }
}

fn urgency(margin: i16) -> Priority {
    Priority { margin, zone_spare: 3, since_unix_ms: 0 }
}

fn add(queue: &mut Queue, number: u64, margin: i16, now: u64) -> Row {
    match queue.offer(job(number), urgency(margin), None, now) {
        Offered::Added(row) => row,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_most_urgent_comes_first_then_the_oldest_and_nothing_twice() {
    let mut queue = Queue::new();
    add(&mut queue, 1, 5, T0);
    add(&mut queue, 2, 1, T0 + 2);
    add(&mut queue, 3, 1, T0 + 1);
    assert_eq!(queue.offer(job(3), urgency(1), None, T0 + 9), Offered::Known);
    let order: Vec<Job> =
        core::iter::from_fn(|| queue.next(T0 + 10)).take(9).map(|(job, _)| job).collect();
    assert_eq!(order, [job(3), job(2), job(1)]);
    assert_eq!((queue.next(T0 + 99), queue.len()), (None, 3));
    assert!(queue.succeeded(job(2)).is_some());
    assert_eq!(queue.succeeded(job(2)), None);
    assert_eq!(queue.oldest_age_ms(T0 + 100), Some(100));
    assert_eq!(queue.counts_by_margin(), BTreeMap::from([(1, 1), (5, 1)]));
}

#[test]
fn what_failed_waits_longer_each_time_and_not_more_than_an_hour() {
    let mut queue = Queue::new();
    add(&mut queue, 1, 3, T0);
    let mut now = T0;
    let mut last = 0;
    for attempt in 1..40 {
        assert!(queue.next(now).is_some());
        let Some(Row::Put { .. }) = queue.failed(job(1), now, "no\nanswer") else { panic!() };
        let entry = queue.get(job(1)).expect("an entry").clone();
        assert_eq!((entry.attempts, entry.last_error.as_str()), (attempt, "no answer"));
        let wait = entry.not_before_unix_ms - now;
        assert!((BACKOFF_MS_MIN..=BACKOFF_MS_MAX).contains(&wait), "{wait}");
        if attempt <= 11 {
            let longest = BACKOFF_MS_MIN << attempt;
            assert!((longest / 2..=longest).contains(&wait), "{attempt}: {wait}");
            assert!(wait > last / 2);
        } else {
            assert!(wait >= BACKOFF_MS_MAX / 2);
        }
        last = wait;
        assert_eq!(queue.next(now + wait - 1), None);
        assert_eq!(queue.next_at_unix_ms(), Some(now + wait));
        now += wait;
    }
    // Chunks that failed together come back apart.
    let mut times: Vec<u64> = (0..100)
        .map(|number| {
            let mut queue = Queue::new();
            add(&mut queue, number, 3, T0);
            assert!(queue.failed(job(number), T0, "").is_some());
            queue.get(job(number)).expect("an entry").not_before_unix_ms
        })
        .collect();
    times.sort_unstable();
    times.dedup();
    assert!(times.len() > 90);
    assert!(times[times.len() - 1] - times[0] > 800);
}

#[test]
fn a_chunk_that_became_thinner_is_tried_at_once() {
    let mut queue = Queue::new();
    add(&mut queue, 1, 3, T0);
    assert!(queue.failed(job(1), T0, "no answer").is_some());
    assert_eq!(queue.next(T0 + 1), None);
    assert!(matches!(queue.offer(job(1), urgency(2), None, T0 + 2), Offered::Changed(_)));
    let (_, entry) = queue.next(T0 + 2).expect("at once");
    assert_eq!((entry.attempts, entry.priority.since_unix_ms), (1, T0));
    // And while it is in work, it stays in work.
    assert!(matches!(queue.offer(job(1), urgency(0), None, T0 + 3), Offered::Changed(_)));
    assert_eq!(queue.next(T0 + 3), None);
    assert!(queue.failed(job(1), T0 + 4, "").is_some());
    assert_eq!(queue.get(job(1)).expect("an entry").priority.margin, 0);
}

#[test]
fn what_failed_and_is_planned_again_is_tried_at_once_and_then_later_than_before() {
    let mut queue = Queue::new();
    add(&mut queue, 1, 3, T0);
    for _ in 0..10 {
        assert!(queue.failed(job(1), T0, "no answer").is_some());
    }
    let put_off = queue.get(job(1)).expect("an entry").not_before_unix_ms;
    assert!(put_off > T0 + 100_000, "{put_off}");
    assert!(matches!(queue.offer(job(1), urgency(3), None, T0 + 5), Offered::Changed(_)));
    let (_, entry) = queue.next(T0 + 5).expect("at once");
    assert_eq!(entry.attempts, 10);
    assert!(queue.failed(job(1), T0 + 5, "no answer").is_some());
    assert!(queue.get(job(1)).expect("an entry").not_before_unix_ms > T0 + 100_000);
}

#[test]
fn what_was_refused_for_a_time_waits_no_longer_however_often_it_failed_before() {
    let mut queue = Queue::new();
    add(&mut queue, 1, 3, T0);
    for _ in 0..12 {
        assert!(queue.failed(job(1), T0, "no answer").is_some());
    }
    let not_before = |queue: &Queue| queue.get(job(1)).expect("an entry").not_before_unix_ms;
    assert!(not_before(&queue) > T0 + 1_000_000);
    assert!(queue.refused(job(1), T0, "stays for now", 90_000).is_some());
    assert_eq!(not_before(&queue), T0 + 90_000);
    assert!(queue.refused(job(1), T0, "stays for now", 0).is_some());
    assert_eq!(not_before(&queue), T0 + BACKOFF_MS_MIN);
    assert!(queue.refused(job(1), T0, "stays for years", u64::MAX).is_some());
    assert!(not_before(&queue) <= T0 + BACKOFF_MS_MAX);
}

#[test]
fn a_clock_that_is_set_back_puts_nothing_off_for_hours() {
    let mut queue = Queue::new();
    let ahead = T0 + 20 * BACKOFF_MS_MAX;
    add(&mut queue, 1, 3, ahead);
    add(&mut queue, 2, 3, ahead);
    assert!(queue.failed(job(1), ahead, "no answer").is_some());
    assert_eq!(queue.next(T0).map(|(job, _)| job), Some(job(1)));
    assert_eq!(queue.next(T0).map(|(job, _)| job), Some(job(2)));
}

#[test]
fn a_full_queue_refuses_visibly_and_keeps_places_for_emergencies() {
    let mut queue = Queue::new();
    let normal = (QUEUE_ENTRIES_MAX - EMERGENCY_RESERVE) as u64;
    for number in 0..normal {
        add(&mut queue, number, 3, T0);
    }
    assert_eq!(queue.offer(job(normal), urgency(3), None, T0), Offered::Deferred);
    assert_eq!(queue.offer(job(0), urgency(3), None, T0), Offered::Known);
    for number in normal..QUEUE_ENTRIES_MAX as u64 {
        add(&mut queue, number, EMERGENCY_MARGIN, T0);
    }
    let over = job(QUEUE_ENTRIES_MAX as u64);
    assert_eq!(queue.offer(over, urgency(3), None, T0), Offered::Deferred);
    assert_eq!((queue.deferred(), queue.len()), (2, QUEUE_ENTRIES_MAX));
    assert!(queue.succeeded(job(5)).is_some());
    add(&mut queue, QUEUE_ENTRIES_MAX as u64, 0, T0);
    let mut other = Queue::new();
    let Row::Put { key, value } = add(&mut other, 5, 0, T0) else { panic!() };
    let full = RowError::Full { limit: QUEUE_ENTRIES_MAX };
    assert_eq!(queue.load(&key, &value, T0), Err(full));
}

#[test]
fn what_is_offered_while_it_is_in_work_is_done_once_more() {
    let mut queue = Queue::new();
    add(&mut queue, 1, 3, T0);
    assert!(queue.next(T0).is_some());
    assert_eq!(queue.offer(job(1), urgency(3), None, T0 + 5), Offered::Known);
    let Some(Row::Put { .. }) = queue.succeeded(job(1)) else { panic!("it is not done") };
    let (_, entry) = queue.next(T0 + 5).expect("once more");
    assert_eq!((entry.attempts, entry.priority.since_unix_ms), (0, T0 + 5));
    // What fails and was offered meanwhile is tried again at once, then not.
    assert_eq!(queue.offer(job(1), urgency(3), None, T0 + 6), Offered::Known);
    assert!(queue.failed(job(1), T0 + 7, "no answer").is_some());
    assert!(queue.next(T0 + 7).is_some());
    assert!(queue.failed(job(1), T0 + 7, "no answer").is_some());
    assert!(queue.next(T0 + 7).is_none());
    assert_eq!(queue.succeeded(job(1)), Some(deleted(1)));
    assert!(queue.is_empty());
}

fn deleted(number: u64) -> Row {
    let Row::Put { key, .. } = add(&mut Queue::new(), number, 0, T0) else { panic!() };
    Row::Delete { key }
}

#[test]
fn what_is_less_urgent_gives_way_in_a_full_queue() {
    // A join in a network of 1+1: whole chunks have one shard to spare, and fill all places.
    let mut queue = Queue::new();
    let copy = |number: u64| Job { kind: Kind::Copy, ..job(number) };
    for number in 0..QUEUE_ENTRIES_MAX as u64 {
        let offered = queue.offer(copy(number), urgency(1), None, T0);
        assert!(matches!(offered, Offered::Added(_)));
    }
    let new = |number: u64| job(QUEUE_ENTRIES_MAX as u64 + number);
    assert_eq!(queue.offer(new(0), urgency(1), None, T0), Offered::Deferred, "no more urgent");
    for number in 0..100 {
        let Offered::Instead { displaced, .. } = queue.offer(new(number), urgency(0), None, T0 + 1)
        else {
            panic!("a chunk without a shard to spare waits for copies");
        };
        assert_eq!(displaced.kind, Kind::Copy);
        assert!(queue.get(new(number)).is_some() && queue.get(displaced).is_none());
        assert_eq!(queue.len(), QUEUE_ENTRIES_MAX);
    }
    // And it stays, though it fails, until there is no hope.
    for attempt in 1..=HOPELESS_ATTEMPTS_MIN {
        let offered = queue.offer(copy(QUEUE_ENTRIES_MAX as u64 + 1000), urgency(1), None, T0 + 1);
        assert_eq!(offered, Offered::Deferred, "{attempt}");
        assert!(queue.failed(new(0), T0 + 1, "no answer").is_some());
    }
    let Offered::Instead { displaced, .. } =
        queue.offer(copy(QUEUE_ENTRIES_MAX as u64 + 1000), urgency(1), None, T0 + 1)
    else {
        panic!("what is hopeless keeps its place");
    };
    assert_eq!(displaced, new(0));
}

#[test]
fn what_failed_most_often_makes_room_in_a_full_queue() {
    let mut queue = Queue::new();
    for number in 0..QUEUE_ENTRIES_MAX as u64 {
        add(&mut queue, number, 0, T0);
    }
    for _ in 0..DISPLACED_ATTEMPTS_MIN {
        assert!(queue.failed(job(7), T0, "not held").is_some());
        assert!(queue.failed(job(8), T0, "not held").is_some());
    }
    assert!(queue.failed(job(8), T0, "not held").is_some());
    assert!(queue.failed(job(9), T0, "restarts").is_some());
    let new = |number: u64| job(QUEUE_ENTRIES_MAX as u64 + number);
    assert_eq!(queue.offer(new(1), urgency(5), None, T0 + 1), Offered::Deferred, "less urgent");
    for (number, gone) in [(1, 8), (2, 7)] {
        match queue.offer(new(number), urgency(0), None, T0 + 1) {
            Offered::Instead { displaced, removed, .. } => {
                assert_eq!((displaced, removed), (job(gone), deleted(gone)));
            }
            other => panic!("{other:?}"),
        }
        assert!(queue.get(new(number)).is_some() && queue.get(job(gone)).is_none());
        assert_eq!(queue.len(), QUEUE_ENTRIES_MAX);
    }
    assert_eq!(
        queue.offer(new(3), urgency(0), None, T0 + 1),
        Offered::Deferred,
        "one failure is little"
    );
    // What is in work is not displaced.
    for _ in 0..DISPLACED_ATTEMPTS_MIN {
        assert!(queue.failed(job(9), T0, "not held").is_some());
    }
    while queue.next(T0 + BACKOFF_MS_MAX).is_some() {}
    assert_eq!(queue.offer(new(3), urgency(0), None, T0 + 1), Offered::Deferred);
}

#[test]
fn one_node_alone_fills_a_quarter_of_the_queue_at_most() {
    let (liar, other) = (NodeId::new([1; 32]), NodeId::new([2; 32]));
    let mut queue = Queue::new();
    let mut offer =
        |number: u64, node: Option<NodeId>| match queue.offer(job(number), urgency(0), node, T0) {
            Offered::Added(_) | Offered::Known => true,
            Offered::Deferred => false,
            other => panic!("{other:?}"),
        };
    let most = SOLE_HOLDER_ENTRIES_MAX as u64;
    assert!((0..most).all(|number| offer(number, Some(liar))));
    assert!(!offer(most, Some(liar)));
    assert!(offer(most, Some(other)) && offer(most + 1, None));
    // That another node holds some of it, too, frees a place; and so does what is done.
    assert!(offer(0, None) && offer(most + 2, Some(liar)));
    assert!(!offer(most + 3, Some(liar)));
    assert!(queue.succeeded(job(5)).is_some());
    assert!(matches!(queue.offer(job(5), urgency(0), Some(liar), T0), Offered::Added(_)));
    assert_eq!(queue.offer(job(most + 3), urgency(0), Some(liar), T0), Offered::Deferred);
}

#[test]
fn the_bytes_of_a_row() {
    let mut queue = Queue::new();
    let job = Job { chunk: ChunkId::new([0x11; 32]), kind: Kind::Copy };
    let priority = Priority { margin: -2, zone_spare: 5, since_unix_ms: 0 };
    assert!(matches!(queue.offer(job, priority, None, 0x0102_0304_0506), Offered::Added(_)));
    let row = queue.failed(job, 0x0102_0304_0506, "no room").expect("an entry");
    let Row::Put { key, value } = row else { panic!("{row:?}") };
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    assert_eq!(hex(&key), format!("{}02", "11".repeat(32)));
    assert_eq!(
        hex(&value),
        concat!(
            "43505251",         // CPRQ
            "01",               // version
            "0605040302010000", // since
            "510b040302010000", // not before: 1.6 s later
            "01000000",         // attempts
            "03",               // margin -2
            "0a",               // zone spare 5
            "07",               // length of the text
            "6e6f20726f6f6d",   // "no room"
        )
    );
    assert_eq!(queue.succeeded(job), Some(Row::Delete { key }));
}

#[test]
fn a_long_error_is_cut_between_letters() {
    let mut queue = Queue::new();
    add(&mut queue, 1, 3, T0);
    let row = queue.failed(job(1), T0, &"ä€".repeat(100)).expect("an entry");
    let Row::Put { key, value } = row else { panic!("{row:?}") };
    let text = &queue.get(job(1)).expect("an entry").last_error;
    assert_eq!(text.len(), 200);
    assert!(text.ends_with("ä€"));
    let mut loaded = Queue::new();
    assert_eq!(loaded.load(&key, &value, T0), Ok(job(1)));
    assert_eq!(loaded.get(job(1)), queue.get(job(1)));
}

#[test]
fn a_clock_that_was_set_back_before_a_restart_delays_nothing() {
    let mut queue = Queue::new();
    let Row::Put { key, value } = add(&mut queue, 1, 3, T0) else { panic!() };
    let earlier = T0 - 1_000_000_000;
    let mut loaded = Queue::new();
    assert_eq!(loaded.load(&key, &value, earlier), Ok(job(1)));
    assert_eq!(loaded.oldest_age_ms(earlier), Some(0));
    assert!(loaded.next(earlier).is_some());
    // What failed waits no longer than after its failure: 2 s the first time.
    let Some(Row::Put { key, value }) = queue.failed(job(1), T0, "no answer") else { panic!() };
    let mut loaded = Queue::new();
    assert_eq!(loaded.load(&key, &value, earlier), Ok(job(1)));
    assert_eq!(loaded.next(earlier), None);
    assert!(loaded.next(earlier + 2_000).is_some());
}

#[test]
fn impossible_rows_are_refused() {
    let mut queue = Queue::new();
    let Row::Put { key, value } = add(&mut queue, 1, 3, T0) else { panic!() };
    let mut refused = |key: &[u8], value: &[u8]| match queue.load(key, value, T0) {
        Err(RowError::Format(error)) => error,
        other => panic!("{other:?}"),
    };
    let changed = |at: usize, byte: u8| {
        let mut value = value.clone();
        value[at] = byte;
        value
    };
    let mut no_kind = key.clone();
    no_kind[32] = 4;
    assert_eq!(refused(&no_kind, &value), WireError::Invalid("the kind of a repair"));
    assert_eq!(refused(&key[..20], &value), WireError::Truncated { offset: 0, needed: 12 });
    assert_eq!(refused(&key, &changed(0, 0)), WireError::WrongMagic("a row of the repair queue"));
    let of_version =
        WireError::UnknownVersion { what: "a row of the repair queue", got: 2, known: 1 };
    assert_eq!(refused(&key, &changed(4, 2)), of_version);
    assert_eq!(refused(&key, &[&value[..], &[0]].concat()), WireError::Trailing(1));
    let margin = [&value[..25], &[0xff, 0x7f], &value[26..]].concat();
    assert_eq!(refused(&key, &margin), WireError::Invalid("the margin of a repair"));
}

/// What somebody does with the queue.
#[derive(Clone, Debug)]
enum Step {
    Offer(u64, u8, i16),
    Next,
    Succeed(u8),
    Fail(u8),
    Pass(u32),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u64..12, 1u8..4, -3i16..7).prop_map(|(chunk, kind, margin)| {
            Step::Offer(chunk, kind, margin)
        }),
        4 => Just(Step::Next),
        2 => any::<u8>().prop_map(Step::Succeed),
        2 => any::<u8>().prop_map(Step::Fail),
        3 => (0u32..10_000).prop_map(Step::Pass),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_are_read_or_refused(
        key in prop::collection::vec(any::<u8>(), 0..40),
        mut value in prop::collection::vec(any::<u8>(), 0..60),
        genuine: bool,
    ) {
        if genuine {
            value.splice(0..0, *b"CPRQ\x01");
        }
        let mut queue = Queue::new();
        let _ = queue.load(&key, &value, T0);
        // With a good key, what is read is written back alike but for times that cannot be.
        let Row::Put { key, .. } = add(&mut Queue::new(), 1, 3, T0) else { panic!() };
        if queue.load(&key, &value, u64::MAX).is_ok() {
            let mut again = Queue::new();
            let entry = queue.get(job(1)).expect("loaded").clone();
            prop_assert!(again.load(&key, &value, u64::MAX).is_ok());
            prop_assert_eq!(again.get(job(1)), Some(&entry));
        }
    }

    /// The rows that were written are the queue at every moment, and neither a restart nor work that
    /// was begun before an offer loses that offer.
    #[test]
    fn what_was_written_is_what_is_to_be_done(steps in steps()) {
        let mut queue = Queue::new();
        let mut table: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut in_work: Vec<Job> = Vec::new();
        // Offered, and not begun since.
        let mut owed: BTreeSet<Job> = BTreeSet::new();
        let mut now = T0;
        for step in steps {
            let mut rows = Vec::new();
            match step {
                Step::Offer(chunk, kind, margin) => {
                    let kind = Kind::from_code(kind).expect("1..4");
                    let job = Job { chunk: chunk_id(chunk), kind };
                    owed.insert(job);
                    match queue.offer(job, urgency(margin), None, now) {
                        Offered::Added(row) | Offered::Changed(row) => rows.push(row),
                        Offered::Known => {}
                        other => panic!("there is room: {other:?}"),
                    }
                }
                Step::Next => {
                    if let Some((job, entry)) = queue.next(now) {
                        prop_assert!(entry.not_before_unix_ms <= now);
                        prop_assert!(!in_work.contains(&job), "handed out twice");
                        // None that is due and not in work is more urgent.
                        let better = queue.iter().find(|(other, candidate)| {
                            *other != job
                                && !in_work.contains(other)
                                && candidate.not_before_unix_ms <= now
                                && candidate.priority < entry.priority
                        });
                        prop_assert_eq!(better, None);
                        in_work.push(job);
                        owed.remove(&job);
                    }
                }
                Step::Succeed(at) | Step::Fail(at) if !in_work.is_empty() => {
                    let job = in_work.remove(usize::from(at) % in_work.len());
                    rows.extend(match step {
                        Step::Succeed(_) => queue.succeeded(job),
                        _ => queue.failed(job, now, "why"),
                    });
                }
                Step::Succeed(_) | Step::Fail(_) => {}
                Step::Pass(ms) => now += u64::from(ms),
                Step::Restart => {
                    queue = Queue::new();
                    in_work.clear();
                    for (key, value) in &table {
                        prop_assert!(queue.load(key, value, now).is_ok());
                    }
                }
            }
            for row in rows {
                match row {
                    Row::Put { key, value } => drop(table.insert(key, value)),
                    Row::Delete { key } => prop_assert!(table.remove(&key).is_some()),
                }
            }
            prop_assert!(owed.iter().all(|job| queue.get(*job).is_some()), "an offer is lost");
            let mut from_table = Queue::new();
            for (key, value) in &table {
                prop_assert!(from_table.load(key, value, now).is_ok());
            }
            prop_assert!(from_table.iter().eq(queue.iter()));
        }
    }
}
