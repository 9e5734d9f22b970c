//! Worlds of real nodes and clients: one, many, or one with all that happens in it.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufWriter, Read as _},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use copse_sim::cluster::{
    WayCounts,
    kinds::Kind,
    scene::Struck,
    shrink::shrink,
    spec::{Canary, Dice, Spec},
    trace::Log,
    watch::Most,
    world::{self, Outcome},
};
use serde_json::{Value, json};

use super::{Failure, numbers::whole, print, print_json, wrong};

/// A world that takes longer, by the clock outside, is ended: most take seconds, the longest a minute.
const WORLD_MAX: Duration = Duration::from_secs(600);

/// For how long the fewest faults are looked for, by the clock outside.
const SHRINK_MAX: Duration = Duration::from_secs(300);

/// Worlds of a swarm: what each came to is kept until all have ended.
const WORLDS_MAX: u64 = 1_000_000;

/// How often it is looked whether a world has ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Lines of the log that are shown of a world in which something was broken.
const LINES_SHOWN: usize = 40;

/// Which world, and what is left out of it.
#[derive(Args, Clone)]
pub(super) struct World {
    /// Everything in it follows from this number.
    #[arg(long, value_parser = whole::<u64, 0, { u64::MAX }>)]
    pub(super) seed: u64,
    /// Leaves out these faults, by the numbers that `run` shows.
    #[arg(long, value_delimiter = ',', value_name = "NUMBER", value_parser = whole::<usize, 0, 10_000>)]
    pub(super) without: Vec<usize>,
    #[command(flatten)]
    pub(super) rules: Rules,
}

/// By which rules a seed becomes a world.
#[derive(Args, Clone, Copy)]
pub(super) struct Rules {
    /// Plants a bug, which must be found.
    #[arg(long)]
    pub(super) canary: Option<Canary>,
    /// Worlds of this kind, whatever the seed would have it.
    #[arg(long)]
    kind: Option<Kind>,
    /// The dice: 1 are those of before there were kinds of worlds, 2 those of before disks took time, 3
    /// those of before nodes lied about what they hold to those who repair, 4 those of before clients
    /// put trees, read ranges and repaired, processes died at what they do, disks filled up and sectors
    /// went bad, 5 those of before networks had the product's own codes, blackouts, bad lines and lost zones,
    /// 6 those of before most machines had the product's store on a simulated disk, 7 those of before clients
    /// ran the product's own puts of files and streams, its gateway and its lists of chunks, and links differed by
    /// pair and direction.
    #[arg(long, default_value_t = Dice::NEWEST as u8, value_parser = clap::value_parser!(u8)
        .range(1..=i64::from(Dice::NEWEST as u8)))]
    dice: u8,
}

impl Rules {
    fn check(self) -> Result<(), Failure> {
        match self.kind {
            Some(kind) if self.dice == 1 => Err(wrong(format!(
                "--kind {kind} needs --dice 2 or more: by dice 1 there is one kind of world"
            ))),
            _ => Ok(()),
        }
    }

    fn spec(self, seed: u64) -> Spec {
        let dice = Dice::numbered(self.dice).unwrap_or(Dice::NEWEST);
        let mut spec = Spec::by(dice, seed, self.kind);
        spec.canary = self.canary;
        spec
    }

    /// As arguments of this program.
    fn arguments(self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(canary) = self.canary {
            arguments.extend(["--canary".to_owned(), canary.name().to_owned()]);
        }
        if let Some(kind) = self.kind {
            arguments.extend(["--kind".to_owned(), kind.name().to_owned()]);
        }
        // Also the newest: others may be, when the line is read.
        arguments.extend(["--dice".to_owned(), self.dice.to_string()]);
        arguments
    }
}

impl World {
    pub(super) fn spec(&self) -> Result<Spec, Failure> {
        self.rules.check()?;
        let mut spec = self.rules.spec(self.seed);
        let known = spec.faults.len();
        match self.without.iter().find(|number| **number >= known) {
            Some(number) if known == 0 => {
                Err(wrong(format!("--without {number}: the world has no faults, leave it out")))
            }
            Some(number) => {
                let last = known - 1;
                Err(wrong(format!("--without {number}: the world has the faults 0 to {last}")))
            }
            None => {
                spec.without = self.without.iter().copied().collect();
                Ok(spec)
            }
        }
    }

    /// As arguments of this program.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--seed".to_owned(), self.seed.to_string()];
        if !self.without.is_empty() {
            let numbers: Vec<String> = self.without.iter().map(ToString::to_string).collect();
            arguments.extend(["--without".to_owned(), numbers.join(",")]);
        }
        arguments.extend(self.rules.arguments());
        arguments
    }
}

/// Arguments of `run`.
#[derive(Args)]
pub(super) struct Run {
    #[command(flatten)]
    world: World,
    /// When a promise is broken, does not look for the fewest faults with which it still is.
    #[arg(long)]
    no_shrink: bool,
}

/// Arguments of `swarm`.
#[derive(Args)]
pub(super) struct Swarm {
    /// Seeds: the first and the last.
    #[arg(long, value_name = "A..B", value_parser = seeds)]
    seeds: (u64, u64),
    /// Worlds at one time; as many as there are cores unless told otherwise.
    #[arg(long, value_parser = whole::<usize, 1, 1024>)]
    jobs: Option<usize>,
    /// Does not look for the fewest faults with which the first broken world still is.
    #[arg(long)]
    no_shrink: bool,
    #[command(flatten)]
    rules: Rules,
}

/// Arguments of `replay`.
#[derive(Args)]
pub(super) struct Replay {
    #[command(flatten)]
    world: World,
    /// Where to write; two such files of one seed are equal, and can be compared with diff.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let parsed = text.split_once("..").and_then(|(first, last)| {
        Some((first.parse().ok()?, last.trim_start_matches('=').parse().ok()?))
    });
    match parsed {
        Some((first, last)) if first <= last && last - first < WORLDS_MAX && last < u64::MAX => {
            Ok((first, last))
        }
        _ => Err(format!(
            "write two numbers, the smaller first: 1..200; for at most {WORLDS_MAX} worlds"
        )),
    }
}

pub(super) fn run(arguments: &Run, as_json: bool) -> Result<(), Failure> {
    let (world, spec) = (&arguments.world, arguments.world.spec()?);
    let outcome = world::run(&spec, Log::Tail);
    if as_json {
        print_json(&told(world, &spec, &outcome))?;
    } else {
        print(&format!("{spec}{}", story(world, &spec, &outcome)))?;
    }
    let Some(broken) = outcome.broken else { return Ok(()) };
    if !arguments.no_shrink && !as_json {
        print(&fewest(world, &spec, &broken.promise.to_string()))?;
    }
    Err(broken.to_string().into())
}

/// The fewest faults found with which a world still breaks this promise.
fn fewest(world: &World, spec: &Spec, promise: &str) -> String {
    let World { seed, rules, .. } = *world;
    let with = |without: &BTreeSet<usize>| {
        let all: BTreeSet<usize> = without.iter().chain(&world.without).copied().collect();
        World { seed, without: all.into_iter().collect(), rules }
    };
    let start = Instant::now();
    let least = shrink(spec.faults.len(), |without| {
        let is_time = start.elapsed() < SHRINK_MAX;
        is_time && elsewhere(&with(without)).is_ok_and(|told| told["promise"] == promise)
    });
    let least = with(&least);
    let again = least.arguments().join(" ");
    let mut text = format!("the fewest faults found that do it (copse-sim run {again}):\n");
    let left = spec.faults.iter().enumerate();
    for (number, fault) in left.filter(|(number, _)| !least.without.contains(number)) {
        text += &format!("  fault {number} {fault}\n");
    }
    text
}

/// Runs a world in a process of its own: what libraries keep for a whole process is then new, too.
/// One in which no time passes any more is ended.
fn elsewhere(world: &World) -> Result<Value, Failure> {
    let mut program = Command::new(std::env::current_exe()?);
    program.args(["run", "--json"]).args(world.arguments());
    let seed = world.seed;
    // What it says of a broken promise is in the JSON.
    let mut child =
        program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut stdout = child.stdout.take().ok_or("a world has no output")?;
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        stdout.read_to_end(&mut text).map(|_| text)
    });
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > WORLD_MAX {
            child.kill()?;
            child.wait()?;
            let again = world.arguments().join(" ");
            let minutes = WORLD_MAX.as_secs() / 60;
            return Err(format!(
                "seed {seed} did not end in {minutes} minutes and was ended: copse-sim step {again}"
            )
            .into());
        }
        thread::sleep(LOOK_EVERY);
    };
    let text = reader.join().map_err(|_| "the reader of a world's output panicked")??;
    serde_json::from_slice(&text)
        .map_err(|error| format!("seed {seed} gave no result ({status}): {error}").into())
}

pub(super) fn replay(arguments: &Replay, as_json: bool) -> Result<(), Failure> {
    let spec = arguments.world.spec()?;
    let to = arguments.to.display();
    let file = File::create(&arguments.to).map_err(|error| {
        wrong(format!("--to {to} cannot be written: {error}; name another file"))
    })?;
    let outcome = world::run(&spec, Log::All(Box::new(BufWriter::new(file))));
    if as_json {
        return print_json(&told(&arguments.world, &spec, &outcome));
    }
    print(&format!("{spec}{}", story(&arguments.world, &spec, &outcome)))
}

pub(super) fn story(world: &World, spec: &Spec, outcome: &Outcome) -> String {
    let mut text = String::new();
    for line in
        outcome.tail.iter().rev().take(LINES_SHOWN).rev().filter(|_| outcome.broken.is_some())
    {
        text += &format!("  {line}\n");
    }
    text += &line(world, spec, outcome);
    text
}

/// What struck by itself: how often, its name in JSON, and in words.
fn strikes(struck: &Struck) -> [(u64, &'static str, &'static str); 17] {
    let disks = &struck.disks;
    [
        (struck.deaths, "deaths_at_deeds", "deaths at a deed"),
        (struck.deaths_opening, "deaths_opening", "of them while opening"),
        (struck.bad_sectors, "bad_sectors", "shards on bad sectors"),
        (struck.refused, "refused_for_room", "refused for want of room"),
        (disks.torn, "torn_writes", "torn writes"),
        (disks.unsynced_lost, "unsynced_lost", "unsynced writes lost"),
        (disks.forgotten_batches, "forgotten_batches", "batches of ledgers and indexes forgotten"),
        (disks.indexes_lost, "indexes_lost", "indexes lost"),
        (disks.segments_deleted, "segments_compacted", "segments compacted"),
        (disks.rotted, "rotted", "shards rotted"),
        (disks.misdirected_writes, "misdirected_writes", "writes to a wrong place"),
        (disks.misdirected_reads, "misdirected_reads", "reads from a wrong place"),
        (struck.lies, "lies", "lies about shards"),
        (struck.false_words, "false_words", "false words about others"),
        (struck.dark, "dark", "machines in the dark"),
        (struck.overtaken, "overtaken", "packets overtaken"),
        (struck.acknowledged, "looked_at_when_acknowledged", "chunks looked at when acknowledged"),
    ]
}

/// What the product's own programs did: how often, its name in JSON, and in words.
fn by_ways(ways: &WayCounts) -> [(u64, &'static str, &'static str); 10] {
    [
        (ways.paths, "trees_from_files", "trees put from files"),
        (ways.streams, "files_from_streams", "files put from a stream"),
        (ways.gateway_puts, "gateway_puts", "trees put through a gateway"),
        (ways.gateway_stats, "gateway_stats", "look-ups of a gateway"),
        (ways.gateway_lists, "gateway_lists", "lists of a gateway"),
        (ways.gateway_reads, "gateway_reads", "reads of a gateway"),
        (ways.gateway_stops, "gateway_stops", "gateways stopped in good order"),
        (ways.gateway_failed, "gateway_failed", "calls of a gateway that failed"),
        (ways.lists, "lists", "lists of chunks stored"),
        (ways.list_checks, "list_checks", "checks by these"),
    ]
}

/// How a world went, in a line; with how to run it again when something was broken.
fn line(world: &World, spec: &Spec, outcome: &Outcome) -> String {
    let counts = &outcome.counts;
    let mut text = format!(
        "seed {} trace {}: {} faults, {} puts ({} failed), {} reads ({} failed), {} packets; \
         {:.0} s simulated in {:.1} s",
        spec.seed,
        outcome.trace,
        outcome.faults,
        counts.puts,
        counts.puts_failed,
        counts.reads,
        counts.reads_failed,
        outcome.packets,
        outcome.simulated.as_secs_f64(),
        outcome.real.as_secs_f64(),
    );
    let work = &outcome.work;
    if work.puts + work.puts_failed + work.reads + work.checks > 0 {
        text += &format!(
            "; {} trees ({} failed), {} reads in trees ({} failed), {} checks that made {} shards",
            work.puts, work.puts_failed, work.reads, work.reads_failed, work.checks, work.mended,
        );
    }
    let (written, once) = outcome.written;
    let Most { queue, tasks, streams, packets, disk_percent, machine_bytes } = outcome.most;
    text += &format!(
        "; written {:.2} times; at most {queue} jobs, {tasks} tasks, {streams} streams, {packets} \
         packets, disks {disk_percent} %, {} KiB of memory for each machine",
        written as f64 / once.max(1) as f64,
        machine_bytes >> 10,
    );
    let counted = by_ways(&outcome.ways).into_iter().chain(strikes(&outcome.struck));
    for (count, _, what) in counted.filter(|(count, ..)| *count > 0) {
        text += &format!("; {count} {what}");
    }
    if let Some(grew_back) = outcome.grew_back {
        text += &format!("; grown back after {:.0} s", grew_back.as_secs_f64());
    }
    if let Some(broken) = &outcome.broken {
        let again = world.arguments().join(" ");
        text += &format!("\nBROKEN {broken}\nrun it again: copse-sim run {again}");
    }
    text + "\n"
}

fn told(world: &World, spec: &Spec, outcome: &Outcome) -> Value {
    let broken = outcome.broken.as_ref();
    let mut told = json!({
        "seed": spec.seed,
        "promise": broken.map(|broken| broken.promise.to_string()),
        "broken": broken.map(ToString::to_string),
        "trace": outcome.trace,
        "packets": outcome.packets,
        "faults": spec.faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "nodes": spec.hosts,
        "geometry": spec.geometry.to_string(),
        "puts": outcome.counts.puts,
        "puts_failed": outcome.counts.puts_failed,
        "puts_fragile": outcome.counts.puts_fragile,
        "reads": outcome.counts.reads,
        "reads_failed": outcome.counts.reads_failed,
        "trees": outcome.work.puts,
        "trees_failed": outcome.work.puts_failed,
        "tree_reads": outcome.work.reads,
        "tree_reads_failed": outcome.work.reads_failed,
        "checks": outcome.work.checks,
        "mended_shards": outcome.work.mended,
        "simulated_seconds": outcome.simulated.as_secs_f64(),
        "kind": spec.kind.to_string(),
        "written_times": outcome.written.0 as f64 / outcome.written.1.max(1) as f64,
        "most_jobs": outcome.most.queue,
        "most_tasks": outcome.most.tasks,
        "most_tasks_per_machine": outcome.most.tasks
            / usize::from(spec.hosts + spec.joiners + spec.clients + 1),
        "most_streams": outcome.most.streams,
        "most_packets": outcome.most.packets,
        "most_disk_percent": outcome.most.disk_percent,
        "most_machine_bytes": outcome.most.machine_bytes,
        "node_bytes_before": outcome.left_bytes.map(|(before, _)| before),
        "node_bytes_after": outcome.left_bytes.map(|(_, after)| after),
        "grown_back_seconds": outcome.grew_back.map(|time| time.as_secs_f64()),
        "real_seconds": outcome.real.as_secs_f64(),
        "worked_seconds": outcome.worked.map(|worked| worked.as_secs_f64()),
        "story": broken.map(|_| format!("{spec}{}", story(world, spec, outcome))),
    });
    for (count, name, _) in by_ways(&outcome.ways).into_iter().chain(strikes(&outcome.struck)) {
        told[name] = count.into();
    }
    told
}

pub(super) fn swarm(arguments: &Swarm, as_json: bool) -> Result<(), Failure> {
    arguments.rules.check()?;
    let (first, last) = arguments.seeds;
    let jobs =
        arguments.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let next = AtomicU64::new(first);
    let all = Mutex::new(Vec::new());
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let one_more = |seed: u64| (seed <= last).then(|| seed.saturating_add(1));
                    let Ok(seed) = next.fetch_update(Relaxed, Relaxed, one_more) else { return };
                    let rules = arguments.rules;
                    let told = elsewhere(&World { seed, without: Vec::new(), rules });
                    let told = told.unwrap_or_else(|failure| {
                        let broken = failure.to_string();
                        json!({ "seed": seed, "broken": broken, "story": broken + "\n" })
                    });
                    if let (Some(story), false) = (told["story"].as_str(), as_json) {
                        drop(print(story));
                    }
                    all.lock().unwrap_or_else(PoisonError::into_inner).push(told);
                }
            });
        }
    });
    let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    all.sort_by_key(|told| told["seed"].as_u64());
    let broken = all.iter().filter(|told| told["broken"].is_string()).count();
    let summary = summary(&all, broken, start.elapsed().as_secs_f64());
    let count = all.len();
    let first = all.iter().find(|told| told["broken"].is_string());
    let first =
        first.and_then(|told| Some((told["seed"].as_u64()?, told["promise"].as_str()?.to_owned())));
    if as_json {
        print_json(&all.into())?
    } else {
        print(&summary)?
    }
    if let Some((seed, promise)) = first.filter(|_| !as_json && !arguments.no_shrink) {
        let world = World { seed, without: Vec::new(), rules: arguments.rules };
        print(&fewest(&world, &world.spec()?, &promise))?;
    }
    if broken > 0 {
        return Err(format!("promises were broken in {broken} of {count} worlds").into());
    }
    Ok(())
}

/// What each node of a world had more of memory in the end.
fn more_bytes(told: &Value) -> u64 {
    let bytes = |name: &str| told[name].as_u64().unwrap_or(0);
    bytes("node_bytes_after").saturating_sub(bytes("node_bytes_before"))
}

fn summary(all: &[Value], broken: usize, seconds: f64) -> String {
    let sum = |name: &str| all.iter().filter_map(|told| told[name].as_u64()).sum::<u64>();
    let numbers = |name: &str| {
        let mut all: Vec<f64> = all.iter().filter_map(|told| told[name].as_f64()).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let faults: usize = all.iter().filter_map(|told| Some(told["faults"].as_array()?.len())).sum();
    let simulated: f64 = numbers("simulated_seconds").iter().sum();
    let grew_back = numbers("grown_back_seconds");
    let written = numbers("written_times");
    let worked = numbers("worked_seconds");
    let told = |(_, name, what): (u64, &str, &str)| format!("{} {what}", sum(name));
    let ways = by_ways(&WayCounts::default()).map(told).join("; ");
    let struck = strikes(&Struck::default()).map(told).join("; ");
    let most = |name: &str| numbers(name).last().copied().unwrap_or(0.0);
    format!(
        "{} worlds, {broken} with a broken promise: {faults} faults, {} puts ({} failed), {} reads \
         ({} failed), {} packets\n{} trees ({} failed), {} reads in trees ({} failed), {} checks by clients that made {} \
         shards\ngrown back after {:.0} s (median), {:.0} s at most; {simulated:.0} s \
         simulated in {seconds:.1} s, {:.0} times as fast\nat most {} jobs in a queue, {} tasks, {} \
         streams, {} packets, disks {} %; written {:.2} times (median), {:.2} at most\n{:.0} KiB of memory for each \
         machine at most, {} KiB more for each node when all was calm again than before\n{:.1} s of a processor for \
         each world, {:.0} s at most\n{ways}\n{struck}\n",
        all.len(),
        sum("puts"),
        sum("puts_failed"),
        sum("reads"),
        sum("reads_failed"),
        sum("packets"),
        sum("trees"),
        sum("trees_failed"),
        sum("tree_reads"),
        sum("tree_reads_failed"),
        sum("checks"),
        sum("mended_shards"),
        grew_back.get(grew_back.len() / 2).unwrap_or(&0.0),
        grew_back.last().unwrap_or(&0.0),
        simulated / seconds.max(1e-9),
        most("most_jobs"),
        most("most_tasks"),
        most("most_streams"),
        most("most_packets"),
        most("most_disk_percent"),
        written.get(written.len() / 2).unwrap_or(&0.0),
        written.last().unwrap_or(&0.0),
        most("most_machine_bytes") / 1024.0,
        all.iter().map(more_bytes).max().unwrap_or(0) >> 10,
        worked.iter().sum::<f64>() / worked.len().max(1) as f64,
        most("worked_seconds"),
    )
}
