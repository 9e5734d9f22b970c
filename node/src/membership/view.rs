//! The network at one moment, for repair: the ring, and how each node stands.
//!
//! Owns when it must be made anew. The one idea: the directory says who is gone for good, this node's
//! own pings say who answers, and a view is both together.

use std::sync::Arc;

use copse_core::{
    directory::{Directory, NodeRecord, Standing as Word},
    guard::Guard,
    liveness::{Liveness, Watch},
    repair::Standing,
    ring::Ring,
};

use crate::repair::View;

/// Makes views and keeps the last one.
#[derive(Default)]
pub(super) struct Viewer {
    last: Option<Arc<View>>,
    ring: Option<(u64, Arc<Ring>, [u8; 16])>,
}

impl Viewer {
    /// The last view is no longer true.
    pub(super) fn outdated(&mut self) {
        self.last = None;
    }

    /// The view of now.
    pub(super) fn view(
        &mut self,
        directory: &Directory,
        watch: &Watch,
        own: &NodeRecord,
    ) -> Arc<View> {
        if let Some(last) = &self.last {
            return Arc::clone(last);
        }
        let (ring, ring_id) = self.ring(directory);
        let standings = directory.iter().map(|signed| {
            let node = signed.node();
            (node, standing(directory, watch, &node))
        });
        let guard = watch.guard();
        let view = Arc::new(View {
            ring,
            ring_id,
            own_state: own.state,
            standings: standings.collect(),
            cut_off: !guard.may_plan(),
            frozen: !guard.may_sign(),
        });
        self.last = Some(Arc::clone(&view));
        view
    }

    /// The ring, built only when it may have changed.
    fn ring(&mut self, directory: &Directory) -> (Arc<Ring>, [u8; 16]) {
        let revision = directory.ring_revision();
        match &self.ring {
            Some((known, ring, id)) if *known == revision => (Arc::clone(ring), *id),
            _ => {
                let ring = Arc::new(directory.ring());
                let id = ring_id(&ring);
                self.ring = Some((revision, Arc::clone(&ring), id));
                (ring, id)
            }
        }
    }
}

/// Why nobody is evicted or nothing is planned; empty when all is as usual.
pub(super) fn text_of(guard: &Guard) -> String {
    match guard {
        Guard::Free => String::new(),
        other => other.to_string(),
    }
}

fn standing(directory: &Directory, watch: &Watch, node: &copse_core::ids::NodeId) -> Standing {
    let answers = watch.state(node, directory);
    match (directory.standing(node), answers) {
        (None, _) => Standing::Unknown,
        (Some(Word::Evicted), _) => Standing::Dead,
        (Some(Word::Left), _) => Standing::Left,
        (Some(_), Liveness::Down) => Standing::Down,
        (Some(Word::Leaving), _) => Standing::Leaving,
        (Some(Word::Active), Liveness::Alive) => Standing::Alive,
        (Some(Word::Active), Liveness::Suspect) => Standing::Suspect,
    }
}

/// Equal for rings of equal members.
fn ring_id(ring: &Ring) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key("copse ring id v1");
    for member in ring.members() {
        hasher.update(member.id.as_bytes()).update(&member.capacity_bytes.to_le_bytes());
        hasher.update(&(member.zone.len() as u64).to_le_bytes()).update(member.zone.as_bytes());
    }
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    id
}
