//! Changing what runs: `tidegate apply`, `tidegate run --watch`, `tidegate explain --against`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tidegate_pipelines::change::{Change, adopt_sources};
use tidegate_runtime::engine::{Applier, moment};
use tidegate_runtime::screen::Screen;

use super::args::{ApplyArgs, ExplainArgs};
use super::control::{Answer, Ask, Control, ask};
use super::failure::Failure;
use super::{Outcome, files, print};

/// How often watched files are looked at.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// `tidegate apply`.
pub(super) fn apply(args: &ApplyArgs) -> Outcome {
    told(&args.data, &args.paths.paths, args.dry_run)
}

fn told(data: &Path, paths: &[PathBuf], dry_run: bool) -> Outcome {
    let absolute = |path: &PathBuf| {
        std::path::absolute(path).with_context(|| format!("cannot use {}", path.display()))
    };
    let paths = paths.iter().map(absolute).collect::<anyhow::Result<Vec<_>>>()?;
    let answer = ask(data, &Ask { paths, dry_run })?;
    if answer.done {
        return print(&answer.text);
    }
    eprintln!("{}", answer.text.trim_end());
    Err(Failure::Reported)
}

/// `tidegate explain --against`.
pub(super) fn against(args: &ExplainArgs) -> Outcome {
    // A data folder stands for what runs on it.
    if let [data] = &args.against[..]
        && data.join("journal").is_dir()
    {
        return told(data, &args.paths.paths, true);
    }
    let (old, _) = files::load_to_look_at(&args.against)?;
    let (mut new, _) = files::load_to_look_at(&args.paths.paths)?;
    let refused = adopt_sources(&old, &mut new);
    let mut text = Change::between(&old.pipelines, &new.pipelines).show(None);
    for problem in refused {
        text += &format!("not while running: {problem}\n");
    }
    print(&text)
}

/// Answers on the control socket of a run.
pub(super) fn listen(data: &Path, applier: &Arc<Applier>, screen: &Arc<Screen>) -> Option<Control> {
    let (applier, screen) = (Arc::clone(applier), Arc::clone(screen));
    let control = Control::listen(data, move |ask| {
        let answer = change(&applier, &ask.paths, ask.dry_run);
        if !ask.dry_run {
            screen.print(answer.text.trim_end());
        }
        answer
    });
    // Everything else works without it.
    control.map_err(|error| tracing::error!("no `tidegate apply`: {error:#}")).ok()
}

/// Applies files whenever they change, for as long as the process runs.
pub(super) fn watch(paths: &[PathBuf], applier: &Arc<Applier>, screen: &Arc<Screen>) {
    let (applier, screen, paths) = (Arc::clone(applier), Arc::clone(screen), paths.to_vec());
    let read = move |paths: &[PathBuf]| files::read(paths).map_err(|error| format!("{error:#}"));
    let mut last = read(&paths);
    let spawned = std::thread::Builder::new().name("watch".into()).spawn(move || {
        loop {
            std::thread::sleep(WATCH_EVERY);
            let now = read(&paths);
            if now == last {
                continue;
            }
            // An editor may be in the middle of it: what counts has been the same for a moment.
            std::thread::sleep(WATCH_EVERY / 4);
            if read(&paths) != now {
                continue;
            }
            last = now;
            let answer = change(&applier, &paths, false);
            let head = if answer.done { "files changed" } else { "files changed, not applied" };
            screen.print(&format!("{head}:\n{}", answer.text.trim_end()));
        }
    });
    if let Err(error) = spawned {
        tracing::error!(%error, "files are not watched");
    }
}

/// Makes a change, or says what it would be.
fn change(applier: &Applier, paths: &[PathBuf], dry_run: bool) -> Answer {
    let no = |problems: Vec<String>| {
        let text =
            problems.iter().map(|p| format!("error: {}\n", p.trim_end())).collect::<String>();
        Answer { done: false, text: format!("{text}nothing was changed; what runs goes on") }
    };
    let plan = match files::load_quietly(paths) {
        Ok(plan) => plan,
        Err(text) => {
            let text = format!("{}\nnothing was changed; what runs goes on", text.trim_end());
            return Answer { done: false, text };
        }
    };
    if dry_run {
        return match applier.look(plan) {
            Ok(change) => Answer { done: true, text: change.show(None) },
            Err(problems) => no(problems),
        };
    }
    match applier.apply(plan) {
        Ok(applied) => {
            let from = applied.since_us.map(moment);
            let from = from.as_deref().unwrap_or("the first message");
            let mut text = applied.change.show(Some(from));
            text += &match applied.epoch {
                Some(epoch) => format!("done after epoch {epoch}, in {:.1} s", applied.seconds),
                None => "there was nothing to change".to_owned(),
            };
            Answer { done: true, text }
        }
        Err(problems) => no(problems),
    }
}
