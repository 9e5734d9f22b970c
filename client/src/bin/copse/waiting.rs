//! What a command waits for, said after a while: a silent command looks as if it hung.
//!
//! Owns lines on standard error about chunks that are looked for, and puts that do not get on. Where a line of
//! progress is drawn, the same in fewer words is a part of that (see [`progress`](crate::progress)), and nothing
//! is said here.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::{Duration, Instant},
};

use copse_client::{
    get::{Downloader, Search},
    put::Uploader,
};
use copse_core::units::Brief;

use crate::{output, progress, session::Session};

/// Looking for a chunk for less than this is nothing to talk about.
const SAID_AFTER: Duration = Duration::from_secs(3);

/// Nor is a put that did not get on for less than this: a shard takes a while on a slow line.
const PUT_SAID_AFTER: Duration = Duration::from_secs(5);

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
    pub(crate) fn for_reads(session: &Session, reader: &Downloader) -> Self {
        let reader = reader.clone();
        Self::start(session, move || search(&reader).map(|search| words_of(&search)))
    }

    /// Of what is put in this session.
    pub(crate) fn for_puts(session: &Session, uploader: &Uploader) -> Self {
        let uploader = uploader.clone();
        let mut stall = Stall::new();
        Self::start(session, move || {
            stall.words(!uploader.is_idle(), uploader.progress().sent_bytes, Instant::now())
        })
    }

    fn start(session: &Session, words: impl FnMut() -> Option<String> + Send + 'static) -> Self {
        if session.global.quiet {
            return Self { stop: None, teller: None };
        }
        let (stop, stopped) = channel();
        let teller = std::thread::spawn(move || tell(words, &stopped));
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

fn tell(mut words: impl FnMut() -> Option<String>, stopped: &Receiver<()>) {
    let mut quiet_until = Instant::now();
    while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
        if let Some(words) = words()
            && quiet_until <= Instant::now()
            && !progress::is_drawn()
        {
            output::tell(words);
            quiet_until = Instant::now() + SAID_EVERY;
        }
    }
}

/// What a line of progress adds when the reader waits: its beginning says it, since the end may be cut.
pub(crate) fn briefly(reader: &Downloader) -> Option<String> {
    search(reader).map(|search| briefly_of(&search))
}

/// What this reader looks for, if for long enough to talk about it.
fn search(reader: &Downloader) -> Option<Search> {
    reader.searching().filter(|search| search.since.elapsed() >= SAID_AFTER)
}

fn briefly_of(search: &Search) -> String {
    let Search { have, need, unanswered, .. } = search;
    match unanswered {
        0 => format!("has {have} of {need} shards, looks for more"),
        _ => format!(
            "has {have} of {need} shards, {} silent",
            output::count(*unanswered as u64, "node")
        ),
    }
}

fn words_of(search: &Search) -> String {
    let Search { chunk, have, need, unanswered, .. } = search;
    let why = match unanswered {
        0 => "those who answered have no other, which is looked for again".to_owned(),
        _ => format!("{} asked have not answered yet", output::count(*unanswered as u64, "node")),
    };
    format!(
        "waiting: {have} of the {need} shards needed of chunk {} are here; {why}",
        chunk.short()
    )
}

/// A put that may not get on.
struct Stall {
    sent_bytes: u64,
    since: Instant,
}

impl Stall {
    fn new() -> Self {
        Self { sent_bytes: 0, since: Instant::now() }
    }

    /// What to say when so much was sent, and there is more to send or not.
    fn words(&mut self, is_busy: bool, sent_bytes: u64, now: Instant) -> Option<String> {
        if !is_busy || sent_bytes != self.sent_bytes {
            *self = Self { sent_bytes, since: now };
        }
        let stalled = now.duration_since(self.since);
        (stalled >= PUT_SAID_AFTER).then(|| {
            let whole = Duration::from_secs(stalled.as_secs());
            format!("waiting: no node has taken a shard for {}", Brief(whole))
        })
    }
}

#[cfg(test)]
mod tests {
    use copse_core::ids::ChunkId;

    use super::*;

    #[test]
    fn what_is_waited_for_is_told_in_shards_and_who_is_silent_only_if_somebody_is() {
        let (chunk, since) = (ChunkId::new([0xab; 32]), tokio::time::Instant::now());
        let mut search = Search { chunk, have: 9, need: 10, unanswered: 2, since };
        let words = words_of(&search);
        assert!(words.contains("9 of the 10 shards needed of chunk abababab"), "{words}");
        assert!(words.contains("2 nodes asked have not answered yet"), "{words}");
        assert_eq!(briefly_of(&search), "has 9 of 10 shards, 2 nodes silent");
        search.unanswered = 0;
        let words = words_of(&search);
        assert!(words.contains("those who answered have no other"), "{words}");
        assert!(!briefly_of(&search).contains("silent"));
    }

    #[test]
    fn a_put_that_gets_on_or_has_nothing_to_do_is_not_talked_about() {
        let (start, mut stall) = (Instant::now(), Stall::new());
        let mut at = |second: u64, is_busy: bool, sent_bytes: u64| {
            stall.words(is_busy, sent_bytes, start + Duration::from_secs(second))
        };
        assert_eq!(at(1, true, 100), None);
        assert_eq!(at(5, true, 100), None);
        assert_eq!(at(7, true, 100).as_deref(), Some("waiting: no node has taken a shard for 6 s"));
        assert_eq!(at(8, true, 101), None);
        assert_eq!(at(20, false, 101), None);
        assert_eq!(at(24, true, 101), None);
        assert!(at(25, true, 101).is_some());
    }
}
