//! What `demo` and `run` do alike: show the summary until the end comes, stop cleanly, print totals.

use tidegate_runtime::engine::Engine;
use tidegate_runtime::screen::Screen;
use tidegate_runtime::summary::{self, Picture, Summary};

use super::stop::{Reason, Stop};

/// Shows the summary until the run ends: by a signal, by time, or because the engine ended.
pub(super) async fn watch(
    engine: &mut Engine,
    summary: &mut Summary,
    screen: &Screen,
    stop: &mut Stop,
) -> anyhow::Result<()> {
    let reason = tokio::select! {
        () = summary.run(screen) => None,
        reason = stop.wait() => Some(Ok(reason)),
        ended = engine.ended() => Some(Err(ended)),
    };
    screen.release();
    match reason {
        Some(Ok(Reason::Signal)) => {
            screen.print("stopping: finishing what was acknowledged (Ctrl-C again: at once)");
        }
        Some(Ok(Reason::Time)) => screen.print("time is over: finishing what was acknowledged"),
        Some(Err(ended)) => return ended,
        None => {}
    }
    Ok(())
}

/// Prints the totals; as JSON too, if asked for.
pub(super) fn totals(screen: &Screen, picture: &Picture, json: bool, hint: &str) {
    screen.print("");
    for line in summary::totals(picture) {
        screen.print(&line);
    }
    screen.print(hint);
    if json {
        screen.print(&summary::json(picture).to_string());
    }
}
