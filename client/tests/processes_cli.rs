//! The command line between real processes: what it does for scripts and for two who use it at once.

#[path = "support/cluster.rs"]
mod cluster;

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt as _, process::Output};

use cluster::{Cluster, noise, text};

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
