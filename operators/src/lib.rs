//! The deterministic half of Tidegate: batches, epochs, operators and their one timely host.
//!
//! Nothing here reads a clock, a random number, the environment or the disk: an operator is a pure
//! function of the messages and ticks that the journal recorded, which is why a replay equals the
//! live run byte for byte.

pub mod absence;
pub mod aggregate;
pub mod alert;
pub mod batch;
pub mod bound;
pub mod dataflow;
pub mod decode;
pub mod dedup;
pub mod detect;
pub mod distinct;
mod early;
pub mod enrich;
pub mod event;
pub mod expression;
pub(crate) mod grouped;
pub mod intern;
pub mod join;
pub mod key;
pub(crate) mod keys;
pub(crate) mod late;
pub mod latest;
pub mod message;
pub mod operator;
pub mod outage;
pub(crate) mod partial;
pub mod parts;
pub(crate) mod picked;
pub mod properties;
pub mod quality;
pub mod registry;
pub mod reject;
pub(crate) mod saved;
pub mod sequence;
pub mod skew;
pub mod slabs;
pub mod snapshot;
pub mod span;
pub mod spec;
pub mod system;
pub mod text;
pub mod topic;
pub mod window;
pub mod zone;

pub use batch::{Batch, Epoch, Tick};
pub use message::{MessageMeta, Messages, MessagesBuilder};
pub use operator::{AsideOperator, Emit, JoinOperator, KeyedOperator, OperatorError};
pub use snapshot::{GroupSet, SavedRows, Snapshot};
pub use text::TextMax;
