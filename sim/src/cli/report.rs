//! `copse-sim report`: writes the document and its charts.
//!
//! Owns where they go. Touches nothing but the files of the report.

use std::{fs, path::PathBuf};

use clap::Args;
use copse_sim::report::{Effort, files};
use serde_json::json;

use super::{Failure, print, print_json};

#[derive(Args)]
pub(super) struct Arguments {
    /// Where durability.md and the directory of its charts go.
    #[arg(long, default_value = "docs")]
    to: PathBuf,
}

pub(super) fn run(arguments: &Arguments, as_json: bool) -> Result<(), Failure> {
    let files = files(Effort::Full);
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
