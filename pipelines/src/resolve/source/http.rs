//! `[source] type = "http"`.

use tidegate_operators::spec::Format;
use tidegate_operators::topic::TopicTemplate;

use super::endpoint::{host_of, is_local};
use crate::config::problem::{At, Reporter};
use crate::config::references::{Resolver, known_or};
use crate::config::secret::Secret;
use crate::config::section::{Section, expand};
use crate::plan::{HttpSpec, SourceKind, SourceSpec};

/// One request is one record of the journal, which ends here (less what each message adds).
const DECOMPRESSED_BYTES_MAX: u64 = 48 << 20;
/// Below this an ordinary request has no room.
const BODY_BYTES_MIN: u64 = 1 << 10;

pub(super) fn http(
    file: &Section<'_>,
    source: &Section<'_>,
    topics: &[(TopicTemplate, At)],
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<SourceSpec> {
    let listen = source.resolved("listen", resolve, report)?;
    let listen = known_or(listen, "localhost", |host| format!("{host}:8080"));
    let Some(host) = host_of(&listen) else {
        let hint = "an address has a host and a port: \"127.0.0.1:8080\", \"[::]:8080\"".to_owned();
        report.error(source.at("listen"), format!("`{listen}` is no address"), hint);
        return None;
    };
    let users = secrets(source, "users", resolve, report)?;
    let tokens = secrets(source, "tokens", resolve, report)?;
    let insecure_listen = source.bool("insecure_listen");
    if !is_local(host) && !insecure_listen {
        if users.is_empty() && tokens.is_empty() {
            let message = format!("anybody who reaches `{listen}` could send readings");
            let hint = "give `tokens` or `users`, or write `insecure_listen = true`".to_owned();
            report.error(source.at("listen"), message, hint);
        } else {
            let message =
                format!("tokens and passwords for `{listen}` cross the network unencrypted");
            let hint =
                "put a TLS proxy in front; `insecure_listen = true` silences this".to_owned();
            report.warning(source.at("listen"), message, hint);
        }
    }
    let pipeline = file.text("name").unwrap_or_default().to_owned();
    default_topic(source, &pipeline, topics, report);
    let topic = source.text("topic").unwrap_or(&pipeline).to_owned();
    let format = file.section("reading").and_then(|r| r.text("format"));
    let spec = HttpSpec {
        topic,
        topics: topics.iter().map(|(t, _)| t.clone()).collect(),
        format: if format == Some("influx") { Format::Influx } else { Format::Json },
        users,
        tokens,
        body_bytes_max: source.size_bytes("body_max")?,
        decompressed_bytes_max: source.size_bytes("decompressed_max")?,
        in_flight_bytes_max: source.size_bytes("in_flight_max")?,
        connections_max: usize::try_from(source.int("connections_max")?).ok()?,
        insecure_listen,
        listen,
        pipeline,
    };
    sizes(source, &spec, report);
    let name = format!("http {} {}", spec.listen, spec.pipeline);
    Some(SourceSpec { name, kind: SourceKind::Http(spec) })
}

/// A topic that is written has to fit; without one, requests may name theirs.
fn default_topic(
    source: &Section<'_>,
    pipeline: &str,
    topics: &[(TopicTemplate, At)],
    report: &mut Reporter<'_>,
) {
    let written = source.text("topic");
    let topic = written.unwrap_or(pipeline);
    let mut captures = Vec::new();
    if topics.is_empty() || topics.iter().any(|(t, _)| t.matches(topic, &mut captures)) {
        return;
    }
    let message = format!("no topic template matches `{topic}`");
    if written.is_some() {
        report.error(source.at("topic"), message, "change `topic` or `topics`".to_owned());
    }
}

fn sizes(source: &Section<'_>, spec: &HttpSpec, report: &mut Reporter<'_>) {
    if spec.body_bytes_max < BODY_BYTES_MIN {
        report.error(source.at("body_max"), "a body needs at least 1KiB", None);
    }
    if spec.decompressed_bytes_max > DECOMPRESSED_BYTES_MAX
        || spec.body_bytes_max > DECOMPRESSED_BYTES_MAX
    {
        let key = if spec.body_bytes_max > DECOMPRESSED_BYTES_MAX {
            "body_max"
        } else {
            "decompressed_max"
        };
        let hint = "one request is one record of the journal: at most \"48MiB\"".to_owned();
        report.error(source.at(key), "a body of this size has no room in the journal", hint);
    }
    if spec.decompressed_bytes_max < spec.body_bytes_max {
        let message = "`decompressed_max` is below `body_max`";
        report.error(source.at("decompressed_max"), message, "give at least as much".to_owned());
    }
    // The body as it was sent, unpacked (and moving once while it grows), and as messages.
    let needed = spec.body_bytes_max + 3 * spec.decompressed_bytes_max;
    if spec.in_flight_bytes_max < needed {
        let message = "`in_flight_max` has no room for one request of the largest size";
        let hint = "`body_max` and three times `decompressed_max` have to fit".to_owned();
        report.error(source.at("in_flight_max"), message, hint);
    }
}

fn secrets(
    source: &Section<'_>,
    key: &str,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<Vec<(String, Secret)>> {
    let mut list: Vec<(String, Secret)> = Vec::new();
    for entry in source.entries(key) {
        let secret = expand(&entry.node, resolve, report)?;
        if secret.is_empty() {
            report.error(entry.node.at, "this secret is empty", None);
        }
        if key == "users" && entry.key.contains(':') {
            let hint = "Basic authentication ends the name at the colon".to_owned();
            report.error(entry.key_at, "a user's name cannot have a colon", hint);
        }
        list.push((entry.key.clone(), Secret::new(secret)));
    }
    list.sort_by(|a, b| a.0.cmp(&b.0));
    Some(list)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;

    use tidegate_operators::spec::Format;

    use crate::config::load;
    use crate::plan::{HttpSpec, Plan, SourceKind};

    /// A pipeline with these lines in its source and its reading.
    fn pipeline(name: &str, source: &str, reading: &str) -> String {
        format!(
            "name = \"{name}\"\n[source]\ntype = \"http\"\n{source}\n[reading]\n{reading}\n\
             device = \"d\"\ntime = \"received\"\nfields = {{ v = \"float64\" }}\n\
             [[table]]\nfrom = \"readings\"\n"
        )
    }

    fn plan(texts: &[String]) -> Result<Plan, String> {
        let name = |i: usize| PathBuf::from(format!("{i}.toml"));
        let files: Vec<_> = texts.iter().enumerate().map(|(i, t)| (name(i), t.clone())).collect();
        let secrets = |_: &str, name: &str| match name {
            "EMPTY" => Ok(String::new()),
            name => Ok(format!("secret of {name}")),
        };
        load(&files, &secrets)
            .map_err(|all| all.iter().map(|p| format!("{p}\n")).collect::<String>())
    }

    fn spec(plan: &Plan, i: usize) -> &HttpSpec {
        match &plan.sources[i].kind {
            SourceKind::Http(spec) => spec,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pipelines_share_an_address_and_nothing_else() {
        let tokens = "tokens = { b = \"${env:B}\", a = \"${env:A}\" }\nlisten = \"0.0.0.0:80\"";
        let plan = plan(&[
            pipeline("one", "", ""),
            pipeline("two", "", "format = \"influx\""),
            pipeline("three", &format!("{tokens}\ntopics = [\"x/{{y}}\"]\ntopic = \"x/1\""), ""),
        ])
        .unwrap();
        let (one, two, three) = (spec(&plan, 0), spec(&plan, 1), spec(&plan, 2));
        assert_eq!((one.listen.as_str(), &one.listen), ("127.0.0.1:8080", &two.listen));
        assert_eq!((one.format, two.format), (Format::Json, Format::Influx));
        assert_eq!((one.topic.as_str(), three.topic.as_str()), ("one", "x/1"));
        assert_eq!(one.topics[0].to_string(), "#", "any topic, if none is said");
        let names: Vec<&str> = three.tokens.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!((names, three.tokens[0].1.expose()), (vec!["a", "b"], "secret of A"));
        assert_eq!(plan.sources[1].name, "http 127.0.0.1:8080 two");
    }

    #[test]
    fn mistakes_are_told() {
        for (source, reading, expected) in [
            ("listen = \"nowhere\"", "", "`nowhere` is no address"),
            ("listen = \"0.0.0.0:80\"", "", "anybody who reaches `0.0.0.0:80` could send readings"),
            ("tokens = { a = \"${env:EMPTY}\" }", "", "this secret is empty"),
            ("users = { \"a:b\" = \"${env:A}\" }", "", "a user's name cannot have a colon"),
            ("topics = [\"a/{b}\"]\ntopic = \"c\"", "", "no topic template matches `c`"),
            ("body_max = \"1GiB\"", "", "a body of this size has no room in the journal"),
            ("decompressed_max = \"1GiB\"", "", "a body of this size has no room in the journal"),
            ("body_max = \"1B\"", "", "a body needs at least 1KiB"),
            ("decompressed_max = \"1MiB\"", "", "`decompressed_max` is below `body_max`"),
            ("in_flight_max = \"1MiB\"", "", "no room for one request"),
            ("", "format = \"influx\"\nexplode = \"a\"", "no array to explode"),
            ("path = \"x\"", "", "unknown key `path`"),
        ] {
            let said = plan(&[pipeline("one", source, reading)]).unwrap_err();
            assert!(said.contains(expected), "{source}{reading}: {said}");
        }
        let more = "connections_max = 5";
        let said = plan(&[pipeline("one", "", ""), pipeline("two", more, "")]).unwrap_err();
        assert!(said.contains("`connections_max` differs from pipeline `one`"), "{said}");
    }
}
