//! `${env:NAME}` and `${file:PATH}` inside a value. What they stand for comes from the caller: this
//! crate reads neither the environment nor files.

use xxhash_rust::xxh3::xxh3_64;

/// Gives what a reference stands for: kind (`env` or `file`) and name to value, or why there is
/// none. The reason is shown, so it must not contain a value.
pub type Resolver<'a> = &'a dyn Fn(&str, &str) -> Result<String, String>;

/// What a resolver may give for a reference that is missing where nothing is run: it does as an
/// address and as a secret, and no machine has this name.
pub const UNSET: &str = "https://unset.invalid/";

/// What a resolver may give instead of [`UNSET`] where it matters that two references are two:
/// addresses with different ones do not become the same address.
pub fn unset(kind: &str, name: &str) -> String {
    format!("{UNSET}{OWN}{kind}:{name}")
}

/// Follows [`UNSET`] where the name of the reference follows.
const OWN: &str = "#";

/// The text, or one with `host` in its place if a part of it is not known here. Where the resolver
/// said by [`unset`] what is missing, the host is an own address of this machine.
pub fn known_or(text: String, host: &str, instead: impl Fn(&str) -> String) -> String {
    let Some((_, rest)) = text.split_once(UNSET) else { return text };
    if !rest.starts_with(OWN) {
        return instead(host);
    }
    let [a, b, c, ..] = xxh3_64(text.as_bytes()).to_le_bytes();
    instead(&format!("127.{a}.{b}.{c}"))
}

/// Whether the text refers to anything.
pub fn has_any(text: &str) -> bool {
    text.contains("${")
}

/// Whether all references in the text are well-formed.
pub fn check(text: &str) -> Result<(), String> {
    expand(text, &|_, _| Ok(String::new())).map(|_| ())
}

/// The text with its references replaced. Values are not looked at again.
pub fn expand(text: &str, resolve: Resolver<'_>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        out.push_str(&rest[..start]);
        let tail = &rest[start + 2..];
        let end = tail.find('}').ok_or("a reference has no closing `}`")?;
        let (kind, name) = tail[..end].split_once(':').unwrap_or((&tail[..end], ""));
        if !matches!(kind, "env" | "file") || name.is_empty() {
            return Err(format!(
                "`${{{}}}` is not a reference: it is `${{env:NAME}}` or `${{file:PATH}}`",
                &tail[..end]
            ));
        }
        let value = resolve(kind, name)?;
        // An editor ends a file with a newline that is not part of the secret.
        out.push_str(if kind == "file" { value.trim_end_matches(['\r', '\n']) } else { &value });
        rest = &tail[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn references_are_replaced_once() {
        let resolve = |kind: &str, name: &str| match (kind, name) {
            ("env", "A") => Ok("${env:B}".to_owned()),
            ("file", "/f") => Ok("secret\n".to_owned()),
            _ => Err(format!("{kind} {name}?")),
        };
        assert_eq!(expand("x${env:A}y${file:/f}", &resolve), Ok("x${env:B}ysecret".into()));
        assert_eq!(expand("${env:C}", &resolve), Err("env C?".into()));
        assert!(check("${env:A").unwrap_err().contains("closing"));
        assert!(check("${vault:A}").unwrap_err().contains("not a reference"));
        assert!(check("${env:}").is_err());
    }
}
