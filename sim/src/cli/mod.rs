//! The command line: arguments in, text or JSON out.
//!
//! Owns the commands and their printing. Computes nothing: the library does.

mod cluster;
mod durability;
mod look;
mod numbers;
mod report;
mod spreading;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

/// Whole networks under one seed, and how long data lasts in a network of other people's disks.
///
/// `durability` takes the settings of the product for all that is not said, and says which it took; sizes, lives and
/// calamities are experiments. Every figure names the law of the repair times that it was found with.
#[derive(Parser)]
#[command(
    name = "copse-sim",
    version,
    after_help = "Exit codes: 0 done; 1 a promise was broken, or files are not what they should be; 2 wrong input"
)]
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

/// What was asked for cannot be: the same exit code as for words that are not understood at all.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongInput(String);

/// The exit code for [`WrongInput`], and clap's own.
const EXIT_WRONG_INPUT: u8 = 2;

/// The input is wrong for this reason.
fn wrong(why: impl Into<String>) -> Failure {
    Box::new(WrongInput(why.into()))
}

/// The input is wrong, as the library says.
#[allow(clippy::needless_pass_by_value)] // for map_err
fn wrong_input(why: impl core::error::Error) -> Failure {
    wrong(why.to_string())
}

/// Runs the command that the arguments name.
#[allow(clippy::print_stderr)] // the last word of a program that fails
pub(crate) fn run() -> ExitCode {
    let cli = parsed();
    let done = match cli.command {
        Command::Run(arguments) => cluster::run(&arguments, cli.json),
        Command::Swarm(arguments) => cluster::swarm(&arguments, cli.json),
        Command::Replay(arguments) => cluster::replay(&arguments, cli.json),
        Command::Step(arguments) => look::step(&arguments, cli.json),
        Command::Diff(arguments) => look::diff(&arguments, cli.json),
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
            if failure.is::<WrongInput>() {
                ExitCode::from(EXIT_WRONG_INPUT)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// The command line as it was given. What begins with a hyphen is a value where one is due, so that who writes
/// `--seed -1` is told what a seed is.
fn parsed() -> Cli {
    let takes_value = |argument: &clap::Arg| argument.get_action().takes_values();
    let command = Cli::command().mut_subcommands(|command| {
        command.mut_args(|argument| {
            let takes_value = takes_value(&argument);
            argument.allow_hyphen_values(takes_value)
        })
    });
    Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
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
