//! The owner's commands to the running node, over a socket in the node's directory.
//!
//! Owns the few commands and their form: a line of JSON asks, lines of JSON answer. Who may open the
//! socket may command: it is readable by its owner only. Refuses long lines and slow askers.
//!
//! ```text
//! {"command":"leave"}                                   {"left":120,"of":400} … {"done":true}
//! {"command":"scrub"}                                   {"done":true}
//! {"command":"limits","uplink":1250000,"share_percent":20}     uplink in bytes per second, 0: none
//! anything else, or a failure                           {"error":"…"}
//! ```

use std::{
    fs, io,
    num::NonZeroU64,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    leaving::{Leaving, Progress},
    repair::Repair,
};

/// The socket, in the node's directory.
pub const SOCKET_FILE: &str = "control.sock";

/// A line, in bytes, at most: ten times the longest command.
const LINE_BYTES_MAX: u64 = 1 << 10;

/// Askers at one time, at most. A `leave` stays connected for as long as it takes.
const CONNECTIONS_MAX: usize = 16;

/// How long a command may take to arrive.
const ASK_TIME_MAX: Duration = Duration::from_secs(10);

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Hand everything over, then stop.
    Leave {},
    /// Read the own disk once, at once.
    Scrub {},
    /// Change what repair may send.
    Limits {
        /// What the line can send, in bytes per second; 0: not known.
        uplink: u64,
        /// The part that repair may take, in percent; none: as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        share_percent: Option<u8>,
    },
}

/// A line of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// Shards still to be handed over.
    Leaving {
        /// Still here.
        left: u64,
        /// At first.
        of: u64,
    },
    /// It was done, or begun.
    Done {
        /// Always true.
        done: bool,
    },
    /// It was not.
    Failed {
        /// Why.
        error: String,
    },
}

/// A socket in the node's directory, removed when dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Opens it. The caller holds the node's lock, so what lies there is left over.
    ///
    /// # Errors
    /// When the system refuses, for example because the path is over 107 bytes.
    pub fn bind(dir: &Path) -> io::Result<Self> {
        let path = dir.join(SOCKET_FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What can be commanded.
#[derive(Clone)]
pub struct Commands {
    /// The departure.
    pub leaving: Leaving,
    /// Repair.
    pub repair: Repair,
}

/// Answers commands until `stop` is cancelled.
pub async fn serve(listener: Listener, commands: Commands, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let commands = commands.clone();
                connections.spawn(async move {
                    if let Err(error) = answer(stream, &commands).await {
                        tracing::debug!(%error, "a command was broken off");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the control socket does not accept");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    // Whoever waits for the end of a departure still hears of it.
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), drained).await;
}

async fn answer(stream: UnixStream, commands: &Commands) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(LINE_BYTES_MAX));
    tokio::time::timeout(ASK_TIME_MAX, read.read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Command>(&line) {
        Err(error) => Answer::Failed { error: format!("no command: {error}") },
        Ok(Command::Scrub {}) => {
            commands.repair.scrub_now();
            Answer::Done { done: true }
        }
        Ok(Command::Limits { share_percent: Some(share @ (0 | 101..)), .. }) => {
            Answer::Failed { error: format!("a share of {share} % is not from 1 to 100") }
        }
        Ok(Command::Limits { uplink, share_percent }) => {
            let uplink = NonZeroU64::new(uplink);
            let rates = commands.repair.pace().set(uplink, share_percent);
            tracing::info!(?rates, "limits of repair changed");
            Answer::Done { done: true }
        }
        Ok(Command::Leave {}) => match commands.leaving.leave() {
            Ok(()) => return follow(&mut write, &commands.leaving).await,
            Err(error) => Answer::Failed { error: format!("it cannot be written down: {error}") },
        },
    };
    say(&mut write, &answer).await
}

/// Tells how far a departure is, until it is done or nobody listens.
async fn follow(write: &mut (impl AsyncWrite + Unpin), leaving: &Leaving) -> io::Result<()> {
    let mut progress = leaving.progress();
    loop {
        let now = *progress.borrow_and_update();
        match now {
            Progress::Staying => {}
            Progress::Leaving { left, of } => say(write, &Answer::Leaving { left, of }).await?,
            Progress::Gone => return say(write, &Answer::Done { done: true }).await,
        }
        if progress.changed().await.is_err() {
            return Ok(());
        }
    }
}

async fn say(write: &mut (impl AsyncWrite + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_string(answer).map_err(io::Error::other)?;
    line.push('\n');
    write.write_all(line.as_bytes()).await
}

/// Gives a running node a command; every line of the answer goes to `told`, until one ends it.
///
/// # Errors
/// When the node does not run, does not answer, or says that it failed.
pub fn command(dir: &Path, command: &Command, mut told: impl FnMut(u64, u64)) -> io::Result<()> {
    use io::{BufRead as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(dir.join(SOCKET_FILE))?;
    let mut line = serde_json::to_string(command).map_err(io::Error::other)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    for line in io::BufReader::new(stream).lines() {
        match serde_json::from_str(&line?).map_err(io::Error::other)? {
            Answer::Leaving { left, of } => told(left, of),
            Answer::Done { .. } => return Ok(()),
            Answer::Failed { error } => return Err(io::Error::other(error)),
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the node stopped before it answered"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_answers_have_these_forms() {
        let written = |command: &Command| serde_json::to_string(command).expect("JSON");
        assert_eq!(written(&Command::Leave {}), r#"{"command":"leave"}"#);
        for (share_percent, form) in [
            (Some(20), r#"{"command":"limits","uplink":5,"share_percent":20}"#),
            (None, r#"{"command":"limits","uplink":5}"#),
        ] {
            let limits = Command::Limits { uplink: 5, share_percent };
            assert_eq!(written(&limits), form);
            assert_eq!(serde_json::from_str::<Command>(form).expect("JSON"), limits);
        }
        for wrong in ["", "{}", r#"{"command":"stop"}"#, r#"{"command":"leave","now":true}"#] {
            assert!(serde_json::from_str::<Command>(wrong).is_err(), "{wrong}");
        }
        for (line, answer) in [
            (r#"{"left":3,"of":4}"#, Answer::Leaving { left: 3, of: 4 }),
            (r#"{"done":true}"#, Answer::Done { done: true }),
            (r#"{"error":"no"}"#, Answer::Failed { error: "no".to_owned() }),
        ] {
            assert_eq!(serde_json::from_str::<Answer>(line).expect("JSON"), answer);
        }
    }
}
