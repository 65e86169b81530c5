//! A registry at a URL: one request, followed to its end. An answer counts as a whole or not at
//! all.
//!
//! Invariants: headers of the plan go to the origin of the plan's URL and to nobody else; nothing
//! that is said of a failure has more of a URL than scheme, host and port, because paths and
//! queries can be secrets. Where an answer does not say where it ends, half of one would look
//! whole: it is refused.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, DATE, ETAG, HeaderMap, HeaderName,
    HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, LOCATION, RETRY_AFTER,
    TRANSFER_ENCODING,
};
use reqwest::{Client, Response, StatusCode, Url, Version};
use tidegate_operators::{Messages, MessagesBuilder};
use tidegate_pipelines::plan::{FileFormat, RegistrySource, RegistryUrl};
use tokio::io::AsyncWriteExt as _;

use super::Registry;
use super::read::read_at;
use crate::engine::files::told_by;
use crate::webhook::{retry_after, text_of};

/// Most redirects of one request.
const REDIRECTS_MAX: usize = 5;
/// How long to wait for a connection, at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much later than it was changed an answer has to be sent, seconds: a server that counts in
/// seconds gives two contents of the same second the same time.
const MODIFIED_FOR_S: i64 = 2;

/// By what a server knows an answer that it gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Validator {
    url: Url,
    header: HeaderName,
    value: HeaderValue,
}

/// A good answer.
pub(super) enum Answer {
    /// What is known is still so.
    Same,
    /// All rows, and by what the server knows them.
    Rows(Vec<Messages>, Option<Validator>),
}

/// Why there is no good answer, without anything that is secret.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) why: String,
    /// How long the server wants to be left alone.
    pub(super) after: Option<Duration>,
    /// Somebody has to change something: asking again soon is of no use.
    pub(super) for_good: bool,
}

impl Failed {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), after: None, for_good: false }
    }

    fn for_good(why: impl Into<String>) -> Self {
        Self { for_good: true, ..Self::new(why) }
    }
}

/// Asks for a registry.
pub(super) struct Fetcher {
    source: RegistrySource,
    spec: RegistryUrl,
    url: Url,
    client: Client,
    headers: HeaderMap,
    /// Where an answer is kept until it is read.
    file: PathBuf,
    known: Option<Validator>,
}

/// An answer as it was sent.
struct Body {
    file: PathBuf,
    content_type: Option<String>,
    validator: Option<Validator>,
}

impl Fetcher {
    /// Answers are kept in `folder` until they are read.
    ///
    /// # Errors
    /// What cannot be a URL or a header.
    pub(super) fn new(
        source: &RegistrySource,
        spec: &RegistryUrl,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let url = Url::parse(spec.url.expose())?;
        let mut headers = HeaderMap::new();
        for (name, value) in &spec.headers {
            let mut value = HeaderValue::from_str(value.expose())?;
            value.set_sensitive(true);
            headers.insert(HeaderName::try_from(name)?, value);
        }
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| anyhow::anyhow!(text_of(error)))?;
        let file = folder.join(format!("{}.{}.fetched", source.pipeline, source.name));
        let (source, spec) = (source.clone(), spec.clone());
        Ok(Self { source, spec, url, client, headers, file, known: None })
    }

    /// How often to ask.
    pub(super) fn refresh(&self) -> Duration {
        Duration::from_micros(self.spec.refresh_us.max(0) as u64)
    }

    /// Reads answers as the registry has it now; with other columns all of it is asked for.
    pub(super) fn follow(&mut self, registry: &mut Registry) {
        if std::mem::take(&mut registry.is_other) {
            self.source = registry.source.clone();
            self.known = None;
        }
    }

    /// The rows of an answer were taken.
    pub(super) fn took(&mut self, validator: Option<Validator>) {
        self.known = validator;
    }

    /// Asks once.
    pub(super) async fn fetch(&self) -> Result<Answer, Failed> {
        let limit = Duration::from_micros(self.spec.timeout_us.max(0) as u64);
        let body = tokio::time::timeout(limit, self.ask()).await;
        let late = |_| Failed::new(format!("no whole answer within {} s", limit.as_secs_f64()));
        let Some(body) = body.map_err(late)?? else { return Ok(Answer::Same) };
        let (format, delimiter) = self.format(body.content_type.as_deref())?;
        let (source, path) = (self.source.clone(), body.file.display().to_string());
        let read = move || read_at(&source, &path, Some(format), delimiter);
        let rows = tokio::task::spawn_blocking(read).await;
        // What is left behind is written over next time.
        let _ = tokio::fs::remove_file(&body.file).await;
        match rows.map_err(anyhow::Error::from).and_then(|rows| rows) {
            Ok(rows) => {
                let rows = rows.into_iter().map(|rows| self.renamed(rows)).collect();
                Ok(Answer::Rows(rows, body.validator))
            }
            Err(error) => Err(Failed::for_good(self.shown(&format!("{error:#}")))),
        }
    }

    /// The rows; those of no use name the file that they were in.
    fn renamed(&self, rows: Messages) -> Messages {
        if !rows.index.iter().any(|row| row.refused) {
            return rows;
        }
        let mut renamed = MessagesBuilder::default();
        for (i, row) in rows.index.iter().enumerate() {
            let why = String::from_utf8_lossy(rows.properties(i));
            renamed.push_with(b"", rows.payload(i), b"", self.shown(&why).as_bytes(), *row);
        }
        renamed.finish(0, 0)
    }

    /// The text with what the file stands for in place of its path.
    fn shown(&self, text: &str) -> String {
        let origin = self.url.origin().ascii_serialization();
        let files = [".gz", ".zst", ""].map(|end| format!("{}{end}", self.file.display()));
        files.iter().fold(text.to_owned(), |text, file| text.replace(file, &origin))
    }

    /// The answer in a file; `None` if it would be that of the last time.
    async fn ask(&self) -> Result<Option<Body>, Failed> {
        let mut url = self.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let known = self.known.as_ref().filter(|known| known.url == url);
            let mut request = self.client.get(url.clone()).header(ACCEPT_ENCODING, "gzip, zstd");
            if url.origin() == self.url.origin() {
                request = request.headers(self.headers.clone());
            }
            if let Some(known) = known {
                request = request.header(&known.header, &known.value);
            }
            let response = request.send().await.map_err(|error| Failed::new(text_of(error)))?;
            match response.status() {
                StatusCode::OK => return self.keep(url, response).await.map(Some),
                StatusCode::NOT_MODIFIED if known.is_some() => return Ok(None),
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => url = next(&url, response.headers())?,
                status => return Err(refused(status, response.headers())),
            }
        }
        Err(Failed::for_good(format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// Writes a whole answer into the file.
    async fn keep(&self, url: Url, mut response: Response) -> Result<Body, Failed> {
        let ends = response.content_length().is_some()
            || is_chunked(response.headers())
            || response.version() >= Version::HTTP_2;
        if !ends {
            let why = "the answer does not say where it ends (it has no Content-Length)";
            return Err(Failed::for_good(why));
        }
        let encoding = response.headers().get(CONTENT_ENCODING).map(HeaderValue::as_bytes);
        if let Some(other) = encoding.filter(|e| !is_known_encoding(e)) {
            let other = String::from_utf8_lossy(other).into_owned();
            return Err(Failed::for_good(format!("Content-Encoding `{other}` is not read")));
        }
        let most = self.spec.body_bytes_max;
        let too_long = || Failed::for_good(format!("the answer is longer than {most} bytes"));
        if response.content_length().is_some_and(|length| length > most) {
            return Err(too_long());
        }
        let text = |name| response.headers().get(name)?.to_str().ok().map(str::to_owned);
        let content_type = text(CONTENT_TYPE);
        let validator = validator(url, response.headers());
        let part = self.file.with_extension("part");
        let write = |error: std::io::Error| {
            let part = part.display();
            Failed::new(format!("cannot write {part}: {error}"))
        };
        let mut file = tokio::fs::File::create(&part).await.map_err(write)?;
        let (mut bytes, mut head) = (0, Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(|e| Failed::new(text_of(e)))? {
            bytes += chunk.len() as u64;
            if bytes > most {
                return Err(too_long());
            }
            head.extend(chunk.iter().take(4_usize.saturating_sub(head.len())));
            file.write_all(&chunk).await.map_err(write)?;
        }
        file.flush().await.map_err(write)?;
        // Servers differ in what they call an answer that is packed; the packing itself does not.
        let end = match head.as_slice() {
            [0x1f, 0x8b, ..] => ".gz",
            [0x28, 0xb5, 0x2f, 0xfd] => ".zst",
            _ => "",
        };
        let whole = PathBuf::from(format!("{}{end}", self.file.display()));
        tokio::fs::rename(&part, &whole).await.map_err(write)?;
        Ok(Body { file: whole, content_type, validator })
    }

    /// How an answer is written.
    fn format(&self, content_type: Option<&str>) -> Result<(FileFormat, Option<u8>), Failed> {
        let last = self.url.path_segments().and_then(|mut all| all.next_back()).unwrap_or("");
        let (by_name, tabs) = told_by(last);
        let (by_type, tabs_too) = by_content_type(content_type);
        let tabs = (by_name.is_some() && tabs) || (by_name.is_none() && tabs_too);
        let delimiter = self.source.delimiter.or(tabs.then_some(b'\t'));
        match self.source.format.or(by_name).or(by_type) {
            Some(format) => Ok((format, delimiter)),
            None => Err(Failed::for_good(format!(
                "neither the URL nor the Content-Type ({}) tells how it is written: give `format`",
                content_type.unwrap_or("none")
            ))),
        }
    }
}

/// Whether the last of its transfer codings says where the answer ends.
fn is_chunked(headers: &HeaderMap) -> bool {
    let last = headers.get_all(TRANSFER_ENCODING).iter().next_back();
    let last = last.and_then(|value| value.to_str().ok()).and_then(|v| v.rsplit(',').next());
    last.is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"))
}

fn is_known_encoding(encoding: &[u8]) -> bool {
    ["identity", "gzip", "x-gzip", "zstd"]
        .iter()
        .any(|e| encoding.eq_ignore_ascii_case(e.as_bytes()))
}

/// What a media type is, and whether tabs are between its cells.
fn by_content_type(content_type: Option<&str>) -> (Option<FileFormat>, bool) {
    let text = content_type.unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "text/csv" | "application/csv" => (Some(FileFormat::Csv), false),
        "text/tab-separated-values" => (Some(FileFormat::Csv), true),
        "application/vnd.apache.parquet" => (Some(FileFormat::Parquet), false),
        "application/json"
        | "application/x-ndjson"
        | "application/ndjson"
        | "application/jsonl"
        | "application/x-jsonlines" => (Some(FileFormat::Ndjson), false),
        _ => (None, false),
    }
}

/// Where a redirect leads.
fn next(from: &Url, headers: &HeaderMap) -> Result<Url, Failed> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let mut url = location
        .and_then(|text| from.join(text).ok())
        .filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or_else(|| Failed::for_good("it redirects to nowhere"))?;
    if from.scheme() == "https" && url.scheme() == "http" {
        return Err(Failed::for_good("it redirects from https to http"));
    }
    // Whoever redirects gives us no credentials; both fail only for URLs without a host.
    let _ = (url.set_username(""), url.set_password(None));
    Ok(url)
}

/// What another status means.
fn refused(status: StatusCode, headers: &HeaderMap) -> Failed {
    let again = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        || status.is_server_error();
    let after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let now_us = crate::source::now_us();
    Failed {
        why: format!("HTTP {}", status.as_u16()),
        after: after.and_then(|text| retry_after(text, now_us)),
        for_good: !again,
    }
}

/// By what the server knows this answer; a time counts only if nothing else can have had the same.
fn validator(url: Url, headers: &HeaderMap) -> Option<Validator> {
    if let Some(tag) = headers.get(ETAG) {
        return Some(Validator { url, header: IF_NONE_MATCH, value: tag.clone() });
    }
    let time = |name| {
        let text = headers.get(name)?.to_str().ok()?;
        chrono::DateTime::parse_from_rfc2822(text).ok()
    };
    let rested_s = (time(DATE)? - time(LAST_MODIFIED)?).num_seconds();
    let value = headers.get(LAST_MODIFIED)?.clone();
    let known = Validator { url, header: IF_MODIFIED_SINCE, value };
    (rested_s >= MODIFIED_FOR_S).then_some(known)
}

#[cfg(test)]
mod tests;
