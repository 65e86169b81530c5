//! Fuzzing with what is there: a seeded generator, mutations that know what packets look like, and
//! a loop that runs cases for a fixed time.
//!
//! `TIDEGATE_FUZZ_SECONDS` is the time of each target (2 by default, 20 in CI, 600 for a night).
//! A case that fails prints its seed; with that in `TIDEGATE_SEED` it is the first case to run.
//! `TIDEGATE_FUZZ_SEED` does the same for these targets and nothing else.
#![allow(clippy::unwrap_used)]

use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// Longest input that mutations make: beyond the packet limit of the targets, so that it is met.
const BYTES_MAX: usize = 96 * 1024;

/// SplitMix64: equal seeds give equal cases.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// Runs cases until the time is over, at least one; how many.
pub(crate) fn run(target: &str, mut case: impl FnMut(&mut Rng)) -> u64 {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let seconds = number("TIDEGATE_FUZZ_SECONDS").unwrap_or(2);
    let told = number("TIDEGATE_SEED").or_else(|| number("TIDEGATE_FUZZ_SEED"));
    let seed = told.unwrap_or_else(|| RandomState::new().hash_one(target));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut done = 0;
    while done == 0 || Instant::now() < end {
        let seed = seed.wrapping_add(done);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| case(&mut Rng(seed)))) {
            eprintln!("fuzz target `{target}` failed; repeat it with TIDEGATE_SEED={seed}");
            resume_unwind(panic);
        }
        done += 1;
    }
    println!("fuzz target `{target}`: {done} cases from seed {seed}");
    done
}

/// Changes `bytes` in one to four ways.
pub(crate) fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    for _ in 0..=rng.below(4) {
        mutate_once(rng, bytes, corpus);
    }
    bytes.truncate(BYTES_MAX);
}

fn mutate_once(rng: &mut Rng, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let (at, other) = (rng.below(bytes.len()), rng.pick(corpus));
    let end = at + rng.below((bytes.len() - at).min(40) + 1);
    match rng.below(9) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
        1 if !bytes.is_empty() => {
            bytes[at] = *rng.pick(&[0, 1, 2, 0x7F, 0x80, 0xFF, 0xC0, 0xED, 0x10, 0x26]);
        }
        2 => bytes.truncate(at),
        // A part twice: a property, a filter, a whole packet.
        3 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
        4 => drop(bytes.drain(at..end)),
        5 => {
            let from = rng.below(other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        // What may be a length of two bytes.
        6 if end - at >= 2 => {
            let length = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let length = *rng.pick(&[length ^ 1, length.wrapping_add(1), 0, 0xFFFF, length << 8]);
            bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
        }
        7 => fix_length(bytes),
        _ => {
            let junk: Vec<u8> = (0..rng.below(20)).map(|_| rng.next() as u8).collect();
            drop(bytes.splice(at..at, junk));
        }
    }
}

/// Makes the remaining length of an MQTT packet fit, so that what is behind it is looked at.
pub(crate) fn fix_length(packet: &mut Vec<u8>) {
    let Some(length_len) = packet.iter().skip(1).take(4).position(|b| b & 0x80 == 0) else {
        return;
    };
    let body = packet.split_off(2 + length_len);
    packet.truncate(1);
    let mut len = body.len();
    while len >= 0x80 {
        packet.push((len & 0x7F) as u8 | 0x80);
        len >>= 7;
    }
    packet.push(len as u8);
    packet.extend_from_slice(&body);
}

/// Bytes written in hex.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
