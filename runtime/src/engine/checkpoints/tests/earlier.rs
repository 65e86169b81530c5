//! Checkpoints of earlier versions, which made content ids in another way.

use tidegate_operators::spec::PipelineSpec;
use tidegate_pipelines::{content_ids, content_ids_before};

use super::*;

const EVERY_KIND: &str = include_str!("../../../../../pipelines/tests-data/every-kind.toml");
const FIELDS: &str = "n = \"int64\"\nv = \"float64\"\nw = \"float64\"\ns = \"string\"";

fn pipelines(fields: &str, (from, to): (&str, &str)) -> Vec<PipelineSpec> {
    let text = EVERY_KIND.replace("FIELDS", fields).replace(from, to);
    let files = [("p.toml".into(), text)];
    tidegate_pipelines::load(&files, &|_, name| Err(name.to_owned())).unwrap().pipelines
}

/// A checkpoint of these pipelines as an earlier version wrote it, with state of one step.
fn written_before(dir: &Path, pipelines: &[PipelineSpec]) -> CheckpointStore {
    let store = CheckpointStore::open(dir).unwrap();
    let part = store.write_part("p/days", &snapshot(&[1], 7).rows().unwrap()).unwrap();
    let ids = pipelines.iter().flat_map(content_ids_before);
    let operators = ids.map(|(name, id)| (name, format!("{id:016x}"))).collect();
    let parts = vec![part];
    let manifest = Manifest { format: FORMAT, epoch: 80, operators, parts, ..Manifest::default() };
    store.publish(&manifest).unwrap();
    store
}

fn all(pipelines: &[PipelineSpec]) -> Vec<String> {
    pipelines.iter().flat_map(content_ids).map(|(name, _)| name).collect()
}

fn rows_of(state: &[(String, RecordBatch)]) -> Vec<(&str, usize)> {
    state.iter().map(|(name, rows)| (name.as_str(), rows.num_rows())).collect()
}

#[test]
fn it_is_one_of_the_same_plan() {
    let dir = tempfile::tempdir().unwrap();
    let now = pipelines(FIELDS, ("", ""));
    let store = written_before(dir.path(), &now);
    let mut restored = Restored::read(&store, &now).unwrap();
    assert_eq!((restored.other_plan, &restored.changed), (false, &Vec::new()));
    assert_eq!(restored.kept, all(&now));
    assert_eq!(rows_of(&restored.state), [("p/days", 1)]);
    let manifest = store.latest().unwrap().unwrap().manifest;
    assert!(changed(&manifest, &now).is_empty());
    // And the next one is of this version.
    let options = restored.go_on(store, Duration::ZERO, &Arc::default());
    let mut checkpoints = Checkpoints::by_turns(options, &now);
    checkpoints.write(81, TablesAt::default()).unwrap();
    let manifest = CheckpointStore::look_at(dir.path()).latest().unwrap().unwrap().manifest;
    let ids = now.iter().flat_map(content_ids);
    let ids: BTreeMap<String, String> =
        ids.map(|(name, id)| (name, format!("{id:016x}"))).collect();
    assert_eq!(manifest.operators, ids);
}

#[test]
fn of_another_plan_only_what_has_changed_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let before = pipelines(FIELDS, ("", ""));
    let (alert, all) = (["p/alert/much"], all(&before));
    let other_alert = pipelines(FIELDS, ("total > 5", "total > 6"));
    let restored = Restored::read(&written_before(dir.path(), &before), &other_alert).unwrap();
    assert!(restored.other_plan && restored.changed.is_empty(), "{restored:?}");
    assert_eq!(restored.kept.len(), all.len() - alert.len());
    assert!(!restored.kept.contains(&alert[0].to_owned()));
    // What a field changes that nobody reads is known where it is known what ran.
    let fields = format!("z = \"string\"\n{FIELDS}");
    let more = pipelines(&fields, ("", ""));
    let store = CheckpointStore::open(dir.path()).unwrap();
    let restored = Restored::read_after(&before, &store, &more).unwrap();
    assert_eq!((restored.other_plan, restored.kept), (false, all.clone()));
    let unknown = Restored::read(&store, &more).unwrap();
    assert_eq!(unknown.changed, ["p/days"]);
}

/// A start with another plan makes the checkpoint one of that plan, in its place.
#[test]
fn a_switch_knows_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let before = pipelines(FIELDS, ("", ""));
    let fields = format!("{FIELDS}\nz = \"string\"");
    let more = pipelines(&fields, ("total > 5", "total > 6"));
    let store = written_before(dir.path(), &before);
    let mut restored = Restored::read_after(&before, &store, &more).unwrap();
    let options = restored.go_on(store, Duration::ZERO, &Arc::default());
    let mut checkpoints = Checkpoints::by_turns(options, &more);
    let switched = checkpoints.switch(Switch { new: more.clone(), ..switch(100) });
    let switched = switched.unwrap().unwrap();
    assert_eq!(rows_of(&switched.state), [("p/days", 1)]);
    assert_eq!(switched.rules["p/alert/much"].since_epoch, 100);
    assert_eq!(switched.rules["p/alert/high"].since_epoch, 0);
    assert_eq!(names(dir.path()), ["p/days"]);
}

/// What of a registry on a topic was refused is known only since then.
#[test]
fn an_operator_that_earlier_versions_had_not_begins_without_state() {
    let dir = tempfile::tempdir().unwrap();
    let now = pipelines(FIELDS, ("path = \"l.csv\"", "topic = \"limits/{device}\""));
    let name = "p/registry/limits/refused";
    assert!(all(&now).contains(&name.to_owned()));
    let store = written_before(dir.path(), &now);
    assert!(!store.latest().unwrap().unwrap().manifest.operators.contains_key(name));
    let restored = Restored::read(&store, &now).unwrap();
    assert_eq!((restored.other_plan, restored.kept), (false, all(&now)));
}
