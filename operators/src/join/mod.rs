//! Joins of two edges by their keys: windows with the same bounds ([`window`]), or rows whose times
//! are near enough ([`interval`]).
//!
//! In both the rows of the left edge are what is joined, and those of the right edge add columns.
//! Both inputs are dealt out by the key, so partners meet on one worker. Nothing depends on which
//! input comes first within an epoch: what is too late is judged by what was there before the
//! epoch, and what is due is found when the rows of both are in.
//!
//! Of what comes from files no key is ever silent: their ticks say nothing of devices.

mod bound;
mod interval;
mod known;
mod save;
mod sides;
mod window;

pub use self::interval::{IntervalJoin, REASON_MATCHES_MAX, REASON_ROWS_MAX};
pub use self::window::WindowJoin;

#[cfg(test)]
mod testing;
