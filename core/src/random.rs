//! Random choices from a seed: the same seed, the same choices.
//!
//! Owns a stream of numbers, as good as BLAKE3. Refuses to ask the operating system: the edge that
//! starts a program brings the seed, the simulator brings its own.

use core::fmt;

use blake3::OutputReader;

/// A stream of random numbers.
#[derive(Clone)]
pub struct Random {
    stream: OutputReader,
    block: [u8; 64],
    used: usize,
}

impl Random {
    /// The stream of a seed. `purpose` keeps streams of one seed apart.
    pub fn new(seed: &[u8; 32], purpose: &str) -> Self {
        let stream = blake3::Hasher::new_keyed(seed).update(purpose.as_bytes()).finalize_xof();
        Self { stream, block: [0; 64], used: 64 }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        if self.used == self.block.len() {
            self.stream.fill(&mut self.block);
            self.used = 0;
        }
        let mut number = [0; 8];
        number.copy_from_slice(&self.block[self.used..self.used + 8]);
        self.used += 8;
        u64::from_le_bytes(number)
    }

    /// A number below `bound`, all equally likely but for 2^-64 · bound; 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let wide = u128::from(self.next_u64()) * bound as u128;
        // Below `bound`, which is a usize.
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    /// At most `count` of the items, all sets equally likely, in random order.
    pub fn choose<T>(&mut self, items: impl IntoIterator<Item = T>, count: usize) -> Vec<T> {
        let mut items: Vec<T> = items.into_iter().collect();
        let count = count.min(items.len());
        for at in 0..count {
            let other = at + self.below(items.len() - at);
            items.swap(at, other);
        }
        items.truncate(count);
        items
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chosen_items_are_different_and_the_seed_decides(
            seed: [u8; 32], items in 0usize..40, count in 0usize..50,
        ) {
            let chosen = Random::new(&seed, "test").choose(0..items, count);
            prop_assert_eq!(chosen.len(), count.min(items));
            prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
            prop_assert_eq!(chosen, Random::new(&seed, "test").choose(0..items, count));
        }
    }

    #[test]
    fn every_number_below_the_bound_comes_about_equally_often() {
        let mut random = Random::new(&[1; 32], "test");
        let mut counts = [0; 10];
        for _ in 0..10_000 {
            counts[random.below(10)] += 1;
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn purposes_have_streams_of_their_own() {
        assert_ne!(Random::new(&[1; 32], "a").next_u64(), Random::new(&[1; 32], "b").next_u64());
    }
}
