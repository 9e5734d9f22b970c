//! Death by deed: a process ends not at a time but at the n-th thing of a kind that it does.
//!
//! Owns the fuse on each machine, and how a process dies there. The one idea: between "written" and
//! "said" lie microseconds, which a death at a random time nearly never meets; a death at the n-th sync
//! always does.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use copse_node::store::memory::{Faults, Step, Unsynced, Watch};

use super::{
    atlas::{Bounds, Fault, Number, Planned},
    disk::Fence,
    net::{Machine, Net},
    scene::Scene,
    store::Store,
};
use crate::random::Xoshiro;

/// Something that a process does, and that can be its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Writes the record of a shard.
    Write,
    /// Writes the record of a removal.
    Remove,
    /// Syncs what was written.
    Sync,
    /// Reads a shard.
    Read,
    /// Writes to the ledger.
    Apply,
    /// Reads the ledger: mostly while it opens.
    LookUp,
    /// Writes the file of peers.
    Remember,
    /// Sends a packet to another node.
    Send,
    /// Receives one.
    Receive,
    /// Sends some bytes to a client.
    Say,
    /// Receives some.
    Hear,
}

impl Deed {
    /// All of them.
    const ALL: [Self; 11] = [
        Self::Write,
        Self::Remove,
        Self::Sync,
        Self::Read,
        Self::Apply,
        Self::LookUp,
        Self::Remember,
        Self::Send,
        Self::Receive,
        Self::Say,
        Self::Hear,
    ];

    const fn of(step: Step) -> Self {
        match step {
            Step::Write => Self::Write,
            Step::Remove => Self::Remove,
            Step::Sync => Self::Sync,
            Step::Read => Self::Read,
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Write => "written shard",
            Self::Remove => "written removal",
            Self::Sync => "sync",
            Self::Read => "read shard",
            Self::Apply => "write to its ledger",
            Self::LookUp => "read of its ledger",
            Self::Remember => "write of its peers",
            Self::Send => "packet sent",
            Self::Receive => "packet received",
            Self::Say => "answer to a client",
            Self::Hear => "word of a client",
        }
    }
}

/// When a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    /// At which deed of this kind,
    pub deed: Deed,
    /// counted from the moment at which it begins, and again from each start of the process.
    pub nth: u32,
    /// When it is done; else right before.
    pub done: bool,
    /// Power goes: what was not synced is gone, and so are so many batches of the ledger.
    pub power: Option<usize>,
    /// So often in a row.
    pub times: u32,
    /// Until it is started again, each time.
    pub pause: Duration,
}

impl fmt::Display for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deed, nth, done, power, times, pause } = self;
        match power {
            Some(batches) => write!(f, "loses power, and {batches} batches of its ledger, ")?,
            None => f.write_str("is killed ")?,
        }
        let side = if *done { "after" } else { "before" };
        write!(f, "right {side} {} {nth}", deed.words())?;
        if *times > 1 {
            write!(f, ", {times} times in a row")?;
        }
        write!(f, ", and starts {:.1} s later", pause.as_secs_f64())
    }
}

/// What there is of a running process outside of itself: its machine. Clones are the same one.
#[derive(Clone)]
pub(super) struct Body {
    pub(super) machine: Machine,
    pub(super) fence: Fence,
    pub(super) net: Net,
    pub(super) disk: Arc<Store>,
    pub(super) scene: Scene,
    /// Whether a power cut may leave what was not synced.
    pub(super) is_real: bool,
    /// Whether what it knew of reads that failed dies with it.
    pub(super) forgets: bool,
}

impl Body {
    /// The process dies at this moment. With `power` the machine does: streams fall silent instead of
    /// closing, and of the disk remains what was synced.
    pub(super) fn die(&self, power: bool, rng: &mut Xoshiro) {
        self.fence.fall();
        self.net.unplug(self.machine, !power);
        let mut fate = || match rng.below(4) {
            _ if !power => Unsynced::Whole,
            _ if !self.is_real => Unsynced::Gone,
            0 | 1 => Unsynced::Whole,
            2 => Unsynced::Torn,
            _ => Unsynced::Gone,
        };
        for (shard, bytes) in self.disk.end(power, &mut fate) {
            self.scene.wrote(shard, bytes.into());
        }
        if self.forgets {
            self.disk.doubts().forget();
        }
    }
}

/// The fuse on a machine. Clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Fuse(Arc<Inner>);

impl fmt::Debug for Fuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fuse")
    }
}

#[derive(Default)]
struct Inner {
    /// Whether any deed counts: mostly none does.
    is_armed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    armed: Vec<Armed>,
    /// The process that runs.
    body: Option<Body>,
    is_opening: bool,
    /// The machine has died of it, and nobody has noticed yet; for how long it stays away.
    struck: Option<Duration>,
}

struct Armed {
    charge: Charge,
    /// Deeds to the next death, and deaths to come.
    deeds: u32,
    times: u32,
    rng: Xoshiro,
}

impl Fuse {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on deeds count.
    pub(super) fn arm(&self, charge: Charge, rng: Xoshiro) {
        let (deeds, times) = (charge.nth, charge.times);
        self.lock().armed.push(Armed { charge, deeds, times, rng });
        self.0.is_armed.store(true, Relaxed);
    }

    /// They do not any more for this.
    pub(super) fn disarm(&self, charge: &Charge) {
        let mut state = self.lock();
        if let Some(place) = state.armed.iter().position(|armed| armed.charge == *charge) {
            state.armed.remove(place);
        }
        self.0.is_armed.store(!state.armed.is_empty(), Relaxed);
    }

    /// A process begins to open what another left.
    pub(super) fn opens(&self, body: Body) {
        let mut state = self.lock();
        (state.body, state.is_opening) = (Some(body), true);
        state.armed.iter_mut().for_each(|armed| armed.deeds = armed.charge.nth);
    }

    /// It has opened it.
    pub(super) fn runs(&self) {
        self.lock().is_opening = false;
    }

    /// The process is gone, however it ended.
    pub(super) fn ends(&self) {
        self.lock().body = None;
    }

    /// Whether the process has died of it, once for each death: for how long it stays away.
    pub(super) fn struck(&self) -> Option<Duration> {
        self.lock().struck.take()
    }

    /// A process is about to do something, or has done it.
    pub(super) fn deed(&self, deed: Deed, is_done: bool) {
        if !self.0.is_armed.load(Relaxed) {
            return;
        }
        let mut state = self.lock();
        let counts = |charge: &Charge| charge.deed == deed && charge.done == is_done;
        for armed in state.armed.iter_mut().filter(|armed| counts(&armed.charge)) {
            armed.deeds = armed.deeds.saturating_sub(1);
        }
        if state.body.as_ref().is_none_or(|body| body.fence.has_fallen()) {
            return;
        }
        let is_over = |armed: &Armed| counts(&armed.charge) && armed.deeds == 0;
        let Some(place) = state.armed.iter().position(is_over) else { return };
        let Some(body) = state.body.take() else { return };
        let mut armed = state.armed.remove(place);
        let Charge { power, pause, .. } = armed.charge;
        state.struck = Some(pause);
        let is_opening = state.is_opening;
        // Dying wakes others, who must find the fuse as it is then.
        drop(state);
        let faults = body.disk.faults();
        body.disk.set_faults(Faults { forgotten_batches: power.unwrap_or(0), ..faults.clone() });
        body.die(power.is_some(), &mut armed.rng);
        body.disk.set_faults(faults);
        body.scene.struck(|struck| {
            struck.deaths += 1;
            struck.deaths_opening += u64::from(is_opening);
        });
        body.net.trace().note(format_args!("machine {}: {}", body.machine, armed.charge));
        armed.times -= 1;
        let mut state = self.lock();
        if armed.times > 0 {
            state.armed.push(armed);
        }
        self.0.is_armed.store(!state.armed.is_empty(), Relaxed);
    }
}

impl Watch for Fuse {
    fn step(&self, step: Step, is_done: bool) {
        self.deed(Deed::of(step), is_done);
    }
}

/// Part of the usual worlds with such deaths.
const DEATHS: f64 = 0.5;

/// How many, at most.
const DEATHS_MAX: usize = 6;

/// At which deed, at the latest.
const NTH_MAX: usize = 40;

/// Of them, those that come several times in a row, and how often then at most.
const IN_A_ROW: f64 = 0.3;
const TIMES_MAX: usize = 5;

/// Until the next start: as a supervisor does it, or as the owner.
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// Of all, those that strike a process which opens what another left: it is killed when they begin.
const OPENING: f64 = 0.3;

/// What a process does while it opens, and at which it dies then at the latest.
const OPENING_DEEDS: [Deed; 4] = [Deed::LookUp, Deed::LookUp, Deed::Apply, Deed::Remember];
const OPENING_NTH_MAX: usize = 8;

/// For how long it is dead before.
const DEAD_BEFORE: Duration = Duration::from_secs(2);

/// For how long deeds are counted, at least.
const COUNTED_MIN: Duration = Duration::from_secs(15);

/// Adds deaths by deed to a usual world. They take no shard that was acknowledged and end in time, so
/// nothing else bounds them.
pub(super) fn draw(bounds: &Bounds, plan: &mut Vec<Planned>, rng: &mut Xoshiro) {
    if !rng.chance(DEATHS) {
        return;
    }
    for _ in 0..1 + rng.below(DEATHS_MAX) {
        let host = Number::try_from(rng.below(bounds.hosts.into())).unwrap_or(0);
        let span = (bounds.until - bounds.from).saturating_sub(COUNTED_MIN);
        let at = bounds.from + span.mul_f64(rng.unit());
        let lasts = COUNTED_MIN + (bounds.until - at - COUNTED_MIN).mul_f64(rng.unit());
        let in_a_row = rng.chance(IN_A_ROW);
        // Small numbers more often: they always come to that.
        let most = 1 + rng.below(NTH_MAX);
        let (mut deed, mut nth) = (Deed::ALL[rng.below(Deed::ALL.len())], 1 + rng.below(most));
        if rng.chance(OPENING) {
            deed = OPENING_DEEDS[rng.below(OPENING_DEEDS.len())];
            nth = 1 + rng.below(OPENING_NTH_MAX);
            let lasts = DEAD_BEFORE.mul_f64(rng.unit());
            plan.push(Planned { at, lasts, fault: Fault::Kill { host } });
        }
        let charge = Charge {
            deed,
            nth: u32::try_from(nth).unwrap_or(1),
            done: rng.chance(0.5),
            power: rng.chance(0.5).then(|| rng.below(4)),
            times: if in_a_row {
                2 + u32::try_from(rng.below(TIMES_MAX - 1)).unwrap_or(0)
            } else {
                1
            },
            pause: PAUSE_MAX.mul_f64(rng.unit() * rng.unit() * rng.unit()),
        };
        plan.push(Planned { at, lasts, fault: Fault::KillAt { host, charge } });
    }
    plan.sort_by_key(|planned| planned.at);
}

/// Part of the usual worlds with power cuts between a write and its sync, how many at most, and at which
/// write at the latest.
const UNSYNCED: f64 = 0.4;
const UNSYNCED_MAX: usize = 3;
const UNSYNCED_NTH_MAX: usize = 8;

/// Adds power cuts between a write and its sync: those at random times nearly never fall in between.
pub(super) fn draw_unsynced(bounds: &Bounds, plan: &mut Vec<Planned>, rng: &mut Xoshiro) {
    if !rng.chance(UNSYNCED) {
        return;
    }
    for _ in 0..1 + rng.below(UNSYNCED_MAX) {
        let host = Number::try_from(rng.below(bounds.hosts.into())).unwrap_or(0);
        let span = (bounds.until - bounds.from).saturating_sub(COUNTED_MIN);
        let at = bounds.from + span.mul_f64(rng.unit());
        let lasts = COUNTED_MIN + (bounds.until - at - COUNTED_MIN).mul_f64(rng.unit());
        let (deed, done) = if rng.chance(0.5) { (Deed::Write, true) } else { (Deed::Sync, false) };
        let number =
            |below: usize, rng: &mut Xoshiro| 1 + u32::try_from(rng.below(below)).unwrap_or(0);
        let charge = Charge {
            deed,
            nth: number(UNSYNCED_NTH_MAX, rng),
            done,
            power: Some(rng.below(4)),
            times: number(TIMES_MAX, rng),
            pause: PAUSE_MAX.mul_f64(rng.unit() * rng.unit() * rng.unit()),
        };
        plan.push(Planned { at, lasts, fault: Fault::KillAt { host, charge } });
    }
    plan.sort_by_key(|planned| planned.at);
}

#[cfg(test)]
mod tests {
    use copse_core::units::ByteSize;
    use tokio::time::Instant;

    use super::{
        super::{
            net::Quality,
            trace::{Log, Trace},
        },
        *,
    };

    fn body() -> Body {
        let quality = Quality {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            reorders: false,
            rate: 1,
        };
        Body {
            machine: 1,
            fence: Fence::default(),
            net: Net::new(Xoshiro::new(1, "test"), quality, Trace::new(Log::Tail)),
            disk: Store::memory(ByteSize(1 << 20), Arc::new(|| 0), 0),
            scene: Scene::default(),
            is_real: true,
            forgets: true,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_dies_at_its_third_sync_and_once_more_after_the_next_start() {
        let began = Instant::now();
        let fuse = Fuse::default();
        let pause = Duration::from_secs(3);
        let charge =
            Charge { deed: Deed::Sync, nth: 3, done: true, power: Some(1), times: 2, pause };
        fuse.arm(charge, Xoshiro::new(1, "test"));
        for deaths in 1..=3 {
            let body = body();
            fuse.opens(body.clone());
            fuse.deed(Deed::Sync, true);
            fuse.runs();
            for _ in 0..9 {
                fuse.deed(Deed::Write, true);
                fuse.deed(Deed::Sync, false);
            }
            fuse.deed(Deed::Sync, true);
            assert!(!body.fence.has_fallen());
            fuse.deed(Deed::Sync, true);
            let is_last = deaths == 3;
            assert_eq!(body.fence.has_fallen(), !is_last);
            assert_eq!(fuse.struck(), (!is_last).then_some(pause));
            assert_eq!(fuse.struck(), None, "each death is told once");
            assert_eq!(body.scene.strikes().deaths, u64::from(!is_last));
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_charges_each_strikes_in_its_time() {
        let fuse = Fuse::default();
        let pause = Duration::ZERO;
        let at = |nth| Charge { deed: Deed::Sync, nth, done: true, power: None, times: 1, pause };
        fuse.arm(at(1), Xoshiro::new(1, "test"));
        fuse.arm(at(2), Xoshiro::new(2, "test"));
        let first = body();
        fuse.opens(first.clone());
        fuse.deed(Deed::Sync, true);
        assert!(first.fence.has_fallen());
        let second = body();
        fuse.opens(second.clone());
        fuse.deed(Deed::Sync, true);
        assert!(!second.fence.has_fallen(), "counted again from each start");
        fuse.deed(Deed::Sync, true);
        assert!(second.fence.has_fallen());
        let third = body();
        fuse.opens(third.clone());
        (0..9).for_each(|_| fuse.deed(Deed::Sync, true));
        assert!(!third.fence.has_fallen());
    }
}
