//! What the writing thread is asked, and where the answers go.
//!
//! Owns puts and removals on their way: what record each becomes, when it is done already, and that
//! several of one shard are one. Writes nothing.

use std::collections::BTreeMap;

use copse_core::{geometry::Geometry, ids::ShardId};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    PutError, RemovalReason, RemoveError, Removed, Stored, VerifiedShard,
    index::{Entry, State},
    segment::{HEAD_BYTES, Kind, RecordHeader, Removal},
};

/// What the writer is asked.
pub(super) enum Request {
    /// Store or remove a shard.
    Write(Asked),
    /// Set a shard apart if its record still is the one at this place.
    Quarantine { id: ShardId, entry: Entry, done: oneshot::Sender<()> },
    /// Do the upkeep that is due, but not more than so many steps.
    Upkeep { steps_max: usize, done: oneshot::Sender<()> },
}

/// What is to be written.
pub(super) enum Work {
    Put(VerifiedShard),
    Remove(ShardId, RemovalReason),
}

/// Where an answer goes.
pub(super) enum Answer {
    Put(oneshot::Sender<Result<Stored, PutError>>),
    Remove(oneshot::Sender<Result<Removed, RemoveError>>),
}

/// A write and who waits for it.
pub(super) struct Asked {
    pub(super) work: Work,
    pub(super) answer: Answer,
    /// The write's share of the queue, given back when it is answered.
    pub(super) share: Vec<OwnedSemaphorePermit>,
}

impl Work {
    pub(super) fn id(&self) -> ShardId {
        match self {
            Self::Put(shard) => shard.id(),
            Self::Remove(id, _) => *id,
        }
    }

    pub(super) fn record_bytes(&self) -> u64 {
        match self {
            Self::Put(shard) => record_bytes(shard),
            Self::Remove(..) => HEAD_BYTES as u64,
        }
    }

    /// Whether a shard with this row already is as it is wanted.
    pub(super) fn is_done(&self, row: Option<&Entry>) -> bool {
        match self {
            Self::Put(_) => row.is_some_and(Entry::is_live),
            Self::Remove(..) => {
                !row.is_some_and(|row| matches!(row.state, State::Live | State::Quarantined))
            }
        }
    }

    /// The header of the record, for a commit that begins at `commit`.
    pub(super) fn header(&self, now: u32, commit: u64) -> RecordHeader {
        // All lengths are bounded by the checks of the descriptor and the segment.
        let bounded = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let (kind, descriptor_bytes, shard_bytes) = match self {
            Self::Put(shard) => {
                (Kind::Shard, bounded(shard.descriptor().len()), bounded(shard.data().len()))
            }
            Self::Remove(_, reason) => {
                (Kind::Removal(Removal { since: now, reason: *reason }), 0, 0)
            }
        };
        let commit = u32::try_from(commit).unwrap_or(u32::MAX);
        RecordHeader { kind, id: self.id(), descriptor_bytes, shard_bytes, commit }
    }

    pub(super) fn geometry(&self) -> Option<Geometry> {
        match self {
            Self::Put(shard) => Some(shard.geometry()),
            Self::Remove(..) => None,
        }
    }

    /// What follows the header.
    pub(super) fn body(&self) -> [&[u8]; 3] {
        match self {
            Self::Put(shard) => [shard.descriptor(), shard.groups(), shard.data()],
            Self::Remove(..) => [&[]; 3],
        }
    }
}

impl Answer {
    /// Answers: written now (`new`) or found done. Who does not listen any more does not mind.
    pub(super) fn give(self, id: ShardId, result: Result<bool, &PutError>) {
        match self {
            Self::Put(answer) => {
                let stored = |new| if new { Stored::New } else { Stored::AlreadyHeld };
                let _ = answer.send(result.map(stored).map_err(PutError::clone));
            }
            Self::Remove(answer) => {
                let removed = |new| if new { Removed::Removed } else { Removed::NotHeld };
                let _ =
                    answer.send(result.map(removed).map_err(|error| RemoveError::of(id, error)));
            }
        }
    }
}

/// Bytes of a shard's record.
pub(super) fn record_bytes(shard: &VerifiedShard) -> u64 {
    (HEAD_BYTES + shard.descriptor().len() + shard.groups().len() + shard.data().len()) as u64
}

/// The same write, asked for several times: the first is done, the others find it done.
pub(super) struct Wanted {
    pub(super) work: Work,
    pub(super) answers: Vec<(Answer, Vec<OwnedSemaphorePermit>)>,
}

impl Wanted {
    pub(super) fn answer(self, result: Result<(), &PutError>) {
        let id = self.work.id();
        let mut new = true;
        for (answer, _share) in self.answers {
            answer.give(id, result.map(|()| std::mem::take(&mut new)));
        }
    }
}

/// Writes that go to the disk together.
#[derive(Default)]
pub(super) struct Run {
    pub(super) wanted: Vec<Wanted>,
    /// Which of them is about this shard: never two.
    at: BTreeMap<ShardId, usize>,
    pub(super) bytes: u64,
}

impl Run {
    /// What is wanted of this shard.
    pub(super) fn about(&mut self, id: ShardId) -> Option<&mut Wanted> {
        self.wanted.get_mut(*self.at.get(&id)?)
    }

    pub(super) fn push(&mut self, asked: Asked) {
        let Asked { work, answer, share } = asked;
        self.bytes += work.record_bytes();
        self.at.insert(work.id(), self.wanted.len());
        self.wanted.push(Wanted { work, answers: vec![(answer, share)] });
    }
}
