//! Rules, reasons, and the equality of the two ways of reading a document.
#![allow(clippy::unwrap_used)]

use arrow::array::{Array, AsArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use proptest::prelude::*;

use super::*;
use crate::message::{MessageMeta, MessagesBuilder};
use crate::spec::{ColumnSpec, Format, OnInvalid, Rules, TimeFormat};
use crate::text::TextMax;
use crate::topic::TopicTemplate;

const RECEIVED_US: i64 = 1_760_000_010_000_000;

fn path(text: &str) -> Vec<String> {
    text.split('.').filter(|p| !p.is_empty()).map(str::to_owned).collect()
}

fn column(name: &str, kind: ColumnType, origin: Origin) -> ColumnSpec {
    ColumnSpec {
        name: name.to_owned(),
        origin,
        kind,
        rules: Rules::default(),
        on_invalid: OnInvalid::Reject,
        unit: None,
        output: true,
    }
}

/// A column `x` of the payload member `x` and how it is checked.
fn checked(kind: ColumnType, rules: Rules) -> ColumnSpec {
    ColumnSpec { rules, ..column("x", kind, Origin::Path(path("x"))) }
}

fn spec(explode: Option<&str>, columns: Vec<ColumnSpec>) -> DecodeSpec {
    DecodeSpec {
        pipeline: "p".to_owned(),
        source: 1,
        topics: vec![TopicTemplate::parse("plant/{site}/{n}").unwrap()],
        format: Format::Json,
        explode: explode.map(path),
        columns,
        future_bound_us: 3_600_000_000,
        past_bound_us: None,
        payload_bytes_max: 4096,
        clocks: false,
    }
}

fn messages<'a>(payloads: impl IntoIterator<Item = &'a [u8]>) -> Messages {
    let mut builder = MessagesBuilder::default();
    for payload in payloads {
        let meta = MessageMeta { received_us: RECEIVED_US, ..MessageMeta::default() };
        builder.push(b"plant/a/7", payload, b"client", meta);
    }
    builder.finish(1, 100)
}

fn decode(spec: DecodeSpec, payloads: &[&str]) -> Decoded {
    Decoder::new(spec).decode(&messages(payloads.iter().map(|p| p.as_bytes())))
}

/// Rows as text, null as `-`.
fn rows(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("-");
    let formatters: Vec<ArrayFormatter<'_>> =
        batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
    let row = |i| formatters.iter().map(|f| f.value(i).to_string()).collect::<Vec<_>>().join(" ");
    (0..batch.num_rows()).map(row).collect()
}

fn reasons(decoded: &Decoded) -> Vec<String> {
    let reasons = decoded.rejects["reason"].as_string::<i32>();
    reasons.iter().map(|r| r.unwrap().to_owned()).collect()
}

/// The one value of column `x`, or the reason why there is none.
fn one(column: ColumnSpec, x: &str) -> Result<String, String> {
    let payload = format!(r#"{{"x":{x}}}"#);
    // Twice: the second one is read by layout where the first one was walked.
    let decoded = decode(spec(None, vec![column]), &[&payload, &payload]);
    let (readings, reasons) = (rows(&decoded.readings), reasons(&decoded));
    assert_eq!(readings.len() + reasons.len(), 2, "{payload}");
    if readings.is_empty() {
        assert_eq!(reasons[0], reasons[1]);
        return Err(reasons[0].clone());
    }
    assert_eq!(readings[0], readings[1]);
    Ok(readings[0].clone())
}

fn plain(kind: ColumnType, x: &str) -> Result<String, String> {
    one(checked(kind, Rules::default()), x)
}

fn ok(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn err(text: &str) -> Result<String, String> {
    Err(text.to_owned())
}

#[test]
fn coercions_lose_nothing() {
    use ColumnType::*;
    assert_eq!(plain(Float64, "21.5"), ok("21.5"));
    assert_eq!(plain(Float64, r#""21.5""#), ok("21.5"));
    assert_eq!(plain(Float64, "-0.0"), ok("-0.0"));
    assert_eq!(plain(Float64, "1e5"), ok("100000.0"));
    assert_eq!(plain(Float64, "0.1234567890123456789"), ok("0.12345678901234568"));
    for bad in [r#""NaN""#, r#""Infinity""#, "1e400", "true", r#""""#, "[1]", "{}", r#"" 1""#] {
        assert_eq!(plain(Float64, bad), err("type"), "{bad}");
    }
    assert_eq!(plain(Int64, "3.0"), ok("3"));
    assert_eq!(plain(Int64, "-3.00"), ok("-3"));
    assert_eq!(plain(Int64, "1e3"), ok("1000"));
    assert_eq!(plain(Int64, r#""42""#), ok("42"));
    assert_eq!(plain(Int64, "9223372036854775807"), ok("9223372036854775807"));
    assert_eq!(plain(Int64, "-9223372036854775808"), ok("-9223372036854775808"));
    for bad in ["3.5", "9223372036854775808", "1e300", "0.1e0", "false", r#""x""#, "[]"] {
        assert_eq!(plain(Int64, bad), err("type"), "{bad}");
    }
    assert_eq!(plain(Utf8, r#""a\u00e9\ud83d\ude00\n\/""#), ok("aé😀\n/"));
    assert_eq!(plain(Utf8, "\"é\""), ok("é"));
    assert_eq!(plain(Utf8, "1.50"), ok("1.50"));
    assert_eq!(plain(Utf8, "true"), ok("true"));
    assert_eq!(plain(Utf8, "[1]"), err("type"));
    assert_eq!(plain(Utf8, r#""\ud83d""#), err("type"));
    assert_eq!(plain(Utf8, r#""\ud83d\u0041""#), err("type"));
    assert_eq!(plain(Utf8, r#""\ude00""#), err("type"));
    for (text, value) in [("true", "true"), (r#""false""#, "false"), ("0", "false"), ("1", "true")]
    {
        assert_eq!(plain(Bool, text), ok(value));
    }
    for bad in ["2", r#""yes""#, "[]", "0.5"] {
        assert_eq!(plain(Bool, bad), err("type"), "{bad}");
    }
    let time = Time(TimeFormat::Auto);
    assert_eq!(plain(time.clone(), "1760000000123"), ok("2025-10-09T08:53:20.123Z"));
    assert_eq!(plain(time.clone(), r#""2025-10-09T08:53\u003a20Z""#), ok("2025-10-09T08:53:20Z"));
    assert_eq!(plain(time.clone(), r#""soon""#), err("time"));
    assert_eq!(plain(time.clone(), "-5"), err("time"));
    assert_eq!(plain(time.clone(), "true"), err("type"));
    assert_eq!(plain(time, "{}"), err("type"));
}

#[test]
fn rules_reject_or_make_null() {
    use ColumnType::*;
    let range = Rules { min: Some(-1.0), max: Some(2.0), ..Rules::default() };
    let null = |c: ColumnSpec| ColumnSpec { on_invalid: OnInvalid::Null, ..c };
    for (x, expected) in [("-1", ok("-1.0")), ("2", ok("2.0")), ("2.1", err("range"))] {
        assert_eq!(one(checked(Float64, range.clone()), x), expected);
    }
    assert_eq!(one(checked(Int64, range.clone()), "-2"), err("range"));
    assert_eq!(one(null(checked(Int64, range.clone())), "-2"), ok("-"));
    assert_eq!(one(null(checked(Float64, range)), "\"warm\""), ok("-"));

    let pattern = Rules { matches: Some("^SN[0-9]+$".into()), ..Rules::default() };
    assert_eq!(one(checked(Utf8, pattern.clone()), r#""SN1""#), ok("SN1"));
    assert_eq!(one(checked(Utf8, pattern.clone()), r#""XSN1""#), err("pattern"));
    assert_eq!(one(null(checked(Utf8, pattern)), r#""XSN1""#), ok("-"));

    let one_of = Rules { one_of: Some(vec!["ok".into(), "warn".into()]), ..Rules::default() };
    assert_eq!(one(checked(Utf8, one_of.clone()), r#""\u006fk""#), ok("ok"));
    assert_eq!(one(checked(Utf8, one_of.clone()), r#""OK""#), err("one_of"));
    assert_eq!(one(checked(Utf8, one_of), "null"), ok("-"));

    let required = Rules { required: true, ..Rules::default() };
    assert_eq!(one(checked(Bool, required.clone()), "null"), err("required"));
    assert_eq!(one(null(checked(Bool, required.clone())), "null"), ok("-"));
    let missing = decode(spec(None, vec![checked(Bool, required)]), &[r#"{"y":1}"#]);
    assert_eq!(reasons(&missing), ["required"]);
    let absent = decode(spec(None, vec![checked(Bool, Rules::default())]), &[r#"{"y":1}"#, "{}"]);
    assert_eq!(rows(&absent.readings), ["-", "-"]);
}

#[test]
fn paths_and_duplicates() {
    let columns = || {
        vec![
            column("a", ColumnType::Int64, Origin::Path(path("a.b.c"))),
            column("k", ColumnType::Utf8, Origin::Root(path("k"))),
            column("k2", ColumnType::Utf8, Origin::Path(path("k"))),
        ]
    };
    let payloads = [
        r#"{"a":{"b":{"c":1,"d":[{"c":9}]},"c":8},"k":"v"}"#,
        r#" { "k" : "v" , "a" : { "b" : { "c" : 1 } } } "#,
        r#"{"a":{"b":5},"k":"v"}"#,
        r#"{"a":[{"b":{"c":1}}],"k":"v"}"#,
        r#"{"\u0061":{"b":{"c":2}},"k":1,"k":2}"#,
        r#"{"a":{"b":{"c":1}},"a":5}"#,
        r#"{"a":{"b":{"c":1}},"a":{"b":{"c":2}}}"#,
        r#"{"a":{"b":{"c":1}},"a":{"b":{"c":null}}}"#,
    ];
    let expected = ["1 v v", "1 v v", "- v v", "- v v", "2 2 2", "- - -", "2 - -", "- - -"];
    assert_eq!(rows(&decode(spec(None, columns()), &payloads).readings), expected);
    // Each after a document of its own layout, in both orders.
    let twice: Vec<&str> = payloads.iter().chain(payloads.iter().rev()).copied().collect();
    let expected: Vec<&str> = expected.iter().chain(expected.iter().rev()).copied().collect();
    assert_eq!(rows(&decode(spec(None, columns()), &twice).readings), expected);
}

#[test]
fn exploded_arrays() {
    let spec = |explode| {
        spec(
            Some(explode),
            vec![
                column("x", ColumnType::Int64, Origin::Path(path("x"))),
                column("gateway", ColumnType::Utf8, Origin::Root(path("gw.id"))),
            ],
        )
    };
    let decoded = decode(
        spec("d.samples"),
        &[
            r#"{"d":{"samples":[{"x":1},{"x":2.5},{"x":3}, 4 ,{}]},"gw":{"id":"g1"}}"#,
            r#"{"gw":{"id":"g2"},"d":{"samples":[]}}"#,
            r#"{"d":{"samples":{"x":1}}}"#,
            r#"{"d":{}}"#,
            r#"[{"x":1}]"#,
            r#"{"d":{"samples":[{"x":1}]},"gw":{"id":"g3"}"#,
            r#"{"d":{"samples":[{"x":1},{"x":2}]},"d":{"samples":[{"x":3}]}}"#,
            r#"{"d":{"samples":[{"x":1}]},"d":7}"#,
        ],
    );
    assert_eq!(rows(&decoded.readings), ["1 g1", "3 g1", "- g1", "3 -"]);
    assert_eq!(
        reasons(&decoded),
        ["type", "not_an_object", "explode", "explode", "explode", "parse", "explode"]
    );
    let element = decoded.rejects["element"].as_primitive::<Int64Type>();
    assert_eq!((element.value(0), element.value(1)), (1, 3));
    assert!(element.is_null(2));
    let payload = decoded.rejects["payload"].as_binary::<i32>();
    assert_eq!((payload.value(0), payload.value(1)), (&br#"{"x":2.5}"#[..], &b"4"[..]));
    let offset = decoded.rejects["journal_offset"].as_primitive::<Int64Type>();
    assert_eq!(offset.values(), &[100, 100, 102, 103, 104, 105, 107]);

    let top = decode(spec(""), &[r#"[{"x":1},{"x":2}]"#, r#"{"x":1}"#]);
    assert_eq!(rows(&top.readings), ["1 -", "2 -"]);
    assert_eq!(reasons(&top), ["explode"]);
}

#[test]
fn text_around_an_array_is_not_copied_without_a_bound() {
    let columns = || {
        vec![
            column("x", ColumnType::Int64, Origin::Path(path("x"))),
            column("log", ColumnType::Utf8, Origin::Root(path("log"))),
            column("n", ColumnType::Int64, Origin::Root(path("log"))),
        ]
    };
    let sent = |text: usize, elements: usize| {
        let all = vec!["{}"; elements].join(",");
        format!(r#"{{"log":"{}","e":[{all}]}}"#, "7".repeat(text))
    };
    let decode = |columns: Vec<ColumnSpec>, payload: &str| {
        let columns = columns.into_iter().map(|c| ColumnSpec { on_invalid: OnInvalid::Null, ..c });
        let mut spec = spec(Some("e"), columns.collect());
        spec.payload_bytes_max = 1 << 20;
        Decoder::new(spec).decode(&messages([payload.as_bytes(), payload.as_bytes()]))
    };
    // The most that a message of any size may have, and one byte more of each reading.
    let (text, elements) = (4096, repeated::REPEATED_BYTES_MAX / 4096);
    let fits = decode(columns(), &sent(text, elements));
    assert_eq!((fits.readings.num_rows(), fits.rejects.num_rows()), (2 * elements, 0));
    let over = decode(columns(), &sent(text + 1, elements));
    assert_eq!(over.readings.num_rows(), 0);
    assert_eq!(reasons(&over), ["too_large", "too_large"]);
    let detail = over.rejects["detail"].as_string::<i32>().value(0).to_owned();
    let bytes = (text + 1) * elements;
    assert!(detail.contains(&format!("{bytes} bytes in all its readings")), "{detail}");
    // A number is no copy of its text.
    let mut numbers = columns();
    numbers.remove(1);
    assert_eq!(reasons(&decode(numbers, &sent(text + 1, elements))), [""; 0]);
    // A message that is larger itself may have more.
    let (text, elements) = (16_384, 300);
    let padded = format!("{}{}", sent(text, elements), " ".repeat(text * elements / 16 - 17_000));
    assert_eq!(reasons(&decode(columns(), &padded)), [""; 0]);
    assert_eq!(reasons(&decode(columns(), &sent(text, elements))), ["too_large"; 2]);
}

#[test]
fn much_text_is_decoded_in_parts() {
    let columns = vec![
        column("x", ColumnType::Int64, Origin::Path(path("x"))),
        column("log", ColumnType::Utf8, Origin::Root(path("log"))),
    ];
    let sent: Vec<String> = (0..40)
        .map(|i| {
            let (log, more) = ("7".repeat(i * 10), if i % 7 == 3 { ",1" } else { "" });
            format!(r#"{{"log":"{log}","e":[{{"x":{i}}},{{}}{more}]}}"#)
        })
        .collect();
    let all = messages(sent.iter().map(String::as_bytes).collect::<Vec<_>>());
    let mut decoder = Decoder::new(spec(Some("e"), columns));
    let whole = decoder.decode(&all);
    for (turn, least) in [(1, 40), (2_000, 5), (TextMax::default().turn, 1)] {
        let mut parts = Vec::new();
        let max = TextMax { turn, ..TextMax::default() };
        decoder.decode_parts(&all, max, |part| parts.push(part));
        assert!(parts.len() >= least && (least > 1 || parts.len() == 1), "{}", parts.len());
        let readings = parts.iter().map(|part| &part.readings);
        let rejects = parts.iter().map(|part| &part.rejects);
        assert_eq!(concat_batches(&whole.readings.schema(), readings).unwrap(), whole.readings);
        assert_eq!(concat_batches(&whole.rejects.schema(), rejects).unwrap(), whole.rejects);
        assert_eq!(parts.iter().map(|part| part.matched).sum::<u64>(), whole.matched);
    }
    assert_eq!(reasons(&whole).len(), 6);
}

#[test]
fn long_topics_are_not_repeated_without_a_bound() {
    let sent = |topic: usize, elements: usize, columns: Vec<ColumnSpec>| {
        let spec = spec(Some("e"), columns);
        let payload = format!(r#"{{"e":[{}]}}"#, vec!["1"; elements].join(","));
        let mut builder = MessagesBuilder::default();
        let topic = format!("plant/{}/7", "s".repeat(topic));
        builder.push(topic.as_bytes(), payload.as_bytes(), b"", MessageMeta::default());
        reasons(&Decoder::new(spec).decode(&builder.finish(1, 0)))
    };
    // Elements that are rejects say the topic, even where no column has it.
    let x = || vec![column("x", ColumnType::Int64, Origin::Path(path("x")))];
    assert_eq!(sent(60_000, 100, x()), ["too_large"]);
    assert_eq!(sent(900, 1000, x()), ["not_an_object"; 1000]);
    let site = column("site", ColumnType::Utf8, Origin::Capture("site".into()));
    let x = vec![column("x", ColumnType::Int64, Origin::Path(vec![])), site];
    assert_eq!(sent(6000, 1000, x.clone()), ["too_large"]);
    assert_eq!(sent(600, 1000, x), [""; 0]);
}

#[test]
fn elements_can_be_bare_values() {
    let columns = vec![column("v", ColumnType::Float64, Origin::Path(vec![]))];
    let decoded = decode(spec(Some("v"), columns), &[r#"{"v":[1, 2.5,"x",null,{"a":1}]}"#]);
    assert_eq!(rows(&decoded.readings), ["1.0", "2.5", "-"]);
    assert_eq!(reasons(&decoded), ["type", "type"]);
}

#[test]
fn columns_from_around_the_payload() {
    let columns = vec![
        column("site", ColumnType::Utf8, Origin::Capture("site".into())),
        column("n", ColumnType::Int64, Origin::Capture("n".into())),
        column("no", ColumnType::Utf8, Origin::Capture("other".into())),
        column("topic", ColumnType::Utf8, Origin::Topic),
        column("client_id", ColumnType::Utf8, Origin::Client),
        column("received_time", ColumnType::Time(TimeFormat::Seconds), Origin::ReceivedTime),
        column("journal_offset", ColumnType::Int64, Origin::Offset),
    ];
    let mut spec = spec(None, columns);
    spec.topics.insert(0, TopicTemplate::parse("q/{other}").unwrap());
    let mut builder = MessagesBuilder::default();
    let meta = MessageMeta { received_us: RECEIVED_US, ..MessageMeta::default() };
    let topics: [&[u8]; 7] =
        [b"plant/a/7", b"plant/b/7", b"plant/b/x", b"q/r", b"other/t", b"plant/\xff/7", b"q/r"];
    for (i, topic) in topics.into_iter().enumerate() {
        let client: &[u8] = if i == 6 { b"\xff" } else { b"" };
        builder.push(topic, b"{}", if i == 0 { b"c" } else { client }, meta);
    }
    let messages = builder.finish(1, 5);
    let decoded = Decoder::new(spec.clone()).decode(&messages);
    assert_eq!(decoded.matched, 5);
    assert_eq!(
        rows(&decoded.readings),
        [
            "a 7 - plant/a/7 c 2025-10-09T08:53:30Z 5",
            "b 7 - plant/b/7 - 2025-10-09T08:53:30Z 6",
            "- - r q/r - 2025-10-09T08:53:30Z 8",
        ]
    );
    assert_eq!(reasons(&decoded), ["type", "type"], "n of plant/b/x, then the client id");

    let taker = Taker { source: spec.source, topics: &spec.topics };
    let unmatched = unmatched_rejects(&[taker], &messages);
    let texts = unmatched["reason"].as_string::<i32>();
    assert_eq!((texts.len(), texts.value(0), texts.value(1)), (2, "topic", "topic_utf8"));
    assert!(topics_match(&spec.topics, b"q/r") && !topics_match(&spec.topics, b"q"));
    let elsewhere = Messages { source: 2, ..messages.clone() };
    assert_eq!(Decoder::new(spec.clone()).decode(&elsewhere).matched, 0);
    assert_eq!(unmatched_rejects(&[taker], &elsewhere).num_rows(), 7);
}

#[test]
fn whole_messages_are_refused_for_these_reasons() {
    let deep = |n: usize| format!(r#"{{"y":{}{}}}"#, "[".repeat(n), "]".repeat(n));
    let long = format!(r#"{{"y":"{}"}}"#, "z".repeat(5000));
    let (fits, too_deep) = (deep(walk::DEPTH_MAX - 1), deep(walk::DEPTH_MAX));
    let cases = [
        ("", "parse"),
        ("  ", "parse"),
        ("{", "parse"),
        (r#"{"x":1}x"#, "parse"),
        (r#"{"x":1,}"#, "parse"),
        (r#"{"x":1,"humidity":,"y":2}"#, "parse"),
        (r#"{"y":01}"#, "parse"),
        (r#"{"y":.5}"#, "parse"),
        (r#"{"y":1.}"#, "parse"),
        (r#"{"y":-}"#, "parse"),
        (r#"{"y":1e}"#, "parse"),
        (r#"{"y":+1}"#, "parse"),
        (r#"{"y":NaN}"#, "parse"),
        (r#"{"y":tru}"#, "parse"),
        (r#"{"y":"\x"}"#, "parse"),
        (r#"{"y":"\u12g4"}"#, "parse"),
        ("{\"y\":\"a\tb\"}", "parse"),
        (r#"{y:1}"#, "parse"),
        ("ERR sensor 5 timeout", "parse"),
        ("5", "not_an_object"),
        ("[]", "not_an_object"),
        ("null", "not_an_object"),
        (&too_deep, "depth"),
        (&long, "too_large"),
    ];
    let columns = || vec![checked(ColumnType::Int64, Rules::default())];
    for (payload, reason) in cases {
        let good = r#"{"x":1,"humidity":2,"y":2}"#;
        let decoded = decode(spec(None, columns()), &[good, payload, good, r#"{"y":3}"#, payload]);
        assert_eq!(reasons(&decoded), [reason, reason], "{payload}");
        assert_eq!(rows(&decoded.readings), ["1", "1", "-"], "{payload}");
        assert_eq!(decoded.matched, 5);
        let kept = decoded.rejects["payload"].as_binary::<i32>().value(0);
        assert_eq!(kept, payload.as_bytes());
    }
    assert_eq!(rows(&decode(spec(None, columns()), &[&fits]).readings), ["-"]);
    let bad: [&[u8]; 2] = [b"{\"y\":\"\xff\"}", b"\xef\xbb\xbf{}"];
    let decoded = Decoder::new(spec(None, columns())).decode(&messages(bad));
    assert_eq!(reasons(&decoded), ["parse", "parse"]);
}

#[test]
fn readings_from_the_future_are_quarantined() {
    let time = column("time", ColumnType::Time(TimeFormat::Microseconds), Origin::Path(path("t")));
    let bound = RECEIVED_US + 3_600_000_000;
    let payloads = [format!(r#"{{"t":{bound}}}"#), format!(r#"{{"t":{}}}"#, bound + 1)];
    let decoded = decode(spec(None, vec![time]), &[&payloads[0], &payloads[1]]);
    let times = decoded.readings["time"].as_primitive::<TimestampMicrosecondType>();
    assert_eq!(times.values(), &[bound]);
    assert_eq!(reasons(&decoded), ["future"]);
    let own_times = decoded.rejects["reading_time"].as_primitive::<TimestampMicrosecondType>();
    assert_eq!(own_times.iter().collect::<Vec<_>>(), [Some(bound + 1)]);
}

#[test]
fn clocks_are_told_of_all_readings_also_of_those_that_are_too_far_away() {
    let device = column("device", ColumnType::Utf8, Origin::Path(path("d")));
    let time = column("time", ColumnType::Time(TimeFormat::Microseconds), Origin::Path(path("t")));
    let past = Some(5_000_000);
    let spec = DecodeSpec { clocks: true, past_bound_us: past, ..spec(None, vec![device, time]) };
    let readings = [("a", 3), ("a", 1), ("ab", -7_200_000_000), ("a", 5_000_001), ("", 5_000_000)];
    let payloads = readings.map(|(d, lag)| format!(r#"{{"d":"{d}","t":{}}}"#, RECEIVED_US - lag));
    let mut decoder = Decoder::new(spec);
    for _ in 0..2 {
        let decoded = decoder.decode(&messages(payloads.iter().map(|p| p.as_bytes())));
        assert_eq!((decoded.readings.num_rows(), reasons(&decoded).len()), (3, 2));
        assert_eq!(reasons(&decoded), ["future", "past"]);
        let told = decoded.clocks.unwrap();
        let devices: Vec<_> = told["device"].as_string::<i32>().iter().flatten().collect();
        assert_eq!(devices, ["a", "ab", "a", ""]);
        let numbers = |name: &str| told[name].as_primitive::<Int64Type>().values().to_vec();
        assert_eq!(numbers("lag_us"), [1, -7_200_000_000, 5_000_001, 5_000_000]);
        assert_eq!(numbers("readings"), [2, 1, 1, 1]);
    }
}

#[test]
fn checked_columns_are_not_output_and_batches_are_independent() {
    let rules = Rules { max: Some(5.0), ..Rules::default() };
    let hidden = ColumnSpec { output: false, ..checked(ColumnType::Int64, rules) };
    let shown = column("y", ColumnType::Float64, Origin::Path(path("y")));
    let mut decoder = Decoder::new(spec(None, vec![hidden, shown]));
    for _ in 0..3 {
        let payloads: [&[u8]; 3] =
            [br#"{"x":5,"y":1}"#, br#"{"x":6,"y":2}"#, br#"{"x":null,"y":3}"#];
        let decoded = decoder.decode(&messages(payloads));
        let y = decoded.readings["y"].as_primitive::<Float64Type>();
        assert_eq!((decoded.readings.num_columns(), y.values().as_ref()), (1, &[1.0, 3.0][..]));
        assert_eq!(reasons(&decoded), ["range"]);
    }
}

#[test]
fn layouts_are_learned_and_bounded() {
    let columns = vec![column("x", ColumnType::Float64, Origin::Path(path("x")))];
    let mut decoder = Decoder::new(spec(None, columns));
    let payloads: Vec<String> =
        (0..100).map(|i| format!(r#"{{"k{}":"v","x":{}.5}}"#, i % 20, i)).collect();
    let decoded = decoder.decode(&messages(payloads.iter().map(String::as_bytes)));
    let expected: Vec<String> = (0..100).map(|i| format!("{i}.5")).collect();
    assert_eq!(rows(&decoded.readings), expected);
    assert_eq!(decoder.json().layouts(), 8);
    let same = decoder.decode(&messages(payloads.iter().map(String::as_bytes)));
    assert_eq!(rows(&same.readings), expected);
}

/// Everything that can be asked of a document at once, without an array to explode.
fn wide(explode: Option<&str>) -> DecodeSpec {
    use ColumnType::*;
    let mut columns = vec![
        column("device", Utf8, Origin::Path(path("device"))),
        column("time", Time(TimeFormat::Auto), Origin::Path(path("ts"))),
        column("temperature", Float64, Origin::Path(path("temperature"))),
        column("count", Int64, Origin::Path(path("temperature"))),
        column("text", Utf8, Origin::Path(path("meta.a"))),
        column("status", Utf8, Origin::Root(path("status"))),
    ];
    for c in &mut columns[2..5] {
        c.on_invalid = OnInvalid::Null;
    }
    columns[0].rules.required = true;
    spec(explode, columns)
}

/// Decodes by layout and by walk: both must say the same of every message.
fn both(spec: &DecodeSpec, documents: &[Vec<u8>]) -> Decoded {
    let messages = messages(documents.iter().map(Vec::as_slice));
    let mut by_walk = Decoder::new(spec.clone());
    by_walk.json().without_layouts();
    let (fast, slow) = (Decoder::new(spec.clone()).decode(&messages), by_walk.decode(&messages));
    assert_eq!(rows(&fast.readings), rows(&slow.readings));
    // Bits, not just text: -0.0 and the last digit count.
    assert_eq!(fast.readings, slow.readings);
    assert_eq!(fast.rejects, slow.rejects);
    fast
}

/// serde_json's opinion of whether this is a JSON document.
fn is_json(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes)
        .is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "-?(0|[1-9][0-9]{0,6})(\\.[0-9]{1,4})?",
        1 => "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,22})?([eE][+-]?[0-9]{1,2})?",
        1 => "[-+.0-9eE]{1,6}",
    ]
}

fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => number(),
        2 => number().prop_map(|n| format!("\"{n}\"")),
        3 => "\"[a-z0-9é\\-]{0,20}\"",
        1 => "\"(\\\\[nt\"/\\\\]|\\\\u[0-9a-f]{4}|[ -~]){0,4}\"",
        2 => prop_oneof![Just("true"), Just("false"), Just("null")].prop_map(str::to_owned),
        1 => prop_oneof![Just("{}"), Just("[]"), Just("[1,{\"a\":2}]"), Just("{\"a\":3}"), Just("")]
            .prop_map(str::to_owned),
    ]
}

/// Documents like those of a device: some fixed shapes, any scalars.
fn document() -> impl Strategy<Value = String> {
    let shapes = prop_oneof![
        Just(r#"{"device":@,"ts":@,"temperature":@,"humidity":@,"status":@}"#),
        Just(r#"{"device":@,"ts":@,"temperature":@,"status":@,"status":@}"#),
        Just(r#"{ "ts": @, "device": @, "meta": {"a": @, "b": [@, @]} }"#),
        Just(r#"{"device":@,"meta":{"a":@},"meta":@}"#),
        Just(r#"{"device":@,"meta":@,"temperature":@ }"#),
        Just(r#"{"device":@,"\u0074s":@,"temperature":@}"#),
    ];
    (shapes, prop::collection::vec(scalar(), 5)).prop_map(|(shape, scalars)| {
        let mut scalars = scalars.into_iter();
        shape.split('@').fold(String::new(), |text, part| {
            let value = if text.is_empty() { String::new() } else { scalars.next().unwrap() };
            text + &value + part
        })
    })
}

/// One random edit.
fn edit(mut bytes: Vec<u8>, kind: u8, at: usize, byte: u8) -> Vec<u8> {
    if bytes.is_empty() {
        return bytes;
    }
    let at = at % bytes.len();
    const MARKS: &[u8] = b"{}[]\",:\\ \n0-.eE1tfn\x00\x80\xff";
    let byte = if kind & 8 == 0 { MARKS[usize::from(byte) % MARKS.len()] } else { byte };
    match kind % 5 {
        0 => bytes[at] = byte,
        1 => bytes.insert(at, byte),
        2 => drop(bytes.remove(at)),
        3 => bytes.truncate(at),
        _ => bytes.push(byte),
    }
    bytes
}

type Edit = (u8, usize, u8);

fn edited() -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec(any::<Edit>(), 0..3);
    (document(), edits).prop_map(|(document, edits)| {
        edits.into_iter().fold(document.into_bytes(), |b, (kind, at, byte)| edit(b, kind, at, byte))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn layout_and_walk_agree_and_accept_only_json(
        documents in prop::collection::vec(edited(), 1..40),
    ) {
        let decoded = both(&wide(None), &documents);
        let refused: Vec<i64> = decoded.rejects["journal_offset"]
            .as_primitive::<Int64Type>()
            .values()
            .iter()
            .zip(reasons(&decoded))
            .filter(|(_, reason)| reason == "parse")
            .map(|(offset, _)| offset - 100)
            .collect();
        for (i, document) in documents.iter().enumerate() {
            let text = String::from_utf8_lossy(document);
            prop_assert_eq!(is_json(document), !refused.contains(&(i as i64)), "{}", text);
        }
    }

    #[test]
    fn layout_and_walk_agree_on_arrays(
        documents in prop::collection::vec(
            (prop::collection::vec(document(), 0..6), any::<Option<Edit>>()), 1..10),
    ) {
        let documents: Vec<Vec<u8>> = documents
            .into_iter()
            .map(|(elements, change)| {
                let text = format!(r#"{{"d":[{}],"status":"s"}}"#, elements.join(", "));
                match change {
                    Some((kind, at, byte)) => edit(text.into_bytes(), kind, at, byte),
                    None => text.into_bytes(),
                }
            })
            .collect();
        let decoded = both(&wide(Some("d")), &documents);
        let whole = decoded.rejects["element"].null_count();
        let wrong = documents.iter().filter(|d| !is_json(d)).count();
        prop_assert!(whole >= wrong, "{whole} messages refused, {wrong} are not JSON");
    }

    #[test]
    fn numbers_are_those_of_the_standard_library(text in number()) {
        if let Some(number) = value::Number::parse(text.as_bytes()) {
            prop_assert!(is_json(text.as_bytes()), "{}", text);
            let exact: f64 = text.parse().unwrap();
            let expected = exact.is_finite().then(|| exact.to_bits());
            prop_assert_eq!(number.to_f64().map(f64::to_bits), expected, "{}", text);
            if let Ok(integer) = text.parse::<i64>() {
                prop_assert_eq!(number.to_i64(), Some(integer), "{}", text);
            }
        } else {
            prop_assert!(!is_json(text.as_bytes()), "{}", text);
        }
    }

    #[test]
    fn any_double_that_is_written_shortest_is_read_as_itself(bits in any::<u64>()) {
        let double = f64::from_bits(bits);
        prop_assume!(double.is_finite());
        let json = serde_json::to_string(&double).unwrap();
        for text in [format!("{double}"), format!("{double:e}"), json] {
            let read = value::Number::parse(text.as_bytes()).and_then(value::Number::to_f64);
            prop_assert_eq!(read.map(f64::to_bits), Some(bits), "{}", text);
        }
    }

    #[test]
    fn texts_are_those_of_serde_json(text in "\\PC{0,12}", ascii in any::<bool>()) {
        let mut json = serde_json::to_string(&text).unwrap();
        if ascii {
            json = text.encode_utf16().fold("\"".to_owned(), |j, u| j + &format!("\\u{u:04x}"));
            json.push('"');
        }
        prop_assert_eq!(plain(ColumnType::Utf8, &json), Ok(text));
    }
}

#[test]
fn properties_are_columns_and_what_is_malformed_is_missing() {
    use crate::properties::{Property, encode};
    let from = |name: &str, kind, property| column(name, kind, Origin::Property(property));
    let user = || Property::User("serial".into());
    let unused = ColumnSpec { output: false, ..from("unused", ColumnType::Utf8, user()) };
    let columns = vec![
        from("serial", ColumnType::Utf8, user()),
        from("number", ColumnType::Int64, user()),
        from("kind", ColumnType::Utf8, Property::ContentType),
        from("answer", ColumnType::Utf8, Property::CorrelationData),
        unused,
    ];
    let whole = encode([
        (&user(), &b"7"[..]),
        (&Property::ContentType, b"json"),
        (&Property::CorrelationData, b"\x00\xff"),
    ]);
    let cut = &whole[..whole.len() - 1];
    let mut builder = MessagesBuilder::default();
    for properties in [&whole[..], cut, b"", &encode([(&user(), &b"x"[..])])] {
        builder.push_with(b"plant/a/7", b"{}", b"", properties, MessageMeta::default());
    }
    let decoded = Decoder::new(spec(None, columns)).decode(&builder.finish(1, 0));
    assert_eq!(rows(&decoded.readings), ["7 7 json 00ff", "- - - -", "- - - -"]);
    assert_eq!(reasons(&decoded), ["type"]);
}

#[test]
fn the_hash_tells_topics_and_readings_apart_and_the_element_counts() {
    let columns = vec![
        column("x", ColumnType::Int64, Origin::Path(path("x"))),
        column("hash", ColumnType::Int64, Origin::PayloadHash),
        column("element", ColumnType::Int64, Origin::Element),
    ];
    let mut builder = MessagesBuilder::default();
    for (topic, payload) in [
        ("plant/a/7", r#"{"samples":[{"x":1},{"x":1},{"x":2}]}"#),
        ("plant/a/7", r#" {"id":9, "samples":[ {"x":1} ]}"#),
        ("plant/a/8", r#"{"samples":[{"x":1}]}"#),
    ] {
        let meta = MessageMeta::default();
        builder.push(topic.as_bytes(), payload.as_bytes(), b"", meta);
    }
    let decoded = Decoder::new(spec(Some("samples"), columns)).decode(&builder.finish(1, 0));
    let number =
        |c: usize| decoded.readings.column(c).as_primitive::<Int64Type>().values().to_vec();
    let (hash, element) = (number(1), number(2));
    assert_eq!(element, [0, 1, 2, 0, 0]);
    assert!(hash[0] == hash[1] && hash[0] == hash[3], "the same reading at the same topic");
    assert!(hash[0] != hash[2] && hash[0] != hash[4], "another reading, another topic");
}

#[test]
fn what_a_source_refused_is_a_reject_with_its_reason() {
    let mut builder = MessagesBuilder::default();
    let meta = MessageMeta { refused: true, ..MessageMeta::default() };
    builder.push_with(b"plant/a/7", b"a;b", b"", b"x.csv line 3: why", meta);
    builder.push(b"plant/a/7", b"{}", b"", MessageMeta::default());
    let decoded = Decoder::new(spec(None, vec![])).decode(&builder.finish(1, 0));
    assert_eq!((decoded.readings.num_rows(), decoded.rejects.num_rows()), (1, 1));
    assert_eq!(decoded.rejects["detail"].as_string::<i32>().value(0), "x.csv line 3: why");
    assert_eq!(decoded.rejects["payload"].as_binary::<i32>().value(0), b"a;b");
}
