//! `tidegate check` and `tidegate explain`: what a plan is, without running it.

use tidegate_pipelines::config::references::UNSET;
use tidegate_pipelines::plan::RegistryPlace;
use tidegate_pipelines::{Plan, bounds};
use tidegate_runtime::chain;
use tidegate_runtime::engine::look_at_registry;
use tidegate_runtime::memory::Budget;

use super::args::{ExplainArgs, PathArgs};
use super::failure::Failure;
use super::{Outcome, files, print, settings};

pub(super) fn check(args: &PathArgs) -> Outcome {
    if settings::check_alone(&args.paths)? {
        return print("ok: settings of the process");
    }
    let (plan, missing) = files::load_to_check(&args.paths)?;
    for why in missing {
        eprintln!("warning: {why}; `tidegate run` needs it");
    }
    registries(&plan)?;
    let process = settings::check(&args.paths)?;
    let settings = if process.is_some() { ", settings of the process" } else { "" };
    let tables: usize = plan.pipelines.iter().map(|p| p.tables.len()).sum();
    let alerts: usize = plan.pipelines.iter().map(|p| p.alerts.len()).sum();
    print(&format!(
        "ok: {}, {}, {}, {}, {}{settings}",
        counted(plan.pipelines.len(), "pipeline"),
        counted(plan.sources.len(), "source"),
        counted(tables, "table"),
        counted(alerts, "alert"),
        counted(plan.tests.len(), "test"),
    ))?;
    let Some(declared) = bounds::declared(&plan) else { return Ok(()) };
    print(&declared.to_string())?;
    let memory = Budget::of(process.and_then(|process| process.memory_bytes_max));
    if (1..declared.bytes).contains(&memory.bytes_max) {
        eprintln!("warning: that is more memory than `tidegate run` may use here: {memory}");
    }
    Ok(())
}

/// Looks at the files of registries, as far as they are there and their paths are known.
fn registries(plan: &Plan) -> Outcome {
    let mut good = true;
    for registry in &plan.registries {
        let (name, pipeline) = (&registry.name, &registry.pipeline);
        let RegistryPlace::File(path) = &registry.place else { continue };
        if path.contains(UNSET) {
            continue;
        }
        if !std::path::Path::new(path).is_file() {
            eprintln!(
                "warning: registry {name} of pipeline {pipeline}: there is no file {path}; \
                 `tidegate run` needs it"
            );
            continue;
        }
        match look_at_registry(plan, registry) {
            Ok(untaken) => untaken.iter().for_each(|text| eprintln!("warning: {text}")),
            Err(error) => {
                good = false;
                eprintln!("error: {}", chain(&error));
            }
        }
    }
    if good { Ok(()) } else { Err(Failure::Reported) }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

pub(super) fn explain(args: &ExplainArgs) -> Outcome {
    if !args.against.is_empty() {
        return super::apply::against(args);
    }
    let (plan, _) = files::load_to_look_at(&args.paths.paths)?;
    let text = match args.dot {
        true => tidegate_pipelines::explain_dot(&plan),
        false => tidegate_pipelines::explain(&plan),
    };
    print(&text)
}
