//! How long simulated years take, and how the cost of an event grows with the network.
//!
//! `cargo bench -p copse-sim` prints times of the processor next to what they are allowed to be: one
//! simulation runs on one core, and other programs on the machine do not count.
//! With `-- growth` only how the cost of an event grows from 100 to 100,000 nodes; with `-- large` also
//! 10,000 nodes chunk by chunk, and 100,000 with 1,000,000 chunks.

#![allow(clippy::print_stdout)] // its only purpose

use copse_sim::{
    closed::chain::Scheme,
    event::{self, HOURS_PER_YEAR, Scenario, Unit},
    law::RepairLaw,
    random::Lifetime,
};
use rustix::time::{ClockId, clock_gettime};

/// Seconds that this thread has had a processor.
fn processor_s() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn scenario(nodes: usize, chunks: usize, years: f64, unit: Unit) -> Scenario {
    let scheme = Scheme::new(10, 16, 13).expect("a scheme");
    let life = Lifetime::new(HOURS_PER_YEAR, 1.0).expect("a lifetime");
    let plain = Scenario::plain(nodes, scheme, life, 24.0, RepairLaw::Exponential);
    Scenario { chunks, years, unit, ..plain }
}

/// Highest resident memory of this process so far, in MiB, where the system tells.
fn memory_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// How busy the machine is: the load average of the last minute, where the system tells.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

fn measure(what: &str, scenario: &Scenario, allowed_s: f64) {
    let (start, wall) = (processor_s(), std::time::Instant::now());
    let out = event::run(scenario).expect("a possible scenario");
    let seconds = processor_s() - start;
    let whole_s = wall.elapsed().as_secs_f64();
    println!(
        "{what}: {seconds:.2} s of a core, {whole_s:.2} s by the clock (allowed {allowed_s} s), {} events, {:.0} ns an event, {:.0} ns a \
         shard looked at, queue {} long, {:.0} MiB",
        out.events,
        seconds * 1e9 / out.events as f64,
        seconds * 1e9 / out.touches.max(1) as f64,
        out.queue_max,
        memory_mib()
    );
}

/// How the cost of an event grows from 100 to 100,000 nodes: four chunks a node, 100,000 years of nodes
/// each, placement, start and the making of rings included. Each against log2 of the nodes, and both against
/// the first row: growth above 1 in the last column is more than the logarithm's.
fn growth(unit: Unit, what: &str) {
    println!("{what}, 4 chunks a node:");
    let mut first = None;
    for nodes in [100, 1000, 10_000, 100_000] {
        let years = 1e5 / nodes as f64;
        let scenario = scenario(nodes, nodes * 4, years, unit);
        let start = processor_s();
        let out = event::run(&scenario).expect("a possible scenario");
        let seconds = processor_s() - start;
        let events = out.events as f64;
        let (ns, steps, log) =
            (seconds * 1e9 / events, out.steps as f64 / events, (nodes as f64).log2());
        let (ns_0, steps_0, log_0) = *first.get_or_insert((ns, steps, log));
        println!(
            "{nodes:>7} nodes, {years:>4} years: {events:>8} events, {ns:5.0} ns and {steps:5.1} steps an event; \
             log2 N x {:.2}, time x {:.2}, steps x {:.2}; time over log {:.2}, steps over log {:.2}",
            log / log_0,
            ns / ns_0,
            steps / steps_0,
            ns / ns_0 / (log / log_0),
            steps / steps_0 / (log / log_0),
        );
    }
}

/// The same network as the product's defaults make it: patience, thin lane, timeouts, freeze.
fn product(of: &Scenario) -> Scenario {
    let geometry = "10+6".parse().expect("a geometry");
    let made = Scenario::product(of.nodes, geometry, of.life, of.repair_hours, of.law);
    Scenario { chunks: of.chunks, years: of.years, ..made.expect("a scheme") }
}

fn main() {
    println!("load of the machine: {}", load());
    println!("10+6, threshold 13, mean life 1 year, exponential repair times of 24 h on average");
    growth(
        Unit::Arc,
        "by arcs, of which there are at most 65,536, so that the mix of events changes",
    );
    growth(Unit::Chunk, "each chunk by itself: the same mix of events at all sizes");
    if std::env::args().any(|argument| argument == "growth") {
        return;
    }
    let target = scenario(10_000, 1_000_000, 10.0, Unit::Arc);
    measure("10,000 nodes, 10 years, 1,000,000 chunks by arcs", &target, 60.0);
    let with_defaults = product(&target);
    measure("the same with the product's patience, thin lane and guards", &with_defaults, 60.0);
    println!("load of the machine: {}", load());
    if std::env::args().any(|argument| argument == "large") {
        let chunks = Scenario { unit: Unit::Chunk, ..target };
        measure("the same, each chunk by itself", &chunks, 600.0);
        let large = scenario(100_000, 1_000_000, 1.0, Unit::Arc);
        measure("100,000 nodes, 1 year, 1,000,000 chunks by arcs", &large, 300.0);
    }
}
