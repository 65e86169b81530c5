//! A failure as a person sees it: what failed in one line, what may help below it, no backtrace.

use std::io::ErrorKind;
use std::process::ExitCode;

use tidegate_runtime::chain;
use tidegate_runtime::journal::DurableError;
use tidegate_runtime::source::SourceError;

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
    of_tables(&chain(error)).or_else(|| error.chain().find_map(kind).and_then(of_kind))
}

/// What the system said, whoever passed it on.
fn kind(cause: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    if let Some(SourceError::Io { error, .. }) = cause.downcast_ref() {
        return Some(error.kind());
    }
    cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
}

/// What may help with errors of the store of tables, of which only the text comes here.
fn of_tables(text: &str) -> Option<&'static str> {
    // Whoever has no keys is asked for those of the machine, at an address of Amazon's own.
    if text.contains("169.254.169.254") {
        return Some(
            "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (on a \
             machine of Amazon's, give it a role)",
        );
    }
    let gone = ["not found", "No such file"].iter().any(|what| text.contains(what));
    (gone && text.contains(".parquet")).then_some(
        "a file that the log of a table names is gone: `tidegate doctor tables` says which files \
         are missing and what to do",
    )
}

fn of_kind(kind: ErrorKind) -> Option<&'static str> {
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
    fn whoever_passes_an_error_on_it_has_its_hint() {
        let error: io::Error = ErrorKind::AddrInUse.into();
        let what = "cannot listen on 127.0.0.1:1883".to_owned();
        let error = anyhow::Error::from(SourceError::Io { what, error });
        assert!(hint(&error).is_some_and(|h| h.contains("another program listens")));
        let error = anyhow::anyhow!(
            "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token"
        );
        assert!(hint(&error).is_some_and(|h| h.contains("AWS_ACCESS_KEY_ID")));
        let gone = "Object at location /d/tables/p/w/part-1.parquet not found: No such file";
        assert!(hint(&anyhow::anyhow!(gone)).is_some_and(|h| h.contains("tidegate doctor tables")));
    }

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
