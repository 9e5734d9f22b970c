//! From a [`Config`] to the text of the file, with all comments.
//!
//! Owns the words about each setting, in one table in the order of the file.

use std::{fmt::Write as _, net::SocketAddr, num::NonZeroU64, time::Duration};

use copse_core::{
    limits::ADDRESSES_MAX,
    units::{ByteSize, Span},
};

use super::{
    BUFFER_BYTES_MIN, Config, GRPC_PORT, JOIN_TOKENS_MAX, LogFormat, QUIC_PORT, zone_rule,
};
use crate::peer::endpoint::Congestion;

impl Config {
    /// The text of the file, with all comments; [`Config::parse`] gives the same configuration back.
    pub fn render(&self) -> String {
        let mut out = String::from(HEAD);
        let mut section = "";
        for (key, value, comment) in self.settings() {
            let (prefix, name) = key.rsplit_once('.').unwrap_or(("", key));
            if prefix != section {
                section = prefix;
                // Writing to a string does not fail.
                let _ = write!(out, "\n[{section}]\n");
            }
            out.push('\n');
            for line in comment.lines() {
                let _ = writeln!(out, "# {line}");
            }
            let _ = writeln!(out, "{name} = {value}");
        }
        out
    }

    /// Every setting: key, value in TOML, and what there is to know about it.
    fn settings(&self) -> Vec<(&'static str, String, String)> {
        let text = |value: &dyn ToString| toml::Value::String(value.to_string()).to_string();
        let list = |values: Vec<String>| match values.as_slice() {
            [] => "[]".to_owned(),
            [one] => format!("[{one}]"),
            many => format!("[\n    {},\n]", many.join(",\n    ")),
        };
        let span = |time: Duration| text(&Span(time));
        let addresses = |addresses: &[SocketAddr]| {
            list(addresses.iter().map(|address| text(address)).collect())
        };
        vec![
            (
                "network",
                text(&self.network),
                "The network this node is of: 64 hexadecimal digits, chosen by its founder.\n\
                 Nodes of other networks are refused. Never change it: the shards held are of this one."
                    .to_owned(),
            ),
            (
                "join",
                list(self.join.iter().map(|token| text(token)).collect()),
                format!(
                    "Tokens of nodes of the network (`copse-node token`), asked at start. One that is\n\
                     reachable is enough, and none is needed once others are remembered: those stand in\n\
                     the node's directory. Default: none (a founder). At most {JOIN_TOKENS_MAX}."
                ),
            ),
            (
                "zone",
                text(&self.zone),
                format!(
                    "What fails together with this node, in a word: a house, a rack, a provider. Nodes of\n\
                     the same zone together never hold more of a chunk than may be lost, where that can be\n\
                     helped. Default: \"\", the node is a zone of its own. {}.",
                    zone_rule()
                ),
            ),
            (
                "capacity",
                text(&self.capacity),
                "How much the node offers to hold, in bytes of shards with their records. Its share of the\n\
                 network's shards follows from it. When it is reached, new shards are refused and all else\n\
                 goes on. May be raised or lowered at any time. Set by init: half of the free space when\n\
                 not given. 64MiB to 1EiB."
                    .to_owned(),
            ),
            (
                "quic.listen",
                text(&self.quic.listen),
                format!(
                    "Where other nodes reach this one: an IP address and a UDP port. 0.0.0.0 means all IPv4\n\
                     addresses of the machine, [::] those of IPv6 too. Default: 0.0.0.0:{QUIC_PORT}. The port is\n\
                     not 0: others remember it."
                ),
            ),
            (
                "quic.advertise",
                addresses(&self.quic.advertise),
                format!(
                    "The addresses other nodes are told. Set it behind a port mapping or in a container.\n\
                     Default: none, which means the address of quic.listen, or for 0.0.0.0 and [::] the one\n\
                     this machine uses towards the internet. At most {ADDRESSES_MAX}."
                ),
            ),
            (
                "quic.congestion",
                text(match self.congestion {
                    Congestion::Cubic => &"cubic",
                    Congestion::Bbr => &"bbr",
                }),
                "How the sending rate is found: \"cubic\" shares a line fairly; \"bbr\" is faster where\n\
                 packets are lost at random, but crowds out others on a home line. Default: cubic."
                    .to_owned(),
            ),
            (
                "grpc.listen",
                text(&self.grpc.listen),
                format!(
                    "Where clients reach this node: an IP address and a TCP port. Default: 0.0.0.0:{GRPC_PORT}."
                ),
            ),
            (
                "grpc.advertise",
                addresses(&self.grpc.advertise),
                format!(
                    "The addresses clients are told; as with quic.advertise. At most {ADDRESSES_MAX}."
                ),
            ),
            (
                "grpc.connections_max",
                self.grpc_connections_max.to_string(),
                "Connections of clients at one time. When there are so many, one without a call makes room, then one\n\
                 of the address that has most. Each may have 8 MiB received that were not read yet, a\n\
                 share of 1 GiB, at least 1 MiB, if more than 128 may be. Default: 128. 1 to 65536."
                    .to_owned(),
            ),
            (
                "grpc.streams_max",
                self.grpc_streams_max.to_string(),
                "Calls at one time on one connection; a client makes more wait. Default: 256, several times\n\
                 what one client uses. 1 to 65536."
                    .to_owned(),
            ),
            (
                "store.reserve",
                text(&self.reserve),
                "Free space of the disk that is never used, for the index's compaction and for whatever\n\
                 else lives on the disk. Below it, new shards are refused. Default: 512MiB, several times\n\
                 what a compaction of the index needs. 0B to 1EiB."
                    .to_owned(),
            ),
            (
                "memory.put_buffers",
                text(&self.put_buffers),
                format!(
                    "Memory for shards on their way in: half of it for clients, half for other nodes. When\n\
                     it is full, who puts is made to wait. Default: 64MiB, 80 shards of 10+6. From {}\n\
                     (two of the largest shards for each) to 64GiB.",
                    ByteSize(BUFFER_BYTES_MIN)
                ),
            ),
            (
                "memory.get_buffers",
                text(&self.get_buffers),
                "Memory for shards on their way out, halved in the same way; apart, so that reads go on\n\
                 while writes wait. Default: 64MiB. The same bounds."
                    .to_owned(),
            ),
            (
                "membership.ping_every",
                span(self.membership.ping_every),
                "Between two pings of a node that this one watches (32 at most). Default: 5s. Units: ms, s,\n\
                 min, h, d."
                    .to_owned(),
            ),
            (
                "membership.suspect_after",
                span(self.membership.suspect_after),
                "After so long a silence a node is suspect: others are asked first. Default: 10s."
                    .to_owned(),
            ),
            (
                "membership.down_after",
                span(self.membership.down_after),
                "After so long a silence a node is down: chunks that are thin without it are repaired.\n\
                 Default: 5min, in which most machines restart."
                    .to_owned(),
            ),
            (
                "membership.dead_after",
                span(self.membership.dead_after),
                "After so long a silence this node signs that it is silent. When enough others of different\n\
                 zones do as well, it is off the ring and what it held is made again. Default: 4h."
                    .to_owned(),
            ),
            (
                "membership.together",
                span(self.membership.together),
                "Nodes that fell silent within this time did so together: if they are more than 15 % of the\n\
                 weight, or a whole zone, nobody is evicted for now. Default: 1h."
                    .to_owned(),
            ),
            (
                "membership.freeze_max",
                span(self.membership.freeze_max),
                "After this time they may be evicted nevertheless, so that a real loss is repaired in the\n\
                 end. Default: 1d."
                    .to_owned(),
            ),
            (
                "repair.round_every",
                span(self.repair.round_every),
                "How often other nodes are asked what changed in their holdings: some hundred bytes each\n\
                 when nothing did. Default: 1min."
                    .to_owned(),
            ),
            (
                "repair.patience",
                span(self.repair.policy.patience),
                "A missing shard waits for others, since making several together costs as much as one; but\n\
                 not longer than this. Default: 1d."
                    .to_owned(),
            ),
            (
                "repair.parallel",
                self.repair.parallel.to_string(),
                "Chunks that this node repairs at one time, in at most 64 MiB of memory. Default: 4. 1 to 64."
                    .to_owned(),
            ),
            (
                "repair.uplink",
                text(&ByteSize(self.repair.rates.uplink.map_or(0, NonZeroU64::get))),
                "What this node's line can send in a second. Default: 0B, not known: repair is then limited\n\
                 only while clients are being served. Can be changed while the node runs: `copse-node\n\
                 limits`."
                    .to_owned(),
            ),
            (
                "repair.share_percent",
                self.repair.rates.share_percent.to_string(),
                "The part of it that repair and moving may take, in percent; chunks in danger may take all.\n\
                 Default: 20. 1 to 100."
                    .to_owned(),
            ),
            (
                "repair.scrub_period",
                span(self.repair.scrub_period),
                "In this time the node reads all of its own disk once, to find rot. Default: 30d."
                    .to_owned(),
            ),
            (
                "metrics.listen",
                text(&self.metrics.map_or_else(String::new, |address| address.to_string())),
                "Where metrics for Prometheus are served (HTTP, /metrics): an IP address and a TCP port.\n\
                 Default: \"\", nowhere. Not for strangers: listen on a loopback or private address."
                    .to_owned(),
            ),
            (
                "stop.grace_seconds",
                self.stop_grace.as_secs().to_string(),
                "How long running requests may take to end when the node is told to stop, in seconds.\n\
                 What was acknowledged is safe either way. Default: 20, under the 30 that containers are\n\
                 usually given. 0 to 3600."
                    .to_owned(),
            ),
            (
                "log.filter",
                text(&self.log_filter),
                "What is logged: error, warn, info, debug or trace, also by module, such as\n\
                 \"info,copse_node::peer=debug\". The variable COPSE_LOG overrides it. Default: info."
                    .to_owned(),
            ),
            (
                "log.format",
                text(match self.log_format {
                    LogFormat::Text => &"text",
                    LogFormat::Json => &"json",
                }),
                "How a line is written: \"text\" for people, \"json\" for collectors. Default: text."
                    .to_owned(),
            ),
        ]
    }
}

const HEAD: &str = "\
# The configuration of a Copse node. Read at start: after a change, restart the node.
#
# Settings that are left out have their defaults; unknown ones are refused. Sizes are written with a
# unit: 10GiB, 512MiB, 1.5TB.
";

#[cfg(test)]
mod tests {
    use copse_core::ids::NetworkId;

    use super::*;

    #[test]
    fn the_defaults_that_comments_name_are_those_in_force() {
        let config = Config::new(NetworkId::new([0xab; 32]), ByteSize(10 << 30));
        let mut without = Vec::new();
        for (key, value, comment) in config.settings() {
            let comment = comment.replace('\n', " ");
            let Some((_, behind)) = comment.split_once("Default: ") else {
                without.push(key);
                continue;
            };
            let ends = [", ", ". ", " ("].into_iter().filter_map(|end| behind.find(end));
            let named = behind.get(..ends.min().unwrap_or(behind.len())).unwrap_or_default();
            let named = match named.trim_end_matches('.') {
                "none" => "[]",
                named => named.trim_matches('"'),
            };
            assert_eq!(named, value.trim_matches('"'), "{key}: {comment}");
        }
        // Which have none, and one that says the same as another.
        assert_eq!(without, ["network", "capacity", "grpc.advertise"]);
    }
}
