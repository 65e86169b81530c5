//! The aggregates for time series by name: the one list from which registration, documentation
//! and checks follow.

/// How much an aggregate keeps per open window (or group of a query).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateSize {
    /// At most this many bytes, whatever comes.
    Bounded(usize),
    /// At most this many bytes for each reading (of another time) in the window.
    PerReading(usize),
}

/// An aggregate, for registration and for people.
#[derive(Debug)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// Its arguments as SQL writes them. In windows, `time` may be left out.
    pub arguments: &'static str,
    /// What it computes, with units and edge cases.
    pub doc: &'static str,
    /// Bound of its state.
    pub state: StateSize,
}

/// Which aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Name {
    First,
    Last,
    Delta,
    AverageHeld,
    AverageStraight,
    IntegralHeld,
    IntegralStraight,
    Increase,
    Rate,
    DurationIn,
    Changes,
    FilledSlots,
    ResampleHeld,
    ResampleStraight,
    Quantile,
    Histogram,
    Buckets,
    ExpectedRatio,
    /// Hidden, see [`super::until`].
    PartsHeld,
    PartsStraight,
    /// Hidden, see [`super::ranged`].
    PointsHeld,
    PointsStraight,
    Seen,
}

impl Name {
    /// The aggregate of a name or alias.
    pub(super) fn find(name: &str) -> Option<Self> {
        let entry = ALL.iter().find(|(_, f)| f.name == name || f.aliases.contains(&name));
        entry.map(|(name, _)| *name)
    }

    /// Whether the second argument is the time of the reading.
    pub(super) fn takes_time(self) -> bool {
        use Name::{Buckets, ExpectedRatio, Histogram, Quantile, Seen};
        !matches!(self, Quantile | Histogram | Buckets | ExpectedRatio | Seen)
    }

    /// Whether the third argument is the distance of the points of a list.
    pub(super) fn resamples(self) -> bool {
        use Name::{PointsHeld, PointsStraight, ResampleHeld, ResampleStraight};
        matches!(self, ResampleHeld | ResampleStraight | PointsHeld | PointsStraight)
    }

    /// Whether a third argument says until when the last reading holds.
    pub(super) fn takes_until(self) -> bool {
        use Name::{AverageHeld, AverageStraight, DurationIn, IntegralHeld, IntegralStraight};
        let holding = [AverageHeld, AverageStraight, IntegralHeld, IntegralStraight, DurationIn];
        holding.contains(&self)
    }
}

const NUMBER: StateSize = StateSize::PerReading(16);

const fn function(
    name: &'static str,
    arguments: &'static str,
    state: StateSize,
    doc: &'static str,
) -> Function {
    Function { name, aliases: &[], arguments, doc, state }
}

/// All of them.
pub(super) static ALL: [(Name, Function); 18] = [
    (
        Name::First,
        function(
            "first",
            "value, time",
            StateSize::Bounded(16),
            "The value of the earliest reading (of any type; a text is kept as long as it is).",
        ),
    ),
    (
        Name::Last,
        function(
            "last",
            "value, time",
            StateSize::Bounded(16),
            "The value of the latest reading (of any type; a text is kept as long as it is).",
        ),
    ),
    (
        Name::Delta,
        function(
            "delta",
            "value, time",
            StateSize::Bounded(32),
            "The latest value less the earliest; null if all readings have one time.",
        ),
    ),
    (
        Name::AverageHeld,
        Function {
            name: "twa",
            aliases: &["time_weighted_avg"],
            arguments: "value, time [, until]",
            doc: "Mean over time from the first to the last reading, each value held until the \
                  next; with `until`, the last one is held until then. The value itself if there \
                  is one reading.",
            state: NUMBER,
        },
    ),
    (
        Name::AverageStraight,
        Function {
            name: "twa_linear",
            aliases: &["time_weighted_avg_linear"],
            arguments: "value, time [, until]",
            doc: "The same with straight lines between readings.",
            state: NUMBER,
        },
    ),
    (
        Name::IntegralHeld,
        function(
            "integral",
            "value, time [, until]",
            NUMBER,
            "Value times seconds from the first to the last reading (or `until`), each value held \
             until the next. Of W it is Ws: divide by 3600 for Wh.",
        ),
    ),
    (
        Name::IntegralStraight,
        function(
            "integral_linear",
            "value, time [, until]",
            NUMBER,
            "The same with straight lines between readings.",
        ),
    ),
    (
        Name::Increase,
        function(
            "increase",
            "counter, time",
            NUMBER,
            "By how much a counter has grown from the first to the last reading. If it falls, it \
             was reset to 0: its new value is added. Null of fewer than two readings. Unlike \
             PromQL's, it is exactly what was seen, never extrapolated to the ends of the window; \
             what is counted between two windows is in neither.",
        ),
    ),
    (
        Name::Rate,
        function(
            "rate",
            "counter, time",
            NUMBER,
            "`increase` per second between the first and the last reading.",
        ),
    ),
    (
        Name::DurationIn,
        function(
            "duration_in",
            "condition, time [, until]",
            NUMBER,
            "Seconds in which the condition was true, each answer held until the next reading \
             (the last one until `until`).",
        ),
    ),
    (
        Name::Changes,
        function(
            "changes",
            "value, time",
            NUMBER,
            "How often the value differs from the one before it in time (of any type; texts are \
             kept as long as they are).",
        ),
    ),
    (
        Name::FilledSlots,
        function(
            "filled_slots",
            "value, time, interval",
            StateSize::PerReading(8),
            "In how many slots of that length (aligned to 1970-01-01 UTC) there was a value. \
             Divided by how many there should be, it is the ratio of expected readings; \
             repetitions do not raise it.",
        ),
    ),
    (
        Name::ResampleHeld,
        function(
            "resample",
            "value, time, interval [, from, to]",
            NUMBER,
            "Fills gaps: a list of (time, value) at each multiple of the interval (since \
             1970-01-01 UTC) from the first to the last reading, with the value last known. With \
             `from` and `to`, which can be bounds of the window, at each from `from` on and before \
             `to`: null as long as nothing is known, the last value to the end. Empty if there is \
             no reading. `unnest` makes rows of it. At most 1,000,000 points, in a window 20,000.",
        ),
    ),
    (
        Name::ResampleStraight,
        function(
            "resample_linear",
            "value, time, interval [, from, to]",
            NUMBER,
            "The same with straight lines between readings, and null after the last.",
        ),
    ),
    (
        Name::Quantile,
        function(
            "quantile",
            "value, q [, error]",
            StateSize::Bounded(2 * 20_000 * 16),
            "The value at rank q * (n - 1), rounded down, q from 0 to 1, with a relative error of \
             at most `error` (0.001 to 0.1, default 0.01): DDSketch. Merges exactly, unlike \
             `approx_percentile_cont`. Values 2^40 times smaller than the greatest are not told \
             apart.",
        ),
    ),
    (
        Name::Histogram,
        function(
            "histogram",
            "value, bound, ...",
            StateSize::Bounded(8 * 1_001),
            "A list of counts: of values up to and including the first bound, above it up to the \
             second, and so on; the last is of those above all bounds. `histogram(v, 1, 10)[2]` is \
             one of them.",
        ),
    ),
    (
        Name::Buckets,
        function(
            "buckets",
            "value, bound, ...",
            StateSize::Bounded(8 * 1_001),
            "The same as a list of (up_to, count), which says its bounds itself; `up_to` of the \
             last is null.",
        ),
    ),
    (
        Name::ExpectedRatio,
        function(
            "expected_ratio",
            "value, interval, from, to",
            StateSize::Bounded(24),
            "How many values there were of those that one in each interval makes from `from` on \
             and before `to` (whole intervals, one at least): 1 if all came, more if more came. \
             Values of one time count each; `filled_slots` counts none twice. In a window `from` \
             and `to` can be left out: they are its bounds, and where it ends with a reading \
             (sessions, counts, around readings) that one is expected as well.",
        ),
    ),
];

/// Aggregates that are planned for others and have no name in SQL.
pub(super) static PARTS: [(Name, Function); 5] = [
    (Name::PartsHeld, function("parts", "value, time", NUMBER, "See `until`.")),
    (Name::PartsStraight, function("parts_linear", "value, time", NUMBER, "See `until`.")),
    // Those that windows have for functions of these names.
    (Name::PointsHeld, function("resample", "value, time, interval", NUMBER, "See `ranged`.")),
    (
        Name::PointsStraight,
        function("resample_linear", "value, time, interval", NUMBER, "See `ranged`."),
    ),
    (
        Name::Seen,
        function("expected_ratio", "value, interval", StateSize::Bounded(24), "See `ranged`."),
    ),
];

/// One of those.
pub(super) fn hidden(name: Name) -> &'static Function {
    let entry = PARTS.iter().find(|(hidden, _)| *hidden == name);
    entry.map(|(_, function)| function).expect("all that are hidden are in the list")
}

/// Bound of the state of an aggregate; none of DataFusion's own.
pub fn state_size(name: &str) -> Option<StateSize> {
    let entry = ALL.iter().chain(&PARTS).find(|(_, f)| f.name == name);
    entry.map(|(_, function)| function.state)
}

/// The aggregates for time series, for documentation.
pub fn functions() -> impl Iterator<Item = &'static Function> {
    ALL.iter().map(|(_, function)| function)
}
