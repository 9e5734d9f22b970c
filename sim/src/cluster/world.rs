//! One world, from its first node to its last check.
//!
//! Owns the course of a run: nodes start and find each other, clients come, faults strike and end,
//! and then everything must grow back within a stated time.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    panic,
    sync::Once,
    thread,
    time::{Duration, Instant},
};

use copse_client::{network::Network, profile::Door};
use copse_core::ids::NetworkId;
use copse_node::{
    byte_size::ByteSize,
    config::Config,
    repair::{Rates, Settings as RepairSettings},
};

use super::{
    atlas::{BadDisk, Fault},
    check::{self, Broken, Promise},
    client::{Client, Counts, Ledger, Settings},
    entropy,
    host::{Common, Host},
    net::{Machine, Net, Quality, address},
    spec::{Spec, timeouts},
    trace::{Log, Trace},
};
use crate::random::Xoshiro;

/// Until all nodes must know each other at first.
const MEET_MAX: Duration = Duration::from_secs(60);

/// When all faults have ended, everything must be as it should within this time: a scrub to find
/// rot, the longest freeze, the patience with a silent node, and rounds to plan and work.
const GROW_BACK_MAX: Duration = Duration::from_secs(1200);

/// After the last fault of a world with liars, when everything must be readable.
const AFTER_LIES: Duration = Duration::from_secs(120);

/// How often it is looked whether everything has grown back.
const LOOK_EVERY: Duration = Duration::from_secs(5);

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
    /// Faults that struck.
    pub faults: usize,
    /// Time in the world.
    pub simulated: Duration,
    /// After how much of it, since the last fault ended, all was as it should be.
    pub grew_back: Option<Duration>,
    /// Time outside.
    pub real: Duration,
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
        let mut outcome = runtime.block_on(World::run(spec, log));
        drop(runtime);
        outcome.real = start.elapsed();
        outcome
    });
    thread.expect("a thread").join().expect("a world reports what is broken, it does not panic")
}

struct World {
    spec: Spec,
    net: Net,
    trace: Trace,
    hosts: Vec<Host>,
    ledger: Ledger,
    settings: Settings,
    rng: Xoshiro,
    /// How many faults of the line as a whole are on.
    losses: Vec<u32>,
    delays: Vec<u64>,
}

impl World {
    async fn run(spec: Spec, log: Log) -> Outcome {
        let trace = Trace::new(log);
        let _logging = trace.subscribe();
        let mut world = Self::new(spec, trace.clone());
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
            faults: world.spec.faults.len(),
            simulated,
            grew_back,
            real: Duration::ZERO,
            tail: trace.tail(),
        }
    }

    fn new(spec: Spec, trace: Trace) -> Self {
        let seed = spec.seed;
        let net = Net::new(Xoshiro::new(seed, "cluster net"), spec.quality, trace.clone());
        let network = NetworkId::new(*blake3::hash(&seed.to_le_bytes()).as_bytes());
        let config = Config {
            membership: timeouts(),
            repair: RepairSettings {
                round_every: Duration::from_secs(5),
                policy: copse_core::repair::Policy {
                    patience: Duration::from_secs(60),
                    ..Default::default()
                },
                rates: Rates::FREE,
                scrub_period: Duration::from_secs(300),
                ..Config::new(network, ByteSize(DISK_BYTES)).repair
            },
            stop_grace: Duration::from_secs(1),
            ..Config::new(network, ByteSize(DISK_BYTES))
        };
        let common = Common { config, start: tokio::time::Instant::now() };
        let zone = |machine: Machine| match spec.zones {
            0 => String::new(),
            zones => format!("zone{}", machine % zones),
        };
        let mut hosts: Vec<Host> = (0..spec.hosts + spec.joiners)
            .map(|machine| {
                let rng = Xoshiro::new(seed, &format!("cluster host {machine}"));
                Host::new(&common, machine, &zone(machine), rng)
            })
            .collect();
        let tokens: Vec<_> = hosts.iter().take(2).map(Host::token).collect();
        for host in &mut hosts {
            let own = host.id;
            host.set_contacts(tokens.iter().filter(|token| token.node != own).cloned().collect());
            if spec.lying_disks {
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
        self.until_content(&network, MEET_MAX).await?;
        self.trace.note(format_args!("all nodes know each other"));

        let mut clients = tokio::task::JoinSet::new();
        for number in 1..=self.spec.clients {
            clients.spawn(self.client(number).live());
        }
        self.strike().await?;
        clients.shutdown().await;
        self.is_intact()?;
        self.trace.note(format_args!("calm: {:?}", self.ledger.counts()));

        let calm = self.trace.now();
        // A new process: it knows nothing of what was.
        let mut observer = self.client(self.spec.clients + 1);
        let network = self.joined(&observer, GROW_BACK_MAX).await?;
        if self.spec.faults.iter().any(|planned| matches!(planned.fault, Fault::Lie { .. })) {
            // Who lied is not trusted for long: what it should hold is elsewhere.
            tokio::time::sleep(AFTER_LIES).await;
        } else {
            self.until_grown_back(&network, calm).await?;
            *grew_back = Some(self.trace.now() - calm);
        }
        self.trace.note(format_args!("grown back"));
        for one in self.ledger.promised() {
            if let Err(error) = observer.read(&network, &one).await {
                self.is_intact()?;
                return Err(Broken::new(Promise::Durability, error));
            }
        }
        let put = observer.put(&network).await;
        put.map_err(|error| Broken::new(Promise::Service, format!("a put failed: {error}")))?;
        self.is_intact()
    }

    async fn start(&mut self, machine: usize) -> Result<(), Broken> {
        let started = self.hosts[machine].start(&self.net).await;
        self.trace.note(format_args!("node {machine} starts"));
        started.map_err(|error| Broken::new(Promise::Start, format!("node {machine}: {error}")))
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

    async fn until_content(&self, network: &Network, patience: Duration) -> Result<(), Broken> {
        let until = self.trace.now() + patience;
        loop {
            let running = &self.hosts[..self.spec.hosts.into()];
            match check::nodes_are_content(network, running).await {
                Ok(()) => return Ok(()),
                Err(broken) if self.trace.now() > until => return Err(broken),
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    async fn until_grown_back(&self, network: &Network, calm: Duration) -> Result<(), Broken> {
        let until = calm + GROW_BACK_MAX;
        let promised = self.ledger.promised();
        // What is gone for good is no matter of patience.
        for one in &promised {
            let (left, needed) =
                (check::shards_left(&self.hosts, one).await, one.extent.geometry.data());
            if left < needed {
                let chunk = one.extent.chunk.short();
                let how = format!("{left} of {needed} shards of chunk {chunk} are on any disk");
                return Err(Broken::new(Promise::Durability, how));
            }
        }
        loop {
            let all_is_well = async {
                check::nodes_are_content(network, &self.hosts).await?;
                let ring = &network.view().ring;
                check::is_at_full_strength(ring, &self.hosts, &promised).await
            };
            match all_is_well.await {
                Ok(()) => return Ok(()),
                Err(broken) if self.trace.now() > until => return Err(broken),
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    fn is_intact(&self) -> Result<(), Broken> {
        if let Some(what) = PANICS.with_borrow(|panics| panics.first().cloned()) {
            return Err(Broken::new(Promise::NoPanic, what));
        }
        match self.ledger.wrong() {
            Some(wrong) => Err(Broken::new(Promise::Integrity, wrong)),
            None => Ok(()),
        }
    }

    /// Lets all faults begin and end in their time.
    async fn strike(&mut self) -> Result<(), Broken> {
        let faults = self.spec.faults.clone();
        let mut moments: Vec<(Duration, bool, usize)> = Vec::new();
        for (number, planned) in faults.iter().enumerate() {
            moments.push((planned.at, true, number));
            moments.push((planned.at + planned.lasts, false, number));
        }
        moments.sort_unstable();
        let mut down: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); self.hosts.len()];
        let begin = tokio::time::Instant::now() - self.trace.now();
        for (at, begins, number) in moments {
            tokio::time::sleep_until(begin + at).await;
            let fault = &faults[number].fault;
            let word = if begins { "begins" } else { "ends" };
            self.trace.note(format_args!("fault {number} {word}: {fault}"));
            self.apply(fault, begins, number, &mut down).await?;
            self.is_intact()?;
        }
        tokio::time::sleep_until(begin + Duration::from_secs(20) + self.spec.busy).await;
        Ok(())
    }

    async fn apply(
        &mut self,
        fault: &Fault,
        begins: bool,
        number: usize,
        down: &mut [BTreeSet<usize>],
    ) -> Result<(), Broken> {
        let others = |side: &[Machine]| -> Vec<Machine> {
            (0..self.spec.hosts + self.spec.joiners + self.spec.clients + 1)
                .filter(|machine| !side.contains(machine))
                .collect()
        };
        match fault {
            Fault::Kill { host } | Fault::PowerCut { host, .. } | Fault::LoseDisk { host } => {
                let index = usize::from(*host);
                if begins {
                    down[index].insert(number);
                    let machine = &mut self.hosts[index];
                    if let Fault::PowerCut { forgotten_batches, .. } = fault {
                        machine.fault(|faults| faults.forgotten_batches = *forgotten_batches);
                    }
                    machine.kill(&self.net, !matches!(fault, Fault::Kill { .. }));
                    machine.fault(|faults| faults.forgotten_batches = 0);
                    if matches!(fault, Fault::LoseDisk { .. }) {
                        machine.lose_disk();
                    }
                } else {
                    down[index].remove(&number);
                    if down[index].is_empty() {
                        self.start(index).await?;
                    }
                }
            }
            Fault::Rot { host, one_in } if begins => {
                let disk = self.hosts[usize::from(*host)].disk();
                use copse_node::store::ShardStore as _;
                // A disk that cannot be read now does not rot now.
                let held = disk.list(None, usize::MAX).await.unwrap_or_default();
                for shard in held {
                    if self.rng.below(*one_in) == 0 {
                        disk.rot(shard, self.rng.below(1 << 20), 1 << self.rng.below(8));
                    }
                }
            }
            Fault::Rot { .. } => {}
            Fault::Partition { side } => {
                for (one, other) in pairs(side, &others(side)) {
                    self.net.cut(one, other, begins);
                    self.net.cut(other, one, begins);
                }
            }
            Fault::OneWay { from, to } => {
                for other in to {
                    self.net.cut(*from, *other, begins);
                }
            }
            Fault::Flap { host } => {
                if begins {
                    let (net, host, others) = (self.net.clone(), *host, others(&[*host]));
                    let lasts = self.spec.faults[number].lasts;
                    let pause = Duration::from_secs(1 + self.rng.below(10) as u64);
                    tokio::spawn(flap(net, host, others, lasts, pause));
                }
            }
            Fault::Loss { permille } => toggle(&mut self.losses, *permille, begins),
            Fault::Slow { delay_ms } => toggle(&mut self.delays, *delay_ms, begins),
            Fault::SlowDisk { host, delay_ms } => {
                let delay = Duration::from_millis(if begins { *delay_ms } else { 0 });
                self.hosts[usize::from(*host)].fault(|faults| {
                    (faults.write_delay, faults.sync_delay, faults.read_delay) =
                        (delay, delay, delay);
                });
            }
            Fault::FullDisk { host } => {
                self.hosts[usize::from(*host)].fault(|faults| faults.no_space = begins);
            }
            Fault::BadDisk { host, way } => {
                self.hosts[usize::from(*host)].fault(|faults| match way {
                    BadDisk::Reads => faults.fail_reads = begins,
                    BadDisk::Writes => faults.fail_writes = begins,
                    BadDisk::Syncs => faults.fail_syncs = begins,
                });
            }
            Fault::Join { host } if begins => self.start((*host).into()).await?,
            Fault::Join { .. } => {}
            Fault::Lie { host, how } => {
                self.hosts[usize::from(*host)].lie(begins.then_some(*how));
            }
            Fault::Skew { host, seconds } => {
                self.hosts[usize::from(*host)].skew(if begins { *seconds } else { 0 });
            }
        }
        let usual = self.spec.quality;
        self.net.set_quality(Quality {
            loss: usual
                .loss
                .max(f64::from(self.losses.iter().copied().max().unwrap_or(0)) / 1000.0),
            delay: usual
                .delay
                .max(Duration::from_millis(self.delays.iter().copied().max().unwrap_or(0))),
            reorders: usual.reorders || !self.delays.is_empty(),
            ..usual
        });
        Ok(())
    }
}

fn toggle<T: PartialEq>(values: &mut Vec<T>, value: T, begins: bool) {
    if begins {
        values.push(value);
    } else if let Some(place) = values.iter().position(|known| *known == value) {
        values.swap_remove(place);
    }
}

fn pairs(side: &[Machine], others: &[Machine]) -> Vec<(Machine, Machine)> {
    side.iter().flat_map(|one| others.iter().map(|other| (*one, *other))).collect()
}

async fn flap(net: Net, host: Machine, others: Vec<Machine>, lasts: Duration, pause: Duration) {
    let until = tokio::time::Instant::now() + lasts;
    loop {
        for is_cut in [true, false] {
            for (one, other) in pairs(&[host], &others) {
                net.cut(one, other, is_cut);
                net.cut(other, one, is_cut);
            }
            let rest = until.saturating_duration_since(tokio::time::Instant::now());
            tokio::time::sleep(pause.min(rest)).await;
        }
        if tokio::time::Instant::now() >= until {
            return;
        }
    }
}
