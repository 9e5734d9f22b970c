//! The answer of `copse plan` in words.
//!
//! Owns the sentences and how times, sizes and shares are rounded for people. Computes nothing that
//! decides.

use std::fmt::Write as _;

use copse_core::{
    durability::advice::{Advice, Figures, Lack, Question, Remedies, Speed, UNREADABLE_MAX},
    units::{HOURS_PER_MONTH, HOURS_PER_YEAR},
};

use super::{REPAIR_SHARE, chunks};
use crate::output::count;

/// The whole answer, line by line. `is_asked`: about a geometry that was named; `instead`: what is
/// advised when that is not enough.
pub(super) fn answer(
    question: &Question,
    advice: &Advice,
    is_asked: bool,
    instead: Option<&Advice>,
) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{text}");
    };
    let Some(best) = &advice.best else {
        line(format!(
            "{} cannot keep data: whatever is on one node is lost with it.",
            nodes(question.nodes)
        ));
        reach(&advice.remedies, question).into_iter().for_each(&mut line);
        return out;
    };
    line(verdict(question, advice, best, is_asked));
    line(String::new());
    for (name, value) in rows(question, best) {
        line(format!("  {name:<14} {value}"));
    }
    if !advice.lacks.is_empty() {
        line(String::new());
        line("What it lacks:".to_owned());
        for lack in &advice.lacks {
            line(format!("  - {}", lacking(question, best, *lack)));
        }
        match instead.filter(|instead| instead.lacks.is_empty()).and_then(|instead| instead.best) {
            Some(other) => line(format!(
                "{} would do, at {:.2} bytes of disk for each byte stored.",
                other.geometry,
                other.expansion()
            )),
            None => reach(&advice.remedies, question).into_iter().for_each(&mut line),
        }
    }
    line(String::new());
    line("What would still lose data, and is in no figure above:".to_owned());
    for danger in dangers(question, best) {
        line(format!("  - {danger}"));
    }
    if let Some((default, lacks)) = &advice.default
        && default.geometry != best.geometry
    {
        line(String::new());
        line(other(question, default, lacks));
    }
    line(String::new());
    assumptions(question).into_iter().for_each(&mut line);
    out
}

/// What a geometry gives, in a line.
pub(super) fn in_short(question: &Question, figures: &Figures) -> String {
    let load = match question.speed {
        Speed::Hours(hours) => format!("a repair takes {}", time(hours)),
        Speed::BytesPerHour(rate_hour) => format!(
            "the network holds {} and each node's line can send {}",
            size(question.stored),
            rate(rate_hour / REPAIR_SHARE * 8.0 / 3600.0)
        ),
    };
    format!(
        "default geometry {}: {:.2} bytes of disk for each byte stored; a chunk-year has {} nines (exponential \
         repair times, pessimistic) to {} (fixed, optimistic) if a node lasts {} and answers {} of the time, and \
         {load}. `copse plan` takes other numbers, and says what would still lose data and what else would do",
        figures.geometry,
        figures.expansion(),
        nines(figures.exponential),
        nines(figures.fixed),
        long(question.life),
        percent(question.online),
    )
}

fn verdict(question: &Question, advice: &Advice, best: &Figures, is_asked: bool) -> String {
    let geometry = best.geometry;
    let (data, total) = (geometry.data(), geometry.total());
    let is_default =
        advice.default.as_ref().is_some_and(|(figures, _)| figures.geometry == geometry);
    let how = if is_default {
        "it is the default".to_owned()
    } else {
        format!("copse put --geometry {geometry}")
    };
    let what = format!("any {data} of a chunk's {total} shards rebuild it ({how})");
    let wish = wish(question);
    match (advice.lacks.is_empty(), is_asked) {
        (true, false) => format!("Use {geometry}: {what}."),
        (true, true) => format!("{geometry} gives {wish}: {what}."),
        (false, true) => format!("{geometry} is not enough for {wish}: {what}."),
        (false, false) => {
            format!(
                "Not to be had: {wish} from {}. Nearest is {geometry}: {what}.",
                nodes(question.nodes)
            )
        }
    }
}

fn rows(question: &Question, best: &Figures) -> Vec<(&'static str, String)> {
    let (data, total) = (best.geometry.data(), best.geometry.total());
    let disk = question.stored * best.expansion() / question.nodes as f64;
    let years = |nines: f64| long(10f64.powf(nines) / chunks(question) * HOURS_PER_YEAR);
    let line = best.node_traffic * 8.0 / (HOURS_PER_MONTH * 3600.0);
    let share = best.line_load.map_or(String::new(), |load| {
        format!(", {} of what repair may take of its line", percent(load))
    });
    let zones = match best.zones_borne {
        None => String::new(),
        Some(0) => "; not of every zone".to_owned(),
        Some(zones) => format!("; of any {} at once", count(zones as u64, "zone")),
    };
    vec![
        (
            "disk",
            format!(
                "{:.2} bytes for each byte stored; {} on each node",
                best.expansion(),
                size(disk)
            ),
        ),
        (
            "a chunk-year",
            format!(
                "{} nines if repair times are exponential (pessimistic), {} if fixed (optimistic)",
                nines(best.exponential),
                nines(best.fixed)
            ),
        ),
        (
            "all chunks",
            format!(
                "of {:.0} one is lost in {} (exponential), {} (fixed)",
                chunks(question),
                years(best.exponential),
                years(best.fixed)
            ),
        ),
        (
            "repair",
            format!(
                "{} a month for each TB stored; each node sends {} and receives as much\n{:17}({} on \
                 average{share})",
                size(best.traffic * 1e12),
                size(best.node_traffic),
                "",
                rate(line)
            ),
        ),
        (
            "a lost node",
            format!(
                "dead after {}; its shards wait {} for others at most, then are whole in {}",
                time(question.detection),
                time(question.patience),
                time(best.rebuild)
            ),
        ),
        (
            "not readable",
            format!(
                "{} of the time, {} a year: fewer than {data} of {total} shards on nodes that answer",
                probability(best.unreadable),
                time(best.unreadable * HOURS_PER_YEAR)
            ),
        ),
        (
            "survives",
            format!("the loss of any {} at once{zones}", count(best.nodes_borne as u64, "node")),
        ),
        (
            "acknowledged",
            format!("when {} of {total} shards are on disk", best.geometry.write_quorum()),
        ),
    ]
}

fn lacking(question: &Question, best: &Figures, lack: Lack) -> String {
    match lack {
        Lack::OneNode => "the loss of one node loses data".to_owned(),
        Lack::OneZone => format!(
            "the loss of one zone loses data: it has up to {} of a chunk, {} may be lost",
            count(best.in_one_zone.unwrap_or_default() as u64, "shard"),
            best.geometry.parity()
        ),
        Lack::Disk => {
            format!(
                "{:.2} bytes of disk for each byte; {:.2} are allowed (--disk)",
                best.expansion(),
                question.expansion_max
            )
        }
        Lack::Unreadable => format!(
            "a chunk is not readable {} of the time; more than {} is not advised",
            probability(best.unreadable),
            probability(UNREADABLE_MAX)
        ),
        Lack::Line => {
            "repair needs more than the lines give, and would fall behind for ever".to_owned()
        }
        Lack::Nines => format!(
            "{} nines are wished and {} there, if repair times are exponential",
            nines(question.wish),
            nines(best.exponential)
        ),
    }
}

fn reach(remedies: &Remedies, question: &Question) -> Vec<String> {
    let mut ways = Vec::new();
    if let Some(count) = remedies.nodes {
        ways.push(format!("  - {}", nodes(count)));
    }
    if let Some(life) = remedies.life.filter(|life| *life > question.life * 1.01) {
        ways.push(format!("  - nodes that live {} on average", long(life)));
    }
    if let Some(hours) = remedies.rebuild {
        let means = match question.speed {
            Speed::Hours(_) => "",
            Speed::BytesPerHour(_) => ": faster lines, or less stored",
        };
        ways.push(format!("  - a lost node's shards whole in {}{means}", time(hours)));
    }
    if let Some(expansion) = remedies.expansion.filter(|most| *most > question.expansion_max) {
        ways.push(format!(
            "  - {expansion:.2} bytes of disk for each byte stored (--disk {expansion:.2})"
        ));
    }
    let wish = wish(question);
    if ways.is_empty() {
        return vec![format!("No single change reaches {wish}: change several, or wish for less.")];
    }
    ways.insert(0, format!("What would reach {wish}, each alone:"));
    ways
}

fn dangers(question: &Question, best: &Figures) -> Vec<String> {
    let within = question.detection + best.rebuild;
    let mut dangers = vec![format!(
        "{} lost together, or within {}: one disk model, one bad update, one owner who leaves",
        nodes(best.nodes_borne + 1),
        time(within)
    )];
    match (best.zones_borne, best.in_one_zone) {
        (Some(0), Some(shards)) => dangers.push(format!(
            "one zone: up to {} of a chunk are in it, {} may be lost",
            count(shards as u64, "shard"),
            best.geometry.parity()
        )),
        (Some(borne), Some(shards)) => dangers.push(format!(
            "{} at once; or one zone and {} (up to {} of a chunk are in a zone)",
            count(borne as u64 + 1, "zone"),
            count((best.geometry.parity() + 1).saturating_sub(shards) as u64, "more node"),
            count(shards as u64, "shard"),
        )),
        _ => dangers.push(
            "nodes in one house or on one line that are lost together: say --zones, and set zone in \
             each node's configuration"
                .to_owned(),
        ),
    }
    if best.on_one_node > 1 {
        dangers.push(format!(
            "fewer nodes than shards: {} of a chunk are on one node and are lost together",
            count(best.on_one_node as u64, "shard")
        ));
    } else if best.geometry.total() == question.nodes {
        dangers.push(
            "a dead node that is not replaced: there is no spare one, so that others must hold two \
             shards of a chunk"
                .to_owned(),
        );
    }
    dangers.push(format!(
        "absences of more than {}: they count as deaths until the node is back, and cost repair",
        time(question.detection)
    ));
    dangers.push("a lost capability: nobody can make it again".to_owned());
    dangers
}

fn other(question: &Question, default: &Figures, lacks: &[Lack]) -> String {
    let lacks: Vec<String> = lacks
        .iter()
        .map(|lack| match lack {
            Lack::Nines => "too few nines if repair times are exponential".to_owned(),
            lack => lacking(question, default, *lack),
        })
        .collect();
    let why = if lacks.is_empty() { "enough, too".to_owned() } else { lacks.join("; ") };
    format!(
        "The default for {} is {} ({:.2} bytes of disk; {} nines if repair times are exponential, {} if \
         fixed): {why}.",
        nodes(question.nodes),
        default.geometry,
        default.expansion(),
        nines(default.exponential),
        nines(default.fixed)
    )
}

fn assumptions(question: &Question) -> Vec<String> {
    let speed = match question.speed {
        Speed::Hours(hours) => format!("--repair-time {}", time(hours)),
        Speed::BytesPerHour(rate_hour) => format!(
            "--stored {}, repair sends {} from each node (a fifth of --uplink)",
            size(question.stored),
            rate(rate_hour * 8.0 / 3600.0)
        ),
    };
    vec![
        format!(
            "Taken as given: {} of equal size, --node-life {}, --online {},",
            nodes(question.nodes),
            long(question.life),
            percent(question.online)
        ),
        format!("{speed};"),
        "failures independent of each other. Nines above about eleven only rank geometries."
            .to_owned(),
    ]
}

/// What is wished. It is met when it is met with the pessimistic law.
fn wish(question: &Question) -> String {
    format!("{} nines (exponential repair times)", nines(question.wish))
}

fn nodes(count_of: usize) -> String {
    count(count_of as u64, "node")
}

/// One digit behind the point, never more than there is.
fn nines(nines: f64) -> String {
    let tenths = (nines * 10.0).floor() / 10.0;
    if tenths.fract() == 0.0 { format!("{tenths:.0}") } else { format!("{tenths:.1}") }
}

/// Hours as people say them.
fn time(hours: f64) -> String {
    match hours {
        hours if hours < 1.0 / 3600.0 => "less than a second".to_owned(),
        hours if hours < 1.0 / 60.0 => format!("{} s", digits(hours * 3600.0)),
        hours if hours < 1.0 => format!("{} min", digits(hours * 60.0)),
        hours if hours < 96.0 => format!("{} h", digits(hours)),
        hours if hours < HOURS_PER_YEAR => format!("{} days", digits(hours / 24.0)),
        hours => long(hours),
    }
}

/// Months and years, and many of them.
fn long(hours: f64) -> String {
    let years = hours / HOURS_PER_YEAR;
    match years {
        years if (years - 1.0).abs() < 1e-3 => "1 year".to_owned(),
        years if years < 1.0 / 12.0 => time(hours),
        years if years < 2.0 => format!("{} months", digits(years * 12.0)),
        years if years < 1e3 => format!("{} years", digits(years)),
        years if years < 1e6 => format!("{} thousand years", digits(years / 1e3)),
        years if years < 1e9 => format!("{} million years", digits(years / 1e6)),
        years => format!("{years:.0e} years"),
    }
}

/// Two digits that matter, at least.
fn digits(value: f64) -> String {
    if value < 10.0 && (value - value.round()).abs() > 0.05 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// Bytes in powers of ten, as disks are sold.
fn size(bytes: f64) -> String {
    let units = [("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    units.into_iter().find(|(_, unit)| bytes >= *unit).map_or_else(
        || format!("{bytes:.0} B"),
        |(name, unit)| format!("{} {name}", digits(bytes / unit)),
    )
}

fn rate(bits: f64) -> String {
    match bits {
        bits if bits >= 1e7 => format!("{:.0} Mbit/s", bits / 1e6),
        bits if bits >= 1e6 => format!("{:.1} Mbit/s", bits / 1e6),
        bits => format!("{:.0} kbit/s", bits / 1e3),
    }
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent >= 1.0 { format!("{} %", digits(percent)) } else { format!("{percent:.1} %") }
}

fn probability(value: f64) -> String {
    match value {
        value if value >= 0.01 => percent(value),
        0.0 => "0".to_owned(),
        value => format!("{value:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_sizes_and_shares_are_rounded_for_people() {
        for (hours, expected) in [
            (1e-4, "less than a second"),
            (0.001, "3.6 s"),
            (0.5, "30 min"),
            (4.0, "4 h"),
            (95.0, "95 h"),
            (240.0, "10 days"),
            (3.0 * HOURS_PER_YEAR, "3 years"),
        ] {
            assert_eq!(time(hours), expected);
        }
        assert_eq!(long(18.0 * HOURS_PER_MONTH), "18 months");
        assert_eq!(long(4.2e6 * HOURS_PER_YEAR), "4.2 million years");
        assert_eq!([size(999.0), size(1.25e11), size(2e12)], ["999 B", "125 GB", "2 TB"]);
        assert_eq!([nines(11.0), nines(10.99), nines(0.04)], ["11", "10.9", "0"]);
        assert_eq!([percent(0.95), percent(0.001)], ["95 %", "0.1 %"]);
        assert_eq!([rate(2e7), rate(4e6), rate(31e3)], ["20 Mbit/s", "4.0 Mbit/s", "31 kbit/s"]);
    }
}
