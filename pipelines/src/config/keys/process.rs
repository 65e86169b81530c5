//! The keys of `tidegate.toml`: settings of the process, beside the pipelines.

use super::super::kinds::{Component, Key, Kind};

/// They are in memory: more of them would be gigabytes.
const OUTBOX_MAX: i64 = 10_000_000;

/// A whole file of settings.
pub(crate) static PROCESS_FILE: Component = Component {
    id: "process-file",
    heading: "tidegate.toml",
    tag: None,
    doc: "Settings of the process that runs the pipelines. `tidegate run` reads the file that \
          `--config` names, else `tidegate.toml` in the current folder, else the one in the \
          folder of the pipelines (of the first path). An option of the command line wins over \
          its key here. A file of this name is never taken for a pipeline.",
    keys: &[Key::new("process", Kind::Section(&PROCESS), "The settings.", "").required()],
};

static PROCESS: Component = Component {
    id: "process",
    heading: "[process]",
    tag: None,
    doc: "Each key is also an option of `tidegate run`, with `-` for `_`. Paths are relative to \
          the folder of the file.",
    keys: &[
        Key::new(
            "data",
            Kind::Address,
            "Folder for journal, checkpoints and tables. If absent: `tidegate-data` in the \
             current folder.",
            "\"/var/lib/tidegate\"",
        ),
        Key::new(
            "tables",
            Kind::Address,
            "Where tables go: a folder or `s3://bucket/prefix`. If absent: `tables` below `data`.",
            "\"s3://bucket/plant\"",
        ),
        Key::new(
            "workers",
            Kind::Int(1, 1024),
            "Dataflow workers. If absent: the number of cores.",
            "4",
        ),
        Key::new(
            "checkpoint_every",
            Kind::Duration,
            "Time between checkpoints: about as much is replayed after a crash.",
            "\"10s\"",
        )
        .default("10s"),
        Key::new(
            "recompute_every",
            Kind::Duration,
            "Windows that readings are too late for are computed again from stored readings, those \
             of so much time of arrival at once.",
            "\"1m\"",
        )
        .default("1m"),
        Key::new(
            "journal_keep",
            Kind::Duration,
            "How long the journal keeps what no recovery needs, for the operators of changed \
             pipelines; never more than half of `journal_max`.",
            "\"1h\"",
        )
        .default("1h"),
        Key::new(
            "journal_max",
            Kind::Size,
            "Most bytes of the journal on disk; beyond it sources are slowed down.",
            "\"4GiB\"",
        )
        .default("4GiB"),
        Key::new(
            "disk_reserve",
            Kind::Size,
            "Nothing is acknowledged while the disk has less free than this: checkpoints, tables \
             and alerts need room to be written.",
            "\"64MiB\"",
        )
        .default("64MiB"),
        Key::new(
            "memory_max",
            Kind::Size,
            "Most memory of the process, resident and swapped out. Near it, less is in flight; at \
             it, rows of new keys are refused (`[limits] at_memory_max`); if that does not help, \
             sources wait. If absent: three quarters of what its control group allows, or of the \
             machine's memory. At least \"256MiB\", or \"0B\": no budget.",
            "\"1GiB\"",
        ),
        Key::new(
            "spill_max",
            Kind::Size,
            "Most rows on the local disk that wait for tables, such as while the object store is \
             away; beyond it everything waits.",
            "\"4GiB\"",
        )
        .default("4GiB"),
        Key::new(
            "outbox_max",
            Kind::Int(1, OUTBOX_MAX),
            "Most notifications that wait for their webhooks, such as while a receiver is down. \
             Beyond it new ones are given up at once: they are kept as what else is given up, and \
             can be sent again (`tidegate outbox`). Nothing waits for a webhook, so there is no \
             other choice; alerts themselves are in `system.alerts` whatever happens.",
            "100000",
        )
        .default("100000"),
        Key::new(
            "metrics",
            Kind::Address,
            "Answer HTTP on this address: `/metrics`, `/health`, `/ready`. If absent: nowhere.",
            "\"127.0.0.1:9464\"",
        ),
        Key::new("watch", Kind::Bool, "Apply the pipeline files whenever they change.", "true")
            .default("false"),
    ],
};
