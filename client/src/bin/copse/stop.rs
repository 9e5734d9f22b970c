//! Being asked to stop: by Ctrl-C, or by SIGTERM as service managers and timers send it.
//!
//! Owns the two signals. Some commands stop by themselves; all others end where they are, with the same code.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::CliError;

/// Both signals, from when this is made.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    pub(crate) fn new() -> Result<Self, CliError> {
        let of =
            |kind| signal(kind).map_err(|error| CliError::other(format!("no signals: {error}")));
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
        })
    }

    /// Waits for the first of them from now on.
    pub(crate) async fn once() -> Result<(), CliError> {
        Self::new()?.asked().await;
        Ok(())
    }

    /// Waits for the next of them.
    pub(crate) async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
