//! The doctor where there is no broker, or a bad one; against good and bad real ones it is tried in
//! `tests/clients/doctor.py`.
#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::report::{Row, Status};
use super::*;

async fn look_at(url: String) -> Report {
    let config = SubscriberConfig { url, ..SubscriberConfig::default() };
    let text = "name = \"p\"\n[source]\ntype = \"mqtt\"\nurl = \"mqtt://b\"\n";
    let file = FileText { path: "p.toml".into(), text: text.to_owned() };
    examine("broker", &config, Some(&file), &Options::default()).await
}

/// A listener that answers each CONNECT with these bytes.
async fn answering(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut hello = [0; 512];
            let _ = stream.read(&mut hello).await;
            let _ = stream.write_all(answer).await;
        }
    });
    url
}

fn only_failure(report: &Report) -> &Row {
    assert!(!report.passed());
    assert_eq!(report.rows.len(), 1, "{report:?}");
    &report.rows[0]
}

#[tokio::test]
async fn no_broker_is_a_failure_with_a_hint() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    drop(listener);
    let report = look_at(url).await;
    let row = only_failure(&report);
    assert_eq!((row.check.as_str(), row.status), ("connection", Status::Fail));
    assert!(row.change[0].contains("nothing listens there"), "{row:?}");
    assert!(row.change[1].starts_with("p.toml:4: instead of `url = \"mqtt://b\"`"), "{row:?}");
    assert!(report.table().contains("FAIL   connection"), "{}", report.table());
}

#[tokio::test]
async fn a_refusal_and_a_stranger_are_told_apart() {
    let report = look_at(answering(&[0x20, 3, 0, 0x86, 0]).await).await;
    let change = &only_failure(&report).change;
    assert!(change[0].starts_with("p.toml:2: below this line: user = "), "{report:?}");
    assert!(change[1].contains("password_file"), "{report:?}");
    let report = look_at(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n").await).await;
    let row = only_failure(&report);
    assert!(row.measured.contains("does not answer as an MQTT broker"), "{row:?}");
    let report = look_at("http://x".to_owned()).await;
    assert_eq!(only_failure(&report).check, "settings");
}

#[tokio::test]
async fn a_broker_of_3_1_1_only_is_tried_with_that() {
    let report = look_at(answering(&[0x20, 2, 0, 1]).await).await;
    assert_eq!(report.rows[0].check, "version");
    let line = "p.toml:2: below this line: version = \"3.1.1\"";
    assert_eq!(report.rows[0].change, [line], "{report:?}");
    assert_eq!(report.rows[1].check, "connection");
}

#[test]
fn findings_are_json_too() {
    let mut report = Report::new("b", VERDICTS);
    report.fail("queue", "1 of 2", &["line"]);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["rows"][0]["status"], "fail");
    assert_eq!(json["rows"][0]["change"][0], "line");
    assert_eq!(json["subject"], "b");
}
