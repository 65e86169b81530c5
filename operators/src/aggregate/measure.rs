//! What is computed from the readings of a group, once they are sorted: pure functions.
//!
//! Points are in order of time, each time once. Times are microseconds since the Unix epoch.

/// A time and a value.
pub(super) type Point<V> = (i64, V);

const US_PER_SECOND: f64 = 1_000_000.0;

/// Length of a stretch of time, microseconds. Exact for 285 years.
fn length(from_us: i64, to_us: i64) -> f64 {
    to_us.saturating_sub(from_us) as f64
}

/// How a value goes from one reading to the next.
type Between = fn(f64, f64) -> f64;

/// It stays until the next reading.
fn held(left: f64, _: f64) -> f64 {
    left
}

/// It goes straight to the next reading.
fn straight(left: f64, right: f64) -> f64 {
    left.midpoint(right)
}

/// What readings give up to the last of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    /// Time of the first reading.
    pub(super) first_us: i64,
    /// Time of the last reading.
    pub(super) last_us: i64,
    /// Value of the first reading.
    pub(super) first: f64,
    /// Value of the last reading.
    pub(super) last: f64,
    /// Area over time above the first value, value times microseconds. With the first value taken
    /// off, the mean of a constant is that constant to the last bit.
    pub(super) area: f64,
}

impl Parts {
    fn new<V: Copy>(points: &[Point<V>], number: fn(V) -> f64, between: Between) -> Option<Self> {
        let ((first_us, first), (last_us, last)) = (*points.first()?, *points.last()?);
        let (first, last) = (number(first), number(last));
        let below = |p: &[Point<V>]| {
            (between(number(p[0].1), number(p[1].1)) - first) * length(p[0].0, p[1].0)
        };
        let area = points.windows(2).map(below).sum();
        Some(Self { first_us, last_us, first, last, area })
    }

    /// Each value held until the next reading.
    pub(super) fn held(points: &[Point<f64>]) -> Option<Self> {
        Self::new(points, |v| v, held)
    }

    /// Straight lines between the readings.
    pub(super) fn straight(points: &[Point<f64>]) -> Option<Self> {
        Self::new(points, |v| v, straight)
    }

    /// Area above the first value and length, with the last reading held.
    fn until(&self, until_us: Option<i64>) -> (f64, f64) {
        let end_us = until_us.unwrap_or(self.last_us).max(self.last_us);
        let area = self.area + (self.last - self.first) * length(self.last_us, end_us);
        (area, length(self.first_us, end_us))
    }

    /// Mean over time.
    pub(super) fn mean(&self, until_us: Option<i64>) -> f64 {
        let (area, covered) = self.until(until_us);
        // A single reading is all that is known.
        if covered > 0.0 { self.first + area / covered } else { self.first }
    }

    /// Value times seconds.
    pub(super) fn integral(&self, until_us: Option<i64>) -> f64 {
        let (area, covered) = self.until(until_us);
        (self.first * covered + area) / US_PER_SECOND
    }
}

/// Mean over time, each value held until the next reading.
pub(super) fn average_held(points: &[Point<f64>], until_us: Option<i64>) -> Option<f64> {
    Some(Parts::held(points)?.mean(until_us))
}

/// Mean over time, straight lines between the readings.
pub(super) fn average_straight(points: &[Point<f64>], until_us: Option<i64>) -> Option<f64> {
    Some(Parts::straight(points)?.mean(until_us))
}

/// Value times seconds, each value held until the next reading.
pub(super) fn integral_held(points: &[Point<f64>], until_us: Option<i64>) -> Option<f64> {
    Some(Parts::held(points)?.integral(until_us))
}

/// Value times seconds, straight lines between the readings.
pub(super) fn integral_straight(points: &[Point<f64>], until_us: Option<i64>) -> Option<f64> {
    Some(Parts::straight(points)?.integral(until_us))
}

/// By how much a counter has grown. A counter that falls was reset to 0 in between, so its whole
/// new value has been added.
pub(super) fn increase(points: &[Point<f64>], _: Option<i64>) -> Option<f64> {
    let grown = |p: &[Point<f64>]| if p[1].1 >= p[0].1 { p[1].1 - p[0].1 } else { p[1].1 };
    (points.len() >= 2).then(|| points.windows(2).map(grown).sum())
}

/// The increase per second between the first and the last reading.
pub(super) fn rate(points: &[Point<f64>], until_us: Option<i64>) -> Option<f64> {
    let grown = increase(points, until_us)?;
    Some(grown / (length(points.first()?.0, points.last()?.0) / US_PER_SECOND))
}

/// Seconds in which a condition held, each answer held until the next reading. Sums of whole
/// microseconds, which are exact.
pub(super) fn duration_in(points: &[Point<bool>], until_us: Option<i64>) -> Option<f64> {
    Some(Parts::new(points, f64::from, held)?.integral(until_us))
}

/// How often the value differs from the one before.
pub(super) fn changes<V: super::value::Value>(points: &[Point<V>]) -> i64 {
    points.windows(2).filter(|p| p[0].1.order(&p[1].1).is_ne()).count() as i64
}

/// The last value known at a time.
pub(super) fn last_known(before: &Point<f64>) -> f64 {
    before.1
}

/// The value at a time on the straight line between two points.
pub(super) fn interpolated(time_us: i64, before: &Point<f64>, after: Option<&Point<f64>>) -> f64 {
    match after {
        Some(after) if before.0 < time_us => {
            let share = length(before.0, time_us) / length(before.0, after.0);
            before.1 + (after.1 - before.1) * share
        }
        _ => before.1,
    }
}
