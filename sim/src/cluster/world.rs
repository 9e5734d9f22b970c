//! One world, from its first node to its last check.
//!
//! Owns the course of a run: nodes start and find each other, clients come, faults strike and end,
//! and then everything must grow back within a stated time.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    panic,
    sync::Once,
    thread,
    time::{Duration, Instant},
};

use copse_client::{network::Network, profile::Door};
use copse_core::{
    ids::{NetworkId, ShardId},
    liveness::Timeouts,
    units::ByteSize,
};
use copse_node::{
    config::Config,
    repair::{self, Rates},
};

use super::{
    atlas::{Fault, Planned},
    check::{self, Broken, Promise},
    client::{Client, Settings},
    entropy,
    host::{Common, Host, Size},
    kinds::{self, Kind},
    ledger::{Counts, Ledger, TreeCounts, WayCounts},
    memory::{self, Usage},
    net::{Machine, Net, address},
    room,
    scene::{Scene, Struck},
    spec::{CALM_BEFORE, Canary, Dice, Spec, timeouts},
    spread,
    strike::Liar,
    trace::{Log, Trace},
    watch::{Most, Steps, Storm},
};
use crate::random::Xoshiro;

/// Until all nodes must know each other at first, beside the time that their guards take to settle.
const MEET_MAX: Duration = Duration::from_secs(60);

/// When all faults have ended, everything must be as it should within this time: a scrub to find
/// rot, the longest freeze, the patience with a silent node, and rounds to plan and work.
const GROW_BACK_MAX: Duration = Duration::from_secs(1200);

/// After the last fault of a world with liars, when everything must be readable: by older dice nothing else
/// is asked for there.
const AFTER_LIES: Duration = Duration::from_secs(120);

/// Between the last thing that a client does and the last look at memory.
const SETTLE: Duration = Duration::from_secs(5);

/// How often it is looked whether everything has grown back.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// For how long clients of a world with an outage or with waves of losses put, at most.
const BUSY_BEFORE_LOSSES: Duration = Duration::from_secs(60);

/// Ports of clients.
const CLIENT_PORT: u16 = 50_000;

/// Capacity of each disk: more than any world puts.
const DISK_BYTES: u64 = 1 << 30;

/// How a world went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was broken, if anything.
    pub broken: Option<Broken>,
    /// The trace's hash: equal for equal runs.
    pub trace: String,
    /// Packets and pieces of streams that were sent.
    pub packets: u64,
    /// What clients did.
    pub counts: Counts,
    /// And with trees and checks.
    pub work: TreeCounts,
    /// And by the product's own programs.
    pub ways: WayCounts,
    /// Faults that struck.
    pub faults: usize,
    /// How often those did that strike by themselves.
    pub struck: Struck,
    /// Time in the world.
    pub simulated: Duration,
    /// After how much of it, since the last fault ended, all was as it should be.
    pub grew_back: Option<Duration>,
    /// The most that there was at one time.
    pub most: Most,
    /// Bytes of memory for each node before anything happened, and when all was calm again.
    pub left_bytes: Option<(u64, u64)>,
    /// Bytes that were written to disks, and those of them that were a shard's first copy.
    pub written: (u64, u64),
    /// Time outside.
    pub real: Duration,
    /// Of which a processor worked for it, where the system says so.
    pub worked: Option<Duration>,
    /// The last lines of what happened.
    pub tail: Vec<String>,
}

thread_local! {
    /// What panicked on this thread: a task's panic ends only the task.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn notice_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(info.to_string().replace('\n', ": ")));
            before(info);
        }));
    });
}

/// Runs a world on a thread of its own, which has the seed's randomness. Two runs are equal when
/// each is the first of its process: libraries count on from one to the next.
pub fn run(spec: &Spec, log: Log) -> Outcome {
    run_in_steps(spec, log, None)
}

/// The same, with a look at it from time to time. What is looked at does not change what happens.
pub fn run_in_steps(spec: &Spec, log: Log, steps: Option<Steps>) -> Outcome {
    let spec = spec.clone();
    let thread = thread::Builder::new().name(format!("seed {}", spec.seed)).spawn(move || {
        entropy::seed(spec.seed);
        notice_panics();
        let start = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without threads and sockets");
        let before = worked();
        let mut outcome = runtime.block_on(World::run(spec, log, steps));
        drop(runtime);
        outcome.real = start.elapsed();
        outcome.worked = worked().zip(before).map(|(after, before)| after.saturating_sub(before));
        outcome
    });
    thread.expect("a thread").join().expect("a world reports what is broken, it does not panic")
}

/// How long a processor has worked for this thread. Linux says so.
fn worked() -> Option<Duration> {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    told.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

/// How large a machine is, if not as usual.
fn size(spec: &Spec, machine: Machine) -> Option<Size> {
    spec.active_faults().find_map(|(_, planned)| match planned.fault {
        Fault::SmallDisk { host, offers_percent, room_kib } if host == machine => {
            let offers = DISK_BYTES / 100 * offers_percent;
            let room = room_kib.map_or(offers, |kib| kib << 10);
            Some(Size { offers: ByteSize(offers), room: ByteSize(room) })
        }
        _ => None,
    })
}

pub(super) struct World {
    pub(super) spec: Spec,
    pub(super) net: Net,
    pub(super) trace: Trace,
    pub(super) hosts: Vec<Host>,
    pub(super) ledger: Ledger,
    pub(super) settings: Settings,
    pub(super) scene: Scene,
    pub(super) rng: Xoshiro,
    /// How many faults of the line as a whole are on.
    pub(super) losses: Vec<u32>,
    pub(super) delays: Vec<u64>,
    /// Faults that are on.
    pub(super) active: BTreeSet<usize>,
    pub(super) liars: BTreeMap<usize, Liar>,
    /// Machines whose nodes died by themselves or did not start because of their disks, and from when on
    /// they are started again.
    pub(super) waiting: BTreeMap<usize, Duration>,
    /// The shards that were on each disk, sound, the last time, sorted; only of disks that keep their aim.
    pub(super) there: BTreeMap<Machine, Vec<ShardId>>,
    /// Shards of which a damaged copy could be taken for sound, and until when a drop that trusts in it may
    /// be under way.
    pub(super) believed: BTreeMap<ShardId, Duration>,
    /// Shards of disks that were lost, and until when a drop that trusts in them may be under way.
    pub(super) lost_lately: BTreeMap<ShardId, Duration>,
    pub(super) most: Most,
    /// Bytes of the heap before the world.
    empty_bytes: u64,
    /// Bytes of the heap for each node when all know each other, and when all is calm at the end.
    left_bytes: Option<(u64, u64)>,
    pub(super) steps: Option<Steps>,
}

impl World {
    async fn run(spec: Spec, log: Log, steps: Option<Steps>) -> Outcome {
        let empty_bytes = memory::heap_bytes();
        let trace = Trace::new(log);
        let _logging = trace.subscribe();
        let mut world = Self::new(spec, trace.clone(), empty_bytes);
        world.steps = steps;
        let mut grew_back = None;
        let result = world.course(&mut grew_back).await;
        let simulated = trace.now();
        if let Err(broken) = &result {
            trace.note(format_args!("BROKEN {broken}"));
        }
        let (hash, packets) = trace.sum();
        Outcome {
            broken: result.err(),
            trace: hash,
            packets,
            counts: world.ledger.counts(),
            work: world.ledger.work(),
            ways: world.ledger.ways(),
            faults: world.spec.faults.len() - world.spec.without.len(),
            struck: Struck { overtaken: world.net.overtaken(), ..world.scene.strikes() },
            simulated,
            grew_back,
            most: world.most,
            left_bytes: world.left_bytes,
            written: world.scene.written_bytes(),
            real: Duration::ZERO,
            worked: None,
            tail: trace.tail(),
        }
    }

    fn new(spec: Spec, trace: Trace, empty_bytes: u64) -> Self {
        let seed = spec.seed;
        let net = Net::new(Xoshiro::new(seed, "cluster net"), spec.quality, trace.clone());
        if spec.dice > Dice::Seventh && spec.hurried {
            net.make_uneven(seed);
        }
        let network = NetworkId::new(*blake3::hash(&seed.to_le_bytes()).as_bytes());
        let mut config = Config::new(network, ByteSize(DISK_BYTES));
        config.stop_grace = Duration::from_secs(1);
        if spec.hurried {
            config.membership = timeouts();
            config.repair.round_every = Duration::from_secs(5);
            config.repair.policy.patience = Duration::from_secs(60);
            config.repair.rates = Rates::FREE;
            config.repair.scrub_period = Duration::from_secs(300);
            if spec.dice > Dice::Fourth {
                config.repair.lost_after = Duration::from_secs(60);
            }
        }
        if spec.canary == Some(Canary::HastyDeaths) {
            config.membership.dead_after = Duration::from_secs(10);
            config.repair.policy.patience = Duration::ZERO;
        }
        let scene = Scene::default();
        let canary = match spec.canary {
            Some(Canary::BlindMoves) => Some(repair::Canary::BlindMoves),
            Some(Canary::BlindScrub) => Some(repair::Canary::BlindScrub),
            Some(Canary::StubbornHolders) => Some(repair::Canary::StubbornHolders),
            Some(Canary::PanickingHolders) => Some(repair::Canary::PanickingHolders),
            Some(_) | None => None,
        };
        let common = Common {
            config,
            start: tokio::time::Instant::now(),
            scene: scene.clone(),
            phases: repair::Phases::default().with_canary(canary).without_audits(!spec.audited),
            hoards: spec.canary == Some(Canary::Hoards),
            dice: spec.dice,
            geometry: spec.geometry,
        };
        let zone = |machine: Machine| match spec.zones {
            0 => String::new(),
            zones => format!("zone{}", machine % zones),
        };
        let mut hosts: Vec<Host> = (0..spec.hosts + spec.joiners)
            .map(|machine| {
                let rng = Xoshiro::new(seed, &format!("cluster host {machine}"));
                Host::new(&common, machine, &zone(machine), size(&spec, machine), rng)
            })
            .collect();
        let tokens: Vec<_> = hosts.iter().take(2).map(Host::token).collect();
        for host in &mut hosts {
            let own = host.id;
            host.set_contacts(tokens.iter().filter(|token| token.node != own).cloned().collect());
            if spec.canary == Some(Canary::LyingDisks) {
                host.fault(|faults| faults.lie_about_syncs = true);
            }
        }
        let door = |host: &Host| {
            let token = host.token();
            Door { node: token.node, addresses: token.grpc }
        };
        let settings = Settings {
            network,
            doors: hosts.iter().take(spec.hosts.into()).map(door).collect(),
            geometry: spec.geometry,
            largest_bytes: 128 << 10,
            storm_from: None,
            scene: scene.clone(),
            crashes: spec.dice > Dice::Second,
            trees: spec.dice > Dice::Fourth && spec.hurried,
            ways: spec.dice > Dice::Seventh && spec.hurried,
            canary: spec.canary,
            repairs: !matches!(spec.kind, Kind::Outage | Kind::ReadStorm),
        };
        Self {
            net,
            trace,
            hosts,
            ledger: Ledger::default(),
            settings,
            rng: Xoshiro::new(seed, "cluster world"),
            losses: Vec::new(),
            delays: Vec::new(),
            scene,
            active: BTreeSet::new(),
            liars: BTreeMap::new(),
            waiting: BTreeMap::new(),
            there: BTreeMap::new(),
            believed: BTreeMap::new(),
            lost_lately: BTreeMap::new(),
            most: Most::default(),
            empty_bytes,
            left_bytes: None,
            steps: None,
            spec,
        }
    }

    fn client(&self, number: u16) -> Client {
        // Behind the nodes' addresses.
        let name = address(self.spec.hosts + self.spec.joiners + number, CLIENT_PORT);
        let rng = Xoshiro::new(self.spec.seed, &format!("cluster client {number}"));
        Client::new(self.settings.clone(), &self.net, name, self.ledger.clone(), rng)
    }

    /// All of it, until something is broken.
    async fn course(&mut self, grew_back: &mut Option<Duration>) -> Result<(), Broken> {
        tokio::spawn(self.net.clone().deliver());
        for machine in 0..usize::from(self.spec.hosts) {
            self.start(machine).await?;
        }
        let observer = self.client(0);
        let network = self.joined(&observer, MEET_MAX).await?;
        let settle = if self.spec.hurried { timeouts() } else { Timeouts::default() }.settle_for();
        self.until_content(&network, MEET_MAX + settle).await?;
        self.trace.note(format_args!("all nodes know each other"));
        let quiet = self.usage(0).await;

        let mut later = Duration::ZERO;
        if !self.spec.hurried {
            later = self.trace.now().saturating_sub(CALM_BEFORE);
        }
        if self.spec.kind == Kind::ReadStorm {
            let from = self.trace.now() + kinds::PUTS_BEFORE_STORM;
            later = from.saturating_sub(CALM_BEFORE);
            self.settings.storm_from = Some(from);
        }
        let mut clients = tokio::task::JoinSet::new();
        for number in 1..=self.spec.clients {
            clients.spawn(self.client(number).live());
        }
        self.note_who_serves();
        let storm = match self.spec.kind {
            Kind::Outage | Kind::Waves | Kind::Lies | Kind::Zones => {
                let busy = self.spec.busy.min(BUSY_BEFORE_LOSSES);
                self.wait_until(self.trace.now() + busy).await?;
                clients.shutdown().await;
                self.until_grown_back(&network, self.trace.now(), false).await?;
                if matches!(self.spec.kind, Kind::Waves | Kind::Zones) {
                    self.waves(&network).await?;
                    None
                } else if self.spec.kind == Kind::Lies {
                    let later = self.trace.now();
                    self.trace.note(format_args!("whole: now the lies"));
                    self.strike(later, Duration::ZERO..Duration::MAX).await?;
                    let hosts: Vec<&Host> = self.hosts.iter().collect();
                    check::nothing_is_missing(&hosts, &self.ledger.chunks())?;
                    None
                } else {
                    let later = self.trace.now();
                    self.trace.note(format_args!("whole: now the outage"));
                    let storm = Storm::before(self);
                    self.strike(later, Duration::ZERO..Duration::MAX).await?;
                    Some(storm)
                }
            }
            Kind::Usual | Kind::ReadStorm => {
                self.strike(later, Duration::ZERO..Duration::MAX).await?;
                self.wait_until(CALM_BEFORE + self.spec.busy + later).await?;
                clients.shutdown().await;
                None
            }
        };
        self.is_intact()?;
        self.trace.note(format_args!("calm: {:?}", self.ledger.counts()));
        if self.settings.trees {
            self.trace.note(format_args!("calm: with trees {:?}", self.ledger.work()));
        }
        if self.settings.ways {
            self.trace.note(format_args!("calm: by other ways {:?}", self.ledger.ways()));
        }

        let calm = self.trace.now();
        // A new process: it knows nothing of what was.
        let mut observer = self.client(self.spec.clients + 1);
        let network = self.joined(&observer, GROW_BACK_MAX).await?;
        let liars =
            self.spec.active_faults().any(|(_, planned)| planned.fault.is_lie_about_shards());
        if liars && self.spec.dice <= Dice::Fifth {
            // Who lied is not trusted for long: what it should hold is elsewhere.
            self.wait_until(calm + AFTER_LIES).await?;
        } else {
            self.until_grown_back(&network, calm, liars).await?;
            *grew_back = Some(self.trace.now() - calm);
        }
        self.trace.note(format_args!("grown back"));
        if let Some(storm) = storm {
            storm.is_over(self)?;
        }
        for one in self.ledger.promised() {
            if let Err(error) = observer.read(&network, &one).await {
                self.is_intact()?;
                return Err(Broken::new(Promise::Durability, error));
            }
        }
        let trees = self.ledger.trees();
        for one in &trees {
            if let Err(unread) = observer.read_tree(&network, one).await {
                self.is_intact()?;
                return Err(unread.broken());
            }
        }
        if let Some(last) = trees.last().filter(|_| self.settings.ways)
            && let Err(unread) = observer.read_all_through(&network, last).await
        {
            self.is_intact()?;
            return Err(unread.broken());
        }
        if self.settings.trees && !liars {
            observer.all_is_whole(&network).await?;
        }
        let stay = self.hosts.iter().filter(|host| host.starts() > 0 && !host.is_gone()).count();
        let put = observer.put_at_last(&network, stay).await;
        put.map_err(|error| Broken::new(Promise::Service, format!("a put failed: {error}")))?;
        self.wait_until(self.trace.now() + SETTLE).await?;
        let left = self.usage(0).await;
        self.left_bytes = Some((quiet.machine_bytes(), left.machine_bytes()));
        left.is_let_go(quiet)?;
        self.is_intact()
    }

    /// One wave of losses after the other, each when everything has grown back.
    async fn waves(&mut self, network: &Network) -> Result<(), Broken> {
        let all: Vec<Planned> = self.spec.active_faults().map(|(_, fault)| fault.clone()).collect();
        for wave in all.chunk_by(|one, other| kinds::wave_of(one) == kinds::wave_of(other)) {
            let (first, last) = (wave[0].at, wave[wave.len() - 1].at);
            let now = self.trace.now();
            self.trace.note(format_args!("whole: now a wave"));
            self.strike(now.saturating_sub(first), first..last + Duration::from_nanos(1)).await?;
            self.until_grown_back(network, self.trace.now(), false).await?;
        }
        Ok(())
    }

    /// Starts a node; if its disk fails, later, as a supervisor does.
    pub(super) async fn start(&mut self, machine: usize) -> Result<(), Broken> {
        let host = &mut self.hosts[machine];
        match host.start(&self.net).await {
            Ok(()) => {
                self.waiting.remove(&machine);
                self.trace.note(format_args!("node {machine} starts"));
                Ok(())
            }
            Err(error) if let Some(pause) = host.died() => {
                self.waiting.insert(machine, self.trace.now() + pause);
                self.trace.note(format_args!("node {machine} dies while it starts: {error}"));
                Ok(())
            }
            Err(error) if host.excuses(&error) => {
                self.waiting.insert(machine, Duration::ZERO);
                self.trace.note(format_args!("node {machine} does not start yet: {error}"));
                Ok(())
            }
            Err(error) => Err(Broken::new(Promise::Start, format!("node {machine}: {error}"))),
        }
    }

    async fn joined(&self, client: &Client, patience: Duration) -> Result<Network, Broken> {
        let until = self.trace.now() + patience;
        loop {
            match client.join().await {
                Ok(network) => return Ok(network),
                Err(error) if self.trace.now() > until => {
                    return Err(Broken::new(Promise::Service, format!("nobody can join: {error}")));
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    async fn until_content(&mut self, network: &Network, patience: Duration) -> Result<(), Broken> {
        let until = self.trace.now() + patience;
        loop {
            let running: Vec<&Host> = self.hosts.iter().take(self.spec.hosts.into()).collect();
            match check::nodes_are_content(network, &running, &[], Some(0)).await {
                Ok(()) => return Ok(()),
                Err(broken) if self.trace.now() > until => return Err(broken),
                Err(_) => self.wait_until(self.trace.now() + LOOK_EVERY).await?,
            }
        }
    }

    /// Waits until all is as it should be. Where there were `liars`, each node trusts whom it will, so that
    /// nobody can say where a shard belongs: then it must be somewhere.
    async fn until_grown_back(
        &mut self,
        network: &Network,
        calm: Duration,
        liars: bool,
    ) -> Result<(), Broken> {
        let until = calm + GROW_BACK_MAX;
        let promised = self.ledger.chunks();
        // What is gone for good is no matter of patience.
        for one in &promised {
            let (left, needed) = (check::shards_left(&self.hosts, one).await, one.geometry.data());
            if left < needed {
                let chunk = one.id.short();
                let how = format!("{left} of {needed} shards of chunk {chunk} are on any disk");
                return Err(Broken::new(Promise::Durability, how));
            }
        }
        loop {
            // Those that were to join and did not are not there.
            let hosts: Vec<&Host> = self.hosts.iter().filter(|host| host.starts() > 0).collect();
            let hosts = &hosts[..];
            let all_is_well = async {
                check::all_have_left(hosts)?;
                if liars {
                    check::nodes_are_content(network, hosts, &promised, None).await?;
                    check::directories_agree(hosts)?;
                    return check::nothing_is_missing(hosts, &promised);
                }
                let ring = &network.view().ring;
                let crowded_out = room::crowded_out(ring, hosts).await;
                check::nodes_are_content(network, hosts, &promised, Some(crowded_out)).await?;
                check::directories_agree(hosts)?;
                let away = check::is_at_full_strength(ring, hosts, &promised).await?;
                let zones = self.spec.zones;
                spread::is_far_apart(hosts, zones, &promised, |chunk| away.contains(chunk))?;
                check::nothing_is_held_twice(hosts)
            };
            match all_is_well.await {
                Ok(()) => return Ok(()),
                Err(broken) if self.trace.now() > until => return Err(broken),
                Err(_) => self.wait_until(self.trace.now() + LOOK_EVERY).await?,
            }
        }
    }

    /// What of the heap is in use now, by the nodes that run and by so many clients.
    pub(super) async fn usage(&self, clients: u16) -> Usage {
        let mut disk_bytes = 0;
        for host in &self.hosts {
            disk_bytes += host.disk().stats().await.used_bytes;
        }
        let heap_bytes = memory::heap_bytes().saturating_sub(self.empty_bytes);
        let running = self.hosts.iter().filter(|host| host.is_running()).count();
        Usage { heap_bytes, disk_bytes, machines: running as u64 + u64::from(clients) }
    }

    pub(super) fn is_intact(&self) -> Result<(), Broken> {
        if let Some(what) = PANICS.with_borrow(|panics| panics.first().cloned()) {
            return Err(Broken::new(Promise::NoPanic, what));
        }
        if let Some(wrong) = self.ledger.wrong() {
            return Err(Broken::new(Promise::Integrity, wrong));
        }
        // Disks that lie about syncs are to be found out by what they lose.
        let lie = self.spec.canary == Some(Canary::LyingDisks);
        if let Some(early) = self.ledger.early().filter(|_| !lie) {
            return Err(Broken::new(Promise::Durability, early));
        }
        match self.ledger.refused().or_else(|| self.ledger.hung()) {
            Some(refused) => Err(Broken::new(Promise::Service, refused)),
            None => Ok(()),
        }
    }
}
