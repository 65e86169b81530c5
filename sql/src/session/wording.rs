//! What DataFusion says, in the words of somebody who wrote a query: no names of its types, of its
//! stages or of its bugs. What is not known here stays as it is, without what stands before it.

/// What DataFusion puts before the sentence that counts.
const PREFIXES: [&str; 8] = [
    "Error during planning: ",
    "Execution error: ",
    "Internal error: ",
    "Arrow error: ",
    "Cast error: ",
    "Parser error: ",
    "Schema error: ",
    "Invalid argument error: ",
];

/// What it appends to errors that it takes for its own.
const BUG: &str = "This issue was likely caused by a bug";

/// How a time is written, for those who wrote something else.
const A_TIME: &str = "a time is written '2026-01-01T00:00:00Z'";

/// Forms of a function that an error shows.
const FORMS_MAX: usize = 4;

/// The same as `text`, in other words.
pub(super) fn reword(text: &str) -> String {
    let mut text = text.trim();
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        text = rest.trim_start();
    }
    known(text).unwrap_or_else(|| until(text, &[BUG]))
}

/// A text before the first of these.
fn until(text: &str, marks: &[&str]) -> String {
    let end = marks.iter().filter_map(|mark| text.find(mark)).min().unwrap_or(text.len());
    text[..end].trim_end_matches([' ', '.', '\n']).to_owned()
}

fn known(text: &str) -> Option<String> {
    let after = |mark: &str| text.split_once(mark).map(|(_, rest)| rest);
    let quoted = |mark: &str| after(mark)?.split_once('\'').map(|(inner, _)| inner);
    if let Some(call) = quoted("No function matches the given name and argument types '") {
        // Functions of our own say themselves what they take.
        let takes = format!("`{}` takes ", call.split('(').next().unwrap_or(call));
        if let Some(own) = text.find(&takes).map(|i| &text[i..]) {
            let own = own.lines().next().unwrap_or(own);
            return Some(people(&until(own, &[BUG, "No function matches"])));
        }
        return Some(no_such_call(call, after("Candidate functions:").unwrap_or_default()));
    }
    if let Some(name) = quoted("Invalid function '") {
        let near = quoted("Did you mean '").map(|near| format!("; did you mean `{near}`?"));
        return Some(format!("unknown function `{name}`{}", near.unwrap_or_default()));
    }
    if let Some(rest) = after("must be in GROUP BY or an aggregate function")
        && let Some((column, _)) = rest.split_once("column \"")?.1.split_once('"')
    {
        let name = column.rsplit('.').next().unwrap_or(column);
        return Some(format!(
            "column `{name}` must be in GROUP BY, or inside an aggregate: max({name})"
        ));
    }
    if let Some(rest) = text.strip_prefix("Cannot coerce arithmetic expression ") {
        let sum = rest.strip_suffix(" to valid types").unwrap_or(rest);
        return Some(format!("{} cannot be computed; CAST(... AS ...) converts", people(sum)));
    }
    if let Some(pair) = after("common argument type for comparison operation ") {
        let pair = people(pair);
        let hint = match pair.split(' ').any(|word| word == "time") {
            true => A_TIME,
            false => "CAST(... AS ...) converts",
        };
        return Some(format!("{pair} cannot be compared; {hint}"));
    }
    if let Some(rest) = after("Cannot cast string ")
        && let Some((value, kind)) = rest.split_once(" to value of ")
    {
        return Some(format!("{value} is no {}", people(kind.trim_end_matches(" type"))));
    }
    if let Some(value) = quoted("Error parsing timestamp from '") {
        return Some(format!("'{value}' is no time; {A_TIME}"));
    }
    text.starts_with("Divide by zero").then(|| "division by zero".to_owned())
}

/// A call of a function with arguments that it does not take, and those that it takes.
fn no_such_call(call: &str, candidates: &str) -> String {
    let mut forms: Vec<String> = Vec::new();
    for form in candidates.lines().map(str::trim).filter(|form| !form.is_empty()) {
        let form = people(form);
        if !forms.contains(&form) {
            forms.push(form);
        }
    }
    let call = people(call);
    // Some candidates are descriptions of rules and no types.
    let told = forms.iter().all(|form| !form.contains(char::is_uppercase)) && !forms.is_empty();
    forms.truncate(FORMS_MAX);
    match told {
        true => format!("there is no {call}; there is {}", forms.join(", ")),
        false => format!("there is no {call}"),
    }
}

/// A text with the names of types replaced by what people call them.
fn people(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let length = match is_part(first) {
            true => rest.find(|c| !is_part(c)).unwrap_or(rest.len()),
            false => first.len_utf8(),
        };
        let (word, after) = rest.split_at(length);
        match type_word(word) {
            Some(shown) => {
                out.push_str(shown);
                rest = without_parameters(after);
            }
            None => {
                out.push_str(word);
                rest = after;
            }
        }
    }
    out
}

fn type_word(name: &str) -> Option<&'static str> {
    Some(match name {
        "Utf8" | "LargeUtf8" | "Utf8View" | "String" => "text",
        "Float16" | "Float32" | "Float64" | "Decimal" | "Decimal128" | "Numeric" => "number",
        "Int8" | "Int16" | "Int32" | "Int64" | "UInt8" | "UInt16" | "UInt32" | "UInt64" => {
            "whole number"
        }
        "Boolean" => "true or false",
        "Timestamp" => "time",
        "Date32" | "Date64" => "date",
        "Interval" | "Duration" => "length of time",
        "List" | "LargeList" => "list",
        "Struct" => "group of values",
        _ => return None,
    })
}

/// What comes after the parameters of a type, if it has some.
fn without_parameters(text: &str) -> &str {
    if !text.starts_with('(') {
        return text;
    }
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[i + 1..];
        }
    }
    ""
}
