//! The user's own file system: walking it in tree order, reading files with their holes, writing
//! them back.
//!
//! Blocking code: it is called from threads of its own, never from the async runtime. Nothing here
//! knows the network.

mod read;
mod restore;
mod scan;

pub use read::{FileIdentity, FileReader, ReadFileError, Segment, hole_bytes};
pub use restore::{Restore, RestoreError, RestoredFile};
pub use scan::{LocalEntry, LocalKind, Metadata, ScanError, children, entry_at};
