//! The JSON Schemas of pipeline files and of `tidegate.toml`, for editors, derived from the
//! table of keys.

use serde_json::{Map, Value, json};

use super::keys::{PIPELINE, PROCESS_FILE};
use super::kinds::{Component, Key, Kind};

/// JSON Schema (draft 2020-12) of a pipeline file.
pub fn schema() -> Value {
    titled(&PIPELINE, "Tidegate pipeline")
}

/// JSON Schema (draft 2020-12) of `tidegate.toml`.
pub fn process_schema() -> Value {
    titled(&PROCESS_FILE, "Tidegate process")
}

fn titled(c: &Component, title: &str) -> Value {
    let mut root = object(c);
    let members = root.as_object_mut().expect("an object");
    members.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    members.insert("title".into(), title.into());
    root
}

fn object(c: &Component) -> Value {
    let mut properties = Map::new();
    let mut required: Vec<&str> = Vec::new();
    if let Some(tag) = c.tag {
        properties.insert("type".into(), json!({ "const": tag }));
        required.push("type");
    }
    for key in c.keys {
        properties.insert(key.name.into(), property(key));
        if key.required {
            required.push(key.name);
        }
    }
    json!({
        "type": "object",
        "description": c.doc,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn property(key: &Key) -> Value {
    let mut value = kind(&key.kind);
    let members = value.as_object_mut().expect("every schema is an object");
    let mut doc = key.doc.to_owned();
    if !key.example.is_empty() {
        doc = format!("{doc} Example: {}", key.example);
    }
    members.insert("description".into(), doc.into());
    if let Some(default) = key.default {
        let default = match key.kind {
            Kind::Bool => (default == "true").into(),
            Kind::Int(..) | Kind::Float => {
                serde_json::from_str(default).expect("defaults of numbers are numbers")
            }
            _ => Value::from(default),
        };
        members.insert("default".into(), default);
    }
    value
}

fn texts() -> Value {
    json!({ "type": "string" })
}

fn kind(kind: &Kind) -> Value {
    const NAME: &str = "^[A-Za-z_][A-Za-z0-9_]*$";
    const REFERENCE: &str = r"\$\{(env|file):[^}]+\}";
    let map = |value: Value| json!({ "type": "object", "additionalProperties": value });
    let named = |value: Value| {
        json!({ "type": "object", "additionalProperties": value,
                "propertyNames": { "pattern": NAME } })
    };
    let list = |value: Value| json!({ "type": "array", "items": value });
    let one_of = |all: &[&Component]| -> Value {
        json!({ "oneOf": all.iter().map(|c| object(c)).collect::<Vec<_>>() })
    };
    match kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Int(min, i64::MAX) => json!({ "type": "integer", "minimum": min }),
        Kind::Int(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Float => json!({ "type": "number" }),
        Kind::Duration => json!({
            "type": "string",
            "pattern": r"^\s*([0-9]+(\.[0-9]+)?\s*(us|ms|s|m|h|d)\s*)+$",
        }),
        Kind::DurationOr(words) => {
            json!({ "anyOf": [{ "enum": words }, self::kind(&Kind::Duration)] })
        }
        Kind::TimesOfDay => map(json!({
            "type": "string",
            "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$",
        })),
        Kind::Size => json!({
            "type": "string",
            "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*(B|[KMGT]B|[KMGT]iB)\s*$",
        }),
        Kind::Name => json!({ "type": "string", "pattern": NAME }),
        Kind::Names => list(json!({ "type": "string", "pattern": NAME })),
        Kind::PipelineName => json!({ "type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_-]*$" }),
        Kind::OneOf(words) => json!({ "enum": words }),
        Kind::Texts | Kind::Topics => list(texts()),
        Kind::Secret => json!({ "type": "string", "pattern": REFERENCE }),
        Kind::Secrets => map(json!({ "type": "string", "pattern": REFERENCE })),
        // TOML's own times reach a validator as text.
        Kind::Instant => json!({ "type": "string", "format": "date-time" }),
        Kind::SqlMap => named(texts()),
        Kind::Properties => map(texts()),
        Kind::Time(c) | Kind::Zone(c) => json!({ "anyOf": [texts(), object(c)] }),
        Kind::Fields(c) => {
            let shorthand = c.key("type").map_or_else(texts, |k| self::kind(&k.kind));
            named(json!({ "anyOf": [shorthand, object(c)] }))
        }
        Kind::Section(c) => object(c),
        Kind::Sections(c) => list(object(c)),
        Kind::Variant(all) => one_of(all),
        Kind::Variants(all) => list(one_of(all)),
        Kind::NamedVariants(all) => map(one_of(all)),
        Kind::RowsByEdge => map(list(json!({ "type": "object" }))),
        Kind::CountByEdge => map(json!({ "type": "integer", "minimum": 0 })),
        Kind::Text
        | Kind::Address
        | Kind::SecretAddress
        | Kind::Sql
        | Kind::Path
        | Kind::TimeFormat
        | Kind::Regex
        | Kind::Payload => texts(),
    }
}
