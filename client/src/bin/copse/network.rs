//! `copse join`, `copse nodes`, `copse doctor`: the way to the network.

use std::{
    collections::BTreeMap,
    os::unix::ffi::OsStrExt as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use copse_client::{network::Network, profile::Profile};
use copse_core::{
    directory::{Directory, Standing},
    geometry::Geometry,
    ids::NodeId,
    ring::Ring,
    token::JoinToken,
};
use copse_proto::door::{InfoReply, StoreInfo};
use futures::{StreamExt as _, stream};
use serde_json::json;

use crate::{
    exit::{BAD_CAPABILITY, CliError, OTHER, UNREACHABLE},
    output, plan,
    session::Session,
};

/// Nodes asked at once.
const ASKED_AT_ONCE: usize = 32;

pub(crate) async fn join(session: &Session, token: &str) -> Result<ExitCode, CliError> {
    let token: JoinToken = token.parse().map_err(|error| CliError::new(BAD_CAPABILITY, error))?;
    let new = Profile::open(&session.home).is_err();
    let profile = Profile::join(&session.home, &token)?;
    let network = profile.connect().await.map_err(|error| {
        CliError::new(UNREACHABLE, format!("joined, but not connected: {error}"))
    })?;
    let nodes = network.view().ring.len();
    if session.global.json {
        let mut value = json!({ "network": network.id().to_string(), "nodes": nodes });
        output::set_path(&mut value, "home", session.home.as_os_str().as_bytes());
        value["advice"] = plan::of_default(&network).into();
        output::print(value)?;
        return Ok(ExitCode::SUCCESS);
    }
    session.say(format!(
        "joined network {} with {}",
        network.id().short(),
        output::count(nodes as u64, "node")
    ));
    match plan::of_default(&network) {
        None => session.say("one node loses what is on it when it goes: start another"),
        // Who joins again has read it.
        Some(default) if new => session.say(default),
        Some(_) => {}
    }
    if new {
        session.say(format!(
            "this client's secret is in {}: with a copy of it, equal files put from another \
             machine are stored once",
            session.home.join("secret").display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// What a node said, or why it did not.
struct Answer {
    node: NodeId,
    info: Result<(InfoReply, Duration), String>,
}

/// How a node is gone for good, as all can verify: nobody need ask it or look after it. The directory
/// keeps its record.
fn gone(directory: &Directory, node: &NodeId) -> Option<&'static str> {
    match directory.standing(node)? {
        Standing::Left => Some("left"),
        Standing::Evicted => Some("evicted"),
        Standing::Active | Standing::Leaving => None,
    }
}

/// Asks all nodes that are not gone.
async fn ask_all(network: &Network) -> BTreeMap<NodeId, Answer> {
    let view = network.view();
    let nodes: Vec<NodeId> = view
        .directory
        .iter()
        .map(|record| record.record().node)
        .filter(|node| gone(&view.directory, node).is_none())
        .collect();
    let mut answers: BTreeMap<NodeId, Answer> = stream::iter(nodes)
        .map(|node| async move {
            let started = Instant::now();
            let info = network.info(node).await;
            let info =
                info.map(|info| (info, started.elapsed())).map_err(|refusal| refusal.to_string());
            (node, Answer { node, info })
        })
        .buffer_unordered(ASKED_AT_ONCE)
        .collect()
        .await;
    // Of some this was learned meanwhile.
    let view = network.view();
    answers.retain(|node, answer| answer.info.is_ok() || gone(&view.directory, node).is_none());
    answers
}

pub(crate) async fn nodes(session: &Session) -> Result<ExitCode, CliError> {
    let (_, network) = session.connect().await?;
    let answers = ask_all(&network).await;
    let view = network.view();
    if session.global.json {
        let nodes: Vec<_> = view
            .directory
            .iter()
            .map(|signed| {
                let record = signed.record();
                let info = answers.get(&record.node).map(|answer| &answer.info);
                let reply = info.and_then(|info| info.as_ref().ok());
                let store = reply.and_then(|(info, _)| info.store.as_ref());
                json!({
                    "id": record.node.to_string(),
                    "zone": record.zone,
                    "state": format!("{:?}", record.state).to_lowercase(),
                    "gone": gone(&view.directory, &record.node),
                    "capacity_bytes": record.capacity_bytes,
                    "used_bytes": store.map(|store| store.disk_bytes),
                    "shards": store.map(|store| store.shards),
                    "accepting": store.map(|store| store.accepting),
                    "refusing_reason": store.map(|store| store.refusing_reason.clone()),
                    "quarantined": store.map(|store| store.quarantined),
                    "addresses": record.addresses,
                    "grpc": record.grpc,
                    "version": record.version,
                    "reachable": reply.is_some(),
                    "latency_ms": reply.map(|(_, took)| took.as_secs_f64() * 1000.0),
                    "error": info.and_then(|info| info.as_ref().err()),
                })
            })
            .collect();
        output::print(json!({ "network": network.id().to_string(), "nodes": nodes }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(format_args!(
        "{:<10} {:<12} {:>10} {:>10} {:>8} {:>9}  ADDRESS",
        "NODE", "ZONE", "USED", "CAPACITY", "SHARDS", "ANSWERS"
    ))?;
    for signed in view.directory.iter() {
        let record = signed.record();
        let address = record.grpc.first().map(ToString::to_string).unwrap_or_default();
        let zone = if record.zone.is_empty() { "-" } else { &record.zone };
        let capacity = output::bytes(record.capacity_bytes);
        let (used, shards, answers, full) =
            match answers.get(&record.node).map(|answer| &answer.info) {
                Some(Ok((info, took))) => {
                    let store = info.store.clone().unwrap_or_default();
                    (
                        output::bytes(store.disk_bytes),
                        store.shards.to_string(),
                        format!("{:.1} ms", took.as_secs_f64() * 1000.0),
                        takes(&store),
                    )
                }
                answer => match gone(&view.directory, &record.node) {
                    Some(gone) if answer.is_none() => {
                        ("-".to_owned(), "-".to_owned(), gone.to_owned(), "")
                    }
                    _ => ("?".to_owned(), "?".to_owned(), "no".to_owned(), ""),
                },
            };
        output::print(format_args!(
            "{:<10} {:<12} {used:>10} {capacity:>10} {shards:>8} {answers:>9}  {address}{full}",
            record.node.short(),
            output::name(zone.as_bytes()),
        ))?;
    }
    for answer in answers.values() {
        if let Err(error) = &answer.info {
            session.say(format!("node {}: {error}", answer.node.short()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a node that does not take every shard still takes. One is full when it has refused a shard: whether a
/// smaller one has room it does not say.
fn takes(store: &StoreInfo) -> &'static str {
    match store.accepting {
        true => "",
        false if is_full(store) => "  takes small shards at most",
        false => "  takes no shards",
    }
}

fn is_full(store: &StoreInfo) -> bool {
    store.refusing_reason.starts_with("full")
}

/// One thing that was looked at.
struct Check {
    name: &'static str,
    /// The exit code; 0 when it is well.
    code: u8,
    detail: String,
    /// In lines.
    advice: Vec<String>,
}

impl Check {
    fn new(name: &'static str, ok: bool, detail: impl ToString, advice: impl ToString) -> Self {
        Self::with_code(name, if ok { 0 } else { OTHER }, detail, advice)
    }

    fn with_code(
        name: &'static str,
        code: u8,
        detail: impl ToString,
        advice: impl ToString,
    ) -> Self {
        Self { name, code, detail: detail.to_string(), advice: vec![advice.to_string()] }
    }

    /// What to do, in lines; nothing when it is well.
    fn advice(&self) -> &[String] {
        if self.is_well() { &[] } else { &self.advice }
    }

    fn is_well(&self) -> bool {
        self.code == 0
    }

    /// As it is printed. Nodes chose some of the words.
    fn lines(&self) -> Vec<String> {
        let mark = if self.is_well() { "ok " } else { "BAD" };
        let first = format!("{mark} {}: {}", self.name, output::sentence(&self.detail));
        let advice = self.advice().iter().map(|line| format!("    {}", output::sentence(line)));
        std::iter::once(first).chain(advice).collect()
    }
}

pub(crate) async fn doctor(session: &Session) -> Result<ExitCode, CliError> {
    let checks = examine(session).await;
    // What other commands would end with is more than "something".
    let worst = checks.iter().map(|check| check.code).max().unwrap_or(0);
    if session.global.json {
        let checks: Vec<_> = checks
            .iter()
            .map(|check| {
                json!({
                    "name": check.name,
                    "ok": check.is_well(),
                    "detail": check.detail,
                    "advice": check.advice().join("\n    "),
                })
            })
            .collect();
        output::print(json!({ "checks": checks }))?;
    } else {
        for line in checks.iter().flat_map(Check::lines) {
            output::print(line)?;
        }
    }
    Ok(ExitCode::from(worst))
}

/// What was looked at, up to the first thing without which nothing more can be said.
async fn examine(session: &Session) -> Vec<Check> {
    let home = session.home.display();
    // Not the session's, which warns of what is looked at here.
    let profile = match Profile::open(&session.home).map_err(CliError::from) {
        Ok(profile) => profile,
        Err(error) => {
            return vec![Check::with_code("state directory", error.code, home, error.message)];
        }
    };
    let known = format!("{home}, network {}", profile.network().short());
    let mut checks = vec![Check::new("state directory", true, known, ""), secret(&profile)];
    let network = match profile.connect().await {
        Ok(network) => network,
        Err(error) => {
            checks.push(Check::with_code("network", UNREACHABLE, "no node answers", error));
            return checks;
        }
    };
    let answers = ask_all(&network).await;
    let view = network.view();
    checks.push(who_answers(&answers, &view.directory));
    checks.push(room(&answers));
    checks.push(damage(&answers));
    checks.push(default_geometry(&view.ring, takers(&answers)));
    checks
}

fn secret(profile: &Profile) -> Check {
    match profile.open_secret() {
        None => Check::new("secret", true, "only you can read it", ""),
        Some(path) => {
            let path = path.display();
            let detail = format!("others of this machine can get at {path}");
            Check::new("secret", false, detail, format!("take that away: chmod 600 {path}"))
        }
    }
}

/// Nodes that take shards of every size now.
fn takers(answers: &BTreeMap<NodeId, Answer>) -> usize {
    let takes = |answer: &&Answer| {
        let info = answer.info.as_ref().ok();
        info.and_then(|(info, _)| info.store.as_ref()).is_some_and(|store| store.accepting)
    };
    answers.values().filter(takes).count()
}

fn who_answers(answers: &BTreeMap<NodeId, Answer>, directory: &Directory) -> Check {
    let known = directory.iter().map(|signed| signed.record().node);
    let gone = known.filter(|node| gone(directory, node).is_some()).count() as u64;
    let silent = answers.values().filter_map(|answer| {
        let error = answer.info.as_ref().err()?;
        Some(format!("node {}: {error}", answer.node.short()))
    });
    let mut silent: Vec<String> = silent.collect();
    let of = answers.len();
    let mut detail = format!("{} of {of} answer", of - silent.len());
    if gone > 0 {
        let gone = output::count(gone, "node");
        detail += &format!("; {gone} left or evicted, and not counted");
    }
    if silent.is_empty() {
        return Check::new("nodes", true, detail, "");
    }
    silent.push(
        "start them again, or look at the way to them (`copse-node status` on their machines says more); of one \
         that stays away the others make again what it held"
            .to_owned(),
    );
    Check { name: "nodes", code: OTHER, detail, advice: silent }
}

fn room(answers: &BTreeMap<NodeId, Answer>) -> Check {
    let full = of_stores(answers, |store| {
        let more = if is_full(store) { " (a small shard may still have room)" } else { "" };
        (!store.accepting).then(|| format!("{}{more}", store.refusing_reason))
    });
    let advice = "free their disks, raise their capacity, or add nodes";
    match full {
        None => Check::new("room", true, "every node takes shards", advice),
        Some(full) => Check::new("room", false, full, advice),
    }
}

fn damage(answers: &BTreeMap<NodeId, Answer>) -> Check {
    let damaged = |store: &StoreInfo| {
        let count = store.quarantined;
        (count > 0).then(|| output::count(count, "shard"))
    };
    let advice = "look at the disks of these nodes; reads go around the damage";
    match of_stores(answers, damaged) {
        None => Check::new("damage", true, "no node has found a damaged shard", advice),
        Some(damaged) => Check::new("damage", false, damaged, advice),
    }
}

/// What is said of the stores of which there is something to say.
fn of_stores(
    answers: &BTreeMap<NodeId, Answer>,
    say: impl Fn(&StoreInfo) -> Option<String>,
) -> Option<String> {
    let said = answers.values().filter_map(|answer| {
        let store = answer.info.as_ref().ok()?.0.store.as_ref()?;
        Some(format!("node {}: {}", answer.node.short(), say(store)?))
    });
    let said: Vec<String> = said.collect();
    (!said.is_empty()).then(|| said.join("; "))
}

/// What is put with the default geometry survives, in the whole network and with the nodes that take shards now.
fn default_geometry(ring: &Ring, takers: usize) -> Check {
    let name = "default geometry";
    let another = "start another node: copse-node init --join TOKEN";
    let nodes = |count: usize| output::count(count as u64, "node");
    let Some(geometry) = Geometry::default_for(ring.len()) else {
        let detail = match ring.len() {
            0 => "no node takes part",
            _ => "what is on the only node is lost with it",
        };
        return Check::new(name, false, detail, another);
    };
    let survived = ring.survives(geometry).nodes;
    let on_one_node = geometry.total().div_ceil(takers.max(1));
    if takers >= geometry.total().min(ring.len()) {
        let detail = format!(
            "{geometry}, survives the loss of any {}; `copse plan` says for how long",
            nodes(survived)
        );
        return Check::new(name, survived > 0, detail, another);
    }
    let now = geometry.parity() / on_one_node.max(1);
    let shards = output::count(on_one_node as u64, "shard");
    let takers = match takers {
        0 => "no node takes large".to_owned(),
        1 => "only 1 node takes large".to_owned(),
        _ => format!("only {} take large", nodes(takers)),
    };
    let detail = match now {
        0 => format!(
            "{geometry}, but {takers} shards now: more than small files is refused or would not survive one loss"
        ),
        _ => format!(
            "{geometry}, but {takers} shards now: of what is put now up to {shards} of a chunk are on one node, \
             and it survives the loss of any {}; of what lies where it should, any {}",
            nodes(now),
            nodes(survived)
        ),
    };
    Check::new(name, now > 0, detail, "see to the nodes named above, or start others")
}

#[cfg(test)]
mod tests {
    use copse_core::ring::RingMember;

    use super::*;

    #[test]
    fn nodes_that_take_no_shards_are_missing_from_what_the_default_geometry_survives() {
        let members = (0..16u8).map(|number| RingMember {
            id: NodeId::new([number; 32]),
            capacity_bytes: 1 << 40,
            zone: String::new(),
        });
        let ring = Ring::build(members.collect());
        for (takers, code, words) in [
            (16, 0, "10+6, survives the loss of any 6 nodes; `copse plan`"),
            (
                15,
                0,
                "only 15 nodes take large shards now: of what is put now up to 2 shards of a chunk are on one node, \
                     and it survives the loss of any 3 nodes; of what lies where it should, any 6 nodes",
            ),
            (
                5,
                0,
                "up to 4 shards of a chunk are on one node, and it survives the loss of any 1 node;",
            ),
            (
                2,
                OTHER,
                "only 2 nodes take large shards now: more than small files is refused or would not survive one loss",
            ),
            (1, OTHER, "only 1 node takes large shards now"),
            (0, OTHER, "no node takes large shards now"),
        ] {
            let check = default_geometry(&ring, takers);
            assert_eq!(check.code, code, "{takers}: {}", check.detail);
            assert!(check.detail.contains(words), "{takers}: {}", check.detail);
        }
        let alone = default_geometry(&Ring::build(Vec::new()), 0);
        assert_eq!((alone.code, &alone.detail[..]), (OTHER, "no node takes part"));
    }

    #[test]
    fn of_a_full_node_no_more_is_said_than_is_known() {
        let store = |accepting, reason: &str| {
            let refusing_reason = reason.to_owned();
            takes(&StoreInfo { accepting, refusing_reason, ..StoreInfo::default() })
        };
        assert_eq!(store(true, ""), "");
        assert_eq!(store(false, "full: its disk is full"), "  takes small shards at most");
        assert_eq!(store(false, "the disk failed: see the node's log"), "  takes no shards");
    }

    #[test]
    fn advice_is_for_what_is_not_well() {
        for (ok, advice) in [(true, &[][..]), (false, &["do"])] {
            assert_eq!(Check::new("room", ok, "so", "do").advice(), advice);
        }
    }

    #[test]
    fn what_nodes_say_cannot_upset_the_terminal() {
        let words = "full\x1b]0;owned\x07\r\nok  everything: fine";
        for ok in [true, false] {
            let check = Check::new("room", ok, words, words);
            assert_eq!(check.code, if ok { 0 } else { OTHER });
            let lines = check.lines();
            assert_eq!(lines.len(), if ok { 1 } else { 2 });
            for line in lines {
                assert!(!line.chars().any(char::is_control), "{line:?}");
                assert!(line.contains("full"), "{line:?}");
            }
        }
    }
}
