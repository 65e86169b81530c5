//! Keys of `[[step]]` with `type = "window"`.

use super::limits::{STEP_AT_KEYS_MAX, STEP_KEYS_MAX, STEP_UNBOUNDED};
use super::steps::{BY_WINDOW, DISORDER, IDLE_CLOSE, STEP_FROM, STEP_NAME};
use crate::config::kinds::{Component, Key, Kind};

/// Most readings of a window that is made of a number of them.
const COUNT_MAX: i64 = 1_000_000;

/// The words of `every`.
const CALENDAR: [&str; 5] = ["day", "week", "month", "quarter", "year"];

/// The words of `week_start`, from Monday.
pub(crate) const WEEKDAYS: [&str; 7] =
    ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

static ZONE: Component = Component {
    id: "step.window.zone",
    heading: "zone",
    tag: None,
    doc: "Each key has the zone that a column names, such as one that a step `enrich` has added. \
          The column is part of the key, so a key whose zone changes is another one from then on. \
          A row whose zone is null or unknown is a row of `system.rejects` (`zone`).",
    keys: &[Key::new("column", Kind::Name, "The column with the name of the zone.", "\"zone\"")
        .required()],
};

pub(super) static WINDOW: Component = Component {
    id: "step.window",
    heading: "[[step]]",
    tag: Some("window"),
    doc: "Aggregates over windows of event time. The output has the key, `window_start`, \
          `window_end`, the selected columns, `rows` (readings in it) and `revision` (0 at first). \
          Which windows there are says one of: `every`; `size` and `slide`; `shifts`; `gap` \
          (sessions); `count`; `while`, or `begin` and `until` (states); `before` and `after` \
          (around each reading). The last four are over the readings of a key in the order of \
          their times. The clock of a key that is silent for `idle_close` goes on with the time \
          of arrival.",
    keys: &[
        STEP_NAME,
        STEP_FROM,
        Key::new(
            "every",
            Kind::DurationOr(&CALENDAR),
            "Length of windows that follow each other (tumbling), or a word: days, weeks, months, \
             quarters or years on the clocks of `zone`, so that a day can have 23 or 25 hours.",
            "\"1m\"",
        ),
        Key::new(
            "zone",
            Kind::Zone(&ZONE),
            "Whose clocks `every = \"day\"` (or a longer word) and `shifts` go by: the name of a \
             zone in the IANA database. A window begins when the clocks first show its beginning, \
             or, where that time is skipped, with the end of the gap.",
            "\"Europe/Berlin\"",
        ),
        Key::new("week_start", Kind::OneOf(&WEEKDAYS), "The first day of a week.", "\"monday\"")
            .default("monday"),
        Key::new(
            "shifts",
            Kind::TimesOfDay,
            "Shifts of every day by the clocks of `zone`, in their order, each until the next \
             begins, the last until the first of the next day. The output has a column `shift` \
             with the name.",
            "{ early = \"06:00\", late = \"14:00\", night = \"22:00\" }",
        ),
        Key::new("size", Kind::Duration, "Length of windows that overlap (hopping).", "\"1m\""),
        Key::new(
            "slide",
            Kind::Duration,
            "Distance of the starts of windows that overlap.",
            "\"10s\"",
        ),
        Key::new(
            "offset",
            Kind::Duration,
            "Shift of the windows; without it they start at multiples of their distance since \
             1970-01-01 in UTC. Of days and longer: how long after midnight, on the clocks, they \
             start.",
            "\"0s\"",
        )
        .default("0s"),
        Key::new(
            "gap",
            Kind::Duration,
            "Sessions: a pause of the key that is longer ends one. It lasts from its first reading \
             to its last.",
            "\"5m\"",
        ),
        Key::new(
            "count",
            Kind::Int(1, COUNT_MAX),
            "Windows of so many readings of the key, numbered from 0 by `window_number`. Only \
             whole ones are emitted.",
            "100",
        ),
        Key::new(
            "hop",
            Kind::Int(1, COUNT_MAX),
            "Readings from the start of one counted window to that of the next; if absent, \
             `count`.",
            "10",
        ),
        Key::new(
            "while",
            Kind::Sql,
            "Windows in which every reading meets this condition. One ends at the time of the \
             first that does not, which is not in it.",
            "\"state = 'running'\"",
        ),
        Key::new(
            "begin",
            Kind::Sql,
            "The first reading that meets this begins a window; `until` says what ends it.",
            "\"phase = 'heat'\"",
        ),
        Key::new(
            "until",
            Kind::Sql,
            "The next reading that meets this, later than the first, ends a window, and is in it. \
             If it meets `begin` as well, it is also the first of the next one.",
            "\"phase = 'done'\"",
        ),
        Key::new(
            "abort",
            Kind::Sql,
            "A reading that meets this ends a window of `while` or `begin` without a row.",
            "\"phase = 'cancelled'\"",
        ),
        Key::new(
            "min",
            Kind::Duration,
            "A window of `while` or `begin` that is shorter gives no row.",
            "\"10s\"",
        )
        .default("0s"),
        Key::new(
            "max",
            Kind::Duration,
            "A session, or a window of `while` or `begin`, is cut at this length, exactly, also \
             if no reading comes; what follows can begin the next. If absent, there is no limit.",
            "\"8h\"",
        ),
        Key::new(
            "before",
            Kind::Duration,
            "One window around each reading, from so long before it; with `after` or alone. Both \
             ends are in it; of readings of the same time there is one.",
            "\"5m\"",
        ),
        Key::new(
            "after",
            Kind::Duration,
            "The window around a reading lasts so long after it.",
            "\"30s\"",
        ),
        Key::new(
            "at",
            Kind::Sql,
            "With `before` or `after`: only around readings that meet this.",
            "\"code = 'fault'\"",
        ),
        BY_WINDOW,
        Key::new(
            "select",
            Kind::SqlMap,
            "The columns: SQL expressions over aggregates and key columns; every aggregate \
             function of DataFusion, and those for time series (below). `first_value`, \
             `nth_value`, `array_agg` and the like go by the order of arrival; `first` and `last` \
             by time. A column may be a list or a group of values: steps without state, alerts \
             and tables take it.",
            "{ n = \"count(*)\", t_avg = \"avg(temperature)\" }",
        )
        .required(),
        Key::new(
            "clock",
            Kind::OneOf(&["device", "fleet"]),
            "Whose time closes a window: that of its key, so that one fast clock disturbs nobody \
             else, or the newest of all keys.",
            "\"device\"",
        )
        .default("device"),
        DISORDER,
        IDLE_CLOSE,
        Key::new(
            "early",
            Kind::Duration,
            "Results of windows that are still open: at the next multiple of this time of arrival, \
             each that changed is emitted as it is, with `is_final` = false. Its last row has \
             `is_final` = true; `revision` counts all of them. Tables show the newest. Steps and \
             alerts after it get the final rows only, unless they ask for early ones. Windows with \
             bounds from the readings are what they would be if no reading came any more; one \
             that is none after all comes again with `rows` = 0. Those that end with a reading \
             (`before` alone) have none. At most 60 windows may overlap. If absent, there are \
             none, and no such column.",
            "\"10s\"",
        ),
        Key::new(
            "late",
            Kind::OneOf(&["revise", "table"]),
            "A late row makes its window be emitted again with the next `revision`, or goes to \
             `system.late`. A session or state that turns out to be none comes again with `rows` = \
             0, and the table does not show it.",
            "\"revise\"",
        )
        .default("revise"),
        Key::new(
            "revise_for",
            Kind::Duration,
            "How long, in event time, a closed window keeps its state to be revised; what is later \
             goes to `system.late`. Longer needs more memory.",
            "\"1h\"",
        )
        .default("1h"),
        Key::new(
            "quality",
            Kind::Bool,
            "Adds four columns that say how good a window is: `expected`, how many readings \
             `cadence` lets one expect at least (null without it); `late`, how many came when the \
             window had been closed; `duplicates`, how many [reading.dedup] dropped (null without \
             it, and behind `enrich`); `complete`, false if messages can have been \
             lost while its readings came in: in a gap (`system.gaps`), while the broker is away \
             and nobody knows whether it still has the session, and, where no broker keeps what is \
             not heard (`qos = 0`, devices that connect to Tidegate, HTTP), whenever the source \
             was away or Tidegate did not run. If that becomes known later, the window comes again \
             with the next `revision`, within `revise_for`. For windows of readings, also behind \
             steps that pass each row on at once (`filter`, `derive`, `select`, `route`, \
             `enrich`).",
            "true",
        )
        .default("false"),
        Key::new(
            "cadence",
            Kind::Duration,
            "How far apart the readings of a key are at most, for `expected`.",
            "\"10s\"",
        ),
        STEP_KEYS_MAX,
        STEP_AT_KEYS_MAX,
        STEP_UNBOUNDED,
    ],
};
