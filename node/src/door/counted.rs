//! Counts the calls of each connection, whatever service they are for.
//!
//! Owns when a call begins and ends: with its request, and with the last of its answer. Refuses nothing. One idea: a connection in the middle of a call
//! is in use, any other is only there.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use copse_proto::routes::Routes;
use http_body_util::BodyExt as _;
use tonic::{
    body::Body,
    codegen::{
        BoxFuture, Service,
        http::{Request, Response},
    },
};

use super::clients::Client;

/// All services, with their calls counted.
#[derive(Clone)]
pub(super) struct Counted(pub(super) Routes);

impl Service<Request<Body>> for Counted {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = request.extensions().get::<Client>();
        let call = client.map(Client::begin);
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            // The body holds the call until it is sent, or nobody wants it any more.
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _ = &call;
                    frame
                }))
            }))
        })
    }
}
