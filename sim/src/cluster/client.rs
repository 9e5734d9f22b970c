//! Those who put and read: real clients, which are stopped and begin anew.
//!
//! Owns what was promised: an extent counts from the moment its put was acknowledged. Whatever is
//! read, at any time, must be what was put, or nothing.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_client::{
    connect::Connector,
    encode::{Budget, Encoder},
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

use super::{net::Net, scene::Scene, stream::Dialler, trace::Trace};
use crate::random::Xoshiro;

/// Nothing a client does may take longer: its own time-outs are shorter.
const OPERATION_MAX: Duration = Duration::from_secs(120);

/// Between two reads of a client in a storm, on average.
const PAUSE_IN_STORM: Duration = Duration::from_millis(50);

/// Part of the puts that were begun before.
const AGAIN: f64 = 0.25;

/// Memory of one client for chunks on their way.
const BUDGET_BYTES: usize = 4 << 20;

/// Something that was acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Promised {
    pub(super) extent: Extent,
    content: u64,
    bytes: usize,
}

/// What clients were promised, and what they saw. Clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    promised: Vec<Promised>,
    /// Everything that anybody began to put: its number, and how many bytes.
    begun: Vec<(u64, usize)>,
    puts: u64,
    puts_failed: u64,
    reads: u64,
    reads_failed: u64,
    wrong: Option<String>,
    refused: Option<String>,
    hung: Option<String>,
}

/// How it went so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Puts that were acknowledged.
    pub puts: u64,
    /// Puts that ended with an error.
    pub puts_failed: u64,
    /// Reads.
    pub reads: u64,
    /// Reads that ended with an error.
    pub reads_failed: u64,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn promised(&self) -> Vec<Promised> {
        self.lock().promised.clone()
    }

    /// A put was acknowledged.
    fn acknowledged(&self, one: Promised) {
        let mut inner = self.lock();
        inner.puts += 1;
        if inner.promised.iter().all(|other| other.extent.chunk != one.extent.chunk) {
            inner.promised.push(one);
        }
    }

    /// The first read that gave other bytes than were put.
    pub(super) fn wrong(&self) -> Option<String> {
        self.lock().wrong.clone()
    }

    /// The first read that failed although enough shards were within reach all the time.
    pub(super) fn refused(&self) -> Option<String> {
        self.lock().refused.clone()
    }

    /// The first call that did not end.
    pub(super) fn hung(&self) -> Option<String> {
        self.lock().hung.clone()
    }

    /// What a call gave, which must end in time.
    async fn in_time<T, E: ToString>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, String> {
        match timeout(OPERATION_MAX, call).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => {
                let hung = format!("{what} gave no answer and no error in {OPERATION_MAX:?}");
                self.lock().hung.get_or_insert_with(|| hung.clone());
                Err(hung)
            }
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let inner = self.lock();
        Counts {
            puts: inner.puts,
            puts_failed: inner.puts_failed,
            reads: inner.reads,
            reads_failed: inner.reads_failed,
        }
    }
}

/// The bytes with a number.
fn content(number: u64, bytes: usize) -> Vec<u8> {
    let mut stream = Xoshiro::new(number, "content of a client");
    let words = (0..bytes.div_ceil(8)).flat_map(|_| stream.next_u64().to_le_bytes());
    words.take(bytes).collect()
}

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
}

/// A client at an address.
pub(super) struct Client {
    settings: Settings,
    net: Net,
    connector: Arc<dyn Connector>,
    ledger: Ledger,
    trace: Trace,
    name: SocketAddr,
    rng: Xoshiro,
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
                self.read_some(&reader).await;
                continue;
            }
            let pause = self.rng.exponential(1.0);
            tokio::time::sleep(Duration::from_secs_f64(pause)).await;
            if self.rng.chance(0.5) {
                drop(self.put(network).await);
            } else {
                // One that knows nothing yet.
                self.read_some(&Downloader::new(network.clone())).await;
            }
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
    pub(super) async fn put(&mut self, network: &Network) -> Result<(), String> {
        let (number, bytes) = self.something();
        let name = self.name;
        let stored = async {
            let (uploader, extent) = store(network, self.settings.geometry, number, bytes).await?;
            let (chunk, code) = (extent.chunk.short(), extent.geometry);
            self.trace.note(format_args!("client {name}: put chunk {chunk}, {bytes} B, {code}"));
            self.ledger.acknowledged(Promised { extent, content: number, bytes });
            // The other shards follow while the session lasts.
            drop(uploader.flush().await);
            Ok::<_, String>(())
        };
        let result = self.ledger.in_time(&format!("a put of client {name}"), stored).await;
        if let Err(error) = &result {
            self.trace.note(format_args!("client {name}: put failed: {error}"));
            self.ledger.lock().puts_failed += 1;
        }
        result
    }

    async fn read_some(&mut self, reader: &Downloader) {
        let promised = self.ledger.promised();
        if promised.is_empty() {
            return;
        }
        let one = &promised[self.rng.below(promised.len())];
        if let Err(error) = self.read_with(reader, one).await {
            let (name, chunk) = (self.name, one.extent.chunk.short());
            self.trace.note(format_args!("client {name}: cannot read chunk {chunk}: {error}"));
        }
    }

    /// Reads something that was promised, all of it.
    pub(super) async fn read(&self, network: &Network, one: &Promised) -> Result<(), String> {
        self.read_with(&Downloader::new(network.clone()), one).await
    }

    async fn read_with(&self, reader: &Downloader, one: &Promised) -> Result<(), String> {
        let scene = &self.settings.scene;
        // A client that is killed while it reads leaves this behind, which is harmless.
        let number = scene.begin(one.extent.chunk);
        let what = format!("client {}: a read of chunk {}", self.name, one.extent.chunk.short());
        let result = self.ledger.in_time(&what, reader.read_extent(&one.extent)).await;
        let fewest = scene.end(number);
        let mut ledger = self.ledger.lock();
        ledger.reads += 1;
        match result {
            Ok(bytes) if bytes == content(one.content, one.bytes) => Ok(()),
            Ok(_) => {
                let wrong = format!("chunk {} gave other bytes than were put", one.extent.chunk);
                ledger.wrong.get_or_insert_with(|| wrong.clone());
                Err(wrong)
            }
            Err(error) => {
                ledger.reads_failed += 1;
                let needed = one.extent.geometry.data();
                if self.settings.storm_from.is_some() && fewest >= needed {
                    let refused = format!(
                        "client {}: {error}; at least {fewest} shards were within reach, {needed} suffice",
                        self.name
                    );
                    ledger.refused.get_or_insert(refused);
                }
                Err(error)
            }
        }
    }
}

/// Stores until it is safe.
async fn store(
    network: &Network,
    geometry: Geometry,
    number: u64,
    bytes: usize,
) -> Result<(Uploader, Extent), String> {
    let encoder = Encoder::new(ConvergenceSecret::new([5; 32]), Budget::new(BUDGET_BYTES));
    let options = PutOptions::default();
    let uploader = Uploader::new(network.clone(), encoder.budget().clone(), options);
    let mut buffer = encoder.plaintext().await;
    buffer.extend_from_slice(&content(number, bytes));
    let encoded = encoder.bulk(geometry, buffer).await.map_err(|error| error.to_string())?;
    let (chunk, extent) = encoded;
    uploader.submit(chunk).await.await.map_err(|error| error.to_string())?;
    Ok((uploader, extent))
}
