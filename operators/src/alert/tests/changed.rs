//! A rule that is changed, or removed and put back: what it tells is later than what was told.

use super::*;

const RULE: EndedRule<'_> = EndedRule { pipeline: "p", rule: "r", severity: "warning" };

/// What the rule told, what a change at this time adds, and what the rule is after it.
fn changed(old: &[Row], known: &[Row], time_us: i64) -> (Vec<(String, i64, bool, i64)>, AlertRule) {
    let (mut rule_before, mut made) = (rule(0), rule(0));
    feed(&mut rule_before, old, 50);
    feed(&mut made, known, 50);
    let state = rule_before.save().unwrap();
    let ends = events(&[end_alerts(RULE, &state, time_us).unwrap()]);
    let made = untold(&made.save().unwrap()).unwrap();
    let told = told(&state, time_us).unwrap();
    let mut new = rule(0);
    for part in heir(&new.spec, &[made], &[told], time_us).unwrap() {
        new.load(&part.rows).unwrap();
    }
    (ends, new)
}

#[test]
fn what_fires_again_after_its_end_is_later() {
    let warm = [("a", 10, Some(9.0), 0)];
    let (ends, mut new) = changed(&warm, &warm, 500);
    assert_eq!(ends, [("a".to_owned(), 500, false, 10)]);
    // The window of this row ended before the change.
    let again = events(&feed(&mut new, &[("a", 20, Some(9.0), 0)], 600));
    assert_eq!(again, [("a".to_owned(), 501, true, 10)]);
    let over = events(&feed(&mut new, &[("a", 700, Some(1.0), 0)], 700));
    assert_eq!(over, [("a".to_owned(), 700, false, 10)]);
}

#[test]
fn that_is_so_of_keys_of_which_the_rule_that_was_made_anew_knows_nothing() {
    let (ends, mut new) = changed(&[("a", 10, Some(9.0), 0)], &[], 500);
    assert_eq!(ends, [("a".to_owned(), 500, false, 10)]);
    let told = [("a", 5, Some(9.0), 0), ("b", 5, Some(9.0), 0)];
    let told = events(&feed(&mut new, &told, 600));
    // No row of it is too old; and of others nothing was told.
    assert_eq!(told, [("b".to_owned(), 5, true, 5), ("a".to_owned(), 501, true, 5)]);
}

#[test]
fn an_end_is_later_than_what_a_clock_that_is_ahead_has_told() {
    let ahead = [("a", 900, Some(9.0), 0)];
    let (ends, mut new) = changed(&ahead, &ahead, 500);
    assert_eq!(ends, [("a".to_owned(), 901, false, 900)]);
    let again = events(&feed(&mut new, &[("a", 900, Some(9.0), 1)], 600));
    assert_eq!(again, [("a".to_owned(), 902, true, 900)]);
}

/// The rule that was made anew ends it by itself; the next change has nothing to end.
#[test]
fn a_second_change_knows_what_the_first_has_told() {
    let (_, mut new) = changed(&[("a", 10, Some(9.0), 0)], &[("a", 10, Some(1.0), 0)], 500);
    feed(&mut new, &[("a", 20, Some(1.0), 0)], 501);
    let state = new.save().unwrap();
    assert_eq!(end_alerts(RULE, &state, 510).unwrap().num_rows(), 0);
    let told = told(&state, 510).unwrap();
    let mut third = rule(0);
    for part in heir(&third.spec, &[], std::slice::from_ref(&told), 510).unwrap() {
        third.load(&part.rows).unwrap();
    }
    let again = events(&feed(&mut third, &[("a", 30, Some(9.0), 0)], 520));
    assert_eq!(again, [("a".to_owned(), 501, true, 30)]);
    assert!(is_known(&told, 500 + TOLD_FOR_US - 1) && !is_known(&told, 500 + TOLD_FOR_US));
    // Alerts of other keys are others.
    let mut spec = rule(0).spec;
    assert!(has_keys_of(&spec, &told));
    spec.keys = vec![0, 3];
    assert!(!has_keys_of(&spec, &told));
    spec.keys = vec![2];
    assert!(!has_keys_of(&spec, &told));
}

#[test]
fn what_was_told_long_after_the_rows_is_known_for_a_day() {
    let hour_us = PUT_AWAY_AFTER_US;
    let change_us = 2 * hour_us;
    for (known, silent_us, is_later) in [
        (&[("a", 10, Some(1.0), 0)][..], 2 * hour_us, true),
        (&[], 2 * hour_us, true),
        (&[], TOLD_FOR_US, false),
    ] {
        let (_, mut new) = changed(&[("a", 10, Some(9.0), 0)], known, change_us);
        feed(&mut new, &[("b", 10, Some(1.0), 0)], change_us);
        feed(&mut new, &[], change_us + silent_us);
        let mut after = rule(0);
        after.load(&new.save().unwrap()).unwrap();
        feed(&mut after, &[], change_us + silent_us + 1);
        let told = events(&feed(&mut after, &[("a", 20, Some(9.0), 0)], change_us + silent_us + 2));
        let wanted = if is_later { change_us + 1 } else { 20 };
        assert_eq!(told, [("a".to_owned(), wanted, true, 20)], "{known:?}, {silent_us}");
    }
}
