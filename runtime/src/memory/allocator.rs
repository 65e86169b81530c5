//! Settings of mimalloc, which reads them from the environment before `main`: for the binary and
//! the benches, which start themselves anew with them.

/// Each by its variable. Memory that is free is kept for a second before it is given back: bursts
/// of batches would have the kernel clear fresh pages each time. Huge pages are not asked for: of
/// those a few live bytes hold two megabytes each, so that memory grows with the bursts of half an
/// hour.
pub const SETTINGS: [(&str, &str); 3] = [
    ("MIMALLOC_PURGE_DELAY", "1000"),
    ("MIMALLOC_ARENA_PURGE_MULT", "1"),
    ("MIMALLOC_ALLOW_THP", "0"),
];

/// Those that the environment does not have.
pub fn unset() -> Vec<(&'static str, &'static str)> {
    SETTINGS.into_iter().filter(|(variable, _)| std::env::var_os(variable).is_none()).collect()
}
