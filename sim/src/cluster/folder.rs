//! Trees of a client: put, listed, and read, whole or by ranges.
//!
//! Owns when something is done with a tree, and the order of some of the puts, which is that of the product's
//! own where files come from a disk: pieces are chunks on their way while the tree is written, and it is
//! acknowledged when each chunk is safe. What makes, stores and reads is the product's; whole programs of it
//! are in [`ways`](super::ways). Whether what came back is right is asked of [`tree`](super::tree).

use std::{collections::BTreeSet, ops::Range, pin::pin, sync::Arc};

use copse_client::{
    content::{Block, FileReader},
    encode::{Encoder, PreparedChunk},
    get::Downloader,
    network::Network,
    put::{Ticket, Uploader},
    tree_read::TreeReader,
};
use copse_core::{
    capability::Capability,
    chunk::EncodedChunk,
    geometry::Geometry,
    manifest::ChunkRef,
    tree::{Entry, TreeWriter},
};
use futures::StreamExt as _;

use super::{
    check::{Broken, Promise},
    client::{AGAIN, Client, Settings, session},
    ledger::PromisedTree,
    made::reference,
    spec::Canary,
    tree::{self, Item, Part, Tree, What},
    ways::Way,
};

/// Files of a tree that are read, when not all are; and part of these that are read whole.
const FILES_READ: usize = 2;
const WHOLE: f64 = 0.3;

/// Part of the looks into a tree that list it, the others go to a file by its path.
const LISTINGS: f64 = 0.5;

/// Why something was not read.
#[derive(Debug)]
pub(super) enum Unread {
    /// It is not what was put.
    Wrong(String),
    /// Nothing came, or not all.
    Failed(String),
}

impl Unread {
    /// Why, in words.
    pub(super) fn text(self) -> String {
        match self {
            Self::Wrong(why) | Self::Failed(why) => why,
        }
    }

    /// Which promise that breaks when all is calm.
    pub(super) fn broken(self) -> Broken {
        match self {
            Self::Wrong(wrong) => Broken::new(Promise::Integrity, wrong),
            Self::Failed(error) => Broken::new(Promise::Durability, error),
        }
    }
}

impl Client {
    /// Puts a tree, mostly a new one.
    pub(super) async fn put_some_tree(&mut self, network: &Network) {
        let mut number = self.rng.next_u64();
        {
            let mut ledger = self.ledger.lock();
            if !ledger.begun_trees.is_empty() && self.rng.chance(AGAIN) {
                number = ledger.begun_trees[self.rng.below(ledger.begun_trees.len())];
            } else {
                ledger.begun_trees.push(number);
            }
        }
        let name = self.name;
        let way = self.way(number);
        let stored = async {
            let (uploader, promised) = match &way {
                Way::Own => {
                    let (uploader, encoder) = session(network);
                    let put = Put::new(uploader, encoder, &self.settings);
                    put.all(network, Tree::of(number)).await?
                }
                way => self.put_by(way, network, number).await?,
            };
            let (items, chunks) = (promised.tree.items.len(), promised.chunks.len());
            self.trace
                .note(format_args!("client {name}: put a tree of {items} in {chunks} chunks"));
            self.ledger.acknowledged_tree(promised, &self.settings.scene);
            drop(uploader.flush().await);
            Ok::<_, String>(())
        };
        let what = format!("the put of a tree of client {name}");
        if let Err(error) = self.ledger.within(way.time_max(), &what, stored).await {
            self.trace.note(format_args!("client {name}: put of a tree failed: {error}"));
            self.ledger.lock().work.puts_failed += 1;
        }
    }

    /// Looks into some tree: lists it, or goes to some of its files, and reads these or parts of them.
    pub(super) async fn read_some_tree(&mut self, reader: &Downloader) {
        let trees = self.ledger.trees();
        if trees.is_empty() {
            return;
        }
        let one = Arc::clone(&trees[self.rng.below(trees.len())]);
        let lists = self.rng.chance(LISTINGS);
        let files = one.tree.files();
        let mut wanted = Vec::new();
        for _ in 0..FILES_READ.min(files.len()) {
            let item = files[self.rng.below(files.len())];
            let whole = self.rng.chance(WHOLE);
            let bytes = item.bytes();
            let some = tree::some_range(&mut self.rng, bytes, &item.borders());
            wanted.push((item, if whole { 0..bytes } else { some }));
        }
        let through = self.look_through(&one, lists);
        let scene = &self.settings.scene;
        let watched: Vec<(u64, usize)> =
            one.chunks.iter().map(|chunk| (scene.begin(chunk.id), chunk.geometry.data())).collect();
        let read = match &through {
            Some(look) => self.look_through_gateway(reader, &one, look, &wanted).await,
            None => self.look_into(reader, &one, lists, &wanted).await,
        };
        // As with single chunks, what a killed client leaves behind is harmless.
        let within_reach =
            watched.into_iter().filter(|(number, needed)| scene.end(*number) >= *needed);
        let all_within_reach = within_reach.count() == one.chunks.len();
        if let Err(Unread::Failed(error)) = read {
            let name = self.name;
            self.trace.note(format_args!("client {name}: cannot read a tree: {error}"));
            if self.settings.storm_from.is_some() && all_within_reach {
                self.ledger.note_refused(format!(
                    "client {name}: {error}; enough shards of every chunk of the tree were within reach"
                ));
            }
        }
    }

    /// Lists a tree and reads all that is in it.
    pub(super) async fn read_tree(
        &self,
        network: &Network,
        one: &PromisedTree,
    ) -> Result<(), Unread> {
        let reader = Downloader::new(network.clone());
        let files: Vec<(&Item, Range<usize>)> =
            one.tree.files().into_iter().map(|item| (item, 0..item.bytes())).collect();
        self.look_into(&reader, one, true, &files).await
    }

    /// Lists a tree if that is wanted, and reads ranges of some of its files, which are looked up by
    /// their paths. What is wrong is noted, whatever fails later.
    async fn look_into(
        &self,
        reader: &Downloader,
        one: &PromisedTree,
        lists: bool,
        wanted: &[(&Item, Range<usize>)],
    ) -> Result<(), Unread> {
        let looked = async {
            let failed = |error: String| Unread::Failed(error);
            let capability: Capability =
                one.capability.parse().map_err(|error| Unread::Wrong(format!("{error}")))?;
            let tree = TreeReader::new(reader.clone(), &capability)
                .map_err(|error| failed(error.to_string()))?;
            if lists {
                self.counted(self.list(&tree, &one.tree).await)?;
            }
            for (item, range) in wanted {
                self.counted(self.read_file(&tree, &one.tree, item, range).await)?;
            }
            Ok(())
        };
        let looked = looked.await;
        if let Err(Unread::Wrong(wrong)) = &looked {
            self.ledger.note_wrong(wrong);
        }
        looked
    }

    fn counted(&self, read: Result<(), Unread>) -> Result<(), Unread> {
        let work = &mut self.ledger.lock().work;
        work.reads += 1;
        work.reads_failed += u64::from(matches!(read, Err(Unread::Failed(_))));
        read
    }

    /// Each step of the walk must end in time: it is a node or two that are read.
    async fn list(&self, reader: &TreeReader, tree: &Tree) -> Result<(), Unread> {
        let what = format!("client {}: a step through a tree", self.name);
        let root = self.ledger.in_time(&what, reader.root()).await.map_err(Unread::Failed)?;
        let mut walk = pin!(reader.walk(root));
        let mut listing = tree.listing();
        loop {
            let step = async { walk.next().await.transpose() };
            match self.ledger.in_time(&what, step).await.map_err(Unread::Failed)? {
                Some(met) => drop(listing.met(&met).map_err(Unread::Wrong)?),
                None => return listing.end().map_err(Unread::Wrong),
            }
        }
    }

    async fn read_file(
        &self,
        reader: &TreeReader,
        tree: &Tree,
        item: &Item,
        range: &Range<usize>,
    ) -> Result<(), Unread> {
        let what = format!("client {}: the look-up of a file", self.name);
        let found = reader.lookup(item.path.clone());
        let entry = self.ledger.in_time(&what, found).await.map_err(Unread::Failed)?;
        tree.is(item, &entry).map_err(Unread::Wrong)?;
        let mut bytes = Vec::new();
        let what = format!("client {}: a read of a file", self.name);
        let reading = self.read_range(reader, &entry, range, &mut bytes);
        let read = self.ledger.in_time(&what, reading).await;
        if self.settings.canary == Some(Canary::SmudgedReads)
            && let Some(byte) = bytes.last_mut()
        {
            *byte ^= 1;
        }
        // Also what came before an error is right.
        item.begins(range, &bytes).map_err(Unread::Wrong)?;
        read.map_err(Unread::Failed)?;
        item.is(range, &bytes).map_err(Unread::Wrong)
    }

    async fn read_range(
        &self,
        reader: &TreeReader,
        entry: &Entry,
        range: &Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), String> {
        let wanted = range.start as u64..range.end as u64;
        let reading = FileReader::new(reader.downloader().clone(), entry, wanted);
        let mut reading = reading.map_err(|error| error.to_string())?;
        while let Some(block) = reading.next().await.map_err(|error| error.to_string())? {
            match block {
                Block::Data(data) => bytes.extend_from_slice(&data),
                Block::Hole(zeros) => {
                    let zeros = usize::try_from(zeros).unwrap_or(usize::MAX);
                    bytes.resize(bytes.len().saturating_add(zeros).min(range.len() + 1), 0);
                }
            }
        }
        Ok(())
    }
}

/// A put under way.
struct Put {
    uploader: Uploader,
    encoder: Encoder,
    geometry: Geometry,
    forgets_last: bool,
    writer: TreeWriter,
    chunks: BTreeSet<ChunkRef>,
    tickets: Vec<Ticket>,
}

impl Put {
    fn new(uploader: Uploader, encoder: Encoder, settings: &Settings) -> Self {
        let geometry = settings.geometry;
        let forgets_last = settings.canary == Some(Canary::EarlyTrees);
        let writer = TreeWriter::new(geometry, encoder.secret().clone());
        let (chunks, tickets) = (BTreeSet::new(), Vec::new());
        Self { uploader, encoder, geometry, forgets_last, writer, chunks, tickets }
    }

    /// Stores a tree until it is safe.
    async fn all(
        mut self,
        network: &Network,
        tree: Tree,
    ) -> Result<(Uploader, PromisedTree), String> {
        let mut open = 0;
        for item in &tree.items {
            while open > item.path.len() {
                self.writer.end_directory().map_err(text)?;
                open -= 1;
            }
            let name = item.path.last().unwrap_or(&tree.name).as_bytes();
            let meta = item.meta.clone();
            match &item.what {
                What::Directory => {
                    self.writer.begin_directory(name, meta).map_err(text)?;
                    open += 1;
                }
                What::Link(target) => self.writer.add_symlink(name, meta, target).map_err(text)?,
                What::File(parts) => {
                    self.writer.begin_file(name, meta).map_err(text)?;
                    for part in parts {
                        self.part(*part).await?;
                    }
                    self.writer.end_file().map_err(text)?;
                }
            }
            let packs = self.writer.take_chunks();
            self.packs(packs).await;
        }
        for _ in 0..open {
            self.writer.end_directory().map_err(text)?;
        }
        let empty = TreeWriter::new(self.geometry, self.encoder.secret().clone());
        let finished = std::mem::replace(&mut self.writer, empty).finish().map_err(text)?;
        if !self.forgets_last {
            self.packs(finished.chunks).await;
        }
        for ticket in self.tickets {
            ticket.await.map_err(text)?;
        }
        let capability = Capability::read(network.id(), finished.root).to_string();
        Ok((self.uploader, PromisedTree { capability, tree, chunks: self.chunks }))
    }

    async fn part(&mut self, part: Part) -> Result<(), String> {
        match part {
            Part::Chunk { .. } => {
                let mut buffer = self.encoder.plaintext().await;
                buffer.extend_from_slice(&part.bytes());
                let encoded = self.encoder.bulk(self.geometry, buffer).await;
                let (chunk, extent) = encoded.map_err(text)?;
                self.chunks.insert(ChunkRef::from(&extent));
                self.submit(chunk).await;
                self.writer.push_extent(extent).map_err(text)
            }
            Part::Packed { .. } => self.writer.push_bytes(&part.bytes()).map_err(text),
            Part::Hole { bytes } => self.writer.push_hole(bytes as u64).map_err(text),
        }
    }

    async fn packs(&mut self, packs: Vec<EncodedChunk>) {
        for pack in packs {
            self.chunks.insert(reference(&pack));
            let pack = self.encoder.budget().admit(pack).await;
            self.submit(pack).await;
        }
    }

    async fn submit(&mut self, chunk: PreparedChunk) {
        self.tickets.push(self.uploader.submit(chunk).await);
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}
