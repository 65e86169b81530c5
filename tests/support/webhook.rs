//! A webhook receiver that refuses the first request, so that every delivery was a retry at least
//! once, and that checks signatures on its own (Standard Webhooks, HMAC-SHA256).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};

const KEY: &[u8] = b"a secret of the end-to-end tests";

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) id: String,
    pub(crate) status: u16,
    pub(crate) signed_well: bool,
    pub(crate) body: String,
}

/// Listens until the test process ends.
pub(crate) struct Receiver {
    pub(crate) url: String,
    deliveries: Arc<Mutex<Vec<Delivery>>>,
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let (receiver, closed) = Self::closed();
        closed.open();
        receiver
    }

    /// One that takes connections and answers nobody until it is opened.
    pub(crate) fn closed() -> (Self, Closed) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let deliveries = Arc::new(Mutex::new(Vec::new()));
        let closed = Closed { listener, deliveries: Arc::clone(&deliveries), refusal: None };
        (Self { url, deliveries }, closed)
    }

    /// One that answers everybody with this status.
    pub(crate) fn refusing(status: u16) -> Self {
        let (receiver, closed) = Self::closed();
        Closed { refusal: Some(status), ..closed }.open();
        receiver
    }

    /// How the receiver's secret is written in a configuration.
    pub(crate) fn secret() -> String {
        format!("whsec_{}", BASE64_STANDARD.encode(KEY))
    }

    /// All requests so far.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.deliveries.lock().unwrap().clone()
    }
}

/// A receiver that does not answer yet.
pub(crate) struct Closed {
    listener: TcpListener,
    deliveries: Arc<Mutex<Vec<Delivery>>>,
    /// What everybody is answered with.
    refusal: Option<u16>,
}

impl Closed {
    /// It answers from now on.
    pub(crate) fn open(self) {
        std::thread::spawn(move || {
            for stream in self.listener.incoming().map_while(Result::ok) {
                let (shared, refusal) = (Arc::clone(&self.deliveries), self.refusal);
                // A caller that hangs up in the middle is its own problem.
                std::thread::spawn(move || serve(&stream, &shared, refusal));
            }
        });
    }
}

/// Answers requests on one connection until it is closed.
fn serve(
    stream: &TcpStream,
    deliveries: &Mutex<Vec<Delivery>>,
    refusal: Option<u16>,
) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.trim().is_empty() {
                break;
            }
            headers.push(line);
        }
        let header = |name: &str| {
            let found = headers.iter().filter_map(|h| h.split_once(':'));
            let mut found = found.filter(|(n, _)| n.eq_ignore_ascii_case(name));
            found.next().map_or(String::new(), |(_, v)| v.trim().to_owned())
        };
        let mut body = vec![0; header("content-length").parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        let body = String::from_utf8(body).ok()?;
        let id = header("webhook-id");
        let signed = format!("{id}.{}.{body}", header("webhook-timestamp"));
        let signed_well = is_signature(&signed, &header("webhook-signature"));
        let status = {
            let mut all = deliveries.lock().unwrap();
            let status = refusal.unwrap_or(if all.is_empty() { 503 } else { 200 });
            all.push(Delivery { id, status, signed_well, body });
            status
        };
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
        (&mut (&*stream)).write_all(answer.as_bytes()).ok()?;
    }
}

fn is_signature(signed: &str, header: &str) -> bool {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, KEY);
    let tag = BASE64_STANDARD.encode(ring::hmac::sign(&key, signed.as_bytes()));
    header.split(' ').any(|one| one == format!("v1,{tag}"))
}
