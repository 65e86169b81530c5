//! Asks the metrics server of an instance, and reads the text format of Prometheus as strictly as
//! its own tools do.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Status and body of a GET.
pub(crate) fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let bad = || std::io::Error::other(format!("no HTTP: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(bad)?;
    Ok((status, body.to_owned()))
}

/// All samples of one scrape, by name with labels as they are written.
#[derive(Debug)]
pub(crate) struct Scrape {
    pub(crate) samples: BTreeMap<String, f64>,
    /// Families with their type.
    pub(crate) families: BTreeMap<String, String>,
}

impl Scrape {
    /// Reads a text; anything that a strict reader would refuse fails the test.
    pub(crate) fn read(text: &str) -> Self {
        let (mut samples, mut families) = (BTreeMap::new(), BTreeMap::new());
        let mut helped = BTreeSet::new();
        let mut current = String::new();
        assert!(text.ends_with('\n'), "the last line has no end");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("HELP has a text");
                assert!(help.len() > 5, "{line}");
                assert!(helped.insert(name.to_owned()), "two HELP of {name}");
                current = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("TYPE has a word");
                assert_eq!(name, current, "TYPE follows HELP");
                assert!(["counter", "gauge"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            } else {
                let (sample, value) = line.rsplit_once(' ').expect("a sample has a value");
                let name = sample.split('{').next().unwrap();
                assert_eq!(name, current, "samples stand below their family");
                assert!(families.contains_key(name), "{line} has no TYPE");
                let letter = |c: char| c.is_ascii_lowercase() || c == '_';
                assert!(name.chars().all(letter), "{name}");
                let labels = &sample[name.len()..];
                let closed =
                    labels.is_empty() || (labels.ends_with("\"}") && labels.contains("=\""));
                assert!(closed, "{line}");
                let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
                assert!(samples.insert(sample.to_owned(), value).is_none(), "twice: {line}");
            }
        }
        Self { samples, families }
    }

    /// The value of a sample.
    pub(crate) fn value(&self, sample: &str) -> f64 {
        let found = self.samples.get(sample);
        *found.unwrap_or_else(|| panic!("no {sample} in {:#?}", self.samples))
    }
}
