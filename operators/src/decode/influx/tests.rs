//! Lines against what InfluxDB's documents say of them, and against lines that were put together
//! from known parts.
#![allow(clippy::unwrap_used)]

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use proptest::prelude::*;

use super::{Lines, Precision, lines};
use crate::decode::{Decoded, Decoder};
use crate::message::{MessageMeta, MessagesBuilder};
use crate::spec::{
    ColumnSpec, ColumnType, DecodeSpec, Format, OnInvalid, Origin, Rules, TimeFormat,
};
use crate::topic::TopicTemplate;

const RECEIVED_US: i64 = 1_760_000_000_000_000;

fn column(name: &str, path: &str, kind: ColumnType, required: bool) -> ColumnSpec {
    ColumnSpec {
        name: name.into(),
        origin: Origin::Path(path.split('.').map(str::to_owned).collect()),
        kind,
        rules: Rules { required, ..Rules::default() },
        on_invalid: OnInvalid::Reject,
        unit: None,
        output: true,
    }
}

fn decoder(fields: &[(&str, &str, ColumnType)]) -> Decoder {
    let mut columns = vec![
        column("device", "host", ColumnType::Utf8, true),
        column("time", "_time", ColumnType::Time(TimeFormat::Auto), true),
    ];
    columns.extend(fields.iter().map(|(name, path, kind)| column(name, path, kind.clone(), false)));
    Decoder::new(DecodeSpec {
        pipeline: "p".into(),
        source: 0,
        topics: vec![TopicTemplate::parse("#").unwrap()],
        format: Format::Influx,
        explode: None,
        columns,
        future_bound_us: 3_600_000_000,
        past_bound_us: None,
        payload_bytes_max: 1000,
        clocks: false,
    })
}

fn decode(decoder: &mut Decoder, all: &[&[u8]], precision: Precision) -> Decoded {
    let mut out = MessagesBuilder::default();
    let meta = MessageMeta { received_us: RECEIVED_US, ..MessageMeta::default() };
    for line in all {
        out.push_with(b"t", line, b"", &precision.properties(), meta);
    }
    decoder.decode(&out.finish(0, 0))
}

/// One column of one line, or why the line is a reject.
fn one(line: &str, path: &str, kind: ColumnType) -> Result<Decoded, String> {
    let mut decoder = decoder(&[("v", path, kind)]);
    let decoded = decode(&mut decoder, &[line.as_bytes()], Precision::Nanoseconds);
    if decoded.rejects.num_rows() == 0 {
        return Ok(decoded);
    }
    let text = |name: &str| decoded.rejects[name].as_string::<i32>().value(0).to_owned();
    Err(format!("{}: {}", text("reason"), text("detail")))
}

fn text_of(line: &str, path: &str) -> String {
    let decoded = one(line, path, ColumnType::Utf8).unwrap();
    decoded.readings["v"].as_string::<i32>().value(0).to_owned()
}

fn float_of(line: &str) -> Result<f64, String> {
    let decoded = one(line, "v", ColumnType::Float64)?;
    Ok(decoded.readings["v"].as_primitive::<Float64Type>().value(0))
}

fn int_of(line: &str) -> Result<i64, String> {
    let decoded = one(line, "v", ColumnType::Int64)?;
    Ok(decoded.readings["v"].as_primitive::<Int64Type>().value(0))
}

#[test]
fn values_of_every_type() {
    for (written, expected) in [
        ("1", 1.0),
        ("-1.5", -1.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.5", -0.5),
        ("007", 7.0),
        ("-007.50", -7.5),
        ("1e3", 1000.0),
        ("-1.234456e+78", -1.234456e78),
        ("12i", 12.0),
        ("12u", 12.0),
        ("0.1", 0.1),
        ("123456789012345678901234567890", 1.2345678901234568e29),
        ("0.00000000000000000000000000001", 1e-29),
    ] {
        assert_eq!(float_of(&format!("m,host=a v={written}")), Ok(expected), "{written}");
    }
    assert_eq!(int_of("m,host=a v=-9223372036854775808i"), Ok(i64::MIN));
    assert_eq!(int_of("m,host=a v=9223372036854775807u"), Ok(i64::MAX));
    assert_eq!(int_of("m,host=a v=-007i"), Ok(-7));
    assert_eq!(int_of("m,host=a v=3.0"), Ok(3));
    assert!(int_of("m,host=a v=18446744073709551615u").unwrap_err().starts_with("type"));
    for word in ["t", "T", "true", "True", "TRUE", "f", "F", "false", "False", "FALSE"] {
        let decoded = one(&format!("m,host=a v={word}"), "v", ColumnType::Bool).unwrap();
        assert_eq!(decoded.readings["v"].as_boolean().value(0), word.starts_with(['t', 'T']));
    }
    assert_eq!(text_of(r#"m,host=a v="x y, z=1 \"q\" \\ \n #""#, "v"), r#"x y, z=1 "q" \ \n #"#);
    assert_eq!(text_of("m,host=a v=\"two\nlines\"", "v"), "two\nlines");
    assert_eq!(text_of("m,host=a v=\"\"", "v"), "");
}

#[test]
fn names_and_places() {
    let line = r"my\ m\,x\=,host=a,t\ ag=v\=1\,2\\z,x=tag x=1,a.b=2,k\,ey=3 1760000000000000000";
    assert_eq!(text_of(line, "_measurement"), r"my m,x\=");
    assert_eq!(text_of(line, "t ag"), r"v=1,2\\z");
    assert_eq!(text_of(line, "x"), "1", "a field comes before a tag");
    assert_eq!(text_of(line, "_tag.x"), "tag");
    assert_eq!(text_of(line, "_field.x"), "1");
    assert_eq!(text_of(line, "a.b"), "2");
    assert_eq!(text_of(line, "k,ey"), "3");
    assert_eq!(text_of("m,host=a x=1,x=2", "x"), "2", "the last counts, as in JSON");
    assert_eq!(text_of("  m,host=a   x=1   5\r\n", "x"), "1");
    let missing = one("m,host=a x=1", "y", ColumnType::Utf8).unwrap();
    assert!(missing.readings["v"].is_null(0));
}

#[test]
fn broken_lines_say_what_is_wrong_and_where() {
    for (line, expected) in [
        ("", "parse: expected a measurement at byte 0"),
        (",host=a v=1", "parse: expected a measurement at byte 0"),
        ("m,host=a", "parse: a line needs a field at byte 8"),
        ("m,host=a ", "parse: a line needs a field at byte 8"),
        ("m v", "parse: expected an equals sign after a key at byte 3"),
        ("m,host v=1", "parse: expected an equals sign after a key at byte 6"),
        ("m,host= v=1", "parse: a tag without a value at byte 7"),
        ("m,=a v=1", "parse: a key without a name at byte 2"),
        ("m,host=a=b v=1", "parse: an equals sign in a tag needs a backslash at byte 8"),
        ("m,host=a,host=b v=1", "parse: a tag comes twice at byte 15"),
        ("m,host=a v=", "parse: not a number, a boolean or a string in quotes at byte 11"),
        ("m,host=a v=1x", "parse: not a number, a boolean or a string in quotes at byte 11"),
        ("m,host=a v=1.5i", "parse: not a number, a boolean or a string in quotes at byte 11"),
        ("m,host=a v=-1u", "parse: not a number, a boolean or a string in quotes at byte 11"),
        ("m,host=a v=NaN", "parse: not a number, a boolean or a string in quotes at byte 11"),
        ("m,host=a v=1e", "parse: not a number, a boolean or a string in quotes at byte 11"),
        ("m,host=a v=.", "parse: not a number, a boolean or a string in quotes at byte 11"),
        ("m,host=a v=+1", "parse: not a number, a boolean or a string in quotes at byte 11"),
        ("m,host=a v=9223372036854775808i", "parse: not a number"),
        ("m,host=a v=\"x", "parse: a string is not closed at byte 11"),
        ("m,host=a v=\"x\"y", "parse: expected a comma, a space or the end after a field"),
        ("m,host=a v=1,", "parse: a line needs a field at byte 13"),
        ("m,host=a v=1 x", "parse: the timestamp is not an integer at byte 13"),
        ("m,host=a v=1 +5", "parse: the timestamp is not an integer at byte 13"),
        ("m,host=a v=1 5 6", "parse: the timestamp is not an integer at byte 13"),
        ("m,host=a v=1\nm,host=b v=2", "parse: expected a comma, a space or the end"),
        ("m,host=a v=1 -5", "time: not a time between 1970 and 2261 at byte 13"),
        ("m,host=a v=1e999", "type: `v` is 1e999, expected a number"),
        ("m v=1", "required: `device` is missing or null"),
    ] {
        let said = float_of(line).unwrap_err();
        assert!(said.starts_with(expected), "{line:?}: {said}");
    }
    let mut decoder = decoder(&[]);
    let bad: [&[u8]; 3] = [b"m,host=a v=1", b"m,host=\xff v=1", b"m,host=b v=1"];
    let decoded = decode(&mut decoder, &bad, Precision::Nanoseconds);
    assert_eq!((decoded.readings.num_rows(), decoded.rejects.num_rows()), (2, 1));
    let many: String = (0..300).map(|i| format!(",{i}=x")).collect();
    assert!(float_of(&format!("m{many} v=1")).unwrap_err().contains("too"));
}

#[test]
fn the_precision_of_the_request_is_the_unit() {
    for (name, unit_us) in [("us", 1), ("ms", 1_000), ("s", 1_000_000), ("m", 60_000_000)] {
        let precision = Precision::parse(name).unwrap();
        let mut decoder = decoder(&[]);
        let decoded = decode(&mut decoder, &[b"m,host=a v=1 29000000"], precision);
        let times = decoded.readings["time"].as_primitive::<TimestampMicrosecondType>();
        assert_eq!(times.value(0), 29_000_000 * unit_us, "{name}");
    }
    let mut decoder = decoder(&[]);
    let both: [&[u8]; 2] = [b"m,host=a v=1 1760000000123456999", b"m,host=a v=1"];
    let decoded = decode(&mut decoder, &both, Precision::parse("").unwrap());
    let times = decoded.readings["time"].as_primitive::<TimestampMicrosecondType>();
    assert_eq!((times.value(0), times.value(1)), (1_760_000_000_123_456, RECEIVED_US));
    assert_eq!(Precision::parse("week"), None);
    // Among other properties of a PUBLISH.
    let mut properties = vec![0x01, 1, 0x02, 0, 0, 0, 9, 0x03, 0, 1, b'x', 0x0b, 0x81, 1];
    properties.extend([0x26, 0, 1, b'a', 0, 1, b'b']);
    properties.extend(Precision::Hours.properties());
    assert_eq!(Precision::of(&properties), Some(Precision::Hours));
    assert_eq!(Precision::of(&properties[..9]), Some(Precision::Nanoseconds));
    let wrong = [0x26, 0, 9, b'p', b'r', b'e', b'c', b'i', b's', b'i', b'o', b'n', 0, 1, b'x'];
    assert_eq!(Precision::of(&wrong), None);
}

#[test]
fn bodies_are_split_at_lines_and_not_inside_strings() {
    let split = |body: &str| -> Vec<String> {
        let kept = lines(body.as_bytes()).filter(|l| Lines::is_content(l));
        kept.map(|l| String::from_utf8(l.to_vec()).unwrap().trim_end().to_owned()).collect()
    };
    assert_eq!(split("a v=1\n\n# no=\"\nb v=2\r\nc v=3"), ["a v=1", "b v=2", "c v=3"]);
    assert_eq!(split("a v=\"x\ny\"\nb v=2"), ["a v=\"x\ny\"", "b v=2"]);
    assert_eq!(split("a v=\"x\ny\",w=\"\n\" 5\nb v=2"), ["a v=\"x\ny\",w=\"\n\" 5", "b v=2"]);
    assert_eq!(split("a v=\"x\ny\",w=1"), ["a v=\"x\ny\",w=1"]);
    assert_eq!(split("a v=\"\\\"\n\"\nb v=2"), ["a v=\"\\\"\n\"", "b v=2"]);
    // Quotes outside of values are letters.
    assert_eq!(split("a\",t=\" v=1\nb,t=\"x v=2\nc v=3"), ["a\",t=\" v=1", "b,t=\"x v=2", "c v=3"]);
    // A string that nobody closes costs its own line.
    assert_eq!(split("a v=\"x\nb v=2\nc v=3"), ["a v=\"x", "b v=2", "c v=3"]);
    assert_eq!(split("a v=\"x\nb v=\"y\"\nc v=3"), ["a v=\"x", "b v=\"y\"", "c v=3"]);
    assert_eq!(split("\"=\\\nb v=2"), ["\"=\\", "b v=2"]);
}

/// Every line of this body opens strings that the following ones close, up to a broken end: looking
/// at all of it again for each line would take hours.
#[test]
fn no_body_takes_more_than_linear_time() {
    for piece in ["\", b=\"\n", "a b=\"\n", "a b=\"\\\"\n", "a b=\\\"\n", "a \\=\"\n"] {
        let body = piece.repeat(200_000) + "\"x";
        let total: usize = lines(body.as_bytes()).map(<[u8]>::len).sum();
        assert_eq!(total, body.len());
    }
}

/// Text with the characters that matter.
fn any_text(characters: &'static str) -> impl Strategy<Value = String> {
    let one = proptest::sample::select(characters.chars().collect::<Vec<char>>());
    proptest::collection::vec(one, 1..8).prop_map(|all| all.into_iter().collect())
}

fn hide(text: &str, characters: &str) -> String {
    text.chars()
        .flat_map(|c| characters.contains(c).then_some('\\').into_iter().chain([c]))
        .collect()
}

proptest! {
    /// Whatever the parts are, the writer's escapes and the reader's agree: what InfluxDB's clients
    /// write, by their rules. (A name cannot end with a backslash there either.)
    #[test]
    fn what_a_client_writes_is_read(
        tag in any_text("ab=, \"#µ"),
        value in any_text("xy=, \"\\z."),
        string in any_text("st\"\\\n=, é"),
        number in -1e9f64..1e9,
    ) {
        let value = format!("{value}.");
        let key = hide(&tag, ",= ");
        let body = format!(
            "m,host=a,{key}={} {key}=\"{}\",n={number} 1760000000000000000\nm,host=b n=1i\n",
            hide(&value, ",= "),
            hide(&string, "\"\\"),
        );
        let split: Vec<&[u8]> = lines(body.as_bytes()).collect();
        prop_assert_eq!(split.len(), 2);
        let mut decoder = decoder(&[
            ("tag", &format!("_tag.{tag}"), ColumnType::Utf8),
            ("string", &format!("_field.{tag}"), ColumnType::Utf8),
            ("n", "n", ColumnType::Float64),
        ]);
        let decoded = decode(&mut decoder, &split, Precision::Nanoseconds);
        prop_assert_eq!(decoded.rejects.num_rows(), 0);
        let text = |name: &str| decoded.readings[name].as_string::<i32>().value(0).to_owned();
        prop_assert_eq!(text("tag"), value);
        prop_assert_eq!(text("string"), string);
        let n = decoded.readings["n"].as_primitive::<Float64Type>();
        prop_assert_eq!((n.value(0), n.value(1)), (number, 1.0));
    }

    #[test]
    fn any_bytes_are_split_and_read_without_harm(body in proptest::collection::vec(
        proptest::sample::select(b"a=,\" \\\n#1itm.-\xff".to_vec()), 0..80,
    )) {
        let split: Vec<&[u8]> = lines(&body).collect();
        prop_assert_eq!(&split.concat(), &body);
        let decoded = decode(&mut decoder(&[]), &split, Precision::Seconds);
        prop_assert_eq!(decoded.readings.num_rows() + decoded.rejects.num_rows(), split.len());
    }
}
