//! Topic templates: an MQTT topic filter whose segments can be captured as columns.
//!
//! `plant/{site}/{device}/telemetry` matches like `plant/+/+/telemetry`; `#` at the end takes any
//! number of further levels, `{name...}` at the end captures them as one column, slashes included.

use std::fmt;

/// One level of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Level {
    /// The level must be exactly this text.
    Literal(String),
    /// `+`: any one level, not kept.
    Any,
    /// `{name}`: any one non-empty level, kept as the column at this position in
    /// [`TopicTemplate::names`].
    Capture(usize),
    /// `#`, last only: this level and all below, also none; not kept.
    Rest,
    /// `{name...}`, last only: the rest of the topic, at least one level, kept.
    CaptureRest(usize),
}

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicTemplate {
    levels: Vec<Level>,
    names: Vec<String>,
}

/// Why a template cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The template has no characters.
    #[error("a topic template must not be empty")]
    Empty,
    /// `#` or `{name...}` before the last level.
    #[error("`{0}` takes all remaining levels, so it can only be the last one")]
    RestNotLast(String),
    /// Wildcard characters inside a level.
    #[error("`{0}`: `+` and `#` stand for whole levels")]
    PartialWildcard(String),
    /// A capture inside a level.
    #[error("`{0}`: a capture is a whole level, written `{{name}}`")]
    PartialCapture(String),
    /// A capture whose name is not an identifier.
    #[error("`{0}`: a capture needs a name of letters, digits and `_`, not starting with a digit")]
    BadName(String),
    /// Two captures of one name.
    #[error("the capture `{0}` appears twice")]
    Twice(String),
}

impl TopicTemplate {
    /// Parses a template.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        if text.is_empty() {
            return Err(TopicError::Empty);
        }
        let mut names: Vec<String> = Vec::new();
        let mut levels = Vec::new();
        let parts: Vec<&str> = text.split('/').collect();
        for (i, part) in parts.iter().enumerate() {
            let last = i + 1 == parts.len();
            let level = match *part {
                "+" => Level::Any,
                "#" => Level::Rest,
                p if p.starts_with('{') && p.ends_with('}') => {
                    let inner = &p[1..p.len() - 1];
                    let (name, rest) = match inner.strip_suffix("...") {
                        Some(name) => (name, true),
                        None => (inner, false),
                    };
                    if !is_identifier(name) {
                        return Err(TopicError::BadName((*part).to_owned()));
                    }
                    if names.iter().any(|n| n == name) {
                        return Err(TopicError::Twice(name.to_owned()));
                    }
                    names.push(name.to_owned());
                    let position = names.len() - 1;
                    if rest { Level::CaptureRest(position) } else { Level::Capture(position) }
                }
                p if p.contains(['{', '}']) => {
                    return Err(TopicError::PartialCapture(p.to_owned()));
                }
                p if p.contains(['+', '#']) => {
                    return Err(TopicError::PartialWildcard(p.to_owned()));
                }
                p => Level::Literal(p.to_owned()),
            };
            if matches!(level, Level::Rest | Level::CaptureRest(_)) && !last {
                return Err(TopicError::RestNotLast((*part).to_owned()));
            }
            levels.push(level);
        }
        Ok(Self { levels, names })
    }

    /// Names of the captures, in the order in which they appear.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The MQTT topic filter to subscribe to.
    pub fn filter(&self) -> String {
        let levels: Vec<&str> = self
            .levels
            .iter()
            .map(|l| match l {
                Level::Literal(s) => s.as_str(),
                Level::Any | Level::Capture(_) => "+",
                Level::Rest | Level::CaptureRest(_) => "#",
            })
            .collect();
        levels.join("/")
    }

    /// Matches `topic`; on success `captures` holds one slice per name. As MQTT demands (3.1.1,
    /// 4.7.2), wildcards at the first level do not match topics that start with `$`.
    pub fn matches<'a>(&self, topic: &'a str, captures: &mut Vec<&'a str>) -> bool {
        captures.clear();
        if topic.starts_with('$') && !matches!(self.levels[0], Level::Literal(_)) {
            return false;
        }
        let mut rest = Some(topic);
        for level in &self.levels {
            match level {
                Level::Rest => return true,
                Level::CaptureRest(_) => {
                    let Some(text) = rest else { return false };
                    captures.push(text);
                    return true;
                }
                _ => {}
            }
            let Some(text) = rest else { return false };
            let (part, tail) = match text.split_once('/') {
                Some((part, tail)) => (part, Some(tail)),
                None => (text, None),
            };
            rest = tail;
            match level {
                Level::Literal(s) if s == part => {}
                Level::Any => {}
                Level::Capture(_) if !part.is_empty() => captures.push(part),
                _ => return false,
            }
        }
        rest.is_none()
    }
}

impl fmt::Display for TopicTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, level) in self.levels.iter().enumerate() {
            if i > 0 {
                f.write_str("/")?;
            }
            match level {
                Level::Literal(s) => f.write_str(s)?,
                Level::Any => f.write_str("+")?,
                Level::Rest => f.write_str("#")?,
                Level::Capture(n) => write!(f, "{{{}}}", self.names[*n])?,
                Level::CaptureRest(n) => write!(f, "{{{}...}}", self.names[*n])?,
            }
        }
        Ok(())
    }
}

/// Whether `name` is letters, digits and `_`, not starting with a digit.
pub fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether some topic matches both MQTT filters.
pub fn filters_meet(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('/'), other.split('/'));
    loop {
        match (one.next(), other.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (None, _) | (_, None) => return false,
            (Some(a), Some(b)) if a == b || a == "+" || b == "+" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captures<'a>(template: &str, topic: &'a str) -> Option<Vec<&'a str>> {
        let mut out = Vec::new();
        TopicTemplate::parse(template)
            .expect("valid template")
            .matches(topic, &mut out)
            .then_some(out)
    }

    #[test]
    fn levels_become_captures() {
        assert_eq!(captures("plant/{site}/{device}/t", "plant/a/d1/t"), Some(vec!["a", "d1"]));
        assert_eq!(captures("plant/{site}/#", "plant/a"), Some(vec!["a"]));
        assert_eq!(captures("plant/{site}/#", "plant/a/b/c"), Some(vec!["a"]));
        assert_eq!(captures("plant/{rest...}", "plant/a/b"), Some(vec!["a/b"]));
        assert_eq!(captures("plant/{rest...}", "plant"), None);
        assert_eq!(captures("plant/{site}/t", "plant//t"), None);
        assert_eq!(captures("plant/+/t", "plant//t"), Some(vec![]));
        assert_eq!(captures("plant/{site}", "plant/a/b"), None);
        assert_eq!(captures("#", "$SYS/broker"), None);
    }

    #[test]
    fn a_template_is_also_a_filter() {
        let t = TopicTemplate::parse("a/{b}/+/{c...}").expect("valid");
        assert_eq!(t.filter(), "a/+/+/#");
        assert_eq!(t.to_string(), "a/{b}/+/{c...}");
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(TopicTemplate::parse("a/#/b"), Err(TopicError::RestNotLast("#".into())));
        let partial = Err(TopicError::PartialCapture("{b}.csv".into()));
        assert_eq!(TopicTemplate::parse("a/{b}.csv"), partial);
        assert_eq!(TopicTemplate::parse("a/b+"), Err(TopicError::PartialWildcard("b+".into())));
        assert_eq!(TopicTemplate::parse("{a}/{a}"), Err(TopicError::Twice("a".into())));
        assert_eq!(TopicTemplate::parse("{1}"), Err(TopicError::BadName("{1}".into())));
    }

    #[test]
    fn filters_meet_if_a_topic_matches_both() {
        let yes = [("a/#", "a/b"), ("a/+", "+/b"), ("#", "x"), ("a/#", "a"), ("a/+/c", "a/b/#")];
        let no = [("a/+", "a/b/c"), ("a/b", "a/c"), ("a/+/c", "a/b/d"), ("a", "a/b")];
        for (one, other) in yes {
            assert!(filters_meet(one, other) && filters_meet(other, one), "{one} {other}");
        }
        for (one, other) in no {
            assert!(!filters_meet(one, other) && !filters_meet(other, one), "{one} {other}");
        }
    }
}
