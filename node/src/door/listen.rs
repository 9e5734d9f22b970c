//! Connections at the door: accepted, bounded in number, brought through TLS.
//!
//! Owns everything between a listening socket and HTTP/2. Refuses handshakes that take too long, and ends
//! connections whose client holds what others wait for. One idea: nothing a stranger does on one
//! connection keeps others from being served.

use std::{
    future::Future as _,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use copse_proto::tls::{READ_AHEAD_BYTES, WRITE_AHEAD_BYTES};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::TcpListener,
    sync::mpsc,
    time::{Instant, Sleep, sleep},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::clients::{Client, Clients, Place};

/// How long a TLS handshake may take: three round trips of a bad satellite line.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may say nothing after it: HTTP/2 begins with words of the client, and only then asks
/// by itself whether the client is still there.
const FIRST_WORDS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may be without a call. One that comes back connects anew, which costs it a round trip
/// or two; programs that stay, as the gateway does, call far more often while they are used.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);

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
    place: Place,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until the client's first words.
    silent: Option<Pin<Box<Sleep>>>,
    /// Until it is time to look whether there was a call lately.
    idle: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(tls: TlsStream<BufReader<Box<dyn Stream>>>, place: Place) -> Self {
        let cut = Box::pin(place.client().cut().clone().cancelled_owned());
        let silent = Some(Box::pin(sleep(FIRST_WORDS_TIMEOUT)));
        Self { tls, place, cut, silent, idle: Box::pin(sleep(IDLE_TIMEOUT)) }
    }

    /// Whether there has been no call for too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.idle.as_mut().poll(cx).is_ready() {
            let idle = self.place.client().idle().unwrap_or_default();
            if idle >= IDLE_TIMEOUT {
                return Poll::Ready(());
            }
            self.idle.as_mut().reset(Instant::now() + (IDLE_TIMEOUT - idle));
        }
        Poll::Pending
    }

    /// Fails when the client is cut off, whatever is waited for: one that takes no bytes keeps HTTP/2 from
    /// reading, too.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "cut off")),
            Poll::Pending => Ok(()),
        }
    }
}

/// Accepts until `stop`; the connections come out of the channel.
pub(super) fn accept(
    mut listener: Box<dyn Listener>,
    tls: TlsAcceptor,
    connections_max: usize,
    stop: CancellationToken,
) -> mpsc::Receiver<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(READY_MAX);
    let clients = Clients::new(connections_max);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => match clients.take(from) {
                    Some(place) => {
                        tokio::spawn(handshake(tls.clone(), stream, from, place, ready.clone()));
                    }
                    None => {
                        tracing::debug!(%from, "too many connections at the door, one is refused")
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "a connection at the door was not accepted");
                    sleep(ACCEPT_PAUSE).await;
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
    place: Place,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
    let accepted = tokio::select! {
        biased;
        () = place.client().cut().cancelled() => return,
        accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)) => accepted,
    };
    match accepted {
        Ok(Ok(mut tls)) => {
            tls.get_mut().1.set_buffer_limit(Some(WRITE_AHEAD_BYTES));
            // Fails only when the server has stopped.
            let _ = ready.send(Ok(Connection::new(tls, place))).await;
        }
        Ok(Err(error)) => tracing::debug!(%from, %error, "a TLS handshake at the door failed"),
        Err(_) => tracing::debug!(%from, "a TLS handshake at the door took too long"),
    }
}

impl Connected for Connection {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        self.place.client().clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.poll_cut(cx)?;
        if this.silent.as_mut().is_some_and(|silent| silent.as_mut().poll(cx).is_ready()) {
            let error = io::Error::new(io::ErrorKind::TimedOut, "not a word after the handshake");
            return Poll::Ready(Err(error));
        }
        if this.poll_idle(cx).is_ready() {
            // As if the client had ended it: HTTP/2 takes its leave.
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.tls).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.silent = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio_rustls::client;

    use super::*;
    use crate::{
        door::tests::{ADDRESS, Injected, handshake},
        tls::NodeTls,
    };

    /// Both ends of a connection through a door with room for one.
    async fn connected() -> (client::TlsStream<DuplexStream>, Connection, CancellationToken) {
        let tls = NodeTls::from_seed(&[1; 32]).expect("a key");
        let (dial, listener) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let acceptor = TlsAcceptor::from(Arc::new(tls.door_server().expect("a certificate")));
        let mut ready = accept(Box::new(Injected(listener)), acceptor, 1, stop.clone());
        let (near, far) = tokio::io::duplex(64 << 10);
        dial.send((far, ADDRESS)).await.expect("it accepts");
        let (client, accepted) = tokio::join!(handshake(&tls, near), ready.recv());
        let connection = accepted.expect("it accepts").expect("a handshake");
        (client.expect("a handshake"), connection, stop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_gives_its_place_to_others() {
        let (_client, mut connection, _stop) = connected().await;
        let error = connection.read_u8().await.expect_err("not for ever");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // After its first word it may be silent for long: HTTP/2 asks whether it is there.
        let (mut client, mut connection, _stop) = connected().await;
        client.write_all(b"x").await.expect("sent");
        client.flush().await.expect("sent");
        assert_eq!(connection.read_u8().await.expect("a word"), b'x');
        let silent = tokio::time::timeout(10 * FIRST_WORDS_TIMEOUT, connection.read_u8()).await;
        assert!(silent.is_err(), "{silent:?}");
        // A call that takes its time does not make it idle; after the call it is.
        let call = connection.connect_info().begin();
        let calling = tokio::time::timeout(10 * IDLE_TIMEOUT, connection.read_u8()).await;
        assert!(calling.is_err(), "{calling:?}");
        drop(call);
        let started = Instant::now();
        let error = connection.read_u8().await.expect_err("not for ever");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(started.elapsed(), IDLE_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_cut_off_is_no_longer_read_from() {
        let (mut client, mut connection, _stop) = connected().await;
        client.write_all(b"xy").await.expect("sent");
        client.flush().await.expect("sent");
        assert_eq!(connection.read_u8().await.expect("a word"), b'x');
        let cutter = connection.connect_info();
        let (read, ()) = tokio::join!(
            async { (connection.read_u8().await, connection.read_u8().await) },
            async {
                cutter.cut_off("a test");
            }
        );
        assert!(matches!(read, (_, Err(_))), "{read:?}");
        // Nor is anything written or waited for that it does not take.
        connection.write_all(b"z").await.expect_err("cut off");
        connection.flush().await.expect_err("cut off");
        connection.shutdown().await.expect_err("cut off");
    }
}
