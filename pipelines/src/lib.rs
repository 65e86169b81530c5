//! Placeholder.

pub mod examples;
