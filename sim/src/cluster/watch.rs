//! What may not be at any moment, and how a world looks then.
//!
//! Owns the looks at a running world, one a second: that nothing is deleted on doubt, that queues,
//! tasks, memory and disks stay within bounds, that an outage moved no more than it had to; and the picture
//! that `step` prints. Changes nothing: a world with and without its picture is the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::Write,
    time::Duration,
};

use copse_core::{
    ids::{ChunkId, ShardId},
    repair::{Policy, Standing},
    units::ByteSize,
};
use copse_node::config::Config;
use copse_proto::door::InfoReply;

use super::{
    atlas::{Fault, Lie, Planned},
    check::{Broken, Promise},
    claims::PHANTOMS,
    host::Host,
    net::Machine,
    scene::Written,
    spec::Canary,
    world::World,
};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A holder proves a shard, its disk is lost, and only then the proof arrives and another drops its
/// own: so long a drop may be under way, the request and a slow disk.
const DROP_UNDER_WAY: Duration = Duration::from_secs(10);

/// Between two looks at what nodes say of themselves.
const ASK_EVERY: u64 = 5;

/// Jobs of one chunk: rebuild, copy, drop.
const JOBS_OF_CHUNK: u64 = 3;

/// Decisions, and failing jobs, in what a node says of itself.
const EVENTS_MAX: usize = 64;
const FAILING_MAX: usize = 16;

/// Tasks that may be alive at one time: so many of each machine, and so many of each pair of them.
/// Twice the most that was seen in 225 worlds: 1585 with up to 17 machines.
const TASKS_OF_MACHINE: usize = 40;
const TASKS_OF_PAIR: usize = 10;

/// Streams between a client and a door, or left over by one that was killed, of each machine. Twice the
/// most that was seen: 185 with up to 17 machines.
const STREAMS_OF_MACHINE: usize = 25;

/// What lies on disks, trash and all, in shards: each may be there so often on average. Twice the most
/// that was seen in 225 worlds, 2.16.
const COPIES_MAX: u64 = 4;

/// Chunks that a picture names.
const CHUNKS_SHOWN: usize = 8;

/// The most that there was of something at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Most {
    /// Jobs in the queue of one node.
    pub queue: u64,
    /// Tasks in the whole world.
    pub tasks: usize,
    /// Open streams between clients and doors.
    pub streams: usize,
    /// Packets under way.
    pub packets: usize,
    /// Bytes on all disks, in percent of what one copy of each shard takes.
    pub disk_percent: u64,
    /// Bytes of the heap for each machine, on average of the nodes that run and the clients; what
    /// lies on disks does not count.
    pub machine_bytes: u64,
}

/// What a picture shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Show {
    /// Each node: whom it holds for what, its guard.
    Nodes,
    /// What each node has to do.
    Queue,
    /// What is on the disks.
    Disks,
    /// How many shards chunks have to spare, and the weakest ones.
    Chunks,
}

/// Pictures of a world, from time to time.
pub struct Steps {
    /// The first.
    pub from: Duration,
    /// The last.
    pub until: Duration,
    /// Between two; full seconds.
    pub every: Duration,
    /// What they show.
    pub show: Vec<Show>,
    /// Where to.
    pub to: Box<dyn Write + Send>,
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Steps({:?}..{:?} by {:?})", self.from, self.until, self.every)
    }
}

impl World {
    /// Lets the world go on until a time of its own, and looks at it meanwhile.
    pub(super) async fn wait_until(&mut self, until: Duration) -> Result<(), Broken> {
        loop {
            let now = self.trace.now();
            if now >= until {
                return Ok(());
            }
            let second = Duration::from_secs(now.as_secs()) + LOOK_EVERY;
            tokio::time::sleep(second.min(until) - now).await;
            if second <= until {
                self.look().await?;
            }
        }
    }

    async fn look(&mut self) -> Result<(), Broken> {
        self.is_intact()?;
        self.note_the_dead();
        for host in &mut self.hosts {
            if !host.is_gone() && host.departure() == super::host::Stay::Gone {
                self.trace.note(format_args!("node {} has left", host.machine));
            }
        }
        let now = self.trace.now();
        for (machine, at) in self.waiting.clone() {
            if at <= now {
                self.start(machine).await?;
            }
        }
        self.note_who_serves();
        self.nothing_was_deleted_on_doubt()?;
        self.remember_what_is_there();
        self.everything_is_bounded().await?;
        self.mislead()?;
        self.show().await;
        Ok(())
    }

    /// Tells those who read which machines serve: all that run and have nothing wrong with them. Only
    /// a storm of reads holds reads to it, and there nothing is wrong but that machines are away.
    pub(super) fn note_who_serves(&self) {
        let running = self.hosts.iter().filter(|host| host.is_running());
        let serving = running.map(|host| (host.machine, std::sync::Arc::clone(host.disk())));
        self.scene.set_serving(serving.collect());
    }

    /// A shard that was sound on some disk still is on one, unless its disk was lost or lied: nobody
    /// drops the last copy, as far as anybody can know.
    pub(super) fn nothing_was_deleted_on_doubt(&self) -> Result<(), Broken> {
        // Each is sorted, and most are as they were.
        let now: Vec<Vec<ShardId>> = self.hosts.iter().map(|host| host.disk().sound()).collect();
        let is_there = |shard: &ShardId| now.iter().any(|sound| sound.binary_search(shard).is_ok());
        let mut missing = Vec::new();
        for (&machine, before) in &self.there {
            if *before != now[usize::from(machine)] {
                let gone = before.iter().filter(|shard| !is_there(shard));
                missing.extend(gone.map(|&shard| (shard, machine)));
            }
        }
        missing.sort_unstable();
        let time = self.trace.now();
        let is_damaged =
            |shard, machine: &Machine| self.hosts[usize::from(*machine)].disk().is_damaged(shard);
        for (shard, machine) in &missing {
            let until = [self.lost_lately.get(shard), self.believed.get(shard)];
            if until.into_iter().flatten().any(|until| time < *until) {
                continue;
            }
            // It was damaged since then; or another was, to whom it was given.
            let others =
                self.there.iter().filter(|(_, before)| before.binary_search(shard).is_ok());
            if !others.map(|(other, _)| other).any(|other| is_damaged(*shard, other)) {
                let text = format!("shard {} of chunk {}", shard.index.0, shard.chunk.short());
                return Err(Broken::new(
                    Promise::Deletion,
                    format!(
                        "{text} was on the disk of {machine}, sound, and nobody has it any more"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// A disk is about to be lost, with all that others may have relied on.
    pub(super) fn note_what_is_lost(&mut self, machine: usize) {
        let now = self.trace.now();
        self.lost_lately.retain(|_, until| now < *until);
        for shard in self.hosts[machine].disk().sound() {
            self.lost_lately.insert(shard, now + DROP_UNDER_WAY);
        }
    }

    pub(super) fn remember_what_is_there(&mut self) {
        if self.spec.canary == Some(Canary::LyingDisks) {
            // No disk is sound.
            return;
        }
        let aims_well = |host: &&Host| {
            !self.active.iter().any(|number| match self.spec.faults[*number].fault {
                Fault::Misdirect { host: other, .. } => other == host.machine,
                _ => false,
            })
        };
        let (aim_well, aim_badly): (Vec<&Host>, Vec<&Host>) =
            self.hosts.iter().partition(aims_well);
        let sound = |host: &&Host| (host.machine, host.disk().sound());
        self.there = aim_well.iter().map(sound).collect();
        // A part of what is damaged can be proved, and of what a write to a wrong place will damage.
        let now = self.trace.now();
        self.believed.retain(|_, until| now < *until);
        let unnoticed = self.hosts.iter().flat_map(|host| host.disk().damaged_unnoticed());
        let soon = aim_badly.iter().flat_map(|host| host.disk().sound());
        self.believed.extend(unnoticed.chain(soon).map(|shard| (shard, now + DROP_UNDER_WAY)));
    }

    /// Queues, tasks, streams, memory and disks are within bounds.
    async fn everything_is_bounded(&mut self) -> Result<(), Broken> {
        let over = |what: &str, got: u64, most: u64| {
            Err(Broken::new(Promise::Bounds, format!("{what}: {got} of {most} at most")))
        };
        let machines = usize::from(self.spec.hosts + self.spec.joiners + self.spec.clients + 1);
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let tasks_max = machines * (TASKS_OF_MACHINE + machines * TASKS_OF_PAIR);
        let (streams, packets) = self.net.load();
        let (_, once) = self.scene.written_bytes();
        let used = self.hosts.iter().map(|host| host.disk().used());
        let used: u64 = used.map(|(live, trash)| live + trash).sum();
        // An observer is a client, too.
        let usage = self.usage(self.spec.clients + 1).await;
        let most = &mut self.most;
        most.machine_bytes = most.machine_bytes.max(usage.machine_bytes());
        most.tasks = most.tasks.max(tasks);
        most.streams = most.streams.max(streams);
        most.packets = most.packets.max(packets);
        most.disk_percent = most.disk_percent.max(used * 100 / once.max(1));
        usage.is_bounded()?;
        if tasks > tasks_max {
            return over("tasks", tasks as u64, tasks_max as u64);
        }
        if streams > machines * STREAMS_OF_MACHINE {
            return over("streams", streams as u64, (machines * STREAMS_OF_MACHINE) as u64);
        }
        if used > once * COPIES_MAX {
            let most = once * COPIES_MAX;
            let how = format!("{used} bytes on disks of {most} at most");
            return Err(Broken::new(Promise::Space, how));
        }
        if !self.trace.now().as_secs().is_multiple_of(ASK_EVERY) {
            return Ok(());
        }
        let network = self.settings.network;
        let parallel = Config::new(network, ByteSize(1 << 30)).repair.parallel as u64;
        let makes_up = |(_, planned): &(usize, &Planned)| {
            matches!(planned.fault, Fault::Lie { how: Lie::Phantoms, .. })
        };
        let made_up =
            self.spec.active_faults().filter(makes_up).count() as u64 * u64::from(PHANTOMS);
        let jobs_max = JOBS_OF_CHUNK * (self.scene.written().len() as u64 + made_up);
        for host in &self.hosts {
            let Some(info) = host.info().await else { continue };
            let Some(repair) = &info.repair else { continue };
            let queued = queued(&info);
            self.most.queue = self.most.queue.max(queued);
            if queued > jobs_max {
                return over("jobs in a queue", queued, jobs_max);
            }
            if repair.running > parallel {
                return over("jobs in work", repair.running, parallel);
            }
            if repair.events.len() > EVENTS_MAX || repair.failing.len() > FAILING_MAX {
                return over("lines of a status", repair.events.len() as u64, EVENTS_MAX as u64);
            }
        }
        Ok(())
    }

    /// Writes a picture, if it is time for one.
    async fn show(&mut self) {
        let now = Duration::from_secs(self.trace.now().as_secs());
        let Some(steps) = &self.steps else { return };
        let since = now.saturating_sub(steps.from).as_secs();
        let is_time = since.is_multiple_of(steps.every.as_secs().max(1));
        if now < steps.from || now > steps.until || !is_time {
            return;
        }
        let mut text = format!("== {} s", now.as_secs());
        for number in &self.active {
            text += &format!("; {}", self.spec.faults[*number].fault);
        }
        text.push('\n');
        let show = steps.show.clone();
        for host in &self.hosts {
            text += &self.picture_of(host, &show).await;
        }
        if show.contains(&Show::Chunks) {
            text += &self.picture_of_chunks();
        }
        if let Some(steps) = &mut self.steps {
            // A reader that went away does not end the world.
            drop(steps.to.write_all(text.as_bytes()).and_then(|()| steps.to.flush()));
        }
    }

    fn name(&self, id: &[u8]) -> String {
        let found = self.hosts.iter().find(|host| host.id.as_bytes() == id);
        found.map_or_else(|| "a stranger".to_owned(), |host| host.machine.to_string())
    }

    async fn picture_of(&self, host: &Host, show: &[Show]) -> String {
        let mut text = format!("  node {:>2}", host.machine);
        if show.contains(&Show::Disks) {
            let (live, trash) = host.disk().used();
            text += &format!(" [{} shards, {live} B, trash {trash} B]", host.disk().sound().len());
        }
        let Some(info) = host.info().await else {
            let why = if host.is_gone() { "has left" } else { "does not run" };
            return text + " " + why + "\n";
        };
        let repair = info.repair.clone().unwrap_or_default();
        if show.contains(&Show::Nodes) {
            let mut others: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for peer in &info.peers {
                let name = self.name(&peer.node_id);
                if !peer.untrusted.is_empty() {
                    others.entry("not trusted").or_default().push(name.clone());
                }
                others.entry(&peer.standing).or_default().push(name);
            }
            let alive = others.remove(Standing::Alive.to_string().as_str()).unwrap_or_default();
            text += &format!(" sees {} alive", alive.len());
            for (standing, names) in others {
                text += &format!(", {standing}: {}", names.join(" "));
            }
            if !repair.guard.is_empty() {
                text += &format!("; guard: {}", repair.guard);
            }
        }
        if show.contains(&Show::Queue) {
            let by_margin: Vec<String> = repair
                .queue
                .iter()
                .map(|entry| format!("{} with {} to spare", entry.count, entry.margin))
                .collect();
            let planned = if repair.planned { "planned" } else { "not planned" };
            text += &format!("; {planned}, {} in work, queue: ", repair.running);
            text += &if by_margin.is_empty() { "empty".to_owned() } else { by_margin.join(", ") };
            if let Some(job) = repair.failing.first() {
                let (kind, attempts) = (&job.kind, job.attempts);
                text += &format!("; {kind} failed {attempts} times: {}", job.last_error);
            }
        }
        text + "\n"
    }

    fn picture_of_chunks(&self) -> String {
        let promised = self.ledger.chunks();
        let mut places: BTreeMap<ShardId, Vec<String>> = BTreeMap::new();
        for host in &self.hosts {
            let mark = if host.is_running() { "" } else { "!" };
            for shard in host.disk().sound() {
                places.entry(shard).or_default().push(format!("{}{mark}", host.machine));
            }
        }
        let mut margins: BTreeMap<usize, usize> = BTreeMap::new();
        let mut lines = Vec::new();
        for one in &promised {
            let (chunk, geometry) = (one.id, one.geometry);
            let mut running = 0;
            let mut line = String::new();
            for index in geometry.indices() {
                let at = places.get(&ShardId { chunk, index }).map(Vec::as_slice);
                let at = at.unwrap_or_default();
                running += usize::from(at.iter().any(|place| !place.ends_with('!')));
                line += &format!(" {}@{}", index.0, at.join("+"));
            }
            *margins.entry(running).or_default() += 1;
            lines.push((running, format!("    chunk {} {geometry}:{line}\n", chunk.short())));
        }
        let k = self.spec.geometry.data();
        let counts: Vec<String> = margins
            .iter()
            .map(|(shards, chunks)| format!("{chunks} with {shards} shards"))
            .collect();
        let mut text = format!(
            "  chunks, by shards on machines that run (of which {k} suffice): {}\n",
            counts.join(", ")
        );
        lines.sort();
        text.extend(lines.into_iter().take(CHUNKS_SHOWN).map(|(_, line)| line));
        text
    }
}

fn queued(info: &InfoReply) -> u64 {
    let repair = info.repair.as_ref();
    repair.map_or(0, |repair| repair.queue.iter().map(|queued| queued.count).sum())
}

/// What an outage may have moved: the state of everything right before it.
pub(super) struct Storm {
    written: BTreeMap<ChunkId, Written>,
    holders: BTreeMap<ShardId, Machine>,
}

impl Storm {
    /// Remembers a world in which everything is whole.
    pub(super) fn before(world: &World) -> Self {
        let held = world.hosts.iter().flat_map(|host| {
            let shards = host.disk().sound().into_iter();
            shards.map(|shard| (shard, host.machine))
        });
        Self { written: world.scene.written(), holders: held.collect() }
    }

    /// Whether no more was written since than had to be: nothing of a chunk with shards to spare; of
    /// the others as many as were out of reach, once on each side of a cut.
    pub(super) fn is_over(&self, world: &World) -> Result<(), Broken> {
        let away: BTreeSet<Machine> = world
            .spec
            .active_faults()
            .flat_map(|(_, planned)| match &planned.fault {
                Fault::Kill { host } => vec![*host],
                Fault::Partition { side } => side.clone(),
                _ => Vec::new(),
            })
            .collect();
        let cut = world
            .spec
            .active_faults()
            .any(|(_, planned)| matches!(planned.fault, Fault::Partition { .. }));
        let policy = Policy::default();
        let written = world.scene.written();
        for one in world.ledger.chunks() {
            let (chunk, geometry) = (one.id, one.geometry);
            let now = written.get(&chunk).copied().unwrap_or_default();
            let before = self.written.get(&chunk).copied().unwrap_or_default();
            let moved = now.shards.saturating_sub(before.shards);
            if moved == 0 {
                continue;
            }
            let of_chunk = |(shard, _): &(&ShardId, &Machine)| shard.chunk == chunk;
            let (mut here, mut there) = (0, 0);
            for (_, machine) in self.holders.iter().filter(of_chunk) {
                *(if away.contains(machine) { &mut there } else { &mut here }) += 1;
            }
            let (total, thin) = (here + there, policy.thin_line(geometry));
            let sides = [(here, there), (there, here)];
            let allowed: usize = sides
                .iter()
                .take(if cut { 2 } else { 1 })
                .filter(|(reach, _)| (geometry.data()..=thin).contains(reach))
                .map(|(_, missing)| missing)
                .sum();
            if moved > allowed as u64 {
                return Err(Broken::new(
                    Promise::Storm,
                    format!(
                        "of chunk {} {moved} shards were written in the outage, {allowed} at most were \
                         needed: {here} of {total} were within reach, {thin} are thin",
                        chunk.short()
                    ),
                ));
            }
        }
        Ok(())
    }
}
