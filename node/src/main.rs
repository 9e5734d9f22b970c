//! `copse-node`: the daemon and its commands. All of it lives in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    copse_node::commands::main()
}
