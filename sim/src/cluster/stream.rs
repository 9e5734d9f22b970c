//! Byte streams on the simulated network, as TCP gives them: in order, whole, or closed.
//!
//! Owns the carrying of bytes between two ends. While a link is cut its bytes wait, as they would be
//! sent again and again; TLS runs on top, the product's own.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use copse_client::connect::{Connector, Io, TlsConnector};
use copse_core::ids::NodeId;
use copse_node::door::{Listener, Stream};
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, split},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::{
    killat::Deed,
    net::{Machine, Net, machine},
};

/// Bytes on their way in each direction, at most: a usual window.
const WINDOW_BYTES: usize = 256 << 10;

/// Bytes that are carried at once, at most.
const CARRIED_BYTES: usize = 64 << 10;

/// Connections that wait to be accepted.
const BACKLOG: usize = 64;

/// How often a cut link is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// A connection for who accepts.
pub(super) struct Dialled {
    stream: DuplexStream,
    from: SocketAddr,
}

/// A listening socket.
pub(super) struct Door(mpsc::Receiver<Dialled>);

impl Door {
    pub(super) fn listen(net: &Net, address: SocketAddr) -> Self {
        let (send, receive) = mpsc::channel(BACKLOG);
        net.listen(address, send);
        Self(receive)
    }
}

#[async_trait]
impl Listener for Door {
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        match self.0.recv().await {
            Some(dialled) => Ok((Box::new(dialled.stream), dialled.from)),
            // The machine is off: nobody will ever come.
            None => std::future::pending().await,
        }
    }
}

/// A client's way to doors, as long as its process lives.
pub(super) struct Dialler {
    net: Net,
    from: SocketAddr,
    tls: TlsConnector,
    died: CancellationToken,
}

impl Dialler {
    pub(super) fn new(net: &Net, from: SocketAddr, died: CancellationToken) -> Arc<Self> {
        Arc::new(Self { net: net.clone(), from, tls: TlsConnector::default(), died })
    }
}

impl Connector for Dialler {
    fn connect(
        &self,
        node: NodeId,
        address: SocketAddr,
    ) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        let (net, from, died) = (self.net.clone(), self.from, self.died.clone());
        self.tls.over(node, async move {
            tokio::select! {
                biased;
                () = died.cancelled() => {}
                dialled = dial(net, from, address, &died) => return dialled,
            }
            // What is left of a dead process asks for nothing too often.
            tokio::time::sleep(TRY_AGAIN).await;
            Err(io::Error::other("the process is dead"))
        })
    }
}

async fn dial(
    net: Net,
    from: SocketAddr,
    to: SocketAddr,
    died: &CancellationToken,
) -> io::Result<DuplexStream> {
    let (own, other) = (machine(from), machine(to));
    // The handshake: there and back.
    for (source, target) in [(own, other), (other, own)] {
        arrive(&net, source, target, 40).await;
    }
    let acceptor = net.acceptor(to)?;
    let closed = died.child_token();
    net.opened(own, other, &closed);
    let (near, near_end) = tokio::io::duplex(WINDOW_BYTES);
    let (far_end, far) = tokio::io::duplex(WINDOW_BYTES);
    let refused = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
    acceptor.try_send(Dialled { stream: far, from }).map_err(refused)?;
    let ((near_read, near_write), (far_read, far_write)) = (split(near_end), split(far_end));
    let link = |from, to| Link { net: net.clone(), from, to, closed: closed.clone() };
    tokio::spawn(link(own, other).carry(near_read, far_write));
    tokio::spawn(link(other, own).carry(far_read, near_write));
    Ok(near)
}

/// Waits until bytes sent now have arrived; while the link is cut, for longer.
async fn arrive(net: &Net, from: Machine, to: Machine, bytes: usize) {
    loop {
        match net.arrival(from, to, bytes) {
            Some(at) => {
                tokio::time::sleep_until(at).await;
                if net.is_open(from, to) {
                    return;
                }
            }
            None => tokio::time::sleep(TRY_AGAIN).await,
        }
    }
}

/// One direction of a stream.
struct Link {
    net: Net,
    from: Machine,
    to: Machine,
    closed: CancellationToken,
}

impl Link {
    async fn carry(self, mut read: ReadHalf<DuplexStream>, mut write: WriteHalf<DuplexStream>) {
        let closed = self.closed.clone();
        tokio::select! {
            biased;
            () = closed.cancelled() => {}
            // Either end went away: so does the other.
            _ = self.carry_on(&mut read, &mut write) => {}
        }
        // Half-closed is closed enough for HTTP/2, once what was sent has arrived.
        drop(write.shutdown().await);
    }

    async fn carry_on(
        &self,
        read: &mut ReadHalf<DuplexStream>,
        write: &mut WriteHalf<DuplexStream>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; CARRIED_BYTES];
        loop {
            let bytes = read.read(&mut buffer).await?;
            if bytes == 0 {
                return Ok(());
            }
            self.net.trace().bytes("stream", self.from, self.to, bytes);
            self.net.deed(self.from, Deed::Say, false);
            arrive(&self.net, self.from, self.to, bytes).await;
            self.net.deed(self.to, Deed::Hear, false);
            write.write_all(&buffer[..bytes]).await?;
            self.net.deed(self.from, Deed::Say, true);
            self.net.deed(self.to, Deed::Hear, true);
        }
    }
}
