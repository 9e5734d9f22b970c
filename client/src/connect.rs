//! How a connection to a node's door is made: TCP, and TLS that only the node's own key passes.
//!
//! Owns the edge to the operating system's sockets, behind [`Connector`], so that a simulator can
//! put its own network there. Knows no gRPC. The one idea: what comes out of a connector is already
//! known to be the node that was asked for.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use copse_core::ids::NodeId;
use copse_proto::tls::{DoorVerifier, READ_AHEAD_BYTES, WRITE_AHEAD_BYTES, provider, server_name};
use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader},
    net::TcpStream,
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};

use crate::lock::lock;

/// Flow-control window of one stream, in bytes: what one shard stream may have on its way.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// Flow-control window of one connection, in bytes: one window for all its streams, so that a node
/// cannot make the client hold more than this.
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// HTTP/2 frame, in bytes. The default of 16 KiB costs a third of the throughput on a fast link.
const FRAME_BYTES: u32 = 256 << 10;

/// A door that does not accept a connection within this time is taken to be unreachable.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often an idle or silent connection is asked for a sign of life, and how long that may take:
/// a host that vanished without a word is noticed after the sum.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A byte stream to a node.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Opens connections to doors.
pub trait Connector: Send + Sync + 'static {
    /// Opens a byte stream to the door at `address`. The implementation must have proof that the
    /// other end is `node` before it returns; HTTP/2 follows on the stream.
    fn connect(
        &self,
        node: NodeId,
        address: SocketAddr,
    ) -> BoxFuture<'static, io::Result<Box<dyn Io>>>;
}

/// TCP and TLS 1.3, pinned to the node's id: what production uses.
#[derive(Default)]
pub struct TlsConnector {
    // One configuration, with its verifier, for each node: a new one at each dial would silently
    // turn session resumption off.
    configs: Mutex<HashMap<NodeId, Arc<ClientConfig>>>,
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector").finish_non_exhaustive()
    }
}

impl TlsConnector {
    fn config(&self, node: NodeId) -> io::Result<Arc<ClientConfig>> {
        let mut configs = lock(&self.configs);
        if let Some(config) = configs.get(&node) {
            return Ok(Arc::clone(config));
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(DoorVerifier::new(node))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        let config = Arc::new(config);
        configs.insert(node, Arc::clone(&config));
        Ok(config)
    }

    /// Proves over a byte stream of any kind that the other end is `node`.
    pub fn over<S: Io>(
        &self,
        node: NodeId,
        stream: impl Future<Output = io::Result<S>> + Send + 'static,
    ) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        let config = self.config(node);
        Box::pin(async move {
            let name = ServerName::try_from(server_name(&node)).map_err(io::Error::other)?;
            let stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream.await?);
            let mut tls = tokio_rustls::TlsConnector::from(config?).connect(name, stream).await?;
            tls.get_mut().1.set_buffer_limit(Some(WRITE_AHEAD_BYTES));
            Ok(Box::new(tls) as Box<dyn Io>)
        })
    }
}

impl Connector for TlsConnector {
    fn connect(
        &self,
        node: NodeId,
        address: SocketAddr,
    ) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        self.over(node, async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            Ok(tcp)
        })
    }
}

/// A gRPC channel to one address of a node. Returns once the connection stands.
pub(crate) async fn open_channel(
    connector: Arc<dyn Connector>,
    node: NodeId,
    address: SocketAddr,
) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("http://{}", server_name(&node)))?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .connect_with_connector(Dial { connector, node, address })
        .await
}

/// A connector for one address, in the form that tonic calls, also to connect again.
struct Dial {
    connector: Arc<dyn Connector>,
    node: NodeId,
    address: SocketAddr,
}

impl tower::Service<Uri> for Dial {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connecting = self.connector.connect(self.node, self.address);
        Box::pin(async move {
            match timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(connected) => Ok(TokioIo::new(connected?)),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
                )),
            }
        })
    }
}
