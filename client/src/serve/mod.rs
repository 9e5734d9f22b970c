//! The gateway: a tree of files for other programs, over gRPC (package `copse.files.v1`).
//!
//! Owns the server and its limits. It holds the keys: what passes here is plaintext, so it refuses to
//! listen for other machines without a token. One idea: any language that has gRPC can read and put
//! files with the `.proto` file alone; the gateway does what needs the network's own protocol.
//!
//! ```text
//! listen (TCP, unix socket) ─▶ token ─▶ routes ─▶ files: stat, list (walk), read (content), put
//!                                          └────▶ health, reflection v1 and v1alpha
//! ```
//! | module | owns |
//! |---|---|
//! | `listen` | addresses, the socket's permissions |
//! | `places` | the number of connections, and which one makes room for another |
//! | `token` | who may call |
//! | `health` | health and reflection |
//! | `files` | the service: its messages and how many calls run at once |
//! | `outlet` | answers on their way to a caller, and how long they wait for it |
//! | `walk` | listing with prefix and depth |
//! | `put` | what callers store |
//! | `failure` | errors to gRPC codes and details |

mod failure;
mod files;
mod health;
mod listen;
mod outlet;
mod places;
mod put;
mod token;
mod walk;

use std::{io, time::Duration};

use copse_core::{
    geometry::Geometry,
    seal::ConvergenceSecret,
    tree::{Entry, Name},
};
use copse_proto::{files::files_server::FilesServer, routes::Routes};
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::ServingStatus;

use self::{files::Files, put::Puts, token::Guarded};
pub use self::{
    listen::{Address, ListenError, Listener},
    token::{TOKEN_CHARS_MIN, Token, TokenError},
};
use crate::{error::ReadError, tree_read::TreeReader};

/// Bytes of one message, at most, either way: a piece of a file is half of it.
const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// What a caller may send ahead on one call, in bytes: a path of 100 ms at 1.3 Gbit/s.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// What a caller may send ahead on one connection, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// Bytes of an HTTP/2 frame, at most: at the default of 16 KiB a piece of a file is 64 frames.
const FRAME_BYTES: u32 = 256 << 10;

/// Calls at once on one connection.
const STREAMS_MAX: u32 = 256;

/// How often a silent caller is asked whether it is there, and how long the answer may take.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Bytes of a call's headers, at most. A token may have 4 KiB.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// How long running calls, and shards on their way, have after the stop was asked for.
const GRACE: Duration = Duration::from_secs(10);

const _: () = {
    assert!(files::PIECE_BYTES_MAX < MESSAGE_BYTES_MAX);
    assert!(MESSAGE_BYTES_MAX < STREAM_WINDOW_BYTES as usize);
    assert!(STREAM_WINDOW_BYTES < CONNECTION_WINDOW_BYTES);
};

/// Why a gateway ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors compiled in cannot be served.
    #[error("gRPC reflection cannot be set up: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server failed.
    #[error("the gateway failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// How a gateway stores what callers put.
#[derive(Debug, Clone, Copy, Default)]
pub struct GatewayOptions {
    /// The code of full chunks; none: what the network's size advises at the time of each call.
    pub geometry: Option<Geometry>,
    /// Plaintext of a chunk of a file, at most, in bytes, as in
    /// [`transfer::PutOptions`](crate::transfer::PutOptions::chunk_bytes_max).
    pub chunk_bytes_max: Option<usize>,
}

/// A tree that can be served.
pub struct Gateway {
    files: Files,
    entry: Entry,
}

impl Gateway {
    /// The tree, or the part of it at `base`. Looks it up: what cannot be read is told now. What
    /// callers put is stored under `secret`.
    ///
    /// # Errors
    /// When there is nothing at `base`, or it cannot be read.
    pub async fn open(
        tree: TreeReader,
        base: Vec<Name>,
        secret: ConvergenceSecret,
        options: GatewayOptions,
    ) -> Result<Self, ReadError> {
        let entry = tree.lookup(base.clone()).await?;
        let puts = Puts::new(tree.downloader().network().clone(), secret, options);
        Ok(Self { files: Files::new(tree, base, puts), entry })
    }

    /// What is served.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Serves until `stop`; then running calls have ten seconds to end.
    ///
    /// # Errors
    /// When the server cannot start or fails.
    pub async fn serve(
        self,
        listener: Listener,
        token: Option<Token>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        self.serve_callers(listener.callers(), token, stop).await
    }

    /// The same for callers that come in any other way, each with a byte stream of its own. When no more come,
    /// it goes on with those that are there. Without a token whoever has a stream may call.
    ///
    /// # Errors
    /// When the server cannot start or fails.
    pub async fn serve_callers<S, I>(
        self,
        callers: S,
        token: Option<Token>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), ServeError>
    where
        S: Stream<Item = io::Result<I>> + Send,
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let service = FilesServer::new(self.files.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (routes, reporter) = health::add(Routes::new().with(service)).await?;
        let stopping = CancellationToken::new();
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            .serve_with_incoming_shutdown(
                Guarded::new(routes, token),
                listen::connections(callers),
                stopping.cancelled(),
            );
        tokio::pin!(server, stop);
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            () = &mut stop => {}
        }
        health::set(&reporter, ServingStatus::NotServing).await;
        stopping.cancel();
        let ending = async {
            let ended = server.await;
            self.files.puts().running().ended().await;
            ended
        };
        match tokio::time::timeout(GRACE, ending).await {
            Ok(ended) => Ok(ended?),
            Err(_) => {
                tracing::warn!(seconds = GRACE.as_secs(), "calls did not end in time: cut off");
                Ok(())
            }
        }
    }
}
