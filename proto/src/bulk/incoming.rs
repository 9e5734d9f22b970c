//! Messages on their way in.
//!
//! Owns the state between the frames that the connection gives and the messages in them, and every bound
//! on what is kept meanwhile. The one idea: the data of a message goes on as it was read; only what is no
//! data is put together.

use std::{
    future::poll_fn,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::Body as _;
use tonic::{Code, Status, body::Body, codegen::tokio_stream::Stream};

use super::{Carried, DATA_KEY, OPENING_BYTES_MAX, PLAIN_BYTES_MAX, PREFIX_BYTES};

/// What comes in.
#[derive(Debug, PartialEq)]
pub enum Arrived<M> {
    /// A message, whole.
    Message(M),
    /// The next bytes of a shard, as the connection read them: a part of a message, or all of its data.
    Data {
        /// The bytes. They are part of a larger buffer; who keeps them for long makes a copy.
        bytes: Bytes,
        /// How many bytes of data the message still has, these included.
        left: usize,
    },
}

/// Messages on their way in.
pub struct Incoming<M> {
    body: Body,
    message_bytes_max: usize,
    /// What was read of a message and cannot be judged yet: its beginning, or a message that is no data.
    pub(super) begun: BytesMut,
    /// What was read behind it.
    ahead: Bytes,
    state: State,
    /// Whether a status must follow: behind an answer, if it did not come before.
    status_owed: bool,
    message: PhantomData<fn() -> M>,
}

#[derive(Clone, Copy)]
enum State {
    /// Before or in the five bytes.
    Prefix,
    /// In the first bytes of a message of this length.
    Opening(usize),
    /// In the data of a message.
    Data { left: usize },
    /// At the end.
    Ended,
}

impl<M: Carried> Incoming<M> {
    /// The messages of a request, each at most so many bytes long.
    pub fn new(body: Body, message_bytes_max: usize) -> Self {
        Self {
            body,
            message_bytes_max,
            begun: BytesMut::new(),
            ahead: Bytes::new(),
            state: State::Prefix,
            status_owed: false,
            message: PhantomData,
        }
    }

    /// Those of an answer, behind which a status must follow if it is owed.
    pub(super) fn answer(body: Body, message_bytes_max: usize, status_owed: bool) -> Self {
        Self { status_owed, ..Self::new(body, message_bytes_max) }
    }

    /// The next message, or the next part of one; none at the end. Nothing is lost when the future is
    /// dropped.
    ///
    /// # Errors
    /// What the other side said in the end, or that its bytes make no sense; nothing follows then.
    pub async fn next(&mut self) -> Result<Option<Arrived<M>>, Status> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Whether a message has begun that is not complete.
    pub fn inside_message(&self) -> bool {
        match self.state {
            State::Prefix => !self.begun.is_empty(),
            State::Opening(_) | State::Data { .. } => true,
            State::Ended => false,
        }
    }

    /// The only message of a request.
    ///
    /// # Errors
    /// When there is none, or it makes no sense.
    pub async fn only(mut self) -> Result<M, Status> {
        match self.next().await? {
            Some(Arrived::Message(message)) => Ok(message),
            _ => Err(Status::internal("a request without a message")),
        }
    }

    /// The messages of an answer without data.
    pub fn messages(self) -> impl Stream<Item = Result<M, Status>> + Unpin {
        Messages(self)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Arrived<M>>, Status>> {
        loop {
            if matches!(self.state, State::Ended) {
                return Poll::Ready(Ok(None));
            }
            match self.step() {
                Ok(Some(arrived)) => return Poll::Ready(Ok(Some(arrived))),
                Ok(None) => {}
                Err(status) => {
                    self.state = State::Ended;
                    return Poll::Ready(Err(status));
                }
            }
            let end = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.ahead = data;
                        continue;
                    }
                    Err(frame) => frame
                        .trailers_ref()
                        .and_then(Status::from_header_map)
                        .map_or_else(|| self.unsaid(), told),
                },
                Some(Err(status)) => Err(status),
                None => self.unsaid(),
            };
            let torn = !self.begun.is_empty() || !matches!(self.state, State::Prefix);
            self.state = State::Ended;
            return Poll::Ready(match end {
                Ok(()) if torn => {
                    Err(Status::internal("the stream ended in the middle of a message"))
                }
                end => end.map(|()| None),
            });
        }
    }

    /// How it went, if nobody says so.
    fn unsaid(&self) -> Result<(), Status> {
        if self.status_owed {
            return Err(Status::unavailable("the node broke off its answer"));
        }
        Ok(())
    }

    /// Goes on in what was read; none when it takes more.
    fn step(&mut self) -> Result<Option<Arrived<M>>, Status> {
        loop {
            match self.state {
                State::Ended => return Ok(None),
                State::Prefix => {
                    if !self.fill(PREFIX_BYTES) {
                        return Ok(None);
                    }
                    let compressed = self.begun.get_u8() != 0;
                    let length = self.begun.get_u32() as usize;
                    self.begun.clear();
                    if compressed {
                        return Err(Status::unimplemented("messages here are not compressed"));
                    }
                    check(length, self.message_bytes_max)?;
                    self.state = State::Opening(length);
                }
                State::Opening(length) => {
                    // Byte by byte, so that nothing is taken here of the data behind it.
                    while M::HAS_DATA && self.begun.len() < length.min(OPENING_BYTES_MAX) {
                        if !self.fill(self.begun.len() + 1) {
                            return Ok(None);
                        }
                        if let Some(left) = data_begins(&self.begun, length) {
                            self.begun.clear();
                            self.state = State::Data { left };
                            break;
                        }
                    }
                    if matches!(self.state, State::Data { .. }) {
                        continue;
                    }
                    if M::HAS_DATA {
                        check(length, PLAIN_BYTES_MAX)?;
                    }
                    if !self.fill(length) {
                        return Ok(None);
                    }
                    self.state = State::Prefix;
                    let message = M::decode(self.begun.split().freeze()).map_err(|error| {
                        Status::internal(format!("a message that cannot be read: {error}"))
                    })?;
                    return Ok(Some(match message.into_data() {
                        Ok(bytes) => Arrived::Data { left: bytes.len(), bytes },
                        Err(message) => Arrived::Message(message),
                    }));
                }
                State::Data { left } => {
                    if self.ahead.is_empty() && left > 0 {
                        return Ok(None);
                    }
                    let bytes = self.ahead.split_to(left.min(self.ahead.len()));
                    self.state = match left - bytes.len() {
                        0 => State::Prefix,
                        left => State::Data { left },
                    };
                    return Ok(Some(Arrived::Data { bytes, left }));
                }
            }
        }
    }

    /// Takes what was read until `begun` has so many bytes, and says whether it has.
    fn fill(&mut self, bytes: usize) -> bool {
        let lacking = bytes.saturating_sub(self.begun.len()).min(self.ahead.len());
        self.begun.extend_from_slice(&self.ahead.split_to(lacking));
        self.begun.len() >= bytes
    }
}

/// Messages without data.
struct Messages<M>(Incoming<M>);

impl<M: Carried> Stream for Messages<M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(match ready!(self.0.poll(cx)) {
            Ok(None) => None,
            Ok(Some(Arrived::Message(message))) => Some(Ok(message)),
            Ok(Some(Arrived::Data { .. })) => {
                Some(Err(Status::internal("data where none belongs")))
            }
            Err(status) => Some(Err(status)),
        })
    }
}

fn check(length: usize, limit: usize) -> Result<(), Status> {
    if length > limit {
        let text = format!("a message of {length} bytes is over the limit of {limit} bytes");
        return Err(Status::out_of_range(text));
    }
    Ok(())
}

fn told(status: Status) -> Result<(), Status> {
    if status.code() == Code::Ok { Ok(()) } else { Err(status) }
}

/// The length of the data behind this, if it is how a message of `length` bytes of data begins.
fn data_begins(begun: &[u8], length: usize) -> Option<usize> {
    let (&key, mut rest) = begun.split_first()?;
    if key != DATA_KEY {
        return None;
    }
    let data = usize::try_from(prost::encoding::decode_varint(&mut rest).ok()?).ok()?;
    (rest.is_empty() && begun.len().checked_add(data)? == length).then_some(data)
}
