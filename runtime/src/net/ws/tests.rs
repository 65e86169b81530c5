//! The WebSocket layer against itself, and against raw bytes written out by hand.
#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

fn rules() -> WsRules {
    WsRules { path: "/mqtt".to_owned(), origins: None, message_bytes_max: 1000, timeout: PATIENCE }
}

fn request(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}

const OFFER: &str = "Sec-WebSocket-Protocol: v1.foo, mqtt\r\n";

/// A frame of a client, masked.
fn frame(byte1: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut out = vec![byte1];
    match payload.len() {
        len @ 0..126 => out.push(0x80 | len as u8),
        len @ 126..0x1_0000 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// Sends a request; gives what is answered up to the empty line, and the accepting task's end.
async fn ask(request: &str, rules: WsRules) -> (String, io::Result<()>) {
    let (near, mut far) = duplex(1 << 16);
    let task = tokio::spawn(async move { accept(near, &rules).await.map(drop) });
    far.write_all(request.as_bytes()).await.unwrap();
    let result = task.await.unwrap();
    let mut answer = Vec::new();
    far.read_to_end(&mut answer).await.unwrap();
    (String::from_utf8(answer).unwrap(), result)
}

/// An accepted connection, and the client's raw end of it.
async fn accepted() -> (WsStream<DuplexStream>, DuplexStream) {
    let (near, mut far) = duplex(1 << 20);
    let task = tokio::spawn(async move { accept(near, &rules()).await });
    far.write_all(request("/mqtt", OFFER).as_bytes()).await.unwrap();
    let stream = task.await.unwrap().unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(far.read_u8().await.unwrap());
    }
    (stream, far)
}

#[tokio::test]
async fn the_handshake_is_that_of_the_standard() {
    let (answer, result) = ask(&request("/mqtt", OFFER), rules()).await;
    result.unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let answer = answer.to_lowercase();
    // The key and its answer are those of RFC 6455, 1.3.
    assert!(answer.contains(&"accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_lowercase()), "{answer}");
    assert!(answer.contains("sec-websocket-protocol: mqtt\r\n"), "{answer}");
}

#[tokio::test]
async fn a_handshake_that_is_not_for_us_is_refused_with_the_reason() {
    let page = |origin: &str| request("/mqtt", &format!("{OFFER}Origin: {origin}\r\n"));
    let strict = WsRules { origins: Some(vec!["https://plant.example".to_owned()]), ..rules() };
    for (request, rules, status) in [
        (request("/other", OFFER), rules(), "404"),
        (request("/mqtt", ""), rules(), "400"),
        (request("/mqtt", "Sec-WebSocket-Protocol: mqttx, chat\r\n"), rules(), "400"),
        (page("https://evil.example"), strict.clone(), "403"),
    ] {
        let (answer, result) = ask(&request, rules).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        result.unwrap_err();
    }
    for rules in [strict, rules()] {
        let (answer, _) = ask(&page("https://plant.example"), rules).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    }
}

#[tokio::test]
async fn what_is_no_handshake_at_all_is_refused() {
    let huge = request("/mqtt", &format!("{OFFER}X: {}\r\n", "x".repeat(100_000)));
    for bytes in ["POST /mqtt HTTP/1.1\r\n\r\n", "\x10\x0c\0\x04MQTT\x04\x02\0\0\0\0", &huge] {
        let (near, mut far) = duplex(1 << 20);
        let task = tokio::spawn(async move { accept(near, &rules()).await.map(drop) });
        far.write_all(bytes.as_bytes()).await.unwrap();
        far.shutdown().await.unwrap();
        task.await.unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn a_slow_handshake_times_out() {
    let (near, mut far) = duplex(1 << 16);
    let slow = WsRules { timeout: Duration::from_millis(300), ..rules() };
    let task = tokio::spawn(async move { accept(near, &slow).await.map(drop) });
    let request = request("/mqtt", OFFER);
    far.write_all(&request.as_bytes()[..request.len() - 1]).await.unwrap();
    let error = task.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn bytes_go_both_ways_whatever_their_borders() {
    let (near, far) = duplex(100);
    let rules = WsRules { message_bytes_max: SEND_BYTES_MAX, ..rules() };
    let (server, client) =
        tokio::join!(accept(near, &rules), connect(far, "here:1", "/mqtt", 1 << 20));
    let (mut server, mut client) = (server.unwrap(), client.unwrap());
    let bytes: Vec<u8> = (0..300_000_u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let sent = bytes.clone();
    let task = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.flush().await.unwrap();
        let mut back = vec![0; sent.len()];
        client.read_exact(&mut back).await.unwrap();
        client.shutdown().await.unwrap();
        back
    });
    let mut got = vec![0; bytes.len()];
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(got, bytes);
    server.write_all(&got).await.unwrap();
    server.flush().await.unwrap();
    assert_eq!(server.read(&mut got).await.unwrap(), 0, "the end is the end");
    assert_eq!(task.await.unwrap(), bytes);
}

#[tokio::test]
async fn frames_may_come_in_any_pieces() {
    // Fragments with a ping between them, then a whole message.
    let mut bytes = frame(0x02, b"one ");
    bytes.extend(frame(0x00, b"two "));
    bytes.extend(frame(0x89, b"are you there"));
    bytes.extend(frame(0x80, b"three "));
    bytes.extend(frame(0x82, &[b'x'; 200]));
    let wanted = [b"one two three ".as_slice(), &[b'x'; 200]].concat();
    for cut in 0..=bytes.len() {
        let (mut stream, mut far) = accepted().await;
        let (first, second) = (bytes[..cut].to_vec(), bytes[cut..].to_vec());
        let mut got = vec![0; wanted.len()];
        let writing = async {
            far.write_all(&first).await.unwrap();
            tokio::task::yield_now().await;
            far.write_all(&second).await.unwrap();
        };
        let (_, read) = tokio::join!(writing, stream.read_exact(&mut got));
        read.unwrap();
        assert_eq!(got, wanted, "cut at {cut}");
        // The pong went out while we read.
        let mut pong = [0; 15];
        far.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"\x8a\x0dare you there", "cut at {cut}");
    }
    // And every byte alone.
    let (mut stream, mut far) = accepted().await;
    let mut got = vec![0; wanted.len()];
    let writing = async {
        for byte in bytes {
            far.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let (_, read) = tokio::join!(writing, stream.read_exact(&mut got));
    read.unwrap();
    assert_eq!(got, wanted);
}

#[tokio::test]
async fn frames_that_break_a_rule_end_the_connection() {
    let mut unmasked = vec![0x82, 3];
    unmasked.extend_from_slice(b"abc");
    // Only its head: nobody waits for the rest, nor makes room for it.
    let mut huge = vec![0x82, 0x80 | 127];
    huge.extend_from_slice(&u64::MAX.to_be_bytes());
    huge.extend_from_slice(&[1, 2, 3, 4]);
    let mut fragments = frame(0x02, &[0; 60_000]);
    fragments.extend(frame(0x00, &[0; 60_000]));
    for (what, bytes) in [
        ("text", frame(0x81, b"hello")),
        ("not masked", unmasked),
        ("too long", frame(0x82, &[0; 70_000])),
        ("absurdly long", huge),
        ("too long in pieces", fragments),
        ("reserved bits", frame(0xC2, b"abc")),
        ("reserved opcode", frame(0x83, b"abc")),
        ("long ping", frame(0x89, &[0; 126])),
        ("continuation of nothing", frame(0x80, b"abc")),
    ] {
        let (mut stream, mut far) = accepted().await;
        far.write_all(&bytes).await.unwrap();
        let mut got = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut got));
        let error = read.await.expect(what).expect_err(what);
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}: {error}");
        assert!(got.is_empty(), "{what}");
    }
}

#[tokio::test]
async fn a_goodbye_is_answered_and_is_the_end() {
    let (mut stream, mut far) = accepted().await;
    far.write_all(&frame(0x82, b"last")).await.unwrap();
    far.write_all(&frame(0x88, &1000_u16.to_be_bytes())).await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"last");
    let mut bye = [0; 4];
    far.read_exact(&mut bye).await.unwrap();
    assert_eq!(bye, [0x88, 2, 0x03, 0xE8]);
}

#[tokio::test]
async fn a_client_refuses_a_server_that_does_not_speak_mqtt() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: wrong\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let (near, mut far) = duplex(1 << 16);
        let task =
            tokio::spawn(async move { connect(near, "here", "/mqtt", 1000).await.map(drop) });
        far.write_all(answer.as_bytes()).await.unwrap();
        far.shutdown().await.unwrap();
        task.await.unwrap().unwrap_err();
    }
}
