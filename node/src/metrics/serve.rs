//! The HTTP endpoint that a collector asks: `/metrics` and `/healthz`, nothing else.
//!
//! Owns its connections, few and short. Refuses bodies, other methods and other paths. The one idea:
//! whoever can reach it may ask as often as he likes without taking more than a few connections.

use std::{convert::Infallible, future::Future, pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use copse_proto::door::InfoReply;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Connections at one time; more wait in the kernel's queue. One collector needs one.
const CONNECTIONS_MAX: usize = 16;

/// Bytes of a request's head; hyper's least.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// From the connection to the end of the request's head.
    pub(super) head: Duration,
    /// For the node to say how it is. Longer, and it is not well.
    pub(super) answer: Duration,
    /// A connection altogether: head, answer, and its way out. It serves one request.
    pub(super) connection: Duration,
}

/// Collectors give up after ten seconds by default.
const LIMITS: Limits = Limits {
    head: Duration::from_secs(5),
    answer: Duration::from_secs(5),
    connection: Duration::from_secs(15),
};

/// After an accept that failed, for lack of file descriptors most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Who knows how the node is.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// What the node says of itself.
    async fn info(&self) -> InfoReply;
}

/// Answers on a listener until `stop` is there; then connections are closed as they are.
pub async fn serve(
    listener: TcpListener,
    source: Arc<dyn Source>,
    stop: impl Future<Output = ()> + Send,
) {
    serve_within(LIMITS, listener, source, stop).await;
}

/// The same with other limits.
pub(super) async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    source: Arc<dyn Source>,
    stop: impl Future<Output = ()> + Send,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped at the end, with what is in it.
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepting = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = &mut stop => return,
            accepted = accepting => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, from)) => {
                let source = Arc::clone(&source);
                connections.spawn(async move {
                    let answered = timeout(limits.connection, answer(stream, source, limits));
                    if answered.await.is_err() {
                        tracing::debug!(%from, "a connection for metrics took too long");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection for metrics was not accepted");
                tokio::select! {
                    () = &mut stop => return,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
}

/// One request of one connection.
async fn answer(stream: TcpStream, source: Arc<dyn Source>, limits: Limits) {
    let service = service_fn(move |request| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(respond(&request, &*source, limits.answer).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection for metrics ended early");
    }
}

async fn respond(
    request: &Request<Incoming>,
    source: &dyn Source,
    limit: Duration,
) -> Response<Full<Bytes>> {
    let known = matches!(request.uri().path(), "/metrics" | "/healthz");
    if !known {
        return plain(StatusCode::NOT_FOUND, "there are /metrics and /healthz\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "GET it\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let Ok(info) = timeout(limit, source.info()).await else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the node does not answer in time\n");
    };
    if request.uri().path() == "/healthz" {
        return plain(StatusCode::OK, "ok\n");
    }
    let mut metrics = plain(StatusCode::OK, super::render(&info));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    metrics.headers_mut().insert(CONTENT_TYPE, kind);
    metrics
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
