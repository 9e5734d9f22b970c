//! `copse-sim report`: writes the document, its charts and its figures, or checks those that are there.
//!
//! Owns where they go. Touches nothing but the files of the report.

use std::{fs, path::PathBuf};

use clap::Args;
use copse_sim::report::{Effort, File, files};
use serde_json::json;

use super::{Failure, print, print_json};

#[derive(Args)]
pub(super) struct Arguments {
    /// Where durability.md and the directory of its charts and figures go.
    #[arg(long, default_value = "docs")]
    to: PathBuf,
    /// Write nothing; fail if a file there is not what would be written now.
    #[arg(long)]
    check: bool,
}

pub(super) fn run(arguments: &Arguments, as_json: bool) -> Result<(), Failure> {
    let files = files(Effort::Full);
    if arguments.check {
        return check(arguments, &files, as_json);
    }
    let mut written = Vec::new();
    for file in files {
        let path = arguments.to.join(&file.path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .map_err(|error| format!("cannot make {}: {error}", parent.display()))?;
        }
        fs::write(&path, file.content)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        written.push(path.display().to_string());
    }
    if as_json {
        return print_json(&json!({ "written": written, "repair_time_laws": "both, named in it" }));
    }
    print(&format!("{}\nboth repair-time laws, named with every figure\n", written.join("\n")))
}

fn check(arguments: &Arguments, files: &[File], as_json: bool) -> Result<(), Failure> {
    let path = |file: &File| arguments.to.join(&file.path);
    let is_same = |file: &&File| fs::read(path(file)).is_ok_and(|it| it == file.content.as_bytes());
    let others = files.iter().filter(|file| !is_same(file));
    let others: Vec<String> = others.map(|file| path(file).display().to_string()).collect();
    if !others.is_empty() {
        let named = others.join(", ");
        return Err(format!("not what this program writes: {named}; run `copse-sim report`").into());
    }
    if as_json {
        return print_json(&json!({ "same": files.len() }));
    }
    print(&format!("all {} files are what this program writes\n", files.len()))
}
