//! Worlds of real nodes and clients: the same seed is the same run, seeds that broke something once
//! hold now, and bugs on purpose are found out.

use std::process::{Command, Output};

/// Seeds of every run of the tests; `copse-sim swarm` does as many as one likes.
const SEEDS: &str = "0..199";

/// Within how many seeds a bug on purpose must be found out.
const CANARY_SEEDS: u64 = 40;

/// Within how many everything that is drawn must have had an effect: disks that miss the place are rare.
const EFFECT_SEEDS: u64 = 200;

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
        let world = line.split(' ').next().expect("a seed in front");
        let (seed, dice) = world.split_once('@').expect("the dice behind the seed");
        let (dice, kind) =
            dice.split_once('/').map_or((dice, None), |(dice, kind)| (dice, Some(kind)));
        let mut arguments = vec!["run", "--json", "--seed", seed, "--dice", dice];
        arguments.extend(kind.iter().flat_map(|kind| ["--kind", kind]));
        let told = told(&arguments);
        assert!(told["broken"].is_null() && told["trace"].is_string(), "{line}: {told:#}");
    }
}

/// A checker that sees no loss is of no use.
fn is_found_out(canary: &str, promise: &str) {
    is_found_out_in(&[], canary, promise);
}

fn is_found_out_in(kind: &[&str], canary: &str, promise: &str) {
    let found = (0..CANARY_SEEDS).any(|seed| {
        let seed = seed.to_string();
        let run = ["run", "--json", "--canary", canary, "--seed", &seed];
        told(&[&run, kind].concat())["promise"] == promise
    });
    assert!(found, "{canary} is not found in {CANARY_SEEDS} worlds");
}

#[test]
fn disks_that_lie_about_syncs_are_found_out() {
    is_found_out("lying-disks", "Durability");
}

#[test]
fn holders_that_drop_what_did_not_arrive_are_found_out() {
    is_found_out("blind-moves", "Deletion");
}

#[test]
fn a_scrub_that_reads_nothing_is_found_out() {
    is_found_out("blind-scrub", "Strength");
}

#[test]
fn nodes_that_never_let_go_of_memory_are_found_out() {
    is_found_out("hoards", "Bounds");
}

/// What strikes only when something comes to it does come to it, and clients do all that they can do.
#[test]
fn whatever_is_drawn_has_an_effect_in_some_world() {
    let names = [
        "deaths_at_deeds",
        "deaths_opening",
        "bad_sectors",
        "refused_for_room",
        "torn_writes",
        "unsynced_lost",
        "forgotten_batches",
        "indexes_lost",
        "segments_compacted",
        "rotted",
        "misdirected_writes",
        "misdirected_reads",
        "lies",
        "false_words",
        "dark",
        "overtaken",
        "looked_at_when_acknowledged",
        "trees_from_files",
        "files_from_streams",
        "gateway_puts",
        "gateway_stats",
        "gateway_lists",
        "gateway_reads",
        "gateway_stops",
        "lists",
        "list_checks",
    ];
    let mut struck = [0; 26];
    let all = (0..EFFECT_SEEDS).any(|seed| {
        let told = told(&["run", "--json", "--seed", &seed.to_string()]);
        for (count, name) in struck.iter_mut().zip(names) {
            *count += told[name].as_u64().expect("a count");
        }
        struck.iter().all(|count| *count > 0)
    });
    assert!(all, "{names:?}: {struck:?} in {EFFECT_SEEDS} worlds");
}

#[test]
fn clients_that_take_a_byte_for_another_are_found_out() {
    is_found_out("smudged-reads", "Integrity");
}

#[test]
fn gateways_that_take_a_byte_for_another_are_found_out() {
    is_found_out("smudged-gateway", "Integrity");
}

#[test]
fn trees_that_are_acknowledged_too_early_are_found_out() {
    is_found_out("early-trees", "Durability");
}

#[test]
fn chunks_that_are_acknowledged_too_early_are_found_out() {
    is_found_out("early-chunks", "Durability");
}

#[test]
fn holders_that_keep_what_they_should_hand_over_are_found_out() {
    is_found_out("stubborn-holders", "Repair");
}

#[test]
fn panics_are_found_out() {
    is_found_out("panicking-holders", "NoPanic");
}

#[test]
fn nodes_that_take_each_other_for_dead_too_soon_are_found_out() {
    is_found_out_in(&["--kind", "outage"], "hasty-deaths", "Storm");
}

#[test]
fn reads_that_fail_for_no_reason_are_found_out() {
    is_found_out_in(&["--kind", "read-storm"], "fickle-reads", "Service");
}

#[test]
fn looking_at_a_world_does_not_change_it() {
    let trace = told(&["run", "--json", "--seed", "5"])["trace"].clone();
    let trace = trace.as_str().expect("a trace");
    let steps = sim(&["step", "--seed", "5", "--every", "7"]);
    let text = String::from_utf8_lossy(&steps.stdout);
    assert!(text.contains(&format!("trace {trace}")), "{trace}: {text}");
    assert!(text.contains("== 21 s") && text.contains("in work, queue: "), "{text}");
    assert!(text.contains("chunks, by shards on machines that run"), "{text}");
}

#[test]
fn two_worlds_are_the_same_until_a_fault_is_left_out() {
    let told = |arguments: &[&str]| String::from_utf8_lossy(&sim(arguments).stdout).into_owned();
    let same = told(&["diff", "--seed", "5"]);
    assert!(same.starts_with("the two are the same: "), "{same}");
    let other = told(&["diff", "--seed", "5", "--without", "0", "--words"]);
    let first = other.lines().find(|line| line.starts_with("> ")).expect("the other world");
    assert!(first.contains("fault 0 begins"), "{other}");
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
