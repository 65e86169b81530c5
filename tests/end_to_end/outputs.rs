//! `tidegate sql` gives the same answer as CSV, JSON and Parquet, and fails with exit code 1.

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::support::{ColdChain, Device, Home, Reading};

const QUERY: &str = "SELECT device, CAST(count(*) AS BIGINT) AS n, sum(temperature) AS total \
    FROM cold_chain.readings GROUP BY device ORDER BY device";

type Totals = Vec<(String, i64, f64)>;

fn from_csv(text: &str) -> Totals {
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("device,n,total"));
    let row = |l: &str| {
        let parts: Vec<&str> = l.split(',').collect();
        (parts[0].to_owned(), parts[1].parse().unwrap(), parts[2].parse().unwrap())
    };
    lines.map(row).collect()
}

fn from_parquet(bytes: Vec<u8>) -> Totals {
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).unwrap();
    let mut totals = Vec::new();
    for batch in reader.build().unwrap() {
        let batch = batch.unwrap();
        let text =
            arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8).unwrap();
        let n = batch.column(1).as_primitive::<Int64Type>();
        let total = batch.column(2).as_primitive::<Float64Type>();
        for i in 0..batch.num_rows() {
            let device = text.as_string::<i32>().value(i).to_owned();
            totals.push((device, n.value(i), total.value(i)));
        }
    }
    totals
}

#[test]
fn csv_json_and_parquet_agree() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let instance = home.start();
    let mut expected: Totals = Vec::new();
    let mut device = Device::connect(instance.endpoint(), "gateway").unwrap();
    for d in 0..5i64 {
        let readings: Vec<Reading> =
            (0..100 + d).map(|i| Reading::regular("north", &format!("d{d}"), i, 1_000)).collect();
        let total = readings.iter().map(|r| r.temperature).sum();
        expected.push((format!("d{d}"), readings.len() as i64, total));
        let topic = readings[0].topic();
        device.publish_all(readings.iter().map(|r| (topic.as_str(), r.payload()))).unwrap();
    }
    let all = expected.iter().map(|(_, n, _)| n).sum();
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", all);

    let rows = home.rows(QUERY);
    let json: Totals = rows
        .iter()
        .map(|r| {
            let device = r["device"].as_str().unwrap().to_owned();
            (device, r["n"].as_i64().unwrap(), r["total"].as_f64().unwrap())
        })
        .collect();
    assert_eq!(json, expected);
    let csv = home.sql("csv", QUERY);
    assert_eq!(from_csv(&String::from_utf8(csv.stdout).unwrap()), expected);
    assert_eq!(from_parquet(home.sql("parquet", QUERY).stdout), expected);
    let table = String::from_utf8(home.sql("table", QUERY).stdout).unwrap();
    assert!(table.contains("d4") && table.contains("104"), "{table}");
    // A name that is unique over all pipelines needs no schema.
    assert_eq!(home.count("SELECT count(*) FROM readings"), all);
    instance.stop();
}

#[test]
fn a_query_that_cannot_be_answered_fails_with_words() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    home.start().stop();
    let output = home.sql("json", "SELECT nonsense FROM nowhere");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("nowhere"), "{said}");
}
