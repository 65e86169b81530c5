//! What topic filters mean to each other: one matches a topic, or covers another one wholly. Exact, because a filter that is granted by mistake is a leak.
//!
//! `+` and `#` at the first level do not match topics that begin with `$`, here as in MQTT.

/// Whether this is a topic filter (not a shared one).
pub(crate) fn is_filter(text: &str) -> bool {
    let mut levels = text.split('/').peekable();
    while let Some(level) = levels.next() {
        let last = levels.peek().is_none();
        let good = match level {
            "+" => true,
            "#" => last,
            other => !other.contains(['+', '#', '\0']),
        };
        if !good {
            return false;
        }
    }
    !text.is_empty() && text.len() <= usize::from(u16::MAX)
}

/// The filter of a subscription: without `$share/GROUP/`. `None` if it is no valid subscription.
pub(crate) fn without_share(subscription: &str) -> Option<&str> {
    let filter = match subscription.split_once('/') {
        Some(("$share", rest)) => {
            let (group, filter) = rest.split_once('/')?;
            if group.is_empty() || group.contains(['+', '#', '\0']) {
                return None;
            }
            filter
        }
        None if subscription == "$share" => return None,
        _ => subscription,
    };
    is_filter(filter).then_some(filter)
}

/// Whether a topic matches.
pub(crate) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut levels, mut names) = (filter.split('/'), topic.split('/'));
    loop {
        match (levels.next(), names.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some(level), Some(name)) if level == "+" || level == name => {}
            _ => return false,
        }
    }
}

/// Whether every topic that matches `narrow` matches `wide`.
pub(crate) fn covers(wide: &str, narrow: &str) -> bool {
    if narrow.starts_with('$') && wide.starts_with(['+', '#']) {
        return false;
    }
    // Every topic has a first level, so these two mean the same.
    if narrow == "#" && wide == "+/#" {
        return true;
    }
    let (mut wides, mut narrows) = (wide.split('/'), narrow.split('/'));
    loop {
        match (wides.next(), narrows.next()) {
            // Also where `narrow` has ended: `a/#` matches `a`.
            (Some("#"), _) | (None, None) => return true,
            // `#` matches its parent too, for which `+` has no level.
            (_, Some("#")) => return false,
            (Some(wide), Some(narrow)) if wide == "+" || wide == narrow => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Matching as the standard words it, level by level and by recursion.
    fn oracle(filter: &[&str], topic: &[&str], first: bool) -> bool {
        match (filter.split_first(), topic.split_first()) {
            (None, None) => true,
            (Some((&"#", _)), None) => true,
            (Some((&"#", _)), Some((name, _))) => !(first && name.starts_with('$')),
            (Some((&"+", rest)), Some((name, names))) => {
                !(first && name.starts_with('$')) && oracle(rest, names, false)
            }
            (Some((level, rest)), Some((name, names))) => {
                level == name && oracle(rest, names, false)
            }
            _ => false,
        }
    }

    /// All texts of up to `depth` levels out of `words`.
    fn texts(words: &[&'static str], depth: usize) -> Vec<Vec<&'static str>> {
        let mut all: Vec<Vec<&'static str>> = vec![];
        let mut longest: Vec<Vec<&'static str>> = vec![vec![]];
        for _ in 0..depth {
            longest = longest
                .iter()
                .flat_map(|text| words.iter().map(|w| [text.as_slice(), &[*w]].concat()))
                .collect();
            all.extend(longest.iter().cloned());
        }
        all
    }

    #[test]
    fn every_pair_of_filters_agrees_with_all_topics() {
        // One level more than filters have, so that `#` shows; "z" is in no filter, so that `+`
        // differs from all its names together. The empty topic does not exist, but counts here:
        // without it some pairs would need rules of their own.
        let topics = texts(&["a", "b", "$s", "", "z"], 4);
        let filters: Vec<_> = texts(&["a", "b", "$s", "", "+", "#"], 3)
            .into_iter()
            .filter(|levels| is_filter(&levels.join("/")))
            .collect();
        assert_eq!((topics.len(), filters.len()), (5 + 25 + 125 + 625, 6 + 30 + 150 - 1));
        let sets: Vec<(String, Vec<bool>)> = filters
            .iter()
            .map(|filter| {
                let text = filter.join("/");
                let set: Vec<bool> =
                    topics.iter().map(|topic| oracle(filter, topic, true)).collect();
                for (topic, wanted) in topics.iter().zip(&set) {
                    let topic = topic.join("/");
                    assert_eq!(matches(&text, &topic), *wanted, "{text} matches {topic}");
                }
                (text, set)
            })
            .collect();
        for (wide, in_wide) in &sets {
            for (narrow, in_narrow) in &sets {
                let pairs = || in_wide.iter().zip(in_narrow);
                let covered = pairs().all(|(wide, narrow)| *wide || !*narrow);
                assert_eq!(covers(wide, narrow), covered, "{wide} covers {narrow}");
            }
        }
    }

    #[test]
    fn shared_subscriptions_are_their_filter() {
        assert_eq!(without_share("$share/g/a/+"), Some("a/+"));
        assert_eq!(without_share("$share/g//"), Some("/"));
        assert_eq!(without_share("$shared/g/a"), Some("$shared/g/a"));
        for bad in ["$share", "$share/g", "$share//a", "$share/g/", "$share/+/a", "$share/#", ""] {
            assert_eq!(without_share(bad), None, "{bad}");
        }
        for bad in ["a+", "a/#/b", "#a", "a\0", ""] {
            assert!(!is_filter(bad), "{bad}");
        }
    }
}
