//! A body of lines to single lines. A line break inside a string field is part of its value, so
//! the splitter has to know where strings are; a quote that nobody closes must not swallow the
//! lines that follow, so such a line ends at its first line break all the same.

use super::syntax::string_end;

/// The lines of `body`, each with its line end: put together again they are the body. Empty lines
/// and comments are among them (see [`Lines::is_content`]).
pub fn lines(body: &[u8]) -> Lines<'_> {
    Lines { rest: body }
}

/// See [`lines`].
#[derive(Clone, Debug)]
pub struct Lines<'a> {
    rest: &'a [u8],
}

impl Lines<'_> {
    /// Whether a line says something: it is not empty, and no comment.
    pub fn is_content(line: &[u8]) -> bool {
        let first = line.iter().find(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n'));
        first.is_some_and(|b| *b != b'#')
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let (line, rest) = self.rest.split_at(line_end(self.rest));
        self.rest = rest;
        Some(line)
    }
}

/// The position after the first line of `body`.
fn line_end(body: &[u8]) -> usize {
    let first_break = memchr::memchr(b'\n', body).map_or(body.len(), |at| at + 1);
    // Most lines have no string that begins before their first line break.
    let quoted = memchr::memchr(b'"', &body[..first_break]).is_some();
    if !quoted || !Lines::is_content(&body[..first_break]) {
        return first_break;
    }
    match fields_start(&body[..first_break]) {
        Some(at) => with_strings(body, at),
        None => first_break,
    }
}

/// The end of the line whose fields begin at `at`. After a string that is not closed as it should
/// be, or never, the line ends at the next line break; what was found before stays, so that every
/// byte is looked at a few times at most.
fn with_strings(body: &[u8], mut at: usize) -> usize {
    loop {
        // A value follows an equals sign that no backslash hides.
        let found = body.get(at..).and_then(|rest| memchr::memchr3(b'=', b'\n', b'\\', rest));
        let Some(found) = found else { return body.len() };
        at += found;
        let next = body.get(at + 1);
        match body[at] {
            b'\n' => return at + 1,
            b'\\' => at += 1 + usize::from(next.is_some_and(|b| b", =".contains(b))),
            _ if next == Some(&b'"') => match string_end(body, at + 1) {
                Some(end) if matches!(body.get(end), None | Some(b',' | b' ' | b'\n' | b'\r')) => {
                    at = end;
                }
                _ => return memchr::memchr(b'\n', &body[at..]).map_or(body.len(), |n| at + n + 1),
            },
            _ => at += 1,
        }
    }
}

/// Where the fields of a line begin: after the first space that no backslash hides.
fn fields_start(line: &[u8]) -> Option<usize> {
    let mut at = line.iter().position(|b| !matches!(b, b' ' | b'\t'))?;
    loop {
        at += memchr::memchr2(b' ', b'\\', line.get(at..)?)?;
        if line[at] == b' ' {
            return Some(at);
        }
        at += 1 + usize::from(line.get(at + 1).is_some_and(|b| b", =".contains(b)));
    }
}
