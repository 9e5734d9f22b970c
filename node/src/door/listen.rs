//! Connections at the door: accepted, bounded in number, brought through TLS.
//!
//! Owns everything between a listening socket and HTTP/2. Refuses handshakes that take too long. One
//! idea: nothing a stranger does on one connection keeps others from being accepted.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use copse_proto::tls::READ_AHEAD_BYTES;
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// How long a TLS handshake may take: three round trips of a bad satellite line.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait after the system refused to accept, mostly for want of file descriptors: long
/// enough not to spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections ready for HTTP/2 and not yet taken up by the server.
const READY_MAX: usize = 16;

/// A byte stream to one client.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// Where connections come from: a TCP listener, or a simulated one.
#[async_trait]
pub trait Listener: Send + 'static {
    /// The next connection and where it comes from.
    ///
    /// # Errors
    /// When this one failed; the caller goes on after a pause.
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)>;
}

#[async_trait]
impl Listener for TcpListener {
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        let (stream, from) = Self::accept(self).await?;
        // Small answers must not wait for more to send.
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), from))
    }
}

/// A connection that passed TLS. Its place is free again when it is dropped.
pub(super) struct Connection {
    tls: TlsStream<BufReader<Box<dyn Stream>>>,
    from: SocketAddr,
    _place: OwnedSemaphorePermit,
}

/// Accepts until `stop`; the connections come out of the channel.
pub(super) fn accept(
    mut listener: Box<dyn Listener>,
    tls: TlsAcceptor,
    connections_max: usize,
    stop: CancellationToken,
) -> mpsc::Receiver<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(READY_MAX);
    let places = Arc::new(Semaphore::new(connections_max));
    tokio::spawn(async move {
        loop {
            let next = async {
                // Without a place nothing is accepted: clients wait in the kernel's queue.
                let place = Arc::clone(&places).acquire_owned().await.ok()?;
                Some((place, listener.accept().await))
            };
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = next => accepted,
            };
            match accepted {
                None => return,
                Some((place, Ok((stream, from)))) => {
                    tokio::spawn(handshake(tls.clone(), stream, from, place, ready.clone()));
                }
                Some((_, Err(error))) => {
                    tracing::warn!(%error, "a connection at the door was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    connections
}

async fn handshake(
    tls: TlsAcceptor,
    stream: Box<dyn Stream>,
    from: SocketAddr,
    place: OwnedSemaphorePermit,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(tls)) => {
            // Fails only when the server has stopped.
            let _ = ready.send(Ok(Connection { tls, from, _place: place })).await;
        }
        Ok(Err(error)) => tracing::debug!(%from, %error, "a TLS handshake at the door failed"),
        Err(_) => tracing::debug!(%from, "a TLS handshake at the door took too long"),
    }
}

impl Connected for Connection {
    type ConnectInfo = SocketAddr;

    fn connect_info(&self) -> SocketAddr {
        self.from
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
