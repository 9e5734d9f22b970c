//! `copse-sim`: whole networks under one seed, and how long data lasts, from the command line.
//!
//! Owns nothing but the start: the commands are in `cli`, the work in the library.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
