//! The tree against a matcher that splits by level and does nothing else.

use proptest::prelude::*;

use super::super::filter::matches;
use super::super::retained::Retained;
use super::super::subscriptions::{Entry, Matches, Options, Tree};
use super::*;

/// Straight from chapter 4.7, level by level.
fn oracle(filter: &str, topic: &str) -> bool {
    fn rest(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#"], _) => true,
            (["+", f @ ..], [_, t @ ..]) => rest(f, t),
            ([a, f @ ..], [b, t @ ..]) => a == b && rest(f, t),
            ([], []) => true,
            _ => false,
        }
    }
    let (f, t): (Vec<&str>, Vec<&str>) = (filter.split('/').collect(), topic.split('/').collect());
    !(topic.starts_with('$') && ["+", "#"].contains(&f[0])) && rest(&f, &t)
}

fn topic() -> impl Strategy<Value = String> {
    let level = prop::sample::select(vec!["", "a", "b", "b-", "b0", "ab", "$a", "é"]);
    prop::collection::vec(level, 1..5)
        .prop_map(|levels| levels.join("/"))
        .prop_filter("a topic is not empty", |topic| !topic.is_empty())
}

fn any_filter() -> impl Strategy<Value = String> {
    let level = prop::sample::select(vec!["", "a", "b", "b-", "+", "+", "ab", "$a"]);
    (prop::collection::vec(level, 1..5), any::<bool>())
        .prop_map(|(mut levels, hash)| {
            if hash {
                *levels.last_mut().unwrap() = "#";
            }
            levels.join("/")
        })
        .prop_filter("a filter is not empty", |filter| !filter.is_empty())
}

proptest! {
    #[test]
    fn the_tree_finds_what_the_oracle_finds(
        filters in prop::collection::vec((0u32..6, any_filter()), 1..40),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        topics in prop::collection::vec(topic(), 1..10),
    ) {
        let mut tree = Tree::new();
        let mut all = std::collections::BTreeSet::new();
        for (slot, filter) in &filters {
            let entry = Entry { slot: *slot, identifier: 0, options: Options(0) };
            let new = all.insert((*slot, filter.clone()));
            prop_assert_eq!(tree.insert(None, filter, entry).is_none(), new);
        }
        for index in removed {
            let (slot, filter) = index.get(&filters);
            let known = all.remove(&(*slot, filter.clone()));
            prop_assert_eq!(tree.remove(None, filter, *slot).is_some(), known);
        }
        let mut found = Matches::default();
        for topic in &topics {
            tree.matching(topic.as_bytes(), &mut found);
            let mut slots: Vec<u32> = found.entries.iter().map(|e| e.slot).collect();
            slots.sort_unstable();
            let hits = all.iter().filter(|(_, filter)| oracle(filter, topic));
            prop_assert_eq!(&slots, &hits.map(|(slot, _)| *slot).collect::<Vec<_>>());
            let asked = tree.interest().may_match(topic.as_bytes());
            prop_assert!(asked || slots.is_empty(), "nobody is passed over");
        }
        for (slot, filter) in &all {
            tree.remove(None, filter, *slot);
        }
        prop_assert_eq!(tree.size(), 0, "nothing is left behind");
        let interest = tree.interest();
        prop_assert!(!topics.iter().any(|topic| interest.may_match(topic.as_bytes())));
    }

    #[test]
    fn retained_messages_are_found_as_the_oracle_finds_them(
        topics in prop::collection::btree_set(topic(), 0..60),
        filters in prop::collection::vec(any_filter(), 1..10),
    ) {
        let mut retained = Retained::default();
        for topic in &topics {
            let message = message::Message::new(&publication(topic, "x", 0), 0);
            prop_assert!(retained.put(Arc::new(message), 100, 1 << 20));
        }
        for filter in &filters {
            let mut found = Vec::new();
            retained.matching(filter, |message| found.push(message.topic().to_vec()));
            found.sort_unstable();
            let hits = topics.iter().filter(|topic| oracle(filter, topic));
            let wanted: Vec<Vec<u8>> = hits.map(|topic| topic.clone().into_bytes()).collect();
            prop_assert_eq!(found, wanted, "{}", filter);
        }
    }

    #[test]
    fn one_filter_and_one_topic_match_as_the_oracle_says(f in any_filter(), t in topic()) {
        prop_assert!(is_valid_filter(&f));
        prop_assert_eq!(matches(f.as_bytes(), t.as_bytes()), oracle(&f, &t));
    }
}

#[test]
fn the_oracle_knows_the_examples_of_the_standard() {
    for (filter, topic, wanted) in [
        ("sport/tennis/player1/#", "sport/tennis/player1", true),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
        ("sport/#", "sport", true),
        ("sport/tennis/+", "sport/tennis/player1", true),
        ("sport/tennis/+", "sport/tennis/player1/ranking", false),
        ("sport/+", "sport", false),
        ("sport/+", "sport/", true),
        ("+/+", "/finance", true),
        ("/+", "/finance", true),
        ("+", "/finance", false),
        ("#", "$SYS/x", false),
        ("+/monitor/Clients", "$SYS/monitor/Clients", false),
        ("$SYS/#", "$SYS/x", true),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
    ] {
        assert_eq!(oracle(filter, topic), wanted, "{filter} {topic}");
        assert_eq!(matches(filter.as_bytes(), topic.as_bytes()), wanted, "{filter} {topic}");
    }
}

#[test]
fn a_hundred_thousand_filters_of_their_own_do_not_slow_each_other_down() {
    let broker = memory();
    let clients: Vec<_> = (0..200).map(|c| Client::with(&broker, &format!("c{c}"), &[])).collect();
    for (c, client) in clients.iter().enumerate() {
        for i in 0..500 {
            client.subscribe(filter(&format!("site/{c}/device/{i}/+"), 0));
        }
    }
    assert_eq!(load(&broker.counters().subscriptions), 100_000);
    // Linear work would take minutes.
    for round in 0..500 {
        let many = (0..200).map(|c| publication(&format!("site/{c}/device/{round}/x"), "y", 0));
        let _ = broker.publish("p", many.collect(), 0);
    }
    for client in clients {
        assert_eq!(client.got().len(), 500);
        client.leave(Leave::Normal { session_expiry_s: Some(0) }, 0);
    }
    assert!(!broker.may_match(b"a/b"));
}
