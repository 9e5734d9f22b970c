//! Exit codes, and which error gets which.
//!
//! The codes are part of the interface: scripts rely on them, the help lists them.

use std::io;

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
pub(crate) const NO_ROOM: u8 = 13;
pub(crate) const INTERRUPTED: u8 = 130;

/// All of them, and what each means with every command.
pub(crate) const MEANINGS: [(u8, &str); 15] = [
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
    (NO_ROOM, "too little room on this machine"),
    (INTERRUPTED, "interrupted; run the same command again to go on"),
];

/// What goes with an error of the system: a full disk has a code of its own.
pub(crate) fn of_writing(error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => NO_ROOM,
        _ => OTHER,
    }
}

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

    /// What was to be read at a path cannot be: names it, since the error knows chunks only.
    pub(crate) fn reading(path: &[tree::Name]) -> impl Fn(ReadError) -> Self + use<> {
        let what = match path {
            [] => "what the capability names".to_owned(),
            path => tree::path::display(path),
        };
        move |error| {
            let names_itself = !matches!(error, ReadError::Get(_));
            let Self { code, message } = error.into();
            match names_itself {
                true => Self { code, message },
                false => Self { code, message: format!("cannot read {what}: {message}") },
            }
        }
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
            ProfileError::Io { ref source, .. } => of_writing(source),
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
            PutTreeError::Put { ref source, .. } => {
                Self::new(Self::from(source.clone()).code, error)
            }
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
            | RestoreError::Stopped(_) => OTHER,
            RestoreError::Io { source, .. } => of_writing(source),
        };
        Self::new(code, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_named_once() {
        let path = tree::path::split(b"2024/diary.txt").expect("a path");
        let error = CliError::reading(&path)(GetError::NoNodes.into());
        assert_eq!(error.code, UNREACHABLE);
        assert!(error.message.starts_with("cannot read /2024/diary.txt: the network"), "{error:?}");
        let error = CliError::reading(&[])(GetError::NoNodes.into());
        assert!(error.message.starts_with("cannot read what the capability names: "), "{error:?}");
        let missing = tree::ReadError::NotFound { path: "/2024/diary.txt".into() };
        let error = CliError::reading(&path)(missing.into());
        assert_eq!(error.code, NOT_FOUND);
        assert!(error.message.starts_with("there is no /2024/diary.txt"), "{error:?}");
    }

    #[test]
    fn a_full_disk_here_has_a_code_of_its_own() {
        let error = |kind: io::ErrorKind| {
            let path = "x".into();
            CliError::from(ProfileError::Io { path, source: kind.into() }).code
        };
        assert_eq!(error(io::ErrorKind::StorageFull), NO_ROOM);
        assert_eq!(error(io::ErrorKind::QuotaExceeded), NO_ROOM);
        assert_eq!(error(io::ErrorKind::PermissionDenied), OTHER);
    }
}
