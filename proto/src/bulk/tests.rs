//! What our framing sends is what tonic sends, and whatever comes is read or refused.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut as _, BytesMut};
use futures::{FutureExt as _, stream};
use http_body::{Body as HttpBody, Frame};
use proptest::prelude::*;
use tonic::{Code, Status, body::Body};

use super::{
    outgoing::{frames, trailers},
    *,
};
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
        Part::Header(PutHeader { tag, target: Vec::new(), descriptor, index, settles: true })
    });
    let data = prop::collection::vec(any::<u8>(), 0..1000).prop_map(|data| Part::Data(data.into()));
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
    let answered = |status: Option<Status>| {
        let reply = PutReply { tag: 7, outcome: None };
        let mut frames: VecDeque<_> = sent(vec![reply]).into_iter().map(Frame::data).collect();
        frames.extend(status.map(|status| Frame::trailers(trailers(&status).expect("valid"))));
        let mut incoming = Incoming::<PutReply>::answer(Body::new(Frames(frames)), LIMIT, true);
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
    let mut incoming = Incoming::<GetReply>::answer(body, LIMIT, true);
    let (arrived, end) = read(&mut incoming);
    assert_eq!(arrived, [Arrived::Message(GetReply::default())]);
    let status = end.expect_err("it failed");
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "gone"));
}
