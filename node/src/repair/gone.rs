//! Which nodes are gone for good, so that what they held need not be known any more.
//!
//! Owns since when a node has been given up. The one idea: who left by its own word is forgotten at
//! once, who was given up after weeks, for it may come back with all it had; and if it comes back
//! later than that, it is simply asked for everything again.
//!
//! ```text
//! row              value
//! "rg" ‖ node 32   1 u8 ‖ given up since u64 LE, unix seconds
//! ```

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use copse_core::{
    ids::NodeId,
    repair::{Nodes, Standing},
};

use crate::store::{LEDGER_CHANGES_MAX, Ledger, LedgerChange};

/// After so long the claims of a node that was given up are forgotten: four weeks. That is longer than
/// a holiday, and its shards have long been made again elsewhere.
const FORGET_AFTER_SECONDS: u64 = 28 * 24 * 3600;

const ROW_VERSION: u8 = 1;
const ROW_PREFIX: &[u8] = b"rg";

/// Nodes that were given up, with the time. One entry for each node of the mirror at most.
pub(super) struct Gone {
    ledger: Arc<dyn Ledger>,
    since: Mutex<BTreeMap<NodeId, u64>>,
}

impl Gone {
    /// Loads what was noted before this start. Blocks on the ledger.
    pub(super) fn load(ledger: Arc<dyn Ledger>) -> io::Result<Self> {
        let mut since = BTreeMap::new();
        ledger.scan(ROW_PREFIX, &mut |key, value| {
            since.extend(read_row(key, value));
            true
        })?;
        Ok(Self { ledger, since: Mutex::new(since) })
    }

    /// Takes in how the nodes of the mirror stand; those of them to forget. Blocks on the ledger, when
    /// something changed.
    pub(super) fn note(
        &self,
        mirrored: &[NodeId],
        nodes: &impl Nodes,
        now: u64,
    ) -> io::Result<Vec<NodeId>> {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut after, mut forget) = (BTreeMap::new(), Vec::new());
        for node in mirrored {
            match nodes.facts(node).standing {
                Standing::Left => forget.push(*node),
                Standing::Dead | Standing::Unknown => {
                    // Noted by a clock that was ahead: then it counts from now.
                    let gone = since.get(node).map_or(now, |since| *since.min(&now));
                    if now - gone >= FORGET_AFTER_SECONDS {
                        forget.push(*node);
                    }
                    after.insert(*node, gone);
                }
                _ => {}
            }
        }
        let new = after.iter().filter(|(node, gone)| since.get(node) != Some(gone));
        let mut changes: Vec<LedgerChange> =
            new.map(|(node, gone)| (row_key(node), Some(row_value(*gone)))).collect();
        let old = since.keys().filter(|node| !after.contains_key(node));
        changes.extend(old.map(|node| (row_key(node), None)));
        changes.chunks(LEDGER_CHANGES_MAX).try_for_each(|part| self.ledger.apply(part.to_vec()))?;
        *since = after;
        Ok(forget)
    }
}

fn row_key(node: &NodeId) -> Vec<u8> {
    [ROW_PREFIX, node.as_bytes()].concat()
}

fn row_value(since: u64) -> Vec<u8> {
    [&[ROW_VERSION][..], &since.to_le_bytes()].concat()
}

fn read_row(key: &[u8], value: &[u8]) -> Option<(NodeId, u64)> {
    let node = NodeId::from_slice(key.get(ROW_PREFIX.len()..)?).ok()?;
    let [ROW_VERSION, since @ ..] = value else { return None };
    Some((node, u64::from_le_bytes(since.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use copse_core::repair::NodeFacts;

    use super::*;
    use crate::store::{MemoryStore, ShardStore as _};

    const NOW: u64 = 1_800_000_000;

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    #[test]
    fn a_row_has_these_bytes_and_reads_back() {
        assert_eq!(row_key(&node(7))[..3], *b"rg\x07");
        assert_eq!(row_value(0x0102), [1, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read_row(&row_key(&node(7)), &row_value(9)), Some((node(7), 9)));
        assert_eq!(read_row(&row_key(&node(7)), &[2; 9]), None);
        assert_eq!(read_row(b"rg\x07", &row_value(9)), None);
    }

    #[test]
    fn who_left_is_forgotten_at_once_and_who_was_given_up_after_four_weeks() {
        let ledger = MemoryStore::new(0).ledger();
        let standing = |left, dead| {
            BTreeMap::from([
                (node(1), NodeFacts::standing(left)),
                (node(2), NodeFacts::standing(dead)),
                (node(3), NodeFacts::standing(Standing::Down)),
            ])
        };
        let all = [1, 2, 3].map(node);
        let gone = Gone::load(Arc::clone(&ledger)).expect("empty");
        let nodes = standing(Standing::Left, Standing::Dead);
        assert_eq!(gone.note(&all, &nodes, NOW).expect("a ledger"), [node(1)]);
        // A restart does not begin the weeks anew; a clock that was ahead does not shorten them.
        let gone = Gone::load(Arc::clone(&ledger)).expect("rows");
        let almost = NOW + FORGET_AFTER_SECONDS - 1;
        assert_eq!(gone.note(&all[1..], &nodes, almost).expect("a ledger"), []);
        assert_eq!(gone.note(&all[1..], &nodes, almost + 1).expect("a ledger"), [node(2)]);
        assert_eq!(gone.note(&all[2..], &nodes, almost + 1).expect("a ledger"), []);
        // Who came back begins anew.
        assert_eq!(gone.note(&all, &nodes, NOW).expect("a ledger"), [node(1)]);
        let back = standing(Standing::Left, Standing::Alive);
        assert_eq!(gone.note(&all, &back, NOW + 9).expect("a ledger"), [node(1)]);
        assert_eq!(gone.note(&all, &nodes, almost + 1).expect("a ledger"), [node(1)]);
        let gone = Gone::load(ledger).expect("rows");
        assert_eq!(*gone.since.lock().expect("sound"), BTreeMap::from([(node(2), almost + 1)]));
    }
}
