//! The built binary from device to SQL: each file is one promise.

mod check;
mod demo;
mod files;
mod intake;
mod kill;
mod outputs;
mod restart;
mod workers;
