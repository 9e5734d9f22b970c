//! `copse plan` as people and programs see it: what it prints, byte for byte, and its exit codes.
//!
//! Needs no network, save for the question of how many nodes one has. When the output is meant to change, run the tests once with `COPSE_BLESS=1` and
//! look at the difference.

mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use copse_client::profile::Profile;
use copse_core::token::JoinToken;
use support::FakeNetwork;

/// The exit codes of a network that does not answer, and of a wish that cannot be met.
const UNREACHABLE: i32 = 5;
const UNMET: i32 = 12;

struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn plan(arguments: &str) -> Run {
    let home = tempfile::tempdir().expect("a directory");
    plan_of(home.path(), arguments)
}

/// The same for who has joined a network.
fn plan_of(home: &Path, arguments: &str) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_copse"))
        .args(["plan", "--home"])
        .arg(home)
        .args(arguments.split_whitespace())
        .output()
        .expect("copse runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Compares what is printed with `tests/golden/NAME.txt`.
fn check(name: &str, arguments: &str, code: i32) {
    let run = plan(arguments);
    assert_eq!(run.code, Some(code), "{arguments}: {}", run.stderr);
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let got = format!("$ copse plan {arguments}\n{}", run.stdout);
    if std::env::var_os("COPSE_BLESS").is_some() {
        std::fs::write(&path, &got).expect("written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(got, expected, "{} is not what copse plan prints", path.display());
}

#[test]
fn a_wish_that_can_be_met() {
    check("plan-met.txt", "--nodes 12 --node-life 18months --online 95% --want 11-nines", 0);
}

#[test]
fn a_wish_that_cannot_be_met_says_what_would_do() {
    check("plan-unmet.txt", "--nodes 8 --node-life 3months --online 90% --want 11-nines", UNMET);
}

#[test]
fn the_default_is_advised_when_it_is_enough() {
    check("plan-default.txt", "--nodes 20 --zones 5 --node-life 3years --want 9-nines", 0);
}

#[test]
fn a_geometry_of_ones_own_is_judged() {
    check("plan-asked.txt", "--nodes 12 --zones 2 --geometry 8+4 --want 5-nines", UNMET);
}

#[test]
fn one_node_is_told_to_find_others() {
    check("plan-alone.txt", "--nodes 1", UNMET);
}

#[test]
fn programs_get_the_same_figures() {
    let run = plan("--json --nodes 12 --node-life 18months --want 11-nines");
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let value: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(value["met"], true);
    let best = &value["best"];
    let nines = |law: &str| best[law]["nines"].as_f64().expect("a number");
    assert!(nines("exponential_repair_times") >= 11.0);
    assert!(nines("fixed_repair_times") > nines("exponential_repair_times"));
    assert_eq!(value["default"]["geometry"], "7+5");
    assert_eq!(value["default_lacks"], serde_json::json!(["nines"]));
    let life = value["node_life_hours"].as_f64().expect("a number");
    assert!((life - 18.0 * 730.5).abs() < 1e-6);
    let unmet = plan("--json --nodes 2 --want 11-nines");
    assert_eq!(unmet.code, Some(UNMET));
    let value: serde_json::Value = serde_json::from_str(&unmet.stdout).expect("JSON");
    assert_eq!(value["met"], false);
    assert!(value["would_do"]["nodes"].as_u64() > Some(2), "{value}");
}

#[test]
fn what_is_not_understood_is_named_with_an_example() {
    for (arguments, expected) in [
        ("--nodes 12 --node-life 18", "for example 250ms, 10s, 30min, 24h, 7d, 18months or 5years"),
        ("--nodes 12 --want 11", "write 11-nines"),
        ("--nodes 12 --online 101%", "write 5% or 0.05"),
        ("--nodes 12 --stored 5", "for example 10GiB"),
        ("--nodes 12 --uplink 5", "for example 500kbit"),
        ("--nodes 0", "--nodes must be 1 to 100,000"),
        ("--nodes 3 --zones 4", "--zones must not be more than the nodes"),
        ("--nodes 3 --geometry 8", "write DATA+PARITY"),
        ("", "say how many nodes with --nodes"),
    ] {
        let run = plan(arguments);
        assert_eq!(run.code, Some(2), "{arguments}: {}{}", run.stdout, run.stderr);
        assert!(run.stderr.contains(expected), "{arguments}: {}", run.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nodes_the_network_is_asked() {
    let fake = FakeNetwork::start(12).await;
    for (node, zone) in fake.nodes.iter().zip(["attic", "barn", "cellar", ""].into_iter().cycle()) {
        *node.zone.lock().expect("no panic") = zone.to_owned();
    }
    let first = &fake.nodes[0];
    let grpc = vec![first.tls_door().await];
    let token = JoinToken { network: fake.id, node: first.id, addresses: Vec::new(), grpc };
    let home = tempfile::tempdir().expect("a directory");
    let joined = home.path().join("joined");
    Profile::join(&joined, &token).expect("joins");
    let ask = |arguments: &'static str| {
        let joined = joined.clone();
        tokio::task::spawn_blocking(move || plan_of(&joined, arguments))
    };
    // Nodes without a zone are in none.
    for (asked, said) in [
        ("", "--nodes 12 --zones 3"),
        ("--json", "--json --nodes 12 --zones 3"),
        ("--json --zones 5", "--json --nodes 12 --zones 5"),
    ] {
        let (asked, said) = (ask(asked).await.expect("runs"), plan(said));
        assert!(said.stdout.contains("12"), "{}", said.stdout);
        assert_eq!((asked.stdout, asked.code), (said.stdout, said.code), "{}", asked.stderr);
    }
    // Who says how many is not given the network's zones.
    let said = ask("--json --nodes 8").await.expect("runs");
    assert_eq!(said.stdout, plan("--json --nodes 8").stdout, "{}", said.stderr);

    fake.nodes.iter().for_each(|node| node.kill());
    let silent = ask("").await.expect("runs");
    assert_eq!(silent.code, Some(UNREACHABLE), "{}{}", silent.stdout, silent.stderr);
    assert!(silent.stderr.contains("say how many nodes with --nodes"), "{}", silent.stderr);
}
