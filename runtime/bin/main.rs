//! The `tidegate` binary: parses the command line, runs one command, turns its outcome into an
//! exit code and at most one readable error.

mod cli;

use std::process::ExitCode;

/// Batches are allocated and freed on different threads all the time, which this allocator is
/// good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    abort_on_panic();
    cli::main()
}

/// A broken invariant on any thread ends the process: a process that lives on without one of its
/// threads would acknowledge messages that nobody works on. What was acknowledged is in the
/// journal, and the next start goes on from there.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
