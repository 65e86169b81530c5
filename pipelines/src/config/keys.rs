//! The one table of keys. What is parsed, what is an unknown key, the JSON Schema for editors and
//! the reference all derive from it: to add a key is to add a line here and to read it in
//! `resolve`.

mod absence;
mod endpoint;
mod file;
mod http;
mod join;
mod latest;
mod limits;
mod mqtt;
mod process;
mod registry;
mod sequence;
mod steps;
mod window;

use super::kinds::{Component, Key, Kind};
use absence::ABSENCE;
use endpoint::ENDPOINT;
use file::FILE;
use http::HTTP;
use join::JOIN;
use latest::LATEST;
pub(crate) use limits::LIMITS;
use limits::{STEP_AT_KEYS_MAX, STEP_KEYS_MAX};
use mqtt::MQTT;
pub(crate) use process::PROCESS_FILE;
use registry::{ENRICH, REGISTRY, TEST_REGISTRY};
use sequence::SEQUENCE;
use steps::{DERIVE, DETECT, FILTER, ROUTE, SELECT, STEP_EARLY, TABLE_EARLY};
pub(crate) use window::WEEKDAYS;
use window::WINDOW;

/// Most messages that one test can send: it runs in memory.
pub(crate) const TEST_MESSAGES_MAX: i64 = 1_000_000;

/// Types of columns.
pub(crate) static TYPES: [&str; 5] = ["bool", "int64", "float64", "string", "time"];

/// A whole file.
pub(crate) static PIPELINE: Component = Component {
    id: "pipeline",
    heading: "",
    tag: None,
    doc: "One file is one pipeline. All files that are given run as one plan.",
    keys: &[
        Key::new(
            "name",
            Kind::PipelineName,
            "Name of the pipeline. With `-` as `_` it is the SQL schema of its tables.",
            "\"cold-chain\"",
        )
        .required(),
        Key::new(
            "source",
            Kind::Variant(&[&ENDPOINT, &MQTT, &HTTP, &FILE]),
            "Where messages come from.",
            "",
        )
        .required(),
        Key::new("reading", Kind::Section(&READING), "What one row is.", "").required(),
        Key::new("limits", Kind::Section(&LIMITS), "How much is kept in memory.", ""),
        Key::new("registry", Kind::Sections(&REGISTRY), "What is known of devices.", ""),
        Key::new(
            "step",
            Kind::Variants(&[
                &FILTER, &DERIVE, &SELECT, &ROUTE, &WINDOW, &DETECT, &ENRICH, &LATEST, &ABSENCE,
                &SEQUENCE, &JOIN,
            ]),
            "What is done with the rows, from edge to edge. Each step's name is the name of its \
             output edge; their order in the file does not matter.",
            "",
        ),
        Key::new("alert", Kind::Sections(&ALERT), "When to tell somebody.", ""),
        Key::new("table", Kind::Sections(&TABLE), "Which edges are kept as tables.", ""),
        Key::new("notify", Kind::NamedVariants(&[&WEBHOOK]), "Whom alerts tell.", ""),
        Key::new("test", Kind::Sections(&TEST), "What `tidegate test` checks.", ""),
    ],
};

static READING: Component = Component {
    id: "reading",
    heading: "[reading]",
    tag: None,
    doc: "What one row is. The columns `device` (text) and `time` are always there; `topic`, \
          `client_id`, `received_time`, `journal_offset`, `journal_element` (place in the exploded \
          array) and `payload_hash` are there where they are used. \
          Paths go from the reading; `$.a.b` goes from the whole document.",
    keys: &[
        Key::new(
            "format",
            Kind::OneOf(&["json", "influx"]),
            "How payloads are written. `influx`: a line of InfluxDB's line protocol, whose fields \
             and tags are paths; `_measurement` and `_time` are paths too, and `_tag.NAME` and \
             `_field.NAME` where both have the name.",
            "\"json\"",
        )
        .default("json"),
        Key::new(
            "device",
            Kind::Path,
            "Where the device's name is: a path in the payload, a capture of the topic or an \
             MQTT 5 property.",
            "\"{device}\"",
        )
        .required(),
        Key::new(
            "time",
            Kind::Time(&TIME),
            "Where the time of the reading is; `\"received\"`: when the message came in.",
            "\"ts\"",
        )
        .required(),
        Key::new(
            "explode",
            Kind::Path,
            "Path of an array: each of its elements is a reading of its own.",
            "\"samples\"",
        ),
        Key::new(
            "future_bound",
            Kind::Duration,
            "A reading further ahead of its receive time goes to `system.rejects`.",
            "\"1h\"",
        )
        .default("1h"),
        Key::new(
            "past_bound",
            Kind::Duration,
            "A reading further behind its receive time goes to `system.rejects` (reason `past`); \
             if absent, none is too old.",
            "\"30d\"",
        ),
        Key::new(
            "clock_skew",
            Kind::Bool,
            "Estimates the clock of each device, as rows of `system.clock_skew`. Files have none, \
             and times that are those of arrival neither.",
            "false",
        )
        .default("true"),
        Key::new(
            "clock_skew_max",
            Kind::Duration,
            "A device whose clock is off by more, ahead or behind, is told: `off` in \
             `system.clock_skew`, and the engine's alert `clock_skew`.",
            "\"5m\"",
        )
        .default("1h"),
        Key::new(
            "disorder",
            Kind::Duration,
            "How much older than the newest reading of its device a reading may be without being \
             late. Windows and detectors can say otherwise.",
            "\"5s\"",
        )
        .default("5s"),
        Key::new(
            "idle_close",
            Kind::Duration,
            "The clock of a device that is silent for this long (in receive time) goes on with the \
             receive time: its windows close at their ends without a reading.",
            "\"1m\"",
        )
        .default("1m"),
        Key::new(
            "dedup",
            Kind::Section(&DEDUP),
            "Drops readings that came before; without this table nothing is dropped.",
            "",
        ),
        Key::new("payload_max", Kind::Size, "A longer payload is a reject.", "\"256KiB\"")
            .default("256KiB"),
        Key::new(
            "fields",
            Kind::Fields(&FIELD),
            "The other columns: `name = \"type\"`, or a table as below. A capture of the topic \
             that is not declared is a text column of its own name.",
            "",
        ),
    ],
};

/// Most readings of one device that can be remembered: about 80 bytes each.
const DEDUP_KEYS_MAX: i64 = 10_000_000;

/// Most readings of all devices that can be remembered.
const DEDUP_FLEET_MAX: i64 = 1_000_000_000;

static DEDUP: Component = Component {
    id: "reading.dedup",
    heading: "[reading.dedup]",
    tag: None,
    doc: "Which readings are repetitions, sent again by a device, a gateway or a broker: they are \
          dropped, and counted in `system.duplicates`.",
    keys: &[
        Key::new(
            "key",
            Kind::Names,
            "Columns that make a reading what it is; `device` always is one of them. If absent, \
             `device`, `time` and `payload_hash` (of the topic and of the reading as it was sent). \
             A reading with a null among them is kept.",
            "[\"device\", \"time\", \"seq\"]",
        ),
        Key::new(
            "horizon",
            Kind::Duration,
            "How long after it came in a reading is remembered. Files come in at once.",
            "\"1h\"",
        )
        .default("1h"),
        Key::new(
            "keys_max",
            Kind::Int(1, DEDUP_KEYS_MAX),
            "Most readings of one device that are remembered (about 80 bytes each); beyond it the \
             oldest is forgotten early, which `system.duplicates` tells.",
            "10000",
        )
        .default("10000"),
        Key::new(
            "fleet_max",
            Kind::Int(1, DEDUP_FLEET_MAX),
            "Most readings of all devices that are remembered (about 80 bytes each). They are \
             counted in 256 groups of devices; where one has more than its share, the readings \
             that came in longest ago are forgotten early, which `system.duplicates` tells.",
            "10000000",
        )
        .default("10000000"),
    ],
};

static TIME: Component = Component {
    id: "reading.time",
    heading: "[reading.time]",
    tag: None,
    doc: "A time whose format is given.",
    keys: &[
        Key::new("field", Kind::Path, "Where it is.", "\"ts\"").required(),
        Key::new("format", Kind::TimeFormat, TIME_FORMAT_DOC, "\"ms\"").default("auto"),
    ],
};

const TOPICS_DOC: &str = "Topic templates. `{name}` takes one level and `{name...}` the rest of \
                          the topic; both become columns. `+` and `#` match without keeping.";
const TOPICS_EXAMPLE: &str = "[\"plant/{site}/{device}/telemetry\"]";

const TIME_FORMAT_DOC: &str = "`auto` (RFC 3339, or a number since 1970 whose size tells its \
                               unit), `s`, `ms`, `us`, `ns`, `rfc3339`, or a strftime pattern.";

static FIELD: Component = Component {
    id: "reading.fields",
    heading: "[reading.fields]",
    tag: None,
    doc: "One column. A value that breaks its type or a rule makes its reading a row of \
          `system.rejects`, or becomes null.",
    keys: &[
        Key::new(
            "type",
            Kind::OneOf(&TYPES),
            "Its type. What loses nothing is converted: `\"21.5\"` is a float64, `3.0` an int64, \
             0 and 1 are bools, a number is a string as it was written.",
            "\"float64\"",
        )
        .required(),
        Key::new(
            "field",
            Kind::Path,
            "Where the value is: a path, a capture or an MQTT 5 property (`{user:NAME}`, \
             `{mqtt:content_type}`, `{mqtt:response_topic}`, `{mqtt:correlation_data}`, the last \
             one in hexadecimal); if absent, the member of the column's name.",
            "\"meta.serial\"",
        ),
        Key::new("unit", Kind::Text, "Unit, for people.", "\"°C\""),
        Key::new("required", Kind::Bool, "Missing or null is not allowed.", "true")
            .default("false"),
        Key::new("min", Kind::Float, "Smallest value (numbers).", "-60"),
        Key::new("max", Kind::Float, "Largest value (numbers).", "120"),
        Key::new("one_of", Kind::Texts, "The values allowed (strings).", "[\"ok\", \"warn\"]"),
        Key::new(
            "matches",
            Kind::Regex,
            "The text must match somewhere (strings).",
            "\"^SN[0-9]+$\"",
        ),
        Key::new("format", Kind::TimeFormat, TIME_FORMAT_DOC, "\"ms\"").default("auto"),
        Key::new(
            "on_invalid",
            Kind::OneOf(&["reject", "null"]),
            "What happens with a value that breaks its type or a rule.",
            "\"null\"",
        )
        .default("reject"),
    ],
};

static ALERT: Component = Component {
    id: "alert",
    heading: "[[alert]]",
    tag: None,
    doc: "A rule with one alert per key, which fires and is resolved. Changes are rows of \
          `system.alerts`.",
    keys: &[
        Key::new("name", Kind::Text, "Name of the rule.", "\"too-warm\"").required(),
        Key::new("from", Kind::Name, "The edge that it reads.", "\"per_minute\"").required(),
        Key::new("fire", Kind::Sql, "When it fires: an expression over the row.", "\"t_avg > 8\"")
            .required(),
        Key::new(
            "clear",
            Kind::Sql,
            "When it is resolved; if absent, when `fire` is false. A gap between the two keeps a \
             value near the limit from firing again and again.",
            "\"t_avg < 7\"",
        ),
        Key::new(
            "for",
            Kind::Duration,
            "How long `fire` must have been true, in event time.",
            "\"5m\"",
        )
        .default("0s"),
        Key::new(
            "by",
            Kind::Names,
            "Columns that make the key; if absent, the key of the edge.",
            "[\"device\"]",
        ),
        Key::new("severity", Kind::Text, "How bad it is, in your words.", "\"warning\"")
            .default("warning"),
        Key::new(
            "summary",
            Kind::Text,
            "Text for people; `{column}` is replaced by the row's value, `{{` and `}}` are braces. \
             If absent, the name.",
            "\"{device} is at {t_avg} °C\"",
        ),
        Key::new(
            "notify",
            Kind::Texts,
            "Whom to tell: names of `[notify.NAME]` tables.",
            "[\"ops\"]",
        ),
        Key::new(
            "max_age",
            Kind::Duration,
            "An alert that is older when it is found is recorded, but told to nobody, and neither \
             is its end; if a row that is not older finds it still firing, it is told then. \
             Whoever was told of it is told of its end, however old.",
            "\"1h\"",
        )
        .default("1h"),
        STEP_EARLY,
        STEP_KEYS_MAX,
        STEP_AT_KEYS_MAX,
    ],
};

static TABLE: Component = Component {
    id: "table",
    heading: "[[table]]",
    tag: None,
    doc: "An edge that is kept as a table. Findings, alerts, rejects and late rows are tables in \
          any case: `system.findings`, `.alerts`, `.rejects`, `.late`, `.duplicates`, \
          `.clock_skew`, `.sessions`, `.gaps`.",
    keys: &[
        Key::new("from", Kind::Name, "The edge.", "\"per_minute\"").required(),
        Key::new(
            "name",
            Kind::Name,
            "Name of the table; if absent, that of the edge.",
            "\"minutes\"",
        ),
        Key::new(
            "partition",
            Kind::Names,
            "Text columns to divide the files by, below the day. Few values each, so never the \
             device.",
            "[\"site\"]",
        ),
        TABLE_EARLY,
        Key::new(
            "freshness",
            Kind::Duration,
            "Rows can be read after about this long. Shorter makes more and smaller files.",
            "\"10s\"",
        )
        .default("10s"),
    ],
};

static WEBHOOK: Component = Component {
    id: "notify.webhook",
    heading: "[notify.NAME]",
    tag: Some("webhook"),
    doc: "A POST of each change of an alert, retried until it is taken (Standard Webhooks).",
    keys: &[
        Key::new(
            "url",
            Kind::SecretAddress,
            "Where to. It is never shown.",
            "\"${env:OPS_WEBHOOK}\"",
        )
        .required(),
        Key::new(
            "secret",
            Kind::Secret,
            "Key of the signature: `whsec_` and base64 of it, as `echo \"whsec_$(openssl rand \
             -base64 32)\"` makes one; of any other text the text itself, which receivers by \
             Standard Webhooks cannot use.",
            "\"${env:OPS_SECRET}\"",
        ),
        Key::new("timeout", Kind::Duration, "How long one try may take.", "\"10s\"").default("10s"),
        Key::new("max_age", Kind::Duration, "After this long it is given up.", "\"1d\"")
            .default("1d"),
        Key::new(
            "allow_private",
            Kind::Bool,
            "Allows addresses of this machine and of private networks; else nothing is sent there.",
            "false",
        )
        .default("false"),
        Key::new(
            "engine",
            Kind::Bool,
            "Also told of Tidegate's own alerts (rows of `system.alerts` of the pipeline \
             `tidegate`): `disk_full`, `journal_full`, `source_down`, `registry_unreadable`, \
             `tables_unreachable`, `windows_waiting`, `memory_max`, `keys_max`, `clock_skew`, \
             `webhook_dead`.",
            "true",
        )
        .default("false"),
    ],
};

static TEST: Component = Component {
    id: "test",
    heading: "[[test]]",
    tag: None,
    doc: "Messages in, rows out, in process and in milliseconds.",
    keys: &[
        Key::new("name", Kind::Text, "What it shows.", "\"five warm minutes fire once\"")
            .required(),
        Key::new("input", Kind::Sections(&TEST_INPUT), "The messages.", "").required(),
        Key::new("registry", Kind::Sections(&TEST_REGISTRY), "What registries say.", ""),
        Key::new(
            "expect",
            Kind::RowsByEdge,
            "All rows of an edge, or of `rejects`, `late`, `findings`, `alerts`, in order of time \
             and key. Only the columns that are named are compared; numbers to 1e-9.",
            "{ per_minute = [{ device = \"d1\", n = 6 }] }",
        ),
        Key::new(
            "count",
            Kind::CountByEdge,
            "The number of rows of an edge, or of `rejects`, `late`, `findings`, `alerts`.",
            "{ rejects = 0 }",
        ),
    ],
};

static TEST_INPUT: Component = Component {
    id: "test.input",
    heading: "[[test.input]]",
    tag: None,
    doc: "One message, or `count` of them, one `every`. They are received in order of time, and \
          where that is longer apart than the `idle_close` of a step, time goes on in between as \
          it does live. Or what happens without a message: `event`.",
    keys: &[
        Key::new("topic", Kind::Text, "Its topic.", "\"plant/a/d1/telemetry\""),
        Key::new(
            "event",
            Kind::OneOf(&["tick", "source_away", "source_back", "session_lost"]),
            "Instead of `topic` and `payload`. `tick`: nothing comes until then, but time goes on. \
             The others, for a source of type `mqtt`: its connection to the broker is lost, or is \
             there again; `session_lost`: it is there again, but the broker has forgotten the \
             session, so that what came since is lost.",
            "\"tick\"",
        ),
        Key::new("at", Kind::Instant, "When it is received.", "\"2026-01-01T00:00:00Z\"")
            .default("2026-01-01T00:00:00Z"),
        Key::new(
            "payload",
            Kind::Payload,
            "Its payload. Replaced are `{ms}`, `{s}`, `{us}` and `{rfc3339}` by when it is \
             received, and `{i}` by its number, from 0.",
            "'{\"ts\": {ms}, \"temperature\": 9.5}'",
        ),
        Key::new(
            "properties",
            Kind::Properties,
            "Its MQTT 5 properties: user properties by name, others as `mqtt:content_type`.",
            "{ serial = \"SN7\" }",
        ),
        Key::new("every", Kind::Duration, "Distance of repeated messages.", "\"10s\"")
            .default("1s"),
        Key::new("count", Kind::Int(1, TEST_MESSAGES_MAX), "How many.", "30").default("1"),
    ],
};
