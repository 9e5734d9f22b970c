//! What clients do with trees by whole programs of the product: puts of files and streams, and a gateway.
//!
//! Owns which way is taken, and that each gives what it must: the capability that follows from the content,
//! and the bytes that were put. The one idea: a tree goes the same way whoever puts it again, so that it
//! meets what was begun before.

use std::{io::Cursor, ops::Range, sync::Arc, time::Duration};

use copse_client::{
    get::Downloader,
    network::Network,
    put::Uploader,
    transfer::{PutOptions, PutOutcome, PutTarget, PutTreeError, put_paths, put_stream},
    tree_read::TreeReader,
};
use copse_core::capability::Capability;

use super::{
    client::{Client, secret, session},
    folder::Unread,
    gateway::{Served, sent},
    ledger::{OPERATION_MAX, PromisedTree, WayCounts},
    local::{Folder, kept},
    made::{self, CHUNK_BYTES, Made},
    spec::Canary,
    tree::{Item, Tree, What},
};
use crate::random::Xoshiro;

/// Part of the trees that are put in the simulator's own order, from files, and from a stream; the others go
/// through a gateway.
const OWN: f64 = 0.2;
const PATHS: f64 = 0.35;
const STREAMS: f64 = 0.15;

/// Part of the looks into a tree that go through a gateway, and of the gateways that are stopped in good
/// order and not by a death.
const THROUGH: f64 = 0.3;
const STOPPED: f64 = 0.5;

/// Part of the lists of a gateway that are of what begins in some way.
const PREFIXES: f64 = 0.5;

/// Calls of a gateway are two or more of those that must end in time, one after the other: a path is looked
/// up, then a file is read; pieces are stored, then the names. A list reads one node after the other.
const CALL_MAX: Duration = OPERATION_MAX.saturating_mul(2);
const LIST_MAX: Duration = OPERATION_MAX.saturating_mul(5);

/// How a tree is put.
pub(super) enum Way {
    /// In the simulator's own order.
    Own,
    /// From files.
    Paths,
    /// A file, from a stream.
    Stream,
    /// Through a gateway on this tree.
    Gateway(Arc<PromisedTree>),
}

impl Way {
    /// How long a put by it may take.
    pub(super) const fn time_max(&self) -> Duration {
        match self {
            // It looks into the tree that it serves first.
            Self::Gateway(_) => CALL_MAX.saturating_add(OPERATION_MAX),
            _ => OPERATION_MAX,
        }
    }
}

/// How somebody looks into a tree through a gateway.
pub(super) struct Look {
    /// What begins so is listed, if anything is.
    prefix: Option<String>,
    /// Whether the gateway is stopped in good order.
    is_stopped: bool,
}

impl Client {
    /// Which way the tree with a number goes.
    pub(super) fn way(&mut self, number: u64) -> Way {
        // The bug on purpose is in the simulator's own order.
        if !self.settings.ways || self.settings.canary == Some(Canary::EarlyTrees) {
            return Way::Own;
        }
        let point = Xoshiro::new(number, "way of a tree").unit();
        let trees = self.ledger.trees();
        if point < OWN {
            Way::Own
        } else if point < OWN + PATHS || trees.is_empty() {
            Way::Paths
        } else if point < OWN + PATHS + STREAMS {
            Way::Stream
        } else {
            Way::Gateway(Arc::clone(&trees[self.rng.below(trees.len())]))
        }
    }

    /// Puts the tree with a number, as far as this way can carry it. Its session may go on with it.
    pub(super) async fn put_by(
        &self,
        way: &Way,
        network: &Network,
        number: u64,
    ) -> Result<(Uploader, PromisedTree), String> {
        let (uploader, encoder) = session(network);
        let target = PutTarget { network: network.clone(), uploader, encoder };
        let uploader = target.uploader.clone();
        let tree = Tree::of(number);
        let promised = match way {
            Way::Own | Way::Paths => self.put_files(&target, kept(tree)).await?,
            Way::Stream => self.put_one(&target, Tree::lone(number)).await?,
            Way::Gateway(one) => match sent(tree) {
                Some(tree) => self.put_through(network, one, tree).await?,
                None => self.put_one(&target, Tree::lone(number)).await?,
            },
        };
        Ok((uploader, promised))
    }

    fn count(&self, count: impl FnOnce(&mut WayCounts)) {
        count(&mut self.ledger.lock().ways);
    }

    fn put_options(&self) -> PutOptions {
        let usual = PutOptions::new(self.settings.geometry);
        PutOptions { chunk_bytes_max: Some(CHUNK_BYTES), ..usual }
    }

    /// Puts a tree from files.
    async fn put_files(&self, target: &PutTarget, tree: Tree) -> Result<PromisedTree, String> {
        // Without them there are no such worlds: the system must have room for a few files.
        let folder = Folder::new().expect("a folder for temporary files");
        let paths = folder.write(&tree).expect("room for temporary files");
        let code = self.settings.geometry;
        let made = made::of_tree(&tree, code, &secret(), |item| folder.read(&tree, item))?;
        let put = put_paths(target, paths, self.put_options(), Arc::default()).await;
        let put = put.map_err(|error| folder.hidden(&self.refused(&error)))?;
        if let Some(failure) = put.failures.listed.first() {
            return Err(self.wrong(format!("a file was left out: {}", failure.error)));
        }
        let promised = self.promised(&put, tree, made)?;
        self.count(|ways| ways.paths += 1);
        Ok(promised)
    }

    /// Puts a lone file from a stream.
    async fn put_one(&self, target: &PutTarget, tree: Tree) -> Result<PromisedTree, String> {
        let item = &tree.items[0];
        let (name, meta, content) =
            (tree.name.as_bytes().to_vec(), item.meta.clone(), item.content());
        let cut = |item: &Item| Ok(made::cut(&item.content()));
        let made = made::of_tree(&tree, self.settings.geometry, &secret(), cut)?;
        let stream = Box::new(Cursor::new(content));
        let put = put_stream(target, name, meta, stream, self.put_options(), Arc::default()).await;
        let put = put.map_err(|error| self.refused(&error))?;
        let promised = self.promised(&put, tree, made)?;
        self.count(|ways| ways.streams += 1);
        Ok(promised)
    }

    /// Puts files through a gateway on some tree.
    async fn put_through(
        &self,
        network: &Network,
        one: &PromisedTree,
        tree: Tree,
    ) -> Result<PromisedTree, String> {
        let served = self.serve(&Downloader::new(network.clone()), one).await;
        let served = served.map_err(Unread::text)?;
        let cut = |item: &Item| Ok(made::cut(&item.content()));
        let made = made::of_tree(&tree, self.settings.geometry, &secret(), cut)?;
        let (files, _, bytes) = tree.counts();
        let answer = match served.put(&tree).await {
            Ok(answer) => answer,
            Err(Unread::Wrong(wrong)) => return Err(self.wrong(wrong)),
            Err(Unread::Failed(error)) => {
                self.count(|ways| ways.gateway_failed += 1);
                return Err(error);
            }
        };
        if (answer.files, answer.bytes) != (files, bytes) {
            return Err(self.wrong(format!(
                "a gateway has put {} files with {} bytes, these were {files} with {bytes}",
                answer.files, answer.bytes
            )));
        }
        let promised = self.as_made(answer.capability, tree, made)?;
        self.count(|ways| ways.gateway_puts += 1);
        Ok(promised)
    }

    /// What an error of a put says. One of the files alone can have no cause here.
    fn refused(&self, error: &PutTreeError) -> String {
        let said = error.to_string();
        if !matches!(error, PutTreeError::Put { .. }) {
            self.ledger.note_wrong(&format!("a put of good files fails: {said}"));
        }
        said
    }

    fn promised(&self, put: &PutOutcome, tree: Tree, made: Made) -> Result<PromisedTree, String> {
        let (files, _, bytes) = tree.counts();
        if (put.kinds.files, put.bytes) != (files, bytes) {
            let said = (put.kinds.files, put.bytes);
            let put = (files, bytes);
            return Err(self.wrong(format!("{put:?} files and bytes were put, and {said:?} told")));
        }
        self.as_made(put.capability.to_string(), tree, made)
    }

    /// The capability of a tree that was put must be the one that follows from its content.
    fn as_made(&self, capability: String, tree: Tree, made: Made) -> Result<PromisedTree, String> {
        let expected = made.capability(self.settings.network);
        if capability != expected {
            return Err(self.wrong(format!("a tree was put as {capability}, and is {expected}")));
        }
        Ok(PromisedTree { capability, tree, chunks: made.chunks })
    }

    /// Notes that something is not what was put.
    pub(super) fn wrong(&self, what: String) -> String {
        self.ledger.note_wrong(&what);
        what
    }

    /// Whether a look into a tree goes through a gateway, and how. Draws nothing where there are none.
    pub(super) fn look_through(&mut self, one: &PromisedTree, lists: bool) -> Option<Look> {
        if !self.settings.ways || !self.rng.chance(THROUGH) {
            return None;
        }
        let mut prefix = None;
        if lists && one.tree.items[0].what == What::Directory {
            let items = &one.tree.items[1..];
            let begin = if items.is_empty() || !self.rng.chance(PREFIXES) {
                String::new()
            } else {
                let path = &items[self.rng.below(items.len())].path;
                let path = path.iter().map(|name| name.as_bytes()).collect::<Vec<_>>().join(&b'/');
                // What is no text cannot be asked for so.
                let path = String::from_utf8(path).unwrap_or_default();
                path.chars().take(self.rng.below(path.len() + 1)).collect()
            };
            prefix = Some(begin);
        }
        Some(Look { prefix, is_stopped: self.rng.chance(STOPPED) })
    }

    /// Lists a tree through a gateway if that is wanted, and has ranges of some of its files described and
    /// read.
    pub(super) async fn look_through_gateway(
        &self,
        reader: &Downloader,
        one: &PromisedTree,
        look: &Look,
        wanted: &[(&Item, Range<usize>)],
    ) -> Result<(), Unread> {
        let looked = async {
            let served = self.serve(reader, one).await?;
            if let Some(prefix) = &look.prefix {
                self.call("a list of a gateway", LIST_MAX, served.list(&one.tree, prefix)).await?;
                self.count(|ways| ways.gateway_lists += 1);
            }
            for (item, range) in wanted {
                self.call("a look-up of a gateway", OPERATION_MAX, served.stat(item)).await?;
                self.count(|ways| ways.gateway_stats += 1);
                self.read_through(&served, item, range).await?;
                self.count(|ways| ways.gateway_reads += 1);
            }
            if look.is_stopped {
                let stop = async { served.stop().await.map_err(Unread::Failed) };
                self.call("the stop of a gateway", OPERATION_MAX, stop).await?;
                self.count(|ways| ways.gateway_stops += 1);
            }
            Ok(())
        };
        let looked = looked.await;
        match &looked {
            Ok(()) => {}
            Err(Unread::Failed(_)) => self.count(|ways| ways.gateway_failed += 1),
            Err(Unread::Wrong(wrong)) => self.ledger.note_wrong(wrong),
        }
        looked
    }

    /// Reads all of a tree through a gateway, and stops it.
    pub(super) async fn read_all_through(
        &self,
        network: &Network,
        one: &PromisedTree,
    ) -> Result<(), Unread> {
        let is_directory = one.tree.items[0].what == What::Directory;
        let look = Look { prefix: is_directory.then(String::new), is_stopped: true };
        let all: Vec<(&Item, Range<usize>)> =
            one.tree.files().into_iter().map(|item| (item, 0..item.bytes())).collect();
        self.look_through_gateway(&Downloader::new(network.clone()), one, &look, &all).await
    }

    async fn read_through(
        &self,
        served: &Served,
        item: &Item,
        range: &Range<usize>,
    ) -> Result<(), Unread> {
        let mut bytes = Vec::new();
        let reading = served.read(item, range, &mut bytes);
        let read = self.call("a read of a gateway", CALL_MAX, reading).await;
        if self.settings.canary == Some(Canary::SmudgedGateway)
            && let Some(byte) = bytes.last_mut()
        {
            *byte ^= 1;
        }
        // Also what came before an error is right.
        item.begins(range, &bytes).map_err(Unread::Wrong)?;
        read?;
        item.is(range, &bytes).map_err(Unread::Wrong)
    }

    /// Starts a gateway on a tree, in this process.
    async fn serve(&self, reader: &Downloader, one: &PromisedTree) -> Result<Served, Unread> {
        let capability: Capability =
            one.capability.parse().map_err(|error| Unread::Wrong(format!("{error}")))?;
        let tree = TreeReader::new(reader.clone(), &capability);
        let tree = tree.map_err(|error| Unread::Failed(error.to_string()))?;
        let start = Served::start(tree, self.settings.geometry, secret());
        let start = async { start.await.map_err(Unread::Failed) };
        self.call("the start of a gateway", OPERATION_MAX, start).await
    }

    /// What a call gave, which must end in so much time.
    async fn call<T>(
        &self,
        what: &str,
        most: Duration,
        call: impl Future<Output = Result<T, Unread>>,
    ) -> Result<T, Unread> {
        let what = format!("client {}: {what}", self.name);
        let call = async { Ok::<_, String>(call.await) };
        self.ledger.within(most, &what, call).await.map_err(Unread::Failed)?
    }
}
