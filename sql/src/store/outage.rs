//! Which failures of a store pass by waiting: those of the way to it, of a server that is down or
//! overloaded, of a disk that is full. Whatever somebody has to change (credentials, a bucket that
//! does not exist, an endpoint that refuses what we ask for) is none of them.

use std::error::Error as StdError;
use std::io::{self, ErrorKind};
use std::iter::successors;

use object_store::Error as StoreError;
use object_store::client::{HttpError, HttpErrorKind};

use crate::Error;

/// What only somebody can change who is at no keyboard here, although it looks like a connection
/// that fails: where clouds hand out credentials to those who were given none nobody answers, and
/// a certificate is not trusted.
const NEVER: [&str; 4] = ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "certificate"];

/// How object_store tells a status; it keeps the type to itself.
const STATUS: &str = "non-2xx status code: ";

/// Linux: too many open files, of the system and of this process.
const FILES_USED_UP: [i32; 2] = [23, 24];

/// Whether waiting may help against `error`, or against what caused it.
pub fn may_pass(error: &(dyn StdError + 'static)) -> bool {
    let chain: Vec<_> = successors(Some(error), |&cause| cause.source()).collect();
    let texts: Vec<String> = chain.iter().map(ToString::to_string).collect();
    let never = NEVER.iter().any(|what| texts.iter().any(|text| text.contains(what)));
    let refused = |cause: &&(dyn StdError + 'static)| {
        let known = cause.downcast_ref::<StoreError>();
        known.is_some_and(|error| !matches!(error, StoreError::Generic { .. }))
    };
    if never || chain.iter().any(refused) {
        return false;
    }
    let passes = |cause: &&(dyn StdError + 'static)| {
        cause.downcast_ref::<HttpError>().is_some_and(is_cut)
            || cause.downcast_ref::<io::Error>().is_some_and(has_no_room)
            // It has no cause but itself.
            || matches!(cause.downcast_ref(), Some(Error::Io(error)) if has_no_room(error))
    };
    chain.iter().any(passes) || texts.iter().any(|text| is_down(text))
}

fn is_cut(error: &HttpError) -> bool {
    use HttpErrorKind::{Connect, Interrupted, Request, Timeout};
    matches!(error.kind(), Connect | Request | Timeout | Interrupted)
}

/// Whether waiting may help: the disk or the quota is full, and space can be freed; or no more
/// files may be open, and others are closed.
pub fn has_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::WriteZero)
        || error.raw_os_error().is_some_and(|code| FILES_USED_UP.contains(&code))
}

/// Whether a server says that it cannot at present: any 5xx but "not implemented", or that there
/// is too much.
fn is_down(text: &str) -> bool {
    let Some((_, status)) = text.rsplit_once(STATUS) else {
        return text.contains("SlowDown") || text.contains("InternalError");
    };
    let status = status.get(..3).unwrap_or_default();
    matches!(status, "408" | "429") || (status.starts_with('5') && status != "501")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        let source = StoreError::Generic { store: "S3", source: source.into() };
        Error::Store { what: "committing".into(), source }
    }

    #[test]
    fn outages_pass_and_what_somebody_has_to_change_does_not() {
        let http = |kind, text: &str| generic(HttpError::new(kind, io::Error::other(text)));
        let status = |code: &str| generic(format!("Server returned {STATUS}{code}: <Error/>"));
        let refused = StoreError::PermissionDenied { path: "p".into(), source: "403".into() };
        let gone = StoreError::NotFound { path: "p".into(), source: "no such bucket".into() };
        let store = |source| Error::Store { what: "listing".into(), source };
        let full = io::Error::from(ErrorKind::StorageFull);
        for passing in [
            http(HttpErrorKind::Connect, "connection refused"),
            http(HttpErrorKind::Timeout, "operation timed out"),
            status("503 Service Unavailable"),
            status("429 Too Many Requests"),
            generic("Server returned error response: <Code>SlowDown</Code>"),
            generic(io::Error::from_raw_os_error(24)),
            generic(io::Error::from_raw_os_error(28)),
            Error::Io(full),
        ] {
            assert!(may_pass(&passing), "{passing}");
        }
        for lasting in [
            http(HttpErrorKind::Connect, "error performing PUT http://169.254.169.254/latest"),
            http(HttpErrorKind::Connect, "invalid peer certificate: UnknownIssuer"),
            http(HttpErrorKind::Unknown, "URL scheme is not allowed"),
            status("404 Not Found"),
            status("501 Not Implemented"),
            status("301 Moved Permanently"),
            store(refused),
            store(gone),
            Error::Io(ErrorKind::PermissionDenied.into()),
            generic(io::Error::from_raw_os_error(5)),
        ] {
            assert!(!may_pass(&lasting), "{lasting}");
        }
    }
}
