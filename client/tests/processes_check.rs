//! `copse status` and `copse check` between real processes: what dies is seen, and made again.

#[path = "support/cluster.rs"]
mod cluster;

use std::{fs, process::Output};

use cluster::{Cluster, noise, text};

/// Exit codes of the client, as its help names them.
const DATA_LOSS: i32 = 4;
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
