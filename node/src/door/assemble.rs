//! Shards out of the messages of a Put stream.
//!
//! Owns the order of headers and pieces, without any I/O. A wrong shard is refused and its remaining
//! pieces are skipped, so that the stream goes on; pieces that belong to no shard end the stream.

use bytes::Bytes;
use copse_core::ids::{NodeId, ShardId};
use copse_proto::{
    convert, door,
    status::{Reason, Refusal},
};

use crate::spares::{Spare, Spares};

/// Bytes of one piece of a shard, at most, as the .proto says.
pub(super) const PIECE_BYTES_MAX: usize = 1 << 20;

/// A shard that is announced, or complete once `data` is.
#[derive(Debug)]
pub(super) struct Shard {
    /// The client's name for it, repeated in the answer.
    pub(super) tag: u64,
    /// The node it is for; none: this one.
    pub(super) target: Option<NodeId>,
    /// The chunk's descriptor.
    pub(super) descriptor: Bytes,
    /// Which shard.
    pub(super) id: ShardId,
    /// Whether the client says when its chunk is safe.
    pub(super) settles: bool,
    /// Its length by the descriptor.
    pub(super) shard_bytes: usize,
    /// What came of it.
    pub(super) data: Bytes,
}

/// A shard that is refused; the stream goes on.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) tag: u64,
    pub(super) refusal: Refusal,
}

/// What a header brought about.
#[derive(Debug)]
pub(super) struct Begun {
    /// The shard before, if it was not complete.
    pub(super) before: Option<Refused>,
    /// The length of the shard that begins, or why it is refused.
    pub(super) shard: Result<usize, Refused>,
}

/// Puts the pieces of one stream together.
#[derive(Default)]
pub(super) struct Assembler {
    state: State,
    spares: Spares,
}

#[derive(Default)]
enum State {
    /// Between shards.
    #[default]
    Idle,
    /// In the pieces of a refused shard.
    Skipping,
    /// In the pieces of a shard.
    Receiving(Box<Shard>, Option<Spare>),
}

impl Assembler {
    /// One that puts shards together in these buffers.
    pub(super) fn new(spares: Spares) -> Self {
        Self { state: State::Idle, spares }
    }

    /// Whether a shard has begun and is not complete.
    pub(super) fn receiving(&self) -> bool {
        matches!(self.state, State::Receiving(..))
    }

    /// Takes a header.
    pub(super) fn header(&mut self, header: door::PutHeader) -> Begun {
        let before = self.abandon("the next one began");
        let tag = header.tag;
        let shard = match begin(header) {
            Ok(incoming) => {
                let shard_bytes = incoming.shard_bytes;
                self.state = State::Receiving(Box::new(incoming), None);
                Ok(shard_bytes)
            }
            Err(refusal) => {
                self.state = State::Skipping;
                Err(Refused { tag, refusal })
            }
        };
        Begun { before, shard }
    }

    /// Takes a piece, or a part of one of which `left` bytes are to come, these included; gives the shard
    /// when it is complete, or why it is refused.
    ///
    /// # Errors
    /// When the piece belongs to no shard: the stream makes no sense any more.
    pub(super) fn piece(
        &mut self,
        part: &[u8],
        left: usize,
    ) -> Result<Option<Result<Shard, Refused>>, Refusal> {
        let (mut incoming, buffer) = match std::mem::take(&mut self.state) {
            State::Idle => {
                return Err(Refusal::new(
                    Reason::Torn,
                    "data that belongs to no shard: send a header first, and not more data than \
                     the descriptor says",
                ));
            }
            State::Skipping => {
                self.state = State::Skipping;
                return Ok(None);
            }
            State::Receiving(incoming, buffer) => (incoming, buffer),
        };
        let refuse = |reason, message| {
            Ok(Some(Err(Refused { tag: incoming.tag, refusal: Refusal::new(reason, message) })))
        };
        if left > PIECE_BYTES_MAX {
            self.state = State::Skipping;
            let message =
                format!("a piece of {left} bytes or more is over the limit of {PIECE_BYTES_MAX}");
            return refuse(Reason::Oversized, message);
        }
        let filled = buffer.as_ref().map_or(0, Spare::filled);
        if filled + left > incoming.shard_bytes {
            self.state = State::Skipping;
            let message = format!(
                "shard {} has {} bytes by its descriptor, got {} or more",
                incoming.id,
                incoming.shard_bytes,
                filled + left
            );
            return refuse(Reason::ShardMismatch, message);
        }
        // Copied, since a part of a message keeps alive all that the connection read with it.
        let mut buffer = buffer.unwrap_or_else(|| self.spares.take(incoming.shard_bytes));
        buffer.extend(part);
        if filled + part.len() == incoming.shard_bytes {
            incoming.data = buffer.freeze();
            return Ok(Some(Ok(*incoming)));
        }
        self.state = State::Receiving(incoming, Some(buffer));
        Ok(None)
    }

    /// Skips what comes of the shard that has begun.
    pub(super) fn skip(&mut self) {
        self.state = State::Skipping;
    }

    /// Gives up on a shard that is not complete, and says why.
    pub(super) fn abandon(&mut self, why: &str) -> Option<Refused> {
        let State::Receiving(incoming, buffer) = std::mem::take(&mut self.state) else {
            return None;
        };
        let message = format!(
            "shard {} is not complete: {why} after {} of {} bytes",
            incoming.id,
            buffer.as_ref().map_or(0, Spare::filled),
            incoming.shard_bytes
        );
        let refusal = Refusal::new(Reason::ShardMismatch, message);
        Some(Refused { tag: incoming.tag, refusal })
    }
}

/// Reads a header.
fn begin(header: door::PutHeader) -> Result<Shard, Refusal> {
    let target = convert::target(&header.target)?;
    let (id, descriptor) = convert::shard_of_descriptor(&header.descriptor, header.index)?;
    Ok(Shard {
        tag: header.tag,
        target,
        id,
        settles: header.settles,
        shard_bytes: descriptor.shard_bytes(),
        descriptor: header.descriptor.into(),
        data: Bytes::new(),
    })
}

#[cfg(test)]
mod tests {
    use copse_core::{
        chunk::{EncodedChunk, encode_bulk},
        geometry::Geometry,
        ids::ShardIndex,
        seal::ConvergenceSecret,
    };
    use proptest::prelude::*;

    use super::*;

    fn chunk() -> EncodedChunk {
        let geometry = Geometry::new(2, 1).expect("a geometry");
        let secret = ConvergenceSecret::new([1; 32]);
        encode_bulk(geometry, &secret, &[7; 50_000], Vec::new()).expect("fits").0
    }

    fn header(tag: u64, chunk: &EncodedChunk) -> door::PutHeader {
        let descriptor = chunk.descriptor().encode();
        door::PutHeader { tag, target: Vec::new(), descriptor, index: 1, settles: false }
    }

    /// What a client may do on a stream.
    #[derive(Debug, Clone)]
    enum Action {
        Header,
        BadHeader,
        Piece(usize, usize),
        Skip,
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            3 => Just(Action::Header),
            1 => Just(Action::BadHeader),
            6 => (0..30_000usize, 0..=100usize).prop_map(|(length, cut)| Action::Piece(length, cut)),
            1 => Just(Action::Skip),
        ]
    }

    proptest! {
        /// Every shard that began is answered once: complete with its own bytes, or refused.
        #[test]
        fn each_header_has_one_outcome(actions in prop::collection::vec(action(), 0..60)) {
            let chunk = chunk();
            let shard = chunk.shard(ShardIndex(1));
            let mut assembler = Assembler::default();
            let (mut begun, mut ended, mut at) = (0u64, Vec::new(), 0);
            for action in actions {
                match action {
                    Action::Header | Action::BadHeader => {
                        begun += 1;
                        let mut header = header(begun, &chunk);
                        if matches!(action, Action::BadHeader) {
                            header.index = 3;
                        }
                        let outcome = assembler.header(header);
                        ended.extend(outcome.before.map(|refused| refused.tag));
                        ended.extend(outcome.shard.err().map(|refused| refused.tag));
                        at = 0;
                    }
                    Action::Piece(length, cut) => {
                        let end = (at + length).min(shard.len());
                        let piece = &shard[at.min(end)..end];
                        at = end;
                        // As the connection reads it: in any parts.
                        let cut = piece.len() * cut / 100;
                        let parts = [(&piece[..cut], piece.len()), (&piece[cut..], piece.len() - cut)];
                        for (part, left) in parts {
                            match assembler.piece(part, left) {
                                // Ends the stream; nothing was left open.
                                Err(refusal) => {
                                    prop_assert_eq!(refusal.reason(), Reason::Torn);
                                    prop_assert_eq!(ended.len() as u64, begun);
                                    break;
                                }
                                Ok(None) => {}
                                Ok(Some(Ok(complete))) => {
                                    prop_assert!(complete.data == shard);
                                    ended.push(complete.tag);
                                    break;
                                }
                                Ok(Some(Err(refused))) => ended.push(refused.tag),
                            }
                        }
                    }
                    Action::Skip if assembler.receiving() => {
                        assembler.skip();
                        // The caller answers for it.
                        ended.push(begun);
                    }
                    Action::Skip => {}
                }
            }
            ended.extend(assembler.abandon("the test ended").map(|refused| refused.tag));
            prop_assert_eq!(ended, (1..=begun).collect::<Vec<_>>());
        }
    }
}
