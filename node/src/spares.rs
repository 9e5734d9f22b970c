//! Buffers of shards on their way, used again.
//!
//! Owns some memory that was a shard and will be one again. A shard has most of a megabyte; the
//! system would take its pages back and clear new ones for each, which cost a fifth of the time of a
//! transfer. Refuses to keep more than a bound.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Memory that is kept, in bytes, at most: 20 shards of full chunks of 10+6.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Shorter buffers are left to the allocator, which does not give them back either.
const KEPT_BYTES_MIN: usize = 64 << 10;

/// A buffer is used again for something shorter only if it has at most this many times its length: what
/// is on its way is counted by its length, so a small shard must not hold the memory of a large one.
const CAPACITY_TIMES_MAX: usize = 2;

/// Spare buffers. Clones share them.
#[derive(Clone, Default)]
pub struct Spares(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl Spares {
    /// An empty buffer with room for `length` bytes.
    pub fn take(&self, length: usize) -> Spare {
        let fits = |buffer: &Vec<u8>| {
            let fitting = length..=length.saturating_mul(CAPACITY_TIMES_MAX);
            fitting.contains(&buffer.capacity())
        };
        let kept = (length >= KEPT_BYTES_MIN).then(|| {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // One that does not fit makes room for one that will.
            let taken = match kept.buffers.iter().rposition(fits) {
                Some(at) => kept.buffers.swap_remove(at),
                None => kept.buffers.pop().unwrap_or_default(),
            };
            kept.bytes -= taken.capacity();
            taken
        });
        let buffer = kept.filter(fits).unwrap_or_else(|| Vec::with_capacity(length));
        Spare { buffer, home: self.clone() }
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if capacity < KEPT_BYTES_MIN {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + capacity <= KEPT_BYTES_MAX {
            buffer.clear();
            kept.bytes += capacity;
            kept.buffers.push(buffer);
        }
    }
}

/// A buffer that goes back to its [`Spares`] with the last [`Bytes`] made of it.
pub struct Spare {
    buffer: Vec<u8>,
    home: Spares,
}

impl Spare {
    /// Adds bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// How many bytes are in it.
    pub fn filled(&self) -> usize {
        self.buffer.len()
    }

    /// What is in it.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Spare {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(spares: &Spares) -> (usize, usize) {
        let kept = spares.0.lock().expect("not poisoned");
        assert_eq!(kept.bytes, kept.buffers.iter().map(Vec::capacity).sum::<usize>());
        (kept.buffers.len(), kept.bytes)
    }

    #[test]
    fn a_buffer_comes_back_empty_with_the_last_of_its_bytes() {
        let spares = Spares::default();
        let mut spare = spares.take(100_000);
        spare.extend(&[7; 100_000]);
        let bytes = spare.freeze();
        let part = bytes.slice(5..10);
        drop(bytes);
        assert_eq!(kept(&spares).0, 0, "a part is still in use");
        assert_eq!(&part[..], [7; 5]);
        drop(part);
        assert_eq!(kept(&spares).0, 1);
        let again = spares.take(90_000);
        assert_eq!((again.filled(), kept(&spares).0), (0, 0));
    }

    #[test]
    fn a_small_shard_does_not_hold_the_memory_of_a_large_one() {
        let spares = Spares::default();
        let small: Vec<Spare> = (0..100)
            .map(|_| {
                spares.take(8 << 20).extend(&[7; 8 << 20]);
                spares.take(64 << 10)
            })
            .collect();
        let held: usize = small.iter().map(|spare| spare.buffer.capacity()).sum();
        assert!(held <= 100 * (128 << 10), "{held} bytes are held for 100 shards of 64 KiB");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let spares = Spares::default();
        let many: Vec<Spare> = (0..40).map(|_| spares.take(1 << 20)).collect();
        drop(many);
        assert_eq!(kept(&spares), (16, KEPT_BYTES_MAX));
        drop(spares.take(100));
        assert_eq!(kept(&spares), (16, KEPT_BYTES_MAX), "small ones come and go");
        drop(spares.take(8 << 20));
        let (_, bytes) = kept(&spares);
        assert!(bytes <= KEPT_BYTES_MAX, "{bytes}");
    }
}
