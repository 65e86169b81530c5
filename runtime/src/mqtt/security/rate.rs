//! How many messages a device may send: a bucket of tokens that fills steadily.

use std::time::{Duration, Instant};

/// What a device that was quiet may send at once, in seconds of its rate: a gateway that comes
/// back after a short outage is not slowed down.
const BURST_S: f64 = 10.0;

/// The messages of one connection. Nothing is refused: who sends more is read more slowly.
#[derive(Clone, Debug)]
pub(crate) struct RateLimit {
    per_second: f64,
    /// Below zero after more was taken than there was.
    tokens: f64,
    at: Instant,
}

impl RateLimit {
    /// A full bucket.
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second.max(1));
        Self { per_second, tokens: per_second * BURST_S, at: now }
    }

    /// Takes `count` messages that have come; how long to read nothing then.
    pub(crate) fn take(&mut self, count: u64, now: Instant) -> Duration {
        let passed_s = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed_s * self.per_second).min(self.per_second * BURST_S);
        self.tokens -= count as f64;
        Duration::from_secs_f64((-self.tokens / self.per_second).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_the_long_run_the_rate_is_kept() {
        let begin = Instant::now();
        let mut limit = RateLimit::new(100, begin);
        let mut now = begin;
        // Ten seconds' worth goes at once.
        assert_eq!(limit.take(1000, now), Duration::ZERO);
        let mut sent = 0;
        for _ in 0..50 {
            now += limit.take(30, now);
            sent += 30;
        }
        let took_s = now.duration_since(begin).as_secs_f64();
        assert!((took_s - f64::from(sent) / 100.0).abs() < 1e-6, "{took_s}");
        // Quiet for long: the bucket is full, and not more than full.
        now += Duration::from_secs(3600);
        assert_eq!(limit.take(1000, now), Duration::ZERO);
        assert_eq!(limit.take(100, now), Duration::from_secs(1));
        // A clock that seems to go back is no gift and no harm.
        assert_eq!(limit.take(0, begin), Duration::from_secs(1));
    }
}
