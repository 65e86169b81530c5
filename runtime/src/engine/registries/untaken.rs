//! Rows of a file that are not taken, as one text for each time that it is read. Each of them is a
//! row of `system.rejects` besides.

use std::collections::HashSet;

use tidegate_pipelines::plan::RegistrySource;

use super::check::Checker;
use super::diff::{Checked, Known, Said, row_of};
use super::what;

/// How many rows are not taken, and why the first of them is not. `known` is what is known after
/// the file.
pub(super) fn untaken(
    (source, checker): (&RegistrySource, &mut Checker),
    known: &Known,
    (file, refused): Checked<'_>,
) -> Option<String> {
    if known.odd.is_empty() {
        return None;
    }
    let (mut count, mut first, mut names) = (0_u64, None, HashSet::new());
    let messages = file.iter().flat_map(|m| (0..m.len()).map(move |i| (m, i)));
    for (number, (messages, i)) in messages.enumerate() {
        let why = match row_of(source, messages, i) {
            Err((_, Said::Refused { why, .. })) => why,
            Ok((Some(name), _)) if !refused.contains(&number) && names.insert(name.clone()) => {
                continue;
            }
            Ok((Some(_), _)) if !refused.contains(&number) => {
                "a row before it has the same key".to_owned()
            }
            Ok((_, text)) if first.is_none() => checker.why(text),
            _ => String::new(),
        };
        count += 1;
        first.get_or_insert_with(|| format!("row {}: {why}", number + 1));
    }
    let rows = if count == 1 { "1 row is" } else { &format!("{count} rows are") };
    let first = first.map(|first| format!("{rows} not taken, the first is {first}"));
    first.map(|text| format!("{}: {text}", source.place.shown()))
}

/// Tells of rows that are not taken.
pub(super) fn tell(source: &RegistrySource, untaken: Option<String>) {
    if let Some(text) = untaken {
        let rest = "what was known of their keys stays; system.rejects has them";
        tracing::warn!("{}: {text}; {rest}", what(source));
    }
}
