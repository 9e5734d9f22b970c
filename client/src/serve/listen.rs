//! Where the gateway listens: an address of this machine, or a unix socket.
//!
//! Owns the listening socket, its permissions, and the first words of each connection, wherever it comes from. Refuses to listen
//! for other machines without a token, and to take a socket away from somebody. One idea: a socket
//! appears under its name only when nobody but its owner can open it.

use std::{
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    str::FromStr,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{Sleep, sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use super::places::{Caller, Place, Places};

/// Connections at one time. Each may hold up to 32 MiB of a put on its way, so this is not large;
/// one gRPC channel is one connection, whatever the number of its calls.
const CONNECTIONS_MAX: usize = 64;

/// How long a caller may say nothing at first: HTTP/2 begins with words of the caller, and only then asks by
/// itself whether the caller is still there.
const FIRST_WORDS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait after the system refused to accept, mostly for want of file descriptors: long
/// enough not to spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP; port 0 for any free one.
    Tcp(SocketAddr),
    /// A unix socket at this path.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    /// `IP:PORT`, `localhost:PORT`, `unix:PATH` or `unix:///PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            // gRPC writes absolute paths with or without an empty authority.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.ends_with('/') {
                return Err(format!("{text} names no socket; write unix:/path/to/socket"));
            }
            return Ok(Self::Unix(path.into()));
        }
        if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
            return Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            format!("{text:?} is no address to listen on; write IP:PORT or unix:/path/to/socket")
        })
    }
}

impl fmt::Display for Address {
    /// As gRPC clients take it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why the gateway does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Anybody could read, and put.
    #[error(
        "refused to listen on {0} without a token: other machines could connect, and whoever \
         connects reads everything and stores in your name; add --token-file FILE, or listen on \
         127.0.0.1 or unix:PATH"
    )]
    Open(SocketAddr),
    /// Somebody serves there.
    #[error("somebody listens on {} already; stop it first, or choose another path", .0.display())]
    Taken(PathBuf),
    /// Something else lies there.
    #[error("{} exists and is no socket; it was left alone, choose another path", .0.display())]
    NoSocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// Where.
        address: Address,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
    /// The name of a unix socket and which file it is; removed with the listener.
    _name: Option<SocketName>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens. `guarded` is whether callers must show a token.
    ///
    /// # Errors
    /// When other machines could connect unguarded, the place is taken, or the system refuses.
    pub async fn bind(address: &Address, guarded: bool) -> Result<Self, ListenError> {
        let refused = |source| ListenError::Io { address: address.clone(), source };
        match address {
            Address::Tcp(wanted) => {
                if !guarded && !wanted.ip().to_canonical().is_loopback() {
                    return Err(ListenError::Open(*wanted));
                }
                let listener = TcpListener::bind(wanted).await.map_err(refused)?;
                let address = Address::Tcp(listener.local_addr().map_err(refused)?);
                Ok(Self { socket: Socket::Tcp(listener), address, _name: None })
            }
            Address::Unix(path) => {
                make_room(path).await?;
                let (listener, name) =
                    bind_private(path).map_err(|source| match source.kind() {
                        io::ErrorKind::AlreadyExists => ListenError::Taken(path.clone()),
                        _ => refused(source),
                    })?;
                let socket = Socket::Unix(listener);
                Ok(Self { socket, address: address.clone(), _name: Some(name) })
            }
        }
    }

    /// Where it listens, with the actual port.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The callers as they come, for ever.
    pub(super) fn callers(&self) -> impl Stream<Item = io::Result<Box<dyn Io>>> + Send {
        stream::unfold(self, |listener| async move { Some((listener.accept().await, listener)) })
    }

    async fn accept(&self) -> io::Result<Box<dyn Io>> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, _): (TcpStream, _) = listener.accept().await?;
                // Small answers must not wait for more to send.
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Socket::Unix(listener) => {
                let (stream, _): (UnixStream, _) = listener.accept().await?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// Gives callers places, one after the other. With all places taken, one on which no call runs makes room;
/// when calls run on all, one caller waits here and the others where they come from. Never ends.
pub(super) fn connections<S, I>(callers: S) -> impl Stream<Item = io::Result<Connection>> + Send
where
    S: Stream<Item = io::Result<I>> + Send,
    I: Io,
{
    let places = Places::new(CONNECTIONS_MAX);
    stream::unfold((Box::pin(callers), places), |(mut callers, places)| async move {
        loop {
            match callers.next().await {
                // The end would be a stop: those that are there have calls to make.
                None => std::future::pending().await,
                Some(Ok(io)) => {
                    let connection = Connection::new(Box::new(io), places.take().await);
                    return Some((Ok(connection), (callers, places)));
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Removes a socket that nobody listens on any more.
async fn make_room(path: &Path) -> Result<(), ListenError> {
    let refused = |source| ListenError::Io { address: Address::Unix(path.to_owned()), source };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(error)),
    };
    if !found.file_type().is_socket() {
        return Err(ListenError::NoSocket(path.to_owned()));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(refused)
        }
        // Gone meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Connected, or not allowed to: either way it is somebody's.
        _ => Err(ListenError::Taken(path.to_owned())),
    }
}

/// Binds in a directory of the owner's alone, takes the rights of others away, and only then gives
/// the socket its name: at no moment can another user connect. Never takes a name from somebody.
fn bind_private(path: &Path) -> io::Result<(UnixListener, SocketName)> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    // Short: the whole path of a socket may have 107 bytes.
    let hidden = format!(".copse{}", data_encoding::HEXLOWER.encode(&random));
    let hidden = parent.unwrap_or(Path::new(".")).join(hidden);
    fs::DirBuilder::new().mode(0o700).create(&hidden)?;
    let bind = || {
        let new = hidden.join("s");
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        let found = fs::symlink_metadata(&new)?;
        fs::hard_link(&new, path)?;
        let file = (found.dev(), found.ino());
        Ok((listener, SocketName { path: path.to_owned(), file }))
    };
    let bound = bind();
    // Leftovers of ours alone lie in it.
    let _ = fs::remove_dir_all(&hidden);
    bound
}

/// Takes the name of a socket away when dropped, if it is still the same socket's.
#[derive(Debug)]
struct SocketName {
    path: PathBuf,
    file: (u64, u64),
}

impl Drop for SocketName {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if ours {
            // Nobody listens there: the next to start removes it if this fails.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A byte stream to one caller.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A connection. Its place is free again when it is dropped.
pub(super) struct Connection {
    io: Box<dyn Io>,
    place: Place,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until the caller's first words.
    silent: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    fn new(io: Box<dyn Io>, place: Place) -> Self {
        let cut = Box::pin(place.cut().clone().cancelled_owned());
        Self { io, place, cut, silent: Some(Box::pin(sleep(FIRST_WORDS_TIMEOUT))) }
    }

    /// Whether it may go on.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it made room for another"));
        }
        if self.silent.as_mut().is_some_and(|silent| silent.as_mut().poll(cx).is_ready()) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "not a word at first"));
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.place.caller().clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.silent = None;
        }
        read
    }
}

// Checked here, too: from a caller that takes nothing HTTP/2 does not read on.
impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn addresses_are_read_as_grpc_writes_them() {
        let check = |text: &str, expected: &str| {
            let address: Address = text.parse().expect("an address");
            assert_eq!(address.to_string(), expected, "{text}");
        };
        check("127.0.0.1:7402", "127.0.0.1:7402");
        check("[::1]:0", "[::1]:0");
        check("localhost:80", "127.0.0.1:80");
        check("unix:/run/a b", "unix:/run/a b");
        check("unix:///run/a", "unix:/run/a");
        check("unix:a", "unix:a");
        for wrong in ["", "7402", "127.0.0.1", "unix:", "unix:///", "unix:/run/", "example:1"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong:?} was taken for an address");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_word_is_closed_and_one_with_a_word_is_not() {
        let places = Places::new(2);
        let (_caller, io) = tokio::io::duplex(64);
        let mut silent = Connection::new(Box::new(io), places.take().await);
        let (mut caller, io) = tokio::io::duplex(64);
        let mut talking = Connection::new(Box::new(io), places.take().await);
        let started = tokio::time::Instant::now();
        caller.write_all(b"PRI").await.expect("there is room");
        let mut words = [0; 3];
        talking.read_exact(&mut words).await.expect("the first words");
        let error = silent.read_exact(&mut words).await.expect_err("closed");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), FIRST_WORDS_TIMEOUT.as_secs());
        tokio::time::timeout(10 * FIRST_WORDS_TIMEOUT, talking.read_exact(&mut words))
            .await
            .expect_err("it goes on");

        // Places are short: whoever is read from or written to is told.
        drop(silent);
        let _others = places.take().await;
        assert!(places.take().now_or_never().is_none());
        let error = talking.write_all(&[0; 100]).await.expect_err("closed");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn without_a_token_only_this_machine_can_connect() {
        for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let address = open.parse().expect("an address");
            let error = Listener::bind(&address, false).await.expect_err("refused");
            assert!(error.to_string().contains("--token-file"), "{error}");
        }
        for closed in ["127.0.0.1:0", "127.7.7.7:0", "[::ffff:127.0.0.1]:0"] {
            let address = closed.parse().expect("an address");
            match Listener::bind(&address, false).await {
                Ok(listener) => assert_ne!(*listener.address(), address, "the port is not told"),
                // A machine without IPv6.
                Err(error) => assert!(matches!(error, ListenError::Io { .. }), "{error}"),
            }
        }
        let all = "0.0.0.0:0".parse().expect("an address");
        Listener::bind(&all, true).await.expect("listens with a token");
    }

    #[tokio::test]
    async fn a_socket_is_its_owners_and_goes_with_the_listener() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let address = Address::Unix(path.clone());
        let listener = Listener::bind(&address, false).await.expect("listens");
        let mode = fs::symlink_metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).await.expect("connects");
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);

        let error = Listener::bind(&address, false).await.expect_err("taken");
        assert!(matches!(error, ListenError::Taken(_)), "{error}");
        drop(listener);
        assert!(!path.exists(), "the name is left behind");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let address = Address::Unix(path.clone());
        // As kill -9 leaves it: a name without a listener.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists());
        let listener = Listener::bind(&address, false).await.expect("replaces it");

        // Another took the name meanwhile: it is not removed with ours.
        fs::remove_file(&path).expect("removed");
        fs::write(&path, "precious").expect("written");
        drop(listener);
        let error = Listener::bind(&address, false).await.expect_err("no socket");
        assert!(matches!(error, ListenError::NoSocket(_)), "{error}");
        assert_eq!(fs::read(&path).expect("still there"), b"precious");
    }
}
