//! A deterministic simulation of the whole pipeline in one process, from one seed.
#![allow(clippy::unwrap_used, dead_code)]

pub(crate) mod inject;
