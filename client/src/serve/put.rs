//! Storing what callers send: a file, or a small tree.
//!
//! Owns the calls that store: how many at once, what each may hold in memory, the tree that is made
//! in the end. One idea: the large pieces of a file are stored as they come, whatever their place in
//! the tree will be; what waits for the end is small, and counted.

use std::{
    collections::{BTreeMap, VecDeque, btree_map},
    sync::Arc,
    time::{Duration, SystemTime},
};

use copse_core::{
    capability::Capability,
    chunk::EncodedChunk,
    extent::Extent,
    geometry::Geometry,
    seal::ConvergenceSecret,
    tree::{Finished, Meta, Name, Timestamp, TreeError, TreeWriter, path},
};
use copse_proto::files::{PutFile, PutRequest, PutResponse, put_request::Part};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tonic::Streaming;

use super::{
    GatewayOptions,
    failure::Failure,
    files::{PIECE_BYTES_MAX, acquire, names_of},
};
use crate::{
    cut::Cut,
    encode::{Budget, Encoder},
    network::Network,
    put::{PutOptions, Ticket, Uploader},
    task::{Task, aside},
};

/// Calls that store at once; the rest waits a while. Each holds up to a chunk of what comes in, beside the
/// chunks that it has encoded.
const PUTS_MAX: usize = 4;

/// Encoded chunks in memory, in bytes, of all calls: four full chunks of 10+6.
const ENCODED_BYTES_MAX: usize = 48 << 20;

/// What waits in memory for the ends of all calls, in bytes: small files and the tails of large
/// ones, and where the rest is. Enough for a tree of 10,000 files of 4 KiB.
const WAITING_BYTES_MAX: u32 = 64 << 20;

/// What a file costs in memory beside its path and content, in bytes.
const FILE_COST_BYTES: usize = 256;

/// Files of one call. More is no small tree.
const FILES_MAX: usize = 16_384;

/// Pieces of one call being encoded or stored at once. Memory is bounded by the encoded chunks;
/// this bounds the tasks that wait for it.
const PIECES_MAX: usize = 16;

/// A caller that sends nothing for this long is given up: others wait for its place.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// Permission bits of a file when none are given, and of the directories around it.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

/// Stores for callers.
pub(super) struct Puts {
    network: Network,
    encoder: Encoder,
    options: GatewayOptions,
    places: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// One tree is built at a time: its chunks are made outside the encoder's budget.
    building: Arc<Semaphore>,
    /// Held by everything that is still being stored.
    running: Running,
}

impl Puts {
    pub(super) fn new(
        network: Network,
        secret: ConvergenceSecret,
        options: GatewayOptions,
    ) -> Self {
        Self {
            network,
            encoder: Encoder::new(secret, Budget::new(ENCODED_BYTES_MAX)),
            options,
            places: Arc::new(Semaphore::new(PUTS_MAX)),
            waiting: Arc::new(Semaphore::new(WAITING_BYTES_MAX as usize)),
            building: Arc::new(Semaphore::new(1)),
            running: Running::default(),
        }
    }

    /// What is still being stored, after callers had their answer.
    pub(super) fn running(&self) -> &Running {
        &self.running
    }

    /// Stores what a stream brings. Answers when all of it is durable; the shards above the write
    /// quorum follow in the background.
    pub(super) async fn put(
        &self,
        mut requests: Streaming<PutRequest>,
    ) -> Result<PutResponse, Failure> {
        let _place = acquire(&self.places).await?;
        let mut put = Put::new(self)?;
        loop {
            let message = match timeout(SEND_TIMEOUT, requests.message()).await {
                Err(_) => return Err(Failure::idle("came", SEND_TIMEOUT)),
                Ok(Err(status)) => return Err(Failure::from_stream(&status)),
                Ok(Ok(message)) => message,
            };
            match message.map(|message| message.part) {
                Some(Some(Part::File(file))) => put.begin(file).await?,
                Some(Some(Part::Data(data))) => put.data(&data).await?,
                Some(None) => return Err(Failure::field("part", "neither file nor data is set")),
                None => break,
            }
        }
        put.finish().await
    }
}

/// One call that stores.
struct Put<'a> {
    puts: &'a Puts,
    uploader: Uploader,
    geometry: Geometry,
    cut: Cut,
    files: Vec<File>,
    names: BTreeMap<Vec<Name>, usize>,
    /// Bytes of the last file that are not on their way yet.
    gathered: Vec<u8>,
    /// Pieces on their way, oldest first, and which file each belongs to.
    jobs: VecDeque<(usize, Task<Result<Extent, Failure>>)>,
    bytes: u64,
    /// What of the waiting bytes is this call's.
    held: Option<OwnedSemaphorePermit>,
}

/// A file whose place in the tree is found in the end.
struct File {
    meta: Meta,
    pieces: Vec<Extent>,
    tail: Vec<u8>,
}

impl<'a> Put<'a> {
    fn new(puts: &'a Puts) -> Result<Self, Failure> {
        let GatewayOptions { geometry, chunk_bytes_max } = puts.options;
        let nodes = puts.network.view().ring.len();
        let geometry = geometry.or_else(|| Geometry::default_for(nodes));
        let geometry = geometry.ok_or_else(|| Failure::too_few_nodes(nodes))?;
        let budget = puts.encoder.budget().clone();
        Ok(Self {
            puts,
            uploader: Uploader::new(puts.network.clone(), budget, PutOptions::default()),
            geometry,
            cut: Cut::new(geometry, chunk_bytes_max),
            files: Vec::new(),
            names: BTreeMap::new(),
            gathered: Vec::new(),
            jobs: VecDeque::new(),
            bytes: 0,
            held: None,
        })
    }

    async fn begin(&mut self, file: PutFile) -> Result<(), Failure> {
        self.end_file().await?;
        if self.files.len() == FILES_MAX {
            return Err(Failure::too_large("files", FILES_MAX));
        }
        let meta = meta_of(&file)?;
        let names = names_of(&file.path, &file.path_bytes)?;
        if names.is_empty() {
            return Err(Failure::field("file.path", "a file needs a name"));
        }
        let path_bytes: usize = names.iter().map(|name| name.as_bytes().len() + 32).sum();
        self.hold(FILE_COST_BYTES + path_bytes)?;
        match self.names.entry(names) {
            btree_map::Entry::Occupied(taken) => {
                let path = path::display(taken.key());
                return Err(Failure::field("file.path", format!("{path} was sent before")));
            }
            btree_map::Entry::Vacant(place) => place.insert(self.files.len()),
        };
        self.files.push(File { meta, pieces: Vec::new(), tail: Vec::new() });
        Ok(())
    }

    async fn data(&mut self, mut data: &[u8]) -> Result<(), Failure> {
        if self.files.is_empty() {
            return Err(Failure::field("data", "the file that it belongs to must come before"));
        }
        if data.len() > PIECE_BYTES_MAX {
            return Err(Failure::oversized("data", data.len(), PIECE_BYTES_MAX));
        }
        self.bytes += data.len() as u64;
        while !data.is_empty() {
            let room = self.cut.chunk_bytes - self.gathered.len();
            let (now, rest) = data.split_at(data.len().min(room));
            self.gathered.extend_from_slice(now);
            data = rest;
            if self.gathered.len() == self.cut.chunk_bytes {
                self.store_piece().await?;
            }
        }
        Ok(())
    }

    /// What was gathered becomes a chunk of its own.
    async fn store_piece(&mut self) -> Result<(), Failure> {
        self.hold(size_of::<Extent>())?;
        while self.jobs.len() >= PIECES_MAX {
            self.await_piece().await?;
        }
        let (encoder, uploader) = (self.puts.encoder.clone(), self.uploader.clone());
        let geometry = self.geometry;
        let mut plaintext = encoder.plaintext_of(self.cut.chunk_bytes).await;
        plaintext.extend_from_slice(&self.gathered);
        self.gathered.clear();
        let job = Task::spawn(async move {
            let (chunk, extent) = encoder.bulk(geometry, plaintext).await?;
            uploader.submit(chunk).await.await?;
            Ok(extent)
        });
        self.jobs.push_back((self.files.len() - 1, job));
        Ok(())
    }

    /// Waits for the oldest piece.
    async fn await_piece(&mut self) -> Result<(), Failure> {
        if let Some((file, job)) = self.jobs.pop_front() {
            let extent = job.await.map_err(|_| Failure::internal("a task stopped"))??;
            self.files[file].pieces.push(extent);
        }
        Ok(())
    }

    /// The last file is complete.
    async fn end_file(&mut self) -> Result<(), Failure> {
        if self.gathered.len() > self.cut.packed_bytes_max {
            self.store_piece().await?;
        }
        if !self.gathered.is_empty() {
            self.hold(self.gathered.len())?;
            if let Some(file) = self.files.last_mut() {
                // A copy without spare room.
                file.tail = self.gathered.as_slice().to_vec();
            }
            self.gathered.clear();
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<PutResponse, Failure> {
        self.end_file().await?;
        if self.files.is_empty() {
            return Err(Failure::field("part", "no file was sent"));
        }
        while !self.jobs.is_empty() {
            self.await_piece().await?;
        }
        let count = self.files.len() as u64;
        let finished = self.build().await?;
        let network = self.puts.network.id();
        let capability = Capability::read(network, finished.root).to_string();
        let (uploader, running) = (self.uploader.clone(), self.puts.running.enter());
        tokio::spawn(async move {
            if let Err(error) = uploader.flush().await {
                tracing::warn!(%error, "shards above the write quorum were not stored");
            }
            drop(running);
        });
        Ok(PutResponse { capability, bytes: self.bytes, files: count })
    }

    /// Makes the tree and stores its chunks.
    async fn build(&mut self) -> Result<Finished, Failure> {
        let _one = acquire(&self.puts.building).await?;
        let (geometry, secret) = (self.geometry, self.puts.encoder.secret().clone());
        let mut files = std::mem::take(&mut self.files);
        let names = std::mem::take(&mut self.names);
        let sorted: Vec<(Vec<Name>, File)> = names
            .into_iter()
            .map(|(names, at)| {
                let empty = File { meta: Meta::default(), pieces: Vec::new(), tail: Vec::new() };
                (names, std::mem::replace(&mut files[at], empty))
            })
            .collect();
        // One chunk on its way between the thread that makes them and this task.
        let (made, mut chunks) = mpsc::channel(1);
        let building = aside(build(sorted, geometry, secret, made));
        let submitting = async {
            let mut tickets: Vec<Ticket> = Vec::new();
            while let Some(chunk) = chunks.recv().await {
                tickets.push(self.submit(chunk).await);
            }
            tickets
        };
        let (built, mut tickets) = tokio::join!(building, submitting);
        let mut finished = built.map_err(|_| Failure::internal("a thread stopped"))??;
        for chunk in std::mem::take(&mut finished.chunks) {
            tickets.push(self.submit(chunk).await);
        }
        for ticket in tickets {
            ticket.await?;
        }
        Ok(finished)
    }

    async fn submit(&self, chunk: EncodedChunk) -> Ticket {
        let chunk = self.puts.encoder.budget().admit(chunk).await;
        self.uploader.submit(chunk).await
    }

    /// Counts bytes that wait for the end.
    fn hold(&mut self, bytes: usize) -> Result<(), Failure> {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let limit = format!("{} MiB", WAITING_BYTES_MAX >> 20);
        let what = "small files, tails of files and names";
        let bytes = u32::try_from(bytes).map_err(|_| Failure::too_large(what, &limit))?;
        if held + bytes as usize > WAITING_BYTES_MAX as usize {
            return Err(Failure::too_large(what, limit));
        }
        let more = Arc::clone(&self.puts.waiting)
            .try_acquire_many_owned(bytes)
            .map_err(|_| Failure::busy("other calls hold the memory for small files"))?;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }
}

fn meta_of(file: &PutFile) -> Result<Meta, Failure> {
    let modified = match (file.mtime_seconds, file.mtime_nanos) {
        (0, 0) => now(),
        (seconds, nanos) => Timestamp::new(seconds, nanos).ok_or_else(|| {
            Failure::field("file.mtime_nanos", format!("{nanos} are a second or more"))
        })?,
    };
    let mode = if file.mode == 0 { FILE_MODE } else { file.mode };
    if mode > copse_core::tree::entry::MODE_MAX {
        let problem = format!("{mode:o} has more than permission bits");
        return Err(Failure::field("file.mode", problem));
    }
    Ok(Meta::new(mode, modified))
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp::new(seconds, since.subsec_nanos()).unwrap_or_default()
}

/// Writes the tree of sorted files. Chunks go out as they are complete.
async fn build(
    files: Vec<(Vec<Name>, File)>,
    geometry: Geometry,
    secret: ConvergenceSecret,
    chunks: mpsc::Sender<EncodedChunk>,
) -> Result<Finished, Failure> {
    let mut writer = TreeWriter::new(geometry, secret);
    // The time of the newest file, so that the same files make the same tree.
    let newest = files.iter().map(|(_, file)| file.meta.modified).max().unwrap_or_default();
    let around = Meta::new(DIRECTORY_MODE, newest);
    let alone = matches!(&files[..], [(names, _)] if names.len() == 1);
    if !alone {
        writer.begin_directory(b"", around.clone())?;
    }
    let mut open: Vec<Name> = Vec::new();
    let mut before: Vec<Name> = Vec::new();
    for (names, file) in files {
        // Sorted: what lies below a file comes right after it.
        if !before.is_empty() && names.starts_with(&before) {
            let problem =
                format!("{} is sent as a file and as a directory", path::display(&before));
            return Err(Failure::field("file.path", problem));
        }
        let Some((name, directories)) = names.split_last() else { continue };
        let common = open.iter().zip(directories).take_while(|(a, b)| a == b).count();
        while open.len() > common {
            open.pop();
            writer.end_directory()?;
        }
        for directory in &directories[common..] {
            writer.begin_directory(directory.as_bytes(), around.clone())?;
            open.push(directory.clone());
        }
        add(&mut writer, name, file)?;
        for chunk in writer.take_chunks() {
            // Nobody listens when the call was given up.
            let sent = chunks.send(chunk).await;
            sent.map_err(|_| Failure::internal("the call was given up"))?;
        }
        before = names;
    }
    while open.pop().is_some() {
        writer.end_directory()?;
    }
    if !alone {
        writer.end_directory()?;
    }
    Ok(writer.finish()?)
}

fn add(writer: &mut TreeWriter, name: &Name, file: File) -> Result<(), TreeError> {
    writer.begin_file(name.as_bytes(), file.meta)?;
    for piece in file.pieces {
        writer.push_extent(piece)?;
    }
    if !file.tail.is_empty() {
        writer.push_bytes(&file.tail)?;
    }
    writer.end_file().map(drop)
}

/// Counts what is under way, so that a stop can wait for it.
#[derive(Clone)]
pub(super) struct Running(Arc<tokio::sync::watch::Sender<usize>>);

impl Default for Running {
    fn default() -> Self {
        Self(Arc::new(tokio::sync::watch::Sender::new(0)))
    }
}

impl Running {
    fn enter(&self) -> RunningGuard {
        self.0.send_modify(|count| *count += 1);
        RunningGuard(self.clone())
    }

    /// Waits until nothing is under way.
    pub(super) async fn ended(&self) {
        // The sender is here, so the wait ends only by the condition.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

struct RunningGuard(Running);

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
