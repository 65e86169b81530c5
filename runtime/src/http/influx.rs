//! The write API of InfluxDB, versions 1 and 2, as far as clients that write need it. The database
//! or bucket is the pipeline; retention policy and organization mean nothing here. Lines that are
//! broken inside are rows of `system.rejects`, so a write is 204 when its lines are durable.

use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tidegate_operators::spec::Format;

use super::access::Shown;
use super::handle::{Head, admit, only, precision, write};
use super::limits::QUERY_BYTES_MAX;
use super::refusal::{Dialect, Refusal, answer, empty};
use super::server::Shared;
use super::split::Framing;

/// Clients look at the first number.
const VERSION: &str = concat!("1.8.0-tidegate-", env!("CARGO_PKG_VERSION"));

/// Answers everything that is not [`super::handle`]'s own.
pub(crate) async fn request(
    shared: &Shared,
    head: &Head,
    path: &str,
    body: &mut BodyDataStream,
) -> Response {
    let dialect = match path {
        "/write" | "/query" | "/ping" => Dialect::Influx1,
        "/api/v2/write" | "/health" | "/ready" => Dialect::Influx2,
        _ if path.starts_with("/api/v2/") => Dialect::Influx2,
        _ => Dialect::Ours,
    };
    let result = match path {
        "/write" => lines(shared, head, head.query("db"), "database", body).await,
        "/api/v2/write" => lines(shared, head, head.query("bucket"), "bucket", body).await,
        "/query" => query(shared, head, body).await,
        "/ping" => ping(head),
        "/health" | "/ready" => health(shared, head, path),
        _ => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "not known: POST /ingest/PIPELINE, /write?db=PIPELINE, /api/v2/write?bucket=PIPELINE",
        )),
    };
    let mut response = result.unwrap_or_else(|refusal| refusal.response(dialect));
    if dialect != Dialect::Ours {
        let headers = response.headers_mut();
        headers.insert("x-influxdb-version", HeaderValue::from_static(VERSION));
        headers.insert("x-influxdb-build", HeaderValue::from_static("OSS"));
    }
    response
}

async fn lines(
    shared: &Shared,
    head: &Head,
    name: Option<&str>,
    what: &str,
    body: &mut BodyDataStream,
) -> Result<Response, Refusal> {
    only(head, &[Method::POST])?;
    let name = name.filter(|n| !n.is_empty());
    let name = name.ok_or_else(|| Refusal::bad(format!("{what} is required: the pipeline")))?;
    // Version 1 behind the API of version 2 names a bucket `database/retention-policy`.
    let pipeline = name.split('/').next().unwrap_or_default();
    let route = shared.route(pipeline).ok_or_else(|| {
        let message = format!("{what} not found: \"{name}\": there is no such pipeline here");
        Refusal::new(StatusCode::NOT_FOUND, message)
    })?;
    let user = admit(shared, &route, head)?;
    if route.format != Format::Influx {
        return Err(Refusal::bad(format!(
            "pipeline `{pipeline}` reads JSON: POST it to /ingest/{pipeline}, or set format = \
             \"influx\" in its [reading]"
        )));
    }
    let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let framing = Framing::of_influx(content_type);
    write(shared, route, user, head, framing, precision(head)?, body).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

fn ping(head: &Head) -> Result<Response, Refusal> {
    only(head, &[Method::GET, Method::HEAD])?;
    Ok(match head.query("verbose") {
        Some("true") => answer(StatusCode::OK, &json!({ "version": VERSION })),
        _ => empty(StatusCode::NO_CONTENT),
    })
}

fn health(shared: &Shared, head: &Head, path: &str) -> Result<Response, Refusal> {
    only(head, &[Method::GET, Method::HEAD])?;
    let unready = shared.unready();
    let status = match unready {
        None => StatusCode::OK,
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    Ok(match path {
        "/ready" => {
            let word = if unready.is_none() { "ready" } else { "starting" };
            answer(status, &json!({ "status": word }))
        }
        _ => {
            let body = json!({
                "name": "tidegate",
                "message": unready.unwrap_or("ready for writes"),
                "status": if unready.is_none() { "pass" } else { "fail" },
                "checks": [],
                "version": VERSION,
            });
            answer(status, &body)
        }
    })
}

/// What clients of version 1 ask before they write: which databases there are, and to make one.
async fn query(
    shared: &Shared,
    head: &Head,
    body: &mut BodyDataStream,
) -> Result<Response, Refusal> {
    only(head, &[Method::GET, Method::POST])?;
    let statements = match head.query("q") {
        Some(q) => q.to_owned(),
        None => in_form(body, shared.timeouts.body).await?,
    };
    let shown = head.shown()?;
    let databases = databases(shared, &shown);
    if databases.is_empty() {
        let message = match shown {
            Shown::Nothing => "a user or token is needed",
            _ => "unknown user, password or token, or no pipeline with format = \"influx\"",
        };
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, message));
    }
    let all = statements.split(';').map(str::trim).filter(|s| !s.is_empty());
    let results: Vec<Value> =
        all.enumerate().map(|(id, statement)| one(id, statement, &databases)).collect();
    if results.is_empty() {
        return Err(Refusal::bad("missing required parameter \"q\""));
    }
    Ok(answer(StatusCode::OK, &json!({ "results": results })))
}

/// Pipelines that whoever shows this may write lines to.
fn databases(shared: &Shared, shown: &Shown) -> Vec<String> {
    let routes = shared.routes();
    let lines = routes.iter().filter(|r| r.format == Format::Influx);
    let mine = lines.filter(|r| r.access.allow(shown).is_some());
    mine.map(|r| r.pipeline.clone()).collect()
}

fn one(id: usize, statement: &str, databases: &[String]) -> Value {
    let words: Vec<String> =
        statement.split_whitespace().map(|w| w.trim_matches('"').to_owned()).collect();
    let is = |i: usize, word: &str| words.get(i).is_some_and(|w| w.eq_ignore_ascii_case(word));
    if is(0, "show") && is(1, "databases") && words.len() == 2 {
        let values: Vec<[&String; 1]> = databases.iter().map(|d| [d]).collect();
        let series = json!([{ "name": "databases", "columns": ["name"], "values": values }]);
        return json!({ "statement_id": id, "series": series });
    }
    let error = if is(0, "create") && is(1, "database") {
        let name = words.get(2).map_or("", String::as_str);
        if databases.iter().any(|d| d == name) {
            return json!({ "statement_id": id });
        }
        format!("there is no pipeline `{name}` with format = \"influx\": databases are pipelines")
    } else {
        "only SHOW DATABASES and CREATE DATABASE are answered: ask tidegate sql".to_owned()
    };
    json!({ "statement_id": id, "error": error })
}

/// The parameter `q` of a form.
async fn in_form(body: &mut BodyDataStream, limit: Duration) -> Result<String, Refusal> {
    let mut form = Vec::new();
    let read = async {
        while let Some(Ok(chunk)) = body.next().await {
            if form.len() + chunk.len() > QUERY_BYTES_MAX {
                return Err(Refusal::too_large("the query is too long"));
            }
            form.extend_from_slice(&chunk);
        }
        Ok(())
    };
    tokio::time::timeout(limit, read)
        .await
        .map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body came too slowly"))??;
    let mut pairs = url::form_urlencoded::parse(&form).into_owned();
    Ok(pairs.find(|(name, _)| name == "q").map(|(_, q)| q).unwrap_or_default())
}
