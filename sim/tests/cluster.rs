//! Worlds of real nodes and clients: the same seed is the same run, seeds that broke something once
//! hold now, and a world in which disks lie is found out.

use std::process::{Command, Output};

/// Seeds of every run of the tests; `copse-sim swarm` does as many as one likes.
const SEEDS: &str = "0..199";

/// Within how many seeds lying disks must be found out.
const CANARY_SEEDS: u64 = 40;

fn sim(arguments: &[&str]) -> Output {
    let sim = env!("CARGO_BIN_EXE_copse-sim");
    Command::new(sim).args(arguments).output().expect("copse-sim runs")
}

fn told(arguments: &[&str]) -> serde_json::Value {
    serde_json::from_slice(&sim(arguments).stdout).expect("JSON")
}

#[test]
fn every_promise_holds_in_two_hundred_worlds() {
    let output = sim(&["swarm", "--seeds", SEEDS]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("200 worlds, 0 with a broken promise"), "{text}");
}

#[test]
fn seeds_that_broke_a_promise_once_hold() {
    let found = include_str!("../seeds/found.txt");
    for line in found.lines().filter(|line| !line.starts_with('#')) {
        let seed = line.split(' ').next().expect("a seed in front");
        let told = told(&["run", "--json", "--seed", seed]);
        assert!(told["broken"].is_null() && told["trace"].is_string(), "{line}: {told:#}");
    }
}

#[test]
fn disks_that_lie_about_syncs_are_found_out() {
    let found = (0..CANARY_SEEDS).any(|seed| {
        let told = told(&["run", "--json", "--lying-disks", "--seed", &seed.to_string()]);
        told["promise"] == "Durability"
    });
    assert!(found, "a checker that sees no loss is of no use");
}

#[test]
fn the_same_seed_is_the_same_run_in_another_process() {
    let trace = |seed: &str| {
        let told = told(&["run", "--json", "--seed", seed]);
        told["trace"].as_str().expect("a trace").to_owned()
    };
    for seed in ["3", "11", "40"] {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
    assert_ne!(trace("3"), trace("4"));
}
