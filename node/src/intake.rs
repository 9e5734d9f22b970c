//! Whether this node takes shards: a gate that closes once, when it leaves.
//!
//! Owns the moment behind which nothing more arrives: whoever stores a shard is inside the gate until it
//! is answered, and who closes the gate waits for all that are inside. So a shard that was acknowledged is
//! among those that are handed over.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use copse_core::ids::NodeId;
use copse_proto::status::{Reason, Refusal};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

/// The gate. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Intake(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    closed: AtomicBool,
    /// Read by all that are inside.
    inside: Arc<RwLock<()>>,
}

/// Somebody is inside, until this is dropped.
#[derive(Debug)]
pub struct Inside(#[expect(dead_code, reason = "held, not read")] OwnedRwLockReadGuard<()>);

impl Intake {
    /// Enters, to store one shard on this node.
    ///
    /// # Errors
    /// When the gate is closed.
    pub async fn enter(&self, own: NodeId) -> Result<Inside, Refusal> {
        if !self.0.closed.load(SeqCst) {
            let inside = Arc::clone(&self.0.inside).read_owned().await;
            // Looked at inside: who closes it now waits for this one.
            if !self.0.closed.load(SeqCst) {
                return Ok(Inside(inside));
            }
        }
        let text = format!("node {} is leaving and takes nothing new", own.short());
        Err(Refusal::new(Reason::Leaving, text).about("node", own))
    }

    /// Closes the gate, and waits until nobody is inside.
    pub async fn close(&self) {
        self.0.closed.store(true, SeqCst);
        drop(self.0.inside.write().await);
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, poll};

    use super::*;

    #[tokio::test]
    async fn who_closes_it_waits_for_those_inside_and_nobody_enters_any_more() {
        let (intake, own) = (Intake::default(), NodeId::new([1; 32]));
        let first = intake.enter(own).await.expect("it is open");
        let second = intake.enter(own).await.expect("for several");
        let mut closing = Box::pin(intake.close());
        assert!(poll!(&mut closing).is_pending());
        // At once, not when the others have left.
        let refused = intake.enter(own).now_or_never().expect("an answer");
        assert_eq!(refused.expect_err("it is closed").reason(), Reason::Leaving);
        drop(first);
        assert!(poll!(&mut closing).is_pending());
        drop(second);
        closing.await;
        assert!(intake.enter(own).await.is_err());
    }
}
