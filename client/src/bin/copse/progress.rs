//! How far a transfer is: a line that is drawn anew on a terminal, a new line now and then elsewhere.
//!
//! Owns that line on standard error: bytes, rate, time left, files and whatever else the caller adds,
//! such as how many shards are there. Results go to standard output and never pass here. The one
//! idea: what was there before is done, but says nothing of how fast the rest will be.

use std::{
    collections::VecDeque,
    io::IsTerminal as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use copse_client::transfer::Counters;
use copse_core::units::Brief;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// Times a second the line is drawn.
const DRAWS_PER_SECOND: u8 = 10;

/// The rate is that of the last so many draws: five seconds.
const WINDOW: usize = 5 * DRAWS_PER_SECOND as usize;

/// Elsewhere than on a terminal a line is written as often as this: a short transfer writes none, and a night's
/// log stays readable.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Whether a line is being drawn, into which nobody else may write.
static IS_DRAWN: AtomicBool = AtomicBool::new(false);

/// Whether a line of progress is on the terminal.
pub(crate) fn is_drawn() -> bool {
    IS_DRAWN.load(Ordering::Relaxed)
}

/// Shows the counters of a transfer until it is dropped.
pub(crate) struct Progress {
    bar: ProgressBar,
    // Closed by being dropped, which ends the thread at once.
    stop: Option<Sender<()>>,
    drawer: Option<std::thread::JoinHandle<()>>,
}

impl Progress {
    /// Starts unless `quiet` is set. `more` is asked for words to add.
    pub(crate) fn start(
        what: &'static str,
        counters: &Arc<Counters>,
        quiet: bool,
        more: impl Fn() -> String + Send + 'static,
    ) -> Self {
        if quiet {
            return Self { bar: ProgressBar::hidden(), stop: None, drawer: None };
        }
        let (stop, stopped) = channel();
        let counters = counters.clone();
        let mut rate = Rate::default();
        let text = move || line(what, &counters, &mut rate, Instant::now()) + &more();
        if !std::io::stderr().is_terminal() {
            let writer = std::thread::spawn(move || write_lines(&stopped, text));
            return Self { bar: ProgressBar::hidden(), stop: Some(stop), drawer: Some(writer) };
        }
        let bar = ProgressBar::with_draw_target(
            None,
            ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND),
        );
        // Cut to the width of the terminal.
        if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
            bar.set_style(style);
        }
        IS_DRAWN.store(true, Ordering::Relaxed);
        let drawn = bar.clone();
        let drawer = std::thread::spawn(move || draw(&drawn, &stopped, text));
        Self { bar, stop: Some(stop), drawer: Some(drawer) }
    }
}

const DRAW_EVERY: Duration = Duration::from_millis(1000 / DRAWS_PER_SECOND as u64);

fn draw(bar: &ProgressBar, stopped: &Receiver<()>, mut text: impl FnMut() -> String) {
    loop {
        bar.set_message(text());
        bar.tick();
        if stopped.recv_timeout(DRAW_EVERY) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// The rate is looked at as often as when it is drawn, so that it is that of the last seconds.
fn write_lines(stopped: &Receiver<()>, mut text: impl FnMut() -> String) {
    let mut written = Instant::now();
    while stopped.recv_timeout(DRAW_EVERY) == Err(RecvTimeoutError::Timeout) {
        let text = text();
        if written.elapsed() >= LINE_EVERY {
            output::tell(text);
            written = Instant::now();
        }
    }
}

/// `put 240 MiB of 2.0 GiB  64.2 MiB/s  28 s left  3 files`
fn line(what: &str, counters: &Counters, rate: &mut Rate, now: Instant) -> String {
    let total = counters.bytes_total.load(Ordering::Relaxed);
    let known = counters.bytes_known.load(Ordering::Relaxed);
    let done = counters.bytes_done.load(Ordering::Relaxed);
    let bytes_per_second = rate.after(done.saturating_sub(known), now);
    let mut line = format!("{what} {}", output::bytes(done));
    if total > 0 {
        line += &format!(" of {}", output::bytes(total));
    }
    line += &format!("  {}/s", output::bytes(bytes_per_second));
    let left = counters.bytes_left();
    if left > 0 && bytes_per_second > 0 {
        line += &format!("  {} left", Brief::seconds(left.div_ceil(bytes_per_second)));
    }
    match counters.files_done.load(Ordering::Relaxed) {
        // Of one long file that is no news.
        0 => line,
        files => format!("{line}  {}", output::count(files, "file")),
    }
}

/// Bytes a second over the last few seconds.
#[derive(Default)]
struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// The rate when so many bytes have been moved in all.
    fn after(&mut self, moved: u64, now: Instant) -> u64 {
        self.samples.push_back((now, moved));
        if self.samples.len() > WINDOW {
            self.samples.pop_front();
        }
        let Some((since, before)) = self.samples.front() else { return 0 };
        let millis = u64::try_from(now.duration_since(*since).as_millis()).unwrap_or(u64::MAX);
        moved.saturating_sub(*before).saturating_mul(1000) / millis.max(1)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(drawer) = self.drawer.take() {
            // The thread only draws; if it panicked there is nothing to mend.
            let _ = drawer.join();
        }
        self.bar.finish_and_clear();
        IS_DRAWN.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_does_not_make_the_rest_look_fast() {
        let counters = Counters::default();
        let (mut rate, start) = (Rate::default(), Instant::now());
        let mut at = |second: u64, done: u64, known: u64| {
            counters.bytes_total.store(2 << 30, Ordering::Relaxed);
            counters.bytes_done.store(done << 20, Ordering::Relaxed);
            counters.bytes_known.store(known << 20, Ordering::Relaxed);
            line("put", &counters, &mut rate, start + Duration::from_secs(second))
        };
        assert_eq!(at(0, 0, 0), "put 0 B of 2.0 GiB  0 B/s");
        assert_eq!(at(1, 1024, 1024), "put 1.0 GiB of 2.0 GiB  0 B/s");
        assert_eq!(at(2, 1044, 1024), "put 1.0 GiB of 2.0 GiB  10.0 MiB/s  1 min 41 s left");
        assert_eq!(at(3, 2048, 1024), "put 2.0 GiB of 2.0 GiB  341 MiB/s");
    }

    #[test]
    fn holes_are_no_work_that_is_left() {
        let counters = Counters::default();
        let (mut rate, start) = (Rate::default(), Instant::now());
        let mut at = |second: u64, done: u64, holes: u64| {
            counters.bytes_total.store(2 << 30, Ordering::Relaxed);
            counters.hole_bytes_total.store(1 << 30, Ordering::Relaxed);
            counters.hole_bytes_done.store(holes << 20, Ordering::Relaxed);
            counters.bytes_known.store(holes << 20, Ordering::Relaxed);
            counters.bytes_done.store((done + holes) << 20, Ordering::Relaxed);
            line("put", &counters, &mut rate, start + Duration::from_secs(second))
        };
        assert_eq!(at(0, 0, 0), "put 0 B of 2.0 GiB  0 B/s");
        assert_eq!(at(1, 24, 0), "put 24.0 MiB of 2.0 GiB  24.0 MiB/s  42 s left");
        assert_eq!(at(2, 24, 1024), "put 1.0 GiB of 2.0 GiB  12.0 MiB/s  1 min 24 s left");
    }
}
