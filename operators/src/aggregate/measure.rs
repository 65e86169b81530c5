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

/// Area over time above the first value, value times microseconds, and the time it covers. With
/// the first value taken off, the mean of a constant is that constant to the last bit.
fn area(points: &[Point<f64>], until_us: Option<i64>, between: Between) -> Option<(f64, f64, f64)> {
    let ((first_us, first), (last_us, last)) = (*points.first()?, *points.last()?);
    let mut area: f64 =
        points.windows(2).map(|p| (between(p[0].1, p[1].1) - first) * length(p[0].0, p[1].0)).sum();
    let end_us = until_us.unwrap_or(last_us).max(last_us);
    area += (last - first) * length(last_us, end_us);
    Some((first, area, length(first_us, end_us)))
}

fn average(points: &[Point<f64>], until_us: Option<i64>, between: Between) -> Option<f64> {
    let (first, area, covered) = area(points, until_us, between)?;
    // A single reading is all that is known.
    Some(if covered > 0.0 { first + area / covered } else { first })
}

/// Mean over time, each value held until the next reading.
pub(super) fn average_held(points: &[Point<f64>], until_us: Option<i64>) -> Option<f64> {
    average(points, until_us, held)
}

/// Mean over time, straight lines between the readings.
pub(super) fn average_straight(points: &[Point<f64>], until_us: Option<i64>) -> Option<f64> {
    average(points, until_us, straight)
}

fn integral(points: &[Point<f64>], until_us: Option<i64>, between: Between) -> Option<f64> {
    let (first, area, covered) = area(points, until_us, between)?;
    Some((first * covered + area) / US_PER_SECOND)
}

/// Value times seconds, each value held until the next reading.
pub(super) fn integral_held(points: &[Point<f64>], until_us: Option<i64>) -> Option<f64> {
    integral(points, until_us, held)
}

/// Value times seconds, straight lines between the readings.
pub(super) fn integral_straight(points: &[Point<f64>], until_us: Option<i64>) -> Option<f64> {
    integral(points, until_us, straight)
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

/// Seconds in which a condition held, each answer held until the next reading.
pub(super) fn duration_in(points: &[Point<bool>], until_us: Option<i64>) -> Option<f64> {
    let (last_us, last) = *points.last()?;
    let inside = points.windows(2).filter(|p| p[0].1);
    // Whole microseconds: no order of adding could matter.
    let mut total_us: i64 = inside.map(|p| p[1].0.saturating_sub(p[0].0)).sum();
    if last {
        total_us += until_us.unwrap_or(last_us).max(last_us).saturating_sub(last_us);
    }
    Some(total_us as f64 / US_PER_SECOND)
}

/// How often the value differs from the one before.
pub(super) fn changes<V: super::value::Value>(points: &[Point<V>]) -> i64 {
    points.windows(2).filter(|p| p[0].1.order(&p[1].1).is_ne()).count() as i64
}

/// The last value known at a time.
pub(super) fn last_known(_: i64, before: &Point<f64>, _: Option<&Point<f64>>) -> f64 {
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
