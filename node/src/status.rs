//! `copse-node status`: what the running node says about itself, for people and for programs.
//!
//! Owns the two forms of the report. Refuses to guess: everything in it was asked of the node, and
//! what the network survives is computed from the directory that the node gave.

use std::{fmt, net::SocketAddr};

use copse_core::{
    directory::{Directory, NodeState, SignedRecord},
    geometry::Geometry,
    ids::{NetworkId, NodeId},
    shown::sentence,
    units::{Brief, ByteSize, Count, counted, date, one_or},
};
use copse_proto::{
    convert,
    door::{self, directory_client::DirectoryClient, node_client::NodeClient},
    status::Refusal,
};
use serde_json::{Value, json};
use tonic::{Status, transport::Channel};

/// Decisions shown to a person; all are in the JSON.
const EVENTS_SHOWN: usize = 8;

/// What is known of a node that runs.
#[derive(Debug)]
pub struct Report {
    node: NodeId,
    network: NetworkId,
    record: SignedRecord,
    info: door::InfoReply,
    directory: Directory,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The node refused or broke off.
    #[error("the node does not say how it is: {0}")]
    Asked(Refusal),
    /// The answer makes no sense.
    #[error("the node's answer makes no sense ({0}): is it of the same version?")]
    Answer(String),
}

impl From<Status> for StatusError {
    fn from(status: Status) -> Self {
        Self::Asked(status.into())
    }
}

impl Report {
    /// Asks the node behind `door`.
    ///
    /// # Errors
    /// When it does not answer, or not sensibly.
    pub async fn ask(door: Channel) -> Result<Self, StatusError> {
        let info = NodeClient::new(door.clone()).info(door::InfoRequest {}).await?.into_inner();
        let wrong = |error: &dyn fmt::Display| StatusError::Answer(error.to_string());
        let network = NetworkId::from_slice(&info.network_id).map_err(|error| wrong(&error))?;
        let node = NodeId::from_slice(&info.node_id).map_err(|error| wrong(&error))?;
        let read = |signed: &door::SignedRecord| {
            convert::verify_record(signed, network).map_err(|error| wrong(&error))
        };
        let record = read(info.record.as_ref().ok_or_else(|| wrong(&"no record"))?)?;
        let mut directory = Directory::new(network);
        let mut list = DirectoryClient::new(door).list(door::ListRequest {}).await?.into_inner();
        while let Some(reply) = list.message().await? {
            convert::admit(&mut directory, &reply, |_| {});
        }
        Ok(Self { node, network, record, info, directory })
    }

    /// One JSON object. Fields are added, never renamed.
    pub fn json(&self) -> Value {
        let record = self.record.record();
        let store = self.store();
        json!({
            "running": true,
            "node": self.node.to_string(),
            "network": self.network.to_string(),
            "version": self.info.version,
            "uptime_seconds": self.info.uptime_seconds,
            "zone": record.zone,
            "state": state(record.state),
            "addresses": texts(&record.addresses),
            "grpc": texts(&record.grpc),
            "store": {
                "shards": store.shards,
                "shard_bytes": store.shard_bytes,
                "disk_bytes": store.disk_bytes,
                "capacity_bytes": store.capacity_bytes,
                "accepting": store.accepting,
                "refusing_reason": store.refusing_reason,
                "quarantined": store.quarantined,
                "trashed": store.trashed,
                "dead_bytes": store.dead_bytes,
                "unreadable": store.unreadable,
            },
            "repair": self.repair_json(),
            "scrub": {
                "permille": self.scrub().permille,
                "read_bytes": self.scrub().read_bytes,
                "damaged": self.scrub().damaged,
                "rounds": self.scrub().rounds,
            },
            "network_nodes": self.directory.len(),
            "survives": self.survives().map(|(geometry, survival)| json!({
                "geometry": geometry.to_string(),
                "nodes": survival.nodes,
                "zones": survival.zones,
            })),
            "peers": self.info.peers.iter().map(|peer| json!({
                "node": id(&peer.node_id),
                "addresses": peer.addresses,
                "connected": peer.connected,
                "last_heard_seconds": peer.last_heard_seconds,
                "last_error": (!peer.last_error.is_empty()).then_some(&peer.last_error),
                "standing": peer.standing,
                "reason": (!peer.reason.is_empty()).then_some(&peer.reason),
                "untrusted": (!peer.untrusted.is_empty()).then_some(&peer.untrusted),
            })).collect::<Vec<_>>(),
        })
    }

    fn repair_json(&self) -> Value {
        let repair = self.repair();
        let counters = repair.counters.unwrap_or_default();
        let margins = |counts: &[door::MarginCount]| {
            counts
                .iter()
                .map(|count| (count.margin.to_string(), count.count.into()))
                .collect::<serde_json::Map<_, Value>>()
        };
        json!({
            "guard": (!repair.guard.is_empty()).then_some(&repair.guard),
            "cut_off": repair.cut_off,
            "chunks_by_margin": margins(&repair.chunks),
            "chunks_whole": repair.chunks_whole,
            "chunks_displaced": repair.chunks_displaced,
            "planned": repair.planned,
            "chunks_waiting": repair.chunks_waiting,
            "chunks_lost": repair.chunks_lost,
            "chunks_unfinished": repair.chunks_unfinished,
            "survives_nodes": repair.survives_nodes,
            "survives_zones": repair.survives_zones,
            "queue_by_margin": margins(&repair.queue),
            "running": repair.running,
            "oldest_seconds": repair.oldest_seconds,
            "deferred": repair.deferred,
            "eta_seconds": repair.eta_seconds,
            "leaving_shards": repair.leaving_shards,
            "counters": {
                "jobs_done": counters.jobs_done,
                "jobs_failed": counters.jobs_failed,
                "jobs_cancelled": counters.jobs_cancelled,
                "rebuilt_shards": counters.rebuilt_shards,
                "rebuilt_bytes": counters.rebuilt_bytes,
                "rebuild_read_bytes": counters.rebuild_read_bytes,
                "moved_shards": counters.moved_shards,
                "moved_bytes": counters.moved_bytes,
                "released_shards": counters.released_shards,
                "audits": counters.audits,
                "audits_failed": counters.audits_failed,
                "chunks_planned": counters.chunks_planned,
            },
            "failing": repair.failing.iter().map(|job| json!({
                "chunk": id(&job.chunk_id),
                "kind": job.kind,
                "attempts": job.attempts,
                "age_seconds": job.age_seconds,
                "last_error": job.last_error,
            })).collect::<Vec<_>>(),
            "events": repair.events.iter().map(|event| json!({
                "unix_seconds": event.unix_seconds,
                "text": event.text,
            })).collect::<Vec<_>>(),
        })
    }

    fn repair(&self) -> door::RepairInfo {
        self.info.repair.clone().unwrap_or_default()
    }

    fn scrub(&self) -> door::ScrubInfo {
        self.info.scrub.unwrap_or_default()
    }

    fn store(&self) -> door::StoreInfo {
        self.info.store.clone().unwrap_or_default()
    }

    /// What every chunk of the default geometry survives in this network.
    fn survives(&self) -> Option<(Geometry, copse_core::ring::Survival)> {
        let ring = self.directory.ring();
        let geometry = Geometry::default_for(ring.len())?;
        Some((geometry, ring.survives(geometry)))
    }
}

impl fmt::Display for Report {
    /// A table for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.record.record();
        let store = self.store();
        let mut line = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<10} {value}");
        line("node", &self.node)?;
        line("network", &self.network)?;
        line("version", &self.info.version)?;
        line("up", &Brief::seconds(self.info.uptime_seconds))?;
        line("state", &state(record.state))?;
        line("zone", &if record.zone.is_empty() { "(its own)" } else { &record.zone })?;
        line("nodes", &texts(&record.addresses).join(", "))?;
        line("clients", &texts(&record.grpc).join(", "))?;
        line(
            "store",
            &format_args!(
                "{}, {}; {} of {} used",
                counted(store.shards, "shard"),
                ByteSize(store.shard_bytes).rounded(),
                ByteSize(store.disk_bytes).rounded(),
                ByteSize(store.capacity_bytes).rounded(),
            ),
        )?;
        match store.accepting {
            true => line("accepting", &"yes")?,
            false => line("accepting", &format_args!("NO, {}", sentence(&store.refusing_reason)))?,
        }
        if store.quarantined > 0 {
            line("damaged", &(counted(store.quarantined, "shard") + " set aside"))?;
        }
        if store.unreadable {
            line("disk", &"GIVES NOTHING for an hour: what it holds does not count; see the log")?;
        }
        for (name, text) in self.repair_lines() {
            line(name, &text)?;
        }
        match self.survives() {
            None => line("survives", &"nothing yet: this node is alone")?,
            Some((geometry, survival)) => line(
                "survives",
                &format_args!(
                    "{} known; with {geometry} any {} of them may be lost, or any {}",
                    counted(self.directory.len() as u64, "node"),
                    survival.nodes,
                    counted(survival.zones as u64, "zone"),
                ),
            )?,
        }
        if !self.info.peers.is_empty() {
            writeln!(
                f,
                "\n{:<10} {:<9} {:<11} {:<10} ADDRESSES",
                "PEER", "STATE", "CONNECTED", "HEARD"
            )?;
        }
        for peer in &self.info.peers {
            let heard = match peer.last_heard_seconds {
                Some(seconds) => format!("{} ago", Brief::seconds(seconds)),
                None => "never".to_owned(),
            };
            writeln!(
                f,
                "{:<10} {:<9} {:<11} {heard:<10} {}",
                id(&peer.node_id).get(..8).unwrap_or_default(),
                peer.standing,
                if peer.connected { "yes" } else { "no" },
                peer.addresses.join(", "),
            )?;
            for more in [&peer.reason, &peer.untrusted, &peer.last_error] {
                if !more.is_empty() {
                    writeln!(f, "{:<10} {}", "", sentence(more))?;
                }
            }
        }
        let events = self.repair().events;
        if !events.is_empty() {
            writeln!(f, "\nLAST DECISIONS (UTC)")?;
        }
        for event in events.iter().rev().take(EVENTS_SHOWN).rev() {
            let at = date(i64::try_from(event.unix_seconds).unwrap_or(i64::MAX));
            writeln!(f, "{at}  {}", sentence(&event.text))?;
        }
        Ok(())
    }
}

impl Report {
    /// What a person should know of repair: little when all is well.
    fn repair_lines(&self) -> Vec<(&'static str, String)> {
        let repair = self.repair();
        let sum = |counts: &[door::MarginCount]| counts.iter().map(|each| each.count).sum::<u64>();
        let (chunks, queued) = (sum(&repair.chunks), sum(&repair.queue));
        let mut lines = vec![(
            "steward",
            format!(
                "of {}, {} with all {} shards",
                counted(chunks, "chunk"),
                Count(repair.chunks_whole),
                one_or(repair.chunks_whole, "its", "their")
            ),
        )];
        if !repair.guard.is_empty() {
            lines.push(("guard", sentence(&repair.guard)));
        }
        if queued + repair.running > 0 {
            let eta = repair.eta_seconds.map(|eta| format!(", about {} left", Brief::seconds(eta)));
            lines.push((
                "repairing",
                format!(
                    "{queued} queued, {} of them now, the oldest for {}{}",
                    repair.running,
                    Brief::seconds(repair.oldest_seconds),
                    eta.unwrap_or_default()
                ),
            ));
        }
        if repair.chunks_waiting > 0 {
            let text = counted(repair.chunks_waiting, "chunk") + " for nodes that are down";
            lines.push(("waiting", text));
        }
        if repair.chunks_lost > 0 {
            let have = one_or(repair.chunks_lost, "has", "have");
            let chunks = counted(repair.chunks_lost, "chunk");
            let text = format!("{chunks} {have} too few shards anywhere");
            lines.push(("LOST", text));
        }
        if repair.chunks_unfinished > 0 {
            let chunks = counted(repair.chunks_unfinished, "chunk");
            let text = chunks + " of puts that go on or were broken off";
            lines.push(("unfinished", text));
        }
        if let (Some(nodes), Some(zones)) = (repair.survives_nodes, repair.survives_zones) {
            lines.push((
                "now",
                format!(
                    "these chunks survive any {}, or any {}",
                    counted(nodes.into(), "more node"),
                    counted(zones.into(), "zone")
                ),
            ));
        }
        if repair.leaving_shards > 0 {
            lines.push(("leaving", counted(repair.leaving_shards, "shard") + " to hand over"));
        }
        for job in repair.failing.iter().take(3) {
            let chunk = id(&job.chunk_id);
            let chunk = chunk.get(..8).unwrap_or_default();
            let (kind, attempts) = (&job.kind, job.attempts);
            lines.push((
                "failing",
                format!(
                    "{kind} of {chunk}, {}: {}",
                    counted(attempts.into(), "time"),
                    sentence(&job.last_error)
                ),
            ));
        }
        let scrub = self.scrub();
        if scrub.damaged > 0 {
            lines.push(("scrub", counted(scrub.damaged, "damaged shard") + " found"));
        }
        lines
    }
}

fn id(bytes: &[u8]) -> String {
    NodeId::from_slice(bytes).map(|id| id.to_string()).unwrap_or_default()
}

fn texts(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Active => "active",
        NodeState::Leaving => "leaving",
        NodeState::Left => "left",
    }
}
