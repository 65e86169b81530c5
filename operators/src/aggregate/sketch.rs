//! Quantiles with a bound on the relative error, from counts of values in growing buckets.
//!
//! DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with
//! relative-error guarantees", VLDB 2019). With `f(x) = exponent + fraction` of the binary form
//! `x = (1 + fraction) * 2^exponent`, bucket `i` holds the values with `f(x)` in
//! `((i - 1) * 2 * error, i * 2 * error]`. As `f` grows by at least `ln(y / x)` from `x` to `y`,
//! the ends of a bucket are at most a factor `exp(2 * error)` apart, and the estimate
//! `2 * low * high / (low + high)` is within `error` of every value in it. `f` needs no logarithm:
//! a sketch has the same bits on every machine.
//!
//! Counts are sums, so a sketch does not depend on order or on how rows were dealt out. That
//! also holds for the bound on its size: values more than 2^40 times smaller than the greatest
//! (of their sign) share one bucket. That edge only moves up, with the greatest, and what is below
//! it when all is counted is in the shared bucket, whenever it came.

/// Bits of the fraction of a float64.
const FRACTION_BITS: u32 = 52;

/// Octaves (factors of 2) below the greatest magnitude that are told apart.
const OCTAVES: f64 = 40.0;

/// Added to the number of a bucket, which may be negative, so that zero is free for the value 0
/// and the sign for that of the values. More than any bucket number: 1,024 / (2 * 0.001).
const SHIFT: i32 = 1 << 24;

/// Smallest and greatest relative error that can be asked for.
pub(super) const ERRORS: std::ops::RangeInclusive<f64> = 0.001..=0.1;

/// The relative error if none is asked for.
pub(super) const ERROR: f64 = 0.01;

/// Counts by bucket, and the exact extremes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sketch {
    /// Bucket keys in ascending order, which is that of the values, with their counts.
    pub(super) buckets: Vec<(i32, i64)>,
    /// The smallest and the greatest value.
    pub(super) extremes: Option<(f64, f64)>,
}

/// The width of buckets for a relative error, as a difference of `f`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    width: f64,
}

impl Scale {
    pub(super) fn new(error: f64) -> Self {
        Self { width: 2.0 * error }
    }

    /// How many buckets of one sign can be in use.
    fn span(self) -> i32 {
        (OCTAVES / self.width) as i32
    }

    /// Most buckets of a sketch.
    pub(super) fn buckets_max(self) -> u64 {
        2 * u64::from(self.span().unsigned_abs()) + 3
    }

    fn key(self, value: f64) -> i32 {
        let magnitude = value.abs();
        if magnitude < f64::MIN_POSITIVE {
            return 0;
        }
        let bits = magnitude.to_bits();
        let exponent = (bits >> FRACTION_BITS) as i32 - 1023;
        let one_to_two = f64::from_bits(bits & ((1 << FRACTION_BITS) - 1) | 1.0f64.to_bits());
        let f = f64::from(exponent) + (one_to_two - 1.0);
        let key = (f / self.width).ceil() as i32 + SHIFT;
        if value < 0.0 { -key } else { key }
    }

    /// The value that stands for those of a bucket.
    fn estimate(self, key: i32) -> f64 {
        if key == 0 {
            return 0.0;
        }
        let number = f64::from(key.abs() - SHIFT);
        let (low, high) = (self.edge(number - 1.0), self.edge(number));
        // 2 * low * high / (low + high), without a product that overflows.
        let magnitude = 2.0 * low / (1.0 + low / high);
        if key < 0 { -magnitude } else { magnitude }
    }

    /// The value at the upper end of a bucket: the inverse of `f`.
    fn edge(self, number: f64) -> f64 {
        let f = number * self.width;
        let exponent = f.floor();
        // Two factors, as 2^1024 alone is no number.
        let half = f64::from_bits((((exponent as i64) / 2 + 1023) as u64) << FRACTION_BITS);
        let rest = exponent as i64 - (exponent as i64) / 2;
        let rest = f64::from_bits(((rest + 1023) as u64) << FRACTION_BITS);
        (1.0 + (f - exponent)) * half * rest
    }
}

impl Sketch {
    /// Counts one value, which must be finite.
    pub(super) fn add(&mut self, value: f64, scale: Scale) {
        self.add_bucket(scale.key(value), 1, scale);
        self.widen(value, value);
    }

    /// Widens the extremes.
    pub(super) fn widen(&mut self, smallest: f64, greatest: f64) {
        self.extremes = Some(match self.extremes {
            Some((min, max)) => (min.min(smallest), max.max(greatest)),
            None => (smallest, greatest),
        });
    }

    /// Adds to the count of a bucket.
    pub(super) fn add_bucket(&mut self, key: i32, count: i64, scale: Scale) {
        let key = match (self.buckets.first(), self.buckets.last()) {
            (_, Some(last)) if key > 0 && last.0 > 0 => key.max(last.0 - scale.span()),
            (Some(first), _) if key < 0 && first.0 < 0 => key.min(first.0 + scale.span()),
            _ => key,
        };
        match self.buckets.binary_search_by_key(&key, |b| b.0) {
            Ok(at) => self.buckets[at].1 += count,
            Err(at) => {
                self.buckets.insert(at, (key, count));
                if key > 0 && at + 1 == self.buckets.len() {
                    self.collapse_positive(key - scale.span());
                } else if key < 0 && at == 0 {
                    self.collapse_negative(key + scale.span());
                }
            }
        }
    }

    /// Puts what lies between zero and `floor` into the bucket `floor`.
    fn collapse_positive(&mut self, floor: i32) {
        let from = self.buckets.partition_point(|b| b.0 <= 0);
        let to = self.buckets.partition_point(|b| b.0 <= floor);
        if to > from && self.buckets[from].0 < floor {
            let count = self.buckets[from..to].iter().map(|b| b.1).sum();
            self.buckets.splice(from..to, [(floor, count)]);
        }
    }

    /// Puts what lies between `ceiling` and zero into the bucket `ceiling`.
    fn collapse_negative(&mut self, ceiling: i32) {
        let from = self.buckets.partition_point(|b| b.0 < ceiling);
        let to = self.buckets.partition_point(|b| b.0 < 0);
        if to > from && self.buckets[to - 1].0 > ceiling {
            let count = self.buckets[from..to].iter().map(|b| b.1).sum();
            self.buckets.splice(from..to, [(ceiling, count)]);
        }
    }

    /// The value at rank `quantile * (n - 1)`, rounded down, within the relative error; 0 and 1
    /// give the exact extremes. None of no value.
    pub(super) fn quantile(&self, quantile: f64, scale: Scale) -> Option<f64> {
        let (min, max) = self.extremes?;
        let total: i64 = self.buckets.iter().map(|b| b.1).sum();
        let rank = (quantile * (total - 1) as f64).floor() as i64;
        if rank >= total - 1 {
            return Some(max);
        }
        let mut below = 0;
        for (key, count) in &self.buckets {
            below += count;
            if below > rank {
                return Some(if rank == 0 { min } else { scale.estimate(*key).clamp(min, max) });
            }
        }
        Some(max)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// Values of all magnitudes and both signs.
    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            -1e3..1e3f64,
            1e-3..1e7f64,
            any::<f64>().prop_filter("finite", |v| v.is_finite()),
            Just(0.0),
            Just(f64::MAX),
            Just(f64::MIN_POSITIVE),
        ]
    }

    fn sketch(values: &[f64], scale: Scale) -> Sketch {
        let mut sketch = Sketch::default();
        values.iter().for_each(|v| sketch.add(*v, scale));
        sketch
    }

    proptest! {
        #[test]
        fn estimates_are_within_the_error(
            values in prop::collection::vec(1e-4..1e7f64, 1..200),
            negative in any::<bool>(),
            error in 0.001..0.1f64,
            quantile in 0.0..=1.0f64,
        ) {
            let sign = if negative { -1.0 } else { 1.0 };
            let mut values: Vec<f64> = values.into_iter().map(|v| v * sign).collect();
            let scale = Scale::new(error);
            let found = sketch(&values, scale).quantile(quantile, scale).unwrap();
            values.sort_by(f64::total_cmp);
            let exact = values[(quantile * (values.len() - 1) as f64).floor() as usize];
            prop_assert!((found - exact).abs() <= exact.abs() * (error + 1e-9), "{found} {exact}");
        }

        #[test]
        fn order_and_parts_do_not_show(
            values in prop::collection::vec(value(), 1..100),
            cut in any::<prop::sample::Index>(),
            error in 0.001..0.1f64,
        ) {
            let scale = Scale::new(error);
            let whole = sketch(&values, scale);
            let backwards: Vec<f64> = values.iter().rev().copied().collect();
            prop_assert_eq!(&sketch(&backwards, scale), &whole);
            let (a, b) = values.split_at(cut.index(values.len()));
            let mut merged = sketch(b, scale);
            let first = sketch(a, scale);
            first.buckets.iter().for_each(|(key, count)| merged.add_bucket(*key, *count, scale));
            first.extremes.iter().for_each(|(min, max)| merged.widen(*min, *max));
            prop_assert_eq!(&merged, &whole);
            prop_assert!(whole.buckets.len() as u64 <= scale.buckets_max());
        }
    }

    #[test]
    fn extremes_are_exact_and_small_values_share_a_bucket() {
        let scale = Scale::new(ERROR);
        let all = sketch(&[f64::MAX, -f64::MAX, 0.0, 1.0, 2.0, 1e-300], scale);
        assert_eq!(all.quantile(0.0, scale), Some(-f64::MAX));
        assert_eq!(all.quantile(1.0, scale), Some(f64::MAX));
        assert_eq!(all.buckets.len(), 4, "{:?}", all.buckets);
        assert_eq!(Sketch::default().quantile(0.5, scale), None);
        assert_eq!(sketch(&[7.0], scale).quantile(0.5, scale), Some(7.0));
    }
}
