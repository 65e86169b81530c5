//! The manifest of a checkpoint: what makes it visible. Format 5; format 4, whose parts are of
//! their format 2, format 3, which did not say what the logs of tables have, and format 2, which
//! had no rules either, are read as well.
//!
//! One line of JSON, then a line with its CRC-32. Unknown fields are an error: whoever writes more
//! must write another format.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_operators::key::KEY_GROUPS;
use tidegate_operators::{Epoch, GroupSet};

/// Version of the format.
pub const FORMAT: u32 = 5;
/// The oldest version that can be read.
const FORMAT_MIN: u32 = 2;

/// What is in a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// State as it was when this epoch was complete.
    pub epoch: Epoch,
    /// Which run of the instance wrote it.
    pub incarnation: u64,
    /// Tick time of the epoch, microseconds since the Unix epoch.
    pub time_us: i64,
    /// Where the journal goes on after it.
    pub journal: JournalPosition,
    /// Fingerprint of each pipeline, 16 hexadecimal digits.
    pub pipelines: BTreeMap<String, String>,
    /// Content id of each operator that has state, 16 hexadecimal digits.
    pub operators: BTreeMap<String, String>,
    /// The epoch through which each table has all of its rows.
    pub tables: BTreeMap<String, Epoch>,
    /// The newest epoch that the log of each table said at least; epochs without rows are in none.
    #[serde(default)]
    pub logged: BTreeMap<String, Epoch>,
    /// Files that hold the state.
    pub parts: Vec<PartRef>,
    /// Alert rules, `pipeline/alert/rule`.
    #[serde(default)]
    pub rules: BTreeMap<String, Rule>,
    /// Rules that were removed or replaced, as they were: by the epoch to which the rows that end
    /// their alerts belong.
    #[serde(default)]
    pub ended: BTreeMap<Epoch, BTreeMap<String, Rule>>,
}

/// What is told of an alert rule's events, and to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// `severity` of its events.
    pub severity: String,
    /// Targets in the outbox.
    pub targets: Vec<String>,
    /// The first epoch in which this rule, and not one before it of the same name, tells anything;
    /// 0: always.
    pub since_epoch: Epoch,
}

/// Where epoch + 1 begins in the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalPosition {
    /// Name of the segment file; empty where there is no journal.
    pub segment: String,
    /// Offset of its first message.
    pub offset: u64,
}

/// A part file, and which of its groups count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartRef {
    /// The operator, `pipeline/step`.
    pub operator: String,
    /// Name of the file.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// CRC-32 of all of it.
    pub crc32: u32,
    /// Rows in it.
    pub rows: u64,
    /// Number of groups in it.
    pub written: u16,
    /// The groups that no newer file has: first and last of each run.
    pub groups: Vec<(u16, u16)>,
}

impl PartRef {
    /// The groups that count.
    pub fn group_set(&self) -> GroupSet {
        let mut set = GroupSet::default();
        for (first, last) in &self.groups {
            set.extend(*first..=(*last).min(KEY_GROUPS - 1));
        }
        set
    }
}

/// A set as runs.
pub fn runs(set: &GroupSet) -> Vec<(u16, u16)> {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for group in set.iter() {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == group => *last = group,
            _ => runs.push((group, group)),
        }
    }
    runs
}

/// Why a manifest cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It is not what was written.
    Damaged(String),
    /// It is sound, but of another version of the format.
    OtherFormat(u32),
}

impl From<&str> for Unusable {
    fn from(reason: &str) -> Self {
        Self::Damaged(reason.to_owned())
    }
}

#[derive(Serialize, Deserialize)]
struct Seal {
    crc32: u32,
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// The text of a manifest.
///
/// # Errors
/// None that a manifest can have.
pub fn encode(manifest: &Manifest) -> Result<String, serde_json::Error> {
    let line = serde_json::to_string(manifest)?;
    let seal = serde_json::to_string(&Seal { crc32: crc32fast::hash(line.as_bytes()) })?;
    Ok(format!("{line}\n{seal}\n"))
}

/// Reads the text of a manifest.
///
/// # Errors
/// What is wrong with it.
pub fn decode(text: &str) -> Result<Manifest, Unusable> {
    let (line, rest) = text.split_once('\n').ok_or("the manifest is cut off")?;
    let seal: Seal =
        serde_json::from_str(rest).map_err(|_| "the manifest has no valid checksum")?;
    if seal.crc32 != crc32fast::hash(line.as_bytes()) {
        return Err("the checksum of the manifest is wrong".into());
    }
    let version: Version = serde_json::from_str(line).map_err(|_| "the manifest says no format")?;
    if !(FORMAT_MIN..=FORMAT).contains(&version.format) {
        return Err(Unusable::OtherFormat(version.format));
    }
    serde_json::from_str(line).map_err(|error| Unusable::Damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part() -> impl Strategy<Value = PartRef> {
        let groups = prop::collection::btree_set(0u16..KEY_GROUPS, 0..30);
        ("[a-z/]{1,9}", "[a-z0-9.]{1,9}", any::<(u64, u32, u64)>(), groups).prop_map(
            |(operator, file, (bytes, crc32, rows), groups)| {
                let mut set = GroupSet::default();
                set.extend(groups);
                PartRef { operator, file, bytes, crc32, rows, written: 9, groups: runs(&set) }
            },
        )
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let targets = prop::collection::vec("[a-z/]{1,9}", 0..3);
        ("[a-z]{1,9}", targets, any::<u64>()).prop_map(|(severity, targets, since_epoch)| Rule {
            severity,
            targets,
            since_epoch,
        })
    }

    fn names<T: std::fmt::Debug>(
        values: impl Strategy<Value = T>,
    ) -> impl Strategy<Value = BTreeMap<String, T>> {
        prop::collection::btree_map("[a-zä/ \"]{0,9}", values, 0..4)
    }

    proptest! {
        #[test]
        fn it_comes_back_and_damage_shows(
            (epoch, incarnation, time_us, offset) in any::<(u64, u64, i64, u64)>(),
            segment in "[a-z0-9-]{0,20}",
            pipelines in names("[0-9a-f]{16}"),
            operators in names("[0-9a-f]{16}"),
            tables in names(any::<u64>()),
            logged in names(any::<u64>()),
            parts in prop::collection::vec(part(), 0..4),
            rules in names(rule()),
            ended in prop::collection::btree_map(any::<u64>(), names(rule()), 0..3),
            at in any::<prop::sample::Index>(),
        ) {
            let journal = JournalPosition { segment, offset };
            let manifest = Manifest {
                format: FORMAT, epoch, incarnation, time_us, journal, pipelines, operators, tables,
                logged, parts, rules, ended,
            };
            let text = encode(&manifest).expect("it can be written");
            prop_assert_eq!(decode(&text), Ok(manifest));
            let at = at.index(text.len() - 1);
            let mut torn = text.clone().into_bytes();
            torn[at] ^= 1;
            if let Ok(torn) = String::from_utf8(torn) {
                prop_assert!(decode(&torn).is_err(), "at {at}");
            }
            if let Some(cut) = text.get(..at) {
                prop_assert!(decode(cut).is_err());
            }
        }
    }

    #[test]
    fn another_format_is_told_from_damage() {
        let line = r#"{"format":1,"epoch":7,"parts":[],"meta":null}"#;
        let text = format!("{line}\n{{\"crc32\":{}}}\n", crc32fast::hash(line.as_bytes()));
        assert_eq!(decode(&text), Err(Unusable::OtherFormat(1)));
        assert!(matches!(decode(line), Err(Unusable::Damaged(_))));
        let [logged, rules] = [",\"logged\":{}", ",\"rules\":{},\"ended\":{}"];
        for (format, lacks) in [(3, &[logged][..]), (2, &[logged, rules][..])] {
            let before = Manifest { format, epoch: 7, ..Manifest::default() };
            let text = encode(&before).expect("it can be written");
            let mut line = text.lines().next().expect("a line").to_owned();
            for field in lacks {
                assert!(line.contains(field), "{line}");
                line = line.replace(field, "");
            }
            let text = format!("{line}\n{{\"crc32\":{}}}\n", crc32fast::hash(line.as_bytes()));
            assert_eq!(decode(&text), Ok(before), "what an earlier version wrote");
        }
    }
}
