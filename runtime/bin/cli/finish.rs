//! What `demo` and `run` do alike: show the summary until the end, stop cleanly, print totals.

use tidegate_runtime::engine::Engine;
use tidegate_runtime::screen::Screen;
use tidegate_runtime::summary::{self, Picture, Summary};
use tokio::time::{MissedTickBehavior, interval};

use super::stop::{Reason, Stop};

/// Shows the summary until the run ends: by a signal, by time, or because the engine ended.
pub(super) async fn watch(
    engine: &mut Engine,
    summary: &mut Summary,
    screen: &Screen,
    stop: &mut Stop,
) -> anyhow::Result<()> {
    let mut timer = interval(summary::every(screen));
    timer.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut trouble = None;
    let reason = loop {
        tokio::select! {
            biased;
            reason = stop.wait() => break Ok(reason),
            ended = engine.ended() => break Err(ended),
            _ = timer.tick() => {
                engine.refresh();
                tell_trouble(engine, screen, &mut trouble);
                summary.show(screen);
            }
        }
    };
    screen.release();
    let reason = match reason {
        Ok(reason) => reason,
        Err(ended) => return ended,
    };
    let why = match reason {
        Reason::Signal => "stopping",
        Reason::Time => "time is over",
    };
    screen.print(&format!("{why}: finishing what was acknowledged (Ctrl-C ends it at once)"));
    if let Some(trouble) = engine.unhealthy() {
        screen.print(&format!(
            "that must wait for the end of the trouble: {trouble}\n\
             (ending at once loses nothing: the next start goes on from the journal)"
        ));
    }
    Ok(())
}

/// Prints what is wrong with a source when it begins and when it is over, not all the time.
fn tell_trouble(engine: &Engine, screen: &Screen, last: &mut Option<String>) {
    let now = engine.unhealthy();
    if now != *last {
        match &now {
            Some(trouble) => screen.print(&format!("trouble: {trouble}")),
            None => screen.print("the trouble is over"),
        }
        *last = now;
    }
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
