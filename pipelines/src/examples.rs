//! The example pipelines, embedded in the binary: what `tidegate demo` runs and what a newcomer
//! copies. They are ordinary files, checked and tested as any other.

/// What a newcomer reads first; the README shows it.
pub const FIRST: (&str, &str) = ("cold-rooms.toml", include_str!("../examples/cold-rooms.toml"));

/// The address that the examples listen on; whoever runs them elsewhere replaces this text.
pub const LISTEN: &str = "127.0.0.1:1883";

/// Environment variables that the examples refer to: where to send webhooks, and their secret.
pub const WEBHOOK_VARIABLE: &str = "TIDEGATE_DEMO_WEBHOOK";
/// See [`WEBHOOK_VARIABLE`].
pub const SECRET_VARIABLE: &str = "TIDEGATE_DEMO_SECRET";

/// File name and text of each example of the demo.
pub const DEMO: [(&str, &str); 3] = [
    ("demo-cold-chain.toml", include_str!("../examples/demo-cold-chain.toml")),
    ("demo-pumps.toml", include_str!("../examples/demo-pumps.toml")),
    ("demo-energy.toml", include_str!("../examples/demo-energy.toml")),
];

/// Other ways in than MQTT.
pub const WAYS_IN: [(&str, &str); 2] = [
    ("http-json.toml", include_str!("../examples/http-json.toml")),
    ("http-influx.toml", include_str!("../examples/http-influx.toml")),
];

/// One pipeline for each kind of question, to be copied from.
pub const COOKBOOK: &[(&str, &str)] = &[
    ("cookbook-meter.toml", include_str!("../examples/cookbook-meter.toml")),
    ("cookbook-tank.toml", include_str!("../examples/cookbook-tank.toml")),
    ("cookbook-machine.toml", include_str!("../examples/cookbook-machine.toml")),
    ("cookbook-latency.toml", include_str!("../examples/cookbook-latency.toml")),
    ("cookbook-profile.toml", include_str!("../examples/cookbook-profile.toml")),
    ("cookbook-rolling.toml", include_str!("../examples/cookbook-rolling.toml")),
    ("cookbook-trips.toml", include_str!("../examples/cookbook-trips.toml")),
    ("cookbook-samples.toml", include_str!("../examples/cookbook-samples.toml")),
    ("cookbook-door.toml", include_str!("../examples/cookbook-door.toml")),
    ("cookbook-batches.toml", include_str!("../examples/cookbook-batches.toml")),
    ("cookbook-around.toml", include_str!("../examples/cookbook-around.toml")),
    ("cookbook-fleet-clock.toml", include_str!("../examples/cookbook-fleet-clock.toml")),
    ("cookbook-clocks.toml", include_str!("../examples/cookbook-clocks.toml")),
    ("cookbook-uploads.toml", include_str!("../examples/cookbook-uploads.toml")),
    ("cookbook-registry.toml", include_str!("../examples/cookbook-registry.toml")),
    ("cookbook-assets.toml", include_str!("../examples/cookbook-assets.toml")),
    ("cookbook-retained.toml", include_str!("../examples/cookbook-retained.toml")),
    ("cookbook-latest.toml", include_str!("../examples/cookbook-latest.toml")),
    ("cookbook-silence.toml", include_str!("../examples/cookbook-silence.toml")),
    ("cookbook-cadence.toml", include_str!("../examples/cookbook-cadence.toml")),
    ("cookbook-quality.toml", include_str!("../examples/cookbook-quality.toml")),
    ("cookbook-so-far.toml", include_str!("../examples/cookbook-so-far.toml")),
    ("cookbook-shifts.toml", include_str!("../examples/cookbook-shifts.toml")),
    ("cookbook-weeks.toml", include_str!("../examples/cookbook-weeks.toml")),
    ("cookbook-sequence.toml", include_str!("../examples/cookbook-sequence.toml")),
    ("cookbook-restarts.toml", include_str!("../examples/cookbook-restarts.toml")),
    ("cookbook-join-windows.toml", include_str!("../examples/cookbook-join-windows.toml")),
    ("cookbook-join-near.toml", include_str!("../examples/cookbook-join-near.toml")),
];

/// The jobs of the common workload, each reading `readings.ndjson`: what the benches run.
pub const BENCH: [(&str, &str); 3] = [
    ("bench-w1.toml", include_str!("../examples/bench-w1.toml")),
    ("bench-w2.toml", include_str!("../examples/bench-w2.toml")),
    ("bench-w3.toml", include_str!("../examples/bench-w3.toml")),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_example_file_is_listed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != FIRST.0)
            .collect();
        files.sort();
        let mut listed: Vec<&str> = [&DEMO[..], &WAYS_IN, COOKBOOK, &BENCH]
            .concat()
            .iter()
            .map(|(name, _)| *name)
            .collect();
        listed.sort_unstable();
        assert_eq!(files, listed);
    }

    #[test]
    fn examples_say_where_they_listen_and_fit_on_a_screen() {
        for (name, text) in DEMO {
            assert_eq!(text.matches(&format!("listen = \"{LISTEN}\"")).count(), 1, "{name}");
            assert!(text.contains(&format!("${{env:{WEBHOOK_VARIABLE}}}")), "{name}");
            assert!(text.contains(&format!("${{env:{SECRET_VARIABLE}}}")), "{name}");
            assert!(text.lines().count() <= 85, "{name} has {} lines", text.lines().count());
            assert!(text.parse::<toml::Table>().is_ok(), "{name}");
        }
    }

    #[test]
    fn examples_are_without_warnings() {
        for (name, text) in [&[FIRST], &DEMO[..], &WAYS_IN, COOKBOOK].concat() {
            let file = (name.into(), text.to_owned());
            let plan = crate::load(&[file], &|_, name| {
                let is_secret = name.ends_with("_SECRET");
                Ok(if is_secret { "whsec_a2V5" } else { "https://hooks.example/" }.to_owned())
            });
            let warnings = plan.unwrap_or_else(|all| panic!("{name}: {}", all[0])).warnings;
            assert!(warnings.is_empty(), "{name}: {}", warnings[0]);
        }
    }

    #[test]
    fn the_readme_shows_the_first_example_as_it_is() {
        let readme = include_str!("../../README.md");
        assert!(readme.contains(&format!("```toml\n{}```", FIRST.1)));
    }
}
