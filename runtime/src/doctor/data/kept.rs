//! The part of the pipelines that are kept: whether a start would know what ran before.

use super::super::report::Report;
use super::{Scene, VERDICTS};
use crate::engine::earlier::{self, FILE};

/// `None` if there is none, as of a folder on which nothing ran yet.
pub(super) fn examine(scene: &Scene<'_>) -> Option<Report> {
    let path = scene.data.join(FILE);
    let damage = earlier::damage(scene.data).transpose()?;
    let mut report = Report::new(&scene.subject(FILE), VERDICTS);
    match damage {
        Ok(()) => report.ok("pipelines", "what ran last can be read"),
        Err(why) => {
            let change = "start with the pipelines that ran last: it is written anew";
            report.fail("pipelines", &format!("it cannot be used: {why}"), &[change]);
            report.means(
                "a start does not know what ran before: with other pipelines, what a killed \
                 process left is worked through by these, and messages from where they do not \
                 read refuse it",
            );
            report.at(path.display().to_string(), None, None);
        }
    }
    Some(report)
}
