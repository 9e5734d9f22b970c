//! The command line between real processes: for scripts, for two who use it at once, and for whoever
//! looks after a network whose nodes come and go.

#[path = "support/cluster.rs"]
mod cluster;

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    process::{Command, Output, Stdio},
};

use cluster::{Cluster, binary, noise, text, until};

/// Exit codes of the client, as its help names them.
const OTHER: i32 = 1;
const DATA_LOSS: i32 = 4;
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

/// What `copse status` says: its exit code, and the counts of chunks.
fn chunks(cluster: &Cluster) -> (Option<i32>, serde_json::Value) {
    let output = cluster.copse(["status", "--json"]);
    (output.status.code(), json(&output)["chunks"].take())
}

/// Waits until every node hears all others, and has planned for that.
fn until_all_have_planned(cluster: &Cluster) {
    let has_planned = |node: usize| {
        let said = cluster.status(node)?;
        let peers = said["peers"].as_array()?;
        let hears_all = peers.len() + 1 == cluster.len()
            && peers.iter().all(|peer| peer["standing"].as_str() == Some("alive"));
        let repair = &said["repair"];
        let plans = repair["planned"] == true && repair["cut_off"] == false;
        (hears_all && plans).then_some(())
    };
    until("all have planned", || (0..cluster.len()).try_for_each(has_planned));
}

/// What every look at the network finds until it is as wanted: nothing is ever called lost.
fn until_and_never_lost(
    cluster: &Cluster,
    what: &str,
    wanted: impl Fn(&serde_json::Value) -> bool,
) {
    until(what, || {
        let (code, chunks) = chunks(cluster);
        assert_eq!(chunks["lost"], 0, "{what}: {chunks}");
        assert_ne!(code, Some(DATA_LOSS), "{what}: {chunks}");
        (wanted(&chunks) && code == Some(0)).then_some(())
    });
}

#[test]
fn a_put_that_is_killed_is_no_loss_and_a_loss_is_one() {
    // Nobody is given up.
    let settings = QUICK.map(|(from, to)| match from.starts_with("dead_after") {
        true => (from, "dead_after = \"1h\""),
        false => (from, to),
    });
    let mut cluster = Cluster::start_as(6, &settings, |_| Vec::new());
    let (whole, broken) = (cluster.dir.path().join("whole"), cluster.dir.path().join("broken"));
    fs::write(&whole, noise(5, 20_000_000)).expect("written");
    fs::write(&broken, noise(6, 60_000_000)).expect("written");
    let five_of_six = ["--geometry", "5+1"];
    until_all_have_planned(&cluster);
    cluster.put(&whole, &five_of_six);
    let is_whole = |chunks: &serde_json::Value| {
        chunks["total"].as_u64() > Some(0) && chunks["whole"] == chunks["total"]
    };
    until_and_never_lost(&cluster, "the first file is whole", is_whole);

    // Of six nodes two answer: of 5+1 no chunk gets more than two shards. The others do not even know of
    // the client when it dies.
    let shards = |node: usize| cluster.status(node)?["store"]["shards"].as_u64();
    let before: Vec<_> = (0..2).map(shards).collect();
    let frozen: Vec<_> = (2..6).map(|node| cluster.process_id(node)).collect();
    frozen.iter().for_each(|process| signal(*process, "-STOP"));
    let mut put = cluster.command();
    let put = put.arg("put").arg(&broken).args(five_of_six);
    let mut put = put.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("copse runs");
    until("both have some of it", || {
        let now: Vec<_> = (0..2).map(shards).collect();
        now.iter().zip(&before).all(|(now, before)| now > before).then_some(())
    });
    put.kill().expect("killed");
    put.wait().expect("gone");
    frozen.iter().for_each(|process| signal(*process, "-CONT"));
    until_all_have_planned(&cluster);
    let has_unfinished = |chunks: &serde_json::Value| chunks["unfinished"].as_u64() > Some(0);
    until_and_never_lost(&cluster, "what was left is told from a loss", has_unfinished);
    let said = text(&cluster.copse(["status"]).stdout);
    assert!(said.contains("putting the same files again completes"), "{said}");
    // It is on their disks, too.
    for node in 0..2 {
        cluster.kill(node);
        cluster.run(node);
    }
    until_all_have_planned(&cluster);
    until_and_never_lost(&cluster, "also by those who were started since", has_unfinished);

    cluster.put(&broken, &five_of_six);
    until_and_never_lost(&cluster, "the second file is whole", |chunks| {
        is_whole(chunks) && chunks["unfinished"] == 0
    });

    // More disks are emptied than may be: what the killed put left is lost like all the rest.
    let held = |node| cluster.status(node)?["store"]["shards"].as_u64();
    let held_by_one = (2..6).filter_map(held).max().expect("some");
    for node in 2..6 {
        cluster.kill(node);
        let store = cluster.node_dir(node).join("store");
        fs::remove_dir_all(store.join("index")).expect("removed");
        for segment in cluster.segments(node) {
            fs::remove_file(segment).expect("removed");
        }
        cluster.run(node);
    }
    until_all_have_planned(&cluster);
    until("all of it is lost", || {
        let (code, chunks) = chunks(&cluster);
        assert_eq!(chunks["unfinished"], 0, "{chunks}");
        (code == Some(DATA_LOSS) && chunks["lost"].as_u64() >= Some(held_by_one / 2)).then_some(())
    });
}

fn signal(process: u32, name: &str) {
    let status = Command::new("kill").arg(name).arg(process.to_string()).status();
    assert!(status.is_ok_and(|status| status.success()), "kill {name} {process} failed");
}
