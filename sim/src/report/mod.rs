//! The report: what the simulator finds, as one document with tables and charts.
//!
//! Owns `docs/durability.md` and its charts. Everything in them comes from formulas and seeds that
//! stand beside the figures, so that the same program writes the same bytes. Recommends nothing.

mod defaults;
mod json;
mod lasting;
mod published;
mod scenarios;
mod spreading;
mod table;

use serde_json::{Value, json};

use crate::svg::Chart;

pub use table::{Table, short};

/// A part of the document.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) text: String,
    /// Those of the text, for machines.
    pub(crate) tables: Vec<Table>,
    pub(crate) charts: Vec<(&'static str, Chart)>,
}

impl Section {
    fn json(&self) -> Value {
        let charts = self.charts.iter().map(|(name, chart)| {
            let mut json = chart.json();
            json["file"] = format!("{name}.svg").into();
            json
        });
        json!({
            "title": self.title,
            "tables": self.tables.iter().map(Table::json).collect::<Vec<_>>(),
            "charts": charts.collect::<Vec<_>>(),
        })
    }
}

/// How much work goes into a report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effort {
    /// For tests: everything, as little of it as possible.
    Least,
    /// What is in the repository; some minutes at most.
    Full,
}

/// A file of the report: its path under `docs/`, and its content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    /// `durability.md`, `durability/….svg` or `durability/figures.json`.
    pub path: String,
    /// Text.
    pub content: String,
}

const HEAD: &str = "\
# How long data lasts

Written by `copse-sim report`; do not edit. The same program and the same seeds write the same \
bytes. The figures are results of models, not promises. Where parameters are the product's defaults, \
the text says so. All tables and the points of all charts are in \
[figures.json](durability/figures.json). For a network of your own ask `copse plan`, which uses the same formulas.

Every figure names its **repair-time law**: *exponential* (memoryless, pessimistic) or *fixed* \
(always as long, optimistic). Between them lies up to (r−k+1)!. A **nine** is −log10 of the \
probability that a given chunk is lost within a year. Above about eleven, nines only rank schemes: \
what is really lost then is lost to what many nodes have in common.

Words: k of n shards rebuild a chunk; repair begins when r or fewer are left; λ = 1/mean life of a \
node; τ = mean time from there to full strength.
";

/// The document's path under `docs/`.
pub const DOCUMENT: &str = "durability.md";

/// Where its charts and figures are, under `docs/`.
pub const DIRECTORY: &str = "durability";

/// Of the shape of `figures.json`.
const FIGURES_VERSION: u32 = 1;

/// Runs all studies and writes the report.
pub fn files(effort: Effort) -> Vec<File> {
    let studies: [fn(Effort) -> Section; 10] = [
        published::published,
        lasting::nines,
        lasting::traffic,
        lasting::rare,
        defaults::defaults,
        scenarios::compared,
        scenarios::margin,
        spreading::placement,
        spreading::gossip,
        scenarios::cost,
    ];
    let sections = in_parallel(&studies, |study| study(effort));
    let mut document = HEAD.to_owned();
    let mut files = Vec::new();
    let figures: Vec<Value> = sections.iter().map(Section::json).collect();
    // The same order of keys each time: serde_json sorts them.
    let figures = json!({ "version": FIGURES_VERSION, "sections": figures });
    files.push(File { path: format!("{DIRECTORY}/figures.json"), content: json::rows(&figures) });
    for section in sections {
        document.push_str(&format!("\n## {}\n\n{}", section.title, section.text));
        for (name, chart) in section.charts {
            document.push_str(&format!("\n![{}]({DIRECTORY}/{name}.svg)\n", chart.title));
            files.push(File { path: format!("{DIRECTORY}/{name}.svg"), content: chart.render() });
        }
    }
    files.push(File { path: DOCUMENT.into(), content: document });
    files
}

/// Applies `work` to all items on two threads; results in the order of the items.
pub(crate) fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    use std::sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    };
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((at, item)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    items.get(at).map(|item| (at, item))
                } {
                    let result = work(item);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_the_same_each_time_and_names_its_laws() {
        let (once, again) = (files(Effort::Least), files(Effort::Least));
        assert_eq!(once, again);
        let document = once.last().expect("the document is the last file");
        for file in &once[..once.len() - 1] {
            assert!(document.content.contains(&file.path), "{} is not shown", file.path);
        }
        let json = &once.iter().find(|file| file.path.ends_with("json")).expect("figures").content;
        let figures: Value = serde_json::from_str(json).expect("JSON");
        let sections = figures["sections"].as_array().expect("sections");
        assert_eq!(sections.len(), document.content.matches("\n## ").count());
        // Each row of each table of the document, and a point for each series.
        let rows = |table: &Value| table["rows"].as_array().expect("rows").len();
        let all = |of: &str| -> Vec<Value> {
            let some = |section: &Value| section[of].as_array().expect("a list").clone();
            sections.iter().flat_map(some).collect()
        };
        let lines = document.content.lines().filter(|line| line.starts_with('|')).count();
        let tables = all("tables");
        assert_eq!(tables.iter().map(rows).sum::<usize>() + 2 * tables.len(), lines);
        for chart in all("charts") {
            for series in chart["series"].as_array().expect("series") {
                assert!(!series["points"].as_array().expect("points").is_empty(), "{series}");
            }
        }
        for table in &tables {
            for column in table["columns"].as_array().expect("columns") {
                let column = column.as_str().expect("a name");
                let says = |words: &[&str]| words.iter().any(|word| column.contains(word));
                assert!(!says(&["traffic"]) || says(&["bytes", "kB"]), "{column} in which unit?");
                let of_life = says(&["life 6", "life 1", "life 3", "life 5"]);
                assert!(!of_life || says(&["nines", "bytes"]), "what is in {column}?");
            }
        }
        for section in document.content.split("\n## ").skip(1) {
            assert!(section.contains("law"), "no repair-time law is named in {section}");
        }
        for word in ["exponential", "fixed", "seed"] {
            assert!(document.content.contains(word), "no {word} in the report");
        }
        assert!(!document.content.contains("NaN"), "{}", document.content);
    }
}
