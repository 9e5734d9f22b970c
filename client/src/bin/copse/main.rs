//! `copse`: put files into a network and get them back.
//!
//! Thin: reads the command line, calls the library, prints. Results go to standard output, all else
//! to standard error.

mod args;
mod check;
mod exit;
mod get;
mod given;
mod list;
mod network;
mod output;
mod plan;
mod progress;
mod put;
mod serve;
mod session;
mod status;
mod stop;
mod verifier;
mod waiting;

use std::{io::IsTerminal as _, process::ExitCode};

use clap::{CommandFactory as _, Parser as _};
use copse_client::check::CheckOptions;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};
use exit::CliError;
use given::Given;
use session::Session;
use stop::Stop;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = match cli.global.verbose {
        0 => "error",
        1 => "copse=info,copse_client=info,warn",
        _ => "copse=debug,copse_client=debug,info",
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("COPSE_LOG").unwrap_or_else(|_| filter.into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            output::tell(format_args!("copse: {}", output::sentence(&error.message)));
            ExitCode::from(error.code)
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, CliError> {
    if let Command::Completions { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "copse", &mut script);
        output::print(String::from_utf8_lossy(&script).trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::other(format!("cannot start: {error}")))?;
    // A service is stopped by signals: for it that is a good end. A put leaves no chunk in part.
    let stops_itself = matches!(cli.command, Command::Serve { .. } | Command::Put(_));
    let resumable = cli.command.is_resumable();
    let result = runtime.block_on(async {
        if stops_itself {
            return command(cli).await;
        }
        tokio::select! {
            biased;
            result = command(cli) => result,
            // From when the command first waits: one that reads its argument from standard input before is ended
            // by the system.
            asked = Stop::once() => Err(asked.err().unwrap_or_else(|| CliError::interrupted(resumable))),
        }
    });
    // Threads that still read or write files are not waited for: what they did can be gone on
    // with.
    runtime.shutdown_background();
    result
}

async fn command(cli: Cli) -> Result<ExitCode, CliError> {
    let session = Session::new(cli.global)?;
    match cli.command {
        Command::Join { token } => network::join(&session, &given::token(&token)?).await,
        Command::Put(arguments) => put::put(&session, arguments).await,
        Command::Get { capability, destination, partial } => {
            get::get(&session, &Given::read(&capability)?, destination, partial).await
        }
        Command::Cat { capability, range } => {
            get::cat(&session, &Given::read(&capability)?, range).await
        }
        Command::Ls { capability, long, recursive } => {
            list::ls(&session, &Given::read(&capability)?, long, recursive).await
        }
        Command::Nodes => network::nodes(&session).await,
        Command::Status => status::status(&session).await,
        Command::Check { capability, repair, deep } => {
            let given = Given::read(&capability)?;
            check::check(&session, &given, CheckOptions { deep, repair }).await
        }
        Command::Verifier { capability, allow_fragile } => {
            verifier::verifier(&session, &Given::read(&capability)?, allow_fragile).await
        }
        Command::Plan(arguments) => plan::plan(&session, &arguments).await,
        Command::Doctor => network::doctor(&session).await,
        Command::Serve { capability, grpc, token_file } => {
            let given = Given::read(&capability)?;
            serve::serve(&session, &given, &grpc, token_file.as_deref()).await
        }
        Command::Completions { .. } => Ok(ExitCode::SUCCESS),
    }
}
