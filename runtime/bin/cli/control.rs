//! The control socket in the data folder: how `tidegate apply` reaches the instance that runs.
//!
//! One connection is one question: a line of JSON with the files and what to do with them, and a
//! line with the answer. The socket can be used by its owner only (mode 0600). A path that is too
//! long for a socket is replaced by one in a private temporary folder, which a note in the data
//! folder names.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Name in the data folder.
const SOCKET: &str = "control.sock";
/// Name of the note that says where the socket is, if not there.
const NOTE: &str = "control.path";
/// Longer paths do not fit into a socket's address (108 bytes on Linux, fewer elsewhere).
const PATH_BYTES_MAX: usize = 100;
/// Longest question.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Who connects and says nothing is not waited for longer.
const ASK_MAX: Duration = Duration::from_secs(10);
/// A change takes as long as its shadow run.
const ANSWER_MAX: Duration = Duration::from_secs(3600);

/// A question.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    /// Absolute paths of files and folders.
    pub(super) paths: Vec<PathBuf>,
    /// Only say what would be.
    pub(super) dry_run: bool,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Whether it was done (or could be).
    pub(super) done: bool,
    /// For people.
    pub(super) text: String,
}

/// A socket that is listened on; removed at the end.
pub(super) struct Control {
    files: Vec<PathBuf>,
}

impl Control {
    /// Listens for an instance that owns the data folder, and answers from a thread of its own.
    pub(super) fn listen(
        data: &Path,
        answer: impl Fn(Ask) -> Answer + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (path, files) = place(data)?;
        // Whatever is there is of a process that is gone: the folder has one owner.
        forget(&path)?;
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        std::thread::Builder::new().name("control".into()).spawn(move || {
            for stream in listener.incoming() {
                if let Err(error) = stream.and_then(|stream| serve(stream, &answer)) {
                    tracing::warn!(%error, "a question on the control socket");
                }
            }
        })?;
        Ok(Self { files })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = std::fs::remove_file(file).or_else(|_| std::fs::remove_dir(file));
        }
    }
}

/// Where to listen, and what is to be removed at the end.
fn place(data: &Path) -> anyhow::Result<(PathBuf, Vec<PathBuf>)> {
    let (path, note) = (data.join(SOCKET), data.join(NOTE));
    forget(&note)?;
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return Ok((path.clone(), vec![path]));
    }
    let unique = format!("tidegate-{}", std::process::id());
    let folder = std::env::temp_dir().join(unique);
    let _ = std::fs::remove_file(folder.join(SOCKET));
    let _ = std::fs::remove_dir(&folder);
    // Nobody else's folder is used: it has to be made here.
    std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
    let path = folder.join(SOCKET);
    std::fs::write(&note, path.as_os_str().as_encoded_bytes())?;
    Ok((path.clone(), vec![path, folder, note]))
}

fn forget(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn serve(mut stream: UnixStream, answer: &impl Fn(Ask) -> Answer) -> std::io::Result<()> {
    stream.set_read_timeout(Some(ASK_MAX))?;
    stream.set_write_timeout(Some(ASK_MAX))?;
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_BYTES_MAX)).read_line(&mut line)?;
    let answer = match serde_json::from_str(&line) {
        Ok(ask) => answer(ask),
        Err(error) => Answer { done: false, text: format!("that is no question: {error}") },
    };
    let mut line = serde_json::to_string(&answer)?;
    line.push('\n');
    stream.write_all(line.as_bytes())
}

/// Asks the instance that runs on a data folder.
pub(super) fn ask(data: &Path, ask: &Ask) -> anyhow::Result<Answer> {
    let path = match std::fs::read_to_string(data.join(NOTE)) {
        Ok(path) => PathBuf::from(path.trim()),
        Err(_) => data.join(SOCKET),
    };
    let mut stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
        // A path that is too long was never listened on.
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::InvalidInput => {
            anyhow::anyhow!(
                "no instance runs on {} (--data says on which folder it does); if none runs, a \
                 start with the new files makes the change as well",
                data.display()
            )
        }
        _ => anyhow::Error::from(error).context(format!("cannot connect to {}", path.display())),
    })?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut line = serde_json::to_string(ask)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    serde_json::from_str(&answer).context("the instance ended while it was asked")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told(ask: Ask) -> Answer {
        Answer { done: ask.dry_run, text: format!("{:?}", ask.paths) }
    }

    #[test]
    fn questions_are_answered_also_where_paths_are_long_or_sockets_stale() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(60)).join("y".repeat(60));
        std::fs::create_dir_all(&long).unwrap();
        for data in [folder.path(), &long] {
            let question = || Ask { paths: vec!["/a b".into()], dry_run: true };
            assert!(ask(data, &question()).unwrap_err().to_string().contains("no instance"));
            std::mem::forget(Control::listen(data, told).unwrap());
            // The first was killed; the second takes its place.
            let control = Control::listen(data, told).unwrap();
            let answer = ask(data, &question()).unwrap();
            assert_eq!((answer.done, answer.text.as_str()), (true, "[\"/a b\"]"));
            let mode = std::fs::metadata(&control.files[0]).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let mut nonsense = UnixStream::connect(&control.files[0]).unwrap();
            nonsense.write_all(b"hello\n").unwrap();
            let mut line = String::new();
            BufReader::new(nonsense).read_line(&mut line).unwrap();
            assert!(line.contains("no question"), "{line}");
            let files = control.files.clone();
            drop(control);
            assert!(files.iter().all(|file| !file.exists()), "{files:?}");
        }
    }
}
