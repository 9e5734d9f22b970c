//! How a refusal is told to another process: one stable word, a gRPC code, a sentence, details.
//!
//! Owns the words ([`Reason`]) and the conversion of a [`Refusal`] to and from a `tonic::Status`, a
//! peer's `Error` and a shard's `ShardError`. Every crate turns its own errors into a [`Refusal`]
//! and nothing else, so that a program reads the same word whichever way the answer came.

use std::{collections::BTreeMap, fmt, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{door, peer};

/// The `domain` of every `google.rpc.ErrorInfo` of this program.
pub const DOMAIN: &str = "copse";

/// Bytes of a refusal's sentence that are kept: it travels in an HTTP/2 header, where 8 KiB is a
/// common limit and escaping may triple it.
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// Bytes of each text among the details that are kept, such as a path: they travel in a header of their own,
/// a third larger than they are, beside the sentence.
pub const DETAIL_BYTES_MAX: usize = 256;

/// The beginning of a text, of so many bytes at most.
pub fn shortened(mut text: String, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $code:ident;)*) => {
        /// Why something was refused, as a stable word for programs. A word is never reused or
        /// changed; people read the message beside it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $name,)*
            /// A word that this version does not know, from a newer one. Go by the code.
            Unknown,
        }

        impl Reason {
            /// Every reason that has a word.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word on the wire, in the form that `google.rpc.ErrorInfo` asks for.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                    Self::Unknown => "UNKNOWN",
                }
            }

            /// The gRPC code that goes with it.
            pub const fn code(self) -> Code {
                match self {
                    $(Self::$name => Code::$code,)*
                    Self::Unknown => Code::Unknown,
                }
            }

            /// Reads a word; an unknown one is [`Reason::Unknown`].
            pub fn from_word(word: &str) -> Self {
                match word {
                    $($word => Self::$name,)*
                    _ => Self::Unknown,
                }
            }
        }
    };
}

reasons! {
    /// A field is missing, too long or has no meaning.
    Malformed = "MALFORMED", InvalidArgument;
    /// A message or body is over its limit.
    Oversized = "OVERSIZED", InvalidArgument;
    /// A message or body ended before its announced end.
    Torn = "TORN", InvalidArgument;
    /// An operation that this version does not know.
    UnknownOperation = "UNKNOWN_OPERATION", Unimplemented;
    /// The sender belongs to another network.
    WrongNetwork = "WRONG_NETWORK", FailedPrecondition;
    /// A signature does not fit what it signs.
    BadSignature = "BAD_SIGNATURE", InvalidArgument;
    /// A shard's bytes are not those that its descriptor names.
    ShardMismatch = "SHARD_MISMATCH", InvalidArgument;
    /// The node does not hold the shard.
    NotHeld = "NOT_HELD", NotFound;
    /// The range lies outside the shard or file.
    OutOfRange = "OUT_OF_RANGE", OutOfRange;
    /// The node held the shard, and what it held is damaged.
    ShardDamaged = "SHARD_DAMAGED", DataLoss;
    /// Fewer shards of a chunk can be had than are needed to rebuild it.
    TooFewShards = "TOO_FEW_SHARDS", DataLoss;
    /// The disk is full or its share is used up: new shards are refused, the rest goes on.
    StoreFull = "STORE_FULL", ResourceExhausted;
    /// The disk failed: new shards are refused until the operator has looked.
    StoreFailed = "STORE_FAILED", Internal;
    /// The node keeps a shard that it was asked to give away: by its own ring it should have it.
    KeepsShard = "KEEPS_SHARD", FailedPrecondition;
    /// The node is leaving the network and takes no new shards.
    Leaving = "LEAVING", FailedPrecondition;
    /// Too many requests at once; try again a little later.
    Overloaded = "OVERLOADED", Unavailable;
    /// The target is not in this node's directory (yet).
    UnknownNode = "UNKNOWN_NODE", Unavailable;
    /// The target cannot be reached.
    NodeUnreachable = "NODE_UNREACHABLE", Unavailable;
    /// Another node answers at the target's address.
    WrongNode = "WRONG_NODE", Unavailable;
    /// The node is about to stop.
    ShuttingDown = "SHUTTING_DOWN", Unavailable;
    /// No answer came in time.
    TimedOut = "TIMED_OUT", DeadlineExceeded;
    /// The asker went away.
    Cancelled = "CANCELLED", Cancelled;
    /// The other side answered something that makes no sense.
    BadReply = "BAD_REPLY", Internal;
    /// Too few nodes for what was asked.
    TooFewNodes = "TOO_FEW_NODES", FailedPrecondition;
    /// Nothing lies at the path.
    NoSuchEntry = "NO_SUCH_ENTRY", NotFound;
    /// The entry at the path is no file.
    NotAFile = "NOT_A_FILE", FailedPrecondition;
    /// The entry at the path is no directory.
    NotADirectory = "NOT_A_DIRECTORY", FailedPrecondition;
    /// The tree is not well formed, though its bytes are those that were stored.
    TreeDamaged = "TREE_DAMAGED", DataLoss;
    /// More than may be stored in one call.
    PutTooLarge = "PUT_TOO_LARGE", ResourceExhausted;
    /// The caller did not say who it is, or not truly.
    Unauthenticated = "UNAUTHENTICATED", Unauthenticated;
    /// The caller showed no valid permission.
    NotPermitted = "NOT_PERMITTED", PermissionDenied;
    /// A fault of this program.
    Internal = "INTERNAL", Internal;
}

impl Reason {
    /// Whether the node that was asked said nothing at all, as far as could be heard.
    pub const fn is_silence(self) -> bool {
        matches!(self, Self::NodeUnreachable | Self::TimedOut)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a refusal is about: a `google.rpc.ResourceInfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Its kind: `shard`, `chunk`, `node`, `file`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A share that is used up: a `google.rpc.QuotaFailure`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Whose share it is.
    pub subject: String,
    /// What is used up, and what would help.
    pub description: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Details {
    retry_after: Option<Duration>,
    resource: Option<Resource>,
    quota: Option<Quota>,
    metadata: BTreeMap<String, String>,
}

/// An error as another process sees it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({reason})")]
pub struct Refusal {
    reason: Reason,
    code: Code,
    message: String,
    // Boxed, since most refusals have none and every Result carries the size.
    details: Option<Box<Details>>,
}

impl Refusal {
    /// A refusal with the code that goes with its reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let message = shortened(message.into(), MESSAGE_BYTES_MAX);
        Self { reason, code: reason.code(), message, details: None }
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.details_mut().retry_after = Some(delay);
        self
    }

    /// Names what the refusal is about.
    #[must_use]
    pub fn about(mut self, kind: impl Into<String>, name: impl fmt::Display) -> Self {
        let name = shortened(name.to_string(), DETAIL_BYTES_MAX);
        let resource = Resource { kind: kind.into(), name };
        self.details_mut().resource = Some(resource);
        self
    }

    /// Names the share that is used up.
    #[must_use]
    pub fn quota(mut self, subject: impl fmt::Display, description: impl Into<String>) -> Self {
        let subject = shortened(subject.to_string(), DETAIL_BYTES_MAX);
        let description = shortened(description.into(), DETAIL_BYTES_MAX);
        let quota = Quota { subject, description };
        self.details_mut().quota = Some(quota);
        self
    }

    /// Adds a fact for programs, for example `have` and `need` of [`Reason::TooFewShards`].
    #[must_use]
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        let value = shortened(value.to_string(), DETAIL_BYTES_MAX);
        self.details_mut().metadata.insert(key.to_owned(), value);
        self
    }

    /// The word for programs.
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// The gRPC code. For [`Reason::Unknown`] it is the sender's.
    pub const fn code(&self) -> Code {
        self.code
    }

    /// The sentence for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// When trying again makes sense, if the refuser said so.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.details.as_ref().and_then(|details| details.retry_after)
    }

    /// What it is about, if the refuser said so.
    pub fn resource(&self) -> Option<&Resource> {
        self.details.as_ref().and_then(|details| details.resource.as_ref())
    }

    /// The used-up share, if the refuser named one.
    pub fn quota_failure(&self) -> Option<&Quota> {
        self.details.as_ref().and_then(|details| details.quota.as_ref())
    }

    /// A fact for programs.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.details.as_ref()?.metadata.get(key).map(String::as_str)
    }

    fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_default()
    }

    /// From the three fields that all our messages of refusal share. A known word keeps its own
    /// code, whatever the sender wrote beside it; an unknown word keeps the sender's code, except
    /// that a refusal is never `OK`.
    fn from_fields(code: u32, word: &str, message: String) -> Self {
        let mut refusal = Self::new(Reason::from_word(word), message);
        if refusal.reason == Reason::Unknown {
            refusal.code = match i32::try_from(code).map(Code::from) {
                Ok(Code::Ok) | Err(_) => Code::Unknown,
                Ok(code) => code,
            };
        }
        refusal
    }
}

/// The number of a code: 0..=16.
fn number(code: Code) -> u32 {
    u32::try_from(i32::from(code)).unwrap_or_default()
}

impl From<Refusal> for peer::Error {
    fn from(refusal: Refusal) -> Self {
        let told = refusal.retry_delay().map_or(0, |delay| delay.as_millis().max(1));
        Self {
            code: number(refusal.code),
            reason: refusal.reason.as_str().to_owned(),
            message: refusal.message,
            retry_after_ms: u64::try_from(told).unwrap_or(u64::MAX),
        }
    }
}

impl From<peer::Error> for Refusal {
    fn from(error: peer::Error) -> Self {
        let refusal = Self::from_fields(error.code, &error.reason, error.message);
        match error.retry_after_ms {
            0 => refusal,
            told => refusal.retry_after(Duration::from_millis(told)),
        }
    }
}

impl From<Refusal> for door::ShardError {
    fn from(refusal: Refusal) -> Self {
        Self {
            code: number(refusal.code),
            reason: refusal.reason.as_str().to_owned(),
            message: refusal.message,
        }
    }
}

impl From<door::ShardError> for Refusal {
    fn from(error: door::ShardError) -> Self {
        Self::from_fields(error.code, &error.reason, error.message)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let mut out = ErrorDetails::new();
        let details = refusal.details.map(|details| *details).unwrap_or_default();
        out.set_error_info(
            refusal.reason.as_str(),
            DOMAIN,
            details.metadata.into_iter().collect::<std::collections::HashMap<_, _>>(),
        );
        if details.retry_after.is_some() {
            out.set_retry_info(details.retry_after);
        }
        if let Some(resource) = details.resource {
            out.set_resource_info(resource.kind, resource.name, "", refusal.message.clone());
        }
        if let Some(quota) = details.quota {
            out.add_quota_failure_violation(quota.subject, quota.description);
        }
        Self::with_error_details(refusal.code, refusal.message, out)
    }
}

impl From<&Status> for Refusal {
    /// A status without our `ErrorInfo` comes from a transport or a proxy: its code is kept, its
    /// reason is [`Reason::Unknown`] except where the code alone says enough, or the connection broke.
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let ours = details.error_info().filter(|info| info.domain == DOMAIN);
        if let (None, Some(refusal)) = (ours, broken(status)) {
            return refusal;
        }
        let word = match (ours, status.code()) {
            (Some(info), _) => info.reason.as_str(),
            (None, Code::Unavailable) => Reason::NodeUnreachable.as_str(),
            (None, Code::DeadlineExceeded) => Reason::TimedOut.as_str(),
            (None, Code::Cancelled) => Reason::Cancelled.as_str(),
            (None, Code::Unimplemented) => Reason::UnknownOperation.as_str(),
            (None, _) => "",
        };
        let mut refusal =
            Self::from_fields(number(status.code()), word, status.message().to_owned());
        let found = Details {
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            resource: details.resource_info().map(|info| Resource {
                kind: info.resource_type.clone(),
                name: info.resource_name.clone(),
            }),
            quota: details.quota_failure().and_then(|failure| failure.violations.first()).map(
                |violation| Quota {
                    subject: violation.subject.clone(),
                    description: violation.description.clone(),
                },
            ),
            metadata: ours
                .map(|info| info.metadata.clone().into_iter().collect())
                .unwrap_or_default(),
        };
        if found != Details::default() {
            refusal.details = Some(Box::new(found));
        }
        refusal
    }
}

/// What a connection that broke is to people. No node sent such a status: it was made on this side, of an
/// error of the transport, whose own words ("h2 protocol error") are of frames and streams. The last cause
/// is what the system said.
fn broken(status: &Status) -> Option<Refusal> {
    let mut cause = std::error::Error::source(status)?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let reason = match status.code() {
        Code::Cancelled => Reason::Cancelled,
        Code::DeadlineExceeded => Reason::TimedOut,
        _ => Reason::NodeUnreachable,
    };
    let message = format!("the connection broke, or the node at its other end stopped: {cause}");
    Some(Refusal::new(reason, message))
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::from(&status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_comes_back_and_fits_the_form_of_error_info() {
        for &reason in Reason::ALL {
            let word = reason.as_str();
            assert_eq!(Reason::from_word(word), reason);
            assert_ne!(reason.code(), Code::Ok, "{word}");
            assert!(word.len() <= 63 && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
        }
        assert_eq!(Reason::from_word("SOMETHING_NEW"), Reason::Unknown);
    }

    #[test]
    fn a_refusal_about_a_path_of_any_length_fits_into_headers() {
        let path = "é".repeat(50_000);
        let refusal = Refusal::new(Reason::NoSuchEntry, &path)
            .about("file", &path)
            .with("path", &path)
            .quota(&path, &path);
        let status = Status::from(refusal);
        // Escaping triples what is no ASCII, Base64 adds a third. Clients refuse more than 8 KiB.
        let bytes = 3 * status.message().len() + status.details().len().div_ceil(3) * 4;
        assert!(bytes < 8 << 10, "{bytes}");
    }

    #[test]
    fn a_refusal_keeps_its_details_through_a_status() {
        let refusal = Refusal::new(Reason::TooFewShards, "8 of 10 shards of chunk ab")
            .about("chunk", "ab")
            .with("have", 8)
            .with("need", 10)
            .retry_after(Duration::from_secs(3))
            .quota("node cd", "the disk is full");
        let status = Status::from(refusal.clone());
        assert_eq!(status.code(), Code::DataLoss);
        let back = Refusal::from(&status);
        assert_eq!(back, refusal);
        assert_eq!((back.metadata("have"), back.metadata("need")), (Some("8"), Some("10")));
        assert_eq!(back.retry_delay(), Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_refusal_keeps_word_code_and_message_through_our_messages() {
        let refusal = Refusal::new(Reason::StoreFull, "full");
        assert_eq!(Refusal::from(peer::Error::from(refusal.clone())), refusal);
        let later = refusal.clone().retry_after(Duration::from_millis(1500));
        assert_eq!(Refusal::from(peer::Error::from(later.clone())), later);
        assert_eq!(Refusal::from(door::ShardError::from(refusal.clone())), refusal);
    }

    #[test]
    fn an_unknown_word_keeps_the_senders_code() {
        let error = |code, reason: &str| peer::Error {
            code,
            reason: reason.to_owned(),
            message: "?".to_owned(),
            retry_after_ms: 0,
        };
        let check = |code, reason: &str, expected| {
            assert_eq!(Refusal::from(error(code, reason)).code(), expected, "{code} {reason}");
        };
        check(9, "SOMETHING_NEW", Code::FailedPrecondition);
        check(0, "SOMETHING_NEW", Code::Unknown);
        check(u32::MAX, "", Code::Unknown);
        check(0, "NOT_HELD", Code::NotFound);
    }

    #[test]
    fn a_status_of_a_transport_is_understood_by_its_code() {
        let check = |status, expected| assert_eq!(Refusal::from(&status).reason(), expected);
        check(Status::unavailable("connection refused"), Reason::NodeUnreachable);
        check(Status::deadline_exceeded(""), Reason::TimedOut);
        check(Status::not_found("by a proxy"), Reason::Unknown);
        assert_eq!(Refusal::from(Status::not_found("")).code(), Code::NotFound);
    }

    #[test]
    fn a_connection_that_breaks_is_told_in_no_words_of_the_transport() {
        #[derive(Debug, thiserror::Error)]
        #[error("h2 protocol error: error reading a body from connection")]
        struct Transport(#[source] std::io::Error);

        let cause = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let refusal = Refusal::from(Status::from_error(Box::new(Transport(cause))));
        assert_eq!(
            refusal.to_string(),
            "the connection broke, or the node at its other end stopped: connection reset \
             (NODE_UNREACHABLE)"
        );
        assert_eq!(refusal.code(), Code::Unavailable);
        // What a node says itself is told as it is.
        let told = Refusal::from(Status::from(Refusal::new(Reason::StoreFull, "full")));
        assert_eq!(told.to_string(), "full (STORE_FULL)");
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let refusal = Refusal::new(Reason::Internal, "ä".repeat(MESSAGE_BYTES_MAX));
        assert_eq!(refusal.message().len(), MESSAGE_BYTES_MAX);
        let odd = Refusal::new(Reason::Internal, format!("x{}", "ä".repeat(MESSAGE_BYTES_MAX)));
        assert_eq!(odd.message().len(), MESSAGE_BYTES_MAX - 1);
    }
}
