//! HTTP in: `POST /ingest/PIPELINE` with JSON, and the write API of InfluxDB, behind the one
//! contract of intake: 202 or 204 means that the journal is synced.
//!
//! A request passes `listen` (connections within limits), `handle` (which API, who, which topic),
//! `take` (body, `unpack`, `split`, one offer). Its memory is counted in `budget` from the first
//! byte; without room it is 429 at once. `requests` knows idempotency keys.

mod access;
mod budget;
mod handle;
mod influx;
mod limits;
mod listen;
mod refusal;
mod requests;
mod server;
mod split;
mod take;
mod unpack;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub(crate) use limits::Timeouts;
pub(crate) use listen::{Door, Peer};
pub(crate) use requests::{PART as REQUESTS_PART, Requests};
pub(crate) use server::{HttpConfig, HttpListener, ListenerOptions};
pub(crate) use split::each_element;
