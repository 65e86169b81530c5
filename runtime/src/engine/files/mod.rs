//! Files as a source: they are their own journal.
//!
//! Messages, epochs and ticks are a function of the files alone, so reading them again gives the
//! same epochs, the same rows and the same table files; a run that was interrupted can be repeated
//! and commits only what is missing. Files that came later are read after those that were there
//! before (see `ledger.rs`).

mod columns;
mod csv;
mod discover;
mod feeder;
mod ledger;
mod lines;
mod progress;
mod run;
#[cfg(test)]
mod tests;
mod unpack;

pub(crate) use self::discover::FileSource;
pub(super) use self::discover::{Found, told_by};
pub(super) use self::feeder::{Chunks, read_file};
pub use self::progress::{Progress, Reading};
pub(super) use self::run::{FileOptions, FileRun, start};
pub(super) use self::unpack::open;
