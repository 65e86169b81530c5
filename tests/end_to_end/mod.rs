//! The built binary from device to SQL: each file is one promise.

mod absence;
mod apply;
mod changed_after_kill;
mod check;
mod delivery;
mod demo;
mod doctor;
mod faults;
mod fencing;
mod files;
mod flood;
mod http;
mod intake;
mod kill;
mod late;
mod limits;
mod metrics;
mod outputs;
mod points;
mod process;
mod registry;
mod restart;
mod rules;
mod settings;
mod shapes;
mod workers;
