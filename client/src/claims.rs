//! What of a node's claims of one chunk's shards can count, once it has proved them.
//!
//! Owns the rule, as plain values. Asks and proves nothing. The one idea: replicas are all the same bytes,
//! so who has one can prove every one, and is believed as many as it should have.

use copse_core::{
    geometry::Geometry,
    ids::{NodeId, ShardIndex},
};

/// A node that says what it holds of a chunk, and the first holder of each of its shards.
pub(crate) struct Claimant<'a> {
    pub(crate) geometry: Geometry,
    pub(crate) preferred: &'a [NodeId],
    pub(crate) node: NodeId,
}

impl Claimant<'_> {
    /// How many shards the preference list gives it.
    pub(crate) fn places(&self) -> usize {
        self.preferred.iter().filter(|place| **place == self.node).count()
    }

    /// Those that the chunk has, each once; of replicas one, or as many as it has places. Those of its own
    /// places come first, and then those that no `other` node has: where there are fewer nodes than replicas,
    /// who has two may have them by other numbers.
    pub(crate) fn credible(
        &self,
        mut claims: Vec<ShardIndex>,
        other: impl Fn(ShardIndex) -> bool,
    ) -> Vec<ShardIndex> {
        let is_own = |index: ShardIndex| self.preferred.get(index.as_usize()) == Some(&self.node);
        claims.retain(|index| index.as_usize() < self.geometry.total());
        claims.sort_unstable_by_key(|index| (!is_own(*index), other(*index), *index));
        claims.dedup();
        if self.geometry.data() == 1 {
            claims.truncate(self.places().max(1));
        }
        claims
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    #[test]
    fn of_replicas_on_one_node_one_counts_or_its_own_places() {
        let check = |code: &str, preferred: &[u8], of: u8, claims: &[u8], others: &[u8]| {
            let preferred: Vec<NodeId> = preferred.iter().copied().map(node).collect();
            let geometry = code.parse().expect("a geometry");
            let claimant = Claimant { geometry, preferred: &preferred, node: node(of) };
            let claims = claims.iter().copied().map(ShardIndex).collect();
            let credible = claimant.credible(claims, |index| others.contains(&index.0));
            credible.into_iter().map(|index| index.0).collect::<Vec<u8>>()
        };
        let all = [0, 1, 2];
        assert_eq!(check("1+2", &[1, 2, 3], 2, &all, &[]), [1]);
        assert_eq!(check("1+2", &[1, 2, 2], 2, &all, &[]), [1, 2]);
        // Two places, and replicas by the numbers that it was given.
        assert_eq!(check("1+2", &[1, 2, 2], 2, &[0, 2], &[]), [2, 0]);
        // One that is on no place's list has taken somebody's: of whom nobody has another.
        assert_eq!(check("1+2", &[1, 2, 3], 9, &all, &[]), [0]);
        assert_eq!(check("1+2", &[1, 2, 3], 9, &all, &[0]), [1]);
        assert_eq!(check("1+2", &[1, 2, 3], 9, &[0], &[0]), [0]);
        // Other shards are different bytes: each is proved for itself.
        assert_eq!(check("2+1", &[1, 2, 3], 2, &all, &[]), [1, 0, 2]);
        assert_eq!(check("2+1", &[1, 2, 3], 9, &[2, 3, 2, 255], &[]), [2], "those that there are");
    }
}
