//! `tidegate doctor`: looks at everything that Tidegate works with, and says what is wrong, where,
//! what it means, and what to do.
//!
//! Invariant: an examination changes nothing of what it examines (a test topic, a test object and a
//! test file of its own aside, which it removes) and takes no lock, so that it can run beside the
//! product. Only `salvage` writes, into a folder that must be empty, and never while an instance
//! runs.

mod config;
mod data;
mod disk;
mod lines;
mod report;
mod salvage;
mod settings;
mod source;
mod tables;

pub use config::examine as examine_config;
pub use data::{DataOptions, examine as examine_data};
pub use disk::{Room, examine as examine_disk};
pub use lines::{FileText, file_of};
pub use report::{Place, Report, Row, Status, summary};
pub use salvage::{SalvageOptions, salvage};
pub use settings::examine as examine_settings;
pub use source::{Options, examine};
pub use tables::{TablesOptions, examine as examine_tables};

/// Told now and then how far a long work is: what, done, of how much (bytes or files).
pub type OnProgress<'a> = &'a (dyn Fn(&str, u64, u64) + Sync);

/// Bytes for people.
fn bytes_text(bytes: u64) -> String {
    const STEPS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let step = STEPS.iter().find(|(_, size)| bytes >= *size);
    step.map_or(format!("{bytes} bytes"), |(unit, size)| {
        format!("{:.1} {unit}", bytes as f64 / *size as f64)
    })
}

/// `1 message`, `2 messages`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The last part of a path, as text.
fn file_name(path: &std::path::Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into())
}
