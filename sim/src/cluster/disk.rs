//! Disks: what a machine keeps over a restart, and the fence that shuts out a dead process.
//!
//! Owns the difference between a process and its disk. The one idea: a process that was killed goes
//! on in this world as a task or two, but nothing it does reaches a disk or a line any more. The
//! moment at which the fence falls is the moment of its death, at any await.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, ShardId, ShardIndex},
    ring::Ring,
};
use copse_node::{
    membership::memory::Memory,
    store::{
        ArcChanges, Doubts, FullReason, HeldShard, Ledger, LedgerChange, PutError, ReadError,
        RemovalReason, RemoveError, Removed, ShardRead, ShardStore, StoreRevision, StoreStats,
        Stored, VerifiedShard, Want,
    },
};

use super::{
    atlas::Lie,
    claims::Claims,
    killat::{Deed, Fuse},
    scene::Scene,
    store::Store,
};

/// What a read leaves behind in a node that never lets go of memory.
const HOARD_BYTES: usize = 256 << 10;

/// Falls once, when the process dies.
#[derive(Debug, Clone, Default)]
pub(super) struct Fence(Arc<AtomicBool>);

impl Fence {
    pub(super) fn fall(&self) {
        self.0.store(true, Relaxed);
    }

    pub(super) fn has_fallen(&self) -> bool {
        self.0.load(Relaxed)
    }

    fn io(&self) -> io::Result<()> {
        if self.has_fallen() { Err(io::Error::other("the process is dead")) } else { Ok(()) }
    }
}

/// Whether a node lies, and how; shared with those who make it.
pub(super) type Lying = Arc<Mutex<Option<Lie>>>;

/// The store of one process on a disk. What comes out of a store is verified nowhere else in the
/// node, so a store that lies makes a node that lies.
pub(super) struct Mounted {
    disk: Arc<Store>,
    fence: Fence,
    files: Files,
    lying: Lying,
    scene: Scene,
    /// What clients store with, for one that claims to have all of it.
    geometry: Geometry,
    /// What it lists, when it lies about that.
    claims: Claims,
    /// Buffers of all reads, for a node that never lets go of them.
    hoard: Option<Mutex<Vec<Vec<u8>>>>,
}

impl Mounted {
    pub(super) fn new(
        files: &Files,
        lying: &Lying,
        scene: &Scene,
        geometry: Geometry,
        claims: Claims,
        hoards: bool,
    ) -> Arc<Self> {
        let (disk, fence) = (Arc::clone(&files.disk), files.fence.clone());
        let (files, lying, scene) = (files.clone(), Arc::clone(lying), scene.clone());
        let hoard = hoards.then(Mutex::default);
        Arc::new(Self { disk, fence, files, lying, scene, geometry, claims, hoard })
    }

    /// A shard that is not the wanted one, if there is any.
    async fn another(&self, id: ShardId) -> Result<ShardRead, ReadError> {
        let behind = self.disk.list(Some(id), 1).await?;
        let other = match behind.first() {
            Some(other) => *other,
            None => self.disk.list(None, 1).await?.first().copied().unwrap_or(id),
        };
        self.disk.read(other, Want::Whole).await
    }

    fn lie(&self) -> Option<Lie> {
        *self.lying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn readable(&self) -> Result<(), ReadError> {
        if self.fence.has_fallen() { Err(ReadError::Closed) } else { Ok(()) }
    }
}

#[async_trait]
impl ShardStore for Mounted {
    async fn put(&self, shard: VerifiedShard) -> Result<Stored, PutError> {
        if self.fence.has_fallen() {
            return Err(PutError::Closed);
        }
        let (id, bytes) = (shard.id(), shard.data().len() as u64);
        let stored = self.disk.put(shard).await;
        if matches!(stored, Ok(Stored::New)) {
            self.scene.wrote(id, bytes);
        }
        if matches!(stored, Err(PutError::Full { reason: FullReason::Capacity, .. })) {
            self.scene.struck(|struck| struck.refused += 1);
        }
        // Who died in between tells nobody.
        if self.fence.has_fallen() { Err(PutError::Closed) } else { stored }
    }

    async fn read(&self, id: ShardId, want: Want) -> Result<ShardRead, ReadError> {
        self.readable()?;
        let mut read = self.disk.read(id, want).await?;
        if matches!(
            self.lie(),
            Some(Lie::Ghosts | Lie::WrongBytes | Lie::WrongProofs | Lie::OtherShards)
        ) {
            self.scene.struck(|struck| struck.lies += 1);
        }
        if let Some(hoard) = &self.hoard {
            hoard.lock().unwrap_or_else(PoisonError::into_inner).push(vec![0; HOARD_BYTES]);
        }
        match self.lie() {
            None => {}
            Some(Lie::Ghosts) => return Err(ReadError::NotHeld { id }),
            Some(Lie::WrongBytes) => {
                let mut data = read.data.to_vec();
                data.iter_mut().for_each(|byte| *byte = !*byte);
                read.data = data.into();
            }
            Some(Lie::WrongProofs) => {
                // A whole shard needs no proof: there is nothing to lie about.
                read.proof.iter_mut().for_each(|byte| *byte = !*byte);
            }
            Some(Lie::OtherShards) => return self.another(id).await,
            // Those lie elsewhere.
            Some(
                Lie::FalseWitness
                | Lie::StaleRecords
                | Lie::ClaimsAll
                | Lie::Shapes
                | Lie::Phantoms,
            ) => {}
        }
        Ok(read)
    }

    async fn check(&self, id: ShardId) -> Result<u64, ReadError> {
        self.readable()?;
        self.disk.check(id).await
    }

    async fn remove(&self, id: ShardId, reason: RemovalReason) -> Result<Removed, RemoveError> {
        if self.fence.has_fallen() {
            return Err(RemoveError::Closed);
        }
        let removed = self.disk.remove(id, reason).await;
        self.scene.dropped(id.chunk);
        removed
    }

    async fn held(&self, chunk: ChunkId) -> Result<Vec<ShardIndex>, ReadError> {
        self.readable()?;
        match self.lie() {
            Some(Lie::ClaimsAll) => {
                self.scene.struck(|struck| struck.lies += 1);
                Ok(self.geometry.indices().collect())
            }
            Some(lie @ (Lie::Shapes | Lie::Phantoms)) => {
                let mut listed = self.claims.of_arc(lie, &self.disk, Ring::arc(&chunk)).await?;
                listed.retain(|shard| shard.id.chunk == chunk);
                Ok(listed.into_iter().map(|shard| shard.id.index).collect())
            }
            _ => self.disk.held(chunk).await,
        }
    }

    async fn list(&self, after: Option<ShardId>, limit: usize) -> Result<Vec<ShardId>, ReadError> {
        self.readable()?;
        self.disk.list(after, limit).await
    }

    async fn arc_changes(&self, since: Option<StoreRevision>) -> Result<ArcChanges, ReadError> {
        self.readable()?;
        match self.lie() {
            Some(lie @ (Lie::Shapes | Lie::Phantoms)) => self.claims.changes(lie, &self.disk).await,
            _ => self.disk.arc_changes(since).await,
        }
    }

    async fn list_arc(
        &self,
        arc: u16,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Vec<HeldShard>, ReadError> {
        self.readable()?;
        match self.lie() {
            Some(lie @ (Lie::Shapes | Lie::Phantoms)) => {
                self.scene.struck(|struck| struck.lies += 1);
                let mut listed = self.claims.of_arc(lie, &self.disk, arc).await?;
                listed.retain(|shard| after.is_none_or(|after| after < shard.id));
                listed.truncate(limit);
                Ok(listed)
            }
            _ => self.disk.list_arc(arc, after, limit).await,
        }
    }

    fn doubts(&self) -> &Arc<Doubts> {
        self.disk.doubts()
    }

    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::new(MountedLedger { ledger: self.disk.ledger(), files: self.files.clone() })
    }

    async fn stats(&self) -> StoreStats {
        self.disk.stats().await
    }

    // The disk outlives the process.
    async fn close(&self) {}
}

/// Whether half of the writes to what is no shard fail.
#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) fail: AtomicBool,
    writes: AtomicU64,
}

/// What else a process keeps on its disk: it fails as the shards do.
#[derive(Clone)]
pub(super) struct Files {
    disk: Arc<Store>,
    fence: Fence,
    fuse: Fuse,
    books: Arc<Books>,
    /// Whether they fail at all.
    fail: bool,
}

impl Files {
    pub(super) fn new(
        disk: &Arc<Store>,
        fence: &Fence,
        fuse: &Fuse,
        books: &Arc<Books>,
        fail: bool,
    ) -> Self {
        let (disk, books) = (Arc::clone(disk), Arc::clone(books));
        Self { disk, fence: fence.clone(), fuse: fuse.clone(), books, fail }
    }

    /// Does something of this kind, unless the process dies right before; if it dies right after, what is
    /// left of it does not know that it was done.
    fn deed<T>(&self, deed: Deed, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.fuse.deed(deed, false);
        self.fence.io()?;
        let result = work();
        self.fuse.deed(deed, true);
        self.fence.io()?;
        result
    }

    fn read(&self) -> io::Result<()> {
        self.fence.io()?;
        failing(self.fail && self.disk.faults().fail_reads, libc::EIO)
    }

    /// Not synced: that is the ledger's.
    fn write(&self) -> io::Result<()> {
        self.fence.io()?;
        let faults = self.disk.faults();
        let number = self.books.writes.fetch_add(1, Relaxed);
        // Half of them, in no pattern that what a node writes in turns could keep step with.
        let is_turn = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 1;
        failing(is_turn && self.books.fail.load(Relaxed), libc::EIO)?;
        failing(self.fail && faults.fail_writes, libc::EIO)?;
        failing(self.fail && faults.no_space, libc::ENOSPC)
    }

    fn write_and_sync(&self) -> io::Result<()> {
        self.write()?;
        failing(self.fail && self.disk.faults().fail_syncs, libc::EIO)
    }
}

fn failing(is_failing: bool, code: i32) -> io::Result<()> {
    if is_failing { Err(io::Error::from_raw_os_error(code)) } else { Ok(()) }
}

struct MountedLedger {
    ledger: Arc<dyn Ledger>,
    files: Files,
}

impl Ledger for MountedLedger {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.files.deed(Deed::LookUp, || {
            self.files.read()?;
            self.ledger.get(key)
        })
    }

    fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        self.files.deed(Deed::LookUp, || {
            self.files.read()?;
            self.ledger.scan(prefix, visit)
        })
    }

    fn apply(&self, changes: Vec<LedgerChange>) -> io::Result<()> {
        self.files.deed(Deed::Apply, || {
            self.files.write()?;
            self.ledger.apply(changes)
        })
    }
}

/// The file of remembered peers.
#[derive(Debug, Default, Clone)]
pub(super) struct PeersFile(Arc<Mutex<Option<Vec<u8>>>>);

impl PeersFile {
    pub(super) fn mounted(&self, files: &Files) -> Arc<dyn Memory> {
        Arc::new(MountedPeers { file: self.clone(), files: files.clone() })
    }
}

struct MountedPeers {
    file: PeersFile,
    files: Files,
}

impl Memory for MountedPeers {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        self.files.deed(Deed::LookUp, || self.files.read())?;
        Ok(self.file.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn store(&self, bytes: &[u8]) -> io::Result<()> {
        self.files.deed(Deed::Remember, || {
            self.files.write_and_sync()?;
            *self.file.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes.to_vec());
            Ok(())
        })
    }
}
