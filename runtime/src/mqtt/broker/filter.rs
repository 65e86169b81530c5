//! Topic filters: what is valid, what is shared, what matches.

use super::super::limits::{TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX};

/// A filter without its group, and the group if it is shared.
pub(super) fn split_shared(filter: &str) -> Option<(Option<&str>, &str)> {
    let Some(rest) = filter.strip_prefix("$share/") else { return Some((None, filter)) };
    let (group, filter) = rest.split_once('/')?;
    // A group without characters or with wildcards is not allowed (4.8.2-1, 4.8.2-2).
    let valid = !group.is_empty() && !group.contains(['+', '#']) && !filter.is_empty();
    valid.then_some((Some(group), filter))
}

/// The group of a shared subscription.
pub(crate) fn shared_group(filter: &str) -> Option<&str> {
    split_shared(filter)?.0
}

/// Whether a filter may be subscribed to (4.7.1-1 to 4.7.3-3 and our bounds).
pub(crate) fn is_valid_filter(filter: &str) -> bool {
    let Some((_, filter)) = split_shared(filter) else { return false };
    if filter.is_empty() || filter.len() > TOPIC_BYTES_MAX || filter.contains('\0') {
        return false;
    }
    let levels = filter.split('/').count();
    let whole = |level: &str| level.len() == 1 || !level.contains(['+', '#']);
    levels <= TOPIC_LEVELS_MAX
        && filter
            .split('/')
            .enumerate()
            .all(|(i, level)| whole(level) && (level != "#" || i + 1 == levels))
}

/// Whether a topic matches a valid filter without group.
pub(super) fn matches(filter: &[u8], topic: &[u8]) -> bool {
    // A leading wildcard does not match topics of the server's own (4.7.2-1).
    if topic.first() == Some(&b'$') && matches!(filter.first(), Some(b'+' | b'#')) {
        return false;
    }
    let mut topic = topic.split(|b| *b == b'/');
    for level in filter.split(|b| *b == b'/') {
        if level == b"#" {
            return true;
        }
        match topic.next() {
            Some(name) if level == b"+" || level == name => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}
