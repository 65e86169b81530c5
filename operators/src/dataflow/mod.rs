//! The half of this crate that knows timely: batches as containers, exchange by key, and the one
//! host that runs every stateful operator.

pub mod container;
pub mod exchange;
pub mod host;
pub mod stateless;
pub mod ticks;
mod turns;

pub use exchange::{by_key, to_all};
pub use host::{EdgeOrder, HostContext, Hosted, Second, host, host_aside, host_join};
pub use stateless::{Split, split};
pub use ticks::Ticks;
