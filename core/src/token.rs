//! The join token: what a newcomer needs to find a network, in one line of text.
//!
//! Owns its bytes and its spelling `copse1t…`. It is an address, not a permission: whoever has it
//! can ask to join, and reaches the node of that key or none.
//!
//! ```text
//! version 1 u8 | network id 32 | node id 32 | QUIC addresses | gRPC addresses
//! address list = count varint, then per address: 4 or 6 u8 | ip 4 or 16 | port u16 LE
//! ```

use core::{fmt, net::SocketAddr, str::FromStr};

use crate::{
    addresses,
    ids::{NetworkId, NodeId},
    limits::ADDRESSES_MAX,
    text::{self, JOIN_TOKEN, TextError},
    wire::{Reader, WireError, Writer},
};

/// The newest version of the format.
const VERSION: u8 = 1;

/// One node of a network and where to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The network.
    pub network: NetworkId,
    /// The node to ask; its key is checked when it answers.
    pub node: NodeId,
    /// Where it speaks QUIC to other nodes. At most [`ADDRESSES_MAX`]; more are left out.
    pub addresses: Vec<SocketAddr>,
    /// Where it speaks gRPC to clients. At most [`ADDRESSES_MAX`]; more are left out.
    pub grpc: Vec<SocketAddr>,
}

/// A text that is no join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not copied as it was printed.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The checksum fits, but the content does not.
    #[error("the join token cannot be used: {0}; ask for a new one (copse-node token)")]
    Content(#[from] WireError),
    /// No address at all.
    #[error("the join token names no address; start its node first, then print it again")]
    NoAddress,
}

impl JoinToken {
    fn to_bytes(&self) -> Vec<u8> {
        let first = |list: &[SocketAddr]| list[..list.len().min(ADDRESSES_MAX)].to_vec();
        let mut writer = Writer::new();
        writer.u8(VERSION).bytes(self.network.as_bytes()).bytes(self.node.as_bytes());
        addresses::write(&mut writer, &first(&self.addresses));
        addresses::write(&mut writer, &first(&self.grpc));
        writer.finish()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, TokenError> {
        let mut reader = Reader::new(bytes);
        // The magic is the prefix of the text.
        reader.magic("a join token", b"", VERSION)?;
        let token = Self {
            network: NetworkId::new(reader.array()?),
            node: NodeId::new(reader.array()?),
            addresses: addresses::read(&mut reader)?,
            grpc: addresses::read(&mut reader)?,
        };
        reader.end()?;
        if token.addresses.is_empty() && token.grpc.is_empty() {
            return Err(TokenError::NoAddress);
        }
        Ok(token)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::encode(JOIN_TOKEN, &self.to_bytes()))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::from_bytes(&text::decode(JOIN_TOKEN, text)?)
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            network: NetworkId::new([0x11; 32]),
            node: NodeId::new([0x22; 32]),
            addresses: vec![
                "192.0.2.1:7400".parse().expect("an address"),
                "[2001:db8::1]:7400".parse().expect("an address"),
            ],
            grpc: vec!["192.0.2.1:7401".parse().expect("an address")],
        }
    }

    #[test]
    fn the_bytes_of_a_token() {
        let expected = [
            "01",
            &"11".repeat(32),
            &"22".repeat(32),
            "02",
            "04c0000201e81c",
            "0620010db8000000000000000000000001e81c",
            "01",
            "04c0000201e91c",
        ];
        assert_eq!(HEXLOWER.encode(&token().to_bytes()), expected.concat());
        assert_eq!(
            token().to_string(),
            "copse1taeirceirceirceirceirceirceirceirceirceirceirceirceircirceirceirceirceirceirceirceirceirceirceirceirceircaicmaaacahubybraaeg3qaaaaaaaaaaaaaaaaaab5aoacbgaaabad2i47gyioki"
        );
    }

    #[test]
    fn a_token_survives_being_written_and_parsed() {
        assert_eq!(token().to_string().parse(), Ok(token()));
        let spoken = format!("  {}\n", token().to_string().to_ascii_uppercase());
        assert_eq!(spoken.parse(), Ok(token()));
    }

    #[test]
    fn a_token_that_leads_nowhere_is_refused() {
        let nowhere = JoinToken { addresses: vec![], grpc: vec![], ..token() };
        assert_eq!(nowhere.to_string().parse::<JoinToken>(), Err(TokenError::NoAddress));
    }

    #[test]
    fn a_newer_token_asks_for_a_newer_program() {
        let mut bytes = token().to_bytes();
        bytes[0] = 2;
        let error = text::encode(JOIN_TOKEN, &bytes).parse::<JoinToken>().expect_err("version 2");
        assert!(error.to_string().contains("use a newer one"), "{error}");
    }

    proptest! {
        #[test]
        fn any_payload_is_read_or_refused(payload in prop::collection::vec(any::<u8>(), 0..120)) {
            let text = text::encode(JOIN_TOKEN, &payload);
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert_eq!(token.to_string(), text);
            }
        }

        #[test]
        fn bytes_after_a_valid_start_are_read_or_refused(
            tail in prop::collection::vec(prop_oneof![Just(4u8), Just(6), Just(1), any::<u8>()], 0..60),
        ) {
            let mut payload = token().to_bytes()[..65].to_vec();
            payload.extend(tail);
            let text = text::encode(JOIN_TOKEN, &payload);
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert_eq!(token.to_string(), text);
            }
        }
    }
}
