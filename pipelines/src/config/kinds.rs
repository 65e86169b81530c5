//! What a key of the configuration can hold. The table of keys (`keys.rs`) is written in these
//! terms; checking, the JSON Schema and the reference are each one `match` over [`Kind`].

/// A table of the configuration: a section, or one `type` of a section.
#[derive(Debug)]
pub struct Component {
    /// Short name for references, such as `step.window`.
    pub id: &'static str,
    /// How its table is written, such as `[[step]]`.
    pub heading: &'static str,
    /// The value of `type` that selects it, if it is one of several.
    pub tag: Option<&'static str>,
    /// What it is for.
    pub doc: &'static str,
    /// Its keys, `type` aside.
    pub keys: &'static [Key],
}

impl Component {
    /// The key of a name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|k| k.name == name)
    }
}

/// A key of a component.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether it must be there.
    pub required: bool,
    /// What it is if it is not there; text as in the value.
    pub default: Option<&'static str>,
    /// What it means.
    pub doc: &'static str,
    /// A value as it is written in TOML; empty for tables, whose own keys have examples.
    pub example: &'static str,
}

impl Key {
    /// An optional key without a default.
    pub const fn new(
        name: &'static str,
        kind: Kind,
        doc: &'static str,
        example: &'static str,
    ) -> Self {
        Self { name, kind, required: false, default: None, doc, example }
    }

    /// The same, but required.
    pub const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// The same with a default.
    pub const fn default(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }
}

/// What a key holds.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Any text.
    Text,
    /// A name of a pipeline: letters, digits, `-` and `_`, starting with a letter.
    PipelineName,
    /// A name that is also a SQL name: letters, digits and `_`, not starting with a digit.
    Name,
    /// A list of such names.
    Names,
    /// true or false.
    Bool,
    /// An integer between the two.
    Int(i64, i64),
    /// A number.
    Float,
    /// A duration with its unit.
    Duration,
    /// A duration, or one of these words.
    DurationOr(&'static [&'static str]),
    /// A size with its unit.
    Size,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A list of texts.
    Texts,
    /// Text in which `${env:NAME}` and `${file:PATH}` are replaced.
    Address,
    /// Like [`Kind::Address`], but never shown; may be literal.
    SecretAddress,
    /// A secret, by reference only.
    Secret,
    /// Names with a secret each, by reference only.
    Secrets,
    /// A SQL expression.
    Sql,
    /// Names with a SQL expression each.
    SqlMap,
    /// Topic templates.
    Topics,
    /// A payload path `a.b`, a path from the whole document `$.a.b`, a capture `{name}` or an MQTT
    /// 5 property `{user:name}`.
    Path,
    /// MQTT 5 properties with a text each.
    Properties,
    /// Names with a time of day each.
    TimesOfDay,
    /// The name of a time zone, or the component's table.
    Zone(&'static Component),
    /// How a time is written.
    TimeFormat,
    /// A regular expression.
    Regex,
    /// A point in time, RFC 3339.
    Instant,
    /// A payload of a test; placeholders in braces are replaced.
    Payload,
    /// A path, `"received"`, or the component's table.
    Time(&'static Component),
    /// Columns: name = type, or name = the component's table.
    Fields(&'static Component),
    /// A table.
    Section(&'static Component),
    /// Tables in a list, each the component.
    Sections(&'static Component),
    /// A table whose `type` selects the component.
    Variant(&'static [&'static Component]),
    /// A list of such tables.
    Variants(&'static [&'static Component]),
    /// Names with such a table each.
    NamedVariants(&'static [&'static Component]),
    /// Edges with the rows that are expected of each.
    RowsByEdge,
    /// Edges with the number of rows that is expected of each.
    CountByEdge,
}

impl Kind {
    /// What it is called in the reference and in messages.
    pub fn describe(&self) -> String {
        let text = match self {
            Self::Text | Self::Address | Self::SecretAddress => "text",
            Self::Payload => "text (placeholders {ms} {s} {us} {rfc3339} {i})",
            Self::PipelineName | Self::Name => "name",
            Self::Names => "list of names",
            Self::Bool => "boolean",
            Self::Int(min, max) => {
                return match (*min, *max) {
                    (min, i64::MAX) => format!("integer from {min}"),
                    (min, max) => format!("integer from {min} to {max}"),
                };
            }
            Self::Float => "number",
            Self::Duration => "duration",
            Self::DurationOr(words) => return format!("duration or {}", one_of(words)),
            Self::Size => "size",
            Self::OneOf(words) => return one_of(words),
            Self::Texts => "list of texts",
            Self::Secret => "secret",
            Self::Secrets => "table of secrets",
            Self::Sql => "SQL expression",
            Self::SqlMap => "table of SQL expressions",
            Self::Topics => "list of topic templates",
            Self::Path => "path, {capture} or {user:property}",
            Self::Properties => "table of texts",
            Self::TimesOfDay => "table of times of day",
            Self::Zone(_) => "IANA time zone or table",
            Self::TimeFormat => "time format",
            Self::Regex => "regular expression",
            Self::Instant => "RFC 3339 time",
            Self::Time(_) => "path, \"received\" or table",
            Self::Fields(_) => "table of columns",
            Self::Section(_) | Self::Variant(_) => "table",
            Self::Sections(_) | Self::Variants(_) => "list of tables",
            Self::NamedVariants(_) => "table of tables",
            Self::RowsByEdge => "table of lists of rows",
            Self::CountByEdge => "table of integers",
        };
        text.to_owned()
    }

    /// The components below it.
    pub fn components(&self) -> &'static [&'static Component] {
        match self {
            Self::Variant(all) | Self::Variants(all) | Self::NamedVariants(all) => all,
            _ => &[],
        }
    }
}

fn one_of(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|w| format!("\"{w}\"")).collect();
    words.join(" or ")
}
