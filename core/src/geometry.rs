//! How many shards a chunk has, and how many rebuild it.
//!
//! Owns the (k, n) pair, its spelling `k+m`, the write quorum, and the default for a network of a
//! given size. Refuses codes that GF(2^8) cannot express.

use core::{fmt, str::FromStr};

use crate::{
    ids::ShardIndex,
    limits::{REPLICATE_BYTES_BELOW, SHARDS_MAX},
};

/// (k, n): any k of a chunk's n shards rebuild it. Written `10+6` for k = 10, n = 16.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Geometry {
    data: u8,
    total: u8,
}

/// A geometry that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Not of the form `k+m`.
    #[error("{0:?} is no geometry: write DATA+PARITY, for example 10+6")]
    Syntax(String),
    /// No data shard, or too many shards.
    #[error("{data}+{parity} is no geometry: at least 1 data shard, at most {SHARDS_MAX} in all")]
    Range {
        /// Data shards asked for.
        data: usize,
        /// Parity shards asked for.
        parity: usize,
    },
}

impl Geometry {
    /// `data` shards rebuild a chunk, `parity` more may be lost.
    ///
    /// # Errors
    /// When there is no data shard or there are more than [`SHARDS_MAX`] in all.
    pub fn new(data: usize, parity: usize) -> Result<Self, GeometryError> {
        let range = || GeometryError::Range { data, parity };
        let total = data.checked_add(parity).ok_or_else(range)?;
        if data == 0 || total > SHARDS_MAX {
            return Err(range());
        }
        Ok(Self {
            data: u8::try_from(data).map_err(|_| range())?,
            total: u8::try_from(total).map_err(|_| range())?,
        })
    }

    /// k: how many shards rebuild a chunk.
    pub const fn data(self) -> usize {
        self.data as usize
    }

    /// n: how many shards there are.
    pub const fn total(self) -> usize {
        self.total as usize
    }

    /// k and n as they are written: one byte each.
    pub const fn to_bytes(self) -> [u8; 2] {
        [self.data, self.total]
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// When k is 0 or more than n.
    pub fn from_bytes([data, total]: [u8; 2]) -> Result<Self, GeometryError> {
        match total.checked_sub(data) {
            Some(parity) => Self::new(data.into(), parity.into()),
            None => Err(GeometryError::Range { data: data.into(), parity: 0 }),
        }
    }

    /// The indices of all n shards, data first.
    pub fn indices(self) -> impl DoubleEndedIterator<Item = ShardIndex> + ExactSizeIterator {
        (0..self.total).map(ShardIndex)
    }

    /// n − k: how many shards may be lost.
    pub const fn parity(self) -> usize {
        self.total() - self.data()
    }

    /// How many shards of a chunk may lie on one node while another one could take them: n−k, whose loss
    /// can be borne; of replicas one, for two on one node are no safer, and prove no more.
    pub const fn apart(self) -> usize {
        if self.data == 1 || self.parity() == 0 { 1 } else { self.parity() }
    }

    /// w = k + ⌈2(n−k)/3⌉: how many distinct shards must be durable before a chunk counts as
    /// stored.
    pub const fn write_quorum(self) -> usize {
        self.data() + (2 * self.parity()).div_ceil(3)
    }

    /// The replicas that protect as well as this code: 1+(n−k).
    pub const fn replicated(self) -> Self {
        Self { data: 1, total: self.total - self.data + 1 }
    }

    /// This code, or replicas when the chunk is too small to be cut in k pieces.
    pub const fn for_plaintext(self, plaintext_bytes: usize) -> Self {
        if plaintext_bytes < REPLICATE_BYTES_BELOW { self.replicated() } else { self }
    }

    /// The default for a network of `nodes` nodes: none can survive on one.
    ///
    /// Every shard has a node of its own. At most two bytes of disk for each byte stored, and within
    /// that as many nines as it takes that from five nodes on a larger network is never less safe:
    /// docs/durability.md has the figures, docs/decisions what was weighed. Survives the loss of one
    /// node, from four nodes on of two, from six of three, from eight of four.
    pub fn default_for(nodes: usize) -> Option<Self> {
        let (data, total) = match nodes {
            0 | 1 => return None,
            2 => (1, 2),
            3 => (2, 3),
            4 => (2, 4),
            5 => (3, 5),
            6 | 7 => (3, 6),
            8..=11 => (4, 8),
            12..=15 => (7, 12),
            _ => (10, 16),
        };
        Some(Self { data, total })
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data(), self.parity())
    }
}

impl fmt::Debug for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Geometry {
    type Err = GeometryError;

    fn from_str(text: &str) -> Result<Self, GeometryError> {
        let syntax = || GeometryError::Syntax(text.to_owned());
        let (data, parity) = text.trim().split_once('+').ok_or_else(syntax)?;
        Self::new(data.parse().map_err(|_| syntax())?, parity.parse().map_err(|_| syntax())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(text: &str) -> Geometry {
        text.parse().expect("a geometry")
    }

    #[test]
    fn spelled_as_data_plus_parity() {
        let code = geometry("10+6");
        assert_eq!((code.data(), code.parity(), code.total()), (10, 6, 16));
        assert_eq!(code.to_string(), "10+6");
        for wrong in ["", "10", "10+", "+6", "0+6", "250+6", "a+b", "-1+2"] {
            assert!(wrong.parse::<Geometry>().is_err(), "{wrong:?} was taken for a geometry");
        }
    }

    #[test]
    fn the_write_quorum_is_two_thirds_of_the_parity_over_k() {
        for (code, quorum) in [("10+6", 14), ("1+1", 2), ("2+1", 3), ("1+0", 1), ("20+20", 34)] {
            assert_eq!(geometry(code).write_quorum(), quorum, "{code}");
        }
    }

    #[test]
    fn one_node_is_given_what_can_be_lost_and_of_replicas_one() {
        for (code, apart) in
            [("10+6", 6), ("2+1", 1), ("1+1", 1), ("1+6", 1), ("1+0", 1), ("3+0", 1)]
        {
            assert_eq!(geometry(code).apart(), apart, "{code}");
        }
    }

    #[test]
    fn replicas_bear_the_same_losses() {
        assert_eq!(geometry("10+6").replicated(), geometry("1+6"));
        assert_eq!(geometry("10+6").for_plaintext(100), geometry("1+6"));
        assert_eq!(geometry("10+6").for_plaintext(1 << 20), geometry("10+6"));
    }

    #[test]
    fn every_default_survives_the_loss_of_any_one_node() {
        assert_eq!(Geometry::default_for(1), None);
        for nodes in 2..100 {
            let code = Geometry::default_for(nodes).expect("two nodes are enough");
            assert!(code.total() <= nodes && code.parity() > 0, "{nodes} nodes: {code}");
            assert!(code.total() <= 2 * code.data(), "{nodes} nodes: {code}");
        }
    }
}
