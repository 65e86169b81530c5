//! Windows whose bounds come from the data: they move, become one, are withdrawn, or are found
//! late, and the state is that of a rule which saw them only as they are.

use super::*;

/// Time, whether it fires, since.
type Event = (i64, bool, i64);

struct Watched {
    rule: AlertRule,
    /// Everything that was told, in its order.
    told: Vec<Event>,
}

impl Watched {
    fn new(for_us: i64) -> Self {
        Self { rule: rule(for_us), told: Vec::new() }
    }

    fn feed(&mut self, rows: &[Span]) -> Vec<(i64, bool)> {
        self.feed_at(100, rows)
    }

    fn feed_at(&mut self, time_us: i64, rows: &[Span]) -> Vec<(i64, bool)> {
        let mut emit = Emit::default();
        let tick = Tick { epoch: 1, time_us };
        self.rule.epoch(&spans(rows), tick, &mut emit).unwrap();
        let new: Vec<Event> = events(&emit.rows).into_iter().map(|e| (e.1, e.2, e.3)).collect();
        self.told.extend(&new);
        new.into_iter().map(|e| (e.0, e.1)).collect()
    }

    fn restart(&mut self, for_us: i64) {
        let saved = self.rule.save().unwrap();
        self.rule = rule(for_us);
        self.rule.load(&saved).unwrap();
        assert_eq!(self.rule.save().unwrap(), saved);
    }

    fn phase(&self) -> Phase {
        phases(&self.rule).first().map_or(Phase::Normal, |p| p.1)
    }
}

/// A late reading makes one of two: the later is none any more, the earlier goes on.
#[test]
fn when_two_become_one_the_alert_goes_on() {
    let mut one = Watched::new(0);
    assert_eq!(one.feed(&[(0, 10, 9.0, 1, 0)]), [(10, true)]);
    assert_eq!(one.feed(&[(0, 30, 6.0, 1, 1)]), [(30, false)]);
    assert_eq!(one.feed(&[(33, 39, 9.0, 1, 0)]), [(39, true)]);
    one.restart(0);
    assert_eq!(one.feed(&[(0, 10, 9.0, 1, 2), (33, 39, 0.0, 0, 1)]), [(40, false), (41, true)]);
    assert_eq!(one.phase(), Phase::Firing { since_us: 10, told: true });
}

/// What is told last is what holds, by the order of the rows and by their times.
#[test]
fn events_of_a_key_are_told_in_the_order_in_which_they_happened() {
    let mut one = Watched::new(0);
    assert_eq!(one.feed(&[(0, 10, 9.0, 1, 0)]), [(10, true)]);
    assert_eq!(one.feed(&[(-2, 5, 9.0, 1, 0), (0, 10, 0.0, 0, 1)]), [(11, false), (12, true)]);
    assert_eq!(one.phase(), Phase::Firing { since_us: 5, told: true });
    // A window that ends earlier than before is told after what it corrects.
    assert_eq!(one.feed(&[(-2, 3, 6.0, 1, 1)]), [(13, false)]);
}

/// More of them become one than are kept.
#[test]
fn when_many_become_one_the_alert_goes_on() {
    let mut one = Watched::new(0);
    for start in (0..100).step_by(20) {
        one.feed(&[(start, start + 5, 9.0, 1, 0)]);
        one.feed(&[(start, start + 10, 6.0, 1, 1)]);
    }
    let mut rows: Vec<Span> =
        (20..100).step_by(20).map(|start| (start, start + 10, 0.0, 0, 2)).collect();
    rows.insert(0, (0, 5, 9.0, 1, 2));
    one.feed(&rows);
    assert_eq!(one.phase(), Phase::Firing { since_us: 5, told: true });
}

/// A key that was normal for an hour is put away. If its last row then turns out to be none, what
/// stands of those before it counts.
#[test]
fn when_the_last_row_of_a_key_that_was_away_is_withdrawn_an_older_one_counts() {
    let mut one = Watched::new(0);
    one.feed(&[(0, 10, 9.0, 1, 0)]);
    one.feed(&[(0, 30, 6.0, 1, 1)]);
    one.feed(&[(33, 39, 9.0, 1, 0)]);
    assert_eq!(one.feed(&[(33, 60, 6.0, 1, 1)]), [(60, false)]);
    for turn in 1..=2 {
        one.feed_at(turn * 4_000_000_000, &[]);
        assert!(one.rule.interner.is_empty());
        one.restart(0);
        if turn == 1 {
            assert_eq!(one.feed_at(turn * 4_000_000_000, &[(33, 60, 0.0, 0, 2)]), []);
        }
    }
    assert_eq!(one.feed_at(8_000_000_000, &[(0, 50, 9.0, 1, 2)]), [], "older than what was told");
    let mut one = Watched::new(0);
    one.feed(&[(0, 10, 9.0, 1, 0)]);
    one.feed(&[(0, 30, 6.0, 1, 1)]);
    one.feed(&[(33, 39, 9.0, 1, 0)]);
    one.feed(&[(33, 60, 6.0, 1, 1)]);
    one.feed_at(4_000_000_000, &[]);
    assert_eq!(one.feed_at(4_000_000_001, &[(33, 60, 0.0, 0, 2)]), []);
    assert_eq!(one.feed_at(4_000_000_002, &[(0, 50, 9.0, 1, 2)]), [(61, true)]);
}

/// What happens to the windows of a device. Places are counted from the newest.
#[derive(Clone, Debug)]
enum Op {
    New {
        gap: i64,
        length: i64,
        value: f64,
    },
    Revised {
        place: usize,
        length: i64,
        value: f64,
    },
    Withdrawn {
        place: usize,
    },
    /// The newest becomes a part of the one before it.
    Merged {
        value: f64,
    },
    /// One is found between the newest and the one before it.
    Found {
        value: f64,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let value = || 6.0..10.0_f64;
    let op = prop_oneof![
        4 => (1..9_i64, 4..30_i64, value())
            .prop_map(|(gap, length, value)| Op::New { gap, length, value }),
        3 => (0..KEPT, 3..30_i64, value())
            .prop_map(|(place, length, value)| Op::Revised { place, length, value }),
        1 => (0..KEPT).prop_map(|place| Op::Withdrawn { place }),
        2 => value().prop_map(|value| Op::Merged { value }),
        1 => value().prop_map(|value| Op::Found { value }),
    ];
    prop::collection::vec(op, 1..40)
}

/// The windows that there are, and what came of those that are none any more.
#[derive(Default)]
struct Truth {
    /// By start: end, value, revision.
    windows: std::collections::BTreeMap<i64, (i64, f64, i64)>,
    gone: std::collections::BTreeMap<i64, i64>,
    /// How many of the newest the rule knows.
    known: usize,
}

impl Truth {
    fn start(&self, place: usize) -> i64 {
        *self.windows.keys().rev().nth(place).unwrap()
    }

    fn revised(&mut self, start: i64, end: i64, value: f64) -> Span {
        let revision = self.windows[&start].2 + 1;
        self.windows.insert(start, (end, value, revision));
        (start, end, value, 1, revision)
    }

    fn withdrawn(&mut self, start: i64) -> Span {
        let (end, _, revision) = self.windows.remove(&start).unwrap();
        self.gone.insert(start, revision + 1);
        self.known -= 1;
        (start, end, 0.0, 0, revision + 1)
    }

    fn begin(&mut self, start: i64, end: i64, value: f64) -> Span {
        let revision = self.gone.remove(&start).map_or(0, |last| last + 1);
        self.windows.insert(start, (end, value, revision));
        self.known = KEPT.min(self.known + 1);
        (start, end, value, 1, revision)
    }

    /// The rows of it, in the order of their times; none if it cannot be.
    fn apply(&mut self, op: &Op) -> Vec<Span> {
        let newest = self.windows.values().next_back().map_or(0, |w| w.0);
        let mut rows = match *op {
            Op::New { gap, length, value } => {
                vec![self.begin(newest + gap, newest + gap + length, value)]
            }
            Op::Revised { place, length, value } if place < self.known => {
                let start = self.start(place);
                let next = self.windows.range(start + 1..).next().map_or(i64::MAX, |w| *w.0);
                vec![self.revised(start, (start + length).min(next), value)]
            }
            Op::Withdrawn { place } if place < self.known => {
                vec![self.withdrawn(self.start(place))]
            }
            Op::Merged { value } if self.known > 1 => {
                let gone = self.withdrawn(self.start(0));
                vec![self.revised(self.start(0), gone.1, value), gone]
            }
            Op::Found { value } if self.known > 1 => {
                let from = self.windows[&self.start(1)].0;
                let start = from + 1;
                if start + 2 > self.start(0) {
                    return Vec::new();
                }
                vec![self.begin(start, start + 1, value)]
            }
            _ => Vec::new(),
        };
        rows.sort_by_key(|row| (row.1, row.0));
        rows
    }

    /// As a rule sees them that sees them once, as they are.
    fn phase(&self, for_us: i64) -> Phase {
        let mut straight = Watched::new(for_us);
        let rows = self.windows.iter();
        straight.feed(&rows.map(|(s, w)| (*s, w.0, w.1, 1, 0)).collect::<Vec<Span>>());
        straight.phase()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_state_is_that_of_the_windows_as_they_are(
        ops in ops(), for_us in 0..60_i64, restart in 0..40_usize,
    ) {
        let (mut truth, mut one) = (Truth::default(), Watched::new(for_us));
        for (i, op) in ops.iter().enumerate() {
            if i == restart {
                one.restart(for_us);
            }
            one.feed(&truth.apply(op));
            match (one.phase(), truth.phase(for_us)) {
                // Of an alert that goes on, what was told counts.
                (Phase::Firing { .. }, Phase::Firing { .. }) => {}
                (is, should) => prop_assert_eq!(is, should, "{:?}", op),
            }
        }
        let (mut firing, mut since, mut last) = (false, 0, i64::MIN);
        for (time, fires, began) in &one.told {
            prop_assert_ne!(*fires, firing, "{:?}", one.told);
            prop_assert!(*time > last, "by time it is the same order: {:?}", one.told);
            prop_assert!(*fires || *began == since, "an end is that of what was told");
            (firing, since, last) = (*fires, *began, *time);
        }
        prop_assert_eq!(firing, matches!(one.phase(), Phase::Firing { .. }));
    }
}

/// A row is taken back after it came, also in one epoch.
#[test]
fn what_an_epoch_brings_and_takes_back_does_not_stay() {
    let mut one = Watched::new(0);
    assert_eq!(one.feed(&[(0, 10, 9.0, 1, 0), (0, 10, 0.0, 0, 1)]), [(10, true), (11, false)]);
    assert_eq!(one.phase(), Phase::Normal);
    assert_eq!(one.feed(&[(0, 10, 9.0, 1, 2)]), [(12, true)], "it passes again");
    assert_eq!(one.feed(&[(20, 30, 9.0, 1, 0), (0, 10, 0.0, 0, 3)]), [(13, false), (30, true)]);
    assert_eq!(one.phase(), Phase::Firing { since_us: 30, told: true });
}

/// Behind a filter comes as well what takes back windows that it never let pass.
#[test]
fn a_key_takes_no_place_by_what_only_takes_back() {
    let mut one = Watched::new(0);
    assert_eq!(one.feed(&[(0, 10, 0.0, 0, 1)]), []);
    assert!(one.rule.interner.is_empty());
    assert_eq!(one.feed(&[(0, 10, 9.0, 1, 2)]), [(10, true)]);
    assert_eq!(one.rule.counts().out_of_order, 0);
}
