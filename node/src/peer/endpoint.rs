//! The QUIC endpoint: one UDP socket, both dialling and accepting.
//!
//! Owns the socket's buffers and the transport's settings, each with its reason: quinn's defaults
//! are made for one well-behaved path, not for strangers' home lines. The socket and the runtime
//! can be injected, so that the same code runs over a simulated network.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, Runtime,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
    congestion::{BbrConfig, CubicConfig},
    crypto::{CryptoError, HmacKey},
};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use crate::tls::{NodeTls, TlsError};

/// Asked for the socket's buffer, each way, in bytes. What overflows it looks like loss on the
/// path. 8 MiB is 65 ms at a gigabit.
pub const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// Unread bytes of one stream, at most: the bandwidth-delay product of 53 ms at 1.2 Gbit/s. With
/// quinn's default that path ran at a quarter of its speed.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// Unread bytes of one connection that we dialled, at most: some answers at once. quinn's default has no
/// limit: a peer could fill our memory with what we have not yet read.
const RECEIVE_WINDOW_BYTES: u32 = 32 << 20;

/// Unread bytes of all connections that others dialled, at most while there are up to
/// [`CONNECTIONS_SHARING`] of them: they share it.
const RECEIVED_BYTES_MAX: usize = 256 << 20;

/// Unread bytes of one such connection, at least: 10 MB/s over a path of 50 ms. It bounds what strangers
/// can pin before anything of theirs is admitted, 512 MiB with 1,024 connections.
const RECEIVE_WINDOW_BYTES_MIN: usize = 512 << 10;

/// Connections that share [`RECEIVED_BYTES_MAX`]; beyond these each has the least.
const CONNECTIONS_SHARING: usize = RECEIVED_BYTES_MAX / RECEIVE_WINDOW_BYTES_MIN;

/// Unacknowledged bytes of one connection, at most.
const SEND_WINDOW_BYTES: u64 = 32 << 20;

/// Requests that a peer may have open on one connection. Only this many headers can wait.
const STREAMS_MAX: u32 = 256;

/// How far packets may arrive out of order before they count as lost. At quinn's default of 3 a path
/// that only reorders ran at 0.23 MiB/s, at 256 at 28.9 MiB/s, and ordered paths did not change.
const PACKET_THRESHOLD: u32 = 256;

/// Keeps the bindings of home routers, some of which forget after 30 seconds.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A connection that is silent for this long is gone: three keep-alives.
const IDLE_TIMEOUT_MS: u32 = 30_000;

/// Sent before the first acknowledgement, in bytes: 64 packets of the smallest MTU, most of one
/// piece of a small shard.
const INITIAL_WINDOW_BYTES: u64 = 64 * 1200;

/// Handshakes that wait to be accepted, at most. Each may buffer what came with it.
const INCOMING_MAX: usize = 256;

/// Bytes buffered for all waiting handshakes, at most.
const INCOMING_BYTES_MAX: u64 = 4 << 20;

/// Bytes of our connection ids.
const CONNECTION_ID_BYTES: usize = 8;

/// How the sending rate is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Congestion {
    /// Cubic (RFC 9438): shares a line fairly. Slow where packets are lost at random.
    #[default]
    Cubic,
    /// quinn's BBR, version 1: fast on lossy paths, but it lost 43 % of its own packets on a
    /// 40 Mbit/s home uplink.
    Bbr,
}

/// Where packets come from and go to.
#[derive(Debug)]
pub enum PeerSocket {
    /// A socket of the operating system, see [`bind`].
    Udp(UdpSocket),
    /// Anything else, with the timers that belong to it.
    Injected {
        /// The socket.
        socket: Arc<dyn AsyncUdpSocket>,
        /// Timers and tasks.
        runtime: Arc<dyn Runtime>,
    },
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The operating system refuses the address.
    #[error(
        "cannot listen on {address} (UDP): is another node running, or the address another host's?"
    )]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be used.
    #[error("the UDP socket cannot be used")]
    Socket(#[source] io::Error),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Opens a UDP socket with large buffers, if the system grants them ([`tell_of_small_buffers`]); an
/// unspecified IPv6 address takes IPv4 too.
///
/// # Errors
/// When the address cannot be had.
pub fn bind(address: SocketAddr) -> Result<UdpSocket, EndpointError> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    };
    let socket = open().map_err(|source| EndpointError::Bind { address, source })?;
    // A refusal shows when the size is read back, see `tell_of_small_buffers`.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    Ok(socket.into())
}

/// Says in the log when the system did not grant the buffers that were asked for, with the command that
/// makes it: for a node that starts, since it is no news of one that cannot.
///
/// # Errors
/// When the socket does not say.
pub fn tell_of_small_buffers(socket: &UdpSocket) -> Result<(), EndpointError> {
    let socket = socket2::SockRef::from(socket);
    let receive = granted(socket.recv_buffer_size().map_err(EndpointError::Socket)?);
    let send = granted(socket.send_buffer_size().map_err(EndpointError::Socket)?);
    if receive.min(send) < SOCKET_BUFFER_BYTES {
        warn!(
            receive_bytes = receive,
            send_bytes = send,
            wanted_bytes = SOCKET_BUFFER_BYTES,
            "socket buffers are smaller than asked, bursts will be lost: \
             sysctl -w net.core.rmem_max={SOCKET_BUFFER_BYTES} net.core.wmem_max={SOCKET_BUFFER_BYTES}",
        );
    }
    Ok(())
}

/// Linux reports twice what it grants, to account for its own overhead.
const fn granted(reported: usize) -> usize {
    if cfg!(target_os = "linux") { reported / 2 } else { reported }
}

/// An endpoint that dials and accepts as the node of `tls`. `seed` is fresh randomness for each
/// start: ports, packet numbers and connection ids come from it.
///
/// # Errors
/// When the socket or TLS cannot be used.
pub fn open(
    tls: &NodeTls,
    socket: PeerSocket,
    congestion: Congestion,
    seed: [u8; 32],
) -> Result<quinn::Endpoint, EndpointError> {
    let mut accepted = transport(congestion);
    accepted
        .receive_window(receive_window(CONNECTIONS_SHARING))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX));
    // Requests come on connections that the asker dialled: nobody reads streams opened on ours.
    let mut dialled = transport(congestion);
    dialled
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .max_concurrent_bidi_streams(VarInt::from_u32(0));

    let mut server = ServerConfig::with_crypto(Arc::new(tls.quic_server()?));
    server.transport_config(Arc::new(accepted));
    server.max_incoming(INCOMING_MAX).incoming_buffer_size_total(INCOMING_BYTES_MAX);

    let mut client = ClientConfig::new(Arc::new(tls.quic_client()?));
    client.transport_config(Arc::new(dialled));

    let mut config = EndpointConfig::new(Arc::new(ResetKey(tls.stateless_reset_key())));
    let ids = Arc::new(ConnectionIds { seed, next: AtomicU64::new(0) });
    config.cid_generator(move || Box::new(SharedConnectionIds(Arc::clone(&ids))));
    config.rng_seed(Some(seed));

    let mut endpoint = match socket {
        PeerSocket::Udp(socket) => {
            quinn::Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))
        }
        PeerSocket::Injected { socket, runtime } => {
            quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)
        }
    }
    .map_err(EndpointError::Socket)?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

/// What one of so many accepted connections may have unread, in bytes.
pub(super) fn receive_window(connections: usize) -> VarInt {
    let share = RECEIVED_BYTES_MAX / connections.max(1);
    let bytes = share.clamp(RECEIVE_WINDOW_BYTES_MIN, RECEIVE_WINDOW_BYTES as usize);
    VarInt::from_u32(u32::try_from(bytes).unwrap_or(RECEIVE_WINDOW_BYTES))
}

/// The settings that dialled and accepted connections share.
fn transport(congestion: Congestion) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .packet_threshold(PACKET_THRESHOLD)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        // No datagrams until there are relays.
        .datagram_receive_buffer_size(None);
    match congestion {
        Congestion::Cubic => {
            let mut cubic = CubicConfig::default();
            cubic.initial_window(INITIAL_WINDOW_BYTES);
            transport.congestion_controller_factory(Arc::new(cubic));
        }
        Congestion::Bbr => {
            let mut bbr = BbrConfig::default();
            bbr.initial_window(INITIAL_WINDOW_BYTES);
            transport.congestion_controller_factory(Arc::new(bbr));
        }
    }
    transport
}

/// Signs stateless resets. It comes from the node's own key, so a restarted node can tell its
/// peers at once that their connections are gone; otherwise they would wait for the idle timeout.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // `blake3::Hash` compares in constant time.
        let signature = <[u8; blake3::OUT_LEN]>::try_from(signature).map_err(|_| CryptoError)?;
        let right = blake3::keyed_hash(&self.0, data) == blake3::Hash::from_bytes(signature);
        right.then_some(()).ok_or(CryptoError)
    }
}

/// Makes connection ids that no one else can guess, the same ones for the same seed.
struct ConnectionIds {
    seed: [u8; 32],
    next: AtomicU64,
}

struct SharedConnectionIds(Arc<ConnectionIds>);

impl ConnectionIdGenerator for SharedConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let hash = blake3::keyed_hash(&self.0.seed, &number.to_le_bytes());
        ConnectionId::new(&hash.as_bytes()[..CONNECTION_ID_BYTES])
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_address_is_named_in_the_error() {
        let first = bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = first.local_addr().expect("an address");
        let error = bind(address).expect_err("the port is taken");
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[test]
    fn accepted_connections_share_what_may_be_unread() {
        let window = |connections| receive_window(connections).into_inner();
        assert_eq!(window(0), u64::from(RECEIVE_WINDOW_BYTES));
        for connections in [1, 8, 100, CONNECTIONS_SHARING] {
            assert!(window(connections) * connections as u64 <= RECEIVED_BYTES_MAX as u64);
        }
        assert_eq!(window(100_000), RECEIVE_WINDOW_BYTES_MIN as u64);
    }

    #[test]
    fn reset_tokens_are_checked() {
        let key = ResetKey([3; 32]);
        let mut signature = vec![0; key.signature_len()];
        key.sign(b"id", &mut signature);
        assert!(key.verify(b"id", &signature).is_ok());
        assert!(key.verify(b"other", &signature).is_err());
        assert!(key.verify(b"id", &signature[1..]).is_err());
    }
}
