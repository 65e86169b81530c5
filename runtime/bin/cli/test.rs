//! `tidegate test`: the `[[test]]` tables of pipeline files, in process, on the same graph.

use super::args::PathArgs;
use super::failure::Failure;
use super::{Outcome, files, print};

pub(super) fn test(args: &PathArgs) -> Outcome {
    let plan = files::load(&args.paths)?;
    let outcomes = tidegate_runtime::cases::run(&plan)?;
    let mut failed = 0;
    for outcome in &outcomes {
        let mark = if outcome.problems.is_empty() { "ok  " } else { "FAIL" };
        let mut text =
            format!("{mark} {} ({}:{})", outcome.name, outcome.file.display(), outcome.line);
        for problem in &outcome.problems {
            text.push_str("\n     ");
            text.push_str(&problem.replace('\n', "\n     "));
        }
        failed += usize::from(!outcome.problems.is_empty());
        print(&text)?;
    }
    print(&format!("{} passed, {failed} failed", outcomes.len() - failed))?;
    if failed > 0 { Err(Failure::Reported) } else { Ok(()) }
}
