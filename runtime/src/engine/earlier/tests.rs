//! What counts as another plan, and what is nobody's in it.
#![allow(clippy::unwrap_used)]

use tidegate_pipelines::load;

use super::*;
use crate::clock::Clock;
use crate::journal::JournalOptions;
use crate::journal::examine::testing::write_journal;

/// A pipeline that reads from this source.
fn text(name: &str, source: &str) -> (PathBuf, String) {
    let text = format!(
        "name = \"{name}\"\n[source]\n{source}\n[reading]\ndevice = \"device\"\ntime = \"ts\"\n\
         fields = {{ v = \"int64\" }}\n[[table]]\nfrom = \"readings\"\n"
    );
    (format!("{name}.toml").into(), text)
}

const ENDPOINT: &str = "type = \"endpoint\"\nlisten = \"127.0.0.1:PORT\"\ntopics = [\"a/{site}\"]";
const BROKER: &str = "type = \"mqtt\"\nurl = \"mqtt://127.0.0.1:PORT\"\ntopics = [\"a/{site}\"]";
const HTTP: &str = "type = \"http\"\nlisten = \"127.0.0.1:PORT\"\n\
    tokens = { gateway = \"${env:TOKEN}\" }";

fn plan(files: &[(PathBuf, String)]) -> Plan {
    let references = |_: &str, name: &str| Ok(format!("secret of {name}"));
    load(files, &references).unwrap()
}

/// Kept for `before`, read again.
fn kept(data: &Path, before: &Plan) -> Earlier {
    keep(data, before, Some(0)).unwrap();
    ran_last(data).unwrap().unwrap()
}

#[test]
fn a_source_with_another_address_is_another_plan_whatever_it_is() {
    for source in [ENDPOINT, BROKER, HTTP] {
        let dir = tempfile::tempdir().unwrap();
        write_journal(&dir.path().join("journal"), 1 << 20, 2);
        let at = |port: &str| plan(&[text("p", &source.replace("PORT", port))]);
        let before = at("1883");
        kept(dir.path(), &before);
        assert_eq!(earlier(dir.path(), &before).unwrap(), None, "{source}");
        let found = earlier(dir.path(), &at("1884")).unwrap();
        assert!(found.is_some(), "{source}");
        // The address stood in the environment: the same files give another one today.
        let again = found.unwrap().as_it_ran(at("1884")).unwrap();
        assert_eq!(again.sources[0].name, before.sources[0].name);
    }
}

#[test]
fn two_pipelines_that_change_their_places_are_others_and_run_again_as_they_did() {
    let dir = tempfile::tempdir().unwrap();
    write_journal(&dir.path().join("journal"), 1 << 20, 2);
    let at = |a: &str, b: &str| {
        plan(&[text("a", &ENDPOINT.replace("PORT", a)), text("b", &ENDPOINT.replace("PORT", b))])
    };
    let before = at("1883", "1884");
    kept(dir.path(), &before);
    let moved = at("1884", "1883");
    let found = earlier(dir.path(), &moved).unwrap().unwrap();
    let again = found.as_it_ran(moved).unwrap();
    let numbers = |plan: &Plan| Vec::from_iter(plan.pipelines.iter().map(|p| p.decode.source));
    assert_eq!((numbers(&again), sources_of(&again)), (numbers(&before), sources_of(&before)));
    // Both from one place now.
    let again = found.as_it_ran(at("1884", "1884")).unwrap();
    assert_eq!(sources_of(&again), sources_of(&before));
    let alone = plan(&[text("a", &ENDPOINT.replace("PORT", "1883"))]);
    assert!(found.as_it_ran(alone).is_none(), "these pipelines did not run");
}

#[test]
fn messages_that_nobody_reads_any_more_refuse_a_start_if_it_is_not_known_what_ran() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let sent = write_journal(&data.join("journal"), 1 << 20, 4);
    let named = |names: [&str; 2]| {
        let source = |port| ENDPOINT.replace("PORT", port);
        let mut plan = plan(&[text("a", &source("1")), text("b", &source("2"))]);
        for (source, name) in plan.sources.iter_mut().zip(names) {
            name.clone_into(&mut source.name);
        }
        plan
    };
    let open = || {
        let options = JournalOptions::new(data.join("journal"));
        Journal::open(options, Clock::manual(9_000), &[], 0).unwrap().0
    };
    let refused = |plan: &Plan, since| {
        let result = refuse_orphans(data, plan, &open(), since);
        result.err().map(|error| error.to_string())
    };
    let (both, one) = (named(["x", "y"]), named(["x", "z"]));
    assert_eq!(refused(&both, 0), None);
    // Every second offer is of the other source, and has two messages.
    let why = refused(&one, 0).unwrap();
    assert!(why.contains(&format!("{} from `y`", sent.len() * 2 / 3)), "{why}");
    assert!(!why.contains("`x`") && why.contains("Start once with"), "{why}");
    let newest = journal::newest_epoch(&data.join("journal")).unwrap();
    assert_eq!(refused(&one, newest), None, "a checkpoint has them");
    // Of an older version: it did not say from where messages came.
    kept(data, &one);
    let text = std::fs::read_to_string(data.join(FILE)).unwrap();
    let text = unsealed(&text).unwrap();
    let sources = r#""sources":{"a":"x","b":"z"},"#;
    assert!(text.contains(sources), "{text}");
    std::fs::write(data.join(FILE), text.replace(sources, "")).unwrap();
    assert!(ran_last(data).unwrap().is_some());
    assert!(refused(&one, 0).is_some());
    // Those that ran last were let in, so they had everything that there was.
    kept(data, &one);
    assert_eq!(refused(&one, 0), None);
}

#[test]
fn a_flipped_bit_is_seen_and_what_ran_is_not_known_then() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path(), dir.path().join(FILE));
    assert_eq!(damage(data), Ok(None));
    let before = kept(data, &plan(&[text("crc32", &ENDPOINT.replace("PORT", "1883"))]));
    assert_eq!(damage(data), Ok(Some(())));
    let good = std::fs::read(&file).unwrap();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            assert!(parse(&bytes).is_err(), "bit {bit} of byte {at}");
        }
    }
    // The last bit is another letter, the first is no text at all.
    for bit in [1, 1 << 7] {
        let mut bytes = good.clone();
        bytes[good.len() / 2] ^= bit;
        std::fs::write(&file, bytes).unwrap();
        assert!(damage(data).is_err(), "{bit}");
        assert_eq!(ran_last(data).unwrap(), None, "{bit}");
    }
    for end in [0, 1, good.len() / 2, good.len() - 1] {
        std::fs::write(&file, &good[..end]).unwrap();
        assert!(damage(data).is_err(), "{end} bytes");
    }
    // Earlier versions kept no checksum.
    std::fs::write(&file, serde_json::to_vec(&before.kept).unwrap()).unwrap();
    assert_eq!(damage(data), Ok(Some(())));
    assert_eq!(ran_last(data).unwrap(), Some(before));
}
