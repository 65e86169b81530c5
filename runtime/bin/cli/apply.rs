//! Changing what runs: `tidegate apply`, `tidegate run --watch`, `tidegate explain --against`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tidegate_pipelines::change::{Change, Since, adopt_sources, table_conflicts};
use tidegate_pipelines::{Plan, graph};
use tidegate_runtime::engine::{Applier, begun_anew, is_running, moment, ran_last};
use tidegate_runtime::screen::Screen;

use super::args::{ApplyArgs, ExplainArgs};
use super::control::{Answer, Ask, Control, ask};
use super::failure::Failure;
use super::{Outcome, files, print};

/// How often watched files are looked at.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// `tidegate apply`.
pub(super) fn apply(args: &ApplyArgs) -> Outcome {
    let place = args.place.find(&args.paths.paths)?;
    told(&place.data, &args.paths.paths, args.dry_run)
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
    // A data folder stands for what runs on it, or ran last.
    if let [data] = &args.against[..]
        && data.join("journal").is_dir()
    {
        return match is_running(data) {
            true => told(data, &args.paths.paths, true),
            false => against_stopped(data, &args.paths.paths),
        };
    }
    let (old, _) = files::load_to_look_at(&args.against)?;
    let (mut new, _) = files::load_to_look_at(&args.paths.paths)?;
    let refused = adopt_sources(&old, &mut new);
    let (mut text, possible) = between(&old, &new, args.data.as_deref())?;
    for problem in refused {
        text += &format!("not while running: {problem}\n");
    }
    print(&text)?;
    if possible { Ok(()) } else { Err(Failure::Reported) }
}

/// What a start with these files makes of what ran last on a data folder.
fn against_stopped(data: &Path, paths: &[PathBuf]) -> Outcome {
    let unknown = || anyhow::anyhow!("it is not known what ran on {} last", data.display());
    let ran = ran_last(data)?.ok_or_else(unknown)?;
    let old = files::load_earlier(&ran.files()).and_then(|old| ran.as_it_ran(old));
    let old = old.ok_or_else(unknown)?;
    let (mut new, _) = files::load_to_look_at(paths)?;
    let mut text = String::new();
    for (these, others, what) in [(&new, &old, "opened"), (&old, &new, "not opened any more")] {
        for source in &these.sources {
            if others.sources.iter().all(|other| other.name != source.name) {
                text += &format!("source {}: {what}\n", source.name);
            }
        }
    }
    // A start may have other sources: what cannot change while they run is no problem here.
    let _ = adopt_sources(&old, &mut new);
    let (change, possible) = between(&old, &new, Some(data))?;
    print(&format!("at the next start:\n{change}{text}"))?;
    if possible { Ok(()) } else { Err(Failure::Reported) }
}

/// What becomes of everything, and whether it can be: tables have to take their new rows. With a
/// data folder, from when on state is made anew.
fn between(old: &Plan, new: &Plan, data: Option<&Path>) -> anyhow::Result<(String, bool)> {
    let change = Change::between(&old.pipelines, &new.pipelines);
    let tables = graph::tables(&old.pipelines);
    let mut conflicts = table_conflicts(&tables, &new.pipelines);
    let since = match data.filter(|_| !change.rebuilt().is_empty()) {
        Some(data) => {
            let cannot = || format!("cannot read the journal of {}", data.display());
            let (since_us, refused) =
                begun_anew(data, &change, &tables, new).with_context(cannot)?;
            conflicts.extend(refused);
            since(since_us)
        }
        None => Since::Unknown,
    };
    let mut text = change.show(&since);
    for problem in &conflicts {
        text += &format!("refused: {problem}\n");
    }
    Ok((text, conflicts.is_empty()))
}

/// From when on state is made anew, for people.
fn since(since_us: Option<i64>) -> Since {
    since_us.map_or(Since::Beginning, |us| Since::Time(moment(us)))
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
            Ok((change, since_us)) => Answer { done: true, text: change.show(&since(since_us)) },
            Err(problems) => no(problems),
        };
    }
    match applier.apply(plan) {
        Ok(applied) => {
            let mut text = applied.change.show(&since(applied.since_us));
            text += &match applied.epoch {
                Some(epoch) => format!("done after epoch {epoch}, in {:.1} s", applied.seconds),
                None => "there was nothing to change".to_owned(),
            };
            Answer { done: true, text }
        }
        Err(problems) => no(problems),
    }
}
