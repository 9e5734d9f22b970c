//! The main job between real processes: a folder goes in, nodes die and lie, it comes back whole.
//!
//! Each test has its own network of `copse-node` processes on loopback and runs the `copse` binary
//! as a user would.

// What is skipped is said.
#![allow(clippy::print_stderr)]

#[path = "support/cluster.rs"]
mod cluster;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::Path,
    process::Stdio,
};

use cluster::{Cluster, census, noise, text, until};
use copse_client::local::FileReader;

/// Exit codes of the client, as its help names them.
const OTHER: i32 = 1;
const PARTIAL: i32 = 3;
const DATA_LOSS: i32 = 4;
const UNREACHABLE: i32 = 5;
const REFUSED: i32 = 6;
const NOT_FOUND: i32 = 7;
const EXISTS: i32 = 8;
const BAD_CAPABILITY: i32 = 9;
const NO_ROOM: i32 = 13;

/// A folder with everything that a folder can hold.
fn make_folder(root: &Path) {
    fs::create_dir_all(root.join("sub/deep/deeper")).expect("made");
    fs::create_dir(root.join("empty")).expect("made");
    fs::write(root.join("zero"), b"").expect("written");
    fs::write(root.join("inline"), noise(1, 4096)).expect("written");
    fs::write(root.join("packed"), noise(2, 4097)).expect("written");
    fs::write(root.join("sub/medium"), noise(3, 900_000)).expect("written");
    fs::write(root.join("sub/deep/large"), noise(4, 20_000_001)).expect("written");
    fs::write(root.join("with\nnewline"), b"1").expect("written");
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), b"2").expect("written");
    fs::write(root.join("n".repeat(255)), b"3").expect("written");
    std::os::unix::fs::symlink("loop", root.join("loop")).expect("linked");
    std::os::unix::fs::symlink("../..", root.join("sub/up")).expect("linked");
    let sparse = fs::File::create(root.join("sparse")).expect("made");
    sparse.set_len(50 << 20).expect("sized");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 25 << 20).expect("written");
    for number in 0..200_u8 {
        let content = noise(number.into(), 37 * usize::from(number));
        fs::write(root.join(format!("sub/small{number}")), content).expect("written");
    }
    fs::set_permissions(root.join("inline"), fs::Permissions::from_mode(0o751)).expect("chmod");
    fs::set_permissions(root.join("sub/deep"), fs::Permissions::from_mode(0o500)).expect("chmod");
}

/// Lets the temporary directory be removed by whoever is not root.
fn unlock(root: &Path) {
    let _ = fs::set_permissions(root.join("sub/deep"), fs::Permissions::from_mode(0o700));
}

/// Waits until a file has been as it is for so long that a put knows it by its times.
fn settle(path: &Path) {
    let reader = || FileReader::open(path).expect("readable");
    until("the file is known by its times", || reader().is_settled().then_some(()));
}

#[test]
fn a_folder_survives_two_dead_nodes_and_one_rotten_disk() {
    let mut cluster = Cluster::start(8);
    let folder = cluster.dir.path().join("folder");
    make_folder(&folder);
    let capability = cluster.put(&folder, &["--geometry", "10+6"]);

    cluster.kill(1);
    cluster.kill(6);
    rot(&cluster, 3);

    let back = cluster.dir.path().join("back");
    let output = cluster.copse(["get".as_ref(), capability.as_ref(), back.as_os_str()]);
    assert!(output.status.success(), "get: {}", text(&output.stderr));
    assert_eq!(census(&folder), census(&back));
    unlock(&folder);
    unlock(&back);
}

/// Flips a byte in every 64 KiB of what a node has on disk.
fn rot(cluster: &Cluster, node: usize) {
    for path in cluster.segments(node) {
        let mut bytes = fs::read(&path).expect("readable");
        for at in (4096..bytes.len()).step_by(64 << 10) {
            bytes[at] ^= 1;
        }
        let mut file = fs::File::options().write(true).open(&path).expect("writable");
        file.write_all(&bytes).expect("written");
    }
}

#[test]
fn too_many_losses_are_an_error_that_counts_and_gives_no_byte() {
    let mut cluster = Cluster::start(5);
    let file = cluster.dir.path().join("file");
    fs::write(&file, noise(5, 3 << 20)).expect("written");
    let capability = cluster.put(&file, &["--geometry", "3+2"]);
    cluster.kill(0);
    cluster.kill(1);
    let output = cluster.copse(["cat", &capability]);
    assert!(output.status.success(), "two of 3+2 may be lost: {}", text(&output.stderr));
    assert_eq!(output.stdout, fs::read(&file).expect("readable"));
    cluster.kill(2);
    let output = cluster.copse(["cat", &capability]);
    assert_eq!(output.status.code(), Some(DATA_LOSS), "{}", text(&output.stderr));
    // The small chunk with the root entry has three copies; it may be the one that is lost.
    let message = text(&output.stderr);
    assert!(
        message.contains("have 2 of the 3") || message.contains("have 0 of the 1"),
        "{message}"
    );
    assert!(output.stdout.is_empty());
    // It is looked for again and again; meanwhile it is said why nothing comes.
    assert!(message.contains("waiting: "), "{message}");

    cluster.run(2);
    cluster.wait_for_nodes(3);
    let output = cluster.copse(["cat", &capability]);
    assert!(output.status.success(), "a node that returns counts: {}", text(&output.stderr));
}

#[test]
fn everything_acknowledged_is_there_after_kill_9_of_all_nodes() {
    let mut cluster = Cluster::start(4);
    let file = cluster.dir.path().join("file");
    fs::write(&file, noise(6, 9 << 20)).expect("written");
    let capability = cluster.put(&file, &[]);
    for number in 0..4 {
        cluster.kill(number);
    }
    let output = cluster.copse(["cat", &capability]);
    assert_eq!(output.status.code(), Some(UNREACHABLE), "{}", text(&output.stderr));
    for number in 0..4 {
        cluster.run(number);
    }
    cluster.wait_for_nodes(4);
    let output = cluster.copse(["cat", &capability]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(output.stdout, fs::read(&file).expect("readable"));
}

#[test]
fn ranges_listings_and_single_files_read_right() {
    let cluster = Cluster::start(4);
    let folder = cluster.dir.path().join("folder");
    make_folder(&folder);
    let capability = cluster.put(&folder, &[]);
    let large = fs::read(folder.join("sub/deep/large")).expect("readable");

    let path = format!("{capability}/sub/deep/large");
    for (range, expected) in [
        ("0-0", &large[..1]),
        ("65530-65541", &large[65_530..65_542]),
        ("7864310-7864330", &large[7_864_310..7_864_331]),
        ("20000000-", &large[20_000_000..]),
        ("-5", &large[large.len() - 5..]),
        ("19999999-99999999999", &large[19_999_999..]),
    ] {
        let output = cluster.copse(["cat", &path, "--range", range]);
        assert!(output.status.success(), "{range}: {}", text(&output.stderr));
        assert!(output.stdout == expected, "{range} gives other bytes");
    }

    let output = cluster.copse(["ls", &format!("{capability}/sub"), "-R", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let entries: Vec<serde_json::Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON object"))
        .collect();
    assert_eq!(entries.len(), 205, "{entries:?}");
    let large_entry = entries
        .iter()
        .find(|entry| entry["path"] == "deep/large")
        .expect("the large file is listed");
    assert_eq!(large_entry["size"], 20_000_001);

    let output = cluster.copse(["cat", &format!("{capability}/sub/nothing")]);
    assert_eq!(output.status.code(), Some(NOT_FOUND), "{}", text(&output.stderr));
    let destination = cluster.dir.path().join("one");
    let arguments = ["get", &format!("{capability}/inline"), destination.to_str().expect("UTF-8")];
    assert!(cluster.copse(arguments).status.success());
    assert_eq!(fs::read(&destination).expect("there"), noise(1, 4096));
    let output = cluster.copse(arguments);
    assert_eq!(output.status.code(), Some(EXISTS), "{}", text(&output.stderr));
    unlock(&folder);
}

#[test]
fn standard_input_and_output_carry_a_file() {
    let cluster = Cluster::start(4);
    let content = noise(7, 5_000_000);
    let mut child = cluster
        .command()
        .args(["put", "-", "--name", "from stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("copse runs");
    child.stdin.take().expect("piped").write_all(&content).expect("written");
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let capability = text(&output.stdout).trim().to_owned();
    let output = cluster.copse(["get", &capability, "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stdout == content, "other bytes came back");
}

#[test]
fn putting_unchanged_data_again_sends_nothing() {
    let cluster = Cluster::start(4);
    let folder = cluster.dir.path().join("folder");
    make_folder(&folder);
    settle(&folder.join("sub/deep/large"));
    let put = || {
        let output = cluster.copse(["put".as_ref(), "--json".as_ref(), folder.as_os_str()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let first = put();
    assert!(first["sent_bytes"].as_u64().expect("a number") > 20_000_000);
    assert_eq!(first["chunks_confirmed"], 0);
    // Of whom a pause of the machine makes late, it is taken that he has it not: then once more.
    let mut tries = 0..10;
    let second = loop {
        let report = put();
        if report["sent_bytes"] == 0 && report["chunks_confirmed"] == 3 || tries.next().is_none() {
            break report;
        }
    };
    assert_eq!(second["sent_bytes"], 0);
    assert_eq!(second["capability"], first["capability"]);
    // The large file's three chunks were neither read nor encoded.
    assert_eq!(second["chunks_confirmed"], 3);
    // Without the journal everything is read and encoded again, and still nothing is sent.
    let journal = cluster.dir.path().join("client/journal");
    let mut tries = 0..10;
    let third = loop {
        fs::remove_file(&journal).expect("the journal is there");
        let report = put();
        if report["sent_bytes"] == 0 || tries.next().is_none() {
            break report;
        }
    };
    assert_eq!((&third["sent_bytes"], &third["chunks_confirmed"]), (&0.into(), &0.into()));
    assert_eq!(third["capability"], first["capability"]);
    unlock(&folder);
}

#[test]
fn an_interrupted_put_goes_on_without_sending_again() {
    let cluster = Cluster::start(4);
    let file = cluster.dir.path().join("file");
    fs::write(&file, noise(8, 200 << 20)).expect("written");
    settle(&file);
    let mut child = cluster
        .command()
        .arg("put")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("copse runs");
    let stored = || {
        (0..4)
            .flat_map(|node| cluster.segments(node))
            .map(|path| fs::metadata(path).map_or(0, |metadata| metadata.len()))
            .sum::<u64>()
    };
    until("some of it is stored", || (stored() > 100 << 20).then_some(()));
    child.kill().expect("killed");
    child.wait().expect("gone");
    // What was on its way is on the disks: nobody is late for that reason.
    let mut before = 0;
    until("the nodes are at rest", || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let now = stored();
        (std::mem::replace(&mut before, now) == now).then_some(())
    });
    cluster.wait_for_nodes(4);
    let output = cluster.copse(["put".as_ref(), "--json".as_ref(), file.as_os_str()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let total = 2 * (200 << 20);
    let sent = report["sent_bytes"].as_u64().expect("a number");
    assert!(sent < total - (80 << 20), "{sent} of {total} bytes were sent again");
    // What was safe when it was killed stands in the journal.
    assert!(report["chunks_confirmed"].as_u64().expect("a number") > 0, "{report}");
}

/// Exit code of a command that was stopped by Ctrl-C.
const INTERRUPTED: i32 = 130;

#[test]
fn a_put_stopped_by_ctrl_c_says_so_and_prints_no_capability() {
    let cluster = Cluster::start(4);
    let mut child = cluster
        .command()
        .args(["put", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("copse runs");
    // Its input has no end, so it cannot be done before it is stopped.
    let mut input = child.stdin.take().expect("piped");
    input.write_all(&noise(15, 20 << 20)).expect("written");
    let stored = || {
        let segments = (0..4).flat_map(|node| cluster.segments(node));
        segments.map(|path| fs::metadata(path).map_or(0, |metadata| metadata.len())).sum::<u64>()
    };
    until("some of it is stored", || (stored() > 10 << 20).then_some(()));
    signal(child.id(), "-INT");
    let output = child.wait_with_output().expect("ended");
    drop(input);
    assert_eq!(output.status.code(), Some(INTERRUPTED), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("interrupted"), "{}", text(&output.stderr));
}

#[test]
fn a_get_stopped_by_ctrl_c_leaves_no_destination_and_is_gone_on_with() {
    let cluster = Cluster::start(4);
    let folder = cluster.dir.path().join("folder");
    fs::create_dir(&folder).expect("made");
    fs::write(folder.join("large"), noise(16, 20 << 20)).expect("written");
    fs::write(folder.join("small"), b"content").expect("written");
    // Small chunks are on every node, large ones need two: with one node left the names can be read, and
    // the get waits for the rest.
    let capability = cluster.put(&folder, &["--geometry", "4+4"]);
    let frozen: Vec<_> = (1..4).map(|number| Frozen::freeze(cluster.process_id(number))).collect();
    let back = cluster.dir.path().join("back");
    let partial = cluster.dir.path().join("back.copse-partial");
    let mut get = cluster.command();
    get.args(["get", "--json", &capability]).arg(&back);
    let child = get.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("copse runs");
    until("it has begun to write", || partial.join("source").exists().then_some(()));
    signal(child.id(), "-INT");
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(INTERRUPTED), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty() && !back.exists());
    assert!(text(&output.stderr).contains("go on where it was"), "{}", text(&output.stderr));

    drop(frozen);
    let output = get.output().expect("copse runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["resumed"], true, "{report}");
    assert_eq!(census(&folder), census(&back));
    assert!(!partial.exists());
}

#[test]
fn what_is_stored_is_not_lost_with_a_full_or_closed_output() {
    let cluster = Cluster::start(2);
    let file = cluster.dir.path().join("file");
    fs::write(&file, b"content").expect("written");
    let capability = cluster.put(&file, &[]);
    let full = || fs::File::options().write(true).open("/dev/full").expect("a full device");
    let closed = || {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        writer
    };
    for (stdout, code) in [(Stdio::from(full()), NO_ROOM), (closed().into(), OTHER)] {
        let output = cluster.command().arg("put").arg(&file).stdout(stdout).output().expect("runs");
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(&capability), "{}", text(&output.stderr));
    }
    // What can be asked for again is another matter: a reader may have enough of it.
    for command in
        [vec!["nodes"], vec!["doctor"], vec!["ls", &capability], vec!["cat", &capability]]
    {
        let run = |stdout: Stdio| cluster.command().args(&command).stdout(stdout).output();
        let output = run(full().into()).expect("copse runs");
        assert_eq!(output.status.code(), Some(NO_ROOM), "{command:?}: {}", text(&output.stderr));
        let output = run(closed().into()).expect("copse runs");
        assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    }
}

#[test]
fn a_destination_may_end_in_a_slash() {
    let cluster = Cluster::start(2);
    let folder = cluster.dir.path().join("folder");
    fs::create_dir(&folder).expect("made");
    fs::write(folder.join("file"), b"content").expect("written");
    let capability = cluster.put(&folder, &[]);
    let back = cluster.dir.path().join("back");
    let output = cluster.copse(["get", &capability, &format!("{}/", back.display())]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read(back.join("file")).expect("there"), b"content");
}

#[test]
fn what_cannot_be_read_is_listed_and_the_rest_is_stored() {
    let cluster = Cluster::start(4);
    let folder = cluster.dir.path().join("folder");
    fs::create_dir(&folder).expect("made");
    fs::write(folder.join("good"), b"good").expect("written");
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).expect("a socket");
    let output = cluster.copse(["put".as_ref(), folder.as_os_str()]);
    assert_eq!(output.status.code(), Some(PARTIAL), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("socket"), "{}", text(&output.stderr));
    let capability = text(&output.stdout).trim().to_owned();
    let output = cluster.copse(["cat", &format!("{capability}/good")]);
    assert_eq!(output.stdout, b"good");

    // The same with paths that are named.
    let (nosuch, good) = (folder.join("nosuch"), folder.join("good"));
    let output = cluster.copse(["put".as_ref(), nosuch.as_os_str(), good.as_os_str()]);
    assert_eq!(output.status.code(), Some(PARTIAL), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("nosuch: cannot be read"), "{}", text(&output.stderr));
    let capability = text(&output.stdout).trim().to_owned();
    let output = cluster.copse(["cat", &format!("{capability}/good")]);
    assert_eq!(output.stdout, b"good");
}

#[test]
fn a_wrong_token_or_capability_says_what_is_wrong() {
    let cluster = Cluster::start(2);
    let file = cluster.dir.path().join("file");
    fs::write(&file, b"content").expect("written");
    let capability = cluster.put(&file, &[]);
    let mut typo = capability.clone().into_bytes();
    let middle = typo.len() / 2;
    typo[middle] = if typo[middle] == b'a' { b'b' } else { b'a' };
    let cut = capability[..capability.len() - 3].to_owned();
    for wrong in [text(&typo), cut, "nonsense".into()] {
        let output = cluster.copse(["cat", &wrong]);
        assert_eq!(output.status.code(), Some(BAD_CAPABILITY), "{}", text(&output.stderr));
    }
    let output = cluster.copse(["join", &cluster.token[..cluster.token.len() - 2]]);
    assert_eq!(output.status.code(), Some(BAD_CAPABILITY), "{}", text(&output.stderr));

    let other = Cluster::start(2);
    let output = other.copse(["cat", &capability]);
    assert_eq!(output.status.code(), Some(BAD_CAPABILITY), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("has joined network"), "{}", text(&output.stderr));
}

#[test]
fn what_could_not_survive_one_node_is_refused_unless_wanted() {
    let cluster = Cluster::start(3);
    let file = cluster.dir.path().join("file");
    fs::write(&file, noise(9, 100_000)).expect("written");
    for geometry in ["10+0", "10+2"] {
        let output = cluster
            .command()
            .args(["put", "--geometry", geometry])
            .arg(&file)
            .output()
            .expect("copse runs");
        assert_eq!(output.status.code(), Some(REFUSED), "{geometry}: {}", text(&output.stderr));
    }
    let capability = cluster.put(&file, &["--geometry", "10+2", "--allow-fragile"]);
    assert!(cluster.copse(["cat", &capability]).status.success());
}

#[test]
fn full_nodes_refuse_new_shards_and_go_on_serving() {
    let cluster = Cluster::start_with(4, |_| vec!["--capacity".into(), "64MiB".into()]);
    let small = cluster.dir.path().join("small");
    fs::write(&small, noise(10, 5 << 20)).expect("written");
    let capability = cluster.put(&small, &[]);
    let large = cluster.dir.path().join("large");
    fs::write(&large, noise(11, 400 << 20)).expect("written");
    let output = cluster.copse(["put".as_ref(), large.as_os_str()]);
    assert!(!output.status.success(), "400 MiB went into 256 MiB of disks");
    assert!(text(&output.stderr).contains("full"), "{}", text(&output.stderr));
    let output = cluster.copse(["cat", &capability]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stdout == fs::read(&small).expect("readable"), "other bytes came back");
    let output = cluster.copse(["doctor"]);
    assert!(text(&output.stdout).contains("BAD room"), "{}", text(&output.stdout));
}

#[test]
fn a_full_disk_under_the_destination_is_named_and_gone_on_from() {
    let cluster = Cluster::start(4);
    let file = cluster.dir.path().join("file");
    fs::write(&file, noise(12, 30 << 20)).expect("written");
    let capability = cluster.put(&file, &[]);
    let disk = cluster.dir.path().join("disk");
    fs::create_dir(&disk).expect("made");
    let Some(_mounted) = SmallDisk::mount(&disk, 16) else {
        eprintln!("skipped: mounting a small disk needs root");
        return;
    };
    let destination = disk.join("back");
    let arguments = ["get", &capability, destination.to_str().expect("UTF-8")];
    let output = cluster.copse(arguments);
    assert_eq!(output.status.code(), Some(NO_ROOM), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains("make room") && said.contains(" are still to be written"), "{said}");
    assert!(said.contains(&format!("too little room for {}:", destination.display())), "{said}");
    assert!(!destination.exists());
    SmallDisk::grow(&disk, 64);
    let output = cluster.copse(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("interrupted try"), "{}", text(&output.stderr));
    assert!(fs::read(&destination).expect("there") == fs::read(&file).expect("readable"));
}

/// A file system of a few MiB, gone when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mib: u32) -> Option<Self> {
        let size = format!("size={mib}m");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(at)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        mounted.then(|| Self(at.to_owned()))
    }

    fn grow(at: &Path, mib: u32) {
        let size = format!("remount,size={mib}m");
        let status = std::process::Command::new("mount").args(["-o", &size]).arg(at).status();
        assert!(status.is_ok_and(|status| status.success()), "the disk did not grow");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_silent_node_does_not_stop_a_put_or_a_get() {
    let cluster = Cluster::start(6);
    let file = cluster.dir.path().join("file");
    fs::write(&file, noise(13, 20 << 20)).expect("written");
    let first = cluster.put(&file, &["--geometry", "3+2"]);
    // Stopped, not dead: it accepts connections and never answers.
    let frozen = Frozen::freeze(cluster.process_id(2));
    let output = cluster.copse(["cat", &first]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stdout == fs::read(&file).expect("readable"), "other bytes came back");
    fs::write(&file, noise(14, 20 << 20)).expect("written");
    let second = cluster.put(&file, &["--geometry", "3+2"]);
    drop(frozen);
    let output = cluster.copse(["cat", &second]);
    assert!(output.stdout == fs::read(&file).expect("readable"), "other bytes came back");
}

/// A process that gets no time until this is dropped.
struct Frozen(u32);

impl Frozen {
    fn freeze(process: u32) -> Self {
        signal(process, "-STOP");
        Self(process)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal(self.0, "-CONT");
    }
}

fn signal(process: u32, name: &str) {
    let status = std::process::Command::new("kill").arg(name).arg(process.to_string()).status();
    assert!(status.is_ok_and(|status| status.success()), "kill {name} {process} failed");
}

#[test]
fn no_name_and_no_content_is_on_any_node() {
    let cluster = Cluster::start(3);
    let folder = cluster.dir.path().join("folder of unusual name");
    fs::create_dir(&folder).expect("made");
    let sentence = b"a sentence that stands nowhere else, ";
    fs::write(folder.join("inline of unusual name"), sentence).expect("written");
    fs::write(folder.join("packed of unusual name"), sentence.repeat(1000)).expect("written");
    fs::write(folder.join("large of unusual name"), sentence.repeat(100_000)).expect("written");
    cluster.put(&folder, &[]);
    let contains = |bytes: &[u8], word: &[u8]| bytes.windows(word.len()).any(|at| at == word);
    let mut read = 0;
    for node in 0..3 {
        let mut open = vec![cluster.node_dir(node)];
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(
                    fs::read_dir(&path).expect("readable").map(|e| e.expect("entry").path()),
                );
                continue;
            }
            // The control socket holds nothing.
            if !path.is_file() {
                continue;
            }
            let bytes = fs::read(&path).expect("readable");
            read += bytes.len();
            for word in [&b"unusual name"[..], b"stands nowhere else"] {
                assert!(!contains(&bytes, word), "{} tells what was stored", path.display());
            }
        }
    }
    assert!(read > 5_000_000, "the nodes hold only {read} bytes: nothing was looked at");
}
