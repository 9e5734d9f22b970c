//! Exit codes, and which error gets which.
//!
//! The codes are part of the interface: scripts rely on them, the help lists them.

use copse_client::{
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

/// All of them, for the test of the help.
#[cfg(test)]
pub(crate) const ALL: &[u8] = &[
    0,
    OTHER,
    USAGE,
    PARTIAL,
    DATA_LOSS,
    UNREACHABLE,
    REFUSED,
    NOT_FOUND,
    EXISTS,
    BAD_CAPABILITY,
    FULL,
    DEGRADED,
    UNMET,
    INTERRUPTED,
];

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
            ReadError::Network(_) => BAD_CAPABILITY,
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

impl From<PutError> for CliError {
    fn from(error: PutError) -> Self {
        let code = match &error {
            PutError::Quorum { refusals, .. } if refusals.any(Reason::StoreFull) => FULL,
            PutError::Quorum { .. } | PutError::NoNodes => UNREACHABLE,
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
            RestoreError::Io { .. } | RestoreError::Stopped(_) => OTHER,
        };
        Self::new(code, error)
    }
}
