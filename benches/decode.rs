//! Decoding alone, on one core: the common workload's lines as messages, four of six members used.
//!
//! `cargo bench --bench decode`: one line per form (one reading per message, 100 per message).

#[allow(dead_code, reason = "only the generator is used")]
mod workload;

use std::time::Instant;

use tidegate_operators::decode::Decoder;
use tidegate_operators::spec::{
    ColumnSpec, ColumnType, DecodeSpec, Format, OnInvalid, Origin, Rules, TimeFormat,
};
use tidegate_operators::topic::{TopicError, TopicTemplate};
use tidegate_operators::{MessageMeta, Messages, MessagesBuilder};

const LINES: u64 = 1_000_000;
const BATCH_READINGS: usize = 8_192;
const ROUNDS: usize = 5;

fn main() -> Result<(), TopicError> {
    let mut text = Vec::new();
    workload::generate::Workload::STANDARD
        .write(LINES, &mut text)
        .expect("writing to memory does not fail");
    let lines: Vec<&[u8]> = text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).collect();
    for readings_per_message in [1, 100] {
        let batches = batches(&lines, readings_per_message);
        let mut decoder = Decoder::new(spec(readings_per_message > 1)?);
        let mut best = f64::INFINITY;
        let (mut readings, mut rejects) = (0, 0);
        for _ in 0..ROUNDS {
            (readings, rejects) = (0, 0);
            let start = Instant::now();
            for batch in &batches {
                let decoded = decoder.decode(batch);
                readings += decoded.readings.num_rows();
                rejects += decoded.rejects.num_rows();
            }
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!(
            "decode per_message={readings_per_message} readings={readings} rejects={rejects} \
             readings_s={:.0}",
            readings as f64 / best
        );
    }
    Ok(())
}

/// Messages of `size` readings each. A malformed line would spoil its whole array, so it is left
/// out where there are arrays.
fn batches(lines: &[&[u8]], size: usize) -> Vec<Messages> {
    let whole =
        |l: &&&[u8]| size == 1 || serde_json::from_slice::<serde::de::IgnoredAny>(l).is_ok();
    let lines: Vec<&[u8]> = lines.iter().filter(whole).copied().collect();
    let mut builder = MessagesBuilder::default();
    let mut batches = Vec::new();
    let meta = MessageMeta { received_us: 1_760_001_000_000_000, ..MessageMeta::default() };
    for group in lines.chunks(size) {
        let payload = match size {
            1 => group[0].to_vec(),
            _ => [b"[", group.join(&b","[..]).as_slice(), b"]"].concat(),
        };
        builder.push(b"file", &payload, b"", meta);
        if builder.len() * size >= BATCH_READINGS {
            batches.push(builder.finish(0, 0));
        }
    }
    batches.push(builder.finish(0, 0));
    batches
}

fn spec(explode: bool) -> Result<DecodeSpec, TopicError> {
    let column = |name: &str, member: &str, kind, required| ColumnSpec {
        name: name.to_owned(),
        origin: Origin::Path(vec![member.to_owned()]),
        kind,
        rules: Rules { required, ..Rules::default() },
        on_invalid: OnInvalid::Reject,
        unit: None,
        output: true,
    };
    Ok(DecodeSpec {
        pipeline: "bench".to_owned(),
        source: 0,
        topics: vec![TopicTemplate::parse("file")?],
        format: Format::Json,
        explode: explode.then(Vec::new),
        columns: vec![
            column("device", "device", ColumnType::Utf8, true),
            column("time", "ts", ColumnType::Time(TimeFormat::Auto), true),
            column("temperature", "temperature", ColumnType::Float64, false),
            column("status", "status", ColumnType::Utf8, false),
        ],
        future_bound_us: 3_600_000_000,
        past_bound_us: None,
        payload_bytes_max: 256 * 1024,
        clocks: false,
    })
}
