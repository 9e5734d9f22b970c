//! What a client remembers of a network between two runs.
//!
//! Owns a directory with the network's id and doors, the convergence secret (0600) and the last
//! directory seen. Never holds a capability: those belong to the user. The one idea: joining twice
//! is the same as joining once, and never changes the secret.
//!
//! ```text
//! DIR/profile.toml   network id, doors           DIR/secret      64 hexadecimal digits, 0600
//! DIR/directory      signed records of nodes     DIR/journal/    the CLI's, see journal.rs
//! ```

use std::{
    fs, io,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use copse_core::{
    directory::Directory,
    ids::{NetworkId, NodeId},
    seal::ConvergenceSecret,
    token::JoinToken,
};
use copse_proto::{convert, door};
use data_encoding::HEXLOWER;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    connect::{Connector, TlsConnector},
    error::NetworkError,
    network::Network,
    task::beside,
};

/// Doors remembered, at most: the newest. The directory has all others.
const DOORS_MAX: usize = 16;

/// The cached directory is read up to this size, in bytes: 100,000 nodes.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;

/// A node's door: where the first connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// The node; its key is checked when it answers.
    pub node: NodeId,
    /// Where it speaks gRPC.
    pub addresses: Vec<SocketAddr>,
}

/// A client's state directory.
#[derive(Debug, Clone)]
pub struct Profile {
    dir: PathBuf,
    network: NetworkId,
    doors: Vec<Door>,
    secret: ConvergenceSecret,
}

/// A profile that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not joined yet.
    #[error("{} has not joined a network; run: copse join TOKEN (copse-node token prints one)", .0.display())]
    NotJoined(PathBuf),
    /// Joined to another network.
    #[error(
        "{} already belongs to network {}, the token is of network {}; use another directory for it \
         (--home)", .dir.display(), .joined.short(), .token.short()
    )]
    OtherNetwork {
        /// The state directory.
        dir: PathBuf,
        /// The network it belongs to.
        joined: NetworkId,
        /// The token's network.
        token: NetworkId,
    },
    /// The token's node has no door for clients.
    #[error("the token names no gRPC address; ask for one of a node with an open door")]
    NoDoor,
    /// A file does not hold what it should.
    #[error("{} is damaged: {problem}; restore it from a copy, or remove it and join again", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The convergence secret is gone.
    #[error(
        "{} is missing: restore it from a copy; if there is none, remove profile.toml beside it and join \
         again, and what is put again is stored a second time", .0.join("secret").display()
    )]
    NoSecret(PathBuf),
    /// The operating system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No randomness for a new secret.
    #[error("the operating system gave no random bytes: {0}")]
    Random(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileFile {
    version: u32,
    network: String,
    #[serde(default, rename = "door")]
    doors: Vec<DoorFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DoorFile {
    node: String,
    addresses: Vec<SocketAddr>,
}

const VERSION: u32 = 1;

impl Profile {
    /// Where a profile lies unless the user says otherwise: `$COPSE_HOME`, else
    /// `$XDG_CONFIG_HOME/copse`, else `~/.config/copse`. None without a home.
    pub fn default_dir() -> Option<PathBuf> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        set("COPSE_HOME")
            .map(PathBuf::from)
            .or_else(|| set("XDG_CONFIG_HOME").map(|base| Path::new(&base).join("copse")))
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".config/copse")))
    }

    /// Joins a network, or adds the token's door to a profile that has joined it already.
    ///
    /// # Errors
    /// When the profile belongs to another network or cannot be written.
    pub fn join(dir: &Path, token: &JoinToken) -> Result<Self, ProfileError> {
        if token.grpc.is_empty() {
            return Err(ProfileError::NoDoor);
        }
        let door = Door { node: token.node, addresses: token.grpc.clone() };
        let profile = match Self::open(dir) {
            Ok(joined) if joined.network != token.network => {
                let (dir, joined) = (dir.to_owned(), joined.network);
                return Err(ProfileError::OtherNetwork { dir, joined, token: token.network });
            }
            Ok(mut joined) => {
                joined.doors.retain(|known| known.node != door.node);
                joined.doors.insert(0, door);
                joined.doors.truncate(DOORS_MAX);
                joined
            }
            Err(ProfileError::NotJoined(_)) => {
                fs::create_dir_all(dir).map_err(io_error(dir))?;
                let secret = secret_at(&dir.join("secret"))?;
                Self { dir: dir.to_owned(), network: token.network, doors: vec![door], secret }
            }
            Err(error) => return Err(error),
        };
        profile.save()?;
        Ok(profile)
    }

    /// Opens a profile.
    ///
    /// # Errors
    /// When there is none or a file is damaged.
    pub fn open(dir: &Path) -> Result<Self, ProfileError> {
        let path = dir.join("profile.toml");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ProfileError::NotJoined(dir.to_owned()));
            }
            Err(error) => return Err(io_error(&path)(error)),
        };
        let damaged = |problem: String| ProfileError::Damaged { path: path.clone(), problem };
        let file: ProfileFile =
            toml::from_str(&text).map_err(|error| damaged(in_one_line(&text, &error)))?;
        if file.version != VERSION {
            return Err(damaged(format!(
                "it has version {}, this program knows {VERSION}",
                file.version
            )));
        }
        let network = file.network.parse().map_err(|error| damaged(format!("{error}")))?;
        let mut doors = Vec::new();
        for door in file.doors {
            let node = door.node.parse().map_err(|error| damaged(format!("{error}")))?;
            doors.push(Door { node, addresses: door.addresses });
        }
        let secret = read_secret(&dir.join("secret"))?;
        let secret = secret.ok_or_else(|| ProfileError::NoSecret(dir.to_owned()))?;
        Ok(Self { dir: dir.to_owned(), network, doors, secret })
    }

    fn save(&self) -> Result<(), ProfileError> {
        let doors = self.doors.iter();
        let file = ProfileFile {
            version: VERSION,
            network: self.network.to_string(),
            doors: doors
                .map(|door| DoorFile {
                    node: door.node.to_string(),
                    addresses: door.addresses.clone(),
                })
                .collect(),
        };
        let path = self.dir.join("profile.toml");
        let text = toml::to_string(&file).map_err(|error| ProfileError::Damaged {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        replace(&path, text.as_bytes())
    }

    /// The state directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file with the secret, when others of this machine can get at it.
    pub fn open_secret(&self) -> Option<PathBuf> {
        let path = self.dir.join("secret");
        #[cfg(unix)]
        {
            let mode =
                |meta: fs::Metadata| std::os::unix::fs::PermissionsExt::mode(&meta.permissions());
            fs::metadata(&path).is_ok_and(|meta| mode(meta) & 0o077 != 0).then_some(path)
        }
        #[cfg(not(unix))]
        {
            let _ = path;
            None
        }
    }

    /// The network.
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// The doors that a connection starts from.
    pub fn doors(&self) -> &[Door] {
        &self.doors
    }

    /// What makes equal content of this client meet, and keeps it apart from everybody else's.
    pub fn secret(&self) -> &ConvergenceSecret {
        &self.secret
    }

    /// The directory of the last run. Records that are damaged or of another network are left out:
    /// it is only a cache.
    pub fn cached_directory(&self) -> Directory {
        let mut directory = Directory::new(self.network);
        let path = self.dir.join("directory");
        let fits = fs::metadata(&path).is_ok_and(|meta| meta.len() <= DIRECTORY_BYTES_MAX);
        let bytes = if fits { fs::read(&path).unwrap_or_default() } else { Vec::new() };
        let list = door::ListReply::decode(&bytes[..]).unwrap_or_default();
        convert::admit(&mut directory, &list, |error| {
            tracing::debug!(%error, "a cached record or observation was left out");
        });
        directory
    }

    /// Keeps a directory for the next run.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_directory(&self, directory: &Directory) -> Result<(), ProfileError> {
        let list = door::ListReply {
            records: directory.iter().map(convert::signed_record).collect(),
            observations: directory.observations().map(convert::signed_observation).collect(),
        };
        replace(&self.dir.join("directory"), &list.encode_to_vec())
    }

    /// Connects to the network over TCP and TLS.
    ///
    /// # Errors
    /// When no door can be reached.
    pub async fn connect(&self) -> Result<Network, NetworkError> {
        self.connect_with(Arc::new(TlsConnector::default())).await
    }

    /// Connects to the network over connections of the caller's.
    ///
    /// # Errors
    /// When no door can be reached.
    pub async fn connect_with(
        &self,
        connector: Arc<dyn Connector>,
    ) -> Result<Network, NetworkError> {
        let profile = self.clone();
        let known = beside(move || profile.cached_directory());
        let known = known.await.unwrap_or_else(|_| Directory::new(self.network));
        let network = Network::connect(self.network, self.doors.clone(), known, connector).await?;
        let (profile, view) = (self.clone(), network.view());
        let saved = beside(move || profile.save_directory(&view.directory));
        if let Ok(Err(error)) = saved.await {
            tracing::warn!(%error, "the directory was not kept for the next run");
        }
        Ok(network)
    }
}

/// What is wrong with a TOML text and where. The error's own text has a picture of the place, in lines.
fn in_one_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim().replace('\n', "; ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => {
            let line = before.matches('\n').count() + 1;
            format!("line {line}: {message}")
        }
        None => message,
    }
}

/// The secret at this path, made now if there is none.
fn secret_at(path: &Path) -> Result<ConvergenceSecret, ProfileError> {
    if let Some(secret) = read_secret(path)? {
        return Ok(secret);
    }
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).map_err(|error| ProfileError::Random(error.to_string()))?;
    let text = Zeroizing::new(HEXLOWER.encode(&*bytes));
    replace(path, text.as_bytes())?;
    Ok(ConvergenceSecret::new(*bytes))
}

fn read_secret(path: &Path) -> Result<Option<ConvergenceSecret>, ProfileError> {
    let text = match fs::read(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(path)(error)),
    };
    let bytes = HEXLOWER.decode(text.trim_ascii()).ok().map(Zeroizing::new);
    match bytes.and_then(|bytes| <[u8; 32]>::try_from(&bytes[..]).ok()) {
        Some(bytes) => Ok(Some(ConvergenceSecret::new(bytes))),
        None => Err(ProfileError::Damaged {
            path: path.to_owned(),
            problem: "it does not hold 64 hexadecimal digits".to_owned(),
        }),
    }
}

/// Writes a file so that after a crash there is the old one or the new one, readable by its owner
/// only.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), ProfileError> {
    let new = path.with_extension("new");
    let write = || {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|error| {
        // What was begun is of no use, and on a full disk it is in the way.
        let _ = fs::remove_file(&new);
        io_error(path)(error)
    })
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ProfileError {
    let path = path.to_owned();
    |source| ProfileError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(network: u8, node: u8) -> JoinToken {
        JoinToken {
            network: NetworkId::new([network; 32]),
            node: NodeId::new([node; 32]),
            addresses: Vec::new(),
            grpc: vec![SocketAddr::from(([127, 0, 0, 1], 7401))],
        }
    }

    #[test]
    fn joining_twice_keeps_the_secret_and_both_doors() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("new/profile");
        assert!(matches!(Profile::open(&dir), Err(ProfileError::NotJoined(_))));
        let first = Profile::join(&dir, &token(1, 1)).expect("joins");
        Profile::join(&dir, &token(1, 2)).expect("joins again");
        let again = Profile::open(&dir).expect("opens");
        assert_eq!(again.secret().as_bytes(), first.secret().as_bytes());
        let nodes: Vec<_> = again.doors().iter().map(|door| door.node.as_bytes()[0]).collect();
        assert_eq!(nodes, [2, 1]);
    }

    #[test]
    fn another_networks_token_is_refused_and_a_lost_secret_is_not_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        Profile::join(dir.path(), &token(1, 1)).expect("joins");
        let error = Profile::join(dir.path(), &token(2, 1)).expect_err("another network");
        assert!(error.to_string().contains("another directory"), "{error}");
        fs::remove_file(dir.path().join("secret")).expect("removed");
        let error = Profile::open(dir.path()).expect_err("no secret");
        assert!(error.to_string().contains("missing"), "{error}");
        Profile::join(dir.path(), &token(1, 1)).expect_err("no secret");
        // What the error says to do, does it.
        fs::remove_file(dir.path().join("profile.toml")).expect("removed");
        Profile::join(dir.path(), &token(1, 1)).expect("joins");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_the_secret() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        Profile::join(dir.path(), &token(1, 1)).expect("joins");
        let secret = dir.path().join("secret");
        let meta = fs::metadata(&secret).expect("is there");
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        let open_secret = || Profile::open(dir.path()).expect("opens").open_secret();
        assert_eq!(open_secret(), None);
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).expect("set");
            assert_eq!(open_secret().as_ref(), Some(&secret), "{mode:o}");
        }
    }

    #[test]
    fn a_damaged_profile_is_told_in_one_line_with_the_place() {
        let dir = tempfile::tempdir().expect("a directory");
        Profile::join(dir.path(), &token(1, 1)).expect("joins");
        let path = dir.path().join("profile.toml");
        let good = fs::read_to_string(&path).expect("readable");
        let check = |text: String, words: &str| {
            fs::write(&path, text).expect("written");
            let error = Profile::open(dir.path()).expect_err("damaged").to_string();
            assert!(!error.contains('\n') && error.contains(words), "{error}");
            assert!(error.contains("profile.toml is damaged"), "{error}");
        };
        check(format!("{good}\ncolour = 3\n"), "unknown field `colour`");
        check(good.replace("version = 1", "version = "), "line 1: ");
        check(good.replace("network = ", "\n\nnetwork "), "line 4: ");
        check("version = 1".to_owned(), "missing field `network`");
    }
}
