//! Delta's schema JSON and Arrow's schema, both ways.
//!
//! Every column is nullable in the log: whether a value is required is the pipeline's rule, and a
//! rule may be relaxed later without rewriting the table.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use serde_json::{Map, Value, json};

/// The Arrow type in which a column of type `given` is stored and read back, `None` if Delta has
/// no type for it. Unsigned 64-bit integers become signed ones; a value that does not fit is an
/// error when it is written.
pub(crate) fn stored_type(given: &DataType) -> Option<DataType> {
    Some(match given {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::Binary
        | DataType::Date32 => given.clone(),
        DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::Timestamp(_, _) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Decimal128(p, s) if *s >= 0 => DataType::Decimal128(*p, *s),
        DataType::Dictionary(_, values) => stored_type(values)?,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::FixedSizeList(item, _) => {
            let item = Field::new("element", stored_type(item.data_type())?, true);
            DataType::List(Arc::new(item))
        }
        DataType::Struct(parts) if !parts.is_empty() => {
            let part = |f: &FieldRef| Some(Field::new(f.name(), stored_type(f.data_type())?, true));
            DataType::Struct(parts.iter().map(part).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

/// Delta's name of a stored type.
fn type_json(stored: &DataType) -> Option<Value> {
    Some(match stored {
        DataType::Boolean => "boolean".into(),
        DataType::Int8 => "byte".into(),
        DataType::Int16 => "short".into(),
        DataType::Int32 => "integer".into(),
        DataType::Int64 => "long".into(),
        DataType::Float32 => "float".into(),
        DataType::Float64 => "double".into(),
        DataType::Utf8 => "string".into(),
        DataType::Binary => "binary".into(),
        DataType::Date32 => "date".into(),
        DataType::Timestamp(_, _) => "timestamp".into(),
        DataType::Decimal128(p, s) => format!("decimal({p},{s})").into(),
        DataType::List(item) => {
            let element = type_json(item.data_type())?;
            json!({"type": "array", "elementType": element, "containsNull": true})
        }
        DataType::Struct(parts) => {
            let part = |f: &FieldRef| {
                let kind = type_json(f.data_type())?;
                Some(json!({"name": f.name(), "type": kind, "nullable": true, "metadata": {}}))
            };
            json!({"type": "struct", "fields": parts.iter().map(part).collect::<Option<Vec<_>>>()?})
        }
        _ => return None,
    })
}

fn parse_type(value: &Value) -> Result<DataType, String> {
    if let Some(object) = value.as_object() {
        return match object.get("type").and_then(Value::as_str) {
            Some("array") => {
                let element = parse_type(object.get("elementType").unwrap_or(&Value::Null))?;
                Ok(DataType::List(Arc::new(Field::new("element", element, true))))
            }
            Some("struct") => {
                let parts = object.get("fields").and_then(Value::as_array);
                let part = |part: &Value| {
                    let name = part.get("name").and_then(Value::as_str);
                    let name = name.ok_or("a part of a struct has no name")?;
                    let kind = parse_type(part.get("type").unwrap_or(&Value::Null))?;
                    Ok::<_, String>(Field::new(name, kind, true))
                };
                let parts = parts.into_iter().flatten().map(part).collect::<Result<_, _>>()?;
                Ok(DataType::Struct(parts))
            }
            other => Err(format!("type {other:?} is not supported")),
        };
    }
    let name = value.as_str().unwrap_or_default();
    Ok(match name {
        "boolean" => DataType::Boolean,
        "byte" => DataType::Int8,
        "short" => DataType::Int16,
        "integer" => DataType::Int32,
        "long" => DataType::Int64,
        "float" => DataType::Float32,
        "double" => DataType::Float64,
        "string" => DataType::Utf8,
        "binary" => DataType::Binary,
        "date" => DataType::Date32,
        "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        _ => {
            let digits = name.strip_prefix("decimal(").and_then(|r| r.strip_suffix(')'));
            let pair = digits.and_then(|d| d.split_once(','));
            let parsed =
                pair.and_then(|(p, s)| Some((p.trim().parse().ok()?, s.trim().parse().ok()?)));
            let (p, s) = parsed.ok_or_else(|| format!("type `{name}` is not supported"))?;
            DataType::Decimal128(p, s)
        }
    })
}

/// Schema JSON of a table whose columns all have stored types.
pub(crate) fn to_json(schema: &Schema) -> String {
    let fields: Vec<Value> = schema
        .fields()
        .iter()
        .map(|f| {
            let mut keys: Vec<_> = f.metadata().iter().collect();
            keys.sort();
            let metadata: Map<String, Value> =
                keys.into_iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
            let kind = type_json(f.data_type()).expect("stored types have a Delta type");
            json!({"name": f.name(), "type": kind, "nullable": true, "metadata": metadata})
        })
        .collect();
    json!({"type": "struct", "fields": fields}).to_string()
}

/// Arrow schema of a table; the error says which column is not understood.
pub(crate) fn from_json(text: &str) -> Result<SchemaRef, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| format!("schema: {e}"))?;
    let fields = value.get("fields").and_then(Value::as_array).ok_or("schema has no fields")?;
    let mut columns = Vec::with_capacity(fields.len());
    for field in fields {
        let name = field.get("name").and_then(Value::as_str).ok_or("a column has no name")?;
        let kind = parse_type(field.get("type").unwrap_or(&Value::Null))
            .map_err(|e| format!("column `{name}`: {e}"))?;
        let metadata = field.get("metadata").and_then(Value::as_object);
        let metadata = metadata.into_iter().flatten();
        let metadata = metadata.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())));
        columns.push(Field::new(name, kind, true).with_metadata(metadata.collect()));
    }
    Ok(Arc::new(Schema::new(columns)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_stored_type_survives_its_json() {
        let list = Field::new("item", DataType::LargeUtf8, false);
        let counted = [Field::new("at", DataType::Float32, false), list.clone()];
        let counted = DataType::Struct(counted.into_iter().collect());
        let lists = Field::new("item", DataType::List(Arc::new(list.clone())), true);
        let given = [
            DataType::Boolean,
            DataType::Int8,
            DataType::UInt64,
            DataType::Float32,
            DataType::Utf8View,
            DataType::Binary,
            DataType::Date32,
            DataType::Timestamp(TimeUnit::Nanosecond, None),
            DataType::Decimal128(12, 3),
            DataType::List(Arc::new(list)),
            DataType::List(Arc::new(Field::new("item", counted.clone(), false))),
            DataType::Struct([lists].into_iter().collect()),
            counted,
        ];
        let fields = given.iter().enumerate().map(|(i, t)| {
            let unit = [("unit".to_owned(), "°C".to_owned())].into();
            Field::new(format!("c{i}"), stored_type(t).unwrap(), true).with_metadata(unit)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        assert_eq!(from_json(&to_json(&schema)).unwrap(), schema);
    }

    #[test]
    fn what_delta_lacks_is_named() {
        assert_eq!(stored_type(&DataType::Duration(TimeUnit::Second)), None);
        let inside = Field::new("item", DataType::Duration(TimeUnit::Second), true);
        assert_eq!(stored_type(&DataType::List(Arc::new(inside))), None);
        let text = r#"{"fields":[{"name":"v","type":"variant"}]}"#;
        assert_eq!(from_json(text).unwrap_err(), "column `v`: type `variant` is not supported");
    }
}
