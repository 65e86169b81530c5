//! What changes in a file is said, once, and what cannot be used costs nothing else.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Mutex as Shared;
use std::time::{Duration, Instant};

use super::read::read_file_of as read;
use proptest::prelude::*;
use tidegate_operators::registry::Change;
use tidegate_operators::spec::{
    ColumnSpec, ColumnType, OnInvalid, Origin, RegistrySpec, Rules, TimeFormat,
};

mod told;

use super::super::replaying::Replaying;
use super::*;
use crate::journal::JournalOptions;

/// Of how long a test waits, at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// The registry of [`source`] as joins know it.
pub(super) fn spec(device: Origin, own_times: bool) -> RegistrySpec {
    let column = |name: &str, origin: Origin, kind: ColumnType| ColumnSpec {
        name: name.into(),
        origin,
        kind,
        rules: Rules::default(),
        on_invalid: OnInvalid::Reject,
        unit: None,
        output: true,
    };
    let path = |name: &str| Origin::Path(vec![name.into()]);
    let mut device = column("device", device, ColumnType::Utf8);
    device.rules.required = true;
    RegistrySpec {
        pipeline: "p".into(),
        name: "limits".into(),
        columns: vec![device, column("high", path("high"), ColumnType::Float64)],
        keys: 1,
        valid_from: own_times
            .then(|| column("valid_from", path("since"), ColumnType::Time(TimeFormat::Auto))),
        versions_max: 3,
        entries: None,
    }
}

fn checker() -> Checker {
    Checker::new(&spec(Origin::Path(vec!["device".into()]), false), 0)
}

/// Nothing is refused.
fn good() -> BTreeSet<usize> {
    BTreeSet::new()
}

/// Lines as rows of a file.
fn lines(texts: &[&[u8]]) -> Vec<Messages> {
    let mut rows = MessagesBuilder::default();
    for text in texts {
        rows.push(b"", text, b"", tidegate_operators::MessageMeta::default());
    }
    vec![rows.finish(0, 0)]
}

fn source(path: &Path, own_times: bool) -> RegistrySource {
    RegistrySource {
        pipeline: "p".into(),
        name: "limits".into(),
        key: vec![("device".into(), vec!["device".into()])],
        columns: vec![("high".into(), vec!["high".into()])],
        valid_from: own_times.then(|| "since".into()),
        place: RegistryPlace::File(path.display().to_string()),
        format: None,
        delimiter: None,
    }
}

fn changes(said: &[Said]) -> Vec<(Change, &str, Option<i64>)> {
    let of = |s: &Said| match s {
        Said::Change { .. } => true,
        Said::Refused { .. } => false,
    };
    said.iter()
        .filter(|s| of(s))
        .map(|s| match s {
            Said::Change { change, row, since_us } => (*change, row.as_str(), *since_us),
            Said::Refused { .. } => unreachable!("filtered above"),
        })
        .collect()
}

fn refused(said: &[Said]) -> Vec<&str> {
    said.iter()
        .filter_map(|s| match s {
            Said::Refused { why, .. } => Some(why.as_str()),
            Said::Change { .. } => None,
        })
        .collect()
}

#[test]
fn a_changed_file_says_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("limits.csv");
    let source = source(&path, false);
    let mut known = Known::default();
    let mut say = |text: &str, since_us| {
        std::fs::write(&path, text).unwrap();
        let said;
        let rows = read(&source).unwrap();
        (known, said) = std::mem::take(&mut known).take(&source, (&rows, &good()), since_us);
        said
    };
    let first = say("device,high\na,8\nb,9\nb,10\nc\n", None);
    let row = |device: &str, high: &str| format!(r#"{{"device":"{device}","high":{high}}}"#);
    let (a, b) = (row("a", "8"), row("b", "9"));
    assert_eq!(changes(&first), [(Change::Set, a.as_str(), None), (Change::Set, b.as_str(), None)]);
    let why = refused(&first);
    assert_eq!(why.len(), 2);
    assert!(why[0].contains("row 3: a row before it has the same key"), "{why:?}");
    assert!(why[1].contains("limits.csv line 5: 1 cells, expected 2"), "{why:?}");
    assert_eq!(say("device,high\na,8\nb,9\nb,10\nc\n", Some(5)), []);
    let second = say("device,high\nb,9.5\nd,1\n,2\n", Some(6));
    let (b, d, none) = (row("b", "9.5"), row("d", "1"), r#"{"device":null,"high":2}"#);
    assert_eq!(
        changes(&second),
        [
            (Change::Remove, r#"{"device":"a"}"#, Some(6)),
            (Change::Set, b.as_str(), Some(6)),
            (Change::Set, d.as_str(), Some(6)),
            // It has no key: decoding says so.
            (Change::Set, none, Some(6)),
        ]
    );
    assert!(refused(&second).is_empty());
    // Again is all that holds, each since when it does.
    let again = known.again();
    assert_eq!(
        changes(&again),
        [(Change::Set, b.as_str(), Some(6)), (Change::Set, d.as_str(), Some(6))]
    );
}

#[test]
fn what_is_no_file_of_rows_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("limits.csv");
    let why = |source: &RegistrySource| format!("{:#}", read(source).unwrap_err());
    assert!(why(&source(&path, false)).contains("limits.csv"));
    std::fs::write(&path, "").unwrap();
    assert!(why(&source(&path, false)).contains("is empty"));
    assert!(why(&source(folder.path(), false)).contains("is not a file"));
    std::fs::write(&path, "a,a\n1,2\n").unwrap();
    assert!(why(&source(&path, false)).contains("two columns `a`"));
    // Another delimiter, another header: nothing of it is known by its key.
    for text in ["device;limit\nd1;3\n", "dev,limit\nd1,3\n"] {
        std::fs::write(&path, text).unwrap();
        assert!(why(&source(&path, false)).contains("no row of "), "{text}");
    }
    std::fs::write(&path, "device,high\n,2\nd1,3\n").unwrap();
    assert!(read(&source(&path, false)).is_ok(), "one row is enough");
}

proptest! {
    /// Taking one file after another ends with what the last one says, however often it is said.
    #[test]
    fn changes_add_up_to_the_last_file(
        own_times in any::<bool>(),
        files in prop::collection::vec(
            prop::collection::vec((0..5_u8, 0..3_u8, 0..4_u8), 0..8), 1..6
        )
    ) {
        let source = source(Path::new("limits.ndjson"), own_times);
        let mut known = Known::default();
        let mut applied: BTreeMap<(u8, Option<u8>), String> = BTreeMap::new();
        for rows in &files {
            let mut builder = MessagesBuilder::default();
            let mut last: BTreeMap<(u8, Option<u8>), String> = BTreeMap::new();
            for (device, since, value) in rows {
                let text = format!(r#"{{"device":{device},"since":{since},"v":{value}}}"#);
                builder.push(b"", text.as_bytes(), b"", tidegate_operators::MessageMeta::default());
                last.entry((*device, own_times.then_some(*since))).or_insert(text);
            }
            let said;
            let rows = [builder.finish(0, 0)];
            (known, said) = known.take(&source, (&rows, &good()), Some(1));
            for (change, row, _) in changes(&said) {
                let value: serde_json::Value = serde_json::from_str(row).unwrap();
                let number = |name: &str| value[name].as_u64().unwrap() as u8;
                let key = (number("device"), own_times.then(|| number("since")));
                match change {
                    Change::Set => drop(applied.insert(key, row.to_owned())),
                    Change::Remove => assert!(!own_times && applied.remove(&key).is_some()),
                    Change::Withdraw => assert!(own_times && applied.remove(&key).is_some()),
                    _ => panic!("a file does not say that"),
                }
            }
            prop_assert_eq!(&applied, &last);
            let (same, nothing) = known.clone().take(&source, (&[], &good()), None);
            prop_assert!(same.rows.is_empty() && nothing.len() == known.rows.len());
        }
    }
}

/// What a join has of each device: since when, and the row's text or that it went.
type Held = BTreeMap<String, BTreeMap<i64, Option<String>>>;

/// Applies what is said, as a join does that knows no times but those that it is told.
fn apply(held: &mut Held, said: &[Said]) {
    for (change, row, since_us) in changes(said) {
        let value: serde_json::Value = serde_json::from_str(row).unwrap();
        let versions = held.entry(value["device"].to_string()).or_default();
        let since_us = since_us.unwrap_or(i64::MIN);
        let now = versions.range(..=since_us).next_back().and_then(|(_, v)| v.clone());
        let row = (change == Change::Set).then(|| row.to_owned());
        if now != row {
            versions.insert(since_us, row);
        }
    }
}

/// What holds at last.
fn holds(held: &Held) -> Vec<&str> {
    held.values().filter_map(|v| v.values().next_back()?.as_deref()).collect()
}

#[test]
fn a_clock_that_was_set_back_does_not_bring_a_change_before_the_last_one() {
    let source = source(Path::new("limits.ndjson"), false);
    let (mut known, mut held) = (Known::default(), Held::new());
    let folder = tempfile::tempdir().unwrap();
    let note = Note::new(folder.path().join("p.limits.ndjson"));
    let (a, b) =
        (br#"{"device":"a","high":1}"#.as_slice(), br#"{"device":"a","high":2}"#.as_slice());
    for (rows, since_us) in [
        (vec![a], None),
        (vec![b], Some(100)),
        (vec![a], Some(50)),
        (vec![], Some(40)),
        (vec![b], Some(30)),
    ] {
        let file = lines(&rows);
        let said;
        (known, said) = known.take(&source, (&file, &good()), since_us);
        apply(&mut held, &said);
        let rows: Vec<&str> = rows.iter().map(|r| std::str::from_utf8(r).unwrap()).collect();
        assert_eq!(holds(&held), rows, "since {since_us:?}");
        // Also over a restart, and where the row that held last is gone.
        note.write(&known).unwrap();
        assert_eq!(note.read().unwrap().as_ref(), Some(&known));
    }
}

#[test]
fn a_row_that_decoding_refuses_is_told_once_and_what_was_known_stays() {
    let source = source(Path::new("limits.ndjson"), false);
    let mut known = Known::default();
    let mut say = |rows: &[&[u8]], since_us| {
        let file = lines(rows);
        let refused = checker().refused(&file);
        let said;
        (known, said) = std::mem::take(&mut known).take(&source, (&file, &refused), since_us);
        (said, known.again())
    };
    let (good, other) = (br#"{"device":"a","high":1}"#, br#"{"device":"b","high":1}"#);
    let (bad, better) = (br#"{"device":"a","high":"x"}"#, br#"{"device":"a","high":2}"#);
    let text = |row: &[u8]| String::from_utf8(row.to_vec()).unwrap();
    let texts = |said: &[Said]| -> Vec<String> {
        changes(said).iter().map(|(_, row, _)| (*row).to_owned()).collect()
    };
    let (said, _) = say(&[good, other], None);
    assert_eq!(texts(&said), [text(good), text(other)]);
    // It is said, so that it becomes a reject; what holds is the good one.
    let (said, again) = say(&[bad, other], Some(5));
    assert_eq!(texts(&said), [text(bad)]);
    assert_eq!(texts(&again), [text(good), text(other)]);
    assert_eq!(say(&[bad, other], Some(6)).0, [], "it was told");
    // Good ones of the same key count, wherever they are, and without any it goes.
    assert_eq!(texts(&say(&[bad, better, other], Some(7)).0), [text(better)]);
    let (said, again) = say(&[other], Some(8));
    assert_eq!(changes(&said), [(Change::Remove, r#"{"device":"a"}"#, Some(8))]);
    assert_eq!(texts(&again), [text(other)]);
}

/// It may be of any of the keys that are missing.
#[test]
fn while_a_row_cannot_be_read_no_key_goes() {
    let folder = tempfile::tempdir().unwrap();
    let csv = source(&folder.path().join("limits.csv"), false);
    let ndjson = source(&folder.path().join("limits.ndjson"), false);
    let row = |device: &str| format!("{{\"device\":\"{device}\",\"high\":1}}\n");
    let lines = |last: &str| format!("device,high\na,1\n{last}");
    let texts = [
        // One cell too many; one that is not UTF-8, below; half a line.
        (&csv, [lines("b,1\n"), lines("b,2,3\n"), lines("")]),
        (&csv, [lines("b,1\n"), lines("b,\u{1}\n"), lines("")]),
        (&ndjson, [row("a") + &row("b"), row("a") + "{\"device\":\"b\"", row("a")]),
    ];
    for (source, [good, bad, gone]) in texts {
        let RegistryPlace::File(path) = &source.place else { unreachable!("it is a file") };
        let mut known = Known::default();
        let mut say = |text: &[u8], since_us| {
            std::fs::write(path, text).unwrap();
            let rows = read(source).unwrap();
            let refused = checker().refused(&rows);
            let said;
            (known, said) = std::mem::take(&mut known).take(source, (&rows, &refused), since_us);
            let gone = changes(&said).iter().filter(|said| said.0 == Change::Remove).count();
            (gone, known.rows.len())
        };
        assert_eq!(say(good.as_bytes(), None), (0, 2));
        let bad = bad.as_bytes().iter().map(|b| if *b == 1 { 0xff } else { *b });
        assert_eq!(say(&bad.collect::<Vec<u8>>(), Some(5)), (0, 2), "{path}");
        assert_eq!(say(gone.as_bytes(), Some(6)), (1, 1), "{path}");
    }
}

#[test]
fn what_cannot_be_said_as_it_is_is_refused_here() {
    let source = source(Path::new("limits.ndjson"), false);
    let long = format!(r#"{{"device":"long","high":1,"x":"{}"}}"#, "x".repeat(1 << 20));
    let longer = long.replace("xxxx", "xxxxx");
    let odd: &[u8] = b"{\"device\":\"\xff\",\"high\":1}";
    let file = lines(&[odd, long.as_bytes(), longer.as_bytes()]);
    let (known, said) = Known::default().take(&source, (&file, &checker().refused(&file)), None);
    assert!(known.rows.is_empty());
    let why = refused(&said);
    assert_eq!((why.len(), said.len()), (3, 3), "{why:?}");
    assert!(why[0].contains("not UTF-8") && why[1].contains("bytes"), "{why:?}");
    let offered: usize = messages("t", &said, 0).iter().map(MessagesBuilder::data_bytes).sum();
    assert!(offered < 1 << 20, "{offered}");
    assert_eq!(known.take(&source, (&file, &good()), Some(1)).1, []);
}

#[test]
fn what_may_have_been_said_is_said_again() {
    let folder = tempfile::tempdir().unwrap();
    let note = Note::new(folder.path().join("p.limits.ndjson"));
    let source = source(Path::new("limits.ndjson"), false);
    let row = |device: &str, high: i64| format!(r#"{{"device":"{device}","high":{high}}}"#);
    // In the file at first, then for a moment, and after a crash.
    let (first, second) = ([row("a", 1), row("b", 1)], [row("a", 2), row("c", 2)]);
    for third in [&first, &second] {
        let mut held = Held::new();
        let take = |known: Known, rows: &[String], since_us| {
            let rows: Vec<&[u8]> = rows.iter().map(String::as_bytes).collect();
            known.take(&source, (&lines(&rows), &good()), since_us)
        };
        let (known, said) = take(Known::default(), &first, None);
        apply(&mut held, &said);
        let (_, said) = take(known.clone(), &second, Some(5));
        note.write(&known.before(&source, &said)).unwrap();
        apply(&mut held, &said);
        // The process dies before it notes what it said.
        let known = note.read().unwrap().unwrap();
        assert!(!known.is_first());
        apply(&mut held, &known.again());
        let (known, said) = take(known, third, Some(6));
        apply(&mut held, &said);
        assert_eq!(holds(&held), third.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(known.unsure.is_empty());
    }
    // The first time it is still so since ever.
    let known = Known::default();
    let said = [Said::Change { change: Change::Set, row: row("a", 1), since_us: None }];
    note.write(&known.before(&source, &said)).unwrap();
    assert!(note.read().unwrap().unwrap().is_first());
}

#[test]
fn a_key_that_could_not_be_written_as_it_was_goes_with_its_row() {
    let source = source(Path::new("limits.ndjson"), false);
    // Read and written by most parsers it is 0.10000000000000002 or the like.
    let row = br#"{"device":0.1000000000000000055,"high":1}"#.as_slice();
    let (known, _) = Known::default().take(&source, (&lines(&[row]), &good()), None);
    let (_, said) = known.take(&source, (&[], &good()), Some(1));
    assert_eq!(changes(&said), [(Change::Remove, std::str::from_utf8(row).unwrap(), Some(1))]);
}

#[test]
fn white_space_before_an_array_has_a_bound() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(&folder.path().join("limits.json"), false);
    let RegistryPlace::File(path) = &source.place else { unreachable!("it is a file") };
    let array = r#"[{"device":"a","high":1}]"#;
    std::fs::write(path, format!("{}{array}", " ".repeat(60_000))).unwrap();
    assert_eq!(read(&source).unwrap().len(), 1);
    std::fs::write(path, format!("{}{array}", " ".repeat(70_000))).unwrap();
    let why = format!("{:#}", read(&source).unwrap_err());
    assert!(why.contains("white space"), "{why}");
}

/// A journal that takes nothing larger than it is told, and remembers the texts.
#[derive(Default)]
struct Narrow {
    refuses: AtomicBool,
    took: Shared<Vec<String>>,
}

#[async_trait::async_trait]
impl Intake for Narrow {
    async fn offer(&self, mut messages: MessagesBuilder) -> Result<(), IntakeError> {
        if self.refuses.load(Ordering::Acquire) {
            return Err(IntakeError::TooLarge { bytes: 9, bytes_max: 8 });
        }
        let run = messages.finish(0, 0);
        let texts = (0..run.len()).map(|i| String::from_utf8_lossy(run.payload(i)).into_owned());
        self.took.lock().unwrap().extend(texts);
        Ok(())
    }
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_the_journal_refuses_is_told_and_a_file_is_looked_at_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("limits.csv");
    let (source, stats) = (source(&path, false), Arc::new(SourceStats::default()));
    stats.set_healthy();
    std::fs::write(&path, "device,high\na,1\n").unwrap();
    let note = Note::new(folder.path().join("p.limits.ndjson"));
    let registry = Registry {
        source,
        topic: "registry/p/limits".into(),
        note,
        known: Known::default(),
        checker: checker(),
        stats: Arc::clone(&stats),
        is_other: false,
    };
    let narrow = Arc::new(Narrow::default());
    narrow.refuses.store(true, Ordering::Release);
    let intake: Arc<dyn Intake> = narrow.clone();
    let registry = Arc::new(Mutex::new(registry));
    let place = path.display().to_string();
    let task = tokio::spawn(watch_file(registry, place, None, (intake, Clock::system())));
    eventually("it is told", || stats.problem().is_some_and(|p| p.contains("at most 8"))).await;
    assert!(!task.is_finished());
    narrow.refuses.store(false, Ordering::Release);
    std::fs::write(&path, "device,high\na,1\nb,2\n").unwrap();
    eventually("it is said", || stats.is_healthy()).await;
    assert_eq!(narrow.took.lock().unwrap().len(), 2);
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_finds_no_room_says_so_and_ends() {
    struct Nowhere;
    impl crate::journal::FeedSink for Nowhere {
        fn push(&mut self, _: crate::journal::Feed) {}
    }
    let folder = tempfile::tempdir().unwrap();
    let options = JournalOptions {
        disk_reserve_bytes: 1 << 60,
        ..JournalOptions::new(folder.path().join("journal"))
    };
    let (journal, _) = Journal::open(options, Clock::system(), &["x".to_owned()], 0).unwrap();
    journal.start(Box::new(Nowhere)).unwrap();
    let intake = journal.intake(0);
    let shown = Replaying::default();
    let say = async {
        let mut row = MessagesBuilder::default();
        row.push(b"t", b"{}", b"", tidegate_operators::MessageMeta::default());
        intake.offer(row).await.map_err(anyhow::Error::from)
    };
    let patience = Duration::from_secs(3);
    let (ended, ()) = tokio::join!(unless_full(&journal, &shown, patience, say), async {
        eventually("it is told", || {
            shown.waits_for().is_some_and(|why| why.contains("bytes are free"))
        })
        .await;
    });
    let why = ended.unwrap_err().to_string();
    assert!(why.contains("found no room") && why.contains("bytes are free"), "{why}");
    assert_eq!(shown.waits_for(), None);
    let fine = unless_full(&journal, &shown, patience, async { Ok(7) }).await;
    assert_eq!(fine.unwrap(), 7);
    tokio::task::block_in_place(|| journal.shutdown());
}

#[tokio::test]
async fn a_watch_that_ended_is_told_unless_it_was_stopped() {
    let stats = Arc::new(SourceStats::default());
    stats.set_healthy();
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry {
        source: source(Path::new("limits.csv"), false),
        topic: String::new(),
        note: Note::new(folder.path().join("note")),
        known: Known::default(),
        checker: checker(),
        stats: Arc::clone(&stats),
        is_other: false,
    };
    let task = tokio::spawn(async {});
    let registries = Registries {
        watched: vec![Watched {
            name: "registry p.limits".into(),
            registry: Arc::new(Mutex::new(registry)),
            stats,
            task,
        }],
        entries: Arc::default(),
        clock: Clock::system(),
        stopped: AtomicBool::new(false),
    };
    eventually("it is told", || !registries.problems().is_empty()).await;
    registries.stop();
    assert_eq!(registries.problems(), Vec::<String>::new());
}
