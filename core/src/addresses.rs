//! Socket addresses inside byte formats.
//!
//! Owns their one encoding: a kind (4 or 6), the address, the port. An IPv6 scope or flow label
//! means nothing on another machine and is left out.

use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{
    limits::ADDRESSES_MAX,
    wire::{Reader, WireError, Writer},
};

/// Writes a list of addresses. The caller keeps to [`ADDRESSES_MAX`].
pub(crate) fn write(writer: &mut Writer, addresses: &[SocketAddr]) {
    writer.varint(addresses.len() as u64);
    for address in addresses {
        match address {
            SocketAddr::V4(v4) => writer.u8(4).bytes(&v4.ip().octets()),
            SocketAddr::V6(v6) => writer.u8(6).bytes(&v6.ip().octets()),
        };
        writer.bytes(&address.port().to_le_bytes());
    }
}

/// Reads a list of at most [`ADDRESSES_MAX`] addresses.
pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Vec<SocketAddr>, WireError> {
    let count = reader.bounded("the number of addresses", ADDRESSES_MAX as u64)?;
    (0..count)
        .map(|_| {
            let ip = match reader.u8()? {
                4 => Ipv4Addr::from(reader.array::<4>()?).into(),
                6 => Ipv6Addr::from(reader.array::<16>()?).into(),
                _ => return Err(WireError::Invalid("the kind of an address")),
            };
            Ok(SocketAddr::new(ip, u16::from_le_bytes(reader.array()?)))
        })
        .collect()
}
