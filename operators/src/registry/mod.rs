//! Registries: what is known of devices, sites or models, in versions that hold from a time on.
//!
//! What a registry says reaches the journal as messages ([`put`]), one per row that changed, in the
//! same epochs as readings; so a replay, a backtest and any number of workers see the same. Here
//! they become changes ([`RegistryDecoder`]), and changes become the history of a key
//! ([`History`]), which is the same whatever order they came in, as far as each says since when it
//! holds.
//!
//! Where a registry is a topic, its messages are in the journal as they were received; `entries`
//! reads them. Then the order in which they were journaled is what is right.

mod bound;
mod decode;
mod entries;
mod history;
mod refused;
pub(crate) mod save;
mod told;
mod versions;

pub(crate) use self::bound::versions_bytes;
pub use self::decode::{ROW_BYTES_MAX, RegistryDecoder};
pub(crate) use self::history::{ChangeRows, History, Span, Version, refused_entries};
pub use self::refused::{REFUSED_MAX, Refused, heard_schema};
pub(crate) use self::told::{ToldRows, VersionsTold};
pub use self::versions::Versions;

use crate::message::{MessageMeta, MessagesBuilder};
use crate::properties::{self, Property};

/// User property of a journaled message: what it does.
const DOES: &str = "change";
/// User property of a journaled message: since when it holds, microseconds since the Unix epoch.
const SINCE: &str = "valid_from";

/// What a message does to a registry. The texts are in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The row holds from its time on.
    Set,
    /// There is nothing of the key from that time on.
    Remove,
    /// The version that holds from that time on was never true.
    Withdraw,
    /// The row was received at that time: it holds from then on, and the first of a key since ever.
    Receive,
    /// From then on, nobody says anything of the key any more.
    Drop,
    /// The row is remembered from before: it counts only where nothing is known of the key, or,
    /// where rows say since when they hold, of that time. What is known came later.
    Recall,
    /// Likewise, that there is nothing of the key from that time on.
    RecallGone,
}

impl Change {
    /// Whether there is a row, and not only a key.
    fn has_row(self) -> bool {
        matches!(self, Self::Set | Self::Receive | Self::Recall)
    }

    /// Its text.
    pub fn text(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Remove => "remove",
            Self::Withdraw => "withdraw",
            Self::Receive => "receive",
            Self::Drop => "drop",
            Self::Recall => "recall",
            Self::RecallGone => "recall_gone",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "remove" => Self::Remove,
            "withdraw" => Self::Withdraw,
            "receive" => Self::Receive,
            "drop" => Self::Drop,
            "recall" => Self::Recall,
            "recall_gone" => Self::RecallGone,
            _ => Self::Set,
        }
    }
}

/// Appends a change of a registry to what is offered to the journal. `topic` is
/// [`crate::spec::registry_topic`], `row` a JSON object with the columns of the row (of its key, if
/// it goes). `since_us` is since when it holds, if the row itself does not say so; `None`: since
/// ever.
pub fn put(
    out: &mut MessagesBuilder,
    topic: &str,
    change: Change,
    row: &[u8],
    since_us: Option<i64>,
    received_us: i64,
) {
    let since = since_us.map(|us| us.to_string());
    let user = |name: &str| Property::User(name.to_owned());
    let (does, from) = (user(DOES), user(SINCE));
    let mut about = vec![(&does, change.text().as_bytes())];
    about.extend(since.as_ref().map(|text| (&from, text.as_bytes())));
    let properties = properties::encode(about);
    let meta = MessageMeta { received_us, event: true, ..MessageMeta::default() };
    out.push_with(topic.as_bytes(), row, &[], &properties, meta);
}

/// Appends a row that the edge cannot use: it becomes a row of `system.rejects`.
pub fn put_refused(
    out: &mut MessagesBuilder,
    topic: &str,
    row: &[u8],
    why: &str,
    received_us: i64,
) {
    let meta = MessageMeta { received_us, event: true, refused: true, ..MessageMeta::default() };
    out.push_with(topic.as_bytes(), row, &[], why.as_bytes(), meta);
}

#[cfg(test)]
mod tests;
