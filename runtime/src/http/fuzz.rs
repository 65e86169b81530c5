//! Bodies that nobody would send, for `TIDEGATE_FUZZ_SECONDS` (2 unless told): known bodies are
//! cut, doubled and changed at random, packed and unpacked, split, and read as lines of InfluxDB.
//! Nothing may panic, take more memory than its bound, or lose a byte. `TIDEGATE_SEED` repeats a
//! run.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::time::{Duration, Instant};

use tidegate_operators::decode::{Decoder, lines};
use tidegate_operators::spec::{
    ColumnSpec, ColumnType, DecodeSpec, Format, OnInvalid, Origin, Rules, TimeFormat,
};
use tidegate_operators::topic::TopicTemplate;
use tidegate_operators::{MessageMeta, MessagesBuilder};

use super::budget::Budget;
use super::split::{Framing, split};
use super::unpack::{Bounds, Encoding, unpack};

const CORPUS: [&[u8]; 12] = [
    b"{\"a\":1,\"b\":[1,2,{\"c\":\"\\u00e9\\\"]\"}]}",
    b"[{\"a\":1},{\"a\":2},\n3,\"x\",null,true,-1.5e3,[],{}]",
    b"{\"a\":1}\n{\"a\":2}\r\n\n{broken\n",
    b"[[[[[[[[[[]]]]]]]]]]",
    b"cpu,host=a,region=eu\\ west load=0.5,n=3i,u=4u,ok=t,s=\"x y\" 1760000000000000000\n",
    b"m,t=a\\,b\\=c\\ d f=\"quote \\\" back \\\\ line\nbreak\",g=-1.5e-3\nm f=1\n# comment\n\n",
    b"m f=\"open\nm f=1\nm,t=\" f=F\n",
    b"m f=1 9223372036854775807\nm f=1 -9223372036854775808\nm f=9223372036854775808i\n",
    b"\xef\xbb\xbf{\"bom\":1}",
    b"[1,2",
    b"\x28\xb5\x2f\xfd\x04\x00",
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
];
const PIECES: [&[u8]; 16] = [
    b"\"", b"\\", b"\n", b",", b"=", b" ", b"[", b"]", b"{", b"}", b"\\\"", b"\xff", b"i", b"#",
    b"1e999", b"\0",
];
const BODY_BYTES_MAX: usize = 16 * 1024;
const UNPACKED_BYTES_MAX: usize = 256 * 1024;

/// xorshift64*: repeatable, and good enough to choose.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }

    fn of<'a>(&mut self, list: &[&'a [u8]]) -> &'a [u8] {
        list[self.below(list.len())]
    }

    fn body(&mut self) -> Vec<u8> {
        let mut body = self.of(&CORPUS).to_vec();
        for _ in 0..self.below(8) {
            let at = self.below(body.len() + 1);
            match self.below(6) {
                0 => body.truncate(at),
                1 => drop(body.splice(at..at, self.of(&PIECES).iter().copied())),
                2 => drop(body.splice(at..at, self.of(&CORPUS).iter().copied())),
                3 if at < body.len() => body[at] = self.below(256) as u8,
                4 if at < body.len() => drop(body.remove(at)),
                _ => body = body.repeat(1 + self.below(4)),
            }
            body.truncate(BODY_BYTES_MAX);
        }
        body
    }
}

fn decoder() -> Decoder {
    let column = |name: &str, path: &str, kind, required| ColumnSpec {
        name: name.into(),
        origin: Origin::Path(vec![path.into()]),
        kind,
        rules: Rules { required, ..Rules::default() },
        on_invalid: OnInvalid::Reject,
        unit: None,
        output: true,
    };
    Decoder::new(DecodeSpec {
        pipeline: "p".into(),
        source: 0,
        topics: vec![TopicTemplate::parse("#").unwrap()],
        format: Format::Influx,
        explode: None,
        columns: vec![
            column("device", "_measurement", ColumnType::Utf8, true),
            column("time", "_time", ColumnType::Time(TimeFormat::Auto), true),
            column("f", "f", ColumnType::Float64, false),
            column("t", "t", ColumnType::Utf8, false),
        ],
        future_bound_us: i64::MAX,
        past_bound_us: None,
        payload_bytes_max: BODY_BYTES_MAX,
        clocks: false,
    })
}

/// Splits in every way. What an array or lines are split to is, apart from what stands between
/// them, all that was there.
fn check_split(body: &[u8]) {
    for framing in [Framing::Json, Framing::Lines, Framing::Sniff, Framing::Influx] {
        let mut at = 0;
        let result = split(body, framing, |message| {
            // Messages are parts of the body, in order.
            let start = message.as_ptr() as usize - body.as_ptr() as usize;
            assert!(start >= at && start + message.len() <= body.len());
            let between = &body[at..start];
            let skipped_line = matches!(framing, Framing::Influx);
            assert!(skipped_line || between.iter().all(|b| b" \t\r\n,[".contains(b)));
            at = start + message.len();
            Ok(())
        });
        let rest = &body[at.min(body.len())..];
        if result.is_ok() && framing != Framing::Influx {
            assert!(rest.iter().all(|b| b" \t\r\n][".contains(b)), "{framing:?}: {rest:?}");
        }
        let array = body.iter().find(|b| !b" \t\r\n".contains(b)) == Some(&b'[');
        if framing == Framing::Json && array {
            let valid = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
            assert_eq!(result.is_ok(), valid, "{:?}", String::from_utf8_lossy(body));
        }
    }
    assert_eq!(lines(body).collect::<Vec<_>>().concat(), body);
}

fn check_unpack(random: &mut Random, body: &[u8]) {
    let mut packed = match random.below(3) {
        0 => body.to_vec(),
        1 => zstd::encode_all(body, 1).unwrap(),
        _ => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(body).unwrap();
            out.finish().unwrap()
        }
    };
    let whole = random.below(2) == 0;
    if !whole && !packed.is_empty() {
        let at = random.below(packed.len());
        packed[at] ^= 1 << random.below(8);
    }
    let bounds =
        Bounds { body_bytes_max: BODY_BYTES_MAX, decompressed_bytes_max: UNPACKED_BYTES_MAX };
    for encoding in [Encoding::Gzip, Encoding::Zstd] {
        let budget = Budget::new(usize::MAX);
        let mut held = budget.hold();
        let sent = packed.clone();
        held.grow(sent.capacity()).unwrap();
        let result = unpack(sent, encoding, bounds, &mut held);
        assert!(budget.used() <= UNPACKED_BYTES_MAX + packed.len(), "{}", budget.used());
        if let Ok(unpacked) = result {
            assert_eq!(budget.used(), unpacked.capacity());
            assert!(!whole || unpacked == body || unpacked.is_empty(), "{encoding:?}");
        }
    }
}

fn check_lines(decoder: &mut Decoder, body: &[u8]) {
    let mut messages = MessagesBuilder::default();
    let mut n = 0;
    for line in lines(body) {
        messages.push_with(b"t", line, b"", body, MessageMeta::default());
        n += 1;
    }
    let decoded = decoder.decode(&messages.finish(0, 0));
    assert_eq!(decoded.readings.num_rows() + decoded.rejects.num_rows(), n);
}

#[test]
fn no_body_does_harm() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("TIDEGATE_FUZZ_SECONDS").unwrap_or(2);
    let seed = number("TIDEGATE_SEED").unwrap_or(0x7469_6465).max(1);
    let (mut random, mut decoder) = (Random(seed), decoder());
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut bodies = 0;
    while Instant::now() < end || bodies < 100 {
        let body = random.body();
        check_split(&body);
        check_unpack(&mut random, &body);
        check_lines(&mut decoder, &body);
        bodies += 1;
    }
    println!("{bodies} bodies with seed {seed}");
}

/// A gigabyte of nothing in a megabyte costs no more than the bound.
#[test]
fn a_bomb_costs_no_more_than_the_bound() {
    let megabyte = vec![0; 1 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    for _ in 0..64 {
        gzip.write_all(&megabyte).unwrap();
        zstd.write_all(&megabyte).unwrap();
    }
    let bounds = Bounds { body_bytes_max: 1 << 20, decompressed_bytes_max: 8 << 20 };
    for (encoding, bomb) in
        [(Encoding::Gzip, gzip.finish().unwrap()), (Encoding::Zstd, zstd.finish().unwrap())]
    {
        // The ratio is the bound here: a bomb of less than 512 KiB ends at what could have been
        // sent plainly, or at 16 times itself.
        let most = (16 * bomb.len()).max(1 << 20);
        // A buffer that moves is there twice, the second time twice as large.
        let budget = Budget::new(most + most / 2 + 65_536);
        let refusal = unpack(bomb, encoding, bounds, &mut budget.hold()).unwrap_err();
        assert_eq!(refusal.status, 413, "it was not the budget that stopped it");
    }
    // A frame that asks for a window of 128 MiB is refused before it gets it.
    let frame = b"\x28\xb5\x2f\xfd\x00\x88\x01\x00\x00";
    let budget = Budget::new(1 << 20);
    let refusal = unpack(frame.to_vec(), Encoding::Zstd, bounds, &mut budget.hold()).unwrap_err();
    assert_eq!(refusal.status, 400);
}
