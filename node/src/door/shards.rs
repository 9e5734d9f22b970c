//! `copse.door.v1.Shards`: put streams, ranged gets, has.
//!
//! Owns the flow of messages: how much is in flight, how long a silent client is waited for, in
//! which order answers and the end of a stream are sent. What a shard is, and where it goes, is
//! decided in [`crate::shards`].

use std::{sync::Arc, time::Duration};

use copse_core::limits::SHARD_BYTES_MAX;
use copse_proto::{
    door::{self, get_reply, put_reply, put_request, shards_server},
    status::{Reason, Refusal},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Calls,
    assemble::{Assembler, Incoming, PIECE_BYTES_MAX, Refused},
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

#[tonic::async_trait]
impl shards_server::Shards for Shards {
    type PutStream = ReceiverStream<Result<door::PutReply, Status>>;
    type GetStream = ReceiverStream<Result<door::GetReply, Status>>;

    async fn put(
        &self,
        request: Request<Streaming<door::PutRequest>>,
    ) -> Result<Response<Self::PutStream>, Status> {
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
            stream.run(request.into_inner(), stop).await;
            drop(call);
        });
        Ok(Response::new(ReceiverStream::new(out)))
    }

    async fn get(
        &self,
        request: Request<door::GetRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let (found, memory) = self.service.get(request.into_inner()).await?;
        let (answers, out) = mpsc::channel(PIECES_READY);
        let call = self.calls.begin();
        tokio::spawn(async move {
            send_answer(found, memory, answers).await;
            drop(call);
        });
        Ok(Response::new(ReceiverStream::new(out)))
    }

    async fn has(
        &self,
        request: Request<door::HasRequest>,
    ) -> Result<Response<door::HasReply>, Status> {
        Ok(Response::new(self.service.has(request.into_inner()).await?))
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
    async fn run(mut self, mut requests: Streaming<door::PutRequest>, stop: CancellationToken) {
        let end = loop {
            match self.next(&mut requests, &stop).await {
                Ok(Some(request)) => match self.take(request).await {
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

    /// The next message; none at the end of the stream.
    async fn next(
        &self,
        requests: &mut Streaming<door::PutRequest>,
        stop: &CancellationToken,
    ) -> Result<Option<door::PutRequest>, Status> {
        let message = async {
            if !self.assembler.receiving() {
                return requests.message().await;
            }
            match tokio::time::timeout(STALL_TIMEOUT, requests.message()).await {
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

    /// Follows one message. An error is the end of the stream.
    async fn take(&mut self, request: door::PutRequest) -> Result<(), Refusal> {
        match request.part {
            Some(put_request::Part::Header(header)) => {
                self.begin(header).await;
                Ok(())
            }
            Some(put_request::Part::Data(piece)) => match self.assembler.piece(piece)? {
                Some(Ok(shard)) => {
                    self.store(shard);
                    Ok(())
                }
                Some(Err(refused)) => {
                    self.room = None;
                    self.refuse(refused).await;
                    Ok(())
                }
                None => Ok(()),
            },
            None => {
                Err(Refusal::new(Reason::Malformed, "a message with neither a header nor data"))
            }
        }
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
    fn store(&mut self, shard: Incoming) {
        let room = self.room.take();
        let (service, answers) = (self.service.clone(), self.answers.clone());
        tokio::spawn(async move {
            let (_place, memory) = room.unzip();
            let Incoming { tag, target, descriptor, id, data, .. } = shard;
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
