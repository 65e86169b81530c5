//! The `tidegate` binary: parses the command line, runs one command, turns its outcome into an
//! exit code and at most one readable error.

mod cli;

use std::process::ExitCode;

/// Batches are allocated and freed on different threads all the time, which this allocator is
/// good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keep_memory();
    abort_on_panic();
    cli::main()
}

/// Batches come and go in bursts. With the allocator's default, each burst takes fresh pages from
/// the kernel, which clears every one of them: a fifth of all CPU time in the common workload. The
/// allocator reads its settings before `main`, so the process starts itself anew with them, or with
/// those that are in its environment; where it cannot, it is only slower.
#[cfg(unix)]
fn keep_memory() {
    use std::os::unix::process::CommandExt;
    let works_long =
        std::env::args_os().nth(1).is_some_and(|a| a == "run" || a == "demo" || a == "worker");
    let unset = tidegate_runtime::memory::allocator::unset();
    if !works_long || unset.is_empty() {
        return;
    }
    let mut arguments = std::env::args_os();
    let (Ok(program), Some(name)) = (std::env::current_exe(), arguments.next()) else { return };
    let _error = std::process::Command::new(program).arg0(name).args(arguments).envs(unset).exec();
}

#[cfg(not(unix))]
fn keep_memory() {}

/// A broken invariant on any thread ends the process: a process that lives on without one of its
/// threads would acknowledge messages that nobody works on. What was acknowledged is in the
/// journal, and the next start goes on from there.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        cli::cluster::end_if_lost(panic);
        report(panic);
        std::process::abort();
    }));
}
