//! MQTT 3.1.1 by hand, as far as a load generator needs it: packets encoded beforehand, a publisher
//! that only writes, a subscriber that only counts.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// QoS 1 messages that a publisher has under way at most.
const IN_FLIGHT: u64 = 20_000;
/// A peer that is silent for this long is done, or stuck.
const SILENCE: Duration = Duration::from_secs(10);

fn put_length(mut n: usize, out: &mut Vec<u8>) {
    while n >= 128 {
        out.push((n % 128) as u8 | 128);
        n /= 128;
    }
    out.push(n as u8);
}

/// A connection that has been accepted.
pub(crate) fn connect(to: SocketAddr, client_id: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, client_id.len() as u8];
    body.extend(client_id.bytes());
    let mut packet = vec![0x10];
    put_length(body.len(), &mut packet);
    packet.extend(body);
    stream.write_all(&packet)?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).context("no CONNACK")?;
    ensure!(answer[3] == 0, "CONNECT was refused with {}", answer[3]);
    Ok(stream)
}

/// PUBLISH packets in one buffer.
pub(crate) struct Packets {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Where packet identifiers are; empty at QoS 0.
    ids: Vec<usize>,
    /// Bytes of a group for one write.
    group: usize,
}

impl Packets {
    /// One packet for each topic and payload.
    pub(crate) fn encode(messages: &[(String, Vec<u8>)], qos: u8) -> Self {
        let (mut bytes, mut ends, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for (topic, payload) in messages {
            bytes.push(0x30 | qos << 1);
            let id = if qos > 0 { 2 } else { 0 };
            put_length(2 + topic.len() + id + payload.len(), &mut bytes);
            bytes.extend_from_slice(&(topic.len() as u16).to_be_bytes());
            bytes.extend_from_slice(topic.as_bytes());
            if qos > 0 {
                ids.push(bytes.len());
                bytes.extend_from_slice(&[0, 1]);
            }
            bytes.extend_from_slice(payload);
            ends.push(bytes.len());
        }
        Self { bytes, ends, ids, group: 64 << 10 }
    }

    pub(crate) fn len(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Overwrites what lies `before_end` bytes before the end of every packet.
    #[allow(dead_code, reason = "one of two benches uses it")]
    pub(crate) fn rewrite(&mut self, before_end: usize, mut text: impl FnMut(usize) -> String) {
        for (i, end) in self.ends.iter().enumerate() {
            let text = text(i);
            self.bytes[end - before_end..][..text.len()].copy_from_slice(text.as_bytes());
        }
    }

    /// Sends everything as fast as it is taken; returns when all of it is acknowledged (QoS 1) or
    /// written (QoS 0).
    pub(crate) fn publish(&mut self, mut stream: TcpStream) -> Result<()> {
        let acked = Arc::new(AtomicU64::new(0));
        let reader = (!self.ids.is_empty()).then(|| -> Result<_> {
            let (stream, acked, all) = (stream.try_clone()?, Arc::clone(&acked), self.len());
            Ok(std::thread::spawn(move || count_acks(stream, &acked, all)))
        });
        let reader = reader.transpose()?;
        let (mut from, mut next) = (0, 0);
        while next < self.ends.len() {
            let first = next;
            while next < self.ends.len() && self.ends[next] - from <= self.group.max(1) {
                next += 1;
            }
            next = next.max(first + 1);
            if reader.is_some() {
                for i in first..next {
                    let id = (i % 65_535) as u16 + 1;
                    self.bytes[self.ids[i]..][..2].copy_from_slice(&id.to_be_bytes());
                }
                while first as u64 - acked.load(Ordering::Acquire).min(first as u64) > IN_FLIGHT {
                    let dead = reader.as_ref().is_some_and(std::thread::JoinHandle::is_finished);
                    ensure!(!dead, "acknowledgements stopped at {acked:?}");
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
            stream.write_all(&self.bytes[from..self.ends[next - 1]])?;
            from = self.ends[next - 1];
        }
        match reader {
            Some(reader) => reader.join().expect("the reader does not panic")?,
            None => stream.write_all(&[0xE0, 0])?,
        }
        Ok(())
    }
}

fn count_acks(mut stream: TcpStream, acked: &AtomicU64, all: u64) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    while bytes < 4 * all {
        let n = stream.read(&mut buffer).with_context(|| format!("{bytes} bytes of PUBACKs"))?;
        ensure!(n > 0, "closed after {} of {all} PUBACKs", bytes / 4);
        bytes += n as u64;
        acked.store(bytes / 4, Ordering::Release);
    }
    Ok(())
}

/// Subscribes to everything.
#[allow(dead_code, reason = "one of two benches uses it")]
pub(crate) fn subscribe(to: SocketAddr, qos: u8) -> Result<TcpStream> {
    let mut stream = connect(to, "bench-counter")?;
    stream.write_all(&[0x82, 6, 0, 1, 0, 1, b'#', qos])?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    Ok(stream)
}

/// Counts PUBLISH packets, acknowledging them, until there are `all` or silence; how many, and when
/// the last came.
pub(crate) fn count(mut stream: TcpStream, all: u64) -> Result<(u64, Instant)> {
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut buffer = vec![0; 1 << 20];
    let (mut have, mut counted, mut last) = (0, 0, Instant::now());
    let mut acks = Vec::new();
    while counted < all {
        let n = match stream.read(&mut buffer[have..]) {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        have += n;
        let mut at = 0;
        while let Some((start, len)) = body(&buffer[at..have]) {
            let packet = &buffer[at..at + start + len];
            if packet[0] >> 4 == 3 {
                counted += 1;
                if packet[0] & 6 != 0 {
                    let topic = usize::from(u16::from_be_bytes([packet[start], packet[start + 1]]));
                    let id = &packet[start + 2 + topic..][..2];
                    acks.extend_from_slice(&[0x40, 2, id[0], id[1]]);
                }
            }
            at += start + len;
        }
        last = Instant::now();
        buffer.copy_within(at..have, 0);
        have -= at;
        stream.write_all(&acks)?;
        acks.clear();
    }
    Ok((counted, last))
}

/// Where the body of a complete packet starts, and its length.
fn body(bytes: &[u8]) -> Option<(usize, usize)> {
    let (mut len, mut shift, mut at) = (0, 0, 1);
    loop {
        let byte = *bytes.get(at)?;
        at += 1;
        len |= usize::from(byte & 127) << shift;
        shift += 7;
        if byte < 128 {
            break;
        }
    }
    (bytes.len() >= at + len).then_some((at, len))
}

/// Publishes `rate` messages a second for `seconds` and gives the time of each to its PUBACK.
pub(crate) fn latencies(
    mut stream: TcpStream,
    packets: &mut Packets,
    rate: u64,
    seconds: u64,
) -> Result<Vec<Duration>> {
    let n = (rate * seconds).min(packets.len()) as usize;
    let sent: Arc<Vec<AtomicU64>> = Arc::new((0..n).map(|_| AtomicU64::new(0)).collect());
    let begin = Instant::now();
    let (times, mut input) = (Arc::clone(&sent), stream.try_clone()?);
    let reader = std::thread::spawn(move || -> Result<Vec<Duration>> {
        let mut all = Vec::with_capacity(n);
        let (mut buffer, mut rest) = (vec![0; 1 << 16], 0);
        while all.len() < n {
            let read = input.read(&mut buffer).context("waiting for PUBACKs")?;
            ensure!(read > 0, "closed");
            let now = begin.elapsed().as_nanos() as u64;
            rest += read;
            while rest >= 4 && all.len() < n {
                rest -= 4;
                let nanos = now - times[all.len()].load(Ordering::Acquire);
                all.push(Duration::from_nanos(nanos));
            }
        }
        Ok(all)
    });
    let mut from = 0;
    for i in 0..n {
        let due = Duration::from_nanos(i as u64 * 1_000_000_000 / rate);
        if let Some(pause) = due.checked_sub(begin.elapsed()) {
            std::thread::sleep(pause);
        }
        let id = (i % 65_535) as u16 + 1;
        packets.bytes[packets.ids[i]..][..2].copy_from_slice(&id.to_be_bytes());
        sent[i].store(begin.elapsed().as_nanos() as u64, Ordering::Release);
        stream.write_all(&packets.bytes[from..packets.ends[i]])?;
        from = packets.ends[i];
    }
    reader.join().expect("the reader does not panic")
}
