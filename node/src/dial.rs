//! Reaching a node's door as its operator does.
//!
//! Owns the one way in for `status` and for tests: TLS that accepts the node's own key and nothing
//! else. Clients have their own, with retries and more.

use std::{net::SocketAddr, time::Duration};

use copse_core::ids::NodeId;
use copse_proto::tls::{DoorVerifier, WrongNode};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

/// How long the door is waited for. It is on the same machine.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the door was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Another node is behind it.
    #[error("at {address} {wrong}")]
    WrongNode {
        /// Where.
        address: SocketAddr,
        /// Who was expected, who answered.
        wrong: WrongNode,
    },
    /// Nobody answers.
    #[error("nothing answers at {address}: {problem}")]
    Unreachable {
        /// Where.
        address: SocketAddr,
        /// What happened.
        problem: String,
    },
}

/// Connects to the door of `node` at `address`.
///
/// # Errors
/// When nobody answers, or another node does.
pub async fn dial(address: SocketAddr, node: NodeId) -> Result<Channel, DialError> {
    dial_within(TIMEOUT, address, node).await
}

/// The same with another time for the connection, and for each call.
///
/// # Errors
/// As [`dial`].
pub async fn dial_within(
    patience: Duration,
    address: SocketAddr,
    node: NodeId,
) -> Result<Channel, DialError> {
    let failed = |error: tonic::transport::Error| {
        if let Some(wrong) = WrongNode::in_chain(&error) {
            return DialError::WrongNode { address, wrong };
        }
        let mut problem = error.to_string();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            problem = deeper.to_string();
            cause = deeper;
        }
        DialError::Unreachable { address, problem }
    };
    let verifier = DoorVerifier::new(node);
    Endpoint::from_shared(format!("https://{address}"))
        .and_then(|endpoint| {
            endpoint.tls_config_with_verifier(ClientTlsConfig::new().timeout(patience), verifier)
        })
        .map_err(failed)?
        .connect_timeout(patience)
        .timeout(patience)
        .connect()
        .await
        .map_err(failed)
}
