//! Disks: what a machine keeps over a restart, and the fence that shuts out a dead process.
//!
//! Owns the difference between a process and its disk. The one idea: a process that was killed goes
//! on in this world as a task or two, but nothing it does reaches a disk or a line any more. The
//! moment at which the fence falls is the moment of its death, at any await.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use copse_core::ids::{ChunkId, ShardId, ShardIndex};
use copse_node::{
    membership::memory::Memory,
    store::{
        ArcChanges, HeldShard, Ledger, LedgerChange, MemoryStore, PutError, ReadError,
        RemovalReason, RemoveError, Removed, ShardRead, ShardStore, StoreRevision, StoreStats,
        Stored, VerifiedShard, Want,
    },
};

use super::{atlas::Lie, scene::Scene};

/// What a read leaves behind in a node that never lets go of memory.
const HOARD_BYTES: usize = 256 << 10;

/// Falls once, when the process dies.
#[derive(Debug, Clone, Default)]
pub(super) struct Fence(Arc<AtomicBool>);

impl Fence {
    pub(super) fn fall(&self) {
        self.0.store(true, Relaxed);
    }

    fn has_fallen(&self) -> bool {
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
    disk: Arc<MemoryStore>,
    fence: Fence,
    lying: Lying,
    scene: Scene,
    /// Buffers of all reads, for a node that never lets go of them.
    hoard: Option<Mutex<Vec<Vec<u8>>>>,
}

impl Mounted {
    pub(super) fn new(
        disk: &Arc<MemoryStore>,
        fence: &Fence,
        lying: &Lying,
        scene: &Scene,
        hoards: bool,
    ) -> Arc<Self> {
        let (disk, lying) = (Arc::clone(disk), Arc::clone(lying));
        let hoard = hoards.then(Mutex::default);
        Arc::new(Self { disk, fence: fence.clone(), lying, scene: scene.clone(), hoard })
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
        // Who died in between tells nobody.
        if self.fence.has_fallen() { Err(PutError::Closed) } else { stored }
    }

    async fn read(&self, id: ShardId, want: Want) -> Result<ShardRead, ReadError> {
        self.readable()?;
        let mut read = self.disk.read(id, want).await?;
        if let Some(hoard) = &self.hoard {
            hoard.lock().unwrap_or_else(PoisonError::into_inner).push(vec![0; HOARD_BYTES]);
        }
        let lie = *self.lying.lock().unwrap_or_else(PoisonError::into_inner);
        match lie {
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
            Some(Lie::FalseWitness | Lie::StaleRecords) => {}
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
        self.disk.held(chunk).await
    }

    async fn list(&self, after: Option<ShardId>, limit: usize) -> Result<Vec<ShardId>, ReadError> {
        self.readable()?;
        self.disk.list(after, limit).await
    }

    async fn arc_changes(&self, since: Option<StoreRevision>) -> Result<ArcChanges, ReadError> {
        self.readable()?;
        self.disk.arc_changes(since).await
    }

    async fn list_arc(
        &self,
        arc: u16,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Vec<HeldShard>, ReadError> {
        self.readable()?;
        self.disk.list_arc(arc, after, limit).await
    }

    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::new(MountedLedger { ledger: self.disk.ledger(), fence: self.fence.clone() })
    }

    async fn stats(&self) -> StoreStats {
        self.disk.stats().await
    }

    // The disk outlives the process.
    async fn close(&self) {}
}

struct MountedLedger {
    ledger: Arc<dyn Ledger>,
    fence: Fence,
}

impl Ledger for MountedLedger {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.fence.io()?;
        self.ledger.get(key)
    }

    fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        self.fence.io()?;
        self.ledger.scan(prefix, visit)
    }

    fn apply(&self, changes: Vec<LedgerChange>) -> io::Result<()> {
        self.fence.io()?;
        self.ledger.apply(changes)
    }
}

/// The file of remembered peers.
#[derive(Debug, Default, Clone)]
pub(super) struct PeersFile(Arc<Mutex<Option<Vec<u8>>>>);

impl PeersFile {
    pub(super) fn mounted(&self, fence: &Fence) -> Arc<dyn Memory> {
        Arc::new(MountedPeers { file: self.clone(), fence: fence.clone() })
    }
}

struct MountedPeers {
    file: PeersFile,
    fence: Fence,
}

impl Memory for MountedPeers {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.file.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn store(&self, bytes: &[u8]) -> io::Result<()> {
        self.fence.io()?;
        *self.file.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes.to_vec());
        Ok(())
    }
}
