//! What goes wrong in a world, and how much of it.
//!
//! Owns the kinds of faults, their probabilities, and the bounds within which everything must be
//! survived: a failure inside them is a bug, always. The one idea (swarm testing: Groce et al.,
//! "Swarm testing", 2012): each world has only some of the kinds, so that one does not hide another.
//!
//! The bounds: what takes shards for good (a lost disk, rot) strikes no more machines than a chunk
//! may lose at the moment it is acknowledged, w − k. All else ends before the world is calm.

use std::{fmt, time::Duration};

use super::killat::Charge;
use crate::random::Xoshiro;

/// A machine, by its number.
pub type Number = u16;

/// Something that goes wrong, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The process of a node dies and is started again later.
    Kill {
        /// Whose.
        host: Number,
    },
    /// The machine loses power: what was not synced is gone, and so are the newest entries of the
    /// ledger.
    PowerCut {
        /// Which.
        host: Number,
        /// Batches of the ledger that are gone.
        forgotten_batches: usize,
    },
    /// These machines lose power at one instant.
    Blackout {
        /// Which.
        side: Vec<Number>,
        /// Batches of each one's ledger that are gone.
        forgotten_batches: usize,
        /// It waits until something is acknowledged, if that is soon.
        at_acknowledgement: bool,
    },
    /// The process of a node dies at something that it does, and is started again.
    KillAt {
        /// Whose.
        host: Number,
        /// At what.
        charge: Charge,
    },
    /// The machine comes back with an empty disk.
    LoseDisk {
        /// Which.
        host: Number,
    },
    /// Bits of stored shards flip. Stays.
    Rot {
        /// Where.
        host: Number,
        /// One shard in so many.
        one_in: usize,
    },
    /// Some stored shards cannot be read (EIO).
    BadSectors {
        /// Where.
        host: Number,
        /// One shard in so many.
        one_in: usize,
        /// Until they are written anew; else they can be read again when this ends.
        stays: bool,
    },
    /// Nothing passes between these machines and all others.
    Partition {
        /// One side.
        side: Vec<Number>,
    },
    /// What this machine sends to these does not arrive; their words reach it.
    OneWay {
        /// Who is not heard.
        from: Number,
        /// By whom.
        to: Vec<Number>,
    },
    /// The line of a machine goes and comes, seconds each.
    Flap {
        /// Whose.
        host: Number,
    },
    /// All links lose packets.
    Loss {
        /// In a thousand.
        permille: u32,
    },
    /// All links are slow, and packets overtake each other.
    Slow {
        /// One way, in milliseconds.
        delay_ms: u64,
    },
    /// The line of one machine is worse than those of others, both ways.
    BadLine {
        /// Whose.
        host: Number,
        /// One way, on top of what links take, in milliseconds.
        delay_ms: u64,
        /// Packets that are lost, in a thousand.
        permille: u32,
    },
    /// The disk takes this long for everything.
    SlowDisk {
        /// Whose.
        host: Number,
        /// In milliseconds.
        delay_ms: u64,
    },
    /// The disk takes nothing new (ENOSPC).
    FullDisk {
        /// Whose.
        host: Number,
    },
    /// The machine is smaller than others from the beginning. Stays.
    SmallDisk {
        /// Which.
        host: Number,
        /// What it offers, in percent of what others do.
        offers_percent: u64,
        /// There is room for so much only, however much it offers; none: for all that comes.
        room_kib: Option<u64>,
    },
    /// The disk fails (EIO).
    BadDisk {
        /// Whose.
        host: Number,
        /// Reading, writing, or syncing.
        way: BadDisk,
    },
    /// A node that was not there before joins. It stays.
    Join {
        /// Which.
        host: Number,
    },
    /// The owner of a node has it leave. It stays away.
    Leave {
        /// Which.
        host: Number,
    },
    /// The disk writes to, or reads from, the place of another shard.
    Misdirect {
        /// Whose.
        host: Number,
        /// Reads; else writes.
        reads: bool,
        /// One in so many.
        one_in: u64,
    },
    /// The node lies.
    Lie {
        /// Which.
        host: Number,
        /// How.
        how: Lie,
    },
    /// The clock of the machine is wrong.
    Skew {
        /// Whose.
        host: Number,
        /// By so much.
        seconds: i64,
    },
}

impl Fault {
    /// Whether a node lies about shards.
    pub const fn is_lie_about_shards(&self) -> bool {
        matches!(self, Self::Lie { how, .. } if how.is_of_shards())
    }

    /// Whether two faults do the same to the same machine, be it more or less of it: then it goes on until
    /// both have ended.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::BadLine { host: one, .. }, Self::BadLine { host: other, .. })
            | (Self::SlowDisk { host: one, .. }, Self::SlowDisk { host: other, .. })
            | (Self::FullDisk { host: one }, Self::FullDisk { host: other })
            | (Self::Skew { host: one, .. }, Self::Skew { host: other, .. }) => one == other,
            (Self::BadDisk { host: one, way }, Self::BadDisk { host: other, way: same }) => {
                one == other && way == same
            }
            (
                Self::Misdirect { host: one, reads, .. },
                Self::Misdirect { host: other, reads: same, .. },
            ) => one == other && reads == same,
            (Self::Lie { host: one, how }, Self::Lie { host: other, how: same }) => {
                one == other && how.is_of_shards() && same.is_of_shards()
            }
            _ => false,
        }
    }

    /// The machine that loses shards by it, or lies about them.
    pub(super) const fn loser(&self) -> Option<Number> {
        match self {
            Self::LoseDisk { host }
            | Self::Rot { host, .. }
            | Self::BadSectors { host, .. }
            | Self::Misdirect { host, .. } => Some(*host),
            Self::Lie { host, how } if how.is_of_shards() => Some(*host),
            _ => None,
        }
    }
}

/// How a node lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// It serves wrong bytes.
    WrongBytes,
    /// It says that it has what it has not.
    Ghosts,
    /// It serves the right bytes with proofs that prove nothing.
    WrongProofs,
    /// It serves one shard for another, bytes, proof and all.
    OtherShards,
    /// It signs that others are silent, who are not, and passes on records that nobody signed.
    FalseWitness,
    /// It passes on what others said of themselves long ago.
    StaleRecords,
    /// Whoever asks it what it has of a chunk, it has all shards.
    ClaimsAll,
    /// It lists chunks that it has shards of with another geometry, and more shards of them than there
    /// are.
    Shapes,
    /// It lists shards of chunks that nobody ever put.
    Phantoms,
}

impl Lie {
    /// Whether it lies about shards: then it counts as one that lost them, and is not trusted for
    /// long.
    pub const fn is_of_shards(self) -> bool {
        !matches!(self, Self::FalseWitness | Self::StaleRecords)
    }
}

/// How a disk fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadDisk {
    /// Nothing can be read.
    Reads,
    /// Nothing can be written.
    Writes,
    /// What is written cannot be synced.
    Syncs,
    /// Half of the writes to the ledger and to the file of peers fail; shards are written.
    Books,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { host } => write!(f, "node {host} is killed"),
            Self::PowerCut { host, forgotten_batches } => {
                write!(
                    f,
                    "machine {host} loses power, and {forgotten_batches} batches of its ledger"
                )
            }
            Self::Blackout { side, forgotten_batches, at_acknowledgement } => {
                write!(f, "{side:?} lose power, and {forgotten_batches} batches of each ledger")?;
                f.write_str(if *at_acknowledgement {
                    ", right after an acknowledgement"
                } else {
                    ""
                })
            }
            Self::KillAt { host, charge } => write!(f, "node {host} {charge}"),
            Self::LoseDisk { host } => write!(f, "machine {host} loses its disk"),
            Self::Rot { host, one_in } => write!(f, "one shard in {one_in} of {host} rots"),
            Self::BadSectors { host, one_in, stays } => {
                let until = if *stays { " until it is written anew" } else { "" };
                write!(f, "one shard in {one_in} of {host} cannot be read{until}")
            }
            Self::Partition { side } => write!(f, "{side:?} are cut off from the rest"),
            Self::OneWay { from, to } => write!(f, "{to:?} do not hear {from}"),
            Self::Flap { host } => write!(f, "the line of {host} flaps"),
            Self::Loss { permille } => write!(f, "{permille} in 1000 packets are lost"),
            Self::Slow { delay_ms } => write!(f, "links take {delay_ms} ms and reorder"),
            Self::BadLine { host, delay_ms, permille } => {
                write!(
                    f,
                    "the line of {host} takes {delay_ms} ms more and loses {permille} in 1000"
                )
            }
            Self::SlowDisk { host, delay_ms } => {
                write!(f, "the disk of {host} takes {delay_ms} ms")
            }
            Self::FullDisk { host } => write!(f, "the disk of {host} is full"),
            Self::SmallDisk { host, offers_percent, room_kib } => {
                write!(f, "machine {host} offers {offers_percent} % of what others do")?;
                match room_kib {
                    Some(kib) => write!(f, ", and there is room for {kib} KiB"),
                    None => Ok(()),
                }
            }
            Self::BadDisk { host, way } => write!(f, "the disk of {host} fails: {way:?}"),
            Self::Join { host } => write!(f, "node {host} joins"),
            Self::Leave { host } => write!(f, "node {host} leaves"),
            Self::Misdirect { host, reads, one_in } => {
                let what = if *reads { "read" } else { "write" };
                write!(f, "one {what} in {one_in} of {host} goes to a wrong place")
            }
            Self::Lie { host, how } => write!(f, "node {host} lies: {how:?}"),
            Self::Skew { host, seconds } => write!(f, "the clock of {host} is off by {seconds} s"),
        }
    }
}

/// A fault with its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// When it begins, since the world's start.
    pub at: Duration,
    /// How long it lasts; what stays ends with this all the same.
    pub lasts: Duration,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "at {at:.1} s for {lasts:.1} s: {}", self.fault)
    }
}

/// What bounds the faults of a world.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Machines.
    pub hosts: Number,
    /// Machines that may lose shards for good.
    pub losses_max: usize,
    /// When faults begin.
    pub from: Duration,
    /// When all have ended.
    pub until: Duration,
    /// After which silence a node is given up: longer outages are rare.
    pub dead_after: Duration,
}

#[cfg(test)]
impl Bounds {
    /// Those of a world with nine machines, of which two may lose shards.
    pub(super) const fn of_nine() -> Self {
        Self {
            hosts: 9,
            losses_max: 2,
            from: Duration::from_secs(20),
            until: Duration::from_secs(300),
            dead_after: Duration::from_secs(60),
        }
    }
}

/// The kinds, for choosing among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Kill,
    PowerCut,
    LoseDisk,
    Rot,
    Partition,
    OneWay,
    Flap,
    Loss,
    Slow,
    SlowDisk,
    FullDisk,
    BadDisk,
    Skew,
}

/// All kinds, and how often each is drawn in a world that has it.
const SORTS: [(Sort, f64); 13] = [
    (Sort::Kill, 4.0),
    (Sort::PowerCut, 4.0),
    (Sort::LoseDisk, 1.0),
    (Sort::Rot, 1.0),
    (Sort::Partition, 2.0),
    (Sort::OneWay, 2.0),
    (Sort::Flap, 1.0),
    (Sort::Loss, 1.0),
    (Sort::Slow, 1.0),
    (Sort::SlowDisk, 1.0),
    (Sort::FullDisk, 1.0),
    (Sort::BadDisk, 2.0),
    (Sort::Skew, 1.0),
];

/// A kind is in a world with this probability.
const IN_WORLD: f64 = 0.5;

/// Part of the worlds with liars.
const LIARS: f64 = 0.2;

/// Between two faults, on average.
const BETWEEN: Duration = Duration::from_secs(12);

/// Of the outages, those that outlast the patience with silent nodes.
const LONG: f64 = 0.1;

/// The faults of a world, in order of their beginning.
pub fn draw(bounds: &Bounds, rng: &mut Xoshiro) -> Vec<Planned> {
    let sorts: Vec<(Sort, f64)> = SORTS.into_iter().filter(|_| rng.chance(IN_WORLD)).collect();
    let total: f64 = sorts.iter().map(|(_, weight)| weight).sum();
    let mut at = bounds.from;
    let mut losers: Vec<Number> = Vec::new();
    let mut plan = Vec::new();
    while !sorts.is_empty() {
        at += Duration::from_secs_f64(rng.exponential(BETWEEN.as_secs_f64()));
        if at >= bounds.until {
            break;
        }
        let mut point = rng.unit() * total;
        let (sort, _) = sorts
            .iter()
            .copied()
            .find(|(_, weight)| {
                point -= weight;
                point < 0.0
            })
            .unwrap_or(sorts[0]);
        let Some(fault) = fault(sort, bounds, &mut losers, rng) else { continue };
        let usual = if rng.chance(LONG) {
            bounds.dead_after.mul_f64(1.2 + rng.unit())
        } else {
            bounds.dead_after.mul_f64(0.02 + 0.7 * rng.unit() * rng.unit())
        };
        let lasts = usual.min(bounds.until - at);
        plan.push(Planned { at, lasts, fault });
    }
    plan
}

/// Nodes that join and nodes that lie, for some worlds: beside the others, so that these stay as
/// they are.
pub fn draw_more(bounds: &Bounds, joiners: Number, plan: &mut Vec<Planned>, rng: &mut Xoshiro) {
    let moment = |rng: &mut Xoshiro| {
        let at = bounds.from + (bounds.until - bounds.from).mul_f64(rng.unit());
        (at, (bounds.until - at).mul_f64(rng.unit()))
    };
    for host in bounds.hosts..bounds.hosts + joiners {
        let (at, lasts) = moment(rng);
        plan.push(Planned { at, lasts, fault: Fault::Join { host } });
    }
    let mut losers = losers_of(plan);
    if rng.chance(LIARS) {
        for _ in 0..1 + rng.below(2) {
            let host = Number::try_from(rng.below(bounds.hosts.into())).unwrap_or(0);
            let Some(host) = loser(bounds, &mut losers, host) else { continue };
            let how = if rng.chance(0.5) { Lie::WrongBytes } else { Lie::Ghosts };
            let (at, lasts) = moment(rng);
            plan.push(Planned { at, lasts, fault: Fault::Lie { host, how } });
        }
    }
    plan.sort_by_key(|planned| planned.at);
}

fn fault(
    sort: Sort,
    bounds: &Bounds,
    losers: &mut Vec<Number>,
    rng: &mut Xoshiro,
) -> Option<Fault> {
    let number = |rng: &mut Xoshiro| Number::try_from(rng.below(bounds.hosts.into())).unwrap_or(0);
    let host = number(rng);
    let fault = match sort {
        Sort::Kill => Fault::Kill { host },
        Sort::PowerCut => Fault::PowerCut { host, forgotten_batches: rng.below(4) },
        Sort::LoseDisk => Fault::LoseDisk { host: loser(bounds, losers, host)? },
        Sort::Rot => Fault::Rot { host: loser(bounds, losers, host)?, one_in: 1 + rng.below(4) },
        Sort::Partition => {
            let most = usize::from(bounds.hosts / 2);
            let count = 1 + rng.below(most.max(1));
            Fault::Partition { side: some(bounds.hosts, count, rng) }
        }
        Sort::OneWay => {
            let count = 1 + rng.below(usize::from(bounds.hosts) - 1);
            let mut to = some(bounds.hosts, count, rng);
            to.retain(|other| *other != host);
            Fault::OneWay { from: host, to }
        }
        Sort::Flap => Fault::Flap { host },
        Sort::Loss => Fault::Loss { permille: 1 + u32::try_from(rng.below(150)).unwrap_or(0) },
        Sort::Slow => Fault::Slow { delay_ms: 10 + rng.below(300) as u64 },
        Sort::SlowDisk => Fault::SlowDisk { host, delay_ms: 1 + rng.below(2000) as u64 },
        Sort::FullDisk => Fault::FullDisk { host },
        Sort::BadDisk => {
            let ways = [BadDisk::Reads, BadDisk::Writes, BadDisk::Syncs];
            Fault::BadDisk { host, way: ways[rng.below(3)] }
        }
        Sort::Skew => {
            let far = i64::try_from(rng.below(100_000)).unwrap_or(0);
            Fault::Skew { host, seconds: if rng.chance(0.5) { far } else { -far } }
        }
    };
    Some(fault)
}

/// Machines that lose shards in a plan, or lie about them.
pub(super) fn losers_of(plan: &[Planned]) -> Vec<Number> {
    let mut losers: Vec<Number> = plan.iter().filter_map(|planned| planned.fault.loser()).collect();
    losers.sort_unstable();
    losers.dedup();
    losers
}

/// A machine that may lose shards: this one, or one that did already.
pub(super) fn loser(bounds: &Bounds, losers: &mut Vec<Number>, host: Number) -> Option<Number> {
    if losers.len() < bounds.losses_max && !losers.contains(&host) {
        losers.push(host);
    }
    if losers.contains(&host) { Some(host) } else { losers.first().copied() }
}

/// So many different machines.
fn some(hosts: Number, count: usize, rng: &mut Xoshiro) -> Vec<Number> {
    let mut all: Vec<Number> = (0..hosts).collect();
    let mut chosen: Vec<Number> =
        (0..count.min(all.len())).map(|_| all.swap_remove(rng.below(all.len()))).collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_stay_within_their_bounds() {
        let bounds = Bounds::of_nine();
        let mut seen = 0;
        for seed in 0..500 {
            let plan = draw(&bounds, &mut Xoshiro::new(seed, "test"));
            assert!(plan.is_sorted_by_key(|planned| planned.at));
            let losers = losers_of(&plan);
            assert!(losers.len() <= 2, "{losers:?}");
            for planned in &plan {
                assert!(planned.at >= bounds.from && planned.at + planned.lasts <= bounds.until);
            }
            seen += plan.len();
        }
        assert!(seen > 5000, "{seen}");
    }
}
