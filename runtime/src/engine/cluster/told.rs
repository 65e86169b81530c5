//! What people are told while processes wait for each other: the same trouble not all the time.

use std::time::{Duration, Instant};

/// The same trouble is told again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Different troubles that are remembered.
const KNOWN_MAX: usize = 64;

/// What was told, and when.
#[derive(Debug, Default)]
pub(super) struct Told(Vec<(String, Instant)>);

impl Told {
    /// Whether this is to be told now; then it counts as told.
    pub(super) fn is_news(&mut self, text: &str) -> bool {
        self.0.retain(|(_, at)| at.elapsed() < AGAIN_AFTER);
        if self.0.iter().any(|(known, _)| known == text) || self.0.len() >= KNOWN_MAX {
            return false;
        }
        self.0.push((text.to_owned(), Instant::now()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_and_others_too() {
        let mut told = Told::default();
        let news: Vec<bool> = ["a", "b", "a", "b", "c"].map(|text| told.is_news(text)).into();
        assert_eq!(news, [true, true, false, false, true]);
        let endless = (0..1000).filter(|n| told.is_news(&n.to_string())).count();
        assert_eq!(endless, KNOWN_MAX - 3);
    }
}
