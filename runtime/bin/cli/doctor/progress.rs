//! How far a long examination is: one line on standard error, drawn in place, if it is a terminal.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Between two updates of the line.
const PAUSE: Duration = Duration::from_millis(200);
const CLEAR_LINE: &str = "\r\x1b[K";

/// Draws the line; removes it when dropped.
pub(super) struct Line {
    drawn_at: Option<Mutex<Instant>>,
}

impl Line {
    pub(super) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { drawn_at: terminal.then(|| Mutex::new(Instant::now())) }
    }

    pub(super) fn draw(&self, what: &str, done: u64, total: u64) {
        let Some(drawn_at) = &self.drawn_at else { return };
        let Ok(mut drawn_at) = drawn_at.lock() else { return };
        if drawn_at.elapsed() < PAUSE {
            return;
        }
        *drawn_at = Instant::now();
        let percent = (100 * done).checked_div(total).unwrap_or(0);
        // It is only for the eyes.
        let _ = write!(std::io::stderr(), "{CLEAR_LINE}{what} {percent} %");
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.drawn_at.is_some() {
            let _ = write!(std::io::stderr(), "{CLEAR_LINE}");
        }
    }
}
