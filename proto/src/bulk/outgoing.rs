//! Messages on their way out, of a server's answer or a client's call.
//!
//! Owns the frames of a message and what stands around them in HTTP/2. The one idea: a shard is a frame of
//! its own, as it lies in memory.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
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

use super::{Carried, DATA_KEY, Incoming, OPENING_BYTES_MAX, PREFIX_BYTES};

/// What stands in a `content-type`.
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// A message in the frames in which it is sent: its beginning, and the data as it lies in memory.
pub(super) fn frames<M: Carried>(message: M, frames: &mut VecDeque<Bytes>) -> Result<(), Status> {
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

pub(super) fn trailers(status: &Status) -> Result<HeaderMap, Status> {
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
        told => Ok(Incoming::answer(response.into_body(), message_bytes_max, told.is_none())),
    }
}
