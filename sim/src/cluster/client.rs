//! Those who put and read: real clients, which are stopped and begin anew.
//!
//! Owns the life of a client and its single chunks. Whatever is read, at any time, must be what was
//! put, or nothing. Trees are the business of [`folder`](super::folder) and [`ways`](super::ways), checks that of
//! [`checkup`](super::checkup).

use std::{net::SocketAddr, ops::Range, sync::Arc, time::Duration};

use copse_client::{
    connect::Connector,
    encode::{Budget, Encoder},
    error::PutError,
    get::Downloader,
    network::Network,
    profile::Door,
    put::{PutOptions, Uploader},
};
use copse_core::{
    directory::Directory, extent::Extent, geometry::Geometry, ids::NetworkId,
    seal::ConvergenceSecret,
};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    ledger::{Ledger, Promised},
    net::Net,
    scene::Scene,
    size,
    spec::Canary,
    stream::Dialler,
    trace::Trace,
    tree::{self, content},
};
use crate::random::Xoshiro;

/// Between two reads of a client in a storm, on average.
const PAUSE_IN_STORM: Duration = Duration::from_millis(50);

/// Part of the puts that were begun before.
pub(super) const AGAIN: f64 = 0.25;

/// Part of what a client does that is about trees and checks, where there are any; of that, what it
/// puts and what it checks. In a storm it only reads.
const WITH_TREES: f64 = 0.1;
/// The same where the product's own programs do it.
const WITH_WAYS: f64 = 0.15;
const TREES_PUT: f64 = 0.3;
const CHECKS: f64 = 0.15;

/// Part of the reads of single chunks that are of a range, where there are trees.
const RANGES: f64 = 0.5;

/// Memory of one client for chunks on their way.
const BUDGET_BYTES: usize = 4 << 20;

/// What all clients of a world have in common.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) network: NetworkId,
    pub(super) doors: Vec<Door>,
    pub(super) geometry: Geometry,
    pub(super) largest_bytes: usize,
    /// Read without a pause from this moment on, with a reader that remembers what it learned, and
    /// hold every read to it that enough shards are within reach.
    pub(super) storm_from: Option<Duration>,
    pub(super) scene: Scene,
    /// Whether what a client had under way dies with it, and puts are begun again.
    pub(super) crashes: bool,
    /// Whether there are trees, ranges and checks.
    pub(super) trees: bool,
    /// Whether the product's own puts of files and streams, its gateway and its lists of chunks are used.
    pub(super) ways: bool,
    /// A bug on purpose in what clients do with trees.
    pub(super) canary: Option<Canary>,
    /// Whether checks repair: not where it is counted what others wrote.
    pub(super) repairs: bool,
}

impl Settings {
    /// Part of what a client does that is about trees and checks.
    const fn with_trees(&self) -> f64 {
        if self.ways { WITH_WAYS } else { WITH_TREES }
    }
}

/// A client at an address.
pub(super) struct Client {
    pub(super) settings: Settings,
    net: Net,
    connector: Arc<dyn Connector>,
    pub(super) ledger: Ledger,
    pub(super) trace: Trace,
    pub(super) name: SocketAddr,
    pub(super) rng: Xoshiro,
}

impl Client {
    pub(super) fn new(
        settings: Settings,
        net: &Net,
        name: SocketAddr,
        ledger: Ledger,
        rng: Xoshiro,
    ) -> Self {
        let connector = Dialler::new(net, name, CancellationToken::new());
        let (net, trace) = (net.clone(), net.trace().clone());
        Self { settings, net, connector, ledger, trace, name, rng }
    }

    /// A new process. When what this gives is dropped, it dies: its streams close, and whatever goes
    /// on of it reaches nobody.
    fn begin(&mut self) -> Option<DropGuard> {
        if !self.settings.crashes {
            return None;
        }
        let died = CancellationToken::new();
        self.connector = Dialler::new(&self.net, self.name, died.clone());
        Some(died.drop_guard())
    }

    /// Joins; from any door.
    pub(super) async fn join(&self) -> Result<Network, String> {
        let Settings { network, doors, .. } = &self.settings;
        let known = Directory::new(*network);
        let connector = Arc::clone(&self.connector);
        let joining = Network::connect(*network, doors.clone(), known, connector);
        self.ledger.in_time(&format!("the join of client {}", self.name), joining).await
    }

    /// Puts and reads for ever, joining anew now and then as a new process would.
    pub(super) async fn live(mut self) {
        loop {
            let session = Duration::from_secs_f64(self.rng.exponential(60.0));
            let _process = self.begin();
            match self.join().await {
                // Dropped in the middle of whatever it does: the process is killed.
                Ok(network) => drop(timeout(session, self.session(&network)).await),
                Err(error) => {
                    self.trace.note(format_args!("client {}: cannot join: {error}", self.name));
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
            }
        }
    }

    async fn session(&mut self, network: &Network) {
        let reader = Downloader::new(network.clone());
        loop {
            if self.settings.storm_from.is_some_and(|from| self.trace.now() > from) {
                let pause = self.rng.exponential(PAUSE_IN_STORM.as_secs_f64());
                tokio::time::sleep(Duration::from_secs_f64(pause)).await;
                if self.settings.trees && self.rng.chance(self.settings.with_trees()) {
                    self.read_some_tree(&reader).await;
                } else {
                    self.read_some(&reader).await;
                }
                continue;
            }
            let pause = self.rng.exponential(1.0);
            tokio::time::sleep(Duration::from_secs_f64(pause)).await;
            if self.settings.trees && self.rng.chance(self.settings.with_trees()) {
                self.with_trees(network).await;
            } else if self.rng.chance(0.5) {
                drop(self.put(network).await);
            } else {
                // One that knows nothing yet.
                self.read_some(&Downloader::new(network.clone())).await;
            }
        }
    }

    /// Something with a tree, or a check.
    async fn with_trees(&mut self, network: &Network) {
        let point = self.rng.unit();
        if point < TREES_PUT {
            self.put_some_tree(network).await;
        } else if point < TREES_PUT + CHECKS {
            self.check_some(network).await;
        } else {
            self.read_some_tree(&Downloader::new(network.clone())).await;
        }
    }

    /// Something new; now and then what somebody began to put before, be it done, failed, or under
    /// way by another.
    fn something(&mut self) -> (u64, usize) {
        if self.settings.crashes && self.rng.chance(AGAIN) {
            let ledger = self.ledger.lock();
            if !ledger.begun.is_empty() {
                return ledger.begun[self.rng.below(ledger.begun.len())];
            }
        }
        // Sizes of all magnitudes.
        let magnitude = (self.settings.largest_bytes as f64).ln() * self.rng.unit();
        #[allow(clippy::cast_possible_truncation)] // bounded in the same breath
        let bytes = (magnitude.exp() as usize).clamp(1, self.settings.largest_bytes);
        let number = self.rng.next_u64();
        self.ledger.lock().begun.push((number, bytes));
        (number, bytes)
    }

    /// Puts something, mostly new.
    async fn put(&mut self, network: &Network) -> Result<(), String> {
        let (number, bytes) = self.something();
        self.put_this(network, number, bytes).await
    }

    /// Puts something at last, when all is calm and so many nodes stay: it succeeds, or is refused if the
    /// loss of one of them would lose it.
    pub(super) async fn put_at_last(
        &mut self,
        network: &Network,
        nodes: usize,
    ) -> Result<(), String> {
        let (number, bytes) = self.something();
        let before = self.ledger.counts().puts_fragile;
        let put = self.put_this(network, number, bytes).await;
        let is_refused = self.ledger.counts().puts_fragile > before;
        let code = self.settings.geometry.for_plaintext(bytes);
        match (size::is_fragile(nodes, code), is_refused) {
            (true, true) => Ok(()),
            (true, false) => Err(format!(
                "with {code} on {nodes} nodes the loss of one loses it, and it is not refused: {put:?}"
            )),
            (false, _) => put,
        }
    }

    async fn put_this(&self, network: &Network, number: u64, bytes: usize) -> Result<(), String> {
        let name = self.name;
        let stored = async {
            let (uploader, encoder) = session(network);
            let extent = self.store(&uploader, &encoder, number, bytes).await?;
            let (chunk, code) = (extent.chunk.short(), extent.geometry);
            self.trace.note(format_args!("client {name}: put chunk {chunk}, {bytes} B, {code}"));
            let scene = &self.settings.scene;
            self.ledger.acknowledged(Promised { extent, content: number, bytes }, scene);
            // The other shards follow while the session lasts.
            drop(uploader.flush().await);
            Ok::<_, String>(())
        };
        let result = self.ledger.in_time(&format!("a put of client {name}"), stored).await;
        if let Err(error) = &result {
            self.trace.note(format_args!("client {name}: put failed: {error}"));
            self.ledger.lock().counts.puts_failed += 1;
        }
        result
    }

    /// Stores bytes as a chunk of their own, until it is safe.
    async fn store(
        &self,
        uploader: &Uploader,
        encoder: &Encoder,
        number: u64,
        bytes: usize,
    ) -> Result<Extent, String> {
        let mut buffer = encoder.plaintext().await;
        buffer.extend_from_slice(&content(number, bytes));
        let encoded = encoder.bulk(self.settings.geometry, buffer).await;
        let (chunk, extent) = encoded.map_err(|error| error.to_string())?;
        let ticket = uploader.submit(chunk).await;
        if self.settings.canary == Some(Canary::EarlyChunks) {
            return Ok(extent);
        }
        ticket.await.map_err(|error| {
            if matches!(error, PutError::Fragile { .. }) {
                self.ledger.lock().counts.puts_fragile += 1;
            }
            error.to_string()
        })?;
        Ok(extent)
    }

    async fn read_some(&mut self, reader: &Downloader) {
        let promised = self.ledger.promised();
        if promised.is_empty() {
            return;
        }
        let one = &promised[self.rng.below(promised.len())];
        let mut range = 0..one.bytes;
        if self.settings.trees && self.rng.chance(RANGES) {
            range = tree::some_range(&mut self.rng, one.bytes, &[]);
        }
        if let Err(error) = self.read_with(reader, one, range).await {
            let (name, chunk) = (self.name, one.extent.chunk.short());
            self.trace.note(format_args!("client {name}: cannot read chunk {chunk}: {error}"));
        }
    }

    /// Reads something that was promised, all of it.
    pub(super) async fn read(&self, network: &Network, one: &Promised) -> Result<(), String> {
        self.read_with(&Downloader::new(network.clone()), one, 0..one.bytes).await
    }

    async fn read_with(
        &self,
        reader: &Downloader,
        one: &Promised,
        range: Range<usize>,
    ) -> Result<(), String> {
        let scene = &self.settings.scene;
        // A client that is killed while it reads leaves this behind, which is harmless.
        let number = scene.begin(one.extent.chunk);
        let what = format!("client {}: a read of chunk {}", self.name, one.extent.chunk.short());
        let reading = reader.read_extent_range(&one.extent, range.clone());
        let result = self.ledger.in_time(&what, reading).await;
        let fewest = scene.end(number);
        self.ledger.lock().counts.reads += 1;
        let is_fickle =
            self.settings.canary == Some(Canary::FickleReads) && number.is_multiple_of(16);
        let result = if is_fickle { Err("given up".to_owned()) } else { result };
        match result {
            Ok(bytes) if bytes == content(one.content, one.bytes)[range.clone()] => Ok(()),
            Ok(_) => {
                let chunk = one.extent.chunk;
                let wrong = format!("{range:?} of chunk {chunk} are other bytes than were put");
                self.ledger.note_wrong(&wrong);
                Err(wrong)
            }
            Err(error) => {
                self.ledger.lock().counts.reads_failed += 1;
                let needed = one.extent.geometry.data();
                if self.settings.storm_from.is_some() && fewest >= needed {
                    self.ledger.note_refused(format!(
                        "client {}: {error}; at least {fewest} shards were within reach, {needed} suffice",
                        self.name
                    ));
                }
                Err(error)
            }
        }
    }
}

/// Under which all clients put: what one has begun another goes on with.
pub(super) const fn secret() -> ConvergenceSecret {
    ConvergenceSecret::new([5; 32])
}

/// What stores, and what makes chunks for it: new for each put.
pub(super) fn session(network: &Network) -> (Uploader, Encoder) {
    let encoder = Encoder::new(secret(), Budget::new(BUDGET_BYTES));
    let options = PutOptions::default();
    (Uploader::new(network.clone(), encoder.budget().clone(), options), encoder)
}
