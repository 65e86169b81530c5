//! Logs go to standard error, and never through the live summary.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use tidegate_runtime::screen::Screen;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts logging: warnings by default, more with every `-v`.
pub(super) fn start(verbose: u8, screen: &Arc<Screen>) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let terminal = io::stderr().is_terminal();
    // On one terminal, a log line that bypasses the screen would tear the summary.
    let screen = (terminal && screen.is_terminal()).then(|| Arc::clone(screen));
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(terminal)
        .with_target(verbose > 1)
        .with_writer(Logs { screen })
        .init();
}

struct Logs {
    screen: Option<Arc<Screen>>,
}

impl<'a> MakeWriter<'a> for Logs {
    type Writer = LogLine<'a>;

    fn make_writer(&'a self) -> LogLine<'a> {
        LogLine { screen: self.screen.as_deref(), text: Vec::new() }
    }
}

/// Collects one event, so that it is written in one piece.
struct LogLine<'a> {
    screen: Option<&'a Screen>,
    text: Vec<u8>,
}

impl Write for LogLine<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogLine<'_> {
    fn drop(&mut self) {
        match self.screen {
            Some(screen) => screen.print(&String::from_utf8_lossy(&self.text)),
            // There is nowhere left to say that standard error is closed.
            None => drop(io::stderr().write_all(&self.text)),
        }
    }
}
