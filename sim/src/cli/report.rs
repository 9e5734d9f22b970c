//! `copse-sim report`: writes the document, its charts and its figures, or checks those that are there.
//!
//! Owns where they go. Touches nothing but the files of the report.

use std::{fs, path::PathBuf};

use clap::Args;
use copse_sim::report::{DIRECTORY, DOCUMENT, Effort, File, files};
use serde_json::json;

use super::{Failure, print, print_json, wrong};

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
    if arguments.check {
        // Said before the minutes of work, not after them.
        let first = arguments.to.join(DOCUMENT);
        fs::metadata(&first).map_err(|error| {
            wrong(format!(
                "no report to check at {}: {error}; say --to, or write one",
                first.display()
            ))
        })?;
        return check(arguments, &files(Effort::Full), as_json);
    }
    let figures = arguments.to.join(DIRECTORY);
    fs::create_dir_all(&figures).map_err(|error| {
        wrong(format!("cannot make {}: {error}; say --to and a directory", figures.display()))
    })?;
    let mut written = Vec::new();
    for file in files(Effort::Full) {
        let path = arguments.to.join(&file.path);
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
