//! gRPC messages that carry shards, to and from HTTP/2 without copying the shards.
//!
//! Owns the framing of gRPC over HTTP/2 for the calls that move shards: five bytes before each message,
//! the status behind the last. Other calls are left to tonic, which copies each message once into a buffer
//! of its own on either side; for shards that is a good part of what a transfer costs. The one idea: the
//! bytes of a shard stand at the end of their message, so they can go out as they lie in memory, and come
//! in as the connection read them, in parts.
//!
//! ```text
//! message:  0 │ length u32, big-endian │ 0x12 │ length, varint │ bytes of a shard …      field 2, bytes
//!           0 │ length u32, big-endian │ any other message of Protocol Buffers
//! ```
//!
//! Source of the framing: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.

use std::{
    collections::VecDeque,
    future::poll_fn,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use prost::Message;
use tonic::{
    Code, Status,
    body::Body,
    codegen::{
        Service, StdError,
        http::{
            HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
        },
        tokio_stream::{Stream, StreamExt as _},
    },
};

use crate::door;

/// The path of a Put stream.
pub const PUT: &str = "/copse.door.v1.Shards/Put";

/// The path of a Get.
pub const GET: &str = "/copse.door.v1.Shards/Get";

/// The path of a Has.
pub const HAS: &str = "/copse.door.v1.Shards/Has";

/// Bytes of one message at the door, at most, either way: a piece of a shard is half of it.
pub const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// Bytes of a message that is no data, at most, where there is data too, and of all that is asked at the
/// door: a descriptor has 8 KiB, a Has of 1,024 chunks 35. What has begun is kept in memory until it is
/// complete.
pub const PLAIN_BYTES_MAX: usize = 128 << 10;

/// Flag and length before each message.
const PREFIX_BYTES: usize = 5;

/// The key of field 2 with the wire type of bytes.
const DATA_KEY: u8 = 0x12;

/// Key and length of the data, at most: the length of a message is a u32.
const OPENING_BYTES_MAX: usize = 1 + 5;

/// What stands in a `content-type`.
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// A message of a call that moves shards.
pub trait Carried: Message + Default + Send + Unpin + 'static {
    /// Whether its field 2 is the bytes of a shard, and alone in its message.
    const HAS_DATA: bool;

    /// These bytes, if it is such a message.
    ///
    /// # Errors
    /// The message itself, if it is another.
    fn into_data(self) -> Result<Bytes, Self>;
}

macro_rules! carried {
    ($($message:ty: $data:pat => $bytes:expr;)*) => {$(
        impl Carried for $message {
            const HAS_DATA: bool = true;

            fn into_data(self) -> Result<Bytes, Self> {
                match self.part {
                    $data => Ok($bytes),
                    part => Err(Self { part }),
                }
            }
        }
    )*};
}

carried! {
    door::PutRequest: Some(door::put_request::Part::Data(data)) => data;
    door::GetReply: Some(door::get_reply::Part::Data(data)) => data;
}

macro_rules! plain {
    ($($message:ty,)*) => {$(
        impl Carried for $message {
            const HAS_DATA: bool = false;

            fn into_data(self) -> Result<Bytes, Self> {
                Err(self)
            }
        }
    )*};
}

plain! { door::PutReply, door::GetRequest, door::HasRequest, door::HasReply, }

/// A message in the frames in which it is sent: its beginning, and the data as it lies in memory.
fn frames<M: Carried>(message: M, frames: &mut VecDeque<Bytes>) -> Result<(), Status> {
    let mut head = BytesMut::with_capacity(PREFIX_BYTES + OPENING_BYTES_MAX);
    let length = |bytes: usize| {
        u32::try_from(bytes)
            .map_err(|_| Status::out_of_range(format!("a message of {bytes} bytes is too long")))
    };
    head.put_u8(0);
    match message.into_data() {
        Ok(data) => {
            let opening = 1 + prost::encoding::encoded_len_varint(data.len() as u64);
            head.put_u32(length(opening + data.len())?);
            head.put_u8(DATA_KEY);
            prost::encoding::encode_varint(data.len() as u64, &mut head);
            frames.push_back(head.freeze());
            if !data.is_empty() {
                frames.push_back(data);
            }
        }
        Err(message) => {
            head.put_u32(length(message.encoded_len())?);
            head.reserve(message.encoded_len());
            // There is room: a buffer of this kind grows.
            message.encode_raw(&mut head);
            frames.push_back(head.freeze());
        }
    }
    Ok(())
}

/// Messages on their way out.
struct Outgoing<S> {
    messages: Option<S>,
    frames: VecDeque<Bytes>,
    /// A server says at the end how it went; a client just ends.
    serves: bool,
}

impl<S, M> HttpBody for Outgoing<S>
where
    S: Stream<Item = Result<M, Status>> + Unpin,
    M: Carried,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(frame) = this.frames.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        let Some(messages) = &mut this.messages else { return Poll::Ready(None) };
        let end = match ready!(Pin::new(messages).poll_next(cx)) {
            Some(Ok(message)) => match frames(message, &mut this.frames) {
                Ok(()) => return Poll::Ready(this.frames.pop_front().map(Frame::data).map(Ok)),
                Err(status) => status,
            },
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        this.messages = None;
        Poll::Ready(match this.serves {
            true => Some(trailers(&end).map(Frame::trailers)),
            false if end.code() == Code::Ok => None,
            false => Some(Err(end)),
        })
    }
}

fn trailers(status: &Status) -> Result<HeaderMap, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(trailers)
}

/// The answer to a call: these messages, and how it went.
pub fn answer<M: Carried>(
    messages: impl Stream<Item = Result<M, Status>> + Send + Unpin + 'static,
) -> Response<Body> {
    let body = Outgoing { messages: Some(messages), frames: VecDeque::new(), serves: true };
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
    response
}

/// Calls a method with these messages. What comes out are the messages of the answer, each at most
/// `message_bytes_max` long.
///
/// # Errors
/// When the call could not be made or was refused before its first message.
pub async fn call<S, M, A>(
    channel: &mut S,
    path: &'static str,
    messages: impl Stream<Item = M> + Send + Unpin + 'static,
    message_bytes_max: usize,
) -> Result<Incoming<A>, Status>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Into<StdError>,
    M: Carried,
    A: Carried,
{
    let body =
        Outgoing { messages: Some(messages.map(Ok)), frames: VecDeque::new(), serves: false };
    let mut request = Request::new(Body::new(body));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from_static(path);
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    request.headers_mut().insert(header::CONTENT_TYPE, GRPC);
    let failed = |error: S::Error| Status::from_error(error.into());
    poll_fn(|cx| channel.poll_ready(cx)).await.map_err(failed)?;
    let response = channel.call(request).await.map_err(failed)?;
    if response.status() != StatusCode::OK {
        let status = response.status();
        return Err(Status::unavailable(format!("the door answered with HTTP status {status}")));
    }
    let told = Status::from_header_map(response.headers());
    match told {
        Some(status) if status.code() != Code::Ok => Err(status),
        told => Ok(Incoming {
            status_owed: told.is_none(),
            ..Incoming::new(response.into_body(), message_bytes_max)
        }),
    }
}

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
    begun: BytesMut,
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
            return Err(Status::unavailable("the answer ended without a status"));
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{FutureExt as _, stream};
    use proptest::prelude::*;

    use super::*;
    use crate::door::{GetReply, PutHeader, PutReply, PutRequest, put_request::Part};

    const LIMIT: usize = 4096;

    /// A body of frames that are all there.
    struct Frames(VecDeque<Frame<Bytes>>);

    impl HttpBody for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    /// A body that sends these bytes and then nothing more.
    struct Endless(Option<Bytes>);

    impl HttpBody for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.take().map_or(Poll::Pending, |bytes| Poll::Ready(Some(Ok(Frame::data(bytes)))))
        }
    }

    /// These bytes, in frames of so many bytes in turn.
    fn body(mut bytes: Bytes, sizes: &[usize]) -> Body {
        let mut frames = VecDeque::new();
        for size in sizes.iter().cycle() {
            if bytes.is_empty() {
                break;
            }
            frames.push_back(Frame::data(bytes.split_to((*size).min(bytes.len()))));
        }
        Body::new(Frames(frames))
    }

    /// All that comes of these bytes; parts of data put together by message.
    fn read<M: Carried>(incoming: &mut Incoming<M>) -> (Vec<Arrived<M>>, Result<(), Status>) {
        let (mut all, mut data, mut whole) = (Vec::new(), BytesMut::new(), 0);
        loop {
            // Nothing here is ever waited for.
            match incoming.next().now_or_never().expect("ready") {
                Ok(None) => return (all, Ok(())),
                Err(status) => return (all, Err(status)),
                Ok(Some(Arrived::Data { bytes, left })) => {
                    if data.is_empty() {
                        whole = left;
                    }
                    data.extend_from_slice(&bytes);
                    assert_eq!(whole - data.len(), left - bytes.len());
                    if data.len() == whole {
                        all.push(Arrived::Data { bytes: data.split().freeze(), left: whole });
                    }
                }
                Ok(Some(message)) => all.push(message),
            }
        }
    }

    /// What our side sends, in its frames.
    fn sent<M: Carried>(messages: Vec<M>) -> Vec<Bytes> {
        let mut out = VecDeque::new();
        for message in messages {
            frames(message, &mut out).expect("not too long");
        }
        out.into()
    }

    /// What tonic sends.
    fn sent_by_tonic<M: Carried>(messages: &[M]) -> Bytes {
        let mut out = BytesMut::new();
        for message in messages {
            out.put_u8(0);
            out.put_u32(u32::try_from(message.encoded_len()).expect("short"));
            message.encode(&mut out).expect("room");
        }
        out.freeze()
    }

    fn request() -> impl Strategy<Value = PutRequest> {
        let header = (any::<u64>(), prop::collection::vec(any::<u8>(), 0..50), any::<u32>());
        let header = header.prop_map(|(tag, descriptor, index)| {
            Part::Header(PutHeader { tag, target: Vec::new(), descriptor, index })
        });
        let data =
            prop::collection::vec(any::<u8>(), 0..1000).prop_map(|data| Part::Data(data.into()));
        prop_oneof![1 => Just(None), 5 => header.prop_map(Some), 10 => data.prop_map(Some)]
            .prop_map(|part| PutRequest { part })
    }

    proptest! {
        #[test]
        fn messages_are_those_of_tonic_and_arrive_in_any_frames(
            messages in prop::collection::vec(request(), 0..8),
            sizes in prop::collection::vec(1..600usize, 1..8),
        ) {
            let bytes = sent(messages.clone()).concat();
            prop_assert_eq!(&bytes[..], &sent_by_tonic(&messages)[..]);
            let mut incoming = Incoming::new(body(bytes.into(), &sizes), LIMIT);
            let (arrived, end) = read(&mut incoming);
            prop_assert!(end.is_ok());
            let expected: Vec<_> = messages.into_iter().map(|message| match message.part {
                Some(Part::Data(bytes)) => Arrived::Data { left: bytes.len(), bytes },
                _ => Arrived::Message(message),
            }).collect();
            prop_assert_eq!(arrived, expected);
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(DATA_KEY), 0..20u8, any::<u8>()], 0..300),
            sizes in prop::collection::vec(1..60usize, 1..8),
        ) {
            let mut incoming = Incoming::<PutRequest>::new(body(bytes.into(), &sizes), LIMIT);
            loop {
                let next = incoming.next().now_or_never().expect("ready");
                prop_assert!(incoming.begun.len() <= LIMIT);
                match next {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => {
                        // Nothing comes behind an error.
                        prop_assert!(matches!(incoming.next().now_or_never(), Some(Ok(None))));
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn the_bytes_of_a_shard_are_not_copied() {
        let data = Bytes::from(vec![7; 1000]);
        let out = sent(vec![PutRequest { part: Some(Part::Data(data.clone())) }]);
        assert_eq!(out[0][..], [0, 0, 0, 3, 235, DATA_KEY, 0xe8, 0x07], "golden");
        assert_eq!(out[1].as_ptr(), data.as_ptr());
        let mut incoming =
            Incoming::<PutRequest>::new(body(Bytes::from(out.concat()), &[8, 992]), LIMIT);
        let Some(Ok(Some(Arrived::Data { bytes, left }))) = incoming.next().now_or_never() else {
            panic!("no data");
        };
        assert_eq!((bytes.len(), left), (992, 1000), "a frame as it came");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_code_that_says_so() {
        let code = |bytes: &[u8]| {
            let body = body(Bytes::copy_from_slice(bytes), &[3]);
            let (_, end) = read(&mut Incoming::<PutRequest>::new(body, LIMIT));
            end.expect_err("refused").code()
        };
        assert_eq!(code(&[1, 0, 0, 0, 0]), Code::Unimplemented, "compressed");
        assert_eq!(code(&[0, 0, 0, 0x10, 1]), Code::OutOfRange, "one byte too long");
        assert_eq!(code(&[0, 0, 0]), Code::Internal, "torn in its length");
        assert_eq!(code(&[0, 0, 0, 0, 9]), Code::Internal, "torn behind it");
        assert_eq!(code(&[0, 0, 0, 0, 9, DATA_KEY, 7, 1]), Code::Internal, "torn in its data");
        assert_eq!(code(&[0, 0, 0, 0, 2, 0x0a, 9]), Code::Internal, "no message");
    }

    #[test]
    fn only_data_may_be_long() {
        let first = |bytes: &[u8]| {
            let body = body(Bytes::copy_from_slice(bytes), &[bytes.len()]);
            let mut incoming = Incoming::<PutRequest>::new(body, 1 << 20);
            incoming.next().now_or_never().expect("ready").map_err(|status| status.code())
        };
        let length = u32::try_from(PLAIN_BYTES_MAX + 1).expect("short").to_be_bytes();
        let header = [&[0], &length[..], &[0x0a; OPENING_BYTES_MAX]].concat();
        assert_eq!(first(&header), Err(Code::OutOfRange), "before memory is taken for it");
        let data = vec![PutRequest { part: Some(Part::Data(vec![7; PLAIN_BYTES_MAX + 1].into())) }];
        assert!(matches!(first(&sent(data).concat()), Ok(Some(Arrived::Data { .. }))));
    }

    #[test]
    fn a_message_that_has_begun_is_told_from_the_end_of_one() {
        let header =
            PutRequest { part: Some(Part::Header(PutHeader { tag: 7, ..Default::default() })) };
        let bytes = sent(vec![header]).concat();
        for torn in [3, 5, bytes.len() - 1] {
            let body = Body::new(Endless(Some(Bytes::copy_from_slice(&bytes[..torn]))));
            let mut incoming = Incoming::<PutRequest>::new(body, LIMIT);
            assert!(!incoming.inside_message());
            assert!(incoming.next().now_or_never().is_none(), "it waits for the rest");
            assert!(incoming.inside_message(), "{torn} bytes");
        }
        let body = Body::new(Endless(Some(bytes.into())));
        let mut incoming = Incoming::<PutRequest>::new(body, LIMIT);
        assert!(incoming.next().now_or_never().is_some());
        assert!(!incoming.inside_message());
    }

    #[test]
    fn an_answer_ends_with_its_status() {
        let answered = |trailers: Option<Status>| {
            let reply = PutReply { tag: 7, outcome: None };
            let mut frames: VecDeque<_> = sent(vec![reply]).into_iter().map(Frame::data).collect();
            frames.extend(
                trailers.map(|status| Frame::trailers(super::trailers(&status).expect("valid"))),
            );
            let mut incoming = Incoming::<PutReply>::new(Body::new(Frames(frames)), LIMIT);
            incoming.status_owed = true;
            let (arrived, end) = read(&mut incoming);
            assert_eq!(arrived.len(), 1);
            end.map_err(|status| (status.code(), status.message().to_owned()))
        };
        assert_eq!(answered(Some(Status::ok(""))), Ok(()));
        let refused = answered(Some(Status::not_found("nothing here")));
        assert_eq!(refused, Err((Code::NotFound, "nothing here".to_owned())));
        assert_eq!(answered(None).expect_err("cut off").0, Code::Unavailable);
    }

    #[test]
    fn a_server_says_how_it_went() {
        let failed = Status::data_loss("gone");
        let messages = vec![Ok(GetReply::default()), Err(failed), Ok(GetReply::default())];
        let body = answer(stream::iter(messages)).into_body();
        let mut incoming = Incoming::<GetReply>::new(body, LIMIT);
        incoming.status_owed = true;
        let (arrived, end) = read(&mut incoming);
        assert_eq!(arrived, [Arrived::Message(GetReply::default())]);
        let status = end.expect_err("it failed");
        assert_eq!((status.code(), status.message()), (Code::DataLoss, "gone"));
    }
}
