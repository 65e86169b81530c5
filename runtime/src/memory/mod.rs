//! The memory of this process: how much it may have, how much it has, and how near that is.
//!
//! Measured is what is resident, since that is what ends a process, and what is swapped out, since
//! that comes back. The allocator keeps for a while what was freed, so it falls late; who decides
//! by it must not wait for that alone.

pub mod allocator;
mod budget;
mod stages;

pub use self::budget::{Budget, resident_bytes, used_bytes};
pub(crate) use self::stages::{Stage, Stages};
