//! The one writer to the terminal: lines that stay, above a small block that is redrawn in place.
//!
//! Invariant: whatever is printed while a block is shown goes through here, so that nothing tears
//! it. On anything that is not a terminal the block is never drawn and no escape code is written.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

/// Begins and ends an update that the terminal shows at once (ignored where not known), and
/// switches line wrapping off meanwhile: a wrapped line would break the cursor arithmetic.
const BEGIN: &str = "\x1b[?2026h\x1b[?7l";
const END: &str = "\x1b[?7h\x1b[?2026l";
/// Erases to the end of the line, and to the end of the screen.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

struct Inner {
    out: Box<dyn Write + Send>,
    block: Vec<String>,
}

/// Standard output, shared by everything that prints.
pub struct Screen {
    terminal: bool,
    inner: Mutex<Inner>,
}

impl Screen {
    /// Standard output; blocks are drawn if it is a terminal that understands them.
    pub fn stdout() -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self::new(Box::new(io::stdout()), io::stdout().is_terminal() && !dumb)
    }

    /// Any writer; `terminal` says whether blocks are drawn.
    pub fn new(out: Box<dyn Write + Send>, terminal: bool) -> Self {
        Self { terminal, inner: Mutex::new(Inner { out, block: Vec::new() }) }
    }

    /// Whether blocks are drawn.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Prints lines that stay, above the block.
    pub fn print(&self, text: &str) {
        self.update(|inner| {
            let mut frame = String::new();
            let up = inner.block.len();
            if up > 0 {
                frame.push_str(&format!("{BEGIN}\x1b[{up}A"));
                for line in text.lines() {
                    // Kept lines may wrap: they are not counted afterwards.
                    frame.push_str(&format!("\x1b[?7h{line}{CLEAR_LINE}\n\x1b[?7l"));
                }
                push_block(&mut frame, &inner.block);
                frame.push_str(END);
            } else {
                for line in text.lines() {
                    frame.push_str(line);
                    frame.push('\n');
                }
            }
            frame
        });
    }

    /// Draws the block, in place of the one before. Does nothing if not a terminal.
    pub fn draw(&self, block: Vec<String>) {
        if !self.terminal {
            return;
        }
        self.update(|inner| {
            let mut frame = String::from(BEGIN);
            if !inner.block.is_empty() {
                frame.push_str(&format!("\x1b[{}A", inner.block.len()));
            }
            push_block(&mut frame, &block);
            frame.push_str(END);
            inner.block = block;
            frame
        });
    }

    /// Leaves the block as it stands; what is printed next comes below it.
    pub fn release(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).block.clear();
    }

    /// Removes the block.
    pub fn clear(&self) {
        self.draw(Vec::new());
    }

    fn update(&self, frame: impl FnOnce(&mut Inner) -> String) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let frame = frame(&mut inner);
        // A reader that went away (a closed pipe) must not end the engine.
        let _ = inner.out.write_all(frame.as_bytes());
        let _ = inner.out.flush();
    }
}

fn push_block(frame: &mut String, block: &[String]) {
    for line in block {
        frame.push_str(line);
        frame.push_str(CLEAR_LINE);
        frame.push('\n');
    }
    frame.push_str(CLEAR_BELOW);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Buffer {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    #[test]
    fn a_pipe_gets_plain_lines_only() {
        let buffer = Buffer::default();
        let screen = Screen::new(Box::new(buffer.clone()), false);
        screen.draw(vec!["never".into()]);
        screen.print("one\ntwo");
        screen.clear();
        assert_eq!(buffer.take(), "one\ntwo\n");
    }

    #[test]
    fn lines_go_above_the_block_and_the_block_is_redrawn_in_place() {
        let buffer = Buffer::default();
        let screen = Screen::new(Box::new(buffer.clone()), true);
        screen.draw(vec!["a".into(), "b".into()]);
        assert_eq!(buffer.take(), format!("{BEGIN}a\x1b[K\nb\x1b[K\n\x1b[J{END}"));
        screen.print("note");
        let expected =
            format!("{BEGIN}\x1b[2A\x1b[?7hnote\x1b[K\n\x1b[?7la\x1b[K\nb\x1b[K\n\x1b[J{END}");
        assert_eq!(buffer.take(), expected);
        screen.draw(vec!["c".into()]);
        assert_eq!(buffer.take(), format!("{BEGIN}\x1b[2Ac\x1b[K\n\x1b[J{END}"));
        screen.clear();
        assert_eq!(buffer.take(), format!("{BEGIN}\x1b[1A\x1b[J{END}"));
        screen.print("last");
        assert_eq!(buffer.take(), "last\n");
    }
}
