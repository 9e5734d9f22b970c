//! What happened in a world: a hash of everything, and lines for people.
//!
//! Owns the order of events. The one idea: whatever could differ between two runs of a seed is
//! noted, down to each packet's length and moment, so that equal hashes mean equal runs.

use std::{
    collections::VecDeque,
    fmt,
    io::Write,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::net::{Machine, machine};

/// Lines that are kept of a run that writes no log.
const LINES_MAX: usize = 200;

/// Where the lines go.
pub enum Log {
    /// The last ones are kept.
    Tail,
    /// All are written as they happen, packets too.
    All(Box<dyn Write + Send>),
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tail => "Tail",
            Self::All(_) => "All",
        })
    }
}

/// The trace of one world. Clones are the same one.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Inner>>);

struct Inner {
    start: Instant,
    hasher: blake3::Hasher,
    packets: u64,
    tail: VecDeque<String>,
    log: Log,
}

impl Trace {
    /// Begins now, by tokio's clock.
    pub fn new(log: Log) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            start: Instant::now(),
            hasher: blake3::Hasher::new(),
            packets: 0,
            tail: VecDeque::new(),
            log,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time of the world.
    pub fn now(&self) -> Duration {
        self.lock().start.elapsed()
    }

    /// Notes an event in words.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let mut inner = self.lock();
        let at = inner.start.elapsed();
        let line = format!("{:>11.6}  {what}", at.as_secs_f64());
        inner.hasher.update(line.as_bytes());
        match &mut inner.log {
            // A reader of the log that went away does not end the world.
            Log::All(to) => drop(writeln!(to, "{line}")),
            Log::Tail => {
                inner.tail.push_back(line);
                if inner.tail.len() > LINES_MAX {
                    inner.tail.pop_front();
                }
            }
        }
    }

    /// Notes that bytes went from one place to another, or did not arrive.
    pub(super) fn bytes(&self, what: &str, from: impl Place, to: impl Place, bytes: usize) {
        let mut inner = self.lock();
        let at = inner.start.elapsed();
        inner.packets += 1;
        let micros = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
        let mut noted = [0_u8; 32];
        let numbers = [micros, bytes as u64, from.number(), to.number()];
        for (part, number) in noted.as_chunks_mut().0.iter_mut().zip(numbers) {
            *part = number.to_le_bytes();
        }
        inner.hasher.update(&noted).update(what.as_bytes());
        // Words cost more than the hash, so they are made only for who reads them.
        if let Log::All(log) = &mut inner.log {
            drop(writeln!(log, "{:>11.6}  {what} {from} {to} {bytes} B", at.as_secs_f64()));
        }
    }

    /// Writes what nodes and clients log, too, when all is written. It is not part of the hash.
    pub(super) fn subscribe(&self) -> Option<tracing::subscriber::DefaultGuard> {
        if matches!(self.lock().log, Log::Tail) {
            return None;
        }
        let filter = std::env::var("COPSE_SIM_LOG").unwrap_or_else(|_| "info".to_owned());
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
            .with_ansi(false)
            .without_time()
            .with_writer(Lines(self.clone()))
            .finish();
        Some(tracing::subscriber::set_default(subscriber))
    }

    /// The hash of all that was noted, its first 16 hex digits; and how many packets there were.
    pub fn sum(&self) -> (String, u64) {
        let inner = self.lock();
        (inner.hasher.finalize().to_hex()[..16].to_owned(), inner.packets)
    }

    /// The last lines.
    pub fn tail(&self) -> Vec<String> {
        self.lock().tail.iter().cloned().collect()
    }
}

/// Where bytes come from or go to.
pub(super) trait Place: fmt::Display {
    /// Another one for each place.
    fn number(&self) -> u64;
}

impl Place for Machine {
    fn number(&self) -> u64 {
        u64::from(*self)
    }
}

impl Place for SocketAddr {
    fn number(&self) -> u64 {
        (u64::from(machine(*self)) << 16) | u64::from(self.port())
    }
}

/// Puts lines of the log between those of the trace.
struct Lines(Trace);

impl tracing_subscriber::fmt::MakeWriter<'_> for Lines {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line(self.0.clone())
    }
}

struct Line(Trace);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut inner = self.0.lock();
        let at = inner.start.elapsed();
        if let Log::All(to) = &mut inner.log {
            write!(to, "{:>11.6} ", at.as_secs_f64())?;
            to.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
