//! `copse verifier`: a capability to check and repair a tree, made of one to read it.
//!
//! Thin: what is listed and where it is stored is `copse_client::check`'s business. A verify
//! capability can be made again at any time, so it is printed like any result.

use std::{process::ExitCode, sync::Arc};

use copse_client::{
    check::{VerifierError, make_verifier},
    get::Downloader,
    transfer::Counters,
    tree_read::TreeReader,
};
use serde_json::json;

use crate::{
    exit::CliError, given::Given, output, progress::Progress, session::Session, waiting::Waiting,
};

pub(crate) async fn verifier(
    session: &Session,
    given: &Given,
    allow_fragile: bool,
) -> Result<ExitCode, CliError> {
    let (capability, path) = session.capability(given)?;
    let (_, network) = session.connect().await?;
    let tree = TreeReader::new(Downloader::new(network), &capability)?;
    let _waiting = Waiting::for_reads(session, tree.downloader());
    let counters = Arc::new(Counters::default());
    let progress = Progress::start("list", &counters, session.global.quiet, String::new);
    let unread = CliError::reading(&path);
    let made = make_verifier(&tree, &capability, path, allow_fragile, counters).await;
    drop(progress);
    let made = made.map_err(|error| match error {
        VerifierError::Read(error) => unread(error),
        error => error.into(),
    })?;
    let (worst, target) = made.redundancy.worst.unwrap_or_default();
    if session.global.json {
        output::print(json!({
            "verify_capability": made.capability.to_string(),
            "chunks": made.chunks,
            "list_bytes": made.manifest_bytes,
            "sent_bytes": made.sent_bytes,
            "redundancy_min": worst,
            "redundancy_target": target,
            "chunks_incomplete": made.redundancy.thin_chunks,
        }))?;
    } else {
        output::print(&made.capability)?;
    }
    let safety = match made.redundancy.thin_chunks {
        0 => "it has all its shards".to_owned(),
        _ => format!(
            "its thinnest chunk has {worst} of {}: run the same command again when all nodes answer",
            output::count(target as u64, "shard")
        ),
    };
    session.say(format!(
        "stored a list of {}, {}; {safety}",
        output::count(made.chunks, "chunk"),
        output::bytes(made.manifest_bytes),
    ));
    Ok(ExitCode::SUCCESS)
}
