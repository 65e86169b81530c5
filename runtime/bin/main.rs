//! The `tidegate` binary: parses the command line, runs one command, turns its outcome into an
//! exit code and at most one readable error.

mod cli;

use std::process::ExitCode;

/// Batches are allocated and freed on different threads all the time, which this allocator is
/// good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
