//! Writing a whole tree: names, contents and ends of directories in, chunks and a root out.
//!
//! Owns the stack of open directories and the open file. Refuses what would make a wrong tree: names
//! out of order, calls out of turn. One idea: the same calls under the same secret give the same
//! chunks, so that putting unchanged data again sends nothing.

use super::{
    content::ContentBuilder,
    dir::{Cutter, DirectoryBuilder, OrderError, places},
    entry::{
        ATTRIBUTES_BYTES_MAX, Counts, Entry, Kind, MODE_MAX, Meta, Name, NameError, is_target,
    },
    node::{attributes_bytes, encode_root},
    pack::{PackError, PackWriter, Place},
    path::PATH_NAMES_MAX,
};
use crate::{
    chunk::EncodedChunk, extent::Extent, geometry::Geometry, limits::SYMLINK_BYTES_MAX,
    seal::ConvergenceSecret,
};

/// Why something could not be added to a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Names out of order.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// The mode is over [`MODE_MAX`].
    #[error("the mode {0:o} has bits over {MODE_MAX:o}: pass the permission bits alone")]
    Mode(u32),
    /// Too many bytes of attributes.
    #[error("{0} bytes of attributes: at most {ATTRIBUTES_BYTES_MAX} are kept")]
    Attributes(usize),
    /// Not the target of a link.
    #[error("a link's target must have 1 to {SYMLINK_BYTES_MAX} bytes and no NUL; this has {0}")]
    Target(usize),
    /// Directories in directories without end.
    #[error("more than {PATH_NAMES_MAX} directories inside each other")]
    TooDeep,
    /// A call that makes no sense now: the caller's mistake.
    #[error("{0}")]
    OutOfTurn(&'static str),
    /// Content could not be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// A tree that is complete.
#[derive(Debug)]
pub struct Finished {
    /// Where the root item is: what a capability holds.
    pub root: Extent,
    /// How much is in the tree, the root included.
    pub counts: Counts,
    /// The last chunks, to be stored like all before.
    pub chunks: Vec<EncodedChunk>,
}

/// Builds a tree, depth first, the names of each directory in ascending order of their bytes.
///
/// The first thing added is the root, whose name alone may be empty; a tree may be one file. Take
/// the chunks after each call: the writer keeps them until then, and beside them only what is open,
/// which is one pack and one node per level of each open directory.
///
/// Equal small files are packed twice: finding them would take memory for every one.
pub struct TreeWriter {
    pack: PackWriter,
    cutter: Cutter,
    directories: Vec<OpenDirectory>,
    file: Option<OpenFile>,
    root: Option<(Place, Counts)>,
}

struct OpenDirectory {
    name: Name,
    meta: Meta,
    builder: DirectoryBuilder,
}

struct OpenFile {
    name: Name,
    meta: Meta,
    builder: ContentBuilder,
}

impl TreeWriter {
    /// An empty tree. Packs get `geometry`, items are sealed under `secret`.
    pub fn new(geometry: Geometry, secret: ConvergenceSecret) -> Self {
        let cutter = Cutter::new(&secret);
        Self {
            pack: PackWriter::new(geometry, secret),
            cutter,
            directories: Vec::new(),
            file: None,
            root: None,
        }
    }

    /// Opens a directory in the open one.
    ///
    /// # Errors
    /// When name or metadata are not allowed, or it is not the turn.
    pub fn begin_directory(&mut self, name: &[u8], meta: Meta) -> Result<(), TreeError> {
        if self.directories.len() == PATH_NAMES_MAX {
            return Err(TreeError::TooDeep);
        }
        let name = self.claim(name, &meta)?;
        let builder = DirectoryBuilder::new(self.cutter.clone());
        self.directories.push(OpenDirectory { name, meta, builder });
        Ok(())
    }

    /// Closes the directory opened last.
    ///
    /// # Errors
    /// When none is open or a file is, or a pack cannot be encoded.
    pub fn end_directory(&mut self) -> Result<(), TreeError> {
        self.no_file()?;
        let Some(OpenDirectory { name, meta, builder }) = self.directories.pop() else {
            return Err(TreeError::OutOfTurn("there is no open directory to end"));
        };
        let (root, counts) = builder.finish(&mut self.pack)?;
        self.add(Entry { name, meta, kind: Kind::Directory { root, counts } })
    }

    /// Opens a file in the open directory. Its content follows in order, by
    /// [`push_extent`](Self::push_extent), [`push_bytes`](Self::push_bytes) and
    /// [`push_hole`](Self::push_hole).
    ///
    /// # Errors
    /// When name or metadata are not allowed, or it is not the turn.
    pub fn begin_file(&mut self, name: &[u8], meta: Meta) -> Result<(), TreeError> {
        let name = self.claim(name, &meta)?;
        self.file = Some(OpenFile { name, meta, builder: ContentBuilder::default() });
        Ok(())
    }

    /// The next bytes of the open file are an item that is sealed already: a bulk chunk.
    ///
    /// # Errors
    /// When no file is open, or a pack cannot be encoded.
    pub fn push_extent(&mut self, extent: Extent) -> Result<(), TreeError> {
        let (file, pack) = self.open_file()?;
        Ok(file.builder.extent(extent, pack)?)
    }

    /// The next bytes of the open file, at most [`crate::limits::PACKED_BYTES_MAX`]. They are
    /// packed; or inline, when they are few and all of the file.
    ///
    /// # Errors
    /// When no file is open, they are too many, or a pack cannot be encoded.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        let (file, pack) = self.open_file()?;
        Ok(file.builder.bytes(bytes, pack)?)
    }

    /// The next bytes of the open file are so many zeros, which are stored nowhere.
    ///
    /// # Errors
    /// When no file is open, or a pack cannot be encoded.
    pub fn push_hole(&mut self, bytes: u64) -> Result<(), TreeError> {
        let (file, pack) = self.open_file()?;
        Ok(file.builder.hole(bytes, pack)?)
    }

    /// Closes the open file; tells its size.
    ///
    /// # Errors
    /// When no file is open, or a pack cannot be encoded.
    pub fn end_file(&mut self) -> Result<u64, TreeError> {
        let Some(OpenFile { name, meta, builder }) = self.file.take() else {
            return Err(TreeError::OutOfTurn("there is no open file to end"));
        };
        let (size, content) = builder.finish(&mut self.pack)?;
        self.add(Entry { name, meta, kind: Kind::File { size, content } })?;
        Ok(size)
    }

    /// Forgets the open file, for example because it could not be read to its end. What was packed
    /// of it stays in its pack, unused. Its name is spent: it cannot be added again.
    ///
    /// # Errors
    /// When no file is open.
    pub fn abandon_file(&mut self) -> Result<(), TreeError> {
        match self.file.take() {
            Some(_) => Ok(()),
            None => Err(TreeError::OutOfTurn("there is no open file to abandon")),
        }
    }

    /// Adds a whole small file, at most [`crate::limits::PACKED_BYTES_MAX`].
    ///
    /// # Errors
    /// As [`begin_file`](Self::begin_file) and [`push_bytes`](Self::push_bytes); then there is no
    /// open file.
    pub fn add_file(&mut self, name: &[u8], meta: Meta, content: &[u8]) -> Result<(), TreeError> {
        self.begin_file(name, meta)?;
        if let Err(error) = self.push_bytes(content) {
            self.abandon_file()?;
            return Err(error);
        }
        self.end_file().map(drop)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// When name, metadata or target are not allowed, or it is not the turn.
    pub fn add_symlink(&mut self, name: &[u8], meta: Meta, target: &[u8]) -> Result<(), TreeError> {
        if !is_target(target) {
            return Err(TreeError::Target(target.len()));
        }
        let name = self.claim(name, &meta)?;
        self.add(Entry { name, meta, kind: Kind::Symlink { target: target.to_vec() } })
    }

    /// The chunks completed since the last call, to be stored in any order. None is needed again
    /// here.
    pub fn take_chunks(&mut self) -> Vec<EncodedChunk> {
        self.pack.take_chunks()
    }

    /// Gives the memory of a stored chunk back for the next one.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.pack.recycle(buffer);
    }

    /// The secret under which items are sealed, for the bulk chunks of the same tree.
    pub fn secret(&self) -> &ConvergenceSecret {
        self.pack.secret()
    }

    /// Ends the tree. Its chunks must all be stored before the root is worth anything.
    ///
    /// # Errors
    /// When there is no root, something is still open, or a pack cannot be encoded.
    pub fn finish(mut self) -> Result<Finished, TreeError> {
        self.no_file()?;
        if !self.directories.is_empty() {
            return Err(TreeError::OutOfTurn("a directory is still open: end it first"));
        }
        self.pack.close()?;
        let (root, counts) = self
            .root
            .take()
            .and_then(|(place, counts)| Some((place.extent()?, counts)))
            .ok_or(TreeError::OutOfTurn("the tree is empty: add a root first"))?;
        Ok(Finished { root, counts, chunks: self.pack.take_chunks() })
    }

    fn no_file(&self) -> Result<(), TreeError> {
        match &self.file {
            Some(_) => Err(TreeError::OutOfTurn("a file is still open: end it first")),
            None => Ok(()),
        }
    }

    fn open_file(&mut self) -> Result<(&mut OpenFile, &mut PackWriter), TreeError> {
        match &mut self.file {
            Some(file) => Ok((file, &mut self.pack)),
            None => Err(TreeError::OutOfTurn("there is no open file: begin one first")),
        }
    }

    /// Checks that something of this name may be added now.
    fn claim(&mut self, name: &[u8], meta: &Meta) -> Result<Name, TreeError> {
        self.no_file()?;
        check_meta(meta)?;
        match self.directories.last_mut() {
            Some(directory) => {
                let name = Name::new(name)?;
                directory.builder.check(&name)?;
                directory.builder.claim(&name, &mut self.pack)?;
                Ok(name)
            }
            None if self.root.is_some() => {
                Err(TreeError::OutOfTurn("the tree has a root already, and it is complete"))
            }
            None => Ok(Name::of_root(name)?),
        }
    }

    fn add(&mut self, entry: Entry<Place>) -> Result<(), TreeError> {
        match self.directories.last_mut() {
            Some(directory) => directory.builder.push(entry),
            None => {
                let place = self.pack.node(places(&entry), |at| encode_root(&entry, at))?;
                self.root = Some((place, entry.counts()));
            }
        }
        Ok(())
    }
}

fn check_meta(meta: &Meta) -> Result<(), TreeError> {
    if meta.mode > MODE_MAX {
        return Err(TreeError::Mode(meta.mode));
    }
    match attributes_bytes(&meta.attributes).len() {
        got if got > ATTRIBUTES_BYTES_MAX => Err(TreeError::Attributes(got)),
        _ => Ok(()),
    }
}
