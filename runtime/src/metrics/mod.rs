//! `/metrics`, `/health` and `/ready`: what other programs see of the process.
//!
//! Invariant: a request reads counters and takes locks that nobody holds for long; it never waits
//! for the engine, and the engine never for it. It is answered from before the engine starts, so
//! that a long replay can be told from a process that hangs.

mod families;
mod server;
mod text;

pub use self::server::MetricsServer;
pub(crate) use self::text::Kind;
