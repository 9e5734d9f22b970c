//! The command line: arguments in, text or JSON out.
//!
//! Owns the commands and their printing. Computes nothing: the library does.

mod cluster;
mod durability;
mod look;
mod report;
mod spreading;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Whole networks under one seed, and how long data lasts in a network of other people's disks.
///
/// The parameters of these commands are experiments, not defaults of the product. Every figure
/// names the law of the repair times that it was found with.
#[derive(Parser)]
#[command(name = "copse-sim", version)]
struct Cli {
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one world of real nodes and clients, and says how it went.
    Run(cluster::Run),
    /// Runs the worlds of many seeds on all cores, and shows those in which a promise was broken.
    Swarm(cluster::Swarm),
    /// Writes everything that happens in a world, packet by packet.
    Replay(cluster::Replay),
    /// Shows a world from time to time: nodes, queues, disks, chunks.
    Step(look::Step),
    /// Finds the first moment at which two worlds differ.
    Diff(look::Diff),
    /// Measures how fast worlds without faults go by.
    Speed(look::Speed),
    /// Nines, losses and repair traffic: closed forms and simulated years.
    Durability(Box<durability::Arguments>),
    /// How evenly the ring loads its nodes, and what moves when one leaves.
    Placement(spreading::Placement),
    /// How fast and at what cost gossip tells everybody.
    Gossip(spreading::Gossip),
    /// Writes docs/durability.md with its charts and figures.
    Report(report::Arguments),
}

/// What went wrong, for people.
type Failure = Box<dyn core::error::Error>;

/// Runs the command that the arguments name.
#[allow(clippy::print_stderr)] // the last word of a program that fails
pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Run(arguments) => cluster::run(&arguments, cli.json),
        Command::Swarm(arguments) => cluster::swarm(&arguments, cli.json),
        Command::Replay(arguments) => cluster::replay(&arguments),
        Command::Step(arguments) => look::step(&arguments),
        Command::Diff(arguments) => look::diff(&arguments),
        Command::Speed(arguments) => look::speed(&arguments, cli.json),
        Command::Durability(arguments) => durability::run(&arguments, cli.json),
        Command::Placement(arguments) => spreading::placement(&arguments, cli.json),
        Command::Gossip(arguments) => spreading::gossip(&arguments, cli.json),
        Command::Report(arguments) => report::run(&arguments, cli.json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("copse-sim: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the result; a reader that has seen enough is no error.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}
