//! Against a server on 127.0.0.1 that says byte for byte what a test wants.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use tidegate_pipelines::config::secret::Secret;
use tidegate_pipelines::plan::RegistryPlace;

use super::*;

/// What is sent for a request, by its number: bytes, or nothing for ever.
type Script = Box<dyn FnMut(usize) -> Option<Vec<u8>> + Send>;

struct Server {
    origin: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(mut script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let (mut stream, mut head) = (stream, Vec::new());
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                heard.lock().unwrap().push(String::from_utf8(head).unwrap());
                match script(number) {
                    Some(answer) => stream.write_all(&answer).unwrap(),
                    None => open.push(stream),
                }
            }
        });
        Self { origin, seen }
    }

    /// The same answer for each request.
    fn saying(answer: Vec<u8>) -> Self {
        Self::start(Box::new(move |_| Some(answer.clone())))
    }

    /// The header of a request, by its number.
    fn header(&self, request: usize, name: &str) -> Option<String> {
        let seen = self.seen.lock().unwrap();
        let line = |l: &str| {
            let (key, value) = l.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        };
        seen[request].lines().find_map(line)
    }
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

/// A whole answer.
fn ok(headers: &str, body: &[u8]) -> Vec<u8> {
    answer("200 OK", &format!("Content-Length: {}\r\n{headers}", body.len()), body)
}

/// A fetcher of `url`, and the folder that it writes to.
fn asking(url: &str) -> (Fetcher, tempfile::TempDir) {
    asking_for(url, Duration::from_secs(60))
}

/// One that waits so long for an answer.
fn asking_for(url: &str, limit: Duration) -> (Fetcher, tempfile::TempDir) {
    let spec = RegistryUrl {
        url: Secret::new(url.into()),
        headers: vec![("Authorization".into(), Secret::new("Bearer canary1".into()))],
        refresh_us: 1_000_000,
        timeout_us: limit.as_micros() as i64,
        body_bytes_max: 2_000,
    };
    let source = RegistrySource {
        pipeline: "p".into(),
        name: "limits".into(),
        key: vec![("device".into(), vec!["device".into()])],
        columns: vec![],
        valid_from: None,
        place: RegistryPlace::Url(spec.clone()),
        format: None,
        delimiter: None,
    };
    let folder = tempfile::tempdir().unwrap();
    (Fetcher::new(&source, &spec, folder.path()).unwrap(), folder)
}

/// The rows as texts, or why there are none.
async fn rows(fetcher: &mut Fetcher) -> Result<Vec<String>, Failed> {
    match fetcher.fetch().await? {
        Answer::Same => Ok(vec!["same".to_owned()]),
        Answer::Rows(rows, validator) => {
            fetcher.took(validator);
            let text = |m: &Messages, i: usize| match m.index[i].refused {
                false => String::from_utf8_lossy(m.payload(i)).into_owned(),
                true => String::from_utf8_lossy(m.properties(i)).into_owned(),
            };
            Ok(rows.iter().flat_map(|m| (0..m.len()).map(move |i| text(m, i))).collect())
        }
    }
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text).unwrap();
    packed.finish().unwrap()
}

#[tokio::test]
async fn every_way_to_write_it_is_read() {
    let csv = b"device,high\nd,1\n".to_vec();
    let lines = b"{\"device\":\"d\",\"high\":1}\n".to_vec();
    let array = b" \n[{\"device\":\"d\",\"high\":1}\n]\n".to_vec();
    let packed = "Content-Encoding: gzip\r\nContent-Type: text/csv; charset=utf-8\r\n";
    let tabs = "Content-Type: text/tab-separated-values\r\n";
    for (path, headers, body) in [
        ("/limits.csv", "Content-Type: text/plain\r\n", csv.clone()),
        ("/limits", "Content-Type: Text/CSV\r\n", csv.clone()),
        ("/limits", packed, gzip(&csv)),
        ("/limits.csv.gz", "", gzip(&csv)),
        ("/limits.csv.zst", "", zstd::encode_all(&csv[..], 1).unwrap()),
        ("/limits.tsv?v=1", "", b"device\thigh\nd\t1\n".to_vec()),
        ("/limits", tabs, b"device\thigh\nd\t1\n".to_vec()),
        ("/limits.jsonl", "", lines.clone()),
        ("/limits", "Content-Type: application/x-ndjson\r\n", lines),
        ("/limits", "Content-Type: application/json\r\n", array.clone()),
        ("/limits.json", "", array),
    ] {
        let server = Server::saying(ok(headers, &body));
        let (mut fetcher, folder) = asking(&format!("{}{path}", server.origin));
        let rows = rows(&mut fetcher).await.unwrap();
        assert_eq!(rows, [r#"{"device":"d","high":1}"#], "{path} {headers}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
        assert_eq!(server.header(0, "accept-encoding").unwrap(), "gzip, zstd");
        assert_eq!(server.header(0, "authorization").unwrap(), "Bearer canary1");
    }
    let chunked = b"10\r\ndevice,high\nd,1\n\r\n0\r\n\r\n";
    let server = Server::saying(answer("200 OK", "Transfer-Encoding: chunked\r\n", chunked));
    let (mut fetcher, _folder) = asking(&format!("{}/l.csv", server.origin));
    assert_eq!(rows(&mut fetcher).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_row_of_no_use_names_no_file_of_ours() {
    let server = Server::saying(ok("", b"device,high\nd,1\ne\n"));
    let (mut fetcher, folder) = asking(&format!("{}/l.csv?canary2", server.origin));
    let rows = rows(&mut fetcher).await.unwrap();
    assert!(rows[1].contains(&server.origin) && rows[1].contains("line 3"), "{rows:?}");
    let folder = folder.path().display().to_string();
    assert!(!rows[1].contains(&folder) && !rows[1].contains("canary"), "{rows:?}");
}

#[tokio::test]
async fn what_has_not_changed_is_not_sent_again() {
    let dated = |changed: &str| {
        let sent = "Date: Thu, 01 Jan 2026 00:00:10 GMT\r\n";
        format!("{sent}Last-Modified: Thu, 01 Jan 2026 00:00:{changed} GMT\r\n")
    };
    let tag = ("If-None-Match", "W/\"7\"");
    let time = ("If-Modified-Since", "Thu, 01 Jan 2026 00:00:07 GMT");
    for (headers, asked) in [
        (format!("ETag: W/\"7\"\r\n{}", dated("07")), Some(tag)),
        (dated("07"), Some(time)),
        // Another content can have the same second.
        (dated("09"), None),
        ("Last-Modified: Thu, 01 Jan 2026 00:00:07 GMT\r\n".to_owned(), None),
    ] {
        let whole = ok(&headers, b"device,high\nd,1\n");
        let server = Server::start(Box::new(move |number| match number {
            0 | 2 => Some(whole.clone()),
            _ => Some(answer("304 Not Modified", "", b"")),
        }));
        let (mut fetcher, _folder) = asking(&format!("{}/l.csv", server.origin));
        assert_eq!(rows(&mut fetcher).await.unwrap().len(), 1);
        let again = rows(&mut fetcher).await;
        match asked {
            Some((name, value)) => {
                assert_eq!(server.header(1, name).as_deref(), Some(value));
                assert_eq!(again.unwrap(), ["same"]);
            }
            // "As before" is no answer to a question that was not asked.
            None => assert_eq!(again.unwrap_err().why, "HTTP 304"),
        }
        assert_eq!(rows(&mut fetcher).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn half_an_answer_is_none() {
    let csv = b"device,high\nd,1\ne,2\n";
    let length = |n: usize| format!("Content-Length: {n}\r\n");
    let plain = |headers: &str, body: &[u8]| Some(answer("200 OK", headers, body));
    let chunk = b"c\r\ndevice,high\n\r\n".as_slice();
    let many = [b"3e8\r\n".as_slice(), &[b'a'; 1000], b"\r\n"].concat().repeat(3);
    let html = ok("Content-Type: text/html\r\n", b"<html>sign in</html>");
    let packed = gzip(csv);
    for (path, sent, told, for_good) in [
        ("/l.csv", plain(&length(100), csv), "", false),
        ("/l.csv", plain("Transfer-Encoding: chunked\r\n", chunk), "", false),
        ("/l.csv", plain("", csv), "does not say where it ends", true),
        ("/l.csv", plain("Transfer-Encoding: identity\r\n", csv), "does not say where", true),
        ("/l.csv", Some(ok("", &packed[..packed.len() - 4])), "cannot read", true),
        ("/l.json", Some(ok("", b"[{\"device\":\"d\"},")), "the array is not closed", true),
        ("/l.csv", Some(ok("", b"")), "is empty", true),
        ("/l", Some(html.clone()), "Content-Type (text/html)", true),
        ("/l.csv", Some(html), "no row of", true),
        ("/l.csv", plain(&length(5_000), csv), "longer than 2000 bytes", true),
        ("/l.csv", plain("Transfer-Encoding: chunked\r\n", &many), "longer than 2000", true),
        ("/l.csv", Some(ok("Content-Encoding: br\r\n", csv)), "`br` is not read", true),
        ("/l.csv", Some(answer("204 No Content", "", b"")), "HTTP 204", true),
        ("/l.csv", Some(answer("404 Not Found", &length(0), b"")), "HTTP 404", true),
        ("/l.csv", Some(answer("500 Oh", &length(0), b"")), "HTTP 500", false),
        ("/l.csv", None, "no whole answer within 0.5 s", false),
    ] {
        let limit = Duration::from_millis(if sent.is_some() { 60_000 } else { 500 });
        let server = Server::start(Box::new(move |_| sent.clone()));
        let url = format!("{}{path}?key=canary2", server.origin);
        let (mut fetcher, folder) = asking_for(&url, limit);
        let failed = rows(&mut fetcher).await.unwrap_err();
        assert!(failed.why.contains(told), "{told}: {failed:?}");
        assert_eq!(failed.for_good, for_good, "{failed:?}");
        let place = folder.path().display().to_string();
        assert!(!failed.why.contains("canary") && !failed.why.contains(&place), "{failed:?}");
    }
    let busy = answer("503 Busy", "Retry-After: 7\r\nContent-Length: 0\r\n", b"");
    let server = Server::saying(busy);
    let (mut fetcher, _folder) = asking(&server.origin);
    let failed = rows(&mut fetcher).await.unwrap_err();
    assert_eq!((failed.after, failed.for_good), (Some(Duration::from_secs(7)), false));
    // Nobody listens there, and nobody else can.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}/canary2", held.local_addr().unwrap());
    let (mut fetcher, _folder) = asking(&url);
    let failed = rows(&mut fetcher).await.unwrap_err();
    assert!(!failed.for_good && !failed.why.contains("canary"), "{failed:?}");
}

#[tokio::test]
async fn redirects_are_followed_and_carry_nothing_to_others() {
    let whole = ok("ETag: \"1\"\r\n", b"device,high\nd,1\n");
    let other = Server::start(Box::new(move |number| match number {
        0 => Some(whole.clone()),
        _ => Some(answer("304 Not Modified", "", b"")),
    }));
    let to = format!("{}/x?signed", other.origin);
    let server = Server::start(Box::new(move |number| {
        let location = if number % 2 == 0 { "b.csv" } else { to.as_str() };
        let headers = format!("Location: {location}\r\nContent-Length: 0\r\n");
        Some(answer("307 Elsewhere", &headers, b""))
    }));
    let (mut fetcher, _folder) = asking(&format!("{}/a.csv", server.origin));
    assert_eq!(rows(&mut fetcher).await.unwrap().len(), 1);
    assert_eq!(rows(&mut fetcher).await.unwrap(), ["same"]);
    assert!(server.seen.lock().unwrap()[1].starts_with("GET /b.csv "));
    for request in 0..4 {
        assert!(server.header(request, "authorization").is_some(), "the same server");
        assert!(server.header(request, "if-none-match").is_none(), "another one's");
    }
    for request in 0..2 {
        assert!(other.header(request, "authorization").is_none(), "another server");
    }
    assert_eq!(other.header(1, "if-none-match").as_deref(), Some("\"1\""));

    let round = answer("302 Round", "Location: /a.csv\r\nContent-Length: 0\r\n", b"");
    let server = Server::saying(round);
    let (mut round, _folder) = asking(&format!("{}/a.csv", server.origin));
    assert_eq!(rows(&mut round).await.unwrap_err().why, "more than 5 redirects");
    assert_eq!(server.seen.lock().unwrap().len(), 6);
}

#[test]
fn a_redirect_never_leaves_encryption() {
    let led = |from: &str, to: &str| {
        let headers = [(LOCATION, HeaderValue::from_str(to).unwrap())].into_iter().collect();
        next(&Url::parse(from).unwrap(), &headers).map(String::from).map_err(|f| f.why)
    };
    assert_eq!(led("https://a/x/y", "z").unwrap(), "https://a/x/z");
    assert_eq!(led("http://a/", "https://u:p@b/z").unwrap(), "https://b/z");
    assert_eq!(led("https://a/", "http://a/").unwrap_err(), "it redirects from https to http");
    assert_eq!(led("https://a/", "file:///etc/passwd").unwrap_err(), "it redirects to nowhere");
}
