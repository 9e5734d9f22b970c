//! `copse-node.toml`: every setting of a node with its meaning, unit, default and bounds.
//!
//! Owns the file's format and the checks; refuses unknown keys, values out of bounds and addresses
//! nobody could reach. One idea: the file is rendered from one table, so its comments are the manual.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use copse_core::{
    ids::NetworkId,
    limits::{SHARD_BYTES_MAX, ZONE_BYTES_MAX},
    liveness::Timeouts,
    repair::Policy,
    token::JoinToken,
    units::ByteSize,
};

use crate::{
    peer::endpoint::Congestion,
    repair::{self, Rates},
    store::{FREE_RESERVE_BYTES, PATIENCE},
};

mod parse;
mod render;

/// Name of the file in the node's directory.
pub const FILE_NAME: &str = "copse-node.toml";

/// Port of QUIC between nodes when none is given.
pub const QUIC_PORT: u16 = 7400;

/// Port of the door (gRPC) when none is given.
pub const GRPC_PORT: u16 = 7401;

/// Bytes of the file, at most: a hundred times a real one.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Tokens to join by, at most. One reachable node is enough; a few more survive its death.
const JOIN_TOKENS_MAX: usize = 32;

/// The least a node may offer: eight of the largest shards, so that "full" is not its usual state.
const CAPACITY_BYTES_MIN: u64 = 64 << 20;

/// The most a node may claim: 1 EiB, far over any machine; a typo of units is caught here.
const CAPACITY_BYTES_MAX: u64 = 1 << 60;

/// The least memory for shards on their way in, and as much on their way out: two of the largest for
/// clients, two for nodes, rounded up.
const BUFFER_BYTES_MIN: u64 = (4 * SHARD_BYTES_MAX as u64).next_multiple_of(1 << 20);

/// The most memory for shards on their way: more is surely a typo.
const BUFFER_BYTES_MAX: u64 = 64 << 30;

const _: () = assert!(CAPACITY_BYTES_MIN > BUFFER_BYTES_MIN);

/// How one program run behaves: the checked content of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The network the node is of.
    pub network: NetworkId,
    /// Nodes to ask when none is remembered.
    pub join: Vec<JoinToken>,
    /// What fails together with this node; empty: nothing but itself.
    pub zone: String,
    /// How much the node offers to hold.
    pub capacity: ByteSize,
    /// Between nodes.
    pub quic: Listen,
    /// How the sending rate between nodes is found.
    pub congestion: Congestion,
    /// For clients.
    pub grpc: Listen,
    /// Connections of clients at one time.
    pub grpc_connections_max: u32,
    /// Calls at one time on one connection.
    pub grpc_streams_max: u32,
    /// Free space of the disk that is never used.
    pub reserve: ByteSize,
    /// Memory for shards on their way in.
    pub put_buffers: ByteSize,
    /// Memory for shards on their way out.
    pub get_buffers: ByteSize,
    /// How long running requests may take to end when the node stops.
    pub stop_grace: Duration,
    /// After how long a silence of another node what follows.
    pub membership: Timeouts,
    /// How repair behaves.
    pub repair: repair::Settings,
    /// Where metrics are served (HTTP); none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// What is logged: a `tracing` filter.
    pub log_filter: String,
    /// How it is written.
    pub log_format: LogFormat,
}

/// Where one protocol is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The local address that is bound.
    pub listen: SocketAddr,
    /// The addresses others are told; empty: found out at start.
    pub advertise: Vec<SocketAddr>,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no file: no node lives there.
    #[error("{0} does not exist: create a node there with `copse-node init`")]
    Missing(PathBuf),
    /// The file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text is no TOML, or a key is unknown, missing or of another type.
    #[error("{path}: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{path}: {key} = {got}: {expected}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The setting, with its section.
        key: &'static str,
        /// What the file says.
        got: String,
        /// What it may say.
        expected: String,
    },
}

impl Config {
    /// The defaults for a node of `network` that offers `capacity`.
    pub fn new(network: NetworkId, capacity: ByteSize) -> Self {
        let any =
            |port| Listen { listen: SocketAddr::from(([0, 0, 0, 0], port)), advertise: Vec::new() };
        Self {
            network,
            join: Vec::new(),
            zone: String::new(),
            capacity,
            quic: any(QUIC_PORT),
            congestion: Congestion::Cubic,
            grpc: any(GRPC_PORT),
            grpc_connections_max: 128,
            grpc_streams_max: 256,
            reserve: ByteSize(FREE_RESERVE_BYTES),
            put_buffers: ByteSize(64 << 20),
            get_buffers: ByteSize(64 << 20),
            stop_grace: Duration::from_secs(20),
            membership: Timeouts::default(),
            repair: repair::Settings {
                policy: Policy::default(),
                round_every: Duration::from_secs(60),
                parallel: 4,
                rates: Rates { uplink: None, share_percent: 20 },
                scrub_period: Duration::from_secs(30 * 24 * 3600),
                lost_after: PATIENCE,
            },
            metrics: None,
            log_filter: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

fn zone_rule() -> String {
    format!("At most {ZONE_BYTES_MAX} bytes, no control characters")
}

#[cfg(test)]
mod tests {
    use std::{fs, num::NonZeroU64, path::Path};

    use super::*;

    fn config() -> Config {
        Config::new(NetworkId::new([0xab; 32]), ByteSize(10 << 30))
    }

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("copse-node.toml"))
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let mut config = config();
        assert_eq!(parse(&config.render()).expect("the defaults"), config);
        config.zone = "house \"7\"\\n".to_owned();
        config.quic.listen = "127.0.0.1:1234".parse().expect("an address");
        config.congestion = Congestion::Bbr;
        config.quic.advertise = vec!["192.0.2.1:1".parse().expect("an address")];
        config.grpc.listen = "[::1]:1235".parse().expect("an address");
        config.grpc.advertise = vec![
            "192.0.2.1:1".parse().expect("an address"),
            "[::1]:2".parse().expect("an address"),
        ];
        config.grpc_connections_max = 9;
        config.grpc_streams_max = 10;
        config.reserve = ByteSize(12345);
        config.put_buffers = ByteSize(100 << 20);
        config.get_buffers = ByteSize(200 << 20);
        config.stop_grace = Duration::from_secs(3);
        config.membership.ping_every = Duration::from_millis(200);
        config.membership.suspect_after = Duration::from_millis(700);
        config.membership.down_after = Duration::from_secs(2);
        config.membership.dead_after = Duration::from_secs(5);
        config.membership.together = Duration::from_secs(1);
        config.membership.freeze_max = Duration::from_secs(20);
        config.repair.round_every = Duration::from_millis(500);
        config.repair.policy.patience = Duration::from_secs(3);
        config.repair.parallel = 2;
        config.repair.rates = Rates { uplink: NonZeroU64::new(1 << 20), share_percent: 55 };
        config.repair.scrub_period = Duration::from_secs(3600);
        config.metrics = Some("127.0.0.1:9100".parse().expect("an address"));
        config.log_filter = "warn,copse_node=debug".to_owned();
        config.log_format = LogFormat::Json;
        assert_eq!(parse(&config.render()).expect("all changed"), config);
    }

    #[test]
    fn a_file_with_only_what_is_needed_has_the_defaults() {
        let text = format!("network = \"{}\"\ncapacity = \"10GiB\"\n", "ab".repeat(32));
        assert_eq!(parse(&text).expect("enough"), config());
    }

    #[test]
    fn a_wrong_value_is_refused_with_the_setting_and_what_it_may_be() {
        let good = config().render();
        for (from, to, wanted) in [
            ("capacity = \"10GiB\"", "capacity = \"10\"", "capacity = \"10\": \"10\" is no size"),
            ("capacity = \"10GiB\"", "capacity = \"1KiB\"", "from 64MiB to 1EiB"),
            (
                "listen = \"0.0.0.0:7400\"",
                "listen = \"0.0.0.0:0\"",
                "quic.listen = \"0.0.0.0:0\": a port that stays",
            ),
            (
                "listen = \"0.0.0.0:7401\"",
                "listen = \"localhost:7401\"",
                "grpc.listen = \"localhost:7401\": an IP address",
            ),
            ("advertise = []", "advertise = [\"0.0.0.0:7\"]", "that others can reach"),
            ("connections_max = 128", "connections_max = 0", "from 1 to 65536"),
            ("put_buffers = \"64MiB\"", "put_buffers = \"1MiB\"", "memory.put_buffers"),
            ("format = \"text\"", "format = \"xml\"", "\"text\" or \"json\""),
            ("\nfilter = \"info\"", "\nfilter = \"info,=,\"", "log.filter"),
            ("zone = \"\"", "zone = \"a\\u0007\"", "no control characters"),
            ("suspect_after = \"10s\"", "suspect_after = \"10\"", "is no length of time"),
            (
                "suspect_after = \"10s\"",
                "suspect_after = \"1s\"",
                "longer than membership.ping_every",
            ),
            (
                "down_after = \"5min\"",
                "down_after = \"5s\"",
                "longer than membership.suspect_after",
            ),
            ("share_percent = 20", "share_percent = 0", "from 1 to 100"),
            ("parallel = 4", "parallel = 0", "from 1 to 64"),
            ("zone = \"\"", "zoen = \"\"", "unknown field `zoen`"),
            ("join = []", "join = [\"copse1t\"]", "join = \"copse1t\""),
            ("network = \"ab", "network = \"a", "network"),
        ] {
            assert!(good.contains(from), "{from}");
            let error = parse(&good.replacen(from, to, 1)).expect_err(to).to_string();
            assert!(error.contains(wanted), "{to}: {error}");
        }
    }

    /// Rewrites the example when it is stale and then fails, so that the second run passes.
    #[test]
    fn the_example_configuration_is_what_init_writes() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/node.example.toml");
        let mut example = Config::new(NetworkId::new([0; 32]), ByteSize(500 << 30));
        example.zone = "attic".to_owned();
        let wanted = example.render();
        let found = fs::read_to_string(&path).unwrap_or_default();
        if found != wanted {
            fs::create_dir_all(path.parent().expect("a folder")).expect("created");
            fs::write(&path, wanted).expect("written");
            panic!("{} was stale and has been written anew: commit it", path.display());
        }
    }
}
