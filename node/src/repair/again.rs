//! Which arcs are looked at once more, though nothing that is known of them changed.
//!
//! Owns when. An arc is asked for when a job of it ended, done or needless, or lost its place: no
//! fingerprint shows that a node proved a shard and does not keep it. The one idea: it is looked at
//! after the next round of asking everybody, and an arc that is asked for again and again waits twice
//! as long each time, so that a node that is slow to list, or lies, costs little.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

/// Between an arc's first and second look, at least.
const WAIT_MIN: Duration = Duration::from_secs(10);

/// Between two looks at an arc, at most. After twice that it starts anew.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// The arcs; one entry for each of the 2^16 at most.
#[derive(Default)]
pub(super) struct Again {
    round: u64,
    arcs: BTreeMap<u16, Look>,
}

#[derive(Default)]
struct Look {
    /// The round in which it was asked for, if it was since it was looked at.
    asked: Option<u64>,
    /// When it was looked at last, and how long after that it is not.
    last: Option<(Instant, Duration)>,
}

impl Again {
    /// From now on everybody is asked what changed.
    pub(super) fn begin_round(&mut self) {
        self.round += 1;
    }

    /// Asks for a look at an arc after the next round of asking.
    pub(super) fn ask(&mut self, arc: u16) {
        self.arcs.entry(arc).or_default().asked = Some(self.round);
    }

    /// The arcs to look at now. Everybody has just been asked what changed.
    pub(super) fn take(&mut self, now: Instant) -> BTreeSet<u16> {
        let (mut due, round) = (BTreeSet::new(), self.round);
        self.arcs.retain(|&arc, look| {
            let since = look.last.map(|(at, wait)| (now.saturating_duration_since(at), wait));
            let waits = since.is_some_and(|(since, wait)| since < wait);
            if look.asked.is_some_and(|asked| asked < round) && !waits {
                let wait = match since {
                    Some((since, wait)) if since < 2 * WAIT_MAX => (2 * wait).min(WAIT_MAX),
                    _ => WAIT_MIN,
                };
                *look = Look { asked: None, last: Some((now, wait)) };
                due.insert(arc);
            }
            look.asked.is_some() || since.is_none_or(|(since, _)| since < 2 * WAIT_MAX)
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arc_is_looked_at_after_everybody_was_asked_again() {
        let (mut again, now) = (Again::default(), Instant::now());
        again.begin_round();
        again.ask(7);
        assert!(again.take(now).is_empty(), "who was asked before does not know it yet");
        again.begin_round();
        assert_eq!(again.take(now), BTreeSet::from([7]));
        again.begin_round();
        assert!(again.take(now).is_empty(), "once");
    }

    #[test]
    fn an_arc_that_is_asked_for_without_end_is_looked_at_every_ten_minutes_and_no_more() {
        let (mut again, start) = (Again::default(), Instant::now());
        let day = 24 * 3600;
        let mut looks = Vec::new();
        for second in (0..day).step_by(5) {
            again.ask(7);
            again.begin_round();
            if !again.take(start + Duration::from_secs(second)).is_empty() {
                looks.push(second);
            }
        }
        assert_eq!(looks[..4], [0, 10, 30, 70]);
        assert!((140..160).contains(&looks.len()), "{}", looks.len());
        // After a quiet time it is as new, and what is quiet takes no room.
        let later = start + Duration::from_secs(2 * day);
        again.begin_round();
        let _ = again.take(later);
        again.begin_round();
        let _ = again.take(later + 3 * WAIT_MAX);
        assert!(again.arcs.is_empty());
        again.ask(7);
        again.begin_round();
        assert_eq!(again.take(later + 3 * WAIT_MAX), BTreeSet::from([7]));
    }
}
