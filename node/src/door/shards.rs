//! `copse.door.v1.Shards`: put streams, ranged gets, has.
//!
//! Owns the flow of messages: how much is in flight, how long a silent client is waited for, in
//! which order answers and the end of a stream are sent. What a shard is, and where it goes, is
//! decided in [`crate::shards`].

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use copse_core::limits::SHARD_BYTES_MAX;
use copse_proto::{
    bulk::{self, Arrived, Incoming, MESSAGE_BYTES_MAX, PLAIN_BYTES_MAX},
    door::{self, get_reply, put_reply, put_request, shards_server},
    status::{Reason, Refusal},
};
use futures::{FutureExt as _, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    body::Body,
    codegen::{
        BoxFuture, Service,
        http::{Request, Response},
    },
    server::NamedService,
};

use super::{
    Calls,
    assemble::{Assembler, PIECE_BYTES_MAX, Refused, Shard},
    clients::Client,
};
use crate::{
    buffers::Taken,
    peer::frame::transfer_time,
    refusals,
    shards::{Found, ShardService},
    spares::Spares,
    unsettled::Origin,
};

/// Shards of one Put stream that are being stored at one time, with their answers on the way. A
/// group commit takes 2 ms, so this is over 30,000 small shards a second on one stream.
const IN_FLIGHT_MAX: usize = 64;

/// How long a client may be silent in the middle of a shard, or not take an answer: it holds memory
/// meanwhile that others wait for.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a client is cut off.
const TAKES_NOTHING: &str = "it does not take its answers";

/// Pieces of one answer that are ready before the client takes them. They share the shard's memory.
const PIECES_READY: usize = 2;

const _: () = assert!(PIECE_BYTES_MAX < SHARD_BYTES_MAX);

/// The service.
#[derive(Clone)]
pub(super) struct Shards {
    pub(super) service: ShardService,
    pub(super) stop: CancellationToken,
    pub(super) calls: Calls,
    pub(super) spares: Spares,
}

/// The answers of one call, on their way to its client.
pub(super) struct Answers<T> {
    pub(super) out: mpsc::Sender<Result<T, Status>>,
    pub(super) client: Client,
}

impl<T> Clone for Answers<T> {
    fn clone(&self) -> Self {
        Self { out: self.out.clone(), client: self.client.clone() }
    }
}

impl<T> Answers<T> {
    /// Hands an answer on; whether the client is still there. One that leaves it lying is cut off, since a
    /// stream that waits with an answer reads no more, and what it does not read lies in HTTP/2.
    pub(super) async fn send(&self, answer: Result<T, Status>) -> bool {
        match timeout(STALL_TIMEOUT, self.out.send(answer)).await {
            Ok(sent) => sent.is_ok(),
            Err(_) => {
                self.client.cut_off(TAKES_NOTHING);
                false
            }
        }
    }
}

impl Shards {
    fn put(&self, requests: Incoming<door::PutRequest>, client: Client) -> Response<Body> {
        let (out, answers) = mpsc::channel(IN_FLIGHT_MAX);
        let stream = PutStream {
            origin: self.service.unsettled().stream(),
            service: self.service.clone(),
            answers: Answers { out, client },
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            assembler: Assembler::new(self.spares.clone()),
            room: None,
            complete_by: None,
        };
        let (call, stop) = (self.calls.begin(), self.stop.clone());
        tokio::spawn(async move {
            stream.run(requests, stop).await;
            drop(call);
        });
        bulk::answer(ReceiverStream::new(answers))
    }

    async fn get(
        &self,
        request: door::GetRequest,
        client: Client,
    ) -> Result<Response<Body>, Status> {
        let (found, memory) = self.service.get(request).await?;
        let (answers, out) = mpsc::channel(PIECES_READY);
        let call = self.calls.begin();
        tokio::spawn(async move {
            if send_answer(found, memory, answers).await == Taking::Stalled {
                client.cut_off(TAKES_NOTHING);
            }
            drop(call);
        });
        Ok(bulk::answer(ReceiverStream::new(out)))
    }

    async fn has(&self, request: door::HasRequest) -> Result<Response<Body>, Status> {
        let reply = self.service.has(request).await?;
        Ok(bulk::answer(stream::iter([Ok(reply)])))
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let client = || {
            let client = head.extensions.get::<Client>().cloned();
            client.ok_or_else(|| Status::internal("a call that came on no connection"))
        };
        match head.uri.path() {
            bulk::PUT => Ok(self.put(Incoming::new(body, MESSAGE_BYTES_MAX), client()?)),
            bulk::GET => {
                let client = client()?;
                self.get(only(body).await?, client).await
            }
            bulk::HAS => self.has(only(body).await?).await,
            _ => Err(Status::unimplemented("the service has no such method")),
        }
    }
}

/// The message of a request that has one.
async fn only<M: bulk::Carried>(body: Body) -> Result<M, Status> {
    let message = Incoming::new(body, PLAIN_BYTES_MAX).only();
    timeout(STALL_TIMEOUT, message).await.unwrap_or_else(|_| {
        let text = format!("the request is not complete after {} s", STALL_TIMEOUT.as_secs());
        Err(Refusal::new(Reason::TimedOut, text).into())
    })
}

impl NamedService for Shards {
    const NAME: &'static str = shards_server::SERVICE_NAME;
}

impl Service<Request<Body>> for Shards {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.clone().answer(request);
        Box::pin(answer.map(|answer| Ok(answer.unwrap_or_else(Status::into_http))))
    }
}

/// One Put stream while it lasts.
struct PutStream {
    origin: Origin,
    service: ShardService,
    answers: Answers<door::PutReply>,
    in_flight: Arc<Semaphore>,
    assembler: Assembler,
    /// For the shard that is coming in: its place among those in flight, and its memory.
    room: Option<(OwnedSemaphorePermit, Taken)>,
    /// When that shard must be complete: its memory is others' then.
    complete_by: Option<Instant>,
}

impl PutStream {
    async fn run(mut self, mut requests: Incoming<door::PutRequest>, stop: CancellationToken) {
        let end = loop {
            match self.next(&mut requests, &stop).await {
                Ok(Some(arrived)) => match self.take(arrived).await {
                    Ok(()) => {}
                    Err(refusal) => break Some(refusal.into()),
                },
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        if let Some(refused) = self.assembler.abandon("the stream ended") {
            self.refuse(refused).await;
        }
        self.room = None;
        // The end comes behind the last answer: all places are free when all answers are sent.
        let all = u32::try_from(IN_FLIGHT_MAX).unwrap_or(u32::MAX);
        let _all = self.in_flight.acquire_many(all).await;
        // Also when the client ended it in good order: it said of each chunk that is safe that it is.
        self.service.broken_off(self.origin).await;
        if let Some(status) = end {
            self.answers.send(Err(status)).await;
        }
    }

    /// The next message, or part of one; none at the end of the stream.
    async fn next(
        &self,
        requests: &mut Incoming<door::PutRequest>,
        stop: &CancellationToken,
    ) -> Result<Option<Arrived<door::PutRequest>>, Status> {
        let receiving = self.assembler.receiving();
        let complete_by = self.complete_by.filter(|_| receiving);
        let mut inside_before = false;
        loop {
            let silent_at = Instant::now() + STALL_TIMEOUT;
            let until = complete_by.map_or(silent_at, |by| by.min(silent_at));
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(refusals::stopping().into()),
                () = self.answers.out.closed() => return Ok(None),
                message = requests.next() => return message,
                () = sleep_until(until) => {}
            }
            let text = if until < silent_at {
                "the shard comes too slowly: send it faster, or over fewer streams at once"
                    .to_owned()
            } else if receiving || inside_before {
                format!("no data for {} s in the middle of a message", STALL_TIMEOUT.as_secs())
            } else {
                // Between messages a client may be silent: it holds nothing. One that began just now has the
                // same time again.
                inside_before = requests.inside_message();
                continue;
            };
            return Err(Refusal::new(Reason::TimedOut, text).into());
        }
    }

    /// Follows what arrived. An error is the end of the stream.
    async fn take(&mut self, arrived: Arrived<door::PutRequest>) -> Result<(), Refusal> {
        let (bytes, left) = match arrived {
            Arrived::Data { bytes, left } => (bytes, left),
            Arrived::Message(door::PutRequest {
                part: Some(put_request::Part::Header(header)),
            }) => {
                self.begin(header).await;
                return Ok(());
            }
            Arrived::Message(door::PutRequest {
                part: Some(put_request::Part::Settled(settled)),
            }) => {
                self.settle(settled).await;
                return Ok(());
            }
            Arrived::Message(_) => {
                let message = "a message with neither a header nor data";
                return Err(Refusal::new(Reason::Malformed, message));
            }
        };
        match self.assembler.piece(&bytes, left)? {
            Some(Ok(shard)) => self.store(shard),
            Some(Err(refused)) => {
                self.room = None;
                self.refuse(refused).await;
            }
            None => {}
        }
        Ok(())
    }

    async fn begin(&mut self, header: door::PutHeader) {
        let tag = header.tag;
        let begun = self.assembler.header(header);
        self.room = None;
        if let Some(before) = begun.before {
            self.refuse(before).await;
        }
        match begun.shard {
            Err(refused) => self.refuse(refused).await,
            Ok(shard_bytes) => {
                // Both are waited for before more is read: so a client is slowed down.
                let Ok(place) = Arc::clone(&self.in_flight).acquire_owned().await else { return };
                match self.service.put_buffers().take(shard_bytes).await {
                    Ok(memory) => {
                        self.room = Some((place, memory));
                        self.complete_by = Some(Instant::now() + transfer_time(shard_bytes as u64));
                    }
                    Err(refusal) => {
                        self.assembler.skip();
                        self.refuse(Refused { tag, refusal }).await;
                    }
                }
            }
        }
    }

    /// Notes beside the stream that a chunk is safe.
    async fn settle(&mut self, settled: door::Settled) {
        let Ok(place) = Arc::clone(&self.in_flight).acquire_owned().await else { return };
        let (service, answers) = (self.service.clone(), self.answers.clone());
        tokio::spawn(async move {
            let _place = place;
            let tag = settled.tag;
            let outcome = match service.settle(&settled).await {
                Ok(()) => put_reply::Outcome::Settled(door::SettledReply {}),
                Err(refusal) => put_reply::Outcome::Error(refusal.into()),
            };
            answers.send(Ok(door::PutReply { tag, outcome: Some(outcome) })).await;
        });
    }

    /// Stores a complete shard beside the stream, which goes on.
    fn store(&mut self, shard: Shard) {
        let (room, origin) = (self.room.take(), self.origin);
        let (service, answers) = (self.service.clone(), self.answers.clone());
        tokio::spawn(async move {
            let (_place, memory) = room.unzip();
            let Shard { tag, target, descriptor, id, data, settles, .. } = shard;
            let origin = settles.then_some(origin);
            let stored = service.put(target, descriptor, id, data, origin).await;
            drop(memory);
            let outcome = match stored {
                Ok(receipt) => put_reply::Outcome::Receipt(receipt),
                Err(refusal) => put_reply::Outcome::Error(refusal.into()),
            };
            answers.send(Ok(door::PutReply { tag, outcome: Some(outcome) })).await;
        });
    }

    async fn refuse(&self, refused: Refused) {
        let Refused { tag, refusal } = refused;
        tracing::debug!(tag, %refusal, "a shard was refused");
        let outcome = Some(put_reply::Outcome::Error(refusal.into()));
        self.answers.send(Ok(door::PutReply { tag, outcome })).await;
    }
}

/// How a client takes an answer.
#[derive(Debug, PartialEq, Eq)]
enum Taking {
    /// It took it, or no longer wants it.
    Done,
    /// It leaves it lying.
    Stalled,
}

/// Sends an answer to Get in pieces. The memory is given back when the last byte of it has left this
/// process, wherever it lies until then: that takes as long as a transfer of this length may, and no piece
/// gets time of its own beyond it.
async fn send_answer(
    found: Found,
    memory: Taken,
    answers: mpsc::Sender<Result<door::GetReply, Status>>,
) -> Taking {
    let Found { header, data } = found;
    let by = Instant::now() + transfer_time(data.len() as u64);
    let (held, gone) = oneshot::channel();
    let mut data = Bytes::from_owner(Counted { data, _memory: memory, _held: held });
    let mut part = get_reply::Part::Header(header);
    loop {
        let message = Ok(door::GetReply { part: Some(part) });
        let taken_by = by.min(Instant::now() + STALL_TIMEOUT);
        match timeout_at(taken_by, answers.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Taking::Done,
            Err(_) => return Taking::Stalled,
        }
        if data.is_empty() {
            break;
        }
        part = get_reply::Part::Data(data.split_to(PIECE_BYTES_MAX.min(data.len())));
    }
    drop((data, answers));
    // Fails when what it stands for is dropped, which is what is waited for.
    match timeout_at(by, gone).await {
        Ok(_) => Taking::Done,
        Err(_) => Taking::Stalled,
    }
}

/// Bytes with the memory that is counted for them.
struct Counted {
    data: Bytes,
    _memory: Taken,
    _held: oneshot::Sender<()>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use copse_core::units::ByteSize;
    use futures::StreamExt as _;

    use super::*;
    use crate::buffers::Buffers;

    /// An answer with this much data; its memory is all that there is.
    async fn found(bytes: usize) -> (Found, Taken, Buffers) {
        let buffers = Buffers::new("tests", ByteSize(0));
        let memory = buffers.take(SHARD_BYTES_MAX).await.expect("all of it");
        let data = Bytes::from(vec![7; bytes]);
        (Found { header: door::GetHeader::default(), data }, memory, buffers)
    }

    async fn is_free(buffers: &Buffers) -> bool {
        buffers.take(1).now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_taken_gives_its_memory_back() {
        let (found, memory, buffers) = found(3 << 20).await;
        let (answers, mut out) = mpsc::channel(PIECES_READY);
        let sending = tokio::spawn(send_answer(found, memory, answers));
        let mut got = 0;
        while let Some(message) = out.recv().await {
            if let Some(get_reply::Part::Data(data)) = message.expect("no error").part {
                got += data.len();
            }
        }
        assert_eq!((got, sending.await.expect("no panic")), (3 << 20, Taking::Done));
        assert!(is_free(&buffers).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_left_lying_is_noticed_wherever_it_lies() {
        // In the channel.
        let (large, memory, _) = found(3 << 20).await;
        let (answers, out) = mpsc::channel(PIECES_READY);
        assert_eq!(send_answer(large, memory, answers).await, Taking::Stalled);
        drop(out);
        // In HTTP/2, which took all of it and sends nothing.
        let (small, memory, buffers) = found(1000).await;
        let (answers, mut out) = mpsc::channel(PIECES_READY);
        let sending = tokio::spawn(send_answer(small, memory, answers));
        let mut taken = Vec::new();
        while let Some(message) = out.recv().await {
            taken.push(message.expect("no error"));
        }
        assert!(!is_free(&buffers).await, "it is counted as long as it is there");
        assert_eq!(sending.await.expect("no panic"), Taking::Stalled);
        assert!(!is_free(&buffers).await);
        drop(taken);
        assert!(is_free(&buffers).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_taken_piece_by_piece_has_the_time_of_one_transfer() {
        let (found, memory, _) = found(SHARD_BYTES_MAX).await;
        let (answers, mut out) = mpsc::channel(PIECES_READY);
        let started = Instant::now();
        let sending = tokio::spawn(send_answer(found, memory, answers));
        let taking = tokio::spawn(async move {
            loop {
                tokio::time::sleep(STALL_TIMEOUT - Duration::from_secs(1)).await;
                if out.recv().await.is_none() {
                    break;
                }
            }
        });
        assert_eq!(sending.await.expect("no panic"), Taking::Stalled);
        assert_eq!(started.elapsed(), transfer_time(SHARD_BYTES_MAX as u64));
        taking.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_never_complete_is_refused() {
        let (_kept, open) = mpsc::channel::<Result<Bytes, Status>>(1);
        let body = Body::new(http_body_util::StreamBody::new(
            ReceiverStream::new(open).map(|bytes| bytes.map(hyper::body::Frame::data)),
        ));
        let refused = only::<door::GetRequest>(body).await.expect_err("nothing came");
        assert_eq!(Refusal::from(&refused).reason(), Reason::TimedOut);
    }
}
