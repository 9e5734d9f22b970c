//! How a store's writer and its readers come to their turns: on threads, or in place.
//!
//! Owns the way of a request to the writer, and where reads block. The one idea: under a simulator's clock
//! nothing may run beside the one thread there is, so there the writer is a task, each of its turns is one
//! step, and what the disk takes is waited for around it.

use std::{
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use tokio::{
    sync::mpsc,
    task::{JoinError, spawn_blocking},
    time::sleep,
};

use super::{Writes, request::Request, writer::Writer};

/// What a simulated disk has to say about time.
pub(super) trait Pace: Send + Sync {
    /// Waits as long as this takes, or until the process ends.
    fn wait(&self, what: Waits) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// What takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// A read.
    Read,
    /// What is written on its way to the disk: more may come meanwhile.
    Write,
    /// The sync, which was done by then: between it and the answer a process can end.
    Sync,
    /// As long as the process lives.
    Life,
}

/// The way to the writer.
pub(super) enum Driver {
    Thread {
        queue: Mutex<Option<SyncSender<Request>>>,
        thread: Mutex<Option<JoinHandle<()>>>,
    },
    InPlace {
        queue: Mutex<Option<mpsc::Sender<Request>>>,
        task: Mutex<Option<tokio::task::JoinHandle<()>>>,
        pace: Arc<dyn Pace>,
    },
}

impl Driver {
    /// A thread for the writer, with a queue of so many requests.
    pub(super) fn thread(writer: Writer, requests_max: usize) -> io::Result<Self> {
        let (queue, requests) = sync_channel(requests_max);
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || write_until_the_end(writer, &requests))?;
        Ok(Self::Thread { queue: Mutex::new(Some(queue)), thread: Mutex::new(Some(thread)) })
    }

    /// A task for the writer, on the caller's runtime.
    pub(super) fn in_place(writer: Writer, requests_max: usize, pace: Arc<dyn Pace>) -> Self {
        let (queue, requests) = mpsc::channel(requests_max);
        let task = tokio::spawn(write_in_turns(writer, requests, Arc::clone(&pace)));
        Self::InPlace { queue: Mutex::new(Some(queue)), task: Mutex::new(Some(task)), pace }
    }

    /// Hands a request to the writer, if it is there and has a place for it.
    pub(super) fn send(&self, request: Request) -> Option<()> {
        match self {
            Self::Thread { queue, .. } => {
                let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.as_ref()?.try_send(request).ok()
            }
            Self::InPlace { queue, .. } => {
                let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.as_ref()?.try_send(request).ok()
            }
        }
    }

    /// Runs a look into index or segments where it may block.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        match self {
            Self::Thread { .. } => spawn_blocking(work).await,
            Self::InPlace { .. } => Ok(work()),
        }
    }

    /// Waits for what the disk takes, where that is not waited for on another thread.
    pub(super) async fn wait(&self, what: Waits) {
        if let Self::InPlace { pace, .. } = self {
            pace.wait(what).await;
        }
    }

    /// Has the writer finish what it was asked, and end.
    pub(super) async fn close(&self) {
        match self {
            Self::Thread { queue, thread } => {
                queue.lock().unwrap_or_else(PoisonError::into_inner).take();
                let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(thread) = thread {
                    let joined = spawn_blocking(move || thread.join()).await;
                    if !matches!(joined, Ok(Ok(()))) {
                        tracing::error!(
                            "the writing thread died; what it acknowledged is on the disk"
                        );
                    }
                }
            }
            Self::InPlace { queue, task, .. } => {
                queue.lock().unwrap_or_else(PoisonError::into_inner).take();
                let task = task.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(task) = task
                    && task.await.is_err()
                {
                    tracing::error!("the writing task died; what it acknowledged is on the disk");
                }
            }
        }
    }
}

/// The writing thread. When it panics, the store says that it takes nothing more: else it would pass for
/// one with room, and be chosen for every shard. What it acknowledged is on the disk.
fn write_until_the_end(writer: Writer, requests: &Receiver<Request>) {
    let health = Arc::clone(&writer.health);
    let ended = catch_unwind(AssertUnwindSafe(|| writer.run(requests)));
    if ended.is_err() {
        tracing::error!(
            "the writing thread panicked; the store takes no more writes until the next start"
        );
        health.set_writes(Writes::Refused);
    }
}

/// The writing task: as the thread does it, but that a turn takes what came while the disk was waited for.
async fn write_in_turns(
    mut writer: Writer,
    mut requests: mpsc::Receiver<Request>,
    pace: Arc<dyn Pace>,
) {
    loop {
        let first = tokio::select! {
            biased;
            () = pace.wait(Waits::Life) => return,
            first = requests.recv() => first,
            () = sleep(writer.upkeep.wait()) => {
                writer.do_upkeep();
                continue;
            }
        };
        let Some(first) = first else { break };
        pace.wait(Waits::Write).await;
        writer.serve(first, || requests.try_recv().ok());
        writer.do_late_upkeep();
    }
    writer.close();
}
