//! What nodes say to each other: requests and answers over QUIC, one stream each.
//!
//! Owns the values that the two sides share; the ways of the bytes lie in the modules below. A
//! node is asked through the [`pool::PeerPool`] and answers through its [`PeerHandler`]; neither
//! knows of frames, streams or connections.
//!
//! | module | owns |
//! |---|---|
//! | [`endpoint`] | socket, transport settings |
//! | [`frame`] | the bytes of a message |
//! | `places` | who may have a connection here |
//! | [`pool`] | outgoing connections, dialling, backoff |
//! | [`server`] | incoming connections, limits |

use std::time::Duration;

use bytes::Bytes;
use copse_core::ids::NodeId;
pub use copse_proto::peer::{reply::Outcome, request::Op};
use copse_proto::{
    status::{Reason, Refusal},
    tls::WrongNode,
};

use self::frame::FrameError;

pub mod endpoint;
pub mod frame;
mod places;
pub mod pool;
pub mod server;
#[cfg(test)]
mod tests;

/// The answer to a request: a header and the raw bytes behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Never [`Outcome::Error`]: a refusal is a [`Refusal`].
    pub outcome: Outcome,
    /// Empty for most; for a read shard its bytes.
    pub body: Bytes,
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, body: Bytes::new() }
    }
}

/// Answers the requests of other nodes.
#[async_trait::async_trait]
pub trait PeerHandler: Send + Sync + 'static {
    /// Answers one request. `from` proved its id in the handshake; `body` has the announced
    /// length, which only a put may have above zero; `background` says that nobody waits for it.
    /// The call is dropped when the asker goes away.
    async fn handle(
        &self,
        from: NodeId,
        op: Op,
        body: Bytes,
        background: bool,
    ) -> Result<Answer, Refusal>;

    /// Waits until so many bytes of a shard may be sent that nobody waits for.
    ///
    /// # Errors
    /// When that takes too long.
    async fn wait_for_turn(&self, _bytes: usize) -> Result<(), Refusal> {
        Ok(())
    }

    /// Whether this is a node of the network. When there are too many connections, others make room.
    fn knows(&self, _peer: &NodeId) -> bool {
        false
    }

    /// Another node connected or asked something: it is alive.
    fn heard(&self, _from: NodeId) {}
}

/// Why another node gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The node answered with a refusal.
    #[error("node {node} refuses: {refusal}")]
    Refused {
        /// The node.
        node: NodeId,
        /// What it said.
        #[source]
        refusal: Refusal,
    },
    /// No address is known: it is not in the directory yet.
    #[error("no address is known for node {0}")]
    Unknown(NodeId),
    /// A node does not dial itself.
    #[error("node {0} is this node itself")]
    Itself(NodeId),
    /// No address leads to the node.
    #[error("node {node} cannot be reached: {problem}")]
    Unreachable {
        /// The node.
        node: NodeId,
        /// What happened at its addresses.
        problem: String,
    },
    /// It could not be reached a moment ago, and it is too early to try again.
    #[error("node {node} could not be reached: {problem}; next try in {} s", .retry_after.as_secs_f64().ceil())]
    Backoff {
        /// The node.
        node: NodeId,
        /// What happened the last time.
        problem: String,
        /// When it is dialled again.
        retry_after: Duration,
    },
    /// Another node answers at its address.
    #[error("{0}; has it moved, or was its identity replaced?")]
    WrongNode(#[source] WrongNode),
    /// The connection is open, but the answer does not come.
    #[error("node {node} gave no answer within {waited:?}")]
    TimedOut {
        /// The node.
        node: NodeId,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The request could not be sent or the answer not be read.
    #[error("talking to node {node} failed: {source}")]
    Frame {
        /// The node.
        node: NodeId,
        /// What went wrong.
        #[source]
        source: FrameError,
    },
    /// The answer is not one to the question.
    #[error("node {node} answers something else than was asked")]
    BadReply {
        /// The node.
        node: NodeId,
    },
}

impl PeerError {
    /// Whether the node itself refused, in contrast to not being reached.
    pub const fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }
}

impl From<PeerError> for Refusal {
    /// What a node that forwarded a request tells the asker: the target's own refusal as it is.
    fn from(error: PeerError) -> Self {
        let text = error.to_string();
        match error {
            PeerError::Refused { refusal, .. } => refusal,
            PeerError::Unknown(node) => Self::new(Reason::UnknownNode, text).about("node", node),
            PeerError::Itself(_) => Self::new(Reason::Internal, text),
            PeerError::Unreachable { node, .. } => {
                Self::new(Reason::NodeUnreachable, text).about("node", node)
            }
            PeerError::Backoff { node, retry_after, .. } => {
                Self::new(Reason::NodeUnreachable, text)
                    .about("node", node)
                    .retry_after(retry_after)
            }
            PeerError::WrongNode(wrong) => {
                Self::new(Reason::WrongNode, text).about("node", wrong.expected)
            }
            PeerError::TimedOut { node, .. } => {
                Self::new(Reason::TimedOut, text).about("node", node)
            }
            PeerError::Frame { node, source } => {
                let reason = if source.is_misbehaviour() {
                    Reason::BadReply
                } else {
                    Reason::NodeUnreachable
                };
                Self::new(reason, text).about("node", node)
            }
            PeerError::BadReply { node } => Self::new(Reason::BadReply, text).about("node", node),
        }
    }
}
