//! What names a tree or a network on the command line: a capability or token, or `@` and the file that has it.
//!
//! Owns the form of that argument. Does not read the capability itself. The one idea: both are keys, and an
//! argument is seen by every user of the machine and kept by the shell, so it need not be one.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read as _},
    os::unix::ffi::OsStrExt as _,
};

use crate::exit::{CliError, USAGE};

/// Bytes of such a file, at most: a capability has some hundred, a path below it up to 4096.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A capability as it was given, and the path behind it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Given {
    /// What should be a capability.
    pub(crate) text: String,
    /// The path in its tree, of any bytes.
    pub(crate) below: Vec<u8>,
}

impl Given {
    /// Reads `CAPABILITY`, `CAPABILITY/some/path`, `@FILE` or `@FILE:/some/path`; `@-` is standard input.
    ///
    /// # Errors
    /// When the file cannot be read, or what should be a capability is no text.
    pub(crate) fn read(argument: &OsStr) -> Result<Self, CliError> {
        let Some(file) = argument.as_bytes().strip_prefix(b"@") else {
            return Self::split(argument.as_bytes());
        };
        let path_at = file.windows(2).position(|two| two == b":/");
        let (file, below) = match path_at {
            Some(at) => (&file[..at], &file[at + 1..]),
            None => (file, &b""[..]),
        };
        let bytes = content(OsStr::from_bytes(file), "capability")?;
        let mut given = Self::split(bytes.trim_ascii())?;
        given.below.extend_from_slice(below);
        Ok(given)
    }

    fn split(bytes: &[u8]) -> Result<Self, CliError> {
        let at = bytes.iter().position(|byte| *byte == b'/').unwrap_or(bytes.len());
        let (text, below) = bytes.split_at(at);
        let text = std::str::from_utf8(text)
            .map_err(|_| CliError::new(USAGE, "what should be a capability is not text"))?;
        Ok(Self { text: text.to_owned(), below: below.to_vec() })
    }
}

/// Reads a token as it is given: itself, or `@FILE`, which is as secret.
///
/// # Errors
/// When the file cannot be read, or what should be a token is no text.
pub(crate) fn token(argument: &OsStr) -> Result<String, CliError> {
    let bytes = match argument.as_bytes().strip_prefix(b"@") {
        None => argument.as_bytes().to_vec(),
        Some(file) => content(OsStr::from_bytes(file), "token")?,
    };
    String::from_utf8(bytes.trim_ascii().to_vec())
        .map_err(|_| CliError::new(USAGE, "what should be a token is not text"))
}

/// What is in a file, or on standard input for `-`.
fn content(file: &OsStr, what: &str) -> Result<Vec<u8>, CliError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match file == "-" {
            true => io::stdin().take(FILE_BYTES_MAX).read_to_end(&mut bytes)?,
            false => File::open(file)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?,
        };
        Ok(bytes)
    };
    read().map_err(|error| {
        let name = file.display();
        CliError::new(USAGE, format!("cannot read the {what} in {name}: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, io::Write as _};

    use super::*;

    fn given(argument: &[u8]) -> (String, Vec<u8>) {
        let Given { text, below } = Given::read(OsStr::from_bytes(argument)).expect("can be read");
        (text, below)
    }

    #[test]
    fn a_path_behind_a_capability_is_of_any_bytes() {
        assert_eq!(given(b"copse1r"), ("copse1r".into(), vec![]));
        assert_eq!(given(b"copse1r/a/\xff"), ("copse1r".into(), b"/a/\xff".to_vec()));
        assert!(Given::read(OsStr::from_bytes(b"\xff/a")).is_err());
    }

    #[test]
    fn a_file_has_the_capability_so_that_no_argument_does() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        writeln!(file, " copse1r/photos ").expect("writable");
        let mut argument = OsString::from("@");
        argument.push(file.path());
        assert_eq!(given(argument.as_bytes()), ("copse1r".into(), b"/photos".to_vec()));
        argument.push(":/2026/a");
        assert_eq!(given(argument.as_bytes()), ("copse1r".into(), b"/photos/2026/a".to_vec()));
        let error = Given::read(OsStr::new("@/nowhere/at/all")).expect_err("no such file");
        assert!(error.message.contains("/nowhere/at/all"), "{}", error.message);
    }
}
