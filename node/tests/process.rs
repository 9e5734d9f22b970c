//! The program itself, as its users run it: init, run, token, status, kill -9, and what it says when
//! something is wrong.

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use copse_core::{
    ids::{NodeId, ShardIndex},
    token::JoinToken,
};
use copse_node::dial;
use serde_json::Value;
use support::{PATIENCE, Put, chunk, get, shards};
use tempfile::TempDir;
use tonic::transport::Channel;

/// The program with these arguments.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_copse-node"));
    command.args(arguments).env_remove("COPSE_NODE_DIR").env_remove("COPSE_LOG");
    command
}

/// Runs it to its end.
fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs it, expects this exit code, gives what it printed as result and as messages.
#[track_caller]
fn check(arguments: &[&str], code: i32) -> (String, String) {
    let output = run(arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
    (out, err)
}

/// A directory with a node in it that listens on free ports of the loopback interface.
struct Home {
    _temporary: TempDir,
    dir: PathBuf,
}

impl Home {
    fn new(more: &[&str]) -> Self {
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = temporary.path().join("node");
        let home = Self { _temporary: temporary, dir };
        let listen = ["--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--capacity", "1GiB"];
        let mut arguments = vec!["init", "--dir", home.path()];
        arguments.extend(listen);
        arguments.extend(more);
        check(&arguments, 0);
        home
    }

    fn path(&self) -> &str {
        self.dir.to_str().expect("UTF-8")
    }

    fn token(&self) -> String {
        check(&["token", "--dir", self.path()], 0).0.trim().to_owned()
    }

    /// Starts the node and waits until it answers.
    fn run(&self) -> Running {
        let log = fs::File::create(self.dir.with_extension("log")).expect("a log");
        let child = command(&["run", "--dir", self.path()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let mut running = Running(child);
        let start = Instant::now();
        while run(&["status", "--dir", self.path()]).status.code() != Some(0) {
            let ended = running.0.try_wait().expect("a process");
            let log = self.log();
            assert!(ended.is_none(), "the node ended: {ended:?}\n{log}");
            assert!(start.elapsed() < PATIENCE, "the node does not answer\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.with_extension("log")).unwrap_or_default()
    }

    fn status(&self) -> Value {
        let start = Instant::now();
        loop {
            let output = run(&["status", "--dir", self.path(), "--json"]);
            if output.status.success() {
                return serde_json::from_slice(&output.stdout).expect("JSON");
            }
            // It waits five seconds for the door: a pause of the machine may be longer.
            assert!(start.elapsed() < PATIENCE, "{}", text(&output.stderr));
        }
    }

    async fn door(&self) -> (NodeId, Channel) {
        let token: JoinToken = self.token().parse().expect("a token");
        (
            token.node,
            dial::dial_within(PATIENCE, token.grpc[0], token.node).await.expect("the door"),
        )
    }
}

/// A node that is killed at the end of the test.
struct Running(Child);

impl Running {
    fn signal(&self, name: &str) {
        let process = self.0.id().to_string();
        let sent = Command::new("kill").args([name, &process]).status().expect("kill");
        assert!(sent.success());
    }

    fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.0.try_wait().expect("a process") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the node does not end");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let home = Home::new(&[]);
    let node = home.run();
    let (_, door) = home.door().await;
    let mut put = Put::open(shards(door)).await;
    // One after another until the moment of death, as in a transfer.
    let (mut sent, mut acknowledged) = (Vec::new(), Vec::new());
    for tag in 0..60u8 {
        let next = chunk("1+1", tag, 50_000);
        put.shard(tag.into(), None, &next, 0).await;
        sent.push(next);
    }
    while acknowledged.len() < 40 {
        let (tag, refused) = put.outcome().await;
        assert_eq!(refused, None);
        acknowledged.push(usize::try_from(tag).expect("small"));
    }
    node.signal("-KILL");
    drop(node);

    let mut node = home.run();
    let (_, door) = home.door().await;
    for tag in acknowledged {
        let found = get(shards(door.clone()), None, &sent[tag], 0, 0, 0).await;
        let (_, data) = found.unwrap_or_else(|status| panic!("shard {tag} is lost: {status}"));
        assert!(data == sent[tag].shard(ShardIndex(0)));
    }
    assert!(home.status()["store"]["shards"].as_u64().expect("a number") >= 40);
    node.signal("-TERM");
    let ended = node.ended();
    assert!(ended.success(), "{ended}\n{}", home.log());
}

#[tokio::test]
async fn nodes_find_each_other_by_a_token_and_again_after_a_restart() {
    let founder = Home::new(&[]);
    // Before the founder ever ran.
    let token = founder.token();
    let second = Home::new(&["--join", &token, "--zone", "attic"]);
    let third = Home::new(&["--join", &token]);
    let running = [founder.run(), second.run(), third.run()];
    let all = |home: &Home| {
        let start = Instant::now();
        while home.status()["network_nodes"] != 3 {
            assert!(start.elapsed() < PATIENCE, "{}", home.status());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    [&founder, &second, &third].into_iter().for_each(all);
    let status = second.status();
    assert_eq!(status["zone"], "attic");
    assert_eq!(status["peers"].as_array().expect("peers").len(), 2);
    assert_eq!(status["survives"]["geometry"], "2+1");
    assert_eq!(status["survives"]["nodes"], 1);
    let (table, _) = check(&["status", "--dir", second.path()], 0);
    for word in ["attic", "accepting  yes", "any 1 of them may be lost", "CONNECTED"] {
        assert!(table.contains(word), "{word}\n{table}");
    }
    let [first, _, _] = &running;
    first.signal("-TERM");
    drop(running);

    // The one by whom they joined is gone: the others remember each other.
    let _again = [second.run(), third.run()];
    [&second, &third].into_iter().for_each(all);
    let start = Instant::now();
    let connected = || {
        let peers = third.status()["peers"].clone();
        peers.as_array().is_some_and(|peers| peers.iter().any(|peer| peer["connected"] == true))
    };
    while !connected() {
        assert!(start.elapsed() < PATIENCE, "{}", third.status());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn init_refuses_what_is_in_use() {
    let home = Home::new(&[]);
    let key = fs::read(home.dir.join("node.key")).expect("a key");
    let (_, err) = check(&["init", "--dir", home.path()], 4);
    assert!(err.contains("holds a node already"), "{err}");
    fs::remove_file(home.dir.join("copse-node.toml")).expect("removed");
    let (_, err) = check(&["init", "--dir", home.path()], 4);
    assert!(err.contains("a node's key"), "{err}");
    assert_eq!(fs::read(home.dir.join("node.key")).expect("a key"), key, "never overwritten");
}

#[test]
fn a_second_process_on_the_same_directory_is_refused() {
    let home = Home::new(&[]);
    let node = home.run();
    let (_, err) = check(&["run", "--dir", home.path()], 5);
    assert!(err.contains(&format!("(process {})", node.0.id())), "{err}");
    assert!(err.contains("stop it first"), "{err}");
    // And it did the first no harm.
    check(&["status", "--dir", home.path()], 0);
}

#[test]
fn status_says_clearly_that_the_node_does_not_run() {
    let home = Home::new(&[]);
    let (_, err) = check(&["status", "--dir", home.path()], 6);
    assert!(err.contains("is not running; start it with `copse-node run"), "{err}");
    let (out, _) = check(&["status", "--dir", home.path(), "--json"], 6);
    let answer: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(answer["running"], false);
}

#[test]
fn a_taken_port_has_a_message_and_an_exit_code() {
    let (home, other) = (Home::new(&[]), Home::new(&[]));
    let _node = home.run();
    let file = home.dir.join("copse-node.toml");
    let config = fs::read_to_string(file).expect("a configuration");
    let grpc = |config: &str| {
        let section = config.split_once("[grpc]").expect("a section").1;
        let line = section.lines().find(|line| line.starts_with("listen")).expect("a setting");
        line.to_owned()
    };
    let theirs = fs::read_to_string(other.dir.join("copse-node.toml")).expect("a configuration");
    let changed = theirs.replace(&grpc(&theirs), &grpc(&config));
    fs::write(other.dir.join("copse-node.toml"), changed).expect("written");
    let (_, err) = check(&["run", "--dir", other.path()], 8);
    assert!(err.contains("grpc.listen") && err.contains("another program"), "{err}");
}

#[test]
fn what_makes_a_node_unusable_is_said_with_the_remedy() {
    let home = Home::new(&[]);
    let key = home.dir.join("node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("changed");
    let (_, err) = check(&["run", "--dir", home.path()], 3);
    assert!(err.contains("chmod 600"), "{err}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("changed");

    // The disk is not mounted.
    fs::rename(home.dir.join("store"), home.dir.join("elsewhere")).expect("moved");
    fs::create_dir(home.dir.join("store")).expect("an empty mount point");
    let (_, err) = check(&["run", "--dir", home.path()], 7);
    assert!(err.contains("is the disk mounted?"), "{err}");
    // Another node's disk is mounted.
    let other = Home::new(&[]);
    fs::remove_dir(home.dir.join("store")).expect("removed");
    fs::rename(other.dir.join("store"), home.dir.join("store")).expect("moved");
    let (_, err) = check(&["run", "--dir", home.path()], 7);
    assert!(err.contains("is the store of node"), "{err}");

    fs::rename(&key, home.dir.join("lost.key")).expect("moved");
    let (_, err) = check(&["run", "--dir", home.path()], 3);
    assert!(err.contains("restore it from a backup"), "{err}");
    fs::write(home.dir.join("copse-node.toml"), "capacity = 7\n").expect("written");
    check(&["run", "--dir", home.path()], 3);
    for command in ["run", "token", "status"] {
        let (_, err) = check(&[command, "--dir", "/nonexistent"], 3);
        assert!(err.contains("copse-node init"), "{err}");
    }
}

#[test]
fn wrong_usage_is_answered_with_what_would_be_right() {
    let token = Home::new(&[]).token();
    let typo = token.replacen('a', "b", 1);
    let other = Home::new(&[]).token();
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path().join("node");
    let dir = dir.to_str().expect("UTF-8");
    let cases: [(&[&str], &str); 9] = [
        (&[], "Usage"),
        (&["start"], "unrecognized subcommand"),
        (&["run"], "--dir"),
        (&["init", "--dir", dir, "--capacity", "10"], "write a number and a unit"),
        (&["init", "--dir", dir, "--capacity", "1KiB"], "from 64MiB"),
        (&["init", "--dir", dir, "--listen", "localhost"], "--listen"),
        (&["init", "--dir", dir, "--advertise", "0.0.0.0"], "others can reach"),
        (&["init", "--dir", dir, "--join", &typo], "typo"),
        (&["init", "--dir", dir, "--join", &token, "--join", &other], "different networks"),
    ];
    for (arguments, wanted) in cases {
        let (_, err) = check(arguments, 2);
        assert!(err.contains(wanted), "{arguments:?}: {err}");
        assert!(!Path::new(dir).join("copse-node.toml").exists());
    }
    let (help, _) = check(&["--help"], 0);
    assert!(help.contains("Examples:") && help.contains("Exit codes:"), "{help}");
}
