//! Named fault points of the tables, for tests of the whole process: see the runtime's `fault`.
//!
//! This crate reads no environment, so the runtime connects what is to happen at a point. Nothing
//! is there in release builds.

/// What is called at every point, by its name; an error is what the caller is to fail with.
pub type Hook = fn(&'static str) -> std::io::Result<()>;

#[cfg(debug_assertions)]
static HOOK: std::sync::OnceLock<Hook> = std::sync::OnceLock::new();

/// Connects the points of this process; the first call counts.
#[cfg(debug_assertions)]
pub fn connect(hook: Hook) {
    let _ = HOOK.set(hook);
}

/// A place that may fail.
///
/// # Errors
/// Those that the hook makes.
#[cfg(debug_assertions)]
pub(crate) fn io(name: &'static str) -> std::io::Result<()> {
    HOOK.get().map_or(Ok(()), |hook| hook(name))
}

/// Nothing.
///
/// # Errors
/// Never.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn io(_name: &'static str) -> std::io::Result<()> {
    Ok(())
}

/// A place at which the process may be made to end.
pub(crate) fn point(name: &'static str) {
    // Failures are for those who can pass them on.
    let _ = io(name);
}
