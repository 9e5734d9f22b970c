//! Being asked to stop: by Ctrl-C, or by SIGTERM as service managers and timers send it.
//!
//! Owns the two signals for commands that stop by themselves. All others end where they are.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals, from when this is made.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next of them.
    pub(crate) async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
