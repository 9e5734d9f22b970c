//! Real node processes on loopback, for tests and benchmarks of the whole.
//!
//! Owns the processes it starts and their directory; both are gone when it is dropped. Waits for
//! conditions with a bound, never for time alone.

// Each test program uses its own part of this.
#![allow(dead_code, unreachable_pub, clippy::print_stderr)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// How long a condition may take on a busy machine before it counts as never.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value, asking every 50 ms, and less often when the answer takes
/// longer: asking sixteen processes must not slow down what is waited for.
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, condition)
}

/// The same with another bound.
pub fn until_within<T>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        let asked = Instant::now();
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < patience, "{what}: not within {patience:?}");
        std::thread::sleep((asked.elapsed() * 3).max(Duration::from_millis(50)));
    }
}

/// The directory with the binaries of this build.
fn binaries() -> PathBuf {
    // target/release/deps/THIS
    let this = std::env::current_exe().expect("a test has a path");
    this.parent().and_then(Path::parent).expect("below the target directory").to_owned()
}

/// The path of a binary of the workspace.
pub fn binary(name: &str) -> PathBuf {
    let path = binaries().join(name);
    assert!(
        path.exists(),
        "{} is missing: `make test` builds it first, or run \
         `cargo build --release --workspace --bins`",
        path.display()
    );
    path
}

/// A network of node processes and one client profile that has joined it.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub token: String,
    nodes: Vec<Option<Child>>,
    /// Extra arguments of `init` for every node.
    init_arguments: Vec<String>,
    /// What is changed in every node's configuration: from, to.
    settings: Vec<(String, String)>,
}

impl Cluster {
    /// Starts `count` nodes and waits until the client sees them all.
    pub fn start(count: usize) -> Self {
        Self::start_with(count, |_| Vec::new())
    }

    /// The same with further arguments of `init` for each node.
    pub fn start_with(count: usize, arguments: impl Fn(usize) -> Vec<String>) -> Self {
        Self::start_as(count, &[], arguments)
    }

    /// The same with other settings: (from, to) in the text of each configuration.
    pub fn start_as(
        count: usize,
        settings: &[(&str, &str)],
        arguments: impl Fn(usize) -> Vec<String>,
    ) -> Self {
        let dir = tempfile::Builder::new().prefix("copse-test-").tempdir().expect("a directory");
        let owned = |&(from, to): &(&str, &str)| (from.to_owned(), to.to_owned());
        let mut cluster = Self {
            settings: settings.iter().map(owned).collect(),
            dir,
            token: String::new(),
            nodes: Vec::new(),
            init_arguments: ["--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
                .map(String::from)
                .to_vec(),
        };
        for number in 0..count {
            cluster.add(&arguments(number));
        }
        let joined = cluster.copse(["join", &cluster.token]);
        assert!(joined.status.success(), "join: {}", text(&joined.stderr));
        cluster.wait_for_nodes(count);
        cluster
    }

    /// Initialises and runs one more node.
    pub fn add(&mut self, arguments: &[String]) -> usize {
        let number = self.nodes.len();
        let dir = self.node_dir(number);
        let mut init = Command::new(binary("copse-node"));
        init.arg("init").arg("--dir").arg(&dir).args(&self.init_arguments).args(arguments);
        if !arguments.iter().any(|argument| argument == "--capacity") {
            init.args(["--capacity", "20GiB"]);
        }
        // Of one that runs: a token leads to the node that gave it, which may be gone.
        if let Some(&door) = self.running().first() {
            init.args(["--join", &self.token_of(door)]);
        }
        let output = init.output().expect("copse-node runs");
        assert!(output.status.success(), "init: {}", text(&output.stderr));
        if number == 0 {
            self.token = self.token_of(0);
        }
        let config = dir.join("copse-node.toml");
        let mut written = fs::read_to_string(&config).expect("a configuration");
        for (from, to) in &self.settings {
            assert!(written.contains(from), "{from} is not in the configuration");
            written = written.replacen(from, to, 1);
        }
        fs::write(&config, written).expect("written");
        self.nodes.push(None);
        if !self.started(number, &[]) {
            // Somebody took the port between init and run: others are drawn.
            self.nodes.pop();
            fs::remove_dir_all(&dir).expect("removed");
            return self.add(arguments);
        }
        number
    }

    /// What others need to join by this node.
    fn token_of(&self, number: usize) -> String {
        let mut command = Command::new(binary("copse-node"));
        command.arg("token").arg("--dir").arg(self.node_dir(number));
        let output = command.output().expect("copse-node runs");
        assert!(output.status.success(), "token: {}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    }

    /// What a node says of itself; none while it does not answer.
    pub fn status(&self, number: usize) -> Option<serde_json::Value> {
        let output = Command::new(binary("copse-node"))
            .args(["status", "--json", "--dir"])
            .arg(self.node_dir(number))
            .output()
            .expect("copse-node runs");
        serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
    }

    /// The nodes that run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&number| self.nodes[number].is_some()).collect()
    }

    /// Waits for the end of a node that ends by itself.
    pub fn wait_for_end(&mut self, number: usize) {
        let mut child = self.nodes[number].take().expect("the node runs");
        // It stays for a minute, at most, to tell others that it goes.
        let patience = 4 * PATIENCE;
        until_within(patience, "the end of a node", || child.try_wait().expect("a process"));
    }

    pub fn node_dir(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("node{number}"))
    }

    /// Starts the process of a node that does not run.
    pub fn run(&mut self, number: usize) {
        self.run_with(number, &[]);
    }

    /// The same with variables of the environment. Its ports may be in use for a moment, by a
    /// connection of another process that was given one of them: then it tries on.
    pub fn run_with(&mut self, number: usize, variables: &[(&str, &str)]) {
        until(&format!("node {number} can listen"), || {
            self.started(number, variables).then_some(())
        });
    }

    /// Starts a node; false when one of its ports is in use.
    fn started(&mut self, number: usize, variables: &[(&str, &str)]) -> bool {
        assert!(self.nodes[number].is_none(), "node {number} runs already");
        let dir = self.node_dir(number);
        let before = self.log(number).len();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("node{number}.log")))
            .expect("a log file");
        let mut child = Command::new(binary("copse-node"))
            .arg("run")
            .arg("--dir")
            .arg(&dir)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("copse-node runs");
        let ended = until(&format!("node {number} serves or ends"), || {
            let serves = self.log(number)[before..].contains("node serves");
            match child.try_wait().expect("a process") {
                Some(status) => Some(Some(status)),
                None => serves.then_some(None),
            }
        });
        match ended {
            // The exit code for an address that cannot be listened on.
            Some(status) if status.code() == Some(8) => return false,
            // Whoever waits for the node sees why it is not there.
            Some(_) | None => self.nodes[number] = Some(child),
        }
        true
    }

    /// kill -9.
    pub fn kill(&mut self, number: usize) {
        let mut child = self.nodes[number].take().expect("the node runs");
        child.kill().expect("killed");
        child.wait().expect("gone");
    }

    pub fn process_id(&self, number: usize) -> u32 {
        self.nodes[number].as_ref().expect("the node runs").id()
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// What a node wrote to its log.
    pub fn log(&self, number: usize) -> String {
        fs::read_to_string(self.dir.path().join(format!("node{number}.log"))).unwrap_or_default()
    }

    /// Waits until `count` nodes answer the client.
    pub fn wait_for_nodes(&self, count: usize) {
        until(&format!("{count} reachable nodes"), || {
            let output = self.copse(["nodes", "--json"]);
            let nodes: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            let reachable = nodes["nodes"]
                .as_array()?
                .iter()
                .filter(|node| node["reachable"].as_bool() == Some(true))
                .count();
            (reachable == count).then_some(())
        });
    }

    /// A command of the client, in this cluster's profile.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary("copse"));
        command.env("COPSE_HOME", self.dir.path().join("client")).stdin(Stdio::null());
        command
    }

    /// Runs a command of the client to its end.
    pub fn copse<A: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Output {
        self.command().args(arguments).output().expect("copse runs")
    }

    /// Puts a path and gives the capability.
    pub fn put(&self, path: &Path, more: &[&str]) -> String {
        let output = self.command().arg("put").arg(path).args(more).output().expect("copse runs");
        assert!(output.status.success(), "put: {}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    }

    /// Every segment file of a node.
    pub fn segments(&self, number: usize) -> Vec<PathBuf> {
        let dir = self.node_dir(number).join("store").join("segments");
        let mut files: Vec<_> = fs::read_dir(&dir)
            .expect("a node has segments")
            .map(|entry| entry.expect("readable").path())
            .collect();
        files.sort();
        files
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for number in 0..self.nodes.len() {
                let log = self.log(number);
                let tail: Vec<_> = log.lines().rev().take(15).collect();
                eprintln!("--- node {number}, the end of its log");
                for line in tail.into_iter().rev() {
                    eprintln!("{line}");
                }
            }
        }
    }
}

/// Output as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes that do not compress and differ by seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Every entry below a directory: path, kind, mode, time, content. Two equal lists are equal trees.
pub fn census(root: &Path) -> Vec<(PathBuf, char, u32, i64, i64, [u8; 32])> {
    use std::os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _};
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let metadata = fs::symlink_metadata(&path).expect("readable");
        let relative = path.strip_prefix(root).expect("below the root").to_owned();
        let (kind, hash) = if metadata.is_dir() {
            open.extend(fs::read_dir(&path).expect("readable").map(|e| e.expect("entry").path()));
            ('d', blake3::hash(b""))
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).expect("a link");
            ('l', blake3::hash(target.as_os_str().as_bytes()))
        } else {
            let mut hasher = blake3::Hasher::new();
            let mut file = fs::File::open(&path).expect("readable");
            std::io::copy(&mut file, &mut hasher).expect("readable");
            ('f', hasher.finalize())
        };
        found.push((
            relative,
            kind,
            metadata.mode() & 0o1777,
            metadata.mtime(),
            metadata.mtime_nsec(),
            *hash.as_bytes(),
        ));
    }
    found.sort();
    found
}
