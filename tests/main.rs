//! The one integration-test binary: how the repository is laid out, and the built `tidegate` from
//! device to SQL.

#![allow(clippy::unwrap_used)]

mod clients;
mod end_to_end;
mod structure;
mod support;
