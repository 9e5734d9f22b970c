//! UDP sockets on the simulated network, and the clock that QUIC goes by there.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Instant,
};

use quinn::{
    AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};

use super::net::Net;

/// Packets that wait to be read, at most: some 8 MiB, as the node asks of a real socket.
const INBOX_PACKETS_MAX: usize = 6000;

/// A datagram.
pub(super) struct Packet {
    pub(super) from: SocketAddr,
    pub(super) data: Vec<u8>,
    ecn: Option<EcnCodepoint>,
}

/// What arrived at a socket and was not read yet.
#[derive(Default)]
pub(super) struct Inbox(Mutex<(VecDeque<Packet>, Option<Waker>)>);

impl Inbox {
    pub(super) fn put(&self, packet: Packet) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.0.len() < INBOX_PACKETS_MAX {
            inner.0.push_back(packet);
        }
        if let Some(waker) = inner.1.take() {
            waker.wake();
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Packet> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.0.pop_front() {
            Some(packet) => Poll::Ready(packet),
            None => {
                inner.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// One socket.
pub(super) struct Socket {
    address: SocketAddr,
    net: Net,
    inbox: Arc<Inbox>,
}

impl Socket {
    /// Binds; who had the address before gets nothing any more.
    pub(super) fn bind(net: &Net, address: SocketAddr) -> Arc<Self> {
        let inbox = Arc::default();
        net.listen_udp(address, &inbox);
        Arc::new(Self { address, net: net.clone(), inbox })
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.address)
    }
}

/// There is always room to send.
#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let data = transmit.contents.to_vec();
        let packet = Packet { from: self.address, data, ecn: transmit.ecn };
        self.net.send(transmit.destination, packet);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buffer), Some(meta)) = (buffers.first_mut(), meta.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        self.inbox.poll(cx).map(|packet| {
            let bytes = packet.data.len().min(buffer.len());
            buffer[..bytes].copy_from_slice(&packet.data[..bytes]);
            *meta = RecvMeta {
                addr: packet.from,
                len: bytes,
                stride: bytes,
                ecn: packet.ecn,
                dst_ip: Some(self.address.ip()),
            };
            Ok(1)
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Tokio's clock and tasks, for QUIC.
#[derive(Debug)]
pub(super) struct PausedRuntime;

#[derive(Debug)]
struct Timer(Pin<Box<tokio::time::Sleep>>);

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        self.0.as_mut().reset(at.into());
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.0.as_mut(), cx)
    }
}

impl Runtime for PausedRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer(Box::pin(tokio::time::sleep_until(at.into()))))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "there are no real sockets here"))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
