//! The command line between real processes: for scripts, for two who use it at once, and for whoever
//! looks after a network whose nodes come and go.

#[path = "support/cluster.rs"]
mod cluster;

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    process::{Command, Output},
};

use cluster::{Cluster, binary, noise, text, until};

/// Exit codes of the client, as its help names them.
const OTHER: i32 = 1;
const EXISTS: i32 = 8;

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)))
}

#[test]
fn paths_that_are_not_utf8_are_whole_in_json() {
    let cluster = Cluster::start(4);
    let file = cluster.dir.path().join("file");
    fs::write(&file, noise(1, 5000)).expect("written");
    let capability = cluster.put(&file, &[]);

    let destination = cluster.dir.path().join(OsStr::from_bytes(b"back\xff"));
    let output = cluster.copse([
        "get".as_ref(),
        "--json".as_ref(),
        capability.as_ref(),
        destination.as_os_str(),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report = json(&output);
    assert_eq!((&report["made"], &report["waiting"]), (&true.into(), &().into()));
    let path = report["destination"].as_str().expect("a path");
    assert!(path.ends_with("/back\u{fffd}"), "{path}");
    let hex = report["destination_hex"].as_str().expect("a path");
    assert!(hex.ends_with("6261636bff"), "{hex}");
    assert!(fs::read(&destination).expect("there") == noise(1, 5000));

    let home = cluster.dir.path().join(OsStr::from_bytes(b"home\xff"));
    let mut join = cluster.command();
    let output = join
        .env("COPSE_HOME", &home)
        .args(["join", "--json", &cluster.token])
        .output()
        .expect("copse runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(json(&output)["home_hex"].as_str().is_some_and(|hex| hex.ends_with("686f6d65ff")));
}

#[test]
fn a_capability_in_a_file_reads_any_name_in_its_tree() {
    let cluster = Cluster::start(4);
    let folder = cluster.dir.path().join("folder");
    fs::create_dir(&folder).expect("made");
    fs::write(folder.join(OsStr::from_bytes(b"caf\xe9\n")), "coffee").expect("written");
    let file = cluster.dir.path().join("folder.cap");
    fs::write(&file, cluster.put(&folder, &[]) + "\n").expect("written");

    let mut argument = std::ffi::OsString::from("@");
    argument.push(&file);
    let listed = cluster.copse(["ls".as_ref(), argument.as_os_str()]);
    assert_eq!(text(&listed.stdout), "caf\\xe9\\x0a\n", "{}", text(&listed.stderr));
    argument.push(OsStr::from_bytes(b":/caf\xe9\n"));
    let output = cluster.copse(["cat".as_ref(), argument.as_os_str()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(output.stdout, b"coffee");
}

#[test]
fn of_two_gets_at_once_one_makes_the_destination_and_the_other_says_so() {
    let cluster = Cluster::start(4);
    let file = cluster.dir.path().join("file");
    fs::write(&file, noise(2, 30_000_000)).expect("written");
    let capability = cluster.put(&file, &[]);
    for round in 0..4 {
        let destination = cluster.dir.path().join(format!("back{round}"));
        let get = || {
            let mut get = cluster.command();
            get.arg("get").arg(&capability).arg(&destination).output().expect("copse runs")
        };
        let (one, two) = std::thread::scope(|scope| {
            let other = scope.spawn(get);
            (get(), other.join().expect("no panic"))
        });
        let (won, lost) = if one.status.success() { (one, two) } else { (two, one) };
        assert!(won.status.success(), "{}", text(&won.stderr));
        let said = text(&lost.stderr);
        match lost.status.code() {
            Some(OTHER) => assert!(said.contains("another get is filling"), "{said}"),
            // It came when the first was done.
            code => assert_eq!(code, Some(EXISTS), "{said}"),
        }
        assert!(fs::read(&destination).expect("there") == noise(2, 30_000_000));
        let partial = cluster.dir.path().join(format!("back{round}.copse-partial"));
        assert!(!partial.exists(), "something is left beside");
    }
}

/// Minutes become seconds: who is silent is evicted soon.
const QUICK: [(&str, &str); 8] = [
    ("ping_every = \"5s\"", "ping_every = \"500ms\""),
    ("suspect_after = \"10s\"", "suspect_after = \"2s\""),
    ("down_after = \"5min\"", "down_after = \"4s\""),
    ("dead_after = \"4h\"", "dead_after = \"8s\""),
    ("together = \"1h\"", "together = \"10ms\""),
    ("freeze_max = \"1d\"", "freeze_max = \"30s\""),
    ("round_every = \"1min\"", "round_every = \"1s\""),
    ("patience = \"1d\"", "patience = \"20s\""),
];

#[test]
fn nodes_that_left_or_were_evicted_are_no_trouble() {
    let mut cluster = Cluster::start_as(7, &QUICK, |_| Vec::new());
    let output = Command::new(binary("copse-node"))
        .arg("leave")
        .arg("--dir")
        .arg(cluster.node_dir(5))
        .output()
        .expect("copse-node runs");
    assert!(output.status.success(), "leave: {}", text(&output.stderr));
    cluster.wait_for_end(5);
    cluster.kill(6);

    let gone = |words: &str| {
        let nodes = json(&cluster.copse(["nodes", "--json"]));
        let nodes = nodes["nodes"].as_array().expect("nodes").clone();
        nodes.into_iter().find(|node| node["gone"] == words)
    };
    let left = until("one has left", || gone("left"));
    assert_eq!((&left["reachable"], &left["error"]), (&false.into(), &().into()));
    // Silent and not yet evicted, it is a trouble.
    let evicted = until("one was evicted", || {
        let node = gone("evicted");
        let doctor = cluster.copse(["doctor"]);
        assert!(node.is_some() || doctor.status.code() == Some(OTHER) || gone("evicted").is_some());
        node
    });
    assert_eq!((&evicted["reachable"], &evicted["error"]), (&false.into(), &().into()));

    let output = cluster.copse(["doctor"]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("5 of 5 answer; 2 nodes left or evicted"), "{said}");
    let output = cluster.copse(["nodes"]);
    assert_eq!(text(&output.stderr), "", "nothing to say of those");
    let list = text(&output.stdout);
    for words in ["left", "evicted"] {
        assert_eq!(list.lines().filter(|line| line.contains(words)).count(), 1, "{list}");
    }
}
