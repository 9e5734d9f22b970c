//! The command line used wrongly, by somebody who has no network yet: each is told what to do.
//!
//! Needs no node. What the library refuses is its own tests' business; here it is codes and words.

use std::process::{Command, Stdio};

/// Exit codes of the client, as its help names them.
const OTHER: i32 = 1;
const USAGE: i32 = 2;
const BAD_CAPABILITY: i32 = 9;

/// Well-formed capabilities of a tree that nobody has.
const READ: &str = "copse1raeaqgaydambqgaydaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaquegaqeykyasnbibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibafrmotpaa";
const VERIFY: &str = "copse1vaebqgaydambqgaydaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaquegaqeykyasnbibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibafxqi4vea";

#[test]
fn every_wrong_use_has_its_code_and_says_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = dir.path().join("home");
    let below = format!("{VERIFY}/sub");
    let above = format!("{READ}/../x");
    let typo = format!("{}b", &VERIFY[..VERIFY.len() - 1]);
    for (arguments, code, words) in [
        (&["frob"][..], USAGE, "--help"),
        (&["chekc", READ], USAGE, "'check'"),
        (&["join"], USAGE, "TOKEN"),
        (&["join", ""], BAD_CAPABILITY, "copse1t"),
        (&["join", "copse1tab0d"], BAD_CAPABILITY, "is it the letter o?"),
        (&["join", "@no/such/file"], USAGE, "cannot read the token in no/such/file"),
        (&["join", "@-"], BAD_CAPABILITY, "copse1t"),
        (&["join", READ], BAD_CAPABILITY, "this is a read capability; expected a join token"),
        (&["join", VERIFY], BAD_CAPABILITY, "this is a verify capability; expected a join token"),
        (&["put"], USAGE, "PATHS"),
        (&["put", "no/such/file"], OTHER, "cannot read no/such/file"),
        (&["put", "no/such/file", "nor/this"], OTHER, "none of the 2 paths named is there"),
        (&["put", "no/such/file", "."], USAGE, "copse join TOKEN"),
        (&["put", "-", "-"], USAGE, "`-` stands alone"),
        (&["put", "-", "--name", ""], USAGE, "--name: a name must not be empty"),
        (&["put", "-", "--name", "a/b"], USAGE, "--name: the name a/b has a '/'"),
        (&["put", "-", "--name", "../evil"], USAGE, "--name: "),
        (&["put", "-", "--name", ".."], USAGE, "--name: "),
        (&["put", "--geometry", "10", "."], USAGE, "for example 10+6"),
        (&["put", "."], USAGE, "has not joined a network; run: copse join TOKEN"),
        (&["get", ""], BAD_CAPABILITY, "a variable that is not set"),
        (&["get", "./photos"], BAD_CAPABILITY, "\"./photos\" is no capability"),
        (&["get", "out", READ], USAGE, "the capability comes first"),
        (&["get", READ], USAGE, "copse join TOKEN"),
        (&["get", &above], USAGE, "\"..\""),
        (&["get", VERIFY, "out"], BAD_CAPABILITY, "can check and repair, not read"),
        (&["cat", VERIFY], BAD_CAPABILITY, "can check and repair, not read"),
        (&["ls", VERIFY], BAD_CAPABILITY, "can check and repair, not read"),
        (&["serve", VERIFY], BAD_CAPABILITY, "can check and repair, not read"),
        (&["verifier", VERIFY], BAD_CAPABILITY, "can check and repair, not read"),
        (&["cat", READ, "--range", "5-2"], USAGE, "ends before it starts"),
        (&["check", "nonsense"], BAD_CAPABILITY, "is no capability"),
        (&["check", &typo], BAD_CAPABILITY, "a verify capability with a typo"),
        (&["check", &below], USAGE, "knows no names"),
        (&["check", VERIFY], USAGE, "copse join TOKEN"),
        (&["serve", READ, "--grpc", "here"], USAGE, "IP:PORT"),
        (&["serve", READ, "--token-file", "no/such/file"], OTHER, "no/such/file cannot be read"),
        (&["nodes"], USAGE, "copse join TOKEN"),
        (&["status"], USAGE, "copse join TOKEN"),
        (&["plan", "--nodes", "abc"], USAGE, "write a whole number"),
        (&["-q", "plan"], USAGE, "copse join TOKEN"),
        (&["-q", "-v", "nodes"], USAGE, "cannot be used with"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_copse"))
            .env("COPSE_HOME", &home)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .args(arguments)
            .output()
            .expect("copse runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}: results are no place for errors");
    }
    assert!(!home.exists(), "nothing was written for somebody who has joined nothing");
}

#[test]
fn the_doctor_of_somebody_who_has_joined_nothing_ends_as_all_other_commands() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_copse"))
        .env("COPSE_HOME", dir.path().join("home"))
        .arg("doctor")
        .output()
        .expect("copse runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(USAGE), "{said}");
    assert!(said.starts_with("BAD state directory") && said.contains("copse join TOKEN"), "{said}");
}
