//! `[source] type = "file"`.

use tidegate_operators::topic::TopicTemplate;

use crate::config::problem::{At, Reporter};
use crate::config::references::Resolver;
use crate::config::section::Section;
use crate::plan::{FileSpec, SourceKind, SourceSpec};

pub(super) fn file(
    source: &Section<'_>,
    topics: &[(TopicTemplate, At)],
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<SourceSpec> {
    let path = source.resolved("path", resolve, report)?;
    let topic = source.text("topic").unwrap_or(&path).to_owned();
    let mut captures = Vec::new();
    if !topics.iter().any(|(t, _)| t.matches(&topic, &mut captures)) {
        let message = format!("no topic template matches `{topic}`, so nothing would be read");
        let hint = "change `topic` or `topics`".to_owned();
        report.error(source.at("topics"), message, hint);
    }
    Some(SourceSpec {
        name: format!("file {path}"),
        kind: SourceKind::File(FileSpec { path: path.into(), topic }),
    })
}
