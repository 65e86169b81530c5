//! What `demo` and `run` do alike at the start: show how far a long replay is, and say what was
//! restored.

use std::sync::Arc;
use std::time::Duration;

use tidegate_pipelines::Plan;
use tidegate_pipelines::change::window_conflicts;
use tidegate_runtime::engine::{self, Engine, EngineOptions, Replaying, moment};
use tidegate_runtime::metrics::MetricsServer;
use tidegate_runtime::screen::Screen;
use tidegate_runtime::summary;

use super::files;
use super::stop::ExitAtSignal;

/// A replay that is over before this is not shown.
const SHOW_AFTER: Duration = Duration::from_secs(1);
/// How often its line is drawn anew on a terminal, and written elsewhere.
const DRAW_EVERY: Duration = Duration::from_millis(250);
const LINE_EVERY: Duration = Duration::from_secs(2);

/// A running engine, and who answers questions about it.
pub(super) struct Started {
    pub(super) engine: Engine,
    pub(super) metrics: Option<MetricsServer>,
}

impl Started {
    /// Stops the engine; until it has ended, questions are answered.
    pub(super) async fn shutdown(self) -> anyhow::Result<()> {
        if let Some(metrics) = &self.metrics {
            metrics.stopping();
        }
        self.engine.shutdown().await.map(drop)
    }
}

/// Starts the engine; on standard error stands how far it is, and then what it restored. Metrics
/// are there from the beginning, if they are asked for.
pub(super) async fn start(
    plan: Plan,
    mut options: EngineOptions,
    metrics: Option<&str>,
    screen: &Arc<Screen>,
) -> anyhow::Result<Started> {
    // In a cluster the one who waits for the others looks for signals.
    let alone = options.cluster.is_none();
    let _exit = alone.then(ExitAtSignal::new).transpose()?;
    let metrics = match metrics {
        Some(listen) => Some(MetricsServer::start(listen, Arc::clone(&options.replaying)).await?),
        None => None,
    };
    if let Some(metrics) = &metrics {
        eprintln!("metrics on http://{}/metrics", metrics.address());
    }
    if let Some(before) = ran_last(&options)? {
        refuse_other_windows(&before, &plan)?;
        options.ran = before.pipelines;
    }
    finish_earlier(&plan, &options, screen).await?;
    let engine = begin(plan, options, screen).await?;
    if let Some(metrics) = &metrics {
        metrics.watch(engine.observer());
    }
    Ok(Started { engine, metrics })
}

/// What ran last, if it is known.
fn ran_last(options: &EngineOptions) -> anyhow::Result<Option<Plan>> {
    // A start beside a running instance is refused later, with its reason.
    if engine::is_running(&options.data) {
        return Ok(None);
    }
    let Some(ran) = engine::ran_last(&options.data)? else { return Ok(None) };
    Ok(files::load_earlier(&ran.files()).and_then(|before| ran.as_it_ran(before)))
}

/// Refuses a plan whose windows go to tables that have those of what ran last, and are others.
/// Where it is not known what ran last, the tables say it later, if they have rows.
fn refuse_other_windows(before: &Plan, plan: &Plan) -> anyhow::Result<()> {
    let conflicts = window_conflicts(&before.pipelines, &plan.pipelines);
    anyhow::ensure!(conflicts.is_empty(), conflicts.join("\n"));
    Ok(())
}

/// If other pipelines than these were killed, or from other places: runs those to the end of what
/// they had taken in. Where that fails it is said, and the start goes on: what is to be repaired
/// must not be in the way of its repair.
async fn finish_earlier(
    plan: &Plan,
    options: &EngineOptions,
    screen: &Arc<Screen>,
) -> anyhow::Result<()> {
    let Some(earlier) = engine::earlier(&options.data, plan)? else { return Ok(()) };
    let before = files::load_earlier(&earlier.files());
    let why = match before.and_then(|before| earlier.as_it_ran(before)) {
        None => "this version does not understand them as they were".to_owned(),
        Some(_) if !earlier.begin()? => "that has come to nothing three times".to_owned(),
        Some(before) => {
            eprintln!(
                "the pipelines, or where their messages come from, have changed since they were \
                 killed: what came in before is finished by them as they were"
            );
            let finished = finish(before, plan, options, screen).await;
            options.replaying.reset();
            match finished {
                Ok(()) if engine::earlier(&options.data, plan)?.is_none() => return Ok(()),
                Ok(()) => "they did not come to the end: is there room on the disk?".to_owned(),
                Err(error) => format!("{error:#}"),
            }
        }
    };
    eprintln!(
        "what came in before cannot be finished by the pipelines as they were ({why}): the change \
         is made as of the last checkpoint"
    );
    Ok(())
}

async fn finish(
    before: Plan,
    next: &Plan,
    options: &EngineOptions,
    screen: &Arc<Screen>,
) -> anyhow::Result<()> {
    let finishing = Some(next.notifications.clone());
    let options = EngineOptions { finishing, ..options.clone() };
    begin(before, options, screen).await?.shutdown().await.map(drop)
}

/// Starts an engine, with its progress, and says what it restored.
async fn begin(plan: Plan, options: EngineOptions, screen: &Arc<Screen>) -> anyhow::Result<Engine> {
    // A task of its own: a start works on its thread for long.
    let shown = tokio::spawn(show(Arc::clone(&options.replaying), Arc::clone(screen)));
    let started = Engine::start(plan, options).await;
    shown.abort();
    // Its end, so that it draws nothing after this.
    let _ = shown.await;
    screen.clear();
    let engine = started?;
    recovered(&engine, screen);
    Ok(engine)
}

async fn show(replaying: Arc<Replaying>, screen: Arc<Screen>) {
    let every = if screen.is_terminal() { DRAW_EVERY } else { LINE_EVERY };
    loop {
        tokio::time::sleep(every).await;
        let Some(now) = replaying.now().filter(|now| now.elapsed >= SHOW_AFTER) else { continue };
        match screen.is_terminal() {
            true => screen.draw(vec![summary::replaying(&now)]),
            false => eprintln!("{}", summary::replaying(&now)),
        }
    }
}

/// Says what a start found of an earlier run.
fn recovered(engine: &Engine, screen: &Screen) {
    // Runs over files say what they have read themselves.
    let Some(found) = engine.recovery() else { return };
    eprintln!("{}", summary::recovered(found));
    for damaged in &found.damaged {
        screen.print(&format!(
            "a damaged checkpoint was passed over, the one before is used: {damaged}"
        ));
    }
    if !found.rebuilt.is_empty() {
        let from = found.rebuilt_since_us.map_or("the first message".to_owned(), moment);
        screen.print(&format!("changed, rebuilt from {from}: {}", found.rebuilt.join(", ")));
    }
    let lost: Vec<&str> = found.changed.iter().map(String::as_str).collect();
    let lost: Vec<&str> =
        lost.into_iter().filter(|name| !found.rebuilt.iter().any(|r| r == name)).collect();
    if !lost.is_empty() {
        screen.print(&format!("changed, starting without state: {}", lost.join(", ")));
    }
}
