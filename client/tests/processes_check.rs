//! `copse status` and `copse check` between real processes: what dies is seen, and made again.

#[path = "support/cluster.rs"]
mod cluster;

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use cluster::{Cluster, binary, noise, text};

/// Exit codes of the client, as its help names them.
const USAGE: i32 = 2;
const DATA_LOSS: i32 = 4;
const BAD_CAPABILITY: i32 = 9;
const DEGRADED: i32 = 11;

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)))
}

#[test]
fn a_tree_is_checked_and_made_whole_again_after_a_death() {
    let mut cluster = Cluster::start(7);
    let folder = cluster.dir.path().join("folder");
    fs::create_dir_all(folder.join("sub")).expect("made");
    fs::write(folder.join("sub/large"), noise(1, 3_000_000)).expect("written");
    fs::write(folder.join("small"), noise(2, 50_000)).expect("written");
    let capability = cluster.put(&folder, &["--geometry", "4+2"]);

    let output = cluster.copse(["check", &capability, "--deep"]);
    assert!(output.status.success(), "check: {}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).starts_with("all 2 chunks have all their shards\n"));

    // With 6 shards on 7 nodes, each chunk loses one or two.
    cluster.kill(2);
    cluster.kill(5);
    let output = cluster.copse(["check", &capability, "--json"]);
    assert_eq!(output.status.code(), Some(DEGRADED), "{}", text(&output.stdout));
    let report = json(&output);
    assert_eq!((report["lost"].as_u64(), report["nodes_silent"].as_u64()), (Some(0), Some(2)));
    assert!(report["weakest"][0]["paths"][0].is_string());

    let output = cluster.copse(["check", &capability, "--repair", "--json"]);
    assert!(output.status.success(), "repair: {}{}", text(&output.stdout), text(&output.stderr));
    let report = json(&output);
    assert_eq!(report["whole"], report["chunks"]);
    assert!(report["rebuilt_shards"].as_u64() > Some(0));

    // Of the five that live one has two shards of a chunk: any one more may go.
    cluster.kill(0);
    let back = cluster.dir.path().join("back");
    let output = cluster.copse(["get".as_ref(), capability.as_ref(), back.as_os_str()]);
    assert!(output.status.success(), "get: {}", text(&output.stderr));
    assert!(fs::read(back.join("sub/large")).expect("is there") == noise(1, 3_000_000));

    // What two nodes hold is too little.
    cluster.kill(3);
    cluster.kill(4);
    let output = cluster.copse(["check", &format!("{capability}/sub"), "--json"]);
    assert_eq!(output.status.code(), Some(DATA_LOSS), "{}", text(&output.stdout));
    assert_eq!(json(&output)["lost"].as_u64(), Some(0), "they may come back");
}

#[test]
fn whoever_has_the_verify_capability_mends_a_tree_and_reads_nothing_of_it() {
    let mut cluster = Cluster::start(7);
    let folder = cluster.dir.path().join("folder");
    fs::create_dir_all(folder.join("sub")).expect("made");
    fs::write(folder.join("sub/large"), noise(1, 3_000_000)).expect("written");
    fs::write(folder.join("small"), noise(2, 50_000)).expect("written");
    let capability = cluster.put(&folder, &["--geometry", "4+2"]);
    let output = cluster.copse(["verifier", &capability]);
    assert!(output.status.success(), "verifier: {}", text(&output.stderr));
    let verify = text(&output.stdout).trim().to_owned();
    assert!(verify.starts_with("copse1v"), "{verify}");

    // Somebody else, with a state and a secret of their own.
    let home = cluster.dir.path().join("caretaker");
    let caretaker = |arguments: &[&str]| {
        let mut copse = Command::new(binary("copse"));
        copse.env("COPSE_HOME", &home).stdin(Stdio::null()).args(arguments);
        copse.output().expect("copse runs")
    };
    let joined = caretaker(&["join", &cluster.token]);
    assert!(joined.status.success(), "{}", text(&joined.stderr));
    // Whoever joins is told what the default gives, and under which assumptions.
    let advice = text(&joined.stderr);
    for part in ["default geometry ", " nines (exponential repair times", "(fixed", "`copse plan`"]
    {
        assert!(advice.contains(part), "{part}: {advice}");
    }
    // It is the same whoever makes it.
    let again = caretaker(&["verifier", &capability, "--json"]);
    assert_eq!(json(&again)["verify_capability"].as_str(), Some(verify.as_str()));
    assert_eq!(json(&again)["sent_bytes"].as_u64(), Some(0));

    let output = caretaker(&["check", &verify, "--deep"]);
    assert!(output.status.success(), "check: {}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).starts_with("all 3 chunks have all their shards\n"));
    cluster.kill(2);
    cluster.kill(5);
    let output = caretaker(&["check", &verify, "--json"]);
    assert_eq!(output.status.code(), Some(DEGRADED), "{}", text(&output.stdout));
    let report = json(&output);
    assert_eq!((report["listed_chunks"].as_u64(), report["chunks"].as_u64()), (Some(2), Some(3)));
    assert!(report["files"].is_null() && report["bytes"].is_null(), "{report}");
    let output = caretaker(&["check", &verify, "--repair"]);
    assert!(output.status.success(), "repair: {}{}", text(&output.stdout), text(&output.stderr));
    for name in ["large", "small", "sub"] {
        assert!(!text(&output.stdout).contains(name), "{}", text(&output.stdout));
    }

    // With another dead node the tree is still there, for its owner.
    cluster.kill(0);
    let output = cluster.copse(["cat", &format!("{capability}/sub/large")]);
    assert!(output.status.success() && output.stdout == noise(1, 3_000_000));
    for reading in
        [&["get", &verify, "out"][..], &["cat", &verify], &["ls", &verify], &["serve", &verify]]
    {
        let output = caretaker(reading);
        assert_eq!(output.status.code(), Some(BAD_CAPABILITY), "{reading:?}");
        let message = text(&output.stderr);
        assert!(message.contains("this capability can check and repair, not read"), "{message}");
        assert!(output.stdout.is_empty());
    }
    let output = caretaker(&["check", &format!("{verify}/sub")]);
    assert_eq!(output.status.code(), Some(USAGE), "{}", text(&output.stderr));
    let typo = verify.replacen("copse1v", "copse1va", 1);
    let output = caretaker(&["check", &typo]);
    assert_eq!(output.status.code(), Some(BAD_CAPABILITY), "{}", text(&output.stderr));
    let other = Cluster::start(2);
    let output = other.copse(["check", &verify]);
    assert_eq!(output.status.code(), Some(BAD_CAPABILITY), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("has joined network"), "{}", text(&output.stderr));
}

#[test]
fn status_says_who_answers() {
    let mut cluster = Cluster::start(3);
    let status = json(&cluster.copse(["status", "--json"]));
    assert_eq!((status["asked"].as_u64(), status["answered"].as_u64()), (Some(3), Some(3)));
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(3));
    cluster.kill(1);
    let status = json(&cluster.copse(["status", "--json"]));
    assert_eq!(status["answered"].as_u64(), Some(2));
    let shown = cluster.copse(["status"]);
    assert!(text(&shown.stdout).contains("2 of 3 answered"), "{}", text(&shown.stdout));
}
