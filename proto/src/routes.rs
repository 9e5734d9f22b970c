//! Several gRPC services behind one listener: a call goes to the service its path names.
//!
//! Owns the split of a path into service and method. Refuses paths of no service with UNIMPLEMENTED,
//! as gRPC wants it. (tonic's own router does the same with a whole web framework behind it.)

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

type Request = http::Request<Body>;
type Response = http::Response<Body>;

/// A service whose type is not known any more.
trait Erased: Send + Sync {
    fn call(&self, request: Request) -> BoxFuture<Response, Infallible>;
}

impl<S> Erased for S
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + Sync,
    S::Future: Send + 'static,
{
    fn call(&self, request: Request) -> BoxFuture<Response, Infallible> {
        // Generated services are always ready; a clone is a reference count.
        Box::pin(Service::call(&mut self.clone(), request))
    }
}

/// Services by name. Give it to `tonic::transport::Server`'s `serve_with_incoming_shutdown`.
#[derive(Clone, Default)]
pub struct Routes(BTreeMap<&'static str, Arc<dyn Erased>>);

impl Routes {
    /// No service yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more service; it takes the place of one with the same name.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<Request, Response = Response, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.0.insert(S::NAME, Arc::new(service));
        self
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Service<Request> for Routes {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<Response, Infallible>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        match service_of(request.uri().path()).and_then(|name| self.0.get(name)) {
            Some(service) => service.call(request),
            None => Box::pin(unimplemented(request.uri().path())),
        }
    }
}

/// `/package.Service/Method` names `package.Service`.
fn service_of(path: &str) -> Option<&str> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!method.is_empty() && !method.contains('/')).then_some(service)
}

fn unimplemented(path: &str) -> Ready<Result<Response, Infallible>> {
    // A path may be long and is a stranger's.
    let shown: String = path.chars().filter(|c| c.is_ascii_graphic()).take(100).collect();
    ready(Ok(Status::unimplemented(format!("no service here has {shown}")).into_http()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Teapot;

    impl NamedService for Teapot {
        const NAME: &'static str = "kitchen.v1.Teapot";
    }

    impl Service<Request> for Teapot {
        type Response = Response;
        type Error = Infallible;
        type Future = Ready<Result<Response, Infallible>>;

        fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _request: Request) -> Self::Future {
            ready(Ok(http::Response::builder().status(418).body(Body::default()).expect("valid")))
        }
    }

    #[test]
    fn a_call_goes_to_the_service_its_path_names() {
        for (path, expected) in [
            ("/kitchen.v1.Teapot/Brew", 418),
            ("/kitchen.v1.Teapot", 200),
            ("/kitchen.v1.Teapot/", 200),
            ("/kitchen.v1.Teapot/a/b", 200),
            ("/kitchen.v1.Kettle/Brew", 200),
            ("/", 200),
        ] {
            let request = http::Request::builder().uri(path).body(Body::default()).expect("valid");
            let mut future = Routes::new().with(Teapot).call(request);
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx) else {
                panic!("{path} is not answered at once");
            };
            assert_eq!(response.status(), expected, "{path}");
            // UNIMPLEMENTED is 12; gRPC refuses with HTTP's 200.
            let unimplemented = response.headers().get("grpc-status").is_some_and(|s| s == "12");
            assert_eq!(unimplemented, expected == 200, "{path}");
        }
    }
}
