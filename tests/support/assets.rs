//! A web server with one document that changes, and that fails in all the ways in which servers do.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// How the server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// The document, or 304 if the caller has it.
    Well,
    /// The beginning of the document, and then the connection ends.
    Half,
    /// Status 500.
    Broken,
    /// Nothing, for as long as the caller waits.
    Silent,
    /// The document, by way of another address.
    Elsewhere,
}

#[derive(Debug)]
struct State {
    mood: Mood,
    document: String,
    /// Status and `Authorization` of each request.
    answers: Vec<(u16, String)>,
}

/// Listens until the test process ends.
pub(crate) struct Assets {
    /// Where the document is.
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

impl Assets {
    pub(crate) fn start(document: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/limits.csv", listener.local_addr().unwrap());
        let (document, answers) = (document.to_owned(), Vec::new());
        let state = Arc::new(Mutex::new(State { mood: Mood::Well, document, answers }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                // A caller that hangs up in the middle is its own problem.
                std::thread::spawn(move || serve(&stream, &shared));
            }
        });
        Self { url, state }
    }

    pub(crate) fn is(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    pub(crate) fn has(&self, document: &str) {
        document.clone_into(&mut self.state.lock().unwrap().document);
    }

    /// Status and `Authorization` of each request so far.
    pub(crate) fn answers(&self) -> Vec<(u16, String)> {
        self.state.lock().unwrap().answers.clone()
    }
}

/// Answers one request.
fn serve(stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let target = lines.next()?.ok()?;
    let mut headers = Vec::new();
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        headers.push(line);
    }
    let header = |name: &str| -> String {
        let of = |l: &String| {
            let (key, value) = l.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        };
        headers.iter().find_map(of).unwrap_or_default()
    };
    let (mood, document) = {
        let state = state.lock().unwrap();
        (state.mood, state.document.clone())
    };
    let tag = format!("\"{:08x}\"", crc32fast::hash(document.as_bytes()));
    let length = document.len();
    let whole = format!("ETag: {tag}\r\nContent-Length: {length}\r\n");
    let (status, about, body) = match mood {
        Mood::Well if header("if-none-match") == tag => (304, String::new(), ""),
        Mood::Elsewhere if !target.contains("/there") => {
            (307, "Location: /there.csv\r\nContent-Length: 0\r\n".to_owned(), "")
        }
        Mood::Well | Mood::Elsewhere => (200, whole, document.as_str()),
        Mood::Half => (200, whole, &document[..length / 2]),
        Mood::Broken => (500, "Content-Length: 0\r\n".to_owned(), ""),
        Mood::Silent => (0, String::new(), ""),
    };
    state.lock().unwrap().answers.push((status, header("authorization")));
    let mut stream = stream;
    if mood == Mood::Silent {
        // Until the caller goes.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        return None;
    }
    let head = format!("HTTP/1.1 {status} Said\r\nConnection: close\r\n{about}\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()
}
