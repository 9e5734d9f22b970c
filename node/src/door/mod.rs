//! The door: gRPC for clients, over TLS that shows the node's own key.
//!
//! Owns the server and its limits: connections, calls, message sizes, windows. Refuses to decide
//! anything about shards or nodes; the services in the modules below ask others.
//!
//! | module | owns |
//! |---|---|
//! | `listen` | accepting, TLS |
//! | `clients` | who has a place |
//! | `counted` | which connection is in the middle of a call |
//! | `shards` | put streams, ranged gets, has |
//! | `assemble` | shards out of messages |
//! | `directory` | the list of nodes |
//! | `info` | this node |

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use copse_proto::{
    FILE_DESCRIPTOR_SET,
    bulk::{MESSAGE_BYTES_MAX, PLAIN_BYTES_MAX},
    door::{
        directory_server::{self, DirectoryServer},
        node_server::{self, NodeServer},
        shards_server,
    },
    routes::Routes,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::{ServingStatus, server::HealthReporter};
use tonic_reflection::pb as reflection;

use crate::{shards::ShardService, spares::Spares};

mod assemble;
mod clients;
mod counted;
mod directory;
mod info;
mod listen;
mod shards;
#[cfg(test)]
mod tests;

pub use directory::Records;
pub use info::About;
pub use listen::{Listener, Stream};

/// What all clients together may send ahead, in bytes: received, and not read here yet. It bounds what
/// strangers can pin, and what clients do pin who put faster than the disk takes it.
const AHEAD_BYTES_MAX: u32 = 1 << 30;

/// What one client may send ahead, in bytes: its share of [`AHEAD_BYTES_MAX`] if as many come as may, but no
/// more than 70 MiB/s over a path of 100 ms take on one call, and no less than 10 MiB/s take over such a
/// path.
const CONNECTION_WINDOW_BYTES: RangeInclusive<u32> = 1 << 20..=8 << 20;

/// Bytes of an HTTP/2 frame, at most: at the default of 16 KiB a shard is 50 frames.
const FRAME_BYTES: u32 = 256 << 10;

/// Bytes of a question that is about no shard, at most: it is empty or holds a name. What has begun of it
/// is kept until it is complete.
const QUESTION_BYTES_MAX: usize = 4 << 10;

/// How often a silent client is asked whether it is there, and how long the answer may take: a client
/// that vanished gives its memory back within 40 s.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Bytes of a call's headers, at most: ours have a few hundred.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// The services whose health is told; the empty name stands for all of them.
const SERVED: [&str; 4] =
    ["", shards_server::SERVICE_NAME, directory_server::SERVICE_NAME, node_server::SERVICE_NAME];

/// What is served beside them.
const STANDARD: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// How long connections without calls may take to close when the node stops: a client that lives
/// answers in a round trip, and one that does not must not hold up the stop.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

const _: () = {
    assert!(assemble::PIECE_BYTES_MAX < MESSAGE_BYTES_MAX);
    assert!(QUESTION_BYTES_MAX < PLAIN_BYTES_MAX && PLAIN_BYTES_MAX < MESSAGE_BYTES_MAX);
};

/// How far a client may send ahead, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Windows {
    connection: u32,
    /// Of one call: less, so that a Put stream that waits leaves room for the questions beside it.
    stream: u32,
}

impl Windows {
    fn of(connections_max: u32) -> Self {
        let share = AHEAD_BYTES_MAX / connections_max.max(1);
        let (least, most) = CONNECTION_WINDOW_BYTES.into_inner();
        let connection = share.clamp(least, most);
        Self { connection, stream: connection - connection / 8 }
    }
}

/// What a door is made of.
pub struct Parts {
    /// Where connections come from.
    pub listener: Box<dyn Listener>,
    /// The node's key in TLS.
    pub tls: rustls::ServerConfig,
    /// Connections at one time.
    pub connections_max: u32,
    /// Calls at one time on one connection.
    pub streams_max: u32,
    /// Put, get, has.
    pub shards: ShardService,
    /// The list of nodes.
    pub records: Arc<dyn Records>,
    /// This node.
    pub about: Arc<dyn About>,
    /// Ends it all.
    pub stop: CancellationToken,
}

/// Why a door does not open.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The descriptors compiled in cannot be served.
    #[error("gRPC reflection cannot be set up: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// An open door.
pub struct Door {
    served: JoinHandle<Result<(), tonic::transport::Error>>,
    health: HealthReporter,
    calls: Calls,
}

/// Counts the calls that move shards, so that a stop waits for them and not for idle clients.
#[derive(Clone, Default)]
struct Calls(watch::Sender<usize>);

/// One of them, until it is dropped.
struct Call(Calls);

impl Calls {
    fn begin(&self) -> Call {
        self.0.send_modify(|running| *running += 1);
        Call(self.clone())
    }

    async fn none(&self) {
        // Fails only without a sender, which this is.
        let _ = self.0.subscribe().wait_for(|running| *running == 0).await;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.0.send_modify(|running| *running -= 1);
    }
}

impl Door {
    /// Opens the door; it closes when `stop` is cancelled.
    ///
    /// # Errors
    /// See [`DoorError`].
    pub async fn open(parts: Parts) -> Result<Self, DoorError> {
        let Parts { listener, tls, connections_max, streams_max, stop, .. } = parts;
        let calls = Calls::default();
        let shards = shards::Shards {
            service: parts.shards,
            stop: stop.clone(),
            calls: calls.clone(),
            spares: Spares::default(),
        };
        let directory = DirectoryServer::new(directory::Directory { records: parts.records })
            .max_decoding_message_size(QUESTION_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let node = NodeServer::new(info::Info { about: parts.about })
            .max_decoding_message_size(QUESTION_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);

        let (health, health_server) = tonic_health::server::health_reporter();
        let health_server = health_server.max_decoding_message_size(QUESTION_BYTES_MAX);
        for name in SERVED {
            health.set_service_status(name, ServingStatus::Serving).await;
        }
        // Named, since the descriptors hold services that others offer.
        let describe = || {
            SERVED
                .into_iter()
                .filter(|name| !name.is_empty())
                .chain(STANDARD)
                .fold(tonic_reflection::server::Builder::configure(), |builder, name| {
                    builder.with_service_name(name)
                })
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(reflection::v1::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(reflection::v1alpha::FILE_DESCRIPTOR_SET)
        };
        let (reflection_v1, reflection_v1alpha) = (
            describe().build_v1()?.max_decoding_message_size(QUESTION_BYTES_MAX),
            describe().build_v1alpha()?.max_decoding_message_size(QUESTION_BYTES_MAX),
        );

        let connections = listen::accept(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            usize::try_from(connections_max).unwrap_or(usize::MAX),
            stop.clone(),
        );
        let windows = Windows::of(connections_max);
        let server = Server::builder()
            .initial_stream_window_size(windows.stream)
            .initial_connection_window_size(windows.connection)
            .max_frame_size(FRAME_BYTES)
            .max_concurrent_streams(streams_max)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .http2_max_header_list_size(HEADER_BYTES_MAX);
        let routes = Routes::new()
            .with(shards)
            .with(directory)
            .with(node)
            .with(health_server)
            .with(reflection_v1)
            .with(reflection_v1alpha);
        let served = tokio::spawn(async move {
            let connections = ReceiverStream::new(connections);
            server
                .serve_with_incoming_shutdown(
                    counted::Counted(routes),
                    connections,
                    stop.cancelled(),
                )
                .await
        });
        Ok(Self { served, health, calls })
    }

    /// Says in the health service that no more should be asked here.
    pub async fn announce_stop(&self) {
        for name in SERVED {
            self.health.set_service_status(name, ServingStatus::NotServing).await;
        }
    }

    /// Waits for running calls to end, `grace` at most; `stop` must have been cancelled.
    pub async fn closed(self, grace: Duration) {
        let Self { mut served, calls, .. } = self;
        let ended = tokio::select! {
            ended = &mut served => Some(ended),
            ended = tokio::time::timeout(grace, calls.none()) => {
                if ended.is_err() {
                    tracing::warn!(seconds = grace.as_secs(), "calls did not end in time: cut off");
                }
                tokio::time::timeout(LINGER, &mut served).await.ok()
            }
        };
        match ended {
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => tracing::warn!(%error, "the door failed"),
            Some(Err(error)) => tracing::error!(%error, "the door's task failed"),
            None => served.abort(),
        }
    }
}
