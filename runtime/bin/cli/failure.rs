//! A failure as a person sees it: what failed in one line, what may help below it, no backtrace.

use std::io::ErrorKind;
use std::process::ExitCode;

use tidegate_runtime::chain;
use tidegate_runtime::journal::DurableError;

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
            eprintln!("error: {}", chain(&error).replace('\n', BELOW));
            if let Some(hint) = hint(&error) {
                eprintln!(" hint: {hint}");
            }
        }
        ExitCode::FAILURE
    }
}

/// Further lines of an error stand below the first one.
const BELOW: &str = "\n       ";

fn hint(error: &anyhow::Error) -> Option<&'static str> {
    let durable = error.chain().find_map(|cause| cause.downcast_ref::<DurableError>());
    if matches!(durable, Some(DurableError::InUse { .. })) {
        return Some("stop it first, or choose another folder with --data");
    }
    if matches!(durable, Some(DurableError::Damaged { .. })) {
        return Some(
            "`tidegate doctor data --data DIR` says what is damaged and what follows from it, and \
             with --salvage NEW_FOLDER saves what is whole",
        );
    }
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
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
            Some("there is a file of that name; choose a folder")
        }
        ErrorKind::NotFound => Some(
            "check the spelling of the path, and from where it is read: what is not absolute \
             begins at the current folder",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context;

    use super::*;

    #[test]
    fn errors_are_said_once_with_a_hint() {
        let io: io::Result<()> = Err(ErrorKind::PermissionDenied.into());
        let error = io.context("cannot open /data/journal").expect_err("it is one");
        assert_eq!(chain(&error), "cannot open /data/journal: permission denied");
        assert!(hint(&error).is_some_and(|h| h.contains("--data")));
        let twice = anyhow::anyhow!("b").context("a: b");
        assert_eq!(chain(&twice), "a: b");
        assert_eq!(hint(&twice), None);
    }
}
