//! Kinds of worlds, and what goes wrong in each beyond the [`atlas`](super::atlas).
//!
//! Owns the worlds that ask one question: whether reads succeed while shards move, and whether an
//! outage moves what need not be moved. The one idea: a sharp question needs a world in which nothing
//! else happens, because any other fault would be an excuse.

use std::{fmt, time::Duration};

use super::{
    atlas::{self, BadDisk, Bounds, Fault, Lie, Number, Planned},
    spec::CALM_BEFORE,
    spread,
};
use crate::random::Xoshiro;

/// What a world is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Anything may happen.
    Usual,
    /// Clients read without a pause while machines join, leave and die.
    ReadStorm,
    /// Everything is whole; then some machines are away, and come back.
    Outage,
    /// Machines lose their disks, and when everything has grown back, others do.
    Waves,
    /// Nodes lie about what they hold, as long as they are trusted and longer, and others lose their
    /// disks.
    Lies,
    /// Everything is whole; then all machines of one zone lose their disks at once.
    Zones,
}

impl Kind {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usual => "usual",
            Self::ReadStorm => "read-storm",
            Self::Outage => "outage",
            Self::Waves => "waves",
            Self::Lies => "lies",
            Self::Zones => "zones",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Usual => "anything may happen",
            Self::ReadStorm => "a storm of reads",
            Self::Outage => "an outage",
            Self::Waves => "waves of losses",
            Self::Lies => "losses among liars",
            Self::Zones => "lost zones",
        })
    }
}

/// For how long clients put, before machines come and go in a storm of reads and they do nothing but
/// read.
pub const PUTS_BEFORE_STORM: Duration = Duration::from_secs(30);

/// For how long a storm lasts, at least.
pub const STORM_MIN: Duration = Duration::from_secs(120);

/// Part of the worlds that are a storm of reads, and that are an outage; and of all of them, that are
/// waves of losses instead.
const STORMS: f64 = 0.1;
const OUTAGES: f64 = 0.1;
const WAVES: f64 = 0.06;
const LIES: f64 = 0.06;
const ZONES: f64 = 0.05;

/// How many zones are lost in such a world, one after the other.
const ZONES_LOST: usize = 2;

/// Part of the usual worlds with lines that are worse than others, how many at most, and how much worse.
const BAD_LINES: f64 = 0.3;
const BAD_LINES_MAX: usize = 2;
const BAD_LINE_MS: usize = 250;
const BAD_LINE_PERMILLE: usize = 150;
/// Of them, those that are bad from the first fault to the last.
const ALWAYS_BAD: f64 = 0.4;

/// How long lies last before a disk is lost among them: others have mirrored what is claimed; and how
/// long afterwards, within which everything must have grown back.
const LIES_BEFORE: Duration = Duration::from_secs(60);
const LIES_AFTER: Duration = Duration::from_secs(900);

/// Between two waves in the plan; in the world the next comes when everything has grown back.
const BETWEEN_WAVES: Duration = Duration::from_secs(60);

/// Part of the waves in which half of what is planned cannot be written down.
const BOOKS_FAIL: f64 = 0.5;

/// What an empty disk takes for everything then.
const SLOW_MS: u64 = 3000;

/// How long a machine is away that lost its disk, at most.
const AWAY_MAX: Duration = Duration::from_secs(20);

/// Part of the usual worlds with machines that leave, with misdirected reads or writes, with the
/// rarer liars about shards, and with liars about others.
const LEAVES: f64 = 0.25;
const MISDIRECTED: f64 = 0.15;
const RARE_LIARS: f64 = 0.1;
const WITNESSES: f64 = 0.2;

/// Part of the usual worlds in which lines of joining machines and of clients fail; and of the joining
/// machines, those that something befalls.
const OTHER_LINES: f64 = 0.4;
/// Part of the usual worlds with a node that claims to have everything.
const CLAIMS: f64 = 0.15;
const JOINER_STRUCK: f64 = 0.4;
/// And those at whose coming half of the entries of all ledgers fail for a while.
const BOOKS_FAIL_AT_JOIN: f64 = 0.25;

/// The kind of a seed's world.
pub fn kind(rng: &mut Xoshiro) -> Kind {
    let point = rng.unit();
    if point < STORMS {
        Kind::ReadStorm
    } else if point < STORMS + OUTAGES {
        Kind::Outage
    } else {
        Kind::Usual
    }
}

/// Whether a seed's world is waves of losses, from a stream of its own.
pub fn is_waves(rng: &mut Xoshiro) -> bool {
    rng.chance(WAVES)
}

/// Whether a seed's world is one of lies, from a stream of its own.
pub fn is_lies(rng: &mut Xoshiro) -> bool {
    rng.chance(LIES)
}

/// Whether a seed's world is one of lost zones, from a stream of its own.
pub fn is_zones(rng: &mut Xoshiro) -> bool {
    rng.chance(ZONES)
}

/// A moment while faults last, and how long it is to their end, or less.
fn moment(bounds: &Bounds, rng: &mut Xoshiro) -> (Duration, Duration) {
    let at = bounds.from + (bounds.until - bounds.from).mul_f64(rng.unit());
    (at, (bounds.until - at).mul_f64(rng.unit()))
}

fn number(from: Number, until: Number, rng: &mut Xoshiro) -> Number {
    from + Number::try_from(rng.below(until.saturating_sub(from).into())).unwrap_or(0)
}

/// Adds to a usual world: machines that leave, disks that miss the place, more ways to lie. From a
/// stream of its own, so that the faults of a seed stay as they were.
pub fn draw_further(bounds: &Bounds, plan: &mut Vec<Planned>, rng: &mut Xoshiro) {
    let mut losers = atlas::losers_of(plan);
    if rng.chance(MISDIRECTED)
        && let Some(host) = atlas::loser(bounds, &mut losers, number(0, bounds.hosts, rng))
    {
        let (reads, one_in) = (rng.chance(0.5), 3 + rng.below(5) as u64);
        let (at, lasts) = moment(bounds, rng);
        plan.push(Planned { at, lasts, fault: Fault::Misdirect { host, reads, one_in } });
    }
    if rng.chance(RARE_LIARS)
        && let Some(host) = atlas::loser(bounds, &mut losers, number(0, bounds.hosts, rng))
    {
        let how = if rng.chance(0.5) { Lie::WrongProofs } else { Lie::OtherShards };
        let (at, lasts) = moment(bounds, rng);
        plan.push(Planned { at, lasts, fault: Fault::Lie { host, how } });
    }
    if rng.chance(WITNESSES) {
        let host = number(0, bounds.hosts, rng);
        let how = if rng.chance(0.5) { Lie::FalseWitness } else { Lie::StaleRecords };
        let (at, lasts) = moment(bounds, rng);
        plan.push(Planned { at, lasts, fault: Fault::Lie { host, how } });
    }
    if rng.chance(LEAVES) {
        // Who leaves is still there at the end if nobody can have what it holds; the first two are
        // those by which others join.
        let host = number(2, bounds.hosts, rng);
        let (at, _) = moment(bounds, rng);
        plan.push(Planned { at, lasts: bounds.until - at, fault: Fault::Leave { host } });
    }
    plan.sort_by_key(|planned| planned.at);
}

/// Adds to a usual world: a node that claims to have every shard. It counts as one that lost them.
pub fn draw_claims(bounds: &Bounds, plan: &mut Vec<Planned>, rng: &mut Xoshiro) {
    let mut losers = atlas::losers_of(plan);
    if rng.chance(CLAIMS)
        && let Some(host) = atlas::loser(bounds, &mut losers, number(0, bounds.hosts, rng))
    {
        let (at, lasts) = moment(bounds, rng);
        plan.push(Planned { at, lasts, fault: Fault::Lie { host, how: Lie::ClaimsAll } });
    }
    plan.sort_by_key(|planned| planned.at);
}

/// Adds to a usual world: lines of machines that join and of clients which fail, and what befalls
/// joined machines. The numbers of clients follow those of all machines; the first is an observer.
pub fn draw_others(
    bounds: &Bounds,
    joiners: Number,
    clients: Number,
    plan: &mut Vec<Planned>,
    rng: &mut Xoshiro,
) {
    let machines = bounds.hosts + joiners;
    let joins: Vec<(Number, Duration)> = plan
        .iter()
        .filter_map(|planned| match planned.fault {
            Fault::Join { host } => Some((host, planned.at)),
            _ => None,
        })
        .collect();
    let clients = machines + 1..machines + 1 + clients;
    let others: Vec<Number> = joins.iter().map(|(host, _)| *host).chain(clients).collect();
    if rng.chance(OTHER_LINES) {
        for _ in 0..1 + rng.below(3) {
            let other = others[rng.below(others.len())];
            let host = number(0, bounds.hosts, rng);
            let some = (0..bounds.hosts).filter(|_| rng.chance(0.5)).collect::<Vec<_>>();
            let fault = match rng.below(4) {
                0 => Fault::Flap { host: other },
                1 => Fault::OneWay { from: other, to: some },
                2 => Fault::OneWay { from: host, to: vec![other] },
                // It sees a part of the network, and nobody else does.
                _ => Fault::Partition { side: [some, vec![other]].concat() },
            };
            let (at, rest) = moment(bounds, rng);
            let lasts = rest.min(bounds.dead_after.mul_f64(0.7 * rng.unit()));
            plan.push(Planned { at, lasts, fault });
        }
    }
    let mut books = rng.clone();
    for &(joiner, joined) in &joins {
        if !books.chance(BOOKS_FAIL_AT_JOIN) {
            continue;
        }
        let mut strike = |at: Duration, lasts: Duration, fault| {
            // What ends when it begins ends first, so it would never end.
            if at < bounds.until {
                plan.push(Planned { at, lasts: lasts.min(bounds.until - at), fault });
            }
        };
        // What is to move to it is planned, and half of that not written down; much of it is still to be
        // done when those who planned it begin anew.
        strike(joined, 2 * AWAY_MAX, Fault::SlowDisk { host: joiner, delay_ms: SLOW_MS });
        for host in 0..bounds.hosts {
            strike(joined, AWAY_MAX, Fault::BadDisk { host, way: BadDisk::Books });
            let begins_anew = joined + AWAY_MAX.mul_f64(0.3 + books.unit());
            strike(begins_anew, AWAY_MAX / 10, Fault::Kill { host });
        }
    }
    for (host, joined) in joins {
        if !rng.chance(JOINER_STRUCK) {
            continue;
        }
        let at = joined + (bounds.until - joined).mul_f64(rng.unit() * rng.unit());
        let lasts = (bounds.until - at).min(bounds.dead_after.mul_f64(0.7 * rng.unit()));
        let fault = match rng.below(4) {
            0 => Fault::Kill { host },
            1 => Fault::PowerCut { host, forgotten_batches: rng.below(4) },
            2 => Fault::SlowDisk { host, delay_ms: 1 + rng.below(2000) as u64 },
            _ => Fault::FullDisk { host },
        };
        plan.push(Planned { at, lasts, fault });
    }
    plan.sort_by_key(|planned| planned.at);
}

/// A storm of reads: machines join and leave, one after the other, and some die for longer than
/// others have patience. No more are dead at one time than a chunk may lose when it is acknowledged.
pub fn draw_storm(bounds: &Bounds, joiners: Number, rng: &mut Xoshiro) -> Vec<Planned> {
    let mut plan = Vec::new();
    let span = bounds.until - bounds.from;
    for host in bounds.hosts..bounds.hosts + joiners {
        let at = bounds.from + span.mul_f64(0.6 * rng.unit());
        plan.push(Planned { at, lasts: Duration::ZERO, fault: Fault::Join { host } });
    }
    let mut left: Vec<Number> = (2..bounds.hosts).collect();
    for _ in 0..joiners.min(bounds.hosts.saturating_sub(3)) {
        let host = left.swap_remove(rng.below(left.len()));
        let at = bounds.from + span.mul_f64(0.2 + 0.6 * rng.unit());
        plan.push(Planned { at, lasts: bounds.until - at, fault: Fault::Leave { host } });
    }
    for _ in 0..rng.below(bounds.losses_max + 1) {
        if left.is_empty() {
            break;
        }
        let host = left.swap_remove(rng.below(left.len()));
        let at = bounds.from + span.mul_f64(0.8 * rng.unit());
        let lasts = bounds.dead_after.mul_f64(0.2 + 1.5 * rng.unit()).min(bounds.until - at);
        plan.push(Planned { at, lasts, fault: Fault::Kill { host } });
    }
    plan.sort_by_key(|planned| planned.at);
    plan
}

/// An outage: some machines are away for less than the patience with them, or half of the network is
/// cut off for longer than that.
pub fn draw_outage(bounds: &Bounds, freeze_max: Duration, rng: &mut Xoshiro) -> Vec<Planned> {
    let mut all: Vec<Number> = (0..bounds.hosts).collect();
    let mut some = |count: usize, rng: &mut Xoshiro| -> Vec<Number> {
        let mut some: Vec<Number> =
            (0..count.min(all.len())).map(|_| all.swap_remove(rng.below(all.len()))).collect();
        some.sort_unstable();
        some
    };
    let at = bounds.from;
    if rng.chance(0.5) {
        let side = some(usize::from(bounds.hosts / 2), rng);
        // Not for longer than evictions stay frozen.
        let lasts = bounds.dead_after.mul_f64(0.5) + (freeze_max / 2).mul_f64(rng.unit());
        return vec![Planned { at, lasts, fault: Fault::Partition { side } }];
    }
    let lasts = bounds.dead_after.mul_f64(0.1 + 0.6 * rng.unit());
    let away = some(1 + rng.below(bounds.losses_max.max(1)), rng);
    away.into_iter().map(|host| Planned { at, lasts, fault: Fault::Kill { host } }).collect()
}

/// Waves: as many machines as a chunk may lose when it is acknowledged lose their disks at once, then
/// others, three to five times. `spare` shards of a chunk may be missing; more machines than that are
/// struck in all, so that at last repaired shards must answer.
pub fn draw_waves(bounds: &Bounds, spare: usize, rng: &mut Xoshiro) -> Vec<Planned> {
    let losses = bounds.losses_max.max(1);
    let waves = (3 + rng.below(3)).max((spare + 1).div_ceil(losses));
    let mut plan = Vec::new();
    let mut all: Vec<Number> = Vec::new();
    for wave in 0..waves {
        let mut struck: Vec<Number> = Vec::new();
        while struck.len() < losses {
            if all.is_empty() {
                // Each was struck once: from the beginning.
                all = (0..bounds.hosts).filter(|host| !struck.contains(host)).collect();
            }
            struck.push(all.swap_remove(rng.below(all.len())));
        }
        let at = bounds.from + BETWEEN_WAVES * u32::try_from(wave).unwrap_or(0);
        let books_fail = rng.chance(BOOKS_FAIL);
        for host in 0..bounds.hosts {
            let (part, is_struck) = (AWAY_MAX.mul_f64(rng.unit()), struck.contains(&host));
            let mut strike = |at, lasts, fault| plan.push(Planned { at, lasts, fault });
            match (is_struck, books_fail) {
                (true, false) => strike(at, part, Fault::LoseDisk { host }),
                // Back soon, but so slow that much of what was planned is still to be done when
                // those who planned it begin anew.
                (true, true) => {
                    strike(at, part / 2, Fault::LoseDisk { host });
                    strike(at, 2 * AWAY_MAX, Fault::SlowDisk { host, delay_ms: SLOW_MS });
                }
                (false, true) => {
                    let way = BadDisk::Books;
                    strike(at, AWAY_MAX, Fault::BadDisk { host, way });
                    strike(at + AWAY_MAX / 2 + part, AWAY_MAX / 10, Fault::Kill { host });
                }
                (false, false) => {}
            }
        }
    }
    plan.sort_by_key(|planned| planned.at);
    plan
}

/// Lies: one node, or as many as a chunk may lose when it is acknowledged, begin to lie about what they
/// hold; then one that does not lie loses its disk.
pub fn draw_lies(bounds: &Bounds, rng: &mut Xoshiro) -> Vec<Planned> {
    let mut all: Vec<Number> = (0..bounds.hosts).collect();
    let mut plan = Vec::new();
    for _ in 0..1 + rng.below(bounds.losses_max.max(1)) {
        let host = all.swap_remove(rng.below(all.len()));
        let how = if rng.chance(0.5) { Lie::Shapes } else { Lie::Phantoms };
        let at = bounds.from + (LIES_BEFORE / 2).mul_f64(rng.unit());
        let lasts = bounds.from + LIES_BEFORE + LIES_AFTER - at;
        plan.push(Planned { at, lasts, fault: Fault::Lie { host, how } });
    }
    let host = all.swap_remove(rng.below(all.len()));
    let (at, lasts) = (bounds.from + LIES_BEFORE, AWAY_MAX.mul_f64(rng.unit()));
    plan.push(Planned { at, lasts, fault: Fault::LoseDisk { host } });
    plan.sort_by_key(|planned| planned.at);
    plan
}

/// Lost zones: all machines of one lose their disks at once; when all has grown back, those of another.
pub fn draw_zones(bounds: &Bounds, zones: Number, rng: &mut Xoshiro) -> Vec<Planned> {
    let mut all: Vec<Number> = (0..zones).collect();
    let mut plan = Vec::new();
    for wave in 0..ZONES_LOST.min(all.len()) {
        let zone = all.swap_remove(rng.below(all.len()));
        let at = bounds.from + BETWEEN_WAVES * u32::try_from(wave).unwrap_or(0);
        for host in (0..bounds.hosts).filter(|host| spread::zone_of(*host, zones) == zone) {
            let lasts = AWAY_MAX.mul_f64(rng.unit());
            plan.push(Planned { at, lasts, fault: Fault::LoseDisk { host } });
        }
    }
    plan
}

/// Adds to a usual world: lines of single machines, clients too, that are slow or lose much.
pub fn draw_lines(bounds: &Bounds, machines: Number, plan: &mut Vec<Planned>, rng: &mut Xoshiro) {
    if !rng.chance(BAD_LINES) {
        return;
    }
    for _ in 0..1 + rng.below(BAD_LINES_MAX) {
        let host = number(0, machines, rng);
        let (slow, lossy) = (rng.chance(0.7), rng.chance(0.7));
        let delay_ms = if slow { 1 + rng.below(BAD_LINE_MS) as u64 } else { 0 };
        let lost = u32::try_from(1 + rng.below(BAD_LINE_PERMILLE)).unwrap_or(0);
        let permille = if lossy || !slow { lost } else { 0 };
        let (mut at, mut lasts) = moment(bounds, rng);
        if rng.chance(ALWAYS_BAD) {
            (at, lasts) = (bounds.from, bounds.until - bounds.from);
        }
        plan.push(Planned { at, lasts, fault: Fault::BadLine { host, delay_ms, permille } });
    }
    plan.sort_by_key(|planned| planned.at);
}

/// Which wave a fault of such a world belongs to.
pub fn wave_of(planned: &Planned) -> u128 {
    planned.at.saturating_sub(CALM_BEFORE).as_nanos() / BETWEEN_WAVES.as_nanos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_of_all_kinds_stay_within_their_bounds() {
        let bounds = Bounds::of_nine();
        let (mut leaving, mut lost) = (0, 0);
        for seed in 0..500 {
            let rng = &mut Xoshiro::new(seed, "test");
            let mut usual = atlas::draw(&bounds, rng);
            atlas::draw_more(&bounds, 1, &mut usual, rng);
            draw_further(&bounds, &mut usual, rng);
            draw_others(&bounds, 1, 2, &mut usual, rng);
            let storm = draw_storm(&bounds, 3, rng);
            let outage = draw_outage(&bounds, Duration::from_secs(180), rng);
            let waves = draw_waves(&bounds, 3, rng);
            assert!(atlas::losers_of(&waves).len() > 3 && waves.len() >= 6);
            for wave in waves.chunk_by(|one, other| wave_of(one) == wave_of(other)) {
                assert_eq!(atlas::losers_of(wave).len(), 2);
            }
            assert!(atlas::losers_of(&usual).len() <= 2);
            assert!(!outage.is_empty());
            for plan in [&usual, &storm] {
                assert!(plan.is_sorted_by_key(|planned| planned.at));
                for planned in plan {
                    assert!(
                        planned.at >= bounds.from && planned.at + planned.lasts <= bounds.until
                    );
                }
                let is = |planned: &&Planned| matches!(planned.fault, Fault::Leave { .. });
                leaving += plan.iter().filter(is).count();
            }
            lost += atlas::losers_of(&usual).len();
        }
        assert!(leaving > 1500 && lost > 400, "{leaving} {lost}");
    }
}
