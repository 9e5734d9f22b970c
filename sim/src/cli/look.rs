//! Looking into worlds: step by step, two beside each other, and how fast they go by.
//!
//! Owns the printing. A world that is looked at is the same as one that is not.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Lines},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use clap::Args;
use copse_sim::cluster::{
    spec::Spec,
    trace::Log,
    watch::{Show, Steps},
    world,
};
use serde_json::json;

use super::{Failure, cluster, numbers::whole, print, print_json, wrong};

/// Lines that are shown before the first difference, and after it of each world.
const LINES_BEFORE: usize = 8;
const LINES_AFTER: usize = 8;

/// No world lasts longer: a day.
const SECONDS_MAX: u64 = 86_400;

/// Arguments of `step`.
#[derive(Args)]
pub(super) struct Step {
    #[command(flatten)]
    world: cluster::World,
    /// The first picture, in seconds of the world.
    #[arg(long, default_value_t = 0, value_parser = whole::<u64, 0, SECONDS_MAX>)]
    from: u64,
    /// The last one, in seconds of the world, which goes on to its end all the same [default: its end]
    #[arg(long, value_parser = whole::<u64, 0, SECONDS_MAX>)]
    until: Option<u64>,
    /// Seconds between two.
    #[arg(long, default_value_t = 10, value_parser = whole::<u64, 1, SECONDS_MAX>)]
    every: u64,
    /// What is shown; everything unless told otherwise.
    #[arg(long, value_delimiter = ',', value_enum)]
    show: Vec<Show>,
}

/// Arguments of `diff`.
#[derive(Args)]
pub(super) struct Diff {
    #[command(flatten)]
    world: cluster::World,
    /// The other world is that of this seed; else it is the same with all its faults and without a
    /// bug, which must differ only if the first has less or more.
    #[arg(long, value_name = "SEED", value_parser = whole::<u64, 0, { u64::MAX }>)]
    other: Option<u64>,
    /// Compares only events in words, not packets.
    #[arg(long)]
    words: bool,
}

/// Arguments of `speed`.
#[derive(Args)]
pub(super) struct Speed {
    /// Nodes.
    #[arg(long, default_value_t = 20, value_parser = whole::<u16, 12, 200>)]
    nodes: u16,
    /// How long three clients put and read, in seconds of the world.
    #[arg(long, default_value_t = 300, value_parser = whole::<u64, 1, SECONDS_MAX>)]
    seconds: u64,
    /// Everything follows from this number.
    #[arg(long, default_value_t = 1, value_parser = whole::<u64, 0, { u64::MAX }>)]
    seed: u64,
}

pub(super) fn step(arguments: &Step, as_json: bool) -> Result<(), Failure> {
    for_people(as_json, "step")?;
    let until = arguments.until.unwrap_or(SECONDS_MAX);
    if arguments.from > until {
        return Err(wrong(format!(
            "--from {} is after --until {until}: nothing is shown",
            arguments.from
        )));
    }
    let spec = arguments.world.spec()?;
    let all = [Show::Nodes, Show::Queue, Show::Disks, Show::Chunks];
    let steps = Steps {
        from: Duration::from_secs(arguments.from),
        until: Duration::from_secs(until),
        every: Duration::from_secs(arguments.every),
        show: if arguments.show.is_empty() { all.to_vec() } else { arguments.show.clone() },
        to: Box::new(std::io::stdout()),
    };
    print(&spec.to_string())?;
    let outcome = world::run_in_steps(&spec, Log::Tail, Some(steps));
    print(&cluster::story(&arguments.world, &spec, &outcome))
}

/// A world that runs in a process of its own and tells all of it.
struct Told {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    words: bool,
}

impl Told {
    fn start(world: &cluster::World, words: bool) -> Result<Self, Failure> {
        let mut program = Command::new(std::env::current_exe()?);
        program.args(["replay", "--to", "/dev/stdout"]).args(world.arguments());
        let mut child = program.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().ok_or("a world has no output")?;
        Ok(Self { child, lines: BufReader::new(stdout).lines(), words })
    }

    /// The next event; none after the last one.
    fn next(&mut self) -> Result<Option<String>, Failure> {
        for line in self.lines.by_ref() {
            let line = line?;
            let of_packet = |word: &str| line.get(13..).is_some_and(|text| text.starts_with(word));
            let is_event = line.get(..11).is_some_and(|at| at.trim().parse::<f64>().is_ok());
            let is_packet = ["sent ", "lost ", "stream "].into_iter().any(of_packet);
            if is_event && !(self.words && is_packet) {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    /// Ends the process, which nobody listens to any more.
    fn end(mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What is only for people to read has no JSON.
fn for_people(as_json: bool, command: &str) -> Result<(), Failure> {
    let refused = || wrong(format!("{command} has words only: leave out --json"));
    if as_json { Err(refused()) } else { Ok(()) }
}

pub(super) fn diff(arguments: &Diff, as_json: bool) -> Result<(), Failure> {
    for_people(as_json, "diff")?;
    let one = &arguments.world;
    let mut other = cluster::World { without: Vec::new(), ..one.clone() };
    other.seed = arguments.other.unwrap_or(one.seed);
    other.rules.canary = None;
    // Whoever asks for worlds that cannot be is told here.
    let (_, _) = (one.spec()?, other.spec()?);
    let (mut first, mut second) =
        (Told::start(one, arguments.words)?, Told::start(&other, arguments.words)?);
    let mut before: VecDeque<String> = VecDeque::new();
    let mut same = 0_u64;
    let text = loop {
        match (first.next()?, second.next()?) {
            (None, None) => break format!("the two are the same: {same} events\n"),
            (left, right) if left == right => {
                same += 1;
                before.extend(left);
                if before.len() > LINES_BEFORE {
                    before.pop_front();
                }
            }
            (left, right) => {
                let mut text = format!("the same for {same} events, the last of them:\n");
                before.iter().for_each(|line| text += &format!("  {line}\n"));
                for (name, line, told) in [("<", left, &mut first), (">", right, &mut second)] {
                    let mut next = line;
                    for _ in 0..LINES_AFTER {
                        let Some(line) = next else {
                            text += &format!("{name} the end\n");
                            break;
                        };
                        text += &format!("{name} {line}\n");
                        next = told.next()?;
                    }
                }
                break text;
            }
        }
    };
    first.end();
    second.end();
    print(&text)
}

pub(super) fn speed(arguments: &Speed, as_json: bool) -> Result<(), Failure> {
    let busy = Duration::from_secs(arguments.seconds);
    let spec = Spec::steady(arguments.seed, arguments.nodes, busy);
    let outcome = world::run(&spec, Log::Tail);
    if let Some(broken) = outcome.broken {
        return Err(format!("a world without faults broke a promise: {broken}").into());
    }
    let simulated = outcome.simulated.as_secs_f64();
    let real = outcome.real.as_secs_f64();
    // On a machine that does other things as well, this is what one core of its own would take.
    let worked = outcome.worked.map_or(real, |worked| worked.as_secs_f64());
    let (by_core, by_clock) = (simulated / worked, simulated / real);
    if as_json {
        return print_json(&json!({
            "nodes": spec.hosts,
            "simulated_seconds": simulated,
            "core_seconds": worked,
            "real_seconds": real,
            "simulated_per_core_second": by_core,
            "packets": outcome.packets,
            "puts": outcome.counts.puts,
            "reads": outcome.counts.reads,
        }));
    }
    print(&format!(
        "{} nodes, {} clients, {} puts, {} reads, {} packets: {simulated:.0} s simulated with {worked:.1} s \
         of one core, {by_core:.0} simulated seconds for each; in {real:.1} s by the clock, {by_clock:.0} for \
         each\n",
        spec.hosts, spec.clients, outcome.counts.puts, outcome.counts.reads, outcome.packets,
    ))
}
