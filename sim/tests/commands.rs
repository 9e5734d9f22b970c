//! The command line of the durability simulator: whose settings it takes, in which units it speaks, and what it
//! says of wrong input.

use std::process::{Command, Output};

use copse_core::{
    geometry::Geometry, guard::FREEZE_PERCENT, liveness::Timeouts, repair::Policy, units::Span,
};
use copse_sim::{
    closed::patient,
    event::{self, HOURS_PER_YEAR, Scenario},
    law::RepairLaw,
    random::Lifetime,
};
use serde_json::Value;

fn sim(arguments: &str) -> Output {
    let sim = env!("CARGO_BIN_EXE_copse-sim");
    Command::new(sim).args(arguments.split_whitespace()).output().expect("copse-sim runs")
}

fn told(arguments: &str) -> Value {
    let output = sim(arguments);
    assert!(output.status.success(), "{arguments}: {output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn said(arguments: &str) -> String {
    let output = sim(arguments);
    assert!(output.status.success(), "{arguments}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn hours(time: std::time::Duration) -> f64 {
    time.as_secs_f64() / 3600.0
}

fn year() -> Lifetime {
    Lifetime::new(HOURS_PER_YEAR, 1.0).expect("a lifetime")
}

#[test]
fn what_is_not_said_is_as_in_the_product() {
    let (policy, timeouts) = (Policy::default(), Timeouts::default());
    for (nodes, geometry) in [(40, "10+6"), (12, "7+5"), (3, "2+1")] {
        let code: Geometry = geometry.parse().expect("a geometry");
        let all = told(&format!("durability --json --time 0h --nodes {nodes}"));
        assert_eq!(all["geometry"], geometry, "as `copse put` has it for {nodes} nodes");
        let settings = &all["settings"];
        assert_eq!(settings["base"], "product");
        assert_eq!(settings["changed"], Value::Array(Vec::new()));
        assert_eq!(settings["threshold_shards"], policy.threshold.shards(code));
        assert_eq!(settings["thin_shards"], policy.thin_line(code));
        assert_eq!(settings["patience_hours"], hours(policy.patience));
        assert_eq!(settings["dead_after_hours"], hours(timeouts.dead_after));
        assert_eq!(settings["down_after_hours"], hours(timeouts.down_after));
        assert_eq!(settings["freeze_hours_max"], hours(timeouts.freeze_max));
        assert_eq!(settings["freeze_share"], FREEZE_PERCENT as f64 / 100.0);
        assert_eq!(settings["repair_budget_bytes_per_second_node"], Value::Null);
        assert_eq!(all["tau_hours_mean"], 24.0);
    }
    // A fifth of 20 Mbit/s, sent and received.
    let line = told("durability --json --time 0h --uplink 20Mbit");
    assert_eq!(line["settings"]["repair_budget_bytes_per_second_node"], 1e6);
    assert_eq!(line["settings"]["changed"][0], "budget");
}

/// The words of the help are written by hand, the values are the core's: a changed one must change the words.
#[test]
fn the_help_tells_the_defaults_that_the_product_has() {
    let (policy, timeouts) = (Policy::default(), Timeouts::default());
    let help = said("durability --help").split_whitespace().collect::<Vec<_>>().join(" ");
    let code: Geometry = "10+6".parse().expect("a geometry");
    for default in [
        format!(
            "the product's, {} for 10+6; with --plain all but one]",
            policy.threshold.shards(code)
        ),
        format!("the product's, {}; with --plain 0h]", Span(timeouts.dead_after)),
        format!("the product's, {}; with --plain never]", Span(policy.patience)),
        format!("the product's, {}; with --plain never]", Span(timeouts.down_after)),
        format!("the product's, {FREEZE_PERCENT}%; with --plain never]"),
        format!("[default: the product's, {}]", Span(timeouts.freeze_max)),
        "[possible values: exponential, fixed, both]".to_owned(),
    ] {
        assert!(help.contains(&default), "{default:?} is not in\n{help}");
    }
}

#[test]
fn the_product_and_the_plain_network_are_simulated_as_they_are_in_the_library() {
    let law = RepairLaw::Fixed;
    let geometry: Geometry = "4+2".parse().expect("a geometry");
    let sizes =
        "durability --json --law fixed --nodes 60 --geometry 4+2 --chunks 500 --time 2years";
    let product = Scenario::product(60, geometry, year(), 20.0, law).expect("a scheme");
    let plain = Scenario::plain(60, product.scheme, year(), 24.0, law);
    let same = |arguments: &str, scenario: Scenario| {
        let out = event::run(&Scenario { chunks: 500, years: 2.0, ..scenario }).expect("possible");
        let all = told(&format!("{sizes} {arguments}"));
        let [answer] = all["laws"].as_array().expect("laws").as_slice() else { panic!("{all:#}") };
        assert_eq!(answer["repair_time_law"], "fixed");
        for (name, expected) in
            [("events", out.events), ("repairs", out.repairs), ("losses", out.losses)]
        {
            assert_eq!(answer["simulated"][name], expected, "{arguments}: {name}");
        }
        answer["closed_form"]["ln_mttdl_years"].as_f64().expect("a number")
    };
    let closed = same("", product.clone());
    let pace = copse_sim::closed::chain::Pace { life: HOURS_PER_YEAR, repair: 24.0 };
    let expected = patient::ln_mttdl(product.scheme, pace, 24.0, law) - HOURS_PER_YEAR.ln();
    assert!((closed - expected).abs() < 1e-9, "{closed} for {expected}");
    same("--plain", plain.clone());
    // Either way leads to the other, setting by setting.
    let one_by_one =
        "--patience never --down-after never --freeze never --dead-after 0h --repair 24h";
    same(one_by_one, Scenario { freeze_share: None, ..plain });
    same(
        "--plain --patience 1d --down-after 5min --freeze 15% --dead-after 4h --repair 20h",
        product,
    );
}

#[test]
fn the_output_says_with_which_settings_and_by_which_law() {
    let text = said("durability --time 0h --patience 7d");
    for words in [
        "settings: the product's, but for patience\n",
        "repair at 13 live shards, when one has been missing for 7 d, or with 12 in reach for 5 min",
        "dead after 4 h; nobody while more than 15.00 % or a whole zone are down, for at most 1 d",
        "exponential repair times",
        "fixed repair times",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
    let text = said("durability --time 0h --plain --law fixed");
    assert!(text.contains("settings: plain: deaths and repairs alone\n"), "{text}");
    assert!(text.contains("repair at 15 live shards\n"), "{text}");
    assert!(!text.contains("exponential repair times"), "{text}");
}

#[test]
fn where_there_are_no_zones_they_have_no_load() {
    let few = "placement --json --nodes 20 --geometry 2+1";
    assert!(told(few)["zone_load_max_over_mean"].is_null());
    assert!(told(&format!("{few} --tokens 16"))["zone_load_max_over_mean"].is_null());
    let zoned = told(&format!("{few} --zones 4"));
    assert!(zoned["zone_load_max_over_mean"].as_f64() >= Some(1.0), "{zoned:#}");
    assert!(zoned["repair_time_law"].as_str().expect("words").starts_with("none"));
}

#[test]
fn news_are_told_in_rounds_and_in_seconds() {
    let all = told("gossip --json --nodes 40 --loss 20%");
    let round = all["round_seconds"].as_f64().expect("a number");
    assert_eq!(round, copse_core::gossip::ROUND_INTERVAL.as_secs_f64());
    let text = said("gossip --nodes 40 --loss 20%");
    for what in ["half_know_after", "pushes_end_after", "all_know_after"] {
        let rounds = all[format!("{what}_rounds")].as_u64().expect("rounds");
        let seconds = all[format!("{what}_seconds")].as_f64().expect("seconds");
        assert_eq!(seconds, rounds as f64 * round, "{what}");
        let words = format!("{rounds} rounds = {seconds} s\n");
        assert!(text.contains(&words), "{what}: {words:?} is not in\n{text}");
    }
}

/// Each with words that say what to do instead.
const WRONG: &[(&str, &str)] = &[
    ("", "Usage"),
    ("nonsense", "unrecognized subcommand"),
    ("durability --law foo", "[possible values: exponential, fixed, both]"),
    ("durability --nodes -1", "write a whole number from 2 to 2000000"),
    ("durability --nodes 0", "write a whole number from 2 to 2000000"),
    ("durability --nodes 2000001", "write a whole number from 2 to 2000000"),
    ("durability --nodes 10 --geometry 10+6", "take at least 16"),
    ("durability --geometry 3+0", "take DATA+1 or more"),
    ("durability --geometry -1+2", "write DATA+PARITY"),
    ("durability --geometry 200+200", "at most"),
    ("durability --threshold 9", "take 10 to 15"),
    ("durability --threshold 16", "take 10 to 15"),
    ("durability --life 0h", "the mean must be positive"),
    ("durability --life -1year", "write a number and a unit"),
    ("durability --life 5", "write a number and a unit"),
    ("durability --shape 0.1", "the shape within 0.2 to 10"),
    ("durability --shape NaN", "write a number, 0 or more"),
    ("durability --repair 0h", "the mean repair time is 0; it must be positive"),
    ("durability --time 2000years", "at most 1000 years"),
    ("durability --time -1h", "write a number and a unit"),
    ("durability --patience soon", "; or never"),
    ("durability --freeze 150%", "write 5% or 0.05; or never"),
    ("durability --chunks 0", "write a whole number from 1"),
    ("durability --chunks 1000000000", "chunks x n is 16000000000; it must be 1 to 4e9"),
    ("durability --single-chunks --chunks 100000000", "take fewer chunks, or whole arcs"),
    ("durability --absences -3", "write a number, 0 or more"),
    ("durability --absences 1e9", "positive and at most 1e6"),
    (
        "durability --absences 1 --absence-median 0h",
        "the median of absences is 0; it must be positive",
    ),
    ("durability --absences 1 --absence-sigma 50", "it must be 0 to 20"),
    ("durability --zones 1001", "at most the number of nodes"),
    ("durability --zone-outage 2,24h,1%", "1 or more for a zone to fail"),
    ("durability --zone-outage 2,24h", "write 3 values with commas between them: 2,24h,1%"),
    ("durability --burst 12,50", "write 4 values with commas between them: 12,50,48h,100%"),
    ("durability --burst 12,5000,48h,100%", "1 to the number of nodes"),
    ("durability --burst -1,50,48h,100%", "write a number, 0 or more"),
    ("durability --malicious 100%", "it must be 0 to below 1"),
    ("durability --storm 6months,2000000", "at most 2,000,000"),
    ("durability --storm 500", "6months,500"),
    ("durability --budget 0Mbit", "the repair budget is 0; it must be positive"),
    ("durability --budget 5", "500kbit, 5Mbit or 2MB/s"),
    ("durability --budget 1Mbit --uplink 1Mbit", "cannot be used with"),
    ("durability --splitting 100", "say --patience never, or --plain"),
    ("durability --seed -1", "write a whole number, 0 or more"),
    (
        "durability --nodes 2000000 --life 1h --time 1000years",
        "take fewer nodes, longer lives or less time",
    ),
    ("placement --nodes 1", "write a whole number from 2 to 200000"),
    ("placement --zones 2000", "take 1000 or fewer"),
    ("placement --tokens 3", "a power of two"),
    ("placement --tokens 16 --zones 2", "without --zones"),
    ("placement --tokens 4096 --nodes 200000", "take --nodes 12500 or fewer"),
    ("placement --tokens 16 --nodes 10", "take --nodes 16 or more"),
    ("placement --geometry 0+3", "at least 1 data shard"),
    ("gossip --nodes 9000", "write a whole number from 2 to 5000"),
    ("gossip --loss 2", "write 5% or 0.05"),
    ("gossip --loss -5%", "write 5% or 0.05"),
    ("report --check --to /nowhere", "no report to check at /nowhere/durability.md"),
    ("report --to /dev/null", "say --to and a directory"),
    ("run", "--seed"),
    ("run --seed -1", "write a whole number, 0 or more"),
    ("run --seed 99999999999999999999", "write a whole number, 0 or more"),
    ("run --seed 1 --without 9999", "the world has the faults 0 to"),
    ("run --seed 1 --without -2", "write a whole number from 0"),
    ("run --seed 1 --kind foo", "[possible values: "),
    ("run --seed 1 --canary foo", "[possible values: "),
    ("run --seed 1 --dice 0", "1..="),
    ("run --seed 1 --dice 1 --kind lies", "needs --dice 2 or more"),
    ("swarm --seeds 1..2 --dice 1 --kind lies", "needs --dice 2 or more"),
    ("swarm --seeds 5..1", "write two numbers, the smaller first"),
    ("swarm --seeds 5", "write two numbers, the smaller first"),
    ("swarm --seeds 0..18446744073709551615", "for at most 1000000 worlds"),
    ("swarm --seeds 1..2 --jobs 0", "write a whole number from 1 to 1024"),
    ("replay --seed 1", "--to <FILE>"),
    ("replay --seed 1 --to /nowhere/log", "name another file"),
    ("replay --seed 1 --to /", "name another file"),
    ("step --seed 1 --every 0", "write a whole number from 1 to 86400"),
    ("step --seed 1 --from 60 --until 5", "nothing is shown"),
    ("step --seed 1 --show all", "[possible values: "),
    ("step --seed 1 --json", "leave out --json"),
    ("diff --seed 1 --other x", "write a whole number, 0 or more"),
    ("diff --seed 1 --without 9999", "the world has the faults 0 to"),
    ("speed --nodes 11", "write a whole number from 12 to 200"),
    ("speed --seconds 18446744073709551615", "write a whole number from 1 to 86400"),
];

#[test]
fn wrong_input_is_told_what_to_do_and_ends_with_two() {
    for (arguments, advice) in WRONG {
        let output = sim(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {text}");
        assert!(text.contains(advice), "{arguments}: {advice:?} is not in\n{text}");
        assert!(!text.contains("panicked"), "{arguments}: {text}");
    }
}
