//! Large buffers that are used again.
//!
//! Owns a few idle buffers, bounded in bytes. Counts nothing that is in use; that is the budgets'
//! business. The one idea: fresh memory for every chunk costs a page fault for every 4 KiB, which
//! is as dear as the cipher.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use crate::lock::lock;

/// Smaller buffers are not kept: they are cheap to make and would be in the way of the large ones.
const KEPT_BYTES_MIN: usize = 256 << 10;

/// What goes from memory to a disk past the page cache begins at a multiple of this, in memory and on the
/// disk, in bytes: the largest block that usual disks have.
pub(crate) const BLOCK_BYTES: usize = 4 << 10;

/// As many bytes are worth the way past the page cache.
pub(crate) const DIRECT_BYTES_MIN: usize = 1 << 20;

/// Idle buffers.
#[derive(Debug)]
pub(crate) struct Pool {
    kept_bytes_max: usize,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// A pool that keeps at most this many bytes.
    pub(crate) fn new(kept_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { kept_bytes_max, buffers: Mutex::default() })
    }

    /// A buffer with room for `bytes` and not for much more, or an empty one. Its length and
    /// content are what they were.
    pub(crate) fn take(&self, bytes: usize) -> Vec<u8> {
        let mut buffers = self.lock();
        let fits = |buffer: &Vec<u8>| (bytes..=2 * bytes).contains(&buffer.capacity());
        match buffers.iter().position(fits) {
            Some(at) => buffers.swap_remove(at),
            None => Vec::new(),
        }
    }

    /// A buffer of this length with any content.
    pub(crate) fn sized(&self, bytes: usize) -> Vec<u8> {
        let mut buffer = self.take(bytes);
        if buffer.capacity() < bytes {
            return vec![0; bytes];
        }
        buffer.resize(bytes, 0);
        buffer
    }

    /// A buffer with any content, and where in it so many bytes begin: many of them at the begin of a block,
    /// so that they can go to a disk as they lie.
    pub(crate) fn placed(&self, bytes: usize) -> (Vec<u8>, usize) {
        if bytes < DIRECT_BYTES_MIN {
            return (self.sized(bytes), 0);
        }
        let buffer = self.sized(bytes + BLOCK_BYTES - 1);
        let begin = buffer.as_ptr().align_offset(BLOCK_BYTES);
        // It may be that nobody can tell.
        let begin = if begin < BLOCK_BYTES { begin } else { 0 };
        (buffer, begin)
    }

    /// Keeps a buffer, or frees it when enough are kept.
    pub(crate) fn give_back(&self, buffer: Vec<u8>) {
        let mut buffers = self.lock();
        let kept: usize = buffers.iter().map(Vec::capacity).sum();
        if buffer.capacity() >= KEPT_BYTES_MIN && kept + buffer.capacity() <= self.kept_bytes_max {
            buffers.push(buffer);
        }
    }

    /// Shares a buffer as `Bytes`; it comes back when the last slice of it is dropped.
    pub(crate) fn share(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        if buffer.capacity() < KEPT_BYTES_MIN {
            return Bytes::from(buffer);
        }
        Bytes::from_owner(Lent { buffer, pool: Arc::clone(self) })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        lock(&self.buffers)
    }
}

struct Lent {
    buffer: Vec<u8>,
    pool: Arc<Pool>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_buffer_comes_back_and_what_is_kept_is_bounded() {
        let pool = Pool::new(3 << 20);
        let buffer = pool.sized(1 << 20);
        let place = buffer.as_ptr();
        let bytes = pool.share(buffer);
        let slice = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(pool.take(1 << 20).capacity(), 0);
        drop(slice);
        let again = pool.take(1 << 20);
        assert_eq!(again.as_ptr(), place);
        for _ in 0..10 {
            pool.give_back(vec![0; 1 << 20]);
        }
        assert_eq!(pool.lock().len(), 3);
        assert_eq!(pool.take(1 << 10).capacity(), 0, "a large buffer for little");
    }

    #[test]
    fn many_bytes_are_placed_where_a_disk_can_take_them_from() {
        let pool = Pool::new(8 << 20);
        for bytes in [DIRECT_BYTES_MIN, DIRECT_BYTES_MIN + 1, 3 << 20] {
            let (buffer, begin) = pool.placed(bytes);
            assert!(begin + bytes <= buffer.len());
            let shared = pool.share(buffer).slice(begin..begin + bytes);
            assert_eq!(shared.as_ptr().align_offset(BLOCK_BYTES), 0, "{bytes} bytes");
        }
        let (buffer, begin) = pool.placed(100);
        assert_eq!((buffer.len(), begin), (100, 0));
    }
}
