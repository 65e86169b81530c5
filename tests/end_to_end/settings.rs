//! `tidegate.toml`: found beside the pipelines, checked like them, and overruled by options.

use std::process::Output;

use crate::support::{ColdChain, Device, Home, Instance, Reading, eventually, get, tidegate};

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|out| String::from_utf8_lossy(out)).concat()
}

#[test]
fn a_file_beside_the_pipelines_says_how_the_process_runs() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let settings = "[process]\ndata = \"../data\"\nworkers = 1\ncheckpoint_every = \"200ms\"\n\
                    metrics = \"127.0.0.1:0\"\n";
    home.write("pipelines/tidegate.toml", settings);
    let mut command = tidegate();
    command.arg("run").arg(home.pipelines());
    let instance = home.start_command(&mut command);
    assert!(instance.said().contains("settings from "), "{}", instance.said());
    let reading = Reading::regular("north", "d1", 0, 1_000);
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    device.publish_all([(reading.topic().as_str(), reading.payload())]).unwrap();
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", 1);
    let address = instance.metrics().expect("the file asks for them");
    eventually("checkpoints as often as the file says", || {
        let (_, text) = get(address, "/metrics").unwrap();
        let count = text.lines().find_map(|l| l.strip_prefix("tidegate_checkpoints_total "));
        match count.and_then(|n| n.parse::<u32>().ok()) {
            Some(n) if n >= 2 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    instance.stop();
    // An option wins.
    let other = home.data().with_file_name("other");
    let instance = home.start_command(command.arg("--data").arg(&other));
    assert!(other.join("journal").is_dir());
    instance.stop();
}

#[test]
fn other_commands_find_the_instance_by_the_file_of_the_current_folder() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let file = home.write("tidegate.toml", "[process]\ndata = \"data\"\nworkers = 1\n");
    let here = file.parent().unwrap();
    let instance = home.start_command(tidegate().args(["run", "pipelines"]).current_dir(here));
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    let reading = Reading::regular("north", "d1", 0, 1_000);
    device.publish_all([(reading.topic().as_str(), reading.payload())]).unwrap();
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", 1);
    let said = |arguments: &[&str]| {
        let output = tidegate().args(arguments).current_dir(here).output().unwrap();
        (output.status.success(), text(&output))
    };
    let query = "SELECT count(*) AS n FROM cold_chain.readings";
    assert_eq!(said(&["sql", "-o", "csv", query]), (true, "n\n1\n".to_owned()));
    assert_eq!(said(&["outbox"]), (true, "0 wait, 0 were given up\n".to_owned()));
    let (done, answer) = said(&["apply", "pipelines", "--dry-run"]);
    assert!(done, "{answer}");
    let (done, answer) = said(&["sql", "--data", "other", query]);
    assert!(!done && answer.contains("other/tables"), "{answer}");
    instance.stop();
}

#[test]
fn its_mistakes_are_told_at_once_with_their_lines_and_nothing_is_started() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let settings = "[process]\ndatta = \"x\"\nspill_max = 5\n\n[processes]\n";
    let file = home.write("pipelines/tidegate.toml", settings);
    for command in ["run", "check"] {
        let output = tidegate().arg(command).arg(home.pipelines()).output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for (line, what) in [(2, "did you mean `data`?"), (3, "5 has no unit"), (5, "processes")] {
            assert!(said.contains(&format!("tidegate.toml:{line}:")), "{line} in {said}");
            assert!(said.contains(what), "{what} in {said}");
        }
        assert!(said.contains("3 problems found"), "{said}");
    }
    std::fs::remove_file(&file).unwrap();
    let named = home.write("elsewhere.toml", "[process]\nworkers = 0\n");
    let mut command = home.run_command(1);
    let mut refused = Instance::spawn(command.arg("--config").arg(&named));
    let status = eventually("the refusal", || refused.try_ended().ok_or_else(|| refused.said()));
    assert_eq!(status.code(), Some(1));
    eventually("why", || match refused.said() {
        said if said.contains("elsewhere.toml:2:") => Ok(()),
        said => Err(said),
    });
    assert!(!home.data().exists());
}

#[test]
fn docs_and_schema_know_its_keys() {
    let docs = text(&tidegate().arg("docs").output().unwrap());
    let schema = text(&tidegate().args(["schema", "--process"]).output().unwrap());
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let keys = schema["properties"]["process"]["properties"].as_object().unwrap();
    assert!(keys.len() >= 10, "{keys:?}");
    let help = text(&tidegate().args(["run", "--help"]).output().unwrap());
    for key in keys.keys() {
        assert!(docs.contains(&format!("| `{key}` |")), "{key} in the reference");
        assert!(help.contains(&format!("--{}", key.replace('_', "-"))), "{key} as an option");
    }
}
