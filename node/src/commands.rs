//! The commands of `copse-node`.
//!
//! Owns what they print and how they end. Refuses to hide a cause: a failure is one line that says
//! what to do, and an exit code of its own.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what commands are for")]

use std::{
    fmt::Display,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::Parser as _;
use copse_core::units::{Brief, ByteSize, counted};
use tokio::{net::TcpListener, runtime::Runtime, signal::unix::SignalKind};
use tracing_subscriber::EnvFilter;

use crate::{
    addresses,
    cli::{Cli, Command, DirArgs, Exit, InitArgs, LimitsArgs, StatusArgs},
    config::{Config, ConfigError, LogFormat},
    control,
    dial::{self, DialError},
    identity::{self, IdentityError, Seed},
    init::{self, InitError, STORE_DIR},
    leaving::Departure,
    lock::{Lock, LockError},
    membership::memory::{self, FileMemory, Memory as _},
    node::{Edges, Node, StartError},
    peer::endpoint::{self, EndpointError, PeerSocket},
    repair::{PAUSE_VARIABLE, Phase, Phases},
    status::{Report, StatusError},
    store::{DiskOptions, DiskStore, OpenError},
};

/// The variable that overrides the configured log filter.
const LOG_VARIABLE: &str = "COPSE_LOG";

/// Where known nodes are remembered, in the node's directory.
const PEERS_FILE: &str = "peers";

/// Why a command failed, for the user and for scripts.
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }
}

macro_rules! failures {
    ($($error:ty => $exit:expr;)*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                let exit: fn(&$error) -> Exit = $exit;
                Self::new(exit(&error), &error)
            }
        })*
    };
}

failures! {
    ConfigError => |_| Exit::NoNode;
    IdentityError => |_| Exit::NoNode;
    LockError => |error| match error {
        LockError::Held { .. } => Exit::Locked,
        LockError::Io { .. } => Exit::Failed,
    };
    OpenError => |error| match error {
        OpenError::InUse { .. } => Exit::Locked,
        // Passes when there is room again: to be tried again, in contrast to a store of no use.
        OpenError::NoSpace { .. } => Exit::Failed,
        _ => Exit::Store,
    };
    EndpointError => |error| match error {
        EndpointError::Bind { .. } => Exit::Listen,
        _ => Exit::Failed,
    };
    StartError => |_| Exit::Failed;
    StatusError => |_| Exit::NotRunning;
    InitError => |error| match error {
        InitError::Exists(_) | InitError::Leftover { .. } => Exit::AlreadyInitialised,
        InitError::Networks { .. } | InitError::Config(_) => Exit::Usage,
        InitError::Listen { .. } => Exit::Listen,
        InitError::Lock(LockError::Held { .. }) => Exit::Locked,
        InitError::Store(_) => Exit::Store,
        InitError::Lock(_) | InitError::Identity(_) | InitError::Io { .. } => Exit::Failed,
    };
    io::Error => |_| Exit::Failed;
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    let is_daemon = matches!(command, Command::Run(_));
    let done = match command {
        Command::Init(args) => init(&args),
        Command::Run(args) => run(&args.node.dir, args.scrub_now),
        Command::Token(args) => token(&args),
        Command::Status(args) => status(&args),
        Command::Leave(args) => leave(&args.dir),
        Command::Scrub(args) => scrub(&args.dir),
        Command::Limits(args) => limits(&args),
    };
    let exit = match done {
        Ok(()) => Exit::Done,
        Err(failure) => {
            eprintln!("copse-node: {}", failure.message);
            failure.exit
        }
    };
    if is_daemon {
        // Threads that are still there may use RocksDB, whose statics an orderly end takes away under
        // them: a node that had stopped well ended by SIGABRT ("pthread lock"). All that must be on the disk is there, and
        // nothing is buffered: standard output is not used, standard error never is.
        signal_hook::low_level::exit(exit as i32);
    }
    ExitCode::from(exit as u8)
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(io::Error::from)
}

fn init(args: &InitArgs) -> Result<(), Failure> {
    let created = init::init(args, random)?;
    let dir = args.dir.display();
    let config = &created.config;
    let how = if args.join.is_empty() { "founds network" } else { "will join network" };
    let zone = if config.zone.is_empty() { "(its own)" } else { &config.zone };
    let lines = [
        format!("node {} {how} {}", created.node, config.network),
        format!("  directory  {dir}"),
        format!("  capacity   {}", config.capacity),
        format!("  zone       {zone}"),
        format!("  nodes      {}", list(&addresses::advertised(&config.quic))),
        format!("  clients    {}", list(&addresses::advertised(&config.grpc))),
        format!("start it:             copse-node run --dir {dir}"),
        format!("let others join:      copse-node token --dir {dir}"),
    ];
    show(lines.join("\n"))?;
    if let Some(note) = room_note(&args.dir, config) {
        eprintln!("copse-node: note: {note}");
    }
    Ok(())
}

/// What to say of a disk that has less room than the node will offer.
fn room_note(dir: &Path, config: &Config) -> Option<String> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let room = free.saturating_sub(config.reserve.0);
    (room < config.capacity.0).then(|| {
        let (capacity, reserve) = (config.capacity, config.reserve);
        let free = ByteSize(free);
        let takes = match room {
            0 => "so it will take no shards".to_owned(),
            room => format!("so it will take {} of the {capacity}", ByteSize(room)),
        };
        format!(
            "{free} are free on the disk of {}, of which {reserve} stay free (store.reserve), {takes}; make room \
             or name another directory",
            dir.display()
        )
    })
}

/// A line, or several, of what was asked for. Who has read enough, as `head` has, is no failure.
fn show(lines: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{lines}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        shown => shown,
    }
}

fn list(addresses: &[std::net::SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn token(args: &DirArgs) -> Result<(), Failure> {
    let config = Config::load(&args.dir)?;
    let node = identity::load(&args.dir)?.key().id();
    let token = init::token(&config, node);
    show(&token)?;
    // No news where others have joined: then all of the network is on this machine.
    if token.addresses.iter().all(|address| address.ip().is_loopback())
        && is_alone(&args.dir, &config)
    {
        eprintln!(
            "copse-node: note: {} is reachable from this machine only; for others, set \
             quic.advertise and grpc.advertise in the configuration",
            list(&token.addresses)
        );
    }
    Ok(())
}

/// Whether the node has never met another. A memory that cannot be read is none.
fn is_alone(dir: &Path, config: &Config) -> bool {
    let remembered = FileMemory::new(dir.join(PEERS_FILE)).load().ok().flatten();
    let remembered = remembered.and_then(|bytes| memory::decode(&bytes, config.network).ok());
    remembered.is_none_or(|remembered| remembered.heard.is_empty())
}

fn status(args: &StatusArgs) -> Result<(), Failure> {
    let dir = args.node.dir.as_path();
    let config = Config::load(dir)?;
    let node = identity::load(dir)?.key().id();
    let address = addresses::local(config.grpc.listen);
    let asked = Runtime::new()?.block_on(async {
        match dial::dial(address, node).await {
            Ok(door) => Ok(Report::ask(door).await?),
            Err(error) => Err(not_running(dir, &error)),
        }
    });
    match asked {
        Ok(report) if args.json => show(format_args!("{:#}", report.json()))?,
        Ok(report) => show(report.to_string().trim_end_matches('\n'))?,
        Err(failure) => {
            if args.json {
                let answer = serde_json::json!({
                    "running": false,
                    "node": node.to_string(),
                    "network": config.network.to_string(),
                    "problem": failure.message,
                });
                show(format_args!("{answer:#}"))?;
            }
            return Err(failure);
        }
    }
    Ok(())
}

/// Why the door did not open: the lock knows whether there is a process at all.
fn not_running(dir: &Path, error: &DialError) -> Failure {
    let shown = dir.display();
    let message = match (error, Lock::holder(dir)) {
        (DialError::WrongNode { .. }, _) => {
            format!("{error}; the node of {shown} does not run there: check grpc.listen")
        }
        (_, Ok(Some(process))) => format!(
            "the node of {shown} runs (process {process}), but its door does not answer: {error}; it \
             may be starting or stopping: try again, and look into its log"
        ),
        (_, Ok(None) | Err(_)) => format!(
            "the node of {shown} is not running; start it with `copse-node run --dir {shown}`"
        ),
    };
    Failure::new(Exit::NotRunning, message)
}

/// Gives the running node a command.
fn tell(dir: &Path, command: &control::Command, told: impl FnMut(u64, u64)) -> Result<(), Failure> {
    // A directory without a node is another mistake than one whose node does not run.
    Config::load(dir)?;
    control::command(dir, command, told).map_err(|error| {
        let shown = dir.display();
        let message = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
                "the node of {shown} is not running; start it with `copse-node run --dir {shown}`"
            ),
            io::ErrorKind::PermissionDenied => format!(
                "the node of {shown} takes commands from its owner only; run this as the same user"
            ),
            _ => format!("the node of {shown} did not do it: {error}"),
        };
        Failure::new(Exit::NotRunning, message)
    })
}

fn leave(dir: &Path) -> Result<(), Failure> {
    let started = Instant::now();
    let (mut first, mut shown) = (None, Instant::now());
    let terminal = io::stderr().is_terminal();
    tell(dir, &control::Command::Leave {}, |left, of| {
        let begun = *first.get_or_insert(left);
        let done = begun.saturating_sub(left);
        if !terminal && shown.elapsed() < Duration::from_secs(10) && done > 0 {
            return;
        }
        shown = Instant::now();
        let eta = match done {
            0 => String::new(),
            _ => {
                let seconds = started.elapsed().as_secs().saturating_mul(left) / done;
                format!(", about {} left", Brief::seconds(seconds + 1))
            }
        };
        let end = if terminal { "\x1b[K\r" } else { "\n" };
        eprint!("{} of {} handed over{eta}{end}", of - left, counted(of, "shard"));
    })?;
    if terminal {
        eprintln!();
    }
    Ok(show(format_args!("left the network: nothing is held in {} any more", dir.display()))?)
}

fn scrub(dir: &Path) -> Result<(), Failure> {
    tell(dir, &control::Command::Scrub {}, |_, _| {})?;
    Ok(show("reading the whole disk; `copse-node status` shows how far it is and what it finds")?)
}

fn limits(args: &LimitsArgs) -> Result<(), Failure> {
    let command = control::Command::Limits { uplink: args.uplink.0, share_percent: args.share };
    tell(&args.node.dir, &command, |_, _| {})?;
    let limit = match (args.uplink.0, args.share) {
        (0, _) => "repair is not limited now, but holds back while clients are served".to_owned(),
        (_, Some(share)) => format!("repair may send {share} % of {} a second now", args.uplink),
        (_, None) => format!("repair may send its share of {} a second now", args.uplink),
    };
    let keep = "to keep this over a restart, set it in the configuration, section [repair]";
    Ok(show(format_args!("{limit}\n{keep}"))?)
}

fn run(dir: &Path, scrub_now: bool) -> Result<(), Failure> {
    let config = Config::load(dir)?;
    if Departure::has_left(dir) {
        let message = format!(
            "the node of {} has left its network; to lend this disk again, make a new node in \
             another directory with `copse-node init`",
            dir.display()
        );
        return Err(Failure::new(Exit::Left, message));
    }
    let seed = identity::load(dir)?;
    let _lock = Lock::take(dir)?;
    start_logging(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(run_until_told(dir, config, seed, scrub_now));
    // Tasks of clients that are cut off are not waited for: the store is closed already.
    runtime.shutdown_background();
    done
}

async fn run_until_told(
    dir: &Path,
    config: Config,
    seed: Seed,
    scrub_now: bool,
) -> Result<(), Failure> {
    // Before all else, so that a signal during a long recovery is not lost.
    let mut terminated = tokio::signal::unix::signal(SignalKind::terminate())?;
    let mut interrupted = tokio::signal::unix::signal(SignalKind::interrupt())?;

    let socket = endpoint::bind(config.quic.listen)?;
    let listen = config.grpc.listen;
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        let message = format!(
            "cannot listen on {listen} (TCP, grpc.listen): {error}; is another program using it?"
        );
        Failure::new(Exit::Listen, message)
    })?;
    let metrics = match config.metrics {
        None => None,
        Some(listen) => Some(TcpListener::bind(listen).await.map_err(|error| {
            let message = format!(
                "cannot listen on {listen} (TCP, metrics.listen): {error}; is another program using it?"
            );
            Failure::new(Exit::Listen, message)
        })?),
    };
    let phases = match std::env::var(PAUSE_VARIABLE) {
        Ok(name) => Phases::pausing_at(Some(Phase::named(&name).ok_or_else(|| {
            Failure::new(Exit::Usage, format!("{PAUSE_VARIABLE}={name:?}: there is no such phase"))
        })?)),
        Err(_) => Phases::default(),
    };
    let control = control::Listener::bind(dir)
        .inspect_err(|error| {
            tracing::warn!(%error, dir = %dir.display(), "the control socket cannot be opened: leave, \
                scrub and limits are of no use until the node is restarted");
        })
        .ok();
    // For hours, when the index of a large disk must be built again; opening it is safe to break off.
    let store = tokio::select! {
        store = open_store(dir, &config, &seed) => store?,
        _ = terminated.recv() => return Ok(()),
        _ = interrupted.recv() => return Ok(()),
    };
    endpoint::tell_of_small_buffers(&socket)?;
    let mut fresh = [0; 32];
    random(&mut fresh)?;
    let edges = Edges {
        socket: PeerSocket::Udp(socket),
        listener: Box::new(listener),
        store,
        memory: Some(Arc::new(FileMemory::new(dir.join(PEERS_FILE)))),
        seed,
        random: fresh,
        clock: Arc::new(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
        }),
        control,
        metrics,
        departure: Departure::load(dir.to_owned()),
        phases,
    };
    let node = Node::start(edges, config).await?;
    if scrub_now {
        node.scrub_now();
    }
    let signal = tokio::select! {
        _ = terminated.recv() => "SIGTERM",
        _ = interrupted.recv() => "SIGINT",
        () = node.left() => "none, the node has left",
    };
    tracing::info!(signal, "stopping");
    tokio::select! {
        () = node.shutdown() => Ok(()),
        _ = interrupted.recv() => {
            let message = "interrupted again: running requests were cut off; nothing that was \
                           acknowledged is lost";
            Err(Failure::new(Exit::Failed, message))
        }
    }
}

async fn open_store(dir: &Path, config: &Config, seed: &Seed) -> Result<Arc<DiskStore>, Failure> {
    let store_dir = dir.join(STORE_DIR);
    let node = seed.key().id();
    let mut options = DiskOptions::new(config.capacity.0);
    options.reserve_bytes = config.reserve.0;
    // Reads the end of the last segment, or all of them when the index is gone.
    let opened = tokio::task::spawn_blocking(move || DiskStore::open(&store_dir, node, &options));
    let store = opened.await.map_err(|error| Failure::new(Exit::Failed, error))??;
    Ok(Arc::new(store))
}

fn start_logging(config: &Config) -> Result<(), Failure> {
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(filter) => EnvFilter::try_new(&filter).map_err(|error| {
            Failure::new(Exit::Usage, format!("{LOG_VARIABLE}={filter:?}: {error}"))
        })?,
        // Checked when the configuration was read.
        Err(_) => EnvFilter::new(&config.log_filter),
    };
    let to_stderr = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match config.log_format {
        LogFormat::Text => to_stderr.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => to_stderr.json().init(),
    }
    Ok(())
}
