//! How the content of a file is cut: into chunks of its own, and what is too little for one.
//!
//! Owns the two sizes. Reads and stores nothing. The one idea: whoever puts the same content with the same
//! sizes makes the same chunks.

use copse_core::{geometry::Geometry, layout::Layout, limits::PACKED_BYTES_MAX};

/// Part of a chunk that is too little for a chunk of its own, where chunks are smaller than they may be: about
/// that of 1 MiB in 8 MiB.
const PACKED_PART: usize = 8;

/// How a file is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Plaintext of a full chunk, in bytes.
    pub(crate) chunk_bytes: usize,
    /// What is left at the end of a file is packed if it has no more bytes than this.
    pub(crate) packed_bytes_max: usize,
}

impl Cut {
    /// Chunks of this code, as large as they may be; of at most so many bytes if that is told.
    pub(crate) fn new(geometry: Geometry, chunk_bytes_max: Option<usize>) -> Self {
        let largest = Layout::largest(geometry).plaintext_bytes_max();
        match chunk_bytes_max {
            None => Self { chunk_bytes: largest, packed_bytes_max: PACKED_BYTES_MAX },
            Some(bytes) => {
                let chunk_bytes = bytes.clamp(1, largest);
                let packed_bytes_max = PACKED_BYTES_MAX.min(chunk_bytes / PACKED_PART);
                Self { chunk_bytes, packed_bytes_max }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_as_large_as_they_may_be_unless_told_otherwise() {
        let geometry: Geometry = "6+4".parse().expect("a geometry");
        let largest = Layout::largest(geometry).plaintext_bytes_max();
        let check = |told: Option<usize>, chunk_bytes: usize, packed_bytes_max: usize| {
            assert_eq!(Cut::new(geometry, told), Cut { chunk_bytes, packed_bytes_max });
        };
        check(None, largest, PACKED_BYTES_MAX);
        check(Some(64 << 10), 64 << 10, 8 << 10);
        check(Some(usize::MAX), largest, largest / 8);
        check(Some(0), 1, 0);
    }
}
