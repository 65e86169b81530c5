//! `tidegate test`: the `[[test]]` tables of pipeline files, in process, on the same graph.

use tidegate_runtime::cases;

use super::args::PathArgs;
use super::failure::Failure;
use super::{Outcome, files, print};

pub(super) fn test(args: &PathArgs) -> Outcome {
    let (plan, _) = files::load_to_look_at(&args.paths)?;
    let mut failed = 0;
    for test in &plan.tests {
        let outcome = cases::run_one(&plan, test)?;
        let mark = if outcome.problems.is_empty() { "ok  " } else { "FAIL" };
        let place = outcome.file.display();
        let mut text = format!("{mark} {} ({place}:{})", outcome.name, outcome.line);
        for problem in &outcome.problems {
            text.push_str("\n     ");
            text.push_str(&problem.replace('\n', "\n     "));
        }
        failed += usize::from(!outcome.problems.is_empty());
        print(&text)?;
    }
    print(&format!("{} passed, {failed} failed", plan.tests.len() - failed))?;
    if failed > 0 { Err(Failure::Reported) } else { Ok(()) }
}
