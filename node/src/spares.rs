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
        let buffer = (length >= KEPT_BYTES_MIN).then(|| {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let fitting = kept.buffers.iter().rposition(|buffer| buffer.capacity() >= length);
            // One that does not fit makes room for one that will.
            let taken = match fitting {
                Some(at) => kept.buffers.swap_remove(at),
                None => kept.buffers.pop().unwrap_or_default(),
            };
            kept.bytes -= taken.capacity();
            taken
        });
        let mut buffer = buffer.unwrap_or_default();
        if buffer.capacity() < length {
            buffer = Vec::with_capacity(length);
        }
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
