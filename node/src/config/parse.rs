//! From the text of the file to a checked [`Config`].
//!
//! Owns every bound of a setting. Refuses with the setting's name, what it says and what it may say.

use std::{fs, io, net::SocketAddr, num::NonZeroU64, path::Path, str::FromStr, time::Duration};

use copse_core::{
    ids::NetworkId,
    limits::{ADDRESSES_MAX, ZONE_BYTES_MAX},
    liveness::Timeouts,
    repair::Policy,
    token::JoinToken,
    units::{ByteSize, Span},
};
use serde::Deserialize;

use super::{
    BUFFER_BYTES_MAX, BUFFER_BYTES_MIN, CAPACITY_BYTES_MAX, CAPACITY_BYTES_MIN, Config,
    ConfigError, FILE_BYTES_MAX, FILE_NAME, JOIN_TOKENS_MAX, Listen, LogFormat, zone_rule,
};
use crate::{
    peer::endpoint::Congestion,
    repair::{Rates, Settings},
};

/// The longest time that can be set: ten years. More is surely a typo.
const SPAN_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The file as it is written; each field is checked when it becomes a [`Config`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    network: String,
    #[serde(default)]
    join: Vec<String>,
    #[serde(default)]
    zone: String,
    capacity: String,
    #[serde(default)]
    quic: QuicSection,
    #[serde(default)]
    grpc: GrpcSection,
    #[serde(default)]
    store: StoreSection,
    #[serde(default)]
    memory: MemorySection,
    #[serde(default)]
    membership: MembershipSection,
    #[serde(default)]
    repair: RepairSection,
    #[serde(default)]
    metrics: MetricsSection,
    #[serde(default)]
    stop: StopSection,
    #[serde(default)]
    log: LogSection,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct QuicSection {
    listen: Option<String>,
    advertise: Vec<String>,
    congestion: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct GrpcSection {
    listen: Option<String>,
    advertise: Vec<String>,
    connections_max: Option<u32>,
    streams_max: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct StoreSection {
    reserve: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct MemorySection {
    put_buffers: Option<String>,
    get_buffers: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct MembershipSection {
    ping_every: Option<String>,
    suspect_after: Option<String>,
    down_after: Option<String>,
    dead_after: Option<String>,
    together: Option<String>,
    freeze_max: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RepairSection {
    round_every: Option<String>,
    patience: Option<String>,
    parallel: Option<u32>,
    uplink: Option<String>,
    share_percent: Option<u32>,
    scrub_period: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct MetricsSection {
    listen: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct StopSection {
    grace_seconds: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct LogSection {
    filter: Option<String>,
    format: Option<String>,
}

impl Config {
    /// Reads the configuration of the node in `dir`.
    ///
    /// # Errors
    /// When there is none, or it says something that cannot be done.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join(FILE_NAME);
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ConfigError::Missing(path.clone()),
            _ => ConfigError::Io { path: path.clone(), source },
        };
        let length = fs::metadata(&path).map_err(io)?.len();
        if length > FILE_BYTES_MAX {
            return Err(io(io::Error::other(format!("{length} bytes are no configuration"))));
        }
        Self::parse(&fs::read_to_string(&path).map_err(io)?, &path)
    }

    /// Checks the text of a configuration; `path` is for messages.
    ///
    /// # Errors
    /// When it is no TOML, or it says something that cannot be done.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let check = Check { path };
        let network: NetworkId = check.parsed("network", &file.network)?;
        let capacity: ByteSize = check.size(
            "capacity",
            Some(file.capacity),
            ByteSize(0),
            CAPACITY_BYTES_MIN,
            CAPACITY_BYTES_MAX,
        )?;
        let default = Self::new(network, capacity);
        check.count("join", file.join.len(), JOIN_TOKENS_MAX)?;
        let join = file
            .join
            .iter()
            .map(|token| check.parsed("join", token))
            .collect::<Result<Vec<JoinToken>, _>>()?;
        if let Some(other) = join.iter().find(|token| token.network != network) {
            return Err(check.wrong(
                "join",
                other.to_string(),
                format!("a token of this node's network, {network}"),
            ));
        }
        if file.zone.len() > ZONE_BYTES_MAX || file.zone.chars().any(char::is_control) {
            return Err(check.wrong("zone", format!("{:?}", file.zone), zone_rule()));
        }
        Ok(Self {
            network,
            join,
            zone: file.zone,
            capacity,
            quic: Listen {
                listen: check.listen("quic.listen", file.quic.listen, default.quic.listen)?,
                advertise: check.advertised("quic.advertise", &file.quic.advertise)?,
            },
            congestion: match file.quic.congestion.as_deref() {
                None => default.congestion,
                Some("cubic") => Congestion::Cubic,
                Some("bbr") => Congestion::Bbr,
                Some(other) => {
                    return Err(check.wrong(
                        "quic.congestion",
                        format!("{other:?}"),
                        "\"cubic\" or \"bbr\"".to_owned(),
                    ));
                }
            },
            grpc: Listen {
                listen: check.listen("grpc.listen", file.grpc.listen, default.grpc.listen)?,
                advertise: check.advertised("grpc.advertise", &file.grpc.advertise)?,
            },
            grpc_connections_max: check.within(
                "grpc.connections_max",
                file.grpc.connections_max.unwrap_or(default.grpc_connections_max),
                1..=65_536,
            )?,
            grpc_streams_max: check.within(
                "grpc.streams_max",
                file.grpc.streams_max.unwrap_or(default.grpc_streams_max),
                1..=65_536,
            )?,
            reserve: check.size(
                "store.reserve",
                file.store.reserve,
                default.reserve,
                0,
                CAPACITY_BYTES_MAX,
            )?,
            put_buffers: check.size(
                "memory.put_buffers",
                file.memory.put_buffers,
                default.put_buffers,
                BUFFER_BYTES_MIN,
                BUFFER_BYTES_MAX,
            )?,
            get_buffers: check.size(
                "memory.get_buffers",
                file.memory.get_buffers,
                default.get_buffers,
                BUFFER_BYTES_MIN,
                BUFFER_BYTES_MAX,
            )?,
            stop_grace: match file.stop.grace_seconds {
                Some(seconds) => Duration::from_secs(
                    check.within("stop.grace_seconds", seconds, 0..=3600)?.into(),
                ),
                None => default.stop_grace,
            },
            membership: check.membership(file.membership, default.membership)?,
            repair: check.repair(file.repair, default.repair)?,
            metrics: match file.metrics.listen.as_deref() {
                None | Some("") => None,
                Some(_) => {
                    let unset = SocketAddr::from(([0, 0, 0, 0], 0));
                    Some(check.listen("metrics.listen", file.metrics.listen, unset)?)
                }
            },
            log_filter: match file.log.filter {
                Some(filter) => check.filter("log.filter", filter)?,
                None => default.log_filter,
            },
            log_format: match file.log.format.as_deref() {
                None => default.log_format,
                Some("text") => LogFormat::Text,
                Some("json") => LogFormat::Json,
                Some(other) => {
                    return Err(check.wrong(
                        "log.format",
                        format!("{other:?}"),
                        "\"text\" or \"json\"".to_owned(),
                    ));
                }
            },
        })
    }
}

/// Makes values of texts, and errors that name the setting.
struct Check<'a> {
    path: &'a Path,
}

impl Check<'_> {
    fn wrong(&self, key: &'static str, got: String, expected: String) -> ConfigError {
        ConfigError::Value { path: self.path.to_owned(), key, got, expected }
    }

    fn parsed<T: FromStr<Err: ToString>>(
        &self,
        key: &'static str,
        text: &str,
    ) -> Result<T, ConfigError> {
        text.parse()
            .map_err(|error: T::Err| self.wrong(key, format!("{text:?}"), error.to_string()))
    }

    fn size(
        &self,
        key: &'static str,
        text: Option<String>,
        default: ByteSize,
        min: u64,
        max: u64,
    ) -> Result<ByteSize, ConfigError> {
        let Some(text) = text else { return Ok(default) };
        let size: ByteSize = self.parsed(key, &text)?;
        if size.0 < min || size.0 > max {
            let expected = format!("from {} to {}", ByteSize(min), ByteSize(max));
            return Err(self.wrong(key, format!("{text:?}"), expected));
        }
        Ok(size)
    }

    fn span(
        &self,
        key: &'static str,
        text: Option<String>,
        default: Duration,
    ) -> Result<Duration, ConfigError> {
        let Some(text) = text else { return Ok(default) };
        let Span(span) = self.parsed(key, &text)?;
        if span.is_zero() || span > SPAN_MAX {
            let expected = format!("more than nothing, at most {}", Span(SPAN_MAX));
            return Err(self.wrong(key, format!("{text:?}"), expected));
        }
        Ok(span)
    }

    /// Each stage of silence comes after the one before.
    fn membership(
        &self,
        section: MembershipSection,
        default: Timeouts,
    ) -> Result<Timeouts, ConfigError> {
        let span = |key, text, default| self.span(key, text, default);
        let times = Timeouts {
            ping_every: span("membership.ping_every", section.ping_every, default.ping_every)?,
            suspect_after: span(
                "membership.suspect_after",
                section.suspect_after,
                default.suspect_after,
            )?,
            down_after: span("membership.down_after", section.down_after, default.down_after)?,
            dead_after: span("membership.dead_after", section.dead_after, default.dead_after)?,
            together: span("membership.together", section.together, default.together)?,
            freeze_max: span("membership.freeze_max", section.freeze_max, default.freeze_max)?,
        };
        let later = |key, (before, first): (&str, Duration), second: Duration| {
            if second > first {
                return Ok(());
            }
            let expected = format!("longer than {before}, {}", Span(first));
            Err(self.wrong(key, Span(second).to_string(), expected))
        };
        let ping = ("membership.ping_every", times.ping_every);
        later("membership.suspect_after", ping, times.suspect_after)?;
        let suspect = ("membership.suspect_after", times.suspect_after);
        later("membership.down_after", suspect, times.down_after)?;
        let down = ("membership.down_after", times.down_after);
        later("membership.dead_after", down, times.dead_after)?;
        Ok(times)
    }

    fn repair(&self, section: RepairSection, default: Settings) -> Result<Settings, ConfigError> {
        let default_parallel = u32::try_from(default.parallel).unwrap_or(u32::MAX);
        let parallel = section.parallel.unwrap_or(default_parallel);
        let share = section.share_percent.unwrap_or(default.rates.share_percent.into());
        let uplink = self.size(
            "repair.uplink",
            section.uplink,
            ByteSize(default.rates.uplink.map_or(0, NonZeroU64::get)),
            0,
            CAPACITY_BYTES_MAX,
        )?;
        let patience = default.policy.patience;
        Ok(Settings {
            policy: Policy {
                patience: self.span("repair.patience", section.patience, patience)?,
                ..default.policy
            },
            round_every: self.span(
                "repair.round_every",
                section.round_every,
                default.round_every,
            )?,
            parallel: self.within("repair.parallel", parallel, 1..=64)? as usize,
            rates: Rates {
                uplink: NonZeroU64::new(uplink.0),
                share_percent: u8::try_from(self.within("repair.share_percent", share, 1..=100)?)
                    .unwrap_or(100),
            },
            scrub_period: self.span(
                "repair.scrub_period",
                section.scrub_period,
                default.scrub_period,
            )?,
            // Not in the file: an hour is what a loose cable is allowed.
            lost_after: default.lost_after,
        })
    }

    fn within(
        &self,
        key: &'static str,
        got: u32,
        bounds: std::ops::RangeInclusive<u32>,
    ) -> Result<u32, ConfigError> {
        if bounds.contains(&got) {
            return Ok(got);
        }
        let expected = format!("from {} to {}", bounds.start(), bounds.end());
        Err(self.wrong(key, got.to_string(), expected))
    }

    fn count(&self, key: &'static str, got: usize, max: usize) -> Result<(), ConfigError> {
        if got <= max {
            return Ok(());
        }
        Err(self.wrong(key, format!("[... {got} entries]"), format!("at most {max} entries")))
    }

    fn listen(
        &self,
        key: &'static str,
        text: Option<String>,
        default: SocketAddr,
    ) -> Result<SocketAddr, ConfigError> {
        let Some(text) = text else { return Ok(default) };
        let address: SocketAddr = self.address(key, &text)?;
        if address.port() == 0 {
            let expected = "a port that stays the same: others remember it".to_owned();
            return Err(self.wrong(key, format!("{text:?}"), expected));
        }
        Ok(address)
    }

    fn advertised(
        &self,
        key: &'static str,
        texts: &[String],
    ) -> Result<Vec<SocketAddr>, ConfigError> {
        self.count(key, texts.len(), ADDRESSES_MAX)?;
        let reachable = |text: &String| {
            let address: SocketAddr = self.address(key, text)?;
            if address.ip().is_unspecified() || address.port() == 0 {
                let expected = "an address that others can reach".to_owned();
                return Err(self.wrong(key, format!("{text:?}"), expected));
            }
            Ok(address)
        };
        texts.iter().map(reachable).collect()
    }

    fn address(&self, key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
        text.parse().map_err(|_| {
            let expected =
                "an IP address and a port, for example 192.0.2.7:7400 or [2001:db8::7]:7400";
            self.wrong(key, format!("{text:?}"), expected.to_owned())
        })
    }

    fn filter(&self, key: &'static str, text: String) -> Result<String, ConfigError> {
        match tracing_subscriber::EnvFilter::try_new(&text) {
            Ok(_) => Ok(text),
            Err(error) => Err(self.wrong(key, format!("{text:?}"), error.to_string())),
        }
    }
}
