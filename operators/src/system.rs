//! Temporary.
use arrow::datatypes::*;
use std::sync::Arc;
/// Late rows.
pub fn late_schema() -> SchemaRef {
    let t = crate::spec::time_type();
    Arc::new(Schema::new(vec![
        Field::new("time", t.clone(), false),
        Field::new("pipeline", DataType::Utf8, false),
        Field::new("step", DataType::Utf8, false),
        Field::new("keys", DataType::Utf8, false),
        Field::new("window_start", t.clone(), false),
        Field::new("window_end", t, false),
        Field::new("received_late_us", DataType::Int64, false),
    ]))
}
/// Keys as JSON.
pub fn keys_json(names: &[&str], keys: &[arrow::array::ArrayRef], row: usize) -> String {
    let _ = (names, keys, row);
    String::new()
}
