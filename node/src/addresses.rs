//! Which addresses a node tells others, and which free ports it takes.
//!
//! Refuses to tell an address nobody can reach, such as 0.0.0.0. One idea: which address this machine
//! uses towards the internet is asked of the routing table; no packet is sent.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
};

use crate::config::Listen;

/// Where the kernel would route to the internet: documentation addresses (RFC 5737, RFC 3849), so that
/// nobody is meant even if a packet were sent.
const ELSEWHERE_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
const ELSEWHERE_V6: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9);

/// Ports that are tried when one must be found: below those the kernel gives to outgoing
/// connections (32768 and up on Linux), so that it is still free when the node starts.
const FREE_PORTS: std::ops::Range<u16> = 10_240..32_768;

/// How many random ports are tried before the kernel is asked for any.
const FREE_PORT_TRIES: usize = 64;

/// The addresses that others are told: those configured, or else found out. Without any route: at least the
/// programs of this machine find the node.
pub fn advertised(listen: &Listen) -> Vec<SocketAddr> {
    let here = || vec![SocketAddr::from((Ipv4Addr::LOCALHOST, listen.listen.port()))];
    found(listen).unwrap_or_else(here)
}

/// The addresses that others are told; none while this machine has no route to anywhere.
pub fn found(listen: &Listen) -> Option<Vec<SocketAddr>> {
    if !listen.advertise.is_empty() {
        return Some(listen.advertise.clone());
    }
    let port = listen.listen.port();
    let ips = match listen.listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![outgoing(ELSEWHERE_V4)],
        IpAddr::V6(ip) if ip.is_unspecified() => {
            vec![outgoing(ELSEWHERE_V4), outgoing(ELSEWHERE_V6)]
        }
        ip => vec![Some(ip)],
    };
    let found: Vec<SocketAddr> =
        ips.into_iter().flatten().map(|ip| SocketAddr::new(ip, port)).collect();
    (!found.is_empty()).then_some(found)
}

/// Where a program of the same machine reaches what listens on `listen`.
pub fn local(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, listen.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, listen.port()).into(),
        ip => (ip, listen.port()).into(),
    }
}

/// The local address that a packet to `destination` would bear.
fn outgoing(destination: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(destination).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

/// Which kind of port is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// QUIC.
    Udp,
    /// gRPC.
    Tcp,
}

/// `address` with a port that nobody has now, if its port is 0. `random` gives 16 random bits.
///
/// # Errors
/// When the address is not this machine's.
pub fn with_free_port(
    address: SocketAddr,
    transport: Transport,
    mut random: impl FnMut() -> io::Result<u16>,
) -> io::Result<SocketAddr> {
    if address.port() != 0 {
        return Ok(address);
    }
    let bind = |port| {
        let address = SocketAddr::new(address.ip(), port);
        match transport {
            Transport::Udp => UdpSocket::bind(address)?.local_addr(),
            Transport::Tcp => TcpListener::bind(address)?.local_addr(),
        }
    };
    for _ in 0..FREE_PORT_TRIES {
        let port = FREE_PORTS.start + random()? % (FREE_PORTS.end - FREE_PORTS.start);
        match bind(port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            done => return done,
        }
    }
    bind(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(address: &str) -> Listen {
        Listen { listen: address.parse().expect("an address"), advertise: Vec::new() }
    }

    #[test]
    fn an_address_nobody_can_reach_is_never_told() {
        for any in ["0.0.0.0:7400", "[::]:7400"] {
            let told = advertised(&listen(any));
            assert!(!told.is_empty());
            assert!(told.iter().all(|address| !address.ip().is_unspecified()), "{told:?}");
            assert!(told.iter().all(|address| address.port() == 7400), "{told:?}");
        }
        let one = listen("127.0.0.1:5");
        assert_eq!(advertised(&one), [one.listen]);
        let told = vec!["192.0.2.7:9".parse().expect("an address")];
        assert_eq!(advertised(&Listen { advertise: told.clone(), ..one }), told);
    }

    #[test]
    fn a_free_port_is_one_that_can_be_bound() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        assert_eq!(with_free_port(taken, Transport::Tcp, || Ok(0)).expect("kept"), taken);
        let mut next = 0;
        let random = || {
            next += 1;
            Ok(next)
        };
        let any = "127.0.0.1:0".parse().expect("an address");
        let found = with_free_port(any, Transport::Udp, random).expect("a port");
        assert_ne!(found.port(), 0);
        UdpSocket::bind(found).expect("it is free");
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let elsewhere = "192.0.2.1:0".parse().expect("an address");
        assert!(with_free_port(elsewhere, Transport::Udp, || Ok(0)).is_err());
    }
}
