//! One range of one shard from one node, verified.
//!
//! Owns the request, its time limit, the check of what comes back, and what the answer says about
//! the node. Decides nothing about whom to ask. The one idea: bytes that leave here are right, and
//! whoever sent wrong ones is remembered.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use copse_core::{
    descriptor::Descriptor,
    ids::{NodeId, ShardIndex},
    shard_tree,
};
use copse_proto::{
    bulk::{Arrived, Incoming},
    door::{self, get_reply::Part},
    status::{Reason, Refusal},
};
use tokio::time::{Instant, timeout, timeout_at};

use super::facts::ChunkFacts;
use crate::{
    buffers::Pool,
    network::{Link, Network, timed_out},
    task::beside,
};

/// A node that is not reached, does not begin to answer, or brings too little of a range within this time is
/// given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(15);

/// What too little is, in bytes: less than this, if more than this is left. A line that gives each of the 40
/// ranges of a read only so much has half a Mbit/s.
const PROGRESS_BYTES_MIN: usize = 16 << 10;

/// More than this is hashed on a thread of its own: below, it takes less than a fifth of a
/// millisecond.
const HASH_INLINE_BYTES: usize = 1 << 20;

/// A verified range of a shard.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(super) index: ShardIndex,
    /// The asked range, widened to whole groups of the hash tree.
    pub(super) range: Range<usize>,
    pub(super) data: Bytes,
}

impl Piece {
    pub(super) fn covers(&self, range: &Range<usize>) -> bool {
        self.range.start <= range.start && range.end <= self.range.end
    }

    /// The bytes of a range that it covers.
    pub(crate) fn slice(&self, range: &Range<usize>) -> Bytes {
        self.data.slice(range.start - self.range.start..range.end - self.range.start)
    }
}

/// Fetches a range of a shard from a node and verifies it.
pub(crate) async fn fetch(
    network: Network,
    facts: Arc<ChunkFacts>,
    node: NodeId,
    index: ShardIndex,
    want: Range<usize>,
    buffers: Arc<Pool>,
) -> Result<Piece, Refusal> {
    let holder = network.holder(node);
    let started = Instant::now();
    let link = match timeout(STALL_TIMEOUT, network.link(node)).await {
        Ok(Ok(link)) => link,
        Ok(Err(refusal)) => {
            holder.refused(&refusal);
            return Err(refusal);
        }
        Err(_) => {
            holder.failed("it cannot be reached");
            return Err(timed_out(STALL_TIMEOUT));
        }
    };
    let result = receive(&link, &facts, index, &want, &buffers).await;
    match &result {
        Ok(_) => holder.answered(started.elapsed()),
        Err(refusal) => match refusal.reason() {
            // Honest answers; a false reference is not the node's fault.
            Reason::NotHeld | Reason::ShardDamaged | Reason::OutOfRange | Reason::Malformed => {
                holder.is_alive()
            }
            reason => {
                holder.refused(refusal);
                if reason == Reason::BadReply {
                    let (chunk, node) = (facts.id.short(), node.short());
                    tracing::warn!(%chunk, %index, %node, %refusal, "a node served something false");
                } else {
                    network.forget(&link);
                }
            }
        },
    }
    result
}

async fn receive(
    link: &Link,
    facts: &ChunkFacts,
    index: ShardIndex,
    want: &Range<usize>,
    buffers: &Arc<Pool>,
) -> Result<Piece, Refusal> {
    let request = door::GetRequest {
        target: link.target(),
        chunk_id: facts.id.as_bytes().to_vec(),
        index: index.0.into(),
        offset: want.start as u64,
        length: want.len() as u64,
        counted_on: false,
    };
    let mut stream = in_time(link.get(request)).await?;
    let Some(Arrived::Message(door::GetReply { part: Some(Part::Header(header)) })) =
        in_time(stream.next()).await?
    else {
        return Err(lie("the answer has no header"));
    };
    let descriptor = facts.descriptor(&header.descriptor).map_err(lie)?;
    if let Some(what) = facts.contradiction() {
        return Err(Refusal::new(Reason::Malformed, what));
    }
    let covered = shard_tree::covered(facts.shard_bytes, want.clone());
    let said = (header.covered_offset, header.covered_length);
    if said != (covered.start as u64, covered.len() as u64) {
        return Err(lie("the answer covers another range"));
    }
    let data = body(&mut stream, covered.len(), buffers).await?;
    verify(&descriptor, index, &covered, &data, header.proof).await?;
    Ok(Piece { index, range: covered, data })
}

/// The bytes behind the header, in a buffer of their own: a part of what the connection read would keep
/// the rest of it alive.
async fn body(
    stream: &mut Incoming<door::GetReply>,
    expected: usize,
    buffers: &Arc<Pool>,
) -> Result<Bytes, Refusal> {
    let mut body = buffers.sized(expected);
    let mut received = 0;
    let mut pace = Pace::new();
    while let Some(arrived) = pace.keep(stream.next()).await? {
        let Arrived::Data { bytes, .. } = arrived else {
            return Err(lie("something else than data follows the header"));
        };
        let Some(room) = body.get_mut(received..received + bytes.len()) else {
            return Err(lie("more bytes than announced"));
        };
        room.copy_from_slice(&bytes);
        received += bytes.len();
        pace.brought(bytes.len());
    }
    if received < expected {
        return Err(lie("fewer bytes than announced"));
    }
    Ok(buffers.share(body))
}

async fn verify(
    descriptor: &Arc<Descriptor>,
    index: ShardIndex,
    covered: &Range<usize>,
    data: &Bytes,
    proof: Vec<u8>,
) -> Result<(), Refusal> {
    let (descriptor, covered, data) = (Arc::clone(descriptor), covered.clone(), data.clone());
    let large = data.len() > HASH_INLINE_BYTES;
    let check = move || {
        let root =
            descriptor.shard_hash(index).ok_or_else(|| lie("the chunk has no such shard"))?;
        shard_tree::verify(root, descriptor.shard_bytes(), &covered, &data, &proof)
            .map_err(|error| lie(&error.to_string()))
    };
    if !large {
        return check();
    }
    let thread = |_| Refusal::new(Reason::Internal, "the thread that hashed it stopped");
    beside(check).await.map_err(thread)?
}

async fn in_time<T>(answer: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, Refusal> {
    match timeout(STALL_TIMEOUT, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(timed_out(STALL_TIMEOUT)),
    }
}

/// How fast a range comes: a node that trickles is as bad as one that is silent, and holds up its reader for
/// longer. Each stretch of [`PROGRESS_BYTES_MIN`] has its own time, so the whole has an end.
struct Pace {
    until: Instant,
    bytes: usize,
}

impl Pace {
    fn new() -> Self {
        Self { until: Instant::now() + STALL_TIMEOUT, bytes: 0 }
    }

    /// Waits for what comes next, but not longer than the stretch may take. Messages without a byte in them
    /// may come without a pause between them: the clock is asked before each.
    async fn keep<T>(
        &self,
        answer: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, Refusal> {
        if Instant::now() >= self.until {
            return Err(timed_out(STALL_TIMEOUT));
        }
        match timeout_at(self.until, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(timed_out(STALL_TIMEOUT)),
        }
    }

    fn brought(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= PROGRESS_BYTES_MIN {
            *self = Self::new();
        }
    }
}

fn lie(what: &str) -> Refusal {
    Refusal::new(Reason::BadReply, what)
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll, ready},
    };

    use bytes::{BufMut as _, BytesMut};
    use copse_proto::bulk::MESSAGE_BYTES_MAX;
    use http_body::Frame;
    use tokio::time::{Sleep, sleep};
    use tonic::body::Body;

    use super::*;

    /// A message of so many bytes of data again and again, each after a pause.
    struct Trickle {
        message: Bytes,
        every: Duration,
        pause: Pin<Box<Sleep>>,
    }

    impl http_body::Body for Trickle {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            ready!(self.pause.as_mut().poll(cx));
            self.pause = Box::pin(sleep(self.every));
            Poll::Ready(Some(Ok(Frame::data(self.message.clone()))))
        }
    }

    /// Reads a range of so many bytes, of which such messages come, and says how long that took.
    async fn read(expected: usize, bytes: u8, every: Duration) -> (Result<(), Reason>, Duration) {
        let mut message = BytesMut::new();
        message.put_u8(0);
        message.put_u32(2 + u32::from(bytes));
        message.put_slice(&[0x12, bytes]);
        message.put_bytes(7, usize::from(bytes));
        let pause = Box::pin(sleep(every));
        let body_of = Trickle { message: message.freeze(), every, pause };
        let mut stream = Incoming::new(Body::new(body_of), MESSAGE_BYTES_MAX);
        let started = Instant::now();
        let read = body(&mut stream, expected, &Pool::new(0)).await;
        (read.map(drop).map_err(|refusal| refusal.reason()), started.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_trickles_is_given_up_as_one_that_is_silent() {
        let soon = STALL_TIMEOUT + Duration::from_secs(1);
        for (bytes, every) in [
            (1, Duration::from_secs(14)),
            (0, Duration::from_secs(1)),
            // Of a whole range, 12 KiB in the time that 16 have.
            (100, Duration::from_millis(125)),
        ] {
            let (read, took) = read(800 << 10, bytes, every).await;
            assert_eq!(read, Err(Reason::TimedOut), "{bytes} bytes every {every:?}");
            assert!(took <= soon, "{bytes} bytes every {every:?} held up for {took:?}");
        }
        // All is there, and there is no end.
        let (read, took) = read(1 << 10, 0, Duration::from_secs(1)).await;
        assert_eq!(read, Err(Reason::TimedOut));
        assert!(took <= soon, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_line_is_waited_for() {
        // 1.2 KB/s, for eleven minutes; then it sends more than was asked for.
        let (read, took) = read(800 << 10, 120, Duration::from_millis(100)).await;
        assert_eq!(read, Err(Reason::BadReply));
        assert!(took > Duration::from_secs(600), "{took:?}");
    }
}
