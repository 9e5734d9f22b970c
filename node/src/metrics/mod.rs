//! What a node says of itself, for Prometheus: one table of metrics, and the text made from it.
//!
//! Owns every metric's name, unit, meaning and labels; `docs/metrics.md` is written from the same
//! table. Refuses to measure anything: all numbers are those of the door's `InfoReply`. The one idea:
//! a metric is a row, and what is not in the table does not exist.

mod serve;

use std::fmt::Write as _;

use copse_proto::door::{InfoReply, MarginCount, PeerInfo, RepairInfo};

pub use serve::{Source, serve};

/// How a metric changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only grows while the node runs; its name ends with `_total`.
    Counter,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
        }
    }
}

/// One metric.
pub struct Metric {
    /// Its name, with the unit at the end.
    pub name: &'static str,
    /// How it changes.
    pub kind: Kind,
    /// What it means.
    pub help: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    read: fn(&InfoReply, &mut Samples<'_>),
}

/// The samples of one metric, as they are written.
struct Samples<'a> {
    metric: &'a Metric,
    out: &'a mut String,
}

impl Samples<'_> {
    /// One sample without labels.
    fn put(&mut self, value: u64) {
        self.with(&[], value);
    }

    /// One sample, with a value for each label.
    fn with(&mut self, values: &[&str], value: impl std::fmt::Display) {
        assert_eq!(values.len(), self.metric.labels.len(), "{}: its labels", self.metric.name);
        // Writing to a string does not fail.
        let _ = write!(self.out, "{}", self.metric.name);
        for (at, (label, value)) in self.metric.labels.iter().zip(values).enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let _ = write!(self.out, "{open}{label}=\"{}\"", escaped(value));
        }
        let close = if values.is_empty() { "" } else { "}" };
        let _ = writeln!(self.out, "{close} {value}");
    }

    /// One sample for each margin; a margin that is named twice is one.
    fn margins(&mut self, counts: &[MarginCount]) {
        let mut sums = std::collections::BTreeMap::<i32, u64>::new();
        for MarginCount { margin, count } in counts {
            let sum = sums.entry(*margin).or_default();
            *sum = sum.saturating_add(*count);
        }
        for (margin, count) in sums {
            self.with(&[&margin.to_string()], count);
        }
    }
}

/// A label's value as the text format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// How a peer may stand; one sample each, also when nobody does, so that a rule finds them.
const STANDINGS: [&str; 6] = ["alive", "suspect", "down", "dead", "leaving", "left"];

macro_rules! metrics {
    ($($name:literal, $kind:ident, [$($label:literal),*], $help:literal, $read:expr;)*) => {
        /// Every metric there is, in the order in which it is written.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: $name,
            kind: Kind::$kind,
            help: $help,
            labels: &[$($label),*],
            read: $read,
        },)*];
    };
}

metrics! {
    "copse_node_info", Gauge, ["node", "version"],
        "Always 1; the node's id and its program's version.",
        |info, out| out.with(&[&hexadecimal(&info.node_id), &info.version], 1);
    "copse_node_uptime_seconds", Gauge, [],
        "Since the node started.",
        |info, out| out.put(info.uptime_seconds);

    "copse_store_shards", Gauge, [],
        "Shards held.",
        |info, out| store(info, out, |store| store.shards);
    "copse_store_shard_bytes", Gauge, [],
        "Bytes of shards held.",
        |info, out| store(info, out, |store| store.shard_bytes);
    "copse_store_disk_bytes", Gauge, [],
        "Bytes of segment files on disk.",
        |info, out| store(info, out, |store| store.disk_bytes);
    "copse_store_capacity_bytes", Gauge, [],
        "How much the node offers to hold.",
        |info, out| store(info, out, |store| store.capacity_bytes);
    "copse_store_accepting", Gauge, [],
        "1 when new shards are taken, 0 when not: the disk is full, failed, or the node leaves.",
        |info, out| store(info, out, |store| store.accepting.into());
    "copse_store_quarantined_shards", Gauge, [],
        "Shards found damaged and set aside.",
        |info, out| store(info, out, |store| store.quarantined);
    "copse_store_readable", Gauge, [],
        "0 when the disk has given nothing for an hour, so that what it holds counts as lost; else 1.",
        |info, out| store(info, out, |store| (!store.unreadable).into());
    "copse_store_trashed_shards", Gauge, [],
        "Shards dropped whose bytes are kept for a while.",
        |info, out| store(info, out, |store| store.trashed);
    "copse_store_dead_bytes", Gauge, [],
        "Bytes of segments that compaction will free.",
        |info, out| store(info, out, |store| store.dead_bytes);

    "copse_peers", Gauge, ["standing"],
        "Other nodes, by how they stand in this node's eyes.",
        |info, out| for standing in STANDINGS {
            out.with(&[standing], peers(info, |peer| peer.standing == standing));
        };
    "copse_peers_connected", Gauge, [],
        "Other nodes to which a connection is open.",
        |info, out| out.put(peers(info, |peer| peer.connected));
    "copse_peers_untrusted", Gauge, [],
        "Other nodes that were caught serving wrong bytes or claiming what they do not hold.",
        |info, out| out.put(peers(info, |peer| !peer.untrusted.is_empty()));

    "copse_chunks", Gauge, ["margin"],
        "Chunks that this node is the steward of, by how many shards within reach they have beyond \
         those needed; the sum over all nodes is the network's.",
        |info, out| if let Some(repair) = &info.repair { out.margins(&repair.chunks) };
    "copse_chunks_whole", Gauge, [],
        "Of these, with all their shards within reach.",
        |info, out| repair(info, out, |repair| repair.chunks_whole);
    "copse_chunks_thin", Gauge, [],
        "Of these, readable but not whole.",
        |info, out| repair(info, out, thin);
    "copse_chunks_displaced", Gauge, [],
        "Of these, with a shard that is not where it belongs, or also somewhere else.",
        |info, out| repair(info, out, |repair| repair.chunks_displaced);
    "copse_chunks_waiting", Gauge, [],
        "Of these, not readable until nodes that are down come back.",
        |info, out| repair(info, out, |repair| repair.chunks_waiting);
    "copse_chunks_lost", Gauge, [],
        "Of these, with fewer shards in existence than are needed.",
        |info, out| repair(info, out, |repair| repair.chunks_lost);
    "copse_chunks_unfinished", Gauge, [],
        "Of these, with shards missing since their put goes on or was broken off: nobody was told that they \
         are stored.",
        |info, out| repair(info, out, |repair| repair.chunks_unfinished);
    "copse_survives_nodes", Gauge, [],
        "Any so many more nodes may be lost, of all these chunks; absent without chunks. The least \
         over all nodes is the network's.",
        |info, out| if let Some(nodes) = info.repair.as_ref().and_then(|r| r.survives_nodes) {
            out.put(nodes.into());
        };
    "copse_survives_zones", Gauge, [],
        "The same for zones.",
        |info, out| if let Some(zones) = info.repair.as_ref().and_then(|r| r.survives_zones) {
            out.put(zones.into());
        };

    "copse_repair_guarded", Gauge, [],
        "1 when a guard holds planning or evictions back; `copse status` says why.",
        |info, out| repair(info, out, |repair| (!repair.guard.is_empty()).into());
    "copse_repair_cut_off", Gauge, [],
        "1 when this node sees less than half of the network and plans nothing.",
        |info, out| repair(info, out, |repair| repair.cut_off.into());
    "copse_repair_queue_jobs", Gauge, ["margin"],
        "What is to be done, by the margin of the chunk.",
        |info, out| if let Some(repair) = &info.repair { out.margins(&repair.queue) };
    "copse_repair_running_jobs", Gauge, [],
        "Jobs being worked on.",
        |info, out| repair(info, out, |repair| repair.running);
    "copse_repair_queue_oldest_seconds", Gauge, [],
        "Age of the oldest job in the queue.",
        |info, out| repair(info, out, |repair| repair.oldest_seconds);
    "copse_repair_eta_seconds", Gauge, [],
        "Until the queue is empty at the present rate; absent when it is not known.",
        |info, out| if let Some(eta) = info.repair.as_ref().and_then(|r| r.eta_seconds) {
            out.put(eta);
        };
    "copse_repair_failing_jobs", Gauge, [],
        "Jobs in the queue that have failed, the 16 worst at most.",
        |info, out| repair(info, out, |repair| repair.failing.len() as u64);
    "copse_repair_leaving_shards", Gauge, [],
        "Shards that this node has still to hand over before it may go.",
        |info, out| repair(info, out, |repair| repair.leaving_shards);
    "copse_repair_deferred_total", Counter, [],
        "Offers that a full queue put off; they are found again.",
        |info, out| repair(info, out, |repair| repair.deferred);
    "copse_repair_jobs_total", Counter, ["outcome"],
        "Jobs that ended: done, failed (and tried again), or cancelled since they were needed no more.",
        |info, out| if let Some(of) = counters(info) {
            out.with(&["done"], of.jobs_done);
            out.with(&["failed"], of.jobs_failed);
            out.with(&["cancelled"], of.jobs_cancelled);
        };
    "copse_repair_rebuilt_shards_total", Counter, [],
        "Shards made anew.",
        |info, out| if let Some(of) = counters(info) { out.put(of.rebuilt_shards) };
    "copse_repair_rebuilt_bytes_total", Counter, [],
        "Bytes of shards made anew.",
        |info, out| if let Some(of) = counters(info) { out.put(of.rebuilt_bytes) };
    "copse_repair_read_bytes_total", Counter, [],
        "Bytes of shards read to make them.",
        |info, out| if let Some(of) = counters(info) { out.put(of.rebuild_read_bytes) };
    "copse_repair_moved_shards_total", Counter, [],
        "Shards that this node gave to where they belong.",
        |info, out| if let Some(of) = counters(info) { out.put(of.moved_shards) };
    "copse_repair_moved_bytes_total", Counter, [],
        "Bytes of these.",
        |info, out| if let Some(of) = counters(info) { out.put(of.moved_bytes) };
    "copse_repair_released_shards_total", Counter, [],
        "Shards dropped because another node proved to hold them.",
        |info, out| if let Some(of) = counters(info) { out.put(of.released_shards) };
    "copse_repair_planned_chunks_total", Counter, [],
        "Chunks planned.",
        |info, out| if let Some(of) = counters(info) { out.put(of.chunks_planned) };
    "copse_audits_total", Counter, ["outcome"],
        "Claims of other nodes that were checked: true or false.",
        |info, out| if let Some(of) = counters(info) {
            out.with(&["true"], of.audits.saturating_sub(of.audits_failed));
            out.with(&["false"], of.audits_failed);
        };

    "copse_scrub_progress_ratio", Gauge, [],
        "How far the present round of reading the own disk is, 0 to 1.",
        |info, out| if let Some(scrub) = &info.scrub {
            out.with(&[], f64::from(scrub.permille) / 1000.0);
        };
    "copse_scrub_read_bytes_total", Counter, [],
        "Bytes read by it.",
        |info, out| if let Some(scrub) = &info.scrub { out.put(scrub.read_bytes) };
    "copse_scrub_damaged_shards_total", Counter, [],
        "Damaged shards found by it.",
        |info, out| if let Some(scrub) = &info.scrub { out.put(scrub.damaged) };
    "copse_scrub_rounds_total", Counter, [],
        "Rounds ended.",
        |info, out| if let Some(scrub) = &info.scrub { out.put(scrub.rounds) };
}

/// What a node says of itself in the text format of Prometheus, version 0.0.4.
pub fn render(info: &InfoReply) -> String {
    let mut out = String::new();
    for metric in METRICS {
        let _ = writeln!(out, "# HELP {} {}", metric.name, metric.help);
        let _ = writeln!(out, "# TYPE {} {}", metric.name, metric.kind.as_str());
        (metric.read)(info, &mut Samples { metric, out: &mut out });
    }
    out
}

/// The table as a document.
pub fn document() -> String {
    let mut out = String::from(HEAD);
    for metric in METRICS {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind) = (metric.name, metric.kind.as_str());
        let _ = writeln!(out, "| `{name}` | {kind} | {} | {} |", labels.join(", "), metric.help);
    }
    out
}

const HEAD: &str = "\
# Metrics

Written by a test from the table in [node/src/metrics](../node/src/metrics/mod.rs); change it there.

A node answers `GET /metrics` in the text format of Prometheus, and `GET /healthz` with 200 as long
as it answers at all, where its configuration says so (`metrics.listen`, off by default). There is no
encryption and no password: listen on an address that only the collector reaches.
[deploy/alerts.yml](../deploy/alerts.yml) has rules that go with them.

A metric whose part the node does not report is absent. Names and labels stay; more may come.

| name | kind | labels | meaning |
|---|---|---|---|
";

fn store(info: &InfoReply, out: &mut Samples<'_>, value: fn(&copse_proto::door::StoreInfo) -> u64) {
    if let Some(store) = &info.store {
        out.put(value(store));
    }
}

fn repair(info: &InfoReply, out: &mut Samples<'_>, value: fn(&RepairInfo) -> u64) {
    if let Some(repair) = &info.repair {
        out.put(value(repair));
    }
}

fn counters(info: &InfoReply) -> Option<&copse_proto::door::RepairCounters> {
    info.repair.as_ref()?.counters.as_ref()
}

fn peers(info: &InfoReply, is: impl Fn(&PeerInfo) -> bool) -> u64 {
    info.peers.iter().filter(|peer| is(peer)).count() as u64
}

fn thin(repair: &RepairInfo) -> u64 {
    let all = repair.chunks.iter().fold(0u64, |sum, of| sum.saturating_add(of.count));
    let others = [repair.chunks_whole, repair.chunks_waiting, repair.chunks_lost];
    others.into_iter().chain([repair.chunks_unfinished]).fold(all, u64::saturating_sub)
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests;
