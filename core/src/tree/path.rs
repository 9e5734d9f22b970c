//! Splitting what a user writes behind a capability, `/a/b/c`, into names.
//!
//! Owns the rule: bytes, `/` between names, repeated slashes count once. Refuses `.` and `..`: there
//! is nothing above the root of a capability, and a path has one spelling.

use super::entry::{Name, NameError, printable};

/// Names of a path, at most: as deep as PATH_MAX of Linux allows with one-letter names.
pub const PATH_NAMES_MAX: usize = 2048;

/// Why bytes are no path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `.` or `..` in it.
    #[error(
        "the path {path} has {dots:?} in it: write the path from the root of the tree, as `ls` shows it"
    )]
    Dots {
        /// The path, printable.
        path: String,
        /// Which.
        dots: &'static str,
    },
    /// A part is no name.
    #[error("the path {path} is no path in a tree: {source}")]
    Name {
        /// The path, printable.
        path: String,
        /// What is wrong with the part.
        #[source]
        source: NameError,
    },
    /// Too many names.
    #[error("the path has {got} names: at most {PATH_NAMES_MAX} are allowed")]
    TooDeep {
        /// How many.
        got: usize,
    },
}

/// The names of a path, outermost first. Empty for the root itself.
///
/// # Errors
/// When a part is `.`, `..` or no name, or there are too many.
pub fn split(path: &[u8]) -> Result<Vec<Name>, PathError> {
    let parts = || path.split(|&byte| byte == b'/').filter(|part| !part.is_empty());
    let got = parts().count();
    if got > PATH_NAMES_MAX {
        return Err(PathError::TooDeep { got });
    }
    parts()
        .map(|part| match part {
            b"." => Err(PathError::Dots { path: printable(path), dots: "." }),
            b".." => Err(PathError::Dots { path: printable(path), dots: ".." }),
            _ => {
                Name::new(part).map_err(|source| PathError::Name { path: printable(path), source })
            }
        })
        .collect()
}

/// The path as text, for messages: `/` for the root.
pub fn display(path: &[Name]) -> String {
    match path {
        [] => "/".to_owned(),
        names => names.iter().map(|name| format!("/{name}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &[u8], expected: &[&[u8]]) {
        let names = split(path).expect("a path");
        assert_eq!(names.iter().map(Name::as_bytes).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn slashes_part_names_and_repeated_ones_count_once() {
        check(b"", &[]);
        check(b"///", &[]);
        check(b"/a//b/", &[b"a", b"b"]);
        check(b"a/\xff\n/...", &[b"a", b"\xff\n", b"..."]);
        assert_eq!(display(&split(b"//a/b").expect("a path")), "/a/b");
        assert_eq!(display(&[]), "/");
    }

    #[test]
    fn dots_long_names_and_nul_are_refused_with_the_path() {
        let error = split(b"/a/../b").expect_err("goes up");
        assert!(error.to_string().contains("/a/../b"), "{error}");
        for wrong in [&b"."[..], b"a/./b", b"a\0b", &[b'x'; 256], &b"a/".repeat(2049)] {
            assert!(split(wrong).is_err(), "{wrong:?} was taken for a path");
        }
    }
}
