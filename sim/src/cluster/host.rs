//! Machines with a disk each, and a node on them while they run.
//!
//! Owns starting and stopping. A machine keeps its key, its disk and the file of its peers; what
//! else a node knew dies with it.

use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use copse_core::{geometry::Geometry, ids::NodeId, token::JoinToken, units::ByteSize};
use copse_node::{
    clock::Clock,
    config::{Config, Listen},
    identity::Seed,
    leaving::{Departure, Progress},
    node::{Edges, Node, StartError},
    peer::endpoint::PeerSocket,
    repair::Phases,
    store::memory::{Faults, Unsynced},
};
use copse_proto::door::{InfoReply, SignedRecord};
use tokio::time::Instant;

use super::{
    atlas::Lie,
    claims::Claims,
    disk::{Books, Fence, Files, Lying, Mounted, PeersFile},
    entropy::EPOCH,
    killat::{Body, Charge, Fuse},
    net::{Machine, Net, address},
    scene::Scene,
    spec::Dice,
    store::Store,
    stream::Door,
    udp::{PausedRuntime, Socket},
};
use crate::random::Xoshiro;

/// The ports of a node.
const QUIC_PORT: u16 = 4601;
const GRPC_PORT: u16 = 4602;

/// A machine.
pub(super) struct Host {
    pub(super) machine: Machine,
    pub(super) id: NodeId,
    seed: [u8; 32],
    config: Config,
    rng: Xoshiro,
    start: Instant,
    skew_seconds: Arc<AtomicI64>,
    disk: Arc<Store>,
    disks: u64,
    /// How much there is room for; the configuration has what the node offers.
    room: ByteSize,
    /// What the disk takes for a sync or a read when nothing is wrong with it; an eighth for a write.
    latency: Duration,
    /// Whether a power cut may leave what was not synced, and files fail as shards do.
    is_real: bool,
    /// What the product's store is made from, if the machine has that and not the model.
    segments: Option<Xoshiro>,
    /// Whether a process that ends knows nothing any more of reads that failed.
    forgets: bool,
    faults: Faults,
    fuse: Fuse,
    books: Arc<Books>,
    peers: PeersFile,
    lying: Lying,
    scene: Scene,
    geometry: Geometry,
    phases: Phases,
    hoards: bool,
    departure: Stay,
    starts: u64,
    running: Option<(Node, Body)>,
}

/// Whether a node stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stay {
    /// It does.
    Here,
    /// Its owner told it to leave. The word is kept over a restart.
    Leaving,
    /// It has left, and never comes back.
    Gone,
}

/// How large a machine is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// What its node offers: so much it weighs.
    pub(super) offers: ByteSize,
    /// What there is room for; the rest of the disk is full of other things.
    pub(super) room: ByteSize,
}

/// What all machines of a world have in common.
pub(super) struct Common {
    /// The configuration; addresses, zone and contacts are each machine's own.
    pub(super) config: Config,
    pub(super) start: Instant,
    pub(super) scene: Scene,
    /// What is different about all nodes: a bug, no audits.
    pub(super) phases: Phases,
    /// Another one: no node lets go of the memory of a read.
    pub(super) hoards: bool,
    /// The rules: by newer ones disks take time, and power cuts leave some of what was not synced.
    pub(super) dice: Dice,
    /// What clients store with.
    pub(super) geometry: Geometry,
}

/// What a disk takes, at least and at most, in microseconds: the fastest flash, a busy hard disk. Timers
/// go by milliseconds, so what is shorter is one.
const LATENCY_US: (f64, f64) = (50.0, 5000.0);

/// Part of the machines that have the product's store; the others have the model.
const SEGMENTS: f64 = 0.75;

impl Host {
    /// A machine that offers the usual and has room for it, or else as told.
    pub(super) fn new(
        common: &Common,
        machine: Machine,
        zone: &str,
        size: Option<Size>,
        mut rng: Xoshiro,
    ) -> Self {
        let mut seed = [0; 32];
        for part in seed.chunks_mut(8) {
            part.copy_from_slice(&rng.next_u64().to_le_bytes());
        }
        let listen = |port| {
            let own = address(machine, port);
            Listen { listen: own, advertise: vec![own] }
        };
        let usual = Size { offers: common.config.capacity, room: common.config.capacity };
        let Size { offers, room } = size.unwrap_or(usual);
        let config = Config {
            capacity: offers,
            zone: zone.to_owned(),
            quic: listen(QUIC_PORT),
            grpc: listen(GRPC_PORT),
            ..common.config.clone()
        };
        let skew_seconds = Arc::new(AtomicI64::new(0));
        let clock = clock(common.start, &skew_seconds);
        let latency = if common.dice > Dice::Second {
            let (least, most) = LATENCY_US;
            let mut disk = Xoshiro::new(rng.clone().next_u64(), "cluster disk");
            Duration::from_secs_f64(least * (most / least).powf(disk.unit()) / 1e6)
        } else {
            Duration::ZERO
        };
        let mut stores = Xoshiro::new(rng.clone().next_u64(), "cluster store");
        let has_segments = common.dice > Dice::Sixth && stores.chance(SEGMENTS);
        let mut segments = has_segments.then_some(stores);
        let mut host = Self {
            machine,
            id: Seed::new(seed).key().id(),
            seed,
            disk: empty_disk(room, clock, 0, segments.as_mut()),
            segments,
            room,
            config,
            rng,
            start: common.start,
            skew_seconds,
            disks: 0,
            latency,
            is_real: common.dice > Dice::Second,
            forgets: common.dice > Dice::Fourth,
            faults: Faults::default(),
            fuse: Fuse::default(),
            books: Arc::default(),
            peers: PeersFile::default(),
            lying: Lying::default(),
            scene: common.scene.clone(),
            geometry: common.geometry,
            phases: common.phases,
            hoards: common.hoards,
            departure: Stay::Here,
            starts: 0,
            running: None,
        };
        host.slow(Duration::ZERO);
        host.scene.set_disk(machine, &host.disk);
        host
    }

    /// What others join by.
    pub(super) fn token(&self) -> JoinToken {
        JoinToken {
            network: self.config.network,
            node: self.id,
            addresses: self.config.quic.advertise.clone(),
            grpc: self.config.grpc.advertise.clone(),
        }
    }

    pub(super) fn set_contacts(&mut self, join: Vec<JoinToken>) {
        self.config.join = join;
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.as_ref().is_some_and(|(_, body)| !body.fence.has_fallen())
    }

    pub(super) fn disk(&self) -> &Arc<Store> {
        &self.disk
    }

    /// Starts the node.
    pub(super) async fn start(&mut self, net: &Net) -> Result<(), StartError> {
        if self.is_running() || self.departure == Stay::Gone {
            return Ok(());
        }
        self.bury();
        self.starts += 1;
        net.plug(self.machine);
        let fence = Fence::default();
        let files = Files::new(&self.disk, &fence, &self.fuse, &self.books, self.is_real);
        let body = Body {
            machine: self.machine,
            fence,
            net: net.clone(),
            disk: Arc::clone(&self.disk),
            scene: self.scene.clone(),
            is_real: self.is_real,
            forgets: self.forgets,
        };
        self.disk.watch(Some(Arc::new(self.fuse.clone())));
        self.fuse.opens(body.clone());
        if let Err(error) = self.disk.open() {
            let died = body.fence.has_fallen();
            body.fence.fall();
            if !died {
                self.disk.end(false, || Unsynced::Whole);
            }
            net.unplug(self.machine, true);
            // As the ledger, which is in the same place.
            return Err(StartError::Ledger(error));
        }
        let mut random = [0; 32];
        for part in random.chunks_mut(8) {
            part.copy_from_slice(&self.rng.next_u64().to_le_bytes());
        }
        let edges = Edges {
            socket: PeerSocket::Injected {
                socket: Socket::bind(net, self.config.quic.listen),
                runtime: Arc::new(PausedRuntime),
            },
            listener: Box::new(Door::listen(net, self.config.grpc.listen)),
            store: Mounted::new(
                &files,
                &self.lying,
                &self.scene,
                self.geometry,
                Claims::of(self.id),
                self.hoards,
            ),
            memory: Some(self.peers.mounted(&files)),
            seed: Seed::new(self.seed),
            random,
            clock: clock(self.start, &self.skew_seconds),
            control: None,
            metrics: None,
            departure: Departure::told(self.departure == Stay::Leaving),
            phases: self.phases,
        };
        match Node::start(edges, self.config.clone()).await {
            Ok(node) => {
                self.fuse.runs();
                self.running = Some((node, body));
                Ok(())
            }
            Err(error) => {
                if self.segments.is_some() && !body.fence.has_fallen() {
                    self.disk.end(false, || Unsynced::Whole);
                }
                body.fence.fall();
                net.unplug(self.machine, true);
                Err(error)
            }
        }
    }

    /// Whether its disk fails now in such a way that a node need not start on it: what it remembers
    /// cannot be read, or not be written.
    pub(super) fn excuses(&self, error: &StartError) -> bool {
        let StartError::Ledger(source) = error else { return false };
        let Faults { no_space, fail_writes, fail_reads, fail_syncs, .. } = self.faults;
        let fails = fail_reads || fail_writes || self.books.fail.load(Relaxed);
        let fails = fails || (fail_syncs && self.segments.is_some());
        let is_told = match source.raw_os_error() {
            Some(libc::ENOSPC) => no_space,
            Some(libc::EIO) => fails,
            _ => false,
        };
        self.is_real && is_told
    }

    /// Whether its store takes no more writes until the next start, and the disk is well again.
    pub(super) fn should_restart(&self) -> bool {
        let Faults { fail_writes, fail_syncs, .. } = self.faults;
        self.is_running() && !fail_writes && !fail_syncs && self.disk.is_refusing()
    }

    /// What its node offers to hold, in bytes.
    pub(super) fn offers(&self) -> u64 {
        self.config.capacity.0
    }

    /// Has half of the writes to the ledger and to the file of peers fail, or none any more.
    pub(super) fn fail_books(&self, fail: bool) {
        self.books.fail.store(fail, Relaxed);
    }

    /// The node dies at this moment. With `power` the machine does: streams fall silent instead of
    /// closing, and of the disk remains what was synced.
    pub(super) fn kill(&mut self, power: bool) {
        if self.is_running()
            && let Some((_, body)) = &self.running
        {
            body.die(power, &mut self.rng);
        }
        self.bury();
    }

    /// Lets go of a process that is dead.
    fn bury(&mut self) {
        if !self.is_running()
            && let Some((node, _)) = self.running.take()
        {
            self.fuse.ends();
            // What is left of it ends by itself and reaches nothing.
            tokio::spawn(node.shutdown());
        }
    }

    /// The process dies at some deed, from now on.
    pub(super) fn arm(&self, net: &Net, charge: Charge, rng: Xoshiro) {
        net.watch(self.machine, &self.fuse);
        self.fuse.arm(charge, rng);
    }

    /// It does not any more.
    pub(super) fn disarm(&self, charge: &Charge) {
        self.fuse.disarm(charge);
    }

    /// Whether the process died at a deed since this was asked the last time; for how long it stays
    /// away.
    pub(super) fn died(&mut self) -> Option<Duration> {
        let pause = self.fuse.struck()?;
        self.bury();
        Some(pause)
    }

    /// The disk is gone; an empty one is in its place. Only while the node does not run.
    pub(super) fn lose_disk(&mut self) {
        self.disks += 1;
        let clock = clock(self.start, &self.skew_seconds);
        // Each epoch leaves room for crashes to count on.
        self.disk = empty_disk(self.room, clock, self.disks << 32, self.segments.as_mut());
        self.disk.set_faults(self.faults.clone());
        self.scene.set_disk(self.machine, &self.disk);
        self.peers = PeersFile::default();
    }

    /// The owner has the node leave.
    pub(super) fn leave(&mut self) {
        if self.departure == Stay::Here {
            self.departure = Stay::Leaving;
        }
        if let Some((node, _)) = &self.running {
            // There is no file that it could fail to write.
            drop(node.leave());
        }
    }

    /// Whether it stays; a node that has handed everything over is gone from now on.
    pub(super) fn departure(&mut self) -> Stay {
        let is_done = |(node, _): &(Node, Body)| node.progress() == Progress::Gone;
        if self.departure == Stay::Leaving && self.running.as_ref().is_some_and(is_done) {
            self.departure = Stay::Gone;
            self.kill(false);
        }
        self.departure
    }

    /// Whether it has left.
    pub(super) fn is_gone(&self) -> bool {
        self.departure == Stay::Gone
    }

    /// Whether it stays.
    pub(super) fn stays(&self) -> Stay {
        self.departure
    }

    /// The time of day, by its clock.
    pub(super) fn unix_seconds(&self) -> u64 {
        clock(self.start, &self.skew_seconds)()
    }

    /// How often its node was started.
    pub(super) fn starts(&self) -> u64 {
        self.starts
    }

    /// What the node says of itself, if it runs.
    pub(super) async fn info(&self) -> Option<InfoReply> {
        match &self.running {
            Some((node, _)) => Some(node.info().await),
            None => None,
        }
    }

    /// The records of all nodes that its node knows.
    pub(super) fn records(&self) -> Vec<SignedRecord> {
        self.running.as_ref().map(|(node, _)| node.records()).unwrap_or_default()
    }

    /// Its secret, for who lies in its name.
    pub(super) fn secret(&self) -> [u8; 32] {
        self.seed
    }

    /// Changes what the disk does wrong.
    pub(super) fn fault(&mut self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults);
        self.disk.set_faults(self.faults.clone());
    }

    /// Has the disk take so long for everything, or what it takes by itself.
    pub(super) fn slow(&mut self, delay: Duration) {
        let latency = self.latency.max(delay);
        let write = (self.latency / 8).max(delay);
        self.fault(|faults| {
            (faults.write_delay, faults.sync_delay, faults.read_delay) = (write, latency, latency);
        });
    }

    /// Has the node lie from now on, or no more.
    pub(super) fn lie(&self, how: Option<Lie>) {
        *self.lying.lock().unwrap_or_else(PoisonError::into_inner) = how;
    }

    /// Moves the machine's clock.
    pub(super) fn skew(&self, seconds: i64) {
        self.skew_seconds.store(seconds, Relaxed);
    }
}

fn empty_disk(
    capacity: ByteSize,
    clock: Clock,
    epoch: u64,
    segments: Option<&mut Xoshiro>,
) -> Arc<Store> {
    match segments {
        None => Store::memory(capacity, clock, epoch),
        Some(rng) => Store::segments(capacity, clock, epoch, rng),
    }
}

fn clock(start: Instant, skew: &Arc<AtomicI64>) -> Clock {
    let skew = Arc::clone(skew);
    Arc::new(move || (EPOCH + start.elapsed().as_secs()).saturating_add_signed(skew.load(Relaxed)))
}
