//! A failure as a person sees it: one clear line, a hint where there is one, no backtrace.

use std::io::ErrorKind;
use std::process::ExitCode;

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Something went wrong; shown as `error: ...` with a hint.
    Error(anyhow::Error),
    /// Everything worth saying was said already.
    Reported,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Error(error)
    }
}

impl Failure {
    /// Tells the person, and the caller by the exit code.
    pub(super) fn report(self) -> ExitCode {
        if let Self::Error(error) = self {
            eprintln!("error: {}", one_line(&error));
            if let Some(hint) = hint(&error) {
                eprintln!(" hint: {hint}");
            }
        }
        ExitCode::FAILURE
    }
}

/// The whole chain in one line. Many errors repeat their cause; then it is said once.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text.replace('\n', " ")
}

fn hint(error: &anyhow::Error) -> Option<&'static str> {
    let kind = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<std::io::Error>())
        .map(std::io::Error::kind)?;
    match kind {
        ErrorKind::AddrInUse => Some(
            "another program listens there, perhaps another Tidegate or mosquitto; stop it or \
             choose another address",
        ),
        ErrorKind::AddrNotAvailable => Some("this machine has no such address"),
        ErrorKind::PermissionDenied => Some(
            "check who owns it, or choose another folder with --data (ports below 1024 need \
             special rights)",
        ),
        ErrorKind::StorageFull => Some("free some space, or choose another disk with --data"),
        ErrorKind::ReadOnlyFilesystem => Some("choose a folder on another disk with --data"),
        ErrorKind::NotFound => Some("check the spelling of the path"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context;

    use super::*;

    #[test]
    fn errors_are_one_line_with_a_hint() {
        let io: io::Result<()> = Err(ErrorKind::PermissionDenied.into());
        let error = io.context("cannot open /data/journal").expect_err("it is one");
        assert_eq!(one_line(&error), "cannot open /data/journal: permission denied");
        assert!(hint(&error).is_some_and(|h| h.contains("--data")));
        let twice = anyhow::anyhow!("b").context("a: b");
        assert_eq!(one_line(&twice), "a: b");
        assert_eq!(hint(&twice), None);
    }
}
