//! What is simulated: one pipeline that devices send to, one that reads from a broker, both with
//! windows that late readings revise and alerts that notify.

use tidegate_pipelines::Plan;

fn pipeline(name: &str, source: &str) -> String {
    format!(
        r#"
        name = "{name}"
        [source]
        {source}
        [reading]
        device = "device"
        time = "ts"
        future_bound = "300d"
        disorder = "500ms"
        idle_close = "20s"
        [reading.fields]
        id = "string"
        v = "float64"
        [[step]]
        name = "sums"
        type = "window"
        every = "1s"
        revise_for = "1d"
        select = {{ n = "count(*)", total = "sum(v)", most = "max(v)" }}
        [[alert]]
        name = "much"
        from = "sums"
        fire = "most > 90"
        clear = "most < 80"
        notify = ["ops"]
        [[table]]
        from = "readings"
        freshness = "1ms"
        [[table]]
        from = "sums"
        freshness = "1h"
        [notify.ops]
        type = "webhook"
        url = "https://example.org/hook"
        "#
    )
}

/// The plan of every simulation.
pub(crate) fn plan() -> Plan {
    let direct = "type = \"endpoint\"\nlisten = \"127.0.0.1:1883\"\ntopics = [\"t/{sender}\"]";
    let bridged = "type = \"mqtt\"\nurl = \"mqtt://broker\"\ntopics = [\"b/+\"]";
    let files = [("direct", direct), ("bridged", bridged)]
        .map(|(name, source)| (name.into(), pipeline(name, source)));
    tidegate_pipelines::load(&files, &|_, name| Err(name.to_owned())).unwrap()
}
