//! A TOML file as a tree that knows where everything is written, in the order in which it is
//! written. Errors in the syntax are problems like any other; a file that has some gives no tree.

use toml::de::{DeTable, DeValue};

use super::problem::{At, Reporter};

/// A value and where it is.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it is written.
    pub at: At,
    /// What it is.
    pub value: Value,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Value {
    /// A string.
    Text(String),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A TOML date or time, as written.
    Datetime(String),
    /// An array.
    List(Vec<Node>),
    /// A table.
    Table(Table),
}

impl Value {
    /// What it is, for messages.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a boolean",
            Self::Datetime(_) => "a date or time",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// The entries of a table, in the order as written.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Key, where the key is, value.
    pub entries: Vec<Entry>,
}

/// One entry of a table.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key is.
    pub key_at: At,
    /// Its value.
    pub node: Node,
}

impl Table {
    /// The entry of a key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.key == key)
    }
}

impl Node {
    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The table, if it is one.
    pub fn table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The items, if it is a list.
    pub fn list(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self.value {
            Value::Int(i) => Some(i as f64),
            Value::Float(f) => Some(f),
            _ => None,
        }
    }
}

/// Reads a file; `None` if its syntax is broken, which has been reported then.
pub fn parse(file: usize, report: &mut Reporter<'_>) -> Option<Node> {
    let text = report.text(file);
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        let at = At { file, start: span.start, end: span.end };
        report.syntax_error(at, format!("this is not TOML: {}", error.message()));
    }
    if !errors.is_empty() {
        return None;
    }
    let at = At { file, start: 0, end: 0 };
    Some(Node { at, value: Value::Table(table(root.get_ref(), file, report)) })
}

fn table(map: &DeTable<'_>, file: usize, report: &mut Reporter<'_>) -> Table {
    let mut entries: Vec<Entry> = map
        .iter()
        .map(|(key, value)| {
            let span = key.span();
            let key_at = At { file, start: span.start, end: span.end };
            let span = value.span();
            let at = At { file, start: span.start, end: span.end };
            Entry {
                key: key.get_ref().to_string(),
                key_at,
                node: Node { at, value: convert(value.get_ref(), at, report) },
            }
        })
        .collect();
    entries.sort_by_key(|e| e.key_at.start);
    Table { entries }
}

fn convert(value: &DeValue<'_>, at: At, report: &mut Reporter<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(int) => match i64::from_str_radix(int.as_str(), int.radix()) {
            Ok(int) => Value::Int(int),
            Err(_) => {
                report.error(at, "this integer does not fit into 64 bits", None);
                Value::Int(0)
            }
        },
        DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Datetime(datetime) => Value::Datetime(datetime.to_string()),
        DeValue::Array(items) => Value::List(
            items
                .iter()
                .map(|item| {
                    let span = item.span();
                    let at = At { file: at.file, start: span.start, end: span.end };
                    Node { at, value: convert(item.get_ref(), at, report) }
                })
                .collect(),
        ),
        DeValue::Table(map) => Value::Table(table(map, at.file, report)),
    }
}
