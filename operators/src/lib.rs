//! The deterministic half of Tidegate: batches, epochs, operators and their one timely host.
//!
//! Nothing here reads a clock, a random number, the environment or the disk: an operator is a pure
//! function of the messages and ticks that the journal recorded, which is why a replay equals the
//! live run byte for byte.

pub mod batch;
pub mod decode;
pub mod message;
pub mod reject;
pub mod spec;
pub mod topic;

pub use batch::{Batch, Epoch, Tick};
pub use message::{MessageMeta, Messages, MessagesBuilder};
