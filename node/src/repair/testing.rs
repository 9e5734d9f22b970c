//! What several tests of repair use.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::store::{Ledger, LedgerChange, MemoryStore, ShardStore as _};

/// A ledger that can be told to fail.
pub(super) struct Failing {
    ledger: Arc<dyn Ledger>,
    pub(super) fails: AtomicBool,
}

impl Failing {
    /// An empty one.
    pub(super) fn new() -> Arc<Self> {
        let ledger = MemoryStore::new(0).ledger();
        Arc::new(Self { ledger, fails: AtomicBool::new(false) })
    }
}

impl Ledger for Failing {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.ledger.get(key)
    }

    fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        self.ledger.scan(prefix, visit)
    }

    fn apply(&self, changes: Vec<LedgerChange>) -> io::Result<()> {
        match self.fails.load(Ordering::Relaxed) {
            true => Err(io::Error::other("no")),
            false => self.ledger.apply(changes),
        }
    }
}
