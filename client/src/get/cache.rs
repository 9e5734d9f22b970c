//! The bytes that a reader has just read, for the next read beside them.
//!
//! Owns two small stores with a bound in bytes: verified pieces of shards, filled when small items
//! of one pack are read one after the other, and the plaintext of tree nodes. All of it can be
//! forgotten at any time.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    ops::Range,
    sync::{Mutex, MutexGuard},
};

use bytes::Bytes;

use crate::lock::lock;

/// A store that forgets what came first when it holds more than so many bytes.
#[derive(Debug)]
pub(super) struct Cache<K> {
    bytes_max: usize,
    held: Mutex<Held<K>>,
}

#[derive(Debug)]
struct Held<K> {
    values: HashMap<K, (Range<usize>, Bytes)>,
    order: VecDeque<K>,
    bytes: usize,
}

impl<K: Clone + Eq + Hash> Cache<K> {
    pub(super) fn new(bytes_max: usize) -> Self {
        let held = Held { values: HashMap::new(), order: VecDeque::new(), bytes: 0 };
        Self { bytes_max, held: Mutex::new(held) }
    }

    /// The bytes of a range, if what is here for this key covers it.
    pub(super) fn get(&self, key: &K, range: &Range<usize>) -> Option<Bytes> {
        let held = self.lock();
        let (covered, bytes) = held.values.get(key)?;
        let covers = covered.start <= range.start && range.end <= covered.end;
        covers.then(|| bytes.slice(range.start - covered.start..range.end - covered.start))
    }

    /// Keeps the bytes of a range, in place of what was there for this key. What is large is not
    /// kept: it would push out all the rest.
    pub(super) fn insert(&self, key: K, range: Range<usize>, bytes: Bytes) {
        if bytes.len() > self.bytes_max / 16 {
            return;
        }
        let mut held = self.lock();
        held.bytes += bytes.len();
        if let Some((_, before)) = held.values.insert(key.clone(), (range, bytes)) {
            held.bytes -= before.len();
        } else {
            held.order.push_back(key);
        }
        while held.bytes > self.bytes_max {
            let Some(oldest) = held.order.pop_front() else { return };
            held.bytes -= held.values.remove(&oldest).map_or(0, |(_, bytes)| bytes.len());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held<K>> {
        lock(&self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_covered_is_found_and_the_oldest_is_forgotten() {
        let cache = Cache::new(160);
        for key in 0..20u8 {
            cache.insert(key, 100..110, Bytes::from(vec![key; 10]));
        }
        assert_eq!(cache.get(&3, &(100..110)), None);
        assert_eq!(cache.get(&4, &(102..104)), Some(Bytes::from_static(&[4, 4])));
        assert_eq!(cache.get(&4, &(99..104)), None);
        assert_eq!(cache.get(&4, &(109..111)), None);
        cache.insert(99, 0..11, Bytes::from(vec![0; 11]));
        assert_eq!(cache.get(&99, &(0..1)), None, "too large to be kept");
        cache.insert(19, 0..10, Bytes::from(vec![1; 10]));
        assert_eq!(cache.lock().bytes, 160);
    }
}
