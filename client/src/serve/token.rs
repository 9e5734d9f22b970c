//! Who may call: those who show the bearer token.
//!
//! Owns the token and the check in front of every service. Refuses tokens that could be guessed. One
//! idea: the check is made once, before a call reaches any service, so that none can forget it. What it
//! admits counts for the place of its connection as long as it runs.

use std::{convert::Infallible, fmt, fs, io, path::Path, path::PathBuf, pin::Pin, sync::Arc};

use blake3::Hash;
use bytes::Bytes;
use copse_proto::{
    routes::Routes,
    status::{Reason, Refusal},
};
use http_body::{Frame, SizeHint};
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Context, Poll, Service, http},
    metadata::MetadataMap,
};
use zeroize::Zeroizing;

use super::{
    failure::{Failure, RequestId},
    health,
    places::{Call, Caller},
};

/// A token of fewer characters can be guessed.
pub const TOKEN_CHARS_MIN: usize = 16;

/// A token file of more bytes is some other file.
const TOKEN_BYTES_MAX: usize = 4096;

/// A file that is no token file.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("the token file {} cannot be read: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// What is in it cannot be a token.
    #[error(
        "the token file {} holds no token: {problem}; make one with \
         `openssl rand -hex 32 > {}`", .path.display(), .path.display()
    )]
    Unfit {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// What callers must show. Only its hash is kept.
#[derive(Clone)]
pub struct Token(Hash);

impl Token {
    /// Reads a token file: one line of at least 16 visible ASCII characters.
    ///
    /// # Errors
    /// When it cannot be read or holds something else.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let bytes = fs::read(path)
            .map_err(|source| TokenError::Io { path: path.to_owned(), source })
            .map(Zeroizing::new)?;
        Self::new(bytes.trim_ascii())
            .map_err(|problem| TokenError::Unfit { path: path.to_owned(), problem })
    }

    /// Takes a token.
    ///
    /// # Errors
    /// Says why it is none.
    pub fn new(token: &[u8]) -> Result<Self, String> {
        if token.len() < TOKEN_CHARS_MIN {
            return Err(format!(
                "it has {} characters, at least {TOKEN_CHARS_MIN} are needed",
                token.len()
            ));
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(format!("it has more than {TOKEN_BYTES_MAX} bytes"));
        }
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err("a token is one line of visible ASCII characters without spaces".to_owned());
        }
        Ok(Self(blake3::hash(token)))
    }

    /// Whether the header `authorization: Bearer TOKEN` holds this token. Takes the same time
    /// wherever they differ: hashes are compared, and theirs is a comparison in constant time.
    fn admits(&self, headers: &http::HeaderMap) -> bool {
        let Some(value) = headers.get(http::header::AUTHORIZATION) else { return false };
        let value = value.as_bytes();
        match value.split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => {
                blake3::hash(token.trim_ascii()) == self.0
            }
            _ => false,
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Services behind a token. Health alone answers without: probes cannot send headers, and it tells
/// only that somebody serves.
#[derive(Clone)]
pub(super) struct Guarded {
    routes: Routes,
    token: Option<Arc<Token>>,
}

impl Guarded {
    /// Without a token everybody who can connect may call.
    pub(super) fn new(routes: Routes, token: Option<Token>) -> Self {
        Self { routes, token: token.map(Arc::new) }
    }

    fn admits(&self, request: &http::Request<Body>) -> bool {
        self.token.as_ref().is_none_or(|token| token.admits(request.headers()))
    }
}

/// The body of an answer; the call runs until all of it is taken.
struct Running {
    body: Body,
    _call: Option<Call>,
}

impl http_body::Body for Running {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Service<http::Request<Body>> for Guarded {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.routes.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if self.admits(&request) {
            let call = request.extensions().get::<Caller>().map(Caller::begin);
            let answer = self.routes.call(request);
            return Box::pin(async move {
                Ok(answer.await?.map(|body| Body::new(Running { body, _call: call })))
            });
        }
        if request.uri().path().starts_with(health::PATH) {
            return self.routes.call(request);
        }
        let refusal = Refusal::new(
            Reason::Unauthenticated,
            "this gateway asks for a token: send it as `authorization: Bearer TOKEN`",
        );
        let id = RequestId::of(&MetadataMap::from_headers(request.headers().clone()));
        let mut response = Failure::from(refusal).into_status(&id).into_http();
        let challenge = http::HeaderValue::from_static("Bearer");
        response.headers_mut().insert(http::header::WWW_AUTHENTICATE, challenge);
        Box::pin(async move { Ok(response) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_admitted() {
        let token = Token::new(b"0123456789abcdef").expect("a token");
        let check = |header: Option<&str>, expected| {
            let mut headers = http::HeaderMap::new();
            if let Some(header) = header {
                let value = header.parse().expect("a header");
                headers.insert(http::header::AUTHORIZATION, value);
            }
            assert_eq!(token.admits(&headers), expected, "{header:?}");
        };
        check(Some("Bearer 0123456789abcdef"), true);
        check(Some("bearer 0123456789abcdef"), true);
        check(None, false);
        check(Some("0123456789abcdef"), false);
        check(Some("Basic 0123456789abcdef"), false);
        check(Some("Bearer 0123456789abcdeg"), false);
        check(Some("Bearer 0123456789abcde"), false);
        check(Some("Bearer 0123456789abcdef0"), false);
        check(Some("Bearer "), false);
        check(Some("Bea"), false);
    }

    #[test]
    fn what_could_be_guessed_or_not_be_sent_is_no_token() {
        for wrong in [&b""[..], b"short", b"two words that are long", b"\x01\x02345678901234567"] {
            assert!(Token::new(wrong).is_err(), "{wrong:?} was taken for a token");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        assert!(matches!(Token::read(&path), Err(TokenError::Io { .. })));
        fs::write(&path, "secret").expect("written");
        let error = Token::read(&path).expect_err("too short").to_string();
        assert!(error.contains("openssl") && !error.contains("secret"), "{error}");
        fs::write(&path, "  0123456789abcdef\n").expect("written");
        Token::read(&path).expect("a token and a newline");
    }
}
