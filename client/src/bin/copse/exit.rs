//! Exit codes, and which error gets which.
//!
//! The codes are part of the interface: scripts rely on them, the help lists them.

use copse_client::{
    check::VerifierError,
    error::{EncodeError, GetError, NetworkError, PutError, ReadError},
    local::RestoreError,
    profile::ProfileError,
    transfer::PutTreeError,
};
use copse_core::tree;
use copse_proto::status::Reason;

pub(crate) const OTHER: u8 = 1;
pub(crate) const USAGE: u8 = 2;
pub(crate) const PARTIAL: u8 = 3;
pub(crate) const DATA_LOSS: u8 = 4;
pub(crate) const UNREACHABLE: u8 = 5;
pub(crate) const REFUSED: u8 = 6;
pub(crate) const NOT_FOUND: u8 = 7;
pub(crate) const EXISTS: u8 = 8;
pub(crate) const BAD_CAPABILITY: u8 = 9;
pub(crate) const FULL: u8 = 10;
pub(crate) const DEGRADED: u8 = 11;
pub(crate) const UNMET: u8 = 12;
pub(crate) const INTERRUPTED: u8 = 130;

/// All of them, and what each means with every command.
pub(crate) const MEANINGS: [(u8, &str); 14] = [
    (0, "done"),
    (OTHER, "another error"),
    (USAGE, "wrong usage"),
    (PARTIAL, "done but for a part"),
    (DATA_LOSS, "too few shards are left or can be reached"),
    (UNREACHABLE, "too few nodes answer"),
    (REFUSED, "refused: it would not survive the loss of one node"),
    (NOT_FOUND, "no such path in the tree"),
    (EXISTS, "the destination exists"),
    (BAD_CAPABILITY, "wrong capability or token"),
    (FULL, "too little room on the nodes"),
    (DEGRADED, "less safe than it should be"),
    (UNMET, "the wish cannot be met"),
    (INTERRUPTED, "interrupted; run the same command again to go on"),
];

/// For the help of one command: what some codes mean with it.
pub(crate) fn help(codes: &[(u8, &str)]) -> String {
    let line = |(code, here): &(u8, &str)| {
        let meaning = MEANINGS.iter().find(|(known, _)| known == code);
        format!("\n  {code:>2} {}: {here}", meaning.map_or("", |(_, meaning)| meaning))
    };
    let lines: String = codes.iter().map(line).collect();
    format!("Exit codes:{lines}")
}

/// What ends the program: a message for people, a code for programs.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) code: u8,
    pub(crate) message: String,
}

impl CliError {
    pub(crate) fn new(code: u8, message: impl ToString) -> Self {
        Self { code, message: message.to_string() }
    }

    pub(crate) fn other(message: impl ToString) -> Self {
        Self::new(OTHER, message)
    }

    pub(crate) fn interrupted(resumable: bool) -> Self {
        let more =
            if resumable { "; run the same command again to go on where it was" } else { "" };
        Self::new(INTERRUPTED, format!("interrupted{more}"))
    }
}

impl From<NetworkError> for CliError {
    fn from(error: NetworkError) -> Self {
        Self::new(UNREACHABLE, error)
    }
}

impl From<ProfileError> for CliError {
    fn from(error: ProfileError) -> Self {
        let code = match error {
            ProfileError::OtherNetwork { .. } => BAD_CAPABILITY,
            ProfileError::NotJoined(_) => USAGE,
            _ => OTHER,
        };
        Self::new(code, error)
    }
}

impl From<GetError> for CliError {
    fn from(error: GetError) -> Self {
        let code = match &error {
            GetError::DataLoss { .. } => DATA_LOSS,
            GetError::NoNodes => UNREACHABLE,
            _ => OTHER,
        };
        Self::new(code, error)
    }
}

impl From<ReadError> for CliError {
    fn from(error: ReadError) -> Self {
        let code = match error {
            ReadError::Get(error) => return error.into(),
            ReadError::Network(_) | ReadError::Manifest(_) => BAD_CAPABILITY,
            ReadError::Tree(tree::ReadError::NotFound { .. }) => NOT_FOUND,
            ReadError::Tree(tree::ReadError::NotADirectory { path }) => {
                let what = if path == "/" { "what the capability names".to_owned() } else { path };
                return Self::new(
                    NOT_FOUND,
                    format!("{what} is no folder: there is nothing below it"),
                );
            }
            ReadError::Tree(tree::ReadError::NotAFile { .. }) => USAGE,
            _ => OTHER,
        };
        Self::new(code, error)
    }
}

impl From<VerifierError> for CliError {
    fn from(error: VerifierError) -> Self {
        match error {
            VerifierError::Read(error) => error.into(),
            VerifierError::Unreadable { ref source, .. } => {
                Self::new(Self::from(source.clone()).code, error)
            }
            VerifierError::TooMany(error) => Self::new(USAGE, error),
            VerifierError::Put(error) => error.into(),
        }
    }
}

impl From<PutError> for CliError {
    fn from(error: PutError) -> Self {
        let code = match &error {
            PutError::Quorum { refusals, .. } if refusals.any(Reason::StoreFull) => FULL,
            PutError::Quorum { .. } | PutError::NoNodes => UNREACHABLE,
            PutError::Fragile { .. } => REFUSED,
            PutError::Stopped(_) => OTHER,
        };
        Self::new(code, error)
    }
}

impl From<EncodeError> for CliError {
    fn from(error: EncodeError) -> Self {
        Self::other(error)
    }
}

impl From<PutTreeError> for CliError {
    fn from(error: PutTreeError) -> Self {
        match error {
            PutTreeError::Put(error) => error.into(),
            PutTreeError::SameName(_) | PutTreeError::NoName(_) => Self::new(USAGE, error),
            error => Self::other(error),
        }
    }
}

impl From<RestoreError> for CliError {
    fn from(error: RestoreError) -> Self {
        let code = match &error {
            RestoreError::Exists(_) | RestoreError::OtherPartial(_) => EXISTS,
            RestoreError::NotOwn(_)
            | RestoreError::Busy(_)
            | RestoreError::TwoNames(_)
            | RestoreError::Io { .. }
            | RestoreError::Stopped(_) => OTHER,
        };
        Self::new(code, error)
    }
}
