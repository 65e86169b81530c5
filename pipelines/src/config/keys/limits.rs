//! `[limits]` in the table of keys, and those of its keys that a step can have for itself.

use super::super::kinds::{Component, Key, Kind};

/// Most keys that can be asked for: a step with more belongs on more machines.
const KEYS_MAX: i64 = 1_000_000_000;

const UNBOUNDED: Kind = Kind::OneOf(&["refuse", "allow"]);

const AT_KEYS_MAX: Kind = Kind::OneOf(&["reject", "stop"]);

pub(super) const STEP_KEYS_MAX: Key = Key::new(
    "keys_max",
    Kind::Int(1, KEYS_MAX),
    "Most keys at a time; if absent, as in `[limits]`.",
    "20000",
);
pub(super) const STEP_AT_KEYS_MAX: Key = Key::new(
    "at_keys_max",
    AT_KEYS_MAX,
    "What happens with rows of further new keys; if absent, as in `[limits]`.",
    "\"stop\"",
);
pub(super) const STEP_FORGET_AFTER: Key = Key::new(
    "forget_after",
    Kind::Duration,
    "A key that is silent for this long (in receive time) is forgotten; if absent, as in \
     `[limits]`.",
    "\"30d\"",
);

pub(super) const STEP_UNBOUNDED: Key = Key::new(
    "unbounded",
    UNBOUNDED,
    "What happens if the state of the step has no bound; if absent, as in `[limits]`.",
    "\"allow\"",
);

pub(crate) static LIMITS: Component = Component {
    id: "limits",
    heading: "[limits]",
    tag: None,
    doc: "How much is kept in memory. Windows forget a key once they cannot be revised any more, \
          and alerts put it away while it is normal, without a difference to any row; detectors \
          forget what they have learnt of it after `forget_after`. A step refuses new keys at \
          `keys_max`; which ones does not depend on the number of workers or on restarts: keys \
          are dealt to 256 groups by a hash, and a group takes its share and so much more that no \
          fleet of `keys_max` keys is refused one of them. `devices`, `reading_every` and \
          `text_size` refuse nothing: with them, `tidegate explain` shows how much memory each \
          step can need, and `tidegate check` how much all of them.",
    keys: &[
        Key::new(
            "keys_max",
            Kind::Int(1, KEYS_MAX),
            "Keys of each step at a time that always find a place; a step can say otherwise. \
             Chance deals keys to the groups unevenly, so some more do: 12 % of a million, 140 % \
             of 10,000, and 256 times a handful.",
            "20000",
        )
        .default("1000000"),
        Key::new(
            "at_keys_max",
            AT_KEYS_MAX,
            "What happens with rows of further new keys: they are rows of `system.rejects` (reason \
             `keys_max`), counted, and an alert of the engine; or the process stops.",
            "\"reject\"",
        )
        .default("reject"),
        Key::new(
            "at_memory_max",
            Kind::OneOf(&["reject", "wait"]),
            "What happens with rows of new keys while the memory of the process is used up \
             (`memory_max` of the process): they are rows of `system.rejects` (reason \
             `memory_max`), counted, and an alert of the engine; or they find a place all the \
             same, and sources wait if memory does not suffice. Known keys go on. A step that \
             reads the rows of another step with keys refuses none: its keys are known.",
            "\"reject\"",
        )
        .default("reject"),
        Key::new(
            "forget_after",
            Kind::Duration,
            "What a detector has learnt of a key that is silent for this long (in receive time) is \
             forgotten: the key is new when it comes back.",
            "\"7d\"",
        )
        .default("7d"),
        Key::new(
            "devices",
            Kind::Int(1, KEYS_MAX),
            "How many devices there are at most; if absent, as many as a step may have keys.",
            "500",
        ),
        Key::new(
            "reading_every",
            Kind::Duration,
            "A device has a reading so often at most. Needed where state grows with readings: \
             windows whose bounds come from them, and aggregates that keep them.",
            "\"10s\"",
        ),
        Key::new(
            "text_size",
            Kind::Size,
            "How long names of devices and other texts in state are taken to be.",
            "\"32B\"",
        )
        .default("32B"),
        Key::new(
            "unbounded",
            UNBOUNDED,
            "What happens if the state of a step has no bound.",
            "\"allow\"",
        )
        .default("refuse"),
    ],
};
