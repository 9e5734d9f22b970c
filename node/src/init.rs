//! Creating a node in a directory: its key, its configuration, the mark of its store.
//!
//! Owns `init`. Refuses a directory that holds a node, or a part of one. One idea: the configuration
//! is written last and whole, so that a directory with one is a node, and without one is none.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use copse_core::{
    ids::{NetworkId, NodeId},
    token::JoinToken,
    units::ByteSize,
};

use crate::{
    addresses::{self, Transport},
    cli::{Advertise, InitArgs},
    config::{self, Config, ConfigError, Listen},
    identity::{self, IdentityError, Seed},
    lock::{Lock, LockError},
    store::{self, DiskStore, MARKER_FILE, StoreId},
};

/// The store, in the node's directory.
pub const STORE_DIR: &str = "store";

/// A node that was created.
#[derive(Debug)]
pub struct Created {
    /// Its id.
    pub node: NodeId,
    /// What was written.
    pub config: Config,
}

/// Why no node was created.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A node lives there.
    #[error(
        "{0} holds a node already: start it with `copse-node run`, or choose another directory"
    )]
    Exists(PathBuf),
    /// Something of a node lies there.
    #[error(
        "{dir} holds {found} but no configuration: an earlier init was interrupted, or this is not \
         the directory you mean; if nothing there is needed, remove {dir} and try again"
    )]
    Leftover {
        /// The directory.
        dir: PathBuf,
        /// What was found.
        found: &'static str,
    },
    /// The tokens are of different networks.
    #[error("the tokens given with --join are of different networks: {first} and {other}")]
    Networks {
        /// The network of the first.
        first: NetworkId,
        /// Another one.
        other: NetworkId,
    },
    /// The address is not this machine's.
    #[error("cannot listen on {address} ({flag}): {source}")]
    Listen {
        /// Which flag gave it.
        flag: &'static str,
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Another process has the directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The key was not written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A value is out of bounds.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store was not prepared.
    #[error(transparent)]
    Store(#[from] store::InitError),
    /// The operating system refused.
    #[error("cannot create a node in {dir}: {source}")]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Creates a node as the arguments say. `random` gives random bytes.
///
/// # Errors
/// When the directory is not free, or an argument cannot be followed. Nothing of value is lost.
pub fn init(
    args: &InitArgs,
    random: impl Fn(&mut [u8]) -> io::Result<()>,
) -> Result<Created, InitError> {
    let dir = args.dir.as_path();
    let io = |source| InitError::Io { dir: dir.to_owned(), source };
    // The directory holds the key: nobody else's business.
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    let _lock = Lock::take(dir)?;
    refuse_a_used_directory(dir)?;

    let network = match args.join.first() {
        None => {
            let mut id = [0; 32];
            random(&mut id).map_err(io)?;
            NetworkId::new(id)
        }
        Some(first) => first.network,
    };
    if let Some(other) = args.join.iter().find(|token| token.network != network) {
        return Err(InitError::Networks { first: network, other: other.network });
    }
    let capacity = match args.capacity {
        Some(capacity) => capacity,
        None => half_of_the_free_space(dir).map_err(io)?,
    };
    let free_port =
        |flag, address, transport| {
            let port = || {
                let mut bytes = [0; 2];
                random(&mut bytes)?;
                Ok(u16::from_le_bytes(bytes))
            };
            addresses::with_free_port(address, transport, port)
                .map_err(|source| InitError::Listen { flag, address, source })
        };
    let mut config = Config::new(network, capacity);
    config.join = args.join.clone();
    config.zone = args.zone.clone();
    config.quic.listen = free_port("--listen", args.listen, Transport::Udp)?;
    config.grpc.listen = free_port("--grpc", args.grpc, Transport::Tcp)?;
    config.quic.advertise = told(&args.advertise, &config.quic);
    config.grpc.advertise = match args.advertise_grpc.as_slice() {
        // Who forwards one port to a node forwards the other, too.
        [] => told(
            &args
                .advertise
                .iter()
                .map(|told| Advertise { port: None, ..*told })
                .collect::<Vec<_>>(),
            &config.grpc,
        ),
        told_grpc => told(told_grpc, &config.grpc),
    };
    let text = config.render();
    // The same check as at start, so that what is written can be run.
    let config = Config::parse(&text, &dir.join(config::FILE_NAME))?;

    let mut secret = zeroize::Zeroizing::new([0; 32]);
    random(&mut *secret).map_err(io)?;
    let seed = Seed::new(*secret);
    let node = seed.key().id();
    let mut store = [0; 32];
    random(&mut store).map_err(io)?;
    DiskStore::init(&dir.join(STORE_DIR), node, StoreId(store))?;
    identity::create(dir, &seed)?;
    write_whole(dir, config::FILE_NAME, &text).map_err(io)?;
    Ok(Created { node, config })
}

/// What others need to join through the node of `config`.
pub fn token(config: &Config, node: NodeId) -> JoinToken {
    JoinToken {
        network: config.network,
        node,
        addresses: addresses::advertised(&config.quic),
        grpc: addresses::advertised(&config.grpc),
    }
}

fn refuse_a_used_directory(dir: &Path) -> Result<(), InitError> {
    let there = |path: PathBuf| fs::symlink_metadata(path).is_ok();
    if there(dir.join(config::FILE_NAME)) {
        return Err(InitError::Exists(dir.to_owned()));
    }
    let found = if there(dir.join(identity::FILE_NAME)) {
        "a node's key"
    } else if there(dir.join(STORE_DIR).join(MARKER_FILE)) {
        "a node's store"
    } else {
        return Ok(());
    };
    Err(InitError::Leftover { dir: dir.to_owned(), found })
}

fn told(flags: &[Advertise], listen: &Listen) -> Vec<std::net::SocketAddr> {
    flags.iter().map(|told| (told.ip, told.port.unwrap_or(listen.listen.port())).into()).collect()
}

/// Half, since the disk is somebody's, and they did not say how much of it they want to give away.
fn half_of_the_free_space(dir: &Path) -> io::Result<ByteSize> {
    let disk = rustix::fs::statvfs(dir)?;
    let half = disk.f_bavail.saturating_mul(disk.f_frsize) / 2;
    let unit = if half >= 1 << 30 { 1 << 30 } else { 1 << 20 };
    Ok(ByteSize(half / unit * unit))
}

/// Writes a file that is there with all of its content, after a power cut too, or not at all.
fn write_whole(dir: &Path, name: &str, content: &str) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}
