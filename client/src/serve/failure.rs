//! What a caller of the gateway is told when a call fails.
//!
//! Owns the one mapping from this crate's errors to gRPC codes and `google.rpc` details. Refuses to
//! call something lost that may only be out of reach. One idea: every error carries a word, the
//! thing it is about, and the id of the request, so that a program and a log can both use it.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use copse_core::tree::{self, TreeError, path::PathError};
use copse_proto::status::{DETAIL_BYTES_MAX, Reason, Refusal, shortened};
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::StatusExt as _;

use super::{MESSAGE_BYTES_MAX, files::PIECE_BYTES_MAX};
use crate::error::{EncodeError, GetError, PutError, ReadError, Refusals};

/// When a caller may try again what failed because nodes did not answer: about the time after
/// which a restarted node is back.
const RETRY_NODES: Duration = Duration::from_secs(5);

/// When a caller may try again what found the gateway busy: the time of a small put.
const RETRY_BUSY: Duration = Duration::from_secs(1);

/// A request id from the caller that is longer is replaced, in bytes: it is echoed and logged.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// The header in which a caller may name its request.
const REQUEST_ID: &str = "x-request-id";

/// An error on its way to the caller. Boxed, since every result carries its size.
#[derive(Debug)]
pub(super) struct Failure(Box<Inner>);

#[derive(Debug)]
struct Inner {
    refusal: Refusal,
    /// The field of the request that is wrong, and how.
    field: Option<(&'static str, String)>,
}

impl Failure {
    /// A field of the request has no meaning.
    pub(super) fn field(field: &'static str, problem: impl fmt::Display) -> Self {
        let problem = shortened(problem.to_string(), DETAIL_BYTES_MAX);
        let refusal = Refusal::new(Reason::Malformed, format!("{field}: {problem}"));
        Self(Box::new(Inner { refusal, field: Some((field, problem)) }))
    }

    /// A message is larger than it may be.
    pub(super) fn oversized(field: &'static str, got: usize, max: usize) -> Self {
        let problem = format!("it has {got} bytes, at most {max} are allowed");
        let refusal = Refusal::new(Reason::Oversized, format!("{field}: {problem}"));
        Self(Box::new(Inner { refusal, field: Some((field, problem)) }))
    }

    /// More than one call may store.
    pub(super) fn too_large(what: &str, limit: impl fmt::Display) -> Self {
        let advice = format!(
            "one call may hold {limit} of {what}: put the folder with `copse put`, or in several \
             calls"
        );
        Refusal::new(Reason::PutTooLarge, advice.clone()).quota("put", advice).into()
    }

    /// Others use what this call needs.
    pub(super) fn busy(what: &str) -> Self {
        Refusal::new(Reason::Overloaded, format!("{what}; try again a little later"))
            .retry_after(RETRY_BUSY)
            .into()
    }

    /// The offset lies behind the end.
    pub(super) fn behind_the_end(path: &str, offset: u64, size: u64) -> Self {
        Refusal::new(
            Reason::OutOfRange,
            format!("offset {offset} lies behind the end of {path}, which has {size} bytes"),
        )
        .about("file", path)
        .with("offset", offset)
        .with("size", size)
        .into()
    }

    /// Bytes were asked of what has none.
    pub(super) fn not_a_file(path: &str) -> Self {
        Refusal::new(Reason::NotAFile, format!("{path} is no file, so it has no bytes to read"))
            .about("file", path)
            .into()
    }

    /// Names were asked of what has none.
    pub(super) fn not_a_directory(path: &str) -> Self {
        Refusal::new(Reason::NotADirectory, format!("{path} is no directory"))
            .about("directory", path)
            .into()
    }

    /// The network is too small to survive the loss of a node.
    pub(super) fn too_few_nodes(nodes: usize) -> Self {
        Refusal::new(
            Reason::TooFewNodes,
            format!(
                "refused: the network has {nodes} node(s), and what is on one is lost with it; start \
                 another (copse-node init --join TOKEN)"
            ),
        )
        .with("have", nodes)
        .with("need", 2)
        .into()
    }

    /// The caller sent or took nothing for too long.
    pub(super) fn idle(what: &str, after: Duration) -> Self {
        let seconds = after.as_secs();
        Refusal::new(Reason::TimedOut, format!("nothing {what} for {seconds} s")).into()
    }

    /// The stream of requests broke: the transport's own code and words, but for a message over the
    /// limit, which it calls out of range as it calls nothing else that comes in.
    pub(super) fn from_stream(status: &Status) -> Self {
        if status.code() != Code::OutOfRange {
            return Refusal::from(status).into();
        }
        let problem = format!(
            "a message has {MESSAGE_BYTES_MAX} bytes at most, {PIECE_BYTES_MAX} of them data ({})",
            status.message()
        );
        let problem = shortened(problem, DETAIL_BYTES_MAX);
        let refusal = Refusal::new(Reason::Oversized, format!("data: {problem}"));
        Self(Box::new(Inner { refusal, field: Some(("data", problem)) }))
    }

    /// A fault of this program.
    pub(super) fn internal(what: impl fmt::Display) -> Self {
        Refusal::new(Reason::Internal, format!("{what}; this is a fault of the gateway")).into()
    }

    /// Says at which path it happened.
    #[must_use]
    pub(super) fn at(self, path: &str) -> Self {
        let Inner { refusal, field } = *self.0;
        Self(Box::new(Inner { refusal: refusal.with("path", path), field }))
    }

    /// The status that goes on the wire.
    pub(super) fn into_status(self, request: &RequestId) -> Status {
        let Inner { refusal, field } = *self.0;
        let server = matches!(refusal.reason(), Reason::Internal | Reason::TreeDamaged);
        if server {
            tracing::error!(request = %request.0, %refusal, "a call failed");
        } else {
            tracing::info!(request = %request.0, %refusal, "a call was refused");
        }
        let status = Status::from(refusal);
        let mut details = status.get_error_details();
        details.set_request_info(request.0.clone(), "");
        if let Some((field, problem)) = field {
            details.add_bad_request_violation(field, problem);
        }
        Status::with_error_details(status.code(), status.message(), details)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self(Box::new(Inner { refusal, field: None }))
    }
}

impl From<GetError> for Failure {
    fn from(error: GetError) -> Self {
        let message = error.to_string();
        match error {
            GetError::DataLoss { chunk, have, need, unreachable, .. } => {
                let (reason, retry) = if unreachable == 0 {
                    (Reason::TooFewShards, None)
                } else {
                    // Those who did not answer may hold enough.
                    (Reason::NodeUnreachable, Some(RETRY_NODES))
                };
                let mut refusal = Refusal::new(reason, message)
                    .about("chunk", chunk)
                    .with("chunk", chunk)
                    .with("have", have)
                    .with("need", need)
                    .with("unreachable", unreachable);
                if let Some(delay) = retry {
                    refusal = refusal.retry_after(delay);
                }
                refusal.into()
            }
            GetError::NoNodes => {
                Refusal::new(Reason::NodeUnreachable, message).retry_after(RETRY_NODES).into()
            }
            GetError::Open { chunk, .. } | GetError::Reference { chunk, .. } => {
                Refusal::new(Reason::TreeDamaged, message).about("chunk", chunk).into()
            }
            // Ranges are cut to the file before they are asked for.
            GetError::OutOfRange { .. } | GetError::Thread => Self::internal(message),
        }
    }
}

impl From<tree::ReadError> for Failure {
    fn from(error: tree::ReadError) -> Self {
        let message = error.to_string();
        match error {
            // The error's own words are for who has a command line.
            tree::ReadError::NotFound { path } => {
                let message = format!("there is no {path} in this tree");
                Refusal::new(Reason::NoSuchEntry, message).about("entry", path).into()
            }
            // A path that goes on behind a file leads to nothing.
            tree::ReadError::NotADirectory { path } => {
                Refusal::new(Reason::NoSuchEntry, message).about("entry", path).into()
            }
            tree::ReadError::NotAFile { name } => Self::not_a_file(&name),
            tree::ReadError::OutOfRange { start, size, .. } => {
                Self::behind_the_end("the file", start, size)
            }
            tree::ReadError::Node(_) => Refusal::new(Reason::TreeDamaged, message).into(),
            tree::ReadError::OutOfTurn => Self::internal(message),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let message = error.to_string();
        match error {
            ReadError::Get(error) => error.into(),
            ReadError::Tree(error) => error.into(),
            ReadError::TooDeep { .. } => Refusal::new(Reason::TreeDamaged, message).into(),
            ReadError::Stopped => {
                Refusal::new(Reason::ShuttingDown, message).retry_after(RETRY_NODES).into()
            }
            // Checked before it is served.
            ReadError::Network(_) | ReadError::Manifest(_) => Self::internal(message),
        }
    }
}

impl From<PathError> for Failure {
    fn from(error: PathError) -> Self {
        Self::field("path", error)
    }
}

impl From<TreeError> for Failure {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Name(_) | TreeError::TooDeep => Self::field("file.path", error),
            TreeError::Mode(_) => Self::field("file.mode", error),
            error => Self::internal(error),
        }
    }
}

impl From<EncodeError> for Failure {
    fn from(error: EncodeError) -> Self {
        Self::internal(error)
    }
}

impl From<PutError> for Failure {
    fn from(error: PutError) -> Self {
        let message = error.to_string();
        match error {
            PutError::Quorum { chunk, have, need, total, refusals } => {
                let refusal = match full_node(&refusals) {
                    Some(node) => Refusal::new(Reason::StoreFull, message)
                        .quota(node, "its disk or its share is full: free it, or add nodes"),
                    None => Refusal::new(Reason::NodeUnreachable, message).retry_after(RETRY_NODES),
                };
                refusal
                    .about("chunk", chunk)
                    .with("chunk", chunk)
                    .with("have", have)
                    .with("need", need)
                    .with("total", total)
                    .into()
            }
            PutError::Fragile { chunk, nodes, geometry } => {
                Refusal::new(Reason::TooFewNodes, message)
                    .about("chunk", chunk)
                    .with("chunk", chunk)
                    .with("have", nodes)
                    .with("need", geometry.total().div_ceil(geometry.parity().max(1)))
                    .into()
            }
            PutError::NoNodes => {
                Refusal::new(Reason::NodeUnreachable, message).retry_after(RETRY_NODES).into()
            }
            PutError::Stopped(_) => {
                Refusal::new(Reason::ShuttingDown, message).retry_after(RETRY_NODES).into()
            }
        }
    }
}

/// The first node that refused because it is full.
fn full_node(refusals: &Refusals) -> Option<String> {
    let full = refusals.0.iter().find(|(_, refusal)| refusal.reason() == Reason::StoreFull);
    full.map(|(node, _)| format!("node {node}"))
}

/// What a request is called in errors and in the log.
#[derive(Debug, Clone)]
pub(super) struct RequestId(String);

impl RequestId {
    /// The caller's own id if it sent a sensible one, a new one otherwise.
    pub(super) fn of(metadata: &MetadataMap) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let given = metadata.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let sensible = |id: &&str| {
            (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
                && id.chars().all(|c| c.is_ascii_graphic())
        };
        match given.filter(sensible) {
            Some(id) => Self(id.to_owned()),
            None => {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                Self(format!("{}-{number}", std::process::id()))
            }
        }
    }
}
