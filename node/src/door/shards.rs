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

use copse_core::limits::SHARD_BYTES_MAX;
use copse_proto::{
    bulk::{self, Arrived, Incoming, MESSAGE_BYTES_MAX},
    door::{self, get_reply, put_reply, put_request, shards_server},
    status::{Reason, Refusal},
};
use futures::{FutureExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
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
};
use crate::{
    buffers::Taken,
    refusals,
    shards::{Found, ShardService},
    spares::Spares,
};

/// Shards of one Put stream that are being stored at one time, with their answers on the way. A
/// group commit takes 2 ms, so this is over 30,000 small shards a second on one stream.
const IN_FLIGHT_MAX: usize = 64;

/// How long a client may be silent in the middle of a shard, or not take an answer: it holds memory
/// meanwhile that others wait for.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

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

type Answers<T> = mpsc::Sender<Result<T, Status>>;

impl Shards {
    fn put(&self, requests: Incoming<door::PutRequest>) -> Response<Body> {
        let (answers, out) = mpsc::channel(IN_FLIGHT_MAX);
        let stream = PutStream {
            service: self.service.clone(),
            answers,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            assembler: Assembler::new(self.spares.clone()),
            room: None,
        };
        let (call, stop) = (self.calls.begin(), self.stop.clone());
        tokio::spawn(async move {
            stream.run(requests, stop).await;
            drop(call);
        });
        bulk::answer(ReceiverStream::new(out))
    }

    async fn get(&self, request: door::GetRequest) -> Result<Response<Body>, Status> {
        let (found, memory) = self.service.get(request).await?;
        let (answers, out) = mpsc::channel(PIECES_READY);
        let call = self.calls.begin();
        tokio::spawn(async move {
            send_answer(found, memory, answers).await;
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
        match head.uri.path() {
            bulk::PUT => Ok(self.put(Incoming::new(body, MESSAGE_BYTES_MAX))),
            bulk::GET => self.get(Incoming::new(body, MESSAGE_BYTES_MAX).only().await?).await,
            bulk::HAS => self.has(Incoming::new(body, MESSAGE_BYTES_MAX).only().await?).await,
            _ => Err(Status::unimplemented("the service has no such method")),
        }
    }
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
    service: ShardService,
    answers: Answers<door::PutReply>,
    in_flight: Arc<Semaphore>,
    assembler: Assembler,
    /// For the shard that is coming in: its place among those in flight, and its memory.
    room: Option<(OwnedSemaphorePermit, Taken)>,
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
        if let Some(status) = end {
            let _ = self.answers.send(Err(status)).await;
        }
    }

    /// The next message, or part of one; none at the end of the stream.
    async fn next(
        &self,
        requests: &mut Incoming<door::PutRequest>,
        stop: &CancellationToken,
    ) -> Result<Option<Arrived<door::PutRequest>>, Status> {
        let message = async {
            if !self.assembler.receiving() {
                return requests.next().await;
            }
            match tokio::time::timeout(STALL_TIMEOUT, requests.next()).await {
                Ok(message) => message,
                Err(_) => {
                    let message = format!(
                        "no data for {} s in the middle of a shard",
                        STALL_TIMEOUT.as_secs()
                    );
                    Err(Refusal::new(Reason::TimedOut, message).into())
                }
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(refusals::stopping().into()),
            () = self.answers.closed() => Ok(None),
            message = message => message,
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
                    Ok(memory) => self.room = Some((place, memory)),
                    Err(refusal) => {
                        self.assembler.skip();
                        self.refuse(Refused { tag, refusal }).await;
                    }
                }
            }
        }
    }

    /// Stores a complete shard beside the stream, which goes on.
    fn store(&mut self, shard: Shard) {
        let room = self.room.take();
        let (service, answers) = (self.service.clone(), self.answers.clone());
        tokio::spawn(async move {
            let (_place, memory) = room.unzip();
            let Shard { tag, target, descriptor, id, data, .. } = shard;
            let stored = service.put(target, descriptor, id, data).await;
            drop(memory);
            let outcome = match stored {
                Ok(receipt) => put_reply::Outcome::Receipt(receipt),
                Err(refusal) => put_reply::Outcome::Error(refusal.into()),
            };
            let _ = answers.send(Ok(door::PutReply { tag, outcome: Some(outcome) })).await;
        });
    }

    async fn refuse(&self, refused: Refused) {
        let Refused { tag, refusal } = refused;
        tracing::debug!(tag, %refusal, "a shard was refused");
        let outcome = Some(put_reply::Outcome::Error(refusal.into()));
        let _ = self.answers.send(Ok(door::PutReply { tag, outcome })).await;
    }
}

/// Sends an answer to Get in pieces. Ends early when the client is gone or takes too long.
async fn send_answer(found: Found, memory: Taken, answers: Answers<door::GetReply>) {
    let Found { header, mut data } = found;
    let mut part = get_reply::Part::Header(header);
    loop {
        let message = Ok(door::GetReply { part: Some(part) });
        match tokio::time::timeout(STALL_TIMEOUT, answers.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => return tracing::debug!("a client does not take its answer: dropped"),
        }
        if data.is_empty() {
            break;
        }
        part = get_reply::Part::Data(data.split_to(PIECE_BYTES_MAX.min(data.len())));
    }
    // Until the client has taken the last piece.
    let _ = tokio::time::timeout(STALL_TIMEOUT, answers.reserve_many(PIECES_READY)).await;
    drop(memory);
}
