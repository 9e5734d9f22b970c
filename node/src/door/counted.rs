//! Counts the calls of each connection, whatever service they are for.
//!
//! Owns when a call begins, goes on and ends: with its request, with each part of it or of its answer that
//! passes, and with the last of its answer. Refuses nothing, but ends connections whose reflection call goes on
//! for too long. One idea: a connection in the middle of a call that goes on is in use, any other is only there.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use copse_proto::routes::Routes;
use http_body_util::BodyExt as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    codegen::{
        BoxFuture, Service,
        http::{Request, Response},
    },
};

use super::clients::{Calling, Client};

/// Where reflection's paths begin.
const REFLECTION: &str = "/grpc.reflection.";

/// How long a call of reflection may take. It is the one service of others in which a client sends many
/// messages, and one that reads no answer would keep unread what it sends. A tool asks for all it wants in
/// a second.
const REFLECTION_TIME_MAX: Duration = Duration::from_secs(60);

/// All services, with their calls counted.
#[derive(Clone)]
pub(super) struct Counted(pub(super) Routes);

/// A call; over when it is dropped.
struct Over {
    _calling: Calling,
    over: CancellationToken,
}

impl Over {
    fn new(client: &Client, path: &str) -> Self {
        let over = CancellationToken::new();
        if path.starts_with(REFLECTION) {
            let (client, over) = (client.clone(), over.clone());
            tokio::spawn(async move {
                if timeout(REFLECTION_TIME_MAX, over.cancelled()).await.is_err() {
                    client.cut_off("it asks for reflection for too long");
                }
            });
        }
        Self { _calling: client.begin(), over }
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

impl Service<Request<Body>> for Counted {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Every call comes on a connection; without one there is nothing to count.
        let Some(client) = request.extensions().get::<Client>().cloned() else {
            return Box::pin(self.0.call(request));
        };
        let call = Over::new(&client, request.uri().path());
        let asking = client.clone();
        let answer = self.0.call(request.map(|body| {
            Body::new(body.map_frame(move |frame| {
                asking.moves();
                frame
            }))
        }));
        Box::pin(async move {
            let answer = answer.await?;
            // The body holds the call until it is sent, or nobody wants it any more.
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _ = &call;
                    client.moves();
                    frame
                }))
            }))
        })
    }
}
