//! What a command waits for, said after a while: a silent command looks as if it hung.
//!
//! Owns lines on standard error about chunks that are looked for. Where a line of progress is drawn, the same
//! words are a part of that (see [`progress`](crate::progress)), and nothing is said here.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::Duration,
};

use copse_client::get::{Downloader, Search};

use crate::{output, progress, session::Session};

/// Looking for a chunk for less than this is nothing to talk about.
const SAID_AFTER: Duration = Duration::from_secs(3);

/// It is said again after this.
const SAID_EVERY: Duration = Duration::from_secs(15);

/// How often it is looked whether there is something to say.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Says what is waited for until it is dropped.
pub(crate) struct Waiting {
    // Closed by being dropped, which ends the thread at once.
    stop: Option<Sender<()>>,
    teller: Option<std::thread::JoinHandle<()>>,
}

impl Waiting {
    /// Of what this reader reads.
    pub(crate) fn start(session: &Session, reader: &Downloader) -> Self {
        if session.global.quiet {
            return Self { stop: None, teller: None };
        }
        let (stop, stopped) = channel();
        let reader = reader.clone();
        let teller = std::thread::spawn(move || tell(&reader, &stopped));
        Self { stop: Some(stop), teller: Some(teller) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(teller) = self.teller.take() {
            // The thread only writes; if it panicked there is nothing to mend.
            let _ = teller.join();
        }
    }
}

fn tell(reader: &Downloader, stopped: &Receiver<()>) {
    let mut pause = LOOK_EVERY;
    while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        pause = LOOK_EVERY;
        if let Some(words) = words(reader)
            && !progress::is_drawn()
        {
            output::tell(words);
            pause = SAID_EVERY;
        }
    }
}

/// What this reader waits for, if for long enough to talk about it.
pub(crate) fn words(reader: &Downloader) -> Option<String> {
    let search = reader.searching()?;
    (search.since.elapsed() >= SAID_AFTER).then(|| words_of(&search))
}

fn words_of(search: &Search) -> String {
    let Search { chunk, have, need, .. } = search;
    format!(
        "waiting for nodes: chunk {} needs {}, {have} of them came; those who may have others do not answer yet",
        chunk.short(),
        output::count(*need as u64, "shard"),
    )
}

#[cfg(test)]
mod tests {
    use copse_core::ids::ChunkId;
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn what_is_waited_for_is_told_in_shards() {
        let chunk = ChunkId::new([0xab; 32]);
        let search = Search { chunk, have: 9, need: 10, since: Instant::now() };
        let words = words_of(&search);
        assert!(words.contains("abababab needs 10 shards, 9 of them came"), "{words}");
    }
}
